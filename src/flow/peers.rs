//! The endpoints a mapping has sent to: its filter, and what each is called on the guest's side.
//!
//! # Theory of operation
//!
//! A datagram from the host side reaches the guest only if the guest has sent to its source
//! (address-and-port-dependent filtering, RFC 4787 section 5), and it is shown to the guest as coming
//! from the address the guest has sent to, which policy may have translated (the gateway's address means
//! the host's loopback). At most [`UDP_PEERS_MAX`] endpoints are remembered, in the order of their last
//! use; the one that was silent longest makes room. A few each mapping may have; those beyond come out of one
//! [`Room`] for all mappings, so that tens of thousands of them, each with its maximum, are bounded as well.
//!
//! Nearly every mapping has one peer or a few: up to eight are found by looking at each. Beyond
//! that an open-addressed index finds them, at most half full, so that a guest port that talks to a
//! hundred thousand endpoints costs the same per datagram as one that talks to two.
use std::cell::Cell;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use crate::limits::{PEERS_OWN, PEERS_SHARED, UDP_PEERS_MAX};

/// Remembered endpoints, newest to oldest.
#[derive(Debug)]
pub struct Peers {
    room: Room,
    entries: Vec<Entry>,
    /// Places in `entries` by hash of the host's endpoint; empty while there are few.
    index: Vec<u16>,
    newest: u16,
    oldest: u16,
}

/// What all mappings of a worker may remember together beyond their own few peers.
#[derive(Clone, Debug)]
pub struct Room(Rc<Cell<u32>>);

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}

impl Room {
    /// All of it, free.
    pub fn new() -> Self {
        Self(Rc::new(Cell::new(PEERS_SHARED)))
    }

    fn take(&self) -> bool {
        let free = self.0.get();
        self.0.set(free.saturating_sub(1));
        free > 0
    }

    fn give(&self, peers: usize) {
        self.0.set(self.0.get() + peers as u32);
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    host: Endpoint,
    shown: Endpoint,
    newer: u16,
    older: u16,
}

/// An address of either family in 16 bytes (IPv4 mapped), and a port: half of a `SocketAddr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Endpoint {
    ip: [u8; 16],
    port: u16,
}

/// Peers that are found without an index.
const LINEAR: usize = PEERS_OWN;
const NONE: u16 = u16::MAX;
const _: () = assert!(UDP_PEERS_MAX < NONE as usize && UDP_PEERS_MAX > LINEAR);

