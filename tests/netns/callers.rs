//! What its callers do to a slirp4netns, under that name.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

use crate::harness::cmd::{Cmd, PATIENCE};
use crate::harness::stream::{self, pair};
use crate::harness::{Bed, Family, Guest, USER, against_slirp, need, not_slirp, pipe, ringtap};

/// slirp4netns, with a descriptor in the place of stdout and stderr.
fn slirp(bed: &Bed, guest: &Guest, args: &str, output: Option<&OwnedFd>) -> Cmd {
    let program = if against_slirp() { "/usr/bin/slirp4netns".into() } else { ringtap() };
    let output = output.map(|fd| format!(">&{0} 2>&{0}", fd.as_raw_fd())).unwrap_or_default();
    let script = format!(
        "exec -a slirp4netns {} -c {args} {} tap0 {output}",
        program.display(),
        guest.holder.pid()
    );
    bed.host.enter_as(USER, Cmd::new("bash -c").arg(script))
}

/// The kernel lets go of a killed holder's TAP some time after the process has gone.
#[test]
fn killed_and_started_again() {
    need!("bash");
    let bed = Bed::new();
    let guest = bed.guest();
    for _ in 0..10 {
        let (mut ready, theirs) = pipe();
        let args = format!("-r {}", theirs.as_raw_fd());
        let mut proc = slirp(&bed, &guest, &args, None).keep(&theirs).start();
        drop(theirs);
        ready.expect_byte(&mut proc);
        proc.signal(Signal::SIGKILL);
        assert_eq!(proc.wait(PATIENCE).signal(), Some(Signal::SIGKILL as i32));
    }
}

/// Starts it with this output, carries some data, and ends it.
fn works_with(output: OwnedFd) {
    let bed = Bed::new();
    let guest = bed.guest();
    let (mut ready, ready_fd) = pipe();
    let (exit_fd, exit) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    let args = format!("-e {} -r {}", exit_fd.as_raw_fd(), ready_fd.as_raw_fd());
    let mut proc = slirp(&bed, &guest, &args, Some(&output))
        .keep(&ready_fd)
        .keep(&exit_fd)
        .keep(&output)
        .start();
    drop((ready_fd, exit_fd));
    ready.expect_byte(&mut proc);
    let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
    stream::send_all(&inside, 1, 100_000);
    stream::expect_all(&outside, 1, 100_000);
    drop(exit);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
}

#[test]
fn nobody_reads_what_it_says() {
    need!("bash");
    not_slirp!("waits for the reader");
    let (_reader, full) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
    let mut writer = File::from(full);
    while writer.write(b"x").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("fcntl");
    works_with(writer.into());
}

#[test]
fn the_reader_of_what_it_says_has_gone() {
    need!("bash");
    not_slirp!("is killed by SIGPIPE");
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    drop(reader);
    works_with(writer);
}
