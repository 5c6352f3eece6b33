//! What the guest calls its host and its resolver, and the errors it is told.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::harness::cmd::Proc;
use crate::harness::ns::Ns;
use crate::harness::stream::accept;
use crate::harness::{Bed, DNS4, Family, GATEWAY4, HOST4, HOST6, USER, eventually};
use crate::program::{Program, Up, both, guest};

both! {
    gateway_is_the_hosts_loopback,
    every_address_of_the_prefix_is_the_host,
    broadcast_is_the_hosts_loopback,
    disable_host_loopback,
    disable_host_loopback_ipv6,
    ping_the_gateway["ping"],
    resolver["dig", "dnsmasq"],
    resolver_file_changes["dig", "dnsmasq"],
    resolver_on_loopback["dig", "dnsmasq"],
    resolver_of_a_host_without,
    other_ports_of_the_resolver,
    disable_dns,
    connection_refused,
    host_unreachable,
    network_unreachable,
    outbound_addr,
    outbound_interface,
    outbound_addr6,
    outbound_interface6,
}

/// How a connection from the guest to `to` fails.
#[track_caller]
fn fails(net: &Up, to: SocketAddr) -> ErrorKind {
    net.inside().connect(to).expect_err("a connection").kind()
}

/// What the guest is told about a datagram to `to`. Without IP_RECVERR its kernel keeps "unreachable" to
/// itself.
#[track_caller]
fn datagram_fails(net: &Up, to: SocketAddr) -> ErrorKind {
    let client = net.inside().udp(Family::V4.any());
    setsockopt(&client, sockopt::Ipv4RecvErr, &true).expect("set IP_RECVERR");
    client.connect(to).expect("connect");
    client.send(b"hello").expect("send");
    client.recv(&mut [0; 10]).expect_err("nobody answers").kind()
}

fn gateway_is_the_hosts_loopback(p: Program) {
    let net = p.up("-c -6");
    net.guest.wait_v6();
    for family in Family::BOTH {
        let server = net.bed.host.listen(family.loopback());
        let port = server.local_addr().expect("an address").port();
        net.inside().connect(SocketAddr::new(family.gateway(), port)).expect("connect");
        assert_eq!(accept(&server).peer_addr().expect("an address").ip(), family.loopback());
        let server = net.bed.host.udp(family.loopback());
        let client = net.inside().udp(family.any());
        let to = SocketAddr::new(family.gateway(), server.local_addr().expect("an address").port());
        client.send_to(b"question", to).expect("send");
        let mut buf = [0; 10];
        let (_, from) = server.recv_from(&mut buf).expect("receive");
        server.send_to(b"answer", from).expect("send");
        assert_eq!(client.recv_from(&mut buf).expect("receive").1, to);
    }
}

/// fd00::/64 is the host, but for the guest's own address and the resolver's.
fn every_address_of_the_prefix_is_the_host(p: Program) {
    let net = p.up("-c -6");
    net.guest.wait_v6();
    let server = net.bed.host.listen(Family::V6.loopback());
    let port = server.local_addr().expect("an address").port();
    // Its kernel would ask who has the address.
    net.inside().ip("route add fd00::abcd/128 via fe80::2 dev tap0\n");
    let to = SocketAddr::new("fd00::abcd".parse().expect("an address"), port);
    let seen = match net.inside().connect(to) {
        Ok(_) => "the host's loopback".to_owned(),
        Err(e) => format!("{:?}", e.kind()),
    };
    p.shows("any address of fd00::/64", seen, "the host's loopback");
}

fn broadcast_is_the_hosts_loopback(p: Program) {
    let net = p.up("-c");
    let server = net.bed.host.udp(Family::V4.loopback());
    server.set_read_timeout(Some(Duration::from_secs(2))).expect("set a timeout");
    let client = net.inside().udp(Family::V4.any());
    client.set_broadcast(true).expect("set SO_BROADCAST");
    let port = server.local_addr().expect("an address").port();
    client.send_to(b"all", SocketAddr::from(([255; 4], port))).expect("send");
    let seen = if server.recv(&mut [0; 10]).is_ok() { "arrives" } else { "is lost" };
    p.shows("UDP to 255.255.255.255", seen, "arrives");
}

/// "Network is unreachable", which slirp4netns's own test looks for.
fn disable_host_loopback(p: Program) {
    let net = p.up("-c --disable-host-loopback");
    let server = net.bed.host.listen(Family::V4.loopback());
    let to = SocketAddr::new(GATEWAY4, server.local_addr().expect("an address").port());
    assert_eq!(fails(&net, to), ErrorKind::NetworkUnreachable);
    assert_eq!(datagram_fails(&net, to), ErrorKind::NetworkUnreachable);
    // Only loopback: the host by its own address is an address like any other.
    let server = net.bed.host.listen(HOST4);
    net.inside().connect(server.local_addr().expect("an address")).expect("connect");
}

