//! UDP ports of the host at a stack on a bench: who the guest sees, and which way its answers go.

use super::*;
use crate::config::V4Net;
use crate::flow::local::Local;
use crate::flow::{Action, DgramError, Errno, Event};
use crate::frame::{self, L3, vnet};
use crate::limits::{FORWARD_PEERS_MAX, NEIGHBOUR_FRESH, UDP_IDLE};
use crate::stack::descriptors::{Descriptors, Share};
use crate::stack::directory::{Directory, Seat};
use crate::stack::testing::*;
use crate::stats::Drop;
use crate::time::Millis;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn server() -> SocketAddr {
    SocketAddr::new(GUEST.into(), 53)
}

fn bind(bed: &mut Bed, local: &str, guest: SocketAddr) -> FlowId {
    let port = Bound { guest, local: at(local), device: false };
    let taken = bed.stack.descriptors().lend().expect("a descriptor");
    bed.stack.handle_bound(&port, taken, bed.now).expect("room")
}

/// A bed with a port that leads to [`server`], whose MAC is known.
fn open(net: NetConfig) -> (Bed, FlowId) {
    let mut bed = Bed::new(net);
    let port = bind(&mut bed, "0.0.0.0:1053", server());
    meet(&mut bed, port, server());
    (bed, port)
}

/// The guest speaks once, so that its MAC is known, and whoever it has spoken to is forgotten.
fn meet(bed: &mut Bed, port: FlowId, from: SocketAddr) {
    let to = if from.is_ipv4() { "192.0.2.99:99" } else { "[2001:db8:9::]:99" };
    bed.send(&udp(from, at(to), b"hello"));
    let [Action::DgramSend { flow, .. }] = &bed.actions()[..] else { panic!("not sent") };
    assert_eq!(*flow, port);
    bed.pass(UDP_IDLE);
}

/// What the guest gets, without the questions where it is and the advertisements.
fn heard(bed: &mut Bed) -> Vec<Vec<u8>> {
    let mut frames = bed.frames();
    frames.retain(|frame| match frame::parse(frame).unwrap().l3 {
        L3::Arp { .. } => false,
        L3::Ip(ip) => ip.ttl != 255,
    });
    frames
}

/// A datagram comes; who it is from, as the guest sees it.
fn come(bed: &mut Bed, port: FlowId, from: &str) -> SocketAddr {
    come_to(bed, port, from, Local::ANY)
}

/// The same, to an address of the host.
fn come_to(bed: &mut Bed, port: FlowId, from: &str, local: Local) -> SocketAddr {
    bed.receive_at(port, at(from), local, b"question");
    let frames = heard(bed);
    let [frame] = &frames[..] else { panic!("{} frames for {from}", frames.len()) };
    let (ip, datagram) = transport(frame);
    assert_eq!(&datagram[8..], b"question");
    assert_eq!(read(frame).0.eth_dst, GUEST_MAC);
    SocketAddr::new(ip.src, u16::from_be_bytes([datagram[0], datagram[1]]))
}

/// The guest answers; by which socket, and to whom.
fn answer(bed: &mut Bed, from: SocketAddr, to: SocketAddr) -> Option<(FlowId, SocketAddr)> {
    answer_from(bed, from, to).map(|(flow, to, _)| (flow, to))
}

/// The same, and from which address of the host.
fn answer_from(
    bed: &mut Bed,
    from: SocketAddr,
    to: SocketAddr,
) -> Option<(FlowId, SocketAddr, Local)> {
    bed.send(&udp(from, to, b"answer"));
    let mut actions = bed.actions();
    actions.retain(|action| !matches!(action, Action::TapWrite { .. }));
    let [Action::DgramSend { flow, to, slot, opts }] = &actions[..] else { return None };
    assert_eq!(slot.bytes(), b"answer");
    Some((*flow, *to, opts.local))
}

fn close(bed: &mut Bed, port: FlowId) -> Vec<FlowId> {
    bed.stack.handle_unbound(port, bed.now);
    let closed = bed.actions().into_iter().map(|action| match action {
        Action::Close { flow, reset: false } => flow,
        other => panic!("{other:?}"),
    });
    let closed: Vec<_> = closed.collect();
    for &flow in &closed {
        bed.stack.handle_event(Event::Closed { flow }, bed.now);
    }
    closed
}

