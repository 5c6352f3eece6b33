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
//! that an open-addressed [index](super::places) finds them, at most half full, so that a guest port that talks to a
//! hundred thousand endpoints costs the same per datagram as one that talks to two.
//!
//! Where ports of the host lead to the guest's endpoint, peers come by themselves, by one of several sockets
//! ([`Via`]), and the guest's answers are told apart by the address that each was shown as: a second index finds
//! peers by that one, and no two have the same ([`Peers::open`]).
//! Such a peer is also remembered by the address of the host that it has come to ([`Local`]): one endpoint that asks
//! two addresses is two peers, since each of its questions is to be answered from where it was asked. Whom the guest has
//! spoken to first has none until it answers. These addresses lie in a list of their own, so that other mappings have no memory for them.
use std::cell::Cell;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::rc::Rc;

use super::FlowId;
use super::local::Local;
use super::places::{self, Places};
use crate::limits::{FORWARD_PEERS_MAX, PEERS_OWN, UDP_PEERS_MAX};
use crate::time::{Millis, Time};

/// Remembered endpoints, newest to oldest.
#[derive(Debug)]
pub struct Peers {
    room: Room,
    max: usize,
    entries: Vec<Entry>,
    /// The host's own address for each entry, in the same places; empty unless `open`.
    locals: Vec<Local>,
    /// Entries by the host's endpoint and address; empty while there are few.
    by_host: Places,
    /// Entries by the name that the guest has for them; empty while there are few, or when nobody asks.
    by_shown: Places,
    open: bool,
    newest: u16,
    oldest: u16,
}

/// Which socket a peer is spoken to by, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The mapping's own.
    Own,
    /// That of a port of the host, which has a flow of its own.
    Port(FlowId, Local),
}

impl Via {
    fn port(self) -> Option<FlowId> {
        match self {
            Self::Own => None,
            Self::Port(flow, _) => Some(flow),
        }
    }

    fn local(self) -> Local {
        match self {
            Self::Own => Local::ANY,
            Self::Port(_, local) => local,
        }
    }
}

/// What several mappings may remember together beyond their own few peers.
#[derive(Clone, Debug)]
pub struct Room {
    free: Rc<Cell<u32>>,
    /// Keys their indexes.
    secret: [u64; 2],
}

impl Room {
    /// So much, free. The secret is random.
    pub fn new(peers: u32, secret: [u64; 2]) -> Self {
        Self { free: Rc::new(Cell::new(peers)), secret }
    }

    fn take(&self) -> bool {
        let free = self.free.get();
        self.free.set(free.saturating_sub(1));
        free > 0
    }

    fn give(&self, peers: usize) {
        self.free.set(self.free.get() + peers as u32);
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    host: Endpoint,
    shown: Endpoint,
    newer: u16,
    older: u16,
    /// Interface of a link-local address; 0 for all others.
    scope: u32,
    /// The port of the host that it is spoken to by; `None`: the mapping's own socket.
    port: Option<FlowId>,
    used: Time,
}

/// An address of either family in 16 bytes (IPv4 mapped), and a port: half of a `SocketAddr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Endpoint {
    ip: [u8; 16],
    port: u16,
}

/// Peers that are found without an index.
const LINEAR: usize = PEERS_OWN;
const NONE: u16 = places::NONE;
const _: () = assert!(UDP_PEERS_MAX < NONE as usize && UDP_PEERS_MAX > LINEAR);
const _: () = assert!(FORWARD_PEERS_MAX < NONE as usize && FORWARD_PEERS_MAX >= UDP_PEERS_MAX);

impl Peers {
    /// Nobody.
    pub fn new(room: &Room) -> Self {
        Self {
            room: room.clone(),
            max: UDP_PEERS_MAX,
            entries: Vec::new(),
            locals: Vec::new(),
            by_host: Places::default(),
            by_shown: Places::default(),
            open: false,
            newest: NONE,
            oldest: NONE,
        }
    }

    /// From now on peers come by themselves: more of them, which take nothing from the room of other mappings.
    pub fn open(&mut self, room: &Room) {
        if std::mem::replace(&mut self.open, true) {
            return;
        }
        self.max = FORWARD_PEERS_MAX;
        let beyond = self.entries.len().saturating_sub(PEERS_OWN);
        let taken = (0..beyond).take_while(|_| room.take()).count();
        for _ in taken..beyond {
            self.remove(self.oldest);
        }
        self.room.give(taken);
        self.room = room.clone();
        self.locals = vec![Local::ANY; self.entries.len()];
        self.rebuild(self.by_host.len());
    }

    /// The guest has sent to `host`, which it calls `shown`.
    pub fn remember(&mut self, host: SocketAddr, shown: SocketAddr) {
        self.note(host, Via::Own, shown, Time(0));
    }

