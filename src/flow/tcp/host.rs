//! The guest-to-host direction: from segments in sequence to the host socket, and what is
//! acknowledged when.

use super::super::{Action, Ctx, Errno, FlowId};
use super::early::Early;
use super::segment::before;
use super::{End, Phase, TcpFlow, ask};
use crate::arena::{Chain, Slot};
use crate::limits::{
    BLOCKS_MAX, SEND_SLOTS, SLOTS_MAX, STALL, WINDOW_FRAMES, WINDOW_INITIAL, WINDOW_MAX,
};
use crate::stats::Drop;
use crate::time::Time;

/// Held slots a flow whose socket is full may keep before they move to the backlog at once.
const HELD_SLOTS_MAX: usize = 2 * SEND_SLOTS;

/// State of the direction. Sequence numbers are the guest's.
#[derive(Debug)]
pub(super) struct ToHost {
    /// Next byte expected (FIN not counted).
    next: u32,
    /// Bytes before this one are the host kernel's or in the backlog: they may be acknowledged.
    taken: u32,
    /// The ACK number the guest was told last, and the furthest right edge it was told ever.
    acked: u32,
    edge: u32,
    /// What the flow may take beyond `taken`, in bytes, when its backlog is empty.
    window: u32,
    /// Bytes taken by the host since `window` last grew.
    grown: u32,
    /// Payload of the longest segment so far: 64 KiB from a guest that leaves cutting to the device.
    longest: u32,
    /// Our window scale, when the guest offered its own.
    scale: Option<u8>,
    /// In sequence, in the slots they came in, not taken.
    held: Chain,
    /// Taken, in small slots; sent before `held`.
    backlog: Chain,
    /// The backlog's last block, filling.
    fill: Option<Slot>,
    /// What the send under way was taken from.
    flight: Flight,
    /// The socket is full.
    blocked: bool,
    /// [`Action::TcpPollOut`] is under way.
    polling: bool,
    fin: Fin,
    /// Bytes before `mark.0` are held since `mark.1`.
    mark: Option<(u32, Time)>,
    /// Not in sequence.
    early: Early,
}

/// The direction of a connection that goes to another worker.
#[derive(Debug)]
pub(super) struct Packed {
    next: u32,
    acked: u32,
    edge: u32,
    window: u32,
    grown: u32,
    longest: u32,
    scale: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flight {
    None,
    Held,
    Backlog,
}

/// The guest's FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    /// Not seen.
    No,
    /// Seen, in sequence; data before it is still to be sent.
    Seen,
    /// Passed on.
    Shut,
}

impl ToHost {
    pub(super) fn new(next: u32, scale: Option<u8>) -> Self {
        Self {
            next,
            taken: next,
            acked: next,
            edge: next.wrapping_add(WINDOW_INITIAL),
            window: WINDOW_INITIAL,
            grown: 0,
            longest: 0,
            scale,
            held: Chain::new(),
            backlog: Chain::new(),
            fill: None,
            flight: Flight::None,
            blocked: false,
            polling: false,
            fin: Fin::No,
            mark: None,
            early: Early::new(),
        }
    }

    /// Whether the socket takes bytes, and the guest goes on sending them one after the other.
    pub(super) fn may_migrate(&self) -> bool {
        self.fin == Fin::No
            && !self.blocked
            && self.backlog.is_empty()
            && self.fill.is_none()
            && self.early.is_empty()
    }

    /// See [`Parcel`](super::Parcel). Whatever has come has been sent.
    pub(super) fn pack(&self) -> Option<Packed> {
        if self.flight != Flight::None || self.polling || !self.held.is_empty() {
            return None;
        }
        let Self { next, acked, edge, window, grown, longest, scale, .. } = *self;
        Some(Packed { next, acked, edge, window, grown, longest, scale })
    }

    /// The opposite.
    pub(super) fn unpack(packed: &Packed) -> Self {
        let Packed { next, acked, edge, window, grown, longest, scale } = *packed;
        Self { acked, edge, window, grown, longest, ..Self::new(next, scale) }
    }

