//! A connection on its way from one worker to another.
//!
//! # Theory of operation
//!
//! A slot belongs to the thread of its arena, and an operation in flight to its ring; neither can go along. So a connection that
//! is to go is first brought to rest ([`TcpFlow::set_out`]): it receives nothing more from its socket, and what is in flight ends
//! or is cancelled. What the guest sends goes on to the socket, as sends end at once, but nothing is acknowledged: within
//! a window the guest falls silent. That matters, for its frames go to the queue of who has written to it last, and those that
//! waited in the old queue would be overtaken by those in the new one, hundreds of them if it cuts its segments itself.
//!
//! When the kernel has nothing of it and the guest has been silent for [`MIGRATE_HUSH`], it is packed: its numbers, and copies of
//! the bytes that the guest has not acknowledged, a window of them (1 MiB) at most. The other worker
//! [unpacks](TcpFlow::unpack) it into slots of its own, has the guest send to its queue, and acknowledges. With nothing in the
//! way nobody loses a frame.
//!
//! Only a connection in full course goes: nobody has said FIN, nothing is lost, the socket takes bytes. For any other it
//! would not pay, and what would have to go along stays simple.

use super::super::key::FlowKey;
use super::super::{Action, Ctx};
use super::{Phase, TcpFlow, guest, host};
use crate::frame::Mac;
use crate::limits::MIGRATE_HUSH;
use crate::time::Time;

#[expect(unused_imports, reason = "named in the docs")]
use Action::Migrate;

/// A connection, packed.
#[derive(Debug)]
pub struct Parcel {
    /// Its name.
    pub key: FlowKey,
    mac: Mac,
    mss: u16,
    slow: bool,
    to_host: host::Packed,
    to_guest: guest::Packed,
}

impl TcpFlow {
    /// Whether it is one that can go.
    pub fn may_migrate(&self) -> bool {
        self.phase == Phase::Open && self.to_host.may_migrate() && self.to_guest.may_migrate()
    }

    /// Receives nothing more from its socket, and acknowledges nothing, from now on.
    pub fn set_out(&mut self) {
        self.migrating = true;
    }

    /// Goes on as ever.
    pub fn stay(&mut self) {
        self.migrating = false;
    }

    /// Packs it. `None`: the kernel has something of it yet, or the guest still speaks.
    pub fn pack(&self, key: &FlowKey, now: Time) -> Option<Parcel> {
        if now - self.active < MIGRATE_HUSH {
            return None;
        }
        let Self { mac, mss, slow, .. } = *self;
        let (to_host, to_guest) = (self.to_host.pack()?, self.to_guest.pack()?);
        Some(Parcel { key: *key, mac, mss, slow, to_host, to_guest })
    }

    /// Unpacks one. `None`: slots are short.
    pub fn unpack(ctx: &mut Ctx<'_>, parcel: &Parcel) -> Option<Self> {
        let Parcel { mac, mss, slow, .. } = *parcel;
        let to_guest = guest::ToGuest::unpack(ctx, &parcel.to_guest, mss)?;
        Some(Self {
            phase: Phase::Open,
            mac,
            mss,
            slow,
            opened: true,
            steers: true,
            ack_owed: true,
            to_host: host::ToHost::unpack(&parcel.to_host),
            to_guest,
            ..Self::blank(ctx.now)
        })
    }
}
