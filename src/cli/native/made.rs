//! What the build makes of the help texts (`build/`), printed for those who package the program.

use std::ffi::OsString;

use super::{Command, Refusal, refuse};

/// ringtap(1).
const MAN: &str = include_str!(concat!(env!("OUT_DIR"), "/ringtap.1"));
const BASH: &str = include_str!(concat!(env!("OUT_DIR"), "/ringtap.bash"));
const ZSH: &str = include_str!(concat!(env!("OUT_DIR"), "/_ringtap"));
const FISH: &str = include_str!(concat!(env!("OUT_DIR"), "/ringtap.fish"));

/// `ringtap man`
pub(super) fn man(args: &[OsString]) -> Result<Command, Refusal> {
    match args.first() {
        None => print(MAN),
        Some(arg) => refuse(format!("man {}: it takes no arguments", arg.to_string_lossy())),
    }
}

/// `ringtap completions SHELL`
pub(super) fn completions(args: &[OsString]) -> Result<Command, Refusal> {
    const SHELLS: &str = "it takes one of bash, zsh and fish";
    match args {
        [shell] => match shell.to_str() {
            Some("bash") => print(BASH),
            Some("zsh") => print(ZSH),
            Some("fish") => print(FISH),
            _ => refuse(format!("completions {}: {SHELLS}", shell.to_string_lossy())),
        },
        _ => refuse(format!("completions: {SHELLS}")),
    }
}

fn print(text: &str) -> Result<Command, Refusal> {
    Ok(Command::Print(text.trim_end().to_owned()))
}
