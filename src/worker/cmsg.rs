//! Control messages and addresses of datagrams as bytes, read and written without a pointer.
//!
//! The kernel's `struct cmsghdr` is a `size_t` length and two `int`s, each message padded to the size
//! of a `long` (libc's own type differs from it in musl, so it is not used).
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::flow::local::Local;
use crate::flow::{DgramError, Errno, SendOpts};
use crate::limits::HEADROOM;

const ALIGN: usize = size_of::<usize>();
const HEADER: usize = ALIGN + 8;

/// Bytes of a control message with `n` bytes of data.
const fn space(n: usize) -> usize {
    HEADER + n.next_multiple_of(ALIGN)
}

/// Room for the control messages of a send: TTL, TOS, segment size, and interface and source (`struct in6_pktinfo`: an
/// address and an `int`; `struct in_pktinfo` is shorter).
pub(super) const SEND_CONTROL: usize = 3 * space(4) + space(20);

/// Bytes of `struct io_uring_recvmsg_out`, in front of all that a multishot `recvmsg` writes.
const OUT: usize = 16;
/// Room for the sender's address: `struct sockaddr_in6` is 28 bytes.
pub(super) const NAME: usize = 32;
/// Room for the control messages of a datagram: TTL, TOS, and the segment size of a run.
pub(super) const DATA_CONTROL: usize = HEADROOM - OUT - NAME;
/// The same for a socket that is told to which of the host's addresses a datagram came: `struct in6_pktinfo` as well,
/// and up to the next cache line.
pub(super) const LOCAL_CONTROL: usize = DATA_CONTROL + 64;
/// Room for those of an error: TTL, TOS and our address as well, and `IP_RECVERR` with `struct sock_extended_err` and
/// the offender's address. Too little would cut it off, and with it the error.
pub(super) const ERROR_CONTROL: usize = 192;

// Payload begins where the headers to be written in front of it have just room.
const _: () = assert!(OUT + NAME + DATA_CONTROL >= HEADROOM);
const _: () = assert!(DATA_CONTROL >= 3 * space(4));
const _: () = assert!(LOCAL_CONTROL >= 3 * space(4) + space(20));
const _: () = assert!(ERROR_CONTROL >= 2 * space(4) + space(20) + space(16 + 28));

/// A datagram that a multishot `recvmsg` has put into a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) from: SocketAddr,
    pub(super) local: Local,
    pub(super) ttl: Option<u8>,
    pub(super) tos: u8,
    pub(super) segment: u16,
    /// Where the payload begins, and its length.
    pub(super) start: usize,
    pub(super) len: usize,
}

/// Writes the control messages for a datagram to `to` and says how many bytes they take. It leaves by the interface
/// with the index `via`; 0: as the routes say.
pub(super) fn write(
    control: &mut [u8; SEND_CONTROL],
    to: &SocketAddr,
    opts: &SendOpts,
    via: i32,
) -> usize {
    let (level, ttl, tos) = match to {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_TTL, libc::IP_TOS),
        SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS),
    };
    let mut at = 0;
    let mut put = |level: i32, kind: i32, data: &[u8]| {
        let message = &mut control[at..at + space(data.len())];
        message.fill(0);
        message[..ALIGN].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        message[ALIGN..ALIGN + 4].copy_from_slice(&level.to_ne_bytes());
        message[ALIGN + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER..HEADER + data.len()].copy_from_slice(data);
        at += space(data.len());
    };
    put(level, ttl, &i32::from(opts.ttl).to_ne_bytes());
    put(level, tos, &i32::from(opts.tos).to_ne_bytes());
    if opts.segment != 0 {
        put(libc::SOL_UDP, libc::UDP_SEGMENT, &opts.segment.to_ne_bytes());
    }
    // Without an address, the kernel chooses among those of the interface.
    let (from, scope) = (opts.local.ip(), opts.local.interface());
    let via = if via == 0 { scope.cast_signed() } else { via };
    match to {
        _ if via == 0 && from.is_none() => {}
        SocketAddr::V4(_) => {
            let mut info = [0; 12];
            info[..4].copy_from_slice(&via.to_ne_bytes());
            if let Some(IpAddr::V4(from)) = from {
                info[4..8].copy_from_slice(&from.octets());
            }
            put(libc::SOL_IP, libc::IP_PKTINFO, &info);
        }
        SocketAddr::V6(_) => {
            let mut info = [0; 20];
            if let Some(IpAddr::V6(from)) = from {
                info[..16].copy_from_slice(&from.octets());
            }
            info[16..].copy_from_slice(&via.to_ne_bytes());
            put(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
        }
    }
    at
}

