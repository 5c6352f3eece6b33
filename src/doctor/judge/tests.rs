//! Findings on machines that we do not have.

use super::*;
use crate::doctor::facts::Ring;

const ROUTE: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                     fe800000000000000000000000000001 00000400 00000002 00000000 00000003     eth0\n";

/// A machine on which nothing is wrong, seen by an ordinary user.
fn good() -> Facts {
    Facts {
        release: "6.18.2-amd64".to_owned(),
        is_root: false,
        is_filtered: false,
        ring: Ring {
            plain: Ok(()),
            flags: Ok(()),
            probe: Ok(()),
            missing: Vec::new(),
            buffers: Ok(()),
            no_iowait: true,
        },
        ring_disabled: Some(0),
        tun: Ok(()),
        trial: Some(Trial {
            user: Tried::Worked,
            maps: Tried::Worked,
            net: Tried::Worked,
            mount: Tried::Worked,
            device: Tried::Worked,
            tap: Tried::Worked,
            offloads: Some(0),
        }),
        sandbox: Some(Ok(())),
        userns_clone: None,
        apparmor_restricts: None,
        namespaces_max: [Some(31000); 3],
        descriptors_max: Some(1 << 20),
        ping: Ok(()),
        ping_range: Some("0 2147483647".to_owned()),
        port_start: Some(0),
        tcp_buffers: [Some(32 << 20), Some(4 << 20)],
        socket_buffers: [Some(212_992); 2],
        resolv_conf: Some("search example\nnameserver 192.0.2.1\n".to_owned()),
        ipv6_disabled: Some(0),
        ipv6_routes: ROUTE.to_owned(),
    }
}

/// The only finding that is not what it is on a good machine: verdict and text with remedy.
fn only(what: &str, change: impl FnOnce(&mut Facts)) -> (Verdict, String) {
    let mut facts = good();
    change(&mut facts);
    let usual = judge(&good());
    let other: Vec<Finding> = judge(&facts).into_iter().filter(|f| !usual.contains(f)).collect();
    let [Finding { verdict, what: seen, found, remedy }] = other.as_slice() else {
        panic!("{what}: {other:#?}")
    };
    assert_eq!(*seen, what);
    (*verdict, format!("{found} -- {remedy}"))
}

fn trial(facts: &mut Facts, change: impl FnOnce(&mut Trial)) {
    change(facts.trial.as_mut().unwrap());
}

/// The trial stops at a step: nothing after it was tried.
fn stop(facts: &mut Facts, step: &str, how: Tried) {
    trial(facts, |t| {
        let mut reached = false;
        for (name, field) in [
            ("user", &mut t.user),
            ("maps", &mut t.maps),
            ("net", &mut t.net),
            ("mount", &mut t.mount),
            ("device", &mut t.device),
            ("tap", &mut t.tap),
        ] {
            if reached {
                *field = Tried::Not;
            }
            if name == step {
                *field = how;
                reached = true;
            }
        }
        t.offloads = None;
    });
}

#[test]
fn a_good_machine() {
    let all = judge(&good());
    assert!(all.iter().all(|f| f.verdict == Verdict::Ok && f.remedy.is_empty()), "{all:#?}");
    let names: Vec<&str> = all.iter().map(|f| f.what).collect();
    assert_eq!(
        names,
        [
            "kernel",
            "io_uring",
            "io_uring set-up",
            "io_uring operations",
            "io_uring buffer rings",
            "io_uring waiting",
            "/dev/net/tun",
            "user namespaces",
            "TAP in a namespace",
            "TAP offloads",
            "sandbox",
            "namespace limits",
            "descriptors",
            "ping sockets",
            "unprivileged ports",
            "TCP buffers",
            "UDP buffers",
            "resolv.conf",
            "IPv6",
        ]
    );
}

#[test]
fn no_sandbox() {
    let why = "sandbox: cannot unshare new mount namespace: Operation not permitted: fix it (--no-sandbox)";
    let (verdict, text) = only("sandbox", |f| f.sandbox = Some(Err(why.to_owned())));
    assert_eq!(verdict, Verdict::Lacking);
    assert!(text.starts_with("cannot unshare") && text.contains("--no-sandbox"), "{text}");
    let (verdict, text) = only("sandbox", |f| f.sandbox = None);
    assert_eq!(verdict, Verdict::Lacking);
    assert!(text.contains("--no-sandbox"), "{text}");
}

