//! What must be true: which byte belongs where, and what a wire may carry.

use std::collections::HashMap;

use smoltcp::wire::{TcpOption, TcpPacket};

/// The two directions of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToHost,
    ToGuest,
}

/// The byte at an offset of a stream.
fn byte(flow: usize, way: Way, at: u64) -> u8 {
    let salt = flow as u64 * 0x51 + if way == Way::ToHost { 7 } else { 0xb3 };
    // Unlike under every shift: each power of two enters with a factor of its own.
    (at.wrapping_mul(29) ^ (at >> 7).wrapping_mul(11) ^ (at >> 13).wrapping_mul(5) ^ salt) as u8
}

/// The bytes of a stream from an offset on.
pub fn fill(flow: usize, way: Way, at: u64, out: &mut [u8]) {
    for (i, b) in out.iter_mut().enumerate() {
        *b = byte(flow, way, at + i as u64);
    }
}

/// # Panics
/// When these are not the bytes of the stream at this offset: lost, doubled, mixed up.
pub fn check(flow: usize, way: Way, at: u64, bytes: &[u8]) {
    for (i, b) in bytes.iter().enumerate() {
        let at = at + i as u64;
        assert_eq!(*b, byte(flow, way, at), "flow {flow} {way:?}: wrong byte at {at}");
    }
}

/// Watches the segments of each flow on the TAP, by the guest's port and its initial sequence number.
#[derive(Debug, Default)]
pub struct Wire {
    flows: HashMap<u16, Seen>,
}

#[derive(Debug)]
struct Seen {
    iss: u32,
    /// One past the last sequence number the guest has used.
    sent: u32,
    /// The right edge the guest offers, the furthest ever.
    guest_edge: Option<u32>,
    guest_scale: Option<u8>,
    guest_mss: u16,
    our_scale: u8,
    /// Ours: acknowledged, and the right edge.
    acked: Option<(u32, u32)>,
    /// One past the last sequence number sent to the guest; FIN counted.
    next: Option<u32>,
    fin: bool,
}

impl Seen {
    /// A connection that begins with our SYN.
    fn ours(seq: u32, scale: u8) -> Self {
        Self {
            iss: 0,
            sent: 0,
            guest_edge: None,
            guest_scale: None,
            guest_mss: 0,
            our_scale: scale,
            acked: None,
            next: Some(seq.wrapping_add(1)),
            fin: false,
        }
    }
}

fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

fn options(packet: &TcpPacket<&[u8]>) -> (Option<u16>, Option<u8>) {
    let (mut mss, mut scale) = (None, None);
    let mut rest = packet.options();
    while !rest.is_empty() {
        let Ok((next, option)) = TcpOption::parse(rest) else { break };
        match option {
            TcpOption::EndOfList => break,
            TcpOption::MaxSegmentSize(n) => mss = Some(n),
            TcpOption::WindowScale(n) => scale = Some(n),
            _ => {}
        }
        rest = next;
    }
    (mss, scale)
}

impl Wire {
    /// A segment that reaches the core.
    pub fn guest_says(&mut self, v6: bool, tcp: &[u8]) {
        let Ok(packet) = TcpPacket::new_checked(tcp) else { return };
        let seq = packet.seq_number().0 as u32;
        let end = seq
            .wrapping_add(packet.payload().len() as u32)
            .wrapping_add(u32::from(packet.syn()) + u32::from(packet.fin()));
        if packet.syn() {
            let (mss, scale) = options(&packet);
            if packet.ack() {
                // The answer to our SYN, for the first time.
                let ack = packet.ack_number().0 as u32;
                if let Some(seen) = self.flows.get_mut(&packet.src_port())
                    && seen.next == Some(ack)
                    && seen.acked.is_none()
                {
                    (seen.iss, seen.sent) = (seq, end);
                    seen.acked = Some((end, end.wrapping_add(65535)));
                    seen.guest_edge = Some(ack.wrapping_add(u32::from(packet.window_len())));
                    seen.guest_scale = scale;
                    seen.guest_mss = mss.unwrap_or(if v6 { 1220 } else { 536 });
                    if scale.is_none() {
                        seen.our_scale = 0;
                    }
                }
                return;
            }
            if self.flows.get(&packet.src_port()).is_none_or(|seen| seen.iss != seq) {
                let seen = Seen {
                    iss: seq,
                    sent: end,
                    guest_edge: None,
                    guest_scale: scale,
                    guest_mss: mss.unwrap_or(if v6 { 1220 } else { 536 }),
                    our_scale: 0,
                    acked: None,
                    next: None,
                    fin: false,
                };
                self.flows.insert(packet.src_port(), seen);
            }
            return;
        }
        let Some(seen) = self.flows.get_mut(&packet.src_port()) else { return };
        if packet.rst() {
            return;
        }
        if before(seen.sent, end) {
            seen.sent = end;
        }
        let shift = seen.guest_scale.unwrap_or(0).min(14);
        let edge =
            (packet.ack_number().0 as u32).wrapping_add(u32::from(packet.window_len()) << shift);
        if seen.guest_edge.is_none_or(|old| before(old, edge)) {
            seen.guest_edge = Some(edge);
        }
    }

