//! The server as clients see it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::config::NetConfig;
use crate::frame::Mac;
use crate::limits::{DHCP_DECLINED, DHCP_OFFER, VNET_LEN};
use crate::stack::testing::*;
use crate::stats::Drop;
use crate::time::Millis;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

fn client(n: u8) -> Mac {
    [2, 0, 0, 0, 1, n]
}

fn lease(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, 15 + n)
}

/// A client's message as it is on the wire; `options` without the type and the end.
fn message(kind: u8, mac: Mac, ciaddr: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut m = vec![0; 240];
    m[..4].copy_from_slice(&[1, 1, 6, 0]);
    m[4..8].copy_from_slice(&[0xca, 0xfe, 0, kind]);
    m[12..16].copy_from_slice(&ciaddr.octets());
    m[28..34].copy_from_slice(&mac);
    m[236..240].copy_from_slice(&[99, 130, 83, 99]);
    for (kind, data) in [(53, &[kind][..])].iter().chain(options) {
        m.extend([*kind, data.len() as u8]);
        m.extend(*data);
    }
    m.push(255);
    m
}

fn from_nobody(message: &[u8]) -> Vec<u8> {
    let src = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 68);
    udp(src, SocketAddr::new(Ipv4Addr::BROADCAST.into(), 67), message)
}

struct Answer {
    kind: u8,
    yiaddr: Ipv4Addr,
    eth_dst: Mac,
    dst: IpAddr,
    message: Vec<u8>,
}

impl Answer {
    fn option(&self, wanted: u8) -> Option<&[u8]> {
        let mut rest = &self.message[240..];
        while let [kind, len, more @ ..] = rest {
            let (data, after) = more.split_at(usize::from(*len));
            match *kind {
                255 => return None,
                kind if kind == wanted => return Some(data),
                _ => rest = after,
            }
        }
        panic!("no end option")
    }
}

/// What the server says; checks all that is common to its answers.
fn ask(bed: &mut Bed, frame: &[u8]) -> Option<Answer> {
    let mut frames = bed.ask(frame);
    assert!(frames.len() <= 1);
    let frame = frames.pop()?;
    let (parsed, _) = read(&frame);
    assert_eq!(parsed.vnet.csum_start, 0, "the checksum is finished");
    let (ip, datagram) = transport(&frame);
    assert_eq!(ip.src, IpAddr::V4(GATEWAY));
    assert_eq!(datagram[..4], [0, 67, 0, 68]);
    let message = datagram[8..].to_vec();
    assert!(message.len() >= 300);
    assert_eq!(message[..4], [2, 1, 6, 0]);
    assert_eq!(message[4..7], [0xca, 0xfe, 0]);
    let mut answer = Answer {
        kind: 0,
        yiaddr: Ipv4Addr::from(<[u8; 4]>::try_from(&message[16..20]).unwrap()),
        eth_dst: parsed.eth_dst,
        dst: ip.dst,
        message,
    };
    answer.kind = answer.option(53).unwrap()[0];
    assert_eq!(answer.option(54), Some(&GATEWAY.octets()[..]));
    Some(answer)
}

fn discover(bed: &mut Bed, mac: Mac) -> Option<Answer> {
    ask(bed, &from_nobody(&message(DISCOVER, mac, Ipv4Addr::UNSPECIFIED, &[])))
}

fn select(bed: &mut Bed, mac: Mac, addr: Ipv4Addr) -> Option<Answer> {
    let options = [(50, &addr.octets()[..]), (54, &GATEWAY.octets()[..])];
    ask(bed, &from_nobody(&message(REQUEST, mac, Ipv4Addr::UNSPECIFIED, &options)))
}

fn renew(bed: &mut Bed, mac: Mac, addr: Ipv4Addr) -> Option<Answer> {
    let m = message(REQUEST, mac, addr, &[]);
    ask(bed, &udp(SocketAddr::new(addr.into(), 68), server(), &m))
}

fn server() -> SocketAddr {
    SocketAddr::new(GATEWAY.into(), 67)
}

