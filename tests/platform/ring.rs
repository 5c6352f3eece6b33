//! io_uring.

#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::thread;

use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};

use crate::bed::{Buffers, Ring, belief, errno};

/// A connection within the namespace.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (a, listener.accept().unwrap().0)
}

fn recv(socket: &TcpStream, len: u32) -> io_uring::squeue::Entry {
    opcode::Recv::new(Fd(socket.as_raw_fd()), std::ptr::null_mut(), len)
        .buf_group(0)
        .build()
        .flags(Flags::BUFFER_SELECT)
}

/// A socket that takes no more, and how much it has taken.
fn fill(socket: &TcpStream) -> usize {
    socket.set_nonblocking(true).unwrap();
    let mut n = 0;
    while let Ok(more) = (&mut &*socket).write(&[1; 65536]) {
        n += more;
    }
    n
}

#[test]
fn pending_receive_holds_no_buffer() {
    belief(|| {
        let pairs = [pair(), pair(), pair()];
        let mut ring = Ring::new(64);
        let mut buffers = Buffers::new(&ring, 1, 4096);
        for (i, (ours, _)) in pairs.iter().enumerate() {
            ring.push(recv(ours, 0), i as u64);
        }
        ring.quiet();
        (&pairs[1].1).write_all(b"one").unwrap();
        let cqe = ring.next();
        assert_eq!((cqe.data, buffers.bytes(cqe)), (1, &b"one"[..]));
        (&pairs[0].1).write_all(b"zero").unwrap();
        let none = ring.next();
        assert_eq!((none.data, none.res), (0, -libc::ENOBUFS));
        buffers.give(0);
        ring.push(recv(&pairs[0].0, 0), 0);
        let cqe = ring.next();
        assert_eq!(buffers.bytes(cqe), b"zero");
        "three receives shared one buffer; ENOBUFS lost nothing".into()
    });
}

#[test]
fn receive_takes_no_more_than_asked_and_tells_of_more() {
    belief(|| {
        let (ours, mut theirs) = pair();
        theirs.write_all(&[5; 3000]).unwrap();
        let mut ring = Ring::new(64);
        let mut buffers = Buffers::new(&ring, 1, 4096);
        for (len, want, more) in [(1000, 1000, true), (2000, 2000, false)] {
            ring.push(recv(&ours, len), 0);
            let cqe = ring.next();
            assert_eq!((cqe.res, cqueue::sock_nonempty(cqe.flags)), (want, more));
            buffers.give(0);
        }
        "1000 with SOCK_NONEMPTY, then 2000 without".into()
    });
}

#[test]
fn send_without_wait_takes_a_part_or_says_eagain() {
    belief(|| {
        let (ours, _theirs) = pair();
        let bytes = vec![2; 64 << 20];
        let mut ring = Ring::new(64);
        let send = || {
            opcode::Send::new(Fd(ours.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
                .flags(libc::MSG_DONTWAIT)
                .build()
        };
        ring.push(send(), 0);
        let part = ring.next().res;
        assert!(part > 0 && (part as usize) < bytes.len());
        fill(&ours);
        ring.push(send(), 0);
        assert_eq!(ring.next().res, -libc::EAGAIN);
        format!("{part} bytes of {}, then EAGAIN", bytes.len())
    });
}

#[test]
fn message_header_may_go_after_submission() {
    belief(|| {
        let (ours, mut theirs) = pair();
        let filled = fill(&ours);
        let payload: Vec<u8> = (0..1 << 20).map(|i| (i / 4096) as u8).collect();
        let mut ring = Ring::new(64);
        {
            let mut iov: Vec<_> = payload
                .chunks(64 << 10)
                .map(|c| libc::iovec { iov_base: c.as_ptr().cast_mut().cast(), iov_len: c.len() })
                .collect();
            // SAFETY: all-zero bytes are a valid `msghdr`.
            let mut hdr: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
            hdr.msg_iov = iov.as_mut_ptr();
            hdr.msg_iovlen = iov.len() as _;
            let send = opcode::SendMsg::new(Fd(ours.as_raw_fd()), &raw const *hdr)
                .flags(libc::MSG_WAITALL as u32);
            ring.push(send.build(), 0);
            // Poisoned, then freed.
            iov.fill(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 << 40 });
            hdr.msg_iov = std::ptr::dangling_mut();
        }
        ring.quiet();
        let reader = thread::spawn(move || {
            let mut got = vec![0; filled + (1 << 20)];
            theirs.read_exact(&mut got).unwrap();
            got.split_off(filled)
        });
        assert_eq!(ring.next().res, 1 << 20);
        assert!(reader.join().unwrap() == payload);
        "a send that waited used its own copy of header and iovecs".into()
    });
}

#[test]
fn close_ends_nothing_but_cancel_does_and_tells_what_was_taken() {
    belief(|| {
        let (ours, mut theirs) = pair();
        let filled = fill(&ours);
        // More than the peer's reading below can make room for.
        let payload = vec![3; 64 << 20];
        let mut ring = Ring::new(64);
        let send = opcode::Send::new(Fd(ours.as_raw_fd()), payload.as_ptr(), payload.len() as u32)
            .flags(libc::MSG_WAITALL);
        ring.push(send.build(), 0);
        ring.quiet();
        // A second descriptor to cancel by; the first one is closed.
        let other = ours.try_clone().unwrap();
        // SAFETY: the descriptor is ours; `into_raw_fd` has given it up.
        unsafe { libc::close(ours.into_raw_fd()) };
        ring.quiet();
        // The peer takes what was there before, so that a part of the send is taken too.
        theirs.read_exact(&mut vec![0; filled]).unwrap();
        ring.quiet();
        // By the descriptor's file: any descriptor of it names the operation.
        let (count, cqe) = ring.cancel_one(other.as_raw_fd());
        assert_eq!(count, 1);
        assert!(cqe.res > 0 && (cqe.res as usize) < payload.len(), "{cqe:?}");
        drop(other);
        let mut rest = vec![];
        theirs.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), cqe.res as usize);
        format!("cancelled after {} bytes, which is what the peer read", cqe.res)
    });
}

