//! Who has which address: by `--cidr`, by DHCP, by router advertisements, by ARP.

use std::net::SocketAddr;

use crate::harness::{Family, eventually};
use crate::program::{Program, both};

both! {
    offsets_in_the_network,
    gateway_mac["ping"],
    dhcp["udhcpc"],
    dhcp_in_another_network["udhcpc"],
    sixteen_leases["udhcpc"],
    advertisement["rdisc6"],
    ipv6_is_not_moved_by_cidr,
}

/// Gateway +2, resolver +3, guest +100; the prefix may be 1 to 25 long.
fn offsets_in_the_network(p: Program) {
    for (cidr, guest, gateway) in [
        ("10.0.2.0/24", "10.0.2.100/24 brd 10.0.2.255", "10.0.2.2"),
        ("10.0.135.128/25", "10.0.135.228/25 brd 10.0.135.255", "10.0.135.130"),
        ("172.16.0.0/12", "172.16.0.100/12 brd 172.31.255.255", "172.16.0.2"),
        ("128.0.0.0/1", "128.0.0.100/1 brd 255.255.255.255", "128.0.0.2"),
    ] {
        let net = p.up(&format!("-c --cidr={cidr}"));
        let addr = net.says("ip -o -4 addr show dev tap0");
        assert!(addr.contains(&format!("inet {guest} ")), "{cidr}: {addr}");
        let route = net.says("ip route show default");
        assert!(route.starts_with(&format!("default via {gateway} dev tap0")), "{cidr}: {route}");
        // The gateway is the host's loopback here too.
        let server = net.bed.host.listen(Family::V4.loopback());
        let port = server.local_addr().expect("an address").port();
        let to: SocketAddr = format!("{gateway}:{port}").parse().expect("an address");
        net.inside().connect(to).unwrap_or_else(|e| panic!("{cidr}: {e}"));
    }
}

/// 52:55 and the IPv4 address of the gateway.
fn gateway_mac(p: Program) {
    for (cidr, gateway, mac) in [
        ("10.0.2.0/24", "10.0.2.2", "52:55:0a:00:02:02"),
        ("10.0.135.128/25", "10.0.135.130", "52:55:0a:00:87:82"),
    ] {
        let net = p.up(&format!("-c --cidr={cidr}"));
        net.says(&format!("ping -4 -n -c 1 -W 20 {gateway}"));
        let shown = net.says(&format!("ip neigh show to {gateway} dev tap0"));
        assert!(shown.contains(&format!("lladdr {mac}")), "{shown}");
    }
}

/// What udhcpc was told.
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] && \
    printf '%s mask=%s router=%s dns=%s lease=%s server=%s\\n' \
    $ip $mask $router $dns $lease $serverid\nexit 0\n";

/// What udhcpc is told in the guest.
#[track_caller]
fn ask_dhcp(net: &crate::program::Up) -> String {
    let script = net.bed.dir.write("told", SCRIPT);
    let cmd = net.inside().cmd("udhcpc -f -n -q -t 5 -T 2 -i tap0 -s").arg(script);
    let told = cmd.ok();
    told.lines().find(|l| l.contains("mask=")).unwrap_or("nothing").to_owned()
}

fn dhcp(p: Program) {
    let net = p.up("-c");
    net.inside().ip("addr flush dev tap0\nlink set tap0 up\n");
    let expected = "10.0.2.15 mask=24 router=10.0.2.2 dns=10.0.2.3 lease=86400 server=10.0.2.2";
    p.shows("DHCP", ask_dhcp(&net), expected);
}

fn dhcp_in_another_network(p: Program) {
    let net = p.up("-c --cidr=10.0.135.128/25");
    net.inside().ip("addr flush dev tap0\nlink set tap0 up\n");
    let expected = "10.0.135.143 mask=25 router=10.0.135.130 dns=10.0.135.131 lease=86400 \
                    server=10.0.135.130";
    p.shows("DHCP in another network", ask_dhcp(&net), expected);
}

/// +15 to +30.
fn sixteen_leases(p: Program) {
    let net = p.up("-c");
    let script = net.bed.dir.write("told", SCRIPT);
    let mut seen = Vec::new();
    for n in 0..16 {
        net.inside().ip(&format!(
            "link set tap0 down\nlink set tap0 address 52:54:00:00:00:{n:02x}\nlink set tap0 up\n"
        ));
        let told = net.inside().cmd("udhcpc -f -n -q -t 5 -T 2 -i tap0 -s").arg(&script).ok();
        let line = told.lines().find(|l| l.contains("mask=")).unwrap_or("nothing");
        seen.push(line.split(' ').next().expect("a word").to_owned());
    }
    let all: Vec<String> = (15..=30).map(|n| format!("10.0.2.{n}")).collect();
    seen.sort();
    assert_eq!(seen, all);
}

/// What rdisc6 reads in the advertisement.
fn advertisement(p: Program) {
    let net = p.up("-c -6");
    net.guest.wait_v6();
    let text = net.says("rdisc6 -1 -w 20000 tap0");
    for part in ["fd00::/64", "from fe80::2"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let field = |name: &str| {
        let line = text.lines().find(|l| l.trim_start().starts_with(name)).unwrap_or("none");
        line.rsplit(" : ")
            .next()
            .expect("a word")
            .split('(')
            .next()
            .expect("a word")
            .trim()
            .to_owned()
    };
    // rdisc6 writes the numbers in columns.
    let number = |name: &str| field(name).split_ascii_whitespace().next().unwrap_or("").to_owned();
    assert_eq!(number("Hop limit"), "64");
    assert_eq!(number("Router lifetime"), "1800");
    assert_eq!(number("Valid time"), "86400");
    assert_eq!(number("Pref. time"), "14400");
    let router = text.lines().find_map(|l| l.trim().strip_prefix("Source link-layer address: "));
    let router = router.unwrap_or("none");
    p.shows("MAC of the router in the advertisement", router, "52:56:00:00:00:02");
    let resolver = if text.contains("Recursive DNS server") {
        field("Recursive DNS server")
    } else {
        "none".into()
    };
    p.shows("resolver in the advertisement", resolver, "fd00::3");
}

fn ipv6_is_not_moved_by_cidr(p: Program) {
    let net = p.up("-c -6 --cidr=10.0.135.128/25");
    eventually("an address", || {
        net.says("ip -o -6 addr show dev tap0 scope global").contains("fd00::")
    });
    let route = net.says("ip -6 route show default");
    assert!(route.contains("via fe80::2"), "{route}");
}
