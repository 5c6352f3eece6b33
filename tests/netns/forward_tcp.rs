//! Ports of the host that lead to servers in the guest, TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::harness::cmd::Proc;
use crate::harness::stream::{self, accept};
use crate::harness::{Bed, Family, Guest, With, eventually, need, not_slirp};

const HOST_PORT: u16 = 8080;
const GUEST_PORT: u16 = 80;

/// Forwards of both families to the same port of the guest, and a server at it for each.
struct Up {
    bed: Bed,
    guest: Guest,
    proc: Proc,
    servers: [TcpListener; 2],
}

fn up(with: &With, workers: usize) -> Up {
    let ports = format!("{HOST_PORT}:{GUEST_PORT}");
    let publish = format!("--workers {workers} -p {ports} -p [::]:{ports}");
    let (bed, guest, proc) = Bed::up(&with.clone().more(&publish));
    let servers = Family::BOTH
        .map(|family| guest.ns.listen_at(SocketAddr::new(guest.addr(family), GUEST_PORT)));
    Up { bed, guest, proc, servers }
}

impl Up {
    fn server(&self, family: Family) -> &TcpListener {
        &self.servers[usize::from(family == Family::V6)]
    }

    /// From `remote` to the guest: (the peer's end, the server's).
    fn pair(&self, family: Family) -> (TcpStream, TcpStream) {
        let to = SocketAddr::new(family.host(), HOST_PORT);
        let outside = self.bed.remote.connect(to).unwrap_or_else(|e| panic!("connect: {e}"));
        (outside, accept(self.server(family)))
    }
}

/// Both ways at once, to the end of both.
fn both_ways(pairs: &[(TcpStream, TcpStream)], len: u64) {
    std::thread::scope(|scope| {
        for (i, (a, b)) in pairs.iter().enumerate() {
            let (up, down) = (2 * i as u64, 2 * i as u64 + 1);
            scope.spawn(move || stream::send_all(a, up, len));
            scope.spawn(move || stream::send_all(b, down, len));
            scope.spawn(move || stream::expect_all(b, up, len));
            scope.spawn(move || stream::expect_all(a, down, len));
        }
    });
}

#[test]
fn bytes_both_ways() {
    need!();
    not_slirp!("has its forwards by the API alone");
    for (mtu, workers) in [(1500, 1), (65520, 2)] {
        let up = up(&With::mtu(mtu), workers);
        for family in Family::BOTH {
            both_ways(&[up.pair(family)], 20_000_000);
        }
        let pairs: Vec<_> = (0..8).map(|i| up.pair(Family::BOTH[i % 2])).collect();
        both_ways(&pairs, 3_000_000);
    }
}

#[test]
fn the_guest_sees_the_peer() {
    need!();
    not_slirp!("shows every peer as the gateway");
    let up = up(&With::defaults(), 1);
    for family in Family::BOTH {
        // From elsewhere, from the host by its own address, from the host by loopback.
        for (ns, to, seen) in [
            (&up.bed.remote, family.host(), family.remote()),
            (&up.bed.host, family.host(), family.host()),
            (&up.bed.host, family.loopback(), family.gateway()),
        ] {
            let outside = ns.connect(SocketAddr::new(to, HOST_PORT)).expect("connect");
            let inside = accept(up.server(family));
            let port = outside.local_addr().expect("an address").port();
            assert_eq!(inside.peer_addr().expect("a peer"), SocketAddr::new(seen, port));
            both_ways(&[(outside, inside)], 1000);
        }
    }
}

/// Peers of different loopback addresses with one port are one endpoint to the guest, all but.
#[test]
fn loopback_peers_with_one_port() {
    need!();
    not_slirp!("has its forwards by the API alone");
    let up = up(&With::defaults(), 1);
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HOST_PORT);
    let pairs: Vec<_> = (1..=8)
        .map(|n| {
            let socket = up.bed.host.socket(to.ip(), socket2::Type::STREAM, None);
            let from = SocketAddr::from(([127, 0, 0, n], 40_000));
            socket.bind(&from.into()).expect("bind");
            socket.connect(&to.into()).expect("connect");
            (socket.into(), accept(up.server(Family::V4)))
        })
        .collect();
    both_ways(&pairs, 10_000);
}

