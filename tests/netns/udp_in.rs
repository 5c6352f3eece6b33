//! Datagrams that come from outside by forwarded ports: who the guest sees, which way its answers go, and what becomes
//! of peers nobody remembers.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

use nix::sys::socket::{self, sockopt};
use socket2::SockRef;

use crate::harness::cmd::Proc;
use crate::harness::dgram::{addr, receive, send};
use crate::harness::ns::Ns;
use crate::harness::{Bed, Family, GATEWAY4, Guest, HOST4, HOST6, REMOTE4, With, need, not_slirp};

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// A connected socket: it hears from `to` alone.
#[track_caller]
fn connected(ns: &Ns, from: SocketAddr, to: SocketAddr) -> UdpSocket {
    let socket = ns.udp_at(from);
    socket.connect(to).unwrap_or_else(|e| panic!("connect to {to}: {e}"));
    socket
}

/// A server in the guest, where the host's port 5000 leads, and a peer of that port.
#[track_caller]
fn ends(bed: &Bed, guest: &Guest, family: Family) -> (UdpSocket, UdpSocket) {
    let server = guest.ns.udp_at(at(guest.addr(family), 53));
    (server, connected(&bed.remote, at(family.remote(), 0), at(family.host(), 5000)))
}

/// A question to the guest and its answer; who the guest has seen.
#[track_caller]
fn ask(peer: &UdpSocket, server: &UdpSocket, text: &[u8]) -> SocketAddr {
    assert_eq!(peer.send(text).expect("send"), text.len());
    let (got, seen) = receive(server);
    assert!(got == text, "{} bytes came of {}", got.len(), text.len());
    send(server, &got, seen);
    let mut buf = vec![0; 70_000];
    let len = peer.recv(&mut buf).unwrap_or_else(|e| panic!("no answer: {e}"));
    assert!(buf[..len] == *text, "another answer");
    seen
}

/// A guest with ports, and a way to have more.
fn up(ports: &str) -> (Bed, Guest, Proc) {
    Bed::up(&With::defaults().more(&format!("--workers 2 {ports}")))
}

/// Every size there is, in pieces where they do not fit, without a word of the guest before: it is asked where it is.
#[test]
fn every_size_comes_in() {
    need!();
    not_slirp!("has no such option");
    let (bed, guest, _proc) = up("-p 5000:53/udp -p [::]:5000:53/udp");
    for family in Family::BOTH {
        let (server, peer) = ends(&bed, &guest, family);
        for len in [1, 0, 1452, 1473, 9000, 65507] {
            assert_eq!(ask(&peer, &server, &vec![len as u8; len]), addr(&peer), "{len}");
        }
    }
}

/// Peers on the host's loopback are the gateway to the guest. Each has a name of its own, and is answered though
/// the guest may not speak to the host's loopback itself.
#[test]
fn loopback_peers_with_one_port() {
    need!();
    not_slirp!("mixes them up");
    let (bed, guest, _proc) = up("-p 127.0.0.1:5000:53/udp");
    let server = guest.ns.udp_at(at(guest.addr(Family::V4), 53));
    let to = at(Ipv4Addr::LOCALHOST.into(), 5000);
    let peers: Vec<_> = (1..=20)
        .map(|n| connected(&bed.host, at(Ipv4Addr::new(127, 0, 0, n).into(), 4000), to))
        .collect();
    for _ in 0..3 {
        let mut seen = HashSet::new();
        for (n, peer) in peers.iter().enumerate() {
            peer.send(&[n as u8]).expect("send");
            let (got, from) = receive(&server);
            assert_eq!((got, from.ip()), (vec![n as u8], GATEWAY4));
            seen.insert(from);
        }
        assert_eq!(seen.len(), peers.len());
        // Answered in another order.
        for from in seen {
            send(&server, from.to_string().as_bytes(), from);
        }
        let mut answers = HashSet::new();
        for peer in &peers {
            let (answer, from) = receive(peer);
            assert_eq!(from, to);
            answers.insert(answer);
        }
        assert_eq!(answers.len(), peers.len());
    }
    // What did not come in by itself stays out of reach: a service of the host beside it.
    let service = bed.host.udp_at(at(Ipv4Addr::LOCALHOST.into(), 4001));
    send(&server, b"let me in", at(GATEWAY4, 4001));
    ask(&peers[0], &server, b"meanwhile");
    service.set_nonblocking(true).expect("set O_NONBLOCK");
    let nothing = service.recv(&mut [0; 10]).expect_err("nothing");
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
}

