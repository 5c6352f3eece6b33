//! What a child does between fork and exec. The one file of the tests here with `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::CloneFlags;

/// One thing a child does before it becomes the program, in the order given.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Joins the namespace of this kind behind a descriptor.
    Join(RawFd, CloneFlags),
    /// Becomes this user and group, with no other groups.
    Become(u32),
    /// Lets the program inherit a descriptor under its own number.
    Keep(RawFd),
    /// Starts a session with the terminal behind this descriptor, which becomes stdin, stdout and
    /// stderr.
    Terminal(RawFd),
    /// From here on `io_uring_setup` fails with EPERM, as under the seccomp profiles of Docker and
    /// containerd.
    NoIoUring,
}

/// Makes `cmd` take `steps` and die with the thread that starts it.
pub(crate) fn prepare(cmd: &mut Command, steps: Vec<Step>) {
    let filter = no_io_uring();
    // SAFETY: the closure runs in the child of a fork of a process that may have other threads, so
    // it may only make async-signal-safe calls: `take` makes system calls on values captured before
    // and allocates nothing; `filter` was built above.
    unsafe {
        cmd.pre_exec(move || {
            for step in &steps {
                take(*step, &filter)?;
            }
            // Last: a change of user clears it. Whatever becomes of a test, its programs end with it.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))
        });
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn take(step: Step, filter: &[libc::sock_filter]) -> io::Result<()> {
    // SAFETY: each call takes integers, or pointers to values that live across the call.
    unsafe {
        match step {
            Step::Join(fd, kind) => check(libc::setns(fd, kind.bits())),
            Step::Become(id) => {
                check(libc::setgroups(0, std::ptr::null()))?;
                check(libc::setresgid(id, id, id))?;
                check(libc::setresuid(id, id, id))
            }
            Step::Keep(fd) => check(libc::fcntl(fd, libc::F_SETFD, 0)),
            Step::Terminal(fd) => {
                check(libc::setsid())?;
                check(libc::ioctl(fd, libc::TIOCSCTTY, 0))?;
                for n in 0..3 {
                    check(libc::dup2(fd, n))?;
                }
                Ok(())
            }
            Step::NoIoUring => {
                check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
                let program = libc::sock_fprog {
                    len: filter.len() as u16,
                    filter: filter.as_ptr().cast_mut(),
                };
                check(libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    std::ptr::from_ref(&program),
                ))
            }
        }
    }
}

/// "load the call's number; io_uring_setup: EPERM; else allow".
fn no_io_uring() -> Vec<libc::sock_filter> {
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    vec![
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
