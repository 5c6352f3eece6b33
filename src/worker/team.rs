//! What the workers of one guest have in common: the directory of flows, the descriptors that they may hold, and an
//! inbox each for frames that came by another's queue, and for connections that another has accepted or had.
//!
//! A frame is handed over by copying it: a slot belongs to one thread. An inbox is a run of bytes, which its owner
//! exchanges for an empty one of its own, so that what comes now and then allocates nothing; its bounds are
//! [`HAND_OVER_FRAMES`] and [`HAND_OVER_BYTES`]. A connection is a descriptor that changes its owner; at most
//! [`HAND_OVER_CONNECTIONS`] wait. The doorbell is a message to the owner's ring (`MSG_RING`), rung once
//! until it is answered.

use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::resource::{Resource, getrlimit};

use crate::flow::Handed;
use crate::limits::{
    DESCRIPTORS_OWN, HAND_OVER_BYTES, HAND_OVER_CONNECTIONS, HAND_OVER_FRAMES, MIGRANTS, SLOT_BYTES,
};
use crate::stack::Migrant;
use crate::stack::descriptors::Descriptors;
use crate::stack::directory::{Directory, Seat};

/// The workers of one guest.
#[derive(Debug)]
pub struct Team {
    /// `None` for one worker alone: it owns everything.
    directory: Option<Arc<Directory>>,
    descriptors: Arc<Descriptors>,
    inboxes: Vec<Inbox>,
    processors: usize,
    /// Connections that have left one member and are not yet with another.
    passing: AtomicUsize,
    /// Members tell what is left of their connections: none leaves any more.
    draining: AtomicBool,
}

#[derive(Debug)]
struct Inbox {
    frames: Mutex<Frames>,
    connections: Mutex<Vec<Connection>>,
    /// The bell is rung, and its owner has not looked since.
    rung: AtomicBool,
    /// The owner's ring; -1: none yet, or none any more.
    ring: AtomicI32,
}

/// One that another worker is to have.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) fd: OwnedFd,
    pub(super) from: Origin,
}

/// Where a connection is from.
#[derive(Debug)]
pub(super) enum Origin {
    /// A forwarded port has accepted it.
    Accepted {
        peer: SocketAddr,
        /// Where in the guest it leads.
        guest: SocketAddr,
    },
    /// A worker had it.
    Worker(Box<Migrant>),
}

/// How a frame was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Posted {
    /// This ring is to be told.
    Ring(RawFd),
    /// The owner knows, or will look when it starts.
    Quietly,
    /// It was not: the inbox is full.
    Full,
}

impl Team {
    /// A team of so many that may use so many processors; `secret` is random.
    pub fn new(workers: usize, processors: usize, secret: [u64; 2]) -> Arc<Self> {
        let inbox = |_| Inbox {
            frames: Mutex::default(),
            connections: Mutex::default(),
            rung: AtomicBool::new(false),
            ring: AtomicI32::new(-1),
        };
        Arc::new(Self {
            directory: (workers > 1).then(|| Directory::new(workers, secret)),
            descriptors: Descriptors::new(descriptors_max(), workers),
            inboxes: (0..workers).map(inbox).collect(),
            processors,
            passing: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
        })
    }

    /// Members.
    pub fn len(&self) -> usize {
        self.inboxes.len()
    }

    /// Processors that it may use.
    pub(super) fn processors(&self) -> usize {
        self.processors
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.inboxes.is_empty()
    }

    /// What flows, and the sockets of forwarded ports, take their descriptors from.
    pub fn descriptors(&self) -> &Arc<Descriptors> {
        &self.descriptors
    }

    /// A member's place in the directory.
    pub(super) fn seat(&self, me: u8) -> Option<Seat> {
        self.directory.clone().map(|directory| Seat::new(directory, me))
    }

    /// Says which ring is a member's bell, -1 for none. What was posted before must be looked for after this.
    pub(super) fn set_ring(&self, me: u8, ring: RawFd) {
        if let Some(inbox) = self.inboxes.get(usize::from(me)) {
            inbox.ring.store(ring, Ordering::Release);
        }
    }

    /// Puts a frame into a member's inbox.
    pub(super) fn post(&self, to: u8, frame: &[u8], about: Handed) -> Posted {
        let Some(inbox) = self.inboxes.get(usize::from(to)) else { return Posted::Full };
        if !inbox.frames.lock().unwrap_or_else(PoisonError::into_inner).put(frame, about) {
            return Posted::Full;
        }
        inbox.ring()
    }

    /// A connection is about to leave a member. False: it must not, now.
    pub(super) fn begin_passing(&self) -> bool {
        let others = self.passing.fetch_add(1, Ordering::SeqCst);
        // After the count: either this sees that members drain, or who drains sees the count.
        let may = others < MIGRANTS && !self.draining.load(Ordering::SeqCst);
        if !may {
            self.end_passing();
        }
        may
    }

