//! A bed for tests: three namespaces and the program between them.
//!
//! ```text
//!   guest (uid 60000's)        host                     remote                far
//!     tap0 10.0.2.100  ==>  [ringtap]  host0 ======= remote0   remote1 ===== far0
//!                                      198.51.100.1   .2        203.0.113.1   .2
//!                                      2001:db8:1::1  ::2    2001:db8:2::1  2001:db8:2::2
//! ```
//!
//! The program runs in `host` as an ordinary user that no database knows. Namespaces are held by
//! descriptors and a process that dies with the test; mounts are made in namespaces of their own.
//! `RINGTAP_TEST_AGAINST=slirp4netns` puts Debian's slirp4netns in the program's place: what both
//! can do must pass with both, or the test is wrong.

pub(crate) mod cmd;
pub(crate) mod dgram;
pub(crate) mod ns;
pub(crate) mod stream;
pub(crate) mod sys;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cmd::{Cmd, PATIENCE, Proc};
use ns::{Ns, mount};

/// The ordinary user of the tests. No database has to know it.
pub(crate) const USER: u32 = 60000;

pub(crate) const HOST4: IpAddr = v4(198, 51, 100, 1);
pub(crate) const HOST6: IpAddr = v6(1, 1);
pub(crate) const REMOTE4: IpAddr = v4(198, 51, 100, 2);
pub(crate) const REMOTE6: IpAddr = v6(1, 2);
/// Behind one more router.
pub(crate) const FAR4: IpAddr = v4(203, 0, 113, 2);
pub(crate) const FAR6: IpAddr = v6(2, 2);
/// What `remote` calls unreachable (ICMP).
pub(crate) const UNREACHABLE4: IpAddr = v4(203, 0, 113, 200);
pub(crate) const UNREACHABLE6: IpAddr = v6(3, 1);
/// What `remote` drops without a word.
pub(crate) const SILENT4: IpAddr = v4(203, 0, 113, 201);
pub(crate) const SILENT6: IpAddr = v6(4, 1);
/// What the guest calls the host, its resolver and itself.
pub(crate) const GATEWAY4: IpAddr = v4(10, 0, 2, 2);
pub(crate) const GATEWAY6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
pub(crate) const DNS4: IpAddr = v4(10, 0, 2, 3);
pub(crate) const DNS6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3));

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(net: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, last))
}

/// Whether Debian's slirp4netns is tried instead.
pub(crate) fn against_slirp() -> bool {
    match std::env::var("RINGTAP_TEST_AGAINST") {
        Err(_) => false,
        Ok(name) if name == "slirp4netns" => true,
        Ok(name) => panic!("RINGTAP_TEST_AGAINST={name}: only slirp4netns is known"),
    }
}

/// Whether a machine that lacks something fails the tests that need it.
pub(crate) fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|v| !v.is_empty() && v != "false")
}

/// Ends the test, with a line that says why, where the machine lacks what it needs: root, the TAP
/// device, user namespaces, the programs named. In CI that is a failure.
macro_rules! need {
    ($($program:literal),*) => {
        if let Some(why) = $crate::harness::missing(&[$($program),*]) {
            assert!(!$crate::harness::in_ci(), "this test needs {why}");
            return $crate::harness::say(&format!("skipped: needs {why}"));
        }
    };
}
pub(crate) use need;

/// Ends the test where slirp4netns stands in and is known not to do what is asked.
macro_rules! not_slirp {
    ($why:literal) => {
        if $crate::harness::against_slirp() {
            return $crate::harness::say(concat!("skipped: slirp4netns ", $why));
        }
    };
}
pub(crate) use not_slirp;

/// A line that libtest does not hide.
pub(crate) fn say(line: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let _ = writeln!(std::io::stderr(), "{name}: {line}");
}

