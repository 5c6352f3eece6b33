//! The kernel edge of boot: forks, ioctls and descriptors by number, each behind a safe function.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_long, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `NS_GET_USERNS` and `NS_GET_NSTYPE` (linux/nsfs.h).
const NS_GET_USERNS: c_ulong = 0xb701;
const NS_GET_NSTYPE: c_ulong = 0xb703;
/// `MS_SLAVE` (linux/mount.h), as wide as `mount_setattr` has it.
const SLAVE: u64 = 1 << 19;
/// linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Runs `child` in a forked process with new namespaces of the given kinds (`CLONE_NEW...`), which ends
/// with the code that it returns. The caller must have no other thread: a lock that one of
/// them held would stay locked in the child for ever.
///
/// # Errors
/// What `clone(2)` says.
pub fn fork(namespaces: c_int, child: impl FnOnce() -> u8) -> io::Result<Pid> {
    let flags = c_long::from(namespaces) | c_long::from(libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack this is fork(2): the child has its own copy of
    // everything. It skips glibc's fork handlers and leaves glibc's idea of the thread's id stale,
    // which only raise(3) and mutexes with an owner use; the child calls neither.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // A panic must not unwind into a second run of the parent's code.
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(70);
            // SAFETY: ends the process; exit handlers are the parent's business.
            unsafe { libc::_exit(c_int::from(code)) }
        }
        pid => Ok(Pid::from_raw(pid as i32)),
    }
}

/// Takes over a descriptor that the caller of the program has given by number; it is closed on exec from now on.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD touches no memory; a number that is not open gives EBADF.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is open (just seen), was open before this program ran, and is given to one owner
    // only: `Inherited::take` refuses the same number twice, a TAP is taken over once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes descriptors that `recvmsg(2)` has just made.
pub fn received(fds: Vec<RawFd>) -> Vec<OwnedFd> {
    // SAFETY: the kernel has installed them for this message; nobody else knows their numbers.
    fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

/// A descriptor that becomes readable when the process ends.
///
/// # Errors
/// What `pidfd_open(2)` says.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made by the kernel, nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Registers a descriptor with the runtime, for as long as it is borrowed.
///
/// # Errors
/// What `epoll_ctl(2)` says.
pub fn readiness(fd: BorrowedFd<'_>, interest: Interest) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: it wants a descriptor that stays open and the same while registered: a BorrowedFd is, for
    // its lifetime, which the result has too.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Whether a signal is ignored: by `nohup`, or by a shell for a background job.
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: an all-zero sigaction is a valid value of this plain C struct.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only reads; `old` is valid for writes.
    let rc = unsafe { libc::sigaction(signal as c_int, std::ptr::null(), &raw mut old) };
    rc == 0 && old.sa_sigaction == libc::SIG_IGN
}

/// Ignores a signal.
pub fn ignore(signal: Signal) {
    // SAFETY: SIG_IGN runs no code.
    let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) };
}

/// Gives a signal its default effect.
pub fn set_default(signal: Signal) {
    // SAFETY: SIG_DFL runs no code of ours.
    let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
}

