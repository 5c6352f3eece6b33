//! What a forwarder spends on a load: processor time and memory.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::Proc;
use crate::{Context, Res, proc};

/// How long after the load "idle" is looked at; sooner after a shorter load.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// Runs a client to its end, `about` long and at most `grace` longer, while it looks at the forwarder.
/// Gives what the client said, read by `read`, and adds the forwarder's figures.
pub(crate) fn run(
    client: &mut Command,
    forwarder: &mut Option<Proc>,
    about: Duration,
    grace: Duration,
    read: impl FnOnce(&str) -> Res<Value>,
) -> Res<Value> {
    let spent_before = forwarder.as_ref().map(|f| proc::cpu_secs(f.pid())).transpose()?;
    let client = Proc::start(client)?;
    std::thread::sleep(about / 2);
    let rss_mid = rss(forwarder.as_ref());
    let text = client.output_within(about / 2 + grace).context("client");
    let spent_after = forwarder.as_ref().map(|f| proc::cpu_secs(f.pid()));
    // A forwarder that died is the reason for whatever the client says.
    if let Some(f) = forwarder {
        f.still_runs()?;
    }
    let mut sample = read(&text?)?;
    if let (Some(f), Some(before), Some(after)) = (forwarder, spent_before, spent_after) {
        let spent = after? - before;
        std::thread::sleep(IDLE_AFTER.min(about));
        sample["cpu_secs"] = json!(spent);
        if let Some(bytes) = sample["bytes"].as_f64() {
            sample["cpu_secs_per_gb"] = json!((bytes > 0.0).then(|| spent / (bytes / 1e9)));
        }
        if let Some(ops) = sample["ops"].as_f64() {
            sample["cpu_us_per_op"] = json!((ops > 0.0).then(|| spent * 1e6 / ops));
        }
        let (rss_mid, rss_idle) = (rss_mid?, rss(Some(f))?);
        // The kernel counts per processor and sums up now and then: the mark may lag behind what has been
        // seen.
        let mark = Some(proc::memory_kib(f.pid(), "VmHWM")?);
        sample["rss_mid_kib"] = json!(rss_mid);
        sample["rss_idle_kib"] = json!(rss_idle);
        sample["hwm_kib"] = json!(mark.max(rss_mid).max(rss_idle));
    }
    Ok(sample)
}

/// Resident memory of a forwarder, KiB.
pub(crate) fn rss(forwarder: Option<&Proc>) -> Res<Option<u64>> {
    forwarder.map(|f| proc::memory_kib(f.pid(), "VmRSS")).transpose()
}
