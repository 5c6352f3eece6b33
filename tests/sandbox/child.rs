//! A process that goes behind the walls and walks into them. The one file of these tests with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe2};
use ringtap::boot::sandbox::{self, Walls};
use ringtap::config::Personality;

use crate::harness::USER;
use crate::harness::ns::Ns;

/// Who goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Root of the machine.
    Root,
    /// An ordinary user, who gets a user namespace of his own.
    User,
    /// Root of an ordinary user's namespace, as in podman's.
    UserRoot,
    /// An ordinary user who may make no user namespace, with that of a guest to join.
    Guest,
}

impl Who {
    pub(crate) const ALL: [Self; 4] = [Self::Root, Self::User, Self::UserRoot, Self::Guest];
}

/// A report on what was tried: lines of `name=value`.
pub(crate) struct Report(String);

impl Report {
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> &str {
        let found = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("nothing is said of {name}: {}", self.0))
    }

    #[track_caller]
    pub(crate) fn is(&self, name: &str, value: &str) {
        assert_eq!(self.get(name), value, "{name}; all: {}", self.0);
    }

    /// Each of these was refused with one of the errors.
    #[track_caller]
    pub(crate) fn refused(&self, name: &str, errors: &[Errno]) {
        let got = self.get(name);
        let named = errors.iter().any(|e| got == format!("{e:?}"));
        assert!(named, "{name}={got}, not one of {errors:?}; all: {}", self.0);
    }
}

/// What a child writes its findings to.
pub(crate) struct Pen(Vec<u8>);

impl Pen {
    pub(crate) fn say(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name}={}", value.to_string().replace('\n', "|"));
    }

    /// `done`, or the error's name.
    pub(crate) fn tried<T>(&mut self, name: &str, result: io::Result<T>) {
        match result {
            Ok(_) => self.say(name, "done"),
            Err(e) => {
                self.say(name, format!("{:?}", Errno::from_raw(e.raw_os_error().unwrap_or(0))));
            }
        }
    }
}

/// Lets a child become `who` in the namespaces of `host`, do `before`, go behind the walls, and do `inside`. A failure to
/// go there is reported as `enter`; otherwise that is `done`. `guest` is a user namespace, for [`Who::Guest`].
pub(crate) fn walled(
    host: &Ns,
    who: Who,
    low_ports: bool,
    guest: Option<&OwnedFd>,
    inside: impl FnOnce(&mut Pen),
) -> Report {
    // Closed on exec, or the sandbox would close it.
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    let namespaces = host.descriptors();
    // SAFETY: glibc's fork leaves its allocator usable in the child of a process with threads, the child takes no lock of
    // the test's (it prints nothing), and ends by _exit.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => {
            drop(writer);
            let mut text = String::new();
            File::from(reader).read_to_string(&mut text).expect("the report");
            waitpid(child, None).expect("wait for the child");
            Report(text)
        }
        ForkResult::Child => {
            let mut pen = Pen(Vec::new());
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for (fd, kind) in &namespaces {
                    setns(fd, *kind).expect("join the host's namespace");
                }
                become_(who);
                let walls = Walls { low_ports, personality: Personality::Native };
                match sandbox::enter(walls, guest) {
                    Ok(()) => {
                        pen.say("enter", "done");
                        inside(&mut pen);
                    }
                    Err(failure) => pen.say("enter", failure),
                }
            }));
            if done.is_err() {
                pen.say("panicked", "yes");
            }
            let _ = File::from(writer).write_all(&pen.0);
            // SAFETY: ends the process without the exit handlers of the test.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Calls of the C library: the thread's, which is the only one here.
fn become_(who: Who) {
    if who == Who::Root {
        return;
    }
    // SAFETY: these take integers and a null pointer for an empty list.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setresgid(USER, USER, USER), 0);
        assert_eq!(libc::setresuid(USER, USER, USER), 0);
        // As after an exec: a change of user makes `/proc/self` root's.
        assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 1), 0);
    }
    match who {
        Who::UserRoot => {
            nix::sched::unshare(CloneFlags::CLONE_NEWUSER).expect("a user namespace");
            std::fs::write("/proc/self/setgroups", "deny").expect("setgroups");
            std::fs::write("/proc/self/gid_map", format!("0 {USER} 1")).expect("gid_map");
            std::fs::write("/proc/self/uid_map", format!("0 {USER} 1")).expect("uid_map");
        }
        Who::Guest => forbid_user_namespaces(),
        Who::Root | Who::User => {}
    }
}

/// A filter under which `unshare` with CLONE_NEWUSER fails with EPERM, as under a policy.
fn forbid_user_namespaces() {
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 3, libc::SYS_unshare as u32),
        // The first argument's lower half.
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 16),
        op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, libc::CLONE_NEWUSER as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program and its filter live across the call; the kernel copies them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, std::ptr::from_ref(&program)), 0);
    }
}

/// `capset(2)` for all capabilities: what one cannot have back.
pub(crate) fn regain_capabilities() -> io::Result<()> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let words = [u32::MAX; 6];
    // SAFETY: header and words have the sizes of version 3, and live across the call.
    let rc = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), words.as_ptr()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a descriptor is open.
pub(crate) fn is_open(fd: i32) -> bool {
    // SAFETY: F_GETFD touches no memory.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Lets a descriptor survive an exec, as one that a caller has left open.
pub(crate) fn leave_open(fd: &OwnedFd) {
    // SAFETY: F_SETFD touches no memory.
    assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }, 0);
}

/// Becomes another program; returns only when that fails.
pub(crate) fn exec(path: &str) -> io::Error {
    let path = std::ffi::CString::new(path).expect("a path");
    match nix::unistd::execv(&path, &[&path]) {
        Ok(never) => match never {},
        Err(e) => e.into(),
    }
}
