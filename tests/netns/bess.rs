//! `--target-type=bess`: a guest that connects to a socket, one frame per packet.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, socket as unix_socket,
};
use socket2::Socket;

use crate::harness::cmd::{Cmd, PATIENCE, Proc};
use crate::harness::ns::SOCKET_PATIENCE;
use crate::harness::stream::{self, pair};
use crate::harness::{
    Bed, Family, USER, against_slirp, eventually, need, not_slirp, pipe, ringtap,
};

/// slirp4netns with a socket at `path` in the place of a namespace.
fn slirp(bed: &Bed, args: &str, path: &Path) -> Cmd {
    let program = if against_slirp() { "/usr/bin/slirp4netns".into() } else { ringtap() };
    let script = format!(
        "exec -a slirp4netns {} --target-type=bess {args} {}",
        program.display(),
        path.display()
    );
    bed.host.enter_as(USER, Cmd::new("bash -c").arg(script))
}

/// A program that waits at `socket` in the bed's folder.
fn waiting(bed: &Bed, args: &str) -> Proc {
    let path = bed.dir.path("socket");
    let mut proc = slirp(bed, args, &path).start();
    proc.wait_for(&format!("Waiting for connection to {}\n", path.display()));
    proc
}

/// The guest's end.
fn plug(path: &Path) -> Socket {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd: OwnedFd =
        unix_socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    connect(fd.as_raw_fd(), &UnixAddr::new(path).expect("an address")).expect("connect");
    let socket = Socket::from(fd);
    socket.set_read_timeout(Some(SOCKET_PATIENCE)).expect("set a timeout");
    socket.set_write_timeout(Some(SOCKET_PATIENCE)).expect("set a timeout");
    socket
}

/// A whole kernel behind the socket: an ordinary user's, with nothing but a socket and a TAP of its own.
#[test]
fn a_kernel_behind_the_socket() {
    need!("bash", "socat", "udhcpc", "ping");
    let bed = Bed::new();
    let guest = bed.guest();
    let (mut ready, theirs) = pipe();
    let path = bed.dir.path("socket");
    let mut proc = slirp(
        &bed,
        &format!("-6 --enable-seccomp --enable-sandbox -r {}", theirs.as_raw_fd()),
        &path,
    )
    .keep(&theirs)
    .start();
    drop(theirs);
    proc.wait_for("Waiting for connection");
    let wire = format!("UNIX-CONNECT:{},type=5", path.display());
    let tap = "TUN,tun-type=tap,tun-name=tap0,iff-no-pi,iff-up";
    let mut cable = guest.ns.cmd("socat -b 70000").arg(wire).arg(tap).start();
    ready.expect_byte(&mut proc);
    assert!(against_slirp() || !path.exists(), "one guest: nobody else connects");
    eventually("the guest has an interface", || {
        assert!(cable.alive(), "{}", cable.stderr());
        guest.ns.cmd("ip link show tap0").run().success()
    });
    let script = bed.dir.write("told", "#!/bin/sh\n[ \"$1\" = bound ] && echo ip=$ip\nexit 0\n");
    let told = guest.ns.cmd("udhcpc -f -n -q -t 5 -T 2 -i tap0 -s").arg(script).ok();
    assert!(told.contains("ip=10.0.2.15"), "{told}");
    guest
        .ns
        .ip("link set lo up\naddr add 10.0.2.100/24 dev tap0\nroute add default via 10.0.2.2\n");
    guest.ns.cmd("ping -n -c 2 -i 0.1 -W 20 10.0.2.2").ok();
    guest.wait_v6();
    for family in Family::BOTH {
        let (inside, outside) = pair(&guest, &bed.remote, family.remote());
        std::thread::scope(|scope| {
            scope.spawn(|| stream::send_all(&inside, 1, 10_000_000));
            scope.spawn(|| stream::send_all(&outside, 2, 10_000_000));
            scope.spawn(|| stream::expect_all(&outside, 1, 10_000_000));
            stream::expect_all(&inside, 2, 10_000_000);
        });
        // A datagram that leaves in fragments on this side only.
        let (client, server) = (guest.ns.udp(family.any()), bed.remote.udp(family.remote()));
        let to = server.local_addr().expect("an address");
        client.send_to(&[7; 9000], to).expect("send");
        let (len, from) = server.recv_from(&mut [0; 10_000]).expect("receive");
        assert_eq!(len, 9000);
        server.send_to(&[8; 9000], from).expect("send");
        assert_eq!(client.recv(&mut [0; 10_000]).expect("receive"), 9000);
    }
    if !against_slirp() {
        cable.signal(Signal::SIGTERM);
        let done = proc.wait(PATIENCE);
        assert_eq!(done.code(), Some(0), "{done:?}");
    }
}

