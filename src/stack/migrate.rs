//! Connections that go to another worker, and those that come.
//!
//! # Theory of operation
//!
//! [`Stack::set_out`] stops a connection's demands on its socket, and [`Action::Migrate`] has the worker cancel what is in flight.
//! Turn by turn the worker asks [`Stack::leave`], or, where something is in flight for too long, [`Stack::linger`]. At rest, the
//! connection is packed and leaves table, timers and counts; its key is the other worker's from then on. There it
//! [arrives](Stack::arrive), as soon as there is room: until then nothing is lost but frames, which come again.
//!
//! The descriptor that it holds is one of what is common while it is on its way.

use super::descriptors::Taken;
use super::{Flow, Stack};
use crate::flow::tcp::{Parcel, TcpFlow};
use crate::flow::{Action, Ctx, FlowId};
use crate::limits::{BULK_MOST, MIGRATE_HUSH, MIGRATE_HUSH_GAP, MIGRATE_PATIENCE, SLOTS_MAX};
use crate::time::Time;

/// A connection on its way, without its socket.
#[derive(Debug)]
pub struct Migrant {
    parcel: Parcel,
    taken: Taken,
}

/// What becomes of a connection that was to go.
#[derive(Debug)]
pub enum Leave {
    /// It is not at rest: ask again.
    NotYet,
    /// It goes on here as ever.
    Stays,
    /// It is not here any more. Its socket goes to this worker, with it.
    Gone(u8, Box<Migrant>),
}

/// The connection that is about to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    flow: FlowId,
    /// Where to.
    worker: u8,
    since: Time,
    /// When its guest last only seemed to be silent: frames were not read, for want of slots or of a processor.
    deaf: Time,
    /// When the worker last asked.
    asked: Time,
}

impl Stack {
    /// Has a connection go to another worker, if it can and no other does: [`Action::Migrate`] begins it.
    pub fn set_out(&mut self, id: FlowId, worker: u8, now: Time) {
        if self.draining || self.leaving.is_some() {
            return;
        }
        if let Some((_, Flow::Tcp(flow))) = self.flows.get_mut(id)
            && flow.may_migrate()
        {
            flow.set_out();
            if let Some(seat) = &self.seat {
                seat.expect_bulk(worker, now);
            }
            self.leaving = Some(Leaving { flow: id, worker, since: now, deaf: now, asked: now });
            self.actions.push(Action::Migrate { flow: id });
        }
    }

    /// The connection that is about to go, and whether its guest could have been heard.
    fn look(&mut self, now: Time) -> Option<Leaving> {
        let leaving = self.leaving.as_mut()?;
        let asked = std::mem::replace(&mut leaving.asked, now);
        if self.pools.large.available() < SLOTS_MAX / 8 || now - asked > MIGRATE_HUSH_GAP {
            leaving.deaf = now;
        }
        Some(*leaving)
    }

    /// Packs the connection that is about to go, now that nothing is in flight on its socket. There may be actions
    /// afterwards.
    pub fn leave(&mut self, now: Time) -> Leave {
        let Some(Leaving { flow: id, worker, deaf, .. }) = self.look(now) else {
            return Leave::Stays;
        };
        let taken = self.share.all().lend();
        let packed = match self.flows.get(id) {
            Some((key, Flow::Tcp(flow)))
                if flow.may_migrate() && taken.is_some() && now - deaf >= MIGRATE_HUSH =>
            {
                flow.pack(key, now)
            }
            _ => None,
        };
        let Some((parcel, taken)) = packed.zip(taken) else { return self.linger(now) };
        self.leaving = None;
        self.balance.rest(now);
        if let Some((_, Flow::Tcp(flow))) = self.flows.get(id)
            && flow.undrained
        {
            self.undrained = self.undrained.saturating_sub(1);
        }
        self.balance.forget(id);
        self.timers.disarm(id.index);
        self.flows.remove(id);
        self.share.give();
        if let Some(seat) = &self.seat {
            seat.pass(&parcel.key, worker);
        }
        self.stats.migrated += 1;
        Leave::Gone(worker, Box::new(Migrant { parcel, taken }))
    }

    /// The connection that is about to go has to wait: it stays when that takes too long, or when it cannot go any more.
    /// There may be actions afterwards.
    pub fn linger(&mut self, now: Time) -> Leave {
        let Some(Leaving { flow: id, since, .. }) = self.look(now) else { return Leave::Stays };
        if let Some((_, Flow::Tcp(flow))) = self.flows.get(id)
            && flow.may_migrate()
            && !self.draining
            && now - since < MIGRATE_PATIENCE
        {
            return Leave::NotYet;
        }
        self.stay(now);
        Leave::Stays
    }

    /// The connection that is about to go stays. There may be actions afterwards.
    pub fn stay(&mut self, now: Time) {
        let Some(Leaving { flow: id, .. }) = self.leaving.take() else { return };
        if let Some((_, Flow::Tcp(flow))) = self.flows.get_mut(id) {
            // Not for one that goes no more because it ends.
            if flow.may_migrate() {
                self.balance.stayed(now);
            }
            flow.stay();
            self.mark(id);
        }
    }

    /// A connection has come; the caller keeps its socket at the id.
    ///
    /// # Errors
    /// The connection: there is no room for it now. It is nobody else's: to be tried again.
    pub fn arrive(&mut self, migrant: Box<Migrant>, now: Time) -> Result<FlowId, Box<Migrant>> {
        let parcel = &migrant.parcel;
        if let Some(seat) = &self.seat {
            // Ours already, but where it has come back.
            seat.pass(&parcel.key, seat.me());
        }
        self.make_room(now);
        if self.flows.room() == 0 {
            return Err(self.turn_away(migrant, now));
        }
        let flow = TcpFlow::unpack(&mut ctx!(self, now), parcel);
        let id = flow.and_then(|flow| self.flows.insert(parcel.key, Flow::Tcp(flow)).ok());
        let Some(id) = id else { return Err(self.turn_away(migrant, now)) };
        self.share.receive(migrant.taken);
        self.balance.rest(now);
        if let Some(seat) = &self.seat {
            self.balance.came(id, seat, now);
        }
        self.mark(id);
        Ok(id)
    }

    /// There is no room, and nobody shall send more.
    fn turn_away(&self, migrant: Box<Migrant>, now: Time) -> Box<Migrant> {
        if let Some(seat) = &self.seat {
            seat.note_bulk(BULK_MOST as u32, now);
        }
        migrant
    }
}

#[cfg(test)]
mod tests;
