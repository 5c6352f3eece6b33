//! DHCPv4 server.
use std::net::SocketAddr;

use crate::flow::Ctx;
use crate::frame::Parsed;

/// Sixteen leases, `.15` to `.30`.
#[derive(Debug)]
pub struct Dhcp {}

impl Dhcp {
    /// No lease given.
    pub fn new() -> Self {
        Self {}
    }
    /// A message (the UDP payload) from a client.
    pub fn handle(&mut self, _ctx: &mut Ctx<'_>, _parsed: &Parsed, _message: &[u8]) {}
}

/// Whether a datagram is for the DHCP server: port 68 to 67, broadcast or to the gateway.
pub fn is_request(_guest: &SocketAddr, _to: &SocketAddr) -> bool {
    false
}