#[test]
fn cancelled_before_any_byte_is_ecanceled() {
    belief(|| {
        let (ours, _theirs) = pair();
        fill(&ours);
        let mut ring = Ring::new(64);
        let bytes = [0; 100];
        let send = opcode::Send::new(Fd(ours.as_raw_fd()), bytes.as_ptr(), 100);
        ring.push(send.build(), 0);
        ring.quiet();
        let (count, cqe) = ring.cancel_one(ours.as_raw_fd());
        assert_eq!((count, cqe.res), (1, -libc::ECANCELED));
        "one completion for the cancel, one for the send".into()
    });
}

#[test]
fn only_the_maker_may_submit() {
    belief(|| {
        let mut ring = Ring::new(64);
        ring.push(opcode::Nop::new().build(), 1);
        assert_eq!(ring.next().data, 1);
        // SAFETY: a no-op names no memory.
        unsafe { ring.0.submission().push(&opcode::Nop::new().build()).unwrap() };
        let submit = thread::scope(|s| s.spawn(|| errno(ring.0.submit())).join().unwrap());
        assert_eq!(submit, libc::EEXIST);
        "EEXIST for another thread".into()
    });
}

#[test]
fn waiting_may_be_kept_out_of_iowait_and_times_out() {
    belief(|| {
        let ring = Ring::new(64);
        let has = ring.0.params().is_feature_no_iowait();
        let flags = if has { EnterFlags::NO_IOWAIT } else { EnterFlags::empty() };
        let timespec = Timespec::new().nsec(1_000_000);
        let args = SubmitArgs::new().timespec(&timespec);
        let wait = ring.0.submitter().submit_with_args_and_flags(1, &args, flags);
        assert_eq!(errno(wait), libc::ETIME);
        format!("NO_IOWAIT: {has}; a wait ends by ETIME")
    });
}

#[test]
fn nothing_is_written_after_the_ring_is_dropped() {
    belief(|| {
        let pairs: Vec<_> = (0..8).map(|_| pair()).collect();
        let mut ring = Ring::new(64);
        let mut memory = vec![0u8; 8 * 4096];
        for (i, (ours, _)) in pairs.iter().enumerate() {
            let at = memory[i * 4096..].as_mut_ptr();
            ring.push(opcode::Recv::new(Fd(ours.as_raw_fd()), at, 4096).build(), i as u64);
        }
        ring.quiet();
        drop(ring);
        for (ours, theirs) in &pairs {
            (&mut &*theirs).write_all(&[9; 1000]).unwrap();
            let mut got = [0; 1000];
            // Nobody took the bytes away.
            (&mut &*ours).read_exact(&mut got).unwrap();
            assert_eq!(got, [9; 1000]);
        }
        assert!(memory.iter().all(|&b| b == 0));
        "8 receives in flight: buffers untouched, all bytes still in the sockets".into()
    });
}

