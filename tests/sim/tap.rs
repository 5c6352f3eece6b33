//! The guest kernel's end of the TAP: packets to frames and back, as a kernel does it, and strict where the
//! kernel would refuse a frame or, worse, take a wrong one silently.

use std::net::{IpAddr, SocketAddr};

use ringtap::arena::{Chain, Slot};
use ringtap::frame::{Pair, checksum};
use ringtap::stack::Stack;
use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use crate::model::Wire;

pub const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
pub const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
const VNET: usize = 10;
const L3: usize = VNET + 14;

/// An IP packet taken apart; offsets into it.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub proto: u8,
    /// Where the transport header begins.
    pub l4: usize,
    pub end: usize,
}

impl View {
    /// `None` when it is not a whole IP packet.
    pub fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let ip = Ipv4Packet::new_checked(packet).ok()?;
                Some(Self {
                    src: ip.src_addr().into(),
                    dst: ip.dst_addr().into(),
                    proto: ip.next_header().into(),
                    l4: usize::from(ip.header_len()),
                    end: usize::from(ip.total_len()),
                })
            }
            6 => {
                let ip = Ipv6Packet::new_checked(packet).ok()?;
                Some(Self {
                    src: ip.src_addr().into(),
                    dst: ip.dst_addr().into(),
                    proto: ip.next_header().into(),
                    l4: 40,
                    end: ip.total_len(),
                })
            }
            _ => None,
        }
    }

    fn v6(&self) -> bool {
        self.src.is_ipv6()
    }
}

/// An IP packet with this payload.
pub fn packet(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; if src.is_ipv4() { 20 } else { 40 }];
    out.extend_from_slice(payload);
    let len = out.len() as u16;
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip = Ipv4Packet::new_unchecked(&mut out[..]);
            ip.set_version(4);
            ip.set_header_len(20);
            ip.set_total_len(len);
            ip.set_hop_limit(64);
            ip.set_next_header(proto.into());
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
            ip.fill_checksum();
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut ip = Ipv6Packet::new_unchecked(&mut out[..]);
            ip.set_version(6);
            ip.set_payload_len(len - 40);
            ip.set_hop_limit(64);
            ip.set_next_header(proto.into());
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
        }
        _ => panic!("{src} to {dst}"),
    }
    out
}

