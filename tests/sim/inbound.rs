//! Connections that come from outside: the guest is the server.

use ringtap::arena::Pools;
use ringtap::limits::{RTO_MIN, SYN_RETRIES_MAX};
use ringtap::stats::Drop;

use crate::holds_as;
use crate::prng::Rng;
use crate::scenarios;
use crate::spec::{Connect, Spec};
use crate::trace::{Seg, Trace, ack, data, fin, rst, rst_ack, syn, syn_ack};

/// The scenarios of the other direction, with flows that are opened from outside, all or half of them.
fn spec(seed: u64) -> Spec {
    let mut spec = scenarios::from_seed(seed);
    let mut rng = Rng::new(seed ^ 0x1b0d);
    let all = rng.chance(500);
    spec.name = "inbound";
    for flow in &mut spec.flows {
        flow.inbound = all || rng.chance(500);
        if flow.inbound {
            flow.connect = Connect { delay: 0, errno: 0 };
            // Cut off the answer only, scaling would mean different things to the two sides.
            flow.scale = true;
        }
    }
    // No SYN of the guest's to choose a number for.
    spec.wrap &= !spec.flows[0].inbound;
    spec
}

#[test]
fn seeds_from_outside() {
    let pools = Pools::new().unwrap();
    let seeds = match std::env::var("SIM_INBOUND") {
        Ok(seed) => vec![crate::number(&seed)],
        Err(_) => (0..1500).collect(),
    };
    let failed: Vec<u64> =
        seeds.into_iter().filter(|&seed| !holds_as(&spec(seed), &pools)).take(10).collect();
    assert!(failed.is_empty(), "failing seeds, as SIM_INBOUND={failed:#x?}");
}

/// A connection accepted, and our SYN: its number.
fn called() -> (Trace, u32) {
    let mut t = Trace::new();
    t.accept();
    let first = t.next();
    assert_eq!(first, Seg { scale: None, mss: None, ..syn(first.seq) });
    assert_eq!((first.mss, first.scale, first.window), (Some(1460), Some(7), 65535));
    t.asks_nothing();
    (t, first.seq)
}

/// The guest's answer.
fn answer(ours: u32) -> Seg {
    Seg { mss: Some(1460), scale: Some(7), ..syn_ack(9000, ours.wrapping_add(1)) }
}

#[test]
fn the_handshake_and_bytes_both_ways() {
    let (mut t, ours) = called();
    t.send(answer(ours).window(20_000));
    t.expect(ack(ours.wrapping_add(1), 9001));
    // Now, and not before, the host is received from; and no more than the guest has room for.
    assert_eq!(t.receiving(), 20_000 / 1460 * 1460);
    t.receive(100);
    t.expect(data(ours.wrapping_add(1), 9001, 100));
    t.send(data(9001, ours.wrapping_add(101), 50));
    t.sent(50);
    t.expect(ack(ours.wrapping_add(101), 9051));
    t.eof();
    t.expect(fin(ours.wrapping_add(101), 9051));
    t.send(fin(9051, ours.wrapping_add(102)));
    t.expect(ack(ours.wrapping_add(102), 9052));
    t.closes(false);
}

#[test]
fn options_that_the_guest_leaves_out() {
    let (mut t, ours) = called();
    t.send(syn_ack(9000, ours.wrapping_add(1)).window(1000));
    t.expect(ack(ours.wrapping_add(1), 9001));
    assert_eq!(t.receiving(), 536);
    // Without scaling, 16 bits are all.
    t.receive(536);
    assert_eq!(t.next().window, 65535);
    t.forget();
    t.send(ack(9001, ours.wrapping_add(537)).window(65535));
    assert_eq!(t.receiving(), 65535 / 536 * 536);
}

#[test]
fn the_answer_comes_again_when_our_ack_was_lost() {
    let (mut t, ours) = called();
    for _ in 0..3 {
        t.send(answer(ours));
        t.expect(ack(ours.wrapping_add(1), 9001));
    }
    t.lives();
}

