//! Datagrams on their way to the guest, in one frame where that can be.
//!
//! # Theory of operation
//!
//! What a datagram costs, it costs once per frame: a write, and a walk through the guest's network stack up to
//! its socket, where a frame of a run (`VIRTIO_NET_HDR_GSO_UDP_L4`) is cut, or not at all if the program has asked for
//! `UDP_GRO`. The host's kernel coalesces datagrams only where its device does, so those that come from one peer in one turn
//! are joined here: each with the newest frame of its mapping that still waits to be written, if the
//! [headers are the same](Delivery::takes) and the [lengths fit](Lengths); otherwise it begins a frame.
//!
//! * **Order:** only the newest frame of a mapping takes more.
//! * **Latency:** none, frames are written at the turn's end in any case.
//! * **No copy:** the frame is written from the slots that the datagrams came in; headers are put before the first.

use super::Action;
use super::lengths::Lengths;
use crate::arena::{Chain, Slot};
use crate::frame::build::{self, Out};

/// One frame that waits: a datagram or more.
#[derive(Debug)]
pub struct Delivery {
    head: Head,
    /// Payload bytes of each datagram of a run that came as one; or 0.
    segment: u16,
    lengths: Lengths,
    first: Slot,
    /// The payload of those behind it.
    rest: Chain,
}

/// What the datagrams of a frame have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Headers below UDP.
    pub out: Out,
    /// The peer's port, as the guest knows it.
    pub from: u16,
    /// The guest's port.
    pub to: u16,
}

impl Delivery {
    /// Of one datagram, which leads others if it has no more than `most` bytes; or, with a `segment`, of a run that came in one
    /// slot and stays as it is.
    pub fn new(head: Head, slot: Slot, segment: u16, most: usize) -> Self {
        let lengths = Lengths::new(slot.len(), if segment == 0 { most } else { 0 });
        Self { head, segment, lengths, first: slot, rest: Chain::new() }
    }

    /// Adds a datagram if it can be in this frame, and gives it back otherwise.
    ///
    /// # Errors
    /// The datagram.
    pub fn takes(&mut self, head: &Head, slot: Slot, segment: u16) -> Result<(), Slot> {
        if segment != 0 || *head != self.head || !self.lengths.takes(slot.len()) {
            return Err(slot);
        }
        self.rest.push_back(slot);
        Ok(())
    }

    /// The frame, to be written.
    pub(super) fn into_action(self) -> Action {
        let Self { head, segment, lengths, first: mut slot, rest: mut chain } = self;
        let segment = lengths.segment().unwrap_or(segment);
        let rest = chain.bytes() as usize;
        build::udp_before(&mut slot, rest, &head.out, head.from, head.to, segment);
        if chain.is_empty() {
            return Action::TapWrite { slot, keep: None };
        }
        chain.push_front(slot);
        Action::TapRun { chain }
    }
}
