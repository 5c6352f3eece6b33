//! Several workers on the queues of one TAP.

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use ringtap::limits::DESCRIPTORS_OWN;

use crate::harness::cmd::{Cmd, PATIENCE, Proc};
use crate::harness::stream::{self, pair};
use crate::harness::sys::Step;
use crate::harness::{Bed, Family, Guest, With, eventually, need, not_slirp, pipe};

/// The kernel forgets where a flow's frames are wanted 3 s after our last write.
const FORGOTTEN: Duration = Duration::from_millis(3600);

fn workers(n: usize) -> With {
    workers_and(n, "")
}

fn workers_and(n: usize, more: &str) -> With {
    With::defaults().more(&format!("--workers {n} {more}"))
}

/// The folders of the program's threads (proc(5)).
fn tasks(proc: &Proc) -> impl Iterator<Item = PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proc.pid())).expect("its threads");
    tasks.flatten().map(|task| task.path())
}

/// Threads of the program that forward.
fn threads(proc: &Proc) -> usize {
    let comm = |task: PathBuf| std::fs::read_to_string(task.join("comm"));
    let names = tasks(proc).filter_map(|task| comm(task).ok());
    names.filter(|name| name.starts_with("worker-")).count()
}

/// Nanoseconds that each forwarding thread has run (proc(5): schedstat).
fn ran(proc: &Proc) -> Vec<u64> {
    let mut all: Vec<(String, u64)> = tasks(proc)
        .filter_map(|task| {
            let read = |name| std::fs::read_to_string(task.join(name)).ok();
            let comm = read("comm").filter(|comm| comm.starts_with("worker-"))?;
            let ran = read("schedstat")?.split_whitespace().next()?.parse().ok()?;
            Some((comm, ran))
        })
        .collect();
    all.sort();
    all.into_iter().map(|(_, ran)| ran).collect()
}

/// Has its threads run before those of others, however many want to.
fn run_first(proc: &Proc) {
    let ids = tasks(proc).filter_map(|task| Some(task.file_name()?.to_owned()));
    let status = Command::new("renice").args(["-n", "-20", "-p"]).args(ids).output();
    assert!(status.is_ok_and(|output| output.status.success()), "renice");
}

