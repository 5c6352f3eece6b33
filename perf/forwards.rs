//! Ports that lead into the guest: which ones, and how they are asked for.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Context, Res, bulk, proc, tool};

/// The first port of the verb `ports`; below those that iperf3 and the tools use in no case.
const FIRST: u16 = 10_000;
/// How long ports may be added one by one.
const ADD_WITHIN: Duration = Duration::from_secs(30);
/// How long one request to an API socket may take.
const REPLY_WITHIN: Duration = Duration::from_secs(10);

/// Ports of the host, each to the same one of the guest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Forward {
    /// Datagrams, not connections.
    pub(crate) udp: bool,
    /// The first one.
    pub(crate) first: u16,
    /// How many.
    pub(crate) count: u16,
}

impl Forward {
    /// What every load of an inbound cell needs.
    pub(crate) fn inbound() -> Vec<Self> {
        vec![
            Self { udp: false, first: bulk::PORT, count: 1 },
            Self { udp: false, first: tool::PORT, count: tool::CRR_CLIENTS },
            Self { udp: true, first: tool::PORT, count: 1 },
        ]
    }

    /// So many TCP ports.
    pub(crate) fn many(count: u16) -> Vec<Self> {
        vec![Self { udp: false, first: FIRST, count }]
    }

    /// The last one.
    fn last(self) -> u16 {
        self.first + (self.count - 1)
    }

    /// One by one.
    pub(crate) fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last()
    }

    /// As ringtap's `--publish` has it.
    pub(crate) fn ringtap(self) -> String {
        let proto = if self.udp { "/udp" } else { "" };
        format!("{}-{}:{}{proto}", self.first, self.last(), self.first)
    }

    /// As pasta's `--tcp-ports` and `--udp-ports` have it, joined where there are many.
    pub(crate) fn pasta(all: &[Self], udp: bool) -> String {
        let ranges = all.iter().filter(|f| f.udp == udp);
        let text: Vec<_> = ranges.map(|f| format!("{}-{}", f.first, f.last())).collect();
        if text.is_empty() { "none".into() } else { text.join(",") }
    }

    /// As rootlesskit's `--publish` has them: one for each port.
    pub(crate) fn rootlesskit(self) -> impl Iterator<Item = String> {
        let proto = if self.udp { "udp" } else { "tcp" };
        self.ports().map(move |port| format!("0.0.0.0:{port}:{port}/{proto}"))
    }
}

/// Adds ports by slirp4netns's API socket, one request and one connection for each, as the protocol is.
/// Gives how many there was time for.
pub(crate) fn add_by_api(socket: &Path, forwards: &[Forward]) -> Res<u32> {
    let deadline = proc::now() + ADD_WITHIN;
    let mut added = 0;
    for (udp, port) in forwards.iter().flat_map(|f| f.ports().map(|port| (f.udp, port))) {
        if proc::now() > deadline {
            break;
        }
        let proto = if udp { "udp" } else { "tcp" };
        let request = json!({ "execute": "add_hostfwd", "arguments": {
            "proto": proto, "host_addr": "0.0.0.0", "host_port": port,
            "guest_addr": "", "guest_port": port,
        }});
        let reply = ask(socket, &request, deadline + REPLY_WITHIN)?;
        if !reply["return"]["id"].is_number() {
            return Err(format!("{proto} port {port}, after {added} others: {reply}"));
        }
        added += 1;
    }
    Ok(added)
}

fn ask(socket: &Path, request: &Value, deadline: Instant) -> Res<Value> {
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            // Its queue of connections is full, or it has not begun to listen.
            Err(_) if proc::now() < deadline => std::thread::sleep(Duration::from_micros(200)),
            Err(e) => return Err(format!("{}: {e}", socket.display())),
        }
    };
    stream.set_read_timeout(Some(REPLY_WITHIN)).context("timeout")?;
    stream.write_all(request.to_string().as_bytes()).context("API request")?;
    stream.shutdown(Shutdown::Write).context("API request")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("API reply")?;
    serde_json::from_str(&text).map_err(|_| format!("API reply: {text:?}"))
}

/// The forms, of ports known beforehand (`--test`).
pub(crate) fn self_check() -> Res<()> {
    let all = [
        Forward { udp: false, first: 80, count: 1 },
        Forward { udp: false, first: 7000, count: 2 },
        Forward { udp: true, first: 53, count: 1 },
    ];
    let said = [
        all[1].ringtap(),
        all[2].ringtap(),
        Forward::pasta(&all, false),
        Forward::pasta(&all[..2], true),
        all[1].rootlesskit().collect::<Vec<_>>().join(" "),
    ];
    let right = [
        "7000-7001:7000",
        "53-53:53/udp",
        "80-80,7000-7001",
        "none",
        "0.0.0.0:7000:7000/tcp 0.0.0.0:7001:7001/tcp",
    ];
    if said == right { Ok(()) } else { Err(format!("forwards: {said:?}")) }
}
