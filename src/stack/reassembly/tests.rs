//! Fragments in order and out of it, and every way to lie with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Reassembly;
use crate::arena::Slot;
use crate::config::NetConfig;
use crate::flow::Ctx;
use crate::flow::testing::Around;
use crate::frame::{self, Ip, L3};
use crate::limits::{
    IP_LEN_MAX, RANGES_MAX, REASSEMBLIES_MAX, REASSEMBLY_RESERVED, REASSEMBLY_TIMEOUT, SLOTS_MAX,
};
use crate::stack::testing::*;
use crate::stats::Drop;
use crate::time::{Millis, Time};

const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

/// Reassembly alone.
struct Bench {
    around: Around,
    it: Reassembly,
}

impl Bench {
    fn new() -> Self {
        Self { around: Around::new(GUEST_MAC, Time(0)), it: Reassembly::new() }
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut Reassembly, &mut Ctx<'_>) -> R) -> R {
        f(&mut self.it, &mut self.around.ctx())
    }

    fn send(&mut self, bytes: &[u8]) -> Option<(Slot, Ip)> {
        let mut slot = self.around.pools.large.take().unwrap();
        slot.set_range(0, bytes.len());
        slot.bytes_mut().copy_from_slice(bytes);
        let parsed = frame::parse(slot.bytes()).unwrap();
        let L3::Ip(ip) = parsed.l3 else { panic!("not IP") };
        self.with(|it, ctx| it.handle(ctx, &parsed, &ip, slot))
    }

    fn part(&mut self, id: u16, offset: u16, more: bool, payload: &[u8]) -> Option<(Slot, Ip)> {
        self.send(&fragment_v4(GUEST, FAR, 17, id, offset, more, payload))
    }

    fn part_v6(&mut self, id: u32, offset: u16, more: bool, payload: &[u8]) -> Option<(Slot, Ip)> {
        self.send(&fragment_v6(GUEST_V6, FAR_V6, 17, id, offset, more, payload))
    }

    fn bad(&self) -> u64 {
        self.around.stats.dropped(Drop::BadFragment)
    }

    /// Datagrams that hold a slot.
    fn held(&self) -> u32 {
        self.around.pools.large.lent()
    }

    fn pass(&mut self, time: Millis) {
        self.around.now = self.around.now + time;
        self.with(|it, ctx| it.handle_timeout(ctx));
    }
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    (0..len).map(|_| rng.next() as u8).collect()
}

/// The payload of a datagram that came out whole; its headers are right.
fn payload(whole: Option<(Slot, Ip)>) -> Vec<u8> {
    let (slot, ip) = whole.expect("whole");
    let (parsed, read) = read(slot.bytes());
    assert_eq!(ip, read, "what is handed on is what the frame says");
    assert_eq!(parsed.eth_src, GUEST_MAC);
    assert_eq!((ip.fragment, ip.ttl), (None, 64));
    slot.bytes()[ip.start..ip.end].to_vec()
}

#[test]
fn any_order_gives_the_datagram() {
    let mut rng = Rng(1);
    for (round, v6) in [false, true].into_iter().cycle().take(400).enumerate() {
        let mut bench = Bench::new();
        let len = 9 + rng.below(9000);
        let whole = bytes(len, round as u64);
        let cut = (1 + rng.below(40)).max(len.div_ceil(8 * RANGES_MAX)).min((len - 1) / 8) * 8;
        let mut cuts: Vec<usize> = (0..len).step_by(cut).collect();
        for i in (1..cuts.len()).rev() {
            cuts.swap(i, rng.below(i + 1));
        }
        // Some come twice.
        let extra = cuts[rng.below(cuts.len())];
        let last = cuts.pop().unwrap();
        cuts.extend((extra != last).then_some(extra));
        let mut send = |at: usize| {
            let end = (at + cut).min(len);
            let (offset, more, part) = (at as u16, end < len, &whole[at..end]);
            if v6 {
                bench.part_v6(7, offset, more, part)
            } else {
                bench.part(7, offset, more, part)
            }
        };
        for at in cuts {
            assert!(send(at).is_none());
        }
        let got = send(last);
        let (src, dst): (IpAddr, IpAddr) =
            if v6 { (GUEST_V6.into(), FAR_V6.into()) } else { (GUEST.into(), FAR.into()) };
        let ip = got.as_ref().unwrap().1;
        assert_eq!((ip.src, ip.dst, u8::from(ip.proto)), (src, dst, 17));
        assert_eq!(payload(got), whole);
        assert_eq!((bench.bad(), bench.held(), bench.it.deadline()), (0, 0, None));
    }
}

