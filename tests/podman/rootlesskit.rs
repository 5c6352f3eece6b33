//! RootlessKit, as rootless Docker, containerd and BuildKit call it. It makes the TAP itself, with one
//! queue and persistent, and configures it while the program serves it.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use super::engine::{bed, free, helper_in, helpers_in, slirp, sweep, wait_v6};
use super::harness::cmd::{Cmd, PATIENCE, Proc};
use super::harness::ns::Ns;
use super::harness::{Bed, Family, USER, against_slirp, eventually, need, pipe};
use super::{body, listen_at, serve, sha256, tcp_round, udp_at, udp_round};

/// A bed with RootlessKit's user.
struct Kit {
    bed: Bed,
}

impl Kit {
    fn new() -> Self {
        Self { bed: bed() }
    }

    fn state(&self) -> PathBuf {
        self.bed.dir.path("home/state")
    }

    fn as_user(&self, cmd: Cmd) -> Cmd {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.bed.dir.path("bin").display());
        self.bed.host.enter_as(USER, cmd).env("HOME", self.bed.dir.path("home")).env("PATH", path)
    }

    /// RootlessKit with a network by the program, which it finds in PATH.
    fn cmd(&self, options: &str) -> Cmd {
        let kit = Cmd::new("rootlesskit --net=slirp4netns --state-dir").arg(self.state());
        self.as_user(kit.args(options))
    }

    /// RootlessKit with a command that does nothing more after this script, once it has come so far.
    #[track_caller]
    fn start(&self, options: &str, script: &str) -> (Proc, Ns) {
        let script = format!("{script}echo up; exec sleep 3600");
        let mut proc = self.cmd(options).args("sh -c").arg(script).start();
        proc.wait_for("up\n");
        // It writes the one and binds the other while its child runs.
        let mut child = None;
        eventually("RootlessKit is up", || {
            let text = fs::read_to_string(self.state().join("child_pid")).unwrap_or_default();
            child = text.trim().parse().ok();
            child.is_some() && UnixStream::connect(self.state().join("api.sock")).is_ok()
        });
        (proc, Ns::of(child.expect("a process"), USER))
    }

    fn ctl(&self, args: &str) -> Cmd {
        let socket = self.state().join("api.sock");
        self.as_user(Cmd::new("rootlessctl --socket").arg(socket).args(args))
    }

    /// Ends RootlessKit as its users do, and expects that nothing is left.
    #[track_caller]
    fn stop(&self, proc: Proc) {
        proc.signal(Signal::SIGTERM);
        let _ = proc.wait(PATIENCE);
        eventually("the network command ends", || helpers_in(&self.bed).is_empty());
        assert!(!self.state().exists(), "the state is left");
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        sweep(&self.bed);
    }
}

/// What dockerd-rootless.sh asks, and its call.
#[test]
fn dockers_call() {
    need!("rootlesskit", "newuidmap", "busybox", "nsenter", "grep");
    let kit = Kit::new();
    let bed = &kit.bed;
    let at = serve(&bed.remote, body());
    kit.as_user(Cmd::sh("slirp4netns --help | grep -qw -- --netns-type")).ok();
    let script = format!(
        "cat /etc/resolv.conf; ip addr show tap0; ip route; \
         busybox wget -q -O - http://{at}/ | sha256sum; "
    );
    let options = "--mtu=65520 --slirp4netns-sandbox=auto --slirp4netns-seccomp=auto \
                   --disable-host-loopback --port-driver=builtin --copy-up=/etc --copy-up=/run \
                   --propagation=rslave";
    for (more, net) in [("", "10.0.2"), ("--cidr=10.0.128.0/24 --ipv6", "10.0.128")] {
        let (proc, _) = kit.start(&format!("{options} {more}"), &script);
        let shown = proc.stdout();
        for word in [
            &format!("nameserver {net}.3"),
            "mtu 65520",
            &format!("{net}.100/24"),
            &format!("default via {net}.2 dev tap0"),
            &sha256(&bed.dir, &body()),
        ] {
            assert!(shown.contains(word), "`{word}` is missing: {shown}");
        }
        helper_in(bed).expect_walls();
        kit.stop(proc);
    }
}

