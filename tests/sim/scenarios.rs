//! Scenarios by seed: the seed chooses one, and all its numbers.

use crate::link::Faults;
use crate::prng::Rng;
use crate::spec::{Connect, End, FAST, Fate, FlowSpec, Mss, Pace, Spec};

/// From a seed to a run.
pub fn from_seed(seed: u64) -> Spec {
    let mut rng = Rng::new(seed);
    let rng = &mut rng;
    let mut spec = Spec {
        name: "",
        seed,
        mtu: rng.pick(&[1500, 1500, 1280, 9000, 65520]),
        tso: rng.chance(700),
        up: Faults::default(),
        down: Faults::default(),
        mend: u64::MAX / 2,
        tap_delay: rng.pick(&[0, 0, 0, 0, 3]),
        wrap: rng.chance(300),
        limit: 4 * 3_600_000,
        flows: vec![],
    };
    let scenarios: &[fn(&mut Spec, &mut Rng)] = &[
        plain,
        lossy,
        reordering,
        tiny_windows,
        zero_windows,
        slow_host,
        half_closes,
        resets,
        vanishing,
        connects,
        options,
        many,
        anything,
    ];
    scenarios[(rng.below(scenarios.len() as u64)) as usize](&mut spec, rng);
    for flow in &mut spec.flows {
        // Byte by byte is slow enough to run when there are some thousand of them.
        let most = 3000;
        flow.host_bytes = flow.host_bytes.min(flow.guest_rx as u64 * most);
        flow.guest_bytes = flow.guest_bytes.min(flow.host_tx * most);
        for (pace, bytes) in [
            (&mut flow.guest_write, flow.guest_bytes),
            (&mut flow.guest_read, flow.host_bytes),
            (&mut flow.host_write, flow.host_bytes),
            (&mut flow.host_read, flow.guest_bytes),
        ] {
            pace.bytes = pace.bytes.max(bytes / most);
        }
    }
    if spec.wrap {
        // Only the first flow's number can be chosen.
        spec.flows[0].start = 0;
    }
    spec
}

fn bytes(rng: &mut Rng) -> (u64, u64) {
    (rng.magnitude(300_000), rng.magnitude(300_000))
}

fn flow(rng: &mut Rng) -> FlowSpec {
    let (up, down) = bytes(rng);
    let mut flow = FlowSpec::plain(up, down);
    flow.v6 = rng.chance(400);
    flow.nagle = rng.chance(300);
    flow.ack_delay = rng.chance(300);
    flow.start = rng.pick(&[0, 0, 0, 7, 500]);
    flow.host_delay = rng.pick(&[0, 0, 0, 2, 20]);
    flow.connect.delay = rng.pick(&[0, 0, 1, 30, 2500]);
    flow.guest_end = ending(rng);
    flow.host_end = ending(rng);
    if (flow.guest_end, flow.host_end) == (End::Last, End::Last) {
        // Each waiting for the other is not an end.
        flow.guest_end = End::Done;
    }
    flow
}

fn ending(rng: &mut Rng) -> End {
    match rng.below(5) {
        0 | 1 => End::Done,
        2 | 3 => End::Last,
        _ => End::Later(rng.magnitude(5_000)),
    }
}

fn pace(rng: &mut Rng) -> Pace {
    Pace { bytes: 1 + rng.magnitude(30_000), gap: rng.magnitude(30), pause: None }
}

fn plain(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "plain";
    for _ in 0..rng.range(1, 4) {
        spec.flows.push(flow(rng));
    }
}

fn lossy(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "lossy";
    for faults in [&mut spec.up, &mut spec.down] {
        if rng.chance(800) {
            faults.loss = rng.magnitude(100);
        }
        if rng.chance(300) {
            faults.truncate = rng.magnitude(30);
        }
        faults.corrupt = rng.magnitude(30);
        faults.delay = rng.pick(&[0, 0, 1, 10]);
    }
    for _ in 0..rng.range(1, 3) {
        spec.flows.push(flow(rng));
    }
}

fn reordering(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "reordering";
    for faults in [&mut spec.up, &mut spec.down] {
        faults.reorder = rng.magnitude(300);
        faults.duplicate = rng.magnitude(300);
        faults.delay = rng.pick(&[0, 1, 10]);
    }
    for _ in 0..rng.range(1, 3) {
        spec.flows.push(flow(rng));
    }
}

