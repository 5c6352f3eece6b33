//! What a flood of connections that come to nothing leaves to others.

use super::*;
use crate::flow::{Errno, Event};
use crate::limits::{OPENINGS_ADDRESS_EVERY, OPENINGS_ADDRESS_MOST, OPENINGS_MOST};
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