#[test]
fn a_peer_is_seen_as_itself_or_as_the_gateway_and_answered() {
    let (mut bed, port) = open(NetConfig::native());
    for (peer, seen) in [
        ("198.51.100.7:4000", "198.51.100.7:4000"),
        ("127.0.0.1:5000", "10.0.2.2:5000"),
        ("10.0.2.9:6000", "10.0.2.2:6000"),
        ("10.0.2.100:7000", "10.0.2.2:7000"),
    ] {
        assert_eq!(come(&mut bed, port, peer), at(seen));
        assert_eq!(answer(&mut bed, server(), at(seen)), Some((port, at(peer))));
    }
    // What the guest has not heard from is asked for.
    assert_eq!(answer(&mut bed, server(), at("10.0.2.2:5001")), None);
    assert_eq!(answer(&mut bed, SocketAddr::new(GUEST.into(), 54), at("10.0.2.2:5000")), None);
    assert_eq!(bed.dropped(Drop::Forbidden), 2);
    bed.receive(port, at("198.51.100.7:0"), b"who?");
    assert_eq!(bed.dropped(Drop::Forbidden), 3);
    assert!(bed.frames().is_empty());
    assert_eq!(bed.lent(), 0);
}

#[test]
fn ipv6_with_link_local_peers() {
    let mut bed = Bed::native();
    let server = SocketAddr::new(GUEST_V6.into(), 53);
    let port = bind(&mut bed, "[::]:1053", server);
    meet(&mut bed, port, server);
    let local = SocketAddr::V6(std::net::SocketAddrV6::new("fe80::7".parse().unwrap(), 4000, 0, 3));
    let other = SocketAddr::V6(std::net::SocketAddrV6::new("fe80::7".parse().unwrap(), 4000, 0, 4));
    assert_eq!(come(&mut bed, port, "[2001:db8::1]:4000"), at("[2001:db8::1]:4000"));
    assert_eq!(come(&mut bed, port, "[::1]:4000"), at("[fd00::2]:4000"));
    for peer in [local, other] {
        // Of which link they are is remembered: the answer needs it.
        bed.receive(port, peer, b"question");
        let frames = heard(&mut bed);
        let (ip, datagram) = transport(&frames[0]);
        let seen = SocketAddr::new(ip.src, u16::from_be_bytes([datagram[0], datagram[1]]));
        assert_eq!(seen.ip(), at("[fd00::2]:0").ip());
        assert_eq!(answer(&mut bed, server, seen), Some((port, peer)));
    }
}

#[test]
fn peers_that_would_look_the_same_are_told_apart() {
    let (mut bed, port) = open(NetConfig::native());
    let peers: Vec<_> = (1..=40).map(|n| format!("127.0.0.{n}:4000")).collect();
    let seen: Vec<_> = peers.iter().map(|peer| come(&mut bed, port, peer)).collect();
    assert_eq!(seen[0], at("10.0.2.2:4000"));
    for (n, (peer, seen_as)) in peers.iter().zip(&seen).enumerate() {
        assert!(!seen[..n].contains(seen_as));
        assert_eq!(come(&mut bed, port, peer), *seen_as, "the same each time");
        assert_eq!(answer(&mut bed, server(), *seen_as), Some((port, at(peer))));
    }
}

