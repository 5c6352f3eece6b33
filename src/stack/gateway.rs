//! What the gateway host answers itself.
use crate::arena::Slot;
use crate::config::NetConfig;
use crate::flow::Ctx;
use crate::frame::{Ip, Parsed};
use crate::time::Time;

/// ARP, NDP, router advertisements, echo.
#[derive(Debug)]
pub struct Gateway {}

impl Gateway {
    /// The gateway of a network.
    pub fn new(_net: &NetConfig, _now: Time) -> Self {
        Self {}
    }
    /// An ARP packet.
    pub fn handle_arp(&mut self, _ctx: &mut Ctx<'_>, _parsed: &Parsed, _packet: &[u8]) {}
    /// An ICMP or ICMPv6 packet; gives the slot back when it is not for the gateway (an echo request to
    /// elsewhere).
    pub fn handle_icmp(
        &mut self,
        _ctx: &mut Ctx<'_>,
        _parsed: &Parsed,
        _ip: &Ip,
        slot: Slot,
    ) -> Option<Slot> {
        Some(slot)
    }
    /// Sends the router advertisement that is due.
    pub fn handle_timeout(&mut self, _ctx: &mut Ctx<'_>) {}
    /// When the next one is due.
    pub fn deadline(&self) -> Option<Time> {
        None
    }
}
