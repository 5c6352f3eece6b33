//! Fragments of the guest's datagrams.
use crate::arena::Slot;
use crate::flow::Ctx;
use crate::frame::{Ip, Parsed};
use crate::time::Time;

/// Datagrams under reassembly.
#[derive(Debug)]
pub struct Reassembly {}

impl Reassembly {
    /// None.
    pub fn new() -> Self {
        Self {}
    }
    /// Takes a fragment; yields the whole datagram (a slot that looks like a frame that was never cut) when it is the
    /// last that was missing.
    pub fn handle(
        &mut self,
        _ctx: &mut Ctx<'_>,
        _parsed: &Parsed,
        _ip: &Ip,
        _slot: Slot,
    ) -> Option<(Slot, Ip)> {
        None
    }
    /// Gives up on what took too long.
    pub fn handle_timeout(&mut self, _ctx: &mut Ctx<'_>) {}
    /// When that is.
    pub fn deadline(&self) -> Option<Time> {
        None
    }
}