/// The number before `what` in the counters that are logged in the end.
fn number(said: &str, what: &str) -> u64 {
    let end = said.find(what).unwrap_or_else(|| panic!("no {what:?}: {said}"));
    let digits = said[..end].rsplit(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no number of {what:?}: {said}"))
}

/// Queues of the guest's TAP that have a holder.
fn queues(guest: &Guest) -> usize {
    let shown = guest.ns.cmd("ethtool -l tap0").ok();
    let held = shown.lines().rev().find_map(|line| line.strip_prefix("Combined:"));
    held.and_then(|n| n.trim().parse().ok()).unwrap_or_else(|| panic!("no count in {shown}"))
}

#[test]
fn a_queue_for_each_worker() {
    need!("ethtool");
    not_slirp!("has one thread");
    for n in [1, 2, 8] {
        let (bed, guest, proc) = Bed::up(&workers(n));
        assert_eq!((threads(&proc), queues(&guest)), (n, n));
        let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
        stream::send_all(&inside, 1, 1_000_000);
        stream::expect_all(&outside, 1, 1_000_000);
    }
}

/// Each stream is silent for so long that its frames come by their hash's queue again, whichever that is.
#[test]
fn streams_that_were_forgotten_go_on() {
    need!();
    not_slirp!("has one thread");
    let (bed, guest, _proc) = Bed::up(&workers(2));
    let pairs: Vec<_> =
        (0..8).map(|i| pair(&guest, &bed.remote, Family::BOTH[i % 2].remote())).collect();
    for round in 0..3 {
        let seeds = |i: usize| (100 * round + i as u64, 100 * round + 50 + i as u64);
        std::thread::scope(|scope| {
            for (i, (inside, outside)) in pairs.iter().enumerate() {
                let (up, down) = seeds(i);
                scope.spawn(move || stream::send(inside, up, 8_000_000).expect("send up"));
                scope.spawn(move || stream::send(outside, down, 8_000_000).expect("send down"));
                scope.spawn(move || stream::expect(outside, up, 0, 8_000_000));
                scope.spawn(move || stream::expect(inside, down, 0, 8_000_000));
            }
        });
        std::thread::sleep(FORGOTTEN);
    }
    for (inside, outside) in &pairs {
        stream::send_all(inside, 7, 1);
        stream::expect_all(outside, 7, 1);
    }
}

/// Two streams that one worker has, while the other has none that carries anything.
#[test]
fn a_stream_goes_to_the_worker_that_has_none() {
    need!("renice");
    not_slirp!("has one thread");
    const BYTES: u64 = 1 << 30;
    for up in [true, false] {
        let (bed, guest, proc) = Bed::up(&workers_and(2, "-vv"));
        run_first(&proc);
        // Silent ones on both.
        let pairs: Vec<_> =
            (0..8).map(|i| pair(&guest, &bed.remote, Family::BOTH[i % 2].remote())).collect();
        let mut of_first = Vec::new();
        let mut of_second = Vec::new();
        for (i, (inside, outside)) in pairs.iter().enumerate() {
            let before = ran(&proc);
            // Too little to be one that carries much.
            std::thread::scope(|scope| {
                scope.spawn(|| stream::send(inside, i as u64, 4_000_000).expect("send"));
                stream::expect(outside, i as u64, 0, 4_000_000);
            });
            let after = ran(&proc);
            let first = after[0] - before[0] > after[1] - before[1];
            if first { &mut of_first } else { &mut of_second }.push(i);
        }
        let two = if of_first.len() >= of_second.len() { of_first } else { of_second };
        let streams = [&pairs[two[0]], &pairs[two[1]]];
        // A try comes to nothing where others have the processors for long, and the next one is then later.
        let mut rounds = 0;
        let mut apart = false;
        while !apart {
            rounds += 1;
            assert!(rounds <= 20, "up: {up}: both are with one worker still");
            let before = ran(&proc);
            std::thread::scope(|scope| {
                for (seed, (inside, outside)) in (100..).zip(streams) {
                    let (from, to) = if up { (inside, outside) } else { (outside, inside) };
                    scope.spawn(move || stream::send(from, seed, BYTES).expect("send"));
                    scope.spawn(move || stream::expect(to, seed, 0, BYTES));
                }
            });
            let after = ran(&proc);
            let each = [after[0] - before[0], after[1] - before[1]];
            apart = each[0].min(each[1]) > each[0].max(each[1]) / 8;
        }
        // They go on afterwards, both ways, and those that have stayed.
        for (i, (inside, outside)) in pairs.iter().enumerate() {
            stream::send_all(inside, 7, 100_000 + i as u64);
            stream::expect_all(outside, 7, 100_000 + i as u64);
            stream::send_all(outside, 8, 100_000 + i as u64);
            stream::expect_all(inside, 8, 100_000 + i as u64);
        }
        drop(pairs);
        proc.signal(Signal::SIGTERM);
        let said = proc.wait(PATIENCE).stderr;
        let moved = number(&said, " connections moved");
        assert!((1..=3 * rounds).contains(&moved), "up: {up}, {rounds} rounds: {said}");
    }
}

/// The hash takes about half of the peers to the queue of a worker that has not the mapping.
#[test]
fn one_port_and_two_hundred_peers() {
    need!();
    not_slirp!("has one thread");
    let (bed, guest, _proc) = Bed::up(&workers(2));
    for family in Family::BOTH {
        let peers: Vec<UdpSocket> = (0..200).map(|_| bed.remote.udp(family.remote())).collect();
        let client = guest.ns.udp(guest.addr(family));
        let mut seen = HashSet::new();
        // The second time the replies have told the kernel where we want the next.
        for round in 0..2u8 {
            for (i, peer) in peers.iter().enumerate() {
                let to = peer.local_addr().expect("an address");
                let bytes = [round, i as u8, 3];
                client.send_to(&bytes, to).expect("send");
                let mut buf = [0; 16];
                let (len, from) = peer.recv_from(&mut buf).expect("up");
                assert_eq!(buf[..len], bytes, "{family:?}, peer {i}");
                seen.insert(from);
                peer.send_to(&buf[..len], from).expect("reply");
                let (len, from) = client.recv_from(&mut buf).expect("down");
                assert_eq!((&buf[..len], from), (&bytes[..], to), "{family:?}, peer {i}");
            }
        }
        assert_eq!(seen.len(), 1, "one mapping: {seen:?}");
    }
}

/// In pieces, by the queue of the addresses' hash; the mapping may be with another worker.
#[test]
fn fragments_reach_the_mapping() {
    need!();
    not_slirp!("has one thread");
    let (bed, guest, _proc) = Bed::up(&workers(2));
    for family in Family::BOTH {
        let peer = bed.remote.udp(family.remote());
        let to = peer.local_addr().expect("an address");
        let mut buf = vec![0; 10_000];
        let mut seen = HashSet::new();
        // A port for each try, and none twice: some are with each worker.
        let clients: Vec<_> = (0..16).map(|_| guest.ns.udp(guest.addr(family))).collect();
        for (i, client) in (0u8..).zip(&clients) {
            let mut from = HashSet::new();
            for len in [10, 5000, 9000] {
                client.send_to(&vec![i; len], to).expect("send");
                let (got, who) = peer.recv_from(&mut buf).expect("up");
                assert!(buf[..got] == vec![i; len], "{family:?}: {got} of {len} bytes");
                from.insert(who);
            }
            assert_eq!(from.len(), 1, "{family:?}: one mapping");
            seen.extend(from);
        }
        assert_eq!(seen.len(), 16);
    }
}

/// RootlessKit makes it so.
#[test]
fn a_tap_with_one_queue_is_read_by_one_worker_for_all() {
    need!("ethtool");
    not_slirp!("has one thread");
    let bed = Bed::new();
    let guest = bed.guest();
    guest.ns.ip("tuntap add name tap0 mode tap\nlink set tap0 up\n");
    // Among ports that follow each other are some for each of two workers, were there two to hear the guest.
    let mut proc = bed.attach(&guest, &workers_and(2, "-p 4000-4003/udp --log-level debug"));
    proc.wait_for("TAP tap0 was made with one queue");
    assert_eq!((threads(&proc), queues(&guest)), (2, 1));
    let families = Family::BOTH.into_iter().cycle().take(8);
    let pairs: Vec<_> = families.map(|f| pair(&guest, &bed.remote, f.remote())).collect();
    for (inside, outside) in &pairs {
        stream::send_all(inside, 1, 100_000);
        stream::expect_all(outside, 1, 100_000);
        stream::send_all(outside, 2, 100_000);
        stream::expect_all(inside, 2, 100_000);
    }
    let mut buf = [0; 100];
    for port in 4000..4004 {
        let server = guest.ns.udp_at(SocketAddr::new(guest.addr(Family::V4), port));
        let peer = bed.remote.udp(Family::V4.remote());
        for _ in 0..3 {
            peer.send_to(b"ask", SocketAddr::new(Family::V4.host(), port)).expect("send");
            let (n, from) = server.recv_from(&mut buf).expect("by the port");
            assert_eq!(&buf[..n], b"ask");
            server.send_to(b"answer", from).expect("send");
            assert_eq!(peer.recv(&mut buf).expect("the answer"), 6);
        }
    }
    proc.signal(Signal::SIGTERM);
    let done = proc.wait(PATIENCE);
    assert!(done.stderr.contains("TCP: 800000 bytes to the host, 800000 to the guest"), "{done:?}");
    assert!(number(&done.stderr, " frames handed over") > 8, "{done:?}");
}

#[test]
fn a_tap_with_queues_is_shared_with_nobody() {
    need!("ethtool");
    not_slirp!("has one thread");
    let bed = Bed::new();
    let guest = bed.guest();
    guest.ns.ip("tuntap add name tap0 mode tap multi_queue\nlink set tap0 up\n");
    let proc = bed.attach(&guest, &workers(2));
    assert_eq!((threads(&proc), queues(&guest)), (2, 2));
    let second = bed.ringtap(&format!("attach --workers 3 {}", guest.holder.pid())).run();
    second.refused_with(&["tap0", "in use by another process"]);
    assert_eq!(queues(&guest), 2);
    let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
    stream::send_all(&inside, 1, 1_000_000);
    stream::expect_all(&outside, 1, 1_000_000);
}

#[test]
fn counters_of_all_workers_are_summed_in_the_end() {
    need!();
    not_slirp!("has one thread");
    let (bed, guest, proc) = Bed::up(&workers_and(2, "--log-level debug"));
    let pairs: Vec<_> = (0..6).map(|_| pair(&guest, &bed.remote, Family::V4.remote())).collect();
    for (inside, outside) in &pairs {
        stream::send_all(inside, 1, 50_000);
        stream::expect_all(outside, 1, 50_000);
        stream::send_all(outside, 2, 1_000);
        stream::expect_all(inside, 2, 1_000);
    }
    proc.signal(Signal::SIGTERM);
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(0), "{done:?}");
    let line = done.stderr.lines().find(|line| line.contains("by 2 of 2 workers: "));
    let line = line.unwrap_or_else(|| panic!("no sum in {}", done.stderr));
    assert!(line.contains("TCP: 300000 bytes to the host, 6000 to the guest"), "{line}");
}

