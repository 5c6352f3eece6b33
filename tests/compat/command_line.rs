//! Options, operands and what is said about mistakes. The order of the checks is part of it: the first
//! mistake is the one that is told.

use crate::harness::cmd::Done;
use crate::program::{Program, both};

both! {
    help,
    version,
    getopt,
    numbers,
    mtu_of_no_interface,
    operands,
    namespace_types,
    combinations,
    addresses,
    mac_addresses,
    no_namespace,
    every_form_of_an_option,
    warnings,
    bess_mistakes,
}

/// How it ended and what it said: `1 | stdout | stderr`, with `USAGE` for that text.
fn answer(done: &Done) -> String {
    let code = done.code().map_or_else(|| format!("signal {:?}", done.signal()), |c| c.to_string());
    // What follows the usage is nothing.
    let stdout = done.stdout.split_once("Usage: ").map_or_else(
        || done.stdout.clone(),
        |(warnings, usage)| {
            assert!(usage.contains("--netns-type=TYPE"), "{done:?}");
            format!("{warnings}USAGE")
        },
    );
    // A failed start prints its warnings twice in slirp4netns, out of two copies of one buffer.
    let lines: Vec<&str> = stdout.lines().collect();
    let (one, two) = lines.split_at(lines.len() / 2);
    let stdout = if one == two { one.join("\n") } else { stdout };
    let line = |text: &str| text.trim_end().replace('\n', " / ");
    format!("{code} | {} | {}", line(&stdout), line(&done.stderr))
}

/// Each command line gets its answer.
#[track_caller]
fn answers(p: Program, table: &[(&str, &str)]) {
    for (line, expected) in table {
        p.shows(line, answer(&p.run(line)), expected);
    }
}

/// Each command line is answered with this text and the usage.
#[track_caller]
fn answers_with_usage(p: Program, table: &[(&str, &str)]) {
    for (line, text) in table {
        p.shows(line, answer(&p.run(line)), format!("1 | USAGE | {text}"));
    }
}

const MTU: &str = "MTU must be a positive integer (< 65522)";
const EXIT: &str = "exit-fd must be a non-negative integer";
const READY: &str = "ready-fd must be a non-negative integer";
const PID: &str = "PID must be a positive integer";
const NO_PATH: &str = "existing path expected when --netns-type=path: No such file or directory";
/// Of a process that cannot be: `/proc/sys/kernel/pid_max` ends at 4,194,304.
const NOBODY: &str = "1 |  | /proc/99999999/ns/net: No such file or directory / child failed(1)";

fn help(p: Program) {
    for line in ["--help", "-h", "--he", "--cidr foo -h", "-h --nonsense"] {
        let done = p.run(line);
        assert_eq!(done.code(), Some(0), "{done:?}");
        assert_eq!(done.stderr, "");
        // Podman, RootlessKit and Docker's scripts look for these.
        for option in [
            "--netns-type",
            "--enable-ipv6",
            "--cidr",
            "--disable-host-loopback",
            "--api-socket",
            "--enable-sandbox",
            "--enable-seccomp",
            "--mtu",
            "--outbound-addr",
            "--outbound-addr6",
            "--disable-dns",
            "--macaddress",
            "--target-type",
            "--userns-path",
            "--ready-fd",
            "--exit-fd",
            "--configure",
        ] {
            // As a word, like `grep -w` finds it.
            let word = |c: char| !c.is_ascii_alphanumeric() && c != '-';
            assert!(done.stdout.split(word).any(|w| w == option), "{option}: {done:?}");
        }
        for hidden in ["--no-host-loopback", "--create-sandbox"] {
            assert!(!done.stdout.contains(hidden), "{hidden}: {done:?}");
        }
    }
    let usage = p.run("-h").stdout.replace("slirp4netns", "X");
    p.shows(
        "first line of the usage",
        usage.lines().next().unwrap_or_default(),
        "Usage: X [OPTION]... PID|PATH|FD [TAPNAME]",
    );
}

