//! ringtap and those it is compared with, each attached to the same kind of guest.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bed::{self, Bed, Place, Proc};
use crate::cell::Cell;
use crate::forwards::{self, Forward};
use crate::load::Load;
use crate::{Context, Res, proc};

/// What stands between the client and the remote.
#[derive(Clone, Debug)]
pub(crate) enum Forwarder {
    /// Nothing: the client runs on the host's end of the veth pair.
    Direct,
    /// The same with the congestion control that the system gives; all others use cubic.
    DirectSystem,
    /// `ringtap attach`.
    Ringtap {
        /// Its name in the report.
        label: String,
        /// The binary.
        path: PathBuf,
        /// More options.
        args: Vec<String>,
    },
    /// `slirp4netns`.
    Slirp4netns,
    /// `pasta`.
    Pasta,
    /// `rootlesskit` with its builtin port driver: inbound only, as slirp4netns carries the rest. It
    /// makes the guest itself.
    Rootlesskit,
}

/// The label of a ringtap without walls.
pub(crate) const OPEN: &str = "ringtap-open";

impl Forwarder {
    /// A ringtap binary under a name.
    pub(crate) fn ringtap(label: &str, path: &Path, args: &[String]) -> Self {
        Self::Ringtap { label: label.into(), path: path.into(), args: args.into() }
    }

    /// Its name in reports and for `--only`.
    pub(crate) fn label(&self) -> &str {
        match self {
            Self::Direct => "direct",
            Self::DirectSystem => "direct-system",
            Self::Ringtap { label, .. } => label,
            Self::Slirp4netns | Self::Pasta | Self::Rootlesskit => self.rival().unwrap_or_default(),
        }
    }

    /// The program of a rival.
    pub(crate) fn rival(&self) -> Option<&'static str> {
        match self {
            Self::Direct | Self::DirectSystem | Self::Ringtap { .. } => None,
            Self::Slirp4netns => Some("slirp4netns"),
            Self::Pasta => Some("pasta"),
            Self::Rootlesskit => Some("rootlesskit"),
        }
    }

    /// Whether there is such a program; our own is looked for when it is started.
    pub(crate) fn is_installed(&self) -> bool {
        self.rival().is_none_or(installed)
    }

    /// Starts it as the ordinary user, in the foreground, and waits until the guest can speak. `None`:
    /// nothing to start. With the time from its start until it said so, and had its ports.
    pub(crate) fn attach(&self, bed: &mut Bed, cell: &Cell) -> Res<(Option<Proc>, Duration)> {
        let forwards = cell.forwards();
        let guest = bed.guest_pid().to_string();
        let mtu = cell.mtu.to_string();
        let six = cell.load.ip() == 6;
        if cell.one_queue && matches!(self, Self::Ringtap { .. } | Self::Slirp4netns) {
            bed.make_tap().context(self.label())?;
        }
        let begin = proc::now();
        let mut ready = None;
        let mut start_and_wait = |command: &mut Command, read, write| {
            let process = start_and_wait(command, read, write)?;
            ready = Some(begin.elapsed());
            Ok(process)
        };
        // Its own congestion control, buffers and the like are left as it sets them.
        let mut process = match self {
            Self::Direct | Self::DirectSystem => return Ok((None, Duration::ZERO)),
            Self::Ringtap { path, args, .. } => {
                let (read, write) = bed::ready_pipe()?;
                let mut command = bed.command(Place::User, path);
                command.args(["attach", "--mtu", &mtu, "--ready-fd", &bed::number(&write)]);
                for forward in &forwards {
                    command.args(["-p", &forward.ringtap()]);
                }
                command.args(args).arg(&guest);
                start_and_wait(&mut command, read, write)
            }
            Self::Slirp4netns => {
                let (read, write) = bed::ready_pipe()?;
                let mut command = bed.command(Place::User, "slirp4netns");
                command.args(["-c", "-m", &mtu, "-r", &bed::number(&write)]);
                command.args(six.then_some("--enable-ipv6"));
                let api = bed::scratch()?.join("api");
                if !forwards.is_empty() {
                    command.arg("--api-socket").arg(&api);
                }
                command.args([&guest, "tap0"]);
                let process = start_and_wait(&mut command, read, write);
                if process.is_ok() && !forwards.is_empty() {
                    forwards::add_by_api(&api, &forwards).context(self.label())?;
                    ready = Some(begin.elapsed());
                }
                process
            }
            // No ready descriptor here: in the background its parent's exit says it, in the foreground
            // nothing does. So only the route below is waited for. In the background it would also move to
            // a PID of its own. Ports: none but those asked for, as their default follows the guest's
            // listening sockets by a scan every second.
            Self::Pasta if cell.load == Load::Startup => {
                let mut pasta = self.pasta(bed, &mtu, six, &forwards);
                pasta.arg(&guest);
                return background(pasta, begin).context(self.label());
            }
            Self::Pasta => {
                let mut pasta = self.pasta(bed, &mtu, six, &forwards);
                Proc::start(pasta.arg("--foreground").arg(&guest))
            }
            Self::Rootlesskit => rootlesskit(bed, &mtu, &forwards),
        }
        .context(self.label())?;
        bed.wait_guest_route(&mut process).context(self.label())?;
        // With many ports, how many there are is a figure.
        if !matches!(cell.load, Load::Ports { .. }) || ready.is_none() {
            bed.wait_forwarded(&mut process, &forwards).context(self.label())?;
        }
        let ready = ready.unwrap_or_else(|| begin.elapsed());
        if six {
            bed.wait_guest_ip6(&mut process).context(self.label())?;
        }
        Ok((Some(process), ready))
    }

    /// pasta, all but how it stays and to whom it attaches.
    fn pasta(&self, bed: &Bed, mtu: &str, six: bool, forwards: &[Forward]) -> Command {
        let mut command = bed.command(Place::User, "pasta");
        command.args(["--quiet", "--config-net", "--ns-ifname=tap0", "--no-map-gw"]);
        command.args(["--tcp-ports", &Forward::pasta(forwards, false)]);
        command.args(["--udp-ports", &Forward::pasta(forwards, true)]);
        command.args(["--tcp-ns=none", "--udp-ns=none"]);
        command.args(["--mtu", mtu]);
        if !six {
            command.arg("--ipv4-only");
        }
        command
    }

    /// For the next stage.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Ringtap { label, path, args } => {
                json!({ "ringtap": { "label": label, "path": path.to_string_lossy(), "args": args } })
            }
            Self::Direct
            | Self::DirectSystem
            | Self::Slirp4netns
            | Self::Pasta
            | Self::Rootlesskit => json!(self.label()),
        }
    }

    /// The opposite of [`Self::to_json`].
    pub(crate) fn from_json(v: &Value) -> Option<Self> {
        match v.as_str() {
            Some("direct") => Some(Self::Direct),
            Some("direct-system") => Some(Self::DirectSystem),
            Some("slirp4netns") => Some(Self::Slirp4netns),
            Some("pasta") => Some(Self::Pasta),
            Some("rootlesskit") => Some(Self::Rootlesskit),
            Some(_) => None,
            None => {
                let r = &v["ringtap"];
                let args = r["args"].as_array()?.iter();
                Some(Self::Ringtap {
                    label: r["label"].as_str()?.to_owned(),
                    path: r["path"].as_str()?.into(),
                    args: args.filter_map(|a| a.as_str().map(str::to_owned)).collect(),
                })
            }
        }
    }
}

