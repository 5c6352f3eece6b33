//! Ports forwarded into a guest, by the crate's own API: real listening sockets, a real TAP, and the guest's kernel as
//! the server.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use ringtap::config::{ForwardId, NetConfig, Transport};
use ringtap::stats::Stats;
use ringtap::worker::team::Team;
use ringtap::worker::{ForwardedPort, Handle, Request, TapQueue};
use socket2::{Domain, Socket, Type};

use crate::bed::{belief, guest, ip, open_tap};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// The host's own address, beside loopback.
const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const PATIENCE: Duration = Duration::from_secs(20);

/// Workers, and the thread that lives in the guest's namespace.
struct Bed {
    handles: Vec<Handle>,
    inside: Sender<Box<dyn FnOnce() + Send>>,
}

impl Bed {
    fn new(workers: usize) -> Self {
        let (inside, jobs) = channel::<Box<dyn FnOnce() + Send>>();
        let (give, taps) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let vnet = libc::IFF_VNET_HDR;
            let multi = if workers > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
            give.send(guest(vnet | multi, 1500)).unwrap();
            for _ in 1..workers {
                give.send(open_tap(vnet | multi).unwrap()).unwrap();
            }
            // Without offloads the guest cuts by itself, and sixteen full windows are more frames than the TAP's queue
            // holds by default. What it drops comes again, but a guest without timestamps backs off for long.
            ip("link set tap0 txqueuelen 20000");
            drop(give);
            jobs.iter().for_each(|job| job());
        });
        let team = Team::new(workers, 2, [1, 2]);
        let spawn = |(me, fd)| {
            let (notices, _) = tokio::sync::mpsc::unbounded_channel();
            let tap = TapQueue { fd, vnet: true, reads: true };
            Handle::spawn_in(&team, me as u8, tap, NetConfig::native(), vec![], notices).unwrap()
        };
        let handles = taps.iter().enumerate().map(spawn).collect::<Vec<_>>();
        assert_eq!(handles.len(), workers);
        ip(&format!("addr add {HOST}/32 dev lo"));
        Self { handles, inside }
    }

    /// Runs something in the guest's namespace.
    fn within<R: Send + 'static>(&self, f: impl FnOnce() -> R + Send + 'static) -> R {
        let (give, take) = channel();
        self.inside.send(Box::new(move || drop(give.send(f())))).unwrap();
        take.recv().expect("the guest")
    }

    /// A server in the guest.
    fn serve(&self, addr: IpAddr) -> (TcpListener, SocketAddr) {
        let listener = self.within(move || TcpListener::bind((addr, 0)).unwrap());
        let at = listener.local_addr().unwrap();
        (
            listener,
            SocketAddr::new(if addr.is_unspecified() { GUEST.into() } else { addr }, at.port()),
        )
    }

    /// Forwards a port of the host to the guest; where it listens.
    fn forward(&self, worker: usize, id: u64, guest: SocketAddr) -> SocketAddr {
        let socket = listen(SocketAddr::from(([0, 0, 0, 0], 0))).unwrap();
        let at = socket.local_addr().unwrap().as_socket().unwrap();
        let port = ForwardedPort {
            id: ForwardId(id),
            transport: Transport::Tcp,
            socket: socket.into(),
            taken: self.handles[worker].descriptors().lend().expect("a descriptor"),
            guest,
            done: tokio::sync::mpsc::unbounded_channel().0,
        };
        self.handles[worker].request(Request::Forward(port));
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), at.port())
    }

    fn unforward(&self, id: u64) {
        for handle in &self.handles {
            let (give, take) = tokio::sync::oneshot::channel();
            handle.request(Request::Unforward(ForwardId(id), give));
            let _ = take.blocking_recv();
        }
    }

    fn stats(&self) -> Vec<Stats> {
        let ask = |handle: &Handle| {
            let (give, take) = channel();
            handle.request(Request::Stats(give));
            take.recv().unwrap()
        };
        self.handles.iter().map(ask).collect()
    }

    /// Waits until no flow is left.
    fn empty(&self) {
        until("flows are left", || self.stats().iter().all(|stats| stats.flows == 0));
    }

    fn stop(self) {
        self.handles.into_iter().for_each(Handle::stop);
    }
}

