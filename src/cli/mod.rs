//! Command lines: one file per personality, each from argv to a [`Config`].
//!
//! The name under which the program was started decides: `slirp4netns` gets that program's command line,
//! any other name the native one. What a command line needs to know of the machine (is this descriptor open,
//! which addresses has this interface) it asks of a `Host`, so that every message is tested from argv alone.

mod getopt;
mod help;
mod native;
mod publish;
mod slirp4netns;
mod value;

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::config::{Config, PortCommand};

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Forward a guest's traffic. Lines to print on stdout before anything else (slirp4netns's warnings
    /// go there) come first.
    Forward(Box<Config>, Vec<String>),
    /// Print this on stdout and exit 0 (help, version). No newline at the end.
    Print(String),
    /// Ask a program that runs.
    Port(PortCommand),
    /// Look at this machine.
    Doctor,
}

/// A command line that cannot be carried out. Nothing has been done yet.
///
/// Both texts come without a newline at the end: an empty one is not printed at all.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For stdout (slirp4netns prints its warnings and its usage there).
    pub stdout: String,
    /// For stderr: one line that names the option, the value and the remedy.
    pub stderr: String,
    /// Exit code, not 0.
    pub code: u8,
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// [`Refusal`].
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Refusal> {
    let args: Vec<OsString> = args.into_iter().collect();
    parse_on(&args, &ThisHost)
}

fn parse_on(args: &[OsString], host: &dyn Host) -> Result<Command, Refusal> {
    let (name, rest) = match args.split_first() {
        Some((name, rest)) => (name.as_os_str(), rest),
        None => ("ringtap".as_ref(), args),
    };
    if Path::new(name).file_name().is_some_and(|n| n == "slirp4netns") {
        slirp4netns::parse(&name.to_string_lossy(), rest, host)
    } else {
        native::parse(rest, host)
    }
}

/// What a command line asks the machine. All answers are taken once, at the start.
trait Host {
    /// Whether this descriptor is open in our process.
    fn fd_is_open(&self, fd: RawFd) -> bool;
    /// Whether this descriptor, which is open, was opened for writing.
    fn fd_is_writable(&self, fd: RawFd) -> bool;
    /// Whether there may be anything at this path: one that may not be looked at counts, and boot says what is
    /// wrong with it.
    fn exists(&self, path: &Path) -> bool;
    /// Every address of every interface, in the kernel's order.
    fn addresses(&self) -> Vec<(String, IpAddr)>;
}

/// The machine we run on.
struct ThisHost;

impl Host for ThisHost {
    fn fd_is_open(&self, fd: RawFd) -> bool {
        status_flags(fd).is_some()
    }

    fn fd_is_writable(&self, fd: RawFd) -> bool {
        status_flags(fd).is_some_and(|flags| flags & OFlag::O_ACCMODE != OFlag::O_RDONLY)
    }

    fn exists(&self, path: &Path) -> bool {
        // A NUL cannot come in argv; an empty path never exists.
        !path.as_os_str().as_bytes().is_empty() && path.try_exists().unwrap_or(true)
    }

    fn addresses(&self) -> Vec<(String, IpAddr)> {
        // No answer (no netlink in a strict sandbox) means: no interface known; the refusal names the one asked for.
        let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
        all.filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            let v6 = || address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
            Some((entry.interface_name, v4.or_else(v6)?))
        })
        .collect()
    }
}

/// How a descriptor was opened; `None`: it is not open.
#[allow(unsafe_code)]
fn status_flags(fd: RawFd) -> Option<OFlag> {
    if fd < 0 {
        return None;
    }
    // SAFETY: the number may name no open file at all. It is used for this one F_GETFL only, which answers
    // EBADF then and touches nothing; it does not outlive the call. `fd` is not -1: tested above.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_GETFL).ok().map(OFlag::from_bits_retain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    /// A machine with descriptors 0 to 5, of which 0 can only be read, /proc/self, /run/ns and two interfaces.
    pub(super) struct Fake;

    impl Host for Fake {
        fn fd_is_open(&self, fd: RawFd) -> bool {
            (0..=5).contains(&fd)
        }

        fn fd_is_writable(&self, fd: RawFd) -> bool {
            (1..=5).contains(&fd)
        }

        fn exists(&self, path: &Path) -> bool {
            ["/proc/42", "/run/ns", "/proc/42/ns/user"].iter().any(|p| Path::new(p) == path)
        }

        fn addresses(&self) -> Vec<(String, IpAddr)> {
            [
                ("lo", "127.0.0.1"),
                ("eth0", "192.0.2.7"),
                ("eth0", "192.0.2.8"),
                ("eth0", "fe80::1"),
                ("eth0", "2001:db8::7"),
                ("eth1", "fe80::2"),
            ]
            .map(|(name, addr)| (name.to_owned(), addr.parse().unwrap()))
            .to_vec()
        }
    }

    /// Parses a command line given as one string, words apart by spaces.
    pub(super) fn parse_words(line: &str) -> Result<Command, Refusal> {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        parse_on(&args, &Fake)
    }

    pub(super) fn config(line: &str) -> Config {
        match parse_words(line) {
            Ok(Command::Forward(config, _)) => *config,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn argv0_decides() {
        use crate::config::Personality;
        assert_eq!(config("ringtap run").personality, Personality::Native);
        assert_eq!(config("./target/debug/anything run").personality, Personality::Native);
        assert_eq!(config("slirp4netns 42 tap0").personality, Personality::Slirp4netns);
        assert_eq!(config("/opt/x/slirp4netns 42 tap0").personality, Personality::Slirp4netns);
        assert_eq!(parse_on(&[], &Fake).unwrap_err().code, 2);
    }

    #[test]
    fn this_host_answers() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(ThisHost.fd_is_open(file.as_raw_fd()));
        assert!(!ThisHost.fd_is_writable(file.as_raw_fd()));
        assert!(ThisHost.fd_is_writable(std::fs::File::create("/dev/null").unwrap().as_raw_fd()));
        assert!(!ThisHost.fd_is_open(-1));
        assert!(!ThisHost.fd_is_open(RawFd::MAX));
        assert!(ThisHost.exists(Path::new("/proc/self")));
        assert!(!ThisHost.exists(Path::new("")));
        assert!(!ThisHost.exists(Path::new("/nonexistent/file")));
        // Loopback may be down in a bare namespace, so only the shape is checked.
        assert!(ThisHost.addresses().iter().all(|(name, _)| !name.is_empty()));
    }
}
