//! The ring: set-up, one `io_uring_enter` per turn (and some while it is watched), and the provided-buffer rings.
//!
//! A ring can open, connect and read like the process that has it, and no filter of system calls sees what it does.
//! So each is made disabled, gets what it needs (its buffers are registered), loses everything else for
//! good ([`Ring::restrict`]), and only then [starts](Ring::enable).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use io_uring::register::Restriction;
use io_uring::types::{BufRingEntry, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use crate::arena::{Arena, Slot};
use crate::limits::{CQ_ENTRIES, SPIN_YIELD, SQ_ENTRIES};

/// The oldest kernel with all we use: `IORING_OP_READ_MULTISHOT` came with 6.7.
pub const OLDEST_KERNEL: &str = "6.7";

/// What workers do by the ring: descriptors that are there are read, written, connected, accepted from and
/// waited for. None of it opens a file or makes a socket but `Accept`, or takes a path.
pub(super) const OPERATIONS: [u8; 12] = [
    opcode::ReadMulti::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Send::CODE,
    opcode::SendMsg::CODE,
    opcode::Recv::CODE,
    // Multishot, too.
    opcode::RecvMsg::CODE,
    opcode::Connect::CODE,
    // Multishot, too.
    opcode::Accept::CODE,
    opcode::PollAdd::CODE,
    opcode::AsyncCancel::CODE,
    opcode::MsgRingData::CODE,
];

/// Flags that entries may have. No fixed files, no chains, no kernel threads.
pub(super) const FLAGS: squeue::Flags =
    squeue::Flags::BUFFER_SELECT.union(squeue::Flags::SKIP_SUCCESS);

/// `IORING_REGISTER_SYNC_CANCEL` (linux/io_uring.h): the only way of `io_uring_register(2)` that is left.
pub(super) const REGISTER: u8 = 24;

/// Time is up, a signal, or the completion queue is full: the next turn goes on.
fn go_on(e: io::Error) -> io::Result<()> {
    match e.raw_os_error() {
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
        _ => Err(e),
    }
}

/// What came of [watching](Ring::watch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// There is a completion.
    Come,
    /// There is none, and it may be waited for.
    Nothing,
    /// So too, and somebody else has had the processor meanwhile.
    Contested,
}

/// A ring owned by one thread.
pub(super) struct Ring {
    ring: IoUring,
    no_iowait: EnterFlags,
}

