//! The handle by which a daemon is controlled: every protocol and page speaks to this and to nothing else. Layer 6.
//!
//! What changes something is answered once it is on disk: an answer that was given outlives a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::warn;

use super::date::unix_now_s;
use super::kept::Kept;
use super::lived::Lived;
use super::queueing::Queue;
use super::relocate::Moves;
use super::row::{Facts, Origin, TorrentRow, distinct};
use super::store::Write;
use super::torrents::{Rows, Torrents};
use crate::base::InfoHash;
use crate::session::command::{
    NewTorrent, Removed, SessionSnapshot, Sleep, TorrentDetails, TorrentSnapshot,
};
use crate::session::{Command, CommandError, SessionError, SessionHandle, Stopper};
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::{Metainfo, MetainfoError};

/// Without a peer for so long, a seed goes to sleep: longer than a peer that was sent away stays away.
const SLEEPS_AFTER: Duration = Duration::from_secs(300);
/// Labels of one torrent, and characters of one: operators use a handful of words.
pub(super) const LABELS_MAX: usize = 64;
const LABEL_CHARS_MAX: usize = 256;
/// Between two tries to forget a torrent that was removed, on a disk that refuses.
const FORGET_RETRY: Duration = Duration::from_secs(2);

/// Controls one daemon, from any thread of its runtime; clones share it.
#[derive(Clone)]
pub struct Control {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) torrents: Arc<Torrents>,
    pub(super) session: SessionHandle,
    stopper: Stopper,
    kept: Mutex<Kept>,
    pub(super) lived: Lived,
    queue: Mutex<Queue>,
    /// The highest place in the queue.
    pub(super) last_in_queue: AtomicI64,
    /// The highest number that a torrent was given.
    number: AtomicU64,
    /// Being added: not on disk yet.
    adding: Mutex<BTreeSet<InfoHash>>,
    /// The torrents of the state are in the rows and in the session.
    known: watch::Sender<bool>,
    pub(super) moves: Moves,
}

impl Inner {
    /// The daemon's own settings. What holds them waits for nothing.
    pub(super) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who waits for a place. Taken before the rows, never behind them.
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A torrent to take in.
#[derive(Clone, Debug)]
pub struct AddTorrent {
    pub source: AddSource,
    /// Folder that the torrent's root lies in; `None` is the daemon's own.
    pub folder: Option<PathBuf>,
    /// False waits to be started.
    pub starts: bool,
    /// What is missing is fetched; false only serves what is there.
    pub fetches: bool,
    pub labels: Vec<String>,
    pub selected_files: Option<Vec<usize>>,
}

/// Where the torrent is.
#[derive(Clone, Debug)]
pub enum AddSource {
    /// The bytes of a .torrent file.
    Torrent(Vec<u8>),
    Magnet(String),
}

/// What is remembered of a torrent, and what it is doing.
#[derive(Clone, Debug)]
pub struct Listed {
    pub row: Arc<TorrentRow>,
    /// `None` for the moment between being added and being known to the session.
    pub shown: Option<Arc<TorrentSnapshot>>,
    /// It is to run as soon as others make room.
    pub is_waiting: bool,
}

/// A change of what a torrent is to do; `None` leaves it as it is.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub labels: Option<Vec<String>>,
    pub seed_ratio: Option<Option<f64>>,
    pub selected_files: Option<Option<Vec<usize>>>,
    pub is_sequential: Option<bool>,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("there is no torrent {0}")]
    Unknown(InfoHash),
    #[error("the torrent {0} is there already")]
    Duplicate(InfoHash),
    #[error("this is no torrent: {0}")]
    BadTorrent(#[from] MetainfoError),
    #[error("this link cannot be used: {0}")]
    BadMagnet(String),
    #[error("{0}")]
    BadValue(String),
    #[error("it could not be kept: {0}")]
    NotKept(String),
    #[error("the daemon is ending")]
    Ending,
    #[error("{0}")]
    Failed(SessionError),
}