#[test]
fn a_client_gets_an_address_and_all_it_needs() {
    for (dns, mtu) in [(true, 1500u16), (false, 65520)] {
        let mut bed = Bed::new(NetConfig { dns, mtu, ..NetConfig::native() });
        let offer = discover(&mut bed, client(0)).unwrap();
        assert_eq!((offer.kind, offer.yiaddr), (OFFER, lease(0)));
        assert_eq!((offer.eth_dst, offer.dst), (client(0), lease(0).into()));
        let ack = select(&mut bed, client(0), lease(0)).unwrap();
        assert_eq!((ack.kind, ack.yiaddr), (ACK, lease(0)));
        for answer in [offer, ack] {
            assert_eq!(answer.option(1), Some(&[255, 255, 255, 0][..]));
            assert_eq!(answer.option(3), Some(&GATEWAY.octets()[..]));
            assert_eq!(answer.option(6), dns.then_some(&DNS.octets()[..]));
            assert_eq!(answer.option(26), Some(&mtu.to_be_bytes()[..]));
            assert_eq!(answer.option(51), Some(&86400u32.to_be_bytes()[..]));
            assert_eq!(answer.message[28..34], client(0));
        }
        assert_eq!((bed.dropped_in_all(), bed.lent()), (0, 0));
    }
}

#[test]
fn who_cannot_take_unicast_gets_broadcast() {
    let mut bed = Bed::native();
    let mut m = message(DISCOVER, client(0), Ipv4Addr::UNSPECIFIED, &[]);
    m[10] = 0x80;
    let offer = ask(&mut bed, &from_nobody(&m)).unwrap();
    assert_eq!((offer.eth_dst, offer.dst), (BROADCAST_MAC, Ipv4Addr::BROADCAST.into()));
    assert_eq!(offer.message[10..12], [0x80, 0]);
}

#[test]
fn the_client_identifier_comes_back_whatever_its_length() {
    let mut bed = Bed::native();
    for len in [1, 7, 255] {
        let id = vec![0xab; len];
        let m = message(DISCOVER, client(0), Ipv4Addr::UNSPECIFIED, &[(61, &id)]);
        let offer = ask(&mut bed, &from_nobody(&m)).unwrap();
        assert_eq!(offer.option(61), Some(&id[..]));
        assert_eq!(offer.option(26), Some(&1500u16.to_be_bytes()[..]));
    }
}

#[test]
fn each_client_has_its_own_address_and_keeps_it() {
    let mut bed = Bed::native();
    for n in 0..16 {
        assert_eq!(discover(&mut bed, client(n)).unwrap().yiaddr, lease(n));
        assert_eq!(select(&mut bed, client(n), lease(n)).unwrap().kind, ACK);
    }
    assert_eq!(lease(15), Ipv4Addr::new(10, 0, 2, 30));
    assert_eq!(discover(&mut bed, client(3)).unwrap().yiaddr, lease(3));
    // The seventeenth.
    assert!(discover(&mut bed, client(16)).is_none());
    assert_eq!(bed.dropped(Drop::NoLease), 1);
    bed.pass(Millis::secs(3600));
    let _ = bed.frames(); // router advertisements
    assert_eq!(renew(&mut bed, client(5), lease(5)).unwrap().kind, ACK);
    // All but the renewed one run out; the oldest goes first.
    bed.pass(Millis::secs(86400 - 3600));
    let _ = bed.frames();
    assert_eq!(discover(&mut bed, client(16)).unwrap().yiaddr, lease(0));
    assert_eq!(discover(&mut bed, client(17)).unwrap().yiaddr, lease(1));
    assert_eq!(discover(&mut bed, client(9)).unwrap().yiaddr, lease(9), "it comes back");
    assert_eq!(select(&mut bed, client(18), lease(5)).unwrap().kind, NAK);
}

