//! The host-to-guest direction: what the host says, written to the guest as its window allows.

use smoltcp::wire::TcpControl;

use super::super::key::FlowKey;
use super::super::{Action, Ctx, Errno, FlowId, Received};
use super::host::ToHost;
use super::retained::Retained;
use super::segment::{self, Header, Segment, before};
use super::{End, Phase, TcpFlow, ask};
use crate::arena::{Chain, Slot};
use crate::frame::Mac;
use crate::limits::{
    ACK_DELAY, BLOCKS_MAX, ETH_LEN, IP_LEN_MAX, PROBE_MAX, RECV_SLOTS, RETRIES_MAX, RTO_MAX,
    RTO_MIN, SLOTS_MAX, UNACKED_MAX, VNET_LEN,
};
use crate::time::{Millis, Time};

/// Unacknowledged bytes a new flow may have; grows as the guest acknowledges.
const QUOTA_INITIAL: u32 = 256 << 10;
/// Receive again this long after the large slots ran out.
const HUNGRY: Millis = Millis(8);
/// A host that has ended its stream is watched for errors after this long; most flows are over by then.
const WATCH: Millis = Millis(1000);
/// Payload of the largest frame, behind the headers of either IP version.
const FRAME_PAYLOAD: u32 = IP_LEN_MAX as u32 - 60;
/// First interval of zero-window probes.
const PROBE_MIN: Millis = Millis(1000);

/// As many retries, at most, count against a guest that answers with a window of zero: the timer then
/// is near its longest, and what is left of [`RETRIES_MAX`] bounds a silence.
const RETRIES_SHUT: u8 = RETRIES_MAX / 2;

/// State of the direction. Sequence numbers are ours.
#[derive(Debug)]
pub(super) struct ToGuest {
    /// Oldest sequence number the guest has not acknowledged.
    una: u32,
    /// Next one to send; SYN and FIN counted.
    next: u32,
    /// Right edge of the guest's window.
    edge: u32,
    /// The largest window it ever offered.
    window_max: u32,
    /// Sequence and ACK number of the segment `edge` comes from (RFC 9293 section 3.10.7.4).
    wl: (u32, u32),
    scale: u8,
    /// Bytes that may be unacknowledged.
    quota: u32,
    /// Received, to be written when the flow is served.
    arrived: Chain,
    /// The socket held more when it was last received from.
    more: bool,
    /// Written, not acknowledged.
    retained: Retained,
    receiving: bool,
    /// The socket is watched for errors.
    watching: bool,
    /// Nothing is asked of the socket before then: no slot was free, or its stream has ended.
    again_at: Option<Time>,
    fin: Fin,
    rto_at: Option<Time>,
    retries: u8,
    dups: u8,
    /// Loss recovery goes on until this is acknowledged.
    recover: Option<u32>,
    /// The oldest unacknowledged segment is to be sent again.
    resend: bool,
    /// A probe (an ACK with an old sequence number) is to be sent.
    pub(super) probe: bool,
    probe_shift: u8,
}

/// Our FIN to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    /// The host has not closed.
    No,
    /// The host has closed; FIN is to be sent after the data.
    Due,
    /// Sent.
    Sent,
    /// To be sent again.
    Again,
    /// Acknowledged.
    Acked,
}

/// The direction of a connection that goes to another worker.
#[derive(Debug)]
pub(super) struct Packed {
    una: u32,
    edge: u32,
    window_max: u32,
    wl: (u32, u32),
    scale: u8,
    quota: u32,
    /// Not acknowledged: those from `una` on.
    retained: Vec<u8>,
}

/// What a timeout asks of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timeout {
    /// To go on.
    GoOn,
    /// To end: the guest does not answer.
    GiveUp,
}

impl ToGuest {
    pub(super) fn new(iss: u32, scale: u8, syn: &Segment) -> Self {
        let next = iss.wrapping_add(1);
        Self {
            una: iss,
            next,
            // The window of a SYN is never scaled.
            edge: next.wrapping_add(u32::from(syn.window)),
            window_max: u32::from(syn.window),
            wl: (syn.seq, next),
            scale: scale.min(14),
            quota: QUOTA_INITIAL,
            arrived: Chain::new(),
            more: false,
            retained: Retained::new(),
            receiving: false,
            watching: false,
            again_at: None,
            fin: Fin::No,
            rto_at: None,
            retries: 0,
            dups: 0,
            recover: None,
            resend: false,
            probe: false,
            probe_shift: 0,
        }
    }

    /// A direction whose SYN goes first: nothing is known of the guest.
    pub(super) fn opening(iss: u32) -> Self {
        Self::new(iss, 0, &Segment::default())
    }

