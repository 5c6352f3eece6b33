//! The resolver at .3, asked with dig; dnsmasq stands behind it.

use std::time::Duration;

use crate::harness::cmd::Proc;
use crate::harness::ns::Ns;
use crate::harness::{Bed, Family, With, eventually, need, not_slirp};

/// dnsmasq in `ns`, at the addresses given, which knows `name` as `ip`.
fn dnsmasq(ns: &Ns, addresses: &[std::net::IpAddr], records: &str) -> Proc {
    let listen: String = addresses.iter().map(|a| format!(" --listen-address={a}")).collect();
    let mut proc = ns
        .cmd(&format!(
            "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-hosts --no-resolv \
             --log-facility=- --user=root --pid-file= --bind-interfaces --edns-packet-max=4096 \
             {listen} {records}"
        ))
        .start();
    proc.wait_for("started");
    proc
}

/// Two thousand bytes of answer: more than fits a UDP answer without EDNS.
fn long_text() -> String {
    (0..10).map(|n| format!(" --txt-record=long.test,{}", format!("{n}").repeat(200))).collect()
}

fn bed_with_dns() -> (Bed, Proc) {
    let bed = Bed::new();
    let records = format!("--host-record=www.test,192.0.2.80,2001:db8:80::80 {}", long_text());
    let dns = dnsmasq(&bed.remote, &[Family::V4.remote(), Family::V6.remote()], &records);
    (bed, dns)
}

#[test]
fn names_over_udp_and_tcp() {
    need!("dig", "dnsmasq");
    let (bed, _dns) = bed_with_dns();
    let guest = bed.guest();
    let _proc = bed.attach(&guest, &With::defaults());
    for family in Family::BOTH {
        for transport in ["+notcp", "+tcp"] {
            let dig = format!("dig +short +time=20 +tries=1 {transport} @{}", family.dns());
            let ask = |what: &str| guest.ns.cmd(&dig).args(what).ok();
            assert_eq!(ask("www.test A"), "192.0.2.80\n", "{family:?} {transport}");
            assert_eq!(ask("www.test AAAA"), "2001:db8:80::80\n", "{family:?} {transport}");
            let none = guest.ns.cmd(&dig.replace("+short", "")).args("none.test").ok();
            assert!(none.contains("REFUSED") || none.contains("NXDOMAIN"), "{none}");
        }
    }
}

/// A long answer comes whole: by EDNS in one datagram of fragments, or cut short and asked again
/// over TCP, as dig does.
#[test]
fn a_long_answer() {
    need!("dig", "dnsmasq");
    let (bed, _dns) = bed_with_dns();
    let guest = bed.guest();
    let _proc = bed.attach(&guest, &With::defaults());
    for how in ["+noedns", "+bufsize=4096", "+tcp"] {
        let line =
            format!("dig +short +time=20 +tries=1 {how} @{} long.test TXT", Family::V4.dns());
        let said = guest.ns.cmd(&line).ok();
        assert_eq!(said.lines().filter(|l| l.len() == 202).count(), 10, "{how}: {said}");
    }
}

/// The second server is asked when the first says nothing.
#[test]
fn the_first_server_is_silent() {
    need!("dig", "dnsmasq");
    not_slirp!("knows only the first server");
    let (bed, _dns) = bed_with_dns();
    let servers =
        format!("nameserver {}\nnameserver {}\n", Family::V4.silent(), Family::V4.remote());
    bed.dir.write("resolv.conf", servers);
    let guest = bed.guest();
    let _proc = bed.attach(&guest, &With::defaults());
    let line = format!("dig +short +time=20 +tries=1 @{} www.test A", Family::V4.dns());
    assert_eq!(guest.ns.cmd(&line).ok(), "192.0.2.80\n");
}

/// The first server's port is closed: the ICMP error is enough to ask the next at once, over UDP and
/// over TCP.
#[test]
fn the_first_server_is_down() {
    need!("dig", "dnsmasq");
    not_slirp!("knows only the first server");
    let (bed, _dns) = bed_with_dns();
    bed.dir.write(
        "resolv.conf",
        format!("nameserver {}\nnameserver {}\n", Family::V4.far(), Family::V4.remote()),
    );
    let guest = bed.guest();
    let _proc = bed.attach(&guest, &With::defaults());
    for transport in ["+notcp", "+tcp"] {
        let line =
            format!("dig +short +time=20 +tries=1 {transport} @{} www.test A", Family::V4.dns());
        assert_eq!(guest.ns.cmd(&line).ok(), "192.0.2.80\n", "{transport}");
    }
}

#[test]
fn resolv_conf_changes_are_seen() {
    need!("dig", "dnsmasq");
    let (bed, first) = bed_with_dns();
    let _second = dnsmasq(&bed.far, &[Family::V4.far()], "--host-record=www.test,192.0.2.81");
    let guest = bed.guest();
    let _proc = bed.attach(&guest, &With::defaults());
    let line = format!("dig +short +time=5 +tries=1 @{} www.test A", Family::V4.dns());
    assert_eq!(guest.ns.cmd(&line).ok(), "192.0.2.80\n");
    drop(first);
    bed.dir.write("resolv.conf", format!("nameserver {}\n", Family::V4.far()));
    eventually("the new server is asked", || {
        guest.ns.cmd(&line).patience(Duration::from_secs(30)).run().stdout == "192.0.2.81\n"
    });
}

/// A resolver on the host's loopback (systemd-resolved's place) is reached through .3, and only there.
#[test]
fn a_resolver_on_the_hosts_loopback() {
    need!("dig", "dnsmasq");
    let bed = Bed::new();
    let _dns = dnsmasq(
        &bed.host,
        &["127.0.0.53".parse().expect("an address")],
        "--host-record=a.test,192.0.2.1",
    );
    bed.dir.write("resolv.conf", "# systemd-resolved\nnameserver 127.0.0.53\noptions edns0\n");
    let guest = bed.guest();
    let _proc = bed.attach(&guest, &With::defaults());
    let ask = |at: std::net::IpAddr| {
        guest.ns.cmd(&format!("dig +short +time=2 +tries=1 @{at} a.test A")).run().stdout
    };
    assert_eq!(ask(Family::V4.dns()), "192.0.2.1\n");
    assert_ne!(ask(Family::V4.gateway()), "192.0.2.1\n");
}

#[test]
fn dns_can_be_off() {
    need!("dig", "dnsmasq");
    let (bed, _dns) = bed_with_dns();
    let guest = bed.guest();
    let _proc = bed.attach(&guest, &With::defaults().no_dns());
    let line = format!("dig +time=2 +tries=1 @{} www.test A", Family::V4.dns());
    let done = guest.ns.cmd(&line).run();
    assert!(!done.success() && !done.stdout.contains("192.0.2.80"), "{done:?}");
}
