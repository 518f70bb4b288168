//! What ends a session or a torrent, in words for the user. Layer 5.

use std::fmt;

use super::config::Outcome;

/// What happened to what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionError {
    message: String,
    hint: String,
    is_no_data: bool,
}

impl SessionError {
    /// `message` says what happened to what, `hint` what to do.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        SessionError {
            message: message.into(),
            hint: hint.into(),
            is_no_data: false,
        }
    }

    /// There is no data to seed: incomplete, rather than failed.
    pub fn no_data(message: impl Into<String>, hint: impl Into<String>) -> Self {
        SessionError {
            is_no_data: true,
            ..SessionError::new(message, hint)
        }
    }

    /// How the torrent ends with it.
    pub const fn outcome(&self) -> Outcome {
        match self.is_no_data {
            true => Outcome::Incomplete,
            false => Outcome::Failed,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SessionError {}
