//! Once, before the first packet: namespaces, the TAP, addresses and routes. May block, may fail with context.
//!
//! # Theory of operation
//!
//! The program itself never enters the guest: its sockets must be made where the host is. What has to be
//! done inside is done by a child that is forked while the process has one thread (a user namespace
//! can only be joined by a single-threaded process), and its result, an open TAP queue, comes
//! back through a socket pair. In order:
//!
//! 1. Descriptors given by number are taken over ([`Inherited`]): they are closed on exec, and no child keeps them.
//! 2. The child joins (`attach`), makes (`create`) or is born into (`run`) the namespaces: [`netns`], [`command`].
//! 3. There it opens `/dev/net/tun`, since a TAP is made where that file was opened, and makes or adopts the
//!    TAP with virtio header and offloads: [`tap`].
//! 4. It configures `lo`, addresses and routes over netlink: [`link`].
//! 5. It passes the queues to the parent ([`pass`]) and exits; the child of `run` stays, as the init
//!    process of the command. With an open TAP, or a guest that is a program and connects to a [socket](bess),
//!    2 to 5 are left out.
//! 6. The parent says how it will know that the guest is gone: [`Life`].
//! 7. When control has made what needs a path, a child stays outside as the [`keeper`], and the program itself goes
//!    behind walls: [`sandbox`], before its threads start, and [`seccomp`], when all of them run.
//!
//! A failure on either side arrives as one line that names the step ([`Failure`]); nothing is left behind.
//!
//! **Invariant:** everything unsafe is in [`sys`]; nothing here runs after the first packet but the
//! init process of `run`, the filter ([`seccomp`]) and the closing of a TAP ([`tap::leave`]).

pub mod bess;
pub mod command;
pub mod create;
pub mod failure;
pub mod keeper;
pub mod link;
pub mod mounts;
pub mod netns;
pub mod pass;
pub mod sandbox;
pub mod seccomp;
pub mod sys;
pub mod tap;

use std::os::fd::OwnedFd;

use crate::config::{Config, Mode, Target};
use crate::worker::TapQueue;

pub use command::Init;
pub use failure::{Context, Failure};
pub use netns::Place;

/// A guest with a TAP, ready for packets.
#[derive(Debug)]
pub struct Guest {
    /// What each worker has of its queues.
    pub taps: Vec<TapQueue>,
    /// A second descriptor of a TAP that outlives us, to leave it as it should be: [`tap::leave`].
    pub persistent: Option<OwnedFd>,
    /// How we know that it is gone.
    pub life: Life,
    /// Its user namespace, where the sandbox may have a use for it.
    pub userns: Option<OwnedFd>,
}

/// What the guest's life hangs on.
#[derive(Debug)]
pub enum Life {
    /// Nothing that we know of (an inherited TAP).
    Unknown,
    /// A program that is connected to our socket: a worker hears of its end.
    Peer,
    /// A process, by pidfd: an open TAP keeps a namespace alive and never tells of its end.
    Process(OwnedFd),
    /// A path that names the namespace.
    Path(Place),
    /// A path that names the namespace and was made by us: it goes when we go.
    Ours(create::Made),
    /// A command of our own.
    Command(Init),
}

/// Descriptors that the caller gave by number.
#[derive(Debug, Default)]
pub struct Inherited {
    /// `--ready-fd`
    pub ready: Option<OwnedFd>,
    /// `--exit-fd`; absent also when the number is not an open descriptor, which counts as hung up.
    pub exit: Option<OwnedFd>,
}

impl Inherited {
    /// Takes the descriptors over.
    ///
    /// # Errors
    /// A number that cannot be used as asked.
    pub fn take(config: &Config) -> Result<Self, Failure> {
        if config.ready_fd.is_some() && config.ready_fd == config.exit_fd {
            return Err(Failure::new("--ready-fd and --exit-fd must be two different descriptors"));
        }
        let ready = match config.ready_fd {
            // slirp4netns ignores errors of the ready descriptor.
            Some(fd) => sys::adopt(fd).ok(),
            None => None,
        };
        let exit = config.exit_fd.and_then(|fd| sys::adopt(fd).ok());
        Ok(Self { ready, exit })
    }
}

/// Does all of the above. The process must have one thread.
///
/// # Errors
/// The step that failed, with the remedy where there is one.
pub fn boot(config: &Config, inherited: &mut Inherited) -> Result<Guest, Failure> {
    let mut guest = match &config.mode {
        Mode::Run { cmd, keep_uid } => command::boot(config, cmd, *keep_uid, inherited),
        Mode::Create(path) => create::boot(config, path),
        Mode::Attach(Target::TapFd(fd)) => {
            let fd = sys::adopt(*fd)
                .context(|| format!("TAP descriptor {fd}: not an open file descriptor"))?;
            let (queue, persistent) = tap::adopt(fd)?;
            Ok(Guest { taps: vec![queue], persistent, life: Life::Unknown, userns: None })
        }
        Mode::Attach(Target::Bess(path)) => bess::wait(path, inherited.exit.as_ref()),
        Mode::Attach(Target::Pid { pid, userns }) => {
            netns::attach_pid(config, *pid, userns.as_deref())
        }
        Mode::Attach(Target::Path { path, userns }) => {
            netns::attach_path(config, path, userns.as_deref())
        }
    }?;
    if !matches!(guest.life, Life::Peer) {
        tap::spread(&mut guest.taps, config.workers)?;
    }
    Ok(guest)
}
