//! Pictures of what the verbs have written as JSON: which there are, and what stands in them. `svg` draws.
//!
//! A document is grouped by what its series differ in (`read`), so a new verb needs no more than its lines in
//! [`PICTURES`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{Context, Res, rivals};

mod read;
mod svg;

/// One picture of one verb.
struct Picture {
    /// The verb whose documents have the numbers.
    verb: &'static str,
    /// What the file's name has after the verb.
    suffix: &'static str,
    /// In large letters.
    title: &'static str,
    /// The figure of each run.
    key: &'static str,
    /// Its unit in the picture, and how many of these one of the figure's is.
    unit: (&'static str, f64),
    /// Whether more of it is better.
    more: bool,
    /// Whether each row has a scale of its own: rows that differ by powers of ten.
    apart: bool,
}

impl Picture {
    const fn new(
        verb: &'static str,
        suffix: &'static str,
        title: &'static str,
        key: &'static str,
        unit: (&'static str, f64),
        more: bool,
    ) -> Self {
        Self { verb, suffix, title, key, unit, more, apart: false }
    }

    const fn apart(self) -> Self {
        Self { apart: true, ..self }
    }
}

const GBPS: (&str, f64) = ("Gbit/s", 1.0);
const CPU: (&str, f64) = ("CPU-seconds per GB carried", 1.0);
/// From KiB.
const MB: (&str, f64) = ("MB", 1024e-6);
/// From microseconds.
const US: (&str, f64) = ("microseconds", 1.0);
const MS: (&str, f64) = ("milliseconds", 1.0);
const BYTES: (&str, f64) = ("bytes in the process", 1.0);
const KDPS: (&str, f64) = ("thousand datagrams per second", 1e-3);
const SHARE: (&str, f64) = ("% of the same without it", 1.0);
const TRIPS: (&str, f64) = ("round trips per second", 1.0);
const OPENED: (&str, f64) = ("connections per second", 1.0);
const REQUESTS: (&str, f64) = ("requests per second", 1.0);

/// Every picture. A figure that no run of a document has gives none.
const PICTURES: &[Picture] = &[
    Picture::new("tcp", "", "TCP throughput", "gbps", GBPS, true),
    Picture::new("tcp", "-cpu", "CPU time to carry TCP", "cpu_secs_per_gb", CPU, false),
    Picture::new("tcp", "-memory", "Resident memory under TCP load", "rss_mid_kib", MB, false),
    Picture::new("udp", "", "UDP with at most 1% loss", "pps", KDPS, true).apart(),
    Picture::new("udp", "-gbps", "UDP with at most 1% loss", "gbps", GBPS, true).apart(),
    Picture::new("rr", "", "Request and response", "rate", TRIPS, true),
    Picture::new("rr", "-p50", "Time of a round trip: median", "p50_us", US, false),
    Picture::new("rr", "-p99", "Time of a round trip: 99th percentile", "p99_us", US, false),
    Picture::new("crr", "", "New connections, one request each", "rate", OPENED, true),
    Picture::new("crr", "-p99", "Time of a connection: 99th percentile", "p99_us", US, false),
    Picture::new("flows", "", "Requests beside open connections", "rate", REQUESTS, true),
    Picture::new("flows", "-p99", "Beside open connections: 99th percentile", "p99_us", US, false),
    Picture::new("startup", "", "From exec to a ready network", "ready_ms", MS, false),
    Picture::new("idle", "", "Wake-ups while nothing happens", "wakeups", ("wake-ups", 1.0), false),
    Picture::new("idle", "-memory", "Resident memory while nothing happens", "rss_kib", MB, false),
    Picture::new("memory", "", "Memory of an idle connection", "rss_bytes_each", BYTES, false),
    Picture::new("wan", "", "TCP over a long path", "gbps", GBPS, true),
    Picture::new("inbound-tcp", "", "TCP into the guest's ports", "gbps", GBPS, true),
    Picture::new("inbound-tcp", "-cpu", "CPU time for it", "cpu_secs_per_gb", CPU, false),
    Picture::new("inbound-udp", "", "UDP by the guest's ports, 1% loss", "pps", KDPS, true).apart(),
    Picture::new("inbound-rr", "", "Request and response by a port", "rate", TRIPS, true),
    Picture::new("inbound-crr", "", "New connections by ports", "rate", OPENED, true),
    Picture::new("ports", "", "Start with forwarded ports", "ready_ms", MS, false).apart(),
    Picture::new("ports", "-memory", "Memory of forwarded ports", "rss_kib", MB, false).apart(),
    Picture::new("fair", "", "TCP beside trouble", "share_percent", SHARE, true),
    Picture::new("ab", "", "Two builds: TCP throughput", "gbps", GBPS, true),
    Picture::new("ab", "-cpu", "Two builds: CPU time to carry TCP", "cpu_secs_per_gb", CPU, false),
];

/// `plot JSON... --out DIR`.
pub(crate) fn files(files: &[PathBuf], out: &Path) -> Res<()> {
    let mut documents = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).context(file.display())?;
        let value: Value = serde_json::from_str(&text).context(file.display())?;
        documents.extend(read::documents(value).context(file.display())?);
    }
    draw(&documents, out)
}

/// Draws what there is in some documents into a folder, and says which files those are.
pub(crate) fn draw(documents: &[Value], out: &Path) -> Res<()> {
    fs::create_dir_all(out).context(out.display())?;
    let mut drawn = 0;
    for picture in PICTURES {
        let of_verb: Vec<&Value> = documents.iter().filter(|d| d["verb"] == picture.verb).collect();
        let Some(chart) = read::chart(picture, &of_verb)? else { continue };
        let file = out.join(format!("{}{}.svg", picture.verb, picture.suffix));
        fs::write(&file, svg::draw(&chart)).context(file.display())?;
        drawn += 1;
        println!("drawn: {}{}", file.display(), png(&file)?);
    }
    if drawn == 0 {
        return Err("plot: there is nothing to draw in these documents".into());
    }
    Ok(())
}

/// Makes the PNG beside an SVG, twice as large for dense screens. Text needs fonts and a shaper: an
/// installed converter has them, and a machine without it still has the SVG.
fn png(svg: &Path) -> Res<String> {
    const CONVERTER: &str = "rsvg-convert";
    if !rivals::installed(CONVERTER) {
        return Ok(format!(" (no PNG: {CONVERTER} is not installed, package librsvg2-bin)"));
    }
    let file = svg.with_extension("png");
    let out = Command::new(CONVERTER).args(["--zoom", "2", "-o"]).arg(&file).arg(svg).output();
    let out = out.context(CONVERTER)?;
    if out.status.success() {
        return Ok(" and .png".into());
    }
    Err(format!("{CONVERTER} {}: {}", svg.display(), String::from_utf8_lossy(&out.stderr).trim()))
}

/// Reading and drawing, on a document known beforehand (`--test`).
pub(crate) fn self_check() -> Res<()> {
    read::self_check()?;
    svg::self_check()
}
