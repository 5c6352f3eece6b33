//! The host's loopback: out of reach by every spelling, in reach when the operator says so.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol, IpRepr,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};
use socket2::Type;

use crate::harness::stream::accept;
use crate::harness::sys::Wire;
use crate::harness::{Bed, Family, Guest, With, against_slirp, need, not_slirp};

/// What a guest can write that could mean its host's loopback or the host's own addresses on the link
/// to it. The guest's kernel keeps the plainest ones to itself unless it is told to route them.
fn spellings(bed: &Bed) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = [
        "127.0.0.1",
        "127.0.0.2",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.2.2",
        "10.0.2.3",
        "10.0.2.255",
        "255.255.255.255",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "2002:7f00:1::",
        "fd00::2",
        "fd00::3",
        "fd00::1234",
        "ff02::1",
        "fe80::2",
    ]
    .iter()
    .map(|s| s.parse().expect("an address"))
    .collect();
    let shown = bed.host.cmd("ip -6 -o addr show dev host0 scope link").ok();
    let local = shown.split_ascii_whitespace().find_map(|w| w.strip_suffix("/64"));
    all.push(local.expect("a link-local address").parse().expect("an address"));
    all
}

/// Whether a TCP connection from the guest to `to` arrives anywhere.
fn reaches(guest: &Guest, to: SocketAddr) -> bool {
    let socket = guest.ns.socket(to.ip(), Type::STREAM, None);
    socket.connect_timeout(&with_scope(guest, to).into(), Duration::from_millis(700)).is_ok()
}

/// Link-local addresses need an interface.
fn with_scope(guest: &Guest, to: SocketAddr) -> SocketAddr {
    let index = || guest.ns.within(|| nix::net::if_::if_nametoindex("tap0").expect("tap0's index"));
    match to {
        SocketAddr::V6(mut v6) if v6.ip().is_unicast_link_local() || v6.ip().is_multicast() => {
            v6.set_scope_id(index());
            v6.into()
        }
        _ => to,
    }
}

/// A SYN and a datagram to `to`, as a guest that builds its own frames sends them.
fn knocks(from: (EthernetAddress, IpAddr), to: SocketAddr) -> [Vec<u8>; 2] {
    let (source, sport) = (from.1, 40_000);
    let tcp = TcpRepr {
        src_port: sport,
        dst_port: to.port(),
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1),
        ack_number: None,
        window_len: 65535,
        window_scale: Some(7),
        max_seg_size: Some(1400),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let udp = UdpRepr { src_port: sport, dst_port: to.port() };
    let checks = ChecksumCapabilities::default();
    let (src, dst) = (IpAddress::from(source), IpAddress::from(to.ip()));
    let frame = |protocol, len: usize, emit: &mut dyn FnMut(&mut [u8])| {
        let ip = IpRepr::new(src, dst, protocol, len, 64);
        let ethernet = EthernetRepr {
            src_addr: from.0,
            dst_addr: GATEWAY_MAC,
            ethertype: if to.is_ipv4() { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 },
        };
        let mut bytes = vec![0; 14 + ip.buffer_len()];
        ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
        ip.emit(&mut bytes[14..], &checks);
        emit(&mut bytes[14 + ip.header_len()..]);
        bytes
    };
    [
        frame(IpProtocol::Tcp, tcp.buffer_len(), &mut |bytes| {
            tcp.emit(&mut TcpPacket::new_unchecked(bytes), &src, &dst, &checks);
        }),
        frame(IpProtocol::Udp, udp.header_len() + 5, &mut |bytes| {
            let mut packet = UdpPacket::new_unchecked(bytes);
            udp.emit(&mut packet, &src, &dst, 5, |p| p.copy_from_slice(b"knock"), &checks);
        }),
    ]
}

const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);

