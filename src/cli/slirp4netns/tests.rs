//! slirp4netns's command line. The expected texts were seen from slirp4netns 1.2.0 with the same command lines,
//! but for those that the module's list of differences explains.

use super::*;
use crate::cli::tests::{Fake, config, parse_words};

const IPV6: &str = "WARNING: Support for IPv6 is experimental";
const SECCOMP: &str = "WARNING: Support for seccomp is experimental";
const OUT: &str = "WARNING: Support for --outbound-addr is experimental";
const OUT6: &str = "WARNING: Support for --outbound-addr6 is experimental";
const NO_HOST: &str = "WARNING: --no-host-loopback is deprecated and will be removed in future releases, please use --disable-host-loopback instead.";
const CREATE: &str = "WARNING: --create-sandbox is deprecated and will be removed in future releases, please use --enable-sandbox instead.";
const MANY: &str = "WARNING: too many arguments";
const MTU: &str = "MTU must be a positive integer (< 65522)";
const PID: &str = "PID must be a positive integer";
const EXIT: &str = "exit-fd must be a non-negative integer";
const READY: &str = "ready-fd must be a non-negative integer";
const NO_PATH: &str = "existing path expected when --netns-type=path: No such file or directory";
const MACADDR: &str = "--macaddr cannot be specified when --configure or -c is not specified";
const NO_USERNS: &str = "userns path doesn't exist: /nonexist";
const TARGET: &str = "--target-type must be either \"netns\" or \"bess\"";
const OUT_BAD: &str = "outbound-addr has to be valid ipv4 address or interface name.";
const OUT6_BAD: &str = "outbound-addr has to be valid ipv4 address or iterface name.";

/// What `slirp4netns` answers to the rest of the command line: warnings on stdout, then the usage if `with_usage`.
fn refused(rest: &str, warnings: &[&str], with_usage: bool, stderr: &str) {
    let mut stdout: Vec<String> = warnings.iter().map(|&w| w.to_owned()).collect();
    if with_usage {
        stdout.push(help::slirp4netns("slirp4netns"));
    }
    let expected = Refusal { stdout: stdout.join("\n"), stderr: stderr.to_owned(), code: 1 };
    let line =
        if rest.is_empty() { "slirp4netns".to_owned() } else { format!("slirp4netns {rest}") };
    match parse_words(&line) {
        Err(refusal) => assert_eq!(refusal, expected, "{line}"),
        Ok(other) => panic!("{line}: {other:?}"),
    }
}

/// The warnings of a command line that starts.
fn warned(rest: &str) -> Vec<String> {
    match parse_words(&format!("slirp4netns {rest}")) {
        Ok(Command::Forward(_, warnings)) => warnings,
        other => panic!("{rest}: {other:?}"),
    }
}