/// What this machine lacks for a test with these programs.
pub(crate) fn missing(programs: &[&str]) -> Option<String> {
    static MACHINE: OnceLock<Option<String>> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| {
        if !nix::unistd::geteuid().is_root() {
            return Some("root (it makes networks of namespaces)".into());
        }
        if !Path::new("/dev/net/tun").exists() {
            return Some("/dev/net/tun (modprobe tun)".into());
        }
        if let Some(program) = ["ip", "unshare"].iter().find(|p| !in_path(p)) {
            return Some(format!("the program `{program}`"));
        }
        let tried = Cmd::new("unshare -Urn true").step(sys::Step::Become(USER)).run();
        (!tried.success()).then(|| "user namespaces for ordinary users".into())
    });
    machine
        .clone()
        .or_else(|| programs.iter().find(|p| !in_path(p)).map(|p| format!("the program `{p}`")))
}

fn in_path(program: &str) -> bool {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).exists())
}

/// A folder that every user may write in, gone with the test.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("ringtap-test.{}.{number}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|e| panic!("make {}: {e}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("chmod");
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file that every user may read and run.
    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        path
    }

    pub(crate) fn make(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).expect("make a folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("chmod");
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The binary under test, at a path that every user may reach.
pub(crate) fn ringtap() -> PathBuf {
    static COPY: OnceLock<Option<Dir>> = OnceLock::new();
    let built = Path::new(env!("CARGO_BIN_EXE_ringtap"));
    let open = |dir: &Path| fs::metadata(dir).is_ok_and(|m| m.permissions().mode() & 1 != 0);
    let copy = COPY.get_or_init(|| {
        if built.ancestors().skip(1).all(open) {
            return None;
        }
        let dir = Dir::new();
        fs::copy(built, dir.path("ringtap")).expect("copy the program");
        Some(dir)
    });
    copy.as_ref().map_or_else(|| built.to_owned(), |dir| dir.path("ringtap"))
}

/// The host side and what lies behind it.
pub(crate) struct Bed {
    pub(crate) host: Ns,
    pub(crate) remote: Ns,
    pub(crate) far: Ns,
    pub(crate) dir: Dir,
}

impl Bed {
    #[track_caller]
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    /// A bed whose host side has further mounts.
    #[track_caller]
    pub(crate) fn with(mounts: impl FnOnce(&Dir) + Send) -> Self {
        let dir = Dir::new();
        dir.write("resolv.conf", format!("nameserver {REMOTE4}\nnameserver {REMOTE6}\n"));
        dir.make("dev");
        let host = Ns::new(|| {
            own_tun(&dir.path("dev"));
            // A machine without the file gets none: the test that needs it brings its own /etc.
            if let Ok(real) = fs::canonicalize("/etc/resolv.conf") {
                mount::bind(&dir.path("resolv.conf"), &real);
            }
            mounts(&dir);
        });
        let remote = Ns::new(|| ());
        let far = Ns::new(|| ());
        for ns in [&host, &remote, &far] {
            ns.sysctl("net/ipv6/conf/default/accept_dad", "0");
            ns.sysctl("net/ipv4/ip_forward", "1");
            ns.sysctl("net/ipv6/conf/all/forwarding", "1");
            // Tests of errors make many in a second.
            ns.sysctl("net/ipv4/icmp_ratelimit", "0");
            ns.sysctl("net/ipv6/icmp/ratelimit", "0");
        }
        host.sysctl("net/ipv4/ping_group_range", "0 2147483647");
        remote.ip(&format!(
            "link set lo up\n\
             link add remote0 type veth peer name host0 netns {}\n\
             link add remote1 type veth peer name far0 netns {}\n\
             addr add 198.51.100.2/24 dev remote0\naddr add 2001:db8:1::2/64 dev remote0 nodad\n\
             addr add 203.0.113.1/25 dev remote1\naddr add 2001:db8:2::1/64 dev remote1 nodad\n\
             link set remote0 up\nlink set remote1 up\n\
             route add unreachable 203.0.113.200\nroute add unreachable 2001:db8:3::/64\n\
             route add blackhole 203.0.113.201\nroute add blackhole 2001:db8:4::/64\n",
            host.net_path(),
            far.net_path()
        ));
        host.ip("link set lo up\n\
             addr add 198.51.100.1/24 dev host0\naddr add 2001:db8:1::1/64 dev host0 nodad\n\
             link set host0 up\n\
             route add default via 198.51.100.2\nroute add default via 2001:db8:1::2 dev host0\n");
        far.ip("link set lo up\n\
             addr add 203.0.113.2/25 dev far0\naddr add 2001:db8:2::2/64 dev far0 nodad\n\
             link set far0 up\n\
             route add default via 203.0.113.1\nroute add default via 2001:db8:2::1 dev far0\n");
        Self { host, remote, far, dir }
    }

    /// An ordinary user's namespaces, without a network yet.
    #[track_caller]
    pub(crate) fn guest(&self) -> Guest {
        let line = Cmd::new("unshare -U -r -n -m sh -c").arg("echo ready; exec sleep infinity");
        let mut holder = self.host.enter_as(USER, line).start();
        holder.wait_for("ready");
        let ns = Ns::of(holder.pid(), USER);
        if against_slirp() {
            ns.sysctl("net/ipv6/conf/default/accept_dad", "0");
        }
        Guest { ns, holder }
    }

    /// The program under test with these arguments, as the ordinary user in `host`.
    pub(crate) fn ringtap(&self, args: &str) -> Cmd {
        let program = if against_slirp() { "/usr/bin/slirp4netns".into() } else { ringtap() };
        self.host.enter_as(USER, Cmd::of(program).args(args)).env("HOME", self.dir.path(""))
    }

    /// Gives `guest` its network and waits until it is there.
    #[track_caller]
    pub(crate) fn attach(&self, guest: &Guest, with: &With) -> Proc {
        let (mut ready, theirs) = pipe();
        let args = with.args(theirs.as_raw_fd());
        let pid = guest.holder.pid();
        let mut proc = self.ringtap(&format!("{args} {pid} {}", with.last())).keep(&theirs).start();
        drop(theirs);
        ready.expect_byte(&mut proc);
        if against_slirp() {
            guest.wait_v6();
        }
        proc
    }

    /// A bed, a guest and its network, as asked for.
    #[track_caller]
    pub(crate) fn up(with: &With) -> (Self, Guest, Proc) {
        let bed = Self::new();
        let guest = bed.guest();
        let proc = bed.attach(&guest, with);
        (bed, guest, proc)
    }

    /// The same with these arguments, and ports that [`Bed::port`] changes.
    #[track_caller]
    pub(crate) fn with_api(args: &str) -> (Self, Guest, Proc) {
        let bed = Self::new();
        let guest = bed.guest();
        let args = format!("{args} --api {}", bed.dir.path("api").display());
        let proc = bed.attach(&guest, &With::defaults().more(&args));
        (bed, guest, proc)
    }

    /// `ringtap port` with these arguments, for the program of [`Bed::with_api`].
    pub(crate) fn port(&self, args: &str) -> Cmd {
        self.ringtap(&format!("port --api {} {args}", self.dir.path("api").display()))
    }
}

/// Makes /dev/net/tun one that every user may open, as distributions have it, without touching the
/// machine's.
fn own_tun(dir: &Path) {
    mount::tmpfs(dir);
    let (node, tun) = (dir.join("tun"), Path::new("/dev/net/tun"));
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&node, kind, mode, nix::sys::stat::makedev(10, 200)).expect("mknod");
    fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).expect("chmod");
    mount::bind(&node, tun);
}

