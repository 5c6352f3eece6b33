//! UDP guests: smoltcp sockets that send to some peers each, hosts that answer datagram by datagram, in runs, or
//! out of turn.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use ringtap::arena::Pools;
use ringtap::config::NetConfig;
use ringtap::flow::local::Local;
use ringtap::flow::{Action, DgramKind, Event, FlowId};
use ringtap::limits::{HEADROOM, SLOT_BYTES, UDP_IDLE, UDP_RUN_MAX};
use ringtap::stack::Stack;
use ringtap::stats::Drop;
use ringtap::time::{Millis, Time};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::udp::{self, PacketBuffer, PacketMetadata, Socket};

use crate::guest::{HOST4, HOST6, Port, instant, interface};
use crate::link::{Faults, Link};
use crate::model::Wire;
use crate::prng::Rng;
use crate::tap;

/// Bytes that say what a datagram is: socket, peer, number; then what follows from them.
fn payload(socket: u8, peer: u8, number: u16, len: usize) -> Vec<u8> {
    let [hi, lo] = number.to_be_bytes();
    let mut out = vec![socket, peer, hi, lo];
    let salt = u32::from(number) * 7 + u32::from(peer) * 31;
    out.extend((4..len.max(4)).map(|i| (i as u32 * 13 + (i as u32 >> 8) + salt) as u8));
    out
}

struct Sender {
    handle: SocketHandle,
    v6: bool,
    /// Datagrams sent, and heard by (peer, number).
    sent: HashMap<(u8, u16), usize>,
    heard: HashMap<(u8, u16), u32>,
    next: u16,
}

struct Run {
    stack: Stack,
    iface: smoltcp::iface::Interface,
    port: Port,
    sockets: SocketSet<'static>,
    senders: Vec<Sender>,
    up: Link,
    rng: Rng,
    now: Time,
    kinds: HashMap<FlowId, DgramKind>,
    /// Which sockets of the guest came by which host socket.
    mapping: HashMap<FlowId, u8>,
    answers: VecDeque<(FlowId, SocketAddr, Vec<u8>, u16)>,
    unsolicited: u64,
    /// Whether the guest writes runs, and how many it has written.
    uso: bool,
    runs: u64,
    /// Frames that carried several datagrams to the guest.
    joined: u64,
}

fn peer(v6: bool, peer: u8) -> SocketAddr {
    let ip: IpAddr = if v6 { HOST6.into() } else { HOST4.into() };
    SocketAddr::new(ip, 5000 + u16::from(peer))
}

impl Run {
    fn new(seed: u64, faults: Faults, pools: &Pools) -> Self {
        let mut rng = Rng::new(seed);
        let mut port = Port { mtu: 1500, input: VecDeque::new(), output: Vec::new() };
        let mut sockets = SocketSet::new(Vec::new());
        let senders = (0..rng.range(1, 5) as u8).map(|i| {
            let buffer =
                |n: usize| PacketBuffer::new(vec![PacketMetadata::EMPTY; n], vec![0; n << 11]);
            let mut socket = Socket::new(buffer(8000), buffer(600));
            socket.bind(6000 + u16::from(i)).expect("a free port");
            let handle = sockets.add(socket);
            let v6 = rng.chance(500);
            Sender { handle, v6, sent: HashMap::new(), heard: HashMap::new(), next: 0 }
        });
        let senders = senders.collect();
        let now = Time(rng.below(100_000));
        Self {
            stack: Stack::new(NetConfig::native(), pools.clone(), [seed, 5], now),
            iface: interface(&mut port, seed, now),
            port,
            sockets,
            senders,
            up: Link::new(faults, seed ^ 9, 2..4),
            rng,
            now,
            kinds: HashMap::new(),
            mapping: HashMap::new(),
            answers: VecDeque::new(),
            unsolicited: 0,
            uso: seed % 2 == 1,
            runs: 0,
            joined: 0,
        }
    }

    fn send(&mut self) {
        let index = self.rng.below(self.senders.len() as u64) as usize;
        let to = self.rng.below(4) as u8;
        let len = 4 + self.rng.magnitude(1440) as usize;
        let sender = &mut self.senders[index];
        let bytes = payload(index as u8, to, sender.next, len);
        sender.sent.insert((to, sender.next), bytes.len());
        sender.next += 1;
        let socket = self.sockets.get_mut::<Socket<'_>>(sender.handle);
        socket.send_slice(&bytes, peer(sender.v6, to)).expect("room");
    }

