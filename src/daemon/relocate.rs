//! Another folder for a torrent that is there, with its files moved or said to be there. Layer 6.
//!
//! A move is a task beside the daemon's others and a thread that copies. The row remembers it from before the first byte
//! until the last old file is gone, so that a killed one goes on with the next start. A seed that has everything is served
//! from the old place until all is at the new one; what still fetches, or needs no copy, rests meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, oneshot, watch};
use tracing::{info, warn};

use super::handle::{Control, ControlError};
use super::row::{Moving, Origin, TorrentRow};
use crate::base::InfoHash;
use crate::session::relocate::{MoveProgress, Mover, RelocateError, Start};
use crate::session::{Command, Job, TorrentSource, TorrentState};

/// Moves that copy at once: more would only take turns at the disks.
const COPYING_MAX: usize = 2;
/// Moves that are remembered to have failed; they are told in the log too.
const TROUBLES_MAX: usize = 4_096;

/// The moves under way.
pub struct Moves {
    under_way: Mutex<BTreeMap<InfoHash, Arc<Move>>>,
    /// Why the last move of a torrent failed.
    troubles: Mutex<BTreeMap<InfoHash, String>>,
    copying: Semaphore,
}

impl Default for Moves {
    fn default() -> Moves {
        Moves {
            under_way: Mutex::default(),
            troubles: Mutex::default(),
            copying: Semaphore::new(COPYING_MAX),
        }
    }
}

/// One move.
pub(super) struct Move {
    progress: Arc<MoveProgress>,
    /// The session must not run the torrent now: it starts behind the move if it is to.
    holds: AtomicBool,
    is_over: watch::Sender<bool>,
}

impl Moves {
    fn table(&self) -> MutexGuard<'_, BTreeMap<InfoHash, Arc<Move>>> {
        let table = self.under_way.lock();
        table.unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, BTreeMap<InfoHash, String>> {
        let troubles = self.troubles.lock();
        troubles.unwrap_or_else(PoisonError::into_inner)
    }

    /// True while the session must not run the torrent.
    pub fn holds(&self, info_hash: &InfoHash) -> bool {
        let table = self.table();
        let of = table.get(info_hash);
        of.is_some_and(|of| of.holds.load(Ordering::SeqCst))
    }

    /// # Errors
    /// The torrent's files are being moved.
    pub fn is_free(&self, info_hash: &InfoHash) -> Result<(), ControlError> {
        match self.table().contains_key(info_hash) {
            true => Err(under_way()),
            false => Ok(()),
        }
    }

    pub(super) fn begin(
        &self,
        info_hash: InfoHash,
        holds: bool,
    ) -> Result<Arc<Move>, ControlError> {
        let mut table = self.table();
        if table.contains_key(&info_hash) {
            return Err(under_way());
        }
        let this = Arc::new(Move {
            progress: Arc::default(),
            holds: AtomicBool::new(holds),
            is_over: watch::Sender::new(false),
        });
        table.insert(info_hash, this.clone());
        drop(table);
        self.told().remove(&info_hash);
        Ok(this)
    }

    pub(super) fn end(&self, info_hash: &InfoHash) {
        if let Some(this) = self.table().remove(info_hash) {
            this.is_over.send_replace(true);
        }
    }

    pub(super) fn tell(&self, info_hash: InfoHash, words: String) {
        warn!(%info_hash, "{words}");
        let mut troubles = self.told();
        if troubles.len() < TROUBLES_MAX {
            troubles.insert(info_hash, words);
        }
    }
}

fn under_way() -> ControlError {
    ControlError::BadValue("its files are being moved: wait until that is done".to_owned())
}

impl From<RelocateError> for ControlError {
    fn from(error: RelocateError) -> ControlError {
        ControlError::BadValue(error.to_string())
    }
}

impl TorrentRow {
    /// Its files are being moved or renamed.
    pub(super) const fn is_on_its_way(&self) -> bool {
        self.moving.is_some() || self.renaming.is_some()
    }
}

impl Control {
    /// Gives a torrent another folder. With `moves` its files are moved there, which goes on behind the answer; else they
    /// are said to be there, and are looked at as at any start.
    ///
    /// # Errors
    /// See [`ControlError`]: something of the torrent's names is there already, there is too little room, or the folder
    /// cannot be used.
    pub async fn relocate(
        &self,
        info_hash: InfoHash,
        to: PathBuf,
        moves: bool,
    ) -> Result<(), ControlError> {
        if !to.is_absolute() {
            let text = format!("the folder {} is not absolute", to.display());
            return Err(ControlError::BadValue(text));
        }
        let row = self.row(info_hash)?;
        if row.is_on_its_way() {
            return Err(under_way());
        }
        let this = self.inner.moves.begin(info_hash, false)?;
        let begun = self.begin_relocation(&row, to, moves).await;
        match begun {
            Ok(Some(mover)) => {
                let (control, progress) = (self.clone(), this);
                tokio::spawn(async move { control.run_move(info_hash, progress, mover).await });
                Ok(())
            }
            done => {
                self.inner.moves.end(&info_hash);
                done.map(|_| ())
            }
        }
    }

