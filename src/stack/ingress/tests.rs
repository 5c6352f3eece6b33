//! What a flood of flows that come to nothing leaves to others.

use super::*;
use crate::flow::{DgramError, Errno, Event};
use crate::limits::{
    MAPPINGS_ADDRESS_EVERY, MAPPINGS_ADDRESS_MOST, MAPPINGS_MOST, OPENINGS_ADDRESS_EVERY,
    OPENINGS_ADDRESS_MOST, OPENINGS_MOST, UDP_IDLE,
};
use crate::stack::descriptors::{Descriptors, Share};
use crate::stack::testing::*;
use crate::time::Millis;

fn host(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, last], port))
}

fn server() -> SocketAddr {
    host(7, 80)
}

fn guest(port: u16) -> SocketAddr {
    SocketAddr::new(GUEST.into(), port)
}

/// Sends a SYN; the flow that it opens.
fn open(bed: &mut Bed, port: u16, to: SocketAddr) -> Option<FlowId> {
    bed.send(&segment(guest(port), to, 100, 0, 0x02));
    match bed.actions().as_slice() {
        [] => None,
        [Action::TcpConnect { flow, .. }] => Some(*flow),
        other => panic!("{other:?}"),
    }
}

fn connected(bed: &mut Bed, flow: FlowId, result: Result<(), Errno>) -> Vec<Action> {
    bed.stack.handle_event(Event::TcpConnected { flow, result }, bed.now);
    bed.actions()
}

/// The host accepts; what the guest's next acknowledgement has to be.
fn accept(bed: &mut Bed, flow: FlowId) -> u32 {
    let answer = connected(bed, flow, Ok(()));
    let Some(Action::TapWrite { slot, .. }) = answer.first() else { panic!("{answer:?}") };
    let (_, tcp) = transport(slot.bytes());
    u32::from_be_bytes(tcp[4..8].try_into().unwrap()).wrapping_add(1)
}

fn closes(bed: &mut Bed, flow: FlowId) {
    let actions = bed.actions();
    assert!(actions.iter().any(|a| matches!(a, Action::Close { .. })), "{actions:?}");
    bed.stack.handle_event(Event::Closed { flow }, bed.now);
}

fn refuse(bed: &mut Bed, flow: FlowId) {
    let event = Event::TcpConnected { flow, result: Err(Errno(libc::ECONNREFUSED)) };
    bed.stack.handle_event(event, bed.now);
    closes(bed, flow);
}

/// Connections to a port, until one is not begun.
fn flood(bed: &mut Bed, to: SocketAddr, mut then: impl FnMut(&mut Bed, FlowId)) -> u32 {
    let mut opened = 0;
    while let Some(flow) = open(bed, 9, to) {
        then(bed, flow);
        opened += 1;
        assert!(opened < 100_000, "there is no end");
    }
    opened
}

#[test]
fn a_flood_of_refused_ones_is_had_at_a_rate_and_others_connect() {
    let mut bed = Bed::native();
    let flow = open(&mut bed, 10, host(7, 443)).unwrap();
    let ack = accept(&mut bed, flow);
    bed.send(&segment(guest(10), host(7, 443), 101, ack, 0x10));
    drop(bed.actions());
    assert_eq!(flood(&mut bed, server(), refuse), OPENINGS_ADDRESS_MOST);
    assert_eq!(bed.dropped(Drop::TooManyOpenings), 1);
    bed.now = bed.now + Millis(100);
    let come = 100 / OPENINGS_ADDRESS_EVERY.0 as u32;
    assert_eq!(flood(&mut bed, server(), refuse), come);
    assert!(open(&mut bed, 11, host(8, 80)).is_some(), "another address");
    assert!(open(&mut bed, 12, host(7, 443)).is_some(), "an endpoint that works");
    assert!(open(&mut bed, 13, host(7, 444)).is_none());
    assert_eq!(bed.stack.stats().flows, 3);
}

