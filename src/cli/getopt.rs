//! Reads options as glibc's `getopt_long` does (getopt(3)), since callers and their tests know its ways: options and
//! operands in any order, unique prefixes of long options, `--opt=VAL` and `--opt VAL`, clusters of short options, `--`.
//! The messages are glibc's, word for word. One difference: `POSIXLY_CORRECT` in the environment is not looked at.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// One way to write an option.
pub(super) struct Opt<N, T> {
    /// A letter or a long name.
    pub(super) name: N,
    /// Whether a value follows.
    pub(super) has_value: bool,
    /// What the caller knows it by. Long options with the same one never make a prefix ambiguous.
    pub(super) id: T,
}

/// Walks over the words of a command line.
pub(super) struct Getopt<'a, T: 'static> {
    /// argv\[0\], which starts each message.
    program: &'a str,
    short: &'static [Opt<u8, T>],
    long: &'static [Opt<&'static str, T>],
    words: std::slice::Iter<'a, OsString>,
    /// What is left of a cluster of short options.
    cluster: &'a [u8],
    operands: Vec<&'a OsStr>,
}

/// An option and its value.
type Found<'a, T> = (T, &'a OsStr);

impl<'a, T: Copy + PartialEq + 'static> Getopt<'a, T> {
    pub(super) fn new(
        program: &'a str,
        args: &'a [OsString],
        short: &'static [Opt<u8, T>],
        long: &'static [Opt<&'static str, T>],
    ) -> Self {
        Self { program, short, long, words: args.iter(), cluster: &[], operands: Vec::new() }
    }

    /// The next option; its value is empty where it has none. `None`: only operands are left.
    ///
    /// # Errors
    /// glibc's message.
    pub(super) fn next(&mut self) -> Result<Option<Found<'a, T>>, String> {
        if !self.cluster.is_empty() {
            return self.next_short().map(Some);
        }
        while let Some(word) = self.words.next() {
            match word.as_bytes() {
                b"--" => {
                    self.operands.extend(self.words.by_ref().map(OsString::as_os_str));
                    return Ok(None);
                }
                [b'-', b'-', long @ ..] => return self.next_long(long).map(Some),
                [b'-', cluster @ ..] if !cluster.is_empty() => {
                    self.cluster = cluster;
                    return self.next_short().map(Some);
                }
                _ => self.operands.push(word),
            }
        }
        Ok(None)
    }

    /// All operands in order, once [`next`](Self::next) has found no more options.
    pub(super) fn into_operands(self) -> Vec<&'a OsStr> {
        self.operands
    }

    fn next_short(&mut self) -> Result<Found<'a, T>, String> {
        let Some((&letter, rest)) = self.cluster.split_first() else {
            return Err(format!("{}: invalid option -- ''", self.program));
        };
        self.cluster = rest;
        let shown = String::from_utf8_lossy(std::slice::from_ref(&letter)).into_owned();
        let Some(opt) = self.short.iter().find(|opt| opt.name == letter) else {
            return Err(format!("{}: invalid option -- '{shown}'", self.program));
        };
        if !opt.has_value {
            return Ok((opt.id, OsStr::new("")));
        }
        // The rest of the word is the value, or the next word is.
        self.cluster = &[];
        if !rest.is_empty() {
            return Ok((opt.id, OsStr::from_bytes(rest)));
        }
        match self.words.next() {
            Some(value) => Ok((opt.id, value)),
            None => Err(format!("{}: option requires an argument -- '{shown}'", self.program)),
        }
    }

    fn next_long(&mut self, word: &'a [u8]) -> Result<Found<'a, T>, String> {
        let (name, value) = match word.iter().position(|&b| b == b'=') {
            Some(at) => (&word[..at], word.get(at + 1..).map(OsStr::from_bytes)),
            None => (word, None),
        };
        let shown = String::from_utf8_lossy(word);
        let starts = |opt: &&Opt<&str, T>| opt.name.as_bytes().starts_with(name);
        let exact = self.long.iter().find(|opt| opt.name.as_bytes() == name);
        let Some(opt) = exact.or_else(|| self.long.iter().find(starts)) else {
            return Err(format!("{}: unrecognized option '--{shown}'", self.program));
        };
        if exact.is_none() && self.long.iter().filter(starts).any(|other| other.id != opt.id) {
            let names: String =
                self.long.iter().filter(starts).map(|o| format!(" '--{}'", o.name)).collect();
            return Err(format!(
                "{}: option '--{shown}' is ambiguous; possibilities:{names}",
                self.program
            ));
        }
        match (opt.has_value, value) {
            (false, None) => Ok((opt.id, OsStr::new(""))),
            (true, Some(value)) => Ok((opt.id, value)),
            (false, Some(_)) => {
                Err(format!("{}: option '--{}' doesn't allow an argument", self.program, opt.name))
            }
            // Whatever comes next is the value, even if it looks like an option.
            (true, None) => {
                self.words.next().map(|value| (opt.id, value.as_os_str())).ok_or_else(|| {
                    format!("{}: option '--{}' requires an argument", self.program, opt.name)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: &[Opt<u8, char>] = &[
        Opt { name: b'a', has_value: false, id: 'a' },
        Opt { name: b'v', has_value: true, id: 'v' },
    ];
    const LONG: &[Opt<&str, char>] = &[
        Opt { name: "all", has_value: false, id: 'a' },
        Opt { name: "value", has_value: true, id: 'v' },
        Opt { name: "value-too", has_value: true, id: 'w' },
        Opt { name: "same-one", has_value: false, id: 's' },
        Opt { name: "same-two", has_value: false, id: 's' },
    ];

    /// Options as `a`, `v=5`, then `|` and the operands; or the message.
    fn read(line: &str) -> String {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let mut getopt = Getopt::new("prog", &args, SHORT, LONG);
        let mut seen = Vec::new();
        loop {
            match getopt.next() {
                Ok(Some((id, value))) if value.is_empty() => seen.push(id.to_string()),
                Ok(Some((id, value))) => seen.push(format!("{id}={}", value.display())),
                Ok(None) => break,
                Err(message) => return message,
            }
        }
        seen.push("|".to_owned());
        seen.extend(getopt.into_operands().iter().map(|o| o.display().to_string()));
        seen.join(" ")
    }

    #[test]
    fn what_is_read() {
        for (line, seen) in [
            ("x -a y", "a | x y"),
            ("-aav5 x", "a a v=5 | x"),
            ("-v 5 -v5 -v=5", "v=5 v=5 v==5 |"),
            ("-v -a", "v=-a |"),
            ("--value --all", "v=--all |"),
            ("--value=5=6 --al", "v=5=6 a |"),
            ("--value -- --", "v=-- |"),
            ("x -- -a --all", "| x -a --all"),
            ("- -a", "a | -"),
            ("--sa", "s |"),
        ] {
            assert_eq!(read(line), seen, "{line}");
        }
    }

    #[test]
    fn messages() {
        for (line, message) in [
            ("-x", "prog: invalid option -- 'x'"),
            ("-ax", "prog: invalid option -- 'x'"),
            ("-v", "prog: option requires an argument -- 'v'"),
            ("--x=1", "prog: unrecognized option '--x=1'"),
            ("--all=1", "prog: option '--all' doesn't allow an argument"),
            ("--al=1", "prog: option '--all' doesn't allow an argument"),
            ("--value", "prog: option '--value' requires an argument"),
            (
                "--val=3",
                "prog: option '--val=3' is ambiguous; possibilities: '--value' '--value-too'",
            ),
        ] {
            assert_eq!(read(line), message, "{line}");
        }
    }
}
