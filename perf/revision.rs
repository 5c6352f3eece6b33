//! The builds that `ab` compares: binaries that are there, or revisions, each built from a checkout of its own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Context, Res};

/// What a word after `ab` names.
pub(crate) enum Named {
    /// A file.
    Binary(PathBuf),
    /// A revision, as git understands it.
    Revision(String),
}

impl Named {
    /// Reads a word: a file that exists is a binary, all else is for git to know.
    pub(crate) fn read(word: &OsStr) -> Res<Self> {
        let path = Path::new(word);
        if path.is_file() {
            return Ok(Self::Binary(std::path::absolute(path).context(path.display())?));
        }
        match word.to_str() {
            Some(rev) if !rev.is_empty() && !rev.starts_with('-') => Ok(Self::Revision(rev.into())),
            _ => Err(format!("ab: {} is neither a file nor a revision", path.display())),
        }
    }
}

/// A build to compare.
pub(crate) struct Build {
    /// The binary.
    pub(crate) path: PathBuf,
    /// What it is made of, for the report.
    pub(crate) what: String,
}

/// Both builds. A revision that does not exist is told before the first minute of building.
pub(crate) fn both(a: &Named, b: &Named) -> Res<[Build; 2]> {
    let (a, b) = (Source::find(a)?, Source::find(b)?);
    Ok([a.build()?, b.build()?])
}

enum Source {
    Binary(PathBuf),
    Commit { hash: String, what: String },
}

impl Source {
    fn find(named: &Named) -> Res<Self> {
        let rev = match named {
            Named::Binary(path) => return Ok(Self::Binary(path.clone())),
            Named::Revision(rev) => rev,
        };
        let hash = git(&["rev-parse", "--verify", "--quiet", &format!("{rev}^{{commit}}")])
            .map_err(|e| format!("ab: {rev} is neither a file nor a revision of git ({e})"))?;
        let subject = git(&["log", "-1", "--format=%h %s", &hash])?;
        let what =
            if subject.starts_with(rev.as_str()) { subject } else { format!("{rev}: {subject}") };
        Ok(Self::Commit { hash, what })
    }

    fn build(self) -> Res<Build> {
        match self {
            Self::Binary(path) => Ok(Build { what: path.display().to_string(), path }),
            Self::Commit { hash, what } => {
                let path = built(&hash).context(format!("build {what}"))?;
                Ok(Build { path, what })
            }
        }
    }
}

/// Where revisions are built and kept.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ab")
}

/// The binary of a commit: the one kept from an earlier run, or a new one.
fn built(hash: &str) -> Res<PathBuf> {
    let kept = folder().join(hash);
    let (binary, stamp) = (kept.join("ringtap"), kept.join("built-with"));
    let with = compiler()?;
    // A build of another compiler would be compared with that compiler's doing.
    if binary.is_file() && fs::read_to_string(&stamp).is_ok_and(|text| text == with) {
        return Ok(binary);
    }
    fs::create_dir_all(&kept).context(kept.display())?;
    let tree = Worktree::add(kept.join("tree"), hash)?;
    // One target folder for all revisions: what they depend on is mostly the same.
    let target = folder().join("target");
    println!("building {hash}");
    let status = Command::new(program("CARGO", "cargo"))
        .args(["build", "--release", "--locked", "--quiet", "--bin", "ringtap", "--target-dir"])
        .arg(&target)
        .current_dir(&tree.path)
        .stdin(Stdio::null())
        .status()
        .context("start cargo")?;
    if !status.success() {
        return Err(format!("cargo ended with {status}"));
    }
    // The stamp last: without it the copy does not count.
    fs::copy(target.join("release/ringtap"), &binary).context(binary.display())?;
    fs::write(&stamp, with).context(stamp.display())?;
    Ok(binary)
}

/// What decides about the code besides the source.
fn compiler() -> Res<String> {
    let out = Command::new(program("RUSTC", "rustc")).arg("-vV").output().context("start rustc")?;
    let flags = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"].map(std::env::var_os);
    Ok(format!("{}{flags:?}\n", String::from_utf8_lossy(&out.stdout)))
}

/// A program of the toolchain that cargo runs us with.
fn program(variable: &str, name: &str) -> OsString {
    std::env::var_os(variable).unwrap_or_else(|| name.into())
}

/// A checkout beside the one at work, gone when dropped.
struct Worktree {
    path: PathBuf,
}

impl Worktree {
    fn add(path: PathBuf, hash: &str) -> Res<Self> {
        // Left over by a run that was killed.
        let left = Self { path };
        left.remove();
        let path = left.path.to_string_lossy();
        git(&["worktree", "add", "--force", "--quiet", "--detach", &path, hash])?;
        Ok(left)
    }

    fn remove(&self) {
        // Both fail where there is nothing to remove, which is what is wanted.
        let _ = git(&["worktree", "remove", "--force", &self.path.to_string_lossy()]);
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What git prints, about this repository.
fn git(args: &[&str]) -> Res<String> {
    let out = Command::new("git")
        .arg("-C")
        .arg(env!("CARGO_MANIFEST_DIR"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("start git")?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(format!("git {}: {} {}", args[0], out.status, said.trim()))
}