/// From one byte to a segment.
fn tiny_windows(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "tiny windows";
    for _ in 0..rng.range(1, 2) {
        let mut flow = flow(rng);
        flow.guest_rx = 1 + rng.magnitude(1459) as usize;
        flow.host_bytes = rng.magnitude(flow.guest_rx as u64 * 200);
        if rng.chance(500) {
            flow.guest_read = pace(rng);
            flow.guest_read.bytes = flow.guest_read.bytes.max(flow.host_bytes / 200 + 1);
        }
        spec.flows.push(flow);
    }
}

/// Readers that stop, some for minutes, and go on.
fn zero_windows(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "zero windows";
    if rng.chance(300) {
        spec.down.loss = rng.magnitude(50);
        spec.up.loss = rng.magnitude(50);
    }
    for _ in 0..rng.range(1, 3) {
        let mut flow = flow(rng);
        flow.guest_rx = 1 + rng.magnitude(60_000) as usize;
        flow.host_bytes = rng.magnitude(200_000);
        let pause = rng.magnitude(900_000);
        flow.guest_read.pause = Some((rng.magnitude(flow.host_bytes + 1), pause));
        spec.flows.push(flow);
    }
}

fn slow_host(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "slow host";
    for _ in 0..rng.range(1, 3) {
        let mut flow = flow(rng);
        flow.host_tx = 1 + rng.magnitude(60_000);
        flow.host_read = pace(rng);
        flow.host_read.bytes = flow.host_read.bytes.max(flow.guest_bytes / 300 + 1);
        flow.host_write = pace(rng);
        flow.host_write.bytes = flow.host_write.bytes.max(flow.host_bytes / 300 + 1);
        if rng.chance(500) {
            let pause = rng.magnitude(300_000);
            flow.host_read.pause = Some((rng.magnitude(flow.guest_bytes + 1), pause));
        }
        if rng.chance(300) {
            flow.guest_write = pace(rng);
            flow.guest_write.bytes = flow.guest_write.bytes.max(flow.guest_bytes / 300 + 1);
        }
        spec.flows.push(flow);
    }
}

/// One side ends at once, the other speaks for a long time.
fn half_closes(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "half-closes";
    let mut flow = flow(rng);
    let long = 1 + rng.magnitude(4_000_000);
    if rng.chance(500) {
        flow.guest_bytes = rng.magnitude(2000);
        flow.guest_end = End::Done;
        flow.host_end = End::Later(long);
        flow.host_write =
            Pace { bytes: 1 + flow.host_bytes / 50, gap: rng.magnitude(60_000), pause: None };
    } else {
        flow.host_bytes = rng.magnitude(2000);
        flow.host_end = End::Done;
        flow.guest_end = End::Later(long);
        flow.guest_write =
            Pace { bytes: 1 + flow.guest_bytes / 50, gap: rng.magnitude(60_000), pause: None };
    }
    spec.limit *= 4;
    spec.flows.push(flow);
}

fn resets(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "resets";
    if rng.chance(300) {
        spec.up.loss = rng.magnitude(100);
        spec.down.loss = rng.magnitude(100);
    }
    for _ in 0..rng.range(1, 3) {
        let mut flow = flow(rng);
        let at = Fate::Resets(rng.magnitude(20_000));
        if rng.chance(500) {
            flow.guest_fate = at;
        } else {
            flow.host_fate = at;
        }
        flow.guest_read = pace(rng);
        flow.host_read = pace(rng);
        flow.host_tx = 1 + rng.magnitude(60_000);
        if rng.chance(500) {
            // At zero window.
            flow.guest_rx = 1 + rng.magnitude(30_000) as usize;
            flow.guest_read.pause = Some((rng.magnitude(20_000), 50_000));
        }
        if rng.chance(300) {
            flow.host_read.pause = Some((rng.magnitude(20_000), 50_000));
        }
        spec.flows.push(flow);
    }
}

