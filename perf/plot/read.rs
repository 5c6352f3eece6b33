//! From documents to a chart: groups of bars, in the order in which they were measured.

use serde_json::{Map, Value, json};

use super::Picture;
use crate::report::Spread;
use crate::{IDLE_LEAST, Res};

/// What one picture shows.
pub(super) struct Chart {
    /// In large letters.
    pub(super) title: String,
    /// Under it: unit, which way is better, how it was taken.
    pub(super) subtitle: String,
    /// That the numbers are worth little, and why.
    pub(super) warning: Option<String>,
    /// Heads of the columns; one without a name when there is nothing to tell apart.
    pub(super) columns: Vec<String>,
    /// Rows of panels.
    pub(super) rows: Vec<Row>,
    /// Each row has a scale of its own.
    pub(super) apart: bool,
    /// Small print: machine, versions, command.
    pub(super) notes: Vec<String>,
}

/// Panels beside each other, one for each column.
pub(super) struct Row {
    /// Its name; may be empty.
    pub(super) name: String,
    /// Bars of each column.
    pub(super) panels: Vec<Vec<Bar>>,
}

/// What one forwarder did in one panel.
pub(super) struct Bar {
    /// The forwarder's label.
    pub(super) name: String,
    /// `None`: no run succeeded, or none was made.
    pub(super) spread: Option<Spread>,
    /// Runs that succeeded, and all.
    pub(super) runs: (usize, usize),
}

/// The documents in a file: one, or those that `all` has put together.
pub(super) fn documents(mut file: Value) -> Res<Vec<Value>> {
    let documents = match file["documents"].take() {
        Value::Array(documents) => documents,
        _ => vec![file],
    };
    if documents.iter().all(|d| d["verb"].is_string() && d["series"].is_array()) {
        return Ok(documents);
    }
    Err("not written by --json of this lab: no \"verb\" or \"series\" in it".into())
}

/// One series, and what tells it from others.
struct Entry<'a> {
    /// Scalars beside the forwarder.
    keys: Map<String, Value>,
    forwarder: &'a str,
    runs: &'a [Value],
}

/// The chart of a picture; `None`: the documents have no such figure.
pub(super) fn chart(picture: &Picture, documents: &[&Value]) -> Res<Option<Chart>> {
    let Some(first) = documents.first() else { return Ok(None) };
    same_machine(first, documents)?;
    let entries: Vec<Entry<'_>> = documents.iter().flat_map(|d| entries(d)).collect();
    let has = |e: &Entry<'_>| e.runs.iter().any(|r| r[picture.key].is_number());
    if !entries.iter().any(has) {
        return Ok(None);
    }
    // A forwarder whose runs succeed without this figure (direct has no process to look at) has no bar.
    let mut forwarders = Vec::new();
    for e in &entries {
        let lacks = |e: &Entry<'_>| !has(e) && e.runs.iter().any(|r| r["error"].is_null());
        let mut mine = entries.iter().filter(|o| o.forwarder == e.forwarder);
        if !forwarders.contains(&e.forwarder) && !mine.all(lacks) {
            forwarders.push(e.forwarder);
        }
    }

    let varies = |key: &str| entries.iter().any(|e| e.keys.get(key) != entries[0].keys.get(key));
    let all_keys = || {
        let mut keys: Vec<&String> = Vec::new();
        for key in entries.iter().flat_map(|e| e.keys.keys()) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    };
    let (across, down): (Vec<_>, Vec<_>) =
        all_keys().into_iter().filter(|k| varies(k)).partition(|k| *k == "direction");
    let mut columns: Vec<String> = Vec::new();
    let mut rows: Vec<Row> = Vec::new();
    let name = |e: &Entry<'_>, keys: &[&String]| {
        let words = keys.iter().filter_map(|k| Some(words(k, e.keys.get(*k)?)));
        words.collect::<Vec<_>>().join(", ")
    };
    for e in &entries {
        let column = name(e, &across);
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    for e in &entries {
        let row_name = name(e, &down);
        if rows.iter().any(|r| r.name == row_name) {
            continue;
        }
        let panel = |column: &String| -> Vec<Bar> {
            let here: Vec<&Entry<'_>> = entries
                .iter()
                .filter(|o| name(o, &down) == row_name && name(o, &across) == *column)
                .collect();
            forwarders.iter().map(|f| bar(picture, f, &here)).collect()
        };
        let panels = columns.iter().map(panel).collect();
        rows.push(Row { name: row_name, panels });
    }

    let fixed = all_keys().into_iter().filter(|k| !varies(k));
    let fixed: Vec<String> =
        fixed.filter_map(|k| Some(words(k, entries[0].keys.get(k)?))).collect();
    Ok(Some(Chart {
        title: picture.title.to_owned(),
        subtitle: subtitle(picture, first, &fixed, rows.len()),
        warning: warning(documents),
        apart: picture.apart && rows.len() > 1,
        columns,
        rows,
        notes: notes(documents, &forwarders),
    }))
}

