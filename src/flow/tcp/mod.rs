//! A TCP connection, relayed.
//!
//! # Theory of operation
//!
//! The guest's kernel and the host's kernel each run a whole TCP. Between them stands this relay, which
//! does towards the guest the least that is still TCP, and leaves the hard half (congestion,
//! loss, the network) to the host socket. Towards the guest there is a wire that is memory: it hardly
//! ever loses and never congests, so there is no congestion window, no SACK and no timestamp; there
//! are sequence numbers, windows, retransmission for the rare loss, and the four ways to end.
//!
//! **Guest to host** (`arrival`, `host`). A segment in sequence is *held*, in the slot the TAP read filled. One send
//! is under way at a time; it takes up to [`SEND_SLOTS`] held slots. What the host's kernel has taken is
//! *taken*, and acknowledged, once per turn. When the socket is full, held bytes wait; those that have
//! waited for [`STALL`] are copied to the *backlog* (small slots) and are taken then, so that neither the guest's
//! timer fires nor the large slots are pinned. The window is what the flow may still take: it grows with
//! use, shrinks by the backlog, and its right edge never retreats. Bytes beyond a gap are
//! answered with a duplicate ACK, and kept for a while (`early`): frames that are handed over between workers come late.
//!
//! **Host to guest** (`guest`, `retained`). A receive is asked for only as large as the guest's window has room, so
//! what arrives can be written at once, headers in front, cut by the guest's kernel (GSO). The slot comes back
//! from the write and is *retained* until the guest acknowledges it; small ones, and those that wait for
//! [`STALL`], move to small slots. Three duplicate ACKs or the timer send the oldest again. At zero window
//! nothing is received, but the socket is watched for errors, and the guest is probed.
//!
//! **From outside** (`open`): a connection that a host socket has accepted is opened towards the guest. Nothing is
//! received from that socket before the guest has agreed.
//!
//! **Serving.** `handle_*` only note what happened. [`TcpFlow::serve`], once per flow and turn, looks
//! at the whole state and does what is due, in a fixed order: end, send, shut, receive, acknowledge.
//!
//! **Another worker** (`parcel`): a connection that carries much may go to a worker that has less to do.
//!
//! **Ends** (`close`): FIN is carried each way after the data before it, RST at once; see there.

mod arrival;
mod close;
mod early;
mod guest;
mod open;
mod host;
mod parcel;
mod retained;
mod segment;

use smoltcp::wire::TcpControl;

use super::icmp::{self, Unreachable};
use super::key::FlowKey;
use super::openings::Loan;
use super::{Action, Ctx, Errno, FlowId, Next};
use crate::frame::Mac;
use crate::limits::{
    ACK_DELAY, BULK_BYTES, BULK_WITHIN, RETRIES_MAX, SYN_ACK_RETRIES_MAX, SYN_RETRIES_MAX,
    TCP_HALF_IDLE, TCP_IDLE, TCP_PROBE_GAP, TCP_PROBES_MAX, WINDOW_INITIAL, WINDOW_SCALE,
};
use crate::time::Time;
use guest::ToGuest;
use host::ToHost;
pub use parcel::Parcel;
use segment::Header;
pub use segment::{Segment, reset_unknown};

#[expect(unused_imports, reason = "named in the theory above")]
use crate::limits::{SEND_SLOTS, STALL};

