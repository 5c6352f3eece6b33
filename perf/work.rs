//! The verbs that measure: which loads, through whom, how often unless told otherwise.

use crate::cell::Direction;
use crate::load::Load;
use crate::options::Options;
use crate::rivals::Forwarder;

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
}

impl Work {
    /// All, in the order of the help.
    pub(crate) const ALL: [Self; 9] = [
        Self::Tcp,
        Self::Udp,
        Self::Rr,
        Self::Crr,
        Self::Flows,
        Self::Startup,
        Self::Idle,
        Self::Memory,
        Self::Wan,
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
            Self::Wan => 10,
            _ => 5,
        }
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
            Self::Udp => [(64, false), (1400, false), (1400, true)]
                .into_iter()
                .flat_map(|(size, gso)| {
                    let one_way = ways().filter(|d| *d != Direction::Both);
                    // Ten tries are about as long as a cell of another verb.
                    one_way.map(move |direction| Load::Udp {
                        size,
                        gso,
                        direction,
                        probe_ms: ms / 10,
                    })
                })
                .collect(),
            Self::Rr => [(false, 1, 1), (false, 64, 1024), (true, 1, 1), (true, 64, 1024)]
                .map(|(udp, request, reply)| Load::Rr { udp, request, reply, ms })
                .into(),
            Self::Crr => vec![Load::Crr { ms }],
            Self::Flows => {
                [1, 1000, 10_000].map(|connections| Load::Flows { connections, ms }).into()
            }
            Self::Startup => vec![Load::Startup],
            Self::Idle => vec![Load::Idle { secs: o.secs }],
            Self::Memory => vec![Load::Memory { few: 1000, many: 10_000 }],
        }
    }

    /// Through whom, in the order of the table.
    pub(crate) fn forwarders(self, o: &Options) -> Vec<Forwarder> {
        let mut all = o.forwarders();
        all.retain(|f| match f {
            Forwarder::Direct => !matches!(self, Self::Startup | Self::Idle),
            // Only where it makes a difference.
            Forwarder::DirectSystem => matches!(self, Self::Tcp | Self::Wan),
            _ => true,
        });
        all
    }
}
