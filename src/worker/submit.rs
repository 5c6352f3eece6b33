//! From the core's actions to submission entries: one arm per action, no wildcard.

#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use io_uring::{opcode, types};
use socket2::SockAddr;

use super::cmsg::SEND_CONTROL;
use super::sock::{self, Sock, Watch};
use super::team::Posted;
use super::token::{Op, Token};
use super::{Notice, Worker};
use crate::arena::{Chain, Slot};
use crate::flow::{Action, Errno, Event, FlowId, Handed, Received};
use crate::frame::segment::{self, Cutter};
use crate::limits::{
    BLOCK_BYTES, BLOCKS_RESERVED, HEADROOM, HOST_SLOTS, RECV_SLOTS, SEND_SLOTS, SLOTS_FOR_READS,
    VNET_LEN,
};
use crate::stats::Drop;

/// Memory that submission entries point to until they are submitted: `msghdr`s, iovecs, addresses.
/// Reused every turn; the boxes never move.
pub(super) struct Scratch {
    #[expect(clippy::vec_box, reason = "entries point into the boxes while the vector grows")]
    msgs: Vec<Box<Msg>>,
    used: usize,
}

/// One `msghdr` with all it points to.
pub(super) struct Msg {
    pub(super) hdr: libc::msghdr,
    /// Keeps its room from turn to turn.
    pub(super) iov: Vec<libc::iovec>,
    pub(super) addr: SockAddr,
    pub(super) control: Control,
}

/// Control messages, aligned as the kernel's `struct cmsghdr`.
#[repr(align(8))]
pub(super) struct Control(pub(super) [u8; SEND_CONTROL]);

/// What the kernel has of a write to the TAP.
#[derive(Debug)]
pub(super) enum Writing {
    /// A frame in one slot, and the flow that wants it back.
    Frame(Slot, Option<FlowId>),
    /// A frame in several.
    Run(#[expect(dead_code, reason = "held")] Chain),
}

impl Msg {
    pub(super) fn new() -> Self {
        // SAFETY: all-zero bytes are a valid `msghdr`.
        let hdr = unsafe { std::mem::zeroed() };
        let addr = SockAddr::from(SocketAddr::from(([0, 0, 0, 0], 0)));
        Self { hdr, iov: Vec::new(), addr, control: Control([0; SEND_CONTROL]) }
    }

    /// Points at the ranges of a chain's first `most` slots, without address and control messages.
    fn gather(&mut self, chain: &Chain, most: usize) {
        self.iov.clear();
        chain.for_each(|slot| {
            let bytes = slot.bytes();
            self.iov.push(libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            });
            self.iov.len() < most
        });
        self.hdr.msg_name = std::ptr::null_mut();
        self.hdr.msg_namelen = 0;
        self.hdr.msg_iov = self.iov.as_mut_ptr();
        self.hdr.msg_iovlen = self.iov.len() as _;
        self.hdr.msg_control = std::ptr::null_mut();
        self.hdr.msg_controllen = 0;
    }
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self { msgs: Vec::new(), used: 0 }
    }

    /// All entries of the last turn are submitted: their memory is free.
    pub(super) fn reset(&mut self) {
        self.used = 0;
    }

    pub(super) fn next(&mut self) -> &mut Msg {
        if self.used == self.msgs.len() {
            self.msgs.push(Box::new(Msg::new()));
        }
        self.used += 1;
        &mut self.msgs[self.used - 1]
    }
}

impl Worker {
    /// Carries an action out, or puts it on its way.
    pub(super) fn submit(&mut self, action: Action) -> io::Result<()> {
        match action {
            Action::TapWrite { slot, keep } => self.tap_write(slot, keep),
            Action::TapRun { chain } => self.tap_write_run(chain),
            Action::TcpConnect { flow, to } => self.tcp_connect(flow, to),
            Action::TcpSend { flow, chain } => self.tcp_send(flow, chain),
            Action::TcpPollOut { flow } => self.poll_out(flow),
            Action::TcpPollError { flow } => self.poll_error(flow),
            Action::TcpRecv { flow, max } => self.tcp_recv(flow, max),
            Action::TcpRecvMany { flow, frame, frames } => self.recv_many(flow, frame, frames),
            Action::TcpShutdown { flow } => {
                if let Some(sock) = self.sock(flow) {
                    sock.shutdown();
                }
                Ok(())
            }
            Action::DgramOpen { flow, kind } => self.dgram_open(flow, kind),
            Action::DgramSend { flow, slot, to, opts } => {
                self.dgram_send(flow, slot, to, opts);
                Ok(())
            }
            Action::Close { flow, reset } => self.close(flow, reset),
            Action::Migrate { flow } => self.set_out(flow),
            Action::HandOver { worker, slot, about } => self.hand_over(worker, &slot, about),
            Action::DnsUsed => {
                let _ = self.notices.send(Notice::DnsUsed);
                Ok(())
            }
        }
    }

