//! Where in the guest's network an address is: the MAC for what the guest has not asked for.
//!
//! # Theory of operation
//!
//! What answers a frame goes back to the MAC it came from. Only what comes from outside, by a forwarded port,
//! needs to be told where to go, and so the gateway asks, as any host would (RFC 826, RFC 4861 section 7.2):
//! once a [`NEIGHBOUR_GAP`], [`NEIGHBOUR_TRIES`] times. What waits for the answer is kept by its flow, here is its name.
//! An answer that was not asked for changes nothing, so a guest cannot fill the table; it may lie about its own
//! addresses, and is the one who does not get the frames then. An answer holds until it is needed after
//! [`NEIGHBOUR_FRESH`]: then it is used once more, and asked for anew.
//!
//! With several workers, each has a table, and an answer comes to any of them: whoever gets it hands it to all others
//! while one is asking (`Stack::tell_others`).

use std::net::IpAddr;

use super::{gateway, ndp};
use crate::flow::{Ctx, FlowId};
use crate::frame::Mac;
use crate::limits::{
    NEIGHBOUR_FRESH, NEIGHBOUR_GAP, NEIGHBOUR_TRIES, NEIGHBOUR_WAITING, NEIGHBOURS_MAX,
};
use crate::time::Time;

/// Neighbours that were asked for, and who waits for them.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    known: Vec<Neighbour>,
    waiting: Vec<(IpAddr, FlowId)>,
}

#[derive(Debug)]
struct Neighbour {
    addr: IpAddr,
    mac: Option<Mac>,
    /// When it last said so, or was first asked.
    since: Time,
    /// When it is asked again, and how often it was; `None`: nothing is asked.
    asking: Option<(Time, u8)>,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    At(Mac),
    /// It has been asked for.
    Asking,
    /// Too many others have been.
    Full,
}

impl Neighbours {
    /// Looks an address up, and asks for it where that is due.
    pub(super) fn find(&mut self, ctx: &mut Ctx<'_>, addr: IpAddr) -> Known {
        let known = match self.known.iter_mut().position(|n| n.addr == addr) {
            Some(at) => &mut self.known[at],
            None => {
                let new = Neighbour { addr, mac: None, since: ctx.now, asking: None };
                if self.known.len() < NEIGHBOURS_MAX {
                    self.known.push(new);
                } else {
                    let idle = self.known.iter_mut().filter(|n| n.asking.is_none());
                    let Some(oldest) = idle.min_by_key(|n| n.since) else { return Known::Full };
                    *oldest = new;
                }
                let Some(known) = self.known.iter_mut().find(|n| n.addr == addr) else {
                    return Known::Full;
                };
                known
            }
        };
        let stale = known.mac.is_none() || ctx.now - known.since >= NEIGHBOUR_FRESH;
        if stale && known.asking.is_none() {
            known.asking = Some((ctx.now + NEIGHBOUR_GAP, 1));
            ask(ctx, addr);
        }
        known.mac.map_or(Known::Asking, Known::At)
    }

    /// A flow waits for a neighbour that is being asked for. False: too many do.
    pub(super) fn wait(&mut self, addr: IpAddr, flow: FlowId) -> bool {
        if self.waiting.len() >= NEIGHBOUR_WAITING {
            return false;
        }
        self.waiting.push((addr, flow));
        true
    }

    /// A neighbour has said where it is. False: nobody has asked.
    pub(super) fn told(&mut self, addr: IpAddr, mac: Mac, now: Time) -> bool {
        let Some(known) = self.known.iter_mut().find(|n| n.addr == addr) else { return false };
        if known.asking.take().is_none() {
            return false;
        }
        known.mac = Some(mac);
        known.since = now;
        true
    }

    /// One of those that wait for an address, and does not any more.
    pub(super) fn waiter(&mut self, addr: IpAddr) -> Option<FlowId> {
        let at = self.waiting.iter().position(|&(a, _)| a == addr)?;
        Some(self.waiting.swap_remove(at).1)
    }

    /// Asks again what is due; yields one address that has not answered: call until `None`.
    pub(super) fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) -> Option<IpAddr> {
        let mut silent = None;
        for (i, known) in self.known.iter_mut().enumerate() {
            let Some((at, tries)) = &mut known.asking else { continue };
            if *at > ctx.now {
                continue;
            }
            if *tries >= NEIGHBOUR_TRIES {
                silent = Some(i);
                break;
            }
            *tries += 1;
            *at = ctx.now + NEIGHBOUR_GAP;
            ask(ctx, known.addr);
        }
        Some(self.known.swap_remove(silent?).addr)
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.known.iter().filter_map(|n| n.asking.map(|(at, _)| at)).min()
    }

    /// Addresses that are being asked for.
    pub(super) fn asking(&self) -> u32 {
        self.known.iter().filter(|n| n.asking.is_some()).count() as u32
    }
}

fn ask(ctx: &mut Ctx<'_>, addr: IpAddr) {
    match addr {
        IpAddr::V4(addr) => gateway::ask(ctx, addr),
        IpAddr::V6(addr) => ndp::ask(ctx, addr),
    }
}
