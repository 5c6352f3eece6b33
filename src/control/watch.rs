//! What ends the program from outside: signals, a descriptor that hangs up, a process or a path that goes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal::{self, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::boot::{Place, sys};
use crate::limits::RA_INTERVAL;
use crate::time::Millis;

/// What ends us.
pub const ENDING: [Signal; 3] = [SIGHUP, SIGINT, SIGTERM];

/// The signals that end us, as they come.
#[derive(Debug)]
pub struct Signals {
    terminate: Stream,
    hangup: Option<Stream>,
    interrupt: Option<Stream>,
}

impl Signals {
    /// Listens from now on. A signal that was ignored when we started stays so (`nohup`, a shell's background
    /// job), and with `keyboard` off SIGINT and SIGQUIT are: they are the command's.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn listen(keyboard: bool) -> io::Result<Self> {
        if !keyboard {
            sys::ignore(SIGINT);
            sys::ignore(SIGQUIT);
        }
        let this = Self::register()?;
        let _ = ENDING.into_iter().collect::<SigSet>().thread_unblock();
        Ok(this)
    }

    fn register() -> io::Result<Self> {
        let unless_ignored = |number, kind| {
            if sys::is_ignored(number) { Ok(None) } else { signal(kind).map(Some) }
        };
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: unless_ignored(SIGHUP, SignalKind::hangup())?,
            interrupt: unless_ignored(SIGINT, SignalKind::interrupt())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => SIGTERM,
            _ = next_of(&mut self.hangup) => SIGHUP,
            _ = next_of(&mut self.interrupt) => SIGINT,
        }
    }
}

async fn next_of(stream: &mut Option<Stream>) {
    match stream {
        Some(stream) => drop(stream.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether a pidfd says now that its process has ended.
pub fn is_ready(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

/// Waits until the other side of a descriptor hangs up, or the descriptor fails. Bytes that can be read are
/// no reason: slirp4netns polls for POLLHUP alone.
///
/// # Errors
/// What `epoll(7)` says of the descriptor.
pub async fn hung_up(fd: &OwnedFd) -> io::Result<()> {
    let hung_up = || {
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    };
    if hung_up() {
        return Ok(());
    }
    let watched = match sys::readiness(fd.as_fd(), Interest::READABLE) {
        Ok(watched) => watched,
        // A regular file: it never hangs up.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => return std::future::pending().await,
        Err(e) => return Err(e),
    };
    loop {
        let mut guard = watched.readable().await?;
        if hung_up() {
            return Ok(());
        }
        guard.clear_ready();
    }
}

/// Waits until a process has ended.
///
/// # Errors
/// What `epoll(7)` says.
pub async fn ended(pidfd: &OwnedFd) -> io::Result<()> {
    let watched = sys::readiness(pidfd.as_fd(), Interest::READABLE)?;
    let _ = watched.readable().await?;
    Ok(())
}

/// Waits until a path does not name its namespace any more.
pub async fn gone(place: &Place) {
    let lookout = Lookout::on(place);
    let folder = lookout.folder.as_ref();
    let folder = folder.and_then(|fd| sys::readiness(fd.as_fd(), Interest::READABLE).ok());
    let mounts = lookout.mounts.as_ref();
    let mounts = mounts.and_then(|fd| sys::readiness(fd.as_fd(), Interest::PRIORITY).ok());
    while place.is_there() {
        tokio::select! {
            () = folder_changed(folder.as_ref()) => {}
            () = mounts_changed(mounts.as_ref()) => {}
            () = tokio::time::sleep(lookout.pause()) => {}
        }
    }
}

/// What tells that a path may not name its namespace any more: it is unlinked or renamed (its folder says so),
/// unmounted (the mount table does), or in a file system that tells nothing, where only looking helps.
#[derive(Debug)]
pub struct Lookout {
    folder: Option<Inotify>,
    mounts: Option<File>,
    is_silent: bool,
}

impl Lookout {
    /// Keeps an eye on a path from now on.
    pub fn on(place: &Place) -> Self {
        let folder = watch_folder(&place.path);
        let mounts = File::open("/proc/self/mounts").ok();
        let is_silent = is_in_proc(&place.path) || folder.is_none() || mounts.is_none();
        Self { folder, mounts, is_silent }
    }

    /// When to look again though nothing was told. Idle means idle: where we are told, no more looks than there are
    /// router advertisements.
    pub fn pause(&self) -> Duration {
        let pause = if self.is_silent { Millis::secs(1) } else { RA_INTERVAL };
        Duration::from_millis(pause.0)
    }

    /// What poll(2) is to wait for.
    pub fn fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let folder = self.folder.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        folder.chain(self.mounts.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLPRI)))
    }

    /// Takes what the folder has told, which does not matter: the place is looked at.
    pub fn drain(&self) {
        let Some(folder) = &self.folder else { return };
        while nix::unistd::read(folder.as_fd(), &mut [0; 4096]).is_ok_and(|n| n > 0) {}
    }
}

fn watch_folder(path: &Path) -> Option<Inotify> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    let events = AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(folder, events).ok()?;
    Some(inotify)
}

async fn folder_changed(folder: Option<&AsyncFd<BorrowedFd<'_>>>) {
    let Some(folder) = folder else { return std::future::pending().await };
    if let Ok(mut guard) = folder.readable().await {
        // What happened does not matter: the place is looked at.
        while nix::unistd::read(folder.get_ref(), &mut [0; 4096]).is_ok_and(|n| n > 0) {}
        guard.clear_ready();
    }
}

async fn mounts_changed(mounts: Option<&AsyncFd<BorrowedFd<'_>>>) {
    let Some(mounts) = mounts else { return std::future::pending().await };
    if let Ok(mut guard) = mounts.ready(Interest::PRIORITY).await {
        guard.clear_ready();
    }
}

/// Whether a path is in procfs, which has no events.
fn is_in_proc(path: &Path) -> bool {
    let named = path.as_os_str().as_bytes().starts_with(b"/proc/");
    // The file itself is in nsfs; its folder tells.
    named
        || path
            .parent()
            .is_some_and(|p| statfs(p).is_ok_and(|s| s.filesystem_type() == PROC_SUPER_MAGIC))
}
