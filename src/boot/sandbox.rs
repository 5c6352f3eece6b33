//! The sandbox: what a process that parses a guest's bytes can reach when somebody has taken it over.
//!
//! # Theory of operation
//!
//! When everything that needs a path or a right has been made, and while the process has one thread still, [`enter`]
//! takes away what forwarding does without:
//!
//! 1. **Descriptors** that the caller left open without saying so: a folder among them would be a way out. (The
//!    command of `run` has been started with them.) Everything that ringtap opens is closed on exec; the others are not.
//! 2. **Files.** A mount namespace of its own, whose root is an empty file system with `/etc` and `/run` in it, as they
//!    are on the host, all read-only, without devices, programs or set-user-id. They are there for one file,
//!    `/etc/resolv.conf`, which is read again when it changes, and which may lead into `/run`. Where it leads elsewhere,
//!    the file at its end is there as well, and so are the links on the way. Mounts that the host makes or takes away
//!    below `/etc` and `/run` still come and go (slaves), so that nothing of the host is kept busy; they come
//!    with the host's own flags.
//! 3. **Capabilities**: none in any set but, where ports below 1024 may be asked for later, `CAP_NET_BIND_SERVICE`.
//!    `no_new_privs`, so that nothing gives them back.
//! 4. **Memory**: no core dump is written, nobody but root of the host may look into the process (`PR_SET_DUMPABLE`).
//!    Last, since a change of credentials undoes it.
//!
//! To make a mount namespace takes `CAP_SYS_ADMIN`. Root has it, also root of a user namespace (podman's). An ordinary user
//! gets it in a user namespace made for this, with his own id in it and no other: then the namespace of the guest is not
//! entered, the guest's root has no power over us, and we have none over other processes of the same user (no ptrace). It
//! does not need a PID, so it works for detached namespaces. Only where no user namespace can be made (a limit, a policy)
//! the guest's is joined instead, as slirp4netns always does.
//!
//! System calls are not looked at here: `/run` has sockets in it, and a read-only mount does not keep anybody
//! from connecting to them. That wall is the seccomp filter's.
//!
//! What has to be done outside later is the [keeper](super::keeper)'s. What fails here is an error that names the
//! step: a sandbox with a wall missing is none.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, chdir, getegid, geteuid, pivot_root, setgroups, setresgid, setresuid};

use super::{Context, Failure, command, sys};
use crate::config::{Config, Personality};
use crate::control::resolv;
use crate::output::say_error;

/// What stays visible.
const KEPT: [&str; 2] = ["/etc", "/run"];
/// Where the new root is put together: a folder that is there wherever we run, and not one of [`KEPT`].
const STAGE: &str = "/proc";
/// `CAP_NET_BIND_SERVICE` (linux/capability.h), as a bit.
const NET_BIND_SERVICE: u64 = 1 << 10;
/// Ports below this need a capability, unless a sysctl says otherwise (ip(7)).
const PORT_LOW: u16 = 1024;
/// Links on the way to a file at most (`MAXSYMLINKS` of the kernel).
const LINKS_MAX: usize = 40;

/// What kind of sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Walls {
    /// Keep the right to listen on ports below 1024.
    pub low_ports: bool,
    /// Whose words a failure has.
    pub personality: Personality,
}

impl Walls {
    /// What a run of the program needs: ports may be asked for on the command line, or later by the API.
    pub fn of(config: &Config) -> Self {
        let slirp = config.personality == Personality::Slirp4netns;
        let asked = config.forwards.iter().any(|forward| *forward.host_ports.start() < PORT_LOW);
        Self {
            low_ports: slirp || asked || config.api_socket.is_some(),
            personality: config.personality,
        }
    }

    /// What the operator reads.
    fn failure(self, failure: &Failure) -> Failure {
        Failure::new(match self.personality {
            Personality::Native => {
                format!("sandbox: {failure}: fix it, or run without these walls (--no-sandbox)")
            }
            Personality::Slirp4netns => format!(
                "{failure}\ncreate_sandbox failed\ndo_slirp is exiting\ndo_slirp failed\nparent failed"
            ),
        })
    }
}