/// Each flow holds a descriptor, and the limit is that of all workers.
#[test]
fn workers_share_the_limit_on_descriptors() {
    need!();
    not_slirp!("has one thread");
    let bed = Bed::new();
    let guest = bed.guest();
    let limit = 120;
    let may = limit as usize - DESCRIPTORS_OWN as usize;
    let (mut ready, theirs) = pipe();
    let line =
        format!("attach --ready-fd {} --workers 2 {}", theirs.as_raw_fd(), guest.holder.pid());
    let mut proc = bed.ringtap(&line).step(Step::Descriptors(limit)).keep(&theirs).start();
    drop(theirs);
    ready.expect_byte(&mut proc);
    // Sockets: control may still open a watch or two.
    let held = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", proc.pid())).expect("its descriptors");
        let file = |fd: std::fs::DirEntry| std::fs::read_link(fd.path()).ok();
        let files = fds.flatten().filter_map(file);
        files.filter(|file| file.to_string_lossy().starts_with("socket:")).count()
    };
    let before = held();
    let peer = bed.remote.udp(Family::V4.remote());
    let to = peer.local_addr().expect("an address");
    // Far more than there may be, by both queues.
    let clients: Vec<_> = (0..500).map(|_| guest.ns.udp(guest.addr(Family::V4))).collect();
    let mut most = 0;
    for client in &clients {
        client.send_to(b"x", to).expect("send");
        most = most.max(held());
    }
    // An eighth of the half that is common is left to connections.
    let mappings = may - may / 2 / 8;
    let heard = || peer.recv_from(&mut [0; 8]).is_ok();
    assert_eq!((0..mappings).filter(|_| heard()).count(), mappings, "as many as there may be");
    most = most.max(held());
    let listener = bed.remote.listen(Family::V4.remote());
    let at = listener.local_addr().expect("an address");
    assert!(guest.ns.connect(at).is_ok(), "a connection beside them");
    assert!(most > before && most <= before + may, "{before} sockets, then {most}");
    // None of them was used lately: they make room.
    eventually("a new conversation", || {
        let late = guest.ns.udp(guest.addr(Family::V4));
        late.send_to(b"y", to).expect("send");
        let mut buf = [0; 8];
        peer.set_nonblocking(true).expect("non-blocking");
        std::iter::from_fn(|| peer.recv_from(&mut buf).ok().map(|_| buf[0])).any(|b| b == b'y')
    });
}

