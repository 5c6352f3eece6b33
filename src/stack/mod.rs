//! One guest's network as a value. Pure: no descriptor, no clock, no allocation per packet.
//!
//! # Contract
//!
//! Per turn of the worker: any number of [`Stack::handle_frame`] and [`Stack::handle_event`], then
//! [`Stack::handle_timeout`], then [`Stack::poll_action`] until it yields `None`; sleep until the next
//! frame or event, or [`Stack::poll_timeout`]. A frame is a slot whose range begins with a virtio
//! header.
//!
//! What comes from outside begins by [`Stack::handle_accepted`] and [`Stack::handle_bound`], at any time before the
//! actions. Several workers that serve one guest have a stack each, and a [`directory`] in common; what one of them
//! hands to another comes by [`Stack::handle_handed`] and [`Stack::handle_placed`], and a running connection by
//! [`Stack::arrive`], after [`Stack::leave`] elsewhere; after the latter there may be actions again.
#![forbid(unsafe_code)]

macro_rules! ctx {
    ($self:ident, $now:expr) => {
        Ctx {
            net: &$self.net,
            pools: &$self.pools,
            actions: &mut $self.actions,
            stats: &mut $self.stats,
            now: $now,
            guest_mac: $self.guest_mac,
        }
    };
}

mod balance;
pub mod bound;
pub mod descriptors;
pub mod dhcp;
pub mod directory;
pub mod dns;
mod entry;
mod evict;
mod forward;
pub mod gateway;
mod ingress;
mod migrate;
mod ndp;
mod neighbours;
pub mod policy;
pub mod reassembly;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::arena::{Pools, Slot};
use crate::config::NetConfig;
use crate::flow::idle::Idle;
use crate::flow::key::{FlowKey, Proto};
use crate::flow::openings::Openings;
use crate::flow::peers::{Room, Via};
use crate::flow::table::{Full, Table};
use crate::flow::tcp::TcpFlow;
use crate::flow::timers::Timers;
use crate::flow::{Action, Actions, Ctx, DgramEvent, Errno, Event, FlowId, Handed, Next};
use crate::frame::{self, L3, Mac, Malformed};
use crate::limits::{ACK_DELAY, FLOWS_MAX, FORWARD_PEERS_SHARED, PEERS_SHARED};
use crate::stats::{Drop, Stats};
use crate::time::Time;
use balance::Balance;
use descriptors::{Descriptors, Share};
use directory::Seat;
pub use entry::Flow;
use migrate::Leaving;
pub use migrate::{Leave, Migrant};

/// The packet core.
#[derive(Debug)]
pub struct Stack {
    net: NetConfig,
    pools: Pools,
    actions: Actions,
    stats: Stats,
    flows: Table<Flow>,
    timers: Timers,
    /// UDP and ping mappings by their last use.
    idle: Idle,
    /// What all mappings share.
    peer_room: Room,
    /// What those share that ports of the host lead to.
    visitor_room: Room,
    /// TCP flows that something happened to in this turn and that have not been served since.
    dirty: Vec<FlowId>,
    /// TCP flows with an ACK that waits for data to go with, in the order of their times; each once.
    late: VecDeque<(Time, FlowId)>,
    /// TCP flows with something on its way from the guest to the host.
    undrained: u32,
    /// What connections of the guest may cost.
    openings: Openings,
    /// What mappings of the guest may cost.
    mappings: Openings,
    gateway: gateway::Gateway,
    dhcp: dhcp::Dhcp,
    dns: dns::Dns,
    reassembly: reassembly::Reassembly,
    neighbours: neighbours::Neighbours,
    /// Neighbours that we ask for, as the other workers know it.
    asking: u32,
    guest_mac: Mac,
    /// Keys initial sequence numbers (RFC 6528).
    secret: [u64; 2],
    draining: bool,
    /// Our place among several workers.
    seat: Option<Seat>,
    /// Of the descriptors that flows may hold.
    share: Share,
    /// How the frame in hand has come.
    arrival: Arrival,
    balance: Balance,
    leaving: Option<Leaving>,
}

