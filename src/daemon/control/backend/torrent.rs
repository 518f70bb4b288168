//! A torrent as the list shows it. Layer 6.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Limit;
use crate::base::{InfoHash, InfoHashV2, InfoHashes};
use crate::daemon::lived::Elapsed;
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
