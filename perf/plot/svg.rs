//! A chart as SVG: bars that lie, one colour for each forwarder, the number at each bar's end.
//!
//! White under all of it, so that a dark page does not swallow the text.

use std::fmt::Write as _;

use super::read::{Bar, Chart, Row};
use crate::Res;
use crate::report::Spread;

/// Pixels, as GitHub shows a README about that wide.
const WIDTH: f64 = 900.0;
const MARGIN: f64 = 28.0;
/// Between two panels of a row.
const GAP: f64 = 30.0;
/// Of a bar, and from one to the next.
const BAR: f64 = 18.0;
const PITCH: f64 = 25.0;
/// Gridlines of a panel, about.
const TICKS: f64 = 4.0;

const INK: &str = "#1f2328";
const FAINT: &str = "#59636e";
const GRID: &str = "#e4e7ea";
const FAILED: &str = "#a8322a";
const FONT: &str = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'Liberation Sans', Arial, 'DejaVu Sans', sans-serif";

/// Colours of Okabe and Ito's palette, told apart by eyes of every kind. The rivals' are paler: ringtap's
/// is also the darkest, so it stands out without any colour at all.
const COLOURS: [(&str, &str); 8] = [
    ("direct", "#c3c8ce"),
    ("ringtap", "#0064a8"),
    ("slirp4netns", "#eab64d"),
    ("pasta", "#7fc4ae"),
    ("rootlesskit", "#d99ac0"),
    ("ringtap-open", "#5d9fd0"),
    // Of two builds.
    ("A", "#9aa7b4"),
    ("B", "#0064a8"),
];
/// For those without a colour of their own, in turn.
const OTHERS: [&str; 2] = ["#8fcbee", "#e0915f"];

/// Where things are.
struct Frame {
    /// Right end of the names, left end of the first panel's bars.
    left: f64,
    /// Width of a panel, number included, and of its longest bar.
    panel: f64,
    bar: f64,
    /// The number at the end of the longest bar, and the one between gridlines.
    max: f64,
    step: f64,
}

impl Frame {
    /// For some rows of a chart. Names and panels have the same place in all of them.
    fn of(chart: &Chart, rows: &[Row]) -> Self {
        let bars = || rows.iter().flat_map(|r| &r.panels).flatten();
        let all = chart.rows.iter().flat_map(|r| &r.panels).flatten();
        let longest = |texts: &mut dyn Iterator<Item = f64>| texts.fold(0.0, f64::max);
        let names = longest(&mut all.map(|b| width(&b.name, 13.0, is_own(&b.name))));
        let left = MARGIN + names + 10.0;
        let columns = chart.columns.len().max(1) as f64;
        let panel = (WIDTH - MARGIN - left - GAP * (columns - 1.0)) / columns;
        let max = longest(&mut bars().filter_map(|b| Some(b.spread?.max)));
        let max = if max > 0.0 { max } else { 1.0 };
        // As long as leaves room for every bar's own text.
        let fits = bars().filter_map(|b| {
            let share = b.spread?.max / max;
            (share > 0.0).then(|| (panel - 10.0 - width(&value(b), 13.0, is_own(&b.name))) / share)
        });
        let bar = fits.fold(panel, f64::min).max(20.0);
        Self { left, panel, bar, max, step: step(max) }
    }

    /// Left end of a column.
    fn column(&self, i: usize) -> f64 {
        self.left + (self.panel + GAP) * i as f64
    }

    /// A number as a length.
    fn length(&self, number: f64) -> f64 {
        self.bar * number / self.max
    }
}

/// A document of its own.
pub(super) fn draw(chart: &Chart) -> String {
    let frame = Frame::of(chart, &chart.rows);
    let mut body = String::new();
    let mut y = 44.0;
    text(&mut body, MARGIN, y, &chart.title, Style::new(23.0, INK).bold());
    y += 2.0;
    for line in wrapped(&chart.subtitle, "  \u{b7}  ", 13.5) {
        y += 21.0;
        text(&mut body, MARGIN, y, &line, Style::new(13.5, FAINT));
    }
    if let Some(warning) = &chart.warning {
        y += 21.0;
        text(&mut body, MARGIN, y, warning, Style::new(13.5, FAILED).bold());
    }
    if chart.columns.len() > 1 {
        y += 34.0;
        for (i, name) in chart.columns.iter().enumerate() {
            text(&mut body, frame.column(i), y, name, Style::new(15.0, INK).bold());
        }
    }
    for row in &chart.rows {
        y = if chart.apart {
            draw_row(&mut body, &Frame::of(chart, std::slice::from_ref(row)), row, y)
        } else {
            draw_row(&mut body, &frame, row, y)
        };
    }
    y += 16.0;
    rule(&mut body, y);
    y += 4.0;
    for line in chart.notes.iter().flat_map(|n| wrapped(n, " ", 11.0)) {
        y += 16.0;
        text(&mut body, MARGIN, y, &line, Style::new(11.0, FAINT));
    }
    let height = y + 20.0;
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" font-family="{FONT}">
<title>{}</title>
<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>
{body}</svg>"##,
        escaped(&format!("{}: {}", chart.title, chart.subtitle))
    );
    svg
}

