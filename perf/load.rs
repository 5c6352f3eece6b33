//! Traffic: what can be measured, with which figures, and where that is done.
//!
//! A load gives one JSON object of figures; [`Load::figures`] names those that a report shows. With a
//! forwarder, `bill` adds `cpu_secs`, `rss_mid_kib`, `rss_idle_kib`, `hwm_kib`. A later load is one more
//! arm here.

use serde_json::{Map, Value, json};

use crate::bed::{Bed, Proc};
use crate::cell::{Cell, Direction};
use crate::fair::Beside;
use crate::{Context, Res, bulk, exchange, fair, still};

/// Which traffic.
#[derive(Clone, Debug, PartialEq)]
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
        /// IP version.
        ip: u32,
        /// Each way between host and remote, milliseconds; 0: a veth pair.
        delay_ms: u32,
    },
    /// Datagrams at the highest rate that arrives.
    Udp {
        /// Payload of a datagram.
        size: u32,
        /// Many in one call: UDP_SEGMENT and UDP_GRO.
        gso: bool,
        /// Sockets at the client's end.
        streams: u32,
        /// Which way.
        direction: Direction,
        /// Milliseconds of each try.
        probe_ms: u32,
    },
    /// One request after the other.
    Rr {
        /// Over UDP, not TCP.
        udp: bool,
        /// Bytes of a request.
        request: u32,
        /// Bytes of a reply.
        reply: u32,
        /// Milliseconds.
        ms: u32,
    },
    /// Connections, one request each.
    Crr {
        /// Milliseconds.
        ms: u32,
    },
    /// One request after the other on one of many connections.
    Flows {
        /// Open connections, the busy one included.
        connections: u32,
        /// Milliseconds.
        ms: u32,
    },
    /// From exec to ready.
    Startup,
    /// Nothing, for long.
    Idle {
        /// Seconds.
        secs: u32,
    },
    /// Ports that lead into the guest.
    Ports {
        /// How many.
        count: u16,
    },
    /// iperf3 beside somebody who stalls or attacks.
    Fair {
        /// Parallel streams.
        streams: u32,
        /// Seconds of each of the three parts.
        secs: u32,
        /// Which way the streams go.
        direction: Direction,
        /// Who is beside them.
        beside: Beside,
    },
    /// Idle connections.
    Memory {
        /// Of the first look.
        few: u32,
        /// Of the second.
        many: u32,
    },
}

/// A figure of a report.
pub(crate) struct Figure {
    /// In the object of a run.
    pub(crate) key: &'static str,
    /// Above the column.
    pub(crate) head: &'static str,
    /// From the object's unit to the column's.
    pub(crate) unit: f64,
    /// More of it is better.
    pub(crate) more: bool,
}

const fn figure(key: &'static str, head: &'static str, unit: f64, more: bool) -> Figure {
    Figure { key, head, unit, more }
}

const MB: f64 = 1024.0 / 1e6;
const GBPS: Figure = figure("gbps", "Gbit/s", 1.0, true);
const CPU_GB: Figure = figure("cpu_secs_per_gb", "CPU-s/GB", 1.0, false);
const RSS: Figure = figure("rss_mid_kib", "RSS MB", MB, false);
const IDLE: Figure = figure("rss_idle_kib", "idle MB", MB, false);
const PEAK: Figure = figure("hwm_kib", "peak MB", MB, false);
const RATE: Figure = figure("rate", "per second", 1.0, true);
const P50: Figure = figure("p50_us", "p50 us", 1.0, false);
const P99: Figure = figure("p99_us", "p99 us", 1.0, false);
const CPU_OP: Figure = figure("cpu_us_per_op", "CPU us each", 1.0, false);
const RETRIED: Figure = figure("retransmits", "sent again", 1.0, false);
const PATH: Figure = figure("path_ms", "path ms", 1.0, false);
const DROPS: Figure = figure("path_drops", "path drops", 1.0, false);
const LOST: Figure = figure("lost", "lost", 1.0, false);

