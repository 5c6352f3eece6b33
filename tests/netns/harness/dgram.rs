//! Datagrams, one at a time.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

/// Where a socket is.
pub(crate) fn addr(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("an address")
}

/// The next one, whole, and where it is from.
#[track_caller]
pub(crate) fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buf = vec![0; 70_000];
    let (len, from) = socket.recv_from(&mut buf).unwrap_or_else(|e| panic!("receive: {e}"));
    buf.truncate(len);
    (buf, from)
}

/// What one call brings, and what the kernel says about it.
#[track_caller]
pub(crate) fn receive_told(socket: &UdpSocket) -> (Vec<u8>, Vec<ControlMessageOwned>) {
    let mut space = nix::cmsg_space!([i32; 16]);
    let mut buf = vec![0; 70_000];
    let mut parts = [IoSliceMut::new(&mut buf)];
    let flags = MsgFlags::empty();
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)
            .unwrap_or_else(|e| panic!("receive: {e}"));
    let told = message.cmsgs().expect("control messages").collect();
    let len = message.bytes;
    buf.truncate(len);
    (buf, told)
}

/// Sends one, which is taken as a whole.
#[track_caller]
pub(crate) fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
    let len = bytes.len();
    let sent = socket.send_to(bytes, to).unwrap_or_else(|e| panic!("send {len} to {to}: {e}"));
    assert_eq!(sent, len);
}
