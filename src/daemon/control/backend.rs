//! What the protocols of control need of a daemon, as plain values: none of them knows a session, a file or a ring. Layer 6.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::base::{InfoHash, InfoHashV2, InfoHashes};
use crate::daemon::Policy;
use crate::daemon::lived::Elapsed;
use crate::session::lab::Health;
use crate::swarm::sources::SourceCounts;
use crate::wire::magnet::Magnet;

/// What a torrent is doing, in the words of Transmission's `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    #[default]
    Stopped,
    CheckWaiting,
    Checking,
    DownloadWaiting,
    Downloading,
    SeedWaiting,
    Seeding,
}

impl Status {
    /// The number on the wire, from 0.
    pub const fn code(self) -> u64 {
        match self {
            Status::Stopped => 0,
            Status::CheckWaiting => 1,
            Status::Checking => 2,
            Status::DownloadWaiting => 3,
            Status::Downloading => 4,
            Status::SeedWaiting => 5,
            Status::Seeding => 6,
        }
    }

    /// One word, for tables and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::Stopped => "stopped",
            Status::CheckWaiting => "check-waiting",
            Status::Checking => "checking",
            Status::DownloadWaiting => "download-waiting",
            Status::Downloading => "downloading",
            Status::SeedWaiting => "seed-waiting",
            Status::Seeding => "seeding",
        }
    }
}

/// What is wrong with a torrent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Problem {
    #[default]
    None,
    /// It goes on.
    Tracker(String),
    /// Disk, data, settings.
    Local(String),
}

impl Problem {
    /// The number on the wire, and the words.
    pub fn parts(&self) -> (u64, &str) {
        match self {
            Problem::None => (0, ""),
            Problem::Tracker(words) => (2, words),
            Problem::Local(words) => (3, words),
        }
    }
}

/// When seeding ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum SeedLimit {
    /// As the session says.
    #[default]
    Session,
    Own(f64),
    Never,
}

impl SeedLimit {
    /// The number on the wire.
    pub const fn mode(self) -> u64 {
        match self {
            SeedLimit::Session => 0,
            SeedLimit::Own(_) => 1,
            SeedLimit::Never => 2,
        }
    }

    /// The limit, 0 where there is no own one.
    pub const fn value(self) -> f64 {
        match self {
            SeedLimit::Own(value) => value,
            _ => 0.0,
        }
    }
}

/// One torrent in the list: all that can be told of it without asking the session.
#[derive(Clone, Debug, PartialEq)]
pub struct Torrent {
    /// Small, and its own as long as the daemon's state lives.
    pub id: u64,
    pub info_hash: InfoHash,
    /// As in the torrent: not escaped.
    pub name: String,
    pub folder: String,
    pub status: Status,
    pub problem: Problem,
    pub labels: Vec<String>,
    pub is_private: bool,
    /// It stopped because it had seeded enough.
    pub is_finished: bool,
    pub is_stalled: bool,
    /// What it has was never hashed here.
    pub is_unproven: bool,
    /// Of the files that are wanted, and of all.
    pub wanted_bytes: u64,
    pub total_bytes: u64,
    /// Of what is wanted.
    pub have_bytes: u64,
    /// 0 to 1.
    pub checked_share: f64,
    pub metadata_share: f64,
    /// Of its files on their way to another folder; `None` when they stay.
    pub moved_share: Option<f64>,
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    pub downloaded_bytes: u64,
    pub uploaded_bytes: u64,
    pub wasted_bytes: u64,
    pub peers: u32,
    /// At least so many take blocks from us, and give blocks to us.
    pub peers_taking: u32,
    pub peers_giving: u32,
    pub peers_by_source: SourceCounts,
    pub web_seeds: u32,
    pub added_unix_s: i64,
    pub done_unix_s: Option<i64>,
    pub active_unix_s: Option<i64>,
    pub downloading: Elapsed,
    pub seeding: Elapsed,
    pub queue_position: u64,
    pub files: u64,
    pub pieces: u32,
    pub piece_length_bytes: u32,
    pub seed_ratio: SeedLimit,
    /// Minutes without an upload.
    pub seed_idle: SeedLimit,
    pub limits: TorrentLimits,
    pub is_sequential: bool,
    /// It is to, by its own settings, or does, by those of policies (BEP 16).
    pub is_super_seeding: bool,
    pub group: String,
    /// Trackers by tier, from 0.
    pub trackers: Arc<[(usize, String)]>,
    /// Host of the first tracker, empty without one.
    pub tracker_host: String,
    pub comment: String,
    pub creator: String,
    pub created_unix_s: Option<i64>,
    pub web_seed_urls: Vec<String>,
    /// Its info_hash of BitTorrent v2 in hexadecimal, if it has one.
    pub v2: Option<String>,
    /// It has no other: [`Torrent::info_hash`] is the beginning of it.
    pub is_v2_alone: bool,
    /// That it was added by, and that has led to nothing yet.
    pub link: Option<String>,
}

impl Torrent {
    /// All names of it.
    pub fn info_hashes(&self) -> InfoHashes {
        let v2 = self.v2.as_ref().and_then(|v2| v2.parse().ok());
        match v2 {
            Some(v2) if self.is_v2_alone => InfoHashes::V2(v2),
            // A hybrid that was added by its v2 name alone goes by the beginning of that; its other one is not known here.
            Some(v2) if InfoHashV2::truncated(&v2) == self.info_hash => InfoHashes::V2(v2),
            Some(v2) => InfoHashes::Both(self.info_hash, v2),
            None => InfoHashes::V1(self.info_hash),
        }
    }

