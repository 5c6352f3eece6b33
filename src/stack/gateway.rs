//! What the gateway host answers itself: ARP, neighbour discovery, router solicitations, echo.
//!
//! The gateway speaks for its own addresses only, so that a guest can run duplicate address
//! detection for every other. An answer goes to whoever asked, and the stack addresses its frames by the MAC each
//! packet came from. What neighbours say of themselves matters only when they were asked
//! (`neighbours`).

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{
    ArpHardware, ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, IpProtocol,
};

use super::ndp;
use crate::arena::Slot;
use crate::config::NetConfig;
use crate::flow::Ctx;
use crate::frame::{Ip, Mac, Pair, Parsed, build, checksum};
use crate::limits::RA_INTERVAL;
use crate::stats::Drop;
use crate::time::Time;

/// ARP, NDP, router advertisements, echo.
#[derive(Debug)]
pub struct Gateway {
    /// When the next unsolicited router advertisement is due; `None` without IPv6.
    advertise: Option<Time>,
    /// Who has last said where it is.
    told: Option<(IpAddr, Mac)>,
}

impl Gateway {
    /// The gateway of a network. A guest solicits when its link comes up, so the first advertisement
    /// of our own accord may wait.
    pub fn new(net: &NetConfig, now: Time) -> Self {
        Self { advertise: net.v6.map(|_| now + RA_INTERVAL), told: None }
    }

    /// Sends no advertisements that nobody asked for: another worker does.
    pub fn be_silent(&mut self) {
        self.advertise = None;
    }

    /// What a neighbour has said, in the frame in hand, of where it is.
    pub fn take_told(&mut self) -> Option<(IpAddr, Mac)> {
        self.told.take()
    }

    /// An ARP packet.
    pub fn handle_arp(&mut self, ctx: &mut Ctx<'_>, parsed: &Parsed, packet: &[u8]) {
        let Ok(packet) = ArpPacket::new_checked(packet) else {
            return ctx.stats.drop(Drop::Malformed);
        };
        // ArpRepr::parse compares types and lengths of the addresses.
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_protocol_addr,
            target_protocol_addr: target,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return ctx.stats.drop(match packet.hardware_type() {
                ArpHardware::Ethernet => Drop::Malformed,
                ArpHardware::Unknown(_) => Drop::Unsupported,
            });
        };
        // Request or reply, it names its sender. The frame's own address is what the guest's kernel has passed.
        self.told = Some((source_protocol_addr.into(), parsed.eth_src));
        // A guest that claims our address (sender and target alike) is not answered: it does not ask.
        if operation != ArpOperation::Request
            || !answers_v4(ctx.net, target)
            || source_protocol_addr == target
        {
            return;
        }
        arp(ctx, ArpOperation::Reply, target, parsed.eth_src, source_protocol_addr);
    }

    /// An ICMP or ICMPv6 packet; gives the slot back when it is not for the gateway (an echo request to
    /// elsewhere).
    pub fn handle_icmp(
        &mut self,
        ctx: &mut Ctx<'_>,
        parsed: &Parsed,
        ip: &Ip,
        slot: Slot,
    ) -> Option<Slot> {
        let message = &slot.bytes()[ip.start..ip.end];
        let [kind, code, _, _, _, _, _, _, ..] = *message else {
            ctx.stats.drop(Drop::Malformed);
            return None;
        };
        let echo = match (ip.proto, ip.src) {
            (IpProtocol::Icmp, IpAddr::V4(_)) => (ECHO_REQUEST, ECHO_REPLY),
            (IpProtocol::Icmpv6, IpAddr::V6(src)) => {
                if (NDP_FIRST..=NDP_LAST).contains(&kind) {
                    let told = ndp::handle(ctx, parsed, ip, src, message);
                    self.told = told.map(|addr| (addr.into(), parsed.eth_src));
                    return None;
                }
                if src.is_unspecified() {
                    // MLD reports of a host that has no address yet are normal, all else is not.
                    let mld = matches!(kind, MLD_FIRST..=MLD_LAST | MLD_REPORT_V2);
                    ctx.stats.drop(if mld { Drop::Unsupported } else { Drop::BadSource });
                    return None;
                }
                (ECHO_REQUEST_V6, ECHO_REPLY_V6)
            }
            // ICMP in IPv6 or ICMPv6 in IPv4.
            (_, _) => {
                ctx.stats.drop(Drop::Unsupported);
                return None;
            }
        };
        if !ctx.net.is_gateway(ip.dst) {
            return Some(slot);
        }
        if (kind, code) == (echo.0, 0) {
            reply(ctx, parsed, ip, slot, echo.1);
        } else {
            ctx.stats.drop(Drop::Unsupported);
        }
        None
    }

    /// Sends the router advertisement that is due.
    pub fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) {
        if let (Some(at), Some(v6)) = (self.advertise, ctx.net.v6)
            && ctx.now >= at
        {
            self.advertise = Some(ctx.now + RA_INTERVAL);
            ndp::advertise(ctx, &v6);
        }
    }

    /// When the next one is due.
    pub fn deadline(&self) -> Option<Time> {
        self.advertise
    }
}