/// The user namespace that owns a namespace.
///
/// # Errors
/// `EPERM` when it is not one of our own user namespace's descendants.
pub fn owner_of(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: NS_GET_USERNS takes no argument.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made by the kernel, nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The kind of a namespace, as `CLONE_NEW...`; `None` when the file is no namespace.
pub fn namespace_kind(file: BorrowedFd<'_>) -> Option<c_int> {
    // SAFETY: NS_GET_NSTYPE takes no argument.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    (kind >= 0).then_some(kind)
}

/// `struct ifreq` with a name in it.
fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// An ioctl whose argument is a pointer to one value of the type that the request asks for.
fn ioctl<T>(fd: BorrowedFd<'_>, request: c_ulong, value: &mut T) -> io::Result<()> {
    // SAFETY: `value` is valid for reads and writes of a T, and each caller in this file pairs the
    // request with the type that the kernel copies for it.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(value)) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the TAP `name`, or attaches to it. The kernel keeps the flags of the first holder.
///
/// # Errors
/// What `TUNSETIFF` says.
pub fn tun_attach(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<()> {
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    ioctl(fd, libc::TUNSETIFF as c_ulong, &mut request)
}

/// Name and flags of the TAP behind a descriptor.
///
/// # Errors
/// `EBADFD` when it is no TUN or TAP, or not attached.
pub fn tun_flags(fd: BorrowedFd<'_>) -> io::Result<(String, c_int)> {
    let mut request = ifreq("-")?;
    ioctl(fd, libc::TUNGETIFF as c_ulong, &mut request)?;
    let name = request.ifr_name.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
    // SAFETY: TUNGETIFF fills in the flags member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((String::from_utf8(name).unwrap_or_default(), c_int::from(flags as u16)))
}

/// What the guest may leave to us: `TUN_F_...`.
///
/// # Errors
/// `EINVAL` for a set that the kernel does not know.
pub fn tun_offloads(fd: BorrowedFd<'_>, offloads: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let rc =
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, c_ulong::from(offloads)) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Length of the virtio header on the TAP; device-wide.
///
/// # Errors
/// What `TUNSETVNETHDRSZ` says.
pub fn tun_header_len(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let mut len = len as c_int;
    ioctl(fd, libc::TUNSETVNETHDRSZ as c_ulong, &mut len)
}

/// How many queues of a TUN or TAP have a holder: `None` when there is no such interface, or it is of
/// another kind. `socket` is any socket of the namespace.
pub fn queues_held(socket: BorrowedFd<'_>, name: &str) -> Option<u32> {
    // struct ethtool_drvinfo: cmd, then 192 bytes, of which the first 32 are the driver's name.
    let mut driver = [0u32; 49];
    driver[0] = ETHTOOL_GDRVINFO;
    ethtool(socket, name, &mut driver).ok()?;
    if driver[1].to_ne_bytes() != *b"tun\0" {
        return None;
    }
    // struct ethtool_channels: cmd, the maxima of rx, tx, other and combined, then their counts.
    let mut channels = [0u32; 9];
    channels[0] = ETHTOOL_GCHANNELS;
    ethtool(socket, name, &mut channels).ok()?;
    Some(channels[8])
}

/// An ethtool request: its number comes first in `command`, which is as long as the request's struct.
fn ethtool<const N: usize>(
    socket: BorrowedFd<'_>,
    name: &str,
    command: &mut [u32; N],
) -> io::Result<()> {
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_data = command.as_mut_ptr().cast();
    // `command` outlives the call, and the kernel writes no more than the struct of its number.
    ioctl(socket, libc::SIOCETHTOOL as c_ulong, &mut request)
}

/// A copy of the mount at `path`, not attached anywhere.
///
/// # Errors
/// What `open_tree(2)` says.
pub fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    open_tree(path, 0)
}

/// A copy of what is at `path`, with all mounts below it, not attached anywhere.
///
/// # Errors
/// What `open_tree(2)` says.
pub fn clone_mounts(path: &Path) -> io::Result<OwnedFd> {
    open_tree(path, libc::AT_RECURSIVE as u32)
}

fn open_tree(path: &Path, flags: u32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = flags | libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is a C string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made by the kernel, nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches what [`clone_mount`] has made at `path`.
///
/// # Errors
/// What `move_mount(2)` says.
pub fn attach_mount(mount: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: both paths are C strings that outlive the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a mount (and all below it, with `below`) read-only, without devices, programs and set-user-id. Mounts
/// of the host still come in, and none goes out.
///
/// # Errors
/// What `mount_setattr(2)` says.
pub fn wall_mount(mount: BorrowedFd<'_>, below: bool) -> io::Result<()> {
    let flags = if below { libc::AT_RECURSIVE } else { 0 };
    mount_setattr(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH | flags, SLAVE)
}

/// Makes the root like [`wall_mount`], and not what is mounted in it.
///
/// # Errors
/// What `mount_setattr(2)` says.
pub fn wall_root() -> io::Result<()> {
    mount_setattr(libc::AT_FDCWD, c"/", 0, 0)
}

fn mount_setattr(at: RawFd, path: &CStr, flags: c_int, propagation: u64) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    // SAFETY: `path` is a C string and `attr` a struct of the size given; both outlive the call, which reads them.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(&attr),
            size_of_val(&attr),
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// linux/capability.h: `_LINUX_CAPABILITY_VERSION_3`, two words for each set.
const CAPABILITIES_V3: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityWords {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up every capability that is not in `keep`, for good: in the ambient set, the bounding set, and the three of the
/// thread. The process must have one thread.
///
/// # Errors
/// `EPERM` where the bounding set may not be changed (`CAP_SETPCAP`).
pub fn drop_capabilities(keep: u64) -> io::Result<()> {
    let done = |rc: c_long| if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: PR_CAP_AMBIENT_CLEAR_ALL touches no memory.
    let rc = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    done(rc.into())?;
    for capability in (0..64).filter(|bit| keep & 1 << bit == 0) {
        // SAFETY: both touch no memory.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) } {
            0 => {}
            // There are no more.
            -1 => break,
            // SAFETY: as above.
            _ => done(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into())?,
        }
    }
    let mut header = CapabilityHeader { version: CAPABILITIES_V3, pid: 0 };
    let mut words = [CapabilityWords::default(); 2];
    // SAFETY: the header and the two words of version 3 are as long as the kernel reads and writes.
    done(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) })?;
    for (word, keep) in words.iter_mut().zip([keep as u32, (keep >> 32) as u32]) {
        // What one does not have, one cannot keep.
        let kept = word.permitted & keep;
        *word = CapabilityWords { effective: kept, permitted: kept, inheritable: kept };
    }
    // SAFETY: as above; the kernel reads.
    done(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) })
}

/// Closes what the caller of the program has left open and not given by number: whatever is not closed on exec, the
/// standard streams excepted. All that this program opens is, and so is what [`adopt`] has taken.
///
/// # Errors
/// What reading `/proc/self/fd` says.
pub fn close_inherited() -> io::Result<()> {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|&fd| fd > libc::STDERR_FILENO) {
        // SAFETY: F_GETFD touches no memory; the folder's own descriptor is closed by now, and gives EBADF.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            // SAFETY: nobody here owns it: see above.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// Closes every descriptor but one. Only for a process that uses none of the others any more: a child that is about to
/// do one thing and end.
///
/// # Errors
/// What `close_range(2)` says.
pub fn close_all_but(fd: BorrowedFd<'_>) -> io::Result<()> {
    let fd = fd.as_raw_fd() as u32;
    for (first, last) in [(0, fd.checked_sub(1)), (fd + 1, Some(u32::MAX))] {
        let Some(last) = last else { continue };
        // SAFETY: touches no memory. Values in this process that own descriptors are not used again, nor dropped: the
        // caller's promise.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
