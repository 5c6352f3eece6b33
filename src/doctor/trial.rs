//! What only trying tells: a child makes the namespaces that `ringtap run` makes, and a TAP in them, and reports each
//! step. It ends at once, and all it made ends with it; the machine's own namespaces are never touched.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Uid, fork, pipe};

use crate::limits::VNET_LEN;

/// linux/if_tun.h: offloads to ask a TAP for, best first, with what is lost from one to the next.
pub(super) const OFFLOADS: [(libc::c_ulong, &str); 5] = [
    (0x6f, "all: checksums, TCP and UDP segments of 64 KiB"),
    (
        0x0f,
        "checksums and TCP segments; UDP datagrams go one by one (since Linux 6.2 they need not)",
    ),
    (0x07, "checksums and TCP segments, without ECN; UDP datagrams go one by one"),
    (0x01, "checksums only: one frame per packet"),
    (0x00, "none: one frame per packet, each checksummed"),
];

/// `TUNSETIFF`, `TUNSETOFFLOAD` and `TUNSETVNETHDRSZ` (linux/if_tun.h).
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// How one step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// An earlier step failed, or the child was killed.
    Not,
    /// It worked.
    Worked,
    /// It failed with this `errno`.
    Failed(i32),
}

/// The steps in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trial {
    /// `unshare(CLONE_NEWUSER)`.
    pub(super) user: Tried,
    /// Our own uid and gid mapped to 0.
    pub(super) maps: Tried,
    /// `unshare(CLONE_NEWNET)`.
    pub(super) net: Tried,
    /// `unshare(CLONE_NEWNS)`.
    pub(super) mount: Tried,
    /// `/dev/net/tun` opened there.
    pub(super) device: Tried,
    /// A TAP with a virtio header made there.
    pub(super) tap: Tried,
    /// Which of [`OFFLOADS`] it took.
    pub(super) offloads: Option<usize>,
}

const STEPS: usize = 7;
const NOT_TRIED: i32 = -1;

/// Tries it all. `None`: not even a child could be made.
pub(super) fn run() -> Option<Trial> {
    // Everything the child needs is made before the fork: after it, it must not allocate.
    let maps = Maps {
        uid: CString::new(format!("0 {} 1", Uid::effective())).ok()?,
        gid: CString::new(format!("0 {} 1", Gid::effective())).ok()?,
    };
    let (reader, writer) = pipe().ok()?;
    // SAFETY: the child only makes system calls on values of its own and of `maps`, then ends with _exit: it takes
    // no lock that another thread could hold.
    let child = match unsafe { fork() }.ok()? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => in_child(&maps, writer.as_raw_fd()),
    };
    drop(writer);
    let report = read(reader);
    // The child ends after its report, or was killed before it.
    let _ = waitpid(child, None);
    Some(decode(&report?))
}

struct Maps {
    uid: CString,
    gid: CString,
}

fn read(reader: OwnedFd) -> Option<[i32; STEPS]> {
    let mut bytes = Vec::new();
    File::from(reader).read_to_end(&mut bytes).ok()?;
    let mut report = [NOT_TRIED; STEPS];
    // Shorter when the child was killed: what is not there was not tried.
    for (to, from) in report.iter_mut().zip(bytes.chunks_exact(4)) {
        *to = i32::from_ne_bytes(from.try_into().ok()?);
    }
    Some(report)
}

fn decode(report: &[i32; STEPS]) -> Trial {
    let step = |value: i32| match value {
        NOT_TRIED => Tried::Not,
        0 => Tried::Worked,
        errno => Tried::Failed(errno),
    };
    let [user, maps, net, mount, device, tap, offloads] = *report;
    Trial {
        user: step(user),
        maps: step(maps),
        net: step(net),
        mount: step(mount),
        device: step(device),
        tap: step(tap),
        offloads: usize::try_from(offloads).ok().filter(|&at| at < OFFLOADS.len()),
    }
}

/// The child. Writes its report step by step, so that a filter that kills it leaves the steps before.
fn in_child(maps: &Maps, report: RawFd) -> ! {
    steps(maps, report);
    // SAFETY: ends the process without the parent's exit handlers.
    unsafe { libc::_exit(0) }
}

