//! Connections from outside at a stack on a bench: how peers are shown, where SYNs go, what refuses them.

use super::*;
use crate::config::V6Net;
use crate::flow::{Event, Received};
use crate::limits::{
    NEIGHBOUR_FRESH, NEIGHBOUR_GAP, NEIGHBOUR_TRIES, NEIGHBOUR_WAITING, NEIGHBOURS_MAX, VNET_LEN,
};
use crate::stack::directory::{Directory, Seat};
use crate::stack::testing::*;
use crate::time::Millis;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn server() -> SocketAddr {
    SocketAddr::new(GUEST.into(), 80)
}

#[test]
fn a_peer_is_shown_as_itself_or_as_the_gateway() {
    let net = NetConfig::native();
    for (peer, as_) in [
        ("198.51.100.7", "198.51.100.7"),
        ("192.168.1.9", "192.168.1.9"),
        ("169.254.9.9", "169.254.9.9"),
        ("127.0.0.1", "10.0.2.2"),
        ("127.9.9.9", "10.0.2.2"),
        ("0.0.0.0", "10.0.2.2"),
        ("10.0.2.2", "10.0.2.2"),
        ("10.0.2.3", "10.0.2.2"),
        ("10.0.2.77", "10.0.2.2"),
        ("10.0.2.100", "10.0.2.2"),
        ("::ffff:127.0.0.1", "10.0.2.2"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
    ] {
        let peer = SocketAddr::new(peer.parse().unwrap(), 5000);
        let want = SocketAddr::new(as_.parse().unwrap(), 5000);
        assert_eq!(shown(&net, peer, server()), Some(want), "{peer}");
    }
    for (peer, as_) in [
        ("2001:db8::7", "2001:db8::7"),
        ("::1", "fd00::2"),
        ("::", "fd00::2"),
        ("fe80::9", "fd00::2"),
        ("fd00::100", "fd00::2"),
        ("fd00::77", "fd00::2"),
    ] {
        let peer = SocketAddr::new(peer.parse().unwrap(), 5000);
        let guest = SocketAddr::new(GUEST_V6.into(), 80);
        let want = SocketAddr::new(as_.parse().unwrap(), 5000);
        assert_eq!(shown(&net, peer, guest), Some(want), "{peer}");
    }
    assert_eq!(shown(&net, at("[::1]:5"), at("[fe80::7]:80")), Some(at("[fe80::2]:5")));
    // Another address of the guest: that itself is shown as the gateway.
    assert_eq!(shown(&net, at("10.1.1.1:5"), at("10.1.1.1:80")), Some(at("10.0.2.2:5")));
}

#[test]
fn what_no_guest_can_be_is_refused() {
    let mut bed = Bed::native();
    for (peer, guest) in [
        ("198.51.100.7:1", "10.0.2.100:0"),
        ("198.51.100.7:0", "10.0.2.100:80"),
        ("198.51.100.7:1", "10.0.2.2:80"),
        ("198.51.100.7:1", "10.0.2.3:80"),
        ("198.51.100.7:1", "127.0.0.1:80"),
        ("198.51.100.7:1", "0.0.0.0:80"),
        ("198.51.100.7:1", "10.0.2.255:80"),
        ("198.51.100.7:1", "224.0.0.1:80"),
        ("198.51.100.7:1", "[fd00::100]:80"),
        ("[2001:db8::7]:1", "10.0.2.100:80"),
        ("[2001:db8::7]:1", "[::1]:80"),
        ("[2001:db8::7]:1", "[ff02::1]:80"),
    ] {
        assert_eq!(bed.stack.handle_accepted(at(peer), at(guest), bed.now), None, "{peer} {guest}");
    }
    assert_eq!((bed.dropped(Drop::Forbidden), bed.frames().len()), (12, 0));
    let mut bed = Bed::new(NetConfig { v6: None, ..NetConfig::native() });
    let guest = SocketAddr::new(GUEST_V6.into(), 80);
    assert_eq!(bed.stack.handle_accepted(at("[2001:db8::7]:1"), guest, bed.now), None);
    bed.stack.drain();
    assert_eq!(bed.stack.handle_accepted(at("198.51.100.7:1"), server(), bed.now), None);
    assert_eq!(bed.dropped(Drop::Draining), 1);
    assert_eq!(bed.stack.stats().flows, 0);
}

/// An ARP reply of the guest.
fn arp_reply(sender: Ipv4Addr) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 2];
    arp.extend(GUEST_MAC);
    arp.extend(sender.octets());
    arp.extend(NetConfig::native().gateway_mac);
    arp.extend(GATEWAY.octets());
    ethernet(GUEST_MAC, NetConfig::native().gateway_mac, ETH_ARP, &arp)
}

