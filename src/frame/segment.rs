//! From a frame that leaves work to a device (cut it, finish its checksum) to frames that are ready.
//!
//! Only for a TAP without virtio header: one that somebody else opened, or a switch behind a socket.
//! There nobody cuts for us, so payload is copied and summed here; with a virtio header it never is.
//!
//! * TCP is cut into segments of `gso_size` (RFC 9293): sequence numbers go on, FIN and PSH
//!   stay on the last, CWR on the first (RFC 3168 section 6.1.2: once per window).
//! * A run of UDP datagrams is cut into the datagrams.
//! * What is still longer than the MTU is cut into IP fragments (RFC 791 section 3.2, RFC 8200 section
//!   4.5). IPv4's "don't fragment" is dropped there: the one who set it, far behind the host's
//!   socket, cannot be told.
#![forbid(unsafe_code)]

use smoltcp::wire::IpProtocol;

use super::vnet::{GSO_NONE, Header};
use super::{Ip, L3, Pair, checksum, parse};
use crate::limits::{ETH_LEN, VNET_LEN};

/// Longest TCP header: 15 words.
const HEAD_MAX: usize = 60;
/// Length of the IPv6 fragment header.
const FRAG_LEN: usize = 8;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Makes a frame ready in place, if one frame is what it becomes: what follows its virtio header may
/// be written as it is. False: it must go through a [`Cutter`]. A second call changes nothing.
pub fn finish(frame: &mut [u8], mtu: u16) -> bool {
    let Some((header, ip)) = ip_of(frame) else {
        // ARP, or nothing we know: there is nothing to finish.
        return true;
    };
    if header.gso_type != GSO_NONE || ip.end - ip.l3_start > usize::from(mtu) {
        return false;
    }
    let (Some(at), Some(pair)) = (checksum_at(header, &ip), Pair::new(ip.src, ip.dst)) else {
        return true;
    };
    let l4 = &mut frame[ip.start..ip.end];
    if let Some(field) = l4.get_mut(at..at + 2) {
        field.fill(0);
        let sum = transport_checksum(pair, ip.proto, l4, &[]);
        l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    true
}

fn ip_of(frame: &[u8]) -> Option<(Header, Ip)> {
    match parse(frame) {
        Ok(parsed) => match parsed.l3 {
            // A fragment's checksum lies in the whole.
            L3::Ip(ip) if ip.fragment.is_none() => Some((parsed.vnet, ip)),
            L3::Ip(_) | L3::Arp { .. } => None,
        },
        Err(_) => None,
    }
}

/// Where in the transport header the checksum to be finished lies; `None`: it is finished already.
fn checksum_at(header: Header, ip: &Ip) -> Option<usize> {
    match ip.proto {
        _ if header.csum_start == 0 => None,
        IpProtocol::Tcp => Some(16),
        IpProtocol::Udp => Some(6),
        _ => None,
    }
}

/// The checksum of a TCP or UDP datagram whose field is 0. `head` has an even length, or `payload` is
/// empty.
fn transport_checksum(pair: Pair, proto: IpProtocol, head: &[u8], payload: &[u8]) -> u16 {
    let len = (head.len() + payload.len()) as u32;
    let acc = checksum::pseudo_header(pair, proto.into(), len);
    let sum = !checksum::fold(checksum::sum(checksum::sum(acc, head), payload));
    // In UDP a 0 says "no checksum" (RFC 768).
    if sum == 0 && proto == IpProtocol::Udp { 0xffff } else { sum }
}

/// Cuts one frame into ready ones: ask [`Cutter::next_len`], give [`Cutter::write`] that much room,
/// until there is no more.
#[derive(Debug)]
pub struct Cutter<'a> {
    /// Ethernet and IP header, as the frame has them.
    below: &'a [u8],
    pair: Pair,
    proto: IpProtocol,
    /// Where in `head` the checksum lies, when it is ours to compute.
    checksum_at: Option<usize>,
    /// The transport header of the datagram at hand, finished.
    head: [u8; HEAD_MAX],
    head_len: usize,
    /// The transport header as the frame has it.
    template: &'a [u8],
    /// The payload of all datagrams.
    payload: &'a [u8],
    /// Payload of one datagram; never 0.
    size: usize,
    /// Where in `payload` the datagram at hand begins.
    at: usize,
    /// Bytes of the datagram at hand, header included, that are out.
    out: usize,
    /// Whether all is out.
    over: bool,
    /// IP payload that fits one frame.
    room: usize,
    /// IP payload of a fragment: a multiple of 8.
    fragment: usize,
    id: u32,
}

