//! Command lines: one file per personality, each from argv to a [`Config`].

use std::ffi::OsString;

use crate::config::{Config, Mode, NetConfig, Personality, Target};

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Forward a guest's traffic. Lines to print on stdout before anything else (slirp4netns's warnings
    /// go there) come first.
    Forward(Box<Config>, Vec<String>),
    /// Print this on stdout and exit 0 (help, version).
    Print(String),
    /// Look at this machine.
    Doctor,
}

/// A command line that cannot be carried out. Nothing has been done yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For stdout (slirp4netns prints its usage there).
    pub stdout: String,
    /// For stderr: one line that names the option, the value and the remedy.
    pub stderr: String,
    /// Exit code, not 0.
    pub code: u8,
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// [`Refusal`].
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Refusal> {
    let mut args = args.into_iter().skip(1);
    let verb = args.next().unwrap_or_default();
    let rest: Vec<OsString> = args.collect();
    let mode = if verb == "attach" {
        let pid = rest.first().and_then(|s| s.to_str()?.parse().ok()).unwrap_or(0);
        Mode::Attach(Target::Pid { pid, userns: None })
    } else if verb == "run" {
        Mode::Run { cmd: rest, keep_uid: false }
    } else {
        return Err(Refusal { stdout: String::new(), stderr: "usage".into(), code: 1 });
    };
    Ok(Command::Forward(
        Box::new(Config {
            mode,
            personality: Personality::Native,
            net: NetConfig::native(),
            tap_name: "tap0".into(),
            configure: true,
            ready_fd: None,
            exit_fd: None,
            api_socket: None,
            pid_file: None,
            log_level: tracing::Level::INFO,
            write_resolv_conf: true,
        }),
        Vec::new(),
    ))
}
