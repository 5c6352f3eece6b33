//! Ports of the host that lead to UDP endpoints of the guest, with several workers: whatever comes, by whatever queue it
//! is answered, each answer leaves by the port that its peer has come to.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ringtap::arena::{Pools, Slot};
use ringtap::config::NetConfig;
use ringtap::flow::local::Local;
use ringtap::flow::{Action, Event, FlowId, Handed};
use ringtap::frame::build::{self, Out};
use ringtap::frame::{self, L3, Pair};
use ringtap::limits::{HEADROOM, UDP_IDLE};
use ringtap::stack::Stack;
use ringtap::stack::bound::Bound;
use ringtap::stack::directory::{Directory, Seat};
use ringtap::stats::Drop;
use ringtap::time::{Millis, Time};
use ringtap::worker::bound::home;

use crate::guest::{GUEST4, HOST4};
use crate::prng::Rng;

const WORKERS: usize = 3;
const ENDPOINTS: u16 = 5;
/// Ports of each endpoint.
const PORTS: usize = 3;

#[derive(Clone, Copy)]
struct Port {
    worker: usize,
    flow: FlowId,
    guest: SocketAddr,
}

/// What has become of one input.
#[derive(Default)]
struct Outcome {
    /// Datagrams for the guest: from whom, to whom.
    down: Vec<(SocketAddr, SocketAddr)>,
    /// Datagrams for the host: by which socket, to whom.
    up: Vec<(usize, FlowId, SocketAddr)>,
}

struct Crew {
    stacks: Vec<Stack>,
    now: Time,
}

impl Crew {
    fn new() -> Self {
        let directory = Directory::new(WORKERS, [5, 6]);
        let stacks = (0..WORKERS as u8).map(|me| {
            let pools = Pools::new().expect("memory");
            let mut stack = Stack::new(NetConfig::native(), pools, [7, me.into()], Time(0));
            stack.share(Seat::new(directory.clone(), me));
            stack
        });
        Self { stacks: stacks.collect(), now: Time(1000) }
    }

    fn bind(&mut self, guest: SocketAddr) -> Port {
        let worker = home(&guest, WORKERS);
        let local = SocketAddr::from(([0, 0, 0, 0], 5000));
        let bound = Bound { guest, local, device: false };
        let taken = self.stacks[worker].descriptors().lend().expect("a descriptor");
        let flow = self.stacks[worker].handle_bound(&bound, taken, self.now).expect("room");
        Port { worker, flow, guest }
    }

    /// The guest sends, by any queue.
    fn guest_sends(&mut self, queue: usize, from: SocketAddr, to: SocketAddr) -> Outcome {
        let mut slot = self.stacks[queue].pools().large.take().expect("a slot");
        slot.set_range(HEADROOM, 10);
        let pair = Pair::new(from.ip(), to.ip()).expect("one family");
        let (eth_src, eth_dst) = ([2, 0, 0, 0, 0, 9], [2; 6]);
        let out = Out { eth_src, eth_dst, pair, ttl: 64, tos: 0, df: false };
        build::udp(&mut slot, &out, from.port(), to.port(), 0);
        self.stacks[queue].handle_frame(slot, self.now);
        self.settle()
    }

    fn peer_sends(&mut self, port: &Port, from: SocketAddr) -> Outcome {
        let stack = &mut self.stacks[port.worker];
        let mut slot = stack.pools().large.take().expect("a slot");
        slot.set_range(HEADROOM, 20);
        let (flow, ttl) = (port.flow, Some(60));
        let event =
            Event::DgramReceived { flow, slot, from, local: Local::ANY, ttl, tos: 0, segment: 0 };
        stack.handle_event(event, self.now);
        self.settle()
    }

