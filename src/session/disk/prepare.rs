//! What a torrent needs on disk before its first byte: space, folders, links, files. All of it blocks. Layer 5.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use super::{DiskConfig, DiskError, DiskOp, Home, Preallocate, Stamps, is_parts_file};
use crate::session::resume_store::{found, stamp_of};
use crate::storage::layout::LayoutFile;
use crate::storage::parts::Export;
use crate::uring::files::{self, FileStamp, FsKind, OpenMode};

/// Bytes copied at once out of the parts file.
const COPY_BYTES: usize = 1 << 18;

/// What [`super::DiskTorrent`] starts from.
pub(super) struct Prepared {
    pub base: OwnedFd,
    pub device: u64,
    pub kind: FsKind,
    pub homes: Vec<Home>,
    pub stamps: Stamps,
    /// Folders with new entries, relative to the output folder.
    pub new_entries_in: BTreeSet<PathBuf>,
    /// Space was to be reserved, and the file system knows no way to: the files have their lengths as holes.
    pub cannot_reserve: bool,
}

/// `files_done` counts the files that are ready as it goes.
pub(super) fn prepare(config: &DiskConfig, files_done: &AtomicU64) -> Result<Prepared, DiskError> {
    let fail = |op| move |error: io::Error| DiskError::new(op, &config.output, &error);
    if config.is_writer {
        files::make_folder(&config.output).map_err(fail(DiskOp::Create))?;
    }
    let base = files::open_root(&config.output).map_err(fail(DiskOp::Open))?;
    let mut work = Work {
        config,
        base,
        new_entries_in: BTreeSet::new(),
        cannot_reserve: Cell::new(false),
        made_by_link: false,
        moving_name: OsString::new(),
        last_folder: None,
    };
    let mut found = work.look()?;
    let homes = work.homes(&found);
    if config.is_writer {
        if !config.are_names_synced {
            work.note_found(&found);
        }
        work.check_space(&found)?;
        work.make_all(&mut found, files_done)?;
        if work.made_by_link {
            found = work.look()?;
        }
        work.check_apart(&found, &homes)?;
        if !work.needs_parts(&homes) {
            work.drop_parts()?;
        }
    }
    let parts = match work.stamp(config.parts.path()) {
        Err(_) if !config.is_writer => None,
        stamp => stamp?.map(stamp_of),
    };
    // The root may be another file system than the folder it lies in.
    let root = config.layout.root_name();
    let (device, kind) = files::place_beneath(&work.base, root)
        .or_else(|_| files::place(&work.base))
        .map_err(fail(DiskOp::Stat))?;
    let files = found.iter().map(|stamp| stamp.map(stamp_of)).collect();
    Ok(Prepared {
        base: work.base,
        device,
        kind,
        homes,
        stamps: Stamps { files, parts },
        new_entries_in: work.new_entries_in,
        cannot_reserve: work.cannot_reserve.get(),
    })
}

struct Work<'a> {
    config: &'a DiskConfig,
    base: OwnedFd,
    new_entries_in: BTreeSet<PathBuf>,
    /// The file system knows no way to reserve space.
    cannot_reserve: Cell<bool>,
    /// A link to nothing was followed: another file of the torrent may be there now.
    made_by_link: bool,
    /// Empty until it is needed.
    moving_name: OsString,
    /// Known to be there: most files lie in the folder of the one before.
    last_folder: Option<PathBuf>,
}

