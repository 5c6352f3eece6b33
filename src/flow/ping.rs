//! Ping: one mapping per guest address and identifier.
//!
//! An echo request leaves by a ping socket (`SOCK_DGRAM`, `IPPROTO_ICMP`), which needs no privilege where
//! `net.ipv4.ping_group_range` allows the user's group. The kernel replaces the identifier by one of
//! its own and delivers only replies that bear it; here the guest's is put back. Sequence numbers pass
//! unchanged. Where no ping socket can be had, requests are dropped and counted.
use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::IpProtocol;

use super::icmp::{self, Unreachable};
use super::key::FlowKey;
use super::peers::Peers;
use super::udp::{TTL_UNKNOWN, fits, offender};
use super::{Action, Ctx, DgramError, DgramEvent, DgramKind, FlowId, Next, SendOpts};
use crate::arena::Slot;
use crate::frame::build::{self, Out};
use crate::frame::{Mac, Pair};
use crate::limits::{IP_LEN_MAX, PING_IDLE};
use crate::stats::Drop;
use crate::time::Time;

/// Bytes of an echo header: type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;

/// One mapping.
#[derive(Debug)]
pub struct PingFlow {
    mac: Mac,
    peers: Peers,
    /// Last message either way.
    used: Time,
}

impl PingFlow {
    /// A mapping for a guest behind this MAC.
    pub fn new(mac: Mac) -> Self {
        Self { mac, peers: Peers::new(), used: Time(0) }
    }

    /// Kind of socket for a guest endpoint.
    pub fn kind(guest: &SocketAddr) -> DgramKind {
        if guest.is_ipv4() { DgramKind::Ping4 } else { DgramKind::Ping6 }
    }

    /// An echo request of the guest (the slot's range: the whole message, seen by
    /// [`icmp::echo_ident`]) to `to`, which policy has translated to `host`.
    #[expect(clippy::too_many_arguments, reason = "all of a header")]
    pub fn handle_echo(
        &mut self,
        ctx: &mut Ctx<'_>,
        id: FlowId,
        mac: Mac,
        to: SocketAddr,
        host: SocketAddr,
        slot: Slot,
        mut opts: SendOpts,
    ) -> Next {
        if opts.ttl == 0 || slot.len() < HEADER {
            ctx.stats.drop(Drop::Malformed);
            return self.alive();
        }
        // The same header length as UDP's.
        opts.df = opts.df && fits(ctx, &to, slot.len() - HEADER, 0);
        opts.segment = 0;
        self.mac = mac;
        self.used = ctx.now;
        self.peers.remember(host, to);
        ctx.actions.push(Action::DgramSend { flow: id, slot, to: host, opts });
        self.alive()
    }

    /// What the worker reports.
    pub fn handle_event(
        &mut self,
        ctx: &mut Ctx<'_>,
        _id: FlowId,
        key: &FlowKey,
        event: DgramEvent,
    ) -> Next {
        match event {
            DgramEvent::Failed(errno) => {
                icmp::refused(ctx);
                // EACCES is `ping_group_range`, of which the guest's network knows nothing.
                let why = icmp::from_errno(errno.0).filter(|why| *why == Unreachable::Net);
                if let (Some(to), Some(why)) = (self.peers.newest(), why) {
                    self.report(ctx, key, to, 0, None, why);
                }
                return Next::Close { reset: false };
            }
            DgramEvent::Refused { slot, to, errno } => {
                icmp::refused(ctx);
                if let (Some(to), Some(why)) = (self.peers.shown(to), icmp::from_errno(errno.0)) {
                    let seq = match *slot.bytes() {
                        [_, _, _, _, _, _, hi, lo, ..] => u16::from_be_bytes([hi, lo]),
                        _ => 0,
                    };
                    self.report(ctx, key, to, seq, None, why);
                }
            }
            DgramEvent::Received { slot, from, ttl, tos, .. } => {
                self.deliver(ctx, key, slot, from, ttl, tos);
            }
            DgramEvent::Error(error) => self.handle_error(ctx, key, &error),
        }
        self.alive()
    }

    /// The deadline has come (or a little earlier).
    pub fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) -> Next {
        if ctx.now - self.used >= PING_IDLE {
            return Next::Close { reset: false };
        }
        self.alive()
    }

    fn alive(&self) -> Next {
        Next::Live(Some(self.used + PING_IDLE))
    }

    fn deliver(
        &mut self,
        ctx: &mut Ctx<'_>,
        key: &FlowKey,
        mut slot: Slot,
        from: SocketAddr,
        ttl: Option<u8>,
        tos: u8,
    ) {
        let Some(shown) = self.peers.shown(SocketAddr::new(from.ip(), 0)) else {
            return ctx.stats.drop(Drop::Unsolicited);
        };
        let guest = key.guest();
        let Some(pair) = Pair::new(shown.ip(), guest.ip()) else {
            return ctx.stats.drop(Drop::Malformed);
        };
        let (proto, reply) = match guest.ip() {
            IpAddr::V4(_) => (IpProtocol::Icmp, 0),
            IpAddr::V6(_) => (IpProtocol::Icmpv6, 129),
        };
        let message = slot.bytes_mut();
        // Ping sockets deliver extended echo replies (RFC 8335) as well.
        if message.len() < HEADER || message.len() > IP_LEN_MAX - 20 || message[0] != reply {
            return ctx.stats.drop(Drop::Malformed);
        }
        message[4..6].copy_from_slice(&guest.port().to_be_bytes());
        icmp::seal(message, pair);
        self.used = ctx.now;
        let out = Out {
            eth_src: ctx.net.gateway_mac,
            eth_dst: self.mac,
            pair,
            ttl: ttl.unwrap_or(TTL_UNKNOWN),
            tos,
            df: false,
        };
        build::ip(&mut slot, &out, proto);
        ctx.write(slot);
    }

    fn handle_error(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey, error: &DgramError) {
        let Some(shown) = self.peers.shown(SocketAddr::new(error.to.ip(), 0)) else {
            return ctx.stats.drop(Drop::Unsolicited);
        };
        let Some(why) = icmp::translate(error) else { return };
        self.report(ctx, key, shown, error.echo_seq, offender(error, shown.ip()), why);
    }

    /// Tells the guest what became of the echo request with this sequence number.
    fn report(
        &self,
        ctx: &mut Ctx<'_>,
        key: &FlowKey,
        to: SocketAddr,
        seq: u16,
        from: Option<IpAddr>,
        why: Unreachable,
    ) {
        let guest = key.guest();
        let (proto, kind) = if guest.is_ipv4() { (1, 8) } else { (58, 128) };
        let mut header = [0; HEADER];
        header[0] = kind;
        header[4..6].copy_from_slice(&guest.port().to_be_bytes());
        header[6..8].copy_from_slice(&seq.to_be_bytes());
        icmp::about(ctx, self.mac, guest, to, proto, &header, from, why);
    }
}