/// Draws a row below `y`; gives where it ends.
fn draw_row(body: &mut String, frame: &Frame, row: &Row, mut y: f64) -> f64 {
    y += 20.0;
    if !row.name.is_empty() {
        y += 12.0;
        text(body, MARGIN, y, &row.name, Style::new(13.5, INK).bold());
        y += 8.0;
    }
    let count = row.panels.iter().map(Vec::len).max().unwrap_or(0);
    let bottom = y + PITCH * count as f64;
    for (i, panel) in row.panels.iter().enumerate() {
        let x = frame.column(i);
        grid(body, frame, x, y, bottom);
        for (j, bar) in panel.iter().enumerate() {
            let top = y + PITCH * j as f64 + (PITCH - BAR) / 2.0;
            if i == 0 {
                let style = Style::new(13.0, INK).end();
                let style = if is_own(&bar.name) { style.bold() } else { style };
                text(body, x - 10.0, top + 13.5, &bar.name, style);
            }
            draw_bar(body, frame, bar, j, x, top);
        }
    }
    bottom + 16.0
}

fn grid(body: &mut String, frame: &Frame, x: f64, top: f64, bottom: f64) {
    let mut tick = 0;
    loop {
        let number = frame.step * f64::from(tick);
        if number > frame.max {
            return;
        }
        let at = x + frame.length(number);
        let colour = if tick == 0 { "#8c959f" } else { GRID };
        let _ = writeln!(
            body,
            r#"<path d="M{at:.1} {top:.1}V{bottom:.1}" stroke="{colour}" fill="none"/>"#
        );
        let label = grouped(number, places(frame.step));
        text(body, at, bottom + 14.0, &label, Style::new(10.5, FAINT).middle());
        tick += 1;
    }
}

fn draw_bar(body: &mut String, frame: &Frame, bar: &Bar, index: usize, x: f64, top: f64) {
    let middle = top + BAR / 2.0;
    let base = top + 13.5;
    let Some(Spread { median, min, max }) = bar.spread else {
        let style = Style::new(12.0, if bar.runs.1 == 0 { FAINT } else { FAILED });
        text(body, x + 8.0, base, &value(bar), style);
        return;
    };
    let colour = colour(&bar.name, index);
    let long = frame.length(median).max(1.0);
    let _ = writeln!(
        body,
        r#"<rect x="{x:.1}" y="{top:.1}" width="{long:.1}" height="{BAR}" rx="1.5" fill="{colour}"/>"#
    );
    let mut end = x + long;
    let (from, to) = (x + frame.length(min), x + frame.length(max));
    // Closer than its own strokes it would show nothing.
    if to - from > 2.5 {
        end = end.max(to);
        let path = format!(
            "M{from:.1} {middle:.1}H{to:.1}M{from:.1} {:.1}v8M{to:.1} {:.1}v8",
            middle - 4.0,
            middle - 4.0
        );
        // White around it: it must be seen on the dark bar, too.
        for (stroke, thick) in [("#ffffff", 3.6), (INK, 1.4)] {
            let _ = writeln!(
                body,
                r#"<path d="{path}" stroke="{stroke}" stroke-width="{thick}" fill="none"/>"#
            );
        }
    }
    let style = Style::new(13.0, INK);
    let style = if is_own(&bar.name) { style.bold() } else { style };
    text(body, end + 8.0, base, &value(bar), style.haloed());
}

/// What stands at the end of a bar.
fn value(bar: &Bar) -> String {
    let (good, all) = bar.runs;
    match bar.spread {
        None if all == 0 => "not measured".into(),
        None => format!("failed ({all} of {all} runs)"),
        Some(s) if good < all => format!("{} ({good} of {all} runs)", figure(s.median)),
        Some(s) => figure(s.median),
    }
}

/// A measured number: three digits that mean something, and a count as it is.
fn figure(number: f64) -> String {
    let places = match number.abs() {
        n if n >= 99.95 || n.fract() == 0.0 => 0,
        n if n >= 9.995 => 1,
        n if n >= 0.995 => 2,
        _ => 3,
    };
    grouped(number, places)
}

/// With a comma between thousands.
fn grouped(number: f64, places: usize) -> String {
    let text = format!("{number:.places$}");
    if number < 1000.0 || places > 0 {
        return text;
    }
    let digits: Vec<char> = text.chars().collect();
    let groups: Vec<String> = digits.rchunks(3).rev().map(|c| c.iter().collect()).collect();
    groups.join(",")
}

