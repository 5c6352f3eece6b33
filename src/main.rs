//! ringtap: command line, boot, workers, control, exit code.

use std::io::Write;
use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::raise;
use ringtap::boot::{self, Inherited, sys};
use ringtap::cli::{self, Command};
use ringtap::config::{Config, Personality};
use ringtap::control::{self, End};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Command::Forward(config, lines)) => {
            for line in lines {
                print(&format!("{line}\n"));
            }
            forward(&config)
        }
        Ok(Command::Print(text)) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Ok(Command::Doctor) => ExitCode::FAILURE,
        Err(refusal) => {
            print(&refusal.stdout);
            let _ = std::io::stderr().write_all(refusal.stderr.as_bytes());
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
            let mut line = match config.personality {
                Personality::Native => format!("ringtap: {failure}\n"),
                Personality::Slirp4netns => format!("{failure}\nchild failed(1)\n"),
            };
            line = line.replace('\0', "");
            let _ = std::io::stderr().write_all(line.as_bytes());
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

/// Prints; a reader that has gone is no error.
fn print(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
