//! May this flow exist, and to which host address?
//!
//! # What a destination means
//!
//! The guest's network holds two hosts of ours. `.2` (and what slirp4netns treats alike: the limited
//! broadcast address, the whole IPv6 prefix, ff02::1) is the host itself, on its *loopback* address,
//! if the operator allows that. `.3` and its IPv6 twin are the DNS forwarder and nothing else.
//! Everything beyond the guest's network is the world and is named on the host as the guest names
//! it, with one exception: an address that the host's kernel, or a translator on its path, would take
//! for the host's own loopback or link. Those never pass, in any spelling: the guest's way to
//! loopback is `.2`, where the operator's word counts.
//!
//! The host's other addresses, and the metadata address 169.254.169.254, are the world as well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::IpProtocol;

use super::dns::Dns;
use crate::config::NetConfig;
use crate::flow::icmp::Unreachable;
use crate::frame::Ip;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes: to this host address.
    To(SocketAddr),
    /// No, and the guest is told.
    Refuse(Unreachable),
    /// No, silently (multicast, broadcast).
    Drop,
}

/// Whether a guest may send from this source address: any address that could be a host's behind it
/// (nested bridges route through the guest), but none that is special or ours.
pub fn source_allowed(net: &NetConfig, ip: &Ip) -> bool {
    match ip.src {
        // A DHCP client has no address yet. The ports are not known here: the stack drops what is
        // not for the DHCP server.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => {
            ip.proto == IpProtocol::Udp && ip.dst == IpAddr::V4(Ipv4Addr::BROADCAST)
        }
        // Duplicate address detection, router solicitation, MLD: the gateway takes them, and drops
        // any other ICMPv6.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => ip.proto == IpProtocol::Icmpv6,
        addr => host_address(net, addr),
    }
}

/// Whether an address can be that of a host in or behind the guest's network.
pub fn host_address(net: &NetConfig, addr: IpAddr) -> bool {
    if net.is_gateway(addr) {
        return false;
    }
    match addr {
        IpAddr::V4(a) => {
            let [first, ..] = a.octets();
            !(first == 0
                || a.is_loopback()
                || a.is_multicast()
                || a.is_broadcast()
                || a == net.v4.broadcast()
                || a == net.v4.network)
        }
        IpAddr::V6(a) => !(a.is_multicast() || embeds_in_zero(a)),
    }
}

/// Where a TCP connection to `to` (as the guest names it) goes.
pub fn tcp(net: &NetConfig, dns: &Dns, to: SocketAddr) -> Verdict {
    if is_dns(net, &to) {
        return dns
            .next_after_failure(to, 0)
            .map_or(Verdict::Refuse(Unreachable::Net), Verdict::To);
    }
    udp(net, to)
}

/// Where a datagram (or, with port 0, an echo request) to `to` goes. Not asked for DNS.
pub fn udp(net: &NetConfig, to: SocketAddr) -> Verdict {
    let special = match to.ip() {
        IpAddr::V4(a) => v4(net, a),
        IpAddr::V6(a) => v6(net, a),
    };
    match special {
        Meaning::World => Verdict::To(to),
        Meaning::Host if net.host_loopback => {
            let loopback = match to {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            Verdict::To(SocketAddr::new(loopback, to.port()))
        }
        Meaning::Host | Meaning::Forbidden => Verdict::Refuse(Unreachable::Net),
        Meaning::Nobody => Verdict::Refuse(Unreachable::Host),
        Meaning::Group => Verdict::Drop,
    }
}

/// Whether an endpoint is the DNS forwarder's: `.3` or its IPv6 twin, port 53, unless DNS is off.
pub fn is_dns(net: &NetConfig, to: &SocketAddr) -> bool {
    net.dns && to.port() == 53 && is_dns_addr(net, to.ip())
}

fn is_dns_addr(net: &NetConfig, addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => a == net.v4.dns,
        IpAddr::V6(a) => net.v6.is_some_and(|v6| a == v6.dns),
    }
}

