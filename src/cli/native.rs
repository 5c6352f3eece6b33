//! `ringtap run|attach|create|port|doctor`: the native command line.
//!
//! Two steps: [`Typed`] is what was written, option by option, each value checked by itself; `into_config` checks
//! what the options mean together. A refusal is one line that names option, value and remedy; exit code 2.

mod made;
mod port;

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use lexopt::Arg;
use tracing::Level;

use super::value::{self, BadCidr, BadMac};
use super::{Command, Host, Refusal, help, publish};
use crate::config::{
    Config, Forward, Mode, NetConfig, Outbound, Personality, Target, V4Net, V6Net, default_workers,
};
use crate::limits::{MTU_MAX, MTU_MIN, MTU_MIN_V6, SOCKET_PATH_MAX, WORKERS_MAX};
use crate::worker::OLDEST_KERNEL;

/// What refuses an option's value: the reason, without option and value.
type Checked<T> = Result<T, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Run,
    Attach,
    Create,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Attach => "attach",
            Self::Create => "create",
        }
    }

    fn help(self) -> String {
        help::page(self.name())
    }
}

const VERBS: [&str; 6] = ["run", "attach", "create", "port", "doctor", "help"];
const EVERY: &[Verb] = &[Verb::Run, Verb::Attach, Verb::Create];
const LASTING: &[Verb] = &[Verb::Attach, Verb::Create];

/// Every long option and the verbs that have it. Parsing is by the match in [`Typed::option`]; this list says
/// where an option belongs, and what was probably meant.
const OPTIONS: &[(&str, &[Verb])] = &[
    ("mtu", EVERY),
    ("cidr", EVERY),
    ("mac", EVERY),
    ("tap-name", EVERY),
    ("workers", EVERY),
    ("publish", EVERY),
    ("api", EVERY),
    ("no-ipv6", EVERY),
    ("no-dns", EVERY),
    ("host-loopback", EVERY),
    ("outbound-addr", EVERY),
    ("outbound-addr6", EVERY),
    ("no-sandbox", EVERY),
    ("no-seccomp", EVERY),
    ("verbose", EVERY),
    ("quiet", EVERY),
    ("log-level", EVERY),
    ("help", EVERY),
    ("keep-uid", &[Verb::Run]),
    ("userns", &[Verb::Attach]),
    ("no-configure", &[Verb::Attach]),
    ("ready-fd", LASTING),
    ("exit-fd", LASTING),
    ("pid-file", LASTING),
];

/// Reads everything after the program's name.
pub(super) fn parse(args: &[OsString], host: &dyn Host) -> Result<Command, Refusal> {
    let Some((verb, rest)) = args.split_first() else {
        return refuse(
            "a command is missing: run, attach, create, port or doctor; see ringtap --help",
        );
    };
    let verb = match verb.to_str().unwrap_or_default() {
        "run" => Verb::Run,
        "attach" => Verb::Attach,
        "create" => Verb::Create,
        "port" => return port::parse(rest),
        "doctor" => return parse_doctor(rest),
        "help" => return parse_help(rest),
        "-h" | "--help" => return Ok(Command::Print(help::PROGRAM.to_owned())),
        "-V" | "--version" => return Ok(Command::Print(version())),
        // For packagers; no help text lists them.
        "man" => return made::man(rest),
        "completions" => return made::completions(rest),
        _ => return refuse(unknown_verb(verb)),
    };
    Typed::read(verb, rest, host).and_then(|typed| match typed {
        None => Ok(Command::Print(verb.help())),
        Some(typed) => Ok(Command::Forward(Box::new(typed.into_config(verb, host)?), Vec::new())),
    })
}

fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("ringtap {version} (needs Linux {OLDEST_KERNEL} or newer)")
}

fn unknown_verb(verb: &OsStr) -> String {
    let verb = verb.to_string_lossy();
    if let Some(option) = verb.strip_prefix("--")
        && OPTIONS.iter().any(|(name, _)| *name == option)
    {
        return format!("{verb}: the command comes first, as in: ringtap run {verb} ...");
    }
    match value::nearest(&verb, VERBS) {
        Some(near) => format!("{verb}: no such command; did you mean {near}?"),
        None => format!("{verb}: no such command; see ringtap --help"),
    }
}

