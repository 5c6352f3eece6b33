//! Rootless podman's containers with a network of their own.

use std::io::{Read, Write};
use std::net::SocketAddr;

use super::engine::{Podman, wait_v6};
use super::harness::{Family, eventually, need};
use super::{body, name_server, serve, sha256, tcp_round, udp_round};

#[test]
fn a_container_fetches_a_file_by_name() {
    need!("podman", "runc", "newuidmap", "busybox", "dnsmasq", "tar");
    let podman = Podman::new("");
    let bed = &podman.bed;
    let at = serve(&bed.remote, body());
    let _dns = name_server(&bed.remote);
    let script = format!(
        "cat /etc/resolv.conf; nslookup www.test 10.0.2.3; \
         wget -q -O - http://www.test:{}/file | sha256sum",
        at.port()
    );
    let done = podman.container("", &script);
    assert!(done.success(), "{done:?}");
    assert!(done.stdout.contains("nameserver 10.0.2.3"), "{done:?}");
    assert!(done.stdout.contains(&Family::V4.remote().to_string()), "{done:?}");
    assert!(done.stdout.contains(&sha256(&bed.dir, &body())), "{done:?}");
    eventually("the network command ends with the container", || podman.helpers().is_empty());
}

#[test]
fn options_of_podman() {
    need!("podman", "runc", "newuidmap", "busybox");
    let podman = Podman::new("");
    let look = "ip addr show tap0; ip route";
    let done = podman.container(":mtu=1500,cidr=10.9.8.0/24", look);
    assert!(done.success(), "{done:?}");
    for word in ["mtu 1500", "10.9.8.100/24", "default via 10.9.8.2 dev tap0"] {
        assert!(done.stdout.contains(word), "`{word}` is missing: {done:?}");
    }
    let done = podman.container("", look);
    for word in ["mtu 65520", "10.0.2.100/24", "default via 10.0.2.2 dev tap0"] {
        assert!(done.stdout.contains(word), "`{word}` is missing: {done:?}");
    }
}

/// The host's loopback is podman's to allow.
#[test]
fn host_loopback_is_podmans_to_allow() {
    need!("podman", "runc", "newuidmap", "busybox");
    let podman = Podman::new("");
    let listener = podman.bed.host.listen(Family::V4.loopback());
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let _ = client.read(&mut [0; 4000]);
            let _ = client.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nlocal");
        }
    });
    let fetch = format!("wget -q -O - http://10.0.2.2:{port}/ || echo no");
    let done = podman.container("", &fetch);
    assert_eq!(done.stdout, "no\n", "{done:?}");
    let done = podman.container(":allow_host_loopback=true", &fetch);
    assert_eq!(done.stdout, "local", "{done:?}");
}

/// Two containers of one user at once, each with its own network command.
#[test]
fn two_containers_at_once() {
    need!("podman", "runc", "newuidmap", "busybox");
    let podman = Podman::new("");
    let at = serve(&podman.bed.remote, body());
    let sum = sha256(&podman.bed.dir, &body());
    let script = format!("for i in 1 2 3; do wget -q -O - http://{at}/ | sha256sum; done");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let done = podman.container("", &script);
                assert_eq!(done.stdout.matches(&sum).count(), 3, "{done:?}");
            });
        }
    });
    eventually("the network commands end", || podman.helpers().is_empty());
}

/// Every option for the network command, from containers.conf and the command line.
#[test]
fn every_option() {
    need!("podman", "runc", "newuidmap", "busybox");
    let podman = Podman::new("\"mtu=1400\", \"cidr=10.9.0.0/24\"");
    let bed = &podman.bed;
    bed.host.ip("addr add 198.51.100.7/24 dev host0\naddr add 2001:db8:1::7/64 dev host0 nodad\n");
    let inside = podman.start(
        "addresses",
        "--network=slirp4netns:cidr=10.9.8.0/24,outbound_addr=198.51.100.7,\
         outbound_addr6=2001:db8:1::7,allow_host_loopback=true,enable_ipv6=true",
    );
    let shown = podman.cmd("exec addresses sh -c").arg("ip addr; cat /etc/resolv.conf").ok();
    for word in ["mtu 1400", "10.9.8.100/24", "nameserver 10.9.8.3\n"] {
        assert!(shown.contains(word), "`{word}` is missing: {shown}");
    }
    podman.helper().expect_walls();
    wait_v6(&inside);
    for (to, from) in
        [(Family::V4.remote(), "198.51.100.7"), (Family::V6.remote(), "2001:db8:1::7")]
    {
        let listener = bed.remote.listen(to);
        let at = listener.local_addr().expect("an address");
        let (seen, _) = tcp_round(&listener, &inside, at);
        assert_eq!(seen.ip().to_string(), from);
        let socket = bed.remote.udp(to);
        let at = socket.local_addr().expect("an address");
        let any = if to.is_ipv4() { Family::V4.any() } else { Family::V6.any() };
        let (seen, _) = udp_round(&socket, &inside, any, at);
        assert_eq!(seen.ip().to_string(), from);
    }
    let listener = bed.host.listen(Family::V4.loopback());
    let port = listener.local_addr().expect("an address").port();
    tcp_round(&listener, &inside, SocketAddr::new("10.9.8.2".parse().expect("one"), port));
    podman.remove_all();

    let names = "--network=slirp4netns:outbound_addr=host0,outbound_addr6=host0";
    let inside = podman.start("interfaces", names);
    wait_v6(&inside);
    for family in Family::BOTH {
        let listener = bed.remote.listen(family.remote());
        tcp_round(&listener, &inside, listener.local_addr().expect("an address"));
    }
    podman.remove_all();

    let inside = podman.start("four", "--network=slirp4netns:enable_ipv6=false");
    let line = podman.helper().line;
    assert!(!line.contains("--enable-ipv6"), "{line}");
    let listener = bed.remote.listen(Family::V6.remote());
    let error = inside.connect(listener.local_addr().expect("an address")).expect_err("no IPv6");
    assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable, "{error}");
    podman.remove_all();
}

/// podman counts a container's traffic at an interface that it knows by name.
#[test]
fn statistics() {
    need!("podman", "runc", "newuidmap", "busybox");
    let podman = Podman::new("");
    let at = serve(&podman.bed.remote, body());
    podman.start("stats", "--network=slirp4netns");
    podman.cmd("exec stats sh -c").arg(format!("wget -q -O /dev/null http://{at}/")).ok();
    // podman 4.3.1 calls input what the container's interface has sent.
    let shown = podman.cmd("stats --no-stream --format {{.NetInput}}/{{.NetOutput}}").ok();
    let bytes = shown.trim().split('/').filter_map(|n| n.parse::<u64>().ok()).max();
    assert!(bytes.is_some_and(|n| n > body().len() as u64), "{shown}");
    podman.remove_all();
}
