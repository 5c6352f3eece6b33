//! ICMP and ICMPv6 errors towards the guest, and what echo messages name.

use std::net::{IpAddr, SocketAddr};

use super::Ctx;
use crate::frame::{Ip, Mac, Parsed};

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

/// Answers a packet of the guest (frame bytes and its parsed header) with an error from the gateway.
pub fn unreachable(ctx: &mut Ctx<'_>, parsed: &Parsed, ip: &Ip, frame: &[u8], why: Unreachable) {
    let _ = (ctx, parsed, ip, frame, why);
}

/// Answers a packet of a protocol that nobody speaks here.
pub fn protocol_unreachable(ctx: &mut Ctx<'_>, parsed: &Parsed, ip: &Ip, frame: &[u8]) {
    let _ = (ctx, parsed, ip, frame);
}

/// Sends an error about an earlier packet of the guest whose header is no longer at hand: it is
/// written anew from the endpoints. `from`: who reports it, the gateway when unknown. `l4` is the
/// head of what the packet carried (8 bytes or more).
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
    let _ = (ctx, mac, guest, to, proto, l4, from, why);
}

/// The identifier of an echo request, or `None` when the message is not one.
pub fn echo_ident(ip: &Ip, message: &[u8]) -> Option<u16> {
    let _ = (ip, message);
    None
}