/// An echo request to the gateway.
fn echo(sequence: u16) -> Vec<u8> {
    let mut frame = vec![0x52, 0x55, 10, 0, 2, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let ip = [0x45, 0, 0, 60, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 2, 100, 10, 0, 2, 2];
    let [hi, lo] = sequence.to_be_bytes();
    let mut icmp = vec![8, 0, 0, 0, 0, 1, hi, lo];
    icmp.resize(40, 0x55);
    frame.extend(summed(&ip, 10));
    frame.extend(summed(&icmp, 2));
    frame
}

/// Puts the Internet checksum (RFC 1071) of all at `at`.
fn summed(bytes: &[u8], at: usize) -> Vec<u8> {
    let words = bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let mut bytes = bytes.to_vec();
    bytes[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes
}

/// The sequence numbers of the answers, `n` of them.
fn answers(socket: &Socket, n: usize) -> Vec<u16> {
    use std::io::Read;
    let mut seen = Vec::new();
    let mut frame = [0; 2000];
    while seen.len() < n {
        let len = (&mut &*socket).read(&mut frame).unwrap_or_else(|e| {
            panic!("answer {} of {n}: {e}; last {:?}", seen.len(), seen.last())
        });
        // Echo replies; it may ask who we are.
        if len >= 42 && frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 0 {
            seen.push(u16::from_be_bytes([frame[40], frame[41]]));
        }
    }
    seen
}

#[test]
fn a_guest_that_does_not_read() {
    need!("bash");
    not_slirp!("waits for it with everything else");
    let bed = Bed::new();
    let mut proc = waiting(&bed, "");
    let guest = plug(&bed.dir.path("socket"));
    let send = |frame: &[u8]| {
        let sent = guest.send(frame).expect("send");
        assert_eq!(sent, frame.len());
    };
    // More than its socket takes, and fewer than may wait.
    for sequence in 0..500 {
        send(&echo(sequence));
    }
    assert_eq!(answers(&guest, 500), (0..500).collect::<Vec<_>>());
    // An empty packet is no end, and one that is no frame is no harm.
    for bytes in [0, 5, 13, 14, 60_000] {
        send(&vec![0xff; bytes]);
    }
    send(&echo(7));
    assert_eq!(answers(&guest, 1), [7]);
    // Far more than may wait: some are lost, in order, and it goes on.
    for sequence in 0..5000 {
        send(&echo(sequence));
    }
    let last = {
        let mut seen = answers(&guest, 500);
        assert!(seen.is_sorted(), "overtaken");
        // What is sent now is behind all that waits.
        send(&echo(6000));
        while seen.last() != Some(&6000) {
            seen.extend(answers(&guest, 1));
        }
        assert!(seen.is_sorted(), "overtaken");
        seen.len()
    };
    println!("{last} of 5001 were answered");
    assert!(proc.alive());
    drop(guest);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
}

#[test]
fn ended_while_it_waits() {
    need!("bash");
    not_slirp!("leaves its socket behind");
    let bed = Bed::new();
    let path = bed.dir.path("socket");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let proc = waiting(&bed, "");
        proc.signal(signal);
        assert_eq!(proc.wait(PATIENCE).signal(), Some(signal as i32));
        assert!(!path.exists());
    }
    let (exit, ours) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    let mut proc = slirp(&bed, &format!("-e {}", exit.as_raw_fd()), &path).keep(&exit).start();
    proc.wait_for("Waiting for connection");
    drop(ours);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert!(!path.exists());
}

#[test]
fn what_is_in_the_way() {
    need!("bash");
    not_slirp!("removes it, whatever it is");
    let bed = Bed::new();
    let path = bed.dir.path("socket");
    let refused = |why: &str| {
        let done = slirp(&bed, "", &path).run();
        assert_eq!(done.code(), Some(1), "{done:?}");
        assert!(
            done.stderr.contains(why) && done.stderr.ends_with("child failed(1)\n"),
            "{done:?}"
        );
    };
    fs::write(&path, "mine").expect("write");
    refused("no socket");
    assert_eq!(fs::read(&path).expect("read"), b"mine");
    fs::remove_file(&path).expect("remove");
    // Left behind by one that was killed.
    let proc = waiting(&bed, "");
    proc.signal(Signal::SIGKILL);
    proc.wait(PATIENCE);
    assert!(fs::metadata(&path).expect("the socket").file_type().is_socket());
    let mut proc = waiting(&bed, "");
    refused("another process has this socket");
    // That was no guest: the one that waits still does.
    assert!(proc.alive());
    let guest = plug(&path);
    guest.send(&echo(1)).expect("send");
    assert_eq!(answers(&guest, 1), [1]);
    let second = std::os::unix::net::UnixStream::connect(&path).expect_err("one guest only");
    assert_eq!(second.kind(), ErrorKind::NotFound);
    proc.signal(Signal::SIGTERM);
    assert_eq!(proc.wait(PATIENCE).signal(), Some(Signal::SIGTERM as i32));
    let path = bed.dir.path("nosuch/socket");
    let done = slirp(&bed, "", &path).run();
    assert_eq!(done.stderr, "child_bess: bind: No such file or directory\nchild failed(1)\n");
}
