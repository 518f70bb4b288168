//! How much goes to the disk and how much leaves for peers, to choose the write engine by. Layer 5.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Length of one measuring interval: long enough to see past bursts, short enough to follow a swarm.
const INTERVAL: Duration = Duration::from_secs(2);
/// Uploads count from this share of the writes on: below it reading the few pieces back costs less than caching all.
const SHARE: u64 = 4;

/// Bytes of this interval and of the one before.
#[derive(Debug)]
pub(super) struct Traffic {
    since: Cell<Instant>,
    written: Cell<[u64; 2]>,
    sent: Cell<[u64; 2]>,
}

impl Traffic {
    /// Nothing yet.
    pub fn new() -> Traffic {
        Traffic {
            since: Cell::new(Instant::now()),
            written: Cell::default(),
            sent: Cell::default(),
        }
    }

    /// Verified bytes went to the disk.
    pub fn note_written(&self, bytes: usize) {
        self.roll(Instant::now());
        add(&self.written, bytes);
    }

    /// Bytes of the disk are on their way to a peer.
    pub fn note_sent(&self, bytes: usize) {
        self.roll(Instant::now());
        add(&self.sent, bytes);
    }

    /// Whether what is written is likely to be asked for soon.
    pub fn is_uploading(&self) -> bool {
        let sum = |[now, before]: [u64; 2]| now + before;
        sum(self.sent.get()) * SHARE > sum(self.written.get())
    }

    fn roll(&self, now: Instant) {
        let passed = now - self.since.get();
        if passed < INTERVAL {
            return;
        }
        self.since.set(now);
        let keeps = passed < 2 * INTERVAL;
        for counts in [&self.written, &self.sent] {
            let [present, _] = counts.get();
            counts.set([0, if keeps { present } else { 0 }]);
        }
    }
}

fn add(counts: &Cell<[u64; 2]>, bytes: usize) {
    let [present, before] = counts.get();
    counts.set([present.saturating_add(bytes as u64), before]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_count_once_they_are_a_quarter_of_the_writes() {
        let traffic = Traffic::new();
        assert!(!traffic.is_uploading());
        traffic.note_written(1000);
        traffic.note_sent(250);
        assert!(!traffic.is_uploading());
        traffic.note_sent(1);
        assert!(traffic.is_uploading());
    }

    #[test]
    fn old_intervals_are_forgotten() {
        let traffic = Traffic::new();
        traffic.note_sent(1000);
        let start = traffic.since.get();
        traffic.roll(start + INTERVAL);
        assert!(traffic.is_uploading());
        traffic.roll(start + 4 * INTERVAL);
        assert!(!traffic.is_uploading());
    }
}
