//! What the program may still ask of the kernel once it forwards: an allow-list of system calls, for all its threads.
//!
//! # Theory of operation
//!
//! Whoever takes the program over by a mistake in it can make system calls. [`apply`] leaves only those that forwarding
//! needs, some of them with certain arguments alone; any other ends the whole process at once (`SIGSYS`). It is
//! called when all workers run and everything that needs more is done: namespaces are entered, files made, sockets
//! of the API bound. What is needed is one table, [`ROWS`], each row with its reason, so that a row that has lost its
//! reason can be found and go.
//!
//! Not in it, and so impossible from then on: running programs, starting processes and threads, memory that is executable,
//! writing or making files, sockets of other families than IPv4 and IPv6, new rings, other
//! processes' memory, signals to them, namespaces and mounts.
//!
//! * **Rings.** The kernel does not show a filter what a ring does. Each worker's ring therefore has an allow-list of its own
//!   (`worker/ring.rs`), and control has no ring when there is a filter.
//! * **Cost.** A call that is allowed whatever its arguments is allowed by a bitmap, without a run of the filter: 8 ns of a
//!   turn's 230, as measured. The rows of the data path have no conditions; `socket` and `setsockopt` have, which
//!   is 50 ns more for each, a few times in a flow's life.
//! * **The end.** Threads end, destructors run and `exit_group` is called under the filter; so do a panic and `abort(3)`.
//! * **Mitigations.** The filter does not turn on protection against speculative store bypass on the kernels that we
//!   need: since 5.16 only `prctl` does.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use nix::errno::Errno;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::Failure;

/// What this run needs beside forwarding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Ends a command and takes its terminal back.
    pub command: bool,
    /// Waits for a child: the command's init, the keeper.
    pub child: bool,
    /// Watches a path that names the guest.
    pub path: bool,
    /// Removes files of its own at the end: nobody else does it.
    pub files: bool,
    /// Takes a mount of its own away at the end: nobody else does it.
    pub mount: bool,
}

impl Needs {
    /// All that there is.
    pub const ALL: Self = Self { command: true, child: true, path: true, files: true, mount: true };

    fn has(self, when: When) -> bool {
        match when {
            When::Always => true,
            When::Command => self.command,
            When::Child => self.child,
            When::Path => self.path,
            When::Files => self.files,
            When::Mount => self.mount,
        }
    }
}

/// When a row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// In every run.
    Always,
    /// [`Needs::command`]
    Command,
    /// [`Needs::child`]
    Child,
    /// [`Needs::path`]
    Path,
    /// [`Needs::files`]
    Files,
    /// [`Needs::mount`]
    Mount,
}

/// A condition on an argument, by its number. The kernel's calls in the table take 32 bits of each.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// It has this value.
    Is(u8, u32),
    /// It has this value when these bits are not looked at.
    IsBut(u8, u32, u32),
    /// It has none of these bits.
    Without(u8, u32),
    /// It is our own process.
    Own(u8),
}

/// A system call that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// `SYS_` and its name.
    pub name: &'static str,
    /// Its number here.
    pub number: i64,
    /// When it is needed.
    pub when: When,
    /// Each a set of arguments with which it is allowed; none: with any.
    pub only: &'static [&'static [Arg]],
    /// What for: the file that needs it, or whose part it is.
    pub why: &'static str,
}

