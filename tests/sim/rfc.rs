//! TCP towards the guest against the RFCs, one packet trace each. The guest's numbers begin at 1001.

use ringtap::flow::{Action, Errno, Event, Received};
use ringtap::limits::BLOCKS_RESERVED;
use ringtap::stats::Drop;

use crate::guest::HOST4;
use crate::trace::{Seg, Trace, ack, data, fin, rst, rst_ack, syn, syn_ack};

#[test]
fn handshake() {
    let mut t = Trace::new();
    t.send(syn(1000));
    t.quiet();
    // Again while the host still connects: heard, not answered.
    t.send(syn(1000));
    t.quiet();
    t.connect(Ok(()));
    let first = t.next();
    assert_eq!(first, syn_ack(first.seq, 1001));
    assert_eq!((first.mss, first.scale, first.window), (Some(1460), Some(7), 65535));
    // Lost: the guest asks again at once, or our timer runs out.
    t.send(syn(1000));
    t.expect(syn_ack(first.seq, 1001));
    t.wait(400);
    t.expect(syn_ack(first.seq, 1001));
    t.send(ack(1001, first.seq.wrapping_add(1)));
    t.quiet();
    assert!(t.receiving() > 0);
    t.wait(100_000);
    t.quiet();
    t.lives();
}

#[test]
fn no_window_scale_without_an_offer() {
    let mut offer = syn(1000);
    offer.scale = None;
    offer.mss = None;
    let mut t = Trace::new();
    t.send(offer);
    t.connect(Ok(()));
    assert_eq!(t.next().scale, None);
}

#[test]
fn handshake_nobody_finishes() {
    let mut t = Trace::new();
    t.send(syn(1000));
    t.connect(Ok(()));
    t.wait(120_000);
    let all = t.segments();
    assert!(all.len() > 4, "the SYN-ACK is repeated");
    assert_eq!(all.last().unwrap(), &rst_ack(all[0].seq.wrapping_add(1), 1001));
    t.closes(true);
}

#[test]
fn refused_and_timed_out() {
    let mut t = Trace::new();
    t.send(syn(1000));
    t.connect(Err(Errno(libc::ECONNREFUSED)));
    let reset = t.next();
    assert_eq!(reset, rst_ack(reset.seq, 1001));
    t.closes(true);
    let mut t = Trace::new();
    t.send(syn(1000));
    t.connect(Err(Errno(libc::ETIMEDOUT)));
    t.quiet();
    t.closes(true);
}

#[test]
fn guest_gives_up_while_the_host_connects() {
    let mut t = Trace::new();
    t.send(syn(1000));
    t.send(rst(1001));
    let Action::TcpConnect { flow, .. } = t.action() else { panic!("no connect") };
    assert!(matches!(t.action(), Action::Close { .. }));
    // The connect may end all the same before the socket is closed.
    t.event(Event::TcpConnected { flow, result: Ok(()) });
    t.event(Event::Closed { flow });
    t.quiet();
    assert_eq!(t.stack.stats().flows, 0);
}

#[test]
fn acknowledges_what_the_host_took_and_once_a_turn() {
    let (mut t, ours) = Trace::open();
    t.burst(&[data(1001, ours, 1000), data(2001, ours, 1000), data(3001, ours, 500)]);
    t.quiet();
    t.sent(2500);
    t.expect(ack(ours, 3501));
    t.quiet();
}

#[test]
fn a_full_host_is_acknowledged_in_time_and_the_window_closes() {
    let (mut t, ours) = Trace::open();
    let mut seq = 1001u32;
    let mut sent_all = 0;
    t.forget();
    loop {
        t.send(data(seq, ours, 1000));
        seq += 1000;
        sent_all += 1000;
        if seq == 2001 {
            t.sent(0);
        }
        t.wait(60);
        let told = t.segments();
        let last = told.last().expect("acknowledged within 60 ms");
        assert_eq!(last.ack, Some(seq), "all that has come is taken");
        if last.window < 8 {
            break;
        }
        assert!(sent_all < 100_000, "the window stays open");
    }
}