fn version(p: Program) {
    for line in ["--version", "-v", "-6 --vers"] {
        let done = p.run(line);
        assert_eq!((done.code(), &*done.stderr), (Some(0), ""), "{done:?}");
    }
    let done = p.run("--version");
    let lines: Vec<&str> = done.stdout.lines().collect();
    let names: Vec<&str> =
        lines.iter().map(|l| l.split(':').next().expect("a word")).skip(1).collect();
    // slirp4netns's own tests look at the fourth line.
    assert_eq!(names, ["commit", "libslirp", "SLIRP_CONFIG_VERSION_MAX", "libseccomp"]);
    assert!(lines[0].starts_with("slirp4netns version "), "{done:?}");
    if p == Program::Ringtap {
        assert_eq!(lines[0], "slirp4netns version 1.3.3");
        assert_eq!(lines[3], "SLIRP_CONFIG_VERSION_MAX: 6");
    }
}

fn getopt(p: Program) {
    answers_with_usage(
        p,
        &[
            ("--x", "slirp4netns: unrecognized option '--x'"),
            ("--x --help", "slirp4netns: unrecognized option '--x'"),
            ("42 tap0 --x", "slirp4netns: unrecognized option '--x'"),
            ("--mtu", "slirp4netns: option '--mtu' requires an argument"),
            ("--mt", "slirp4netns: option '--mtu' requires an argument"),
            ("-m", "slirp4netns: option requires an argument -- 'm'"),
            ("--api-socket", "slirp4netns: option '--api-socket' requires an argument"),
            ("-z", "slirp4netns: invalid option -- 'z'"),
            ("-cz", "slirp4netns: invalid option -- 'z'"),
            ("-5 tap0", "slirp4netns: invalid option -- '5'"),
            (
                "--configure=1 42 tap0",
                "slirp4netns: option '--configure' doesn't allow an argument",
            ),
            (
                "--m 5",
                "slirp4netns: option '--m' is ambiguous; possibilities: '--mtu' '--macaddress'",
            ),
            (
                "--disable",
                "slirp4netns: option '--disable' is ambiguous; possibilities: \
                 '--disable-host-loopback' '--disable-dns'",
            ),
            (
                "--e 42 tap0",
                "slirp4netns: option '--e' is ambiguous; possibilities: '--exit-fd' \
                 '--enable-ipv6' '--enable-sandbox' '--enable-seccomp'",
            ),
        ],
    );
}

fn numbers(p: Program) {
    answers_with_usage(
        p,
        &[
            ("-m 0 42 tap0", MTU),
            ("-m 0 --help", MTU),
            ("-m 0 -e abc 42 tap0", MTU),
            ("42 tap0 -m 0", MTU),
            ("-m -1 42 tap0", MTU),
            ("-m 65522 42 tap0", MTU),
            ("-m abc 42 tap0", MTU),
            ("-m 1500x 42 tap0", MTU),
            ("--mtu= 42 tap0", MTU),
            ("-e -1 42 tap0", EXIT),
            ("-e abc 42 tap0", EXIT),
            ("--exit-fd=0x10 42 tap0", EXIT),
            ("-r -1 42 tap0", READY),
            ("-rX", READY),
            ("-r=3 42 tap0", READY),
            ("abc tap0", PID),
            ("0 tap0", PID),
            ("-- -5 tap0", PID),
            ("12abc tap0", PID),
            ("99999999999999999999 tap0", PID),
        ],
    );
    answers(
        p,
        &[
            ("-m 1500 99999999 tap0", NOBODY),
            ("-m 65521 99999999 tap0", NOBODY),
            ("-m +1500 99999999 tap0", NOBODY),
            // The number of a descriptor that is not open is no mistake here.
            ("-r 98 -e 99 99999999 tap0", NOBODY),
            ("--ready-fd=-0 99999999 tap0", NOBODY),
            ("-m 4294968796 99999999 tap0", NOBODY),
            ("-r 4294967297 99999999 tap0", NOBODY),
            ("-r 98 -e 98 99999999 tap0", NOBODY),
        ],
    );
}

/// What is in the range of the option and no TAP takes.
fn mtu_of_no_interface(p: Program) {
    answers(p, &[("-m 67 99999999 tap0", NOBODY), ("-m 68 99999999 tap0", NOBODY)]);
}

fn operands(p: Program) {
    answers_with_usage(
        p,
        &[("", ""), ("42", ""), ("-", ""), ("--cidr foo", ""), ("-c --macaddress=", "")],
    );
    answers(
        p,
        &[
            (
                "99999999 tap0 -c -6",
                "1 | WARNING: Support for IPv6 is experimental | \
              /proc/99999999/ns/net: No such file or directory / child failed(1)",
            ),
            (
                "abc tap0 extra",
                "1 | WARNING: too many arguments / USAGE | PID must be a positive integer",
            ),
            ("99999999 averyveryverylongname", NOBODY),
        ],
    );
}

