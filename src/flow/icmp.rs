//! ICMP and ICMPv6 errors towards the guest, and what echo messages name.
//!
//! An error quotes the packet that it is about: as it came when it is at hand ([`unreachable`]), or
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
        libc::ENETUNREACH | libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL => Some(Unreachable::Net),
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
