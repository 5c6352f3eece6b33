//! What the layout promises, held by a test: who may use whom, where `unsafe` may be, what pure code never
//! names, that every file says what it is, and that the README's commands exist.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

/// Each module at the root, and the modules of this crate it may use. Leaves first.
const ARROWS: [(&str, &[&str]); 16] = [
    ("time", &[]),
    ("limits", &["time"]),
    ("stats", &[]),
    ("arena", &["limits"]),
    ("config", &["limits"]),
    ("frame", &["arena", "limits"]),
    ("flow", &["frame", "arena", "config", "limits", "stats", "time"]),
    ("stack", &["flow", "frame", "arena", "config", "limits", "stats", "time"]),
    ("worker", &["stack", "flow", "frame", "arena", "config", "limits", "stats", "time"]),
    // What follows speaks to workers by messages: it never sees a flow, a frame or a slot.
    ("boot", &["control", "worker", "output", "config", "limits", "stats", "time"]),
    ("control", &["boot", "worker", "output", "config", "limits", "stats", "time"]),
    ("output", &[]),
    ("cli", &["config", "limits", "worker"]),
    ("doctor", &["boot", "cli", "config", "control", "limits", "worker"]),
    ("main", &["boot", "cli", "config", "control", "doctor", "limits", "output", "worker"]),
    ("lib", &[]),
];

/// Files under `src` that may hold `unsafe`, and what for.
const UNSAFE: [(&str, &str); 8] = [
    ("arena.rs", "the mapping behind slots"),
    ("boot/sys.rs", "fork, ioctls"),
    ("cli/mod.rs", "taking over inherited descriptors"),
    ("doctor/facts.rs", "asking the system"),
    ("doctor/trial.rs", "trying it in a child"),
    ("worker/ring.rs", "the ring and its buffers"),
    ("worker/submit.rs", "submission entries, socket addresses"),
    ("worker/dgram.rs", "datagram headers and control messages"),
];

/// Folders and files of pure code.
const PURE: [&str; 3] = ["frame", "flow", "stack"];

/// What pure code never names. `libc` is there for the numbers of errors only, see [`is_pure`].
const IMPURE: [&str; 24] = [
    "RawFd",
    "OwnedFd",
    "BorrowedFd",
    "AsFd",
    "AsRawFd",
    "Instant",
    "SystemTime",
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "nix::",
    "socket2",
    "io_uring",
    "tokio",
    "tracing",
    "println!",
    "static mut",
    "thread_local!",
    "unsafe {",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder of the repository, with their text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = vec![];
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "nothing in {folder}");
    found
}

/// The files of the program, by their path below `src`.
fn program() -> Vec<(String, String)> {
    let src = root().join("src");
    sources("src")
        .into_iter()
        .map(|(path, text)| (path.strip_prefix(&src).unwrap().display().to_string(), text))
        .collect()
}

/// The text without comment lines.
fn code(text: &str) -> String {
    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The text before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

/// The module at the root that a file belongs to.
fn module(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap()
}

/// The modules at the root that a text names.
fn uses<'a>(code: &'a str, prefix: &str) -> Vec<&'a str> {
    code.split(prefix)
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn arrows_point_one_way() {
    let mut looked_at = 0;
    for (path, text) in program() {
        let module = module(&path);
        let (_, allowed) = ARROWS
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("src/{path}: give `{module}` a place in ARROWS"));
        let code = code(&text);
        let prefix = if module == "main" { "ringtap::" } else { "crate::" };
        for name in uses(&code, prefix) {
            looked_at += 1;
            assert!(
                name == module || allowed.contains(&name),
                "src/{path} uses `{name}`, which `{module}` must not"
            );
        }
        // `{`: several modules in one `use` would be overlooked.
        assert!(!code.contains("use crate::{"), "src/{path}: one `use` for each module");
    }
    assert!(looked_at > 50, "only {looked_at} uses: has the search gone blind?");
}

#[test]
fn supers_stay_within_their_module() {
    for (path, text) in program() {
        // How many `super`s lead to the root: the parts of the path, `mod.rs` not counted.
        let parts = path.trim_end_matches(".rs").split('/').filter(|p| *p != "mod").count();
        let code = code(without_tests(&text));
        assert!(
            !code.contains(&"super::".repeat(parts)),
            "src/{path}: a path with `super` leaves `{}`; say `crate::`",
            module(&path)
        );
    }
}

#[test]
fn unsafe_code_is_where_the_list_has_it() {
    for (path, text) in program() {
        let code = code(&text);
        let listed = UNSAFE.iter().any(|(file, _)| *file == path);
        let allows = code.contains("allow(unsafe_code");
        assert!(listed || !allows, "src/{path} allows unsafe code: not in the list");
        assert!(!listed || allows, "src/{path} needs no unsafe code: take it off the list");
        if module(&path) == path.trim_end_matches("/mod.rs") && PURE.contains(&module(&path)) {
            assert!(code.contains("#![forbid(unsafe_code)]"), "src/{path} must forbid unsafe code");
        }
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"deny\""));
    assert!(manifest.contains("undocumented_unsafe_blocks = \"deny\""));
}

/// The first impure thing a text names.
fn is_pure(code: &str) -> Result<(), String> {
    if let Some(word) = IMPURE.iter().find(|word| code.contains(**word)) {
        return Err((*word).to_string());
    }
    // `libc::EPERM` is a number; `libc::read` is a system call.
    for name in uses(code, "libc::") {
        let number = name.starts_with('E') && name.chars().all(|c| c.is_ascii_uppercase());
        if !number {
            return Err(format!("libc::{name}"));
        }
    }
    if code.contains("libc::{") || code.contains("libc::*") || code.contains("use libc") {
        return Err("use libc".into());
    }
    Ok(())
}

