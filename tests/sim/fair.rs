//! What a flow that stalls or attacks costs the others of its worker: at most a tenth of their throughput.
//!
//! The worker here reads and writes a number of frames a millisecond, and that is what limits two hundred live
//! flows; how long they take is then a count of the work that each byte of theirs has had to wait for. What a guest
//! sends takes its turn in the TAP's one queue, whoever sends it: a frame of an attack costs the others that turn.
//! What is shown is that it costs them no more than that and one answer, and that a flow that merely
//! stalls costs nothing: neither turns, nor the arena's slots.

use ringtap::arena::Pools;
use ringtap::limits::{SLOTS_MAX, TAP_QUEUE};
use ringtap::time::Time;
use smoltcp::wire::{TcpPacket, TcpSeqNumber};

use crate::guest::FROM;
use crate::spec::{FAST, Fate, FlowSpec, Pace, Spec};
use crate::tap;
use crate::world::World;

/// Frames read and written, a millisecond.
const CAPACITY: i64 = 100;
/// Frames of an attack a millisecond: with an answer to each, less than a tenth of that.
const ATTACK: usize = 4;
/// How long it lasts, ms: longer than the live flows.
const LASTS: u64 = 3000;
const LIVE: usize = 200;

/// Frames about the first flow that its guest's own stack would never send.
#[derive(Debug)]
pub struct Attack {
    kind: Kind,
    pub until: Time,
    /// The flow's newest frame.
    seen: Option<Vec<u8>>,
    count: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The first bytes of a frame, more each time.
    Torn,
    /// The newest frame again and again.
    Again,
    /// SYNs in the middle of a connection.
    Syn,
    /// Data far outside the window.
    Outside,
    /// RSTs far outside the window.
    Rst,
}

impl Attack {
    fn new(kind: Kind) -> Self {
        Self { kind, until: Time(LASTS), seen: None, count: 0 }
    }

    /// Listens in.
    pub fn see(&mut self, frame: &[u8]) {
        if let Some((_, tcp)) = frame.get(24..).and_then(tap::tcp_of)
            && tcp.src_port() == FROM
            && !tcp.syn()
        {
            self.seen = Some(frame.to_vec());
        }
    }

    /// What it sends in a millisecond.
    pub fn frames(&mut self) -> impl Iterator<Item = Vec<u8>> {
        let n = if self.seen.is_some() { ATTACK } else { 0 };
        (0..n).filter_map(|_| self.frame())
    }

    fn frame(&mut self) -> Option<Vec<u8>> {
        self.count += 1;
        let mut frame = self.seen.clone()?;
        let packet = frame.get_mut(24..)?;
        let (view, _) = tap::tcp_of(packet)?;
        let mut tcp = TcpPacket::new_unchecked(&mut packet[view.l4..view.end]);
        let far = TcpSeqNumber((tcp.seq_number().0).wrapping_add(0x4000_0000));
        match self.kind {
            Kind::Torn => frame.truncate(self.count % 64),
            Kind::Again => {}
            Kind::Syn => tcp.set_syn(true),
            Kind::Outside => tcp.set_seq_number(far),
            Kind::Rst => {
                tcp.set_seq_number(far);
                tcp.set_rst(true);
            }
        }
        Some(frame)
    }
}

/// What the live flows have met.
#[derive(Debug)]
struct Outcome {
    /// When the last of them was over, ms.
    end: u64,
    /// Slots that were lent, at most.
    peak: u32,
}

/// Two hundred live flows beside this one.
fn beside(first: FlowSpec, attack: Option<Kind>) -> Outcome {
    let live = FlowSpec {
        guest_tx: 3000,
        guest_rx: 6000,
        guest_read: FAST,
        ..FlowSpec::plain(20_000, 20_000)
    };
    let mut flows = vec![first];
    flows.extend((0..LIVE).map(|_| FlowSpec { start: 20, ..live }));
    let mut world = World::new(&Spec::plain("fair", 7, flows), &Pools::new().unwrap());
    world.capacity = Some(CAPACITY);
    world.room = TAP_QUEUE as usize;
    world.attack = attack.map(Attack::new);
    world.run();
    assert_eq!(world.lost, 0, "the guest's own losses would be measured");
    let ends = world.host.reports.iter().skip(1).map(|r| r.ended.unwrap().at);
    Outcome { end: (ends.max().unwrap() - world.began()).0, peak: world.peak }
}

