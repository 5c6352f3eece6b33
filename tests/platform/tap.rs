//! The TAP.

#![allow(unsafe_code)]

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{opcode, types};
use ringtap::arena::{Arena, Slot};
use ringtap::frame::build::{self, Out};
use ringtap::frame::{self, Pair, vnet};
use ringtap::limits::{HEADROOM, SLOT_BYTES};
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use crate::bed::{Buffers, Ring, belief, check, errno, guest, guest_mac, ip, open_tap, write};

const VNET: i32 = libc::IFF_VNET_HDR;
const CSUM: u32 = libc::TUN_F_CSUM;
const TSO4: u32 = libc::TUN_F_TSO4;
const TSO6: u32 = libc::TUN_F_TSO6;
const ECN: u32 = libc::TUN_F_TSO_ECN;
const USO4: u32 = libc::TUN_F_USO4;
const USO6: u32 = libc::TUN_F_USO6;

fn offload(tap: &OwnedFd, flags: u32) -> i32 {
    // SAFETY: the descriptor is open, the argument a number.
    errno(check(unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags))
    }))
}

/// A read of the TAP.
fn read_multi(tap: &OwnedFd) -> io_uring::squeue::Entry {
    opcode::ReadMulti::new(types::Fd(tap.as_raw_fd()), 0, 0).build()
}

/// Datagrams whose payload is their number.
fn send_numbered(numbers: std::ops::Range<u32>) {
    let socket = UdpSocket::bind("10.0.2.100:0").unwrap();
    for n in numbers {
        socket.send_to(&n.to_be_bytes(), "10.0.2.2:9").unwrap();
    }
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(*frame.last_chunk().unwrap())
}

fn payload(bytes: &[u8]) -> Slot {
    let mut slot = Arena::new(SLOT_BYTES, 1).unwrap().take().unwrap();
    slot.set_range(HEADROOM, bytes.len());
    slot.bytes_mut().copy_from_slice(bytes);
    slot
}

fn out() -> Out {
    let pair = Pair::V4(Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 100));
    Out { eth_src: [2; 6], eth_dst: guest_mac(), pair, ttl: 64, tos: 0, df: true }
}

#[test]
fn multishot_read_that_ran_out_of_buffers_loses_nothing() {
    belief(|| {
        let tap = guest(VNET, 1500);
        let mut ring = Ring::new(256);
        let mut buffers = Buffers::new(&ring, 16, 2048);
        send_numbered(0..40);
        let (mut seen, mut ends) = (0, 0);
        while seen < 40 {
            ring.push(read_multi(&tap), 1);
            let mut used = vec![];
            loop {
                let cqe = ring.next();
                if cqe.res == -libc::ENOBUFS {
                    assert!(!cqe.more());
                    ends += 1;
                    break;
                }
                assert_eq!(number(buffers.bytes(cqe)), seen);
                seen += 1;
                used.extend(cqe.bid());
                if seen == 40 {
                    break;
                }
            }
            used.into_iter().for_each(|bid| buffers.give(bid));
        }
        assert_eq!(ends, 2);
        "40 frames in order through 16 buffers, the read armed 3 times".into()
    });
}

#[test]
fn full_completion_queue_ends_multishot_with_data_in_the_last() {
    belief(|| {
        let tap = guest(VNET, 1500);
        let mut ring = Ring::new(16);
        let buffers = Buffers::new(&ring, 64, 2048);
        send_numbered(0..40);
        ring.push(read_multi(&tap), 1);
        let mut ends = 0;
        for n in 0..40 {
            let cqe = ring.next();
            assert!(cqe.res > 0, "{cqe:?}");
            assert_eq!(number(buffers.bytes(cqe)), n);
            if !cqe.more() {
                ends += 1;
                ring.push(read_multi(&tap), 1);
            }
        }
        assert!(ends > 0);
        format!("40 frames in order through 16 entries, {ends} of them without MORE")
    });
}

