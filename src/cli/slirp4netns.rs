//! slirp4netns's command line, as the callers of 1.3.3 know it: same options, same order of checks, same texts, same
//! exit code (1 for everything).
//!
//! Where we differ on purpose:
//! - numbers that overflow, and empty ones, are refused (slirp4netns wraps the first and takes the second for 0);
//! - one descriptor as ready-fd and exit-fd is refused (it would end as soon as it is ready);
//! - a MAC that is short, or no address of one interface, is refused (it takes any prefix, then the kernel fails);
//! - so is an MTU below 68, which no TAP takes, a TAPNAME that the kernel would not take as it stands, a `--cidr` that
//!   puts the guest into 0/8, 127/8 or multicast, and an empty API socket path;
//! - an interface given to `--outbound-addr` binds traffic to that interface, from the address that it has at the time
//!   (slirp4netns takes its first address once, and leaves by whichever interface the routes say);
//! - one given to `--outbound-addr6` is looked up by itself, and its link-local addresses are passed over;
//! - with an MTU below 1280 IPv6 is off, with a warning: the guest's kernel would switch it off anyway;
//! - `--configure` has no effect with `--netns-type=tapfd`, and a warning says so;
//! - warnings are printed once (it prints those of a failed start twice, out of two copies of one buffer).

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tracing::Level;

use super::getopt::{Getopt, Opt};
use super::value::{self, BadCidr, BadMac};
use super::{Command, Host, Refusal, help};
use crate::config::{
    Config, Mode, NetConfig, Outbound, Personality, Target, V4Net, V6Net, default_workers,
};
use crate::limits::{MTU_MAX, MTU_MIN, MTU_MIN_V6, SOCKET_PATH_MAX};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Id {
    Configure,
    ExitFd,
    ReadyFd,
    Mtu,
    Cidr,
    DisableHostLoopback,
    NoHostLoopback,
    NetnsType,
    UsernsPath,
    ApiSocket,
    EnableIpv6,
    EnableSandbox,
    CreateSandbox,
    EnableSeccomp,
    Help,
    Version,
    OutboundAddr,
    OutboundAddr6,
    DisableDns,
    MacAddress,
    TargetType,
}

const fn opt<N>(name: N, has_value: bool, id: Id) -> Opt<N, Id> {
    Opt { name, has_value, id }
}

const SHORT: &[Opt<u8, Id>] = &[
    opt(b'c', false, Id::Configure),
    opt(b'e', true, Id::ExitFd),
    opt(b'r', true, Id::ReadyFd),
    opt(b'm', true, Id::Mtu),
    opt(b'a', true, Id::ApiSocket),
    opt(b'6', false, Id::EnableIpv6),
    opt(b'h', false, Id::Help),
    opt(b'v', false, Id::Version),
];

/// In the order in which the message about an ambiguous prefix lists them.
const LONG: &[Opt<&str, Id>] = &[
    opt("configure", false, Id::Configure),
    opt("exit-fd", true, Id::ExitFd),
    opt("ready-fd", true, Id::ReadyFd),
    opt("mtu", true, Id::Mtu),
    opt("cidr", true, Id::Cidr),
    opt("disable-host-loopback", false, Id::DisableHostLoopback),
    opt("no-host-loopback", false, Id::NoHostLoopback),
    opt("netns-type", true, Id::NetnsType),
    opt("userns-path", true, Id::UsernsPath),
    opt("api-socket", true, Id::ApiSocket),
    opt("enable-ipv6", false, Id::EnableIpv6),
    opt("enable-sandbox", false, Id::EnableSandbox),
    opt("create-sandbox", false, Id::CreateSandbox),
    opt("enable-seccomp", false, Id::EnableSeccomp),
    opt("help", false, Id::Help),
    opt("version", false, Id::Version),
    opt("outbound-addr", true, Id::OutboundAddr),
    opt("outbound-addr6", true, Id::OutboundAddr6),
    opt("disable-dns", false, Id::DisableDns),
    opt("macaddress", true, Id::MacAddress),
    opt("target-type", true, Id::TargetType),
];