fn parse_doctor(args: &[OsString]) -> Result<Command, Refusal> {
    match args.first() {
        None => Ok(Command::Doctor),
        Some(arg) if arg == "-h" || arg == "--help" => Ok(Command::Print(help::DOCTOR.to_owned())),
        Some(arg) => refuse(format!("doctor {}: it takes no arguments", arg.to_string_lossy())),
    }
}

fn parse_help(args: &[OsString]) -> Result<Command, Refusal> {
    let text = match args.first().map(|verb| verb.to_str().unwrap_or_default()) {
        None => help::PROGRAM.to_owned(),
        Some("run") => Verb::Run.help(),
        Some("attach") => Verb::Attach.help(),
        Some("create") => Verb::Create.help(),
        Some("port") => help::PORT.to_owned(),
        Some("doctor") => help::DOCTOR.to_owned(),
        Some(_) => {
            return refuse(args.first().map_or_else(String::new, |verb| unknown_verb(verb)));
        }
    };
    Ok(Command::Print(text))
}

/// Options and operands as they were typed.
struct Typed {
    mtu: u16,
    v4: V4Net,
    mac: Option<[u8; 6]>,
    tap_name: String,
    workers: Option<usize>,
    ipv6: bool,
    dns: bool,
    host_loopback: bool,
    outbound_v4: Option<Outbound<Ipv4Addr>>,
    outbound_v6: Option<Outbound<Ipv6Addr>>,
    sandbox: bool,
    seccomp: bool,
    /// `-v` minus `-q`.
    verbosity: i32,
    log_level: Option<Level>,
    keep_uid: bool,
    userns: Option<PathBuf>,
    configure: bool,
    ready_fd: Option<RawFd>,
    exit_fd: Option<RawFd>,
    pid_file: Option<PathBuf>,
    forwards: Vec<Forward>,
    api: Option<PathBuf>,
    /// The command with its arguments (`run`), the PID or path.
    operands: Vec<OsString>,
}

impl Typed {
    /// `None`: help was asked for.
    fn read(verb: Verb, args: &[OsString], host: &dyn Host) -> Result<Option<Self>, Refusal> {
        let NetConfig { mtu, v4, .. } = NetConfig::native();
        let mut typed = Self {
            mtu,
            v4,
            mac: None,
            tap_name: "tap0".to_owned(),
            workers: None,
            ipv6: true,
            dns: true,
            host_loopback: false,
            outbound_v4: None,
            outbound_v6: None,
            sandbox: true,
            seccomp: true,
            verbosity: 0,
            log_level: None,
            keep_uid: false,
            userns: None,
            configure: true,
            ready_fd: None,
            exit_fd: None,
            pid_file: None,
            forwards: Vec::new(),
            api: None,
            operands: Vec::new(),
        };
        let mut parser = lexopt::Parser::from_args(args);
        loop {
            let arg = match parser.next() {
                Ok(Some(arg)) => arg,
                Ok(None) => return Ok(Some(typed)),
                Err(e) => return refuse(reason(&e)),
            };
            let name = match arg {
                Arg::Value(operand) => {
                    typed.operands.push(operand);
                    if verb == Verb::Run {
                        let rest = parser.raw_args().map_err(|e| refusal(reason(&e)))?;
                        typed.operands.extend(rest);
                        return Ok(Some(typed));
                    }
                    continue;
                }
                Arg::Short('h') => return Ok(None),
                Arg::Short('v') => "verbose".to_owned(),
                Arg::Short('q') => "quiet".to_owned(),
                Arg::Short('p') => "publish".to_owned(),
                Arg::Short(c) => {
                    return refuse(format!(
                        "-{c}: no such option; see ringtap {} --help",
                        verb.name()
                    ));
                }
                Arg::Long("help") => return Ok(None),
                Arg::Long(name) => name.to_owned(),
            };
            if !OPTIONS.iter().any(|(n, verbs)| *n == name && verbs.contains(&verb)) {
                return refuse(unknown_option(verb, &name));
            }
            if !typed.flag(&name) {
                typed.option(&name, &mut parser, host)?;
            }
        }
    }

    /// Takes an option without a value; false: it is none.
    fn flag(&mut self, name: &str) -> bool {
        match name {
            "no-ipv6" => self.ipv6 = false,
            "no-dns" => self.dns = false,
            "host-loopback" => self.host_loopback = true,
            "no-sandbox" => self.sandbox = false,
            "no-seccomp" => self.seccomp = false,
            "verbose" => self.verbosity += 1,
            "quiet" => self.verbosity -= 1,
            "keep-uid" => self.keep_uid = true,
            "no-configure" => self.configure = false,
            _ => return false,
        }
        true
    }

