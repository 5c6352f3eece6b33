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
use super::openings::Loan;
use super::peers::{Peers, Room};
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
    /// A credit that goes back when whom it was made for has answered. Kept by the stack.
    pub loan: Option<Loan>,
}

impl PingFlow {
    /// A mapping for a guest behind this MAC.
    pub fn new(mac: Mac, room: &Room) -> Self {
        Self { mac, peers: Peers::new(room), used: Time(0), loan: None }
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
            DgramEvent::Refused { slot, to, errno, .. } => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Errno;
    use crate::flow::key::Proto;
    use crate::flow::local::Local;
    use crate::flow::testing::Around;
    use crate::frame::{self, L3, checksum};
    use crate::limits::HEADROOM;

    const ID: FlowId = FlowId { index: 3, generation: 1 };
    const MAC: Mac = [2, 0, 0, 0, 0, 9];
    const OPTS: SendOpts = SendOpts { ttl: 5, tos: 0x28, df: true, segment: 0, local: Local::ANY };

    /// One mapping with identifier 0x1234, and everything around it.
    struct Bed {
        around: Around,
        key: FlowKey,
        flow: PingFlow,
    }

    fn at(addr: &str) -> SocketAddr {
        SocketAddr::new(addr.parse().unwrap(), 0)
    }

    impl Bed {
        fn of(guest: &str) -> Self {
            let guest = SocketAddr::new(guest.parse().unwrap(), 0x1234);
            Self {
                around: Around::new(MAC, Time(1000)),
                key: FlowKey::guest_only(Proto::Ping, guest),
                flow: PingFlow::new(MAC, &Room::new(9999, [1, 2])),
            }
        }

        fn slot(&self, message: &[u8]) -> Slot {
            let mut slot = self.around.pools.large.take().unwrap();
            slot.set_range(HEADROOM, message.len());
            slot.bytes_mut().copy_from_slice(message);
            slot
        }

        fn with<R>(&mut self, f: impl FnOnce(&mut PingFlow, &mut Ctx<'_>, &FlowKey) -> R) -> R {
            f(&mut self.flow, &mut self.around.ctx(), &self.key)
        }

        fn request(&mut self, to: &str, host: &str, message: &[u8]) -> bool {
            let (slot, to, host) = (self.slot(message), at(to), at(host));
            self.with(|f, c, _| f.handle_echo(c, ID, MAC, to, host, slot, OPTS));
            match self.around.actions.pop() {
                Some(Action::DgramSend { flow: ID, slot, to, opts: OPTS }) => {
                    assert_eq!((slot.bytes(), to), (message, host));
                    true
                }
                None => false,
                other => panic!("{other:?}"),
            }
        }

        fn event(&mut self, event: DgramEvent) -> Next {
            self.with(|f, c, k| f.handle_event(c, ID, k, event))
        }

        /// Source and ICMP message of the frame that was written.
        fn written(&mut self) -> Option<(IpAddr, Vec<u8>)> {
            let Action::TapWrite { slot, keep: None } = self.around.actions.pop()? else {
                panic!()
            };
            let L3::Ip(ip) = frame::parse(slot.bytes()).unwrap().l3 else { panic!() };
            let message = slot.bytes()[ip.start..ip.end].to_vec();
            let acc = match Pair::new(ip.src, ip.dst).unwrap() {
                Pair::V4(..) => 0,
                pair @ Pair::V6(..) => checksum::pseudo_header(pair, 58, message.len() as u32),
            };
            assert_eq!(checksum::fold(checksum::sum(acc, &message)), 0xffff);
            Some((ip.src, message))
        }

        fn reply(&mut self, from: &str, message: &[u8]) -> Option<(IpAddr, Vec<u8>)> {
            let (slot, from) = (self.slot(message), at(from));
            self.event(DgramEvent::Received {
                slot,
                from,
                local: Local::ANY,
                ttl: Some(60),
                tos: 0,
                segment: 0,
            });
            self.written()
        }
    }

    #[test]
    fn the_guests_identifier_comes_back() {
        for (guest, to, host, kinds) in [
            ("10.0.2.100", "10.0.2.2", "127.0.0.1", [8, 0]),
            ("fd00::100", "2001:db8::1", "2001:db8::1", [128, 129]),
        ] {
            for data in [0, 1, 56, 1400] {
                let mut bed = Bed::of(guest);
                let mut message = vec![kinds[0], 0, 0xbe, 0xef, 0x12, 0x34, 0, 7];
                message.extend((0..data).map(|i| i as u8));
                assert!(bed.request(to, host, &message));
                message[0] = kinds[1];
                message[4..6].copy_from_slice(&[0x99, 0x99]);
                let (src, got) = bed.reply(host, &message).unwrap();
                assert_eq!(src, at(to).ip());
                assert_eq!((got[0], &got[4..8]), (kinds[1], &[0x12, 0x34, 0, 7][..]));
                assert_eq!(got[8..], message[8..]);
            }
        }
    }

    #[test]
    fn only_whole_echo_replies_of_peers_pass() {
        let mut bed = Bed::of("10.0.2.100");
        let reply = [0, 0, 0, 0, 9, 9, 0, 1];
        assert!(bed.request("198.51.100.7", "198.51.100.7", &[8, 0, 0, 0, 9, 9, 0, 1]));
        for cut in 0..8 {
            assert_eq!(bed.reply("198.51.100.7", &reply[..cut]), None);
        }
        assert_eq!(bed.around.stats.dropped(Drop::Malformed), 8);
        // An extended echo reply, and a stranger.
        assert_eq!(bed.reply("198.51.100.7", &[43, 0, 0, 0, 9, 9, 0, 1]), None);
        assert_eq!(bed.reply("198.51.100.8", &reply), None);
        assert_eq!(bed.around.stats.dropped(Drop::Unsolicited), 1);
        assert!(bed.reply("198.51.100.7", &reply).is_some());
        assert!(!bed.request("198.51.100.7", "198.51.100.7", &reply[..7]));
        assert_eq!(bed.around.pools.large.lent(), 0);
    }

    #[test]
    fn errors_name_the_request() {
        for (guest, to, kind, icmp, head) in [
            ("10.0.2.100", "198.51.100.7", 8, (11, 0), 28),
            ("fd00::100", "2001:db8::1", 128, (3, 0), 48),
        ] {
            let mut bed = Bed::of(guest);
            assert!(bed.request(to, to, &[kind, 0, 0, 0, 0x12, 0x34, 0, 7]));
            let offender = if head == 28 { "203.0.113.1" } else { "2001:db8:2::1" };
            let mut error = DgramError {
                errno: Errno(libc::EHOSTUNREACH),
                icmp: Some(icmp),
                mtu: 0,
                offender: Some(offender.parse().unwrap()),
                to: at(to),
                local: Local::ANY,
                echo_seq: 7,
            };
            bed.event(DgramEvent::Error(error));
            let (src, message) = bed.written().unwrap();
            assert_eq!((src, message[0]), (offender.parse().unwrap(), icmp.0));
            assert_eq!(message[head..], [kind, 0, 0, 0, 0x12, 0x34, 0, 7]);
            error.to = at(offender);
            bed.event(DgramEvent::Error(error));
            assert_eq!(bed.written(), None);
            // Refused by our own kernel: the gateway says so.
            let slot = bed.slot(&[kind, 0, 0, 0, 0x12, 0x34, 0, 8]);
            let errno = Errno(libc::ENETUNREACH);
            bed.event(DgramEvent::Refused { slot, to: at(to), local: Local::ANY, errno });
            let (_, message) = bed.written().unwrap();
            assert_eq!(message[head..], [kind, 0, 0, 0, 0x12, 0x34, 0, 8]);
        }
    }

    #[test]
    fn without_a_ping_socket_requests_are_dropped_quietly() {
        let mut bed = Bed::of("10.0.2.100");
        assert!(bed.request("198.51.100.7", "198.51.100.7", &[8, 0, 0, 0, 9, 9, 0, 1]));
        let next = bed.event(DgramEvent::Failed(Errno(libc::EACCES)));
        assert_eq!((next, bed.written()), (Next::Close { reset: false }, None));
        assert_eq!(bed.around.stats.dropped(Drop::HostRefused), 1);
    }

    #[test]
    fn ends_when_idle() {
        let mut bed = Bed::of("10.0.2.100");
        assert!(bed.request("198.51.100.7", "198.51.100.7", &[8, 0, 0, 0, 9, 9, 0, 1]));
        let due = Time(1000) + PING_IDLE;
        assert_eq!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Live(Some(due)));
        bed.flow.used = Time(0);
        assert!(bed.with(|f, c, _| {
            c.now = Time(0) + PING_IDLE;
            f.handle_timeout(c) == Next::Close { reset: false }
        }));
    }
}
