//! The bed of a cell: three places, joined as a container is.
//!
//! ```text
//!   guest (user and net namespace of an ordinary user) --TAP-- forwarder --sockets-- host --veth-- remote
//! ```
//!
//! Where the path is to be a long one, a line of our own takes the veth pair's place (`tool::line`).
//!
//! A cell is a process with its own PID, mount and network namespace: the network namespace is the
//! *host*, its processes hold the others, and when it ends, by whatever cause, the kernel kills what is
//! left in its PID namespace. It ends with the lab by `PR_SET_PDEATHSIG`. So nothing has a name that could
//! be left behind, and every cell starts without `TIME_WAIT`, caches or routes of the one before.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};
use serde_json::json;

use crate::cell::Cell;
use crate::forwards::Forward;
use crate::load::{self, Load};
use crate::tool::line::{HOST_END, REMOTE_END};
use crate::{Context, Res, proc, tool};

/// Address of the host on the veth pair (TEST-NET-2, RFC 5737).
const HOST: &str = "198.51.100.1";
/// Address of the remote: the host's default route, and where the servers are.
const REMOTE: &str = "198.51.100.2";
/// The same in IPv6 (RFC 3849), where a cell asks for it.
const HOST6: &str = "2001:db8::1";
const REMOTE6: &str = "2001:db8::2";
/// Descriptors that every process may open: with the system's default, a thousand connections would be the
/// end for those that do not raise it, and measure only that.
const DESCRIPTORS: u64 = 65536;
/// The ordinary user that owns the guest and runs the forwarder. Nobody has it: it needs no entry
/// anywhere.
const USER: u32 = 60001;
/// How long a process may take to come up.
pub(crate) const START: Duration = Duration::from_secs(10);

/// The namespaces, up and addressed. The host is this process's own.
pub(crate) struct Bed {
    /// Holds the remote's network namespace.
    remote: Proc,
    /// Holds the guest's user and network namespace. Empty: attaching is the forwarder's task.
    guest: Proc,
    /// Carries frames between host and remote, where no veth pair does.
    line: Option<Proc>,
    /// Another guest, which a forwarder has made itself: a process in it.
    made: Option<u32>,
    /// Connections are made from the remote, by forwarded ports.
    inbound: bool,
}

/// Where the ends of the traffic are.
pub(crate) struct Ends {
    /// Of whoever listens.
    pub(crate) server: Place,
    /// Of whoever connects.
    pub(crate) client: Place,
    /// The address that is connected to.
    pub(crate) at: &'static str,
    /// The client is in the remote.
    pub(crate) inbound: bool,
}

impl Bed {
    /// Builds one; called once, in a process that [`stage`] has prepared.
    fn build(cell: &Cell) -> Res<Self> {
        let remote = hold(Place::Host, "remote")?;
        let guest = hold(Place::User, "guest")?;
        let mut bed = Self { remote, guest, line: None, made: None, inbound: cell.inbound };
        bed.ip(Place::Host, "link set lo up")?;
        bed.join(cell.load.delay_ms(), cell.mtu)?;
        bed.ip(Place::Host, &format!("address add {HOST}/24 dev {HOST_END}"))?;
        bed.ip(Place::Host, &format!("link set {HOST_END} up"))?;
        bed.ip(Place::Remote, &format!("address add {REMOTE}/24 dev {REMOTE_END}"))?;
        bed.ip(Place::Remote, &format!("link set {REMOTE_END} up"))?;
        // pasta takes its addresses from the interface with the default route.
        bed.ip(Place::Host, &format!("route add default via {REMOTE}"))?;
        if cell.load.ip() == 6 {
            bed.ip(Place::Host, &format!("address add {HOST6}/64 dev {HOST_END} nodad"))?;
            bed.ip(Place::Remote, &format!("address add {REMOTE6}/64 dev {REMOTE_END} nodad"))?;
            bed.ip(Place::Host, &format!("route add default via {REMOTE6}"))?;
        }
        // A connection per request uses up the default's 28,000 ports within seconds; that of the guest
        // is set by its root.
        for place in [Place::Host, Place::Guest] {
            let write = "echo 1024 65535 >/proc/sys/net/ipv4/ip_local_port_range";
            run(bed.command(place, "sh").args(["-c", write]))?;
        }
        Ok(bed)
    }