/// What a destination address means.
enum Meaning {
    /// Itself, on the host's network.
    World,
    /// The host's loopback, if allowed.
    Host,
    /// Nothing a guest may reach.
    Forbidden,
    /// An address of the guest's own network that nobody of ours has.
    Nobody,
    /// Many: multicast or broadcast.
    Group,
}

fn v4(net: &NetConfig, a: Ipv4Addr) -> Meaning {
    if a == net.v4.gateway || a.is_broadcast() {
        Meaning::Host
    } else if a == net.v4.dns {
        if net.dns { Meaning::Forbidden } else { Meaning::World }
    } else if a.is_multicast() || a == net.v4.broadcast() || a == net.v4.network {
        Meaning::Group
    } else if net.v4.contains(a) {
        Meaning::Nobody
    } else if v4_is_host(a) {
        Meaning::Forbidden
    } else {
        Meaning::World
    }
}

fn v6(net: &NetConfig, a: Ipv6Addr) -> Meaning {
    let Some(v6) = net.v6 else {
        return if a.is_multicast() { Meaning::Group } else { Meaning::Forbidden };
    };
    if a == v6.dns {
        if net.dns { Meaning::Forbidden } else { Meaning::World }
    } else if v6.contains(a) || a == ALL_NODES {
        Meaning::Host
    } else if a.is_multicast() {
        Meaning::Group
    } else if a.is_unicast_link_local() || embeds_in_zero(a) || embedded(a).is_some_and(v4_is_host)
    {
        Meaning::Forbidden
    } else {
        Meaning::World
    }
}

/// ff02::1, all nodes of the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// 127.0.0.0/8, and 0.0.0.0/8: Linux connects 0.0.0.0 to loopback, and the rest of the block is "this
/// network" (RFC 1122 section 3.2.1.3).
fn v4_is_host(a: Ipv4Addr) -> bool {
    a.is_loopback() || a.octets()[0] == 0
}

/// ::/96 (`::`, `::1` and the deprecated IPv4-compatible form) and ::ffff:0:0/96 (IPv4-mapped: an
/// IPv6 socket would speak IPv4 to it). Neither may be on a wire, whatever IPv4 address is in it
/// (RFC 4291 section 2.5.5, RFC 6890).
fn embeds_in_zero(a: Ipv6Addr) -> bool {
    let [s0, s1, s2, s3, s4, s5, ..] = a.segments();
    [s0, s1, s2, s3, s4] == [0; 5] && (s5 == 0 || s5 == 0xffff)
}

