//! podman with its user, image and settings. All of it exists in a mount namespace of the test only.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::Type;

use super::harness::cmd::{Cmd, Done};
use super::harness::ns::{Ns, mount};
use super::harness::{Bed, Dir, USER, against_slirp, eventually, ringtap};

/// The user's XDG_RUNTIME_DIR, where distributions have it: podman puts the API socket deep below it,
/// and the path of a socket has 107 bytes.
pub(crate) const RUN: &str = "/run/user/60000";

/// What makes podman's bridges.
pub(crate) const NETAVARK: &str = "/usr/lib/podman/netavark";

/// Where the network command of a bed is.
pub(crate) fn slirp(bed: &Bed) -> PathBuf {
    bed.dir.path("bin/slirp4netns")
}

/// A bed with a user whom /etc knows, who has subordinate ids, a home, a folder at [`RUN`], and the
/// program under the name slirp4netns.
pub(crate) fn bed() -> Bed {
    let bed = Bed::with(|dir| {
        own_etc(dir);
        mount::tmpfs(Path::new("/run"));
        fs::create_dir_all(RUN).expect("make a folder");
        mount::bind(&dir.make("run"), Path::new(RUN));
        unified_cgroups();
    });
    bed.dir.make("home");
    bed.dir.make("bin");
    for name in ["home", "run"] {
        let path = bed.dir.path(name);
        chown(&path, Some(USER), Some(USER)).expect("chown");
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("chmod");
    }
    let program = if against_slirp() { "/usr/bin/slirp4netns".into() } else { ringtap() };
    symlink(program, slirp(&bed)).expect("symlink");
    bed
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

/// Rootless podman has statistics with version 2 of control groups only.
fn unified_cgroups() {
    if Path::new("/sys/fs/cgroup/cgroup.procs").exists() {
        return;
    }
    let none = None::<&str>;
    // A kernel without them fails the one test that asks podman for statistics, with podman's words.
    let _ = nix::mount::mount(none, "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none);
}

/// A user with podman, an image and a network command.
pub(crate) struct Podman {
    pub(crate) bed: Bed,
}

impl Podman {
    /// `options` are the `network_cmd_options` of containers.conf.
    pub(crate) fn new(options: &str) -> Self {
        let bed = bed();
        let dir = &bed.dir;
        for name in ["home/.config", "home/.config/containers"] {
            chown(dir.make(name), Some(USER), Some(USER)).expect("chown");
        }
        // Without a word podman has CNI's plugins as soon as there is an image.
        let bridges = if Path::new(NETAVARK).exists() { "netavark" } else { "cni" };
        dir.write(
            "home/.config/containers/containers.conf",
            format!(
                "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\n\
                 events_logger = \"file\"\nnetwork_cmd_path = \"{}\"\n\
                 network_cmd_options = [{options}]\n[network]\nnetwork_backend = \"{bridges}\"\n",
                slirp(&bed).display()
            ),
        );
        dir.write(
            "home/.config/containers/storage.conf",
            format!(
                "[storage]\ndriver = \"vfs\"\nrunroot = \"{RUN}/storage\"\ngraphroot = \"{}\"\n",
                dir.path("home/storage").display()
            ),
        );
        let podman = Self { bed };
        podman.import();
        podman
    }

    /// A program, as podman's user.
    pub(crate) fn as_user(&self, cmd: Cmd) -> Cmd {
        // buildah, and `podman build`, know no setting for the network command: only PATH.
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.bed.dir.path("bin").display());
        self.bed
            .host
            .enter_as(USER, cmd)
            .env("HOME", self.bed.dir.path("home"))
            .env("XDG_RUNTIME_DIR", RUN)
            .env("PATH", path)
            .patience(Duration::from_secs(120))
    }

    /// podman, as its user.
    pub(crate) fn cmd(&self, args: &str) -> Cmd {
        self.as_user(Cmd::new("podman").args(args))
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
        self.cmd("import --quiet").arg(&tar).arg("box").ok();
    }

    /// Runs a script in a container.
    pub(crate) fn container(&self, options: &str, script: &str) -> Done {
        let run = "run --rm --log-driver=none --network=slirp4netns";
        self.cmd(&format!("{run}{options} box sh -c")).arg(script).run()
    }

    /// Starts a container that does nothing.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, options: &str) -> Ns {
        let run = "run --detach --log-driver=none --name";
        self.cmd(&format!("{run} {name} {options} box sleep 3600")).ok();
        self.inside(name)
    }

    /// The namespaces of a container that runs.
    #[track_caller]
    pub(crate) fn inside(&self, name: &str) -> Ns {
        let pid = self.cmd(&format!("inspect --format {{{{.State.Pid}}}} {name}")).ok();
        Ns::of(pid.trim().parse().expect("a process"), USER)
    }

    /// The programs that serve this bed's containers.
    pub(crate) fn helpers(&self) -> Vec<Helper> {
        helpers_in(&self.bed)
    }

    /// The one program that serves this bed's containers.
    #[track_caller]
    pub(crate) fn helper(&self) -> Helper {
        helper_in(&self.bed)
    }

    /// Removes all containers, and expects that nothing of them is left.
    #[track_caller]
    pub(crate) fn remove_all(&self) {
        self.cmd("rm --force --time 0 --all").ok();
        self.expect_nothing();
    }

    /// No network command, no API socket, no namespace.
    #[track_caller]
    pub(crate) fn expect_nothing(&self) {
        eventually("the network command ends", || self.helpers().is_empty());
        let left = |folder: &str, what: &str| {
            let found = fs::read_dir(self.bed.dir.path(folder)).into_iter().flatten().flatten();
            let names = found.map(|e| e.file_name().to_string_lossy().into_owned());
            names.filter(|name| name.contains(what)).collect::<Vec<_>>()
        };
        assert_eq!(left("run/libpod/tmp", ".net"), [""; 0], "sockets are left");
        assert_eq!(left("run/netns", ""), [""; 0], "namespaces are left");
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test has failed already: what goes wrong here is not told.
            let mut proc = self.cmd("rm --force --time 0 --all").start();
            for _ in 0..300 {
                if !proc.alive() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        sweep(&self.bed);
    }
}

/// Ends what was started for a bed and is nobody's child any more: rootless podman leaves a process
/// that keeps its namespaces for the next command.
pub(crate) fn sweep(bed: &Bed) {
    for pid in processes(bed) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// The processes that a bed's user started: his HOME is like no other.
pub(crate) fn processes(bed: &Bed) -> Vec<i32> {
    let home = format!("HOME={}", bed.dir.path("home").display());
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let set = fs::read(entry.path().join("environ")).ok()?;
        set.split(|b| *b == 0).any(|v| v == home.as_bytes()).then_some(pid)
    })
    .collect()
}