#[test]
fn answers_leave_from_where_was_asked() {
    let (mut bed, port) = open(NetConfig::native());
    let asked = [1, 2].map(|n| Local::new([192, 0, 2, n].into(), 0));
    // One endpoint at two addresses.
    let peer = "198.51.100.7:4000";
    let seen = asked.map(|local| come_to(&mut bed, port, peer, local));
    assert_eq!(seen[0], at(peer));
    assert_ne!(seen[0], seen[1]);
    for n in [1, 0, 1] {
        let sent = answer_from(&mut bed, server(), seen[n]);
        assert_eq!(sent, Some((port, at(peer), asked[n])));
        assert_eq!(come_to(&mut bed, port, peer, asked[n]), seen[n]);
    }
    // Whom the guest speaks to first: as the routes say, and from then on as it has answered.
    let other = at("198.51.100.9:9");
    assert_eq!(answer_from(&mut bed, server(), other), Some((port, other, Local::ANY)));
    assert_eq!(come_to(&mut bed, port, "198.51.100.9:9", asked[1]), other);
    assert_eq!(answer_from(&mut bed, server(), other), Some((port, other, asked[1])));
    assert_ne!(come_to(&mut bed, port, "198.51.100.9:9", asked[0]), other);
    // Of an error it is said which of the two it is about, or nothing of that.
    let mut about = |local| {
        let error = DgramError {
            errno: Errno(libc::EHOSTUNREACH),
            icmp: Some((3, 1)),
            mtu: 0,
            offender: None,
            to: at(peer),
            local,
            echo_seq: 0,
        };
        bed.stack.handle_event(Event::DgramError { flow: port, error }, bed.now);
        let frames = heard(&mut bed);
        let (_, message) = transport(&frames[0]);
        u16::from_be_bytes([message[30], message[31]])
    };
    assert_eq!([asked[1], asked[0]].map(&mut about), [seen[1].port(), seen[0].port()]);
    assert_eq!(about(Local::ANY), seen[0].port(), "the one used last");
    assert_eq!(bed.lent(), 0);
}

/// One endpoint that comes to very many addresses is as bounded as very many that come to one.
#[test]
fn ten_thousand_addresses() {
    let (mut bed, port) = open(NetConfig::native());
    let local = |n: u16| Local::new([127, 1, (n >> 8) as u8, n as u8].into(), 0);
    for n in 0..10_000 {
        bed.receive_at(port, at("127.0.0.1:4000"), local(n), b"question");
        assert_eq!(heard(&mut bed).len(), 1);
    }
    let seen = come_to(&mut bed, port, "127.0.0.1:4000", local(9_000));
    let sent = answer_from(&mut bed, server(), seen);
    assert_eq!(sent, Some((port, at("127.0.0.1:4000"), local(9_000))));
    assert_eq!((bed.stack.stats().flows, bed.lent()), (2, 0));
}

#[test]
fn two_ports_lead_to_one_endpoint() {
    let (mut bed, one) = open(NetConfig::native());
    let two = bind(&mut bed, "0.0.0.0:2053", server());
    let seen = [one, two].map(|port| come(&mut bed, port, "198.51.100.7:4000"));
    assert_eq!(seen[0], at("198.51.100.7:4000"));
    assert_ne!(seen[0], seen[1]);
    for (port, seen) in [one, two].into_iter().zip(seen) {
        assert_eq!(answer(&mut bed, server(), seen), Some((port, at("198.51.100.7:4000"))));
    }
    // One goes: its peers are strangers then, to be spoken to by the other.
    assert_eq!(close(&mut bed, one), [one]);
    assert_eq!(come(&mut bed, two, "198.51.100.7:4000"), seen[1]);
    assert_eq!(answer(&mut bed, server(), seen[0]), Some((two, at("198.51.100.7:4000"))));
    assert_eq!(close(&mut bed, two), [two]);
    assert_eq!((bed.stack.stats().flows, bed.lent()), (0, 0));
}

