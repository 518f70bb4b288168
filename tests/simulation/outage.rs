//! Disks that refuse every write for a while, and what a runtime does about it: the real policy of tries.

use std::path::Path;
use std::time::Duration;

use gyre::base::{Now, PieceIndex};
use gyre::storage::retry::{FIRST_WAIT, Refusal};

use crate::spec::Outage;
use crate::world::{Event, Life, World};

/// No piece is written again in vain more often (the figure of the project).
const RETRY_MIN: Duration = Duration::from_secs(30);
/// The longest a disk may stay erring: a runtime gives up after a minute of tries.
const ERRING_MAX_MS: u64 = 55_000;
const FULL_MAX_MS: u64 = 150_000;

impl World {
    /// A write begins: why it will be refused, if it will.
    pub fn refusal(&mut self, node: usize, piece: PieceIndex) -> Option<Refusal> {
        let now = self.now;
        let n = &mut self.nodes[node];
        let number = n.writes;
        n.writes += 1;
        if let Some(outage) = n.spec.outage
            && number == outage.from_write
        {
            n.refusing = Some((outage.refusal, now + outage.lasts));
        }
        if n.refused.remove(&piece) {
            let before = n.retried.insert(piece, now);
            let gap = before.map(|at| now.since(at));
            assert!(
                gap.is_none_or(|gap| gap >= RETRY_MIN),
                "node {node} writes {piece:?} again after {gap:?}"
            );
        }
        let (refusal, until) = n.refusing?;
        if now < until {
            return Some(refusal);
        }
        if n.recovered_after.is_none() {
            n.recovered_after = Some(now.since(until));
        }
        None
    }

    /// A disk somewhere fills up or errs.
    pub fn break_one(&mut self) {
        let up: Vec<usize> = (0..self.nodes.len())
            .filter(|n| self.nodes[*n].torrent.is_some() && !self.nodes[*n].spec.is_steady)
            .filter(|n| {
                self.nodes[*n]
                    .refusing
                    .is_none_or(|(_, until)| until < self.now)
            })
            .collect();
        if let Some(&node) = self.rng.pick(&up) {
            let (refusal, lasts) = match self.rng.chance(50) {
                true => (Refusal::Full, self.some_ms(1, FULL_MAX_MS)),
                false => (Refusal::Error, self.some_ms(1, ERRING_MAX_MS)),
            };
            self.nodes[node].refusing = Some((refusal, self.now + lasts));
            self.nodes[node].recovered_after = None;
        }
        self.next_fault(self.spec.faults.outage_every_ms, Event::Break);
    }

    /// A write was refused: nothing is fetched until it is tried again.
    pub fn on_refused(&mut self, node: usize, piece: PieceIndex, refusal: Refusal) {
        let now = self.now;
        let n = &mut self.nodes[node];
        n.refused.insert(piece);
        if n.is_recovering {
            n.retries.on_another(now);
            return;
        }
        n.is_recovering = true;
        let wait = n.retries.on_refusal(refusal, Path::new("file"), now);
        self.call(node, |torrent, cx| torrent.set_paused(true, cx));
        let life = self.life(node);
        match wait {
            Some(wait) => self.after(wait, Event::TryDisk { life, refusal }),
            // The command would end here; somebody starts it again when the disk is well.
            None => {
                let (_, until) = self.nodes[node].refusing.unwrap_or((refusal, now));
                self.crash(node, until.since(now) + Duration::from_secs(1));
            }
        }
    }

    /// The wait is over: a look at the space of a full disk, and then fetching goes on.
    pub fn try_disk(&mut self, life: Life, refusal: Refusal) {
        let node = life.0;
        if !self.is_alive(life) {
            return;
        }
        let left = self.nodes[node].retries.left(self.now);
        let is_full = (self.nodes[node].refusing)
            .is_some_and(|(now, until)| now == Refusal::Full && until > self.now);
        if !left.is_zero() {
            self.after(left, Event::TryDisk { life, refusal });
        } else if refusal == Refusal::Full && is_full {
            self.after(FIRST_WAIT, Event::TryDisk { life, refusal });
        } else {
            self.nodes[node].is_recovering = false;
            self.call(node, |torrent, cx| torrent.set_paused(false, cx));
        }
    }
}

impl Outage {
    /// From that write on, for so long.
    pub fn new(refusal: Refusal, from_write: u64, lasts: Duration) -> Outage {
        Outage {
            refusal,
            from_write,
            lasts,
        }
    }
}

/// A moment of a node's own clock in the time of the world.
pub fn world_time(at: Now, ahead: Duration) -> Now {
    Now::ZERO + at.since(Now::ZERO + ahead)
}