/// As control makes it.
fn listen(at: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(4096)?;
    Ok(socket)
}

#[expect(clippy::disallowed_methods, reason = "a test waits on a real clock")]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn connect(to: SocketAddr) -> TcpStream {
    patient(TcpStream::connect(to).unwrap())
}

fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, peer) = listener.accept().unwrap();
    (patient(stream), peer)
}

fn pattern(seed: u64, len: usize) -> Arc<Vec<u8>> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1);
        (state >> 33) as u8
    };
    Arc::new((0..len).map(|_| next()).collect())
}

/// Sends both ways at once, each end closes its direction, and every byte arrives.
fn exchange(outside: TcpStream, inside: TcpStream, len: usize) {
    let end = |mut ours: TcpStream, send: Arc<Vec<u8>>, want: Arc<Vec<u8>>| {
        let mut reader = ours.try_clone().unwrap();
        thread::spawn(move || {
            let reads = thread::spawn(move || {
                let mut got = Vec::new();
                reader.read_to_end(&mut got).expect("read");
                assert!(got == *want, "{} of {} bytes, or other ones", got.len(), want.len());
            });
            ours.write_all(&send).expect("write");
            ours.shutdown(Shutdown::Write).expect("shut down");
            reads.join().unwrap();
        })
    };
    let (up, down) = (pattern(1, len), pattern(2, len));
    let a = end(outside, down.clone(), up.clone());
    let b = end(inside, up, down);
    a.join().unwrap();
    b.join().unwrap();
}

#[test]
fn connections_reach_the_guest_and_show_their_peer() {
    belief(|| {
        let bed = Bed::new(1);
        let (server, guest) = bed.serve(Ipv4Addr::UNSPECIFIED.into());
        let at = bed.forward(0, 1, guest);
        // A peer on loopback is the gateway, another is itself.
        let outside = connect(at);
        let (inside, peer) = accept(&server);
        assert_eq!(peer, SocketAddr::from(([10, 0, 2, 2], outside.local_addr().unwrap().port())));
        exchange(outside, inside, 8 << 20);
        let outside = connect(SocketAddr::new(HOST.into(), at.port()));
        let (inside, peer) = accept(&server);
        assert_eq!(peer, outside.local_addr().unwrap());
        exchange(outside, inside, 100);
        // A second address of the guest's interface, one beside it, and one nobody has.
        bed.within(|| {
            ip("addr add 10.0.2.77/24 dev tap0");
            ip("link set lo up");
            ip("addr add 172.30.0.1/32 dev lo");
        });
        for addr in [[10, 0, 2, 77], [172, 30, 0, 1]] {
            let (server, guest) = bed.serve(IpAddr::from(addr));
            let at = bed.forward(0, 2, guest);
            let outside = connect(at);
            exchange(outside, accept(&server).0, 1000);
        }
        bed.empty();
        bed.stop();
        "8 MiB each way; loopback as the gateway, others as they are".into()
    });
}

#[test]
fn what_the_guest_refuses_is_reset_at_once() {
    belief(|| {
        let bed = Bed::new(1);
        let (server, guest) = bed.serve(Ipv4Addr::UNSPECIFIED.into());
        drop(server);
        let at = bed.forward(0, 1, guest);
        let start = now();
        for _ in 0..200 {
            // The kernel connects before we know; or the reset is there first.
            let Ok(stream) = TcpStream::connect(at) else { continue };
            let error = patient(stream).read(&mut [0; 1]).expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        // One that waited for a timer would take 300 ms each.
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?}");
        bed.empty();
        bed.stop();
        format!("200 refusals in {took:?}")
    });
}

