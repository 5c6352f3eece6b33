//! No byte of payload is touched while a TCP stream flows: user space spends as many instructions on a
//! frame of 1 KiB as on one of 64 KiB, counted by callgrind, which counts the same on any machine.
//!
//! This program runs itself under valgrind as a driver (`drive BYTES ROUNDS [touch]`), for some rounds
//! and for twice as many; the difference is the rounds alone, without start-up.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod driver;

use std::hint::black_box;
use std::process::Command;

use driver::{Driver, LARGEST};

/// Rounds of one frame each way.
const ROUNDS: u64 = 2000;
/// Rounds before the count: the window has grown to its bound, queues to their sizes.
const WARM_UP: u64 = 3000;

fn drive(bytes: usize, rounds: u64, touch: bool) {
    let mut driver = Driver::new();
    let payload = vec![1; bytes];
    for _ in 0..WARM_UP + rounds {
        driver.up(bytes);
        driver.down(bytes);
        if touch {
            // What one look at each byte would cost, so that the test is seen to notice it.
            black_box(ringtap::frame::checksum::sum(0, black_box(&payload)));
        }
    }
    let stats = driver.stats();
    let total = (WARM_UP + rounds) * bytes as u64;
    assert_eq!((stats.tcp_to_host, stats.tcp_to_guest), (total, total));
    assert_eq!(stats.copied_bytes, 0);
    assert_eq!(stats.retransmits + stats.drops.iter().sum::<u64>(), 0);
}

/// Instructions of one round.
fn instructions(bytes: usize, touch: bool) -> f64 {
    let count = |rounds: u64| {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        command.arg(std::env::current_exe().unwrap()).arg("drive");
        command.args([bytes.to_string(), rounds.to_string()]);
        if touch {
            command.arg("touch");
        }
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "the driver failed:\n{text}");
        let line = text.lines().find_map(|l| l.split("Collected : ").nth(1));
        line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or_else(|| panic!("{text}"))
    };
    (count(2 * ROUNDS) - count(ROUNDS)) as f64 / ROUNDS as f64
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "drive") {
        let touch = args.get(4).is_some();
        return drive(args[2].parse().unwrap(), args[3].parse().unwrap(), touch);
    }
    // As test runners ask: what is here, and whether a filter means it.
    let flag = |name: &str| args.iter().any(|a| a == name);
    if flag("--ignored") {
        return;
    }
    if flag("--list") {
        return println!("zero_copy: test");
    }
    let mut filters = args[1..].iter().filter(|a| !a.starts_with('-')).peekable();
    if filters.peek().is_some() && !filters.any(|f| "zero_copy".contains(f.as_str())) {
        return;
    }
    // Without valgrind, the counters at least.
    drive(1024, 10, false);
    drive(LARGEST, 10, false);
    if let Err(e) = Command::new("valgrind").arg("--version").output() {
        assert!(std::env::var_os("CI").is_none(), "cannot run in CI: valgrind: {e}");
        return println!("skipped: valgrind: {e}");
    }
    let (small, large) = (instructions(1024, false), instructions(LARGEST, false));
    println!(
        "instructions for a frame each way: {small:.0} of 1 KiB, {large:.0} of {LARGEST} bytes"
    );
    assert!((large - small).abs() / small < 0.02, "payload is touched");
    let touched = instructions(LARGEST, true);
    println!("if each byte were looked at once: {touched:.0}");
    assert!((touched - small) / small > 1.0, "the count is blind");
    println!("test zero_copy ... ok");
}
