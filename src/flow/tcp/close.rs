//! The ends of a connection.
//!
//! | what happens                          | guest gets            | host gets                     |
//! |---------------------------------------|-----------------------|-------------------------------|
//! | guest's FIN, data before it taken     | ACK of it             | `shutdown(SHUT_WR)`           |
//! | host's EOF                            | FIN, after the data   | nothing                       |
//! | both, in either order                 | as above              | `close`                       |
//! | guest's RST                           | nothing               | RST (`SO_LINGER` 0, `close`)  |
//! | guest's RST, its FIN acknowledged     | nothing               | what is left, FIN, `close`    |
//! | host's RST, or its socket fails       | RST                   | `close`                       |
//! | connect refused                       | RST                   | `close`                       |
//! | connect: unreachable, prohibited      | ICMP unreachable      | `close`                       |
//! | connect timed out                     | nothing: its own timer| `close`                       |
//! | guest refuses our SYN                 | nothing               | RST                           |
//! | guest does not answer our SYN         | nothing               | RST                           |
//! | guest does not answer                 | RST                   | RST; after its FIN: `close`   |
//!
//! There is no TIME_WAIT here: the side that closes first keeps it in its own kernel. A FIN of the guest
//! that comes again after both have ended finds no flow and gets a RST, which ends a socket that nobody
//! holds any more.

use super::super::Errno;
use super::super::icmp::Unreachable;
use super::End;

/// What the guest is told when the host socket could not connect (connect(2)).
pub(super) fn after_failed_connect(errno: Errno) -> End {
    match errno.0 {
        libc::ECONNREFUSED | libc::ECONNRESET => End::ResetGuest,
        libc::EHOSTUNREACH | libc::EHOSTDOWN => End::Unreachable(Unreachable::Host),
        libc::EACCES | libc::EPERM => End::Unreachable(Unreachable::Prohibited),
        // Resources of ours: another try may fare better, and a RST is what a full server sends.
        libc::EADDRNOTAVAIL => End::ResetGuest,
        _ if is_shortage(errno) => End::ResetGuest,
        libc::ETIMEDOUT => End::Silent,
        _ => End::Unreachable(Unreachable::Net),
    }
}

/// Whether it is ourselves who lack something.
pub(super) fn is_shortage(errno: Errno) -> bool {
    matches!(errno.0, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_unreachable_and_timed_out_are_told_apart() {
        assert_eq!(after_failed_connect(Errno(libc::ECONNREFUSED)), End::ResetGuest);
        assert_eq!(
            after_failed_connect(Errno(libc::EHOSTUNREACH)),
            End::Unreachable(Unreachable::Host)
        );
        assert_eq!(
            after_failed_connect(Errno(libc::ENETUNREACH)),
            End::Unreachable(Unreachable::Net)
        );
        assert_eq!(after_failed_connect(Errno(libc::ETIMEDOUT)), End::Silent);
    }
}
