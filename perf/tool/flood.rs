//! Datagrams: the highest offered rate of which at most 1% is lost.
//!
//! The client asks over a TCP connection of its own through the same forwarder, silent while datagrams
//! fly. `zero` forgets what came, `count` tells it, `send RATE MS STREAMS` sends to the client and tells
//! how many. Datagrams of a run have one size, so that bytes count them, however the kernel has joined
//! them (UDP_GRO). Several streams are as many sockets of the client's, each with a thread that sends from it or to it.

use std::io::{BufRead, BufReader, IoSlice, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, setsockopt, sockopt};
use serde_json::{Value, json};

use super::PORT;
use crate::{Context, Res, proc};

/// The loss that still passes.
const LOSS_MOST: f64 = 0.01;
/// The search ends when pass and failure are this close.
const CLOSE: f64 = 1.05;
/// Where it begins, datagrams per second.
const FIRST: f64 = 4000.0;
/// What every forwarder must carry.
const LEAST: f64 = 50.0;
/// A sender below this share of what it was to offer is itself the limit.
const KEPT_UP: f64 = 0.95;
/// Tries until a sender that is behind is taken to be the limit. It ends the search, and the first tries of a
/// rate are sent while the scheduler still moves the busy ones apart.
const SENDER_TRIES: usize = 5;
/// Receive buffer: a receiver that waits for its turn on a busy processor should lose nothing. The end in the
/// remote gets it; the other, in the guest or not, only what net.core.rmem_max allows, as SO_RCVBUFFORCE is for
/// the machine's root.
const BUFFER: usize = 8 << 20;
/// The longest datagram of a greeting, shorter than any payload.
const GREETING: usize = 8;
/// UDP_MAX_SEGMENTS of the kernels that have the fewest (include/linux/udp.h).
const SEGMENTS_MOST: usize = 64;
/// Payload of the largest IPv4 datagram.
const PAYLOAD_MOST: usize = 65507;

/// Sends of one system call at most.
const BATCH_MOST: usize = 32;

/// A socket and what came through it.
struct End {
    socket: UdpSocket,
    size: usize,
    gso: bool,
    received: AtomicU64,
    peers: Mutex<Vec<SocketAddr>>,
}

impl End {
    fn new(port: u16, size: usize, gso: bool, remote: bool) -> Res<Arc<Self>> {
        if size <= GREETING {
            return Err(format!("datagrams of more than {GREETING} bytes are needed"));
        }
        let socket = UdpSocket::bind(("0.0.0.0", port)).context("bind")?;
        if remote {
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("SO_RCVBUFFORCE")?;
        } else {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER).context("SO_RCVBUF")?;
        }
        if gso {
            setsockopt(&socket, sockopt::UdpGroSegment, &true).context("UDP_GRO")?;
            let segment = i32::try_from(size).context("size")?;
            setsockopt(&socket, sockopt::UdpGsoSegment, &segment).context("UDP_SEGMENT")?;
        }
        // Or a sleep of microseconds takes 50 more.
        nix::sys::prctl::set_timerslack(1).context("PR_SET_TIMERSLACK")?;
        let end = Self { socket, size, gso, received: AtomicU64::new(0), peers: Mutex::default() };
        let end = Arc::new(end);
        let receiver = Arc::clone(&end);
        thread::spawn(move || receiver.receive());
        Ok(end)
    }

    fn receive(&self) {
        let mut bytes = vec![0; 65536];
        loop {
            // An error that an earlier datagram has caused (ICMP) says nothing about the next one.
            let Ok((n, from)) = self.socket.recv_from(&mut bytes) else { continue };
            if n > GREETING {
                self.received.fetch_add(n as u64, Ordering::Relaxed);
                continue;
            }
            let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            let known = peers.contains(&from);
            if !known {
                peers.push(from);
            }
            // Greets back once; a greeting back is not answered, or it would go on forever.
            if !known || bytes[0] == b'?' {
                let _ = self.socket.send_to(b"!", from);
            }
        }
    }

    fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self) -> u64 {
        self.received.load(Ordering::Relaxed) / self.size as u64
    }

    /// Offers datagrams at a rate; gives how many were.
    fn send(&self, to: SocketAddr, rate: f64, time: Duration) -> Res<u64> {
        let per_call = if self.gso { SEGMENTS_MOST.min(PAYLOAD_MOST / self.size) } else { 1 };
        let bytes = vec![0; per_call * self.size];
        let mut batch = Batch::new(&bytes, to);
        let (mut turn, mut sent) = (0.0, 0);
        let begin = proc::now();
        loop {
            let gone = begin.elapsed();
            if gone >= time {
                return Ok(sent);
            }
            let due = gone.as_secs_f64() * rate;
            if turn >= due {
                thread::sleep(Duration::from_micros(50));
                continue;
            }
            // After a pause of its own the sender makes up for no more than 5 ms: the rest would be a
            // burst that nobody asked for.
            turn = f64::max(turn, due - rate * 0.005);
            let calls = (((due - turn) / per_call as f64).ceil() as usize).clamp(1, BATCH_MOST);
            turn += (calls * per_call) as f64;
            match batch.send(&self.socket, calls) {
                Ok(taken) => sent += (taken * per_call) as u64,
                Err(e) if refused(&e) => {}
                Err(e) => return Err(format!("send: {e}")),
            }
        }
    }
}