fn namespace_types(p: Program) {
    answers_with_usage(
        p,
        &[
            ("--netns-type=path /nonexist", ""),
            ("--netns-type=path /nonexist tap0", NO_PATH),
            ("--netns-type=path 42 tap0", NO_PATH),
            // Any other word means path.
            ("--netns-type=foo /nonexist tap0", NO_PATH),
            ("--netns-type= /nonexist tap0", NO_PATH),
            ("--netns-type=PID 42 tap0", NO_PATH),
            ("--netns-type=tapfd", ""),
            ("--netns-type=tapfd abc", "TAPFD must a file descriptor"),
            ("--netns-type=tapfd -- -1 tap0", "TAPFD must a file descriptor"),
            ("--userns-path=/nonexist 42 tap0", "userns path doesn't exist: /nonexist"),
            ("--userns-path=/nonexist --help", "userns path doesn't exist: /nonexist"),
            ("--userns-path= 42 tap0", "userns path doesn't exist:"),
        ],
    );
    // A path that exists and is no network namespace.
    let line = "--netns-type=path /proc/self/ns/uts tap0";
    let done = p.run(line);
    assert_eq!(done.code(), Some(1), "{done:?}");
    assert!(done.stderr.contains("child failed(1)"), "{done:?}");
}

fn combinations(p: Program) {
    let macaddr = "--macaddr cannot be specified when --configure or -c is not specified";
    let target = "--target-type must be either \"netns\" or \"bess\"";
    answers_with_usage(
        p,
        &[
            ("--macaddress=52:54:00:12:34:56 42 tap0", macaddr),
            ("--macaddress=x --target-type=bess", macaddr),
            ("--target-type=foo --macaddress=x 42 tap0", macaddr),
            ("--cidr foo --macaddress=foo 42 tap0", macaddr),
            ("--target-type=foo", target),
            ("--target-type=foo 42 tap0", target),
            ("--cidr foo --target-type=foo", target),
        ],
    );
    answers(p, &[("--target-type=netns 99999999 tap0", NOBODY)]);
}

fn addresses(p: Program) {
    let out = "WARNING: Support for --outbound-addr is experimental";
    let out6 = "WARNING: Support for --outbound-addr6 is experimental";
    let bad = "outbound-addr has to be valid ipv4 address or interface name.";
    let bad6 = "outbound-addr has to be valid ipv4 address or iterface name.";
    let answer = |warnings: &str, text: &str| format!("1 | {warnings} | {text}");
    for (line, expected) in [
        ("--cidr foo 42 tap0", answer("", "invalid CIDR: foo")),
        ("--cidr= 42 tap0", answer("", "invalid CIDR:")),
        ("--cidr 10.0.2.0 42 tap0", answer("", "invalid CIDR: 10.0.2.0")),
        ("--cidr fd00::/64 42 tap0", answer("", "invalid CIDR: fd00::/64")),
        ("--cidr 10.0.2.256/24 42 tap0", answer("", "invalid network address: 10.0.2.256")),
        ("--cidr 10.0.2.0/26 42 tap0", answer("", "prefix length needs to be 1-25")),
        ("--cidr 10.0.2.0/0 42 tap0", answer("", "prefix length needs to be 1-25")),
        // The length is looked at before the address.
        ("--cidr 10.0.2.1/99 42 tap0", answer("", "prefix length needs to be 1-25")),
        (
            "--cidr 10.0.2.100/24 42 tap0",
            answer(
                "",
                "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24",
            ),
        ),
        ("--cidr 10.0.0.0/8 99999999 tap0", NOBODY.to_owned()),
        ("--cidr 10.0.135.128/25 99999999 tap0", NOBODY.to_owned()),
        ("--cidr 127.0.0.0/24 99999999 tap0", NOBODY.to_owned()),
        ("--outbound-addr nosuch 42 tap0", answer(out, bad)),
        ("--outbound-addr= 42 tap0", answer(out, bad)),
        ("--outbound-addr6 nosuch 42 tap0", answer(out6, bad6)),
        (
            "--outbound-addr6 nosuch --outbound-addr nosuch 42 tap0",
            answer(&format!("{out6} / {out}"), bad),
        ),
        ("--cidr foo --outbound-addr nosuch 42 tap0", answer(out, "invalid CIDR: foo")),
    ] {
        p.shows(line, self::answer(&p.run(line)), expected);
    }
}

