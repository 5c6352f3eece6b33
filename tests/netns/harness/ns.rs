//! Namespaces, held by descriptors: they have no names and end with the test.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, Socket, Type};

use super::cmd::Cmd;
use super::sys::Step;

/// How long a socket waits before the test fails.
pub(crate) const SOCKET_PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace and a mount namespace, and who acts in them.
pub(crate) struct Ns {
    net: OwnedFd,
    mnt: OwnedFd,
    /// The user namespace that owns both, unless that is the machine's.
    user: Option<OwnedFd>,
    uid: u32,
}

impl Ns {
    /// A new network and mount namespace for root. `setup` runs inside: what it mounts is seen
    /// nowhere else.
    pub(crate) fn new(setup: impl FnOnce() + Send) -> Self {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                        .expect("make a network and mount namespace");
                    mount::private();
                    setup();
                    let here = |kind| open(&format!("/proc/thread-self/ns/{kind}"));
                    Self { net: here("net"), mnt: here("mnt"), user: None, uid: 0 }
                })
                .join()
                .unwrap_or_else(|e| std::panic::resume_unwind(e))
        })
    }

    /// The namespaces of a process that `uid` owns.
    pub(crate) fn of(pid: i32, uid: u32) -> Self {
        let of = |kind| open(&format!("/proc/{pid}/ns/{kind}"));
        Self { net: of("net"), mnt: of("mnt"), user: Some(of("user")), uid }
    }

    /// A path to the network namespace for programs that run while the test does, as root.
    pub(crate) fn net_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd())
    }

    /// Copies of the descriptors that hold a namespace of root's, in the order in which they are joined.
    #[allow(dead_code, reason = "tests/sandbox has a use for it")]
    pub(crate) fn descriptors(&self) -> [(OwnedFd, CloneFlags); 2] {
        assert!(self.user.is_none(), "a guest is joined by its user first");
        let copy = |fd: &OwnedFd| fd.try_clone().expect("duplicate a descriptor");
        [(copy(&self.net), CloneFlags::CLONE_NEWNET), (copy(&self.mnt), CloneFlags::CLONE_NEWNS)]
    }

    /// A program (and arguments, split at blanks) to be run here: as root in a namespace of root's,
    /// as the user namespace's root in a guest.
    pub(crate) fn cmd(&self, line: &str) -> Cmd {
        self.enter(Cmd::new(line))
    }

    /// A script to be run here.
    pub(crate) fn sh(&self, script: &str) -> Cmd {
        self.enter(Cmd::sh(script))
    }

    /// Makes `cmd` run here.
    pub(crate) fn enter(&self, cmd: Cmd) -> Cmd {
        let net = Step::Join(self.net.as_raw_fd(), CloneFlags::CLONE_NEWNET);
        let mnt = Step::Join(self.mnt.as_raw_fd(), CloneFlags::CLONE_NEWNS);
        match &self.user {
            None => cmd.step(net).step(mnt),
            // As the owner first: root of the machine has no uid inside.
            Some(user) => cmd
                .step(Step::Become(self.uid))
                .step(Step::Join(user.as_raw_fd(), CloneFlags::CLONE_NEWUSER))
                .step(net)
                .step(mnt),
        }
    }

    /// Makes `cmd` run here as an ordinary user of the machine. Only for namespaces of root's.
    pub(crate) fn enter_as(&self, uid: u32, cmd: Cmd) -> Cmd {
        assert!(self.user.is_none(), "a guest has one user");
        self.enter(cmd).step(Step::Become(uid))
    }

    /// Runs `f` in a thread in this network namespace. What it opens stays here.
    pub(crate) fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.net, CloneFlags::CLONE_NEWNET).expect("join a network namespace");
                    f()
                })
                .join()
                .unwrap_or_else(|e| std::panic::resume_unwind(e))
        })
    }

    /// Sets a `net/...` sysctl of this namespace.
    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        self.within(|| {
            std::fs::write(format!("/proc/sys/{name}"), value)
                .unwrap_or_else(|e| panic!("set {name} to {value}: {e}"));
        });
    }

    /// Carries out lines for `ip -batch`.
    #[track_caller]
    pub(crate) fn ip(&self, lines: &str) {
        self.cmd("ip -batch -").input(lines.as_bytes()).ok();
    }

    /// A socket of this namespace.
    pub(crate) fn socket(&self, ip: IpAddr, kind: Type, protocol: Option<Protocol>) -> Socket {
        let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = self.within(|| Socket::new(domain, kind, protocol)).expect("make a socket");
        socket.set_read_timeout(Some(SOCKET_PATIENCE)).expect("set a timeout");
        socket.set_write_timeout(Some(SOCKET_PATIENCE)).expect("set a timeout");
        socket
    }

    /// A listening socket; `accept` fails after [`SOCKET_PATIENCE`].
    pub(crate) fn listen(&self, ip: IpAddr) -> TcpListener {
        self.listen_at(SocketAddr::new(ip, 0))
    }

    /// A listening socket at a port.
    pub(crate) fn listen_at(&self, at: SocketAddr) -> TcpListener {
        let socket = self.socket(at.ip(), Type::STREAM, None);
        socket.set_reuse_address(true).expect("set SO_REUSEADDR");
        socket.bind(&at.into()).unwrap_or_else(|e| panic!("bind {at}: {e}"));
        socket.listen(4096).expect("listen");
        socket.into()
    }

    /// A connection from here.
    pub(crate) fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(to.ip(), Type::STREAM, None);
        socket.connect_timeout(&to.into(), SOCKET_PATIENCE)?;
        Ok(socket.into())
    }

    /// A datagram socket bound to a free port of `ip`.
    pub(crate) fn udp(&self, ip: IpAddr) -> UdpSocket {
        self.udp_at(SocketAddr::new(ip, 0))
    }

    /// One at a port.
    #[track_caller]
    pub(crate) fn udp_at(&self, at: SocketAddr) -> UdpSocket {
        let socket = self.socket(at.ip(), Type::DGRAM, None);
        socket.bind(&at.into()).unwrap_or_else(|e| panic!("bind {at}: {e}"));
        socket.into()
    }
}

fn open(path: &str) -> OwnedFd {
    File::open(path).unwrap_or_else(|e| panic!("open {path}: {e}")).into()
}

/// Mounts for [`Ns::new`]'s `setup`.
pub(crate) mod mount {
    use std::path::Path;

    use nix::mount::{MsFlags, mount};

    /// From here on no mount leaves this namespace.
    pub(crate) fn private() {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .expect("make all mounts private");
    }

    /// Puts `from` in the place of `to`.
    pub(crate) fn bind(from: &Path, to: &Path) {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .unwrap_or_else(|e| panic!("bind {} to {}: {e}", from.display(), to.display()));
    }

    /// An empty file system in memory at `at`.
    pub(crate) fn tmpfs(at: &Path) {
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .unwrap_or_else(|e| panic!("mount a tmpfs at {}: {e}", at.display()));
    }
}
