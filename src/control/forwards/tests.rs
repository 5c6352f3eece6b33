//! The registry on real sockets of the loopback, with workers that only take notes.

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::worker::Descriptors;

/// Workers that keep what they are given.
struct Notes {
    workers: Vec<RefCell<Vec<ForwardedPort>>>,
    descriptors: Arc<Descriptors>,
    /// So many ports they carry together.
    room: usize,
}

impl Notes {
    fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| RefCell::default()).collect(),
            descriptors: Descriptors::new(1000, workers),
            room: usize::MAX,
        }
    }

    fn counts(&self) -> Vec<usize> {
        self.workers.iter().map(|w| w.borrow().len()).collect()
    }

    /// Where each port leads, in the order of the ports.
    fn guests(&self) -> Vec<SocketAddr> {
        let all = self
            .workers
            .iter()
            .flat_map(|w| w.borrow().iter().map(|p| p.guest).collect::<Vec<_>>());
        let mut all: Vec<_> = all.collect();
        all.sort();
        all
    }
}

impl Carriers for Notes {
    fn count(&self) -> usize {
        self.workers.len()
    }

    fn readers(&self) -> usize {
        self.count()
    }

    fn lend(&self) -> Option<Taken> {
        self.descriptors.lend()
    }

    fn free(&self) -> u32 {
        self.descriptors.free()
    }

    fn request(&self, which: usize, request: Request) {
        let full = self.counts().iter().sum::<usize>() >= self.room;
        let mut ports = self.workers[which].borrow_mut();
        match request {
            Request::Forward(port) if full => {
                let _ = port.done.send(Err(io::Error::other("no room")));
            }
            Request::Forward(port) => {
                let _ = port.done.send(Ok(()));
                ports.push(port);
            }
            Request::Unforward(id, done) => {
                ports.retain(|port| port.id != id);
                let _ = done.send(());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// An address of the loopback that no other test uses, so that all its ports are free.
fn own() -> Ipv4Addr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 128 | high, low, COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The first port of a test.
const FIRST: u16 = 12_000;

fn forward(transport: Transport, host: Ipv4Addr, first: u16, end: u16) -> Forward {
    Forward {
        transport,
        host_addr: host.into(),
        interface: None,
        host_ports: first..=end,
        guest_addr: None,
        guest_port: 80,
    }
}

/// For tests that wait for nothing else.
fn add(forwards: &mut Forwards<'_, Notes>, forward: Forward) -> Result<ForwardId, Refused> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(forwards.add(forward))
}

fn refused(forwards: &mut Forwards<'_, Notes>, forward: Forward) -> String {
    let before = forwards.list().count();
    let refused = add(forwards, forward).unwrap_err();
    assert_eq!(forwards.list().count(), before);
    match refused.argument {
        Some(argument) => format!("{argument}: {}", refused.line),
        None => refused.line,
    }
}

#[tokio::test]
async fn it_listens_until_it_is_removed_and_numbers_are_not_used_again() {
    let (notes, net) = (Notes::new(2), NetConfig::native());
    let mut forwards = Forwards::new(&notes, &net);
    let (host, port) = (own(), FIRST);
    for id in 1..4 {
        let added = forwards.add(forward(Transport::Tcp, host, port, port)).await;
        assert_eq!(added, Ok(ForwardId(id)));
        TcpStream::connect((host, port)).unwrap();
        let rules: Vec<_> = forwards.list().map(|(id, f)| (id, f.guest_addr)).collect();
        assert_eq!(rules, [(ForwardId(id), Some([10, 0, 2, 100].into()))]);
        assert!(forwards.remove(ForwardId(id)).unwrap().done().await);
        assert!(TcpStream::connect((host, port)).is_err());
        assert!(forwards.remove(ForwardId(id)).is_none());
    }
    assert_eq!(forwards.ports, 0);
}

#[test]
fn a_range_is_spread_and_its_ports_lead_to_their_own() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let (notes, net) = (Notes::new(3), NetConfig::native());
        let mut forwards = Forwards::new(&notes, &net);
        let (host, first) = (own(), FIRST);
        add(&mut forwards, forward(transport, host, first, first + 9)).unwrap();
        let mut counts = notes.counts();
        counts.sort_unstable();
        assert_eq!(counts, [3, 3, 4]);
        let guests: Vec<_> = (80..90).map(|p| SocketAddr::from(([10, 0, 2, 100], p))).collect();
        assert_eq!(notes.guests(), guests);
    }
}

#[test]
fn a_range_with_a_port_that_is_taken_leaves_nothing() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let (notes, net) = (Notes::new(2), NetConfig::native());
        let mut forwards = Forwards::new(&notes, &net);
        let (host, first) = (own(), FIRST);
        let own = add(&mut forwards, forward(transport, host, first + 3, first + 3)).unwrap();
        let name = transport.name().to_uppercase();
        assert_eq!(
            refused(&mut forwards, forward(transport, host, first, first + 4)),
            format!(
                "{name} port {} of {host}: Address already in use by forward 1; remove it or choose another port",
                first + 3
            )
        );
        assert_eq!(notes.counts().iter().sum::<usize>(), 1);
        // The ports before it are free again.
        add(&mut forwards, forward(transport, host, first, first + 2)).unwrap();
        assert!(forwards.remove(own).is_some());
        add(&mut forwards, forward(transport, host, first + 3, first + 4)).unwrap();
    }
}

