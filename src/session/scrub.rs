//! A torrent's data read again while nothing is wrong with it, to find what has rotted on the disk. Layer 5. Blocks: for a
//! thread of its own.
//!
//! Looked at is what the resume record claims, in files that look as it says. A piece counts as rotten when it is not what
//! the torrent says, the record still claims it, and its files look the same behind the second look as before the first:
//! whatever was written or changed meanwhile is the running torrent's matter.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use super::check::{CheckJob, check};
use super::config::TorrentConfig;
use super::load;
use super::resume_store::{ResumeStore, observe};
use crate::base::{Bitfield, PieceIndex};
use crate::storage::parts::PartsMap;
use crate::storage::resume::{Observed, Record, judge};

/// Read at a time: short enough for the pauses between to keep a slow disk free.
const BATCH_BYTES: u64 = 4 << 20;

/// One torrent to look through.
pub struct Scrub {
    job: CheckJob,
    store: ResumeStore,
    state: Claim,
    info_hash: crate::base::InfoHash,
    left: std::vec::IntoIter<PieceIndex>,
}

/// What a record claims of files that look so.
struct Claim {
    record: Record,
    observed: Observed,
}

/// What one batch brought.
#[derive(Debug, Default)]
pub struct Batch {
    pub bytes: u64,
    pub took: Duration,
    /// Pieces that are not what they were.
    pub rotten: Vec<PieceIndex>,
}

impl Scrub {
    /// `None` when nothing of it is claimed, or what lies there is no longer what was recorded.
    pub fn open(config: &TorrentConfig, state_dir: PathBuf) -> Option<Scrub> {
        let located = load::locate(config, load::layout_of(config).ok()?);
        let (folder, layout) = located.ok()?;
        let store = ResumeStore::open(&state_dir).ok()?;
        let parts = PartsMap::new(&layout, config.metainfo.info_hash);
        let piece_count = layout.geometry().piece_count();
        let job = CheckJob {
            layout: Arc::new(layout),
            parts: Arc::new(parts),
            root: folder,
            piece_hashes: config.metainfo.info.piece_hashes.clone(),
            pieces: Bitfield::new(piece_count),
            threads: 1,
        };
        let info_hash = config.metainfo.info_hash;
        let state = Claim::look(&job, &store, info_hash)?;
        let claimed = state.trusted(&job);
        let left: Vec<PieceIndex> = claimed.iter().collect();
        Some(Scrub {
            job,
            store,
            state,
            info_hash,
            left: left.into_iter(),
        })
    }

    /// Pieces that are still to be read.
    pub fn left(&self) -> usize {
        self.left.len()
    }

    /// Reads some more; `None` when all was read.
    pub fn next(&mut self, is_stopped: &AtomicBool) -> Option<Batch> {
        let geometry = self.job.layout.geometry().clone();
        let (mut bytes, mut pieces) = (0, Bitfield::new(geometry.piece_count()));
        while bytes < BATCH_BYTES
            && let Some(piece) = self.left.next()
        {
            bytes += u64::from(geometry.piece_bytes(piece));
            pieces.set(piece);
        }
        if bytes == 0 {
            return None;
        }
        let began = Instant::now();
        let bad = self.bad(pieces, is_stopped);
        let took = began.elapsed();
        let rotten = match bad.count() {
            0 => Vec::new(),
            _ => self.confirmed(bad, is_stopped),
        };
        Some(Batch {
            bytes,
            took,
            rotten,
        })
    }

    /// Those of the pieces that are not good; none when it was broken off.
    fn bad(&self, pieces: Bitfield, is_stopped: &AtomicBool) -> Bitfield {
        let mut bad = pieces.clone();
        let job = CheckJob {
            pieces,
            ..self.job.clone()
        };
        let result = check(&job, &AtomicU64::new(0), is_stopped);
        for piece in result.good.iter() {
            bad.clear(piece);
        }
        match result.is_stopped {
            true => Bitfield::new(bad.len()),
            false => bad,
        }
    }

    /// Of bad pieces those that nobody changed or wrote meanwhile, and that are bad still.
    fn confirmed(&mut self, bad: Bitfield, is_stopped: &AtomicBool) -> Vec<PieceIndex> {
        let bad = self.bad(bad, is_stopped);
        let Some(now) = Claim::look(&self.job, &self.store, self.info_hash) else {
            return Vec::new();
        };
        let (trusted, layout) = (now.trusted(&self.job), &self.job.layout);
        let is_untouched = |piece: &PieceIndex| {
            let mut files = layout.files_of_piece(*piece);
            let look =
                |claim: &Claim, file: usize| claim.observed.files.get(file).copied().flatten();
            files.all(|file| look(&now, file) == look(&self.state, file))
        };
        let is_rotten = |piece: &PieceIndex| trusted.has(*piece) && is_untouched(piece);
        bad.iter().filter(is_rotten).collect()
    }
}

impl Claim {
    fn look(
        job: &CheckJob,
        store: &ResumeStore,
        info_hash: crate::base::InfoHash,
    ) -> Option<Claim> {
        let observed = observe(&job.root, &job.layout, &job.parts).ok()?.observed;
        let records = store.all(info_hash).ok()?;
        let mut record = records
            .into_iter()
            .find(|record| record.root.is_some() && record.root == observed.root)?;
        // An open record bears with files that were written since; here what was written since is not looked at.
        record.is_open = false;
        Some(Claim { record, observed })
    }

    /// Pieces that the record claims in files that fit it.
    fn trusted(&self, job: &CheckJob) -> Bitfield {
        judge(Some(&self.record), &self.observed, &job.layout).trusted
    }
}
