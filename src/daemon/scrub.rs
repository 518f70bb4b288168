//! Torrents read again in the background, slowly, one after the other, to find what rots on the disk before a peer does.
//! Layer 6.
//!
//! The reading is done by a thread that comes behind all others at the disk and the processor, keeps to the rate it is given,
//! and rests while the torrents themselves move much or the disk is slow to answer. What it finds is told to the session,
//! which looks itself, drops what is bad and fetches it again. Rows remember when they were last read through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tracing::{debug, info, warn};

use super::date::unix_now_s;
use super::handle::Control;
use super::relocate::off_thread;
use super::row::{Origin, TorrentRow};
use crate::base::{InfoHash, PieceIndex};
use crate::session::scrub::{Batch, Scrub};
use crate::session::{Command, Job, TorrentSource};
use crate::uring::idle;

/// Payload a second, both ways, that is left alone with the disks.
const BUSY_BYTES_PER_S: u64 = 50_000_000;
/// A rest while it is so.
const REST: Duration = Duration::from_secs(5);
/// A disk that reads slower than that, beside the time to open files, has other things to do.
const SLOW_BYTES_PER_S: u64 = 4_000_000;
const OPENING: Duration = Duration::from_millis(250);
/// Between two looks for a torrent whose time has come.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// The same where the period is shorter.
const LOOK_MIN: Duration = Duration::from_secs(1);
/// Rotten pieces told of one torrent at a time; the others are found the next time.
const ROTTEN_MAX: usize = 4_096;
/// The thread looks this often whether it is to end.
const NAP: Duration = Duration::from_millis(100);

/// How torrents are read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrubbing {
    /// 0 reads nothing.
    pub bytes_per_s: u64,
    /// Each torrent once in that time.
    pub period: Duration,
}

/// What was read so far.
#[derive(Debug, Default)]
pub struct Scrubbed {
    bytes: AtomicU64,
    rotten_pieces: AtomicU64,
}

impl Scrubbed {
    /// Bytes, and pieces that had rotted.
    pub fn counts(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.bytes), of(&self.rotten_pieces))
    }
}

/// Reads torrents again until the daemon ends.
pub async fn scrub(control: Control, settings: Scrubbing) {
    if settings.bytes_per_s == 0 {
        return std::future::pending().await;
    }
    let is_over = Arc::new(Over::default());
    let _end = EndOnDrop(is_over.clone());
    loop {
        let Some(row) = control.next_to_scrub(settings.period) else {
            tokio::time::sleep(settings.period.clamp(LOOK_MIN, LOOK_INTERVAL)).await;
            continue;
        };
        let (of, over, info_hash) = (control.clone(), is_over.clone(), row.info_hash);
        let rotten =
            off_thread(move || of.read_again(info_hash, settings.bytes_per_s, &over)).await;
        // It is not to be tried again and again: what could not be read now is in its next turn.
        let rotten = rotten.unwrap_or_default();
        if !rotten.is_empty() {
            let asked = control.inner.session.ask(|reply| Command::Suspect {
                info_hash,
                pieces: rotten,
                reply,
            });
            if let Err(error) = asked.await {
                debug!(%info_hash, %error, "nobody hears of what rotted");
            }
        }
        let now = unix_now_s();
        let _ = control
            .change_row(info_hash, |row| row.scrubbed_unix_s = Some(now))
            .await;
    }
}

/// The daemon ends.
#[derive(Default)]
struct Over(AtomicBool);

