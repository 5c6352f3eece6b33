//! What the guest has been written and has not acknowledged, kept to be sent again.
//!
//! A slot comes back from its write and waits here, payload only. Nearly all are acknowledged within a turn or two. What
//! waits longer ([`STALL`]), and what is small while many flows keep a little each, moves to small slots, so that a
//! guest that does not acknowledge has no hold on the large ones.

use super::super::Ctx;
use super::segment::before;
use crate::arena::{Chain, Slot};
use crate::limits::{
    BLOCK_BYTES, BLOCKS_RESERVED, HEADROOM, PIECE_BYTES, PIECES_MAX, SLOTS_FOR_READS, SLOTS_MAX,
    STALL,
};
use crate::time::Time;

/// Payload a small slot holds behind room for headers.
const BLOCK_PAYLOAD: usize = BLOCK_BYTES - HEADROOM;

/// Unacknowledged bytes of one flow.
#[derive(Debug)]
pub(super) struct Retained {
    /// In order; range: payload.
    chain: Chain,
    /// Bytes before `mark.0` are unacknowledged since `mark.1`.
    mark: Option<(u32, Time)>,
}

impl Retained {
    pub(super) fn new() -> Self {
        Self { chain: Chain::new(), mark: None }
    }

    /// Copies of all bytes, if they are those from `una` on; `None`: some are being written, or written again.
    pub(super) fn copy_from(&self, una: u32) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.chain.bytes() as usize);
        let mut whole = true;
        self.chain.for_each(|slot| {
            whole = slot.seq == una.wrapping_add(bytes.len() as u32);
            bytes.extend_from_slice(slot.bytes());
            whole
        });
        whole.then_some(bytes)
    }

    /// Such bytes in slots, each with payload for one frame of at most `frame` bytes. `None`: there are not slots enough.
    pub(super) fn of(ctx: &mut Ctx<'_>, una: u32, bytes: &[u8], frame: usize) -> Option<Self> {
        let slots = bytes.len().div_ceil(frame) as u32;
        if ctx.pools.large.available() < slots + SLOTS_FOR_READS {
            return None;
        }
        let mut retained = Self::new();
        let mut seq = una;
        for part in bytes.chunks(frame) {
            let mut slot = ctx.pools.large.take_above(SLOTS_FOR_READS)?;
            slot.set_range(HEADROOM, part.len());
            slot.bytes_mut().copy_from_slice(part);
            slot.seq = seq;
            seq = seq.wrapping_add(part.len() as u32);
            ctx.stats.copied_bytes += part.len() as u64;
            retained.chain.push_back(slot);
        }
        if !bytes.is_empty() {
            retained.note_write(seq, ctx.now);
        }
        Some(retained)
    }

    /// Slots they occupy.
    pub(super) fn slots(&self) -> usize {
        self.chain.slots()
    }

    /// When they have been here for too long.
    pub(super) fn stalled_at(&self) -> Option<Time> {
        let (_, since) = self.mark?;
        Some(since + STALL)
    }

    /// More is being written, up to `next`.
    pub(super) fn note_write(&mut self, next: u32, now: Time) {
        self.mark.get_or_insert((next, now));
    }

    /// Takes the oldest out, to be sent again, if it begins at `una` and is not under way already.
    pub(super) fn take(&mut self, una: u32) -> Option<Slot> {
        if self.chain.front()?.seq != una {
            return None;
        }
        self.chain.pop_front()
    }

    /// Keeps the payload of a frame that has been written; the guest has acknowledged what is before `una`, and
    /// nothing is written from `next` on.
    pub(super) fn keep(&mut self, ctx: &mut Ctx<'_>, mut slot: Slot, una: u32, next: u32) {
        let end = slot.seq.wrapping_add(slot.len() as u32);
        if !before(una, end) {
            return;
        }
        if before(slot.seq, una) {
            slot.trim_front(una.wrapping_sub(slot.seq) as usize);
            slot.seq = una;
        }
        // Most are acknowledged within a turn or two. Where many flows keep a little each, the large
        // slots get short, and a small piece moves at once; otherwise after STALL.
        if slot.capacity() > BLOCK_BYTES
            && slot.len() <= BLOCK_PAYLOAD
            && ctx.pools.large.available() < SLOTS_MAX / 2
            && let Some(block) = copy(ctx, slot.bytes(), slot.seq)
        {
            slot = block;
        } else if slot.capacity() > BLOCK_BYTES {
            // Written again, or under way while the others moved.
            self.note_write(next, ctx.now);
        }
        if self.chain.front().is_some_and(|front| before(slot.seq, front.seq)) {
            self.chain.push_front(slot);
        } else {
            self.chain.push_back(slot);
        }
        // A host that speaks in single bytes must not cost a slot for each.
        let pieces = self.chain.slots();
        if pieces >= PIECES_MAX && self.chain.bytes() < pieces as u32 * PIECE_BYTES {
            self.compact(ctx, next);
        }
    }

    /// Lets go of what is before `ack`; nothing is written from `next` on.
    pub(super) fn acknowledge(&mut self, ack: u32, next: u32, now: Time) {
        while let Some(front) = self.chain.front() {
            let end = front.seq.wrapping_add(front.len() as u32);
            if before(ack, end) {
                if before(front.seq, ack)
                    && let Some(mut slot) = self.chain.pop_front()
                {
                    slot.trim_front(ack.wrapping_sub(slot.seq) as usize);
                    slot.seq = ack;
                    self.chain.push_front(slot);
                }
                break;
            }
            drop(self.chain.pop_front());
        }
        if ack == next {
            self.mark = None;
        } else if self.mark.is_some_and(|(seq, _)| !before(ack, seq)) {
            self.mark = Some((next, now));
        }
    }

    /// Moves bytes from large slots to small ones, and small pieces together.
    pub(super) fn compact(&mut self, ctx: &mut Ctx<'_>, next: u32) {
        self.mark = None;
        let mut old = std::mem::take(&mut self.chain);
        // The block that fills.
        let mut last: Option<Slot> = None;
        let mut short = false;
        while let Some(mut slot) = old.pop_front() {
            if let Some(block) = &mut last {
                let joined = join(ctx, block, &slot);
                slot.trim_front(joined);
                slot.seq = slot.seq.wrapping_add(joined as u32);
                if slot.is_empty() {
                    continue;
                }
            }
            if let Some(block) = last.take() {
                self.chain.push_back(block);
            }
            if short || slot.capacity() <= BLOCK_BYTES {
                last = Some(slot);
                continue;
            }
            let blocks = slot.len().div_ceil(BLOCK_PAYLOAD) as u32;
            short = ctx.pools.small.available() <= blocks + BLOCKS_RESERVED;
            if short {
                // Once more later: what is never acknowledged must not pin large slots.
                self.mark = Some((next, ctx.now));
                self.chain.push_back(slot);
                continue;
            }
            let mut seq = slot.seq;
            for part in slot.bytes().chunks(BLOCK_PAYLOAD) {
                if let Some(block) = copy(ctx, part, seq)
                    && let Some(full) = last.replace(block)
                {
                    self.chain.push_back(full);
                }
                seq = seq.wrapping_add(part.len() as u32);
            }
        }
        if let Some(block) = last {
            self.chain.push_back(block);
        }
    }
}

/// Copies as much of a piece as fits to the end of the small slot with the bytes before it; how much that was.
fn join(ctx: &mut Ctx<'_>, block: &mut Slot, piece: &Slot) -> usize {
    let (off, len) = (block.offset(), block.len());
    let follows = block.seq.wrapping_add(len as u32) == piece.seq;
    if !follows || block.capacity() > BLOCK_BYTES {
        return 0;
    }
    let n = piece.len().min(block.capacity() - off - len);
    block.set_range(off, len + n);
    block.bytes_mut()[len..].copy_from_slice(&piece.bytes()[..n]);
    ctx.stats.copied_bytes += n as u64;
    n
}

/// Payload in a small slot of its own, behind headroom.
fn copy(ctx: &mut Ctx<'_>, payload: &[u8], seq: u32) -> Option<Slot> {
    let mut block = ctx.block()?;
    block.set_range(HEADROOM, payload.len());
    block.bytes_mut().copy_from_slice(payload);
    block.seq = seq;
    ctx.stats.copied_bytes += payload.len() as u64;
    Some(block)
}
