//! The host sockets of flows: made, configured, closed by plain system calls, which are cheaper than
//! the ring for this.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::forward::Waiter;
use super::outbound;
use super::run::Limit;
use super::token::Op;
use crate::arena::Chain;
use crate::config::NetConfig;
use crate::flow::Errno;

/// A flow's socket, and what is in flight on it.
#[derive(Debug)]
pub(super) struct Sock {
    pub(super) fd: OwnedFd,
    pub(super) generation: u32,
    /// [`Op`]s in flight, as bits.
    ops: u8,
    /// Datagram sends in flight.
    pub(super) sends: u32,
    /// The newest send of the turn, which may take more datagrams.
    pub(super) open: Option<u32>,
    /// Which datagrams leave in runs.
    pub(super) run_limit: Limit,
    /// To be closed when nothing is in flight any more.
    pub(super) closing: bool,
    /// Ops that were asked for but ended for want of a buffer, to be submitted again.
    pub(super) rearm: u8,
    /// Bytes that the core has asked for last.
    pub(super) recv_max: u32,
    /// A receive found no buffer, and waits in the worker's queue.
    pub(super) hungry: bool,
    /// Count of what sockets have brought when this one last brought something.
    pub(super) fed: u64,
    /// What a receive of many slots fills.
    pub(super) receiving: Chain,
    /// What a TCP send in flight carries.
    pub(super) sending: Chain,
    /// The standing watch for room that takes the place of a poll behind the peer's FIN.
    pub(super) watch: Watch,
    /// Don't-fragment mode the socket is in, to set it only when it changes.
    pub(super) df: Option<bool>,
    /// Its datagrams leave by the outbound interface, where there is one.
    pub(super) outbound: bool,
    /// It is told to which of the host's addresses a datagram came.
    pub(super) told: bool,
    /// Dropped when the descriptor is closed, which is before: fields drop in order.
    pub(super) freed: Option<Waiter>,
}

/// A multishot poll for room. A one-shot poll also ends for the peer's FIN (the ring asks for `POLLRDHUP`
/// whether one wants it or not) and would do so again at once, for ever; this one stays, and speaks
/// only when something changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// There is none: polls are one-shot.
    No,
    /// The core waits for room.
    Awaited,
    /// Nobody waits.
    Idle,
    /// Nobody waits, and there has been room since the core last waited.
    Ready,
}

impl Sock {
    pub(super) fn new(fd: OwnedFd, generation: u32) -> Self {
        Self {
            fd,
            generation,
            ops: 0,
            sends: 0,
            open: None,
            run_limit: Limit::NONE,
            closing: false,
            rearm: 0,
            recv_max: 0,
            hungry: false,
            fed: 0,
            receiving: Chain::new(),
            sending: Chain::new(),
            watch: Watch::No,
            df: None,
            outbound: false,
            told: false,
            freed: None,
        }
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(super) fn begin(&mut self, op: Op) {
        debug_assert!(self.ops & op as u8 == 0, "{op:?} is already in flight");
        self.ops |= op as u8;
    }

    pub(super) fn end(&mut self, op: Op) {
        self.ops &= !(op as u8);
    }

    #[cfg(test)]
    pub(super) fn receiving(&self) -> bool {
        self.in_flight(Op::Recv) || self.hungry
    }

    #[cfg(test)]
    pub(super) fn in_flight(&self, op: Op) -> bool {
        self.ops & op as u8 != 0
    }

    /// What is in flight, but for sends of datagrams.
    pub(super) fn ops(&self) -> impl Iterator<Item = Op> + use<> {
        let ops = self.ops;
        Op::ALL.into_iter().filter(move |&op| ops & op as u8 != 0)
    }

    /// Whether nothing is in flight.
    pub(super) fn quiet(&self) -> bool {
        self.ops == 0 && self.sends == 0
    }

    /// Makes `close` send a RST.
    pub(super) fn reset_on_close(&self) {
        // Fails only on a socket that has no connection to reset.
        let _ = SockRef::from(&self.fd).set_linger(Some(Duration::ZERO));
    }

    /// `shutdown(SHUT_WR)`.
    pub(super) fn shutdown(&self) {
        // ENOTCONN: the peer has reset; the receive in flight says so.
        let _ = SockRef::from(&self.fd).shutdown(std::net::Shutdown::Write);
    }

    /// The socket's pending error (`SO_ERROR`), 0 for none.
    pub(super) fn error(&self) -> i32 {
        match SockRef::from(&self.fd).take_error() {
            Ok(Some(e)) | Err(e) => e.raw_os_error().unwrap_or(libc::EIO),
            Ok(None) => 0,
        }
    }

    /// What became of a connect whose completion says 0. That is not always the truth (seen on 6.18): an
    /// ICMP error that arrives while the SYN is being sent, as from a router that is one veth away, is
    /// kept as a soft error, the request ends with 0, and the socket has no peer.
    pub(super) fn connected(&self) -> Result<(), Errno> {
        if SockRef::from(&self.fd).peer_addr().is_ok() {
            return Ok(());
        }
        match self.error() {
            0 => Err(Errno(libc::ENOTCONN)),
            errno => Err(Errno(errno)),
        }
    }
}

/// Sets on a listening socket what its connections shall have: they inherit it (Linux).
pub(super) fn prepare_listener(listener: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.set_out_of_band_inline(true)
}

/// The peer of an accepted connection; `None` when it has reset meanwhile.
pub(super) fn peer(connection: &OwnedFd) -> Option<SocketAddr> {
    SockRef::from(connection).peer_addr().ok()?.as_socket()
}

/// Closes a connection with a RST.
pub(super) fn refuse(connection: OwnedFd) {
    // Fails only on a socket that has no connection to reset.
    let _ = SockRef::from(&connection).set_linger(Some(Duration::ZERO));
}

/// A TCP socket for an outgoing connection.
///
/// # Errors
/// What `socket(2)` or `bind(2)` says.
pub(super) fn tcp(net: &NetConfig, to: &SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(
        Domain::for_address(*to),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    // The guest's kernel has decided what goes into a segment; deciding twice only delays.
    socket.set_tcp_nodelay(true)?;
    // A peer that vanishes is noticed, so that no flow outlives its conversation.
    socket.set_keepalive(true)?;
    // Urgent bytes are bytes.
    socket.set_out_of_band_inline(true)?;
    outbound::bind(&socket, net, to.ip())?;
    Ok(socket.into())
}
