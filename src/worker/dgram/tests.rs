//! A worker on a real ring with real sockets. A socket pair stands for the TAP, and each test has a
//! network namespace of its own for the host side (which takes root), so that nothing leaves it.

use std::net::{IpAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use smoltcp::wire::IpProtocol;

use super::super::{InFlight, Mailbox, TapQueue, Writing};
use super::*;
use crate::arena::Pools;
use crate::flow::icmp;
use crate::frame::build::{self, Out};
use crate::frame::{self, L3, Pair, vnet};
use crate::limits::{DGRAM_SLOTS, HEADROOM, HOST_SLOTS, SLOT_BYTES, TAP_SLOTS};
use crate::time::Time;

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Guest and host addresses by family.
const V4: (&str, &str) = ("10.0.2.100", "192.0.2.1");
const V6: (&str, &str) = ("fd00::100", "2001:db8::1");

/// The guest's end of the TAP, and the worker.
struct Bed {
    guest: UnixDatagram,
    worker: Worker,
    pools: Pools,
}

/// What the guest gets: source, TTL, TOS, and what is behind the IP header.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    src: IpAddr,
    ttl: u8,
    tos: u8,
    proto: IpProtocol,
    l4: Vec<u8>,
}

impl Packet {
    fn udp(&self) -> (u16, u16, &[u8]) {
        assert_eq!(self.proto, IpProtocol::Udp, "{self:?}");
        let port = |at: usize| u16::from_be_bytes([self.l4[at], self.l4[at + 1]]);
        assert_eq!(usize::from(port(4)), self.l4.len());
        (port(0), port(2), &self.l4[8..])
    }
}