/// Reads everything after the program's name, which starts getopt's messages.
pub(super) fn parse(name: &str, args: &[OsString], host: &dyn Host) -> Result<Command, Refusal> {
    let mut warnings = Vec::new();
    let outcome = Typed::read(name, args, host, &mut warnings).and_then(|typed| match typed {
        Read::Print(text) => Ok(Command::Print(text)),
        Read::Forward(typed, operands) => {
            let config = typed.into_config(&operands, host, &mut warnings)?;
            Ok(Command::Forward(Box::new(config), Vec::new()))
        }
    });
    match outcome {
        Ok(Command::Forward(config, _)) => Ok(Command::Forward(config, warnings)),
        Ok(Command::Print(text)) => {
            warnings.push(text);
            Ok(Command::Print(warnings.join("\n")))
        }
        // It has no such commands.
        Ok(other @ (Command::Doctor | Command::Port(_))) => Ok(other),
        Err(Bad { stderr, usage }) => {
            if usage {
                warnings.push(help::slirp4netns(name));
            }
            Err(Refusal { stdout: warnings.join("\n"), stderr, code: 1 })
        }
    }
}

/// Why nothing starts.
struct Bad {
    stderr: String,
    /// The usage follows on stdout.
    usage: bool,
}

/// A mistake that is answered with the usage.
fn usage<T>(line: impl Into<String>) -> Result<T, Bad> {
    Err(Bad { stderr: line.into(), usage: true })
}

/// A mistake that is answered by itself.
fn plain<T>(line: impl Into<String>) -> Result<T, Bad> {
    Err(Bad { stderr: line.into(), usage: false })
}

enum Read<'a> {
    Print(String),
    Forward(Box<Typed>, Vec<&'a OsStr>),
}

/// Options as they were typed.
#[derive(Default)]
struct Typed {
    configure: bool,
    exit_fd: Option<RawFd>,
    ready_fd: Option<RawFd>,
    mtu: Option<u16>,
    cidr: Option<String>,
    disable_host_loopback: bool,
    netns_type: Option<String>,
    userns_path: Option<PathBuf>,
    api_socket: Option<PathBuf>,
    enable_ipv6: bool,
    enable_sandbox: bool,
    enable_seccomp: bool,
    outbound_addr: Option<String>,
    outbound_addr6: Option<String>,
    disable_dns: bool,
    macaddress: Option<String>,
    target_type: Option<String>,
}

