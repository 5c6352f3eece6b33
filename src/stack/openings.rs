//! How many connections of the guest may come to nothing.
//!
//! # Theory of operation
//!
//! A SYN is the guest's dearest frame: it takes a socket, a walk through the host's network stack to whoever refuses it, and
//! a second one to end it. A guest that sends them as fast as it can (a scan, a flood, a program that tries again
//! at once) would have the worker's time, and the other flows would lack it. So each SYN that opens a flow takes a
//! credit, which comes back when the handshake with the guest is over. Connections that work do not use it up,
//! however many there are in a second. Those that come to nothing do not only keep their credit,
//! but cost [`OPENING_FAILED`] of them; time brings new ones ([`OPENINGS_RATE`]). Without one a SYN is dropped, and the guest's kernel sends
//! it again after a second, as it does when a server's backlog is full.
//!
//! The credit is one for all of a worker's programs: while one uses it up, new connections of the others are dropped as well.

use crate::limits::{OPENING_FAILED, OPENINGS_MOST, OPENINGS_RATE};
use crate::time::Time;

const MOST: i64 = OPENINGS_MOST as i64;

/// The credit of one worker's connections.
#[derive(Debug)]
pub(super) struct Openings {
    /// Below zero: a debt, since many under way may fail at once.
    left: i64,
    /// Up to when those that come with time are counted.
    counted: Time,
}

impl Openings {
    pub(super) fn new(now: Time) -> Self {
        Self { left: MOST, counted: now }
    }

    /// Takes the credit of one connection, if there is one left.
    pub(super) fn take(&mut self, now: Time) -> bool {
        let come = (now - self.counted).0.saturating_mul(OPENINGS_RATE.into()) / 1000;
        if come > 0 {
            self.counted = now;
            self.left = self.left.saturating_add_unsigned(come).min(MOST);
        }
        let may = self.left > 0;
        self.left -= i64::from(may);
        may
    }

    /// One has worked.
    pub(super) fn give(&mut self) {
        self.left = (self.left + 1).min(MOST);
    }

    /// One has come to nothing.
    pub(super) fn failed(&mut self) {
        // Many that fail together must not stop new ones for longer than this takes to come back.
        self.left = (self.left - i64::from(OPENING_FAILED - 1)).max(-MOST);
    }
}

#[cfg(test)]
mod tests;