#[test]
fn out_of_order_is_asked_for_again() {
    let (mut t, ours) = Trace::open();
    t.send(data(2001, ours, 1000));
    t.expect(ack(ours, 1001));
    // What came early is there when the gap is filled.
    t.send(data(1001, ours, 1000));
    t.sent(2000);
    t.expect(ack(ours, 3001));
    // Old, and old with something new behind it.
    t.send(data(1001, ours, 1000));
    t.expect(ack(ours, 3001));
    t.send(data(2501, ours, 1000));
    assert_eq!(t.sending().bytes(), 500);
}

#[test]
fn what_came_early_is_kept_for_a_second_with_its_fin() {
    let (mut t, ours) = Trace::open();
    t.send(data(2001, ours, 1000).fin());
    t.expect(ack(ours, 1001));
    t.wait(2000);
    t.send(data(1001, ours, 1000));
    t.sent(1000);
    t.expect(ack(ours, 2001));
    t.send(data(2501, ours, 500).fin());
    t.expect(ack(ours, 2001));
    t.send(data(2001, ours, 1000));
    t.sent(1000);
    t.expect(ack(ours, 3002));
}

#[test]
fn acknowledgement_of_what_was_never_sent() {
    let (mut t, ours) = Trace::open();
    t.send(data(1001, ours.wrapping_add(1), 10));
    t.expect(ack(ours, 1001));
    t.lives();
}

/// RFC 5961 section 3.2 and 4.2.
#[test]
fn resets_and_syns_in_the_window_are_challenged() {
    let (mut t, ours) = Trace::open();
    t.send(rst(1002));
    t.expect(ack(ours, 1001));
    t.send(rst(1000));
    t.send(rst(900_000));
    t.quiet();
    t.send(syn(5000));
    t.expect(ack(ours, 1001));
    t.lives();
    t.send(rst(1001));
    t.quiet();
    t.closes(true);
}

#[test]
fn host_reset_reaches_the_guest() {
    let (mut t, ours) = Trace::open();
    t.receiving();
    t.event(Event::TcpReceived { flow: t.flow, result: Received::Failed(Errno(libc::ECONNRESET)) });
    t.expect(rst_ack(ours, 1001));
    t.closes(true);
}

#[test]
fn host_reset_at_zero_window() {
    let (mut t, ours) = Trace::open();
    t.receiving();
    t.receive(1000);
    t.expect(data(ours, 1001, 1000));
    t.send(ack(1001, ours.wrapping_add(1000)).window(0));
    t.forget();
    t.receive(100);
    t.expect(data(ours.wrapping_add(1000), 1001, 100));
    t.send(ack(1001, ours.wrapping_add(1100)).window(0));
    assert!(matches!(t.action(), Action::TcpPollError { .. }));
    t.event(Event::TcpHangup { flow: t.flow, errno: Errno(libc::ECONNRESET) });
    t.expect(rst_ack(ours.wrapping_add(1100), 1001));
    t.closes(true);
}

/// RFC 9293 section 3.8.6.1: as long as the guest answers, its window may stay shut.
#[test]
fn zero_window_is_probed_for_as_long_as_the_guest_answers() {
    let (mut t, ours) = Trace::open();
    t.forget();
    t.receive(1000);
    t.forget();
    t.expect(data(ours, 1001, 1000));
    let ours = ours.wrapping_add(1000);
    t.send(ack(1001, ours).window(0));
    let mut probes = 0;
    for _ in 0..3600 {
        t.wait(1000);
        for probe in t.segments() {
            assert_eq!(probe, ack(ours.wrapping_sub(1), 1001), "an old number");
            probes += 1;
            t.send(ack(1001, ours).window(0));
        }
        t.lives();
    }
    assert!(probes > 50, "{probes} probes in an hour");
    // It opens, shuts again, and nobody answers any more.
    t.send(ack(1001, ours).window(1000));
    t.receive(1000);
    t.segments();
    t.send(ack(1001, ours.wrapping_add(1000)).window(0));
    t.wait(1100);
    assert_eq!(t.segments().len(), 1, "the first probe comes soon again");
    t.wait(1_000_000);
    assert_eq!(t.segments().last().unwrap(), &rst_ack(ours.wrapping_add(1000), 1001));
    t.closes(true);
}

