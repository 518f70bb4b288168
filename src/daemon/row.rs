//! What is remembered of one torrent, and its form in the state file. Layer 6.
//!
//! A row is JSON behind a SHA-1 of it: whatever happens to the file, a row that is read is one that was written. Fields
//! that are missing take their defaults, so that a later version may have more of them.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use super::lived::Times;
use super::tuning::TorrentSettings;
use crate::base::{InfoHash, InfoHashV2};
use crate::session::{Rename, TorrentProgress, TorrentState};
use crate::wire::metainfo::Metainfo;

/// Length of the SHA-1 in front of a row.
const CHECKSUM_BYTES: usize = 20;
/// Of a comment, for lists.
const TEXT_CHARS_MAX: usize = 1_024;
/// In the link that leads to a torrent.
const WEB_SEEDS_MAX: usize = 16;

/// Where a torrent's metadata is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// In its .torrent file in the state folder.
    #[default]
    Torrent,
    /// Not here yet: this link leads to it.
    Magnet(String),
}

/// One torrent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TorrentRow {
    #[serde(with = "info_hash")]
    pub info_hash: InfoHash,
    /// What control protocols that number torrents call it; never used twice by one run of the daemon.
    pub number: u64,
    /// As in the torrent: escape it before it reaches a terminal or a page.
    pub name: String,
    /// Folder that the torrent's root lies in.
    #[serde(with = "path")]
    pub folder: PathBuf,
    pub origin: Origin,
    /// It is to run.
    pub is_wanted: bool,
    /// What is missing is fetched; false only serves what is there.
    pub fetches: bool,
    pub labels: Vec<String>,
    /// Indices of the files that are fetched; `None` is all.
    pub selected_files: Option<Vec<usize>>,
    pub is_sequential: bool,
    /// Uploaded ÷ max(downloaded, selected size) that ends the seeding; `None` is the daemon's own setting.
    pub seed_ratio: Option<f64>,
    /// What may change while it runs.
    pub settings: TorrentSettings,
    pub is_private: bool,
    /// Trackers by tier (BEP 12), as the torrent says: [`TorrentSettings::trackers`] may name others.
    pub tiers: Vec<Vec<String>>,
    pub files: u64,
    pub pieces: u32,
    pub pieces_have: u32,
    /// Bytes of the selected files.
    pub wanted_bytes: u64,
    pub have_bytes: u64,
    pub downloaded_bytes: u64,
    pub uploaded_bytes: u64,
    pub wasted_bytes: u64,
    pub added_unix_s: i64,
    /// When it was first seen to have everything.
    pub done_unix_s: Option<i64>,
    /// When payload last moved.
    pub active_unix_s: Option<i64>,
    /// The tracker that lists us, if it was not told that we left.
    pub announced: Option<LastAnnounce>,
    /// It is being removed, with its data if true: finished at the next start if this one cannot.
    pub leaving: Option<bool>,
    /// Its files are being moved: finished at the next start if this one cannot.
    pub moving: Option<Moving>,
    /// Names in the place of the torrent's own, in the order they were given.
    pub renames: Vec<Rename>,
    /// The next of them, on its way to the disk.
    pub renaming: Option<Rename>,
    /// What it has was taken over, from another program or from files of other torrents, and not hashed here since.
    pub is_unproven: bool,
    /// Before its first run its root is to be set apart from those of others, and its files looked for among theirs.
    pub crosses: bool,
    /// When all of it was last read in the background.
    pub scrubbed_unix_s: Option<i64>,
    /// Policies whose programs were run for it, or were about to be: each is run once.
    pub hooks_run: BTreeSet<String>,
    /// How long it has downloaded and seeded.
    pub times: Times,
    /// Addresses of peers that the link named which it was added by, for as long as something is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<SocketAddr>,
    /// What else its .torrent says of it; `None` of one that has none yet, and in states of earlier versions.
    pub facts: Option<Box<Facts>>,
}

/// What lists show of a .torrent beside what a row has anyway: texts and lists no longer than lists need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Of all files.
    pub total_bytes: u64,
    pub piece_length_bytes: u32,
    pub comment: String,
    pub creator: String,
    pub created_unix_s: Option<i64>,
    pub web_seeds: Vec<String>,
    /// Its info_hash of BitTorrent v2 in hexadecimal, if it has one.
    pub v2: Option<String>,
    /// It has no other.
    pub is_v2_alone: bool,
}

