//! Fragments of the guest's datagrams, put together (RFC 791, RFC 8200 section 4.5).
//!
//! # Theory of operation
//!
//! A datagram under reassembly holds one large slot; each fragment's payload is copied to its place
//! behind headroom for the headers. What is there is known as a short sorted list of ranges, so a
//! datagram is whole when there is one range from 0 to the end that its last fragment named, and not
//! one byte of it is other than the guest wrote. Headers are then written anew, without
//! options, and the frame is parsed as any other: nothing behind this file knows of fragments.
//!
//! Distrust: a fragment that overlaps another, ends beyond the end, or moves the end, condemns its
//! datagram: the slot is freed, and later fragments of it are dropped as they come (RFC 5722; for IPv4
//! as well). Only a copy of what is there already is ignored. The number of datagrams, the slots they
//! take, their ranges and their time are bounded.

use std::net::IpAddr;

use smoltcp::wire::IpProtocol;

use crate::arena::Slot;
use crate::flow::Ctx;
use crate::frame::{self, Fragment, Ip, L3, Pair, Parsed, build, vnet};
use crate::limits::{
    HEADROOM, IP_LEN_MAX, RANGES_MAX, REASSEMBLIES_MAX, REASSEMBLY_RESERVED, REASSEMBLY_TIMEOUT,
};
use crate::stats::Drop;
use crate::time::Time;

/// Datagrams under reassembly.
#[derive(Debug, Default)]
pub struct Reassembly {
    datagrams: [Option<Datagram>; REASSEMBLIES_MAX],
    /// The earliest end of any of them.
    deadline: Option<Time>,
}

/// One datagram.
#[derive(Debug)]
struct Datagram {
    name: Name,
    until: Time,
    /// `None`: condemned.
    parts: Option<Parts>,
}

/// What fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    src: IpAddr,
    dst: IpAddr,
    id: u32,
    /// In IPv6 only the first fragment's counts.
    proto: Option<IpProtocol>,
}

/// What has come of a datagram.
#[derive(Debug)]
struct Parts {
    /// Payload from [`HEADROOM`] on.
    slot: Slot,
    /// Ranges that are there: in order, with gaps between.
    ranges: [(u32, u32); RANGES_MAX],
    count: usize,
    /// Length of the payload, when the last fragment has come.
    total: Option<u32>,
    /// TTL, type of service and protocol of the first fragment, when it has come.
    first: Option<(u8, u8, IpProtocol)>,
}

/// What a fragment was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// New, or a copy of what was there.
    Yes,
    /// Impossible beside the others.
    Lie,
}

impl Reassembly {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a fragment; yields the whole datagram (a slot that looks like a frame that was never cut) when it is the
    /// last that was missing.
    pub fn handle(
        &mut self,
        ctx: &mut Ctx<'_>,
        parsed: &Parsed,
        ip: &Ip,
        slot: Slot,
    ) -> Option<(Slot, Ip)> {
        let fragment = ip.fragment?;
        let payload = slot.bytes().get(ip.start..ip.end).unwrap_or_default();
        let header = if ip.src.is_ipv4() { 20 } else { 0 };
        let end = usize::from(fragment.offset) + payload.len();
        if payload.is_empty()
            || (fragment.more && payload.len() % 8 != 0)
            || header + end > IP_LEN_MAX
            || parsed.vnet.gso_type != vnet::GSO_NONE
        {
            ctx.stats.drop(Drop::BadFragment);
            return None;
        }
        let name = Name {
            src: ip.src,
            dst: ip.dst,
            id: fragment.id,
            proto: ip.src.is_ipv4().then_some(ip.proto),
        };
        let place = self.place(ctx, name)?;
        let datagram = place.as_mut()?;
        let Some(parts) = datagram.parts.as_mut() else {
            ctx.stats.drop(Drop::BadFragment);
            return None;
        };
        match parts.take(fragment, payload) {
            Taken::Yes => ctx.stats.copied_bytes += payload.len() as u64,
            Taken::Lie => {
                ctx.stats.drop(Drop::BadFragment);
                datagram.parts = None;
                return None;
            }
        }
        if fragment.offset == 0 {
            parts.first = Some((ip.ttl, ip.tos, ip.proto));
        }
        if !parts.whole() {
            return None;
        }
        let parts = place.take()?.parts?;
        self.look();
        parts.finish(ctx, parsed, ip)
    }