impl Typed {
    fn read<'a>(
        name: &'a str,
        args: &'a [OsString],
        host: &dyn Host,
        warnings: &mut Vec<String>,
    ) -> Result<Read<'a>, Bad> {
        let mut typed = Self::default();
        let mut getopt = Getopt::new(name, args, SHORT, LONG);
        while let Some((id, value)) = getopt.next().or_else(usage)? {
            match id {
                Id::Help => return Ok(Read::Print(help::slirp4netns(name))),
                Id::Version => return Ok(Read::Print(version())),
                _ => typed.option(id, value, host, warnings)?,
            }
        }
        Ok(Read::Forward(Box::new(typed), getopt.into_operands()))
    }

    fn option(
        &mut self,
        id: Id,
        value: &OsStr,
        host: &dyn Host,
        warnings: &mut Vec<String>,
    ) -> Result<(), Bad> {
        let mut warn = |line: &str| warnings.push(format!("WARNING: {line}"));
        let text = value.to_string_lossy().into_owned();
        match id {
            Id::Configure => self.configure = true,
            Id::ExitFd => self.exit_fd = Some(descriptor("exit-fd", &text)?),
            Id::ReadyFd => self.ready_fd = Some(descriptor("ready-fd", &text)?),
            Id::Mtu => self.mtu = Some(mtu(&text)?),
            Id::Cidr => self.cidr = Some(text),
            Id::DisableHostLoopback => self.disable_host_loopback = true,
            Id::NoHostLoopback => {
                warn(&deprecated("--no-host-loopback", "--disable-host-loopback"));
                self.disable_host_loopback = true;
            }
            Id::NetnsType => self.netns_type = Some(text),
            Id::UsernsPath => {
                if !host.exists(Path::new(value)) {
                    return usage(format!("userns path doesn't exist: {text}"));
                }
                self.userns_path = Some(value.into());
            }
            Id::ApiSocket => self.api_socket = Some(value.into()),
            Id::EnableIpv6 => {
                warn("Support for IPv6 is experimental");
                self.enable_ipv6 = true;
            }
            Id::EnableSandbox => self.enable_sandbox = true,
            Id::CreateSandbox => {
                warn(&deprecated("--create-sandbox", "--enable-sandbox"));
                self.enable_sandbox = true;
            }
            Id::EnableSeccomp => {
                warn("Support for seccomp is experimental");
                self.enable_seccomp = true;
            }
            Id::OutboundAddr => {
                warn("Support for --outbound-addr is experimental");
                self.outbound_addr = Some(text);
            }
            Id::OutboundAddr6 => {
                warn("Support for --outbound-addr6 is experimental");
                self.outbound_addr6 = Some(text);
            }
            Id::DisableDns => self.disable_dns = true,
            Id::MacAddress => self.macaddress = Some(text),
            Id::TargetType => self.target_type = Some(text),
            // Answered before.
            Id::Help | Id::Version => {}
        }
        Ok(())
    }

    /// The checks after the last option, in slirp4netns's order: the ones it answers with the usage first.
    fn into_config(
        self,
        operands: &[&OsStr],
        host: &dyn Host,
        warnings: &mut Vec<String>,
    ) -> Result<Config, Bad> {
        let mut warn = |line: &str| warnings.push(format!("WARNING: {line}"));
        if self.macaddress.is_some() && !self.configure {
            return usage("--macaddr cannot be specified when --configure or -c is not specified");
        }
        let is_bess = match self.target_type.as_deref() {
            None | Some("netns") => false,
            Some("bess") => true,
            Some(_) => return usage("--target-type must be either \"netns\" or \"bess\""),
        };
        let is_tapfd = self.netns_type.as_deref() == Some("tapfd");
        let (namespace, tap_name) = match *operands {
            _ if is_bess => (OsStr::new(""), OsStr::new("tap0")),
            // The TAP behind a descriptor has its name.
            [namespace] if is_tapfd => (namespace, OsStr::new("tap0")),
            [] | [_] => return usage(""),
            [namespace, tap_name] => (namespace, tap_name),
            [namespace, tap_name, ..] => {
                warn("too many arguments");
                (namespace, tap_name)
            }
        };
        let target = if is_bess { self.bess(operands)? } else { self.target(namespace, host)? };
        if is_bess {
            warn("BESS mode is experimental");
        }
        let v4 = self.cidr.as_deref().map_or_else(|| Ok(NetConfig::native().v4), cidr)?;
        let outbound_v4 = self.outbound_addr.as_deref().map(|t| outbound(t, host)).transpose()?;
        let outbound_v6 = self.outbound_addr6.as_deref().map(|t| outbound6(t, host)).transpose()?;
        let guest_mac = self.macaddress.as_deref().map(mac).transpose()?;

        // From here on: what slirp4netns does not look at.
        let tap_name = tap_name.to_string_lossy().into_owned();
        if !value::is_interface_name(&tap_name) {
            return plain(format!(
                "invalid TAPNAME: {tap_name} (1 to 15 characters without space, '/', ':' or '%')"
            ));
        }
        self.check_descriptors_and_socket()?;
        let mtu = self.mtu.unwrap_or_else(|| NetConfig::native().mtu);
        let v6_fits = mtu >= MTU_MIN_V6;
        if self.enable_ipv6 && !v6_fits {
            warn(&format!("MTU {mtu} is below {MTU_MIN_V6}, which IPv6 needs: IPv6 is off"));
        }
        if is_tapfd && self.configure {
            warn("--configure has no effect with --netns-type=tapfd");
        }
        let v6 = (self.enable_ipv6 && v6_fits).then(|| V6Net::fd00(false));
        let mut net = NetConfig::new(v4, v6, mtu);
        net.guest_mac = guest_mac;
        net.host_loopback = !self.disable_host_loopback;
        net.dns = !self.disable_dns;
        net.outbound_v4 = outbound_v4;
        net.outbound_v6 = outbound_v6;
        Ok(Config {
            mode: Mode::Attach(target),
            personality: Personality::Slirp4netns,
            net,
            tap_name,
            workers: default_workers(),
            configure: self.configure && !is_tapfd,
            ready_fd: self.ready_fd,
            exit_fd: self.exit_fd,
            api_socket: self.api_socket,
            pid_file: None,
            log_level: Level::WARN,
            write_resolv_conf: false,
            forwards: Vec::new(),
            sandbox: self.enable_sandbox,
            seccomp: self.enable_seccomp,
        })
    }

    /// A guest behind a socket, which has no namespace to speak of.
    fn bess(&self, operands: &[&OsStr]) -> Result<Target, Bad> {
        let path = match operands {
            [] => return usage(""),
            [path] => path,
            [_, ..] => return usage("too many arguments"),
        };
        for (given, option) in [
            (self.configure, "--configure"),
            (self.netns_type.is_some(), "--netns-type"),
            (self.userns_path.is_some(), "--userns-path"),
        ] {
            if given {
                return usage(format!("{option} conflicts with --target-type=bess"));
            }
        }
        Ok(Target::Bess(path.into()))
    }

    fn target(&self, namespace: &OsStr, host: &dyn Host) -> Result<Target, Bad> {
        let text = namespace.to_string_lossy();
        let userns = self.userns_path.clone();
        match self.netns_type.as_deref() {
            None | Some("pid") => match strtol(&text).and_then(|pid| i32::try_from(pid).ok()) {
                Some(pid) if pid > 0 => Ok(Target::Pid { pid, userns }),
                Some(_) | None => usage("PID must be a positive integer"),
            },
            Some("tapfd") => match strtol(&text).and_then(|fd| RawFd::try_from(fd).ok()) {
                Some(fd) if host.fd_is_open(fd) => Ok(Target::TapFd(fd)),
                Some(_) | None => usage("TAPFD must a file descriptor"),
            },
            Some(_) if host.exists(Path::new(namespace)) => {
                Ok(Target::Path { path: namespace.into(), userns })
            }
            Some(_) => {
                usage("existing path expected when --netns-type=path: No such file or directory")
            }
        }
    }

    /// Whether the descriptors are open is left to boot: one that is not counts as hung up, as in slirp4netns.
    fn check_descriptors_and_socket(&self) -> Result<(), Bad> {
        if self.exit_fd.is_some() && self.exit_fd == self.ready_fd {
            return plain("exit-fd must not be the ready-fd, which is closed when ready");
        }
        if let Some(path) = &self.api_socket {
            match path.as_os_str().as_bytes().len() {
                0 => return plain("the specified API socket path is empty"),
                1..=SOCKET_PATH_MAX => {}
                _ => return plain("the specified API socket path is too long (>= 108)"),
            }
        }
        Ok(())
    }
}

