//! Connections that change their worker: given, taken, and brought to rest before.
#![forbid(unsafe_code)]

use std::io;

use super::Worker;
use super::sock::Sock;
use super::team::{Connection, Origin};
use super::token::{Op, Token};
use crate::flow::{Event, FlowId, Received};
use crate::stack::Leave;

impl Worker {
    /// Gives a connection to another worker; gives it back when too many wait there.
    pub(super) fn give(
        &mut self,
        worker: u8,
        connection: Connection,
    ) -> io::Result<Option<Connection>> {
        match self.team.give(worker, connection) {
            Ok(posted) => self.ring_bell(worker, posted).map(|()| None),
            Err(back) => Ok(Some(back)),
        }
    }

    /// Takes the connections that other workers have given to this one.
    pub(super) fn take_connections(&mut self) {
        for Connection { fd, from } in self.team.given(self.me) {
            match from {
                Origin::Accepted { peer, guest } => {
                    let flow = self.stack.handle_placed(peer, guest, self.now);
                    self.install(fd, flow);
                }
                Origin::Worker(migrant) => self.coming.push_back((fd, migrant)),
            }
        }
        // Before the frames that came behind them.
        self.serve_coming();
    }

    /// Lets those arrive that were another worker's, as many as there is room for.
    pub(super) fn serve_coming(&mut self) {
        for _ in 0..self.coming.len() {
            let Some((fd, migrant)) = self.coming.pop_front() else { break };
            match self.stack.arrive(migrant, self.now) {
                Ok(flow) => {
                    self.note_use();
                    self.install(fd, Some(flow));
                    self.team.end_passing();
                }
                Err(migrant) => self.coming.push_back((fd, migrant)),
            }
        }
    }

    /// Begins to bring a socket to rest.
    pub(super) fn set_out(&mut self, flow: FlowId) -> io::Result<()> {
        self.leaving = Some(flow);
        let Some(sock) = self.sock(flow) else { return Ok(()) };
        if std::mem::take(&mut sock.hungry) {
            let event = Event::TcpReceived { flow, result: Received::NoBuffer };
            self.stack.handle_event(event, self.now);
        }
        self.cancel_all_of(flow)
    }

    fn cancel_all_of(&mut self, flow: FlowId) -> io::Result<()> {
        let Some(sock) = self.sock(flow) else { return Ok(()) };
        // A send ends by itself, within the turn.
        for op in sock.ops().filter(|&op| op != Op::Send) {
            self.cancel(Token::Sock(op, flow))?;
        }
        Ok(())
    }

    /// Sees what becomes of the connection that is about to go. True: there may be actions.
    pub(super) fn serve_leaving(&mut self) -> io::Result<bool> {
        let Some(flow) = self.leaving else { return Ok(false) };
        let leave = match self.sock(flow).map(|sock| sock.quiet()) {
            // At rest, and the others have it in their count before it is gone.
            Some(true) if self.team.begin_passing() => {
                let leave = self.stack.leave(self.now);
                if !matches!(leave, Leave::Gone(..)) {
                    self.team.end_passing();
                }
                leave
            }
            Some(false) => {
                // Again: a cancellation that comes while an operation is being tried misses it.
                self.cancel_all_of(flow)?;
                self.stack.linger(self.now)
            }
            Some(true) | None => {
                self.stack.stay(self.now);
                Leave::Stays
            }
        };
        if matches!(leave, Leave::NotYet) {
            return Ok(false);
        }
        self.leaving = None;
        if let Leave::Gone(worker, migrant) = leave
            && let Some(Sock { fd, .. }) = self.socks[flow.index as usize].take()
        {
            let from = Origin::Worker(migrant);
            if let Some(Connection { fd, from: Origin::Worker(migrant) }) =
                self.give(worker, Connection { fd, from })?
            {
                // Too many wait there.
                self.coming.push_back((fd, migrant));
                self.serve_coming();
            }
        }
        Ok(true)
    }
}