impl Peers {
    /// Nobody.
    pub fn new(room: &Room) -> Self {
        Self {
            room: room.clone(),
            entries: Vec::new(),
            index: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// The guest has sent to `host`, which it calls `shown`.
    pub fn remember(&mut self, host: SocketAddr, shown: SocketAddr) {
        let (host, shown) = (Endpoint::from(host), Endpoint::from(shown));
        if let Some(place) = self.place(&host) {
            self.entries[usize::from(place)].shown = shown;
            return self.touch(place);
        }
        let len = self.entries.len();
        let place = if len < PEERS_OWN || (len < UDP_PEERS_MAX && self.room.take()) {
            self.entries.push(Entry { host, shown, newer: NONE, older: NONE });
            self.entries.len() as u16 - 1
        } else {
            let place = self.oldest;
            self.unlink(place);
            if !self.index.is_empty() {
                self.unhash(place);
            }
            let entry = &mut self.entries[usize::from(place)];
            (entry.host, entry.shown) = (host, shown);
            place
        };
        self.link(place);
        if self.entries.len() > LINEAR && self.entries.len() * 2 > self.index.len() {
            self.grow();
        } else if !self.index.is_empty() {
            self.hash(place);
        }
    }

    /// What the guest calls `host`, if it has sent there; the answer keeps the endpoint in memory.
    pub fn shown(&mut self, host: SocketAddr) -> Option<SocketAddr> {
        let place = self.place(&Endpoint::from(host))?;
        self.touch(place);
        Some(self.entries[usize::from(place)].shown.into())
    }

    /// What the guest calls the endpoint used last.
    pub fn newest(&self) -> Option<SocketAddr> {
        self.entries.get(usize::from(self.newest)).map(|entry| entry.shown.into())
    }

    /// What the guest calls an endpoint at this address, among the few used last. For errors that the host's
    /// own kernel raises: they name no port.
    pub fn recent_at(&self, ip: IpAddr) -> Option<SocketAddr> {
        let ip = Endpoint::from(SocketAddr::new(ip, 0)).ip;
        let newest = self.entries.get(usize::from(self.newest));
        std::iter::successors(newest, |entry| self.entries.get(usize::from(entry.older)))
            .take(LINEAR)
            .find(|entry| entry.host.ip == ip)
            .map(|entry| entry.shown.into())
    }

    fn place(&self, host: &Endpoint) -> Option<u16> {
        if self.entries.get(usize::from(self.newest))?.host == *host {
            return Some(self.newest);
        }
        if self.index.is_empty() {
            return self.entries.iter().position(|e| e.host == *host).map(|place| place as u16);
        }
        let mask = self.index.len() - 1;
        let mut at = host.hash() & mask;
        loop {
            let place = self.index[at];
            if place == NONE {
                return None;
            }
            if self.entries[usize::from(place)].host == *host {
                return Some(place);
            }
            at = (at + 1) & mask;
        }
    }

    fn touch(&mut self, place: u16) {
        if place != self.newest {
            self.unlink(place);
            self.link(place);
        }
    }

    /// Makes an entry that is not in the order of use the newest.
    fn link(&mut self, place: u16) {
        let before = std::mem::replace(&mut self.newest, place);
        let entry = &mut self.entries[usize::from(place)];
        (entry.newer, entry.older) = (NONE, before);
        match self.entries.get_mut(usize::from(before)) {
            Some(before) => before.newer = place,
            None => self.oldest = place,
        }
    }

    fn unlink(&mut self, place: u16) {
        let Entry { newer, older, .. } = self.entries[usize::from(place)];
        match self.entries.get_mut(usize::from(newer)) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
        match self.entries.get_mut(usize::from(older)) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn hash(&mut self, place: u16) {
        let mask = self.index.len() - 1;
        let mut at = self.entries[usize::from(place)].host.hash() & mask;
        while self.index[at] != NONE {
            at = (at + 1) & mask;
        }
        self.index[at] = place;
    }

    /// Takes an entry out of the index, shifting back what would no longer be reached.
    fn unhash(&mut self, place: u16) {
        let mask = self.index.len() - 1;
        let mut hole = self.entries[usize::from(place)].host.hash() & mask;
        while self.index[hole] != place {
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let next = self.index[at];
            if next == NONE {
                break;
            }
            let home = self.entries[usize::from(next)].host.hash() & mask;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.index[hole] = next;
                hole = at;
            }
        }
        self.index[hole] = NONE;
    }

    fn grow(&mut self) {
        let len = (self.index.len() * 2).max(4 * LINEAR);
        self.index.clear();
        self.index.resize(len, NONE);
        for place in 0..self.entries.len() as u16 {
            self.hash(place);
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.room.give(self.entries.len().saturating_sub(PEERS_OWN));
    }
}

impl Endpoint {
    /// Not keyed by a secret: a guest that makes its own endpoints collide makes at most
    /// [`UDP_PEERS_MAX`] of them collide, and slows nobody else down.
    fn hash(&self) -> usize {
        let ip = u128::from_le_bytes(self.ip);
        let word = (ip as u64) ^ ((ip >> 64) as u64).rotate_left(23) ^ (u64::from(self.port) << 17);
        let wide = u128::from(word) * 0x9e37_79b9_7f4a_7c15;
        ((wide as u64) ^ ((wide >> 64) as u64)) as usize
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        let ip = match addr {
            SocketAddr::V4(a) => a.ip().to_ipv6_mapped().octets(),
            SocketAddr::V6(a) => a.ip().octets(),
        };
        Self { ip, port: addr.port() }
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        Self::new(Ipv6Addr::from(endpoint.ip).to_canonical(), endpoint.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u32) -> SocketAddr {
        let [a, b, c, d] = n.to_be_bytes();
        SocketAddr::from(([198, a, b, c], u16::from(d) + 1))
    }

    fn shown(n: u32) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n as u16))
    }

    #[test]
    fn one_peer_and_its_other_name() {
        let mut peers = Peers::new(&Room::new());
        assert_eq!(peers.shown(host(1)), None);
        assert_eq!(peers.newest(), None);
        peers.remember(host(1), shown(1));
        assert_eq!(peers.shown(host(1)), Some(shown(1)));
        assert_eq!(peers.shown(host(2)), None);
        peers.remember(host(1), shown(7));
        assert_eq!(peers.shown(host(1)), Some(shown(7)));
        let v6 = SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 2], 53));
        peers.remember(v6, v6);
        assert_eq!(peers.shown(v6), Some(v6));
        assert_eq!(peers.newest(), Some(v6));
    }

    /// Against a plain list in order of use, through many more endpoints than it holds.
    #[test]
    fn agrees_with_a_list() {
        let mut peers = Peers::new(&Room::new());
        let mut model: Vec<(u32, u32)> = Vec::new();
        let mut seed = 3u64;
        for step in 0..60_000u32 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let n = (seed >> 33) as u32 % (10 + step / 100);
            let at = model.iter().position(|&(host, _)| host == n);
            if seed >> 63 == 0 {
                match at {
                    Some(at) => drop(model.remove(at)),
                    None if model.len() == UDP_PEERS_MAX => drop(model.remove(0)),
                    None => {}
                }
                model.push((n, step & 0x7fff));
                peers.remember(host(n), shown(step & 0x7fff));
            } else {
                let expected = at.map(|at| {
                    let entry = model.remove(at);
                    model.push(entry);
                    shown(entry.1)
                });
                assert_eq!(peers.shown(host(n)), expected, "step {step}");
            }
            assert_eq!(peers.newest(), model.last().map(|&(_, s)| shown(s)));
        }
        assert_eq!(peers.entries.len(), UDP_PEERS_MAX);
    }

    #[test]
    fn a_hundred_thousand_endpoints_are_bounded_and_the_last_are_known() {
        let mut peers = Peers::new(&Room::new());
        for n in 0..100_000 {
            peers.remember(host(n), host(n));
        }
        assert_eq!((peers.entries.len(), peers.index.len()), (UDP_PEERS_MAX, 2 * UDP_PEERS_MAX));
        for n in 100_000 - UDP_PEERS_MAX as u32..100_000 {
            assert_eq!(peers.shown(host(n)), Some(host(n)));
        }
        assert_eq!(peers.shown(host(0)), None);
    }

    #[test]
    fn all_mappings_together_are_bounded_and_none_is_without() {
        let room = Room::new();
        let full = PEERS_SHARED as usize / (UDP_PEERS_MAX - PEERS_OWN);
        let mut mappings: Vec<_> = (0..full + 3).map(|_| Peers::new(&room)).collect();
        for peers in &mut mappings {
            for n in 0..300 {
                peers.remember(host(n), shown(n));
            }
        }
        let total: usize = mappings.iter().map(|peers| peers.entries.len()).sum();
        assert_eq!(total, PEERS_SHARED as usize + mappings.len() * PEERS_OWN);
        // The last has its own few, and replaces the oldest of them.
        let Some(last) = mappings.last_mut() else { panic!() };
        assert_eq!(last.entries.len(), PEERS_OWN);
        assert_eq!(last.shown(host(299)), Some(shown(299)));
        assert_eq!(last.shown(host(291)), None);
        // What ends makes room.
        drop(mappings.remove(0));
        let Some(last) = mappings.last_mut() else { panic!() };
        for n in 0..300 {
            last.remember(host(n), shown(n));
        }
        assert_eq!(last.entries.len(), UDP_PEERS_MAX);
        drop(mappings);
        assert_eq!(room.0.get(), PEERS_SHARED);
    }
}
