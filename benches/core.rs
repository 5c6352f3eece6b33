//! Cost of the pure code: parse, headers, flow lookup, buffers, and a frame's way through the core.
//!
//! `cargo bench --bench core`; with `-- --test` each runs once, which is what CI does.

#![allow(clippy::unwrap_used, missing_docs, reason = "a failed step of a bench is a failed bench")]

#[path = "../tests/zero_copy/driver.rs"]
mod driver;

// Not public, and without a kernel behind it: its file is part of the bench.
#[allow(dead_code, unused_imports, reason = "what a bench has no use for")]
#[path = "../src/worker/token.rs"]
mod token;

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use driver::{Driver, LARGEST, MSS};
use ringtap::arena::{Arena, Chain, Pools, Slot};
use ringtap::config::NetConfig;
use ringtap::flow::key::{FlowKey, Proto};
use ringtap::flow::local::Local;
use ringtap::flow::table::Table;
use ringtap::flow::{Action, Event, FlowId};
use ringtap::frame::build::{self, Out};
use ringtap::frame::segment::Cutter;
use ringtap::frame::{Pair, checksum, parse};
use ringtap::limits::{HEADROOM, SLOT_BYTES};
use ringtap::stack::Stack;
use ringtap::time::Time;
// As `crate::flow` and `crate::limits` of the token's file.
use ringtap::{flow, limits};
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};
use token::{Op, Token};

fn out() -> Out {
    let pair = Pair::V4(Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(10, 0, 2, 100));
    Out { eth_src: [2; 6], eth_dst: [4; 6], pair, ttl: 64, tos: 0, df: true }
}

/// The same way back.
fn to_host() -> Out {
    let pair = Pair::V4(Ipv4Addr::new(10, 0, 2, 100), Ipv4Addr::new(203, 0, 113, 1));
    Out { eth_src: [4; 6], eth_dst: [2; 6], pair, ..out() }
}

fn repr() -> TcpRepr<'static> {
    TcpRepr {
        src_port: 80,
        dst_port: 40_000,
        control: TcpControl::Psh,
        seq_number: TcpSeqNumber(1),
        ack_number: Some(TcpSeqNumber(1)),
        window_len: 0xffff,
        ..build::EMPTY_TCP
    }
}

fn payload(len: usize) -> Slot {
    let mut slot = Arena::new(SLOT_BYTES, 1).unwrap().take().unwrap();
    slot.set_range(HEADROOM, len);
    slot
}

fn frame(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    let mut tcp = payload(LARGEST);
    build::tcp(&mut tcp, &out(), &repr(), MSS as u16);
    let mut slot = payload(1200);
    build::udp(&mut slot, &out(), 53, 40_000, 0);
    let mut v6 = payload(1200);
    let pair = Pair::V6("fd00::1".parse().unwrap(), "fd00::100".parse().unwrap());
    build::udp(&mut v6, &Out { pair, ..out() }, 53, 40_000, 0);
    for (name, frame) in [("tcp", tcp.bytes()), ("udp", slot.bytes()), ("udp v6", v6.bytes())] {
        group.bench_function(BenchmarkId::new("parse", name), |b| {
            b.iter(|| parse(black_box(frame)).unwrap());
        });
    }
    group.bench_function("build tcp", |b| {
        b.iter(|| {
            slot.set_range(HEADROOM, LARGEST);
            build::tcp(black_box(&mut slot), &out(), &repr(), MSS as u16);
        });
    });
    group.bench_function("build udp", |b| {
        b.iter(|| {
            slot.set_range(HEADROOM, 1200);
            build::udp(black_box(&mut slot), &out(), 53, 40_000, 0);
        });
    });
    let bytes = vec![7; LARGEST];
    group.bench_function("checksum 64 KiB", |b| {
        b.iter(|| checksum::fold(checksum::sum(0, black_box(&bytes))));
    });
    let mut piece = vec![0; 2048];
    group.bench_function("cut 64 KiB into 44", |b| {
        b.iter(|| {
            let mut cutter = Cutter::new(black_box(tcp.bytes()), 1500, 1).unwrap();
            while let Some(len) = cutter.next_len() {
                cutter.write(&mut piece[..len]);
            }
        });
    });
    group.finish();
}

fn key(n: u32) -> FlowKey {
    let [_, a, b, c] = n.to_be_bytes();
    let guest = SocketAddr::from(([10, 0, 2, 100], 40_000));
    FlowKey::pair(Proto::Tcp, guest, SocketAddr::from(([100, a, b, c], 443)))
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow lookup");
    for flows in [1, 1000, 100_000] {
        let mut table = Table::new(1 << 17, [1, 2]);
        for n in 0..flows {
            table.insert(key(n), n).unwrap();
        }
        let mut n = 0u32;
        group.bench_function(BenchmarkId::from_parameter(flows), |b| {
            b.iter(|| {
                // Another flow each time, as far apart as the generator throws.
                n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                table.find(black_box(&key((n >> 8) % flows))).unwrap()
            });
        });
    }
    group.finish();
}

