//! Layer 5: where the core meets I/O. One session is one ring thread with any number of torrents.
#![forbid(unsafe_code)]

pub mod config;
pub mod run_stub;

pub use config::{
    BindTo, CheckMode, Outcome, PortChoice, Preallocate, SeedAfter, SendEngine, SessionConfig,
    SessionEvent, Stopper, TorrentConfig, TorrentProgress, TorrentState, WriteEngine,
};
pub use run_stub::{SessionError, SessionSummary, run};
