//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::ValueExt;

use crate::Res;
use crate::all;
use crate::cell::{Cell, Direction};
use crate::report::Series;
use crate::revision::Named;
use crate::rivals::{Forwarder, OPEN};
use crate::work::Work;

/// `--help`.
pub(crate) const USAGE: &str = "\
Usage: cargo bench --bench perf -- VERB [OPTIONS]

Each through direct veth, ringtap, slirp4netns and pasta, in paired rounds:
  tcp          bulk, by iperf3
  udp          the highest rate of datagrams with at most 1% loss: 64 bytes, 1400 bytes, 1400 bytes
               many at a time (UDP_SEGMENT, UDP_GRO)
  rr           one request after the other, TCP and UDP
  crr          connections: connect, a byte, a byte back, close; four clients
  flows        one request after the other, on one of 1, 1,000 and 10,000 open connections
  startup      from exec until it says that it is ready (--rounds 20)
  idle         wake-ups, CPU time and memory of --secs (60) without traffic (--rounds 1)
  memory       per idle connection, from 1,000 to 10,000 (--rounds 1)
  wan          bulk, over a path of 20 ms there and back: two TAPs and a process that holds frames
  ports        start-up with 1 and 10,000 forwarded TCP ports, and the memory they take; slirp4netns
               gets them by its API (those of 30 s), as it has no other way
  fair         bulk (--streams 4, --secs 3, three times) beside a server or a guest that never reads, and
               beside floods by the guest of SYNs, of datagrams of ever other ports, and of garbage (20,000
               packets per second each), relative to bulk alone before and after; and how many new
               connections are late meanwhile
With --inbound, tcp, udp, rr and crr connect from the remote to a server in the guest, by forwarded ports:
ringtap --publish, slirp4netns's API, pasta's -t and -u, and rootlesskit's builtin port driver.
And:
  ab A B       two builds of ringtap, alternated A B B A: revisions of git (each built in a
               checkout of its own, kept in target/ab), or files
  all          every measurement above but ab, with --rounds 3 --secs 2: one JSON, all pictures
  plot FILE... pictures (SVG, and PNG by rsvg-convert) of what --json wrote, into --out DIR

  --rounds N           rounds (5)
  --secs N             seconds of each cell (5; crr 3, wan 10, fair 3 of each part); udp: of ten tries
  --streams N[,N]      parallel streams (1; fair 4)
  --mtu N[,N]          MTU of the guest and of the veth pair (1500; tcp 1500,65520)
  --dir up,down,both   guest to host, host to guest, tcp and wan: both at once (up,down)
  --ip 4|6             IP version of tcp and wan (4)
  --inbound            to the guest by forwarded ports (IPv4); --dir stays as it is, up from the guest
  --one-queue          ringtap and slirp4netns find a TAP that was made with one queue, as RootlessKit does
  --only NAME[,NAME]   of direct, direct-system (the system's congestion control, not cubic),
                       ringtap, slirp4netns, pasta (all), rootlesskit (inbound), ringtap-open
                       (--no-sandbox --no-seccomp; startup and ports)
  --ringtap PATH       the ringtap to measure (the release build of this tree)
  --ringtap-args ARGS  more options for `ringtap attach`, split at blanks
  --args-a, --args-b ARGS  ab: the same for one side, so `ab X X --args-b \"--no-sandbox --no-seccomp\"`
                       tells what the walls cost
  --json FILE          every number, for machines
  --plot DIR           pictures, as the verb `plot` draws them
  --perf FILE          `perf record -g` the forwarder; with more than one cell, FILE.NAME.MTU.DIR.ROUND
";

/// What to do.
pub(crate) enum Verb {
    /// `--help`, or nothing asked for.
    Help,
    /// `--test`.
    Check,
    /// All forwarders.
    Measure(Work, Options),
    /// Two builds of ringtap.
    Ab(Named, Named, Options),
    /// Every measuring verb, and the options for each.
    All(Options, Vec<OsString>),
    /// Pictures of documents, into a folder.
    Plot(Vec<PathBuf>, PathBuf),
}

/// How to do it.
pub(crate) struct Options {
    /// Rounds; each has every cell once (`ab`: twice per binary).
    pub(crate) rounds: u32,
    /// Seconds of each cell.
    pub(crate) secs: u32,
    /// Parallel streams.
    pub(crate) streams: Vec<u32>,
    /// IP version of bulk TCP.
    pub(crate) ip: u32,
    /// MTUs, bytes of IP.
    pub(crate) mtus: Vec<u16>,
    /// Directions.
    pub(crate) directions: Vec<Direction>,
    /// Names to keep; empty: all.
    pub(crate) only: Vec<String>,
    /// The ringtap binary.
    pub(crate) ringtap: PathBuf,
    /// More of its options.
    pub(crate) ringtap_args: Vec<String>,
    /// And more of A's and B's.
    pub(crate) side_args: [Vec<String>; 2],
    /// To the guest by forwarded ports.
    pub(crate) inbound: bool,
    /// The guest's TAP was made before, with one queue.
    pub(crate) one_queue: bool,
    /// Where the numbers go.
    pub(crate) json: Option<PathBuf>,
    /// Where the pictures go.
    pub(crate) plot: Option<PathBuf>,
    /// Where the profile goes.
    pub(crate) perf: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rounds: 5,
            secs: 5,
            streams: vec![1],
            ip: 4,
            mtus: vec![1500, 65520],
            directions: vec![Direction::Up, Direction::Down],
            only: Vec::new(),
            ringtap: env!("CARGO_BIN_EXE_ringtap").into(),
            ringtap_args: Vec::new(),
            side_args: Default::default(),
            inbound: false,
            one_queue: false,
            json: None,
            plot: None,
            perf: None,
        }
    }
}