/// How a frame has come.
#[derive(Clone, Copy, Debug, Default)]
struct Arrival {
    /// From another worker, not from our queue: it goes no further.
    handed: bool,
    about: Handed,
}

/// Where a flow is.
enum Home {
    Here(FlowId),
    /// With another worker.
    Away(u8),
    /// On its way to us.
    Coming,
    Nowhere,
}

/// Why a flow cannot be here.
enum Refused {
    Full,
    /// Another worker was faster.
    Away(u8),
}

impl Stack {
    /// A network with no flows. `secret` is random; it keys hashes, sequence numbers and query numbers.
    pub fn new(net: NetConfig, pools: Pools, secret: [u64; 2], now: Time) -> Self {
        Self {
            gateway: gateway::Gateway::new(&net, now),
            dhcp: dhcp::Dhcp::new(),
            dns: dns::Dns::new(secret),
            reassembly: reassembly::Reassembly::new(),
            neighbours: neighbours::Neighbours::default(),
            asking: 0,
            guest_mac: [0xff; 6],
            net,
            pools,
            actions: Actions::new(),
            stats: Stats::default(),
            flows: Table::new(FLOWS_MAX, secret),
            timers: Timers::new(),
            idle: Idle::new(),
            peer_room: Room::new(PEERS_SHARED, secret),
            visitor_room: Room::new(FORWARD_PEERS_SHARED, secret),
            dirty: Vec::with_capacity(256),
            late: VecDeque::with_capacity(256),
            undrained: 0,
            openings: Openings::connections(secret, now),
            mappings: Openings::mappings(secret, now),
            secret,
            draining: false,
            seat: None,
            share: Share::new(Descriptors::new(FLOWS_MAX, 1)),
            arrival: Arrival::default(),
            balance: Balance::new(),
            leaving: None,
        }
    }

    /// Shares the guest with other workers from now on; to be called before the first frame.
    pub fn share(&mut self, seat: Seat) {
        // One of them speaks for all when nobody has asked.
        if !seat.is_first() {
            self.gateway.be_silent();
        }
        self.seat = Some(seat);
    }

    /// Flows hold descriptors of this share from now on; to be called before the first frame.
    pub fn limit(&mut self, share: Share) {
        self.share = share;
    }

    /// From now on there is no [`Action::TapRun`]; to be called before the first frame.
    pub fn keep_datagrams_alone(&mut self) {
        self.actions.keep_datagrams_alone();
    }

    /// Takes a frame from the guest.
    pub fn handle_frame(&mut self, slot: Slot, now: Time) {
        self.arrival = Arrival::default();
        self.take_frame(slot, now);
    }

    /// Takes a frame that another worker has handed over, as it came with [`Action::HandOver`].
    pub fn handle_handed(&mut self, slot: Slot, about: Handed, now: Time) {
        self.arrival = Arrival { handed: true, about };
        self.take_frame(slot, now);
        if let Some(seat) = self.seat.as_ref().filter(|_| about.placed) {
            seat.arrived(seat.me());
        }
    }

    /// A frame does not reach the worker that it was handed over to (which may be this one).
    pub fn handle_lost(&mut self, worker: u8, about: Handed, why: Drop) {
        self.stats.drop(why);
        if let Some(seat) = self.seat.as_ref().filter(|_| about.placed) {
            seat.arrived(worker);
        }
    }

    fn take_frame(&mut self, slot: Slot, now: Time) {
        self.give_up();
        self.stats.frames_from_guest += 1;
        let parsed = match frame::parse(slot.bytes()) {
            Ok(parsed) => parsed,
            Err(Malformed::Bad) => return self.stats.drop(Drop::Malformed),
            Err(Malformed::Unsupported) => return self.stats.drop(Drop::Unsupported),
        };
        if parsed.eth_src[0] & 1 == 0 && parsed.eth_src != self.net.gateway_mac {
            self.guest_mac = parsed.eth_src;
        } else {
            return self.stats.drop(Drop::BadSource);
        }
        match parsed.l3 {
            L3::Arp { start, end } => {
                self.tell_others(&slot, now);
                let mut ctx = ctx!(self, now);
                self.gateway.handle_arp(&mut ctx, &parsed, &slot.bytes()[start..end]);
                self.take_told(now);
            }
            L3::Ip(ip) => self.handle_ip(slot, &parsed, ip, now),
        }
    }

