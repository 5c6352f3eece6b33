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

    /// Takes all that are of some kind, with their times.
    pub fn take_if(&mut self, of: impl Fn(&T) -> bool) -> Vec<(Time, T)> {
        let taken = self.items.extract_if(.., |_, item| of(item));
        taken.map(|((at, _), item)| (at, item)).collect()
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
