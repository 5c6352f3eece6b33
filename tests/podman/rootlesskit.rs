//! RootlessKit, as rootless Docker, containerd and BuildKit call it. It makes the TAP itself, with one
//! queue and persistent, and configures it while the program serves it.

use std::os::unix::fs::symlink;
use std::time::Duration;

use super::harness::cmd::Cmd;
use super::harness::{Bed, USER, against_slirp, eventually, need, ringtap};
use super::{body, helpers_in, own_etc, serve, sha256};

#[test]
fn rootlesskit() {
    need!("rootlesskit", "newuidmap", "busybox", "nsenter");
    let bed = Bed::with(own_etc);
    for name in ["home", "bin"] {
        bed.dir.make(name);
    }
    let slirp = bed.dir.path("bin/slirp4netns");
    let program = if against_slirp() { "/usr/bin/slirp4netns".into() } else { ringtap() };
    symlink(program, &slirp).expect("symlink");
    let at = serve(&bed.remote, body());
    // What dockerd-rootless.sh asks before.
    let help = Cmd::of(&slirp).args("--help").ok();
    assert!(help.contains("--netns-type"), "{help}");
    let script = format!(
        "cat /etc/resolv.conf; ip link show tap0; ip addr show tap0; ip route; \
         busybox wget -q -O - http://{at}/ | sha256sum"
    );
    let options = "--mtu=65520 --disable-host-loopback --slirp4netns-sandbox=auto \
                   --slirp4netns-seccomp=auto --port-driver=builtin --copy-up=/etc --copy-up=/run \
                   --propagation=rslave";
    for (more, net) in [("", "10.0.2"), ("--cidr=10.0.128.0/24 --ipv6", "10.0.128")] {
        let run = Cmd::new("rootlesskit --net=slirp4netns --slirp4netns-binary")
            .arg(&slirp)
            .args(options)
            .args(more)
            .args("sh -c")
            .arg(&script);
        let done = bed
            .host
            .enter_as(USER, run)
            .env("HOME", bed.dir.path("home"))
            .patience(Duration::from_secs(60))
            .run();
        assert!(done.success(), "{done:?}");
        for word in [
            &format!("nameserver {net}.3"),
            "mtu 65520",
            &format!("{net}.100/24"),
            &format!("default via {net}.2 dev tap0"),
            &sha256(&bed.dir, &body()),
        ] {
            assert!(done.stdout.contains(word), "`{word}` is missing: {done:?}");
        }
        eventually("the network command ends", || helpers_in(&bed).is_empty());
    }
}
