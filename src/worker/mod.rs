//! The data path's kernel edge: one thread, one ring, one TAP queue, and the flows that came by it.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use crate::config::NetConfig;
use crate::stats::Stats;

/// An open TAP queue, as `boot` hands it over.
#[derive(Debug)]
pub struct TapQueue {
    /// The descriptor, attached to the interface.
    pub fd: OwnedFd,
    /// Whether frames carry a virtio header (`IFF_VNET_HDR`).
    pub vnet: bool,
}

/// What control asks of a worker.
#[derive(Debug)]
pub enum Request {
    /// New resolvers, in order.
    Resolvers(Vec<IpAddr>),
    /// No new flows; say [`Notice::Drained`] when nothing is left on its way to the host.
    Drain,
    /// A copy of the counters.
    Stats(mpsc::Sender<Stats>),
    /// End at once.
    Stop,
}

/// What a worker tells control.
#[derive(Debug)]
pub enum Notice {
    /// DNS was asked: time to see whether resolv.conf has changed. At most once a second.
    DnsUsed,
    /// See [`Request::Drain`].
    Drained,
    /// The worker has ended: asked to (`Ok`), or because the TAP is gone or the ring failed.
    Ended(io::Result<()>),
}

/// A running worker.
#[derive(Debug)]
pub struct Handle {}

impl Handle {
    /// Starts a worker thread on a TAP queue. Its notices arrive at `notices`.
    ///
    /// # Errors
    /// What stands in the way of a ring (with the remedy), of memory, or of a thread. When this returns `Ok`, the ring
    /// exists and the first read is under way.
    pub fn spawn(
        _tap: TapQueue,
        _net: NetConfig,
        _resolvers: Vec<IpAddr>,
        _notices: tokio::sync::mpsc::UnboundedSender<Notice>,
    ) -> io::Result<Self> {
        Ok(Self {})
    }

    /// Passes a request on; it is taken up within the worker's current turn, or wakes it.
    pub fn request(&self, _request: Request) {}

    /// Asks it to stop and waits until it has.
    pub fn stop(self) {}
}
