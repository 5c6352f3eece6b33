//! `--outbound-addr` by interface: the kernel chooses the address, whatever becomes of the interface.
//!
//! ```text
//!   host  host0 ======= remote        the default route: knows nothing of the server
//!         host1 ======= other         the server; a route of a higher metric
//!         198.18.0.1    198.18.0.2, 192.0.2.50
//! ```

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use crate::harness::ns::Ns;
use crate::harness::{Bed, Family, Guest, REMOTE4, With, eventually, need, not_slirp};

const SERVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 50));
const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x50, 0, 0, 0, 0, 0x50));

fn server(family: Family) -> IpAddr {
    match family {
        Family::V4 => SERVER4,
        Family::V6 => SERVER6,
    }
}

/// The address of `host1` that ends with this number.
fn ours(family: Family, last: u16) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 18, 0, last as u8).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, last).into(),
    }
}

/// Connects `host1` to `other`, as the machine's second interface.
fn plug(bed: &Bed, other: &Ns) {
    other.ip(&format!(
        "link add other0 type veth peer name host1 netns {}\n\
         addr add 198.18.0.2/24 dev other0\naddr add 2001:db8:9::2/64 dev other0 nodad\n\
         link set other0 up\n",
        bed.host.net_path()
    ));
    address(bed, 1);
}

/// Gives `host1` the addresses with this number, and the routes that went with the last.
fn address(bed: &Bed, last: u16) {
    bed.host.ip(&format!(
        "addr add 198.18.0.{last}/24 dev host1\naddr add 2001:db8:9::{last:x}/64 dev host1 nodad\n\
         link set host1 up\n\
         route replace default via 198.18.0.2 dev host1 metric 5000\n\
         route replace default via 2001:db8:9::2 dev host1 metric 5000\n"
    ));
}

/// A guest whose traffic leaves by `host1`.
fn bed(with: &With) -> (Bed, Ns, Guest, crate::harness::cmd::Proc) {
    let bed = Bed::new();
    let other = Ns::new(|| ());
    for ns in [&bed.host, &other] {
        ns.sysctl("net/ipv6/conf/default/accept_dad", "0");
        // Answers come by another interface than the best route's.
        ns.sysctl("net/ipv4/conf/all/rp_filter", "0");
        ns.sysctl("net/ipv4/conf/default/rp_filter", "0");
    }
    other.ip(&format!(
        "link set lo up\naddr add {SERVER4}/32 dev lo\naddr add {SERVER6}/128 dev lo nodad\n"
    ));
    plug(&bed, &other);
    let guest = bed.guest();
    let with = with.clone().more("--outbound-addr host1 --outbound-addr6 host1");
    let proc = bed.attach(&guest, &with);
    (bed, other, guest, proc)
}

/// The address that a new connection of the guest comes from.
#[track_caller]
fn seen_by(listener: &TcpListener, guest: &Guest) -> IpAddr {
    let to = listener.local_addr().expect("an address");
    let _inside = guest.ns.connect(to).unwrap_or_else(|e| panic!("connect to {to}: {e}"));
    let (_outside, from) = listener.accept().expect("accept");
    from.ip()
}

/// The address that a datagram of `client` comes from.
#[track_caller]
fn seen_by_udp(server: &UdpSocket, client: &UdpSocket) -> IpAddr {
    let to = server.local_addr().expect("an address");
    client.send_to(b"who am I?", to).expect("send");
    let (_, seen) = server.recv_from(&mut [0; 64]).expect("receive");
    // And back.
    server.send_to(b"you", seen).expect("send");
    let (_, from) = client.recv_from(&mut [0; 64]).expect("receive");
    assert_eq!(from, to);
    seen.ip()
}

#[test]
fn everything_leaves_by_the_interface() {
    need!("ping");
    not_slirp!("does not bind to interfaces");
    let (_bed, other, guest, _proc) = bed(&With::defaults());
    for family in Family::BOTH {
        let to = server(family);
        assert_eq!(seen_by(&other.listen(to), &guest), ours(family, 1), "{family:?} TCP");
        let client = guest.ns.udp(family.any());
        assert_eq!(seen_by_udp(&other.udp(to), &client), ours(family, 1), "{family:?} UDP");
        // Nobody else has this address.
        guest.ns.cmd(&format!("ping -n -c 1 -W 20 {to}")).ok();
    }
}

