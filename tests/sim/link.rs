//! A wire with faults, one direction.

use ringtap::time::{Millis, Time};

use crate::clock::Agenda;
use crate::prng::Rng;

/// How often what goes wrong, in permille of frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub loss: u64,
    pub duplicate: u64,
    pub reorder: u64,
    pub truncate: u64,
    /// Bits flipped: anywhere, where checksums protect it; in the virtio header's hints otherwise.
    pub corrupt: u64,
    /// Delay of each frame, at most, milliseconds; order is kept.
    pub delay: u64,
}

/// A wire.
#[derive(Debug)]
pub struct Link {
    faults: Faults,
    rng: Rng,
    /// Which bytes corruption may hit.
    fragile: std::ops::Range<usize>,
    last: Time,
    queue: Agenda<Vec<u8>>,
}

impl Link {
    pub fn new(faults: Faults, seed: u64, fragile: std::ops::Range<usize>) -> Self {
        Self { faults, rng: Rng::new(seed), fragile, last: Time(0), queue: Agenda::new() }
    }

    /// No more faults from now on.
    pub fn mend(&mut self) {
        self.faults = Faults { delay: self.faults.delay, ..Faults::default() };
    }

    pub fn send(&mut self, now: Time, mut frame: Vec<u8>) {
        let (f, rng) = (self.faults, &mut self.rng);
        if rng.chance(f.loss) {
            return;
        }
        if rng.chance(f.truncate) {
            frame.truncate(rng.below(frame.len() as u64) as usize);
        }
        if rng.chance(f.corrupt) {
            let end = self.fragile.end.min(frame.len());
            if self.fragile.start < end {
                let at = rng.range(self.fragile.start as u64, end as u64 - 1) as usize;
                frame[at] ^= 1 << rng.below(8);
            }
        }
        let copy = rng.chance(f.duplicate).then(|| frame.clone());
        for frame in [Some(frame), copy].into_iter().flatten() {
            let mut at = now + Millis(rng.range(0, f.delay));
            if rng.chance(f.reorder) {
                at = at + Millis(rng.range(1, 10));
            } else {
                at = at.max(self.last);
                self.last = at;
            }
            self.queue.push(at, frame);
        }
    }

    pub fn next(&self) -> Option<Time> {
        self.queue.next()
    }

    pub fn receive(&mut self, now: Time) -> Option<Vec<u8>> {
        self.queue.pop(now)
    }
}
