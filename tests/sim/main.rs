//! The core in a simulated world: seeded, without root, without a kernel.
//!
//! smoltcp is the guest, a script the host, and between them stand wires with faults and the real core.
//! [`model`] says which bytes must arrive where and what a wire may carry; [`host`] holds the core to the
//! contract of its seam.
//!
//! Each seed is a run: `SIM_SEED=0x51 cargo test --test sim seeds` replays one, `SIM_SEEDS=20000` runs more of
//! them (from `SIM_FIRST` on), `SIM_TRACE=1` prints the segments. What a failing seed was made of is printed; it
//! then goes to `seeds.txt`.
#![allow(unreachable_pub, reason = "nothing lies outside a test binary")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(missing_docs, reason = "the fields are the scenario's words")]

mod bound;
mod clock;
mod dns;
mod fair;
mod guest;
mod host;
mod hostile;
mod inbound;
mod late;
mod link;
mod model;
mod ping;
mod prng;
mod rfc;
mod scenarios;
mod shared;
mod spec;
mod tap;
mod trace;
mod udp;
mod workers;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ringtap::arena::Pools;

/// Seeds run by default, besides those of `seeds.txt`.
const SEEDS: u64 = 3000;

fn number(text: &str) -> u64 {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .unwrap_or_else(|e| panic!("`{text}` is not a seed: {e}"))
}

/// Runs one seed; false, with its parameters on stderr, when it fails.
fn holds(seed: u64, pools: &Pools) -> bool {
    holds_as(&scenarios::from_seed(seed), pools)
}

/// Runs one scenario; false, with its parameters on stderr, when it fails.
fn holds_as(spec: &spec::Spec, pools: &Pools) -> bool {
    let run = AssertUnwindSafe(|| {
        world::World::new(spec, pools).run();
    });
    if catch_unwind(run).is_ok() {
        return true;
    }
    eprintln!("SIM_SEED={:#x} fails ({}): {spec:?}\n", spec.seed, spec.name);
    false
}

#[test]
fn seeds() {
    let from_env = |name| std::env::var(name).ok().map(|text| number(&text));
    let pools = Pools::new().unwrap();
    if let Some(seed) = from_env("SIM_SEED") {
        assert!(holds(seed, &pools), "the seed fails");
        return;
    }
    let kept = include_str!("seeds.txt").lines().filter(|l| !l.starts_with('#'));
    let first = from_env("SIM_FIRST").unwrap_or(0);
    let count = from_env("SIM_SEEDS").unwrap_or(SEEDS);
    let seeds = kept.map(number).chain(first..first + count);
    let mut failed = Vec::new();
    for seed in seeds {
        if !holds(seed, &pools) {
            failed.push(seed);
            if failed.len() >= 10 {
                break;
            }
        }
    }
    assert!(failed.is_empty(), "failing seeds, as SIM_SEED={failed:#x?}");
}
