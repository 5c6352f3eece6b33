//! The API socket and port forwards as a caller asks for them: every reply, clients that misbehave, and the socket's file.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::harness::cmd::{Cmd, PATIENCE, Proc};
use crate::harness::sys::Step;
use crate::harness::{Bed, Family, Guest, USER, against_slirp, need, not_slirp, pipe, ringtap};

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("connect to the API socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    stream
}

/// Everything that comes until the other side closes.
#[track_caller]
fn rest(mut stream: &UnixStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        // It closes with something left to read where a request is too long.
        Err(e) if against_slirp() && e.kind() == ErrorKind::ConnectionReset => {}
        read => drop(read.expect("read the reply")),
    }
    String::from_utf8(bytes).expect("text")
}

/// One request as callers send it, and its reply.
#[track_caller]
fn ask(path: &Path, request: &str) -> String {
    let stream = connect(path);
    (&stream).write_all(request.as_bytes()).expect("send a request");
    // It may have answered and closed already.
    let _ = stream.shutdown(Shutdown::Write);
    rest(&stream)
}

fn add(port: u16) -> String {
    format!(
        r#"{{"execute":"add_hostfwd","arguments":{{"proto":"tcp","host_addr":"127.0.0.1","host_port":{port},"guest_port":80}}}}"#
    )
}

const LIST: &str = r#"{"execute":"list_hostfwd"}"#;

