//! Counters of one worker. Plain numbers: the worker that owns them writes, control asks for a copy.

/// Why a frame, datagram or segment went no further. Each is counted; none is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Drop {
    /// Shorter than its headers say, or headers that contradict each other.
    Malformed,
    /// An Ethernet type, IP protocol or ICMP type we carry nothing for.
    Unsupported,
    /// A source address a guest may not have (loopback, multicast, ours, unspecified).
    BadSource,
    /// A destination that policy forbids.
    Forbidden,
    /// A TCP or UDP port of zero.
    PortZero,
    /// The flow table is full.
    FlowTableFull,
    /// No buffer was free.
    NoBuffer,
    /// TCP: data outside the window or out of order.
    OutOfWindow,
    /// TCP: data in the window, but all backlogs together are at their bound.
    BacklogFull,
    /// TCP: a segment for no flow.
    NoFlow,
    /// UDP: a datagram from an endpoint the guest has not sent to.
    Unsolicited,
    /// A fragment that overlaps, lies about its length, or finds no room.
    BadFragment,
    /// A datagram whose fragments did not all come in time.
    FragmentTimeout,
    /// DNS: too many queries pending, or no resolver known.
    DnsRefused,
    /// DHCP: all leases are taken.
    NoLease,
    /// The host's kernel refused a datagram.
    HostRefused,
    /// A datagram for a guest whose MAC is not known.
    Unresolved,
    /// The TAP refused a frame (link down, no memory).
    TapRefused,
    /// A new flow while draining.
    Draining,
    /// A frame for another worker's flow, while that worker is behind.
    HandOverFull,
    /// A frame that was handed over, and whose flow is with a third worker by now.
    Misplaced,
}

/// Number of [`Drop`] reasons.
pub const DROPS: usize = Drop::Misplaced as usize + 1;

/// What one worker has done since it started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Frames read from the guest.
    pub frames_from_guest: u64,
    /// Frames written to the guest.
    pub frames_to_guest: u64,
    /// TCP payload taken by host sockets, bytes.
    pub tcp_to_host: u64,
    /// TCP payload received from host sockets, bytes.
    pub tcp_to_guest: u64,
    /// Payload bytes that user space copied: 0 while TCP streams flow.
    pub copied_bytes: u64,
    /// TCP segments sent to the guest again.
    pub retransmits: u64,
    /// Frames handed over to another worker.
    pub handed_over: u64,
    /// Turns of the worker's loop.
    pub turns: u64,
    /// Flows at this moment.
    pub flows: u32,
    /// What was dropped, by [`Drop`].
    pub drops: [u64; DROPS],
}

impl Stats {
    /// Counts one drop.
    pub fn drop(&mut self, why: Drop) {
        self.drops[why as usize] += 1;
    }

    /// How often one reason was counted.
    pub fn dropped(&self, why: Drop) -> u64 {
        self.drops[why as usize]
    }
}