struct EndOnDrop(Arc<Over>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Control {
    /// What was read so far by the scrubber.
    pub fn scrubbed(&self) -> &Scrubbed {
        &self.inner.torrents.scrubbed
    }

    /// The torrent that was read longest ago, if that is long enough.
    fn next_to_scrub(&self, period: Duration) -> Option<Arc<TorrentRow>> {
        let before =
            unix_now_s().saturating_sub(i64::try_from(period.as_secs()).unwrap_or(i64::MAX));
        let rows = self.inner.torrents.rows();
        let has_data = |row: &TorrentRow| {
            let shown = || self.inner.session.torrent(&row.info_hash);
            row.pieces_have > 0 || shown().is_some_and(|shown| shown.progress.pieces_have > 0)
        };
        let is_due = |row: &&Arc<TorrentRow>| {
            let is_there = row.leaving.is_none() && !row.is_on_its_way();
            let is_torrent = is_there && row.origin == Origin::Torrent;
            is_torrent && row.read_at() <= before && has_data(row)
        };
        rows.values()
            .filter(is_due)
            .min_by_key(|row| row.read_at())
            .cloned()
    }

    /// Reads one torrent through; its pieces that rotted.
    fn read_again(&self, info_hash: InfoHash, bytes_per_s: u64, over: &Over) -> Vec<PieceIndex> {
        if let Err(error) = idle::make_idle() {
            debug!(%error, "the thread that reads torrents again is like any other");
        }
        let torrents = &self.inner.torrents;
        let Ok(Job::Torrent(config)) = torrents.job(info_hash) else {
            return Vec::new();
        };
        let Some(mut scrub) = Scrub::open(&config, torrents.folder.path().to_owned()) else {
            return Vec::new();
        };
        debug!(%info_hash, pieces = scrub.left(), "reading again");
        let mut rotten: Vec<PieceIndex> = Vec::new();
        while let Some(batch) = scrub.next(&over.0) {
            torrents
                .scrubbed
                .bytes
                .fetch_add(batch.bytes, Ordering::Relaxed);
            rotten.extend(&batch.rotten);
            if over.0.load(Ordering::Relaxed) || rotten.len() >= ROTTEN_MAX {
                break;
            }
            let mut rest = rest_behind(&batch, bytes_per_s, self.moved_bytes_per_s());
            // Calm is looked for again after each rest.
            while !rest.is_zero() && !over.0.load(Ordering::Relaxed) {
                over.sleep(rest);
                rest = match self.moved_bytes_per_s() >= BUSY_BYTES_PER_S {
                    true => REST,
                    false => Duration::ZERO,
                };
            }
        }
        rotten.truncate(ROTTEN_MAX);
        if rotten.is_empty() {
            info!(%info_hash, "read again, all of it is good");
        } else {
            let count = rotten.len() as u64;
            torrents
                .scrubbed
                .rotten_pieces
                .fetch_add(count, Ordering::Relaxed);
            let name = config.metainfo.info.name.escape_debug();
            warn!(
                %info_hash,
                "{count} pieces of {name} have rotted on the disk, the first is {}; hint: look at the disk's health, what \
                 is bad is fetched again where peers have it",
                rotten.first().map_or(0, |piece| piece.get())
            );
        }
        rotten
    }

    fn moved_bytes_per_s(&self) -> u64 {
        let session = self.session();
        session
            .up_bytes_per_s
            .saturating_add(session.down_bytes_per_s)
    }
}

impl Over {
    fn sleep(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() && !self.0.load(Ordering::Relaxed) {
            let nap = left.min(NAP);
            std::thread::sleep(nap);
            left = left.saturating_sub(nap);
        }
    }
}

impl TorrentRow {
    /// When it was last read through; one that never was, when it was added.
    const fn read_at(&self) -> i64 {
        match self.scrubbed_unix_s {
            Some(at) => at,
            None => self.added_unix_s,
        }
    }
}

/// How long to rest behind a batch: so that the rate is kept, and longer where others need the disk.
fn rest_behind(batch: &Batch, bytes_per_s: u64, moved_bytes_per_s: u64) -> Duration {
    let time_at = |bytes_per_s: u64| {
        let ns = u128::from(batch.bytes) * 1_000_000_000 / u128::from(bytes_per_s.max(1));
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    };
    let is_slow = batch.took > time_at(SLOW_BYTES_PER_S) + OPENING;
    let is_busy = is_slow || moved_bytes_per_s >= BUSY_BYTES_PER_S;
    let rest = time_at(bytes_per_s).saturating_sub(batch.took);
    match is_busy {
        true => rest.max(REST),
        false => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(took_ms: u64) -> Batch {
        Batch {
            bytes: 4_000_000,
            took: Duration::from_millis(took_ms),
            rotten: Vec::new(),
        }
    }

    #[test]
    fn the_rate_is_kept_and_others_are_left_alone_with_the_disk() {
        let ms = Duration::from_millis;
        assert_eq!(rest_behind(&batch(100), 8_000_000, 0), ms(400));
        assert_eq!(rest_behind(&batch(900), 8_000_000, 0), Duration::ZERO);
        assert_eq!(rest_behind(&batch(100), 8_000_000, BUSY_BYTES_PER_S), REST);
        assert_eq!(
            rest_behind(&batch(1_251), 8_000_000, 0),
            REST,
            "a slow disk"
        );
        assert_eq!(
            rest_behind(&batch(0), 400_000, BUSY_BYTES_PER_S),
            ms(10_000)
        );
    }
}
