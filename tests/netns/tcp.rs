//! TCP: bulk, patience, numbers, and every way to end.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use crate::harness::ns::SOCKET_PATIENCE;
use crate::harness::stream::{self, accept, pair};
use crate::harness::{Bed, Family, With, against_slirp, eventually, in_ci, need, not_slirp};

/// 1 GB in CI, less where someone waits.
fn bulk() -> u64 {
    if in_ci() { 1_000_000_000 } else { 256_000_000 }
}

#[derive(Clone, Copy)]
enum Way {
    /// Guest to host.
    Up,
    /// Host to guest.
    Down,
}

fn carry(mtu: u32, family: Family, way: Way) {
    let (bed, guest, _proc) = Bed::up(&With::mtu(mtu));
    let (inside, outside) = pair(&guest, &bed.remote, family.remote());
    let (from, to) = match way {
        Way::Up => (inside, outside),
        Way::Down => (outside, inside),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| stream::send_all(&from, 1, bulk()));
        stream::expect_all(&to, 1, bulk());
    });
}

macro_rules! bulk_tests {
    ($($name:ident: $mtu:literal $family:ident $way:ident;)*) => {
        $(#[test]
        fn $name() {
            need!();
            carry($mtu, Family::$family, Way::$way);
        })*
    };
}

bulk_tests! {
    bulk_up_mtu_1500_v4: 1500 V4 Up;
    bulk_up_mtu_1500_v6: 1500 V6 Up;
    bulk_down_mtu_1500_v4: 1500 V4 Down;
    bulk_down_mtu_1500_v6: 1500 V6 Down;
    bulk_up_mtu_65520_v4: 65520 V4 Up;
    bulk_up_mtu_65520_v6: 65520 V6 Up;
    bulk_down_mtu_65520_v4: 65520 V4 Down;
    bulk_down_mtu_65520_v6: 65520 V6 Down;
}

/// What a reader leaves lying fills every buffer on the way; a minute later nothing is missing.
fn paused(mtu: u32, way: Way) {
    let (bed, guest, _proc) = Bed::up(&With::mtu(mtu));
    let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
    let (from, to) = match way {
        Way::Up => (inside, outside),
        Way::Down => (outside, inside),
    };
    let len = 100_000_000;
    from.set_write_timeout(Some(Duration::from_secs(150))).expect("set a timeout");
    std::thread::scope(|scope| {
        scope.spawn(|| stream::send_all(&from, 2, len));
        stream::expect(&to, 2, 0, 1_000_001);
        std::thread::sleep(Duration::from_secs(60));
        stream::expect(&to, 2, 1_000_001, len);
        stream::expect_end(&to);
    });
}

#[test]
fn a_reader_on_the_host_pauses_for_a_minute() {
    need!();
    paused(1500, Way::Up);
}

#[test]
fn a_reader_in_the_guest_pauses_for_a_minute() {
    need!();
    paused(65520, Way::Down);
}

#[test]
fn a_thousand_connections_at_once() {
    need!();
    let (bed, guest, proc) = Bed::up(&With::defaults());
    // Sockets only: the program may open other things when it likes.
    let sockets = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", proc.pid())).expect("its files");
        let names = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        names.filter(|name| name.to_string_lossy().starts_with("socket:")).count()
    };
    let before = sockets();
    let listeners = Family::BOTH.map(|family| bed.remote.listen(family.remote()));
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for listener in listeners.iter().cycle().take(1000) {
        let to = listener.local_addr().expect("an address");
        inside.push(guest.ns.connect(to).unwrap_or_else(|e| panic!("connect to {to}: {e}")));
        outside.push(accept(listener));
    }
    assert!(sockets() >= before + 1000);
    // All are open: each carries its own bytes both ways, all at once.
    std::thread::scope(|scope| {
        let send = |ends: &Vec<TcpStream>, seed: u64| {
            for (n, end) in (seed..).zip(ends) {
                stream::send_all(end, n, 10_000);
            }
        };
        let inside = &inside;
        let outside = &outside;
        scope.spawn(move || send(inside, 0));
        scope.spawn(move || send(outside, 5000));
        for (n, (inside, outside)) in inside.iter().zip(outside).enumerate() {
            stream::expect_all(outside, n as u64, 10_000);
            stream::expect_all(inside, 5000 + n as u64, 10_000);
        }
    });
    drop((inside, outside));
    eventually("every socket of an ended conversation is closed", || sockets() <= before);
}

#[test]
fn refused() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let port = {
            let listener = bed.remote.listen(family.remote());
            listener.local_addr().expect("an address")
        };
        let error = guest.ns.connect(port).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family:?}: {error}");
    }
}

#[test]
fn unreachable() {
    need!();
    not_slirp!("lets the guest time out when the host learns it late");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let to = SocketAddr::new(family.unreachable(), 80);
        let real = bed.host.connect(to).expect_err("no way there").kind();
        let kinds = [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
        assert!(kinds.contains(&real), "{family:?}: the host itself gets {real}");
        let error = guest.ns.connect(to).expect_err("no way there");
        assert_eq!(error.kind(), real, "{family:?}");
    }
}

