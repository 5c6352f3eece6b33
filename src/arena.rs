//! Buffers: one [`Arena`] of equal slots per size and worker, lent out as move-only [`Slot`]s.
//!
//! # Theory of operation
//!
//! A slot is the seam of the program. The kernel fills it (TAP read, socket receive), the worker
//! hands it to the core with an event, the core reads and writes *headers* in it and hands it back
//! with an action, the kernel takes the bytes out, and dropping it puts it on its arena's free list.
//! At each moment exactly one holder exists: a slot is a value, never an index.
//!
//! * Free slots are taken last-in first-out, so the working set stays as small as the traffic
//!   allows and in the cache. Memory is reserved as address space and touched from the bottom up.
//! * A [`Chain`] is a queue of slots without an allocation: the link lives beside the slot.
//! * A slot carries the *range* of its bytes that mean something, and a `seq` tag for its user.
//!
//! Slots are `!Send`: an arena belongs to one thread.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

/// A pool of equal buffers.
#[derive(Clone)]
pub struct Arena(Rc<Inner>);

struct Inner {
    base: NonNull<u8>,
    slot_bytes: usize,
    slots_max: u32,
    /// Slots `fresh..slots_max` were never lent.
    fresh: Cell<u32>,
    free: RefCell<Vec<u32>>,
    /// The first so many of `free` have no memory.
    bare: Cell<usize>,
    /// The shortest that `free` was since [`Arena::trim`]: what lies before was not used since.
    unused: Cell<usize>,
    /// `links[i]` is what follows slot `i` in its chain. As long as `fresh`.
    links: RefCell<Vec<Option<Slot>>>,
}

impl Arena {
    /// Reserves address space for `slots_max` slots of `slot_bytes` (a multiple of the page size).
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn new(slot_bytes: usize, slots_max: u32) -> io::Result<Self> {
        let bytes = slot_bytes * slots_max as usize;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no
        // existing memory; `bytes` is not zero for the sizes of `limits`.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let Some(base) = NonNull::new(addr.cast::<u8>()) else {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        };
        Ok(Self(Rc::new(Inner {
            base,
            slot_bytes,
            slots_max,
            fresh: Cell::new(0),
            free: RefCell::new(Vec::with_capacity(64)),
            bare: Cell::new(0),
            unused: Cell::new(0),
            // At full capacity from the start (untouched memory costs nothing), so that a link never
            // moves: `Chain::for_each` rests on it.
            links: RefCell::new(Vec::with_capacity(slots_max as usize)),
        })))
    }

    /// Takes a free slot, or `None` when all are lent. Its range is the whole slot.
    pub fn take(&self) -> Option<Slot> {
        let mut free = self.0.free.borrow_mut();
        let id = if let Some(id) = free.pop() {
            self.0.bare.set(self.0.bare.get().min(free.len()));
            self.0.unused.set(self.0.unused.get().min(free.len()));
            id
        } else {
            let id = self.0.fresh.get();
            if id == self.0.slots_max {
                return None;
            }
            self.0.fresh.set(id + 1);
            self.0.links.borrow_mut().push(None);
            id
        };
        Some(Slot { arena: self.0.clone(), id, off: 0, len: self.0.slot_bytes as u32, seq: 0 })
    }

    /// Takes a slot only if `reserve` others stay free after it.
    pub fn take_above(&self, reserve: u32) -> Option<Slot> {
        if self.available() > reserve { self.take() } else { None }
    }

    /// Slots that can still be taken.
    pub fn available(&self) -> u32 {
        self.0.free.borrow().len() as u32 + (self.0.slots_max - self.0.fresh.get())
    }

    /// Slots lent at this moment.
    pub fn lent(&self) -> u32 {
        self.0.slots_max - self.available()
    }

    /// Bytes of one slot.
    pub fn slot_bytes(&self) -> usize {
        self.0.slot_bytes
    }

