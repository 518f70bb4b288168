//! From what another program kept of a torrent, and from what lies on the disk, to a row and a resume record. Layer 6. Blocks.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{Adopted, Map, mapped};
use crate::base::PieceIndex;
use crate::daemon::TorrentSettings;
use crate::daemon::control::backend::{Limit, SeedLimit};
use crate::daemon::date::unix_now_s;
use crate::daemon::rename::RENAMES_MAX;
use crate::daemon::row::{Origin, TorrentRow, distinct};
use crate::session::Rename;
use crate::session::resume_store::{locate, observe};
use crate::storage::layout::{FileLayout, LayoutFile};
use crate::storage::parts::PartsMap;
use crate::storage::resume::{Counters, FileStamp, Observed, Record};
use crate::wire::foreign::{Foreign, Look, Pieces, Place};
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::Metainfo;

/// What programs append to the names of files that are not complete.
const UNFINISHED_ENDS: [&str; 2] = [".part", ".!qB"];
const NS_PER_S: i64 = 1_000_000_000;

/// Where a torrent's data lies, as the daemon will look for it.
struct Spot {
    /// For the row.
    folder: PathBuf,
    /// What the root's name is looked for in, and the layout with that name.
    base: PathBuf,
    layout: FileLayout,
    /// Other names, in the order they were given.
    renames: Vec<Rename>,
    /// The files lie in a folder without a root of their own, or in one of any name: only whole data can be served from there.
    is_renamed: bool,
}

/// A torrent whose metadata is not there yet.
///
/// # Errors
/// In words for the user.
pub fn link(link: String, foreign: Foreign, maps: &[Map]) -> Result<Adopted, String> {
    let parsed: Magnet = link
        .parse()
        .map_err(|_| "its link cannot be used".to_owned())?;
    let Place::Beside(folder) = &foreign.place else {
        return Err("nothing says where its data is to lie".to_owned());
    };
    let name = parsed.name.unwrap_or_else(|| parsed.info_hash.to_string());
    let row = TorrentRow {
        info_hash: parsed.info_hash,
        name,
        folder: mapped(&path_of(folder), maps)?,
        origin: Origin::Magnet(link),
        ..row_of(&foreign)
    };
    Ok(Adopted {
        row,
        torrent: None,
        record: None,
        to_hash: 0,
        notes: notes_of(&foreign),
    })
}

/// A torrent with its metadata.
///
/// # Errors
/// In words for the user.
pub fn torrent(
    mut metainfo: Metainfo,
    torrent: &[u8],
    foreign: Foreign,
    maps: &[Map],
) -> Result<Adopted, String> {
    let layout = FileLayout::new(&metainfo.info);
    let layout = layout.map_err(|error| format!("it cannot be stored: {error}"))?;
    let spot = spot(&foreign, layout, maps)?;
    let selected = selected(&foreign, spot.layout.files().len())?;
    let pieces = foreign.have.pieces(spot.layout.geometry());
    let pieces = pieces.map_err(|error| error.to_string())?;
    let mut check = Check {
        layout: &spot.layout,
        selected: selected.as_deref(),
        pieces,
        notes: notes_of(&foreign),
    };
    for piece in &foreign.uncertain {
        check.doubt(PieceIndex::new(*piece));
    }
    let parts = PartsMap::new(&spot.layout, metainfo.info_hash);
    let seen = observe(&spot.base, &spot.layout, &parts);
    let seen = seen.map_err(|error| format!("cannot use {}: {error}", spot.base.display()))?;
    check.against(&seen.observed, &foreign.looks, &spot.base)?;
    let is_whole = check.is_whole();
    let Check {
        pieces, mut notes, ..
    } = check;
    if spot.is_renamed && !is_whole {
        let why = "it has no root of its own there and is not complete: give it one, or complete it, there";
        return Err(why.to_owned());
    }
    if spot.is_renamed {
        notes.push(
            "it has no root of its own there: it is seeded alone, what is damaged is not fetched again".to_owned(),
        );
    }
    let torrent = match take_trackers(&mut metainfo, &foreign) {
        true => metainfo.to_torrent(),
        false => torrent.to_vec(),
    };
    let record = record(&metainfo, &foreign, &pieces, seen.observed, &spot);
    let row = row(&metainfo, foreign, &pieces, selected, is_whole, &spot);
    Ok(Adopted {
        row,
        torrent: Some(torrent),
        record,
        to_hash: pieces.uncertain.count(),
        notes,
    })
}

