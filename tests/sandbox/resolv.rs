//! The one file that is read from inside: `/etc/resolv.conf`, as hosts have it.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use socket2::Type;

use crate::harness::cmd::{Cmd, Proc};
use crate::harness::ns::{Ns, mount};
use crate::harness::{Bed, DNS4, Dir, FAR4, Guest, REMOTE4, With, eventually, need};

/// A query for the address of `a.test`.
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x04test\0\0\x01\0\x01";

/// A resolver that only listens.
fn resolver(ns: &Ns, ip: IpAddr) -> UdpSocket {
    let socket = ns.socket(ip, Type::DGRAM, None);
    socket.bind(&SocketAddr::new(ip, 53).into()).expect("bind port 53");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
    socket.into()
}

/// Waits until a question of the guest gets to this resolver.
#[track_caller]
fn asked(guest: &Guest, resolver: &UdpSocket) {
    let socket = guest.ns.udp("0.0.0.0".parse().expect("an address"));
    eventually("the resolver is asked", || {
        socket.send_to(QUERY, SocketAddr::new(DNS4, 53)).expect("send");
        resolver.recv(&mut [0; 512]).is_ok()
    });
}

fn nameserver(ip: IpAddr) -> String {
    format!("nameserver {ip}\n")
}

/// A host with an `/etc` and a `/run` of its own, prepared by `prepare`, which gets the first one's place, and a folder
/// elsewhere. First `REMOTE4` is the resolver; `change`, a script run in the host with `$DIR` for that folder, makes it `FAR4`.
fn style(prepare: fn(&Path, &Dir), change: &str) -> (Bed, Proc) {
    let bed = Bed::with(|dir| {
        let etc = dir.path("etc");
        let copied = Cmd::new("cp -a /etc").arg(&etc).run();
        assert!(copied.success(), "{copied:?}");
        let _ = fs::remove_file(etc.join("resolv.conf"));
        mount::tmpfs(Path::new("/run"));
        prepare(&etc, dir);
        mount::bind(&etc, Path::new("/etc"));
    });
    let (first, second) = (resolver(&bed.remote, REMOTE4), resolver(&bed.far, FAR4));
    let guest = bed.guest();
    let proc = bed.attach(&guest, &With::defaults());
    asked(&guest, &first);
    let script = format!("set -e; DIR={}; umask 022\n{change}", bed.dir.path("").display());
    bed.host.sh(&script).ok();
    asked(&guest, &second);
    (bed, proc)
}

fn sees(proc: &Proc) -> String {
    let mut names: Vec<_> = fs::read_dir(format!("/proc/{}/root", proc.pid()))
        .expect("its root")
        .map(|entry| entry.expect("an entry").file_name().display().to_string())
        .collect();
    names.sort();
    names.join(" ")
}

#[test]
fn a_file_that_is_written_anew() {
    need!();
    let prepare = |etc: &Path, _: &Dir| {
        fs::write(etc.join("resolv.conf"), nameserver(REMOTE4)).expect("write");
    };
    let (_bed, proc) = style(prepare, "echo nameserver 203.0.113.2 >/etc/resolv.conf");
    assert_eq!(sees(&proc), "etc run");
}

/// As network managers do it.
#[test]
fn a_file_that_is_replaced() {
    need!();
    let prepare = |etc: &Path, _: &Dir| {
        fs::write(etc.join("resolv.conf"), nameserver(REMOTE4)).expect("write");
    };
    style(prepare, "echo nameserver 203.0.113.2 >/etc/new; mv /etc/new /etc/resolv.conf");
}

/// As systemd-resolved has it.
#[test]
fn a_link_to_run() {
    need!();
    let prepare = |etc: &Path, _: &Dir| {
        fs::create_dir_all("/run/systemd/resolve").expect("a folder");
        let file = "/run/systemd/resolve/stub-resolv.conf";
        fs::write(file, nameserver(REMOTE4)).expect("write");
        symlink("../run/systemd/resolve/stub-resolv.conf", etc.join("resolv.conf"))
            .expect("symlink");
    };
    let change = "cd /run/systemd/resolve
        echo nameserver 203.0.113.2 >.new; mv .new stub-resolv.conf";
    let (_bed, proc) = style(prepare, change);
    assert_eq!(sees(&proc), "etc run");
}

/// A file gives way to a link, as when systemd-resolved is installed.
#[test]
fn a_file_that_becomes_a_link() {
    need!();
    let prepare = |etc: &Path, _: &Dir| {
        fs::write(etc.join("resolv.conf"), nameserver(REMOTE4)).expect("write");
    };
    let change =
        "mkdir -p /run/resolvconf; echo nameserver 203.0.113.2 >/run/resolvconf/resolv.conf
        ln -sf /run/resolvconf/resolv.conf /etc/resolv.conf";
    style(prepare, change);
}

/// Elsewhere, by two links, one of them to a folder: the way is there inside, and the file, and nothing else.
#[test]
fn links_to_somewhere_else() {
    need!();
    let prepare = |etc: &Path, dir: &Dir| {
        dir.make("folder");
        dir.write("folder/file", nameserver(REMOTE4));
        dir.write("folder/secret", "");
        symlink("folder", dir.path("way")).expect("symlink");
        symlink(dir.path("way/file"), etc.join("resolv.conf")).expect("symlink");
    };
    let (bed, proc) = style(prepare, "echo nameserver 203.0.113.2 >$DIR/folder/file");
    let inside = |name: &str| {
        let path = bed.dir.path(name);
        let path = path.strip_prefix("/").expect("an absolute path");
        Path::new(&format!("/proc/{}/root", proc.pid())).join(path)
    };
    assert!(inside("folder/file").exists() && !inside("folder/secret").exists());
    assert_eq!(fs::read_link(inside("way")).expect("a link"), Path::new("folder"));
}

#[test]
fn slirp4netns_says_so() {
    need!("bash");
    let bed = Bed::with(|dir| {
        let etc = dir.path("etc");
        let copied = Cmd::new("cp -a /etc").arg(&etc).run();
        assert!(copied.success(), "{copied:?}");
        let _ = fs::remove_file(etc.join("resolv.conf"));
        dir.write("elsewhere", nameserver(REMOTE4));
        symlink(dir.path("elsewhere"), etc.join("resolv.conf")).expect("symlink");
        mount::bind(&etc, Path::new("/etc"));
    });
    let first = resolver(&bed.remote, REMOTE4);
    let guest = bed.guest();
    let line = crate::outside::slirp(&format!("-c --enable-sandbox {} tap0", guest.holder.pid()));
    let mut proc = bed.host.enter_as(crate::harness::USER, line).start();
    let words = format!(
        "sandbox: /etc/resolv.conf (-> {}) seems a symlink to a file outside {{/etc, /run}}, attempting to bind it as well.",
        bed.dir.path("elsewhere").display()
    );
    proc.wait_for(&words);
    eventually("the TAP is up", || {
        guest.ns.cmd("ip link show dev tap0 up").run().stdout.contains("tap0")
    });
    asked(&guest, &first);
}