#[test]
fn kernels() {
    for release in ["6.7.0", "6.12.3-rc1", "7.0", "10.1.1"] {
        let (verdict, text) = only("kernel", |f| f.release = release.to_owned());
        assert_eq!((verdict, text.starts_with(release)), (Verdict::Ok, true));
    }
    // A distribution may have brought back what is needed.
    let (verdict, text) = only("kernel", |f| f.release = "6.6.9".to_owned());
    assert_eq!((verdict, text.as_str()), (Verdict::Ok, "6.6.9, with what 6.7 brought -- "));
    let mut old = good();
    old.release = "5.14.0-570.el9".to_owned();
    old.ring.missing = vec!["READ_MULTISHOT"];
    let found: Vec<(Verdict, String)> = judge(&old)
        .into_iter()
        .filter(|f| f.verdict != Verdict::Ok)
        .map(|f| (f.verdict, f.found))
        .collect();
    assert_eq!(
        found,
        [
            (Verdict::Fatal, "5.14.0-570.el9 is too old".to_owned()),
            (Verdict::Fatal, "not known: READ_MULTISHOT".to_owned())
        ]
    );
}

#[test]
fn ring_blocked() {
    let blocked = |errno, change: fn(&mut Facts)| {
        let mut facts = good();
        facts.ring.plain = Err(errno);
        facts.ring.flags = Err(errno);
        change(&mut facts);
        let all: Vec<Finding> =
            judge(&facts).into_iter().filter(|f| f.what.starts_with("io_uring")).collect();
        // One line, whatever follows from it.
        let [Finding { verdict: Verdict::Fatal, found, remedy, .. }] = all.as_slice() else {
            panic!("{all:#?}")
        };
        format!("{found} -- {remedy}")
    };
    for (level, whom) in [(1, "for ordinary users"), (2, "for everybody")] {
        let text = if level == 1 {
            blocked(libc::EPERM, |f| f.ring_disabled = Some(1))
        } else {
            blocked(libc::EPERM, |f| f.ring_disabled = Some(2))
        };
        assert!(text.starts_with(&format!(
            "switched off {whom} (kernel.io_uring_disabled={level}) -- sysctl "
        )));
    }
    for errno in [libc::EPERM, libc::ENOSYS, libc::EACCES] {
        let text = blocked(errno, |f| f.is_filtered = true);
        assert!(text.contains("a seccomp filter is in the way"), "{text}");
    }
    assert!(blocked(libc::ENOSYS, |_| {}).contains("CONFIG_IO_URING"));
    assert!(blocked(libc::ENOMEM, |_| {}).contains("ulimit -l"));
    assert!(blocked(libc::EMFILE, |_| {}).contains("ulimit -n"));
}

#[test]
fn ring_features() {
    let (verdict, text) = only("io_uring set-up", |f| f.ring.flags = Err(libc::EINVAL));
    assert_eq!(verdict, Verdict::Fatal);
    assert!(text.contains("(since Linux 6.1): invalid argument (EINVAL)"), "{text}");
    let (verdict, _) = only("io_uring buffer rings", |f| f.ring.buffers = Err(libc::EINVAL));
    assert_eq!(verdict, Verdict::Fatal);
    let (verdict, text) = only("io_uring operations", |f| {
        f.is_filtered = true;
        f.ring.probe = Err(libc::ENOSYS);
    });
    assert_eq!(verdict, Verdict::Fatal);
    assert!(text.contains("a seccomp profile that allows"), "{text}");
    let (_, text) = only("io_uring operations", |f| f.ring.probe = Err(libc::EINVAL));
    assert!(text.ends_with(" -- upgrade to Linux 6.7 or newer"), "{text}");
    let (verdict, text) = only("io_uring waiting", |f| f.ring.no_iowait = false);
    assert_eq!(verdict, Verdict::Ok);
    assert!(text.contains("I/O wait"));
}

