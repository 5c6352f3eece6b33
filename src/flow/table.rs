//! The flow table: a slab of entries and an open-addressed index over their keys.
//!
//! # Theory of operation
//!
//! The slab gives each flow a place and a generation ([`FlowId`]); the index finds the place by key in
//! O(1): linear probing over `u32` places, at most half full, deletion by shifting back (no
//! tombstones, so its speed does not decay). Both start small and double, rarely, up to the bound.
//!
//! An entry is *hashed* from insertion until [`Table::unhash`], and *alive* until
//! [`Table::remove`]: a closing flow is alive but no longer hashed, so its key may be taken anew
//! while the kernel still finishes with its socket.

use super::FlowId;
use super::key::FlowKey;

/// Slab and index.
#[derive(Debug)]
pub struct Table<F> {
    entries: Vec<Entry<F>>,
    free: Vec<u32>,
    index: Vec<u32>,
    hashed: u32,
    alive: u32,
    max: u32,
    secret: [u64; 2],
}

#[derive(Debug)]
struct Entry<F> {
    key: FlowKey,
    hash: u32,
    generation: u32,
    hashed: bool,
    flow: Option<F>,
}

/// The table holds its maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

const EMPTY: u32 = u32::MAX;

impl<F> Table<F> {
    /// Bytes that one flow costs here: its entry, and its part of an index that is a quarter full.
    pub const FLOW_BYTES: usize = size_of::<Entry<F>>() + size_of::<u32>() + 4 * size_of::<u32>();

