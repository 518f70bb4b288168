//! Pieces that were had and are no longer good: whose files are looked at until they are as they were. Layer 5.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use tracing::info;

use super::config::SessionEvent;
use super::driver::Driver;
use crate::base::{Now, PieceIndex};
use crate::uring::files::FileStamp;

/// The same cause is told again after this time: reads of one failing disk come by the hundred.
const SAME_CAUSE: Duration = Duration::from_secs(30);

/// What was lost, by file.
#[derive(Default)]
pub struct LostPieces {
    files: RefCell<BTreeMap<usize, LostFile>>,
    is_looking: Cell<bool>,
    /// Why pieces were last lost, and when that was told.
    told: RefCell<Option<(String, Now)>>,
}

struct LostFile {
    pieces: BTreeSet<PieceIndex>,
    /// How it looked when its pieces were last read.
    checked: Option<FileStamp>,
    /// How it looked a second ago: what is still being written is not read yet.
    seen: Option<FileStamp>,
    /// Writes of ours by then: a file that we fetch again is none that comes back.
    writes: u64,
}

impl LostPieces {
    /// True for a piece that was lost and may come back.
    pub fn has(&self, piece: PieceIndex) -> bool {
        let files = self.files.borrow();
        files.values().any(|file| file.pieces.contains(&piece))
    }

    fn forget(&self, pieces: &[PieceIndex]) {
        self.files.borrow_mut().retain(|_, file| {
            pieces.iter().for_each(|piece| {
                file.pieces.remove(piece);
            });
            !file.pieces.is_empty()
        });
    }

    /// True when this cause is to be told now.
    fn is_news(&self, why: &str, now: Now) -> bool {
        let mut told = self.told.borrow_mut();
        let is_same = |(before, at): &(String, Now)| before == why && now.since(*at) < SAME_CAUSE;
        if told.as_ref().is_some_and(is_same) {
            return false;
        }
        *told = Some((why.to_owned(), now));
        true
    }
}

impl Driver {
    /// Pieces that were had were read and are not good any more.
    pub(super) fn on_lost(self: &Rc<Self>, lost: &[PieceIndex], why: &str) {
        self.lose(lost);
        let count = lost.len();
        let hint =
            "the files were changed, truncated or removed: restore them, or run `gyre verify`";
        self.tell_lost(
            why,
            format!("{count} pieces that were verified are no longer good: {why}"),
            hint,
        );
    }

    /// A piece that had been taken over without being hashed is not what the torrent says.
    pub(super) fn on_disproved(self: &Rc<Self>, piece: PieceIndex) {
        self.lose(&[piece]);
        let message = "data that was taken over from elsewhere is not what the torrent says";
        let hint = "what is wrong is fetched anew, into a copy where the file is another's too";
        self.tell_lost(message, message.to_owned(), hint);
    }

    fn lose(self: &Rc<Self>, lost: &[PieceIndex]) {
        self.call(|core, cx| core.on_pieces_lost(lost, cx));
        let mut files = self.lost.files.borrow_mut();
        for piece in lost {
            for file in self.disk().own_files_of(*piece) {
                let checked = self.disk().seen_of(file);
                let entry = files.entry(file).or_insert_with(|| LostFile {
                    pieces: BTreeSet::new(),
                    checked,
                    seen: checked,
                    writes: self.disk().writes_of(file),
                });
                entry.checked = checked;
                entry.pieces.insert(*piece);
            }
        }
        drop(files);
        self.changed.notify_one();
    }

    fn tell_lost(&self, why: &str, message: String, hint: &str) {
        if self.lost.is_news(why, self.shared().now()) {
            self.shared().emit(SessionEvent::Warning {
                info_hash: Some(self.info_hash()),
                message,
                hint: hint.to_owned(),
            });
        }
    }

    /// Pieces that were lost were read again and are good.
    pub(super) fn on_found(self: &Rc<Self>, found: &[PieceIndex]) {
        self.lost.forget(found);
        self.lost.told.take();
        info!(pieces = found.len(), "lost data is there again");
        self.call(|core, cx| core.on_pieces_found(found, cx));
        self.changed.notify_one();
    }

    /// Looks at the files of lost pieces, and reads those that changed and have come to rest (HOSTILE.md L3). Once a
    /// second.
    pub(super) fn look_for_returned(self: &Rc<Self>) {
        let files: Vec<usize> = self.lost.files.borrow().keys().copied().collect();
        if files.is_empty() || self.lost.is_looking.replace(true) {
            return;
        }
        let driver = self.clone();
        self.spawn(async move {
            let looked = driver.disk().look_at_names(files).await;
            driver.lost.is_looking.set(false);
            for (file, stamp) in looked {
                if driver.has_returned(file, stamp)
                    && let Some(changed) = driver.disk().changed_unless_told(file)
                {
                    driver.on_file_changed(changed);
                }
            }
        });
    }

    /// Takes note of how the file looks; true when its pieces should be read.
    fn has_returned(&self, file: usize, stamp: Option<FileStamp>) -> bool {
        let mut files = self.lost.files.borrow_mut();
        let Some(entry) = files.get_mut(&file) else {
            return false;
        };
        if self.disk().writes_of(file) != entry.writes {
            files.remove(&file);
            return false;
        }
        let before = std::mem::replace(&mut entry.seen, stamp);
        if !is_same(before, stamp) || is_same(entry.checked, stamp) {
            return false;
        }
        entry.checked = stamp;
        stamp.is_some()
    }
}

fn is_same(before: Option<FileStamp>, now: Option<FileStamp>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => before.is_same_version(&now),
        (before, now) => before.is_none() && now.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once_in_a_while() {
        let lost = LostPieces::default();
        assert!(lost.is_news("a was changed", Now::from_secs(100)));
        assert!(!lost.is_news("a was changed", Now::from_secs(110)));
        assert!(lost.is_news("b was changed", Now::from_secs(111)));
        assert!(lost.is_news("b was changed", Now::from_secs(141)));
    }
}