/// One connection.
#[derive(Debug)]
pub struct TcpFlow {
    /// Whether the flow waits to be served in this turn. Kept by the stack.
    pub dirty: bool,
    phase: Phase,
    mac: Mac,
    /// Payload bytes of one segment to the guest: its MSS, or what our MTU allows.
    mss: u16,
    /// Connect attempts that failed, for the DNS forwarder.
    tries: u8,
    /// An ACK is owed even if it says nothing new.
    ack_owed: bool,
    /// An ACK that says something new waits since then for data to go with.
    late_since: Option<Time>,
    /// Whether the flow waits in the stack's queue of late ACKs. Kept by the stack.
    pub late: bool,
    /// The host takes its time to answer: ACKs do not wait for it.
    slow: bool,
    /// Whether the stack counts the flow among those with data on its way to the host.
    pub undrained: bool,
    /// A credit that goes back when the connection works. Kept by the stack.
    pub loan: Option<Loan>,
    /// Whether the handshake with the guest was ever over.
    opened: bool,
    /// Whether the host's end has refused it.
    refused: bool,
    /// It is about to go to another worker, and asks nothing more of its socket.
    migrating: bool,
    /// It has come from another worker, whose queue the guest sends to yet.
    steers: bool,
    /// Payload bytes carried since then, both ways.
    carried: u32,
    carried_since: Time,
    to_host: ToHost,
    to_guest: ToGuest,
    /// When the guest was last heard or data last came from the host.
    active: Time,
    /// Keep-alive or window probes since the guest was last heard.
    probes: u8,
    /// When to probe next, while probing.
    probe_at: Option<Time>,
}

/// Where the connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host socket connects; the guest has heard nothing.
    Connecting,
    /// The host socket has accepted; where in the guest's network the SYN goes is not known yet.
    Asking,
    /// Our SYN is (to be) sent.
    Syn {
        /// It is sent, and waits for the guest's SYN-ACK.
        sent: bool,
    },
    /// Connected; our SYN-ACK is (to be) sent.
    SynAck {
        /// It is sent, and waits for the guest's ACK.
        sent: bool,
    },
    /// Both sides are connected.
    Open,
    /// The guest has reset, after its FIN was acknowledged: nobody is there to hear of the host, but
    /// the host shall have what is left of the guest's bytes.
    Gone,
    /// Over: how, [`TcpFlow::serve`] has yet to carry out.
    Ended(End),
}

/// How a connection ends other than by two FINs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The guest gets a RST (the host reset, failed, or was refused; or the guest stopped answering).
    ResetGuest,
    /// The guest has reset, or shall find out itself: it gets nothing.
    Silent,
    /// The host cannot be reached: the guest gets an ICMP error.
    Unreachable(Unreachable),
}

impl TcpFlow {
    /// A flow for a guest's SYN. The caller emits [`Action::TcpConnect`].
    pub fn new(
        ctx: &mut Ctx<'_>,
        key: &FlowKey,
        mac: Mac,
        syn: &Segment,
        secret: &[u64; 2],
    ) -> Self {
        let iss = initial_number(ctx, key, secret);
        Self {
            mac,
            mss: segment_size(ctx, key, syn),
            to_host: ToHost::new(syn.seq.wrapping_add(1), syn.scale.map(|_| WINDOW_SCALE)),
            to_guest: ToGuest::new(iss, syn.scale.unwrap_or(0), syn),
            ..Self::blank(ctx.now)
        }
    }

    /// One of which nothing is known.
    fn blank(now: Time) -> Self {
        Self {
            dirty: false,
            phase: Phase::Connecting,
            mac: [0; 6],
            mss: 0,
            tries: 0,
            ack_owed: false,
            late_since: None,
            late: false,
            slow: false,
            undrained: false,
            loan: None,
            opened: false,
            refused: false,
            migrating: false,
            steers: false,
            carried: 0,
            carried_since: now,
            to_host: ToHost::new(0, None),
            to_guest: ToGuest::opening(0),
            active: now,
            probes: 0,
            probe_at: None,
        }
    }

    /// Whether the host socket still connects, and the guest still wants it.
    pub fn is_connecting(&self) -> bool {
        self.phase == Phase::Connecting
    }

    /// Whether the handshake with the guest is over, and perhaps the connection by now.
    pub fn has_opened(&self) -> bool {
        self.opened
    }

    /// Whether there was nobody to connect to.
    pub fn was_refused(&self) -> bool {
        self.refused
    }

    /// Connect attempts so far that failed; counts one more.
    pub fn dns_tries(&mut self) -> u8 {
        self.tries = self.tries.saturating_add(1);
        self.tries
    }