#[test]
fn a_port_of_another_program() {
    let (notes, net) = (Notes::new(1), NetConfig::native());
    let mut forwards = Forwards::new(&notes, &net);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = Ipv4Addr::LOCALHOST;
    let port = taken.local_addr().unwrap().port();
    assert_eq!(
        refused(&mut forwards, forward(Transport::Tcp, host, port, port)),
        format!(
            "TCP port {port} of 127.0.0.1: Address already in use by another program; choose another port or address"
        )
    );
    let mut elsewhere = forward(Transport::Udp, host, 8080, 8080);
    elsewhere.host_addr = [192, 0, 2, 1].into();
    assert_eq!(
        refused(&mut forwards, elsewhere.clone()),
        "UDP port 8080 of 192.0.2.1: Cannot assign requested address; no interface of this host has it, see `ip address`"
    );
    elsewhere.interface = Some("nosuch0".into());
    assert_eq!(
        refused(&mut forwards, elsewhere),
        "UDP port 8080 of 192.0.2.1 on nosuch0: No such device; see `ip link` for the interfaces of this host"
    );
}

/// What the kernel says to an ordinary user.
#[test]
fn a_port_that_needs_a_right() {
    let (notes, net) = (Notes::new(1), NetConfig::native());
    let forwards = Forwards::new(&notes, &net);
    let e = io::Error::from_raw_os_error(libc::EACCES);
    assert_eq!(
        forwards.explain(&forward(Transport::Tcp, Ipv4Addr::LOCALHOST, 80, 80), 80, &e).line,
        "TCP port 80 of 127.0.0.1: Permission denied; lower the sysctl net.ipv4.ip_unprivileged_port_start to 80, or \
         choose a higher port"
    );
}

#[test]
fn more_ports_than_open_files() {
    let net = NetConfig::native();
    // Half of them is common.
    let notes = Notes { descriptors: Descriptors::new(8, 1), ..Notes::new(1) };
    let mut forwards = Forwards::new(&notes, &net);
    forwards.limit = 72;
    let (host, first) = (own(), FIRST);
    add(&mut forwards, forward(Transport::Udp, host, first, first + 1)).unwrap();
    assert_eq!(
        refused(&mut forwards, forward(Transport::Udp, host, first + 2, first + 4)),
        "3 more ports with 2 forwarded already: of the open files there may be, 2 are left for that, and the limit is \
         72; raise it (ulimit -Hn, LimitNOFILE= of systemd)"
    );
    add(&mut forwards, forward(Transport::Udp, host, first + 2, first + 3)).unwrap();
    assert!(forwards.remove(ForwardId(1)).is_some());
    add(&mut forwards, forward(Transport::Udp, host, first, first + 1)).unwrap();
}

