//! Two builds of ringtap on one machine, alternated A B B A so that a drift favours neither.

use crate::load::Figure;
use crate::options::Options;
use crate::report::{Machine, Series, Spread};
use crate::revision::{self, Build, Named};
use crate::rivals::{Forwarder, version};
use crate::work::Work;
use crate::{Res, idle_before, need_root, report};

/// The fewest rounds that can carry a verdict. Were the two alike, all of five rounds would agree by
/// chance once in sixteen times.
const ROUNDS_LEAST: usize = 5;

/// Measures both and says what the spread allows to say.
pub(crate) fn run(a: &Named, b: &Named, options: &Options) -> Res<()> {
    need_root()?;
    if options.perf.is_some() || !options.only.is_empty() {
        return Err("ab: --perf and --only are for tcp".into());
    }
    let builds = revision::both(a, b)?;
    let [a, b] = &builds;
    let mut machine = Machine::look(&a.path);
    let fact = |build: &Build, more: &[String]| {
        [&[format!("{}, {}", build.what, version(&build.path))], more].concat().join(" ")
    };
    machine.add("A", fact(a, &options.side_args[0]));
    machine.add("B", fact(b, &options.side_args[1]));
    print!("{machine}");
    let side = |label, build: &Build, more: &[String]| {
        let args = [&options.ringtap_args, more].concat();
        Forwarder::ringtap(label, &build.path, &args)
    };
    let [more_a, more_b] = &options.side_args;
    let sides = [side("A", a, more_a), side("B", b, more_b)];
    let mut series = Vec::new();
    for &mtu in &options.mtus {
        for load in Work::Tcp.loads(options) {
            series.extend(sides.iter().map(|s| Series::new(s.label(), mtu, &load)));
        }
    }
    let mut idle = Vec::new();
    for round in 0..options.rounds {
        idle.push(idle_before(round, options.rounds)?);
        for pair in series.chunks_mut(2) {
            for i in [0, 1, 1, 0] {
                let result = options.cell(&sides[i], &pair[i]).run();
                report::progress(&pair[i], &result);
                pair[i].runs.push(result);
            }
        }
    }
    println!();
    for pair in series.chunks(2) {
        print_pair(pair);
    }
    report::idle_line(&idle);
    report::save("ab", &machine, options, &idle, &series)?;
    match series.iter().map(Series::failures).sum::<usize>() {
        0 => Ok(()),
        n => Err(format!("{n} measurements failed (listed above)")),
    }
}

fn print_pair(pair: &[Series]) {
    let [a, b] = pair else { return };
    println!("tcp, {}: median (min..max)", a.what());
    for &Figure { key, head: what, unit, more } in a.load.figures() {
        let text = |s: &Series| {
            Spread::of(s.figures(key).into_iter().flatten().map(|n| n * unit))
                .map_or_else(|| "-".into(), |s| s.to_string())
        };
        let verdict = verdict(&a.figures(key), &b.figures(key), more);
        println!("  {what:<9} A {:<28} B {:<28} {verdict}", text(a), text(b));
    }
    report::failures(pair);
    println!();
}

/// Compares two runs each per round. A difference counts only when every round shows it, and it is larger than
/// what one and the same binary differs from itself within a round.
fn verdict(a: &[Option<f64>], b: &[Option<f64>], more_is_better: bool) -> String {
    let (mut effects, mut noise) = (Vec::new(), Vec::new());
    for (a, b) in a.chunks(2).zip(b.chunks(2)) {
        if let ([Some(a1), Some(a2)], [Some(b1), Some(b2)]) = (a, b) {
            effects.push((b1 + b2) / (a1 + a2) - 1.0);
            noise.extend([(a1 / a2).ln().abs(), (b1 / b2).ln().abs()]);
        }
    }
    let rounds = effects.len();
    let (Some(effect), Some(noise)) = (Spread::of(effects), Spread::of(noise)) else {
        return "no complete round".into();
    };
    let percent = format!("B {:+.1}%", effect.median * 100.0);
    let own = format!("same binary differs by {:.1}%", noise.median * 100.0);
    if rounds < ROUNDS_LEAST {
        return format!(
            "{percent}; no verdict: {rounds} complete rounds, {ROUNDS_LEAST} are needed"
        );
    }
    let agreed = effect.min > 0.0 || effect.max < 0.0;
    if !agreed || effect.median.abs() <= noise.median {
        return format!("{percent}; no verdict: within the spread ({own})");
    }
    let better = (effect.median > 0.0) == more_is_better;
    format!("{percent}: B is {} ({own})", if better { "better" } else { "worse" })
}

/// The verdicts, on numbers known beforehand (`--test`).
pub(crate) fn self_check() -> Res<()> {
    let some =
        |numbers: &[f64]| -> Vec<Option<f64>> { numbers.iter().copied().map(Some).collect() };
    let a = some(&[10.0, 10.1, 10.0, 9.9, 10.0, 10.0, 10.1, 10.0, 10.0, 10.0]);
    let faster: Vec<_> = a.iter().map(|n| n.map(|n| n * 1.2)).collect();
    let mut mixed = faster.clone();
    mixed[0] = Some(5.0);
    mixed[1] = Some(5.0);
    let mut failed = faster.clone();
    failed[3] = None;
    for (b, more, end) in [
        (&faster, true, "B is better"),
        (&faster, false, "B is worse"),
        (&a, true, "no verdict: within the spread"),
        (&mixed, true, "no verdict: within the spread"),
        (&failed, true, "no verdict: 4 complete rounds"),
    ] {
        let said = verdict(&a, b, more);
        if !said.contains(end) {
            return Err(format!("ab: {said:?} where {end:?} was due"));
        }
    }
    Ok(())
}
