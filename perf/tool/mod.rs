//! The lab's own load tools: small clients and servers.
//!
//! A tool is this program, started in a place as `__tool NAME ARG...`. Clients print one JSON object (a
//! holder: a line), or end with a sentence. All sockets are ordinary blocking ones: a few are busy, the many
//! are silent and need no thread.

use std::ffi::OsString;
use std::io::Write;
use std::str::FromStr;

use serde_json::Value;

use crate::{Context, Res};

pub(crate) mod echo;
pub(crate) mod flood;
pub(crate) mod line;
pub(crate) mod nuisance;

/// The first port the servers use.
pub(crate) const PORT: u16 = 7000;
/// Clients of `crr`. Each has a server port of its own, or the ports in TIME_WAIT of the faster forwarders
/// would run out within seconds.
pub(crate) const CRR_CLIENTS: u16 = 4;
/// Where connections are kept that say nothing after their first byte.
const KEEP_PORT: u16 = PORT + CRR_CLIENTS;

/// Becomes a tool.
pub(crate) fn run(args: &[OsString]) -> Res<()> {
    let words: Vec<&str> = args.iter().filter_map(|a| a.to_str()).collect();
    match words.as_slice() {
        ["echo-server", request, reply] => echo::serve(number(request)?, number(reply)?),
        ["tcp-rr", at, request, reply, ms] => {
            say(&echo::tcp_rr(at, number(request)?, number(reply)?, number(ms)?)?)
        }
        ["udp-rr", at, request, reply, ms] => {
            say(&echo::udp_rr(at, number(request)?, number(reply)?, number(ms)?)?)
        }
        ["crr", at, ms] => say(&echo::crr(at, number(ms)?)?),
        ["visit", at, ms] => say(&echo::visit(at, number(ms)?)?),
        ["hold", at, count] => echo::hold(at, number(count)?),
        ["udp-server", size, gso, place] => {
            flood::serve(number(size)?, *gso == "gso", *place == "remote")
        }
        ["udp", at, size, gso, place, streams, sender, ms] => {
            let end = (number(size)?, *gso == "gso", *place == "remote");
            let streams = number(streams)?;
            say(&flood::bisect(at, end, streams, *sender == "client", number(ms)?)?)
        }
        ["stall-server"] => nuisance::serve(),
        ["stall", at, sender] => nuisance::stall(at, *sender == "client"),
        ["syns", at] => nuisance::syns(at),
        ["datagrams", at] => nuisance::datagrams(at),
        ["line", remote, ms] => line::lay(number(remote)?, number(ms)?),
        ["garbage", at] => nuisance::garbage(at),
        _ => Err(format!("no tool {words:?}")),
    }
}

fn say(value: &Value) -> Res<()> {
    writeln!(std::io::stdout(), "{value}").context("say the result")
}

fn number<T: FromStr<Err: std::fmt::Display>>(word: &str) -> Res<T> {
    word.parse().context(word)
}