#[test]
fn mistakes_answered_with_the_usage() {
    for (rest, warnings, stderr) in [
        ("", &[][..], ""),
        ("42", &[], ""),
        ("-", &[], ""),
        ("--cidr foo", &[], ""),
        ("--outbound-addr nosuch", &[OUT], ""),
        ("--netns-type=path /nonexist", &[], ""),
        ("--netns --help", &[], ""),
        ("-c --macaddress=", &[], ""),
        // getopt's own.
        ("--x", &[], "slirp4netns: unrecognized option '--x'"),
        ("--x --help", &[], "slirp4netns: unrecognized option '--x'"),
        ("-6 --x", &[IPV6], "slirp4netns: unrecognized option '--x'"),
        ("42 tap0 --x", &[], "slirp4netns: unrecognized option '--x'"),
        ("--mt", &[], "slirp4netns: option '--mtu' requires an argument"),
        ("--mtu", &[], "slirp4netns: option '--mtu' requires an argument"),
        ("-m", &[], "slirp4netns: option requires an argument -- 'm'"),
        ("-c -6 -r", &[IPV6], "slirp4netns: option requires an argument -- 'r'"),
        ("--api-socket", &[], "slirp4netns: option '--api-socket' requires an argument"),
        ("-z", &[], "slirp4netns: invalid option -- 'z'"),
        ("-cz", &[], "slirp4netns: invalid option -- 'z'"),
        ("-5 tap0", &[], "slirp4netns: invalid option -- '5'"),
        (
            "--configure=1 42 tap0",
            &[],
            "slirp4netns: option '--configure' doesn't allow an argument",
        ),
        ("--cre=5", &[], "slirp4netns: option '--create-sandbox' doesn't allow an argument"),
        ("--no-host=1", &[], "slirp4netns: option '--no-host-loopback' doesn't allow an argument"),
        (
            "--e 42 tap0",
            &[],
            "slirp4netns: option '--e' is ambiguous; possibilities: '--exit-fd' '--enable-ipv6' '--enable-sandbox' '--enable-seccomp'",
        ),
        (
            "--m 5",
            &[],
            "slirp4netns: option '--m' is ambiguous; possibilities: '--mtu' '--macaddress'",
        ),
        (
            "--disable",
            &[],
            "slirp4netns: option '--disable' is ambiguous; possibilities: '--disable-host-loopback' '--disable-dns'",
        ),
        (
            "--outbound-ad x 42 tap0",
            &[],
            "slirp4netns: option '--outbound-ad' is ambiguous; possibilities: '--outbound-addr' '--outbound-addr6'",
        ),
        (
            "--=5",
            &[],
            "slirp4netns: option '--=5' is ambiguous; possibilities: '--configure' '--exit-fd' '--ready-fd' '--mtu' '--cidr' '--disable-host-loopback' '--no-host-loopback' '--netns-type' '--userns-path' '--api-socket' '--enable-ipv6' '--enable-sandbox' '--create-sandbox' '--enable-seccomp' '--help' '--version' '--outbound-addr' '--outbound-addr6' '--disable-dns' '--macaddress' '--target-type'",
        ),
        // Numbers. The first mistake in order is the one that is told.
        ("-m 0 42 tap0", &[], MTU),
        ("-m 0 --help", &[], MTU),
        ("-m 0 --x", &[], MTU),
        ("-m 0 -e abc 42 tap0", &[], MTU),
        ("42 tap0 -m 0", &[], MTU),
        ("-m -1 42 tap0", &[], MTU),
        ("-m 65522 42 tap0", &[], MTU),
        ("-m abc 42 tap0", &[], MTU),
        ("-m 1500x 42 tap0", &[], MTU),
        ("-m 99999999999999999999 42 tap0", &[], MTU),
        ("-c --mtu -6 42 tap0", &[], MTU),
        ("--mtu=", &[], MTU),
        ("-e -1 42 tap0", &[], EXIT),
        ("-e abc 42 tap0", &[], EXIT),
        ("--exit-fd=0x10 42 tap0", &[], EXIT),
        ("-r -1 42 tap0", &[], READY),
        ("-rX", &[], READY),
        ("-r=3 42 tap0", &[], READY),
        ("-r +-3 42 tap0", &[], READY),
        ("abc tap0", &[], PID),
        ("abc tap0 extra", &[MANY], PID),
        ("0 tap0", &[], PID),
        ("-- -5 tap0", &[], PID),
        ("12abc tap0", &[], PID),
        ("-c -- --help tap0", &[], PID),
        ("--outbound-addr nosuch -c --macaddress= abc tap0", &[OUT], PID),
        // Paths and combinations.
        ("--netns-type=path /nonexist tap0", &[], NO_PATH),
        ("--netns-type=path 42 tap0", &[], NO_PATH),
        ("--netns-type=foo /nonexist tap0", &[], NO_PATH),
        ("--netns-type= /nonexist tap0", &[], NO_PATH),
        ("--netns-type=PID 42 tap0", &[], NO_PATH),
        ("--userns-path=/nonexist 42 tap0", &[], NO_USERNS),
        ("--userns-path=/nonexist --help", &[], NO_USERNS),
        ("--userns-path=/nonexist --macaddress=x 42 tap0", &[], NO_USERNS),
        ("--userns-path= 42 tap0", &[], "userns path doesn't exist: "),
        ("--macaddress=52:54:00:12:34:56 42 tap0", &[], MACADDR),
        ("--macaddress=x --target-type=bess", &[], MACADDR),
        ("--target-type=foo --macaddress=x 42 tap0", &[], MACADDR),
        ("--cidr foo --macaddress=foo 42 tap0", &[], MACADDR),
        ("--target-type=foo", &[], TARGET),
        ("--cidr foo --target-type=foo", &[], TARGET),
        ("--target-type=bess", &[], ""),
        ("--target-type=bess -c", &[], ""),
        ("--target-type=bess -c a b", &[], "too many arguments"),
        ("--target-type=bess -c /s", &[], "--configure conflicts with --target-type=bess"),
        (
            "--target-type bess -c --netns-type=path /s",
            &[],
            "--configure conflicts with --target-type=bess",
        ),
        (
            "--target-type=bess --netns-type=pid /s",
            &[],
            "--netns-type conflicts with --target-type=bess",
        ),
        (
            "--target-type=bess --userns-path=/proc/42/ns/user /s",
            &[],
            "--userns-path conflicts with --target-type=bess",
        ),
        // From the source of 1.3.3: 1.2.0 has no tapfd.
        ("--netns-type=tapfd abc", &[], "TAPFD must a file descriptor"),
        ("--netns-type=tapfd -- -1 tap0", &[], "TAPFD must a file descriptor"),
        ("--netns-type=tapfd", &[], ""),
    ] {
        refused(rest, warnings, true, stderr);
    }
}