fn mac_addresses(p: Program) {
    let invalid = |mac: &str, guess: &str| {
        format!(
            "1 |  | \"{mac}\" is an invalid MAC address.{guess} / macaddress has to be a valid MAC \
             address (hex string, 6 bytes, each byte separated by a ':')."
        )
    };
    for (line, expected) in [
        ("-c --macaddress= 42 tap0", invalid("", "")),
        ("-c --macaddress=zz 42 tap0", invalid("zz", "")),
        ("-c --macaddress=52:54:00:12:34:5678 42 tap0", invalid("52:54:00:12:34:5678", "")),
        (
            "-c --macaddress=52:54:00:12:34:56:78 42 tap0",
            invalid("52:54:00:12:34:56:78", "  Is it too long?"),
        ),
        ("-c --macaddress=52:54:00:12:34:56 99999999 tap0", NOBODY.to_owned()),
        ("-c --macaddress=52:54:00:12:34 99999999 tap0", NOBODY.to_owned()),
        ("-c --macaddress=53:54:00:12:34:56 99999999 tap0", NOBODY.to_owned()),
    ] {
        p.shows(line, answer(&p.run(line)), expected);
    }
}

fn no_namespace(p: Program) {
    answers(p, &[("99999999 tap0", NOBODY), ("-c --mtu=65520 99999999 tap0", NOBODY)]);
}

/// Short, long, by prefix, in clusters, before and behind the operands.
fn every_form_of_an_option(p: Program) {
    for line in [
        "-c -m 1500 99999999 tap0",
        "-cm1500 99999999 tap0",
        "--configure --mtu=1500 99999999 tap0",
        "--conf --mt 1500 99999999 tap0",
        "99999999 tap0 -c --mtu 1500",
        "99999999 -c tap0 --disable-d",
        "-c -- 99999999 tap0",
        "-e 98 -r 99 --exit=98 --ready=99 -c 99999999 tap0",
    ] {
        p.shows(line, answer(&p.run(line)), NOBODY);
    }
}

/// Said on stdout, in the order of the options.
fn warnings(p: Program) {
    let end = "/proc/99999999/ns/net: No such file or directory / child failed(1)";
    let of = |lines: &[&str]| {
        let lines: Vec<String> = lines.iter().map(|l| format!("WARNING: {l}")).collect();
        format!("1 | {} | {end}", lines.join(" / "))
    };
    let ipv6 = "Support for IPv6 is experimental";
    let seccomp = "Support for seccomp is experimental";
    let old = |old: &str, new: &str| {
        format!(
            "{old} is deprecated and will be removed in future releases, please use {new} instead."
        )
    };
    let no_host = old("--no-host-loopback", "--disable-host-loopback");
    let create = old("--create-sandbox", "--enable-sandbox");
    for (line, expected) in [
        ("-6 99999999 tap0", of(&[ipv6])),
        ("--enable-seccomp -6 99999999 tap0", of(&[seccomp, ipv6])),
        ("--no-host-loopback 99999999 tap0", of(&[&no_host])),
        ("--create-sandbox 99999999 tap0", of(&[&create])),
        ("--enable-sandbox 99999999 tap0", of(&[]).replace("WARNING: ", "")),
        ("99999999 tap0 extra", of(&["too many arguments"])),
        (
            "--outbound-addr 127.0.0.1 --outbound-addr6 ::1 99999999 tap0",
            of(&[
                "Support for --outbound-addr is experimental",
                "Support for --outbound-addr6 is experimental",
            ]),
        ),
        ("-6 -m 576 99999999 tap0", of(&[ipv6])),
    ] {
        p.shows(line, answer(&p.run(line)), expected);
    }
}

fn bess_mistakes(p: Program) {
    answers_with_usage(
        p,
        &[
            ("--target-type=bess", ""),
            ("--target-type=bess -c", ""),
            ("--target-type=bess a b", "too many arguments"),
            ("--target-type=bess -c /s", "--configure conflicts with --target-type=bess"),
            (
                "--target-type=bess --netns-type=pid /s",
                "--netns-type conflicts with --target-type=bess",
            ),
            (
                "--target-type=bess --userns-path=/proc/self/ns/user /s",
                "--userns-path conflicts with --target-type=bess",
            ),
        ],
    );
}