    /// Those whose files are on their way, and those whose files did not go.
    pub fn moved(&self) -> BTreeSet<InfoHash> {
        let mut moved: BTreeSet<_> = self.inner.moves.table().keys().copied().collect();
        moved.extend(self.inner.moves.told().keys().copied());
        moved
    }

    /// Share of a torrent's files that is moved, 0 to 1; `None` when they stay where they are.
    pub fn moved_share(&self, info_hash: &InfoHash) -> Option<f64> {
        let table = self.inner.moves.table();
        table.get(info_hash).map(|this| this.progress.share())
    }

    /// Why the last move of a torrent's files failed.
    pub fn move_trouble(&self, info_hash: &InfoHash) -> Option<String> {
        self.inner.moves.told().get(info_hash).cloned()
    }

    pub(super) fn row(&self, info_hash: InfoHash) -> Result<Arc<TorrentRow>, ControlError> {
        let listed = self.torrent(info_hash);
        Ok(listed.ok_or(ControlError::Unknown(info_hash))?.row)
    }

    /// Does what is done at once; a move for the rest.
    async fn begin_relocation(
        &self,
        row: &TorrentRow,
        to: PathBuf,
        moves: bool,
    ) -> Result<Option<Mover>, ControlError> {
        let info_hash = row.info_hash;
        if !moves || row.origin != Origin::Torrent {
            self.change_row(info_hash, |row| row.folder = to).await?;
            let asked = self
                .inner
                .session
                .ask(|reply| Command::BeginAnew { info_hash, reply });
            asked.await?;
            return Ok(None);
        }
        let moving = Moving {
            from: row.folder.clone(),
            to,
        };
        let mover = match self.open_mover(row, moving.clone(), Start::Fresh).await {
            Err(RelocateError::Same(_)) => return Ok(None),
            mover => mover?,
        };
        let kept = self
            .change_row(info_hash, |row| row.moving = Some(moving))
            .await;
        if let Err(error) = kept {
            off_thread(move || mover.discard()).await;
            return Err(error);
        }
        Ok(Some(mover))
    }

    async fn open_mover(
        &self,
        row: &TorrentRow,
        moving: Moving,
        start: Start,
    ) -> Result<Mover, RelocateError> {
        let (torrents, info_hash) = (self.inner.torrents.clone(), row.info_hash);
        let has_data = row.expects_data();
        let opened = off_thread(move || {
            let job = torrents.job(info_hash).map_err(RelocateError::Torrent)?;
            let Job::Torrent(mut config) = job else {
                return Err(RelocateError::Gone(moving.from));
            };
            config.folder = moving.from;
            Mover::open(&config, &moving.to, start, has_data)
        });
        opened.await.unwrap_or(Err(RelocateError::Cancelled))
    }

    /// Goes on with a move, or a renaming, that an earlier run of the daemon began.
    pub(super) async fn resume_move(&self, info_hash: InfoHash) {
        let Some(row) = self.inner.torrents.rows().get(&info_hash).cloned() else {
            return;
        };
        if let (Some(rename), true) = (row.renaming.clone(), row.leaving.is_none()) {
            return self.resume_rename(info_hash, rename).await;
        }
        let (Some(moving), Ok(this)) = (
            row.moving.clone(),
            self.inner.moves.begin(info_hash, row.leaving.is_none()),
        ) else {
            return;
        };
        let start = match row.folder == moving.to {
            true => Start::Committed,
            false => Start::Resumed,
        };
        if row.leaving.is_some() {
            // What is removed needs neither of its places.
            if let Ok(mover) = self.open_mover(&row, moving, start).await {
                let state_dir = self.inner.torrents.folder.path().to_owned();
                off_thread(move || match start {
                    Start::Committed => drop(mover.remove_old(&state_dir)),
                    _ => mover.discard(),
                })
                .await;
            }
            return self.inner.moves.end(&info_hash);
        }
        let control = self.clone();
        tokio::spawn(async move {
            match control.open_mover(&row, moving, start).await {
                Ok(mover) => control.run_move(info_hash, this, mover).await,
                Err(error) => {
                    control.give_up_move(info_hash, &error).await;
                    control.end_move(info_hash, &this).await;
                }
            }
        });
    }

    /// Ends a move of a torrent that is being removed.
    pub(super) async fn break_off_move(&self, info_hash: InfoHash) {
        let this = self.inner.moves.table().get(&info_hash).cloned();
        if let Some(this) = this {
            this.progress.cancel();
            let mut over = this.is_over.subscribe();
            let _ = over.wait_for(|is_over| *is_over).await;
        }
    }

