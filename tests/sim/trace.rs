//! One connection, segment by segment: what the core does is written down as a packet trace.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use ringtap::arena::{Chain, Pools, Slot};
use ringtap::config::NetConfig;
use ringtap::flow::{Action, Errno, Event, FlowId, Received};
use ringtap::limits::{ACK_DELAY, HEADROOM};
use ringtap::stack::Stack;
use ringtap::time::{Millis, Time};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use crate::guest::{GUEST4, HOST4};
use crate::tap;

/// A segment; what a test does not care for is not compared.
#[derive(Clone, Debug)]
pub struct Seg {
    pub control: TcpControl,
    pub seq: u32,
    pub ack: Option<u32>,
    pub window: u16,
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub len: usize,
}

impl PartialEq for Seg {
    /// Kind, numbers and length; PSH is a hint.
    fn eq(&self, other: &Self) -> bool {
        let kind = |c| if c == TcpControl::Psh { TcpControl::None } else { c };
        (kind(self.control), self.seq, self.ack, self.len)
            == (kind(other.control), other.seq, other.ack, other.len)
    }
}

fn seg(control: TcpControl, seq: u32, ack: Option<u32>, len: usize) -> Seg {
    Seg { control, seq, ack, window: 65535, mss: None, scale: None, len }
}

pub fn syn(seq: u32) -> Seg {
    Seg { mss: Some(1460), scale: Some(7), ..seg(TcpControl::Syn, seq, None, 0) }
}
pub fn syn_ack(seq: u32, ack: u32) -> Seg {
    seg(TcpControl::Syn, seq, Some(ack), 0)
}
pub fn ack(seq: u32, ack: u32) -> Seg {
    seg(TcpControl::None, seq, Some(ack), 0)
}
pub fn data(seq: u32, ack: u32, len: usize) -> Seg {
    seg(TcpControl::None, seq, Some(ack), len)
}
pub fn fin(seq: u32, ack: u32) -> Seg {
    seg(TcpControl::Fin, seq, Some(ack), 0)
}
pub fn rst(seq: u32) -> Seg {
    seg(TcpControl::Rst, seq, None, 0)
}
pub fn rst_ack(seq: u32, ack: u32) -> Seg {
    seg(TcpControl::Rst, seq, Some(ack), 0)
}

impl Seg {
    pub fn window(self, window: u16) -> Self {
        Self { window, ..self }
    }
    pub fn fin(self) -> Self {
        Self { control: TcpControl::Fin, ..self }
    }
}

/// A core with one connection in it.
pub struct Trace {
    pub stack: Stack,
    pub now: Time,
    /// What the core has written, and what it has asked for, oldest first.
    segments: VecDeque<Seg>,
    actions: VecDeque<Action>,
    /// Slots of writes that have not come back.
    writes: VecDeque<(FlowId, Slot)>,
    /// Writes do not come back until [`Trace::written`].
    pub slow_tap: bool,
    pub flow: FlowId,
    /// Other flows that were opened.
    pub opened: Vec<FlowId>,
    /// Guest's and host's.
    pub ports: (u16, u16),
    pub host: Ipv4Addr,
}

impl Trace {
    pub fn new() -> Self {
        Self::with_mtu(1500)
    }

    pub fn with_mtu(mtu: u16) -> Self {
        let net = NetConfig { mtu, ..NetConfig::native() };
        let stack = Stack::new(net, Pools::new().unwrap(), [3, 4], Time(1000));
        Self {
            stack,
            now: Time(1000),
            segments: VecDeque::new(),
            actions: VecDeque::new(),
            writes: VecDeque::new(),
            slow_tap: false,
            flow: FlowId { index: 0, generation: 0 },
            opened: Vec::new(),
            ports: (40000, 1000),
            host: HOST4,
        }
    }

    /// A connection whose handshake is over. The guest's next number is 1001; yields ours.
    pub fn open() -> (Self, u32) {
        Self::open_with(syn(1000))
    }

    /// The same after this SYN, which has number 1000.
    pub fn open_with(syn: Seg) -> (Self, u32) {
        Self::new().shake_hands(syn)
    }

    /// Opens the connection.
    pub fn shake_hands(self, syn: Seg) -> (Self, u32) {
        let mut t = self;
        let window = syn.window;
        t.send(syn);
        t.connect(Ok(()));
        let answer = t.next();
        assert_eq!(answer, syn_ack(answer.seq, 1001));
        let ours = answer.seq.wrapping_add(1);
        t.send(ack(1001, ours).window(window));
        t.quiet();
        (t, ours)
    }

