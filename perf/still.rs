//! A forwarder that has nothing to do, and connections that say nothing.

use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{Bed, Place, Proc};
use crate::{Res, bill, exchange, proc};

/// From the guest's first route until its start is over: address probes, router solicitations (three, 4 s
/// apart, RFC 4861 section 10).
const SETTLE: Duration = Duration::from_secs(10);
/// From the last connection until memory is looked at: garbage of opening is given back, the kernel's
/// caches have been flushed.
const GIVE_BACK: Duration = Duration::from_secs(3);

/// Wake-ups (voluntary context switches of all its threads) and CPU time while nobody asks for anything.
/// Figures: `wakeups`, `cpu_ms`, `rss_kib`.
pub(crate) fn idle(forwarder: Option<Proc>, secs: u32) -> Res<Value> {
    let mut f = forwarder.ok_or("nothing runs that could be idle")?;
    std::thread::sleep(SETTLE);
    let before = proc::threads(f.pid())?;
    std::thread::sleep(Duration::from_secs(secs.into()));
    let after = proc::threads(f.pid())?;
    f.still_runs()?;
    Ok(json!({
        "wakeups": after.wakeups.saturating_sub(before.wakeups),
        "cpu_ms": after.run_ns.saturating_sub(before.run_ns) as f64 / 1e6,
        "rss_kib": bill::rss(Some(&f))?,
    }))
}

/// The slope of memory over idle connections. Figures: `rss_bytes_each` (of the forwarder),
/// `slab_bytes_each` (the whole kernel's: the sockets of guest, forwarder and remote; without the direct
/// cell's, which has no forwarder, what the forwarder costs), `rss_kib` (with all open), `open`,
/// `open_why`.
pub(crate) fn memory(bed: &Bed, mut forwarder: Option<Proc>, few: u32, many: u32) -> Res<Value> {
    let ends = bed.ends(&forwarder, 4);
    let _server = exchange::listening(bed, &ends, &["echo-server", "1", "1"])?;
    let mut look = |more: u32| -> Res<_> {
        let holder = exchange::hold(bed, &mut forwarder, more)?;
        std::thread::sleep(GIVE_BACK);
        Ok((holder, bill::rss(forwarder.as_ref())?, proc::slab_kib()?))
    };
    let (first, rss_few, slab_few) = look(few)?;
    let (second, rss_many, slab_many) = look(many.saturating_sub(few))?;
    let each = |few: u64, many: u64| (many as f64 - few as f64) * 1024.0 / second.open as f64;
    Ok(json!({
        "rss_bytes_each": rss_few.zip(rss_many).map(|(few, many)| each(few, many)),
        "slab_bytes_each": each(slab_few, slab_many),
        "rss_kib": rss_many,
        "open": first.open + second.open,
        "open_why": first.why + &second.why,
    }))
}

/// What forwarded ports cost while nobody uses them. Figures: `listening` (TCP ports of the host),
/// `rss_kib`, `sockets_kib` (what the kernel has for sockets and their like more than before the start; of
/// the whole machine).
pub(crate) fn ports(bed: &Bed, forwarder: Option<Proc>, sockets_before: Option<u64>) -> Res<Value> {
    let mut f = forwarder.ok_or("nothing runs that could forward")?;
    std::thread::sleep(GIVE_BACK);
    f.still_runs()?;
    let sockets = proc::sockets_kib().ok().zip(sockets_before);
    Ok(json!({
        "listening": bed.listening(Place::Host)?.len(),
        "rss_kib": bill::rss(Some(&f))?,
        "sockets_kib": sockets.map(|(now, before)| now as f64 - before as f64),
    }))
}
