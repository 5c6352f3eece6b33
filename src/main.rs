//! ringtap: command line, boot, workers, control, exit code.

use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::raise;
use ringtap::boot::{self, Failure, Inherited, sys};
use ringtap::cli::{self, Command};
use ringtap::config::{Config, Personality};
use ringtap::control::{self, End};
use ringtap::doctor;
use ringtap::limits::DESCRIPTORS_OWN;
use ringtap::output::{self, print, say, say_error};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Command::Forward(config, lines)) => {
            lines.iter().for_each(|line| say(line));
            forward(&config)
        }
        Ok(Command::Print(text)) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Ok(Command::Port(command)) => match control::api::client::run(&command) {
            Ok(text) => {
                print(&text);
                ExitCode::SUCCESS
            }
            Err(failure) => {
                say_error(&format!("ringtap: {failure}"));
                ExitCode::FAILURE
            }
        },
        Ok(Command::Doctor) => {
            let (text, code) = doctor::run();
            print(&text);
            ExitCode::from(code)
        }
        Err(refusal) => {
            print(&refusal.stdout);
            say_error(&refusal.stderr);
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
        .with_writer(output::log)
        // It would say so on the same stderr.
        .log_internal_errors(false)
        .with_max_level(config.log_level)
        .finish();
    // Set once, here: it cannot have been set before.
    let _ = tracing::subscriber::set_global_default(log);
    let guest = enough_descriptors()
        .and_then(|()| Inherited::take(config))
        .and_then(|mut inherited| Ok((boot::boot(config, &mut inherited)?, inherited)));
    let (guest, inherited) = match guest {
        Ok(booted) => booted,
        Err(failure) => {
            complain(config, &failure);
            if config.personality == Personality::Slirp4netns {
                // What it says whenever the guest cannot be had; callers log it.
                say_error("child failed(1)");
            }
            return ExitCode::FAILURE;
        }
    };
    // After the fork of the command, which keeps the limit it was given.
    raise_descriptor_limit();
    match control::run(config, guest, inherited) {
        End::Code(code) => ExitCode::from(code),
        End::Signal(signal) => {
            sys::set_default(signal);
            let _ = raise(signal);
            ExitCode::FAILURE
        }
        End::Failed(failure) => {
            complain(config, &failure);
            ExitCode::FAILURE
        }
    }
}

/// Prints a failure as the personality does.
fn complain(config: &Config, failure: &Failure) {
    match config.personality {
        Personality::Native => say_error(&format!("ringtap: {failure}")),
        Personality::Slirp4netns => say_error(&failure.to_string()),
    }
}

/// Refuses a limit under which there would be no flow; some libraries panic without their own descriptors.
fn enough_descriptors() -> Result<(), Failure> {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard <= DESCRIPTORS_OWN => Err(Failure::new(format!(
            "the limit on open files is {hard}: ringtap needs {DESCRIPTORS_OWN} and one for each conversation: raise it (ulimit -Hn)"
        ))),
        Ok(_) | Err(_) => Ok(()),
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
