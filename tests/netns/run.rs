//! `ringtap run`: a command with a network of its own, from a shell's point of view.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::harness::cmd::{Cmd, PATIENCE, Proc};
use crate::harness::ns::mount;
use crate::harness::stream::{self, accept};
use crate::harness::{Bed, Dir, Family, USER, eventually, need, not_slirp};

/// A mark in the environment of everything that a command starts.
const MARK: &str = "RINGTAP_TEST_MARK";

fn marked(bed: &Bed) -> String {
    bed.dir.path("").display().to_string()
}

fn run(bed: &Bed, args: &str) -> Cmd {
    bed.ringtap("run").args(args).env(MARK, marked(bed))
}

fn run_sh(bed: &Bed, script: &str) -> Cmd {
    run(bed, "-- sh -c").arg(script)
}

/// The processes that carry the mark of this bed.
fn left_behind(bed: &Bed) -> Vec<String> {
    let mark = format!("{MARK}={}", marked(bed));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environ.split(|&b| b == 0).any(|var| var == mark.as_bytes()) {
            let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            found.push(line.replace('\0', " "));
        }
    }
    found
}

#[test]
fn exit_codes() {
    need!();
    not_slirp!("has no such command");
    let bed = Bed::new();
    let plain = bed.dir.write("plain", "no program");
    fs::set_permissions(&plain, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("chmod");
    let code = |cmd: Cmd| {
        let done = cmd.run();
        assert!(!done.stderr.contains("panicked"), "{done:?}");
        done.code()
    };
    assert_eq!(code(run(&bed, "true")), Some(0));
    assert_eq!(code(run_sh(&bed, "exit 3")), Some(3));
    assert_eq!(code(run_sh(&bed, "kill -9 $$")), Some(128 + 9));
    assert_eq!(code(run_sh(&bed, "kill -15 $$")), Some(128 + 15));
    assert_eq!(code(run(&bed, "/nonexistent/program")), Some(127));
    assert_eq!(code(run(&bed, "no-such-program-anywhere")), Some(127));
    assert_eq!(code(run(&bed, "--").arg(&plain)), Some(126));
    assert_eq!(code(run(&bed, "--").arg("/etc")), Some(126));
    assert_eq!(left_behind(&bed), Vec::<String>::new());
}

#[test]
fn who_one_is() {
    need!();
    not_slirp!("has no such command");
    let bed = Bed::new();
    assert_eq!(run_sh(&bed, "id -u; id -g").ok(), "0\n0\n");
    let own = format!("{USER}\n{USER}\n");
    assert_eq!(run(&bed, "--keep-uid -- sh -c").arg("id -u; id -g").ok(), own);
    assert_eq!(run(&bed, "cat /proc/self/setgroups").ok(), "deny\n");
    // Standard streams are the command's own.
    assert_eq!(run(&bed, "cat").input(b"in and out").ok(), "in and out");
    assert_eq!(run_sh(&bed, "pwd").ok(), "/\n");
    // The user's shell by default; `$SHELL` says which.
    assert_eq!(
        run(&bed, "").env("SHELL", "/bin/sh").input(b"echo here\nexit 4\n").run().code(),
        Some(4)
    );
}

#[test]
fn the_network_is_there_at_once() {
    need!();
    not_slirp!("has no such command");
    let bed = Bed::new();
    for family in Family::BOTH {
        let listener = bed.remote.listen(family.remote());
        let at = listener.local_addr().expect("an address");
        let script = format!("exec 3<>/dev/tcp/{}/{}; echo hello >&3; cat <&3", at.ip(), at.port());
        let proc = run(&bed, "-- bash -c").arg(script).start();
        let mut server = accept(&listener);
        let mut buf = [0; 6];
        server.read_exact(&mut buf).expect("receive");
        assert_eq!(&buf, b"hello\n");
        server.write_all(b"and hello to you\n").expect("send");
        drop(server);
        let done = proc.wait(PATIENCE);
        assert_eq!((done.code(), &*done.stdout), (Some(0), "and hello to you\n"), "{done:?}");
    }
}

/// A command that ends right after its last write has not said less for it, to a server that is in
/// no hurry.
#[test]
fn the_last_bytes_arrive() {
    need!();
    not_slirp!("has no such command");
    let bed = Bed::new();
    let file = bed.dir.path("file");
    const LEN: u64 = 2_000_000;
    stream::write_file(&file, 7, LEN);
    let listener = bed.remote.listen(Family::V4.remote());
    let at = listener.local_addr().expect("an address");
    let script = format!("exec cat {} >/dev/tcp/{}/{}", file.display(), at.ip(), at.port());
    let proc = run(&bed, "-- bash -c").arg(script).start();
    let server = accept(&listener);
    std::thread::sleep(Duration::from_millis(1000));
    stream::expect_all(&server, 7, LEN);
    drop(server);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert_eq!(left_behind(&bed), Vec::<String>::new());
}

/// What cannot be delivered is given up after five seconds.
#[test]
fn a_server_that_never_reads_does_not_hold_it() {
    need!();
    not_slirp!("has no such command");
    let bed = Bed::new();
    let listener = bed.remote.listen(Family::V4.remote());
    let at = listener.local_addr().expect("an address");
    // The send buffer of the guest is not drained by anyone: cat itself ends when timeout says so.
    let script = format!("timeout 2 cat /dev/zero >/dev/tcp/{}/{}; exit 5", at.ip(), at.port());
    let proc = run(&bed, "-- bash -c").arg(script).start();
    let _server = accept(&listener);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(5), "{done:?}");
    assert_eq!(left_behind(&bed), Vec::<String>::new());
}