#[test]
fn sync_cancel_leaves_nothing_in_flight() {
    belief(|| {
        let pairs: Vec<_> = (0..8).map(|_| pair()).collect();
        let mut ring = Ring::new(64);
        let _buffers = Buffers::new(&ring, 8, 4096);
        for (i, (ours, _)) in pairs.iter().enumerate() {
            ring.push(recv(ours, 0), i as u64);
        }
        ring.0
            .submitter()
            .register_sync_cancel(None, io_uring::types::CancelBuilder::any())
            .unwrap();
        for _ in 0..8 {
            assert_eq!(ring.next().res, -libc::ECANCELED);
        }
        ring.quiet();
        "8 of 8 completions".into()
    });
}

/// A ring that is set up and not started.
fn disabled() -> IoUring {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_r_disabled()
        .build(16)
        .unwrap()
}

#[test]
fn a_disabled_ring_takes_its_buffers_but_no_entry_and_no_message() {
    belief(|| {
        let mut ring = Ring(disabled());
        let _buffers = Buffers::new(&ring, 1, 4096);
        // SAFETY: a NOP names no memory.
        unsafe { ring.0.submission().push(&opcode::Nop::new().build()).unwrap() };
        assert_eq!(errno(ring.0.submit()), libc::EBADFD);
        let mut other = Ring::new(64);
        let bell = || opcode::MsgRingData::new(Fd(ring.0.as_raw_fd()), 0, 7, None).build();
        other.push(bell(), 0);
        assert_eq!(other.next().res, -libc::EBADFD);
        ring.0.submitter().register_enable_rings().unwrap();
        other.push(bell(), 0);
        assert_eq!(other.next().res, 0);
        // What was queued before it was enabled is submitted now.
        ring.0.submit().unwrap();
        let (a, b) = (ring.next().data, ring.next().data);
        assert_eq!((a.min(b), a.max(b)), (0, 7));
        "buffers yes, entries and messages EBADFD; all of it works once it is enabled".into()
    });
}

#[test]
fn a_restricted_ring_does_what_its_list_has_and_nothing_else() {
    belief(|| {
        let (ours, theirs) = pair();
        let mut ring = Ring(disabled());
        let mut buffers = Buffers::new(&ring, 1, 4096);
        let mut list = [
            Restriction::sqe_op(opcode::Recv::CODE),
            Restriction::sqe_flags_allowed(Flags::BUFFER_SELECT.bits()),
        ];
        ring.0.submitter().register_restrictions(&mut list).unwrap();
        ring.0.submitter().register_enable_rings().unwrap();
        ring.push(opcode::Nop::new().build(), 0);
        assert_eq!(ring.next().res, -libc::EACCES);
        ring.push(recv(&ours, 0).flags(Flags::ASYNC), 0);
        assert_eq!(ring.next().res, -libc::EACCES);
        ring.push(recv(&ours, 0), 0);
        (&theirs).write_all(b"yes").unwrap();
        let cqe = ring.next();
        assert_eq!(buffers.bytes(cqe), b"yes");
        buffers.give(0);
        // Not listed: no way of io_uring_register is.
        let cancel = io_uring::types::CancelBuilder::any();
        assert_eq!(errno(ring.0.submitter().register_sync_cancel(None, cancel)), libc::EACCES);
        assert_eq!(errno(ring.0.submitter().register_restrictions(&mut list)), libc::EACCES);
        // A message into it is the sender's operation.
        let mut other = Ring::new(64);
        other.push(opcode::MsgRingData::new(Fd(ring.0.as_raw_fd()), 0, 7, None).build(), 0);
        assert_eq!((other.next().res, ring.next().data), (0, 7));
        "operation, flag and register call refused by EACCES; a message comes through".into()
    });
}

#[test]
fn without_a_list_of_flags_no_entry_may_have_one() {
    belief(|| {
        let (ours, _theirs) = pair();
        let mut ring = Ring(disabled());
        let _buffers = Buffers::new(&ring, 1, 4096);
        let mut list = [Restriction::sqe_op(opcode::Recv::CODE)];
        ring.0.submitter().register_restrictions(&mut list).unwrap();
        ring.0.submitter().register_enable_rings().unwrap();
        ring.push(recv(&ours, 0), 0);
        assert_eq!(ring.next().res, -libc::EACCES);
        "BUFFER_SELECT: EACCES".into()
    });
}
