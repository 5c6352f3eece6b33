//! TCP.
use std::net::IpAddr;

use smoltcp::wire::TcpPacket;

use super::key::FlowKey;
use super::{Ctx, Errno, FlowId, Next, Received};
use crate::arena::{Chain, Slot};
use crate::frame::Mac;

/// A checked segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// SYN.
    pub syn: bool,
    /// RST.
    pub rst: bool,
    /// Acknowledgement number.
    pub ack: Option<u32>,
}

impl Segment {
    /// Parses.
    pub fn parse(_p: &TcpPacket<&[u8]>, _s: &IpAddr, _d: &IpAddr) -> Option<Self> {
        None
    }
}

/// One connection.
#[derive(Debug)]
pub struct TcpFlow {
    /// In the dirty list.
    pub dirty: bool,
}

#[expect(missing_docs)]
impl TcpFlow {
    pub fn new(
        _ctx: &mut Ctx<'_>,
        _key: &FlowKey,
        _mac: Mac,
        _s: &Segment,
        _secret: &[u64; 2],
    ) -> Self {
        Self { dirty: false }
    }
    pub fn handle_segment(&mut self, _ctx: &mut Ctx<'_>, _s: &Segment, _slot: Slot) {}
    pub fn handle_written(&mut self, _ctx: &mut Ctx<'_>, _slot: Slot) {}
    pub fn handle_connected(&mut self, _ctx: &mut Ctx<'_>, _key: &FlowKey, _r: Result<(), Errno>) {}
    pub fn handle_sent(&mut self, _ctx: &mut Ctx<'_>, _chain: Chain, _r: Result<u32, Errno>) {}
    pub fn handle_writable(&mut self) {}
    pub fn handle_received(&mut self, _ctx: &mut Ctx<'_>, _r: Received) {}
    pub fn handle_hangup(&mut self, _ctx: &mut Ctx<'_>, _e: Errno) {}
    pub fn handle_timeout(&mut self, _ctx: &mut Ctx<'_>) {}
    pub fn dns_tries(&mut self) -> u8 {
        0
    }
    pub fn drained(&self) -> bool {
        true
    }
    pub fn serve(&mut self, _ctx: &mut Ctx<'_>, _id: FlowId, _key: &FlowKey) -> Next {
        Next::Live(None)
    }
}

/// Answers a segment for no flow by a RST.
pub fn reset_unknown(
    _ctx: &mut Ctx<'_>,
    _mac: Mac,
    _key: &FlowKey,
    _segment: &Segment,
    _len: usize,
) {
}
