//! Bulk TCP by iperf3. Figures: `gbps`, `bytes`, `secs` (the receiver's), `retransmits` (the sender's),
//! `mss` (the client's: tells whether the MTU took effect); with both ways at once also `gbps_up` and
//! `gbps_down`, and the others are sums.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{Bed, Proc};
use crate::cell::{Cell, Direction};
use crate::rivals::Forwarder;
use crate::{Context, Res, bill};

/// The endpoints' congestion control. Not the machine's default, which differs from machine to machine.
/// Forwarders' own sockets keep that default.
const CONGESTION: &str = "cubic";
/// iperf3's port.
pub(crate) const PORT: u16 = 5201;
/// What iperf3 may take beyond its seconds: a stalled stream still ends by itself, a dead one does not.
const GRACE: Duration = Duration::from_secs(15);

/// Measures.
pub(crate) fn tcp(
    bed: &Bed,
    forwarder: &mut Option<Proc>,
    cell: &Cell,
    streams: u32,
    secs: u32,
    direction: Direction,
    ip: u32,
) -> Res<Value> {
    let ends = bed.ends(forwarder, ip);
    let mut server = Proc::start(bed.command(ends.server, "iperf3").args(["-s", "-1"]))?;
    bed.wait_listen(ends.server, &mut server, PORT).context("iperf3 server")?;

    let mut client = bed.command(ends.client, "iperf3");
    client.args(["-c", ends.at, "-J", "-i", "0"]);
    client.args(["-P", &streams.to_string(), "-t", &secs.to_string()]);
    let congestion = match cell.forwarder {
        Forwarder::DirectSystem => None,
        _ => Some(CONGESTION),
    };
    client.args(congestion.iter().flat_map(|c| ["-C", c]));
    let from_client = if ends.inbound { Direction::Down } else { Direction::Up };
    if direction == Direction::Both {
        client.arg("--bidir");
    } else if direction != from_client {
        client.arg("-R");
    }

    let profiler = match (&cell.perf, &*forwarder) {
        (Some(file), Some(f)) => Some(profile(file, f.pid())?),
        _ => None,
    };
    let about = Duration::from_secs(secs.into());
    let read = |text: &str| {
        if let Some(profiler) = profiler {
            profiler.interrupt(GRACE).context("perf record")?;
        }
        let mut sample = read_iperf(text, direction == Direction::Both, congestion)?;
        if ends.inbound && direction == Direction::Both {
            let up = sample["gbps_up"].take();
            sample["gbps_up"] = sample["gbps_down"].take();
            sample["gbps_down"] = up;
        }
        Ok(sample)
    };
    bill::run(&mut client, forwarder, about, GRACE, read)
}

/// The receiver's figures of `iperf3 -J`: what arrived, not what was handed in.
fn read_iperf(text: &str, both: bool, congestion: Option<&str>) -> Res<Value> {
    let v: Value = serde_json::from_str(text)
        .map_err(|_| format!("iperf3 said: {}", text.trim().replace('\n', " / ")))?;
    if let Some(error) = v["error"].as_str() {
        return Err(format!("iperf3: {error}"));
    }
    let field = |sum: &str, key: &str| {
        v["end"][sum][key].as_f64().ok_or_else(|| format!("iperf3 gave no {sum}.{key}"))
    };
    // Should the two ends not have taken what -C asked for, the numbers would be of something else.
    for key in ["sender_tcp_congestion", "receiver_tcp_congestion"] {
        match (v["end"][key].as_str(), congestion) {
            (Some(used), Some(asked)) if used != asked => {
                return Err(format!("iperf3: {key} is {used}, not {asked}"));
            }
            _ => {}
        }
    }
    let (first, back) = ("sum_received", "sum_received_bidir_reverse");
    let mut sample = json!({
        "gbps": field(first, "bits_per_second")? / 1e9,
        "bytes": field(first, "bytes")?,
        "secs": field(first, "seconds")?,
        "retransmits": v["end"]["sum_sent"]["retransmits"],
        "mss": v["start"]["tcp_mss_default"],
    });
    if both {
        let (up, down) = (field(first, "bits_per_second")?, field(back, "bits_per_second")?);
        sample["gbps_up"] = json!(up / 1e9);
        sample["gbps_down"] = json!(down / 1e9);
        sample["gbps"] = json!((up + down) / 1e9);
        sample["bytes"] = json!(field(first, "bytes")? + field(back, "bytes")?);
        let again = |sum: &str| v["end"][sum]["retransmits"].as_u64().unwrap_or_default();
        sample["retransmits"] = json!(again("sum_sent") + again("sum_sent_bidir_reverse"));
    }
    Ok(sample)
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
