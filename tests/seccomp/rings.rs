//! What the workers' rings refuse.

use std::io;

use io_uring::{opcode, squeue, types};
use ringtap::arena::Arena;
use ringtap::limits::SLOT_BYTES;

use crate::ring::{BufRing, FLAGS, OPERATIONS, REGISTER, Ring};

/// An entry of one's own, with no descriptor.
fn entry(operation: u8, flags: u8) -> squeue::Entry {
    let mut bytes = [0u8; size_of::<squeue::Entry>()];
    assert_eq!(bytes.len(), 64, "the kernel's struct io_uring_sqe");
    bytes[0] = operation;
    bytes[1] = flags;
    bytes[4..8].copy_from_slice(&(-1i32).to_ne_bytes());
    // user_data
    bytes[32..40].copy_from_slice(&(u64::from(operation) | u64::from(flags) << 8).to_ne_bytes());
    // SAFETY: `Entry` is the kernel's struct (64 bytes, just seen) of plain numbers, for which any bytes are valid.
    unsafe { std::mem::transmute_copy(&bytes) }
}

/// What the kernel says to entries that name no descriptor and no memory, in their order.
fn submit(entries: &[squeue::Entry]) -> Vec<i32> {
    let arena = Arena::new(SLOT_BYTES, 4).unwrap();
    let mut ring = Ring::new().unwrap();
    let buffers = BufRing::new(&ring, 0, 4, &arena, 0).unwrap();
    ring.restrict().unwrap();
    ring.enable().unwrap();
    let mut results = Vec::new();
    for entry in entries {
        // SAFETY: it names no memory: every operation here fails for its lack of a descriptor, at the latest.
        unsafe { ring.push(entry) }.unwrap();
        ring.turn(None).unwrap();
        results.push(ring.completion().unwrap().result());
    }
    drop(ring);
    drop(buffers);
    results
}

#[test]
fn operations_that_workers_have_no_use_for() {
    let all: Vec<_> = (0..=u8::MAX).collect();
    let entries: Vec<_> = all.iter().map(|&operation| entry(operation, 0)).collect();
    let results = submit(&entries);
    let refused = |operation: u8| results[usize::from(operation)] == -libc::EACCES;
    for operation in all {
        match results[usize::from(operation)] {
            result if OPERATIONS.contains(&operation) => {
                assert!(![-libc::EACCES, 0].contains(&result), "{operation}: {result}");
            }
            // No such operation in this kernel.
            result => assert!([-libc::EACCES, -libc::EINVAL].contains(&result), "{operation}"),
        }
    }
    for (name, operation) in [
        ("openat", opcode::OpenAt::CODE),
        ("openat2", opcode::OpenAt2::CODE),
        ("close", opcode::Close::CODE),
        ("socket", opcode::Socket::CODE),
        ("bind", opcode::Bind::CODE),
        ("listen", opcode::Listen::CODE),
        ("unlinkat", opcode::UnlinkAt::CODE),
        ("renameat", opcode::RenameAt::CODE),
        ("mkdirat", opcode::MkDirAt::CODE),
        ("linkat", opcode::LinkAt::CODE),
        ("symlinkat", opcode::SymlinkAt::CODE),
        ("statx", opcode::Statx::CODE),
        ("splice", opcode::Splice::CODE),
        ("uring_cmd", opcode::UringCmd16::CODE),
        ("files_update", opcode::FilesUpdate::CODE),
        ("provide_buffers", opcode::ProvideBuffers::CODE),
        ("fixed_fd_install", opcode::FixedFdInstall::CODE),
        ("setxattr", opcode::SetXattr::CODE),
        ("epoll_ctl", opcode::EpollCtl::CODE),
        ("waitid", opcode::WaitId::CODE),
        ("futex_wait", opcode::FutexWait::CODE),
        ("send_zc", opcode::SendZc::CODE),
    ] {
        assert!(refused(operation), "{name}");
    }
}

#[test]
fn flags_that_workers_have_no_use_for() {
    let bits: Vec<u8> = (0..7).map(|bit| 1 << bit).collect();
    let entries: Vec<_> = bits.iter().map(|&flag| entry(opcode::Recv::CODE, flag)).collect();
    for (flag, result) in bits.iter().zip(submit(&entries)) {
        let allowed = FLAGS.bits() & flag != 0;
        assert_eq!(result == -libc::EACCES, !allowed, "{flag:#x}: {result}");
    }
}

#[test]
fn a_ring_that_runs_is_not_changed() {
    let ring = Ring::new().unwrap();
    ring.restrict().unwrap();
    ring.enable().unwrap();
    for operation in (0..=40).filter(|&operation| operation != u32::from(REGISTER)) {
        // SAFETY: no memory is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                ring.fd(),
                operation,
                std::ptr::null::<u8>(),
                0,
            )
        };
        let errno = io::Error::last_os_error().raw_os_error();
        assert!(result < 0, "{operation}");
        // EINVAL: this kernel has no such operation.
        let known = operation <= 33;
        assert!(
            errno == Some(libc::EACCES) || !known && errno == Some(libc::EINVAL),
            "{operation}: {errno:?}"
        );
    }
    assert!(ring.restrict().is_err(), "restrictions are for ever");
}

#[test]
fn nothing_runs_before_it_is_restricted() {
    let mut ring = Ring::new().unwrap();
    let nobody = opcode::PollAdd::new(types::Fd(-1), 0).build();
    // SAFETY: a poll names no memory.
    unsafe { ring.push(&nobody) }.unwrap();
    assert_eq!(ring.submit().unwrap_err().raw_os_error(), Some(libc::EBADFD));
}
