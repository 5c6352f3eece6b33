//! One table, one format: what was measured on, medians, spread, ratios.

use std::fmt;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::cell::Direction;
use crate::load::{Figure, Load};
use crate::options::Options;
use crate::rivals::version;
use crate::{Context, IDLE_LEAST, Res, plot};

/// What the numbers were taken on.
pub(crate) struct Machine {
    facts: Vec<(&'static str, String)>,
}

impl Machine {
    /// Looks at this one, and at a ringtap.
    pub(crate) fn look(ringtap: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |path: &str, key: &str| {
            let text = read(path);
            let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_default();
            line.split_once(':').map_or("unknown", |(_, v)| v.trim()).to_owned()
        };
        let kernel = nix::sys::utsname::uname().map_or_else(
            |_| "unknown".into(),
            |u| format!("{} {}", u.release().to_string_lossy(), u.machine().to_string_lossy()),
        );
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let args: Vec<_> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
        let own = format!("{} ({})", version(ringtap), ringtap.display());
        Self {
            facts: vec![
                ("command", format!("cargo bench --bench perf -- {}", args.join(" "))),
                ("processor", format!("{}, {cores} cores", field("/proc/cpuinfo", "model name"))),
                ("memory", field("/proc/meminfo", "MemTotal")),
                ("kernel", kernel),
                (
                    "congestion control",
                    format!(
                        "endpoints cubic, forwarders' sockets {}",
                        read("/proc/sys/net/ipv4/tcp_congestion_control").trim()
                    ),
                ),
                ("ringtap", own),
                ("slirp4netns", version(Path::new("slirp4netns"))),
                ("pasta", pasta_version()),
                ("rootlesskit", version(Path::new("rootlesskit"))),
                ("iperf3", version(Path::new("iperf3"))),
            ],
        }
    }

    /// One more fact.
    pub(crate) fn add(&mut self, key: &'static str, value: String) {
        self.facts.push((key, value));
    }

    fn to_json(&self) -> Value {
        self.facts
            .iter()
            .map(|(k, v)| ((*k).to_owned(), json!(v)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts
            .iter()
            .try_for_each(|(key, value)| writeln!(f, "{:<19} {value}", format!("{key}:")))
    }
}

/// Debian's build of 2023 says "unknown version": the package knows better.
fn pasta_version() -> String {
    let said = version(Path::new("pasta"));
    let package =
        std::process::Command::new("dpkg-query").args(["-W", "-f=${Version}", "passt"]).output();
    match package {
        Ok(out) if out.status.success() => {
            format!("{said}, package passt {}", String::from_utf8_lossy(&out.stdout))
        }
        _ => said,
    }
}

/// The runs of one forwarder with one load and one MTU.
pub(crate) struct Series {
    /// The forwarder's label.
    pub(crate) forwarder: String,
    /// MTU, bytes of IP.
    pub(crate) mtu: u16,
    /// With which traffic.
    pub(crate) load: Load,
    /// One result per round, failures in their place.
    pub(crate) runs: Vec<Res<Value>>,
}

impl Series {
    /// Without runs yet.
    pub(crate) fn new(forwarder: &str, mtu: u16, load: &Load) -> Self {
        Self { forwarder: forwarder.into(), mtu, load: load.clone(), runs: Vec::new() }
    }

    /// What it has in common with those it is compared with.
    pub(crate) fn what(&self) -> String {
        let mut words = vec![format!("MTU {}", self.mtu)];
        words.extend(self.load.params().iter().map(|(key, value)| match (key.as_str(), value) {
            ("direction", Value::String(name)) => {
                Direction::parse(name).map_or("", Direction::words).to_owned()
            }
            (_, Value::String(text)) => text.clone(),
            (key, value) => format!("{key} {value}"),
        }));
        words.join(", ")
    }

    /// A figure of every run, `None` where the run failed or has no such figure.
    pub(crate) fn figures(&self, key: &str) -> Vec<Option<f64>> {
        self.runs.iter().map(|r| r.as_ref().ok().and_then(|v| v[key].as_f64())).collect()
    }

    /// How many runs failed.
    pub(crate) fn failures(&self) -> usize {
        self.runs.iter().filter(|r| r.is_err()).count()
    }

    /// This one's figure over another's, round by round: what drifts from round to round cancels.
    pub(crate) fn ratio(&self, other: &Self, key: &str) -> Option<Spread> {
        let pairs = self.figures(key).into_iter().zip(other.figures(key));
        Spread::of(pairs.filter_map(|(a, b)| Some(a? / b.filter(|b| *b > 0.0)?)))
    }
}

/// Median and extremes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// Median; of an even number, the mean of the middle two.
    pub(crate) median: f64,
    /// Least.
    pub(crate) min: f64,
    /// Greatest.
    pub(crate) max: f64,
}

impl Spread {
    /// Of some numbers; `None` of none.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut v: Vec<f64> = numbers.into_iter().collect();
        v.sort_by(f64::total_cmp);
        let half = v.len() / 2;
        let upper = *v.get(half)?;
        let median = if v.len() % 2 == 1 { upper } else { f64::midpoint(v[half - 1], upper) };
        Some(Self { median, min: *v.first()?, max: *v.last()? })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.median)?;
        if self.min == self.max {
            return Ok(());
        }
        write!(f, " ({:.2}..{:.2})", self.min, self.max)
    }
}

