//! Who owns which flow, among several workers that serve one guest.
//!
//! # Theory of operation
//!
//! A flow lives in the stack of one worker. The guest's kernel sends its frames to the queue on which that worker
//! has last written to the guest in this flow, so nearly every frame arrives where its flow is, and the
//! directory is not asked. It is asked on a *miss*: a frame whose flow the worker does not have. That is the first
//! frame of a new flow, or a misplaced one: a flow that was silent for 3 s comes on its hash's queue again, so
//! does one of too many (the kernel remembers 4096), and a UDP mapping's endpoints have a queue each.
//!
//! * A flow is entered when it starts ([`Seat::claim`]: the first wins) and removed when its key is given up
//!   ([`Seat::release`]); in between nobody else has a flow of that key.
//! * A misplaced frame is handed over to the owner ([`Action::HandOver`](crate::flow::Action::HandOver)), which
//!   takes it as one of its own. What it answers goes out on its own queue, and that tells the guest's
//!   kernel where to send the next.
//! * A frame is handed over once. When the flow has ended meanwhile, the receiver treats the frame as if it had
//!   come by its own queue (a SYN opens a flow, anything else meets a RST). When another worker has by then claimed the
//!   key, the frame is dropped and counted: TCP sends it again, to where the flow is now. So no frame goes in
//!   circles, and two workers that see a key's first frames at one time end with one owner.
//! * A port of the host that leads to an endpoint of the guest takes the endpoint's key from whoever has it
//!   ([`Seat::seize`]): that one ends its mapping before it takes the next frame ([`Seat::lost`]).
//! * A new connection may be placed ([`Seat::place`]): a worker that has some more than another hands the SYN to that one.
//!   The hash alone puts four bulk streams on one of two queues in an eighth of all cases, and a TAP with one queue
//!   brings every connection to its reader.
//! * A connection that carries much may go to another worker later ([`balance`](super::balance)): its key is
//!   [passed](Seat::pass) on before its [parcel](crate::flow::tcp::Parcel) is on its way. What comes for it to the one that has it by
//!   the directory, before the parcel does, is dropped, as it is on a hand-over that loses.
//! * Behind a single queue every frame of the guest comes by the first worker, which hands over what is for the others. They
//!   write to the guest themselves, so this costs as much as the acknowledgements of what the host sends, and two more copies
//!   of what the guest sends.
//!
//! Locks are held for one look-up in a map, on misses and at the start and end of flows only.
//!
//! **Bound:** one entry for each flow of the workers' tables, and a key for each that was taken away.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::flow::key::{FlowKey, Proto};
use crate::limits::{BULK_LAPSE, BULK_MOST, PLACE_GAP, PLACE_RATE};
use crate::time::Time;

/// The worker that does what one has to do for all: leases, advertisements.
pub const FIRST: u8 = 0;
/// Parts of the map with a lock each.
const SHARDS: usize = 16;
/// Bits of a count of connections that carry much.
const BULK_BITS: u32 = 8;
const _: () = assert!(BULK_MOST < 1 << BULK_BITS);

/// Owners of flows, by key.
#[derive(Debug)]
pub struct Directory {
    shards: [Mutex<HashMap<FlowKey, u8>>; SHARDS],
    /// Connections of each worker: those it has, and those on their way to it.
    loads: Vec<AtomicU32>,
    /// Connections placed lately: the second, and above it how many in that one.
    placed: AtomicU64,
    /// Connections of each worker that carry much, and above that when it was said.
    bulk: Vec<AtomicU64>,
    /// Neighbours that workers ask for, all together.
    asking: AtomicU32,
    /// What each worker has lost and does not know of yet.
    lost: Vec<Lost>,
    /// Keys the choice of a shard.
    secret: [u64; 2],
}

#[derive(Debug, Default)]
struct Lost {
    /// Looked at once per frame: it is there.
    any: AtomicBool,
    keys: Mutex<Vec<FlowKey>>,
}