/// 1, 2 or 5 with zeros: the distance of gridlines up to a number.
fn step(max: f64) -> f64 {
    let rough = max / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= rough).unwrap_or(10.0);
    factor * power
}

/// Places that a distance of gridlines needs.
fn places(step: f64) -> usize {
    (0..6).find(|p| (step * 10f64.powi(*p)).fract().abs() < 1e-6).map_or(6, |p| p as usize)
}

fn colour(name: &str, index: usize) -> &'static str {
    // More words after a name are a variant of it.
    let is = |known: &str| name.split([' ', '-', '/', ',']).next() == Some(known);
    let own = COLOURS.iter().find(|(n, _)| is(n)).map(|(_, c)| *c);
    own.unwrap_or(OTHERS[index % OTHERS.len()])
}

/// Whether it is what this lab is for.
fn is_own(name: &str) -> bool {
    name == "ringtap" || name == "B"
}

fn rule(body: &mut String, y: f64) {
    let to = WIDTH - MARGIN;
    let _ = writeln!(body, r#"<path d="M{MARGIN} {y:.1}H{to}" stroke="{GRID}" fill="none"/>"#);
}

/// How a text looks.
#[derive(Clone, Copy)]
struct Style {
    size: f64,
    colour: &'static str,
    bold: bool,
    anchor: &'static str,
    /// White around the letters, where gridlines pass under them.
    halo: bool,
}

impl Style {
    fn new(size: f64, colour: &'static str) -> Self {
        Self { size, colour, bold: false, anchor: "start", halo: false }
    }

    fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    fn haloed(self) -> Self {
        Self { halo: true, ..self }
    }

    fn end(self) -> Self {
        Self { anchor: "end", ..self }
    }

    fn middle(self) -> Self {
        Self { anchor: "middle", ..self }
    }
}

fn text(body: &mut String, x: f64, y: f64, text: &str, style: Style) {
    let Style { size, colour, bold, anchor, halo } = style;
    let weight = if bold { r#" font-weight="600""# } else { "" };
    let halo = if halo {
        r##" paint-order="stroke" stroke="#ffffff" stroke-width="4" stroke-linejoin="round""##
    } else {
        ""
    };
    let _ = writeln!(
        body,
        r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}{halo}>{}</text>"#,
        escaped(text)
    );
}

/// About how wide a text is: the reader's font is not known here, and this is a wide one's mean.
fn width(text: &str, size: f64, bold: bool) -> f64 {
    text.chars().count() as f64 * size * if bold { 0.62 } else { 0.56 }
}

/// Lines that fit, broken where `between` stands.
fn wrapped(text: &str, between: &str, size: f64) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(between) {
        let Some(line) = lines.last_mut() else { break };
        if !line.is_empty()
            && width(&format!("{line}{between}{word}"), size, false) > WIDTH - 2.0 * MARGIN
        {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push_str(between);
            }
            line.push_str(word);
        }
    }
    lines
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;")
}

/// Lengths, numbers and escapes of one small chart.
pub(super) fn self_check() -> Res<()> {
    let spread = |median| Some(Spread { median, min: median / 2.0, max: median });
    let bar = |name: &str, spread, runs| Bar { name: name.into(), spread, runs };
    let panel = vec![
        bar("direct", spread(20.0), (5, 5)),
        bar("ringtap", spread(10.0), (4, 5)),
        bar("pasta", None, (0, 5)),
    ];
    let chart = Chart {
        title: "a < b".into(),
        subtitle: String::new(),
        warning: None,
        apart: false,
        columns: vec![String::new()],
        rows: vec![Row { name: String::new(), panels: vec![panel] }],
        notes: Vec::new(),
    };
    let svg = draw(&chart);
    let lengths: Vec<f64> = svg
        .split("<rect x=")
        .skip(1)
        .filter_map(|r| r.split_once("width=\"")?.1.split('"').next()?.parse().ok())
        .collect();
    let half = matches!(lengths[..], [all, half] if (all / 2.0 - half).abs() < 0.2);
    let words = ["a &lt; b", ">20<", "10 (4 of 5 runs)", "failed (5 of 5 runs)"];
    let missing: Vec<_> = words.iter().filter(|w| !svg.contains(**w)).collect();
    let numbers =
        [(12_345.6, "12,346"), (0.123_45, "0.123"), (5.0, "5"), (5.01, "5.01"), (123.4, "123")];
    let wrong: Vec<_> = numbers.iter().filter(|(n, text)| figure(*n) != *text).collect();
    let steps = [(2.0, 0), (0.5, 1), (0.02, 2)].iter().all(|(s, p)| places(*s) == *p)
        && step(10.0) == 5.0
        && step(7.0) == 2.0
        && step(0.4) == 0.1;
    if half && missing.is_empty() && wrong.is_empty() && steps {
        return Ok(());
    }
    Err(format!("plot: {lengths:?}, without {missing:?}, wrong {wrong:?}, steps {steps}"))
}