#[test]
fn idle_connections_live_while_the_guest_answers() {
    let (mut t, ours) = Trace::open();
    for _ in 0..5 {
        t.wait(620_000);
        t.expect(ack(ours.wrapping_sub(1), 1001));
        t.send(ack(1001, ours));
        t.lives();
    }
    t.wait(1_000_000);
    assert_eq!(t.segments().last().unwrap(), &rst_ack(ours, 1001));
    t.closes(true);
}

#[test]
fn lost_segments_are_sent_again() {
    let (mut t, ours) = Trace::open();
    t.receive(1000);
    t.expect(data(ours, 1001, 1000));
    t.wait(310);
    t.expect(data(ours, 1001, 1000));
    t.wait(610);
    t.expect(data(ours, 1001, 1000));
    // Half of it has come.
    t.send(ack(1001, ours.wrapping_add(500)));
    t.expect(data(ours.wrapping_add(500), 1001, 500));
    t.wait(310);
    t.expect(data(ours.wrapping_add(500), 1001, 500));
    t.send(ack(1001, ours.wrapping_add(1000)));
    t.wait(100_000);
    t.quiet();
    t.lives();
}

#[test]
fn three_duplicates_bring_the_segment_back_and_each_partial_ack_the_next() {
    let (mut t, ours) = Trace::open();
    for i in 0..5 {
        t.receive(1000);
        t.expect(data(ours.wrapping_add(i * 1000), 1001, 1000));
    }
    for _ in 0..3 {
        t.quiet();
        t.send(ack(1001, ours));
    }
    t.expect(data(ours, 1001, 1000));
    t.send(ack(1001, ours));
    t.quiet();
    t.send(ack(1001, ours.wrapping_add(2000)));
    t.expect(data(ours.wrapping_add(2000), 1001, 1000));
    t.send(ack(1001, ours.wrapping_add(5000)));
    t.quiet();
}

/// The timer runs out while the frame is still with the TAP: there is nothing to send, and nothing is lost.
#[test]
fn timer_while_the_write_is_under_way() {
    let (mut t, ours) = Trace::open();
    t.slow_tap = true;
    t.receive(1000);
    t.expect(data(ours, 1001, 1000));
    t.wait(400);
    t.quiet();
    t.slow_tap = false;
    t.written();
    t.wait(700);
    t.expect(data(ours, 1001, 1000));
    t.send(ack(1001, ours.wrapping_add(1000)));
}

#[test]
fn write_comes_back_after_the_end() {
    let (mut t, ours) = Trace::open();
    t.slow_tap = true;
    t.receive(1000);
    t.expect(data(ours, 1001, 1000));
    t.send(rst(1001));
    t.closes(true);
    t.slow_tap = false;
    t.written();
    assert_eq!(t.stack.pools().large.lent(), 0);
}

#[test]
fn guest_closes_first() {
    let (mut t, ours) = Trace::open();
    t.send(data(1001, ours, 100).fin());
    t.sent(100);
    assert!(matches!(t.action(), Action::TcpShutdown { .. }));
    t.expect(ack(ours, 1102));
    // Half-closed: the host goes on for as long as it likes.
    t.receive(1000);
    t.expect(data(ours, 1102, 1000));
    t.send(ack(1102, ours.wrapping_add(1000)));
    t.eof();
    t.expect(fin(ours.wrapping_add(1000), 1102));
    t.lives();
    t.send(ack(1102, ours.wrapping_add(1001)));
    t.quiet();
    t.closes(false);
}

