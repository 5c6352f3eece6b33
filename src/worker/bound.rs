//! Ports of the host whose datagrams go into the guest: bound sockets, and their lives in a worker.
//!
//! A bound socket is a flow's like any other datagram socket: armed, sent on and closed by the same code
//! ([`dgram`]). It has come from outside, and it ends when its forward does.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;

use super::forward::Waiter;
use super::run::Limit;
use super::sock::Sock;
use super::{ForwardedPort, Worker, dgram};
use crate::config::ForwardId;
use crate::limits::FLOWS_MAX;
use crate::stack::bound::Bound;

/// The worker, of so many that read what the guest sends, that is to have the UDP ports that lead to an endpoint of the
/// guest: all of them, for what the guest answers finds its way by what that one knows ([`crate::stack::bound`]).
pub fn home(guest: &SocketAddr, workers: usize) -> usize {
    // Those of a range in turn.
    usize::from(guest.port()) % workers.max(1)
}

impl Worker {
    /// Takes datagrams of a bound socket from now on. `Err`: it cannot, and the socket is closed.
    pub(super) fn bind(&mut self, port: ForwardedPort) -> io::Result<()> {
        // What was taken is dropped after the socket that it stands for.
        let ForwardedPort { id, taken, socket, guest, .. } = port;
        let its = SockRef::from(&socket);
        let local = its.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        let device = its.device()?.is_some();
        dgram::configure(&socket, local.is_ipv4(), true)?;
        let told = local.ip().is_unspecified();
        if told {
            dgram::ask_local(&socket, local.is_ipv4())?;
        }
        let bound = Bound { guest, local, device };
        let Some(flow) = self.stack.handle_bound(&bound, taken, self.now) else {
            return Err(io::Error::other(format!(
                "its worker has no room for another conversation ({FLOWS_MAX} at most); try again when some have ended, \
                 or with more workers"
            )));
        };
        let mut sock = Sock::new(socket, flow.generation);
        sock.told = told;
        self.put_dgram(flow, sock, Limit::ethernet(local.is_ipv4()));
        self.rearm.push(flow);
        self.bound.entry(id).or_default().push(flow);
        Ok(())
    }

    /// Closes the bound sockets of a forward; `done` is dropped with the last.
    pub(super) fn unbind(&mut self, id: ForwardId, done: &Waiter) {
        for flow in self.bound.remove(&id).unwrap_or_default() {
            if let Some(sock) = self.sock(flow) {
                sock.freed = Some(done.clone());
            }
            self.stack.handle_unbound(flow, self.now);
        }
    }
}