/// What never answers is neither refused nor unreachable: the guest's own kernel gives up, in its
/// own time.
#[test]
fn silence_stays_silence() {
    need!();
    let (_bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let to = SocketAddr::new(family.silent(), 80);
        let socket = guest.ns.socket(to.ip(), socket2::Type::STREAM, None);
        let error =
            socket.connect_timeout(&to.into(), Duration::from_secs(3)).expect_err("nobody there");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{family:?}: {error}");
    }
}

#[test]
fn the_guest_closes_its_half_first() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let (inside, outside) = pair(&guest, &bed.remote, family.remote());
        stream::send_all(&inside, 3, 100_000);
        stream::expect_all(&outside, 3, 100_000);
        // The other half lives as long as it likes.
        for part in 0..3 {
            std::thread::sleep(Duration::from_millis(400));
            stream::send(&outside, 4 + part, 500_000).expect("the half-closed guest reads");
            stream::expect(&inside, 4 + part, 0, 500_000);
        }
        drop(outside);
        stream::expect_end(&inside);
    }
}

#[test]
fn the_host_closes_its_half_first() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        let (inside, outside) = pair(&guest, &bed.remote, family.remote());
        stream::send_all(&outside, 3, 100_000);
        stream::expect_all(&inside, 3, 100_000);
        for part in 0..3 {
            std::thread::sleep(Duration::from_millis(400));
            stream::send(&inside, 4 + part, 500_000).expect("the half-closed host reads");
            stream::expect(&outside, 4 + part, 0, 500_000);
        }
        drop(inside);
        stream::expect_end(&outside);
    }
}

/// Closes with a RST.
fn reset(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).expect("set SO_LINGER");
}

/// Waits for an error on a socket without reading from it.
#[track_caller]
fn expect_reset(socket: &TcpStream) {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let timeout = PollTimeout::try_from(SOCKET_PATIENCE).expect("a timeout");
    assert!(poll(&mut fds, timeout).expect("poll") > 0, "no reset arrives");
    let error = socket.take_error().expect("SO_ERROR").expect("an error");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn reset_by_either_side() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        for by_guest in [true, false] {
            if by_guest && against_slirp() {
                continue; // Closes its socket in peace: the server sees a FIN.
            }
            let (inside, outside) = pair(&guest, &bed.remote, family.remote());
            let (by, other) = if by_guest { (inside, outside) } else { (outside, inside) };
            (&by).write_all(b"hello").expect("send");
            (&other).read_exact(&mut [0; 5]).expect("receive");
            reset(by);
            expect_reset(&other);
        }
    }
}

/// The side that will see the reset has stopped reading long ago: its window is closed.
#[test]
fn reset_at_zero_window() {
    need!();
    not_slirp!("ends with a FIN what the guest has reset");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for by_guest in [true, false] {
        let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
        let (by, other) = if by_guest { (inside, outside) } else { (outside, inside) };
        fill_the_way(&by);
        reset(by);
        expect_reset(&other);
    }
}

/// Sends until nothing more is taken for a second.
fn fill_the_way(socket: &TcpStream) {
    socket.set_write_timeout(Some(Duration::from_secs(1))).expect("set a timeout");
    let error = stream::send(socket, 9, u64::MAX).expect_err("nobody reads");
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
}

/// Resident memory of a process, KiB.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok()).expect("VmRSS")
}

/// What backlogs take goes back to the system when they are gone, and with that the traffic.
#[test]
fn memory_of_a_stall_is_given_back() {
    need!();
    not_slirp!("has few and fixed buffers");
    let (bed, guest, proc) = Bed::up(&With::defaults());
    let pairs: Vec<_> = (0..8).map(|_| pair(&guest, &bed.remote, Family::V4.remote())).collect();
    let before = resident(proc.pid());
    std::thread::scope(|scope| {
        for (inside, _) in &pairs {
            scope.spawn(|| fill_the_way(inside));
        }
    });
    let full = resident(proc.pid());
    assert!(full > before + 4096, "nothing waits: {before} KiB, then {full}");
    for (inside, outside) in pairs {
        reset(inside);
        expect_reset(&outside);
    }
    let least = before + (full - before) / 4;
    eventually("the memory is given back", || resident(proc.pid()) < least);
}

/// A reset that the stopped side sends, at the other side's full window.
#[test]
fn reset_by_a_side_that_does_not_read() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for by_guest in [true, false] {
        let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
        let (by, other) = if by_guest { (inside, outside) } else { (outside, inside) };
        fill_the_way(&other);
        reset(by);
        expect_reset(&other);
    }
}

#[test]
fn a_conversation_of_single_bytes() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    let (inside, outside) = pair(&guest, &bed.remote, Family::V6.remote());
    inside.set_nodelay(true).expect("set TCP_NODELAY");
    outside.set_nodelay(true).expect("set TCP_NODELAY");
    // A conversation of one byte each way, a thousand times: latency, not volume.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..1000_u32 {
                let mut byte = [0];
                (&outside).read_exact(&mut byte).expect("receive");
                assert_eq!(byte[0], n as u8);
                (&outside).write_all(&[byte[0] ^ 0xff]).expect("send");
            }
            outside.shutdown(Shutdown::Both).expect("shut down");
        });
        for n in 0..1000_u32 {
            (&inside).write_all(&[n as u8]).expect("send");
            let mut byte = [0];
            (&inside).read_exact(&mut byte).expect("receive");
            assert_eq!(byte[0], n as u8 ^ 0xff);
        }
        stream::expect_end(&inside);
    });
}
