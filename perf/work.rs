//! The verbs that measure: which loads, through whom, how often unless told otherwise.

use crate::cell::Direction;
use crate::fair::Beside;
use crate::load::Load;
use crate::options::Options;
use crate::rivals::{Forwarder, OPEN};

/// A verb that measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Bulk TCP.
    Tcp,
    /// Datagrams.
    Udp,
    /// Requests on one connection.
    Rr,
    /// Connections.
    Crr,
    /// Requests beside many open connections.
    Flows,
    /// From exec to ready.
    Startup,
    /// Nothing to do.
    Idle,
    /// Memory of idle connections.
    Memory,
    /// Bulk TCP over a long path.
    Wan,
    /// Forwarded ports, at the start.
    Ports,
    /// Bulk TCP beside somebody who stalls or attacks.
    Fair,
}

impl Work {
    /// All, in the order of the help.
    pub(crate) const ALL: [Self; 11] = [
        Self::Tcp,
        Self::Udp,
        Self::Rr,
        Self::Crr,
        Self::Flows,
        Self::Startup,
        Self::Idle,
        Self::Memory,
        Self::Wan,
        Self::Ports,
        Self::Fair,
    ];

    /// As typed, and as the document says.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Rr => "rr",
            Self::Crr => "crr",
            Self::Flows => "flows",
            Self::Startup => "startup",
            Self::Idle => "idle",
            Self::Memory => "memory",
            Self::Wan => "wan",
            Self::Ports => "ports",
            Self::Fair => "fair",
        }
    }

    /// The same by forwarded ports.
    pub(crate) fn name_inbound(self) -> &'static str {
        match self {
            Self::Tcp => "inbound-tcp",
            Self::Udp => "inbound-udp",
            Self::Rr => "inbound-rr",
            Self::Crr => "inbound-crr",
            _ => self.name(),
        }
    }

    /// Rounds unless told otherwise.
    pub(crate) fn rounds(self) -> u32 {
        match self {
            Self::Startup => 20,
            Self::Idle | Self::Memory => 1,
            _ => 5,
        }
    }

    /// Seconds of each cell unless told otherwise.
    pub(crate) fn secs(self) -> u32 {
        match self {
            Self::Idle => 60,
            // The ports of a fast one would not last longer.
            Self::Crr => 3,
            // Three times in each cell.
            Self::Fair => 3,
            Self::Wan => 10,
            _ => 5,
        }
    }

    /// Streams unless told otherwise.
    pub(crate) fn streams(self) -> Vec<u32> {
        if self == Self::Fair { vec![4] } else { vec![1] }
    }

    /// Whether there is something to connect to in the guest.
    pub(crate) fn may_be_inbound(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Rr | Self::Crr)
    }

    /// MTUs unless told otherwise: the largest matters to bulk alone.
    pub(crate) fn mtus(self) -> Vec<u16> {
        if self == Self::Tcp { vec![1500, 65520] } else { vec![1500] }
    }

    /// What is measured, in the order of the tables.
    pub(crate) fn loads(self, o: &Options) -> Vec<Load> {
        let ms = o.secs * 1000;
        // Of the directions that there are for this verb.
        let ways = || o.directions.iter().copied();
        match self {
            Self::Tcp | Self::Wan => {
                // 20 ms there and back.
                let delay_ms = if self == Self::Wan { 10 } else { 0 };
                let (secs, ip) = (o.secs, o.ip);
                let one = |streams| {
                    ways().map(move |direction| Load::Tcp {
                        streams,
                        secs,
                        direction,
                        ip,
                        delay_ms,
                    })
                };
                o.streams.iter().copied().flat_map(one).collect()
            }
            Self::Udp => {
                // Ten tries are about as long as a cell of another verb.
                let probe_ms = ms / 10;
                let one = |(size, gso, streams)| {
                    let one_way = ways().filter(|d| *d != Direction::Both);
                    one_way.map(move |direction| Load::Udp {
                        size,
                        gso,
                        streams,
                        direction,
                        probe_ms,
                    })
                };
                let sizes = [(64, false), (1400, false), (1400, true)].into_iter();
                let all =
                    o.streams.iter().flat_map(|&n| sizes.clone().map(move |(s, g)| (s, g, n)));
                all.flat_map(one).collect()
            }
            Self::Rr => [(false, 1, 1), (false, 64, 1024), (true, 1, 1), (true, 64, 1024)]
                .map(|(udp, request, reply)| Load::Rr { udp, request, reply, ms })
                .into(),
            Self::Crr => vec![Load::Crr { ms }],
            Self::Flows => {
                [1, 1000, 10_000].map(|connections| Load::Flows { connections, ms }).into()
            }
            Self::Startup => vec![Load::Startup],
            Self::Idle => vec![Load::Idle { secs: o.secs }],
            Self::Ports => [1, 10_000].map(|count| Load::Ports { count }).into(),
            Self::Fair => Beside::ALL
                .into_iter()
                .flat_map(|beside| {
                    let streams = o.streams.iter().copied();
                    streams.flat_map(move |streams| {
                        let secs = o.secs;
                        ways().map(move |direction| Load::Fair { streams, secs, direction, beside })
                    })
                })
                .collect(),
            Self::Memory => vec![Load::Memory { few: 1000, many: 10_000 }],
        }
    }

    /// Through whom, in the order of the table.
    pub(crate) fn forwarders(self, o: &Options) -> Vec<Forwarder> {
        let mut all = o.forwarders();
        all.retain(|f| match f {
            Forwarder::Direct => !matches!(self, Self::Startup | Self::Idle | Self::Ports),
            // The same program with less around it: what starting it costs is what differs.
            Forwarder::Ringtap { label, .. } if label == OPEN => {
                matches!(self, Self::Startup | Self::Ports)
            }
            Forwarder::Rootlesskit => o.inbound,
            // Only where it makes a difference.
            Forwarder::DirectSystem => matches!(self, Self::Tcp | Self::Wan),
            _ => true,
        });
        all
    }
}
