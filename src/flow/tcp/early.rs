//! Segments of the guest that came before what precedes them.
//!
//! The wire to the guest is memory and reorders nothing, but a flow's frames may come by two queues of the TAP: some are
//! handed over while the next ones arrive at their worker themselves. Dropping these is within TCP's rules, and ruin: a
//! sender without SACK learns of one gap in a round trip, fills it, takes all that it has sent after it for on its way, and
//! waits for its timer, each time twice as long. (Seen with Linux's bbr: a stream that moved by 8 KB a minute.) So they are
//! kept, in their slots, until the gap is filled: some of them, for some time, and while there are slots enough.

use super::segment::before;
use crate::arena::{Chain, Slot};
use crate::limits::{EARLY_LIFE, EARLY_SLOTS};
use crate::time::Time;

/// What is beyond a gap, in the order of its sequence numbers ([`Slot::seq`]), no byte twice.
#[derive(Debug)]
pub(super) struct Early {
    segments: Chain,
    /// Number of the guest's FIN, if that came with one of them.
    fin: Option<u32>,
    /// When the first of them came.
    since: Time,
}

impl Early {
    pub(super) fn new() -> Self {
        Self { segments: Chain::new(), fin: None, since: Time(0) }
    }

    /// Segments that are kept.
    pub(super) fn slots(&self) -> usize {
        self.segments.slots()
    }

    /// Whether nothing is known beyond a gap.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.fin.is_none()
    }

    /// Keeps a segment whose first byte is `seq`. False: there are too many.
    pub(super) fn keep(&mut self, seq: u32, mut slot: Slot, fin: bool, now: Time) -> bool {
        if self.segments.slots() >= EARLY_SLOTS {
            return false;
        }
        if self.segments.is_empty() {
            self.since = now;
        }
        if fin {
            self.fin = Some(end(seq, &slot));
        }
        slot.seq = seq;
        let mut new = Some(slot);
        let mut all = std::mem::take(&mut self.segments);
        while let Some(old) = all.pop_front() {
            if let Some(mut slot) = new.take() {
                if before(slot.seq, old.seq) {
                    // What goes on behind `old` comes again.
                    slot.truncate(old.seq.wrapping_sub(slot.seq) as usize);
                    self.segments.push_back(slot);
                } else {
                    new = beyond(slot, end(old.seq, &old));
                }
            }
            self.segments.push_back(old);
        }
        if let Some(slot) = new {
            self.segments.push_back(slot);
        }
        true
    }

    /// Notes the number of the guest's FIN, which came by itself.
    pub(super) fn note_fin(&mut self, number: u32) {
        self.fin = Some(number);
    }

    /// The next segment from `next` on, now that all before it is there; what of it is old is cut off.
    pub(super) fn take(&mut self, next: u32) -> Option<Slot> {
        while self.segments.front().is_some_and(|slot| !before(next, slot.seq)) {
            let slot = beyond(self.segments.pop_front()?, next);
            if slot.is_some() {
                return slot;
            }
        }
        None
    }

    /// Whether the FIN is next.
    pub(super) fn take_fin(&mut self, next: u32) -> bool {
        self.fin.take_if(|fin| *fin == next).is_some()
    }

    /// When what is kept is given up.
    pub(super) fn deadline(&self) -> Option<Time> {
        (!self.segments.is_empty()).then_some(self.since + EARLY_LIFE)
    }

    /// Gives all up.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}

/// The number after the last byte.
fn end(seq: u32, slot: &Slot) -> u32 {
    seq.wrapping_add(slot.len() as u32)
}

/// What of a segment lies at `from` and after it; `None`: nothing.
fn beyond(mut slot: Slot, from: u32) -> Option<Slot> {
    if !before(from, end(slot.seq, &slot)) {
        return None;
    }
    if before(slot.seq, from) {
        slot.trim_front(from.wrapping_sub(slot.seq) as usize);
        slot.seq = from;
    }
    Some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Pools;

    const NEAR_THE_END: u32 = u32::MAX - 5;

    /// A segment whose bytes say where they belong.
    fn segment(pools: &Pools, from: u32, to: u32) -> (u32, Slot) {
        let mut slot = pools.small.take().unwrap();
        slot.set_range(0, (to - from) as usize);
        for (byte, at) in slot.bytes_mut().iter_mut().zip(from..) {
            *byte = at as u8;
        }
        (NEAR_THE_END.wrapping_add(from), slot)
    }

    /// Takes all that follows `next`, checks it, and says where it ends.
    fn drain(early: &mut Early, mut next: u32) -> u32 {
        while let Some(slot) = early.take(NEAR_THE_END.wrapping_add(next)) {
            assert_eq!(slot.seq, NEAR_THE_END.wrapping_add(next));
            for byte in slot.bytes() {
                assert_eq!(*byte, next as u8);
                next += 1;
            }
        }
        next
    }

    #[test]
    fn in_any_order_and_with_overlaps_each_byte_comes_once() {
        let pools = Pools::new().unwrap();
        let mut rng = 1u32;
        for _ in 0..2000 {
            let mut early = Early::new();
            let mut there = [false; 40];
            for _ in 0..12 {
                rng = rng.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let from = (rng >> 8) % 38 + 1;
                let to = (from + 1 + (rng >> 16) % 9).min(40);
                let (seq, slot) = segment(&pools, from, to);
                assert!(early.keep(seq, slot, false, Time(7)));
                // What was cut off behind another may be there or not; what stands alone is.
                there[from as usize] = true;
            }
            // A gap of one byte, filled.
            let mut at = 1;
            while at < 40 {
                let reached = drain(&mut early, at);
                assert!(reached > at || !there[at as usize], "{at} was kept");
                at = reached.max(at + 1);
            }
            assert_eq!((early.slots(), early.deadline()), (0, None));
        }
        assert_eq!(pools.small.lent(), 0);
    }

    #[test]
    fn the_fin_comes_after_the_last_byte() {
        let pools = Pools::new().unwrap();
        let mut early = Early::new();
        let (seq, slot) = segment(&pools, 10, 20);
        assert!(early.keep(seq, slot, true, Time(0)));
        assert!(!early.take_fin(NEAR_THE_END.wrapping_add(10)));
        assert_eq!(drain(&mut early, 10), 20);
        assert!(early.take_fin(NEAR_THE_END.wrapping_add(20)));
        assert!(!early.take_fin(NEAR_THE_END.wrapping_add(20)));
    }

    #[test]
    fn no_more_than_so_many_and_not_for_ever() {
        let pools = Pools::new().unwrap();
        let mut early = Early::new();
        for i in 0..EARLY_SLOTS as u32 {
            let (seq, slot) = segment(&pools, 10 * i + 1, 10 * i + 5);
            assert!(early.keep(seq, slot, false, Time(u64::from(i))));
        }
        let (seq, slot) = segment(&pools, 1000, 1001);
        assert!(!early.keep(seq, slot, false, Time(99)));
        assert_eq!(early.deadline(), Some(Time(0) + EARLY_LIFE));
        early.clear();
        assert_eq!((early.deadline(), pools.small.lent()), (None, 0));
    }
}