/// One peer, two ports that lead to one endpoint: each answer leaves by the port that was asked.
#[test]
fn two_ports_to_one_endpoint() {
    need!();
    not_slirp!("has no such option");
    let (bed, guest, _proc) = up("-p 5000:53/udp -p 5001:53/udp -p [::]:5000-5001:53/udp");
    let server = guest.ns.udp_at(at(guest.addr(Family::V4), 53));
    let peer = bed.remote.udp(REMOTE4);
    let seen: Vec<_> = [5000, 5001]
        .iter()
        .map(|&port| {
            send(&peer, &[port as u8], at(HOST4, port));
            let (got, seen) = receive(&server);
            assert_eq!(got, [port as u8]);
            seen
        })
        .collect();
    assert_eq!(seen[0], addr(&peer));
    assert_ne!(seen[0], seen[1]);
    for (n, port) in [(1, 5001), (0, 5000)] {
        send(&server, &[n as u8], seen[n]);
        assert_eq!(receive(&peer), (vec![n as u8], at(HOST4, port)));
    }
}

/// What the guest sends to somebody else from the endpoint leaves from the forwarded port; where that cannot reach the
/// world, from another, and the answer comes back all the same.
#[test]
fn the_guest_speaks_first() {
    need!();
    not_slirp!("has no such option");
    let (bed, guest, _proc) = up("-p 5000:53/udp -p 127.0.0.1:5001:54/udp -p [::]:5000:53/udp");
    for family in Family::BOTH {
        let third = bed.far.udp(family.far());
        // By any queue of the TAP.
        let server = guest.ns.udp_at(at(guest.addr(family), 53));
        send(&server, b"who am I?", addr(&third));
        let (_, from) = receive(&third);
        assert_eq!(from, at(family.host(), 5000), "{family:?}");
        send(&third, b"you", from);
        assert_eq!(receive(&server), (b"you".to_vec(), addr(&third)));
    }
    let third = bed.far.udp(Family::V4.far());
    let server = guest.ns.udp_at(at(guest.addr(Family::V4), 54));
    send(&server, b"who am I?", addr(&third));
    let (_, from) = receive(&third);
    assert_eq!(from.ip(), HOST4);
    assert_ne!(from.port(), 5001);
    send(&third, b"you", from);
    assert_eq!(receive(&server), (b"you".to_vec(), addr(&third)));
    let to = at(Ipv4Addr::LOCALHOST.into(), 5001);
    let peer = connected(&bed.host, at(Ipv4Addr::LOCALHOST.into(), 0), to);
    assert_eq!(ask(&peer, &server, b"question").ip(), GATEWAY4);
}

/// A peer that has closed its port: the guest hears of it, as on any network.
#[test]
fn a_peer_that_has_gone() {
    need!();
    not_slirp!("has no such option");
    let (bed, guest, _proc) = up("-p 5000:53/udp -p [::]:5000:53/udp");
    for family in Family::BOTH {
        let (server, peer) = ends(&bed, &guest, family);
        let seen = ask(&peer, &server, b"question");
        drop(peer);
        // Of the one peer it is connected to, a socket hears.
        server.connect(seen).expect("connect");
        server.send(b"late answer").expect("send");
        let error = server.recv(&mut [0; 10]).expect_err("nobody");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family:?}: {error}");
    }
}