#[test]
fn an_offer_that_is_not_taken_is_free_again() {
    let mut bed = Bed::native();
    for n in 0..16 {
        discover(&mut bed, client(n)).unwrap();
    }
    assert!(discover(&mut bed, client(16)).is_none());
    bed.pass(DHCP_OFFER);
    assert_eq!(discover(&mut bed, client(16)).unwrap().yiaddr, lease(0));
    // Another server was chosen.
    let other = [(50, &[10, 0, 2, 16][..]), (54, &[10, 0, 2, 9][..])];
    let m = message(REQUEST, client(1), Ipv4Addr::UNSPECIFIED, &other);
    assert!(ask(&mut bed, &from_nobody(&m)).is_none());
    assert_eq!(bed.dropped(Drop::NoLease), 1);
}

#[test]
fn a_wish_is_granted_when_it_can_be() {
    let mut bed = Bed::native();
    let wish = |mac, addr: Ipv4Addr| {
        from_nobody(&message(DISCOVER, mac, Ipv4Addr::UNSPECIFIED, &[(50, &addr.octets())]))
    };
    assert_eq!(ask(&mut bed, &wish(client(0), lease(7))).unwrap().yiaddr, lease(7));
    assert_eq!(ask(&mut bed, &wish(client(1), lease(7))).unwrap().yiaddr, lease(0));
    let foreign = Ipv4Addr::new(192, 168, 1, 5);
    assert_eq!(ask(&mut bed, &wish(client(2), foreign)).unwrap().yiaddr, lease(1));
}

#[test]
fn another_networks_address_is_refused() {
    let mut bed = Bed::native();
    for addr in ["192.168.1.5", "10.0.2.14", "10.0.2.31", "10.0.2.100", "0.0.0.1"] {
        let addr: Ipv4Addr = addr.parse().unwrap();
        // After a reboot: no server identifier.
        let options = [(50, &addr.octets()[..])];
        let m = message(REQUEST, client(0), Ipv4Addr::UNSPECIFIED, &options);
        let nak = ask(&mut bed, &from_nobody(&m)).unwrap();
        assert_eq!((nak.kind, nak.yiaddr), (NAK, Ipv4Addr::UNSPECIFIED));
        assert_eq!((nak.eth_dst, nak.dst), (BROADCAST_MAC, Ipv4Addr::BROADCAST.into()));
        assert_eq!((nak.option(1), nak.option(51)), (None, None));
    }
    assert_eq!(renew(&mut bed, client(0), GUEST).unwrap().kind, NAK);
    let options = [(50, &lease(3).octets()[..])];
    let m = message(REQUEST, client(0), Ipv4Addr::UNSPECIFIED, &options);
    let ack = ask(&mut bed, &from_nobody(&m)).unwrap();
    assert_eq!((ack.kind, ack.yiaddr), (ACK, lease(3)), "free: a client that knew it may");
}

#[test]
fn renewal_goes_to_the_clients_address() {
    let mut bed = Bed::native();
    select(&mut bed, client(0), lease(0)).unwrap();
    let ack = renew(&mut bed, client(0), lease(0)).unwrap();
    assert_eq!((ack.kind, ack.dst), (ACK, lease(0).into()));
    assert_eq!(ack.message[12..16], lease(0).octets());
    assert_eq!(renew(&mut bed, client(1), lease(0)).unwrap().kind, NAK, "not his");
}

#[test]
fn release_and_decline_by_the_holder_only() {
    let mut bed = Bed::native();
    select(&mut bed, client(0), lease(0)).unwrap();
    let release = |mac| {
        let m = message(RELEASE, mac, lease(0), &[(54, &GATEWAY.octets())]);
        udp(SocketAddr::new(lease(0).into(), 68), server(), &m)
    };
    assert!(ask(&mut bed, &release(client(1))).is_none());
    assert_eq!(select(&mut bed, client(1), lease(0)).unwrap().kind, NAK);
    assert!(ask(&mut bed, &release(client(0))).is_none());
    assert_eq!(select(&mut bed, client(1), lease(0)).unwrap().kind, ACK);

    let decline = |mac| {
        let options = [(50, &lease(0).octets()[..])];
        from_nobody(&message(DECLINE, mac, Ipv4Addr::UNSPECIFIED, &options))
    };
    assert!(ask(&mut bed, &decline(client(0))).is_none());
    assert_eq!(renew(&mut bed, client(1), lease(0)).unwrap().kind, ACK);
    assert!(ask(&mut bed, &decline(client(1))).is_none());
    assert_eq!(discover(&mut bed, client(1)).unwrap().yiaddr, lease(1));
    assert_eq!(select(&mut bed, client(2), lease(0)).unwrap().kind, NAK);
    bed.pass(DHCP_DECLINED);
    let _ = bed.frames();
    assert_eq!(select(&mut bed, client(2), lease(0)).unwrap().kind, ACK);
}