    /// Where a flow is: the directory is asked only when it is not here.
    fn home(&self, key: &FlowKey) -> Home {
        if let Some(id) = self.flows.find(key) {
            return Home::Here(id);
        }
        let Some(seat) = &self.seat else { return Home::Nowhere };
        match seat.owner(key) {
            Some(owner) if owner != seat.me() => Home::Away(owner),
            Some(_) if key.proto() == Proto::Tcp => Home::Coming,
            _ => Home::Nowhere,
        }
    }

    /// Starts a flow for which there was none anywhere.
    fn insert(&mut self, key: FlowKey, flow: Flow) -> Result<FlowId, Refused> {
        if let Some(seat) = &self.seat {
            seat.claim(&key).map_err(Refused::Away)?;
        }
        self.place(key, flow).map_err(|_| {
            if let Some(seat) = &self.seat {
                seat.release(&key);
            }
            Refused::Full
        })
    }

    /// Gives a flow its place and its descriptor, which it has until the worker says that its socket is closed.
    fn place(&mut self, key: FlowKey, flow: Flow) -> Result<FlowId, Full> {
        if !self.share.take() {
            return Err(Full);
        }
        self.flows.insert(key, flow).inspect_err(|_| self.share.give())
    }

    /// Takes a flow's key away from it.
    fn unhash(&mut self, id: FlowId) {
        if self.flows.unhash(id)
            && let Some((key, _)) = self.flows.get(id)
            && let Some(seat) = self.seat.as_ref().filter(|_| key.proto() != Proto::Dns)
        {
            seat.release(key);
        }
    }

    /// Gives the frame in hand to the worker that owns its flow: once.
    fn hand_over(&mut self, worker: u8, slot: Slot) {
        if self.arrival.handed {
            return self.stats.drop(Drop::Misplaced);
        }
        self.stats.handed_over += 1;
        self.actions.push(Action::HandOver { worker, slot, about: self.arrival.about });
    }

    /// Takes what the worker reports.
    pub fn handle_event(&mut self, event: Event, now: Time) {
        match event {
            Event::TapWritten { flow, slot } => {
                self.on_tcp(flow, now, |f, c, k| f.handle_written(c, k, slot))
            }
            Event::TcpConnected { flow, result } => self.tcp_connected(flow, result, now),
            Event::TcpSent { flow, chain, result } => {
                self.on_tcp(flow, now, |f, c, _| f.handle_sent(c, chain, result));
            }
            Event::TcpWritable { flow } => self.on_tcp(flow, now, |f, _, _| f.handle_writable()),
            Event::TcpReceived { flow, result } => {
                self.on_tcp(flow, now, |f, c, _| f.handle_received(c, result));
            }
            Event::TcpHangup { flow, errno } => {
                self.on_tcp(flow, now, |f, _, _| f.handle_hangup(errno));
            }
            Event::DgramFailed { flow, errno } => {
                self.note_shortage(Err(errno), now);
                self.on_dgram(flow, now, DgramEvent::Failed(errno));
            }
            Event::DgramSent { flow, slot, to, local, errno } => {
                self.on_dgram(flow, now, DgramEvent::Refused { slot, to, local, errno });
            }
            Event::DgramReceived { flow, slot, from, local, ttl, tos, segment } => {
                let event = DgramEvent::Received { slot, from, local, ttl, tos, segment };
                self.on_dgram(flow, now, event);
            }
            Event::DgramError { flow, error } => self.on_dgram(flow, now, DgramEvent::Error(error)),
            Event::Closed { flow } => {
                if let Some((_, Flow::Closing(lent))) = self.flows.get(flow) {
                    if lent.is_none() {
                        self.share.give();
                    }
                    self.timers.disarm(flow.index);
                    self.flows.remove(flow);
                }
            }
        }
    }