/// Enters the sandbox. The process must have one thread. `userns` is the guest's user namespace, for want of another.
///
/// # Errors
/// The step that failed, and the remedy. The process is half inside then, and has to end.
pub fn enter(walls: Walls, userns: Option<&OwnedFd>) -> Result<(), Failure> {
    let result = sys::close_inherited()
        .context(|| "cannot close what was inherited")
        .and_then(|()| namespaces(userns))
        .and_then(|()| root(walls))
        .and_then(|()| rights(walls))
        .and_then(|()| memory());
    result.map_err(|failure| walls.failure(&failure))
}

/// A mount namespace, with the right to change it.
fn namespaces(userns: Option<&OwnedFd>) -> Result<(), Failure> {
    const STEP: &str = "cannot unshare new mount namespace";
    match unshare(CloneFlags::CLONE_NEWNS) {
        Err(Errno::EPERM) => {}
        result => return result.context(|| STEP),
    }
    let (uid, gid) = (geteuid(), getegid());
    match (unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS), userns) {
        (Ok(()), _) => map(uid, gid).context(|| format!("{STEP}: map the user into it")),
        (Err(e), Some(userns)) => {
            tracing::debug!("no user namespace of our own for the sandbox: {}", e.desc());
            join(userns).context(|| format!("{STEP}: join the guest's user namespace for it"))
        }
        (Err(e), None) => Err(Failure::new(format!("{STEP}: {}{}", e.desc(), command::remedy()))),
    }
}

/// We stay who we are, and there is nobody else.
fn map(uid: Uid, gid: Gid) -> io::Result<()> {
    // The kernel wants it before the group map (CVE-2014-8989: dropping a group can give access).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))
}

fn join(userns: &OwnedFd) -> nix::Result<()> {
    setns(userns, CloneFlags::CLONE_NEWUSER)?;
    // As `netns::join`: be root there, if there is one.
    let _ = setgroups(&[]);
    let _ = setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0));
    let _ = setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0));
    unshare(CloneFlags::CLONE_NEWNS)
}

/// The new root in the place of the old one.
fn root(walls: Walls) -> Result<(), Failure> {
    let none = None::<&str>;
    // Our mounts stay ours.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .context(|| "cannot remount / private")?;
    let way = Way::to(Path::new(resolv::PATH));
    // Copies first: the stage covers what the way may lead through.
    let mut trees = Vec::new();
    for folder in KEPT {
        match sys::clone_mounts(Path::new(folder)) {
            Ok(tree) => trees.push((Path::new(folder), tree)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).context(|| format!("cannot copy the mount of {folder}")),
        }
    }
    let outside = way.end.as_deref().filter(|end| !is_kept(end));
    let outside = match outside {
        Some(end) => {
            if walls.personality == Personality::Slirp4netns {
                say_error(&format!(
                    "sandbox: {} (-> {}) seems a symlink to a file outside {{/etc, /run}}, attempting to bind it as well.",
                    resolv::PATH,
                    end.display()
                ));
            }
            let file = sys::clone_mounts(end)
                .context(|| format!("cannot copy the mount of {}", end.display()))?;
            Some((end, file))
        }
        None => None,
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), STAGE, Some("tmpfs"), flags, Some("size=64k,mode=0755"))
        .context(|| format!("cannot mount tmpfs on {STAGE}"))?;
    chdir(STAGE).context(|| format!("cannot chdir to {STAGE}"))?;
    for (folder, tree) in &trees {
        let at = below(folder);
        fs::create_dir(at)
            .and_then(|()| sys::wall_mount(tree.as_fd(), true))
            .and_then(|()| sys::attach_mount(tree.as_fd(), at))
            .context(|| format!("cannot bind mount {}", folder.display()))?;
    }
    for (link, target) in way.links.iter().filter(|(link, _)| !is_kept(link)) {
        place(link)
            .and_then(|()| symlink(target, below(link)))
            .context(|| format!("cannot make the link {}", link.display()))?;
    }
    if let Some((end, file)) = outside {
        place(end)
            .and_then(|()| fs::write(below(end), ""))
            .and_then(|()| sys::wall_mount(file.as_fd(), true))
            .and_then(|()| sys::attach_mount(file.as_fd(), below(end)))
            .context(|| format!("cannot bind mount {}", end.display()))?;
    }
    // The old root lands on top of the new one (pivot_root(2)), and is taken off from there.
    pivot_root(".", ".").context(|| format!("cannot pivot_root to {STAGE}"))?;
    umount2(".", MntFlags::MNT_DETACH).context(|| "cannot umount the old root")?;
    chdir("/").context(|| "cannot chdir to /")?;
    sys::wall_root().context(|| "cannot remount / as read-only")
}