#[test]
fn the_guest_speaks_to_others_from_the_port_where_it_may() {
    let outbound = |addr: &str| Some(Outbound::Address(addr.parse().unwrap()));
    for (local, outbound_v4, speaks) in [
        ("0.0.0.0:1053", None, true),
        ("192.0.2.1:1053", None, true),
        ("127.0.0.1:1053", None, false),
        ("0.0.0.0:1053", outbound("192.0.2.1"), false),
        ("192.0.2.1:1053", outbound("192.0.2.1"), true),
        ("192.0.2.1:1053", outbound("192.0.2.2"), false),
        ("0.0.0.0:1053", Some(Outbound::Interface("eth0".into())), false),
    ] {
        let mut bed = Bed::new(NetConfig { outbound_v4, ..NetConfig::native() });
        let port = bind(&mut bed, local, server());
        let to = at("198.51.100.9:9");
        bed.send(&udp(server(), to, b"first"));
        let actions = bed.actions();
        let own = match &actions[..] {
            [Action::DgramSend { flow, .. }] => (*flow == port).then_some(None),
            [Action::DgramOpen { flow: opened, .. }, Action::DgramSend { flow, .. }] => {
                (opened == flow && *flow != port).then_some(Some(*flow))
            }
            other => panic!("{other:?}"),
        };
        let own = own.expect("by a socket that there is");
        assert_eq!(own.is_none(), speaks, "{local}");
        // The reply comes back from whom it was asked.
        assert_eq!(come(&mut bed, own.unwrap_or(port), "198.51.100.9:9"), to);
        drop(actions);
        if let Some(own) = own {
            bed.receive(own, at("198.51.100.9:10"), b"stranger");
            assert_eq!(bed.dropped(Drop::Unsolicited), 1);
            // The port goes, what the guest has begun goes on, and ends when it is idle.
            assert_eq!(close(&mut bed, port), [port]);
            assert_eq!(answer(&mut bed, server(), to), Some((own, to)));
            bed.pass(Millis(UDP_IDLE.0 + 100));
            let [Action::Close { flow, .. }] = bed.actions()[..] else { panic!("lives on") };
            bed.stack.handle_event(Event::Closed { flow }, bed.now);
        } else {
            assert_eq!(close(&mut bed, port), [port]);
        }
        assert_eq!((bed.stack.stats().flows, bed.lent()), (0, 0));
    }
}

#[test]
fn a_mapping_that_is_there_goes_on() {
    let mut bed = Bed::native();
    bed.send(&udp(server(), at("198.51.100.9:9"), b"before"));
    let actions = bed.actions();
    let [Action::DgramOpen { flow: own, .. }, Action::DgramSend { .. }] = actions[..] else {
        panic!("{actions:?}")
    };
    drop(actions);
    let port = bind(&mut bed, "0.0.0.0:1053", server());
    assert_eq!(come(&mut bed, own, "198.51.100.9:9"), at("198.51.100.9:9"));
    assert_eq!(answer(&mut bed, server(), at("198.51.100.9:9")), Some((own, at("198.51.100.9:9"))));
    assert_eq!(
        answer(&mut bed, server(), at("198.51.100.8:8")),
        Some((port, at("198.51.100.8:8")))
    );
    // However long it is silent.
    bed.pass(Millis(UDP_IDLE.0 * 3));
    assert!(heard(&mut bed).is_empty());
    assert_eq!(come(&mut bed, port, "198.51.100.7:7"), at("198.51.100.7:7"));
}

#[test]
fn peers_are_forgotten_after_a_while() {
    let (mut bed, port) = open(NetConfig::native());
    assert_eq!(come(&mut bed, port, "127.0.0.1:5000"), at("10.0.2.2:5000"));
    assert_eq!(come(&mut bed, port, "127.0.0.1:5001"), at("10.0.2.2:5001"));
    bed.pass(Millis(UDP_IDLE.0 - 100));
    // Either way keeps it.
    assert!(answer(&mut bed, server(), at("10.0.2.2:5000")).is_some());
    bed.pass(Millis(200));
    assert!(answer(&mut bed, server(), at("10.0.2.2:5001")).is_none());
    assert!(answer(&mut bed, server(), at("10.0.2.2:5000")).is_some());
}

#[test]
fn whose_port_is_closed_is_forgotten() {
    let (mut bed, port) = open(NetConfig::native());
    let seen = come(&mut bed, port, "127.0.0.1:5000");
    assert!(answer(&mut bed, server(), seen).is_some());
    let error = DgramError {
        errno: Errno(libc::ECONNREFUSED),
        icmp: Some((3, 3)),
        mtu: 0,
        offender: Some(at("127.0.0.1:0").ip()),
        to: at("127.0.0.1:5000"),
        local: Local::ANY,
        echo_seq: 0,
    };
    bed.stack.handle_event(Event::DgramError { flow: port, error }, bed.now);
    let frames = heard(&mut bed);
    let (ip, message) = transport(&frames[0]);
    assert_eq!((ip.src, &message[..2]), (at("10.0.2.2:0").ip(), &[3, 3][..]));
    // About its answer: from port 53 to 5000.
    assert_eq!(message[28..32], [0, 53, 0x13, 0x88]);
    assert_eq!(answer(&mut bed, server(), seen), None);
    assert_eq!(bed.dropped(Drop::Forbidden), 1);
}

