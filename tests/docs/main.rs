//! The man page and the completions, read by the programs that they are for.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn made(what: &[&str]) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_ringtap")).args(what).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// What a program says of an input; `None` if it is not on this machine.
fn tell(command: &[&str], input: &str) -> Option<String> {
    let done = run(command, input)?;
    let complaints = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && complaints.is_empty(), "{command:?}: {complaints}");
    Some(String::from_utf8(done.stdout).unwrap())
}

fn run(command: &[&str], input: &str) -> Option<Output> {
    let mut child = match Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: no {}", command[0]);
            return None;
        }
        Err(e) => panic!("{command:?}: {e}"),
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let done = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Some(done)
}

#[test]
fn the_man_page_renders_without_a_complaint() {
    let page = made(&["man"]);
    if let Some(text) = tell(&["groff", "-man", "-ww", "-Tascii", "-P-cbou"], &page) {
        for line in ["ringtap - a fast network", "--exit-fd FD", "COMMANDS", "SLIRP4NETNS"] {
            assert!(text.contains(line), "no `{line}` in:\n{text}");
        }
    }
    if let Some(done) = run(&["mandoc", "-Tlint", "-Wwarning"], &page) {
        let said = String::from_utf8(done.stdout).unwrap();
        // There is none on purpose.
        let wrong: Vec<_> = said.lines().filter(|line| !line.contains("missing date")).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}

#[test]
fn the_shells_can_read_their_files() {
    for (shell, check) in
        [("bash", &["bash", "-n"][..]), ("zsh", &["zsh", "-n"]), ("fish", &["fish", "-n"])]
    {
        tell(check, &made(&["completions", shell]));
    }
}

/// What bash offers for the last word of a line.
fn offered(line: &str) -> Option<String> {
    let script = format!(
        "{}\nCOMP_WORDS=({line})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n_ringtap\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
        made(&["completions", "bash"])
    );
    tell(&["bash", "--norc"], &script)
}

#[test]
fn bash_completes_commands_options_and_values() {
    for (line, offers) in [
        ("ringtap att", "attach\n"),
        ("ringtap help doc", "doctor\n"),
        ("ringtap run --mt", "--mtu\n"),
        ("ringtap attach --ready", "--ready-fd\n"),
        // Of another command.
        ("ringtap run --ready", "\n"),
        ("ringtap run --log-level wa", "warn\n"),
        ("ringtap run --mtu 9000 --no-ip", "--no-ipv6\n"),
        // The command's own.
        ("ringtap run --mtu 9000 cat --no-ip", "\n"),
        ("ringtap run -- cat --no-ip", "\n"),
    ] {
        let Some(got) = offered(line) else { return };
        assert_eq!(got, offers, "{line}");
    }
    if let Some(got) = offered("ringtap run unsha") {
        assert!(got.lines().any(|word| word == "unshare"), "{got}");
    }
}
