//! Purses, proofs, and who draws on which.

use super::*;

const BEGIN: Time = Time(5000);

fn openings() -> Openings {
    Openings::new([3, 5], BEGIN)
}

fn host(address: u32, port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(0xc633_6400 + address).into(), port)
}

fn to(host: SocketAddr) -> FlowKey {
    FlowKey::pair(Proto::Tcp, SocketAddr::from(([10, 0, 2, 100], 1000)), host)
}

/// How many connections to hosts may begin and come to nothing.
fn failures(
    openings: &mut Openings,
    hosts: impl IntoIterator<Item = SocketAddr>,
    now: Time,
) -> u32 {
    let mut fails = |host| {
        let key = to(host);
        let taken = openings.take(&key, now);
        if taken.is_some() {
            openings.failed(&key);
        }
        taken.is_some()
    };
    hosts.into_iter().map(|host| u32::from(fails(host))).sum()
}

fn scan(address: u32) -> impl Iterator<Item = SocketAddr> {
    (1..=10_000).map(move |port| host(address, port))
}

#[test]
fn an_address_has_so_many_failures_and_a_rate() {
    let mut openings = openings();
    assert_eq!(failures(&mut openings, scan(1), BEGIN), OPENINGS_ADDRESS_MOST);
    // Steps that are no whole number of times lose nothing.
    let steps = (1..=20).map(|i| BEGIN + Millis(i * 33));
    let come: u32 = steps.map(|now| failures(&mut openings, scan(1), now)).sum();
    assert_eq!(u64::from(come), 20 * 33 / OPENINGS_ADDRESS_EVERY.0);
    // And are saved up to a bound.
    let now = BEGIN + Millis::secs(3600);
    assert_eq!(failures(&mut openings, scan(1), now), OPENINGS_ADDRESS_MOST);
}

#[test]
fn other_addresses_have_their_own() {
    let mut openings = openings();
    let mut now = BEGIN;
    for _ in 0..1000 {
        failures(&mut openings, scan(1), now);
        assert_eq!(openings.take(&to(host(2, 80)), now), Some(Lender::Address));
        openings.give(&to(host(2, 80)), Lender::Address);
        now = now + Millis(1);
    }
}

#[test]
fn all_addresses_together_have_no_more_than_all() {
    let mut openings = openings();
    let hosts = || (0..1000).flat_map(|port| (1..=200).map(move |a| host(a, 1 + port)));
    assert_eq!(failures(&mut openings, hosts(), BEGIN), OPENINGS_MOST);
    let now = BEGIN + Millis(100);
    assert_eq!(failures(&mut openings, hosts(), now), 100 / OPENINGS_EVERY.0 as u32);
    // Those whose address had one left, and all together had not, have kept it.
    let now = now + Millis(u64::from(OPENINGS_MOST) * OPENINGS_EVERY.0);
    assert_eq!(failures(&mut openings, scan(201), now), OPENINGS_ADDRESS_MOST);
}

#[test]
fn what_worked_is_proven_until_it_fails() {
    let mut openings = openings();
    let server = to(host(1, 80));
    let lender = openings.take(&server, BEGIN).unwrap();
    openings.worked(&server, lender);
    let everyone = || (1..=200).flat_map(scan);
    let others = || everyone().filter(|&h| h != host(1, 80));
    failures(&mut openings, others(), BEGIN);
    assert_eq!(failures(&mut openings, everyone().skip(1).step_by(7), BEGIN), 0);
    // Neither the address nor all have any left.
    for _ in 0..2 * OPENINGS_PROVEN_MOST {
        assert_eq!(openings.take(&server, BEGIN), Some(Lender::Proven));
        openings.worked(&server, Lender::Proven);
    }
    assert_eq!(openings.take(&to(host(1, 81)), BEGIN), None);
    openings.failed(&to(host(1, 81)));
    for _ in 0..OPENINGS_PROVEN_MOST {
        assert_eq!(openings.take(&server, BEGIN), Some(Lender::Proven));
    }
    assert_eq!(openings.take(&server, BEGIN), None, "too many under way");
    openings.give(&server, Lender::Proven);
    assert_eq!(openings.take(&server, BEGIN), Some(Lender::Proven));
    openings.failed(&server);
    openings.give(&server, Lender::Proven);
    assert_eq!(openings.take(&server, BEGIN), None);
}

#[test]
fn those_that_work_are_not_counted() {
    let mut openings = openings();
    for i in 0..10 * OPENINGS_MOST {
        let key = to(host(i % 300, 80));
        let lender = openings.take(&key, BEGIN).unwrap();
        openings.worked(&key, lender);
    }
    openings.give(&to(host(1, 80)), Lender::Address);
    let unproven = scan(1).skip(80);
    assert_eq!(failures(&mut openings, unproven, BEGIN), OPENINGS_ADDRESS_MOST);
}
