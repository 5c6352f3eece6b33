//! Descriptors of the process, divided among workers and whatever else holds some for long.
//!
//! # Theory of operation
//!
//! Every flow holds one, and the process has a limit that all workers share. Half of what may be held, and not more than
//! [`DESCRIPTORS_DIVIDED`], is divided: each
//! worker has a part that no other can take, so that a flood on one queue never shuts out the guest's other
//! flows, and that is used without a word to anyone. The rest is common: who has used up its part takes from it, one
//! by one, so that one worker that is busy alone may hold nearly all (of two: three quarters at least).
//!
//! It is asked when a flow starts and told when its socket is closed, never in between.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::limits::DESCRIPTORS_DIVIDED;

/// What the process may hold.
#[derive(Debug)]
pub struct Descriptors {
    /// What each worker has for itself.
    part: u32,
    /// What is common, and how much of it is free.
    common: u32,
    free: AtomicU32,
}

impl Descriptors {
    /// At most `max` descriptors, for so many workers and what is [taken](Descriptors::take) beside them.
    pub fn new(max: u32, workers: usize) -> Arc<Self> {
        let workers = workers.max(1) as u32;
        let part = (max / 2).min(DESCRIPTORS_DIVIDED) / workers;
        let common = max - part * workers;
        Arc::new(Self { part, common, free: AtomicU32::new(common) })
    }

    /// Takes one from what is common; `None`: none is free. For flows there is [`Share`]; this is for what
    /// holds a descriptor for long and begins elsewhere: a port that is forwarded takes one before it opens its socket.
    pub fn lend(self: &Arc<Self>) -> Option<Taken> {
        self.take().then(|| Taken(self.clone()))
    }

    fn take(&self) -> bool {
        // Relaxed: the number stands for itself.
        let one_less = |free: u32| free.checked_sub(1);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    /// Gives one back.
    fn give(&self) {
        let before = self.free.fetch_add(1, Ordering::Relaxed);
        debug_assert!(before < self.common, "gives back what was not taken");
    }

    /// How many are free for anyone.
    pub fn free(&self) -> u32 {
        self.free.load(Ordering::Relaxed)
    }
}

/// One of what is common. It is given back when this is dropped: to be kept beside the descriptor that it stands for, and
/// dropped after it.
#[derive(Debug)]
pub struct Taken(Arc<Descriptors>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.give();
    }
}

/// One worker's part, and its way to what is common.
#[derive(Debug)]
pub struct Share {
    all: Arc<Descriptors>,
    held: u32,
}

impl Share {
    /// The share of one of the workers that `all` was made for.
    pub fn new(all: Arc<Descriptors>) -> Self {
        Self { all, held: 0 }
    }

    /// Takes one; false: there is none.
    pub fn take(&mut self) -> bool {
        let may = self.held < self.all.part || self.all.take();
        self.held += u32::from(may);
        may
    }

    /// What all share.
    pub fn all(&self) -> &Arc<Descriptors> {
        &self.all
    }

    /// Gives one back: to the others first.
    pub fn give(&mut self) {
        debug_assert!(self.held > 0, "gives back what was not taken");
        self.held = self.held.saturating_sub(1);
        if self.held >= self.all.part {
            self.all.give();
        }
    }

    /// Holds one that was taken from what is common.
    pub fn receive(&mut self, taken: Taken) {
        self.held += 1;
        if self.held > self.all.part {
            // It stays taken, and is this share's to give back.
            std::mem::forget(taken);
        }
    }

    /// How many more could be taken at this moment.
    pub fn room(&self) -> u32 {
        self.all.part.saturating_sub(self.held) + self.all.free()
    }

    /// The same, for what leaves an eighth of all that is common to others, or `reserve` where that is less; and
    /// likewise of this worker's part, when nothing else is left.
    pub fn room_beside(&self, reserve: u32) -> u32 {
        let part = self.all.part.saturating_sub(self.held);
        match self.all.free().saturating_sub(reserve.min(self.all.common / 8)) {
            0 => part.saturating_sub(reserve.min(self.all.part / 8)),
            common => part + common,
        }
    }