    async fn run_move(&self, info_hash: InfoHash, this: Arc<Move>, mover: Mover) {
        if let Err(error) = self.move_files(info_hash, &this, mover).await {
            self.give_up_move(info_hash, &error).await;
        }
        self.end_move(info_hash, &this).await;
    }

    async fn give_up_move(&self, info_hash: InfoHash, error: &RelocateError) {
        // One that is removed has no row to change.
        let kept = self.change_row(info_hash, |row| row.moving = None).await;
        if kept.is_ok() {
            let words = format!("the files were not moved: {error}");
            self.inner.moves.tell(info_hash, words);
        }
    }

    pub(super) async fn end_move(&self, info_hash: InfoHash, this: &Move) {
        self.release(info_hash, this).await;
        self.inner.moves.end(&info_hash);
    }

    async fn move_files(
        &self,
        info_hash: InfoHash,
        this: &Move,
        mover: Mover,
    ) -> Result<(), RelocateError> {
        let _turn = self.inner.moves.copying.acquire().await;
        let state_dir = self.inner.torrents.folder.path().to_owned();
        let is_quick = mover.is_quick();
        if is_quick || !self.only_serves(info_hash) {
            self.hold(info_hash, this).await;
        } else {
            self.release(info_hash, this).await;
        }
        let progress = this.progress.clone();
        let copied = off_thread(move || {
            let mut mover = mover;
            let result = mover.copy(&progress);
            or_discarded(mover, result)
        });
        let mover = copied.await.unwrap_or(Err(RelocateError::Cancelled))?;
        self.hold(info_hash, this).await;
        let (progress, state) = (this.progress.clone(), state_dir.clone());
        let settled = off_thread(move || {
            let mut mover = mover;
            let result = mover.settle(&state, &progress);
            or_discarded(mover, result)
        });
        let mover = settled.await.unwrap_or(Err(RelocateError::Cancelled))?;
        let committed = self.change_row(info_hash, |row| {
            if let Some(moving) = &row.moving {
                row.folder = moving.to.clone();
            }
        });
        match committed.await {
            Ok(()) => {}
            Err(ControlError::NotKept(why)) => {
                // Nobody knows what a start finds: with both places whole, any of the two is right.
                let words = format!("the files are moved when the daemon starts anew: {why}");
                self.inner.moves.tell(info_hash, words);
                return Ok(());
            }
            // It is being removed.
            Err(_) => {
                off_thread(move || mover.discard()).await;
                return Err(RelocateError::Cancelled);
            }
        }
        if !is_quick {
            self.release(info_hash, this).await;
        }
        let kept = off_thread(move || mover.remove_old(&state_dir)).await;
        for kept in kept.unwrap_or_default() {
            warn!(%info_hash, "{kept}");
        }
        if self
            .change_row(info_hash, |row| row.moving = None)
            .await
            .is_ok()
        {
            info!(%info_hash, "files moved");
        }
        Ok(())
    }

    /// True when nothing writes its files, whether it runs or not.
    fn only_serves(&self, info_hash: InfoHash) -> bool {
        let Some(listed) = self.torrent(info_hash) else {
            return false;
        };
        let is_whole = listed.shown.is_some_and(|shown| {
            let progress = &shown.progress;
            let has_wanted =
                progress.total_bytes > 0 && progress.have_bytes >= progress.total_bytes;
            let is_whole = progress.pieces > 0 && progress.pieces_have == progress.pieces;
            (is_whole || has_wanted) && progress.state != TorrentState::Checking
        });
        is_whole || !listed.row.fetches
    }

    /// Ends the run, if any, and has none begin.
    pub(super) async fn hold(&self, info_hash: InfoHash, this: &Move) {
        this.holds.store(true, Ordering::SeqCst);
        let ended = self
            .inner
            .session
            .ask(|reply| Command::End { info_hash, reply });
        // What the session does not know, or has ended itself, does not run.
        let _ = ended.await;
    }

    /// Lets it run again if it is to.
    pub(super) async fn release(&self, info_hash: InfoHash, this: &Move) {
        if !this.holds.swap(false, Ordering::SeqCst) {
            return;
        }
        if let Ok(row) = self.row(info_hash)
            && row.is_wanted
        {
            // It ends, or is removed.
            let _ = self.let_run(info_hash, row.settings.skips_queue).await;
        }
    }
}

/// What cannot go on leaves nothing behind.
fn or_discarded(mover: Mover, result: Result<(), RelocateError>) -> Result<Mover, RelocateError> {
    match result {
        Ok(()) => Ok(mover),
        Err(error) => {
            mover.discard();
            Err(error)
        }
    }
}

/// Does it on a thread of its own, which nobody waits for at the daemon's end; `None` when there is none.
pub(super) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, answer) = oneshot::channel();
    let thread = std::thread::Builder::new().name("gyre-move".into());
    let spawned = thread.spawn(move || {
        let _ = done.send(work());
    });
    spawned.ok()?;
    answer.await.ok()
}