#[test]
fn no_spelling_reaches_it() {
    need!();
    not_slirp!("lets 127.0.0.2 through");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    let wires = guest.ns.within(|| Wire::open("tap0"));
    // Servers on every address of the host, of both families, at one port.
    let server = bed.host.listen(Ipv6Addr::UNSPECIFIED.into());
    let port = server.local_addr().expect("an address").port();
    server.set_nonblocking(true).expect("set non-blocking");
    let socket = bed.host.socket(Ipv6Addr::UNSPECIFIED.into(), Type::DGRAM, None);
    socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into()).expect("bind");
    socket.set_nonblocking(true).expect("set non-blocking");
    let datagrams: UdpSocket = socket.into();

    for ip in spellings(&bed) {
        // What the guest's own kernel sends, where it would send this at all.
        let to = SocketAddr::new(ip, port);
        assert!(!reaches(&guest, to), "{ip} reaches the host");
        // What a guest sends that builds its own frames.
        let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
        let from = (EthernetAddress(wires.mac), guest.addr(family));
        for frame in knocks(from, to) {
            wires.send(&frame);
        }
    }
    // The frames have been taken when the answer to a later one is here.
    let echo = bed.remote.udp(Family::V4.remote());
    let client = guest.ns.udp(Family::V4.any());
    client.send_to(b"done", echo.local_addr().expect("an address")).expect("send");
    echo.recv_from(&mut [0; 4]).expect("receive");
    std::thread::sleep(Duration::from_millis(300));

    match server.accept() {
        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
        other => panic!("a connection reached the host: {other:?}"),
    }
    match datagrams.recv_from(&mut [0; 100]) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
        other => panic!("a datagram reached the host: {other:?}"),
    }
}

/// The frames above do arrive where they may: or the test above would show nothing.
#[test]
fn hand_made_frames_arrive_where_they_may() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    let wires = guest.ns.within(|| Wire::open("tap0"));
    for family in Family::BOTH {
        let server = bed.remote.listen(family.remote());
        let to = server.local_addr().expect("an address");
        let socket = bed.remote.socket(to.ip(), Type::DGRAM, None);
        socket.bind(&to.into()).expect("bind");
        let datagrams: UdpSocket = socket.into();
        for frame in knocks((EthernetAddress(wires.mac), guest.addr(family)), to) {
            wires.send(&frame);
        }
        let mut buf = [0; 10];
        let (n, _) = datagrams.recv_from(&mut buf).expect("the datagram");
        assert_eq!(&buf[..n], b"knock");
        server.accept().expect("the connection");
    }
}

#[test]
fn the_gateway_is_the_hosts_loopback_when_allowed() {
    need!();
    let bed = Bed::new();
    let guest = bed.guest();
    let _proc = bed.attach(&guest, &With::defaults().host_loopback());
    guest.wait_v6();
    for family in Family::BOTH {
        let server = bed.host.listen(family.loopback());
        let port = server.local_addr().expect("an address").port();
        let to = SocketAddr::new(family.gateway(), port);
        let client = guest.ns.connect(to).unwrap_or_else(|e| panic!("connect to {to}: {e}"));
        let seen = accept(&server).peer_addr().expect("an address");
        assert_eq!(seen.ip(), family.loopback());
        drop(client);

        let server = bed.host.udp(family.loopback());
        let client = guest.ns.udp(family.any());
        let to = SocketAddr::new(family.gateway(), server.local_addr().expect("an address").port());
        client.send_to(b"ping", to).expect("send");
        let mut buf = [0; 10];
        let (_, from) = server.recv_from(&mut buf).expect("receive");
        server.send_to(b"pong", from).expect("send");
        let (n, from) = client.recv_from(&mut buf).expect("receive");
        assert_eq!((&buf[..n], from), (&b"pong"[..], to));
    }
}

/// Forbidden is told at once, as slirp4netns tells it: "Network is unreachable".
#[test]
fn forbidden_is_unreachable() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        if family == Family::V6 && against_slirp() {
            continue;
        }
        let server = bed.host.listen(family.loopback());
        let port = server.local_addr().expect("an address").port();
        let error = guest.ns.connect(SocketAddr::new(family.gateway(), port)).expect_err("no");
        assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{family:?}: {error}");
    }
}
