//! Neighbour discovery (RFC 4861): the gateway's IPv6 addresses on the link, and its advertisements.

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpProtocol, NdiscNeighborFlags,
    NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};

use crate::config::V6Net;
use crate::flow::Ctx;
use crate::frame::{Ip, Mac, Pair, Parsed, build};
use crate::limits::{RA_LIFETIME_SECS, RA_PREFERRED_SECS, RA_VALID_SECS};
use crate::stats::Drop;

/// Whether a packet is a neighbour's advertisement.
pub(super) fn is_advert(ip: &Ip, frame: &[u8]) -> bool {
    ip.proto == IpProtocol::Icmpv6 && frame.get(ip.start) == Some(&136)
}

/// Asks the guest's network who has an address.
pub(super) fn ask(ctx: &mut Ctx<'_>, target: Ipv6Addr) {
    let Some(v6) = ctx.net.v6 else { return };
    let repr = NdiscRepr::NeighborSolicit {
        target_addr: target,
        lladdr: Some(EthernetAddress(ctx.net.gateway_mac).into()),
    };
    // Its solicited-node address, and the MAC of that (RFC 4291 section 2.7.1, RFC 2464 section 7).
    let [.., a, b, c] = target.octets();
    let [hi, lo] = [0xff00 | u16::from(a), u16::from_be_bytes([b, c])];
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, hi, lo);
    ndp(ctx, [0x33, 0x33, 0xff, a, b, c], v6.link_local, group, repr, &[]);
}

/// A neighbour discovery message. Checksums are not verified: the TAP is memory. Yields the address that its sender
/// says it has.
pub(super) fn handle(
    ctx: &mut Ctx<'_>,
    parsed: &Parsed,
    ip: &Ip,
    src: Ipv6Addr,
    message: &[u8],
) -> Option<Ipv6Addr> {
    let Some(v6) = ctx.net.v6 else {
        ctx.stats.drop(Drop::Unsupported);
        return None;
    };
    // RFC 4861 sections 6.1.1 and 7.1.1: whoever is beyond a router cannot send 255.
    let packet = match Icmpv6Packet::new_checked(message) {
        Ok(packet) if ip.ttl == 255 && packet.msg_code() == 0 => packet,
        _ => {
            ctx.stats.drop(Drop::Malformed);
            return None;
        }
    };
    let Ok(Icmpv6Repr::Ndisc(repr)) =
        Icmpv6Repr::parse(&src, &src, &packet, &ChecksumCapabilities::ignored())
    else {
        ctx.stats.drop(Drop::Malformed);
        return None;
    };
    match repr {
        NdiscRepr::NeighborSolicit { target_addr: target, lladdr } => {
            if target.is_multicast() || (src.is_unspecified() && lladdr.is_some()) {
                ctx.stats.drop(Drop::Malformed);
                return None;
            }
            if answers_v6(&v6, target) {
                neighbour(ctx, parsed, src, target);
            }
        }
        NdiscRepr::RouterSolicit { lladdr } => {
            if src.is_unspecified() {
                if lladdr.is_some() {
                    ctx.stats.drop(Drop::Malformed);
                    return None;
                }
                advertise(ctx, &v6);
            } else {
                advertise_to(ctx, &v6, parsed.eth_src, src);
            }
        }
        // The frame's own address is what the guest's kernel has passed.
        NdiscRepr::NeighborAdvert { target_addr, .. } => return Some(target_addr),
        // A guest is no router of ours.
        NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. } => {
            ctx.stats.drop(Drop::Unsupported);
        }
    }
    None
}

/// Advertises one of our addresses to `src`; to everybody when it has no address yet, since then it
/// tests whether `target` is free (RFC 4861 section 7.2.4).
fn neighbour(ctx: &mut Ctx<'_>, parsed: &Parsed, src: Ipv6Addr, target: Ipv6Addr) {
    let (eth_dst, dst, solicited) = if src.is_unspecified() {
        (ALL_NODES_MAC, ALL_NODES, NdiscNeighborFlags::empty())
    } else {
        (parsed.eth_src, src, NdiscNeighborFlags::SOLICITED)
    };
    let repr = NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE | solicited,
        target_addr: target,
        lladdr: Some(EthernetAddress(ctx.net.gateway_mac).into()),
    };
    ndp(ctx, eth_dst, target, dst, repr, &[]);
}

/// Advertises the router to everybody.
pub(super) fn advertise(ctx: &mut Ctx<'_>, v6: &V6Net) {
    advertise_to(ctx, v6, ALL_NODES_MAC, ALL_NODES);
}