impl Load {
    /// Its figures; the first is the one that is compared.
    pub(crate) fn figures(&self) -> &'static [Figure] {
        match self {
            Self::Attach | Self::Startup => const { &[figure("ready_ms", "ms", 1.0, false)] },
            Self::Tcp { direction: Direction::Both, .. } => {
                const {
                    &[
                        GBPS,
                        figure("gbps_up", "up", 1.0, true),
                        figure("gbps_down", "down", 1.0, true),
                        CPU_GB,
                        RSS,
                        IDLE,
                        PEAK,
                    ]
                }
            }
            Self::Tcp { delay_ms: 1.., .. } => {
                const { &[GBPS, CPU_GB, RETRIED, PATH, DROPS, PEAK] }
            }
            Self::Tcp { .. } => const { &[GBPS, CPU_GB, RSS, IDLE, PEAK] },
            Self::Udp { .. } => {
                const {
                    &[
                        figure("pps", "kilo-dgrams/s", 1e-3, true),
                        GBPS,
                        figure("loss_percent", "loss %", 1.0, false),
                        figure("sender_limited", "sender is limit", 1.0, false),
                        PEAK,
                    ]
                }
            }
            Self::Rr { .. } => const { &[RATE, P50, P99, LOST, CPU_OP] },
            Self::Crr { .. } => const { &[RATE, P50, P99, CPU_OP, PEAK] },
            Self::Flows { .. } => {
                const { &[RATE, P50, P99, figure("open", "open", 1.0, true), CPU_OP, PEAK] }
            }
            Self::Idle { .. } => {
                const {
                    &[
                        figure("wakeups", "wake-ups", 1.0, false),
                        figure("cpu_ms", "CPU ms", 1.0, false),
                        figure("rss_kib", "RSS MB", MB, false),
                    ]
                }
            }
            Self::Ports { .. } => {
                const {
                    &[
                        figure("ready_ms", "ms", 1.0, false),
                        figure("listening", "listening", 1.0, true),
                        figure("rss_kib", "RSS MB", MB, false),
                        figure("sockets_kib", "kernel MB", MB, false),
                    ]
                }
            }
            Self::Fair { .. } => {
                const {
                    &[
                        figure("share_percent", "% of alone", 1.0, true),
                        GBPS,
                        figure("gbps_alone", "alone", 1.0, true),
                        figure("gbps_after", "after", 1.0, true),
                        figure("late_percent", "% of visits late", 1.0, false),
                        figure("visits", "visits", 1.0, true),
                        PEAK,
                    ]
                }
            }
            Self::Memory { .. } => {
                const {
                    &[
                        figure("rss_bytes_each", "RSS bytes each", 1.0, false),
                        figure("slab_bytes_each", "kernel bytes each, all ends", 1.0, false),
                        figure("open", "open", 1.0, true),
                        figure("rss_kib", "RSS MB", MB, false),
                    ]
                }
            }
        }
    }

    /// What tells it from other loads of its verb: keys of a series.
    pub(crate) fn params(&self) -> Map<String, Value> {
        let v = match self {
            Self::Attach | Self::Startup => json!({}),
            Self::Tcp { streams, direction, ip, delay_ms, .. } => {
                let mut v = json!({ "direction": direction.name(), "streams": streams });
                if *ip != 4 {
                    v["ip"] = json!(ip);
                }
                if *delay_ms > 0 {
                    v["rtt_ms"] = json!(2 * delay_ms);
                }
                v
            }
            Self::Udp { size, gso, streams, direction, .. } => json!({
                "direction": direction.name(), "streams": streams, "size": size,
                "what": if *gso { "GSO" } else { "single" },
            }),
            Self::Rr { udp, request, reply, .. } => json!({
                "proto": if *udp { "UDP" } else { "TCP" }, "what": format!("{request}/{reply} bytes"),
            }),
            Self::Crr { .. } => json!({ "clients": crate::tool::CRR_CLIENTS }),
            Self::Flows { connections, .. } => json!({ "connections": connections }),
            Self::Idle { secs } => json!({ "secs": secs }),
            Self::Ports { count } => json!({ "ports": count }),
            Self::Fair { streams, direction, beside, .. } => json!({
                "direction": direction.name(), "streams": streams, "what": beside.name(),
            }),
            Self::Memory { few, many } => json!({ "what": format!("{few} to {many} connections") }),
        };
        match v {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// IP version.
    pub(crate) fn ip(&self) -> u32 {
        if let Self::Tcp { ip, .. } = self { *ip } else { 4 }
    }

    /// Delay on each way between host and remote, milliseconds.
    pub(crate) fn delay_ms(&self) -> u32 {
        if let Self::Tcp { delay_ms, .. } = self { *delay_ms } else { 0 }
    }

    /// For the next stage.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Attach => json!({ "kind": "attach" }),
            Self::Tcp { streams, secs, direction, ip, delay_ms } => json!({
                "kind": "tcp", "streams": streams, "secs": secs, "direction": direction.name(),
                "ip": ip, "delay_ms": delay_ms,
            }),
            Self::Udp { size, gso, streams, direction, probe_ms } => json!({
                "kind": "udp", "size": size, "gso": gso, "streams": streams,
                "direction": direction.name(), "probe_ms": probe_ms,
            }),
            Self::Rr { udp, request, reply, ms } => json!({
                "kind": "rr", "udp": udp, "request": request, "reply": reply, "ms": ms,
            }),
            Self::Crr { ms } => json!({ "kind": "crr", "ms": ms }),
            Self::Flows { connections, ms } => {
                json!({ "kind": "flows", "connections": connections, "ms": ms })
            }
            Self::Startup => json!({ "kind": "startup" }),
            Self::Idle { secs } => json!({ "kind": "idle", "secs": secs }),
            Self::Ports { count } => json!({ "kind": "ports", "count": count }),
            Self::Fair { streams, secs, direction, beside } => json!({
                "kind": "fair", "streams": streams, "secs": secs, "direction": direction.name(),
                "beside": beside.name(),
            }),
            Self::Memory { few, many } => json!({ "kind": "memory", "few": few, "many": many }),
        }
    }

    /// The opposite of [`Self::to_json`].
    pub(crate) fn from_json(v: &Value) -> Option<Self> {
        let number = |key: &str| u32::try_from(v[key].as_u64()?).ok();
        let direction = || Direction::parse(v["direction"].as_str()?);
        Some(match v["kind"].as_str()? {
            "attach" => Self::Attach,
            "tcp" => Self::Tcp {
                streams: number("streams")?,
                secs: number("secs")?,
                direction: direction()?,
                ip: number("ip")?,
                delay_ms: number("delay_ms")?,
            },
            "udp" => Self::Udp {
                size: number("size")?,
                gso: v["gso"].as_bool()?,
                streams: number("streams")?,
                direction: direction()?,
                probe_ms: number("probe_ms")?,
            },
            "rr" => Self::Rr {
                udp: v["udp"].as_bool()?,
                request: number("request")?,
                reply: number("reply")?,
                ms: number("ms")?,
            },
            "crr" => Self::Crr { ms: number("ms")? },
            "flows" => Self::Flows { connections: number("connections")?, ms: number("ms")? },
            "startup" => Self::Startup,
            "idle" => Self::Idle { secs: number("secs")? },
            "ports" => Self::Ports { count: number("count")?.try_into().ok()? },
            "fair" => Self::Fair {
                streams: number("streams")?,
                secs: number("secs")?,
                direction: direction()?,
                beside: Beside::parse(v["beside"].as_str()?)?,
            },
            "memory" => Self::Memory { few: number("few")?, many: number("many")? },
            _ => return None,
        })
    }
}