/// Addresses of the host beside those of the bed: a second one of its link, and one of another interface.
fn more_addresses(bed: &Bed) {
    bed.host
        .ip("addr add 198.51.100.77/24 dev host0\naddr add 2001:db8:1::77/64 dev host0 nodad\n\
                 addr add 192.0.2.1/32 dev lo\naddr add 2001:db8:9::1/128 dev lo nodad\n");
    bed.remote
        .ip("route add 192.0.2.1 via 198.51.100.1\nroute add 2001:db8:9::1 via 2001:db8:1::1\n");
}

/// A port of all addresses: whoever has asked one of them hears from that one. The peers are connected, and hear from
/// nobody else.
#[test]
fn answers_leave_from_where_was_asked() {
    need!();
    not_slirp!("has no such option");
    let (bed, guest, _proc) = up("-p 5000:53/udp -p [::]:5000:53/udp");
    more_addresses(&bed);
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    for (family, others, loopback) in [
        (Family::V4, ["198.51.100.77", "192.0.2.1"], "127.0.0.2"),
        (Family::V6, ["2001:db8:1::77", "2001:db8:9::1"], "::1"),
    ] {
        let server = guest.ns.udp_at(at(guest.addr(family), 53));
        let asked = [family.host(), ip(others[0]), ip(others[1])];
        let peers = asked.map(|to| connected(&bed.remote, at(family.remote(), 0), at(to, 5000)));
        for _ in 0..2 {
            for peer in &peers {
                for len in [1, 1400, 20_000] {
                    assert_eq!(ask(peer, &server, &vec![7; len]), addr(peer));
                }
            }
        }
        // The host itself, by its loopback and by an address of its own.
        for to in [ip(loopback), ip(others[0])] {
            let peer = connected(&bed.host, at(family.any(), 0), at(to, 5000));
            ask(&peer, &server, b"question");
        }
        // One endpoint that asks all of them is answered from each, in whatever order.
        let peer = bed.remote.udp(family.remote());
        let seen = asked.map(|to| {
            send(&peer, to.to_string().as_bytes(), at(to, 5000));
            let (got, seen) = receive(&server);
            assert_eq!(got, to.to_string().as_bytes());
            seen
        });
        assert_eq!(seen[0], addr(&peer));
        for n in [2, 0, 1, 0, 2] {
            send(&server, &[n as u8], seen[n]);
            assert_eq!(receive(&peer), (vec![n as u8], at(asked[n], 5000)));
        }
        // Whom the guest speaks to first hears from whatever address the routes choose, and from then on from that one.
        let third = bed.far.udp(family.far());
        send(&server, b"who am I?", addr(&third));
        let (_, from) = receive(&third);
        assert_eq!(from.port(), 5000);
        for text in [&b"you"[..], b"you, again"] {
            send(&third, text, from);
            assert_eq!(receive(&server), (text.to_vec(), addr(&third)));
            send(&server, text, addr(&third));
            assert_eq!(receive(&third), (text.to_vec(), from));
        }
    }
    // What came to all of the link is answered from the address that the host has there.
    let server = guest.ns.udp_at(at(guest.addr(Family::V4), 53));
    let peer = bed.remote.udp(REMOTE4);
    peer.set_broadcast(true).expect("set SO_BROADCAST");
    send(&peer, b"anybody?", at(ip("198.51.100.255"), 5000));
    let (_, seen) = receive(&server);
    send(&server, b"yes", seen);
    assert_eq!(receive(&peer), (b"yes".to_vec(), at(HOST4, 5000)));
}

