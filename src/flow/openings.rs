//! How many flows of the guest may come to nothing.
//!
//! # Theory of operation
//!
//! The first packet of a flow is the guest's dearest: it takes a socket, a walk through the host's network stack to whoever
//! refuses it, and a second one to end it. A guest that sends them as fast as it can (a scan, a flood, a program that tries
//! again at once) would have the worker's time, and the other flows would lack it. So each one that opens a flow takes a
//! credit, as a [loan](Loan), which comes back when the flow works: flows that work use none up, however many
//! there are in a second. The credit of one that comes to nothing is gone, and time brings a new one.
//!
//! - A **connection** works when the handshake with the guest is over. Without a credit a SYN is
//!   dropped, and the guest's kernel sends it again after a second, as it does when a server's backlog is full.
//! - A **mapping** of UDP or ping works when whom it was made for has answered. Without a credit a datagram is dropped,
//!   and perhaps nobody sends it again; nor does a program that only sends ever hear anything. So mappings have twice
//!   the credit of connections.
//!
//! Who makes a flood should not have the credits of the others. A container's programs have one address, so the
//! destination tells them apart:
//!
//! - Each host address has credits of its own, and all together have no more than twice as many. What is refused by one
//!   address leaves the flows to others alone. The addresses share a fixed number of places by keyed hash.
//! - An endpoint (address and port) to which the last flow worked is *proven*; a flow to it takes its
//!   credit from another purse, that of the proven ones. So a scan of many ports or of many addresses leaves alone whatever
//!   the guest's programs have talked to lately. It is proven until one is refused, or a mapping has waited for an
//!   answer until its end.
//!
//! What is left to a flood of many addresses: while it lasts, the first flow to an endpoint that no other has worked with.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::key::{FlowKey, Proto};
use crate::limits::{
    MAPPINGS_ADDRESS_EVERY, MAPPINGS_ADDRESS_MOST, MAPPINGS_EVERY, MAPPINGS_MOST,
    MAPPINGS_PROVEN_EVERY, MAPPINGS_PROVEN_MOST, OPENINGS_ADDRESS_EVERY, OPENINGS_ADDRESS_MOST,
    OPENINGS_ADDRESSES, OPENINGS_EVERY, OPENINGS_MOST, OPENINGS_PROOFS, OPENINGS_PROVEN_EVERY,
    OPENINGS_PROVEN_MOST,
};
use crate::time::{Millis, Time};

/// The credits of one worker's connections, or of its mappings.
#[derive(Debug)]
pub struct Openings {
    /// Of each host address, by its hash.
    addresses: Box<[Purse]>,
    /// Of all addresses together.
    all: Purse,
    /// Of flows to proven endpoints.
    proven: Purse,
    /// The proven endpoints, each at its place. The latest of several at one.
    proofs: Box<[Option<Proof>]>,
    secret: [u64; 2],
}

/// The credit of one flow. It is gone with the flow, unless it is given back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "it is to be kept with the flow, or given back"]
pub struct Loan {
    lender: Lender,
    /// The place of the host's address.
    address: u8,
    /// The host's endpoint, hashed.
    endpoint: u32,
    since: Time,
}

/// A flow to an endpoint has worked.
#[derive(Clone, Copy, Debug)]
struct Proof {
    /// The endpoint, hashed.
    endpoint: u32,
    at: Time,
}

const _: () = assert!(OPENINGS_ADDRESSES - 1 <= u8::MAX as usize);

/// Who gave a flow its credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lender {
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
    /// Those of connections: full purses. `secret` keys the hashes.
    pub fn connections(secret: [u64; 2], now: Time) -> Self {
        Self::new(
            Purse::new(OPENINGS_ADDRESS_MOST, OPENINGS_ADDRESS_EVERY, now),
            Purse::new(OPENINGS_MOST, OPENINGS_EVERY, now),
            Purse::new(OPENINGS_PROVEN_MOST, OPENINGS_PROVEN_EVERY, now),
            secret,
        )
    }

    /// Those of mappings.
    pub fn mappings(secret: [u64; 2], now: Time) -> Self {
        Self::new(
            Purse::new(MAPPINGS_ADDRESS_MOST, MAPPINGS_ADDRESS_EVERY, now),
            Purse::new(MAPPINGS_MOST, MAPPINGS_EVERY, now),
            Purse::new(MAPPINGS_PROVEN_MOST, MAPPINGS_PROVEN_EVERY, now),
            secret,
        )
    }

    fn new(address: Purse, all: Purse, proven: Purse, secret: [u64; 2]) -> Self {
        let addresses = vec![address; OPENINGS_ADDRESSES].into();
        Self { addresses, all, proven, proofs: vec![None; OPENINGS_PROOFS].into(), secret }
    }

    /// Takes the credit of one flow to `host`, if there is one left.
    pub fn take(&mut self, host: SocketAddr, now: Time) -> Option<Loan> {
        let endpoint = self.hash(host);
        let place = self.hash(SocketAddr::new(host.ip(), 0)) as usize % OPENINGS_ADDRESSES;
        let lender = self.lender(place, endpoint, now)?;
        Some(Loan { lender, address: place as u8, endpoint, since: now })
    }

    fn lender(&mut self, place: usize, endpoint: u32, now: Time) -> Option<Lender> {
        let proof = *self.proof(endpoint);
        if proof.is_some_and(|proof| proof.endpoint == endpoint) && self.proven.take(now) {
            return Some(Lender::Proven);
        }
        let address = &mut self.addresses[place];
        if !address.take(now) {
            return None;
        }
        if !self.all.take(now) {
            address.give();
            return None;
        }
        Some(Lender::Address)
    }

    /// A flow was not begun after all.
    pub fn give(&mut self, loan: Loan) {
        match loan.lender {
            Lender::Proven => self.proven.give(),
            Lender::Address => {
                self.addresses[usize::from(loan.address)].give();
                self.all.give();
            }
        }
    }

    /// A flow has worked.
    pub fn worked(&mut self, loan: Loan, now: Time) {
        let endpoint = loan.endpoint;
        *self.proof(endpoint) = Some(Proof { endpoint, at: now });
        self.give(loan);
    }

    /// A flow has found nobody. What has been proven since it began stays so.
    pub fn failed(&mut self, loan: &Loan) {
        let disproved =
            |proof: &mut Proof| proof.endpoint == loan.endpoint && proof.at <= loan.since;
        self.proof(loan.endpoint).take_if(disproved);
    }

    /// Whether it is for a flow to `host`.
    pub fn is_for(&self, loan: &Loan, host: SocketAddr) -> bool {
        loan.endpoint == self.hash(host)
    }

    fn proof(&mut self, endpoint: u32) -> &mut Option<Proof> {
        &mut self.proofs[endpoint as usize % OPENINGS_PROOFS]
    }

    fn hash(&self, host: SocketAddr) -> u32 {
        let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        FlowKey::pair(Proto::Tcp, nobody, host).hash(&self.secret)
    }
}

#[cfg(test)]
mod tests;
