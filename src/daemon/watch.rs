//! Watched folders: .torrent files and links put there are added. Layer 6.
//!
//! The kernel tells of files that were closed or moved in (inotify); a sweep finds those from before, and whatever the
//! kernel could not tell (network file systems, too many watches). What was added is called NAME.added then, what cannot
//! be used NAME.invalid with a line in the log, so that nothing is looked at twice (HOSTILE.md L16).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tracing::{info, warn};

use super::handle::{AddSource, AddTorrent, Control, ControlError};
use super::relocate::off_thread;
use crate::uring::copy;
use crate::uring::files::{self, FileStamp, OpenMode};
use crate::wire::metainfo::TORRENT_BYTES_MAX;

/// Folders that are watched.
pub const WATCHED_MAX: usize = 64;
/// Files of one folder that one sweep looks at; the next one sees more.
const SWEPT_MAX: usize = 1_024;
/// Files that the kernel told of and nobody has looked at yet.
const TOLD_MAX: usize = 1_024;
/// Between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// A file that a sweep finds is left alone until it was still from one sweep to another: somebody may be writing it.
const STILL_AFTER: Duration = Duration::from_secs(2);
/// And until then it may be a part of one.
const WHOLE_AFTER: Duration = Duration::from_secs(60);
/// The longest link that is read.
const LINK_BYTES_MAX: u64 = 64 << 10;
/// Names tried for a file that was looked at.
const NAMES_MAX: u32 = 100;

/// A folder to watch, and what becomes of torrents found in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchFolder {
    pub folder: PathBuf,
    /// Folder for their data; `None` is the daemon's own.
    pub to: Option<PathBuf>,
    pub labels: Vec<String>,
    /// False waits to be started.
    pub starts: bool,
}

/// What to do with a file that was looked at.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Call it so from now on.
    Mark(&'static str),
    /// Look again later.
    Leave,
}

/// How files that sweeps found looked, and since when they have.
type Seen = BTreeMap<OsString, (Option<FileStamp>, Instant)>;

/// Watches until the daemon ends.
pub async fn watch(control: Control, folders: Vec<WatchFolder>) {
    if folders.is_empty() {
        return std::future::pending().await;
    }
    let (sender, mut told) = mpsc::channel(TOLD_MAX);
    let kernel = listen(sender)
        .inspect_err(|error| warn!(%error, "watched folders are only swept"))
        .ok();
    let mut watches: Vec<Option<WatchDescriptor>> = vec![None; folders.len()];
    let mut unseen = BTreeSet::new();
    let mut seen = vec![Seen::new(); folders.len()];
    let mut sweeps = tokio::time::interval(SWEEP_INTERVAL);
    sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = sweeps.tick() => for (at, folder) in folders.iter().enumerate() {
                if let (Some(kernel), Some(watch)) = (&kernel, watches.get_mut(at)) {
                    // The same folder keeps its watch, one that was made anew gets one.
                    *watch = begin(kernel, folder, &mut unseen);
                }
                if let Some(seen) = seen.get_mut(at) {
                    sweep(&control, folder, seen).await;
                }
            },
            Some((watch, name)) = told.recv() => {
                let at = watches.iter().position(|one| *one == Some(watch));
                if let Some(folder) = at.and_then(|at| folders.get(at)) {
                    take(&control, folder, &name, None).await;
                }
            }
        }
    }
}

/// Has a thread hand on what the kernel tells. Nobody can end it but by an event, and nobody waits for it.
fn listen(told: mpsc::Sender<(WatchDescriptor, OsString)>) -> io::Result<Arc<Inotify>> {
    let kernel = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC)?);
    let heard = kernel.clone();
    let thread = std::thread::Builder::new().name("gyre-watch".into());
    thread.spawn(move || {
        while let Ok(events) = heard.read_events() {
            for event in events {
                let Some(name) = event.name.filter(|name| is_asked_for(name)) else {
                    continue;
                };
                match told.try_send((event.wd, name)) {
                    Err(TrySendError::Closed(_)) => return,
                    // What is too much now is found by the next sweep.
                    Ok(()) | Err(TrySendError::Full(_)) => {}
                }
            }
        }
    })?;
    Ok(kernel)
}

fn begin(
    kernel: &Inotify,
    folder: &WatchFolder,
    unseen: &mut BTreeSet<PathBuf>,
) -> Option<WatchDescriptor> {
    let flags =
        AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
    let watch = kernel.add_watch(&folder.folder, flags);
    let path = &folder.folder;
    match &watch {
        Ok(_) => {
            unseen.remove(path);
        }
        // Told once, then looked at with every sweep.
        Err(error) if unseen.insert(path.clone()) => {
            warn!(folder = ?path, %error, "the kernel does not watch it; it is swept");
        }
        Err(_) => {}
    }
    watch.ok()
}

async fn sweep(control: &Control, folder: &WatchFolder, seen: &mut Seen) {
    let path = folder.folder.clone();
    let found = off_thread(move || {
        let root = files::open_root(&path).ok();
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name());
        let names = names.filter(|name| is_asked_for(name)).take(SWEPT_MAX);
        let mut found: Vec<(OsString, Option<FileStamp>)> = names
            .map(|name| {
                let stamp = |root| files::stamp_beneath(root, Path::new(&name)).ok();
                let stamp = root.as_ref().and_then(stamp);
                (name, stamp)
            })
            .collect();
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found
    });
    let found = found.await.unwrap_or_default();
    let now = Instant::now();
    // What is gone, or has another name now, is forgotten.
    let before = std::mem::take(seen);
    for (name, stamp) in found {
        let since = match before.get(&name) {
            Some((was, since)) if *was == stamp => *since,
            _ => now,
        };
        seen.insert(name.clone(), (stamp, since));
        let still = now.duration_since(since);
        if still >= STILL_AFTER {
            take(control, folder, &name, Some(still)).await;
        }
    }
}