/// An address that the host had, and has no more: whoever has asked it hears nothing, and all others go on.
#[test]
fn an_address_that_goes() {
    need!();
    not_slirp!("has no such option");
    let (bed, guest, _proc) = up("-p 5000:53/udp -p [::]:5000:53/udp");
    more_addresses(&bed);
    for (family, gone) in [(Family::V4, "198.51.100.77/24"), (Family::V6, "2001:db8:1::77/64")] {
        let (ip, _) = gone.split_once('/').expect("a prefix");
        let ip = ip.parse().expect("an address");
        let server = guest.ns.udp_at(at(guest.addr(family), 53));
        let peer = connected(&bed.remote, at(family.remote(), 0), at(ip, 5000));
        let other = connected(&bed.remote, at(family.remote(), 0), at(family.host(), 5000));
        let seen = ask(&peer, &server, b"question");
        bed.host.ip(&format!("addr del {gone} dev host0\n"));
        send(&server, b"too late", seen);
        ask(&other, &server, b"meanwhile");
        peer.set_nonblocking(true).expect("set O_NONBLOCK");
        let nothing = peer.recv(&mut [0; 10]).expect_err("nothing");
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock, "{family:?}");
    }
}

/// The link-local address of an interface, with the interface's index.
fn link_local(ns: &Ns, device: &str) -> SocketAddrV6 {
    let shown = ns.cmd(&format!("ip -6 -o addr show dev {device} scope link")).ok();
    let word = shown.split_ascii_whitespace().find(|word| word.starts_with("fe80:"));
    let ip = word.and_then(|word| word.split('/').next()?.parse().ok()).expect("an address");
    let index = ns.within(|| nix::net::if_::if_nametoindex(device)).expect("an index");
    SocketAddrV6::new(ip, 0, 0, index)
}

/// Peers that are of one link only, and the host's address there.
#[test]
fn link_local_peers() {
    need!();
    not_slirp!("has no such option");
    let (bed, guest, _proc) = up("-p [::]:5000:53/udp");
    // The index of the link on one side means nothing on the other.
    let [here, there] = [link_local(&bed.remote, "remote0"), link_local(&bed.host, "host0")];
    let at_host = |ip, scope| SocketAddr::V6(SocketAddrV6::new(ip, 5000, 0, scope));
    let IpAddr::V6(global) = Family::V6.host() else { panic!() };
    for to in [at_host(*there.ip(), here.scope_id()), at_host(global, 0)] {
        let server = guest.ns.udp_at(at(guest.addr(Family::V6), 53));
        let peer = connected(&bed.remote, here.into(), to);
        for len in [1, 1400, 20_000] {
            let seen = ask(&peer, &server, &vec![3; len]);
            assert_eq!(seen, at(Family::V6.gateway(), addr(&peer).port()), "{to}");
        }
        // Its port is closed, and the guest hears of it.
        let seen = ask(&peer, &server, b"question");
        drop(peer);
        server.connect(seen).expect("connect");
        server.send(b"late answer").expect("send");
        let error = server.recv(&mut [0; 10]).expect_err("nobody");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
    }
    // The host's own link-local address, from the host.
    let server = guest.ns.udp_at(at(guest.addr(Family::V6), 53));
    let to = at_host(*there.ip(), there.scope_id());
    let peer = connected(&bed.host, there.into(), to);
    assert_eq!(ask(&peer, &server, b"question").ip(), Family::V6.gateway());
}

/// Runs come in as runs, and leave as runs.
#[test]
fn runs_stay_runs() {
    need!();
    not_slirp!("takes no runs");
    let (bed, guest, _proc) = up("-p 5000:53/udp -p [::]:5000:53/udp");
    more_addresses(&bed);
    for (family, to) in [
        (Family::V4, HOST4),
        (Family::V4, Ipv4Addr::new(198, 51, 100, 77).into()),
        (Family::V6, HOST6),
        (Family::V6, Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x77).into()),
    ] {
        let server = guest.ns.udp_at(at(guest.addr(family), 53));
        let peer = connected(&bed.remote, at(family.remote(), 0), at(to, 5000));
        let seen = ask(&peer, &server, b"question");
        for socket in [&server, &peer] {
            socket::setsockopt(socket, sockopt::UdpGroSegment, &true).expect("set UDP_GRO");
            socket::setsockopt(socket, sockopt::UdpGsoSegment, &1000).expect("set UDP_SEGMENT");
            SockRef::from(socket).set_recv_buffer_size(1 << 20).expect("set SO_RCVBUF");
        }
        let run: Vec<u8> = (0..40_500_u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
        peer.send(&run).expect("send");
        let (got, from) = receive(&server);
        assert!(got == run, "{family:?} in: {} bytes in one piece", got.len());
        assert_eq!(from, seen);
        send(&server, &run, seen);
        let (got, _) = receive(&peer);
        assert!(got == run, "{family:?} out: {} bytes in one piece", got.len());
    }
}

