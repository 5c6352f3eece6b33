//! What the flow table holds: a flow of one kind or another, and what all that are mappings have in common.

use std::net::SocketAddr;

use super::descriptors::Taken;
use super::dns::DnsFlow;
use crate::flow::openings::{Loan, Openings};
use crate::flow::ping::PingFlow;
use crate::flow::tcp::TcpFlow;
use crate::flow::udp::UdpFlow;
use crate::flow::{DgramEvent, Errno, FlowId};
use crate::time::Time;

/// One entry of the flow table.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "TCP is the largest and the most frequent; a box would cost it a cache miss per frame"
)]
pub enum Flow {
    /// A TCP connection.
    Tcp(TcpFlow),
    /// A UDP mapping.
    Udp(UdpFlow),
    /// The socket of a port of the host that leads to a UDP mapping: this one. Its descriptor was lent.
    Bound(FlowId, Taken),
    /// A ping mapping.
    Ping(PingFlow),
    /// A DNS query on its way to a resolver.
    Dns(DnsFlow),
    /// Over; the worker still finishes with the socket, whose descriptor was lent or is of the share.
    Closing(Option<Taken>),
}

impl Flow {
    /// Whether it is a mapping that is kept for a while after its last use, and goes where room is needed.
    pub(super) fn may_idle(&self) -> bool {
        match self {
            Self::Udp(flow) => !flow.is_forwarded(),
            Self::Ping(_) => true,
            Self::Tcp(_) | Self::Bound(..) | Self::Dns(_) | Self::Closing(_) => false,
        }
    }

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