#[test]
fn what_names_a_datagram_keeps_it_apart() {
    let mut bench = Bench::new();
    let other = Ipv4Addr::new(10, 0, 2, 101);
    let (a, b) = (bytes(16, 1), bytes(16, 2));
    let parts = [
        (GUEST, FAR, 17, 1),
        (GUEST, FAR, 17, 2),
        (GUEST, FAR, 1, 1),
        (other, FAR, 17, 1),
        (GUEST, other, 17, 1),
    ];
    for (src, dst, proto, id) in parts {
        assert!(bench.send(&fragment_v4(src, dst, proto, id, 0, true, &a)).is_none());
    }
    for (src, dst, proto, id) in parts {
        let whole = bench.send(&fragment_v4(src, dst, proto, id, 16, false, &b));
        assert_eq!(u8::from(whole.as_ref().unwrap().1.proto), proto);
        assert_eq!(payload(whole), [&a[..], &b].concat());
    }
    assert_eq!((bench.bad(), bench.held()), (0, 0));
}

#[test]
fn overlaps_condemn_the_datagram() {
    let base = bytes(64, 1);
    // (offset, length) of a second fragment against 16..48.
    for (offset, len) in
        [(8, 16), (40, 16), (8, 48), (16, 32), (24, 8), (16, 16), (32, 32), (0, 24)]
    {
        for v6 in [false, true] {
            let mut bench = Bench::new();
            let mut lie = base[offset..offset + len].to_vec();
            // The same bytes within are a copy, and no lie; here they differ.
            lie[len / 2] ^= 1;
            let mut part = |offset: usize, more, data: &[u8]| {
                let offset = offset as u16;
                if v6 {
                    bench.part_v6(1, offset, more, data).is_none()
                } else {
                    bench.part(1, offset, more, data).is_none()
                }
            };
            assert!(part(16, true, &base[16..48]));
            assert!(part(offset, true, &lie));
            // Its other parts come to nothing.
            assert!(part(0, true, &base[..16]));
            assert!(part(48, false, &base[48..]));
            assert_eq!((bench.bad(), bench.held()), (3, 0), "{offset}+{len}");
            // Its name is free again after a while.
            bench.pass(REASSEMBLY_TIMEOUT);
            assert_eq!(bench.around.stats.dropped(Drop::FragmentTimeout), 0, "counted already");
            assert_eq!(bench.it.deadline(), None);
        }
    }
}

#[test]
fn partial_overlap_is_a_lie_even_with_the_same_bytes() {
    let mut bench = Bench::new();
    let base = bytes(64, 1);
    assert!(bench.part(1, 16, true, &base[16..48]).is_none());
    assert!(bench.part(1, 16, true, &base[16..48]).is_none(), "a copy");
    assert!(bench.part(1, 24, true, &base[24..32]).is_none(), "a copy of a piece");
    assert_eq!(bench.bad(), 0);
    assert!(bench.part(1, 8, true, &base[8..24]).is_none());
    assert_eq!((bench.bad(), bench.held()), (1, 0));
}

