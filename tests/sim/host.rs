//! The worker and the host's kernel: sockets that follow a script, driven by actions, answering with events.
//! It keeps the seam's contract (src/flow/mod.rs) and asserts that the core does.

use std::collections::HashMap;

use ringtap::arena::{Chain, Pools, Slot};
use ringtap::flow::{Action, Errno, Event, FlowId, Received};
use ringtap::limits::{HEADROOM, SEND_SLOTS};
use ringtap::time::{Millis, Time};

use crate::clock::Agenda;
use crate::guest::TO;
use crate::model::{self, Way};
use crate::prng::Rng;
use crate::spec::{End, Fate, FlowSpec, Pace, Spec};

/// How a socket has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub at: Time,
    /// The core closed it with a RST.
    pub reset: bool,
}

/// What the host has seen of one flow. With connections tried again, of all of them.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub connects: u32,
    /// Bytes from the guest that the kernel took, and the peer has read.
    pub taken: u64,
    pub read: u64,
    /// Bytes from the peer that were received.
    pub given: u64,
    pub shutdown: bool,
    pub eof_given: bool,
    pub ended: Option<Ended>,
}

/// A host socket and its peer.
#[derive(Debug)]
struct Sock {
    index: usize,
    spec: FlowSpec,
    connected: bool,
    /// An error the kernel holds: the peer has reset, or is gone.
    error: Option<i32>,
    gone: bool,
    /// Bytes in the send buffer.
    buffered: u64,
    taken: u64,
    read: u64,
    produced: u64,
    given: u64,
    eof: bool,
    eof_given: bool,
    shutdown: bool,
    peer_saw_end: bool,
    sending: Option<Chain>,
    receiving: Option<u32>,
    receive_set: bool,
    /// The receive under way does not wait.
    at_once: bool,
    poll_out: bool,
    poll_error: bool,
    closing: Option<bool>,
    write_paused: bool,
    read_paused: bool,
    reading: bool,
}

/// A socket on its way to another worker, with what is to happen to it.
pub struct Moving {
    sock: Sock,
    todo: Vec<(Time, Todo)>,
    report: Report,
}

#[derive(Clone, Copy, Debug)]
enum Todo {
    Connected,
    Sent,
    Receive,
    Writable,
    Hangup,
    /// A receive ends that was cancelled.
    Cancelled,
    /// A watch ends that was cancelled.
    Unwatched,
    /// The peer reads, or writes.
    PeerReads,
    PeerWrites,
    PeerEnds,
    PeerResets,
    PeerVanishes,
    Closed,
}

/// All host sockets.
pub struct Host {
    pools: Pools,
    rng: Rng,
    specs: Vec<FlowSpec>,
    socks: HashMap<FlowId, Sock>,
    agenda: Agenda<(FlowId, Todo)>,
    pub reports: Vec<Report>,
    /// Some operations cannot be cancelled.
    pub stubborn: bool,
    /// Sockets that exist.
    pub open: usize,
}

impl Host {
    pub fn new(spec: &Spec, pools: Pools) -> Self {
        Self {
            pools,
            rng: Rng::new(spec.seed ^ 0x4057),
            specs: spec.flows.clone(),
            socks: HashMap::new(),
            agenda: Agenda::new(),
            reports: vec![Report::default(); spec.flows.len()],
            stubborn: false,
            open: 0,
        }
    }

    pub fn next(&self) -> Option<Time> {
        self.agenda.next()
    }

    fn soon(&mut self, now: Time, spec: &FlowSpec) -> Time {
        now + Millis(self.rng.range(0, spec.host_delay))
    }