#[test]
fn inform_gets_the_configuration_without_a_lease() {
    let mut bed = Bed::native();
    let m = message(INFORM, client(0), GUEST, &[]);
    let ack = ask(&mut bed, &udp(SocketAddr::new(GUEST.into(), 68), server(), &m)).unwrap();
    assert_eq!((ack.kind, ack.yiaddr, ack.dst), (ACK, Ipv4Addr::UNSPECIFIED, GUEST.into()));
    assert_eq!((ack.option(51), ack.option(3)), (None, Some(&GATEWAY.octets()[..])));
}

#[test]
fn hostile_messages_are_counted() {
    let mut bed = Bed::native();
    let good = message(DISCOVER, client(0), Ipv4Addr::UNSPECIFIED, &[]);
    let edit = |at: usize, value: u8| {
        let mut m = good.clone();
        m[at] = value;
        from_nobody(&m)
    };
    let bad = [edit(0, 2), edit(1, 6), edit(2, 16), edit(28, 1), edit(236, 0), edit(241, 200)];
    for (n, frame) in bad.iter().enumerate() {
        assert!(bed.ask(frame).is_empty());
        assert_eq!(bed.dropped(Drop::Malformed), n as u64 + 1);
    }
    for (option, data) in [(50, &[1, 2, 3][..]), (54, &[1, 2, 3, 4, 5]), (53, &[]), (53, &[1, 1])] {
        let m = message(DISCOVER, client(0), Ipv4Addr::UNSPECIFIED, &[(option, data)]);
        assert!(bed.ask(&from_nobody(&m)).is_empty());
    }
    assert_eq!(bed.dropped(Drop::Malformed), 10);
    bed.send(&edit(27, 1));
    bed.send(&edit(242, 99));
    bed.send(&edit(242, OFFER));
    assert_eq!(bed.dropped(Drop::Unsupported), 3);
    // A request that names no address.
    bed.send(&from_nobody(&message(REQUEST, client(0), Ipv4Addr::UNSPECIFIED, &[])));
    assert_eq!(bed.dropped(Drop::Malformed), 11);
    // No address, and not for the DHCP server.
    let nobody = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 68);
    bed.send(&udp(nobody, SocketAddr::new(Ipv4Addr::BROADCAST.into(), 68), &good));
    assert_eq!(bed.dropped(Drop::BadSource), 1);
    assert!(bed.frames().is_empty());
}

#[test]
fn mangled_messages_are_answered_or_counted() {
    let mut bed = Bed::native();
    let options = [(50, &lease(1).octets()[..]), (61, &[1, 2, 3][..]), (55, &[1, 3, 6][..])];
    let m = message(DISCOVER, client(0), Ipv4Addr::UNSPECIFIED, &options);
    // An IP fragment, or a message that became a RELEASE or DECLINE, waits or is taken in silence.
    let silent = |f: &[u8]| {
        let l3 = VNET_LEN + 14;
        (f[l3 + 6] & 0x3f, f[l3 + 7]) != (0, 0) || f.len() > l3 + 28 + 240
    };
    bed.mangle(&from_nobody(&m), 20_000, &silent);
    assert!(bed.dropped(Drop::Malformed) > 250);
    assert_eq!(bed.stack.pools().small.lent(), 0);
}