/// Asks the guest's network who has an address.
pub(super) fn ask(ctx: &mut Ctx<'_>, addr: Ipv4Addr) {
    arp(ctx, ArpOperation::Request, ctx.net.v4.gateway, [0xff; 6], addr);
}

/// Sends an ARP packet in the name of one of our addresses.
fn arp(ctx: &mut Ctx<'_>, operation: ArpOperation, ours: Ipv4Addr, mac: Mac, to: Ipv4Addr) {
    let Some(mut slot) = ctx.control_slot() else {
        return;
    };
    // Of a request, the target's hardware address means nothing.
    let target = if operation == ArpOperation::Request { [0; 6] } else { mac };
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(ctx.net.gateway_mac),
        source_protocol_addr: ours,
        target_hardware_addr: EthernetAddress(target),
        target_protocol_addr: to,
    };
    slot.set_range(slot.offset(), repr.buffer_len());
    repr.emit(&mut ArpPacket::new_unchecked(slot.bytes_mut()));
    build::ethernet(&mut slot, ctx.net.gateway_mac, mac, EthernetProtocol::Arp);
    ctx.write(slot);
}

/// Whether ARP names us for an address. `.3` is ours for good: with DNS off it is an ordinary
/// destination *behind* the gateway (its test in slirp4netns wants a connect that times out, not
/// a host that is not there), so frames for it must still come to us.
fn answers_v4(net: &NetConfig, addr: Ipv4Addr) -> bool {
    addr == net.v4.gateway || addr == net.v4.dns
}