fn disable_host_loopback_ipv6(p: Program) {
    let net = p.up("-c -6 --disable-host-loopback");
    net.guest.wait_v6();
    let server = net.bed.host.listen(Family::V6.loopback());
    let to = SocketAddr::new(Family::V6.gateway(), server.local_addr().expect("an address").port());
    let kind = fails(&net, to);
    p.shows("--disable-host-loopback, IPv6", format!("{kind:?}"), "NetworkUnreachable");
}

fn ping_the_gateway(p: Program) {
    for options in ["-c", "-c --disable-host-loopback"] {
        let net = p.up(options);
        let said = net.says("ping -4 -n -c 1 -W 20 10.0.2.2");
        assert!(said.contains("1 received"), "{said}");
    }
}

/// dnsmasq at these addresses, which knows `www.test`.
fn dnsmasq(ns: &Ns, addresses: &[IpAddr], ip: &str) -> Proc {
    let listen: String = addresses.iter().map(|a| format!(" --listen-address={a}")).collect();
    let mut proc = ns
        .cmd(&format!(
            "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-hosts --no-resolv \
             --log-facility=- --user=root --pid-file= --bind-interfaces \
             --host-record=www.test,{ip} {listen}"
        ))
        .start();
    proc.wait_for("started");
    proc
}

/// What the guest is told about www.test.
#[track_caller]
fn dig(net: &Up, how: &str, family: Family) -> String {
    let line = format!("dig +short +time=20 +tries=1 {how} @{} www.test A", family.dns());
    net.says(&line).trim_end().to_owned()
}

/// Port 53 is the first nameserver of the family, by UDP and TCP.
fn resolver(p: Program) {
    let bed = Bed::new();
    let _dns = dnsmasq(&bed.remote, &[Family::V4.remote(), Family::V6.remote()], "192.0.2.80");
    let net = p.attach(bed, "-c -6 --disable-host-loopback");
    net.guest.wait_v6();
    for family in Family::BOTH {
        for how in ["+notcp", "+tcp"] {
            let seen = dig(&net, how, family);
            p.shows(&format!("dig {how} {family:?}"), seen, "192.0.2.80");
        }
    }
}

fn resolver_file_changes(p: Program) {
    let bed = Bed::new();
    let _one = dnsmasq(&bed.remote, &[Family::V4.remote()], "192.0.2.1");
    let _two = dnsmasq(&bed.far, &[Family::V4.far()], "192.0.2.2");
    let net = p.attach(bed, "-c");
    assert_eq!(dig(&net, "+notcp", Family::V4), "192.0.2.1");
    net.bed.dir.write("resolv.conf", format!("nameserver {}\n", Family::V4.far()));
    // The original looks at the file at most once a second.
    eventually("the other server answers", || dig(&net, "+notcp", Family::V4) == "192.0.2.2");
}

/// The way to it stays open with --disable-host-loopback.
fn resolver_on_loopback(p: Program) {
    let bed = Bed::new();
    bed.dir.write("resolv.conf", "nameserver 127.0.0.1\n");
    let _dns = dnsmasq(&bed.host, &[Family::V4.loopback()], "192.0.2.3");
    let net = p.attach(bed, "-c --disable-host-loopback");
    assert_eq!(dig(&net, "+notcp", Family::V4), "192.0.2.3");
    assert_eq!(dig(&net, "+tcp", Family::V4), "192.0.2.3");
}

/// A file that names none means loopback, as it does to the host's own programs.
fn resolver_of_a_host_without(p: Program) {
    let bed = Bed::new();
    bed.dir.write("resolv.conf", "search test\n");
    let server = bed.host.listen_at(SocketAddr::new(Family::V4.loopback(), 53));
    let net = p.attach(bed, "-c");
    let seen = match net.inside().connect(SocketAddr::new(DNS4, 53)) {
        Ok(_) => {
            accept(&server);
            "loopback".to_owned()
        }
        Err(e) => format!("{:?}", e.kind()),
    };
    p.shows("resolver of a host without one", seen, "loopback");
}

fn other_ports_of_the_resolver(p: Program) {
    let net = p.up("-c");
    assert_eq!(fails(&net, SocketAddr::new(DNS4, 54)), ErrorKind::NetworkUnreachable);
    assert_eq!(datagram_fails(&net, SocketAddr::new(DNS4, 54)), ErrorKind::NetworkUnreachable);
}

/// The address becomes one like any other: here there is somebody at it.
fn disable_dns(p: Program) {
    let bed = Bed::new();
    bed.remote.ip("addr add 10.0.2.3/32 dev lo\n");
    let net = p.attach(bed, "-c --disable-dns");
    let server = net.bed.remote.listen_at(SocketAddr::new(DNS4, 53));
    let seen = match net.inside().connect(SocketAddr::new(DNS4, 53)) {
        Ok(_) => {
            accept(&server);
            "somebody else".to_owned()
        }
        Err(e) => format!("{:?}", e.kind()),
    };
    p.shows("10.0.2.3 beside --disable-dns", seen, "somebody else");
}