#[test]
fn a_hundred_thousand_peers() {
    let (mut bed, port) = open(NetConfig::native());
    let peer = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        SocketAddr::from(([198, a, b, c], 1000))
    };
    for n in 0..100_000 {
        bed.receive(port, peer(n), b"flood");
        assert_eq!(heard(&mut bed).len(), 1);
    }
    bed.receive(port, at("127.0.0.1:1"), b"question");
    bed.frames();
    for n in 0..FORWARD_PEERS_MAX as u32 - 1 {
        bed.receive(port, peer(n), b"flood");
        assert_eq!(heard(&mut bed).len(), 1);
    }
    assert_eq!(answer(&mut bed, server(), at("10.0.2.2:1")), Some((port, at("127.0.0.1:1"))));
    bed.receive(port, peer(200_000), b"flood");
    bed.receive(port, peer(200_001), b"flood");
    bed.actions();
    // Those that nobody remembers are spoken to all the same, by the port that can.
    assert_eq!(answer(&mut bed, server(), peer(77_777)), Some((port, peer(77_777))));
    assert_eq!((bed.stack.stats().flows, bed.lent()), (2, 0));
}

#[test]
fn where_the_guest_is_gets_asked_and_one_datagram_waits() {
    let mut bed = Bed::native();
    let port = bind(&mut bed, "0.0.0.0:1053", server());
    for text in [&b"first"[..], b"second"] {
        bed.receive(port, at("198.51.100.7:7"), text);
    }
    let asked = bed.frames();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0][VNET_TYPE..VNET_TYPE + 2], ETH_ARP.to_be_bytes());
    assert_eq!(bed.dropped(Drop::Unresolved), 1);
    let mut reply = arp_request(GUEST, GATEWAY);
    // A reply instead of a request.
    reply[VNET_TYPE + 2 + 7] = 2;
    let frames = bed.ask(&reply);
    assert_eq!(frames.len(), 1);
    assert_eq!(read(&frames[0]).0.eth_dst, GUEST_MAC);
    assert_eq!(&transport(&frames[0]).1[8..], b"second");
    // It is asked again when the answer is old, and nothing waits for that.
    bed.pass(NEIGHBOUR_FRESH);
    bed.receive(port, at("198.51.100.7:7"), b"third");
    let frames = bed.frames();
    assert_eq!(frames.len(), 2, "a datagram and a question");
}

#[test]
fn who_does_not_say_where_it_is_gets_nothing() {
    let mut bed = Bed::native();
    let port = bind(&mut bed, "0.0.0.0:1053", server());
    bed.receive(port, at("198.51.100.7:7"), b"first");
    bed.pass(Millis::secs(60));
    for frame in bed.frames() {
        assert_eq!(frame[VNET_TYPE..VNET_TYPE + 2], ETH_ARP.to_be_bytes());
    }
    assert_eq!((bed.dropped(Drop::Unresolved), bed.lent()), (1, 0));
    bed.receive(port, at("198.51.100.7:7"), b"second");
    assert_eq!(bed.frames().len(), 1, "and is asked again");
}

/// Where the type of a frame stands.
const VNET_TYPE: usize = crate::limits::VNET_LEN + 12;

#[test]
fn a_run_becomes_one_frame() {
    let (mut bed, flow) = open(NetConfig::native());
    let mut slot = bed.stack.pools().large.take().unwrap();
    slot.set_range(crate::limits::HEADROOM, 1000);
    let from = at("127.0.0.1:9");
    let event = Event::DgramReceived {
        flow,
        slot,
        from,
        local: Local::ANY,
        ttl: Some(60),
        tos: 5,
        segment: 300,
    };
    bed.stack.handle_event(event, bed.now);
    let frames = heard(&mut bed);
    let header = read(&frames[0]).0.vnet;
    assert_eq!((frames.len(), header.gso_type, header.gso_size), (1, vnet::GSO_UDP_L4, 300));
}