/// Answers an echo request to one of our addresses, in the slot it came in.
fn reply(ctx: &mut Ctx<'_>, parsed: &Parsed, ip: &Ip, mut slot: Slot, kind: u8) {
    let Some(pair) = Pair::new(ip.dst, ip.src) else {
        return ctx.stats.drop(Drop::Malformed);
    };
    slot.set_range(slot.offset() + ip.start, ip.end - ip.start);
    let len = slot.len() as u32;
    let bytes = slot.bytes_mut();
    bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
    let pseudo = match pair {
        Pair::V4(..) => 0,
        Pair::V6(..) => checksum::pseudo_header(pair, u8::from(IpProtocol::Icmpv6), len),
    };
    let sum = !checksum::fold(checksum::sum(pseudo, bytes));
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    // The request's own headers, at least as long as ours, were in front: that is the headroom.
    let out = build::Out {
        eth_src: ctx.net.gateway_mac,
        eth_dst: parsed.eth_src,
        pair,
        ttl: TTL,
        tos: ip.tos,
        df: false,
    };
    build::ip(&mut slot, &out, ip.proto);
    ctx.write(slot);
}

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Router solicitation to redirect (RFC 4861 section 4).
const NDP_FIRST: u8 = 133;
const NDP_LAST: u8 = 137;
/// MLD query, report, done (RFC 2710), and the report of MLDv2 (RFC 3810).
const MLD_FIRST: u8 = 130;
const MLD_LAST: u8 = 132;
const MLD_REPORT_V2: u8 = 143;
/// TTL of echo replies.
const TTL: u8 = 64;

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::config::V4Net;
    use crate::frame::Mac;
    use crate::limits::VNET_LEN;
    use crate::stack::testing::*;

    const OURS: Mac = [0x52, 0x55, 10, 0, 2, 2];

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn arp_answers_for_the_gateway_and_dns_only() {
        for dns in [true, false] {
            let mut bed = Bed::new(NetConfig { dns, ..NetConfig::native() });
            for target in [GATEWAY, DNS] {
                for sender in [GUEST, Ipv4Addr::UNSPECIFIED] {
                    let frames = bed.ask(&arp_request(sender, target));
                    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 2];
                    arp.extend(OURS);
                    arp.extend(target.octets());
                    arp.extend(GUEST_MAC);
                    arp.extend(sender.octets());
                    assert_eq!(frames, [ethernet(OURS, GUEST_MAC, ETH_ARP, &arp)]);
                }
            }
            // The guest tests whether an address is free: it must be.
            for other in [GUEST, Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(8, 8, 8, 8)] {
                assert!(bed.ask(&arp_request(Ipv4Addr::UNSPECIFIED, other)).is_empty());
            }
            assert!(bed.ask(&arp_request(GATEWAY, GATEWAY)).is_empty(), "a claim, no question");
            assert_eq!(bed.dropped_in_all(), 0);
        }
    }

    #[test]
    fn arp_follows_the_configured_network() {
        let net = V4Net::new(Ipv4Addr::new(192, 168, 9, 0), 24);
        let mut bed = Bed::new(NetConfig::new(net, None, 1500));
        let gateway = Ipv4Addr::new(192, 168, 9, 2);
        let frames = bed.ask(&arp_request(Ipv4Addr::new(192, 168, 9, 100), gateway));
        assert_eq!(&frames[0][VNET_LEN + 6..VNET_LEN + 12], &[0x52, 0x55, 192, 168, 9, 2]);
        assert!(bed.ask(&arp_request(GUEST, GATEWAY)).is_empty());
    }

    #[test]
    fn mangled_arp_is_answered_ignored_or_counted() {
        let mut bed = Bed::native();
        // Behind the ARP header: addresses that are not ours to answer for; and replies.
        bed.mangle(&arp_request(GUEST, GATEWAY), 20_000, &|frame| frame.len() >= VNET_LEN + 42);
        assert!(bed.dropped(Drop::Malformed) > 40, "{:?}", bed.drops());
        assert!(bed.dropped(Drop::Unsupported) > 4);
        assert_eq!(bed.lent(), 0);
    }

    #[test]
    fn echo_to_the_gateway_is_answered() {
        let mut bed = Bed::native();
        for (src, dst) in [
            ("10.0.2.100", "10.0.2.2"),
            ("10.0.2.100", "10.0.2.3"),
            ("fd00::100", "fd00::2"),
            ("fd00::100", "fd00::3"),
            ("fe80::7", "fe80::2"),
        ] {
            let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
            let request = if src.is_ipv4() { 8 } else { 128 };
            for len in [0, 1, 56, 1473, 65535 - 40 - 8] {
                let mut message = vec![request, 0, 0, 0, 1, 2, 3, 4];
                message.extend((0..len).map(|i| i as u8));
                let frames = bed.ask(&icmp(src, dst, 3, &message));
                let (ip, mut answer) = transport(&frames[0]);
                assert_eq!((frames.len(), ip.src, ip.dst, ip.ttl), (1, dst, src, 64));
                assert_eq!(answer[0], if src.is_ipv4() { 0 } else { 129 });
                answer[0] = request;
                answer[2..4].fill(0);
                assert_eq!(answer, message, "{dst} {len}");
                let (parsed, _) = read(&frames[0]);
                assert_eq!((parsed.eth_src, parsed.eth_dst), (OURS, GUEST_MAC));
            }
        }
        assert_eq!((bed.dropped_in_all(), bed.lent()), (0, 0));
    }

    #[test]
    fn echo_with_ip_options_is_answered_with_a_plain_header() {
        let mut bed = Bed::native();
        let message = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
        let mut frame = ip(GUEST.into(), GATEWAY.into(), 1, &message);
        let l3 = VNET_LEN + 14;
        frame[l3] = 0x46;
        frame[l3 + 3] += 4;
        frame.splice(l3 + 20..l3 + 20, [1, 1, 1, 0]);
        let (ip, answer) = transport(&bed.ask(&frame)[0]);
        assert_eq!((ip.start - ip.l3_start, answer.len()), (20, 8));
    }

    #[test]
    fn other_icmp_for_the_gateway_is_counted() {
        let mut bed = Bed::native();
        for kind in [0, 3, 5, 11, 13, 17, 40] {
            bed.send(&icmp(GUEST.into(), GATEWAY.into(), 64, &[kind, 0, 0, 0, 0, 0, 0, 0]));
        }
        bed.send(&icmp(GUEST.into(), GATEWAY.into(), 64, &[8, 1, 0, 0, 0, 0, 0, 0]));
        // The other family's ICMP.
        bed.send(&ip(GUEST.into(), GATEWAY.into(), 58, &[128, 0, 0, 0, 0, 0, 0, 0]));
        bed.send(&ipv6(GUEST_V6, v6("fd00::2"), 1, 255, &[8, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(bed.dropped(Drop::Unsupported), 10);
        bed.send(&ip(GUEST.into(), GATEWAY.into(), 1, &[8, 0, 0, 0, 0, 0, 0]));
        assert_eq!(bed.dropped(Drop::Malformed), 1);
        // Without an address: reports of group membership, nothing else.
        let report = [143, 0, 0, 0, 0, 0, 0, 0];
        bed.send(&icmp(v6("::").into(), v6("ff02::16").into(), 1, &report));
        assert_eq!(bed.dropped(Drop::Unsupported), 11);
        let echo = [128, 0, 0, 0, 0, 0, 0, 0];
        bed.send(&icmp(v6("::").into(), v6("fd00::2").into(), 64, &echo));
        assert_eq!(bed.dropped(Drop::BadSource), 1);
        assert!(bed.frames().is_empty());
    }

    #[test]
    fn mangled_echo_is_answered_or_counted() {
        let mut bed = Bed::native();
        let v4 = icmp(GUEST.into(), GATEWAY.into(), 64, &[8, 0, 0, 0, 0, 1, 0, 2, 9, 9, 9, 9]);
        let v6 = icmp(GUEST_V6.into(), v6("fd00::2").into(), 64, &[128, 0, 0, 0, 0, 1, 0, 2, 9]);
        let fragments = |f: &[u8]| {
            let l3 = VNET_LEN + 14;
            let v4 = f[l3] >> 4 == 4 && (f[l3 + 6] & 0x3f, f[l3 + 7]) != (0, 0);
            let v6 = f[l3] >> 4 == 6 && f[l3 + 6] != 58;
            v4 || v6
        };
        bed.mangle(&v4, 20_000, &fragments);
        bed.mangle(&v6, 20_000, &fragments);
        assert!(bed.dropped(Drop::Malformed) > 100);
    }
}
