//! The registry of port forwards: which ports of the host lead into the guest. The sockets are made here, so that what
//! stands in the way is known at once, and carried by workers.
//!
//! A forward is one port or a range, and all of it or nothing: every socket is bound before the first one is given to a
//! worker, and every worker has said that it carries what it was given before the forward is there; if one has no room,
//! all of it is taken back. Whether two forwards are in each other's way is for the kernel to say; here it is only put into words.
//!
//! Each socket has taken its descriptor from those that the workers share, so that ports and conversations together
//! never meet the process's limit.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::config::{Forward, ForwardId, NetConfig, Transport};
use crate::limits::{API_PATIENCE, LISTEN_BACKLOG};
use crate::worker::{ForwardedPort, Handle, Request, Taken, bound};

/// Who carries ports: the workers.
pub trait Carriers {
    /// How many there are.
    fn count(&self) -> usize;
    /// How many of them read what the guest sends: the first so many.
    fn readers(&self) -> usize;
    /// Asks one of them.
    fn request(&self, which: usize, request: Request);
    /// A descriptor of those that they share; `None`: there is none.
    fn lend(&self) -> Option<Taken>;
    /// How many of them there are.
    fn free(&self) -> u32;
}

impl Carriers for [Handle] {
    fn count(&self) -> usize {
        self.len()
    }

    fn readers(&self) -> usize {
        self.iter().filter(|handle| handle.reads()).count()
    }

    fn request(&self, which: usize, request: Request) {
        if let Some(handle) = self.get(which) {
            handle.request(request);
        }
    }

    fn lend(&self) -> Option<Taken> {
        self.first()?.descriptors().lend()
    }

    fn free(&self) -> u32 {
        self.first().map_or(0, |handle| handle.descriptors().free())
    }
}

/// All forwards of this process.
#[derive(Debug)]
pub struct Forwards<'a, C: ?Sized = [Handle]> {
    carriers: &'a C,
    net: &'a NetConfig,
    /// Open files that the process may have.
    limit: u64,
    /// As they were asked for, with the guest's address filled in.
    rules: BTreeMap<ForwardId, Forward>,
    /// Ports of all rules.
    ports: u64,
    last_id: u64,
    /// Who gets the next port of TCP.
    turn: usize,
}

/// Why a forward was not added. Nothing of it is left.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// The argument that is wrong by itself, under its name in the API; `None`: the host would not have it.
    pub argument: Option<&'static str>,
    /// One line: what, why, and the remedy.
    pub line: String,
}

impl<'a, C: Carriers + ?Sized> Forwards<'a, C> {
    /// None yet.
    pub fn new(carriers: &'a C, net: &'a NetConfig) -> Self {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        Self { carriers, net, limit, rules: BTreeMap::new(), ports: 0, last_id: 0, turn: 0 }
    }

    /// Binds all ports of a forward, and from now on they lead into the guest.
    ///
    /// # Errors
    /// What is wrong with it, or the first port that cannot be had, and why.
    pub async fn add(&mut self, mut forward: Forward) -> Result<ForwardId, Refused> {
        let guest_addr = guest_addr(&forward, self.net)?;
        forward.guest_addr = Some(guest_addr);
        let ports = forward.len() as u64;
        if forward.guest_port_end().is_none() || *forward.host_ports.start() == 0 || ports == 0 {
            return wrong("guest_port", "ports must be from 1 to 65535".into());
        }
        let free = self.carriers.free();
        let mut sockets = Vec::with_capacity(forward.len());
        for port in forward.host_ports.clone() {
            let taken = self.carriers.lend().ok_or_else(|| self.too_many(ports, free))?;
            let made = socket(&forward, port).map_err(|e| self.explain(&forward, port, &e))?;
            // In this order they are dropped as well.
            sockets.push((made, taken));
        }
        self.last_id += 1;
        let id = ForwardId(self.last_id);
        let (done, carried) = unbounded_channel();
        for (nth, (socket, taken)) in (0..).zip(sockets) {
            let (transport, done) = (forward.transport, done.clone());
            let guest = SocketAddr::new(guest_addr, forward.guest_port + nth);
            let port = ForwardedPort { id, transport, socket, taken, guest, done };
            let which = match forward.transport {
                Transport::Tcp => self.next(),
                Transport::Udp => bound::home(&guest, self.carriers.readers()),
            };
            self.carriers.request(which, Request::Forward(port));
        }
        drop(done);
        let result = all_carried(ports, carried).await;
        let refused = result.err().map(|why| not_carried(&forward, &why));
        self.ports += ports;
        self.rules.insert(id, forward);
        let Some(refused) = refused else { return Ok(id) };
        if let Some(leaving) = self.remove(id) {
            leaving.done().await;
        }
        Err(refused)
    }

