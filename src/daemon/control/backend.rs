//! What the protocols of control need of a daemon, as plain values: none of them knows a session, a file or a ring. Layer 6.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base::InfoHash;
use crate::daemon::Policy;
use crate::session::lab::Health;

pub use torrent::{Problem, SeedLimit, Status, Torrent, TorrentLimits};

mod torrent;

/// A rate, and whether it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub bytes_per_s: u64,
    pub is_on: bool,
}

/// A number, and whether it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub value: u64,
    pub is_on: bool,
}

impl Count {
    /// The number, if it counts.
    pub fn get(self) -> Option<u64> {
        self.is_on.then_some(self.value)
    }
}

/// Limits of the session in place of the usual ones, as long as they are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AltLimits {
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    pub is_on: bool,
}

/// What is known of a torrent when it is asked for alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub files: Vec<File>,
    pub peers: Vec<Peer>,
    pub trackers: Vec<Tracker>,
    /// A bit a piece, the first one highest; empty when nothing is known.
    pub have: Vec<u8>,
    pub web_seeds: Vec<String>,
    /// Names of the policies that are for it, in the order in which they count.
    pub policies: Vec<String>,
}

/// One file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// From the torrent's root, which is its first part.
    pub name: String,
    pub length_bytes: u64,
    pub have_bytes: u64,
    pub is_wanted: bool,
    /// -1, 0 or 1.
    pub priority: i8,
    /// Pieces that it touches: the first, and the one behind the last.
    pub pieces: (u32, u32),
}

/// One connected peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    pub addr: SocketAddr,
    pub client: String,
    /// One of [`SourceCounts::WORDS`](crate::swarm::sources::SourceCounts::WORDS).
    pub source: &'static str,
    pub is_incoming: bool,
    pub is_utp: bool,
    pub is_encrypted: bool,
    pub is_seed: bool,
    pub am_choking: bool,
    pub am_interested: bool,
    pub peer_choking: bool,
    pub peer_interested: bool,
    pub pieces_have: u32,
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    pub downloaded_bytes: u64,
    pub uploaded_bytes: u64,
}

/// How it goes with one tracker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracker {
    pub url: String,
    pub tier: usize,
    pub is_announcing: bool,
    /// Of the last announce; `None` before it.
    pub is_working: Option<bool>,
    pub seeders: Option<u32>,
    pub leechers: Option<u32>,
    pub message: String,
    /// Peers that its last answer named.
    pub peers: u32,
    /// When it last answered or failed to, and when it is asked next.
    pub asked_unix_s: Option<i64>,
    pub next_unix_s: Option<i64>,
}

/// The whole session.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Session {
    pub downloads: String,
    /// The folder for downloads that the settings file names: data may go there too.
    pub first_downloads: String,
    pub state: String,
    pub peer_port: u16,
    pub peers: u32,
    pub peers_max: u32,
    pub up_bytes_per_s: u64,
    pub down_bytes_per_s: u64,
    /// Payload of this run, and of all torrents that are there over their lives.
    pub uploaded_bytes: u64,
    pub downloaded_bytes: u64,
    pub uptime_s: u64,
    pub limit_down: Limit,
    pub limit_up: Limit,
    pub seed_ratio: Option<f64>,
    pub seed_idle_minutes: Option<u64>,
    pub alt: AltLimits,
    /// Torrents that download, and that seed, at a time.
    pub download_queue: Count,
    pub seed_queue: Count,
    /// Minutes without payload until a torrent takes no place in the queue.
    pub queue_stalled: Count,
    pub starts_added: bool,
    pub has_dht: bool,
    pub has_pex: bool,
    pub has_lsd: bool,
    /// Whether peers are connected to over TCP, and over uTP.
    pub has_tcp: bool,
    pub has_utp: bool,
    /// `required`, `preferred` or `tolerated`.
    pub encryption: &'static str,
    pub panics: u64,
}

/// Settings of the session that change while it runs; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionChange {
    pub downloads: Option<PathBuf>,
    pub limit_down: Option<Limit>,
    pub limit_up: Option<Limit>,
    pub seed_ratio: Option<Option<f64>>,
    pub starts_added: Option<bool>,
    pub seed_idle_minutes: Option<Option<u64>>,
    pub alt: Option<AltLimits>,
    pub download_queue: Option<Count>,
    pub seed_queue: Option<Count>,
    pub queue_stalled: Option<Count>,
}

/// A torrent to take in.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTorrent {
    pub source: NewSource,
    pub folder: Option<PathBuf>,
    pub is_paused: bool,
    pub labels: Vec<String>,
    /// As for [`Change::files`].
    pub files: Vec<(FileChange, Vec<usize>)>,
    pub priority: Option<i8>,
    pub peers_max: Option<u32>,
    pub is_sequential: bool,
}

/// Where a torrent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewSource {
    Torrent(Vec<u8>),
    Magnet(String),
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    pub info_hash: InfoHash,
    /// As in the list.
    pub id: u64,
    pub name: String,
    /// It was there already; trackers that it did not have were taken over.
    pub is_duplicate: bool,
}

/// What a torrent is to do, with no more to say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start,
    /// Before those that wait in the queue.
    StartNow,
    Stop,
    Verify,
    Reannounce,
}

/// Where in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueMove {
    Top,
    Up,
    Down,
    Bottom,
}

