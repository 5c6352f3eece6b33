//! Headers in front of payload: from a slot whose range is the payload to one whose range is a frame.
//!
//! Every frame begins with a virtio header. TCP and UDP checksums are left to the guest's kernel
//! (`NEEDS_CSUM` with the pseudo-header's sum in place), so payload is never read. ICMP has no such
//! help and is summed here.

use std::net::IpAddr;

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet,
    Ipv6Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::vnet::{self, Header};
use super::{Mac, Pair, checksum};
use crate::arena::Slot;
use crate::limits::{ETH_LEN, VNET_LEN};

/// What the headers below the transport say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    /// Ethernet source: the gateway.
    pub eth_src: Mac,
    /// Ethernet destination: the guest.
    pub eth_dst: Mac,
    /// Source (host side) and destination (guest).
    pub pair: Pair,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// IPv4 "don't fragment".
    pub df: bool,
}

/// A TCP header with nothing in it, to be filled in. The payload is the slot's.
pub const EMPTY_TCP: TcpRepr<'static> = TcpRepr {
    src_port: 0,
    dst_port: 0,
    control: TcpControl::None,
    seq_number: TcpSeqNumber(0),
    ack_number: None,
    window_len: 0,
    window_scale: None,
    max_seg_size: None,
    sack_permitted: false,
    sack_ranges: [None; 3],
    timestamp: None,
    payload: &[],
};

/// Puts TCP and lower headers in front of the slot's range (the payload, possibly empty). `mss` cuts
/// a longer payload into segments by GSO.
///
/// # Panics
/// When the slot lacks headroom ([`crate::limits::HEADROOM`] is enough).
pub fn tcp(slot: &mut Slot, out: &Out, repr: &TcpRepr<'_>, mss: u16) {
    let payload = slot.len();
    let header = repr.header_len();
    slot.prepend(header);
    let total = (header + payload) as u32;
    let mut packet = TcpPacket::new_unchecked(slot.bytes_mut());
    repr.emit(
        &mut packet,
        &IpAddress::from(out.src()),
        &IpAddress::from(out.dst()),
        &smoltcp::phy::ChecksumCapabilities::ignored(),
    );
    packet.set_checksum(checksum::fold(checksum::pseudo_header(out.pair, 6, total)));
    let l4 = ETH_LEN + out.pair.header_len();
    let gso = payload > usize::from(mss);
    let header = Header {
        gso_type: match (gso, out.pair) {
            (false, _) => vnet::GSO_NONE,
            (true, Pair::V4(..)) => vnet::GSO_TCPV4,
            (true, Pair::V6(..)) => vnet::GSO_TCPV6,
        },
        gso_size: if gso { mss } else { 0 },
        hdr_len: if gso { (l4 + header) as u16 } else { 0 },
        csum_start: l4 as u16,
        csum_offset: 16,
    };
    lower(slot, 0, out, IpProtocol::Tcp, header);
}

/// Puts UDP and lower headers in front of the slot's range. A `segment` other than 0 marks a run of
/// datagrams of that many payload bytes each (the last may be shorter).
///
/// # Panics
/// When the slot lacks headroom.
pub fn udp(slot: &mut Slot, out: &Out, src_port: u16, dst_port: u16, segment: u16) {
    udp_before(slot, 0, out, src_port, dst_port, segment);
}

