//! Torrents of other programs, taken over into the state of a daemon that does not run. Layer 6. Blocks.
//!
//! Nothing is hashed: what the other program had counts as had where the files are there with the lengths that it takes,
//! and, where the program kept their times, unchanged since. Such torrents are marked as unproven until all of them was
//! hashed once. What cannot be taken over is named, with the reason. The other program's files are only read.

mod adopt;
mod find;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::offline::Offline;
use super::row::TorrentRow;
use crate::base::InfoHash;
use crate::session::SessionError;
use crate::storage::resume::Record;
use find::{Files, Found};

/// Replacements of folders; each torrent is tried with each.
pub const MAPS_MAX: usize = 64;

/// Whose torrents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Qbittorrent,
    Transmission,
    Rtorrent,
}

impl Program {
    /// As the program calls itself.
    pub const fn name(self) -> &'static str {
        match self {
            Program::Qbittorrent => "qBittorrent",
            Program::Transmission => "Transmission",
            Program::Rtorrent => "rtorrent",
        }
    }

    /// The folder to name.
    pub const fn folder(self) -> &'static str {
        match self {
            Program::Qbittorrent => "its folder BT_backup",
            Program::Transmission => "its folder with torrents and resume in it",
            Program::Rtorrent => "its session folder",
        }
    }
}

/// A folder that lies elsewhere here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    pub from: PathBuf,
    pub to: PathBuf,
}

/// What became of one torrent.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its file's name there.
    pub file: String,
    pub name: String,
    pub info_hash: Option<InfoHash>,
    pub outcome: Outcome,
    /// What stays behind or is different, in words for the user.
    pub notes: Vec<String>,
}

/// See [`Line`].
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Taken {
        pieces_have: u32,
        pieces: u32,
        /// Pieces to be hashed when it begins, because nobody was sure of them.
        to_hash: u32,
        runs: bool,
    },
    /// It is in the state already.
    Present,
    /// Not taken over, and why.
    Left(String),
}

/// One torrent, ready to be written.
struct Adopted {
    row: TorrentRow,
    /// The bytes of its .torrent, unless it is a link.
    torrent: Option<Vec<u8>>,
    record: Option<Record>,
    to_hash: u32,
    notes: Vec<String>,
}

/// Takes over what lies in `folder`, and tells of each torrent. Without a state nothing is written.
///
/// # Errors
/// The folder cannot be read or holds no such torrents, or the state cannot be written.
pub fn run(
    program: Program,
    folder: &Path,
    maps: &[Map],
    mut state: Option<&mut Offline>,
    is_dry: bool,
    mut tell: impl FnMut(&Line),
) -> Result<(), SessionError> {
    let files = Files::open(program, folder)?;
    let mut taken = Vec::new();
    for stem in files.stems() {
        let mut line = Line {
            file: stem.clone(),
            name: stem.clone(),
            info_hash: None,
            outcome: Outcome::Present,
            notes: Vec::new(),
        };
        let adopted = files
            .read(stem)
            .and_then(|found| adopt(program, &found, maps));
        let adopted = match adopted {
            Ok(adopted) => adopted,
            Err(why) => {
                line.outcome = Outcome::Left(why);
                tell(&line);
                continue;
            }
        };
        let info_hash = adopted.row.info_hash;
        (line.name, line.info_hash) = (adopted.row.name.clone(), Some(info_hash));
        let known = state
            .as_ref()
            .and_then(|state| state.rows().get(&info_hash));
        if known.is_some() || taken.contains(&info_hash) {
            tell(&line);
            continue;
        }
        line.outcome = Outcome::Taken {
            pieces_have: adopted.row.pieces_have,
            pieces: adopted.row.pieces,
            to_hash: adopted.to_hash,
            runs: adopted.row.is_wanted,
        };
        line.notes = adopted.notes;
        taken.push(info_hash);
        if let Some(state) = state.as_mut().filter(|_| !is_dry) {
            let records: Vec<Record> = adopted.record.into_iter().collect();
            state.put(adopted.row, adopted.torrent.as_deref(), &records)?;
        }
        tell(&line);
    }
    match state.filter(|_| !is_dry) {
        Some(state) => {
            share_roots(state, &taken)?;
            state.flush()
        }
        None => Ok(()),
    }
}