impl From<CommandError> for ControlError {
    fn from(error: CommandError) -> ControlError {
        match error {
            CommandError::Unknown(info_hash) | CommandError::Leaving(info_hash) => {
                ControlError::Unknown(info_hash)
            }
            CommandError::Present(info_hash) => ControlError::Duplicate(info_hash),
            CommandError::Ended => ControlError::Ending,
            CommandError::Failed(error) => ControlError::Failed(error),
        }
    }
}

/// What a session shows, by torrent.
pub(super) type Snapshots = BTreeMap<InfoHash, Arc<TorrentSnapshot>>;

/// How far a look has seen: numbers of the last changes of rows and board.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    rows: u64,
    board: u64,
}

impl Control {
    /// Ties what is remembered to the session that runs it. The torrents come with [`Control::restore`].
    pub(super) fn new(
        torrents: Arc<Torrents>,
        session: SessionHandle,
        stopper: Stopper,
        kept: Kept,
    ) -> Control {
        let lived = Lived::new(kept.lived_s, Instant::now());
        Control {
            inner: Arc::new(Inner {
                lived,
                number: AtomicU64::new(0),
                torrents,
                session,
                stopper,
                kept: Mutex::new(kept),
                queue: Mutex::default(),
                last_in_queue: AtomicI64::new(0),
                adding: Mutex::default(),
                known: watch::Sender::new(false),
                moves: Moves::default(),
            }),
        }
    }

    /// Every torrent, in the order of their info_hashes.
    pub fn torrents(&self) -> Vec<Listed> {
        let waiting = self.waiting();
        let rows = self.inner.torrents.rows();
        self.inner.session.with_torrents(|shown| {
            // Both are in the order of info_hashes.
            let mut shown = shown.iter().peekable();
            let listed = rows.iter().filter_map(|(info_hash, row)| {
                while shown.next_if(|(one, _)| *one < info_hash).is_some() {}
                let shown = shown.next_if(|(one, _)| *one == info_hash);
                row.leaving.is_none().then(|| Listed {
                    row: row.clone(),
                    shown: shown.map(|(_, shown)| shown.clone()),
                    is_waiting: waiting.contains(info_hash),
                })
            });
            listed.collect()
        })
    }

    /// Torrents that wait for their turn.
    pub(super) fn waiting(&self) -> BTreeSet<InfoHash> {
        self.inner.queue().waiting()
    }

    /// Looks at what is remembered and shown where it lies, and at what of it changed, came or went since an earlier look;
    /// without one, or when it was too long ago, that is `None`. Both stand still meanwhile: `look` asks this handle nothing and
    /// waits for nothing.
    pub(super) fn look<R>(
        &self,
        since: Option<Mark>,
        look: impl FnOnce(Mark, Option<BTreeSet<InfoHash>>, &Rows, &Snapshots) -> R,
    ) -> R {
        let rows = self.inner.torrents.rows();
        let before = since.unwrap_or_default();
        let session = &self.inner.session;
        session.with_changes(before.board, |board, shown, torrents| {
            let mark = Mark {
                rows: rows.log().number(),
                board,
            };
            let changed = since.and_then(|since| {
                let mut changed = rows.log().since(since.rows)?;
                changed.extend(shown?);
                Some(changed)
            });
            look(mark, changed, &rows, torrents)
        })
    }

    /// One torrent, if it is there.
    pub fn torrent(&self, info_hash: InfoHash) -> Option<Listed> {
        let is_waiting = self.inner.queue().is_waiting(&info_hash);
        let row = self.inner.torrents.rows().get(&info_hash).cloned()?;
        let shown = self.inner.session.torrent(&info_hash);
        row.leaving.is_none().then_some(Listed {
            row,
            shown,
            is_waiting,
        })
    }

    /// The session's own figures.
    pub fn session(&self) -> SessionSnapshot {
        self.inner.session.session()
    }

