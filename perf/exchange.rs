//! Datagrams, requests and connections, by the lab's own tools (`tool`).

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{Bed, Ends, Place, Proc};
use crate::cell::Direction;
use crate::{Context, Res, bill, tool};

/// What a client may take beyond its time.
const GRACE: Duration = Duration::from_secs(15);
/// How many tries of a rate a search is taken to need, and at most takes.
const PROBES: (u32, u32) = (12, 60);
/// How long a holder may take: its own limit and some more.
const HOLD: Duration = Duration::from_secs(90);

/// The highest rate of datagrams with at most 1% loss. Figures: `pps` and `gbps` that arrived,
/// `offered_pps`, `loss_percent`, `sender_limited` (1: the sender could offer no more, by itself
/// or held back by the queue of its interface: what was offered arrived), `probes`.
pub(crate) fn udp(
    bed: &Bed,
    mut forwarder: Option<Proc>,
    (size, gso, streams): (u32, bool, u32),
    direction: Direction,
    probe_ms: u32,
) -> Res<Value> {
    let (size, gso) = (size.to_string(), if gso { "gso" } else { "single" });
    let streams = streams.to_string();
    let ends = bed.ends(&forwarder, 4);
    let (server_at, client_at) = if ends.inbound { ("near", "remote") } else { ("remote", "near") };
    let mut server = listening(bed, &ends, &["udp-server", &size, gso, server_at])?;
    let ms = probe_ms.to_string();
    // For a client in the remote, the guest's direction is the other one.
    let sender = if (direction == Direction::Up) == ends.inbound { "server" } else { "client" };
    let args = ["udp", ends.at, &size, gso, client_at, &streams, sender, &ms];
    let mut client = tool(bed, ends.client, &args);
    // A look at the forwarder in the middle is in the middle of about so many tries, each with its drain.
    let each = Duration::from_millis(u64::from(probe_ms) + 250);
    let about = each * PROBES.0;
    let grace = each * PROBES.1 + GRACE;
    let sample = bill::run(&mut client, &mut forwarder, about, grace, read);
    // A server that ended first is the reason for whatever the client says.
    match (sample, server.still_runs()) {
        (Err(e), Err(server)) => Err(format!("{e}; server: {server}")),
        (sample, _) => sample,
    }
}

/// One request after the other. Figures: `rate`, `p50_us`, `p99_us`, `ops`, `lost`.
pub(crate) fn rr(
    bed: &Bed,
    mut forwarder: Option<Proc>,
    udp: bool,
    request: u32,
    reply: u32,
    ms: u32,
) -> Res<Value> {
    let (request, reply) = (request.to_string(), reply.to_string());
    let ends = bed.ends(&forwarder, 4);
    let _server = listening(bed, &ends, &["echo-server", &request, &reply])?;
    let name = if udp { "udp-rr" } else { "tcp-rr" };
    let args = [name, ends.at, &request, &reply, &ms.to_string()];
    let mut client = tool(bed, ends.client, &args);
    bill::run(&mut client, &mut forwarder, millis(ms), GRACE, read)
}

/// Connections, each for one byte and one back. Figures as of [`rr`].
pub(crate) fn crr(bed: &Bed, mut forwarder: Option<Proc>, ms: u32) -> Res<Value> {
    let ends = bed.ends(&forwarder, 4);
    let _server = listening(bed, &ends, &["echo-server", "1", "1"])?;
    let mut client = tool(bed, ends.client, &["crr", ends.at, &ms.to_string()]);
    bill::run(&mut client, &mut forwarder, millis(ms), GRACE, read)
}

/// [`rr`] of one byte on one connection beside silent ones. Also `open`: how many there were, itself
/// included; `open_why`: why no more. A forwarder that then takes no connection any more has failed.
pub(crate) fn flows(
    bed: &Bed,
    mut forwarder: Option<Proc>,
    connections: u32,
    ms: u32,
) -> Res<Value> {
    let ends = bed.ends(&forwarder, 4);
    let _server = listening(bed, &ends, &["echo-server", "1", "1"])?;
    let holder = hold(bed, &mut forwarder, connections.saturating_sub(1))?;
    let mut client = tool(bed, ends.client, &["tcp-rr", ends.at, "1", "1", &ms.to_string()]);
    let mut sample = bill::run(&mut client, &mut forwarder, millis(ms), GRACE, read)?;
    sample["open"] = json!(holder.open + 1);
    sample["open_why"] = json!(holder.why);
    Ok(sample)
}

/// Connections that a process keeps open until this is dropped.
pub(crate) struct Holder {
    _process: Proc,
    /// How many.
    pub(crate) open: u64,
    /// Why not as many as were asked for.
    pub(crate) why: String,
}

/// Opens silent connections.
pub(crate) fn hold(bed: &Bed, forwarder: &mut Option<Proc>, count: u32) -> Res<Holder> {
    let ends = bed.ends(forwarder, 4);
    let args = ["hold", ends.at, &count.to_string()];
    let mut process = Proc::start(&mut tool(bed, ends.client, &args))?;
    let line = process.line_within(HOLD);
    if let Some(f) = forwarder {
        f.still_runs()?;
    }
    let v = read(&line.context("holder")?)?;
    let open = v["open"].as_u64().ok_or("the holder did not say how many are open")?;
    let why = v["why"].as_str().unwrap_or_default().to_owned();
    if open == 0 && count > 0 {
        return Err(format!("no connection could be opened: {why}"));
    }
    Ok(Holder { _process: process, open, why })
}

/// Starts the server of a tool and waits until it listens.
pub(crate) fn listening(bed: &Bed, ends: &Ends, args: &[&str]) -> Res<Proc> {
    let mut server = Proc::start(&mut tool(bed, ends.server, args))?;
    bed.wait_listen(ends.server, &mut server, tool::PORT).context("server")?;
    Ok(server)
}

/// A tool in a place.
pub(crate) fn tool(bed: &Bed, place: Place, args: &[&str]) -> Command {
    let mut command = bed.command(place, "/proc/self/exe");
    command.arg("__tool").args(args);
    command
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}

/// What a tool said.
pub(crate) fn read(text: &str) -> Res<Value> {
    serde_json::from_str(text.trim()).map_err(|_| text.trim().replace('\n', " / "))
}
