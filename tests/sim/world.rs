//! A run: guest, wires, core and host, and the time that passes between them.

use std::collections::VecDeque;

use ringtap::arena::{Pools, Slot};
use ringtap::config::NetConfig;
use ringtap::flow::key::{FlowKey, Proto};
use ringtap::flow::{Action, Event, FlowId};
use ringtap::stack::Stack;
use ringtap::stats::{Drop, Stats};
use ringtap::time::{Millis, Time};

use crate::clock::Agenda;
use crate::fair::Attack;
use crate::guest::{FROM, GUEST4, GUEST6, Guest, HOST4, HOST6, Outcome, TO};
use crate::host::Host;
use crate::link::Link;
use crate::model::Wire;
use crate::prng::Rng;
use crate::spec::{Fate, Spec};
use crate::tap;

/// Frames the kernel's TAP queue holds before it drops (txqueuelen).
const QUEUE: usize = 1000;
/// Steps at one moment before we say that the core spins.
const STEPS: u32 = 100_000;

/// A run.
pub struct World {
    spec: Spec,
    pub stack: Stack,
    pub guest: Guest,
    pub host: Host,
    up: Link,
    down: Link,
    wire: Wire,
    /// Frames that wait for a slot, and whether they are an attack's.
    queue: VecDeque<(Vec<u8>, bool)>,
    /// The worker reads and writes so many frames a millisecond, all it can.
    pub capacity: Option<i64>,
    /// What is left of this millisecond's.
    left: i64,
    pub attack: Option<Attack>,
    /// Frames that the TAP's queue holds, and those that found it full.
    pub room: usize,
    pub lost: u64,
    written: Agenda<(FlowId, Slot)>,
    /// Connections that peers will open.
    calls: Agenda<usize>,
    last_written: Time,
    rng: Rng,
    pub now: Time,
    epoch: Time,
    mended: bool,
    /// Segments are printed (`SIM_TRACE=1`).
    trace: bool,
    /// The most large slots that were lent at the end of a turn.
    pub peak: u32,
}

impl World {
    pub fn new(spec: &Spec, pools: &Pools) -> Self {
        let mut net = NetConfig::native();
        net.mtu = spec.mtu;
        let secret = [spec.seed ^ 0x1234_5678_9abc, spec.seed.rotate_left(32) | 1];
        let epoch = if spec.wrap { wrap_epoch(spec, &secret) } else { Time(spec.seed % 10_000) };
        let fragile_up = 2..4;
        Self {
            stack: Stack::new(net, pools.clone(), secret, epoch),
            guest: Guest::new(spec, epoch),
            host: Host::new(spec, pools.clone()),
            up: Link::new(spec.up, spec.seed ^ 1, fragile_up),
            // smoltcp checks all but the bytes it does not read; from the IP header's first on.
            down: Link::new(spec.down, spec.seed ^ 2, 40..usize::MAX),
            wire: Wire::default(),
            queue: VecDeque::new(),
            capacity: None,
            left: 0,
            attack: None,
            room: QUEUE,
            lost: 0,
            written: Agenda::new(),
            calls: {
                let mut calls = Agenda::new();
                let inbound = spec.flows.iter().enumerate().filter(|(_, flow)| flow.inbound);
                inbound.for_each(|(i, flow)| calls.push(epoch + Millis(flow.start), i));
                calls
            },
            last_written: epoch,
            rng: Rng::new(spec.seed ^ 3),
            now: epoch,
            epoch,
            mended: false,
            trace: std::env::var_os("SIM_TRACE").is_some(),
            peak: 0,
            spec: spec.clone(),
        }
    }

    /// Runs until all is over, and checks that it ended as it should.
    ///
    /// # Panics
    /// When anything is not as it should be.
    pub fn run(&mut self) -> Stats {
        let limit = self.epoch + Millis(self.spec.limit);
        while !self.over() {
            self.moment();
            if self.over() {
                break;
            }
            let Some(next) = self.next() else {
                panic!("nothing will ever happen again: {}", self.describe())
            };
            assert!(next <= limit, "not over in time: {}", self.describe());
            self.now = next.max(self.now);
        }
        self.verdict();
        self.stack.stats()
    }

    /// When it began.
    pub fn began(&self) -> Time {
        self.epoch
    }

