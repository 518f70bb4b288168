//! Files of a torrent that other torrents have already, under whatever names: found by length and a sample of hashes, and
//! given second names, or copies that share their place on the disk, among the new torrent's files. Layer 5. Blocks: for a
//! thread that may.
//!
//! Only files that a resume record of their own torrent claims whole, and that look as it says, are offered. Which of them
//! are the new torrent's decides [`Matcher`]. Nothing is replaced, nothing is written into what was there, and a file gets
//! its second name only while it is the one that was hashed. The record that is left behind has the start trust what lies
//! in files found; what of it was not hashed is named there as unproven.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::debug;

use super::config::TorrentConfig;
use super::error::SessionError;
use super::hash_ahead::{self, Place, Plan, Work};
use super::load;
use super::resume_store::{ResumeStore, found, observe, stamp_of};
use crate::base::{Bitfield, PieceIndex, Rng};
use crate::storage::cross::{Matcher, OFFERS_MAX};
use crate::storage::layout::{FileLayout, LayoutFile};
use crate::storage::parts::PartsMap;
use crate::storage::resume::{Observed, Record};
use crate::uring::copy;
use crate::uring::files::{self, FileStamp, OpenMode};
use crate::uring::readahead::AheadFile;
use crate::wire::metainfo::PieceHash;

/// Open files kept: pieces of a round come in order, so few files are near.
const OPEN_FILES_MAX: usize = 8;

/// What was found for a torrent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossed {
    pub files: usize,
    pub bytes: u64,
    /// Of the files, those that are a second name of another torrent's.
    pub shared_files: usize,
    /// Pieces that lie in files found.
    pub pieces: u32,
    /// Pieces that were read for it.
    pub hashed_pieces: u32,
    /// Nothing is left to fetch.
    pub is_whole: bool,
}

/// Nothing was found for another reason than that nothing is there.
#[derive(Debug, thiserror::Error)]
pub enum CrossError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Torrent(SessionError),
    #[error("it was broken off")]
    Stopped,
}

