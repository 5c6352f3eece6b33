//! The guest: smoltcp's TCP behind a TAP in memory.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ringtap::time::{Millis, Time};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{self, RecvError, Socket, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr, TcpOption, TcpPacket, TcpSeqNumber};

use crate::model::{self, Way};
use crate::spec::{End, Fate, FlowSpec, Mss, Pace, Spec};
use crate::tap;

pub const GUEST4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
pub const HOST4: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x2800, 0, 0, 0, 0, 0, 1);
/// Flow `i` goes from guest port `FROM + i` to host port `TO + i`.
pub const FROM: u16 = 40000;
pub const TO: u16 = 1000;

/// How long a guest waits for the ACK of a FIN that crossed the other's.
const CROSSED: Millis = Millis(100_000);

/// A wire's end in memory, one IP packet at a time.
#[derive(Debug)]
pub struct Port {
    pub mtu: usize,
    pub input: VecDeque<Vec<u8>>,
    pub output: Vec<Vec<u8>>,
}

pub struct Rx(Vec<u8>);
pub struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.input.pop_front()?), Tx(&mut self.output)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.output))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = self.mtu;
        caps
    }
}

/// How a flow has ended for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Goes on.
    Open,
    /// Both streams ended.
    Finished,
    /// The other side has reset it, or the connection was refused.
    Reset,
    /// This side has reset it, or has vanished.
    Left,
}

/// One program of the guest with one connection.
#[derive(Debug)]
pub struct App {
    pub spec: FlowSpec,
    index: usize,
    handle: SocketHandle,
    started: bool,
    /// The handshake ended.
    pub connected: bool,
    pub sent: u64,
    pub received: u64,
    write_at: Time,
    read_at: Time,
    write_paused: bool,
    read_paused: bool,
    end_at: Option<Time>,
    /// When its end crossed the other's.
    crossed: Option<Time>,
    closed: bool,
    pub eof: bool,
    pub outcome: Outcome,
    /// What is added to its sequence numbers on the wire, from its SYN on.
    shift: Option<u32>,
    dead: bool,
}

/// The guest.
pub struct Guest {
    iface: Interface,
    port: Port,
    sockets: SocketSet<'static>,
    pub apps: Vec<App>,
    tso: bool,
    wrap: bool,
    epoch: Time,
}

pub fn instant(now: Time) -> Instant {
    Instant::from_millis(now.0 as i64)
}

/// A guest's network, with both addresses and a route to everywhere.
pub fn interface(port: &mut Port, seed: u64, now: Time) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut iface = Interface::new(config, port, instant(now));
    iface.update_ip_addrs(|addrs| {
        addrs.push(IpCidr::new(IpAddr::from(GUEST4).into(), 24)).expect("room for two");
        addrs.push(IpCidr::new(IpAddr::from(GUEST6).into(), 64)).expect("room for two");
    });
    iface.routes_mut().add_default_ipv4_route(Ipv4Addr::new(10, 0, 2, 2)).expect("room");
    iface
        .routes_mut()
        .add_default_ipv6_route(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2))
        .expect("room");
    iface
}

/// What of `left` bytes may be moved now, at offset `done`; sets the time of the next.
fn step(pace: &Pace, done: u64, left: u64, at: &mut Time, paused: &mut bool, now: Time) -> usize {
    let mut n = left.min(pace.bytes);
    if let Some((offset, ms)) = pace.pause {
        if done < offset {
            n = n.min(offset - done);
        } else if !*paused {
            *paused = true;
            *at = now + Millis(ms);
            return 0;
        }
    }
    n as usize
}

impl Guest {
    pub fn new(spec: &Spec, now: Time) -> Self {
        let mut port =
            Port { mtu: usize::from(spec.mtu), input: VecDeque::new(), output: Vec::new() };
        let iface = interface(&mut port, spec.seed, now);
        let mut sockets = SocketSet::new(Vec::new());
        let apps = spec.flows.iter().enumerate().map(|(index, flow)| {
            let buffer = |n: usize| tcp::SocketBuffer::new(vec![0; n]);
            let mut socket = Socket::new(buffer(flow.guest_rx), buffer(flow.guest_tx));
            socket.set_nagle_enabled(flow.nagle);
            if !flow.ack_delay {
                socket.set_ack_delay(None);
            }
            // A guest that lost our RST asks some day, as every program that waits for ever should.
            socket.set_keep_alive(Some(Duration::from_secs(100)));
            if flow.connect.errno != 0 {
                socket.set_timeout(Some(Duration::from_secs(20)));
            }
            App {
                spec: *flow,
                index,
                handle: sockets.add(socket),
                started: false,
                connected: false,
                sent: 0,
                received: 0,
                write_at: now,
                read_at: now,
                write_paused: false,
                read_paused: false,
                end_at: None,
                crossed: None,
                closed: false,
                eof: false,
                outcome: Outcome::Open,
                shift: None,
                dead: false,
            }
        });
        let apps = apps.collect();
        Self { iface, port, sockets, apps, tso: spec.tso, wrap: spec.wrap, epoch: now }
    }