#[expect(clippy::disallowed_methods, reason = "a test looks at a real clock")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn accepted_sockets_inherit_what_the_listener_has() {
    belief(|| {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listener.set_tcp_nodelay(true).unwrap();
        listener.set_keepalive(true).unwrap();
        listener.set_out_of_band_inline(true).unwrap();
        let _peer =
            TcpStream::connect(listener.local_addr().unwrap().as_socket().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert!(accepted.out_of_band_inline().unwrap());
        "no-delay, keep-alive and inline urgent bytes".into()
    });
}

#[test]
fn a_port_is_free_when_its_forward_has_ended_and_connections_go_on() {
    belief(|| {
        // Other tests start programs: from fork to exec, these have every descriptor of ours, and with it the port.
        if let Some(verdict) =
            in_own_process("a_port_is_free_when_its_forward_has_ended_and_connections_go_on")
        {
            return verdict;
        }
        let bed = Bed::new(2);
        let (server, guest) = bed.serve(Ipv4Addr::UNSPECIFIED.into());
        for round in 0..20 {
            let ports: Vec<_> = (0..10).map(|i| bed.forward(i % 2, round, guest)).collect();
            let outside = connect(ports[0]);
            let (inside, _) = accept(&server);
            bed.unforward(round);
            for port in ports {
                // As control binds it: what is left of connections is not in the way, a socket that listens is.
                let any = SocketAddr::from(([0, 0, 0, 0], port.port()));
                listen(any).expect("the port is free");
            }
            exchange(outside, inside, 10_000);
        }
        bed.empty();
        bed.stop();
        "20 times 10 ports bound anew at once".into()
    });
}

#[test]
fn who_drains_takes_no_more() {
    belief(|| {
        let bed = Bed::new(2);
        let (server, guest) = bed.serve(Ipv4Addr::UNSPECIFIED.into());
        let ports: Vec<_> = (0..300).map(|i| bed.forward(i % 2, 1, guest)).collect();
        let outside = connect(ports[0]);
        let (inside, _) = accept(&server);
        for handle in &bed.handles {
            handle.request(Request::Drain);
        }
        for at in ports {
            until("a port is still open", || {
                let refused = TcpStream::connect(at).map(drop).map_err(|e| e.kind());
                refused == Err(ErrorKind::ConnectionRefused)
            });
        }
        exchange(outside, inside, 10_000);
        // Nor a port that comes later.
        let at = bed.forward(0, 2, guest);
        until("a new port is open", || TcpStream::connect(at).is_err());
        // Some may have come before the workers had heard; the guest's kernel has them.
        drop(server);
        bed.empty();
        bed.stop();
        "300 ports closed, one connection went on".into()
    });
}

#[test]
fn connections_are_shared_out_among_workers() {
    belief(|| {
        let bed = Bed::new(2);
        let (server, guest) = bed.serve(Ipv4Addr::UNSPECIFIED.into());
        let at = bed.forward(0, 1, guest);
        let mut pairs = vec![];
        for _ in 0..16 {
            let outside = connect(at);
            pairs.push((outside, accept(&server).0));
        }
        let flows: Vec<u32> = bed.stats().iter().map(|stats| stats.flows).collect();
        assert!(flows[0].abs_diff(flows[1]) <= 2 && flows[0] + flows[1] == 16, "{flows:?}");
        let threads = pairs
            .into_iter()
            .map(|(outside, inside)| thread::spawn(move || exchange(outside, inside, 1 << 20)));
        threads.collect::<Vec<_>>().into_iter().for_each(|t| t.join().unwrap());
        bed.empty();
        bed.stop();
        format!("{flows:?} of 16")
    });
}

