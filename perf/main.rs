//! The end-to-end lab: what a user's stream gets, through ringtap and through its rivals.
//!
//! `cargo bench --bench perf -- VERB`. A verb runs *rounds* of *cells*. A cell is one measurement: a fresh bed
//! of namespaces (`bed`), one forwarder attached to the guest (`rivals`), one load (`load`), and one
//! JSON object that comes back (`cell`). `report` prints them, `ab` compares two builds, `plot`
//! draws.
//!
//! Needs root for the bed; every forwarder runs as an ordinary user in it. Nothing outside the bed is
//! touched and nothing of it outlives a cell, however this program ends.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

mod ab;
mod all;
mod bed;
mod cell;
mod load;
mod options;
mod plot;
mod proc;
mod report;
mod revision;
mod rivals;

use cell::{Cell, Direction};
use load::Load;
use options::{Options, Verb};
use report::{Machine, Series};

/// Failures are sentences for the operator or for the report: nobody matches on them.
type Res<T> = Result<T, String>;

/// Puts what was being done in front of what went wrong.
trait Context<T> {
    /// `what: error`.
    fn context(self, what: impl std::fmt::Display) -> Res<T>;
}

impl<T, E: std::fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl std::fmt::Display) -> Res<T> {
        self.map_err(|e| format!("{what}: {e}"))
    }
}

/// The least share of the processors, in percent, that must be idle before a round for its numbers to
/// mean much.
const IDLE_LEAST: f64 = 95.0;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    // Not for people: the stages of a cell (see `cell` and `bed`).
    if let Some(stage) = args.first().and_then(|a| a.to_str()).and_then(|a| a.strip_prefix("__")) {
        return finish(bed::stage(stage, &args[1..]));
    }
    finish(options::parse(args).and_then(|verb| match verb {
        Verb::Help => {
            print!("{}", options::USAGE);
            Ok(())
        }
        Verb::Check => check(),
        Verb::Tcp(options) => tcp(&options),
        Verb::Ab(a, b, options) => ab::run(&a, &b, &options),
        Verb::All(options, given) => all::run(&options, &given),
        Verb::Plot(files, out) => plot::files(&files, &out),
    }))
}

fn finish(result: Res<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("perf: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Without root there is no bed: say so before anything starts.
fn need_root() -> Res<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err("root is needed to build the test bed (the forwarders run unprivileged in it): \
         run `sudo -E cargo bench --bench perf -- ...`"
        .into())
}

/// One stream up and down through each forwarder, paired in rounds.
fn tcp(options: &Options) -> Res<()> {
    need_root()?;
    let machine = Machine::look(&options.ringtap);
    print!("{machine}");
    let forwarders = options.forwarders();
    let per_block = forwarders.len().max(1);
    let mut series = Vec::new();
    for &mtu in &options.mtus {
        for &direction in &options.directions {
            for f in &forwarders {
                series.push(Series::new(f.label(), mtu, direction));
            }
        }
    }
    let cells_all = series.len() * options.rounds as usize;
    let mut idle = Vec::new();
    for round in 0..options.rounds {
        idle.push(idle_before(round, options.rounds)?);
        // Cells that are compared with each other are neighbours in time. Every second round runs them
        // backwards, so that what drifts (heat, a neighbour's load) favours no place in the order.
        for block in series.chunks_mut(per_block) {
            let mut order: Vec<usize> = (0..forwarders.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for i in order {
                let mut cell = options.cell(&forwarders[i], &block[i]);
                cell.perf = options.perf.as_ref().map(|file| {
                    if cells_all == 1 { file.clone() } else { perf_file(file, &block[i], round) }
                });
                let result = cell.run();
                report::progress(&block[i], &result);
                block[i].runs.push(result);
            }
        }
    }
    println!();
    for block in series.chunks(per_block) {
        report::table(block, options);
    }
    report::idle_line(&idle);
    report::save("tcp", &machine, options, &idle, &series)?;
    match series.iter().map(Series::failures).sum::<usize>() {
        0 => Ok(()),
        n => Err(format!("{n} of {cells_all} measurements failed (listed above)")),
    }
}

/// Measures and prints how idle the machine is.
fn idle_before(round: u32, rounds: u32) -> Res<f64> {
    let idle = proc::idle_percent(Duration::from_millis(500))?;
    let busy =
        if idle < IDLE_LEAST { "  WARNING: busy machine, the numbers are noise" } else { "" };
    println!("round {}/{rounds}: {idle:.0}% of the processors idle before it{busy}", round + 1);
    Ok(idle)
}

/// Where a profile goes when there is more than one cell.
fn perf_file(file: &std::path::Path, series: &Series, round: u32) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(
        ".{}.{}.{}.{}",
        series.forwarder,
        series.mtu,
        series.direction.name(),
        round + 1
    ));
    name.into()
}

/// `--test`: the beds can be built, each forwarder can be attached, a stream passes through ringtap. A rival
/// that is not installed is named and left out.
fn check() -> Res<()> {
    report::self_check()?;
    ab::self_check()?;
    all::self_check()?;
    plot::self_check()?;
    if let Err(why) = need_root() {
        println!("perf: beds not checked: {why}");
        return Ok(());
    }
    let options = Options::default();
    let mut failed = 0;
    for f in options.forwarders() {
        if let Some(program) = f.rival().filter(|p| !rivals::installed(p)) {
            println!("{:<12} left out: {program} is not installed", f.label());
            continue;
        }
        // A rival's own trouble with traffic is no defect of this tree: it only has to come up.
        let load = if f.rival().is_some() {
            Load::Attach
        } else {
            Load::Tcp { streams: 1, secs: 1, direction: Direction::Up }
        };
        match (Cell { forwarder: f.clone(), mtu: 1500, load, perf: None }).run() {
            Ok(sample) => println!("{:<12} ok {sample}", f.label()),
            Err(e) => {
                failed += 1;
                println!("{:<12} FAILED: {e}", f.label());
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(format!("{failed} beds failed")) }
}
