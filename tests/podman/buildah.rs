//! buildah, and podman's `build`, which is the same: it finds the network command by PATH, and kills it.

use std::io::{Read, Write};
use std::net::TcpListener;

use super::engine::Podman;
use super::harness::cmd::Cmd;
use super::harness::{Family, eventually, need, stream};

/// Answers one request, and returns the network command that served its sender.
fn answer(listener: &TcpListener, podman: &Podman) -> String {
    let mut client = stream::accept(listener);
    let line = podman.helper().line;
    let _ = client.read(&mut [0; 4000]).expect("a request");
    client.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nfar away\n").expect("an answer");
    line
}

#[test]
fn builds() {
    need!("podman", "buildah", "runc", "newuidmap", "busybox");
    let podman = Podman::new("");
    let listener = podman.bed.remote.listen(Family::V4.remote());
    let at = listener.local_addr().expect("an address");
    let fetch = format!("cat /etc/resolv.conf; ip addr show tap0; wget -q -O - http://{at}/");
    let dir = podman.bed.dir.make("context");
    std::fs::write(dir.join("Dockerfile"), format!("FROM box\nRUN {fetch}\n")).expect("write");
    let from = podman.as_user(Cmd::new("buildah from box")).ok();
    let run = Cmd::new("buildah run --network=private").arg(from.trim()).args("sh -c").arg(&fetch);
    for cmd in [
        run,
        Cmd::new("buildah bud --no-cache").arg(&dir),
        Cmd::new("podman build --no-cache").arg(&dir),
    ] {
        let proc = podman.as_user(cmd).start();
        let line = answer(&listener, &podman);
        assert!(line.contains(" --mtu 65520 -r 3 -c "), "{line}");
        let done = proc.wait(super::harness::cmd::PATIENCE);
        assert!(done.success(), "{done:?}");
        for word in ["nameserver 10.0.2.3\n", "mtu 65520", "10.0.2.100/24", "far away\n"] {
            assert!(done.stdout.contains(word), "`{word}` is missing: {done:?}");
        }
        eventually("the network command ends", || podman.helpers().is_empty());
    }
}