impl Options {
    /// The forwarders asked for, in the order of the table.
    pub(crate) fn forwarders(&self) -> Vec<Forwarder> {
        let mut open = self.ringtap_args.clone();
        open.extend(["--no-sandbox", "--no-seccomp"].map(str::to_owned));
        let mut all = vec![
            Forwarder::Direct,
            Forwarder::DirectSystem,
            Forwarder::ringtap("ringtap", &self.ringtap, &self.ringtap_args),
            Forwarder::ringtap(OPEN, &self.ringtap, &open),
            Forwarder::Slirp4netns,
            Forwarder::Pasta,
            Forwarder::Rootlesskit,
        ];
        all.retain(|f| self.only.is_empty() || self.only.iter().any(|o| o == f.label()));
        all
    }

    /// The cell of a series, through a forwarder.
    pub(crate) fn cell(&self, forwarder: &Forwarder, series: &Series) -> Cell {
        Cell {
            forwarder: forwarder.clone(),
            mtu: series.mtu,
            load: series.load.clone(),
            inbound: self.inbound,
            one_queue: self.one_queue,
            perf: None,
        }
    }
}

/// Reads the command line, program name left out.
pub(crate) fn parse(args: Vec<OsString>) -> Res<Verb> {
    read(args).map_err(|e| format!("{e} (--help lists the options)"))
}