#[test]
fn mistakes_answered_by_themselves() {
    let mac = |first: &str| {
        format!(
            "{first}\nmacaddress has to be a valid MAC address (hex string, 6 bytes, each byte separated by a ':')."
        )
    };
    let too_long = format!("-a /{} 42 tap0", "x".repeat(107));
    for (rest, warnings, stderr) in [
        ("--cidr foo 42 tap0", &[][..], "invalid CIDR: foo".to_owned()),
        ("--cidr= 42 tap0", &[], "invalid CIDR: ".to_owned()),
        ("--cidr 10.0.2.256/24 42 tap0", &[], "invalid network address: 10.0.2.256".to_owned()),
        ("--cidr 10.0.2.0/26 42 tap0", &[], "prefix length needs to be 1-25".to_owned()),
        ("--cidr 10.0.2.0/0 42 tap0", &[], "prefix length needs to be 1-25".to_owned()),
        ("--cidr 10.0.2.1/99 42 tap0", &[], "prefix length needs to be 1-25".to_owned()),
        (
            "--cidr 10.0.2.100/24 42 tap0",
            &[],
            "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24"
                .to_owned(),
        ),
        (
            "--cidr 10.0.3.7/08 42 tap0",
            &[],
            "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24"
                .to_owned(),
        ),
        ("--cidr foo -c --macaddress= 42 tap0", &[], "invalid CIDR: foo".to_owned()),
        ("--cidr foo --outbound-addr nosuch 42 tap0", &[OUT], "invalid CIDR: foo".to_owned()),
        ("--outbound-addr nosuch 42 tap0", &[OUT], OUT_BAD.to_owned()),
        ("--outbound-addr= 42 tap0", &[OUT], OUT_BAD.to_owned()),
        ("--outbound-addr6 nosuch 42 tap0", &[OUT6], OUT6_BAD.to_owned()),
        (
            "--outbound-addr6 nosuch --outbound-addr nosuch 42 tap0",
            &[OUT6, OUT],
            OUT_BAD.to_owned(),
        ),
        ("-c --macaddress= --outbound-addr6 nosuch 42 tap0", &[OUT6], OUT6_BAD.to_owned()),
        ("-c --macaddress= 42 tap0", &[], mac("\"\" is an invalid MAC address.")),
        ("-c --macaddress=zz 42 tap0", &[], mac("\"zz\" is an invalid MAC address.")),
        (
            "-c --macaddress=52:54:00:12:34:5678 42 tap0",
            &[],
            mac("\"52:54:00:12:34:5678\" is an invalid MAC address."),
        ),
        (
            "-c --macaddress=52:54:00:12:34:56:78 42 tap0",
            &[],
            mac("\"52:54:00:12:34:56:78\" is an invalid MAC address.  Is it too long?"),
        ),
        // From the source of 1.3.3.
        (&too_long, &[], "the specified API socket path is too long (>= 108)".to_owned()),
    ] {
        refused(rest, warnings, false, &stderr);
    }
    let longest = format!("/{}", "x".repeat(106));
    let c = config(&format!("slirp4netns -a {longest} 42 tap0"));
    assert_eq!(c.api_socket.as_deref(), Some(Path::new(&longest)));
}