impl Bed {
    /// `None`, with the reason, where a namespace cannot be had.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "CI must run this as root");
            eprintln!("skipped: making a network namespace needs root");
            return None;
        }
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        for args in [
            "link set lo up",
            "addr add 192.0.2.1/32 dev lo",
            "addr add 2001:db8::1/128 dev lo nodad",
        ] {
            assert!(Command::new("ip").args(args.split(' ')).status().unwrap().success());
        }
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
        // An address is usable only some time after it is added: until then what is sent to it is lost.
        for addr in [V4.1, V6.1] {
            let probe = UdpSocket::bind((addr.parse::<IpAddr>().unwrap(), 0)).unwrap();
            probe.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            let itself = probe.local_addr().unwrap();
            let mut tries = 0;
            while probe.send_to(b"?", itself).and_then(|_| probe.recv(&mut [0; 1])).is_err() {
                tries += 1;
                assert!(tries < 1000, "{addr} cannot be used");
            }
        }
        let (guest, tap) = UnixDatagram::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        for end in [&guest, &tap] {
            SockRef::from(end).set_send_buffer_size(4 << 20).unwrap();
        }
        let mailbox =
            Arc::new(Mailbox { requests: Mutex::default(), bell: EventFd::new().unwrap() });
        let (notices, _) = tokio::sync::mpsc::unbounded_channel();
        let tap = TapQueue { fd: tap.into(), vnet: true, reads: true };
        let worker = Worker::new(tap, NetConfig::native(), &[], mailbox, notices).unwrap();
        Some(Self { guest, worker, pools: Pools::new().unwrap() })
    }

    /// One turn of the worker at a time of the test's choice.
    fn turn(&mut self, now: Time) {
        let worker = &mut self.worker;
        worker.ring.turn(Some(Duration::from_millis(5))).unwrap();
        if worker.ring.is_submitted() {
            worker.scratch.reset();
        }
        worker.now = now;
        while let Some(entry) = worker.ring.completion() {
            worker.complete(Token::unpack(entry.user_data()), &entry).unwrap();
        }
        worker.feed_hungry().unwrap();
        worker.stack.handle_timeout(now);
        while let Some(action) = worker.stack.poll_action(now) {
            worker.submit(action).unwrap();
        }
        worker.rearm().unwrap();
    }

    fn out(&self, to: &str, ttl: u8, df: bool) -> Out {
        let to: IpAddr = to.parse().unwrap();
        let from = if to.is_ipv4() { V4.0 } else { V6.0 };
        let pair = Pair::new(from.parse().unwrap(), to).unwrap();
        Out { eth_src: GUEST_MAC, eth_dst: self.worker.net.gateway_mac, pair, ttl, tos: 0xb8, df }
    }

    fn send(&mut self, to: &str, port: u16, payload: &[u8], segment: u16) {
        let mut slot = self.pools.large.take().unwrap();
        slot.set_range(HEADROOM, payload.len());
        slot.bytes_mut().copy_from_slice(payload);
        build::udp(&mut slot, &self.out(to, 33, false), 5000, port, segment);
        self.guest.send(slot.bytes()).unwrap();
    }

    fn ping(&mut self, to: &str, seq: u16) {
        let mut slot = self.pools.large.take().unwrap();
        slot.set_range(HEADROOM, 12);
        let out = self.out(to, 33, false);
        let (kind, proto) = match out.pair {
            Pair::V4(..) => (8, IpProtocol::Icmp),
            Pair::V6(..) => (128, IpProtocol::Icmpv6),
        };
        let [hi, lo] = seq.to_be_bytes();
        slot.bytes_mut().copy_from_slice(&[kind, 0, 0, 0, 0x12, 0x34, hi, lo, 1, 2, 3, 4]);
        icmp::seal(slot.bytes_mut(), out.pair);
        build::ip(&mut slot, &out, proto);
        self.guest.send(slot.bytes()).unwrap();
    }

    /// The next packet that the guest gets, turning the worker until it is there.
    fn receive(&mut self) -> Packet {
        let mut bytes = vec![0; SLOT_BYTES];
        for _ in 0..2000 {
            let Ok(n) = self.guest.recv(&mut bytes) else {
                self.turn(Time(1000));
                continue;
            };
            let parsed = frame::parse(&bytes[..n]).unwrap();
            assert_eq!(parsed.vnet.gso_type, vnet::GSO_NONE);
            let L3::Ip(ip) = parsed.l3 else { continue };
            // What the gateway says of itself, unasked, is no matter here.
            if matches!(ip.dst, IpAddr::V6(a) if a.is_multicast()) {
                continue;
            }
            let l4 = bytes[ip.start..ip.end].to_vec();
            return Packet { src: ip.src, ttl: ip.ttl, tos: ip.tos, proto: ip.proto, l4 };
        }
        panic!("nothing came");
    }

    /// The next frame of UDP that the guest gets: its virtio header, and what is behind the IP header.
    fn receive_frame(&mut self, bytes: &mut [u8]) -> (vnet::Header, Vec<u8>) {
        for _ in 0..2000 {
            let Ok(n) = self.guest.recv(bytes) else {
                self.turn(Time(1000));
                continue;
            };
            let parsed = frame::parse(&bytes[..n]).unwrap();
            if let L3::Ip(ip) = parsed.l3
                && ip.proto == IpProtocol::Udp
            {
                return (parsed.vnet, bytes[ip.start..ip.end].to_vec());
            }
        }
        panic!("nothing came");
    }

    /// The next datagram that a server gets, turning the worker until it is there.
    fn hear(&mut self, server: &UdpSocket, buffer: &mut [u8]) -> (usize, SocketAddr) {
        for _ in 0..2000 {
            match server.recv_from(buffer) {
                Ok(heard) => return heard,
                Err(_) => self.turn(Time(1000)),
            }
        }
        panic!("the server heard nothing");
    }

    /// A server that the guest has sent to, and where it sees the guest.
    fn mapping(&mut self, addr: &str) -> (UdpSocket, SocketAddr) {
        let server = self.server(addr);
        self.send(addr, port(&server), b"x", 0);
        let (_, mapping) = self.hear(&server, &mut [0; 10]);
        (server, mapping)
    }

    fn server(&self, addr: &str) -> UdpSocket {
        let socket = UdpSocket::bind((addr.parse::<IpAddr>().unwrap(), 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        SockRef::from(&socket).set_recv_buffer_size(1 << 20).unwrap();
        socket
    }
}

fn port(socket: &UdpSocket) -> u16 {
    socket.local_addr().unwrap().port()
}

/// A port of the address that is closed.
fn closed(addr: &str) -> u16 {
    port(&UdpSocket::bind((addr.parse::<IpAddr>().unwrap(), 0)).unwrap())
}

#[test]
fn datagrams_of_every_size_both_ways() {
    let Some(mut bed) = Bed::new() else { return };
    for ((_, host), max) in [(V4, 65507), (V6, 65527)] {
        let server = bed.server(host);
        SockRef::from(&server).set_ttl_v4(77).unwrap();
        let mut buffer = vec![0; 70_000];
        for len in [5, 0, 1, 1472, 0, 0, 9000, max, 0, 3] {
            let payload: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            bed.send(host, port(&server), &payload, 0);
            let (n, from) = bed.hear(&server, &mut buffer);
            assert!(buffer[..n] == payload, "{len} to the host");
            server.send_to(&payload, from).unwrap();
            let packet = bed.receive();
            assert_eq!((packet.src, packet.tos), (host.parse().unwrap(), 0));
            assert_eq!(packet.ttl, if host == V4.1 { 77 } else { 64 });
            let (src, dst, got) = packet.udp();
            assert_eq!((src, dst), (port(&server), 5000));
            assert!(got == payload, "{len} to the guest");
        }
    }
}

#[test]
fn ttl_and_tos_reach_the_host() {
    let Some(mut bed) = Bed::new() else { return };
    let server = bed.server(V4.1);
    let socket = Socket::from(server.try_clone().unwrap());
    set(socket.as_raw_fd(), libc::SOL_IP, libc::IP_RECVTTL, 1).unwrap();
    set(socket.as_raw_fd(), libc::SOL_IP, libc::IP_RECVTOS, 1).unwrap();
    bed.send(V4.1, port(&server), b"x", 0);
    while server.peek(&mut [0; 4]).is_err() {
        bed.turn(Time(1000));
    }
    let mut control = nix::cmsg_space!([u8; 64]);
    let mut buffer = [0; 4];
    let mut iov = [io::IoSliceMut::new(&mut buffer)];
    let msg = nix::sys::socket::recvmsg::<()>(
        socket.as_raw_fd(),
        &mut iov,
        Some(&mut control),
        nix::sys::socket::MsgFlags::empty(),
    )
    .unwrap();
    let got: Vec<_> = msg.cmsgs().unwrap().map(|c| format!("{c:?}")).collect();
    assert_eq!(got, ["Ipv4Ttl(33)", "Ipv4Tos(184)"]);
}

#[test]
fn a_run_leaves_as_its_datagrams_in_order() {
    let Some(mut bed) = Bed::new() else { return };
    for (_, host) in [V4, V6] {
        let server = bed.server(host);
        for (segment, len) in [(100, 1000), (100, 6401), (100, 12_800), (1400, 65_100), (9, 10)] {
            let payload: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            bed.send(host, port(&server), &payload, segment);
            let mut buffer = vec![0; 70_000];
            for datagram in payload.chunks(usize::from(segment)) {
                let (n, _) = bed.hear(&server, &mut buffer);
                assert!(buffer[..n] == *datagram, "{len} by {segment}");
            }
        }
    }
}

#[test]
fn a_closed_port_costs_the_open_one_nothing() {
    let Some(mut bed) = Bed::new() else { return };
    for (_, host) in [V4, V6] {
        let (server, closed) = (bed.server(host), closed(host));
        let mut buffer = [0; 100];
        for i in 0..50u8 {
            // As fast as frames come: many are sent before an error is heard of.
            for _ in 0..2 {
                bed.send(host, closed, b"nobody", 0);
                bed.send(host, port(&server), &[i], 0);
            }
            for _ in 0..2 {
                assert_eq!(bed.hear(&server, &mut buffer).0, 1);
                assert_eq!(buffer[0], i);
            }
            // The kernel does not limit the rate of its errors on loopback.
            for _ in 0..2 {
                let packet = bed.receive();
                let quoted = if host == V4.1 { 28 } else { 48 };
                let (kind, head) = if host == V4.1 { ([3, 3], 1) } else { ([1, 4], 58) };
                assert_eq!((packet.src, u8::from(packet.proto)), (host.parse().unwrap(), head));
                assert_eq!(packet.l4[..2], kind);
                assert_eq!(packet.l4[quoted + 2..quoted + 4], closed.to_be_bytes());
            }
        }
    }
    assert_eq!(bed.worker.stack.stats().dropped(Drop::HostRefused), 0);
}

#[test]
fn echo_comes_back_with_the_guests_identifier() {
    let Some(mut bed) = Bed::new() else { return };
    for ((_, host), reply) in [(V4, 0), (V6, 129)] {
        for seq in [1, 2, 0xffff] {
            bed.ping(host, seq);
            let packet = bed.receive();
            let [hi, lo] = seq.to_be_bytes();
            assert_eq!(packet.src, host.parse::<IpAddr>().unwrap());
            assert_eq!(packet.l4[0], reply);
            assert_eq!(packet.l4[4..], [0x12, 0x34, hi, lo, 1, 2, 3, 4]);
        }
    }
}

#[test]
fn no_ping_socket_no_answer() {
    let Some(mut bed) = Bed::new() else { return };
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "1 0").unwrap();
    bed.ping(V4.1, 1);
    for _ in 0..4 {
        bed.turn(Time(1000));
    }
    let stats = bed.worker.stack.stats();
    assert_eq!((stats.dropped(Drop::HostRefused), stats.flows), (1, 0));
}

