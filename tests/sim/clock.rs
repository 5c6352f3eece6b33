//! What is to happen when.

use std::collections::BTreeMap;

use ringtap::time::Time;

/// Things in the order of their time; of the same time, in the order they were put in.
#[derive(Debug)]
pub struct Agenda<T> {
    items: BTreeMap<(Time, u64), T>,
    count: u64,
}

impl<T> Agenda<T> {
    /// Nothing.
    pub fn new() -> Self {
        Self { items: BTreeMap::new(), count: 0 }
    }

    /// Adds one.
    pub fn push(&mut self, at: Time, item: T) {
        self.count += 1;
        self.items.insert((at, self.count), item);
    }

    /// When the first is due.
    pub fn next(&self) -> Option<Time> {
        self.items.keys().next().map(|(at, _)| *at)
    }

    /// Takes the first that is due.
    pub fn pop(&mut self, now: Time) -> Option<T> {
        let first = self.items.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}