#[test]
fn orphans_are_ended() {
    need!();
    not_slirp!("has no such command");
    let bed = Bed::new();
    // One stays in the session, one leaves it, one ignores what can be ignored.
    let script = "sleep 1000 & setsid sleep 1000 & \
        (trap '' TERM HUP INT; exec setsid sleep 1000) & sleep 0.2; exit 6";
    assert_eq!(run_sh(&bed, script).run().code(), Some(6));
    assert_eq!(left_behind(&bed), Vec::<String>::new());
}

/// A signal that ends the program ends the command; nobody is left to wait for.
#[test]
fn signals_end_it() {
    need!();
    not_slirp!("has no such command");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let bed = Bed::new();
        let mut proc = run_sh(&bed, "echo up; sleep 1000; echo down").start();
        proc.wait_for("up");
        proc.signal(signal);
        let done = proc.wait(PATIENCE);
        let ended_by = [done.code(), done.signal().map(|n| n + 128)];
        assert!(ended_by.contains(&Some(128 + signal as i32)), "{done:?}");
        eventually("no process is left", || left_behind(&bed).is_empty());
    }
}

/// A terminal and what has been seen on it.
struct Terminal {
    ours: File,
    seen: String,
}

impl Terminal {
    fn start(cmd: Cmd) -> (Self, Proc) {
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        let proc = cmd.terminal(pty.slave.as_raw_fd()).start();
        (Self { ours: pty.master.into(), seen: String::new() }, proc)
    }

    fn types(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).expect("type");
    }

    /// Waits until the terminal shows something, after what was waited for before.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            assert!(Instant::now() < end, "`{text}` never shows; instead: {:?}", self.seen);
            let mut fds = [PollFd::new(self.ours.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::from(100_u8)).expect("poll") > 0;
            let mut buf = [0; 1000];
            // EIO is how a terminal says that nobody is at its other end.
            if ready && let Ok(n) = self.ours.read(&mut buf) {
                self.seen.push_str(&String::from_utf8_lossy(&buf[..n]));
            }
        }
    }
}

#[test]
fn interrupt_is_the_commands() {
    need!();
    not_slirp!("has no such command");
    let bed = Bed::new();
    let script = "trap 'echo caught; exit 7' INT; test -t 0 && test -t 1 && echo up; \
        while :; do sleep 0.1; done";
    let (mut terminal, proc) = Terminal::start(run_sh(&bed, script));
    terminal.shows("up");
    terminal.types("\x03");
    terminal.shows("caught");
    assert_eq!(proc.wait(PATIENCE).code(), Some(7));

    // A command that does not catch it dies of it.
    let (mut terminal, proc) = Terminal::start(run_sh(&bed, "echo up; exec sleep 1000"));
    terminal.shows("up");
    // The shell has not become sleep yet, maybe: either dies.
    terminal.types("\x03");
    let done = proc.wait(PATIENCE);
    assert!(done.code() == Some(130) || done.signal() == Some(2), "{done:?}");
    eventually("no process is left", || left_behind(&bed).is_empty());
}