/// Gives a torrent that has no record yet what others have of its files. `None` when that is nothing.
///
/// # Errors
/// See [`CrossError`]: what has its new name by then keeps it, and nothing claims it.
pub fn cross(
    config: &TorrentConfig,
    others: &[TorrentConfig],
    state_dir: &Path,
    seed: u64,
    is_stopped: &AtomicBool,
) -> Result<Option<Crossed>, CrossError> {
    let layout = load::layout_of(config).map_err(CrossError::Torrent)?;
    let in_state = failed(state_dir);
    let store = ResumeStore::open(state_dir).map_err(in_state)?;
    let target = Target::look(config, layout)?;
    if target.has_record(config, &store) {
        return Ok(None);
    }
    let sources: Vec<Source> = others
        .iter()
        .filter_map(|other| Source::open(other, &store))
        .collect();
    let offers = offers(config, &target, &sources);
    let counts = offers.iter().map(Vec::len).collect();
    let mut matcher = Matcher::new(&target.layout, counts, Rng::new(seed));
    let mut sampler = Sampler {
        config,
        layout: &target.layout,
        sources: &sources,
        offers: &offers,
        open: Vec::new(),
        chosen: Vec::new(),
        round: Vec::new().into_iter(),
        good: Bitfield::new(0),
        is_stopped,
    };
    loop {
        let round = matcher.next_round();
        if round.is_empty() {
            break;
        }
        matcher.judge(&sampler.hash(&matcher, round));
        if is_stopped.load(Ordering::Relaxed) {
            return Err(CrossError::Stopped);
        }
    }
    let hashed_pieces = matcher.hashed_count();
    if matcher.taken().next().is_none() {
        debug!(hashed_pieces, "none of its files is another's");
        return Ok(None);
    }
    let mut placed = Placed::default();
    target.place(&mut matcher, &sources, &offers, &mut placed)?;
    let pieces = matcher.pieces();
    if pieces.count() == 0 {
        return Ok(None);
    }
    let record = target.record(config, &pieces, matcher.proven(), &placed)?;
    store.save(&record).map_err(failed(state_dir))?;
    Ok(Some(Crossed {
        files: placed.files.len(),
        bytes: placed.bytes,
        shared_files: placed.shared_files,
        pieces: pieces.count(),
        hashed_pieces,
        is_whole: pieces.is_full(),
    }))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> CrossError + use<> {
    let path = path.to_owned();
    move |source| CrossError::Io {
        path: path.clone(),
        source,
    }
}

/// A file of another torrent.
#[derive(Clone, Copy, Debug)]
struct Offer {
    source: usize,
    file: usize,
    stamp: FileStamp,
}

impl Offer {
    const fn inode(&self) -> (u64, u64) {
        (self.stamp.device, self.stamp.inode)
    }
}

/// Another torrent with files on the disk.
struct Source {
    base: OwnedFd,
    layout: FileLayout,
    /// One a file: how it looks, of those that are whole.
    whole: Vec<Option<FileStamp>>,
}

impl Source {
    /// `None` when nothing of it is known to be whole; that it cannot be used is its own matter.
    fn open(config: &TorrentConfig, store: &ResumeStore) -> Option<Source> {
        let located = load::locate(config, load::layout_of(config).ok()?);
        let (folder, layout) = located.ok()?;
        let parts = PartsMap::new(&layout, config.metainfo.info_hash);
        let observed = observe(&folder, &layout, &parts).ok()?.observed;
        let record = store.at(config.metainfo.info_hash, observed.root?)?;
        if record.have.len() != layout.geometry().piece_count() {
            return None;
        }
        let base = files::open_root(&folder).ok()?;
        let whole = (0..layout.files().len())
            .map(|file| whole_file(&base, &layout, &record, &observed, file))
            .collect();
        Some(Source {
            base,
            layout,
            whole,
        })
    }

    fn path_of(&self, offer: &Offer) -> &Path {
        let file = self.layout.files().get(offer.file);
        file.map_or(Path::new(""), |file| file.path.as_path())
    }

    /// Opens the file if it is still the one that was offered.
    fn open_file(&self, offer: &Offer) -> io::Result<OwnedFd> {
        let fd = files::open_beneath(&self.base, self.path_of(offer), OpenMode::Read)?;
        match is_unchanged(&offer.stamp, &files::stamp(&fd)?) {
            true => Ok(fd),
            false => Err(changed()),
        }
    }
}

/// The same content as far as anybody can see; another name that it got is no change.
fn is_unchanged(before: &FileStamp, now: &FileStamp) -> bool {
    let version = |stamp: &FileStamp| {
        let file = (stamp.device, stamp.inode);
        (file, stamp.size_bytes, stamp.mtime_ns)
    };
    version(before) == version(now)
}

fn changed() -> io::Error {
    io::Error::other("it was changed meanwhile")
}

fn whole_file(
    base: &OwnedFd,
    layout: &FileLayout,
    record: &Record,
    observed: &Observed,
    file: usize,
) -> Option<FileStamp> {
    let entry = layout.files().get(file)?;
    let mut pieces = layout.pieces_of_file(file);
    let is_stored = entry.is_regular() && entry.length_bytes > 0;
    if !is_stored || !pieces.all(|piece| record.have.has(PieceIndex::new(piece))) {
        return None;
    }
    let recorded = record.files.get(file).copied().flatten()?;
    if observed.files.get(file).copied().flatten() != Some(recorded) {
        return None;
    }
    let stamp = files::file_stamp_beneath(base, &entry.path).ok()?;
    let is_whole = stamp.size_bytes == entry.length_bytes && stamp_of(stamp) == recorded;
    is_whole.then_some(stamp)
}

/// The new torrent's place.
struct Target {
    folder: PathBuf,
    layout: FileLayout,
    /// How its files look that are there.
    there: Vec<Option<FileStamp>>,
    observed: Observed,
}

impl Target {
    fn look(config: &TorrentConfig, layout: FileLayout) -> Result<Target, CrossError> {
        let folder = config.folder.clone();
        let parts = PartsMap::new(&layout, config.metainfo.info_hash);
        let seen = observe(&folder, &layout, &parts).map_err(failed(&folder))?;
        let mut there = vec![None; layout.files().len()];
        if let Some(base) = found(files::open_root(&folder)).map_err(failed(&folder))? {
            for (place, file) in there.iter_mut().zip(layout.files()) {
                *place = files::file_stamp_beneath(&base, &file.path).ok();
            }
        }
        Ok(Target {
            folder,
            layout,
            there,
            observed: seen.observed,
        })
    }

    /// What an earlier run left says more than any look at others.
    fn has_record(&self, config: &TorrentConfig, store: &ResumeStore) -> bool {
        let root = self.observed.root;
        root.is_some_and(|root| store.at(config.metainfo.info_hash, root).is_some())
    }

    /// Gives files found their new names, durably; those that cannot have one are as not found.
    fn place(
        &self,
        matcher: &mut Matcher<'_>,
        sources: &[Source],
        offers: &[Vec<Offer>],
        placed: &mut Placed,
    ) -> Result<(), CrossError> {
        files::make_folder(&self.folder).map_err(failed(&self.folder))?;
        let base = files::open_root(&self.folder).map_err(failed(&self.folder))?;
        let taken: Vec<(usize, usize)> = matcher.taken().collect();
        let mut folders = BTreeSet::new();
        for (file, offer) in taken {
            let named = self.layout.files().get(file);
            let offer = offers.get(file).and_then(|offers| offers.get(offer));
            let (Some(named), Some(offer)) = (named, offer) else {
                continue;
            };
            let source = sources.get(offer.source);
            let is_there = self.there.get(file).copied().flatten().is_some();
            let done = match source {
                Some(_) if is_there && placed.inodes.insert(offer.inode()) => Ok(true),
                Some(source) if !is_there => place_file(source, offer, &base, named, placed),
                _ => Err(io::ErrorKind::AlreadyExists.into()),
            };
            match done {
                Ok(is_shared) => {
                    folders.extend(named.path.ancestors().skip(1).map(Path::to_owned));
                    placed.files.insert(file);
                    placed.bytes += named.length_bytes;
                    placed.shared_files += usize::from(is_shared);
                }
                Err(error) => {
                    debug!(path = %named.path.display(), %error, "it cannot be had from another torrent");
                    matcher.forget(file);
                }
            }
        }
        for folder in &folders {
            let synced = files::open_dir_beneath(&base, folder).and_then(|fd| files::sync_dir(&fd));
            synced.map_err(failed(&self.folder.join(folder)))?;
        }
        Ok(())
    }

    /// A record of a run that ended in order. Files that were there are not in it: their pieces are hashed.
    fn record(
        &self,
        config: &TorrentConfig,
        pieces: &Bitfield,
        proven: &Bitfield,
        placed: &Placed,
    ) -> Result<Record, CrossError> {
        let info_hash = config.metainfo.info_hash;
        let parts = PartsMap::new(&self.layout, info_hash);
        let seen = observe(&self.folder, &self.layout, &parts).map_err(failed(&self.folder))?;
        let mut observed = seen.observed;
        for (file, stamp) in observed.files.iter_mut().enumerate() {
            if !placed.files.contains(&file) {
                *stamp = None;
            }
        }
        let root_path = load::root_path(&self.folder, &self.layout);
        let mut unproven = pieces.clone();
        for piece in proven.iter() {
            unproven.clear(piece);
        }
        Ok(Record {
            info_hash,
            root: observed.root,
            root_path: root_path.as_os_str().as_bytes().to_vec(),
            is_open: false,
            have: pieces.clone(),
            files: observed.files,
            parts: None,
            counters: load::fresh_counters(),
            unproven: Some(unproven),
        })
    }
}

/// Files that have their new names.
#[derive(Debug, Default)]
struct Placed {
    files: BTreeSet<usize>,
    /// No two files of a torrent may be one (HOSTILE.md T10).
    inodes: BTreeSet<(u64, u64)>,
    bytes: u64,
    shared_files: usize,
}

/// True when the file is a second name, false when it is a copy of its own that shares the disk's blocks.
fn place_file(
    source: &Source,
    offer: &Offer,
    base: &OwnedFd,
    named: &LayoutFile,
    placed: &mut Placed,
) -> io::Result<bool> {
    let from = source.open_file(offer)?;
    let parent = named.path.parent().unwrap_or(Path::new(""));
    files::mkdirs_beneath(base, parent)?;
    if copy::clone_new_beneath(&from, base, &named.path)? {
        return match is_unchanged(&offer.stamp, &files::stamp(&from)?) {
            true => Ok(false),
            false => undone(base, named),
        };
    }
    if placed.inodes.contains(&offer.inode()) {
        return Err(io::ErrorKind::TooManyLinks.into());
    }
    let name = source.path_of(offer);
    copy::link_beneath((&source.base, name), (base, &named.path))?;
    // Whatever has the name now may not be what was hashed: a link, or a file that took its place.
    let is_it = files::is_link_beneath(base, &named.path);
    let stamp = files::file_stamp_beneath(base, &named.path);
    match stamp {
        Ok(stamp) if !is_it && is_unchanged(&offer.stamp, &stamp) => {
            placed.inodes.insert(offer.inode());
            Ok(true)
        }
        _ => undone(base, named),
    }
}

fn undone(base: &OwnedFd, named: &LayoutFile) -> io::Result<bool> {
    files::unlink_beneath(base, &named.path)?;
    Err(changed())
}

/// For each file of the new torrent the others that may be it, the likeliest first: those of a torrent that has most of
/// its lengths.
fn offers(config: &TorrentConfig, target: &Target, sources: &[Source]) -> Vec<Vec<Offer>> {
    let of_file = |(file, entry): (usize, &LayoutFile)| {
        let is_wanted = |file: usize| {
            let selected = config.selected_files.as_ref();
            selected.is_none_or(|files| files.contains(&file))
        };
        if !entry.is_regular() || entry.length_bytes == 0 || !is_wanted(file) {
            return Vec::new();
        }
        let mut offers: Vec<Offer> = Vec::new();
        for (number, source) in sources.iter().enumerate() {
            for (other, stamp) in source.whole.iter().enumerate() {
                let Some(stamp) = stamp.filter(|stamp| stamp.size_bytes == entry.length_bytes)
                else {
                    continue;
                };
                let offer = Offer {
                    source: number,
                    file: other,
                    stamp,
                };
                if offers.iter().all(|known| known.inode() != offer.inode()) {
                    offers.push(offer);
                }
            }
        }
        // What is there is another's only if an earlier try that was broken off made it so.
        if let Some(there) = target.there.get(file).copied().flatten() {
            let inode = (there.device, there.inode);
            offers.retain(|offer| there.links > 1 && offer.inode() == inode);
        }
        offers.truncate(OFFERS_MAX);
        offers
    };
    let files = target.layout.files().iter().enumerate();
    files.map(of_file).collect()
}

/// Hashes pieces of the new torrent out of files of others.
struct Sampler<'a> {
    config: &'a TorrentConfig,
    layout: &'a FileLayout,
    sources: &'a [Source],
    offers: &'a [Vec<Offer>],
    open: Vec<((usize, usize), AheadFile)>,
    /// One a file: the offer of this round.
    chosen: Vec<Option<usize>>,
    round: std::vec::IntoIter<PieceIndex>,
    good: Bitfield,
    is_stopped: &'a AtomicBool,
}

