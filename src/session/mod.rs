//! Layer 5: where the core meets I/O. One session is one ring thread with any number of torrents.
#![forbid(unsafe_code)]

pub mod announce;
pub mod announce_task;
pub mod check;
pub mod checkpoint;
pub mod clock;
pub mod command;
pub mod config;
mod connect;
pub mod contain;
pub mod cross;
pub mod deadline;
pub mod dht;
pub mod disk;
pub mod door;
pub mod driver;
pub mod error;
mod fleet;
pub mod handles;
pub mod hash_ahead;
pub mod http;
pub mod ip_filter;
pub mod lab;
pub mod load;
mod lost;
pub mod lsd;
pub mod metadata;
pub mod pace;
mod peer;
mod peer_stream;
pub mod port_map;
pub mod reach;
pub mod relocate;
mod removal;
pub mod rename;
pub mod resume_store;
pub mod root_lock;
mod run;
pub mod scrape;
pub mod scrub;
mod seed_trackers;
mod shake;
pub mod shared;
mod sleepers;
mod slots;
pub mod socks;
mod torrent;
pub mod tracker;
mod trouble;
pub mod tune;
pub mod udp_port;
pub mod udp_tracker;
mod upnp;
mod utp;
pub mod way;
pub mod web_seed;

pub use command::{Command, CommandError, SessionHandle, TorrentSource};
pub use config::{
    BindTo, CheckMode, DataPlace, DhtSettings, Encryption, Job, MagnetConfig, OnMetadata, Outcome,
    PortChoice, Preallocate, ProxySettings, Rename, SeedAfter, SendEngine, SessionConfig,
    SessionEvent, Stopper, TorrentConfig, TorrentProgress, TorrentState, WriteEngine,
};
pub use error::SessionError;
pub use load::find_data;
pub use port_map::PortMapSettings;
pub use run::{SessionSummary, run, serve};
