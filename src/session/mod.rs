//! Layer 5: where the core meets I/O. One session is one ring thread with any number of torrents.
#![forbid(unsafe_code)]

pub mod check;
pub mod config;
pub mod disk;
pub mod resume_store;
pub mod root_lock;

pub use config::{
    BindTo, CheckMode, Outcome, PortChoice, Preallocate, SeedAfter, SendEngine, SessionConfig,
    SessionEvent, Stopper, TorrentConfig, TorrentProgress, TorrentState, WriteEngine,
};