impl<'a> Cutter<'a> {
    /// Begins with a frame (virtio header first). `id` is the IP identification of the first datagram. `None`:
    /// not a frame that [`super::build`] makes.
    pub fn new(frame: &'a [u8], mtu: u16, id: u32) -> Option<Self> {
        let (header, ip) = ip_of(frame)?;
        let pair = Pair::new(ip.src, ip.dst)?;
        if ip.start - ip.l3_start != pair.header_len() {
            return None;
        }
        let l4 = &frame[ip.start..ip.end];
        let head_len = match ip.proto {
            IpProtocol::Tcp => usize::from(l4.get(12)? >> 4) * 4,
            IpProtocol::Udp => 8,
            _ => 0,
        };
        let (template, payload) = l4.split_at_checked(head_len)?;
        if ip.proto == IpProtocol::Tcp && head_len < 20 {
            return None;
        }
        let whole = payload.len().max(1);
        let size = if header.gso_type == GSO_NONE || template.is_empty() {
            whole
        } else {
            usize::from(header.gso_size).clamp(1, whole)
        };
        let mtu = usize::from(mtu);
        let frag_len = if matches!(pair, Pair::V4(..)) { 0 } else { FRAG_LEN };
        let mut this = Self {
            below: &frame[VNET_LEN..ip.start],
            pair,
            proto: ip.proto,
            checksum_at: checksum_at(header, &ip),
            head: [0; HEAD_MAX],
            head_len,
            template,
            payload,
            size,
            at: 0,
            out: 0,
            over: false,
            room: mtu.saturating_sub(pair.header_len()),
            // At least one unit, so that even an MTU that cannot be comes to an end.
            fragment: (mtu.saturating_sub(pair.header_len() + frag_len) & !7).max(8),
            id,
        };
        this.begin();
        Some(this)
    }

    /// The IP identification that the next datagram, of whatever frame, should have.
    pub fn next_id(&self) -> u32 {
        self.id
    }

