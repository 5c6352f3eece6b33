//! What the command of `run` sees of the file system: a `/proc` of its PID namespace, and our resolv.conf.
//!
//! A file to mount has to live somewhere: on a small tmpfs that covers `/proc` for a moment, until the real
//! one is mounted. Nobody but us is in the mount namespace then.
//!
//! Where `/etc/resolv.conf` leads to a file, ours is mounted over that file. Where it leads nowhere there is
//! nothing to mount over, and an ordinary user can make nothing in `/etc`: then `/etc` itself is covered by a
//! tmpfs of links to the real one, with our file among them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Context, Failure, sys};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const STAGE: &str = "/proc";

/// Keeps mounts that are made from now on to this namespace; those of the host still come in.
///
/// # Errors
/// What `mount(2)` says.
pub fn isolate() -> Result<(), Failure> {
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .context(|| "keep the command's mounts apart from the host's")
}

/// Mounts the `/proc` of the PID namespace.
///
/// # Errors
/// `EPERM` where parts of the host's `/proc` are covered, as in a container: the kernel does not let a new one
/// uncover them.
pub fn proc() -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)
}

/// Our resolv.conf, where it was mounted over a file.
#[derive(Debug)]
pub struct ResolvConf {
    target: PathBuf,
    /// A copy of the mount to attach when the first is lost.
    spare: OwnedFd,
}

impl ResolvConf {
    /// Gives the mount namespace a resolv.conf with this text. `None`: it cannot be lost.
    ///
    /// # Errors
    /// The step that failed.
    pub fn mount(text: &str) -> Result<Option<Self>, Failure> {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), STAGE, Some("tmpfs"), flags, Some("size=1m,mode=0755"))
            .context(|| "give the command a resolv.conf: mount a tmpfs")?;
        let result = match fs::canonicalize(RESOLV_CONF) {
            Ok(target) => over_file(target, text).map(Some),
            Err(_) => over_etc(text).map(|()| None),
        };
        let unstaged = umount2(STAGE, MntFlags::MNT_DETACH);
        let this = result.context(|| {
            format!("give the command a {RESOLV_CONF} (--no-dns leaves it as it is)")
        })?;
        unstaged.context(|| "unmount the tmpfs")?;
        Ok(this)
    }

    /// Mounts it again if the host has replaced the file: a mount ends when its place is renamed over or removed,
    /// as network managers do it, and the command would see the host's resolvers.
    /// False: it is not in place, because there is no file, or not yet: the mount ends before the rename does.
    pub fn keep(&mut self) -> bool {
        let Ok(now) = sys::clone_mount(&self.target) else { return false };
        if same_file(&now, &self.spare) {
            return true;
        }
        if sys::attach_mount(self.spare.as_fd(), &self.target).is_err() {
            return false;
        }
        // Attaching has used the copy up; the next one is made of what is attached.
        if let Ok(spare) = sys::clone_mount(&self.target) {
            self.spare = spare;
        }
        true
    }
}

fn over_file(target: PathBuf, text: &str) -> io::Result<ResolvConf> {
    let file = Path::new(STAGE).join("resolv.conf");
    write(&file, text)?;
    bind(&file, &target, MsFlags::empty())?;
    let spare = sys::clone_mount(&target)?;
    Ok(ResolvConf { target, spare })
}

fn over_etc(text: &str) -> io::Result<()> {
    let etc = Path::new(STAGE).join("etc");
    let host = etc.join(".host");
    fs::create_dir(&etc)?;
    fs::set_permissions(&etc, PermissionsExt::from_mode(0o755))?;
    fs::create_dir(&host)?;
    // Mounts below /etc stay where they are: a user namespace may not uncover what they hide.
    bind(Path::new("/etc"), &host, MsFlags::MS_REC)?;
    for entry in fs::read_dir(&host)? {
        let name = entry?.file_name();
        if name != "resolv.conf" {
            symlink(Path::new(".host").join(&name), etc.join(&name))?;
        }
    }
    write(&etc.join("resolv.conf"), text)?;
    bind(&etc, Path::new("/etc"), MsFlags::MS_REC)
}

/// A file that everybody may read, whatever the umask.
fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, PermissionsExt::from_mode(0o644))
}

fn bind(from: &Path, to: &Path, flags: MsFlags) -> io::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>)?;
    Ok(())
}

fn same_file(a: &OwnedFd, b: &OwnedFd) -> bool {
    match (nix::sys::stat::fstat(a), nix::sys::stat::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}
