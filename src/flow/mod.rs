//! One conversation each. Pure.
//!
//! # The seam
//!
//! The core learns of the world by [`Event`]s and changes it by [`Action`]s. Buffers cross with them
//! by value. A flow is named by its [`FlowId`] on both sides: the worker keeps the flow's host socket
//! under the same number. The life of that socket:
//!
//! 1. The core inserts the flow and emits `TcpConnect` or `DgramOpen`; the worker makes the socket. One that comes from
//!    outside is there before its flow: accepted, or bound to a forwarded port.
//! 2. Actions and events for it, in any number.
//! 3. The core emits `Close` and forgets the key (a new flow may take it), but keeps the entry: the
//!    worker cancels what is in flight, waits for it, closes the descriptor and answers `Closed`.
//!    Until then it may still deliver events of the dying socket, which the core drops.
//! 4. On `Closed` the entry is free and its generation moves on: nothing can speak of it any more.
//!
//! **Invariant:** nothing in this folder holds a descriptor, knows the time but as an argument, or
//! allocates per packet. "Guest" is the namespace side, "host" the side with the sockets.
#![forbid(unsafe_code)]

mod actions;
pub mod delivery;
pub mod forward;
pub mod icmp;
pub mod idle;
pub mod key;
pub mod lengths;
pub mod local;
pub mod peers;
pub mod ping;
pub mod openings;
mod places;
pub mod table;
pub mod tcp;
#[cfg(test)]
pub(crate) mod testing;
pub mod timers;
pub mod udp;

use std::net::{IpAddr, SocketAddr};

use crate::arena::{Chain, Pools, Slot};
use crate::config::NetConfig;
use crate::frame::Mac;
use crate::limits::{BLOCKS_RESERVED, HEADROOM};
use crate::stats::Stats;
use crate::time::Time;
use local::Local;

pub use actions::{Actions, Place};

/// A flow's name: its place in the table, and the place's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// Place in the slab; also the worker's index of the flow's socket. Below `FLOWS_MAX` (24 bits).
    pub index: u32,
    /// Moves on each time the place is freed.
    pub generation: u32,
}

/// An errno of the host's kernel, positive (errno(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// What the core wants done. The worker carries each out; none may be lost.
#[derive(Debug)]
pub enum Action {
    /// Write the slot's range, a frame with virtio header, to the guest. With `keep` the slot comes
    /// back by [`Event::TapWritten`]; otherwise it is free afterwards.
    TapWrite {
        /// The frame.
        slot: Slot,
        /// Flow that wants the slot back.
        keep: Option<FlowId>,
    },
    /// Write one frame to the guest from several slots: the range of the first begins with the virtio header.
    /// Only a TAP with that header gets these.
    TapRun {
        /// A run of datagrams, each in a slot of its own.
        chain: Chain,
    },
    /// Make a TCP socket and connect it. Answer: [`Event::TcpConnected`].
    TcpConnect {
        /// The flow.
        flow: FlowId,
        /// Where to.
        to: SocketAddr,
    },
    /// Send as much of the chain as the socket takes now. One at a time per flow.
    /// Answer: [`Event::TcpSent`], with the chain.
    TcpSend {
        /// The flow.
        flow: FlowId,
        /// At most [`crate::limits::SEND_SLOTS`] slots.
        chain: Chain,
    },
    /// Say [`Event::TcpWritable`] when the socket takes bytes again.
    TcpPollOut {
        /// The flow.
        flow: FlowId,
    },
    /// Receive at most `max` bytes. One at a time per flow. Answer: [`Event::TcpReceived`].
    TcpRecv {
        /// The flow.
        flow: FlowId,
        /// At least 1.
        max: u32,
    },
    /// Receive what the socket holds at this moment, for a flow that was told of `more`: up to `frames`
    /// slots of at most `frame` bytes. Answer: [`Event::TcpReceived`], one for each slot, all in one turn.
    TcpRecvMany {
        /// The flow.
        flow: FlowId,
        /// Bytes for one slot; at least 1.
        frame: u32,
        /// From 2 to [`crate::limits::RECV_SLOTS`].
        frames: u32,
    },
    /// Say [`Event::TcpHangup`] when the connection fails, while nothing is received because the
    /// guest's window is closed or the host's stream is over. Stays until then or until the flow closes; one at a time.
    TcpPollError {
        /// The flow.
        flow: FlowId,
    },
    /// `shutdown(SHUT_WR)`: the guest has sent its FIN and all before it is taken.
    TcpShutdown {
        /// The flow.
        flow: FlowId,
    },
    /// Make a datagram socket. No answer; failure comes as [`Event::DgramFailed`].
    DgramOpen {
        /// The flow.
        flow: FlowId,
        /// What kind.
        kind: DgramKind,
    },
    /// Send the slot's range as one datagram, or as a run of them. Answer: [`Event::DgramSent`] only
    /// when the kernel refuses it.
    DgramSend {
        /// The flow.
        flow: FlowId,
        /// Payload (for ping: the whole ICMP message).
        slot: Slot,
        /// Where to.
        to: SocketAddr,
        /// Header fields carried over.
        opts: SendOpts,
    },
    /// End the flow's socket; with `reset`, a TCP peer gets a RST. Answer: [`Event::Closed`].
    Close {
        /// The flow.
        flow: FlowId,
        /// RST instead of FIN.
        reset: bool,
    },
    /// Give a frame to another worker, which takes it by `Stack::handle_handed`: the flow is there, or is
    /// to be. No answer; a worker that is behind loses it (counted).
    HandOver {
        /// Which.
        worker: u8,
        /// The frame, as it came.
        slot: Slot,
        /// What it does not say itself.
        about: Handed,
    },
    /// Bring a TCP socket to rest: cancel what is in flight on it, but for a send, which ends by itself. What is cancelled is
    /// answered by the events of what finds nothing (a receive: [`Received::NoBuffer`], a watch: [`Event::TcpHangup`] with `ECANCELED`). In
    /// each turn from this one on ask what becomes of it: `Stack::leave` when nothing is in flight, `Stack::linger` otherwise,
    /// and `Stack::stay` when the socket is closed. One at a time.
    Migrate {
        /// The flow.
        flow: FlowId,
    },
    /// A DNS query came: whoever watches resolv.conf may want to look. At most once a second.
    DnsUsed,
}

