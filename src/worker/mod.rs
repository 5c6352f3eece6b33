//! The data path's kernel edge: one thread, one ring, one TAP queue, and the flows that came by it.
//!
//! # Theory of operation
//!
//! A turn of [`Worker::run`]: enter the kernel once (submit what the last turn made, wait for something
//! to happen), hand each completion to the core as a frame or an event, let timers run out, turn the core's
//! actions into submission entries. Sends and TAP writes complete while they are submitted, so their
//! completions are found by the next turn without a wait. Between small messages it watches the ring for a moment before it
//! sleeps (`spin`).
//!
//! Buffers: the TAP's multishot read, host receives and datagrams each draw slots from a provided ring
//! that is refilled from the arena once per turn. A slot is with the kernel, in a table of
//! operations in flight, or with the core: never in two places. Closing a descriptor ends nothing that is in
//! flight: a socket is cancelled first, and closed when its last completion has come.
//!
//! Forwarded ports are sockets that control has made: listening ones (`forward`) and bound ones ([`bound`]). The ring
//! can do what a worker does and no more (`ring`). In the place of a TAP there may be a socket of packets (`packets`).
//!
//! Control speaks to a worker by [`Request`]s in a queue with an eventfd as doorbell, and hears of it
//! by [`Notice`]s. A worker that ends, for whatever reason, says so last of all.
//!
//! # Several workers
//!
//! The workers of a guest have a queue each of its TAP, fixed at boot: to detach a queue would renumber the others and
//! move their flows, so a worker that ends ends the process. Each has its own ring, buffers and flows, and shares
//! nothing with the others while every frame comes by the queue of its flow's worker. That is the rule, for the guest's
//! kernel sends a flow's frames to the queue that was last written to for it; what happens to the exceptions is told
//! in [`crate::stack::directory`]. The worker's part: it copies a frame for another one into that one's inbox
//! and rings its bell, an entry of its own ring submitted with all others of the turn ([`team`]); it takes over what is
//! in its inbox between two turns, no more at a time than leaves its own queue room. A connection that one worker has
//! accepted and another is to have goes the same way, and so does one that is better off with another (`migrate`).
//!
//! A TAP that was made with one queue is read by the first worker alone, which hands over what is for the others; all of them
//! write to it. What pays is the way to the guest: four streams from the host are twice as fast as by one worker.
//!
//! What is there once is done by the first worker: DHCP leases (requests are handed over to it) and router
//! advertisements that nobody asked for. ARP, neighbour discovery, echo to the gateway and DNS are answered by whoever
//! is asked; fragments come by one queue, and what they make goes on to the owner of its flow.

pub mod bound;
mod cmsg;
mod complete;
mod dgram;
mod forward;
mod handle;
mod in_flight;
mod migrate;
mod outbound;
mod packets;
mod ring;
mod run;
mod sock;
mod spin;
mod submit;
pub mod team;
mod token;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::arena::Pools;
use crate::config::{ForwardId, NetConfig, Transport};
use crate::flow::FlowId;
use crate::flow::table::Table;
use crate::flow::timers::Timers;
use crate::limits::{
    BLOCK_BYTES, BLOCKS_MAX, DGRAM_SLOTS, HAND_OVER_TURN, HEADROOM, HOST_SLOTS, REQUESTS_TURN,
    SLOT_BYTES, SLOTS_FOR_READS, SLOTS_MAX, TAP_SLOTS, TRIM, VNET_LEN,
};
use crate::stack::descriptors::Share;
use crate::stack::{Flow, Migrant, Stack};
use crate::stats::{Drop as Dropped, Stats};
use crate::time::{Millis, Time};
use dgram::{Heads, Sending};
use forward::Listeners;
use handle::Mailbox;
use in_flight::InFlight;
use outbound::Interfaces;
use packets::Packets;
use ring::{BufRing, Ring, Watched};
use sock::Sock;
use spin::Spin;
use submit::{Scratch, Writing};
use team::{Frames, Team};
use token::Token;