#[test]
fn a_worker_that_ends_takes_the_program_along() {
    need!();
    not_slirp!("has one thread");
    let (_bed, guest, proc) = Bed::up(&workers(2));
    guest.ns.ip("link del tap0");
    let done = proc.wait(PATIENCE);
    assert_eq!(done.code(), Some(1));
    let said = done.stderr.lines().last().unwrap_or_default().to_owned();
    assert!(said.starts_with("ringtap: forwarding has ended: worker "), "{said}");
    assert!(said.ends_with(" of 2: the TAP interface was deleted"), "{said}");
}

/// One of two workers can no longer enter the kernel: strace(1) makes its system call fail, in the running program and
/// while the other one is well. The program ends, says why, and leaves nothing.
///
/// (A worker that panics is not made to do so here: no input does. In release builds a panic aborts the process, with
/// its message; elsewhere `LastWord` of src/worker/handle.rs says what happened, by the same notice as here,
/// and its own test makes a thread panic.)
#[test]
fn a_worker_that_fails_takes_the_program_along() {
    need!("strace", "ethtool");
    not_slirp!("has one thread");
    for victim in ["worker-0", "worker-1"] {
        let bed = Bed::new();
        let guest = bed.guest();
        let file = bed.dir.path("pid");
        // strace makes a call fail by turning it into one that does not exist, which the filter would kill.
        let options = format!("--no-seccomp --pid-file {}", file.display());
        let proc = bed.attach(&guest, &workers_and(2, &options));
        let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
        stream::send_all(&inside, 1, 100_000);
        stream::expect_all(&outside, 1, 100_000);
        assert!(file.exists() && queues(&guest) == 2);
        let named = |path: &std::path::Path| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == victim)
        };
        let task = tasks(&proc).find(|path| named(path));
        let task = task.expect("the worker's thread");
        let tid = task.file_name().expect("a number").to_string_lossy().into_owned();
        let line = format!(
            "strace -qq -e trace=io_uring_enter -e inject=io_uring_enter:error=EBADF -p {tid}"
        );
        let tracer = Cmd::new(&line).start();
        // Until it is traced, it works; then its next turn is its last.
        // A port for each try: some come by each queue.
        eventually("its end", || {
            let client = guest.ns.udp(Family::V4.any());
            let _ = client.send_to(b"wake", (Family::V4.remote(), 9));
            !std::path::Path::new(&format!("/proc/{}/exe", proc.pid())).exists()
        });
        let done = proc.wait(PATIENCE);
        assert_eq!(done.code(), Some(1), "{done:?}");
        let said = done.stderr.lines().last().unwrap_or_default().to_owned();
        let number = victim.trim_start_matches("worker-");
        let start = format!("ringtap: forwarding has ended: worker {number} of 2: ");
        assert!(said.starts_with(&start) && said.contains("ad file descriptor"), "{said}");
        tracer.wait(PATIENCE);
        // No file, no TAP, and whoever talked to the guest is told.
        assert!(!file.exists());
        // The kernel lets go of the TAP when it has torn down the ring, which nobody could empty: a moment later.
        eventually("the TAP is gone", || !guest.ns.cmd("ip link show dev tap0").run().success());
        use std::io::Read;
        let mut outside = &outside;
        match outside.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Packets cost no system call of their own: a turn has one, for all that came and all that goes, and none sets a timer.