#[test]
fn ends_are_carried() {
    need!();
    not_slirp!("has its forwards by the API alone");
    let up = up(&With::defaults(), 1);
    for family in Family::BOTH {
        // Half closed by the peer, and by the server.
        let (outside, inside) = up.pair(family);
        outside.shutdown(Shutdown::Write).expect("shut down");
        stream::expect_end(&inside);
        stream::send_all(&inside, 1, 100_000);
        stream::expect_all(&outside, 1, 100_000);
        let (outside, inside) = up.pair(family);
        inside.shutdown(Shutdown::Write).expect("shut down");
        stream::expect_end(&outside);
        stream::send_all(&outside, 2, 100_000);
        stream::expect_all(&inside, 2, 100_000);
        // Reset by the one, and by the other.
        for swap in [false, true] {
            let (outside, inside) = up.pair(family);
            let (gone, mut left) = if swap { (inside, outside) } else { (outside, inside) };
            SockRef::from(&gone).set_linger(Some(Duration::ZERO)).expect("set SO_LINGER");
            drop(gone);
            let error = left.read(&mut [0; 1]).expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
}

#[test]
fn a_port_that_the_guest_refuses() {
    need!();
    not_slirp!("has its forwards by the API alone");
    let Up { bed, servers, guest, proc: _proc } = up(&With::defaults(), 1);
    drop(servers);
    for family in Family::BOTH {
        let to = SocketAddr::new(family.host(), HOST_PORT);
        let start = Instant::now();
        for _ in 0..20 {
            // Accepted by the host's kernel first, or reset before `connect` has returned.
            let Ok(mut stream) = bed.remote.connect(to) else { continue };
            let error = stream.read(&mut [0; 1]).expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    // A server that comes up later is found.
    let server = guest.ns.listen_at(SocketAddr::new(guest.addr(Family::V4), GUEST_PORT));
    let outside =
        bed.remote.connect(SocketAddr::new(Family::V4.host(), HOST_PORT)).expect("connect");
    both_ways(&[(outside, accept(&server))], 1000);
}

/// An address of the guest's interface that nobody told us of, one behind it, and one that nobody has.
#[test]
fn other_addresses_of_the_guest() {
    need!();
    not_slirp!("has its forwards by the API alone");
    let forwards = "-p 8081:10.0.2.77:80 -p 8082:172.30.0.1:80 -p 8083:10.0.2.99:80 \
                    -p [::]:8084:[fd00::77]:80";
    let (bed, guest, _proc) = Bed::up(&With::defaults().more(forwards));
    guest.ns.ip("addr add 10.0.2.77/24 dev tap0\naddr add fd00::77/64 dev tap0 nodad\n\
                 addr add 172.30.0.1/32 dev lo\nlink set lo up\n");
    for (port, addr) in [(8081, "10.0.2.77"), (8082, "172.30.0.1"), (8084, "fd00::77")] {
        let addr: IpAddr = addr.parse().expect("an address");
        let server = guest.ns.listen_at(SocketAddr::new(addr, 80));
        let family = if addr.is_ipv4() { Family::V4 } else { Family::V6 };
        let to = SocketAddr::new(family.host(), port);
        let outside = bed.remote.connect(to).expect("connect");
        both_ways(&[(outside, accept(&server))], 10_000);
    }
    let mut lost = bed.remote.connect(SocketAddr::new(Family::V4.host(), 8083)).expect("connect");
    let error = lost.read(&mut [0; 1]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Descriptors that the program holds.
fn descriptors(proc: &Proc) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", proc.pid())).expect("its descriptors").count()
}

#[test]
fn thousands_of_short_connections_leave_nothing() {
    need!();
    not_slirp!("has its forwards by the API alone");
    let up = up(&With::defaults(), 2);
    let before = descriptors(&up.proc);
    for family in Family::BOTH {
        let server = up.server(family).try_clone().expect("clone");
        let echo = std::thread::spawn(move || {
            for _ in 0..1500 {
                let mut inside = accept(&server);
                let mut byte = [0];
                inside.read_exact(&mut byte).expect("a byte");
                inside.write_all(&byte).expect("answer");
            }
        });
        let to = SocketAddr::new(family.host(), HOST_PORT);
        for n in 0..1500u32 {
            let mut outside = up.bed.remote.connect(to).expect("connect");
            outside.write_all(&[n as u8]).expect("ask");
            let mut byte = [0];
            outside.read_exact(&mut byte).expect("an answer");
            assert_eq!(byte[0], n as u8);
        }
        echo.join().expect("the server");
    }
    eventually("all sockets are closed", || descriptors(&up.proc) <= before);
    drop(up.guest);
}