/// Sends a router advertisement, as slirp4netns has it: hop limit 64, router lifetime, one
/// on-link prefix for address configuration, the MTU, our MAC, and the DNS forwarder.
fn advertise_to(ctx: &mut Ctx<'_>, v6: &V6Net, eth_dst: Mac, dst: Ipv6Addr) {
    let repr = NdiscRepr::RouterAdvert {
        hop_limit: HOP_LIMIT,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: Duration::from_secs(RA_LIFETIME_SECS),
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(EthernetAddress(ctx.net.gateway_mac).into()),
        mtu: Some(u32::from(ctx.net.mtu)),
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: Duration::from_secs(RA_VALID_SECS),
            preferred_lifetime: Duration::from_secs(RA_PREFERRED_SECS),
            prefix: v6.prefix,
        }),
    };
    // RDNSS (RFC 8106 section 5.1), which smoltcp does not know: type, length in units of 8,
    // 2 reserved, lifetime, one address.
    let mut rdnss = [0; 24];
    rdnss[..2].copy_from_slice(&[25, 3]);
    rdnss[4..8].copy_from_slice(&(RA_LIFETIME_SECS as u32).to_be_bytes());
    rdnss[8..].copy_from_slice(&v6.dns.octets());
    let extra = if ctx.net.dns { &rdnss[..] } else { &[] };
    ndp(ctx, eth_dst, v6.link_local, dst, repr, extra);
}

/// Writes a neighbour discovery message, with `extra` options behind those of `repr`.
fn ndp(
    ctx: &mut Ctx<'_>,
    eth_dst: Mac,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    repr: NdiscRepr<'_>,
    extra: &[u8],
) {
    let Some(mut slot) = ctx.control_slot() else {
        return;
    };
    let repr = Icmpv6Repr::Ndisc(repr);
    let len = repr.buffer_len();
    slot.set_range(slot.offset(), len + extra.len());
    let bytes = slot.bytes_mut();
    // The emitter leaves reserved fields as they were, and a recycled slot holds someone's payload.
    bytes.fill(0);
    bytes[len..].copy_from_slice(extra);
    let mut packet = Icmpv6Packet::new_unchecked(&mut *bytes);
    repr.emit(&src, &dst, &mut packet, &ChecksumCapabilities::ignored());
    packet.fill_checksum(&src, &dst);
    let out = build::Out {
        eth_src: ctx.net.gateway_mac,
        eth_dst,
        pair: Pair::V6(src, dst),
        ttl: 255,
        tos: 0,
        df: true,
    };
    build::ip(&mut slot, &out, IpProtocol::Icmpv6);
    ctx.write(slot);
}

/// The same for neighbour discovery.
fn answers_v6(v6: &V6Net, addr: Ipv6Addr) -> bool {
    addr == v6.gateway || addr == v6.link_local || addr == v6.dns
}

