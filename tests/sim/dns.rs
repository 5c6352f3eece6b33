//! DNS queries and resolvers of every mood, against a model that says what each query must come to.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ringtap::arena::{Pools, Slot};
use ringtap::config::NetConfig;
use ringtap::flow::local::Local;
use ringtap::flow::{Action, DgramKind, Errno, Event, FlowId};
use ringtap::limits::{DNS_LIFE, DNS_PENDING_MAX, DNS_RETRY, HEADROOM};
use ringtap::stack::Stack;
use ringtap::stats::Drop;
use ringtap::time::{Millis, Time};

use crate::clock::Agenda;
use crate::guest::GUEST4;
use crate::model::Wire;
use crate::prng::Rng;
use crate::tap;

/// What the guest asks.
const DNS4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const NOERROR: u8 = 0;
const SERVFAIL: u8 = 2;

/// How a resolver takes a query, ms after it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Answers(u64),
    /// After the query may have gone elsewhere.
    Late(u64),
    Fails(u64),
    /// Nobody listens there: an errno.
    Refuses(u64),
    Silent,
}

/// What becomes of a query: code, and who gave the answer (`None`: the forwarder itself), after so many ms.
type Fate = Option<(u8, Option<usize>, u64)>;

/// The model: asks one after the other, as the module's page says.
fn fate(moods: &[Mood]) -> Fate {
    let (mut at, mut who) = (0, 0);
    let mut failed = vec![false; moods.len()];
    let next = |failed: &[bool], who: usize| {
        (1..=moods.len()).map(|n| (who + n) % moods.len()).find(|&n| !failed[n])
    };
    // Since when this one is asked without a break.
    let mut since = 0;
    while at < DNS_LIFE.0 {
        let failure = match moods[who] {
            Mood::Answers(ms) => return Some((NOERROR, Some(who), at + ms)),
            Mood::Fails(ms) => Some((ms, Some(who))),
            Mood::Refuses(ms) => Some((ms, None)),
            Mood::Late(ms) if since + ms < at + DNS_RETRY.0 => {
                return Some((NOERROR, Some(who), since + ms));
            }
            Mood::Late(_) | Mood::Silent => None,
        };
        match failure {
            Some((ms, by)) => {
                at += ms;
                failed[who] = true;
                match next(&failed, who) {
                    Some(next) => (who, since) = (next, at),
                    None => return Some((SERVFAIL, by, at)),
                }
            }
            None => {
                at += DNS_RETRY.0;
                let next = next(&failed, who).expect("this one has not failed");
                if next != who {
                    (who, since) = (next, at);
                }
            }
        }
    }
    None
}

#[derive(Debug)]
enum Todo {
    Answer { to: SocketAddr, bytes: Vec<u8> },
    Refuse { to: SocketAddr, slot: Slot },
}

/// A query as the guest made it.
#[derive(Debug)]
struct Query {
    number: u16,
    asked: Time,
    /// Code, who answered, when.
    heard: Vec<(u8, Option<usize>, Time)>,
}

struct Run {
    stack: Stack,
    rng: Rng,
    now: Time,
    moods: Vec<Mood>,
    sockets: HashMap<FlowId, SocketAddr>,
    agenda: Agenda<(FlowId, Todo)>,
    /// By the guest's port: one query each.
    queries: HashMap<u16, Query>,
    /// Answers that nobody had asked for.
    forged: u64,
}

fn resolver(n: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1 + n as u8], 53))
}

/// Header, and a question with the port in it.
fn message(number: u16, port: u16) -> Vec<u8> {
    let mut out = number.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 5]);
    out.extend(format!("{port:05}").bytes());
    out.extend([0, 0, 1, 0, 1]);
    out
}

impl Run {
    fn new(seed: u64, moods: Vec<Mood>, pools: &Pools) -> Self {
        let now = Time(seed % 5000);
        let mut stack = Stack::new(NetConfig::native(), pools.clone(), [seed, 9], now);
        let list: Vec<IpAddr> = (0..moods.len()).map(|n| resolver(n).ip()).collect();
        stack.set_resolvers(&list);
        Self {
            stack,
            rng: Rng::new(seed ^ 0xd5),
            now,
            moods,
            sockets: HashMap::new(),
            agenda: Agenda::new(),
            queries: HashMap::new(),
            forged: 0,
        }
    }