    /// Next sequence number expected from the guest, its FIN counted once seen.
    pub(super) fn ack_number_received(&self) -> u32 {
        self.next.wrapping_add(u32::from(self.fin != Fin::No))
    }

    /// What may be acknowledged now. The FIN with the last byte before it, be that in the backlog only: a
    /// kernel gives up on a FIN that is not acknowledged within two minutes.
    pub(super) fn ack_number(&self) -> u32 {
        self.taken.wrapping_add(u32::from(self.all_taken()))
    }

    /// Whether the guest has sent its FIN, and all before it is taken.
    pub(super) fn all_taken(&self) -> bool {
        self.fin != Fin::No && self.taken == self.next
    }

    pub(super) fn scale(&self) -> Option<u8> {
        self.scale
    }

    /// The ACK number the guest was told last.
    pub(super) fn acked(&self) -> u32 {
        self.acked
    }

    /// Right edge of the window the guest knows.
    pub(super) fn edge(&self) -> u32 {
        self.edge
    }

    /// The guest's SYN, while no data has come.
    pub(super) fn first_seq(&self) -> u32 {
        self.next.wrapping_sub(1)
    }

    /// Whether the guest's FIN has been passed on.
    pub(super) fn finished(&self) -> bool {
        self.fin == Fin::Shut
    }

    /// Whether the guest has sent its FIN.
    pub(super) fn fin_seen(&self) -> bool {
        self.fin != Fin::No
    }

    /// Takes a segment's bytes, which begin at [`ToHost::ack_number_received`], and its FIN.
    pub(super) fn accept(&mut self, ctx: &mut Ctx<'_>, slot: Slot, fin: bool) {
        self.hold(ctx, slot);
        while let Some(slot) = self.early.take(self.next) {
            self.hold(ctx, slot);
        }
        if fin || self.early.take_fin(self.next) {
            self.fin = Fin::Seen;
            self.early.clear();
        }
    }

    /// Keeps a segment that begins at `seq`, beyond a gap, if there is room.
    pub(super) fn accept_early(&mut self, ctx: &mut Ctx<'_>, seq: u32, mut slot: Slot, fin: bool) {
        let room = self.edge.wrapping_sub(seq) as i32;
        let whole = slot.len() as i64 <= i64::from(room);
        if slot.is_empty() && whole && fin {
            return self.early.note_fin(seq);
        }
        slot.truncate(room.max(0) as usize);
        let plenty = ctx.pools.large.available() > SLOTS_MAX / 2;
        if slot.is_empty()
            || self.fin != Fin::No
            || !plenty
            || !self.early.keep(seq, slot, fin && whole, ctx.now)
        {
            ctx.stats.drop(Drop::OutOfWindow);
        }
    }

    fn hold(&mut self, ctx: &Ctx<'_>, slot: Slot) {
        let len = slot.len() as u32;
        self.longest = self.longest.max(len);
        if len > 0 {
            self.held.push_back(slot);
            self.next = self.next.wrapping_add(len);
            if self.mark.is_none() {
                self.mark = Some((self.next, ctx.now));
            }
        }
    }

    fn backlog_bytes(&self) -> u32 {
        self.backlog.bytes() + self.fill.as_ref().map_or(0, |s| s.len() as u32)
    }

    /// Sends what can be sent; passes the FIN on when all before it is gone.
    pub(super) fn serve(&mut self, ctx: &mut Ctx<'_>, id: FlowId) {
        if self.blocked {
            // At once, where many blocked flows hold a little each and the large slots get short.
            let short = ctx.pools.large.available() < SLOTS_MAX / 2 && !self.held.is_empty();
            if short || self.held.slots() > HELD_SLOTS_MAX {
                self.compact(ctx);
            }
        }
        if self.blocked && !self.polling {
            self.polling = true;
            ask(ctx, Action::TcpPollOut { flow: id });
        }
        if self.flight != Flight::None || self.blocked {
            return;
        }
        if self.backlog.is_empty()
            && let Some(fill) = self.fill.take()
        {
            self.backlog.push_back(fill);
        }
        let source = if self.backlog.is_empty() { Flight::Held } else { Flight::Backlog };
        let chain = take(if source == Flight::Held { &mut self.held } else { &mut self.backlog });
        if !chain.is_empty() {
            self.flight = source;
            ask(ctx, Action::TcpSend { flow: id, chain });
        } else if self.fin == Fin::Seen {
            self.fin = Fin::Shut;
            ask(ctx, Action::TcpShutdown { flow: id });
        }
    }

