//! From inside: what a process in the sandbox still can do.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::child::{Pen, Report, Who, exec, is_open, leave_open, regain_capabilities, walled};
use crate::harness::ns::{self, Ns};
use crate::harness::{Dir, USER, need};

/// A host with a program and a device below `/run`.
fn host(dir: &Dir) -> Ns {
    dir.write("program", "#!/bin/true\n");
    Ns::new(|| {
        let run = Path::new("/run");
        ns::mount::tmpfs(run);
        fs::create_dir(run.join("folder")).expect("a folder");
        fs::write(run.join("folder/file"), "seen").expect("a file");
        fs::copy("/bin/true", run.join("true")).expect("a program");
        fs::copy(dir.path("program"), run.join("script")).expect("a script");
        let kind = nix::sys::stat::SFlag::S_IFCHR;
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        let device = nix::sys::stat::makedev(1, 3);
        nix::sys::stat::mknod(&run.join("null"), kind, mode, device).expect("a device");
        // A mount below, writable for everybody.
        ns::mount::tmpfs(&run.join("folder"));
        fs::write(run.join("folder/deeper"), "seen").expect("a file");
        for path in ["folder", "null"] {
            let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            fs::set_permissions(run.join(path), all).expect("chmod");
        }
    })
}

/// The user namespace of a guest that an ordinary user has made.
fn guest(host: &Ns) -> (crate::harness::cmd::Proc, OwnedFd) {
    let line =
        crate::harness::cmd::Cmd::new("unshare -U -r -n sh -c").arg("echo up; exec sleep infinity");
    let mut holder = host.enter_as(USER, line).start();
    holder.wait_for("up");
    let userns = File::open(format!("/proc/{}/ns/user", holder.pid())).expect("its namespace");
    (holder, userns.into())
}

fn each(low_ports: bool, inside: impl Fn(&mut Pen), check: impl Fn(Who, &Report)) {
    let dir = Dir::new();
    let host = host(&dir);
    let (_holder, userns) = guest(&host);
    for who in Who::ALL {
        let userns = (who == Who::Guest).then_some(&userns);
        let report = walled(&host, who, low_ports, userns, &inside);
        report.is("enter", "done");
        check(who, &report);
    }
}

#[test]
fn nothing_is_seen_but_etc_and_run() {
    need!();
    let list = |path: &str| -> String {
        let mut names: Vec<_> = fs::read_dir(path)
            .map(|dir| dir.flatten().map(|e| e.file_name().display().to_string()).collect())
            .unwrap_or_default();
        names.sort();
        names.join(" ")
    };
    each(
        false,
        |pen| {
            pen.say("root", list("/"));
            pen.say("up", list("/../.."));
            for path in
                ["/home", "/proc", "/proc/self/status", "/dev/null", "/tmp", "/usr", "/root"]
            {
                pen.tried(path, fs::metadata(path));
            }
            pen.tried("etc", fs::read("/etc/passwd"));
            pen.tried("run", fs::read("/run/folder/deeper"));
            pen.say(
                "cwd",
                std::env::current_dir().map_or_else(|e| e.to_string(), |d| d.display().to_string()),
            );
        },
        |_, report| {
            report.is("root", "etc run");
            report.is("up", "etc run");
            for path in
                ["/home", "/proc", "/proc/self/status", "/dev/null", "/tmp", "/usr", "/root"]
            {
                report.refused(path, &[Errno::ENOENT]);
            }
            report.is("etc", "done");
            report.is("run", "done");
            report.is("cwd", "/");
        },
    );
}

