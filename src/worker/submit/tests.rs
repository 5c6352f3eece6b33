//! A worker on a real ring with TCP sockets on loopback, asked by actions; a socket pair is the TAP.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use super::super::{Mailbox, TapQueue};
use super::*;
use crate::config::NetConfig;

/// A worker, and connections that it has: flow `n`'s peer is `peers[n]`.
struct Bed {
    worker: Worker,
    peers: Vec<TcpStream>,
    _tap: UnixDatagram,
}

fn flow(index: u32) -> FlowId {
    FlowId { index, generation: 0 }
}

impl Bed {
    fn new(connections: u32) -> Self {
        let (tap, other) = UnixDatagram::pair().unwrap();
        let mailbox =
            Arc::new(Mailbox { requests: Mutex::default(), bell: EventFd::new().unwrap() });
        let (notices, _) = tokio::sync::mpsc::unbounded_channel();
        let tap_queue = TapQueue { fd: other.into(), vnet: true, reads: true };
        let worker = Worker::new(tap_queue, NetConfig::native(), &[], mailbox, notices).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut bed = Self { worker, peers: Vec::new(), _tap: tap };
        for index in 0..connections {
            let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            ours.set_nonblocking(true).unwrap();
            bed.peers.push(listener.accept().unwrap().0);
            bed.worker.put_sock(flow(index), Sock::new(ours.into(), 0));
        }
        bed
    }

    fn sock(&mut self, index: u32) -> &mut Sock {
        self.worker.socks[index as usize].as_mut().unwrap()
    }

    /// One turn; the number of completions it brought.
    fn turn(&mut self) -> usize {
        self.worker.ring.turn(Some(Duration::from_millis(5))).unwrap();
        let mut count = 0;
        while let Some(entry) = self.worker.ring.completion() {
            self.worker.complete(Token::unpack(entry.user_data()), &entry).unwrap();
            count += 1;
        }
        self.worker.feed_hungry().unwrap();
        self.worker.rearm().unwrap();
        count
    }

    /// Turns until `done`; how many completions that took.
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> usize {
        let mut count = 0;
        for _ in 0..1000 {
            if done(self) {
                return count;
            }
            count += self.turn();
        }
        panic!("it never came");
    }

    /// Writes until the socket takes no more, and the peer's kernel has taken all that it will.
    fn fill(&mut self, index: u32) {
        let mut stream = TcpStream::from(self.sock(index).fd.try_clone().unwrap());
        let mut quiet = 0;
        while quiet < 10 {
            match stream.write(&[7; 1 << 16]) {
                Ok(_) => quiet = 0,
                Err(e) if e.kind() == ErrorKind::WouldBlock => quiet += 1,
                Err(e) => panic!("{e}"),
            }
            if quiet > 0 {
                self.turn();
            }
        }
    }
}

/// Whether the core waits for room.
fn waits(sock: &Sock) -> bool {
    match sock.watch {
        Watch::No => sock.in_flight(Op::PollOut),
        Watch::Awaited => true,
        Watch::Idle | Watch::Ready => false,
    }
}

#[test]
fn a_full_socket_whose_peer_has_sent_its_fin_neither_spins_nor_stalls() {
    let mut bed = Bed::new(1);
    bed.peers[0].shutdown(std::net::Shutdown::Write).unwrap();
    bed.fill(0);
    for round in 0..3 {
        bed.worker.submit(Action::TcpPollOut { flow: flow(0) }).unwrap();
        let completions: usize = (0..20).map(|_| bed.turn()).sum();
        assert!(waits(bed.sock(0)), "there is no room, round {round}");
        assert!(completions <= 4, "{completions} in 20 turns");
        // Room comes, and the core hears of it.
        let mut buffer = vec![0; 1 << 20];
        bed.until(|bed| {
            bed.peers[0].set_nonblocking(true).unwrap();
            while bed.peers[0].read(&mut buffer).is_ok_and(|n| n > 0) {}
            !waits(bed.sock(0))
        });
        bed.fill(0);
        // Room that came between the last write and the question is told at once.
        while bed.sock(0).watch == Watch::Ready {
            bed.worker.submit(Action::TcpPollOut { flow: flow(0) }).unwrap();
            assert!(!waits(bed.sock(0)));
            bed.fill(0);
        }
    }
    bed.worker.submit(Action::Close { flow: flow(0), reset: true }).unwrap();
    bed.until(|bed| bed.worker.socks[0].is_none());
}

#[test]
fn a_watched_socket_tells_of_a_reset_after_a_fin() {
    let mut bed = Bed::new(1);
    bed.worker.submit(Action::TcpPollError { flow: flow(0) }).unwrap();
    bed.peers[0].shutdown(std::net::Shutdown::Write).unwrap();
    let completions: usize = (0..20).map(|_| bed.turn()).sum();
    assert!(completions <= 2, "{completions} in 20 turns");
    assert!(bed.sock(0).in_flight(Op::PollError), "the FIN ended the watch");
    socket2::SockRef::from(&bed.peers[0]).set_linger(Some(Duration::ZERO)).unwrap();
    drop(bed.peers.pop());
    let mut seen = 0;
    bed.until(|bed| {
        seen += bed.turn();
        seen > 0
    });
    assert_eq!(bed.sock(0).error(), 0, "the error was taken, and told");
    bed.worker.submit(Action::Close { flow: flow(0), reset: false }).unwrap();
    bed.until(|bed| bed.worker.socks[0].is_none());
}

#[test]
fn more_receives_than_buffers_all_get_their_turn() {
    let flows = 4 * u32::from(HOST_SLOTS);
    let mut bed = Bed::new(flows);
    for _ in 0..40 {
        // The core asks in whatever order: the same flow first every time.
        for index in 0..flows {
            bed.peers[index as usize].set_nonblocking(true).unwrap();
            let _ = bed.peers[index as usize].write(&[7; 4096]);
            if !bed.sock(index).receiving() {
                bed.worker.submit(Action::TcpRecv { flow: flow(index), max: 1024 }).unwrap();
            }
        }
        bed.turn();
    }
    let (fed, now): (Vec<_>, _) = ((0..flows).map(|i| bed.sock(i).fed).collect(), bed.worker.fed);
    // The last time was within the last round, or the one before.
    assert!(fed.iter().all(|&last| last != 0 && now - last < 2 * u64::from(flows)), "{fed:?}");
    for index in 0..flows {
        bed.worker.submit(Action::Close { flow: flow(index), reset: true }).unwrap();
    }
    bed.until(|bed| bed.worker.socks.iter().all(Option::is_none));
}
