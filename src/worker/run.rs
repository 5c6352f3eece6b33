//! Which datagrams of a turn leave together. Pure.
//!
//! # Theory of operation
//!
//! What a datagram costs, it costs once per send: a request of the ring, a route, a walk through the host's
//! network stack. `UDP_SEGMENT` walks that way once with many datagrams and cuts them at its end, if all are
//! of one size (the last may be shorter) and have the same header. So datagrams that a mapping sends in one
//! turn are not submitted one by one: each joins the newest send of its socket if that [takes](Run::takes)
//! it, and begins a new one otherwise. At the turn's end all are submitted in the order in which they began.
//!
//! * **Order:** only the newest send of a socket takes more, so the datagrams of a mapping leave in the order
//!   in which they came, whoever they are for.
//! * **Latency:** none. A turn's requests are submitted together at its end in any case, and a send never
//!   waits for a later turn.
//! * **No copy:** a send names each slot where it lies, and holds all of them until it has completed.
//!
//! A run cannot be cut into IP fragments, and a device must be able to sum it: a kernel that refuses one gets
//! its datagrams one by one, and no longer ones from this socket in runs ([`Limit`]).
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use crate::flow::SendOpts;
use crate::flow::lengths::Lengths;

/// What a send carries so far: one datagram or more, each in a slot of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    to: SocketAddr,
    opts: SendOpts,
    lengths: Lengths,
}

impl Run {
    /// One datagram, or a run of the guest's own (`opts.segment`), which takes no more.
    pub(super) fn new(to: SocketAddr, opts: SendOpts, len: usize, limit: Limit) -> Self {
        let most = if opts.segment == 0 { limit.0 } else { 0 };
        Self { to, opts, lengths: Lengths::new(len, most) }
    }

    /// Adds a datagram if it can leave with those that are here.
    pub(super) fn takes(&mut self, to: SocketAddr, opts: SendOpts, len: usize) -> bool {
        opts == self.opts && to == self.to && self.lengths.takes(len)
    }

    pub(super) fn to(&self) -> SocketAddr {
        self.to
    }

    /// Header fields of the send, with the size of its datagrams if they are more than one.
    pub(super) fn opts(&self) -> SendOpts {
        SendOpts { segment: self.lengths.segment().unwrap_or(self.opts.segment), ..self.opts }
    }
}

/// The longest datagram, payload bytes, that a socket sends in runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit(usize);

impl Limit {
    /// No runs.
    pub(super) const NONE: Self = Self(0);

    /// What an Ethernet device sends in one frame: more would be refused on nearly every path, since a run
    /// is never cut into fragments.
    pub(super) fn ethernet(v4: bool) -> Self {
        Self(1500 - 8 - if v4 { 20 } else { 40 })
    }

    /// A run of such datagrams was refused.
    pub(super) fn refused(&mut self, errno: i32, segment: u16) {
        match errno {
            // A device without checksum offload: no run leaves by it.
            libc::EIO => self.0 = 0,
            _ => self.0 = self.0.min(usize::from(segment).saturating_sub(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::local::Local;

    const OPTS: SendOpts = SendOpts { ttl: 64, tos: 0, df: true, segment: 0, local: Local::ANY };

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, 7], port))
    }

    fn run(len: usize) -> Run {
        Run::new(at(1), OPTS, len, Limit::ethernet(true))
    }

    #[test]
    fn equal_datagrams_and_one_shorter() {
        let mut run = run(100);
        assert_eq!(run.opts(), OPTS);
        assert!(run.takes(at(1), OPTS, 100));
        assert_eq!(run.opts(), SendOpts { segment: 100, ..OPTS });
        assert!(!run.takes(at(1), OPTS, 101));
        assert!(!run.takes(at(1), OPTS, 0));
        assert!(run.takes(at(1), OPTS, 1));
        for len in [0, 1, 100] {
            assert!(!run.takes(at(1), OPTS, len), "after the shorter one: {len}");
        }
        assert_eq!(run.to(), at(1));
    }

    #[test]
    fn only_what_has_the_same_header() {
        let mut run = run(100);
        assert!(!run.takes(at(2), OPTS, 100));
        for opts in [
            SendOpts { ttl: 63, ..OPTS },
            SendOpts { tos: 1, ..OPTS },
            SendOpts { df: false, ..OPTS },
            SendOpts { segment: 50, ..OPTS },
            SendOpts { local: Local::new([192, 0, 2, 1].into(), 0), ..OPTS },
        ] {
            assert!(!run.takes(at(1), opts, 100), "{opts:?}");
        }
        assert!(run.takes(at(1), OPTS, 100));
    }

    #[test]
    fn what_cannot_lead() {
        // Empty, longer than a frame, a run already.
        for len in [0, 1473, 9000] {
            assert!(!run(len).takes(at(1), OPTS, len.min(100)), "{len}");
        }
        let opts = SendOpts { segment: 100, ..OPTS };
        let mut own = Run::new(at(1), opts, 1000, Limit::ethernet(true));
        assert!(!own.takes(at(1), opts, 100) && !own.takes(at(1), OPTS, 100));
        assert_eq!(own.opts(), opts);
        assert!(!Run::new(at(1), OPTS, 10, Limit::NONE).takes(at(1), OPTS, 10));
        assert!(!Run::new(at(1), OPTS, 1453, Limit::ethernet(false)).takes(at(1), OPTS, 1453));
    }

    #[test]
    fn a_refusal_is_remembered() {
        let mut limit = Limit::ethernet(true);
        limit.refused(libc::EMSGSIZE, 1400);
        assert_eq!(limit, Limit(1399));
        limit.refused(libc::EINVAL, 1472);
        assert_eq!(limit, Limit(1399));
        limit.refused(libc::EIO, 10);
        assert_eq!(limit, Limit::NONE);
    }
}
