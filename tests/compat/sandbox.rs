//! What `--enable-sandbox` and `--enable-seccomp` leave the program.

use std::fs;
use std::path::Path;

use crate::harness::ns::mount;
use crate::harness::{Bed, Dir, Family, USER};
use crate::program::{Program, Up, both, guest, names_in, status};

both! {
    off_by_default,
    capabilities_as_root,
    capabilities_as_an_ordinary_user,
    root_folder,
    nothing_to_write_or_run,
    resolver_file_outside_of_etc,
    detached_namespace,
    seccomp,
    seccomp_and_sandbox,
    it_works_in_there["dig", "dnsmasq"],
}

const CAPS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// Started by the machine's root.
#[track_caller]
fn as_root(p: Program, options: &str) -> Up {
    let bed = Bed::new();
    let guest = guest(&bed);
    let operands = format!("{} tap0", guest.holder.pid());
    p.between(bed, guest, 0, options, &operands)
}

#[track_caller]
fn carries(net: &Up) {
    let server = net.bed.remote.listen(Family::V4.remote());
    net.inside().connect(server.local_addr().expect("an address")).expect("connect");
}

fn off_by_default(p: Program) {
    let net = p.up("-c");
    let root = names_in(Path::new(&format!("/proc/{}/root", net.proc.pid())));
    assert!(root.contains("usr"), "{root}");
    assert_eq!(status(net.proc.pid(), &["Seccomp"]), "Seccomp=0");
    let bounds = status(net.proc.pid(), &["CapBnd"]);
    assert_ne!(bounds, "CapBnd=0000000000000000");
}

/// Only CAP_NET_BIND_SERVICE, 0x400, which slirp4netns's own test looks for by getpcaps.
#[track_caller]
fn has_one_capability(net: &Up) {
    carries(net);
    let one = "0000000000000400";
    let expected =
        format!("CapInh={one} CapPrm={one} CapEff={one} CapBnd={one} CapAmb=0000000000000000");
    assert_eq!(status(net.proc.pid(), &CAPS), expected);
    assert_eq!(status(net.proc.pid(), &["NoNewPrivs"]), "NoNewPrivs=1");
}

fn capabilities_as_root(p: Program) {
    has_one_capability(&as_root(p, "-c --enable-sandbox"));
}

/// The same, in the guest's user namespace, which the program joins to be allowed to mount.
fn capabilities_as_an_ordinary_user(p: Program) {
    has_one_capability(&p.up("-c --enable-sandbox"));
}

/// /etc and /run, and no more.
fn root_folder(p: Program) {
    for net in [p.up("-c --enable-sandbox"), as_root(p, "-c --enable-sandbox")] {
        assert_eq!(names_in(Path::new(&format!("/proc/{}/root", net.proc.pid()))), "etc run");
    }
}

/// Every mount is read-only, and nothing in it is run, opened as a device or given a set-user-id bit.
fn nothing_to_write_or_run(p: Program) {
    // Something is mounted below /etc.
    let bed = Bed::with(|dir| mount::bind(&dir.write("hosts", ""), Path::new("/etc/hosts")));
    let guest = guest(&bed);
    let operands = format!("{} tap0", guest.holder.pid());
    let net = p.between(bed, guest, 0, "-c --enable-sandbox", &operands);
    let text = fs::read_to_string(format!("/proc/{}/mountinfo", net.proc.pid())).expect("mounts");
    let of = |at: &str| {
        let line = text.lines().find(|l| l.split(' ').nth(4) == Some(at));
        let options = line.unwrap_or_else(|| panic!("no {at}: {text}")).split(' ').nth(5);
        let mut options: Vec<&str> = options.expect("options").split(',').collect();
        options.retain(|o| ["ro", "nosuid", "nodev", "noexec"].contains(o));
        options.join(",")
    };
    for at in ["/etc", "/run"] {
        assert_eq!(of(at), "ro,nosuid,nodev,noexec", "{at}: {text}");
    }
    assert!(of("/").starts_with("ro"), "{text}");
    // What lies below them, with mounts of its own.
    let below: Vec<&str> = text
        .lines()
        .filter(|l| l.split(' ').nth(5).is_some_and(|o| !o.split(',').any(|o| o == "ro")))
        .filter_map(|l| l.split(' ').nth(4))
        .collect();
    let seen = if below.is_empty() { "none" } else { "some" };
    p.shows("mounts that can be written", seen, "some");
}

