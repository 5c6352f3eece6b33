//! ICMP and ICMPv6 errors towards the guest, and what echo messages name.
//!
//! An error quotes the packet that it is about: as it came when it is at hand ([`unreachable()`]), or
//! written anew from the endpoints when the host's kernel reports on a datagram long gone ([`about`]). The
//! rules of RFC 1122 section 3.2.2 and RFC 4443 section 2.4 hold: no error about an error, a
//! multicast or broadcast, a later fragment, or from a source that names no single host.
//!
//! There is no rate limit: an error goes to the guest that has caused it, costs no more than the packet
//! it answers, and its buffer comes from a bounded pool.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

use super::Ctx;
use crate::frame::build::{self, Out};
use crate::frame::{Ip, Mac, Pair, Parsed, checksum};
use crate::limits::HEADROOM;
use crate::stats::Drop;

/// Which error the guest gets for a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// Net unreachable / no route.
    Net,
    /// Host unreachable / address unreachable.
    Host,
    /// Administratively prohibited.
    Prohibited,
    /// Port unreachable.
    Port,
    /// Fragmentation needed / packet too big, with the MTU.
    TooBig(u16),
    /// Time to live exceeded in transit.
    TimeExceeded,
}

/// Bytes of an ICMP header.
const HEADER: usize = 8;
/// Bytes quoted at most: the whole IPv4 error within 576 bytes (RFC 1812 section 4.3.2.3).
const QUOTE_V4: usize = 576 - 20 - HEADER;
/// The whole IPv6 error within the minimum MTU (RFC 4443 section 2.4 (c)).
const QUOTE_V6: usize = 1280 - 40 - HEADER;
/// TTL of errors (RFC 1700's recommended default).
const TTL: u8 = 64;

/// Type, code and the four bytes after the checksum.
type Head = (u8, u8, [u8; 4]);

/// Answers a packet of the guest (frame bytes and its parsed header) with an error from the gateway.
pub fn unreachable(ctx: &mut Ctx<'_>, parsed: &Parsed, ip: &Ip, frame: &[u8], why: Unreachable) {
    answer(ctx, parsed, ip, frame, why.head(ip.dst.is_ipv4()));
}

/// Answers a packet of a protocol that nobody speaks here.
pub fn protocol_unreachable(ctx: &mut Ctx<'_>, parsed: &Parsed, ip: &Ip, frame: &[u8]) {
    let head = if ip.dst.is_ipv4() {
        (3, 2, [0; 4])
    } else {
        // Parameter problem, unrecognised next header, and where its number stands (RFC 4443 3.4).
        (4, 1, next_header_at(ip, frame).to_be_bytes())
    };
    answer(ctx, parsed, ip, frame, head);
}

/// Sends an error about an earlier packet of the guest whose header is no longer at hand: it is
/// written anew from the endpoints. `from`: who reports it, the gateway when unknown. `l4` is the
/// head of what the packet carried (8 bytes or more).
#[expect(clippy::too_many_arguments, reason = "all of a header")]
pub fn about(
    ctx: &mut Ctx<'_>,
    mac: Mac,
    guest: SocketAddr,
    to: SocketAddr,
    proto: u8,
    l4: &[u8],
    from: Option<IpAddr>,
    why: Unreachable,
) {
    let Some(quoted) = Pair::new(guest.ip(), to.ip()) else { return };
    let Some(src) = from
        .filter(|a| a.is_ipv4() == to.is_ipv4() && !a.is_loopback() && is_one_host(*a))
        .or_else(|| reporter(ctx, to.ip()))
    else {
        return;
    };
    let Some(pair) = Pair::new(src, guest.ip()) else { return };
    let mut quote = [0; 40 + 128];
    let header = quoted.header_len();
    let l4 = &l4[..l4.len().min(128)];
    let len = header + l4.len();
    quote[header..len].copy_from_slice(l4);
    match quoted {
        Pair::V4(src, dst) => {
            let mut packet = Ipv4Packet::new_unchecked(&mut quote[..len]);
            packet.set_version(4);
            packet.set_header_len(20);
            packet.set_total_len(len as u16);
            packet.set_hop_limit(1);
            packet.set_next_header(IpProtocol::from(proto));
            packet.set_src_addr(src);
            packet.set_dst_addr(dst);
            packet.fill_checksum();
        }
        Pair::V6(src, dst) => {
            let mut packet = Ipv6Packet::new_unchecked(&mut quote[..len]);
            packet.set_version(6);
            packet.set_payload_len(l4.len() as u16);
            packet.set_hop_limit(1);
            packet.set_next_header(IpProtocol::from(proto));
            packet.set_src_addr(src);
            packet.set_dst_addr(dst);
        }
    }
    emit(ctx, mac, pair, why.head(to.is_ipv4()), &quote[..len]);
}

