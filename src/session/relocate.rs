//! A torrent's files put in another folder while it may be seeding from the old one. Layer 5. Blocks: for a thread of its
//! own.
//!
//! In order: [`Mover::open`] looks at both places, [`Mover::copy`] puts every file in the new one, durably, under its own
//! name only once it is whole. Then the run that used the old files ends, [`Mover::settle`] copies anew what changed
//! meanwhile and carries the resume record over, the caller commits the new folder, and [`Mover::remove_old`] takes the old
//! files away. Whatever happens before the commit, the old place is as it was; [`Mover::discard`] takes the copies away.
//!
//! Within one file system a file gets a second name and no byte is copied ([`Mover::is_quick`]). Names are part of what a
//! run watches its files by, so nothing may run meanwhile; it takes no time. Nothing that was there before the move is
//! replaced, whatever it looks like (HOSTILE.md L14).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::debug;

use super::config::TorrentConfig;
use super::error::SessionError;
use super::load;
use super::resume_store::{Loaded, ResumeStore, found, stamp_of};
use crate::base::InfoHash;
use crate::storage::layout::FileLayout;
use crate::storage::parts::PartsMap;
use crate::storage::resume::{FileStamp, Record, RootKey};
use crate::uring::copy;
use crate::uring::files::{self, OpenMode};

/// Files named among those that are still there; a torrent may have a million.
const KEPT_NAMED_MAX: usize = 16;
/// Times on some file systems are as coarse as that.
const MTIME_COARSE_NS: i64 = 2_000_000_000;

/// How far a move is, and the word to break it off. Shared between threads.
#[derive(Debug, Default)]
pub struct MoveProgress {
    total_bytes: AtomicU64,
    done_bytes: AtomicU64,
    is_cancelled: AtomicBool,
}

impl MoveProgress {
    /// 0 to 1.
    pub fn share(&self) -> f64 {
        let total = self.total_bytes.load(Ordering::Relaxed);
        let done = self.done_bytes.load(Ordering::Relaxed).min(total);
        match total {
            0 => 0.0,
            total => done as f64 / total as f64,
        }
    }

    /// Breaks it off at the next look.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) -> bool {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        !self.is_cancelled.load(Ordering::Relaxed)
    }
}

/// Why files were not moved; the old place is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RelocateError {
    #[error("its files are in {} already", .0.display())]
    Same(PathBuf),
    #[error("{} is there already: move it away, or say that the torrent's files are there", .0.display())]
    InTheWay(PathBuf),
    #[error("{} has room for {free_bytes} bytes, and the files have {needed_bytes}", folder.display())]
    NoRoom {
        folder: PathBuf,
        needed_bytes: u64,
        free_bytes: u64,
    },
    #[error("the files are not in {}", .0.display())]
    Gone(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("it was broken off")]
    Cancelled,
    #[error("{0}")]
    Torrent(SessionError),
}

/// What a move finds in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing of it is at the new place yet.
    Fresh,
    /// An earlier one was killed: files that look like ours are.
    Resumed,
    /// The torrent has its new folder already; only the old files are still to go.
    Committed,
}

/// A move under way.
pub struct Mover {
    info_hash: InfoHash,
    from: Place,
    to: Place,
    start: Start,
    items: Vec<Item>,
    /// Files get a second name instead of being copied.
    links: bool,
    /// Folders that were made for it, the deepest last.
    made: Vec<PathBuf>,
}

/// A folder and the torrent's files in it.
struct Place {
    folder: PathBuf,
    /// `None` where there is no such folder: a torrent that has no data yet.
    base: Option<OwnedFd>,
    layout: FileLayout,
}

struct Item {
    what: What,
    from: PathBuf,
    to: PathBuf,
    placed: Option<Placed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A file of the layout.
    File(usize),
    Parts,
    Link,
}

/// A file at its new place, and how the old one looked when it was copied.
#[derive(Clone, Copy)]
struct Placed {
    source: files::FileStamp,
    target: files::FileStamp,
}

