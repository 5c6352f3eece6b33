//! `--target-type=bess`: a guest that is no namespace but a program, such as user-mode Linux, which connects to a socket of
//! ours and sends and takes one Ethernet frame per packet: no virtio header, no offloads.
//!
//! The socket has one client. Its file is gone as soon as that has connected, so nothing is left behind however we
//! end, a mount namespace of our own or not; a second client finds nobody.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket,
};

use super::{Context, Failure, Guest, Life, sys};
use crate::control::watch::ENDING;
use crate::output::say_error;
use crate::worker::TapQueue;

/// Waits at `path` for the guest to connect. What ends the program ends the wait: a signal, as if it had not been caught,
/// and the exit descriptor, with exit code 0.
///
/// # Errors
/// What stands in the way of the socket.
pub fn wait(path: &Path, exit: Option<&OwnedFd>) -> Result<Guest, Failure> {
    let address = UnixAddr::new(path)
        .map_err(|_| Failure::new("the specified BESS socket path is too long (>= 108)"))?;
    // From here on a signal is heard of, and the file goes before us. Control lets them through again.
    let signals: SigSet = ENDING.into_iter().filter(|&s| !sys::is_ignored(s)).collect();
    signals.thread_block().context(|| "block signals")?;
    let told = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context(|| "listen for signals")?;
    make_way(path, &address)?;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .context(|| "make a socket")?;
    bind(listener.as_raw_fd(), &address).context(|| "child_bess: bind")?;
    let file = SocketFile(path.to_owned());
    listen(&listener, Backlog::new(0).context(|| "listen")?).context(|| "child_bess: listen")?;
    say_error(&format!("Waiting for connection to {}", path.display()));
    loop {
        let mut fds = vec![
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(told.as_fd(), PollFlags::POLLIN),
        ];
        // Bytes are no reason to end, as elsewhere.
        fds.extend(exit.map(|exit| PollFd::new(exit.as_fd(), PollFlags::empty())));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e).context(|| "wait for a connection"),
        }
        if let Ok(Some(info)) = told.read_signal() {
            drop(file);
            let signal = Signal::try_from(info.ssi_signo as i32).unwrap_or(Signal::SIGTERM);
            let _ = signals.thread_unblock();
            let _ = raise(signal);
            return Err(Failure::new(format!("ended by {signal}")));
        }
        if fds.get(2).and_then(PollFd::any) == Some(true) {
            drop(file);
            say_error("exitfd event\ndo_slirp is exiting");
            std::process::exit(0);
        }
        if fds.first().and_then(PollFd::any) == Some(true) {
            let fd = accept4(&listener, SockFlag::SOCK_CLOEXEC).context(|| "child_bess: accept")?;
            let number = fd.as_raw_fd();
            say_error(&format!(
                "sent \"tapfd\"={number} (not really TAP) for {}\nreceived tapfd={number}",
                path.display()
            ));
            let taps = vec![TapQueue { fd, vnet: false, reads: true }];
            return Ok(Guest { taps, persistent: None, life: Life::Peer, userns: None });
        }
    }
}

/// The socket's file, while somebody may connect.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes a socket that nobody listens on any more. Anything else stays, and is an error.
fn make_way(path: &Path, address: &UnixAddr) -> Result<(), Failure> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    let refuse = |why: &str| {
        let path = path.display();
        Err(Failure::new(format!("{path}: {why}: choose another path, or remove it first")))
    };
    if !meta.file_type().is_socket() {
        return refuse("there is a file of this name and it is no socket");
    }
    // Of another type than anybody's listening socket here would be: it is found, and not connected to.
    let probe = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context(|| "make a socket")?;
    match connect(probe.as_raw_fd(), address) {
        Err(nix::Error::ECONNREFUSED) => {
            fs::remove_file(path).context(|| format!("remove {}", path.display()))
        }
        Err(nix::Error::EPROTOTYPE) | Ok(()) => refuse("another process has this socket"),
        Err(e) => Err(e).context(|| format!("see who has {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn only_a_socket_that_nobody_has_makes_way() {
        let path = std::env::temp_dir().join(format!("ringtap-bess-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let address = UnixAddr::new(&path).unwrap();
        let why = || make_way(&path, &address).unwrap_err().to_string();
        assert_eq!(make_way(&path, &address), Ok(()));
        fs::write(&path, "mine").unwrap();
        assert!(why().contains("no socket"));
        fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(why().contains("another process"));
        drop(listener);
        assert_eq!(make_way(&path, &address), Ok(()));
        assert!(!path.exists());
        let datagrams = UnixDatagram::bind(&path).unwrap();
        assert!(why().contains("another process"));
        drop(datagrams);
        fs::remove_file(&path).unwrap();
    }
}
