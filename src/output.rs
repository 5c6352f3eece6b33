//! What is printed for people. A reader that has gone is no error.
//!
//! What is said on the way does not wait: a caller that gives us a pipe and never reads it must not keep us from
//! starting or ending. What does not fit is lost. Only what was asked for ([`print()`]) waits for its reader.

use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A pipe that can be written takes this much without waiting (`PIPE_BUF`, pipe(7)).
const PIECE: usize = 4096;

/// Prints what was asked for on stdout.
pub fn print(text: &str) {
    if !text.is_empty() {
        let mut out = io::stdout();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

/// Says something on stdout.
pub fn say(text: &str) {
    if !text.is_empty() {
        let _ = Unwaiting(io::stdout()).write_all(format!("{text}\n").as_bytes());
    }
}

/// Says something on stderr.
pub fn say_error(text: &str) {
    if !text.is_empty() {
        let _ = Unwaiting(io::stderr()).write_all(format!("{text}\n").as_bytes());
    }
}

/// Stderr for a log.
pub fn log() -> impl Write {
    Unwaiting(io::stderr())
}

/// A stream that is written to only while it takes something.
struct Unwaiting<W>(W);

impl<W: Write + AsFd> Write for Unwaiting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut fds, PollTimeout::ZERO)? == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let piece = &bytes[..bytes.len().min(PIECE)];
        let written = self.0.write(piece)?;
        self.0.flush()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    #[test]
    fn a_full_pipe_is_not_waited_for() {
        let (mut read, write) = io::pipe().unwrap();
        let size = fcntl(&write, FcntlArg::F_GETPIPE_SZ).unwrap() as usize;
        let text = vec![b'x'; size + 1];
        let mut out = Unwaiting(File::from(std::os::fd::OwnedFd::from(write)));
        assert_eq!(out.write_all(&text).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(out);
        let mut got = Vec::new();
        read.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), size);
    }

    #[test]
    fn a_reader_that_has_gone_is_an_error() {
        let (read, write) = io::pipe().unwrap();
        drop(read);
        let mut out = Unwaiting(File::from(std::os::fd::OwnedFd::from(write)));
        assert_eq!(out.write_all(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
