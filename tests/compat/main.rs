//! What slirp4netns's callers may rely on, one test for each behaviour: with ringtap under the name
//! slirp4netns, and with Debian's slirp4netns, so that the original tests the test. Where they differ,
//! `differences.rs` says so and why.
//!
//! Each behaviour is a function that takes the [`program::Program`] and a pair of tests, `NAME::ringtap`
//! and `NAME::original`.
//!
//! slirp4netns's own test scripts, and where what they try is tried here: api-socket and hostfwd in `api` and
//! `forwards`; cidr, dhcp and ipv6 in `addresses`; configure, macaddress, nspath, userns-path and tapfd in
//! `configure`; disable-dns, disable-host-loopback and outbound-addr in `special`; exit-fd and ready-fd in `life`;
//! sandbox and seccomp in `sandbox`; bess in `bess`; the texts in `command_line` and `output`.

// Tests wait on a real clock.
#![allow(clippy::disallowed_methods)]

// Shared with tests/netns, which needs all of it.
#[allow(dead_code, unused_macros, unused_imports)]
#[path = "../netns/harness/mod.rs"]
mod harness;

mod differences;
mod program;

mod addresses;
mod api;
mod bess;
mod command_line;
mod configure;
mod forwards;
mod life;
mod output;
mod sandbox;
mod special;
mod tap;