    fn on_tcp(
        &mut self,
        id: FlowId,
        now: Time,
        f: impl FnOnce(&mut TcpFlow, &mut Ctx<'_>, &FlowKey),
    ) {
        let mut ctx = ctx!(self, now);
        if let Some((key, Flow::Tcp(flow))) = self.flows.get_mut(id) {
            f(flow, &mut ctx, key);
            self.mark(id);
        }
    }

    fn tcp_connected(&mut self, id: FlowId, result: Result<(), Errno>, now: Time) {
        self.note_shortage(result, now);
        let mut ctx = ctx!(self, now);
        let Some((key, Flow::Tcp(flow))) = self.flows.get_mut(id) else {
            return;
        };
        // `.3` port 53: the next resolver may know more.
        if result.is_err()
            && flow.is_connecting()
            && policy::is_dns(&self.net, &key.host())
            && let Some(to) = self.dns.next_after_failure(key.host(), flow.dns_tries())
        {
            return ctx.actions.push(Action::TcpConnect { flow: id, to });
        }
        flow.handle_connected(&mut ctx, result);
        self.mark(id);
    }

    fn on_dgram(&mut self, id: FlowId, now: Time, event: DgramEvent) {
        let received = matches!(event, DgramEvent::Received { .. });
        let mut ctx = ctx!(self, now);
        let (mut id, mut via) = (id, Via::Own);
        if let Some((_, &Flow::Bound(mapping, _))) = self.flows.get(id) {
            (id, via) = (mapping, Via::Port(id, event.local()));
        }
        let Some((key, flow)) = self.flows.get_mut(id) else {
            return;
        };
        if received && flow.may_idle() {
            self.idle.touch(id.index, now);
        }
        flow.repay(&mut self.mappings, &event, now);
        let next = match flow {
            Flow::Udp(flow) => {
                let guest = key.guest();
                let had_socket = flow.has_socket();
                let name = |net: &NetConfig, peer| forward::shown(net, peer, guest);
                let next = flow.handle_event(&mut ctx, key, via, event, name);
                let seeks = flow.seeks(now);
                if had_socket && !flow.has_socket() {
                    self.share.give();
                }
                if seeks {
                    self.direct(id, guest.ip(), now);
                }
                next
            }
            Flow::Ping(flow) => flow.handle_event(&mut ctx, id, key, event),
            Flow::Dns(flow) => {
                let step = flow.handle_event(&mut ctx, &self.dns, key, event);
                return self.settle_dns(id, step, now);
            }
            Flow::Tcp(_) | Flow::Bound(..) | Flow::Closing(_) => return,
        };
        self.settle(id, next);
    }

    /// Lets timers run out.
    pub fn handle_timeout(&mut self, now: Time) {
        let mut ctx = ctx!(self, now);
        self.gateway.handle_timeout(&mut ctx);
        self.reassembly.handle_timeout(&mut ctx);
        self.ask_neighbours(now);
        while let Some(&(since, id)) = self.late.front()
            && since + ACK_DELAY <= now
        {
            self.late.pop_front();
            if let Some((_, Flow::Tcp(flow))) = self.flows.get_mut(id) {
                flow.late = false;
                self.mark(id);
            }
        }
        while let Some(index) = self.timers.expire(now) {
            let Some(id) = self.flows.at(index) else {
                continue;
            };
            let mut ctx = ctx!(self, now);
            let Some((key, flow)) = self.flows.get_mut(id) else {
                continue;
            };
            let next = match flow {
                Flow::Tcp(flow) => {
                    flow.handle_timeout(&mut ctx);
                    self.mark(id);
                    continue;
                }
                Flow::Udp(flow) => flow.handle_timeout(&mut ctx),
                Flow::Ping(flow) => flow.handle_timeout(&mut ctx),
                Flow::Dns(flow) => {
                    let step = flow.handle_timeout(&mut ctx, &self.dns, id, key);
                    self.settle_dns(id, step, now);
                    continue;
                }
                Flow::Bound(..) | Flow::Closing(_) => continue,
            };
            if matches!(next, Next::Close { .. })
                && let Some(loan) = flow.loan().and_then(Option::take)
            {
                self.mappings.failed(&loan);
            }
            self.settle(id, next);
        }
    }

    /// When [`Stack::handle_timeout`] is due; `None`: nothing waits for time.
    pub fn poll_timeout(&self) -> Option<Time> {
        let late = self.late.front().map(|&(since, _)| since + ACK_DELAY);
        let neighbours = self.neighbours.deadline();
        [self.timers.next(), self.gateway.deadline(), self.reassembly.deadline(), neighbours, late]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next thing to do; `None` when the turn is done.
    pub fn poll_action(&mut self, now: Time) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop() {
                if matches!(action, Action::TapWrite { .. } | Action::TapRun { .. }) {
                    self.stats.frames_to_guest += 1;
                }
                return Some(action);
            }
            let Some(id) = self.dirty.pop() else {
                self.forget_acks();
                return None;
            };
            self.serve(id, now);
        }
    }

