//! What a flow is given to work with, on a bench. Only for unit tests.

use super::{Actions, Ctx};
use crate::arena::Pools;
use crate::config::NetConfig;
use crate::frame::Mac;
use crate::stats::Stats;
use crate::time::Time;

/// Everything that a [`Ctx`] borrows.
pub(crate) struct Around {
    pub(crate) net: NetConfig,
    pub(crate) pools: Pools,
    pub(crate) actions: Actions,
    pub(crate) stats: Stats,
    pub(crate) now: Time,
    pub(crate) guest_mac: Mac,
}

impl Around {
    pub(crate) fn new(guest_mac: Mac, now: Time) -> Self {
        Self {
            net: NetConfig::native(),
            pools: Pools::new().unwrap(),
            actions: Actions::new(),
            stats: Stats::default(),
            now,
            guest_mac,
        }
    }

    pub(crate) fn ctx(&mut self) -> Ctx<'_> {
        Ctx {
            net: &self.net,
            pools: &self.pools,
            actions: &mut self.actions,
            stats: &mut self.stats,
            now: self.now,
            guest_mac: self.guest_mac,
        }
    }
}