#[test]
fn job_control_works() {
    need!();
    not_slirp!("has no such command");
    let bed = Bed::new();
    let shell = run(&bed, "-- bash --norc --noprofile -i").env("PS1", "ready> ");
    let (mut terminal, proc) = Terminal::start(shell);
    terminal.shows("ready> ");
    assert!(!terminal.seen.contains("no job control"), "{:?}", terminal.seen);
    terminal.types("sleep 1000\n");
    eventually("sleep is in the foreground", || {
        let leader = nix::unistd::tcgetpgrp(&terminal.ours).expect("the foreground's leader");
        fs::read_to_string(format!("/proc/{leader}/comm")).is_ok_and(|name| name == "sleep\n")
    });
    terminal.types("\x1a");
    terminal.shows("Stopped");
    terminal.types("bg; echo go''ing\n");
    terminal.shows("going");
    terminal.types("kill %1; exit 9\n");
    terminal.types("exit 9\n");
    assert_eq!(proc.wait(PATIENCE).code(), Some(9));
}

/// A pager on ^Z, or a shell's `suspend`, stops itself alone: the shell outside sees its job stop all the same.
#[test]
fn a_command_that_stops_itself() {
    need!();
    not_slirp!("has no such command");
    let bed = Bed::new();
    let program = crate::harness::ringtap();
    let shell =
        bed.host.enter_as(USER, Cmd::new("bash --norc --noprofile -i").env("PS1", "outside> "));
    let (mut terminal, proc) = Terminal::start(shell);
    terminal.shows("outside> ");
    terminal
        .types(&format!("PS1='in''side> ' {} run bash --norc --noprofile -i\n", program.display()));
    terminal.shows("inside> ");
    terminal.types("suspend -f\n");
    terminal.shows("Stopped");
    terminal.shows("outside> ");
    terminal.types("fg\n");
    terminal.types("echo go''ing; exit 9\n");
    terminal.shows("going");
    terminal.shows("outside> ");
    terminal.types("exit $?\n");
    assert_eq!(proc.wait(PATIENCE).code(), Some(9));
}

/// What the host's /etc/resolv.conf may be.
fn resolv_conf(prepare: fn(&Path, &Dir)) {
    let bed = Bed::with(|dir| {
        let etc = dir.path("etc");
        let copied = Cmd::new("cp -a /etc").arg(&etc).run();
        assert!(copied.success(), "{copied:?}");
        let _ = fs::remove_file(etc.join("resolv.conf"));
        prepare(&etc, dir);
        mount::bind(&etc, Path::new("/etc"));
    });
    let look =
        || bed.host.sh("ls -l /etc/resolv.conf; cat /etc/resolv.conf; ls /etc | wc -l").run();
    let before = look().stdout;
    let inside = run(&bed, "cat /etc/resolv.conf").ok();
    let servers: Vec<_> = inside.lines().filter(|l| l.starts_with("nameserver")).collect();
    assert_eq!(servers[0], format!("nameserver {}", Family::V4.dns()), "{inside}");
    assert!(servers.iter().all(|s| {
        [Family::V4.dns(), Family::V6.dns()].iter().any(|a| **s == format!("nameserver {a}"))
    }));
    assert_eq!(look().stdout, before, "the host's own file has changed");
    // The rest of /etc is still there, and is the host's.
    assert_eq!(
        run(&bed, "cat /etc/passwd").ok(),
        fs::read_to_string("/etc/passwd").expect("/etc/passwd")
    );
}

#[test]
fn resolv_conf_is_a_file() {
    need!();
    not_slirp!("has no such command");
    resolv_conf(|etc, _| {
        fs::write(etc.join("resolv.conf"), "search lan\nnameserver 198.51.100.2\n").expect("write");
    });
}

#[test]
fn resolv_conf_is_a_link() {
    need!();
    not_slirp!("has no such command");
    resolv_conf(|etc, dir| {
        let target = dir.write("stub-resolv.conf", "nameserver 127.0.0.53\n");
        symlink(target, etc.join("resolv.conf")).expect("symlink");
    });
}

#[test]
fn resolv_conf_is_a_link_to_nowhere() {
    need!();
    not_slirp!("has no such command");
    resolv_conf(|etc, _| {
        symlink("/run/nonexistent/resolv.conf", etc.join("resolv.conf")).expect("symlink");
    });
}

#[test]
fn resolv_conf_is_missing() {
    need!();
    not_slirp!("has no such command");
    resolv_conf(|_, _| ());
}
