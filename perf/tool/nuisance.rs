//! Those who make trouble beside others: flows that stall, and floods from the guest.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use super::PORT;
use crate::{Context, Res, proc};

/// After how long without room a stream counts as stalled, and how long the other end is given to fill
/// what lies between.
const FULL_AFTER: Duration = Duration::from_millis(500);
/// Packets of a flood per second. Not as many as go: the flooder's own time on the processor would then be
/// what the others lack, with any forwarder.
const FLOOD_RATE: u32 = 20_000;
/// Packets between two pauses of a flood.
const FLOOD_BURST: u32 = 20;

/// The remote's end of stalled flows: what the client says first decides who never reads.
pub(super) fn serve() -> Res<()> {
    let mut kept = Vec::new();
    for mut stream in TcpListener::bind(("0.0.0.0", PORT)).context("listen")?.incoming().flatten() {
        let mut word = [0];
        match stream.read_exact(&mut word) {
            // Written to, and never read.
            Ok(()) if word == *b"w" => kept.push(stream),
            Ok(()) => drop(thread::spawn(move || write_on(stream))),
            // Gone before it said anything.
            Err(_) => {}
        }
    }
    Ok(())
}

/// Writes until the other end ends.
fn write_on(mut stream: TcpStream) {
    while stream.write_all(&[0; 65536]).is_ok() {}
    // Both sides of it: the reader is told, too.
    let _ = stream.shutdown(Shutdown::Both);
}

/// A flow that stands still: of the two ends, one writes and the other does not read. Says so when nothing
/// moves any more, and stays.
pub(super) fn stall(at: &str, client_writes: bool) -> Res<()> {
    let address: SocketAddr = format!("{at}:{PORT}").parse().context("address")?;
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.write_all(if client_writes { b"w" } else { b"r" }).context("first word")?;
    let mut bytes = 0;
    if client_writes {
        stream.set_write_timeout(Some(FULL_AFTER)).context("timeout")?;
        loop {
            match stream.write(&[0; 65536]) {
                Ok(n) => bytes += n,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(e) => return Err(format!("write: {e}")),
            }
        }
    } else {
        thread::sleep(FULL_AFTER);
    }
    super::say(&json!({ "stalled": bytes }))?;
    if client_writes {
        stream.set_write_timeout(None).context("timeout")?;
        write_on(stream);
        return Err("the stalled flow has ended".into());
    }
    loop {
        thread::park();
    }
}

/// Opens connections that nobody will finish: each SYN of another port, to another port where nobody
/// listens (or the one server of the bulk would take it for its client).
pub(super) fn syns(at: &str) -> Res<()> {
    let to: Ipv4Addr = at.parse().context("address")?;
    let from = own_address(to)?;
    let socket = raw(Protocol::TCP)?;
    let mut random = Random(1);
    flood(|| {
        let ports = random.next();
        // A header without options, the SYN flag, a window of 65535.
        let mut header = [0u8; 20];
        header[..2].copy_from_slice(&(ports as u16).to_be_bytes());
        header[2..4].copy_from_slice(&dead_port(ports).to_be_bytes());
        header[4..8].copy_from_slice(&((ports >> 32) as u32).to_be_bytes());
        header[12..16].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
        let sum = checksum(from, to, &header);
        header[16..18].copy_from_slice(&sum.to_be_bytes());
        send(&socket, &header, to)
    })
}

/// Datagrams that are each the first and last of a flow: of another port, to another port where nobody listens.
pub(super) fn datagrams(at: &str) -> Res<()> {
    let to: Ipv4Addr = at.parse().context("address")?;
    let socket = raw(Protocol::UDP)?;
    let mut random = Random(3);
    flood(|| {
        let ports = random.next();
        // A header and 24 bytes, without a checksum (RFC 768).
        let mut bytes = [0u8; 32];
        bytes[..2].copy_from_slice(&(ports as u16).max(1).to_be_bytes());
        bytes[2..4].copy_from_slice(&dead_port(ports).to_be_bytes());
        bytes[5] = 32;
        send(&socket, &bytes, to)
    })
}