/// A packet with one datagram.
pub fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut udp = from.port().to_be_bytes().to_vec();
    udp.extend(to.port().to_be_bytes());
    udp.extend((8 + payload.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend_from_slice(payload);
    packet(from.ip(), to.ip(), 17, &udp)
}

/// A slot with this frame in it.
pub fn slot(stack: &Stack, frame: &[u8]) -> Slot {
    let mut slot = stack.pools().large.take().expect("a free slot");
    slot.set_range(0, frame.len());
    slot.bytes_mut().copy_from_slice(frame);
    slot
}

/// Datagrams to frames, as if each run had been one write with `UDP_SEGMENT`: those of one size (the last may be
/// shorter) between the same endpoints, `most` at a time.
pub fn coalesce_udp(mut packets: Vec<Vec<u8>>, most: usize) -> Vec<Vec<u8>> {
    // Programs write one after the other; each one's datagrams stay in order.
    packets.sort_by_key(|packet| udp_of(packet).map(|(_, udp)| udp.src_port()));
    let mut frames = Vec::new();
    let mut run: Vec<Vec<u8>> = Vec::new();
    for packet in packets {
        if !continues(&run, &packet, most) {
            frames.extend(udp_run(&std::mem::take(&mut run)));
        }
        run.push(packet);
    }
    frames.extend(udp_run(&run));
    frames
}

fn udp_of(packet: &[u8]) -> Option<(View, UdpPacket<&[u8]>)> {
    let view = View::of(packet).filter(|view| view.proto == 17)?;
    Some((view, UdpPacket::new_checked(&packet[view.l4..view.end]).ok()?))
}

fn continues(run: &[Vec<u8>], packet: &[u8], most: usize) -> bool {
    let (Some(first), Some(last)) = (run.first().and_then(|p| udp_of(p)), run.last()) else {
        return false;
    };
    let Some((view, udp)) = udp_of(packet) else { return false };
    let size = first.1.payload().len();
    let last = udp_of(last).map_or(0, |(_, udp)| udp.payload().len());
    (first.0.src, first.0.dst) == (view.src, view.dst)
        && (first.1.src_port(), first.1.dst_port()) == (udp.src_port(), udp.dst_port())
        && last == size
        && (1..=size).contains(&udp.payload().len())
        && run.len() < most
        && (run.len() + 1) * size < 60_000
}

/// One frame for a run, or for a packet that is no datagram; none for nothing.
fn udp_run(run: &[Vec<u8>]) -> Option<Vec<u8>> {
    if let [one] = run {
        return Some(frame(one, None));
    }
    let (view, first) = udp_of(run.first()?)?;
    let payload: Vec<u8> =
        run.iter().flat_map(|p| udp_of(p).expect("UDP").1.payload()).copied().collect();
    let from = SocketAddr::new(view.src, first.src_port());
    let whole = datagram(from, SocketAddr::new(view.dst, first.dst_port()), &payload);
    let mut out = frame(&whole, Some(first.payload().len() as u16));
    // VIRTIO_NET_HDR_GSO_UDP_L4, and the length of all headers.
    out[1] = 5;
    out[2..4].copy_from_slice(&((14 + view.l4 + 8) as u16).to_ne_bytes());
    Some(out)
}

/// Reads the TCP header of a packet.
pub fn tcp_of(packet: &[u8]) -> Option<(View, TcpPacket<&[u8]>)> {
    let view = View::of(packet)?;
    if view.proto != 6 {
        return None;
    }
    Some((view, TcpPacket::new_checked(&packet[view.l4..view.end]).ok()?))
}

/// Writes lengths and checksums anew after a change.
pub fn finish(packet: &mut [u8]) {
    let Some(view) = View::of(packet) else { return };
    let (src, dst) = (IpAddress::from(view.src), IpAddress::from(view.dst));
    if !view.v6() {
        Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
    }
    if view.proto == 6 {
        TcpPacket::new_unchecked(&mut packet[view.l4..view.end]).fill_checksum(&src, &dst);
    }
}

/// A frame with virtio header for one packet. `gso`: the segment size, when the packet is a run.
pub fn frame(packet: &[u8], gso: Option<u16>) -> Vec<u8> {
    let view = View::of(packet);
    let v6 = packet[0] >> 4 == 6;
    let mut out = vec![0; VNET];
    if let Some(view) = view.filter(|v| v.proto == 6 || v.proto == 17) {
        // As the kernel's stack fills it in: an unfinished checksum, whether it is a run or not.
        out[0] = 1;
        let start = (14 + view.l4) as u16;
        out[6..8].copy_from_slice(&start.to_ne_bytes());
        let offset: u16 = if view.proto == 6 { 16 } else { 6 };
        out[8..10].copy_from_slice(&offset.to_ne_bytes());
        if let Some(size) = gso {
            out[1] = if v6 { 4 } else { 1 };
            out[4..6].copy_from_slice(&size.to_ne_bytes());
            let headers = start + 20;
            out[2..4].copy_from_slice(&headers.to_ne_bytes());
        }
    }
    out.extend_from_slice(&GATEWAY_MAC);
    out.extend_from_slice(&GUEST_MAC);
    out.extend_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
    out.extend_from_slice(packet);
    out
}

/// Packets to frames; with `tso`, runs of segments become super-frames.
pub fn coalesce(packets: Vec<Vec<u8>>, tso: bool) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut run: Option<(Vec<u8>, u16)> = None;
    for packet in packets {
        if let Some((head, size)) = &mut run {
            if tso && joins(head, *size, &packet) {
                let (view, tcp) = tcp_of(&packet).expect("checked by `joins`");
                let payload = view.l4 + usize::from(tcp.header_len());
                let psh = tcp.psh();
                head.extend_from_slice(&packet[payload..view.end]);
                let len = head.len();
                if view.v6() {
                    Ipv6Packet::new_unchecked(&mut head[..]).set_payload_len((len - 40) as u16);
                } else {
                    Ipv4Packet::new_unchecked(&mut head[..]).set_total_len(len as u16);
                }
                TcpPacket::new_unchecked(&mut head[view.l4..]).set_psh(psh);
                finish(head);
                continue;
            }
            frames.push(done(head, *size));
        }
        let size = tcp_of(&packet).map_or(0, |(_, tcp)| tcp.payload().len() as u16);
        run = Some((packet, size));
    }
    if let Some((head, size)) = run {
        frames.push(done(&head, size));
    }
    frames
}