impl Directory {
    /// An empty one for so many workers; `secret` is random.
    pub fn new(workers: usize, secret: [u64; 2]) -> Arc<Self> {
        Arc::new(Self {
            shards: Default::default(),
            loads: (0..workers).map(|_| AtomicU32::new(0)).collect(),
            placed: AtomicU64::new(0),
            bulk: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            asking: AtomicU32::new(0),
            lost: (0..workers).map(|_| Lost::default()).collect(),
            secret,
        })
    }

    /// Flows known.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| locked(shard).len()).sum()
    }

    /// Whether no flow is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether one more may be placed in this second: then it counts.
    fn may_place(&self, now: Time) -> bool {
        const ONE: u64 = 1 << 32;
        let second = (now.0 / 1000) % ONE;
        let count = |placed: u64| {
            // The workers' clocks began one after the other.
            if placed % ONE < second {
                return Some(second + ONE);
            }
            (placed / ONE < u64::from(PLACE_RATE)).then_some(placed + ONE)
        };
        self.placed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok()
    }

    fn shard(&self, key: &FlowKey) -> MutexGuard<'_, HashMap<FlowKey, u8>> {
        locked(&self.shards[key.hash(&self.secret) as usize % SHARDS])
    }
}

/// A map is whole at every moment, whoever died with its lock.
fn locked<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One worker's place in a directory.
#[derive(Clone, Debug)]
pub struct Seat {
    directory: Arc<Directory>,
    me: u8,
}

impl Seat {
    /// The place of worker `me`, one of those that the directory was made for.
    pub fn new(directory: Arc<Directory>, me: u8) -> Self {
        Self { directory, me }
    }

    /// Whether it is the [`FIRST`].
    pub fn is_first(&self) -> bool {
        self.me == FIRST
    }

    /// The worker that has this flow.
    pub fn owner(&self, key: &FlowKey) -> Option<u8> {
        self.directory.shard(key).get(key).copied()
    }

