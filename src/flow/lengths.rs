//! Which datagrams can be one run: as `UDP_SEGMENT` cuts it towards the host, and the guest's kernel a frame of
//! `VIRTIO_NET_HDR_GSO_UDP_L4`. Pure.
//!
//! All have the length of the first, only the last may be shorter, and none is empty. A run cannot be cut into IP
//! fragments, so that its datagrams must fit a frame each.

use crate::limits::{UDP_SEND_BYTES, UDP_SEND_SEGMENTS};

/// Lengths of the datagrams of a run so far: one or more.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// Payload bytes of the first datagram, and of every one but the last.
    size: usize,
    /// Payload bytes of all.
    bytes: usize,
    datagrams: usize,
    /// No datagram may follow: the last was shorter, or the first cannot lead.
    ended: bool,
}

impl Lengths {
    /// Of one datagram. One longer than `most` stays alone.
    pub fn new(len: usize, most: usize) -> Self {
        // A run tells the size in 16 bits.
        let ended = len == 0 || len > most || len > usize::from(u16::MAX);
        Self { size: len, bytes: len, datagrams: 1, ended }
    }

    /// Adds a datagram if it can be in one run with those that are here.
    pub fn takes(&mut self, len: usize) -> bool {
        // A datagram of 0 bytes is none in a run.
        let fits = !self.ended
            && (1..=self.size).contains(&len)
            && self.datagrams < UDP_SEND_SEGMENTS
            && self.bytes + len <= UDP_SEND_BYTES;
        if fits {
            self.bytes += len;
            self.datagrams += 1;
            self.ended = len < self.size;
        }
        fits
    }

    /// Payload bytes of each datagram, if they are more than one.
    pub fn segment(&self) -> Option<u16> {
        (self.datagrams > 1).then_some(self.size as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ones_and_one_shorter() {
        let mut run = Lengths::new(100, 1472);
        assert_eq!(run.segment(), None);
        assert!(run.takes(100));
        assert_eq!(run.segment(), Some(100));
        assert!(!run.takes(101));
        assert!(!run.takes(0));
        assert!(run.takes(1));
        for len in [0, 1, 100] {
            assert!(!run.takes(len), "after the shorter one: {len}");
        }
        assert_eq!((run.bytes, run.datagrams, run.segment()), (201, 3, Some(100)));
    }

    #[test]
    fn no_more_than_every_kernel_takes() {
        for (len, most) in [(1, 64), (1000, 64), (1015, 64), (1016, 63), (1472, 44), (32_500, 2)] {
            let mut run = Lengths::new(len, len);
            let taken = 1 + (0..200).take_while(|_| run.takes(len)).count();
            assert_eq!(taken, most, "{len}");
        }
    }

    #[test]
    fn what_cannot_lead() {
        for (len, most) in [(0, 1472), (1473, 1472), (9000, 1472), (1, 0), (65_536, 1 << 20)] {
            assert!(!Lengths::new(len, most).takes(len.min(100)), "{len}");
        }
    }
}
