//! Room for new flows when their number, or that of descriptors, is at its bound.
//!
//! A UDP or ping mapping is kept for minutes after its last use, in case an answer comes late. That is a
//! courtesy, and the first thing to go: the mapping that was silent longest ends, so that a guest that has used
//! very many ports for a moment does not lock itself out for as long. Each new flow ends at most one, so the work
//! stays bounded, and a mapping in use is never taken.
//!
//! Mappings that are all in use leave [some room](EVICT_RESERVE) to others: a datagram is lost without one, but a connection
//! is refused.

use super::Stack;
use crate::flow::{Errno, Next};
use crate::limits::{EVICT_AHEAD, EVICT_BATCH, EVICT_IDLE, EVICT_RESERVE};
use crate::time::Time;

impl Stack {
    /// Before a new flow: a guest with many idle mappings must not lock itself out for minutes. A place is
    /// free only when its socket is closed, so room is made ahead.
    pub(super) fn make_room(&mut self, now: Time) {
        let room = self.flows.room().min(self.share.room());
        if room <= self.ahead() {
            self.evict(now);
        }
    }

    /// The same before a new mapping; false: there is no room for one.
    pub(super) fn make_room_for_mapping(&mut self, now: Time) -> bool {
        let reserve = EVICT_RESERVE.min(self.flows.max() / 8);
        let places = self.flows.room().saturating_sub(reserve);
        let room = places.min(self.share.room_beside(EVICT_RESERVE));
        if room <= self.ahead() {
            self.evict(now);
        }
        room > 0
    }

    /// With how little room that begins.
    fn ahead(&self) -> u32 {
        EVICT_AHEAD.min(self.flows.max().min(self.share.max()) / 8)
    }

    /// There was no descriptor for a connection from outside.
    pub fn handle_shortage(&mut self, errno: Errno, now: Time) {
        self.note_shortage(Err(errno), now);
    }

    /// Makes room for later tries when there was no descriptor for a socket.
    pub(super) fn note_shortage(&mut self, result: Result<(), Errno>, now: Time) {
        if matches!(result, Err(Errno(libc::EMFILE | libc::ENFILE))) {
            for _ in 0..EVICT_BATCH {
                self.evict(now);
            }
        }
    }

    /// Ends the mapping that has been silent longest, unless that is not long.
    fn evict(&mut self, now: Time) {
        if let Some((index, used)) = self.idle.oldest()
            && now - used >= EVICT_IDLE
            && let Some(id) = self.flows.at(index)
        {
            self.settle(id, Next::Close { reset: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use crate::arena::Pools;
    use crate::config::NetConfig;
    use crate::flow::key::{FlowKey, Proto};
    use crate::flow::{Action, Event};
    use crate::frame::Pair;
    use crate::frame::build::{self, Out};
    use crate::limits::HEADROOM;
    use crate::stack::descriptors::{Descriptors, Share};
    use crate::stats::Drop;
    use crate::time::Millis;

    use super::*;

    struct Bed {
        stack: Stack,
        now: Time,
        /// Sockets opened and not closed.
        open: u32,
    }

    impl Bed {
        fn new(flows: u32) -> Self {
            let pools = Pools::new().unwrap();
            let mut stack = Stack::new(NetConfig::native(), pools, [1, 2], Time(0));
            stack.limit(Share::new(Descriptors::new(flows, 1)));
            Self { stack, now: Time(1000), open: 0 }
        }

        fn send(&mut self, port: u16) {
            let mut slot = self.stack.pools().large.take().unwrap();
            slot.set_range(HEADROOM, 4);
            let (src, dst) = ("10.0.2.100".parse().unwrap(), "198.51.100.7".parse().unwrap());
            let out = Out {
                eth_src: [2, 0, 0, 0, 0, 9],
                eth_dst: [2; 6],
                pair: Pair::new(src, dst).unwrap(),
                ttl: 64,
                tos: 0,
                df: false,
            };
            build::udp(&mut slot, &out, port, 9, 0);
            self.stack.handle_frame(slot, self.now);
            self.turn();
        }

        fn turn(&mut self) {
            let mut closed = Vec::new();
            while let Some(action) = self.stack.poll_action(self.now) {
                match action {
                    Action::DgramOpen { .. } => self.open += 1,
                    Action::Close { flow, .. } => closed.push(flow),
                    _ => {}
                }
            }
            for flow in closed {
                self.open -= 1;
                self.stack.handle_event(Event::Closed { flow }, self.now);
            }
        }

        fn lives(&self, port: u16) -> bool {
            let guest = SocketAddr::from(([10, 0, 2, 100], port));
            self.stack.flows.find(&FlowKey::guest_only(Proto::Udp, guest)).is_some()
        }
    }

    #[test]
    fn the_mapping_silent_longest_makes_room() {
        let mut bed = Bed::new(171);
        for port in 1..=140 {
            bed.send(port);
        }
        bed.now = bed.now + Millis(1900);
        bed.send(1);
        bed.now = bed.now + Millis(200);
        // The first of the others, one for each new flow; what was used lately stays.
        for port in 1001..=1138 {
            bed.send(port);
            assert!(bed.lives(port) && bed.lives(1), "{port}");
            assert!(bed.open <= 141);
        }
        assert!(!bed.lives(2) && !bed.lives(138));
        assert!(bed.lives(140));
        assert_eq!(bed.stack.stats().dropped(Drop::FlowTableFull), 0);
    }

    #[test]
    fn what_is_in_use_is_not_taken() {
        let mut bed = Bed::new(160);
        for port in 1..=170 {
            bed.send(port);
        }
        // An eighth of the common half is for others.
        assert_eq!((bed.open, bed.stack.stats().dropped(Drop::FlowTableFull)), (150, 20));
        assert!(bed.lives(1) && bed.lives(150) && !bed.lives(151));
    }

    #[test]
    fn no_descriptor_ends_idle_mappings() {
        let mut bed = Bed::new(1000);
        for port in 1..=20 {
            bed.send(port);
        }
        bed.now = bed.now + EVICT_IDLE;
        bed.send(21);
        let guest = SocketAddr::from(([10, 0, 2, 100], 21));
        let flow = bed.stack.flows.find(&FlowKey::guest_only(Proto::Udp, guest)).unwrap();
        let errno = Errno(libc::EMFILE);
        bed.stack.handle_event(Event::DgramFailed { flow, errno }, bed.now);
        bed.turn();
        assert_eq!(bed.open, 20 - EVICT_BATCH as u32);
        assert!(!bed.lives(21) && !bed.lives(8) && bed.lives(9));
    }
}
