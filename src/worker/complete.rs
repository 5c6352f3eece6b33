//! From completions to frames and events.

use std::io;

use io_uring::cqueue;

use super::Worker;
use super::packets::peer_gone;
use super::sock::Watch;
use super::submit::Writing;
use super::token::{Op, Token};
use crate::arena::Chain;
use crate::flow::{Errno, Event, FlowId, Received};
use crate::frame::vnet;
use crate::limits::VNET_LEN;
use crate::stats::Drop;

impl Worker {
    /// Takes one completion, that of `token`. `Err`: the worker cannot go on.
    pub(super) fn complete(
        &mut self,
        token: Option<Token>,
        entry: &cqueue::Entry,
    ) -> io::Result<()> {
        let (result, flags) = (entry.result(), entry.flags());
        if cqueue::buffer_select(flags).is_some() {
            self.note_use();
        }
        match token {
            Some(Token::TapRead) => self.tap_read(result, flags),
            Some(Token::TapWrite(index)) => self.tap_written(index, result),
            Some(Token::TapRoom) => self.packets_flush(),
            Some(Token::Wake) => {
                self.take_requests();
                self.arm_bell()
            }
            Some(Token::Sock(op, flow)) => self.sock_op(op, flow, result, flags),
            Some(Token::DgramSend { index, part }) => {
                self.dgram_sent(index, part, result);
                Ok(())
            }
            Some(Token::Frames) => {
                self.posted = true;
                Ok(())
            }
            Some(Token::Accept(index)) => self.accepted(index, result, cqueue::more(flags)),
            Some(Token::Bell(worker)) => {
                let posted = self.team.unring(worker as u8);
                self.ring_bell(worker as u8, posted)
            }
            Some(Token::Cancel) | None => Ok(()),
        }
    }

    fn tap_read(&mut self, result: i32, flags: u32) -> io::Result<()> {
        if !cqueue::more(flags) {
            self.tap_idle = true;
        }
        if result < 0 {
            return match -result {
                libc::ENOBUFS | libc::EAGAIN | libc::EINTR | libc::ECANCELED | libc::EIO => Ok(()),
                libc::EBADFD | libc::EFAULT | libc::ENODEV => Err(tap_gone()),
                libc::ECONNRESET if self.packets.on() => Err(peer_gone()),
                e => Err(io::Error::from_raw_os_error(e)),
            };
        }
        // Of a socket that is the end, and no buffer comes with it.
        if result == 0 && self.packets.on() {
            self.packet_empty()?;
        }
        let Some(bid) = cqueue::buffer_select(flags) else { return Ok(()) };
        let Some(mut slot) = self.from_tap.take(bid, result as usize) else { return Ok(()) };
        if !self.tap.vnet {
            slot.prepend(VNET_LEN);
            slot.bytes_mut()[..VNET_LEN].fill(0);
        }
        self.stack.handle_frame(slot, self.now);
        Ok(())
    }

    pub(super) fn tap_written(&mut self, index: u32, result: i32) -> io::Result<()> {
        let Some(writing) = self.writes.take(index) else { return Ok(()) };
        // More datagrams in one frame than this kernel takes: one by one then. Only the host joins so many; a run of
        // ours has no more than every kernel takes.
        if let Writing::Frame(slot, _) = &writing
            && result == -libc::EINVAL
            && is_run(slot.bytes())
        {
            return self.cut_write(slot);
        }
        if result < 0 {
            self.stack.stats_mut().drop(Drop::TapRefused);
            if matches!(-result, libc::EBADFD | libc::ENODEV) {
                return Err(tap_gone());
            }
        }
        // Refused or not: TCP keeps what is not acknowledged, and its timer sends it again.
        if let Writing::Frame(slot, Some(flow)) = writing {
            self.stack.handle_event(Event::TapWritten { flow, slot }, self.now);
        }
        Ok(())
    }

