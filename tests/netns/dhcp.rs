//! DHCP and router advertisements: a guest that configures itself.

use crate::harness::{Bed, Family, With, eventually, need};

/// What udhcpc was told, as `key=value` lines.
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] && \
    printf 'ip=%s mask=%s router=%s dns=%s lease=%s server=%s\\n' \
    $ip $mask $router $dns $lease $serverid\nexit 0\n";

#[test]
fn udhcpc_gets_a_lease() {
    need!("udhcpc");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    guest.ns.ip("addr flush dev tap0\nlink set tap0 up\n");
    let script = bed.dir.write("told", SCRIPT);
    let udhcpc = "udhcpc -f -n -q -t 5 -T 2 -i tap0 -s";
    let told = guest.ns.cmd(udhcpc).arg(script).ok();
    assert!(told.contains("ip=10.0.2.15 mask="), "{told}");
    assert!(told.contains(" router=10.0.2.2 dns=10.0.2.3 "), "{told}");
    assert!(told.contains(" server=10.0.2.2"), "{told}");
    // And the address works.
    guest.ns.ip("addr add 10.0.2.15/24 dev tap0\nroute replace default via 10.0.2.2\n");
    let listener = bed.remote.listen(Family::V4.remote());
    guest.ns.connect(listener.local_addr().expect("an address")).expect("connect");
}

/// Sixteen machines behind one bridge get sixteen addresses; one that asks again gets its own.
#[test]
fn a_lease_is_kept() {
    need!("udhcpc");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    let script = bed.dir.write("told", SCRIPT);
    let ask = |mac: &str| {
        guest
            .ns
            .ip(&format!("link set tap0 down\nlink set tap0 address {mac}\nlink set tap0 up\n"));
        let told = guest.ns.cmd("udhcpc -f -n -q -t 5 -T 2 -i tap0 -s").arg(&script).ok();
        let told = told.lines().find(|l| l.starts_with("ip=")).unwrap_or_default().to_owned();
        told.split(' ').next().unwrap_or_default().to_owned()
    };
    let first = ask("52:54:00:00:00:01");
    let second = ask("52:54:00:00:00:02");
    assert_ne!(first, second);
    assert_eq!(ask("52:54:00:00:00:01"), first);
}

/// SLAAC: a guest without a configured address makes one from the advertisement, and a default route.
#[test]
fn an_address_by_router_advertisement() {
    need!();
    let (_bed, guest, _proc) = Bed::up(&With::defaults());
    guest.ns.sysctl("net/ipv6/conf/tap0/accept_ra", "2");
    guest.ns.sysctl("net/ipv6/conf/tap0/autoconf", "1");
    guest.ns.cmd("ip -6 addr flush dev tap0").ok();
    guest.ns.ip("link set tap0 down\nlink set tap0 up\n");
    eventually("an address and a route from an advertisement", || {
        let addr = guest.ns.cmd("ip -6 -o addr show dev tap0 scope global dynamic").ok();
        let route = guest.ns.cmd("ip -6 route show default dev tap0").ok();
        addr.contains("fd00::")
            && addr.contains("/64")
            && route.contains("via fe80::2")
            && route.contains("proto ra")
    });
}

/// What a client of the distribution reads in the advertisement it asks for.
#[test]
fn an_advertisement_names_the_resolver() {
    need!("rdisc6");
    let (_bed, guest, _proc) = Bed::up(&With::defaults());
    let text = guest.ns.cmd("rdisc6 -1 -w 5000 tap0").ok();
    for part in ["fd00::3", "fd00::/64", "1500 bytes", "from fe80::2", "52:55:0A:00:02:02"] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
}
