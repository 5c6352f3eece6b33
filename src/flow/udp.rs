//! UDP: one mapping per guest endpoint.
//!
//! # Theory of operation
//!
//! A guest's (address, port) has one host socket for all it talks to (endpoint-independent mapping, RFC 4787
//! REQ-1), and hears only from endpoints it has sent to ([`Peers`]). Datagrams pass as they are: in either
//! direction the slot that the kernel filled is the slot it takes the bytes from.
//!
//! Ports of the host may lead to the guest's endpoint; what changes then is in [`forward`](super::forward).
//!
//! What the host's network says about a datagram (the socket's error queue), or the host's kernel
//! when it refuses one, reaches the guest as the ICMP error it would have seen itself.
use std::net::{IpAddr, SocketAddr};

use super::delivery::Head;
use super::forward::{Ports, Route};
use super::icmp::{self, Unreachable};
use super::key::FlowKey;
use super::local::Local;
use super::openings::Loan;
use super::peers::{Peers, Room, Via};
use super::{Action, Ctx, DgramError, DgramEvent, DgramKind, FlowId, Next, Place, SendOpts};
use crate::arena::Slot;
use crate::config::NetConfig;
use crate::frame::build::{self, Out};
use crate::frame::{Mac, Pair};
use crate::limits::{IP_LEN_MAX, UDP_DNS_IDLE, UDP_IDLE, UDP_RUN_MAX};
use crate::stats::Drop;
use crate::time::{Millis, Time};

/// Where resolvers listen.
const DNS_PORT: u16 = 53;
/// Bytes of a UDP header.
const HEADER: usize = 8;
/// TTL of a datagram to the guest when its own is not known.
pub(super) const TTL_UNKNOWN: u8 = 64;

/// One mapping.
#[derive(Debug)]
pub struct UdpFlow {
    pub(super) mac: Mac,
    /// When it was last seen, or heard of.
    pub(super) mac_since: Time,
    /// Somebody finds out where the guest is.
    pub(super) seeking: bool,
    /// Waits for that.
    pub(super) held: Option<Slot>,
    pub(super) peers: Peers,
    /// Last datagram either way.
    pub(super) used: Time,
    /// The guest has sent to nothing but port 53.
    pub(super) only_dns: bool,
    /// There is a socket of its own: always, unless ports lead here.
    pub(super) own: bool,
    /// Ports of the host that lead here.
    pub(super) ports: Ports,
    /// The newest frame to the guest.
    pub(super) newest: Place,
    /// A credit that goes back when whom it was made for has answered. Kept by the stack.
    pub loan: Option<Loan>,
}

impl UdpFlow {
    /// A mapping for a guest behind this MAC.
    pub fn new(mac: Mac, room: &Room) -> Self {
        Self {
            mac,
            mac_since: Time(0),
            seeking: false,
            held: None,
            peers: Peers::new(room),
            used: Time(0),
            only_dns: true,
            own: true,
            ports: Ports::default(),
            newest: Place::default(),
            loan: None,
        }
    }

    /// Kind of socket for a guest endpoint.
    pub fn kind(guest: &SocketAddr) -> DgramKind {
        if guest.is_ipv4() { DgramKind::Udp4 } else { DgramKind::Udp6 }
    }

