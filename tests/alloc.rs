//! No allocation per packet: TCP and UDP through the core with an allocator that counts.
//!
//! It counts by thread: the test harness has one of its own, which allocates when it likes.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};

use ringtap::arena::{Pools, Slot};
use ringtap::config::NetConfig;
use ringtap::flow::local::Local;
use ringtap::flow::{Action, Event, FlowId, Received};
use ringtap::limits::HEADROOM;
use ringtap::stack::Stack;
use ringtap::time::Time;
use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket, TcpSeqNumber, UdpPacket};

struct Counting;

thread_local! {
    // Without a destructor and with a constant start, so that the counter itself allocates nothing.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.with(|n| n.set(n.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it came, which keeps the trait's contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`, and `ptr` came from `System`.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const HOST: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
const L4: usize = 10 + 14 + 20;

/// What the worker would do at once: every send is taken whole, every receive filled.
struct Bed {
    stack: Stack,
    now: Time,
    /// Guest's next number, and the next it expects.
    seq: u32,
    ack: u32,
    connected: Option<FlowId>,
    mapping: Option<FlowId>,
    /// A receive that the core asked for.
    asked: Option<u32>,
    to_host: u64,
    datagrams: u64,
}

impl Bed {
    fn frame(&self, proto: IpProtocol, l4: usize) -> Slot {
        let mut slot = self.stack.pools().large.take().expect("a free slot");
        slot.set_range(0, L4 + l4);
        let bytes = slot.bytes_mut();
        bytes[..L4].fill(0);
        bytes[10..16].copy_from_slice(&[0x52, 0x55, 10, 0, 2, 2]);
        bytes[16..22].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        bytes[22..24].copy_from_slice(&[8, 0]);
        let mut ip = Ipv4Packet::new_unchecked(&mut bytes[24..]);
        ip.set_version(4);
        ip.set_header_len(20);
        ip.set_total_len((20 + l4) as u16);
        ip.set_hop_limit(64);
        ip.set_next_header(proto);
        ip.set_src_addr(GUEST);
        ip.set_dst_addr(HOST);
        slot
    }

    fn segment(&mut self, syn: bool, len: usize) {
        let mut slot = self.frame(IpProtocol::Tcp, 24 + len);
        let mut tcp = TcpPacket::new_unchecked(&mut slot.bytes_mut()[L4..]);
        tcp.clear_flags();
        tcp.set_src_port(40000);
        tcp.set_dst_port(80);
        tcp.set_seq_number(TcpSeqNumber(self.seq as i32));
        tcp.set_ack_number(TcpSeqNumber(self.ack as i32));
        tcp.set_header_len(24);
        tcp.set_syn(syn);
        tcp.set_ack(!syn);
        tcp.set_window_len(60000);
        // Window scale 5 on a SYN, padding otherwise.
        let options: [u8; 4] = if syn { [3, 3, 5, 0] } else { [1; 4] };
        tcp.options_mut().copy_from_slice(&options);
        self.seq = self.seq.wrapping_add(len as u32 + u32::from(syn));
        self.stack.handle_frame(slot, self.now);
    }

    fn datagram(&mut self, len: usize) {
        let mut slot = self.frame(IpProtocol::Udp, 8 + len);
        let mut udp = UdpPacket::new_unchecked(&mut slot.bytes_mut()[L4..]);
        udp.set_src_port(40000);
        udp.set_dst_port(9999);
        udp.set_len(8 + len as u16);
        self.stack.handle_frame(slot, self.now);
    }

    fn turn(&mut self) {
        self.stack.handle_timeout(self.now);
        while let Some(action) = self.stack.poll_action(self.now) {
            let event = match action {
                Action::TapWrite { slot, keep } => {
                    self.hear(&slot);
                    keep.map(|flow| Event::TapWritten { flow, slot })
                }
                Action::TcpConnect { flow, .. } => {
                    self.connected = Some(flow);
                    Some(Event::TcpConnected { flow, result: Ok(()) })
                }
                Action::TcpSend { flow, chain } => {
                    let n = chain.bytes();
                    self.to_host += u64::from(n);
                    Some(Event::TcpSent { flow, chain, result: Ok(n) })
                }
                Action::TcpRecv { max, .. } => {
                    self.asked = Some(max);
                    None
                }
                Action::TcpRecvMany { frame, .. } => {
                    self.asked = Some(frame);
                    None
                }
                Action::DgramOpen { flow, .. } => {
                    self.mapping = Some(flow);
                    None
                }
                Action::DgramSend { .. } => {
                    self.datagrams += 1;
                    None
                }
                Action::DnsUsed => None,
                other => panic!("a flowing stream asks for {other:?}"),
            };
            if let Some(event) = event {
                self.stack.handle_event(event, self.now);
            }
        }
    }

    /// The guest notes what it must acknowledge.
    fn hear(&mut self, slot: &Slot) {
        let frame = slot.bytes();
        if frame[33] != 6 {
            return;
        }
        let tcp = TcpPacket::new_checked(&frame[L4..]).expect("a segment");
        let end = (tcp.seq_number().0 as u32)
            .wrapping_add(tcp.payload().len() as u32)
            .wrapping_add(u32::from(tcp.syn()));
        if tcp.syn() || !tcp.payload().is_empty() {
            self.ack = end;
        }
    }

    /// Two frames each way, and acknowledgements.
    fn round(&mut self, i: u64) {
        self.now = Time(self.now.0 + 1);
        self.segment(false, 1000 + (i as usize * 37) % 30_000);
        self.datagram(i as usize * 13 % 9000);
        self.turn();
        if let (Some(max), Some(flow)) = (self.asked.take(), self.connected) {
            let mut slot = self.stack.pools().large.take().expect("a free slot");
            slot.set_range(HEADROOM, max.min(60_000) as usize);
            let result = Received::Data { slot, more: true };
            self.stack.handle_event(Event::TcpReceived { flow, result }, self.now);
        }
        if let Some(flow) = self.mapping {
            let mut slot = self.stack.pools().large.take().expect("a free slot");
            slot.set_range(HEADROOM, i as usize * 7 % 9000);
            let from = SocketAddr::from((HOST, 9999));
            let event = Event::DgramReceived {
                flow,
                slot,
                from,
                local: Local::ANY,
                ttl: Some(60),
                tos: 0,
                segment: 0,
            };
            self.stack.handle_event(event, self.now);
        }
        self.turn();
        self.segment(false, 0);
        self.turn();
    }
}

#[test]
fn nothing_is_allocated_per_packet() {
    let now = Time(0);
    let stack = Stack::new(NetConfig::native(), Pools::new().unwrap(), [1, 2], now);
    let mut bed = Bed {
        stack,
        now,
        seq: 1000,
        ack: 0,
        connected: None,
        mapping: None,
        asked: None,
        to_host: 0,
        datagrams: 0,
    };
    bed.segment(true, 0);
    bed.turn();
    bed.turn();
    bed.segment(false, 0);
    bed.turn();
    for i in 0..100 {
        bed.round(i);
    }
    let (before, start) = (ALLOCATIONS.get(), bed.stack.stats());
    for i in 0..10_000 {
        bed.round(i);
    }
    let (after, stats) = (ALLOCATIONS.get(), bed.stack.stats());
    assert!(before > 0, "the allocator does not count");
    assert_eq!(after - before, 0, "allocations");
    assert_eq!(stats.copied_bytes, 0, "payload was copied");
    // The frames did flow.
    assert!(stats.frames_from_guest - start.frames_from_guest >= 30_000);
    assert!(stats.tcp_to_host - start.tcp_to_host > 100_000_000);
    assert!(stats.tcp_to_guest - start.tcp_to_guest > 100_000_000);
    assert!(bed.datagrams > 10_000);
    assert_eq!(stats.drops, [0; ringtap::stats::DROPS]);
}