    /// Makes what lies between host and remote: `ms` milliseconds each way.
    fn join(&mut self, ms: u32, mtu: u16) -> Res<()> {
        let remote = self.remote.pid().to_string();
        if ms == 0 {
            let peer = format!("type veth peer name {REMOTE_END} mtu {mtu} netns {remote}");
            return self.ip(Place::Host, &format!("link add {HOST_END} mtu {mtu} {peer}"));
        }
        let mut line = self.command(Place::Host, "/proc/self/exe");
        let mut line = Proc::start(line.args(["__tool", "line", &remote, &ms.to_string()]))?;
        line.line_within(START)?;
        self.line = Some(line);
        self.ip(Place::Host, &format!("link set {HOST_END} mtu {mtu}"))?;
        self.ip(Place::Remote, &format!("link set {REMOTE_END} mtu {mtu}"))
    }

    /// The time that a SYN and its answer take between host and remote, milliseconds: no less than a long
    /// path is to take.
    fn path_ms(&self, ms: u32) -> Res<f64> {
        // Nobody listens there. The first one waits for ARP as well.
        let refused = || {
            let begin = proc::now();
            match TcpStream::connect((REMOTE, 9)) {
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(begin.elapsed()),
                other => Err(format!("a connection to nobody over the line: {other:?}")),
            }
        };
        refused()?;
        let took = refused()?.as_secs_f64() * 1e3;
        if took < f64::from(2 * ms) {
            return Err(format!("the line answers within {took} ms: it should be {}", 2 * ms));
        }
        Ok(took)
    }

    /// Frames that found no room where they enter the line, both ways.
    fn line_drops(&self) -> Res<u64> {
        let of = |place, end| {
            let table = self.table(place, "dev")?;
            // proc(5): eight fields of receive, then bytes, packets, errors and drops of transmit.
            let line = table.lines().find_map(|l| l.trim().strip_prefix(end)?.strip_prefix(':'));
            let drops = line.and_then(|l| l.split_whitespace().nth(11)?.parse::<u64>().ok());
            drops.ok_or_else(|| format!("no {end} in /proc/net/dev"))
        };
        Ok(of(Place::Host, HOST_END)? + of(Place::Remote, REMOTE_END)?)
    }

    /// Where the ends are: one in the remote, the other in the guest, or without one on the host.
    pub(crate) fn ends(&self, forwarder: &Option<Proc>, ip: u32) -> Ends {
        let near = if forwarder.is_some() { Place::Guest } else { Place::Host };
        let (remote, host) = if ip == 6 { (REMOTE6, HOST6) } else { (REMOTE, HOST) };
        if self.inbound {
            Ends { server: near, client: Place::Remote, at: host, inbound: true }
        } else {
            Ends { server: Place::Remote, client: near, at: remote, inbound: false }
        }
    }

    /// A command that will run in a place.
    pub(crate) fn command(&self, place: Place, program: impl AsRef<OsStr>) -> Command {
        let held = match place {
            Place::Host | Place::User => 0,
            Place::Remote => self.remote.pid(),
            Place::Guest => self.guest_pid(),
        };
        command(place, held, program)
    }

    /// Whom a forwarder attaches to.
    pub(crate) fn guest_pid(&self) -> u32 {
        self.made.unwrap_or_else(|| self.guest.pid())
    }

    /// Makes the guest's TAP, with one queue, for a forwarder to find.
    pub(crate) fn make_tap(&self) -> Res<()> {
        self.ip(Place::Guest, "tuntap add name tap0 mode tap")?;
        self.ip(Place::Guest, "link set tap0 up")
    }

    /// `ip` with the words of a line.
    fn ip(&self, place: Place, line: &str) -> Res<()> {
        run(self.command(place, "ip").args(line.split(' ')))
    }

    /// Takes another guest for this one's: that of a process.
    pub(crate) fn take_guest(&mut self, pid: u32) {
        self.made = Some(pid);
    }

