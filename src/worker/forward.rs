//! Ports of the host that lead into the guest: listening sockets and bound ones, and their lives in a worker.
//!
//! # Theory of operation
//!
//! A listening socket is one multishot accept in the ring. Idle, it costs its entry here and what the kernel keeps for
//! the request; nothing looks through the sockets in a turn. Each connection that comes is given to the core, which
//! opens it towards the guest; its socket lies in the table of all sockets from then on, and belongs to no
//! port: it goes on when the port is closed.
//!
//! An accept that ends, for whatever reason, is armed again. Without a descriptor or memory for the next connection it
//! would end at once, again and again: it waits for [`ACCEPT_RETRY`] then, and the connection in the kernel's queue. Nothing is
//! closed to make room but what has been idle for long.
//!
//! With several workers, the one that listens gives a connection to the one that has fewer.
//!
//! Closing: cancel, wait for the accept's last completion, close. Whoever asked for it hears when all sockets are closed,
//! by the end of a channel that each of them holds.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use tokio::sync::oneshot;

use super::sock::{self, Sock};
use super::submit;
use super::team::{Connection, Posted};
use super::{ForwardedPort, InFlight, Worker};
use crate::config::ForwardId;
use crate::flow::{Errno, FlowId};
use crate::limits::ACCEPT_RETRY;
use crate::time::Time;

/// Who waits for ports to be free: told when the last of the sockets drops it.
pub(super) type Waiter = Rc<oneshot::Sender<()>>;

/// All sockets of a worker that listen.
pub(super) struct Listeners {
    all: InFlight<Listener>,
    /// Those whose accept is to be armed at `retry_at`.
    stalled: Vec<u32>,
    retry_at: Option<Time>,
}

/// A socket that listens.
struct Listener {
    // The first field, so that the port is free when `closing` drops.
    fd: OwnedFd,
    id: ForwardId,
    guest: SocketAddr,
    /// Its accept is in flight.
    armed: bool,
    /// It is to be closed, and these are told.
    closing: Option<Vec<Waiter>>,
}

impl Listeners {
    pub(super) fn new() -> Self {
        Self { all: InFlight::new(), stalled: Vec::new(), retry_at: None }
    }

    /// When some are to be tried again.
    pub(super) fn retry_at(&self) -> Option<Time> {
        self.retry_at
    }
}

impl Worker {
    /// Accepts connections on a listening socket from now on.
    pub(super) fn listen(&mut self, port: ForwardedPort) -> io::Result<()> {
        let ForwardedPort { id, socket: fd, guest, .. } = port;
        if self.stack.is_draining() {
            return Ok(());
        }
        // Fails on no socket of TCP; and if it did, connections would be a little worse.
        let _ = sock::prepare_listener(&fd);
        let index = self.listeners.all.put(Listener { fd, id, guest, armed: false, closing: None });
        self.accept(index)
    }

    /// Ends a forward.
    pub(super) fn unforward(&mut self, id: ForwardId, done: oneshot::Sender<()>) -> io::Result<()> {
        let done = Rc::new(done);
        self.close_listeners(Some(id), Some(&done))
    }

    /// Closes the listening sockets of a forward, or all.
    pub(super) fn close_listeners(
        &mut self,
        id: Option<ForwardId>,
        waiter: Option<&Waiter>,
    ) -> io::Result<()> {
        for index in 0..self.listeners.all.places() {
            let Some(listener) = self.listeners.all.get(index) else { continue };
            if id.is_some_and(|id| id != listener.id) {
                continue;
            }
            let again = listener.closing.is_some();
            listener.closing.get_or_insert_default().extend(waiter.cloned());
            if !listener.armed {
                drop(self.listeners.all.take(index));
            } else if !again {
                self.cancel_accept(index)?;
            }
        }
        Ok(())
    }

    fn accept(&mut self, index: u32) -> io::Result<()> {
        let Some(listener) = self.listeners.all.get(index) else { return Ok(()) };
        listener.armed = true;
        let fd = listener.fd.as_raw_fd();
        self.arm_accept(index, fd)
    }

    /// An accept has brought a connection, or an end.
    pub(super) fn accepted(&mut self, index: u32, result: i32, more: bool) -> io::Result<()> {
        let connection = submit::accepted(result);
        let Some(listener) = self.listeners.all.get(index) else {
            connection.into_iter().for_each(sock::refuse);
            return Ok(());
        };
        let (guest, closing) = (listener.guest, listener.closing.is_some());
        listener.armed = more;
        if let Some(fd) = connection {
            // Also what came before the port was closed.
            self.take_accepted(fd, guest)?;
        }
        if more {
            return Ok(());
        }
        if closing {
            drop(self.listeners.all.take(index));
            return Ok(());
        }
        match -result {
            // The completion queue was full; or the peer had gone before it was accepted, which takes it off
            // the queue: there is an end to that.
            ..=0 | libc::ECONNABORTED | libc::EINTR => self.accept(index),
            errno => {
                self.stack.handle_shortage(Errno(errno), self.now);
                self.listeners.stalled.push(index);
                self.listeners.retry_at.get_or_insert(self.now + ACCEPT_RETRY);
                Ok(())
            }
        }
    }

    /// Arms the accepts that have waited for descriptors or memory.
    pub(super) fn listen_again(&mut self) -> io::Result<()> {
        if self.listeners.retry_at.is_none_or(|at| at > self.now) {
            return Ok(());
        }
        self.listeners.retry_at = None;
        for index in std::mem::take(&mut self.listeners.stalled) {
            // Its place may have gone to another since.
            if self.listeners.all.get(index).is_some_and(|listener| !listener.armed) {
                self.accept(index)?;
            }
        }
        Ok(())
    }

    /// A connection goes to this worker or to another.
    fn take_accepted(&mut self, fd: OwnedFd, guest: SocketAddr) -> io::Result<()> {
        // Reset already: nothing is left to be told.
        let Some(peer) = sock::peer(&fd) else { return Ok(()) };
        let mut connection = Connection { fd, peer, guest };
        if let Some(worker) = self.stack.place_accepted() {
            match self.team.give(worker, connection) {
                Ok(Posted::Ring(ring)) => return self.ring_bell(worker, ring),
                Ok(_) => return Ok(()),
                Err(back) => {
                    self.stack.unplace_accepted(worker);
                    connection = back;
                }
            }
        }
        let flow = self.stack.handle_accepted(peer, guest, self.now);
        self.install(connection.fd, flow);
        Ok(())
    }

    /// Takes the connections that other workers have given to this one.
    pub(super) fn take_connections(&mut self) {
        for Connection { fd, peer, guest } in self.team.given(self.me) {
            let flow = self.stack.handle_placed(peer, guest, self.now);
            self.install(fd, flow);
        }
    }

    fn install(&mut self, fd: OwnedFd, flow: Option<FlowId>) {
        match flow {
            Some(flow) => self.put_sock(flow, Sock::new(fd, flow.generation)),
            None => sock::refuse(fd),
        }
    }
}
