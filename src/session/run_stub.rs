//! Stands where `session::run` comes: says that there is no session. Layer 5.

use std::fmt;

use super::{Outcome, SessionConfig, SessionEvent, Stopper, TorrentConfig};
use crate::base::InfoHash;

/// What happened to what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionError {
    message: String,
    hint: String,
}

impl SessionError {
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

/// How all torrents ended.
#[derive(Clone, Debug, Default)]
pub struct SessionSummary {
    pub outcomes: Vec<(InfoHash, Outcome)>,
}

/// Runs a session.
///
/// # Errors
/// Always.
pub async fn run(
    _config: SessionConfig,
    _torrents: Vec<TorrentConfig>,
    _stopper: Stopper,
    _events: impl FnMut(SessionEvent) + 'static,
) -> Result<SessionSummary, SessionError> {
    Err(SessionError {
        message: "no session in this build".into(),
        hint: "wait for it".into(),
    })
}