#[test]
fn host_closes_first() {
    let (mut t, ours) = Trace::open();
    t.eof();
    t.expect(fin(ours, 1001));
    t.wait(310);
    t.expect(fin(ours, 1001));
    t.send(ack(1001, ours.wrapping_add(1)));
    t.send(data(1001, ours.wrapping_add(1), 100));
    t.sent(100);
    t.expect(ack(ours.wrapping_add(1), 1101));
    t.send(fin(1101, ours.wrapping_add(1)));
    t.expect(ack(ours.wrapping_add(1), 1102));
    t.closes(false);
    // Its ACK was lost: no flow knows the FIN that comes again (src/flow/tcp/close.rs).
    t.send(fin(1101, ours.wrapping_add(1)));
    t.expect(rst(ours.wrapping_add(1)));
}

#[test]
fn both_close_at_once() {
    let (mut t, ours) = Trace::open();
    t.eof();
    t.expect(fin(ours, 1001));
    t.send(fin(1001, ours));
    t.expect(ack(ours.wrapping_add(1), 1002));
    t.lives();
    t.send(ack(1002, ours.wrapping_add(1)));
    t.closes(false);
}

#[test]
fn same_ports_at_once_after_the_end() {
    let (mut t, ours) = Trace::open();
    t.receiving();
    t.eof();
    t.expect(fin(ours, 1001));
    t.send(fin(1001, ours.wrapping_add(1)));
    t.expect(ack(ours.wrapping_add(1), 1002));
    // The worker has not closed the socket yet; the new connection has another.
    let old = t.flow;
    t.forget();
    t.send(syn(70_000));
    t.connect(Ok(()));
    assert_ne!(old, t.flow);
    let answer = t.next();
    assert_eq!(answer, syn_ack(answer.seq, 70_001));
    t.event(Event::Closed { flow: old });
    t.send(ack(70_001, answer.seq.wrapping_add(1)));
    assert!(t.receiving() > 0);
}

#[test]
fn end_that_comes_before_the_data() {
    let (mut t, ours) = Trace::open();
    t.send(fin(1101, ours));
    t.expect(ack(ours, 1001));
    t.send(data(1001, ours, 100));
    t.sent(100);
    t.expect(ack(ours, 1102));
    // Again, and data beyond it.
    t.send(fin(1101, ours));
    t.expect(ack(ours, 1102));
    t.send(data(1102, ours, 100));
    t.expect(ack(ours, 1102));
    t.lives();
}

/// Data in a SYN needs no answer before the handshake is over (RFC 9293 section 3.4): it comes again.
#[test]
fn data_in_a_syn() {
    let mut t = Trace::new();
    let mut first = syn(1000);
    first.len = 10;
    t.send(first);
    t.connect(Ok(()));
    let answer = t.next();
    assert_eq!(answer, syn_ack(answer.seq, 1001));
    let ours = answer.seq.wrapping_add(1);
    t.send(data(1001, ours, 10));
    assert_eq!(t.sending().bytes(), 10);
}

/// A guest that answers a challenge resets at our ACK number, which may lie before what we hold.
#[test]
fn reset_at_the_acknowledged_number() {
    let (mut t, ours) = Trace::open();
    t.send(data(1001, ours, 1000));
    t.send(rst(1001));
    t.quiet();
    t.closes(true);
}

/// RFC 7323 section 2.4: rounding a window up would let it creep on with each small segment.
#[test]
fn small_segments_close_the_window_too() {
    let (mut t, ours) = Trace::open();
    t.forget();
    t.send(data(1001, ours, 1));
    t.sent(0);
    let mut seq = 1002u32;
    for _ in 0..800 {
        t.send(data(seq, ours, 100));
        seq += 100;
        t.wait(50);
        if t.segments().last().is_some_and(|s| s.window == 0) {
            return;
        }
    }
    panic!("a stuck host got {} bytes of backlog", seq - 1001);
}