/// One line while the rounds run.
pub(crate) fn progress(series: &Series, result: &Res<Value>) {
    let head = format!("  {:<44} {:<13}", series.what(), series.forwarder);
    match (result, series.load.figures()) {
        (Ok(v), figures) => {
            let text = figures.iter().filter_map(|f| {
                let n = v[f.key].as_f64()?;
                Some(format!("{} {:.2}", f.head, n * f.unit))
            });
            println!("{head} {}", text.collect::<Vec<_>>().join(", "));
        }
        (Err(e), _) => println!("{head} FAILED: {e}"),
    }
}

/// The table of forwarders with one load and one MTU.
pub(crate) fn table(verb: &str, block: &[Series], options: &Options) {
    let Some(first) = block.first() else { return };
    let figures = first.load.figures();
    let Some(main) = figures.first() else { return };
    println!("{verb}, {}: {} round(s); median (min..max)", first.what(), options.rounds);
    let direct = block.iter().find(|s| s.forwarder == "direct");
    let mut heads = vec![String::new(), main.head.to_owned()];
    heads.extend(direct.map(|_| "of direct".to_owned()));
    heads.extend(figures.iter().skip(1).map(|f| f.head.to_owned()));
    heads.push("ok".to_owned());
    let mut lines = vec![heads];
    for s in block {
        let text = |spread: Option<Spread>| spread.map_or_else(|| "-".into(), |s| s.to_string());
        let scaled =
            |f: &Figure| Spread::of(s.figures(f.key).into_iter().flatten().map(|n| n * f.unit));
        let mut line = vec![s.forwarder.clone(), text(scaled(main))];
        line.extend(direct.map(|d| text(s.ratio(d, main.key))));
        line.extend(figures.iter().skip(1).map(|f| match scaled(f) {
            // Memory hardly differs from run to run: its spread would only widen the table.
            Some(spread) if f.head.ends_with("MB") => format!("{:.1}", spread.median),
            spread => text(spread),
        }));
        line.push(format!("{}/{}", s.runs.len() - s.failures(), s.runs.len()));
        lines.push(line);
    }
    for line in &lines {
        let mut text = String::new();
        for (i, cell) in line.iter().enumerate() {
            let width = lines.iter().filter_map(|l| l.get(i)).map(String::len).max().unwrap_or(0);
            text += &format!("  {cell:<width$}");
        }
        println!("{}", text.trim_end());
    }
    if let Some(own) = block.iter().find(|s| s.forwarder == "ringtap") {
        let rivals = block
            .iter()
            .filter(|s| ["slirp4netns", "pasta", "rootlesskit"].contains(&s.forwarder.as_str()));
        for rival in rivals {
            if let Some(ratio) = own.ratio(rival, main.key) {
                println!("  ringtap / {}: {ratio}, of paired rounds", rival.forwarder);
            }
        }
    }
    for (s, why) in
        block.iter().flat_map(|s| s.runs.iter().map(move |r| (s, r))).filter_map(|(s, r)| {
            Some((s, r.as_ref().ok()?["open_why"].as_str().filter(|why| !why.is_empty())?))
        })
    {
        println!("  {}: not all connections could be opened: {why}", s.forwarder);
    }
    failures(block);
    println!();
}

