//! One measurement, in a process of its own that takes everything it made along when it ends.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::forwards::Forward;
use crate::load::Load;
use crate::rivals::Forwarder;
use crate::{Context, Res};

/// Which way the payload goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Guest to host.
    Up,
    /// Host to guest.
    Down,
    /// Both at once.
    Both,
}

impl Direction {
    /// As typed and printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Both => "both",
        }
    }

    /// In a table's title.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Up => "guest to host",
            Self::Down => "host to guest",
            Self::Both => "both ways at once",
        }
    }

    /// The opposite of [`Self::name`].
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Up, Self::Down, Self::Both].into_iter().find(|d| d.name() == name)
    }
}

/// What to measure.
pub(crate) struct Cell {
    /// Through what.
    pub(crate) forwarder: Forwarder,
    /// MTU of the guest's interface and of the veth pair, bytes of IP.
    pub(crate) mtu: u16,
    /// With which traffic.
    pub(crate) load: Load,
    /// From the remote, by ports that lead into the guest; otherwise from the guest.
    pub(crate) inbound: bool,
    /// The guest has a TAP already, with one queue.
    pub(crate) one_queue: bool,
    /// Profile the forwarder into this file.
    pub(crate) perf: Option<PathBuf>,
}

impl Cell {
    /// Measures. The object has the keys that [`crate::load`] and its modules document.
    pub(crate) fn run(&self) -> Res<Value> {
        let out = Command::new("/proc/self/exe")
            .arg("__bed")
            .arg(self.to_json().to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("start a cell")?;
        let text = String::from_utf8_lossy(&out.stdout);
        // The last line: what runs inside may have printed before it.
        let last = text.lines().last().unwrap_or_default();
        let mut reply: Value = serde_json::from_str(last)
            .map_err(|_| format!("the cell ended with {} and said {last:?}", out.status))?;
        match reply.get("error").and_then(Value::as_str) {
            Some(error) => Err(error.to_owned()),
            None => Ok(reply["sample"].take()),
        }
    }

    /// The ports that have to lead into the guest.
    pub(crate) fn forwards(&self) -> Vec<Forward> {
        match self.load {
            Load::Ports { count } => Forward::many(count),
            _ if self.inbound => Forward::inbound(),
            _ => Vec::new(),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "forwarder": self.forwarder.to_json(),
            "mtu": self.mtu,
            "load": self.load.to_json(),
            "inbound": self.inbound,
            "one_queue": self.one_queue,
            "perf": self.perf.as_ref().map(|p| p.to_string_lossy()),
        })
    }

    /// What [`Self::run`] passed on.
    pub(crate) fn from_json(text: &str) -> Res<Self> {
        let v: Value = serde_json::from_str(text).context("cell")?;
        (|| {
            Some(Self {
                forwarder: Forwarder::from_json(&v["forwarder"])?,
                mtu: v["mtu"].as_u64()?.try_into().ok()?,
                load: Load::from_json(&v["load"])?,
                inbound: v["inbound"].as_bool()?,
                one_queue: v["one_queue"].as_bool()?,
                perf: v["perf"].as_str().map(PathBuf::from),
            })
        })()
        .ok_or_else(|| format!("cell: cannot read {text}"))
    }
}