#[test]
fn offloads_come_in_these_combinations() {
    belief(|| {
        let tap = open_tap(VNET).unwrap();
        let all = CSUM | TSO4 | TSO6 | ECN;
        for flags in [0, CSUM, CSUM | TSO4, CSUM | TSO4 | TSO6, all] {
            assert_eq!(offload(&tap, flags), 0, "{flags:#x}");
        }
        for flags in [TSO4, USO4 | USO6, CSUM | ECN, CSUM | USO4, CSUM | USO6, 1 << 9] {
            assert_eq!(offload(&tap, flags), libc::EINVAL, "{flags:#x}");
        }
        let uso = offload(&tap, all | USO4 | USO6);
        assert!(uso == 0 || uso == libc::EINVAL);
        format!("CSUM first, USO as a pair; USO itself: {}", if uso == 0 { "yes" } else { "no" })
    });
}

#[test]
fn super_frame_with_unfinished_checksum_is_delivered_as_one() {
    belief(|| {
        let tap = guest(VNET, 1500);
        // What AF_PACKET sees in the guest.
        // SAFETY: a call with three numbers.
        let fd =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0x0300) };
        assert!(fd >= 0);
        // SAFETY: a descriptor just made, owned by nobody else.
        let packets = unsafe { <UdpSocket as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        let mut slot = payload(&vec![7; 60_000]);
        let repr = TcpRepr {
            src_port: 80,
            dst_port: 4000,
            control: TcpControl::None,
            seq_number: TcpSeqNumber(1),
            ack_number: Some(TcpSeqNumber(1)),
            window_len: 1000,
            ..build::EMPTY_TCP
        };
        build::tcp(&mut slot, &out(), &repr, 1460);
        assert_eq!(write(&tap, slot.bytes()).unwrap(), slot.len());
        let mut buffer = vec![0; 70_000];
        let seen: Vec<_> = std::iter::from_fn(|| packets.recv(&mut buffer).ok()).collect();
        assert!(seen.contains(&60_054), "{seen:?}");
        assert!(!seen.contains(&1514), "cut on its way in: {seen:?}");
        "one frame of 60054 bytes at MTU 1500".into()
    });
}

#[test]
fn run_of_datagrams_is_cut_by_the_guest_kernel() {
    belief(|| {
        let tap = guest(VNET, 1500);
        let socket = UdpSocket::bind("10.0.2.100:53").unwrap();
        socket.set_nonblocking(true).unwrap();
        let bytes: Vec<u8> = (0..9500).map(|i| (i / 1000) as u8).collect();
        let mut slot = payload(&bytes);
        build::udp(&mut slot, &out(), 5000, 53, 1000);
        write(&tap, slot.bytes()).unwrap();
        let mut buffer = [0; 2000];
        // Readable as soon as write() has returned: a write to a TAP is synchronous.
        for n in 0..10 {
            let len = socket.recv(&mut buffer).expect("a datagram");
            assert_eq!((len, buffer[0]), (if n == 9 { 500 } else { 1000 }, n));
        }
        "10 datagrams, the last one short, at once".into()
    });
}

#[test]
fn guest_hands_over_more_than_its_mtu() {
    belief(|| {
        let tap = guest(VNET, 1500);
        assert_eq!(offload(&tap, CSUM | TSO4 | TSO6 | ECN | USO4 | USO6), 0);
        let socket = UdpSocket::bind("10.0.2.100:0").unwrap();
        let segment: libc::c_int = 1000;
        // SAFETY: the option's value is an `int` that lives through the call.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                (&raw const segment).cast(),
                4,
            )
        })
        .unwrap();
        socket.send_to(&[1; 9500], "10.0.2.2:9").unwrap();
        let mut ring = Ring::new(64);
        let buffers = Buffers::new(&ring, 4, 65_564);
        ring.push(read_multi(&tap), 1);
        let cqe = ring.next();
        let parsed = frame::parse(buffers.bytes(cqe)).unwrap();
        assert_eq!((parsed.vnet.gso_type, parsed.vnet.gso_size), (vnet::GSO_UDP_L4, 1000));
        assert_eq!(cqe.res, 10 + 14 + 20 + 8 + 9500);
        "a run of ten datagrams in one frame".into()
    });
}