    /// Carries out an action other than a TAP write.
    ///
    /// # Panics
    /// When the core breaks the contract.
    pub fn act(&mut self, action: Action, now: Time) {
        match action {
            Action::TcpConnect { flow, to } => {
                let index = usize::from(to.port() - TO);
                let spec = self.specs[index];
                self.reports[index].connects += 1;
                let sock = Sock::new(index, spec);
                assert!(self.socks.insert(flow, sock).is_none(), "connects twice");
                self.open += 1;
                self.agenda.push(now + Millis(spec.connect.delay), (flow, Todo::Connected));
            }
            Action::TcpSend { flow, chain } => {
                let sock = self.usable(flow);
                assert!(sock.sending.is_none(), "two sends at a time");
                assert!(!sock.shutdown, "sends after shutdown");
                assert!(!chain.is_empty() && chain.bytes() > 0, "sends nothing");
                assert!(chain.slots() <= SEND_SLOTS, "sends {} slots", chain.slots());
                sock.sending = Some(chain);
                let spec = sock.spec;
                let at = self.soon(now, &spec);
                self.agenda.push(at, (flow, Todo::Sent));
            }
            Action::TcpPollOut { flow } => {
                let sock = self.usable(flow);
                assert!(!sock.poll_out, "two polls for writing");
                assert!(sock.sending.is_none(), "polls while it sends");
                sock.poll_out = true;
                if sock.writable() {
                    self.agenda.push(now, (flow, Todo::Writable));
                }
            }
            Action::TcpRecv { flow, max } => {
                let sock = self.usable(flow);
                assert!(sock.receiving.is_none(), "two receives at a time");
                assert!(max > 0, "receives nothing");
                assert!(!sock.eof_given, "receives after the end");
                sock.receiving = Some(max);
                self.wake(flow, now);
            }
            // What is there at this moment; here never more than one slot of it.
            Action::TcpRecvMany { flow, frame, frames } => {
                let sock = self.usable(flow);
                assert!(sock.receiving.is_none(), "two receives at a time");
                assert!(frame > 0 && frames > 1, "receives nothing");
                assert!(!sock.eof_given, "receives after the end");
                sock.receiving = Some(frame);
                sock.receive_set = true;
                sock.at_once = true;
                self.agenda.push(now, (flow, Todo::Receive));
            }
            Action::TcpPollError { flow } => {
                let sock = self.usable(flow);
                assert!(!sock.poll_error, "two polls for errors");
                sock.poll_error = true;
                if sock.error.is_some() {
                    self.agenda.push(now, (flow, Todo::Hangup));
                }
            }
            Action::TcpShutdown { flow } => {
                let sock = self.usable(flow);
                assert!(sock.sending.is_none(), "shuts down while it sends");
                assert!(!sock.shutdown, "shuts down twice");
                sock.shutdown = true;
                let index = sock.index;
                self.reports[index].shutdown = true;
                self.start_reading(flow, now);
            }
            Action::Close { flow, reset } => {
                let delay = self.rng.pick(&[0, 0, 0, 1, 5]);
                let sock = self.socks.get_mut(&flow).expect("closes what was not opened");
                assert!(sock.closing.is_none(), "closes twice");
                sock.closing = Some(reset);
                let index = sock.index;
                self.reports[index].ended = Some(Ended { at: now, reset });
                self.agenda.push(now + Millis(delay), (flow, Todo::Closed));
            }
            Action::TapWrite { .. } | Action::TapRun { .. } | Action::HandOver { .. } => {
                unreachable!("the world's")
            }
            Action::Migrate { flow } => {
                // A receive may have its data before it can be cancelled.
                let first = self.rng.chance(500);
                if self.usable(flow).receive_set && first {
                    self.agenda.push(now, (flow, Todo::Receive));
                }
                // Sooner or later.
                for todo in [Todo::Cancelled, Todo::Unwatched] {
                    let late = if self.stubborn { 200 } else { 2 };
                    let at = now + Millis(self.rng.pick(&[0, 0, 1, late]));
                    self.agenda.push(at, (flow, todo));
                }
            }
            Action::DgramOpen { .. } | Action::DgramSend { .. } => panic!("no datagrams here"),
            Action::DnsUsed => {}
        }
    }

    /// # Panics
    /// When the core wants anything of a socket that is not connected, or closed.
    fn usable(&mut self, flow: FlowId) -> &mut Sock {
        let sock = self.socks.get_mut(&flow).expect("an action for no socket");
        assert!(sock.connected, "an action before the connect has ended");
        assert!(sock.closing.is_none(), "an action after Close");
        sock
    }

    /// # Panics
    /// When a slot is kept for a flow that is closed.
    pub fn assert_open(&self, flow: FlowId) {
        let sock = self.socks.get(&flow).expect("a slot kept for no flow");
        assert!(sock.closing.is_none(), "a slot kept for a closed flow");
    }