#[test]
fn connections_that_work_are_not_held_up() {
    let mut bed = Bed::native();
    for i in 0..3 * OPENINGS_MOST {
        let port = 1 + (i % 50_000) as u16;
        let flow = open(&mut bed, port, server()).unwrap();
        let ack = accept(&mut bed, flow);
        bed.send(&segment(guest(port), server(), 101, ack, 0x10));
        // Its end may come in the same turn.
        if i % 2 == 0 {
            drop(bed.actions());
        }
        bed.send(&segment(guest(port), server(), 101, ack, 0x04));
        closes(&mut bed, flow);
    }
    assert_eq!(bed.dropped(Drop::TooManyOpenings), 0);
    // Nor has one that ended at once ended the proof.
    flood(&mut bed, host(7, 81), refuse);
    assert!(open(&mut bed, 1, server()).is_some());
}

#[test]
fn a_handshake_that_the_guest_breaks_off_is_a_failure() {
    let mut bed = Bed::native();
    let opened = flood(&mut bed, server(), |bed, flow| {
        accept(bed, flow);
        bed.send(&segment(guest(9), server(), 101, 0, 0x04));
        closes(bed, flow);
    });
    assert_eq!(opened, OPENINGS_ADDRESS_MOST);
}

#[test]
fn what_finds_no_place_has_cost_nothing() {
    let mut bed = Bed::native();
    bed.stack.limit(Share::new(Descriptors::new(1, 1)));
    let flow = open(&mut bed, 1, server()).unwrap();
    for _ in 0..3 * OPENINGS_MOST {
        bed.send(&segment(guest(2), server(), 100, 0, 0x02));
        assert!(matches!(bed.actions().as_slice(), [Action::TapWrite { .. }]), "a RST");
    }
    assert_eq!(bed.dropped(Drop::TooManyOpenings), 0);
    refuse(&mut bed, flow);
    assert_eq!(flood(&mut bed, server(), refuse), OPENINGS_ADDRESS_MOST - 1);
}

/// Sends a datagram; the mapping that it opens.
fn map(bed: &mut Bed, port: u16, to: SocketAddr) -> Option<FlowId> {
    bed.send(&udp(guest(port), to, b"datagram"));
    match bed.actions().as_slice() {
        [] => None,
        [Action::DgramOpen { flow, .. }, Action::DgramSend { .. }] => Some(*flow),
        other => panic!("{other:?}"),
    }
}

/// Datagrams from ever other ports, until one is not sent.
fn flood_of_datagrams(bed: &mut Bed, ports: impl Iterator<Item = u16>, to: SocketAddr) -> u32 {
    ports.map_while(|port| map(bed, port, to)).count() as u32
}

#[test]
fn datagrams_that_nobody_answers_are_sent_at_a_rate() {
    let mut bed = Bed::native();
    let known = map(&mut bed, 10, host(7, 443)).unwrap();
    bed.receive(known, host(7, 443), b"answer");
    drop(bed.actions());
    assert_eq!(flood_of_datagrams(&mut bed, 1000.., server()), MAPPINGS_ADDRESS_MOST);
    assert_eq!(bed.dropped(Drop::TooManyOpenings), 1);
    bed.now = bed.now + Millis(100);
    let come = 100 / MAPPINGS_ADDRESS_EVERY.0 as u32;
    assert_eq!(flood_of_datagrams(&mut bed, 20_000.., server()), come);
    assert!(map(&mut bed, 11, host(8, 80)).is_some(), "another address");
    assert!(map(&mut bed, 12, host(7, 443)).is_some(), "an endpoint that answers");
    assert!(map(&mut bed, 13, host(7, 444)).is_none());
    assert!(open(&mut bed, 14, server()).is_some(), "a connection");
    // Those that are there go on, to whoever they like.
    bed.send(&udp(guest(1000), host(7, 445), b"datagram"));
    assert!(matches!(bed.actions().as_slice(), [Action::DgramSend { .. }]));
    // Echo requests take a socket as well.
    let ping = |ident: u16| {
        let [hi, lo] = ident.to_be_bytes();
        icmp(GUEST.into(), server().ip(), 64, &[8, 0, 0, 0, hi, lo, 0, 1])
    };
    bed.send(&ping(1));
    assert_eq!(bed.actions().len(), 0);
    bed.now = bed.now + MAPPINGS_ADDRESS_EVERY;
    bed.send(&ping(1));
    bed.send(&ping(2));
    let pings = bed.actions();
    assert!(matches!(pings.as_slice(), [Action::DgramOpen { .. }, Action::DgramSend { .. }]));
}