/// As on NixOS: the file that /etc/resolv.conf leads to is there as well, and a line says so.
fn resolver_file_outside_of_etc(p: Program) {
    let bed = Bed::with(own_etc);
    let guest = guest(&bed);
    let operands = format!("{} tap0", guest.holder.pid());
    let net = p.between(bed, guest, 0, "-c --enable-sandbox", &operands);
    let inside = format!("/proc/{}/root/srv/resolv.conf", net.proc.pid());
    let bound = fs::read_to_string(inside).is_ok_and(|text| text == "nameserver 192.0.2.53\n");
    let start = "sandbox: /etc/resolv.conf (-> /srv/resolv.conf) seems a symlink to a file outside \
                 {/etc, /run}";
    let said = net.proc.stderr();
    let rest = said.lines().find_map(|l| l.strip_prefix(start)).unwrap_or(" nothing is said");
    let seen = format!("{};{}", if bound { "bound" } else { "not bound" }, &rest[1..]);
    p.shows("a resolv.conf elsewhere", seen, "bound; attempting to bind it as well.");
}

/// An /etc whose resolv.conf leads to a file system of the test's.
fn own_etc(dir: &Dir) {
    mount::tmpfs(Path::new("/srv"));
    fs::write("/srv/resolv.conf", "nameserver 192.0.2.53\n").expect("write");
    let etc = dir.make("etc");
    for name in ["passwd", "group", "hosts", "nsswitch.conf"] {
        let _ = fs::copy(Path::new("/etc").join(name), etc.join(name));
    }
    std::os::unix::fs::symlink("/srv/resolv.conf", etc.join("resolv.conf")).expect("make a link");
    mount::bind(&etc, Path::new("/etc"));
}

/// From outside of the user namespace, by paths, as RootlessKit with --detach-netns would.
fn detached_namespace(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    let pid = guest.holder.pid();
    let line = format!(
        "-c -e 99 --enable-sandbox --userns-path=/proc/{pid}/ns/user --netns-type=path \
         /proc/{pid}/ns/net tap0"
    );
    let done = bed.host.enter_as(USER, p.cmd(&bed.dir).args(&line)).run();
    p.shows("a sandbox from outside", format!("{:?}", done.code()), "Some(1)");
}

fn seccomp(p: Program) {
    let net = p.up("-c --enable-seccomp");
    assert_eq!(status(net.proc.pid(), &["Seccomp", "NoNewPrivs"]), "Seccomp=2 NoNewPrivs=1");
    carries(&net);
    // Threads, where there are some, as well.
    for task in fs::read_dir(format!("/proc/{}/task", net.proc.pid())).expect("threads") {
        let task = task.expect("a thread").file_name();
        let tid = task.to_string_lossy().parse().expect("a number");
        assert_eq!(status(tid, &["Seccomp"]), "Seccomp=2");
    }
    let (done, ..) = net.hang_up();
    assert_eq!(done.code(), Some(0), "{done:?}");
    let told = if done.stdout.contains("seccomp: The following syscalls are blocked: execve ") {
        "told"
    } else {
        "not told"
    };
    p.shows("what seccomp blocks", told, "told");
}

fn seccomp_and_sandbox(p: Program) {
    for net in [
        p.up("-c -6 --enable-sandbox --enable-seccomp"),
        as_root(p, "-c --enable-sandbox --enable-seccomp"),
    ] {
        assert_eq!(status(net.proc.pid(), &["Seccomp", "NoNewPrivs"]), "Seccomp=2 NoNewPrivs=1");
        carries(&net);
        let (done, ..) = net.hang_up();
        assert_eq!(done.code(), Some(0), "{done:?}");
    }
}

/// The resolver's file is read in there when it changes; a port forward is made in there.
fn it_works_in_there(p: Program) {
    let bed = Bed::new();
    let listen = format!("--listen-address={}", Family::V4.remote());
    let mut dns = bed
        .remote
        .cmd(&format!(
            "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-hosts --no-resolv \
             --log-facility=- --user=root --pid-file= --bind-interfaces \
             --host-record=www.test,192.0.2.80 {listen}"
        ))
        .start();
    dns.wait_for("started");
    let net = p.attach(bed, "-c -a @api --enable-sandbox --enable-seccomp");
    assert_eq!(net.says("dig +short +time=20 +tries=1 @10.0.2.3 www.test A"), "192.0.2.80\n");
    let arguments = serde_json::json!({"proto": "tcp", "host_port": 18080, "guest_port": 80});
    assert_eq!(crate::api::add(&net, &arguments), r#"{"return":{"id":1}}"#);
    assert_eq!(crate::api::remove(&net, 1), r#"{"return":{}}"#);
}
