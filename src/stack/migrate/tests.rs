//! A connection between two stacks, step by step.

use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::flow::{Errno, Event, Received};
use crate::limits::HEADROOM;
use crate::stack::descriptors::{Descriptors, Share};
use crate::stack::directory::{Directory, Seat};
use crate::stack::testing::*;
use crate::stats::Drop;
use crate::time::Millis;

fn guest() -> SocketAddr {
    SocketAddr::new(GUEST.into(), 4000)
}

fn server() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 7], 80))
}

/// Two workers of a guest that may hold so many descriptors.
fn beds(descriptors: u32) -> (Arc<Directory>, [Bed; 2]) {
    let directory = Directory::new(2, [1, 2]);
    let all = Descriptors::new(descriptors, 2);
    let beds = [0, 1].map(|me| {
        let mut bed = Bed::native();
        bed.stack.share(Seat::new(directory.clone(), me));
        bed.stack.limit(Share::new(all.clone()));
        bed
    });
    (directory, beds)
}

/// The kinds of actions that wait; frames by their flags.
fn kinds(bed: &mut Bed) -> Vec<String> {
    let name = |action: Action| match action {
        Action::TapWrite { slot, .. } => {
            let (_, tcp) = transport(slot.bytes());
            format!("frame {:#04x} of {}", tcp[13], tcp.len() - 4 * usize::from(tcp[12] >> 4))
        }
        Action::TcpSend { chain, .. } => format!("send {}", chain.bytes()),
        Action::TcpRecv { .. } => "receive".into(),
        Action::Migrate { .. } => "migrate".into(),
        Action::Close { .. } => "close".into(),
        other => format!("{other:?}"),
    };
    bed.actions().into_iter().map(name).collect()
}

/// A connection in full course, with 1000 bytes of the host that the guest has not acknowledged; our next number.
fn connection(bed: &mut Bed) -> (FlowId, u32) {
    bed.send(&segment(guest(), server(), 100, 0, 0x02));
    let Some(Action::TcpConnect { flow, .. }) = bed.actions().pop() else { panic!("no connect") };
    bed.stack.handle_event(Event::TcpConnected { flow, result: Ok(()) }, bed.now);
    let Some(Action::TapWrite { slot, .. }) = bed.actions().pop() else { panic!("no answer") };
    let (_, tcp) = transport(slot.bytes());
    let ours = u32::from_be_bytes(tcp[4..8].try_into().unwrap()).wrapping_add(1);
    drop(slot);
    bed.send(&segment(guest(), server(), 101, ours, 0x10));
    assert_eq!(kinds(bed), ["receive"]);
    receive(bed, flow);
    let mut actions = bed.actions();
    let keep = actions.iter().position(|a| matches!(a, Action::TapWrite { .. })).unwrap();
    let Action::TapWrite { slot, .. } = actions.remove(keep) else { unreachable!() };
    bed.stack.handle_event(Event::TapWritten { flow, slot }, bed.now);
    drop(bed.actions());
    (flow, ours.wrapping_add(1000))
}

/// The host has said 1000 bytes.
fn receive(bed: &mut Bed, flow: FlowId) {
    let mut slot = bed.stack.pools().large.take().unwrap();
    slot.set_range(HEADROOM, 1000);
    let result = Received::Data { slot, more: false };
    bed.stack.handle_event(Event::TcpReceived { flow, result }, bed.now);
}

fn cancelled(bed: &mut Bed, flow: FlowId) {
    let result = Received::NoBuffer;
    bed.stack.handle_event(Event::TcpReceived { flow, result }, bed.now);
}

