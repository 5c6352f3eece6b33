//! Where a program under test does not do what slirp4netns 1.3.3 does, on purpose or by age, each with
//! its reason. A difference that is not listed fails its test, and so does one that is listed and is none.

use std::fs;
use std::path::Path;

use crate::harness::cmd::Cmd;
use crate::program::Program::{self, Original, Ringtap};

/// One difference.
#[derive(Debug)]
pub(crate) struct Difference {
    who: Program,
    /// What the test calls the behaviour.
    name: &'static str,
    /// What is seen instead.
    pub(crate) instead: &'static str,
    why: &'static str,
    /// Only where the original is a 1.2.
    old: bool,
}

const fn differs(
    who: Program,
    name: &'static str,
    instead: &'static str,
    why: &'static str,
) -> Difference {
    Difference { who, name, instead, why, old: false }
}

/// What only an original of 1.2 does.
const fn older(name: &'static str, instead: &'static str, why: &'static str) -> Difference {
    Difference { who: Original, name, instead, why, old: true }
}

/// What 1.3 brought.
const AGE: &str = "1.2, which Debian 12 has, is older than what callers know";
const WRAPS: &str =
    "a number that does not fit is a mistake: the original takes what is left of it after 32 bits";
const NO_TAP: &str = "the kernel would refuse it later, with the interface half set up";
const CRASH: &str = "the original reads what is not there and dies";
const PORT: &str = "the original cuts a port to 16 bits and opens another than was asked for";

