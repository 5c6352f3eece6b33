//! Ports of the host that lead into the guest: listening sockets and bound ones, and their lives in a worker.

use tokio::sync::oneshot;

use super::{ForwardedPort, Worker};
use crate::config::ForwardId;

impl Worker {
    /// Accepts connections on a listening socket from now on.
    pub(super) fn listen(&mut self, port: ForwardedPort) {
        drop(port);
    }

    /// Ends a forward.
    pub(super) fn unforward(&mut self, _: ForwardId, done: oneshot::Sender<()>) {
        drop(done);
    }
}