/// A process of the network command.
#[derive(Debug)]
pub(crate) struct Helper {
    pub(crate) pid: i32,
    parent: i32,
    /// Its command line.
    pub(crate) line: String,
}

/// The processes of network commands that run in a bed.
pub(crate) fn helpers_in(bed: &Bed) -> Vec<Helper> {
    let helper = |pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read_to_string(process.join("cmdline")).ok()?;
        let name = Path::new(line.split('\0').next()?).file_name()?;
        (name == "slirp4netns").then_some(())?;
        let parent = field(&process, "PPid")?.parse().ok()?;
        Some(Helper { pid, parent, line: line.replace('\0', " ") })
    };
    processes(bed).into_iter().filter_map(helper).collect()
}

/// The network command of a bed, without the children that it has.
#[track_caller]
pub(crate) fn helper_in(bed: &Bed) -> Helper {
    let all = helpers_in(bed);
    let pids: Vec<i32> = all.iter().map(|h| h.pid).collect();
    let mut first: Vec<Helper> = all.into_iter().filter(|h| !pids.contains(&h.parent)).collect();
    assert_eq!(first.len(), 1, "not one network command: {first:?}");
    first.remove(0)
}

/// A line of /proc/PID/status.
fn field(process: &Path, name: &str) -> Option<String> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

impl Helper {
    /// Expects that it has shut itself in: a root with two folders, no capability but for low ports,
    /// no way to get others, a filter of system calls.
    #[track_caller]
    pub(crate) fn expect_walls(&self) {
        let process = PathBuf::from(format!("/proc/{}", self.pid));
        let root = fs::read_dir(process.join("root")).expect("its root");
        let mut names: Vec<_> = root.flatten().map(|e| e.file_name()).collect();
        names.sort();
        assert_eq!(names, ["etc", "run"], "{self:?}");
        for set in ["CapEff", "CapPrm", "CapInh", "CapBnd"] {
            let caps = field(&process, set).expect("its capabilities");
            let caps = u64::from_str_radix(&caps, 16).expect("a set");
            assert_eq!(caps & !0x400, 0, "{set} of {self:?}");
        }
        assert_eq!(field(&process, "NoNewPrivs").as_deref(), Some("1"), "{self:?}");
        assert_eq!(field(&process, "Seccomp").as_deref(), Some("2"), "{self:?}");
    }
}

/// The IPv6 address of a namespace that is good outside of its link, once there is one.
#[track_caller]
pub(crate) fn wait_v6(ns: &Ns) -> Ipv6Addr {
    const TENTATIVE: u32 = 0x40;
    let mut found = None;
    eventually("the container has an IPv6 address", || {
        let all = ns.within(|| fs::read_to_string("/proc/thread-self/net/if_inet6"));
        // Address, index, length of the prefix, scope, flags, name; all in hexadecimal.
        found = all.expect("the addresses").lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = Ipv6Addr::from(u128::from_str_radix(words.next()?, 16).ok()?);
            let flags = u32::from_str_radix(words.nth(3)?, 16).ok()?;
            let global = address != Ipv6Addr::LOCALHOST && !address.is_unicast_link_local();
            (global && flags & TENTATIVE == 0).then_some(address)
        });
        found.is_some()
    });
    found.expect("an address")
}

/// Whether all of these ports can be bound in a namespace.
pub(crate) fn free(ns: &Ns, ip: IpAddr, tcp: &[u16], udp: &[u16]) -> bool {
    let kinds = [(Type::STREAM, tcp), (Type::DGRAM, udp)];
    kinds.into_iter().flat_map(|(kind, ports)| ports.iter().map(move |p| (kind, *p))).all(
        |(kind, port)| {
            let socket = ns.socket(ip, kind, None);
            socket.set_reuse_address(kind == Type::STREAM).expect("set SO_REUSEADDR");
            socket.bind(&SocketAddr::new(ip, port).into()).is_ok()
                && (kind == Type::DGRAM || socket.listen(1).is_ok())
        },
    )
}