    /// The open socket of a flow.
    pub(super) fn sock(&mut self, flow: FlowId) -> Option<&mut Sock> {
        let sock = self.socks.get_mut(flow.index as usize)?.as_mut()?;
        (sock.generation == flow.generation && !sock.closing).then_some(sock)
    }

    /// Keeps a flow's new socket.
    pub(super) fn put_sock(&mut self, flow: FlowId, sock: Sock) {
        let index = flow.index as usize;
        if self.socks.len() <= index {
            self.socks.resize_with(index + 1, || None);
        }
        self.socks[index] = Some(sock);
    }

    fn tap_write(&mut self, mut slot: Slot, keep: Option<FlowId>) -> io::Result<()> {
        if self.tap.vnet {
            return self.push_write(slot, 0, keep);
        }
        // Nobody behind such a TAP cuts or sums: what leaves must be ready.
        if segment::finish(slot.bytes_mut(), self.net.mtu) {
            return self.push_write(slot, VNET_LEN, keep);
        }
        let pushed = self.cut_write(&slot);
        // Its bytes are copied, so the flow has it back before the kernel has the copies: once.
        if let Some(flow) = keep {
            self.stack.handle_event(Event::TapWritten { flow, slot }, self.now);
        }
        pushed
    }

    /// Writes a frame in ready pieces, each in a slot of its own.
    pub(super) fn cut_write(&mut self, slot: &Slot) -> io::Result<()> {
        let Some(mut cutter) = Cutter::new(slot.bytes(), self.net.mtu, self.ip_id) else {
            self.stack.stats_mut().drop(Drop::TapRefused);
            return Ok(());
        };
        // A virtio header of zeros: nothing is left to do.
        let head = if self.tap.vnet { VNET_LEN } else { 0 };
        while let Some(len) = cutter.next_len() {
            let pools = self.stack.pools();
            let piece = if head + len <= BLOCK_BYTES {
                pools.small.take_above(BLOCKS_RESERVED)
            } else {
                // Reading goes before: what a read needs is left.
                pools.large.take_above(SLOTS_FOR_READS)
            };
            let Some(mut piece) = piece else {
                // The rest of a datagram is worth nothing without this piece, and TCP's timer sends
                // the rest of a segment again.
                self.stack.stats_mut().drop(Drop::NoBuffer);
                break;
            };
            piece.set_range(head, len);
            cutter.write(piece.bytes_mut());
            piece.prepend(head);
            piece.bytes_mut()[..head].fill(0);
            self.push_write(piece, 0, None)?;
        }
        self.ip_id = cutter.next_id();
        Ok(())
    }

    /// Writes what follows the first `skip` bytes of a slot's range.
    fn push_write(&mut self, slot: Slot, skip: usize, keep: Option<FlowId>) -> io::Result<()> {
        if self.packets.on() {
            return self.packet_write(slot, skip, keep);
        }
        if self.writes.is_full() {
            self.stack.stats_mut().drop(Drop::TapRefused);
            if let Some(flow) = keep {
                self.stack.handle_event(Event::TapWritten { flow, slot }, self.now);
            }
            return Ok(());
        }
        let frame = &slot.bytes()[skip..];
        let (ptr, len) = (frame.as_ptr(), frame.len() as u32);
        let index = self.writes.put(Writing::Frame(slot, keep));
        let entry = opcode::Write::new(types::Fd(self.tap_fd()), ptr, len)
            .build()
            .user_data(Token::TapWrite(index).pack());
        // SAFETY: `ptr..ptr+len` is part of the range of a slot that `writes` holds until the completion.
        unsafe { self.ring.push(&entry) }
    }