#[test]
fn no_route_is_told_by_the_gateway() {
    let Some(mut bed) = Bed::new() else { return };
    for (to, gateway, kind) in [("198.51.100.7", "10.0.2.2", 3), ("2001:db9::1", "fd00::2", 1)] {
        bed.send(to, 9, b"x", 0);
        let packet = bed.receive();
        assert_eq!((packet.src, packet.l4[0]), (gateway.parse::<IpAddr>().unwrap(), kind));
        assert_eq!(packet.l4[1], 0);
    }
}

#[test]
fn closing_gives_everything_back() {
    let Some(mut bed) = Bed::new() else { return };
    let (server, closed) = (bed.server(V4.1), closed(V4.1));
    for i in 0..20 {
        bed.send(V4.1, if i % 2 == 0 { closed } else { port(&server) }, b"x", 0);
        bed.ping(V4.1, i);
    }
    for _ in 0..10 {
        bed.turn(Time(1000));
    }
    assert_eq!(bed.worker.stack.stats().flows, 2);
    // Something is in flight while the sockets close.
    let later = Time(1000) + crate::limits::UDP_IDLE;
    let (_, mapping) = bed.hear(&server, &mut [0; 10]);
    for _ in 0..100 {
        server.send_to(b"late", mapping).unwrap();
    }
    bed.worker.stack.handle_timeout(later);
    for _ in 0..10 {
        bed.turn(later);
    }
    assert_eq!(bed.worker.stack.stats().flows, 0);
    assert!(bed.worker.socks.iter().all(Option::is_none));
    let sends: &InFlight<Sending> = &bed.worker.dgram_sends;
    assert!(sends.is_empty());
    // Only what the kernel holds for reads is lent.
    let pools = bed.worker.stack.pools();
    assert_eq!(pools.large.lent(), u32::from(TAP_SLOTS + HOST_SLOTS + DGRAM_SLOTS));
    // The mapping's port is gone: the closed socket hears nothing.
    assert!(UdpSocket::bind(("0.0.0.0", mapping.port())).is_ok());
}

