//! `run`: new namespaces, an init process in them, and the command.
//!
//! # Theory of operation
//!
//! The child is born into new user, network, mount and PID namespaces and is process 1 of the last: when it
//! ends, the kernel ends every process in there, so nothing is left behind however we end (it dies
//! with us by `PR_SET_PDEATHSIG`, and when its socket closes). Where a new `/proc` may not be mounted, as in some
//! containers, a PID namespace would leave the command with a `/proc` of other processes: there the child is a
//! subreaper instead, and ends its descendants one by one.
//!
//! The child waits until its parent has written the user mapping, prepares mounts, makes the TAP and passes it
//! to the parent. When the network works it starts the command and becomes its init: it collects
//! orphans, passes signals on, and reports the command's exit code.
//!
//! Terminal: the command is in our own process group, so the keyboard's signals reach it and us alike. We ignore
//! ^C and ^\ (the command decides), and stop with it on ^Z; a shell that we run makes groups of its own. A command
//! that stops by itself (a pager, a shell's `suspend`) is seen by its init process, which stops us, too.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::MsgFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, User, execvp, getegid, geteuid, getpid, getuid};

use super::mounts::{self, ResolvConf};
use super::pass::{FromChild, Link, ToChild};
use super::{Context, Failure, Guest, Inherited, Life, netns, sys};
use crate::config::{Config, NetConfig};
use crate::control::resolv;

/// The init process in the guest, as its parent sees it.
#[derive(Debug)]
pub struct Init {
    pid: Pid,
    link: Link,
}

impl Init {
    /// Starts the command: the network works.
    ///
    /// # Errors
    /// The init process is gone.
    pub fn start(&self) -> nix::Result<()> {
        self.link.order(ToChild::Start)
    }

    /// Passes a signal on to the command.
    pub fn signal(&self, signal: Signal) {
        let _ = self.link.order(ToChild::Signal(signal as u8));
    }

    /// The socket that says when the init process has said something.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Ends every process in the guest and waits until they are gone.
    pub fn end(self) {
        // Its socket closes: then it ends them all, and itself.
        drop(self.link);
        let _ = waitpid(self.pid, None);
    }
}

/// Makes the guest, up to the point where the command can start.
///
/// # Errors
/// The step that failed; nothing is left behind.
pub fn boot(
    config: &Config,
    cmd: &[OsString],
    keep_uid: bool,
    inherited: &mut Inherited,
) -> Result<Guest, Failure> {
    let argv = argv(cmd)?;
    let text = (config.write_resolv_conf && config.net.dns).then(|| resolv_conf(&config.net));
    let plan = Plan { config, argv: &argv, resolv_conf: text.as_deref() };
    if let Some(guest) = attempt(&plan, keep_uid, inherited, true)? {
        return Ok(guest);
    }
    attempt(&plan, keep_uid, inherited, false)?
        .ok_or_else(|| Failure::new("/proc can neither be kept nor mounted anew"))
}

/// What the child is to do.
struct Plan<'a> {
    config: &'a Config,
    argv: &'a [CString],
    resolv_conf: Option<&'a str>,
}

/// Makes the guest, with or without a PID namespace; `None` when it is not possible with one.
fn attempt(
    plan: &Plan<'_>,
    keep_uid: bool,
    inherited: &mut Inherited,
    own_pids: bool,
) -> Result<Option<Guest>, Failure> {
    let (ours, theirs) = Link::pair()?;
    let mut namespaces = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWNS;
    if own_pids {
        namespaces |= libc::CLONE_NEWPID;
    }
    let mut ours = Some(ours);
    let pid = sys::fork(namespaces, || {
        // The child's copies of these would keep them from ever hanging up.
        (ours, inherited.ready, inherited.exit) = (None, None, None);
        init(plan, &theirs, own_pids)
    })
    .map_err(|e| no_namespaces(&e))?;
    drop(theirs);
    let Some(link) = ours else {
        return Err(Failure::new("the socket pair is gone"));
    };
    let init = Init { pid, link };
    let result = map_users(pid, keep_uid).and_then(|()| {
        let _ = init.link.order(ToChild::Mapped);
        init.link.hear(MsgFlags::empty()).context(|| "wait for the command's init process")
    });
    match result {
        Ok(Some(FromChild::Tap(taps, _))) if !taps.is_empty() => {
            // Made by us a moment ago: it cannot be persistent.
            Ok(Some(Guest { taps, persistent: None, life: Life::Command(init), userns: None }))
        }
        Ok(Some(FromChild::NoProc)) if own_pids => {
            init.end();
            Ok(None)
        }
        Ok(Some(FromChild::Failed(failure))) | Err(failure) => {
            init.end();
            Err(failure)
        }
        Ok(_) => {
            init.end();
            Err(Failure::new("the command's init process has died"))
        }
    }
}

