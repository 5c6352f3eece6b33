//! The callers of a slirp4netns with the program in its place: podman (here), RootlessKit, buildah, as
//! Debian has them, for an ordinary user. They, the user and their storage exist in a mount namespace
//! of the test only.

// Tests wait on a real clock.
#![allow(clippy::disallowed_methods)]

mod buildah;
mod containers;
mod engine;
// Shared with tests/netns, which needs all of it.
#[allow(dead_code, unused_macros, unused_imports)]
#[path = "../netns/harness/mod.rs"]
mod harness;
mod networks;
mod ports;
mod rootlesskit;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use harness::cmd::{Cmd, Proc};
use harness::ns::Ns;
use harness::{Dir, Family, stream};
use socket2::Type;

/// A name server that knows `www.test`; it ends when this is dropped.
fn name_server(ns: &Ns) -> Proc {
    let mut dns = ns
        .cmd(&format!(
            "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-hosts --no-resolv --log-facility=- \
             --user=root --pid-file= --bind-interfaces --listen-address={0} --host-record=www.test,{0}",
            Family::V4.remote()
        ))
        .start();
    dns.wait_for("started");
    dns
}

/// A web server with one file of these bytes, for as many requests as come.
fn serve(ns: &Ns, body: Vec<u8>) -> SocketAddr {
    let listener = ns.listen(Family::V4.remote());
    let at = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let _ = client.read(&mut [0; 4000]);
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(&body));
        }
    });
    at
}

fn body() -> Vec<u8> {
    (0..8_000_000_u32).map(|n| (n ^ (n >> 11)) as u8).collect()
}

fn sha256(dir: &Dir, bytes: &[u8]) -> String {
    let said = Cmd::new("sha256sum").arg(dir.write("body", bytes)).ok();
    said.split(' ').next().unwrap_or_default().to_owned()
}

/// A datagram socket at a port.
fn udp_at(ns: &Ns, at: SocketAddr) -> UdpSocket {
    let socket = ns.socket(at.ip(), Type::DGRAM, None);
    socket.bind(&at.into()).unwrap_or_else(|e| panic!("bind {at}: {e}"));
    socket.into()
}

/// A listening socket at a port of every IPv4 address.
fn listen_at(ns: &Ns, port: u16) -> TcpListener {
    ns.listen_at(SocketAddr::new(Family::V4.any(), port))
}

/// Sends a stream each way over a connection from `from` to `to`, and returns the peer that `inside`
/// sees and the one that the connection has.
#[track_caller]
fn tcp_round(inside: &TcpListener, from: &Ns, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    const LEN: u64 = 300_000;
    let ours = from.connect(to).unwrap_or_else(|e| panic!("connect to {to}: {e}"));
    let theirs = stream::accept(inside);
    // Asked for before both ends are closed.
    let address = "an address of a connection";
    let seen = (theirs.peer_addr().expect(address), ours.local_addr().expect(address));
    for (a, b) in [(&ours, &theirs), (&theirs, &ours)] {
        std::thread::scope(|scope| {
            scope.spawn(|| stream::send_all(a, to.port().into(), LEN));
            stream::expect_all(b, to.port().into(), LEN);
        });
    }
    seen
}

/// Sends datagrams from `from` to `to` and back, and returns the peer that `inside` sees and the one
/// that it is.
#[track_caller]
fn udp_round(
    inside: &UdpSocket,
    from: &Ns,
    via: IpAddr,
    to: SocketAddr,
) -> (SocketAddr, SocketAddr) {
    let ours = from.udp(via);
    let mut buf = [0; 100];
    let mut peer = None;
    for word in ["one", "two"] {
        ours.send_to(word.as_bytes(), to).expect("send");
        let (len, seen) = inside.recv_from(&mut buf).expect("a datagram");
        assert_eq!(&buf[..len], word.as_bytes());
        assert!(peer.is_none_or(|p| p == seen), "{peer:?}, then {seen}");
        peer = Some(seen);
        inside.send_to(b"answer", seen).expect("send");
        let (len, back) = ours.recv_from(&mut buf).expect("an answer");
        assert_eq!((&buf[..len], back), (&b"answer"[..], to));
    }
    (peer.expect("a peer"), ours.local_addr().expect("an address"))
}
