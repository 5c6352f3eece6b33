//! Nothing is left behind, though the program sees nothing of what it has made: the keeper.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::harness::cmd::{Cmd, PATIENCE, Proc};
use crate::harness::ns::mount;
use crate::harness::{Bed, Guest, USER, eventually, need, pipe, ringtap};
use crate::outside::slirp;

/// A program with a socket and a PID file, each in a folder that it does not see.
struct Running {
    bed: Bed,
    guest: Guest,
    proc: Proc,
    keeper: i32,
    files: Vec<PathBuf>,
    /// Closed: it ends.
    exit: OwnedFd,
}

fn start(is_slirp: bool, limit: &str) -> Running {
    let bed = Bed::new();
    let guest = bed.guest();
    let pid = guest.holder.pid();
    let (mut ready, ready_fd) = pipe();
    let (exit_fd, exit) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    let (r, e) = (ready_fd.as_raw_fd(), exit_fd.as_raw_fd());
    let file = bed.dir.path("file");
    let path = file.display();
    let line = if is_slirp {
        slirp(&format!("-c --enable-sandbox -r {r} -e {e} -a {path} {pid} tap0"))
    } else {
        let ringtap = ringtap();
        let ringtap = ringtap.display();
        Cmd::sh(&format!(
            "{limit} exec {ringtap} attach --ready-fd {r} --exit-fd {e} --pid-file {path} {pid}"
        ))
    };
    let line = bed.host.enter_as(USER, line).keep(&ready_fd).keep(&exit_fd);
    let mut proc = line.start();
    drop((ready_fd, exit_fd));
    ready.expect_byte(&mut proc);
    assert!(file.exists());
    let children = format!("/proc/{0}/task/{0}/children", proc.pid());
    let children = fs::read_to_string(children).expect("its children");
    let keeper = children.trim().parse().unwrap_or_else(|_| panic!("one child: {children}"));
    Running { bed, guest, proc, keeper, files: vec![file], exit }
}

impl Running {
    fn is_clean(&self) -> bool {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.keeper));
        let is_there = name.is_ok_and(|name| name == "ringtap-keeper\n");
        !is_there && self.files.iter().all(|file| !file.exists())
    }
}

/// An end that the program has time for leaves nothing at all by the time it has ended.
#[test]
fn signals() {
    need!("bash");
    for is_slirp in [false, true] {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let Running { bed: _bed, guest: _guest, proc, keeper, files, exit: _exit } =
                start(is_slirp, "");
            proc.signal(signal);
            let done = proc.wait(PATIENCE);
            let code = if is_slirp { (None, Some(signal as i32)) } else { (Some(0), None) };
            assert_eq!((done.code(), done.signal()), code, "{done:?}");
            assert!(files.iter().all(|file| !file.exists()), "left behind");
            assert!(
                !std::path::Path::new(&format!("/proc/{keeper}")).exists(),
                "the keeper is left"
            );
        }
    }
}

#[test]
fn the_exit_descriptor() {
    need!("bash");
    for is_slirp in [false, true] {
        let running = start(is_slirp, "");
        let Running { bed: _bed, guest: _guest, proc, keeper: _, files, exit } = running;
        drop(exit);
        let done = proc.wait(PATIENCE);
        assert_eq!(done.code(), Some(0), "{done:?}");
        assert!(files.iter().all(|file| !file.exists()), "left behind");
    }
}

#[test]
fn the_guests_end() {
    need!("bash");
    for is_slirp in [false, true] {
        let Running { bed: _bed, guest, proc, keeper: _, files, exit: _exit } = start(is_slirp, "");
        drop(guest);
        let done = proc.wait(PATIENCE);
        assert_eq!(done.code(), Some(0), "{done:?}");
        assert!(files.iter().all(|file| !file.exists()), "left behind");
    }
}

/// Nobody has time then, and the keeper cleans up all the same: even if the whole process group is killed.
#[test]
fn sigkill() {
    need!("bash");
    for is_slirp in [false, true] {
        for group in [false, true] {
            let running = start(is_slirp, "");
            if group {
                killpg(Pid::from_raw(running.proc.pid()), Signal::SIGKILL).expect("kill");
            } else {
                running.proc.signal(Signal::SIGKILL);
            }
            eventually("it is clean", || running.is_clean());
        }
    }
}