/// Reads what a multishot `recvmsg` with [`NAME`] and so much room for control messages ([`DATA_CONTROL`] or
/// [`LOCAL_CONTROL`]) has written.
pub(super) fn read_data(buffer: &[u8], room: usize) -> Option<Received> {
    let parts = parts(buffer, room)?;
    let mut received = Received {
        from: address(parts.name)?,
        local: Local::ANY,
        ttl: None,
        tos: 0,
        segment: 0,
        start: parts.payload,
        len: parts.payload_len,
    };
    for_each(parts.control, |level, kind, data| match (level, kind) {
        (libc::SOL_IP, libc::IP_TTL) | (libc::SOL_IPV6, libc::IPV6_HOPLIMIT) => {
            received.ttl = int(data).and_then(|ttl| u8::try_from(ttl).ok());
        }
        // One byte in IPv4, an int in IPv6.
        (libc::SOL_IP, libc::IP_TOS) => received.tos = data.first().copied().unwrap_or(0),
        (libc::SOL_IPV6, libc::IPV6_TCLASS) => {
            received.tos = int(data).and_then(|tos| u8::try_from(tos).ok()).unwrap_or(0);
        }
        (libc::SOL_UDP, libc::UDP_GRO) => {
            received.segment = int(data).and_then(|size| u16::try_from(size).ok()).unwrap_or(0);
        }
        (libc::SOL_IP, libc::IP_PKTINFO) | (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
            received.local = local(level, data).unwrap_or(Local::ANY);
        }
        _ => {}
    });
    Some(received)
}

/// Reads what a multishot `recvmsg` of the error queue with [`NAME`] and [`ERROR_CONTROL`] has written.
pub(super) fn read_error(buffer: &[u8]) -> Option<DgramError> {
    let parts = parts(buffer, ERROR_CONTROL)?;
    // The name is where the datagram was going, the payload what the ICMP message quoted of it.
    let to = address(parts.name)?;
    let payload = buffer.get(parts.payload..parts.payload + parts.payload_len)?;
    let (mut error, mut own) = (None, Local::ANY);
    for_each(parts.control, |level, kind, data| {
        // An ICMP message came to where the datagram was from.
        if matches!(
            (level, kind),
            (libc::SOL_IP, libc::IP_PKTINFO) | (libc::SOL_IPV6, libc::IPV6_PKTINFO)
        ) {
            own = local(level, data).unwrap_or(Local::ANY);
        }
        if !matches!(
            (level, kind),
            (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
        ) {
            return;
        }
        // `struct sock_extended_err`: errno, then origin, type, code, pad, then info (the MTU).
        let [a, b, c, d, origin, icmp_type, code, _, e, f, g, h, ..] = *data else { return };
        let from_network = i32::from(origin) == i32::from(libc::SO_EE_ORIGIN_ICMP)
            || i32::from(origin) == i32::from(libc::SO_EE_ORIGIN_ICMP6);
        error = Some(DgramError {
            errno: Errno(i32::from_ne_bytes([a, b, c, d])),
            icmp: from_network.then_some((icmp_type, code)),
            mtu: u32::from_ne_bytes([e, f, g, h]),
            offender: data
                .get(16..)
                .and_then(address)
                .map(|a| a.ip())
                .filter(|a| from_network && !a.is_unspecified()),
            to,
            local: Local::ANY,
            echo_seq: match *payload {
                [_, _, _, _, _, _, hi, lo, ..] => u16::from_be_bytes([hi, lo]),
                _ => 0,
            },
        });
    });
    error.map(|error| DgramError { local: own, ..error })
}

/// The address of ours in a `struct in_pktinfo` or `in6_pktinfo`. Of the two in the former it is `ipi_spec_dst`: the
/// other one may be that of a broadcast.
fn local(level: i32, info: &[u8]) -> Option<Local> {
    if level == libc::SOL_IP {
        let ip = Ipv4Addr::from(*info.get(4..)?.first_chunk::<4>()?);
        return Some(Local::new(ip.into(), 0));
    }
    let interface = info.get(16..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))?;
    Some(Local::new(Ipv6Addr::from(*info.first_chunk::<16>()?).into(), interface))
}

