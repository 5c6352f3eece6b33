//! A guest behind a socket of packets (`SOCK_SEQPACKET`) instead of a TAP: one frame per packet.
//!
//! What a TAP takes or refuses at once, a socket may keep waiting while its peer is slow. Writes of the ring would then
//! wait each by itself and overtake one another; so frames are sent by plain system calls, and those that find no room
//! wait here in their order for the socket to have some. A peer that never reads costs [`PACKETS_WAITING`] frames
//! (and [`SLOTS_WAITING`] slots), and the rest is dropped.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{SockRef, Type};

use super::{TapQueue, Worker};
use crate::arena::Slot;
use crate::flow::{Event, FlowId};
use crate::limits::{BLOCK_BYTES, PACKETS_WAITING, SLOTS_WAITING};
use crate::stats::Drop;

/// Frames that wait for room, in order.
#[derive(Debug, Default)]
pub(super) struct Packets {
    /// Whether the guest is behind a socket at all.
    on: bool,
    waiting: VecDeque<Packet>,
    /// How many of them are in a slot, and not in a small block.
    slots: usize,
}

/// A frame: what follows the first `skip` bytes of a slot's range, and the flow that wants the slot back.
#[derive(Debug)]
struct Packet {
    slot: Slot,
    skip: usize,
    keep: Option<FlowId>,
}

impl Packet {
    /// 1 if it keeps a slot from others.
    fn slots(&self) -> usize {
        usize::from(self.slot.capacity() > BLOCK_BYTES)
    }
}

impl Packets {
    pub(super) fn new(tap: &TapQueue) -> Self {
        let on = SockRef::from(&tap.fd).r#type().is_ok_and(|kind| kind == Type::SEQPACKET);
        Self { on, waiting: VecDeque::new(), slots: 0 }
    }

    pub(super) fn on(&self) -> bool {
        self.on
    }
}

impl Worker {
    /// Sends a frame, or lets it wait behind others.
    pub(super) fn packet_write(
        &mut self,
        slot: Slot,
        skip: usize,
        keep: Option<FlowId>,
    ) -> io::Result<()> {
        let packet = Packet { slot, skip, keep };
        let packets = &mut self.packets;
        packets.slots += packet.slots();
        if packets.waiting.len() >= PACKETS_WAITING || packets.slots > SLOTS_WAITING {
            self.stack.stats_mut().drop(Drop::TapRefused);
            self.packet_done(packet);
            return Ok(());
        }
        let first = self.packets.waiting.is_empty();
        self.packets.waiting.push_back(packet);
        if first { self.packets_flush() } else { Ok(()) }
    }

    /// Sends what waits, until there is no room; then asks to be told of some.
    pub(super) fn packets_flush(&mut self) -> io::Result<()> {
        while let Some(packet) = self.packets.waiting.front() {
            let frame = [IoSlice::new(packet.slot.bytes().get(packet.skip..).unwrap_or_default())];
            let socket = SockRef::from(&self.tap.fd);
            match socket
                .send_vectored_with_flags(&frame, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                .map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
            {
                Ok(_) => {}
                Err(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => return self.await_room(),
                Err(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => return Err(peer_gone()),
                // One that this socket cannot carry (EMSGSIZE): the next may do.
                Err(_) => self.stack.stats_mut().drop(Drop::TapRefused),
            }
            if let Some(packet) = self.packets.waiting.pop_front() {
                self.packet_done(packet);
            }
        }
        Ok(())
    }

    /// Refused or not: TCP keeps what is not acknowledged, as with a TAP.
    fn packet_done(&mut self, packet: Packet) {
        self.packets.slots -= packet.slots();
        let Packet { slot, keep, .. } = packet;
        if let Some(flow) = keep {
            self.stack.handle_event(Event::TapWritten { flow, slot }, self.now);
        }
    }

    /// A read has brought nothing: the end, unless the peer is there and has sent a packet of 0 bytes.
    pub(super) fn packet_empty(&self) -> io::Result<()> {
        let hung_up = PollFlags::POLLHUP | PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut fds = [PollFd::new(self.tap.fd.as_fd(), hung_up)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(0) => Ok(()),
            _ => Err(peer_gone()),
        }
    }
}

/// The guest's program has closed its end.
pub(super) fn peer_gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the guest has closed its socket")
}
