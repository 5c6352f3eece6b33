//! Joining namespaces that exist: by process, or by path.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::MsgFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

use super::pass::{FromChild, Link};
use super::{Context, Failure, Guest, Life, link, sys, tap};
use crate::config::{Config, Personality};
use crate::control::watch;
use crate::output::say_error;
use crate::worker::TapQueue;

/// A path that names a network namespace, and which one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Device and inode of the namespace: no other namespace has the same while this one lives.
    pub id: (u64, u64),
}

impl Place {
    /// Notes which namespace `path` names.
    ///
    /// # Errors
    /// What `stat(2)` says.
    pub fn new(path: &Path, namespace: &File) -> io::Result<Self> {
        let meta = namespace.metadata()?;
        Ok(Self { path: path.to_owned(), id: (meta.dev(), meta.ino()) })
    }

    /// Whether the path still names the namespace.
    pub fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.id)
    }
}

/// Gives a TAP to the network namespace of a process.
///
/// # Errors
/// The step that failed.
pub fn attach_pid(config: &Config, pid: i32, userns: Option<&Path>) -> Result<Guest, Failure> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let net = open(&path)?;
    refuse_our_own(&net, &format!("process {pid}"))?;
    // After the namespace was opened and before it is joined: if the process is still alive then, it was
    // this one's namespace.
    let pidfd = sys::pidfd_open(pid).context(|| format!("watch process {pid}"))?;
    let user = match userns {
        Some(path) => open_user(path)?,
        None => open(&PathBuf::from(format!("/proc/{pid}/ns/user")))?,
    };
    if watch::is_ready(&pidfd) {
        return Err(Failure::new(format!("process {pid} has ended")));
    }
    let kept = keep(config, Some(&user))?;
    let (taps, persistent) = enter(config, &path, net, Some(user), userns.is_some())?;
    Ok(Guest { taps, persistent, life: Life::Process(pidfd), userns: kept })
}

/// Gives a TAP to the network namespace at `path`.
///
/// # Errors
/// The step that failed.
pub fn attach_path(config: &Config, path: &Path, userns: Option<&Path>) -> Result<Guest, Failure> {
    let net = open(path)?;
    match sys::namespace_kind(net.as_fd()) {
        Some(libc::CLONE_NEWNET) => {}
        _ => return Err(Failure::new(format!("{}: not a network namespace", path.display()))),
    }
    refuse_our_own(&net, &path.display().to_string())?;
    let user = match userns {
        Some(path) => Some(open_user(path)?),
        // Not one of ours to see: setns will say why.
        None => sys::owner_of(net.as_fd()).ok().map(File::from),
    };
    let place = Place::new(path, &net).context(|| path.display().to_string())?;
    let kept = keep(config, user.as_ref())?;
    let (taps, persistent) = enter(config, path, net, user, userns.is_some())?;
    let life = match process_of(path).map(sys::pidfd_open) {
        Some(Ok(pidfd)) => Life::Process(pidfd),
        _ => Life::Path(place),
    };
    Ok(Guest { taps, persistent, life, userns: kept })
}

/// A second descriptor of the guest's user namespace, for the sandbox.
fn keep(config: &Config, user: Option<&File>) -> Result<Option<OwnedFd>, Failure> {
    let user = user.filter(|_| config.sandbox).map(|user| user.as_fd().try_clone_to_owned());
    user.transpose().context(|| "duplicate a descriptor")
}

/// The process in `/proc/PID/ns/net`: no event tells of the end of such a path.
fn process_of(path: &Path) -> Option<i32> {
    path.to_str()?.strip_prefix("/proc/")?.strip_suffix("/ns/net")?.parse().ok()
}

/// Runs the part of boot that is done inside the guest in a child, and takes its queues.
fn enter(
    config: &Config,
    path: &Path,
    net: File,
    user: Option<File>,
    explicit: bool,
) -> Result<(Vec<TapQueue>, Option<OwnedFd>), Failure> {
    let (taps, _) = in_child(0, || {
        join(path, &net, user.as_ref(), explicit)?;
        Ok((make(config)?, None))
    })?;
    let persistent = taps.first().map(tap::persistent).transpose()?.flatten();
    if config.personality == Personality::Slirp4netns
        && let Some(queue) = taps.first()
    {
        say_error(&format!("received tapfd={}", queue.fd.as_raw_fd()));
    }
    Ok((taps, persistent))
}

/// What is done inside any guest, by a process in its network namespace: the TAP, and its configuration.
///
/// # Errors
/// The step that failed.
pub fn make(config: &Config) -> Result<Vec<TapQueue>, Failure> {
    let taps = tap::open(&config.tap_name, config.workers)?;
    if config.configure {
        link::configure(config)?;
    }
    if config.personality == Personality::Slirp4netns
        && let Some(queue) = taps.first()
    {
        say_error(&format!("sent tapfd={} for {}", queue.fd.as_raw_fd(), config.tap_name));
    }
    Ok(taps)
}

