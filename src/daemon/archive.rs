//! A daemon's state as one file: JSON lines. Layer 6. Blocks.
//!
//! The first line is `{"gyre":"state","version":1,"torrents":N}`. Each further line is one torrent: `row` as in the state file,
//! `torrent` the bytes of its .torrent (none of a link), `records` its resume records, both in base64. The last line is
//! `{"end":N,"sha1":"…"}`, a SHA-1 over all bytes before it: a file that was cut or changed is refused before anything is written.
//! Numbers, tokens and settings are not in it, nor is data.

use std::io::{self, BufRead, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use super::import::{Map, mapped};
use super::offline::Offline;
use super::row::{Origin, TorrentRow};
use crate::base::InfoHash;
use crate::session::SessionError;
use crate::session::resume_store::{locate, observe};
use crate::storage::layout::FileLayout;
use crate::storage::parts::PartsMap;
use crate::storage::resume::{FileStamp, Record};
use crate::wire::metainfo::Metainfo;

const VERSION: u32 = 1;
/// The longest line: a .torrent of 64 MiB and a record of 128 MiB, in base64.
const LINE_BYTES_MAX: u64 = 300 << 20;
/// Torrents of one file: what is refused before it is read is none that a daemon wrote.
const TORRENTS_MAX: u64 = 1_000_000;
/// Records of one torrent: one a folder that it ever lay in.
const RECORDS_MAX: usize = 64;

#[derive(Serialize, Deserialize)]
struct Head {
    gyre: String,
    version: u32,
    torrents: u64,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    row: TorrentRow,
    #[serde(default)]
    torrent: Option<String>,
    #[serde(default)]
    records: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct End {
    end: u64,
    sha1: String,
}

/// What became of one torrent of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub info_hash: InfoHash,
    pub name: String,
    pub outcome: Outcome,
}

/// See [`Restored`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Whether its data is where and as it was, so that nothing is hashed.
    Taken { is_as_it_was: bool },
    /// It is in the state already.
    Present,
    /// Not taken, and why.
    Left(String),
}

fn cannot(message: impl std::fmt::Display) -> SessionError {
    SessionError::new(message.to_string(), "export the state again")
}

