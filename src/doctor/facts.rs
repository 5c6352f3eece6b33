//! Asks the machine. Nothing here judges, and nothing here changes anything.

#![allow(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io;
use std::ptr;

use io_uring::{IoUring, Probe, opcode};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Uid;
use socket2::{Domain, Protocol, Socket, Type};

use super::trial::{self, Trial};

/// `errno`, where something failed.
pub(super) type Answer = Result<(), i32>;

/// What the machine says.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Release of the kernel, as `uname -r`.
    pub(super) release: String,
    pub(super) is_root: bool,
    /// A seccomp filter is on us.
    pub(super) is_filtered: bool,
    pub(super) ring: Ring,
    /// `kernel.io_uring_disabled`; `None` before Linux 6.6.
    pub(super) ring_disabled: Option<u64>,
    /// `/dev/net/tun` opened for reading and writing.
    pub(super) tun: Answer,
    pub(super) trial: Option<Trial>,
    /// Whether the sandbox can be had; `None`: it could not be tried.
    pub(super) sandbox: Option<Result<(), String>>,
    /// `kernel.unprivileged_userns_clone`: Debian and its like only.
    pub(super) userns_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`: Ubuntu and its like only.
    pub(super) apparmor_restricts: Option<u64>,
    /// `user.max_{user,net,mnt}_namespaces`.
    pub(super) namespaces_max: [Option<u64>; 3],
    /// Hard limit of `RLIMIT_NOFILE`.
    pub(super) descriptors_max: Option<u64>,
    /// A ping socket.
    pub(super) ping: Answer,
    /// `net.ipv4.ping_group_range`.
    pub(super) ping_range: Option<String>,
    /// `net.ipv4.ip_unprivileged_port_start`.
    pub(super) port_start: Option<u64>,
    /// The last number of `net.ipv4.tcp_rmem` and `tcp_wmem`.
    pub(super) tcp_buffers: [Option<u64>; 2],
    /// `net.core.rmem_max` and `wmem_max`.
    pub(super) socket_buffers: [Option<u64>; 2],
    /// Contents of `/etc/resolv.conf`.
    pub(super) resolv_conf: Option<String>,
    /// `net.ipv6.conf.all.disable_ipv6`; `None`: the kernel has no IPv6.
    pub(super) ipv6_disabled: Option<u64>,
    /// `/proc/net/ipv6_route`.
    pub(super) ipv6_routes: String,
}

/// What io_uring says, each feature by itself.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    /// A ring without any flag.
    pub(super) plain: Answer,
    /// A ring as a worker sets it up.
    pub(super) flags: Answer,
    /// Asking for what the kernel knows.
    pub(super) probe: Answer,
    /// Operations that the kernel does not know.
    pub(super) missing: Vec<&'static str>,
    /// A ring of provided buffers.
    pub(super) buffers: Answer,
    /// Waiting need not look like waiting for a disk.
    pub(super) no_iowait: bool,
}

/// Every operation that workers use.
const OPERATIONS: [(u8, &str); 9] = [
    (opcode::ReadMulti::CODE, "READ_MULTISHOT"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Send::CODE, "SEND"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::RecvMsg::CODE, "RECVMSG"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
];

/// Asks everything.
pub(super) fn gather() -> Facts {
    // First, while nothing else is open.
    let (trial, sandbox) = (trial::run(), trial::sandbox());
    let sysctl = |name: &str| number(&format!("/proc/sys/{name}"));
    let namespaces = |kind: &str| sysctl(&format!("user/max_{kind}_namespaces"));
    Facts {
        release: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        is_root: Uid::effective().is_root(),
        is_filtered: fs::read_to_string("/proc/self/status").is_ok_and(|s| is_filtered(&s)),
        ring: ring(),
        ring_disabled: sysctl("kernel/io_uring_disabled"),
        tun: answer(OpenOptions::new().read(true).write(true).open("/dev/net/tun")),
        trial,
        sandbox,
        userns_clone: sysctl("kernel/unprivileged_userns_clone"),
        apparmor_restricts: sysctl("kernel/apparmor_restrict_unprivileged_userns"),
        namespaces_max: [namespaces("user"), namespaces("net"), namespaces("mnt")],
        descriptors_max: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard),
        ping: answer(Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))),
        ping_range: text("/proc/sys/net/ipv4/ping_group_range"),
        port_start: sysctl("net/ipv4/ip_unprivileged_port_start"),
        tcp_buffers: [sysctl("net/ipv4/tcp_rmem"), sysctl("net/ipv4/tcp_wmem")],
        socket_buffers: [sysctl("net/core/rmem_max"), sysctl("net/core/wmem_max")],
        resolv_conf: fs::read("/etc/resolv.conf")
            .ok()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        ipv6_disabled: sysctl("net/ipv6/conf/all/disable_ipv6"),
        ipv6_routes: fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default(),
    }
}

fn text(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The last number in a file.
fn number(path: &str) -> Option<u64> {
    text(path)?.split(' ').next_back()?.parse().ok()
}

/// `Seccomp: 2` in `/proc/self/status` (proc(5)).
fn is_filtered(status: &str) -> bool {
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|v| v.trim() == "2"))
}

fn answer<T>(result: io::Result<T>) -> Answer {
    result.map(drop).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
}

fn ring() -> Ring {
    let plain = IoUring::new(8);
    let worker: io::Result<IoUring> =
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_submit_all().build(8);
    let mut probe = Probe::new();
    let probed = plain
        .as_ref()
        .map_or(Err(libc::ENOSYS), |ring| answer(ring.submitter().register_probe(&mut probe)));
    Ring {
        probe: probed,
        missing: OPERATIONS
            .iter()
            .filter(|&&(code, _)| !probe.is_supported(code))
            .map(|&(_, name)| name)
            .collect(),
        buffers: plain.as_ref().map_or(Err(libc::ENOSYS), buffer_ring),
        no_iowait: worker.as_ref().is_ok_and(|ring| ring.params().is_feature_no_iowait()),
        plain: answer(plain),
        flags: answer(worker),
    }
}

/// Registers a ring of buffers as a worker does, and takes it away again.
fn buffer_ring(ring: &IoUring) -> Answer {
    const ENTRIES: u16 = 8;
    let bytes = usize::from(ENTRIES) * size_of::<io_uring::types::BufRingEntry>();
    // SAFETY: an anonymous private mapping touches no existing memory.
    let memory = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(Errno::last_raw());
    }
    let submitter = ring.submitter();
    // SAFETY: `memory` is a page-aligned mapping of ENTRIES entries. No operation uses the group, and the
    // kernel has let go of it (the unregister below) before it is unmapped.
    let result = unsafe { submitter.register_buf_ring_with_flags(memory as u64, ENTRIES, 0, 0) }
        .and_then(|()| submitter.unregister_buf_ring(0));
    // SAFETY: mapped above with this length; nothing points there.
    unsafe { libc::munmap(memory, bytes) };
    answer(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_filters() {
        assert!(is_filtered("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!is_filtered("Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t2\n"));
        assert!(number("/proc/sys/net/ipv4/tcp_rmem").is_none_or(|max| max > 4096));
        assert_eq!(number("/proc/sys/kernel/osrelease/none"), None);
        assert_eq!(number("/proc/sys/kernel/ostype"), None);
    }
}