#[test]
fn mappings_that_are_answered_are_not_held_up() {
    let mut bed = Bed::native();
    for i in 0..3 * MAPPINGS_MOST {
        let flow = map(&mut bed, 1 + i as u16, server()).unwrap();
        bed.receive(flow, server(), b"answer");
        drop(bed.actions());
    }
    assert_eq!(bed.dropped(Drop::TooManyOpenings), 0);
}

/// One that has worked is known for it until nothing comes back from it.
#[test]
fn a_mapping_that_ends_without_an_answer_ends_the_proof() {
    let mut bed = Bed::native();
    let answered = map(&mut bed, 1, server()).unwrap();
    bed.receive(answered, server(), b"answer");
    drop(bed.actions());
    let silent = map(&mut bed, 2, server()).unwrap();
    bed.now = bed.now + UDP_IDLE;
    bed.stack.handle_timeout(bed.now);
    let closed = bed.actions();
    for flow in [answered, silent] {
        let closes = |a: &Action| matches!(*a, Action::Close { flow: f, .. } if f == flow);
        assert!(closed.iter().any(closes), "{closed:?}");
        bed.stack.handle_event(Event::Closed { flow }, bed.now);
    }
    assert_eq!(flood_of_datagrams(&mut bed, 1000.., host(7, 79)), MAPPINGS_ADDRESS_MOST);
    assert!(map(&mut bed, 3, server()).is_none());
}

#[test]
fn only_who_was_asked_pays_back() {
    let mut bed = Bed::native();
    let mut mappings = 0;
    while let Some(flow) = map(&mut bed, 1000 + mappings, server()) {
        mappings += 1;
        // Another one that it has sent to, and a stranger.
        bed.send(&udp(guest(999 + mappings), host(8, 80), b"datagram"));
        bed.receive(flow, host(8, 80), b"answer");
        bed.receive(flow, host(9, 80), b"no answer");
        drop(bed.actions());
    }
    assert_eq!(u32::from(mappings), MAPPINGS_ADDRESS_MOST);
}

#[test]
fn an_endpoint_where_nobody_listens_is_not_proven() {
    let mut bed = Bed::native();
    let answered = map(&mut bed, 1, server()).unwrap();
    bed.receive(answered, server(), b"answer");
    drop(bed.actions());
    let refused = map(&mut bed, 2, server()).unwrap();
    let error = DgramError {
        to: server(),
        local: Local::ANY,
        errno: Errno(libc::ECONNREFUSED),
        icmp: Some((3, 3)),
        offender: Some(server().ip()),
        mtu: 0,
        echo_seq: 0,
    };
    bed.stack.handle_event(Event::DgramError { flow: refused, error }, bed.now);
    drop(bed.actions());
    assert_eq!(flood_of_datagrams(&mut bed, 1000.., server()), MAPPINGS_ADDRESS_MOST);
}

/// A connection without a place is refused.
#[test]
fn mappings_leave_room_to_connections() {
    let mut bed = Bed::native();
    let most = MAPPINGS_MOST;
    bed.stack.limit(Share::new(Descriptors::new(most, 1)));
    let mut mappings = 0;
    for last in 1..=4 {
        let ports = 10_000 * u16::from(last);
        mappings += flood_of_datagrams(&mut bed, ports..ports + 1000, host(last, 80));
    }
    let reserve = most / 2 / 8;
    assert_eq!(mappings, most - reserve);
    assert_eq!(bed.dropped(Drop::TooManyOpenings), 0);
    for port in 0..reserve as u16 {
        assert!(open(&mut bed, 1000 + port, host(10 + (port % 100) as u8, 80)).is_some(), "{port}");
    }
}