    /// Seconds it has downloaded by now.
    pub fn downloading_s(&self) -> u64 {
        self.downloading.seconds(Instant::now())
    }

    /// Seconds it has seeded by now.
    pub fn seeding_s(&self) -> u64 {
        self.seeding.seconds(Instant::now())
    }

    /// A link that leads to it.
    pub fn magnet(&self) -> String {
        if let Some(link) = &self.link {
            return link.clone();
        }
        let link = Magnet {
            name: Some(self.name.clone()),
            trackers: self.trackers.iter().map(|(_, url)| url.clone()).collect(),
            web_seeds: self.web_seed_urls.clone(),
            ..Magnet::to(self.info_hashes())
        };
        link.to_string()
    }

    /// One with nothing but its number and names.
    pub fn nothing(id: u64, info_hash: InfoHash, name: &str) -> Torrent {
        Torrent {
            id,
            info_hash,
            name: name.to_owned(),
            folder: String::new(),
            status: Status::Stopped,
            problem: Problem::None,
            labels: Vec::new(),
            is_private: false,
            is_finished: false,
            is_stalled: false,
            is_unproven: false,
            wanted_bytes: 0,
            total_bytes: 0,
            have_bytes: 0,
            checked_share: 0.0,
            metadata_share: 1.0,
            moved_share: None,
            down_bytes_per_s: 0,
            up_bytes_per_s: 0,
            downloaded_bytes: 0,
            uploaded_bytes: 0,
            wasted_bytes: 0,
            peers: 0,
            peers_taking: 0,
            peers_giving: 0,
            peers_by_source: SourceCounts::new(),
            web_seeds: 0,
            added_unix_s: 0,
            done_unix_s: None,
            active_unix_s: None,
            downloading: Elapsed::default(),
            seeding: Elapsed::default(),
            queue_position: 0,
            files: 0,
            pieces: 0,
            piece_length_bytes: 0,
            seed_ratio: SeedLimit::Session,
            seed_idle: SeedLimit::Session,
            limits: TorrentLimits::default(),
            is_sequential: false,
            is_super_seeding: false,
            group: String::new(),
            trackers: Arc::new([]),
            tracker_host: String::new(),
            comment: String::new(),
            creator: String::new(),
            created_unix_s: None,
            web_seed_urls: Vec::new(),
            v2: None,
            is_v2_alone: false,
            link: None,
        }
    }

    /// Bytes that are wanted and not here.
    pub const fn left_bytes(&self) -> u64 {
        self.wanted_bytes.saturating_sub(self.have_bytes)
    }

    /// 0 to 1 of what is wanted; 1 only when all is here.
    pub fn done_share(&self) -> f64 {
        match self.wanted_bytes {
            0 => 0.0,
            _ if self.left_bytes() == 0 => 1.0,
            // Four places are shown: the last byte must not round up to all.
            wanted => (self.have_bytes as f64 / wanted as f64).min(0.9999),
        }
    }

    /// Uploaded ÷ downloaded, or ÷ what is here where nothing was downloaded; -1 where that is nothing too.
    pub fn ratio(&self) -> f64 {
        match self.downloaded_bytes.max(match self.downloaded_bytes {
            0 => self.have_bytes,
            _ => 0,
        }) {
            0 => -1.0,
            base => self.uploaded_bytes as f64 / base as f64,
        }
    }

    /// Seconds until all is here: -1 when that is never or long ago, -2 when nobody knows.
    pub fn eta_s(&self) -> i64 {
        match (self.left_bytes(), self.down_bytes_per_s) {
            (0, _) => -1,
            _ if self.status == Status::Stopped => -1,
            (_, 0) => -2,
            (left, rate) => i64::try_from(left / rate).unwrap_or(i64::MAX),
        }
    }
}

/// Limits of one torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorrentLimits {
    /// Bytes a second.
    pub down: Limit,
    pub up: Limit,
    /// The session's limits count for it too.
    pub honors_session: bool,
    pub peers_max: u32,
    /// -1, 0 or 1.
    pub priority: i8,
}

impl Default for TorrentLimits {
    fn default() -> Self {
        TorrentLimits {
            down: Limit::default(),
            up: Limit::default(),
            honors_session: true,
            peers_max: 50,
            priority: 0,
        }
    }
}

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
    /// One of [`SourceCounts::WORDS`].
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_names_what_a_torrent_goes_by() {
        let v2 = InfoHashV2::new([7; 32]);
        let named = |info_hash: InfoHash, v2: Option<InfoHashV2>, is_v2_alone| {
            let torrent = Torrent {
                v2: v2.map(|v2| v2.to_string()),
                is_v2_alone,
                ..Torrent::nothing(1, info_hash, "t")
            };
            let link: Magnet = torrent.magnet().parse().unwrap();
            link.info_hashes
        };
        let v1 = InfoHash::new([1; 20]);
        assert_eq!(named(v1, None, false), InfoHashes::V1(v1));
        assert_eq!(named(v1, Some(v2), false), InfoHashes::Both(v1, v2));
        assert_eq!(named(v2.truncated(), Some(v2), true), InfoHashes::V2(v2));
    }
}
