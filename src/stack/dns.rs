//! The DNS forwarder: queries to `.3`, or its IPv6 twin, go to the host's resolvers.
//!
//! # Theory of operation
//!
//! A query over UDP is a flow of its own, with a socket of its own, connected to one resolver: an
//! answer from elsewhere never arrives, and the port is as hard to guess as the host's kernel makes
//! it. The query leaves with a number of ours instead of the guest's, so that a guest that counts up
//! is no easier to lie to than another.
//!
//! When the resolver stays silent for [`DNS_RETRY`], or fails (an ICMP error, an errno, SERVFAIL), the
//! query *moves* to the next one: the stack closes the flow's socket and gives the query to a new
//! flow under the same key, so that the old resolver's late answer finds nobody. A resolver that
//! failed is not asked again for this query; when none is left, the guest gets the last one's
//! SERVFAIL, or ours. The query ends with its first answer, or after [`DNS_LIFE`].
//!
//! Resolvers of both families serve both of the guest's addresses, those of the same family first.
//! Without any, the host's loopback is asked, as slirp4netns does. This is a way to the host's
//! loopback past `.2`, but to port 53 only, and the host has named it as its resolver.
//!
//! TCP needs nothing of this but the choice of a resolver ([`Dns::next_after_failure`]).

use std::hash::{DefaultHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::arena::Slot;
use crate::flow::key::FlowKey;
use crate::flow::local::Local;
use crate::flow::{Action, Ctx, DgramEvent, DgramKind, FlowId, SendOpts};
use crate::frame::{Mac, Pair, build};
use crate::limits::{
    DNS_LIFE, DNS_NOTICE, DNS_PENDING_MAX, DNS_RETRY, HEADROOM, IP_LEN_MAX, RESOLVERS_MAX,
};
use crate::stats::Drop;
use crate::time::Time;

/// Resolvers and the number of pending queries.
#[derive(Debug)]
pub struct Dns {
    secret: [u64; 2],
    resolvers: [Option<IpAddr>; RESOLVERS_MAX],
    /// Queries that wait for an answer.
    pending: u32,
    /// Queries so far.
    queries: u64,
    /// When [`Action::DnsUsed`] was last sent.
    noticed: Option<Time>,
}

/// One query over UDP.
#[derive(Debug)]
pub struct DnsFlow {
    /// The query as it goes to resolvers, kept for the next of them.
    query: Slot,
    /// The slot it came in, for the first.
    fresh: Option<Slot>,
    /// Its number as the guest knows it, and as resolvers do.
    guest_number: u16,
    number: u16,
    mac: Mac,
    /// Which resolver is asked, and which have failed, as bits.
    resolver: u8,
    failed: u8,
    retry: Time,
    end: Time,
}

/// What a query wants after it has handled something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To wait; with a call of its `handle_timeout` by then at the latest.
    Wait(Time),
    /// To be given a new flow, and started there.
    Move,
    /// To end.
    Done,
}

impl Dns {
    /// No resolver known.
    pub fn new(secret: [u64; 2]) -> Self {
        Self { secret, resolvers: [None; RESOLVERS_MAX], pending: 0, queries: 0, noticed: None }
    }

    /// Replaces the resolvers.
    pub fn set_resolvers(&mut self, resolvers: &[IpAddr]) {
        self.resolvers = [None; RESOLVERS_MAX];
        for (place, addr) in self.resolvers.iter_mut().zip(resolvers) {
            *place = Some(*addr);
        }
    }

    /// A query (slot's range: the DNS message). Counts it as pending and yields a number that
    /// distinguishes it among the guest endpoint's queries; `None`: refused, counted.
    pub fn query(&mut self, ctx: &mut Ctx<'_>, mac: Mac, mut slot: Slot) -> Option<(u16, DnsFlow)> {
        // A header, and not an answer.
        let [n0, n1, flags, ..] = *slot.bytes() else {
            ctx.stats.drop(Drop::Malformed);
            return None;
        };
        if slot.len() < HEADER || flags & QR != 0 {
            ctx.stats.drop(Drop::Malformed);
            return None;
        }
        self.note_use(ctx);
        if self.pending >= DNS_PENDING_MAX || slot.len() > QUERY_MAX {
            ctx.stats.drop(Drop::DnsRefused);
            return None;
        }
        let number = self.number();
        slot.bytes_mut()[..2].copy_from_slice(&number.to_be_bytes());
        let query = copy(ctx, slot.bytes())?;
        self.pending += 1;
        self.queries += 1;
        let flow = DnsFlow {
            query,
            fresh: Some(slot),
            guest_number: u16::from_be_bytes([n0, n1]),
            number,
            mac,
            resolver: 0,
            failed: 0,
            retry: ctx.now,
            end: ctx.now + DNS_LIFE,
        };
        Some((self.queries as u16, flow))
    }