    /// A table of at most `max` flows; `secret` keys its hash.
    pub fn new(max: u32, secret: [u64; 2]) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            index: vec![EMPTY; 64],
            hashed: 0,
            alive: 0,
            max,
            secret,
        }
    }

    /// Adds a flow. The caller has seen that the key is not in use.
    ///
    /// # Errors
    /// [`Full`] at the bound.
    pub fn insert(&mut self, key: FlowKey, flow: F) -> Result<FlowId, Full> {
        if self.alive >= self.max {
            return Err(Full);
        }
        if (self.hashed + 1) * 2 > self.index.len() as u32 {
            self.grow();
        }
        let hash = key.hash(&self.secret);
        let place = if let Some(place) = self.free.pop() {
            let entry = &mut self.entries[place as usize];
            entry.key = key;
            entry.hash = hash;
            entry.hashed = true;
            entry.flow = Some(flow);
            place
        } else {
            self.entries.push(Entry { key, hash, generation: 0, hashed: true, flow: Some(flow) });
            self.entries.len() as u32 - 1
        };
        self.place(hash, place);
        self.hashed += 1;
        self.alive += 1;
        Ok(FlowId { index: place, generation: self.entries[place as usize].generation })
    }

    /// Adds a flow that is found by its id alone; others may have its key.
    ///
    /// # Errors
    /// [`Full`] at the bound.
    pub fn insert_unnamed(&mut self, key: FlowKey, flow: F) -> Result<FlowId, Full> {
        // The index compares places when it forgets: it takes the right one of two with one key.
        let id = self.insert(key, flow)?;
        self.unhash(id);
        Ok(id)
    }

    /// Finds a hashed flow.
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        let hash = key.hash(&self.secret);
        let mask = self.index.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let place = self.index[at];
            if place == EMPTY {
                return None;
            }
            let entry = &self.entries[place as usize];
            if entry.hash == hash && entry.key == *key {
                return Some(FlowId { index: place, generation: entry.generation });
            }
            at = (at + 1) & mask;
        }
    }

    /// A living flow and its key.
    pub fn get_mut(&mut self, id: FlowId) -> Option<(&FlowKey, &mut F)> {
        let entry = self.entries.get_mut(id.index as usize)?;
        if entry.generation != id.generation {
            return None;
        }
        Some((&entry.key, entry.flow.as_mut()?))
    }

    /// A living flow.
    pub fn get(&self, id: FlowId) -> Option<(&FlowKey, &F)> {
        let entry = self.entries.get(id.index as usize)?;
        if entry.generation != id.generation {
            return None;
        }
        Some((&entry.key, entry.flow.as_ref()?))
    }

    /// The id of the living flow at a place.
    pub fn at(&self, index: u32) -> Option<FlowId> {
        let entry = self.entries.get(index as usize)?;
        entry.flow.as_ref()?;
        Some(FlowId { index, generation: entry.generation })
    }

    /// All living flows.
    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &FlowKey, &F)> {
        self.entries.iter().enumerate().filter_map(|(i, e)| {
            let id = FlowId { index: i as u32, generation: e.generation };
            e.flow.as_ref().map(|f| (id, &e.key, f))
        })
    }

    /// Takes a living flow's key out of the index; the flow stays. False: it was not there any more.
    pub fn unhash(&mut self, id: FlowId) -> bool {
        let Some(entry) = self.entries.get_mut(id.index as usize) else {
            return false;
        };
        if entry.generation != id.generation || !entry.hashed {
            return false;
        }
        entry.hashed = false;
        let hash = entry.hash;
        let mask = self.index.len() - 1;
        let mut hole = hash as usize & mask;
        while self.index[hole] != id.index {
            hole = (hole + 1) & mask;
        }
        // Shift back whatever would no longer be reached across the hole.
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let place = self.index[at];
            if place == EMPTY {
                break;
            }
            let home = self.entries[place as usize].hash as usize & mask;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.index[hole] = place;
                hole = at;
            }
        }
        self.index[hole] = EMPTY;
        self.hashed -= 1;
        true
    }

    /// Ends a flow and frees its place; its id means nothing from now on.
    pub fn remove(&mut self, id: FlowId) -> Option<F> {
        self.unhash(id);
        let entry = self.entries.get_mut(id.index as usize)?;
        if entry.generation != id.generation {
            return None;
        }
        let flow = entry.flow.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(id.index);
        self.alive -= 1;
        Some(flow)
    }

    /// The bound.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// Places that are free.
    pub fn room(&self) -> u32 {
        self.max.saturating_sub(self.alive)
    }

    /// Living flows.
    pub fn len(&self) -> u32 {
        self.alive
    }

    /// Whether none is alive.
    pub fn is_empty(&self) -> bool {
        self.alive == 0
    }

    fn place(&mut self, hash: u32, place: u32) {
        let mask = self.index.len() - 1;
        let mut at = hash as usize & mask;
        while self.index[at] != EMPTY {
            at = (at + 1) & mask;
        }
        self.index[at] = place;
    }

    fn grow(&mut self) {
        let len = self.index.len() * 2;
        self.index.clear();
        self.index.resize(len, EMPTY);
        for place in 0..self.entries.len() as u32 {
            if self.entries[place as usize].hashed {
                self.place(self.entries[place as usize].hash, place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Proto;
    use super::*;
    use std::collections::HashMap;
    use std::net::SocketAddr;

    fn key(n: u32) -> FlowKey {
        let [a, b, c, d] = n.to_be_bytes();
        FlowKey::guest_only(Proto::Udp, SocketAddr::from(([10, a, b, c], u16::from(d) + 1)))
    }

    #[test]
    fn agrees_with_a_map() {
        let mut table = Table::new(1000, [1, 2]);
        let mut model: HashMap<u32, FlowId> = HashMap::new();
        let mut seed = 1u64;
        for step in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let n = (seed >> 33) as u32 % 1500;
            assert_eq!(table.find(&key(n)), model.get(&n).copied());
            if let Some(id) = model.get(&n).copied() {
                if step % 3 == 0 {
                    assert_eq!(table.remove(id), Some(n));
                    assert!(table.get_mut(id).is_none());
                    model.remove(&n);
                }
            } else {
                match table.insert(key(n), n) {
                    Ok(id) => drop(model.insert(n, id)),
                    Err(Full) => assert_eq!(model.len(), 1000),
                }
            }
            assert_eq!(table.len() as usize, model.len());
        }
    }

    #[test]
    fn unhashed_flow_gives_its_key_away_and_lives_on() {
        let mut table = Table::new(4, [3, 4]);
        let old = table.insert(key(1), 'a').unwrap();
        table.unhash(old);
        assert_eq!(table.find(&key(1)), None);
        let new = table.insert(key(1), 'b').unwrap();
        assert_ne!(old, new);
        assert_eq!(table.find(&key(1)), Some(new));
        assert_eq!(table.remove(old), Some('a'));
        assert_eq!(table.find(&key(1)), Some(new));
    }
}
