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
mod bill;
mod bulk;
mod cell;
mod exchange;
mod fair;
mod forwards;
mod load;
mod options;
mod plot;
mod proc;
mod report;
mod revision;
mod rivals;
mod still;
mod tool;
mod work;

use cell::{Cell, Direction};
use fair::Beside;
use load::Load;
use options::{Options, Verb};
use report::{Machine, Series};
use rivals::Forwarder;
use work::Work;

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
        Verb::Measure(work, options) => measure(work, &options),
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

/// A verb's loads through each forwarder, paired in rounds.
fn measure(work: Work, options: &Options) -> Res<()> {
    need_root()?;
    let machine = Machine::look(&options.ringtap);
    print!("{machine}");
    let mut forwarders = work.forwarders(options);
    let missing: Vec<_> = forwarders.extract_if(.., |f| !f.is_installed()).collect();
    for f in &missing {
        // Nobody is left out who was asked for.
        if !options.only.is_empty() {
            return Err(format!("--only {}: it is not installed", f.label()));
        }
        println!("left out:           {}, which is not installed", f.label());
    }
    let loads = work.loads(options);
    let per_block = forwarders.len().max(1);
    let mut series = Vec::new();
    for &mtu in &options.mtus {
        for load in &loads {
            series.extend(forwarders.iter().map(|f| Series::new(f.label(), mtu, load)));
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
    let verb = if options.inbound { work.name_inbound() } else { work.name() };
    for block in series.chunks(per_block) {
        report::table(verb, block, options);
    }
    report::idle_line(&idle);
    report::save(verb, &machine, options, &idle, &series)?;
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
        ".{}.{}.{}",
        series.forwarder,
        series.what().replace([' ', ',', '/'], "-"),
        round + 1
    ));
    name.into()
}

/// `--test`: the beds can be built, each forwarder can be attached, and every load passes direct and through
/// ringtap for a moment. A rival that is not installed is named and left out.
fn check() -> Res<()> {
    report::self_check()?;
    ab::self_check()?;
    all::self_check()?;
    plot::self_check()?;
    tool::echo::self_check()?;
    tool::flood::self_check()?;
    tool::line::self_check()?;
    tool::nuisance::self_check()?;
    forwards::self_check()?;
    if let Err(why) = need_root() {
        println!("perf: beds not checked: {why}");
        return Ok(());
    }
    let options = Options::default();
    let mut failed = 0;
    let mut cell = |forwarder: &Forwarder, load: Load, inbound: bool| {
        let label = forwarder.label().to_owned();
        let forwarder = forwarder.clone();
        let way = if inbound { "in " } else { "" };
        let cell = Cell {
            forwarder,
            mtu: 1500,
            load: load.clone(),
            inbound,
            one_queue: false,
            perf: None,
        };
        match cell.run() {
            Ok(sample) => println!("{label:<13} ok {way}{load:?} {sample}"),
            Err(e) => {
                failed += 1;
                println!("{label:<13} FAILED {way}{load:?}: {e}");
            }
        }
    };
    for f in options.forwarders() {
        if !f.is_installed() {
            println!("{:<13} left out: it is not installed", f.label());
            continue;
        }
        match f.rival() {
            // A rival's own trouble with traffic is no defect of this tree: it only has to come up, and
            // to have ports.
            Some(_) => {
                if !matches!(f, Forwarder::Rootlesskit) {
                    cell(&f, Load::Attach, false);
                }
                cell(&f, Load::Attach, true);
            }
            None => {
                brief(&f).into_iter().for_each(|load| cell(&f, load, false));
                brief_inbound(&f).into_iter().for_each(|load| cell(&f, load, true));
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(format!("{failed} cells failed")) }
}

/// Datagrams, with tries as short as can be.
fn udp(size: u32, gso: bool, streams: u32, direction: Direction) -> Load {
    Load::Udp { size, gso, streams, direction, probe_ms: 20 }
}

/// Each load, as short as can be.
fn brief(forwarder: &Forwarder) -> Vec<Load> {
    let tcp = |direction, ip| Load::Tcp { streams: 1, secs: 1, direction, ip, delay_ms: 0 };
    let rr = |udp| Load::Rr { udp, request: 64, reply: 1024, ms: 200 };
    let mut loads = match forwarder {
        Forwarder::DirectSystem => vec![tcp(Direction::Up, 4)],
        Forwarder::Ringtap { label, .. } if label == rivals::OPEN => vec![Load::Startup],
        _ => vec![
            tcp(Direction::Both, 4),
            tcp(Direction::Down, 6),
            Load::Tcp { streams: 2, secs: 1, direction: Direction::Both, ip: 4, delay_ms: 5 },
            udp(64, false, 1, Direction::Up),
            udp(1400, true, 2, Direction::Down),
            rr(false),
            rr(true),
            Load::Crr { ms: 200 },
            Load::Flows { connections: 20, ms: 200 },
        ],
    };
    if forwarder.label() == "ringtap" {
        loads.extend([
            Load::Startup,
            Load::Memory { few: 10, many: 20 },
            Load::Ports { count: 200 },
        ]);
        loads.extend([Beside::DeafGuest, Beside::Garbage].map(|beside| {
            let direction = Direction::Up;
            Load::Fair { streams: 1, secs: 1, direction, beside }
        }));
    }
    loads
}

/// The same by forwarded ports.
fn brief_inbound(forwarder: &Forwarder) -> Vec<Load> {
    let direction = Direction::Both;
    match forwarder.label() {
        "direct" | "ringtap" => vec![
            Load::Tcp { streams: 2, secs: 1, direction, ip: 4, delay_ms: 0 },
            udp(1400, true, 1, Direction::Down),
            udp(1400, false, 3, Direction::Up),
            Load::Rr { udp: true, request: 64, reply: 1024, ms: 200 },
            Load::Crr { ms: 200 },
        ],
        _ => Vec::new(),
    }
}