#[test]
fn reset_for_no_flow() {
    let mut t = Trace::new();
    t.send(data(500, 900, 10));
    t.expect(rst(900));
    let mut bare = data(500, 0, 10);
    bare.ack = None;
    t.send(bare);
    t.expect(rst_ack(0, 510));
    t.send(rst(500));
    t.quiet();
    let mut wrong = fin(500, 900);
    wrong.ack = None;
    t.send(wrong);
    t.expect(rst_ack(0, 501));
}

/// The host ends its stream, and resets later while the guest still owes its end.
#[test]
fn host_resets_after_its_end() {
    let (mut t, ours) = Trace::open();
    t.receiving();
    t.eof();
    t.expect(fin(ours, 1001));
    t.send(ack(1001, ours.wrapping_add(1)));
    t.wait(5000);
    assert!(matches!(t.action(), Action::TcpPollError { .. }));
    t.event(Event::TcpHangup { flow: t.flow, errno: Errno(libc::ECONNRESET) });
    t.expect(rst_ack(ours.wrapping_add(1), 1001));
    t.closes(true);
}

/// The guest's numbers go back when it sends again; its window counts all the same.
#[test]
fn window_of_a_segment_sent_again() {
    let (mut t, ours) = Trace::open_with(Seg { scale: None, ..syn(1000).window(1000) });
    assert_eq!(t.receiving(), 1000);
    t.receive(1000);
    t.expect(data(ours, 1001, 1000));
    let ours = ours.wrapping_add(1000);
    t.forget();
    // 1001 was lost on its way; this one is beyond the gap, and closes the window.
    t.send(data(2001, ours, 100).window(0));
    t.expect(ack(ours, 1001));
    t.forget();
    t.send(data(1001, ours, 1000).window(500));
    assert_eq!(t.sending().bytes(), 1100);
    assert_eq!(t.receiving(), 500);
}

/// A program that has sent all and ended: its kernel forgets the connection after a minute, and answers what
/// the host says, or our probe, with a RST. What it was told we took must reach the host all the same.
#[test]
fn guest_that_is_gone_after_its_end() {
    let (mut t, ours) = Trace::open();
    t.forget();
    t.send(data(1001, ours, 1000).fin());
    t.sent(300);
    t.wait(60);
    assert_eq!(t.segments().last().unwrap(), &ack(ours, 2002));
    t.receive(10);
    t.expect(data(ours, 2002, 10));
    assert_eq!(t.stack.pools().large.lent(), 1, "for the guest, until it acknowledges");
    t.send(rst(2002));
    assert_eq!(t.stack.pools().large.lent(), 0);
    t.quiet();
    t.lives();
    t.forget();
    t.wait(100_000);
    t.event(Event::TcpWritable { flow: t.flow });
    t.sent(400);
    t.event(Event::TcpWritable { flow: t.flow });
    t.forget_polls();
    t.sent(300);
    assert!(matches!(t.action(), Action::TcpShutdown { .. }));
    t.closes(false);
    // And the host that never takes it.
    let (mut t, ours) = Trace::open();
    t.forget();
    t.send(data(1001, ours, 1000).fin());
    t.sent(300);
    t.wait(60);
    t.send(rst(2002));
    t.wait(1_000_000);
    t.closes(true);
}

/// All the guest had is the host kernel's, which shall not throw it away.
#[test]
fn reset_after_the_end_was_passed_on() {
    let (mut t, ours) = Trace::open();
    t.send(data(1001, ours, 1000).fin());
    t.sent(1000);
    t.expect(ack(ours, 2002));
    t.send(rst(2002));
    t.closes(false);
    // Without an end it is a reset.
    let (mut t, ours) = Trace::open();
    t.send(data(1001, ours, 1000));
    t.sent(1000);
    t.send(rst(2001));
    t.closes(true);
}

