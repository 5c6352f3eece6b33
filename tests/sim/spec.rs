//! What one run consists of: plain numbers, chosen by a scenario, printed when it fails.

use crate::link::Faults;

/// One run.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: &'static str,
    pub seed: u64,
    pub mtu: u16,
    /// The guest's kernel hands over super-frames.
    pub tso: bool,
    /// Guest to core.
    pub up: Faults,
    /// Core to guest.
    pub down: Faults,
    /// The wires are mended then, ms.
    pub mend: u64,
    /// A written frame's slot comes back within this, ms.
    pub tap_delay: u64,
    /// Initial sequence numbers of both sides lie just before 2^32.
    pub wrap: bool,
    /// Simulated time the run may take, ms.
    pub limit: u64,
    pub flows: Vec<FlowSpec>,
}

impl Spec {
    /// Flows over wires that neither lose nor delay anything.
    pub fn plain(name: &'static str, seed: u64, flows: Vec<FlowSpec>) -> Self {
        Self {
            name,
            seed,
            mtu: 1500,
            tso: false,
            up: Faults::default(),
            down: Faults::default(),
            mend: 0,
            tap_delay: 0,
            wrap: false,
            limit: 3_600_000,
            flows,
        }
    }
}

/// How fast something goes: so many bytes at a time, with a gap of ms between.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub bytes: u64,
    pub gap: u64,
    /// At this offset, a pause of so many ms.
    pub pause: Option<(u64, u64)>,
}

/// As fast as it goes.
pub const FAST: Pace = Pace { bytes: 1 << 20, gap: 0, pause: None };

/// When a side ends its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As soon as all is written.
    Done,
    /// When it has also seen the other's end.
    Last,
    /// So many ms after all is written.
    Later(u64),
}

/// What a side does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Lives,
    /// Resets, ms after the start.
    Resets(u64),
    /// Is never heard of again from then on, ms after the start.
    Vanishes(u64),
}

/// How a connect ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    pub delay: u64,
    /// 0: connected; otherwise an errno.
    pub errno: i32,
}

/// A TCP option of the guest's SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mss {
    Keep,
    Absent,
    Is(u16),
}

/// One flow.
#[derive(Clone, Copy, Debug)]
pub struct FlowSpec {
    pub v6: bool,
    /// The guest is the server: the host's peer opens the connection.
    pub inbound: bool,
    /// ms.
    pub start: u64,
    pub mss: Mss,
    pub scale: bool,
    pub nagle: bool,
    pub ack_delay: bool,
    pub guest_rx: usize,
    pub guest_tx: usize,
    pub guest_bytes: u64,
    pub guest_write: Pace,
    pub guest_read: Pace,
    pub guest_end: End,
    pub guest_fate: Fate,
    pub connect: Connect,
    /// The host socket's send buffer.
    pub host_tx: u64,
    pub host_bytes: u64,
    pub host_write: Pace,
    /// The peer's reading, which empties the send buffer.
    pub host_read: Pace,
    pub host_end: End,
    pub host_fate: Fate,
    /// Host operations take up to this, ms.
    pub host_delay: u64,
}

impl FlowSpec {
    /// A flow in which nothing is out of the ordinary.
    pub fn plain(guest_bytes: u64, host_bytes: u64) -> Self {
        Self {
            v6: false,
            inbound: false,
            start: 0,
            mss: Mss::Keep,
            scale: true,
            nagle: false,
            ack_delay: false,
            guest_rx: 128 << 10,
            guest_tx: 64 << 10,
            guest_bytes,
            guest_write: FAST,
            guest_read: FAST,
            guest_end: End::Done,
            guest_fate: Fate::Lives,
            connect: Connect { delay: 0, errno: 0 },
            host_tx: 256 << 10,
            host_bytes,
            host_write: FAST,
            host_read: FAST,
            host_end: End::Done,
            host_fate: Fate::Lives,
            host_delay: 0,
        }
    }

    /// Whether both sides mean to carry it through.
    pub fn clean(&self) -> bool {
        self.guest_fate == Fate::Lives && self.host_fate == Fate::Lives && self.connect.errno == 0
    }
}