pub use crate::stack::descriptors::{Descriptors, Taken};
pub use handle::Handle;
pub use ring::OLDEST_KERNEL;

/// An open TAP queue, as `boot` hands it over; or a socket of packets (`SOCK_SEQPACKET`) in its place, without header.
#[derive(Debug)]
pub struct TapQueue {
    /// The descriptor, attached to the interface.
    pub fd: OwnedFd,
    /// Whether frames carry a virtio header (`IFF_VNET_HDR`).
    pub vnet: bool,
    /// Whether its worker reads what the guest sends. One that does not has a second descriptor of a queue that another
    /// reads, and writes to it: two readers would put the frames of a flow out of order.
    pub reads: bool,
}

/// What control asks of a worker.
#[derive(Debug)]
pub enum Request {
    /// New resolvers, in order.
    Resolvers(Vec<IpAddr>),
    /// No new flows; say [`Notice::Drained`] when nothing is left on its way to the host.
    Drain,
    /// Carry a port into the guest. It says itself whom to tell.
    Forward(ForwardedPort),
    /// Close every socket of a forward. Conversations of TCP go on. The sender is used, or dropped, when the ports are free.
    Unforward(ForwardId, oneshot::Sender<()>),
    /// A copy of the counters.
    Stats(mpsc::Sender<Stats>),
    /// End at once.
    Stop,
}

/// One port of the host that leads into the guest.
#[derive(Debug)]
pub struct ForwardedPort {
    /// The forward it belongs to; one with a range has several.
    pub id: ForwardId,
    /// TCP: `socket` listens, and each connection becomes one to `guest`. UDP: it is bound, and what comes goes to `guest`.
    pub transport: Transport,
    /// Non-blocking, bound, closed on exec.
    pub socket: OwnedFd,
    /// What it has taken of the [team's](Handle::descriptors) descriptors.
    pub taken: Taken,
    /// Where in the guest.
    pub guest: SocketAddr,
    /// Is told that the port leads into the guest; or why not, and then the socket is closed.
    pub done: UnboundedSender<io::Result<()>>,
}

/// What a worker tells control.
#[derive(Debug)]
pub enum Notice {
    /// DNS was asked: time to see whether resolv.conf has changed. At most once a second.
    DnsUsed,
    /// See [`Request::Drain`].
    Drained,
    /// A worker has ended: asked to (`Ok`), or because the TAP is gone, the ring failed, or of a panic.
    Ended(u8, io::Result<()>),
}

/// Everything one worker has. Fields drop in this order: the ring before the buffers it may fill.
struct Worker {
    ring: Ring,
    from_tap: BufRing,
    from_host: BufRing,
    dgrams: BufRing,
    /// TAP writes in flight, by index.
    writes: InFlight<Writing>,
    /// Datagram sends in flight, by index.
    dgram_sends: InFlight<Sending>,
    /// Those of this turn, not yet submitted.
    dgrams_out: Vec<u32>,
    socks: Vec<Option<Sock>>,
    /// Sockets that listen for connections to the guest.
    listeners: Listeners,
    /// Bound sockets of each forward.
    bound: HashMap<ForwardId, Vec<FlowId>>,
    /// Headers and addresses of this turn's submissions.
    scratch: Scratch,
    spin: Spin,
    /// Headers of receives.
    heads: Heads,
    stack: Stack,
    tap: TapQueue,
    packets: Packets,
    net: NetConfig,
    interfaces: Interfaces,
    mailbox: Arc<Mailbox>,
    notices: UnboundedSender<Notice>,
    team: Arc<Team>,
    me: u8,
    /// What other workers have handed over, and is not taken yet.
    handed: Frames,
    /// There is more in the inbox.
    posted: bool,
    started: Instant,
    now: Time,
    /// IP identification of the next datagram that must be cut (a TAP without virtio header).
    ip_id: u32,
    /// The TAP's read must be armed anew.
    tap_idle: bool,
    /// Sockets with operations to be armed anew.
    rearm: Vec<FlowId>,
    /// Receives that found no buffer, in the order in which they get the next.
    hungry: VecDeque<FlowId>,
    /// Count of what sockets have brought, to know who has waited longest.
    fed: u64,
    /// The connection that is about to go to another worker.
    leaving: Option<FlowId>,
    /// Those that have come from others, and for which there was no room yet.
    coming: VecDeque<(OwnedFd, Box<Migrant>)>,
    /// When something last took a buffer, and when those not used since are given back next; `None`: there is
    /// nothing to give.
    busy: Time,
    trim_at: Option<Time>,
    draining: bool,
    stopped: bool,
    /// Requests that are taken, and not carried out yet.
    requests: VecDeque<Request>,
}

