//! The walls, each walked into: what the filter of system calls and the restrictions of rings forbid is
//! tried, by a process that has the real ones.
//!
//! Each attempt is made twice by a new process, this program again: behind the wall it is killed by `SIGSYS`, and without it
//! nothing happens, so that it is the wall that kills.

#![allow(unsafe_code, reason = "system calls with arguments of one's choice")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod attempts;
mod rings;

// The worker's own ring, though it is not public.
#[allow(dead_code, unreachable_pub, reason = "what a test has no use for")]
#[path = "../../src/worker/ring.rs"]
mod ring;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use ringtap::boot::seccomp::{self, Needs};
// As `crate::arena` and `crate::limits` of the file above.
use ringtap::{arena, limits};

/// Which attempt this process is to make.
const ATTEMPT: &str = "RINGTAP_SECCOMP_ATTEMPT";
/// Set: without a filter.
const OPEN: &str = "RINGTAP_SECCOMP_OPEN";

/// The attempt that this process was started for.
fn asked() -> Option<String> {
    std::env::var(ATTEMPT).ok()
}

/// Raises the wall, unless this process is to do without.
fn wall(needs: Needs) {
    if std::env::var_os(OPEN).is_none() {
        seccomp::apply(needs).unwrap();
    }
}

/// Ends this process, whatever its other threads do.
fn leave() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

/// Runs `test` of this program again, to make an attempt.
fn again(test: &str, attempt: &str, walled: bool) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(ATTEMPT, attempt);
    if !walled {
        command.env(OPEN, "1");
    }
    command.env("RUST_BACKTRACE", if attempt.ends_with("traced") { "1" } else { "0" });
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
}

#[test]
fn what_forwarding_has_no_use_for_is_death() {
    if let Some(asked) = asked() {
        let (_, attempt) = attempts::FORBIDDEN.iter().find(|(name, _)| *name == asked).unwrap();
        wall(Needs::default());
        attempt();
        leave();
    }
    let mut wrong = Vec::new();
    for (name, _) in attempts::FORBIDDEN {
        let test = "what_forwarding_has_no_use_for_is_death";
        let walled = again(test, name, true);
        if walled.signal() != Some(libc::SIGSYS) {
            wrong.push(format!("{name} with the filter: {walled}"));
        }
        let open = again(test, name, false);
        if open.code() != Some(0) {
            wrong.push(format!("{name} without it: {open}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_only_some_runs_need_only_they_may() {
    if let Some(asked) = asked() {
        let (_, needs, attempt) =
            attempts::SOMETIMES.iter().find(|(name, ..)| *name == asked).unwrap();
        wall(if std::env::var_os("RINGTAP_SECCOMP_NEEDED").is_some() {
            *needs
        } else {
            Needs::default()
        });
        attempt();
        leave();
    }
    for (name, ..) in attempts::SOMETIMES {
        let run = |needed: bool| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "what_only_some_runs_need_only_they_may", "--nocapture"]);
            if needed {
                command.env("RINGTAP_SECCOMP_NEEDED", "1");
            }
            command.env(ATTEMPT, name).stdout(Stdio::null()).status().unwrap()
        };
        assert_eq!(run(false).signal(), Some(libc::SIGSYS), "{name}");
        assert_eq!(run(true).code(), Some(0), "{name}");
    }
}

#[test]
fn every_end_is_possible() {
    if let Some(asked) = asked() {
        let (_, _, end) = attempts::ENDS.iter().find(|(name, ..)| *name == asked).unwrap();
        end();
        leave();
    }
    for (name, expected, _) in attempts::ENDS {
        let status = again("every_end_is_possible", name, true);
        assert_eq!((status.code(), status.signal()), *expected, "{name}");
    }
}
