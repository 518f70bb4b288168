//! Layer 5: where the core meets I/O. One session is one ring thread with any number of torrents.
#![forbid(unsafe_code)]

pub mod announce_task;
pub mod config;
pub mod deadline;
pub mod http;
pub mod run_stub;
pub mod udp_tracker;

pub use config::{
    BindTo, CheckMode, Outcome, PortChoice, Preallocate, SeedAfter, SendEngine, SessionConfig,
    SessionEvent, Stopper, TorrentConfig, TorrentProgress, TorrentState, WriteEngine,
};
pub use run_stub::{SessionError, SessionSummary, run};