/// Very many peers. Those that came last are answered by name, and the others as well, since a port of all
/// addresses can speak to anybody.
#[test]
fn a_hundred_thousand_peers() {
    need!();
    not_slirp!("has a socket for each");
    let (bed, guest, proc) = up("-p 5000:53/udp");
    // All of 198.18.0.0/15 are addresses of remote's.
    bed.remote.ip("route add local 198.18.0.0/15 dev lo\n");
    let server = guest.ns.udp_at(at(guest.addr(Family::V4), 53));
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", proc.pid()));
        let status = status.expect("read its status");
        let line = status.lines().find(|l| l.starts_with("RssAnon:")).expect("RssAnon");
        line.split_ascii_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number")
    };
    let descriptors =
        || std::fs::read_dir(format!("/proc/{}/fd", proc.pid())).expect("list descriptors").count();
    let peer_of = |n: u32| {
        let [_, _, c, d] = n.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(198, 18 + (n >> 16) as u8, c, d))
    };
    let before = (memory(), descriptors());
    let to = at(HOST4, 5000);
    let mut last = None;
    for n in 0..100_000_u32 {
        let socket = bed.remote.udp_at(at(peer_of(n), 1000 + (n % 7) as u16));
        send(&socket, &n.to_be_bytes(), to);
        let (got, from) = receive(&server);
        assert_eq!((got, from), (n.to_be_bytes().to_vec(), addr(&socket)));
        last = Some(socket);
    }
    let last = last.expect("a peer");
    send(&server, b"the last", addr(&last));
    assert_eq!(receive(&last), (b"the last".to_vec(), to));
    let first = bed.remote.udp_at(at(peer_of(0), 1000));
    send(&server, b"the first", addr(&first));
    assert_eq!(receive(&first), (b"the first".to_vec(), to));
    let after = (memory(), descriptors());
    assert_eq!(before.1, after.1, "descriptors");
    assert!(after.0 < before.0 + 4096, "{before:?} KiB, then {after:?}");
}

/// A guest that has spoken from the endpoint before the port was there.
#[test]
fn a_port_comes_and_goes() {
    need!();
    not_slirp!("has no such client");
    let (bed, guest, _proc) = Bed::with_api("--workers 2");
    let port = |args: &str| bed.port(args).ok();
    // Some with each worker.
    for number in 6000..6008 {
        let server = guest.ns.udp_at(at(guest.addr(Family::V4), number));
        let third = bed.far.udp(Family::V4.far());
        send(&server, b"before", addr(&third));
        let (_, before) = receive(&third);
        let id = port(&format!("add {number}:{number}/udp"));
        let to = at(HOST4, number);
        let peer = connected(&bed.remote, at(REMOTE4, 0), to);
        assert_eq!(ask(&peer, &server, b"question"), addr(&peer));
        let other = bed.far.udp(Family::V4.far());
        send(&server, b"with it", addr(&other));
        assert_eq!(receive(&other).1, to);
        port(&format!("remove {id}"));
        // At once somebody else's.
        let instead = bed.host.udp_at(to);
        peer.send(b"whom does it reach?").expect("send");
        assert_eq!(receive(&instead).1, addr(&peer));
        send(&server, b"after", addr(&third));
        let (_, after) = receive(&third);
        assert_eq!(after.ip(), before.ip());
        assert_ne!(after, to);
        send(&third, b"heard", after);
        assert_eq!(receive(&server), (b"heard".to_vec(), addr(&third)));
    }
}