    /// Lets programs and TCP run; yields frames for the TAP.
    pub fn poll(&mut self, now: Time) -> Vec<Vec<u8>> {
        for app in &mut self.apps {
            app.run(&mut self.iface, &mut self.sockets, now, self.epoch);
        }
        self.iface.poll(instant(now), &mut self.port, &mut self.sockets);
        for app in &mut self.apps {
            app.read(&mut self.sockets, now);
        }
        // What was read may have opened a window.
        self.iface.poll(instant(now), &mut self.port, &mut self.sockets);
        if self.port.output.is_empty() {
            return Vec::new();
        }
        let mut packets = std::mem::take(&mut self.port.output);
        packets.retain_mut(|packet| self.mangle(packet));
        tap::coalesce(packets, self.tso)
    }

    /// Takes a packet off the TAP.
    pub fn deliver(&mut self, mut packet: Vec<u8>) {
        if let Some((view, tcp)) = tap::tcp_of(&packet) {
            let (ack, has_ack) = (tcp.ack_number(), tcp.ack());
            let l4 = view.l4;
            if let Some(app) = self.app_of(tcp.dst_port()) {
                if app.dead {
                    return;
                }
                if let Some(shift) = app.shift
                    && has_ack
                {
                    // Only a checksum that was right before may be right afterwards.
                    let tcp = TcpPacket::new_unchecked(&packet[l4..view.end]);
                    if !tcp.verify_checksum(&view.src.into(), &view.dst.into()) {
                        return;
                    }
                    TcpPacket::new_unchecked(&mut packet[l4..view.end])
                        .set_ack_number(TcpSeqNumber(ack.0.wrapping_sub(shift as i32)));
                    tap::finish(&mut packet);
                }
            }
        }
        self.port.input.push_back(packet);
    }

    fn app_of(&mut self, port: u16) -> Option<&mut App> {
        self.apps.get_mut(usize::from(port.checked_sub(FROM)?))
    }

    /// Changes a packet on its way out as the flow's spec asks. False: it is not sent.
    fn mangle(&mut self, packet: &mut [u8]) -> bool {
        let Some((view, tcp)) = tap::tcp_of(packet) else { return true };
        let (seq, syn) = (tcp.seq_number().0 as u32, tcp.syn());
        let wrap = self.wrap;
        let Some(app) = self.app_of(tcp.src_port()) else { return true };
        if app.dead {
            return false;
        }
        if syn && app.shift.is_none() {
            let iss = u32::MAX - 3000 * (app.index as u32 % 7);
            app.shift = wrap.then(|| iss.wrapping_sub(seq));
        }
        let spec = app.spec;
        let shift = app.shift.unwrap_or(0);
        let mut tcp = TcpPacket::new_unchecked(&mut packet[view.l4..view.end]);
        tcp.set_seq_number(TcpSeqNumber(seq.wrapping_add(shift) as i32));
        if syn {
            edit_options(tcp.options_mut(), &spec);
        }
        tap::finish(packet);
        true
    }

    /// When something happens here of itself.
    pub fn next(&mut self, now: Time) -> Option<Time> {
        let tcp = self
            .iface
            .poll_at(instant(now), &self.sockets)
            .map(|at| Time(at.total_millis().max(0) as u64).max(now));
        let apps = self.apps.iter().filter_map(|app| app.next(now, self.epoch)).min();
        [tcp, apps].into_iter().flatten().min()
    }

    /// The state of a flow's socket, for messages.
    pub fn state(&self, index: usize) -> State {
        self.sockets.get::<Socket<'_>>(self.apps[index].handle).state()
    }
}

/// Strips or changes MSS and window scale of a SYN.
fn edit_options(mut rest: &mut [u8], spec: &FlowSpec) {
    while !rest.is_empty() {
        let len = match rest[0] {
            0 => return,
            1 => 1,
            _ => usize::from(rest[1]),
        };
        match TcpOption::parse(rest) {
            Ok((_, TcpOption::MaxSegmentSize(_))) => match spec.mss {
                Mss::Keep => {}
                Mss::Absent => rest[..len].fill(1),
                Mss::Is(n) => rest[2..4].copy_from_slice(&n.to_be_bytes()),
            },
            Ok((_, TcpOption::WindowScale(_))) if !spec.scale => rest[..len].fill(1),
            _ => {}
        }
        rest = &mut rest[len..];
    }
}