/// Adds, lists, removes; a port that was removed can be had again.
fn port_driver(driver: &str, peer_is_seen: bool) {
    let kit = Kit::new();
    let bed = &kit.bed;
    let sandbox = "--slirp4netns-sandbox=true --slirp4netns-seccomp=true --copy-up=/etc";
    let options = format!(
        "{sandbox} --disable-host-loopback --port-driver={driver} -p 0.0.0.0:18000:8000/tcp"
    );
    let (proc, inside) = kit.start(&options, "");
    let helper = helper_in(bed);
    assert_eq!(helper.line.contains("--api-socket"), driver == "slirp4netns", "{}", helper.line);
    helper.expect_walls();
    let on = |port| SocketAddr::new(Family::V4.host(), port);
    let any = |port| SocketAddr::new(Family::V4.any(), port);
    let tcp = |guest, host| {
        let (seen, is) = tcp_round(&listen_at(&inside, guest), &bed.remote, on(host));
        assert!(!peer_is_seen || seen == is, "{seen} is {is}");
    };
    let udp = |guest, host| {
        let socket = udp_at(&inside, any(guest));
        let (seen, is) = udp_round(&socket, &bed.remote, Family::V4.remote(), on(host));
        assert!(!peer_is_seen || seen == is, "{seen} is {is}");
    };
    let quoted = |protocol| format!("\"proto\":\"{protocol}\"");
    tcp(8_000, 18_000);
    for [tcp_name, udp_name] in [["tcp", "udp"], ["tcp4", "udp4"]] {
        let ports = format!("0.0.0.0:18001:8001/{tcp_name} 198.51.100.1:18001:8001/{udp_name}");
        let added = kit.ctl("add-ports").args(&ports).ok();
        let listed = kit.ctl("list-ports --json").ok();
        for word in ["\"parentPort\":18000".into(), quoted(tcp_name), quoted(udp_name)] {
            assert!(listed.contains(&word), "`{word}` is missing: {listed}");
        }
        tcp(8_001, 18_001);
        udp(8_001, 18_001);
        kit.ctl("remove-ports").args(&added).ok();
        eventually("the ports are free", || {
            free(&bed.host, Family::V4.any(), &[18_001], &[18_001])
        });
        assert_eq!(kit.ctl("list-ports --json").ok().lines().count(), 1);
        let error = bed.remote.connect(on(18_001)).expect_err("removed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
    // What others have: the error reaches the caller, and what stands remains.
    let taken = bed.host.listen_at(any(18_002));
    let done = kit.ctl("add-ports 0.0.0.0:18002:8002/tcp").run();
    assert!(!done.success(), "{done:?}");
    drop(taken);
    tcp(8_000, 18_000);
    kit.stop(proc);
    eventually("the port is free", || free(&bed.host, Family::V4.any(), &[18_000], &[]));
}

#[test]
fn ports_by_the_network_command() {
    need!("rootlesskit", "rootlessctl", "newuidmap", "nsenter");
    port_driver("slirp4netns", true);
}

#[test]
fn ports_by_its_own_driver() {
    need!("rootlesskit", "rootlessctl", "newuidmap", "nsenter");
    port_driver("builtin", false);
}

/// Neither sandbox nor a port driver; another name for the TAP, an MTU of its own; IPv6; the host's
/// loopback allowed.
#[test]
fn other_options() {
    need!("rootlesskit", "newuidmap", "nsenter");
    let kit = Kit::new();
    let bed = &kit.bed;
    let options = format!(
        "--mtu=1400 --ipv6 --ifname=eth9 --copy-up=/etc --slirp4netns-binary={}",
        slirp(bed).display()
    );
    let (proc, inside) = kit.start(&options, "");
    let line = helper_in(bed).line;
    assert!(line.trim_end().ends_with(" eth9"), "{line}");
    let shown = inside.cmd("ip -d link show eth9").ok();
    assert!(shown.contains("mtu 1400") && !shown.contains("multi_queue"), "{shown}");
    for (to, at) in [
        (&bed.host, Family::V4.loopback()),
        (&bed.remote, Family::V4.remote()),
        (&bed.remote, Family::V6.remote()),
    ] {
        let listener = to.listen(at);
        let mut to = listener.local_addr().expect("an address");
        if at.is_loopback() {
            to.set_ip(Family::V4.gateway());
        }
        if at.is_ipv6() {
            wait_v6(&inside);
        }
        tcp_round(&listener, &inside, to);
    }
    kit.stop(proc);
}

/// The call of a later RootlessKit for `--detach-netns`, which rootless Docker has by default: a
/// namespace at a path that belongs to a user namespace of another process. Sandboxed as well, which
/// slirp4netns can't.
#[test]
fn a_detached_namespace() {
    need!("unshare", "mount", "nsenter");
    let kit = Kit::new();
    let bed = &kit.bed;
    let state = bed.dir.make("state");
    // RootlessKit's child stays in the host's network and mounts another one, where only it sees that.
    let script = format!(
        "touch {0}/netns && unshare -n mount --bind /proc/self/ns/net {0}/netns; echo up; \
         exec sleep 3600",
        state.display()
    );
    let mut child = kit.as_user(Cmd::new("unshare -U -r -m sh -c").arg(script)).start();
    child.wait_for("up");
    let pid = child.pid();
    let path = format!("/proc/{pid}/root{}/netns", state.display());
    let prepare = "ip tuntap add name tap0 mode tap && ip link set tap0 up && ip addr add 10.0.2.100/24 dev tap0 \
         && ip link set tap0 mtu 65520 && ip link set lo up && ip route add default via 10.0.2.2";
    let nsenter = format!("nsenter -t {pid} -U --preserve-credentials --net={path} sh -c");
    kit.as_user(Cmd::new(&nsenter).arg(prepare)).ok();
    let walls = if against_slirp() { "" } else { "--enable-sandbox --enable-seccomp" };
    let (mut ready, theirs) = pipe();
    let api = state.join("s4nn.sock");
    let mut proc = kit
        .as_user(
            Cmd::of(slirp(bed))
                .args(&format!("--mtu 65520 -r {} --disable-host-loopback", theirs.as_raw_fd()))
                .arg("--api-socket")
                .arg(&api)
                .args(&format!("{walls} --enable-ipv6 --userns-path=/proc/{pid}/ns/user"))
                .args(&format!("--netns-type=path {path} tap0")),
        )
        .keep(&theirs)
        .start();
    drop(theirs);
    ready.expect_byte(&mut proc);
    if !walls.is_empty() {
        helper_in(bed).expect_walls();
    }
    let at = serve(&bed.remote, body());
    let fetch = format!("busybox wget -q -O - http://{at}/ | sha256sum");
    let sum = kit.as_user(Cmd::new(&nsenter).arg(fetch)).ok();
    assert!(sum.contains(&sha256(&bed.dir, &body())), "{sum}");
    // Its API, too, works from behind the walls.
    let mut client = UnixStream::connect(&api).expect("connect");
    let request = br#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":18000,"guest_port":8000}}"#;
    client.write_all(request).expect("ask");
    client.shutdown(Shutdown::Write).expect("shut down");
    let reply = io::read_to_string(client).expect("an answer");
    assert!(reply.contains(r#"{"return":{"id":1}}"#), "{reply}");
    let mut holder = kit.as_user(Cmd::new(&nsenter).arg("echo up; exec sleep 3600")).start();
    holder.wait_for("up");
    let inside = Ns::of(holder.pid(), USER);
    let to = SocketAddr::new(Family::V4.host(), 18_000);
    let (seen, is) = tcp_round(&listen_at(&inside, 8_000), &bed.remote, to);
    assert_eq!(seen, is);
    proc.signal(Signal::SIGKILL);
    let _ = proc.wait(PATIENCE);
    eventually("nothing of it is left", || helpers_in(bed).is_empty());
}