/// Writes the whole state; the number of torrents, and what was left out and why.
///
/// # Errors
/// The state cannot be read or `out` does not take it.
pub fn export(state: &Offline, out: &mut impl Write) -> Result<(u64, Vec<String>), SessionError> {
    let mut left = Vec::new();
    let rows = state.rows().values().filter(|row| row.leaving.is_none());
    let rows: Vec<&TorrentRow> = rows.collect();
    let (mut sum, mut written) = (Sha1::new(), 0_u64);
    let mut line = |value: String| {
        let failed = |error: io::Error| {
            SessionError::new(format!("it cannot be written: {error}"), "make room there")
        };
        sum.update(&value);
        sum.update(b"\n");
        out.write_all(value.as_bytes()).map_err(failed)?;
        out.write_all(b"\n").map_err(failed)
    };
    line(json(&Head {
        gyre: "state".to_owned(),
        version: VERSION,
        torrents: rows.len() as u64,
    }))?;
    for row in rows {
        let torrent = match &row.origin {
            Origin::Magnet(_) => None,
            Origin::Torrent => match state.torrent(row.info_hash) {
                Ok(bytes) => Some(BASE64.encode(bytes)),
                Err(error) => {
                    left.push(format!("{}: {error}", row.name));
                    continue;
                }
            },
        };
        let records = state.records(row.info_hash)?;
        let records = records.iter().take(RECORDS_MAX);
        let mut row = row.clone();
        // Another daemon has lived for another time.
        row.times.turn_to(None, state.lived_s());
        line(json(&Entry {
            row,
            torrent,
            records: records
                .map(|record| BASE64.encode(record.encode()))
                .collect(),
        }))?;
        written += 1;
    }
    let sha1 = hex(&sum.finalize());
    let end = json(&End { end: written, sha1 });
    let failed = |error: io::Error| {
        SessionError::new(format!("it cannot be written: {error}"), "make room there")
    };
    writeln!(out, "{end}").map_err(failed)?;
    out.flush().map_err(failed)?;
    Ok((written, left))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a file to its end and checks that it is whole.
///
/// # Errors
/// It is none that [`export`] wrote, or not all of it.
pub fn check(from: &mut impl BufRead) -> Result<u64, SessionError> {
    let mut head: Option<Head> = None;
    let (mut sum, mut count) = (Sha1::new(), 0_u64);
    while let Some(bytes) = next_line(from)? {
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if head.is_none() {
            let first: Result<Head, _> = serde_json::from_slice(text);
            let first = first.ok().filter(|head| head.gyre == "state");
            let first = first.ok_or_else(|| cannot("this is no exported state"))?;
            if first.version > VERSION {
                let text = format!(
                    "it is of version {}, this program knows version {VERSION}",
                    first.version
                );
                return Err(cannot(text));
            }
            if first.torrents > TORRENTS_MAX {
                return Err(cannot("it has more torrents than a state can have"));
            }
            head = Some(first);
        } else if let Ok(end) = serde_json::from_slice::<End>(text) {
            let is_whole = end.end == count && end.sha1 == hex(&sum.finalize());
            return match is_whole && next_line(from)?.is_none() {
                true => Ok(count),
                false => Err(cannot("it is damaged: its checksum does not fit")),
            };
        } else {
            count += 1;
            if count > TORRENTS_MAX {
                return Err(cannot("it has more torrents than a state can have"));
            }
        }
        sum.update(&bytes);
    }
    Err(cannot(match head {
        Some(_) => "it was cut: its end is missing",
        None => "this is no exported state",
    }))
}

/// A line with its end; `None` behind the last.
fn next_line(from: &mut impl BufRead) -> Result<Option<Vec<u8>>, SessionError> {
    let mut line = Vec::new();
    let mut limited = io::Read::take(&mut *from, LINE_BYTES_MAX + 1);
    let read = limited.read_until(b'\n', &mut line);
    read.map_err(|error| cannot(format!("it cannot be read: {error}")))?;
    if line.len() as u64 > LINE_BYTES_MAX {
        return Err(cannot(
            "one of its lines is longer than any that is written",
        ));
    }
    Ok((!line.is_empty()).then_some(line))
}

/// Takes the torrents of a file that [`check`] found whole into the state, and tells of each. Without a state, or dry, nothing
/// is written.
///
/// # Errors
/// The file or the state fails.
pub fn import(
    from: &mut impl BufRead,
    maps: &[Map],
    mut state: Option<&mut Offline>,
    is_dry: bool,
    mut tell: impl FnMut(&Restored),
) -> Result<(), SessionError> {
    next_line(from)?;
    while let Some(line) = next_line(from)? {
        let Ok(entry) = serde_json::from_slice::<Entry>(&line) else {
            if serde_json::from_slice::<End>(&line).is_ok() {
                break;
            }
            return Err(cannot("one of its lines is no torrent"));
        };
        let mut restored = Restored {
            info_hash: entry.row.info_hash,
            name: entry.row.name.clone(),
            outcome: Outcome::Present,
        };
        let known = state
            .as_ref()
            .and_then(|state| state.rows().get(&restored.info_hash));
        if known.is_none() {
            match restore(entry, maps) {
                Err(why) => restored.outcome = Outcome::Left(why),
                Ok((row, torrent, records, is_as_it_was)) => {
                    restored.outcome = Outcome::Taken { is_as_it_was };
                    if let Some(state) = state.as_mut().filter(|_| !is_dry) {
                        state.put(row, torrent.as_deref(), &records)?;
                    }
                }
            }
        }
        tell(&restored);
    }
    match state.filter(|_| !is_dry) {
        Some(state) => state.flush(),
        None => Ok(()),
    }
}

type Parts = (TorrentRow, Option<Vec<u8>>, Vec<Record>, bool);

fn restore(entry: Entry, maps: &[Map]) -> Result<Parts, String> {
    let mut row = entry.row;
    row.folder = mapped(&row.folder, maps)?;
    if row.moving.is_some() || row.renaming.is_some() {
        let why = "its files were being moved when the state was written: let the daemon finish that first";
        return Err(why.to_owned());
    }
    row.leaving = None;
    row.times.work = None;
    // Whoever listed us knew another session.
    row.announced = None;
    let decoded = |text: &String| {
        BASE64
            .decode(text)
            .map_err(|_| "its line is damaged".to_owned())
    };
    let Some(torrent) = &entry.torrent else {
        return match row.origin {
            Origin::Magnet(_) => Ok((row, None, Vec::new(), true)),
            Origin::Torrent => Err("its .torrent file is missing".to_owned()),
        };
    };
    let torrent = decoded(torrent)?;
    let metainfo = Metainfo::parse(&torrent);
    let metainfo =
        metainfo.map_err(|error| format!("its .torrent file cannot be used: {error}"))?;
    let metainfo = metainfo.called(row.info_hash);
    if metainfo.info_hash != row.info_hash {
        return Err("its .torrent file is that of another".to_owned());
    }
    let (mut records, mut is_as_it_was) = (Vec::new(), row.pieces_have == 0);
    for text in entry.records.iter().take(RECORDS_MAX) {
        let record = Record::decode(&decoded(text)?);
        let record = record.map_err(|error| error.to_string())?;
        if record.info_hash != row.info_hash {
            return Err("one of its resume records is that of another".to_owned());
        }
        match restamped(&row, &metainfo, &record) {
            Some(record) => {
                is_as_it_was = true;
                records.push(record);
            }
            None => records.push(record),
        }
    }
    Ok((row, Some(torrent), records, is_as_it_was))
}

/// The record for the files that lie there now, if they are as they were but for their inodes.
fn restamped(row: &TorrentRow, metainfo: &Metainfo, record: &Record) -> Option<Record> {
    use std::os::unix::ffi::OsStrExt;
    let mut renames = row.renames.iter();
    let layout = renames.try_fold(FileLayout::new(&metainfo.info).ok()?, |layout, rename| {
        layout.renamed(Path::new(&rename.path), &rename.name).ok()
    })?;
    let (folder, layout) = match row.fetches {
        true => (row.folder.clone(), layout),
        false => locate(&row.folder, layout).ok()?,
    };
    let parts = PartsMap::new(&layout, metainfo.info_hash);
    let observed = observe(&folder, &layout, &parts).ok()?.observed;
    let is_same = |was: &Option<FileStamp>, is: &Option<FileStamp>| match (was, is) {
        (Some(was), Some(is)) => (was.size_bytes, was.mtime_ns) == (is.size_bytes, is.mtime_ns),
        (None, None) => true,
        _ => false,
    };
    let mut files = record.files.iter().zip(&observed.files);
    let fits = record.files.len() == observed.files.len()
        && files.all(|(was, is)| is_same(was, is))
        && (record.parts.is_none() || is_same(&record.parts, &observed.parts));
    let root = observed.root.filter(|_| fits)?;
    let base = std::fs::canonicalize(&folder).unwrap_or_else(|_| Path::to_owned(&folder));
    Some(Record {
        root: Some(root),
        root_path: base
            .join(layout.root_name())
            .as_os_str()
            .as_bytes()
            .to_vec(),
        files: observed.files,
        parts: record.parts.and(observed.parts),
        ..record.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exported(folder: &Path) -> Vec<u8> {
        let mut state = Offline::open(folder).unwrap();
        for number in 1..=3_u8 {
            let link = format!("magnet:?xt=urn:btih:{}", InfoHash::new([number; 20]));
            let row = TorrentRow {
                info_hash: InfoHash::new([number; 20]),
                folder: "/srv/data".into(),
                origin: Origin::Magnet(link),
                labels: vec!["tv".into()],
                ..TorrentRow::default()
            };
            state.put(row, None, &[]).unwrap();
        }
        state.flush().unwrap();
        let mut bytes = Vec::new();
        assert_eq!(export(&state, &mut bytes).unwrap(), (3, Vec::new()));
        bytes
    }

    #[test]
    fn a_state_is_the_same_behind_an_export_and_an_import() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bytes = exported(from.path());
        assert_eq!(check(&mut bytes.as_slice()).unwrap(), 3);
        let maps = [Map {
            from: "/srv".into(),
            to: "/mnt".into(),
        }];
        let mut state = Offline::open(to.path()).unwrap();
        for round in 0..2 {
            let mut told = Vec::new();
            let tell = |restored: &Restored| told.push(restored.outcome.clone());
            import(&mut bytes.as_slice(), &maps, Some(&mut state), false, tell).unwrap();
            let expected = match round {
                0 => Outcome::Taken { is_as_it_was: true },
                _ => Outcome::Present,
            };
            assert_eq!(told, [expected.clone(), expected.clone(), expected]);
        }
        drop(state);
        let state = Offline::open(to.path()).unwrap();
        let row = &state.rows()[&InfoHash::new([2; 20])];
        assert_eq!(row.folder, Path::new("/mnt/data"));
        assert_eq!(row.labels, ["tv"]);
    }

    #[test]
    fn a_file_with_any_byte_missing_or_changed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = exported(folder.path());
        // Without its last line break it says as much.
        for end in 0..bytes.len() - 1 {
            assert!(check(&mut &bytes[..end]).is_err(), "cut at {end}");
        }
        for at in 0..bytes.len() - 1 {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(check(&mut changed.as_slice()).is_err(), "changed at {at}");
        }
    }
}
