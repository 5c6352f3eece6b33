//! Which connection goes to which other worker, and when.
//!
//! # Theory of operation
//!
//! A new connection is placed where fewer are ([`directory`](super::directory)). That counts connections, not what they carry, and
//! what they carry shows only later: two that carry much may be with one worker, with many silent ones or none beside them, and
//! have half of what each would have alone. So a worker keeps account of those that carry much
//! ([`BULK_BYTES`](crate::limits::BULK_BYTES) within [`BULK_WITHIN`](crate::limits::BULK_WITHIN)), tells
//! the others how many there are, and gives one away when it has had [`BULK_GAP`] more than another for [`BULK_CALM`]. Then
//! both rest for as long, so that what comes of it is known before the next goes.
//!
//! All of this happens when a connection has carried so much again: no timer, and nothing for a packet.

use super::directory::Seat;
use crate::flow::FlowId;
use crate::limits::{BULK_CALM, BULK_GAP, BULK_LAPSE, BULK_MOST};
use crate::time::{Millis, Time};

/// One worker's connections that carry much.
#[derive(Debug)]
pub(super) struct Balance {
    /// Each with when it last did.
    bulk: Vec<(FlowId, Time)>,
    /// Since when another has fewer.
    uneven_since: Option<Time>,
    rest_until: Time,
    /// How many in a row could not go.
    pub(super) stayed: u32,
}

impl Balance {
    pub(super) fn new() -> Self {
        Self { bulk: Vec::new(), uneven_since: None, rest_until: Time(0), stayed: 0 }
    }

    /// A connection has carried much, once more: the worker that is to have it, if one is.
    pub(super) fn note(&mut self, id: FlowId, seat: &Seat, now: Time) -> Option<u8> {
        self.came(id, seat, now);
        let mine = self.bulk.len() as u32;
        let (worker, least) = seat.least_bulk(now)?;
        if mine < least + BULK_GAP {
            self.uneven_since = None;
            return None;
        }
        let since = *self.uneven_since.get_or_insert(now);
        let calm = now - since >= BULK_CALM && now >= self.rest_until;
        calm.then_some(worker)
    }

    /// Counts a connection that carries much.
    pub(super) fn came(&mut self, id: FlowId, seat: &Seat, now: Time) {
        self.bulk.retain(|&(known, at)| known != id && now - at <= BULK_LAPSE);
        if self.bulk.len() < BULK_MOST {
            self.bulk.push((id, now));
        }
        seat.note_bulk(self.bulk.len() as u32, now);
    }

    /// One has gone, or come.
    pub(super) fn rest(&mut self, now: Time) {
        self.stayed = 0;
        self.uneven_since = None;
        self.rest_until = now + BULK_CALM;
    }

    /// One could not go. It has cost that one some time, and will again: each next one in a row is tried after twice as long.
    pub(super) fn stayed(&mut self, now: Time) {
        let stayed = (self.stayed + 1).min(8);
        self.rest(now);
        self.stayed = stayed;
        self.rest_until = now + Millis(BULK_CALM.0 << stayed);
    }

    /// One is not here any more.
    pub(super) fn forget(&mut self, id: FlowId) {
        self.bulk.retain(|&(known, _)| known != id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::Directory;
    use super::*;

    fn id(index: u32) -> FlowId {
        FlowId { index, generation: 0 }
    }

    fn seats() -> [Seat; 3] {
        let directory = Directory::new(3, [1, 2]);
        [0, 1, 2].map(|me| Seat::new(directory.clone(), me))
    }

    /// Notes flows every 50 ms of some time; what is decided, and when first.
    fn busy(
        balance: &mut Balance,
        seat: &Seat,
        flows: u32,
        from: u64,
        ms: u64,
    ) -> Option<(u64, u8)> {
        (from..from + ms).step_by(50).find_map(|t| {
            let decided = (0..flows).filter_map(|i| balance.note(id(i), seat, Time(t))).next();
            decided.map(|worker| (t, worker))
        })
    }

    #[test]
    fn one_of_two_goes_to_who_has_none() {
        let (mut balance, [seat, ..]) = (Balance::new(), seats());
        assert_eq!(busy(&mut balance, &seat, 1, 1000, 5000), None, "one alone stays");
        let first = busy(&mut balance, &seat, 2, 6000, 5000);
        assert_eq!(first, Some((6000 + BULK_CALM.0, 1)));
        balance.rest(Time(7250));
        balance.forget(id(1));
        let second = busy(&mut balance, &seat, 3, 7250, 5000);
        assert_eq!(second, Some((7250 + BULK_CALM.0, 1)));
    }

    #[test]
    fn those_that_cannot_go_are_tried_less_and_less() {
        let (mut balance, [seat, ..]) = (Balance::new(), seats());
        let (mut from, mut gaps) = (1000, vec![]);
        for _ in 0..4 {
            let (at, _) = busy(&mut balance, &seat, 2, from, 60_000).unwrap();
            gaps.push(at - from);
            balance.stayed(Time(at));
            from = at;
        }
        assert_eq!(gaps, [1, 2, 4, 8].map(|n| n * BULK_CALM.0));
        balance.rest(Time(from));
        assert_eq!(busy(&mut balance, &seat, 2, from, 60_000).unwrap().0, from + BULK_CALM.0);
    }

    #[test]
    fn a_gap_of_one_is_left() {
        let (mut balance, [seat, one, two]) = (Balance::new(), seats());
        for t in (1000..5000).step_by(50) {
            one.note_bulk(1, Time(t));
            two.note_bulk(2, Time(t));
            assert_eq!(busy(&mut balance, &seat, 2, t, 1), None);
        }
        // The others end, and say nothing of it.
        let least = seat.least_bulk(Time(4950 + BULK_LAPSE.0)).unwrap();
        assert_eq!(least, (1, 1));
        let (t, worker) = busy(&mut balance, &seat, 2, 5000, 5000).unwrap();
        assert_eq!(worker, 1);
        assert!(t > 4950 + BULK_LAPSE.0, "{t}");
    }

    #[test]
    fn who_carries_no_more_is_forgotten() {
        let (mut balance, [seat, ..]) = (Balance::new(), seats());
        for i in 0..3 * BULK_MOST as u32 {
            balance.note(id(i), &seat, Time(1000));
        }
        assert_eq!(balance.bulk.len(), BULK_MOST);
        balance.note(id(7), &seat, Time(1000) + BULK_LAPSE + Millis(1));
        assert_eq!(balance.bulk.len(), 1);
    }
}