impl Place {
    fn base(&self) -> Result<&OwnedFd, RelocateError> {
        let base = self.base.as_ref();
        base.ok_or_else(|| RelocateError::Gone(self.folder.clone()))
    }

    fn failed(&self, path: &Path) -> impl Fn(io::Error) -> RelocateError + use<> {
        let path = self.folder.join(path);
        move |source| RelocateError::Io {
            path: path.clone(),
            source,
        }
    }

    fn stamp(&self, path: &Path) -> io::Result<Option<files::FileStamp>> {
        match &self.base {
            None => Ok(None),
            Some(base) => found(files::file_stamp_beneath(base, path)),
        }
    }

    fn root_key(&self) -> Option<RootKey> {
        let base = self.base.as_ref()?;
        let stamp = files::stamp_beneath(base, self.layout.root_name()).ok()?;
        Some(RootKey {
            device: stamp.device,
            inode: stamp.inode,
        })
    }
}

impl Mover {
    /// Looks at the old place and the new one. `config` is the torrent's with the old folder; with `has_data` there must be
    /// something in it.
    ///
    /// # Errors
    /// See [`RelocateError`]. Nothing was changed then, but for folders that are empty.
    pub fn open(
        config: &TorrentConfig,
        to: &Path,
        start: Start,
        has_data: bool,
    ) -> Result<Mover, RelocateError> {
        let own = load::layout_of(config).map_err(RelocateError::Torrent)?;
        let located = load::locate(config, own.clone());
        let (folder, layout) = located.map_err(RelocateError::Torrent)?;
        let open = |folder: &Path| {
            found(files::open_root(folder)).map_err(|source| RelocateError::Io {
                path: folder.to_owned(),
                source,
            })
        };
        let from = Place {
            base: open(&folder)?,
            folder,
            layout,
        };
        if has_data && start != Start::Committed && from.root_key().is_none() {
            return Err(RelocateError::Gone(from.folder));
        }
        let mut made = Vec::new();
        if start == Start::Fresh {
            let missing = to.ancestors().take_while(|path| !path.is_dir());
            made = missing.map(Path::to_path_buf).collect();
            made.reverse();
            files::make_folder(to).map_err(|source| RelocateError::Io {
                path: to.to_owned(),
                source,
            })?;
        }
        let to = Place {
            base: open(to)?,
            folder: to.to_owned(),
            layout: own,
        };
        to.base()?;
        let info_hash = config.metainfo.info_hash;
        let items = items(info_hash, &from.layout, &to.layout);
        let mut mover = Mover {
            info_hash,
            from,
            to,
            start,
            items,
            links: false,
            made,
        };
        mover.links = start != Start::Committed && mover.can_link();
        let looked = mover.look();
        if looked.is_err() {
            mover.remove_made();
        }
        looked.map(|()| mover)
    }

    /// True when [`Mover::copy`] copies nothing: to be called behind the end of the run then, and [`Mover::remove_old`]
    /// before the next.
    pub fn is_quick(&self) -> bool {
        self.links || self.from.base.is_none() || self.start == Start::Committed
    }

    /// Tries it with an empty file: other mounts of one file system have its device number too.
    fn can_link(&self) -> bool {
        let (Some(from), Some(to)) = (&self.from.base, &self.to.base) else {
            return false;
        };
        let name = self.temporary();
        let _ = files::unlink_beneath(from, &name);
        let _ = files::unlink_beneath(to, &name);
        let linked = copy::create_new_beneath(from, &name)
            .and_then(|_| copy::link_beneath((from, &name), (to, &name)));
        let _ = files::unlink_beneath(from, &name);
        let _ = files::unlink_beneath(to, &name);
        linked.is_ok()
    }

