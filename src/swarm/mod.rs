//! Layer 2: every decision of the protocol, as plain calls on plain values. No payload bytes, no clock, no sockets.
//!
//! The runtime calls `Torrent::on_*`/`next_*` with a [`Cx`]; what the core wants done lies in `cx.fx` afterwards.
#![forbid(unsafe_code)]

pub mod allowed_fast;
pub mod announce;
pub mod bandwidth;
pub mod bans;
pub mod candidates;
pub mod choker;
pub mod claims;
pub mod dht;
pub mod effects;
pub mod holepunch;
pub mod metadata;
pub mod peer;
pub mod pex;
pub mod picker;
pub mod pieces;
pub mod pipeline;
pub mod poison;
pub mod priority;
pub mod registry;
pub mod sift;
pub mod slots;
pub mod sources;
pub mod super_seed;
pub mod torrent;
pub mod uploads;
pub mod utp;

pub use candidates::Source;
pub use choker::{SeedChoker, UploadSlots};
pub use effects::{CloseReason, Credits, Cx, Effect, PeerKey, UploadRun, WebSeedId};
pub use peer::PeerFault;
pub use sources::SourceCounts;
pub use torrent::{Connected, PeerStats, Placement, Refusal, Torrent, TorrentConfig, TorrentStats};
