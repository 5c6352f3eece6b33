//! The TAP: made or adopted, with virtio header and every offload that the kernel knows.
//!
//! A TAP with two holders splits the guest's traffic between them without a word, so one that is in use is
//! refused: the kernel does so for a TAP with one queue (`EBUSY`), and for one with several the count of
//! held queues (ethtool channels) tells, before we attach and again after. A holder that comes later is not looked
//! for: it would take a socket inside the guest and a timer that wakes an idle worker.
//!
//! A TAP of our own making has a queue for each worker. One that exists has what its maker gave it: several queues,
//! of which we take as many, or a single one (RootlessKit), which one worker reads for all ([`spread`]).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{Context, Failure, sys};
use crate::limits::{TAP_RETRY, TAP_TRIES, VNET_LEN};
use crate::worker::TapQueue;

/// linux/if_tun.h
const CSUM: u32 = 0x01;
const TSO4: u32 = 0x02;
const TSO6: u32 = 0x04;
const TSO_ECN: u32 = 0x08;
const USO4: u32 = 0x20;
const USO6: u32 = 0x40;

/// What to ask for, best first. USO came with Linux 6.2, and only as a pair; TSO wants CSUM.
/// UFO and the tunnel offloads are left off: we have no use for such frames.
pub(crate) const OFFLOADS: [u32; 5] = [
    CSUM | TSO4 | TSO6 | TSO_ECN | USO4 | USO6,
    CSUM | TSO4 | TSO6 | TSO_ECN,
    CSUM | TSO4 | TSO6,
    CSUM,
    0,
];

/// Makes the TAP `name` with so many queues in the network namespace that this process is in, or attaches to it
/// where it exists.
///
/// # Errors
/// No `/dev/net/tun`, no such right, or a TAP that is in use or of another kind.
pub fn open(name: &str, queues: usize) -> Result<Vec<TapQueue>, Failure> {
    // A holder that was killed is gone from the process table before its TAP is free: the kernel tears
    // down what a ring holds in a work queue of its own.
    for _ in 0..TAP_TRIES {
        if let Some(taps) = attempt(name, queues)? {
            return Ok(taps);
        }
        thread::sleep(Duration::from_millis(TAP_RETRY.0));
    }
    attempt(name, queues)?.ok_or_else(|| in_use(name))
}

const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// `None`: the TAP is in use.
fn attempt(name: &str, queues: usize) -> Result<Option<Vec<TapQueue>>, Failure> {
    let fd = open_device()?;
    if is_shared(name, 0)? {
        return Ok(None);
    }
    // One that was made with several queues can only be joined so (and the other way round).
    let (wanted, other) = if queues > 1 {
        (FLAGS | libc::IFF_MULTI_QUEUE, FLAGS)
    } else {
        (FLAGS, FLAGS | libc::IFF_MULTI_QUEUE)
    };
    let mut flags = wanted;
    let mut result = sys::tun_attach(fd.as_fd(), name, flags);
    if errno(&result) == Some(libc::EINVAL) {
        flags = other;
        result = sys::tun_attach(fd.as_fd(), name, flags);
    }
    match errno(&result) {
        None => {}
        Some(libc::EBUSY) => return Ok(None),
        Some(libc::EINVAL) => {
            return Err(Failure::new(format!(
                "attach to TAP {name}: an interface of this name exists and is no TAP (or one with other flags): choose another name"
            )));
        }
        Some(libc::EPERM) => {
            return Err(Failure::new(format!(
                "make TAP {name}: operation not permitted: it needs CAP_NET_ADMIN in the user namespace that owns the network namespace (see --userns), and an existing TAP must not belong to another user"
            )));
        }
        Some(_) => result.context(|| format!("make TAP {name}"))?,
    }
    let mut fds = vec![fd];
    if flags & libc::IFF_MULTI_QUEUE != 0 {
        for _ in 1..queues {
            let fd = open_device()?;
            sys::tun_attach(fd.as_fd(), name, flags)
                .context(|| format!("attach to another queue of TAP {name}"))?;
            fds.push(fd);
        }
    }
    // Another who came between counts us as well: both let go.
    if is_shared(name, fds.len() as u32)? {
        return Ok(None);
    }
    let vnet = match fds.first() {
        Some(fd) => set_up(fd.as_fd(), name)?,
        None => return Ok(None),
    };
    Ok(Some(fds.into_iter().map(|fd| TapQueue { fd, vnet, reads: true }).collect()))
}

/// Takes an open TAP that the caller has made, and a second descriptor of it when it outlives us.
///
/// # Errors
/// The descriptor is no TAP, or of a kind we cannot speak.
pub fn adopt(fd: OwnedFd) -> Result<(TapQueue, Option<OwnedFd>), Failure> {
    let (name, flags) = sys::tun_flags(fd.as_fd())
        .context(|| "TAP descriptor: not an open TAP that is attached to an interface")?;
    if flags & libc::IFF_TAP == 0 {
        return Err(Failure::new(format!("TAP descriptor: {name} is a TUN, not a TAP")));
    }
    // Whether frames come with a `struct tun_pi` (no IFF_NO_PI) cannot be seen: TUNGETIFF reports
    // IFF_NOFILTER in the same bit. slirp4netns wants IFF_NO_PI, too.
    let vnet = set_up(fd.as_fd(), &name)?;
    let queue = TapQueue { fd, vnet, reads: true };
    let second = persistent(&queue)?;
    Ok((queue, second))
}

