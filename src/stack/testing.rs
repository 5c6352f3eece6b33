//! A stack on a bench: frames in by hand, actions and frames out. Only for unit tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Stack;
use crate::arena::{Pools, Slot};
use crate::config::NetConfig;
use crate::flow::local::Local;
use crate::flow::{Action, Event, FlowId};
use crate::frame::{self, Ip, L3, Mac, Pair, Parsed, checksum};
use crate::limits::{ETH_LEN, HEADROOM, VNET_LEN};
use crate::stats::{DROPS, Drop};
use crate::time::{Millis, Time};

/// MAC of the guest.
pub(crate) const GUEST_MAC: Mac = [2, 0, 0, 0, 0, 7];
/// The guest's recommended addresses.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub(crate) const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(crate) const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub(crate) const BROADCAST_MAC: Mac = [0xff; 6];

pub(crate) const ETH_ARP: u16 = 0x0806;
pub(crate) const ETH_V4: u16 = 0x0800;
pub(crate) const ETH_V6: u16 = 0x86dd;

/// A stack, its time, and what came out of it.
pub(crate) struct Bed {
    pub(crate) stack: Stack,
    pub(crate) now: Time,
}

impl Bed {
    pub(crate) fn new(net: NetConfig) -> Self {
        let pools = Pools::new().unwrap();
        Self { stack: Stack::new(net, pools, [3, 5], Time(0)), now: Time(0) }
    }

    pub(crate) fn native() -> Self {
        Self::new(NetConfig::native())
    }

    /// The guest sends a frame.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        let mut slot = self.stack.pools().large.take().unwrap();
        slot.set_range(0, frame.len());
        slot.bytes_mut().copy_from_slice(frame);
        self.stack.handle_frame(slot, self.now);
    }

    /// The guest sends a frame; the frames it gets at once.
    pub(crate) fn ask(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.send(frame);
        self.frames()
    }

    /// All frames that wait for the guest; any other action is a failure.
    pub(crate) fn frames(&mut self) -> Vec<Vec<u8>> {
        let mut frames = vec![];
        for action in self.actions() {
            match action {
                Action::TapWrite { slot, keep: None } => frames.push(slot.bytes().to_vec()),
                other => panic!("unexpected {other:?}"),
            }
        }
        frames
    }

    /// All actions that wait.
    pub(crate) fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.stack.poll_action(self.now)).collect()
    }

    /// Time passes in the worker's manner: timers are served when the stack asks for it.
    pub(crate) fn pass(&mut self, time: Millis) {
        let end = self.now + time;
        while let Some(next) = self.stack.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.stack.handle_timeout(self.now);
            if self.stack.poll_timeout() == Some(next) {
                // Timers may be asked for early; the wheel's tick decides.
                self.now = self.now + Millis(8);
            }
        }
        self.now = self.now.max(end);
        self.stack.handle_timeout(self.now);
    }

    /// A datagram arrives at a flow's socket.
    pub(crate) fn receive(&mut self, flow: FlowId, from: SocketAddr, payload: &[u8]) {
        self.receive_at(flow, from, Local::ANY, payload);
    }

    /// The same, at one of the host's addresses.
    pub(crate) fn receive_at(
        &mut self,
        flow: FlowId,
        from: SocketAddr,
        local: Local,
        payload: &[u8],
    ) {
        let mut slot = self.stack.pools().large.take().unwrap();
        slot.set_range(HEADROOM, payload.len());
        slot.bytes_mut().copy_from_slice(payload);
        let event =
            Event::DgramReceived { flow, slot, from, local, ttl: Some(60), tos: 0, segment: 0 };
        self.stack.handle_event(event, self.now);
    }

    pub(crate) fn dropped(&self, why: Drop) -> u64 {
        self.stack.stats().dropped(why)
    }

    pub(crate) fn dropped_in_all(&self) -> u64 {
        self.stack.stats().drops.iter().sum()
    }

    /// Slots that nobody has given back.
    pub(crate) fn lent(&self) -> u32 {
        self.stack.pools().large.lent() + self.stack.pools().small.lent()
    }

    /// Sends every truncation of a frame, every byte of it at other values, and `rounds` versions with
    /// several bytes at random. Nothing may panic or keep a slot, and what the stack did not answer,
    /// take or `ignores` must be counted.
    pub(crate) fn mangle(&mut self, frame: &[u8], rounds: usize, ignores: &dyn Fn(&[u8]) -> bool) {
        let mut rng = Rng(0x5eed);
        let mut versions: Vec<Vec<u8>> = (0..frame.len()).map(|n| frame[..n].to_vec()).collect();
        for at in 0..frame.len() {
            for flip in [0x01, 0x80, 0xff, rng.next() as u8] {
                let mut version = frame.to_vec();
                version[at] ^= flip;
                versions.push(version);
            }
        }
        for _ in 0..rounds {
            let mut version = frame.to_vec();
            for _ in 0..=rng.below(6) {
                let at = rng.below(version.len());
                version[at] = [0, 0xff, rng.next() as u8][rng.below(3)];
            }
            version.truncate(frame.len() - rng.below(8).min(frame.len()));
            versions.push(version);
        }
        for version in versions {
            let before = self.dropped_in_all();
            self.send(&version);
            let answered = !self.actions().is_empty();
            let counted = self.dropped_in_all() > before;
            assert!(answered || counted || ignores(&version), "vanished: {version:02x?}");
        }
    }

    /// The drops that were counted, for a message.
    pub(crate) fn drops(&self) -> [u64; DROPS] {
        self.stack.stats().drops
    }
}

