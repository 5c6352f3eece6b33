//! The sandbox: every wall is proved by walking into it, and nothing is left behind, however the program ends.

// Tests wait on a real clock.
#![allow(clippy::disallowed_methods)]

// Shared with tests/netns, which needs all of it.
#[allow(dead_code, unused_macros, unused_imports)]
#[path = "../netns/harness/mod.rs"]
mod harness;

mod child;
mod cleanup;
mod outside;
mod resolv;
mod walls;
