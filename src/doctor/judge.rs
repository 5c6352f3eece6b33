//! From what the machine says to findings. Pure: no file, no system call.

use std::net::IpAddr;

use super::facts::{Answer, Facts};
use super::trial::{OFFLOADS, Trial, Tried};
use super::{Finding, Verdict};
use crate::control::resolv::nameservers;
use crate::limits::{DESCRIPTORS_OWN, FLOWS_MAX};
use crate::worker::OLDEST_KERNEL;

/// TCP buffers below this hold a long path back: 4 MiB is 40 ms at 800 Mbit/s.
const TCP_BUFFER_MIN: u64 = 4 << 20;
/// The kernel's own default of `net.core.rmem_max` and `wmem_max`: somebody has lowered them.
const SOCKET_BUFFER_MIN: u64 = 212_992;
/// Fewer namespaces of a kind than this, for all of a user's processes, run out soon.
const NAMESPACES_MIN: u64 = 64;

/// What to do about a filter in the way of io_uring.
const ALLOW_RING: &str = "start the container with a seccomp profile that allows io_uring_setup, \
                          io_uring_enter and io_uring_register";

/// All findings, in the order in which ringtap needs the things.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![kernel(facts)];
    all.extend(io_uring(facts));
    all.push(tun(&facts.tun));
    all.push(user_namespaces(facts));
    all.extend(tap(facts));
    all.extend([
        sandbox(facts.sandbox.as_ref()),
        namespace_limits(facts),
        descriptors(facts.descriptors_max),
        ping(facts),
        ports(facts),
        tcp_buffers(facts.tcp_buffers),
        socket_buffers(facts.socket_buffers),
        resolv_conf(facts.resolv_conf.as_deref()),
        ipv6(facts),
    ]);
    all
}

fn ok(what: &'static str, found: impl Into<String>) -> Finding {
    finding(Verdict::Ok, what, found, "")
}

fn finding(
    verdict: Verdict,
    what: &'static str,
    found: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { verdict, what, found: found.into(), remedy: remedy.into() }
}

fn error(errno: i32) -> String {
    let errno = nix::errno::Errno::from_raw(errno);
    format!("{} ({errno:?})", errno.desc().to_lowercase())
}

/// The first two numbers of a release or version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(facts: &Facts) -> Finding {
    let release = &facts.release;
    if version(release) >= version(OLDEST_KERNEL) {
        return ok("kernel", format!("{release} ({OLDEST_KERNEL} or newer is needed)"));
    }
    if facts.ring.plain.is_ok() && facts.ring.missing.is_empty() {
        return ok("kernel", format!("{release}, with what {OLDEST_KERNEL} brought"));
    }
    let remedy = format!("upgrade to Linux {OLDEST_KERNEL} or newer");
    finding(Verdict::Fatal, "kernel", format!("{release} is too old"), remedy)
}

fn io_uring(facts: &Facts) -> Vec<Finding> {
    let ring = &facts.ring;
    if let Err(errno) = ring.plain {
        let (why, remedy) = blocked_ring(facts, errno);
        return vec![finding(Verdict::Fatal, "io_uring", why, remedy)];
    }
    let upgrade = || format!("upgrade to Linux {OLDEST_KERNEL} or newer");
    let remedy = |errno| match errno {
        libc::EPERM | libc::EACCES | libc::ENOSYS if facts.is_filtered => ALLOW_RING.to_owned(),
        _ => upgrade(),
    };
    let mut all = vec![ok("io_uring", "a ring can be made")];
    all.push(match ring.flags {
        Ok(()) => ok("io_uring set-up", "single issuer, deferred task work"),
        Err(errno) => finding(
            Verdict::Fatal,
            "io_uring set-up",
            format!("single issuer with deferred task work (since Linux 6.1): {}", error(errno)),
            remedy(errno),
        ),
    });
    all.push(if let Err(errno) = ring.probe {
        let found = format!("cannot be asked for: {}", error(errno));
        finding(Verdict::Fatal, "io_uring operations", found, remedy(errno))
    } else if ring.missing.is_empty() {
        ok("io_uring operations", "all, the multishot read among them")
    } else {
        let names = ring.missing.join(", ");
        finding(Verdict::Fatal, "io_uring operations", format!("not known: {names}"), upgrade())
    });
    all.push(match ring.buffers {
        Ok(()) => ok("io_uring buffer rings", "can be registered"),
        Err(errno) => finding(Verdict::Fatal, "io_uring buffer rings", error(errno), remedy(errno)),
    });
    all.push(if ring.no_iowait {
        ok("io_uring waiting", "is not counted as waiting for a disk")
    } else {
        finding(
            Verdict::Ok,
            "io_uring waiting",
            "works; top and the like will show a waiting worker as I/O wait, which costs nothing",
            "Linux 6.15 or newer shows it right",
        )
    });
    all
}

