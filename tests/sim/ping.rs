//! Pings: which request must have which reply, with hosts that answer twice, late, wrongly or not at all.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ringtap::arena::Pools;
use ringtap::config::NetConfig;
use ringtap::flow::local::Local;
use ringtap::flow::{Action, DgramError, DgramKind, Errno, Event, FlowId};
use ringtap::limits::{HEADROOM, PING_IDLE};
use ringtap::stack::Stack;
use ringtap::stats::Drop;
use ringtap::time::{Millis, Time};
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet};

use crate::clock::Agenda;
use crate::guest::{GUEST4, GUEST6};
use crate::model::Wire;
use crate::prng::Rng;
use crate::tap;

/// A request: the guest's identifier, the host by number, the sequence number.
type Request = (u16, u8, u16);

#[derive(Debug)]
enum Todo {
    Reply { from: IpAddr, message: Vec<u8> },
    Unreachable { to: IpAddr, seq: u16 },
}

struct Run {
    stack: Stack,
    rng: Rng,
    now: Time,
    v6: bool,
    /// Each socket, and whose identifier came by it.
    sockets: HashMap<FlowId, Option<u16>>,
    agenda: Agenda<(FlowId, Todo)>,
    sent: HashSet<Request>,
    /// How often each must be answered, has been, and how often its failure must be told and has been.
    replies: HashMap<Request, [u32; 4]>,
    strangers: u64,
}

fn host(v6: bool, n: u8) -> IpAddr {
    match v6 {
        false => Ipv4Addr::new(198, 51, 100, n).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, n.into()).into(),
    }
}

fn number(host: IpAddr) -> u8 {
    match host {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    }
}

fn pattern((ident, host, seq): Request) -> Vec<u8> {
    let len = usize::from(seq.wrapping_mul(37) % 1400);
    (0..len).map(|i| (i as u16 ^ ident ^ seq ^ u16::from(host)) as u8).collect()
}

/// What an echo message of this kind says.
fn message(kind: u8, ident: u16, request: Request) -> Vec<u8> {
    let mut out = vec![kind, 0, 0, 0];
    out.extend(ident.to_be_bytes());
    out.extend(request.2.to_be_bytes());
    out.extend(pattern(request));
    out
}

impl Run {
    fn new(seed: u64, pools: &Pools) -> Self {
        let now = Time(seed % 5000);
        Self {
            stack: Stack::new(NetConfig::native(), pools.clone(), [seed, 11], now),
            rng: Rng::new(seed ^ 0x1c3),
            now,
            v6: seed % 2 == 1,
            sockets: HashMap::new(),
            agenda: Agenda::new(),
            sent: HashSet::new(),
            replies: HashMap::new(),
            strangers: 0,
        }
    }

    fn guest(&self) -> IpAddr {
        if self.v6 { GUEST6.into() } else { GUEST4.into() }
    }

    fn kinds(&self) -> (u8, u8, u8) {
        if self.v6 { (128, 129, 58) } else { (8, 0, 1) }
    }

    fn ping(&mut self, request: Request) {
        let (kind, _, proto) = self.kinds();
        let bytes = message(kind, request.0, request);
        let packet = tap::packet(self.guest(), host(self.v6, request.1), proto, &bytes);
        self.sent.insert(request);
        let slot = tap::slot(&self.stack, &tap::frame(&packet, None));
        self.stack.handle_frame(slot, self.now);
        self.turn();
    }