// What an idle connection costs beside the kernel's socket. (Vectors double, but memory that was never written
// is not there yet.)
const _: () = assert!(
    size_of::<Option<Sock>>() + Table::<Flow>::FLOW_BYTES + Timers::FLOW_BYTES <= 896,
    "an idle connection costs at most 1 KiB"
);

impl Worker {
    fn new(
        tap: TapQueue,
        net: NetConfig,
        resolvers: &[IpAddr],
        mailbox: Arc<Mailbox>,
        notices: UnboundedSender<Notice>,
    ) -> io::Result<Self> {
        let ring = Ring::new()?;
        let pools = Pools::new().map_err(no_memory)?;
        let secret = [random()?, random()?];
        let ip_id = random()? as u32;
        let mut stack = Stack::new(net.clone(), pools.clone(), secret, Time(0));
        stack.set_resolvers(resolvers);
        if !tap.vnet {
            stack.keep_datagrams_alone();
        }
        // A TAP without virtio header reads behind an empty one, so that the core sees one form.
        let frame_at = if tap.vnet { 0 } else { VNET_LEN };
        let mut worker = Self {
            from_tap: BufRing::new(&ring, 0, TAP_SLOTS, &pools.large, frame_at)?,
            from_host: BufRing::new(&ring, 1, HOST_SLOTS, &pools.large, HEADROOM)?,
            dgrams: BufRing::new(&ring, 2, DGRAM_SLOTS, &pools.large, 0)?,
            ring,
            writes: InFlight::new(),
            dgram_sends: InFlight::new(),
            dgrams_out: Vec::with_capacity(64),
            socks: Vec::new(),
            listeners: Listeners::new(),
            bound: HashMap::new(),
            scratch: Scratch::new(),
            spin: Spin::new(1),
            heads: Heads::new(),
            stack,
            packets: Packets::new(&tap),
            tap,
            interfaces: Interfaces::new(&net)?,
            net,
            mailbox,
            notices,
            team: Team::new(1, 1, [0; 2]),
            me: 0,
            handed: Frames::default(),
            posted: false,
            started: start_of_time(),
            now: Time(0),
            ip_id,
            tap_idle: true,
            rearm: Vec::new(),
            hungry: VecDeque::new(),
            fed: 0,
            leaving: None,
            coming: VecDeque::new(),
            busy: Time(0),
            trim_at: None,
            draining: false,
            stopped: false,
            requests: VecDeque::new(),
        };
        worker.ring.restrict()?;
        worker.ring.enable()?;
        worker.arm_bell()?;
        worker.rearm()?;
        worker.ring.submit()?;
        Ok(worker)
    }

    /// Makes it one of several.
    fn join(&mut self, team: Arc<Team>, me: u8) {
        if let Some(seat) = team.seat(me) {
            self.stack.share(seat);
        }
        self.stack.limit(Share::new(team.descriptors().clone()));
        self.spin = Spin::new(team.processors());
        team.set_ring(me, self.ring.fd());
        // What was posted while there was no bell.
        self.posted = true;
        (self.team, self.me) = (team, me);
    }