impl App {
    /// What a peer that opens the connection is, and where it leads.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        let (peer, guest): (IpAddr, IpAddr) = if self.spec.v6 {
            (HOST6.into(), GUEST6.into())
        } else {
            (HOST4.into(), GUEST4.into())
        };
        let index = self.index as u16;
        (SocketAddr::new(peer, TO + index), SocketAddr::new(guest, FROM + index))
    }

    fn run(&mut self, iface: &mut Interface, set: &mut SocketSet<'_>, now: Time, epoch: Time) {
        let socket = set.get_mut::<Socket<'_>>(self.handle);
        let start = epoch + Millis(self.spec.start);
        if !self.started {
            if now < start {
                return;
            }
            self.started = true;
            let to: IpAddr = if self.spec.v6 { HOST6.into() } else { HOST4.into() };
            let (from, to) = (FROM + self.index as u16, (to, TO + self.index as u16));
            if self.spec.inbound {
                socket.listen(from).expect("a fresh socket listens");
            } else {
                socket.connect(iface.context(), to, from).expect("a fresh socket connects");
            }
        }
        if self.outcome != Outcome::Open {
            return;
        }
        match self.spec.guest_fate {
            Fate::Resets(at) if now >= start + Millis(at) => {
                socket.abort();
                self.outcome = Outcome::Left;
                return;
            }
            Fate::Vanishes(at) if now >= start + Millis(at) => {
                self.dead = true;
                self.outcome = Outcome::Left;
                return;
            }
            Fate::Lives | Fate::Resets(_) | Fate::Vanishes(_) => {}
        }
        // smoltcp 0.14 does not send its FIN again when that is lost and the other's has come: such a
        // guest would half-close for ever. It leaves instead.
        if socket.state() == State::Closing {
            let since = *self.crossed.get_or_insert(now);
            if now >= since + CROSSED {
                socket.abort();
                self.spec.guest_fate = Fate::Resets(0);
                self.outcome = Outcome::Left;
                return;
            }
        }
        self.connected |= socket.may_send();
        while socket.can_send() && self.sent < self.spec.guest_bytes && now >= self.write_at {
            let left = self.spec.guest_bytes - self.sent;
            let (at, paused) = (&mut self.write_at, &mut self.write_paused);
            let n = step(&self.spec.guest_write, self.sent, left, at, paused, now);
            let (index, sent) = (self.index, self.sent);
            let n = socket.send(|room| {
                let n = n.min(room.len());
                model::fill(index, Way::ToHost, sent, &mut room[..n]);
                (n, n)
            });
            self.sent += n.expect("can send") as u64;
            if self.spec.guest_write.gap > 0 {
                self.write_at = self.write_at.max(now + Millis(self.spec.guest_write.gap));
            }
        }
        if self.connected && !self.closed && self.sent == self.spec.guest_bytes {
            let due = match self.spec.guest_end {
                End::Done => true,
                End::Last => self.eof,
                End::Later(ms) => now >= *self.end_at.get_or_insert(now + Millis(ms)),
            };
            if due {
                socket.close();
                self.closed = true;
            }
        }
    }

    fn read(&mut self, set: &mut SocketSet<'_>, now: Time) {
        let socket = set.get_mut::<Socket<'_>>(self.handle);
        if !self.started || self.outcome != Outcome::Open {
            return;
        }
        if socket.state() == State::TimeWait {
            // smoltcp throws away what is unread when TIME-WAIT ends; a kernel does not.
            (self.read_at, self.read_paused) = (now, true);
        }
        while socket.can_recv() && now >= self.read_at {
            let (at, paused) = (&mut self.read_at, &mut self.read_paused);
            let n = step(&self.spec.guest_read, self.received, u64::MAX, at, paused, now);
            let (index, received) = (self.index, self.received);
            let n = socket.recv(|bytes| {
                let n = n.min(bytes.len());
                model::check(index, Way::ToGuest, received, &bytes[..n]);
                (n, n)
            });
            self.received += n.expect("can receive") as u64;
            if self.spec.guest_read.gap > 0 {
                self.read_at = self.read_at.max(now + Millis(self.spec.guest_read.gap));
            }
        }
        if !self.eof && socket.recv_slice(&mut []) == Err(RecvError::Finished) {
            self.eof = true;
        }
        match socket.state() {
            State::TimeWait if self.eof => self.outcome = Outcome::Finished,
            State::Closed if self.eof && self.closed => self.outcome = Outcome::Finished,
            State::Closed if !socket.can_recv() => self.outcome = Outcome::Reset,
            _ => {}
        }
    }

    fn next(&self, now: Time, epoch: Time) -> Option<Time> {
        let start = epoch + Millis(self.spec.start);
        if !self.started {
            return Some(start.max(now));
        }
        if self.outcome != Outcome::Open {
            return None;
        }
        let fate = match self.spec.guest_fate {
            Fate::Lives => None,
            Fate::Resets(at) | Fate::Vanishes(at) => Some(start + Millis(at)),
        };
        // A program that could go on at once has done so; only a later time is news.
        let later = |at: Time| (at > now).then_some(at);
        let crossed = self.crossed.map(|at| at + CROSSED);
        let others = [fate, self.end_at, crossed].into_iter().flatten().filter_map(later).min();
        [others, later(self.write_at), later(self.read_at)].into_iter().flatten().min()
    }
}
