//! May this flow exist, and to which host address?
use std::net::SocketAddr;

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

/// Whether a guest may send from this source address.
pub fn source_allowed(net: &NetConfig, ip: &Ip) -> bool {
    let _ = (net, ip);
    true
}

/// Where a TCP connection to `to` (as the guest names it) goes.
pub fn tcp(net: &NetConfig, dns: &Dns, to: SocketAddr) -> Verdict {
    let _ = (net, dns);
    Verdict::To(to)
}

/// Where a datagram (or, with port 0, an echo request) to `to` goes. Not asked for DNS.
pub fn udp(net: &NetConfig, to: SocketAddr) -> Verdict {
    let _ = net;
    Verdict::To(to)
}

/// Whether an endpoint is the DNS forwarder's: `.3` or its IPv6 twin, port 53, unless DNS is off.
pub fn is_dns(net: &NetConfig, to: &SocketAddr) -> bool {
    let _ = (net, to);
    false
}
