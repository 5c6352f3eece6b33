//! ringtap: command line, boot, workers, control, exit code.

use std::io::Write;
use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::raise;
use ringtap::boot::{self, Inherited, sys};
use ringtap::cli::{self, Command};
use ringtap::config::{Config, Personality};
use ringtap::control::{self, End};
use ringtap::doctor;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Command::Forward(config, lines)) => {
            lines.iter().for_each(|line| print(line));
            forward(&config)
        }
        Ok(Command::Print(text)) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Ok(Command::Doctor) => {
            let (text, code) = doctor::run();
            print(&text);
            ExitCode::from(code)
        }
        Err(refusal) => {
            print(&refusal.stdout);
            complain(&refusal.stderr);
            ExitCode::from(refusal.code)
        }
    }
}

/// Boots, forwards, and ends as the personality does.
fn forward(config: &Config) -> ExitCode {
    let log = tracing_subscriber::fmt()
        .compact()
        .without_time()
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_max_level(config.log_level)
        .finish();
    // Set once, here: it cannot have been set before.
    let _ = tracing::subscriber::set_global_default(log);
    let end = match Inherited::take(config).and_then(|mut inherited| {
        let guest = boot::boot(config, &mut inherited)?;
        // After the fork of the command, which keeps the limit it was given.
        raise_descriptor_limit();
        Ok(control::run(config, guest, inherited))
    }) {
        Ok(end) => end,
        Err(failure) => End::Failed(failure),
    };
    match end {
        End::Code(code) => ExitCode::from(code),
        End::Signal(signal) => {
            sys::set_default(signal);
            let _ = raise(signal);
            ExitCode::FAILURE
        }
        End::Failed(failure) => {
            match config.personality {
                Personality::Native => complain(&format!("ringtap: {failure}")),
                // Callers log it; the second line is what it says whenever the guest cannot be had.
                Personality::Slirp4netns => complain(&format!("{failure}\nchild failed(1)")),
            }
            ExitCode::FAILURE
        }
    }
}

/// Each flow is a descriptor: takes all that the operator allows.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Prints a text on stdout, if there is one; a reader that has gone is no error.
fn print(text: &str) {
    if !text.is_empty() {
        let mut out = std::io::stdout();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

/// Prints a line on stderr, if there is one.
fn complain(line: &str) {
    if !line.is_empty() {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