#[test]
fn no_room_and_no_such_guest() {
    let v6 = SocketAddr::new(GUEST_V6.into(), 53);
    let refuse = |bed: &mut Bed, local: &str, guest| {
        let port = Bound { guest, local: at(local), device: false };
        let free = bed.stack.descriptors().free();
        if let Some(taken) = bed.stack.descriptors().lend() {
            assert_eq!(bed.stack.handle_bound(&port, taken, bed.now), None);
        }
        assert_eq!(bed.stack.descriptors().free(), free);
        assert!(bed.actions().is_empty());
    };
    let net = V4Net::new(std::net::Ipv4Addr::new(10, 0, 2, 0), 24);
    let mut bed = Bed::new(NetConfig::new(net, None, 1500));
    refuse(&mut bed, "[::]:1", v6);
    refuse(&mut bed, "0.0.0.0:1", v6);
    // A descriptor for each port, and none for the mapping behind.
    bed.stack.limit(Share::new(Descriptors::new(4, 1)));
    let ports = ["0.0.0.0:1", "0.0.0.0:2"].map(|local| bind(&mut bed, local, server()));
    refuse(&mut bed, "0.0.0.0:3", server());
    refuse(&mut bed, "0.0.0.0:3", SocketAddr::new(GUEST.into(), 54));
    assert_eq!((bed.stack.stats().flows, bed.stack.descriptors().free()), (3, 0));
    close(&mut bed, ports[0]);
    let port = bind(&mut bed, "0.0.0.0:3", SocketAddr::new(GUEST.into(), 54));
    close(&mut bed, ports[1]);
    close(&mut bed, port);
    assert_eq!(bed.stack.stats().flows, 0);
    bed.stack.drain();
    refuse(&mut bed, "0.0.0.0:1", server());
}

#[test]
fn a_port_takes_the_endpoint_from_another_worker() {
    let directory = Directory::new(2, [1, 2]);
    let [mut one, mut two] = [0, 1].map(|me| {
        let mut bed = Bed::native();
        bed.stack.share(Seat::new(directory.clone(), me));
        bed
    });
    two.send(&udp(server(), at("198.51.100.9:9"), b"before"));
    let [Action::DgramOpen { flow: own, .. }, Action::DgramSend { .. }] = two.actions()[..] else {
        panic!("no mapping")
    };
    let port = bind(&mut one, "0.0.0.0:1053", server());
    // The next frame there goes to the worker with the port, and so does a loopback peer's answer: policy is
    // asked by who knows.
    two.send(&udp(server(), at("10.0.2.2:5000"), b"answer"));
    let mut actions = two.actions().into_iter();
    assert!(matches!(actions.next(), Some(Action::Close { flow, .. }) if flow == own));
    let Some(Action::HandOver { worker: 0, slot, about }) = actions.next() else {
        panic!("not handed over")
    };
    two.stack.handle_event(Event::Closed { flow: own }, two.now);
    assert_eq!((two.stack.stats().flows, two.dropped(Drop::Forbidden)), (0, 0));
    one.receive(port, at("127.0.0.1:5000"), b"question");
    one.actions();
    let mut copy = one.stack.pools().large.take().unwrap();
    copy.set_range(0, slot.len());
    copy.bytes_mut().copy_from_slice(slot.bytes());
    one.stack.handle_handed(copy, about, one.now);
    let sent = one.actions();
    assert!(
        sent.iter().filter_map(crate::stack::testing::sent).any(|(flow, to, bytes)| (
            flow, to, bytes
        ) == (
            port,
            at("127.0.0.1:5000"),
            &b"answer"[..]
        )),
        "{sent:?}"
    );
    // It is given up with the last port: whoever comes first has it then.
    close(&mut one, port);
    assert!(directory.is_empty());
    two.send(&udp(server(), at("198.51.100.9:9"), b"after"));
    assert!(matches!(two.actions()[0], Action::DgramOpen { .. }));
}
