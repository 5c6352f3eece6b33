//! What only trying tells: a child makes the namespaces that `ringtap run` makes, and a TAP in them, and reports each
//! step. It ends at once, and all it made ends with it; the machine's own namespaces are never touched.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Uid, fork, pipe, pipe2, write};

use crate::boot::sandbox::{self, Walls};
use crate::boot::{sys, tap};
use crate::config::Personality;
use crate::limits::VNET_LEN;

/// What each set of offloads that boot asks for means, best first.
pub(super) const OFFLOADS: [&str; tap::OFFLOADS.len()] = [
    "all: checksums, TCP and UDP segments of 64 KiB",
    "checksums and TCP segments; UDP datagrams go one by one (since Linux 6.2 they need not)",
    "checksums and TCP segments, without ECN; UDP datagrams go one by one",
    "checksums only: one frame per packet",
    "none: one frame per packet, each checksummed",
];

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
    let maps =
        Maps { uid: format!("0 {} 1", Uid::effective()), gid: format!("0 {} 1", Gid::effective()) };
    let (reader, writer) = pipe().ok()?;
    // SAFETY: the child makes system calls on values of its own and of `maps`, allocates nothing (paths as short as
    // these are put on the stack by nix) and ends with _exit: it takes no lock that another thread could hold.
    // boot's own fork would not do: it is for a process that has one thread, and tests have several.
    let child = match unsafe { fork() }.ok()? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            steps(&maps, &writer);
            // SAFETY: ends the process without the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
    };
    drop(writer);
    let report = read(reader);
    // The child ends after its report, or was killed before it.
    let _ = waitpid(child, None);
    Some(decode(&report?))
}

/// Goes behind the walls that `run`, `attach` and `create` have, in a child. `None`: no child could be made, or it was killed.
pub(super) fn sandbox() -> Option<Result<(), String>> {
    // Closed on exec: the sandbox closes what is not.
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).ok()?;
    // SAFETY: as above, but that the child allocates: the C library's fork leaves its allocator usable. No lock of ours is
    // taken.
    let child = match unsafe { fork() }.ok()? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let walls = Walls { low_ports: false, personality: Personality::Native };
            let line = match sandbox::enter(walls, None) {
                Ok(()) => "+".to_owned(),
                Err(failure) => format!("-{failure}"),
            };
            let _ = write(&writer, line.as_bytes());
            // SAFETY: ends the process without the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
    };
    drop(writer);
    let mut line = String::new();
    let read = File::from(reader).read_to_string(&mut line);
    let _ = waitpid(child, None);
    read.ok()?;
    match line.split_at_checked(1)? {
        ("+", _) => Some(Ok(())),
        (_, why) => Some(Err(why.to_owned())),
    }
}

struct Maps {
    uid: String,
    gid: String,
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
fn steps(maps: &Maps, report: &OwnedFd) {
    if tell(report, unshare(CloneFlags::CLONE_NEWUSER)) {
        tell(report, map_ids(maps));
    } else {
        // Real root goes on without.
        put(report, NOT_TRIED);
    }
    // Where this fails, a TAP would be made in the machine's own namespace: stop.
    if !tell(report, unshare(CloneFlags::CLONE_NEWNET)) {
        return;
    }
    tell(report, unshare(CloneFlags::CLONE_NEWNS));
    let tun = open("/dev/net/tun", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
    tell(report, tun.as_ref().map(drop).map_err(|&errno| errno));
    let Ok(tun) = tun else { return };
    if !tell(report, make_tap(&tun)) {
        return;
    }
    let first = tap::OFFLOADS.iter().position(|&o| sys::tun_offloads(tun.as_fd(), o).is_ok());
    put(report, first.map_or(NOT_TRIED, |at| at as i32));
}

/// A new TAP with a virtio header. It goes with the descriptor.
fn make_tap(tun: &OwnedFd) -> Result<(), Errno> {
    let errno = |e: io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    sys::tun_attach(tun.as_fd(), "tap0", flags).map_err(errno)?;
    sys::tun_header_len(tun.as_fd(), VNET_LEN).map_err(errno)
}

/// Maps our ids to 0.
fn map_ids(maps: &Maps) -> Result<(), Errno> {
    for (path, text) in [
        // Without this an ordinary user may not map groups (user_namespaces(7)).
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", &maps.uid),
        ("/proc/self/gid_map", &maps.gid),
    ] {
        let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        write(&file, text.as_bytes())?;
    }
    Ok(())
}

/// Reports one step; whether it worked.
fn tell(report: &OwnedFd, result: Result<(), Errno>) -> bool {
    put(
        report,
        match result.map_err(|errno| errno as i32) {
            Ok(()) => 0,
            // What nix has no name for.
            Err(0) => libc::EIO,
            Err(errno) => errno,
        },
    );
    result.is_ok()
}

fn put(report: &OwnedFd, value: i32) {
    // A parent that is gone wants no report.
    let _ = write(report, &value.to_ne_bytes());
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
    fn walls_or_the_reason_why_not() {
        match sandbox() {
            Some(Ok(())) => {}
            Some(Err(why)) => assert!(why.starts_with("sandbox: "), "{why}"),
            None => panic!("no child"),
        }
        // It was another process that went there.
        assert!(std::path::Path::new("/proc/self").exists());
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