/// A trickle both ways that its guest ends when all others are over.
fn trickle() -> FlowSpec {
    let pace = Pace { bytes: 100, gap: 5, pause: None };
    FlowSpec {
        guest_write: pace,
        host_write: pace,
        guest_fate: Fate::Resets(LASTS + 1000),
        ..FlowSpec::plain(1_000_000, 1_000_000)
    }
}

fn costs_at_most_a_tenth(what: &str, with: &Outcome, without: &Outcome) {
    assert!(with.end * 9 <= without.end * 10, "{what}: {with:?}, without it {without:?}");
}

/// Without the others' work the measure would be none.
#[test]
fn the_worker_is_what_limits_them() {
    let alone = beside(trickle(), None);
    // Both ways: 14 segments each make 20,000 bytes.
    let frames = LIVE as i64 * 2 * 14;
    assert!(alone.end as i64 >= frames / CAPACITY, "{alone:?}");
    assert!(alone.end < LASTS / 2, "an attack would be over before: {alone:?}");
}

#[test]
fn a_flow_that_stalls_costs_the_others_nothing() {
    let without = beside(FlowSpec { guest_fate: Fate::Resets(1), ..FlowSpec::plain(1, 1) }, None);
    let never = Pace { pause: Some((0, 60_000)), ..FAST };
    let bytes = 200_000;
    let small = Pace { bytes: 100, gap: 1, pause: None };
    let stalls = [
        (
            "a host that takes nothing",
            FlowSpec {
                host_tx: 500,
                host_read: never,
                guest_write: small,
                ..FlowSpec::plain(bytes, 0)
            },
        ),
        (
            "a guest that reads nothing",
            FlowSpec { guest_read: never, guest_rx: 30_000, ..FlowSpec::plain(0, bytes) },
        ),
        (
            "a guest that never acknowledges",
            FlowSpec {
                guest_fate: Fate::Vanishes(5),
                host_write: small,
                ..FlowSpec::plain(bytes, bytes)
            },
        ),
        ("a window of one byte", FlowSpec { guest_rx: 1, ..FlowSpec::plain(0, 2000) }),
        (
            "a host that reads byte by byte",
            FlowSpec {
                host_tx: 3,
                host_read: Pace { bytes: 1, gap: 1, pause: None },
                ..FlowSpec::plain(2000, 0)
            },
        ),
    ];
    for (what, stall) in stalls {
        let with = beside(stall, None);
        costs_at_most_a_tenth(what, &with, &without);
        assert!(with.peak < without.peak + SLOTS_MAX / 8, "{what}: {with:?} {without:?}");
    }
}

#[test]
fn a_flow_that_attacks_costs_the_others_a_tenth() {
    let without = beside(trickle(), None);
    for kind in [Kind::Torn, Kind::Again, Kind::Syn, Kind::Outside, Kind::Rst] {
        let with = beside(trickle(), Some(kind));
        costs_at_most_a_tenth(&format!("{kind:?}"), &with, &without);
        assert!(with.peak < without.peak + SLOTS_MAX / 8, "{kind:?}: {with:?} {without:?}");
    }
}

/// The measure does measure: an attack of a third of what the worker can do is felt.
#[test]
fn what_takes_turns_is_seen() {
    let without = beside(trickle(), None);
    let busy = Pace { bytes: 4000, gap: 1, pause: None };
    let with = beside(FlowSpec { guest_tx: 60_000, guest_write: busy, ..trickle() }, None);
    assert!(with.end > without.end, "{with:?} {without:?}");
}
