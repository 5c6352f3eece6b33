//! Peers against plain lists.

use super::*;
use crate::limits::PEERS_SHARED;

fn room() -> Room {
    Room::new(PEERS_SHARED, [7, 9])
}

fn host(n: u32) -> SocketAddr {
    let [a, b, c, d] = n.to_be_bytes();
    SocketAddr::from(([198, a, b, c], u16::from(d) + 1))
}

fn shown(n: u32) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], n as u16))
}

#[test]
fn one_peer_and_its_other_name() {
    let mut peers = Peers::new(&room());
    assert_eq!(peers.shown(host(1)), None);
    assert_eq!(peers.newest(), None);
    peers.remember(host(1), shown(1));
    assert_eq!(peers.shown(host(1)), Some(shown(1)));
    assert_eq!(peers.shown(host(2)), None);
    peers.remember(host(1), shown(7));
    assert_eq!(peers.shown(host(1)), Some(shown(7)));
    let v6 = SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 2], 53));
    peers.remember(v6, v6);
    assert_eq!(peers.shown(v6), Some(v6));
    assert_eq!(peers.newest(), Some(v6));
}

/// Against a plain list in order of use, through many more endpoints than it holds.
#[test]
fn agrees_with_a_list() {
    let mut peers = Peers::new(&room());
    let mut model: Vec<(u32, u32)> = Vec::new();
    let mut seed = 3u64;
    for step in 0..60_000u32 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let n = (seed >> 33) as u32 % (10 + step / 100);
        let at = model.iter().position(|&(host, _)| host == n);
        if seed >> 63 == 0 {
            match at {
                Some(at) => drop(model.remove(at)),
                None if model.len() == UDP_PEERS_MAX => drop(model.remove(0)),
                None => {}
            }
            model.push((n, step & 0x7fff));
            peers.remember(host(n), shown(step & 0x7fff));
        } else {
            let expected = at.map(|at| {
                let entry = model.remove(at);
                model.push(entry);
                shown(entry.1)
            });
            assert_eq!(peers.shown(host(n)), expected, "step {step}");
        }
        assert_eq!(peers.newest(), model.last().map(|&(_, s)| shown(s)));
    }
    assert_eq!(peers.entries.len(), UDP_PEERS_MAX);
}

#[test]
fn a_hundred_thousand_endpoints_are_bounded_and_the_last_are_known() {
    let mut peers = Peers::new(&room());
    for n in 0..100_000 {
        peers.remember(host(n), host(n));
    }
    assert_eq!((peers.entries.len(), peers.by_host.len()), (UDP_PEERS_MAX, 2 * UDP_PEERS_MAX));
    for n in 100_000 - UDP_PEERS_MAX as u32..100_000 {
        assert_eq!(peers.shown(host(n)), Some(host(n)));
    }
    assert_eq!(peers.shown(host(0)), None);
}

#[test]
fn all_mappings_together_are_bounded_and_none_is_without() {
    let room = room();
    let full = PEERS_SHARED as usize / (UDP_PEERS_MAX - PEERS_OWN);
    let mut mappings: Vec<_> = (0..full + 3).map(|_| Peers::new(&room)).collect();
    for peers in &mut mappings {
        for n in 0..300 {
            peers.remember(host(n), shown(n));
        }
    }
    let total: usize = mappings.iter().map(|peers| peers.entries.len()).sum();
    assert_eq!(total, PEERS_SHARED as usize + mappings.len() * PEERS_OWN);
    // The last has its own few, and replaces the oldest of them.
    let Some(last) = mappings.last_mut() else { panic!() };
    assert_eq!(last.entries.len(), PEERS_OWN);
    assert_eq!(last.shown(host(299)), Some(shown(299)));
    assert_eq!(last.shown(host(291)), None);
    // What ends makes room.
    drop(mappings.remove(0));
    let Some(last) = mappings.last_mut() else { panic!() };
    for n in 0..300 {
        last.remember(host(n), shown(n));
    }
    assert_eq!(last.entries.len(), UDP_PEERS_MAX);
    drop(mappings);
    assert_eq!(room.free.get(), PEERS_SHARED);
}

#[test]
fn open_ones_agree_with_a_list() {
    let flow = |index| FlowId { index, generation: 0 };
    let locals = [1, 2].map(|n| Local::new([192, 0, 2, n].into(), 0));
    let ways = [
        Via::Own,
        Via::Port(flow(1), Local::ANY),
        Via::Port(flow(1), locals[0]),
        Via::Port(flow(1), locals[1]),
        Via::Port(flow(2), locals[0]),
    ];
    let visitors = Room::new(PEERS_SHARED, [3, 4]);
    let mut peers = Peers::new(&room());
    // Those of a mapping that was there before.
    for n in 0..20 {
        peers.note(host(n), Via::Own, host(n), Time(0));
    }
    peers.open(&visitors);
    // Oldest first: (host, via, shown, used).
    let mut model: Vec<_> = (0..20).map(|n| (host(n), Via::Own, host(n), Time(0))).collect();
    let (mut seed, mut now) = (5u64, Time(0));
    for step in 0..40_000u32 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (n, via) = ((seed >> 33) as u32 % 600, ways[(seed >> 20) as usize % 5]);
        now = now + Millis(seed >> 59);
        let at = model.iter().position(|&(h, v, ..)| (h, v) == (host(n), via));
        match seed >> 60 {
            0..6 => {
                let name = at.map_or_else(|| host(1_000_000 + step), |at| model[at].2);
                at.map(|at| model.remove(at));
                model.push((host(n), via, name, now));
                assert!(at.is_some() || peers.is_free(name));
                peers.note(host(n), via, name, now);
            }
            6..9 => {
                // Or the guest has spoken to it first, and it comes to this address from now on.
                let first = via.port().map(|port| Via::Port(port, Local::ANY));
                let at = at.or_else(|| {
                    model.iter().position(|&(h, v, ..)| (h, Some(v)) == (host(n), first))
                });
                let known = at.map(|at| model.remove(at));
                model.extend(known.map(|(h, _, name, _)| (h, via, name, now)));
                assert_eq!(peers.shown_via(host(n), via, now), known.map(|k| k.2));
            }
            9..13 if !model.is_empty() => {
                let (h, v, name, _) = model.remove((seed >> 10) as usize % model.len());
                model.push((h, v, name, now));
                assert_eq!(peers.named(name, now), Some((h, v)));
            }
            13 => {
                at.map(|at| model.remove(at));
                peers.forget(host(n), via);
            }
            14 => {
                model.retain(|&(.., used)| now - used < Millis(20_000));
                peers.forget_idle(now, Millis(20_000));
            }
            _ if step % 50 == 0 => {
                if let Some(port) = via.port() {
                    model.retain(|&(_, v, ..)| v.port() != Some(port));
                    peers.forget_port(port);
                }
            }
            _ => {}
        }
        assert_eq!(peers.entries.len(), model.len(), "step {step}");
        assert_eq!(peers.newest(), model.last().map(|m| m.2), "step {step}");
        assert_eq!(peers.oldest(), model.first().map(|m| m.3), "step {step}");
        let beyond = model.len().saturating_sub(PEERS_OWN) as u32;
        assert_eq!(visitors.free.get(), PEERS_SHARED - beyond);
    }
    for (h, v, name, _) in model {
        assert_eq!(peers.shown_via(h, v, now), Some(name));
    }
}