    /// Folder for torrents that are added without one.
    pub fn downloads(&self) -> PathBuf {
        self.inner.kept().now.downloads.clone()
    }

    /// A torrent's metadata, parsed anew each time: hold what is needed of it.
    ///
    /// # Errors
    /// It is not here (a link that has not led to it yet), or damaged.
    pub async fn metainfo(&self, info_hash: InfoHash) -> Result<Metainfo, ControlError> {
        let torrents = self.inner.torrents.clone();
        let read = tokio::task::spawn_blocking(move || torrents.metainfo(info_hash)).await;
        let read = read.map_err(|_| ControlError::Ending)?;
        read.map_err(ControlError::Failed)
    }

    /// Peers, trackers and pieces of a torrent at this moment.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn details(&self, info_hash: InfoHash) -> Result<TorrentDetails, ControlError> {
        let asked = self
            .inner
            .session
            .ask(|reply| Command::Details { info_hash, reply });
        Ok(asked.await?)
    }

    /// Takes a torrent in.
    ///
    /// # Errors
    /// See [`ControlError`]; [`ControlError::Duplicate`] names one that is there already.
    pub async fn add(&self, torrent: AddTorrent) -> Result<InfoHash, ControlError> {
        check_labels(&torrent.labels)?;
        let mut row = TorrentRow {
            folder: torrent.folder.unwrap_or_else(|| self.downloads()),
            is_wanted: torrent.starts,
            fetches: torrent.fetches,
            labels: distinct(torrent.labels),
            selected_files: torrent.selected_files,
            added_unix_s: unix_now_s(),
            crosses: torrent.fetches,
            ..TorrentRow::default()
        };
        if !row.folder.is_absolute() {
            let text = format!("the folder {} is not absolute", row.folder.display());
            return Err(ControlError::BadValue(text));
        }
        let bytes = match torrent.source {
            AddSource::Torrent(bytes) => {
                let metainfo = Metainfo::parse(&bytes)?;
                row.info_hash = metainfo.info_hash;
                row.describe(&metainfo);
                Some(bytes)
            }
            AddSource::Magnet(text) => {
                let link: Magnet =
                    text.parse()
                        .map_err(|error: crate::wire::magnet::MagnetError| {
                            ControlError::BadMagnet(error.to_string())
                        })?;
                row.info_hash = link.info_hash;
                row.name = link
                    .name
                    .clone()
                    .unwrap_or_else(|| link.info_hash.to_string());
                row.origin = Origin::Magnet(text);
                None
            }
        };
        let info_hash = row.info_hash;
        let _adding = self.reserve(info_hash)?;
        self.know_devices(Some(&row.folder)).await;
        if let Some(bytes) = bytes {
            let torrents = self.inner.torrents.clone();
            let saved = tokio::task::spawn_blocking(move || {
                torrents.folder.save_torrent(info_hash, &bytes)
            });
            let saved = saved.await.map_err(|_| ControlError::Ending)?;
            saved.map_err(|error| ControlError::NotKept(error.to_string()))?;
        }
        let new = NewTorrent {
            figures: row.figures(),
            // With a queue, when its turn comes.
            runs: row.is_wanted && !self.has_queue(),
            sleeps: self.sleep(&row, &mut Shared::new()),
        };
        let kept = {
            let mut rows = self.inner.torrents.rows();
            row.number = self.inner.number.fetch_add(1, Ordering::Relaxed) + 1;
            row.settings.queue = self.inner.last_in_queue.fetch_add(1, Ordering::Relaxed) + 1;
            rows.insert(info_hash, Arc::new(row.clone()));
            self.inner
                .torrents
                .writer
                .begin(vec![Write::Put(Box::new(row))])
        };
        if let Err(error) = kept.done().await {
            let torrents = &self.inner.torrents;
            {
                let mut rows = torrents.rows();
                rows.remove(&info_hash);
                drop(torrents.writer.begin(vec![Write::Remove(info_hash)]));
            }
            torrents.folder.remove_torrent(info_hash);
            return Err(ControlError::NotKept(error));
        }
        let added = self.inner.session.ask(|reply| Command::Add {
            torrent: Box::new(new),
            reply,
        });
        added.await?;
        self.settle_queue(false).await;
        Ok(info_hash)
    }

    fn reserve(&self, info_hash: InfoHash) -> Result<Adding<'_>, ControlError> {
        let mut adding = self
            .inner
            .adding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_there = self.inner.torrents.rows().contains_key(&info_hash);
        if is_there || !adding.insert(info_hash) {
            return Err(ControlError::Duplicate(info_hash));
        }
        Ok(Adding {
            adding: &self.inner.adding,
            info_hash,
        })
    }

    /// Removes a torrent, with its files if `with_data`.
    ///
    /// # Errors
    /// See [`ControlError`]. Files that could not be removed are no error: the answer names them.
    pub async fn remove(
        &self,
        info_hash: InfoHash,
        with_data: bool,
    ) -> Result<Removed, ControlError> {
        // From here on it is gone, whatever happens: the next start finishes what this one does not.
        self.change_row(info_hash, |row| {
            row.leaving = Some(with_data || row.leaving == Some(true));
        })
        .await?;
        self.break_off_move(info_hash).await;
        self.finish_removal(info_hash, with_data).await
    }

    pub(super) async fn finish_removal(
        &self,
        info_hash: InfoHash,
        with_data: bool,
    ) -> Result<Removed, ControlError> {
        let removed = self.inner.session.ask(|reply| Command::Remove {
            info_hash,
            with_data,
            reply,
        });
        let removed = match removed.await {
            Err(CommandError::Unknown(_)) => Removed::default(),
            removed => removed?,
        };
        // Its row says that it leaves, so it does not come back, whatever the disk says now.
        if let Err(error) = self.forget(info_hash).await {
            warn!(%info_hash, %error, "a removed torrent is forgotten later");
            let control = self.clone();
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(FORGET_RETRY).await;
                    if control.forget(info_hash).await.is_ok() {
                        break;
                    }
                }
            });
        }
        Ok(removed)
    }

    /// Takes the last of a torrent that was removed.
    async fn forget(&self, info_hash: InfoHash) -> Result<(), ControlError> {
        let torrents = &self.inner.torrents;
        let kept = torrents.writer.begin(vec![Write::Remove(info_hash)]);
        kept.done().await.map_err(ControlError::NotKept)?;
        torrents.folder.remove_torrent(info_hash);
        torrents.rows().remove(&info_hash);
        torrents.policies.forget(info_hash);
        self.settle_queue(false).await;
        Ok(())
    }

    /// Lets a torrent run.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn start(&self, info_hash: InfoHash) -> Result<(), ControlError> {
        self.let_run(info_hash, false).await
    }

    /// Ends a torrent in order; it stays in the list.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn stop(&self, info_hash: InfoHash) -> Result<(), ControlError> {
        self.change_row(info_hash, |row| row.is_wanted = false)
            .await?;
        let asked = self
            .inner
            .session
            .ask(|reply| Command::Stop { info_hash, reply });
        asked.await?;
        self.settle_queue(false).await;
        Ok(())
    }

    /// Hashes all of a torrent's data.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn verify(&self, info_hash: InfoHash) -> Result<(), ControlError> {
        self.inner.moves.is_free(&info_hash)?;
        let asked = self
            .inner
            .session
            .ask(|reply| Command::Verify { info_hash, reply });
        Ok(asked.await?)
    }

    /// Asks a torrent's trackers for peers as soon as they allow.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn reannounce(&self, info_hash: InfoHash) -> Result<(), ControlError> {
        let asked = self
            .inner
            .session
            .ask(|reply| Command::Reannounce { info_hash, reply });
        Ok(asked.await?)
    }

    /// Changes what a torrent is to do.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn change(&self, info_hash: InfoHash, change: Change) -> Result<(), ControlError> {
        check_labels(change.labels.as_deref().unwrap_or_default())?;
        let begins_anew = change.selected_files.is_some();
        let is_tuned = change.seed_ratio.is_some()
            || change.is_sequential.is_some()
            || change.labels.is_some();
        if change.selected_files.is_some() {
            self.inner.moves.is_free(&info_hash)?;
        }
        let metainfo = match &change.selected_files {
            Some(_) => Some(self.metainfo(info_hash).await?),
            None => None,
        };
        self.change_row(info_hash, |row| {
            let Change {
                labels,
                seed_ratio,
                selected_files,
                is_sequential,
            } = change;
            row.labels = labels.map_or(std::mem::take(&mut row.labels), distinct);
            row.seed_ratio = seed_ratio.unwrap_or(row.seed_ratio);
            row.selected_files = selected_files.unwrap_or(row.selected_files.take());
            row.is_sequential = is_sequential.unwrap_or(row.is_sequential);
            if let Some(metainfo) = &metainfo {
                row.describe(metainfo);
            }
        })
        .await?;
        if begins_anew {
            let asked = self
                .inner
                .session
                .ask(|reply| Command::Reload { info_hash, reply });
            asked.await?;
        } else if is_tuned {
            self.put_in_force(info_hash).await?;
        }
        Ok(())
    }

    /// Asks the daemon to end; it saves everything first.
    pub fn shut_down(&self) {
        self.inner.stopper.stop();
    }

    /// Changes a row that is not being removed, in memory and on disk.
    pub(super) async fn change_row(
        &self,
        info_hash: InfoHash,
        change: impl FnOnce(&mut TorrentRow),
    ) -> Result<(), ControlError> {
        let (kept, before, changed) = {
            let mut rows = self.inner.torrents.rows();
            let row = rows.get_mut(&info_hash).filter(|row| row.leaving.is_none());
            let row = row.ok_or(ControlError::Unknown(info_hash))?;
            let before = row.clone();
            change(Arc::make_mut(row));
            let writes = vec![Write::Put(Box::new((**row).clone()))];
            (
                self.inner.torrents.writer.begin(writes),
                before,
                row.clone(),
            )
        };
        kept.done().await.map_err(|error| {
            self.take_back(&changed, &before);
            ControlError::NotKept(error)
        })
    }

    /// A change was refused. What others changed meanwhile stays, but nothing that was refused is begun at the next start.
    fn take_back(&self, changed: &Arc<TorrentRow>, before: &Arc<TorrentRow>) {
        let mut rows = self.inner.torrents.rows();
        let Some(row) = rows.get_mut(&changed.info_hash) else {
            return;
        };
        if Arc::ptr_eq(row, changed) {
            row.clone_from(before);
        } else {
            let row = Arc::make_mut(row);
            row.leaving = before.leaving;
            row.moving.clone_from(&before.moving);
            row.renaming.clone_from(&before.renaming);
        }
        let writes = vec![Write::Put(Box::new((**row).clone()))];
        drop(self.inner.torrents.writer.begin(writes));
    }

    /// Adds to a row what its .torrent says. It is in no hurry to be on disk.
    pub(super) fn know(&self, info_hash: InfoHash, facts: Facts) {
        let mut rows = self.inner.torrents.rows();
        if let Some(row) = rows.get_mut(&info_hash) {
            let row = Arc::make_mut(row);
            row.facts = Some(Box::new(facts));
            let writes = vec![Write::Put(Box::new(row.clone()))];
            drop(self.inner.torrents.writer.begin(writes));
        }
    }

    /// Completes once the torrents of the state are known. Whatever is asked about torrents waits for it: an empty list
    /// would look as if all had been removed.
    pub async fn known(&self) {
        let mut known = self.inner.known.subscribe();
        // It outlives this handle's wait.
        let _ = known.wait_for(|is_known| *is_known).await;
    }

    /// Takes the rows of the state, hands them to the session, and finishes removals that were begun.
    pub(super) async fn restore(&self, rows: BTreeMap<InfoHash, TorrentRow>) {
        let last = rows.values().map(|row| row.settings.queue).max();
        let highest = rows.values().map(|row| row.number).max();
        self.inner
            .last_in_queue
            .store(last.unwrap_or(0), Ordering::Relaxed);
        self.inner
            .number
            .store(highest.unwrap_or(0), Ordering::Relaxed);
        let rows = rows.into_iter().map(|(key, row)| (key, Arc::new(row)));
        *self.inner.torrents.rows() = rows.collect();
        self.know_devices(None).await;
        let (mut torrents, mut leaving) = (Vec::new(), Vec::new());
        let waiting = self.begin_queue();
        let mut moving = Vec::new();
        let mut tiers_of = Shared::new();
        for (info_hash, row) in self.inner.torrents.rows().iter() {
            torrents.push(NewTorrent {
                figures: row.figures(),
                runs: row.is_wanted
                    && row.leaving.is_none()
                    && !row.is_on_its_way()
                    && !waiting.contains(info_hash),
                sleeps: self.sleep(row, &mut tiers_of),
            });
            leaving.extend(row.leaving.map(|with_data| (*info_hash, with_data)));
            moving.extend(row.is_on_its_way().then_some(*info_hash));
        }
        let added = self
            .inner
            .session
            .ask(|reply| Command::AddAll { torrents, reply });
        // Both are on their way before anybody else is heard: what is added meanwhile is not among these.
        let ((), added) = tokio::join!(biased; self.tell_rules(), added);
        for error in added.unwrap_or_default() {
            warn!(%error, "a torrent of the state is left out");
        }
        self.inner.known.send_replace(true);
        for info_hash in moving {
            self.resume_move(info_hash).await;
        }
        for (info_hash, with_data) in leaving {
            if let Err(error) = self.finish_removal(info_hash, with_data).await {
                warn!(%info_hash, %error, "a removal is not finished");
            }
        }
    }

    /// A seed that has everything, and whose seeding nothing ends meanwhile, sleeps until somebody asks for it. Nobody knows
    /// what is there of a new one before it was looked at.
    fn sleep(&self, row: &TorrentRow, tiers_of: &mut Shared) -> Option<Sleep> {
        let must_run = {
            let torrents = &self.inner.torrents;
            row.must_run(torrents.seeds_until(row, torrents.seed_after()))
        };
        let is_whole = row.pieces > 0 && row.pieces_have == row.pieces;
        (!must_run && row.origin == Origin::Torrent).then(|| Sleep {
            is_whole,
            tiers: tiers_of
                .entry(row.trackers().to_vec())
                .or_insert_with(|| row.trackers().into())
                .clone(),
            after: SLEEPS_AFTER,
            announced: row.last_announce(unix_now_s()),
            second: row.second_info_hash(),
        })
    }
}

/// Lists of trackers that many torrents have in common.
type Shared = BTreeMap<Vec<Vec<String>>, Arc<[Vec<String>]>>;

/// Ends the reservation of an info_hash.
struct Adding<'a> {
    adding: &'a Mutex<BTreeSet<InfoHash>>,
    info_hash: InfoHash,
}

impl Drop for Adding<'_> {
    fn drop(&mut self) {
        let mut adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        adding.remove(&self.info_hash);
    }
}

fn check_labels(labels: &[String]) -> Result<(), ControlError> {
    let is_long = |label: &String| label.is_empty() || label.chars().count() > LABEL_CHARS_MAX;
    if labels.len() > LABELS_MAX || labels.iter().any(is_long) {
        let text = format!("labels are at most {LABELS_MAX} of 1 to {LABEL_CHARS_MAX} characters");
        return Err(ControlError::BadValue(text));
    }
    Ok(())
}