    /// A table of a place's network namespace, as /proc has it.
    fn table(&self, place: Place, name: &str) -> Res<String> {
        let path = match place {
            Place::Host | Place::User => format!("/proc/self/net/{name}"),
            Place::Remote => format!("/proc/{}/net/{name}", self.remote.pid()),
            Place::Guest => format!("/proc/{}/net/{name}", self.guest_pid()),
        };
        fs::read_to_string(&path).context(path)
    }

    /// Waits until the host listens on every TCP port of some.
    pub(crate) fn wait_forwarded(&self, forwarder: &mut Proc, forwards: &[Forward]) -> Res<()> {
        let tcp = || forwards.iter().filter(|f| !f.udp).flat_map(|f| f.ports());
        wait(forwarder, "the forwarded ports", || {
            let open = self.listening(Place::Host)?;
            Ok(tcp().all(|port| open.contains(&port)))
        })
    }

    /// The ports on which a place listens.
    pub(crate) fn listening(&self, place: Place) -> Res<HashSet<u16>> {
        // proc(5): the local address ends in `:PORT` in hexadecimal; state 0A is LISTEN.
        let port = |line: &str| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next()?;
            (fields.nth(1) == Some("0A")).then_some(())?;
            u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
        };
        let text = self.table(place, "tcp")? + &self.table(place, "tcp6").unwrap_or_default();
        Ok(text.lines().filter_map(port).collect())
    }

    /// Waits until the guest has a default route, the last thing every forwarder sets.
    pub(crate) fn wait_guest_route(&self, forwarder: &mut Proc) -> Res<()> {
        wait(forwarder, "the guest's default route", || {
            let table = self.table(Place::Guest, "route")?;
            Ok(table.lines().skip(1).any(|l| l.split_whitespace().nth(1) == Some("00000000")))
        })
    }

    /// Waits until the guest has an IPv6 default route and an address that may be used.
    pub(crate) fn wait_guest_ip6(&self, forwarder: &mut Proc) -> Res<()> {
        let read = |file| self.table(Place::Guest, file);
        wait(forwarder, "the guest's IPv6 address and route", || {
            // Address, index, prefix length, scope (00: global), flags (40: tentative), name.
            let usable = |line: &str| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let flags = fields.get(4).and_then(|f| u32::from_str_radix(f, 16).ok());
                fields.get(3) == Some(&"00") && flags.is_some_and(|f| f & 0x40 == 0)
            };
            // Destination and its prefix length; the kernel's own unreachable default is on lo.
            let none = format!("{:032} 00 ", 0);
            let default = |line: &str| line.starts_with(&none) && !line.ends_with(" lo");
            Ok(read("if_inet6")?.lines().any(usable) && read("ipv6_route")?.lines().any(default))
        })
    }

    /// Waits until a server listens on a port of its place.
    pub(crate) fn wait_listen(&self, place: Place, server: &mut Proc, port: u16) -> Res<()> {
        wait(server, "the server to listen", || Ok(self.listening(place)?.contains(&port)))
    }
}

/// Where a process runs.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// The host, as root.
    Host,
    /// The host, as the ordinary user.
    User,
    /// The remote, as root.
    Remote,
    /// The guest, as its root.
    Guest,
}

/// A process of the bed, killed when dropped.
pub(crate) struct Proc {
    child: Child,
    /// What it printed, where nobody reads it from a pipe: memory, so that a talkative one never blocks.
    said: Option<fs::File>,
}

impl Proc {
    /// Starts a command; its stdout and stderr are kept for the day it fails.
    pub(crate) fn start(command: &mut Command) -> Res<Self> {
        let said = memory_file()?;
        let clone = || said.try_clone().context("output file");
        command.stdin(Stdio::null()).stdout(clone()?).stderr(clone()?);
        Ok(Self { child: spawn(command)?, said: Some(said) })
    }

    /// Its PID: that of the program itself, as the places are entered without a fork.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `Err` with its last words when it has ended.
    pub(crate) fn still_runs(&mut self) -> Res<()> {
        match self.child.try_wait().context("wait")? {
            None => Ok(()),
            Some(status) => Err(format!("ended early ({status}): {}", self.last_words())),
        }
    }

