//! Finds entries of a list by hash: open addressing over their places.
//!
//! Linear probing, at most half full, deletion by shifting back (no tombstones, so its speed does not decay). It
//! knows no keys: whoever has the entries compares them. An index of length 0 takes nothing and finds nothing.

/// No place.
pub(super) const NONE: u16 = u16::MAX;

/// Places by hash.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<u16>);

impl Places {
    /// Empties it, with room for half of `len` places. `len` is a power of two, or 0.
    pub(super) fn reset(&mut self, len: usize) {
        self.0.clear();
        self.0.resize(len, NONE);
    }

    /// Twice the places it takes.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it takes nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The place with this hash that `is` the one.
    pub(super) fn find(&self, hash: usize, is: impl Fn(u16) -> bool) -> Option<u16> {
        let mask = self.0.len().checked_sub(1)?;
        let mut at = hash & mask;
        while self.0[at] != NONE {
            if is(self.0[at]) {
                return Some(self.0[at]);
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// Adds a place that is not in it.
    pub(super) fn insert(&mut self, place: u16, hash: usize) {
        let Some(mask) = self.0.len().checked_sub(1) else { return };
        let mut at = hash & mask;
        while self.0[at] != NONE {
            at = (at + 1) & mask;
        }
        self.0[at] = place;
    }

    /// Takes out a place that is in it, shifting back what would no longer be reached. `hash` knows the hash of
    /// every place.
    pub(super) fn remove(&mut self, place: u16, hash: impl Fn(u16) -> usize) {
        let Some(mask) = self.0.len().checked_sub(1) else { return };
        let mut hole = hash(place) & mask;
        while self.0[hole] != place {
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let next = self.0[at];
            if next == NONE {
                break;
            }
            let home = hash(next) & mask;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.0[hole] = next;
                hole = at;
            }
        }
        self.0[hole] = NONE;
    }
}