    /// A datagram of the guest to `to`, which goes this way.
    #[expect(clippy::too_many_arguments, reason = "all of a header")]
    pub fn handle_datagram(
        &mut self,
        ctx: &mut Ctx<'_>,
        id: FlowId,
        mac: Mac,
        to: SocketAddr,
        route: Route,
        slot: Slot,
        mut opts: SendOpts,
    ) -> Next {
        let Some(segment) = run(slot.len(), opts.segment) else {
            ctx.stats.drop(Drop::Malformed);
            return self.alive();
        };
        if opts.ttl == 0 {
            ctx.stats.drop(Drop::Malformed);
            return self.alive();
        }
        opts.segment = segment;
        opts.df = opts.df && fits(ctx, &to, slot.len(), segment);
        (self.mac, self.mac_since) = (mac, ctx.now);
        self.used = ctx.now;
        self.only_dns &= to.port() == DNS_PORT;
        let Route { host, via } = route;
        self.peers.note(host, via, to, ctx.now);
        let flow;
        (flow, opts.local) = match via {
            Via::Own => (id, Local::ANY),
            Via::Port(port, local) => (port, local),
        };
        if flow == id && !std::mem::replace(&mut self.own, true) {
            ctx.actions.push(Action::DgramOpen { flow: id, kind: Self::kind(&to) });
        }
        ctx.actions.push(Action::DgramSend { flow, slot, to: host, opts });
        self.alive()
    }

    /// What the worker reports of one of the sockets, and of the address that it is about. `name` says what a peer is called that has come to a port of the
    /// host by itself.
    pub fn handle_event(
        &mut self,
        ctx: &mut Ctx<'_>,
        key: &FlowKey,
        via: Via,
        event: DgramEvent,
        name: impl FnOnce(&NetConfig, SocketAddr) -> Option<SocketAddr>,
    ) -> Next {
        match event {
            DgramEvent::Failed(errno) => {
                icmp::refused(ctx);
                if !self.ports.is_empty() {
                    self.lost_socket(via, errno);
                    return self.alive();
                }
                if let (Some(to), Some(why)) = (self.peers.newest(), icmp::from_errno(errno.0)) {
                    self.report(ctx, key, to, 0, None, why);
                }
                return Next::Close { reset: false };
            }
            DgramEvent::Refused { slot, to, errno, .. } => {
                icmp::refused(ctx);
                // Too big: the error queue tells that too, and knows the MTU. Port unreachable: about an
                // earlier datagram; a socket without a peer learns of it in no other way.
                let why = icmp::from_errno(errno.0).filter(|why| *why != Unreachable::Port);
                if let (Some(to), Some(why)) = (self.peers.shown_via(to, via, ctx.now), why) {
                    self.report(ctx, key, to, slot.len(), None, why);
                }
            }
            DgramEvent::Received { slot, from, ttl, tos, segment, .. } => {
                let shown = self.peers.shown_via(from, via, ctx.now);
                if let Some(shown) =
                    shown.or_else(|| self.admit(ctx, from, via, |net| name(net, from)))
                {
                    self.deliver(ctx, key, slot, shown, ttl, tos, segment);
                }
            }
            DgramEvent::Error(error) => self.handle_error(ctx, key, via, &error),
        }
        self.alive()
    }

