//! How it starts and ends: ready-fd, exit-fd, signals.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::cmd::PATIENCE;
use crate::harness::{Bed, Family, USER, pipe};
use crate::program::{Program, both, exit_pipe, guest, left_at, status};

both! {
    ready_when_everything_is_there,
    ready_to_nobody,
    hang_up_ends_it,
    a_byte_does_not_end_it,
    an_exit_fd_that_is_not_open,
    signals,
    other_signals,
    killed,
    the_tap_goes_with_it,
    the_namespace_goes,
    the_tap_is_deleted,
}

/// One byte, '1', then the end; and by then interface, addresses, routes and API socket are there.
fn ready_when_everything_is_there(p: Program) {
    // `attach` expects exactly that byte and that end.
    let net = p.up("-c -a @api --enable-sandbox --enable-seccomp");
    let shown = net.says("ip -o -4 addr show dev tap0");
    assert!(shown.contains("inet 10.0.2.100/24"), "{shown}");
    std::os::unix::net::UnixStream::connect(net.bed.dir.path("api")).expect("the API socket");
    let now = status(net.proc.pid(), &["Seccomp", "NoNewPrivs"]);
    assert_eq!(now, "Seccomp=2 NoNewPrivs=1");
}

/// A caller that has closed its end of the ready pipe is no reason to end.
fn ready_to_nobody(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    let (reader, ready) = pipe();
    drop(reader);
    let line = format!("-c -r {} {} tap0", ready.as_raw_fd(), guest.holder.pid());
    let cmd = p.cmd(&bed.dir).args(&line).keep(&ready);
    let mut proc = bed.host.enter_as(USER, cmd).start();
    drop(ready);
    let server = bed.remote.listen(Family::V4.remote());
    crate::harness::eventually("the network is up", || {
        assert!(proc.alive(), "it ended: {}", proc.stderr());
        guest.ns.connect(server.local_addr().expect("an address")).is_ok()
    });
}

/// Exit code 0, no socket left, and words on stderr.
fn hang_up_ends_it(p: Program) {
    let net = p.up("-c -a @api");
    let api = net.bed.dir.path("api");
    assert_eq!(left_at(&api), "is left");
    let (done, _bed, _guest) = net.hang_up();
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert_eq!(left_at(&api), "is gone");
    let words: Vec<&str> = done.stderr.lines().filter(|l| !l.contains("tapfd")).collect();
    p.shows("words at the end", words.join(" / "), "exitfd event / do_slirp is exiting");
}

fn a_byte_does_not_end_it(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    let ((mut ready, ready_fd), (exit_fd, exit)) = (pipe(), exit_pipe());
    let (r, e) = (ready_fd.as_raw_fd(), exit_fd.as_raw_fd());
    let line = format!("-c -r {r} -e {e} {} tap0", guest.holder.pid());
    let cmd = p.cmd(&bed.dir).args(&line).keep(&ready_fd).keep(&exit_fd);
    let mut proc = bed.host.enter_as(USER, cmd).start();
    drop((ready_fd, exit_fd));
    ready.expect_byte(&mut proc);
    let mut exit = File::from(exit);
    exit.write_all(b"x").expect("write");
    // It has had its turn when it has carried a connection.
    let server = bed.remote.listen(Family::V4.remote());
    for _ in 0..3 {
        guest.ns.connect(server.local_addr().expect("an address")).expect("connect");
    }
    assert!(proc.alive(), "{}", proc.stderr());
    drop(exit);
    assert_eq!(proc.wait(PATIENCE).code(), Some(0));
}

/// It counts as hung up.
fn an_exit_fd_that_is_not_open(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    let line = format!("-c -e 99 {} tap0", guest.holder.pid());
    let done = bed.host.enter_as(USER, p.cmd(&bed.dir).args(&line)).run();
    assert_eq!(done.code(), Some(0), "{done:?}");
}

/// It dies of the signal itself, which a shell shows as 143 and 130.
fn signals(p: Program) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let net = p.up("-c -a @api");
        net.proc.signal(signal);
        let done = net.proc.wait(PATIENCE);
        assert_eq!(done.signal(), Some(signal as i32), "{done:?}");
        let api = net.bed.dir.path("api");
        p.shows("API socket after a signal", left_at(&api), "is left");
    }
}

/// SIGPIPE is ignored; SIGHUP, SIGUSR1 and SIGUSR2 do what they do to any program.
fn other_signals(p: Program) {
    let net = p.up("-c");
    net.proc.signal(Signal::SIGPIPE);
    let server = net.bed.remote.listen(Family::V4.remote());
    net.inside().connect(server.local_addr().expect("an address")).expect("connect");
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        let net = p.up("-c");
        net.proc.signal(signal);
        let done = net.proc.wait(PATIENCE);
        assert_eq!(done.signal(), Some(signal as i32), "{done:?}");
    }
}

/// RootlessKit and buildah end it with SIGKILL: the next one finds the namespace as new.
fn killed(p: Program) {
    let mut net = p.up("-c");
    for _ in 0..3 {
        net.proc.signal(Signal::SIGKILL);
        assert_eq!(net.proc.wait(PATIENCE).signal(), Some(Signal::SIGKILL as i32));
        let operands = format!("{} tap0", net.guest.holder.pid());
        net = p.between(net.bed, net.guest, USER, "-c", &operands);
    }
}

fn the_tap_goes_with_it(p: Program) {
    let net = p.up("-c");
    net.says("ip link show dev tap0");
    let (_, _bed, guest) = net.hang_up();
    assert!(!guest.ns.cmd("ip link show dev tap0").run().success());
}

/// Its caller's process has gone.
fn the_namespace_goes(p: Program) {
    let net = p.up("-c");
    drop(net.guest);
    // The original holds the namespace by its TAP, so nothing happens to it: there is no moment at which
    // that is sure, and none is needed, since waiting longer can only make the test fail.
    let mut proc = net.proc;
    let stays = p == Program::Original;
    let end = Instant::now() + if stays { Duration::from_millis(300) } else { PATIENCE };
    while proc.alive() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    let seen = if proc.alive() { "it stays" } else { "it ends" };
    p.shows("the namespace goes", seen, "it stays");
}

/// Somebody in the guest deletes the interface under it.
fn the_tap_is_deleted(p: Program) {
    let net = p.up("-c");
    net.inside().ip("link del tap0\n");
    let mut proc = net.proc;
    let end = Instant::now() + PATIENCE;
    let seen = loop {
        if proc.stderr().matches("do_slirp: read: ").count() > 1 {
            break "it complains and repeats itself".to_owned();
        }
        if !proc.alive() {
            break format!("it ends with {:?}", proc.wait(PATIENCE).code());
        }
        assert!(Instant::now() < end, "nothing: {}", proc.stderr());
        std::thread::sleep(Duration::from_millis(5));
    };
    p.shows("the TAP is deleted", seen, "it complains and repeats itself");
}
