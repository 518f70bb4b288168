//! The account of assembly memory: what may be reserved, and what slow pieces must give back. Layer 2.

use super::active::{Active, Phase, Segment};
use super::{Mode, Pieces};
use crate::base::{BLOCK_BYTES, Now, PieceIndex};
use crate::swarm::effects::Credits;

/// A partial piece that would take longer than this at its present pace is slow: it must not hold memory that fast
/// peers starve for.
const SLOW_SECS: u64 = 3;

impl Pieces {
    /// Frees memory that slow partial pieces hold: returns segments to flush; memory without bytes comes back at once.
    pub fn spill(&mut self, now: Now, credits: &mut Credits) -> Vec<(PieceIndex, u32)> {
        let slow = self.active.iter().filter(|(_, a)| is_slow(a, now));
        let Some(slot) = slow
            .max_by_key(|(_, a)| now.since(a.progress_at))
            .map(|(slot, _)| slot)
        else {
            return Vec::new();
        };
        let active = &mut self.active[slot];
        active.mode = Mode::Streamed;
        let piece = active.piece;
        let mut flushes = Vec::new();
        let mut freed_bytes = 0;
        for index in 0..active.segments.len() {
            let segment = &mut active.segments[index];
            if !segment.is_reserved || segment.receiving > 0 || segment.is_flushing {
                continue;
            }
            if segment.in_memory > 0 {
                active.begin_flush(index as u32);
                flushes.push((piece, index as u32));
            } else {
                segment.is_reserved = false;
                freed_bytes += u64::from(segment.bytes);
            }
        }
        self.give_back(freed_bytes, credits);
        flushes
    }

    /// Whether a new piece or segment may take `bytes`. A torrent that holds nothing may use the last byte.
    pub(super) const fn may_reserve(&self, bytes: u64, credits: &Credits) -> bool {
        let floor_bytes = if self.reserved_bytes == 0 {
            0
        } else {
            self.floor_bytes
        };
        credits.assembly_bytes >= bytes + floor_bytes
    }

    pub(super) const fn deduct(&mut self, bytes: u64, credits: &mut Credits) {
        credits.assembly_bytes -= bytes;
        self.reserved_bytes += bytes;
    }

    pub(super) const fn give_back(&mut self, bytes: u64, credits: &mut Credits) {
        if bytes > 0 {
            credits.assembly_bytes += bytes;
            self.reserved_bytes -= bytes;
            self.epoch += 1;
        }
    }
}

/// True when the piece holds memory that could be freed and its blocks come slowly.
fn is_slow(active: &Active, now: Now) -> bool {
    let can_free = |s: &Segment| s.is_reserved && s.receiving == 0 && !s.is_flushing;
    if active.phase != Phase::Fetching || !active.segments.iter().any(can_free) {
        return false;
    }
    let age = now.since(active.opened_at).as_micros();
    let here_bytes = u128::from(active.here * BLOCK_BYTES);
    let left_bytes = active.blocks.len() as u128 * u128::from(BLOCK_BYTES) - here_bytes;
    let idle = now.since(active.progress_at).as_secs();
    // Time left at the present pace, seconds: left / (here / age).
    let is_crawling = left_bytes * age > here_bytes.max(1) * u128::from(SLOW_SECS) * 1_000_000;
    age >= 1_000_000 && (is_crawling || idle >= SLOW_SECS) && idle < u64::MAX
}
