//! What comes from outside by a forwarded port.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use crate::harness::stream::{self, expect_all, send_all};
use crate::harness::{Bed, Family, Guest, With, need, not_slirp};

/// The guest listens, somebody outside connects: both ends.
fn accept(
    guest: &Guest,
    family: Family,
    port: u16,
    connect: impl FnOnce() -> TcpStream,
) -> (TcpStream, TcpStream) {
    let listener = guest.ns.listen_at(SocketAddr::new(guest.addr(family), port));
    let outside = connect();
    (stream::accept(&listener), outside)
}

/// Some data each way at a time, and both ends.
fn talk(inside: &TcpStream, outside: &TcpStream) {
    const LEN: u64 = 20_000_000;
    std::thread::scope(|scope| {
        scope.spawn(|| send_all(inside, 1, LEN));
        scope.spawn(|| send_all(outside, 2, LEN));
        scope.spawn(|| expect_all(outside, 1, LEN));
        expect_all(inside, 2, LEN);
    });
}

#[test]
fn connections_come_in() {
    need!();
    not_slirp!("has no such option");
    let with = With::defaults().more("-p 8080:80 -p [::]:8080:80");
    let (bed, guest, _proc) = Bed::up(&with);
    for family in Family::BOTH {
        let to = SocketAddr::new(family.host(), 8080);
        let remote = || bed.remote.connect(to).expect("connect from outside");
        let (inside, outside) = accept(&guest, family, 80, remote);
        // The guest sees who it is.
        let peer = outside.local_addr().expect("an address");
        assert_eq!(inside.peer_addr().expect("an address"), peer);
        assert_eq!(peer.ip(), family.remote());
        talk(&inside, &outside);
        let own = SocketAddr::new(family.loopback(), 8080);
        let loopback = || bed.host.connect(own).expect("connect from the host");
        let (inside, outside) = accept(&guest, family, 80, loopback);
        assert_eq!(inside.peer_addr().expect("an address").ip(), family.gateway());
        talk(&inside, &outside);
    }
}