    /// Each in turn.
    fn next(&mut self) -> usize {
        let turn = self.turn;
        self.turn = (turn + 1) % self.carriers.count().max(1);
        turn
    }

    /// All forwards, oldest first. Each has its guest address.
    pub fn list(&self) -> impl Iterator<Item = (ForwardId, &Forward)> {
        self.rules.iter().map(|(id, forward)| (*id, forward))
    }

    /// Ends a forward; `None`: there is none of this number. What comes of it tells when its ports are free.
    pub fn remove(&mut self, id: ForwardId) -> Option<Leaving> {
        let forward = self.rules.remove(&id)?;
        self.ports -= forward.len() as u64;
        let ask = |which| {
            let (done, heard) = oneshot::channel();
            self.carriers.request(which, Request::Unforward(id, done));
            heard
        };
        Some(Leaving((0..self.carriers.count()).map(ask).collect()))
    }

    fn too_many(&self, ports: u64, free: u32) -> Refused {
        let (limit, held) = (self.limit, self.ports);
        let line = format!(
            "{ports} more {} with {held} forwarded already: of the open files there may be, {free} are left for that, \
             and the limit is {limit}; raise it (ulimit -Hn, LimitNOFILE= of systemd)",
            if ports == 1 { "port" } else { "ports" },
        );
        Refused { argument: None, line }
    }

    /// Says which port cannot be had, and why.
    fn explain(&self, forward: &Forward, port: u16, error: &io::Error) -> Refused {
        let Forward { transport, host_addr, interface, .. } = forward;
        let what = error.raw_os_error().map(Errno::from_raw);
        let why = what.map_or_else(|| error.to_string(), |e| e.desc().to_owned());
        let remedy = match what {
            Some(Errno::EMFILE | Errno::ENFILE) => {
                return self.too_many(forward.len() as u64, self.carriers.free());
            }
            Some(Errno::EACCES) => format!(
                "; lower the sysctl net.ipv4.ip_unprivileged_port_start to {port}, or choose a higher port"
            ),
            Some(Errno::EADDRINUSE) => match self.holder(forward, port) {
                Some(ForwardId(id)) => {
                    format!(" by forward {id}; remove it or choose another port")
                }
                None => " by another program; choose another port or address".to_owned(),
            },
            Some(Errno::EADDRNOTAVAIL) => {
                "; no interface of this host has it, see `ip address`".to_owned()
            }
            Some(Errno::ENODEV) => "; see `ip link` for the interfaces of this host".to_owned(),
            _ => String::new(),
        };
        let name = transport.name().to_uppercase();
        let on = interface.as_deref().map(|i| format!(" on {i}")).unwrap_or_default();
        Refused {
            argument: None,
            line: format!("{name} port {port} of {host_addr}{on}: {why}{remedy}"),
        }
    }

    /// Which of ours has a port that was asked for.
    fn holder(&self, forward: &Forward, port: u16) -> Option<ForwardId> {
        let meet = |a: IpAddr, b: IpAddr| {
            a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
        };
        self.list()
            .find(|(_, other)| {
                other.transport == forward.transport
                    && other.host_ports.contains(&port)
                    && meet(other.host_addr, forward.host_addr)
            })
            .map(|(id, _)| id)
    }
}

/// A forward that has ended; its ports are about to be free.
#[derive(Debug)]
pub struct Leaving(Vec<oneshot::Receiver<()>>);

impl Leaving {
    /// Waits until every worker has closed its sockets: then the ports can be bound anew. False: it takes too long.
    pub async fn done(self) -> bool {
        let all = async {
            for worker in self.0 {
                // A sender that was dropped says the same: that worker has none of them.
                let _ = worker.await;
            }
        };
        timeout(Duration::from_millis(API_PATIENCE.0), all).await.is_ok()
    }
}