    /// Writes a frame that lies in several slots.
    fn tap_write_run(&mut self, chain: Chain) -> io::Result<()> {
        if self.writes.is_full() {
            self.stack.stats_mut().drop(Drop::TapRefused);
            return Ok(());
        }
        let fd = types::Fd(self.tap_fd());
        let msg = self.scratch.next();
        msg.gather(&chain, usize::MAX);
        let (iov, slots) = (msg.iov.as_ptr(), msg.iov.len() as u32);
        let index = self.writes.put(Writing::Run(chain));
        let entry =
            opcode::Writev::new(fd, iov, slots).build().user_data(Token::TapWrite(index).pack());
        // SAFETY: the iovecs lie in a vector of `scratch`, untouched until the next turn begins, when the entry is
        // submitted; they name the ranges of slots that `writes` holds until the completion.
        unsafe { self.ring.push(&entry) }
    }

    /// Copies a frame into another worker's inbox, and rings.
    fn hand_over(&mut self, worker: u8, slot: &Slot, about: Handed) -> io::Result<()> {
        let posted = self.team.post(worker, slot.bytes(), about);
        if matches!(posted, Posted::Full) {
            self.stack.handle_lost(worker, about, Drop::HandOverFull);
            return Ok(());
        }
        self.stack.stats_mut().copied_bytes += slot.len() as u64;
        self.ring_bell(worker, posted)
    }

    /// Tells another worker that something is in its inbox, where it must be told.
    pub(super) fn ring_bell(&mut self, worker: u8, posted: Posted) -> io::Result<()> {
        let Posted::Ring(ring) = posted else { return Ok(()) };
        let entry = opcode::MsgRingData::new(types::Fd(ring), 0, Token::Frames.pack(), None)
            .build()
            // Nothing to hear of when it rings.
            .flags(io_uring::squeue::Flags::SKIP_SUCCESS)
            .user_data(Token::Bell(worker.into()).pack());
        // SAFETY: the message names no memory.
        unsafe { self.ring.push(&entry) }
    }

    fn tcp_connect(&mut self, flow: FlowId, to: SocketAddr) -> io::Result<()> {
        let fd = match sock::tcp(&self.net, &to) {
            Ok(fd) => fd,
            Err(e) => {
                let errno = Errno(e.raw_os_error().unwrap_or(libc::EIO));
                let event = Event::TcpConnected { flow, result: Err(errno) };
                self.stack.handle_event(event, self.now);
                return Ok(());
            }
        };
        let mut sock = Sock::new(fd, flow.generation);
        sock.begin(Op::Connect);
        let raw = sock.raw();
        // A second try (the next resolver) replaces a socket that has nothing in flight.
        self.put_sock(flow, sock);
        let msg = self.scratch.next();
        msg.addr = SockAddr::from(to);
        let entry = opcode::Connect::new(types::Fd(raw), msg.addr.as_ptr().cast(), msg.addr.len())
            .build()
            .user_data(Token::Sock(Op::Connect, flow).pack());
        // SAFETY: the address lies in a box of `scratch`, untouched until the next turn begins, and the
        // entry is submitted before that.
        unsafe { self.ring.push(&entry) }
    }

    fn tcp_send(&mut self, flow: FlowId, chain: Chain) -> io::Result<()> {
        let Some(sock) = self.sock(flow) else { return Ok(()) };
        sock.begin(Op::Send);
        sock.sending = chain;
        let raw = sock.raw();
        let token = Token::Sock(Op::Send, flow).pack();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let Some(Some(sock)) = self.socks.get(flow.index as usize) else { return Ok(()) };
        let entry = if sock.sending.slots() == 1
            && let Some(slot) = sock.sending.front()
        {
            let bytes = slot.bytes();
            opcode::Send::new(types::Fd(raw), bytes.as_ptr(), bytes.len() as u32)
                .flags(flags)
                .build()
        } else {
            let msg = self.scratch.next();
            msg.gather(&sock.sending, SEND_SLOTS);
            opcode::SendMsg::new(types::Fd(raw), &raw const msg.hdr).flags(flags as u32).build()
        };
        // SAFETY: payload lies in slots that `sock.sending` holds until the completion; header and
        // iovecs in a box of `scratch`, untouched until the next turn begins, when they are submitted.
        unsafe { self.ring.push(&entry.user_data(token)) }
    }

    fn tcp_recv(&mut self, flow: FlowId, max: u32) -> io::Result<()> {
        let Some(sock) = self.sock(flow) else { return Ok(()) };
        sock.recv_max = max;
        self.recv(flow)
    }

