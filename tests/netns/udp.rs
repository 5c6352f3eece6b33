//! UDP: sizes, mappings, errors, and the way packets look at the far end.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{self, ControlMessageOwned, sockopt};
use socket2::SockRef;

use crate::harness::dgram::{addr, receive, receive_told, send};
use crate::harness::ns::Ns;
use crate::harness::{Bed, Family, Guest, With, against_slirp, eventually, need, not_slirp};

/// A datagram whose every byte depends on its length and place.
fn datagram(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ len) as u8).collect()
}

/// Expects that nothing comes. What could come has been sent before something that has come.
#[track_caller]
fn expect_nothing(socket: &UdpSocket) {
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("set a timeout");
    let mut buf = [0; 2000];
    match socket.recv_from(&mut buf) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
        Err(e) => panic!("instead of nothing: {e}"),
        Ok((n, from)) => panic!("{:?} from {from}", String::from_utf8_lossy(&buf[..n])),
    }
    socket.set_read_timeout(Some(crate::harness::ns::SOCKET_PATIENCE)).expect("set a timeout");
}

const MARKER: &[u8] = b"from here on";

/// There and back, from a guest at this MTU: 1472 and 1473 are the two sides of one Ethernet frame,
/// 65507 is the most that IPv4 can carry.
fn sizes(mtu: u32, sizes: &[usize]) {
    let (bed, guest, _proc) = Bed::up(&With::mtu(mtu));
    for family in Family::BOTH {
        let server = bed.remote.udp(family.remote());
        let client = guest.ns.udp(guest.addr(family));
        if mtu > 1500 && !against_slirp() {
            learn_path(&guest, &client, addr(&server));
            while receive(&server).0 != MARKER {}
        }
        for &size in sizes {
            let bytes = datagram(size);
            // Shown when the test fails: where it was.
            println!("MTU {mtu}, {family:?}, {size} bytes");
            send(&client, &bytes, addr(&server));
            let (got, from) = receive(&server);
            assert!(got == bytes, "{family:?}, {size} bytes up: {} came", got.len());
            assert_eq!(from.ip(), family.host());
            let mut back = bytes;
            back.reverse();
            send(&server, &back, from);
            let (got, from) = receive(&client);
            assert!(got == back, "{family:?}, {size} bytes down: {} came", got.len());
            assert_eq!(from, addr(&server));
        }
    }
}

/// A guest with a larger MTU than the path finds out as on any network: its first large datagram says
/// DF, is lost, and the error that comes back names the MTU.
fn learn_path(guest: &Guest, client: &UdpSocket, to: SocketAddr) {
    let route = format!("ip route get {}", to.ip());
    eventually("the guest knows the path's MTU", || {
        // EMSGSIZE is how a socket that set DF hears of it.
        let _ = client.send_to(&datagram(9000), to);
        guest.ns.cmd(&route).ok().contains("mtu 1500")
    });
    // Those sent after the news and before we saw it have arrived in fragments.
    send(client, MARKER, to);
}

#[test]
fn sizes_of_one_frame() {
    need!();
    sizes(1500, &[1, 2, 512, 1400, 1452]);
}

#[test]
fn every_size_at_mtu_1500() {
    need!();
    not_slirp!("loses empty datagrams and those of many fragments");
    sizes(1500, &[0, 1, 1452, 1453, 1472, 1473, 9000, 65507, 0]);
}

#[test]
fn every_size_at_mtu_65520() {
    need!();
    not_slirp!("loses empty datagrams and those of many fragments");
    sizes(65520, &[0, 1, 1472, 1473, 9000, 65472, 65507]);
}

/// RFC 4787, REQ-1: one socket of the guest is one address outside, whoever it talks to.
#[test]
fn one_guest_socket_is_one_address_outside() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let servers = [bed.remote.udp(family.remote()), bed.far.udp(family.far())];
        let client = guest.ns.udp(family.any());
        let seen = servers.each_ref().map(|server| {
            send(&client, b"who am I?", addr(server));
            receive(server).1
        });
        assert_eq!(seen[0], seen[1], "{family:?}");
        // Answers come from whom they came, in any order.
        for server in servers.iter().rev() {
            send(server, b"you", seen[0]);
            assert_eq!(receive(&client), (b"you".to_vec(), addr(server)));
        }
    }
}

/// Replies only from endpoints that the guest has sent to.
#[test]
fn strangers_stay_outside() {
    need!();
    not_slirp!("lets everybody in");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let (known, stranger) = (bed.remote.udp(family.remote()), bed.remote.udp(family.remote()));
        let client = guest.ns.udp(family.any());
        send(&client, b"hello", addr(&known));
        let (_, outside) = receive(&known);
        send(&stranger, b"let me in", outside);
        send(&known, b"welcome", outside);
        assert_eq!(receive(&client), (b"welcome".to_vec(), addr(&known)));
        expect_nothing(&client);
    }
}