fn stack(c: &mut Criterion) {
    let mut group = c.benchmark_group("stack");
    for len in [1024, LARGEST] {
        // A frame of data in, a send and an ACK out.
        let mut driver = Driver::new();
        group.bench_function(BenchmarkId::new("guest to host", len), |b| {
            b.iter(|| driver.up(len));
        });
        // Data in, a frame out, its ACK in.
        let mut driver = Driver::new();
        group.bench_function(BenchmarkId::new("host to guest", len), |b| {
            b.iter(|| driver.down(len));
        });
        assert_eq!(driver.stats().copied_bytes, 0);
    }
    group.finish();
}

/// A connection's whole life without its data: SYN in, connect out; connected, SYN-ACK out; RST in, close
/// out, closed. It bounds the connections per second that the core can carry.
fn connection(c: &mut Criterion) {
    let mut stack = Stack::new(NetConfig::native(), Pools::new().unwrap(), [1, 2], Time(0));
    let guest = Pools::new().unwrap();
    let send = |stack: &mut Stack, src_port, control, seq| {
        let mut slot = guest.large.take().unwrap();
        slot.set_range(HEADROOM, 0);
        let repr = TcpRepr {
            src_port,
            dst_port: 80,
            control,
            seq_number: TcpSeqNumber(seq),
            ack_number: None,
            ..repr()
        };
        build::tcp(&mut slot, &to_host(), &repr, 0);
        stack.handle_frame(slot, Time(0));
    };
    let turn = |stack: &mut Stack| {
        stack.handle_timeout(Time(0));
        let mut last = None;
        while let Some(action) = stack.poll_action(Time(0)) {
            last = Some(action);
        }
        last.expect("an action")
    };
    let mut port = 9999;
    c.bench_function("stack/connection, opened and reset", |b| {
        b.iter(|| {
            port = if port == 60_000 { 10_000 } else { port + 1 };
            send(&mut stack, port, TcpControl::Syn, 1000);
            let action = turn(&mut stack);
            let Action::TcpConnect { flow, .. } = action else { panic!("{action:?}") };
            stack.handle_event(Event::TcpConnected { flow, result: Ok(()) }, Time(0));
            let action = turn(&mut stack);
            assert!(matches!(action, Action::TapWrite { .. }), "{action:?}");
            send(&mut stack, port, TcpControl::Rst, 1001);
            let action = turn(&mut stack);
            assert!(matches!(action, Action::Close { reset: true, .. }), "{action:?}");
            stack.handle_event(Event::Closed { flow }, Time(0));
        });
    });
}

/// A datagram each way through a mapping that exists.
fn udp(c: &mut Criterion) {
    let mut group = c.benchmark_group("stack udp");
    let pools = Pools::new().unwrap();
    let mut stack = Stack::new(NetConfig::native(), pools.clone(), [1, 2], Time(0));
    let host = SocketAddr::from(([203, 0, 113, 1], 53));
    let mut send = || {
        let mut slot = pools.large.take().unwrap();
        slot.set_range(HEADROOM, 1200);
        build::udp(&mut slot, &to_host(), 4000, 53, 0);
        stack.handle_frame(slot, Time(0));
        let mut sent = None;
        while let Some(action) = stack.poll_action(Time(0)) {
            if let Action::DgramSend { flow, to, .. } = action {
                assert_eq!(to, host);
                sent = Some(flow);
            }
        }
        sent.expect("a datagram sent")
    };
    let flow = send();
    group.bench_function("guest to host", |b| b.iter(&mut send));
    group.bench_function("host to guest", |b| {
        b.iter(|| {
            let mut slot = pools.large.take().unwrap();
            slot.set_range(HEADROOM, 1200);
            let (ttl, tos, segment) = (Some(60), 0, 0);
            let event = Event::DgramReceived {
                flow,
                slot,
                from: host,
                local: Local::ANY,
                ttl,
                tos,
                segment,
            };
            stack.handle_event(event, Time(0));
            let action = stack.poll_action(Time(0));
            assert!(matches!(action, Some(Action::TapWrite { .. })), "{action:?}");
            drop(action);
            assert!(stack.poll_action(Time(0)).is_none());
        });
    });
    group.finish();
}

fn arena(c: &mut Criterion) {
    let mut group = c.benchmark_group("arena");
    let arena = Arena::new(4096, 64).unwrap();
    group.bench_function("take and give back", |b| b.iter(|| black_box(arena.take().unwrap())));
    group.bench_function("chain of 16, pushed and popped", |b| {
        b.iter(|| {
            let mut chain = Chain::new();
            for _ in 0..16 {
                chain.push_back(arena.take().unwrap());
            }
            while let Some(slot) = chain.pop_front() {
                black_box(slot);
            }
        });
    });
    group.finish();
}

/// The name of an operation, there and back: each completion pays it once.
fn token(c: &mut Criterion) {
    let mut index = 0;
    c.bench_function("token, packed and unpacked", |b| {
        b.iter(|| {
            index = (index + 1) & 0xff_ffff;
            let token = Token::Sock(Op::Recv, FlowId { index, generation: 7 });
            Token::unpack(black_box(black_box(token).pack())).unwrap()
        });
    });
}

criterion_group!(core, frame, lookup, stack, connection, udp, arena, token);
criterion_main!(core);