/// The identifier of an echo request, or `None` when the message is not one.
pub fn echo_ident(ip: &Ip, message: &[u8]) -> Option<u16> {
    let [kind, code, _, _, hi, lo, _, _, ..] = *message else { return None };
    let request = match (ip.proto, ip.dst) {
        (IpProtocol::Icmp, IpAddr::V4(_)) => kind == 8,
        (IpProtocol::Icmpv6, IpAddr::V6(_)) => kind == 128,
        _ => false,
    };
    (request && code == 0).then(|| u16::from_be_bytes([hi, lo]))
}

impl Unreachable {
    fn head(self, v4: bool) -> Head {
        match (self, v4) {
            // RFC 792, RFC 1812 section 5.2.7.1.
            (Self::Net, true) => (3, 0, [0; 4]),
            (Self::Host, true) => (3, 1, [0; 4]),
            (Self::Port, true) => (3, 3, [0; 4]),
            (Self::Prohibited, true) => (3, 13, [0; 4]),
            (Self::TimeExceeded, true) => (11, 0, [0; 4]),
            (Self::TooBig(mtu), true) => {
                // The MTU is in the last two bytes (RFC 1191 section 4).
                let [hi, lo] = mtu.to_be_bytes();
                (3, 4, [0, 0, hi, lo])
            }
            // RFC 4443 section 3.
            (Self::Net, false) => (1, 0, [0; 4]),
            (Self::Prohibited, false) => (1, 1, [0; 4]),
            (Self::Host, false) => (1, 3, [0; 4]),
            (Self::Port, false) => (1, 4, [0; 4]),
            (Self::TimeExceeded, false) => (3, 0, [0; 4]),
            (Self::TooBig(mtu), false) => (2, 0, u32::from(mtu).to_be_bytes()),
        }
    }
}

/// Quotes a packet of the guest, when the rules allow an answer to it.
fn answer(ctx: &mut Ctx<'_>, parsed: &Parsed, ip: &Ip, frame: &[u8], head: Head) {
    let Some(packet) = frame.get(ip.l3_start..ip.end) else { return };
    let Some(carried) = frame.get(ip.start..ip.end) else { return };
    if !may_answer(ctx, parsed, ip, carried) {
        return;
    }
    let Some(pair) = reporter(ctx, ip.dst).and_then(|src| Pair::new(src, ip.src)) else { return };
    emit(ctx, parsed.eth_src, pair, head, packet);
}

fn may_answer(ctx: &Ctx<'_>, parsed: &Parsed, ip: &Ip, carried: &[u8]) -> bool {
    let broadcast = IpAddr::V4(ctx.net.v4.broadcast());
    let is_error = match (ip.proto, carried.first()) {
        // Everything but the types known to be no errors (RFC 1122 section 3.2.2); a cut-off message
        // may be one.
        (IpProtocol::Icmp, kind) => !matches!(kind, Some(0 | 8..=10 | 13..=18)),
        (IpProtocol::Icmpv6, kind) => kind.is_none_or(|&kind| kind < 128),
        _ => false,
    };
    !is_error
        && parsed.eth_dst[0] & 1 == 0
        && ip.fragment.is_none_or(|fragment| fragment.offset == 0)
        && is_one_host(ip.dst)
        && ip.dst != broadcast
        && is_one_host(ip.src)
        && !ip.src.is_loopback()
        && ip.src != broadcast
}

