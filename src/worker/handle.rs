//! A worker from outside: how control starts it, speaks to it, and hears of its end.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc::UnboundedSender;

use super::team::Team;
use super::{Descriptors, Notice, Request, TapQueue, Worker};
use crate::config::NetConfig;

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    team: Arc<Team>,
    mailbox: Arc<Mailbox>,
    reads: bool,
    thread: thread::JoinHandle<()>,
}

/// What control has asked for, and the bell that says so.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub(super) requests: Mutex<Vec<Request>>,
    pub(super) bell: EventFd,
}

impl Handle {
    /// Starts a worker thread on a TAP queue. Its notices arrive at `notices`.
    ///
    /// # Errors
    /// What stands in the way of a ring (with the remedy), of memory, or of a thread. When this returns
    /// `Ok`, the ring exists and the first read is under way.
    pub fn spawn(
        tap: TapQueue,
        net: NetConfig,
        resolvers: Vec<IpAddr>,
        notices: UnboundedSender<Notice>,
    ) -> io::Result<Self> {
        Self::spawn_in(&Team::new(1, 1, [0; 2]), 0, tap, net, resolvers, notices)
    }

    /// Starts one worker of several: member `me` of the team.
    ///
    /// # Errors
    /// As [`Handle::spawn`].
    pub fn spawn_in(
        team: &Arc<Team>,
        me: u8,
        tap: TapQueue,
        net: NetConfig,
        resolvers: Vec<IpAddr>,
        notices: UnboundedSender<Notice>,
    ) -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mailbox = Arc::new(Mailbox { requests: Mutex::new(Vec::new()), bell });
        let theirs = mailbox.clone();
        let (started, start) = mpsc::channel();
        let (team, its_team) = (team.clone(), team.clone());
        let (name, reads) = (format!("worker-{me}"), tap.reads);
        let thread = thread::Builder::new().name(name).stack_size(256 << 10).spawn(move || {
            // Slots and the ring belong to this thread: all is made here.
            let worker = Worker::new(tap, net, &resolvers, theirs, notices.clone());
            let mut worker = match worker {
                Ok(worker) => worker,
                Err(e) => return drop(started.send(Err(e))),
            };
            worker.join(its_team, me);
            let _ = started.send(Ok(()));
            LastWord { notices, me, result: None }.after(move || worker.run());
        })?;
        match start.recv() {
            Ok(Ok(())) => Ok(Self { team, mailbox, reads, thread }),
            Ok(Err(e)) => Err(e),
            Err(mpsc::RecvError) => Err(io::Error::other("the worker died at its start")),
        }
    }

    /// What flows and forwarded ports of all workers of its team take their descriptors from.
    pub fn descriptors(&self) -> &Arc<Descriptors> {
        self.team.descriptors()
    }

    /// Whether it reads what the guest sends ([`TapQueue::reads`]).
    pub fn reads(&self) -> bool {
        self.reads
    }

    /// Passes a request on; it is taken up within the worker's current turn, or wakes it.
    pub fn request(&self, request: Request) {
        self.mailbox.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        // Fails only when the counter is full: then the worker is awake anyway.
        let _ = self.mailbox.bell.write(1);
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(self) {
        self.request(Request::Stop);
        let _ = self.thread.join();
    }
}

/// Says that a worker has ended, last of all, however it ends.
struct LastWord {
    notices: UnboundedSender<Notice>,
    me: u8,
    /// `None`: it panicked.
    result: Option<io::Result<()>>,
}

impl LastWord {
    /// Lets it work. All that it has is gone before the word is said.
    fn after(mut self, work: impl FnOnce() -> io::Result<()>) {
        self.result = Some(work());
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        let died = || Err(io::Error::other("it died of a mistake of ringtap's own (a panic)"));
        let result = self.result.take().unwrap_or_else(died);
        let _ = self.notices.send(Notice::Ended(self.me, result));
    }
}

#[cfg(test)]
mod tests;
