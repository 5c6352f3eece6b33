//! Ports of podman's containers, forwarded by the network command or by podman's own program.

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;

use super::engine::{Podman, free};
use super::harness::ns::Ns;
use super::harness::{Family, against_slirp, eventually, need};
use super::{listen_at, tcp_round, udp_at, udp_round};

const HOST: fn(u16) -> SocketAddr = |port| SocketAddr::new(Family::V4.host(), port);
const LOOPBACK: fn(u16) -> SocketAddr = |port| SocketAddr::new(Family::V4.loopback(), port);
const ANY: fn(u16) -> SocketAddr = |port| SocketAddr::new(Family::V4.any(), port);

/// Two ranges and a port of loopback.
const PUBLISH: &str =
    "-p 18000-18009:8000-8009 -p 19000-19002:9000-9002/udp -p 127.0.0.1:18100:8100";

#[track_caller]
fn expect_free(podman: &Podman) {
    let tcp: Vec<u16> = (18_000..18_010).chain([18_100]).collect();
    eventually("the ports are free again", || {
        free(&podman.bed.host, Family::V4.any(), &tcp, &[19_000, 19_001, 19_002])
    });
}

/// Who comes from elsewhere is seen as who he is, who comes from the host itself as the gateway.
#[track_caller]
fn expect_forwards(podman: &Podman, inside: &Ns) {
    let bed = &podman.bed;
    for port in [0, 9] {
        let listener = listen_at(inside, 8_000 + port);
        let (seen, is) = tcp_round(&listener, &bed.remote, HOST(18_000 + port));
        assert_eq!(seen, is);
        let (seen, _) = tcp_round(&listener, &bed.host, LOOPBACK(18_000 + port));
        assert_eq!(seen.ip(), Family::V4.gateway());
    }
    for port in [0, 2] {
        let socket = udp_at(inside, ANY(9_000 + port));
        let any = Family::V4.any();
        let (seen, is) = udp_round(&socket, &bed.remote, any, HOST(19_000 + port));
        assert_eq!((seen.ip(), seen.port()), (Family::V4.remote(), is.port()));
        // slirp4netns, told --disable-host-loopback by podman, keeps the answer from who came by himself.
        if against_slirp() {
            continue;
        }
        let (seen, _) = udp_round(&socket, &bed.host, any, LOOPBACK(19_000 + port));
        assert_eq!(seen.ip(), Family::V4.gateway());
    }
    let listener = listen_at(inside, 8_100);
    tcp_round(&listener, &bed.host, LOOPBACK(18_100));
    let error = bed.remote.connect(HOST(18_100)).expect_err("bound to loopback");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

#[test]
fn by_the_network_command() {
    need!("podman", "runc", "newuidmap", "busybox");
    let podman = Podman::new("");
    let options = format!("--network=slirp4netns:port_handler=slirp4netns {PUBLISH}");
    let inside = podman.start("web", &options);
    let helper = podman.helper();
    assert!(helper.line.contains(" --api-socket "), "{}", helper.line);
    helper.expect_walls();
    expect_forwards(&podman, &inside);
    // A port that nobody listens at is refused at once; slirp4netns ends it like one that is through.
    // The reset may come before the connect returns.
    let refused = podman.bed.remote.connect(HOST(18_005));
    match refused.and_then(|mut refused| refused.read(&mut [0; 1])) {
        Ok(0) => assert!(against_slirp(), "an end instead of a reset"),
        Ok(_) => panic!("bytes from nobody"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    drop(inside);

    podman.cmd("restart --time 0 web").ok();
    expect_forwards(&podman, &podman.inside("web"));
    podman.cmd("stop --time 0 web").ok();
    podman.expect_nothing();
    expect_free(&podman);
    podman.cmd("start web").ok();
    expect_forwards(&podman, &podman.inside("web"));

    // What another container has is refused, and what stood remains.
    let second = podman
        .cmd("run --detach --name second --network=slirp4netns:port_handler=slirp4netns")
        .args("-p 18020:8000 -p 18003:8000 box sleep 3600")
        .run();
    assert!(!second.success() && second.stderr.contains("add_hostfwd"), "{second:?}");
    podman.cmd("rm --force --time 0 second").ok();
    let second =
        podman.start("third", "--network=slirp4netns:port_handler=slirp4netns -p 18020:8000");
    let (seen, is) = tcp_round(&listen_at(&second, 8_000), &podman.bed.remote, HOST(18_020));
    assert_eq!(seen, is);
    expect_forwards(&podman, &podman.inside("web"));
    podman.remove_all();
    expect_free(&podman);
}

/// podman's default: rootlessport accepts, and connects inside of the container's namespace.
#[test]
fn by_rootlessport() {
    need!("podman", "runc", "newuidmap", "busybox");
    let podman = Podman::new("");
    let inside = podman.start("web", &format!("--network=slirp4netns {PUBLISH}"));
    let helper = podman.helper();
    assert!(!helper.line.contains("--api-socket"), "{}", helper.line);
    for port in [0, 9] {
        let listener = listen_at(&inside, 8_000 + port);
        for (from, to) in [(&podman.bed.remote, HOST), (&podman.bed.host, LOOPBACK)] {
            let (seen, _) = tcp_round(&listener, from, to(18_000 + port));
            assert_eq!(seen.ip().to_string(), "10.0.2.100");
        }
    }
    let socket = udp_at(&inside, ANY(9_002));
    udp_round(&socket, &podman.bed.remote, Family::V4.any(), HOST(19_002));
    drop((inside, socket));
    podman.cmd("restart --time 0 web").ok();
    let listener = listen_at(&podman.inside("web"), 8_001);
    tcp_round(&listener, &podman.bed.remote, HOST(18_001));
    podman.remove_all();
    expect_free(&podman);
}

/// With a user namespace of its own the container exists before its network: the command is given a
/// process instead of a path.
#[test]
fn of_a_container_with_its_own_users() {
    need!("podman", "runc", "newuidmap", "busybox");
    let podman = Podman::new("");
    for users in ["--userns=keep-id", "--uidmap=0:5:5000"] {
        let publish = "--network=slirp4netns:port_handler=slirp4netns -p 18000:8000";
        let inside = podman.start("web", &format!("{users} {publish}"));
        let helper = podman.helper();
        assert!(!helper.line.contains("--netns-type"), "{}", helper.line);
        helper.expect_walls();
        let (seen, is) = tcp_round(&listen_at(&inside, 8_000), &podman.bed.remote, HOST(18_000));
        assert_eq!(seen, is);
        podman.remove_all();
    }
}