/// Callers look at the first line for a version and at the fourth for a number: both name the slirp4netns whose
/// command line and API this is.
fn version() -> String {
    format!(
        "slirp4netns version 1.3.3\n\
         commit: ringtap {}\n\
         libslirp: none\n\
         SLIRP_CONFIG_VERSION_MAX: 6\n\
         libseccomp: none",
        env!("CARGO_PKG_VERSION")
    )
}

fn deprecated(old: &str, new: &str) -> String {
    format!("{old} is deprecated and will be removed in future releases, please use {new} instead.")
}

/// The whole text as strtol(3) reads it in base 10: leading white space and a sign are fine.
fn strtol(text: &str) -> Option<i64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    // i64's own parser takes a sign too, so two of them would pass.
    if digits.starts_with(|c: char| c.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn descriptor(option: &str, text: &str) -> Result<RawFd, Bad> {
    match strtol(text).and_then(|fd| RawFd::try_from(fd).ok()) {
        Some(fd) if fd >= 0 => Ok(fd),
        Some(_) | None => usage(format!("{option} must be a non-negative integer")),
    }
}

fn mtu(text: &str) -> Result<u16, Bad> {
    match strtol(text).and_then(|mtu| u16::try_from(mtu).ok()) {
        Some(mtu) if (MTU_MIN..=MTU_MAX).contains(&mtu) => Ok(mtu),
        Some(mtu) if (1..MTU_MIN).contains(&mtu) => {
            usage(format!("MTU must be {MTU_MIN} or more: no TAP takes {mtu}"))
        }
        Some(_) | None => usage("MTU must be a positive integer (< 65522)"),
    }
}

fn cidr(text: &str) -> Result<V4Net, Bad> {
    let address = text.split('/').next().unwrap_or(text);
    value::cidr(text).or_else(|why| match why {
        BadCidr::Shape => plain(format!("invalid CIDR: {text}")),
        BadCidr::Address | BadCidr::NotUnicast => {
            plain(format!("invalid network address: {address}"))
        }
        BadCidr::Prefix => plain("prefix length needs to be 1-25"),
        BadCidr::NotNetwork => {
            // Whatever was given: its text names no value.
            plain("CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24")
        }
    })
}

fn outbound(text: &str, host: &dyn Host) -> Result<Outbound<Ipv4Addr>, Bad> {
    value::outbound(text, host)
        .map_or_else(|| plain("outbound-addr has to be valid ipv4 address or interface name."), Ok)
}

fn outbound6(text: &str, host: &dyn Host) -> Result<Outbound<Ipv6Addr>, Bad> {
    // Its very words, "iterface" included.
    value::outbound(text, host)
        .map_or_else(|| plain("outbound-addr has to be valid ipv4 address or iterface name."), Ok)
}

fn mac(text: &str) -> Result<[u8; 6], Bad> {
    value::mac(text).or_else(|why| {
        let guess = if why == BadMac::TooLong { "  Is it too long?" } else { "" };
        plain(format!(
            "\"{text}\" is an invalid MAC address.{guess}\n\
             macaddress has to be a valid MAC address (hex string, 6 bytes, each byte separated by a ':')."
        ))
    })
}

#[cfg(test)]
mod tests;