fn start_and_wait(command: &mut Command, read: OwnedFd, write: OwnedFd) -> Res<Proc> {
    let mut process = Proc::start(command)?;
    // Ours goes, so that the pipe ends when the forwarder does.
    drop(write);
    bed::wait_ready(&mut process, read)?;
    Ok(process)
}

/// Starts rootlesskit, which makes a guest, starts slirp4netns for it, and carries connections from the
/// host into it by itself; gives the guest to the bed.
fn rootlesskit(bed: &mut Bed, mtu: &str, forwards: &[Forward]) -> Res<Proc> {
    let home = bed::scratch()?;
    // It asks for the user's name, and for the ranges of newuidmap.
    bed::enter_user(&home)?;
    let mut command = bed.command(Place::User, "rootlesskit");
    command.env("HOME", &home).env("XDG_RUNTIME_DIR", &home).env("USER", "perf");
    command.arg("--state-dir").arg(home.join("rootlesskit"));
    command.args(["--net=slirp4netns", "--mtu", mtu, "--disable-host-loopback"]);
    command.args(["--copy-up=/etc", "--port-driver=builtin"]);
    for publish in forwards.iter().flat_map(|f| f.rootlesskit()) {
        command.args(["--publish", &publish]);
    }
    // A process of the guest that tells its number and stays.
    command.args(["sh", "-c", "echo guest $$; exec sleep 86400"]);
    let mut process = Proc::start(&mut command)?;
    let guest = process.line_with("guest ", bed::START)?;
    bed.take_guest(guest.parse().context("the guest's PID")?);
    Ok(process)
}

/// Starts a program that says by its first process's end that it is ready. What stays behind ends with the
/// cell.
fn background(mut command: Command, begin: Instant) -> Res<(Option<Proc>, Duration)> {
    Proc::start(&mut command)?.succeeds()?;
    Ok((None, begin.elapsed()))
}

/// Whether a program is in PATH.
pub(crate) fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The first line in which a program tells its version.
pub(crate) fn version(program: &Path) -> String {
    let Ok(out) = Command::new(program).arg("--version").output() else {
        return "not found".into();
    };
    let text = String::from_utf8_lossy(&out.stdout);
    text.lines().next().unwrap_or("does not say").trim().to_owned()
}
