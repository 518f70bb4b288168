//! The requests one peer has not answered yet, and how many there should be. Layer 2.
//!
//! The depth starts small, doubles a round trip while the rate still rises (slow start), then follows the measured
//! rate so that about `QUEUE_SECS` of work lie with the peer.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::{BLOCK_BYTES, BlockRef, Now, PieceIndex, RateMeter};
use crate::wire::message::RawBlock;

/// Requests in flight at most: 8 MiB of blocks keep a gigabyte a second busy over 8 ms.
pub const PIPELINE_MAX: u32 = 512;
/// What a peer that says nothing (BEP 10, `reqq`) is taken to bear.
const PEER_REQQ_DEFAULT: u32 = 250;
/// A peer's `reqq` is not filled to the last: Transmission refuses the one that would fill its queue.
const REQQ_SPARED: u32 = 2;
/// Depth before anything is known.
const DEPTH_START: u32 = 16;
/// Depth of a slow peer: one block under way and a few behind it.
const DEPTH_MIN: u32 = 4;
/// Work that should lie with the peer once its rate is known.
const QUEUE_SECS: f64 = 1.5;
/// How often the rate is looked at.
const REVIEW_INTERVAL: Duration = Duration::from_millis(1_000);
/// Without a byte of payload for so long a peer that owes blocks is snubbed (BEP 3 clients' usual minute, halved).
pub const SNUB_AFTER: Duration = Duration::from_secs(30);
/// Withdrawn requests remembered, so that blocks already under way are not taken for unasked ones. Two full
/// pipelines: one may be withdrawn while the answers to the one before still come.
const LATE_MAX: usize = 2 * PIPELINE_MAX as usize;

/// How an arriving block relates to what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// An outstanding request.
    Outstanding(BlockRef),
    /// A request withdrawn before (cancel, choke, snub).
    Late(BlockRef),
    /// Never.
    No,
}

/// The requests of one peer.
#[derive(Clone, Debug)]
pub struct Pipeline {
    outstanding: VecDeque<BlockRef>,
    late: VecDeque<BlockRef>,
    depth: u32,
    depth_max: u32,
    is_slow_start: bool,
    is_snubbed: bool,
    rate: RateMeter,
    reviewed_at: Now,
    reviewed_bytes: u64,
    reviewed_rate: u64,
    /// When payload last came, or when the first of the present requests was sent.
    progress_at: Now,
}

impl Pipeline {
    /// No requests yet.
    pub fn new(now: Now) -> Self {
        Pipeline {
            outstanding: VecDeque::new(),
            late: VecDeque::new(),
            depth: DEPTH_START,
            depth_max: PEER_REQQ_DEFAULT,
            is_slow_start: true,
            is_snubbed: false,
            rate: RateMeter::new(now),
            reviewed_at: now,
            reviewed_bytes: 0,
            reviewed_rate: 0,
            progress_at: now,
        }
    }

    /// Takes the peer's `reqq`, clamped: 0 and 2³¹ are seen in the wild and in attacks (HOSTILE.md W13).
    pub fn set_peer_reqq(&mut self, reqq: u32) {
        self.depth_max = reqq.saturating_sub(REQQ_SPARED).clamp(1, PIPELINE_MAX);
        self.depth = self.depth.min(self.depth_max);
    }

    /// How many more requests may be sent.
    pub fn room(&self) -> u32 {
        let depth = if self.is_snubbed { 1 } else { self.depth };
        depth.saturating_sub(self.len())
    }

    /// Number of outstanding requests.
    pub fn len(&self) -> u32 {
        self.outstanding.len() as u32
    }