fn notes_of(foreign: &Foreign) -> Vec<String> {
    let left = foreign.left.iter();
    left.map(|what| format!("left behind: {what}")).collect()
}

/// What needs no metadata.
fn row_of(foreign: &Foreign) -> TorrentRow {
    TorrentRow {
        is_wanted: !foreign.is_paused,
        labels: distinct(foreign.labels.clone()),
        is_sequential: foreign.is_sequential,
        seed_ratio: foreign.seed_ratio,
        settings: settings(foreign),
        downloaded_bytes: foreign.downloaded_bytes,
        uploaded_bytes: foreign.uploaded_bytes,
        added_unix_s: foreign.added_unix_s.unwrap_or_else(unix_now_s),
        done_unix_s: foreign.done_unix_s,
        active_unix_s: foreign.active_unix_s,
        ..TorrentRow::default()
    }
}

/// What may change while it runs.
fn settings(foreign: &Foreign) -> TorrentSettings {
    let limit = |rate: Option<u64>| Limit {
        bytes_per_s: rate.unwrap_or(0),
        is_on: rate.is_some(),
    };
    let idle = foreign.idle_minutes.map(f64::from);
    TorrentSettings {
        down: limit(foreign.down_limit),
        up: limit(foreign.up_limit),
        ignores_session: foreign.ignores_session,
        priority: foreign.priority,
        file_priorities: foreign.file_priorities.iter().copied().collect(),
        seeds_at_any_ratio: foreign.seeds_at_any_ratio,
        seed_idle: idle.map_or(SeedLimit::Session, SeedLimit::Own),
        ..TorrentSettings::default()
    }
}

fn row(
    metainfo: &Metainfo,
    foreign: Foreign,
    pieces: &Pieces,
    selected_files: Option<Vec<usize>>,
    is_whole: bool,
    spot: &Spot,
) -> TorrentRow {
    let mut row = TorrentRow {
        info_hash: metainfo.info_hash,
        folder: spot.folder.clone(),
        fetches: !spot.is_renamed,
        renames: spot.renames.clone(),
        selected_files,
        is_unproven: pieces.have.count() > 0,
        ..row_of(&foreign)
    };
    row.settings
        .file_priorities
        .retain(|index, _| *index < metainfo.info.files.len());
    row.describe(metainfo);
    let geometry = &metainfo.info.geometry;
    let have = pieces
        .have
        .iter()
        .map(|piece| u64::from(geometry.piece_bytes(piece)));
    row.pieces_have = pieces.have.count();
    row.have_bytes = match is_whole && pieces.uncertain.count() == 0 {
        true => row.wanted_bytes,
        false => have.sum::<u64>().min(row.wanted_bytes),
    };
    row
}

/// A record that has what was had trusted. Pieces that nobody is sure of are hashed with an open one.
fn record(
    metainfo: &Metainfo,
    foreign: &Foreign,
    pieces: &Pieces,
    observed: Observed,
    spot: &Spot,
) -> Option<Record> {
    let root = observed.root.filter(|_| pieces.have.count() > 0)?;
    let base = std::fs::canonicalize(&spot.base).unwrap_or_else(|_| spot.base.clone());
    let root_path = base.join(spot.layout.root_name());
    Some(Record {
        info_hash: metainfo.info_hash,
        root: Some(root),
        root_path: root_path.as_os_str().as_bytes().to_vec(),
        is_open: pieces.uncertain.count() > 0,
        have: pieces.have.clone(),
        files: observed.files,
        parts: None,
        counters: Counters {
            downloaded_bytes: foreign.downloaded_bytes,
            uploaded_bytes: foreign.uploaded_bytes,
            wasted_bytes: 0,
            added_unix_s: foreign.added_unix_s.unwrap_or_else(unix_now_s),
        },
        unproven: Some(pieces.have.clone()),
    })
}

