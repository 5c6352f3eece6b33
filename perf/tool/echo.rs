//! Requests and replies: one connection, many connections, a connection for each.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{CRR_CLIENTS, KEEP_PORT, PORT};
use crate::{Context, Res, proc};

/// The longest wait for one connection, or one reply of a connection.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two visits: few beside any bulk.
const VISIT_EVERY: Duration = Duration::from_millis(20);
/// A visit that takes longer has lost its SYN, which Linux sends again after a second.
const LATE: Duration = Duration::from_millis(500);
/// After how long a datagram's reply is taken for lost.
const LOST_AFTER: Duration = Duration::from_millis(200);
/// Within which time a holder opens what it can.
const OPEN_WITHIN: Duration = Duration::from_secs(60);

/// Answers on all ports, over TCP and UDP, until it is killed.
pub(super) fn serve(request: usize, reply: usize) -> Res<()> {
    let udp = UdpSocket::bind(("0.0.0.0", PORT)).context("bind UDP")?;
    thread::spawn(move || serve_udp(&udp, reply));
    let keep = TcpListener::bind(("0.0.0.0", KEEP_PORT)).context("listen")?;
    thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in keep.incoming().flatten() {
            if stream.read_exact(&mut [0]).is_ok() && stream.write_all(b"!").is_ok() {
                kept.push(stream);
            }
        }
    });
    // The first port last: when it listens, all do.
    let listeners: Vec<_> = (PORT..PORT + CRR_CLIENTS)
        .rev()
        .map(|port| TcpListener::bind(("0.0.0.0", port)).context("listen"))
        .collect::<Res<_>>()?;
    let threads: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            // One connection at a time for each port, as each port has one client: no thread has to start
            // for a connection of which the start is what is measured.
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    serve_tcp(stream, request, reply);
                }
            })
        })
        .collect();
    for t in threads {
        t.join().map_err(|_| "a server thread died")?;
    }
    Ok(())
}

fn serve_udp(socket: &UdpSocket, reply: usize) {
    let mut bytes = [0; 65536];
    while let Ok((_, peer)) = socket.recv_from(&mut bytes) {
        // The first byte comes back: by it the client knows a late reply.
        let _ = socket.send_to(&bytes[..reply], peer);
    }
}

fn serve_tcp(mut stream: TcpStream, request: usize, reply: usize) {
    let mut bytes = vec![0; request.max(reply)];
    if stream.set_nodelay(true).is_err() {
        return;
    }
    // Ends with the client: its end of the stream, or its reset.
    while stream.read_exact(&mut bytes[..request]).is_ok()
        && stream.write_all(&bytes[..reply]).is_ok()
    {}
}

/// One request after the other over one connection.
pub(super) fn tcp_rr(at: &str, request: usize, reply: usize, ms: u64) -> Res<Value> {
    let mut stream = connect(at, PORT)?;
    let mut bytes = vec![0; request.max(reply)];
    closed_loop(ms, || {
        stream.write_all(&bytes[..request]).context("request")?;
        stream.read_exact(&mut bytes[..reply]).context("reply")?;
        Ok(true)
    })
}

/// The same in datagrams; what gets no reply is counted.
pub(super) fn udp_rr(at: &str, request: usize, reply: usize, ms: u64) -> Res<Value> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("bind")?;
    socket.connect((at, PORT)).context("connect")?;
    socket.set_read_timeout(Some(LOST_AFTER)).context("timeout")?;
    let mut bytes = vec![0; request.max(reply).max(2048)];
    let mut tag = 0u8;
    closed_loop(ms, || {
        tag = tag.wrapping_add(1);
        bytes[0] = tag;
        socket.send(&bytes[..request]).context("request")?;
        loop {
            match socket.recv(&mut bytes) {
                Ok(n) if n == reply && bytes[0] == tag => return Ok(true),
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(e) => return Err(format!("reply: {e}")),
            }
        }
    })
}

/// Connect, one request, one reply, close: a few clients at once.
pub(super) fn crr(at: &str, ms: u64) -> Res<Value> {
    let begin = proc::now();
    let clients: Vec<_> = (PORT..PORT + CRR_CLIENTS)
        .map(|port| {
            let at = at.to_owned();
            thread::spawn(move || {
                timed(begin, ms, || {
                    let mut stream = connect(&at, port)?;
                    stream.write_all(b"?").context("request")?;
                    stream.read_exact(&mut [0]).context("reply")?;
                    Ok(true)
                })
            })
        })
        .collect();
    let mut all = Vec::new();
    for client in clients {
        all.extend(client.join().map_err(|_| "a client died")??.0);
    }
    figures(all, 0, begin.elapsed())
}