    /// Nothing may be in the way, and there must be room.
    fn look(&self) -> Result<(), RelocateError> {
        let Some(from) = &self.from.base else {
            return Ok(());
        };
        let to = self.to.base()?;
        let key = |base| files::stamp(base).map(|stamp| (stamp.device, stamp.inode));
        let (old, new) = (key(from), key(to));
        let (old, new) = (
            old.map_err(self.from.failed(Path::new("")))?,
            new.map_err(self.to.failed(Path::new("")))?,
        );
        if old == new {
            return Err(RelocateError::Same(self.from.folder.clone()));
        }
        if self.start != Start::Fresh {
            return Ok(());
        }
        for item in &self.items {
            let failed = self.to.failed(&item.to);
            if copy::exists_beneath(to, &item.to)
                .or_else(nothing_there)
                .map_err(failed)?
            {
                return Err(RelocateError::InTheWay(self.to.folder.join(&item.to)));
            }
        }
        if self.links {
            return Ok(());
        }
        let (_, needed_bytes) = self.sizes()?;
        let free = files::free_bytes(to).map_err(self.to.failed(Path::new("")))?;
        match needed_bytes > free {
            true => Err(RelocateError::NoRoom {
                folder: self.to.folder.clone(),
                needed_bytes,
                free_bytes: free,
            }),
            false => Ok(()),
        }
    }

    /// Bytes of the files, and what of them is on the disk.
    fn sizes(&self) -> Result<(u64, u64), RelocateError> {
        let (mut bytes, mut on_disk) = (0_u64, 0_u64);
        for item in self.items.iter().filter(|item| item.what != What::Link) {
            let there = self.from.stamp(&item.from);
            if let Some(there) = there.map_err(self.from.failed(&item.from))? {
                bytes = bytes.saturating_add(there.size_bytes);
                on_disk = on_disk.saturating_add(there.allocated_bytes.min(there.size_bytes));
            }
        }
        Ok((bytes, on_disk))
    }

    /// Puts every file in its new place. Durable when it returns.
    ///
    /// # Errors
    /// See [`RelocateError`]; what was copied by then is for [`Mover::discard`].
    pub fn copy(&mut self, progress: &MoveProgress) -> Result<(), RelocateError> {
        let (total_bytes, _) = self.sizes()?;
        progress.total_bytes.store(total_bytes, Ordering::Relaxed);
        progress.done_bytes.store(0, Ordering::Relaxed);
        if self.from.base.is_none() {
            return Ok(());
        }
        for at in 0..self.items.len() {
            self.place(at, progress)?;
        }
        self.sync_folders()
    }

    /// Puts one file or link in its new place.
    fn place(&mut self, at: usize, progress: &MoveProgress) -> Result<(), RelocateError> {
        let Some(item) = self.items.get(at) else {
            return Ok(());
        };
        let (from, to) = (self.from.base()?, self.to.base()?);
        let (at_old, at_new) = (self.from.failed(&item.from), self.to.failed(&item.to));
        if item.what == What::Link {
            self.place_link(item).map_err(at_new)?;
            return Ok(());
        }
        let Some(source) = self.from.stamp(&item.from).map_err(&at_old)? else {
            return Ok(());
        };
        let parent = item.to.parent().unwrap_or(Path::new(""));
        let there = match self.start {
            Start::Fresh => None,
            _ => self.to.stamp(&item.to).map_err(&at_new)?,
        };
        if let Some(there) = there {
            // By a name of its own a file is whole and synced: what looks the same is ours.
            if !is_copy(&source, &there) {
                return Err(RelocateError::InTheWay(self.to.folder.join(&item.to)));
            }
            if !progress.add(source.size_bytes) {
                return Err(RelocateError::Cancelled);
            }
        } else {
            files::mkdirs_beneath(to, parent).map_err(&at_new)?;
            let is_linked = self.links
                && !files::is_link_beneath(from, &item.from)
                && self.linked(from, to, item).map_err(&at_new)?;
            if is_linked {
                if !progress.add(source.size_bytes) {
                    return Err(RelocateError::Cancelled);
                }
            } else {
                self.copy_one(item, &source, progress)?;
            }
        }
        let target = self.to.stamp(&item.to).map_err(&at_new)?;
        let target = target.ok_or_else(|| RelocateError::Gone(self.to.folder.clone()))?;
        let item = self.items.get_mut(at);
        if let Some(item) = item {
            item.placed = Some(Placed { source, target });
        }
        Ok(())
    }

