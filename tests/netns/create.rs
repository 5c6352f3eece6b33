//! `create`: a namespace kept at a path, as `ip netns` keeps one.

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::harness::cmd::{Cmd, PATIENCE, Proc};
use crate::harness::{Bed, REMOTE4, need, not_slirp, pipe, ringtap};

/// `create` as root in the bed's host, ready.
fn create(bed: &Bed, path: &Path) -> Proc {
    let (mut ready, theirs) = pipe();
    let cmd = Cmd::of(ringtap()).args(&format!("create --ready-fd {}", theirs.as_raw_fd()));
    let mut proc = bed.host.enter(cmd.arg(path)).keep(&theirs).start();
    drop(theirs);
    ready.expect_byte(&mut proc);
    proc
}

/// A program run in the namespace at a path.
fn inside(bed: &Bed, path: &Path, line: &str) -> String {
    let net = format!("--net={}", path.display());
    bed.host.enter(Cmd::new("nsenter").arg(net).args(line)).ok()
}

#[test]
fn the_namespace_is_at_its_path_and_has_a_network() {
    need!("nsenter", "ping");
    not_slirp!("has no such command");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let bed = Bed::new();
        let path = bed.dir.path("made");
        let proc = create(&bed, &path);
        let link = inside(&bed, &path, "ip -o addr show dev tap0");
        assert!(link.contains("10.0.2.100/24"), "{link}");
        inside(&bed, &path, &format!("ping -c 1 -W 10 {REMOTE4}"));
        proc.signal(signal);
        let done = proc.wait(PATIENCE);
        assert_eq!(done.code(), Some(0), "{done:?}");
        assert!(!path.exists(), "the name is left");
    }
}

#[test]
fn it_ends_when_the_path_goes() {
    need!("nsenter");
    not_slirp!("has no such command");
    let bed = Bed::new();
    let path = bed.dir.path("made");
    let proc = create(&bed, &path);
    // As `ip netns delete` does.
    bed.host.cmd("umount -l").arg(&path).ok();
    bed.host.cmd("rm").arg(&path).ok();
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
}

#[test]
fn who_may_not_mount_is_told_so() {
    need!();
    not_slirp!("has no such command");
    let bed = Bed::new();
    let path = bed.dir.path("made");
    let done = bed.ringtap(&format!("create {}", path.display())).run();
    done.refused_with(&["create", "made", "root"]);
    assert!(!path.exists(), "the name is left");
}

#[test]
fn what_is_there_is_not_touched() {
    need!();
    not_slirp!("has no such command");
    let bed = Bed::new();
    let path = bed.dir.write("taken", "precious");
    let done = bed.host.enter(Cmd::of(ringtap()).args("create").arg(&path)).run();
    done.refused_with(&["taken", "exists"]);
    assert_eq!(std::fs::read(&path).expect("read"), b"precious");
}