#[test]
fn resolvers_too() {
    need!();
    not_slirp!("does not bind to interfaces");
    let (_bed, other, guest, _proc) = bed(&With::defaults());
    // The resolver's address, in the other network.
    other.ip(&format!("addr add {REMOTE4}/32 dev lo\n"));
    let resolver: UdpSocket = {
        let socket = other.socket(REMOTE4, socket2::Type::DGRAM, None);
        socket.bind(&SocketAddr::new(REMOTE4, 53).into()).expect("bind");
        socket.into()
    };
    let client = guest.ns.udp(Family::V4.any());
    // One question: the root's name servers.
    let query = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    client.send_to(&query, (Family::V4.dns(), 53)).expect("send");
    let (len, from) = resolver.recv_from(&mut [0; 512]).expect("a query");
    assert_eq!((len, from.ip()), (query.len(), ours(Family::V4, 1)));
}

#[test]
fn loopback_is_not_behind_an_interface() {
    need!();
    not_slirp!("does not bind to interfaces");
    let (bed, other, guest, _proc) = bed(&With::defaults().host_loopback());
    for family in Family::BOTH {
        let listener = bed.host.listen(family.loopback());
        let port = listener.local_addr().expect("an address").port();
        let _inside =
            guest.ns.connect(SocketAddr::new(family.gateway(), port)).expect("to the gateway");
        assert!(listener.accept().expect("accept").1.ip().is_loopback());
        // One mapping to both, in turn.
        let client = guest.ns.udp(family.any());
        let (near, far) = (bed.host.udp(family.loopback()), other.udp(server(family)));
        for _ in 0..2 {
            let port = near.local_addr().expect("an address").port();
            client.send_to(b"near", (family.gateway(), port)).expect("send");
            let (_, from) = near.recv_from(&mut [0; 64]).expect("receive");
            assert!(from.ip().is_loopback(), "{from}");
            assert_eq!(seen_by_udp(&far, &client), ours(family, 1));
        }
        // The host by the interface's own address.
        assert_eq!(seen_by(&bed.host.listen(ours(family, 1)), &guest), ours(family, 1));
    }
}

#[test]
fn a_new_address_is_used_at_once() {
    need!();
    not_slirp!("keeps the address of its start");
    let (bed, other, guest, _proc) = bed(&With::defaults());
    for family in Family::BOTH {
        let client = guest.ns.udp(family.any());
        let (tcp, udp) = (other.listen(server(family)), other.udp(server(family)));
        assert_eq!(seen_by(&tcp, &guest), ours(family, 1));
        assert_eq!(seen_by_udp(&udp, &client), ours(family, 1));
        bed.host.ip("addr flush dev host1\n");
        address(&bed, 9);
        assert_eq!(seen_by(&tcp, &guest), ours(family, 9));
        assert_eq!(seen_by_udp(&udp, &client), ours(family, 9));
        bed.host.ip("addr flush dev host1\n");
        address(&bed, 1);
    }
}

#[test]
fn an_interface_that_goes_and_comes_back() {
    need!();
    not_slirp!("does not bind to interfaces");
    let (bed, other, guest, mut proc) = bed(&With::defaults());
    for family in Family::BOTH {
        let client = guest.ns.udp(family.any());
        let udp = other.udp(server(family));
        assert_eq!(seen_by_udp(&udp, &client), ours(family, 1));
        bed.host.ip("link del host1\n");
        let begin = Instant::now();
        let refused = guest.ns.connect(SocketAddr::new(server(family), 9)).expect_err("no way out");
        assert_eq!(refused.kind(), ErrorKind::NetworkUnreachable, "{family:?}: {refused}");
        // The guest's kernel asks again after one second if it hears nothing.
        println!("refused after {:?}", begin.elapsed());
        client.send_to(b"lost", (server(family), 9)).expect("send");
        plug(&bed, &other);
        assert_eq!(seen_by(&other.listen(server(family)), &guest), ours(family, 1));
        // The same mapping, by an interface with another index.
        let to = udp.local_addr().expect("an address");
        udp.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
        eventually("datagrams leave by the new interface", || {
            client.send_to(b"back?", to).expect("send");
            udp.recv_from(&mut [0; 64]).is_ok_and(|(_, from)| from.ip() == ours(family, 1))
        });
    }
    assert!(proc.alive());
}

#[test]
fn an_interface_that_nobody_has_is_refused() {
    need!();
    not_slirp!("says so in other words");
    let bed = Bed::new();
    for option in ["--outbound-addr", "--outbound-addr6"] {
        bed.ringtap(&format!("run {option} nosuch0 true")).run().refused_with(&[
            option,
            "nosuch0",
            "interface",
        ]);
    }
}
