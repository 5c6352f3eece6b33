//! What the design believes about the kernel, each belief a small test that says on which kernel it
//! was tried and what it saw (`--nocapture` shows it). When one fails, code that rests on it is wrong there.
//!
//! Every test runs in a network namespace of its own: as root directly, as an ordinary user inside a
//! user namespace. Where neither is permitted a test is skipped and says why, unless `CI` is set.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod bed;
mod foreign_tap;
mod forward;
mod ring;
mod socket;
mod tap;
mod udp;