#[test]
fn ten_thousand_ports() {
    belief(|| {
        let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
        let (_, hard) = nix::sys::resource::getrlimit(limit).unwrap();
        if hard < 11_000 {
            return format!("not tried: {hard} descriptors are allowed");
        }
        nix::sys::resource::setrlimit(limit, hard, hard).unwrap();
        let bed = Bed::new(1);
        let (server, guest) = bed.serve(Ipv4Addr::UNSPECIFIED.into());
        // Half of the descriptors is kept for conversations.
        let ports = (hard as usize / 2 - 100).min(10_000);
        let sockets: Vec<Socket> =
            (0..ports).map(|_| listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()).collect();
        let at: Vec<SocketAddr> =
            sockets.iter().map(|s| s.local_addr().unwrap().as_socket().unwrap()).collect();
        // As control does: one channel for all of a forward.
        let (done, _answers) = tokio::sync::mpsc::unbounded_channel();
        let before = resident();
        let start = now();
        for socket in sockets {
            let (id, transport) = (ForwardId(1), Transport::Tcp);
            let taken = bed.handles[0].descriptors().lend().expect("a descriptor");
            let done = done.clone();
            let port = ForwardedPort { id, transport, socket: socket.into(), taken, guest, done };
            bed.handles[0].request(Request::Forward(port));
        }
        bed.stats();
        let took = start.elapsed();
        let grown = resident().saturating_sub(before);
        for i in [0, 17, 5_000, ports - 1] {
            let outside = connect(at[i]);
            exchange(outside, accept(&server).0, 1000);
        }
        let idle = bed.stats()[0].turns;
        let start = now();
        bed.unforward(1);
        let ended = start.elapsed();
        assert!(bed.stats()[0].turns - idle < 1000);
        assert!(listen(at[ports - 1]).is_ok());
        assert!(grown < 4096, "{grown} KiB");
        bed.stop();
        format!("armed in {took:?}, closed in {ended:?}, {grown} KiB more")
    });
}

/// Resident memory of this process, KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The limit of descriptors is the process's, so this one is tried in a process of its own.
#[test]
fn no_descriptor_left_is_waited_out() {
    belief(|| {
        if let Some(verdict) = in_own_process("no_descriptor_left_is_waited_out") {
            return verdict;
        }
        let bed = Bed::new(1);
        let (server, guest) = bed.serve(Ipv4Addr::UNSPECIFIED.into());
        let harmless = bed.forward(0, 1, guest);
        let first = connect(harmless);
        let (first_in, _) = accept(&server);
        let clients: Vec<Socket> =
            (0..5).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
        let socket = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let at = socket.local_addr().unwrap();
        let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
        let (soft, hard) = nix::sys::resource::getrlimit(limit).unwrap();
        // The kernel looks at the limit when an accept is armed, not when it makes a descriptor (6.18): so first this.
        nix::sys::resource::setrlimit(limit, 0, hard).unwrap();
        let (id, transport) = (ForwardId(2), Transport::Tcp);
        let taken = bed.handles[0].descriptors().lend().expect("a descriptor");
        let (done, _) = tokio::sync::mpsc::unbounded_channel();
        let port = ForwardedPort { id, transport, socket: socket.into(), taken, guest, done };
        bed.handles[0].request(Request::Forward(port));
        for client in &clients {
            client.connect(&at).unwrap();
        }
        let before = bed.stats()[0].turns;
        pause(Duration::from_millis(600));
        let turns = bed.stats()[0].turns - before;
        assert!(turns < 60, "{turns} turns in 600 ms: it spins");
        assert!(turns > 2, "{turns} turns in 600 ms: it does not try");
        nix::sys::resource::setrlimit(limit, soft, hard).unwrap();
        for _ in &clients {
            drop(accept(&server));
        }
        // And the one that was there has not been harmed.
        exchange(first, first_in, 10_000);
        drop(clients);
        bed.empty();
        bed.stop();
        format!("{turns} turns in 600 ms without a descriptor")
    });
}

const ALONE: &str = "RINGTAP_PLATFORM_ALONE";

/// Runs a test of this file again, alone in a process; `None`: that is this one.
fn in_own_process(test: &str) -> Option<String> {
    if std::env::var_os(ALONE).is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("forward::{test}"), "--nocapture"]).env(ALONE, "1");
    assert!(command.status().unwrap().success());
    Some("in a process of its own".into())
}

fn pause(time: Duration) {
    thread::sleep(time);
}
