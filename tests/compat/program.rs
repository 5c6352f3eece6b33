//! The program under test, whichever it is, and what is seen of it.

use std::fmt::Display;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::differences;
use crate::harness::cmd::{Cmd, Done, PATIENCE, Proc};
use crate::harness::ns::Ns;
use crate::harness::sys::Step;
use crate::harness::{Bed, Dir, Guest, USER, pipe, ringtap};

/// Where programs are found. The first folder is the test's own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who goes by the name slirp4netns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Ringtap,
    Original,
}

/// A pair of tests for each function named: with ringtap, and with the original where it is
/// installed. Further programs that a behaviour needs follow in brackets.
macro_rules! both {
    ($($name:ident $([$($needs:literal),+])?),+ $(,)?) => {$(
        mod $name {
            use $crate::program::Program;

            #[test]
            fn ringtap() {
                $crate::harness::need!($($($needs),+)?);
                super::$name(Program::Ringtap);
            }

            #[test]
            fn original() {
                $crate::harness::need!("slirp4netns" $(, $($needs),+)?);
                super::$name(Program::Original);
            }
        }
    )+};
}
pub(crate) use both;

impl Program {
    /// slirp4netns from PATH, as its callers start it.
    pub(crate) fn cmd(self, dir: &Dir) -> Cmd {
        let cmd = Cmd::of("slirp4netns");
        if self == Self::Original {
            return cmd;
        }
        let bin = dir.path("bin");
        if !bin.exists() {
            dir.make("bin");
            symlink(ringtap(), bin.join("slirp4netns")).expect("make a link");
        }
        cmd.env("PATH", format!("{}:{PATH}", bin.display()))
    }

    /// Runs it as an ordinary user of this machine, to its end.
    #[track_caller]
    pub(crate) fn run(self, line: &str) -> Done {
        let dir = Dir::new();
        self.cmd(&dir).args(line).step(Step::Become(USER)).run()
    }

    /// What was seen is what slirp4netns 1.3.3 does, or else the difference that is listed under
    /// this name.
    #[track_caller]
    pub(crate) fn shows(self, name: &str, seen: impl Display, expected: impl Display) {
        let (seen, expected) = (seen.to_string(), expected.to_string());
        match differences::of(self, name) {
            None => assert_eq!(seen, expected, "{self:?} differs and `{name}` is not listed"),
            Some(listed) => {
                assert_ne!(listed.instead, expected, "`{name}` is listed and is no difference");
                assert_eq!(seen, listed.instead, "`{name}` differs in another way than listed");
            }
        }
    }

    /// A bed, a guest, and this program between them, with these options.
    #[track_caller]
    pub(crate) fn up(self, options: &str) -> Up {
        self.attach(Bed::new(), options)
    }

    /// The same in a bed of the test's.
    #[track_caller]
    pub(crate) fn attach(self, bed: Bed, options: &str) -> Up {
        let guest = guest(&bed);
        let operands = format!("{} tap0", guest.holder.pid());
        self.between(bed, guest, USER, options, &operands)
    }

    /// Starts it as `uid` and waits until it is ready. `@` in the options is the test's folder.
    #[track_caller]
    pub(crate) fn between(
        self,
        bed: Bed,
        guest: Guest,
        uid: u32,
        options: &str,
        operands: &str,
    ) -> Up {
        let (mut ready, ready_fd) = pipe();
        let (exit_fd, exit) = exit_pipe();
        let options = options.replace('@', &bed.dir.path("").display().to_string());
        let (r, e) = (ready_fd.as_raw_fd(), exit_fd.as_raw_fd());
        let line = format!("-r {r} -e {e} {options} {operands}");
        let cmd = self.cmd(&bed.dir).args(&line).keep(&ready_fd).keep(&exit_fd);
        let mut proc = bed.host.enter_as(uid, cmd).start();
        drop((ready_fd, exit_fd));
        ready.expect_byte(&mut proc);
        Up { bed, guest, proc, exit }
    }
}

/// An exit-fd and the end that a caller keeps.
pub(crate) fn exit_pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("make a pipe")
}

/// An ordinary user's namespaces, whose IPv6 addresses need no detection of duplicates: nobody else is
/// on their link, and slirp4netns answers late.
#[track_caller]
pub(crate) fn guest(bed: &Bed) -> Guest {
    let guest = bed.guest();
    guest.ns.sysctl("net/ipv6/conf/default/accept_dad", "0");
    guest
}

/// A network that is up.
pub(crate) struct Up {
    pub(crate) bed: Bed,
    pub(crate) guest: Guest,
    pub(crate) proc: Proc,
    exit: OwnedFd,
}

impl Up {
    /// The guest's namespaces.
    pub(crate) fn inside(&self) -> &Ns {
        &self.guest.ns
    }

    /// What a command prints in the guest.
    #[track_caller]
    pub(crate) fn says(&self, line: &str) -> String {
        self.guest.ns.cmd(line).ok()
    }

    /// The program ends because its caller closes the other end of its exit-fd.
    #[track_caller]
    pub(crate) fn hang_up(self) -> (Done, Bed, Guest) {
        drop(self.exit);
        (self.proc.wait(PATIENCE), self.bed, self.guest)
    }
}

/// The fields of `/proc/PID/status` named, as `name=value`.
pub(crate) fn status(pid: i32, names: &[&str]) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let value = |name: &str| {
        let line = text.lines().find(|l| l.split(':').next() == Some(name));
        line.and_then(|l| l.split_ascii_whitespace().nth(1)).unwrap_or("none").to_owned()
    };
    names.iter().map(|n| format!("{n}={}", value(n))).collect::<Vec<_>>().join(" ")
}

/// What a folder holds, in order.
pub(crate) fn names_in(path: &Path) -> String {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap_or_else(|e| panic!("list {}: {e}", path.display()))
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names.join(" ")
}

/// A path in the test's folder, and whether something is there.
pub(crate) fn left_at(path: &Path) -> &'static str {
    if fs::symlink_metadata(path).is_ok() { "is left" } else { "is gone" }
}
