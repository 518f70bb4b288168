//! Layer 6: the seeding box. A session that takes commands, what is remembered of its torrents, and the handle by which
//! everything that controls it from outside does so.
#![forbid(unsafe_code)]

mod announced;
pub mod archive;
pub mod control;
mod cross;
mod date;
mod devices;
mod drives;
mod figures;
mod folder;
mod handle;
mod hooks;
pub mod import;
mod kept;
mod lived;
pub mod notify;
mod offline;
pub mod page;
mod policing;
mod policy;
mod queue;
mod queueing;
mod relocate;
mod rename;
mod row;
mod run;
mod schedule;
mod scrub;
mod store;
mod torrents;
mod tuning;
mod watch;
mod writer;

use handle::LABELS_MAX;
pub use handle::{AddSource, AddTorrent, Change, Control, ControlError, Listed};
pub use hooks::Hook;
pub use kept::LiveSettings;
pub use offline::Offline;
pub use policy::{Goal, POLICIES_MAX, Policy, Then};
pub use queue::{Places, QueueLimits};
pub use row::{LastAnnounce, Moving, Origin, TorrentRow};
pub use run::{Daemon, Service, Settings};
pub use schedule::{Moment, Schedule};
pub use scrub::Scrubbing;
pub use store::{State, Store, StoreError, Told, Write, is_guarded};
pub use tuning::TorrentSettings;
pub use watch::{WATCHED_MAX, WatchFolder};