fn remove(id: u64) -> String {
    format!(r#"{{"execute":"remove_hostfwd","arguments":{{"id":{id}}}}}"#)
}

fn error(desc: &str) -> String {
    format!(r#"{{"error":{{"desc":"bad request: {desc}"}}}}"#)
}

/// Whether a reply is an error with these words of slirp4netns's.
fn is_error(reply: &str, desc: &str) -> bool {
    reply.starts_with(&format!(r#"{{"error":{{"desc":"bad request: {desc}""#))
}

/// The program under the name slirp4netns.
fn slirp(bed: &Bed, guest: &Guest, args: &str) -> Cmd {
    let program = if against_slirp() { "/usr/bin/slirp4netns".into() } else { ringtap() };
    let (program, pid) = (program.display(), guest.holder.pid());
    let script = format!("exec -a slirp4netns {program} -c {args} {pid} tap0");
    bed.host.enter_as(USER, Cmd::new("bash -c").arg(script))
}

/// Starts it with an API socket, and waits until it is ready.
fn start(bed: &Bed, guest: &Guest, path: &Path, more: &str) -> Proc {
    let (mut ready, theirs) = pipe();
    let args = format!("-a {} -r {} {more}", path.display(), theirs.as_raw_fd());
    let mut proc = slirp(bed, guest, &args).keep(&theirs).start();
    drop(theirs);
    ready.expect_byte(&mut proc);
    proc
}

fn up() -> (Bed, Guest, Proc, PathBuf) {
    let bed = Bed::new();
    let guest = bed.guest();
    let path = bed.dir.path("api");
    // As podman and RootlessKit: what the API needs, the filter lets through.
    let proc = start(&bed, &guest, &path, "--enable-seccomp");
    (bed, guest, proc, path)
}

#[test]
fn every_reply() {
    need!("bash");
    let (_bed, _guest, _proc, api) = up();
    let entry = r#"{"id":1,"proto":"tcp","host_addr":"127.0.0.1","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}"#;
    let listed = |entries: &str| match against_slirp() {
        true => format!(r#"{{"entries":[{entries}]}}"#),
        false => format!(r#"{{"return":{{"entries":[{entries}]}},"entries":[{entries}]}}"#),
    };
    assert_eq!(ask(&api, LIST), listed(""));
    assert_eq!(ask(&api, &add(8080)), r#"{"return":{"id":1}}"#);
    assert_eq!(ask(&api, LIST), listed(entry));
    // Twice the same.
    let failed = "add_hostfwd: slirp_add_hostfwd failed";
    let reply = ask(&api, &add(8080));
    assert!(is_error(&reply, failed), "{reply}");
    assert_eq!(ask(&api, &remove(7)), error("remove_hostfwd: bad arguments.id"));
    assert_eq!(ask(&api, &remove(1)), r#"{"return":{}}"#);
    assert_eq!(ask(&api, LIST), listed(""));
    assert_eq!(ask(&api, &remove(1)), error("remove_hostfwd: bad arguments.id"));
    // At once, and under a new number.
    assert_eq!(ask(&api, &add(8080)), r#"{"return":{"id":2}}"#);
    for (request, desc) in [
        ("hello", "cannot parse JSON"),
        ("[1]", "json_object() failed"),
        ("{}", "no execute found"),
        (r#"{"execute":"dance"}"#, "unknown execute"),
    ] {
        assert_eq!(ask(&api, request), error(desc), "{request}");
    }
    let large = format!(r#"{{"execute":"{}"}}"#, "x".repeat(5000));
    assert_eq!(ask(&api, &large), error("too large message"));
    for (arguments, name) in [
        (r#""proto":"sctp","host_port":1,"guest_port":1"#, "proto"),
        (r#""proto":"tcp","host_addr":"x","host_port":1,"guest_port":1"#, "host_addr"),
        (r#""proto":"tcp","host_port":0,"guest_port":1"#, "host_port"),
        (r#""proto":"tcp","host_port":9000,"guest_addr":"x","guest_port":1"#, "guest_addr"),
        (r#""proto":"tcp","host_port":9000"#, "guest_port"),
    ] {
        let request = format!(r#"{{"execute":"add_hostfwd","arguments":{{{arguments}}}}}"#);
        let reply = ask(&api, &request);
        let desc = format!("add_hostfwd: bad arguments.{name}");
        assert!(is_error(&reply, &desc), "{request}: {reply}");
    }
}

/// What slirp4netns crashes of, or takes.
#[test]
fn replies_where_slirp4netns_has_none() {
    need!("bash");
    not_slirp!("crashes");
    let (bed, _guest, mut proc, api) = up();
    let bad = |arguments: &str| {
        let request = format!(r#"{{"execute":"add_hostfwd","arguments":{arguments}}}"#);
        ask(&api, &request)
    };
    for (arguments, name) in [
        ("{}", "proto"),
        ("null", "proto"),
        (r#"{"proto":"tcp","host_port":65536,"guest_port":1}"#, "host_port"),
        (r#"{"proto":"tcp","host_port":9000,"guest_port":65536}"#, "guest_port"),
        (r#"{"proto":"tcp","host_port":9,"host_port_end":8,"guest_port":1}"#, "host_port_end"),
        // Without --enable-ipv6.
        (r#"{"proto":"tcp","host_addr":"::1","host_port":9000,"guest_port":1}"#, "host_addr"),
    ] {
        let reply = bad(arguments);
        assert!(is_error(&reply, &format!("add_hostfwd: bad arguments.{name}")), "{reply}");
        assert!(reply.contains(r#""cause":""#), "{reply}");
    }
    // The cause, for people, and in the log.
    let low = bad(r#"{"proto":"udp","host_port":53,"guest_port":53}"#);
    for text in [low, proc.stderr()] {
        assert!(
            text.contains("UDP port 53") && text.contains("ip_unprivileged_port_start"),
            "{text}"
        );
    }
    // A range is there as a whole or not at all.
    let taken = bed.host.listen_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 9005)));
    let range = r#"{"proto":"tcp","host_addr":"127.0.0.1","host_port":9000,"host_port_end":9009,"guest_port":80}"#;
    let reply = bad(range);
    assert!(reply.contains("TCP port 9005 of 127.0.0.1"), "{reply}");
    drop(bed.host.listen_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 9000))));
    drop(taken);
    assert_eq!(bad(range), r#"{"return":{"id":1}}"#);
    let listed = ask(&api, LIST);
    assert!(listed.contains(
        r#""host_port":9000,"guest_addr":"10.0.2.100","guest_port":80,"host_port_end":9009}"#
    ));
    assert!(proc.alive());
}

/// However a request is cut, and whoever else is there.
#[test]
fn many_clients_at_once() {
    need!("bash");
    not_slirp!("reads once, and one at a time");
    let (_bed, _guest, mut proc, api) = up();
    // One that never says anything, and one that goes in the middle of a word.
    let silent = connect(&api);
    (&connect(&api)).write_all(br#"{"exec"#).expect("half a request");
    let ports = 10_000..10_050u16;
    let clients: Vec<_> = ports.clone().map(|port| (connect(&api), add(port))).collect();
    let longest = clients.iter().map(|(_, request)| request.len()).max().unwrap_or(0);
    // Each gets a byte of each; nobody closes its side.
    for at in 0..longest {
        for (mut stream, request) in clients.iter().map(|(s, r)| (s, r)) {
            if let Some(byte) = request.as_bytes().get(at) {
                stream.write_all(&[*byte]).expect("a byte of a request");
            }
        }
    }
    let mut ids: Vec<u64> = clients
        .iter()
        .map(|(stream, _)| {
            let reply = rest(stream);
            let id = reply.strip_prefix(r#"{"return":{"id":"#).and_then(|r| r.strip_suffix("}}"));
            id.and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("{reply}"))
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=50).collect::<Vec<_>>());
    let listed = ask(&api, LIST);
    for port in ports {
        assert!(listed.contains(&format!(r#""host_port":{port},"#)), "{port}: {listed}");
    }
    // In the end the silent one is told, too.
    assert_eq!(rest(&silent), error("cannot parse JSON"));
    assert!(proc.alive());
}

/// Others wait no longer than the dead have time.
#[test]
fn clients_that_never_say_anything_end() {
    need!("bash");
    not_slirp!("waits for each for ever");
    let (_bed, _guest, mut proc, api) = up();
    let dead: Vec<_> = (0..200).map(|_| connect(&api)).collect();
    assert_eq!(ask(&api, &add(8080)), r#"{"return":{"id":1}}"#);
    assert!(proc.alive());
    drop(dead);
    // Nor is one that does not read its reply in the way.
    let deaf = connect(&api);
    (&deaf).write_all(LIST.as_bytes()).expect("send a request");
    assert_eq!(ask(&api, &remove(1)), r#"{"return":{}}"#);
}

#[test]
fn the_file_goes_with_the_program() {
    need!("bash");
    let (bed, guest, proc, api) = up();
    let is_socket = || fs::symlink_metadata(&api).is_ok_and(|m| m.file_type().is_socket());
    assert!(is_socket());
    // Killed, it leaves its file: the next one replaces it.
    proc.signal(Signal::SIGKILL);
    proc.wait(PATIENCE);
    assert!(is_socket());
    let proc = start(&bed, &guest, &api, "");
    assert_eq!(ask(&api, &add(8080)), r#"{"return":{"id":1}}"#);
    if against_slirp() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let second = bed.guest();
        let proc = start(&bed, &second, &bed.dir.path("other"), "");
        proc.signal(signal);
        assert_eq!(proc.wait(PATIENCE).signal(), Some(signal as i32));
        assert!(!bed.dir.path("other").exists(), "{signal}");
    }
    let (theirs, exit) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    let (mut ready, ready_fd) = pipe();
    let other = bed.dir.path("other");
    let args =
        format!("-a {} -e {} -r {}", other.display(), theirs.as_raw_fd(), ready_fd.as_raw_fd());
    let second = bed.guest();
    let mut ends = slirp(&bed, &second, &args).keep(&theirs).keep(&ready_fd).start();
    drop((theirs, ready_fd));
    ready.expect_byte(&mut ends);
    drop(exit);
    assert_eq!(ends.wait(PATIENCE).code(), Some(0));
    assert!(!other.exists());
    // With the guest.
    guest.holder.signal(Signal::SIGKILL);
    assert_eq!(proc.wait(PATIENCE).code(), Some(0));
    assert!(!api.exists());
}

/// A file that somebody has there is kept, and the start fails without a trace.
#[test]
fn a_file_in_the_way() {
    need!("bash");
    not_slirp!("deletes it");
    let bed = Bed::new();
    let guest = bed.guest();
    let api = bed.dir.write("api", "mine");
    let done = slirp(&bed, &guest, &format!("-a {}", api.display())).run();
    assert_eq!(done.code(), Some(1), "{done:?}");
    let line =
        format!("API socket {}: there is a file of this name and it is no socket", api.display());
    assert!(done.stderr.contains(&line), "{done:?}");
    assert_eq!(fs::read(&api).expect("the file"), b"mine");
    let native = |path: &Path| {
        let line = format!("attach --api {} {}", path.display(), guest.holder.pid());
        bed.ringtap(&line).run()
    };
    native(&api).refused_with(&["--api", "no socket"]);
    native(Path::new("/nonexistent/api")).refused_with(&["--api", "/nonexistent/api"]);
    // Another program's is its own.
    let other = bed.dir.path("other");
    let _theirs = UnixListener::bind(&other).expect("listen");
    native(&other).refused_with(&["another process has its socket there"]);
    assert!(other.exists());
    assert!(!guest.ns.cmd("ip link show dev tap0").run().success());
}

/// Nothing has begun: no ready byte, no TAP, no socket, no command.
#[test]
fn forwards_that_cannot_be() {
    need!();
    not_slirp!("has no such option");
    let bed = Bed::new();
    let guest = bed.guest();
    let api = bed.dir.path("api");
    let _taken = bed.host.listen_at(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8085)));
    for (option, words) in [
        ("-p 8080-8089", ["--publish", "TCP port 8085 of 0.0.0.0", "in use"]),
        (
            "-p 8080 -p 80:80",
            ["--publish", "TCP port 80 of", "net.ipv4.ip_unprivileged_port_start"],
        ),
        ("-p 192.0.2.77:8080:80", ["--publish", "192.0.2.77", "ip address"]),
        ("-p %nosuch0:8080:80", ["--publish", "nosuch0", "ip link"]),
        ("-p 8080:10.0.2.2:80", ["--publish", "10.0.2.2", "leave it out"]),
    ] {
        let (ready, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
        let fd = theirs.as_raw_fd();
        let (api, pid) = (api.display(), guest.holder.pid());
        let line = format!("attach --api {api} --ready-fd {fd} {option} {pid}");
        bed.ringtap(&line).keep(&theirs).run().refused_with(&words);
        drop(theirs);
        let mut bytes = Vec::new();
        fs::File::from(ready).read_to_end(&mut bytes).expect("read ready-fd");
        assert!(bytes.is_empty());
        assert!(!bed.dir.path("api").exists());
        assert!(!guest.ns.cmd("ip link show dev tap0").run().success());
        let done = bed.ringtap(&format!("run {option} echo begun")).run();
        done.refused_with(&words);
        assert_eq!(done.stdout, "");
    }
}

/// Thousands of ports from the start, and a limit that is too low for them named.
#[test]
fn ten_thousand_ports() {
    need!("bash");
    not_slirp!("has no such option");
    let limit = "ulimit -n 5000; exec \"$0\" \"$@\"";
    let bed = Bed::new();
    let run = |script: &str| {
        let cmd = Cmd::new("bash -c").arg(script).arg(ringtap());
        bed.host.enter_as(USER, cmd.args("run -p 20000-29999:10000 true"))
    };
    run(limit).run().refused_with(&["--publish", "10000 more ports", "limit is 5000", "ulimit"]);
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .expect("the limit on open files");
    // Half of what there may be is kept for conversations.
    if hard > 21_000 {
        assert_eq!(run("exec \"$0\" \"$@\"").run().code(), Some(0));
    }
}

/// Ports and conversations share the descriptors that there may be. A range that does not fit is refused in words, leaves
/// nothing, and fits when there is room again; conversations have their part all the same.
#[test]
fn more_ports_than_descriptors() {
    need!();
    not_slirp!("has no such client");
    let limit = 200;
    let bed = Bed::new();
    let guest = bed.guest();
    let api = bed.dir.path("api");
    let (mut ready, theirs) = pipe();
    let line = format!(
        "attach --ready-fd {} --workers 2 --api {} {}",
        theirs.as_raw_fd(),
        api.display(),
        guest.holder.pid()
    );
    let mut proc = bed.ringtap(&line).step(Step::Descriptors(limit)).keep(&theirs).start();
    drop(theirs);
    ready.expect_byte(&mut proc);
    let port = |args: &str| bed.ringtap(&format!("port --api {} {args}", api.display())).run();
    // Half of the 136 beside those that are kept.
    for kind in ["tcp", "udp"] {
        let first = port(&format!("add 20000-20059:20000/{kind}"));
        assert!(first.success(), "{first:?}");
        let words = ["9 more ports", "60 forwarded", "8 are left", "limit is 200"];
        port(&format!("add 21000-21008:21000/{kind}")).refused_with(&words);
        assert_eq!(port("list").stdout.lines().count(), 2);
        let second = port(&format!("add 21000-21007:21000/{kind}"));
        assert!(second.success(), "{second:?}");
        port("add 22000:22000/udp").refused_with(&["1 more port", "0 are left"]);
        // What the guest begins goes on.
        let listener = bed.remote.listen(Family::V4.remote());
        let to = listener.local_addr().expect("an address");
        let conversations: Vec<_> =
            (0..10).map(|_| guest.ns.connect(to).expect("connect")).collect();
        assert_eq!(conversations.len(), 10);
        for id in [first, second] {
            assert!(port(&format!("remove {}", id.stdout.trim())).success());
        }
    }
}

/// `ringtap port`: the client.
#[test]
fn the_client() {
    need!();
    not_slirp!("has none");
    let (bed, _guest, proc) = Bed::with_api("-p 127.0.0.1:7000:70");
    let port = |args: &str| bed.port(args).run();
    let ok = |args: &str| {
        let done = port(args);
        assert!(done.success() && done.stderr.is_empty(), "{done:?}");
        done.stdout
    };
    assert_eq!(ok("add 8080:80"), "2\n");
    assert_eq!(ok("add [::1%lo]:5000-5009:6000/udp"), "3\n");
    assert_eq!(
        ok("list"),
        "ID  PROTO  HOST                GUEST\n\
         1   tcp    127.0.0.1:7000      10.0.2.100:70\n\
         2   tcp    0.0.0.0:8080        10.0.2.100:80\n\
         3   udp    [::1%lo]:5000-5009  [fd00::100]:6000-6009\n"
    );
    assert_eq!(ok("remove 2"), "");
    port("remove 2").refused_with(&["port remove 2", "no such forward"]);
    port("add 80:80").refused_with(&["TCP port 80", "net.ipv4.ip_unprivileged_port_start"]);
    assert_eq!(ok("add 8080:80"), "4\n");
    let done = port("add 8080:0");
    done.refused_with(&["port add 8080:0", "1 to 65535"]);
    assert_eq!(done.code(), Some(2));
    proc.signal(Signal::SIGTERM);
    proc.wait(PATIENCE);
    let done = port("list");
    done.refused_with(&["--api", "No such file"]);
    assert_eq!(done.code(), Some(1));
}
