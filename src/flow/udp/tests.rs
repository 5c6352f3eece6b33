//! One mapping on a bench.

use super::*;
use crate::flow::Errno;
use crate::flow::key::Proto;
use crate::flow::testing::Around;
use crate::frame::{self, Ip, L3, vnet};
use crate::limits::{HEADROOM, UDP_PEERS_MAX};
use smoltcp::wire::IpProtocol;

const ID: FlowId = FlowId { index: 3, generation: 1 };
const MAC: Mac = [2, 0, 0, 0, 0, 9];
const OPTS: SendOpts = SendOpts { ttl: 64, tos: 0x28, df: true, segment: 0, local: Local::ANY };

/// One mapping of 10.0.2.100:5000, and everything around it.
struct Bed {
    around: Around,
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
            around: Around::new(MAC, Time(1000)),
            key: FlowKey::guest_only(Proto::Udp, at(guest)),
            flow: UdpFlow::new([0xff; 6], &Room::new(9999, [1, 2])),
        }
    }

    fn slot(&self, len: usize) -> Slot {
        let mut slot = self.around.pools.large.take().unwrap();
        slot.set_range(HEADROOM, len);
        slot
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut UdpFlow, &mut Ctx<'_>, &FlowKey) -> R) -> R {
        f(&mut self.flow, &mut self.around.ctx(), &self.key)
    }

    /// A datagram of the guest; what is sent to the host of it.
    fn send(&mut self, to: &str, host: &str, len: usize, opts: SendOpts) -> Option<SendOpts> {
        let slot = self.slot(len);
        let (to, host) = (at(to), at(host));
        let next = self.with(|f, c, _| {
            f.handle_datagram(c, ID, MAC, to, Route { host, via: Via::Own }, slot, opts)
        });
        assert!(matches!(next, Next::Live(Some(_))));
        match self.around.actions.pop()? {
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
        self.event(DgramEvent::Received {
            slot,
            from,
            local: Local::ANY,
            ttl: Some(7),
            tos: 3,
            segment: 0,
        });
        self.written()
    }

    fn written(&mut self) -> Option<Slot> {
        match self.around.actions.pop()? {
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
    assert_eq!(bed.around.stats.dropped(Drop::Unsolicited), 4);
    // The same mapping serves another peer.
    bed.send("198.51.100.8:53", "198.51.100.8:53", 10, OPTS);
    assert!(bed.receive("198.51.100.8:53", 0).is_some());
    assert!(bed.receive("198.51.100.7:53", 0).is_some());
    assert_eq!(bed.around.pools.large.lent(), 0);
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
    assert_eq!(bed.around.stats.dropped(Drop::Malformed), 2);
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
    assert_eq!(bed.around.stats.dropped(Drop::Malformed), 1);
}

fn error(to: &str, icmp: (u8, u8), offender: &str) -> DgramEvent {
    DgramEvent::Error(DgramError {
        errno: Errno(libc::ECONNREFUSED),
        icmp: Some(icmp),
        mtu: 1300,
        offender: Some(offender.parse().unwrap()),
        to: at(to),
        local: Local::ANY,
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
        bed.event(DgramEvent::Refused { slot, to, local: Local::ANY, errno: Errno(errno) });
        let written = bed.written();
        let got = written.map(|slot| slot.bytes()[ip(&slot).start + 1]);
        assert_eq!(got, code, "{errno}");
    }
    assert_eq!(bed.around.stats.dropped(Drop::HostRefused), 6);
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
    bed.around.now = bed.around.now + UDP_IDLE;
    bed.around.now.0 -= 1;
    let due = Time(1000) + UDP_IDLE;
    assert_eq!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Live(Some(due)));
    assert!(bed.receive("198.51.100.7:7", 1).is_some());
    bed.around.now = due;
    assert!(matches!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Live(Some(_))));
    bed.around.now = due + UDP_IDLE;
    assert_eq!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Close { reset: false });
}

#[test]
fn queries_end_within_seconds() {
    let mut bed = Bed::new();
    bed.send("198.51.100.7:53", "198.51.100.7:53", 10, OPTS);
    bed.around.now = bed.around.now + UDP_DNS_IDLE;
    bed.around.now.0 -= 1;
    assert!(matches!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Live(_)));
    // An answer, and from then on silence.
    assert!(bed.receive("198.51.100.7:53", 1).is_some());
    bed.around.now = bed.around.now + UDP_DNS_IDLE;
    assert_eq!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Close { reset: false });
    // A mapping that sends elsewhere as well is no resolver's.
    bed.send("198.51.100.7:123", "198.51.100.7:123", 10, OPTS);
    bed.send("198.51.100.7:53", "198.51.100.7:53", 10, OPTS);
    bed.around.now = bed.around.now + UDP_DNS_IDLE;
    assert!(matches!(bed.with(|f, c, _| f.handle_timeout(c)), Next::Live(_)));
}

#[test]
fn a_run_goes_to_the_guest_as_one_frame() {
    let mut bed = Bed::new();
    bed.send("198.51.100.7:7", "198.51.100.7:7", 10, OPTS);
    let (slot, from) = (bed.slot(1000), at("198.51.100.7:7"));
    bed.event(DgramEvent::Received {
        slot,
        from,
        local: Local::ANY,
        ttl: None,
        tos: 0,
        segment: 300,
    });
    let slot = bed.written().unwrap();
    let header = frame::parse(slot.bytes()).unwrap().vnet;
    assert_eq!((header.gso_type, header.gso_size), (vnet::GSO_UDP_L4, 300));
    assert_eq!(ip(&slot).ttl, TTL_UNKNOWN);
}