/// As [`udp`], where `rest` more bytes of payload follow from other slots.
///
/// # Panics
/// When the slot lacks headroom.
pub fn udp_before(
    slot: &mut Slot,
    rest: usize,
    out: &Out,
    src_port: u16,
    dst_port: u16,
    segment: u16,
) {
    slot.prepend(8);
    let len = slot.len() + rest;
    let bytes = slot.bytes_mut();
    bytes[0..2].copy_from_slice(&src_port.to_be_bytes());
    bytes[2..4].copy_from_slice(&dst_port.to_be_bytes());
    bytes[4..6].copy_from_slice(&(len as u16).to_be_bytes());
    let partial = checksum::fold(checksum::pseudo_header(out.pair, 17, len as u32));
    bytes[6..8].copy_from_slice(&partial.to_be_bytes());
    let l4 = ETH_LEN + out.pair.header_len();
    let gso = segment != 0 && len - 8 > usize::from(segment);
    let header = Header {
        gso_type: if gso { vnet::GSO_UDP_L4 } else { vnet::GSO_NONE },
        gso_size: if gso { segment } else { 0 },
        hdr_len: if gso { (l4 + 8) as u16 } else { 0 },
        csum_start: l4 as u16,
        csum_offset: 6,
    };
    lower(slot, rest, out, IpProtocol::Udp, header);
}

/// Puts IP and lower headers in front of the slot's range, a finished transport packet (ICMP).
///
/// # Panics
/// When the slot lacks headroom.
pub fn ip(slot: &mut Slot, out: &Out, proto: IpProtocol) {
    lower(slot, 0, out, proto, Header::NONE);
}

/// Puts Ethernet and virtio headers in front of the slot's range (ARP).
///
/// # Panics
/// When the slot lacks headroom.
pub fn ethernet(slot: &mut Slot, src: Mac, dst: Mac, proto: EthernetProtocol) {
    l2(slot, src, dst, proto, Header::NONE);
}

fn lower(slot: &mut Slot, rest: usize, out: &Out, proto: IpProtocol, header: Header) {
    let payload = slot.len() + rest;
    slot.prepend(out.pair.header_len());
    let ethertype = match out.pair {
        Pair::V4(src, dst) => {
            let bytes = slot.bytes_mut();
            bytes[..20].fill(0);
            let mut packet = Ipv4Packet::new_unchecked(bytes);
            packet.set_version(4);
            packet.set_header_len(20);
            packet.set_total_len((20 + payload) as u16);
            packet.set_dont_frag(out.df);
            packet.set_hop_limit(out.ttl);
            packet.set_next_header(proto);
            packet.set_src_addr(src);
            packet.set_dst_addr(dst);
            slot.bytes_mut()[1] = out.tos;
            Ipv4Packet::new_unchecked(slot.bytes_mut()).fill_checksum();
            EthernetProtocol::Ipv4
        }
        Pair::V6(src, dst) => {
            let bytes = slot.bytes_mut();
            bytes[..8].fill(0);
            let mut packet = Ipv6Packet::new_unchecked(bytes);
            packet.set_version(6);
            packet.set_traffic_class(out.tos);
            packet.set_payload_len(payload as u16);
            packet.set_next_header(proto);
            packet.set_hop_limit(out.ttl);
            packet.set_src_addr(src);
            packet.set_dst_addr(dst);
            EthernetProtocol::Ipv6
        }
    };
    l2(slot, out.eth_src, out.eth_dst, ethertype, header);
}

fn l2(slot: &mut Slot, src: Mac, dst: Mac, proto: EthernetProtocol, header: Header) {
    slot.prepend(ETH_LEN);
    let mut eth = EthernetFrame::new_unchecked(slot.bytes_mut());
    eth.set_src_addr(EthernetAddress(src));
    eth.set_dst_addr(EthernetAddress(dst));
    eth.set_ethertype(proto);
    slot.prepend(VNET_LEN);
    header.emit(slot.bytes_mut());
}

impl Out {
    /// Source address.
    pub fn src(&self) -> IpAddr {
        match self.pair {
            Pair::V4(src, _) => IpAddr::V4(src),
            Pair::V6(src, _) => IpAddr::V6(src),
        }
    }

    /// Destination address.
    pub fn dst(&self) -> IpAddr {
        match self.pair {
            Pair::V4(_, dst) => IpAddr::V4(dst),
            Pair::V6(_, dst) => IpAddr::V6(dst),
        }
    }
}
