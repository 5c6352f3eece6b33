//! Control messages and addresses of datagrams as bytes, read and written without a pointer.
//!
//! The kernel's `struct cmsghdr` is a `size_t` length and two `int`s, each message padded to the size
//! of a `long` (libc's own type differs from it in musl, so it is not used).
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::flow::{DgramError, Errno, SendOpts};
use crate::limits::HEADROOM;

const ALIGN: usize = size_of::<usize>();
const HEADER: usize = ALIGN + 8;

/// Bytes of a control message with `n` bytes of data.
const fn space(n: usize) -> usize {
    HEADER + n.next_multiple_of(ALIGN)
}

/// Room for the control messages of a send: TTL, TOS, segment size.
pub(super) const SEND_CONTROL: usize = 3 * space(4);

/// Bytes of `struct io_uring_recvmsg_out`, in front of all that a multishot `recvmsg` writes.
const OUT: usize = 16;
/// Room for the sender's address: `struct sockaddr_in6` is 28 bytes.
pub(super) const NAME: usize = 32;
/// Room for the control messages of a datagram: TTL, TOS, and the segment size of a run.
pub(super) const DATA_CONTROL: usize = HEADROOM - OUT - NAME;
/// Room for those of an error: TTL and TOS as well, and `IP_RECVERR` with `struct sock_extended_err` and
/// the offender's address. Too little would cut it off, and with it the error.
pub(super) const ERROR_CONTROL: usize = 192;

// Payload begins where the headers to be written in front of it have just room.
const _: () = assert!(OUT + NAME + DATA_CONTROL >= HEADROOM);
const _: () = assert!(DATA_CONTROL >= 3 * space(4));
const _: () = assert!(ERROR_CONTROL >= 2 * space(4) + space(16 + 28));

/// A datagram that a multishot `recvmsg` has put into a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) from: SocketAddr,
    pub(super) ttl: Option<u8>,
    pub(super) tos: u8,
    pub(super) segment: u16,
    /// Where the payload begins, and its length.
    pub(super) start: usize,
    pub(super) len: usize,
}

/// Writes the control messages for a datagram to `to` and says how many bytes they take.
pub(super) fn write(control: &mut [u8; SEND_CONTROL], to: &SocketAddr, opts: &SendOpts) -> usize {
    let (level, ttl, tos) = match to {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_TTL, libc::IP_TOS),
        SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS),
    };
    let mut at = 0;
    let mut put = |level: i32, kind: i32, data: &[u8]| {
        let message = &mut control[at..at + space(4)];
        message.fill(0);
        message[..ALIGN].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        message[ALIGN..ALIGN + 4].copy_from_slice(&level.to_ne_bytes());
        message[ALIGN + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER..HEADER + data.len()].copy_from_slice(data);
        at += space(4);
    };
    put(level, ttl, &i32::from(opts.ttl).to_ne_bytes());
    put(level, tos, &i32::from(opts.tos).to_ne_bytes());
    if opts.segment != 0 {
        put(libc::SOL_UDP, libc::UDP_SEGMENT, &opts.segment.to_ne_bytes());
    }
    at
}

/// Reads what a multishot `recvmsg` with [`NAME`] and [`DATA_CONTROL`] has written.
pub(super) fn read_data(buffer: &[u8]) -> Option<Received> {
    let parts = parts(buffer, DATA_CONTROL)?;
    let mut received = Received {
        from: address(parts.name)?,
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
    let mut error = None;
    for_each(parts.control, |level, kind, data| {
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
            echo_seq: match *payload {
                [_, _, _, _, _, _, hi, lo, ..] => u16::from_be_bytes([hi, lo]),
                _ => 0,
            },
        });
    });
    error
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

/// A `struct sockaddr_in` or `sockaddr_in6`.
fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let ip = match family {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}