    fn turn(&mut self) {
        self.stack.handle_timeout(self.now);
        let mut wire = Wire::default();
        while let Some(action) = self.stack.poll_action(self.now) {
            match action {
                Action::TapWrite { slot, .. } => {
                    let packets = tap::split(slot.bytes(), &mut wire);
                    packets.iter().for_each(|packet| self.hear(packet));
                }
                Action::DgramOpen { flow, kind } => {
                    assert_eq!(kind == DgramKind::Ping6, self.v6);
                    assert!(self.sockets.insert(flow, None).is_none(), "opened twice");
                }
                Action::DgramSend { flow, slot, to, .. } => {
                    let bytes = slot.bytes().to_vec();
                    self.pinged(flow, to, &bytes);
                }
                Action::Close { flow, .. } => {
                    self.sockets.remove(&flow).expect("closes an open socket");
                    self.stack.handle_event(Event::Closed { flow }, self.now);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// A request at its host.
    fn pinged(&mut self, flow: FlowId, to: SocketAddr, bytes: &[u8]) {
        let [ident, seq] = [4, 6].map(|at| u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let request = (ident, number(to.ip()), seq);
        let (kind, reply, _) = self.kinds();
        assert!(self.sent.contains(&request), "{request:?} was never sent");
        let mut expected = message(kind, ident, request);
        expected[2..4].copy_from_slice(&bytes[2..4]);
        assert_eq!(bytes, expected, "the whole message");
        let by = self.sockets.get_mut(&flow).expect("sends on an open socket");
        assert_eq!(*by.get_or_insert(ident), ident, "another's socket");
        // The kernel replaces the identifier by one of its own, and seals anew.
        let answer = message(reply, flow.index as u16 ^ 0x5555, request);
        let count = self.replies.entry(request).or_default();
        let at = |rng: &mut Rng, now: Time| now + Millis(rng.magnitude(3000));
        let mut todo = Vec::new();
        match self.rng.below(6) {
            0 => {}
            1 => {
                count[2] += 1;
                todo.push(Todo::Unreachable { to: to.ip(), seq });
            }
            2 => {
                // Twice, and once from a host that was not asked.
                count[0] += 2;
                self.strangers += 1;
                todo.push(Todo::Reply { from: to.ip(), message: answer.clone() });
                todo.push(Todo::Reply { from: host(self.v6, 99), message: answer.clone() });
                todo.push(Todo::Reply { from: to.ip(), message: answer });
            }
            _ => {
                count[0] += 1;
                todo.push(Todo::Reply { from: to.ip(), message: answer });
            }
        }
        for todo in todo {
            self.agenda.push(at(&mut self.rng, self.now), (flow, todo));
        }
    }

    fn happen(&mut self, flow: FlowId, todo: Todo) {
        let event = match todo {
            Todo::Reply { from, message } => {
                let mut slot = self.stack.pools().large.take().expect("a slot");
                slot.set_range(HEADROOM, message.len());
                slot.bytes_mut().copy_from_slice(&message);
                let from = SocketAddr::new(from, 0);
                Event::DgramReceived {
                    flow,
                    slot,
                    from,
                    local: Local::ANY,
                    ttl: Some(61),
                    tos: 0,
                    segment: 0,
                }
            }
            Todo::Unreachable { to, seq } => Event::DgramError {
                flow,
                error: DgramError {
                    errno: Errno(libc::EHOSTUNREACH),
                    icmp: Some(if self.v6 { (1, 3) } else { (3, 1) }),
                    mtu: 0,
                    offender: Some(host(self.v6, 77)),
                    to: SocketAddr::new(to, 0),
                    local: Local::ANY,
                    echo_seq: seq,
                },
            },
        };
        self.stack.handle_event(event, self.now);
        self.turn();
    }

    fn hear(&mut self, packet: &[u8]) {
        let view = tap::View::of(packet).expect("an IP packet");
        let bytes = &packet[view.l4..view.end];
        let (kind, reply, proto) = self.kinds();
        assert_eq!((view.dst, view.proto), (self.guest(), proto));
        match (view.src, view.dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                assert!(Icmpv6Packet::new_unchecked(bytes).verify_checksum(&src, &dst));
            }
            _ => assert!(Icmpv4Packet::new_unchecked(bytes).verify_checksum()),
        }
        if bytes[0] == reply {
            let [ident, seq] = [4, 6].map(|at| u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            let request = (ident, number(view.src), seq);
            let mut expected = message(reply, ident, request);
            expected[2..4].copy_from_slice(&bytes[2..4]);
            assert_eq!(bytes, expected, "another reply");
            self.replies.get_mut(&request).expect("a reply to a request")[1] += 1;
            return;
        }
        // The router that says why, and the head of the request.
        assert_eq!((view.src, bytes[0]), (host(self.v6, 77), if self.v6 { 1 } else { 3 }));
        let inner = &bytes[8..];
        let (to, at) = if self.v6 {
            let to: [u8; 16] = inner[24..40].try_into().expect("an address");
            (IpAddr::from(to), 40)
        } else {
            let to: [u8; 4] = inner[16..20].try_into().expect("an address");
            (IpAddr::from(to), 20)
        };
        let head = &inner[at..];
        assert_eq!(head[0], kind);
        let [ident, seq] = [4, 6].map(|at| u16::from_be_bytes([head[at], head[at + 1]]));
        self.replies.get_mut(&(ident, number(to), seq)).expect("of a request")[3] += 1;
    }

    fn wait(&mut self, until: Time) {
        while let Some(at) =
            [self.agenda.next(), self.stack.poll_timeout()].into_iter().flatten().min()
            && at <= until
        {
            self.now = at.max(self.now);
            while let Some((flow, todo)) = self.agenda.pop(self.now) {
                self.happen(flow, todo);
            }
            self.turn();
        }
        self.now = until;
        self.turn();
    }
}

#[test]
fn every_request_has_the_replies_its_host_sent() {
    let pools = Pools::new().unwrap();
    let mut total = [0; 4];
    for seed in 0..100 {
        let mut run = Run::new(seed, &pools);
        let idents: Vec<u16> =
            (0..run.rng.range(1, 6)).map(|_| run.rng.next() as u16 | 1).collect();
        let mut seq = run.rng.next() as u16;
        for _ in 0..100 {
            let (ident, to) = (run.rng.pick(&idents), run.rng.range(1, 5) as u8);
            run.ping((ident, to, seq));
            seq = seq.wrapping_add(1);
            let until = run.now + Millis(run.rng.magnitude(100));
            run.wait(until);
        }
        run.wait(run.now + Millis(3001));
        for (request, count) in &run.replies {
            let [due, heard, errors, told] = *count;
            assert_eq!((due, errors), (heard, told), "seed {seed}: {request:?}");
            total = [total[0] + due, total[1] + heard, total[2] + errors, total[3] + told];
        }
        assert_eq!(run.replies.len(), 100, "seed {seed}: all requests left");
        assert_eq!(run.stack.stats().dropped(Drop::Unsolicited), run.strangers, "seed {seed}");
        let owners: HashSet<u16> = run.sockets.values().flatten().copied().collect();
        assert_eq!(owners.len(), run.sockets.len(), "one socket for each identifier");
        run.wait(run.now + PING_IDLE + Millis(100));
        assert_eq!((run.stack.stats().flows, run.sockets.len()), (0, 0), "seed {seed}");
        drop(run);
        assert_eq!((pools.large.lent(), pools.small.lent()), (0, 0), "slots leak");
    }
    assert!(total.iter().all(|&n| n > 1000), "{total:?}");
}