    fn option(
        &mut self,
        name: &str,
        parser: &mut lexopt::Parser,
        host: &dyn Host,
    ) -> Result<(), Refusal> {
        // The value's text is kept for the message: lexopt hands it out once.
        let mut text = OsString::new();
        let mut take = || -> Checked<String> {
            text = parser.value().map_err(|e| reason(&e))?;
            text.to_str().map(str::to_owned).ok_or_else(|| "is not valid UTF-8".to_owned())
        };
        let done: Checked<()> = match name {
            "mtu" => take().and_then(|t| mtu(&t)).map(|v| self.mtu = v),
            "cidr" => take().and_then(|t| cidr(&t)).map(|v| self.v4 = v),
            "mac" => take().and_then(|t| mac(&t)).map(|v| self.mac = Some(v)),
            "workers" => take().and_then(|t| workers(&t)).map(|v| self.workers = Some(v)),
            "tap-name" => take().and_then(|t| tap_name(&t)).map(|v| self.tap_name = v),
            "outbound-addr" => {
                take().and_then(|t| outbound(&t, "IPv4", host)).map(|v| self.outbound_v4 = Some(v))
            }
            "outbound-addr6" => {
                take().and_then(|t| outbound(&t, "IPv6", host)).map(|v| self.outbound_v6 = Some(v))
            }
            "log-level" => take().and_then(|t| log_level(&t)).map(|v| self.log_level = Some(v)),
            "userns" => take()
                .and_then(|t| existing(&t, "a user namespace, such as /proc/PID/ns/user", host))
                .map(|v| self.userns = Some(v)),
            "ready-fd" => {
                take().and_then(|t| writable_fd(&t, host)).map(|v| self.ready_fd = Some(v))
            }
            "exit-fd" => take().and_then(|t| open_fd(&t, host)).map(|v| self.exit_fd = Some(v)),
            "pid-file" => take().and_then(|t| new_file(&t)).map(|v| self.pid_file = Some(v)),
            "publish" => take().and_then(|t| publish::forward(&t)).map(|v| self.forwards.push(v)),
            "api" => take().and_then(|t| api_path(&t)).map(|v| self.api = Some(v)),
            _ => Err("is in no list of options here".to_owned()),
        };
        done.map_err(|why| {
            let text = text.to_string_lossy();
            let space = if text.is_empty() { "" } else { " " };
            refusal(format!("--{name}{space}{text}: {why}"))
        })
    }

    fn into_config(self, verb: Verb, host: &dyn Host) -> Result<Config, Refusal> {
        if self.ipv6 && self.mtu < MTU_MIN_V6 {
            return refuse(format!(
                "--mtu {}: IPv6 needs {MTU_MIN_V6} or more; add --no-ipv6 to do without it",
                self.mtu
            ));
        }
        if let (Some(ready), Some(exit)) = (self.ready_fd, self.exit_fd)
            && ready == exit
        {
            return refuse(format!(
                "--exit-fd {exit}: is the --ready-fd too, and that one is closed when ready; use two"
            ));
        }
        if self.outbound_v6.is_some() && !self.ipv6 {
            return refuse(
                "--outbound-addr6: there is no IPv6 with --no-ipv6; leave one of them out",
            );
        }
        if !self.ipv6 && self.forwards.iter().any(|forward| forward.host_addr.is_ipv6()) {
            return refuse("--publish: there is no IPv6 with --no-ipv6; leave one of them out");
        }
        let mode = self.mode(verb, host)?;
        let mut net = NetConfig::new(self.v4, self.ipv6.then(|| V6Net::fd00(true)), self.mtu);
        if let Some([a, b, c, d, e, f]) = self.mac.filter(|&mac| mac == net.gateway_mac) {
            return refuse(format!(
                "--mac {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}: is the gateway's own; choose another"
            ));
        }
        net.guest_mac = self.mac;
        net.host_loopback = self.host_loopback;
        net.dns = self.dns;
        net.outbound_v4 = self.outbound_v4;
        net.outbound_v6 = self.outbound_v6;
        if !self.configure && self.mac.is_some() {
            return refuse("--mac: cannot be set with --no-configure; leave one of them out");
        }
        Ok(Config {
            mode,
            personality: Personality::Native,
            net,
            tap_name: self.tap_name,
            workers: self.workers.unwrap_or_else(default_workers),
            configure: self.configure,
            ready_fd: self.ready_fd,
            exit_fd: self.exit_fd,
            api_socket: self.api,
            pid_file: self.pid_file,
            log_level: self.log_level.unwrap_or_else(|| level(verb, self.verbosity)),
            write_resolv_conf: self.dns,
            forwards: self.forwards,
            sandbox: self.sandbox,
            seccomp: self.seccomp,
        })
    }