impl Sampler<'_> {
    /// The pieces of the round that are good.
    fn hash(&mut self, matcher: &Matcher<'_>, round: Vec<PieceIndex>) -> Bitfield {
        self.good = Bitfield::new(self.layout.geometry().piece_count());
        let files = 0..self.layout.files().len();
        self.chosen = files.map(|file| matcher.offer_of(file)).collect();
        self.round = round.into_iter();
        hash_ahead::run(self);
        std::mem::replace(&mut self.good, Bitfield::new(0))
    }

    fn opened(&mut self, file: usize) -> io::Result<AheadFile> {
        let chosen = self.chosen.get(file).copied().flatten();
        let offer = chosen.and_then(|chosen| self.offers.get(file)?.get(chosen));
        let offer = offer.ok_or(io::ErrorKind::NotFound)?;
        let key = (offer.source, offer.file);
        if let Some((_, opened)) = self.open.iter().find(|(of, _)| *of == key) {
            return Ok(opened.clone());
        }
        let source = self.sources.get(offer.source);
        let source = source.ok_or(io::ErrorKind::NotFound)?;
        let opened = AheadFile::new(source.open_file(offer)?);
        if self.open.len() >= OPEN_FILES_MAX {
            self.open.remove(0);
        }
        self.open.push((key, opened.clone()));
        Ok(opened)
    }
}

