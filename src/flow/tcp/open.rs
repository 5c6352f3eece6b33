//! Towards a guest that is the server: our SYN, and what it is answered.

use smoltcp::wire::TcpControl;

use super::super::Ctx;
use super::super::key::FlowKey;
use super::guest::ToGuest;
use super::host::ToHost;
use super::segment::{self, Header, Segment};
use super::{End, Phase, TcpFlow, initial_number, largest_segment, segment_size};
use crate::frame::Mac;
use crate::limits::{WINDOW_INITIAL, WINDOW_SCALE};
use crate::stats::Drop;

impl TcpFlow {
    /// A flow for a connection that the host socket has accepted. Nothing is sent until [`TcpFlow::resolved`].
    pub fn accepted(ctx: &mut Ctx<'_>, key: &FlowKey, secret: &[u64; 2]) -> Self {
        let iss = initial_number(ctx, key, secret);
        Self {
            phase: Phase::Asking,
            mss: segment_size(ctx, key, &Segment::default()),
            to_guest: ToGuest::opening(iss),
            ..Self::blank(ctx.now)
        }
    }

    /// The guest's network knows where the SYN goes.
    pub fn resolved(&mut self, mac: Mac) {
        if self.phase == Phase::Asking {
            self.mac = mac;
            self.phase = Phase::Syn { sent: false };
        }
    }

    /// Nobody has the guest's address.
    pub fn unresolved(&mut self) {
        if self.phase == Phase::Asking {
            self.phase = Phase::Ended(End::Silent);
        }
    }

    /// The guest's kernel reports (by ICMP) that it does not take the segment with this sequence number.
    pub fn handle_refused(&mut self, seq: u32) {
        // RFC 5927 section 4.1: what it quotes must be under way.
        if matches!(self.phase, Phase::Syn { sent: true }) && seq == self.iss() {
            self.phase = Phase::Ended(End::Silent);
        }
    }

    /// Sequence number of our SYN, while it is not answered.
    fn iss(&self) -> u32 {
        self.to_guest.next().wrapping_sub(1)
    }

    /// A segment of the guest while our SYN is under way (RFC 9293 section 3.10.7.3).
    pub(super) fn handle_answer(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey, segment: &Segment) {
        let good = segment.ack == Some(self.to_guest.next());
        let Phase::Syn { sent: true } = self.phase else {
            return ctx.stats.drop(Drop::OutOfWindow);
        };
        match (segment.rst, segment.syn) {
            (true, _) if good => self.phase = Phase::Ended(End::Silent),
            (false, true) if good => {
                self.mac = ctx.guest_mac;
                self.mss = segment_size(ctx, key, segment);
                let scale = segment.scale.map(|_| WINDOW_SCALE);
                // Data that came along is not taken, and so comes again.
                self.to_host = ToHost::new(segment.seq.wrapping_add(1), scale);
                self.to_guest.opened(segment);
                self.phase = Phase::Open;
                self.opened = true;
                self.ack_owed = true;
                self.heard(ctx.now);
            }
            (false, _) if segment.ack.is_some() && !good => {
                // Of an older connection between the same ports, which the RST ends. Then our SYN is welcome.
                ctx.stats.drop(Drop::OutOfWindow);
                segment::reset_unknown(ctx, ctx.guest_mac, key, segment);
                if self.to_guest.first_retry() {
                    self.phase = Phase::Syn { sent: false };
                }
            }
            // Nothing to go by. That includes a SYN of the guest's own between the same ports: it answers ours as well.
            _ => ctx.stats.drop(Drop::OutOfWindow),
        }
    }

    pub(super) fn send_syn(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey) {
        let header = Header {
            control: TcpControl::Syn,
            seq: self.iss(),
            ack: None,
            window: WINDOW_INITIAL as u16,
            mss: Some(largest_segment(ctx, key)),
            scale: Some(WINDOW_SCALE),
        };
        self.send(ctx, key, &header);
    }
}
