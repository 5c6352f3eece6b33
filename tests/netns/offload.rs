//! Guests that switch their offloads off, and on again.

use crate::harness::stream::{self, pair};
use crate::harness::{Bed, Family, With, need};

const LEN: u64 = 64_000_000;

#[test]
fn a_guest_without_offloads() {
    need!("ethtool");
    for mtu in [1500, 65520] {
        let (bed, guest, _proc) = Bed::up(&With::mtu(mtu));
        guest.ns.cmd("ethtool -K tap0 tso off tx off gso off").run();
        for family in Family::BOTH {
            let (inside, outside) = pair(&guest, &bed.remote, family.remote());
            std::thread::scope(|scope| {
                scope.spawn(|| stream::send_all(&inside, 1, LEN));
                scope.spawn(|| stream::send_all(&outside, 2, LEN));
                scope.spawn(|| stream::expect_all(&outside, 1, LEN));
                stream::expect_all(&inside, 2, LEN);
            });
        }
    }
}

#[test]
fn offloads_change_in_mid_stream() {
    need!("ethtool");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
    std::thread::scope(|scope| {
        scope.spawn(|| stream::send_all(&inside, 1, 4 * LEN));
        for part in 0..4 {
            stream::expect(&outside, 1, part * LEN, (part + 1) * LEN);
            let to = if part % 2 == 0 { "off" } else { "on" };
            guest.ns.cmd(&format!("ethtool -K tap0 tx {to} tso {to} gso {to}")).run();
        }
        stream::expect_end(&outside);
    });
}