/// Runs `inside` in a child with new namespaces of the given kinds, and takes what it made.
///
/// # Errors
/// What `inside` says, or that the child was killed.
pub fn in_child(
    namespaces: libc::c_int,
    inside: impl FnOnce() -> Result<(Vec<TapQueue>, Option<OwnedFd>), Failure>,
) -> Result<(Vec<TapQueue>, Option<OwnedFd>), Failure> {
    let (ours, theirs) = Link::pair()?;
    let child = sys::fork(namespaces, || {
        let message = match inside() {
            Ok((taps, extra)) => FromChild::Tap(taps, extra),
            Err(failure) => FromChild::Failed(failure),
        };
        u8::from(theirs.tell(&message).is_err())
    })
    .context(|| "start a child process")?;
    drop(theirs);
    let message = ours.hear(MsgFlags::empty());
    let status = waitpid(child, None);
    match message {
        Ok(Some(FromChild::Tap(taps, extra))) if !taps.is_empty() => Ok((taps, extra)),
        Ok(Some(FromChild::Failed(failure))) => Err(failure),
        _ => Err(Failure::new(format!("the child that sets the guest up has died: {status:?}"))),
    }
}

/// Joins the namespaces, in the one order that works: the right to join a network namespace comes from
/// the user namespace that owns it.
///
/// Root may join most network namespaces as it is, and keeps more rights so; the user namespace is
/// joined when it was asked for, or when there is no other way.
fn join(path: &Path, net: &File, user: Option<&File>, explicit: bool) -> Result<(), Failure> {
    let first = if geteuid().is_root() && !explicit {
        setns(net, CloneFlags::CLONE_NEWNET)
    } else {
        Err(nix::Error::EPERM)
    };
    if first != Err(nix::Error::EPERM) {
        return first.context(|| format!("join network namespace {}", path.display()));
    }
    if let Some(user) = user.filter(|user| !is_own_user_namespace(user)) {
        setns(user, CloneFlags::CLONE_NEWUSER).context(|| {
            format!(
                "join the user namespace of {}: it was made by another user, or give --userns",
                path.display()
            )
        })?;
        // As nsenter -U does: be root there, if there is one. What we need works without, too.
        let _ = setgroups(&[]);
        let _ = setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0));
        let _ = setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0));
    }
    setns(net, CloneFlags::CLONE_NEWNET).context(|| {
        format!("join network namespace {}: it needs CAP_SYS_ADMIN in the user namespace that owns it (see --userns)", path.display())
    })
}

/// Refuses the network namespace that our own sockets are in: its traffic would come back to us, and the host
/// would lose its default route to our TAP.
fn refuse_our_own(net: &File, named: &str) -> Result<(), Failure> {
    if !is_own(net, "net") {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{named} is in the network namespace that ringtap itself runs in, the host's: make another first (unshare --user --map-root-user --net), or use ringtap run"
    )))
}

/// Joining the user namespace that one is in gives EINVAL.
fn is_own_user_namespace(user: &File) -> bool {
    is_own(user, "user")
}

/// Whether a namespace is the one of this kind that this process is in.
fn is_own(namespace: &File, kind: &str) -> bool {
    match (namespace.metadata(), std::fs::metadata(format!("/proc/self/ns/{kind}"))) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    let result = File::open(path);
    let remedy = match &result {
        // What `/proc` of a process says (ptrace(2), access mode checking).
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            ": it belongs to another user: run ringtap as that user, or as root"
        }
        _ => "",
    };
    result
        .context(|| path.display().to_string())
        .map_err(|failure| Failure::new(format!("{failure}{remedy}")))
}

fn open_user(path: &Path) -> Result<File, Failure> {
    let user = open(path)?;
    match sys::namespace_kind(user.as_fd()) {
        Some(libc::CLONE_NEWUSER) => Ok(user),
        _ => Err(Failure::new(format!(
            "{}: not a user namespace: give the path of one, such as /proc/PID/ns/user",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_processes() {
        assert_eq!(process_of(Path::new("/proc/812/ns/net")), Some(812));
        assert_eq!(process_of(Path::new("/proc/self/ns/net")), None);
        assert_eq!(process_of(Path::new("/run/netns/a")), None);
    }

    #[test]
    fn the_wrong_namespaces_are_refused() {
        let own = |kind: &str| File::open(format!("/proc/self/ns/{kind}")).unwrap();
        let failure = refuse_our_own(&own("net"), "process 7").unwrap_err().to_string();
        assert!(failure.starts_with("process 7 is in") && failure.contains("unshare"), "{failure}");
        assert_eq!(refuse_our_own(&own("mnt"), "process 7"), Ok(()));
        assert!(open_user(Path::new("/proc/self/ns/user")).is_ok());
        for path in ["/proc/self/ns/net", "/proc/self/status"] {
            let failure = open_user(Path::new(path)).unwrap_err().to_string();
            assert!(failure.starts_with(&format!("{path}: not a user namespace: ")), "{failure}");
        }
    }

    #[test]
    fn a_place_is_gone_when_another_file_has_its_name() {
        let dir = std::env::temp_dir().join(format!("ringtap-place-{}", std::process::id()));
        let other = dir.with_extension("other");
        std::fs::write(&dir, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let place = Place::new(&dir, &File::open(&dir).unwrap()).unwrap();
        assert!(place.is_there());
        std::fs::rename(&other, &dir).unwrap();
        assert!(!place.is_there());
        std::fs::remove_file(&dir).unwrap();
        assert!(!place.is_there());
    }
}