    /// The guest has answered our SYN, and so acknowledged it.
    pub(super) fn opened(&mut self, syn: &Segment) {
        *self = Self::new(self.una, syn.scale.unwrap_or(0), syn);
        self.una = self.next;
    }

    /// Whether the host goes on sending, and nothing seems to be lost.
    pub(super) fn may_migrate(&self) -> bool {
        self.fin == Fin::No
            && self.recover.is_none()
            && !self.resend
            && !self.probe
            && self.retries == 0
            && self.again_at.is_none()
    }

    /// See [`Parcel`](super::Parcel).
    pub(super) fn pack(&self) -> Option<Packed> {
        if self.receiving || !self.arrived.is_empty() {
            return None;
        }
        let retained = self.retained.copy_from(self.una)?;
        let Self { una, next, edge, window_max, wl, scale, quota, .. } = *self;
        (una.wrapping_add(retained.len() as u32) == next).then_some(Packed {
            una,
            edge,
            window_max,
            wl,
            scale,
            quota,
            retained,
        })
    }

    /// The opposite. `None`: slots are short.
    pub(super) fn unpack(ctx: &mut Ctx<'_>, packed: &Packed, mss: u16) -> Option<Self> {
        let Packed { una, edge, window_max, wl, scale, quota, retained: ref bytes } = *packed;
        let frame = whole_segments(FRAME_PAYLOAD, u32::from(mss.max(1)), FRAME_PAYLOAD);
        let retained = Retained::of(ctx, una, bytes, frame as usize)?;
        let next = una.wrapping_add(bytes.len() as u32);
        let new = Self::opening(una);
        let mut direction = Self { una, next, edge, window_max, wl, scale, quota, retained, ..new };
        if direction.outstanding() {
            direction.start_timer(ctx.now);
        }
        Some(direction)
    }

    /// Counts an early retransmission; false: it is not the first.
    pub(super) fn first_retry(&mut self) -> bool {
        let first = self.retries == 0;
        self.retries = self.retries.max(1);
        first
    }

    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// The oldest sequence number that the guest has not acknowledged.
    pub(super) fn unacknowledged(&self) -> u32 {
        self.una
    }

    /// Whether anything sent is not acknowledged.
    pub(super) fn outstanding(&self) -> bool {
        self.una != self.next
    }

    /// Whether our FIN is acknowledged.
    pub(super) fn finished(&self) -> bool {
        self.fin == Fin::Acked
    }

    pub(super) fn fin_sent(&self) -> bool {
        matches!(self.fin, Fin::Sent | Fin::Again | Fin::Acked)
    }

    pub(super) fn wants_fin(&self) -> bool {
        matches!(self.fin, Fin::Due | Fin::Again) && self.arrived.is_empty()
    }

    /// Notes the FIN as sent; its sequence number.
    pub(super) fn take_fin(&mut self, now: Time) -> u32 {
        if self.fin == Fin::Due {
            self.next = self.next.wrapping_add(1);
        }
        self.fin = Fin::Sent;
        if self.rto_at.is_none() {
            self.start_timer(now);
        }
        self.next.wrapping_sub(1)
    }

    /// (Re)starts the retransmission timer.
    pub(super) fn start_timer(&mut self, now: Time) {
        let timeout = Millis((RTO_MIN.0 << self.retries.min(16)).min(RTO_MAX.0));
        self.rto_at = Some(now + timeout);
    }

    /// The guest is gone: nothing is kept for it, and no timer runs.
    pub(super) fn abandon(&mut self) {
        self.retained = Retained::new();
        self.arrived = Chain::new();
        self.una = self.next;
        (self.rto_at, self.again_at) = (None, None);
    }

    pub(super) fn take_resend(&mut self) -> bool {
        std::mem::take(&mut self.resend)
    }

    /// Whether the guest's window has no room, and the host may still have something to say.
    pub(super) fn window_closed(&self) -> bool {
        self.fin == Fin::No && !before(self.next, self.edge)
    }

    pub(super) fn probe_gap(&self) -> Millis {
        Millis((PROBE_MIN.0 << self.probe_shift).min(PROBE_MAX.0))
    }

    pub(super) fn next_probe_gap(&mut self) -> Millis {
        self.probe_shift = (self.probe_shift + 1).min(6);
        self.probe_gap()
    }

    /// Writes what has arrived, resends what is due.
    pub(super) fn write(
        &mut self,
        ctx: &mut Ctx<'_>,
        id: FlowId,
        key: &FlowKey,
        mac: Mac,
        mss: u16,
        to_host: &mut ToHost,
    ) {
        if self.take_resend() {
            if let Some(slot) = self.retained.take(self.una) {
                ctx.stats.retransmits += 1;
                write(ctx, id, key, mac, mss, to_host, slot);
            } else if self.fin == Fin::Sent && self.una == self.next.wrapping_sub(1) {
                self.fin = Fin::Again;
            }
        }
        while let Some(mut slot) = self.arrived.pop_front() {
            slot.seq = self.next;
            if !self.outstanding() {
                self.start_timer(ctx.now);
            }
            self.next = self.next.wrapping_add(slot.len() as u32);
            self.retained.note_write(self.next, ctx.now);
            write(ctx, id, key, mac, mss, to_host, slot);
        }
    }

