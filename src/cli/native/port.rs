//! `ringtap port add|list|remove`: the command line of a client.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::Arg;

use super::{api_path, reason, refusal, refuse};
use crate::cli::{Command, Refusal, help, publish, value};
use crate::config::{ForwardId, PortCommand, PortRequest};

/// Reads everything after `port`.
pub(super) fn parse(args: &[OsString]) -> Result<Command, Refusal> {
    let mut api: Option<PathBuf> = None;
    let mut words: Vec<String> = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    loop {
        match parser.next() {
            Ok(None) => break,
            Ok(Some(Arg::Short('h') | Arg::Long("help"))) => {
                return Ok(Command::Print(help::PORT.to_owned()));
            }
            Ok(Some(Arg::Long("api"))) => {
                let text = parser.value().map_err(|e| refusal(format!("--api: {}", reason(&e))))?;
                let text = text.to_string_lossy();
                let path =
                    api_path(&text).map_err(|why| refusal(format!("--api {text}: {why}")))?;
                api = Some(path);
            }
            Ok(Some(Arg::Value(word))) => words.push(word.to_string_lossy().into_owned()),
            Ok(Some(Arg::Short(c))) => return refuse(unknown_option(&format!("-{c}"))),
            Ok(Some(Arg::Long(name))) => return refuse(unknown_option(&format!("--{name}"))),
            Err(e) => return refuse(reason(&e)),
        }
    }
    let mut words = words.into_iter();
    let Some(verb) = words.next() else {
        return refuse("port: add, list or remove is missing; see ringtap port --help");
    };
    let operand = words.next();
    if let Some(extra) = words.next() {
        return refuse(format!("port {verb}: {extra} is one too many; see ringtap port --help"));
    }
    let request = match (verb.as_str(), operand) {
        ("add", Some(text)) => {
            let forward = publish::forward(&text)
                .map_err(|why| refusal(format!("port add {text}: {why}")))?;
            PortRequest::Add(forward)
        }
        ("add", None) => {
            return refuse("port add: what to forward is missing, as in: ringtap port add 8080:80");
        }
        ("list", None) => PortRequest::List,
        ("list", Some(extra)) => return refuse(format!("port list {extra}: it takes no operand")),
        ("remove", Some(text)) => match text.parse() {
            Ok(id) => PortRequest::Remove(ForwardId(id)),
            Err(_) => {
                return refuse(format!(
                    "port remove {text}: must be the number of a forward; ringtap port list tells them"
                ));
            }
        },
        ("remove", None) => {
            return refuse(
                "port remove: the number of a forward is missing; ringtap port list tells them",
            );
        }
        (other, _) => {
            return refuse(match value::nearest(other, ["add", "list", "remove"]) {
                Some(near) => format!("port {other}: no such command; did you mean {near}?"),
                None => format!("port {other}: no such command; see ringtap port --help"),
            });
        }
    };
    match api {
        Some(api) => Ok(Command::Port(PortCommand { api, request })),
        None => refuse(format!(
            "port {verb}: --api PATH is missing: the path that the running ringtap was given"
        )),
    }
}

fn unknown_option(option: &str) -> String {
    format!("{option}: no such option; see ringtap port --help")
}

#[cfg(test)]
mod tests {
    use crate::cli::Command;
    use crate::cli::tests::parse_words;
    use crate::config::{ForwardId, PortCommand, PortRequest};

    fn command(line: &str) -> PortCommand {
        match parse_words(line) {
            Ok(Command::Port(command)) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn what_can_be_asked() {
        let add = command("ringtap port add --api /run/api [::1]:8080:80/udp");
        assert_eq!(add.api.to_str(), Some("/run/api"));
        let PortRequest::Add(forward) = add.request else { panic!("{add:?}") };
        assert_eq!((forward.host_addr.to_string(), forward.guest_port), ("::1".into(), 80));
        let list = command("ringtap port --api=/run/api list");
        assert_eq!(list.request, PortRequest::List);
        let remove = command("ringtap port remove 7 --api /run/api");
        assert_eq!(remove.request, PortRequest::Remove(ForwardId(7)));
    }

    #[test]
    fn mistakes_are_one_line() {
        let long = "x".repeat(108);
        let too_long = format!("--api {long}: a socket's path has at most 107 bytes");
        for (line, text) in [
            ("ringtap port", "port: add, list or remove is missing; see ringtap port --help"),
            ("ringtap port ad --api x", "port ad: no such command; did you mean add?"),
            ("ringtap port show --api x", "port show: no such command; see ringtap port --help"),
            (
                "ringtap port list",
                "port list: --api PATH is missing: the path that the running ringtap was given",
            ),
            ("ringtap port list --api", "--api: a value is missing"),
            ("ringtap port list --api ", "--api : must be the path of a socket"),
            (&format!("ringtap port list --api {long}"), &too_long),
            ("ringtap port list --api x 8080", "port list 8080: it takes no operand"),
            (
                "ringtap port add --api x",
                "port add: what to forward is missing, as in: ringtap port add 8080:80",
            ),
            (
                "ringtap port add --api x 80 81",
                "port add: 81 is one too many; see ringtap port --help",
            ),
            ("ringtap port add --api x 0:80", "port add 0:80: port 0: must be from 1 to 65535"),
            (
                "ringtap port remove --api x",
                "port remove: the number of a forward is missing; ringtap port list tells them",
            ),
            (
                "ringtap port remove --api x 8080:80",
                "port remove 8080:80: must be the number of a forward; ringtap port list tells them",
            ),
            ("ringtap port list -x", "-x: no such option; see ringtap port --help"),
            ("ringtap port list --loud", "--loud: no such option; see ringtap port --help"),
        ] {
            let refusal = parse_words(line).unwrap_err();
            assert_eq!((refusal.code, refusal.stdout.as_str()), (2, ""), "{line}");
            assert_eq!(refusal.stderr, format!("ringtap: {text}"), "{line}");
        }
    }
}
