//! Looks at this machine: what works, what will be slower or missing, and the remedy.
//!
//! Three steps. `facts` asks the machine, changing nothing; `trial` tries the rest in a child that makes
//! namespaces of its own and ends; `judge` turns the answers into findings and is pure, so that each finding is
//! tested on machines that we do not have.

mod facts;
mod judge;
mod trial;

use std::fmt::Write as _;

/// Whether something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but slower, or with a lower limit, than it could.
    Slow,
    /// Something will not work, while the rest does.
    Lacking,
    /// Nothing works without it.
    Fatal,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Slow => "slow",
            Self::Lacking | Self::Fatal => "missing",
        }
    }
}

/// One line of the report.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    verdict: Verdict,
    /// What was looked at.
    what: &'static str,
    /// What was seen, and what follows from it.
    found: String,
    /// What to do about it; empty where there is nothing.
    remedy: String,
}

/// Looks at this machine. The report, without a newline at its end, and the exit code: 0 when ringtap can run here, 1
/// when something is missing that it cannot do without.
///
/// Forks a child, so no other thread should be running yet.
pub fn run() -> (String, u8) {
    render(&judge::judge(&facts::gather()))
}

fn render(findings: &[Finding]) -> (String, u8) {
    let mut report = String::new();
    for Finding { verdict, what, found, remedy } in findings {
        let arrow = if remedy.is_empty() { "" } else { " -- " };
        // Writing to a String cannot fail.
        let _ = writeln!(report, "{:<7}  {what}: {found}{arrow}{remedy}", verdict.word());
    }
    let named = |wanted: Verdict| {
        let names: Vec<&str> =
            findings.iter().filter(|f| f.verdict == wanted).map(|f| f.what).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let fatal = named(Verdict::Fatal);
    report += &match &fatal {
        Some(names) => format!("ringtap cannot run here: {names}"),
        None => match (named(Verdict::Lacking), named(Verdict::Slow)) {
            (None, None) => "ringtap runs here, with all it has".to_owned(),
            (Some(missing), None) => format!("ringtap runs here; missing: {missing}"),
            (None, Some(slow)) => format!("ringtap runs here; slower or fewer: {slow}"),
            (Some(missing), Some(slow)) => {
                format!("ringtap runs here; missing: {missing}; slower or fewer: {slow}")
            }
        },
    };
    (report, u8::from(fatal.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(verdict: Verdict, what: &'static str, remedy: &str) -> Finding {
        Finding { verdict, what, found: "seen".to_owned(), remedy: remedy.to_owned() }
    }

    #[test]
    fn lines_and_summary() {
        let ok = || finding(Verdict::Ok, "a", "");
        let slow = || finding(Verdict::Slow, "b", "do this");
        let lacking = || finding(Verdict::Lacking, "c", "do that");
        let fatal = || finding(Verdict::Fatal, "d", "");
        let (report, code) = render(&[ok(), slow(), lacking()]);
        assert_eq!(code, 0);
        assert_eq!(
            report,
            "ok       a: seen\n\
             slow     b: seen -- do this\n\
             missing  c: seen -- do that\n\
             ringtap runs here; missing: c; slower or fewer: b"
        );
        let last = |findings: &[Finding]| {
            let (report, code) = render(findings);
            (report.lines().last().unwrap().to_owned(), code)
        };
        assert_eq!(last(&[ok()]), ("ringtap runs here, with all it has".to_owned(), 0));
        assert_eq!(last(&[slow()]), ("ringtap runs here; slower or fewer: b".to_owned(), 0));
        assert_eq!(last(&[lacking()]), ("ringtap runs here; missing: c".to_owned(), 0));
        assert_eq!(last(&[ok(), fatal(), slow()]), ("ringtap cannot run here: d".to_owned(), 1));
    }

    #[test]
    fn this_machine() {
        // What it finds depends on the machine; that it tells about everything does not.
        let (report, code) = run();
        let fatal = report.lines().last().unwrap().starts_with("ringtap cannot run here: ");
        assert_eq!(code == 1, fatal, "{report}");
        for what in ["kernel", "io_uring", "/dev/net/tun", "user namespaces", "resolv.conf", "IPv6"]
        {
            assert!(report.contains(&format!("  {what}: ")), "{what}\n{report}");
        }
    }
}
