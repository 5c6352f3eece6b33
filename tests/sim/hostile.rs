//! A guest that sends anything: every truncation, every extreme of every byte of a header, lies in the virtio
//! header, fragments, and mixtures of them, at a core with a connection that must go on unharmed.

use std::net::{Ipv4Addr, Ipv6Addr};

use ringtap::flow::{Action, Errno, Event, FlowId, Received};
use ringtap::limits::{ACK_DELAY, HEADROOM, SLOTS_MAX};
use ringtap::stats::Drop;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use crate::guest::{GUEST4, GUEST6, HOST4, HOST6};
use crate::prng::Rng;
use crate::tap;
use crate::trace::{Trace, ack, data};

/// What an attack is made from.
fn templates() -> Vec<Vec<u8>> {
    let gateway4 = Ipv4Addr::new(10, 0, 2, 2);
    let dns4 = Ipv4Addr::new(10, 0, 2, 3);
    let gateway6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
    let nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut out = Vec::new();
    for flags in [0x02, 0x10, 0x18, 0x11, 0x14, 0x04, 0x12, 0x3f, 0x00] {
        let mut tcp = tcp(flags, &[2, 4, 5, 0xb4, 3, 3, 7, 0]);
        tcp.extend_from_slice(&[7; 30]);
        out.push(tap::frame(&v4(HOST4, 6, 0, &tcp), None));
        out.push(tap::frame(&v6(HOST6, 6, &tcp), None));
        out.push(tap::frame(&v4(HOST4, 6, 0, &tcp), Some(10)));
    }
    let query =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01";
    for (port, payload) in [(53, &query[..]), (9999, &[9; 60]), (67, &dhcp()), (1, &[])] {
        for to in [dns4, gateway4, HOST4, Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 251)] {
            out.push(tap::frame(&v4(to, 17, 0, &udp(port, payload)), None));
        }
        for to in [gateway6, HOST6, nodes] {
            out.push(tap::frame(&v6(to, 17, &udp(port, payload)), None));
        }
    }
    let mut run = tap::frame(&v4(HOST4, 17, 0, &udp(9999, &[5; 600])), None);
    run[1] = 5;
    run[4] = 100;
    out.push(run);
    for to in [gateway4, HOST4] {
        out.push(tap::frame(&v4(to, 1, 0, &[8, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4]), None));
        out.push(tap::frame(&v4(to, 1, 0, &[3, 1, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 28]), None));
    }
    let mut solicit = vec![135, 0, 0, 0, 0, 0, 0, 0];
    solicit.extend_from_slice(&gateway6.octets());
    solicit.extend_from_slice(&[1, 1, 2, 0, 0, 0, 0, 1]);
    for (to, icmp) in [
        (nodes, &solicit[..]),
        (gateway6, &solicit[..]),
        (gateway6, &[128, 0, 0, 0, 0, 1, 0, 1, 1, 2][..]),
        (HOST6, &[128, 0, 0, 0, 0, 1, 0, 1, 1, 2][..]),
        (nodes, &[133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1][..]),
    ] {
        let mut packet = v6(to, 58, icmp);
        packet[7] = 255;
        out.push(tap::frame(&packet, None));
    }
    // Fragments: first, middle, last, overlapping, of length zero, beyond 65535.
    for field in [0x2000, 0x2001, 0x0002, 0x2003, 0x0001, 0x1fff, 0x3fff] {
        out.push(tap::frame(&v4(HOST4, 17, field, &udp(9999, &[1; 8])), None));
        out.push(tap::frame(&v4(HOST4, 17, field, &[]), None));
        let mut part = vec![17, 0];
        part.extend_from_slice(&(field << 3 | field >> 13 & 1).to_be_bytes());
        part.extend_from_slice(&[0, 0, 0, 9]);
        part.extend_from_slice(&udp(9999, &[1; 8]));
        out.push(tap::frame(&v6(HOST6, 44, &part), None));
    }
    // Extension headers, in a row.
    let mut chain = Vec::new();
    for next in [60, 43, 0, 60, 17] {
        chain.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]);
    }
    chain.extend_from_slice(&udp(9999, &[1; 8]));
    out.push(tap::frame(&v6(HOST6, 0, &chain), None));
    let mut arp = vec![0; 10];
    arp.extend_from_slice(&[0xff; 6]);
    arp.extend_from_slice(&tap::GUEST_MAC);
    arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend_from_slice(&tap::GUEST_MAC);
    arp.extend_from_slice(&[10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    out.push(arp);
    out
}

fn tcp(flags: u8, options: &[u8]) -> Vec<u8> {
    let mut out = vec![0xc3, 0x51, 0x07, 0xd1, 0, 0, 0x30, 0x39, 0, 0, 0, 7];
    out.extend_from_slice(&[(20 + options.len() as u8) << 2, flags, 0x10, 0, 0, 0, 0, 0]);
    out.extend_from_slice(options);
    out
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![if port == 67 { 0 } else { 0xc3 }, if port == 67 { 68 } else { 0x51 }];
    out.extend_from_slice(&port.to_be_bytes());
    out.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(payload);
    out
}

fn dhcp() -> Vec<u8> {
    let mut out = vec![1, 1, 6, 0, 1, 2, 3, 4];
    out.resize(28, 0);
    out.extend_from_slice(&tap::GUEST_MAC);
    out.resize(236, 0);
    out.extend_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 1, 55, 2, 1, 3, 255]);
    out
}