    /// Asks for more.
    pub(super) fn ask(&mut self, ctx: &mut Ctx<'_>, id: FlowId, key: &FlowKey, mss: u16) {
        if self.receiving || self.again_at.is_some_and(|at| at > ctx.now) {
            return;
        }
        self.again_at = None;
        let max = match self.fin {
            Fin::No => self.room(ctx, u32::from(mss), key.guest().is_ipv4()),
            Fin::Due | Fin::Sent | Fin::Again | Fin::Acked => 0,
        };
        if max > 0 {
            self.receiving = true;
            let frames = if self.more { self.frames(max, u32::from(mss)) } else { 1 };
            ask(
                ctx,
                if frames > 1 {
                    Action::TcpRecvMany { flow: id, frame: max, frames }
                } else {
                    Action::TcpRecv { flow: id, max }
                },
            );
        } else if !self.watching {
            self.watching = true;
            ask(ctx, Action::TcpPollError { flow: id });
        }
    }

    /// How much to receive now; 0: wait.
    fn room(&self, ctx: &Ctx<'_>, mss: u32, v4: bool) -> u32 {
        let flight = self.next.wrapping_sub(self.una);
        if flight > 0 {
            // Flows share the pools: who already has much waits while they are short.
            let large = ctx.pools.large.available() < SLOTS_MAX / 4 && self.retained.slots() > 1;
            if large || ctx.pools.small.available() < BLOCKS_MAX / 8 {
                return 0;
            }
        }
        let room = self.credit();
        // The largest payload of one frame: the IPv6 payload length counts no IP header.
        let frame = IP_LEN_MAX as u32 - if v4 { 40 } else { 20 };
        if room >= mss {
            return whole_segments(room.min(frame), mss, frame);
        }
        // Silly window avoidance (RFC 9293 section 3.8.6.2.1).
        if flight == 0 || room >= (self.window_max / 2).max(1) { room.min(frame) } else { 0 }
    }

    /// How many frames of `frame` bytes (what [`ToGuest::room`] allows for one) there is room for. One
    /// receive for several is one window update to the peer, and one guest woken once.
    fn frames(&self, frame: u32, mss: u32) -> u32 {
        if frame < mss { 1 } else { (self.credit() / frame).min(RECV_SLOTS as u32) }
    }

    /// Bytes that may be written now: what the guest's window and the flow's quota leave.
    fn credit(&self) -> u32 {
        let window = (self.edge.wrapping_sub(self.next) as i32).max(0) as u32;
        window.min(self.quota.saturating_sub(self.next.wrapping_sub(self.una)))
    }

    /// A frame has been written: its bytes wait for the guest's ACK.
    fn written(&mut self, ctx: &mut Ctx<'_>, mut slot: Slot, headers: usize) {
        slot.trim_front(headers);
        self.retained.keep(ctx, slot, self.una, self.next);
    }

    /// Takes an ACK and a window. False: it acknowledges what was never sent.
    pub(super) fn acknowledge(
        &mut self,
        ctx: &Ctx<'_>,
        segment: &Segment,
        ack: u32,
        len: usize,
    ) -> bool {
        if before(self.next, ack) {
            return false;
        }
        if before(ack, self.una) {
            return true;
        }
        let window = u32::from(segment.window) << self.scale;
        let edge = ack.wrapping_add(window);
        if before(self.una, ack) {
            let n = ack.wrapping_sub(self.una);
            self.una = ack;
            self.quota = self.quota.saturating_add(n).min(UNACKED_MAX);
            self.retries = 0;
            self.dups = 0;
            self.retained.acknowledge(ack, self.next, ctx.now);
            if ack == self.next {
                self.rto_at = None;
                self.recover = None;
                self.resend = false;
                if matches!(self.fin, Fin::Sent | Fin::Again) {
                    self.fin = Fin::Acked;
                }
            } else {
                self.start_timer(ctx.now);
                if let Some(recover) = self.recover {
                    // A partial ACK: the next segment is lost too (RFC 6582 section 3.2).
                    if before(ack, recover) {
                        self.resend = true;
                    } else {
                        self.recover = None;
                    }
                }
            }
        } else if window == 0 {
            // Shut, but alive: it may refuse what it has no room for (our FIN included) for as long
            // as it answers (RFC 1122 section 4.2.2.17).
            self.retries = self.retries.min(RETRIES_SHUT);
        } else if len == 0 && !segment.fin && self.outstanding() && edge == self.edge {
            // RFC 5681 section 2: a duplicate ACK.
            self.dups = self.dups.saturating_add(1);
            if self.dups == 3 && self.recover.is_none() {
                self.recover = Some(self.next);
                self.resend = true;
            }
        }
        // RFC 9293 section 3.10.7.4 takes a window from the newest segment, by its number. A guest that
        // sends lost data again goes back in numbers, though; an edge that moves on is always news.
        let (seq, last) = self.wl;
        if before(seq, segment.seq)
            || (seq == segment.seq && !before(ack, last))
            || before(self.edge, edge)
        {
            self.wl = (segment.seq, ack);
            self.edge = edge;
            self.window_max = self.window_max.max(window);
            if before(self.next, edge) {
                self.probe_shift = 0;
            }
        }
        true
    }