/// Offers datagrams at a rate, in equal parts from each end to its address; gives how many were.
fn send_all(streams: &[(&End, SocketAddr)], rate: f64, time: Duration) -> Res<u64> {
    let part = rate / streams.len() as f64;
    thread::scope(|scope| {
        let senders: Vec<_> = streams
            .iter()
            .map(|&(end, to)| scope.spawn(move || end.send(to, part, time)))
            .collect();
        let sent = senders.into_iter().map(|s| s.join().map_err(|_| "a sender panicked")?);
        sent.sum()
    })
}

/// One thing to send, again and again, in batches: a call for each would make the tool the limit.
struct Batch<'a> {
    headers: MultiHeaders<SockaddrStorage>,
    message: [IoSlice<'a>; 1],
    to: Option<SockaddrStorage>,
}

impl<'a> Batch<'a> {
    fn new(bytes: &'a [u8], to: SocketAddr) -> Self {
        let headers = MultiHeaders::preallocate(BATCH_MOST, None);
        Self { headers, message: [IoSlice::new(bytes)], to: Some(to.into()) }
    }

    /// Offers it so many times; gives how often it was taken.
    fn send(&mut self, socket: &UdpSocket, times: usize) -> std::io::Result<usize> {
        let messages = vec![&self.message; times];
        let to = vec![self.to; times];
        let flags = MsgFlags::empty();
        let sent = sendmmsg(socket.as_raw_fd(), &mut self.headers, messages, to, [], flags)?;
        Ok(sent.count())
    }
}

/// Whether an offer was not taken: a full queue, or an ICMP error that an earlier datagram caused.
fn refused(e: &std::io::Error) -> bool {
    let soft = [libc::ENOBUFS, libc::EAGAIN, libc::ECONNREFUSED];
    e.raw_os_error().is_some_and(|e| soft.contains(&e))
}

/// The server's end, for one client.
pub(super) fn serve(size: usize, gso: bool, remote: bool) -> Res<()> {
    let end = End::new(PORT, size, gso, remote)?;
    let (stream, _) =
        TcpListener::bind(("0.0.0.0", PORT)).context("listen")?.accept().context("accept")?;
    let mut lines = BufReader::new(stream.try_clone().context("control")?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).context("control")? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let reply = match words.as_slice() {
            ["zero"] => {
                end.received.store(0, Ordering::Relaxed);
                "0".into()
            }
            ["count"] => end.count().to_string(),
            ["send", rate, ms, streams] => {
                let peers = end.peers();
                let streams: usize = super::number(streams)?;
                // Else a part of it would go to nobody, and count as lost.
                if peers.len() != streams {
                    return Err(format!("{} endpoints greeted for {streams} streams", peers.len()));
                }
                let streams: Vec<_> = peers.iter().map(|&to| (&*end, to)).collect();
                let time = Duration::from_millis(super::number(ms)?);
                send_all(&streams, super::number(rate)?, time)?.to_string()
            }
            _ => return Err(format!("control: {line:?}")),
        };
        writeln!(stream, "{reply}").context("control")?;
    }
}

/// What the client holds.
struct Client {
    /// One for each stream.
    ends: Vec<Arc<End>>,
    to: SocketAddr,
    lines: BufReader<TcpStream>,
    /// The datagrams go to the server.
    sends: bool,
    time: Duration,
}

/// One try.
#[derive(Clone, Copy, Debug)]
struct Probe {
    /// Datagrams per second: asked for, offered, and arrived.
    asked: f64,
    offered: f64,
    arrived: f64,
}

impl Probe {
    fn loss(&self) -> f64 {
        if self.offered > 0.0 { (1.0 - self.arrived / self.offered).max(0.0) } else { 1.0 }
    }

    fn passes(&self) -> bool {
        self.loss() <= LOSS_MOST
    }

    fn kept_up(&self) -> bool {
        self.offered >= self.asked * KEPT_UP
    }
}

impl Client {
    fn ask(&mut self, what: &str) -> Res<u64> {
        writeln!(self.lines.get_mut(), "{what}").context("control")?;
        let mut line = String::new();
        self.lines.read_line(&mut line).context("control")?;
        super::number(line.trim()).context("the server ended")
    }

