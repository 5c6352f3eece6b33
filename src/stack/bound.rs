//! Ports of the host that lead to UDP endpoints of the guest.
//!
//! A port's socket has an entry in the flow table, and so a number by which the worker and we speak of it. What comes
//! by it belongs to the mapping of the guest's endpoint ([`crate::flow::forward`]), which is made if it is not
//! there. Of several workers, the one that has the port has the mapping. All ports that lead to one endpoint
//! are therefore to be with one worker; that is the caller's to see to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::descriptors::{Descriptors, Taken};
use super::{Flow, Stack};
use crate::config::{NetConfig, Outbound};
use crate::flow::forward::Port;
use crate::flow::key::{FlowKey, Proto};
use crate::flow::udp::UdpFlow;
use crate::flow::{FlowId, Next};
use crate::time::Time;

/// A bound socket of the host.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Where it leads.
    pub guest: SocketAddr,
    /// Its own address; of the same family.
    pub local: SocketAddr,
    /// It is bound to an interface.
    pub device: bool,
}

impl Bound {
    /// Whether what the guest sends to the world may leave by it: it is not kept to one interface or the loopback,
    /// and has the source address that the operator wants.
    fn speaks(&self, net: &NetConfig) -> bool {
        let ip = self.local.ip();
        let right = match self.local {
            SocketAddr::V4(_) => is_source(&net.outbound_v4, ip),
            SocketAddr::V6(_) => is_source(&net.outbound_v6, ip),
        };
        !self.device && !ip.is_loopback() && right
    }
}

/// Whether what leaves with this source leaves as the operator wants it.
fn is_source<A: Copy + Into<IpAddr>>(wanted: &Option<Outbound<A>>, ip: IpAddr) -> bool {
    match wanted {
        None => true,
        Some(Outbound::Address(wanted)) => (*wanted).into() == ip,
        Some(Outbound::Interface(_)) => false,
    }
}

impl Stack {
    /// What flows, and the ports that lead to them, take their descriptors from.
    pub fn descriptors(&self) -> &Arc<Descriptors> {
        self.share.all()
    }

    /// Takes datagrams of a bound socket from now on. The answer is the number of its flow; `None`: there is no room
    /// for it, or no such guest, and what was lent for it is back.
    pub fn handle_bound(&mut self, port: &Bound, taken: Taken, now: Time) -> Option<FlowId> {
        self.give_up();
        let has_family = port.guest.is_ipv4() || self.net.v6.is_some();
        if self.draining || !has_family || port.guest.is_ipv4() != port.local.is_ipv4() {
            return None;
        }
        self.make_room(now);
        let key = FlowKey::guest_only(Proto::Udp, port.guest);
        let mapping = match self.flows.find(&key) {
            Some(mapping) => mapping,
            None => self.expect(key)?,
        };
        let id = self.flows.insert_unnamed(key, Flow::Bound(mapping, taken)).ok();
        if let Some((_, Flow::Udp(flow))) = self.flows.get_mut(mapping) {
            if let Some(id) = id {
                flow.attach(Port { flow: id, speaks: port.speaks(&self.net) }, &self.visitor_room);
                self.idle.remove(mapping.index);
            } else if flow.is_new() {
                self.unhash(mapping);
                self.flows.remove(mapping);
            }
        }
        id
    }

    /// The mapping of an endpoint from which the guest has not sent.
    fn expect(&mut self, key: FlowKey) -> Option<FlowId> {
        // Without a socket, and so without a descriptor.
        let flow = Flow::Udp(UdpFlow::forwarded(&self.visitor_room));
        let id = self.flows.insert(key, flow).ok()?;
        if let Some(seat) = &self.seat {
            seat.seize(&key);
        }
        Some(id)
    }

    /// Ends a bound socket's flow. What the guest has begun from the endpoint goes on.
    pub fn handle_unbound(&mut self, id: FlowId, now: Time) {
        let Some((_, &Flow::Bound(mapping, _))) = self.flows.get(id) else { return };
        self.settle(id, Next::Close { reset: false });
        if let Some((_, Flow::Udp(flow))) = self.flows.get_mut(mapping) {
            let next = flow.detach(id, now);
            if !flow.is_forwarded() {
                self.idle.touch(mapping.index, now);
            }
            if matches!(next, Next::Close { .. }) {
                // It has no socket.
                self.timers.disarm(mapping.index);
                self.idle.remove(mapping.index);
                self.unhash(mapping);
                self.flows.remove(mapping);
            } else {
                self.settle(mapping, next);
            }
        }
    }

    /// Ends the mappings that ports at other workers have taken over.
    pub(super) fn give_up(&mut self) {
        let Some(seat) = &self.seat else { return };
        for key in seat.lost() {
            let Some(id) = self.flows.find(&key) else { continue };
            match self.flows.get(id) {
                // Ports of its own lead to it: they keep it, and answers find their way as long as they come here.
                Some((_, Flow::Udp(flow))) if flow.is_forwarded() => drop(self.flows.unhash(id)),
                _ => self.settle(id, Next::Close { reset: false }),
            }
        }
    }
}

#[cfg(test)]
mod tests;
