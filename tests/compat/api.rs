//! The API socket: requests, replies, errors, and what becomes of the socket.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::cmd::PATIENCE;
use crate::harness::{Bed, Family, USER, eventually};
use crate::program::{Program, Up, both, guest, left_at};

both! {
    add_list_remove,
    list_without_entries,
    defaults,
    defaults_with_another_network,
    ids_only_grow,
    not_a_request,
    too_long,
    bad_arguments,
    missing_protocol,
    ports_out_of_range,
    port_in_use,
    the_same_twice,
    unknown_ids,
    errors_with_a_cause,
    ipv6_addresses,
    no_half_close_needed,
    a_request_in_two_pieces,
    two_requests_in_one_connection,
    clients_that_say_nothing,
    many_clients,
    mode_of_the_socket,
    stale_socket,
    a_file_in_the_way,
    a_folder_that_is_not_there,
    a_long_path,
    an_empty_path,
}

/// A network with an API socket at `api` in the test's folder.
#[track_caller]
pub(crate) fn up(p: Program, options: &str) -> Up {
    p.up(&format!("-c -a @api {options}"))
}

/// A client whose waits end.
#[track_caller]
fn client(net: &Up) -> UnixStream {
    connect(&net.bed.dir.path("api"))
}

#[track_caller]
fn connect(path: &Path) -> UnixStream {
    let socket = UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
    socket
}

/// Everything that comes until the end. A connection that breaks with nothing said is "nothing".
fn reply(mut socket: &UnixStream) -> String {
    let mut text = String::new();
    match socket.read_to_string(&mut text) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(e) => panic!("after {text:?}: {e}"),
    }
    if text.is_empty() { "nothing".to_owned() } else { text }
}

/// The reply without the cause that ringtap adds to an error.
fn words(reply: &str) -> String {
    match serde_json::from_str::<Value>(reply) {
        Ok(mut value) if value["error"]["cause"].is_string() => {
            value["error"].as_object_mut().expect("an object").remove("cause");
            value.to_string()
        }
        _ => reply.to_owned(),
    }
}

/// One request as its clients send it: written, that direction closed, read to the end.
#[track_caller]
pub(crate) fn ask(net: &Up, request: impl AsRef<[u8]>) -> String {
    let mut socket = client(net);
    socket.write_all(request.as_ref()).expect("write");
    // It may have answered and closed by now.
    let _ = socket.shutdown(Shutdown::Write);
    words(&reply(&socket))
}

/// `add_hostfwd` with these arguments.
#[track_caller]
pub(crate) fn add(net: &Up, arguments: &Value) -> String {
    ask(net, json!({"execute": "add_hostfwd", "arguments": arguments}).to_string())
}

/// Removes a forward.
#[track_caller]
pub(crate) fn remove(net: &Up, id: u64) -> String {
    ask(net, json!({"execute": "remove_hostfwd", "arguments": {"id": id}}).to_string())
}