    /// A receive may have something to end with.
    fn wake(&mut self, flow: FlowId, now: Time) {
        let Some(sock) = self.socks.get_mut(&flow) else { return };
        let ready = sock.error.is_some() || sock.produced > sock.given || sock.eof;
        if sock.receiving.is_some() && ready && !sock.receive_set {
            sock.receive_set = true;
            let spec = sock.spec;
            let at = self.soon(now, &spec);
            self.agenda.push(at, (flow, Todo::Receive));
        }
    }

    fn start_reading(&mut self, flow: FlowId, now: Time) {
        let Some(sock) = self.socks.get_mut(&flow) else { return };
        if !sock.reading && !sock.gone && (sock.buffered > 0 || sock.shutdown) {
            sock.reading = true;
            let gap = sock.spec.host_read.gap;
            self.agenda.push(now + Millis(gap), (flow, Todo::PeerReads));
        }
    }

    /// The next event that is due.
    pub fn poll(&mut self, now: Time) -> Option<Event> {
        while let Some((flow, todo)) = self.agenda.pop(now) {
            if let Some(event) = self.run(flow, todo, now) {
                return Some(event);
            }
        }
        None
    }

    fn run(&mut self, flow: FlowId, todo: Todo, now: Time) -> Option<Event> {
        // Events of a dying socket may still come, or not.
        let hush = self.rng.chance(500);
        let partial = self.rng.chance(200);
        let sock = self.socks.get_mut(&flow)?;
        let hush = hush && sock.closing.is_some();
        let spec = sock.spec;
        match todo {
            Todo::Closed => {
                self.open -= 1;
                self.socks.remove(&flow);
                return Some(Event::Closed { flow });
            }
            Todo::Connected => {
                if hush {
                    return None;
                }
                if spec.connect.errno != 0 {
                    let result = Err(Errno(spec.connect.errno));
                    return Some(Event::TcpConnected { flow, result });
                }
                sock.connected = true;
                self.connected(flow, spec.host_fate, now);
                return Some(Event::TcpConnected { flow, result: Ok(()) });
            }
            Todo::Sent => {
                let chain = sock.sending.take()?;
                if hush {
                    return None;
                }
                if let Some(errno) = sock.error {
                    return Some(Event::TcpSent { flow, chain, result: Err(Errno(errno)) });
                }
                let room = spec.host_tx - sock.buffered;
                let mut n = room.min(u64::from(chain.bytes()));
                if partial && n > 1 {
                    n = n * 2 / 3;
                }
                sock.take(&chain, n);
                let (index, taken) = (sock.index, sock.taken);
                self.reports[index].taken = taken;
                self.start_reading(flow, now);
                return Some(Event::TcpSent { flow, chain, result: Ok(n as u32) });
            }
            Todo::Writable => {
                if sock.poll_out && !hush {
                    sock.poll_out = false;
                    return Some(Event::TcpWritable { flow });
                }
            }
            Todo::Hangup => {
                if sock.poll_error && !hush {
                    sock.poll_error = false;
                    let errno = Errno(sock.error.unwrap_or(0));
                    return Some(Event::TcpHangup { flow, errno });
                }
            }
            Todo::Unwatched => {
                if std::mem::take(&mut sock.poll_error) && !hush {
                    return Some(Event::TcpHangup { flow, errno: Errno(libc::ECANCELED) });
                }
            }
            Todo::Cancelled => {
                sock.receive_set = false;
                sock.at_once = false;
                sock.receiving.take()?;
                return Some(Event::TcpReceived { flow, result: Received::NoBuffer });
            }
            Todo::Receive => {
                if !sock.receive_set {
                    return None;
                }
                sock.receive_set = false;
                let at_once = std::mem::take(&mut sock.at_once);
                let max = u64::from(sock.receiving?);
                let left = sock.produced - sock.given;
                let result = if let Some(errno) = sock.error {
                    Received::Failed(Errno(errno))
                } else if left > 0 {
                    let mut n = left.min(max);
                    if partial {
                        n = n.div_ceil(3);
                    }
                    match self.pools.large.take() {
                        Some(slot) => sock.give(slot, n),
                        None => Received::NoBuffer,
                    }
                } else if sock.eof {
                    sock.eof_given = true;
                    Received::Eof
                } else if at_once {
                    Received::NoBuffer
                } else {
                    return None;
                };
                sock.receiving = None;
                if hush {
                    return None;
                }
                let (index, given, eof) = (sock.index, sock.given, sock.eof_given);
                self.reports[index].given = given;
                self.reports[index].eof_given = eof;
                return Some(Event::TcpReceived { flow, result });
            }
            Todo::PeerReads => self.peer_reads(flow, now),
            Todo::PeerWrites => self.peer_writes(flow, now),
            Todo::PeerEnds => {
                if sock.error.is_none() && !sock.gone {
                    sock.eof = true;
                    self.wake(flow, now);
                }
            }
            Todo::PeerResets => {
                if sock.error.is_none() && sock.closing.is_none() {
                    let gone = sock.gone;
                    sock.error = Some(if gone { libc::ETIMEDOUT } else { libc::ECONNRESET });
                    for todo in [Todo::Writable, Todo::Hangup] {
                        self.agenda.push(now, (flow, todo));
                    }
                    self.wake(flow, now);
                }
            }
            Todo::PeerVanishes => sock.gone = true,
        }
        None
    }

