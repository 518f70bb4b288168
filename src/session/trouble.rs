//! Trouble that may pass: full disks, failing disks, silent swarms, and when to give up on it. Layer 5.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use tracing::warn;

use super::check::{self, CheckJob};
use super::config::SessionEvent;
use super::contain::{caught, off_ring};
use super::disk::{Changed, DiskError};
use super::driver::Driver;
use crate::base::{Bitfield, Now, PieceIndex};
use crate::storage::retry::{self, Refusal, Retries};

/// A file system that leaves an operation unanswered for so long hangs (HOSTILE.md L13).
pub const HANGS_AFTER: Duration = Duration::from_secs(10);
/// Between tries of a check that could not read some files.
const READ_RETRY: Duration = Duration::from_secs(5);
/// Space that must be free before a full disk is tried again: less would fill at once.
const SPACE_MIN_BYTES: u64 = 4 << 20;
/// Without a verified byte for so long, an incomplete torrent without peers is reported.
pub const SILENT_AFTER: Duration = Duration::from_secs(30);

/// What to do about a file system that hangs.
pub const HUNG_HINT: &str =
    "look at the server or device behind it: it goes on by itself once there is an answer";

/// One torrent's present trouble.
#[derive(Default)]
pub struct Trouble {
    progress_at: Cell<Now>,
    retries: RefCell<Retries>,
    is_recovering: Cell<bool>,
    /// The disk refused a write, and took none since.
    is_disk_erring: Cell<bool>,
    /// What the user was last told, so that it is told once.
    told: RefCell<Option<String>>,
    /// Checks under way after failed syncs.
    doubts: Cell<u32>,
    /// The file system does not answer.
    is_hung: Cell<bool>,
    /// Set when the torrent must end.
    fatal: RefCell<Option<(String, String)>>,
}

impl Trouble {
    /// Verified data arrived.
    pub fn made_progress(&self, now: Now) {
        self.progress_at.set(now);
        // What was on its way when the disk refused may still arrive.
        if !self.is_recovering.get() {
            self.is_disk_erring.set(false);
            self.told.take();
        }
    }

    /// Payload arrived, verified or not. What a disk in trouble will not take is no progress.
    pub fn payload_arrived(&self, now: Now) {
        if !self.is_disk_erring.get() {
            self.progress_at.set(now);
        }
    }

    /// How long nothing arrived.
    pub fn silent_for(&self, now: Now) -> Duration {
        now.since(self.progress_at.get())
    }

    /// True while fetching waits for the disk.
    pub fn is_disk_waiting(&self) -> bool {
        self.is_recovering.get() || self.is_hung.get()
    }

    /// True while it is not known which pieces reached the disk: until then nothing is to be recorded.
    pub fn is_in_doubt(&self) -> bool {
        self.doubts.get() > 0
    }

    /// Message and hint that end the torrent.
    pub fn fatal(&self) -> Option<(String, String)> {
        self.fatal.borrow().clone()
    }

    /// Ends the torrent.
    pub fn set_fatal(&self, message: String, hint: String) {
        self.fatal.borrow_mut().get_or_insert((message, hint));
    }

    /// What the user was last told.
    pub fn last_told(&self) -> Option<String> {
        self.told.borrow().clone()
    }
}

impl Driver {
    /// Tells the user of trouble that is waited out, once until progress is made.
    pub fn tell_trouble(&self, message: String, hint: &str) {
        if self.trouble.told.borrow().as_ref() == Some(&message) {
            return;
        }
        warn!(%message, "trouble");
        *self.trouble.told.borrow_mut() = Some(message.clone());
        let info_hash = Some(self.info_hash());
        self.shared().emit(SessionEvent::Error {
            info_hash,
            message,
            hint: hint.to_owned(),
            is_final: false,
        });
    }

    /// The disk refused a write: fetching stops, seeding goes on, and it is tried again later.
    pub fn on_disk_trouble(self: &Rc<Self>, error: DiskError) {
        let now = self.shared().now();
        if self.trouble.is_recovering.replace(true) {
            self.trouble.retries.borrow_mut().on_another(now);
            return;
        }
        self.trouble.is_disk_erring.set(true);
        self.call(|core, cx| core.set_paused(true, cx));
        self.tell_trouble(error.to_string(), error.hint());
        let refusal = match () {
            () if error.is_out_of_handles() => Refusal::NoHandles,
            () if error.is_disk_full() => Refusal::Full,
            () => Refusal::Error,
        };
        let mut retries = self.trouble.retries.borrow_mut();
        let Some(mut wait) = retries.on_refusal(refusal, &error.path, now) else {
            self.trouble
                .set_fatal(error.to_string(), error.hint().to_owned());
            self.changed.notify_one();
            return;
        };
        drop(retries);
        // Not a task of the torrent: a shutdown does not wait for it.
        let driver = Rc::downgrade(self);
        let of_panic = driver.clone();
        let work = async move {
            loop {
                tokio::time::sleep(wait).await;
                let Some(driver) = driver.upgrade() else {
                    return;
                };
                let now = driver.shared().now();
                wait = driver.trouble.retries.borrow().left(now);
                if !wait.is_zero() {
                    continue;
                }
                wait = retry::FIRST_WAIT;
                if error.is_disk_full() && !has_space(driver.check_job.root.clone()).await {
                    continue;
                }
                driver.trouble.is_recovering.set(false);
                if !driver.trouble.is_disk_waiting() {
                    driver.call(|core, cx| core.set_paused(false, cx));
                }
                return;
            }
        };
        tokio_uring::spawn(async move {
            if caught(work).await.is_err()
                && let Some(driver) = of_panic.upgrade()
            {
                driver.on_panic();
            }
        });
    }