    /// A connect has ended.
    pub fn handle_connected(&mut self, ctx: &mut Ctx<'_>, result: Result<(), Errno>) {
        if self.phase != Phase::Connecting {
            return;
        }
        self.active = ctx.now;
        self.phase = match result {
            Ok(()) => Phase::SynAck { sent: false },
            Err(errno) => {
                self.refused = !close::is_shortage(errno);
                Phase::Ended(close::after_failed_connect(errno))
            }
        };
    }

    /// Whether it has carried much in a short time; asks once for each [`BULK_BYTES`].
    pub fn note_bulk(&mut self, now: Time) -> bool {
        if self.carried < BULK_BYTES {
            return false;
        }
        self.carried = 0;
        let since = std::mem::replace(&mut self.carried_since, now);
        now - since <= BULK_WITHIN
    }

    /// Does all that is due. The one place that emits actions for the flow.
    pub fn serve(&mut self, ctx: &mut Ctx<'_>, id: FlowId, key: &FlowKey) -> Next {
        if self.migrating && self.phase == Phase::Open {
            // What the guest sends goes on, or it would fill the slots; and what the socket has brought.
            self.to_host.serve(ctx, id);
            self.to_guest.write(ctx, id, key, self.mac, self.mss, &mut self.to_host);
            self.ack_owed = true;
            self.late_since = None;
            return Next::Live(self.deadline());
        }
        match self.phase {
            Phase::Connecting | Phase::Asking => return Next::Live(None),
            Phase::Ended(end) => {
                self.announce(ctx, key, end);
                // A guest that had said all it had to say is not cut off: its last bytes may still
                // be in the kernel's send buffer, which a reset would empty.
                return Next::Close { reset: !self.to_host.finished() };
            }
            Phase::Gone => {
                self.to_host.serve(ctx, id);
                if self.to_host.finished() {
                    return Next::Close { reset: false };
                }
                return Next::Live(self.deadline());
            }
            Phase::SynAck { sent: false } => {
                self.send_syn_ack(ctx, key);
                self.phase = Phase::SynAck { sent: true };
                self.to_guest.start_timer(ctx.now);
            }
            Phase::Syn { sent: false } => {
                self.send_syn(ctx, key);
                self.phase = Phase::Syn { sent: true };
                self.to_guest.start_timer(ctx.now);
            }
            Phase::SynAck { sent: true } | Phase::Syn { sent: true } => {}
            Phase::Open => {
                if std::mem::take(&mut self.steers) {
                    self.steer(ctx, key);
                }
                self.to_host.serve(ctx, id);
                self.to_guest.write(ctx, id, key, self.mac, self.mss, &mut self.to_host);
                self.to_guest.ask(ctx, id, key, self.mss);
                if self.to_guest.wants_fin() {
                    self.send_fin(ctx, key);
                }
            }
        }
        if self.phase == Phase::Open && self.ack_now(ctx) {
            self.send_ack(ctx, key, self.to_guest.next());
        }
        if self.to_host.finished() && self.to_guest.finished() {
            return Next::Close { reset: false };
        }
        Next::Live(self.deadline())
    }

    /// Whether an ACK is to leave by itself now. One for little data waits for the answer to carry it: half the
    /// frames of a short conversation are such ACKs.
    fn ack_now(&mut self, ctx: &Ctx<'_>) -> bool {
        let new = self.to_host.unacked();
        if new == 0 {
            self.late_since = None;
        }
        if self.ack_owed || !self.to_host.ack_due(ctx, self.mss) {
            return self.ack_owed;
        }
        // A window update alone, a stream, a guest that is told late as it is, or a host that has no more to say.
        let alone = new == 0 || self.to_host.waits() || self.to_guest.fin_sent();
        if alone || self.slow || new >= u32::from(self.mss) {
            return true;
        }
        let since = *self.late_since.get_or_insert(ctx.now);
        let over = since + ACK_DELAY <= ctx.now;
        self.slow = over;
        over
    }

