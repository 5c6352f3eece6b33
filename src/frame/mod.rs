//! What bytes mean: virtio header, Ethernet, IP, and the transport header's place. Pure.
//!
//! **Invariant:** nothing in this folder holds a descriptor, knows the time, or allocates.
//!
//! [`parse`] runs once per frame, checks every length against the bytes that are really there, and
//! yields plain numbers ([`Parsed`]): no code after it looks at an unchecked length. Everything a
//! guest can write is distrusted, the virtio header included: `hdr_len` is a hint that a guest's
//! forwarding path fills with nonsense and `AF_PACKET` passes on verbatim, so it is never read;
//! `csum_start` and `csum_offset` are not needed, since checksums are never verified (the TAP is
//! memory) and always rewritten on the way out.
#![forbid(unsafe_code)]

pub mod build;
pub mod checksum;
pub mod segment;
pub mod vnet;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet,
};

use crate::limits::ETH_LEN;

/// A MAC address.
pub type Mac = [u8; 6];

/// A frame that passed all checks.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// `gso_type` without the ECN bit, and `gso_size`; zero when the frame is one segment.
    pub vnet: vnet::Header,
    /// Sender.
    pub eth_src: Mac,
    /// Receiver.
    pub eth_dst: Mac,
    /// What it carries.
    pub l3: L3,
}

/// The network layer of a frame. Offsets count from the first byte that [`parse`] was given.
#[derive(Clone, Copy, Debug)]
pub enum L3 {
    /// An ARP packet.
    Arp {
        /// First byte of the packet.
        start: usize,
        /// One past its last.
        end: usize,
    },
    /// An IPv4 or IPv6 packet.
    Ip(Ip),
}

/// An IP header, and where its payload lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source; the guest's.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// The transport protocol, after IPv6 extension headers.
    pub proto: IpProtocol,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class, whole byte (DSCP and ECN).
    pub tos: u8,
    /// IPv4 "don't fragment"; always true for IPv6.
    pub df: bool,
    /// Set when this is a fragment.
    pub fragment: Option<Fragment>,
    /// First byte of the IP header.
    pub l3_start: usize,
    /// First byte of the transport header.
    pub start: usize,
    /// One past the last byte of the packet (Ethernet padding cut off).
    pub end: usize,
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Offset of the payload in the whole, bytes.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
}

/// Why a frame is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A length, version or header that cannot be.
    Bad,
    /// Well-formed as far as we look, but of no protocol we carry.
    Unsupported,
}

/// Reads a frame: virtio header, Ethernet, ARP or IP. For a TAP without a virtio header the worker
/// puts an empty one in front, so that the core knows one form only.
///
/// # Errors
/// [`Malformed`]; never panics, whatever the bytes.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let (header, l2) = vnet::Header::parse(bytes).ok_or(Malformed::Bad)?;
    let eth = EthernetFrame::new_checked(&bytes[l2..]).map_err(|_| Malformed::Bad)?;
    let start = l2 + ETH_LEN;
    let l3 = match eth.ethertype() {
        EthernetProtocol::Arp => L3::Arp { start, end: bytes.len() },
        EthernetProtocol::Ipv4 => L3::Ip(parse_v4(bytes, start)?),
        EthernetProtocol::Ipv6 => L3::Ip(parse_v6(bytes, start)?),
        EthernetProtocol::Unknown(_) => return Err(Malformed::Unsupported),
    };
    let (EthernetAddress(eth_src), EthernetAddress(eth_dst)) = (eth.src_addr(), eth.dst_addr());
    Ok(Parsed { vnet: header, eth_src, eth_dst, l3 })
}

fn parse_v4(bytes: &[u8], l3_start: usize) -> Result<Ip, Malformed> {
    let packet = Ipv4Packet::new_checked(&bytes[l3_start..]).map_err(|_| Malformed::Bad)?;
    // `new_checked` has compared header and total length with the buffer and with each other, but
    // takes a header length below 20 and any version.
    let (header, total) = (usize::from(packet.header_len()), usize::from(packet.total_len()));
    if packet.version() != 4 || header < 20 || total < header {
        return Err(Malformed::Bad);
    }
    let offset = packet.frag_offset();
    let fragment = (packet.more_frags() || offset != 0).then(|| Fragment {
        id: u32::from(packet.ident()),
        offset,
        more: packet.more_frags(),
    });
    Ok(Ip {
        src: IpAddr::V4(packet.src_addr()),
        dst: IpAddr::V4(packet.dst_addr()),
        proto: packet.next_header(),
        ttl: packet.hop_limit(),
        tos: bytes[l3_start + 1],
        df: packet.dont_frag(),
        fragment,
        l3_start,
        start: l3_start + header,
        end: l3_start + total,
    })
}

fn parse_v6(bytes: &[u8], l3_start: usize) -> Result<Ip, Malformed> {
    let packet = Ipv6Packet::new_checked(&bytes[l3_start..]).map_err(|_| Malformed::Bad)?;
    if packet.version() != 6 {
        return Err(Malformed::Bad);
    }
    let end = l3_start + packet.total_len();
    let mut ip = Ip {
        src: IpAddr::V6(packet.src_addr()),
        dst: IpAddr::V6(packet.dst_addr()),
        proto: packet.next_header(),
        ttl: packet.hop_limit(),
        tos: packet.traffic_class(),
        df: true,
        fragment: None,
        l3_start,
        start: l3_start + packet.header_len(),
        end,
    };
    // Extension headers in front of the transport header (RFC 8200 section 4). At most eight: a
    // longer run has no use, and each costs work.
    for _ in 0..8 {
        let rest = &bytes[ip.start..end];
        match ip.proto {
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {
                let [next, len, ..] = *rest else {
                    return Err(Malformed::Bad);
                };
                let len = (usize::from(len) + 1) * 8;
                if len > rest.len() {
                    return Err(Malformed::Bad);
                }
                ip.proto = IpProtocol::from(next);
                ip.start += len;
            }
            IpProtocol::Ipv6Frag => {
                let [next, _, hi, lo, a, b, c, d, ..] = *rest else {
                    return Err(Malformed::Bad);
                };
                let field = u16::from_be_bytes([hi, lo]);
                let (offset, more) = (field & !7, field & 1 != 0);
                ip.proto = IpProtocol::from(next);
                ip.start += 8;
                if offset != 0 || more {
                    // What follows a later fragment's header is payload, not headers.
                    let id = u32::from_be_bytes([a, b, c, d]);
                    ip.fragment = Some(Fragment { id, offset, more });
                    return Ok(ip);
                }
            }
            _ => return Ok(ip),
        }
    }
    Err(Malformed::Unsupported)
}

/// The two addresses of a packet of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// IPv4 source and destination.
    V4(Ipv4Addr, Ipv4Addr),
    /// IPv6 source and destination.
    V6(Ipv6Addr, Ipv6Addr),
}

impl Pair {
    /// Source and destination, when both are of one family.
    pub fn new(src: IpAddr, dst: IpAddr) -> Option<Self> {
        match (src, dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => Some(Self::V4(s, d)),
            (IpAddr::V6(s), IpAddr::V6(d)) => Some(Self::V6(s, d)),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }

    /// Bytes of the IP header without options.
    pub fn header_len(self) -> usize {
        match self {
            Self::V4(..) => 20,
            Self::V6(..) => 40,
        }
    }
}