const DIFFERENCES: &[Difference] = &[
    // By age.
    older("first line of the usage", "Usage: X [OPTION]... PID|PATH [TAPNAME]", AGE),
    older("--netns-type=tapfd abc", "1 | USAGE | ", AGE),
    older(
        "--netns-type=tapfd -- -1 tap0",
        "1 | USAGE | existing path expected when --netns-type=path: No such file or directory",
        AGE,
    ),
    older("a TAP by its descriptor", "it ends with Some(1)", AGE),
    older("resolver of a host without one", "NetworkUnreachable", AGE),
    older("a resolv.conf elsewhere", "not bound; DNS will not work.", AGE),
    // What the original does wrong.
    differs(
        Original,
        "UDP from loopback beside --disable-host-loopback",
        "is not answered",
        "the original takes the answer for a new datagram to the host's loopback; TCP is answered",
    ),
    differs(Ringtap, "proto missing", PROTO, CRASH),
    differs(Ringtap, "add_hostfwd without arguments", PROTO, CRASH),
    differs(
        Ringtap,
        "host_port over 65535",
        r#"{"error":{"desc":"bad request: add_hostfwd: bad arguments.host_port"}}"#,
        PORT,
    ),
    differs(
        Ringtap,
        "guest_port over 65535",
        r#"{"error":{"desc":"bad request: add_hostfwd: bad arguments.guest_port"}}"#,
        PORT,
    ),
    differs(
        Ringtap,
        "host_port below 0",
        r#"{"error":{"desc":"bad request: add_hostfwd: bad arguments.host_port"}}"#,
        PORT,
    ),
    differs(
        Ringtap,
        "a request in two pieces",
        "the entries",
        "a stream may deliver a request in pieces: one read is not one request",
    ),
    differs(
        Ringtap,
        "guest traffic beside a silent client",
        "goes on",
        "the original reads from its client in the data loop and stops for it",
    ),
    differs(
        Ringtap,
        "API socket after a signal",
        "is gone",
        "the original leaves the file for others to remove; callers remove it where it is",
    ),
    differs(
        Ringtap,
        "a file in the way of the API socket",
        "Some(1), the file is kept",
        "the original deletes whatever file has the name",
    ),
    differs(
        Ringtap,
        "an empty API socket path",
        "Some(1)",
        "the original binds an address of the kernel's choice, which nobody can know",
    ),
    differs(
        Ringtap,
        "a port the guest refuses",
        "ConnectionReset",
        "the original shows the peer an orderly end, as if the guest had answered with nothing",
    ),
    differs(
        Ringtap,
        "the namespace goes",
        "it ends",
        "the original keeps a namespace alive that nobody else has, for ever",
    ),
    differs(
        Ringtap,
        "the TAP is deleted",
        "it ends with Some(1)",
        "the original repeats one line with all of a processor, for ever",
    ),
    differs(
        Ringtap,
        "--outbound-addr6 by interface",
        "Some(0)",
        "the original looks up the interface that --outbound-addr names",
    ),
    differs(
        Ringtap,
        "a sandbox from outside",
        "Some(0)",
        "the original joins no user namespace for it, is refused, and callers leave the sandbox off",
    ),
    differs(
        Ringtap,
        "mounts that can be written",
        "none",
        "the original makes /etc and /run read-only, but not what is mounted below them",
    ),
    differs(
        Ringtap,
        "-m 4294968796 99999999 tap0",
        "1 | USAGE | MTU must be a positive integer (< 65522)",
        WRAPS,
    ),
    differs(
        Ringtap,
        "-r 4294967297 99999999 tap0",
        "1 | USAGE | ready-fd must be a non-negative integer",
        WRAPS,
    ),
    differs(
        Ringtap,
        "-r 98 -e 98 99999999 tap0",
        "1 |  | exit-fd must not be the ready-fd, which is closed when ready",
        "it would end as soon as it is ready",
    ),
    differs(
        Ringtap,
        "-m 67 99999999 tap0",
        "1 | USAGE | MTU must be 68 or more: no TAP takes 67",
        NO_TAP,
    ),
    differs(
        Ringtap,
        "99999999 averyveryverylongname",
        "1 |  | invalid TAPNAME: averyveryverylongname (1 to 15 characters without space, '/', \
         ':' or '%')",
        NO_TAP,
    ),
    differs(
        Ringtap,
        "-c --macaddress=52:54:00:12:34 99999999 tap0",
        "1 |  | \"52:54:00:12:34\" is an invalid MAC address. / macaddress has to be a valid MAC \
         address (hex string, 6 bytes, each byte separated by a ':').",
        "the original takes five bytes and makes up the sixth",
    ),
    differs(
        Ringtap,
        "-c --macaddress=53:54:00:12:34:56 99999999 tap0",
        "1 |  | \"53:54:00:12:34:56\" is an invalid MAC address. / macaddress has to be a valid MAC \
         address (hex string, 6 bytes, each byte separated by a ':').",
        "it is a group's address: the kernel would refuse it later",
    ),
    differs(
        Ringtap,
        "--cidr 127.0.0.0/24 99999999 tap0",
        "1 |  | invalid network address: 127.0.0.0",
        "a guest cannot have an address of loopback, 0/8 or multicast",
    ),
    // What is ours.
    differs(
        Ringtap,
        "entries in a return",
        "too",
        "readers of the manual find the entries in both places",
    ),
    differs(
        Ringtap,
        "a cause beside the words",
        "there is one",
        "the original's words do not say what was wrong; its readers look at `desc`",
    ),
    differs(
        Ringtap,
        "IPv6 host_addr",
        "it is added",
        "forwards of IPv6 are what the original's users have been asking for",
    ),
    differs(
        Ringtap,
        "-6 -m 576 99999999 tap0",
        "1 | WARNING: Support for IPv6 is experimental / WARNING: MTU 576 is below 1280, which IPv6 \
         needs: IPv6 is off | /proc/99999999/ns/net: No such file or directory / child failed(1)",
        "the guest's kernel switches IPv6 off below 1280: a line says so",
    ),
    differs(
        Ringtap,
        "MAC of the router in the advertisement",
        "52:55:0A:00:02:02",
        "one router has one address on the link; a guest takes either",
    ),
    differs(
        Ringtap,
        "kind of the TAP",
        "pi false, vnet_hdr true, persist false",
        "offloads are where the speed comes from; nobody but the holder of the TAP sees them",
    ),
    differs(
        Ringtap,
        "what seccomp blocks",
        "not told",
        "ringtap's filter is a list of what is allowed: there is no such list",
    ),
    differs(Ringtap, "requests on stderr", "not told", "a client could fill its caller's log"),
];

const PROTO: &str = r#"{"error":{"desc":"bad request: add_hostfwd: bad arguments.proto"}}"#;

/// The difference listed for a program under a name.
pub(crate) fn of(who: Program, name: &str) -> Option<&'static Difference> {
    let applies = |d: &&Difference| !d.old || original_is_old();
    DIFFERENCES.iter().filter(|d| d.who == who && d.name == name).find(applies)
}

/// Whether the slirp4netns of this machine is a 1.2.
fn original_is_old() -> bool {
    let version = Cmd::new("slirp4netns --version").ok();
    version.starts_with("slirp4netns version 1.2.")
}

/// Each is listed once, gives a reason, and is looked at by a test.
#[test]
fn the_list_is_in_order() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat");
    let tests: String = fs::read_dir(folder)
        .expect("the tests")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name != "differences.rs"))
        .map(|path| fs::read_to_string(path).expect("a test"))
        .collect();
    for (n, d) in DIFFERENCES.iter().enumerate() {
        assert!(d.why.len() > 20, "{d:?}: a reason");
        let quoted = format!("\"{}\"", d.name.escape_debug());
        assert!(tests.contains(&quoted), "{d:?}: no test of this name");
        let twice = DIFFERENCES[n + 1..].iter().any(|o| o.who == d.who && o.name == d.name);
        assert!(!twice, "{d:?}: listed twice");
    }
}