fn v4(to: Ipv4Addr, proto: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 20];
    out.extend_from_slice(payload);
    let len = out.len() as u16;
    let mut ip = Ipv4Packet::new_unchecked(&mut out[..]);
    ip.set_version(4);
    ip.set_header_len(20);
    ip.set_total_len(len);
    ip.set_ident(77);
    ip.set_hop_limit(64);
    ip.set_next_header(proto.into());
    ip.set_src_addr(GUEST4);
    ip.set_dst_addr(to);
    out[6..8].copy_from_slice(&fragment.to_be_bytes());
    Ipv4Packet::new_unchecked(&mut out[..]).fill_checksum();
    out
}

fn v6(to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 40];
    out.extend_from_slice(payload);
    let mut ip = Ipv6Packet::new_unchecked(&mut out[..]);
    ip.set_version(6);
    ip.set_payload_len(payload.len() as u16);
    ip.set_next_header(next.into());
    ip.set_hop_limit(64);
    ip.set_src_addr(GUEST6);
    ip.set_dst_addr(to);
    out
}

/// The attacked core, and the host's side of what the attack opens.
struct Siege {
    t: Trace,
    rng: Rng,
    seq: u32,
    ours: u32,
    frames: u64,
}

impl Siege {
    fn new(seed: u64) -> Self {
        let (mut t, ours) = Trace::open();
        t.receiving();
        Self { t, rng: Rng::new(seed), seq: 1001, ours, frames: 0 }
    }

    fn attack(&mut self, frame: &[u8]) {
        // Not the connection's own name: a guest may harm its own.
        if let Some((_, tcp)) = frame.get(24..).and_then(tap::tcp_of)
            && tcp.src_port() == 40000
        {
            return;
        }
        self.t.raw(frame);
        self.t.turn();
        let actions = self.host();
        assert!(actions < 32, "one frame made {actions} actions");
        self.frames += 1;
        assert!(self.t.stack.pools().large.available() > SLOTS_MAX / 4, "holds the arena");
        if self.frames.is_multiple_of(500) {
            self.check();
        }
    }

    /// Answers for the flows of the attack, in any way a host may.
    /// Yields the most that was asked for in one turn.
    fn host(&mut self) -> usize {
        let mut most = 0;
        for _ in 0..8 {
            let actions = self.t.others();
            most = most.max(actions.len());
            if actions.is_empty() {
                break;
            }
            for action in actions {
                if let Some(event) = self.answer(action) {
                    self.t.stack.handle_event(event, self.t.now);
                }
            }
            self.t.turn();
        }
        most
    }

    fn answer(&mut self, action: Action) -> Option<Event> {
        let kind = self.rng.below(4);
        let error = Errno(libc::ECONNRESET);
        Some(match action {
            Action::TcpConnect { flow, .. } if kind > 0 => {
                Event::TcpConnected { flow, result: if kind == 1 { Err(error) } else { Ok(()) } }
            }
            Action::TcpSend { flow, chain } => {
                let result = match kind {
                    0 => Err(error),
                    1 => Ok(0),
                    _ => Ok(chain.bytes()),
                };
                Event::TcpSent { flow, chain, result }
            }
            Action::TcpRecv { flow, max } if kind > 0 => {
                Event::TcpReceived { flow, result: self.bytes(kind, max) }
            }
            Action::Close { flow, .. } => Event::Closed { flow },
            _ => return None,
        })
    }

