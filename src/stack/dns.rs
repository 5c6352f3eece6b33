//! The DNS forwarder.
use std::net::{IpAddr, SocketAddr};

use crate::arena::Slot;
use crate::flow::key::FlowKey;
use crate::flow::{Ctx, DgramEvent, FlowId, Next};
use crate::frame::Mac;

/// Resolvers and the number of pending queries.
#[derive(Debug)]
pub struct Dns {}

/// One query over UDP.
#[derive(Debug)]
pub struct DnsFlow {}

impl Dns {
    /// No resolver known.
    pub fn new(_secret: [u64; 2]) -> Self {
        Self {}
    }
    /// Replaces the resolvers.
    pub fn set_resolvers(&mut self, _resolvers: &[IpAddr]) {}
    /// A query (slot's range: the DNS message) of `guest` to `to`. Counts it as pending and yields a
    /// number that distinguishes it among the guest endpoint's queries; `None`: refused, counted.
    pub fn query(
        &mut self,
        _ctx: &mut Ctx<'_>,
        _guest: SocketAddr,
        _to: SocketAddr,
        _mac: Mac,
        _slot: Slot,
    ) -> Option<(u16, DnsFlow)> {
        None
    }
    /// One pending query fewer.
    pub fn release(&mut self) {}
    /// The resolver for a TCP connection to `.3`, after `tries` that failed; `None`: no more.
    pub fn next_after_failure(&self, _to: SocketAddr, _tries: u8) -> Option<SocketAddr> {
        None
    }
}

impl DnsFlow {
    /// Opens the socket and sends the query to the first resolver.
    pub fn start(&mut self, _ctx: &mut Ctx<'_>, _dns: &Dns, _id: FlowId) -> Next {
        Next::Close { reset: false }
    }
    /// What the worker reports.
    pub fn handle_event(
        &mut self,
        _ctx: &mut Ctx<'_>,
        _dns: &mut Dns,
        _id: FlowId,
        _key: &FlowKey,
        _event: DgramEvent,
    ) -> Next {
        Next::Live(None)
    }
    /// The deadline has come.
    pub fn handle_timeout(
        &mut self,
        _ctx: &mut Ctx<'_>,
        _dns: &mut Dns,
        _id: FlowId,
        _key: &FlowKey,
    ) -> Next {
        Next::Live(None)
    }
}