    /// The deadline has come (or a little earlier).
    pub fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) -> Next {
        if !self.ports.is_empty() {
            self.peers.forget_idle(ctx.now, UDP_IDLE);
        } else if ctx.now - self.used >= self.idle() {
            return Next::Close { reset: false };
        }
        self.alive()
    }

    pub(super) fn alive(&self) -> Next {
        if self.ports.is_empty() {
            return Next::Live(Some(self.used + self.idle()));
        }
        Next::Live(self.peers.oldest().map(|used| used + UDP_IDLE))
    }

    /// How long it may be silent. A resolver has a port of its own for each query (RFC 5452): mappings that
    /// are over with the answer, and of which there may be many.
    fn idle(&self) -> Millis {
        if self.only_dns { UDP_DNS_IDLE } else { UDP_IDLE }
    }

    #[expect(clippy::too_many_arguments, reason = "all of a header")]
    fn deliver(
        &mut self,
        ctx: &mut Ctx<'_>,
        key: &FlowKey,
        mut slot: Slot,
        shown: SocketAddr,
        ttl: Option<u8>,
        tos: u8,
        segment: u16,
    ) {
        let guest = key.guest();
        let Some(pair) = Pair::new(shown.ip(), guest.ip()) else {
            return ctx.stats.drop(Drop::Malformed);
        };
        // IPv6 jumbograms (RFC 2675) have no place here.
        let header = if guest.is_ipv4() { pair.header_len() + HEADER } else { HEADER };
        if slot.len() > IP_LEN_MAX - header {
            return ctx.stats.drop(Drop::Malformed);
        }
        self.used = ctx.now;
        let out = Out {
            eth_src: ctx.net.gateway_mac,
            eth_dst: self.mac,
            pair,
            ttl: ttl.unwrap_or(TTL_UNKNOWN),
            tos,
            df: false,
        };
        let head = Head { out, from: shown.port(), to: guest.port() };
        if !self.is_resolved() {
            build::udp(&mut slot, &out, head.from, head.to, segment);
            return self.hold(ctx, slot);
        }
        // What is longer than the guest's MTU came in fragments, and could not leave the guest again in a run.
        let most = usize::from(ctx.net.mtu).saturating_sub(pair.header_len() + HEADER);
        ctx.actions.deliver(&mut self.newest, head, slot, segment, most);
    }

    fn handle_error(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey, via: Via, error: &DgramError) {
        // "Larger than the MTU of our own link" carries the peer of the socket, and this one has none.
        let shown = match error.to.port() {
            0 => None,
            _ => self.peers.shown_via(error.to, via, ctx.now),
        };
        // Nor is it said then which address it left from, or by which link.
        let shown = shown.or_else(|| self.peers.recent_at(error.to, via));
        let Some(shown) = shown else {
            return ctx.stats.drop(Drop::Unsolicited);
        };
        let Some(why) = icmp::translate(error) else { return };
        self.report(ctx, key, shown, 0, offender(error, shown.ip()), why);
        if why == Unreachable::Port && via != Via::Own {
            // Whoever had that port has gone; who has it next has not come by itself.
            self.peers.forget(error.to, via);
        }
    }

    /// Tells the guest what became of a datagram of `len` bytes (0: not known) to `to`.
    fn report(
        &self,
        ctx: &mut Ctx<'_>,
        key: &FlowKey,
        to: SocketAddr,
        len: usize,
        from: Option<IpAddr>,
        why: Unreachable,
    ) {
        let guest = key.guest();
        let mut header = [0; HEADER];
        header[0..2].copy_from_slice(&guest.port().to_be_bytes());
        header[2..4].copy_from_slice(&to.port().to_be_bytes());
        header[4..6].copy_from_slice(&((HEADER + len) as u16).to_be_bytes());
        icmp::about(ctx, self.mac, guest, to, 17, &header, from, why);
    }
}

/// Who has sent an ICMP error, as the guest knows it: the peer itself goes by the name that it has
/// for the guest.
pub(super) fn offender(error: &DgramError, shown: IpAddr) -> Option<IpAddr> {
    match error.offender {
        Some(offender) if offender == error.to.ip() => Some(shown),
        other => other,
    }
}

/// Whether each datagram fits the guest's MTU. What does not, the guest has sent in fragments, so it
/// may be fragmented on the host's side as well; "don't fragment" can only have meant the pieces (and
/// IPv6 says it always).
pub(super) fn fits(ctx: &Ctx<'_>, to: &SocketAddr, len: usize, segment: u16) -> bool {
    let datagram = if segment == 0 { len } else { usize::from(segment) };
    let headers = if to.is_ipv4() { 20 } else { 40 } + HEADER;
    datagram + headers <= usize::from(ctx.net.mtu)
}

/// Checks the segment size of a run of `len` bytes, which the guest can have made up: 0 when it is
/// a single datagram after all; `None` when it is more datagrams than a kernel would put in one frame.
fn run(len: usize, segment: u16) -> Option<u16> {
    if segment == 0 || len <= usize::from(segment) {
        return Some(0);
    }
    (len.div_ceil(usize::from(segment)) <= UDP_RUN_MAX).then_some(segment)
}

#[cfg(test)]
mod tests;
