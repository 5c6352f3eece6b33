//! `--target-type=bess`: whole frames over a socket, for user-mode Linux.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::harness::cmd::{PATIENCE, Proc};
use crate::harness::{Bed, Dir, USER, pipe};
use crate::program::{Program, both, exit_pipe};

both! {
    frames_over_a_socket,
    it_says_that_it_waits,
}

/// A program that waits for a connection at `bess` in the folder.
fn waiting(p: Program, bed: &Bed, options: &str) -> Proc {
    let path = bed.dir.path("bess");
    let line = format!("{options} --target-type=bess {}", path.display());
    let mut proc = bed.host.enter_as(USER, p.cmd(&bed.dir).args(&line)).start();
    proc.wait_for(&format!("Waiting for connection to {}", path.display()));
    proc
}

fn connect(dir: &Dir) -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    socket.connect(&SockAddr::unix(dir.path("bess")).expect("a path")).expect("connect");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
    socket
}

const OURS: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// "Who has 10.0.2.2? Tell 10.0.2.100."
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(OURS);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(OURS);
    frame.extend([10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    frame
}

/// One packet is one frame, with nothing before it.
fn frames_over_a_socket(p: Program) {
    let bed = Bed::new();
    let _proc = waiting(p, &bed, "");
    let mut socket = connect(&bed.dir);
    socket.write_all(&arp_request()).expect("send");
    let mut buf = [0; 2000];
    // Other frames may come first.
    let answer = loop {
        let n = socket.read(&mut buf).expect("an answer");
        assert!(n > 0, "the end");
        if n >= 42 && buf[12..14] == [0x08, 0x06] && buf[20..22] == [0, 2] {
            break &buf[..n];
        }
    };
    let gateway = [0x52, 0x55, 10, 0, 2, 2];
    assert_eq!(&answer[..6], &OURS);
    assert_eq!(&answer[6..12], &gateway);
    assert_eq!(&answer[22..32], &[0x52, 0x55, 10, 0, 2, 2, 10, 0, 2, 2]);
}

/// On stderr, and of being experimental on stdout; ready comes once somebody is there.
fn it_says_that_it_waits(p: Program) {
    let bed = Bed::new();
    let ((mut ready, ready_fd), (exit_fd, exit)) = (pipe(), exit_pipe());
    let path = bed.dir.path("bess");
    let line = format!(
        "-r {} -e {} --target-type=bess {}",
        ready_fd.as_raw_fd(),
        exit_fd.as_raw_fd(),
        path.display()
    );
    let cmd = p.cmd(&bed.dir).args(&line).keep(&ready_fd).keep(&exit_fd);
    let mut proc = bed.host.enter_as(USER, cmd).start();
    drop((ready_fd, exit_fd));
    proc.wait_for(&format!("Waiting for connection to {}", path.display()));
    let _socket = connect(&bed.dir);
    ready.expect_byte(&mut proc);
    drop(exit);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert!(done.stdout.contains("WARNING: BESS mode is experimental"), "{done:?}");
}
