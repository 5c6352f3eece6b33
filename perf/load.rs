//! Traffic, and what the forwarder spends on it.
//!
//! A load gives one JSON object. `tcp`: `gbps`, `bytes`, `secs` (the receiver's), `retransmits` (the
//! sender's), `mss` (the client's: tells whether the MTU took effect), and unless the cell is direct: `cpu_secs`, `cpu_secs_per_gb`, `rss_mid_kib`, `rss_idle_kib`,
//! `hwm_kib` of the forwarder. A later load (datagrams, round trips, connections, start) is one more arm
//! here with keys of its own.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{self, Bed, Place, Proc};
use crate::cell::{Cell, Direction};
use crate::{Context, Res, proc};

/// The endpoints' congestion control. Not the machine's default, which differs from machine to machine.
/// Forwarders' own sockets keep that default.
const CONGESTION: &str = "cubic";
/// iperf3's port.
const PORT: u16 = 5201;
/// How long after the stream "idle" is looked at.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// What iperf3 may take beyond its seconds: a stalled stream still ends by itself, a dead one does not.
const GRACE: Duration = Duration::from_secs(15);

/// Which traffic.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    /// None: the forwarder came up.
    Attach,
    /// iperf3, the server in the remote.
    Tcp {
        /// Parallel streams.
        streams: u32,
        /// Seconds.
        secs: u32,
        /// Which way.
        direction: Direction,
    },
}

impl Load {
    /// For the next stage.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Attach => json!({ "kind": "attach" }),
            Self::Tcp { streams, secs, direction } => json!({
                "kind": "tcp", "streams": streams, "secs": secs, "direction": direction.name(),
            }),
        }
    }

    /// The opposite of [`Self::to_json`].
    pub(crate) fn from_json(v: &Value) -> Option<Self> {
        let number = |key: &str| u32::try_from(v[key].as_u64()?).ok();
        match v["kind"].as_str()? {
            "attach" => Some(Self::Attach),
            "tcp" => Some(Self::Tcp {
                streams: number("streams")?,
                secs: number("secs")?,
                direction: Direction::parse(v["direction"].as_str()?)?,
            }),
            _ => None,
        }
    }
}

/// Runs a cell's load over its bed.
pub(crate) fn run(bed: &Bed, forwarder: Option<Proc>, cell: &Cell) -> Res<Value> {
    match cell.load {
        Load::Attach => Ok(json!({})),
        Load::Tcp { streams, secs, direction } => {
            let perf = cell.perf.as_deref();
            tcp(bed, forwarder, perf, streams, secs, direction).context(cell.forwarder.label())
        }
    }
}

fn tcp(
    bed: &Bed,
    mut forwarder: Option<Proc>,
    perf: Option<&Path>,
    streams: u32,
    secs: u32,
    direction: Direction,
) -> Res<Value> {
    let mut server = Proc::start(bed.command(Place::Remote, "iperf3").args(["-s", "-1"]))?;
    bed.wait_listen(&mut server, PORT).context("iperf3 server")?;

    let place = if forwarder.is_some() { Place::Guest } else { Place::Host };
    let mut client = bed.command(place, "iperf3");
    client.args(["-c", bed::REMOTE, "-C", CONGESTION, "-J", "-i", "0"]);
    client.args(["-P", &streams.to_string(), "-t", &secs.to_string()]);
    if direction == Direction::Down {
        client.arg("-R");
    }

    let profiler = match (perf, &forwarder) {
        (Some(file), Some(f)) => Some(profile(file, f.pid())?),
        _ => None,
    };
    let spent_before = forwarder.as_ref().map(|f| proc::cpu_secs(f.pid())).transpose()?;
    let client = Proc::start(&mut client)?;
    std::thread::sleep(Duration::from_secs(secs.into()) / 2);
    let rss_mid = rss(forwarder.as_ref());
    let rest = Duration::from_secs(secs.into()) / 2;
    let text = client.output_within(rest + GRACE).context("iperf3");
    let spent_after = forwarder.as_ref().map(|f| proc::cpu_secs(f.pid()));
    if let Some(profiler) = profiler {
        profiler.interrupt(GRACE).context("perf record")?;
    }
    // A forwarder that died is the reason for whatever iperf3 says.
    if let Some(f) = &mut forwarder {
        f.still_runs()?;
    }
    let mut sample = read_iperf(&text?)?;

    if let (Some(f), Some(before), Some(after)) = (&forwarder, spent_before, spent_after) {
        let spent = after? - before;
        std::thread::sleep(IDLE_AFTER);
        let bytes = sample["bytes"].as_f64().unwrap_or_default();
        sample["cpu_secs"] = json!(spent);
        sample["cpu_secs_per_gb"] = json!((bytes > 0.0).then(|| spent / (bytes / 1e9)));
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

fn rss(forwarder: Option<&Proc>) -> Res<Option<u64>> {
    forwarder.map(|f| proc::memory_kib(f.pid(), "VmRSS")).transpose()
}

/// The receiver's figures of `iperf3 -J`: what arrived, not what was handed in.
fn read_iperf(text: &str) -> Res<Value> {
    let v: Value = serde_json::from_str(text)
        .map_err(|_| format!("iperf3 said: {}", text.trim().replace('\n', " / ")))?;
    if let Some(error) = v["error"].as_str() {
        return Err(format!("iperf3: {error}"));
    }
    let received = &v["end"]["sum_received"];
    let field = |key: &str| {
        received[key].as_f64().ok_or_else(|| format!("iperf3 gave no sum_received.{key}"))
    };
    // Should the two ends not have taken what -C asked for, the numbers would be of something else.
    for key in ["sender_tcp_congestion", "receiver_tcp_congestion"] {
        let used = v["end"][key].as_str().unwrap_or(CONGESTION);
        if used != CONGESTION {
            return Err(format!("iperf3: {key} is {used}, not {CONGESTION}"));
        }
    }
    Ok(json!({
        "gbps": field("bits_per_second")? / 1e9,
        "bytes": field("bytes")?,
        "secs": field("seconds")?,
        "retransmits": v["end"]["sum_sent"]["retransmits"],
        "mss": v["start"]["tcp_mss_default"],
    }))
}

/// Starts `perf record` on a forwarder; interrupting it writes the file.
fn profile(file: &Path, pid: u32) -> Res<Proc> {
    let mut command = std::process::Command::new("perf");
    command.args(["record", "-g", "-o"]).arg(file).args(["-p", &pid.to_string()]);
    let mut perf = Proc::start(&mut command)?;
    // perf does not say when it has attached.
    std::thread::sleep(Duration::from_millis(300));
    perf.still_runs().context("perf record")?;
    Ok(perf)
}
