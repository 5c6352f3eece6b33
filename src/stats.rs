//! Counters of one worker. Plain numbers: the worker that owns them writes, control asks for a copy.

use std::fmt;

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
    /// What would open a flow, while too many before it have come to nothing.
    TooManyOpenings,
}

impl Drop {
    /// All reasons, each in its place.
    pub const ALL: [Self; DROPS] = [
        Self::Malformed,
        Self::Unsupported,
        Self::BadSource,
        Self::Forbidden,
        Self::PortZero,
        Self::FlowTableFull,
        Self::NoBuffer,
        Self::OutOfWindow,
        Self::BacklogFull,
        Self::NoFlow,
        Self::Unsolicited,
        Self::BadFragment,
        Self::FragmentTimeout,
        Self::DnsRefused,
        Self::NoLease,
        Self::HostRefused,
        Self::Unresolved,
        Self::TapRefused,
        Self::Draining,
        Self::HandOverFull,
        Self::Misplaced,
        Self::TooManyOpenings,
    ];
}

/// Number of [`Drop`] reasons.
pub const DROPS: usize = Drop::TooManyOpenings as usize + 1;

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
    /// Connections given to another worker.
    pub migrated: u64,
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

    /// Adds what another worker has done.
    pub fn add(&mut self, other: &Self) {
        // Spelled out, so that none is forgotten.
        let Self {
            frames_from_guest,
            frames_to_guest,
            tcp_to_host,
            tcp_to_guest,
            copied_bytes,
            retransmits,
            handed_over,
            migrated,
            turns,
            flows,
            drops,
        } = *other;
        self.frames_from_guest += frames_from_guest;
        self.frames_to_guest += frames_to_guest;
        self.tcp_to_host += tcp_to_host;
        self.tcp_to_guest += tcp_to_guest;
        self.copied_bytes += copied_bytes;
        self.retransmits += retransmits;
        self.handed_over += handed_over;
        self.migrated += migrated;
        self.turns += turns;
        self.flows += flows;
        for (sum, count) in self.drops.iter_mut().zip(drops) {
            *sum += count;
        }
    }
}

impl fmt::Display for Stats {
    /// One line; of the drops, those that there were.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} frames from the guest, {} to it; TCP: {} bytes to the host, {} to the guest, \
             {} segments again; {} bytes copied; {} frames handed over; {} connections moved; {} turns; {} flows left",
            self.frames_from_guest,
            self.frames_to_guest,
            self.tcp_to_host,
            self.tcp_to_guest,
            self.retransmits,
            self.copied_bytes,
            self.handed_over,
            self.migrated,
            self.turns,
            self.flows,
        )?;
        let mut word = "; dropped: ";
        for why in Drop::ALL.into_iter().filter(|why| self.dropped(*why) > 0) {
            write!(f, "{word}{} {why:?}", self.dropped(why))?;
            word = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_in_its_place() {
        for (place, why) in Drop::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, place);
        }
    }

    #[test]
    fn sums_and_their_line() {
        let mut sum = Stats { tcp_to_host: 5, flows: 1, ..Stats::default() };
        assert!(sum.to_string().ends_with("; 1 flows left"), "{sum}");
        let mut other = Stats { tcp_to_host: 7, turns: 2, flows: 2, ..Stats::default() };
        other.drop(Drop::NoFlow);
        other.drop(Drop::Malformed);
        sum.drop(Drop::NoFlow);
        sum.add(&other);
        assert_eq!((sum.tcp_to_host, sum.turns, sum.flows), (12, 2, 3));
        assert!(sum.to_string().contains("TCP: 12 bytes to the host, 0 to the guest"), "{sum}");
        assert!(sum.to_string().ends_with("; dropped: 1 Malformed, 2 NoFlow"), "{sum}");
    }
}
