//! One TCP connection through the core, with the guest's kernel and the worker played by a loop that
//! writes headers and never a byte of payload.

use std::net::Ipv4Addr;

use ringtap::arena::{Pools, Slot};
use ringtap::config::NetConfig;
use ringtap::flow::{Action, Event, FlowId, Received};
use ringtap::frame::build::{self, Out};
use ringtap::frame::{L3, Pair, parse};
use ringtap::limits::HEADROOM;
use ringtap::stack::Stack;
use ringtap::stats::Stats;
use ringtap::time::Time;
use smoltcp::wire::{TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

/// The guest's MSS: that of a path with an MTU of 1040, so that 1 KiB is a segment of a stream, whose ACK
/// never waits for an answer to go with.
pub(crate) const MSS: usize = 1000;
/// The most payload of one frame to the guest in whole segments.
pub(crate) const LARGEST: usize = 65 * MSS;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The connection, open.
pub(crate) struct Driver {
    stack: Stack,
    pools: Pools,
    flow: Option<FlowId>,
    /// Next sequence number of the guest, and the next it expects.
    seq: u32,
    ack: u32,
    /// A receive that the core waits for.
    receive: u32,
    /// Frames that the guest has got.
    pub(crate) frames: u64,
}

impl Driver {
    /// Opens the connection.
    pub(crate) fn new() -> Self {
        let pools = Pools::new().unwrap();
        let mut this = Self {
            stack: Stack::new(NetConfig::native(), pools.clone(), [1, 2], Time(0)),
            pools,
            flow: None,
            seq: 1000,
            ack: 0,
            receive: 0,
            frames: 0,
        };
        this.frame(TcpControl::Syn, 0);
        this.turn();
        this.seq += 1;
        let flow = this.flow.expect("a connect");
        this.stack.handle_event(Event::TcpConnected { flow, result: Ok(()) }, Time(0));
        this.turn();
        this.frame(TcpControl::None, 0);
        this.turn();
        assert!(this.receive > 0, "the connection is not open");
        this
    }

    /// The guest sends `len` bytes in one frame; the host takes them; the guest has its ACK.
    pub(crate) fn up(&mut self, len: usize) {
        let before = self.frames;
        self.frame(TcpControl::None, len);
        self.seq = self.seq.wrapping_add(len as u32);
        self.turn();
        assert_eq!(self.frames, before + 1, "an ACK");
    }

    /// The host sends `len` bytes; the guest has them in one frame and acknowledges.
    pub(crate) fn down(&mut self, len: usize) {
        assert!(self.receive as usize >= len, "{} wanted, {len} given", self.receive);
        self.receive = 0;
        let mut slot = self.pools.large.take().expect("a slot");
        slot.set_range(HEADROOM, len);
        let (before, flow) = (self.frames, self.flow.expect("a flow"));
        let result = Received::Data { slot, more: false };
        self.stack.handle_event(Event::TcpReceived { flow, result }, Time(0));
        self.turn();
        assert_eq!(self.frames, before + 1, "a frame");
        self.frame(TcpControl::None, 0);
        self.turn();
    }

    /// What the core has counted.
    pub(crate) fn stats(&self) -> Stats {
        self.stack.stats()
    }

    /// A frame of the guest; its payload is whatever the slot held.
    fn frame(&mut self, control: TcpControl, len: usize) {
        let mut slot = self.pools.large.take().expect("a slot");
        slot.set_range(HEADROOM, len);
        let syn = control == TcpControl::Syn;
        let repr = TcpRepr {
            src_port: 40_000,
            dst_port: 80,
            control,
            seq_number: TcpSeqNumber(self.seq as i32),
            ack_number: (!syn).then_some(TcpSeqNumber(self.ack as i32)),
            window_len: 0xffff,
            window_scale: syn.then_some(7),
            max_seg_size: syn.then_some(MSS as u16),
            ..build::EMPTY_TCP
        };
        let pair = Pair::V4(GUEST, HOST);
        let out = Out { eth_src: [4; 6], eth_dst: [2; 6], pair, ttl: 64, tos: 0, df: true };
        build::tcp(&mut slot, &out, &repr, MSS as u16);
        self.stack.handle_frame(slot, Time(0));
    }

    /// A turn of the worker: what the core asks for is done at once.
    fn turn(&mut self) {
        self.stack.handle_timeout(Time(0));
        while let Some(action) = self.stack.poll_action(Time(0)) {
            match action {
                Action::TapWrite { slot, keep } => {
                    self.receive_frame(&slot);
                    if let Some(flow) = keep {
                        self.stack.handle_event(Event::TapWritten { flow, slot }, Time(0));
                    }
                }
                Action::TcpConnect { flow, .. } => self.flow = Some(flow),
                Action::TcpSend { flow, chain } => {
                    let result = Ok(chain.bytes());
                    self.stack.handle_event(Event::TcpSent { flow, chain, result }, Time(0));
                }
                Action::TcpRecv { max, .. } => self.receive = max,
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    /// The guest's kernel takes a frame: it looks at the headers.
    fn receive_frame(&mut self, slot: &Slot) {
        self.frames += 1;
        let bytes = slot.bytes();
        let parsed = parse(bytes).expect("a frame");
        let L3::Ip(ip) = parsed.l3 else { panic!("not IP") };
        let packet = TcpPacket::new_checked(&bytes[ip.start..ip.end]).expect("TCP");
        assert!(!packet.rst());
        let len = packet.payload().len() as u32 + u32::from(packet.syn());
        self.ack = (packet.seq_number().0 as u32).wrapping_add(len);
    }
}