/// A frame with an empty virtio header.
pub(crate) fn ethernet(src: Mac, dst: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; VNET_LEN];
    frame.extend(dst);
    frame.extend(src);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An ARP request.
pub(crate) fn arp_request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(GUEST_MAC);
    arp.extend(sender.octets());
    arp.extend([0; 6]);
    arp.extend(target.octets());
    ethernet(GUEST_MAC, BROADCAST_MAC, ETH_ARP, &arp)
}

/// An IPv4 or IPv6 packet from the guest to the gateway's MAC. TTL 64.
pub(crate) fn ip(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => fragment_v4(src, dst, proto, 0, 0, false, payload),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ipv6(src, dst, proto, 64, payload),
        _ => panic!("two families"),
    }
}

/// An IPv4 fragment; `offset` in bytes.
pub(crate) fn fragment_v4(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    proto: u8,
    id: u16,
    offset: u16,
    more: bool,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend((offset / 8 + if more { 0x2000 } else { 0 }).to_be_bytes());
    packet.extend([64, proto, 0, 0]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    let sum = !checksum::fold(checksum::sum(0, &packet));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    ethernet(GUEST_MAC, NetConfig::native().gateway_mac, ETH_V4, &packet)
}

/// An IPv6 packet.
pub(crate) fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(payload);
    ethernet(GUEST_MAC, NetConfig::native().gateway_mac, ETH_V6, &packet)
}

/// An IPv6 fragment; `offset` in bytes.
pub(crate) fn fragment_v6(
    src: Ipv6Addr,
    dst: Ipv6Addr,
    proto: u8,
    id: u32,
    offset: u16,
    more: bool,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = vec![proto, 0];
    header.extend((offset | u16::from(more)).to_be_bytes());
    header.extend(id.to_be_bytes());
    header.extend(payload);
    ipv6(src, dst, 44, 64, &header)
}

/// A TCP segment without payload, options and checksum, and with a window of 65535.
pub(crate) fn segment(from: SocketAddr, to: SocketAddr, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let mut tcp = vec![];
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    ip(from.ip(), to.ip(), 6, &tcp)
}

/// A UDP datagram with a finished checksum.
pub(crate) fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let pair = Pair::new(src.ip(), dst.ip()).unwrap();
    let len = 8 + payload.len() as u16;
    let mut datagram = vec![];
    for field in [src.port(), dst.port(), len, 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend(payload);
    let sum = !finish(pair, 17, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(src.ip(), dst.ip(), 17, &datagram)
}

/// An ICMP or ICMPv6 message with its checksum (which may come in as anything).
pub(crate) fn icmp(src: IpAddr, dst: IpAddr, hops: u8, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    match (src, dst) {
        (IpAddr::V4(_), _) => {
            let sum = !checksum::fold(checksum::sum(0, &message));
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            ip(src, dst, 1, &message)
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let sum = !finish(Pair::V6(s, d), 58, &message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            ipv6(s, d, 58, hops, &message)
        }
        _ => panic!("two families"),
    }
}

/// The folded sum of a transport packet with pseudo-header: 0xffff when its checksum is right.
pub(crate) fn finish(pair: Pair, proto: u8, packet: &[u8]) -> u16 {
    checksum::fold(checksum::sum(checksum::pseudo_header(pair, proto, packet.len() as u32), packet))
}

/// A frame for the guest, taken apart: its own headers must be right.
pub(crate) fn read(frame: &[u8]) -> (Parsed, Ip) {
    let parsed = frame::parse(frame).expect("a frame of ours parses");
    let L3::Ip(ip) = parsed.l3 else { panic!("not IP: {frame:02x?}") };
    if ip.src.is_ipv4() {
        let header = &frame[ip.l3_start..ip.start];
        assert_eq!(checksum::fold(checksum::sum(0, header)), 0xffff, "IPv4 header checksum");
    }
    assert_eq!(ip.end, frame.len(), "nothing behind the packet");
    assert_eq!(ip.l3_start, VNET_LEN + ETH_LEN);
    (parsed, ip)
}

/// The transport packet of a frame for the guest; its checksum is verified if it is finished.
pub(crate) fn transport(frame: &[u8]) -> (Ip, Vec<u8>) {
    let (parsed, ip) = read(frame);
    let packet = frame[ip.start..ip.end].to_vec();
    let proto = u8::from(ip.proto);
    let pair = Pair::new(ip.src, ip.dst).unwrap();
    if parsed.vnet.csum_start == 0 {
        let sum = match (proto, pair) {
            (1, _) => checksum::fold(checksum::sum(0, &packet)),
            _ => finish(pair, proto, &packet),
        };
        assert_eq!(sum, 0xffff, "checksum of protocol {proto}");
    }
    (ip, packet)
}

/// What an action sends, for a datagram.
pub(crate) fn sent(action: &Action) -> Option<(FlowId, SocketAddr, &[u8])> {
    match action {
        Action::DgramSend { flow, slot, to, .. } => Some((*flow, *to, Slot::bytes(slot))),
        _ => None,
    }
}

/// Numbers from a seed (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
