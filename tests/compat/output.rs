//! What is said at the start and on the way.

use crate::program::{Program, both};

both! {
    what_was_set_up,
    what_was_set_up_with_options,
    no_warning_without_host_loopback,
    words_on_stderr,
    words_about_requests,
}

/// stdout of a run with these options, in lines, without the warnings of the options.
#[track_caller]
fn said(p: Program, options: &str) -> String {
    let net = p.up(options);
    let folder = net.bed.dir.path("").display().to_string();
    // What waits in a buffer comes out at the end.
    let (done, ..) = net.hang_up();
    let lines: Vec<String> = done
        .stdout
        .lines()
        .filter(|l| !l.contains("is experimental"))
        .map(|l| l.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
        .map(|l| l.replace(&folder, "@"))
        .collect();
    if lines.is_empty() { "nothing".to_owned() } else { lines.join("\n") }
}

const DEFAULTS: &str = "\
Starting slirp
* MTU: 1500
* Network: 10.0.2.0
* Netmask: 255.255.255.0
* Gateway: 10.0.2.2
* DNS: 10.0.2.3
* DHCP begin: 10.0.2.15
* DHCP end: 10.0.2.30
* Recommended IP: 10.0.2.100
WARNING: 127.0.0.1:* on the host is accessible as 10.0.2.2 (set --disable-host-loopback to prohibit connecting to 127.0.0.1:*)";

fn what_was_set_up(p: Program) {
    p.shows("stdout at the start", said(p, "-c"), DEFAULTS);
}

fn what_was_set_up_with_options(p: Program) {
    let seen = said(
        p,
        "-c -6 -m 65520 -a @api --cidr=10.0.135.128/25 --outbound-addr=198.51.100.1 \
         --outbound-addr6=2001:db8:1::1 --macaddress=52:54:00:12:34:56 --disable-host-loopback",
    );
    let expected = "\
Starting slirp
* MTU: 65520
* Network: 10.0.135.128
* Netmask: 255.255.255.128
* Gateway: 10.0.135.130
* DNS: 10.0.135.131
* DHCP begin: 10.0.135.143
* DHCP end: 10.0.135.158
* Recommended IP: 10.0.135.228
* API Socket: @api
* Outbound IPv4: 198.51.100.1
* Outbound IPv6: 2001:db8:1::1
* MAC address: 52:54:00:12:34:56";
    p.shows("stdout at the start, with options", seen, expected);
}

fn no_warning_without_host_loopback(p: Program) {
    let seen = said(p, "-c --disable-host-loopback");
    assert!(!seen.contains("127.0.0.1"), "{seen}");
}

/// Two processes tell of the descriptor that goes from one to the other.
fn words_on_stderr(p: Program) {
    let net = p.up("-c");
    let mut lines: Vec<String> = net
        .proc
        .stderr()
        .lines()
        .map(|l| l.chars().filter(|c| !c.is_ascii_digit()).collect())
        .collect();
    // Which of the two is first is their race.
    lines.sort();
    let seen = if lines.is_empty() { "nothing".to_owned() } else { lines.join(" / ") };
    p.shows("stderr at the start", seen, "received tapfd= / sent tapfd= for tap");
}

fn words_about_requests(p: Program) {
    let net = crate::api::up(p, "");
    let request = r#"{"execute": "list_hostfwd"}"#;
    crate::api::ask(&net, request);
    let said = net.proc.stderr();
    let asked = said.contains(&format!("api_handler: got request: {request}"));
    let seen = if said.contains("apifd event") && asked { "told" } else { "not told" };
    p.shows("requests on stderr", seen, "told");
}
