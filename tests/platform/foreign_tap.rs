//! A TAP that somebody else opened, without virtio header: the worker's software path, for real.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use ringtap::config::NetConfig;
use ringtap::stats::{Drop, Stats};
use ringtap::worker::{Handle, Request, TapQueue};

use crate::bed::{belief, guest, ip};

/// Bytes each way.
const BYTES: usize = 24 << 20;

/// Numbers that a lost, doubled or moved piece would disturb.
fn pattern(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = vec![0; BYTES];
    for chunk in bytes.as_chunks_mut::<8>().0 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1);
        *chunk = state.to_be_bytes();
    }
    bytes
}

/// Bytes and frames that `tap0` of this thread's namespace has received.
fn received() -> (usize, usize) {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find_map(|l| l.trim().strip_prefix("tap0:")).unwrap();
    let mut numbers = line.split_whitespace().map(|n| n.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// A transfer that stands still fails instead of hanging.
fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
}

fn transfer(mtu: u16) -> Stats {
    // This namespace is the host's: the server's address is on its `lo`.
    ip("addr add 203.0.113.1/32 dev lo");
    let listener = TcpListener::bind("203.0.113.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        patient(&peer);
        let mut got = vec![];
        peer.read_to_end(&mut got).unwrap();
        assert!(got == pattern(1), "guest to host: {} bytes", got.len());
        peer.write_all(&pattern(2)).unwrap();
    });
    // Another one is the guest's.
    let (give, take) = std::sync::mpsc::channel();
    let (ready, go) = std::sync::mpsc::channel::<()>();
    let client = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        give.send(guest(0, mtu)).unwrap();
        go.recv().unwrap();
        let mut stream = TcpStream::connect(to).unwrap();
        patient(&stream);
        stream.write_all(&pattern(1)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = vec![];
        stream.read_to_end(&mut got).unwrap();
        assert!(got == pattern(2), "host to guest: {} bytes", got.len());
        // The kernel would take frames above the MTU as well; that they were cut shows in their number.
        let (bytes, packets) = received();
        assert!(packets >= BYTES / usize::from(mtu - 40), "{packets} frames, {bytes} bytes");
        assert!(bytes / packets <= usize::from(mtu) + 14, "{packets} frames, {bytes} bytes");
    });
    let tap = TapQueue { fd: take.recv().expect("the guest's TAP"), vnet: false, reads: true };
    let net = NetConfig { mtu, ..NetConfig::native() };
    let (notices, _heard) = tokio::sync::mpsc::unbounded_channel();
    let worker = Handle::spawn(tap, net, vec![], notices).unwrap();
    ready.send(()).unwrap();
    let results = (client.join(), server.join());
    let (reply, stats) = std::sync::mpsc::channel();
    worker.request(Request::Stats(reply));
    let stats = stats.recv().unwrap();
    worker.stop();
    results.0.expect("the guest");
    results.1.expect("the server");
    stats
}

#[test]
fn tcp_passes_a_tap_without_header_both_ways() {
    belief(|| {
        let stats = transfer(1500);
        assert_eq!(stats.tcp_to_host, BYTES as u64);
        assert_eq!(stats.tcp_to_guest, BYTES as u64);
        assert_eq!(stats.dropped(Drop::TapRefused) + stats.dropped(Drop::Malformed), 0);
        format!("{BYTES} bytes each way at MTU 1500, sums equal")
    });
}

fn at_mtu(mtu: u16) -> String {
    let stats = transfer(mtu);
    assert_eq!((stats.tcp_to_host, stats.tcp_to_guest), (BYTES as u64, BYTES as u64));
    format!("{BYTES} bytes each way at MTU {mtu}, sums equal")
}

#[test]
fn tcp_at_a_small_mtu() {
    belief(|| at_mtu(576));
}

#[test]
fn tcp_at_an_mtu_of_large_slots() {
    belief(|| at_mtu(9000));
}

#[test]
fn tcp_at_an_mtu_that_needs_no_cutting() {
    belief(|| at_mtu(65_520));
}

#[test]
fn datagrams_above_the_mtu_arrive_whole() {
    belief(|| {
        ip("addr add 203.0.113.1/32 dev lo");
        let server = UdpSocket::bind("203.0.113.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let to = server.local_addr().unwrap();
        let sizes = [0, 1, 1472, 1473, 5000, 65_507];
        let (give, take) = std::sync::mpsc::channel();
        let (ready, go) = std::sync::mpsc::channel::<()>();
        let client = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            give.send(guest(0, 1500)).unwrap();
            go.recv().unwrap();
            let socket = UdpSocket::bind("10.0.2.100:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let (payload, mut got) = (pattern(3), vec![0; 65_536]);
            for size in sizes {
                // One at a time; nothing is lost on this path.
                socket.send_to(&payload[..size], to).unwrap();
                let (len, from) = socket.recv_from(&mut got).unwrap();
                assert_eq!((len, from), (size, to));
                assert!(got[..len] == payload[..size], "{size} bytes");
            }
        });
        let tap = TapQueue { fd: take.recv().expect("the guest's TAP"), vnet: false, reads: true };
        let (notices, _heard) = tokio::sync::mpsc::unbounded_channel();
        let worker = Handle::spawn(tap, NetConfig::native(), vec![], notices).unwrap();
        ready.send(()).unwrap();
        let echo = thread::spawn(move || {
            let mut bytes = vec![0; 65_536];
            for _ in sizes {
                let (len, from) = server.recv_from(&mut bytes).unwrap();
                server.send_to(&bytes[..len], from).unwrap();
            }
        });
        let results = (client.join(), echo.join());
        worker.stop();
        results.0.expect("the guest");
        results.1.expect("the server");
        format!("{sizes:?} bytes, there and back, in fragments at MTU 1500")
    });
}