/// Makes so many workers' queues of the one that a TAP has: the first reads, the others write.
///
/// # Errors
/// No descriptor is free.
pub fn spread(queues: &mut Vec<TapQueue>, workers: usize) -> Result<(), Failure> {
    let [only] = queues.as_slice() else { return Ok(()) };
    if workers < 2 {
        return Ok(());
    }
    let (name, flags) = sys::tun_flags(only.fd.as_fd()).context(|| "ask the TAP for its name")?;
    let has = if flags & libc::IFF_MULTI_QUEUE == 0 {
        "was made with one queue"
    } else {
        "came with one of its queues"
    };
    tracing::info!(
        "TAP {name} {has}: one of {workers} workers reads it for all, and streams from the guest gain nothing by the others; for more, let it be made with multi_queue, or by ringtap"
    );
    for _ in 1..workers {
        let fd = queues[0].fd.try_clone().context(|| "duplicate the TAP's descriptor")?;
        queues.push(TapQueue { fd, vnet: queues[0].vnet, reads: false });
    }
    Ok(())
}

/// A second descriptor of a TAP that outlives us, for [`leave`].
///
/// # Errors
/// No descriptor is free.
pub fn persistent(queue: &TapQueue) -> Result<Option<OwnedFd>, Failure> {
    let (_, flags) = sys::tun_flags(queue.fd.as_fd()).context(|| "ask the TAP for its flags")?;
    if flags & libc::IFF_PERSIST == 0 {
        return Ok(None);
    }
    queue.fd.try_clone().context(|| "duplicate the TAP's descriptor").map(Some)
}

/// Leaves a TAP that outlives us as the next holder expects it. The kernel would keep the offloads on,
/// and hand segments of 64 KiB to a holder that knows no virtio header.
pub fn leave(tap: BorrowedFd<'_>) {
    // Fails when the interface is gone: then there is nothing to leave.
    let _ = sys::tun_offloads(tap, 0);
}

/// Sees which form the TAP really has (the first holder's flags count, later ones are ignored
/// without an error) and turns on what it can, for all queues at once: offloads and header are the device's.
/// True: frames carry a virtio header.
fn set_up(fd: BorrowedFd<'_>, name: &str) -> Result<bool, Failure> {
    let (_, flags) = sys::tun_flags(fd).context(|| format!("ask TAP {name} for its flags"))?;
    let vnet = flags & libc::IFF_VNET_HDR != 0;
    if !vnet {
        tracing::warn!("TAP {name} has no virtio header: slow");
        sys::tun_offloads(fd, 0).context(|| format!("turn off offloads of TAP {name}"))?;
        return Ok(vnet);
    }
    // The length is the device's, not the descriptor's: an earlier holder may have left another.
    sys::tun_header_len(fd, VNET_LEN).context(|| format!("set the virtio header of TAP {name}"))?;
    let accepted = OFFLOADS.iter().find(|&&o| sys::tun_offloads(fd, o).is_ok());
    if accepted != OFFLOADS.first() {
        tracing::warn!("TAP {name} takes only offloads {:#x}: slower", accepted.unwrap_or(&0));
    }
    Ok(vnet)
}

fn open_device() -> Result<OwnedFd, Failure> {
    const DEVICE: &str = "/dev/net/tun";
    let result = OpenOptions::new().read(true).write(true).open(DEVICE);
    let remedy = match result.as_ref().err().and_then(io::Error::raw_os_error) {
        None => "",
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            ": the kernel's tun module is missing (modprobe tun), or this container was not given the device"
        }
        Some(libc::EACCES | libc::EPERM) => {
            ": it should be open to all users: chmod 0666 /dev/net/tun"
        }
        Some(_) => "",
    };
    Ok(result
        .context(|| format!("open {DEVICE}"))
        .map_err(|e| Failure::new(format!("{e}{remedy}")))?
        .into())
}

/// Whether a TAP has more holders than we are.
fn is_shared(name: &str, ours: u32) -> Result<bool, Failure> {
    let any = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context(|| "make a socket")?;
    Ok(sys::queues_held(any.as_fd(), name).is_some_and(|held| held > ours))
}

fn in_use(name: &str) -> Failure {
    Failure::new(format!(
        "attach to TAP {name}: it is in use by another process, and two holders would split the traffic: end that process, or choose another name"
    ))
}

fn errno<T>(result: &io::Result<T>) -> Option<i32> {
    result.as_ref().err().map(|e| e.raw_os_error().unwrap_or(Errno::EIO as i32))
}