macro_rules! rows {
    ($($(#[$meta:meta])* $name:ident $when:ident $only:expr, $why:literal;)*) => {
        /// All that is allowed, in groups.
        pub const ROWS: &[Row] = &[
            $($(#[$meta])* Row {
                name: stringify!($name),
                number: libc::$name as i64,
                when: When::$when,
                only: $only,
                why: $why,
            },)*
        ];
    };
}

const ANY: &[&[Arg]] = &[];

rows! {
    // The data path.
    SYS_io_uring_enter Always ANY, "worker/ring.rs: every turn";
    SYS_io_uring_register Always &[&[Arg::Is(1, SYNC_CANCEL)]], "worker/ring.rs: cancels all at the end; io_uring_setup is not here";
    SYS_socket Always SOCKETS, "worker/sock.rs, worker/dgram.rs: a flow's; control: of a port that is forwarded";
    SYS_setsockopt Always OPTIONS, "worker/sock.rs, worker/dgram.rs: of those";
    SYS_getsockopt Always &[&[Arg::Is(1, libc::SOL_SOCKET as u32)]], "worker/sock.rs, tokio: SO_ERROR";
    SYS_bind Always ANY, "worker/sock.rs, worker/dgram.rs: --outbound-addr; control: a port that is forwarded";
    SYS_listen Always ANY, "control: a port that is forwarded";
    SYS_connect Always ANY, "worker/dgram.rs: a question to a resolver";
    SYS_getpeername Always ANY, "worker/sock.rs: whether a connect has";
    SYS_getsockname Always ANY, "control: which port was bound";
    SYS_sendmsg Always ANY, "worker/dgram.rs: a datagram of a run, alone; boot/pass.rs: orders to the command's init";
    SYS_recvmsg Always ANY, "boot/pass.rs: what the command's init says";
    SYS_shutdown Always ANY, "worker/sock.rs: half a conversation has ended; control/api/mod.rs: so has an answer";

    // Control.
    SYS_accept4 Always ANY, "control/api/mod.rs: clients";
    SYS_recvfrom Always ANY, "control/api/mod.rs, tokio: from clients, and that a signal has come";
    SYS_sendto Always ANY, "control/api/mod.rs, tokio: to clients, and that a signal has come";
    SYS_read Always ANY, "control: resolv.conf, inotify; tokio: its own wake-ups";
    SYS_write Always ANY, "output.rs, worker/mod.rs: a worker's bell; tokio: its own";
    SYS_writev Always ANY, "std, glibc: their last words on stderr";
    SYS_close Always ANY, "every socket";
    SYS_epoll_ctl Always ANY, "tokio";
    #[cfg(target_arch = "x86_64")]
    SYS_epoll_wait Always ANY, "tokio";
    SYS_epoll_pwait Always ANY, "tokio, where there is no epoll_wait";
    #[cfg(target_arch = "x86_64")]
    SYS_poll Always ANY, "output.rs, control/watch.rs: whether something is ready";
    SYS_ppoll Always ANY, "the same, where there is no poll";
    SYS_fcntl Always &[&[Arg::Is(1, libc::F_GETFD as u32)]], "std: a debug build looks at what it closes";
    SYS_ioctl Always &[&[Arg::Is(1, libc::TUNSETOFFLOAD as u32)]], "boot/tap.rs: leaves a TAP that stays as it should be";

    // Files: looking and reading.
    SYS_openat Always &[&[Arg::Without(2, WRITING)]], "control/resolv.rs: resolv.conf; glibc: /proc/sys/vm/overcommit_memory";
    SYS_statx Always ANY, "control/resolv.rs: whether resolv.conf has changed; boot/netns.rs: whether a path still names the guest";
    SYS_fstat Always ANY, "glibc: of a file it reads";
    SYS_newfstatat Always ANY, "glibc: fstat, in its middle years";
    #[cfg(target_arch = "x86_64")]
    SYS_readlink Always ANY, "control/resolv.rs: where resolv.conf is";
    SYS_readlinkat Always ANY, "the same, where there is no readlink";
    SYS_inotify_add_watch Always ANY, "control/resolv.rs: where resolv.conf is now";

    // The end, where nobody else tidies up.
    SYS_inotify_init1 Path ANY, "control/watch.rs: watches the path's folder";
    SYS_statfs Path ANY, "control/watch.rs: whether that folder tells anything";
    #[cfg(target_arch = "x86_64")]
    SYS_unlink Files ANY, "control/api/place.rs, control/mod.rs: socket and pid file; boot/create.rs: the file at the path";
    SYS_unlinkat Files &[&[Arg::Is(2, 0)]], "the same, where there is no unlink";
    SYS_umount2 Mount ANY, "boot/create.rs: the namespace's name";
    SYS_wait4 Child ANY, "boot/command.rs, boot/keeper.rs: waits until the guest is gone, and all is tidied up";
    SYS_ioctl Command &[&[Arg::Is(1, libc::TIOCSPGRP as u32)]], "control/mod.rs: takes the terminal back";
    #[cfg(target_arch = "x86_64")]
    SYS_getpgrp Command ANY, "control/mod.rs: for whom";
    SYS_getpgid Command ANY, "the same, where there is no getpgrp";

    // Memory.
    SYS_mmap Always &[&[Arg::Without(2, libc::PROT_EXEC as u32)]], "glibc: malloc; arena.rs, where it grows";
    SYS_mprotect Always &[&[Arg::Without(2, libc::PROT_EXEC as u32)]], "glibc: malloc of a thread grows";
    SYS_mremap Always ANY, "glibc: realloc of what is large";
    SYS_munmap Always ANY, "glibc: free; arena.rs; worker/ring.rs";
    SYS_brk Always ANY, "glibc: malloc";
    SYS_madvise Always ANY, "arena.rs: memory that is not used goes back; glibc: the stack of a thread that ends";

    // Threads, signals, time, chance.
    SYS_futex Always ANY, "std, glibc: locks, and the end of a thread";
    SYS_sched_yield Always ANY, "worker/ring.rs: who watches for the next message gives way to others; std: a channel's spin";
    SYS_sched_getaffinity Always ANY, "glibc: how many heaps malloc may have";
    SYS_rt_sigreturn Always ANY, "a signal handler ends";
    SYS_rt_sigprocmask Always ANY, "glibc: a thread ends, abort; control/mod.rs: takes the terminal back";
    SYS_rt_sigaction Always ANY, "main.rs: ends by the signal that has come; glibc: abort";
    SYS_sigaltstack Always ANY, "std: a thread ends";
    SYS_restart_syscall Always ANY, "the kernel, after SIGSTOP and SIGCONT";
    SYS_tgkill Always &[&[Arg::Own(0)]], "glibc: raise, abort";
    SYS_getpid Always ANY, "glibc: raise, abort";
    SYS_gettid Always ANY, "glibc: raise, abort; std: a panic";
    SYS_getcwd Always ANY, "std: a panic's trace, where RUST_BACKTRACE asks for it";
    SYS_lseek Always ANY, "std: such a trace reads files to their end";
    SYS_exit Always ANY, "glibc: a thread ends";
    SYS_exit_group Always ANY, "the end";
    SYS_clock_gettime Always ANY, "std, where the vDSO cannot tell the time";
    SYS_getrandom Always ANY, "std, tokio: seeds of hash maps";
}

/// `IORING_REGISTER_SYNC_CANCEL` (linux/io_uring.h)
const SYNC_CANCEL: u32 = 24;

/// Whatever would change a file, or make one.
const WRITING: u32 =
    (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u32;

/// Flags that may come with a socket's type.
const TYPE_FLAGS: u32 = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;

const V4: Arg = Arg::Is(0, libc::AF_INET as u32);
const V6: Arg = Arg::Is(0, libc::AF_INET6 as u32);
const STREAM: Arg = Arg::IsBut(1, libc::SOCK_STREAM as u32, TYPE_FLAGS);
const DGRAM: Arg = Arg::IsBut(1, libc::SOCK_DGRAM as u32, TYPE_FLAGS);

/// TCP, UDP and ICMP echo. Protocol 0 is the type's own.
const SOCKETS: &[&[Arg]] = &[
    &[V4, STREAM, Arg::Is(2, 0)],
    &[V4, STREAM, Arg::Is(2, libc::IPPROTO_TCP as u32)],
    &[V6, STREAM, Arg::Is(2, 0)],
    &[V6, STREAM, Arg::Is(2, libc::IPPROTO_TCP as u32)],
    &[V4, DGRAM, Arg::Is(2, 0)],
    &[V4, DGRAM, Arg::Is(2, libc::IPPROTO_UDP as u32)],
    &[V4, DGRAM, Arg::Is(2, libc::IPPROTO_ICMP as u32)],
    &[V6, DGRAM, Arg::Is(2, 0)],
    &[V6, DGRAM, Arg::Is(2, libc::IPPROTO_UDP as u32)],
    &[V6, DGRAM, Arg::Is(2, libc::IPPROTO_ICMPV6 as u32)],
];

const fn option(level: i32, name: i32) -> [Arg; 2] {
    [Arg::Is(1, level as u32), Arg::Is(2, name as u32)]
}

/// Options of sockets that are set. (Their list is long, and old kernel holes are in it.)
const OPTIONS: &[&[Arg]] = &[
    &option(libc::SOL_SOCKET, libc::SO_REUSEADDR),
    &option(libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
    &option(libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    &option(libc::SOL_SOCKET, libc::SO_OOBINLINE),
    &option(libc::SOL_SOCKET, libc::SO_LINGER),
    &option(libc::SOL_SOCKET, libc::SO_RCVBUF),
    &option(libc::SOL_SOCKET, libc::SO_SNDBUF),
    &option(libc::SOL_TCP, libc::TCP_NODELAY),
    &option(libc::SOL_UDP, libc::UDP_GRO),
    &option(libc::SOL_IP, libc::IP_RECVERR),
    &option(libc::SOL_IP, libc::IP_RECVTTL),
    &option(libc::SOL_IP, libc::IP_RECVTOS),
    &option(libc::SOL_IP, libc::IP_PKTINFO),
    &option(libc::SOL_IP, libc::IP_MTU_DISCOVER),
    &option(libc::SOL_IPV6, libc::IPV6_V6ONLY),
    &option(libc::SOL_IPV6, libc::IPV6_RECVPKTINFO),
    &option(libc::SOL_IPV6, libc::IPV6_RECVERR),
    &option(libc::SOL_IPV6, libc::IPV6_RECVHOPLIMIT),
    &option(libc::SOL_IPV6, libc::IPV6_RECVTCLASS),
    &option(libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER),
];

/// Leaves all threads of the process what the table has for these needs. There is no way back.
///
/// # Errors
/// What the kernel lacks, with the remedy. The process is as it was, but for `no_new_privs`.
pub fn apply(needs: Needs) -> Result<(), Failure> {
    let program = program(needs).map_err(|e| {
        Failure::new(format!(
            "system call filter: {e}: run without it (--no-seccomp; slirp4netns: without --enable-seccomp)"
        ))
    })?;
    seccompiler::apply_filter_all_threads(&program).map_err(|e| Failure::new(refused(&e)))
}

/// The filter.
fn program(needs: Needs) -> Result<BpfProgram, BackendError> {
    let mut allowed = BTreeMap::new();
    for row in ROWS.iter().filter(|row| needs.has(row.when)) {
        let rules: &mut Vec<SeccompRule> = allowed.entry(row.number).or_default();
        for set in row.only {
            let conditions: Result<_, _> = set.iter().map(|arg| arg.condition()).collect();
            rules.push(SeccompRule::new(conditions?)?);
        }
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(allowed, SeccompAction::KillProcess, SeccompAction::Allow, arch)?.try_into()
}

impl Arg {
    fn condition(self) -> Result<SeccompCondition, BackendError> {
        let (index, operator, value) = match self {
            Self::Is(index, value) => (index, SeccompCmpOp::Eq, value),
            Self::IsBut(index, value, ignored) => {
                (index, SeccompCmpOp::MaskedEq(u64::from(!ignored)), value)
            }
            Self::Without(index, bits) => (index, SeccompCmpOp::MaskedEq(u64::from(bits)), 0),
            Self::Own(index) => (index, SeccompCmpOp::Eq, std::process::id()),
        };
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, u64::from(value))
    }
}

/// Says what refused the filter, and what helps.
fn refused(e: &seccompiler::Error) -> String {
    let (cause, remedy) = match e {
        seccompiler::Error::Seccomp(e) | seccompiler::Error::Prctl(e) => {
            let errno = Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
            let remedy = match errno {
                Errno::ENOSYS | Errno::EINVAL => "this kernel has no seccomp filters",
                _ => "the surroundings (a container's own filter?) refuse it",
            };
            (errno.desc().to_owned(), remedy)
        }
        other => (other.to_string(), "a thread has a filter of its own"),
    };
    format!(
        "system call filter: {cause}: {remedy}: run without it (--no-seccomp; slirp4netns: without --enable-seccomp)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_says_who_needs_it() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for row in ROWS {
            let (who, _) = row.why.split_once([':', ',']).unwrap_or((row.why, ""));
            let known = ["std", "glibc", "tokio", "control", "the kernel", "the same", "the end"]
                .contains(&who)
                || ["every socket", "a signal handler ends"].contains(&who);
            let is_file = who.ends_with(".rs") && root.join(who).is_file();
            assert!(known || is_file, "{}: who is {who}?", row.name);
        }
    }

    #[test]
    fn a_row_without_conditions_stands_alone() {
        // The rules of one call are joined: one without conditions would be lost among others.
        for row in ROWS {
            let same = ROWS.iter().filter(|other| other.number == row.number).count();
            assert!(same == 1 || !row.only.is_empty(), "{}", row.name);
        }
    }

    #[test]
    fn the_filter_fits() {
        let len = program(Needs::ALL).unwrap().len();
        assert!((100..4096).contains(&len), "{len}");
        assert!(program(Needs::default()).unwrap().len() < len);
    }
}
