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

use super::forward::{Ports, Route};
use super::icmp::{self, Unreachable};
use super::key::FlowKey;
use super::peers::{Peers, Room, Via};
use super::{Action, Ctx, DgramError, DgramEvent, DgramKind, FlowId, Next, SendOpts};
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
        let flow = match via {
            Via::Own => id,
            Via::Port(port) => port,
        };
        if flow == id && !std::mem::replace(&mut self.own, true) {
            ctx.actions.push(Action::DgramOpen { flow: id, kind: Self::kind(&to) });
        }
        ctx.actions.push(Action::DgramSend { flow, slot, to: host, opts });
        self.alive()
    }

    /// What the worker reports of one of the sockets. `name` says what a peer is called that has come to a port of the
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
            DgramEvent::Refused { slot, to, errno } => {
                icmp::refused(ctx);
                // Too big: the error queue tells that too, and knows the MTU. Port unreachable: about an
                // earlier datagram; a socket without a peer learns of it in no other way.
                let why = icmp::from_errno(errno.0).filter(|why| *why != Unreachable::Port);
                if let (Some(to), Some(why)) = (self.peers.shown_via(to, via, ctx.now), why) {
                    self.report(ctx, key, to, slot.len(), None, why);
                }
            }
            DgramEvent::Received { slot, from, ttl, tos, segment } => {
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
        build::udp(&mut slot, &out, shown.port(), guest.port(), segment);
        self.write(ctx, slot);
    }

    fn handle_error(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey, via: Via, error: &DgramError) {
        // "Larger than the MTU of our own link" carries the peer of the socket, and this one has none.
        let shown = match error.to.port() {
            0 => self.peers.recent_at(error.to.ip()),
            _ => self.peers.shown_via(error.to, via, ctx.now),
        };
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
mod tests {
    use super::*;
    use crate::arena::Pools;
    use crate::config::NetConfig;
    use crate::flow::key::Proto;
    use crate::flow::{Actions, Errno};
    use crate::frame::{self, Ip, L3, vnet};
    use crate::limits::{HEADROOM, UDP_PEERS_MAX};
    use crate::stats::Stats;
    use smoltcp::wire::IpProtocol;

    const ID: FlowId = FlowId { index: 3, generation: 1 };
    const MAC: Mac = [2, 0, 0, 0, 0, 9];
    const OPTS: SendOpts = SendOpts { ttl: 64, tos: 0x28, df: true, segment: 0 };

    /// One mapping of 10.0.2.100:5000, and everything around it.
    struct Bed {
        net: NetConfig,
        pools: Pools,
        actions: Actions,
        stats: Stats,
        now: Time,
        key: FlowKey,
        flow: UdpFlow,
    }

    fn at(addr: &str) -> SocketAddr {
        addr.parse().unwrap()
    }

    impl Bed {
        fn new() -> Self {
            Self::of("10.0.2.100:5000")
        }

        fn of(guest: &str) -> Self {
            Self {
                net: NetConfig::native(),
                pools: Pools::new().unwrap(),
                actions: Actions::new(),
                stats: Stats::default(),
                now: Time(1000),
                key: FlowKey::guest_only(Proto::Udp, at(guest)),
                flow: UdpFlow::new([0xff; 6], &Room::new(9999, [1, 2])),
            }
        }

        fn slot(&self, len: usize) -> Slot {
            let mut slot = self.pools.large.take().unwrap();
            slot.set_range(HEADROOM, len);
            slot
        }

        fn with<R>(&mut self, f: impl FnOnce(&mut UdpFlow, &mut Ctx<'_>, &FlowKey) -> R) -> R {
            let mut ctx = Ctx {
                net: &self.net,
                pools: &self.pools,
                actions: &mut self.actions,
                stats: &mut self.stats,
                now: self.now,
                guest_mac: MAC,
            };
            f(&mut self.flow, &mut ctx, &self.key)
        }

        /// A datagram of the guest; what is sent to the host of it.
        fn send(&mut self, to: &str, host: &str, len: usize, opts: SendOpts) -> Option<SendOpts> {
            let slot = self.slot(len);
            let (to, host) = (at(to), at(host));
            let next = self.with(|f, c, _| {
                f.handle_datagram(c, ID, MAC, to, Route { host, via: Via::Own }, slot, opts)
            });
            assert!(matches!(next, Next::Live(Some(_))));
            match self.actions.pop()? {
                Action::DgramSend { flow: ID, slot, to, opts } if to == host => {
                    assert_eq!(slot.len(), len);
                    Some(opts)
                }
                other => panic!("{other:?}"),
            }
        }

        fn event(&mut self, event: DgramEvent) -> Next {
            self.with(|f, c, k| f.handle_event(c, k, Via::Own, event, |_, _| None))
        }

        /// A datagram for the guest; its frame.
        fn receive(&mut self, from: &str, len: usize) -> Option<Slot> {
            let slot = self.slot(len);
            let from = at(from);
            self.event(DgramEvent::Received { slot, from, ttl: Some(7), tos: 3, segment: 0 });
            self.written()
        }

        fn written(&mut self) -> Option<Slot> {
            match self.actions.pop()? {
                Action::TapWrite { slot, keep: None } => Some(slot),
                other => panic!("{other:?}"),
            }
        }
    }

    fn ip(slot: &Slot) -> Ip {
        match frame::parse(slot.bytes()).unwrap().l3 {
            L3::Ip(ip) => ip,
            L3::Arp { .. } => panic!("ARP"),
        }
    }

    #[test]
    fn a_reply_comes_from_where_the_guest_has_sent_to() {
        let mut bed = Bed::new();
        assert_eq!(bed.send("10.0.2.2:53", "127.0.0.1:53", 10, OPTS), Some(OPTS));
        let slot = bed.receive("127.0.0.1:53", 20).unwrap();
        let ip = ip(&slot);
        assert_eq!((ip.src, ip.dst), (at("10.0.2.2:0").ip(), at("10.0.2.100:0").ip()));
        assert_eq!((ip.ttl, ip.tos, ip.df, ip.proto), (7, 3, false, IpProtocol::Udp));
        let udp = &slot.bytes()[ip.start..ip.end];
        assert_eq!(udp[..6], [0, 53, 0x13, 0x88, 0, 28]);
        assert_eq!(frame::parse(slot.bytes()).unwrap().eth_dst, MAC);
    }

    #[test]
    fn other_endpoints_are_filtered() {
        let mut bed = Bed::new();
        bed.send("198.51.100.7:53", "198.51.100.7:53", 10, OPTS);
        for from in ["198.51.100.7:54", "198.51.100.8:53", "127.0.0.1:53", "[2001:db8::1]:53"] {
            assert!(bed.receive(from, 20).is_none(), "{from}");
        }
        assert_eq!(bed.stats.dropped(Drop::Unsolicited), 4);
        // The same mapping serves another peer.
        bed.send("198.51.100.8:53", "198.51.100.8:53", 10, OPTS);
        assert!(bed.receive("198.51.100.8:53", 0).is_some());
        assert!(bed.receive("198.51.100.7:53", 0).is_some());
        assert_eq!(bed.pools.large.lent(), 0);
    }

    #[test]
    fn the_peer_silent_longest_makes_room() {
        let mut bed = Bed::new();
        for port in 1..=UDP_PEERS_MAX + 1 {
            let to = format!("198.51.100.7:{port}");
            bed.send(&to, &to, 1, OPTS);
        }
        assert!(bed.receive("198.51.100.7:1", 1).is_none());
        assert!(bed.receive("198.51.100.7:2", 1).is_some());
        assert!(bed.receive(&format!("198.51.100.7:{}", UDP_PEERS_MAX + 1), 1).is_some());
    }

    #[test]
    fn largest_datagrams() {
        let mut bed = Bed::new();
        bed.send("198.51.100.7:7", "198.51.100.7:7", 65507, OPTS);
        let slot = bed.receive("198.51.100.7:7", 65507).unwrap();
        let header = ip(&slot);
        assert_eq!(header.end - header.start, 65515);
        assert!(bed.receive("198.51.100.7:7", 65508).is_none());
        let mut bed = Bed::of("[fd00::100]:5000");
        bed.send("[2001:db8::1]:7", "[2001:db8::1]:7", 65527, OPTS);
        let slot = bed.receive("[2001:db8::1]:7", 65527).unwrap();
        let header = ip(&slot);
        assert_eq!(header.end - header.start, 65535);
        assert!(bed.receive("[2001:db8::1]:7", 65528).is_none());
    }

    #[test]
    fn runs_are_checked() {
        let mut bed = Bed::new();
        let mut sent = |len, segment| {
            let opts = SendOpts { segment, ..OPTS };
            bed.send("198.51.100.7:7", "198.51.100.7:7", len, opts).map(|o| (o.segment, o.df))
        };
        assert_eq!(sent(1000, 100), Some((100, true)));
        // What is one datagram is no run.
        assert_eq!(sent(100, 100), Some((0, true)));
        assert_eq!(sent(0, 100), Some((0, true)));
        // 128 datagrams, and what no kernel makes.
        assert_eq!(sent(128, 1), Some((1, true)));
        assert_eq!(sent(129, 1), None);
        assert_eq!(sent(65507, 511), None);
        assert_eq!(sent(65507, 512), Some((512, true)));
        assert_eq!(bed.stats.dropped(Drop::Malformed), 2);
    }

    #[test]
    fn dont_fragment_holds_for_what_fits_the_guests_mtu() {
        let mut bed = Bed::new();
        let to = "198.51.100.7:7";
        let df = |o: Option<SendOpts>| o.map(|o| o.df);
        assert_eq!(df(bed.send(to, to, 1472, OPTS)), Some(true));
        assert_eq!(df(bed.send(to, to, 1473, OPTS)), Some(false));
        assert_eq!(df(bed.send(to, to, 100, SendOpts { df: false, ..OPTS })), Some(false));
        let run = SendOpts { segment: 1472, ..OPTS };
        assert_eq!(df(bed.send(to, to, 60_000, run)), Some(true));
        let mut bed = Bed::of("[fd00::100]:5000");
        let to = "[2001:db8::1]:7";
        assert_eq!(df(bed.send(to, to, 1452, OPTS)), Some(true));
        assert_eq!(df(bed.send(to, to, 1453, OPTS)), Some(false));
    }

    #[test]
    fn a_ttl_of_zero_goes_nowhere() {
        let mut bed = Bed::new();
        let opts = SendOpts { ttl: 0, ..OPTS };
        assert_eq!(bed.send("198.51.100.7:7", "198.51.100.7:7", 10, opts), None);
        assert_eq!(bed.stats.dropped(Drop::Malformed), 1);
    }

    fn error(to: &str, icmp: (u8, u8), offender: &str) -> DgramEvent {
        DgramEvent::Error(DgramError {
            errno: Errno(libc::ECONNREFUSED),
            icmp: Some(icmp),
            mtu: 1300,
            offender: Some(offender.parse().unwrap()),
            to: at(to),
            echo_seq: 0,
        })
    }

    #[test]
    fn errors_reach_the_guest() {
        let mut bed = Bed::new();
        bed.send("10.0.2.2:9", "127.0.0.1:9", 10, OPTS);
        bed.send("198.51.100.7:9", "198.51.100.7:9", 10, OPTS);
        for (to, icmp, offender, source, quoted) in [
            ("127.0.0.1:9", (3, 3), "127.0.0.1", "10.0.2.2", "10.0.2.2"),
            ("198.51.100.7:9", (3, 3), "198.51.100.7", "198.51.100.7", "198.51.100.7"),
            ("198.51.100.7:9", (11, 0), "203.0.113.1", "203.0.113.1", "198.51.100.7"),
            ("198.51.100.7:9", (3, 4), "203.0.113.1", "203.0.113.1", "198.51.100.7"),
        ] {
            bed.event(error(to, icmp, offender));
            let slot = bed.written().unwrap();
            let ip = ip(&slot);
            let message = &slot.bytes()[ip.start..ip.end];
            assert_eq!(ip.src, source.parse::<IpAddr>().unwrap());
            assert_eq!((message[0], message[1]), icmp);
            assert_eq!(IpAddr::from([message[24], message[25], message[26], message[27]]), {
                quoted.parse::<IpAddr>().unwrap()
            });
            assert_eq!(message[28..32], [0x13, 0x88, 0, 9]);
        }
        // About an endpoint that the guest has not sent to.
        bed.event(error("198.51.100.9:9", (3, 3), "198.51.100.9"));
        assert!(bed.written().is_none());
        // Our own kernel names no port: the peer that this is about is found by its address.
        for (to, told) in [("198.51.100.7:0", true), ("198.51.100.9:0", false)] {
            bed.event(error(to, (3, 4), "198.51.100.7"));
            let quoted = bed.written().map(|slot| {
                let message = &slot.bytes()[ip(&slot).start..];
                <[u8; 2]>::try_from(&message[30..32]).unwrap()
            });
            assert_eq!(quoted, told.then_some([0, 9]), "{to}");
        }
    }

    #[test]
    fn a_refusal_is_told_unless_it_is_about_another_datagram() {
        let mut bed = Bed::new();
        bed.send("198.51.100.7:9", "198.51.100.7:9", 10, OPTS);
        for (errno, code) in [
            (libc::ENETUNREACH, Some(0)),
            (libc::EHOSTUNREACH, Some(1)),
            (libc::EPERM, Some(13)),
            (libc::ECONNREFUSED, None),
            (libc::EMSGSIZE, None),
            (libc::EAGAIN, None),
        ] {
            let (slot, to) = (bed.slot(10), at("198.51.100.7:9"));
            bed.event(DgramEvent::Refused { slot, to, errno: Errno(errno) });
            let written = bed.written();
            let got = written.map(|slot| slot.bytes()[ip(&slot).start + 1]);
            assert_eq!(got, code, "{errno}");
        }
        assert_eq!(bed.stats.dropped(Drop::HostRefused), 6);
    }

    #[test]
    fn no_socket_ends_the_mapping() {
        let mut bed = Bed::of("[fd00::100]:5000");
        bed.send("[2001:db8::1]:7", "[2001:db8::1]:7", 10, OPTS);
        let next = bed.event(DgramEvent::Failed(Errno(libc::EAFNOSUPPORT)));
        assert_eq!(next, Next::Close { reset: false });
        let slot = bed.written().unwrap();
        let start = ip(&slot).start;
        assert_eq!(slot.bytes()[start..start + 2], [1, 0]);
        bed.event(DgramEvent::Failed(Errno(libc::EMFILE)));
        assert!(bed.written().is_none());
    }

    #[test]
    fn ends_when_idle() {
        let mut bed = Bed::new();
        bed.send("198.51.100.7:7", "198.51.100.7:7", 10, OPTS);
        bed.now = bed.now + UDP_IDLE;
        bed.now.0 -= 1;
        let due = Time(1000) + UDP_IDLE;
        assert_eq!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Live(Some(due)));
        assert!(bed.receive("198.51.100.7:7", 1).is_some());
        bed.now = due;
        assert!(matches!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Live(Some(_))));
        bed.now = due + UDP_IDLE;
        assert_eq!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Close { reset: false });
    }

    #[test]
    fn queries_end_within_seconds() {
        let mut bed = Bed::new();
        bed.send("198.51.100.7:53", "198.51.100.7:53", 10, OPTS);
        bed.now = bed.now + UDP_DNS_IDLE;
        bed.now.0 -= 1;
        assert!(matches!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Live(_)));
        // An answer, and from then on silence.
        assert!(bed.receive("198.51.100.7:53", 1).is_some());
        bed.now = bed.now + UDP_DNS_IDLE;
        assert_eq!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Close { reset: false });
        // A mapping that sends elsewhere as well is no resolver's.
        bed.send("198.51.100.7:123", "198.51.100.7:123", 10, OPTS);
        bed.send("198.51.100.7:53", "198.51.100.7:53", 10, OPTS);
        bed.now = bed.now + UDP_DNS_IDLE;
        assert!(matches!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Live(_)));
    }

    #[test]
    fn a_run_goes_to_the_guest_as_one_frame() {
        let mut bed = Bed::new();
        bed.send("198.51.100.7:7", "198.51.100.7:7", 10, OPTS);
        let (slot, from) = (bed.slot(1000), at("198.51.100.7:7"));
        bed.event(DgramEvent::Received { slot, from, ttl: None, tos: 0, segment: 300 });
        let slot = bed.written().unwrap();
        let header = frame::parse(slot.bytes()).unwrap().vnet;
        assert_eq!((header.gso_type, header.gso_size), (vnet::GSO_UDP_L4, 300));
        assert_eq!(ip(&slot).ttl, TTL_UNKNOWN);
    }
}
