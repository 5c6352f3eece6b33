//! A segment of the guest: what it says about the connection, about our bytes, and the bytes it brings.
//!
//! The order is that of RFC 9293 section 3.10.7.4: RST, SYN, the sequence number, the ACK, then the data and FIN.

use super::super::Ctx;
use super::super::key::FlowKey;
use super::segment::{Segment, before};
use super::{End, Phase, TcpFlow};
use crate::arena::Slot;
use crate::stats::Drop;

impl TcpFlow {
    /// A segment of the guest; the slot's range is its payload.
    pub fn handle_segment(
        &mut self,
        ctx: &mut Ctx<'_>,
        key: &FlowKey,
        segment: &Segment,
        slot: Slot,
    ) {
        let expected = self.to_host.ack_number_received();
        match self.phase {
            Phase::Ended(_) => return,
            Phase::Gone => {
                // The ports are taken anew; the guest's SYN comes again.
                if segment.syn {
                    self.phase = Phase::Ended(End::Silent);
                }
                return;
            }
            Phase::Connecting => {
                // A RST for our (not yet sent) SYN-ACK, or a SYN of another try: over.
                let other = segment.syn && segment.seq.wrapping_add(1) != expected;
                if other || (segment.rst && segment.seq == expected) {
                    self.phase = Phase::Ended(End::Silent);
                }
                return;
            }
            Phase::Asking => return ctx.stats.drop(Drop::OutOfWindow),
            Phase::Syn { .. } => return self.handle_answer(ctx, key, segment),
            Phase::SynAck { .. } | Phase::Open => {}
        }
        if segment.rst {
            // RFC 5961 section 3.2: exact, or challenged. A guest that answers a challenge takes its
            // number from our ACK, which may lie before what is held.
            let acked = self.to_host.acked();
            if !before(segment.seq, acked) && !before(expected, segment.seq) {
                self.phase = if self.to_host.all_taken() && !self.to_host.finished() {
                    self.to_guest.abandon();
                    Phase::Gone
                } else {
                    Phase::Ended(End::Silent)
                };
            } else if before(expected, segment.seq) && before(segment.seq, self.to_host.edge()) {
                self.ack_owed = true;
            }
            return;
        }
        if segment.syn {
            match self.phase {
                Phase::SynAck { .. } if segment.seq.wrapping_add(1) == expected => {
                    self.phase = Phase::SynAck { sent: false };
                }
                Phase::SynAck { .. } => self.phase = Phase::Ended(End::Silent),
                // Also our own SYN's answer again, when the ACK of it was lost.
                _ => self.ack_owed = true,
            }
            return;
        }
        let Some(ack) = segment.ack else { return ctx.stats.drop(Drop::Malformed) };
        if before(self.to_host.edge(), segment.seq) {
            self.ack_owed = true;
            return ctx.stats.drop(Drop::OutOfWindow);
        }
        if let Phase::SynAck { sent } = self.phase {
            if !sent || ack != self.to_guest.next() {
                return ctx.stats.drop(Drop::OutOfWindow);
            }
            self.phase = Phase::Open;
            self.opened = true;
        }
        self.heard(ctx.now);
        if !self.to_guest.acknowledge(ctx, segment, ack, slot.len()) {
            self.ack_owed = true;
            return ctx.stats.drop(Drop::OutOfWindow);
        }
        self.take_data(ctx, segment, slot, expected);
    }

    /// Cuts off what is old and what lies beyond the window, and accepts the rest.
    fn take_data(&mut self, ctx: &mut Ctx<'_>, segment: &Segment, mut slot: Slot, expected: u32) {
        let mut fin = segment.fin;
        if slot.is_empty() && !fin {
            // A keep-alive or window probe has an old number and wants an answer.
            self.ack_owed |= segment.seq != expected;
            return;
        }
        if before(expected, segment.seq) {
            // A gap: the duplicate ACK asks for what is missing.
            self.ack_owed = true;
            return self.to_host.accept_early(ctx, segment.seq, slot, fin);
        }
        let old = expected.wrapping_sub(segment.seq) as usize;
        if old >= slot.len() + usize::from(fin) || self.to_host.fin_seen() {
            self.ack_owed = true;
            return;
        }
        slot.trim_front(old);
        let room = (self.to_host.edge().wrapping_sub(expected) as i32).max(0) as usize;
        if slot.len() > room {
            slot.truncate(room);
            fin = false;
            self.ack_owed = true;
            ctx.stats.drop(Drop::OutOfWindow);
        }
        self.to_host.accept(ctx, slot, fin);
    }
}
