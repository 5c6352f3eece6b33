//! What is tried.

use std::collections::HashMap;
use std::ffi::c_long;
use std::fs::{File, OpenOptions};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::channel;
use std::thread;

use ringtap::boot::seccomp::Needs;
use ringtap::control::resolv::Resolvers;

use super::wall;

/// A system call; what comes of it does not matter.
fn call(number: c_long, args: [c_long; 6]) {
    let [a, b, c, d, e, f] = args;
    // SAFETY: each caller passes arguments that the kernel refuses, or that harm nobody: no address is given
    // but null, and those of constants to be read.
    unsafe { libc::syscall(number, a, b, c, d, e, f) };
}

fn simple(number: c_long) {
    call(number, [0; 6]);
}

/// No descriptor.
const NONE: c_long = -1;
const PAGE: c_long = 4096;

fn socket(family: i32, kind: i32, protocol: i32) {
    call(libc::SYS_socket, [family.into(), kind.into(), protocol.into(), 0, 0, 0]);
}

fn open(flags: i32) {
    let path = c"/nonexistent/file".as_ptr() as c_long;
    call(libc::SYS_openat, [libc::AT_FDCWD.into(), path, flags.into(), 0o600, 0, 0]);
}

fn parent() -> c_long {
    std::os::unix::process::parent_id().into()
}

/// Memory that nobody uses.
fn page() -> c_long {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: an anonymous private mapping touches no existing memory.
    unsafe { libc::mmap(std::ptr::null_mut(), PAGE as usize, prot, flags, -1, 0) as c_long }
}