#[test]
fn a_burst_beyond_the_buffers_is_not_lost() {
    let Some(mut bed) = Bed::new() else { return };
    let (server, mapping) = bed.mapping(V4.1);
    for i in 0..200u8 {
        server.send_to(&vec![i; usize::from(i)], mapping).unwrap();
    }
    for i in 0..200u8 {
        let packet = bed.receive();
        assert!(packet.udp().2 == vec![i; usize::from(i)], "{i}");
    }
}

#[test]
fn a_flooded_mapping_does_not_starve_another() {
    let Some(mut bed) = Bed::new() else { return };
    let (flooder, server) = (bed.server(V4.1), bed.server(V4.1));
    let mut mappings = Vec::new();
    for (from, to) in [(5000, &flooder), (5001, &server)] {
        let mut slot = bed.pools.large.take().unwrap();
        slot.set_range(HEADROOM, 1);
        build::udp(&mut slot, &bed.out(V4.1, 33, false), from, port(to), 0);
        bed.guest.send(slot.bytes()).unwrap();
        mappings.push(bed.hear(to, &mut [0; 10]).1);
    }
    let mut bytes = vec![0; SLOT_BYTES];
    // More than the buffers of a turn are waiting, always.
    let mut flood = |bed: &mut Bed| {
        for _ in 0..3 * DGRAM_SLOTS {
            let _ = flooder.send_to(b"flood", mappings[0]);
        }
        bed.turn(Time(1000));
        let mut heard = false;
        while let Ok(n) = bed.guest.recv(&mut bytes) {
            heard |= bytes[..n].ends_with(b"calm");
        }
        heard
    };
    for _ in 0..5 {
        flood(&mut bed);
    }
    server.send_to(b"calm", mappings[1]).unwrap();
    let turns = (1..100).find(|_| flood(&mut bed));
    assert!(turns.is_some_and(|turns| turns <= 5), "{turns:?}");
}