/// The command's argument list; the user's shell when there is none.
fn argv(cmd: &[OsString]) -> Result<Vec<CString>, Failure> {
    let shell = || {
        std::env::var_os("SHELL")
            .filter(|shell| !shell.is_empty())
            .or_else(|| Some(User::from_uid(getuid()).ok()??.shell.into_os_string()))
            .filter(|shell| !shell.is_empty())
            .unwrap_or_else(|| "/bin/sh".into())
    };
    let words = if cmd.is_empty() { vec![shell()] } else { cmd.to_vec() };
    words
        .into_iter()
        .map(|word| CString::new(word.into_vec()))
        .collect::<Result<_, _>>()
        .map_err(|_| Failure::new("run: the command has a NUL byte in it"))
}

/// The resolv.conf of the command: our forwarders, and what else the host's says.
fn resolv_conf(net: &NetConfig) -> String {
    let host = fs::read(resolv::PATH).unwrap_or_default();
    resolv::for_guest(&host, net)
}

/// Maps users and groups into the child's user namespace, as its parent may: one's own id for anybody, all ids
/// that we have ourselves for root (so that files keep their owners, and packages can be installed).
fn map_users(pid: Pid, keep_uid: bool) -> Result<(), Failure> {
    let file = |name: &str| format!("/proc/{pid}/{name}");
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        let all = |name: &str| {
            let own = fs::read_to_string(format!("/proc/self/{name}"))?;
            fs::write(file(name), identity(&own))
        };
        match all("gid_map").and_then(|()| all("uid_map")) {
            Ok(()) => return Ok(()),
            Err(e) => tracing::debug!("root without the right to map all users: {e}"),
        }
    }
    let inside = |id: u32| if keep_uid { id } else { 0 };
    // The kernel wants it before the group map (CVE-2014-8989: dropping a group can give access).
    fs::write(file("setgroups"), "deny")
        .and_then(|()| fs::write(file("gid_map"), single(inside(gid.as_raw()), gid.as_raw())))
        .and_then(|()| fs::write(file("uid_map"), single(inside(uid.as_raw()), uid.as_raw())))
        .context(|| "map the user into a new user namespace")
        .map_err(|e| Failure::new(format!("{e}{}", remedy())))
}

/// A map of one id.
fn single(inside: u32, outside: u32) -> String {
    format!("{inside} {outside} 1\n")
}

/// A map that keeps every id of our own namespace, from that namespace's own map.
fn identity(own: &str) -> String {
    let mut map = String::new();
    for line in own.lines() {
        if let [inside, _, count] = line.split_whitespace().collect::<Vec<_>>()[..] {
            map.push_str(&format!("{inside} {inside} {count}\n"));
        }
    }
    map
}

fn no_namespaces(e: &std::io::Error) -> Failure {
    let line = "make a user, network, mount and PID namespace";
    let code = e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    match code {
        Errno::ENOSPC | Errno::EUSERS => Failure::new(format!(
            "{line}: the limit is reached: raise sysctl user.max_user_namespaces, user.max_net_namespaces, user.max_mnt_namespaces or user.max_pid_namespaces"
        )),
        Errno::EAGAIN => Failure::new(format!(
            "{line}: the limit on this user's processes is reached: end some, or raise it (ulimit -u)"
        )),
        _ => Failure::new(format!("{line}: {}{}", code.desc(), remedy())),
    }
}

/// What to do where user namespaces are restricted: the first thing found that restricts them.
pub(super) fn remedy() -> &'static str {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|v| v.trim() == value);
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        ": unprivileged user namespaces are off: sysctl kernel.unprivileged_userns_clone=1"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        ": AppArmor restricts unprivileged user namespaces: give ringtap a profile with `userns,`, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    } else {
        ": user namespaces may be forbidden here (a container's seccomp profile, a chroot)"
    }
}