#[test]
fn last_fragments_that_lie() {
    let base = bytes(64, 1);
    type Part = (u16, bool, usize);
    let lies: [&[Part]; 6] = [
        // Two ends.
        &[(32, false, 16), (48, false, 16)],
        &[(48, false, 16), (32, false, 16)],
        // Something behind the end.
        &[(16, false, 16), (32, true, 16)],
        &[(32, true, 16), (16, false, 8)],
        // A part that is not the last ends at the end, or beyond it.
        &[(32, false, 16), (32, true, 16)],
        &[(32, false, 12), (24, true, 32)],
    ];
    for lie in lies {
        let mut bench = Bench::new();
        for (n, &(offset, more, len)) in lie.iter().enumerate() {
            assert_eq!(bench.bad(), 0, "{lie:?} {n}");
            assert!(bench.part(1, offset, more, &base[..len]).is_none());
        }
        assert_eq!((bench.bad(), bench.held()), (1, 0), "{lie:?}");
    }
}

#[test]
fn fragments_that_can_be_no_part_are_dropped_alone() {
    let mut bench = Bench::new();
    let base = bytes(32, 1);
    assert!(bench.part(1, 0, true, &base[..16]).is_none());
    for (offset, more, data) in [(16, true, &base[..0]), (16, false, &[]), (16, true, &base[..9])] {
        assert!(bench.part(1, offset, more, data).is_none());
    }
    // A super-frame is cut by the guest's kernel before it is fragmented, never after.
    let mut gso = fragment_v4(GUEST, FAR, 17, 1, 16, false, &base[16..]);
    gso[1] = 5;
    gso[4] = 8;
    assert!(bench.send(&gso).is_none());
    assert_eq!((bench.bad(), bench.held()), (4, 1));
    assert_eq!(payload(bench.part(1, 16, false, &base[16..])), base);
}

#[test]
fn the_longest_datagram_fits_and_one_byte_more_does_not() {
    for v6 in [false, true] {
        let max = if v6 { IP_LEN_MAX } else { IP_LEN_MAX - 20 };
        let whole = bytes(max, 5);
        let mut bench = Bench::new();
        let mut send = |at: usize, more, part: &[u8]| {
            if v6 {
                bench.part_v6(1, at as u16, more, part)
            } else {
                bench.part(1, at as u16, more, part)
            }
        };
        let last = max / 1480 * 1480;
        for at in (0..last).step_by(1480) {
            assert!(send(at, true, &whole[at..at + 1480]).is_none());
        }
        let mut more = whole[last..].to_vec();
        more.push(0);
        assert!(send(last, false, &more).is_none());
        // The classic: the largest offset, with a length that runs over 65,535.
        assert!(send(65528, false, &[0; 1400]).is_none());
        assert_eq!(payload(send(last, false, &whole[last..])), whole);
        assert_eq!((bench.bad(), bench.held()), (2, 0));
    }
}

#[test]
fn what_never_completes_times_out() {
    let mut bench = Bench::new();
    assert!(bench.part(1, 0, true, &[0; 16]).is_none());
    bench.pass(Millis(1000));
    assert!(bench.part(2, 8, false, &[0; 16]).is_none());
    assert_eq!(bench.it.deadline(), Some(Time(0) + REASSEMBLY_TIMEOUT));
    bench.pass(Millis(REASSEMBLY_TIMEOUT.0 - 1001));
    assert_eq!((bench.around.stats.dropped(Drop::FragmentTimeout), bench.held()), (0, 2));
    bench.pass(Millis(1));
    assert_eq!((bench.around.stats.dropped(Drop::FragmentTimeout), bench.held()), (1, 1));
    // Fragments that keep coming do not keep it alive.
    assert!(bench.part(2, 24, false, &[0; 16]).is_none());
    bench.pass(Millis(1000));
    assert_eq!((bench.held(), bench.it.deadline()), (0, None));
}