/// Command lines that slirp4netns 1.2.0 takes, with what it then does wrong.
#[test]
fn refused_on_purpose() {
    refused("-m 4294968796 42 tap0", &[], true, MTU);
    refused("-e  42 tap0", &[], true, EXIT);
    refused("-r 4294967297 42 tap0", &[], true, READY);
    refused("99999999999 tap0", &[], true, PID);
    refused("-m 67 42 tap0", &[], true, "MTU must be 68 or more: no TAP takes 67");
    refused(
        "-r 3 -e 3 42 tap0",
        &[],
        false,
        "exit-fd must not be the ready-fd, which is closed when ready",
    );
    refused("-a  42 tap0", &[], false, "the specified API socket path is empty");
    refused("--cidr 127.0.0.0/24 42 tap0", &[], false, "invalid network address: 127.0.0.0");
    let name = "invalid TAPNAME: averyveryverylongname (1 to 15 characters without space, '/', ':' or '%')";
    refused("42 averyveryverylongname", &[], false, name);
    for mac in ["foo", "52:54:00:12:34", "52-54-00-12-34-56", "53:54:00:12:34:56"] {
        let text = format!(
            "\"{mac}\" is an invalid MAC address.\nmacaddress has to be a valid MAC address (hex string, 6 bytes, each byte separated by a ':')."
        );
        refused(&format!("-c --macaddress={mac} 42 tap0"), &[], false, &text);
    }
}

#[test]
fn defaults() {
    let c = config("slirp4netns 42 tap0");
    assert!(matches!(c.mode, Mode::Attach(Target::Pid { pid: 42, userns: None })));
    assert_eq!((c.net.mtu, c.net.v6, c.tap_name.as_str()), (1500, None, "tap0"));
    assert_eq!(c.net.v4.guest, Ipv4Addr::new(10, 0, 2, 100));
    assert!(c.net.host_loopback && c.net.dns && !c.configure && !c.write_resolv_conf);
    assert_eq!((c.ready_fd, c.exit_fd, c.api_socket, c.pid_file), (None, None, None, None));
    assert_eq!(warned("42 tap0"), [""; 0]);
}

#[test]
fn as_podman_calls_it() {
    let line = "slirp4netns --disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 \
                -c -e 3 -r 4 --api-socket /tmp/ctr.net --netns-type=path /run/ns tap0";
    let Ok(Command::Forward(c, warnings)) = parse_words(line) else { panic!() };
    assert!(
        matches!(c.mode, Mode::Attach(Target::Path { path, userns: None }) if path == Path::new("/run/ns"))
    );
    assert_eq!((c.net.mtu, c.exit_fd, c.ready_fd), (65520, Some(3), Some(4)));
    // Router advertisements only.
    assert_eq!(c.net.v6, Some(V6Net::fd00(false)));
    assert!(c.configure && !c.net.host_loopback);
    assert_eq!(c.api_socket.as_deref(), Some(Path::new("/tmp/ctr.net")));
    assert_eq!(warnings, [SECCOMP, IPV6]);
}

#[test]
fn as_rootlesskit_calls_it() {
    let c = config(
        "slirp4netns --mtu 65520 -r 3 --disable-host-loopback --cidr 10.0.135.128/25 \
         --userns-path=/proc/42/ns/user --netns-type=path /run/ns tap0",
    );
    let Mode::Attach(Target::Path { userns, .. }) = c.mode else { panic!() };
    assert_eq!(userns.as_deref(), Some(Path::new("/proc/42/ns/user")));
    assert_eq!(c.net.v4.guest, Ipv4Addr::new(10, 0, 135, 228));
    assert!(!c.configure);
}

