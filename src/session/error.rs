//! What ends a session or a torrent, in words for the user. Layer 5.

use std::fmt;

/// What happened to what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionError {
    message: String,
    hint: String,
}

impl SessionError {
    /// `message` says what happened to what, `hint` what to do.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        SessionError {
            message: message.into(),
            hint: hint.into(),
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
