//! Programs: [`Cmd`] says what to start and where, [`Proc`] is one that runs. Output goes to memory
//! files, so nobody has to drain a pipe, and every wait has an end.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::sys::{self, Step};

/// How long a program may take that has nothing slow to do. Only a hang makes it this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A program to be started.
pub(crate) struct Cmd {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    steps: Vec<Step>,
    stdin: Option<File>,
    terminal: bool,
    patience: Duration,
}

impl Cmd {
    /// A program and arguments, split at blanks: `Cmd::new("ip addr show tap0")`.
    pub(crate) fn new(line: &str) -> Self {
        let mut words = line.split_ascii_whitespace().map(OsString::from);
        let program = words.next().expect("a program");
        let mut cmd = Self::of(program);
        cmd.args = words.collect();
        cmd
    }

    /// A script for sh.
    pub(crate) fn sh(script: &str) -> Self {
        Self::of("sh").arg("-c").arg(script)
    }

    /// A program by name or path.
    pub(crate) fn of(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            steps: Vec::new(),
            stdin: None,
            terminal: false,
            patience: PATIENCE,
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments, split at blanks.
    pub(crate) fn args(mut self, line: &str) -> Self {
        self.args.extend(line.split_ascii_whitespace().map(OsString::from));
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.into(), value.as_ref().to_owned()));
        self
    }

    /// What it does before it becomes the program; see [`Step`].
    pub(crate) fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Lets it inherit a descriptor under its own number.
    pub(crate) fn keep(self, fd: &impl AsRawFd) -> Self {
        self.step(Step::Keep(fd.as_raw_fd()))
    }

    /// Gives it a terminal of its own (by its file descriptor).
    pub(crate) fn terminal(mut self, fd: RawFd) -> Self {
        self.terminal = true;
        self.step(Step::Terminal(fd))
    }

    /// What it reads; nothing otherwise.
    pub(crate) fn input(mut self, bytes: &[u8]) -> Self {
        let mut file = memory();
        file.write_all(bytes).expect("write to a memory file");
        std::io::Seek::rewind(&mut file).expect("rewind a memory file");
        self.stdin = Some(file);
        self
    }

    /// How long [`Cmd::run`] waits.
    pub(crate) fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts it.
    #[track_caller]
    pub(crate) fn start(self) -> Proc {
        let line = std::iter::once(&self.program)
            .chain(&self.args)
            .map(|s| s.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let (stdout, stderr) = (memory(), memory());
        let dup = |f: &File| Stdio::from(f.try_clone().expect("duplicate a memory file"));
        let mut cmd = Command::new(&self.program);
        cmd.args(&self.args)
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .envs(self.env)
            .current_dir("/")
            .stdin(self.stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(dup(&stdout))
            .stderr(dup(&stderr));
        if !self.terminal {
            // A group of its own, so that ending it ends what it started.
            cmd.process_group(0);
        }
        sys::prepare(&mut cmd, self.steps);
        let child = cmd.spawn().unwrap_or_else(|e| panic!("start `{line}`: {e}"));
        Proc { line, child, stdout, stderr, status: None }
    }

    /// Runs it to its end; a hang fails the test.
    #[track_caller]
    pub(crate) fn run(self) -> Done {
        let patience = self.patience;
        self.start().wait(patience)
    }

    /// Runs it to its end, which must be a good one, and returns what it printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        let done = self.run();
        assert!(done.success(), "{done:?}");
        done.stdout
    }
}

fn memory() -> File {
    File::from(memfd_create(c"output", MFdFlags::MFD_CLOEXEC).expect("memfd_create"))
}

fn contents(file: &File) -> String {
    let mut bytes = vec![0; file.metadata().expect("size of a memory file").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("read a memory file");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program that runs. Dropped, it is killed with all its group.
pub(crate) struct Proc {
    line: String,
    child: Child,
    stdout: File,
    stderr: File,
    status: Option<ExitStatus>,
}

impl Proc {
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it has printed so far.
    pub(crate) fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// What it has complained about so far.
    pub(crate) fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("signal a child");
    }

    /// Whether it still runs.
    pub(crate) fn alive(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait for a child");
        }
        self.status.is_none()
    }

    /// Waits for its end; one that does not come fails the test.
    #[track_caller]
    pub(crate) fn wait(mut self, patience: Duration) -> Done {
        let end = Instant::now() + patience;
        while self.alive() {
            assert!(
                Instant::now() < end,
                "`{}` still runs after {patience:?}; stdout: {}; stderr: {}",
                self.line,
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Done {
            line: self.line.clone(),
            status: self.status.expect("an end"),
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    /// Waits until it has printed `text` (on stdout or stderr).
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.stdout().contains(text) && !self.stderr().contains(text) {
            assert!(
                self.alive() && Instant::now() < end,
                "`{}` never said `{text}`; stdout: {}; stderr: {}",
                self.line,
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.pid());
        // The group outlives its leader when the leader has left children behind; the number is not
        // used again while it does. ESRCH is the usual answer.
        let _ = killpg(pid, Signal::SIGKILL);
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// How a program ended.
pub(crate) struct Done {
    line: String,
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn success(&self) -> bool {
        self.status.success()
    }

    /// The exit code; `None` when a signal ended it.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// The promise to an operator who made a mistake: not 0, and one line on stderr with these words.
    #[track_caller]
    pub(crate) fn refused_with(&self, words: &[&str]) {
        assert!(matches!(self.code(), Some(1..=125)), "not refused: {self:?}");
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "not one line: {self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not named: {self:?}");
        }
    }
}

impl std::fmt::Debug for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}`: {}; stdout: {}; stderr: {}",
            self.line, self.status, self.stdout, self.stderr
        )
    }
}