    /// It has arrived, or has not left.
    pub(super) fn end_passing(&self) {
        self.passing.fetch_sub(1, Ordering::SeqCst);
    }

    /// No connection leaves its member from now on.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether every connection is with a member, once and for all after [`Team::drain`].
    pub(super) fn all_arrived(&self) -> bool {
        self.passing.load(Ordering::SeqCst) == 0
    }

    /// Gives a connection to a member.
    ///
    /// # Errors
    /// The connection, when too many wait there.
    pub(super) fn give(&self, to: u8, connection: Connection) -> Result<Posted, Connection> {
        let Some(inbox) = self.inboxes.get(usize::from(to)) else { return Err(connection) };
        let mut waiting = inbox.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= HAND_OVER_CONNECTIONS {
            return Err(connection);
        }
        waiting.push(connection);
        drop(waiting);
        Ok(inbox.ring())
    }

    /// The connections that were given to a member; to be called when its frames are taken.
    pub(super) fn given(&self, me: u8) -> Vec<Connection> {
        let Some(inbox) = self.inboxes.get(usize::from(me)) else { return Vec::new() };
        std::mem::take(&mut *inbox.connections.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The bell of a member could not be rung: the next frame tries again, and the caller at once where a connection waits.
    pub(super) fn unring(&self, to: u8) -> Posted {
        let Some(inbox) = self.inboxes.get(usize::from(to)) else { return Posted::Quietly };
        inbox.rung.store(false, Ordering::Release);
        let none = inbox.connections.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if none { Posted::Quietly } else { inbox.ring() }
    }

    /// Exchanges a member's inbox for `empty`.
    pub(super) fn take(&self, me: u8, empty: &mut Frames) {
        let Some(inbox) = self.inboxes.get(usize::from(me)) else { return };
        // Before the look: what comes after it rings again.
        inbox.rung.store(false, Ordering::Release);
        std::mem::swap(&mut *inbox.frames.lock().unwrap_or_else(PoisonError::into_inner), empty);
    }

    /// Gives back the memory of a member's inbox, while nothing is in it.
    pub(super) fn trim(&self, me: u8) {
        if let Some(inbox) = self.inboxes.get(usize::from(me)) {
            inbox.frames.lock().unwrap_or_else(PoisonError::into_inner).trim();
        }
    }
}

/// Descriptors that workers and ports may hold together: the process's limit, less what it needs otherwise.
fn descriptors_max() -> u32 {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    soft.saturating_sub(DESCRIPTORS_OWN).clamp(1, i32::MAX as u64) as u32
}

impl Inbox {
    /// Something was put in: whether its owner must be told. Whoever clears the flag takes it along.
    fn ring(&self) -> Posted {
        if self.rung.swap(true, Ordering::AcqRel) {
            return Posted::Quietly;
        }
        match self.ring.load(Ordering::Acquire) {
            -1 => Posted::Quietly,
            ring => Posted::Ring(ring),
        }
    }
}

/// Frames, one after the other, each behind its length.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    count: usize,
    /// Where the next to be read begins.
    at: usize,
}

/// Set in the length: [`Handed::cut`].
const CUT: u32 = 1 << 31;
/// Set in the length: [`Handed::placed`].
const PLACED: u32 = 1 << 30;
const LENGTH: usize = size_of::<u32>();
const _: () = assert!(SLOT_BYTES < PLACED as usize);

impl Frames {
    /// Adds one; false: there is no room.
    fn put(&mut self, frame: &[u8], about: Handed) -> bool {
        if self.count >= HAND_OVER_FRAMES
            || self.bytes.len() + LENGTH + frame.len() > HAND_OVER_BYTES
        {
            return false;
        }
        let bit = |set, bit| if set { bit } else { 0 };
        let word = frame.len() as u32 | bit(about.cut, CUT) | bit(about.placed, PLACED);
        self.bytes.extend_from_slice(&word.to_ne_bytes());
        self.bytes.extend_from_slice(frame);
        self.count += 1;
        true
    }

    /// Whether all are read.
    pub(super) fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Option<(&[u8], Handed)> {
        let (word, rest) = self.bytes.get(self.at..)?.split_first_chunk::<LENGTH>()?;
        let word = u32::from_ne_bytes(*word);
        let frame = rest.get(..(word & !(CUT | PLACED)) as usize)?;
        self.at += LENGTH + frame.len();
        Some((frame, Handed { cut: word & CUT != 0, placed: word & PLACED != 0 }))
    }

    /// Forgets all, and keeps the memory: more comes soon, or it is [`Self::trim`]med.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        (self.count, self.at) = (0, 0);
    }

