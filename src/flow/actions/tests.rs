//! Datagrams that join others in the queue, and those that must not.

use std::net::Ipv4Addr;

use super::*;
use crate::arena::{Chain, Pools};
use crate::flow::FlowId;
use crate::frame::build::Out;
use crate::frame::{self, L3, Pair, vnet};
use crate::limits::HEADROOM;

const MOST: usize = 1472;

struct Bed {
    actions: Actions,
    pools: Pools,
}

fn head() -> Head {
    let pair = Pair::V4(Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(10, 0, 2, 100));
    let out = Out { eth_src: [2; 6], eth_dst: [4; 6], pair, ttl: 60, tos: 3, df: false };
    Head { out, from: 53, to: 4000 }
}

/// Bytes behind the UDP header, and the size of each datagram (0: there is one).
fn frame(bytes: &[u8]) -> (Vec<u8>, u16) {
    let parsed = frame::parse(bytes).unwrap();
    let L3::Ip(ip) = parsed.l3 else { panic!("ARP") };
    assert_eq!((ip.ttl, ip.tos, ip.end), (60, 3, bytes.len()));
    let udp = &bytes[ip.start..ip.end];
    assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len());
    let run = parsed.vnet.gso_type == vnet::GSO_UDP_L4;
    assert_eq!(run, parsed.vnet.gso_size != 0);
    (udp[8..].to_vec(), parsed.vnet.gso_size)
}

fn gather(chain: &Chain) -> Vec<u8> {
    let mut bytes = Vec::new();
    chain.for_each(|slot| {
        bytes.extend_from_slice(slot.bytes());
        true
    });
    bytes
}

impl Bed {
    fn new() -> Self {
        Self { actions: Actions::new(), pools: Pools::new().unwrap() }
    }

    fn slot(&self, byte: u8, len: usize) -> Slot {
        let mut slot = self.pools.large.take().unwrap();
        slot.set_range(HEADROOM, len);
        slot.bytes_mut().fill(byte);
        slot
    }

    fn deliver(&mut self, place: &mut Place, head: Head, byte: u8, len: usize) {
        let slot = self.slot(byte, len);
        self.actions.deliver(place, head, slot, 0, MOST);
    }

    /// The next action, a frame for the guest.
    fn next(&mut self) -> Option<(Vec<u8>, u16)> {
        Some(match self.actions.pop()? {
            Action::TapWrite { slot, keep: None } => frame(slot.bytes()),
            Action::TapRun { chain } => {
                let found = frame(&gather(&chain));
                assert!(chain.slots() > 1 && found.1 != 0);
                found
            }
            other => panic!("{other:?}"),
        })
    }
}

#[test]
fn equal_ones_are_one_frame_in_their_order() {
    let mut bed = Bed::new();
    let mut place = Place::default();
    for (byte, len) in [(1, 100), (2, 100), (3, 99), (4, 99), (5, 1)] {
        bed.deliver(&mut place, head(), byte, len);
    }
    let first = [vec![1; 100], vec![2; 100], vec![3; 99]].concat();
    assert_eq!(bed.next(), Some((first, 100)));
    assert_eq!(bed.next(), Some(([vec![4; 99], vec![5; 1]].concat(), 99)));
    assert_eq!(bed.next(), None);
    assert_eq!(bed.pools.large.lent(), 0);
}

#[test]
fn other_headers_are_another_frame() {
    let headers: [fn(&mut Head); 6] = [
        |h| h.out.ttl = 60 - 1,
        |h| h.out.tos = 0,
        |h| h.out.eth_dst = [6; 6],
        |h| h.out.pair = Pair::V4(Ipv4Addr::new(198, 51, 100, 8), Ipv4Addr::new(10, 0, 2, 100)),
        |h| h.from = 54,
        |h| h.to = 4001,
    ];
    for change in headers {
        let mut bed = Bed::new();
        let (mut place, mut other) = (Place::default(), head());
        change(&mut other);
        bed.deliver(&mut place, head(), 1, 100);
        bed.deliver(&mut place, other, 2, 100);
        // Only the newest takes more, or the order would be another.
        bed.deliver(&mut place, head(), 3, 100);
        let Some(Action::TapWrite { slot, .. }) = bed.actions.pop() else { panic!("{other:?}") };
        assert_eq!(frame(slot.bytes()), (vec![1; 100], 0));
        assert!(matches!(bed.actions.pop(), Some(Action::TapWrite { .. })));
        assert_eq!(bed.next(), Some((vec![3; 100], 0)));
    }
}

#[test]
fn what_is_taken_takes_no_more() {
    let mut bed = Bed::new();
    let (mut one, mut two) = (Place::default(), Place::default());
    bed.deliver(&mut one, head(), 1, 100);
    bed.deliver(&mut two, Head { to: 5000, ..head() }, 2, 100);
    assert_eq!(bed.next(), Some((vec![1; 100], 0)));
    // In the place of the first is now the second, which is not its own.
    bed.deliver(&mut one, head(), 3, 100);
    bed.deliver(&mut two, Head { to: 5000, ..head() }, 4, 100);
    assert_eq!(bed.next(), Some(([vec![2; 100], vec![4; 100]].concat(), 100)));
    assert_eq!(bed.next(), Some((vec![3; 100], 0)));
    // Nor is another action a frame.
    let flow = FlowId { index: 0, generation: 0 };
    bed.deliver(&mut one, head(), 5, 100);
    bed.actions.push(Action::TcpShutdown { flow });
    bed.deliver(&mut one, head(), 6, 100);
    assert_eq!(bed.next(), Some(([vec![5; 100], vec![6; 100]].concat(), 100)));
    assert!(matches!(bed.actions.pop(), Some(Action::TcpShutdown { .. })));
    assert_eq!(bed.next(), None);
}

#[test]
fn those_that_stay_alone() {
    let mut bed = Bed::new();
    let mut place = Place::default();
    // Longer than the guest's MTU takes; empty.
    for len in [MOST + 1, 0] {
        bed.deliver(&mut place, head(), 1, len);
        bed.deliver(&mut place, head(), 2, len.min(10));
        assert_eq!(bed.next(), Some((vec![1; len], 0)));
        assert_eq!(bed.next(), Some((vec![2; len.min(10)], 0)));
    }
    // A run that came as one, before others and behind.
    for _ in 0..2 {
        let run = bed.slot(7, 250);
        bed.deliver(&mut place, head(), 3, 100);
        bed.actions.deliver(&mut place, head(), run, 100, MOST);
    }
    for _ in 0..2 {
        assert_eq!(bed.next(), Some((vec![3; 100], 0)));
        assert_eq!(bed.next(), Some((vec![7; 250], 100)));
    }
    // All of them, behind a TAP that takes no runs.
    bed.actions.keep_datagrams_alone();
    for byte in 1..4 {
        bed.deliver(&mut place, head(), byte, 100);
    }
    for byte in 1..4 {
        assert_eq!(bed.next(), Some((vec![byte; 100], 0)));
    }
}