#[test]
fn the_number_of_datagrams_is_bounded_and_the_oldest_makes_room() {
    let mut bench = Bench::new();
    for id in 0..1000 {
        bench.around.now = Time(id.into());
        assert!(bench.part(id, 0, true, &[id as u8; 16]).is_none());
        assert!(bench.held() <= REASSEMBLIES_MAX as u32);
    }
    assert_eq!(bench.bad(), 1000 - REASSEMBLIES_MAX as u64);
    assert_eq!(payload(bench.part(999, 16, false, &[231; 8])), [231; 24]);
    assert!(bench.part(0, 16, false, &[0; 8]).is_none(), "long gone");
}

#[test]
fn gaps_are_bounded() {
    let mut bench = Bench::new();
    for n in 0..RANGES_MAX as u16 {
        assert!(bench.part(1, n * 16, true, &[0; 8]).is_none());
    }
    assert_eq!(bench.bad(), 0);
    assert!(bench.part(1, RANGES_MAX as u16 * 16, true, &[0; 8]).is_none());
    assert_eq!((bench.bad(), bench.held()), (1, 0));
}

#[test]
fn other_users_of_slots_come_first() {
    let mut bench = Bench::new();
    let taken: Vec<Slot> = (0..SLOTS_MAX - REASSEMBLY_RESERVED)
        .map(|_| bench.around.pools.large.take().unwrap())
        .collect();
    assert!(bench.part(1, 0, true, &[0; 16]).is_none());
    assert_eq!(bench.around.stats.dropped(Drop::NoBuffer), 1);
    assert_eq!(bench.held() as usize, taken.len());
}

#[test]
fn fragments_of_fragments_and_broken_headers_are_refused() {
    // The first 8 bytes of the payload are another fragment header.
    let mut inner = vec![17, 0, 0, 9, 0, 0, 0, 1];
    inner.extend([0; 24]);
    let mut bench = Bench::new();
    let part = |at: u16, more, data: &[u8]| fragment_v6(GUEST_V6, FAR_V6, 44, 1, at, more, data);
    assert!(bench.send(&part(0, true, &inner[..16])).is_none());
    assert!(bench.send(&part(16, false, &inner[16..])).is_none());
    assert_eq!((bench.bad(), bench.held()), (1, 0));
    // Destination options that claim more than there is.
    let part = |at: u16, more, data: &[u8]| fragment_v6(GUEST_V6, FAR_V6, 60, 2, at, more, data);
    assert!(bench.send(&part(0, true, &[17, 9, 0, 0, 0, 0, 0, 0])).is_none());
    assert!(bench.send(&part(8, false, &[0; 8])).is_none());
    assert_eq!((bench.bad(), bench.held()), (2, 0));
    // And such that are right.
    let part = |at: u16, more, data: &[u8]| fragment_v6(GUEST_V6, FAR_V6, 60, 3, at, more, data);
    assert!(bench.send(&part(0, true, &[17, 0, 1, 4, 0, 0, 0, 0])).is_none());
    let (slot, ip) = bench.send(&part(8, false, &[7; 16])).unwrap();
    assert_eq!((u8::from(ip.proto), &slot.bytes()[ip.start..ip.end]), (17, &[7; 16][..]));
}

#[test]
fn random_fragments_against_a_model() {
    let mut rng = Rng(42);
    let mut complete = 0;
    for round in 0..3000 {
        let mut bench = Bench::new();
        let truth = bytes(48, round);
        // What the model has: each byte or not, and the end.
        let mut have = [false; 48];
        let mut end = None;
        for _ in 0..12 {
            let start = 8 * rng.below(6);
            let len = 8 * (1 + rng.below(((48 - start) / 8).min(2)));
            // Offset 0 and no more would be a datagram that was never cut.
            let more = start == 0 || (start + len != 48 && rng.below(20) != 0);
            let part = &truth[start..start + len];
            let range = start..start + len;
            let lie = match (end, more) {
                (Some(e), true) => start + len >= e,
                (Some(e), false) => start + len != e,
                (None, true) => false,
                (None, false) => have[start + len..].contains(&true),
            };
            let copy = have[range.clone()].iter().all(|b| *b);
            let overlap = have[range.clone()].contains(&true) && !copy;
            let got = bench.part(1, start as u16, more, part);
            if lie || overlap {
                assert!(got.is_none());
                assert_eq!((bench.bad(), bench.held()), (1, 0), "round {round}");
                break;
            }
            assert_eq!(bench.bad(), 0, "round {round}");
            have[range].fill(true);
            if !more {
                end = Some(start + len);
            }
            if let Some(e) = end.filter(|e| have[..*e].iter().all(|b| *b)) {
                assert_eq!(payload(got), truth[..e]);
                complete += 1;
                break;
            }
            assert!(got.is_none());
        }
    }
    assert!(complete > 100, "{complete}");
}

