//! Bytes that tell where they belong: a stream in which each word depends on its place, so that a
//! lost, doubled, swapped or foreign byte is found where it happens.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use super::Guest;
use super::ns::{Ns, SOCKET_PATIENCE};

const CHUNK: usize = 128 * 1024;

/// The word at `index` of the stream `seed`: a multiplication and a shift, so that gigabytes are
/// cheap.
fn word(seed: u64, index: u64) -> u64 {
    let x = (index ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

/// Fills `buf` with what the stream has at `offset`, a multiple of 8.
fn fill(seed: u64, offset: u64, buf: &mut [u8]) {
    debug_assert_eq!(offset % 8, 0);
    let (words, rest) = buf.as_chunks_mut::<8>();
    let first = offset / 8;
    let count = words.len() as u64;
    for (index, bytes) in (first..).zip(words) {
        *bytes = word(seed, index).to_le_bytes();
    }
    let last = word(seed, first + count).to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Sends `len` bytes of the stream `seed`.
pub(crate) fn send(mut to: &TcpStream, seed: u64, len: u64) -> std::io::Result<()> {
    let mut buf = vec![0; CHUNK];
    let mut offset = 0;
    while offset < len {
        let n = (len - offset).min(CHUNK as u64) as usize;
        fill(seed, offset, &mut buf[..n]);
        to.write_all(&buf[..n])?;
        offset += n as u64;
    }
    Ok(())
}

/// Writes the stream into a file.
pub(crate) fn write_file(path: &std::path::Path, seed: u64, len: u64) {
    let mut buf = vec![0; len as usize];
    fill(seed, 0, &mut buf);
    std::fs::write(path, buf).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}

/// Expects the bytes `from..to` of the stream `seed`.
#[track_caller]
pub(crate) fn expect(mut socket: &TcpStream, seed: u64, from: u64, to: u64) {
    let mut buf = vec![0; 2 * CHUNK];
    let mut want = vec![0; 2 * CHUNK + 8];
    let mut offset = from;
    while offset < to {
        let room = (to - offset).min(buf.len() as u64) as usize;
        let n = match socket.read(&mut buf[..room]) {
            Ok(0) => panic!("the stream ends at {offset} of {to}"),
            Ok(n) => n,
            Err(e) => panic!("the stream breaks at {offset} of {to}: {e}"),
        };
        let skew = (offset % 8) as usize;
        fill(seed, offset - skew as u64, &mut want[..skew + n]);
        if buf[..n] != want[skew..skew + n] {
            let at = (0..n).find(|&i| buf[i] != want[skew + i]).unwrap_or(0);
            panic!("a wrong byte at {} of {to}", offset + at as u64);
        }
        offset += n as u64;
    }
}

/// Expects the end of the stream.
#[track_caller]
pub(crate) fn expect_end(mut socket: &TcpStream) {
    match socket.read(&mut [0; 64]) {
        Ok(0) => {}
        Ok(n) => panic!("{n} bytes after the end"),
        Err(e) => panic!("instead of the end: {e}"),
    }
}

/// Sends the stream, closes this direction.
pub(crate) fn send_all(to: &TcpStream, seed: u64, len: u64) {
    send(to, seed, len).unwrap_or_else(|e| panic!("send {len} bytes: {e}"));
    to.shutdown(Shutdown::Write).expect("shut down");
}

/// Expects the stream and its end.
#[track_caller]
pub(crate) fn expect_all(socket: &TcpStream, seed: u64, len: u64) {
    expect(socket, seed, 0, len);
    expect_end(socket);
}

/// Accepts a connection whose waits end.
#[track_caller]
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    let (socket, _) = listener.accept().unwrap_or_else(|e| panic!("accept: {e}"));
    socket.set_read_timeout(Some(SOCKET_PATIENCE)).expect("set a timeout");
    socket.set_write_timeout(Some(SOCKET_PATIENCE)).expect("set a timeout");
    socket
}

/// A connection from the guest to `ip` in `to`: (the guest's end, the other end).
#[track_caller]
pub(crate) fn pair(guest: &Guest, to: &Ns, ip: std::net::IpAddr) -> (TcpStream, TcpStream) {
    let listener = to.listen(ip);
    let at = listener.local_addr().expect("an address");
    let ours = guest.ns.connect(at).unwrap_or_else(|e| panic!("connect to {at}: {e}"));
    (ours, accept(&listener))
}
