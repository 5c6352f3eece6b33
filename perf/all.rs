//! Every measuring verb once, one JSON and all pictures.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use crate::options::Options;
use crate::{Context, Res, need_root, plot};

/// What is run, in this order: a verb and its options, as one would type them. Another measurement is one
/// more line here.
const STEPS: &[&str] = &[
    "tcp --streams 1",
    "tcp --streams 4",
    "tcp --streams 16 --mtu 1500",
    "tcp --streams 4 --mtu 1500 --dir both",
    "udp",
    "rr",
    "crr",
    "flows",
    "startup --rounds 20",
    "idle --rounds 1 --secs 60",
    "memory --rounds 1",
    "tcp --inbound --streams 1 --mtu 1500",
    "tcp --inbound --streams 4 --mtu 1500",
    "udp --inbound",
    "crr --inbound",
    "wan --streams 1,4",
    "ports",
    "fair",
];

/// How much of each, where nothing else is asked for: two hours in all, not a day.
const MODEST: [[&str; 2]; 2] = [["--rounds", "3"], ["--secs", "2"]];

/// Runs each step as a process of its own, so that each can be repeated alone by the command it is
/// recorded with, and none takes the others' numbers along when it fails. `given` are the options for
/// all of them.
pub(crate) fn run(options: &Options, given: &[OsString]) -> Res<()> {
    need_root()?;
    if options.perf.is_some() {
        return Err("all: --perf is for tcp".into());
    }
    let (mut documents, mut failed) = (Vec::new(), Vec::new());
    for step in STEPS {
        println!("=== {step}");
        let (document, good) = one(step, given)?;
        documents.extend(document);
        if !good {
            failed.push(*step);
        }
        // Each time: what has been measured is not lost when a later one is interrupted.
        if let Some(file) = &options.json {
            let text = format!("{:#}\n", json!({ "documents": documents }));
            fs::write(file, text).context(file.display())?;
        }
        println!();
    }
    if let Some(folder) = &options.plot {
        plot::draw(&documents, folder)?;
    }
    match failed.len() {
        0 => Ok(()),
        n => Err(format!("{n} of {} steps failed (see above): {}", STEPS.len(), failed.join(", "))),
    }
}

/// Runs a step: what it measured, if it came so far, and whether all of it went well.
fn one(step: &str, given: &[OsString]) -> Res<(Option<Value>, bool)> {
    // Its JSON comes through memory: no file is left behind by whatever end.
    let memory: OwnedFd = memfd_create(c"json", MFdFlags::MFD_CLOEXEC).context("memfd")?;
    let file = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    let (verb, options) = step.split_once(' ').unwrap_or((step, ""));
    let status = Command::new("/proc/self/exe")
        .arg(verb)
        .args(modest(given))
        .args(given)
        // The step's own come later, so they win: they are what makes it this step.
        .args(options.split_whitespace())
        .args(["--json", &file])
        .stdin(Stdio::null())
        .status()
        .context("start a step")?;
    let text = fs::read_to_string(&file).context("what a step wrote")?;
    let document = if text.is_empty() { None } else { Some(serde_json::from_str(&text)) };
    Ok((document.transpose().context(step)?, status.success()))
}

/// Those of [`MODEST`] that nobody has given.
fn modest(given: &[OsString]) -> impl Iterator<Item = &'static str> {
    let is_given = |option: &str| given.iter().any(|g| g.to_string_lossy().starts_with(option));
    MODEST.into_iter().filter(move |[option, _]| !is_given(option)).flatten()
}

/// The options that go to each step: all but the verb and where the results go.
pub(crate) fn passed_on(args: &[OsString]) -> Vec<OsString> {
    const OURS: [&str; 2] = ["--json", "--plot"];
    let mut args = args.iter();
    let mut kept = Vec::new();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        if OURS.contains(&&*text) {
            args.next();
        } else if text != "all" && !OURS.iter().any(|o| text.starts_with(&format!("{o}="))) {
            kept.push(arg.clone());
        }
    }
    kept
}

/// What is passed on, of a line known beforehand (`--test`).
pub(crate) fn self_check() -> Res<()> {
    let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
    let got = passed_on(&words("--bench all --json all --rounds 1 --plot=x --only ringtap"));
    let modest: Vec<_> = modest(&got).collect();
    if got == words("--bench --rounds 1 --only ringtap") && modest == ["--secs", "2"] {
        Ok(())
    } else {
        Err(format!("all: passes on {got:?}, adds {modest:?}"))
    }
}
