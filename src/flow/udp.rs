//! UDP.
use std::net::SocketAddr;

use super::key::FlowKey;
use super::{Ctx, DgramEvent, DgramKind, FlowId, Next, SendOpts};
use crate::arena::Slot;
use crate::frame::Mac;

/// One mapping.
#[derive(Debug)]
pub struct UdpFlow {}

impl UdpFlow {
    /// A mapping for a guest behind this MAC.
    pub fn new(_mac: Mac) -> Self {
        Self {}
    }
    /// Kind of socket for a guest endpoint.
    pub fn kind(guest: &SocketAddr) -> DgramKind {
        if guest.is_ipv4() { DgramKind::Udp4 } else { DgramKind::Udp6 }
    }
    /// A datagram of the guest to `to`, which policy has translated to `host`.
    #[expect(clippy::too_many_arguments, reason = "stub")]
    pub fn handle_datagram(
        &mut self,
        _ctx: &mut Ctx<'_>,
        _id: FlowId,
        _mac: Mac,
        _to: SocketAddr,
        _host: SocketAddr,
        _slot: Slot,
        _opts: SendOpts,
    ) -> Next {
        Next::Live(None)
    }
    /// What the worker reports.
    pub fn handle_event(
        &mut self,
        _ctx: &mut Ctx<'_>,
        _id: FlowId,
        _key: &FlowKey,
        _event: DgramEvent,
    ) -> Next {
        Next::Live(None)
    }
    /// The deadline has come (or a little earlier).
    pub fn handle_timeout(&mut self, _ctx: &mut Ctx<'_>) -> Next {
        Next::Live(None)
    }
}
