//! Namespaces, TAPs and rings for the tests.

#![allow(unsafe_code)]

use std::any::type_name;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use io_uring::types::{BufRingEntry, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::sched::{CloneFlags, unshare};

/// Runs a test in a fresh network namespace with `lo` up, and prints its verdict.
pub(crate) fn belief<F: FnOnce() -> String + Send>(f: F) {
    let name = type_name::<F>().trim_start_matches("platform::").trim_end_matches("::{{closure}}");
    let verdict = thread::scope(|scope| {
        let run = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            ip("link set lo up");
            Ok::<_, nix::Error>(f())
        });
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    match verdict {
        Ok(verdict) => {
            let uname = nix::sys::utsname::uname().unwrap();
            println!("kernel {}: {name}: {verdict}", uname.release().to_string_lossy());
        }
        Err(_) if std::env::var_os(INSIDE).is_none() => in_user_namespace(name),
        Err(e) => skip(&format!("{name}: no network namespace: {e}")),
    }
}

const INSIDE: &str = "RINGTAP_PLATFORM_INSIDE";

/// Runs one test of this binary again, as root of a user namespace.
fn in_user_namespace(test: &str) {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    // SAFETY: between fork and exec the child makes system calls, and allocates, which glibc permits
    // after a fork.
    unsafe {
        command.pre_exec(move || {
            unshare(CloneFlags::CLONE_NEWUSER)?;
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
        });
    }
    match command.status() {
        Ok(status) => assert!(status.success(), "{test} failed in a user namespace"),
        Err(e) => skip(&format!("{test}: no user namespace: {e}")),
    }
}

/// Says why a test cannot run here; where everything is meant to run, that is a failure.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot run in CI: {why}");
    println!("skipped: {why}");
}

/// ip(8) in this thread's namespace.
#[track_caller]
pub(crate) fn ip(args: &str) {
    let out = Command::new("ip").args(args.split(' ')).output().expect("ip(8) from iproute2");
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Opens a TAP in this thread's namespace.
pub(crate) fn open_tap(flags: i32) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in req.ifr_name.iter_mut().zip(b"tap0") {
        *to = *from as libc::c_char;
    }
    req.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as i16;
    // SAFETY: the descriptor is open and `req` lives through the call, which reads and writes it.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut req) })?;
    Ok(file.into())
}

/// A TAP `tap0`, up, 10.0.2.100/24, with 10.0.2.2 as a neighbour that needs no ARP and no other
/// chatter.
pub(crate) fn guest(flags: i32, mtu: u16) -> OwnedFd {
    let tap = open_tap(flags).expect("a TAP");
    fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1").unwrap();
    ip(&format!("link set tap0 mtu {mtu} up"));
    ip("addr add 10.0.2.100/24 dev tap0");
    ip("neigh add 10.0.2.2 lladdr 52:55:0a:00:02:02 dev tap0 nud permanent");
    ip("route add default via 10.0.2.2");
    tap
}

/// The MAC of `tap0`.
pub(crate) fn guest_mac() -> [u8; 6] {
    // sysfs shows the namespace it was mounted in, so ask the kernel directly.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in req.ifr_name.iter_mut().zip(b"tap0") {
        *to = *from as libc::c_char;
    }
    // SAFETY: the descriptor is open and `req` lives through the call, which fills `ifru_hwaddr`.
    let data = unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as _, &raw mut req)).unwrap();
        req.ifr_ifru.ifru_hwaddr.sa_data
    };
    std::array::from_fn(|i| data[i] as u8)
}

/// A system call's result as one of Rust's.
pub(crate) fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The errno of a failure.
#[track_caller]
pub(crate) fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(e) => e.raw_os_error().expect("an errno"),
    }
}

/// write(2) to a descriptor.
pub(crate) fn write(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // A second descriptor for the same file, so that `File` may close it.
    io::Write::write(&mut File::from(fd.try_clone()?), bytes)
}

/// A ring as the worker has one.
pub(crate) struct Ring(pub(crate) IoUring);

/// A completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cqe {
    pub(crate) data: u64,
    pub(crate) res: i32,
    pub(crate) flags: u32,
}

