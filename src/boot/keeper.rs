//! The keeper: a tiny process that stays outside of the sandbox.
//!
//! # Theory of operation
//!
//! Two things need paths that a process in the sandbox does not have: to remove in the end what was made in the file system
//! (the socket of the API, the file with our PID, the name of a namespace), and to see that the path which names
//! the guest's namespace has gone. A child that is forked before does both, and nothing else. It is there only where
//! there is something to do.
//!
//! The two share a socket pair. The program's end closes when the program ends, *in whatever way*, SIGKILL among them;
//! then the keeper removes what is on its list, if it is the same file still, and ends. A program that ends by itself waits
//! for that. The other way two bytes go: the keeper stands, which the program waits for (before that the end of the caller's
//! process group would be the keeper's too, and nobody would clean up), and the path has gone. Bytes from the program are
//! thrown away: one that was taken over can ask for nothing but its own end.
//!
//! The keeper has no other descriptor: no TAP (which would keep the guest's namespace alive), neither the ready nor the exit
//! descriptor, no output that a caller waits for the end of. It is in a session of its own, so that neither the keyboard
//! nor a signal to the caller's process group ends it early, and takes no other signal either. It has the rights that the
//! program had, since it unmounts and removes; it never sees a byte of the guest. As it was forked before the buffers
//! were made and shares its pages with the program, it costs little more than its page tables.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, read, setsid, write};

use super::create::{self, Made};
use super::{Context, Failure, Life, Place, sys};
use crate::control::watch::Lookout;

/// A file that we have made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    path: PathBuf,
    id: Id,
}

/// Device, inode, and when it was made, where the file system remembers that: the number of an inode is
/// free again as soon as its file is removed and closed, and the next file gets it. That is our
/// successor's socket, when a caller restarts us and we are the slower to end.
type Id = (u64, u64, Option<SystemTime>);

impl Kept {
    /// Notes which file is at `path`.
    ///
    /// # Errors
    /// What `lstat(2)` says.
    pub fn note(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), id: (meta.dev(), meta.ino(), meta.created().ok()) })
    }

    /// Removes it, unless another one has taken its place.
    pub fn remove(&self) {
        if Self::note(&self.path).is_ok_and(|now| now.id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What is to be done outside of the sandbox.
#[derive(Clone, Debug, Default)]
pub struct Duties {
    /// To be removed in the end.
    pub files: Vec<Kept>,
    /// The namespace's name, to be removed in the end.
    made: Option<Made>,
    /// To be watched.
    place: Option<Place>,
}

impl Duties {
    /// What comes of the guest.
    pub fn of(life: &Life) -> Self {
        let (made, place) = match life {
            Life::Ours(made) => (Some(made.clone()), Some(made.place.clone())),
            // What such a path means depends on who looks. As long as we live, it stays.
            Life::Path(place) if is_of_self(&place.path) => (None, None),
            Life::Path(place) => (None, Some(place.clone())),
            Life::Unknown | Life::Peer | Life::Process(_) | Life::Command(_) => (None, None),
        };
        Self { files: Vec::new(), made, place }
    }

    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.made.is_none() && self.place.is_none()
    }

    /// Removes what is to be removed.
    pub fn carry_out(&self) {
        self.files.iter().for_each(Kept::remove);
        if let Some(made) = &self.made {
            create::remove(made);
        }
    }
}

/// Whether a path leads through the descriptors of the process itself.
fn is_of_self(path: &Path) -> bool {
    ["/proc/self", "/proc/thread-self", "/dev/fd"].iter().any(|own| path.starts_with(own))
}

/// The keeper, as the program sees it.
#[derive(Debug)]
pub struct Keeper {
    pid: Pid,
    link: OwnedFd,
    gone: Cell<bool>,
}

/// What the keeper has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Nothing.
    Nothing,
    /// The path does not name the namespace any more.
    Gone,
    /// Somebody has killed it.
    Died,
}

impl Keeper {
    /// Starts a keeper, if there is something to do for it, and waits until it stands on its own. The process must have one
    /// thread.
    ///
    /// # Errors
    /// No descriptor or no process is free, or it has ended at once.
    pub fn start(duties: &Duties) -> Result<Option<Self>, Failure> {
        if duties.is_empty() {
            return Ok(None);
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)
            .context(|| "make a socket pair for the keeper")?;
        // No handler of ours runs in the child: it would write to descriptors that both have.
        let mask = SigSet::all()
            .thread_swap_mask(SigmaskHow::SIG_SETMASK)
            .context(|| "block signals for the keeper")?;
        let pid = sys::fork(0, || keep(duties, theirs.as_fd()));
        drop(theirs);
        let _ = mask.thread_set_mask();
        let pid = pid.context(|| {
            "start the keeper, a process that cleans up after the sandbox: the limit on processes may be reached (ulimit -u)"
        })?;
        let keeper = Self { pid, link: ours, gone: Cell::new(false) };
        if keeper.stands() {
            return Ok(Some(keeper));
        }
        keeper.finish();
        Err(Failure::new(
            "start the keeper, a process that cleans up after the sandbox: it has ended at once",
        ))
    }