    fn bytes(&self, kind: u64, max: u32) -> Received {
        match (kind, self.t.stack.pools().large.take()) {
            (1, _) => Received::Eof,
            (_, None) => Received::NoBuffer,
            (_, Some(mut slot)) => {
                slot.set_range(HEADROOM, max.min(3000) as usize);
                Received::Data { slot, more: false }
            }
        }
    }

    /// The connection goes on: a byte in, a byte out.
    fn check(&mut self) {
        self.t.segments();
        self.t.send(data(self.seq, self.ours, 100));
        self.seq = self.seq.wrapping_add(100);
        self.t.sent(100);
        self.t.wait(ACK_DELAY.0);
        assert_eq!(self.t.segments(), [ack(self.ours, self.seq)], "the connection is harmed");
        self.t.receive(10);
        assert_eq!(self.t.segments(), [data(self.ours, self.seq, 10)]);
        self.ours = self.ours.wrapping_add(10);
        self.t.send(ack(self.seq, self.ours));
        self.t.forget();
    }

    /// All the attack has opened ends in bounded time, and nothing of it stays.
    fn lift(&mut self) {
        self.check();
        let hour = self.t.now + ringtap::time::Millis::secs(3600);
        while self.t.now < hour {
            // Hosts end what is left; the guest's connection is kept alive.
            self.t.wait(10_000);
            self.host();
            self.t.send(ack(self.seq, self.ours));
            let left: Vec<FlowId> = self.t.opened.drain(..).collect();
            for flow in left {
                let result = Err(Errno(libc::ETIMEDOUT));
                self.t.stack.handle_event(Event::TcpConnected { flow, result }, self.t.now);
                let result = Received::Failed(Errno(libc::ETIMEDOUT));
                self.t.stack.handle_event(Event::TcpReceived { flow, result }, self.t.now);
                self.t.turn();
                self.host();
            }
        }
        self.check();
        assert_eq!(self.t.stack.stats().flows, 1, "flows of the attack are left");
        let pools = self.t.stack.pools();
        assert_eq!(
            (pools.large.lent(), pools.small.lent()),
            (0, 0),
            "slots of the attack are left"
        );
    }
}

/// Extremes of a byte.
fn extremes(byte: u8) -> [u8; 8] {
    [0, 1, 0x7f, 0x80, 0xff, byte.wrapping_add(1), byte.wrapping_sub(1), byte ^ 0x40]
}

#[test]
fn every_truncation() {
    let mut siege = Siege::new(1);
    for frame in templates() {
        for len in 0..=frame.len() {
            siege.attack(&frame[..len]);
        }
    }
    siege.lift();
}

#[test]
fn every_extreme_of_every_byte() {
    let mut siege = Siege::new(2);
    for frame in templates() {
        for at in 0..frame.len().min(130) {
            for byte in extremes(frame[at]) {
                let mut frame = frame.clone();
                frame[at] = byte;
                siege.attack(&frame);
            }
        }
    }
    // It did reach what it attacks.
    let stats = siege.t.stack.stats();
    for why in [
        Drop::Malformed,
        Drop::Unsupported,
        Drop::BadSource,
        Drop::Forbidden,
        Drop::PortZero,
        Drop::NoFlow,
        Drop::OutOfWindow,
    ] {
        assert!(stats.dropped(why) > 0, "no drop was counted as {why:?}");
    }
    assert!(stats.flows > 100, "{} flows", stats.flows);
    siege.lift();
}

#[test]
fn mixtures() {
    let templates = templates();
    for seed in 0..20 {
        let mut siege = Siege::new(seed);
        for _ in 0..4000 {
            let pick = siege.rng.below(templates.len() as u64) as usize;
            let mut frame = templates[pick].clone();
            let rng = &mut siege.rng;
            for _ in 0..rng.range(1, 6) {
                let at = rng.below(frame.len() as u64) as usize;
                match rng.below(6) {
                    0 => frame[at] = extremes(frame[at])[rng.below(8) as usize],
                    1 => frame[at] = rng.next() as u8,
                    2 => frame.truncate(at + 1),
                    3 => {
                        frame.extend(std::iter::repeat_n(at as u8, rng.magnitude(60_000) as usize))
                    }
                    // The virtio header.
                    4 => frame[rng.below(10).min(at as u64) as usize] = rng.next() as u8,
                    _ => {
                        // Lengths, flags and offsets lie near the front.
                        let near = 24 + rng.below(60) as usize;
                        if let Some(byte) = frame.get_mut(near) {
                            *byte = rng.next() as u8;
                        }
                    }
                }
            }
            frame.truncate(65_564);
            siege.attack(&frame);
        }
        siege.lift();
    }
}
