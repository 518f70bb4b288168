//! Resume records in step with the data: bits are recorded only after the bytes they claim are synced. Layer 5.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Mutex;
use tracing::{debug, warn};

use super::contain::{caught, count_panic, off_ring};
use super::driver::Driver;
use super::error::SessionError;
use super::resume_store::ResumeStore;
use super::shared::Shared;
use crate::base::Now;
use crate::storage::resume::{Counters, Record};

/// At most this much verified data is unrecorded (HOSTILE.md L7).
pub const BYTES_MAX: u64 = 64 << 20;
/// Or this much time (HOSTILE.md L7).
const INTERVAL: Duration = Duration::from_secs(10);
/// Totals alone are recorded this often: a torrent that only seeds must not keep its disk awake.
const TOTALS_INTERVAL: Duration = Duration::from_secs(300);
/// How long the last save may take; with the rest of a shutdown it must fit in ten seconds (HOSTILE.md L12, L13).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The same where the file system has answered nothing for longer than [`STUCK_AFTER`] (HOSTILE.md L13).
const STUCK_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// Writes one torrent's record.
pub struct Checkpointer {
    shared: Rc<Shared>,
    store: ResumeStore,
    /// What earlier runs counted.
    base: Counters,
    record: RefCell<Record>,
    saved_at: Cell<Now>,
    is_saving: Cell<bool>,
    /// One save at a time: another would find nothing left to sync and record what the first has not synced yet.
    turn: Mutex<()>,
}

impl Checkpointer {
    /// Goes on from a loaded or fresh record.
    pub fn new(shared: &Rc<Shared>, store: ResumeStore, record: Record) -> Self {
        Checkpointer {
            shared: shared.clone(),
            store,
            base: record.counters,
            record: RefCell::new(record),
            saved_at: Cell::new(shared.now()),
            is_saving: Cell::new(false),
            turn: Mutex::new(()),
        }
    }

    /// Payload downloaded and uploaded since the torrent was added, in bytes.
    pub fn totals(&self, driver: &Driver) -> (u64, u64) {
        let stats = driver.read(|core| core.stats(self.shared.now()));
        let down = self
            .base
            .downloaded_bytes
            .saturating_add(stats.downloaded_bytes);
        let up = self
            .base
            .uploaded_bytes
            .saturating_add(stats.uploaded_bytes);
        (down, up)
    }

    /// True when too much, or anything for too long, is unrecorded.
    pub fn is_due(&self, driver: &Driver) -> bool {
        if self.is_saving() {
            return false;
        }
        if driver.unrecorded_bytes() >= BYTES_MAX {
            return true;
        }
        let age = self.shared.now().since(self.saved_at.get());
        let (down, up) = self.totals(driver);
        let record = self.record.borrow();
        // Pieces may also have been lost since.
        let is_other = driver.read(|core| core.have().count()) != record.have.count();
        let is_changed = is_other || driver.unrecorded_bytes() > 0 || !driver.disk().is_synced();
        let counted = (
            record.counters.downloaded_bytes,
            record.counters.uploaded_bytes,
        );
        (is_changed && age >= INTERVAL) || (counted != (down, up) && age >= TOTALS_INTERVAL)
    }

    /// True while a save in the background is under way.
    pub fn is_saving(&self) -> bool {
        self.is_saving.get()
    }

    /// Saves in the background.
    pub fn spawn_save(self: &Rc<Self>, driver: &Rc<Driver>) {
        if self.is_saving.replace(true) {
            return;
        }
        let (checkpointer, of) = (self.clone(), driver.clone());
        driver.spawn(async move {
            // Told by then, and looked into.
            let _ = checkpointer.save(&of, true).await;
            checkpointer.is_saving.set(false);
        });
    }

    /// Saves for the last time: nothing changes behind this record. Somebody who waits (`is_hurried`, or a stop
    /// meanwhile) does so for a few seconds: when the disk takes longer the last open record stands, and the next
    /// start hashes what it does not claim.
    ///
    /// # Errors
    /// Data that counts as written is not on disk.
    pub async fn close(&self, driver: &Rc<Driver>, is_hurried: bool) -> Result<(), SessionError> {
        let mut save = std::pin::pin!(self.save(driver, false));
        if !is_hurried {
            tokio::select! {
                saved = &mut save => return saved,
                () = self.shared.torrent_stopping(driver.info_hash()) => {}
            }
        }
        // What does not answer now will hardly do so in time.
        let limit = match driver.disk().stuck_for() >= STUCK_AFTER {
            true => STUCK_CLOSE_TIMEOUT,
            false => CLOSE_TIMEOUT,
        };
        let Ok(saved) = tokio::time::timeout(limit, save).await else {
            warn!("the data was not synced in time: the next start hashes what is not recorded");
            return Ok(());
        };
        saved
    }

    /// Freeze the bits, sync every touched file and new folder, commit the bits: in this order alone a record never
    /// claims what a power cut can take.
    async fn save(&self, driver: &Rc<Driver>, is_open: bool) -> Result<(), SessionError> {
        let _turn = self.turn.lock().await;
        self.saved_at.set(self.shared.now());
        if driver.trouble.is_in_doubt() {
            return Ok(());
        }
        let have = driver.read(|core| core.have().clone());
        driver.reset_unrecorded();
        let synced = match driver.disk().sync().await {
            Ok(synced) => synced,
            Err(failed) => {
                let error = SessionError::new(failed.error.to_string(), failed.error.hint());
                driver.on_sync_failed(failed);
                return Err(error);
            }
        };
        let gone = driver
            .disk()
            .look_for_gone(is_open.then_some(&synced))
            .await;
        if let Some(first) = gone.first() {
            let error = SessionError::new(first.to_string(), "run the same command again");
            driver.on_files_gone(gone);
            return Err(error);
        }
        let stamps = driver.disk().stamps();
        let mut record = self.record.borrow().clone();
        record.root = driver.disk().own_root().or(record.root);
        record.unproven = driver.disk().unproven(&have);
        record.have = have;
        record.is_open = is_open;
        record.files = stamps.files;
        record.parts = stamps.parts;
        record.counters = self.counters(driver);
        *self.record.borrow_mut() = record.clone();
        let store = self.store.clone();
        let saved = caught(off_ring(move || store.save(&record))).await;
        match saved {
            Ok(Ok(())) => debug!(is_open, "resume record written"),
            Ok(Err(error)) => driver.tell_trouble(
                format!("the resume record in {} cannot be written: {error}", self.shared.config.state_dir.display()),
                "make room in the state folder or name another with --state; until then a restart hashes more",
            ),
            Err(_) => {
                count_panic(&self.shared, "writing a resume record was broken off");
                let message = "the resume record was not written for an error in the program".to_owned();
                driver.tell_trouble(message, "please report it with the log (-vv); until then a restart hashes more");
            }
        }
        Ok(())
    }

    fn counters(&self, driver: &Driver) -> Counters {
        let stats = driver.read(|core| core.stats(self.shared.now()));
        let (downloaded_bytes, uploaded_bytes) = self.totals(driver);
        let wasted_bytes = self.base.wasted_bytes.saturating_add(stats.wasted_bytes);
        Counters {
            downloaded_bytes,
            uploaded_bytes,
            wasted_bytes,
            ..self.base
        }
    }
}