/// Data of the guest.
fn data(bed: &mut Bed, seq: u32, ack: u32, len: usize) {
    let mut tcp = vec![];
    tcp.extend(guest().port().to_be_bytes());
    tcp.extend(server().port().to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(vec![7; len]);
    bed.send(&ip(guest().ip(), server().ip(), 6, &tcp));
}

fn goes(bed: &mut Bed) -> Box<Migrant> {
    match bed.stack.leave(bed.now) {
        Leave::Gone(1, migrant) => migrant,
        other => panic!("{other:?}"),
    }
}

/// Time passes in which the worker looks, and the guest says nothing.
fn hush(bed: &mut Bed) {
    for _ in 0..=MIGRATE_HUSH.0 {
        assert!(matches!(bed.stack.linger(bed.now), Leave::NotYet));
        bed.now = bed.now + Millis(1);
    }
}

#[test]
fn silence_counts_only_while_the_guest_can_be_heard() {
    let (_, [mut a, _]) = beds(100);
    let (flow, _) = connection(&mut a);
    a.stack.set_out(flow, 1, a.now);
    cancelled(&mut a, flow);
    drop(a.actions());
    a.now = a.now + MIGRATE_HUSH;
    assert!(matches!(a.stack.leave(a.now), Leave::NotYet), "the worker was away");
    let others: Vec<_> = (0..SLOTS_MAX).map_while(|_| a.stack.pools().large.take()).collect();
    hush(&mut a);
    assert!(matches!(a.stack.leave(a.now), Leave::NotYet), "nothing could be read");
    drop(others);
    hush(&mut a);
    goes(&mut a);
}

#[test]
fn what_waits_goes_along() {
    let (directory, [mut a, mut b]) = beds(100);
    let (flow, ours) = connection(&mut a);
    a.stack.set_out(flow, 1, a.now);
    assert_eq!(kinds(&mut a), ["migrate"]);
    assert!(matches!(a.stack.leave(a.now), Leave::NotYet), "a receive is under way");
    // What comes goes on meanwhile, both ways, and no more is received.
    receive(&mut a, flow);
    data(&mut a, 101, ours, 500);
    let mut actions = a.actions();
    let Some(Action::TapWrite { slot, keep: Some(_) }) = actions.pop() else { panic!() };
    let Some(Action::TcpSend { chain, .. }) = actions.pop() else { panic!() };
    assert!(actions.is_empty(), "{actions:?}");
    hush(&mut a);
    assert!(matches!(a.stack.leave(a.now), Leave::NotYet), "a send is under way");
    let result = Ok(chain.bytes());
    a.stack.handle_event(Event::TcpSent { flow, chain, result }, a.now);
    assert_eq!(kinds(&mut a), [""; 0]);
    hush(&mut a);
    assert!(matches!(a.stack.leave(a.now), Leave::NotYet), "a frame is being written");
    a.stack.handle_event(Event::TapWritten { flow, slot }, a.now);
    data(&mut a, 601, ours, 0);
    a.now = a.now + Millis(1);
    assert!(matches!(a.stack.leave(a.now), Leave::NotYet), "the guest spoke just now");
    hush(&mut a);
    assert_eq!(kinds(&mut a), [""; 0], "nothing is acknowledged meanwhile");
    let migrant = goes(&mut a);
    assert_eq!((a.stack.stats().flows, a.lent(), a.stack.share.all().free()), (0, 0, 49));
    // What comes for it now is dropped wherever it comes, and not answered by a RST.
    a.send(&segment(guest(), server(), 601, ours, 0x10));
    assert!(matches!(a.actions().as_slice(), [Action::HandOver { worker: 1, .. }]));
    b.send(&segment(guest(), server(), 601, ours, 0x10));
    assert_eq!((kinds(&mut b).len(), b.dropped(Drop::Misplaced)), (0, 1));
    let flow = b.stack.arrive(migrant, b.now).unwrap();
    assert_eq!(b.stack.share.all().free(), 50, "the part of the other is its own");
    // First what the guest's kernel learns the queue from, and says nothing new.
    let acks = |actions: &[Action]| -> Vec<(u32, u32)> {
        let frames = actions.iter().filter_map(|a| match a {
            Action::TapWrite { slot, .. } => Some(transport(slot.bytes()).1),
            _ => None,
        });
        let word = |tcp: &[u8], at| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        frames.map(|tcp| (word(&tcp, 4), word(&tcp, 8))).collect()
    };
    let actions = b.actions();
    assert_eq!(acks(&actions), [(ours.wrapping_sub(1), 101), (ours.wrapping_add(1000), 601)]);
    assert!(actions.iter().any(|a| matches!(a, Action::TcpRecv { .. })), "{actions:?}");
    drop(actions);
    // 1000 bytes wait for the guest's acknowledgement, and come again.
    let again: Vec<_> = (0..100).flat_map(|_| (b.pass(Millis(20)), kinds(&mut b)).1).collect();
    assert!(again.iter().any(|a| a == "frame 0x18 of 1000"), "{again:?}");
    b.send(&segment(guest(), server(), 601, ours.wrapping_add(1000), 0x04));
    assert_eq!(directory.len(), 1);
    drop(kinds(&mut b));
    b.stack.handle_event(Event::Closed { flow }, b.now);
    assert!(directory.is_empty());
}

#[test]
fn it_waits_for_room() {
    let (_, [mut a, mut b]) = beds(100);
    let (flow, _) = connection(&mut a);
    a.stack.set_out(flow, 1, a.now);
    cancelled(&mut a, flow);
    drop(a.actions());
    hush(&mut a);
    let migrant = goes(&mut a);
    let others: Vec<_> = (0..SLOTS_MAX).map_while(|_| b.stack.pools().large.take()).collect();
    let migrant = b.stack.arrive(migrant, b.now).unwrap_err();
    assert_eq!(b.stack.stats().flows, 0);
    drop(others);
    assert!(b.stack.arrive(migrant, b.now).is_ok());
}

#[test]
fn where_the_kernel_holds_on_to_it_it_stays() {
    let (_, [mut a, _]) = beds(100);
    let (flow, ours) = connection(&mut a);
    a.stack.set_out(flow, 1, a.now);
    assert_eq!(kinds(&mut a), ["migrate"]);
    data(&mut a, 101, ours, 500);
    assert!(matches!(a.stack.linger(a.now), Leave::NotYet));
    assert_eq!(kinds(&mut a), ["send 500"]);
    a.now = a.now + MIGRATE_PATIENCE;
    assert!(matches!(a.stack.linger(a.now), Leave::Stays));
    assert_eq!(kinds(&mut a), ["frame 0x10 of 0"], "the receive is still under way");
    cancelled(&mut a, flow);
    assert_eq!(kinds(&mut a), ["receive"]);
    assert!(matches!(a.stack.leave(a.now), Leave::Stays), "nothing is about to go");
}

#[test]
fn one_that_ends_or_is_watched_stays() {
    for case in 0..4 {
        let (directory, [mut a, _]) = beds(100);
        let (flow, ours) = connection(&mut a);
        a.stack.set_out(flow, 1, a.now);
        assert_eq!(kinds(&mut a), ["migrate"]);
        let said = match case {
            // The host has ended.
            0 => {
                let result = Received::Eof;
                a.stack.handle_event(Event::TcpReceived { flow, result }, a.now);
                assert!(matches!(a.stack.leave(a.now), Leave::Stays));
                kinds(&mut a)
            }
            // The guest has.
            1 => {
                cancelled(&mut a, flow);
                a.send(&segment(guest(), server(), 101, ours, 0x11));
                let said = kinds(&mut a);
                assert!(matches!(a.stack.leave(a.now), Leave::Stays));
                assert_eq!(kinds(&mut a), ["receive", "frame 0x10 of 0"]);
                said
            }
            // It is reset: the socket is closed before anybody asks.
            2 => {
                a.send(&segment(guest(), server(), 101, ours, 0x14));
                let said = kinds(&mut a);
                a.stack.stay(a.now);
                said
            }
            // It fails.
            _ => {
                let errno = Errno(libc::ECONNRESET);
                a.stack.handle_event(Event::TcpHangup { flow, errno }, a.now);
                let said = kinds(&mut a);
                a.stack.stay(a.now);
                said
            }
        };
        let expected = ["frame 0x11 of 0", "TcpShutdown", "close", "close"][case];
        assert!(said.iter().any(|s| s.starts_with(expected)), "{case}: {said:?}");
        assert_eq!(directory.len(), usize::from(case < 2), "{case}");
        assert_eq!(a.stack.balance.stayed, 0, "{case}: that is no reason to rest");
        assert_eq!(a.stack.stats().migrated, 0);
    }
}

#[test]
fn a_watch_that_was_cancelled_is_renewed() {
    let (_, [mut a, _]) = beds(100);
    let (flow, ours) = connection(&mut a);
    // The guest has no room: its window is the 14th and 15th byte of TCP.
    let mut shut = segment(guest(), server(), 101, ours, 0x10);
    let window = shut.len() - 6;
    shut[window..window + 2].fill(0);
    a.send(&shut);
    cancelled(&mut a, flow);
    let watches =
        |bed: &mut Bed| kinds(bed).iter().filter(|k| k.starts_with("TcpPollError")).count();
    assert_eq!(watches(&mut a), 1);
    a.stack.set_out(flow, 1, a.now);
    let errno = Errno(libc::ECANCELED);
    a.stack.handle_event(Event::TcpHangup { flow, errno }, a.now);
    assert_eq!(kinds(&mut a), ["migrate"]);
    a.now = a.now + MIGRATE_PATIENCE;
    assert!(matches!(a.stack.linger(a.now), Leave::Stays));
    assert_eq!((watches(&mut a), a.stack.balance.stayed), (1, 1));
}

#[test]
fn without_a_descriptor_it_stays() {
    let (_, [mut a, _]) = beds(2);
    let (flow, _) = connection(&mut a);
    let _held = a.stack.share.all().lend();
    a.stack.set_out(flow, 1, a.now);
    cancelled(&mut a, flow);
    drop(a.actions());
    assert!(matches!(a.stack.leave(a.now), Leave::NotYet));
    a.now = a.now + MIGRATE_PATIENCE;
    assert!(matches!(a.stack.leave(a.now), Leave::Stays));
    assert!(kinds(&mut a).contains(&"receive".into()));
}
