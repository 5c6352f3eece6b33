//! Queries, resolvers that answer, fail or stay silent, and what the guest gets.

use std::net::{IpAddr, SocketAddr};

use crate::config::NetConfig;
use crate::flow::local::Local;
use crate::flow::{Action, DgramError, DgramKind, Errno, Event, FlowId};
use crate::limits::{DNS_LIFE, DNS_PENDING_MAX, DNS_RETRY, VNET_LEN};
use crate::stack::testing::*;
use crate::stats::Drop;
use crate::time::Millis;

const A: &str = "192.0.2.1";
const B: &str = "192.0.2.2";
const SIX: &str = "2001:db8::53";

fn at(addr: &str) -> SocketAddr {
    SocketAddr::new(addr.parse().unwrap(), 53)
}

fn bed(resolvers: &[&str]) -> Bed {
    let mut bed = Bed::native();
    let resolvers: Vec<IpAddr> = resolvers.iter().map(|a| a.parse().unwrap()).collect();
    bed.stack.set_resolvers(&resolvers);
    bed
}

/// A query for the address of "a.example", with an EDNS record behind the question.
fn query(number: u16) -> Vec<u8> {
    let mut m = number.to_be_bytes().to_vec();
    m.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    m.extend(b"\x01a\x07example\x00\x00\x01\x00\x01");
    m.extend([0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
    m
}

/// The answer of a resolver to what it was sent, with a response code.
fn answer(query: &[u8], code: u8) -> Vec<u8> {
    let mut m = query.to_vec();
    m[2] |= 0x80;
    m[3] = 0x80 | code;
    m
}

fn guest(port: u16) -> SocketAddr {
    SocketAddr::new(GUEST.into(), port)
}

fn ask(bed: &mut Bed, number: u16) -> (FlowId, SocketAddr, Vec<u8>) {
    bed.send(&udp(guest(4000), at("10.0.2.3"), &query(number)));
    opened(bed)
}

/// A socket is opened for a resolver and a query sent on it; nothing else but closing and notices.
fn opened(bed: &mut Bed) -> (FlowId, SocketAddr, Vec<u8>) {
    let actions = bed.actions();
    let mut open = None;
    let mut query = None;
    for action in &actions {
        match action {
            Action::DgramOpen { flow, kind: DgramKind::Dns(to) } => {
                assert!(open.replace((*flow, *to)).is_none());
            }
            Action::DgramSend { .. } => {
                let (flow, to, bytes) = sent(action).unwrap();
                assert!(query.replace((flow, to, bytes.to_vec())).is_none());
            }
            Action::Close { reset: false, .. } | Action::DnsUsed => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    let query = query.expect("a query was sent");
    assert_eq!(open, Some((query.0, query.1)), "on a socket of its own");
    query
}

/// What the guest gets: number, code, payload. The flow is closed.
fn delivered(bed: &mut Bed, flow: FlowId) -> Vec<u8> {
    let mut actions = bed.actions();
    let Some(Action::TapWrite { slot, keep: None }) = actions.first() else {
        panic!("{actions:?}");
    };
    let (ip, datagram) = transport(slot.bytes());
    assert_eq!(ip.src, IpAddr::V4(DNS), "from the address that was asked");
    assert_eq!(ip.dst, IpAddr::V4(GUEST));
    assert_eq!(datagram[..4], [0, 53, (4000u16 >> 8) as u8, (4000u16 & 255) as u8]);
    let payload = datagram[8..].to_vec();
    assert!(matches!(actions.pop(), Some(Action::Close { flow: f, reset: false }) if f == flow));
    bed.stack.handle_event(Event::Closed { flow }, bed.now);
    payload
}

/// A way to fail: what befalls the query on this flow.
type Failure = &'static dyn Fn(&mut Bed, FlowId, SocketAddr, &[u8]);

fn refused(to: SocketAddr) -> DgramError {
    DgramError {
        errno: Errno(111),
        icmp: Some((3, 3)),
        mtu: 0,
        offender: None,
        to,
        local: Local::ANY,
        echo_seq: 0,
    }
}

#[test]
fn a_query_goes_out_under_another_number_and_the_answer_comes_back() {
    let mut bed = bed(&[A, B]);
    let (flow, to, q) = ask(&mut bed, 0x1234);
    assert_eq!(to, at(A));
    assert_eq!(q[2..], query(0)[2..]);
    assert_ne!(q[..2], [0x12, 0x34], "one in 65536 may fail here, but not with this secret");
    bed.receive(flow, to, &answer(&q, 0));
    assert_eq!(delivered(&mut bed, flow), answer(&query(0x1234), 0));
    assert_eq!((bed.lent(), bed.stack.stats().flows, bed.dropped_in_all()), (0, 0, 0));
}

#[test]
fn numbers_do_not_follow_from_the_guests() {
    let mut bed = bed(&[A]);
    let numbers: Vec<u16> = (0..64)
        .map(|n| {
            let (_, _, q) = ask(&mut bed, n);
            u16::from_be_bytes([q[0], q[1]])
        })
        .collect();
    let mut steps: Vec<u16> = numbers.windows(2).map(|w| w[1].wrapping_sub(w[0])).collect();
    steps.sort_unstable();
    steps.dedup();
    assert!(steps.len() > 60, "{numbers:?}");
}

#[test]
fn a_silent_resolver_gives_way_and_its_late_answer_finds_nobody() {
    let mut bed = bed(&[A, B]);
    let (first, to, q) = ask(&mut bed, 7);
    bed.pass(Millis(DNS_RETRY.0 - 100));
    assert!(bed.actions().is_empty());
    bed.pass(Millis(200));
    let (second, to_b, q_b) = opened(&mut bed);
    assert_eq!((to_b, &q_b), (at(B), &q));
    assert_ne!(first, second);
    bed.receive(first, to, &answer(&q, 0));
    assert!(bed.actions().is_empty());
    bed.stack.handle_event(Event::Closed { flow: first }, bed.now);
    bed.receive(second, to_b, &answer(&q_b, 3));
    assert_eq!(delivered(&mut bed, second), answer(&query(7), 3), "NXDOMAIN is an answer");
    assert_eq!((bed.lent(), bed.stack.stats().flows), (0, 0));
}

#[test]
fn resolvers_are_asked_in_a_circle_until_the_query_ends() {
    let mut bed = bed(&[A, B]);
    let (_, to, _) = ask(&mut bed, 7);
    let mut asked = vec![to];
    let start = bed.now;
    while bed.now - start < DNS_LIFE {
        bed.pass(Millis(100));
        let actions = bed.actions();
        for action in &actions {
            match action {
                Action::Close { flow, .. } => {
                    bed.stack.handle_event(Event::Closed { flow: *flow }, bed.now);
                }
                Action::DgramSend { to, .. } => asked.push(*to),
                Action::DgramOpen { .. } => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }
    assert_eq!(asked, [at(A), at(B), at(A), at(B), at(A)]);
    assert_eq!((bed.lent(), bed.stack.stats().flows), (0, 0));
}

#[test]
fn the_only_resolver_is_asked_again_on_the_same_socket() {
    let mut bed = bed(&[A]);
    let (flow, to, q) = ask(&mut bed, 7);
    bed.pass(Millis(DNS_RETRY.0 + 100));
    let actions = bed.actions();
    assert_eq!(actions.len(), 1);
    assert_eq!(sent(&actions[0]), Some((flow, to, &q[..])));
    drop(actions);
    bed.receive(flow, to, &answer(&q, 0));
    assert_eq!(delivered(&mut bed, flow), answer(&query(7), 0));
}

#[test]
fn failures_move_on_at_once_and_the_last_one_is_told() {
    let errors: [Failure; 4] = [
        &|bed, flow, to, _| {
            let event = Event::DgramError { flow, error: refused(to) };
            bed.stack.handle_event(event, bed.now);
        },
        &|bed, flow, _, _| {
            bed.stack.handle_event(Event::DgramFailed { flow, errno: Errno(24) }, bed.now);
        },
        &|bed, flow, to, _| {
            let slot = bed.stack.pools().small.take().unwrap();
            let event = Event::DgramSent { flow, slot, to, local: Local::ANY, errno: Errno(101) };
            bed.stack.handle_event(event, bed.now);
        },
        &|bed, flow, to, q| bed.receive(flow, to, &answer(q, 2)),
    ];
    for (n, error) in errors.iter().enumerate() {
        let mut bed = bed(&[A, B]);
        let (first, to, q) = ask(&mut bed, 9);
        error(&mut bed, first, to, &q);
        let (second, to, q) = opened(&mut bed);
        assert_eq!(to, at(B));
        bed.stack.handle_event(Event::Closed { flow: first }, bed.now);
        error(&mut bed, second, to, &q);
        let got = delivered(&mut bed, second);
        let whole = answer(&query(9), 2);
        if n == 3 {
            assert_eq!(got, whole, "the resolver's own words");
        } else {
            // Ours: header and question.
            let mut want = whole[..12 + 15].to_vec();
            want[11] = 0;
            assert_eq!(got, want);
        }
        assert_eq!((bed.lent(), bed.stack.stats().flows, bed.dropped_in_all()), (0, 0, 0));
    }
}

#[test]
fn a_resolver_that_failed_is_not_asked_again() {
    let mut bed = bed(&[A, B]);
    let (first, to, _) = ask(&mut bed, 9);
    bed.stack.handle_event(Event::DgramError { flow: first, error: refused(to) }, bed.now);
    let (second, to_b, q) = opened(&mut bed);
    bed.stack.handle_event(Event::Closed { flow: first }, bed.now);
    bed.pass(Millis(DNS_RETRY.0 + 100));
    let actions = bed.actions();
    assert_eq!(actions.len(), 1);
    assert_eq!(sent(&actions[0]), Some((second, to_b, &q[..])));
}

#[test]
fn either_family_serves_either_address() {
    let mut bed = bed(&[A, SIX]);
    let six = SocketAddr::new(GUEST_V6.into(), 4000);
    bed.send(&udp(six, at("fd00::3"), &query(1)));
    let (first, to, _) = opened(&mut bed);
    assert_eq!(to, at(SIX));
    bed.stack.handle_event(Event::DgramError { flow: first, error: refused(to) }, bed.now);
    let (second, to, q) = opened(&mut bed);
    assert_eq!(to, at(A));
    bed.receive(second, to, &answer(&q, 0));
    let Some(Action::TapWrite { slot, .. }) = bed.actions().into_iter().next() else { panic!() };
    let (ip, datagram) = transport(slot.bytes());
    assert_eq!((ip.src, ip.dst), (at("fd00::3").ip(), GUEST_V6.into()));
    assert_eq!(datagram[8..], answer(&query(1), 0));
}

#[test]
fn without_resolvers_the_hosts_loopback_is_asked() {
    let mut bed = bed(&[]);
    assert_eq!(ask(&mut bed, 1).1, at("127.0.0.1"));
    bed.send(&udp(SocketAddr::new(GUEST_V6.into(), 4000), at("fd00::3"), &query(1)));
    assert_eq!(opened(&mut bed).1, at("::1"));
}

#[test]
fn answers_that_are_none_are_dropped_and_the_query_goes_on() {
    let mut bed = bed(&[A]);
    let (flow, to, q) = ask(&mut bed, 0x1234);
    let mut wrong = answer(&q, 0);
    wrong[1] ^= 1;
    bed.receive(flow, to, &wrong);
    bed.receive(flow, to, &q);
    bed.receive(flow, to, &answer(&q, 0)[..11]);
    bed.receive(flow, to, &[]);
    assert!(bed.actions().is_empty());
    assert_eq!((bed.dropped(Drop::Unsolicited), bed.dropped(Drop::Malformed)), (3, 1));
    bed.receive(flow, to, &answer(&q, 0));
    assert_eq!(delivered(&mut bed, flow), answer(&query(0x1234), 0));
    // A duplicate finds nobody.
    bed.receive(flow, to, &answer(&q, 0));
    assert!(bed.actions().is_empty());
    assert_eq!(bed.lent(), 0);
}

#[test]
fn pending_queries_are_bounded() {
    let mut bed = bed(&[A]);
    let mut first = None;
    for n in 0..DNS_PENDING_MAX {
        let from = guest(1000 + (n / 8) as u16);
        bed.send(&udp(from, at("10.0.2.3"), &query(n as u16)));
        let query = opened(&mut bed);
        first.get_or_insert(query);
    }
    assert_eq!(bed.dropped(Drop::DnsRefused), 0);
    bed.send(&udp(guest(4000), at("10.0.2.3"), &query(1)));
    assert_eq!(bed.dropped(Drop::DnsRefused), 1);
    assert!(bed.actions().is_empty());
    // One ends, one more may come.
    let (flow, _, q) = first.unwrap();
    bed.receive(flow, at(A), &answer(&q, 0));
    let _ = bed.actions();
    let _ = ask(&mut bed, 1);
    assert_eq!(bed.dropped(Drop::DnsRefused), 1);
    // All end of themselves, whatever the resolvers do.
    for _ in 0..200 {
        bed.pass(Millis(100));
        for action in bed.actions() {
            if let Action::Close { flow, .. } = action {
                bed.stack.handle_event(Event::Closed { flow }, bed.now);
            }
        }
    }
    bed.stack.handle_event(Event::Closed { flow }, bed.now);
    assert_eq!((bed.lent(), bed.stack.stats().flows), (0, 0));
}

#[test]
fn the_watcher_of_resolv_conf_hears_of_use_once_a_second() {
    let mut bed = bed(&[A]);
    let notices = |bed: &mut Bed| {
        bed.send(&udp(guest(4000), at("10.0.2.3"), &query(1)));
        bed.actions().iter().filter(|a| matches!(a, Action::DnsUsed)).count()
    };
    assert_eq!(notices(&mut bed), 1);
    assert_eq!(notices(&mut bed), 0);
    bed.pass(Millis(999));
    assert_eq!(notices(&mut bed), 0);
    bed.pass(Millis(1));
    assert_eq!(notices(&mut bed), 1);
}

#[test]
fn what_is_no_query_is_counted() {
    let mut bed = bed(&[A]);
    for payload in [&query(1)[..11], &[], &answer(&query(1), 0)] {
        bed.send(&udp(guest(4000), at("10.0.2.3"), payload));
    }
    assert_eq!(bed.dropped(Drop::Malformed), 3);
    let mut long = query(1);
    long.resize(2049, 0);
    bed.send(&udp(guest(4000), at("10.0.2.3"), &long));
    assert_eq!(bed.dropped(Drop::DnsRefused), 1);
    assert!(bed.actions().iter().all(|a| matches!(a, Action::DnsUsed)));
    assert_eq!((bed.lent(), bed.stack.stats().flows), (0, 0));
}

#[test]
fn a_hostile_question_gets_a_header_for_an_answer() {
    for question in [&b"\xc0\x0c\x00\x01\x00\x01"[..], b"\x3fabc", b"", b"\x00\x00\x01"] {
        let mut bed = bed(&[A]);
        let mut q = query(5)[..12].to_vec();
        q.extend(question);
        bed.send(&udp(guest(4000), at("10.0.2.3"), &q));
        let (flow, to, _) = opened(&mut bed);
        bed.stack.handle_event(Event::DgramError { flow, error: refused(to) }, bed.now);
        assert_eq!(delivered(&mut bed, flow), [0, 5, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn a_list_that_shrinks_under_a_query_is_no_trouble() {
    let mut bed = bed(&[A, B]);
    let (first, to, _) = ask(&mut bed, 9);
    bed.stack.handle_event(Event::DgramError { flow: first, error: refused(to) }, bed.now);
    let (second, _, _) = opened(&mut bed);
    bed.stack.handle_event(Event::Closed { flow: first }, bed.now);
    bed.stack.set_resolvers(&[A.parse().unwrap()]);
    bed.pass(Millis(DNS_RETRY.0 + 100));
    // The second is gone and the first has failed.
    assert_eq!(delivered(&mut bed, second)[3], 0x82);
}

#[test]
fn tcp_tries_each_resolver_once() {
    let mut bed = bed(&[A, B]);
    let mut syn = [4000u16.to_be_bytes(), 53u16.to_be_bytes()].concat();
    syn.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    bed.send(&ip(GUEST.into(), DNS.into(), 6, &syn));
    let connect = |bed: &mut Bed| {
        let actions = bed.actions();
        actions.iter().find_map(|action| match action {
            Action::TcpConnect { flow, to } => Some((*flow, *to)),
            _ => None,
        })
    };
    let (flow, to) = connect(&mut bed).unwrap();
    assert_eq!(to, at(A));
    let refused = Event::TcpConnected { flow, result: Err(Errno(111)) };
    bed.stack.handle_event(refused, bed.now);
    assert_eq!(connect(&mut bed), Some((flow, at(B))));
    let refused = Event::TcpConnected { flow, result: Err(Errno(111)) };
    bed.stack.handle_event(refused, bed.now);
    let actions = bed.actions();
    assert!(actions.iter().any(|a| matches!(a, Action::TapWrite { .. })), "a reset: {actions:?}");
    assert!(!actions.iter().any(|a| matches!(a, Action::TcpConnect { .. })));
}

#[test]
fn mangled_queries_are_sent_or_counted() {
    let mut bed = bed(&[A]);
    let l3 = VNET_LEN + 14;
    let elsewhere = |f: &[u8]| {
        let fragment = (f[l3 + 6] & 0x3f, f[l3 + 7]) != (0, 0);
        let to = f[l3 + 16..l3 + 20] == DNS.octets() && f[l3 + 22..l3 + 24] == [0, 53];
        fragment || !to || (f[l3], f[l3 + 9]) != (0x45, 17)
    };
    bed.mangle(&udp(guest(4000), at("10.0.2.3"), &query(1)), 500, &elsewhere);
    assert!(bed.dropped(Drop::Malformed) > 50);
    let mut bed = Bed::new(NetConfig { dns: false, ..NetConfig::native() });
    bed.send(&udp(guest(4000), at("10.0.2.3"), &query(1)));
    assert!(
        !bed.actions()
            .iter()
            .any(|a| matches!(a, Action::DgramOpen { kind: DgramKind::Dns(_), .. }))
    );
}

#[test]
fn an_answer_that_no_datagram_to_the_guest_can_hold_is_dropped() {
    // From a resolver of the other family: IPv6 carries 20 bytes more than IPv4.
    for (len, fits) in [(65507, true), (65508, false), (65527, false)] {
        let mut bed = bed(&[SIX]);
        let (flow, to, query) = ask(&mut bed, 7);
        let mut long = answer(&query, 0);
        long.resize(len, 0);
        bed.receive(flow, to, &long);
        let actions = bed.actions();
        let written = actions.iter().filter(|a| matches!(a, Action::TapWrite { .. })).count();
        assert_eq!(written, usize::from(fits), "{len}");
        drop(actions);
        assert_eq!(bed.dropped(Drop::Malformed), u64::from(!fits), "{len}");
        assert_eq!(bed.lent(), 0);
    }
}
