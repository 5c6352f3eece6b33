//! `struct virtio_net_hdr` (linux/virtio_net.h), the header in front of each frame of a TAP with
//! `IFF_VNET_HDR`. Native byte order on a TAP (little endian on all machines we know of; `TUNSETVNETBE`
//! is not used).

use crate::limits::VNET_LEN;

/// Flag: finish the checksum from `csum_start` on.
pub const NEEDS_CSUM: u8 = 1;
/// GSO type: none.
pub const GSO_NONE: u8 = 0;
/// GSO type: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// GSO type: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// GSO type: UDP, to be cut into datagrams (`UDP_SEGMENT`).
pub const GSO_UDP_L4: u8 = 5;
/// Bit beside the type: the first segment has CWR set.
pub const GSO_ECN: u8 = 0x80;

/// What we take from, or put into, the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// One of `GSO_*`, without [`GSO_ECN`].
    pub gso_type: u8,
    /// Payload bytes of each segment, when `gso_type` is not none.
    pub gso_size: u16,
    /// The whole header chain's length; only written, never believed.
    pub hdr_len: u16,
    /// Where the checksum begins, from the start of the Ethernet header; 0: no checksum to finish.
    pub csum_start: u16,
    /// Where in that part it is stored.
    pub csum_offset: u16,
}

impl Header {
    /// A frame that is one segment with a finished checksum.
    pub const NONE: Self =
        Self { gso_type: GSO_NONE, gso_size: 0, hdr_len: 0, csum_start: 0, csum_offset: 0 };

    /// Reads the header; also returns where the Ethernet header begins. `None` when `bytes` is short.
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let b = bytes.first_chunk::<VNET_LEN>()?;
        let u16_at = |i: usize| u16::from_ne_bytes([b[i], b[i + 1]]);
        let gso_type = b[1] & !GSO_ECN;
        let gso_size = if gso_type == GSO_NONE { 0 } else { u16_at(4) };
        let header = Self {
            gso_type: if gso_size == 0 { GSO_NONE } else { gso_type },
            gso_size,
            hdr_len: u16_at(2),
            csum_start: if b[0] & NEEDS_CSUM != 0 { u16_at(6) } else { 0 },
            csum_offset: u16_at(8),
        };
        Some((header, VNET_LEN))
    }

    /// Writes the header into the first [`VNET_LEN`] bytes.
    ///
    /// # Panics
    /// When `bytes` is shorter.
    pub fn emit(&self, bytes: &mut [u8]) {
        bytes[0] = if self.csum_start != 0 { NEEDS_CSUM } else { 0 };
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let header = Header {
            gso_type: GSO_TCPV6,
            gso_size: 1440,
            hdr_len: 74,
            csum_start: 54,
            csum_offset: 16,
        };
        let mut bytes = [0xff; 12];
        header.emit(&mut bytes);
        assert_eq!(Header::parse(&bytes), Some((header, VNET_LEN)));
        assert_eq!(Header::parse(&bytes[..9]), None);
    }

    #[test]
    fn ecn_bit_and_empty_gso_are_cleared() {
        let mut bytes = [0; 10];
        bytes[1] = GSO_TCPV4 | GSO_ECN;
        bytes[4] = 100;
        assert_eq!(Header::parse(&bytes).unwrap().0.gso_type, GSO_TCPV4);
        bytes[4] = 0;
        assert_eq!(Header::parse(&bytes).unwrap().0.gso_type, GSO_NONE);
    }
}
