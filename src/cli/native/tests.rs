//! The native command line, from argv to values and messages.

use super::*;
use crate::cli::tests::{Fake, config, parse_words};

fn refused(line: &str) -> String {
    let refusal = parse_words(line).unwrap_err();
    assert_eq!((refusal.code, refusal.stdout.as_str()), (2, ""), "{line}");
    assert_eq!(refusal.stderr.lines().count(), 1, "{line}");
    refusal.stderr.strip_prefix("ringtap: ").unwrap().to_owned()
}

fn printed(line: &str) -> String {
    match parse_words(line) {
        Ok(Command::Print(text)) => text,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn defaults() {
    let c = config("ringtap run");
    assert!(matches!(&c.mode, Mode::Run { cmd, keep_uid: false } if cmd.is_empty()));
    assert_eq!(c.net.mtu, 1500);
    assert_eq!(c.net.v4.guest, Ipv4Addr::new(10, 0, 2, 100));
    assert_eq!(c.net.v6, Some(V6Net::fd00(true)));
    assert!(!c.net.host_loopback && c.net.dns && c.configure && c.write_resolv_conf);
    assert_eq!((c.net.guest_mac, c.net.outbound_v4, c.net.outbound_v6), (None, None, None));
    assert_eq!((c.tap_name.as_str(), c.log_level), ("tap0", Level::WARN));
    assert_eq!(config("ringtap attach 42").log_level, Level::INFO);
}

#[test]
fn every_common_option() {
    let c = config(
        "ringtap run --mtu 9000 --cidr=10.9.0.0/16 --mac 52:54:00:00:00:01 --tap-name eth0 --no-dns \
         --host-loopback --outbound-addr eth0 --outbound-addr6 2001:db8::7 --log-level debug --keep-uid",
    );
    assert_eq!(c.net.mtu, 9000);
    assert_eq!(c.net.gateway_mac, [0x52, 0x55, 10, 9, 0, 2]);
    assert_eq!(c.net.guest_mac, Some([0x52, 0x54, 0, 0, 0, 1]));
    assert_eq!(c.tap_name, "eth0");
    assert!(!c.net.dns && !c.write_resolv_conf && c.net.host_loopback);
    assert_eq!(c.net.outbound_v4, Some(Outbound::Interface("eth0".into())));
    assert_eq!(c.net.outbound_v6, "2001:db8::7".parse().ok().map(Outbound::Address));
    assert_eq!(c.log_level, Level::DEBUG);
    assert!(matches!(c.mode, Mode::Run { keep_uid: true, .. }));
    let c = config("ringtap run --no-ipv6 --mtu 68");
    assert_eq!((c.net.mtu, c.net.v6), (68, None));
    // The last one counts.
    assert_eq!(config("ringtap run --workers 8").workers, 8);
    assert!((1..=8).contains(&config("ringtap run").workers));
    assert_eq!(config("ringtap run --mtu 1400 --mtu 1500").net.mtu, 1500);
}

#[test]
fn the_first_operand_of_run_ends_options() {
    for line in
        ["ringtap run --keep-uid cat --mtu x -h", "ringtap run --keep-uid -- cat --mtu x -h"]
    {
        let Mode::Run { cmd, keep_uid: true } = config(line).mode else { panic!("{line}") };
        assert_eq!(cmd, ["cat", "--mtu", "x", "-h"], "{line}");
    }
    let Mode::Run { cmd, .. } = config("ringtap run -- --odd -- x").mode else { panic!() };
    assert_eq!(cmd, ["--odd", "--", "x"]);
}

#[test]
fn attach_and_create() {
    let c = config("ringtap attach 42 --ready-fd 3 --exit-fd=4 --pid-file /tmp/p --no-configure");
    assert!(matches!(c.mode, Mode::Attach(Target::Pid { pid: 42, userns: None })));
    assert_eq!((c.ready_fd, c.exit_fd), (Some(3), Some(4)));
    assert_eq!(c.pid_file.as_deref(), Some(Path::new("/tmp/p")));
    assert!(!c.configure);
    let c = config("ringtap attach --userns /proc/42/ns/user /run/ns");
    let Mode::Attach(Target::Path { path, userns }) = c.mode else { panic!() };
    assert_eq!(path, Path::new("/run/ns"));
    assert_eq!(userns.as_deref(), Some(Path::new("/proc/42/ns/user")));
    let c = config("ringtap create --ready-fd 3 /run/netns/new");
    assert!(matches!(c.mode, Mode::Create(path) if path == Path::new("/run/netns/new")));
}

#[test]
fn ports_and_their_socket() {
    let c = config("ringtap run -p 8080:80 -p5353:53/udp --publish=[::1]:1-9 --api /tmp/api -- sh");
    let ports: Vec<_> = c.forwards.iter().map(|f| (f.transport.name(), f.len())).collect();
    assert_eq!(ports, [("tcp", 1), ("udp", 1), ("tcp", 9)]);
    assert_eq!(c.api_socket.as_deref(), Some(Path::new("/tmp/api")));
    let c = config("ringtap create /x");
    assert_eq!((c.forwards.len(), c.api_socket), (0, None));
}

#[test]
fn log_levels() {
    for (line, level) in [
        ("ringtap run -v", Level::INFO),
        ("ringtap run -vv", Level::DEBUG),
        ("ringtap run -vvvv", Level::DEBUG),
        ("ringtap run -q", Level::ERROR),
        ("ringtap attach 42 -q", Level::WARN),
        ("ringtap attach 42 --verbose --quiet", Level::INFO),
        ("ringtap attach 42 -v --log-level error", Level::ERROR),
    ] {
        assert_eq!(config(line).log_level, level, "{line}");
    }
}

#[test]
fn refusals_name_option_value_and_remedy() {
    for (line, text) in [
        (
            "ringtap",
            "a command is missing: run, attach, create, port or doctor; see ringtap --help",
        ),
        ("ringtap atach 42", "atach: no such command; did you mean attach?"),
        ("ringtap 42", "42: no such command; see ringtap --help"),
        ("ringtap --mtu 9000", "--mtu: the command comes first, as in: ringtap run --mtu ..."),
        ("ringtap help frobnicate", "frobnicate: no such command; see ringtap --help"),
        ("ringtap doctor all", "doctor all: it takes no arguments"),
        ("ringtap run --mtu 70000", "--mtu 70000: must be from 68 to 65521"),
        ("ringtap run --workers 0", "--workers 0: must be from 1 to 8"),
        ("ringtap attach --workers 9", "--workers 9: must be from 1 to 8"),
        ("ringtap run --workers two", "--workers two: must be from 1 to 8"),
        ("ringtap run --mtu 67", "--mtu 67: must be from 68 to 65521"),
        ("ringtap run --mtu=65522", "--mtu 65522: must be from 68 to 65521"),
        ("ringtap run --mtu big", "--mtu big: must be from 68 to 65521"),
        ("ringtap run --mtu", "--mtu: a value is missing"),
        ("ringtap run --mtu=", "--mtu: must be from 68 to 65521"),
        (
            "ringtap run --mtu 1279",
            "--mtu 1279: IPv6 needs 1280 or more; add --no-ipv6 to do without it",
        ),
        (
            "ringtap run --cidr fd00::/64",
            "--cidr fd00::/64: must be an IPv4 network, such as 10.0.2.0/24",
        ),
        (
            "ringtap run --cidr 10.0.2.0/26",
            "--cidr 10.0.2.0/26: the prefix length must be from 1 to 25",
        ),
        (
            "ringtap run --cidr 10.0.2.1/24",
            "--cidr 10.0.2.1/24: has bits set behind the prefix; give the network's address, such as 10.0.2.0/24",
        ),
        (
            "ringtap run --cidr 127.0.0.0/8",
            "--cidr 127.0.0.0/8: no host can have addresses there; use a private network, such as 10.0.2.0/24",
        ),
        (
            "ringtap run --mac 1:2:3",
            "--mac 1:2:3: must be six bytes in hexadecimal, such as 52:54:00:12:34:56",
        ),
        (
            "ringtap run --mac ff:ff:ff:ff:ff:ff",
            "--mac ff:ff:ff:ff:ff:ff: is no address of one interface; make the first byte even, such as 52",
        ),
        (
            "ringtap run --mac 52:55:0a:00:02:02",
            "--mac 52:55:0a:00:02:02: is the gateway's own; choose another",
        ),
        (
            "ringtap attach 42 --no-configure --mac 52:54:00:00:00:01",
            "--mac: cannot be set with --no-configure; leave one of them out",
        ),
        (
            "ringtap run --tap-name tap%d",
            "--tap-name tap%d: must be 1 to 15 characters without space, '/', ':' or '%', and not lo, all or default",
        ),
        (
            "ringtap run --outbound-addr eth1",
            "--outbound-addr eth1: must be an IPv4 address of this host, or an interface that has one",
        ),
        (
            "ringtap run --outbound-addr6 eth1",
            "--outbound-addr6 eth1: must be an IPv6 address of this host, or an interface that has one",
        ),
        (
            "ringtap run --outbound-addr 192.0.2.99",
            "--outbound-addr 192.0.2.99: no interface of this host has this address; see `ip address`",
        ),
        (
            "ringtap run --no-ipv6 --outbound-addr6 eth0",
            "--outbound-addr6: there is no IPv6 with --no-ipv6; leave one of them out",
        ),
        ("ringtap run --log-level loud", "--log-level loud: must be error, warn, info or debug"),
        ("ringtap run --no-ipv6=1", "--no-ipv6=1: takes no value; write --no-ipv6"),
        ("ringtap run --noipv6", "--noipv6: no such option; did you mean --no-ipv6?"),
        ("ringtap run --bandwidth", "--bandwidth: no such option; see ringtap run --help"),
        ("ringtap run -x", "-x: no such option; see ringtap run --help"),
        ("ringtap run --ready-fd 3", "--ready-fd: run has no such option, attach has"),
        ("ringtap create --keep-uid /x", "--keep-uid: create has no such option, run has"),
        (
            "ringtap attach 42 --ready-fd 9",
            "--ready-fd 9: is not open; the caller must pass it on (no close-on-exec)",
        ),
        (
            "ringtap attach 42 --ready-fd 0",
            "--ready-fd 0: is open for reading only; pass the end that can be written",
        ),
        (
            "ringtap attach 42 --exit-fd -1",
            "--exit-fd -1: must be the number of an open descriptor, such as 3",
        ),
        (
            "ringtap attach 42 --exit-fd x",
            "--exit-fd x: must be the number of an open descriptor, such as 3",
        ),
        (
            "ringtap attach 42 --ready-fd 3 --exit-fd 3",
            "--exit-fd 3: is the --ready-fd too, and that one is closed when ready; use two",
        ),
        ("ringtap run -p 80:0 x", "--publish 80:0: port 0: must be from 1 to 65535"),
        ("ringtap run -p", "--publish: a value is missing"),
        (
            "ringtap run --no-ipv6 --publish [::1]:80:80",
            "--publish: there is no IPv6 with --no-ipv6; leave one of them out",
        ),
        ("ringtap run --api /tmp/", "--api /tmp/: must be the path of a socket"),
        ("ringtap attach 42 --pid-file /tmp/", "--pid-file /tmp/: must be the path of a file"),
        (
            "ringtap attach 42 --userns /none",
            "--userns /none: no such file; it has to be the path of a user namespace, such as /proc/PID/ns/user",
        ),
        ("ringtap attach", "attach: one PID or NETNS_PATH is missing; see ringtap attach --help"),
        ("ringtap attach 42 43", "attach 43: is one too many; it takes one PID or NETNS_PATH"),
        (
            "ringtap attach 43",
            "attach 43: no process has this id (for a file of that name write ./43)",
        ),
        ("ringtap attach 0", "attach 0: is not a process id"),
        ("ringtap attach 99999999999", "attach 99999999999: is not a process id"),
        (
            "ringtap attach /none",
            "attach /none: no such file; it has to be a PID or the path of a network namespace",
        ),
        ("ringtap attach ", "attach: the path is empty"),
        ("ringtap create", "create: one PATH is missing; see ringtap create --help"),
        ("ringtap create a/", "create a/: must be the path of a file"),
        ("ringtap run --mtu 1500 ", "run: the command is empty; leave it out to get a shell"),
        ("ringtap create a b", "create b: is one too many; it takes one PATH"),
    ] {
        assert_eq!(refused(line), text, "{line}");
    }
}

#[test]
fn odd_bytes_stay_on_one_line() {
    use std::os::unix::ffi::OsStringExt;
    let args = [b"run".to_vec(), b"--mtu".to_vec(), b"1\n\xff".to_vec()];
    let refusal = parse(&args.map(OsString::from_vec), &Fake).unwrap_err();
    assert_eq!(refusal.stderr, "ringtap: --mtu 1?\u{fffd}: is not valid UTF-8");
}

#[test]
fn help_and_version() {
    assert_eq!(printed("ringtap --help"), help::PROGRAM);
    assert_eq!(printed("ringtap help"), help::PROGRAM);
    assert!(printed("ringtap --version").starts_with("ringtap 0."));
    for verb in ["run", "attach", "create", "port", "doctor"] {
        let text = printed(&format!("ringtap {verb} --help"));
        assert_eq!(text, printed(&format!("ringtap help {verb}")));
        assert!(text.starts_with(&format!("Usage: ringtap {verb}")));
        assert!(text.contains("\nExample"), "{verb}");
    }
    // After the command it is the command's.
    assert!(matches!(parse_words("ringtap run ls --help"), Ok(Command::Forward(..))));
    assert!(matches!(parse_words("ringtap doctor"), Ok(Command::Doctor)));
}

/// What the build makes of the help texts has every command, and every option.
#[test]
fn man_page_and_completions() {
    let pages = VERBS.map(|verb| (verb, help::page(verb)));
    let man = printed("ringtap man");
    let shells = ["bash", "zsh", "fish"].map(|s| printed(&format!("ringtap completions {s}")));
    for (name, text) in pages.iter().filter(|(name, _)| *name != "help") {
        assert!(!text.is_empty(), "help::own() lacks {name}");
        assert!(man.contains(&format!("\n.SS \"ringtap {name}\"\n")), "{name}");
        assert!(shells.iter().all(|shell| shell.contains(name)), "{name}");
        let lines = text.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
        for option in lines.filter_map(|line| line.split(' ').find(|word| word.starts_with("--"))) {
            let name = option.trim_start_matches('-');
            assert!(man.contains(&format!("\\-\\-{}\\fR", name.replace('-', "\\-"))), "{name}");
            assert!(shells[0].contains(&format!("--{name}")), "bash: {name}");
            assert!(shells[1].contains(&format!("--{name}[")), "zsh: {name}");
            assert!(shells[2].contains(&format!(" -l {name} ")), "fish: {name}");
        }
    }
    assert_eq!(refused("ringtap man 1"), "man 1: it takes no arguments");
    for rest in ["", " tcsh", " bash zsh"] {
        assert!(
            refused(&format!("ringtap completions{rest}")).contains("one of bash, zsh and fish")
        );
    }
}

#[test]
fn help_and_options_agree() {
    for verb in EVERY {
        let text = verb.help();
        for (name, verbs) in OPTIONS {
            let listed = text.split([' ', '\n', ',']).any(|word| word == format!("--{name}"));
            assert_eq!(listed, verbs.contains(verb), "{} --{name}", verb.name());
        }
    }
    for text in [help::PROGRAM, help::PORT, help::DOCTOR]
        .map(str::to_owned)
        .into_iter()
        .chain(EVERY.iter().map(|v| v.help()))
    {
        assert!(text.lines().all(|l| l.len() <= 80), "{text}");
        assert!(!text.ends_with('\n') && !text.contains("\n\n\n"), "{text}");
    }
}
