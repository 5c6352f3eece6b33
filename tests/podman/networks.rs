//! podman's pods and its networks of bridges.

use std::net::SocketAddr;

use super::engine::{Podman, free};
use super::harness::{Family, eventually, need};
use super::{body, listen_at, name_server, serve, sha256, tcp_round, udp_at, udp_round};

/// The containers of a pod have one network, and it lives as long as the pod.
#[test]
fn a_pod() {
    need!("podman", "runc", "newuidmap", "busybox");
    let podman = Podman::new("");
    podman
        .cmd("pod create --name pod --network=slirp4netns:port_handler=slirp4netns -p 18000:8000")
        .ok();
    let first = podman.start("first", "--pod=pod");
    let second = podman.start("second", "--pod=pod");
    podman.helper().expect_walls();
    let to = SocketAddr::new(Family::V4.host(), 18_000);
    for inside in [&first, &second] {
        let (seen, is) = tcp_round(&listen_at(inside, 8_000), &podman.bed.remote, to);
        assert_eq!(seen, is);
    }
    drop(first);
    podman.cmd("rm --force --time 0 first").ok();
    tcp_round(&listen_at(&second, 8_000), &podman.bed.remote, to);
    drop(second);
    podman.cmd("pod restart pod").ok();
    tcp_round(&listen_at(&podman.inside("second"), 8_000), &podman.bed.remote, to);
    podman.cmd("pod rm --force --time 0 pod").ok();
    podman.expect_nothing();
    eventually("the port is free", || free(&podman.bed.host, Family::V4.any(), &[18_000], &[]));
}

/// All containers at bridges share one network command, which ends with the last.
#[test]
fn a_bridge() {
    need!(
        "podman",
        "runc",
        "newuidmap",
        "busybox",
        "dnsmasq",
        "iptables",
        // In no PATH: podman knows where they are.
        "/usr/lib/podman/netavark",
        "/usr/lib/podman/aardvark-dns"
    );
    let podman = Podman::new("");
    let bed = &podman.bed;
    let at = serve(&bed.remote, body());
    let _dns = name_server(&bed.remote);
    podman.cmd("network create --subnet=10.77.0.0/24 mine").ok();
    let first = podman.start("first", "--network=mine -p 18000:8000 -p 18000:8000/udp");
    let helper = podman.helper();
    assert!(helper.line.contains("/rootless-netns-"), "{}", helper.line);
    assert!(!helper.line.contains(" -e "), "{}", helper.line);
    helper.expect_walls();
    let second = podman.start("second", "--network=mine -p 18001:8000");
    assert_eq!(podman.helper().pid, helper.pid);
    // By the bridge's own resolver, the network command's and the host's.
    let script =
        format!("nslookup second; wget -q -O - http://www.test:{}/ | sha256sum", at.port());
    let shown = podman.cmd("exec first sh -c").arg(&script).ok();
    for word in ["10.77.0.3", &sha256(&bed.dir, &body())] {
        assert!(shown.contains(word), "`{word}` is missing: {shown}");
    }
    for (inside, port) in [(&first, 18_000), (&second, 18_001)] {
        let to = SocketAddr::new(Family::V4.host(), port);
        tcp_round(&listen_at(inside, 8_000), &bed.remote, to);
    }
    let socket = udp_at(&first, SocketAddr::new(Family::V4.any(), 8_000));
    let to = SocketAddr::new(Family::V4.host(), 18_000);
    udp_round(&socket, &bed.remote, Family::V4.any(), to);
    drop((first, socket));
    podman.cmd("rm --force --time 0 first").ok();
    assert_eq!(podman.helper().pid, helper.pid);
    let listener = bed.remote.listen(Family::V4.remote());
    let (seen, _) = tcp_round(&listener, &second, listener.local_addr().expect("an address"));
    assert_eq!(seen.ip(), Family::V4.host());
    drop(second);
    podman.cmd("restart --time 0 second").ok();
    podman.remove_all();
    // Each of podman's own programs as well.
    eventually("the bridge's resolver ends", || {
        let left = super::engine::processes(bed);
        !left.into_iter().any(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.starts_with("aardvark") || name.starts_with("rootlessport")
        })
    });
}