fn done(packet: &[u8], size: u16) -> Vec<u8> {
    let payload = tcp_of(packet).map_or(0, |(_, tcp)| tcp.payload().len());
    frame(packet, (payload > usize::from(size)).then_some(size))
}

/// Whether a segment continues a run (as the kernel's GRO has it): all but the last are of one size, and
/// nothing but sequence number and PSH differs.
fn joins(head: &[u8], size: u16, packet: &[u8]) -> bool {
    let (Some((_, a)), Some((view, b))) = (tcp_of(head), tcp_of(packet)) else { return false };
    let (have, more) = (a.payload().len(), b.payload().len());
    let plain = |t: &TcpPacket<&[u8]>| t.ack() && !t.syn() && !t.fin() && !t.rst();
    have > 0
        && more > 0
        && have % usize::from(size) == 0
        && more <= usize::from(size)
        && head.len() + more <= 65535
        && plain(&a)
        && plain(&b)
        && (a.src_port(), a.dst_port()) == (b.src_port(), b.dst_port())
        && a.header_len() == b.header_len()
        && b.seq_number().0 == a.seq_number().0.wrapping_add(have as i32)
        && a.ack_number() == b.ack_number()
        && a.window_len() == b.window_len()
        && view.end == packet.len()
}

/// The guest's answer to a question of the gateway for a neighbour: every address is the guest's.
pub fn neighbour(frame: &[u8]) -> Option<Vec<u8>> {
    let packet = &frame[L3..];
    if frame[L3 - 2..L3] == [0x08, 0x06] {
        if packet[7] != 1 {
            return None;
        }
        let mut answer = vec![0; VNET];
        answer.extend_from_slice(&GATEWAY_MAC);
        answer.extend_from_slice(&GUEST_MAC);
        answer.extend_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2]);
        answer.extend_from_slice(&GUEST_MAC);
        answer.extend_from_slice(&packet[24..28]);
        answer.extend_from_slice(&packet[8..18]);
        return Some(answer);
    }
    let view = View::of(packet).filter(|view| view.proto == 58)?;
    if packet[view.l4] != 135 {
        return None;
    }
    let target = &packet[view.l4 + 8..view.l4 + 24];
    let mut advert = packet[..view.l4 + 32].to_vec();
    advert[view.l4] = 136;
    advert[view.l4 + 4] = 0x60;
    advert[8..24].copy_from_slice(target);
    advert[24..40].copy_from_slice(&packet[8..24]);
    advert[view.l4 + 24] = 2;
    advert[view.l4 + 26..].copy_from_slice(&GUEST_MAC);
    Some(self::frame(&advert, None))
}

/// The same for a datagram, or a run of them.
fn split_udp(packet: &[u8], view: &View, gso: u8, size: u16) -> Vec<Vec<u8>> {
    let payload = &packet[view.l4 + 8..];
    assert_eq!(gso, if size == 0 { 0 } else { 5 }, "gso_type");
    let each = if size == 0 { payload.len().max(1) } else { usize::from(size) };
    assert!(size == 0 || (payload.len() > each && payload.len().div_ceil(each) <= 128), "a run");
    let mut parts: Vec<&[u8]> = payload.chunks(each).collect();
    if parts.is_empty() {
        parts.push(&[]);
    }
    let one = |part: &&[u8]| {
        let mut out = packet[..view.l4 + 8].to_vec();
        out.extend_from_slice(part);
        let len = out.len();
        if view.v6() {
            Ipv6Packet::new_unchecked(&mut out[..]).set_payload_len((len - 40) as u16);
        } else {
            Ipv4Packet::new_unchecked(&mut out[..]).set_total_len(len as u16);
            Ipv4Packet::new_unchecked(&mut out[..]).fill_checksum();
        }
        let mut udp = UdpPacket::new_unchecked(&mut out[view.l4..]);
        udp.set_len((8 + part.len()) as u16);
        udp.fill_checksum(&view.src.into(), &view.dst.into());
        out
    };
    parts.iter().map(one).collect()
}

