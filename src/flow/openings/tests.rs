//! Purses, proofs, and who draws on which.

use super::*;

const BEGIN: Time = Time(5000);

fn openings() -> Openings {
    Openings::connections([3, 5], BEGIN)
}

fn host(address: u32, port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(0xc633_6400 + address).into(), port)
}

/// How many connections to hosts may begin and come to nothing.
fn failures(
    openings: &mut Openings,
    hosts: impl IntoIterator<Item = SocketAddr>,
    now: Time,
) -> u32 {
    let mut fails = |host| {
        let taken = openings.take(host, now);
        taken.map(|loan| openings.failed(&loan)).is_some()
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
        let loan = openings.take(host(2, 80), now).unwrap();
        assert_eq!(loan.lender, Lender::Address);
        openings.give(loan);
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
    let server = host(1, 80);
    let loan = openings.take(server, BEGIN).unwrap();
    openings.worked(loan, BEGIN);
    let everyone = || (1..=200).flat_map(scan);
    let others = || everyone().filter(|&h| h != server);
    failures(&mut openings, others(), BEGIN);
    assert_eq!(failures(&mut openings, everyone().skip(1).step_by(7), BEGIN), 0);
    // Neither the address nor all have any left.
    let proven = |openings: &mut Openings| {
        let loan = openings.take(server, BEGIN).unwrap();
        assert_eq!(loan.lender, Lender::Proven);
        loan
    };
    for _ in 0..2 * OPENINGS_PROVEN_MOST {
        let loan = proven(&mut openings);
        openings.worked(loan, BEGIN);
    }
    assert_eq!(openings.take(host(1, 81), BEGIN), None);
    let mut loans: Vec<_> = (0..OPENINGS_PROVEN_MOST).map(|_| proven(&mut openings)).collect();
    assert_eq!(openings.take(server, BEGIN), None, "too many under way");
    openings.give(loans.pop().unwrap());
    let loan = proven(&mut openings);
    openings.failed(&loan);
    openings.give(loans.pop().unwrap());
    assert_eq!(openings.take(server, BEGIN), None);
}

#[test]
fn another_endpoints_failure_ends_no_proof() {
    let mut openings = openings();
    let loan = openings.take(host(1, 80), BEGIN).unwrap();
    openings.worked(loan, BEGIN);
    let loan = openings.take(host(1, 81), BEGIN).unwrap();
    openings.failed(&loan);
    assert_eq!(openings.take(host(1, 80), BEGIN).unwrap().lender, Lender::Proven);
}

/// Of two under way, the one that began first may be the last to end.
#[test]
fn an_old_failure_ends_no_new_proof() {
    let mut openings = openings();
    let old = openings.take(host(1, 80), BEGIN).unwrap();
    let now = BEGIN + Millis(1);
    let loan = openings.take(host(1, 80), now).unwrap();
    openings.worked(loan, now);
    openings.failed(&old);
    let loan = openings.take(host(1, 80), now).unwrap();
    assert_eq!(loan.lender, Lender::Proven);
    openings.failed(&loan);
    assert_eq!(openings.take(host(1, 80), now).unwrap().lender, Lender::Address);
}

#[test]
fn those_that_work_are_not_counted() {
    let mut openings = openings();
    for i in 0..10 * OPENINGS_MOST {
        let loan = openings.take(host(i % 300, 80), BEGIN).unwrap();
        openings.worked(loan, BEGIN);
    }
    let unproven = scan(1).skip(80);
    assert_eq!(failures(&mut openings, unproven, BEGIN), OPENINGS_ADDRESS_MOST);
}

#[test]
fn mappings_have_more() {
    let mut openings = Openings::mappings([3, 5], BEGIN);
    let ports = |address| (1..=60_000).map(move |port| host(address, port));
    assert_eq!(failures(&mut openings, ports(1), BEGIN), MAPPINGS_ADDRESS_MOST);
    let left = MAPPINGS_MOST - MAPPINGS_ADDRESS_MOST;
    assert_eq!(failures(&mut openings, ports(2), BEGIN), left);
    let now = BEGIN + Millis(100);
    let come = 100 / MAPPINGS_ADDRESS_EVERY.0 as u32;
    assert_eq!(failures(&mut openings, ports(1), now), come);
}