    /// Payload of the datagram at hand.
    fn chunk(&self) -> &'a [u8] {
        &self.payload[self.at..self.payload.len().min(self.at + self.size)]
    }

    /// Whether the datagram at hand fits one frame.
    fn fits(&self) -> bool {
        self.head_len + self.chunk().len() <= self.room
    }

    /// IP payload (without fragment header) of the coming frame.
    fn piece(&self) -> usize {
        let left = self.head_len + self.chunk().len() - self.out;
        if self.fits() { left } else { left.min(self.fragment) }
    }

    /// Length of the coming frame (no virtio header); `None`: all are out.
    pub fn next_len(&self) -> Option<usize> {
        let frag_len = match self.pair {
            Pair::V6(..) if !self.fits() => FRAG_LEN,
            Pair::V4(..) | Pair::V6(..) => 0,
        };
        (!self.over).then(|| self.below.len() + frag_len + self.piece())
    }

    /// Writes the coming frame.
    ///
    /// # Panics
    /// When `frame` has not the length of [`Cutter::next_len`], or there is none to come.
    pub fn write(&mut self, frame: &mut [u8]) {
        assert_eq!(Some(frame.len()), self.next_len(), "a frame of another length");
        let piece = self.piece();
        let last = self.out + piece == self.head_len + self.chunk().len();
        let (below, rest) = frame.split_at_mut(self.below.len());
        below.copy_from_slice(self.below);
        let ip = &mut below[ETH_LEN..];
        let ip_payload = rest.len() as u16;
        let body = match self.pair {
            Pair::V4(..) => {
                ip[2..4].copy_from_slice(&(ip_payload + 20).to_be_bytes());
                ip[4..6].copy_from_slice(&(self.id as u16).to_be_bytes());
                if !self.fits() {
                    let more = if last { 0 } else { 0x2000 };
                    let field = (self.out / 8) as u16 | more;
                    ip[6..8].copy_from_slice(&field.to_be_bytes());
                }
                ip[10..12].fill(0);
                let sum = !checksum::fold(checksum::sum(0, ip));
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                rest
            }
            Pair::V6(..) => {
                ip[4..6].copy_from_slice(&ip_payload.to_be_bytes());
                if self.fits() {
                    rest
                } else {
                    let next = std::mem::replace(&mut ip[6], IpProtocol::Ipv6Frag.into());
                    let (frag, body) = rest.split_at_mut(FRAG_LEN);
                    let field = self.out as u16 | u16::from(!last);
                    frag[..2].copy_from_slice(&[next, 0]);
                    frag[2..4].copy_from_slice(&field.to_be_bytes());
                    frag[4..].copy_from_slice(&self.id.to_be_bytes());
                    body
                }
            }
        };
        // The piece may begin in the header and end in the payload.
        let head = &self.head[self.out.min(self.head_len)..self.head_len];
        let (of_head, of_payload) = body.split_at_mut(head.len().min(piece));
        of_head.copy_from_slice(&head[..of_head.len()]);
        let from = self.out.saturating_sub(self.head_len);
        of_payload.copy_from_slice(&self.chunk()[from..from + of_payload.len()]);
        self.out += piece;
        if last {
            self.id = self.id.wrapping_add(1);
            self.at += self.chunk().len();
            self.out = 0;
            self.over = self.at >= self.payload.len();
            if !self.over {
                self.begin();
            }
        }
    }

    /// Makes the transport header of the datagram that begins at `at`.
    fn begin(&mut self) {
        let chunk = self.chunk();
        let (first, last) = (self.at == 0, self.at + chunk.len() == self.payload.len());
        let head = &mut self.head[..self.head_len];
        head.copy_from_slice(self.template);
        match self.proto {
            IpProtocol::Tcp => {
                let [a, b, c, d] = [head[4], head[5], head[6], head[7]];
                let seq = u32::from_be_bytes([a, b, c, d]).wrapping_add(self.at as u32);
                head[4..8].copy_from_slice(&seq.to_be_bytes());
                if !last {
                    head[13] &= !(FIN | PSH);
                }
                if !first {
                    head[13] &= !CWR;
                }
            }
            IpProtocol::Udp => {
                let len = (8 + chunk.len()) as u16;
                head[4..6].copy_from_slice(&len.to_be_bytes());
            }
            _ => {}
        }
        if let Some(at) = self.checksum_at {
            head[at..at + 2].fill(0);
            let sum = transport_checksum(self.pair, self.proto, head, chunk);
            head[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        IpAddress, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket,
        UdpRepr,
    };

    use super::*;
    use crate::arena::{Arena, Slot};
    use crate::frame::build::{self, Out};
    use crate::limits::{HEADROOM, IP_LEN_MAX, MTU_MAX, SLOT_BYTES};

    const V4: Pair = Pair::V4(Ipv4Addr::new(203, 0, 113, 9), Ipv4Addr::new(10, 0, 2, 100));
    const V6: Pair = Pair::V6(
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9),
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100),
    );

    fn out(pair: Pair) -> Out {
        Out { eth_src: [2; 6], eth_dst: [4; 6], pair, ttl: 64, tos: 0xb8, df: true }
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn slot(payload: &[u8]) -> Slot {
        let mut slot = Arena::new(SLOT_BYTES, 1).unwrap().take().unwrap();
        slot.bytes_mut().fill(0xee);
        slot.set_range(HEADROOM, payload.len());
        slot.bytes_mut().copy_from_slice(payload);
        slot
    }

    fn tcp(pair: Pair, payload: &[u8], control: TcpControl, mss: u16) -> Slot {
        let mut slot = slot(payload);
        let repr = TcpRepr {
            src_port: 80,
            dst_port: 40000,
            control,
            seq_number: TcpSeqNumber(-100),
            ack_number: Some(TcpSeqNumber(5)),
            window_len: 1000,
            ..build::EMPTY_TCP
        };
        build::tcp(&mut slot, &out(pair), &repr, mss);
        slot
    }

    fn udp(pair: Pair, payload: &[u8], segment: u16) -> Slot {
        let mut slot = slot(payload);
        build::udp(&mut slot, &out(pair), 53, 40000, segment);
        slot
    }

    /// All frames, as the worker makes them; checks what holds for each: length within the MTU, Ethernet
    /// header, IP checksum, TTL and TOS.
    fn cut(slot: &mut Slot, mtu: u16) -> Vec<Vec<u8>> {
        if finish(slot.bytes_mut(), mtu) {
            let once = slot.bytes().to_vec();
            assert!(finish(slot.bytes_mut(), mtu));
            assert_eq!(once, slot.bytes(), "finished twice");
            return vec![once[VNET_LEN..].to_vec()];
        }
        let mut cutter = Cutter::new(slot.bytes(), mtu, 0xffff_fffe).unwrap();
        let mut frames = vec![];
        while let Some(len) = cutter.next_len() {
            let mut frame = vec![0xaa; len];
            cutter.write(&mut frame);
            assert!(len <= usize::from(mtu) + ETH_LEN);
            frames.push(frame);
        }
        frames
    }

    fn ip(frame: &[u8]) -> (Ip, Vec<u8>) {
        let mut with_vnet = vec![0; VNET_LEN];
        with_vnet.extend(frame);
        let parsed = parse(&with_vnet).unwrap();
        assert_eq!((parsed.eth_src, parsed.eth_dst), ([2; 6], [4; 6]));
        let L3::Ip(ip) = parsed.l3 else { panic!("not IP") };
        assert_eq!((ip.ttl, ip.tos, ip.end), (64, 0xb8, with_vnet.len()));
        if ip.src.is_ipv4() {
            let packet = Ipv4Packet::new_checked(&with_vnet[ip.l3_start..]).unwrap();
            assert!(packet.verify_checksum());
            if ip.fragment.is_none() {
                Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).unwrap();
            }
        }
        (ip, with_vnet[ip.start..ip.end].to_vec())
    }

    /// One TCP segment, its checksum verified by smoltcp.
    fn tcp_of(frame: &[u8]) -> (u32, u8, Vec<u8>) {
        let (ip, l4) = ip(frame);
        assert!(ip.fragment.is_none() && ip.df);
        let packet = TcpPacket::new_checked(&l4[..]).unwrap();
        let (src, dst) = (IpAddress::from(ip.src), IpAddress::from(ip.dst));
        TcpRepr::parse(&packet, &src, &dst, &ChecksumCapabilities::default()).unwrap();
        assert!(packet.verify_checksum(&src, &dst));
        assert_eq!((packet.src_port(), packet.dst_port()), (80, 40000));
        (packet.seq_number().0 as u32, l4[13], packet.payload().to_vec())
    }

    /// All datagrams, put together from fragments, their checksums verified by smoltcp.
    fn udp_of(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut whole = vec![];
        let mut partial: Option<(u32, Vec<u8>)> = None;
        for frame in frames {
            let (ip, l4) = ip(frame);
            let l4 = match (ip.fragment, partial.take()) {
                (None, None) => l4,
                (None, Some(_)) => panic!("a datagram between fragments"),
                (Some(f), before) => {
                    let (id, mut bytes) = before.unwrap_or((f.id, vec![]));
                    assert_eq!((f.id, usize::from(f.offset)), (id, bytes.len()));
                    assert!(!f.more || l4.len() % 8 == 0);
                    bytes.extend(l4);
                    if f.more {
                        partial = Some((id, bytes));
                        continue;
                    }
                    bytes
                }
            };
            let packet = UdpPacket::new_checked(&l4[..]).unwrap();
            let (src, dst) = (IpAddress::from(ip.src), IpAddress::from(ip.dst));
            assert!(packet.verify_checksum(&src, &dst));
            assert_ne!(packet.checksum(), 0);
            UdpRepr::parse(&packet, &src, &dst, &ChecksumCapabilities::default()).unwrap();
            whole.push(packet.payload().to_vec());
        }
        assert!(partial.is_none(), "the last fragment is missing");
        whole
    }

    const MTUS: [u16; 8] = [68, 69, 576, 1280, 1500, 4083, 9000, MTU_MAX];

    #[test]
    fn tcp_is_cut_to_segments() {
        for pair in [V4, V6] {
            for mtu in MTUS.into_iter().filter(|&m| m >= 1280 || pair == V4) {
                let mss = mtu - pair.header_len() as u16 - 20;
                let longest = IP_LEN_MAX - pair.header_len() - 20;
                for len in [0, 1, 27, 28, 29, 1459, 1460, 1461, 20_001, longest] {
                    let payload = bytes(len);
                    let mut slot = tcp(pair, &payload, TcpControl::None, mss);
                    let mut seq = -100i32 as u32;
                    let frames = cut(&mut slot, mtu);
                    assert_eq!(frames.len(), len.div_ceil(usize::from(mss)).max(1));
                    let mut got = vec![];
                    for frame in frames {
                        let (at, flags, part) = tcp_of(&frame);
                        assert_eq!((at, flags), (seq, 0x10), "mtu {mtu} length {len}");
                        seq = seq.wrapping_add(part.len() as u32);
                        got.extend(part);
                    }
                    assert!(got == payload, "mtu {mtu} length {len}");
                }
            }
        }
    }

    #[test]
    fn tcp_flags_stay_where_they_belong() {
        let mut slot = tcp(V4, &bytes(3000), TcpControl::Fin, 1000);
        let flags = VNET_LEN + ETH_LEN + 20 + 13;
        slot.bytes_mut()[flags] |= PSH | CWR;
        let got: Vec<_> = cut(&mut slot, 1500).iter().map(|f| tcp_of(f).1).collect();
        assert_eq!(got, [0x10 | CWR, 0x10, 0x10 | FIN | PSH]);
        let ids: Vec<_> = cut(&mut slot, 1500)
            .iter()
            .map(|f| u16::from_be_bytes([f[ETH_LEN + 4], f[ETH_LEN + 5]]))
            .collect();
        assert_eq!(ids, [0xfffe, 0xffff, 0]);
    }

    #[test]
    fn udp_is_cut_to_datagrams_and_fragments() {
        for pair in [V4, V6] {
            let longest = IP_LEN_MAX - pair.header_len() - 8;
            for mtu in MTUS.into_iter().filter(|&m| m >= 1280 || pair == V4) {
                for len in [0, 1, 40, 41, 1471, 1472, 1473, 8193, longest - 1, longest] {
                    let payload = bytes(len);
                    let got = udp_of(&cut(&mut udp(pair, &payload, 0), mtu));
                    assert!(got == [payload], "mtu {mtu} length {len}");
                }
                // Runs; of datagrams that fit, and of some that must be cut themselves.
                for (len, segment) in [(5000, 1000), (5001, 1000), (30_000, 9000), (64_000, 500)] {
                    let payload = bytes(len);
                    let got = udp_of(&cut(&mut udp(pair, &payload, segment), mtu));
                    let want: Vec<_> =
                        payload.chunks(usize::from(segment)).map(<[u8]>::to_vec).collect();
                    assert!(got == want, "mtu {mtu} length {len} segment {segment}");
                }
            }
        }
    }

    #[test]
    fn udp_checksum_is_never_zero() {
        // Sixteen bits of payload take the sum through every value.
        for word in 0..=u16::MAX {
            let mut slot = udp(V4, &word.to_be_bytes(), 0);
            assert!(finish(slot.bytes_mut(), 1500));
            let at = VNET_LEN + ETH_LEN + 20 + 6;
            assert_ne!(slot.bytes()[at..at + 2], [0, 0]);
        }
    }

    #[test]
    fn other_protocols_are_left_alone_or_fragmented() {
        for pair in [V4, V6] {
            for len in [8, 1472, 5000] {
                let payload = bytes(len);
                let mut slot = slot(&payload);
                build::ip(&mut slot, &out(pair), IpProtocol::Unknown(99));
                let mut got = vec![];
                for frame in cut(&mut slot, 1500) {
                    let (ip, part) = ip(&frame);
                    assert_eq!(ip.proto, IpProtocol::Unknown(99));
                    got.extend(part);
                }
                assert_eq!(got, payload);
            }
        }
    }

    #[test]
    fn arp_and_garbage_are_left_alone() {
        let mut arp = slot(&[1; 28]);
        build::ethernet(&mut arp, [2; 6], [4; 6], smoltcp::wire::EthernetProtocol::Arp);
        let before = arp.bytes().to_vec();
        assert!(finish(arp.bytes_mut(), 1500));
        assert_eq!(arp.bytes(), before);
        assert!(Cutter::new(arp.bytes(), 1500, 0).is_none());
        for len in 0..200 {
            let mut garbage = bytes(len);
            let _ = finish(&mut garbage, 68);
            let _ = Cutter::new(&garbage, 68, 0);
        }
    }
}