    /// Submits the receives that found no buffer, before the core asks for new ones: first come, first
    /// served. As many as there can be buffers; the others keep their places, and cost nothing.
    pub(super) fn feed_hungry(&mut self) -> io::Result<()> {
        if self.hungry.is_empty() {
            return Ok(());
        }
        // Nothing to be had at all: the core asks again in some time.
        let none = !self.from_host.refill();
        let mut left = if none { self.hungry.len() } else { usize::from(HOST_SLOTS) };
        while left > 0
            && let Some(flow) = self.hungry.pop_front()
        {
            // Closed meanwhile.
            let Some(sock) = self.sock(flow).filter(|sock| sock.hungry) else { continue };
            left -= 1;
            sock.hungry = false;
            if none {
                let event = Event::TcpReceived { flow, result: Received::NoBuffer };
                self.stack.handle_event(event, self.now);
            } else {
                self.recv(flow)?;
            }
        }
        Ok(())
    }

    /// Receives what is there into slots of our own. It ends while it is submitted: a receive that
    /// waits would hold them.
    fn recv_many(&mut self, flow: FlowId, frame: u32, frames: u32) -> io::Result<()> {
        let mut slots = Chain::new();
        // Reading goes before: what the provided rings need is left.
        while slots.slots() < (frames as usize).min(RECV_SLOTS)
            && let Some(mut slot) = self.stack.pools().large.take_above(SLOTS_FOR_READS)
        {
            slot.set_range(HEADROOM, frame as usize);
            slots.push_back(slot);
        }
        if slots.slots() < 2 {
            return self.tcp_recv(flow, frame);
        }
        let Some(sock) = self.sock(flow) else { return Ok(()) };
        sock.begin(Op::Recv);
        sock.receiving = slots;
        let raw = sock.raw();
        let Some(Some(sock)) = self.socks.get(flow.index as usize) else { return Ok(()) };
        let msg = self.scratch.next();
        msg.gather(&sock.receiving, RECV_SLOTS);
        let entry = opcode::RecvMsg::new(types::Fd(raw), &raw mut msg.hdr)
            .flags(libc::MSG_DONTWAIT as u32)
            .build()
            .user_data(Token::Sock(Op::Recv, flow).pack());
        // SAFETY: the kernel writes into slots that `sock.receiving` holds until the completion; it is
        // their only holder, and nobody reads them before. Header and iovecs lie in a box of `scratch`,
        // untouched until the next turn begins: by then they are submitted, and since nothing waits
        // (MSG_DONTWAIT) the kernel has also written the header back.
        unsafe { self.ring.push(&entry) }
    }

    fn recv(&mut self, flow: FlowId) -> io::Result<()> {
        let group = self.from_host.group();
        let Some(sock) = self.sock(flow) else { return Ok(()) };
        let max = sock.recv_max;
        sock.begin(Op::Recv);
        let entry = opcode::Recv::new(types::Fd(sock.raw()), std::ptr::null_mut(), max)
            .buf_group(group)
            .build()
            .flags(io_uring::squeue::Flags::BUFFER_SELECT)
            .user_data(Token::Sock(Op::Recv, flow).pack());
        // SAFETY: the buffer comes from a registered ring, whose slots the `BufRing` holds.
        unsafe { self.ring.push(&entry) }
    }

    fn poll_out(&mut self, flow: FlowId) -> io::Result<()> {
        let Some(sock) = self.sock(flow) else { return Ok(()) };
        match sock.watch {
            Watch::No => return self.poll(flow, Op::PollOut, libc::POLLOUT as u32, false),
            Watch::Awaited | Watch::Idle => sock.watch = Watch::Awaited,
            // Perhaps before the send that found none; then the next one says so.
            Watch::Ready => {
                sock.watch = Watch::Idle;
                self.stack.handle_event(Event::TcpWritable { flow }, self.now);
            }
        }
        Ok(())
    }

    /// Watches for room without end, behind the peer's FIN.
    pub(super) fn watch_out(&mut self, flow: FlowId) -> io::Result<()> {
        let Some(sock) = self.sock(flow) else { return Ok(()) };
        sock.watch = Watch::Awaited;
        self.poll(flow, Op::PollOut, libc::POLLOUT as u32, true)
    }