fn connection_refused(p: Program) {
    let net = p.up("-c -6");
    net.guest.wait_v6();
    for family in Family::BOTH {
        let kind = fails(&net, SocketAddr::new(family.remote(), 7777));
        assert_eq!(kind, ErrorKind::ConnectionRefused, "{family:?}");
    }
}

/// As the host's kernel says it, at once.
fn host_unreachable(p: Program) {
    let bed = Bed::new();
    bed.host.ip("route add unreachable 203.0.113.0/24\nroute add unreachable 2001:db8:2::/64\n");
    let net = p.attach(bed, "-c -6");
    net.guest.wait_v6();
    for family in Family::BOTH {
        let kind = fails(&net, SocketAddr::new(family.far(), 80));
        p.shows(&format!("unreachable, {family:?}"), format!("{kind:?}"), "HostUnreachable");
    }
}

fn network_unreachable(p: Program) {
    let bed = Bed::new();
    bed.host.ip("route del default\nroute del default via 2001:db8:1::2 dev host0\n");
    let net = p.attach(bed, "-c -6");
    net.guest.wait_v6();
    for family in Family::BOTH {
        let kind = fails(&net, SocketAddr::new(family.far(), 80));
        p.shows(&format!("no route, {family:?}"), format!("{kind:?}"), "NetworkUnreachable");
    }
}

/// A host with a second link, `up1`, that its routes do not take by themselves.
fn bed_with_two_links() -> Bed {
    let bed = Bed::new();
    for name in ["all", "default", "host0"] {
        bed.host.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0");
    }
    bed.remote.ip(&format!(
        "link add up0 type veth peer name up1 netns {}\n\
         addr add 192.0.2.2/24 dev up0\naddr add 2001:db8:9::2/64 dev up0 nodad\nlink set up0 up\n",
        bed.host.net_path()
    ));
    bed.host.ip(
        "addr add 192.0.2.1/24 dev up1\naddr add 2001:db8:9::1/64 dev up1 nodad\nlink set up1 up\n\
         route add default via 192.0.2.2 metric 4000\n\
         route add default via 2001:db8:9::2 dev up1 metric 4000\n",
    );
    bed
}

/// Who the far end sees, by TCP and UDP.
#[track_caller]
fn source(net: &Up, family: Family) -> IpAddr {
    let server = net.bed.far.listen(family.far());
    let to = server.local_addr().expect("an address");
    net.inside().connect(to).expect("connect");
    let tcp = accept(&server).peer_addr().expect("an address").ip();
    let server = net.bed.far.udp(family.far());
    let client = net.inside().udp(family.any());
    client.send_to(b"hello", server.local_addr().expect("an address")).expect("send");
    let (_, udp) = server.recv_from(&mut [0; 10]).expect("receive");
    assert_eq!(udp.ip(), tcp);
    tcp
}

fn outbound_addr(p: Program) {
    let net = p.attach(bed_with_two_links(), "-c --outbound-addr=192.0.2.1");
    assert_eq!(source(&net, Family::V4).to_string(), "192.0.2.1");
    let net = p.attach(bed_with_two_links(), "-c");
    assert_eq!(source(&net, Family::V4), HOST4);
}

fn outbound_interface(p: Program) {
    let net = p.attach(bed_with_two_links(), "-c --outbound-addr=up1");
    assert_eq!(source(&net, Family::V4).to_string(), "192.0.2.1");
}

fn outbound_addr6(p: Program) {
    let net = p.attach(bed_with_two_links(), "-c -6 --outbound-addr6=2001:db8:9::1");
    net.guest.wait_v6();
    assert_eq!(source(&net, Family::V6).to_string(), "2001:db8:9::1");
    let net = p.attach(bed_with_two_links(), "-c -6");
    net.guest.wait_v6();
    assert_eq!(source(&net, Family::V6), HOST6);
}

/// The original looks up the interface that the other option names.
fn outbound_interface6(p: Program) {
    let bed = bed_with_two_links();
    let guest = guest(&bed);
    let line = format!("-c -6 -e 99 --outbound-addr6=up1 {} tap0", guest.holder.pid());
    let done = bed.host.enter_as(USER, p.cmd(&bed.dir).args(&line)).run();
    p.shows("--outbound-addr6 by interface", format!("{:?}", done.code()), "Some(1)");
    let net = p.attach(bed, "-c -6 --outbound-addr=up1 --outbound-addr6=up1");
    net.guest.wait_v6();
    assert_eq!(source(&net, Family::V6).to_string(), "2001:db8:9::1");
}
