//! How `attach` begins and ends, and what it refuses.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::harness::cmd::{Cmd, Done, PATIENCE};
use crate::harness::ns::mount;
use crate::harness::stream::{self, pair};
use crate::harness::sys::Step;
use crate::harness::{Bed, Family, Guest, USER, With, eventually, need, not_slirp, pipe};

fn has_tap(guest: &Guest) -> bool {
    guest.ns.cmd("ip link show dev tap0").run().success()
}

/// `attach` to a guest, expected to fail.
fn attach(bed: &Bed, guest: &Guest) -> Cmd {
    bed.ringtap(&format!("attach {}", guest.holder.pid()))
}

#[test]
fn ready_means_ready() {
    need!();
    let (bed, guest, _proc) = Bed::up(&With::mtu(9000));
    // No wait, no second try.
    for family in Family::BOTH {
        let (inside, outside) = pair(&guest, &bed.remote, family.remote());
        assert_eq!(inside.local_addr().expect("an address").ip(), guest.addr(family));
        assert_eq!(outside.peer_addr().expect("an address").ip(), family.host());
    }
    let link = guest.ns.cmd("ip -o link show dev tap0").ok();
    assert!(link.contains(" mtu 9000 ") && link.contains("LOWER_UP"), "{link}");
    let v4 = guest.ns.cmd("ip -4 -o addr show dev tap0").ok();
    assert!(v4.contains("inet 10.0.2.100/24 brd 10.0.2.255"), "{v4}");
    let lo = guest.ns.cmd("ip -o link show dev lo").ok();
    assert!(lo.contains("LOOPBACK,UP"), "{lo}");
    let route = guest.ns.cmd("ip route show default").ok();
    assert!(route.starts_with("default via 10.0.2.2 dev tap0"), "{route}");
}

#[test]
fn exit_fd_ends_it() {
    need!();
    let bed = Bed::new();
    let guest = bed.guest();
    let (theirs, ours) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    let (mut ready, ready_fd) = pipe();
    let (exit, ready_number) = (theirs.as_raw_fd(), ready_fd.as_raw_fd());
    let line = if crate::harness::against_slirp() {
        format!("-c -e {exit} -r {ready_number} {} tap0", guest.holder.pid())
    } else {
        format!("attach --exit-fd {exit} --ready-fd {ready_number} {}", guest.holder.pid())
    };
    let mut proc = bed.ringtap(&line).keep(&theirs).keep(&ready_fd).start();
    drop((theirs, ready_fd));
    ready.expect_byte(&mut proc);
    // A byte is not the end.
    let mut ours = fs::File::from(ours);
    ours.write_all(b"x").expect("write");
    let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
    stream::send_all(&inside, 1, 1000);
    stream::expect_all(&outside, 1, 1000);
    assert!(proc.alive());
    drop(ours);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert!(!has_tap(&guest));
}