struct Parts<'a> {
    name: &'a [u8],
    control: &'a [u8],
    payload: usize,
    payload_len: usize,
}

/// Takes the buffer of a multishot `recvmsg` apart: header, name, control, payload, the middle two at
/// their full room. `None` when it is cut off.
fn parts(buffer: &[u8], control_room: usize) -> Option<Parts<'_>> {
    let header = buffer.first_chunk::<OUT>()?;
    let field = |i: usize| {
        u32::from_ne_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]) as usize
    };
    let (name_len, control_len, payload_len) = (field(0), field(4), field(8));
    if field(12) as i32 & libc::MSG_TRUNC != 0 {
        return None;
    }
    let payload = OUT + NAME + control_room;
    if buffer.len().checked_sub(payload)? < payload_len {
        return None;
    }
    let control = OUT + NAME;
    Some(Parts {
        name: &buffer[OUT..OUT + name_len.min(NAME)],
        control: &buffer[control..control + control_len.min(control_room)],
        payload,
        payload_len,
    })
}

/// Calls `f` with level, type and data of each control message; stops at one that is cut off.
fn for_each(mut control: &[u8], mut f: impl FnMut(i32, i32, &[u8])) {
    while let Some((header, rest)) = control.split_first_chunk::<HEADER>() {
        let (Some(len), Some(level), Some(kind)) = (
            header.first_chunk().map(|b| usize::from_ne_bytes(*b)),
            header[ALIGN..].first_chunk().map(|b| i32::from_ne_bytes(*b)),
            header.last_chunk().map(|b| i32::from_ne_bytes(*b)),
        ) else {
            return;
        };
        let Some(data) = len.checked_sub(HEADER).and_then(|len| rest.get(..len)) else { return };
        f(level, kind, data);
        let Some(next) = rest.get(data.len().next_multiple_of(ALIGN)..) else { return };
        control = next;
    }
}

fn int(data: &[u8]) -> Option<i32> {
    data.first_chunk().map(|b| i32::from_ne_bytes(*b))
}

