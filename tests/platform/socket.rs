//! Host sockets under the ring: connect, reset, ping.

#![allow(unsafe_code)]

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::opcode;
use io_uring::types::Fd;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::bed::{Ring, belief, guest, ip, skip};

fn tcp() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap()
}

/// Submits a connect; the address is gone when this returns, which is allowed.
fn connect(ring: &mut Ring, socket: &Socket, to: &str) {
    let addr = Box::new(SockAddr::from(to.parse::<SocketAddr>().unwrap()));
    let entry = opcode::Connect::new(Fd(socket.as_raw_fd()), addr.as_ptr().cast(), addr.len());
    ring.push(entry.build(), 0);
}

#[test]
fn connect_errors_are_told_apart() {
    belief(|| {
        let mut ring = Ring::new(64);
        ip("addr add 198.51.100.1/24 dev lo");
        ip("route add prohibit 203.0.113.1");
        ip("route add unreachable 203.0.113.2");
        let listener = TcpListener::bind("198.51.100.1:0").unwrap();
        let open = listener.local_addr().unwrap().to_string();
        for (to, want) in [
            (open.as_str(), 0),
            ("198.51.100.1:1", libc::ECONNREFUSED),
            ("192.0.2.1:80", libc::ENETUNREACH),
            ("203.0.113.1:80", libc::EACCES),
            ("203.0.113.2:80", libc::EHOSTUNREACH),
        ] {
            let socket = tcp();
            connect(&mut ring, &socket, to);
            assert_eq!(ring.next().res, -want, "{to}");
        }
        "refused, ENETUNREACH, EACCES (prohibit), EHOSTUNREACH".into()
    });
}

#[test]
fn cancelled_connect_completes_and_lives_on_until_closed() {
    belief(|| {
        // Nobody answers on this TAP.
        let _tap = guest(0, 1500);
        let mut ring = Ring::new(64);
        let socket = tcp();
        connect(&mut ring, &socket, "10.0.2.2:80");
        ring.quiet();
        let (count, cqe) = ring.cancel_one(socket.as_raw_fd());
        assert_eq!((count, cqe.res), (1, -libc::ECANCELED));
        let again = socket.connect(&"10.0.2.2:80".parse::<SocketAddr>().unwrap().into());
        assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EALREADY));
        "ECANCELED, and the socket is still connecting (EALREADY)".into()
    });
}

#[test]
fn poll_for_nothing_tells_of_a_reset_and_of_a_fin() {
    belief(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ring = Ring::new(64);
        let mut seen = vec![];
        for reset in [true, false] {
            let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut theirs, _) = listener.accept().unwrap();
            ring.push(opcode::PollAdd::new(Fd(ours.as_raw_fd()), 0).build(), 0);
            theirs.write_all(b"data").unwrap();
            ring.quiet();
            if reset {
                SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(theirs);
            let cqe = ring.next();
            let error = ours.take_error().unwrap().and_then(|e| e.raw_os_error());
            seen.push((cqe.res & i32::from(libc::POLLERR | libc::POLLHUP) != 0, error));
            // Unlike poll(2), the ring tells of POLLRDHUP unasked: a FIN ends the watch, with no error.
            assert!(reset || cqe.res == i32::from(libc::POLLRDHUP), "{cqe:?}");
        }
        assert_eq!(seen, [(true, Some(libc::ECONNRESET)), (false, None)]);
        "data does not wake it, a reset does (SO_ERROR tells), a FIN does too (no error)".into()
    });
}

#[test]
fn ping_socket_replaces_the_identifier() {
    belief(|| {
        // Closed for everyone in a new namespace ("1 0").
        if let Err(e) = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0") {
            skip(&format!("ping_group_range: {e}"));
            return "not tried".into();
        }
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).unwrap();
        let to: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.send_to(&[8, 0, 0, 0, 0x12, 0x34, 0, 7, 1, 2, 3], &to.into()).unwrap();
        let ident = socket.local_addr().unwrap().as_socket().unwrap().port();
        let mut answer = [std::mem::MaybeUninit::new(0u8); 64];
        let len = socket.recv(&mut answer).unwrap();
        // SAFETY: all 64 bytes were initialised above.
        let answer = answer.map(|b| unsafe { b.assume_init() });
        // An echo reply, without IP header, under the socket's own identifier; sequence and data
        // are ours.
        assert_eq!(len, 11);
        assert_eq!(answer[0], 0);
        assert_eq!(answer[4..6], ident.to_be_bytes());
        assert_ne!(ident, 0);
        assert_eq!(answer[6..11], [0, 7, 1, 2, 3]);
        format!("0x1234 became {ident:#06x}, the socket's port")
    });
}
