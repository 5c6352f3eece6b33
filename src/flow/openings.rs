//! How many connections of the guest may come to nothing.
//!
//! # Theory of operation
//!
//! A SYN is the guest's dearest frame: it takes a socket, a walk through the host's network stack to whoever refuses it, and
//! a second one to end it. A guest that sends them as fast as it can (a scan, a flood, a program that tries again
//! at once) would have the worker's time, and the other flows would lack it. So each SYN that opens a flow takes a
//! credit, which comes back when the handshake with the guest is over: connections that work use none up, however many
//! there are in a second. The credit of one that comes to nothing is gone, and time brings a new one. Without one a SYN is
//! dropped, and the guest's kernel sends it again after a second, as it does when a server's backlog is full.
//!
//! Who makes a flood should not have the credits of the others. A container's programs have one address, so the
//! destination tells them apart:
//!
//! - Each host address has credits of its own, and all together have no more than twice as many. What is refused by one
//!   address leaves the connections to others alone. The addresses share a fixed number of places by keyed hash.
//! - An endpoint (address and port) to which the last connection worked is *proven*; a connection to it takes its
//!   credit from another purse, that of the proven ones. So a scan of many ports or of many addresses leaves alone whatever
//!   the guest's programs have talked to lately. It is proven until one is refused.
//!
//! What is left to a flood of many addresses: while it lasts, the first connection to an endpoint that no other has worked with.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::key::{FlowKey, Proto};
use crate::limits::{
    OPENINGS_ADDRESS_EVERY, OPENINGS_ADDRESS_MOST, OPENINGS_ADDRESSES, OPENINGS_EVERY,
    OPENINGS_MOST, OPENINGS_PROOFS, OPENINGS_PROVEN_EVERY, OPENINGS_PROVEN_MOST,
};
use crate::time::{Millis, Time};

/// The credits of one worker's connections.
#[derive(Debug)]
pub struct Openings {
    /// Of each host address, by its hash.
    addresses: Box<[Purse]>,
    /// Of all addresses together.
    all: Purse,
    /// Of connections to proven endpoints.
    proven: Purse,
    /// Hashes of the proven endpoints, each at its place. The latest of several at one.
    proofs: Box<[Option<u32>]>,
    secret: [u64; 2],
}

/// Who gave a connection its credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lender {
    /// The host's address, and all addresses.
    Address,
    /// The purse of the proven endpoints.
    Proven,
}

/// Credits, of which time brings new ones up to a bound.
#[derive(Clone, Copy, Debug)]
struct Purse {
    left: u32,
    most: u32,
    /// How often there comes one.
    every: Millis,
    /// Up to when those that have come are counted.
    counted: Time,
}

impl Purse {
    fn new(most: u32, every: Millis, now: Time) -> Self {
        Self { left: most, most, every, counted: now }
    }

    fn take(&mut self, now: Time) -> bool {
        let come = (now - self.counted).0 / self.every.0;
        self.counted = self.counted + Millis(come * self.every.0);
        self.left = u64::from(self.left).saturating_add(come).min(self.most.into()) as u32;
        let may = self.left > 0;
        self.left -= u32::from(may);
        may
    }

    fn give(&mut self) {
        self.left = (self.left + 1).min(self.most);
    }
}

impl Openings {
    /// Full purses; `secret` keys the hashes.
    pub fn new(secret: [u64; 2], now: Time) -> Self {
        let address = Purse::new(OPENINGS_ADDRESS_MOST, OPENINGS_ADDRESS_EVERY, now);
        Self {
            addresses: vec![address; OPENINGS_ADDRESSES].into(),
            all: Purse::new(OPENINGS_MOST, OPENINGS_EVERY, now),
            proven: Purse::new(OPENINGS_PROVEN_MOST, OPENINGS_PROVEN_EVERY, now),
            proofs: vec![None; OPENINGS_PROOFS].into(),
            secret,
        }
    }

    /// Takes the credit of one connection to the flow's host endpoint, if there is one left.
    pub fn take(&mut self, key: &FlowKey, now: Time) -> Option<Lender> {
        let hash = self.endpoint(key);
        if *self.proof(hash) == Some(hash) && self.proven.take(now) {
            return Some(Lender::Proven);
        }
        let address = self.address(key);
        if !address.take(now) {
            return None;
        }
        if !self.all.take(now) {
            self.address(key).give();
            return None;
        }
        Some(Lender::Address)
    }

    /// A connection was not begun after all.
    pub fn give(&mut self, key: &FlowKey, lender: Lender) {
        match lender {
            Lender::Proven => self.proven.give(),
            Lender::Address => {
                self.address(key).give();
                self.all.give();
            }
        }
    }

    /// A connection has worked.
    pub fn worked(&mut self, key: &FlowKey, lender: Lender) {
        self.give(key, lender);
        let hash = self.endpoint(key);
        *self.proof(hash) = Some(hash);
    }

    /// A connection has found nobody.
    pub fn failed(&mut self, key: &FlowKey) {
        let hash = self.endpoint(key);
        self.proof(hash).take_if(|proven| *proven == hash);
    }

    fn address(&mut self, key: &FlowKey) -> &mut Purse {
        let hash = self.hash(SocketAddr::new(key.host().ip(), 0));
        &mut self.addresses[hash as usize % OPENINGS_ADDRESSES]
    }

    fn endpoint(&self, key: &FlowKey) -> u32 {
        self.hash(key.host())
    }

    fn proof(&mut self, hash: u32) -> &mut Option<u32> {
        &mut self.proofs[hash as usize % OPENINGS_PROOFS]
    }

    fn hash(&self, host: SocketAddr) -> u32 {
        let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        FlowKey::pair(Proto::Tcp, nobody, host).hash(&self.secret)
    }
}

#[cfg(test)]
mod tests;
