//! One TCP segment, as read from the guest and as written to it.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::super::Ctx;
use super::super::key::FlowKey;
use crate::arena::Slot;
use crate::frame::build::{self, Out};
use crate::frame::{Mac, Pair};

/// The fields of a segment that the relay uses, checked. Urgent data is ordinary data here (RFC 6093
/// section 4 wants nothing else of a middlebox); ECN bits are not answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of the first byte (or of SYN).
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: Option<u32>,
    /// Window as on the wire, not scaled.
    pub window: u16,
    /// SYN.
    pub syn: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
    /// Maximum segment size option.
    pub mss: Option<u16>,
    /// Window scale option.
    pub scale: Option<u8>,
    /// Payload bytes.
    pub len: u32,
}

impl Segment {
    /// Reads a segment whose lengths `TcpPacket::new_checked` has checked. `None`: contradictory flags
    /// (SYN with FIN, RST with FIN) or options that overrun.
    pub fn parse(packet: &TcpPacket<&[u8]>, src: &IpAddr, dst: &IpAddr) -> Option<Self> {
        let repr = TcpRepr::parse(
            packet,
            &IpAddress::from(*src),
            &IpAddress::from(*dst),
            &ChecksumCapabilities::ignored(),
        )
        .ok()?;
        Some(Self {
            seq: repr.seq_number.0 as u32,
            ack: repr.ack_number.map(|n| n.0 as u32),
            window: repr.window_len,
            syn: repr.control == TcpControl::Syn,
            fin: repr.control == TcpControl::Fin,
            rst: repr.control == TcpControl::Rst,
            mss: repr.max_seg_size,
            scale: repr.window_scale,
            len: repr.payload.len() as u32,
        })
    }
}

/// The header of a segment to the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) control: TcpControl,
    pub(super) seq: u32,
    pub(super) ack: Option<u32>,
    pub(super) window: u16,
    /// MSS and window scale options, on a SYN or SYN-ACK.
    pub(super) mss: Option<u16>,
    pub(super) scale: Option<u8>,
}

/// Puts headers in front of a slot's payload. `cut`: the segment size for GSO. False when the key's
/// addresses are of two families, which cannot be.
pub(super) fn emit(
    slot: &mut Slot,
    gateway: Mac,
    mac: Mac,
    key: &FlowKey,
    header: &Header,
    cut: u16,
) -> bool {
    let (guest, host) = (key.guest(), key.host());
    let Some(pair) = Pair::new(host.ip(), guest.ip()) else { return false };
    let repr = TcpRepr {
        src_port: host.port(),
        dst_port: guest.port(),
        control: header.control,
        seq_number: TcpSeqNumber(header.seq as i32),
        ack_number: header.ack.map(|n| TcpSeqNumber(n as i32)),
        window_len: header.window,
        window_scale: header.scale,
        max_seg_size: header.mss,
        ..build::EMPTY_TCP
    };
    let out = Out { eth_src: gateway, eth_dst: mac, pair, ttl: 64, tos: 0, df: true };
    build::tcp(slot, &out, &repr, cut);
    true
}

/// Answers a segment for no flow by a RST (RFC 9293 section 3.5.2, group 1).
pub fn reset_unknown(ctx: &mut Ctx<'_>, mac: Mac, key: &FlowKey, segment: &Segment) {
    if segment.rst {
        return;
    }
    let span = segment.len + u32::from(segment.syn) + u32::from(segment.fin);
    let (seq, ack) = match segment.ack {
        Some(ack) => (ack, None),
        None => (0, Some(segment.seq.wrapping_add(span))),
    };
    let header = Header { control: TcpControl::Rst, seq, ack, window: 0, mss: None, scale: None };
    let Some(mut slot) = ctx.control_slot() else { return };
    if emit(&mut slot, ctx.net.gateway_mac, mac, key, &header, u16::MAX) {
        ctx.write(slot);
    }
}

/// Whether `a` comes before `b` in sequence space (RFC 9293 section 3.4).
pub(super) fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