    /// Sockets that are open.
    pub fn flows(&self) -> Vec<FlowId> {
        let open = self.socks.iter().filter(|(_, s)| s.connected && s.closing.is_none());
        let mut flows: Vec<_> = open.map(|(&flow, _)| flow).collect();
        flows.sort_by_key(|flow| flow.index);
        flows
    }

    /// Whether nothing is in flight on a socket; `None`: it is closed.
    pub fn is_quiet(&self, flow: FlowId) -> Option<bool> {
        let sock = self.socks.get(&flow).filter(|sock| sock.closing.is_none())?;
        let asked = sock.receiving.is_some() || sock.poll_out || sock.poll_error;
        Some(sock.sending.is_none() && !asked)
    }

    /// Takes a socket out, for another worker.
    ///
    /// # Panics
    /// When something is in flight on it.
    pub fn take_out(&mut self, flow: FlowId) -> Moving {
        assert_eq!(self.is_quiet(flow), Some(true), "it goes with something in flight");
        let sock = self.socks.remove(&flow).expect("seen above");
        self.open -= 1;
        let todo = self.agenda.take_if(|&(owner, _)| owner == flow);
        let todo = todo.into_iter().map(|(at, (_, todo))| (at, todo)).collect();
        let report = std::mem::take(&mut self.reports[sock.index]);
        Moving { sock, todo, report }
    }

    /// Puts one in that another worker has had.
    pub fn put_in(&mut self, flow: FlowId, moving: Moving, now: Time) {
        let Moving { sock, todo, report } = moving;
        for (at, todo) in todo {
            self.agenda.push(at.max(now), (flow, todo));
        }
        self.reports[sock.index] = report;
        assert!(self.socks.insert(flow, sock).is_none(), "comes where one is");
        self.open += 1;
    }

    /// A connection that the peer has opened, and the core has taken.
    pub fn accept(&mut self, flow: FlowId, index: usize, now: Time) {
        let spec = self.specs[index];
        self.reports[index].connects += 1;
        let sock = Sock { connected: true, ..Sock::new(index, spec) };
        assert!(self.socks.insert(flow, sock).is_none(), "accepts twice");
        self.open += 1;
        self.connected(flow, spec.host_fate, now);
    }

    fn connected(&mut self, flow: FlowId, fate: Fate, now: Time) {
        self.agenda.push(now, (flow, Todo::PeerWrites));
        match fate {
            Fate::Lives => {}
            Fate::Resets(ms) => self.agenda.push(now + Millis(ms), (flow, Todo::PeerResets)),
            Fate::Vanishes(ms) => {
                self.agenda.push(now + Millis(ms), (flow, Todo::PeerVanishes));
                // Keep-alive or retransmission of the host's kernel ends it some day.
                self.agenda.push(now + Millis(ms + 900_000), (flow, Todo::PeerResets));
            }
        }
    }