/// Waits until the workers have said that they carry so many ports; or the first reason why not.
async fn all_carried(
    ports: u64,
    mut carried: UnboundedReceiver<io::Result<()>>,
) -> Result<(), String> {
    let all = async {
        for _ in 0..ports {
            match carried.recv().await {
                Some(result) => result.map_err(|e| e.to_string())?,
                None => return Err("a worker has ended".to_owned()),
            }
        }
        Ok(())
    };
    timeout(Duration::from_millis(API_PATIENCE.0), all)
        .await
        .unwrap_or_else(|_| Err("the workers do not answer".to_owned()))
}

/// Says that a worker does not carry what it was given.
fn not_carried(forward: &Forward, why: &str) -> Refused {
    let Forward { transport, host_addr, host_ports, .. } = forward;
    let name = transport.name().to_uppercase();
    let ports = match (host_ports.start(), host_ports.end()) {
        (first, last) if first == last => format!("port {first}"),
        (first, last) => format!("ports {first}-{last}"),
    };
    Refused { argument: None, line: format!("{name} {ports} of {host_addr}: {why}") }
}

fn wrong<T>(argument: &'static str, line: String) -> Result<T, Refused> {
    Err(Refused { argument: Some(argument), line })
}

/// Where in the guest a forward leads.
fn guest_addr(forward: &Forward, net: &NetConfig) -> Result<IpAddr, Refused> {
    let Forward { host_addr, interface, guest_addr, .. } = forward;
    if let IpAddr::V6(v6) = host_addr {
        if net.v6.is_none() {
            return wrong(
                "host_addr",
                format!(
                    "{v6}: the guest has no IPv6 (--no-ipv6, or slirp4netns without --enable-ipv6)"
                ),
            );
        }
        if let Some(v4) = v6.to_ipv4_mapped() {
            return wrong("host_addr", format!("{v6}: is IPv4 in other words; write {v4}"));
        }
        if v6.is_unicast_link_local() && interface.is_none() {
            return wrong(
                "host_addr",
                format!("{v6}: is of one link only; name its interface, too"),
            );
        }
    }
    let asked = guest_addr.filter(|addr| !addr.is_unspecified());
    let Some(addr) = asked else {
        return match (host_addr, net.v6.and_then(|v6| v6.guest)) {
            (IpAddr::V4(_), _) => Ok(net.v4.guest.into()),
            (IpAddr::V6(_), Some(guest)) => Ok(guest.into()),
            (IpAddr::V6(_), None) => wrong(
                "guest_addr",
                "the guest makes its IPv6 address by itself here: give it as the guest's address"
                    .into(),
            ),
        };
    };
    if addr.is_ipv4() != host_addr.is_ipv4() {
        return wrong(
            "guest_addr",
            format!(
                "{addr}: is of another family than {host_addr}; both must be IPv4 or both IPv6"
            ),
        );
    }
    let nobody = match addr {
        IpAddr::V4(a) => a.is_loopback() || a.is_multicast() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_loopback() || a.is_multicast(),
    };
    if nobody || net.is_gateway(addr) {
        return wrong(
            "guest_addr",
            format!("{addr}: is no address of a guest; leave it out to get the guest's own"),
        );
    }
    Ok(addr)
}

/// A socket for one port of a forward: bound, and TCP listens.
fn socket(forward: &Forward, port: u16) -> io::Result<OwnedFd> {
    let Forward { transport, host_addr, interface, .. } = forward;
    let domain = if host_addr.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let kind = match transport {
        Transport::Tcp => Type::STREAM,
        Transport::Udp => Type::DGRAM,
    };
    let socket = Socket::new_raw(domain, kind.nonblocking().cloexec(), None)?;
    if host_addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if *transport == Transport::Tcp {
        // Else connections of an earlier forward that wait for their end (TIME_WAIT) would keep the port. With
        // datagrams it would mean that two may have one port.
        socket.set_reuse_address(true)?;
    }
    if let Some(name) = interface {
        socket.bind_device(Some(name.as_bytes()))?;
    }
    socket.bind(&SocketAddr::new(*host_addr, port).into())?;
    if *transport == Transport::Tcp {
        socket.listen(LISTEN_BACKLOG)?;
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
