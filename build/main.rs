//! Makes the man page and the completions of shells out of the help texts, which are the one description of the native
//! command line. They land in `OUT_DIR`, and in the program: `ringtap man`, `ringtap completions SHELL`.

#![allow(clippy::unwrap_used, reason = "a failed step of the build is a failed build")]

#[path = "../src/cli/help.rs"]
#[allow(dead_code, unreachable_pub)]
mod help;

mod complete;
mod man;
mod text;

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=src/cli/help.rs");
    let out = std::env::var_os("OUT_DIR").unwrap();
    let commands = text::commands(help::PROGRAM);
    let page = |name: &'_ str| {
        let page = help::page(name);
        assert!(!page.is_empty(), "src/cli/help.rs: own() has nothing for the command {name}");
        page
    };
    let pages: Vec<(&str, String)> =
        commands.iter().map(|(name, _)| (name.as_str(), page(name))).collect();
    for (file, text) in [
        ("ringtap.1", man::page(env!("CARGO_PKG_VERSION"), &pages)),
        ("ringtap.bash", complete::bash(&commands, &pages)),
        ("_ringtap", complete::zsh(&commands, &pages)),
        ("ringtap.fish", complete::fish(&commands, &pages)),
    ] {
        std::fs::write(Path::new(&out).join(file), text).unwrap();
    }
}