    /// One pending query fewer.
    pub fn release(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    /// Tells the watcher of resolv.conf that DNS is used, at most once per [`DNS_NOTICE`].
    pub fn note_use(&mut self, ctx: &mut Ctx<'_>) {
        if self.noticed.is_none_or(|last| ctx.now - last >= DNS_NOTICE) {
            self.noticed = Some(ctx.now);
            ctx.actions.push(Action::DnsUsed);
        }
    }

    /// The resolver for a TCP connection to `.3`, after `tries` that failed; `None`: no more.
    pub fn next_after_failure(&self, to: SocketAddr, tries: u8) -> Option<SocketAddr> {
        self.resolver(to.ip(), tries)
    }

    /// The `n`th resolver for queries to `to`.
    fn resolver(&self, to: IpAddr, n: u8) -> Option<SocketAddr> {
        let known = || self.resolvers.iter().flatten().copied();
        let (same, other) = (
            known().filter(|addr| addr.is_ipv4() == to.is_ipv4()),
            known().filter(|addr| addr.is_ipv4() != to.is_ipv4()),
        );
        let fallback = match to {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let none = known().next().is_none().then_some(fallback);
        let addr = same.chain(other).chain(none).nth(usize::from(n))?;
        Some(SocketAddr::new(addr, PORT))
    }

    /// How many resolvers there are for queries to `to`.
    fn resolvers(&self) -> u8 {
        self.resolvers.iter().flatten().count().max(1) as u8
    }

    /// A number that no one can foresee who does not know the secret.
    fn number(&self) -> u16 {
        let mut hasher = DefaultHasher::new();
        for word in [self.secret[0], self.secret[1], self.queries] {
            hasher.write_u64(word);
        }
        hasher.finish() as u16
    }
}

impl DnsFlow {
    /// Opens the socket and sends the query to its resolver.
    pub fn start(&mut self, ctx: &mut Ctx<'_>, dns: &Dns, id: FlowId, key: &FlowKey) -> Step {
        let Some(resolver) = dns.resolver(key.host().ip(), self.resolver) else {
            // The list has become shorter.
            return self.give_up(ctx, key, None);
        };
        ctx.actions.push(Action::DgramOpen { flow: id, kind: DgramKind::Dns(resolver) });
        self.send(ctx, id, resolver)
    }

    /// What the worker reports.
    pub fn handle_event(
        &mut self,
        ctx: &mut Ctx<'_>,
        dns: &Dns,
        key: &FlowKey,
        event: DgramEvent,
    ) -> Step {
        match event {
            DgramEvent::Received { mut slot, segment, .. } => {
                if segment != 0 {
                    // A run of datagrams; one query has one answer.
                    slot.truncate(usize::from(segment));
                }
                self.answer(ctx, dns, key, slot)
            }
            DgramEvent::Failed(_) | DgramEvent::Refused { .. } | DgramEvent::Error(_) => {
                self.fail(ctx, dns, key, None)
            }
        }
    }

    /// The deadline has come.
    pub fn handle_timeout(
        &mut self,
        ctx: &mut Ctx<'_>,
        dns: &Dns,
        id: FlowId,
        key: &FlowKey,
    ) -> Step {
        if ctx.now >= self.end {
            return Step::Done;
        }
        if ctx.now < self.retry {
            return self.wait();
        }
        match self.next(dns) {
            Some(next) if next != self.resolver => {
                self.resolver = next;
                Step::Move
            }
            // The only one: perhaps a datagram was lost.
            _ => match dns.resolver(key.host().ip(), self.resolver) {
                Some(resolver) => self.send(ctx, id, resolver),
                None => self.give_up(ctx, key, None),
            },
        }
    }

    fn wait(&self) -> Step {
        Step::Wait(self.retry.min(self.end))
    }

    fn send(&mut self, ctx: &mut Ctx<'_>, id: FlowId, to: SocketAddr) -> Step {
        self.retry = ctx.now + DNS_RETRY;
        let slot = self.fresh.take().or_else(|| copy(ctx, self.query.bytes()));
        if let Some(slot) = slot {
            let opts = SendOpts { ttl: 64, tos: 0, df: false, segment: 0, local: Local::ANY };
            ctx.actions.push(Action::DgramSend { flow: id, slot, to, opts });
        }
        self.wait()
    }

    /// A datagram from the resolver; the guest gets it if it answers the query.
    fn answer(&mut self, ctx: &mut Ctx<'_>, dns: &Dns, key: &FlowKey, slot: Slot) -> Step {
        let [n0, n1, flags, code, ..] = *slot.bytes() else {
            ctx.stats.drop(Drop::Malformed);
            return self.wait();
        };
        if slot.len() < HEADER || flags & QR == 0 || u16::from_be_bytes([n0, n1]) != self.number {
            ctx.stats.drop(Drop::Unsolicited);
            return self.wait();
        }
        if code & 0xf == SERVFAIL {
            return self.fail(ctx, dns, key, Some(slot));
        }
        self.deliver(ctx, key, slot);
        Step::Done
    }

    /// The resolver has failed, with an answer that says so or without.
    fn fail(&mut self, ctx: &mut Ctx<'_>, dns: &Dns, key: &FlowKey, answer: Option<Slot>) -> Step {
        self.failed |= 1 << self.resolver;
        match self.next(dns) {
            Some(next) => {
                self.resolver = next;
                Step::Move
            }
            None => self.give_up(ctx, key, answer),
        }
    }

    /// The resolver after this one, in a circle, that has not failed.
    fn next(&self, dns: &Dns) -> Option<u8> {
        let count = dns.resolvers();
        (1..=count).map(|step| (self.resolver + step) % count).find(|n| self.failed & (1 << n) == 0)
    }

    /// All resolvers have failed: the guest learns it at once.
    fn give_up(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey, answer: Option<Slot>) -> Step {
        let slot = answer.or_else(|| {
            // Header and question of the query, as an answer (RFC 1035 section 4.1.1).
            let query = self.query.bytes();
            let question = question_end(query);
            let mut slot = copy(ctx, query.get(..question.unwrap_or(HEADER))?)?;
            let header = slot.bytes_mut().first_chunk_mut::<HEADER>()?;
            header[2] |= QR;
            header[3] = RA | SERVFAIL;
            header[4..].fill(0);
            header[5] = u8::from(question.is_some());
            Some(slot)
        });
        if let Some(slot) = slot {
            self.deliver(ctx, key, slot);
        }
        Step::Done
    }

    /// Writes an answer to the guest, from the address it asked.
    fn deliver(&self, ctx: &mut Ctx<'_>, key: &FlowKey, mut slot: Slot) {
        let Some(pair) = Pair::new(key.host().ip(), key.guest().ip()) else {
            return;
        };
        let headers = if key.guest().is_ipv4() { pair.header_len() + 8 } else { 8 };
        if slot.len() > IP_LEN_MAX - headers {
            return ctx.stats.drop(Drop::Malformed);
        }
        if let Some(number) = slot.bytes_mut().first_chunk_mut::<2>() {
            *number = self.guest_number.to_be_bytes();
        }
        let out = build::Out {
            eth_src: ctx.net.gateway_mac,
            eth_dst: self.mac,
            pair,
            ttl: 64,
            tos: 0,
            df: false,
        };
        build::udp(&mut slot, &out, PORT, key.guest().port(), 0);
        ctx.write(slot);
    }
}

/// A copy of a message in a small slot; `None` (counted) when none is free.
fn copy(ctx: &mut Ctx<'_>, bytes: &[u8]) -> Option<Slot> {
    let Some(mut slot) = ctx.block() else {
        ctx.stats.drop(Drop::NoBuffer);
        return None;
    };
    slot.set_range(HEADROOM, bytes.len());
    slot.bytes_mut().copy_from_slice(bytes);
    ctx.stats.copied_bytes += bytes.len() as u64;
    Some(slot)
}

/// Where the only question of a message ends; `None` when there are others, or none that is whole.
fn question_end(message: &[u8]) -> Option<usize> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1 + len;
        match len {
            0 => break,
            // No pointers: there is nothing before a question to point to.
            1..=63 => {}
            _ => return None,
        }
    }
    // Type and class.
    (at + 4 <= message.len()).then_some(at + 4)
}

const PORT: u16 = 53;
/// Bytes of a DNS header, and what we use of it (RFC 1035 section 4.1.1).
const HEADER: usize = 12;
const QR: u8 = 0x80;
const RA: u8 = 0x80;
const SERVFAIL: u8 = 2;
/// The longest query that is kept for the next resolver; real ones have a few hundred bytes at most.
const QUERY_MAX: usize = 2048;
const _: () = assert!(HEADROOM + QUERY_MAX <= crate::limits::BLOCK_BYTES);
const _: () = assert!(RESOLVERS_MAX <= 8, "`failed` has a bit for each");

#[cfg(test)]
mod tests;
