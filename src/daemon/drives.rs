//! Disks that go away and come back under the folders of torrents. Layer 6.
//!
//! A look now and then, one system call a folder however many torrents lie in it, and one a torrent when names in the folder
//! changed. Where a folder is another one than it was
//! (unmounted, mounted, gone, made again), its torrents begin anew: those whose files are there go on, the others say
//! that their files are missing, and nothing is made in their place (`session::load`, HOSTILE.md L15).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::handle::{Control, Listed};
use super::relocate::off_thread;
use super::row::TorrentRow;
use crate::base::InfoHash;
use crate::session::Command;
use crate::session::command::Activity;
use crate::storage::safe_path::safe_name;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// Folders that are looked at; torrents usually lie in a few.
const FOLDERS_MAX: usize = 16_384;

/// How a folder looks: which one it is, and when a name in it last changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

/// Torrents in one folder that a change of it concerns.
#[derive(Default)]
struct Residents {
    /// Running or asleep with some data.
    alive: Vec<InfoHash>,
    /// Those of these whose roots have names that are known.
    rooted: Vec<Arc<TorrentRow>>,
    /// Ended by a failure with some data.
    failed: Vec<InfoHash>,
}

/// Looks until the daemon ends.
pub async fn watch(control: Control) {
    let mut known: BTreeMap<PathBuf, Option<Look>> = BTreeMap::new();
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (torrents, before) = (control.clone(), known.clone());
        // A mount that hangs holds this thread and the look, and nobody else.
        let looked = off_thread(move || {
            let mut folders = residents(&torrents.torrents());
            let mut now = BTreeMap::new();
            for (folder, residents) in &mut folders {
                let look = look(folder);
                // Names in it may be gone: only then each is looked at.
                if before.get(folder) == Some(&look) {
                    residents.rooted.clear();
                }
                let root = |row: &TorrentRow| row.folder.join(safe_name(&row.name));
                let is_gone = |row: &TorrentRow| std::fs::symlink_metadata(root(row)).is_err();
                residents.rooted.retain(|row| is_gone(row));
                now.insert(folder.clone(), look);
            }
            (folders, now)
        });
        let Some((residents, now)) = looked.await else {
            continue;
        };
        for (folder, look) in &now {
            let Some(residents) = residents.get(folder) else {
                continue;
            };
            let gone: Vec<InfoHash> = residents.rooted.iter().map(|row| row.info_hash).collect();
            begin_anew(&control, &gone).await;
            match known.get(folder) {
                Some(before) => on_change(&control, folder, residents, *before, *look).await,
                // A failure may have been of the moment before.
                None if look.is_some() => begin(&control, &residents.failed).await,
                // Gone before the first look.
                None => begin_anew(&control, &residents.alive).await,
            }
        }
        known = now;
    }
}

fn look(folder: &Path) -> Option<Look> {
    let look = std::fs::metadata(folder)
        .ok()
        .filter(|look| look.is_dir())?;
    Some(Look {
        device: look.dev(),
        inode: look.ino(),
        changed: (look.mtime(), look.mtime_nsec()),
    })
}

fn residents(listed: &[Listed]) -> BTreeMap<PathBuf, Residents> {
    let mut folders: BTreeMap<PathBuf, Residents> = BTreeMap::new();
    for one in listed {
        let row = &one.row;
        let Some(shown) = one.shown.as_ref().filter(|_| row.expects_data()) else {
            continue;
        };
        let is_full = folders.len() >= FOLDERS_MAX;
        let residents = match folders.get_mut(&row.folder) {
            Some(residents) => residents,
            None if is_full => continue,
            None => folders.entry(row.folder.clone()).or_default(),
        };
        match shown.activity {
            activity if activity.is_up() => {
                residents.alive.push(row.info_hash);
                // What is only seeded may lie in a folder of any name.
                if row.fetches {
                    residents.rooted.push(row.clone());
                }
            }
            Activity::Failed if row.is_wanted => residents.failed.push(row.info_hash),
            _ => {}
        }
    }
    folders
}

async fn on_change(
    control: &Control,
    folder: &Path,
    residents: &Residents,
    before: Option<Look>,
    now: Option<Look>,
) {
    if before == now {
        return;
    }
    let which = |look: Option<Look>| look.map(|look| (look.device, look.inode));
    if which(before) != which(now) {
        let (is_there, torrents) = (now.is_some(), residents.alive.len());
        info!(folder = %folder.display(), is_there, torrents, "another folder than before");
        begin_anew(control, &residents.alive).await;
    }
    if now.is_some() {
        begin(control, &residents.failed).await;
    }
}

/// Has torrents that run or sleep look at their files.
async fn begin_anew(control: &Control, alive: &[InfoHash]) {
    for info_hash in alive.iter().copied() {
        let asked = control
            .inner
            .session
            .ask(|reply| Command::BeginAnew { info_hash, reply });
        // It may be gone by now.
        let _ = asked.await;
    }
}

/// Has torrents that failed try again.
async fn begin(control: &Control, failed: &[InfoHash]) {
    for info_hash in failed.iter().copied() {
        if control.inner.moves.holds(&info_hash) {
            continue;
        }
        // Gone by now, or wanted no more: then there is nothing to try.
        let Ok(row) = control.row(info_hash) else {
            continue;
        };
        if control.has_queue() {
            let _ = control.let_run(info_hash, row.settings.skips_queue).await;
            continue;
        }
        let asked = control
            .inner
            .session
            .ask(|reply| Command::Start { info_hash, reply });
        let _ = asked.await;
    }
}
