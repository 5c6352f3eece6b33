//! UDP in runs: senders that give the kernel many datagrams at once, receivers that take many at once, and those
//! that know nothing of it. Every datagram arrives, whole and in its place.

use std::net::{SocketAddr, UdpSocket};

use nix::sys::socket::{self, ControlMessageOwned, sockopt};

use crate::harness::dgram::receive_told;
use crate::harness::{Bed, Family, With, need, not_slirp};

/// Datagrams of `size` bytes, the last of `last`, each with its number in front.
fn datagrams(first: u32, count: u32, size: usize, last: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|i| {
            let number = first + i;
            let len = if i + 1 == count { last } else { size };
            let mut bytes: Vec<u8> = (0..len).map(|b| (b as u32 * 31 + number) as u8).collect();
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            bytes
        })
        .collect()
}

/// What one call brings, cut into its datagrams.
#[track_caller]
fn receive(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let (bytes, told) = receive_told(socket);
    let size = told.iter().find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(size) => Some(*size as usize),
        _ => None,
    });
    bytes.chunks(size.unwrap_or(bytes.len()).max(1)).map(<[u8]>::to_vec).collect()
}

/// Sends runs from one socket to another and sees that all of each arrives, in order. How many calls it
/// took to receive them.
#[track_caller]
fn pass(from: &UdpSocket, to: &UdpSocket, at: SocketAddr, what: &str) -> usize {
    let (mut number, mut calls) = (0, 0);
    for (count, size, last) in [
        (1, 1000, 1000),
        (2, 1000, 4),
        (10, 1452, 1452),
        (44, 1400, 700),
        (64, 100, 100),
        (3, 5, 5),
    ] {
        let sent = datagrams(number, count, size, last);
        number += count;
        socket::setsockopt(from, sockopt::UdpGsoSegment, &(size as i32)).expect("set UDP_SEGMENT");
        let bytes = sent.concat();
        assert_eq!(from.send_to(&bytes, at).expect("send"), bytes.len());
        let mut got = Vec::new();
        while got.len() < sent.len() {
            got.extend(receive(to));
            calls += 1;
        }
        assert!(got == sent, "{what}: {count} of {size} bytes");
    }
    calls
}

#[test]
fn runs_arrive_whole_both_ways() {
    need!();
    not_slirp!("takes no runs");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        for gro in [false, true] {
            let server = bed.remote.udp(family.remote());
            let client = guest.ns.udp(family.any());
            for socket in [&server, &client] {
                socket::setsockopt(socket, sockopt::UdpGroSegment, &gro).expect("set UDP_GRO");
            }
            let to = server.local_addr().expect("an address");
            client.send_to(b"hello", to).expect("send");
            let (_, back) = server.recv_from(&mut [0; 10]).expect("receive");
            let up = pass(&client, &server, to, &format!("{family:?} up, UDP_GRO {gro}"));
            let down = pass(&server, &client, back, &format!("{family:?} down, UDP_GRO {gro}"));
            // 124 datagrams in 6 runs: who takes runs gets them as runs.
            let expected = if gro { 6 } else { 124 };
            assert_eq!((up, down), (expected, expected), "{family:?}, UDP_GRO {gro}");
        }
    }
}

/// A burst of single datagrams, as a program without `UDP_SEGMENT` sends them.
#[test]
fn a_burst_of_single_datagrams_arrives_in_order() {
    need!();
    not_slirp!("loses some of a burst");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let servers = [bed.remote.udp(family.remote()), bed.remote.udp(family.remote())];
        let client = guest.ns.udp(family.any());
        // Neighbours are found out first: until then a kernel keeps a few datagrams and drops more.
        for server in &servers {
            client.send_to(b"hello", server.local_addr().expect("an address")).expect("send");
            server.recv_from(&mut [0; 10]).expect("receive");
        }
        for round in 0..20 {
            let sent = datagrams(round * 60, 60, 500, 20);
            for datagram in &sent {
                for server in &servers {
                    let to = server.local_addr().expect("an address");
                    client.send_to(datagram, to).expect("send");
                }
            }
            for server in &servers {
                for datagram in &sent {
                    let mut buf = [0; 2000];
                    let len = server.recv(&mut buf).expect("receive");
                    let number =
                        |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    let (got, expected) = (number(&buf), number(datagram));
                    assert_eq!((got, len), (expected, datagram.len()), "{family:?}");
                    assert!(buf[..len] == **datagram, "{family:?}, number {got}");
                }
            }
        }
    }
}