/// How a guest is to be attached.
#[derive(Clone, Debug)]
pub(crate) struct With {
    mtu: u32,
    host_loopback: bool,
    no_dns: bool,
    more: String,
}

impl With {
    /// MTU 1500, no host loopback.
    pub(crate) fn defaults() -> Self {
        Self { mtu: 1500, host_loopback: false, no_dns: false, more: String::new() }
    }

    pub(crate) fn mtu(mtu: u32) -> Self {
        Self { mtu, ..Self::defaults() }
    }

    pub(crate) fn host_loopback(mut self) -> Self {
        self.host_loopback = true;
        self
    }

    pub(crate) fn no_dns(mut self) -> Self {
        self.no_dns = true;
        self
    }

    pub(crate) fn more(mut self, args: &str) -> Self {
        self.more = args.into();
        self
    }

    fn args(&self, ready: i32) -> String {
        let Self { mtu, host_loopback, no_dns, more } = self;
        let flag = |on, name| if on { name } else { "" };
        if against_slirp() {
            let loopback = flag(!host_loopback, "--disable-host-loopback");
            let dns = flag(*no_dns, "--disable-dns");
            format!("-c -6 -r {ready} -m {mtu} {loopback} {dns} {more}")
        } else {
            let loopback = flag(*host_loopback, "--host-loopback");
            let dns = flag(*no_dns, "--no-dns");
            format!("attach --ready-fd {ready} --mtu {mtu} {loopback} {dns} {more}")
        }
    }

