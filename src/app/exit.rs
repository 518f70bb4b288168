//! How the command ends: exit codes, and errors as users read them. Layer 7.

use std::fmt;
use std::process::ExitCode;

use super::escape::elide;
use crate::base::in_sentence;
pub use crate::base::io_cause;

/// Exit codes of every verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All was done (0).
    Done,
    /// Something failed (1).
    Failed,
    /// The command line makes no sense (2).
    Usage,
    /// Data is incomplete or could not be verified (3).
    Incomplete,
    /// Stopped by SIGINT after a clean shutdown (130).
    Interrupted,
    /// Stopped by SIGTERM after a clean shutdown (143).
    Terminated,
}

impl Exit {
    /// The number the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Incomplete => 3,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// A failure as the user reads it: what happened to what, and what to do about it.
///
/// Both texts are escaped when they are built from names that come from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    message: String,
    hint: String,
    exit: Exit,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(message: impl fmt::Display, hint: impl fmt::Display) -> Self {
        Failure {
            message: super::escape::terminal(&in_sentence(&message.to_string())),
            hint: super::escape::terminal(&hint.to_string()),
            exit: Exit::Failed,
        }
    }

    /// A failure of the command line itself, exit code 2.
    pub fn usage(message: impl fmt::Display, hint: impl fmt::Display) -> Self {
        Failure {
            exit: Exit::Usage,
            ..Failure::new(message, hint)
        }
    }

    /// The same failure with another exit code.
    pub fn with_exit(self, exit: Exit) -> Self {
        Failure { exit, ..self }
    }

    /// What happened to what.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// The exit code it leads to.
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// Writes the `error:` and `hint:` lines to stderr.
    pub fn report(&self) {
        complain("error", &self.message, &self.hint);
    }
}

/// Characters of a message or hint that are shown: a name in it may have any length.
const LINE_CHARS_MAX: usize = 400;

/// Writes a line that says what is wrong and, if there is something to say, one with what to do, to stderr.
pub fn complain(kind: &str, message: &str, hint: &str) {
    let message = elide(message, LINE_CHARS_MAX);
    super::output::stderr_line(&format!("{kind}: {message}"));
    if !hint.is_empty() {
        let hint = elide(hint, LINE_CHARS_MAX);
        super::output::stderr_line(&format!("hint: {hint}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_texts_are_escaped_when_built() {
        let failure = Failure::new("no \u{1b}[2Jfile", "look\nhere");
        assert_eq!(failure.message(), "no \\u{1b}[2Jfile");
        assert_eq!(failure.hint(), "look\\nhere");
        assert_eq!(failure.exit().code(), 1);
    }

    #[test]
    fn the_systems_words_are_lower_case_and_in_sentence() {
        let error = std::io::Error::from_raw_os_error(2);
        let failure = Failure::new(format!("a: {error}!"), "");
        assert_eq!(failure.message(), "a: no such file or directory!");
    }
}