/// A worker that cannot carry one of the ports: none of them stays, and all can be had at once.
#[test]
fn a_worker_without_room_leaves_nothing() {
    let net = NetConfig::native();
    for transport in [Transport::Tcp, Transport::Udp] {
        let notes = Notes { room: 5, ..Notes::new(2) };
        let free = notes.free();
        let mut forwards = Forwards::new(&notes, &net);
        let (host, first) = (own(), FIRST);
        let kept = add(&mut forwards, forward(transport, host, first, first + 1)).unwrap();
        let name = transport.name().to_uppercase();
        assert_eq!(
            refused(&mut forwards, forward(transport, host, first + 2, first + 7)),
            format!("{name} ports {}-{} of {host}: no room", first + 2, first + 7)
        );
        assert_eq!((notes.counts().iter().sum::<usize>(), notes.free()), (2, free - 2));
        assert_eq!(forwards.ports, 2);
        add(&mut forwards, forward(transport, host, first + 2, first + 4)).unwrap();
        assert_eq!(notes.free(), free - 5);
        assert!(forwards.remove(kept).is_some());
        assert_eq!(notes.free(), free - 3);
    }
}

#[test]
fn ipv6_has_sockets_of_its_own() {
    let (notes, net) = (Notes::new(1), NetConfig::native());
    let mut forwards = Forwards::new(&notes, &net);
    // Of all addresses; a port that the kernel has just found free.
    let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let four = forward(Transport::Tcp, Ipv4Addr::UNSPECIFIED, port, port);
    let six = Forward { host_addr: Ipv6Addr::UNSPECIFIED.into(), ..four.clone() };
    add(&mut forwards, six.clone()).unwrap();
    add(&mut forwards, four).unwrap();
    let guests = ["10.0.2.100:80", "[fd00::100]:80"].map(|a| a.parse().unwrap());
    assert_eq!(notes.guests(), guests);
    assert!(refused(&mut forwards, six).contains("in use by forward 1"));
}

#[test]
fn addresses_that_cannot_be() {
    let notes = Notes::new(1);
    let mut without = NetConfig::native();
    without.v6 = None;
    let mut slaac = NetConfig::native();
    slaac.v6 = Some(crate::config::V6Net::fd00(false));
    let native = NetConfig::native();
    for (net, host, guest, line) in [
        (
            &without,
            "::1",
            None,
            "host_addr: ::1: the guest has no IPv6 (--no-ipv6, or slirp4netns without --enable-ipv6)",
        ),
        (
            &slaac,
            "::1",
            None,
            "guest_addr: the guest makes its IPv6 address by itself here: give it as the guest's address",
        ),
        (
            &native,
            "::ffff:127.0.0.1",
            None,
            "host_addr: ::ffff:127.0.0.1: is IPv4 in other words; write 127.0.0.1",
        ),
        (
            &native,
            "fe80::1",
            None,
            "host_addr: fe80::1: is of one link only; name its interface, too",
        ),
        (
            &native,
            "127.0.0.1",
            Some("fd00::100"),
            "guest_addr: fd00::100: is of another family than 127.0.0.1; both must be IPv4 or both IPv6",
        ),
        (
            &native,
            "127.0.0.1",
            Some("10.0.2.2"),
            "guest_addr: 10.0.2.2: is no address of a guest; leave it out to get the guest's own",
        ),
        (
            &native,
            "127.0.0.1",
            Some("127.0.0.1"),
            "guest_addr: 127.0.0.1: is no address of a guest; leave it out to get the guest's own",
        ),
        (
            &native,
            "::1",
            Some("ff02::1"),
            "guest_addr: ff02::1: is no address of a guest; leave it out to get the guest's own",
        ),
    ] {
        let mut asked = forward(Transport::Tcp, Ipv4Addr::LOCALHOST, 8080, 8080);
        asked.host_addr = host.parse().unwrap();
        asked.guest_addr = guest.map(|g: &str| g.parse().unwrap());
        assert_eq!(refused(&mut Forwards::new(&notes, net), asked), line);
    }
    assert_eq!(notes.counts(), [0]);
    // The unspecified one is the guest's own; another one of its network, or behind it, is as good.
    for (asked, becomes) in
        [("0.0.0.0", "10.0.2.100"), ("10.0.2.15", "10.0.2.15"), ("10.88.0.2", "10.88.0.2")]
    {
        let mut rule = forward(Transport::Tcp, Ipv4Addr::LOCALHOST, 8080, 8080);
        rule.guest_addr = asked.parse().ok();
        assert_eq!(guest_addr(&rule, &native), Ok(becomes.parse().unwrap()));
    }
}