type Attempt = (&'static str, fn());

/// What ends a process behind the filter, and does nothing without it.
pub(super) const FORBIDDEN: &[Attempt] = &[
    // Programs, processes, threads.
    ("execve", || {
        let path = c"/bin/true".as_ptr();
        let argv = [path, std::ptr::null()];
        call(libc::SYS_execve, [path as c_long, argv.as_ptr() as c_long, 0, 0, 0, 0]);
    }),
    ("execveat", || call(libc::SYS_execveat, [NONE, 0, 0, 0, 0, 0])),
    ("clone", || {
        // SAFETY: fork(2); the child ends at once.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if pid == 0 {
            super::leave();
        }
    }),
    ("clone3", || simple(libc::SYS_clone3)),
    ("a thread", || drop(thread::spawn(|| ()).join())),
    // Sockets of other kinds.
    ("socket: unix", || socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    ("socket: packet", || socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    ("socket: netlink", || socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    ("socket: vsock", || socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("socket: algorithms", || socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    ("socket: raw", || socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    ("socket: SCTP", || socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)),
    ("socket: MPTCP", || socket(libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)),
    ("socketpair", || drop(UnixStream::pair())),
    ("sendmmsg", || call(libc::SYS_sendmmsg, [NONE, 0, 0, 0, 0, 0])),
    ("setsockopt: a program", || {
        let (level, name) = (libc::SOL_SOCKET.into(), libc::SO_ATTACH_FILTER.into());
        call(libc::SYS_setsockopt, [NONE, level, name, 0, 0, 0]);
    }),
    // IPT_SO_SET_REPLACE
    ("setsockopt: a firewall", || {
        call(libc::SYS_setsockopt, [NONE, libc::SOL_IP.into(), 64, 0, 0, 0]);
    }),
    ("getsockopt: others", || {
        call(libc::SYS_getsockopt, [NONE, libc::SOL_IP.into(), 64, 0, 0, 0]);
    }),
    // Files.
    ("open: write", || open(libc::O_WRONLY)),
    ("open: both", || open(libc::O_RDWR)),
    ("open: make", || open(libc::O_RDONLY | libc::O_CREAT)),
    ("open: empty", || open(libc::O_RDONLY | libc::O_TRUNC)),
    ("open: unnamed", || open(libc::O_RDWR | libc::O_TMPFILE)),
    #[cfg(target_arch = "x86_64")]
    ("open", || simple(libc::SYS_open)),
    ("openat2", || call(libc::SYS_openat2, [NONE, 0, 0, 0, 0, 0])),
    ("open_by_handle_at", || call(libc::SYS_open_by_handle_at, [NONE, 0, 0, 0, 0, 0])),
    ("unlinkat", || call(libc::SYS_unlinkat, [NONE, 0, 0, 0, 0, 0])),
    ("renameat2", || call(libc::SYS_renameat2, [NONE, 0, NONE, 0, 0, 0])),
    ("linkat", || call(libc::SYS_linkat, [NONE, 0, NONE, 0, 0, 0])),
    ("symlinkat", || call(libc::SYS_symlinkat, [0, NONE, 0, 0, 0, 0])),
    ("mkdirat", || call(libc::SYS_mkdirat, [NONE, 0, 0, 0, 0, 0])),
    ("mknodat", || call(libc::SYS_mknodat, [NONE, 0, 0, 0, 0, 0])),
    ("fchmodat", || call(libc::SYS_fchmodat, [NONE, 0, 0, 0, 0, 0])),
    ("fchownat", || call(libc::SYS_fchownat, [NONE, 0, 0, 0, 0, 0])),
    ("ftruncate", || call(libc::SYS_ftruncate, [NONE, 0, 0, 0, 0, 0])),
    ("setxattr", || simple(libc::SYS_setxattr)),
    ("chdir", || simple(libc::SYS_chdir)),
    ("getdents64", || call(libc::SYS_getdents64, [NONE, 0, 0, 0, 0, 0])),
    ("memfd_create", || simple(libc::SYS_memfd_create)),
    ("splice", || call(libc::SYS_splice, [NONE, 0, NONE, 0, 0, 0])),
    // Other processes.
    ("ptrace", || call(libc::SYS_ptrace, [NONE, parent(), 0, 0, 0, 0])),
    ("process_vm_readv", || call(libc::SYS_process_vm_readv, [parent(), 0, 0, 0, 0, 0])),
    ("process_vm_writev", || call(libc::SYS_process_vm_writev, [parent(), 0, 0, 0, 0, 0])),
    ("process_madvise", || call(libc::SYS_process_madvise, [NONE, 0, 0, 0, 0, 0])),
    ("kill", || call(libc::SYS_kill, [parent(), 0, 0, 0, 0, 0])),
    ("tkill", || call(libc::SYS_tkill, [parent(), 0, 0, 0, 0, 0])),
    ("tgkill: another", || call(libc::SYS_tgkill, [parent(), parent(), 0, 0, 0, 0])),
    ("rt_sigqueueinfo", || call(libc::SYS_rt_sigqueueinfo, [parent(), 0, 0, 0, 0, 0])),
    ("pidfd_open", || call(libc::SYS_pidfd_open, [parent(), 0, 0, 0, 0, 0])),
    ("pidfd_getfd", || call(libc::SYS_pidfd_getfd, [NONE, 0, 0, 0, 0, 0])),
    ("pidfd_send_signal", || call(libc::SYS_pidfd_send_signal, [NONE, 0, 0, 0, 0, 0])),
    ("kcmp", || call(libc::SYS_kcmp, [parent(), parent(), 0, 0, 0, 0])),
    ("fcntl: F_SETOWN", || call(libc::SYS_fcntl, [NONE, libc::F_SETOWN.into(), 0, 0, 0, 0])),
    // Terminals and devices.
    ("ioctl: TIOCSTI", || call(libc::SYS_ioctl, [NONE, libc::TIOCSTI as c_long, 0, 0, 0, 0])),
    ("ioctl: TUNSETIFF", || call(libc::SYS_ioctl, [NONE, libc::TUNSETIFF as c_long, 0, 0, 0, 0])),
    // Memory that runs.
    ("mmap: PROT_EXEC", || {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        call(libc::SYS_mmap, [0, PAGE, libc::PROT_EXEC.into(), flags.into(), NONE, 0]);
    }),
    ("mprotect: PROT_EXEC", || {
        let prot = libc::PROT_READ | libc::PROT_EXEC;
        call(libc::SYS_mprotect, [page(), PAGE, prot.into(), 0, 0, 0]);
    }),
    ("pkey_mprotect", || {
        let prot = libc::PROT_READ | libc::PROT_EXEC;
        call(libc::SYS_pkey_mprotect, [page(), PAGE, prot.into(), NONE, 0, 0]);
    }),
    ("personality", || call(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0])),
    // Rings.
    ("io_uring_setup", || simple(libc::SYS_io_uring_setup)),
    ("io_uring_register: files", || call(libc::SYS_io_uring_register, [NONE, 2, 0, 0, 0, 0])),
    // What makes walls, and takes them away.
    ("prctl", || call(libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into(), 0, 0, 0, 0, 0])),
    ("seccomp", || call(libc::SYS_seccomp, [NONE, 0, 0, 0, 0, 0])),
    ("unshare", || simple(libc::SYS_unshare)),
    ("setns", || call(libc::SYS_setns, [NONE, 0, 0, 0, 0, 0])),
    ("mount", || simple(libc::SYS_mount)),
    ("umount2", || simple(libc::SYS_umount2)),
    ("move_mount", || call(libc::SYS_move_mount, [NONE, 0, NONE, 0, 0, 0])),
    ("open_tree", || call(libc::SYS_open_tree, [NONE, 0, 0, 0, 0, 0])),
    ("fsopen", || simple(libc::SYS_fsopen)),
    ("mount_setattr", || call(libc::SYS_mount_setattr, [NONE, 0, 0, 0, 0, 0])),
    ("pivot_root", || simple(libc::SYS_pivot_root)),
    ("chroot", || simple(libc::SYS_chroot)),
    ("setuid", || call(libc::SYS_setuid, [NONE, 0, 0, 0, 0, 0])),
    ("capset", || simple(libc::SYS_capset)),
    ("prlimit64", || call(libc::SYS_prlimit64, [NONE, 0, 0, 0, 0, 0])),
    // The kernel.
    ("bpf", || call(libc::SYS_bpf, [NONE, 0, 0, 0, 0, 0])),
    ("perf_event_open", || simple(libc::SYS_perf_event_open)),
    ("userfaultfd", || call(libc::SYS_userfaultfd, [NONE, 0, 0, 0, 0, 0])),
    ("keyctl", || call(libc::SYS_keyctl, [NONE, 0, 0, 0, 0, 0])),
    ("add_key", || simple(libc::SYS_add_key)),
    ("finit_module", || call(libc::SYS_finit_module, [NONE, 0, 0, 0, 0, 0])),
    ("no such call", || simple(1_000_000)),
];

/// A need, and what is forbidden without it.
pub(super) const SOMETIMES: &[(&str, Needs, fn())] = &[
    (
        "unlink",
        Needs { files: true, command: false, child: false, path: false, mount: false },
        || drop(std::fs::remove_file("/nonexistent/file")),
    ),
    (
        "umount2",
        Needs { mount: true, command: false, child: false, path: false, files: false },
        || {
            call(libc::SYS_umount2, [c"/nonexistent".as_ptr() as c_long, 0, 0, 0, 0, 0]);
        },
    ),
    (
        "wait4",
        Needs { command: false, child: true, path: false, files: false, mount: false },
        || {
            call(libc::SYS_wait4, [NONE, 0, libc::WNOHANG.into(), 0, 0, 0]);
        },
    ),
    (
        "ioctl: TIOCSPGRP",
        Needs { command: true, child: false, path: false, files: false, mount: false },
        || {
            call(libc::SYS_ioctl, [NONE, libc::TIOCSPGRP as c_long, 0, 0, 0, 0]);
        },
    ),
    (
        "inotify_init1",
        Needs { path: true, command: false, child: false, files: false, mount: false },
        || {
            simple(libc::SYS_inotify_init1);
        },
    ),
];

type Outcome = (Option<i32>, Option<i32>);

/// Ends of a process behind the filter, as exit code and signal.
pub(super) const ENDS: &[(&str, Outcome, fn())] = &[
    ("exit", (Some(7), None), || {
        wall(Needs::default());
        std::process::exit(7);
    }),
    ("a signal that was caught", (None, Some(libc::SIGTERM)), || {
        wall(Needs::default());
        ringtap::boot::sys::set_default(nix::sys::signal::Signal::SIGTERM);
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
    }),
    ("abort", (None, Some(libc::SIGABRT)), || {
        wall(Needs::default());
        std::process::abort();
    }),
    ("after a panic", (Some(0), None), panic),
    ("after a panic, traced", (Some(0), None), panic),
    // What it does all the time.
    ("after work", (Some(0), None), work),
    // The filter is every thread's.
    ("of another thread", (None, Some(libc::SIGSYS)), || {
        let (go, told) = channel::<()>();
        let other = thread::spawn(move || {
            told.recv().unwrap();
            socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
        });
        wall(Needs::default());
        go.send(()).unwrap();
        let _ = other.join();
    }),
];

fn panic() {
    wall(Needs::default());
    assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
}

fn work() {
    let folder = std::env::temp_dir().join(format!("ringtap-seccomp-{}", std::process::id()));
    let _ = std::fs::remove_file(&folder);
    let api = UnixListener::bind(&folder).unwrap();
    let client = UnixStream::connect(&folder).unwrap();
    std::fs::remove_file(&folder).unwrap();
    let (go, told) = channel::<usize>();
    let (up, is_up) = channel();
    let other = thread::spawn(move || {
        up.send(()).unwrap();
        let bytes = told.recv().unwrap();
        // A heap of a thread grows, and what is large moves.
        let mut heaps: Vec<Vec<u8>> = (0..1000).map(|i| vec![1; i * 100]).collect();
        heaps[0].resize(bytes, 1);
        heaps[0].resize(2 * bytes, 2);
        heaps.iter().map(Vec::len).sum::<usize>()
    });
    // Its start takes system calls (rseq), which the filter does not have.
    is_up.recv().unwrap();
    wall(Needs::default());
    go.send(32 << 20).unwrap();
    assert!(other.join().unwrap() > 64 << 20);

    drop(api.accept().unwrap());
    drop(client);
    for addr in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(addr) else { continue };
        let addr = listener.local_addr().unwrap();
        let out = TcpStream::connect(addr).unwrap();
        out.set_nodelay(true).unwrap();
        let (inside, _) = listener.accept().unwrap();
        assert_eq!(inside.peer_addr().unwrap(), out.local_addr().unwrap());
        out.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(inside.take_error().unwrap().is_none());
        let socket = UdpSocket::bind(addr).unwrap();
        socket.connect(addr).unwrap();
    }
    assert!(!Resolvers::read().list().is_empty());
    assert!(File::open("/etc/passwd").unwrap().as_raw_fd() >= 0);
    assert!(OpenOptions::new().read(true).open("/nonexistent/file").is_err());
    let mut map = HashMap::new();
    map.insert(std::process::id(), thread::current().id());
    assert_eq!(map.len(), 1);
    thread::yield_now();
}