    fn mode(&self, verb: Verb, host: &dyn Host) -> Result<Mode, Refusal> {
        if verb == Verb::Run {
            if self.operands.first().is_some_and(|command| command.is_empty()) {
                return refuse("run: the command is empty; leave it out to get a shell");
            }
            return Ok(Mode::Run { cmd: self.operands.clone(), keep_uid: self.keep_uid });
        }
        let [operand] = self.operands.as_slice() else {
            let wants = if verb == Verb::Attach { "one PID or NETNS_PATH" } else { "one PATH" };
            let name = verb.name();
            return refuse(match self.operands.get(1) {
                None => format!("{name}: {wants} is missing; see ringtap {name} --help"),
                Some(extra) => {
                    format!("{name} {}: is one too many; it takes {wants}", extra.to_string_lossy())
                }
            });
        };
        if operand.is_empty() {
            return refuse(format!("{}: the path is empty", verb.name()));
        }
        if verb == Verb::Create {
            new_file(&operand.to_string_lossy())
                .map_err(|why| refusal(format!("create {}: {why}", operand.to_string_lossy())))?;
            return Ok(Mode::Create(operand.into()));
        }
        let target = target(operand, self.userns.clone(), host)
            .map_err(|why| refusal(format!("attach {}: {why}", operand.to_string_lossy())))?;
        Ok(Mode::Attach(target))
    }
}

/// A number is a PID, anything else a path.
fn target(operand: &OsStr, userns: Option<PathBuf>, host: &dyn Host) -> Checked<Target> {
    let text = operand.to_string_lossy();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let pid = text.parse().ok().filter(|&pid: &i32| pid > 0).ok_or("is not a process id")?;
        if !host.exists(Path::new(&format!("/proc/{pid}"))) {
            return Err(format!("no process has this id (for a file of that name write ./{text})"));
        }
        return Ok(Target::Pid { pid, userns });
    }
    let path = PathBuf::from(operand);
    if !host.exists(&path) {
        return Err(
            "no such file; it has to be a PID or the path of a network namespace".to_owned()
        );
    }
    Ok(Target::Path { path, userns })
}

/// The level of log lines: `run` shares its terminal with a command and says less.
fn level(verb: Verb, verbosity: i32) -> Level {
    let base = if verb == Verb::Run { 1 } else { 2 };
    match base + verbosity {
        i32::MIN..=0 => Level::ERROR,
        1 => Level::WARN,
        2 => Level::INFO,
        3.. => Level::DEBUG,
    }
}

fn unknown_option(verb: Verb, name: &str) -> String {
    let verb_name = verb.name();
    if let Some((_, [owner, ..])) = OPTIONS.iter().find(|(n, _)| *n == name) {
        return format!("--{name}: {verb_name} has no such option, {} has", owner.name());
    }
    let own = OPTIONS.iter().filter(|(_, verbs)| verbs.contains(&verb)).map(|(n, _)| *n);
    match value::nearest(name, own) {
        Some(near) => format!("--{name}: no such option; did you mean --{near}?"),
        None => format!("--{name}: no such option; see ringtap {verb_name} --help"),
    }
}

fn mtu(text: &str) -> Checked<u16> {
    text.parse()
        .ok()
        .filter(|mtu| (MTU_MIN..=MTU_MAX).contains(mtu))
        .ok_or_else(|| format!("must be from {MTU_MIN} to {MTU_MAX}"))
}

fn workers(text: &str) -> Checked<usize> {
    text.parse()
        .ok()
        .filter(|n| (1..=WORKERS_MAX).contains(n))
        .ok_or_else(|| format!("must be from 1 to {WORKERS_MAX}"))
}