impl Ring {
    /// Sets the ring up, disabled: nothing can be submitted yet. The calling thread becomes its only submitter.
    ///
    /// # Errors
    /// One line that names the cause and the remedy.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_r_disabled()
            .setup_cqsize(CQ_ENTRIES)
            .build(SQ_ENTRIES)
            .map_err(explain)?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(explain)?;
        if !probe.is_supported(opcode::ReadMulti::CODE) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "io_uring lacks multishot read: the kernel is too old, ringtap needs {OLDEST_KERNEL} or newer"
                ),
            ));
        }
        // Without it, waiting with requests in flight counts as I/O wait: a whole core, to tools.
        let no_iowait = if ring.params().is_feature_no_iowait() {
            EnterFlags::NO_IOWAIT
        } else {
            EnterFlags::empty()
        };
        Ok(Self { ring, no_iowait })
    }

    /// Takes away what workers do not do, for good. Buffers must be registered before.
    ///
    /// # Errors
    /// One line that names the cause and the remedy.
    pub(super) fn restrict(&self) -> io::Result<()> {
        let mut list: Vec<_> = OPERATIONS.into_iter().map(Restriction::sqe_op).collect();
        // Without this one, an entry may have no flag at all.
        list.push(Restriction::sqe_flags_allowed(FLAGS.bits()));
        list.push(Restriction::register_op(REGISTER));
        self.ring.submitter().register_restrictions(&mut list).map_err(explain)
    }

    /// Starts it.
    ///
    /// # Errors
    /// One line that names the cause and the remedy.
    pub(super) fn enable(&self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings().map_err(explain)
    }

    /// Its descriptor, for others to ring.
    pub(super) fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Adds an entry; submits first when the queue is full.
    ///
    /// # Safety
    /// Whatever memory the entry names (buffers, `msghdr`, addresses) must be valid until the kernel is
    /// done with it: until submission for headers and addresses, until completion for buffers.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: passed on to the caller.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.submit()?;
        }
        Ok(())
    }

    /// Whether the kernel has taken all entries, so that what they point to may be reused.
    pub(super) fn is_submitted(&mut self) -> bool {
        self.ring.submission().is_empty()
    }

    /// Submits all entries without waiting.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.ring.submit().map(drop).or_else(go_on)
    }

    /// Submits all entries and waits for a completion, for at most `timeout`.
    pub(super) fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timespec;
        let mut args = SubmitArgs::new();
        if let Some(timeout) = timeout {
            timespec = Timespec::from(timeout);
            args = args.timespec(&timespec);
        }
        let entered = self.ring.submitter().submit_with_args_and_flags(1, &args, self.no_iowait);
        entered.map(drop).or_else(go_on)
    }

    /// Submits all entries and watches for a completion, for at most `limit`. Whoever else wants the processor gets it.
    #[expect(clippy::disallowed_methods, reason = "the time is not the flows'")]
    pub(super) fn watch(&mut self, limit: Duration) -> io::Result<Watched> {
        self.collect()?;
        let begin = Instant::now();
        let mut last = Duration::ZERO;
        loop {
            if !self.ring.completion().is_empty() {
                return Ok(Watched::Come);
            }
            if self.ring.submission().taskrun() {
                self.collect()?;
            } else {
                thread::yield_now();
            }
            let now = begin.elapsed();
            if now - last >= SPIN_YIELD {
                return Ok(Watched::Contested);
            }
            if now >= limit {
                return Ok(Watched::Nothing);
            }
            last = now;
        }
    }

    /// Submits all entries, and has the kernel make the completions of what is done (`IORING_SETUP_DEFER_TASKRUN`).
    fn collect(&mut self) -> io::Result<()> {
        let waiting = self.ring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: the kernel takes as many entries as wait, and the memory that each names is valid, which whoever
        // [pushed](Ring::push) it has promised. No signal mask is given, so none is read.
        let entered = unsafe { self.ring.submitter().enter::<()>(waiting, 0, flags, None) };
        entered.map(drop).or_else(go_on)
    }

    /// The next completion.
    pub(super) fn completion(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    /// Has the operation with this `user_data` ended; what comes of asking is told as `answer`.
    pub(super) fn cancel(&mut self, name: u64, answer: u64) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(name).build().user_data(answer);
        // SAFETY: a cancellation names no memory.
        unsafe { self.push(&entry) }
    }

    /// Cancels everything and waits for it, so that no buffer is written after this. `names`: the
    /// `user_data` of as much of it as is known, since the kernel finds what has a name at once, and looks for each of the
    /// others from the start.
    pub(super) fn cancel_all(&mut self, names: impl Iterator<Item = u64>) {
        for name in names {
            if self.cancel(name, 0).is_err() {
                break;
            }
        }
        self.take_all();
        let _ =
            self.ring.submitter().register_sync_cancel(None, io_uring::types::CancelBuilder::any());
        // A request lets go of its file when its completion is made, which is our thread's work. Left to
        // the kernel's clean-up of the ring, the TAP would outlive the program by some milliseconds.
        self.take_all();
    }

    /// Takes completions as long as there are any at once, and forgets them.
    fn take_all(&mut self) {
        while self.turn(Some(Duration::ZERO)).is_ok() && self.completion().is_some() {
            while self.completion().is_some() {}
        }
    }
}

/// Says what refused the ring, and what helps.
fn explain(e: io::Error) -> io::Error {
    let remedy = match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is not permitted here: sysctl kernel.io_uring_disabled must be 0, and a container's seccomp profile must allow io_uring"
        }
        Some(libc::ENOSYS) => "this kernel has no io_uring (or a seccomp profile hides it)",
        Some(libc::EINVAL) => "the kernel is too old for ringtap, which needs 6.7 or newer",
        Some(libc::ENOMEM) => {
            "the limit of locked memory (ulimit -l) or of address space (ulimit -v) is too low"
        }
        Some(libc::EMFILE | libc::ENFILE) => "the limit of open files (ulimit -n) is too low",
        _ => "unexpected",
    };
    let cause = nix::Error::from_raw(e.raw_os_error().unwrap_or(libc::EIO)).desc();
    io::Error::new(e.kind(), format!("io_uring: {cause}: {remedy}"))
}

/// A ring of provided buffers: slots that the kernel fills as data comes, first in first out.
pub(super) struct BufRing {
    entries: NonNull<BufRingEntry>,
    count: u16,
    group: u16,
    tail: u16,
    /// First byte of each slot that the kernel may write.
    offset: usize,
    arena: Arena,
    /// The slot behind each buffer number; `None`: with the core, to be replaced.
    slots: Vec<Option<Slot>>,
    /// Buffer numbers without a slot.
    empty: Vec<u16>,
}

impl BufRing {
    /// Registers `count` (a power of two) buffers as `group` with a ring, filled from `arena`. The kernel
    /// writes from `offset` of each slot on.
    ///
    /// # Errors
    /// What `mmap(2)` or `io_uring_register(2)` says.
    pub(super) fn new(
        ring: &Ring,
        group: u16,
        count: u16,
        arena: &Arena,
        offset: usize,
    ) -> io::Result<Self> {
        let bytes = usize::from(count) * size_of::<BufRingEntry>();
        // SAFETY: an anonymous private mapping touches no existing memory.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let Some(entries) = NonNull::new(addr.cast::<BufRingEntry>()) else {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        };
        let this = Self {
            entries,
            count,
            group,
            tail: 0,
            offset,
            arena: arena.clone(),
            slots: (0..count).map(|_| None).collect(),
            empty: (0..count).rev().collect(),
        };
        // SAFETY: `addr` is a page-aligned mapping of `count` entries; it is unmapped in `drop`, and
        // the worker's field order drops the ring first.
        unsafe { ring.ring.submitter().register_buf_ring_with_flags(addr as u64, count, group, 0) }
            .map_err(explain)?;
        Ok(this)
    }