/// Every failure, under its table: a median of the survivors alone would flatter.
pub(crate) fn failures(block: &[Series]) {
    for s in block {
        for (at, run) in s.runs.iter().enumerate() {
            if let Err(e) = run {
                println!("  FAILED {} run {}: {e}", s.forwarder, at + 1);
            }
        }
    }
}

/// How idle the machine was.
pub(crate) fn idle_line(idle: &[f64]) {
    if let Some(s) = Spread::of(idle.iter().copied()) {
        let busy = if s.min < IDLE_LEAST { "; WARNING: not a quiet machine" } else { "" };
        println!("idle before each round: {:.0}% ({:.0}..{:.0}){busy}", s.median, s.min, s.max);
    }
}

/// Every number there is, as JSON and as pictures, where these were asked for.
pub(crate) fn save(
    verb: &str,
    machine: &Machine,
    options: &Options,
    idle: &[f64],
    series: &[Series],
) -> Res<()> {
    let runs = |s: &Series| -> Vec<Value> {
        s.runs.iter().map(|r| r.clone().unwrap_or_else(|error| json!({ "error": error }))).collect()
    };
    let series: Vec<Value> = series
        .iter()
        .map(|s| {
            let mut v = json!({ "forwarder": s.forwarder, "mtu": s.mtu });
            for (key, value) in s.load.params() {
                v[key] = value;
            }
            v["runs"] = runs(s).into();
            v
        })
        .collect();
    let document = json!({
        "verb": verb, "machine": machine.to_json(),
        "rounds": options.rounds, "secs": options.secs,
        "idle_percent": idle, "series": series,
    });
    if let Some(file) = &options.json {
        fs::write(file, format!("{document:#}\n")).context(file.display())?;
    }
    match &options.plot {
        Some(folder) => plot::draw(&[document], folder),
        None => Ok(()),
    }
}

/// The arithmetic, on numbers known beforehand (`--test`).
pub(crate) fn self_check() -> Res<()> {
    let odd = Spread::of([3.0, 1.0, 2.0]);
    let even = Spread::of([4.0, 1.0, 2.0, 3.0]);
    let runs = |numbers: [Option<f64>; 3]| Series {
        forwarder: String::new(),
        mtu: 1500,
        load: Load::Attach,
        runs: numbers
            .map(|n| n.map(|n| json!({ "gbps": n })).ok_or_else(|| "failed".into()))
            .into(),
    };
    let (a, b) = (runs([Some(2.0), None, Some(9.0)]), runs([Some(1.0), Some(1.0), Some(3.0)]));
    let ratio = a.ratio(&b, "gbps");
    let right = odd == Some(Spread { median: 2.0, min: 1.0, max: 3.0 })
        && even == Some(Spread { median: 2.5, min: 1.0, max: 4.0 })
        && Spread::of([]).is_none()
        && ratio == Some(Spread { median: 2.5, min: 2.0, max: 3.0 })
        && a.failures() == 1;
    if right { Ok(()) } else { Err(format!("report: {odd:?} {even:?} {ratio:?}")) }
}