    /// Gives the memory of those free slots back to the system that were not used since the last call.
    pub fn trim(&self) {
        let free = self.0.free.borrow();
        let (bare, unused) = (self.0.bare.get(), self.0.unused.get());
        for &id in free.get(bare..unused).unwrap_or_default() {
            // SAFETY: slot `id` is free: no `Slot` for it exists, so no reference to its bytes does either.
            unsafe { self.0.discard(id) }
        }
        self.0.bare.set(bare.max(unused));
        self.0.unused.set(free.len());
    }
}

impl Inner {
    /// Gives the memory of a slot back to the system; its bytes are zero from now on.
    ///
    /// # Safety
    /// `id` is below `fresh`, and nobody refers to the slot's bytes during the call.
    unsafe fn discard(&self, id: u32) {
        // SAFETY: the slot lies in the mapping (`id < slots_max`); the rest is the caller's word.
        unsafe {
            let ptr = self.base.as_ptr().add(id as usize * self.slot_bytes);
            libc::madvise(ptr.cast(), self.slot_bytes, libc::MADV_DONTNEED);
        }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} of {} x {})", self.lent(), self.0.slots_max, self.0.slot_bytes)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: `base` and the length are those of the mapping made in `new`; every `Slot` holds
        // an `Rc` of this, so none is left.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.slot_bytes * self.slots_max as usize);
        }
    }
}

/// One buffer, owned. Dropping it returns it to its arena.
pub struct Slot {
    arena: Rc<Inner>,
    id: u32,
    off: u32,
    len: u32,
    /// A tag for the holder: the TCP sequence number of the first byte of a retained segment.
    pub seq: u32,
}

impl Slot {
    /// Bytes in the whole slot.
    pub fn capacity(&self) -> usize {
        self.arena.slot_bytes
    }

    /// First byte of the range.
    pub fn offset(&self) -> usize {
        self.off as usize
    }

    /// Bytes in the range.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the range is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the range.
    ///
    /// # Panics
    /// When it leaves the slot: a mistake of ours, never the guest's.
    pub fn set_range(&mut self, off: usize, len: usize) {
        assert!(off <= self.capacity() && len <= self.capacity() - off, "range leaves the slot");
        self.off = off as u32;
        self.len = len as u32;
    }

    /// Moves the start of the range `n` bytes towards the end.
    ///
    /// # Panics
    /// When the range is shorter than `n`.
    pub fn trim_front(&mut self, n: usize) {
        assert!(n <= self.len(), "trim beyond the range");
        self.off += n as u32;
        self.len -= n as u32;
    }

    /// Shortens the range to `len` bytes; longer than it is changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len as u32);
    }

    /// Grows the range by `n` bytes at its front, for a header.
    ///
    /// # Panics
    /// When there is no room in front.
    pub fn prepend(&mut self, n: usize) {
        assert!(n <= self.offset(), "no headroom");
        self.off -= n as u32;
        self.len += n as u32;
    }

    /// The bytes of the range.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `off + len <= slot_bytes` (kept by `set_range` and the methods that only shrink
        // or check), the slot lies in the mapping, which outlives the `Rc`; the mapping is
        // initialised (anonymous pages are zero), and this `Slot` is its only holder: nothing
        // writes while a shared borrow lives (the worker lends a slot to the kernel by value).
        unsafe { std::slice::from_raw_parts(self.ptr().add(self.offset()), self.len()) }
    }

    /// The bytes of the range, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.ptr().add(self.offset()), self.len()) }
    }

    /// Gives the slot's memory back to the system: its bytes are zero from now on, and cost nothing until
    /// they are written.
    pub fn discard(&mut self) {
        // SAFETY: `&mut self` makes this the only reference to the slot's bytes.
        unsafe { self.arena.discard(self.id) }
    }

    /// Address of the slot's first byte (not of its range), for a submission entry. The address is
    /// valid for [`Slot::capacity`] bytes as long as the slot is held.
    pub fn ptr(&self) -> *mut u8 {
        // SAFETY: `id < slots_max`, so the offset stays in the mapping.
        unsafe { self.arena.base.as_ptr().add(self.id as usize * self.arena.slot_bytes) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.arena.free.borrow_mut().push(self.id);
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({} {}+{} seq {})", self.id, self.off, self.len, self.seq)
    }
}