#[test]
fn the_device() {
    // The child cannot open it either: that is one finding, not two.
    for (errno, remedy) in [(libc::EACCES, "chmod 0666"), (libc::ENOENT, "modprobe tun")] {
        let mut facts = good();
        facts.tun = Err(errno);
        stop(&mut facts, "device", Tried::Failed(errno));
        let fatal: Vec<Finding> =
            judge(&facts).into_iter().filter(|f| f.verdict != Verdict::Ok).collect();
        let [Finding { verdict: Verdict::Fatal, what: "/dev/net/tun", remedy: told, .. }] =
            fatal.as_slice()
        else {
            panic!("{fatal:#?}")
        };
        assert!(told.starts_with(remedy), "{told}");
    }
}

#[test]
fn user_namespace_restrictions() {
    let denied = |errno, change: fn(&mut Facts)| {
        let mut facts = good();
        stop(&mut facts, "user", Tried::Failed(errno));
        change(&mut facts);
        user_namespaces(&facts)
    };
    let finding = denied(libc::EPERM, |f| f.userns_clone = Some(0));
    assert_eq!(finding.verdict, Verdict::Fatal);
    assert_eq!(finding.found, "cannot be made: operation not permitted (EPERM)");
    assert_eq!(finding.remedy, "sysctl -w kernel.unprivileged_userns_clone=1");
    assert!(denied(libc::EPERM, |f| f.is_filtered = true).remedy.contains("seccomp"));
    assert!(denied(libc::EPERM, |_| {}).remedy.contains("chroot"));
    assert!(denied(libc::ENOSPC, |_| {}).remedy.contains("user.max_user_namespaces"));
    assert!(denied(libc::EINVAL, |_| {}).remedy.contains("CONFIG_USER_NS"));
    // Root needs none for attach and create.
    assert_eq!(denied(libc::EPERM, |f| f.is_root = true).verdict, Verdict::Lacking);
    // AppArmor lets the first step pass and takes the rights in the new namespace.
    for step in ["user", "maps", "net", "mount"] {
        let mut facts = good();
        facts.apparmor_restricts = Some(1);
        stop(&mut facts, step, Tried::Failed(libc::EPERM));
        let finding = user_namespaces(&facts);
        assert!(finding.found.starts_with("AppArmor"), "{step}: {finding:?}");
        assert!(finding.remedy.contains("kernel.apparmor_restrict_unprivileged_userns=0"));
        facts.apparmor_restricts = Some(0);
        assert!(!user_namespaces(&facts).found.contains("AppArmor"));
    }
    // Restricted, but not us: a profile allows it.
    let mut facts = good();
    facts.apparmor_restricts = Some(1);
    assert_eq!(user_namespaces(&facts).verdict, Verdict::Ok);
    let mut facts = good();
    stop(&mut facts, "net", Tried::Not);
    assert!(user_namespaces(&facts).found.contains("was killed"));
    facts.trial = None;
    assert_eq!(user_namespaces(&facts).verdict, Verdict::Fatal);
}

#[test]
fn taps() {
    let (verdict, text) = only("TAP offloads", |f| trial(f, |t| t.offloads = Some(1)));
    assert_eq!(verdict, Verdict::Slow);
    assert!(text.contains("UDP datagrams go one by one"), "{text}");
    let made = |step, how| {
        let mut facts = good();
        stop(&mut facts, step, how);
        tap(&facts)
    };
    let all = made("tap", Tried::Failed(libc::EPERM));
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].verdict, Verdict::Fatal);
    assert_eq!(all[0].found, "cannot be made: operation not permitted (EPERM)");
    assert!(
        made("device", Tried::Failed(libc::EACCES))[0].found.starts_with("/dev/net/tun cannot")
    );
    assert!(made("tap", Tried::Not)[0].found.contains("killed"));
    // No network namespace, so no TAP was tried: said already.
    assert!(made("net", Tried::Failed(libc::EPERM)).is_empty());
}