/// A path of the old root, seen from the new one.
fn below(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Makes the folders above a path in the new root.
fn place(path: &Path) -> io::Result<()> {
    below(path).parent().map_or(Ok(()), fs::create_dir_all)
}

fn is_kept(path: &Path) -> bool {
    KEPT.iter().any(|folder| path.starts_with(folder))
}

/// How a path leads to a file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Way {
    /// The links on the way, each with what it says. Their own paths have no link in them.
    links: Vec<(PathBuf, PathBuf)>,
    /// The file, by its path without links; `None`: there is none.
    end: Option<PathBuf>,
}

impl Way {
    /// Follows an absolute path.
    fn to(path: &Path) -> Self {
        let mut way = Self::default();
        let mut ahead = parts(path);
        let mut here = PathBuf::from("/");
        while let Some(part) = ahead.pop() {
            if part == ".." {
                here.pop();
                continue;
            }
            here.push(&part);
            match fs::symlink_metadata(&here) {
                Ok(meta) if meta.is_symlink() => {}
                Ok(_) => continue,
                Err(_) => return way,
            }
            let Ok(target) = fs::read_link(&here) else { return way };
            if way.links.len() == LINKS_MAX {
                return way;
            }
            ahead.extend(parts(&target));
            way.links.push((here.clone(), target.clone()));
            here.pop();
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
        }
        way.end = Some(here);
        way
    }
}

/// The parts of a path, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Every right that is not needed.
fn rights(walls: Walls) -> Result<(), Failure> {
    sys::drop_capabilities(if walls.low_ports { NET_BIND_SERVICE } else { 0 })
        .context(|| "cannot drop capabilities")?;
    prctl::set_no_new_privs().context(|| "cannot set no_new_privs")
}

/// Nothing of the memory gets out.
fn memory() -> Result<(), Failure> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context(|| "cannot forbid core dumps")?;
    prctl::set_dumpable(false).context(|| "cannot forbid core dumps")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_a_remedy_or_slirp4netns_words() {
        let failure = Failure::new("cannot pivot_root to /tmp: Invalid argument");
        let said =
            |personality| Walls { low_ports: false, personality }.failure(&failure).to_string();
        let native = said(Personality::Native);
        assert!(
            native.starts_with("sandbox: cannot pivot_root") && native.contains("--no-sandbox")
        );
        assert_eq!(native.lines().count(), 1);
        assert_eq!(
            said(Personality::Slirp4netns).lines().collect::<Vec<_>>(),
            [
                "cannot pivot_root to /tmp: Invalid argument",
                "create_sandbox failed",
                "do_slirp is exiting",
                "do_slirp failed",
                "parent failed",
            ]
        );
    }

    #[test]
    fn a_way_through_links() {
        let dir = std::env::temp_dir().join(format!("ringtap-way-{}", std::process::id()));
        let dir = fs::create_dir_all(&dir).and_then(|()| fs::canonicalize(&dir)).unwrap();
        let at = |name: &str| dir.join(name);
        fs::create_dir(at("real")).unwrap();
        fs::write(at("real/file"), "").unwrap();
        // A link to a folder, a relative one through it, an absolute one to that.
        symlink("real", at("folder")).unwrap();
        symlink("./folder/../real/file", at("relative")).unwrap();
        symlink(at("relative"), at("absolute")).unwrap();
        let way = Way::to(&at("absolute"));
        assert_eq!(way.end, Some(at("real/file")));
        let links: Vec<_> = way.links.iter().map(|(link, _)| link.clone()).collect();
        assert_eq!(links, [at("absolute"), at("relative"), at("folder")]);
        // A loop, and a link to nowhere.
        symlink(at("loop"), at("loop")).unwrap();
        assert_eq!(Way::to(&at("loop")).end, None);
        symlink("nowhere", at("dangling")).unwrap();
        let way = Way::to(&at("dangling"));
        assert_eq!((way.links.len(), way.end), (1, None));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn only_etc_and_run() {
        assert!(is_kept(Path::new("/etc/resolv.conf")) && is_kept(Path::new("/run/x/y")));
        assert!(!is_kept(Path::new("/etcetera")) && !is_kept(Path::new("/var/run/x")));
    }
}
