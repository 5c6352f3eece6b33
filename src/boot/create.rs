//! `create`: a new network namespace, kept at a path by a bind mount as `ip netns` does.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::SigSet;

use super::netns::{self, Place};
use super::{Context, Failure, Guest, Life, tap};
use crate::config::Config;
use crate::control::watch;

/// A namespace's name that we have made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// What is mounted.
    pub place: Place,
    /// The empty file that it is mounted on.
    below: Place,
}

/// Makes the namespace, keeps it at `path` and gives it a TAP.
///
/// # Errors
/// The step that failed; nothing is left behind.
pub fn boot(config: &Config, path: &Path) -> Result<Guest, Failure> {
    let shown = path.display();
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        // As `ip netns` makes /run/netns; nothing above it.
        fs::create_dir(dir).context(|| format!("create {shown}: make {}", dir.display()))?;
    }
    // From here to the end there is something to remove: a signal waits until the control loop takes it up
    // (`control::watch::Signals`).
    let _ = watch::ENDING.into_iter().collect::<SigSet>().thread_block();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(path);
    let file = match file {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Failure::new(format!(
                "create {shown}: it exists: choose another path, or remove what is left over there (umount {shown}; rm {shown})"
            )));
        }
        file => file.context(|| format!("create {shown}"))?,
    };
    let below = Place::new(path, &file).context(|| format!("create {shown}"))?;
    keep(config, path, below).inspect_err(|_| drop(fs::remove_file(path)))
}

fn keep(config: &Config, path: &Path, below: Place) -> Result<Guest, Failure> {
    let shown = path.display();
    let (taps, namespace) = netns::in_child(0, || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| refused(path, e))?;
        let namespace =
            File::open("/proc/self/ns/net").context(|| "open the new network namespace")?;
        Ok((netns::make(config)?, Some(namespace.into())))
    })?;
    let namespace = File::from(
        namespace.ok_or_else(|| Failure::new("the new network namespace did not arrive"))?,
    );
    let place = Place::new(path, &namespace).context(|| format!("create {shown}"))?;
    let source = format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd());
    mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| refused(path, e))?;
    let persistent = taps.first().map(tap::persistent).transpose()?.flatten();
    Ok(Guest { taps, persistent, life: Life::Ours(Made { place, below }) })
}

/// Takes the namespace's name away, unless the path means something else by now.
pub fn remove(made: &Made) {
    if made.place.is_there() {
        let _ = umount2(&made.place.path, MntFlags::MNT_DETACH);
    }
    if made.below.is_there() {
        let _ = fs::remove_file(&made.below.path);
    }
}

fn refused(path: &Path, e: nix::Error) -> Failure {
    let shown = path.display();
    if e == nix::Error::EPERM {
        return Failure::new(format!(
            "create {shown}: mounting there needs CAP_SYS_ADMIN: run it as root, or inside `unshare --user --map-root-user --mount`; for a network without a name use `ringtap run`"
        ));
    }
    Failure::new(format!("create {shown}: {}", e.desc()))
}