    /// Makes a connection another worker's, or ours again, whoever has it.
    pub fn pass(&self, key: &FlowKey, to: u8) {
        let before = self.directory.shard(key).insert(*key, to);
        let load = |worker: u8| self.directory.loads.get(usize::from(worker));
        if let Some(load) = before.and_then(load) {
            load.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(load) = load(to) {
            load.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// So many of our connections carry much.
    pub fn note_bulk(&self, count: u32, now: Time) {
        if let Some(bulk) = self.directory.bulk.get(usize::from(self.me)) {
            bulk.store(now.0 << BULK_BITS | u64::from(count), Ordering::Relaxed);
        }
    }

    /// Another worker is to get one from us.
    pub fn expect_bulk(&self, worker: u8, now: Time) {
        let one_more = |said: u64| {
            let count = u64::from(self.fresh(said, now)) + 1;
            Some(now.0 << BULK_BITS | count.min(BULK_MOST as u64))
        };
        if let Some(bulk) = self.directory.bulk.get(usize::from(worker)) {
            // It never fails: there is always a next value.
            let _ = bulk.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        }
    }

    /// A count that was said, if that was not long ago (the workers' clocks began one after the other, which is nothing to
    /// [`BULK_LAPSE`]).
    fn fresh(&self, said: u64, now: Time) -> u32 {
        let fresh = now - Time(said >> BULK_BITS) <= BULK_LAPSE;
        if fresh { (said % (1 << BULK_BITS)) as u32 } else { 0 }
    }

    /// The other worker with the fewest of them, and how many.
    pub fn least_bulk(&self, now: Time) -> Option<(u8, u32)> {
        let all = (0u8..).zip(&self.directory.bulk);
        let others = all.filter(|&(worker, _)| worker != self.me);
        others
            .map(|(worker, bulk)| (worker, self.fresh(bulk.load(Ordering::Relaxed), now)))
            .min_by_key(|&(_, count)| count)
    }

    /// Makes the flow ours.
    ///
    /// # Errors
    /// Whose it is already.
    pub fn claim(&self, key: &FlowKey) -> Result<(), u8> {
        let owner = *self.directory.shard(key).entry(*key).or_insert(self.me);
        if owner != self.me {
            return Err(owner);
        }
        if let Some(load) = self.load(key) {
            load.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes the flow ours, whoever has it. Not for connections, which are counted.
    pub fn seize(&self, key: &FlowKey) {
        let before = self.directory.shard(key).insert(*key, self.me);
        if let Some(owner) = before.filter(|&owner| owner != self.me)
            && let Some(lost) = self.directory.lost.get(usize::from(owner))
        {
            locked(&lost.keys).push(*key);
            lost.any.store(true, Ordering::Release);
        }
    }

    /// The flows that others have taken away from us since the last time.
    pub fn lost(&self) -> Vec<FlowKey> {
        match self.directory.lost.get(usize::from(self.me)) {
            // Read first: a line that nobody writes costs nothing.
            Some(lost) if lost.any.load(Ordering::Acquire) => {
                // Before the look: what comes after it is seen next time.
                lost.any.store(false, Ordering::Release);
                std::mem::take(&mut locked(&lost.keys))
            }
            _ => Vec::new(),
        }
    }

    /// Gives a flow of ours up; nothing, if it was taken away from us.
    pub fn release(&self, key: &FlowKey) {
        let mut shard = self.directory.shard(key);
        if let Entry::Occupied(entry) = shard.entry(*key)
            && *entry.get() == self.me
        {
            entry.remove();
        }
        if let Some(load) = self.load(key) {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The worker that a new connection is better off with than with us. It counts as that one's from now on, until
    /// the frame has [arrived](Seat::arrived) or is lost, so that a burst is not all sent to one.
    pub fn place(&self, now: Time) -> Option<u8> {
        let all = &self.directory.loads;
        let loads = all.iter().map(|load| load.load(Ordering::Relaxed));
        let mine = loads.clone().nth(usize::from(self.me))?;
        let (least, load) = loads.enumerate().min_by_key(|&(_, load)| load)?;
        if mine < load + PLACE_GAP || !self.directory.may_place(now) {
            return None;
        }
        all.get(least)?.fetch_add(1, Ordering::Relaxed);
        Some(least as u8)
    }

    /// What was [placed](Seat::place) with a worker has come there and counts for itself, or never will.
    pub fn arrived(&self, at: u8) {
        if let Some(load) = self.directory.loads.get(usize::from(at)) {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// We ask for another number of neighbours than before.
    pub fn note_asking(&self, before: u32, now: u32) {
        // Adding what wraps around is taking away.
        self.directory.asking.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Whether workers other than us, who ask for so many, ask for a neighbour.
    pub fn others_ask(&self, ours: u32) -> bool {
        self.directory.asking.load(Ordering::Relaxed) != ours
    }

    /// Workers, ourselves included.
    pub fn workers(&self) -> u8 {
        self.directory.loads.len() as u8
    }

    /// Our own number.
    pub fn me(&self) -> u8 {
        self.me
    }

    /// Our count of such flows, if they are counted.
    fn load(&self, key: &FlowKey) -> Option<&AtomicU32> {
        (key.proto() == Proto::Tcp)
            .then(|| self.directory.loads.get(usize::from(self.me)))
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn key(proto: Proto, port: u16) -> FlowKey {
        let guest = SocketAddr::from(([10, 0, 2, 100], port));
        FlowKey::pair(proto, guest, SocketAddr::from(([192, 0, 2, 1], 80)))
    }

    fn seats(workers: u8) -> (Arc<Directory>, Vec<Seat>) {
        let directory = Directory::new(workers.into(), [1, 2]);
        let seats = (0..workers).map(|me| Seat::new(directory.clone(), me)).collect();
        (directory, seats)
    }

    #[test]
    fn the_first_to_claim_owns_until_it_gives_up() {
        let (directory, seats) = seats(3);
        let key = key(Proto::Tcp, 1);
        assert_eq!(seats[0].owner(&key), None);
        assert_eq!(seats[1].claim(&key), Ok(()));
        assert_eq!(seats[0].claim(&key), Err(1));
        assert_eq!((seats[0].owner(&key), seats[1].owner(&key)), (Some(1), Some(1)));
        assert_eq!(directory.len(), 1);
        seats[1].release(&key);
        assert!(directory.is_empty());
        assert_eq!(seats[2].claim(&key), Ok(()));
        assert_eq!(seats[1].owner(&key), Some(2));
    }

    #[test]
    fn two_threads_that_claim_at_once_end_with_one_owner() {
        let (directory, seats) = seats(2);
        let claims = std::thread::scope(|scope| {
            let threads = seats.iter().map(|seat| {
                scope.spawn(|| (0..5000).map(|i| seat.claim(&key(Proto::Udp, i))).collect())
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<Vec<_>>>()
        });
        for (zero, one) in claims[0].iter().zip(&claims[1]) {
            assert!(matches!((zero, one), (Ok(()), Err(0)) | (Err(1), Ok(()))), "{zero:?} {one:?}");
        }
        assert_eq!(directory.len(), 5000);
    }

    #[test]
    fn connections_go_where_fewer_are() {
        let (_, seats) = seats(2);
        let claim = |who: usize, port| seats[who].claim(&key(Proto::Tcp, port)).unwrap();
        claim(0, 1);
        assert_eq!(seats[0].place(Time(0)), None, "a gap of one is left to chance");
        claim(0, 2);
        assert_eq!((seats[0].place(Time(0)), seats[1].place(Time(0))), (Some(1), None));
        assert_eq!(seats[0].place(Time(0)), None, "one is on its way");
        claim(1, 3);
        seats[1].arrived(1);
        assert_eq!(seats[0].place(Time(0)), None);
        // Only connections count.
        for port in 10..20 {
            seats[0].claim(&key(Proto::Udp, port)).unwrap();
        }
        assert_eq!(seats[0].place(Time(0)), None);
        claim(0, 4);
        assert_eq!(seats[0].place(Time(0)), Some(1));
        seats[0].arrived(1);
        assert_eq!(seats[0].place(Time(0)), Some(1), "the first was lost");
        seats[0].arrived(1);
        seats[0].release(&key(Proto::Tcp, 1));
        assert_eq!(seats[0].place(Time(0)), None);
    }

    #[test]
    fn a_connection_that_is_passed_on_counts_where_it_is() {
        let (directory, seats) = seats(2);
        for port in 1..=4 {
            seats[0].claim(&key(Proto::Tcp, port)).unwrap();
        }
        seats[0].pass(&key(Proto::Tcp, 1), 1);
        seats[1].pass(&key(Proto::Tcp, 1), 1);
        seats[0].pass(&key(Proto::Tcp, 2), 1);
        assert_eq!(seats[0].owner(&key(Proto::Tcp, 1)), Some(1));
        assert_eq!(seats[0].place(Time(0)), None, "two each");
        seats[1].pass(&key(Proto::Tcp, 2), 0);
        assert_eq!(seats[0].place(Time(0)), Some(1));
        seats[0].arrived(1);
        seats[1].release(&key(Proto::Tcp, 1));
        (2..=4).for_each(|port| seats[0].release(&key(Proto::Tcp, port)));
        assert!(directory.is_empty());
        assert!(directory.loads.iter().all(|load| load.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn no_more_are_placed_in_a_second_than_are_worth_it() {
        let (_, seats) = seats(2);
        for port in 0..1000 {
            seats[0].claim(&key(Proto::Tcp, port)).unwrap();
        }
        for second in [0, 1, 7] {
            let tries = (0..1000).map(|ms| Time(second * 1000 + ms));
            let placed = tries.filter(|&now| seats[0].place(now).is_some()).count();
            assert_eq!(placed, PLACE_RATE as usize, "{second}");
        }
    }
}
