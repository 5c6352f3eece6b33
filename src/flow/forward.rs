//! A UDP mapping that ports of the host lead to.
//!
//! # Theory of operation
//!
//! Each port has a bound socket, which is a flow of its own for the worker's sake and no more than that: all that is
//! known about a conversation is in the mapping of the guest's endpoint, whichever ports lead there.
//!
//! * Whoever sends to a port is admitted, and shown to the guest under an address that the guest can answer to: its
//!   own, or the gateway's for a peer on the host's loopback and others whose address means something else inside. Its
//!   port is kept as well, unless somebody goes by that name already: 127.0.0.1 and 127.0.0.2, or one peer that
//!   has come by two ports of the host, or to two of its addresses. The latecomer gets another port, so that every name has one meaning.
//! * What the guest sends to such a name leaves by the socket that its owner has come to, and from the address: a port
//!   may be one of all addresses. Policy is not asked, for this peer has asked to be answered.
//! * What the guest sends to anybody else from this endpoint is asked for, and leaves by a port's socket as well, so
//!   that it has the address that others know the guest by; where no port's socket can reach the world
//!   ([`Port::speaks`]), by one of the mapping's own.
//!
//! Such a mapping lives as long as ports lead to it. Its peers are forgotten like any mapping: by
//! [`UDP_IDLE`](crate::limits::UDP_IDLE) of silence, or by
//! [`FORWARD_PEERS_MAX`] that came after them; and those whose port is closed (an
//! ICMP error says so), lest the guest reach who has it next.

use std::net::SocketAddr;

use super::local::Local;
use super::peers::{Room, Via};
use super::udp::UdpFlow;
use super::{Ctx, Errno, FlowId, Next};
use crate::arena::Slot;
use crate::config::NetConfig;
use crate::frame::Mac;
use crate::limits::{FORWARD_PEERS_MAX, NEIGHBOUR_FRESH, VNET_LEN};
use crate::stats::Drop;
use crate::time::Time;

/// A port of the host that leads to a mapping.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// The flow of its socket.
    pub flow: FlowId,
    /// What is sent by its socket can reach the world.
    pub speaks: bool,
}

/// Those of one mapping, oldest first.
#[derive(Debug, Default)]
pub(super) struct Ports(Vec<Port>);

impl Ports {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How the guest speaks to whom it has not heard of.
    fn speaker(&self) -> Via {
        self.0
            .iter()
            .find(|port| port.speaks)
            .map_or(Via::Own, |port| Via::Port(port.flow, Local::ANY))
    }
}

/// Which way a datagram of the guest goes.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Where to.
    pub host: SocketAddr,
    /// By which socket, and from where.
    pub via: Via,
}

/// In the place of a MAC: that of no one host.
const UNKNOWN: Mac = [0xff; 6];
/// Where ports begin that stand in for others: those that RFC 6335 leaves to whoever needs one.
const STAND_IN: u16 = 49152;
const _: () = assert!(FORWARD_PEERS_MAX < (u16::MAX - STAND_IN) as usize, "one is always free");

impl UdpFlow {
    /// A mapping that the guest has not sent from yet, and so without a socket.
    pub fn forwarded(room: &Room) -> Self {
        Self { own: false, ..Self::new(UNKNOWN, room) }
    }

    /// Whether it has a socket of its own.
    pub fn has_socket(&self) -> bool {
        self.own
    }

    /// Whether ports lead here.
    pub fn is_forwarded(&self) -> bool {
        !self.ports.is_empty()
    }

    /// Whether nothing has come of it yet: no socket, no port.
    pub fn is_new(&self) -> bool {
        !self.own && self.ports.is_empty()
    }

    /// A port leads here from now on. Its peers take their places from `room`.
    pub fn attach(&mut self, port: Port, room: &Room) {
        self.peers.open(room);
        self.ports.0.push(port);
    }

    /// A port does not lead here any more.
    pub fn detach(&mut self, flow: FlowId, now: Time) -> Next {
        self.ports.0.retain(|port| port.flow != flow);
        self.peers.forget_port(flow);
        if self.ports.is_empty() && !self.own {
            return Next::Close { reset: false };
        }
        self.used = now;
        self.alive()
    }

    /// The way to a peer that has come by itself, or that the guest has sent to before.
    pub fn answer(&mut self, to: SocketAddr, now: Time) -> Option<Route> {
        if self.ports.is_empty() {
            return None;
        }
        let (host, via) = self.peers.named(to, now)?;
        Some(Route { host, via })
    }

    /// The way to anybody else.
    pub fn route(&self, host: SocketAddr) -> Route {
        Route { host, via: self.ports.speaker() }
    }

    /// Gives a name to a peer that has come by itself; `None` (counted): it may not, or cannot be answered.
    pub(super) fn admit(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: SocketAddr,
        via: Via,
        name: impl FnOnce(&NetConfig) -> Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        if via == Via::Own {
            ctx.stats.drop(Drop::Unsolicited);
            return None;
        }
        let Some(name) = name(ctx.net) else {
            ctx.stats.drop(Drop::Forbidden);
            return None;
        };
        // Its own port first. Others from there on, so that those who look for one do not all begin at one place.
        let others = (0..=u16::MAX - STAND_IN).map(|n| name.port().wrapping_add(n) | STAND_IN);
        let shown = std::iter::once(name.port())
            .chain(others)
            .map(|port| SocketAddr::new(name.ip(), port))
            .find(|shown| self.peers.is_free(*shown))?;
        self.peers.note(from, via, shown, ctx.now);
        Some(shown)
    }

    /// A socket failed: the mapping's own is made anew when it is needed next, if there was no room for it.
    pub(super) fn lost_socket(&mut self, via: Via, errno: Errno) {
        if via == Via::Own
            && matches!(errno.0, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
        {
            self.own = false;
        }
    }

    /// Whether it is known where the guest is.
    pub(super) fn is_resolved(&self) -> bool {
        self.mac != UNKNOWN
    }

    /// Keeps a frame until it is known where the guest is, in the place of the one before.
    pub(super) fn hold(&mut self, ctx: &mut Ctx<'_>, frame: Slot) {
        if self.held.replace(frame).is_some() {
            ctx.stats.drop(Drop::Unresolved);
        }
    }

    /// Whether somebody must find out where the guest is: asked once until [`UdpFlow::resolved`].
    pub fn seeks(&mut self, now: Time) -> bool {
        let stale = self.is_forwarded() && now - self.mac_since >= NEIGHBOUR_FRESH;
        (self.held.is_some() || stale) && !std::mem::replace(&mut self.seeking, true)
    }

    /// Where the guest is; `None`: it does not say.
    pub fn resolved(&mut self, ctx: &mut Ctx<'_>, mac: Option<Mac>) {
        self.seeking = false;
        if let Some(mac) = mac {
            (self.mac, self.mac_since) = (mac, ctx.now);
        }
        let Some(mut frame) = self.held.take() else { return };
        match frame.bytes_mut().get_mut(VNET_LEN..VNET_LEN + self.mac.len()) {
            Some(field) if self.mac != UNKNOWN => {
                field.copy_from_slice(&self.mac);
                ctx.write(frame);
            }
            _ => ctx.stats.drop(Drop::Unresolved),
        }
    }
}