    /// True without outstanding requests.
    pub fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// The outstanding requests, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = BlockRef> + '_ {
        self.outstanding.iter().copied()
    }

    /// True when this very block is outstanding.
    pub fn contains(&self, block: BlockRef) -> bool {
        self.outstanding.contains(&block)
    }

    /// Peer that owes blocks and stays silent.
    pub const fn is_snubbed(&self) -> bool {
        self.is_snubbed
    }

    /// For how long the peer has owed blocks without a byte of them.
    pub fn owes_since(&self, now: Now) -> Duration {
        match self.outstanding.is_empty() {
            true => Duration::ZERO,
            false => now.since(self.progress_at),
        }
    }

    /// The present depth, for display.
    pub const fn depth(&self) -> u32 {
        self.depth
    }

    /// A request was sent.
    pub fn push(&mut self, block: BlockRef, now: Now) {
        if self.outstanding.is_empty() {
            // A second in which nothing was asked says nothing about the path.
            if now.since(self.progress_at) >= REVIEW_INTERVAL {
                self.reviewed_at = now;
                self.reviewed_bytes = self.rate.total_bytes();
            }
            self.progress_at = now;
        }
        self.outstanding.push_back(block);
    }

    /// A block arrives or is rejected: finds and removes its request. In order, as peers answer, this is O(1).
    pub fn take(&mut self, raw: RawBlock) -> Asked {
        if let Some(block) = take_from(&mut self.outstanding, raw) {
            return Asked::Outstanding(block);
        }
        take_from(&mut self.late, raw).map_or(Asked::No, Asked::Late)
    }

    /// Withdraws one request; true when it was outstanding.
    pub fn withdraw(&mut self, block: BlockRef) -> bool {
        let Some(at) = self.outstanding.iter().position(|other| *other == block) else {
            return false;
        };
        self.outstanding.remove(at);
        self.remember_late(block);
        true
    }

    /// Withdraws every request and returns them, oldest first.
    pub fn withdraw_all(&mut self) -> Vec<BlockRef> {
        let all: Vec<BlockRef> = self.outstanding.drain(..).collect();
        all.iter().for_each(|block| self.remember_late(*block));
        all
    }

    /// Withdraws every request outside these pieces and returns them, oldest first.
    pub fn withdraw_except(&mut self, pieces: &[PieceIndex]) -> Vec<BlockRef> {
        let all = self.withdraw_all();
        let (kept, withdrawn): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|block| pieces.contains(&block.piece()));
        if !kept.is_empty() {
            self.late.retain(|block| !kept.contains(block));
            self.outstanding.extend(kept);
        }
        withdrawn
    }

    /// Payload came: the snub clock starts anew.
    pub fn on_bytes(&mut self, bytes: u32, now: Now) {
        self.rate.add(u64::from(bytes), now);
        self.progress_at = now;
    }

    /// A whole block came: adapts the depth. True when the peer had been snubbed and no longer is.
    pub fn on_block(&mut self, now: Now) -> bool {
        let was_snubbed = std::mem::replace(&mut self.is_snubbed, false);
        if self.is_slow_start {
            self.depth = (self.depth + 1).min(self.depth_max);
        }
        if now.since(self.reviewed_at) >= REVIEW_INTERVAL {
            self.review(now);
        }
        was_snubbed
    }

    /// Marks a silent peer; true when it is newly snubbed.
    pub fn check_snub(&mut self, now: Now) -> bool {
        let is_silent = !self.outstanding.is_empty() && now.since(self.progress_at) >= SNUB_AFTER;
        if !is_silent || self.is_snubbed {
            return false;
        }
        self.is_snubbed = true;
        self.is_slow_start = false;
        self.depth = DEPTH_MIN.min(self.depth_max);
        true
    }

    /// Payload received, in bytes a second.
    pub fn bytes_per_s(&self, now: Now) -> u64 {
        self.rate.clone().bytes_per_s(now)
    }

    /// All payload received, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.rate.total_bytes()
    }

    fn review(&mut self, now: Now) {
        let secs = now.since(self.reviewed_at).as_secs_f64();
        let bytes = self.rate.total_bytes() - self.reviewed_bytes;
        let rate = (bytes as f64 / secs) as u64;
        // Without a tenth more than a second ago the path is full: more requests would only wait.
        if self.is_slow_start && rate <= self.reviewed_rate + self.reviewed_rate / 10 {
            self.is_slow_start = false;
        }
        self.reviewed_at = now;
        self.reviewed_bytes = self.rate.total_bytes();
        self.reviewed_rate = rate;
        if !self.is_slow_start {
            // The smoothed rate bridges a pause, the last second's follows a rise at once.
            let rate = rate.max(self.rate.bytes_per_s(now));
            let blocks = rate as f64 * QUEUE_SECS / f64::from(BLOCK_BYTES);
            self.depth = (blocks as u32).max(DEPTH_MIN).min(self.depth_max);
        }
    }

    fn remember_late(&mut self, block: BlockRef) {
        if self.late.len() == LATE_MAX {
            self.late.pop_front();
        }
        self.late.push_back(block);
    }
}