    /// Waits for its end and gives what it printed; kills it when it takes longer.
    pub(crate) fn output_within(mut self, limit: Duration) -> Res<String> {
        let deadline = proc::now() + limit;
        while self.child.try_wait().context("wait")?.is_none() {
            if proc::now() >= deadline {
                return Err(format!("did not end within {} s, killed", limit.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(self.output())
    }

    /// Waits for its end, which is to be a good one.
    pub(crate) fn succeeds(&mut self) -> Res<()> {
        match self.child.wait().context("wait")? {
            status if status.success() => Ok(()),
            status => Err(format!("{status}: {}", self.last_words())),
        }
    }

    /// Waits for the first line it prints, while it goes on.
    pub(crate) fn line_within(&mut self, limit: Duration) -> Res<String> {
        self.line_with("", limit)
    }

    /// Waits for the first line that begins like this, and gives the rest of it.
    pub(crate) fn line_with(&mut self, begin: &str, limit: Duration) -> Res<String> {
        let deadline = proc::now() + limit;
        loop {
            let text = self.output();
            // Without its end, a line may be half of one.
            let mut whole = text.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n'));
            if let Some(rest) = whole.find_map(|l| l.strip_prefix(begin)) {
                return Ok(rest.to_owned());
            }
            self.still_runs()?;
            if proc::now() >= deadline {
                return Err(format!("said nothing within {} s", limit.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it by a signal that it handles.
    pub(crate) fn interrupt(self, limit: Duration) -> Res<String> {
        let pid = i32::try_from(self.pid()).context("pid")?;
        kill(Pid::from_raw(pid), Signal::SIGINT).context("interrupt")?;
        self.output_within(limit)
    }

    fn output(&self) -> String {
        let mut bytes = Vec::new();
        if let Some(file) = &self.said {
            // At offsets of our own: the file's position belongs to the writer.
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = file.read_at(&mut part, bytes.len() as u64) {
                bytes.extend_from_slice(&part[..n]);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn last_words(&self) -> String {
        let text = self.output();
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        match lines.len() {
            0 => "it said nothing".into(),
            n => lines[n.saturating_sub(3)..].join(" / "),
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // Both fail only when it has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pipe for `--ready-fd`: the end that is inherited (every child started while it is open gets it) and
/// the end that is read here.
pub(crate) fn ready_pipe() -> Res<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe().context("pipe")?;
    Ok((read, write))
}

/// Waits for the byte on a ready pipe whose other end only the forwarder has.
pub(crate) fn wait_ready(forwarder: &mut Proc, read: OwnedFd) -> Res<()> {
    use nix::poll::{PollFd, PollFlags, poll};
    let mut file = fs::File::from(read);
    wait(forwarder, "its byte on the ready descriptor", || {
        // Wakes with the byte: this is what `startup` measures.
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, 100u16).context("ready pipe")? == 0 {
            return Ok(false);
        }
        // Closed without a byte: its end, seen by the caller at the next turn, says why.
        Ok(file.read(&mut [0]).context("ready pipe")? == 1)
    })
}

/// Polls a condition every millisecond while a process lives, up to [`START`].
fn wait(process: &mut Proc, what: &str, mut done: impl FnMut() -> Res<bool>) -> Res<()> {
    let deadline = proc::now() + START;
    while !done()? {
        process.still_runs()?;
        if proc::now() >= deadline {
            let words = process.last_words();
            return Err(format!("waited {} s for {what}; {words}", START.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A command that will run in a place held by a process.
fn command(place: Place, held: u32, program: impl AsRef<OsStr>) -> Command {
    let how = match place {
        Place::Host => return Command::new(program),
        Place::User => {
            // Without `enter`, whose own start would be charged to the program. The standard library
            // leaves the groups too.
            let mut command = Command::new(program);
            command.uid(USER).gid(USER);
            return command;
        }
        Place::Remote => "remote",
        Place::Guest => "guest",
    };
    // Ourselves, through `enter`. By this link the binary can be started by a user to whom its
    // directory is closed.
    let mut command = Command::new("/proc/self/exe");
    command.arg("__enter").arg(how).arg(held.to_string()).arg(program);
    command
}

fn spawn(command: &mut Command) -> Res<Child> {
    command.spawn().map_err(|e| format!("start {}: {e}", command.get_program().display()))
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Res<()> {
    let out = command.stdin(Stdio::null()).output();
    let out = out.map_err(|e| format!("start {}: {e}", command.get_program().display()))?;
    if out.status.success() {
        return Ok(());
    }
    let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    Err(format!("{}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim()))
}

/// A process that makes namespaces and keeps them until it is dropped.
fn hold(place: Place, what: &str) -> Res<Proc> {
    let mut child = spawn(
        command(place, 0, "/proc/self/exe")
            .args(["__hold", what])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped()),
    )?;
    let out = child.stdout.take();
    let holder = Proc { child, said: None };
    let mut line = String::new();
    if let Some(out) = out {
        BufReader::new(out).read_line(&mut line).context(what)?;
    }
    if line.is_empty() {
        return Err(format!("no namespace for the {what}"));
    }
    Ok(holder)
}

fn memory_file() -> Res<fs::File> {
    Ok(memfd_create(c"said", MFdFlags::MFD_CLOEXEC).context("memfd")?.into())
}

/// The stages of a cell: this program, started by itself.
pub(crate) fn stage(name: &str, args: &[OsString]) -> Res<()> {
    match (name, args) {
        ("bed", [cell]) => outer(cell),
        ("cell", [cell]) => inner(cell),
        ("hold", [what]) => holder(what),
        ("tool", args) => tool::run(args),
        ("enter", [how, held, program, args @ ..]) => Err(enter(how, held, program, args)),
        _ => Err(format!("no stage {name:?}")),
    }
}

/// First stage: namespaces. Only a child is born into the new PID namespace, so this one waits for it.
fn outer(cell: &OsStr) -> Res<()> {
    die_with_parent()?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET)
        .context("new namespaces for the cell")?;
    let status = Command::new("/proc/self/exe").arg("__cell").arg(cell).status();
    let status = status.context("start the cell")?;
    if status.success() { Ok(()) } else { Err(format!("the cell ended with {status}")) }
}

/// Second stage, PID 1 of the cell: builds, measures, says.
fn inner(cell: &OsStr) -> Res<()> {
    die_with_parent()?;
    let reply = match measure(cell) {
        Ok(sample) => json!({ "sample": sample }),
        Err(error) => json!({ "error": error }),
    };
    writeln!(std::io::stdout(), "{reply}").context("reply")
}

fn measure(cell: &OsStr) -> Res<serde_json::Value> {
    let cell = Cell::from_json(&cell.to_string_lossy())?;
    own_mounts()?;
    raise_descriptors()?;
    let mut bed = Bed::build(&cell).context("bed")?;
    let sockets_before = match cell.load {
        Load::Ports { .. } => proc::sockets_kib_settled(),
        _ => None,
    };
    let (forwarder, ready) = cell.forwarder.attach(&mut bed, &cell)?;
    let path_ms = match cell.load.delay_ms() {
        0 => None,
        ms => Some(bed.path_ms(ms)?),
    };
    let mut sample = load::run(&bed, forwarder, &cell, sockets_before)?;
    if let Some(line) = &mut bed.line {
        line.still_runs().context("line")?;
        sample["path_ms"] = json!(path_ms);
        sample["path_drops"] = json!(bed.line_drops()?);
    }
    sample["ready_ms"] = json!(ready.as_secs_f64() * 1e3);
    Ok(sample)
}

/// Up to [`DESCRIPTORS`], or to what is allowed here: root of a container may not exceed its own limit.
fn raise_descriptors() -> Res<()> {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    if setrlimit(RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).is_ok() {
        return Ok(());
    }
    let (_, hard) = getrlimit(RLIMIT_NOFILE).context("descriptors")?;
    setrlimit(RLIMIT_NOFILE, hard, hard).context("descriptors")
}

/// Mounts that only this cell sees: /proc of its own PID namespace, and a /dev/net/tun that everybody may
/// open, as distributions have it.
fn own_mounts() -> Res<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("private mounts")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("mount /proc")?;
    let tun = Path::new("/dev/net/tun");
    fs::metadata(tun).context("/dev/net/tun")?;
    mount(Some("tun"), "/dev/net", Some("tmpfs"), MsFlags::empty(), none)
        .context("mount /dev/net")?;
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    // Major 10, minor 200: Documentation/admin-guide/devices.txt.
    mknod(tun, SFlag::S_IFCHR, Mode::empty(), makedev(10, 200)).context("make /dev/net/tun")?;
    // Apart from mknod, whose mode the umask cuts.
    fs::set_permissions(tun, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .context("open /dev/net/tun to all")
}

/// A folder that goes with the cell, and in which everybody may write.
pub(crate) fn scratch() -> Res<PathBuf> {
    // The cell's own file system (`own_mounts`).
    let folder = PathBuf::from("/dev/net/scratch");
    if !folder.exists() {
        fs::create_dir(&folder).context(folder.display())?;
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .context(folder.display())?;
    }
    Ok(folder)
}

/// Gives the ordinary user an entry in the files that some programs insist on, in the sight of this cell
/// alone.
pub(crate) fn enter_user(home: &Path) -> Res<()> {
    let home = home.display();
    for (file, line) in [
        ("passwd", format!("perf:x:{USER}:{USER}::{home}:/bin/sh")),
        ("group", format!("perf:x:{USER}:")),
        ("subuid", "perf:1000000:65536".into()),
        ("subgid", "perf:1000000:65536".into()),
    ] {
        let real = Path::new("/etc").join(file);
        let text = fs::read_to_string(&real).context(real.display())?;
        let own = scratch()?.join(file);
        fs::write(&own, format!("{}\n{line}\n", text.trim_end())).context(own.display())?;
        mount(Some(&own), &real, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context(real.display())?;
    }
    Ok(())
}

/// A holder: makes its namespaces, says so, and stays until its stdin ends.
fn holder(what: &OsStr) -> Res<()> {
    if what == "guest" {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).context("unshare")?;
        fs::write("/proc/self/setgroups", "deny").context("setgroups")?;
        fs::write("/proc/self/uid_map", format!("0 {USER} 1")).context("uid_map")?;
        fs::write("/proc/self/gid_map", format!("0 {USER} 1")).context("gid_map")?;
    } else {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
    }
    writeln!(std::io::stdout(), "ready").context("say ready")?;
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).context("stdin")?;
    Ok(())
}

/// Becomes a program in another place: returns only to say why it could not.
fn enter(how: &OsStr, held: &OsStr, program: &OsStr, args: &[OsString]) -> String {
    let go = || -> Res<()> {
        let join = |kind: &str, flag| -> Res<()> {
            let path = format!("/proc/{}/ns/{kind}", held.display());
            setns(fs::File::open(&path).context(&path)?, flag).context(&path)
        };
        let become_user = |id: u32| -> Res<()> {
            let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
            nix::unistd::setresgid(gid, gid, gid).context("setresgid")?;
            nix::unistd::setresuid(uid, uid, uid).context("setresuid")
        };
        match how.to_str() {
            Some("remote") => join("net", CloneFlags::CLONE_NEWNET),
            Some("guest") => {
                // The groups first: setgroups is denied inside. Root inside at the end, or the
                // capabilities that joining gave would be gone with exec (and with them the right to
                // choose a congestion control).
                nix::unistd::setgroups(&[]).context("setgroups")?;
                let net = format!("/proc/{}/ns/net", held.display());
                let net = fs::File::open(&net).context(&net)?;
                join("user", CloneFlags::CLONE_NEWUSER)?;
                setns(net, CloneFlags::CLONE_NEWNET).context("join the guest's network")?;
                become_user(0)
            }
            _ => Err("no such place".into()),
        }
    };
    match go() {
        Err(e) => format!("enter the {}: {e}", how.display()),
        Ok(()) => {
            let error = Command::new(program).args(args).exec();
            format!("start {} in the {}: {error}", program.display(), how.display())
        }
    }
}

fn die_with_parent() -> Res<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")
}

/// The number a child inherits a descriptor under.
pub(crate) fn number(fd: &OwnedFd) -> String {
    fd.as_raw_fd().to_string()
}