    /// Takes over from other workers: connections, and frames, some of them, and as many as there are buffers for while reads keep theirs.
    fn take_over(&mut self) {
        if self.handed.is_empty() {
            if !std::mem::take(&mut self.posted) {
                return;
            }
            self.handed.clear();
            self.team.take(self.me, &mut self.handed);
            self.take_connections();
        }
        self.note_use();
        for _ in 0..HAND_OVER_TURN {
            let Some((frame, about)) = self.handed.next() else { return self.handed.clear() };
            let pools = self.stack.pools();
            let Some(mut slot) = pools.large.take_above(SLOTS_FOR_READS) else {
                self.stack.handle_lost(self.me, about, Dropped::NoBuffer);
                continue;
            };
            slot.set_range(0, frame.len());
            slot.bytes_mut().copy_from_slice(frame);
            self.stack.stats_mut().copied_bytes += frame.len() as u64;
            self.stack.handle_handed(slot, about, self.now);
        }
    }

    /// The loop.
    fn run(&mut self) -> io::Result<()> {
        loop {
            self.wait()?;
            if self.ring.is_submitted() {
                self.scratch.reset();
            }
            self.now = self.clock();
            let (mut completions, mut bytes, mut news) = (0, 0, false);
            while let Some(entry) = self.ring.completion() {
                completions += 1;
                let token = Token::unpack(entry.user_data());
                news |= token.is_some_and(Token::is_news);
                bytes += entry.result().max(0) as u64;
                self.complete(token, &entry)?;
            }
            self.spin.worked(completions, bytes, news);
            self.trim();
            self.handle_requests()?;
            if self.stopped {
                let socks = self.socks.iter().zip(0..).filter_map(|(sock, index)| {
                    let sock = sock.as_ref()?;
                    let flow = FlowId { index, generation: sock.generation };
                    Some(sock.ops().map(move |op| Token::Sock(op, flow)))
                });
                let tokens = socks.flatten().chain(self.listeners.accepts());
                self.ring.cancel_all(tokens.map(Token::pack));
                return Ok(());
            }
            self.take_over();
            self.serve_coming();
            self.serve_listeners()?;
            self.feed_hungry()?;
            self.handle_timeout();
            loop {
                while let Some(action) = self.stack.poll_action(self.now) {
                    self.submit(action)?;
                }
                if !self.serve_leaving()? {
                    break;
                }
            }
            if self.draining && self.stack.drained() && self.team.all_arrived() {
                self.draining = false;
                let _ = self.notices.send(Notice::Drained);
            }
            self.rearm()?;
            self.stack.stats_mut().turns += 1;
        }
    }

    /// Has the core do what is due. What flows held that end so, with nobody sending any more, is given back like what
    /// comes and goes.
    fn handle_timeout(&mut self) {
        if self.trim_at.is_some() {
            // It will be.
            return self.stack.handle_timeout(self.now);
        }
        let lent = |stack: &Stack| {
            let pools = stack.pools();
            pools.large.lent() + pools.small.lent()
        };
        let before = lent(&self.stack);
        self.stack.handle_timeout(self.now);
        if lent(&self.stack) < before {
            self.note_use();
        }
    }

    /// Submits what there is, and waits for something to happen.
    fn wait(&mut self) -> io::Result<()> {
        let patience = self.patience();
        if !self.spin.is_calm() {
            return self.ring.turn(patience);
        }
        let begin = self.started.elapsed();
        if let Some(time) = self.spin.before(patience) {
            let watched = self.ring.watch(time)?;
            self.spin.watched(watched);
            if watched != Watched::Come {
                // Time has passed.
                self.ring.turn(self.patience())?;
            }
        } else {
            self.spin.watched(Watched::Nothing);
            self.ring.turn(patience)?;
        }
        self.spin.waited(self.started.elapsed() - begin);
        Ok(())
    }

