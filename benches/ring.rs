//! What a turn of the ring costs apart from all work in it: the entry into the kernel and its way back.
//!
//! `cargo bench --bench ring`; with `-- --test` each runs once, which is what CI does. The TAP needs a network
//! namespace of its own: root's, or that of a user who may make user namespaces.

#![allow(unsafe_code, reason = "entries of a ring name memory")]
#![allow(clippy::unwrap_used, missing_docs, reason = "a failed step of a bench is a failed bench")]

// The worker's own ring, flags and buffers included, though none of it is public.
#[allow(dead_code, unreachable_pub, reason = "what a bench has no use for")]
#[path = "../src/worker/ring.rs"]
mod ring;

use std::ffi::OsString;
use std::os::fd::AsRawFd;

use criterion::{BenchmarkId, Criterion};
use io_uring::{cqueue, opcode, types};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{geteuid, read, write};
use ring::{BufRing, Ring};
use ringtap::arena::Arena;
use ringtap::cli::{self, Command};
use ringtap::limits::{SLOT_BYTES, TAP_SLOTS, VNET_LEN};
use ringtap::worker::TapQueue;
// As `crate::arena` and `crate::limits` of the file above.
use ringtap::{arena, limits};

/// `user_data` of the TAP's write and of its multishot read.
const WRITE: u64 = 1;
const READ: u64 = 2;
/// The guest has its first address when the command line says nothing else.
const GUEST: [u8; 4] = [10, 0, 2, 100];

fn main() {
    // First: only a process with one thread may have a new user namespace.
    let tap = guest();
    let mut c = Criterion::default().configure_from_args();
    nop(&mut c);
    match tap {
        Ok(tap) => round_trip(&mut c, &tap),
        Err(why) => println!("tap: skipped: {why}"),
    }
    c.final_summary();
}

/// The least a turn can do, and what each further entry adds.
fn nop(c: &mut Criterion) {
    let mut group = c.benchmark_group("turn");
    let mut ring = Ring::new().unwrap();
    // Not restricted: a worker has no use for NOPs.
    ring.enable().unwrap();
    for entries in [1, 16, 128] {
        group.bench_function(BenchmarkId::new("NOPs", entries), |b| {
            b.iter(|| {
                for _ in 0..entries {
                    // SAFETY: the entry names no memory.
                    unsafe { ring.push(&opcode::Nop::new().build()) }.unwrap();
                }
                let mut done = 0;
                while done < entries {
                    ring.turn(None).unwrap();
                    while ring.completion().is_some() {
                        done += 1;
                    }
                }
            });
        });
    }
    group.finish();
}

/// A question to the guest's kernel and its answer, as a rule there before the write returns: an ARP
/// request written to the TAP, the reply read from it.
fn round_trip(c: &mut Criterion, tap: &TapQueue) {
    let mut group = c.benchmark_group("tap");
    let frame = request(tap.vnet);
    let frame_at = if tap.vnet { VNET_LEN } else { 0 };
    let is_reply = |bytes: &[u8]| {
        // ARP, and the operation is 2.
        bytes.get(frame_at + 12..frame_at + 14) == Some(&[8, 6])
            && bytes.get(frame_at + 20..frame_at + 22) == Some(&[0, 2])
    };

    // Before the ring's read is there: it would take the replies.
    group.bench_function("write and read by two system calls", |b| {
        let mut buffer = vec![0; SLOT_BYTES];
        b.iter(|| {
            assert_eq!(write(&tap.fd, &frame), Ok(frame.len()));
            // The guest says other things, too, when its interface is new.
            while !read(&tap.fd, &mut buffer).is_ok_and(|len| is_reply(&buffer[..len])) {}
        });
    });

    let mut ring = Ring::new().unwrap();
    let arena = Arena::new(SLOT_BYTES, 2 * u32::from(TAP_SLOTS)).unwrap();
    let mut buffers = BufRing::new(&ring, 0, TAP_SLOTS, &arena, 0).unwrap();
    ring.restrict().unwrap();
    ring.enable().unwrap();
    let fd = types::Fd(tap.fd.as_raw_fd());
    let mut armed = false;
    group.bench_function("write and read by the ring", |b| {
        b.iter(|| {
            buffers.refill();
            if !armed {
                let entry = opcode::ReadMulti::new(fd, 0, buffers.group()).build().user_data(READ);
                // SAFETY: buffers come from a registered ring, whose slots the `BufRing` holds.
                unsafe { ring.push(&entry) }.unwrap();
                armed = true;
            }
            let entry = opcode::Write::new(fd, frame.as_ptr(), frame.len() as u32).build();
            // SAFETY: `frame` outlives the loop below, which ends after the write's completion.
            unsafe { ring.push(&entry.user_data(WRITE)) }.unwrap();
            let (mut written, mut answered) = (false, false);
            while !(written && answered) {
                ring.turn(None).unwrap();
                while let Some(done) = ring.completion() {
                    if done.user_data() == WRITE {
                        assert_eq!(done.result(), frame.len() as i32);
                        written = true;
                        continue;
                    }
                    armed &= cqueue::more(done.flags());
                    let Some(bid) = cqueue::buffer_select(done.flags()) else { continue };
                    let slot = buffers.take(bid, done.result().try_into().unwrap()).unwrap();
                    answered |= is_reply(slot.bytes());
                }
            }
        });
    });
    group.finish();
    ring.cancel_all(std::iter::empty());
    // Before its buffers.
    drop(ring);
}

/// An ARP request for the guest's address.
fn request(vnet: bool) -> Vec<u8> {
    let (mac, asker) = ([2, 0, 0, 0, 0, 2], [10, 0, 2, 2]);
    let mut frame = vec![0; if vnet { VNET_LEN } else { 0 }];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    // Ethertype ARP; Ethernet, IPv4, their lengths, operation 1.
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(asker);
    frame.extend([0; 6]);
    frame.extend(GUEST);
    frame
}

/// Puts this process into a network namespace of its own, with a TAP as a guest has it.
fn guest() -> Result<TapQueue, String> {
    let mut new = CloneFlags::CLONE_NEWNET;
    if !geteuid().is_root() {
        new |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(new).map_err(|e| format!("no network namespace of its own: {e}"))?;
    // Whom to attach to does not matter: this process is inside already.
    let line = ["ringtap", "attach", "1"].map(OsString::from);
    let config = match cli::parse(line) {
        Ok(Command::Forward(config, _)) => config,
        other => return Err(format!("{other:?}")),
    };
    let queues = ringtap::boot::netns::make(&config).map_err(|e| e.to_string())?;
    queues.into_iter().next().ok_or_else(|| "no queue".into())
}