    /// How many it could hold if nobody else held any of what is common.
    pub fn max(&self) -> u32 {
        self.all.part + self.all.common
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as there are.
    fn take_all(share: &mut Share) -> usize {
        std::iter::from_fn(|| share.take().then_some(())).count()
    }

    /// However much of what is common others hold, and into however many parts it is divided.
    #[test]
    fn a_part_is_there_beside_a_reserve() {
        for (max, workers) in
            [(20_000, 1), (20_000, 4), (20_000, 8), (56, 2), (56, 8), (1 << 20, 8)]
        {
            let all = Descriptors::new(max, workers);
            let (mut share, mut other) = (Share::new(all.clone()), Share::new(all.clone()));
            let beside = all.part + all.common - 1024.min(all.common / 8);
            assert_eq!(share.room_beside(1024), beside, "{max}, {workers}");
            take_all(&mut other);
            assert_eq!(share.room_beside(1024), all.part - 1024.min(all.part / 8));
            take_all(&mut share);
            assert_eq!(share.room_beside(1024), 0);
        }
    }

    #[test]
    fn one_worker_may_hold_all() {
        for max in [0, 1, 2, 3, 100] {
            let mut share = Share::new(Descriptors::new(max, 1));
            assert_eq!((share.room(), share.max()), (max, max));
            assert_eq!(take_all(&mut share), max as usize);
            assert!(!share.take() && share.room() == 0);
            if max > 0 {
                share.give();
                assert_eq!((share.room(), take_all(&mut share)), (1, 1));
            }
        }
    }

    #[test]
    fn a_busy_one_leaves_the_others_their_part() {
        let all = Descriptors::new(100, 2);
        let [mut a, mut b] = [0, 1].map(|_| Share::new(all.clone()));
        assert_eq!(take_all(&mut a), 75);
        assert_eq!((b.room(), b.max()), (25, 75));
        assert_eq!(take_all(&mut b), 25);
        // What one gives back, the other may have.
        a.give();
        assert_eq!((take_all(&mut b), take_all(&mut a)), (1, 0));
        for _ in 0..74 {
            a.give();
        }
        assert_eq!((a.room(), b.room()), (25 + 49, 49));
        for _ in 0..26 {
            b.give();
        }
        assert_eq!(all.free(), 50);
    }

    #[test]
    fn forwards_and_flows_share_what_is_common() {
        let all = Descriptors::new(11, 3);
        let mut share = Share::new(all.clone());
        assert_eq!((all.part, all.common), (1, 8));
        for _ in 0..6 {
            assert!(all.take());
        }
        assert_eq!(take_all(&mut share), 3);
        assert!(!all.take());
        share.give();
        assert!(all.take() && !share.take());
    }

    #[test]
    fn what_was_lent_comes_back_by_itself() {
        let all = Descriptors::new(6, 1);
        let share = Share::new(all.clone());
        let mut lent: Vec<_> = std::iter::from_fn(|| all.lend()).collect();
        // Of what is common alone: the parts are for flows.
        assert_eq!((lent.len(), all.free(), share.room()), (3, 0, 3));
        lent.pop();
        assert_eq!((all.free(), share.room()), (1, 4));
        drop(lent);
        assert_eq!((all.free(), share.room()), (3, 6));
    }

    /// However they race, they never hold more than there are, and all comes back.
    #[test]
    fn together_they_stay_within_the_limit() {
        let all = Descriptors::new(50, 4);
        let (held, most) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for worker in 0..4u32 {
                let (mut share, held, most) = (Share::new(all.clone()), &held, &most);
                scope.spawn(move || {
                    let mut mine = 0;
                    for step in 0..50_000u32 {
                        // Runs of many and of few, each worker in its own rhythm.
                        let more = step.wrapping_mul(worker + 7) % 97 < 50;
                        if more && share.take() {
                            mine += 1;
                            let now = held.fetch_add(1, Ordering::SeqCst) + 1;
                            most.fetch_max(now, Ordering::SeqCst);
                        } else if !more && mine > 0 {
                            // Before it is given: who takes it counts it only afterwards.
                            held.fetch_sub(1, Ordering::SeqCst);
                            share.give();
                            mine -= 1;
                        }
                    }
                    for _ in 0..mine {
                        held.fetch_sub(1, Ordering::SeqCst);
                        share.give();
                    }
                });
            }
        });
        assert!(most.into_inner() <= 50);
        assert_eq!(all.free(), all.common);
    }
}