/// What the core asks for an IPv4 neighbour by.
fn question(target: Ipv4Addr) -> Vec<u8> {
    let ours = NetConfig::native().gateway_mac;
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(ours);
    arp.extend(GATEWAY.octets());
    arp.extend([0; 6]);
    arp.extend(target.octets());
    ethernet(ours, BROADCAST_MAC, ETH_ARP, &arp)
}

/// A frame that must be a SYN: from and to which endpoints, its number, and the MAC it goes to.
fn syn(frame: &[u8]) -> (SocketAddr, SocketAddr, u32, Mac) {
    let (ip, tcp) = transport(frame);
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    assert_eq!(tcp[13] & 0x3f, 0x02, "a SYN and nothing else");
    let seq = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
    let to = read(frame).0.eth_dst;
    (SocketAddr::new(ip.src, port(0)), SocketAddr::new(ip.dst, port(2)), seq, to)
}

/// What became of a connection: closed with a RST?
fn closed(bed: &mut Bed) -> Option<(FlowId, bool)> {
    let mut found = None;
    for action in bed.actions() {
        match action {
            Action::Close { flow, reset } => found = Some((flow, reset)),
            Action::TapWrite { .. } | Action::TcpRecv { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    if let Some((flow, _)) = found {
        bed.stack.handle_event(Event::Closed { flow }, bed.now);
    }
    found
}

/// A bed that knows where the guest is.
fn acquainted() -> Bed {
    let mut bed = Bed::native();
    bed.stack.handle_accepted(at("192.0.2.99:9"), server(), bed.now).unwrap();
    assert_eq!(bed.frames(), [question(GUEST)]);
    let frames = bed.ask(&arp_reply(GUEST));
    let (shown, guest, seq, _) = syn(&frames[0]);
    bed.send(&segment(guest, shown, 1, seq.wrapping_add(1), 0x14));
    assert!(closed(&mut bed).is_some_and(|(_, reset)| reset), "refused, and reset at once");
    assert_eq!((bed.stack.stats().flows, bed.lent()), (0, 0));
    bed
}

#[test]
fn the_syn_leaves_when_the_guests_mac_is_known() {
    let mut bed = Bed::native();
    let peers = [at("198.51.100.7:5000"), at("127.0.0.1:5001")];
    for peer in peers {
        bed.stack.handle_accepted(peer, server(), bed.now).unwrap();
    }
    assert_eq!(bed.frames(), [question(GUEST)], "one question for both");
    // Answers that nobody has asked for.
    for other in [Ipv4Addr::new(10, 0, 2, 5), GATEWAY] {
        assert!(bed.ask(&arp_reply(other)).is_empty());
    }
    let syns: Vec<_> = bed.ask(&arp_reply(GUEST)).iter().map(|f| syn(f)).collect();
    let ends: std::collections::HashSet<_> = syns.iter().map(|s| (s.0, s.1, s.3)).collect();
    let want = [at("198.51.100.7:5000"), at("10.0.2.2:5001")].map(|s| (s, server(), GUEST_MAC));
    assert_eq!(ends, want.into());
    // Known now; and asked anew some time later, without a wait.
    bed.stack.handle_accepted(at("192.0.2.1:1"), server(), bed.now).unwrap();
    assert_eq!(bed.frames().len(), 1);
    bed.now = bed.now + NEIGHBOUR_FRESH;
    bed.stack.handle_accepted(at("192.0.2.1:2"), server(), bed.now).unwrap();
    let frames = bed.frames();
    assert_eq!((frames.len(), &frames[0]), (2, &question(GUEST)));
    assert_eq!(syn(&frames[1]).3, GUEST_MAC);
}

#[test]
fn neighbour_discovery_for_ipv6() {
    let mut bed = Bed::native();
    let guest = SocketAddr::new("fd00::12:3456".parse().unwrap(), 80);
    bed.stack.handle_accepted(at("[2001:db8::7]:5000"), guest, bed.now).unwrap();
    let frames = bed.frames();
    let (parsed, ip) = read(&frames[0]);
    assert_eq!(parsed.eth_dst, [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    assert_eq!(
        (ip.src, ip.dst, ip.ttl),
        (at("[fe80::2]:0").ip(), at("[ff02::1:ff12:3456]:0").ip(), 255)
    );
    let (_, message) = transport(&frames[0]);
    let IpAddr::V6(target) = guest.ip() else { unreachable!() };
    let mut want = vec![135, 0, message[2], message[3], 0, 0, 0, 0];
    want.extend(target.octets());
    want.extend([1, 1]);
    want.extend(NetConfig::native().gateway_mac);
    assert_eq!(message, want);
    let mut advert = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    advert.extend(target.octets());
    advert.extend([2, 1]);
    advert.extend(GUEST_MAC);
    let link_local = V6Net::fd00(true).link_local;
    let frames = bed.ask(&icmp(guest.ip(), link_local.into(), 255, &advert));
    let (shown, to, _, mac) = syn(&frames[0]);
    assert_eq!((shown, to, mac), (at("[2001:db8::7]:5000"), guest, GUEST_MAC));
}

#[test]
fn nobody_there_ends_the_connection() {
    let mut bed = Bed::native();
    let guest = at("10.0.2.42:80");
    bed.stack.handle_accepted(at("198.51.100.7:1"), guest, bed.now).unwrap();
    let mut questions = bed.frames().len();
    for _ in 1..NEIGHBOUR_TRIES {
        bed.pass(NEIGHBOUR_GAP);
        questions += bed.frames().len();
    }
    assert_eq!(questions, usize::from(NEIGHBOUR_TRIES));
    assert_eq!(bed.stack.stats().flows, 1);
    bed.pass(NEIGHBOUR_GAP);
    assert!(closed(&mut bed).is_some_and(|(_, reset)| reset));
    assert_eq!((bed.stack.stats().flows, bed.lent()), (0, 0));
    // The next is asked for anew.
    bed.stack.handle_accepted(at("198.51.100.7:1"), guest, bed.now).unwrap();
    assert_eq!(bed.frames().len(), 1);
}

#[test]
fn what_lies_behind_the_guest_goes_by_the_guest() {
    let mut bed = acquainted();
    let behind = at("172.17.0.2:80");
    bed.stack.handle_accepted(at("198.51.100.7:1"), behind, bed.now).unwrap();
    let (shown, to, _, mac) = syn(&bed.frames()[0]);
    assert_eq!((shown, to, mac), (at("198.51.100.7:1"), behind, GUEST_MAC));
}

#[test]
fn questions_and_those_who_wait_are_bounded() {
    let mut bed = Bed::native();
    let peer =
        |n: usize| SocketAddr::from(([198, 51, 100, (n >> 10) as u8], 1024 + (n % 1024) as u16));
    for n in 0..NEIGHBOURS_MAX + 8 {
        let guest = SocketAddr::from(([10, 0, 2, 120 + n as u8], 80));
        bed.stack.handle_accepted(peer(n), guest, bed.now).unwrap();
    }
    let ended = |bed: &mut Bed| {
        let mut closed = vec![];
        for action in bed.actions() {
            if let Action::Close { flow, reset: true } = action {
                closed.push(flow);
            }
        }
        for &flow in &closed {
            bed.stack.handle_event(Event::Closed { flow }, bed.now);
        }
        closed.len()
    };
    assert_eq!(ended(&mut bed), 8);
    let guest = SocketAddr::from(([10, 0, 2, 120], 80));
    for n in 0..NEIGHBOUR_WAITING {
        bed.stack.handle_accepted(peer(2000 + n), guest, bed.now).unwrap();
    }
    assert_eq!(ended(&mut bed), NEIGHBOURS_MAX);
    bed.pass(Millis(NEIGHBOUR_GAP.0 * 10));
    assert_eq!(ended(&mut bed), NEIGHBOUR_WAITING);
    assert_eq!((bed.stack.stats().flows, bed.lent()), (0, 0));
}

#[test]
fn peers_that_look_alike_get_ports_of_their_own() {
    let mut bed = acquainted();
    let mut ports = std::collections::HashSet::new();
    for n in 1..=SHOWN_PORT_TRIES as u8 {
        let peer = SocketAddr::from(([127, 0, 0, n], 5000));
        bed.stack.handle_accepted(peer, server(), bed.now).unwrap();
        let (shown, ..) = syn(&bed.frames()[0]);
        assert_eq!(shown.ip(), IpAddr::V4(GATEWAY));
        assert!(ports.insert(shown.port()), "{shown} twice");
    }
    assert!(ports.contains(&5000));
    // The search ends.
    assert_eq!(bed.stack.handle_accepted(at("127.0.9.9:5000"), server(), bed.now), None);
    assert_eq!(bed.dropped(Drop::FlowTableFull), 1);
}

#[test]
fn a_connection_of_the_guests_own_keeps_its_ports() {
    let mut bed = Bed::new(NetConfig { host_loopback: true, ..NetConfig::native() });
    bed.send(&segment(server(), at("10.0.2.2:5000"), 1, 0, 0x02));
    assert!(matches!(bed.actions()[..], [Action::TcpConnect { .. }]));
    bed.stack.handle_accepted(at("127.0.0.1:5000"), server(), bed.now).unwrap();
    assert_eq!(bed.frames(), [question(GUEST)]);
    let (shown, ..) = syn(&bed.ask(&arp_reply(GUEST))[0]);
    assert_ne!(shown.port(), 5000);
}

/// An ICMP error of the guest about a segment that it was sent.
fn error(kind: u8, code: u8, from: SocketAddr, to: SocketAddr, seq: u32) -> Vec<u8> {
    let mut tcp = from.port().to_be_bytes().to_vec();
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    let quoted = ip(from.ip(), to.ip(), 6, &tcp);
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(&quoted[VNET_LEN + 14..]);
    icmp(to.ip(), from.ip(), 64, &message)
}

#[test]
fn a_firewalls_refusal_is_one() {
    let mut bed = acquainted();
    for peer in ["198.51.100.7:5000", "127.0.0.1:5000"] {
        bed.stack.handle_accepted(at(peer), server(), bed.now).unwrap();
        let (shown, guest, seq, _) = syn(&bed.frames()[0]);
        // Of another segment; of none; "fragmentation needed".
        bed.send(&error(3, 3, shown, guest, seq.wrapping_add(1)));
        bed.send(&error(3, 3, SocketAddr::new(shown.ip(), 1), guest, seq));
        bed.send(&error(3, 4, shown, guest, seq));
        bed.send(&error(11, 0, shown, guest, seq));
        assert_eq!(closed(&mut bed), None);
        for len in 0..error(3, 3, shown, guest, seq).len() {
            bed.send(&error(3, 3, shown, guest, seq)[..len]);
        }
        assert_eq!(closed(&mut bed), None);
        bed.send(&error(3, 13, shown, guest, seq));
        assert!(closed(&mut bed).is_some_and(|(_, reset)| reset));
    }
    let guest = SocketAddr::new(GUEST_V6.into(), 80);
    bed.stack.handle_accepted(at("[2001:db8::7]:5000"), guest, bed.now).unwrap();
    bed.frames();
    let mut advert = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    advert.extend(GUEST_V6.octets());
    let link_local = V6Net::fd00(true).link_local;
    let frames = bed.ask(&icmp(GUEST_V6.into(), link_local.into(), 255, &advert));
    let (shown, guest, seq, _) = syn(&frames[0]);
    bed.send(&error(1, 4, shown, guest, seq));
    assert!(closed(&mut bed).is_some_and(|(_, reset)| reset));
    assert_eq!((bed.stack.stats().flows, bed.lent()), (0, 0));
}

#[test]
fn no_loopback_for_the_guest_does_not_stop_its_answers() {
    let mut bed = acquainted();
    let flow = bed.stack.handle_accepted(at("127.0.0.1:5000"), server(), bed.now).unwrap();
    let (shown, guest, seq, _) = syn(&bed.frames()[0]);
    assert_eq!(shown, at("10.0.2.2:5000"));
    bed.send(&segment(guest, shown, 77, seq.wrapping_add(1), 0x12));
    let actions = bed.actions();
    assert!(actions.iter().any(|a| matches!(a, Action::TcpRecv { flow: f, .. } if *f == flow)));
    assert_eq!(bed.dropped(Drop::Forbidden), 0);
    drop(actions);
    let event = Event::TcpReceived { flow, result: Received::Failed(crate::flow::Errno(104)) };
    bed.stack.handle_event(event, bed.now);
    assert!(closed(&mut bed).is_some());
}

#[test]
fn an_answer_reaches_the_worker_that_asks_by_whatever_queue() {
    let directory = Directory::new(3, [1, 2]);
    let mut beds: Vec<Bed> = (0..3).map(|_| Bed::native()).collect();
    for (me, bed) in beds.iter_mut().enumerate() {
        bed.stack.share(Seat::new(directory.clone(), me as u8));
    }
    // Nobody asks: nothing is said.
    assert!(beds[0].ask(&arp_reply(GUEST)).is_empty());
    let (peer, now) = (at("198.51.100.7:5000"), beds[2].now);
    beds[2].stack.handle_accepted(peer, server(), now).unwrap();
    assert_eq!(beds[2].frames(), [question(GUEST)]);
    beds[0].send(&arp_reply(GUEST));
    let mut told = vec![];
    for action in beds[0].actions() {
        let Action::HandOver { worker, slot, about } = action else { panic!("{action:?}") };
        told.push(worker);
        let bed = &mut beds[usize::from(worker)];
        let mut copy = bed.stack.pools().large.take().unwrap();
        copy.set_range(0, slot.len());
        copy.bytes_mut().copy_from_slice(slot.bytes());
        bed.stack.handle_handed(copy, about, bed.now);
    }
    assert_eq!(told, [1, 2]);
    assert!(beds[1].frames().is_empty());
    assert_eq!(syn(&beds[2].frames()[0]).0, peer);
    // Answered, nobody asks any more.
    assert!(beds[0].ask(&arp_reply(GUEST)).is_empty());
    // The same endpoints are with that worker now.
    beds[1].stack.handle_accepted(peer, server(), now).unwrap();
    assert_eq!(beds[1].frames(), [question(GUEST)]);
    let (shown, ..) = syn(&beds[1].ask(&arp_reply(GUEST)).pop().unwrap());
    assert_ne!(shown.port(), peer.port());
}

#[test]
fn mangled_answers_neither_panic_nor_leak() {
    let mut bed = acquainted();
    bed.stack.handle_accepted(at("198.51.100.7:5000"), server(), bed.now).unwrap();
    let (shown, guest, seq, _) = syn(&bed.frames()[0]);
    let refusal = error(3, 3, shown, guest, seq);
    let agreement = segment(guest, shown, 77, seq.wrapping_add(1), 0x12);
    let mut advert = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    advert.extend(GUEST_V6.octets());
    let advert = icmp(GUEST_V6.into(), V6Net::fd00(true).link_local.into(), 255, &advert);
    for frame in [arp_reply(GUEST), advert, refusal, agreement] {
        // Neighbours that are asked for, while their answers are mangled.
        for (peer, guest) in [
            ("198.51.100.7:1", "10.0.2.101:80"),
            ("[2001:db8::7]:1", "[fd00::100]:80"),
            ("198.51.100.7:5000", "10.0.2.100:80"),
        ] {
            bed.stack.handle_accepted(at(peer), at(guest), bed.now).unwrap();
        }
        bed.mangle(&frame, 3000, &|_| true);
        for flow in 0..1000 {
            let Some(flow) = bed.stack.flows.at(flow) else { continue };
            let result = Received::Failed(crate::flow::Errno(104));
            bed.stack.handle_event(Event::TcpReceived { flow, result }, bed.now);
        }
        for action in bed.actions() {
            if let Action::Close { flow, .. } = action {
                bed.stack.handle_event(Event::Closed { flow }, bed.now);
            }
        }
    }
    bed.pass(Millis::secs(30));
    bed.actions();
    assert_eq!(bed.lent(), 0);
}