fn take_from(queue: &mut VecDeque<BlockRef>, raw: RawBlock) -> Option<BlockRef> {
    let is_it = |block: &BlockRef| {
        block.begin() == raw.begin
            && block.piece().get() == raw.piece
            && block.length() == raw.length
    };
    let at = queue.iter().position(is_it)?;
    queue.remove(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Geometry;

    fn block(index: u32) -> BlockRef {
        let geometry = Geometry::new(1 << 30, 1 << 30 >> 1).unwrap();
        geometry.block(PieceIndex::new(0), index).unwrap()
    }

    fn raw(block: BlockRef) -> RawBlock {
        RawBlock {
            piece: block.piece().get(),
            begin: block.begin(),
            length: block.length(),
        }
    }

    #[test]
    fn depth_doubles_each_round_trip_up_to_what_the_peer_bears() {
        let mut p = Pipeline::new(Now::ZERO);
        p.set_peer_reqq(402);
        let mut rounds = 0;
        while p.depth() < 400 {
            rounds += 1;
            assert!(rounds <= 5, "depth {}", p.depth());
            for _ in 0..p.depth() {
                p.on_bytes(BLOCK_BYTES, Now::from_millis(rounds));
                p.on_block(Now::from_millis(rounds));
            }
        }
    }

    /// Transmission unchokes at its ten-second mark and answers what has come every half second.
    #[test]
    fn a_peer_that_answers_in_bursts_long_after_connecting_is_soon_asked_for_much() {
        let mut p = Pipeline::new(Now::ZERO);
        let mut next = 0;
        for half_second in 20..26 {
            let now = Now::from_millis(half_second * 500);
            for asked in p.withdraw_all() {
                p.on_bytes(asked.length(), now);
                p.on_block(now);
            }
            while p.room() > 0 {
                p.push(block(next), now);
                next += 1;
            }
        }
        assert_eq!(p.depth(), PEER_REQQ_DEFAULT);
    }

    #[test]
    fn a_slow_peer_gets_a_short_queue() {
        let mut p = Pipeline::new(Now::ZERO);
        for second in 1..20 {
            p.on_bytes(BLOCK_BYTES, Now::from_secs(second));
            p.on_block(Now::from_secs(second));
        }
        assert_eq!(p.depth(), DEPTH_MIN);
    }

    #[test]
    fn withdrawn_requests_are_late_not_unasked() {
        let mut p = Pipeline::new(Now::ZERO);
        p.push(block(0), Now::ZERO);
        p.push(block(1), Now::ZERO);
        assert!(p.withdraw(block(1)));
        assert!(!p.withdraw(block(1)));
        assert_eq!(p.take(raw(block(0))), Asked::Outstanding(block(0)));
        assert_eq!(p.take(raw(block(1))), Asked::Late(block(1)));
        assert_eq!(p.take(raw(block(1))), Asked::No);
    }

    #[test]
    fn silence_snubs_and_a_block_ends_it() {
        let mut p = Pipeline::new(Now::ZERO);
        assert!(!p.check_snub(Now::from_secs(100)), "nothing is owed");
        p.push(block(0), Now::from_secs(100));
        assert!(!p.check_snub(Now::from_secs(129)));
        assert!(p.check_snub(Now::from_secs(130)));
        assert_eq!(p.room(), 0);
        p.take(raw(block(0)));
        assert_eq!(p.room(), 1);
        assert!(p.on_block(Now::from_secs(131)));
        assert!(p.room() > 1);
    }

    #[test]
    fn absurd_reqq_is_clamped() {
        let mut p = Pipeline::new(Now::ZERO);
        p.set_peer_reqq(0);
        assert_eq!(p.room(), 1);
        p.set_peer_reqq(512);
        assert_eq!(p.depth_max, 510);
        p.set_peer_reqq(1 << 31);
        assert_eq!(p.depth_max, PIPELINE_MAX);
    }
}