    /// Gives up on what took too long.
    pub fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) {
        if self.deadline.is_none_or(|deadline| ctx.now < deadline) {
            return;
        }
        for place in &mut self.datagrams {
            if let Some(datagram) = place.take_if(|datagram| datagram.until <= ctx.now)
                && datagram.parts.is_some()
            {
                ctx.stats.drop(Drop::FragmentTimeout);
            }
        }
        self.look();
    }

    /// When that is.
    pub fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    fn look(&mut self) {
        self.deadline = self.datagrams.iter().flatten().map(|datagram| datagram.until).min();
    }

    /// The place of a datagram, a new one if need be; `None` (counted) when no slot is free.
    fn place(&mut self, ctx: &mut Ctx<'_>, name: Name) -> Option<&mut Option<Datagram>> {
        let is = |place: &Option<Datagram>| place.as_ref().is_some_and(|d| d.name == name);
        if let Some(known) = self.datagrams.iter().position(is) {
            return self.datagrams.get_mut(known);
        }
        let Some(slot) = ctx.pools.large.take_above(REASSEMBLY_RESERVED) else {
            ctx.stats.drop(Drop::NoBuffer);
            return None;
        };
        let until = ctx.now + REASSEMBLY_TIMEOUT;
        self.deadline = Some(self.deadline.map_or(until, |deadline| deadline.min(until)));
        // A free place (`None` is less than any time), else the oldest.
        let place =
            self.datagrams.iter_mut().min_by_key(|place| place.as_ref().map(|d| d.until))?;
        if place.as_ref().is_some_and(|datagram| datagram.parts.is_some()) {
            ctx.stats.drop(Drop::BadFragment);
        }
        *place = Some(Datagram { name, until, parts: Some(Parts::new(slot)) });
        Some(place)
    }
}

impl Parts {
    fn new(slot: Slot) -> Self {
        Self { slot, ranges: [(0, 0); RANGES_MAX], count: 0, total: None, first: None }
    }

    fn ranges(&self) -> &[(u32, u32)] {
        &self.ranges[..self.count]
    }

    /// Puts a fragment's payload in its place.
    fn take(&mut self, fragment: Fragment, payload: &[u8]) -> Taken {
        let start = u32::from(fragment.offset);
        let end = start + payload.len() as u32;
        let furthest = self.ranges().last().map_or(0, |range| range.1);
        match (self.total, fragment.more) {
            // A part that is not the last ends before the end; the end is where it was.
            (Some(total), true) if end >= total => return Taken::Lie,
            (Some(total), false) if end != total => return Taken::Lie,
            (None, false) if end < furthest => return Taken::Lie,
            (Some(_), _) | (None, true) => {}
            (None, false) => self.total = Some(end),
        }
        // The first range that does not end before this one begins.
        let at = self.ranges().iter().take_while(|range| range.1 < start).count();
        self.slot.set_range(HEADROOM + start as usize, payload.len());
        if let Some(range) = self.ranges().get(at)
            && range.0 <= start
            && end <= range.1
        {
            return if self.slot.bytes() == payload { Taken::Yes } else { Taken::Lie };
        }
        let touches = |range: Option<&(u32, u32)>| {
            range.is_some_and(|range| range.0 < end && start < range.1)
        };
        if touches(self.ranges().get(at)) || touches(self.ranges().get(at + 1)) {
            return Taken::Lie;
        }
        if !self.insert(at, start, end) {
            return Taken::Lie;
        }
        self.slot.bytes_mut().copy_from_slice(payload);
        Taken::Yes
    }

    /// Adds a range that overlaps none, before or beside the one at `at`; false when there are too many.
    fn insert(&mut self, at: usize, start: u32, end: u32) -> bool {
        let count = self.count;
        let joins_left = self.ranges().get(at).is_some_and(|range| range.1 == start);
        let right = if joins_left { at + 1 } else { at };
        let joins_right = self.ranges().get(right).is_some_and(|range| range.0 == end);
        match (joins_left, joins_right) {
            (true, true) => {
                self.ranges[at].1 = self.ranges[right].1;
                self.ranges.copy_within(right + 1..count, right);
                self.count -= 1;
            }
            (true, false) => self.ranges[at].1 = end,
            (false, true) => self.ranges[right].0 = start,
            (false, false) if count == RANGES_MAX => return false,
            (false, false) => {
                self.ranges.copy_within(at..count, at + 1);
                self.ranges[at] = (start, end);
                self.count += 1;
            }
        }
        true
    }

    fn whole(&self) -> bool {
        self.total.is_some_and(|total| *self.ranges() == [(0, total)])
    }

    /// Writes headers in front of the payload and reads the frame as if it had come so.
    fn finish(self, ctx: &mut Ctx<'_>, parsed: &Parsed, ip: &Ip) -> Option<(Slot, Ip)> {
        let (mut slot, total) = (self.slot, self.total?);
        let (ttl, tos, proto) = self.first?;
        let pair = Pair::new(ip.src, ip.dst)?;
        slot.set_range(HEADROOM, total as usize);
        let out = build::Out {
            eth_src: parsed.eth_src,
            eth_dst: parsed.eth_dst,
            pair,
            ttl,
            tos,
            df: false,
        };
        build::ip(&mut slot, &out, proto);
        match frame::parse(slot.bytes()) {
            Ok(Parsed { l3: L3::Ip(ip), .. }) if ip.fragment.is_none() => Some((slot, ip)),
            // Fragments of fragments, or headers that the first fragment broke off.
            Ok(_) | Err(_) => {
                ctx.stats.drop(Drop::BadFragment);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