fn vanishing(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "vanishing";
    for _ in 0..rng.range(1, 3) {
        let mut flow = flow(rng);
        let at = Fate::Vanishes(rng.magnitude(20_000));
        if rng.chance(600) {
            flow.guest_fate = at;
        } else {
            flow.host_fate = at;
        }
        flow.guest_read = pace(rng);
        flow.host_read = pace(rng);
        if rng.chance(500) {
            flow.guest_rx = 1 + rng.magnitude(30_000) as usize;
            flow.guest_read.pause = Some((rng.magnitude(20_000), 50_000));
        }
        spec.flows.push(flow);
    }
}

/// Refused, unreachable, slow, given up before they end.
fn connects(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "connects";
    for _ in 0..rng.range(1, 4) {
        let mut flow = flow(rng);
        let errno = rng.pick(&[
            0,
            libc::ECONNREFUSED,
            libc::EHOSTUNREACH,
            libc::ENETUNREACH,
            libc::ETIMEDOUT,
            libc::EMFILE,
        ]);
        flow.connect = Connect { delay: rng.magnitude(10_000), errno };
        if rng.chance(300) {
            flow.guest_fate = Fate::Resets(rng.magnitude(10_000));
        }
        spec.flows.push(flow);
    }
}

fn options(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "options";
    if rng.chance(300) {
        spec.down.loss = rng.magnitude(50);
    }
    for _ in 0..rng.range(1, 3) {
        let mut flow = flow(rng);
        flow.mss = match rng.below(3) {
            0 => Mss::Absent,
            1 => Mss::Is(rng.magnitude(65535) as u16),
            _ => Mss::Keep,
        };
        if let Mss::Is(n) = flow.mss {
            flow.host_bytes = flow.host_bytes.min(u64::from(n.max(28)) * 1000);
        }
        flow.scale = rng.chance(500);
        flow.guest_rx = 1 + rng.magnitude(400_000) as usize;
        flow.host_bytes = flow.host_bytes.min(flow.guest_rx as u64 * 500);
        spec.flows.push(flow);
    }
}

/// Many flows share the arena, some of them stuck.
fn many(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "many";
    spec.wrap = false;
    for i in 0..rng.range(20, 60) {
        let mut flow = flow(rng);
        flow.guest_bytes = rng.magnitude(30_000);
        flow.host_bytes = rng.magnitude(30_000);
        flow.guest_rx = 16_000;
        flow.guest_tx = 16_000;
        if i % 10 == 0 {
            flow.host_tx = 1000;
            flow.host_read.pause = Some((0, 30_000));
            flow.guest_read.pause = Some((0, 30_000));
            (flow.guest_bytes, flow.host_bytes) = (100_000, 100_000);
        }
        spec.flows.push(flow);
    }
}

/// All at once.
fn anything(spec: &mut Spec, rng: &mut Rng) {
    spec.name = "anything";
    for faults in [&mut spec.up, &mut spec.down] {
        *faults = Faults {
            loss: rng.magnitude(60),
            duplicate: rng.magnitude(100),
            reorder: rng.magnitude(100),
            truncate: rng.magnitude(20),
            corrupt: rng.magnitude(20),
            delay: rng.magnitude(20),
        };
    }
    for _ in 0..rng.range(1, 4) {
        let mut flow = flow(rng);
        if rng.chance(500) {
            flow.guest_rx = 1 + rng.magnitude(60_000) as usize;
        }
        flow.host_bytes = flow.host_bytes.min(flow.guest_rx as u64 * 200);
        if rng.chance(300) {
            flow.host_tx = 1 + rng.magnitude(60_000);
        }
        flow.guest_read = if rng.chance(500) { FAST } else { pace(rng) };
        flow.host_read = if rng.chance(500) { FAST } else { pace(rng) };
        for pace in [&mut flow.guest_read, &mut flow.host_read] {
            pace.bytes = pace.bytes.max(1000);
        }
        if rng.chance(300) {
            flow.guest_read.pause = Some((rng.magnitude(50_000), rng.magnitude(200_000)));
        }
        if rng.chance(300) {
            flow.host_read.pause = Some((rng.magnitude(50_000), rng.magnitude(200_000)));
        }
        match rng.below(8) {
            0 => flow.guest_fate = Fate::Resets(rng.magnitude(100_000)),
            1 => flow.host_fate = Fate::Resets(rng.magnitude(100_000)),
            2 => flow.guest_fate = Fate::Vanishes(rng.magnitude(100_000)),
            _ => {}
        }
        flow.scale = rng.chance(800);
        spec.flows.push(flow);
    }
}
