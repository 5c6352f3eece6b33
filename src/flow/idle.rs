//! Which mapping has been silent longest: the one that makes room when flows run out.
//!
//! # Theory of operation
//!
//! A list through all mappings in the order of their last use, linked by place in the flow table. A mapping
//! moves to its new end at most once per [`STEP`], so that a datagram nearly always costs one comparison; the
//! order is right to that much.

use crate::time::{Millis, Time};

/// Mappings in the order of their last use.
#[derive(Debug)]
pub struct Idle {
    nodes: Vec<Node>,
    newest: u32,
    oldest: u32,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    newer: u32,
    older: u32,
    /// When it was moved to the new end; `None`: it is not in the list.
    moved: Option<Time>,
}

/// Uses closer together than this are taken for one.
pub const STEP: Millis = Millis(1000);
const NIL: u32 = u32::MAX;
const OUT: Node = Node { newer: NIL, older: NIL, moved: None };

impl Default for Idle {
    fn default() -> Self {
        Self::new()
    }
}

impl Idle {
    /// No mapping.
    pub fn new() -> Self {
        Self { nodes: Vec::new(), newest: NIL, oldest: NIL }
    }

    /// The mapping at this place is used, perhaps for the first time.
    pub fn touch(&mut self, index: u32, now: Time) {
        if self.nodes.len() <= index as usize {
            self.nodes.resize(index as usize + 1, OUT);
        }
        match self.nodes[index as usize].moved {
            Some(moved) if now - moved < STEP => return,
            Some(_) => self.unlink(index),
            None => {}
        }
        let before = std::mem::replace(&mut self.newest, index);
        self.nodes[index as usize] = Node { newer: NIL, older: before, moved: Some(now) };
        match self.nodes.get_mut(before as usize) {
            Some(before) => before.newer = index,
            None => self.oldest = index,
        }
    }

    /// Forgets the mapping at this place.
    pub fn remove(&mut self, index: u32) {
        if self.nodes.get(index as usize).is_some_and(|node| node.moved.is_some()) {
            self.unlink(index);
        }
    }

    /// The mapping that has been silent longest, and when it was last used: not later than [`STEP`] after
    /// what this says.
    pub fn oldest(&self) -> Option<(u32, Time)> {
        let node = self.nodes.get(self.oldest as usize)?;
        Some((self.oldest, node.moved?))
    }

    fn unlink(&mut self, index: u32) {
        let Node { newer, older, .. } = std::mem::replace(&mut self.nodes[index as usize], OUT);
        match self.nodes.get_mut(newer as usize) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_list() {
        let (mut idle, mut model) = (Idle::new(), Vec::<(u32, Time)>::new());
        let (mut seed, mut now) = (7u64, 0u64);
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let index = (seed >> 33) as u32 % 50;
            now += (seed >> 50) % 60;
            let at = model.iter().position(|&(i, _)| i == index);
            if seed >> 62 == 0 {
                idle.remove(index);
                at.map(|at| model.remove(at));
            } else {
                idle.touch(index, Time(now));
                if at.is_none_or(|at| Time(now) - model[at].1 >= STEP) {
                    at.map(|at| model.remove(at));
                    model.push((index, Time(now)));
                }
            }
            assert_eq!(idle.oldest(), model.first().copied());
        }
        for (index, _) in model {
            idle.remove(index);
        }
        assert_eq!((idle.oldest(), idle.newest), (None, NIL));
    }
}
