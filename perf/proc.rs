//! What /proc says about processes and about the machine.

use std::fs;
use std::time::{Duration, Instant};

use crate::{Context, Res};

/// The lab's clock, and its only reading of it.
#[allow(clippy::disallowed_methods, reason = "a lab measures time; the ban is for the packet path")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// One process's line of /proc/PID/stat.
struct Stat {
    parent: u32,
    /// User and system time in ticks, all threads (those that ended, and io_uring's, included) and
    /// children that were waited for.
    ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and parentheses: proc(5) has the fields after the last one.
    let fields: Vec<&str> = line.get(line.rfind(')')? + 1..)?.split_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
    // utime, stime, cutime, cstime are fields 14 to 17; the first after the name is 3.
    let ticks = (11..=14).map(number).sum::<Option<u64>>()?;
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, ticks })
}

/// A process and its descendants that live now: a forwarder is charged for its helpers.
fn family(pid: u32) -> Res<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
        let Some(p) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(s) = stat(p) {
            parents.push((p, s.parent));
        }
    }
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(c, _)| *c));
        at += 1;
    }
    Ok(found)
}

/// CPU-seconds that a process and its descendants have spent.
pub(crate) fn cpu_secs(pid: u32) -> Res<f64> {
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .context("clock ticks")?
        .ok_or("no clock ticks on this machine")?;
    stat(pid).ok_or_else(|| format!("the forwarder (pid {pid}) is gone"))?;
    let ticks: u64 = family(pid)?.into_iter().filter_map(stat).map(|s| s.ticks).sum();
    Ok(ticks as f64 / hertz as f64)
}

/// `VmRSS` or `VmHWM` of a process and its descendants, KiB. The kernel's own figure: on kernels since 6.2 it
/// may be behind by some dozens of pages per processor.
pub(crate) fn memory_kib(pid: u32, field: &str) -> Res<u64> {
    let one = |pid: u32| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    one(pid).ok_or_else(|| format!("the forwarder (pid {pid}) is gone"))?;
    Ok(family(pid)?.into_iter().filter_map(one).sum())
}

/// Share of the processors' time, in percent, that nobody used while this waited.
pub(crate) fn idle_percent(wait: Duration) -> Res<f64> {
    // user nice system idle iowait irq softirq steal (guest time is inside user).
    let read = || -> Res<(u64, u64)> {
        let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let cpu: Vec<u64> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|n| n.parse().ok())
            .collect();
        let idle = cpu.iter().skip(3).take(2).sum();
        Ok((idle, cpu.iter().sum()))
    };
    let (idle, all) = read()?;
    std::thread::sleep(wait);
    let (idle_then, all_then) = read()?;
    let spent = all_then.saturating_sub(all).max(1);
    Ok(100.0 * idle_then.saturating_sub(idle) as f64 / spent as f64)
}

/// What the threads of a process and its descendants have done.
pub(crate) struct Threads {
    /// Voluntary context switches: as often as one slept, so often it was woken.
    pub(crate) wakeups: u64,
    /// Time on a processor, nanoseconds; finer than the ticks of [`cpu_secs`].
    pub(crate) run_ns: u64,
}

/// Of those that live now.
pub(crate) fn threads(pid: u32) -> Res<Threads> {
    let mut all = Threads { wakeups: 0, run_ns: 0 };
    stat(pid).ok_or_else(|| format!("the forwarder (pid {pid}) is gone"))?;
    for pid in family(pid)? {
        for task in fs::read_dir(format!("/proc/{pid}/task")).context("threads")?.flatten() {
            let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let status = read("status");
            let switches = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            all.wakeups += switches.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or_default();
            // Documentation/scheduler/sched-stats.rst: the first is the time on the processor.
            let run = read("schedstat");
            let run = run.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
            all.run_ns += run.unwrap_or_default();
        }
    }
    Ok(all)
}

/// Memory in the kernel's slabs, KiB: sockets and their like, of the whole machine.
pub(crate) fn slab_kib() -> Res<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("Slab:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| "no Slab in /proc/meminfo".into())
}

/// [`sockets_kib`] when it falls no more: what an earlier cell had is given back in the background. `None`
/// where the kernel does not tell.
pub(crate) fn sockets_kib_settled() -> Option<u64> {
    let mut last = sockets_kib().ok()?;
    for _ in 0..25 {
        std::thread::sleep(Duration::from_millis(200));
        let now = sockets_kib().ok()?;
        // Other processes come and go: 1%.
        if now + last / 100 >= last {
            return Some(now);
        }
        last = now;
    }
    Some(last)
}

/// Memory in the kernel's slabs for TCP sockets and what hangs on them, KiB, of the whole machine. By the
/// names of the caches, as the sum of all moves with every file that anybody looks at.
pub(crate) fn sockets_kib() -> Res<u64> {
    const CACHES: [&str; 8] = [
        "TCP",
        "TCPv6",
        "tcp_bind_bucket",
        "tcp_bind2_bucket",
        "sock_inode_cache",
        "filp",
        // What a ring waits with, and what epoll does.
        "io_kiocb",
        "eventpoll_epi",
    ];
    let text = fs::read_to_string("/proc/slabinfo").context("/proc/slabinfo")?;
    // slabinfo(5): name, active objects, all objects, bytes of one. Active ones, as the kernel keeps room
    // for those that were there before.
    let bytes = |line: &str| -> Option<u64> {
        let mut fields = line.split_whitespace();
        CACHES.contains(&fields.next()?).then_some(())?;
        let objects: u64 = fields.next()?.parse().ok()?;
        Some(objects * fields.nth(1)?.parse::<u64>().ok()?)
    };
    Ok(text.lines().filter_map(bytes).sum::<u64>() / 1024)
}
