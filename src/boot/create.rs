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
use super::{Context, Failure, Guest, Life, sys, tap};
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
                "create {shown}: it exists: choose another path{}",
                left_over(path)
            )));
        }
        file => file.context(|| format!("create {shown}"))?,
    };
    let below = Place::new(path, &file).context(|| format!("create {shown}"))?;
    keep(config, path, below).inspect_err(|_| drop(fs::remove_file(path)))
}

/// What to do about something at the path that was left there by one like us, and may be removed.
fn left_over(path: &Path) -> String {
    let shown = path.display();
    // Nobody's data is in a namespace, or in an empty file.
    let file = File::open(path).ok();
    let is_namespace = file.as_ref().and_then(|file| sys::namespace_kind(file.as_fd())).is_some();
    if is_namespace {
        return format!(
            ", or, if nobody uses the namespace there, remove it (umount {shown}; rm {shown})"
        );
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() == 0 => {
            format!(", or remove the empty file (rm {shown})")
        }
        _ => String::new(),
    }
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
    Ok(Guest { taps, persistent, life: Life::Ours(Made { place, below }), userns: None })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leftovers_are_to_be_removed() {
        let file = std::env::temp_dir().join(format!("ringtap-left-{}", std::process::id()));
        fs::write(&file, "").unwrap();
        assert_eq!(left_over(&file), format!(", or remove the empty file (rm {})", file.display()));
        fs::write(&file, "somebody's").unwrap();
        assert_eq!(left_over(&file), "");
        fs::remove_file(&file).unwrap();
        assert_eq!(left_over(Path::new("/etc")), "");
        assert!(left_over(Path::new("/proc/self/ns/net")).contains("umount"));
    }
}