    fn probe(&mut self, rate: f64) -> Res<Probe> {
        let sent = if self.sends {
            self.ask("zero")?;
            let streams: Vec<_> = self.ends.iter().map(|end| (&**end, self.to)).collect();
            send_all(&streams, rate, self.time)?
        } else {
            self.ends.iter().for_each(|end| end.received.store(0, Ordering::Relaxed));
            let (ms, streams) = (self.time.as_millis(), self.ends.len());
            self.ask(&format!("send {rate} {ms} {streams}"))?
        };
        // Until nothing more comes: a queue in between is no loss.
        let mut came = 0;
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(100));
            let now = if self.sends {
                self.ask("count")?
            } else {
                self.ends.iter().map(|end| end.count()).sum()
            };
            if now == came {
                break;
            }
            came = now;
        }
        let secs = self.time.as_secs_f64();
        Ok(Probe { asked: rate, offered: sent as f64 / secs, arrived: came as f64 / secs })
    }
}

/// The client's end: searches.
pub(super) fn bisect(
    at: &str,
    (size, gso, remote): (usize, bool, bool),
    streams: usize,
    sends: bool,
    ms: u64,
) -> Res<Value> {
    let ends = (0..streams).map(|_| End::new(0, size, gso, remote)).collect::<Res<_>>()?;
    let to: SocketAddr = format!("{at}:{PORT}").parse().context("address")?;
    let control = TcpStream::connect(to).context("connect")?;
    control.set_nodelay(true).context("TCP_NODELAY")?;
    let mut client =
        Client { ends, to, lines: BufReader::new(control), sends, time: Duration::from_millis(ms) };
    client.ends.iter().try_for_each(|end| greet(end, to))?;
    let mut probes = 0;
    let best = search(|rate| {
        probes += 1;
        client.probe(rate)
    })?;
    Ok(json!({
        "pps": best.arrived,
        "gbps": best.arrived * size as f64 * 8.0 / 1e9,
        "offered_pps": best.offered,
        "loss_percent": best.loss() * 100.0,
        "sender_limited": u8::from(!best.kept_up()),
        "probes": probes,
    }))
}

/// Opens the mapping, and makes sure that datagrams pass both ways.
fn greet(end: &End, to: SocketAddr) -> Res<()> {
    for _ in 0..20 {
        end.socket.send_to(b"?", to).context("greet")?;
        thread::sleep(Duration::from_millis(50));
        if !end.peers().is_empty() {
            return Ok(());
        }
    }
    Err("no datagram came back".into())
}

/// Quadruples until loss, then halves the interval. A rate fails when two tries lose too much before one passes, and a
/// sender has reached its limit when none of [`SENDER_TRIES`] kept up: at these durations a single pause of the machine is
/// more than 1%.
fn search(mut probe: impl FnMut(f64) -> Res<Probe>) -> Res<Probe> {
    let mut attempt = |rate| -> Res<Probe> {
        // The best of those that passed, though the sender was behind.
        let mut held: Option<Probe> = None;
        let mut lost = false;
        for _ in 0..SENDER_TRIES {
            let p = probe(rate)?;
            if !p.passes() {
                if std::mem::replace(&mut lost, true) {
                    return Ok(held.unwrap_or(p));
                }
            } else if p.kept_up() {
                return Ok(p);
            } else if held.is_none_or(|h| h.offered < p.offered) {
                held = Some(p);
            }
        }
        held.ok_or_else(|| "a search without a try".into())
    };
    let (mut best, mut failed): (Option<Probe>, Option<f64>) = (None, None);
    let mut rate = FIRST;
    loop {
        let p = attempt(rate)?;
        if p.passes() {
            best = Some(p);
            if !p.kept_up() {
                return Ok(p);
            }
        } else {
            // A sender that fell behind has offered less than it was asked: that is what failed.
            failed = Some(p.offered.clamp(LEAST, rate));
        }
        rate = match (best, failed) {
            (Some(b), Some(f)) if f <= b.asked * CLOSE => return Ok(b),
            (Some(b), Some(f)) => (b.asked * f).sqrt(),
            (Some(b), None) => b.asked * 4.0,
            (None, Some(f)) if f > LEAST => (f / 2.0).max(LEAST),
            (None, _) => {
                return Err(format!("more than 1% is lost of {LEAST} datagrams per second"));
            }
        };
    }
}

/// The search, against a carrier whose limit is known (`--test`).
pub(crate) fn self_check() -> Res<()> {
    for limit in [120.0, 3000.0, 123_456.0] {
        let found = search(|asked| Ok(Probe { asked, offered: asked, arrived: asked.min(limit) }))?;
        if !(limit / CLOSE..=limit * 1.02).contains(&found.asked) {
            return Err(format!("flood: found {found:?} where {limit} is the limit"));
        }
    }
    // A sender that cannot offer enough.
    let slow = search(|asked| {
        let offered = asked.min(50_000.0);
        Ok(Probe { asked, offered, arrived: offered })
    })?;
    // A carrier that lets nothing through.
    let dead = search(|asked| Ok(Probe { asked, offered: asked, arrived: 0.0 }));
    if slow.kept_up() || slow.arrived != 50_000.0 || dead.is_ok() {
        return Err(format!("flood: {slow:?} {dead:?}"));
    }
    Ok(())
}