    /// Gives the file its second name; false where the file system knows none.
    fn linked(&self, from: &OwnedFd, to: &OwnedFd, item: &Item) -> io::Result<bool> {
        match copy::link_beneath((from, &item.from), (to, &item.to)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            // Other file systems, those without such names, files of others (protected_hardlinks).
            Err(_) => Ok(false),
        }
    }

    fn copy_one(
        &self,
        item: &Item,
        source: &files::FileStamp,
        progress: &MoveProgress,
    ) -> Result<(), RelocateError> {
        let (from, to) = (self.from.base()?, self.to.base()?);
        let (at_old, at_new) = (self.from.failed(&item.from), self.to.failed(&item.to));
        let temporary = self.temporary();
        found(files::unlink_beneath(to, &temporary)).map_err(&at_new)?;
        let read = files::open_beneath(from, &item.from, OpenMode::Read).map_err(&at_old)?;
        let write = copy::create_new_beneath(to, &temporary).map_err(&at_new)?;
        let copied = copy::copy(&read, &write, source.size_bytes, |bytes| {
            progress.add(bytes)
        });
        if !copied.map_err(&at_new)? {
            return Err(RelocateError::Cancelled);
        }
        let finished = copy::take_looks(&read, &write, source.mtime_ns)
            .and_then(|()| copy::sync(&write))
            .and_then(|()| copy::rename_new_beneath(to, &temporary, &item.to));
        finished.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => RelocateError::InTheWay(self.to.folder.join(&item.to)),
            _ => at_new(error),
        })
    }

    /// A file on its way; a killed move leaves one behind for the next.
    fn temporary(&self) -> PathBuf {
        PathBuf::from(format!(".gyre-moving-{}", self.info_hash))
    }

    fn place_link(&self, item: &Item) -> io::Result<()> {
        let (Some(from), Some(to)) = (&self.from.base, &self.to.base) else {
            return Ok(());
        };
        let What::Link = item.what else { return Ok(()) };
        let leads = self.to.layout.files().iter();
        let leads = leads
            .filter(|file| file.path == item.to)
            .find_map(|file| file.symlink.clone());
        let is_there = files::is_link_beneath(from, &item.from);
        let Some(leads) = leads.filter(|_| is_there && !files::is_link_beneath(to, &item.to))
        else {
            return Ok(());
        };
        files::mkdirs_beneath(to, item.to.parent().unwrap_or(Path::new("")))?;
        files::symlink_beneath(to, &leads, &item.to)
    }

    fn sync_folders(&self) -> Result<(), RelocateError> {
        let to = self.to.base()?;
        let placed = self.items.iter().filter(|item| item.placed.is_some());
        let mut folders: BTreeSet<&Path> = placed
            .flat_map(|item| item.to.ancestors().skip(1))
            .collect();
        folders.insert(Path::new(""));
        for folder in folders.into_iter().rev() {
            let synced = files::open_dir_beneath(to, folder).and_then(|dir| files::sync_dir(&dir));
            synced.map_err(self.to.failed(folder))?;
        }
        Ok(())
    }

    /// Behind the end of the run that used the old files: copies anew what changed since, and writes the resume record of
    /// the new place. The new folder may be committed then.
    ///
    /// # Errors
    /// See [`RelocateError`]. A record that cannot be carried over is none: the data is hashed then.
    pub fn settle(
        &mut self,
        state_dir: &Path,
        progress: &MoveProgress,
    ) -> Result<(), RelocateError> {
        if self.from.base.is_none() {
            return Ok(());
        }
        let mut is_changed = false;
        for at in 0..self.items.len() {
            let Some(item) = self.items.get(at).filter(|item| item.what != What::Link) else {
                continue;
            };
            let now = self.from.stamp(&item.from);
            let now = now.map_err(self.from.failed(&item.from))?;
            let is_same = match (&item.placed, &now) {
                (Some(placed), Some(now)) => {
                    is_one_file(&placed.target, now) || is_version(&placed.source, now)
                }
                (None, None) => true,
                _ => false,
            };
            if is_same {
                continue;
            }
            debug!(path = %item.from.display(), "copied anew");
            is_changed = true;
            if item.placed.is_some() {
                let gone = found(files::unlink_beneath(self.to.base()?, &item.to));
                gone.map_err(self.to.failed(&item.to))?;
            }
            if let Some(item) = self.items.get_mut(at) {
                item.placed = None;
            }
            self.place(at, progress)?;
        }
        if is_changed {
            self.sync_folders()?;
        }
        if let Err(error) = self.carry_record(state_dir) {
            debug!(%error, "the resume record is not carried over");
        }
        Ok(())
    }

    /// Writes what the old place's record says for the new place. Files that are not as recorded are not claimed.
    fn carry_record(&self, state_dir: &Path) -> io::Result<()> {
        let store = ResumeStore::open(state_dir)?;
        let path = |place: &Place| load::root_path(&place.folder, &place.layout);
        let loaded = store.load(self.info_hash, self.from.root_key(), &path(&self.from))?;
        let Loaded::Found(record) = loaded.loaded else {
            return Ok(());
        };
        let mut of_files = vec![None; record.files.len()];
        let mut of_parts = None;
        for item in &self.items {
            match item.what {
                What::File(index) => {
                    if let Some(of_file) = of_files.get_mut(index) {
                        *of_file = item.placed;
                    }
                }
                What::Parts => of_parts = item.placed,
                What::Link => {}
            }
        }
        let carry = |was: Option<FileStamp>, placed: Option<Placed>| {
            let was = was?;
            // A file that is gone is missing at the new place too, which the next start says.
            let Some(placed) = placed else {
                return Some(was);
            };
            let source = stamp_of(placed.source);
            let fits = match record.is_open {
                true => source.inode == was.inode && source.size_bytes >= was.size_bytes,
                false => source == was,
            };
            let size_bytes = match record.is_open {
                true => was.size_bytes,
                false => source.size_bytes,
            };
            fits.then_some(FileStamp {
                size_bytes,
                ..stamp_of(placed.target)
            })
        };
        let files = record.files.iter().zip(of_files);
        let carried = Record {
            root: self.to.root_key(),
            root_path: path(&self.to).as_os_str().as_bytes().to_vec(),
            files: files.map(|(was, placed)| carry(*was, placed)).collect(),
            parts: carry(record.parts, of_parts),
            ..(*record).clone()
        };
        store.save(&carried)
    }

    /// Takes the old files away behind the commit, with the folders that are empty then and the old record. Says what stays,
    /// and why.
    pub fn remove_old(&self, state_dir: &Path) -> Vec<String> {
        let mut kept = Vec::new();
        let Some(from) = &self.from.base else {
            return kept;
        };
        let (old_key, new_key) = (self.from.root_key(), self.to.root_key());
        let mut folders = BTreeSet::new();
        for item in &self.items {
            folders.extend(item.from.ancestors().skip(1).map(Path::to_path_buf));
            if item.what == What::Link {
                if files::is_link_beneath(from, &item.from) {
                    // One that cannot go keeps its folder, which says enough.
                    let _ = files::unlink_beneath(from, &item.from);
                }
                continue;
            }
            let gone = match self.is_moved(item) {
                Ok(None) => continue,
                Ok(Some(true)) => files::unlink_beneath(from, &item.from),
                Ok(Some(false)) => Err(io::Error::other("it is another file than was moved")),
                Err(error) => Err(error),
            };
            if let Err(error) = gone
                && kept.len() < KEPT_NAMED_MAX
            {
                let path = self.from.folder.join(&item.from);
                kept.push(format!("{} stays: {error}", path.display()));
            }
        }
        folders.remove(&PathBuf::new());
        for path in folders.iter().rev() {
            let _ = files::rmdir_beneath(from, path);
        }
        if old_key.is_some() && old_key != new_key {
            let removed = ResumeStore::open(state_dir)
                .and_then(|store| store.remove(self.info_hash, old_key));
            debug!(is_removed = removed.is_ok(), "record of the old place");
        }
        kept
    }

    /// Whether what is at the old place is what is at the new one; `None` when it is gone.
    fn is_moved(&self, item: &Item) -> io::Result<Option<bool>> {
        let Some(old) = self.from.stamp(&item.from)? else {
            return Ok(None);
        };
        let Some(new) = self.to.stamp(&item.to)? else {
            return Ok(Some(false));
        };
        // The torrent may have fetched more since.
        let is_later = new.mtime_ns.saturating_add(MTIME_COARSE_NS) >= old.mtime_ns;
        let is_moved = match &item.placed {
            _ if is_one_file(&old, &new) => true,
            Some(placed) => is_version(&placed.source, &old),
            None => new.size_bytes >= old.size_bytes && is_later,
        };
        Ok(Some(is_moved))
    }

    /// Takes away what this move put at the new place.
    pub fn discard(&self) {
        let Some(to) = &self.to.base else { return };
        let mut folders = BTreeSet::new();
        for item in &self.items {
            folders.extend(item.to.ancestors().skip(1).map(Path::to_path_buf));
            let is_ours = match (&item.placed, item.what) {
                (_, What::Link) => files::is_link_beneath(to, &item.to),
                (Some(placed), _) => self
                    .to
                    .stamp(&item.to)
                    .is_ok_and(|now| now.is_some_and(|now| is_version(&placed.target, &now))),
                (None, _) if self.start != Start::Resumed => false,
                (None, _) => match (self.from.stamp(&item.from), self.to.stamp(&item.to)) {
                    (Ok(Some(old)), Ok(Some(new))) => is_copy(&old, &new),
                    _ => false,
                },
            };
            if is_ours {
                // What stays is found by nobody but the user, who has it twice.
                let _ = files::unlink_beneath(to, &item.to);
            }
        }
        let _ = files::unlink_beneath(to, &self.temporary());
        folders.remove(&PathBuf::new());
        for path in folders.iter().rev() {
            let _ = files::rmdir_beneath(to, path);
        }
        self.remove_made();
    }

    fn remove_made(&self) {
        for folder in self.made.iter().rev() {
            // One with something in it stays.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

fn items(info_hash: InfoHash, from: &FileLayout, to: &FileLayout) -> Vec<Item> {
    let pairs = from.files().iter().zip(to.files()).enumerate();
    let files = pairs.filter_map(|(index, (old, new))| {
        let what = match (old.is_regular(), old.symlink.is_some()) {
            (true, _) => What::File(index),
            (false, true) => What::Link,
            (false, false) => return None,
        };
        Some((what, old.path.clone(), new.path.clone()))
    });
    let parts = [from, to].map(|layout| PartsMap::new(layout, info_hash));
    let has_parts = parts.iter().all(|parts| !parts.is_empty());
    let [old, new] = parts.map(|parts| parts.path().clone());
    let parts = has_parts.then_some((What::Parts, old, new));
    let all = files.chain(parts);
    all.map(|(what, from, to)| Item {
        what,
        from,
        to,
        placed: None,
    })
    .collect()
}

/// Something else than a folder on the way there: nothing of ours can be behind it.
fn nothing_there(error: io::Error) -> io::Result<bool> {
    match error.kind() {
        io::ErrorKind::NotADirectory => Ok(true),
        _ => Err(error),
    }
}

fn is_one_file(one: &files::FileStamp, other: &files::FileStamp) -> bool {
    (one.device, one.inode) == (other.device, other.inode)
}

/// The same file with the same content; a second name is no change.
fn is_version(one: &files::FileStamp, other: &files::FileStamp) -> bool {
    let version = |stamp: &files::FileStamp| (stamp.size_bytes, stamp.mtime_ns);
    is_one_file(one, other) && version(one) == version(other)
}

/// Whether `copy` looks as a copy of `source` does.
fn is_copy(source: &files::FileStamp, copy: &files::FileStamp) -> bool {
    let apart = source.mtime_ns.saturating_sub(copy.mtime_ns);
    is_one_file(source, copy)
        || (source.size_bytes == copy.size_bytes && apart.saturating_abs() < MTIME_COARSE_NS)
}
