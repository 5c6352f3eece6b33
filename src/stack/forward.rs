//! Connections that come from outside, by a forwarded port: who the guest sees, and where their SYN goes.
//!
//! # Who the guest sees
//!
//! The peer itself, by its address and port. Except where the guest would not send its answers to the gateway
//! for that address: the host's loopback, addresses of the guest's own network (the guest's own among them), and
//! those of a link. Such a peer is shown as the gateway, as slirp4netns does. Two peers that would look the same are told apart
//! by the port: the later gets another.
//!
//! What the guest answers is looked up by its endpoints before policy is asked, so the way back of such a connection
//! is open whatever a guest may open itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::IpProtocol;

use super::neighbours::Known;
use super::{Flow, Home, Refused, Stack, policy};
use crate::arena::Slot;
use crate::config::NetConfig;
use crate::flow::key::{FlowKey, Proto};
use crate::flow::tcp::TcpFlow;
use crate::flow::{Action, Ctx, FlowId, Handed};
use crate::frame::{Ip, Mac};
use crate::limits::SHOWN_PORT_TRIES;
use crate::stats::Drop;
use crate::time::Time;

impl Stack {
    /// Opens a connection to the guest for one that `peer` has opened to a forwarded port. The caller keeps its
    /// socket at the id. `None`, counted: there may be none, and the peer is to be reset.
    pub fn handle_accepted(
        &mut self,
        peer: SocketAddr,
        guest: SocketAddr,
        now: Time,
    ) -> Option<FlowId> {
        if self.draining {
            self.stats.drop(Drop::Draining);
            return None;
        }
        let Some(shown) = shown(&self.net, peer, guest) else {
            self.stats.drop(Drop::Forbidden);
            return None;
        };
        self.make_room(now);
        for n in 0..SHOWN_PORT_TRIES {
            let shown = SocketAddr::new(shown.ip(), port(shown.port(), n));
            let key = FlowKey::pair(Proto::Tcp, guest, shown);
            if !matches!(self.home(&key), Home::Nowhere) {
                continue;
            }
            let flow = TcpFlow::accepted(&mut ctx!(self, now), &key, &self.secret);
            return match self.insert(key, Flow::Tcp(flow)) {
                Ok(id) => {
                    self.direct(id, guest.ip(), now);
                    Some(id)
                }
                // Another worker was faster.
                Err(Refused::Away(_)) => continue,
                Err(Refused::Full) => {
                    self.stats.drop(Drop::FlowTableFull);
                    None
                }
            };
        }
        self.stats.drop(Drop::FlowTableFull);
        None
    }

    /// The worker that a connection which has come here is better off with. It counts as that one's until
    /// [`Stack::handle_placed`] there, or [`Stack::unplace_accepted`] here.
    pub fn place_accepted(&self, now: Time) -> Option<u8> {
        self.seat.as_ref().and_then(|seat| seat.place(now))
    }

    /// It did not get there.
    pub fn unplace_accepted(&self, worker: u8) {
        if let Some(seat) = &self.seat {
            seat.arrived(worker);
        }
    }

    /// As [`Stack::handle_accepted`], for a connection that another worker has given to this one.
    pub fn handle_placed(
        &mut self,
        peer: SocketAddr,
        guest: SocketAddr,
        now: Time,
    ) -> Option<FlowId> {
        let id = self.handle_accepted(peer, guest, now);
        if let Some(seat) = &self.seat {
            seat.arrived(seat.me());
        }
        id
    }

    /// Finds out where a flow's first frame goes.
    pub(super) fn direct(&mut self, id: FlowId, guest: IpAddr, now: Time) {
        let mac = if !on_link(&self.net, guest) && self.guest_mac != [0xff; 6] {
            // Behind the guest: that is the router.
            Known::At(self.guest_mac)
        } else {
            self.neighbours.find(&mut ctx!(self, now), guest)
        };
        let resolved = match mac {
            Known::At(mac) => Some(mac),
            Known::Asking if self.neighbours.wait(guest, id) => return self.note_asking(),
            Known::Asking | Known::Full => None,
        };
        self.note_asking();
        self.resolved(id, resolved, now);
    }

