//! What a flow that stands still, or an attack, takes from the others.
//!
//! One cell has bulk three times: alone, beside the nuisance, and alone again. The share is of the mean of the
//! two, so what drifts cancels, and what the nuisance has left behind is in it. Figures: those of
//! `bulk` beside it, `share_percent`, `gbps_alone`, `gbps_after`; and `late_percent` of `visits`, connections to the
//! server that a program of the guest opens meanwhile, and has opened before.

use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{Bed, Place, Proc};
use crate::cell::{Cell, Direction};
use crate::{Context, Res, bulk, exchange, tool};

/// How long a nuisance may take to be one.
const BEGIN: Duration = Duration::from_secs(20);
/// How long visits are paid before.
const ACQUAINT_MS: u32 = 400;
/// How long the last visit may take.
const LAST_VISIT: Duration = Duration::from_secs(10);

/// Who is beside the others. A direction is the guest's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Beside {
    /// The guest writes, the remote never reads.
    DeafServer,
    /// The remote writes, the guest never reads.
    DeafGuest,
    /// The guest opens connections that it never finishes, to ports of all numbers.
    Syns,
    /// The guest sends single datagrams, each from another port.
    Datagrams,
    /// The guest sends random bytes behind good IP headers.
    Garbage,
}

impl Beside {
    /// All.
    pub(crate) const ALL: [Self; 5] =
        [Self::DeafServer, Self::DeafGuest, Self::Syns, Self::Datagrams, Self::Garbage];

    /// As documents have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DeafServer => "server that never reads",
            Self::DeafGuest => "guest that never reads",
            Self::Syns => "flood of SYNs",
            Self::Datagrams => "flood of datagrams",
            Self::Garbage => "flood of garbage",
        }
    }

    /// The opposite of [`Self::name`].
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|b| b.name() == name)
    }

    fn tool(self, at: &str) -> Vec<&str> {
        match self {
            Self::DeafServer => vec!["stall", at, "client"],
            Self::DeafGuest => vec!["stall", at, "server"],
            Self::Syns => vec!["syns", at],
            Self::Datagrams => vec!["datagrams", at],
            Self::Garbage => vec!["garbage", at],
        }
    }
}

/// Measures.
pub(crate) fn fair(
    bed: &Bed,
    mut forwarder: Option<Proc>,
    cell: &Cell,
    beside: Beside,
    (streams, secs, direction): (u32, u32, Direction),
) -> Res<Value> {
    let ends = bed.ends(&forwarder, 4);
    let mut server = Proc::start(&mut exchange::tool(bed, Place::Remote, &["stall-server"]))?;
    bed.wait_listen(Place::Remote, &mut server, tool::PORT).context("server")?;
    let mut bulk =
        |what| bulk::tcp(bed, &mut forwarder, cell, streams, secs, direction, 4).context(what);
    let gbps = |v: &Value| v["gbps"].as_f64().ok_or("iperf3 gave no rate");
    let before = gbps(&bulk("alone")?)?;
    let visit = |ms: u32| {
        let args = ["visit", ends.at, &ms.to_string()];
        Proc::start(&mut exchange::tool(bed, ends.client, &args))
    };
    let visits = |visitor: Proc, ms: u32| {
        let limit = Duration::from_millis(ms.into()) + LAST_VISIT;
        exchange::read(&visitor.output_within(limit)?).context("visits")
    };
    if visits(visit(ACQUAINT_MS)?, ACQUAINT_MS)?["late_percent"] != 0.0 {
        return Err("visits before it: some were late".into());
    }
    let mut nuisance = Proc::start(&mut exchange::tool(bed, ends.client, &beside.tool(ends.at)))?;
    exchange::read(&nuisance.line_within(BEGIN).context(beside.name())?).context(beside.name())?;
    let visitor = visit(secs * 1000)?;
    let mut sample = bulk(beside.name())?;
    let seen = visits(visitor, secs * 1000)?;
    // It has to have been one up to here.
    nuisance.still_runs().context(beside.name())?;
    drop(nuisance);
    let after = gbps(&bulk("alone again")?)?;
    let alone = f64::midpoint(before, after);
    sample["share_percent"] = json!(gbps(&sample)? / alone * 100.0);
    sample["late_percent"] = seen["late_percent"].clone();
    sample["visits"] = seen["visits"].clone();
    sample["gbps_alone"] = json!(before);
    sample["gbps_after"] = json!(after);
    Ok(sample)
}
