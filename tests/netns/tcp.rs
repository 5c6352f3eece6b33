//! TCP: bulk, patience, numbers, and every way to end.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use crate::harness::ns::SOCKET_PATIENCE;
use crate::harness::stream::{self, accept, pair};
use crate::harness::{Bed, Family, With, eventually, in_ci, need, not_slirp};

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
