//! ping and traceroute.

use crate::harness::{Bed, Family, With, against_slirp, need, not_slirp};

fn ping(family: Family) -> &'static str {
    match family {
        Family::V4 => "ping -4 -n -c 2 -i 0.2 -W 10",
        Family::V6 => "ping -6 -n -c 2 -i 0.2 -W 10",
    }
}

#[test]
fn ping_far_and_near() {
    need!("ping");
    let (_bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        for to in [family.gateway(), family.remote(), family.far()] {
            if family == Family::V6 && to != family.gateway() && against_slirp() {
                continue; // No IPv6 echo beyond the gateway.
            }
            let said = guest.ns.cmd(ping(family)).arg(to.to_string()).ok();
            assert!(said.contains("2 received"), "{to}: {said}");
        }
    }
}

#[test]
fn ping_with_much_to_say() {
    need!("ping");
    not_slirp!("answers no echo longer than a frame");
    let (_bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        for size in [0, 1000, 1472, 1473, 4000] {
            let to = family.remote();
            let said = guest.ns.cmd(ping(family)).args(&format!("-s {size} {to}")).ok();
            assert!(said.contains("2 received"), "{to}, {size} bytes: {said}");
        }
    }
}

#[test]
fn ping_what_is_not_reachable() {
    need!("ping");
    not_slirp!("does not bring the errors of ping sockets back");
    let (_bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let done = guest.ns.cmd(ping(family)).arg(family.unreachable().to_string()).run();
        assert!(!done.success(), "{done:?}");
        assert!(done.stdout.contains("nreachable") || done.stdout.contains("No route"), "{done:?}");
    }
}

/// The TTL of an echo request ends at the router, and its error comes back.
#[test]
fn ping_that_does_not_live_long_enough() {
    need!("ping");
    not_slirp!("does not carry the TTL");
    let (_bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let done = guest.ns.cmd(ping(family)).args(&format!("-t 1 {}", family.far())).run();
        assert!(!done.success(), "{done:?}");
        let said = done.stdout.to_lowercase();
        assert!(said.contains("time to live exceeded") || said.contains("hop limit"), "{done:?}");
    }
}

/// A host that grants no ping sockets: the gateway still answers for itself.
#[test]
fn ping_without_ping_sockets() {
    need!("ping");
    let bed = Bed::new();
    bed.host.sysctl("net/ipv4/ping_group_range", "1 0");
    let guest = bed.guest();
    let _proc = bed.attach(&guest, &With::defaults());
    for family in Family::BOTH {
        let said = guest.ns.cmd(ping(family)).arg(family.gateway().to_string()).ok();
        assert!(said.contains("2 received"), "{said}");
        let done = guest.ns.cmd(ping(family)).args(&format!("-W 1 {}", family.remote())).run();
        assert!(!done.success(), "{done:?}");
    }
}

#[test]
fn traceroute_names_the_router() {
    need!("traceroute");
    not_slirp!("does not carry the TTL");
    let (_bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        for probe in ["-U", "-I"] {
            let line = format!("traceroute -n {probe} -q 1 -w 5 -m 5 {}", family.far());
            let said = guest.ns.cmd(&line).ok();
            let names =
                |ip: std::net::IpAddr| said.lines().skip(1).any(|l| l.contains(&format!(" {ip} ")));
            assert!(names(family.remote()), "{family:?} {probe}: the router is missing: {said}");
            assert!(names(family.far()), "{family:?} {probe}: the end is missing: {said}");
        }
    }
}