    /// Forgets the late ACKs that have left with data, lest they wake a worker that sleeps.
    fn forget_acks(&mut self) {
        while let Some(&(_, id)) = self.late.front() {
            if let Some((_, Flow::Tcp(flow))) = self.flows.get_mut(id) {
                if flow.ack_waits().is_some() {
                    return;
                }
                flow.late = false;
            }
            self.late.pop_front();
        }
    }

    /// Notes that a TCP flow must be served before the turn ends: once, however much happened to it.
    fn mark(&mut self, id: FlowId) {
        if let Some((_, Flow::Tcp(flow))) = self.flows.get_mut(id)
            && !std::mem::replace(&mut flow.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    fn serve(&mut self, id: FlowId, now: Time) {
        let mut ctx = ctx!(self, now);
        let Some((key, Flow::Tcp(flow))) = self.flows.get_mut(id) else {
            return;
        };
        flow.dirty = false;
        let next = flow.serve(&mut ctx, id, key);
        if let Some(since) = flow.ack_waits()
            && !std::mem::replace(&mut flow.late, true)
        {
            self.late.push_back((since, id));
        }
        let ends = matches!(next, Next::Close { .. });
        if flow.has_opened() {
            if let Some(loan) = flow.loan.take() {
                self.openings.worked(loan, now);
            }
        } else if ends
            && flow.was_refused()
            && let Some(loan) = flow.loan.take()
        {
            self.openings.failed(&loan);
        }
        if flow.note_bulk(now)
            && let Some(seat) = &self.seat
            && let Some(worker) = self.balance.note(id, seat, now)
        {
            self.set_out(id, worker, now);
        }
        let Some((_, Flow::Tcp(flow))) = self.flows.get_mut(id) else { return };
        let undrained = !ends && !flow.drained();
        if undrained != std::mem::replace(&mut flow.undrained, undrained) {
            self.undrained =
                if undrained { self.undrained + 1 } else { self.undrained.saturating_sub(1) };
        }
        self.settle(id, next);
    }

    fn settle(&mut self, id: FlowId, next: Next) {
        match next {
            Next::Live(Some(deadline)) => self.timers.arm(id.index, deadline),
            Next::Live(None) => {}
            Next::Close { reset } => {
                self.timers.disarm(id.index);
                self.idle.remove(id.index);
                self.balance.forget(id);
                self.unhash(id);
                if let Some((_, flow)) = self.flows.get_mut(id) {
                    if matches!(flow, Flow::Closing(_)) {
                        return;
                    }
                    if matches!(flow, Flow::Dns(_)) {
                        self.dns.release();
                    }
                    *flow = match std::mem::replace(flow, Flow::Closing(None)) {
                        Flow::Bound(_, taken) => Flow::Closing(Some(taken)),
                        _ => Flow::Closing(None),
                    };
                    self.actions.push(Action::Close { flow: id, reset });
                }
            }
        }
    }

    /// The host's resolvers, in order; replaces those known.
    pub fn set_resolvers(&mut self, resolvers: &[IpAddr]) {
        self.dns.set_resolvers(resolvers);
    }

    /// From now on no new flow starts.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether no new flow starts.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether nothing is left on its way from the guest to the host. True to the end of a turn.
    pub fn drained(&self) -> bool {
        self.undrained == 0
    }

    /// Counters, with the number of flows filled in.
    pub fn stats(&self) -> Stats {
        Stats { flows: self.flows.len(), ..self.stats }
    }

    /// Counters, for the worker to add its own.
    pub fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }

    /// The buffers.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }
}
