//! What an operator is told when boot fails: one line, made where the cause is known.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// One line that names the step, the object, the cause, and the remedy where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// A failure in our own words.
    pub fn new(line: impl Into<String>) -> Self {
        Self(line.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Puts the step in front of a cause.
pub trait Context<T> {
    /// `step` becomes the first part of the line.
    ///
    /// # Errors
    /// The error it was called on, as a [`Failure`].
    fn context<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T> Context<T> for io::Result<T> {
    fn context<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|e| Failure(format!("{}: {}", step().into(), plain(&e))))
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|e| Failure(format!("{}: {}", step().into(), e.desc())))
    }
}

/// An error's text without Rust's "(os error 13)".
fn plain(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_owned(),
        None => e.to_string(),
    }
}