impl Cqe {
    pub(crate) fn more(self) -> bool {
        cqueue::more(self.flags)
    }

    pub(crate) fn bid(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

impl Ring {
    pub(crate) fn new(cq: u32) -> Self {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(cq)
            .build(16.min(cq / 2))
            .expect("io_uring");
        Self(ring)
    }

    /// Adds an entry and submits it. Tests keep what it names alive until its completion.
    pub(crate) fn push(&mut self, entry: squeue::Entry, data: u64) {
        // SAFETY: the caller keeps buffers until the completion; these are tests.
        unsafe { self.0.submission().push(&entry.user_data(data)).unwrap() };
        self.0.submit().unwrap();
    }

    fn enter(&mut self, patience: Duration) -> Option<Cqe> {
        if self.0.completion().is_empty() {
            let timespec = Timespec::from(patience);
            let args = SubmitArgs::new().timespec(&timespec);
            match self.0.submitter().submit_with_args(1, &args) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ETIME) => {}
                Err(e) => panic!("enter: {e}"),
            }
        }
        let cqe = self.0.completion().next()?;
        Some(Cqe { data: cqe.user_data(), res: cqe.result(), flags: cqe.flags() })
    }

    /// The next completion; one that does not come fails the test.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Cqe {
        self.enter(Duration::from_secs(20)).expect("a completion")
    }

    /// Says that nothing completes. Waiting longer could only make it fail, never pass.
    #[track_caller]
    pub(crate) fn quiet(&mut self) {
        let cqe = self.enter(Duration::from_millis(20));
        assert!(cqe.is_none(), "an unexpected completion: {cqe:?}");
    }

    /// Cancels all of a descriptor; the count, and the completion of the one operation cancelled.
    pub(crate) fn cancel_one(&mut self, fd: i32) -> (i32, Cqe) {
        let cancel = types::CancelBuilder::fd(types::Fd(fd)).all();
        self.push(opcode::AsyncCancel2::new(cancel).build(), u64::MAX);
        let (a, b) = (self.next(), self.next());
        let (cancel, other) = if a.data == u64::MAX { (a, b) } else { (b, a) };
        (cancel.res, other)
    }
}

/// A provided-buffer ring of group 0 and its memory.
pub(crate) struct Buffers {
    entries: *mut BufRingEntry,
    memory: Vec<u8>,
    size: usize,
    count: u16,
    tail: u16,
}

impl Buffers {
    pub(crate) fn new(ring: &Ring, count: u16, size: usize) -> Self {
        let mut this = Self {
            entries: page().cast(),
            memory: vec![0; usize::from(count) * size],
            size,
            count,
            tail: 0,
        };
        // SAFETY: a page holds 256 entries; it is never unmapped (the process of a test is short).
        unsafe {
            ring.0
                .submitter()
                .register_buf_ring_with_flags(this.entries as u64, count, 0, 0)
                .unwrap();
        }
        for bid in 0..count {
            this.give(bid);
        }
        this
    }

    /// Gives a buffer to the kernel.
    pub(crate) fn give(&mut self, bid: u16) {
        let at = usize::from(self.tail & (self.count - 1));
        // SAFETY: `at` is below `count`, so in the page; the tail is an aligned `u16` in it, read by the
        // kernel alone. Release: entries first.
        unsafe {
            let entry = &mut *self.entries.add(at);
            entry.set_addr(self.memory.as_ptr().add(usize::from(bid) * self.size) as u64);
            entry.set_len(self.size as u32);
            entry.set_bid(bid);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries).cast_mut();
            std::sync::atomic::AtomicU16::from_ptr(tail)
                .store(self.tail, std::sync::atomic::Ordering::Release);
        }
    }

    /// What a completion has put into its buffer.
    pub(crate) fn bytes(&self, cqe: Cqe) -> &[u8] {
        let at = usize::from(cqe.bid().expect("a buffer")) * self.size;
        &self.memory[at..at + cqe.res as usize]
    }
}

fn page() -> *mut libc::c_void {
    // SAFETY: an anonymous private mapping touches no existing memory.
    let addr = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(addr, libc::MAP_FAILED);
    addr
}
