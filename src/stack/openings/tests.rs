//! Credits by themselves, and as the stack uses them.

use std::net::SocketAddr;

use super::*;
use crate::flow::{Action, Errno, Event, FlowId};
use crate::stack::testing::*;
use crate::stats::Drop;
use crate::time::Millis;

const FAILURES: u32 = OPENINGS_RATE / OPENING_FAILED;

fn taken(openings: &mut Openings, now: Time) -> u32 {
    (0..100_000).take_while(|_| openings.take(now)).count() as u32
}

#[test]
fn so_many_may_be_under_way() {
    let begin = Time(5000);
    let mut openings = Openings::new(begin);
    assert_eq!(taken(&mut openings, begin), OPENINGS_MOST);
    openings.give();
    assert_eq!(taken(&mut openings, begin), 1);
    for i in 1..=10 {
        assert_eq!(taken(&mut openings, begin + Millis(i * 100)), OPENINGS_RATE / 10);
    }
    // And are saved up to a bound.
    assert_eq!(taken(&mut openings, begin + Millis::secs(3600)), OPENINGS_MOST);
}

#[test]
fn those_that_work_are_not_counted() {
    let now = Time(5000);
    let mut openings = Openings::new(now);
    for _ in 0..10 * OPENINGS_MOST {
        assert!(openings.take(now));
        openings.give();
    }
    openings.give();
    assert_eq!(taken(&mut openings, now), OPENINGS_MOST);
}

#[test]
fn those_that_fail_are_had_at_a_rate() {
    let mut now = Time(5000);
    let mut openings = Openings::new(now);
    let mut fail = |now| {
        let fails = |openings: &mut Openings| openings.take(now).then(|| openings.failed());
        std::iter::from_fn(|| fails(&mut openings)).take(100_000).count() as u32
    };
    assert_eq!(fail(now), OPENINGS_MOST / OPENING_FAILED);
    for _ in 0..10 {
        now = now + Millis(100);
        assert_eq!(fail(now), FAILURES / 10);
    }
}

#[test]
fn those_that_fail_later_are_a_debt() {
    let now = Time(5000);
    let mut openings = Openings::new(now);
    let begun = taken(&mut openings, now);
    (0..begun).for_each(|_| openings.failed());
    // As much as there was, and no more.
    let debt = u64::from(OPENINGS_MOST * 1000 / OPENINGS_RATE);
    assert_eq!(taken(&mut openings, now + Millis(debt)), 0);
    assert_eq!(taken(&mut openings, now + Millis(debt + 1)), OPENINGS_RATE / 1000);
}

fn server() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 7], 80))
}

fn guest(port: u16) -> SocketAddr {
    SocketAddr::new(GUEST.into(), port)
}

/// Sends a SYN; the flow that it opens.
fn open(bed: &mut Bed, port: u16) -> Option<FlowId> {
    bed.send(&segment(guest(port), server(), 100, 0, 0x02));
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

fn refuse(bed: &mut Bed, flow: FlowId) {
    let actions = connected(bed, flow, Err(Errno(libc::ECONNREFUSED)));
    assert!(actions.iter().any(|a| matches!(a, Action::Close { .. })), "{actions:?}");
    bed.stack.handle_event(Event::Closed { flow }, bed.now);
}

#[test]
fn a_flood_of_refused_ones_is_had_at_a_rate() {
    let mut bed = Bed::native();
    let mut flood = |ms| {
        bed.now = bed.now + Millis(ms);
        let before = bed.dropped(Drop::TooManyOpenings);
        let opened =
            (1..=2000).filter_map(|port| open(&mut bed, port).map(|f| refuse(&mut bed, f)));
        let opened = opened.count() as u32;
        assert_eq!(bed.dropped(Drop::TooManyOpenings) - before, 2000 - u64::from(opened));
        opened
    };
    assert_eq!(flood(0), OPENINGS_MOST / OPENING_FAILED);
    assert_eq!(flood(100), FAILURES / 10);
    assert_eq!(flood(0), 0);
    assert_eq!((bed.stack.stats().flows, bed.lent()), (0, 0));
}

#[test]
fn connections_that_work_are_not_held_up() {
    let mut bed = Bed::native();
    for i in 0..3 * OPENINGS_MOST {
        let port = 1 + (i % 50_000) as u16;
        let flow = open(&mut bed, port).unwrap();
        let answer = connected(&mut bed, flow, Ok(()));
        let Some(Action::TapWrite { slot, .. }) = answer.first() else { panic!("{answer:?}") };
        let (_, tcp) = transport(slot.bytes());
        let iss = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
        drop(answer);
        bed.send(&segment(guest(port), server(), 101, iss.wrapping_add(1), 0x10));
        drop(bed.actions());
        // And away it goes.
        bed.send(&segment(guest(port), server(), 101, iss.wrapping_add(1), 0x04));
        assert!(bed.actions().iter().any(|a| matches!(a, Action::Close { .. })), "{i}");
        bed.stack.handle_event(Event::Closed { flow }, bed.now);
    }
    assert_eq!(bed.dropped(Drop::TooManyOpenings), 0);
}

#[test]
fn a_handshake_that_the_guest_breaks_off_is_a_failure() {
    let mut bed = Bed::native();
    let mut opened = 0;
    while let Some(flow) = open(&mut bed, 9) {
        opened += 1;
        drop(connected(&mut bed, flow, Ok(())));
        bed.send(&segment(guest(9), server(), 101, 0, 0x04));
        assert!(bed.actions().iter().any(|a| matches!(a, Action::Close { .. })));
        bed.stack.handle_event(Event::Closed { flow }, bed.now);
    }
    assert_eq!(opened, OPENINGS_MOST / OPENING_FAILED);
}