    fn ask(&mut self, port: u16) {
        let number = self.rng.next() as u16;
        let query = Query { number, asked: self.now, heard: Vec::new() };
        assert!(self.queries.insert(port, query).is_none(), "one query for each port");
        let from = SocketAddr::new(GUEST4.into(), port);
        let bytes = message(number, port);
        let frame = tap::frame(&tap::datagram(from, (DNS4, 53).into(), &bytes), None);
        let slot = tap::slot(&self.stack, &frame);
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
                    let DgramKind::Dns(to) = kind else { panic!("{kind:?}") };
                    assert!(self.sockets.insert(flow, to).is_none(), "opened twice");
                }
                Action::DgramSend { flow, slot, to, .. } => {
                    assert_eq!(self.sockets.get(&flow), Some(&to), "by a socket for this one");
                    self.asked(flow, slot, to);
                }
                Action::Close { flow, .. } => {
                    self.sockets.remove(&flow).expect("closes an open socket");
                    self.stack.handle_event(Event::Closed { flow }, self.now);
                }
                Action::DnsUsed => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// A query at its resolver.
    fn asked(&mut self, flow: FlowId, slot: Slot, to: SocketAddr) {
        let who = (0..self.moods.len()).find(|&n| resolver(n) == to).expect("a known resolver");
        let answer = |code| {
            let mut bytes = slot.bytes().to_vec();
            bytes[2] |= 0x80;
            bytes[3] = 0x80 | code;
            bytes.push(who as u8);
            bytes
        };
        let (ms, todo) = match self.moods[who] {
            Mood::Answers(ms) | Mood::Late(ms) => (ms, Todo::Answer { to, bytes: answer(NOERROR) }),
            Mood::Fails(ms) => (ms, Todo::Answer { to, bytes: answer(SERVFAIL) }),
            Mood::Refuses(ms) => (ms, Todo::Refuse { to, slot }),
            Mood::Silent => return,
        };
        if self.rng.chance(300)
            && let Todo::Answer { bytes, .. } = &todo
        {
            // Somebody guesses first: another number, or no answer at all.
            let mut bytes = bytes.clone();
            match self.rng.below(2) {
                0 => bytes[0] ^= 1,
                _ => bytes[2] &= 0x7f,
            }
            self.agenda.push(self.now + Millis(ms / 2), (flow, Todo::Answer { to, bytes }));
        }
        self.agenda.push(self.now + Millis(ms), (flow, todo));
    }

    /// What comes for a socket that is closed may still be reported, and means nothing.
    fn happen(&mut self, flow: FlowId, todo: Todo) {
        let before = self.stack.stats().dropped(Drop::Unsolicited);
        match todo {
            Todo::Answer { to, bytes } => {
                let mut slot = self.stack.pools().large.take().expect("a slot");
                slot.set_range(HEADROOM, bytes.len());
                slot.bytes_mut().copy_from_slice(&bytes);
                let (from, ttl) = (to, Some(60));
                let event = Event::DgramReceived {
                    flow,
                    slot,
                    from,
                    local: Local::ANY,
                    ttl,
                    tos: 0,
                    segment: 0,
                };
                self.stack.handle_event(event, self.now);
            }
            Todo::Refuse { to, slot } => {
                let errno = Errno(libc::ECONNREFUSED);
                self.stack.handle_event(
                    Event::DgramSent { flow, slot, to, local: Local::ANY, errno },
                    self.now,
                );
            }
        }
        self.forged += self.stack.stats().dropped(Drop::Unsolicited) - before;
    }

    /// An answer at the guest: from the address it asked, with its own number and question.
    fn hear(&mut self, packet: &[u8]) {
        let view = tap::View::of(packet).expect("an IP packet");
        assert_eq!((view.src, view.dst, view.proto), (DNS4.into(), GUEST4.into(), 17));
        let udp = &packet[view.l4..view.end];
        assert_eq!(udp[..2], 53u16.to_be_bytes());
        let (port, answer) = (u16::from_be_bytes([udp[2], udp[3]]), &udp[8..]);
        let query = self.queries.get_mut(&port).expect("a port that has asked");
        let mut expected = message(query.number, port);
        assert!(answer.len() >= expected.len() && answer[2] & 0x80 != 0, "{answer:?}");
        (expected[2], expected[3]) = (answer[2], answer[3]);
        assert_eq!(answer[..expected.len()], expected, "the guest's own question and number");
        let by = answer.get(expected.len()).map(|&n| usize::from(n));
        query.heard.push((answer[3] & 0xf, by, self.now));
    }

    /// Lets everything happen until then.
    fn wait(&mut self, until: Time) {
        loop {
            let next = [self.agenda.next(), self.stack.poll_timeout()].into_iter().flatten().min();
            let Some(at) = next.filter(|&at| at <= until) else { break };
            self.now = at.max(self.now);
            while let Some((flow, todo)) = self.agenda.pop(self.now) {
                self.happen(flow, todo);
                self.turn();
            }
            self.turn();
        }
        self.now = until;
        self.turn();
    }