#[test]
fn a_fragmented_echo_to_the_gateway_is_answered_whole() {
    for v6 in [false, true] {
        let mut bed = Bed::native();
        let mut message = vec![if v6 { 128 } else { 8 }, 0, 0, 0, 1, 2, 3, 4];
        message.extend(bytes(4000, 3));
        let gateway = NetConfig::native().v6.unwrap().gateway;
        for at in (0..message.len()).step_by(1480) {
            assert!(bed.frames().is_empty());
            let end = (at + 1480).min(message.len());
            let (more, part) = (end < message.len(), &message[at..end]);
            if v6 {
                bed.send(&fragment_v6(GUEST_V6, gateway, 58, 1, at as u16, more, part));
            } else {
                bed.send(&fragment_v4(GUEST, GATEWAY, 1, 1, at as u16, more, part));
            }
        }
        let frames = bed.frames();
        assert_eq!(frames.len(), 1);
        let (_, answer) = transport(&frames[0]);
        assert_eq!(answer[4..], message[4..]);
        assert_eq!((bed.dropped_in_all(), bed.lent()), (0, 0));
    }
}

#[test]
fn the_stack_lets_the_time_run_out() {
    let mut bed = Bed::native();
    bed.send(&fragment_v4(GUEST, FAR, 17, 1, 0, true, &[0; 16]));
    bed.pass(REASSEMBLY_TIMEOUT);
    assert_eq!((bed.dropped(Drop::FragmentTimeout), bed.lent()), (1, 0));
}

#[test]
fn mangled_fragments_never_leak_what_the_guest_did_not_send() {
    // Old slots hold someone's payload.
    let mut bench = Bench::new();
    let dirty: Vec<Slot> = (0..20).map(|_| bench.around.pools.large.take().unwrap()).collect();
    for mut slot in dirty {
        slot.bytes_mut().fill(0xee);
    }
    let mut rng = Rng(9);
    let mut whole = 0;
    for id in 0..10_000 {
        let cut = 8 * (1 + rng.below(3));
        let v6 = rng.below(2) == 0;
        for (offset, len) in [(0, cut), (cut, 32 - cut)] {
            let (more, part) = (offset == 0, &[1; 32][..len]);
            let mut frame = if v6 {
                fragment_v6(GUEST_V6, FAR_V6, 17, id, offset as u16, more, part)
            } else {
                fragment_v4(GUEST, FAR, 17, id as u16, offset as u16, more, part)
            };
            for _ in 0..rng.below(3) {
                // In the headers only.
                let at = 24 + rng.below(if v6 { 48 } else { 20 });
                frame[at] ^= [1, 0x80, 0xff, rng.next() as u8][rng.below(4)];
            }
            frame.truncate(frame.len() - [0, rng.below(8)][rng.below(2)]);
            let Ok(parsed) = frame::parse(&frame) else { continue };
            if !matches!(parsed.l3, L3::Ip(Ip { fragment: Some(_), .. })) {
                continue;
            }
            if let Some((slot, ip)) = bench.send(&frame) {
                whole += 1;
                assert!(!slot.bytes()[ip.start..ip.end].contains(&0xee), "datagram {id}");
            }
        }
    }
    assert!(whole > 100, "{whole}");
    bench.pass(REASSEMBLY_TIMEOUT);
    assert_eq!(bench.held(), 0);
}