    fn last(&self) -> &'static str {
        if against_slirp() { "tap0" } else { "" }
    }
}

/// An ordinary user's namespaces, held by a process.
pub(crate) struct Guest {
    pub(crate) ns: Ns,
    pub(crate) holder: Proc,
}

impl Guest {
    /// Waits until the guest has an IPv6 address that works.
    #[track_caller]
    pub(crate) fn wait_v6(&self) -> Ipv6Addr {
        let show = "ip -6 -o addr show dev tap0 scope global -tentative";
        let mut found = None;
        eventually("the guest has an IPv6 address", || {
            let shown = self.ns.cmd(show).ok();
            let word = shown.split_ascii_whitespace().find(|w| w.starts_with("fd00:"));
            found = word.and_then(|w| w.split('/').next()?.parse().ok());
            found.is_some()
        });
        found.expect("an address")
    }

    /// The guest's address of a family.
    pub(crate) fn addr(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => v4(10, 0, 2, 100),
            Family::V6 => self.wait_v6().into(),
        }
    }
}

/// An address family, and who has which address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    const fn pick(self, four: IpAddr, six: IpAddr) -> IpAddr {
        match self {
            Self::V4 => four,
            Self::V6 => six,
        }
    }

    pub(crate) const fn remote(self) -> IpAddr {
        self.pick(REMOTE4, REMOTE6)
    }

    pub(crate) const fn far(self) -> IpAddr {
        self.pick(FAR4, FAR6)
    }

    pub(crate) const fn host(self) -> IpAddr {
        self.pick(HOST4, HOST6)
    }

    pub(crate) const fn gateway(self) -> IpAddr {
        self.pick(GATEWAY4, GATEWAY6)
    }

    pub(crate) const fn dns(self) -> IpAddr {
        self.pick(DNS4, DNS6)
    }

    pub(crate) const fn unreachable(self) -> IpAddr {
        self.pick(UNREACHABLE4, UNREACHABLE6)
    }

    pub(crate) const fn silent(self) -> IpAddr {
        self.pick(SILENT4, SILENT6)
    }

    pub(crate) const fn any(self) -> IpAddr {
        self.pick(IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED))
    }

    pub(crate) const fn loopback(self) -> IpAddr {
        self.pick(IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST))
    }
}

/// The reading end of a pipe.
pub(crate) struct Ready(File);

/// A pipe: our reading end and an end for a child to write to.
pub(crate) fn pipe() -> (Ready, OwnedFd) {
    let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("make a pipe");
    (Ready(ours.into()), theirs)
}

impl Ready {
    /// Expects the one byte of ready-fd, then the end of the pipe, from a program that still runs.
    #[track_caller]
    pub(crate) fn expect_byte(&mut self, proc: &mut Proc) {
        let mut bytes = Vec::new();
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no ready byte; stderr: {}", proc.stderr());
            if !self.readable(left.min(Duration::from_millis(100))) {
                continue;
            }
            let mut buf = [0; 16];
            match self.0.read(&mut buf).expect("read ready-fd") {
                0 => break,
                n => bytes.extend_from_slice(&buf[..n]),
            }
        }
        assert!(bytes == b"1", "ready-fd got {bytes:?}; stderr: {}", proc.stderr());
        assert!(proc.alive(), "ready, and ended; stderr: {}", proc.stderr());
    }

    fn readable(&self, timeout: Duration) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).expect("a timeout");
        poll(&mut fds, timeout).expect("poll") > 0
    }
}

/// Waits until something holds; if it never does, the test fails.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
