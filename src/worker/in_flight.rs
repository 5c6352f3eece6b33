//! What waits for a completion: the buffers that the kernel has of operations under way, and listening sockets.

/// Things that wait for a completion, by a small index.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> InFlight<T> {
    pub(super) fn new() -> Self {
        Self { items: Vec::with_capacity(64), free: Vec::with_capacity(64) }
    }

    pub(super) fn put(&mut self, item: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.items[index as usize] = Some(item);
            return index;
        }
        self.items.push(Some(item));
        self.items.len() as u32 - 1
    }

    pub(super) fn get(&mut self, index: u32) -> Option<&mut T> {
        self.items.get_mut(index as usize)?.as_mut()
    }

    pub(super) fn take(&mut self, index: u32) -> Option<T> {
        let item = self.items.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(item)
    }

    /// One past the highest index in use ever.
    pub(super) fn places(&self) -> u32 {
        self.items.len() as u32
    }

    /// Whether nothing waits.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.items.len() == self.free.len()
    }

    /// Those in use.
    pub(super) fn indices(&self) -> impl Iterator<Item = u32> {
        self.items.iter().zip(0..).filter(|(item, _)| item.is_some()).map(|(_, index)| index)
    }

    pub(super) fn is_full(&self) -> bool {
        self.items.len() - self.free.len() >= 1 << 20
    }
}
