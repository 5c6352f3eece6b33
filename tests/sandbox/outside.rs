//! From outside: what `/proc` says of a program that runs, in every mode.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ringtap::boot::tap;

use crate::harness::cmd::{Cmd, PATIENCE, Proc};
use crate::harness::{Bed, USER, With, need, pipe, ringtap};

/// `CAP_NET_BIND_SERVICE`, as `/proc` writes it.
const LOW_PORTS: &str = "0000000000000400";
const NONE: &str = "0000000000000000";

/// slirp4netns's command line.
pub(crate) fn slirp(args: &str) -> Cmd {
    Cmd::new("bash -c").arg(format!("exec -a slirp4netns {} {args}", ringtap().display()))
}

fn value(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name}: {status}")).trim().to_owned()
}

/// All that can be seen of the walls around a process.
#[track_caller]
fn expect_walls(pid: i32, capabilities: &str) {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).expect("/proc");
    // Every thread has its own.
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("its threads") {
        let status =
            fs::read_to_string(task.expect("a thread").path().join("status")).expect("status");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(value(&status, set), capabilities, "{set}");
        }
        assert_eq!(value(&status, "CapAmb"), NONE);
        assert_eq!(value(&status, "NoNewPrivs"), "1");
        threads += 1;
    }
    assert!(threads > 1, "it has a worker");
    let mut root: Vec<_> = fs::read_dir(format!("/proc/{pid}/root"))
        .expect("its root")
        .map(|entry| entry.expect("an entry").file_name().display().to_string())
        .collect();
    root.sort();
    assert_eq!(root, ["etc", "run"]);
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).expect("its folder"), Path::new("/"));
    let mounts = read("mountinfo");
    assert!(mounts.lines().count() >= 3, "{mounts}");
    for mount in mounts.lines() {
        let flags: Vec<_> = mount.split(' ').nth(5).expect("flags").split(',').collect();
        for flag in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(flags.contains(&flag), "not {flag}: {mount}");
        }
        assert!(!mount.contains(" shared:"), "goes out to the host: {mount}");
    }
    let core =
        read("limits").lines().find(|l| l.starts_with("Max core file size")).map(str::to_owned);
    let core = core.expect("the limit on core dumps");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}

/// What shows the inside of a process that is not dumpable is root's, of the namespace in which it was started.
#[track_caller]
fn expect_no_dumps(pid: i32) {
    let owner = fs::metadata(format!("/proc/{pid}/environ")).expect("environ").uid();
    assert_eq!(owner, 0, "dumpable");
}

fn ready(mut cmd: impl FnMut(i32) -> Cmd) -> Proc {
    let (mut ready, theirs) = pipe();
    let mut proc = cmd(theirs.as_raw_fd()).keep(&theirs).start();
    drop(theirs);
    ready.expect_byte(&mut proc);
    proc
}

#[test]
fn attach_by_an_ordinary_user() {
    need!();
    let (_bed, _guest, proc) = Bed::up(&With::defaults());
    expect_walls(proc.pid(), NONE);
    expect_no_dumps(proc.pid());
}

#[test]
fn attach_by_root() {
    need!();
    let bed = Bed::new();
    let guest = bed.guest();
    let pid = guest.holder.pid();
    let proc = ready(|fd| {
        bed.host.enter(Cmd::of(ringtap()).args(&format!("attach --ready-fd {fd} {pid}")))
    });
    expect_walls(proc.pid(), NONE);
}

/// As rootless podman runs it.
#[test]
fn slirp4netns_by_root_of_a_users_namespace() {
    need!("bash");
    let bed = Bed::new();
    let guest = bed.guest();
    let pid = guest.holder.pid();
    let proc = ready(|fd| {
        let inner = format!(
            "exec -a slirp4netns {} -c --enable-sandbox -r {fd} --netns-type=path /proc/{pid}/ns/net tap0",
            ringtap().display()
        );
        // Inside the guest's user namespace, and outside of its network.
        let line =
            Cmd::new(&format!("nsenter -U --preserve-credentials -t {pid} bash -c")).arg(inner);
        bed.host.enter_as(USER, line)
    });
    expect_walls(proc.pid(), LOW_PORTS);
}