impl Work<'_> {
    fn error(&self, op: DiskOp, path: &Path, error: &io::Error) -> DiskError {
        DiskError::new(op, self.config.output.join(path), error)
    }

    fn stamp(&self, path: &Path) -> Result<Option<FileStamp>, DiskError> {
        found(files::file_stamp_beneath(&self.base, path))
            .map_err(|error| self.error(DiskOp::Stat, path, &error))
    }

    fn is_selected(&self, file: usize) -> bool {
        self.config.selected.get(file).copied().unwrap_or(true)
    }

    fn layout_files(&self) -> impl Iterator<Item = (usize, &LayoutFile)> {
        self.config.layout.files().iter().enumerate()
    }

    /// The files there are. What cannot be used counts as none where nothing will be written.
    fn look(&self) -> Result<Vec<Option<FileStamp>>, DiskError> {
        let look = |(index, file): (usize, &LayoutFile)| match self.stamp(&file.path) {
            _ if !file.is_regular() => Ok(None),
            Err(_) if !self.config.is_writer || !self.is_selected(index) => Ok(None),
            stamp => stamp,
        };
        self.layout_files().map(look).collect()
    }

    /// An unselected file that is there already stays in use; else its bytes go to the parts file.
    fn homes(&self, found: &[Option<FileStamp>]) -> Vec<Home> {
        let home = |((index, file), stamp): ((usize, &LayoutFile), &Option<FileStamp>)| {
            if !file.is_regular() {
                Home::Zeros
            } else if self.is_selected(index) || stamp.is_some() {
                Home::File
            } else {
                Home::Parts
            }
        };
        self.layout_files().zip(found).map(home).collect()
    }

    /// Space for all selected files, less what they occupy already.
    fn check_space(&self, found: &[Option<FileStamp>]) -> Result<(), DiskError> {
        let needed: u64 = self
            .layout_files()
            .zip(found)
            .filter(|((index, file), _)| file.is_regular() && self.is_selected(*index))
            .map(|((_, file), stamp)| {
                let there = stamp.map_or(0, |stamp| stamp.allocated_bytes);
                file.length_bytes.saturating_sub(there)
            })
            .fold(0, u64::saturating_add);
        let free = files::free_bytes(&self.base)
            .map_err(|error| self.error(DiskOp::Stat, Path::new(""), &error))?;
        if needed <= free {
            return Ok(());
        }
        let message = format!(
            "{} are needed and {} are free: {} are missing",
            readable(needed),
            readable(free),
            readable(needed - free)
        );
        Err(DiskError::other(
            DiskOp::Fit,
            &self.config.output,
            io::ErrorKind::StorageFull,
            message,
        ))
    }

    /// Two files of the torrent that links on disk make one would overwrite each other (HOSTILE.md T10).
    fn check_apart(&self, found: &[Option<FileStamp>], homes: &[Home]) -> Result<(), DiskError> {
        let mut seen = BTreeMap::new();
        let parts = self.config.parts.path();
        if homes.contains(&Home::Parts)
            && let Some(stamp) = self.stamp(parts)?
        {
            seen.insert((stamp.device, stamp.inode), parts);
        }
        for ((_, file), stamp) in self.layout_files().zip(found) {
            let Some(stamp) = stamp.filter(|_| file.length_bytes > 0) else {
                continue;
            };
            if let Some(other) = seen.insert((stamp.device, stamp.inode), &file.path) {
                let message = format!("it is one file with {}", other.display());
                let kind = io::ErrorKind::TooManyLinks;
                return Err(DiskError::other(
                    DiskOp::Open,
                    self.config.output.join(&file.path),
                    kind,
                    message,
                ));
            }
        }
        Ok(())
    }

    fn make_all(
        &mut self,
        found: &mut [Option<FileStamp>],
        files_done: &AtomicU64,
    ) -> Result<(), DiskError> {
        let layout = self.config.layout.clone();
        for (index, file) in layout.files().iter().enumerate() {
            files_done.store(index as u64, Ordering::Relaxed);
            if !self.is_selected(index) || (file.is_pad && file.symlink.is_none()) {
                continue;
            }
            self.make_parents(&file.path)?;
            if let Some(target) = &file.symlink {
                self.make_link(&file.path, target)?;
                continue;
            }
            let is_new = found.get(index).is_some_and(Option::is_none);
            let exports = if is_new {
                self.exports(index)?
            } else {
                Vec::new()
            };
            // A link to nothing: only what it makes tells whether it leads to another file of the torrent.
            let is_link = is_new && files::is_link_beneath(&self.base, &file.path);
            self.made_by_link |= is_link;
            let is_now = file.length_bytes == 0 || !exports.is_empty() || is_link;
            if !is_now && self.config.preallocate == Preallocate::None {
                continue;
            }
            let made_as = match exports.is_empty() || is_link {
                true => file.path.clone(),
                false => self.moving_name(&file.path),
            };
            let made = self
                .make_file(file, &made_as, is_new)
                .and_then(|fd| self.run_exports(&made_as, &fd, &exports).map(|()| fd))
                .and_then(|fd| self.take_name(&made_as, &file.path).map(|()| fd));
            if made.is_err() && is_new && !is_link {
                // The next try is to find it as this one did: what it takes over is not all there.
                let _ = files::unlink_beneath(&self.base, &made_as);
            }
            let fd = made?;
            let stamp = files::stamp(&fd).map_err(|e| self.error(DiskOp::Stat, &file.path, &e))?;
            if let Some(place) = found.get_mut(index) {
                *place = Some(stamp);
            }
        }
        Ok(())
    }

    fn make_parents(&mut self, path: &Path) -> Result<(), DiskError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.last_folder.as_deref() == Some(parent) {
            return Ok(());
        }
        let made = files::mkdirs_beneath(&self.base, parent)
            .map_err(|error| self.error(DiskOp::Create, parent, &error))?;
        for folder in made {
            let above = folder.parent().unwrap_or(Path::new(""));
            self.new_entries_in.insert(above.to_owned());
        }
        self.last_folder = Some(parent.to_owned());
        Ok(())
    }

    fn make_link(&mut self, path: &Path, target: &Path) -> Result<(), DiskError> {
        match files::symlink_beneath(&self.base, target, path) {
            Ok(()) => {
                self.note_entry(path);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(self.error(DiskOp::Create, path, &error)),
        }
    }

    /// What a file is called while bytes from the parts file move into it: under its own name they would count as moved,
    /// and a kill or a power cut may come in between. Nothing of the torrent has this name.
    fn moving_name(&mut self, path: &Path) -> PathBuf {
        if self.moving_name.is_empty() {
            let files = self.config.layout.files().iter();
            let taken: BTreeSet<&OsStr> = files.flat_map(|file| file.path.iter()).collect();
            let parts = self.config.parts.path().file_name().unwrap_or_default();
            let mut name = parts.to_owned();
            while taken.contains(name.as_os_str()) || name == parts {
                name.push(".moving");
            }
            self.moving_name = name;
        }
        path.with_file_name(&self.moving_name)
    }

    fn take_name(&self, made_as: &Path, path: &Path) -> Result<(), DiskError> {
        if made_as == path {
            return Ok(());
        }
        files::rename_beneath(&self.base, made_as, path)
            .map_err(|error| self.error(DiskOp::Create, path, &error))
    }

    /// Opens the file, new or not, with its length or blocks as asked for. A longer file keeps its length.
    fn make_file(
        &mut self,
        file: &LayoutFile,
        made_as: &Path,
        is_new: bool,
    ) -> Result<OwnedFd, DiskError> {
        let fd = files::open_beneath(&self.base, made_as, OpenMode::Create)
            .map_err(|error| self.error(DiskOp::Create, &file.path, &error))?;
        if is_new {
            self.note_entry(&file.path);
        }
        let allocate = || -> io::Result<()> {
            if file.length_bytes == 0 {
                return Ok(());
            }
            let stamp = files::stamp(&fd)?;
            let length = stamp.size_bytes;
            if stamp.links > 1 {
                // Others have it too: whoever writes it gets a copy first.
                return Ok(());
            }
            if self.config.preallocate == Preallocate::Full {
                let bytes = i64::try_from(file.length_bytes).map_err(io::Error::other)?;
                match fallocate(&fd, FallocateFlags::empty(), 0, bytes) {
                    Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.cannot_reserve.set(true),
                    reserved => return Ok(reserved?),
                }
            }
            if length < file.length_bytes && self.config.preallocate != Preallocate::None {
                files::set_len(&fd, file.length_bytes)?;
            }
            Ok(())
        };
        allocate().map_err(|error| self.error(DiskOp::Allocate, &file.path, &error))?;
        Ok(fd)
    }

    /// The names of what is there already count as new: whoever made them (the lock, or a run that was killed) may not
    /// have synced them, and a record must not claim what a power cut can take (HOSTILE.md L8).
    fn note_found(&mut self, found: &[Option<FileStamp>]) {
        self.new_entries_in.insert(PathBuf::new());
        let layout = self.config.layout.clone();
        let mut last = None;
        for (file, _) in layout
            .files()
            .iter()
            .zip(found)
            .filter(|(_, found)| found.is_some())
        {
            let folder = file.path.parent();
            if folder != last {
                let above = folder.into_iter().flat_map(Path::ancestors);
                self.new_entries_in.extend(above.map(Path::to_owned));
                last = folder;
            }
        }
    }

    fn note_entry(&mut self, path: &Path) {
        let parent = path.parent().unwrap_or(Path::new(""));
        self.new_entries_in.insert(parent.to_owned());
    }

    /// What the parts file holds of a file that is not there; ranges never written are left out.
    fn exports(&self, file: usize) -> Result<Vec<Export>, DiskError> {
        let parts = &self.config.parts;
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let Some(fd) = self.open_parts()? else {
            return Ok(Vec::new());
        };
        let is_written = |export: &Export| {
            let start = i64::try_from(export.parts_offset).unwrap_or(i64::MAX);
            let end = export.parts_offset + export.length_bytes;
            lseek(&fd, start, Whence::SeekData)
                .is_ok_and(|data| u64::try_from(data).is_ok_and(|data| data < end))
        };
        let mut exports = parts.plan_exports(&self.config.layout, file);
        exports.retain(is_written);
        Ok(exports)
    }

    /// True while bytes of some file lie, or will lie, in the parts file.
    fn needs_parts(&self, homes: &[Home]) -> bool {
        let (parts, layout) = (&self.config.parts, &self.config.layout);
        let mut homes = homes.iter().enumerate();
        homes.any(|(file, home)| {
            *home == Home::Parts && !parts.plan_exports(layout, file).is_empty()
        })
    }

    /// Nothing in it is needed any more: what it held has been copied out and synced.
    fn drop_parts(&self) -> Result<(), DiskError> {
        let path = self.config.parts.path();
        // Another torrent's, or none of ours: not to be touched.
        let is_ours = || self.open_parts().is_ok();
        if self.config.parts.is_empty() || self.stamp(path)?.is_none() || !is_ours() {
            return Ok(());
        }
        // The names of the files that hold it now must not go with it.
        for folder in &self.new_entries_in {
            files::open_dir_beneath(&self.base, folder)
                .and_then(|fd| files::sync_dir(&fd))
                .map_err(|error| self.error(DiskOp::Sync, folder, &error))?;
        }
        files::unlink_beneath(&self.base, path)
            .map_err(|error| self.error(DiskOp::Write, path, &error))
    }

    /// `None` when there is none, or a power cut left one whose first bytes had not reached the disk.
    fn open_parts(&self) -> Result<Option<fs::File>, DiskError> {
        let path = self.config.parts.path();
        let fd = found(files::open_beneath(&self.base, path, OpenMode::Read))
            .map_err(|error| self.error(DiskOp::Open, path, &error))?;
        let Some(file) = fd.map(fs::File::from) else {
            return Ok(None);
        };
        let is_there = is_parts_file(&file, &self.config.parts)
            .map_err(|error| self.error(DiskOp::Open, path, &error))?;
        Ok(is_there.then_some(file))
    }

    /// Copies, and syncs: the resume record already counts on these bytes.
    fn run_exports(&self, path: &Path, fd: &OwnedFd, exports: &[Export]) -> Result<(), DiskError> {
        if exports.is_empty() {
            return Ok(());
        }
        let Some(parts) = self.open_parts()? else {
            return Ok(());
        };
        let copy = || -> io::Result<()> {
            let into = fs::File::from(fd.try_clone()?);
            let mut buffer = vec![0; COPY_BYTES];
            for export in exports {
                copy_range(&parts, &into, export, &mut buffer)?;
            }
            into.sync_data()
        };
        copy().map_err(|error| self.error(DiskOp::Write, path, &error))
    }
}

/// Stops at the end of the parts file.
fn copy_range(
    from: &fs::File,
    into: &fs::File,
    export: &Export,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut done = 0;
    while done < export.length_bytes {
        let left = usize::try_from(export.length_bytes - done).unwrap_or(buffer.len());
        let step = left.min(buffer.len());
        let got = from.read_at(&mut buffer[..step], export.parts_offset + done)?;
        if got == 0 {
            return Ok(());
        }
        into.write_all_at(&buffer[..got], export.file_offset + done)?;
        done += got as u64;
    }
    Ok(())
}

/// Bytes for people.
fn readable(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = UNITS.iter().find(|(size, _)| bytes >= *size);
    match unit {
        Some((size, name)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*size);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}
