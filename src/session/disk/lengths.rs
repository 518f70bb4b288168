//! How long files must be: nothing of ours makes one shorter, so a shorter one has lost data. Layer 5.

use std::collections::BTreeSet;

use super::Stamps;
use crate::storage::layout::FileLayout;

/// What is known of the files' lengths.
pub(super) struct Lengths {
    /// One a file of the layout: how long it was when opened or checked last, and what was written since.
    least: Vec<u64>,
    /// How long each is in the end.
    whole: Vec<u64>,
    /// Files that were found shorter, or replaced, and are not told yet.
    damaged: BTreeSet<usize>,
}

impl Lengths {
    /// From the files as they were opened.
    pub fn new(layout: &FileLayout, stamps: &Stamps) -> Lengths {
        let whole: Vec<u64> = layout
            .files()
            .iter()
            .map(|file| file.length_bytes)
            .collect();
        let found = stamps
            .files
            .iter()
            .map(|stamp| stamp.map_or(0, |stamp| stamp.size_bytes));
        let least = found
            .zip(&whole)
            .map(|(found, whole)| found.min(*whole))
            .collect();
        Lengths {
            least,
            whole,
            damaged: BTreeSet::new(),
        }
    }

    /// At least so long; 0 for what is no file of the layout.
    pub fn least(&self, file: usize) -> u64 {
        self.least.get(file).copied().unwrap_or(0)
    }

    /// A write of ours ended there.
    pub fn written(&mut self, file: usize, end: u64) {
        if let Some(least) = self.least.get_mut(file) {
            *least = end.max(*least);
        }
    }

    /// Its pieces are about to be checked as it is now.
    pub fn found(&mut self, file: usize, bytes: u64) {
        if let (Some(least), Some(whole)) = (self.least.get_mut(file), self.whole.get(file)) {
            *least = bytes.min(*whole);
        }
    }

    /// It is so long now: too short is remembered until it is told, for a later write may hide it.
    pub fn look(&mut self, file: usize, bytes: u64) {
        if bytes < self.least(file) {
            self.damaged.insert(file);
        }
    }

    /// Something else is in its place.
    pub fn replaced(&mut self, file: usize) {
        self.damaged.insert(file);
    }

    /// Found damaged and not told yet.
    pub fn is_damaged(&self, file: usize) -> bool {
        self.damaged.contains(&file)
    }

    /// It is told now.
    pub fn told(&mut self, file: usize) {
        self.damaged.remove(&file);
    }
}
