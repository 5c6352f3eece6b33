//! Datagram sockets under the ring.

#![allow(unsafe_code)]

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, RecvMsgOut};
use io_uring::{opcode, squeue};

use crate::bed::{Buffers, Cqe, Ring, belief, check, errno, guest};

/// Multishot `recvmsg` into group 0, with room for an address and 128 bytes of control data.
fn recv(socket: &UdpSocket, hdr: &libc::msghdr, flags: i32) -> squeue::Entry {
    opcode::RecvMsgMulti::new(Fd(socket.as_raw_fd()), &raw const *hdr, 0)
        .flags(flags as u32)
        .build()
}

fn header() -> libc::msghdr {
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut hdr: libc::msghdr = unsafe { std::mem::zeroed() };
    hdr.msg_namelen = 28;
    hdr.msg_controllen = 128;
    hdr
}

fn option(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    // SAFETY: the option's value is an `int` that lives through the call.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), 4)
    })
    .unwrap();
}

fn payload(buffers: &Buffers, cqe: Cqe, hdr: &libc::msghdr) -> Vec<u8> {
    RecvMsgOut::parse(buffers.bytes(cqe), hdr).unwrap().payload_data().to_vec()
}

#[test]
fn empty_datagram_ends_multishot_receive() {
    belief(|| {
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let theirs = UdpSocket::bind("127.0.0.1:0").unwrap();
        theirs.connect(ours.local_addr().unwrap()).unwrap();
        let mut ring = Ring::new(64);
        let buffers = Buffers::new(&ring, 16, 4096);
        let hdr = header();
        ring.push(recv(&ours, &hdr, 0), 0);
        theirs.send(b"a").unwrap();
        let cqe = ring.next();
        assert!(cqe.more() && payload(&buffers, cqe, &hdr) == b"a");
        theirs.send(b"").unwrap();
        let empty = ring.next();
        assert_eq!(payload(&buffers, empty, &hdr), b"");
        let more = empty.more();
        theirs.send(b"b").unwrap();
        if !more {
            ring.push(recv(&ours, &hdr, 0), 0);
        }
        let cqe = ring.next();
        assert_eq!(payload(&buffers, cqe, &hdr), b"b");
        // The code re-arms whenever MORE is missing, so both answers are safe; this says which.
        format!("delivered with MORE: {more}; the next one follows after re-arming")
    });
}

#[test]
fn error_queue_comes_through_the_ring() {
    belief(|| {
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        option(&ours, libc::IPPROTO_IP, libc::IP_RECVERR, 1);
        let mut ring = Ring::new(64);
        let buffers = Buffers::new(&ring, 16, 4096);
        let hdr = header();
        ring.push(recv(&ours, &hdr, libc::MSG_ERRQUEUE), 1);
        ring.quiet();
        for n in 0..2u8 {
            ours.send_to(&[n, 9], "127.0.0.1:1").unwrap();
            let cqe = ring.next();
            assert!(cqe.res > 0, "{cqe:?}");
            let out = RecvMsgOut::parse(buffers.bytes(cqe), &hdr).unwrap();
            assert_eq!(out.payload_data(), [n, 9]);
            // Where it was going: port 1 of 127.0.0.1.
            assert_eq!(out.name_data()[2..8], [0, 1, 127, 0, 0, 1]);
            // `cmsghdr` (16 bytes), then `sock_extended_err`: errno, origin ICMP, type 3, code 3.
            let control = out.control_data();
            let errno = i32::from_ne_bytes(*control[16..].first_chunk().unwrap());
            assert_eq!(errno, libc::ECONNREFUSED);
            assert_eq!(control[20..23], [2, 3, 3]);
            if !cqe.more() {
                ring.push(recv(&ours, &hdr, libc::MSG_ERRQUEUE), 1);
            }
        }
        "pending on an empty queue, then both errors with destination and payload".into()
    });
}

#[test]
fn error_fails_the_data_side_once_and_loses_no_datagram() {
    belief(|| {
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        option(&ours, libc::IPPROTO_IP, libc::IP_RECVERR, 1);
        let theirs = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut ring = Ring::new(64);
        let buffers = Buffers::new(&ring, 16, 4096);
        let hdr = header();
        ring.push(recv(&ours, &hdr, 0), 0);
        ring.quiet();
        ours.send_to(b"x", "127.0.0.1:1").unwrap();
        let cqe = ring.next();
        assert_eq!((cqe.res, cqe.more()), (-libc::ECONNREFUSED, false));
        theirs.send_to(b"y", ours.local_addr().unwrap()).unwrap();
        ring.push(recv(&ours, &hdr, 0), 0);
        let cqe = ring.next();
        assert_eq!(payload(&buffers, cqe, &hdr), b"y");
        "ECONNREFUSED ends it; after re-arming data follows".into()
    });
}

#[test]
fn segmented_sends_have_these_limits() {
    belief(|| {
        let _tap = guest(libc::IFF_VNET_HDR, 1500);
        let ours = UdpSocket::bind("10.0.2.100:0").unwrap();
        let send = |segment: i32, total: usize| {
            option(&ours, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
            errno(ours.send_to(&vec![0; total], "10.0.2.2:9"))
        };
        assert_eq!(send(100, 64 * 100), 0);
        let more = send(100, 128 * 100);
        assert!(more == 0 || more == libc::EINVAL);
        assert_eq!(send(100, 129 * 100), libc::EINVAL);
        assert_eq!(send(1400, 65_508), libc::EMSGSIZE);
        assert_eq!(send(1473, 3000), libc::EMSGSIZE);
        assert_eq!(send(1472, 3000), 0);
        assert_eq!(send(1000, 1000), 0);
        format!("64 segments; 128: {}; a segment must fit the MTU", more == 0)
    });
}

#[test]
fn received_batches_are_coalesced_with_their_size() {
    belief(|| {
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        option(&ours, libc::SOL_UDP, libc::UDP_GRO, 1);
        let theirs = UdpSocket::bind("127.0.0.1:0").unwrap();
        option(&theirs, libc::SOL_UDP, libc::UDP_SEGMENT, 1000);
        let mut ring = Ring::new(64);
        let buffers = Buffers::new(&ring, 4, 65_536);
        let hdr = header();
        ring.push(recv(&ours, &hdr, 0), 0);
        theirs.send_to(&[6; 9500], ours.local_addr().unwrap()).unwrap();
        let cqe = ring.next();
        let out = RecvMsgOut::parse(buffers.bytes(cqe), &hdr).unwrap();
        assert_eq!(out.payload_data(), [6; 9500]);
        let size = i32::from_ne_bytes(*out.control_data()[16..].first_chunk().unwrap());
        assert_eq!(size, 1000);
        "9500 bytes at once, UDP_GRO says 1000".into()
    });
}
