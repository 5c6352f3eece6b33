//! Time as the pure code knows it: an argument, never a question to a clock.

use std::ops::{Add, Sub};

/// A moment, in milliseconds since the worker started. The worker reads the clock once per turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

/// A length of time in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// `secs` seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(secs * 1000)
    }
}

impl Add<Millis> for Time {
    type Output = Self;
    fn add(self, rhs: Millis) -> Self {
        Self(self.0.saturating_add(rhs.0))
    }
}

impl Sub for Time {
    type Output = Millis;
    /// The time from `rhs` to `self`; zero when `rhs` is later.
    fn sub(self, rhs: Self) -> Millis {
        Millis(self.0.saturating_sub(rhs.0))
    }
}