    /// The group's number.
    pub(super) fn group(&self) -> u16 {
        self.group
    }

    /// Gives the kernel a slot for each that was taken, as far as the arena has some. False: none is
    /// with the kernel.
    pub(super) fn refill(&mut self) -> bool {
        let before = self.tail;
        while let Some(&bid) = self.empty.last() {
            let Some(slot) = self.arena.take() else { break };
            self.empty.pop();
            let at = usize::from(self.tail & (self.count - 1));
            // SAFETY: `at < count`, so the entry lies in the mapping; the kernel reads only entries
            // before the tail, which is moved below; `resv` of entry 0 is the tail and not touched by
            // these setters.
            let entry = unsafe { &mut *self.entries.as_ptr().add(at) };
            entry.set_addr(slot.ptr() as u64 + self.offset as u64);
            entry.set_len((slot.capacity() - self.offset) as u32);
            entry.set_bid(bid);
            self.slots[usize::from(bid)] = Some(slot);
            self.tail = self.tail.wrapping_add(1);
        }
        if self.tail != before {
            // SAFETY: `entries` is the ring's base and page aligned; the tail is 16 bits shared with
            // the kernel, which reads it with acquire semantics: entries first, then the tail (release).
            unsafe {
                let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
                AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
            }
        }
        self.empty.len() < usize::from(self.count)
    }

    /// Gives the memory of the slots that wait with the kernel back to the system. To be called when the ring
    /// has no completion: a slot that one speaks of holds data.
    ///
    /// The kernel fills a slot only inside our own `io_uring_enter`: no operation of ours is done by its
    /// worker threads (all wait by poll), and with `DEFER_TASKRUN` what a poll has woken runs when we enter.
    /// And were it otherwise, a slot that loses its pages just gets new ones.
    pub(super) fn trim(&mut self) {
        self.slots.iter_mut().flatten().for_each(Slot::discard);
    }

    /// The slot the kernel has used for a completion, its range what was written: `len` bytes.
    pub(super) fn take(&mut self, bid: u16, len: usize) -> Option<Slot> {
        let mut slot = self.slots.get_mut(usize::from(bid))?.take()?;
        self.empty.push(bid);
        slot.set_range(self.offset, len.min(slot.capacity() - self.offset));
        Some(slot)
    }
}

impl Drop for BufRing {
    fn drop(&mut self) {
        let bytes = usize::from(self.count) * size_of::<BufRingEntry>();
        // SAFETY: the mapping of `new`, not used after this; the ring, its other user, is dropped
        // before (field order of `Worker`).
        unsafe {
            libc::munmap(self.entries.as_ptr().cast(), bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::EventFd;

    use super::*;

    /// Far longer than what is waited for: nothing here takes so long when it works.
    const LONG: Duration = Duration::from_secs(20);

    fn ring() -> Ring {
        let ring = Ring::new().unwrap();
        ring.restrict().unwrap();
        ring.enable().unwrap();
        ring
    }

    fn poll(ring: &mut Ring, bell: &EventFd) {
        let fd = io_uring::types::Fd(bell.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(7);
        // SAFETY: a poll names no memory.
        unsafe { ring.push(&entry) }.unwrap();
    }

    /// Until the machine has left it alone for so long.
    fn watch(ring: &mut Ring, limit: Duration) -> Watched {
        let mut tries = (0..10_000).map(|_| ring.watch(limit).unwrap());
        tries.find(|&watched| watched != Watched::Contested).expect("a quiet moment")
    }

    #[test]
    fn watching_submits_and_finds_what_is_done_at_once() {
        let (mut ring, bell) = (ring(), EventFd::from_value(1).unwrap());
        poll(&mut ring, &bell);
        assert_eq!(watch(&mut ring, LONG), Watched::Come);
        assert_eq!(ring.completion().map(|entry| entry.user_data()), Some(7));
    }

    #[test]
    fn watching_ends_without_anything() {
        let (mut ring, bell) = (ring(), EventFd::from_value(0).unwrap());
        poll(&mut ring, &bell);
        assert_eq!(watch(&mut ring, Duration::from_micros(1)), Watched::Nothing);
        assert!(ring.completion().is_none() && ring.is_submitted());
    }

    #[test]
    fn watching_sees_what_another_thread_does() {
        let (mut ring, bell) = (ring(), EventFd::from_value(0).unwrap());
        poll(&mut ring, &bell);
        assert_eq!(watch(&mut ring, Duration::from_micros(1)), Watched::Nothing);
        thread::scope(|scope| {
            scope.spawn(|| bell.write(1).unwrap());
            assert_eq!(watch(&mut ring, LONG), Watched::Come);
        });
        assert_eq!(ring.completion().map(|entry| entry.user_data()), Some(7));
    }
}