/// The entries of a listing, wherever they are.
#[track_caller]
fn entries(net: &Up) -> Value {
    let text = ask(net, r#"{"execute": "list_hostfwd"}"#);
    let listing: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let entries = listing.get("entries").or_else(|| listing["return"].get("entries"));
    entries.unwrap_or_else(|| panic!("no entries: {text}")).clone()
}

fn error(text: &str) -> String {
    json!({"error": {"desc": format!("bad request: {text}")}}).to_string()
}

fn add_list_remove(p: Program) {
    let net = up(p, "");
    let entry = json!({
        "id": 1, "proto": "tcp", "host_addr": "0.0.0.0", "host_port": 18080,
        "guest_addr": "10.0.2.100", "guest_port": 80
    });
    let request = r#"{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr":
        "0.0.0.0", "host_port": 18080, "guest_addr": "10.0.2.100", "guest_port": 80}}"#;
    assert_eq!(ask(&net, request), r#"{"return":{"id":1}}"#);
    let udp = json!({"proto": "udp", "host_addr": "127.0.0.1", "host_port": 18081,
        "guest_addr": "10.0.2.7", "guest_port": 81});
    assert_eq!(add(&net, &udp), r#"{"return":{"id":2}}"#);
    let other = json!({"id": 2, "proto": "udp", "host_addr": "127.0.0.1", "host_port": 18081,
        "guest_addr": "10.0.2.7", "guest_port": 81});
    assert_eq!(entries(&net), json!([entry, other]));
    assert_eq!(remove(&net, 1), r#"{"return":{}}"#);
    assert_eq!(entries(&net), json!([other]));
}

/// The manual, and slirp4netns's own test, want the entries in a `return`; the program gives them bare.
fn list_without_entries(p: Program) {
    let net = up(p, "");
    let text = ask(&net, r#"{"execute": "list_hostfwd"}"#);
    let bare: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(bare["entries"], json!([]), "{text}");
    let wrapped = if bare["return"]["entries"] == json!([]) { "too" } else { "not" };
    p.shows("entries in a return", wrapped, "not");
}

fn defaults(p: Program) {
    let net = up(p, "");
    for (port, arguments) in [
        (18080, json!({"proto": "tcp", "host_port": 18080, "guest_port": 80})),
        (
            18081,
            json!({"proto": "tcp", "host_addr": "", "host_port": 18081, "guest_addr": "", "guest_port": 80}),
        ),
    ] {
        assert!(add(&net, &arguments).starts_with(r#"{"return":{"id":"#));
        let entries = entries(&net);
        let entry = entries.as_array().and_then(|all| all.last()).expect("an entry");
        assert_eq!(entry["host_addr"], "0.0.0.0");
        assert_eq!(entry["host_port"], port);
        assert_eq!(entry["guest_addr"], "10.0.2.100");
    }
}

fn defaults_with_another_network(p: Program) {
    let net = up(p, "--cidr=10.0.135.128/25");
    let arguments = json!({"proto": "tcp", "host_port": 18080, "guest_port": 80});
    assert_eq!(add(&net, &arguments), r#"{"return":{"id":1}}"#);
    assert_eq!(entries(&net)[0]["guest_addr"], "10.0.135.228");
}

fn ids_only_grow(p: Program) {
    let net = up(p, "");
    let arguments = json!({"proto": "tcp", "host_port": 18080, "guest_port": 80});
    for id in 1..=3 {
        assert_eq!(add(&net, &arguments), json!({"return": {"id": id}}).to_string());
        assert_eq!(remove(&net, id), r#"{"return":{}}"#);
    }
}

fn not_a_request(p: Program) {
    let net = up(p, "");
    for (request, answer) in [
        ("garbage", "cannot parse JSON"),
        (r#"{"execute": "#, "cannot parse JSON"),
        ("[]", "json_object() failed"),
        ("{}", "no execute found"),
        (r#"{"arguments": {}}"#, "no execute found"),
        (r#"{"execute": 5}"#, "no execute found"),
        (r#"{"execute": "dance"}"#, "unknown execute"),
        (r#"{"execute": "dance", "arguments": {"proto": "tcp"}}"#, "unknown execute"),
        ("\"list_hostfwd\"", "json_object() failed"),
    ] {
        p.shows(request, ask(&net, request), error(answer));
    }
    // What follows the object is not looked at.
    let request = r#"{"execute": "list_hostfwd"}}"#;
    let text = ask(&net, request);
    let seen = if text.contains("entries") { "the entries" } else { &text };
    p.shows(request, seen, "the entries");
    // And it still serves.
    assert_eq!(entries(&net), json!([]));
}

/// 4095 bytes are the longest request.
fn too_long(p: Program) {
    let net = up(p, "");
    let of = |len: usize| format!("{:<len$}", r#"{"execute": "list_hostfwd"}"#);
    let longest = ask(&net, of(4095));
    assert!(longest.contains("entries"), "{longest}");
    for len in [4096, 5000] {
        assert_eq!(ask(&net, of(len)), error("too large message"), "{len} bytes");
    }
}

fn bad_arguments(p: Program) {
    let net = up(p, "");
    let good = json!({"proto": "tcp", "host_addr": "0.0.0.0", "host_port": 18080,
        "guest_addr": "10.0.2.100", "guest_port": 80});
    for (field, value) in [
        ("proto", json!("sctp")),
        ("proto", json!("")),
        ("proto", json!("tcp6")),
        ("proto", json!("TCP")),
        ("host_addr", json!("localhost")),
        ("host_addr", json!("1.2.3")),
        ("host_port", json!(0)),
        ("host_port", json!("no number")),
        ("guest_addr", json!("nowhere")),
        ("guest_port", json!(0)),
    ] {
        let mut arguments = good.clone();
        arguments[field] = value.clone();
        let expected = error(&format!("add_hostfwd: bad arguments.{field}"));
        p.shows(&format!("{field}: {value}"), add(&net, &arguments), expected);
    }
    for field in ["host_port", "guest_port"] {
        let mut arguments = good.clone();
        arguments.as_object_mut().expect("an object").remove(field);
        let expected = error(&format!("add_hostfwd: bad arguments.{field}"));
        p.shows(&format!("{field} missing"), add(&net, &arguments), expected);
    }
    assert_eq!(entries(&net), json!([]));
}

fn missing_protocol(p: Program) {
    for (name, request) in [
        (
            "proto missing",
            r#"{"execute": "add_hostfwd", "arguments": {"host_port": 18080, "guest_port": 80}}"#,
        ),
        ("add_hostfwd without arguments", r#"{"execute": "add_hostfwd"}"#),
    ] {
        let net = up(p, "");
        let seen = match &*ask(&net, request) {
            "nothing" => format!("dies of signal {:?}", net.proc.wait(PATIENCE).signal()),
            text => text.to_owned(),
        };
        p.shows(name, seen, "dies of signal Some(11)");
    }
}

/// They are not looked at, and cut to 16 bits.
fn ports_out_of_range(p: Program) {
    let net = up(p, "");
    for (name, host, guest) in
        [("host_port over 65535", 65536 + 18080, 80), ("guest_port over 65535", 18081, 65536 + 80)]
    {
        let arguments = json!({"proto": "tcp", "host_port": host, "guest_port": guest});
        let seen = add(&net, &arguments);
        let seen = if seen.contains("return") { "it is added" } else { &seen };
        p.shows(name, seen, "it is added");
    }
    let arguments = json!({"proto": "tcp", "host_port": -1, "guest_port": 80});
    let seen = add(&net, &arguments);
    let seen = if seen.contains("return") { "it is added" } else { &seen };
    p.shows("host_port below 0", seen, "it is added");
}

fn port_in_use(p: Program) {
    let net = up(p, "");
    let taken = net.bed.host.listen(Family::V4.any());
    let port = taken.local_addr().expect("an address").port();
    let failed = error("add_hostfwd: slirp_add_hostfwd failed");
    let tcp = json!({"proto": "tcp", "host_port": port, "guest_port": 80});
    assert_eq!(add(&net, &tcp), failed);
    let taken = net.bed.host.udp(Family::V4.any());
    let port = taken.local_addr().expect("an address").port();
    let udp = json!({"proto": "udp", "host_port": port, "guest_port": 80});
    assert_eq!(add(&net, &udp), failed);
    // An address that this host does not have.
    let foreign =
        json!({"proto": "tcp", "host_addr": "192.0.2.1", "host_port": 18080, "guest_port": 80});
    assert_eq!(add(&net, &foreign), failed);
    // A port that an ordinary user may not have.
    let low = json!({"proto": "tcp", "host_port": 80, "guest_port": 80});
    assert_eq!(add(&net, &low), failed);
    assert_eq!(entries(&net), json!([]));
}

fn the_same_twice(p: Program) {
    let net = up(p, "");
    for proto in ["tcp", "udp"] {
        let arguments = json!({"proto": proto, "host_port": 18080, "guest_port": 80});
        assert!(add(&net, &arguments).contains("return"));
        let failed = error("add_hostfwd: slirp_add_hostfwd failed");
        assert_eq!(add(&net, &arguments), failed, "{proto}");
    }
}

fn unknown_ids(p: Program) {
    let net = up(p, "");
    let bad = error("remove_hostfwd: bad arguments.id");
    assert_eq!(remove(&net, 7), bad);
    assert_eq!(remove(&net, 0), bad);
    for request in [
        r#"{"execute": "remove_hostfwd"}"#,
        r#"{"execute": "remove_hostfwd", "arguments": {}}"#,
        r#"{"execute": "remove_hostfwd", "arguments": {"id": "x"}}"#,
    ] {
        p.shows(request, ask(&net, request), &bad);
    }
    let arguments = json!({"proto": "tcp", "host_port": 18080, "guest_port": 80});
    assert_eq!(add(&net, &arguments), r#"{"return":{"id":1}}"#);
    assert_eq!(remove(&net, 1), r#"{"return":{}}"#);
    assert_eq!(remove(&net, 1), bad);
}

/// Beside the words that its readers know.
fn errors_with_a_cause(p: Program) {
    let net = up(p, "");
    let mut socket = client(&net);
    let request = json!({"execute": "add_hostfwd",
        "arguments": {"proto": "tcp", "host_port": 0, "guest_port": 80}});
    socket.write_all(request.to_string().as_bytes()).expect("write");
    let answer: Value = serde_json::from_str(&reply(&socket)).expect("JSON");
    let cause = if answer["error"]["cause"].is_string() { "there is one" } else { "none" };
    p.shows("a cause beside the words", cause, "none");
}

fn ipv6_addresses(p: Program) {
    let net = up(p, "-6");
    let host = json!({"proto": "tcp", "host_addr": "::1", "host_port": 18080,
        "guest_addr": "fd00::100", "guest_port": 80});
    let seen = add(&net, &host);
    let seen = if seen.contains("return") { "it is added" } else { &seen };
    p.shows("IPv6 host_addr", seen, error("add_hostfwd: bad arguments.host_addr"));
}

fn no_half_close_needed(p: Program) {
    let net = up(p, "");
    let mut socket = client(&net);
    socket.write_all(br#"{"execute": "list_hostfwd"}"#).expect("write");
    let text = reply(&socket);
    assert!(text.contains("entries"), "{text}");
}

/// The server reads once. Whoever waits for the rest of a request answers the whole of it.
fn a_request_in_two_pieces(p: Program) {
    let net = up(p, "");
    let (first, second) = (br#"{"execute": "list"#, br#"_hostfwd"}"#);
    let mut socket = client(&net);
    socket.write_all(first).expect("write");
    // The original answers this much; there is no moment at which it is sure that nobody does.
    let wait = if p == Program::Original { 30_000 } else { 50 };
    socket.set_read_timeout(Some(Duration::from_millis(wait))).expect("set a timeout");
    let mut byte = [0; 1];
    let early = matches!(socket.read(&mut byte), Ok(1));
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
    let seen = if early {
        format!("{}{}", char::from(byte[0]), reply(&socket))
    } else {
        socket.write_all(second).expect("write");
        socket.shutdown(Shutdown::Write).expect("shut down");
        let text = reply(&socket);
        if text.contains("entries") { "the entries".to_owned() } else { text }
    };
    p.shows("a request in two pieces", seen, error("cannot parse JSON"));
}

/// One connection, one answer.
fn two_requests_in_one_connection(p: Program) {
    let net = up(p, "");
    let mut socket = client(&net);
    socket.write_all(br#"{"execute": "list_hostfwd"}"#).expect("write");
    assert!(reply(&socket).contains("entries"));
    // It has closed: the second goes nowhere.
    let _ = socket.write_all(br#"{"execute": "list_hostfwd"}"#);
    assert_eq!(reply(&socket), "nothing");
}

/// Clients that connect and go, and one that connects and stays silent, before one that asks. The
/// original is stopped by the silent one, guest traffic and all.
fn clients_that_say_nothing(p: Program) {
    let net = up(p, "");
    drop(client(&net));
    drop(client(&net));
    let server = net.bed.remote.listen(Family::V4.remote());
    let to = server.local_addr().expect("an address");
    net.inside().connect(to).expect("connect");
    let silent = client(&net);
    let socket = net.inside().socket(to.ip(), socket2::Type::STREAM, None);
    let wait = if p == Program::Original { Duration::from_millis(300) } else { PATIENCE };
    // It is being waited for.
    let waited = || net.proc.stderr().matches("apifd event").count() >= 3;
    eventually("the client is seen", || p == Program::Ringtap || waited());
    let through = socket.connect_timeout(&to.into(), wait).is_ok();
    let seen = if through { "goes on" } else { "waits" };
    p.shows("guest traffic beside a silent client", seen, "waits");
    drop(silent);
}

fn many_clients(p: Program) {
    let net = up(p, "");
    std::thread::scope(|scope| {
        for port in 20_000..20_020 {
            let net = &net;
            scope.spawn(move || {
                let arguments = json!({"proto": "tcp", "host_port": port, "guest_port": 80});
                assert!(add(net, &arguments).starts_with(r#"{"return":{"id":"#));
            });
        }
    });
    let entries = entries(&net);
    let mut ids: Vec<u64> =
        entries.as_array().expect("a list").iter().filter_map(|e| e["id"].as_u64()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=20).collect::<Vec<u64>>());
}

fn mode_of_the_socket(p: Program) {
    let net = up(p, "");
    let meta = std::fs::symlink_metadata(net.bed.dir.path("api")).expect("the socket");
    let umask = {
        let text = std::fs::read_to_string("/proc/self/status").expect("my status");
        let line = text.lines().find(|l| l.starts_with("Umask:")).expect("a umask").to_owned();
        u32::from_str_radix(line.split_ascii_whitespace().nth(1).expect("a number"), 8)
            .expect("a number")
    };
    assert_eq!(meta.permissions().mode() & 0o777, 0o777 & !umask);
}

/// One that is left over is replaced.
fn stale_socket(p: Program) {
    let bed = Bed::new();
    let path = bed.dir.path("api");
    drop(UnixListener::bind(&path).expect("bind"));
    let own = |path: &Path| std::os::unix::fs::chown(path, Some(USER), Some(USER)).expect("chown");
    own(&path);
    let net = p.attach(bed, "-c -a @api");
    assert_eq!(entries(&net), json!([]));
    // And the one that a killed one leaves.
    net.proc.signal(Signal::SIGKILL);
    net.proc.wait(PATIENCE);
    assert_eq!(left_at(&path), "is left");
    let operands = format!("{} tap0", net.guest.holder.pid());
    let net = p.between(net.bed, net.guest, USER, "-c -a @api", &operands);
    assert_eq!(entries(&net), json!([]));
}

fn a_file_in_the_way(p: Program) {
    let bed = Bed::new();
    let path = bed.dir.write("api", "precious");
    let guest = guest(&bed);
    let line = format!("-c -e 99 -a {} {} tap0", path.display(), guest.holder.pid());
    // The exit-fd that is not open ends whoever gets that far.
    let done = bed.host.enter_as(USER, p.cmd(&bed.dir).args(&line)).run();
    let kept = std::fs::read_to_string(&path).is_ok_and(|text| text == "precious");
    let seen = format!("{:?}, the file {}", done.code(), if kept { "is kept" } else { "is gone" });
    p.shows("a file in the way of the API socket", seen, "Some(0), the file is gone");
}

fn a_folder_that_is_not_there(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    let path = bed.dir.path("nonexist/api");
    let line = format!("-c -e 99 -a {} {} tap0", path.display(), guest.holder.pid());
    let done = bed.host.enter_as(USER, p.cmd(&bed.dir).args(&line)).run();
    assert_eq!(done.code(), Some(1), "{done:?}");
    assert!(done.stderr.contains("No such file or directory"), "{done:?}");
}

/// 107 bytes fit.
fn a_long_path(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    let run = |len: usize| {
        let path = bed.dir.path("x").display().to_string();
        let path = format!("{path:x<len$}");
        let line = format!("-c -e 99 -a {path} {} tap0", guest.holder.pid());
        bed.host.enter_as(USER, p.cmd(&bed.dir).args(&line)).run()
    };
    let done = run(107);
    assert_eq!(done.code(), Some(0), "{done:?}");
    let done = run(108);
    assert_eq!(done.code(), Some(1), "{done:?}");
    assert!(done.stderr.contains("the specified API socket path is too long (>= 108)"), "{done:?}");
}

/// It makes an address of the kernel's choice, which nobody knows.
fn an_empty_path(p: Program) {
    let bed = Bed::new();
    let guest = guest(&bed);
    let cmd =
        p.cmd(&bed.dir).args("-c -e 99 -a").arg("").args(&format!("{} tap0", guest.holder.pid()));
    let done = bed.host.enter_as(USER, cmd).run();
    p.shows("an empty API socket path", format!("{:?}", done.code()), "Some(0)");
}