/// Torrents that have one root in common are seeds only: a download has its root for itself.
fn share_roots(state: &mut Offline, taken: &[InfoHash]) -> Result<(), SessionError> {
    let mut users: BTreeMap<PathBuf, u32> = BTreeMap::new();
    let root = |row: &TorrentRow| row.folder.join(&row.name);
    for row in state.rows().values() {
        *users.entry(root(row)).or_default() += 1;
    }
    let is_shared = |row: &&TorrentRow| {
        let is_whole = row.pieces > 0 && row.have_bytes >= row.wanted_bytes;
        is_whole && users.get(&root(row)).is_some_and(|count| *count > 1)
    };
    let rows = taken
        .iter()
        .filter_map(|info_hash| state.rows().get(info_hash));
    let shared: Vec<TorrentRow> = rows.filter(is_shared).cloned().collect();
    for row in shared {
        state.change(TorrentRow {
            fetches: false,
            ..row
        })?;
    }
    Ok(())
}

fn adopt(program: Program, found: &Found, maps: &[Map]) -> Result<Adopted, String> {
    let whole = find::parse(program, found)?;
    match whole.metainfo {
        Some(metainfo) => adopt::torrent(metainfo, &whole.torrent, whole.foreign, maps),
        None => adopt::link(whole.link, whole.foreign, maps),
    }
}

/// Where a folder of the other program lies here: the longest of the replaced folders that it is below counts.
///
/// # Errors
/// It leads nowhere that is certain.
pub(super) fn mapped(folder: &Path, maps: &[Map]) -> Result<PathBuf, String> {
    let fitting = maps.iter().filter(|map| folder.starts_with(&map.from));
    let best = fitting.max_by_key(|map| map.from.components().count());
    let below = best.and_then(|map| Some((map, folder.strip_prefix(&map.from).ok()?)));
    let folder = match below {
        Some((map, rest)) if rest.as_os_str().is_empty() => map.to.clone(),
        Some((map, rest)) => map.to.join(rest),
        None => folder.to_owned(),
    };
    let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let shown = folder.display();
    if !folder.is_absolute() {
        return Err(format!(
            "its folder {shown} is not absolute: give --map {shown}=FOLDER"
        ));
    }
    if !folder.components().all(is_plain) {
        return Err(format!("its folder {shown} has .. in it"));
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::row::Origin;

    #[test]
    fn the_longest_replaced_folder_counts_and_only_whole_names_match() {
        let map = |from: &str, to: &str| Map {
            from: from.into(),
            to: to.into(),
        };
        let maps = [
            map("/data", "/srv"),
            map("/data/tv", "/tv"),
            map("rel", "/abs"),
        ];
        let of = |folder: &str| mapped(Path::new(folder), &maps);
        assert_eq!(of("/data/x"), Ok("/srv/x".into()));
        assert_eq!(of("/data/tv/a/"), Ok("/tv/a".into()));
        assert_eq!(of("/data"), Ok("/srv".into()));
        assert_eq!(of("/database"), Ok("/database".into()));
        assert_eq!(of("rel/x"), Ok("/abs/x".into()));
        assert!(of("x").is_err());
        assert!(of("/data/../etc").is_err());
    }

    #[test]
    fn a_link_is_remembered_as_one() {
        let whole = find::Whole {
            metainfo: None,
            torrent: Vec::new(),
            link: "magnet:?xt=urn:btih:0101010101010101010101010101010101010101&dn=x".into(),
            foreign: crate::wire::foreign::Foreign {
                place: crate::wire::foreign::Place::Beside(b"/srv".to_vec()),
                ..Default::default()
            },
        };
        let adopted = adopt::link(whole.link.clone(), whole.foreign, &[]).unwrap();
        assert_eq!(adopted.row.origin, Origin::Magnet(whole.link));
        assert_eq!(adopted.row.folder, Path::new("/srv"));
        assert!(adopted.record.is_none() && adopted.torrent.is_none());
    }
}