    /// The guest sends a segment (payload: zeroes).
    pub fn send(&mut self, seg: Seg) {
        self.frame(&seg);
        self.turn();
    }

    pub fn frame(&mut self, seg: &Seg) {
        let payload = vec![0; seg.len];
        let repr = TcpRepr {
            src_port: self.ports.0,
            dst_port: self.ports.1,
            control: seg.control,
            seq_number: TcpSeqNumber(seg.seq as i32),
            ack_number: seg.ack.map(|n| TcpSeqNumber(n as i32)),
            window_len: seg.window,
            window_scale: seg.scale,
            max_seg_size: seg.mss,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &payload,
        };
        let (src, dst) = (IpAddress::from(GUEST4), IpAddress::from(self.host));
        let mut segment = vec![0; repr.buffer_len()];
        repr.emit(
            &mut TcpPacket::new_unchecked(&mut segment[..]),
            &src,
            &dst,
            &ChecksumCapabilities::default(),
        );
        self.raw(&tap::frame(&tap::packet(GUEST4.into(), self.host.into(), 6, &segment), None));
    }

    /// A frame with virtio header, whatever its bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        let slot = tap::slot(&self.stack, bytes);
        self.stack.handle_frame(slot, self.now);
    }

    /// What the core has asked for on behalf of other flows than this.
    pub fn others(&mut self) -> Vec<Action> {
        let (ours, others): (Vec<_>, Vec<_>) = self.actions.drain(..).partition(|a| match a {
            Action::TcpConnect { flow, .. }
            | Action::TcpSend { flow, .. }
            | Action::TcpPollOut { flow }
            | Action::TcpRecv { flow, .. }
            | Action::TcpRecvMany { flow, .. }
            | Action::TcpPollError { flow }
            | Action::TcpShutdown { flow }
            | Action::DgramOpen { flow, .. }
            | Action::DgramSend { flow, .. }
            | Action::Migrate { flow }
            | Action::Close { flow, .. } => *flow == self.flow,
            Action::TapWrite { .. }
            | Action::TapRun { .. }
            | Action::HandOver { .. }
            | Action::DnsUsed => false,
        });
        self.actions = ours.into();
        self.opened.extend(others.iter().filter_map(|action| match action {
            Action::TcpConnect { flow, .. } => Some(*flow),
            _ => None,
        }));
        others
    }

    /// Several segments in one turn.
    pub fn burst(&mut self, segs: &[Seg]) {
        for seg in segs {
            self.frame(seg);
        }
        self.turn();
    }

    /// Ends a turn: time, then actions.
    pub fn turn(&mut self) {
        loop {
            self.stack.handle_timeout(self.now);
            while let Some(action) = self.stack.poll_action(self.now) {
                match action {
                    Action::TapWrite { slot, keep } => {
                        let packet = &slot.bytes()[24..];
                        if let Some((_, tcp)) = tap::tcp_of(packet)
                            && (tcp.dst_port(), tcp.src_port()) == self.ports
                        {
                            let repr = TcpRepr::parse(
                                &tcp,
                                &IpAddress::from(HOST4),
                                &IpAddress::from(GUEST4),
                                &ChecksumCapabilities::ignored(),
                            )
                            .expect("a segment of ours");
                            self.segments.push_back(Seg {
                                control: repr.control,
                                seq: repr.seq_number.0 as u32,
                                ack: repr.ack_number.map(|n| n.0 as u32),
                                window: repr.window_len,
                                mss: repr.max_seg_size,
                                scale: repr.window_scale,
                                len: repr.payload.len(),
                            });
                        }
                        if let Some(flow) = keep {
                            self.writes.push_back((flow, slot));
                        }
                    }
                    Action::DnsUsed => {}
                    action => self.actions.push_back(action),
                }
            }
            if self.slow_tap || self.writes.is_empty() {
                return;
            }
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        while let Some((flow, slot)) = self.writes.pop_front() {
            self.stack.handle_event(Event::TapWritten { flow, slot }, self.now);
        }
    }

    /// The slots of all writes come back.
    pub fn written(&mut self) {
        self.give_back();
        self.turn();
    }

    /// Lets time pass, stopping wherever the core wants to.
    pub fn wait(&mut self, ms: u64) {
        let until = self.now + Millis(ms);
        while let Some(at) = self.stack.poll_timeout().filter(|at| *at <= until) {
            self.now = at.max(self.now + Millis(1));
            self.turn();
        }
        self.now = self.now.max(until);
        self.turn();
    }

    /// The host reports.
    pub fn event(&mut self, event: Event) {
        self.stack.handle_event(event, self.now);
        self.turn();
    }

    /// A peer has opened a connection to the guest's port, and the guest has said where it is.
    pub fn accept(&mut self) {
        let (guest, peer) = ((GUEST4, self.ports.0).into(), (self.host, self.ports.1).into());
        self.flow = self.stack.handle_accepted(peer, guest, self.now).expect("a flow");
        let mut reply = vec![0; 10];
        reply.extend_from_slice(&tap::GATEWAY_MAC);
        reply.extend_from_slice(&tap::GUEST_MAC);
        reply.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        reply.extend_from_slice(&tap::GUEST_MAC);
        reply.extend_from_slice(&GUEST4.octets());
        reply.extend_from_slice(&tap::GATEWAY_MAC);
        reply.extend_from_slice(&[10, 0, 2, 2]);
        self.raw(&reply);
        self.turn();
    }

    /// The next thing the core has asked for.
    pub fn action(&mut self) -> Action {
        self.actions.pop_front().expect("the core asks for something")
    }

    /// The connect that the core asked for has ended.
    pub fn connect(&mut self, result: Result<(), Errno>) {
        let Action::TcpConnect { flow, .. } = self.action() else { panic!("no connect") };
        self.flow = flow;
        self.event(Event::TcpConnected { flow, result });
    }

    /// The send that the core asked for; ends with `Ok(n)`, at most all of it.
    pub fn sent(&mut self, n: u32) {
        let chain = self.sending();
        let result = Ok(n.min(chain.bytes()));
        self.event(Event::TcpSent { flow: self.flow, chain, result });
    }

    /// The send that the core asked for.
    pub fn sending(&mut self) -> Chain {
        self.skip_receive();
        match self.action() {
            Action::TcpSend { chain, .. } => chain,
            other => panic!("no send but {other:?}"),
        }
    }

    /// How much the core asks to receive.
    pub fn receiving(&mut self) -> u32 {
        match self.action() {
            Action::TcpRecv { max, .. } => max,
            other => panic!("no receive but {other:?}"),
        }
    }

    fn skip_receive(&mut self) {
        while matches!(self.actions.front(), Some(Action::TcpRecv { .. })) {
            self.actions.pop_front();
        }
    }

    /// The host sends `n` bytes (the receive was asked for).
    pub fn receive(&mut self, n: usize) {
        let mut slot = self.stack.pools().large.take().expect("a free slot");
        slot.set_range(HEADROOM, n);
        let result = Received::Data { slot, more: false };
        self.event(Event::TcpReceived { flow: self.flow, result });
    }

    /// The host ends its stream.
    pub fn eof(&mut self) {
        self.event(Event::TcpReceived { flow: self.flow, result: Received::Eof });
    }

    /// The next segment the core has written; an ACK may have waited for data to go with.
    pub fn next(&mut self) -> Seg {
        if self.segments.is_empty() {
            self.wait(ACK_DELAY.0);
        }
        self.segments.pop_front().expect("the core writes a segment")
    }

    /// The next segment is this one.
    pub fn expect(&mut self, seg: Seg) -> Seg {
        let next = self.next();
        assert_eq!(next, seg);
        next
    }

    /// Nothing more was written.
    pub fn quiet(&mut self) {
        assert!(self.segments.is_empty(), "unexpected: {:?}", self.segments);
    }

    /// Segments written since last looked at.
    pub fn segments(&mut self) -> Vec<Seg> {
        self.segments.drain(..).collect()
    }

    /// The core closes the socket, with a RST or without; it was the last thing it asked for.
    pub fn closes(&mut self, with_reset: bool) {
        let last = self.actions.pop_back().expect("the core closes");
        let Action::Close { flow, reset } = last else { panic!("no close but {last:?}") };
        assert_eq!(reset, with_reset, "with RST?");
        self.actions.clear();
        self.stack.handle_event(Event::Closed { flow }, self.now);
        if self.writes.is_empty() {
            let pools = self.stack.pools();
            assert_eq!((pools.large.lent(), pools.small.lent()), (0, 0), "slots leak");
        }
    }

    /// The core asks for nothing but receives and polls.
    pub fn lives(&mut self) {
        for action in &self.actions {
            assert!(!matches!(action, Action::Close { .. }), "the flow is closed");
        }
    }

    /// Forgets polls and receives.
    pub fn forget_polls(&mut self) {
        self.actions.retain(|a| matches!(a, Action::TcpSend { .. } | Action::TcpShutdown { .. }));
    }

    /// The core asks for nothing.
    pub fn asks_nothing(&mut self) {
        assert!(self.actions.is_empty(), "unexpected: {:?}", self.actions);
    }

    /// Forgets what the core has asked for.
    pub fn forget(&mut self) {
        self.actions.clear();
    }
}