    /// Gives memory back, where it is not in use.
    pub(super) fn trim(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Handed = Handed { cut: false, placed: false };
    const CUT: Handed = Handed { cut: true, placed: false };
    const PLACED: Handed = Handed { cut: false, placed: true };

    #[test]
    fn frames_come_out_as_they_went_in() {
        let team = Team::new(2, 2, [1, 2]);
        team.set_ring(1, 7);
        assert_eq!(team.post(1, b"one", PLAIN), Posted::Ring(7));
        assert_eq!(team.post(1, b"", CUT), Posted::Quietly);
        assert_eq!(team.post(1, b"three", PLACED), Posted::Quietly);
        let mut frames = Frames::default();
        team.take(0, &mut frames);
        assert!(frames.is_empty());
        team.take(1, &mut frames);
        assert_eq!(frames.next(), Some((&b"one"[..], PLAIN)));
        assert_eq!(frames.next(), Some((&b""[..], CUT)));
        assert!(!frames.is_empty());
        assert_eq!(frames.next(), Some((&b"three"[..], PLACED)));
        assert_eq!(frames.next(), None);
        assert!(frames.is_empty());
        // Answered, the bell rings again; where it cannot, the next frame tries.
        assert_eq!(team.post(1, b"four", PLAIN), Posted::Ring(7));
        assert_eq!(team.unring(1), Posted::Quietly);
        assert_eq!(team.post(1, b"five", PLAIN), Posted::Ring(7));
    }

    #[test]
    fn an_inbox_is_bounded_by_frames_and_by_bytes() {
        let team = Team::new(2, 2, [1, 2]);
        for _ in 0..HAND_OVER_FRAMES {
            assert_eq!(team.post(0, b"x", PLAIN), Posted::Quietly);
        }
        assert_eq!(team.post(0, b"x", PLAIN), Posted::Full);
        let mut frames = Frames::default();
        team.take(0, &mut frames);
        assert_eq!(team.post(0, b"x", PLAIN), Posted::Quietly);
        let large = vec![0; SLOT_BYTES];
        let fits = HAND_OVER_BYTES / (SLOT_BYTES + LENGTH);
        for _ in 0..fits {
            assert_ne!(team.post(1, &large, PLAIN), Posted::Full);
        }
        assert_eq!(team.post(1, &large, PLAIN), Posted::Full);
        assert_eq!(team.post(9, b"nobody", PLAIN), Posted::Full);
        frames.clear();
        assert!(frames.is_empty());
        // Memory stays for the next ones, until it is asked for; what waits stays in any case.
        assert!(frames.bytes.capacity() > 0);
        frames.trim();
        assert_eq!(frames.bytes.capacity(), 0);
        team.trim(1);
        team.take(1, &mut frames);
        assert!(frames.next().is_some_and(|(frame, _)| frame == large));
    }

    #[test]
    fn connections_are_given_and_bounded() {
        let team = Team::new(2, 2, [1, 2]);
        team.set_ring(1, 7);
        let some = |port| Connection {
            fd: std::fs::File::open("/dev/null").unwrap().into(),
            from: Origin::Accepted {
                peer: SocketAddr::from(([192, 0, 2, 1], port)),
                guest: SocketAddr::from(([10, 0, 2, 100], 80)),
            },
        };
        let port = |connection: &Connection| match connection.from {
            Origin::Accepted { peer, .. } => peer.port(),
            Origin::Worker(_) => 0,
        };
        assert_eq!(team.give(1, some(0)).unwrap(), Posted::Ring(7));
        assert_eq!(team.unring(1), Posted::Ring(7), "nobody sends a connection again");
        for port in 1..HAND_OVER_CONNECTIONS as u16 {
            assert_eq!(team.give(1, some(port)).unwrap(), Posted::Quietly);
        }
        assert_eq!(port(&team.give(1, some(999)).unwrap_err()), 999);
        assert!(team.give(2, some(0)).is_err());
        team.take(1, &mut Frames::default());
        let ports: Vec<u16> = team.given(1).iter().map(port).collect();
        assert_eq!(ports, (0..HAND_OVER_CONNECTIONS as u16).collect::<Vec<_>>());
        assert!(team.given(1).is_empty() && team.given(0).is_empty());
        assert_eq!(team.give(1, some(0)).unwrap(), Posted::Ring(7));
    }

    #[test]
    fn who_drains_waits_for_those_on_their_way() {
        let team = Team::new(2, 2, [1, 2]);
        assert!(team.all_arrived());
        for _ in 0..MIGRANTS {
            assert!(team.begin_passing());
        }
        assert!(!team.begin_passing(), "too many");
        team.end_passing();
        team.drain();
        assert!(!team.begin_passing() && !team.all_arrived());
        (1..MIGRANTS).for_each(|_| team.end_passing());
        assert!(team.all_arrived());
    }

    #[test]
    fn one_alone_asks_nobody() {
        assert!(Team::new(1, 2, [1, 2]).seat(0).is_none());
        assert!(Team::new(2, 2, [1, 2]).seat(1).is_some_and(|seat| !seat.is_first()));
    }
}