    /// Datagrams of one length to one peer, as a program writes them that uses `UDP_SEGMENT`.
    fn send_run(&mut self) {
        let index = self.rng.below(self.senders.len() as u64) as usize;
        let to = self.rng.below(4) as u8;
        let len = 4 + self.rng.magnitude(1440) as usize;
        let sender = &mut self.senders[index];
        let socket = self.sockets.get_mut::<Socket<'_>>(sender.handle);
        for left in (0..self.rng.range(2, 130)).rev() {
            let len = if left == 0 { self.rng.range(4, len as u64) as usize } else { len };
            let bytes = payload(index as u8, to, sender.next, len);
            if socket.send_slice(&bytes, peer(sender.v6, to)).is_err() {
                return;
            }
            sender.sent.insert((to, sender.next), bytes.len());
            sender.next += 1;
        }
    }

    fn turn(&mut self) {
        self.iface.poll(instant(self.now), &mut self.port, &mut self.sockets);
        let packets = std::mem::take(&mut self.port.output);
        // linux/udp.h: 128 at most, 64 before 6.9.
        for frame in tap::coalesce_udp(packets, if self.uso { 128 } else { 1 }) {
            self.runs += u64::from(frame[1] == 5);
            self.up.send(self.now, frame);
        }
        while let Some(frame) = self.up.receive(self.now) {
            let Some(mut slot) = self.stack.pools().large.take() else { break };
            slot.set_range(0, frame.len());
            slot.bytes_mut().copy_from_slice(&frame);
            self.stack.handle_frame(slot, self.now);
        }
        while !self.answers.is_empty() {
            let Some(mut slot) = self.stack.pools().large.take() else { break };
            let Some((flow, from, bytes, segment)) = self.answers.pop_front() else { break };
            slot.set_range(HEADROOM, bytes.len());
            slot.bytes_mut().copy_from_slice(&bytes);
            let event = Event::DgramReceived {
                flow,
                slot,
                from,
                local: Local::ANY,
                ttl: Some(55),
                tos: 0,
                segment,
            };
            self.stack.handle_event(event, self.now);
        }
        self.stack.handle_timeout(self.now);
        let mut wire = Wire::default();
        while let Some(action) = self.stack.poll_action(self.now) {
            match action {
                Action::TapWrite { slot, keep } => {
                    assert!(keep.is_none(), "a datagram is not kept");
                    self.port.input.extend(tap::split(slot.bytes(), &mut wire));
                }
                Action::TapRun { chain } => {
                    let frame = tap::gather(&chain);
                    self.port.input.extend(tap::split(&frame, &mut wire));
                    self.joined += 1;
                }
                Action::DgramOpen { flow, kind } => {
                    assert!(self.kinds.insert(flow, kind).is_none(), "opened twice");
                }
                Action::DgramSend { flow, slot, to, opts } => {
                    assert!(self.uso || opts.segment == 0, "a run of nobody's");
                    let kind = self.kinds.get(&flow).expect("sends on an open socket");
                    assert_eq!(*kind == DgramKind::Udp6, to.is_ipv6());
                    // The kernel cuts it (udp(7)).
                    let size = if opts.segment == 0 { SLOT_BYTES } else { opts.segment.into() };
                    let parts = slot.bytes().len().div_ceil(size);
                    assert!(opts.segment == 0 || (2..=UDP_RUN_MAX).contains(&parts), "{parts}");
                    for part in slot.bytes().chunks(size) {
                        self.host(flow, part.to_vec(), to);
                    }
                }
                Action::Close { flow, .. } => {
                    self.kinds.remove(&flow).expect("closes an open socket");
                    self.mapping.remove(&flow);
                    self.stack.handle_event(Event::Closed { flow }, self.now);
                }
                Action::DnsUsed => {}
                other => panic!("{other:?}"),
            }
        }
        self.iface.poll(instant(self.now), &mut self.port, &mut self.sockets);
        self.hear();
    }

