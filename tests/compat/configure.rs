//! What `--configure` sets up, and what is left alone without it.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

use nix::sched::CloneFlags;

use crate::harness::cmd::PATIENCE;
use crate::harness::sys::Step;
use crate::harness::{Bed, Family, USER, pipe};
use crate::program::{Program, both, exit_pipe, guest};
use crate::tap::open_tap;

both! {
    addresses_and_routes,
    nothing_without_it,
    mac_address,
    mtu,
    ipv6_by_itself,
    another_name,
    kind_of_the_tap,
    a_tap_that_is_there,
    a_namespace_by_path,
    a_namespace_by_path_and_its_owner,
    a_tap_by_descriptor,
}

/// The flags of an interface between their brackets.
fn flags(line: &str) -> &str {
    line.split(['<', '>']).nth(1).unwrap_or("none")
}

fn addresses_and_routes(p: Program) {
    let net = p.up("-c");
    let lo = net.says("ip -o link show dev lo");
    p.shows("flags of lo", flags(&lo), "LOOPBACK,UP,LOWER_UP");
    let tap = net.says("ip -o link show dev tap0");
    p.shows("flags of tap0", flags(&tap), "BROADCAST,UP,LOWER_UP");
    let addr = net.says("ip -o -4 addr show dev tap0");
    assert!(addr.contains("inet 10.0.2.100/24 brd 10.0.2.255 scope global tap0"), "{addr}");
    let routes = net.says("ip route show");
    let words = |l: &str| l.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    let routes: Vec<String> = routes.lines().map(words).collect();
    assert_eq!(
        routes,
        [
            "default via 10.0.2.2 dev tap0",
            "10.0.2.0/24 dev tap0 proto kernel scope link src 10.0.2.100"
        ]
    );
}

fn nothing_without_it(p: Program) {
    let net = p.up("-6 -m 65520");
    let shown = net.says("ip -o link show");
    let of = |name: &str| {
        let line = shown.lines().find(|l| l.contains(name)).expect("an interface");
        flags(line).to_owned()
    };
    assert_eq!(of("lo:"), "LOOPBACK");
    assert_eq!(of("tap0:"), "BROADCAST,MULTICAST");
    assert!(shown.contains("tap0: <BROADCAST,MULTICAST> mtu 1500"), "{shown}");
    assert_eq!(net.says("ip -o addr show"), "");
    assert_eq!(net.says("ip route show table all"), "");
}

fn mac_address(p: Program) {
    let net = p.up("-c --macaddress=52:54:00:12:34:56");
    let shown = net.says("ip -o link show dev tap0");
    assert!(shown.contains("link/ether 52:54:00:12:34:56"), "{shown}");
    let server = net.bed.remote.listen(Family::V4.remote());
    net.inside().connect(server.local_addr().expect("an address")).expect("connect");
}

fn mtu(p: Program) {
    for (options, mtu) in [("-c", 1500), ("-c -m 68", 68), ("-c --mtu=65520", 65520)] {
        let net = p.up(options);
        let shown = net.says("ip -o link show dev tap0");
        assert!(shown.contains(&format!(" mtu {mtu} ")), "{options}: {shown}");
    }
}

/// The guest's kernel makes its address from the advertisement; nothing is set.
fn ipv6_by_itself(p: Program) {
    let net = p.up("-c -6");
    net.guest.wait_v6();
    let addr = net.says("ip -o -6 addr show dev tap0 scope global");
    let address = addr.split_ascii_whitespace().find(|w| w.ends_with("/64")).unwrap_or("none");
    assert!(address.starts_with("fd00::") && address.contains("ff:fe"), "{addr}");
    assert!(addr.contains(" dynamic"), "{addr}");
    let route = net.says("ip -6 route show default");
    assert!(route.starts_with("default via fe80::2 dev tap0 proto ra metric 1024"), "{route}");
    // Without it there is none.
    let net = p.up("-c");
    let server = net.bed.remote.listen(Family::V4.remote());
    net.inside().connect(server.local_addr().expect("an address")).expect("connect");
    assert_eq!(net.says("ip -o -6 addr show dev tap0 scope global"), "");
    assert_eq!(net.says("ip -6 route show default"), "");
}

fn another_name(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    let operands = format!("{} eth0", guest.holder.pid());
    let net = p.between(bed, guest, USER, "-c", &operands);
    let shown = net.says("ip -o -4 addr show dev eth0");
    assert!(shown.contains("inet 10.0.2.100/24"), "{shown}");
}