/// A queue of slots. Costs nothing to build and never allocates.
#[derive(Debug, Default)]
pub struct Chain {
    head: Option<Slot>,
    /// Where the last slot is, when it is not the head: its arena's link table and its id.
    tail: Option<(Rc<Inner>, u32)>,
    slots: u32,
    bytes: u32,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inner")
    }
}

impl Chain {
    /// An empty chain.
    pub fn new() -> Self {
        Self::default()
    }

    /// Slots in the chain.
    pub fn slots(&self) -> usize {
        self.slots as usize
    }

    /// Bytes in the ranges of all slots.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Whether no slot is in it.
    pub fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// Adds a slot at the end.
    pub fn push_back(&mut self, slot: Slot) {
        self.slots += 1;
        self.bytes += slot.len;
        let place = (slot.arena.clone(), slot.id);
        match self.tail.take() {
            None => self.head = Some(slot),
            Some((arena, id)) => arena.links.borrow_mut()[id as usize] = Some(slot),
        }
        self.tail = Some(place);
    }

    /// Puts a slot before all others.
    pub fn push_front(&mut self, slot: Slot) {
        self.slots += 1;
        self.bytes += slot.len;
        let place = (slot.arena.clone(), slot.id);
        let old = self.head.take();
        if old.is_none() {
            self.tail = Some(place);
        } else {
            slot.arena.links.borrow_mut()[slot.id as usize] = old;
        }
        self.head = Some(slot);
    }

    /// Takes the first slot.
    pub fn pop_front(&mut self) -> Option<Slot> {
        let slot = self.head.take()?;
        self.head = slot.arena.links.borrow_mut()[slot.id as usize].take();
        if self.head.is_none() {
            self.tail = None;
        }
        self.slots -= 1;
        self.bytes -= slot.len;
        Some(slot)
    }

    /// The first slot.
    pub fn front(&self) -> Option<&Slot> {
        self.head.as_ref()
    }

    /// Moves all of `other` to the end of this chain.
    pub fn append(&mut self, other: &mut Self) {
        let other = std::mem::take(other);
        if other.is_empty() {
            return;
        }
        if self.is_empty() {
            *self = other;
            return;
        }
        let mut other = std::mem::ManuallyDrop::new(other);
        if let Some((arena, id)) = self.tail.take() {
            arena.links.borrow_mut()[id as usize] = other.head.take();
        }
        self.tail = other.tail.take();
        self.slots += other.slots;
        self.bytes += other.bytes;
    }

    /// Drops the first `n` bytes: whole slots leave, the one in which `n` ends is trimmed.
    pub fn advance(&mut self, mut n: u32) {
        while n > 0 {
            let Some(head) = self.head.as_mut() else {
                return;
            };
            if head.len > n {
                head.trim_front(n as usize);
                self.bytes -= n;
                return;
            }
            n -= head.len;
            drop(self.pop_front());
        }
    }

