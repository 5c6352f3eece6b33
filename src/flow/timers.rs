//! One timer per flow, in a hierarchical wheel: O(1) to arm, nothing to scan.
//!
//! # Theory of operation
//!
//! Four levels of 64 buckets; a bucket of level `n` spans `64^n` ticks of 8 ms, so the horizon is
//! over 37 hours. A timer hangs in the bucket of its deadline, at the coarsest level that still tells it
//! from now, and falls to a finer level when that bucket's time begins. One bit per bucket says
//! which are in use, so the next deadline is found without looking into empty ones.
//!
//! Arming is lazy: a timer that must fire *later* than it is set stays where it is, fires early, and
//! its owner arms it again. A flow that pushes its deadline out with each packet thus costs nothing.

use crate::time::Time;

/// Timers of all flows, by place in the flow table.
#[derive(Debug)]
pub struct Timers {
    nodes: Vec<Node>,
    heads: [[u32; 64]; LEVELS],
    used: [u64; LEVELS],
    /// Ticks up to which all buckets have been emptied.
    now: u64,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    prev: u32,
    next: u32,
    /// Tick at which it fires.
    tick: u64,
    /// Level and bucket it hangs in, or `NOWHERE`.
    at: (u8, u8),
}

const LEVELS: usize = 4;
const NIL: u32 = u32::MAX;
const NOWHERE: (u8, u8) = (u8::MAX, 0);
/// Milliseconds of one tick.
const TICK: u64 = 8;
const HORIZON: u64 = 1 << (6 * LEVELS);

impl Default for Timers {
    fn default() -> Self {
        Self::new()
    }
}

impl Timers {
    /// Bytes that one flow costs here.
    pub const FLOW_BYTES: usize = size_of::<Node>();

    /// No timer set, at time zero.
    pub fn new() -> Self {
        Self { nodes: Vec::new(), heads: [[NIL; 64]; LEVELS], used: [0; LEVELS], now: 0 }
    }

    /// Makes sure that place `index` fires at `deadline` or earlier.
    pub fn arm(&mut self, index: u32, deadline: Time) {
        while self.nodes.len() <= index as usize {
            self.nodes.push(Node { prev: NIL, next: NIL, tick: 0, at: NOWHERE });
        }
        // Round up: never early by rounding; and never into a bucket already emptied.
        let tick = deadline.0.div_ceil(TICK).max(self.now + 1).min(self.now + HORIZON - 1);
        let node = &self.nodes[index as usize];
        if node.at != NOWHERE {
            if node.tick <= tick {
                return;
            }
            self.unlink(index);
        }
        self.nodes[index as usize].tick = tick;
        self.link(index);
    }

    /// Forgets the timer of a place.
    pub fn disarm(&mut self, index: u32) {
        if self.nodes.get(index as usize).is_some_and(|n| n.at != NOWHERE) {
            self.unlink(index);
        }
    }

    /// When [`Timers::expire`] has something to do next. May be earlier than any deadline.
    pub fn next(&self) -> Option<Time> {
        let mut best: Option<u64> = None;
        for level in 0..LEVELS {
            if self.used[level] == 0 {
                continue;
            }
            let shift = 6 * level as u32;
            let here = self.now >> shift;
            // The first bucket in use after the current one, going round.
            let rotated = self.used[level].rotate_right(((here + 1) & 63) as u32);
            let tick = (here + 1 + u64::from(rotated.trailing_zeros())) << shift;
            best = Some(best.map_or(tick, |b| b.min(tick)));
        }
        best.map(|tick| Time(tick * TICK))
    }

    /// Takes one place whose timer has run out by `now`; call until `None`.
    pub fn expire(&mut self, now: Time) -> Option<u32> {
        let target = now.0 / TICK;
        loop {
            // Timers of the current tick hang in its bucket of level 0.
            let bucket = (self.now & 63) as usize;
            let index = self.heads[0][bucket];
            if index != NIL && self.nodes[index as usize].tick <= self.now {
                self.unlink(index);
                return Some(index);
            }
            let next = self.next()?.0 / TICK;
            if next > target {
                // Nothing hangs between: skip ahead, but not past a bucket that must cascade.
                self.now = self.now.max(target);
                return None;
            }
            self.now = next;
            for level in (1..LEVELS).rev() {
                let shift = 6 * level as u32;
                if self.now & ((1 << shift) - 1) == 0 {
                    self.cascade(level, ((self.now >> shift) & 63) as usize);
                }
            }
        }
    }

    fn cascade(&mut self, level: usize, bucket: usize) {
        let mut index = self.heads[level][bucket];
        self.heads[level][bucket] = NIL;
        self.used[level] &= !(1 << bucket);
        while index != NIL {
            let next = self.nodes[index as usize].next;
            self.link(index);
            index = next;
        }
    }

    fn link(&mut self, index: u32) {
        let tick = self.nodes[index as usize].tick;
        let away = tick ^ self.now;
        // The highest differing digit decides the level: below it, both are in one bucket.
        let mut level = if away == 0 { 0 } else { (63 - away.leading_zeros()) as usize / 6 };
        level = level.min(LEVELS - 1);
        let bucket = ((tick >> (6 * level)) & 63) as usize;
        let head = self.heads[level][bucket];
        if head != NIL {
            self.nodes[head as usize].prev = index;
        }
        let node = &mut self.nodes[index as usize];
        node.prev = NIL;
        node.next = head;
        node.at = (level as u8, bucket as u8);
        self.heads[level][bucket] = index;
        self.used[level] |= 1 << bucket;
    }

    fn unlink(&mut self, index: u32) {
        let Node { prev, next, at: (level, bucket), .. } = self.nodes[index as usize];
        let (level, bucket) = (usize::from(level), usize::from(bucket));
        if prev == NIL {
            self.heads[level][bucket] = next;
            if next == NIL {
                self.used[level] &= !(1 << bucket);
            }
        } else {
            self.nodes[prev as usize].next = next;
        }
        if next != NIL {
            self.nodes[next as usize].prev = prev;
        }
        self.nodes[index as usize].at = NOWHERE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn fires_in_time_and_never_early_against_a_model() {
        let mut timers = Timers::new();
        let mut model: BTreeMap<u32, u64> = BTreeMap::new();
        let (mut seed, mut now) = (9u64, 0u64);
        let mut random = |n: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for _ in 0..50_000 {
            let index = random(200) as u32;
            let span = [10, 500, 40_000, 3_000_000][random(4) as usize];
            let deadline = now + random(span);
            match random(4) {
                0 => {
                    timers.disarm(index);
                    model.remove(&index);
                }
                _ => {
                    timers.arm(index, Time(deadline));
                    let set = model.entry(index).or_insert(deadline);
                    *set = (*set).min(deadline);
                }
            }
            // Either a little later, or at the moment the wheel asked for.
            now = match random(3) {
                0 => timers.next().map_or(now, |t| t.0.max(now)),
                _ => now + random(300),
            };
            while let Some(index) = timers.expire(Time(now)) {
                let deadline = model.remove(&index).expect("fired but not armed");
                assert!(deadline <= now, "early: {deadline} at {now}");
            }
            for (index, deadline) in &model {
                assert!(*deadline + 2 * TICK > now, "{index} late: {deadline} at {now}");
            }
            if let Some(next) = timers.next() {
                assert!(next.0 + TICK > now);
                let first = model.values().min().copied().unwrap_or(0);
                assert!(next.0 <= first.max(now) + 2 * TICK, "would sleep past {first}");
            } else {
                assert!(model.is_empty());
            }
        }
    }
}