    /// No events asked for: POLLERR and POLLHUP are always told (poll(2)), and so is POLLRDHUP, which is
    /// the peer's FIN and no error: hence multishot, to hear of what comes after it.
    pub(super) fn poll_error(&mut self, flow: FlowId) -> io::Result<()> {
        self.poll(flow, Op::PollError, 0, true)
    }

    fn poll(&mut self, flow: FlowId, op: Op, events: u32, multi: bool) -> io::Result<()> {
        let Some(sock) = self.sock(flow) else { return Ok(()) };
        sock.begin(op);
        let entry = opcode::PollAdd::new(types::Fd(sock.raw()), events)
            .multi(multi)
            .build()
            .user_data(Token::Sock(op, flow).pack());
        // SAFETY: a poll names no memory.
        unsafe { self.ring.push(&entry) }
    }

    fn close(&mut self, flow: FlowId, reset: bool) -> io::Result<()> {
        // What was sent before leaves before.
        self.flush_dgrams()?;
        let Some(sock) = self.sock(flow) else {
            // No socket was ever made.
            self.stack.handle_event(Event::Closed { flow }, self.now);
            return Ok(());
        };
        if reset {
            sock.reset_on_close();
        }
        sock.closing = true;
        if sock.quiet() {
            self.finish_close(flow);
            return Ok(());
        }
        // The kernel finds an operation by its token at once; by its descriptor it looks through all that are in flight.
        // So only where there are sends of datagrams, which are many, and over soon.
        if sock.sends > 0 {
            let cancel = types::CancelBuilder::fd(types::Fd(sock.raw())).all();
            let entry = opcode::AsyncCancel2::new(cancel).build().user_data(Token::Cancel.pack());
            // SAFETY: a cancellation names no memory.
            return unsafe { self.ring.push(&entry) };
        }
        for op in sock.ops() {
            self.cancel(Token::Sock(op, flow))?;
        }
        Ok(())
    }

    /// Has an operation ended; its own completion says so.
    pub(super) fn cancel(&mut self, token: Token) -> io::Result<()> {
        self.ring.cancel(token.pack(), Token::Cancel.pack())
    }

    /// Closes a socket with nothing in flight, and tells the core.
    pub(super) fn finish_close(&mut self, flow: FlowId) {
        self.socks[flow.index as usize] = None;
        self.stack.handle_event(Event::Closed { flow }, self.now);
    }

    /// Accepts connections of a listening socket, until cancelled or in want of something.
    pub(super) fn arm_accept(&mut self, index: u32, listener: RawFd) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(types::Fd(listener))
            .flags(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
            .build()
            .user_data(Token::Accept(index).pack());
        // SAFETY: no address is asked for, so it names no memory.
        unsafe { self.ring.push(&entry) }
    }

    /// Listens for the doorbell.
    pub(super) fn arm_bell(&mut self) -> io::Result<()> {
        let fd = types::Fd(self.mailbox.bell.as_raw_fd());
        let entry =
            opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(Token::Wake.pack());
        // SAFETY: a poll names no memory.
        unsafe { self.ring.push(&entry) }
    }

    /// Asks for word when a socket of packets has room.
    pub(super) fn await_room(&mut self) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(self.tap_fd()), libc::POLLOUT as u32)
            .build()
            .user_data(Token::TapRoom.pack());
        // SAFETY: a poll names no memory.
        unsafe { self.ring.push(&entry) }
    }

    /// Submits the turn's datagrams, refills the provided rings and arms what has ended.
    pub(super) fn rearm(&mut self) -> io::Result<()> {
        self.flush_dgrams()?;
        self.from_host.refill();
        // Without a buffer it would end again at once; the turn that brings one back arms.
        if self.dgrams.refill() {
            self.rearm_dgrams()?;
        }
        if self.tap.reads && self.from_tap.refill() && self.tap_idle {
            self.tap_idle = false;
            let fd = types::Fd(self.tap_fd());
            let entry = opcode::ReadMulti::new(fd, 0, self.from_tap.group())
                .build()
                .user_data(Token::TapRead.pack());
            // SAFETY: buffers come from a registered ring, whose slots the `BufRing` holds.
            unsafe { self.ring.push(&entry) }?;
        }
        Ok(())
    }
}

/// The socket that an accept has made, by its completion.
pub(super) fn accepted(result: i32) -> Option<OwnedFd> {
    // SAFETY: not negative, it is a descriptor that the kernel has made for us with this completion, which is looked
    // at once: nobody else has it.
    (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) })
}

#[cfg(test)]
mod tests;