/// A run of datagrams from the socket: their bytes, and the size of each (0: one datagram).
fn hear_run(bed: &mut Bed, server: &UdpSocket) -> (Vec<u8>, usize) {
    while server.peek(&mut [0; 4]).is_err() {
        bed.turn(Time(1000));
    }
    let mut control = nix::cmsg_space!([u8; 64]);
    let mut buffer = vec![0; 70_000];
    let mut iov = [io::IoSliceMut::new(&mut buffer)];
    let flags = nix::sys::socket::MsgFlags::empty();
    let msg =
        nix::sys::socket::recvmsg::<()>(server.as_raw_fd(), &mut iov, Some(&mut control), flags)
            .unwrap();
    let size = msg.cmsgs().unwrap().find_map(|c| match c {
        nix::sys::socket::ControlMessageOwned::UdpGroSegments(size) => Some(size as usize),
        _ => None,
    });
    let len = msg.bytes;
    buffer.truncate(len);
    (buffer, size.unwrap_or(0))
}

#[test]
fn datagrams_of_a_turn_leave_in_runs_and_in_order() {
    let Some(mut bed) = Bed::new() else { return };
    for (_, host) in [V4, V6] {
        let (one, two) = (bed.server(host), bed.server(host));
        for server in [&one, &two] {
            set(server.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, 1).unwrap();
        }
        for (to, byte, len) in [
            // Three of a size and a shorter one, which ends the run.
            (&one, 1, 100),
            (&one, 2, 100),
            (&one, 3, 100),
            (&one, 4, 7),
            (&one, 5, 100),
            // Another peer: what follows begins anew, or it would overtake.
            (&two, 6, 100),
            (&one, 7, 100),
            (&one, 8, 100),
            (&one, 9, 0),
            (&one, 10, 2000),
            (&one, 11, 2000),
        ] {
            bed.send(host, port(to), &vec![byte; len], 0);
        }
        let runs = |bed: &mut Bed, server: &UdpSocket, n: usize| -> Vec<(Vec<u8>, usize)> {
            (0..n).map(|_| hear_run(bed, server)).collect()
        };
        let seen = runs(&mut bed, &one, 6);
        let run = |parts: &[(u8, usize)]| -> Vec<u8> {
            parts.iter().flat_map(|&(byte, len)| vec![byte; len]).collect()
        };
        assert_eq!(seen[0], (run(&[(1, 100), (2, 100), (3, 100), (4, 7)]), 100));
        assert_eq!(seen[1], (run(&[(5, 100)]), 0));
        assert_eq!(seen[2], (run(&[(7, 100), (8, 100)]), 100));
        assert_eq!(seen[3], (vec![], 0));
        assert_eq!((&seen[4], &seen[5]), (&(vec![10; 2000], 0), &(vec![11; 2000], 0)));
        assert_eq!(runs(&mut bed, &two, 1), [(vec![6; 100], 0)]);
    }
    assert_eq!(bed.worker.stack.stats().dropped(Drop::HostRefused), 0);
    bed.turn(Time(1000));
    assert!(sends_of(&bed).is_empty());
}