/// The child: prepares the guest, waits for the network, runs the command and outlives it.
fn init(plan: &Plan<'_>, link: &Link, own_pids: bool) -> u8 {
    // A descendant's namespace dies with its process 1, so that may die by a signal. A subreaper must live
    // to end its children: it hears of our end from the socket.
    let _ = if own_pids { set_pdeathsig(Signal::SIGKILL) } else { set_child_subreaper(true) };
    // Keyboard signals come here too, and are for the command alone. They are blocked and not ignored,
    // so that the command finds every signal's disposition as it was.
    let Ok(mask) = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK) else {
        return 1;
    };
    if link.obey() != Ok(Some(ToChild::Mapped)) {
        return 1;
    }
    let resolv_conf = match prepare(plan, own_pids) {
        Ok(None) => {
            let _ = link.tell(&FromChild::NoProc);
            return 1;
        }
        Ok(Some((taps, resolv_conf))) => {
            let _ = link.tell(&FromChild::Tap(taps, None));
            resolv_conf
        }
        Err(failure) => {
            let _ = link.tell(&FromChild::Failed(failure));
            return 1;
        }
    };
    if link.obey() == Ok(Some(ToChild::Start)) {
        serve(plan.argv, link, &mask, resolv_conf, own_pids);
    }
    if !own_pids {
        end_descendants();
    }
    0
}

type Prepared = (Vec<crate::worker::TapQueue>, Option<ResolvConf>);

/// Mounts, TAP and addresses; `None` when no new `/proc` can be had.
fn prepare(plan: &Plan<'_>, own_pids: bool) -> Result<Option<Prepared>, Failure> {
    mounts::isolate()?;
    let resolv_conf = plan.resolv_conf.map(ResolvConf::mount).transpose()?.flatten();
    if own_pids && let Err(e) = mounts::proc() {
        tracing::debug!("no PID namespace for the command: mount /proc: {e}");
        return Ok(None);
    }
    Ok(Some((netns::make(plan.config)?, resolv_conf)))
}

