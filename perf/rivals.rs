//! ringtap and those it is compared with, each attached to the same kind of guest.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bed::{self, Bed, Place, Proc};
use crate::cell::Cell;
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
}

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
            Self::Slirp4netns | Self::Pasta => self.rival().unwrap_or_default(),
        }
    }

    /// The program of a rival.
    pub(crate) fn rival(&self) -> Option<&'static str> {
        match self {
            Self::Direct | Self::DirectSystem | Self::Ringtap { .. } => None,
            Self::Slirp4netns => Some("slirp4netns"),
            Self::Pasta => Some("pasta"),
        }
    }

    /// Starts it as the ordinary user, in the foreground, and waits until the guest can speak. `None`:
    /// nothing to start. With the time from its start until it said so.
    pub(crate) fn attach(&self, bed: &Bed, cell: &Cell) -> Res<(Option<Proc>, Duration)> {
        let guest = bed.guest_pid().to_string();
        let mtu = cell.mtu.to_string();
        let six = cell.load.ip() == 6;
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
                command.args(args).arg(&guest);
                start_and_wait(&mut command, read, write)
            }
            Self::Slirp4netns => {
                let (read, write) = bed::ready_pipe()?;
                let mut command = bed.command(Place::User, "slirp4netns");
                command.args(["-c", "-m", &mtu, "-r", &bed::number(&write)]);
                command.args(six.then_some("--enable-ipv6")).args([&guest, "tap0"]);
                start_and_wait(&mut command, read, write)
            }
            // No ready descriptor here: in the background its parent's exit says it, in the foreground
            // nothing does. So only the route below is waited for. In the background it would also move to
            // a PID of its own. Ports: none, as their default follows the guest's listening sockets
            // by a scan every second.
            Self::Pasta if cell.load == Load::Startup => {
                let mut pasta = self.pasta(bed, &mtu, six);
                pasta.arg(&guest);
                return background(pasta, begin).context(self.label());
            }
            Self::Pasta => Proc::start(self.pasta(bed, &mtu, six).arg("--foreground").arg(&guest)),
        }
        .context(self.label())?;
        bed.wait_guest_route(&mut process).context(self.label())?;
        let ready = ready.unwrap_or_else(|| begin.elapsed());
        if six {
            bed.wait_guest_ip6(&mut process).context(self.label())?;
        }
        Ok((Some(process), ready))
    }

    /// pasta, all but how it stays and to whom it attaches.
    fn pasta(&self, bed: &Bed, mtu: &str, six: bool) -> Command {
        let mut command = bed.command(Place::User, "pasta");
        command.args(["--quiet", "--config-net", "--ns-ifname=tap0", "--no-map-gw"]);
        command.args(["--tcp-ports=none", "--udp-ports=none", "--tcp-ns=none", "--udp-ns=none"]);
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
            Self::Direct | Self::DirectSystem | Self::Slirp4netns | Self::Pasta => {
                json!(self.label())
            }
        }
    }

    /// The opposite of [`Self::to_json`].
    pub(crate) fn from_json(v: &Value) -> Option<Self> {
        match v.as_str() {
            Some("direct") => Some(Self::Direct),
            Some("direct-system") => Some(Self::DirectSystem),
            Some("slirp4netns") => Some(Self::Slirp4netns),
            Some("pasta") => Some(Self::Pasta),
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