#[test]
fn limits() {
    let (verdict, text) = only("namespace limits", |f| f.namespaces_max[1] = Some(0));
    assert_eq!(verdict, Verdict::Fatal);
    assert_eq!(text, "user 31000, net 0, mnt 31000 -- sysctl -w user.max_net_namespaces=15000");
    assert_eq!(only("namespace limits", |f| f.namespaces_max[0] = Some(10)).0, Verdict::Slow);
    assert_eq!(only("namespace limits", |f| f.namespaces_max = [None; 3]).0, Verdict::Ok);
    let (verdict, text) = only("descriptors", |f| f.descriptors_max = Some(4096));
    assert_eq!(verdict, Verdict::Slow);
    assert!(text.starts_with("hard limit 4096: 4032 conversations at once"), "{text}");
    assert_eq!(only("descriptors", |f| f.descriptors_max = Some(64)).0, Verdict::Fatal);
    assert_eq!(only("descriptors", |f| f.descriptors_max = Some(u64::MAX)).0, Verdict::Ok);
    let (verdict, text) = only("TCP buffers", |f| f.tcp_buffers[1] = Some(65536));
    assert_eq!(verdict, Verdict::Slow);
    assert!(text.starts_with("net.ipv4.tcp_wmem ends at 65536 bytes"), "{text}");
    assert_eq!(only("TCP buffers", |f| f.tcp_buffers = [None; 2]).0, Verdict::Ok);
    let (verdict, text) = only("UDP buffers", |f| f.socket_buffers[0] = Some(65536));
    assert_eq!((verdict, text.contains("net.core.rmem_max=212992")), (Verdict::Slow, true));
}

#[test]
fn ping_and_ports() {
    let (verdict, text) = only("ping sockets", |f| {
        f.ping = Err(libc::EACCES);
        f.ping_range = Some("1 0".to_owned());
    });
    assert_eq!(verdict, Verdict::Lacking);
    assert_eq!(
        text,
        "net.ipv4.ping_group_range is \"1 0\", without a group of ours: the guest can ping the \
         gateway only -- sysctl -w net.ipv4.ping_group_range=\"0 2147483647\""
    );
    assert_eq!(only("ping sockets", |f| f.ping = Err(libc::EPERM)).0, Verdict::Lacking);
    let (verdict, text) = only("unprivileged ports", |f| f.port_start = Some(1024));
    assert_eq!(verdict, Verdict::Ok);
    assert!(text.starts_with("from 1024 on; a lower one cannot be forwarded"), "{text}");
}

#[test]
fn names() {
    let seen = |text: Option<&str>| {
        let text = text.map(str::to_owned);
        only("resolv.conf", |f| f.resolv_conf = text)
    };
    let (verdict, text) = seen(Some(
        "#nameserver 192.0.2.9\n nameserver\t127.0.0.53 # stub\nnameserver 192.0.2.2\nnameserver x\n",
    ));
    assert_eq!(verdict, Verdict::Ok);
    assert!(
        text.starts_with("the guest's DNS asks 127.0.0.53, then 192.0.2.2 (on the host's loopback"),
        "{text}"
    );
    assert_eq!(seen(Some("options edns0\n")).0, Verdict::Lacking);
    assert_eq!(seen(None).0, Verdict::Lacking);
}

#[test]
fn ipv6_on_the_host() {
    assert_eq!(only("IPv6", |f| f.ipv6_disabled = None).0, Verdict::Lacking);
    let (verdict, text) = only("IPv6", |f| f.ipv6_disabled = Some(1));
    assert_eq!((verdict, text.contains("disable_ipv6=0")), (Verdict::Lacking, true));
    let (verdict, text) = only("IPv6", |f| f.ipv6_routes = String::new());
    assert_eq!(
        (verdict, text.starts_with("this host has no default route")),
        (Verdict::Lacking, true)
    );
    assert!(has_default_route(ROUTE));
    // The one that rejects, a /8 that starts with zeros, garbage.
    assert!(!has_default_route(&ROUTE.replace("00000003     eth0", "00200200       lo")));
    assert!(!has_default_route(&ROUTE.replace("00000003", "00000203")));
    assert!(!has_default_route(&ROUTE.replacen(" 00 ", " 08 ", 1)));
    assert!(!has_default_route("x\n"));
}