    /// Since when an ACK waits for data to go with; it must not beyond [`ACK_DELAY`].
    pub fn ack_waits(&self) -> Option<Time> {
        self.late_since
    }

    /// Time has passed: retransmits, probes, moves what has waited to small slots.
    pub fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) {
        if matches!(self.phase, Phase::Connecting | Phase::Asking | Phase::Ended(_)) {
            return;
        }
        self.to_host.handle_timeout(ctx);
        if self.phase == Phase::Gone {
            if self.quiet_deadline().is_some_and(|at| at <= ctx.now) {
                self.phase = Phase::Ended(End::Silent);
            }
            return;
        }
        // A handshake that nobody finishes is given up sooner.
        let most = match self.phase {
            Phase::Syn { .. } => SYN_RETRIES_MAX,
            Phase::SynAck { .. } => SYN_ACK_RETRIES_MAX,
            _ => RETRIES_MAX,
        };
        if self.to_guest.handle_timeout(ctx, most) == guest::Timeout::GiveUp {
            let unheard = matches!(self.phase, Phase::Syn { .. });
            self.phase = Phase::Ended(if unheard { End::Silent } else { End::ResetGuest });
            return;
        }
        if let Phase::SynAck { sent } | Phase::Syn { sent } = &mut self.phase {
            if self.to_guest.take_resend() {
                *sent = false;
            }
            return;
        }
        if self.quiet_deadline().is_some_and(|at| at <= ctx.now) {
            if self.probes >= TCP_PROBES_MAX {
                self.phase = Phase::Ended(End::ResetGuest);
                return;
            }
            // An old sequence number: any living TCP answers with its ACK and window (RFC 9293 3.8.4).
            self.probes += 1;
            self.to_guest.probe = true;
            self.ack_owed = true;
            let gap = if self.to_guest.window_closed() {
                self.to_guest.next_probe_gap()
            } else {
                TCP_PROBE_GAP
            };
            self.probe_at = Some(ctx.now + gap);
        }
    }

    /// Whether nothing is left on its way from the guest to the host.
    pub fn drained(&self) -> bool {
        match self.phase {
            Phase::Connecting | Phase::Asking | Phase::Syn { .. } | Phase::Ended(_) => true,
            Phase::SynAck { .. } => false,
            Phase::Open | Phase::Gone => self.to_host.finished(),
        }
    }

    fn deadline(&self) -> Option<Time> {
        [self.to_host.deadline(), self.to_guest.deadline(), self.quiet_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// When to ask a guest that says nothing whether it is still there, or whether its window is open.
    /// Or, of one that is gone, when a host that takes nothing of what is left is given up.
    fn quiet_deadline(&self) -> Option<Time> {
        if self.phase == Phase::Gone {
            return Some(self.active + TCP_IDLE);
        }
        if self.phase != Phase::Open || self.to_guest.outstanding() {
            return None;
        }
        if let Some(at) = self.probe_at {
            return Some(at);
        }
        if self.to_guest.window_closed() {
            return Some(self.active + self.to_guest.probe_gap());
        }
        let half = self.to_host.finished() || self.to_guest.fin_sent();
        Some(self.active + if half { TCP_HALF_IDLE } else { TCP_IDLE })
    }

    /// The guest lives.
    fn heard(&mut self, now: Time) {
        self.active = now;
        self.probes = 0;
        self.probe_at = None;
    }

    fn announce(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey, end: End) {
        match end {
            End::Silent => {}
            End::ResetGuest => {
                let header = Header {
                    control: TcpControl::Rst,
                    seq: self.to_guest.next(),
                    ack: Some(self.to_host.ack_number_received()),
                    window: 0,
                    mss: None,
                    scale: None,
                };
                self.send(ctx, key, &header);
            }
            End::Unreachable(why) => {
                let (guest, to) = (key.guest(), key.host());
                let mut l4 = [0; 8];
                l4[..2].copy_from_slice(&guest.port().to_be_bytes());
                l4[2..4].copy_from_slice(&to.port().to_be_bytes());
                l4[4..].copy_from_slice(&self.to_host.first_seq().to_be_bytes());
                icmp::about(ctx, self.mac, guest, to, 6, &l4, None, why);
            }
        }
    }

    fn send_syn_ack(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey) {
        let header = Header {
            control: TcpControl::Syn,
            seq: self.to_guest.next().wrapping_sub(1),
            ack: Some(self.to_host.ack_number()),
            // The window of a SYN is never scaled (RFC 7323 section 2.2).
            window: WINDOW_INITIAL as u16,
            mss: Some(largest_segment(ctx, key)),
            scale: self.to_host.scale(),
        };
        self.send(ctx, key, &header);
    }

    fn send_fin(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey) {
        let seq = self.to_guest.take_fin(ctx.now);
        let header = Header {
            control: TcpControl::Fin,
            seq,
            ack: Some(self.to_host.ack_number()),
            window: self.to_host.advertise(ctx),
            mss: None,
            scale: None,
        };
        self.ack_owed = false;
        self.send(ctx, key, &header);
    }

    fn send_ack(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey, seq: u32) {
        self.ack_owed = false;
        let seq = if std::mem::take(&mut self.to_guest.probe) { seq.wrapping_sub(1) } else { seq };
        let header = Header {
            control: TcpControl::None,
            seq,
            ack: Some(self.to_host.ack_number()),
            window: self.to_host.advertise(ctx),
            mss: None,
            scale: None,
        };
        self.send(ctx, key, &header);
    }

    /// A frame for the guest's kernel to learn our queue from before it sends any more data: it hands a frame to TCP first, which
    /// answers in the same breath, and only then notes by which queue it came (`tun_get_user`, drivers/net/tun.c). An
    /// ACK, even an old one, would have it send what it still may. A segment before the window, as of a keep-alive, is
    /// answered by an ACK and no more (RFC 9293 section 3.10.7.4).
    fn steer(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey) {
        let (ack, window) = self.to_host.told();
        let header = Header {
            control: TcpControl::None,
            seq: self.to_guest.unacknowledged().wrapping_sub(1),
            ack: Some(ack),
            window,
            mss: None,
            scale: None,
        };
        self.send(ctx, key, &header);
    }

    fn send(&mut self, ctx: &mut Ctx<'_>, key: &FlowKey, header: &Header) {
        self.late_since = None;
        let Some(mut slot) = ctx.control_slot() else { return };
        if segment::emit(&mut slot, ctx.net.gateway_mac, self.mac, key, header, u16::MAX) {
            ctx.write(slot);
        }
    }
}

/// Our first sequence number of a connection (RFC 6528): a clock of 4 us, and a keyed hash.
fn initial_number(ctx: &Ctx<'_>, key: &FlowKey, secret: &[u64; 2]) -> u32 {
    key.hash(&[secret[1].rotate_left(23), secret[0]])
        .wrapping_add((ctx.now.0 as u32).wrapping_mul(250))
}

/// The largest payload of a segment that leaves room for headers in the MTU.
fn largest_segment(ctx: &Ctx<'_>, key: &FlowKey) -> u16 {
    ctx.net.mtu.saturating_sub(if key.guest().is_ipv4() { 40 } else { 60 })
}

/// Payload bytes of a segment to a guest that has sent this SYN.
fn segment_size(ctx: &Ctx<'_>, key: &FlowKey, syn: &Segment) -> u16 {
    // RFC 9293 section 3.7.1: 536 or 1220 when the option is missing.
    let theirs = syn.mss.unwrap_or_else(|| if key.guest().is_ipv4() { 536 } else { 1220 });
    // 28 is what the smallest MTU of IPv4 (68) leaves.
    theirs.min(largest_segment(ctx, key)).max(28)
}

/// Asks the worker for something on a flow's behalf.
fn ask(ctx: &mut Ctx<'_>, action: Action) {
    ctx.actions.push(action);
}
