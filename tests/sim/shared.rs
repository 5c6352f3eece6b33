//! Flows that share one arena do not hold each other up.

use ringtap::arena::Pools;
use ringtap::limits::SLOTS_MAX;

use crate::spec::{Fate, FlowSpec, Pace, Spec};
use crate::world::World;

fn spec(flows: Vec<FlowSpec>) -> Spec {
    Spec::plain("shared", 7, flows)
}

/// A host that takes nothing for a minute, and a guest that reads nothing.
fn stuck(bytes: u64) -> FlowSpec {
    let pause = Pace { pause: Some((0, 60_000)), ..crate::spec::FAST };
    FlowSpec {
        host_tx: 500,
        host_read: pause,
        guest_read: pause,
        guest_rx: 30_000,
        // Small segments: a slot each.
        guest_write: Pace { bytes: 100, gap: 1, pause: None },
        ..FlowSpec::plain(bytes, bytes)
    }
}

#[test]
fn one_stuck_among_hundreds() {
    let mut flows = vec![FlowSpec { host_tx: 500_000, ..stuck(200_000) }];
    flows.extend((0..300).map(|_| FlowSpec { start: 10, ..FlowSpec::plain(5_000, 20_000) }));
    let mut world = World::new(&spec(flows), &Pools::new().unwrap());
    world.run();
    // One each for the others, which all start at once.
    assert!(world.peak < 300 + 64, "{} slots", world.peak);
}

#[test]
fn dozens_stuck_and_one_that_flows() {
    let mut flows: Vec<_> = (0..60).map(|_| stuck(30_000)).collect();
    flows.push(FlowSpec { start: 100, ..FlowSpec::plain(2_000_000, 2_000_000) });
    let mut world = World::new(&spec(flows), &Pools::new().unwrap());
    world.run();
    assert!(world.peak < SLOTS_MAX * 3 / 4, "{} slots", world.peak);
    let flowing = world.host.reports.last().unwrap().ended.unwrap();
    assert!(flowing.at.0 < 10_000, "held up until {:?}", flowing.at);
}

/// A SYN flood: hosts answer, the guest never does.
#[test]
fn syn_flood() {
    let gone = FlowSpec { guest_fate: Fate::Vanishes(0), ..FlowSpec::plain(10, 10) };
    let mut flows: Vec<_> = (0..500)
        .map(|i| FlowSpec {
            guest_rx: 1000,
            guest_tx: 1000,
            guest_fate: Fate::Vanishes(1),
            connect: crate::spec::Connect { delay: 2, errno: 0 },
            start: i % 50,
            ..gone
        })
        .collect();
    flows.push(FlowSpec { start: 60, ..FlowSpec::plain(50_000, 50_000) });
    let mut world = World::new(&spec(flows), &Pools::new().unwrap());
    world.run();
    let last = world.host.reports.iter().map(|r| r.ended.unwrap().at).max().unwrap();
    assert!(last.0 < 90_000, "half-open until {last:?}");
}