/// A guest's end is acknowledged once all before it is taken, though the host has yet to read it: a kernel
/// gives up on a FIN that nobody acknowledges within two minutes, and the backlog would be lost with it.
#[test]
fn end_is_acknowledged_while_the_host_stalls() {
    let (mut t, ours) = Trace::open();
    t.forget();
    t.send(data(1001, ours, 1000).fin());
    t.sent(0);
    t.wait(60);
    assert_eq!(t.segments().last().unwrap(), &ack(ours, 2002));
    t.wait(300_000);
    t.forget();
    t.event(Event::TcpWritable { flow: t.flow });
    t.sent(1000);
    assert!(matches!(t.action(), Action::TcpShutdown { .. }));
}

/// However late a write comes back, what nobody acknowledges does not pin a large slot.
#[test]
fn unacknowledged_bytes_leave_the_large_slots() {
    let (mut t, ours) = Trace::open();
    t.slow_tap = true;
    t.receive(10_000);
    t.expect(data(ours, 1001, 10_000));
    t.wait(100);
    t.slow_tap = false;
    t.written();
    assert_eq!(t.stack.pools().large.lent(), 1);
    t.wait(60);
    assert_eq!(t.stack.pools().large.lent(), 0);
    t.wait(200);
    assert!(t.next().len < 5000, "one small slot at a time");
}

/// At the bound of all backlogs, and only there, what the window let in is dropped: it was never here, its FIN
/// neither, and the guest sends it again.
#[test]
fn full_backlog_forgets_and_takes_again() {
    let (mut t, ours) = Trace::open();
    t.forget();
    let pool = t.stack.pools().small.clone();
    let mut all = Vec::new();
    while pool.available() > BLOCKS_RESERVED + 1 {
        all.push(pool.take().unwrap());
    }
    t.send(data(1001, ours, 6000));
    t.sent(0);
    t.send(data(7001, ours, 100).fin());
    t.wait(60);
    // One block was left.
    let last = t.segments().pop().unwrap();
    assert_eq!(last, ack(ours, 1001 + 4096));
    assert_eq!(t.stack.stats().dropped(Drop::BacklogFull), 1);
    assert_eq!(t.stack.pools().large.lent(), 0);
    all.clear();
    t.send(data(1001 + 4096, ours, 2004).fin());
    t.wait(60);
    assert_eq!(t.segments().pop().unwrap(), ack(ours, 7102));
    t.forget();
    t.event(Event::TcpWritable { flow: t.flow });
    // The full block, then the one that was filling.
    t.sent(4096);
    t.sent(2004);
    assert!(matches!(t.action(), Action::TcpShutdown { .. }));
}

/// Without a free slot the receive is tried again a little later, and not in a circle.
#[test]
fn no_slot_for_what_the_host_sends() {
    let (mut t, ours) = Trace::open();
    t.receiving();
    let pool = t.stack.pools().large.clone();
    let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    t.event(Event::TcpReceived { flow: t.flow, result: Received::NoBuffer });
    t.asks_nothing();
    t.wait(4);
    drop(all);
    t.wait(20);
    assert!(t.receiving() > 0);
    t.receive(10);
    t.expect(data(ours, 1001, 10));
}

/// The worker may still speak of a socket after the core has closed it.
#[test]
fn events_after_the_close() {
    let (mut t, ours) = Trace::open();
    t.send(data(1001, ours, 1000));
    let chain = t.sending();
    t.send(rst(2001));
    let flow = t.flow;
    t.event(Event::TcpSent { flow, chain, result: Ok(1000) });
    t.event(Event::TcpWritable { flow });
    t.receive(100);
    t.event(Event::TcpHangup { flow, errno: Errno(libc::EPIPE) });
    t.quiet();
    t.closes(true);
    // And of one that is gone altogether.
    t.event(Event::Closed { flow });
    t.event(Event::TcpReceived { flow, result: Received::Eof });
    t.quiet();
    assert_eq!(t.stack.stats().flows, 0);
}