/// Runs the command and serves it as its init process until the program hangs up.
fn serve(
    argv: &[CString],
    link: &Link,
    mask: &SigSet,
    mut resolv_conf: Option<ResolvConf>,
    own_pids: bool,
) {
    let command = match sys::fork(0, || exec(argv, mask, own_pids)) {
        Ok(pid) => pid,
        Err(e) => {
            say(format_args!("start a process for the command: {e}"));
            let _ = link.tell(&FromChild::Ended(126));
            return;
        }
    };
    let wanted: SigSet = [Signal::SIGCHLD, Signal::SIGCONT].into_iter().collect();
    let Ok(signals) = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
    else {
        return;
    };
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED;
    let mut stopped = false;
    // Reports every change of the mount table.
    let mounts = resolv_conf.as_ref().and_then(|_| fs::File::open("/proc/self/mounts").ok());
    let mut alive = true;
    let mut pause: Option<u16> = None;
    loop {
        let mut fds = vec![
            PollFd::new(link.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(mounts.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLPRI)));
        if poll(&mut fds, pause.map_or(PollTimeout::NONE, PollTimeout::from)).is_err() {
            continue;
        }
        if fds[0].any() == Some(true) {
            match link.obey() {
                Ok(Some(ToChild::Signal(signal))) if alive => {
                    let _ = kill(command, Signal::try_from(i32::from(signal)).ok());
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo == Signal::SIGCONT as u32 && stopped {
                let _ = kill(command, Signal::SIGCONT);
            }
        }
        while let Ok(status) = waitpid(None, Some(flags)) {
            if status == WaitStatus::StillAlive {
                break;
            }
            if status.pid() != Some(command) {
                continue;
            }
            if let Some(signal) = job_signal(status) {
                stopped = signal == Signal::SIGTSTP;
                let _ = kill(OUR_GROUP, signal);
            }
            if alive && let Some(code) = exit_code(status) {
                alive = false;
                let _ = link.tell(&FromChild::Ended(code));
            }
        }
        if let Some(resolv_conf) = &mut resolv_conf {
            // Nothing says when the file is back: look soon, then less often.
            pause = if resolv_conf.keep() {
                None
            } else {
                Some(pause.map_or(10, |ms| 1000.min(ms * 2)))
            };
        }
    }
}

/// What the group that we and our parent are in is told when the command stops or goes on by itself, not by the
/// keyboard: the shell that started us has to see its job stop. A group without such a shell does not stop
/// by this signal.
fn job_signal(status: WaitStatus) -> Option<Signal> {
    match status {
        WaitStatus::Stopped(..) => Some(Signal::SIGTSTP),
        WaitStatus::Continued(_) => Some(Signal::SIGCONT),
        _ => None,
    }
}

/// To kill(2): the sender's group.
const OUR_GROUP: Pid = Pid::from_raw(0);

/// Becomes the command. Returns the exit code that a shell gives when that fails.
fn exec(argv: &[CString], mask: &SigSet, own_pids: bool) -> u8 {
    if !own_pids {
        let _ = set_pdeathsig(Signal::SIGKILL);
    }
    // Rust's start-up ignores it.
    sys::set_default(Signal::SIGPIPE);
    let _ = mask.thread_set_mask();
    let Some(name) = argv.first() else { return 127 };
    let Err(mut e) = execvp(name, argv);
    let name = OsStr::from_bytes(name.as_bytes());
    // A folder in PATH that may not be looked into is EACCES to execvp, and nothing to a shell.
    if e == Errno::EACCES && !is_in_path(name, std::env::var_os("PATH").as_deref()) {
        e = Errno::ENOENT;
    }
    say(format_args!("{}: {}", name.display(), e.desc()));
    if matches!(e, Errno::ENOENT | Errno::ENOTDIR) { 127 } else { 126 }
}

/// Whether a command is there at all: given with a path, or a file in a folder of `PATH`.
fn is_in_path(name: &OsStr, path: Option<&OsStr>) -> bool {
    name.as_bytes().contains(&b'/')
        || std::env::split_paths(path.unwrap_or_default()).any(|dir| dir.join(name).is_file())
}

/// A line on stderr, wherever that leads.
fn say(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "ringtap: {line}");
}

/// The exit code of an ended process, as a shell says it.
fn exit_code(status: WaitStatus) -> Option<u8> {
    match status {
        WaitStatus::Exited(_, code) => Some(code as u8),
        WaitStatus::Signaled(_, signal, _) => Some(128 + signal as u8),
        _ => None,
    }
}

/// Ends all descendants of a subreaper: the children of a child that was ended become ours.
fn end_descendants() {
    loop {
        let children = fs::read_to_string(format!("/proc/self/task/{}/children", getpid()));
        for pid in
            children.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok())
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if waitpid(None, None).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        assert_eq!(single(0, 1000), "0 1000 1\n");
        assert_eq!(identity("         0          0 4294967295\n"), "0 0 4294967295\n");
        assert_eq!(
            identity("         0       1000          1\n         1     100000      65536\n"),
            "0 0 1\n1 1 65536\n"
        );
    }

    #[test]
    fn limits_are_named() {
        let line = |code| no_namespaces(&std::io::Error::from_raw_os_error(code)).to_string();
        assert!(line(libc::EAGAIN).contains("ulimit -u"));
        assert!(line(libc::ENOSPC).contains("user.max_user_namespaces"));
        assert!(line(libc::EPERM).contains("Operation not permitted"));
    }

    #[test]
    fn exit_codes_as_a_shell() {
        let pid = Pid::from_raw(1);
        assert_eq!(exit_code(WaitStatus::Exited(pid, 0)), Some(0));
        assert_eq!(exit_code(WaitStatus::Exited(pid, 255)), Some(255));
        assert_eq!(exit_code(WaitStatus::Signaled(pid, Signal::SIGKILL, false)), Some(137));
        assert_eq!(exit_code(WaitStatus::Signaled(pid, Signal::SIGINT, false)), Some(130));
        let stopped = WaitStatus::Stopped(pid, Signal::SIGSTOP);
        assert_eq!(exit_code(stopped), None);
        assert_eq!(job_signal(stopped), Some(Signal::SIGTSTP));
        assert_eq!(job_signal(WaitStatus::Continued(pid)), Some(Signal::SIGCONT));
        assert_eq!(job_signal(WaitStatus::Exited(pid, 0)), None);
    }

    #[test]
    fn a_missing_command_is_not_a_forbidden_one() {
        let path = Some(OsStr::new("/nonexistent:/etc"));
        assert!(is_in_path(OsStr::new("passwd"), path));
        assert!(is_in_path(OsStr::new("./nonexistent"), path));
        assert!(!is_in_path(OsStr::new("nonexistent"), path));
        assert!(!is_in_path(OsStr::new("passwd"), None));
    }

    #[test]
    fn a_command_or_the_shell() {
        let words = argv(&["ls".into(), "-l".into()]).unwrap();
        assert_eq!(words, [c"ls".to_owned(), c"-l".to_owned()]);
        assert_eq!(argv(&[]).unwrap().len(), 1);
    }
}
