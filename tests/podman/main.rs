//! Rootless podman with the program in slirp4netns's place: `network_cmd_path`, as its users set it.
//! podman, its user and its storage exist in a mount namespace of the test only.

// Tests wait on a real clock.
#![allow(clippy::disallowed_methods)]

// Shared with tests/netns, which needs all of it.
#[allow(dead_code, unused_macros, unused_imports)]
#[path = "../netns/harness/mod.rs"]
mod harness;
mod rootlesskit;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use harness::cmd::{Cmd, Done};
use harness::ns::{Ns, mount};
use harness::{Bed, Dir, Family, USER, against_slirp, eventually, need, ringtap};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A user with podman, an image and a network command.
struct Podman {
    bed: Bed,
}

impl Podman {
    fn new(options: &str) -> Self {
        let bed = Bed::with(own_etc);
        let dir = &bed.dir;
        for name in ["home", "home/.config", "home/.config/containers", "run"] {
            let path = dir.make(name);
            chown(&path, Some(USER), Some(USER)).expect("chown");
        }
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(dir.path("run"), private).expect("chmod");
        dir.make("bin");
        let slirp = dir.path("bin/slirp4netns");
        let program = if against_slirp() { "/usr/bin/slirp4netns".into() } else { ringtap() };
        symlink(program, &slirp).expect("symlink");
        dir.write(
            "home/.config/containers/containers.conf",
            format!(
                "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\n\
                 events_logger = \"file\"\nnetwork_cmd_path = \"{}\"\n\
                 network_cmd_options = [{options}]\n",
                slirp.display()
            ),
        );
        dir.write(
            "home/.config/containers/storage.conf",
            format!(
                "[storage]\ndriver = \"vfs\"\nrunroot = \"{0}/run/storage\"\n\
                 graphroot = \"{0}/home/storage\"\n",
                dir.path("").display().to_string().trim_end_matches('/')
            ),
        );
        let podman = Self { bed };
        podman.import();
        podman
    }

    /// podman, as its user.
    fn cmd(&self, args: &str) -> Cmd {
        let dir = &self.bed.dir;
        self.bed
            .host
            .enter_as(USER, Cmd::new("podman").args(args))
            .env("HOME", dir.path("home"))
            .env("XDG_RUNTIME_DIR", dir.path("run"))
            .patience(Duration::from_secs(120))
    }

    /// Makes the image `box`: busybox and nothing else.
    fn import(&self) {
        let tree = self.bed.dir.make("tree");
        for name in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
            fs::create_dir(tree.join(name)).expect("make a folder");
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
        fs::copy(busybox.expect("busybox"), tree.join("bin/busybox")).expect("copy busybox");
        for name in ["sh", "wget", "nslookup", "cat", "sleep", "sha256sum", "ip", "ping"] {
            symlink("busybox", tree.join("bin").join(name)).expect("symlink");
        }
        let tar = self.bed.dir.path("box.tar");
        Cmd::new("tar -C").arg(&tree).arg("-cf").arg(&tar).arg(".").ok();
        fs::set_permissions(&tar, fs::Permissions::from_mode(0o644)).expect("chmod");
        self.cmd("import --quiet").arg(&tar).arg("box").ok();
    }

    /// Runs a script in a container.
    fn container(&self, options: &str, script: &str) -> Done {
        let run = "run --rm --log-driver=none --network=slirp4netns";
        self.cmd(&format!("{run}{options} box sh -c")).arg(script).run()
    }

    /// The programs that serve this bed's containers.
    fn helpers(&self) -> Vec<String> {
        helpers_in(&self.bed)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Rootless podman leaves a process that keeps its namespaces for the next command.
        let file = self.bed.dir.path("run/libpod/tmp/pause.pid");
        if let Some(pid) = fs::read_to_string(file).ok().and_then(|s| s.trim().parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// An /etc in which the user exists, and has subordinate ids.
fn own_etc(dir: &Dir) {
    let etc = dir.path("etc");
    let copied = Cmd::new("cp -a /etc").arg(&etc).run();
    assert!(copied.success(), "{copied:?}");
    let home = dir.path("home");
    for (file, line) in [
        ("passwd", format!("ringtap:x:{USER}:{USER}::{}:/bin/sh", home.display())),
        ("group", format!("ringtap:x:{USER}:")),
        ("subuid", "ringtap:1000000:65536".into()),
        ("subgid", "ringtap:1000000:65536".into()),
    ] {
        let path = etc.join(file);
        let mut text = fs::read_to_string(&path).unwrap_or_default();
        text.push_str(&line);
        text.push('\n');
        fs::write(&path, text).expect("write");
    }
    // A symlink would lead out of here.
    let resolv = etc.join("resolv.conf");
    let _ = fs::remove_file(&resolv);
    fs::copy(dir.path("resolv.conf"), resolv).expect("copy");
    mount::bind(&etc, Path::new("/etc"));
}

/// The network commands that run in a bed.
fn helpers_in(bed: &Bed) -> Vec<String> {
    let name = bed.dir.path("bin/slirp4netns").display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if line.split('\0').next() == Some(&name) {
            found.push(line.replace('\0', " "));
        }
    }
    found
}

/// A web server with one file of these bytes, for as many requests as come.
fn serve(ns: &Ns, body: Vec<u8>) -> SocketAddr {
    let listener = ns.listen(Family::V4.remote());
    let at = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let _ = client.read(&mut [0; 4000]);
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(&body));
        }
    });
    at
}

fn body() -> Vec<u8> {
    (0..8_000_000_u32).map(|n| (n ^ (n >> 11)) as u8).collect()
}

fn sha256(dir: &Dir, bytes: &[u8]) -> String {
    let said = Cmd::new("sha256sum").arg(dir.write("body", bytes)).ok();
    said.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn a_container_fetches_a_file_by_name() {
    need!("podman", "runc", "newuidmap", "busybox", "dnsmasq", "tar");
    let podman = Podman::new("");
    let bed = &podman.bed;
    let at = serve(&bed.remote, body());
    let mut dns = bed
        .remote
        .cmd(&format!(
            "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-hosts --no-resolv --log-facility=- \
             --user=root --pid-file= --bind-interfaces --listen-address={0} --host-record=www.test,{0}",
            Family::V4.remote()
        ))
        .start();
    dns.wait_for("started");
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