fn steps(maps: &Maps, report: RawFd) {
    // SAFETY: unshare(2) takes no memory.
    let unshare = |kind| tell(report, errno_of(unsafe { libc::unshare(kind) }));
    if unshare(libc::CLONE_NEWUSER) {
        tell(report, map_ids(maps));
    } else {
        // Real root goes on without.
        tell(report, NOT_TRIED);
    }
    // Where this fails, a TAP would be made in the machine's own namespace: stop.
    if !unshare(libc::CLONE_NEWNET) {
        return;
    }
    unshare(libc::CLONE_NEWNS);
    // SAFETY: a literal with a NUL at its end.
    let tun = unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if !tell(report, errno_of(tun)) || !tell(report, make_tap(tun)) {
        return;
    }
    // SAFETY: TUNSETOFFLOAD takes a number.
    let takes =
        |offloads: libc::c_ulong| unsafe { libc::ioctl(tun, TUNSETOFFLOAD as _, offloads) } == 0;
    let first = OFFLOADS.iter().position(|&(offloads, _)| takes(offloads));
    tell(report, first.map_or(NOT_TRIED, |at| at as i32));
}

/// A new TAP with a virtio header; 0 or `errno`. It goes with the descriptor.
fn make_tap(tun: RawFd) -> i32 {
    // SAFETY: all zeros is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = *from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
    let made = errno_of(unsafe { libc::ioctl(tun, TUNSETIFF as _, &raw mut request) });
    if made != 0 {
        return made;
    }
    let length = VNET_LEN as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    errno_of(unsafe { libc::ioctl(tun, TUNSETVNETHDRSZ as _, &raw const length) })
}

/// Maps our ids to 0; 0 or `errno`.
fn map_ids(maps: &Maps) -> i32 {
    let files = [
        // Without this an ordinary user may not map groups (user_namespaces(7)).
        (c"/proc/self/setgroups", c"deny"),
        (c"/proc/self/uid_map", maps.uid.as_c_str()),
        (c"/proc/self/gid_map", maps.gid.as_c_str()),
    ];
    for (path, text) in files {
        // SAFETY: both are strings with a NUL at their end, and only the bytes before it are written.
        let failed = unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            match errno_of(fd) {
                0 => {
                    let written = libc::write(fd, text.as_ptr().cast(), text.count_bytes());
                    let failed = if written < 0 { errno_of(-1) } else { 0 };
                    libc::close(fd);
                    failed
                }
                errno => errno,
            }
        };
        if failed != 0 {
            return failed;
        }
    }
    0
}

/// 0, or the `errno` of a call that has just returned -1.
fn errno_of(result: libc::c_int) -> i32 {
    if result >= 0 { 0 } else { nix::errno::Errno::last_raw() }
}

/// Writes one step's result; whether it worked.
fn tell(report: RawFd, result: i32) -> bool {
    let bytes = result.to_ne_bytes();
    // SAFETY: the bytes live through the call. A parent that is gone wants no report.
    let _ = unsafe { libc::write(report, bytes.as_ptr().cast(), bytes.len()) };
    result == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_may_end_anywhere() {
        let all = decode(&[0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((all.user, all.tap, all.offloads), (Tried::Worked, Tried::Worked, Some(1)));
        let denied = decode(&[libc::EPERM, NOT_TRIED, libc::EPERM, -1, -1, -1, -1]);
        assert_eq!(denied.user, Tried::Failed(libc::EPERM));
        assert_eq!((denied.maps, denied.tap, denied.offloads), (Tried::Not, Tried::Not, None));
    }

    #[test]
    fn leaves_nothing_and_goes_as_far_as_it_may() {
        let devices = || std::fs::read_to_string("/proc/net/dev").unwrap().lines().count();
        let before = devices();
        let trial = run().unwrap();
        assert_eq!(devices(), before);
        // Which steps work is the machine's business; that each is told in turn is not.
        assert_ne!(trial.user, Tried::Not);
        assert_eq!(trial.tap == Tried::Worked, trial.offloads.is_some());
        assert!(trial.net == Tried::Worked || trial.device == Tried::Not);
    }
}