    /// A peer that is spoken to by one of several sockets, and what the guest calls it: a name that no other has.
    pub fn note(&mut self, host: SocketAddr, via: Via, shown: SocketAddr, now: Time) {
        let (scope, host, shown) = (scope(&host), Endpoint::from(host), Endpoint::from(shown));
        if let Some(place) = self.place(&host, scope, via) {
            if self.entries[usize::from(place)].shown != shown {
                self.unhash_shown(place);
                self.entries[usize::from(place)].shown = shown;
                self.hash_shown(place);
            }
            return self.touch(place, now);
        }
        let port = via.port();
        let entry = Entry { host, shown, newer: NONE, older: NONE, scope, port, used: now };
        let len = self.entries.len();
        let place = if len < PEERS_OWN || (len < self.max && self.room.take()) {
            self.entries.push(entry);
            if self.open {
                self.locals.push(via.local());
            }
            self.entries.len() as u16 - 1
        } else {
            let place = self.oldest;
            self.unlink(place);
            self.unhash_host(place);
            self.unhash_shown(place);
            self.entries[usize::from(place)] = entry;
            self.set_local(place, via.local());
            place
        };
        self.link(place);
        if self.entries.len() > LINEAR && self.entries.len() * 2 > self.by_host.len() {
            self.rebuild((self.by_host.len() * 2).max(4 * LINEAR));
        } else {
            self.hash_host(place);
            self.hash_shown(place);
        }
    }

    /// What the guest calls `host`, if it has sent there; the answer keeps the endpoint in memory.
    pub fn shown(&mut self, host: SocketAddr) -> Option<SocketAddr> {
        self.shown_via(host, Via::Own, Time(0))
    }

    /// What the guest calls a peer that has come by this socket, to this address, before; or that the guest has spoken
    /// to first: it comes to the address that it was spoken to from.
    pub fn shown_via(&mut self, host: SocketAddr, via: Via, now: Time) -> Option<SocketAddr> {
        let (scope, host) = (scope(&host), Endpoint::from(host));
        let place = self.place(&host, scope, via).or_else(|| {
            let Via::Port(flow, local) = via else { return None };
            let place = self.place(&host, scope, Via::Port(flow, Local::ANY))?;
            self.unhash_host(place);
            self.set_local(place, local);
            self.hash_host(place);
            Some(place)
        })?;
        self.touch(place, now);
        Some(self.entries[usize::from(place)].shown.into())
    }

    /// Who goes by this name: its endpoint, and the socket to speak to it by. Only of an [open](Peers::open) mapping.
    pub fn named(&mut self, shown: SocketAddr, now: Time) -> Option<(SocketAddr, Via)> {
        let place = self.place_shown(&Endpoint::from(shown))?;
        self.touch(place, now);
        let entry = &self.entries[usize::from(place)];
        let via = entry.port.map_or(Via::Own, |port| Via::Port(port, local(&self.locals, place)));
        Some((entry.host(), via))
    }

    /// Whether nobody goes by this name.
    pub fn is_free(&self, shown: SocketAddr) -> bool {
        self.place_shown(&Endpoint::from(shown)).is_none()
    }

    /// What the guest calls the endpoint used last.
    pub fn newest(&self) -> Option<SocketAddr> {
        self.entries.get(usize::from(self.newest)).map(|entry| entry.shown.into())
    }

    /// When the peer that was silent longest was used.
    pub fn oldest(&self) -> Option<Time> {
        self.entries.get(usize::from(self.oldest)).map(|entry| entry.used)
    }

    /// What the guest calls this endpoint, or with port 0 any at its address, among the few used last. For errors that
    /// the host's own kernel raises: they do not name all.
    pub fn recent_at(&self, host: SocketAddr, via: Via) -> Option<SocketAddr> {
        let (Endpoint { ip, port }, via) = (Endpoint::from(host), via.port());
        let newest = self.entries.get(usize::from(self.newest));
        std::iter::successors(newest, |entry| self.entries.get(usize::from(entry.older)))
            .take(LINEAR)
            .find(|e| e.host.ip == ip && (port == 0 || e.host.port == port) && e.port == via)
            .map(|entry| entry.shown.into())
    }

    /// Forgets those that were silent, and not spoken to, for so long.
    pub fn forget_idle(&mut self, now: Time, idle: Millis) {
        while self.oldest().is_some_and(|used| now - used >= idle) {
            self.remove(self.oldest);
        }
    }

    /// Forgets a peer.
    pub fn forget(&mut self, host: SocketAddr, via: Via) {
        if let Some(place) = self.place(&Endpoint::from(host), scope(&host), via) {
            self.remove(place);
        }
    }

    /// Forgets everybody who is spoken to by a port that ends.
    pub fn forget_port(&mut self, port: FlowId) {
        let mut place = self.oldest;
        while let Some(entry) = self.entries.get(usize::from(place)) {
            if entry.port != Some(port) {
                place = entry.newer;
                continue;
            }
            // The last entry moves to the place of the one that goes.
            let (newer, last) = (entry.newer, self.entries.len() as u16 - 1);
            self.remove(place);
            place = if newer == last { place } else { newer };
        }
    }