/// What somebody else has put in the place of ours stays.
#[test]
fn another_file_is_not_removed() {
    need!("bash");
    let Running { bed: _bed, guest: _guest, proc, keeper: _, files, exit: _exit } = start(true, "");
    fs::remove_file(&files[0]).expect("remove");
    let _theirs = UnixListener::bind(&files[0]).expect("bind");
    proc.signal(Signal::SIGTERM);
    proc.wait(PATIENCE);
    assert!(files[0].exists());
}

/// The keeper takes no signal but the one that nobody can refuse, and has nothing open but its link: from the ready byte on.
#[test]
fn the_keeper_is_left_alone_and_holds_nothing() {
    need!("bash");
    let running = start(false, "");
    let fds = fs::read_dir(format!("/proc/{}/fd", running.keeper)).expect("its descriptors");
    assert_eq!(fds.count(), 1);
    let keeper = Pid::from_raw(running.keeper);
    assert_eq!(nix::unistd::getsid(Some(keeper)), Ok(keeper), "a session of its own");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        nix::sys::signal::kill(Pid::from_raw(running.keeper), signal).expect("kill");
    }
    let Running { bed: _bed, guest: _guest, proc, keeper, files, exit: _exit } = running;
    assert!(files[0].exists());
    assert!(std::path::Path::new(&format!("/proc/{keeper}")).exists());
    proc.signal(Signal::SIGTERM);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert!(!files[0].exists());
}

/// A caller with few descriptors.
#[test]
fn a_low_limit_on_descriptors() {
    need!("bash");
    let Running { bed: _bed, guest: _guest, proc, keeper: _, files, exit: _exit } =
        start(false, "ulimit -n 80;");
    proc.signal(Signal::SIGTERM);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert!(!files[0].exists());
}

/// Someone who kills the keeper gets what he wants, and no more.
#[test]
fn a_keeper_that_was_killed() {
    need!("bash");
    let Running { bed: _bed, guest: _guest, mut proc, keeper, files, exit: _exit } =
        start(false, "");
    nix::sys::signal::kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("kill");
    let is_dead = || {
        let status = fs::read_to_string(format!("/proc/{keeper}/status")).unwrap_or_default();
        status.contains("State:\tZ")
    };
    eventually("it is dead", is_dead);
    assert!(proc.alive());
    proc.signal(Signal::SIGTERM);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert!(files[0].exists(), "who has removed it?");
}

/// The name of a namespace, a mount, goes even then.
#[test]
fn create_that_was_killed() {
    need!();
    let bed = Bed::new();
    let path = bed.dir.path("made");
    let (mut ready, theirs) = pipe();
    let line = Cmd::of(ringtap()).args(&format!("create --ready-fd {}", theirs.as_raw_fd()));
    let mut proc = bed.host.enter(line.arg(&path)).keep(&theirs).start();
    drop(theirs);
    ready.expect_byte(&mut proc);
    proc.signal(Signal::SIGKILL);
    eventually("the name is gone", || !path.exists());
}

/// A socket in `/run`, which the program sees, and root's right to a low port, which is kept for the API.
#[test]
fn a_socket_in_run_and_a_low_port() {
    need!("bash", "socat");
    let bed = Bed::with(|_| mount::tmpfs(std::path::Path::new("/run")));
    let guest = bed.guest();
    let (mut ready, theirs) = pipe();
    let line = slirp(&format!(
        "-c --enable-sandbox --enable-seccomp -r {} -a /run/api {} tap0",
        theirs.as_raw_fd(),
        guest.holder.pid()
    ));
    let mut proc = bed.host.enter(line).keep(&theirs).start();
    drop(theirs);
    ready.expect_byte(&mut proc);
    let request =
        r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":80,"guest_port":80}}"#;
    let answer = bed.host.cmd("socat -t 10 - UNIX-CONNECT:/run/api").input(request.as_bytes()).ok();
    assert_eq!(answer.trim(), r#"{"return":{"id":1}}"#);
    proc.signal(Signal::SIGTERM);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.signal(), Some(Signal::SIGTERM as i32), "{done:?}");
    assert!(!bed.host.cmd("test -e /run/api").run().success(), "left behind");
}