    /// Tells of a file system that hangs, and fetches nothing until it answers: what comes could not be written.
    pub fn look_for_hang(self: &Rc<Self>) {
        let is_hung = self.disk().stuck_for() >= HANGS_AFTER;
        if self.trouble.is_hung.replace(is_hung) == is_hung {
            return;
        }
        if is_hung {
            let folder = self.check_job.root.join(self.check_job.layout.root_name());
            let message = format!("the file system of {} does not answer", folder.display());
            self.tell_trouble(message, HUNG_HINT);
        }
        let is_paused = self.trouble.is_disk_waiting();
        self.call(|core, cx| core.set_paused(is_paused, cx));
    }

    /// Data that was had can no longer be read or has changed: looks at those pieces again (HOSTILE.md L3).
    pub fn on_data_suspect(self: &Rc<Self>, pieces: Vec<PieceIndex>, why: &str) {
        let driver = self.clone();
        let why = why.to_owned();
        self.spawn(async move { driver.check_again(pieces, why, Cached::Kept).await });
    }

    /// Somebody else changed a file: looks at all its pieces again. None is sent, and nothing recorded, until then.
    pub fn on_file_changed(self: &Rc<Self>, changed: Changed) {
        let driver = self.clone();
        self.trouble.doubts.set(self.trouble.doubts.get() + 1);
        self.spawn(async move {
            let (pieces, why) = (changed.pieces.clone(), changed.to_string());
            driver.check_again(pieces, why, Cached::Kept).await;
            driver.disk().end_check(&changed);
            driver.trouble.doubts.set(driver.trouble.doubts.get() - 1);
            driver.changed.notify_one();
        });
    }

    /// A sync failed: what the page cache holds of these pieces may never have reached the disk, though it looks clean
    /// now. They are read from the disk itself, and nothing is recorded until that is done.
    pub fn on_data_in_doubt(self: &Rc<Self>, pieces: Vec<PieceIndex>, why: &str) {
        let driver = self.clone();
        let why = why.to_owned();
        self.trouble.doubts.set(self.trouble.doubts.get() + 1);
        self.spawn(async move {
            driver.check_again(pieces, why, Cached::Dropped).await;
            driver.trouble.doubts.set(driver.trouble.doubts.get() - 1);
        });
    }

    async fn check_again(self: &Rc<Self>, pieces: Vec<PieceIndex>, why: String, cached: Cached) {
        let mut job = self.check_job.clone();
        job.pieces = Bitfield::new(job.layout.geometry().piece_count());
        let is_had = |piece: &PieceIndex| self.read(|core| core.have().has(*piece));
        let (had, others): (Vec<_>, Vec<_>) = pieces.iter().copied().partition(is_had);
        let is_lost = |piece: &PieceIndex| self.lost.has(*piece);
        let before: Vec<PieceIndex> = others.into_iter().filter(is_lost).collect();
        for piece in had.iter().chain(&before) {
            job.pieces.set(*piece);
        }
        if let Err(error) = self.disk().begin_check(&pieces).await {
            warn!(%error, "a file cannot be looked at");
        }
        let good = read_again(job, cached).await;
        self.disk().found_good(good.iter());
        let lost: Vec<PieceIndex> = had.into_iter().filter(|piece| !good.has(*piece)).collect();
        if !lost.is_empty() {
            self.on_lost(&lost, &why);
        }
        let found: Vec<PieceIndex> = before.into_iter().filter(|p| good.has(*p)).collect();
        if !found.is_empty() {
            self.on_found(&found);
        }
    }
}

/// The pieces of the job that are good. What cannot be read is tried again: handles may be short for a moment.
async fn read_again(mut job: CheckJob, cached: Cached) -> Bitfield {
    let mut good = Bitfield::new(job.layout.geometry().piece_count());
    for is_last in [false, false, true] {
        let of = job.clone();
        let looked = off_ring(move || {
            if cached == Cached::Dropped {
                check::drop_cached(&of);
            }
            check::check(&of, &AtomicU64::new(0), &AtomicBool::new(false))
        });
        let looked = looked.await;
        looked.good.iter().for_each(|piece| {
            good.set(piece);
        });
        if is_last || looked.unreadable.count() == 0 {
            break;
        }
        job.pieces = looked.unreadable;
        tokio::time::sleep(READ_RETRY).await;
    }
    good
}

/// What becomes of the pages in memory before data is looked at again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cached {
    Kept,
    Dropped,
}

/// Whether the disk under `folder` has room to go on; unknown counts as yes, so that it is tried.
async fn has_space(folder: PathBuf) -> bool {
    let look = off_ring(move || nix::sys::statvfs::statvfs(&folder));
    match look.await {
        Ok(stat) => stat.blocks_available().saturating_mul(stat.fragment_size()) >= SPACE_MIN_BYTES,
        _ => true,
    }
}