/// True when the torrent is to have other trackers or web seeds than its file says.
fn take_trackers(metainfo: &mut Metainfo, foreign: &Foreign) -> bool {
    let mut tiers = foreign
        .trackers
        .clone()
        .unwrap_or_else(|| metainfo.announce_tiers.clone());
    let known =
        |tiers: &[Vec<String>], url: &String| tiers.iter().flatten().any(|known| known == url);
    for url in &foreign.more_trackers {
        if !known(&tiers, url) {
            tiers.push(vec![url.clone()]);
        }
    }
    let web_seeds = foreign
        .web_seeds
        .clone()
        .unwrap_or_else(|| metainfo.web_seeds.clone());
    let is_changed = tiers != metainfo.announce_tiers || web_seeds != metainfo.web_seeds;
    (metainfo.announce_tiers, metainfo.web_seeds) = (tiers, web_seeds);
    is_changed
}

/// The files that are fetched; `None` is all.
fn selected(foreign: &Foreign, file_count: usize) -> Result<Option<Vec<usize>>, String> {
    let unwanted: std::collections::BTreeSet<usize> = foreign.unwanted.iter().copied().collect();
    let wanted: Vec<usize> = (0..file_count)
        .filter(|index| !unwanted.contains(index))
        .collect();
    match (wanted.len() == file_count, wanted.is_empty()) {
        (true, _) => Ok(None),
        (false, true) => Err("none of its files is to be fetched".to_owned()),
        (false, false) => Ok(Some(wanted)),
    }
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// How the files are called there.
enum Renamed {
    No,
    /// The root has another name.
    Root(Vec<u8>),
    /// The files lie in the folder without a root of their own.
    Stripped,
    /// Files have other names.
    Files,
}

fn renamed(foreign: &Foreign, layout: &FileLayout) -> Renamed {
    let files = layout.files().iter().zip(&foreign.renamed);
    let files = files.filter(|(file, name)| file.is_regular() && !name.is_empty());
    let mut found: Option<Renamed> = None;
    for (file, name) in files {
        let is = renamed_file(file, name, layout.root_name());
        let is_same = match (&found, &is) {
            (None, _) | (Some(Renamed::No), Renamed::No) => true,
            (Some(Renamed::Root(before)), Renamed::Root(now)) => before == now,
            (Some(Renamed::Stripped), Renamed::Stripped) => true,
            _ => false,
        };
        if !is_same {
            return Renamed::Files;
        }
        found = Some(is);
    }
    found.unwrap_or(Renamed::No)
}

fn renamed_file(file: &LayoutFile, name: &[u8], root: &Path) -> Renamed {
    let own = file.path.as_os_str().as_bytes();
    if own == name {
        return Renamed::No;
    }
    let below = file
        .path
        .strip_prefix(root)
        .map(|path| path.as_os_str().as_bytes());
    let below = below.unwrap_or_default();
    if below.is_empty() {
        // The only file: its name is the root's.
        return match name.contains(&b'/') {
            true => Renamed::Files,
            false => Renamed::Root(name.to_vec()),
        };
    }
    if below == name {
        return Renamed::Stripped;
    }
    let top = name.iter().position(|byte| *byte == b'/').unwrap_or(0);
    match name.split_at_checked(top) {
        Some((top, rest)) if rest.get(1..) == Some(below) => Renamed::Root(top.to_vec()),
        _ => Renamed::Files,
    }
}

fn spot(foreign: &Foreign, layout: FileLayout, maps: &[Map]) -> Result<Spot, String> {
    let content = match (&foreign.place, renamed(foreign, &layout)) {
        (Place::Unknown, _) => return Err("nothing says where its data lies".to_owned()),
        (Place::Beside(folder), Renamed::Root(name)) => {
            let root = layout.root_name().to_owned();
            return called(mapped(&path_of(folder), maps)?, layout, vec![(root, name)]);
        }
        (Place::Beside(folder), Renamed::Files) => {
            let names = file_names(foreign, &layout)?;
            return called(mapped(&path_of(folder), maps)?, layout, names);
        }
        (Place::Beside(folder), Renamed::No) => {
            mapped(&path_of(folder), maps)?.join(layout.root_name())
        }
        (Place::Beside(folder), Renamed::Stripped) => mapped(&path_of(folder), maps)?,
        (Place::Root(root), _) => mapped(&path_of(root), maps)?,
    };
    let parent = content.parent().map(Path::to_owned);
    if content.file_name() == Some(layout.root_name().as_os_str())
        && let Some(folder) = parent
    {
        return called(folder, layout, Vec::new());
    }
    let found = locate(&content, layout);
    let (base, layout) =
        found.map_err(|error| format!("no data at {}: {error}", content.display()))?;
    Ok(Spot {
        folder: content,
        base,
        layout,
        renames: Vec::new(),
        is_renamed: true,
    })
}

/// Below that folder, with other names for these paths.
fn called(
    folder: PathBuf,
    mut layout: FileLayout,
    names: Vec<(PathBuf, Vec<u8>)>,
) -> Result<Spot, String> {
    let mut renames = Vec::new();
    for (path, name) in names {
        let shown = path.display().to_string();
        let text = path.to_str().zip(String::from_utf8(name).ok());
        let (path, name) =
            text.ok_or_else(|| format!("{shown} has a name there that is no text"))?;
        let renamed = layout.renamed(Path::new(path), &name);
        layout =
            renamed.map_err(|error| format!("{shown} cannot be called {name} here: {error}"))?;
        renames.push(Rename {
            path: path.to_owned(),
            name,
        });
    }
    Ok(Spot {
        base: folder.clone(),
        folder,
        layout,
        renames,
        is_renamed: false,
    })
}

/// Files that have another name within their own folder.
fn file_names(foreign: &Foreign, layout: &FileLayout) -> Result<Vec<(PathBuf, Vec<u8>)>, String> {
    let mut names = Vec::new();
    for (file, name) in layout.files().iter().zip(&foreign.renamed) {
        let there = path_of(name);
        if !file.is_regular() || name.is_empty() || there == file.path {
            continue;
        }
        let is_unfinished = UNFINISHED_ENDS
            .iter()
            .any(|end| name.ends_with(end.as_bytes()));
        let last = there
            .file_name()
            .filter(|_| there.parent() == file.path.parent());
        let (Some(last), false) = (last, is_unfinished) else {
            return Err(unfinished_or_renamed(foreign));
        };
        names.push((file.path.clone(), last.as_bytes().to_vec()));
    }
    match names.len() > RENAMES_MAX {
        true => Err(format!(
            "more than {RENAMES_MAX} of its files were renamed there"
        )),
        false => Ok(names),
    }
}

fn unfinished_or_renamed(foreign: &Foreign) -> String {
    let has_end = |name: &Vec<u8>| {
        let mut ends = UNFINISHED_ENDS.iter();
        ends.any(|end| name.ends_with(end.as_bytes()))
    };
    match foreign.renamed.iter().any(has_end) {
        true => "files that are not complete have another name there: switch that off there first"
            .to_owned(),
        false => {
            "files of it were moved between its folders there: give them their places back first"
                .to_owned()
        }
    }
}

/// The pieces, made less by what the disk does not show.
struct Check<'a> {
    layout: &'a FileLayout,
    selected: Option<&'a [usize]>,
    pieces: Pieces,
    notes: Vec<String>,
}