    /// Waits for its first byte, or its end.
    fn stands(&self) -> bool {
        loop {
            match read(&self.link, &mut [0]) {
                Ok(n) => return n > 0,
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => return false,
            }
            // EINTR: the next read tells.
            let _ = poll(&mut [PollFd::new(self.link(), PollFlags::POLLIN)], PollTimeout::NONE);
        }
    }

    /// The socket that says when there is a word.
    pub fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// What it has said, without waiting.
    pub fn word(&self) -> Word {
        if self.gone.get() {
            return Word::Gone;
        }
        match read(&self.link, &mut [0]) {
            Ok(1..) => {
                self.gone.set(true);
                Word::Gone
            }
            Ok(0) => Word::Died,
            Err(Errno::EAGAIN | Errno::EINTR) => Word::Nothing,
            Err(_) => Word::Died,
        }
    }

    /// Lets it clean up, and waits until that is done.
    pub fn finish(self) {
        drop(self.link);
        let _ = waitpid(self.pid, None);
    }
}

/// The child.
fn keep(duties: &Duties, link: BorrowedFd<'_>) -> u8 {
    if sys::close_all_but(link).is_err() {
        return 1;
    }
    let _ = setsid();
    let _ = prctl::set_name(c"ringtap-keeper");
    // Nobody of the same user gets hold of it by ptrace: it has rights that the program gives up.
    let _ = prctl::set_dumpable(false);
    // EPIPE: the program has ended already, which the next read says.
    let _ = write(link, b"s");
    watch(duties.place.as_ref(), link);
    duties.carry_out();
    0
}

/// Returns when the program has ended.
fn watch(mut place: Option<&Place>, link: BorrowedFd<'_>) {
    let lookout = place.map(Lookout::on);
    loop {
        if place.is_some_and(|place| !place.is_there()) {
            // EPIPE: then there is nobody to tell, which the next read says.
            let _ = write(link, b"g");
            place = None;
        }
        let watched = lookout.as_ref().filter(|_| place.is_some());
        let mut fds = vec![PollFd::new(link, PollFlags::POLLIN)];
        fds.extend(watched.into_iter().flat_map(Lookout::fds));
        let pause = watched.map(|lookout| PollTimeout::try_from(lookout.pause()));
        if poll(&mut fds, pause.and_then(Result::ok).unwrap_or(PollTimeout::NONE)).is_err() {
            continue;
        }
        match read(link, &mut [0; 64]) {
            Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(0) | Err(_) => return,
        }
        if let Some(lookout) = watched {
            lookout.drain();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_file_is_removed() {
        let path = std::env::temp_dir().join(format!("ringtap-kept-{}", std::process::id()));
        let other = path.with_extension("other");
        fs::write(&path, "ours").unwrap();
        let kept = Kept::note(&path).unwrap();
        fs::write(&other, "somebody's").unwrap();
        fs::rename(&other, &path).unwrap();
        kept.remove();
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
        Kept::note(&path).unwrap().remove();
        assert!(!path.exists());
        kept.remove();
    }

    /// ext4 gives the inode of the file before.
    #[test]
    fn a_successor_with_the_same_inode_stays() {
        let path = std::env::temp_dir().join(format!("ringtap-inode-{}", std::process::id()));
        fs::write(&path, "ours").unwrap();
        let kept = Kept::note(&path).unwrap();
        if kept.id.2.is_none() {
            return;
        }
        // Times are as fine as the kernel's clock tick at the worst.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody's").unwrap();
        kept.remove();
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn paths_that_mean_something_else_to_another_process() {
        assert!(is_of_self(Path::new("/proc/self/fd/7")) && is_of_self(Path::new("/dev/fd/7")));
        assert!(
            !is_of_self(Path::new("/proc/77/ns/net")) && !is_of_self(Path::new("/run/netns/a"))
        );
    }

    #[test]
    fn nothing_to_do_is_no_process() {
        assert!(Keeper::start(&Duties::of(&Life::Unknown)).unwrap().is_none());
    }
}