/// About a frame that is handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handed {
    /// It came in fragments.
    pub cut: bool,
    /// It starts a connection that the receiver is to have.
    pub placed: bool,
}

/// Kinds of datagram sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DgramKind {
    /// UDP, unconnected.
    Udp4,
    /// UDP over IPv6, unconnected, `IPV6_V6ONLY`.
    Udp6,
    /// UDP connected to a resolver (an answer from elsewhere never arrives), default source address.
    Dns(SocketAddr),
    /// ICMP echo (`SOCK_DGRAM`, `IPPROTO_ICMP`): the kernel replaces the identifier by its own.
    Ping4,
    /// ICMPv6 echo.
    Ping6,
}

/// What of the guest's IP header an outgoing datagram keeps, and where it leaves from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOpts {
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Don't fragment (IPv4).
    pub df: bool,
    /// Payload bytes of each datagram of a run (`UDP_SEGMENT`); 0: one datagram.
    pub segment: u16,
    /// From this address of the host.
    pub local: Local,
}

/// What happened. The worker tells the core.
#[derive(Debug)]
pub enum Event {
    /// A slot given with `keep` is back; the kernel has taken the frame, or refused it.
    TapWritten {
        /// The flow that kept it.
        flow: FlowId,
        /// The slot, range as it was written.
        slot: Slot,
    },
    /// A connect ended.
    TcpConnected {
        /// The flow.
        flow: FlowId,
        /// How.
        result: Result<(), Errno>,
    },
    /// A send ended: `Ok(n)` bytes taken (0: the socket is full now), or a connection error.
    TcpSent {
        /// The flow.
        flow: FlowId,
        /// What was given, all of it; the first `n` bytes are taken.
        chain: Chain,
        /// How it ended.
        result: Result<u32, Errno>,
    },
    /// The socket takes bytes again (or has failed: the next send tells).
    TcpWritable {
        /// The flow.
        flow: FlowId,
    },
    /// A receive ended.
    TcpReceived {
        /// The flow.
        flow: FlowId,
        /// With what.
        result: Received,
    },
    /// The connection failed while only watched.
    TcpHangup {
        /// The flow.
        flow: FlowId,
        /// The socket's error; 0 when it has none (closed both ways), `ECANCELED` when only the watch has ended.
        errno: Errno,
    },
    /// A datagram socket could not be made.
    DgramFailed {
        /// The flow.
        flow: FlowId,
        /// Why.
        errno: Errno,
    },
    /// The kernel refused a datagram.
    DgramSent {
        /// The flow.
        flow: FlowId,
        /// What was to be sent.
        slot: Slot,
        /// Where to.
        to: SocketAddr,
        /// From where.
        local: Local,
        /// Why not.
        errno: Errno,
    },
    /// A datagram came.
    DgramReceived {
        /// The flow.
        flow: FlowId,
        /// Range: the payload, with at least [`HEADROOM`] in front.
        slot: Slot,
        /// From whom.
        from: SocketAddr,
        /// Which of the host's addresses it came to, where the socket has several.
        local: Local,
        /// TTL or hop limit it came with, when known.
        ttl: Option<u8>,
        /// Type of service or traffic class it came with.
        tos: u8,
        /// Payload bytes of each datagram when this is a run (`UDP_GRO`); 0: one datagram.
        segment: u16,
    },
    /// An error about an earlier datagram (`IP_RECVERR`).
    DgramError {
        /// The flow.
        flow: FlowId,
        /// What the kernel says.
        error: DgramError,
    },
    /// The flow's socket is gone and nothing of it is in flight.
    Closed {
        /// The flow.
        flow: FlowId,
    },
}