    fn sock_op(&mut self, op: Op, flow: FlowId, result: i32, flags: u32) -> io::Result<()> {
        if matches!(op, Op::Data | Op::ErrQueue) {
            self.dgram_op(op, flow, result, flags);
            return Ok(());
        }
        // A receive's slot is taken in any case, or the ring would lose it.
        let slot = cqueue::buffer_select(flags).and_then(|bid| match op {
            Op::Recv => self.from_host.take(bid, result.max(0) as usize),
            _ => None,
        });
        let Some(Some(sock)) = self.socks.get_mut(flow.index as usize) else { return Ok(()) };
        if sock.generation != flow.generation {
            return Ok(());
        }
        if !cqueue::more(flags) {
            sock.end(op);
        }
        if result > 0 && slot.is_some() {
            self.fed += 1;
            sock.fed = self.fed;
        }
        let chain = std::mem::take(&mut sock.sending);
        if op != Op::Send {
            sock.sending = chain;
            if sock.closing {
                if sock.quiet() {
                    self.finish_close(flow);
                }
                return Ok(());
            }
            if op == Op::Recv && !sock.receiving.is_empty() {
                let slots = std::mem::take(&mut sock.receiving);
                self.received_many(flow, slots, result);
                return Ok(());
            }
            let errno = Errno(-result);
            // One that is about to go is not asked for anything again.
            let leaving = self.leaving == Some(flow);
            let event = match op {
                Op::Connect => {
                    let result = if result < 0 { Err(errno) } else { sock.connected() };
                    Event::TcpConnected { flow, result }
                }
                Op::PollOut => return self.polled_out(flow, result, flags),
                Op::PollError => match sock.error() {
                    // The host's FIN: no failure, and not the end of the watch.
                    0 if cqueue::more(flags) => return Ok(()),
                    0 if result >= 0 && !leaving => return self.poll_error(flow),
                    0 if result == -libc::ECANCELED || leaving => {
                        Event::TcpHangup { flow, errno: Errno(libc::ECANCELED) }
                    }
                    errno => Event::TcpHangup { flow, errno: Errno(errno) },
                },
                Op::Recv if result == -libc::ENOBUFS && !leaving => {
                    // The core takes it for a receive that waits for data.
                    sock.hungry = true;
                    self.hungry.push_back(flow);
                    return Ok(());
                }
                Op::Recv => {
                    let result = match (result, slot) {
                        (1.., Some(slot)) => {
                            Received::Data { slot, more: cqueue::sock_nonempty(flags) }
                        }
                        (0, _) => Received::Eof,
                        _ => match -result {
                            libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ECANCELED => {
                                Received::NoBuffer
                            }
                            _ => Received::Failed(errno),
                        },
                    };
                    Event::TcpReceived { flow, result }
                }
                Op::Send | Op::Data | Op::ErrQueue => return Ok(()),
            };
            self.stack.handle_event(event, self.now);
            return Ok(());
        }
        if sock.closing {
            drop(chain);
            if sock.quiet() {
                self.finish_close(flow);
            }
            return Ok(());
        }
        let result = match result {
            0.. => Ok(result as u32),
            _ => match -result {
                libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM => Ok(0),
                e => Err(Errno(e)),
            },
        };
        self.stack.handle_event(Event::TcpSent { flow, chain, result }, self.now);
        Ok(())
    }

    /// A receive of many slots has ended: those that were filled are received one by one.
    fn received_many(&mut self, flow: FlowId, mut slots: Chain, result: i32) {
        let result = match result {
            1.. => {
                let mut left = result as usize;
                let more = left == slots.bytes() as usize;
                while left > 0
                    && let Some(mut slot) = slots.pop_front()
                {
                    slot.truncate(left);
                    left -= slot.len();
                    let result = Received::Data { slot, more };
                    self.stack.handle_event(Event::TcpReceived { flow, result }, self.now);
                }
                return;
            }
            0 => Received::Eof,
            _ => match -result {
                libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM => Received::NoBuffer,
                e => Received::Failed(Errno(e)),
            },
        };
        self.stack.handle_event(Event::TcpReceived { flow, result }, self.now);
    }

    /// A poll for room has said something; of a FIN the core hears elsewhere, and it makes no room.
    fn polled_out(&mut self, flow: FlowId, result: i32, flags: u32) -> io::Result<()> {
        let Some(sock) = self.sock(flow) else { return Ok(()) };
        let only_fin = result >= 0
            && result & i32::from(libc::POLLOUT | libc::POLLERR | libc::POLLHUP | libc::POLLNVAL)
                == 0;
        let awaited = matches!(sock.watch, Watch::No | Watch::Awaited);
        if !cqueue::more(flags) {
            sock.watch = Watch::No;
            if only_fin && awaited {
                return self.watch_out(flow);
            }
        } else if !only_fin {
            sock.watch = if awaited { Watch::Idle } else { Watch::Ready };
        }
        if awaited && !only_fin {
            self.stack.handle_event(Event::TcpWritable { flow }, self.now);
        }
        Ok(())
    }
}

/// Whether a frame is a run of datagrams.
fn is_run(frame: &[u8]) -> bool {
    vnet::Header::parse(frame).is_some_and(|(header, _)| header.gso_type == vnet::GSO_UDP_L4)
}

fn tap_gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the TAP interface was deleted")
}