impl Facts {
    /// What that metadata says.
    pub fn of(metainfo: &Metainfo) -> Facts {
        let cut = |text: &Option<String>| {
            let text = text.as_deref().unwrap_or_default();
            text.chars().take(TEXT_CHARS_MAX).collect()
        };
        let web_seeds = metainfo.web_seeds.iter().take(WEB_SEEDS_MAX);
        Facts {
            total_bytes: metainfo.info.files.iter().map(|f| f.length_bytes).sum(),
            piece_length_bytes: metainfo.info.geometry.piece_length_bytes(),
            comment: cut(&metainfo.comment),
            creator: cut(&metainfo.created_by),
            created_unix_s: metainfo.creation_date,
            web_seeds: web_seeds.cloned().collect(),
            v2: metainfo.info_hashes.v2().map(|v2| v2.to_string()),
            is_v2_alone: metainfo.info_hashes.v1().is_none(),
        }
    }
}

/// A move of a torrent's files. Once `folder` of the row is `to`, only the old files are still to go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    #[serde(with = "path")]
    pub from: PathBuf,
    #[serde(with = "path")]
    pub to: PathBuf,
}

impl Default for TorrentRow {
    fn default() -> Self {
        TorrentRow {
            info_hash: InfoHash::new([0; 20]),
            number: 0,
            name: String::new(),
            folder: PathBuf::new(),
            origin: Origin::Torrent,
            is_wanted: true,
            fetches: true,
            labels: Vec::new(),
            selected_files: None,
            is_sequential: false,
            seed_ratio: None,
            settings: TorrentSettings::default(),
            is_private: false,
            tiers: Vec::new(),
            files: 0,
            pieces: 0,
            pieces_have: 0,
            wanted_bytes: 0,
            have_bytes: 0,
            downloaded_bytes: 0,
            uploaded_bytes: 0,
            wasted_bytes: 0,
            added_unix_s: 0,
            done_unix_s: None,
            active_unix_s: None,
            announced: None,
            leaving: None,
            moving: None,
            renames: Vec::new(),
            renaming: None,
            is_unproven: false,
            crosses: false,
            scrubbed_unix_s: None,
            hooks_run: BTreeSet::new(),
            times: Times::default(),
            peers: Vec::new(),
            facts: None,
        }
    }
}

/// The last announce of a torrent that others take for a peer since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastAnnounce {
    /// URL, as the torrent names it.
    pub tracker: String,
    /// The port that it was told.
    pub port: u16,
    /// When it is to be asked again.
    pub next_unix_s: i64,
}

/// The bytes are no row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("a row is damaged (checksum)")]
    BadChecksum,
    #[error("a row cannot be read: {0}")]
    BadValue(String),
}

/// Labels as a row has them: each once, where it stood first.
pub fn distinct(mut labels: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    labels.retain(|label| seen.insert(label.clone()));
    labels
}

impl TorrentRow {
    /// The v2 name that peers ask for a hybrid by, where it is not what the torrent is known by.
    pub fn second_info_hash(&self) -> Option<InfoHash> {
        let v2 = self.facts.as_ref()?.v2.as_ref()?;
        let v2: InfoHashV2 = v2.parse().ok()?;
        Some(v2.truncated()).filter(|name| *name != self.info_hash)
    }

    /// The row as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).unwrap_or_default();
        let mut bytes = Sha1::digest(&json).to_vec();
        bytes.extend(json);
        bytes
    }

    /// Reads what [`TorrentRow::encode`] wrote. Never panics, whatever the bytes.
    ///
    /// # Errors
    /// The bytes are no row, or one of another form.
    pub fn decode(bytes: &[u8]) -> Result<TorrentRow, RowError> {
        let split = bytes.split_at_checked(CHECKSUM_BYTES);
        let (checksum, json) = split.ok_or(RowError::BadChecksum)?;
        if Sha1::digest(json)[..] != *checksum {
            return Err(RowError::BadChecksum);
        }
        serde_json::from_slice(json).map_err(|error| RowError::BadValue(error.to_string()))
    }

    /// It has a .torrent, and nobody looked yet what that says.
    pub const fn lacks_facts(&self) -> bool {
        self.pieces > 0 && self.facts.is_none()
    }

    /// It had data: where none is found, its disk is missing.
    pub const fn expects_data(&self) -> bool {
        self.pieces_have > 0 || self.downloaded_bytes > 0 || self.done_unix_s.is_some()
    }

    /// The figures shown before its first run.
    pub fn figures(&self) -> TorrentProgress {
        TorrentProgress {
            have_bytes: self.have_bytes,
            total_bytes: self.wanted_bytes,
            total_downloaded_bytes: self.downloaded_bytes,
            total_uploaded_bytes: self.uploaded_bytes,
            pieces: self.pieces,
            pieces_have: self.pieces_have,
            ..TorrentProgress::nothing(self.info_hash, self.name.clone(), TorrentState::Paused)
        }
    }
}