#[test]
fn a_turn_is_one_system_call() {
    need!("strace");
    not_slirp!("has another loop");
    let (bed, guest, proc) = Bed::up(&workers_and(2, "-vv"));
    let (inside, outside) = pair(&guest, &bed.remote, Family::V4.remote());
    let client = guest.ns.udp(Family::V4.any());
    let server = bed.remote.udp(Family::V4.remote());
    client.connect(server.local_addr().expect("an address")).expect("connect");
    let exchange = |n: usize| {
        for _ in 0..n {
            client.send(b"question").expect("send");
            let (len, from) = server.recv_from(&mut [0; 16]).expect("up");
            server.send_to(&[1; 16][..len], from).expect("reply");
            client.recv(&mut [0; 16]).expect("down");
        }
    };
    // The mapping, and the buffers of both directions.
    exchange(10);
    for (from, to) in [(&inside, &outside), (&outside, &inside)] {
        stream::send(from, 1, 100_000).expect("send");
        stream::expect(to, 1, 0, 100_000);
    }
    let calls = bed.dir.path("calls");
    let tracer = Cmd::new(&format!("strace -f -qq -o {} -p {}", calls.display(), proc.pid()));
    let tracer = tracer.start();
    eventually("all are traced", || {
        tasks(&proc).all(|task| {
            let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        })
    });
    std::thread::scope(|scope| {
        for (from, to) in [(&inside, &outside), (&outside, &inside)] {
            scope.spawn(|| stream::send(from, 2, 50_000_000).expect("send"));
            scope.spawn(|| stream::expect(to, 2, 0, 50_000_000));
        }
    });
    exchange(2000);
    tracer.signal(Signal::SIGINT);
    tracer.wait(PATIENCE);
    proc.signal(Signal::SIGTERM);
    let said = proc.wait(PATIENCE).stderr;
    let calls = std::fs::read_to_string(&calls).expect("the calls");
    let calls: Vec<&str> = calls
        .lines()
        .filter_map(|line| Some(line.split_whitespace().nth(1)?.split_once('(')?.0))
        .collect();
    let (turns, others): (Vec<&str>, Vec<&str>) =
        calls.into_iter().partition(|&call| call == "io_uring_enter");
    let turns = turns.len() as u64;
    assert!(turns > 1000 && turns <= number(&said, " turns"), "{turns}: {said}");
    // A pause lets others run, or gives memory back.
    let others: Vec<&str> =
        others.into_iter().filter(|call| !["sched_yield", "madvise"].contains(call)).collect();
    let packets = number(&said, " frames from the guest") + number(&said, " to it");
    assert!(packets > 4000 && others.len() < 100, "{packets} packets: {others:?}");
}