    /// A datagram at its peer, which answers.
    fn host(&mut self, flow: FlowId, bytes: Vec<u8>, to: SocketAddr) {
        let (socket, named) = (bytes[0], bytes[1]);
        let number = u16::from_be_bytes([bytes[2], bytes[3]]);
        let sender = &self.senders[usize::from(socket)];
        assert_eq!(peer(sender.v6, named), to, "another peer");
        assert_eq!(bytes, payload(socket, named, number, bytes.len()), "other bytes");
        assert_eq!(sender.sent.get(&(named, number)), Some(&bytes.len()), "another length");
        // One mapping for all peers (RFC 4787 REQ-1), and none shared.
        assert_eq!(*self.mapping.entry(flow).or_insert(socket), socket, "another's mapping");
        match self.rng.below(5) {
            0 => {
                // A run: each datagram the same, the last cut short.
                let n = self.rng.range(2, 20) as usize;
                let mut run = bytes.repeat(n);
                run.truncate(run.len() - self.rng.below(bytes.len() as u64 - 3) as usize);
                self.answers.push_back((flow, to, run, bytes.len() as u16));
            }
            1 => {
                let len = self.rng.range(4, 65_507) as usize;
                self.answers.push_back((flow, to, payload(socket, named, number, len), 0));
            }
            2 => {
                // From a port the guest has never sent to: it must not arrive.
                let stranger = SocketAddr::new(to.ip(), 4000);
                self.answers.push_back((flow, stranger, bytes.clone(), 0));
                self.unsolicited += 1;
                self.answers.push_back((flow, to, bytes, 0));
            }
            3 => {
                // One by one, the last cut short.
                let n = self.rng.range(2, 100) as usize;
                let last = self.rng.range(4, bytes.len() as u64) as usize;
                self.answers.extend((1..n).map(|_| (flow, to, bytes.clone(), 0)));
                self.answers.push_back((flow, to, bytes[..last].to_vec(), 0));
            }
            _ => self.answers.push_back((flow, to, bytes, 0)),
        }
    }

    fn hear(&mut self) {
        for (index, sender) in self.senders.iter_mut().enumerate() {
            let socket = self.sockets.get_mut::<Socket<'_>>(sender.handle);
            while let Ok((bytes, meta)) = socket.recv() {
                let meta: udp::UdpMetadata = meta;
                let number = u16::from_be_bytes([bytes[2], bytes[3]]);
                assert_eq!(usize::from(bytes[0]), index, "another socket's");
                let from = SocketAddr::new(meta.endpoint.addr.into(), meta.endpoint.port);
                assert_eq!(from, peer(sender.v6, bytes[1]), "from another endpoint");
                let expected = payload(bytes[0], bytes[1], number, bytes.len());
                assert_eq!(bytes, &expected[..bytes.len()], "other bytes");
                *sender.heard.entry((bytes[1], number)).or_insert(0) += 1;
            }
        }
    }
}

#[test]
fn datagrams_arrive_whole_and_where_they_belong() {
    let pools = Pools::new().unwrap();
    let (mut runs, mut joined) = (0, 0);
    for seed in 0..120 {
        let mut rng = Rng::new(seed ^ 0x0dd);
        let faults = if rng.chance(500) {
            Faults { duplicate: 100, reorder: 100, loss: 50, truncate: 50, corrupt: 50, delay: 5 }
        } else {
            Faults::default()
        };
        let mut run = Run::new(seed, faults, &pools);
        for _ in 0..60 {
            for _ in 0..run.rng.range(1, 8) {
                run.send();
            }
            if run.uso && run.rng.chance(300) {
                run.send_run();
            }
            run.turn();
            run.now = run.now + Millis(run.rng.magnitude(30));
        }
        for _ in 0..30 {
            run.now = run.now + Millis(1);
            run.turn();
        }
        for sender in &run.senders {
            for key in sender.sent.keys() {
                let heard = sender.heard.get(key).copied().unwrap_or(0);
                assert!(faults.loss > 0 || heard >= 1, "seed {seed}: {key:?} had no answer");
            }
        }
        assert_eq!(run.stack.stats().dropped(Drop::Unsolicited), run.unsolicited, "seed {seed}");
        assert_eq!(run.kinds.len(), run.mapping.len());
        // Idle, all mappings end.
        run.now = run.now + UDP_IDLE + Millis(100);
        run.turn();
        runs += run.runs;
        joined += run.joined;
        assert_eq!((run.stack.stats().flows, run.kinds.len()), (0, 0), "seed {seed}");
        drop(run);
        assert_eq!((pools.large.lent(), pools.small.lent()), (0, 0), "slots leak");
    }
    assert!(runs > 200, "{runs} runs");
    assert!(joined > 1000, "{joined} frames of several datagrams");
}