/// A `struct sockaddr_in` or `sockaddr_in6`. A link-local address means nothing without its interface, and comes with it.
fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    Some(match family {
        libc::AF_INET => {
            SocketAddr::new(Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?).into(), port)
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?);
            let scope = bytes.get(24..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))?;
            SocketAddrV6::new(ip, port, 0, scope).into()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `struct cmsghdr` with its data, padded.
    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    fn name(addr: &str) -> Vec<u8> {
        let addr: SocketAddr = addr.parse().unwrap();
        let mut bytes = vec![];
        match addr {
            SocketAddr::V4(a) => {
                bytes.extend((libc::AF_INET as u16).to_ne_bytes());
                bytes.extend(a.port().to_be_bytes());
                bytes.extend(a.ip().octets());
                bytes.extend([0; 8]);
            }
            SocketAddr::V6(a) => {
                bytes.extend((libc::AF_INET6 as u16).to_ne_bytes());
                bytes.extend(a.port().to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(a.ip().octets());
                bytes.extend(a.scope_id().to_ne_bytes());
            }
        }
        bytes
    }

    /// What the kernel writes into a buffer.
    fn buffer(name: &[u8], control: &[u8], room: usize, payload: &[u8], flags: i32) -> Vec<u8> {
        let mut bytes = vec![];
        for field in [name.len(), control.len(), payload.len(), flags as usize] {
            bytes.extend((field as u32).to_ne_bytes());
        }
        bytes.extend(name);
        bytes.resize(OUT + NAME, 0xee);
        bytes.extend(control);
        bytes.resize(OUT + NAME + room, 0xee);
        bytes.extend(payload);
        bytes
    }

    fn data_v4() -> Vec<u8> {
        let control =
            [message(0, libc::IP_TTL, &77i32.to_ne_bytes()), message(0, libc::IP_TOS, &[0x28])];
        buffer(&name("198.51.100.7:53"), &control.concat(), DATA_CONTROL, b"payload", 0)
    }

    #[test]
    fn data_of_both_families() {
        let bytes = data_v4();
        let got = read_data(&bytes, DATA_CONTROL).unwrap();
        assert_eq!(got.from, "198.51.100.7:53".parse().unwrap());
        assert_eq!((got.ttl, got.tos, got.segment), (Some(77), 0x28, 0));
        assert!(got.start >= HEADROOM);
        assert_eq!(&bytes[got.start..got.start + got.len], b"payload");
        let control = [
            message(libc::SOL_IPV6, libc::IPV6_HOPLIMIT, &3i32.to_ne_bytes()),
            message(libc::SOL_IPV6, libc::IPV6_TCLASS, &5i32.to_ne_bytes()),
            message(libc::SOL_UDP, libc::UDP_GRO, &1200i32.to_ne_bytes()),
        ];
        let bytes = buffer(&name("[2001:db8::1]:9"), &control.concat(), DATA_CONTROL, &[], 0);
        let got = read_data(&bytes, DATA_CONTROL).unwrap();
        assert_eq!(got.from, "[2001:db8::1]:9".parse().unwrap());
        assert_eq!((got.ttl, got.tos, got.segment, got.len), (Some(3), 5, 1200, 0));
    }

    /// `struct in_pktinfo`.
    fn info_v4(interface: i32, local: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        [interface.to_ne_bytes(), local, to].concat()
    }

    /// `struct in6_pktinfo`.
    fn info_v6(to: &str, interface: i32) -> Vec<u8> {
        let to: Ipv6Addr = to.parse().unwrap();
        [to.octets().as_slice(), &interface.to_ne_bytes()].concat()
    }

    #[test]
    fn which_address_was_asked() {
        let read = |from: &str, level, info: Vec<u8>| {
            let control = [
                message(
                    level,
                    if level == 0 { libc::IP_PKTINFO } else { libc::IPV6_PKTINFO },
                    &info,
                ),
                message(libc::SOL_IP, libc::IP_TTL, &9i32.to_ne_bytes()),
                message(libc::SOL_IP, libc::IP_TOS, &[1]),
                message(libc::SOL_UDP, libc::UDP_GRO, &1200i32.to_ne_bytes()),
            ];
            let bytes = buffer(&name(from), &control.concat(), LOCAL_CONTROL, b"payload", 0);
            let got = read_data(&bytes, LOCAL_CONTROL).unwrap();
            assert_eq!((got.ttl, got.tos, got.segment), (Some(9), 1, 1200));
            assert_eq!(&bytes[got.start..got.start + got.len], b"payload");
            (got.from, got.local.ip(), got.local.interface())
        };
        let v4 = "127.0.0.1:9";
        let broadcast = info_v4(3, [192, 0, 2, 1], [192, 0, 2, 255]);
        let ip = |text: &str| Some(text.parse().unwrap());
        assert_eq!(read(v4, 0, info_v4(1, [127, 0, 0, 2], [127, 0, 0, 2])).1, ip("127.0.0.2"));
        assert_eq!(read(v4, 0, broadcast).1, ip("192.0.2.1"));
        assert_eq!(read(v4, 0, info_v4(1, [0; 4], [0; 4])).1, None);
        assert_eq!(read(v4, 0, info_v4(1, [1; 4], [1; 4])[..7].to_vec()).1, None);
        let v6 = "[fe80::7%5]:9";
        let from = v6.parse().unwrap();
        assert_eq!(read(v6, 41, info_v6("2001:db8::1", 5)), (from, ip("2001:db8::1"), 0));
        assert_eq!(read(v6, 41, info_v6("fe80::1", 5)), (from, ip("fe80::1"), 5));
        assert_eq!(read(v6, 41, info_v6("ff02::1", 5)), (from, None, 0));
        assert_eq!(read(v6, 41, info_v6("fe80::1", 5)[..19].to_vec()).1, None);
    }

    fn error_v4(payload: &[u8]) -> Vec<u8> {
        let mut data = libc::ECONNREFUSED.to_ne_bytes().to_vec();
        data.extend([2, 3, 4, 0]);
        data.extend(1300u32.to_ne_bytes());
        data.extend([0; 4]);
        data.extend(name("203.0.113.1:0"));
        let control = [message(0, libc::IP_TTL, &[0; 4]), message(0, libc::IP_RECVERR, &data)];
        buffer(&name("198.51.100.7:53"), &control.concat(), ERROR_CONTROL, payload, 0)
    }

    #[test]
    fn errors() {
        let got = read_error(&error_v4(&[8, 0, 0, 0, 1, 1, 0x12, 0x34])).unwrap();
        assert_eq!(got.errno, Errno(libc::ECONNREFUSED));
        assert_eq!((got.icmp, got.mtu, got.echo_seq), (Some((3, 4)), 1300, 0x1234));
        assert_eq!(got.offender, Some("203.0.113.1".parse().unwrap()));
        assert_eq!(got.to, "198.51.100.7:53".parse().unwrap());
        assert_eq!(got.local, Local::ANY);
        // Told of an address of ours, before the error or behind it.
        let mut data = libc::ECONNREFUSED.to_ne_bytes().to_vec();
        data.extend([3, 1, 4, 0]);
        data.extend([0; 8]);
        data.extend(name("[fe80::7%5]:0"));
        let info = message(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info_v6("fe80::1", 5));
        let error = message(libc::SOL_IPV6, libc::IPV6_RECVERR, &data);
        let hops = message(libc::SOL_IPV6, libc::IPV6_HOPLIMIT, &[0; 4]);
        let class = message(libc::SOL_IPV6, libc::IPV6_TCLASS, &[0; 4]);
        for control in [[&info, &hops, &class, &error], [&error, &info, &hops, &class]] {
            let control = control.map(Vec::as_slice).concat();
            let got = read_error(&buffer(&name("[fe80::7%5]:9"), &control, ERROR_CONTROL, &[], 0));
            let got = got.unwrap();
            assert_eq!(got.to, "[fe80::7%5]:9".parse().unwrap());
            assert_eq!(
                (got.local, got.errno),
                (Local::new("fe80::1".parse().unwrap(), 5), Errno(111))
            );
        }
        // Our own kernel's: no ICMP, nobody who sent it, nothing quoted.
        let mut data = libc::EMSGSIZE.to_ne_bytes().to_vec();
        data.extend([1, 0, 0, 0]);
        data.extend(1280u32.to_ne_bytes());
        data.extend([0; 4]);
        data.extend(name("[::]:0"));
        let control = message(libc::SOL_IPV6, libc::IPV6_RECVERR, &data);
        let bytes = buffer(&name("[2001:db8::1]:9"), &control, ERROR_CONTROL, &[], 0);
        let got = read_error(&bytes).unwrap();
        assert_eq!((got.icmp, got.mtu, got.offender, got.echo_seq), (None, 1280, None, 0));
    }

    #[test]
    fn every_truncation_is_seen() {
        let bytes = data_v4();
        for cut in 0..bytes.len() {
            assert_eq!(read_data(&bytes[..cut], DATA_CONTROL), None, "{cut}");
        }
        let bytes = error_v4(&[0; 8]);
        for cut in 0..bytes.len() {
            assert_eq!(read_error(&bytes[..cut]), None, "{cut}");
        }
        // Cut by the kernel: for want of room, in name, control or payload.
        let control = message(0, libc::IP_TTL, &[0; 4]);
        let whole = name("198.51.100.7:53");
        let truncated = buffer(&whole, &control, DATA_CONTROL, b"x", libc::MSG_TRUNC);
        assert_eq!(read_data(&truncated, DATA_CONTROL), None);
        for cut in 0..control.len() {
            let bytes = buffer(&whole, &control[..cut], DATA_CONTROL, b"x", 0);
            let got = read_data(&bytes, DATA_CONTROL).unwrap();
            assert_eq!(got.ttl, (cut >= HEADER + 4).then_some(0), "{cut}");
        }
        for cut in 0..8 {
            let bytes = buffer(&whole[..cut], &[], DATA_CONTROL, b"x", 0);
            assert_eq!(read_data(&bytes, DATA_CONTROL), None);
        }
        let error = error_v4(&[]);
        for cut in 0..ERROR_CONTROL {
            let mut bytes = error.clone();
            bytes[4..8].copy_from_slice(&(cut as u32).to_ne_bytes());
            let whole = cut >= 24 + HEADER + 32;
            assert_eq!(read_error(&bytes).is_some(), whole, "{cut}");
        }
    }

    #[test]
    fn lengths_that_lie_do_no_harm() {
        for len in [0, 1, HEADER - 1, HEADER, 4096, usize::MAX, usize::MAX - 7] {
            let mut bytes = message(0, libc::IP_TTL, &[1; 4]);
            bytes[..ALIGN].copy_from_slice(&len.to_ne_bytes());
            let mut seen = 0;
            for_each(&bytes, |_, _, data| {
                assert!(data.len() <= 8);
                seen += 1;
            });
            assert!(seen <= 1);
        }
        let mut bytes = data_v4();
        for field in 0..3 {
            let kept = bytes[field * 4..field * 4 + 4].to_vec();
            bytes[field * 4..field * 4 + 4].fill(0xff);
            let _ = read_data(&bytes, DATA_CONTROL);
            let _ = read_error(&bytes);
            bytes[field * 4..field * 4 + 4].copy_from_slice(&kept);
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for (to, segment) in [("198.51.100.7:1", 0), ("[2001:db8::1]:1", 1400)] {
            let opts = SendOpts { ttl: 64, tos: 0xb8, df: true, segment, local: Local::ANY };
            let mut control = [0xee; SEND_CONTROL];
            let to = to.parse().unwrap();
            let len = write(&mut control, &to, &opts, 0);
            let mut seen = vec![];
            for_each(&control[..len], |level, kind, data| seen.push((level, kind, data.to_vec())));
            let (level, ttl, tos) = if to.is_ipv4() { (0, 2, 1) } else { (41, 52, 67) };
            assert_eq!(seen[0], (level, ttl, 64i32.to_ne_bytes().to_vec()));
            assert_eq!(seen[1], (level, tos, 0xb8i32.to_ne_bytes().to_vec()));
            let run = (segment != 0).then(|| (17, 103, segment.to_ne_bytes().to_vec()));
            assert_eq!(seen.get(2), run.as_ref());
            // By an interface: one more, at the end.
            let longer = write(&mut control, &to, &opts, 7);
            let mut last = None;
            for_each(&control[len..longer], |level, kind, data| {
                last = Some((level, kind, data.to_vec()));
            });
            let info = if to.is_ipv4() {
                (0, 8, [7i32.to_ne_bytes(), [0; 4], [0; 4]].concat())
            } else {
                (41, 50, [[0; 16].as_slice(), &7i32.to_ne_bytes()].concat())
            };
            assert_eq!(last, Some(info));
            // From an address, by the routes; a link-local one by its interface.
            let own =
                if to.is_ipv4() { ["127.0.0.2", "192.0.2.1"] } else { ["2001:db8::2", "fe80::1"] };
            for own in own {
                let local = Local::new(own.parse().unwrap(), 6);
                let longer = write(&mut control, &to, &SendOpts { local, ..opts }, 0);
                for_each(&control[len..longer], |level, _, data| {
                    assert_eq!(
                        (self::local(level, data), level),
                        (Some(local), if to.is_ipv4() { 0 } else { 41 })
                    );
                    let interface = &data[if to.is_ipv4() { 0 } else { 16 }..][..4];
                    assert_eq!(interface, local.interface().to_ne_bytes());
                });
                assert_eq!(longer - len, space(if to.is_ipv4() { 12 } else { 20 }));
            }
        }
    }
}
