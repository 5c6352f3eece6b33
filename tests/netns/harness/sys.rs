//! What a child does between fork and exec. The one file of the tests here with `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::CloneFlags;
use socket2::{Domain, Socket, Type};

/// One thing a child does before it becomes the program, in the order given.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Joins the namespace of this kind behind a descriptor.
    Join(RawFd, CloneFlags),
    /// Becomes this user and group, with no other groups.
    Become(u32),
    /// Lets the program inherit a descriptor under its own number.
    Keep(RawFd),
    /// May hold this many descriptors.
    Descriptors(u64),
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
            Step::Descriptors(n) => {
                let limit = libc::rlimit { rlim_cur: n, rlim_max: n };
                check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))
            }
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

/// An interface as one sees it who writes whole frames.
pub(crate) struct Wire {
    socket: Socket,
    index: u32,
    /// The interface's own address.
    pub(crate) mac: [u8; 6],
}

impl Wire {
    /// Opens an interface of the network namespace the thread is in.
    pub(crate) fn open(name: &str) -> Self {
        let read = |what: &str| {
            // Not /sys: that shows the namespace it was mounted in.
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
            let mut request: libc::ifreq = zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from as libc::c_char;
            }
            let code = if what == "mac" { libc::SIOCGIFHWADDR } else { libc::SIOCGIFINDEX };
            // SAFETY: both requests read and write one `ifreq`, which lives across the call.
            check(unsafe { libc::ioctl(socket.as_raw_fd(), code, &raw mut request) })
                .unwrap_or_else(|e| panic!("ask for {what} of {name}: {e}"));
            request.ifr_ifru
        };
        // SAFETY: the kernel has just written these members.
        let (index, mac) = unsafe { (read("index").ifru_ifindex, read("mac").ifru_hwaddr.sa_data) };
        Self {
            socket: Socket::new(Domain::PACKET, Type::RAW, None).expect("a packet socket"),
            index: index as u32,
            mac: std::array::from_fn(|i| mac[i] as u8),
        }
    }

    /// Sends one Ethernet frame.
    pub(crate) fn send(&self, frame: &[u8]) {
        let mut to: libc::sockaddr_ll = zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = self.index as i32;
        // SAFETY: `frame` and `to` live across the call and are as long as said.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as u32,
            )
        };
        assert_eq!(sent, frame.len() as isize, "send a frame: {}", io::Error::last_os_error());
    }
}

/// All bits 0, for the kernel's plain structures.
fn zeroed<T: Plain>() -> T {
    // SAFETY: every `Plain` type may be all zeroes.
    unsafe { std::mem::zeroed() }
}

/// Integers, and arrays and unions of them.
trait Plain {}
impl Plain for libc::ifreq {}
impl Plain for libc::sockaddr_ll {}