    /// All that happens at this moment.
    fn moment(&mut self) {
        if !self.mended && self.now >= self.epoch + Millis(self.spec.mend) {
            self.mended = true;
            self.up.mend();
            self.down.mend();
        }
        if let Some(capacity) = self.capacity {
            // What was written beyond it is owed.
            self.left = capacity.min(self.left + capacity);
        }
        if let Some(attack) = self.attack.as_mut().filter(|attack| attack.until > self.now) {
            let room = self.room.saturating_sub(self.queue.len());
            self.queue.extend(attack.frames().take(room).map(|frame| (frame, true)));
        }
        for _ in 0..STEPS {
            if !self.step() {
                return;
            }
        }
        panic!("spins: {}", self.describe());
    }

    /// One turn of the worker; false when nothing happened.
    fn step(&mut self) -> bool {
        let mut busy = false;
        for frame in self.guest.poll(self.now) {
            busy = true;
            self.print(">", &frame);
            if let Some(attack) = &mut self.attack {
                attack.see(&frame);
            }
            self.up.send(self.now, frame);
        }
        while let Some(frame) = self.up.receive(self.now) {
            if self.queue.len() < self.room {
                self.queue.push_back((frame, false));
            } else {
                self.lost += 1;
            }
        }
        while let Some(index) = self.calls.pop(self.now) {
            let (peer, guest) = self.guest.apps[index].ends();
            let flow = self.stack.handle_accepted(peer, guest, self.now).expect("a flow");
            self.host.accept(flow, index, self.now);
            busy = true;
        }
        // A turn takes some frames and events, not always all.
        let batch = self.rng.range(1, 16);
        for _ in 0..batch {
            let Some((frame, attack)) = self.queue.front() else { break };
            if self.is_tired() {
                break;
            }
            let Some(mut slot) = self.stack.pools().large.take() else { break };
            slot.set_range(0, frame.len());
            slot.bytes_mut().copy_from_slice(frame);
            if let Some((view, tcp)) = frame.get(24..).and_then(tap::tcp_of)
                && !attack
            {
                self.wire.guest_says(view.src.is_ipv6(), tcp.into_inner());
            }
            self.queue.pop_front();
            self.left -= 1;
            self.stack.handle_frame(slot, self.now);
            busy = true;
        }
        while let Some((flow, slot)) = self.written.pop(self.now) {
            self.stack.handle_event(Event::TapWritten { flow, slot }, self.now);
            busy = true;
        }
        for _ in 0..batch {
            if self.is_tired() {
                break;
            }
            let Some(event) = self.host.poll(self.now) else { break };
            self.stack.handle_event(event, self.now);
            busy = true;
        }
        self.stack.handle_timeout(self.now);
        while let Some(action) = self.stack.poll_action(self.now) {
            busy = true;
            match action {
                Action::TapWrite { slot, keep } => self.tap_write(slot, keep),
                action => self.host.act(action, self.now),
            }
        }
        self.peak = self.peak.max(self.stack.pools().large.lent());
        while let Some(packet) = self.down.receive(self.now) {
            busy = true;
            self.guest.deliver(packet);
        }
        busy
    }

    /// Whether the worker can do no more in this millisecond.
    fn is_tired(&self) -> bool {
        self.capacity.is_some() && self.left <= 0
    }

    fn tap_write(&mut self, slot: Slot, keep: Option<FlowId>) {
        self.print("<", slot.bytes());
        if let Some(answer) = tap::neighbour(slot.bytes()) {
            self.up.send(self.now, answer);
        }
        self.left -= 1;
        for packet in tap::split(slot.bytes(), &mut self.wire) {
            self.down.send(self.now, packet);
        }
        if let Some(flow) = keep {
            self.host.assert_open(flow);
            // Writes complete in order.
            let at = self.now + Millis(self.rng.range(0, self.spec.tap_delay));
            self.last_written = self.last_written.max(at);
            self.written.push(self.last_written, (flow, slot));
        }
    }

    fn print(&self, way: &str, frame: &[u8]) {
        if self.trace
            && let Some((_, tcp)) = frame.get(24..).and_then(tap::tcp_of)
        {
            eprintln!("{:>8} {way} {tcp}", (self.now - self.epoch).0);
        }
    }

    fn next(&mut self) -> Option<Time> {
        let attacked = self.attack.as_ref().is_some_and(|attack| attack.until > self.now);
        let soon = (!self.queue.is_empty() || attacked).then_some(self.now + Millis(1));
        let mend = (!self.mended).then_some(self.epoch + Millis(self.spec.mend));
        [
            self.guest.next(self.now),
            self.up.next(),
            self.down.next(),
            self.host.next(),
            self.written.next(),
            self.calls.next(),
            self.stack.poll_timeout(),
            soon,
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|at| mend.map_or(at, |mend| at.min(mend)))
        .map(|at| if at <= self.now { self.now + Millis(1) } else { at })
    }