/// Why no ring can be made, and what to do.
fn blocked_ring(facts: &Facts, errno: i32) -> (String, String) {
    match (errno, facts.ring_disabled) {
        (libc::EPERM | libc::EACCES, Some(level @ (1 | 2))) => {
            let whom = if level == 1 { "for ordinary users" } else { "for everybody" };
            (
                format!("switched off {whom} (kernel.io_uring_disabled={level})"),
                "sysctl -w kernel.io_uring_disabled=0, or (with 1) put the user into the group of \
                 kernel.io_uring_group"
                    .to_owned(),
            )
        }
        (libc::EPERM | libc::EACCES | libc::ENOSYS, _) if facts.is_filtered => (
            format!("{}: a seccomp filter is in the way, as in most containers", error(errno)),
            ALLOW_RING.to_owned(),
        ),
        (libc::ENOSYS, _) => (
            "this kernel was built without it".to_owned(),
            "use a kernel with CONFIG_IO_URING=y".to_owned(),
        ),
        (libc::ENOMEM, _) => {
            (error(errno), "raise the limit on locked memory (ulimit -l)".to_owned())
        }
        (libc::EMFILE | libc::ENFILE, _) => {
            (error(errno), "raise the limit on descriptors (ulimit -n)".to_owned())
        }
        _ => (error(errno), String::new()),
    }
}

fn tun(answer: &Answer) -> Finding {
    const WHAT: &str = "/dev/net/tun";
    match *answer {
        Ok(()) => ok(WHAT, "can be opened"),
        Err(errno @ (libc::EACCES | libc::EPERM)) => finding(
            Verdict::Fatal,
            WHAT,
            format!("{}: this user may not open it", error(errno)),
            "chmod 0666 /dev/net/tun (udev's default; it gives no rights by itself)",
        ),
        Err(errno @ (libc::ENOENT | libc::ENODEV | libc::ENXIO)) => finding(
            Verdict::Fatal,
            WHAT,
            error(errno),
            "modprobe tun; in a container: start it with --device /dev/net/tun",
        ),
        Err(errno) => finding(Verdict::Fatal, WHAT, error(errno), ""),
    }
}

/// How bad it is that no user namespace can be made: root does without, for `attach` and `create`.
fn without_userns(facts: &Facts) -> Verdict {
    if facts.is_root { Verdict::Lacking } else { Verdict::Fatal }
}