#[test]
fn data_with_the_answer_comes_again() {
    let (mut t, ours) = called();
    t.send(Seg { len: 100, ..answer(ours) });
    t.expect(ack(ours.wrapping_add(1), 9001));
    t.send(data(9001, ours.wrapping_add(1), 100));
    t.sent(100);
    t.expect(ack(ours.wrapping_add(1), 9101));
}

#[test]
fn a_refusal_resets_the_peer_at_once() {
    let (mut t, ours) = called();
    t.send(rst_ack(0, ours.wrapping_add(1)));
    t.quiet();
    t.closes(true);
    assert_eq!(t.stack.stats().flows, 0);
}

#[test]
fn a_silent_guest_is_given_up() {
    let (mut t, ours) = called();
    let start = t.now;
    let mut times = vec![];
    while t.stack.stats().flows > 0 && times.len() < 100 {
        t.wait(50);
        for again in t.segments() {
            assert_eq!(again, syn(ours));
            times.push((t.now - start).0);
        }
        if times.len() == usize::from(SYN_RETRIES_MAX) && (t.now - start).0 > 19_100 {
            break;
        }
    }
    assert_eq!(times.len(), usize::from(SYN_RETRIES_MAX), "{times:?}");
    for (n, pair) in times.windows(2).enumerate() {
        let gap = RTO_MIN.0 << (n + 1);
        assert!((gap..gap + 100).contains(&(pair[1] - pair[0])), "{times:?}");
    }
    t.quiet();
    t.closes(true);
    assert_eq!(t.stack.stats().flows, 0);
}

#[test]
fn an_older_connection_between_the_ports_is_reset_once_and_gives_way() {
    let (mut t, ours) = called();
    // The guest's kernel still has it, and challenges our SYN.
    t.send(ack(777, 12_345));
    assert_eq!(t.segments(), [rst(12_345), syn(ours)]);
    // What is never content gets its RST, but no more SYNs than the timer allows.
    for _ in 0..50 {
        t.send(ack(777, 12_345));
        assert_eq!(t.segments(), [rst(12_345)]);
    }
    t.send(answer(ours));
    t.expect(ack(ours.wrapping_add(1), 9001));
    t.lives();
}

#[test]
fn garbage_in_answer_neither_opens_nor_ends_it() {
    let (mut t, ours) = called();
    let good = ours.wrapping_add(1);
    for seg in [
        rst(0),
        rst(ours),
        rst_ack(0, good.wrapping_add(1)),
        rst_ack(0, ours),
        data(9001, good, 100),
        fin(9001, good),
        syn(9000),
    ] {
        t.send(seg.clone());
        t.quiet();
        assert_eq!(t.stack.stats().flows, 1, "{seg:?}");
    }
    assert_eq!(t.stack.stats().dropped(Drop::OutOfWindow), 7);
    t.asks_nothing();
    // A guest that opens the other way at the same moment answers our SYN as well, with its own number.
    t.send(answer(ours));
    t.expect(ack(good, 9001));
    t.lives();
}

/// A guest that answers with anything at all.
#[test]
fn random_answers() {
    let mut rng = Rng::new(77);
    for _ in 0..300 {
        let mut t = Trace::new();
        t.accept();
        let ours = t.next().seq;
        for _ in 0..6 {
            let near = |rng: &mut Rng| ours.wrapping_add(rng.range(0, 3) as u32);
            let (seq, ack) = (rng.range(0, u64::from(u32::MAX)) as u32, near(&mut rng));
            let seg = match rng.below(7) {
                0 => rst(near(&mut rng)),
                1 => rst_ack(seq, ack),
                2 => syn(seq),
                3 => syn_ack(seq, ack),
                4 => fin(seq, ack),
                5 => data(seq, ack, 30),
                _ => Seg { scale: Some(200), mss: Some(0), ..syn_ack(seq, ack) },
            };
            t.send(seg.window(rng.range(0, 65535) as u16));
        }
        t.segments();
        // A last word ends it, whatever it has become.
        t.stack.handle_event(
            ringtap::flow::Event::TcpReceived {
                flow: t.flow,
                result: ringtap::flow::Received::Failed(ringtap::flow::Errno(libc::ECONNRESET)),
            },
            t.now,
        );
        t.turn();
    }
}