#[test]
fn slirp4netns_by_root_and_by_a_user() {
    need!("bash");
    let bed = Bed::new();
    for user in [false, true] {
        let guest = bed.guest();
        let pid = guest.holder.pid();
        let proc = ready(|fd| {
            let line = slirp(&format!("-c --enable-sandbox -r {fd} {pid} tap0"));
            if user { bed.host.enter_as(USER, line) } else { bed.host.enter(line) }
        });
        expect_walls(proc.pid(), LOW_PORTS);
        let done = {
            proc.signal(nix::sys::signal::Signal::SIGTERM);
            proc.wait(PATIENCE)
        };
        assert_eq!(done.signal(), Some(15), "{done:?}");
    }
}

/// Without a process, by two paths: what slirp4netns's own sandbox cannot do for an ordinary user.
#[test]
fn a_detached_namespace() {
    need!("bash");
    let bed = Bed::new();
    let guest = bed.guest();
    let (net, user) = (bed.dir.write("net", ""), bed.dir.write("user", ""));
    for (kind, at) in [("net", &net), ("user", &user)] {
        let from = format!("/proc/{}/ns/{kind}", guest.holder.pid());
        bed.host.cmd("mount --bind").arg(from).arg(at).ok();
    }
    let proc = ready(|fd| {
        let line = slirp(&format!(
            "-c --enable-sandbox -r {fd} --netns-type=path --userns-path={} {} tap0",
            user.display(),
            net.display()
        ));
        bed.host.enter_as(USER, line)
    });
    expect_walls(proc.pid(), LOW_PORTS);
    expect_no_dumps(proc.pid());
    // Neither path is in sight, and its end is seen.
    bed.host.cmd("umount").arg(&net).ok();
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
}

#[test]
fn a_tap_from_the_caller() {
    need!("bash");
    let bed = Bed::new();
    let guest = bed.guest();
    let tap = guest.ns.within(|| tap::open("tap0", 1)).expect("a TAP").remove(0).fd;
    let proc = ready(|fd| {
        let line =
            slirp(&format!("--enable-sandbox -r {fd} --netns-type=tapfd {}", tap.as_raw_fd()));
        bed.host.enter_as(USER, line.keep(&tap))
    });
    expect_walls(proc.pid(), LOW_PORTS);
}

#[test]
fn create() {
    need!();
    let bed = Bed::new();
    let path = bed.dir.path("made");
    let proc = ready(|fd| {
        bed.host.enter(Cmd::of(ringtap()).args(&format!("create --ready-fd {fd}")).arg(&path))
    });
    expect_walls(proc.pid(), NONE);
    proc.signal(nix::sys::signal::Signal::SIGTERM);
    proc.wait(PATIENCE);
    assert!(!path.exists(), "the name is left");
}

/// The program is behind walls, and its command is not.
#[test]
fn run() {
    need!();
    let bed = Bed::new();
    let script = "touch $HOME/touched; test -d /proc/self && mount -t tmpfs none /mnt && echo up; sleep 1000";
    let mut proc = bed.ringtap("run -- sh -c").arg(script).start();
    proc.wait_for("up");
    expect_walls(proc.pid(), NONE);
    expect_no_dumps(proc.pid());
    assert!(bed.dir.path("touched").exists());
}

#[test]
fn no_walls_when_not_asked_for() {
    need!();
    let (_bed, _guest, proc) = Bed::up(&With::defaults().more("--no-sandbox --no-seccomp"));
    let root = fs::read_link(format!("/proc/{}/root", proc.pid())).expect("its root");
    assert!(root.join("proc").exists());
    let status = fs::read_to_string(format!("/proc/{}/status", proc.pid())).expect("status");
    assert_eq!(value(&status, "NoNewPrivs"), "0");
}