impl Work for Sampler<'_> {
    type Failure = io::Error;

    fn next(&mut self) -> Option<PieceIndex> {
        self.round.next()
    }

    fn plan(&mut self, piece: PieceIndex) -> Result<Plan, io::Error> {
        let layout = self.layout;
        let mut spans = Vec::new();
        for span in layout.piece_spans(piece) {
            let is_stored = layout
                .files()
                .get(span.file)
                .is_some_and(LayoutFile::is_regular);
            let place = match is_stored {
                true => Place::At(self.opened(span.file)?, span.file_offset),
                false => Place::Zeros,
            };
            spans.push((place, span.length));
        }
        Ok(Plan::Read(spans))
    }

    fn tree_height(&self, piece: PieceIndex) -> Option<u32> {
        self.config.metainfo.info.piece_hashes.tree_height(piece)
    }

    fn failure(&mut self, _: PieceIndex, _: usize, error: io::Error) -> io::Error {
        error
    }

    fn on_bytes(&mut self, _: u64) {}

    fn done(&mut self, piece: PieceIndex, hash: Result<PieceHash, io::Error>, _: bool) {
        let expected = self.config.metainfo.info.piece_hashes.get(piece);
        match hash {
            Ok(hash) if hash == expected => drop(self.good.set(piece)),
            Ok(_) => {}
            Err(error) => debug!(piece = piece.get(), %error, "a piece of the sample"),
        }
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }
}
