//! Messages between the program and the child that it has inside the guest: a socket pair that keeps them apart.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    recvmsg, sendmsg, socketpair,
};

use super::{Context, Failure, sys};
use crate::worker::TapQueue;

/// Descriptors in one message at most (the kernel's bound is 253).
const FDS_MAX: usize = 64;
/// Bytes of one message at most; a longer error line is cut.
const BYTES_MAX: usize = 4096;

/// What the child in the guest says.
#[derive(Debug)]
pub enum FromChild {
    /// The TAP's queues, set up and configured, and what else was asked for (a namespace).
    Tap(Vec<TapQueue>, Option<OwnedFd>),
    /// A step failed; the child ends.
    Failed(Failure),
    /// A new `/proc` cannot be mounted here; the child ends.
    NoProc,
    /// The command has ended with this exit code, as a shell would say it.
    Ended(u8),
}

/// What the program says to the init process of `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToChild {
    /// The user mapping is written.
    Mapped,
    /// The network works: start the command.
    Start,
    /// Pass this signal on to the command.
    Signal(u8),
}

/// One end of the pair.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Both ends, closed on exec.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn pair() -> Result<(Self, Self), Failure> {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context(|| "make a socket pair")?;
        Ok((Self(a), Self(b)))
    }

    /// Says something as the child. An error means that nobody listens any more.
    ///
    /// # Errors
    /// What `sendmsg(2)` says.
    pub fn tell(&self, message: &FromChild) -> nix::Result<()> {
        match message {
            FromChild::Tap(queues, extra) => {
                let fds: Vec<RawFd> = extra
                    .iter()
                    .map(AsRawFd::as_raw_fd)
                    .chain(queues.iter().map(|q| q.fd.as_raw_fd()))
                    .collect();
                let vnet = queues.iter().all(|q| q.vnet);
                self.send(&[b'T', vnet.into(), extra.is_some().into()], &fds)
            }
            FromChild::Failed(failure) => {
                let line = failure.to_string();
                let line = &line.as_bytes()[..line.len().min(BYTES_MAX - 1)];
                self.send(&[b"F", line].concat(), &[])
            }
            FromChild::NoProc => self.send(b"P", &[]),
            FromChild::Ended(code) => self.send(&[b'E', *code], &[]),
        }
    }

    /// Says something to the child.
    ///
    /// # Errors
    /// What `sendmsg(2)` says.
    pub fn order(&self, message: ToChild) -> nix::Result<()> {
        match message {
            ToChild::Mapped => self.send(b"m", &[]),
            ToChild::Start => self.send(b"s", &[]),
            ToChild::Signal(signal) => self.send(&[b'k', signal], &[]),
        }
    }

    /// What the child says next; `None` when it has ended. With `MSG_DONTWAIT` in `flags`, `EAGAIN` when it
    /// has said nothing.
    ///
    /// # Errors
    /// What `recvmsg(2)` says.
    pub fn hear(&self, flags: MsgFlags) -> nix::Result<Option<FromChild>> {
        let mut bytes = [0; BYTES_MAX];
        let (len, mut fds) = self.receive(&mut bytes, flags)?;
        Ok(match &bytes[..len] {
            [b'T', vnet, extra] => {
                let extra = (*extra != 0 && !fds.is_empty()).then(|| fds.remove(0));
                let vnet = *vnet != 0;
                let queues = fds.into_iter().map(|fd| TapQueue { fd, vnet, reads: true }).collect();
                Some(FromChild::Tap(queues, extra))
            }
            [b'F', line @ ..] => {
                Some(FromChild::Failed(Failure::new(String::from_utf8_lossy(line))))
            }
            [b'P'] => Some(FromChild::NoProc),
            [b'E', code] => Some(FromChild::Ended(*code)),
            _ => None,
        })
    }

    /// What the program says next; `None` when it has ended.
    ///
    /// # Errors
    /// What `recvmsg(2)` says.
    pub fn obey(&self) -> nix::Result<Option<ToChild>> {
        let mut bytes = [0; 8];
        let (len, _) = self.receive(&mut bytes, MsgFlags::empty())?;
        Ok(match &bytes[..len] {
            [b'm'] => Some(ToChild::Mapped),
            [b's'] => Some(ToChild::Start),
            [b'k', signal] => Some(ToChild::Signal(*signal)),
            _ => None,
        })
    }

    fn send(&self, bytes: &[u8], fds: &[RawFd]) -> nix::Result<()> {
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[_] = if fds.is_empty() { &[] } else { &rights };
        let iov = [IoSlice::new(bytes)];
        sendmsg::<UnixAddr>(self.0.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    fn receive(&self, bytes: &mut [u8], flags: MsgFlags) -> nix::Result<(usize, Vec<OwnedFd>)> {
        let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
        let mut iov = [IoSliceMut::new(bytes)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut iov, Some(&mut space), flags) {
                Err(nix::Error::EINTR) => {}
                // The other end is gone with a message of ours unread.
                Err(nix::Error::ECONNRESET) => return Ok((0, Vec::new())),
                result => break result?,
            }
        };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(rights) = control {
                fds.extend(sys::received(rights));
            }
        }
        Ok((message.bytes, fds))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (here, there) = Link::pair().unwrap();
        there.tell(&FromChild::Failed(Failure::new("no such thing"))).unwrap();
        there.tell(&FromChild::Ended(77)).unwrap();
        let fd = there.0.try_clone().unwrap();
        let queue = there.0.try_clone().unwrap();
        there
            .tell(&FromChild::Tap(vec![TapQueue { fd: queue, vnet: true, reads: true }], Some(fd)))
            .unwrap();
        let next = || here.hear(MsgFlags::empty()).unwrap();
        assert!(matches!(next(), Some(FromChild::Failed(f)) if f == Failure::new("no such thing")));
        assert!(matches!(next(), Some(FromChild::Ended(77))));
        match next() {
            Some(FromChild::Tap(queues, Some(_))) => {
                assert_eq!(queues.len(), 1);
                assert!(queues[0].vnet);
            }
            other => panic!("{other:?}"),
        }
        for order in [ToChild::Mapped, ToChild::Start, ToChild::Signal(15)] {
            here.order(order).unwrap();
            assert_eq!(there.obey().unwrap(), Some(order));
        }
        drop(here);
        assert_eq!(there.obey().unwrap(), None);
    }
}