fn read(args: Vec<OsString>) -> Result<Verb, lexopt::Error> {
    use lexopt::Arg::{Long, Short, Value};
    let mut o = Options::default();
    let (mut rounds, mut secs, mut mtus, mut streams) = (None, None, None, None);
    let mut words = Vec::new();
    let mut out: Option<PathBuf> = None;
    let mut parser = lexopt::Parser::from_args(&args);
    while let Some(arg) = parser.next()? {
        match arg {
            // Cargo adds the first to whatever was asked for; CI adds the second.
            Long("bench") => {}
            Long("test") => return Ok(Verb::Check),
            Long("help") | Short('h') => return Ok(Verb::Help),
            Long("rounds") => rounds = Some(at_least_one("--rounds", &mut parser)?),
            Long("secs") => secs = Some(at_least_one("--secs", &mut parser)?),
            Long("streams") => {
                let read = |s: &str| s.parse().ok().filter(|n| *n > 0);
                streams = Some(list("--streams", &mut parser, read)?);
            }
            Long("ip") => match list("--ip", &mut parser, |s| s.parse().ok())?.as_slice() {
                [ip @ (4 | 6)] => o.ip = *ip,
                _ => return Err("--ip: 4 or 6 is needed".into()),
            },
            Long("mtu") => mtus = Some(list("--mtu", &mut parser, |s| s.parse().ok())?),
            Long("dir") => o.directions = list("--dir", &mut parser, Direction::parse)?,
            Long("only") => {
                let known: Vec<_> = o.forwarders().iter().map(|f| f.label().to_owned()).collect();
                let keep = |s: &str| known.iter().find(|k| *k == s).cloned();
                o.only = list("--only", &mut parser, keep)?;
            }
            Long("ringtap") => o.ringtap = binary("--ringtap", parser.value()?)?,
            Long("ringtap-args") => {
                o.ringtap_args = split(&mut parser)?;
            }
            Long("args-a") => o.side_args[0] = split(&mut parser)?,
            Long("args-b") => o.side_args[1] = split(&mut parser)?,
            Long("inbound") => o.inbound = true,
            Long("one-queue") => o.one_queue = true,
            Long("json") => o.json = Some(parser.value()?.into()),
            Long("plot") => o.plot = Some(parser.value()?.into()),
            Long("out") => out = Some(parser.value()?.into()),
            Long("perf") => o.perf = Some(parser.value()?.into()),
            Value(word) => words.push(word),
            other => return Err(other.unexpected()),
        }
    }
    let mut words = words.into_iter();
    if out.is_some() && words.as_slice().first().is_none_or(|verb| verb != "plot") {
        return Err("--out: for the verb plot only (a measuring verb draws with --plot DIR)".into());
    }
    let verb = words.next().and_then(|w| w.into_string().ok());
    let work = Work::ALL.into_iter().find(|w| verb.as_deref() == Some(w.name()));
    // What compares builds does it by bulk TCP.
    let defaults = work.unwrap_or(Work::Tcp);
    o.rounds = rounds.unwrap_or_else(|| defaults.rounds());
    o.secs = secs.unwrap_or_else(|| defaults.secs());
    o.mtus = mtus.unwrap_or_else(|| defaults.mtus());
    o.streams = streams.unwrap_or_else(|| defaults.streams());
    if o.inbound && !work.is_some_and(Work::may_be_inbound) {
        return Err("--inbound: for tcp, udp, rr and crr only".into());
    }
    if o.inbound && o.ip != 4 {
        return Err("--inbound: IPv4 only, as slirp4netns forwards nothing else".into());
    }
    if o.side_args.iter().any(|a| !a.is_empty()) && verb.as_deref() != Some("ab") {
        return Err("--args-a, --args-b: for ab only (--ringtap-args is for the others)".into());
    }
    match (verb.as_deref(), words.next(), words.next()) {
        (None, ..) => Ok(Verb::Help),
        (Some("all"), None, _) => Ok(Verb::All(o, all::passed_on(&args))),
        (Some(_), None, _) if work.is_some() => Ok(Verb::Measure(defaults, o)),
        (Some("ab"), Some(a), Some(b)) if words.next().is_none() => {
            Ok(Verb::Ab(Named::read(&a)?, Named::read(&b)?, o))
        }
        (Some("ab"), ..) => Err("ab: two revisions or files are needed: ab A B".into()),
        (Some("plot"), Some(first), second) => {
            let files = [first].into_iter().chain(second).chain(words).map(PathBuf::from);
            let out = out.ok_or("plot: --out DIR is needed")?;
            Ok(Verb::Plot(files.collect(), out))
        }
        (Some("plot"), ..) => Err("plot: a file that --json wrote is needed".into()),
        (Some(verb), ..) => Err(format!("{verb}: no such verb, or too many words after it").into()),
    }
}

/// Words split at blanks.
fn split(parser: &mut lexopt::Parser) -> Result<Vec<String>, lexopt::Error> {
    Ok(parser.value()?.string()?.split_whitespace().map(str::to_owned).collect())
}

/// A program that is there: told now, not once per cell.
fn binary(option: &str, path: OsString) -> Result<PathBuf, lexopt::Error> {
    let path = PathBuf::from(path);
    match std::path::absolute(&path).and_then(|p| Ok((p.metadata()?, p))) {
        Ok((meta, absolute)) if meta.is_file() => Ok(absolute),
        Ok(_) => Err(format!("{option}: {} is not a file", path.display()).into()),
        Err(e) => Err(format!("{option}: {}: {e}", path.display()).into()),
    }
}

fn at_least_one(option: &str, parser: &mut lexopt::Parser) -> Result<u32, lexopt::Error> {
    match parser.value()?.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("{option}: a number from 1 is needed").into()),
    }
}

fn list<T>(
    option: &str,
    parser: &mut lexopt::Parser,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, lexopt::Error> {
    let text = parser.value()?.string()?;
    text.split(',')
        .map(|item| read(item).ok_or_else(|| format!("{option}: {item:?} is not known").into()))
        .collect()
}
