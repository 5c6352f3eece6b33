//! Port forwards at work: what the guest sees, what the peer sees.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use serde_json::json;

use crate::api::{add, remove, up};
use crate::harness::ns::Ns;
use crate::harness::stream::{self, accept};
use crate::harness::{FAR4, Family, GATEWAY4, HOST4};
use crate::program::{Program, Up, both};

both! {
    tcp_from_a_peer,
    tcp_from_loopback,
    tcp_bulk_both_ways,
    tcp_one_host_address,
    tcp_refused_by_the_guest,
    tcp_removed,
    tcp_connection_outlives_the_forward,
    udp_from_peers,
    udp_from_loopback,
    udp_removed,
    beside_disabled_host_loopback,
}

const GUEST4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 100));

/// Where the host's port 18080 is reached.
fn at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 18080)
}

/// Forwards port 18080 of every host address to `port` of the guest.
#[track_caller]
fn forward(net: &Up, proto: &str, port: u16) {
    let arguments = json!({"proto": proto, "host_port": 18080, "guest_port": port});
    assert_eq!(add(net, &arguments), r#"{"return":{"id":1}}"#);
}

/// A connection from `from` to the forwarded port: (the peer's end, the guest's end).
#[track_caller]
fn connected(net: &Up, from: &Ns, to: SocketAddr) -> (TcpStream, TcpStream) {
    let server = net.inside().listen(GUEST4);
    forward(net, "tcp", server.local_addr().expect("an address").port());
    let peer = from.connect(to).unwrap_or_else(|e| panic!("connect to {to}: {e}"));
    (peer, accept(&server))
}

/// The guest sees the peer's address.
fn tcp_from_a_peer(p: Program) {
    let net = up(p, "");
    let (peer, inside) = connected(&net, &net.bed.far, at(HOST4));
    let seen = inside.peer_addr().expect("an address");
    assert_eq!(seen.ip(), FAR4);
    assert_eq!(seen.port(), peer.local_addr().expect("an address").port());
}

/// The host itself is seen as the gateway.
fn tcp_from_loopback(p: Program) {
    let net = up(p, "");
    let (peer, inside) = connected(&net, &net.bed.host, at(Family::V4.loopback()));
    assert_eq!(inside.peer_addr().expect("an address").ip(), GATEWAY4);
    stream::send_all(&peer, 1, 100_000);
    stream::expect_all(&inside, 1, 100_000);
}

fn tcp_bulk_both_ways(p: Program) {
    let net = up(p, "");
    let (peer, inside) = connected(&net, &net.bed.remote, at(HOST4));
    std::thread::scope(|scope| {
        scope.spawn(|| stream::send_all(&peer, 1, 5_000_000));
        scope.spawn(|| stream::send_all(&inside, 2, 5_000_000));
        scope.spawn(|| stream::expect_all(&inside, 1, 5_000_000));
        stream::expect_all(&peer, 2, 5_000_000);
    });
}

/// A forward of one address is not at another.
fn tcp_one_host_address(p: Program) {
    let net = up(p, "");
    let server = net.inside().listen(GUEST4);
    let port = server.local_addr().expect("an address").port();
    let arguments = json!({"proto": "tcp", "host_addr": "127.0.0.1", "host_port": 18080,
        "guest_addr": "10.0.2.100", "guest_port": port});
    assert_eq!(add(&net, &arguments), r#"{"return":{"id":1}}"#);
    let refused = net.bed.host.connect(at(HOST4)).expect_err("no forward there");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    net.bed.host.connect(at(Family::V4.loopback())).expect("connect");
    accept(&server);
}

/// The peer's connection ends at once.
fn tcp_refused_by_the_guest(p: Program) {
    let net = up(p, "");
    forward(&net, "tcp", 7777);
    // The host accepts; the end may come before the peer looks, so it may be its connect's.
    let peer = net.bed.remote.connect(at(HOST4));
    let seen = match peer.and_then(|mut peer| peer.read(&mut [0; 1])) {
        Ok(0) => "the end".to_owned(),
        Ok(_) => panic!("data from nobody"),
        Err(e) => format!("{:?}", e.kind()),
    };
    p.shows("a port the guest refuses", seen, "the end");
}

fn tcp_removed(p: Program) {
    let net = up(p, "");
    let (_peer, _inside) = connected(&net, &net.bed.remote, at(HOST4));
    assert_eq!(remove(&net, 1), r#"{"return":{}}"#);
    let refused = net.bed.remote.connect(at(HOST4)).expect_err("no forward there");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // The port is free for the next.
    let arguments = json!({"proto": "tcp", "host_port": 18080, "guest_port": 80});
    assert_eq!(add(&net, &arguments), r#"{"return":{"id":2}}"#);
}

fn tcp_connection_outlives_the_forward(p: Program) {
    let net = up(p, "");
    let (mut peer, inside) = connected(&net, &net.bed.remote, at(HOST4));
    assert_eq!(remove(&net, 1), r#"{"return":{}}"#);
    peer.write_all(&[]).expect("write");
    stream::send_all(&peer, 1, 100_000);
    stream::expect_all(&inside, 1, 100_000);
    stream::send_all(&inside, 2, 100_000);
    stream::expect_all(&peer, 2, 100_000);
}

/// `peer` sends to the forwarded port and gets an answer from there; what the guest saw.
#[track_caller]
fn exchange(peer: &UdpSocket, inside: &UdpSocket, to: SocketAddr) -> SocketAddr {
    let mut buf = [0; 100];
    peer.send_to(b"question", to).expect("send");
    let (n, seen) = inside.recv_from(&mut buf).expect("receive");
    assert_eq!(&buf[..n], b"question");
    inside.send_to(b"answer", seen).expect("send");
    let (n, from) = peer.recv_from(&mut buf).expect("receive");
    assert_eq!((&buf[..n], from), (&b"answer"[..], to));
    seen
}

fn udp_from_peers(p: Program) {
    let net = up(p, "");
    let inside = net.inside().udp(GUEST4);
    forward(&net, "udp", inside.local_addr().expect("an address").port());
    for ns in [&net.bed.remote, &net.bed.far, &net.bed.remote] {
        let peer = ns.udp(Family::V4.any());
        let seen = exchange(&peer, &inside, at(HOST4));
        assert_eq!(seen.port(), peer.local_addr().expect("an address").port());
        let expected = if std::ptr::eq(ns, &net.bed.far) { FAR4 } else { Family::V4.remote() };
        assert_eq!(seen.ip(), expected);
    }
}

fn udp_from_loopback(p: Program) {
    let net = up(p, "");
    let inside = net.inside().udp(GUEST4);
    forward(&net, "udp", inside.local_addr().expect("an address").port());
    let peer = net.bed.host.udp(Family::V4.loopback());
    let seen = exchange(&peer, &inside, at(Family::V4.loopback()));
    assert_eq!(seen.ip(), GATEWAY4);
}

fn udp_removed(p: Program) {
    let net = up(p, "");
    let inside = net.inside().udp(GUEST4);
    let port = inside.local_addr().expect("an address").port();
    forward(&net, "udp", port);
    exchange(&net.bed.remote.udp(Family::V4.any()), &inside, at(HOST4));
    assert_eq!(remove(&net, 1), r#"{"return":{}}"#);
    let peer = net.bed.remote.udp(Family::V4.any());
    peer.connect(at(HOST4)).expect("connect");
    peer.send(b"nobody is here").expect("send");
    let refused = peer.recv(&mut [0; 10]).expect_err("nobody answers");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let arguments = json!({"proto": "udp", "host_port": 18080, "guest_port": port});
    assert_eq!(add(&net, &arguments), r#"{"return":{"id":2}}"#);
    exchange(&net.bed.remote.udp(Family::V4.any()), &inside, at(HOST4));
}

/// What came in by itself may be answered, loopback or not.
fn beside_disabled_host_loopback(p: Program) {
    let net = up(p, "--disable-host-loopback");
    let (peer, inside) = connected(&net, &net.bed.host, at(Family::V4.loopback()));
    stream::send_all(&inside, 1, 1000);
    stream::expect_all(&peer, 1, 1000);
    assert_eq!(remove(&net, 1), r#"{"return":{}}"#);
    let inside = net.inside().udp(GUEST4);
    let port = inside.local_addr().expect("an address").port();
    let arguments = json!({"proto": "udp", "host_port": 18080, "guest_port": port});
    assert_eq!(add(&net, &arguments), r#"{"return":{"id":2}}"#);
    let peer = net.bed.host.udp(Family::V4.loopback());
    let mut buf = [0; 100];
    peer.send_to(b"question", at(Family::V4.loopback())).expect("send");
    let (_, seen) = inside.recv_from(&mut buf).expect("receive");
    assert_eq!(seen.ip(), GATEWAY4);
    inside.send_to(b"answer", seen).expect("send");
    peer.set_read_timeout(Some(std::time::Duration::from_secs(2))).expect("set a timeout");
    let seen = if peer.recv(&mut buf).is_ok() { "is answered" } else { "is not answered" };
    p.shows("UDP from loopback beside --disable-host-loopback", seen, "is answered");
}