    /// A send has ended. `Err`: the connection is gone.
    fn sent(
        &mut self,
        ctx: &mut Ctx<'_>,
        mut chain: Chain,
        result: Result<u32, Errno>,
    ) -> Result<(), Errno> {
        let source = std::mem::replace(&mut self.flight, Flight::None);
        let n = result?;
        let whole = n >= chain.bytes();
        chain.advance(n);
        ctx.stats.tcp_to_host += u64::from(n);
        if source == Flight::Held {
            self.taken = self.taken.wrapping_add(n);
            chain.append(&mut self.held);
            self.held = chain;
            if self.mark.is_some_and(|(seq, _)| !before(self.taken, seq)) {
                self.mark = (!self.held.is_empty()).then_some((self.next, ctx.now));
            }
        } else {
            chain.append(&mut self.backlog);
            self.backlog = chain;
        }
        if whole {
            // The window grows as slow start does, as long as the host keeps up.
            self.grown = self.grown.saturating_add(n);
            let most = WINDOW_MAX.min(self.longest.saturating_mul(WINDOW_FRAMES));
            if self.grown >= self.window / 2 && self.window < most && self.scale.is_some() {
                self.window = (self.window * 2).min(most);
                self.grown = 0;
            }
        } else {
            self.blocked = true;
        }
        Ok(())
    }

    /// How much more the guest may be told to have arrived than it was.
    pub(super) fn unacked(&self) -> u32 {
        self.ack_number().wrapping_sub(self.acked)
    }

    /// Whether bytes wait for the host.
    pub(super) fn waits(&self) -> bool {
        self.blocked
    }

    /// Whether an ACK says something new that the guest should know now.
    pub(super) fn ack_due(&self, ctx: &Ctx<'_>, mss: u16) -> bool {
        if self.ack_number() != self.acked {
            return true;
        }
        // A window update (RFC 9293 section 3.8.6.2.2): worth a segment, when little is left.
        let new = self.wanted_edge(ctx).wrapping_sub(self.edge) as i32;
        let left = self.edge.wrapping_sub(self.next) as i32;
        new > 0
            && left < (self.window / 2) as i32
            && new >= (self.window / 2).min(2 * u32::from(mss)) as i32
    }

    /// The right edge as the state of flow and pools allows; may lie before the one promised.
    fn wanted_edge(&self, ctx: &Ctx<'_>) -> u32 {
        // As the backlogs near their bound, windows shrink before anything is dropped.
        let free = ctx.pools.small.available();
        let cap = match free {
            f if f > BLOCKS_MAX / 4 => WINDOW_MAX,
            f if f > BLOCKS_MAX / 8 => 16 << 10,
            _ => 2 << 10,
        };
        let room = self.window.min(cap).saturating_sub(self.backlog_bytes());
        self.taken.wrapping_add(room)
    }

    /// The window field of a segment that carries [`ToHost::ack_number`]; notes both as told.
    pub(super) fn advertise(&mut self, ctx: &Ctx<'_>) -> u16 {
        let ack = self.ack_number();
        let shift = u32::from(self.scale.unwrap_or(0));
        let wanted = self.wanted_edge(ctx).wrapping_sub(ack) as i32;
        let promised = (self.edge.wrapping_sub(ack) as i32).max(0) as u32;
        // The edge never retreats (RFC 9293 section 3.8.6) but by the rounding of the scale: rounded
        // up, it would creep on with each small segment, and a stuck flow's backlog grow for ever.
        // What was told once is accepted all the same (RFC 7323 section 2.4).
        let units = ((wanted.max(0) as u32).max(promised) >> shift).min(u32::from(u16::MAX));
        let told = ack.wrapping_add(units << shift);
        if before(self.edge, told) {
            self.edge = told;
        }
        self.acked = ack;
        units as u16
    }