    /// A segment (whole, before it is cut) that the core writes; `gso` is its segment size.
    pub fn guest_hears(&mut self, tcp: &[u8], gso: u16) {
        let packet = TcpPacket::new_checked(tcp).expect("a TCP header of ours");
        if packet.syn() && !packet.ack() {
            let seq = packet.seq_number().0 as u32;
            self.flows.entry(packet.dst_port()).or_insert_with(|| Seen::ours(seq, 7));
        }
        let Some(seen) = self.flows.get_mut(&packet.dst_port()) else { return };
        if packet.rst() {
            return;
        }
        let seq = packet.seq_number().0 as u32;
        let ack = packet.ack_number().0 as u32;
        if packet.syn() && !packet.ack() {
            let (mss, scale) = options(&packet);
            assert!(mss.is_some() && scale.is_some(), "a SYN without options");
            let again = seen.next == Some(seq.wrapping_add(1));
            assert!(seen.acked.is_none() || !again, "a SYN after its answer");
            if !again {
                *seen = Seen::ours(seq, scale.unwrap_or(0));
            }
            return;
        }
        assert!(packet.ack(), "every other segment of ours acknowledges");
        if packet.syn() {
            let (mss, scale) = options(&packet);
            assert!(mss.is_some(), "a SYN-ACK without MSS");
            assert_eq!(scale.is_some(), seen.guest_scale.is_some(), "scaling is for both or none");
            assert_eq!(ack, seen.iss.wrapping_add(1));
            seen.our_scale = scale.unwrap_or(0);
            let edge = ack.wrapping_add(u32::from(packet.window_len()));
            seen.acked = Some((ack, edge));
            seen.next = Some(seq.wrapping_add(1));
            return;
        }
        let (Some((acked, edge)), Some(next)) = (seen.acked, seen.next) else {
            panic!("a segment before any SYN-ACK")
        };
        assert!(!before(ack, acked), "the ACK number retreats: {acked} to {ack}");
        assert!(!before(seen.sent, ack), "acknowledges what was never sent");
        let new = ack.wrapping_add(u32::from(packet.window_len()) << seen.our_scale);
        // RFC 7323 section 2.4: rounding may retract less than one unit of the scale, no more.
        let unit = (1 << seen.our_scale) - 1;
        assert!(
            !before(new.wrapping_add(unit), edge),
            "the window's edge retreats: {edge} to {new}"
        );
        seen.acked = Some((ack, if before(edge, new) { new } else { edge }));
        let len = packet.payload().len() as u32;
        let end = seq.wrapping_add(len);
        if len > 0 {
            assert!(gso == 0 || gso <= seen.guest_mss.max(28), "cut larger than the MSS");
            assert!(gso != 0 || len <= u32::from(seen.guest_mss.max(28)), "larger than the MSS");
            let allowed = seen.guest_edge.expect("data before the handshake ended");
            assert!(!before(allowed, end), "data beyond the guest's window");
        }
        assert!(!before(next, seq), "a hole in what is sent: {next}, then {seq}");
        let end = end.wrapping_add(u32::from(packet.fin()));
        if before(next, end) {
            assert!(!seen.fin, "data after FIN");
            seen.next = Some(end);
        }
        seen.fin |= packet.fin();
    }
}
