//! What the core wants done, until the worker takes it.

use std::collections::VecDeque;

use super::Action;
use super::delivery::{Delivery, Head};
use crate::arena::Slot;

/// Actions waiting for the worker.
#[derive(Debug, Default)]
pub struct Actions {
    queue: VecDeque<Waiting>,
    /// How many have been taken, so that a place says the same as long as its action waits.
    taken: u64,
    /// No datagrams are joined.
    alone: bool,
}

/// One of them.
#[derive(Debug)]
enum Waiting {
    Action(Action),
    /// A frame that may still grow.
    Delivery(Delivery),
}

/// Where in the queue a mapping's newest frame is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place(Option<u64>);

impl Actions {
    /// An empty queue with room for a busy turn.
    pub fn new() -> Self {
        Self { queue: VecDeque::with_capacity(256), ..Self::default() }
    }

    /// From now on no datagrams are joined.
    pub fn keep_datagrams_alone(&mut self) {
        self.alone = true;
    }

    /// Adds one.
    pub fn push(&mut self, action: Action) {
        self.queue.push_back(Waiting::Action(action));
    }

    /// Adds a datagram to the guest, or a run that came in one slot (`segment`), to the frame at `place`, or else as a new one
    /// whose place that then is. One of more than `most` bytes stays alone.
    pub fn deliver(
        &mut self,
        place: &mut Place,
        head: Head,
        slot: Slot,
        segment: u16,
        most: usize,
    ) {
        let at = place.0.and_then(|at| at.checked_sub(self.taken));
        let frame = at.and_then(|at| self.queue.get_mut(usize::try_from(at).ok()?));
        let slot = match frame {
            Some(Waiting::Delivery(frame)) => match frame.takes(&head, slot, segment) {
                Ok(()) => return,
                Err(slot) => slot,
            },
            _ => slot,
        };
        *place = Place(Some(self.taken + self.queue.len() as u64));
        let most = if self.alone { 0 } else { most };
        self.queue.push_back(Waiting::Delivery(Delivery::new(head, slot, segment, most)));
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<Action> {
        let waiting = self.queue.pop_front()?;
        self.taken += 1;
        Some(match waiting {
            Waiting::Action(action) => action,
            Waiting::Delivery(frame) => frame.into_action(),
        })
    }
}

#[cfg(test)]
mod tests;