/// What the kernel tells of it. Queues come with processors.
fn kind_of_the_tap(p: Program) {
    let net = p.up("-c");
    let shown = net.says("ip -d -o link show dev tap0");
    let on = |name: &str| shown.contains(&format!(" {name} on"));
    assert!(shown.contains(" tun type tap "), "{shown}");
    let seen = format!("pi {}, vnet_hdr {}, persist {}", on("pi"), on("vnet_hdr"), on("persist"));
    p.shows("kind of the TAP", seen, "pi false, vnet_hdr false, persist false");
}

/// RootlessKit makes the interface itself, with one queue and persistent; it stays.
fn a_tap_that_is_there(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    guest.ns.ip(
        "tuntap add name tap0 mode tap\nlink set tap0 address 02:00:00:00:00:07\nlink set tap0 up\n\
         addr add 10.0.2.100/24 dev tap0\nroute add default via 10.0.2.2 dev tap0\n",
    );
    let operands = format!("{} tap0", guest.holder.pid());
    let net = p.between(bed, guest, USER, "-m 65520", &operands);
    let server = net.bed.remote.listen(Family::V4.remote());
    net.inside().connect(server.local_addr().expect("an address")).expect("connect");
    let shown = net.says("ip -o link show dev tap0");
    assert!(
        shown.contains("link/ether 02:00:00:00:00:07") && shown.contains("mtu 1500"),
        "{shown}"
    );
    let (done, _bed, guest) = net.hang_up();
    assert_eq!(done.code(), Some(0), "{done:?}");
    guest.ns.cmd("ip link show dev tap0").ok();
}

/// Inside the user namespace that owns it, as podman's rootless-netns calls it.
fn a_namespace_by_path(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    let pid = guest.holder.pid();
    let (mut ready, ready_fd) = pipe();
    let line = format!("-c -r {} --netns-type=path /proc/{pid}/ns/net tap0", ready_fd.as_raw_fd());
    let user = File::open(format!("/proc/{pid}/ns/user")).expect("the user namespace");
    let cmd = p.cmd(&bed.dir).args(&line).keep(&ready_fd);
    let join = Step::Join(user.as_raw_fd(), CloneFlags::CLONE_NEWUSER);
    let mut proc = bed.host.enter_as(USER, cmd).step(join).start();
    drop(ready_fd);
    ready.expect_byte(&mut proc);
    let shown = guest.ns.cmd("ip -o -4 addr show dev tap0").ok();
    assert!(shown.contains("inet 10.0.2.100/24"), "{shown}");
}

/// From outside, as RootlessKit calls it for a detached namespace.
fn a_namespace_by_path_and_its_owner(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    let pid = guest.holder.pid();
    let operands =
        format!("--userns-path=/proc/{pid}/ns/user --netns-type=path /proc/{pid}/ns/net tap0");
    let net = p.between(bed, guest, USER, "-c", &operands);
    let server = net.bed.remote.listen(Family::V4.remote());
    net.inside().connect(server.local_addr().expect("an address")).expect("connect");
}

/// A TAP that somebody else opened: `--configure` does not apply to it, nor do the namespaces.
fn a_tap_by_descriptor(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    let tap = guest.ns.within(|| open_tap("tap0"));
    guest.ns.ip("link set lo up\nlink set tap0 up\naddr add 10.0.2.100/24 dev tap0\n\
         route add default via 10.0.2.2 dev tap0\n");
    let (ready, ready_fd) = exit_pipe();
    let line = format!("-r {} --netns-type=tapfd {}", ready_fd.as_raw_fd(), tap.as_raw_fd());
    let cmd = p.cmd(&bed.dir).args(&line).keep(&ready_fd).keep(&tap);
    let proc = bed.host.enter_as(USER, cmd).start();
    drop(ready_fd);
    // A program that does not know this form ends at once.
    let mut said = Vec::new();
    File::from(ready).read_to_end(&mut said).expect("read");
    let seen = if said == b"1" {
        let server = bed.remote.listen(Family::V4.remote());
        guest.ns.connect(server.local_addr().expect("an address")).expect("connect");
        "it forwards".to_owned()
    } else {
        format!("it ends with {:?}", proc.wait(PATIENCE).code())
    };
    p.shows("a TAP by its descriptor", seen, "it forwards");
}