/// A frame of the core that lies in several slots.
pub fn gather(chain: &Chain) -> Vec<u8> {
    assert!(chain.slots() > 1, "a frame in one slot");
    let mut frame = Vec::new();
    chain.for_each(|slot| {
        frame.extend_from_slice(slot.bytes());
        true
    });
    frame
}

/// A frame from the core to the packets the guest's stack sees: cut, checksums finished.
///
/// # Panics
/// When the kernel would not take the frame, or would take it wrongly.
pub fn split(bytes: &[u8], wire: &mut Wire) -> Vec<Vec<u8>> {
    assert!(bytes.len() > L3, "a frame of {} bytes", bytes.len());
    let at = |i: usize| u16::from_ne_bytes([bytes[i], bytes[i + 1]]);
    let (flags, gso, hdr_len, size, start, offset) =
        (bytes[0], bytes[1], at(2), at(4), usize::from(at(6)), usize::from(at(8)));
    assert!(flags <= 1, "virtio flags {flags}");
    let to = &bytes[VNET..VNET + 6];
    assert!(to == GUEST_MAC || to[0] & 1 == 1, "to another MAC: {to:x?}");
    assert_eq!(bytes[VNET + 6..VNET + 12], GATEWAY_MAC, "from another MAC");
    let packet = &bytes[L3..];
    if [bytes[L3 - 2], bytes[L3 - 1]] == [0x08, 0x06] {
        return vec![];
    }
    let view = View::of(packet).expect("an IP packet");
    assert_eq!(view.end, packet.len(), "bytes beyond the packet");
    if !view.v6() {
        assert!(Ipv4Packet::new_unchecked(packet).verify_checksum(), "IPv4 header checksum");
    }
    if view.proto != 6 && view.proto != 17 {
        assert_eq!((flags, gso), (0, 0));
        return vec![packet.to_vec()];
    }
    assert_eq!(flags, 1, "TCP and UDP leave their checksum to the kernel");
    assert_eq!(start, 14 + view.l4, "csum_start");
    assert_eq!(offset, if view.proto == 6 { 16 } else { 6 }, "csum_offset");
    assert!(usize::from(hdr_len) <= bytes.len() - VNET);
    let l4 = &packet[view.l4..];
    let pair = Pair::new(view.src, view.dst).expect("one family");
    let partial = checksum::fold(checksum::pseudo_header(pair, view.proto, l4.len() as u32));
    assert_eq!(u16::from_be_bytes([l4[offset], l4[offset + 1]]), partial, "partial checksum");
    if view.proto == 17 {
        return split_udp(packet, &view, gso, size);
    }
    wire.guest_hears(l4, size);
    let (_, tcp) = tcp_of(packet).expect("a TCP segment");
    let headers = view.l4 + usize::from(tcp.header_len());
    if gso == 0 {
        assert_eq!(size, 0);
        let mut packet = packet.to_vec();
        finish(&mut packet);
        return vec![packet];
    }
    assert_eq!(gso, if view.v6() { 4 } else { 1 }, "gso_type");
    assert!(size > 0 && packet.len() > headers + usize::from(size), "a run of one");
    let (seq, fin, psh) = (tcp.seq_number(), tcp.fin(), tcp.psh());
    let payload = &packet[headers..];
    let count = payload.len().div_ceil(usize::from(size));
    let mut out = Vec::with_capacity(count);
    for (i, part) in payload.chunks(usize::from(size)).enumerate() {
        let mut one = packet[..headers].to_vec();
        one.extend_from_slice(part);
        let len = one.len();
        if view.v6() {
            Ipv6Packet::new_unchecked(&mut one[..]).set_payload_len((len - 40) as u16);
        } else {
            Ipv4Packet::new_unchecked(&mut one[..]).set_total_len(len as u16);
        }
        let mut tcp = TcpPacket::new_unchecked(&mut one[view.l4..]);
        tcp.set_seq_number(seq + i * usize::from(size));
        tcp.set_fin(fin && i + 1 == count);
        tcp.set_psh(psh && i + 1 == count);
        finish(&mut one);
        out.push(one);
    }
    out
}