#[test]
fn pure_code_names_no_descriptor_clock_or_log() {
    assert_eq!(is_pure("Errno(libc::EPERM) => std::net::IpAddr"), Ok(()));
    assert_eq!(is_pure("libc::read(0)"), Err("libc::read".into()));
    assert_eq!(is_pure("std::time::Instant::now()"), Err("Instant".into()));
    let mut looked_at = 0;
    for (path, text) in program() {
        if PURE.contains(&module(&path)) || ["time.rs", "limits.rs", "stats.rs"].contains(&&*path) {
            looked_at += 1;
            if let Err(word) = is_pure(&code(without_tests(&text))) {
                panic!("src/{path} names `{word}`");
            }
        }
    }
    assert!(looked_at > 15);
}

#[test]
fn nothing_is_left_to_do() {
    for (path, text) in program() {
        for word in ["todo!(", "unimplemented!(", "dbg!("] {
            assert!(!text.contains(word), "src/{path}: {word}");
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    for folder in ["src", "build", "tests", "benches", "perf"] {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//! "), "{}: begin with a `//!` line", path.display());
        }
    }
}

#[test]
fn long_files_are_told() {
    for (path, text) in program() {
        let lines = text.lines().count();
        if lines > 600 {
            println!("note: src/{path} has {lines} lines; is it one thing?");
        }
    }
}

/// What of a README cannot be typed as it is written. `exists` says whether the repository has a file.
fn wrong_commands(readme: &str, exists: &dyn Fn(&str) -> bool, options: &str) -> Vec<String> {
    let mut wrong = vec![];
    let mut fenced = false;
    for line in readme.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced && ["```sh", "```console"].contains(&line.trim());
            continue;
        }
        let line = line.trim().trim_start_matches("$ ");
        if !fenced || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace().skip_while(|w| *w == "sudo" || w.contains('='));
        let Some(command) = words.next() else { continue };
        let rest: Vec<_> = words.collect();
        let mut complain = |what: String| wrong.push(format!("{line}: {what}"));
        match command {
            "cargo" => {
                for pair in rest.windows(2) {
                    let places = match pair[0] {
                        "--test" => [format!("tests/{}/main.rs", pair[1]), String::new()],
                        "--bench" => {
                            [format!("benches/{}.rs", pair[1]), format!("{}/main.rs", pair[1])]
                        }
                        "--example" => [format!("examples/{}.rs", pair[1]), String::new()],
                        _ => continue,
                    };
                    if !places.iter().any(|p| exists(p)) {
                        complain(format!("no {} {}", pair[0], pair[1]));
                    }
                }
            }
            _ if command == "ringtap" || command.ends_with("/ringtap") => {
                // Its own options end where the command it runs begins.
                for word in rest.iter().take_while(|w| **w != "--") {
                    let name = word.split('=').next().unwrap();
                    let known = !name.starts_with("--") || options.contains(name);
                    if !known {
                        complain(format!("no option {name}"));
                    }
                }
                if let Some(verb) = rest.iter().find(|w| !w.starts_with('-'))
                    && !["run", "attach", "create", "port", "doctor", "man", "completions"]
                        .contains(verb)
                {
                    complain(format!("no command {verb}"));
                }
            }
            _ if command.contains('/') && !command.starts_with('/') => {
                let file = command.trim_start_matches("./");
                if !file.starts_with("target/") && !exists(file) {
                    complain("no such file".into());
                }
            }
            _ => {}
        }
    }
    wrong
}

#[test]
fn commands_of_the_readme_exist() {
    // The search itself.
    let sample = "text --nothing\n```sh\nsudo .ci/gone\n$ ringtap run --mtu=9 -- ls --all\n\
                  ringtap sing\nX=1 ringtap doctor --loud\ncargo test --test tidy\n\
                  cargo bench --bench gone\n```\n./not/a/command\n";
    let wrong = wrong_commands(sample, &|file| file == "tests/tidy/main.rs", "--mtu");
    let lines: Vec<_> = wrong.iter().map(|w| w.split(": ").next().unwrap()).collect();
    assert_eq!(
        lines,
        ["sudo .ci/gone", "ringtap sing", "X=1 ringtap doctor --loud", "cargo bench --bench gone"]
    );
    let readme = root().join("README.md");
    if !readme.exists() {
        println!("note: no README.md");
        return;
    }
    let options: String = program()
        .into_iter()
        .filter(|(path, _)| module(path) == "cli" || module(path) == "main")
        .map(|(_, text)| text)
        .collect();
    let text = fs::read_to_string(readme).unwrap();
    assert!(text.contains("```sh") || text.contains("```console"), "a README without a command");
    let wrong = wrong_commands(&text, &|file| root().join(file).is_file(), &options);
    assert!(wrong.is_empty(), "README.md:\n{}", wrong.join("\n"));
}

#[test]
fn targets_of_the_manifest_exist() {
    for target in
        ["tests/sim", "tests/netns", "tests/compat", "tests/platform", "tests/tidy", "perf"]
    {
        assert!(root().join(target).join("main.rs").is_file(), "{target}");
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for line in manifest.lines() {
        if let Some(path) = line.strip_prefix("path = ") {
            assert!(root().join(path.trim_matches('"')).is_file(), "{line}");
        }
    }
}