/// What becomes of some files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileChange {
    Wanted(bool),
    /// -1, 0 or 1.
    Priority(i8),
}

/// A change of one torrent; `None` leaves a thing as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    pub labels: Option<Vec<String>>,
    /// Files by index; no index at all means every file.
    pub files: Vec<(FileChange, Vec<usize>)>,
    pub seed_ratio: Option<SeedLimit>,
    pub seed_idle: Option<SeedLimit>,
    pub down: Option<Limit>,
    pub up: Option<Limit>,
    pub honors_session: Option<bool>,
    pub peers_max: Option<u32>,
    pub priority: Option<i8>,
    pub is_sequential: Option<bool>,
    pub super_seeds: Option<bool>,
    pub group: Option<String>,
    pub queue_position: Option<u64>,
    /// All trackers anew, by tier.
    pub trackers: Option<Vec<Vec<String>>>,
}

/// A group of torrents that share limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub honors_session: bool,
    pub down: Limit,
    pub up: Limit,
}

/// A policy, and what its torrents do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyFigures {
    pub policy: Policy,
    /// It is one of the times in which its limits count.
    pub is_on: bool,
    pub torrents: u64,
    /// Of those, the ones that wait in the queue, for this policy's places or for others.
    pub waiting: u64,
    /// The ones that have reached its goal.
    pub reached: u64,
    pub up_bytes_per_s: u64,
    pub down_bytes_per_s: u64,
    /// Payload of those that are there over their lives.
    pub uploaded_bytes: u64,
    pub downloaded_bytes: u64,
}

impl PolicyFigures {
    /// One whose torrents are not counted yet.
    pub fn of(policy: Policy, is_on: bool) -> PolicyFigures {
        PolicyFigures {
            policy,
            is_on,
            ..PolicyFigures::default()
        }
    }
}

/// Why something was not done, in words for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This daemon has no such thing.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("{0}")]
    BadValue(String),
    /// The bytes are no torrent, the link no magnet link.
    #[error("{0}")]
    BadTorrent(String),
    #[error("{0}")]
    BadPath(String),
    #[error("there is no torrent {0}")]
    Unknown(InfoHash),
    /// Disk, state file, an ending daemon.
    #[error("{0}")]
    Failed(String),
}

/// What became of the list of torrents.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Those that came or are not what they were.
    pub changed: Vec<Arc<Torrent>>,
    /// Ids of those that are not there any more.
    pub gone: Vec<u64>,
}

/// A daemon as the protocols see it. What changes something returns when it is committed. All on one thread.
// No bound on the futures: they run where they were made.
#[allow(async_fn_in_trait)]
pub trait Backend: 'static {
    /// Completes once the torrents are known, a moment after the start. Whatever is about them waits for it.
    async fn known(&self) {}
    /// Every torrent as it is, by id.
    fn torrents(&self) -> Vec<Arc<Torrent>>;
    /// What is other than at the last call of this or of [`Backend::torrents`]; `None` when only a look at all of them tells.
    fn changes(&self) -> Option<Changes> {
        None
    }
    /// The session as it is.
    fn session(&self) -> Session;
    /// Delays of the session, and what it uses.
    fn health(&self) -> Arc<Health> {
        Arc::default()
    }
    /// Bytes read again in the background since the daemon began, and the pieces that had rotted.
    fn scrubbed(&self) -> (u64, u64) {
        (0, 0)
    }
    /// More of one torrent.
    async fn details(&self, info_hash: InfoHash) -> Result<Details, Refusal>;
    /// Its .torrent file.
    async fn torrent_file(&self, info_hash: InfoHash) -> Result<Vec<u8>, Refusal>;
    /// Takes a torrent in, or tells which one it is already.
    async fn add(&self, torrent: NewTorrent) -> Result<Added, Refusal>;
    /// Has a torrent do something.
    async fn act(&self, info_hash: InfoHash, action: Action) -> Result<(), Refusal>;
    /// Forgets it, with its files if so asked.
    async fn remove(&self, info_hash: InfoHash, with_data: bool) -> Result<(), Refusal>;
    /// Changes what it is to do.
    async fn change(&self, info_hash: InfoHash, change: Change) -> Result<(), Refusal>;
    /// Another folder: its files are moved there, or said to be there.
    async fn relocate(
        &self,
        info_hash: InfoHash,
        folder: &Path,
        moves: bool,
    ) -> Result<(), Refusal>;
    /// Another name for one of its files or folders.
    async fn rename(&self, info_hash: InfoHash, path: &str, name: &str) -> Result<(), Refusal>;
    /// Moves torrents within the queue.
    async fn move_in_queue(&self, torrents: &[InfoHash], to: QueueMove) -> Result<(), Refusal>;
    /// Changes the session.
    async fn change_session(&self, change: SessionChange) -> Result<(), Refusal>;
    /// Free bytes and size of the file system that a folder is on.
    async fn free_space(&self, folder: &Path) -> Result<(u64, u64), Refusal>;
    /// Whether peers reach the port.
    async fn test_port(&self) -> Result<bool, Refusal>;
    /// Bandwidth groups.
    fn groups(&self) -> Vec<Group>;
    /// Every policy, in the order in which they count.
    fn policies(&self) -> Vec<PolicyFigures> {
        Vec::new()
    }
    /// Makes or changes a group.
    async fn set_group(&self, group: Group) -> Result<(), Refusal>;
    /// Ends the daemon.
    fn shut_down(&self);
}