/// Opens connections, says how many and why no more, and keeps them until it is killed.
pub(super) fn hold(at: &str, count: usize) -> Res<()> {
    let deadline = proc::now() + OPEN_WITHIN;
    let mut open = Vec::new();
    let mut why = String::new();
    while open.len() < count && why.is_empty() {
        // Through a reply: a connection of which the far end does not know is none.
        let one = || -> Res<TcpStream> {
            let mut stream = connect(at, KEEP_PORT)?;
            stream.write_all(b"?").context("request")?;
            stream.read_exact(&mut [0]).context("reply")?;
            Ok(stream)
        };
        match one() {
            Ok(stream) => open.push(stream),
            Err(e) => why = e,
        }
        if proc::now() > deadline {
            why = format!("{} s were over", OPEN_WITHIN.as_secs());
        }
    }
    super::say(&json!({ "open": open.len(), "why": why }))?;
    loop {
        thread::park();
    }
}

/// Opens connections, one after the other, each closed at once. Figures: `visits`, and `late_percent`, the share of them
/// that took long or failed.
pub(super) fn visit(at: &str, ms: u64) -> Res<Value> {
    let (mut visits, mut late) = (0u32, 0u32);
    let end = proc::now() + Duration::from_millis(ms);
    while proc::now() < end {
        let begin = proc::now();
        let failed = connect(at, PORT).is_err();
        visits += 1;
        late += u32::from(failed || begin.elapsed() > LATE);
        thread::sleep(VISIT_EVERY);
    }
    let late_percent = f64::from(late) / f64::from(visits.max(1)) * 100.0;
    Ok(json!({ "visits": visits, "late_percent": late_percent }))
}

fn connect(at: &str, port: u16) -> Res<TcpStream> {
    let address: SocketAddr = format!("{at}:{port}").parse().context("address")?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE).context("connect")?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    stream.set_read_timeout(Some(PATIENCE)).context("timeout")?;
    Ok(stream)
}

fn closed_loop(ms: u64, mut once: impl FnMut() -> Res<bool>) -> Res<Value> {
    // The first makes the flow; it is not what is measured.
    if !once()? && !once()? {
        return Err("no reply to the first two requests".into());
    }
    let begin = proc::now();
    let (all, lost) = timed(begin, ms, once)?;
    figures(all, lost, begin.elapsed())
}

/// Nanoseconds of each one that came back, and how many did not.
fn timed(begin: Instant, ms: u64, mut once: impl FnMut() -> Res<bool>) -> Res<(Vec<u64>, u64)> {
    let (mut all, mut lost) = (Vec::new(), 0);
    let end = begin + Duration::from_millis(ms);
    let mut last = proc::now();
    while last < end {
        let came = once()?;
        let now = proc::now();
        match came {
            true => all.push(u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX)),
            false => lost += 1,
        }
        last = now;
    }
    Ok((all, lost))
}

fn figures(mut all: Vec<u64>, lost: u64, took: Duration) -> Res<Value> {
    all.sort_unstable();
    let at = |share: f64| all.get(((all.len() as f64 - 1.0) * share).round() as usize);
    let (Some(p50), Some(p99)) = (at(0.5), at(0.99)) else {
        return Err("no request came back".into());
    };
    Ok(json!({
        "rate": all.len() as f64 / took.as_secs_f64(),
        "p50_us": *p50 as f64 / 1e3,
        "p99_us": *p99 as f64 / 1e3,
        "ops": all.len(),
        "lost": lost,
    }))
}

/// The order statistics, on numbers known beforehand (`--test`).
pub(crate) fn self_check() -> Res<()> {
    let v = figures((0..=100).rev().map(|n| n * 1000).collect(), 3, Duration::from_secs(2))?;
    let right = v["p50_us"] == 50.0 && v["p99_us"] == 99.0 && v["rate"] == 50.5 && v["lost"] == 3;
    if right { Ok(()) } else { Err(format!("echo: {v}")) }
}