#[test]
fn open_descriptor_keeps_the_namespace_and_never_tells_of_its_end() {
    belief(|| {
        // The only thread of a namespace opens a TAP and ends.
        let tap = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            guest(VNET, 1500)
        })
        .join()
        .unwrap();
        let mut ring = Ring::new(64);
        let _buffers = Buffers::new(&ring, 4, 65_564);
        ring.push(read_multi(&tap), 1);
        ring.quiet();
        // SAFETY: no argument; returns a descriptor of its own.
        let ns = check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETDEVNETNS as _) });
        assert!(ns.is_ok(), "{ns:?}");
        let mut slot = payload(b"x");
        slot.prepend(0);
        build::ethernet(&mut slot, [2; 6], [0xff; 6], smoltcp::wire::EthernetProtocol::Arp);
        assert!(write(&tap, slot.bytes()).is_ok());
        "the interface lives on, without a sign".into()
    });
}

#[test]
fn link_down_is_eio_and_deletion_is_ebadfd() {
    belief(|| {
        let tap = guest(VNET, 1500);
        let mut ring = Ring::new(64);
        let buffers = Buffers::new(&ring, 16, 2048);
        ring.push(read_multi(&tap), 1);
        let frame = [0; 64];
        ip("link set tap0 down");
        assert_eq!(errno(write(&tap, &frame)), libc::EIO);
        ring.quiet();
        ip("link set tap0 up");
        ip("neigh replace 10.0.2.2 lladdr 52:55:0a:00:02:02 dev tap0 nud permanent");
        send_numbered(5..6);
        let cqe = ring.next();
        assert!(cqe.more() && number(buffers.bytes(cqe)) == 5);
        ip("link del tap0");
        let cqe = ring.next();
        assert!(!cqe.more());
        assert_eq!(cqe.res, -libc::EBADFD);
        assert_eq!(errno(write(&tap, &frame)), libc::EBADFD);
        ring.push(read_multi(&tap), 1);
        assert_eq!(ring.next().res, -libc::EBADFD);
        "a read survives link down; deletion ends it".into()
    });
}

#[test]
fn persistent_single_queue_interface_takes_a_header_but_not_queues() {
    belief(|| {
        ip("tuntap add tap0 mode tap");
        assert_eq!(errno(open_tap(VNET | libc::IFF_MULTI_QUEUE)), libc::EINVAL);
        let holder = open_tap(VNET).expect("attach with a virtio header");
        assert_eq!(offload(&holder, CSUM | TSO4 | TSO6), 0);
        assert_eq!(errno(open_tap(VNET)), libc::EBUSY);
        "IFF_MULTI_QUEUE: EINVAL, IFF_VNET_HDR: yes, second holder: EBUSY".into()
    });
}

#[test]
fn short_buffer_truncates_without_a_sign() {
    belief(|| {
        let tap = guest(VNET, 1500);
        let socket = UdpSocket::bind("10.0.2.100:0").unwrap();
        socket.send_to(&[3; 1000], "10.0.2.2:9").unwrap();
        let mut ring = Ring::new(64);
        let buffers = Buffers::new(&ring, 4, 256);
        ring.push(read_multi(&tap), 1);
        let cqe = ring.next();
        assert_eq!((cqe.res, cqe.more()), (256, true));
        assert!(frame::parse(buffers.bytes(cqe)).is_err());
        "256 of 1052 bytes, and only the IP length tells".into()
    });
}

#[test]
fn address_without_dad_is_usable_at_once() {
    belief(|| {
        let _tap = open_tap(VNET).unwrap();
        ip("link set tap0 up");
        ip("addr add fd00::100/64 dev tap0 nodad");
        ip("addr add fd00::101/64 dev tap0");
        UdpSocket::bind("[fd00::100]:0").expect("an address without DAD");
        // The other one is tentative for a second or more; that it is not yet usable cannot be
        // asserted without a clock, so it is only told.
        let other = UdpSocket::bind("[fd00::101]:0");
        format!("with DAD, at the same moment: {other:?}")
    });
}