    /// Calls `f` with each slot in order, until it returns false.
    pub fn for_each(&self, mut f: impl FnMut(&Slot) -> bool) {
        let Some(mut slot) = self.head.as_ref() else {
            return;
        };
        loop {
            if !f(slot) {
                return;
            }
            let links = slot.arena.links.borrow();
            let next: *const Slot = match links[slot.id as usize].as_ref() {
                Some(next) => next,
                None => return,
            };
            drop(links);
            // SAFETY: `next` lies in a link table, which never reallocates (`Arena::new` reserves
            // all of it). The link of a slot in this chain changes only through `&mut Chain`, and
            // `self` is borrowed for as long as `slot` is used.
            slot = unsafe { &*next };
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        while self.pop_front().is_some() {}
    }
}

/// The two arenas of a worker.
#[derive(Clone, Debug)]
pub struct Pools {
    /// Slots of [`SLOT_BYTES`](crate::limits::SLOT_BYTES).
    pub large: Arena,
    /// Slots of [`BLOCK_BYTES`](crate::limits::BLOCK_BYTES).
    pub small: Arena,
}

impl Pools {
    /// Both arenas, at the sizes of [`limits`](crate::limits).
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn new() -> io::Result<Self> {
        use crate::limits::{BLOCK_BYTES, BLOCKS_MAX, SLOT_BYTES, SLOTS_MAX};
        Ok(Self {
            large: Arena::new(SLOT_BYTES, SLOTS_MAX)?,
            small: Arena::new(BLOCK_BYTES, BLOCKS_MAX)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_return_last_in_first_out() {
        let arena = Arena::new(4096, 3).unwrap();
        let (a, b) = (arena.take().unwrap(), arena.take().unwrap());
        let (pa, pb) = (a.ptr(), b.ptr());
        drop(a);
        drop(b);
        assert_eq!(arena.take().unwrap().ptr(), pb);
        let (x, y, z) = (arena.take().unwrap(), arena.take().unwrap(), arena.take().unwrap());
        assert_eq!(x.ptr(), pb);
        assert_eq!(y.ptr(), pa);
        assert!(arena.take().is_none());
        drop((x, y, z));
        assert_eq!(arena.lent(), 0);
    }

    #[test]
    fn trim_takes_what_was_not_used_since() {
        let arena = Arena::new(4096, 8).unwrap();
        let fill = |n| (0..n).map(|_| arena.take().unwrap()).collect::<Vec<_>>();
        let mut slots = fill(5);
        slots.iter_mut().for_each(|slot| slot.bytes_mut()[0] = 7);
        drop(slots);
        // All five were used in this time: none goes.
        arena.trim();
        assert_eq!(fill(5).iter().filter(|slot| slot.bytes()[0] == 7).count(), 5);
        arena.trim();
        // Two in this one: three go, once.
        drop(fill(2));
        arena.trim();
        assert_eq!(arena.0.bare.get(), 3);
        assert_eq!(fill(5).iter().filter(|slot| slot.bytes()[0] == 7).count(), 2);
        assert_eq!(arena.0.bare.get(), 0);
        let mut slot = arena.take().unwrap();
        slot.bytes_mut()[9] = 7;
        slot.discard();
        assert_eq!(slot.bytes()[9], 0);
    }

    #[test]
    fn chain_keeps_order_across_arenas() {
        let (one, two) = (Arena::new(4096, 8).unwrap(), Arena::new(8192, 8).unwrap());
        let mut chain = Chain::new();
        for i in 0..6u32 {
            let mut slot = if i % 2 == 0 { one.take() } else { two.take() }.unwrap();
            slot.set_range(10, 100);
            slot.seq = i;
            chain.push_back(slot);
        }
        let mut other = Chain::new();
        let mut slot = one.take().unwrap();
        slot.set_range(0, 5);
        slot.seq = 6;
        other.push_back(slot);
        chain.append(&mut other);
        assert!(other.is_empty());
        assert_eq!((chain.slots(), chain.bytes()), (7, 605));
        let mut seen = vec![];
        chain.for_each(|s| {
            seen.push(s.seq);
            true
        });
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        chain.advance(150);
        assert_eq!((chain.slots(), chain.bytes()), (6, 455));
        assert_eq!(chain.front().unwrap().len(), 50);
        let first = chain.pop_front().unwrap();
        chain.push_front(first);
        assert_eq!(chain.pop_front().unwrap().seq, 1);
        drop(chain);
        assert_eq!(one.lent() + two.lent(), 0);
    }
}