/// How a receive ended.
#[derive(Debug)]
pub enum Received {
    /// Bytes: the slot's range, with [`HEADROOM`] in front. `more`: the socket holds more now.
    Data {
        /// The bytes.
        slot: Slot,
        /// More can be received at once.
        more: bool,
    },
    /// The host has closed its side.
    Eof,
    /// No slot was free; nothing is lost, ask again.
    NoBuffer,
    /// The connection failed.
    Failed(Errno),
}

/// `struct sock_extended_err` (linux/errqueue.h) about one datagram that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DgramError {
    /// The errno.
    pub errno: Errno,
    /// ICMP or ICMPv6 type, when one came from the network; `None` when our own kernel found it.
    pub icmp: Option<(u8, u8)>,
    /// MTU, for "too big".
    pub mtu: u32,
    /// Who sent the ICMP message.
    pub offender: Option<IpAddr>,
    /// Where the datagram was going.
    pub to: SocketAddr,
    /// Where it came from, when known.
    pub local: Local,
    /// Sequence number of the echo request in the returned payload (ping only).
    pub echo_seq: u16,
}

/// What a flow wants after it has handled something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// To live on; with a call of its `handle_timeout` by then at the latest.
    Live(Option<Time>),
    /// To end: its socket is closed (with a RST if `reset`) and its key is free.
    Close {
        /// RST instead of FIN.
        reset: bool,
    },
}

/// What a datagram flow can be told.
#[derive(Debug)]
pub enum DgramEvent {
    /// No socket.
    Failed(Errno),
    /// A datagram was refused.
    Refused {
        /// It.
        slot: Slot,
        /// Where it was going, as the host names it.
        to: SocketAddr,
        /// From which address of the host.
        local: Local,
        /// Why.
        errno: Errno,
    },
    /// A datagram came.
    Received {
        /// Payload.
        slot: Slot,
        /// From.
        from: SocketAddr,
        /// To which address of the host.
        local: Local,
        /// TTL, when known.
        ttl: Option<u8>,
        /// TOS.
        tos: u8,
        /// Run of datagrams of this size, or 0.
        segment: u16,
    },
    /// An earlier datagram met an error.
    Error(DgramError),
}

impl DgramEvent {
    /// Which address of the host it is about.
    pub fn local(&self) -> Local {
        match self {
            Self::Failed(_) => Local::ANY,
            Self::Refused { local, .. } | Self::Received { local, .. } => *local,
            Self::Error(error) => error.local,
        }
    }
}

/// What every handler of the core may use.
#[derive(Debug)]
pub struct Ctx<'a> {
    /// Addresses and policy.
    pub net: &'a NetConfig,
    /// Buffers.
    pub pools: &'a Pools,
    /// Where actions go.
    pub actions: &'a mut Actions,
    /// Counters.
    pub stats: &'a mut Stats,
    /// Now.
    pub now: Time,
    /// The guest's MAC as last seen, for frames that answer no frame.
    pub guest_mac: Mac,
}

impl Ctx<'_> {
    /// A small slot for a control frame, its range empty behind [`HEADROOM`]; `None` (counted) when
    /// none is free.
    pub fn control_slot(&mut self) -> Option<Slot> {
        let Some(mut slot) = self.pools.small.take() else {
            self.stats.drop(crate::stats::Drop::NoBuffer);
            return None;
        };
        slot.set_range(HEADROOM, 0);
        Some(slot)
    }

    /// A small slot for payload kept on a flow's behalf; leaves [`BLOCKS_RESERVED`] for control.
    pub fn block(&mut self) -> Option<Slot> {
        self.pools.small.take_above(BLOCKS_RESERVED)
    }

    /// Writes a frame to the guest and forgets it.
    pub fn write(&mut self, slot: Slot) {
        self.actions.push(Action::TapWrite { slot, keep: None });
    }
}