    /// ACK number and window field as the guest was told last.
    pub(super) fn told(&self) -> (u32, u16) {
        let window = self.edge.wrapping_sub(self.acked) >> self.scale.unwrap_or(0);
        (self.acked, window.min(u32::from(u16::MAX)) as u16)
    }

    /// Moves what has been held for too long to the backlog.
    pub(super) fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) {
        if self.held_deadline().is_some_and(|at| at <= ctx.now) {
            self.compact(ctx);
        }
        if self.early.deadline().is_some_and(|at| at <= ctx.now) {
            for _ in 0..self.early.slots() {
                ctx.stats.drop(Drop::OutOfWindow);
            }
            self.early.clear();
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        [self.held_deadline(), self.early.deadline()].into_iter().flatten().min()
    }

    fn held_deadline(&self) -> Option<Time> {
        // A send under way ends within the turn.
        let (_, since) = self.mark?;
        (self.flight == Flight::None && self.blocked).then_some(since + STALL)
    }

    /// Copies all held bytes to the backlog, which makes them taken.
    fn compact(&mut self, ctx: &mut Ctx<'_>) {
        if self.flight == Flight::Held {
            return;
        }
        self.window = (self.window / 2).max(WINDOW_INITIAL);
        self.grown = 0;
        self.mark = None;
        while let Some(slot) = self.held.pop_front() {
            let mut bytes = slot.bytes();
            while !bytes.is_empty() {
                let Some(mut fill) = self.fill.take().or_else(|| {
                    let mut block = ctx.block()?;
                    block.set_range(0, 0);
                    Some(block)
                }) else {
                    return self.give_up_held(ctx, bytes.len() as u32);
                };
                let (off, len) = (fill.offset(), fill.len());
                let n = bytes.len().min(fill.capacity() - off - len);
                fill.set_range(off, len + n);
                fill.bytes_mut()[len..].copy_from_slice(&bytes[..n]);
                if off + len + n == fill.capacity() {
                    self.backlog.push_back(fill);
                } else {
                    self.fill = Some(fill);
                }
                bytes = &bytes[n..];
                self.taken = self.taken.wrapping_add(n as u32);
                ctx.stats.copied_bytes += n as u64;
            }
        }
    }

    /// All backlogs are full: what cannot be taken was never here, and the guest sends it again.
    fn give_up_held(&mut self, ctx: &mut Ctx<'_>, rest: u32) {
        ctx.stats.drop(Drop::BacklogFull);
        let lost = rest + self.held.bytes();
        self.held = Chain::new();
        self.next = self.next.wrapping_sub(lost);
        if self.fin == Fin::Seen {
            self.fin = Fin::No;
        }
    }
}

/// Takes up to [`SEND_SLOTS`] slots from the front.
fn take(chain: &mut Chain) -> Chain {
    if chain.slots() <= SEND_SLOTS {
        return std::mem::take(chain);
    }
    let mut part = Chain::new();
    while part.slots() < SEND_SLOTS
        && let Some(slot) = chain.pop_front()
    {
        part.push_back(slot);
    }
    part
}

impl TcpFlow {
    /// A send has ended.
    pub fn handle_sent(&mut self, ctx: &mut Ctx<'_>, chain: Chain, result: Result<u32, Errno>) {
        self.active = ctx.now;
        self.carried = self.carried.saturating_add(result.unwrap_or(0));
        if self.to_host.sent(ctx, chain, result).is_err() {
            self.phase = Phase::Ended(End::ResetGuest);
        }
    }

    /// The socket takes bytes again.
    pub fn handle_writable(&mut self) {
        self.to_host.blocked = false;
        self.to_host.polling = false;
    }
}