fn entries(document: &Value) -> Vec<Entry<'_>> {
    let series = document["series"].as_array().map(Vec::as_slice).unwrap_or_default();
    let entry = |s: &'_ Value| -> Option<Map<String, Value>> {
        let mut keys: Map<String, Value> = s
            .as_object()?
            .iter()
            .filter(|(k, v)| *k != "forwarder" && (v.is_string() || v.is_number()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        // The one option of a whole document that two documents of a verb are drawn side by side for.
        if let (None, Some(n)) = (keys.get("streams"), document.get("streams")) {
            keys.insert("streams".into(), n.clone());
        }
        Some(keys)
    };
    series
        .iter()
        .filter_map(|s| {
            let runs = s["runs"].as_array()?;
            Some(Entry { keys: entry(s)?, forwarder: s["forwarder"].as_str()?, runs })
        })
        .collect()
}

fn bar(picture: &Picture, forwarder: &str, here: &[&Entry<'_>]) -> Bar {
    let mine = here.iter().filter(|e| e.forwarder == forwarder);
    let runs: Vec<&Value> = mine.flat_map(|e| e.runs).collect();
    let figures = runs.iter().filter_map(|r| r[picture.key].as_f64());
    let figures: Vec<f64> = figures.map(|n| n * picture.unit.1).collect();
    Bar {
        name: forwarder.to_owned(),
        runs: (figures.len(), runs.len()),
        spread: Spread::of(figures),
    }
}

/// A key and its value, as one says it.
fn words(key: &str, value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let many = if text == "1" { "" } else { "s" };
    match (key, text.as_str()) {
        ("direction", "up") => "guest \u{2192} host".into(),
        ("direction", "down") => "host \u{2192} guest".into(),
        ("direction", "both") => "both ways at once".into(),
        ("ip", _) => format!("IPv{text}"),
        ("rtt_ms", _) => format!("round trip of {text} ms"),
        ("clients", _) => format!("{text} client{many} at once"),
        ("secs", _) => format!("within {text} s"),
        ("mtu", _) => format!("MTU {text}"),
        ("streams", _) => format!("{text} stream{many}"),
        ("size" | "bytes", _) => format!("{text} bytes"),
        ("connections" | "flows", _) => format!("{text} open connection{many}"),
        ("proto" | "what" | "work", _) => text,
        _ => format!("{key} {text}"),
    }
}

fn subtitle(picture: &Picture, document: &Value, fixed: &[String], rows: usize) -> String {
    let better = if picture.more { "longer is better" } else { "shorter is better" };
    let rounds = document["rounds"].as_u64().unwrap_or(1);
    let taken = if rounds > 1 {
        format!("median of {rounds} rounds, whiskers from least to greatest")
    } else {
        "a single round".into()
    };
    let mut parts = vec![format!("{}, {better}", picture.unit.0)];
    parts.extend(fixed.iter().cloned());
    parts.push(taken);
    if picture.apart && rows > 1 {
        parts.push("a scale for each row".into());
    }
    parts.join("  \u{b7}  ")
}

/// Who sees only the picture has not seen the lab's warning.
fn warning(documents: &[&Value]) -> Option<String> {
    let idle = documents.iter().filter_map(|d| d["idle_percent"].as_array()).flatten();
    let least = idle.filter_map(Value::as_f64).min_by(f64::total_cmp)?;
    (least < IDLE_LEAST).then(|| {
        format!("Taken on a busy machine (a round began with {least:.0}% of it idle): noise")
    })
}

/// Machine, versions of what is shown, and the commands.
fn notes(documents: &[&Value], forwarders: &[&str]) -> Vec<String> {
    let machine = &documents[0]["machine"];
    let fact = |key: &str| machine[key].as_str().filter(|v| !v.is_empty());
    let place =
        [("", "processor"), ("Linux ", "kernel"), ("congestion control: ", "congestion control")];
    let place = place.iter().filter_map(|(what, key)| Some(format!("{what}{}", fact(key)?)));
    let program = |key: &&str| {
        // What a program adds in parentheses, as the path of its file, says nothing to a reader elsewhere.
        let version = fact(key)?.split(" (").next()?;
        Some(version.replace(" unknown version,", ","))
    };
    let programs = forwarders.iter().filter(|f| !["A", "B"].contains(f));
    let mut notes = vec![place.collect::<Vec<_>>().join(" \u{b7} ")];
    notes.push(programs.filter_map(program).collect::<Vec<_>>().join(" \u{b7} "));
    // Of two builds.
    notes.extend(["A", "B"].iter().filter_map(|side| Some(format!("{side}: {}", fact(side)?))));
    for d in documents {
        if let Some(command) = d["machine"]["command"].as_str() {
            notes.push(without_outputs(command));
        }
    }
    notes.retain(|n| !n.is_empty());
    notes.dedup();
    notes
}

/// A command without where its results went: that changes nothing in them.
fn without_outputs(command: &str) -> String {
    let mut words = command.split(' ');
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if ["--json", "--plot"].contains(&word) {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// Numbers of two machines, kernels or builds in one picture would be taken for one comparison.
fn same_machine(first: &Value, documents: &[&Value]) -> Res<()> {
    for d in documents {
        let facts = first["machine"].as_object().into_iter().flatten();
        for (key, value) in facts.filter(|(key, _)| *key != "command") {
            let other = &d["machine"][key];
            if other != value {
                return Err(format!(
                    "plot: documents of {} with different {key} ({value} and {other}): draw them apart",
                    first["verb"]
                ));
            }
        }
    }
    Ok(())
}

/// A document of two directions, one forwarder with a failed run and one without the figure.
pub(super) fn self_check() -> Res<()> {
    let series = |forwarder: &str, direction: &str, runs: Value| json!({ "forwarder": forwarder, "mtu": 1500, "direction": direction, "runs": runs });
    let document = json!({
        "verb": "tcp", "rounds": 3, "streams": 4, "idle_percent": [99, 50], "machine": { "command": "perf -- tcp --json x --secs 1" },
        "series": [
            series("direct", "up", json!([{ "gbps": 9.0 }])),
            series("ringtap", "up", json!([{ "gbps": 1.0, "k": 1024 }, { "error": "x" }, { "gbps": 3.0 }])),
            series("direct", "down", json!([{ "gbps": 8.0 }])),
            series("ringtap", "down", json!([{ "error": "x" }])),
        ],
    });
    let of = |key| Picture::new("tcp", "", "t", key, ("u", 2.0), true);
    let Some(c) = chart(&of("gbps"), &[&document])? else { return Err("plot: no chart".into()) };
    let bars = &c.rows[0].panels;
    let right = c.columns == ["guest \u{2192} host", "host \u{2192} guest"]
        && c.rows.len() == 1
        && c.rows[0].name.is_empty()
        && c.subtitle.contains("MTU 1500  \u{b7}  4 streams")
        && c.warning.as_deref().is_some_and(|w| w.contains("50%"))
        && bars[0][1].spread == Some(Spread { median: 4.0, min: 2.0, max: 6.0 })
        && bars[0][1].runs == (2, 3)
        && bars[1][1].spread.is_none()
        && bars[1][1].runs == (0, 1)
        && c.notes == ["perf -- tcp --secs 1"];
    let only = chart(&of("k"), &[&document])?;
    let only = only.is_some_and(|c| c.rows[0].panels[0].len() == 1);
    let none = chart(&of("nothing"), &[&document])?.is_none();
    if right && only && none { Ok(()) } else { Err(format!("plot: misread {document}")) }
}