/// Runs a cell's load over its bed.
/// `sockets_before`: KiB of the kernel for sockets before the forwarder was started, where it tells.
pub(crate) fn run(
    bed: &Bed,
    mut forwarder: Option<Proc>,
    cell: &Cell,
    sockets_before: Option<u64>,
) -> Res<Value> {
    match &cell.load {
        // Startup is timed where the forwarder is started.
        Load::Attach | Load::Startup => Ok(json!({})),
        Load::Tcp { streams, secs, direction, ip, .. } => {
            bulk::tcp(bed, &mut forwarder, cell, *streams, *secs, *direction, *ip)
        }
        Load::Udp { size, gso, streams, direction, probe_ms } => {
            exchange::udp(bed, forwarder, (*size, *gso, *streams), *direction, *probe_ms)
        }
        Load::Rr { udp, request, reply, ms } => {
            exchange::rr(bed, forwarder, *udp, *request, *reply, *ms)
        }
        Load::Crr { ms } => exchange::crr(bed, forwarder, *ms),
        Load::Flows { connections, ms } => exchange::flows(bed, forwarder, *connections, *ms),
        Load::Idle { secs } => still::idle(forwarder, *secs),
        Load::Ports { .. } => still::ports(bed, forwarder, sockets_before),
        Load::Fair { streams, secs, direction, beside } => {
            fair::fair(bed, forwarder, cell, *beside, (*streams, *secs, *direction))
        }
        Load::Memory { few, many } => still::memory(bed, forwarder, *few, *many),
    }
    .context(cell.forwarder.label())
}