/// Whether an address can name a single host.
fn is_one_host(addr: IpAddr) -> bool {
    !addr.is_multicast()
        && !addr.is_unspecified()
        && match addr {
            IpAddr::V4(a) => !a.is_broadcast(),
            IpAddr::V6(_) => true,
        }
}

/// Who of the gateway's addresses reports about a packet to `to`: itself, when it is one of them.
fn reporter(ctx: &Ctx<'_>, to: IpAddr) -> Option<IpAddr> {
    if ctx.net.is_gateway(to) {
        return Some(to);
    }
    match to {
        IpAddr::V4(_) => Some(IpAddr::V4(ctx.net.v4.gateway)),
        IpAddr::V6(_) => ctx.net.v6.map(|v6| IpAddr::V6(v6.gateway)),
    }
}

fn emit(ctx: &mut Ctx<'_>, mac: Mac, pair: Pair, (kind, code, rest): Head, quote: &[u8]) {
    let Some(mut slot) = ctx.control_slot() else { return };
    let (proto, max) = match pair {
        Pair::V4(..) => (IpProtocol::Icmp, QUOTE_V4),
        Pair::V6(..) => (IpProtocol::Icmpv6, QUOTE_V6),
    };
    let quote = &quote[..quote.len().min(max)];
    let len = HEADER + quote.len();
    slot.set_range(HEADROOM, len);
    // Every byte of the message is written: a recycled slot holds someone's payload.
    let message = slot.bytes_mut();
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    message[4..HEADER].copy_from_slice(&rest);
    message[HEADER..].copy_from_slice(quote);
    seal(message, pair);
    let out = Out { eth_src: ctx.net.gateway_mac, eth_dst: mac, pair, ttl: TTL, tos: 0, df: false };
    build::ip(&mut slot, &out, proto);
    ctx.write(slot);
}

