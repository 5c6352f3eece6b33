//! The program on the real kernel: real namespaces, real TAPs, real programs at both ends. Needs root
//! (for networks of namespaces); the program itself runs as an ordinary user.

// Tests wait on a real clock.
#![allow(clippy::disallowed_methods)]

mod harness;

// What a guest's traffic meets.
mod dhcp;
mod dns;
mod forward_tcp;
mod forward;
mod icmp;
mod loopback;
mod offload;
mod outbound;
mod programs;
mod tcp;
mod udp;
mod udp_batch;
mod udp_in;
mod workers;

// The program itself.
mod api;
mod bess;
mod callers;
mod confined;
mod create;
mod life;
mod run;