#[test]
fn sigterm_ends_it_at_once() {
    need!();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (bed, guest, proc) = Bed::up(&With::defaults());
        let (_inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
        proc.signal(signal);
        let done = proc.wait(PATIENCE);
        assert!(done.code() == Some(0) || done.signal() == Some(signal as i32), "{done:?}");
        assert!(!has_tap(&guest));
        // And the server is not left waiting.
        use std::io::Read;
        let mut outside = &outside;
        match outside.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn it_ends_with_the_process() {
    need!();
    not_slirp!("stays for ever");
    let (_bed, guest, proc) = Bed::up(&With::defaults());
    guest.holder.signal(Signal::SIGKILL);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
}

/// A namespace that is kept by a path, as `ip netns` does.
fn keep(bed: &Bed, guest: &Guest) -> std::path::PathBuf {
    let path = bed.dir.write("kept", "");
    let from = format!("/proc/{}/ns/net", guest.holder.pid());
    bed.host.cmd("mount --bind").arg(from).arg(&path).ok();
    path
}

#[test]
fn it_ends_with_the_path() {
    need!();
    not_slirp!("stays for ever");
    let bed = Bed::new();
    let guest = bed.guest();
    let path = keep(&bed, &guest);
    let pid = guest.holder.pid();
    let (mut ready, theirs) = pipe();
    let fd = theirs.as_raw_fd();
    let line = format!("attach --ready-fd {fd} --userns /proc/{pid}/ns/user {}", path.display());
    let mut proc = bed.ringtap(&line).keep(&theirs).start();
    drop(theirs);
    ready.expect_byte(&mut proc);
    let (inside, outside) = pair(&guest, &bed.remote, Family::V6.remote());
    stream::send_all(&inside, 1, 1000);
    stream::expect_all(&outside, 1, 1000);
    bed.host.cmd("umount").arg(&path).ok();
    bed.host.cmd("rm").arg(&path).ok();
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert!(!has_tap(&guest));
}

#[test]
fn pid_file() {
    need!();
    not_slirp!("has none");
    let bed = Bed::new();
    let guest = bed.guest();
    let file = bed.dir.path("pid");
    let proc =
        bed.attach(&guest, &With::defaults().more(&format!("--pid-file {}", file.display())));
    let pid = fs::read_to_string(&file).expect("the pid file");
    assert_eq!(pid.trim(), proc.pid().to_string());
    proc.signal(Signal::SIGTERM);
    proc.wait(PATIENCE);
    assert!(!file.exists());
}

/// Two readers of one TAP would split the traffic between them without a word.
#[test]
fn a_tap_in_use_is_refused() {
    need!();
    not_slirp!("is refused by the kernel only");
    let (bed, guest, mut proc) = Bed::up(&With::defaults());
    attach(&bed, &guest).run().refused_with(&["tap0", "another process"]);
    // The first one does not notice.
    assert!(proc.alive());
    let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
    stream::send_all(&inside, 1, 10_000_000 / 8);
    stream::expect_all(&outside, 1, 10_000_000 / 8);
}

/// RootlessKit makes the TAP itself: single-queue, persistent, up. It stays, with its offloads off
/// for whoever comes next.
#[test]
fn a_tap_that_someone_else_made() {
    need!("ethtool");
    not_slirp!("leaves nothing to switch off");
    let bed = Bed::new();
    let guest = bed.guest();
    guest.ns.ip("tuntap add name tap0 mode tap\nlink set tap0 up\n");
    let proc = bed.attach(&guest, &With::mtu(65520));
    for family in Family::BOTH {
        let (inside, outside) = pair(&guest, &bed.remote, family.remote());
        stream::send_all(&inside, 1, 1_000_000);
        stream::expect_all(&outside, 1, 1_000_000);
    }
    let offloads = || guest.ns.cmd("ethtool -k tap0").ok();
    assert!(offloads().contains("tcp-segmentation-offload: on"), "{}", offloads());
    proc.signal(Signal::SIGTERM);
    proc.wait(PATIENCE);
    assert!(has_tap(&guest));
    let after = offloads();
    assert!(after.contains("tcp-segmentation-offload: off"), "{after}");
    assert!(after.contains("tx-checksumming: off"), "{after}");
}

#[test]
fn no_tun_device() {
    need!();
    not_slirp!("has its own words");
    let bed = Bed::with(|dir| {
        let empty = dir.make("empty");
        mount::bind(&empty, Path::new("/dev/net"));
    });
    let guest = bed.guest();
    attach(&bed, &guest).run().refused_with(&["/dev/net/tun"]);
    assert!(!has_tap(&guest));
}

#[test]
fn no_io_uring() {
    need!();
    not_slirp!("needs none");
    let bed = Bed::new();
    let guest = bed.guest();
    attach(&bed, &guest).step(Step::NoIoUring).run().refused_with(&["io_uring"]);
    assert!(!has_tap(&guest));
    bed.ringtap("run true").step(Step::NoIoUring).run().refused_with(&["io_uring"]);
}

#[test]
fn a_namespace_of_somebody_else() {
    need!();
    not_slirp!("has its own words");
    let bed = Bed::new();
    let guest = bed.guest();
    let program = crate::harness::ringtap();
    let pid = guest.holder.pid();
    let line = Cmd::of(program).args(&format!("attach {pid}"));
    let done = bed.host.enter_as(USER + 1, line).run();
    done.refused_with(&[&format!("/proc/{pid}/ns/"), "ermission denied"]);
    assert!(!has_tap(&guest));
}

/// One line each, with what is wrong and where.
#[test]
fn what_cannot_be_joined() {
    need!();
    not_slirp!("has its own words");
    let bed = Bed::new();
    let refused = |args: &str, words: &[&str]| {
        let done: Done = bed.ringtap(args).run();
        done.refused_with(words);
    };
    refused("attach 4194303", &["4194303"]);
    refused("attach /nonexistent/ns", &["/nonexistent/ns"]);
    let file = bed.dir.write("file", "not a namespace");
    refused(&format!("attach {}", file.display()), &["file"]);
    refused("attach --mtu 70000 1", &["--mtu", "70000", "65521"]);
    refused("attach --cidr 10.0.2.100/24 1", &["--cidr", "10.0.2.100/24"]);
    refused("attach", &["PID"]);
    refused("frobnicate", &["frobnicate"]);
    let guest = bed.guest();
    let pid = guest.holder.pid();
    refused(&format!("attach --ready-fd 99 {pid}"), &["--ready-fd", "99"]);
    refused(&format!("attach --exit-fd 99 {pid}"), &["--exit-fd", "99"]);
    refused(&format!("attach --userns /nonexistent {pid}"), &["--userns", "/nonexistent"]);
    refused(&format!("attach --pid-file /nonexistent/x {pid}"), &["--pid-file", "/nonexistent/x"]);
    assert!(!has_tap(&guest));
}

/// A guest that deletes its TAP has no use for the program.
#[test]
fn it_ends_when_the_tap_is_deleted() {
    need!();
    not_slirp!("loops");
    let (_bed, guest, proc) = Bed::up(&With::defaults());
    guest.ns.ip("link del tap0\n");
    let done = proc.wait(PATIENCE);
    assert!(!done.stderr.contains("panicked"), "{done:?}");
}

/// A guest may take its link down and up again; what it then needs is its own affair.
#[test]
fn the_link_goes_down_and_up() {
    need!();
    let (bed, guest, mut proc) = Bed::up(&With::defaults());
    guest.ns.ip("link set tap0 down\nlink set tap0 up\nroute add default via 10.0.2.2\n");
    let listener = bed.remote.listen(Family::V4.remote());
    let to = listener.local_addr().expect("an address");
    eventually("the network works again", || guest.ns.connect(to).is_ok());
    assert!(proc.alive());
}