fn sends_of(bed: &Bed) -> &InFlight<Sending> {
    &bed.worker.dgram_sends
}

#[test]
fn a_path_that_takes_no_run_gets_every_datagram() {
    let Some(mut bed) = Bed::new() else { return };
    assert!(
        Command::new("ip").args(["link", "set", "lo", "mtu", "1300"]).status().unwrap().success()
    );
    let server = bed.server(V4.1);
    for round in 0..3u8 {
        for i in 0..8u8 {
            bed.send(V4.1, port(&server), &[round * 8 + i; 1400], 0);
        }
        let mut buffer = [0; 2000];
        for i in 0..8u8 {
            assert_eq!(bed.hear(&server, &mut buffer).0, 1400);
            assert!(buffer[..1400] == [round * 8 + i; 1400], "{round} {i}");
        }
    }
    // Learned: runs of such datagrams are not tried again.
    let limits = bed.worker.socks.iter().flatten().map(|sock| sock.run_limit);
    let mut learned = Limit::ethernet(true);
    learned.refused(libc::EMSGSIZE, 1400);
    assert!(limits.eq([learned]));
    assert_eq!(bed.worker.stack.stats().dropped(Drop::HostRefused), 0);
}

#[test]
fn a_run_from_the_host_is_one_frame() {
    let Some(mut bed) = Bed::new() else { return };
    let mut bytes = vec![0; SLOT_BYTES];
    for (_, host) in [V4, V6] {
        let (server, mapping) = bed.mapping(host);
        set(server.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 1000).unwrap();
        for len in [64_000, 1001, 1000, 3] {
            let payload: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            server.send_to(&payload, mapping).unwrap();
            let (header, l4) = bed.receive_frame(&mut bytes);
            assert!(l4[8..] == payload, "{len}");
            let run = if len > 1000 { (vnet::GSO_UDP_L4, 1000) } else { (vnet::GSO_NONE, 0) };
            assert_eq!((header.gso_type, header.gso_size), run, "{len}");
        }
    }
}

#[test]
fn datagrams_that_came_one_by_one_are_one_frame() {
    let Some(mut bed) = Bed::new() else { return };
    let mut bytes = vec![0; SLOT_BYTES];
    for (_, host) in [V4, V6] {
        let (server, mapping) = bed.mapping(host);
        let sent: Vec<Vec<u8>> = (0..20u8).map(|i| vec![i; if i < 19 { 900 } else { 7 }]).collect();
        for datagram in &sent {
            server.send_to(datagram, mapping).unwrap();
        }
        let (header, l4) = bed.receive_frame(&mut bytes);
        assert_eq!((header.gso_type, header.gso_size), (vnet::GSO_UDP_L4, 900));
        assert!(l4[8..] == sent.concat());
        assert_eq!(bed.worker.stack.stats().copied_bytes, 0);
    }
}

#[test]
fn a_run_that_the_guest_does_not_take_is_cut() {
    let Some(mut bed) = Bed::new() else { return };
    let payload: Vec<u8> = (0..10_500u32).map(|i| (i % 251) as u8).collect();
    let mut slot = bed.worker.stack.pools().large.take().unwrap();
    slot.set_range(HEADROOM, payload.len());
    slot.bytes_mut().copy_from_slice(&payload);
    build::udp(&mut slot, &bed.out(V4.1, 33, false), 7, 5000, 1000);
    let index = bed.worker.writes.put(Writing::Frame(slot, None));
    bed.worker.tap_written(index, -libc::EINVAL).unwrap();
    for datagram in payload.chunks(1000) {
        let packet = bed.receive();
        assert!(packet.udp().2 == datagram);
        assert_eq!((packet.ttl, packet.tos), (33, 0xb8));
    }
    assert_eq!(bed.worker.stack.stats().dropped(Drop::TapRefused), 0);
}
