//! When a worker watches for what comes next instead of sleeping. Pure.
//!
//! # Theory of operation
//!
//! To wake a sleeper takes longer than all that is done for a small message: 5 to 60 µs, most where the processor sleeps as
//! well, and a virtual one's interrupts are worth more still. One who asks and waits for the answer pays this twice per
//! exchange. So a worker whose last waits were short, as in such a conversation, watches its ring for [`SPIN`] before it
//! sleeps.
//!
//! * Only while there is little to do ([`SPIN_WORK`]). What comes in bulk does not wait for us, and the time is better
//!   spent by those who make and take it.
//! * Only after a wait that was hardly longer than the watch: between messages that are rarer, nothing is watched. So an idle
//!   worker sleeps, and the time spent in vain is never more than the time spent well by much.
//! * Whoever else wants the processor gets it. To be woken is a better way to get it back than to have given way, so a worker
//!   that meets others sleeps at once, and does without for some turns ([`SPIN_REST`]).
//! * Where there is one processor, never: who would answer?
#![forbid(unsafe_code)]

use std::time::Duration;

use super::ring::Watched;
use crate::limits::{SPIN, SPIN_REST, SPIN_WORK};

/// What the last turns were like.
#[derive(Debug)]
pub(super) struct Spin {
    /// There is a processor for it.
    able: bool,
    /// Of the last turns, decaying by an eighth each; in eighths.
    work: u32,
    /// Since something was heard of others.
    waited: Duration,
    /// The last wait for them was a short one.
    short: bool,
    /// Turns to go without, and those of the next time that others are met.
    rest: u32,
    next_rest: u32,
}

impl Spin {
    pub(super) fn new(processors: usize) -> Self {
        Self {
            able: processors > 1,
            work: 0,
            waited: Duration::ZERO,
            short: false,
            rest: 0,
            next_rest: SPIN_REST.0,
        }
    }

    /// A turn begins that may wait so long (`None`: for ever). For how long to watch first, if at all.
    pub(super) fn before(&self, patience: Option<Duration>) -> Option<Duration> {
        let worth =
            self.is_calm() && self.short && self.rest == 0 && patience.is_none_or(|p| p > SPIN);
        worth.then_some(SPIN)
    }

    /// Whether there is little to do, so that waits matter.
    pub(super) fn is_calm(&self) -> bool {
        self.able && self.work <= SPIN_WORK * 8
    }

    /// What came of watching; nothing, if it did not.
    pub(super) fn watched(&mut self, what: Watched) {
        self.rest = self.rest.saturating_sub(1);
        match what {
            Watched::Come => self.next_rest = (self.next_rest - 1).max(SPIN_REST.0),
            Watched::Nothing => {}
            Watched::Contested => {
                self.rest = self.next_rest;
                self.next_rest = (self.next_rest * 4).min(SPIN_REST.1);
            }
        }
    }

    /// It has waited so long, watching or asleep.
    pub(super) fn waited(&mut self, time: Duration) {
        self.waited = self.waited.saturating_add(time);
    }

    /// What came of it: completions, the bytes they moved, and whether others had done something: the end of our own
    /// sends, which comes at once, ends no wait.
    pub(super) fn worked(&mut self, completions: u32, bytes: u64, news: bool) {
        if news {
            self.short = std::mem::take(&mut self.waited) < SPIN * 2;
        }
        let bytes = u32::try_from(bytes / 256).unwrap_or(u32::MAX);
        let work = completions.saturating_add(bytes).min(u32::MAX / 8);
        self.work = self.work.saturating_sub(self.work.div_ceil(8)).saturating_add(work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = SPIN;

    fn calm() -> Spin {
        let mut spin = Spin::new(2);
        for _ in 0..20 {
            spin.waited(SHORT);
            spin.worked(2, 100, true);
        }
        spin
    }

    #[test]
    fn between_small_messages_it_watches() {
        assert_eq!(Spin::new(2).before(None), None, "nothing has come yet");
        assert_eq!(calm().before(None), Some(SPIN));
        assert_eq!(calm().before(Some(Duration::from_secs(1))), Some(SPIN));
    }

    #[test]
    fn never_beyond_what_is_due() {
        assert_eq!(calm().before(Some(Duration::ZERO)), None);
        assert_eq!(calm().before(Some(SPIN)), None);
    }

    #[test]
    fn one_long_wait_ends_it_and_one_short_begins_it() {
        let mut spin = calm();
        spin.waited(SPIN * 2);
        spin.worked(1, 100, true);
        assert_eq!(spin.before(None), None);
        spin.waited(SHORT);
        spin.worked(1, 100, true);
        assert_eq!(spin.before(None), Some(SPIN));
    }

    #[test]
    fn a_message_now_and_then_is_not_watched_for() {
        let mut spin = calm();
        for _ in 0..3 {
            spin.waited(SPIN * 200);
            spin.worked(1, 100, true);
            assert_eq!(spin.before(None), None);
            // What it sends has gone at once.
            spin.waited(SPIN / 10);
            spin.worked(1, 100, false);
            assert_eq!(spin.before(None), None);
        }
        // A wait has parts.
        for news in [false, false, true] {
            spin.waited(SPIN);
            spin.worked(1, 100, news);
        }
        assert_eq!(spin.before(None), None);
    }

    #[test]
    fn bulk_is_not_watched_for() {
        for (completions, bytes) in [(1, 65_536), (50, 50 * 100), (u32::MAX, u64::MAX)] {
            let mut spin = calm();
            for _ in 0..20 {
                spin.worked(completions, bytes, true);
            }
            assert!(!spin.is_calm(), "{completions} with {bytes} bytes");
            // It is over soon.
            let turns = (0..200).find(|_| {
                spin.worked(1, 100, true);
                spin.is_calm()
            });
            assert!(turns.is_some_and(|n| (1..190).contains(&n)), "{turns:?}");
        }
    }

    #[test]
    fn who_meets_others_does_without() {
        let mut spin = calm();
        let mut rests = |meet: bool| {
            if meet {
                spin.watched(Watched::Contested);
            }
            (0..10_000).find(|_| {
                spin.before(None).is_some() || {
                    spin.watched(Watched::Nothing);
                    false
                }
            })
        };
        assert_eq!(rests(false), Some(0));
        assert_eq!([(); 6].map(|()| rests(true)), [16, 64, 256, 1024, 4096, 4096].map(Some));
        for _ in 0..4090 {
            spin.watched(Watched::Come);
        }
        spin.watched(Watched::Contested);
        assert_eq!(spin.rest, SPIN_REST.0);
    }

    #[test]
    fn with_one_processor_never() {
        let mut spin = Spin::new(1);
        spin.waited(SHORT);
        spin.worked(1, 100, true);
        assert_eq!(spin.before(None), None);
    }
}