    /// How long the coming turn may wait.
    fn patience(&self) -> Option<Duration> {
        let behind = !self.requests.is_empty() || self.listeners.behind();
        if behind || !self.hungry.is_empty() || self.posted || !self.handed.is_empty() {
            return Some(Duration::ZERO);
        }
        let trim = self.trim_at.map(|_| self.busy + TRIM);
        let listen = self.listeners.retry_at();
        // Soon enough, if nothing else happens. Who drains waits for what others do.
        let passing = self.leaving.is_some()
            || !self.coming.is_empty()
            || self.draining && !self.team.all_arrived();
        let passing = passing.then(|| self.now + Millis(1));
        let due = [self.stack.poll_timeout(), trim, listen, passing].into_iter().flatten().min()?;
        Some(Duration::from_millis((due - self.clock()).0))
    }

    /// Something has come that took a buffer.
    fn note_use(&mut self) {
        self.busy = self.now;
        self.trim_at.get_or_insert(self.now + TRIM);
    }

    /// Gives buffers back: from time to time what the traffic does not need, and all when it has ended, which
    /// is the one thing an idle worker wakes up for. All completions have been taken.
    fn trim(&mut self) {
        if self.trim_at.is_none_or(|at| at > self.now) {
            return;
        }
        let pools = self.stack.pools();
        pools.large.trim();
        pools.small.trim();
        if self.now - self.busy < TRIM {
            self.trim_at = Some(self.now + TRIM);
            return;
        }
        // The second time, all that is free has not been used since.
        pools.large.trim();
        pools.small.trim();
        for ring in [&mut self.from_tap, &mut self.from_host, &mut self.dgrams] {
            ring.trim();
        }
        self.handed.trim();
        self.team.trim(self.me);
        self.trim_at = None;
    }

    fn clock(&self) -> Time {
        Time(self.started.elapsed().as_millis() as u64)
    }

    /// The bell has rung.
    fn take_requests(&mut self) {
        let _ = self.mailbox.bell.read();
        let mut requests = self.mailbox.requests.lock().unwrap_or_else(PoisonError::into_inner);
        self.requests.extend(requests.drain(..));
    }

    /// Carries out what control has asked for: in its order, and no more in a turn than holds nobody up.
    fn handle_requests(&mut self) -> io::Result<()> {
        for _ in 0..REQUESTS_TURN {
            let Some(request) = self.requests.pop_front() else { break };
            match request {
                Request::Resolvers(resolvers) => self.stack.set_resolvers(&resolvers),
                Request::Drain => {
                    self.stack.drain();
                    self.close_listeners(None, None);
                    self.team.drain();
                    self.draining = true;
                }
                Request::Forward(port) => self.carry(port)?,
                Request::Unforward(id, done) => self.unforward(id, done),
                Request::Stats(reply) => drop(reply.send(self.stack.stats())),
                Request::Stop => self.stopped = true,
            }
        }
        Ok(())
    }

    fn tap_fd(&self) -> i32 {
        self.tap.fd.as_raw_fd()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The number may soon mean another file.
        self.team.set_ring(self.me, -1);
    }
}

/// The one clock of a worker.
#[expect(clippy::disallowed_methods, reason = "the worker owns the clock")]
fn start_of_time() -> Instant {
    Instant::now()
}

/// Says what is short, and what helps.
fn no_memory(e: io::Error) -> io::Error {
    let reserved = SLOTS_MAX as usize * SLOT_BYTES + BLOCKS_MAX as usize * BLOCK_BYTES;
    let line = format!(
        "reserve {} MiB of address space for buffers: {}: raise the limit (ulimit -v)",
        reserved >> 20,
        nix::Error::from_raw(e.raw_os_error().unwrap_or(libc::EIO)).desc()
    );
    io::Error::new(e.kind(), line)
}

/// 64 bits that nobody can guess. No file is opened: there may be none to be seen.
///
/// # Errors
/// What `getrandom(2)` says.
pub fn random() -> io::Result<u64> {
    getrandom::u64().map_err(io::Error::from)
}