/// Writes the checksum of an ICMP (IPv4) or ICMPv6 message; nothing when it is too short for one.
pub fn seal(message: &mut [u8], pair: Pair) {
    let len = message.len();
    let Some(field) = message.get_mut(2..4) else { return };
    field.fill(0);
    let acc = match pair {
        Pair::V4(..) => 0,
        Pair::V6(..) => checksum::pseudo_header(pair, 58, len as u32),
    };
    let sum = !checksum::fold(checksum::sum(acc, message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// Where in an IPv6 packet the number of its last header stands.
fn next_header_at(ip: &Ip, frame: &[u8]) -> u32 {
    let (mut field, mut at) = (6, 40);
    // `parse` has walked the same headers and checked their lengths.
    while ip.l3_start + at < ip.start {
        let start = ip.l3_start + at;
        let fragment = frame.get(ip.l3_start + field) == Some(&44);
        field = at;
        at += match frame.get(start + 1) {
            Some(_) if fragment => 8,
            Some(&len) => (usize::from(len) + 1) * 8,
            None => break,
        };
    }
    field as u32
}

/// What an error message that the host side got about a datagram means for the guest; `None`:
/// nothing it should hear of.
pub(super) fn translate(error: &super::DgramError) -> Option<Unreachable> {
    let too_big = || {
        // A router before RFC 1191 names no MTU; below the protocol's minimum it lies.
        let min = if error.to.is_ipv4() { 68 } else { 1280 };
        (error.mtu >= min).then(|| Unreachable::TooBig(error.mtu.min(0xffff) as u16))
    };
    match (error.icmp, error.to.is_ipv4()) {
        (None, _) => match error.errno.0 {
            libc::EMSGSIZE => too_big(),
            errno => from_errno(errno),
        },
        (Some((3, code)), true) => match code {
            0 | 6 | 8 | 11 => Some(Unreachable::Net),
            3 => Some(Unreachable::Port),
            4 => too_big(),
            9 | 10 | 13 => Some(Unreachable::Prohibited),
            _ => Some(Unreachable::Host),
        },
        (Some((11, 0)), true) | (Some((3, 0)), false) => Some(Unreachable::TimeExceeded),
        (Some((1, code)), false) => match code {
            0 => Some(Unreachable::Net),
            1 | 5 | 6 => Some(Unreachable::Prohibited),
            4 => Some(Unreachable::Port),
            _ => Some(Unreachable::Host),
        },
        (Some((2, _)), false) => too_big(),
        (Some(_), _) => None,
    }
}

/// What it means for the guest that the host's kernel refuses a datagram with this errno.
pub(super) fn from_errno(errno: i32) -> Option<Unreachable> {
    match errno {
        // ENODEV: the interface that outgoing traffic is bound to is not there.
        libc::ENETUNREACH | libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::ENODEV => {
            Some(Unreachable::Net)
        }
        libc::EHOSTUNREACH | libc::EHOSTDOWN => Some(Unreachable::Host),
        libc::EACCES | libc::EPERM => Some(Unreachable::Prohibited),
        libc::ECONNREFUSED => Some(Unreachable::Port),
        _ => None,
    }
}

/// Counts a datagram that the host's kernel did not take.
pub(super) fn refused(ctx: &mut Ctx<'_>) {
    ctx.stats.drop(Drop::HostRefused);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{Pools, Slot};
    use crate::flow::local::Local;
    use crate::flow::testing::Around;
    use crate::flow::{Action, DgramError, Errno};
    use crate::frame::{self, L3, vnet};
    use crate::time::Time;

    const GUEST_MAC: Mac = [2, 0, 0, 0, 0, 9];
    const GATEWAY_MAC: Mac = [0x52, 0x55, 10, 0, 2, 2];

    /// Runs `f` with a context and yields the frames it has written.
    fn written(f: impl FnOnce(&mut Ctx<'_>)) -> Vec<Slot> {
        let mut around = Around::new(GUEST_MAC, Time(0));
        f(&mut around.ctx());
        std::iter::from_fn(|| around.actions.pop())
            .map(|action| match action {
                Action::TapWrite { slot, keep: None } => slot,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// A frame of the guest with `payload` after the IP header.
    fn frame(src: &str, dst: &str, proto: IpProtocol, payload: &[u8]) -> Vec<u8> {
        let pools = Pools::new().unwrap();
        let mut slot = pools.large.take().unwrap();
        slot.set_range(HEADROOM, payload.len());
        slot.bytes_mut().copy_from_slice(payload);
        let pair = Pair::new(src.parse().unwrap(), dst.parse().unwrap()).unwrap();
        let (eth_src, eth_dst) = (GUEST_MAC, GATEWAY_MAC);
        build::ip(&mut slot, &Out { eth_src, eth_dst, pair, ttl: 9, tos: 3, df: true }, proto);
        slot.bytes().to_vec()
    }

    fn ip(frame: &[u8]) -> (Parsed, Ip) {
        let parsed = frame::parse(frame).unwrap();
        match parsed.l3 {
            L3::Ip(ip) => (parsed, ip),
            L3::Arp { .. } => panic!("ARP"),
        }
    }

    fn answers(frame: &[u8], why: Unreachable) -> Vec<Slot> {
        let (parsed, ip) = ip(frame);
        written(|ctx| unreachable(ctx, &parsed, &ip, frame, why))
    }

    /// Checks headers and checksum of the only frame and yields source, message.
    fn message(frames: &[Slot]) -> (IpAddr, Vec<u8>) {
        let [slot] = frames else { panic!("{} frames", frames.len()) };
        let (parsed, ip) = ip(slot.bytes());
        assert_eq!((parsed.eth_src, parsed.eth_dst), (GATEWAY_MAC, GUEST_MAC));
        assert_eq!(parsed.vnet, vnet::Header::NONE);
        let message = &slot.bytes()[ip.start..ip.end];
        let acc = match Pair::new(ip.src, ip.dst).unwrap() {
            Pair::V4(..) => 0,
            pair @ Pair::V6(..) => checksum::pseudo_header(pair, 58, message.len() as u32),
        };
        assert_eq!(checksum::fold(checksum::sum(acc, message)), 0xffff);
        (ip.src, message.to_vec())
    }

    #[test]
    fn quotes_what_came_and_clears_what_a_slot_held() {
        let mut around = Around::new(GUEST_MAC, Time(0));
        let mut dirty = around.pools.small.take().unwrap();
        dirty.set_range(0, dirty.capacity());
        dirty.bytes_mut().fill(0xaa);
        drop(dirty);
        for (src, dst, gateway, kind, code) in [
            ("10.0.2.100", "198.51.100.7", "10.0.2.2", 3, 0),
            ("10.0.2.100", "10.0.2.3", "10.0.2.3", 3, 0),
            ("fd00::100", "2001:db8::1", "fd00::2", 1, 0),
            ("fe80::1234", "fe80::2", "fe80::2", 1, 0),
        ] {
            for (len, quoted) in [(8, 8), (100, 100), (5000, usize::MAX)] {
                let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let bytes = frame(src, dst, IpProtocol::Udp, &payload);
                let (parsed, ip) = ip(&bytes);
                unreachable(&mut around.ctx(), &parsed, &ip, &bytes, Unreachable::Net);
                let Some(Action::TapWrite { slot, .. }) = around.actions.pop() else { panic!() };
                let (from, message) = message(&[slot]);
                assert_eq!(from, gateway.parse::<IpAddr>().unwrap());
                assert_eq!((message[0], message[1], &message[4..8]), (kind, code, &[0; 4][..]));
                let (header, max) = if from.is_ipv4() { (20, 548) } else { (40, 1232) };
                assert_eq!(message.len() - 8, max.min(quoted.saturating_add(header)));
                assert_eq!(&message[8..], &bytes[ip.l3_start..ip.l3_start + message.len() - 8]);
            }
        }
    }

    #[test]
    fn too_big_names_the_mtu() {
        let bytes = frame("10.0.2.100", "198.51.100.7", IpProtocol::Udp, &[0; 8]);
        let (_, message4) = message(&answers(&bytes, Unreachable::TooBig(1300)));
        assert_eq!(message4[..2], [3, 4]);
        assert_eq!(message4[4..8], [0, 0, 0x05, 0x14]);
        let bytes = frame("fd00::100", "2001:db8::1", IpProtocol::Udp, &[0; 8]);
        let (_, message6) = message(&answers(&bytes, Unreachable::TooBig(1300)));
        assert_eq!(message6[..2], [2, 0]);
        assert_eq!(message6[4..8], [0, 0, 0x05, 0x14]);
    }

    #[test]
    fn silent_where_the_rules_ask_for_it() {
        let silent = |src: &str, dst: &str, proto, payload: &[u8]| {
            let bytes = frame(src, dst, proto, payload);
            assert_eq!(answers(&bytes, Unreachable::Port).len(), 0, "{src} {dst} {payload:?}");
        };
        let (here, there) = ("10.0.2.100", "198.51.100.7");
        for kind in [3, 4, 5, 11, 12, 1, 255] {
            silent(here, there, IpProtocol::Icmp, &[kind; 8]);
        }
        silent(here, there, IpProtocol::Icmp, &[]);
        for kind in [1, 2, 3, 4, 127] {
            silent("fd00::100", "2001:db8::1", IpProtocol::Icmpv6, &[kind; 8]);
        }
        silent("fd00::100", "2001:db8::1", IpProtocol::Icmpv6, &[]);
        for dst in ["224.0.0.1", "255.255.255.255", "10.0.2.255", "0.0.0.0"] {
            silent(here, dst, IpProtocol::Udp, &[0; 8]);
        }
        for src in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "10.0.2.255"] {
            silent(src, there, IpProtocol::Udp, &[0; 8]);
        }
        silent("fd00::100", "ff02::1", IpProtocol::Udp, &[0; 8]);
        silent("::", "2001:db8::1", IpProtocol::Udp, &[0; 8]);
        // A later fragment; the first one is answered.
        let mut bytes = frame(here, there, IpProtocol::Udp, &[0; 64]);
        bytes[10 + 14 + 6..10 + 14 + 8].copy_from_slice(&[0x20, 0]);
        assert_eq!(answers(&bytes, Unreachable::Port).len(), 1);
        bytes[10 + 14 + 6..10 + 14 + 8].copy_from_slice(&[0x00, 0x04]);
        assert_eq!(answers(&bytes, Unreachable::Port).len(), 0);
        // A link-layer broadcast.
        let mut bytes = frame(here, there, IpProtocol::Udp, &[0; 8]);
        bytes[10..16].fill(0xff);
        assert_eq!(answers(&bytes, Unreachable::Port).len(), 0);
        // An echo request is no error.
        let bytes = frame(here, there, IpProtocol::Icmp, &[8, 0, 0, 0, 0, 1, 0, 1]);
        assert_eq!(answers(&bytes, Unreachable::Host).len(), 1);
    }

    #[test]
    fn unknown_protocols() {
        let bytes = frame("10.0.2.100", "198.51.100.7", IpProtocol::from(132), &[0; 16]);
        let (parsed, ip4) = ip(&bytes);
        let frames = written(|ctx| protocol_unreachable(ctx, &parsed, &ip4, &bytes));
        assert_eq!(message(&frames).1[..2], [3, 2]);
        // Behind a destination options header of 16 bytes the number stands at its start.
        let mut payload = [0; 32];
        payload[..2].copy_from_slice(&[132, 1]);
        let bytes = frame("fd00::100", "2001:db8::1", IpProtocol::Ipv6Opts, &payload);
        let (parsed, ip6) = ip(&bytes);
        assert_eq!(ip6.proto, IpProtocol::from(132));
        let frames = written(|ctx| protocol_unreachable(ctx, &parsed, &ip6, &bytes));
        let (_, message) = message(&frames);
        assert_eq!((&message[..2], &message[4..8]), (&[4, 1][..], &[0, 0, 0, 40][..]));
    }

    #[test]
    fn about_rewrites_the_header_and_distrusts_the_reporter() {
        let about_from = |guest: &str, to: &str, from: Option<&str>| {
            let (guest, to) = (guest.parse().unwrap(), to.parse().unwrap());
            let from = from.map(|a| a.parse().unwrap());
            message(&written(|ctx| {
                about(ctx, GUEST_MAC, guest, to, 17, &[7; 8], from, Unreachable::TimeExceeded);
            }))
        };
        let (guest, to) = ("10.0.2.100:1000", "198.51.100.7:33434");
        for (from, shown) in [
            (None, "10.0.2.2"),
            (Some("203.0.113.1"), "203.0.113.1"),
            (Some("127.0.0.1"), "10.0.2.2"),
            (Some("224.0.0.1"), "10.0.2.2"),
            (Some("fd00::2"), "10.0.2.2"),
        ] {
            let (src, message) = about_from(guest, to, from);
            assert_eq!(src, shown.parse::<IpAddr>().unwrap(), "{from:?}");
            assert_eq!(message[..8], [11, 0, message[2], message[3], 0, 0, 0, 0]);
            let quoted = Ipv4Packet::new_checked(&message[8..]).unwrap();
            assert!(quoted.verify_checksum());
            assert_eq!(SocketAddr::new(quoted.src_addr().into(), 1000), guest.parse().unwrap());
            assert_eq!(SocketAddr::new(quoted.dst_addr().into(), 33434), to.parse().unwrap());
            assert_eq!((quoted.next_header(), quoted.payload()), (IpProtocol::Udp, &[7; 8][..]));
        }
        let (src, message) = about_from("[fd00::100]:5", "[2001:db8::1]:6", None);
        assert_eq!((src, message[0]), ("fd00::2".parse().unwrap(), 3));
        let quoted = Ipv6Packet::new_checked(&message[8..]).unwrap();
        assert_eq!((quoted.next_header(), quoted.payload()), (IpProtocol::Udp, &[7; 8][..]));
        // Families that do not match are our own mistake, and no frame.
        let (guest, to) = (guest.parse().unwrap(), "[2001:db8::1]:6".parse().unwrap());
        let frames = written(|ctx| {
            about(ctx, GUEST_MAC, guest, to, 17, &[7; 8], None, Unreachable::Net);
        });
        assert!(frames.is_empty());
    }

    #[test]
    fn echo_requests_only() {
        let ident = |dst, proto, message: &[u8]| {
            let src = if dst == "198.51.100.7" { "10.0.2.100" } else { "fd00::100" };
            let bytes = frame(src, dst, proto, message);
            let (_, ip) = ip(&bytes);
            echo_ident(&ip, &bytes[ip.start..ip.end])
        };
        let request = [8, 0, 0, 0, 0x12, 0x34, 0, 1, 9];
        assert_eq!(ident("198.51.100.7", IpProtocol::Icmp, &request), Some(0x1234));
        for cut in 0..8 {
            assert_eq!(ident("198.51.100.7", IpProtocol::Icmp, &request[..cut]), None);
        }
        assert_eq!(ident("198.51.100.7", IpProtocol::Icmp, &[0, 0, 0, 0, 1, 1, 0, 1]), None);
        assert_eq!(ident("198.51.100.7", IpProtocol::Icmp, &[8, 1, 0, 0, 1, 1, 0, 1]), None);
        assert_eq!(ident("198.51.100.7", IpProtocol::Icmpv6, &[128, 0, 0, 0, 1, 1, 0, 1]), None);
        assert_eq!(
            ident("2001:db8::1", IpProtocol::Icmpv6, &[128, 0, 0, 0, 1, 1, 0, 1]),
            Some(257)
        );
        assert_eq!(ident("2001:db8::1", IpProtocol::Icmp, &[8, 0, 0, 0, 1, 1, 0, 1]), None);
    }

    #[test]
    fn errors_of_the_host_side_translate() {
        let error = |to: &str, icmp, errno, mtu| {
            translate(&DgramError {
                errno: Errno(errno),
                icmp,
                mtu,
                offender: None,
                to: to.parse().unwrap(),
                local: Local::ANY,
                echo_seq: 0,
            })
        };
        let (v4, v6) = ("198.51.100.7:1", "[2001:db8::1]:1");
        for (icmp, why) in [
            ((3, 0), Some(Unreachable::Net)),
            ((3, 1), Some(Unreachable::Host)),
            ((3, 3), Some(Unreachable::Port)),
            ((3, 4), Some(Unreachable::TooBig(1400))),
            ((3, 13), Some(Unreachable::Prohibited)),
            ((11, 0), Some(Unreachable::TimeExceeded)),
            ((12, 0), None),
            ((4, 0), None),
        ] {
            assert_eq!(error(v4, Some(icmp), 0, 1400), why, "{icmp:?}");
        }
        for (icmp, why) in [
            ((1, 0), Some(Unreachable::Net)),
            ((1, 1), Some(Unreachable::Prohibited)),
            ((1, 3), Some(Unreachable::Host)),
            ((1, 4), Some(Unreachable::Port)),
            ((2, 0), Some(Unreachable::TooBig(1400))),
            ((3, 0), Some(Unreachable::TimeExceeded)),
            ((4, 0), None),
        ] {
            assert_eq!(error(v6, Some(icmp), 0, 1400), why, "{icmp:?}");
        }
        assert_eq!(error(v4, None, libc::EMSGSIZE, 70_000), Some(Unreachable::TooBig(0xffff)));
        assert_eq!(error(v4, None, libc::EMSGSIZE, 67), None);
        assert_eq!(error(v6, None, libc::EMSGSIZE, 1279), None);
        assert_eq!(error(v4, None, libc::EHOSTUNREACH, 0), Some(Unreachable::Host));
        assert_eq!(error(v4, None, libc::EINVAL, 0), None);
    }
}