impl Check<'_> {
    /// To be hashed before anybody believes it.
    fn doubt(&mut self, piece: PieceIndex) {
        if self.pieces.have.clear(piece) {
            self.pieces.uncertain.set(piece);
        }
    }

    fn drop_piece(&mut self, piece: PieceIndex) -> bool {
        let (had, doubted) = (
            self.pieces.have.clear(piece),
            self.pieces.uncertain.clear(piece),
        );
        had || doubted
    }

    fn is_selected(&self, file: usize) -> bool {
        self.selected
            .is_none_or(|files| files.binary_search(&file).is_ok())
    }

    /// All that is to be fetched is there, and sure.
    fn is_whole(&self) -> bool {
        let files = (0..self.layout.files().len()).filter(|file| self.is_selected(*file));
        let mut pieces = files.flat_map(|file| self.layout.pieces_of_file(file));
        pieces.all(|piece| self.pieces.have.has(PieceIndex::new(piece)))
    }

    fn against(&mut self, observed: &Observed, looks: &[Look], base: &Path) -> Result<(), String> {
        let (mut changed, mut short, mut dropped) = (0_u32, 0_u32, 0_u32);
        for (index, file) in self.layout.files().iter().enumerate() {
            if !file.is_regular() || file.length_bytes == 0 {
                continue;
            }
            let stamp = observed.files.get(index).copied().flatten();
            let is_had = |piece| {
                let piece = PieceIndex::new(piece);
                self.pieces.have.has(piece) || self.pieces.uncertain.has(piece)
            };
            let mut own = self.layout.pieces_of_file(index);
            if stamp.is_none() && self.is_selected(index) && own.any(is_had) {
                return Err(missing(file, base));
            }
            let size = stamp.map_or(0, |stamp| stamp.size_bytes);
            if size < file.length_bytes {
                short += u32::from(stamp.is_some());
                dropped += self.drop_behind(index, size);
            }
            let look = looks.get(index).copied();
            if !stamp
                .zip(look)
                .is_none_or(|(stamp, look)| fits(stamp, look))
            {
                changed += u32::from(self.doubt_file(index));
            }
        }
        if dropped > 0 && short > 0 {
            let text =
                format!("{dropped} pieces are not there: {short} files are too short for them");
            self.notes.push(text);
        }
        if changed > 0 {
            let text = format!(
                "{changed} files are not as they were left: their pieces are hashed when it begins"
            );
            self.notes.push(text);
        }
        Ok(())
    }

    /// Pieces whose bytes in this file lie behind its end are not there.
    fn drop_behind(&mut self, index: usize, size_bytes: u64) -> u32 {
        let layout = self.layout;
        let Some(file) = layout.files().get(index) else {
            return 0;
        };
        let geometry = layout.geometry();
        let mut dropped = 0;
        for piece in layout.pieces_of_file(index).map(PieceIndex::new) {
            let end = geometry.piece_offset(piece) + u64::from(geometry.piece_bytes(piece));
            let end_in_file = end.min(file.end()).saturating_sub(file.offset);
            if end_in_file > size_bytes && self.drop_piece(piece) {
                dropped += 1;
            }
        }
        dropped
    }

    fn doubt_file(&mut self, index: usize) -> bool {
        let before = self.pieces.uncertain.count();
        for piece in self.layout.pieces_of_file(index) {
            self.doubt(PieceIndex::new(piece));
        }
        self.pieces.uncertain.count() > before
    }
}

/// The file looks as the other program left it, to the second.
fn fits(stamp: FileStamp, look: Look) -> bool {
    let changed_s = stamp.mtime_ns.div_euclid(NS_PER_S);
    match look {
        Look::ChangedAt(at) => changed_s == at,
        Look::NotAfter(at) => changed_s <= at,
        Look::Uncertain => false,
    }
}

fn missing(file: &LayoutFile, base: &Path) -> String {
    let path = base.join(&file.path);
    let unfinished = UNFINISHED_ENDS.iter().find(|end| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        std::fs::symlink_metadata(PathBuf::from(name)).is_ok()
    });
    let shown = path.display();
    match unfinished {
        Some(end) => format!(
            "{shown} is called {end} there, as it is not complete: switch that off there first"
        ),
        None => format!("{shown} is not there: mount it, or say where it is with --map FROM=TO"),
    }
}