    fn place(&self, host: &Endpoint, scope: u32, via: Via) -> Option<u16> {
        let (port, from) = (via.port(), via.local());
        let is = |place: u16| {
            let entry = &self.entries[usize::from(place)];
            entry.host == *host
                && entry.port == port
                && entry.scope == scope
                && local(&self.locals, place) == from
        };
        if self.entries.is_empty() {
            return None;
        }
        if is(self.newest) {
            return Some(self.newest);
        }
        if self.by_host.is_empty() {
            return (0..self.entries.len() as u16).find(|&place| is(place));
        }
        self.by_host.find(host.hash(&self.room.secret, from), is)
    }

    fn set_local(&mut self, place: u16, local: Local) {
        if let Some(own) = self.locals.get_mut(usize::from(place)) {
            *own = local;
        }
    }

    fn place_shown(&self, shown: &Endpoint) -> Option<u16> {
        if self.entries.get(usize::from(self.newest))?.shown == *shown {
            return Some(self.newest);
        }
        if self.by_shown.is_empty() {
            return self.entries.iter().position(|e| e.shown == *shown).map(|place| place as u16);
        }
        let is = |place| self.entries[usize::from(place)].shown == *shown;
        self.by_shown.find(shown.hash(&self.room.secret, Local::ANY), is)
    }

    fn touch(&mut self, place: u16, now: Time) {
        self.entries[usize::from(place)].used = now;
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

    /// Ends an entry. The last one takes its place.
    fn remove(&mut self, place: u16) {
        let last = self.entries.len() as u16 - 1;
        for moved in [place, last] {
            self.unhash_host(moved);
            self.unhash_shown(moved);
            if place == last {
                break;
            }
        }
        self.unlink(place);
        self.entries.swap_remove(usize::from(place));
        if self.open {
            self.locals.swap_remove(usize::from(place));
        }
        if self.entries.len() >= PEERS_OWN {
            self.room.give(1);
        }
        if place == last {
            return;
        }
        let Entry { newer, older, .. } = self.entries[usize::from(place)];
        match self.entries.get_mut(usize::from(newer)) {
            Some(entry) => entry.older = place,
            None => self.newest = place,
        }
        match self.entries.get_mut(usize::from(older)) {
            Some(entry) => entry.newer = place,
            None => self.oldest = place,
        }
        self.hash_host(place);
        self.hash_shown(place);
    }

    fn hash_host(&mut self, place: u16) {
        let host = &self.entries[usize::from(place)].host;
        let hash = host.hash(&self.room.secret, local(&self.locals, place));
        self.by_host.insert(place, hash);
    }

    fn unhash_host(&mut self, place: u16) {
        let hash = |place| {
            let host = &self.entries[usize::from(place)].host;
            host.hash(&self.room.secret, local(&self.locals, place))
        };
        self.by_host.remove(place, hash);
    }

    fn hash_shown(&mut self, place: u16) {
        let shown = &self.entries[usize::from(place)].shown;
        let hash = shown.hash(&self.room.secret, Local::ANY);
        self.by_shown.insert(place, hash);
    }

    fn unhash_shown(&mut self, place: u16) {
        let hash = |place| {
            let shown = &self.entries[usize::from(place)].shown;
            shown.hash(&self.room.secret, Local::ANY)
        };
        self.by_shown.remove(place, hash);
    }

    fn rebuild(&mut self, len: usize) {
        self.by_host.reset(len);
        self.by_shown.reset(if self.open { len } else { 0 });
        for place in 0..self.entries.len() as u16 {
            self.hash_host(place);
            self.hash_shown(place);
        }
    }
}

impl Entry {
    fn host(&self) -> SocketAddr {
        match SocketAddr::from(self.host) {
            SocketAddr::V6(a) if self.scope != 0 => {
                SocketAddrV6::new(*a.ip(), a.port(), 0, self.scope).into()
            }
            other => other,
        }
    }
}

/// The host's own address for an entry.
fn local(locals: &[Local], place: u16) -> Local {
    locals.get(usize::from(place)).copied().unwrap_or(Local::ANY)
}

fn scope(addr: &SocketAddr) -> u32 {
    match addr {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(a) => a.scope_id(),
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.room.give(self.entries.len().saturating_sub(PEERS_OWN));
    }
}

impl Endpoint {
    /// Keyed by a secret: whoever chose endpoints that collide would slow a whole worker down. With the host's own
    /// address, for one endpoint may come to very many.
    fn hash(&self, secret: &[u64; 2], local: Local) -> usize {
        let mut acc = secret[1];
        let mut mix = |word: u64| {
            let wide = u128::from(acc ^ word ^ secret[0])
                * u128::from(0x9e37_79b9_7f4a_7c15 ^ (secret[1] << 1));
            acc ^= ((wide as u64) ^ ((wide >> 64) as u64)).rotate_left(17);
        };
        let ip = u128::from_le_bytes(self.ip);
        [ip as u64, (ip >> 64) as u64, self.port.into()].into_iter().for_each(&mut mix);
        if let Some(own) = local.ip() {
            let own = u128::from_le_bytes(Self::from(SocketAddr::new(own, 0)).ip);
            [own as u64, (own >> 64) as u64, local.interface().into()].into_iter().for_each(mix);
        }
        (acc ^ (acc >> 32)) as usize
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
mod tests;