    fn resolved(&mut self, id: FlowId, mac: Option<Mac>, now: Time) {
        let mut ctx = ctx!(self, now);
        // The flow may have ended meanwhile.
        match (self.flows.get_mut(id), mac) {
            (Some((_, Flow::Udp(flow))), mac) => return flow.resolved(&mut ctx, mac),
            (Some((_, Flow::Tcp(flow))), Some(mac)) => flow.resolved(mac),
            (Some((_, Flow::Tcp(flow))), None) => flow.unresolved(),
            _ => return,
        }
        self.mark(id);
    }

    /// The gateway has heard where a neighbour is.
    pub(super) fn take_told(&mut self, now: Time) {
        let Some((addr, mac)) = self.gateway.take_told() else { return };
        if self.neighbours.told(addr, mac, now) {
            self.note_asking();
            while let Some(id) = self.neighbours.waiter(addr) {
                self.resolved(id, Some(mac), now);
            }
        }
    }

    pub(super) fn ask_neighbours(&mut self, now: Time) {
        while let Some(addr) = self.neighbours.handle_timeout(&mut ctx!(self, now)) {
            while let Some(id) = self.neighbours.waiter(addr) {
                self.resolved(id, None, now);
            }
            self.note_asking();
        }
    }

    /// Lets the others know whether this worker waits for an answer.
    fn note_asking(&mut self) {
        let asking = self.neighbours.asking();
        let before = std::mem::replace(&mut self.asking, asking);
        if let Some(seat) = self.seat.as_ref().filter(|_| before != asking) {
            seat.note_asking(before, asking);
        }
    }

    /// A frame that says where a neighbour is goes to all workers while one of them asks: it comes by any queue.
    pub(super) fn tell_others(&mut self, slot: &Slot, now: Time) {
        let Some(seat) = self.seat.as_ref().filter(|_| !self.arrival.handed) else { return };
        if !seat.others_ask(self.asking) {
            return;
        }
        let (me, workers) = (seat.me(), seat.workers());
        for worker in (0..workers).filter(|&worker| worker != me) {
            let mut ctx = ctx!(self, now);
            let Some(mut copy) = ctx.control_slot() else { return };
            if slot.len() > copy.capacity() {
                return;
            }
            copy.set_range(0, slot.len());
            copy.bytes_mut().copy_from_slice(slot.bytes());
            ctx.stats.handed_over += 1;
            ctx.actions.push(Action::HandOver { worker, slot: copy, about: Handed::default() });
        }
    }

    /// An ICMP error of the guest about our SYN, as its firewall sends: the connection is refused. Gives the slot back
    /// when it is about something else.
    pub(super) fn handle_refusal(&mut self, slot: Slot, ip: &Ip) -> Option<Slot> {
        let Some((key, seq)) = refused(ip, &slot.bytes()[ip.start..ip.end]) else {
            return Some(slot);
        };
        match self.home(&key) {
            Home::Nowhere => return Some(slot),
            Home::Away(worker) => self.hand_over(worker, slot),
            Home::Coming => self.stats.drop(Drop::Misplaced),
            Home::Here(id) => {
                if let Some((_, Flow::Tcp(flow))) = self.flows.get_mut(id) {
                    flow.handle_refused(seq);
                    self.mark(id);
                }
            }
        }
        None
    }
}