    /// Retransmits what is due, at most `most` times.
    pub(super) fn handle_timeout(&mut self, ctx: &mut Ctx<'_>, most: u8) -> Timeout {
        let now = ctx.now;
        if self.retained.stalled_at().is_some_and(|at| at <= now) {
            self.retained.compact(ctx, self.next);
        }
        if self.rto_at.is_none_or(|at| at > now) || !self.outstanding() {
            return Timeout::GoOn;
        }
        let short = ctx.pools.small.available() < BLOCKS_MAX / 8;
        if self.retries >= most || (short && self.retries >= 2) {
            return Timeout::GiveUp;
        }
        self.retries += 1;
        self.start_timer(now);
        self.resend = true;
        self.recover = Some(self.next);
        Timeout::GoOn
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        let rto = if self.outstanding() { self.rto_at } else { None };
        [rto, self.retained.stalled_at(), self.again_at].into_iter().flatten().min()
    }
}

/// Whole segments of so many bytes, so that no frame ends in a small one. MSS first, then the frame's bound: at the largest
/// MTU the MSS nearly is the bound.
fn whole_segments(bytes: u32, mss: u32, frame: u32) -> u32 {
    (bytes / mss).max(1) * mss.min(frame)
}

/// Writes a data segment, which carries the newest ACK and window; the slot comes back.
fn write(
    ctx: &mut Ctx<'_>,
    id: FlowId,
    key: &FlowKey,
    mac: Mac,
    mss: u16,
    to_host: &mut ToHost,
    mut slot: Slot,
) {
    let header = Header {
        control: TcpControl::Psh,
        seq: slot.seq,
        ack: Some(to_host.ack_number()),
        window: to_host.advertise(ctx),
        mss: None,
        scale: None,
    };
    if segment::emit(&mut slot, ctx.net.gateway_mac, mac, key, &header, mss) {
        ask(ctx, Action::TapWrite { slot, keep: Some(id) });
    }
}

impl TcpFlow {
    /// A data segment has been written.
    pub fn handle_written(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey, slot: Slot) {
        if self.phase == Phase::Gone {
            return;
        }
        let ip = if key.guest().is_ipv4() { 20 } else { 40 };
        self.to_guest.written(ctx, slot, VNET_LEN + ETH_LEN + ip + 20);
    }

    /// A receive has ended.
    pub fn handle_received(&mut self, ctx: &mut Ctx<'_>, result: Received) {
        self.to_guest.receiving = false;
        match result {
            Received::Data { .. } | Received::Eof | Received::NoBuffer
                if self.phase == Phase::Gone => {}
            Received::Data { slot, more } => {
                ctx.stats.tcp_to_guest += slot.len() as u64;
                self.carried = self.carried.saturating_add(slot.len() as u32);
                if ctx.now - self.active < ACK_DELAY {
                    self.slow = false;
                }
                self.active = ctx.now;
                self.to_guest.more = more;
                self.to_guest.arrived.push_back(slot);
            }
            Received::Eof => {
                self.to_guest.fin = Fin::Due;
                self.to_guest.again_at = Some(ctx.now + WATCH);
            }
            Received::NoBuffer => {
                self.to_guest.more = false;
                if ctx.pools.large.available() == 0 {
                    self.to_guest.again_at = Some(ctx.now + HUNGRY);
                }
            }
            Received::Failed(_) => self.phase = Phase::Ended(End::ResetGuest),
        }
    }

    /// The watched socket has failed (or both its directions are over, which changes nothing).
    pub fn handle_hangup(&mut self, errno: Errno) {
        match errno.0 {
            0 => {}
            // To be asked for again.
            libc::ECANCELED => self.to_guest.watching = false,
            _ => self.phase = Phase::Ended(End::ResetGuest),
        }
    }
}