/// TTL of what we send, and the hop limit that hosts of the guest's network are told to use.
const HOP_LIMIT: u8 = 64;
/// ff02::1 and its MAC (RFC 2464 section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NetConfig;
    use crate::limits::{RA_INTERVAL, VNET_LEN};
    use crate::stack::testing::*;
    use crate::time::{Millis, Time};

    const OURS: Mac = [0x52, 0x55, 10, 0, 2, 2];

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn solicit(src: &str, dst: &str, target: &str, lladdr: bool) -> Vec<u8> {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(v6(target).octets());
        if lladdr {
            message.extend([1, 1]);
            message.extend(GUEST_MAC);
        }
        icmp(v6(src).into(), v6(dst).into(), 255, &message)
    }

    #[test]
    fn neighbour_advertisements_for_our_addresses() {
        let mut bed = Bed::native();
        for target in ["fe80::2", "fd00::2", "fd00::3"] {
            for dst in ["ff02::1:ff00:2", target] {
                let frames = bed.ask(&solicit("fd00::100", dst, target, true));
                let (ip, message) = transport(&frames[0]);
                assert_eq!((frames.len(), ip.ttl), (1, 255));
                assert_eq!((ip.src, ip.dst), (v6(target).into(), GUEST_V6.into()));
                let mut want = vec![136, 0, message[2], message[3], 0xe0, 0, 0, 0];
                want.extend(v6(target).octets());
                want.extend([2, 1]);
                want.extend(OURS);
                assert_eq!(message, want);
                assert_eq!(read(&frames[0]).0.eth_dst, GUEST_MAC);
            }
            // Duplicate address detection: everybody is told that it is ours.
            let frames = bed.ask(&solicit("::", "ff02::1:ff00:2", target, false));
            let (ip, message) = transport(&frames[0]);
            assert_eq!((ip.dst, message[4]), (ALL_NODES.into(), 0xa0));
            assert_eq!(read(&frames[0]).0.eth_dst, ALL_NODES_MAC);
        }
        assert_eq!(bed.dropped_in_all(), 0);
    }

    #[test]
    fn a_guest_may_take_any_other_address() {
        let mut bed = Bed::native();
        for target in ["fd00::100", "fe80::1", "fd00::5054:ff:fe00:1", "2001:db8::1"] {
            assert!(bed.ask(&solicit("::", "ff02::1:ff00:100", target, false)).is_empty());
            assert!(bed.ask(&solicit("fd00::7", "ff02::1:ff00:100", target, true)).is_empty());
        }
        assert_eq!(bed.dropped_in_all(), 0);
    }

    #[test]
    fn bad_solicitations_are_malformed() {
        let mut bed = Bed::native();
        let good = solicit("fd00::100", "fe80::2", "fe80::2", true);
        let icmp_at = VNET_LEN + 14 + 40;
        // The hop limit, the code, the length of the option.
        let edits =
            [(VNET_LEN + 14 + 7, 254), (icmp_at + 1, 1), (icmp_at + 25, 0), (icmp_at + 25, 2)];
        for (n, (at, value)) in edits.into_iter().enumerate() {
            let mut frame = good.clone();
            frame[at] = value;
            assert!(bed.ask(&frame).is_empty());
            assert_eq!(bed.dropped(Drop::Malformed), n as u64 + 1);
        }
        bed.send(&solicit("::", "ff02::1:ff00:2", "fe80::2", true));
        bed.send(&solicit("fd00::100", "fe80::2", "ff02::1", true));
        assert_eq!(bed.dropped(Drop::Malformed), 6);
        assert!(bed.frames().is_empty());
    }

    fn expect_advertisement(frame: &[u8], dst: Ipv6Addr, mtu: u32, dns: bool) {
        let (ip, message) = transport(frame);
        assert_eq!((ip.ttl, ip.src, ip.dst), (255, v6("fe80::2").into(), dst.into()));
        let mut want = vec![134, 0, message[2], message[3], 64, 0];
        want.extend(1800u16.to_be_bytes());
        want.extend([0; 8]);
        want.extend([1, 1]);
        want.extend(OURS);
        want.extend([5, 1, 0, 0]);
        want.extend(mtu.to_be_bytes());
        want.extend([3, 4, 64, 0xc0]);
        want.extend(86400u32.to_be_bytes());
        want.extend(14400u32.to_be_bytes());
        want.extend([0; 4]);
        want.extend(v6("fd00::").octets());
        if dns {
            want.extend([25, 3, 0, 0]);
            want.extend(1800u32.to_be_bytes());
            want.extend(v6("fd00::3").octets());
        }
        assert_eq!(message, want);
    }

    fn dirty_small_slots(bed: &Bed) {
        let slots: Vec<_> = (0..4).map(|_| bed.stack.pools().small.take().unwrap()).collect();
        for mut slot in slots {
            slot.bytes_mut().fill(0xee);
        }
    }

    #[test]
    fn router_solicitations_are_answered() {
        let solicitation = |src: &str, lladdr: bool| {
            let mut message = vec![133, 0, 0, 0, 0, 0, 0, 0];
            if lladdr {
                message.extend([1, 1]);
                message.extend(GUEST_MAC);
            }
            icmp(v6(src).into(), v6("ff02::2").into(), 255, &message)
        };
        for (mtu, dns) in [(1500, true), (65520, false)] {
            let mut bed = Bed::new(NetConfig { mtu, dns, ..NetConfig::native() });
            // What a slot held before must not show.
            dirty_small_slots(&bed);
            let frames = bed.ask(&solicitation("fe80::ff:fe00:7", true));
            expect_advertisement(&frames[0], v6("fe80::ff:fe00:7"), mtu.into(), dns);
            let frames = bed.ask(&solicitation("::", false));
            expect_advertisement(&frames[0], ALL_NODES, mtu.into(), dns);
            assert!(bed.ask(&solicitation("::", true)).is_empty());
            assert_eq!(bed.dropped(Drop::Malformed), 1);
        }
        let mut bed = Bed::new(NetConfig { v6: None, ..NetConfig::native() });
        assert!(bed.ask(&solicitation("fe80::ff:fe00:7", true)).is_empty());
        assert!(bed.ask(&solicit("fd00::100", "fe80::2", "fe80::2", true)).is_empty());
        assert_eq!(bed.stack.poll_timeout(), None, "nothing wakes an idle worker");
    }

    #[test]
    fn advertises_before_the_lifetime_ends() {
        let mut bed = Bed::native();
        let mut last = Time(0);
        for _ in 0..5 {
            bed.pass(RA_INTERVAL);
            let frames = bed.frames();
            assert_eq!(frames.len(), 1);
            expect_advertisement(&frames[0], ALL_NODES, 1500, true);
            assert!((bed.now - last).0 < RA_LIFETIME_SECS * 1000);
            last = bed.now;
        }
        bed.pass(Millis(RA_INTERVAL.0 - 1));
        assert!(bed.frames().is_empty());
    }

    #[test]
    fn mangled_neighbour_discovery_is_answered_ignored_or_counted() {
        let mut bed = Bed::native();
        // A changed target, or a type that became an advertisement, is not for us.
        let ours = |frame: &[u8]| frame.len() > VNET_LEN + 14 + 40 + 24;
        bed.mangle(&solicit("fd00::100", "fe80::2", "fe80::2", true), 20_000, &ours);
        assert!(bed.dropped(Drop::Malformed) > 60);
        assert_eq!(bed.lent(), 0);
    }
}