/// What no protocol allows: random bytes behind good IP headers, of TCP, UDP and ICMP in turn.
pub(super) fn garbage(at: &str) -> Res<()> {
    let to: Ipv4Addr = at.parse().context("address")?;
    let sockets = [raw(Protocol::TCP)?, raw(Protocol::UDP)?, raw(Protocol::ICMPV4)?];
    let mut random = Random(2);
    let mut turn = 0;
    flood(|| {
        let mut bytes = [0u8; 512];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes());
        }
        turn = (turn + 1) % sockets.len();
        // The kernel itself reads the first two bytes of what leaves by an ICMP socket.
        let length = 2 + random.next() as usize % (bytes.len() - 2);
        send(&sockets[turn], &bytes[..length], to)
    })
}

/// A port where nobody listens: above those of the lab's own servers.
fn dead_port(random: u64) -> u16 {
    20_000 + (random >> 16) as u16 % 40_000
}

/// Sends at the rate of a flood until it is killed; says so after the first burst.
fn flood(mut one: impl FnMut() -> Res<()>) -> Res<()> {
    let begin = proc::now();
    let mut sent = 0;
    loop {
        for _ in 0..FLOOD_BURST {
            one()?;
        }
        if sent == 0 {
            super::say(&json!({ "flood": FLOOD_RATE }))?;
        }
        sent += FLOOD_BURST;
        let due = Duration::from_secs(1) * sent / FLOOD_RATE;
        match due.checked_sub(begin.elapsed()) {
            Some(early) => thread::sleep(early),
            // Late: what was missed is not made up for, or a pause would end in a burst.
            None => continue,
        }
    }
}

fn raw(protocol: Protocol) -> Res<Socket> {
    Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).context("raw socket")
}

fn send(socket: &Socket, bytes: &[u8], to: Ipv4Addr) -> Res<()> {
    match socket.send_to(bytes, &SocketAddrV4::new(to, 0).into()) {
        Ok(_) => Ok(()),
        // A full queue, or an ICMP error that an earlier one has caused.
        Err(e)
            if [Some(libc::ENOBUFS), Some(libc::ECONNREFUSED), Some(libc::EAGAIN)]
                .contains(&e.raw_os_error()) =>
        {
            Ok(())
        }
        Err(e) => Err(format!("send: {e}")),
    }
}

/// The address that packets to another leave with.
fn own_address(to: Ipv4Addr) -> Res<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("bind")?;
    socket.connect((to, PORT)).context("route")?;
    match socket.local_addr().context("own address")? {
        SocketAddr::V4(own) => Ok(*own.ip()),
        SocketAddr::V6(own) => Err(format!("{own} is not IPv4")),
    }
}

/// Of a TCP segment (RFC 9293 section 3.1): over the addresses, the protocol, the length, and the segment.
fn checksum(from: Ipv4Addr, to: Ipv4Addr, segment: &[u8]) -> u16 {
    let head = [from.octets(), to.octets()].concat();
    let words = head.chunks(2).chain(segment.chunks(2));
    let word = |c: &[u8]| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]));
    let mut sum = words.map(word).sum::<u32>() + 6 + segment.len() as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Marsaglia's xorshift: the same flood in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The checksum, of a segment known beforehand (`--test`): with it in its place, the sum is zero.
pub(crate) fn self_check() -> Res<()> {
    let (from, to) = (Ipv4Addr::new(10, 0, 2, 100), Ipv4Addr::new(198, 51, 100, 2));
    let mut segment = [7u8; 20];
    segment[16..18].fill(0);
    let sum = checksum(from, to, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    let again = checksum(from, to, &segment);
    if sum != 0 && again == 0 { Ok(()) } else { Err(format!("nuisance: {sum:x} {again:x}")) }
}
