//! A TAP that is opened by somebody else and handed over.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Opens a TAP of the network namespace the thread is in, as a program does that hands it over.
pub(crate) fn open_tap(name: &str) -> OwnedFd {
    let file =
        File::options().read(true).write(true).open("/dev/net/tun").expect("open the device");
    // SAFETY: `ifreq` is plain data: all zeros is one of its values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    // SAFETY: the descriptor is open; the request reads and writes one `ifreq`, which lives across the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(result, 0, "make {name}: {}", io::Error::last_os_error());
    file.into()
}