mod info_hash {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::base::InfoHash;

    pub fn serialize<S: Serializer>(value: &InfoHash, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<InfoHash, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A path may have any bytes: text where it is some, else a list of numbers.
pub(super) mod path {
    use std::path::Path;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{OsStrExt, OsString, OsStringExt, PathBuf};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(value: &Path, to: S) -> Result<S::Ok, S::Error> {
        match value.to_str() {
            Some(text) => to.serialize_str(text),
            None => value.as_os_str().as_bytes().serialize(to),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(match Stored::deserialize(from)? {
            Stored::Text(text) => PathBuf::from(text),
            Stored::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> TorrentRow {
        TorrentRow {
            info_hash: InfoHash::new([7; 20]),
            number: 3,
            name: "a\u{1b}b".into(),
            folder: PathBuf::from(OsString::from_vec(b"/srv/\xff".to_vec())),
            labels: vec!["tv".into()],
            selected_files: Some(vec![0, 2]),
            seed_ratio: Some(1.5),
            announced: Some(LastAnnounce {
                tracker: "http://t/a".into(),
                port: 6881,
                next_unix_s: 1_700_000_000,
            }),
            settings: TorrentSettings {
                file_priorities: [(3, -1)].into(),
                trackers: Some(vec![vec!["udp://t:1".into()]]),
                ..TorrentSettings::default()
            },
            leaving: Some(true),
            moving: Some(Moving {
                from: PathBuf::from("/srv/old"),
                to: PathBuf::from(OsString::from_vec(b"/new/\xff".to_vec())),
            }),
            ..TorrentRow::default()
        }
    }

    #[test]
    fn the_peers_of_a_link_stay_with_the_torrent_it_led_to() {
        let torrent =
            b"d4:infod6:lengthi1e4:name1:a12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee";
        let metainfo = Metainfo::parse(torrent).unwrap();
        let link = format!(
            "magnet:?xt=urn:btih:{}&x.pe=192.0.2.1:7&x.pe=[2001:db8::1]:8&x.pe=host.example:9",
            metainfo.info_hash
        );
        let mut row = TorrentRow {
            origin: Origin::Magnet(link),
            ..row()
        };
        row.describe(&metainfo);
        let read = TorrentRow::decode(&row.encode()).unwrap();
        assert_eq!(read.origin, Origin::Torrent);
        let peers: Vec<String> = read.peers.iter().map(SocketAddr::to_string).collect();
        assert_eq!(peers, ["192.0.2.1:7", "[2001:db8::1]:8"]);
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let row = row();
        assert_eq!(TorrentRow::decode(&row.encode()), Ok(row));
    }

    #[test]
    fn a_row_without_settings_has_the_usual_ones() {
        let mut json = serde_json::to_value(row()).unwrap();
        json.as_object_mut().unwrap().remove("settings");
        let json = serde_json::to_vec(&json).unwrap();
        let bytes = [&Sha1::digest(&json)[..], &json].concat();
        let expected = TorrentRow {
            settings: TorrentSettings::default(),
            ..row()
        };
        assert_eq!(TorrentRow::decode(&bytes), Ok(expected));
    }

    #[test]
    fn a_row_with_any_byte_changed_or_missing_is_none() {
        let bytes = row().encode();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(TorrentRow::decode(&changed).is_err(), "{at}");
            assert!(TorrentRow::decode(&bytes[..at]).is_err(), "{at}");
        }
    }
}