    fn ends(&self) {
        assert_eq!((self.stack.stats().flows, self.sockets.len()), (0, 0), "sockets are left");
        let pools = self.stack.pools();
        assert_eq!((pools.large.lent(), pools.small.lent()), (0, 0), "slots leak");
    }
}

/// Timers run out within this of their time.
const SLACK: u64 = 100;

fn mood(rng: &mut Rng) -> Mood {
    // Never near a retry: chance would decide what comes first.
    let in_time = 1 + rng.below(1500);
    match rng.below(6) {
        0 | 1 => Mood::Answers(in_time),
        2 => Mood::Late(DNS_RETRY.0 + 300 + rng.below(1200)),
        3 => Mood::Fails(in_time),
        4 => Mood::Refuses(in_time),
        _ => Mood::Silent,
    }
}

#[test]
fn every_query_comes_to_what_its_resolvers_make_of_it() {
    let pools = Pools::new().unwrap();
    let (mut answered, mut failed, mut unheard, mut forged) = (0, 0, 0, 0);
    for seed in 0..300 {
        let mut rng = Rng::new(seed ^ 0xd45);
        let moods: Vec<Mood> = (0..rng.range(1, 4)).map(|_| mood(&mut rng)).collect();
        let expected = fate(&moods);
        // At the very end of its life, chance decides.
        let close = |at: u64| at.abs_diff(DNS_LIFE.0) < 5 * SLACK;
        if expected.is_some_and(|(_, _, at)| close(at)) {
            continue;
        }
        let expected = expected.filter(|&(_, _, at)| at < DNS_LIFE.0);
        let mut run = Run::new(seed, moods.clone(), &pools);
        for port in 0..rng.range(1, 40) {
            run.ask(2000 + port as u16);
            run.wait(run.now + Millis(rng.magnitude(300)));
        }
        run.wait(run.now + DNS_LIFE + Millis(SLACK));
        for (port, query) in &run.queries {
            let told = format!("seed {seed}, port {port}: {query:?}, {moods:?}: {expected:?}");
            match (expected, &query.heard[..]) {
                (None, []) => unheard += 1,
                (Some((code, by, ms)), [(heard, from, at)]) => {
                    assert_eq!((*heard, *from), (code, by), "{told}");
                    let took = (*at - query.asked).0;
                    assert!((ms..=ms + SLACK).contains(&took), "{told}");
                    if code == NOERROR { answered += 1 } else { failed += 1 }
                }
                _ => panic!("{told}"),
            }
        }
        run.ends();
        forged += run.forged;
    }
    let seen = [answered, failed, unheard, forged];
    assert!(seen.iter().all(|&n| n > 200), "a case is missing: {seen:?}");
}

/// What is too much is refused and counted; later there is room again.
#[test]
fn many_pending() {
    let pools = Pools::new().unwrap();
    let mut run = Run::new(1, vec![Mood::Silent, Mood::Silent], &pools);
    let most = DNS_PENDING_MAX as u16;
    for port in 0..most + 50 {
        run.ask(2000 + port);
    }
    assert_eq!(run.sockets.len(), usize::from(most));
    assert_eq!(run.stack.stats().dropped(Drop::DnsRefused), 50);
    run.wait(run.now + DNS_LIFE + Millis(SLACK));
    assert!(run.queries.values().all(|query| query.heard.is_empty()));
    run.ends();
    run.moods = vec![Mood::Answers(3), Mood::Silent];
    for port in 0..most {
        run.ask(20_000 + port);
    }
    run.wait(run.now + Millis(SLACK));
    let heard = run.queries.values().filter(|query| query.heard.len() == 1).count();
    assert_eq!(heard, usize::from(most));
    run.ends();
}

/// resolv.conf changes while queries are on their way: each still ends, and with one answer at most.
#[test]
fn resolvers_change_meanwhile() {
    let pools = Pools::new().unwrap();
    for seed in 0..60 {
        let mut rng = Rng::new(seed ^ 0xc4a);
        let moods: Vec<Mood> = (0..4).map(|_| mood(&mut rng)).collect();
        let mut run = Run::new(seed, moods, &pools);
        for port in 0..100 {
            run.ask(2000 + port);
            run.wait(run.now + Millis(rng.magnitude(200)));
            if rng.chance(100) {
                let count = rng.range(1, 4) as usize;
                let list: Vec<IpAddr> = (0..count).map(|n| resolver(n).ip()).collect();
                run.stack.set_resolvers(&list);
            }
        }
        run.wait(run.now + DNS_LIFE + Millis(SLACK));
        assert!(run.queries.values().all(|query| query.heard.len() <= 1), "seed {seed}");
        run.ends();
    }
}