#[test]
fn other_forms() {
    // Operands first, clusters, prefixes.
    let c = config("slirp4netns 42 tap1 -c6m9000 --macad=52:54:00:12:34:56 --disable-d");
    assert_eq!((c.net.mtu, c.tap_name.as_str(), c.net.dns), (9000, "tap1", false));
    assert!(c.configure && c.net.v6.is_some());
    assert_eq!(c.net.guest_mac, Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
    for line in ["slirp4netns --netns-type=tapfd 5", "slirp4netns --netns-type=tapfd 5 tap0"] {
        let c = config(line);
        assert!(matches!(c.mode, Mode::Attach(Target::TapFd(5))) && !c.configure);
    }
    // strtol takes a sign and white space.
    assert_eq!(config("slirp4netns -m +1500 42 tap0").net.mtu, 1500);
    let c = config("slirp4netns -6 --target-type bess /tmp/s");
    assert!(matches!(c.mode, Mode::Attach(Target::Bess(path)) if path == Path::new("/tmp/s")));
    assert_eq!(
        warned("--target-type=bess -6 /tmp/s"),
        [IPV6, "WARNING: BESS mode is experimental"]
    );
    // A descriptor that is not open is boot's business.
    assert_eq!(config("slirp4netns -e 9 42 tap0").exit_fd, Some(9));
    assert_eq!(config("slirp4netns --ready-fd=-0 42 tap0").ready_fd, Some(0));
    assert_eq!(strtol(" \t7"), Some(7));
    assert_eq!((strtol(""), strtol("-"), strtol("7 "), strtol("+-7")), (None, None, None, None));
    let c = config("slirp4netns --outbound-addr=eth0 --outbound-addr6=eth0 42 tap0");
    assert_eq!(c.net.outbound_v4, Some(Outbound::Interface("eth0".into())));
    assert_eq!(c.net.outbound_v6, Some(Outbound::Interface("eth0".into())));
    assert_eq!(config("slirp4netns -m 1279 -6 42 tap0").net.v6, None);
    assert!(config("slirp4netns -m 1280 -6 42 tap0").net.v6.is_some());
}

#[test]
fn warnings_in_the_order_of_the_options() {
    assert_eq!(warned("--outbound-addr 192.0.2.7 -6 42 tap0"), [OUT, IPV6]);
    assert_eq!(warned("--outbound-addr6 ::1 --outbound-addr 192.0.2.7 42 tap0"), [OUT6, OUT]);
    assert_eq!(warned("--no-host-loopback 42 tap0 extra"), [NO_HOST, MANY]);
    assert!(!config("slirp4netns --no-host-loopback 42 tap0").net.host_loopback);
    assert_eq!(warned("--create-sandbox 42 tap0"), [CREATE]);
    assert!(warned("--enable-sandbox 42 tap0").is_empty());
    assert!(warned("-a /tmp/s 42 tap0").is_empty());
    assert_eq!(
        warned("-6 -m 576 42 tap0"),
        [IPV6, "WARNING: MTU 576 is below 1280, which IPv6 needs: IPv6 is off"]
    );
    assert_eq!(
        warned("-c --netns-type=tapfd 5"),
        ["WARNING: --configure has no effect with --netns-type=tapfd"]
    );
}

#[test]
fn help_and_version() {
    let print = |line: &str| match parse_words(line) {
        Ok(Command::Print(text)) => text,
        other => panic!("{line}: {other:?}"),
    };
    let help = print("slirp4netns --help");
    // What podman and RootlessKit look for.
    for word in [
        "--netns-type",
        "--enable-ipv6",
        "--cidr",
        "--disable-host-loopback",
        "--api-socket",
        "--enable-sandbox",
        "--enable-seccomp",
        "--mtu",
        "--outbound-addr",
    ] {
        assert!(help.contains(word), "{word}");
    }
    // All options but the two deprecated ones.
    for Opt { name, .. } in LONG {
        let hidden = ["no-host-loopback", "create-sandbox"].contains(name);
        assert_eq!(help.contains(&format!("--{name}")), !hidden, "{name}");
    }
    assert!(help.lines().all(|line| line.len() <= 82));
    for line in
        ["slirp4netns -h", "slirp4netns --he", "slirp4netns -h5", "slirp4netns --cidr foo --help"]
    {
        assert_eq!(print(line), help, "{line}");
    }
    assert_eq!(print("slirp4netns -6 --no-host -h"), format!("{IPV6}\n{NO_HOST}\n{help}"));
    assert!(print("/opt/slirp4netns -h").starts_with("Usage: /opt/slirp4netns [OPTION]"));
    let version = print("slirp4netns --version");
    let lines: Vec<&str> = version.lines().collect();
    assert_eq!((lines.len(), lines[0]), (5, "slirp4netns version 1.3.3"));
    // slirp4netns's own tests skip where the fourth line is missing.
    assert_eq!(lines[3], "SLIRP_CONFIG_VERSION_MAX: 6");
    assert_eq!(print("slirp4netns -v -m 0"), version);
}

#[test]
fn paths_may_hold_any_byte() {
    use std::os::unix::ffi::OsStringExt;
    let args = [b"-a".to_vec(), b"/tmp/\xff".to_vec(), b"42".to_vec(), b"tap0".to_vec()];
    let Ok(Command::Forward(c, _)) = parse("slirp4netns", &args.map(OsString::from_vec), &Fake)
    else {
        panic!()
    };
    assert_eq!(c.api_socket.map(PathBuf::into_os_string).unwrap().as_bytes(), b"/tmp/\xff");
}