fn is_asked_for(name: &OsStr) -> bool {
    let has = |end: &[u8]| {
        let name = name.as_bytes();
        let start = name.len().checked_sub(end.len()).filter(|at| *at > 0);
        start.is_some_and(|at| {
            name.get(at..)
                .is_some_and(|is| is.eq_ignore_ascii_case(end))
        })
    };
    has(b".torrent") || has(b".magnet")
}

/// Adds what a file holds, and marks the file. It was `still` for so long, or whoever wrote it has closed it.
async fn take(control: &Control, folder: &WatchFolder, name: &OsStr, still: Option<Duration>) {
    let (path, file) = (folder.folder.clone(), PathBuf::from(name));
    let read = off_thread(move || read(&path, &file));
    let source = match read.await {
        Some(Ok(read)) => read,
        // Gone, or not to be read now.
        Some(Err(Unread::Later)) | None => return,
        Some(Err(Unread::Never(why))) => {
            warn!(folder = ?folder.folder, file = ?name, why, "not a torrent");
            return mark(folder, name, "invalid").await;
        }
    };
    let added = control.add(AddTorrent {
        source,
        folder: folder.to.clone(),
        starts: folder.starts,
        fetches: true,
        labels: folder.labels.clone(),
        selected_files: None,
    });
    let end = match added.await {
        Ok(info_hash) => {
            info!(folder = ?folder.folder, file = ?name, %info_hash, "added");
            End::Mark("added")
        }
        Err(error) => {
            let end = end_of(&error, still.is_none_or(|still| still >= WHOLE_AFTER));
            if end != End::Leave {
                warn!(folder = ?folder.folder, file = ?name, %error, "not added");
            }
            end
        }
    };
    if let End::Mark(mark_as) = end {
        mark(folder, name, mark_as).await;
    }
}

fn end_of(error: &ControlError, is_whole: bool) -> End {
    match error {
        ControlError::Duplicate(_) => End::Mark("added"),
        ControlError::BadTorrent(_) | ControlError::BadMagnet(_) | ControlError::BadValue(_)
            if is_whole =>
        {
            End::Mark("invalid")
        }
        _ => End::Leave,
    }
}

enum Unread {
    Later,
    Never(&'static str),
}

/// What the file holds.
fn read(folder: &Path, name: &Path) -> Result<AddSource, Unread> {
    let later = |_| Unread::Later;
    let root = files::open_root(folder).map_err(later)?;
    if files::is_link_beneath(&root, name) {
        return Err(Unread::Never("it is a symbolic link"));
    }
    let opened = files::open_beneath(&root, name, OpenMode::Read);
    let file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => Unread::Never("it is no regular file"),
        _ => Unread::Later,
    })?;
    let file = std::fs::File::from(file);
    let looks = file.metadata().map_err(later)?;
    let is_link = !name
        .as_os_str()
        .as_bytes()
        .to_ascii_lowercase()
        .ends_with(b".torrent");
    let bytes_max = match is_link {
        true => LINK_BYTES_MAX,
        false => TORRENT_BYTES_MAX as u64,
    };
    if looks.len() > bytes_max {
        return Err(Unread::Never("it is too long"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max)
        .read_to_end(&mut bytes)
        .map_err(later)?;
    Ok(match is_link {
        false => AddSource::Torrent(bytes),
        true => AddSource::Magnet(String::from_utf8_lossy(&bytes).trim().to_owned()),
    })
}

/// Gives the file a name that says what became of it; nothing that is there is replaced.
async fn mark(folder: &WatchFolder, name: &OsStr, what: &'static str) {
    let (path, old) = (folder.folder.clone(), PathBuf::from(name));
    let marked = off_thread(move || {
        let root = files::open_root(&path)?;
        let mut last = io::ErrorKind::AlreadyExists.into();
        for number in 1..=NAMES_MAX {
            let mut new = old.clone().into_os_string();
            new.push(match number {
                1 => format!(".{what}"),
                number => format!(".{what}-{number}"),
            });
            match copy::rename_new_beneath(&root, &old, Path::new(&new)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
                done => return done,
            }
        }
        Err(last)
    });
    if let Some(Err(error)) = marked.await {
        warn!(folder = ?folder.folder, file = ?name, %error, "it cannot be renamed and is looked at again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_torrents_and_links_are_looked_at_and_each_once() {
        for good in ["a.torrent", "b.MAGNET", "c.d.torrent"] {
            assert!(is_asked_for(OsStr::new(good)), "{good}");
        }
        for other in [".torrent", "a.torrent.added", "b.magnet.invalid", "c", ""] {
            assert!(!is_asked_for(OsStr::new(other)), "{other}");
        }
    }

    #[test]
    fn what_may_be_half_written_or_could_not_be_kept_is_looked_at_again() {
        let bad = ControlError::BadMagnet("no link".into());
        assert_eq!(end_of(&bad, true), End::Mark("invalid"));
        assert_eq!(end_of(&bad, false), End::Leave);
        let not_kept = ControlError::NotKept("full".into());
        assert_eq!(end_of(&not_kept, true), End::Leave);
    }
}
