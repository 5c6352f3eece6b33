//! A long path: two TAPs, and this program between them, which holds each frame for a while.
//!
//! In place of netem, which the kernels of small virtual machines do without. As on a veth pair, segments
//! of up to 64 KiB go over it whole and without checksums: the TAPs have a virtio header and every offload.
//! One thread each way: a frame waits in a ring of bytes until it is due, and nothing is lost, reordered
//! or shaped; without room the line does not read, and the TAP's own queue (1,000 frames) is what fills.
//!
//! It costs two copies of every byte, on the same processors as all else: direct veth's row is measured
//! over the same line and shows what that leaves.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sched::{CloneFlags, setns};
use nix::sys::time::TimeSpec;
use ringtap::boot::tap;

use crate::{Context, Res, proc};

/// The host's end of the line.
pub(crate) const HOST_END: &str = "host0";
/// The remote's.
pub(crate) const REMOTE_END: &str = "remote0";
/// The longest frame: virtio header (12), Ethernet (14, and a VLAN's 4), 65,535 bytes of IP.
const FRAME_MOST: usize = 12 + 18 + 65_535;
/// Bytes that may be on their way in one direction: 10 ms at 50 Gbit/s.
const HELD_MOST: usize = 64 << 20;
/// Frames that are read in a row before others are looked at that may be due.
const READ_MOST: usize = 16;

/// Makes the ends, one here and one in the network namespace of process `remote`, says so, and carries frames
/// from one to the other, each `ms` milliseconds after it came, until it is killed.
pub(super) fn lay(remote: u32, ms: u64) -> Res<()> {
    let host = end(HOST_END)?;
    let path = format!("/proc/{remote}/ns/net");
    setns(File::open(&path).context(&path)?, CloneFlags::CLONE_NEWNET).context(&path)?;
    let remote = end(REMOTE_END)?;
    let delay = Duration::from_millis(ms);
    let copy = |end: &File| end.try_clone().context("copy of a descriptor");
    let (far, near) = (copy(&remote)?, copy(&host)?);
    super::say(&serde_json::json!({ "line": ms }))?;
    // Neither way ends but by an error, which ends both.
    let (said, heard) = mpsc::channel();
    for (from, to) in [(host, remote), (far, near)] {
        let said = said.clone();
        thread::spawn(move || said.send(carry(from, to, delay)));
    }
    drop(said);
    heard.recv().context("a thread of the line")?
}

/// A TAP of this name in the network namespace that the process is in.
fn end(name: &str) -> Res<File> {
    let queues = tap::open(name, 1).context("line")?;
    let queue = queues.into_iter().next().ok_or("line: a TAP without a queue")?;
    if !queue.vnet {
        return Err(format!("line: TAP {name} has no virtio header"));
    }
    fcntl(&queue.fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("O_NONBLOCK")?;
    Ok(queue.fd.into())
}

/// One way.
fn carry(mut from: File, mut to: File, delay: Duration) -> Res<()> {
    // Or a sleep takes 50 us longer than asked.
    nix::sys::prctl::set_timerslack(1).context("timer slack")?;
    let mut held = Held::new(HELD_MOST);
    loop {
        let now = proc::now();
        while let Some(frame) = held.due(now) {
            match to.write(frame) {
                Ok(_) => {}
                // The interface is not up (yet), or has no memory: lost, as on any path.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::ENOBUFS)) => {}
                Err(e) => return Err(format!("line: write: {e}")),
            }
            held.pop();
        }
        let mut more = false;
        for _ in 0..READ_MOST {
            let Some(room) = held.room() else { break };
            more = match from.read(room) {
                Ok(len) => {
                    held.push(len, proc::now() + delay);
                    true
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => false,
                // Not up (yet).
                Err(e) if e.raw_os_error() == Some(libc::EIO) => false,
                Err(e) => return Err(format!("line: read: {e}")),
            };
            if !more {
                break;
            }
        }
        if more {
            continue;
        }
        let until =
            held.next().map(|due| TimeSpec::from(due.saturating_duration_since(proc::now())));
        let events = if held.room().is_some() { PollFlags::POLLIN } else { PollFlags::empty() };
        match ppoll(&mut [PollFd::new(from.as_fd(), events)], until, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(format!("line: poll: {e}")),
        }
    }
}

/// Frames on their way, oldest first: their bytes stand one behind the other in a ring, none in two pieces.
struct Held {
    bytes: Vec<u8>,
    /// Where the next frame goes.
    head: usize,
    frames: VecDeque<Frame>,
}

struct Frame {
    due: Instant,
    at: usize,
    len: usize,
}

impl Held {
    fn new(most: usize) -> Self {
        Self { bytes: vec![0; most], head: 0, frames: VecDeque::new() }
    }

    /// Where to read a frame into, `None` when there is no room for the longest.
    fn room(&mut self) -> Option<&mut [u8]> {
        let end = match self.frames.front().map(|f| f.at) {
            None => {
                self.head = 0;
                self.bytes.len()
            }
            // The free part is between the newest and the oldest. It never becomes none, which would look
            // like all.
            Some(oldest) if self.head < oldest => oldest - 1,
            Some(oldest) if self.bytes.len() - self.head < FRAME_MOST => {
                if oldest <= FRAME_MOST {
                    return None;
                }
                self.head = 0;
                oldest - 1
            }
            Some(_) => self.bytes.len(),
        };
        let room = &mut self.bytes[self.head..end];
        room.get_mut(..FRAME_MOST)
    }

    /// Keeps what has been read into [`Self::room`].
    fn push(&mut self, len: usize, due: Instant) {
        self.frames.push_back(Frame { due, at: self.head, len });
        self.head += len;
    }

    /// The oldest, if its time has come.
    fn due(&self, now: Instant) -> Option<&[u8]> {
        let frame = self.frames.front().filter(|f| f.due <= now)?;
        Some(&self.bytes[frame.at..frame.at + frame.len])
    }

    /// Done with the oldest.
    fn pop(&mut self) {
        self.frames.pop_front();
    }

    /// When the oldest is due.
    fn next(&self) -> Option<Instant> {
        self.frames.front().map(|f| f.due)
    }
}

/// The ring, filled and emptied until it has gone round many times (`--test`): every frame comes out whole,
/// in order and not before its time, and it is full when it should be.
pub(crate) fn self_check() -> Res<()> {
    let mut held = Held::new(4 * FRAME_MOST);
    let begin = proc::now();
    let at = |n: u64| begin + Duration::from_millis(n);
    let len = |n: u64| 1 + (n * 7919) as usize % FRAME_MOST;
    let (mut pushed, mut popped, mut full) = (0, 0, 0);
    while popped < 1000 {
        match held.room() {
            Some(room) if pushed - popped < 20 => {
                room[..len(pushed)].fill(pushed as u8);
                held.push(len(pushed), at(pushed));
                pushed += 1;
                continue;
            }
            Some(_) => {}
            None => full += 1,
        }
        if held.due(at(popped) - Duration::from_nanos(1)).is_some()
            || held.next() != Some(at(popped))
        {
            return Err(format!("line: frame {popped} is due too early"));
        }
        let good = |f: &[u8]| f.len() == len(popped) && f.iter().all(|&b| b == popped as u8);
        if !held.due(at(popped)).is_some_and(good) {
            return Err(format!("line: frame {popped} came out damaged"));
        }
        held.pop();
        popped += 1;
    }
    // Three of the longest, and some that are shorter: it holds a few at a time, or it is not a ring.
    if full > 100 && pushed > popped { Ok(()) } else { Err(format!("line: full {full} times")) }
}