/// The endpoint that the guest sees for a peer; `None`: there can be no such connection.
pub(super) fn shown(net: &NetConfig, peer: SocketAddr, guest: SocketAddr) -> Option<SocketAddr> {
    let ip = match (peer.ip().to_canonical(), guest.ip()) {
        (IpAddr::V4(a), IpAddr::V4(to)) => {
            if to.is_unspecified() {
                return None;
            }
            let special = v4_is_ours(a) || net.v4.contains(a) || a == to;
            IpAddr::V4(if special { net.v4.gateway } else { a })
        }
        (IpAddr::V6(a), IpAddr::V6(to)) => {
            let v6 = net.v6?;
            let special = a.is_unicast_link_local()
                || a.segments()[..6] == [0; 6]
                || a.is_multicast()
                || v6.contains(a)
                || a == to;
            let gateway = if to.is_unicast_link_local() { v6.link_local } else { v6.gateway };
            IpAddr::V6(if special { gateway } else { a })
        }
        _ => return None,
    };
    let possible = guest.port() != 0
        && peer.port() != 0
        && policy::host_address(net, guest.ip())
        && ip != guest.ip();
    possible.then(|| SocketAddr::new(ip, peer.port()))
}

/// Loopback, "this network", and what names no single host.
fn v4_is_ours(a: Ipv4Addr) -> bool {
    a.is_loopback() || a.octets()[0] == 0 || a.is_multicast() || a.is_broadcast()
}

/// The `n`th port to try for a peer: its own first, then ephemeral ones (RFC 6335 section 6) in strides.
fn port(own: u16, n: u32) -> u16 {
    const FIRST: u32 = 49152;
    const COUNT: u32 = 65536 - FIRST;
    // The stride is odd, so that no port comes twice.
    if n == 0 { own } else { (FIRST + (u32::from(own) + n * 4099) % COUNT) as u16 }
}

/// Whether the guest's network has this address on its link.
fn on_link(net: &NetConfig, addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => net.v4.contains(a),
        IpAddr::V6(a) => a.is_unicast_link_local() || net.v6.is_some_and(|v6| v6.contains(a)),
    }
}

/// What a destination unreachable message is about, if that is a segment of TCP: the flow and the sequence number.
fn refused(ip: &Ip, message: &[u8]) -> Option<(FlowKey, u32)> {
    let (&[kind, code, ..], quoted) = (message.get(..8)?, message.get(8..)?) else {
        return None;
    };
    let (src, dst, l4): (IpAddr, IpAddr, &[u8]) = match (ip.proto, kind) {
        // Not "fragmentation needed" (4), nor what tells of the path.
        (IpProtocol::Icmp, 3) if matches!(code, 0..=3 | 9..=13) => {
            let header = quoted.get(..20)?;
            let len = usize::from(header[0] & 0xf) * 4;
            if header[0] >> 4 != 4 || len < 20 || header[9] != u8::from(IpProtocol::Tcp) {
                return None;
            }
            let addr = |at: usize| {
                let bytes: [u8; 4] = header[at..at + 4].try_into().ok()?;
                Some(IpAddr::V4(Ipv4Addr::from(bytes)))
            };
            (addr(12)?, addr(16)?, quoted.get(len..)?)
        }
        (IpProtocol::Icmpv6, 1) => {
            let header = quoted.get(..40)?;
            if header[0] >> 4 != 6 || header[6] != u8::from(IpProtocol::Tcp) {
                return None;
            }
            let addr = |at: usize| {
                let bytes: [u8; 16] = header[at..at + 16].try_into().ok()?;
                Some(IpAddr::V6(Ipv6Addr::from(bytes)))
            };
            (addr(8)?, addr(24)?, quoted.get(40..)?)
        }
        _ => return None,
    };
    let &[s0, s1, d0, d1, n0, n1, n2, n3, ..] = l4 else { return None };
    // The error goes to whom the segment came from.
    if src != ip.dst {
        return None;
    }
    let (from, to) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
    let key = FlowKey::pair(Proto::Tcp, SocketAddr::new(dst, to), SocketAddr::new(src, from));
    Some((key, u32::from_be_bytes([n0, n1, n2, n3])))
}

#[cfg(test)]
mod tests;