fn cidr(text: &str) -> Checked<V4Net> {
    value::cidr(text).map_err(|why| match why {
        BadCidr::Shape | BadCidr::Address => {
            "must be an IPv4 network, such as 10.0.2.0/24".to_owned()
        }
        BadCidr::Prefix => "the prefix length must be from 1 to 25".to_owned(),
        BadCidr::NotNetwork => {
            "has bits set behind the prefix; give the network's address, such as 10.0.2.0/24"
                .to_owned()
        }
        BadCidr::NotUnicast => {
            "no host can have addresses there; use a private network, such as 10.0.2.0/24"
                .to_owned()
        }
    })
}

fn mac(text: &str) -> Checked<[u8; 6]> {
    value::mac(text).map_err(|why| match why {
        BadMac::Shape | BadMac::TooLong => {
            "must be six bytes in hexadecimal, such as 52:54:00:12:34:56".to_owned()
        }
        BadMac::NotUnicast => {
            "is no address of one interface; make the first byte even, such as 52".to_owned()
        }
    })
}

fn tap_name(text: &str) -> Checked<String> {
    if value::is_interface_name(text) && text != "lo" {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 15 characters without space, '/', ':' or '%', and not lo, all or default"
            .to_owned())
    }
}

fn outbound<A: value::Family>(text: &str, family: &str, host: &dyn Host) -> Checked<Outbound<A>> {
    if let Some(addr) = A::read(text) {
        return if value::is_local(addr, host) {
            Ok(Outbound::Address(addr))
        } else {
            Err("no interface of this host has this address; see `ip address`".to_owned())
        };
    }
    value::outbound(text, host).ok_or_else(|| {
        format!("must be an {family} address of this host, or an interface that has one")
    })
}

fn log_level(text: &str) -> Checked<Level> {
    match text {
        "error" => Ok(Level::ERROR),
        "warn" => Ok(Level::WARN),
        "info" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        _ => Err("must be error, warn, info or debug".to_owned()),
    }
}

fn open_fd(text: &str, host: &dyn Host) -> Checked<RawFd> {
    // `+3` is a number to Rust, and none to anybody who writes a descriptor.
    let fd = text.parse().ok().filter(|&fd: &RawFd| fd >= 0 && !text.starts_with('+'));
    let fd = fd.ok_or("must be the number of an open descriptor, such as 3")?;
    if host.fd_is_open(fd) {
        Ok(fd)
    } else {
        Err("is not open; the caller must pass it on (no close-on-exec)".to_owned())
    }
}

fn writable_fd(text: &str, host: &dyn Host) -> Checked<RawFd> {
    let fd = open_fd(text, host)?;
    if host.fd_is_writable(fd) {
        Ok(fd)
    } else {
        Err("is open for reading only; pass the end that can be written".to_owned())
    }
}

fn existing(text: &str, what: &str, host: &dyn Host) -> Checked<PathBuf> {
    if host.exists(Path::new(text)) {
        Ok(text.into())
    } else {
        Err(format!("no such file; it has to be the path of {what}"))
    }
}

fn new_file(text: &str) -> Checked<PathBuf> {
    if text.is_empty() || text.ends_with('/') {
        return Err("must be the path of a file".to_owned());
    }
    Ok(text.into())
}

/// The path of a Unix socket.
fn api_path(text: &str) -> Checked<PathBuf> {
    if text.len() > SOCKET_PATH_MAX {
        return Err(format!("a socket's path has at most {SOCKET_PATH_MAX} bytes"));
    }
    new_file(text).map_err(|_| "must be the path of a socket".to_owned())
}

/// lexopt's own refusals in our words.
fn reason(error: &lexopt::Error) -> String {
    match error {
        lexopt::Error::MissingValue { .. } => "a value is missing".to_owned(),
        lexopt::Error::UnexpectedValue { option, value } => {
            format!("{option}={}: takes no value; write {option}", value.to_string_lossy())
        }
        other => other.to_string(),
    }
}

fn refuse<T>(line: impl Into<String>) -> Result<T, Refusal> {
    Err(refusal(line))
}

fn refusal(line: impl Into<String>) -> Refusal {
    let line: String = line.into();
    // A value may hold anything; the refusal stays one line.
    let line: String = line.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    Refusal { stdout: String::new(), stderr: format!("ringtap: {line}"), code: 2 }
}

#[cfg(test)]
mod tests;