/// Nobody listens in the guest: the peer is reset, with no wait.
#[test]
fn what_the_guest_refuses_is_reset() {
    need!();
    not_slirp!("has no such option");
    let (bed, _guest, _proc) = Bed::up(&With::defaults().more("-p 8080:80 -p [::]:8080:80"));
    for family in Family::BOTH {
        // It may come before the connect has returned.
        let read = bed
            .remote
            .connect(SocketAddr::new(family.host(), 8080))
            .and_then(|outside| (&outside).read(&mut [0; 1]));
        match read {
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Each port of a range leads to its own in the guest, whichever worker has it.
#[test]
fn a_range_of_ports() {
    need!();
    not_slirp!("has no such option");
    let (bed, guest, _proc) = Bed::up(&With::defaults().more("--workers 2 -p 8000-8009:9000"));
    for nth in 0..10 {
        let to = SocketAddr::new(Family::V4.host(), 8000 + nth);
        let remote = || bed.remote.connect(to).expect("connect");
        let (inside, outside) = accept(&guest, Family::V4, 9000 + nth, remote);
        send_all(&outside, u64::from(nth), 1000);
        expect_all(&inside, u64::from(nth), 1000);
    }
}

/// An interface, an address of the host and one of the guest: nothing else is listened on.
#[test]
fn only_where_it_was_asked_for() {
    need!();
    not_slirp!("has no such option");
    let more = "-p %host0:8080:80 -p 127.0.0.1:8081:10.0.2.55:81";
    let (bed, guest, _proc) = Bed::up(&With::defaults().more(more));
    guest.ns.ip("addr add 10.0.2.55/24 dev tap0\n");
    let host = Family::V4.host();
    let refused = |ip: IpAddr, port| {
        let e = bed.host.connect(SocketAddr::new(ip, port)).expect_err("refused");
        assert_eq!(e.kind(), ErrorKind::ConnectionRefused);
    };
    refused(Family::V4.loopback(), 8080);
    refused(host, 8081);
    let remote = || bed.remote.connect(SocketAddr::new(host, 8080)).expect("connect");
    let (inside, outside) = accept(&guest, Family::V4, 80, remote);
    talk(&inside, &outside);
    let listener = guest.ns.listen_at("10.0.2.55:81".parse().expect("an address"));
    let outside = bed.host.connect(SocketAddr::new(Family::V4.loopback(), 8081)).expect("connect");
    let inside = stream::accept(&listener);
    talk(&inside, &outside);
}

/// A forward ends while its connection flows: that goes on, and the port is free at once.
#[test]
fn removed_while_traffic_flows() {
    need!();
    not_slirp!("has no such client");
    let (bed, guest, _proc) = Bed::with_api("--workers 2");
    let port = |args: &str| bed.port(args).ok();
    let to = SocketAddr::new(Family::V4.host(), 8080);
    let mut open = Vec::new();
    for id in 1..=4u64 {
        assert_eq!(port("add 8080:80"), format!("{id}\n"));
        let remote = || bed.remote.connect(to).expect("connect");
        open.push(accept(&guest, Family::V4, 80, remote));
        port(&format!("remove {id}"));
        let e = bed.remote.connect(to).expect_err("refused");
        assert_eq!(e.kind(), ErrorKind::ConnectionRefused);
        drop(bed.host.listen_at(to));
    }
    for (inside, outside) in &open {
        talk(inside, outside);
    }
}

/// Sends, and expects it at the other side; who it came from there.
#[track_caller]
fn passes(from: &UdpSocket, to: SocketAddr, at: &UdpSocket, text: &[u8]) -> SocketAddr {
    from.send_to(text, to).expect("send a datagram");
    let mut bytes = [0; 2000];
    let (n, sender) = at.recv_from(&mut bytes).expect("receive a datagram");
    assert_eq!(&bytes[..n], text);
    sender
}

/// Datagrams come in by a forwarded port, from whom they are from, and answers leave by it.
#[test]
fn datagrams_come_in() {
    need!();
    not_slirp!("has no such option");
    let more = "--workers 2 -p 5353-5354:53/udp -p [::]:5353-5354:53/udp";
    let (bed, guest, _proc) = Bed::up(&With::defaults().more(more));
    for family in Family::BOTH {
        let server = guest.ns.udp_at(SocketAddr::new(guest.addr(family), 53));
        let second = guest.ns.udp_at(SocketAddr::new(guest.addr(family), 54));
        let outside = bed.remote.udp(family.remote());
        let peer = outside.local_addr().expect("an address");
        let to = SocketAddr::new(family.host(), 5353);
        let seen = passes(&outside, to, &server, b"a question");
        assert_eq!(seen, peer);
        assert_eq!(passes(&server, seen, &outside, b"an answer"), to);
        let to = SocketAddr::new(family.host(), 5354);
        assert_eq!(passes(&outside, to, &second, b"another"), peer);
        // The host itself, by its loopback.
        let own = bed.host.udp(family.loopback());
        let to = SocketAddr::new(family.loopback(), 5353);
        let seen = passes(&own, to, &server, b"from the host");
        assert_eq!(seen.ip(), family.gateway());
        assert_eq!(passes(&server, seen, &own, b"to the host"), to);
    }
}

/// A forward of datagrams that is removed lets nothing in, and its port is free at once.
#[test]
fn datagrams_until_it_is_removed() {
    need!();
    not_slirp!("has no such client");
    let (bed, guest, _proc) = Bed::with_api("--workers 2");
    let port = |args: &str| bed.port(args).ok();
    let server = guest.ns.udp_at(SocketAddr::new(guest.addr(Family::V4), 53));
    let outside = bed.remote.udp(Family::V4.remote());
    let to = SocketAddr::new(Family::V4.host(), 5353);
    for id in 1..=3 {
        assert_eq!(port("add 5353:53/udp"), format!("{id}\n"));
        let seen = passes(&outside, to, &server, b"in");
        assert_eq!(passes(&server, seen, &outside, b"out"), to);
        port(&format!("remove {id}"));
        let instead = bed.host.udp_at(to);
        passes(&outside, to, &instead, b"not for the guest");
    }
}
