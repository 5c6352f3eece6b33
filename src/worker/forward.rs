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
//! would end at once, again and again (and go by the limit on descriptors as it was when it was armed): it waits for [`ACCEPT_RETRY`] then, and the connection in the kernel's queue. Nothing is
//! closed to make room but what has been idle for long.
//!
//! With several workers, the one that listens gives a connection to the one that has fewer.
//!
//! Closing, some in a turn: cancel, wait for the accept's last completion, close. Whoever asked for it hears when all sockets are closed,
//! by the end of a channel that each of them holds.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use tokio::sync::oneshot;

use super::sock::{self, Sock};
use super::submit;
use super::team::{Connection, Origin};
use super::token::Token;
use super::{ForwardedPort, InFlight, Worker};
use crate::config::{ForwardId, Transport};
use crate::flow::{Errno, FlowId};
use crate::limits::{ACCEPT_RETRY, REQUESTS_TURN};
use crate::stack::descriptors::Taken;
use crate::time::Time;

/// Who waits for ports to be free: told when the last of the sockets drops it.
pub(super) type Waiter = Rc<oneshot::Sender<()>>;

/// All sockets of a worker that listen.
pub(super) struct Listeners {
    all: InFlight<Listener>,
    /// Those whose accept is to be armed at `retry_at`.
    stalled: Vec<u32>,
    retry_at: Option<Time>,
    /// Those that are to be closed.
    leaving: VecDeque<u32>,
}

/// A socket that listens.
struct Listener {
    // First it is closed, then the number of descriptors is less, then whoever waits for that is told: in this order.
    fd: OwnedFd,
    #[expect(dead_code, reason = "is there to be dropped")]
    taken: Taken,
    id: ForwardId,
    guest: SocketAddr,
    /// Its accept is in flight.
    armed: bool,
    /// It is to be closed, and these are told.
    closing: Option<Vec<Waiter>>,
}

impl Listeners {
    /// The accepts that are in flight.
    pub(super) fn accepts(&self) -> impl Iterator<Item = Token> {
        self.all.indices().map(Token::Accept)
    }

    pub(super) fn new() -> Self {
        Self { all: InFlight::new(), stalled: Vec::new(), retry_at: None, leaving: VecDeque::new() }
    }

    /// Whether some wait for the next turn.
    pub(super) fn behind(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// When some are to be tried again.
    pub(super) fn retry_at(&self) -> Option<Time> {
        self.retry_at
    }
}

impl Worker {
    /// Carries a port into the guest from now on, and says whether it does. `Err`: the worker cannot go on.
    pub(super) fn carry(&mut self, port: ForwardedPort) -> io::Result<()> {
        let done = port.done.clone();
        let result = match port.transport {
            _ if self.stack.is_draining() => Err(io::Error::other("the guest is about to end")),
            Transport::Tcp => {
                self.listen(port)?;
                Ok(())
            }
            Transport::Udp => self.bind(port),
        };
        // Who has not waited for the answer has ended the forward.
        let _ = done.send(result);
        Ok(())
    }

    /// Accepts connections on a listening socket.
    fn listen(&mut self, port: ForwardedPort) -> io::Result<()> {
        let ForwardedPort { id, socket: fd, taken, guest, .. } = port;
        // Fails on no socket of TCP; and if it did, connections would be a little worse.
        let _ = sock::prepare_listener(&fd);
        let listener = Listener { fd, taken, id, guest, armed: false, closing: None };
        let index = self.listeners.all.put(listener);
        self.accept(index)
    }

    /// Ends a forward.
    pub(super) fn unforward(&mut self, id: ForwardId, done: oneshot::Sender<()>) {
        let done = Rc::new(done);
        self.unbind(id, &done);
        self.close_listeners(Some(id), Some(&done));
    }

    /// Has the listening sockets of a forward closed, or all: see [`Worker::serve_listeners`].
    pub(super) fn close_listeners(&mut self, id: Option<ForwardId>, waiter: Option<&Waiter>) {
        for index in 0..self.listeners.all.places() {
            let Some(listener) = self.listeners.all.get(index) else { continue };
            if id.is_some_and(|id| id != listener.id) {
                continue;
            }
            if listener.closing.is_none() {
                self.listeners.leaving.push_back(index);
            }
            listener.closing.get_or_insert_default().extend(waiter.cloned());
        }
    }

    /// Does what is due for listening sockets: closes some of those that are to be closed, and arms what has waited for
    /// descriptors or memory.
    pub(super) fn serve_listeners(&mut self) -> io::Result<()> {
        for _ in 0..REQUESTS_TURN {
            let Some(index) = self.listeners.leaving.pop_front() else { break };
            // Its accept may have ended by itself since, and the place gone to another.
            let listener = self.listeners.all.get(index).filter(|l| l.closing.is_some());
            match listener.map(|listener| listener.armed) {
                Some(true) => self.cancel(Token::Accept(index))?,
                Some(false) => drop(self.listeners.all.take(index)),
                None => {}
            }
        }
        self.listen_again()
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

    fn listen_again(&mut self) -> io::Result<()> {
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
        let mut connection = Connection { fd, from: Origin::Accepted { peer, guest } };
        if let Some(worker) = self.stack.place_accepted(self.now) {
            match self.give(worker, connection)? {
                None => return Ok(()),
                Some(back) => {
                    self.stack.unplace_accepted(worker);
                    connection = back;
                }
            }
        }
        let flow = self.stack.handle_accepted(peer, guest, self.now);
        self.install(connection.fd, flow);
        Ok(())
    }

    pub(super) fn install(&mut self, fd: OwnedFd, flow: Option<FlowId>) {
        match flow {
            Some(flow) => self.put_sock(flow, Sock::new(fd, flow.generation)),
            None => sock::refuse(fd),
        }
    }
}