#[test]
fn a_closed_port_is_refused() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let to = addr(&bed.remote.udp(family.remote()));
        let client = guest.ns.udp(family.any());
        client.connect(to).expect("connect");
        client.send(b"anybody?").expect("send");
        let error = client.recv(&mut [0; 10]).expect_err("nobody");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family:?}: {error}");
    }
}

#[test]
fn an_error_of_one_peer_is_not_the_others() {
    need!();
    not_slirp!("starts a new mapping after an error");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let server = bed.remote.udp(family.remote());
        let nobody = addr(&bed.remote.udp(family.remote()));
        let client = guest.ns.udp(family.any());
        for round in 0..50_u8 {
            send(&client, b"anybody?", nobody);
            send(&client, &[round], addr(&server));
            let (got, from) = receive(&server);
            assert_eq!(got, [round], "{family:?}");
            send(&server, &[!round], from);
            assert_eq!(receive(&client).0, [!round], "{family:?}");
        }
    }
}

#[test]
fn no_way_there() {
    need!();
    let (_bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let client = guest.ns.udp(family.any());
        // Without it Linux takes these errors for passing ones and keeps them from the socket.
        let set = match family {
            Family::V4 => socket::setsockopt(&client, sockopt::Ipv4RecvErr, &true),
            Family::V6 => socket::setsockopt(&client, sockopt::Ipv6RecvErr, &true),
        };
        set.expect("set IP_RECVERR");
        client.connect(SocketAddr::new(family.unreachable(), 9)).expect("connect");
        client.send(b"anybody?").expect("send");
        let error = client.recv(&mut [0; 10]).expect_err("nobody");
        let kinds = [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
        assert!(kinds.contains(&error.kind()), "{family:?}: {error}");
    }
}

/// The TTL and type of service with which a datagram arrives at the far end.
fn arrival(socket: &UdpSocket) -> (i32, i32) {
    let (mut ttl, mut tos) = (-1, -1);
    for control in receive_told(socket).1 {
        match control {
            ControlMessageOwned::Ipv4Ttl(n) | ControlMessageOwned::Ipv6HopLimit(n) => ttl = n,
            ControlMessageOwned::Ipv4Tos(n) => tos = n.into(),
            ControlMessageOwned::Ipv6TClass(n) => tos = n,
            _ => {}
        }
    }
    (ttl, tos)
}

fn observe(ns: &Ns, family: Family) -> UdpSocket {
    let socket = ns.udp(family.far());
    let set = |result: nix::Result<()>| result.expect("set a socket option");
    match family {
        Family::V4 => {
            set(socket::setsockopt(&socket, sockopt::Ipv4RecvTtl, &true));
            set(socket::setsockopt(&socket, sockopt::IpRecvTos, &true));
        }
        Family::V6 => {
            set(socket::setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true));
            set(socket::setsockopt(&socket, sockopt::Ipv6RecvTClass, &true));
        }
    }
    socket
}

/// The far end sees the TTL that the guest chose (less one hop: the router; the forwarder stands in for
/// the guest's own kernel) and its DSCP.
#[test]
fn ttl_and_dscp_arrive() {
    need!();
    not_slirp!("sends with the host's own TTL");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let server = observe(&bed.far, family);
        let client = guest.ns.udp(family.any());
        let client_ref = SockRef::from(&client);
        let mut seen = Vec::new();
        for (ttl, tos) in [(64, 0), (9, 0xb8), (200, 0x20)] {
            match family {
                Family::V4 => {
                    client_ref.set_ttl_v4(ttl).expect("set IP_TTL");
                    client_ref.set_tos_v4(tos).expect("set IP_TOS");
                }
                Family::V6 => {
                    client_ref.set_unicast_hops_v6(ttl).expect("set IPV6_UNICAST_HOPS");
                    client_ref.set_tclass_v6(tos).expect("set IPV6_TCLASS");
                }
            }
            send(&client, b"look at me", addr(&server));
            let (got_ttl, got_tos) = arrival(&server);
            assert_eq!(got_tos, tos as i32, "{family:?}");
            seen.push(ttl as i32 - got_ttl);
        }
        // One router, and one more hop if the forwarder counts itself as one.
        assert!(seen == [1, 1, 1] || seen == [2, 2, 2], "{family:?}: hops {seen:?}");
    }
}

/// Many sockets at once, each with its own conversation.
#[test]
fn five_hundred_sockets() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    let server = bed.remote.udp(Family::V4.remote());
    let clients: Vec<_> = (0..500_u16).map(|_| guest.ns.udp(Family::V4.any())).collect();
    for (n, client) in clients.iter().enumerate() {
        send(client, &(n as u16).to_be_bytes(), addr(&server));
        let (bytes, from) = receive(&server);
        assert_eq!(bytes, (n as u16).to_be_bytes());
        send(&server, &bytes, from);
    }
    for (n, client) in clients.iter().enumerate() {
        assert_eq!(receive(client), ((n as u16).to_be_bytes().to_vec(), addr(&server)));
    }
}
