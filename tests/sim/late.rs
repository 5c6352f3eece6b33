//! ACKs that wait for data to go with, and pieces that are kept together.

use ringtap::limits::{ACK_DELAY, PIECES_MAX};

use crate::trace::{Trace, ack, data, fin};

/// A request of 100 bytes, taken by the host.
fn request(t: &mut Trace, seq: u32, ours: u32) {
    t.send(data(seq, ours, 100));
    t.sent(100);
}

#[test]
fn the_answer_carries_the_ack() {
    let (mut t, ours) = Trace::open();
    request(&mut t, 1001, ours);
    t.quiet();
    t.receive(10);
    assert_eq!(t.segments(), [data(ours, 1101, 10)]);
    // Nothing is left to say, nor to wake up for before the guest's next move is overdue.
    t.send(ack(1101, ours.wrapping_add(10)));
    t.wait(ACK_DELAY.0);
    t.quiet();
}

#[test]
fn the_end_carries_the_ack() {
    let (mut t, ours) = Trace::open();
    request(&mut t, 1001, ours);
    t.send(fin(1101, ours));
    t.quiet();
    t.eof();
    assert_eq!(t.segments(), [fin(ours, 1102)]);
    t.send(ack(1102, ours.wrapping_add(1)));
    t.closes(false);
}

#[test]
fn a_host_that_is_slow_to_answer_is_not_waited_for_again() {
    let (mut t, ours) = Trace::open();
    request(&mut t, 1001, ours);
    t.wait(ACK_DELAY.0 - 1);
    t.quiet();
    t.wait(1);
    assert_eq!(t.segments(), [ack(ours, 1101)]);
    request(&mut t, 1101, ours);
    assert_eq!(t.segments(), [ack(ours, 1201)]);
    // It answers at once now, and is trusted again.
    t.receive(10);
    assert_eq!(t.segments(), [data(ours, 1201, 10)]);
    t.send(data(1201, ours.wrapping_add(10), 100));
    t.sent(100);
    t.quiet();
}

#[test]
fn a_stream_of_small_segments_is_acknowledged_as_it_comes() {
    let (mut t, ours) = Trace::open();
    for n in 0..30 {
        request(&mut t, 1001 + n * 100, ours);
    }
    // Every full segment's worth of bytes, without any time going by.
    let acks: Vec<_> = t.segments().iter().map(|seg| seg.ack.unwrap()).collect();
    assert_eq!(acks, [2501, 4001]);
}

#[test]
fn single_bytes_do_not_cost_a_slot_each() {
    let (mut t, ours) = Trace::open();
    for _ in 0..1000 {
        t.receive(1);
    }
    let pools = t.stack.pools();
    let lent = pools.large.lent() + pools.small.lent();
    assert!(lent as usize <= PIECES_MAX + 1, "{lent} slots");
    t.segments();
    // Lost: what is sent again is all of it, in order.
    t.wait(400);
    let again = t.segments();
    assert_eq!((again[0].seq, again[0].len > 900), (ours, true), "{again:?}");
    t.send(ack(1001, ours.wrapping_add(1000)));
    let pools = t.stack.pools();
    assert_eq!(pools.large.lent() + pools.small.lent(), 0);
}
