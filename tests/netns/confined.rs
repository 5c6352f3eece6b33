//! The running program behind its walls. What they forbid is tried by `tests/seccomp`.

use std::fs;

use crate::harness::stream::{self, pair};
use crate::harness::{Bed, Family, With, need, not_slirp};

/// A field of each thread's `status`.
fn of_threads(pid: i32, field: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("its threads") {
        let status = task.expect("a thread").path().join("status");
        let status = fs::read_to_string(status).expect("its status");
        let get = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.expect(name).trim().to_owned()
        };
        found.push((get("Name"), get(field)));
    }
    found
}

#[test]
fn every_thread_has_the_filter() {
    need!();
    not_slirp!("has another one");
    let (bed, guest, proc) = Bed::up(&With::defaults().more("--workers 2"));
    // All that it ever has.
    let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
    stream::send_all(&inside, 1, 1000);
    stream::expect_all(&outside, 1, 1000);
    for (field, value) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
        let threads = of_threads(proc.pid(), field);
        assert_eq!(threads.len(), 3, "{threads:?}");
        assert!(threads.iter().all(|(_, has)| has == value), "{field}: {threads:?}");
    }
}
