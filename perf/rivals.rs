//! ringtap and those it is compared with, each attached to the same kind of guest.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::bed::{self, Bed, Place, Proc};
use crate::{Context, Res};

/// What stands between the client and the remote.
#[derive(Clone, Debug)]
pub(crate) enum Forwarder {
    /// Nothing: the client runs on the host's end of the veth pair.
    Direct,
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
            Self::Ringtap { label, .. } => label,
            Self::Slirp4netns | Self::Pasta => self.rival().unwrap_or_default(),
        }
    }

    /// The program of a rival.
    pub(crate) fn rival(&self) -> Option<&'static str> {
        match self {
            Self::Direct | Self::Ringtap { .. } => None,
            Self::Slirp4netns => Some("slirp4netns"),
            Self::Pasta => Some("pasta"),
        }
    }

    /// Starts it as the ordinary user, in the foreground, and waits until the guest can speak. `None`:
    /// nothing to start.
    pub(crate) fn attach(&self, bed: &Bed, mtu: u16) -> Res<Option<Proc>> {
        let guest = bed.guest_pid().to_string();
        let mtu = mtu.to_string();
        // Its own congestion control, buffers and the like are left as it sets them.
        let mut process = match self {
            Self::Direct => return Ok(None),
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
                command.args(["-c", "-m", &mtu, "-r", &bed::number(&write), &guest, "tap0"]);
                start_and_wait(&mut command, read, write)
            }
            // No ready descriptor here: in the background its parent's exit says it, in the foreground
            // nothing does. So only the route below is waited for. In the background it would also move to
            // a PID of its own. Ports: none, as their default follows the guest's listening sockets
            // by a scan every second.
            Self::Pasta => Proc::start(bed.command(Place::User, "pasta").args([
                "--foreground",
                "--quiet",
                "--ipv4-only",
                "--config-net",
                "--ns-ifname=tap0",
                "--no-map-gw",
                "--tcp-ports=none",
                "--udp-ports=none",
                "--tcp-ns=none",
                "--udp-ns=none",
                "--mtu",
                &mtu,
                &guest,
            ])),
        }
        .context(self.label())?;
        bed.wait_guest_route(&mut process).context(self.label())?;
        Ok(Some(process))
    }

    /// For the next stage.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Ringtap { label, path, args } => {
                json!({ "ringtap": { "label": label, "path": path.to_string_lossy(), "args": args } })
            }
            Self::Direct | Self::Slirp4netns | Self::Pasta => json!(self.label()),
        }
    }

    /// The opposite of [`Self::to_json`].
    pub(crate) fn from_json(v: &Value) -> Option<Self> {
        match v.as_str() {
            Some("direct") => Some(Self::Direct),
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