    fn peer_reads(&mut self, flow: FlowId, now: Time) {
        let Some(sock) = self.socks.get_mut(&flow) else { return };
        sock.reading = false;
        if sock.gone || sock.error.is_some() {
            return;
        }
        let pace = sock.spec.host_read;
        if let Some(ms) = pause(&pace, sock.read, &mut sock.read_paused) {
            sock.reading = true;
            return self.agenda.push(now + Millis(ms), (flow, Todo::PeerReads));
        }
        let n = until_pause(&pace, sock.read, sock.read_paused).min(sock.buffered);
        sock.buffered -= n;
        sock.read += n;
        let (index, read) = (sock.index, sock.read);
        self.reports[index].read = read;
        let writable = sock.poll_out && sock.writable();
        let ends = sock.shutdown && sock.buffered == 0 && !sock.peer_saw_end;
        sock.peer_saw_end |= ends;
        let all = sock.produced == sock.spec.host_bytes;
        if ends && all && sock.spec.host_end == End::Last {
            self.agenda.push(now, (flow, Todo::PeerEnds));
        }
        if writable {
            self.agenda.push(now, (flow, Todo::Writable));
        }
        let Some(sock) = self.socks.get(&flow) else { return };
        if sock.buffered > 0 {
            self.start_reading(flow, now);
        }
    }

    fn peer_writes(&mut self, flow: FlowId, now: Time) {
        let Some(sock) = self.socks.get_mut(&flow) else { return };
        if sock.gone || sock.error.is_some() {
            return;
        }
        let pace = sock.spec.host_write;
        if let Some(ms) = pause(&pace, sock.produced, &mut sock.write_paused) {
            return self.agenda.push(now + Millis(ms), (flow, Todo::PeerWrites));
        }
        let n = until_pause(&pace, sock.produced, sock.write_paused)
            .min(sock.spec.host_bytes - sock.produced);
        sock.produced += n;
        if sock.produced < sock.spec.host_bytes {
            // An empty gap would be a storm of events for one byte at a time.
            self.agenda.push(now + Millis(pace.gap.max(1)), (flow, Todo::PeerWrites));
        } else {
            match sock.spec.host_end {
                End::Done => self.agenda.push(now, (flow, Todo::PeerEnds)),
                End::Later(ms) => self.agenda.push(now + Millis(ms), (flow, Todo::PeerEnds)),
                End::Last if sock.peer_saw_end => self.agenda.push(now, (flow, Todo::PeerEnds)),
                End::Last => {}
            }
        }
        self.wake(flow, now);
    }
}

/// The pause that is due at this offset, once.
fn pause(pace: &Pace, done: u64, paused: &mut bool) -> Option<u64> {
    let (offset, ms) = pace.pause?;
    (done >= offset && !std::mem::replace(paused, true)).then_some(ms)
}

fn until_pause(pace: &Pace, done: u64, paused: bool) -> u64 {
    match pace.pause {
        Some((offset, _)) if !paused => pace.bytes.min(offset.saturating_sub(done).max(1)),
        _ => pace.bytes,
    }
}

impl Sock {
    fn new(index: usize, spec: FlowSpec) -> Self {
        Self {
            index,
            spec,
            connected: false,
            error: None,
            gone: false,
            buffered: 0,
            taken: 0,
            read: 0,
            produced: 0,
            given: 0,
            eof: false,
            eof_given: false,
            shutdown: false,
            peer_saw_end: false,
            sending: None,
            receiving: None,
            receive_set: false,
            at_once: false,
            poll_out: false,
            poll_error: false,
            closing: None,
            write_paused: false,
            read_paused: false,
            reading: false,
        }
    }

    /// As tcp(7) has it: a third of the buffer must be free, or an error is waiting.
    fn writable(&self) -> bool {
        self.error.is_some() || self.buffered * 3 <= self.spec.host_tx * 2
    }

    /// Takes the first `n` bytes of a chain, which must be the next of the stream.
    fn take(&mut self, chain: &Chain, n: u64) {
        let mut left = n;
        chain.for_each(|slot| {
            let part = left.min(slot.len() as u64);
            model::check(self.index, Way::ToHost, self.taken, &slot.bytes()[..part as usize]);
            self.taken += part;
            left -= part;
            left > 0
        });
        assert!(self.taken <= self.spec.guest_bytes, "more than the guest sent");
        self.buffered += n;
    }

    fn give(&mut self, mut slot: Slot, n: u64) -> Received {
        let n = n.min((slot.capacity() - HEADROOM) as u64);
        slot.set_range(HEADROOM, n as usize);
        model::fill(self.index, Way::ToGuest, self.given, slot.bytes_mut());
        self.given += n;
        Received::Data { slot, more: self.produced > self.given }
    }
}
