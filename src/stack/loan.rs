//! What becomes of the credit that a mapping was made with ([`openings`](crate::flow::openings)).

use std::net::SocketAddr;

use super::Flow;
use crate::flow::openings::{Loan, Openings};
use crate::flow::{DgramEvent, Errno};
use crate::time::Time;

impl Flow {
    /// What a mapping owes.
    pub(super) fn loan(&mut self) -> Option<&mut Option<Loan>> {
        match self {
            Self::Udp(flow) => Some(&mut flow.loan),
            Self::Ping(flow) => Some(&mut flow.loan),
            Self::Tcp(_) | Self::Bound(..) | Self::Dns(_) | Self::Closing(_) => None,
        }
    }

    /// Something has come back to a mapping: perhaps from whom it was made for.
    pub(super) fn repay(&mut self, mappings: &mut Openings, event: &DgramEvent, now: Time) {
        let (host, worked) = match event {
            DgramEvent::Received { from, .. } => (*from, true),
            DgramEvent::Error(error) if error.errno == Errno(libc::ECONNREFUSED) => {
                (error.to, false)
            }
            DgramEvent::Error(_) | DgramEvent::Failed(_) | DgramEvent::Refused { .. } => return,
        };
        let host = match self {
            Self::Ping(_) => SocketAddr::new(host.ip(), 0),
            _ => host,
        };
        let owed = self.loan().and_then(|owed| owed.take_if(|loan| mappings.is_for(loan, host)));
        match owed {
            Some(loan) if worked => mappings.worked(loan, now),
            Some(loan) => mappings.failed(&loan),
            None => {}
        }
    }
}
