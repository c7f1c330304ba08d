//! The library's one error type, and the process exit code that each kind of error maps to.
//!
//! Every message is one line that says what is wrong, where, and what to do next.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// What can go wrong, with the context a user needs to mend it.
///
/// Match on the variants that matter to you, with `..` in each and `_` for the others: variants and fields are added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an access to `path`.
    #[error("cannot {action} {}: {source}", one_line(path.display()))]
    #[non_exhaustive]
    Io {
        /// What was attempted: "read", "create", …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The operating system refused something that is not a file: threads, a signal handler.
    #[error("cannot {action}: {source}")]
    #[non_exhaustive]
    System {
        /// What was attempted: "start threads", …
        action: String,
        /// The reason.
        source: Cause,
    },
    /// A result could not be put into the form in which it is written.
    #[error("cannot write {}: {source}", one_line(path.display()))]
    #[non_exhaustive]
    Encode {
        /// The file that was to be written.
        path: PathBuf,
        /// What the encoder says.
        source: Cause,
    },
    /// A file's content is not what it must be.
    #[error("{}: {}; {remedy}", one_line(file.display()), one_line(problem))]
    #[non_exhaustive]
    Input {
        /// The file.
        file: PathBuf,
        /// What is wrong, with the place in the file (line, tensor, key).
        problem: String,
        /// What the user can do about it.
        remedy: String,
    },
    /// A setting is wrong, whether it was made in code, in a file or by an override.
    #[error("{key}: {problem}; {remedy}")]
    #[non_exhaustive]
    Config {
        /// The setting's name, dotted where it is in a table: `out`, `tar.outer.lr`.
        key: String,
        /// What is wrong with it.
        problem: String,
        /// What the user can do about it. Names of other settings stand between backquotes.
        remedy: String,
    },
    /// An operation was called with operands whose shapes do not fit: a defect of the caller.
    #[error("{operation}: {problem}")]
    #[non_exhaustive]
    Shape {
        /// The operation.
        operation: &'static str,
        /// Which operands disagree, with their shapes.
        problem: String,
    },
    /// A loss or a gradient is not finite, and the run's policy is to stop.
    #[error("{what} is not finite at step {step}; {remedy}")]
    #[non_exhaustive]
    NonFinite {
        /// Which quantity.
        what: String,
        /// The outer step (or attack step), counted from 0.
        step: u64,
        /// What the user can do about it.
        remedy: String,
    },
    /// The run was asked to stop, by its observer or its [`StopFlag`](crate::api::StopFlag), and did so at a safe point.
    #[error("stopped by request {at}; {remedy}")]
    #[non_exhaustive]
    Interrupted {
        /// Where it stopped: "after outer step 12".
        at: String,
        /// How to go on.
        remedy: String,
    },
    /// The run needs more memory than there is.
    #[error("{what} needs {needed} bytes but {available} are available; {remedy}")]
    #[non_exhaustive]
    Memory {
        /// What is being allocated.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
        /// Which setting would make it fit.
        remedy: String,
    },
    /// There is no device as it was asked for: no driver, no such GPU, no kernels for it. The text ends with the remedy.
    #[error("device: {0}")]
    NoDevice(String),
    /// A call of a device failed.
    #[error("device: {0}")]
    Device(String),
    /// The library was used in a way that cannot work: a defect of the calling program, or of temper.
    #[error("{0}: this is a defect of the program, please report it")]
    Defect(String),
}

/// The cause of an error, of whatever type.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The library's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`] for `path`; use with `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// An [`Error::Input`].
    pub fn input(file: impl AsRef<Path>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Input { file: file.as_ref().to_path_buf(), problem: problem.into(), remedy: remedy.into() }
    }

    /// An [`Error::Config`].
    pub fn config(key: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Config { key: key.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// An [`Error::Encode`] of what was to be written to `path`; use with `map_err`.
    pub fn encode<E: Into<Cause>>(path: impl AsRef<Path>) -> impl FnOnce(E) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Encode { path, source: source.into() }
    }

    /// An [`Error::System`]; use with `map_err`.
    pub fn system<E: Into<Cause>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::System { action, source: source.into() }
    }

    /// The process exit code: 1 failure, 2 usage or configuration, 3 unusable input file, 4 non-finite numbers,
    /// 5 not enough memory, 75 stopped by request (the `EX_TEMPFAIL` of sysexits: run again to go on).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config { .. } => 2,
            Self::Input { .. } => 3,
            Self::NonFinite { .. } => 4,
            Self::Memory { .. } => 5,
            Self::Interrupted { .. } => 75,
            Self::Io { .. }
            | Self::System { .. }
            | Self::Encode { .. }
            | Self::Shape { .. }
            | Self::NoDevice(_)
            | Self::Device(_)
            | Self::Defect(_) => 1,
        }
    }
}

/// Text that may quote a stranger's file, fit for a line on a terminal: control characters (line breaks, escape
/// sequences) are spelled out, and an endless value is cut.
pub fn one_line(text: impl Display) -> String {
    const LONGEST: usize = 600;
    let text = text.to_string();
    let mut line = String::new();
    for character in text.chars().take(LONGEST) {
        match character {
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and values come from files: they can neither break the line nor command the terminal.
    #[test]
    fn messages_that_quote_a_file_stay_one_short_line() {
        let input = Error::input("a\nb", "`x\r\n\u{1b}[2J\u{2028}` is wrong", "mend it").to_string();
        assert_eq!(input, "a\\nb: `x\\r\\n\\u{1b}[2J\\u{2028}` is wrong; mend it");
        let io = Error::io("read", "a\nb")(std::io::Error::other("no")).to_string();
        assert_eq!(io, "cannot read a\\nb: no");
        assert!(Error::input("a", "é".repeat(1_000_000), "mend it").to_string().chars().count() < 700);
    }
}