fn user_namespaces(facts: &Facts) -> Finding {
    const WHAT: &str = "user namespaces";
    let verdict = without_userns(facts);
    let Some(trial) = facts.trial else {
        return finding(verdict, WHAT, "no child could be started to try", "see ulimit -u");
    };
    let restricted = facts.apparmor_restricts == Some(1) && !facts.is_root;
    let apparmor = || {
        finding(
            verdict,
            WHAT,
            "AppArmor takes the rights away that one gives \
             (kernel.apparmor_restrict_unprivileged_userns=1)",
            "load an AppArmor profile for ringtap that says `userns,`, or \
             sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    };
    let Trial { user, maps, net, mount, .. } = trial;
    for (step, what) in [
        (user, "cannot be made"),
        (maps, "one was made, but our ids cannot be mapped in it"),
        (net, "one was made, but no network namespace in it"),
        (mount, "one was made, but no mount namespace in it"),
    ] {
        match step {
            Tried::Worked => {}
            Tried::Not => {
                return finding(
                    verdict,
                    WHAT,
                    format!(
                        "{what}: the child that tried was killed, by a seccomp filter most likely"
                    ),
                    "allow clone, unshare and setns in this container's profile",
                );
            }
            Tried::Failed(libc::EPERM | libc::EACCES) if restricted => return apparmor(),
            Tried::Failed(errno) => {
                let remedy = userns_remedy(facts, errno);
                return finding(verdict, WHAT, format!("{what}: {}", error(errno)), remedy);
            }
        }
    }
    ok(WHAT, "with network and mount namespace, made and mapped (no /etc/subuid needed)")
}

fn userns_remedy(facts: &Facts, errno: i32) -> String {
    match errno {
        libc::EPERM if facts.userns_clone == Some(0) => {
            "sysctl -w kernel.unprivileged_userns_clone=1".to_owned()
        }
        libc::EPERM | libc::EACCES if facts.is_filtered => {
            "allow clone, unshare and setns in this container's seccomp profile".to_owned()
        }
        libc::EPERM => "leave the chroot, if this is one; otherwise ask the security module in use".to_owned(),
        libc::ENOSPC | libc::EUSERS => {
            "raise user.max_user_namespaces, max_net_namespaces and max_mnt_namespaces; 32 levels is \
             the deepest"
                .to_owned()
        }
        libc::EINVAL | libc::ENOSYS => {
            "use a kernel with CONFIG_USER_NS=y and CONFIG_NET_NS=y".to_owned()
        }
        _ => String::new(),
    }
}

fn sandbox(tried: Option<&Result<(), String>>) -> Finding {
    const WHAT: &str = "sandbox";
    match tried {
        Some(Ok(())) => {
            ok(WHAT, "a mount namespace with /etc and /run only, no capabilities, no core dumps")
        }
        // It ends with the remedy.
        Some(Err(why)) => {
            finding(Verdict::Lacking, WHAT, why.strip_prefix("sandbox: ").unwrap_or(why), "")
        }
        None => finding(
            Verdict::Lacking,
            WHAT,
            "the child that tried was killed or could not be started",
            "ringtap starts with --no-sandbox",
        ),
    }
}

/// The TAP that the child made, when it got so far.
fn tap(facts: &Facts) -> Vec<Finding> {
    const TAP: &str = "TAP in a namespace";
    let Some(trial) = facts.trial.filter(|t| t.net == Tried::Worked) else { return Vec::new() };
    match (trial.device, trial.tap) {
        (Tried::Worked, Tried::Worked) => {}
        // Said before, about the device itself.
        (Tried::Failed(_), _) if facts.tun.is_err() => return Vec::new(),
        (Tried::Failed(errno), _) => {
            let found = format!("/dev/net/tun cannot be opened there: {}", error(errno));
            let remedy = "chmod 0666 /dev/net/tun (udev's default)";
            return vec![finding(Verdict::Fatal, TAP, found, remedy)];
        }
        (_, Tried::Failed(errno)) => {
            let remedy = match errno {
                libc::EPERM => "let this container have the TUN device's ioctls",
                _ => "",
            };
            let found = format!("cannot be made: {}", error(errno));
            return vec![finding(Verdict::Fatal, TAP, found, remedy)];
        }
        (Tried::Not, _) | (_, Tried::Not) => {
            return vec![finding(Verdict::Fatal, TAP, "the child that tried was killed", "")];
        }
    }
    let offloads = match trial.offloads.and_then(|at| Some((at, *OFFLOADS.get(at)?))) {
        Some((0, text)) => ok("TAP offloads", text),
        Some((_, text)) => {
            finding(Verdict::Slow, "TAP offloads", text, "upgrade to Linux 6.2 or newer")
        }
        None => finding(Verdict::Slow, "TAP offloads", "none can be set", ""),
    };
    vec![ok(TAP, "made, with virtio header"), offloads]
}

fn namespace_limits(facts: &Facts) -> Finding {
    const WHAT: &str = "namespace limits";
    const NAMES: [&str; 3] = ["user", "net", "mnt"];
    let limits = || NAMES.iter().zip(facts.namespaces_max);
    let list: Vec<String> = limits()
        .map(|(name, max)| {
            max.map_or_else(|| format!("{name} unknown"), |max| format!("{name} {max}"))
        })
        .collect();
    let list = list.join(", ");
    let Some((name, max)) = limits().filter_map(|(n, max)| Some((n, max?))).min_by_key(|m| m.1)
    else {
        return ok(WHAT, "not told by this kernel");
    };
    let remedy = format!("sysctl -w user.max_{name}_namespaces=15000");
    match max {
        0 => finding(without_userns(facts), WHAT, list, remedy),
        n if n < NAMESPACES_MIN => {
            finding(Verdict::Slow, WHAT, format!("{list}: few guests at once"), remedy)
        }
        _ => ok(WHAT, list),
    }
}

fn descriptors(hard: Option<u64>) -> Finding {
    const WHAT: &str = "descriptors";
    let Some(hard) = hard else { return ok(WHAT, "limit unknown") };
    if hard == u64::MAX {
        return ok(WHAT, "no limit");
    }
    let flows = hard.saturating_sub(DESCRIPTORS_OWN).min(u64::from(FLOWS_MAX));
    let found = format!("hard limit {hard}: {flows} conversations at once");
    let remedy = "raise it: nofile in /etc/security/limits.conf, or LimitNOFILE= of the service";
    match flows {
        0 => finding(Verdict::Fatal, WHAT, found, remedy),
        n if n < u64::from(FLOWS_MAX) => finding(Verdict::Slow, WHAT, found, remedy),
        _ => ok(WHAT, found),
    }
}

fn ping(facts: &Facts) -> Finding {
    const WHAT: &str = "ping sockets";
    let range = facts.ping_range.as_deref().unwrap_or("unknown");
    match facts.ping {
        Ok(()) => ok(WHAT, "allowed: the guest can ping beyond the gateway"),
        Err(libc::EACCES) => finding(
            Verdict::Lacking,
            WHAT,
            format!(
                "net.ipv4.ping_group_range is \"{range}\", without a group of ours: the guest can \
                 ping the gateway only"
            ),
            "sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"",
        ),
        Err(errno) => finding(
            Verdict::Lacking,
            WHAT,
            format!("{}: the guest can ping the gateway only", error(errno)),
            "",
        ),
    }
}

fn ports(facts: &Facts) -> Finding {
    const WHAT: &str = "unprivileged ports";
    match facts.port_start {
        None => ok(WHAT, "first one unknown"),
        Some(0 | 1) => ok(WHAT, "all"),
        Some(first) if facts.is_root => ok(WHAT, format!("from {first} on; root has all")),
        // Wanted by few, so that the default of every machine is no defect.
        Some(first) => finding(
            Verdict::Ok,
            WHAT,
            format!("from {first} on; a lower one cannot be forwarded to a guest"),
            "if you need one: sysctl -w net.ipv4.ip_unprivileged_port_start=80",
        ),
    }
}

fn tcp_buffers([rmem, wmem]: [Option<u64>; 2]) -> Finding {
    const WHAT: &str = "TCP buffers";
    for (name, max) in [("tcp_rmem", rmem), ("tcp_wmem", wmem)] {
        if let Some(max) = max.filter(|&max| max < TCP_BUFFER_MIN) {
            return finding(
                Verdict::Slow,
                WHAT,
                format!(
                    "net.ipv4.{name} ends at {max} bytes: a fast path with a long delay stays empty"
                ),
                format!("raise the last of its three numbers to {TCP_BUFFER_MIN} or more"),
            );
        }
    }
    let shown = |max: Option<u64>| max.map_or_else(|| "unknown".to_owned(), |m| m.to_string());
    ok(WHAT, format!("up to {} bytes in, {} out", shown(rmem), shown(wmem)))
}

fn socket_buffers(limits: [Option<u64>; 2]) -> Finding {
    const WHAT: &str = "UDP buffers";
    for (name, max) in ["rmem_max", "wmem_max"].into_iter().zip(limits) {
        if let Some(max) = max.filter(|&max| max < SOCKET_BUFFER_MIN) {
            return finding(
                Verdict::Slow,
                WHAT,
                format!("net.core.{name} is {max} bytes: bursts of datagrams are lost"),
                format!("sysctl -w net.core.{name}={SOCKET_BUFFER_MIN}, or more"),
            );
        }
    }
    ok(WHAT, "at the kernel's default or above")
}

fn resolv_conf(text: Option<&str>) -> Finding {
    const WHAT: &str = "resolv.conf";
    let Some(text) = text else {
        return finding(
            Verdict::Lacking,
            WHAT,
            "/etc/resolv.conf cannot be read: the guest's DNS asks 127.0.0.1",
            "name a resolver there",
        );
    };
    let servers = nameservers(text.as_bytes());
    if servers.is_empty() {
        return finding(
            Verdict::Lacking,
            WHAT,
            "/etc/resolv.conf names no resolver: the guest's DNS asks 127.0.0.1",
            "name a resolver there",
        );
    }
    let list: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
    let mut found = format!("the guest's DNS asks {}", list.join(", then "));
    if servers.iter().any(IpAddr::is_loopback) {
        found += " (on the host's loopback, which the guest reaches by that way only)";
    }
    ok(WHAT, found)
}

fn ipv6(facts: &Facts) -> Finding {
    const WHAT: &str = "IPv6";
    const FOLLOWS: &str = "the guest's IPv6 ends here, with `no route` at once";
    match facts.ipv6_disabled {
        None => finding(
            Verdict::Lacking,
            WHAT,
            format!("this kernel has none: {FOLLOWS}"),
            "--no-ipv6 spares the guest the try",
        ),
        Some(1) => finding(
            Verdict::Lacking,
            WHAT,
            format!("switched off (net.ipv6.conf.all.disable_ipv6=1): {FOLLOWS}"),
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
        ),
        Some(_) if has_default_route(&facts.ipv6_routes) => ok(WHAT, "on, with a default route"),
        Some(_) => finding(
            Verdict::Lacking,
            WHAT,
            format!("this host has no default route: {FOLLOWS}"),
            "--no-ipv6 spares the guest the try",
        ),
    }
}

/// Looks through `/proc/net/ipv6_route`: destination, length of its prefix, ..., flags, interface.
fn has_default_route(routes: &str) -> bool {
    /// `RTF_REJECT` (linux/route.h): every kernel has such a default on lo.
    const REJECT: u32 = 0x0200;
    routes.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [to, length, .., flags, interface] = fields.as_slice() else { return false };
        to.bytes().all(|b| b == b'0')
            && *length == "00"
            && *interface != "lo"
            && u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & REJECT == 0)
    })
}

#[cfg(test)]
mod tests;