    /// Turns, until nothing is left to do.
    fn settle(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        let mut handed: Vec<(usize, Vec<u8>, Handed)> = Vec::new();
        loop {
            let before = handed.len();
            for (me, stack) in self.stacks.iter_mut().enumerate() {
                stack.handle_timeout(self.now);
                while let Some(action) = stack.poll_action(self.now) {
                    match action {
                        Action::TapWrite { slot, .. } => outcome.down.extend(datagram(&slot)),
                        Action::DgramSend { flow, to, .. } => outcome.up.push((me, flow, to)),
                        Action::HandOver { worker, slot, about } => {
                            handed.push((worker.into(), slot.bytes().to_vec(), about));
                        }
                        Action::Close { flow, .. } => {
                            stack.handle_event(Event::Closed { flow }, self.now);
                        }
                        Action::DgramOpen { .. } => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
            if before == handed.len() && handed.is_empty() {
                return outcome;
            }
            for (worker, bytes, about) in handed.drain(..) {
                let stack = &mut self.stacks[worker];
                let mut slot = stack.pools().large.take().expect("a slot");
                slot.set_range(0, bytes.len());
                slot.bytes_mut().copy_from_slice(&bytes);
                stack.handle_handed(slot, about, self.now);
            }
        }
    }
}

/// From whom and to whom a frame is, if it is a datagram.
fn datagram(slot: &Slot) -> Option<(SocketAddr, SocketAddr)> {
    let L3::Ip(ip) = frame::parse(slot.bytes()).expect("a frame of ours").l3 else { return None };
    let bytes = slot.bytes().get(ip.start..ip.end)?;
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let is_udp = u8::from(ip.proto) == 17;
    is_udp.then(|| (SocketAddr::new(ip.src, port(0)), SocketAddr::new(ip.dst, port(2))))
}

fn peer(rng: &mut Rng) -> SocketAddr {
    let port = 4000 + rng.below(3) as u16;
    let ip = match rng.below(3) {
        0 => Ipv4Addr::new(127, 0, 0, 1 + rng.below(5) as u8),
        1 => Ipv4Addr::new(10, 0, 2, 100 + rng.below(3) as u8),
        _ => Ipv4Addr::new(198, 51, 100, 1 + rng.below(5) as u8),
    };
    SocketAddr::new(IpAddr::V4(ip), port)
}

#[test]
fn each_answer_leaves_by_the_port_that_was_asked() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let mut crew = Crew::new();
        let endpoint = |n: u64| SocketAddr::new(GUEST4.into(), 53 + n as u16);
        // Some endpoints have spoken before, with whichever worker.
        for n in 0..u64::from(ENDPOINTS) / 2 {
            let queue = rng.below(WORKERS as u64) as usize;
            crew.guest_sends(queue, endpoint(n), SocketAddr::new(HOST4.into(), 9));
        }
        let mut ports: Vec<Port> = (0..u64::from(ENDPOINTS))
            .flat_map(|n| [endpoint(n); PORTS])
            .map(|guest| crew.bind(guest))
            .collect();
        for port in ports.clone() {
            // So that it is known where the guest is.
            crew.guest_sends(port.worker, port.guest, SocketAddr::new(HOST4.into(), 9));
        }
        // By endpoint and the name that the guest has heard: port, peer, when it was last used.
        let mut known: HashMap<(SocketAddr, SocketAddr), (FlowId, SocketAddr, Time)> =
            HashMap::new();
        for step in 0..2000 {
            crew.now = crew.now + Millis(rng.magnitude(20_000));
            let margin = Millis(UDP_IDLE.0 - 1000);
            known.retain(|_, &mut (.., used)| crew.now - used < margin);
            let place = rng.below(ports.len() as u64) as usize;
            let port = ports[place];
            let queue = rng.below(WORKERS as u64) as usize;
            match rng.below(20) {
                0 => {
                    crew.stacks[port.worker].handle_unbound(port.flow, crew.now);
                    crew.settle();
                    known.retain(|_, (flow, ..)| *flow != port.flow);
                    ports[place] = crew.bind(port.guest);
                }
                1..3 => {
                    let to =
                        SocketAddr::new(Ipv4Addr::new(203, 0, 113, rng.below(9) as u8).into(), 7);
                    let up = crew.guest_sends(queue, port.guest, to).up;
                    let [(worker, flow, sent_to)] = up[..] else { panic!("seed {seed}: {up:?}") };
                    let ours = ports
                        .iter()
                        .any(|p| (p.worker, p.flow, p.guest) == (worker, flow, port.guest));
                    assert!(ours && sent_to == to, "seed {seed}, step {step}");
                }
                3..11 => {
                    let from = peer(&mut rng);
                    let down = crew.peer_sends(&port, from).down;
                    let [(seen, to)] = down[..] else { panic!("seed {seed}: {down:?}") };
                    assert_eq!(to, port.guest);
                    let before = known.insert((to, seen), (port.flow, from, crew.now));
                    let same =
                        before.is_none_or(|(flow, peer, _)| (flow, peer) == (port.flow, from));
                    assert!(same, "seed {seed}, step {step}: {seen} is somebody else");
                }
                _ => {
                    let of_it = known.iter_mut().filter(|((guest, _), _)| *guest == port.guest);
                    let mut of_it: Vec<_> = of_it.collect();
                    of_it.sort_unstable_by_key(|(key, _)| **key);
                    if of_it.is_empty() {
                        continue;
                    }
                    let one = rng.below(of_it.len() as u64) as usize;
                    let (&(guest, seen), (flow, peer, used)) = of_it.swap_remove(one);
                    *used = crew.now;
                    let up = crew.guest_sends(queue, guest, seen).up;
                    assert_eq!(up, [(port.worker, *flow, *peer)], "seed {seed}, step {step}");
                }
            }
        }
        let dropped = |why| crew.stacks.iter().map(|s| s.stats().dropped(why)).sum::<u64>();
        assert_eq!((dropped(Drop::Forbidden), dropped(Drop::Misplaced)), (0, 0), "seed {seed}");
        for port in ports {
            crew.stacks[port.worker].handle_unbound(port.flow, crew.now);
        }
        crew.settle();
        crew.now = crew.now + UDP_IDLE + Millis(1000);
        crew.settle();
        for stack in &crew.stacks {
            assert_eq!(stack.stats().flows, 0, "seed {seed}");
            assert_eq!((stack.pools().large.lent(), stack.pools().small.lent()), (0, 0));
        }
    }
}