/// DNS over TCP tries one resolver after the other; not for a guest that has given up in the same turn.
#[test]
fn no_next_resolver_for_a_guest_that_has_left() {
    let mut t = Trace::new();
    t.stack.set_resolvers(&[HOST4.into(), [10, 9, 9, 9].into()]);
    (t.host, t.ports.1) = ([10, 0, 2, 3].into(), 53);
    t.send(syn(1000));
    let refused = Err(Errno(libc::ECONNREFUSED));
    t.connect(refused);
    t.quiet();
    let Action::TcpConnect { flow, to } = t.action() else { panic!("no second try") };
    assert_eq!(to, ([10, 9, 9, 9], 53).into());
    t.frame(&rst(1001));
    t.event(Event::TcpConnected { flow, result: refused });
    assert!(matches!(t.action(), Action::Close { .. }), "and no third connect");
}

#[test]
fn every_resolver_refuses() {
    let mut t = Trace::new();
    t.stack.set_resolvers(&[HOST4.into(), [10, 9, 9, 9].into()]);
    (t.host, t.ports.1) = ([10, 0, 2, 3].into(), 53);
    t.send(syn(1000));
    t.connect(Err(Errno(libc::ECONNREFUSED)));
    t.connect(Err(Errno(libc::ECONNREFUSED)));
    let reset = t.next();
    assert_eq!(reset, rst_ack(reset.seq, 1001));
    t.closes(true);
}

/// A frame as full as it may be, of whole segments: also where one segment nearly fills it.
#[test]
fn receives_are_for_whole_segments() {
    for (mtu, mss, most) in [
        (1500, 1460, 44 * 1460),
        (1500, 9000, 44 * 1460),
        (1500, 536, 122 * 536),
        (9000, 8960, 7 * 8960),
        (65520, 65480, 65480),
        (65520, 65495, 65480),
    ] {
        let (mut t, _) = Trace::with_mtu(mtu).shake_hands(Seg { mss: Some(mss), ..syn(1000) });
        assert_eq!(t.receiving(), most, "MTU {mtu}, MSS {mss}");
    }
}

/// Silly windows (RFC 9293 section 3.8.6.2.1): less than a segment only when nothing is under way.
#[test]
fn small_windows_are_filled_one_at_a_time() {
    let (mut t, ours) = Trace::open_with(Seg { scale: None, ..syn(1000).window(100) });
    assert_eq!(t.receiving(), 100);
    t.receive(60);
    t.expect(data(ours, 1001, 60));
    assert!(matches!(t.action(), Action::TcpPollError { .. }), "40 more are not worth a segment");
    t.send(ack(1001, ours.wrapping_add(60)).window(100));
    assert_eq!(t.receiving(), 100);
}

/// A host that has more than a frame at hand is received from by several slots at once, whose bytes
/// follow each other; never beyond the guest's window.
#[test]
fn many_slots_at_once() {
    // Scaled by 128: room for seven frames.
    let (mut t, ours) = Trace::open();
    t.send(ack(1001, ours).window(4000));
    let frame = t.receiving();
    let part = |t: &mut Trace, n: u32, more| {
        let mut slot = t.stack.pools().large.take().expect("a free slot");
        slot.set_range(ringtap::limits::HEADROOM, n as usize);
        Event::TcpReceived { flow: t.flow, result: Received::Data { slot, more } }
    };
    let first = part(&mut t, frame, true);
    t.event(first);
    t.expect(data(ours, 1001, frame as usize));
    let Action::TcpRecvMany { frame: each, frames, .. } = t.action() else {
        panic!("one slot only")
    };
    assert_eq!(each, frame);
    // A new flow has a quota of 256 KiB: four frames, one of them is used.
    assert_eq!(frames, 3);
    let parts = [part(&mut t, frame, false), part(&mut t, frame, false), part(&mut t, 7, false)];
    let now = t.now;
    for event in parts {
        t.stack.handle_event(event, now);
    }
    t.turn();
    for (n, len) in [(1, frame), (2, frame), (3, 7)] {
        t.expect(data(ours.wrapping_add(n * frame), 1001, len as usize));
    }
    assert!(t.receiving() > 0, "and again one that waits");
}