#[test]
fn nothing_can_be_written_or_run() {
    need!();
    let new = ["/new", "/etc/new", "/run/new", "/run/folder/new"];
    each(
        false,
        |pen| {
            for path in new {
                pen.tried(path, File::create(path));
            }
            pen.tried("mkdir", fs::create_dir("/run/folder/new"));
            pen.tried("link", symlink("x", "/run/folder/new"));
            pen.tried("unlink", fs::remove_file("/run/folder/deeper"));
            pen.tried("write", OpenOptions::new().write(true).open("/run/folder/deeper"));
            // 0666, and writing to a device is not writing to its file system.
            pen.tried("device", OpenOptions::new().write(true).open("/run/null"));
            pen.tried("program", Err::<(), _>(exec("/run/true")));
            pen.tried("script", Err::<(), _>(exec("/run/script")));
        },
        |_, report| {
            for path in new {
                report.refused(path, &[Errno::EROFS, Errno::EACCES]);
            }
            // Open to everybody: only the mount stands in the way.
            for name in ["/run/folder/new", "mkdir", "link", "unlink", "write"] {
                report.refused(name, &[Errno::EROFS, Errno::EACCES]);
            }
            report.refused("device", &[Errno::EACCES]);
            report.refused("program", &[Errno::EACCES]);
            report.refused("script", &[Errno::EACCES]);
        },
    );
}

#[test]
fn no_way_back() {
    need!();
    each(
        true,
        |pen| {
            let none = None::<&str>;
            let tried = |result: nix::Result<()>| result.map_err(std::io::Error::from);
            pen.tried(
                "tmpfs",
                tried(mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)),
            );
            let writable = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
            pen.tried("remount", tried(mount(none, "/run", none, writable, none)));
            pen.tried("remount_root", tried(mount(none, "/", none, MsFlags::MS_REMOUNT, none)));
            pen.tried("umount", tried(umount2("/run", MntFlags::MNT_DETACH)));
            pen.tried("chroot", tried(nix::unistd::chroot("/etc")));
            pen.tried("pivot_root", tried(nix::unistd::pivot_root("/etc", "/etc")));
            pen.tried("unshare", tried(unshare(CloneFlags::CLONE_NEWNS)));
            pen.tried("capset", regain_capabilities());
            pen.tried("setuid", tried(nix::unistd::setuid(nix::unistd::Uid::from_raw(12345))));
        },
        |_, report| {
            for name in [
                "tmpfs",
                "remount",
                "remount_root",
                "umount",
                "chroot",
                "pivot_root",
                "unshare",
                "capset",
                "setuid",
            ] {
                report.refused(name, &[Errno::EPERM, Errno::EINVAL]);
            }
        },
    );
}

/// A folder that a caller has left open would be a way out.
#[test]
fn what_was_left_open_is_closed() {
    need!();
    let dir = Dir::new();
    let host = host(&dir);
    let folder: OwnedFd = File::open("/").expect("the root").into();
    let ours: OwnedFd = File::open("/").expect("the root").into();
    leave_open(&folder);
    let (left, kept) = (folder.as_raw_fd(), ours.as_raw_fd());
    let report = walled(&host, Who::User, false, None, |pen| {
        pen.say("left", is_open(left));
        pen.say("kept", is_open(kept));
        pen.say("stderr", is_open(2));
    });
    report.is("enter", "done");
    report.is("left", "false");
    report.is("kept", "true");
    report.is("stderr", "true");
}

/// The other user namespace, of the guest, cannot be entered.
#[test]
fn the_guest_is_not_entered() {
    need!();
    let dir = Dir::new();
    let host = host(&dir);
    let (_holder, userns) = guest(&host);
    let report = walled(&host, Who::User, false, None, |pen| {
        let joined = setns(&userns, CloneFlags::CLONE_NEWUSER);
        pen.tried("join", joined.map_err(std::io::Error::from));
    });
    report.is("enter", "done");
    report.refused("join", &[Errno::EPERM]);
}

/// Where no user namespace can be made and there is none to join, that is said, with what can be done about it.
#[test]
fn what_cannot_be_had_is_an_error() {
    need!();
    let dir = Dir::new();
    let host = host(&dir);
    let report = walled(&host, Who::Guest, false, None, |_| ());
    let line = report.get("enter");
    assert!(line.starts_with("sandbox: cannot unshare new mount namespace: "), "{line}");
    assert!(line.contains("--no-sandbox"), "{line}");
}