/// The IPv4 address that a translator on the host's side would make of this one: NAT64 with the
/// well-known prefix (RFC 6052) or in the local-use prefix (RFC 8215), stateless translation
/// (::ffff:0:0:0/96, RFC 2765), 6to4 (RFC 3056).
fn embedded(a: Ipv6Addr) -> Option<Ipv4Addr> {
    let ([0x64, 0xff9b, 0, 0, 0, 0, hi, lo]
    | [0x64, 0xff9b, 1, _, _, _, hi, lo]
    | [0, 0, 0, 0, 0xffff, 0, hi, lo]
    | [0x2002, hi, lo, ..]) = a.segments()
    else {
        return None;
    };
    Some(Ipv4Addr::from((u32::from(hi) << 16) | u32::from(lo)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{V4Net, V6Net};
    use crate::stats::Drop;

    const NET: Unreachable = Unreachable::Net;
    const HOST: Unreachable = Unreachable::Host;

    fn net(host_loopback: bool, dns: bool) -> NetConfig {
        NetConfig { host_loopback, dns, ..NetConfig::native() }
    }

    fn at(addr: &str, port: u16) -> SocketAddr {
        SocketAddr::new(addr.parse().unwrap(), port)
    }

    fn both(net: &NetConfig, addr: &str, port: u16) -> Verdict {
        let tcp = tcp(net, &Dns::new([1, 2]), at(addr, port));
        assert_eq!(tcp, udp(net, at(addr, port)), "{addr}: TCP and UDP differ");
        tcp
    }

    #[test]
    fn the_host_by_its_names_in_the_guests_network() {
        for (addr, loopback) in [
            ("10.0.2.2", "127.0.0.1"),
            ("255.255.255.255", "127.0.0.1"),
            ("fd00::2", "::1"),
            ("fd00::", "::1"),
            ("fd00::100", "::1"),
            ("fd00::ffff:ffff:ffff:ffff", "::1"),
            ("ff02::1", "::1"),
        ] {
            assert_eq!(both(&net(true, true), addr, 80), Verdict::To(at(loopback, 80)), "{addr}");
            assert_eq!(both(&net(false, true), addr, 80), Verdict::Refuse(NET), "{addr}");
        }
    }

    #[test]
    fn no_spelling_of_the_hosts_loopback_or_link_passes() {
        for addr in [
            "127.0.0.1",
            "127.0.0.53",
            "127.255.255.255",
            "0.0.0.0",
            "0.0.0.1",
            "0.255.255.255",
            "::",
            "::1",
            "::2",
            "::127.0.0.1",
            "::0.0.0.0",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:0.0.0.0",
            "::ffff:10.0.2.2",
            "::ffff:192.168.1.1",
            "::ffff:8.8.8.8",
            "64:ff9b::127.0.0.1",
            "64:ff9b::127.1.2.3",
            "64:ff9b::0.0.0.0",
            "64:ff9b:1::127.0.0.1",
            "64:ff9b:1:2:3:4:127.0.0.1",
            "::ffff:0:127.0.0.1",
            "2002:7f00:1::",
            "2002:7f00:1::1",
            "2002::1",
            "fe80::1",
            "fe80::2",
            "fe80::1:2:3:4",
            "febf:ffff::1",
        ] {
            for allowed in [false, true] {
                assert_eq!(both(&net(allowed, true), addr, 80), Verdict::Refuse(NET), "{addr}");
                assert_eq!(both(&net(allowed, true), addr, 0), Verdict::Refuse(NET), "{addr}");
            }
        }
    }

    /// The stack asks by the address that was on the wire: a flow's key holds IPv4 addresses as mapped ones,
    /// and does not know which it was.
    #[test]
    fn no_connection_to_a_mapped_address() {
        use crate::flow::Action;
        use crate::stack::testing::{Bed, ipv6};
        for to in ["::ffff:8.8.8.8", "::ffff:10.0.2.2", "::ffff:10.0.2.3", "::ffff:127.0.0.1"] {
            let mut bed = Bed::new(net(true, true));
            let syn = [0x9c, 0x40, 0, 53, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 255, 255, 0, 0, 0, 0];
            let guest = "fd00::100".parse().unwrap();
            bed.send(&ipv6(guest, to.parse().unwrap(), 6, 64, &syn));
            let actions = bed.actions();
            assert!(!actions.iter().any(|a| matches!(a, Action::TcpConnect { .. })), "{to}");
            assert_eq!((actions.len(), bed.dropped(Drop::Forbidden)), (1, 1), "{to}: told");
        }
    }

    #[test]
    fn the_world_is_named_as_the_guest_names_it() {
        for addr in [
            "8.8.8.8",
            "192.168.1.1",
            "10.0.3.2",
            "10.0.1.255",
            "128.0.0.1",
            "126.255.255.255",
            "1.0.0.0",
            "169.254.169.254",
            "2001:db8::1",
            "fd00:0:0:1::2",
            "fd01::2",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "fec0::1",
        ] {
            assert_eq!(both(&net(false, true), addr, 80), Verdict::To(at(addr, 80)), "{addr}");
        }
    }

    #[test]
    fn groups_are_silent_and_neighbours_that_are_not_there_are_unreachable() {
        for addr in ["224.0.0.251", "239.255.255.250", "10.0.2.255", "10.0.2.0"] {
            assert_eq!(both(&net(true, true), addr, 5353), Verdict::Drop, "{addr}");
        }
        for addr in ["ff02::fb", "ff02::2", "ff05::1", "ff01::1"] {
            assert_eq!(both(&net(true, true), addr, 5353), Verdict::Drop, "{addr}");
        }
        for addr in ["10.0.2.1", "10.0.2.4", "10.0.2.100", "10.0.2.254"] {
            assert_eq!(both(&net(true, true), addr, 80), Verdict::Refuse(HOST), "{addr}");
        }
    }

    #[test]
    fn the_dns_address_is_port_53_only_and_ordinary_when_dns_is_off() {
        for addr in ["10.0.2.3", "fd00::3"] {
            for allowed in [false, true] {
                let on = net(allowed, true);
                assert!(is_dns(&on, &at(addr, 53)));
                assert!(!is_dns(&on, &at(addr, 54)));
                for port in [0, 1, 80, 853] {
                    assert_eq!(both(&on, addr, port), Verdict::Refuse(NET), "{addr} {port}");
                }
                let off = net(allowed, false);
                assert!(!is_dns(&off, &at(addr, 53)));
                assert_eq!(both(&off, addr, 53), Verdict::To(at(addr, 53)));
                assert_eq!(both(&off, addr, 80), Verdict::To(at(addr, 80)));
            }
        }
        assert!(!is_dns(&net(true, true), &at("10.0.2.2", 53)));
    }

    #[test]
    fn tcp_to_the_dns_address_goes_to_a_resolver() {
        let mut dns = Dns::new([1, 2]);
        dns.set_resolvers(&["192.0.2.1".parse().unwrap()]);
        let to = at("192.0.2.1", 53);
        assert_eq!(tcp(&net(false, true), &dns, at("10.0.2.3", 53)), Verdict::To(to));
        assert_eq!(tcp(&net(false, true), &dns, at("fd00::3", 53)), Verdict::To(to));
    }

    #[test]
    fn without_ipv6_there_is_no_route() {
        let none = NetConfig { v6: None, ..net(true, true) };
        for addr in ["2001:db8::1", "fd00::2", "fd00::3", "fe80::2", "::1", "::ffff:8.8.8.8"] {
            assert_eq!(both(&none, addr, 53), Verdict::Refuse(NET), "{addr}");
        }
        assert_eq!(both(&none, "ff02::1", 53), Verdict::Drop);
    }

    #[test]
    fn sources() {
        let net = NetConfig::new(
            V4Net::new(Ipv4Addr::new(10, 0, 2, 0), 24),
            Some(V6Net::fd00(false)),
            1500,
        );
        let from = |src: &str, dst: &str, proto| {
            let ip = Ip {
                src: src.parse().unwrap(),
                dst: dst.parse().unwrap(),
                proto,
                ttl: 64,
                tos: 0,
                df: false,
                fragment: None,
                l3_start: 24,
                start: 44,
                end: 52,
            };
            source_allowed(&net, &ip)
        };
        for src in ["10.0.2.100", "10.0.2.15", "172.17.0.2", "192.168.7.1", "169.254.3.4"] {
            assert!(from(src, "8.8.8.8", IpProtocol::Tcp), "{src}");
        }
        for src in ["127.0.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "10.0.2.255"]
        {
            assert!(!from(src, "8.8.8.8", IpProtocol::Udp), "{src}");
        }
        for src in ["10.0.2.2", "10.0.2.3", "10.0.2.0"] {
            assert!(!from(src, "8.8.8.8", IpProtocol::Udp), "{src}");
        }
        assert!(from("0.0.0.0", "255.255.255.255", IpProtocol::Udp), "a DHCP client");
        assert!(!from("0.0.0.0", "255.255.255.255", IpProtocol::Icmp));
        for src in ["fd00::100", "fe80::5054:ff:fe00:1", "2001:db8::5", "fd12::1"] {
            assert!(from(src, "2001:db8::1", IpProtocol::Tcp), "{src}");
        }
        for src in [
            "::1",
            "::",
            "::ffff:10.0.2.100",
            "::10.0.2.100",
            "ff02::1",
            "fd00::2",
            "fd00::3",
            "fe80::2",
        ] {
            assert!(!from(src, "2001:db8::1", IpProtocol::Tcp), "{src}");
        }
        assert!(from("::", "ff02::2", IpProtocol::Icmpv6), "router solicitation, DAD");
    }
}