    fn over(&self) -> bool {
        self.host.open == 0
            && self.stack.stats().flows == 0
            && self.guest.apps.iter().all(|app| app.outcome != Outcome::Open)
            && self.host.reports.iter().zip(&self.guest.apps).all(|(report, app)| {
                // A guest may leave before its SYN has arrived.
                report.connects > 0 || app.outcome == Outcome::Left
            })
            && self.queue.is_empty()
            && self.calls.next().is_none()
            && self.up.next().is_none()
            && self.written.next().is_none()
    }

    fn verdict(&mut self) {
        let pools = self.stack.pools();
        assert_eq!((pools.large.lent(), pools.small.lent()), (0, 0), "slots leak");
        let faultless = self.spec.up.loss + self.spec.up.truncate + self.spec.down.loss == 0
            && self.spec.down.truncate + self.spec.down.corrupt == 0;
        // A SYN that comes again after the end opens a connection that the guest resets.
        let again = self.spec.up.duplicate + self.spec.up.reorder > 0;
        for (i, (app, report)) in self.guest.apps.iter().zip(&self.host.reports).enumerate() {
            let spec = &app.spec;
            if spec.clean() {
                assert_eq!(app.outcome, Outcome::Finished, "flow {i}");
                assert_eq!(app.received, spec.host_bytes, "flow {i}: bytes to the guest");
                assert!(app.eof, "flow {i}: the guest saw no end");
                assert_eq!(report.taken, spec.guest_bytes, "flow {i}: bytes to the host");
                assert!(report.shutdown, "flow {i}: the host saw no end");
                assert!(report.connects == 1 || again, "flow {i}: connected again");
                if faultless && !again {
                    assert_eq!(report.ended.map(|e| e.reset), Some(false), "flow {i}: reset");
                }
                continue;
            }
            if let Fate::Vanishes(ms) = spec.guest_fate
                && let Some(ended) = report.ended
            {
                let silent = ended.at - (self.epoch + Millis(spec.start + ms));
                assert!(silent < Millis::secs(1500), "flow {i}: lived on for {silent:?}");
            }
            if spec.guest_fate != Fate::Lives && report.connects > 0 {
                let ended = report.ended.expect("over");
                // Cut off in the middle, the host must not take it for an end.
                assert!(
                    ended.reset || report.shutdown,
                    "flow {i}: the host was not told of the reset"
                );
            }
            if spec.host_fate != Fate::Lives && spec.guest_fate == Fate::Lives {
                let whole = app.eof && app.received == spec.host_bytes;
                assert!(app.outcome == Outcome::Reset || whole, "flow {i}: the guest was not told");
            }
            if spec.connect.errno != 0 {
                assert!(!app.connected, "flow {i}: connected to nothing");
            }
        }
        let stats = self.stack.stats();
        assert_eq!(stats.dropped(Drop::BacklogFull), 0, "data in the window was dropped");
    }

    fn describe(&self) -> String {
        use std::fmt::Write;
        let mut out = format!("at {} ms", (self.now - self.epoch).0);
        for (i, (app, report)) in self.guest.apps.iter().zip(&self.host.reports).enumerate() {
            let state = self.guest.state(i);
            let done = app.outcome != Outcome::Open && report.ended.is_some();
            if !done {
                let _ = write!(
                    out,
                    "\nflow {i}: {state} {:?} sent {} received {} eof {}; {report:?}",
                    app.outcome, app.sent, app.received, app.eof
                );
            }
        }
        let pools = self.stack.pools();
        let _ = write!(out, "\n{pools:?} drops {:?}", self.stack.stats().drops);
        out
    }
}

/// A moment at which the core's initial sequence number for the first flow lies just before 2^32: it
/// is a hash of the key plus 250 a millisecond (src/flow/tcp/mod.rs).
fn wrap_epoch(spec: &Spec, secret: &[u64; 2]) -> Time {
    let flow = &spec.flows[0];
    let pair = |guest: std::net::IpAddr, host: std::net::IpAddr| {
        FlowKey::pair(Proto::Tcp, (guest, FROM).into(), (host, TO).into())
    };
    let key =
        if flow.v6 { pair(GUEST6.into(), HOST6.into()) } else { pair(GUEST4.into(), HOST4.into()) };
    let hash = key.hash(&[secret[1].rotate_left(23), secret[0]]);
    Time(u64::from(0u32.wrapping_sub(hash).wrapping_sub(5000)) / 250 - flow.start.min(100))
}
