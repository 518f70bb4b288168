//! The requests one peer has not answered yet, and how many there should be. Layer 2.
//!
//! The depth starts small, doubles a round trip while the rate still rises (slow start), then follows what was
//! measured: the rate times the time that requests should cover, which is the peer's answering time and a reserve.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::{BLOCK_BYTES, BlockRef, Geometry, Now, PieceIndex, RateMeter};
use crate::wire::message::RawBlock;

/// Requests in flight at most: 8 MiB of blocks keep a gigabyte a second busy over 8 ms.
pub const PIPELINE_MAX: u32 = 512;
/// What a peer that says nothing (BEP 10, `reqq`) is taken to bear.
const PEER_REQQ_DEFAULT: u32 = 250;
/// A peer's `reqq` is not filled to the last: Transmission refuses the one that would fill its queue.
const REQQ_SPARED: u32 = 2;
/// How deep a pipeline is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Before anything is known.
    depth_start: u32,
    /// However slow it is.
    depth_min: u32,
    /// However fast it is.
    depth_max: u32,
    /// Work that should lie with it beyond what its answering time needs.
    reserve: Duration,
}

/// For peers. A slow one has one block under way and a few behind it. Its scheduler, its disk and our reader each look
/// away for some tenths of a second now and then.
pub const PEER_PACE: Pace = Pace {
    depth_start: 16,
    depth_min: 4,
    depth_max: PEER_REQQ_DEFAULT,
    reserve: Duration::from_secs(1),
};

/// For connections to web seeds, where what waits becomes one HTTP request: 1 MiB to 4 MiB, so that the pause between
/// two requests is short against the answer, and a few connections leave assembly memory to peers.
pub const WEB_PACE: Pace = Pace {
    depth_start: 64,
    depth_min: 64,
    depth_max: 256,
    reserve: Duration::from_secs(4),
};

/// A peer that takes longer than this to begin answering gets no more requests for it.
const LATENCY_MAX: Duration = Duration::from_secs(4);
/// How often the rate is looked at.
const REVIEW_INTERVAL: Duration = Duration::from_millis(1_000);
/// Without a byte of payload for so long a peer that owes blocks is snubbed (BEP 3 clients' usual minute, halved);
/// a snubbed one is asked for one block each time this much has passed again.
pub const SNUB_AFTER: Duration = Duration::from_secs(30);
/// Withdrawn requests remembered, so that blocks already under way are not taken for unasked ones. Two full
/// pipelines: one may be withdrawn while the answers to the one before still come.
const LATE_MAX: usize = 2 * PIPELINE_MAX as usize;

/// How an arriving block relates to what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// An outstanding request.
    Outstanding(BlockRef),
    /// A request withdrawn before (cancel, choke, snub), or the probe of a snubbed peer.
    Late(BlockRef),
    /// Never.
    No,
}

/// What a peer's silence calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It sends, or owes nothing.
    None,
    /// It is snubbed from now on: take its requests back.
    Snubbed,
    /// It was snubbed and has been silent for as long again: ask it for one block.
    ProbeDue,
}

/// Requests taken back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Withdrawn {
    /// The peer knows of them: it must be told, unless it chokes us.
    pub sent: Vec<BlockRef>,
    /// It has never heard of these.
    pub unsent: Vec<BlockRef>,
}

impl Withdrawn {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = BlockRef> + '_ {
        self.sent.iter().chain(&self.unsent).copied()
    }
}

/// The requests of one peer.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Sent and not answered, oldest first.
    sent: VecDeque<BlockRef>,
    /// Decided on; the writer has not come to them yet.
    unsent: VecDeque<BlockRef>,
    late: VecDeque<BlockRef>,
    depth: u32,
    depth_max: u32,
    pace: Pace,
    is_slow_start: bool,
    is_snubbed: bool,
    rate: RateMeter,
    /// The rate when the last block came: unlike `rate` it does not sink while nothing is asked for.
    busy_bytes_per_s: u64,
    reviewed_at: Now,
    reviewed_bytes: u64,
    reviewed_rate: u64,
    /// When payload last came, or when the first of the present requests was sent.
    progress_at: Now,
    /// The one request that a snubbed peer may still answer; it counts as late, not as outstanding.
    probe: Option<BlockRef>,
    probed_at: Now,
    /// A request whose answering time is being measured.
    timed: Option<(BlockRef, Now)>,
    /// The shortest time from a request to the beginning of its block: longer ones waited behind others.
    latency: Option<Duration>,
    /// The last such time, whatever it waited behind.
    answered_in: Option<Duration>,
}

impl Pipeline {
    /// No requests yet.
    pub fn new(pace: &Pace, now: Now) -> Self {
        Pipeline {
            sent: VecDeque::new(),
            unsent: VecDeque::new(),
            late: VecDeque::new(),
            depth: pace.depth_start,
            depth_max: pace.depth_max,
            pace: *pace,
            is_slow_start: true,
            is_snubbed: false,
            rate: RateMeter::new(now),
            busy_bytes_per_s: 0,
            reviewed_at: now,
            reviewed_bytes: 0,
            reviewed_rate: 0,
            progress_at: now,
            probe: None,
            probed_at: now,
            timed: None,
            latency: None,
            answered_in: None,
        }
    }

    /// Takes the peer's `reqq`, clamped: 0 and 2³¹ are seen in the wild and in attacks (HOSTILE.md W13).
    pub fn set_peer_reqq(&mut self, reqq: u32) {
        self.depth_max = reqq.saturating_sub(REQQ_SPARED).clamp(1, PIPELINE_MAX);
        self.depth = self.depth.min(self.depth_max);
    }

    /// How many more requests may be sent.
    pub fn room(&self) -> u32 {
        let depth = if self.is_snubbed { 0 } else { self.depth };
        depth.saturating_sub(self.len())
    }

    /// Number of outstanding requests, those not sent yet included.
    pub fn len(&self) -> u32 {
        (self.sent.len() + self.unsent.len()) as u32
    }

    /// True without outstanding requests.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when some requests wait for the writer.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// The outstanding requests, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = BlockRef> + '_ {
        self.sent.iter().chain(&self.unsent).copied()
    }

    /// The requests that the peer has heard of, in the order in which it should answer.
    pub fn iter_sent(&self) -> impl Iterator<Item = BlockRef> + '_ {
        self.sent.iter().copied()
    }

    /// The outstanding requests, youngest first.
    pub fn iter_back(&self) -> impl Iterator<Item = BlockRef> + '_ {
        self.unsent
            .iter()
            .rev()
            .chain(self.sent.iter().rev())
            .copied()
    }

    /// True when this very block is outstanding.
    pub fn contains(&self, block: BlockRef) -> bool {
        self.iter().any(|other| other == block)
    }

    /// True when this very block is outstanding and the peer has not heard of it.
    pub fn is_unsent(&self, block: BlockRef) -> bool {
        self.unsent.contains(&block)
    }

    /// Peer that owes blocks and stays silent.
    pub const fn is_snubbed(&self) -> bool {
        self.is_snubbed
    }

    /// For how long the peer has owed blocks without a byte of them.
    pub fn owes_since(&self, now: Now) -> Duration {
        match self.sent.is_empty() {
            true => Duration::ZERO,
            false => now.since(self.progress_at),
        }
    }

    /// The present depth, for display.
    pub const fn depth(&self) -> u32 {
        self.depth
    }

    /// The shortest time the peer took to begin answering; `None` before its first block.
    pub const fn latency(&self) -> Option<Duration> {
        self.latency
    }

    /// The time from a request to its block when it was last measured, queues on the way included; `None` before the
    /// first block.
    pub const fn answered_in(&self) -> Option<Duration> {
        self.answered_in
    }

    /// A block is to be requested.
    pub fn push(&mut self, block: BlockRef) {
        self.unsent.push_back(block);
    }

    /// The next request for the writer to send.
    pub fn next_to_send(&mut self, now: Now) -> Option<BlockRef> {
        let block = self.unsent.pop_front()?;
        if self.sent.is_empty() {
            if now.since(self.progress_at) >= REVIEW_INTERVAL {
                // What came before the pause says nothing about the rate from now on.
                self.reviewed_at = now;
                self.reviewed_bytes = self.rate.total_bytes();
            }
            self.progress_at = now;
        }
        self.timed.get_or_insert((block, now));
        self.sent.push_back(block);
        Some(block)
    }

    /// Takes requests that wait and follow each other in the torrent, those around the oldest, to be sent as one.
    pub fn next_run_to_send(&mut self, geometry: &Geometry, now: Now) -> Vec<BlockRef> {
        let Some(oldest) = self.unsent.front().copied() else {
            return Vec::new();
        };
        let follows = |block: &BlockRef, next: &BlockRef| {
            // Nothing follows a piece that is short.
            let is_last = block.end() == geometry.piece_length_bytes();
            let is_next = block.piece().get() + 1 == next.piece().get();
            match block.piece() == next.piece() {
                true => block.end() == next.begin(),
                false => is_last && is_next && next.begin() == 0,
            }
        };
        let mut waiting: Vec<BlockRef> = self.unsent.drain(..).collect();
        waiting.sort_unstable();
        let mut runs: Vec<Vec<BlockRef>> = waiting.chunk_by(follows).map(<[_]>::to_vec).collect();
        let at = runs.iter().position(|run| run.contains(&oldest));
        let run = at.map(|at| runs.remove(at)).unwrap_or_default();
        self.unsent.extend(run.iter().copied());
        while self.next_to_send(now).is_some() {}
        self.unsent.extend(runs.into_iter().flatten());
        run
    }

    /// A block arrives: finds and removes its request. In order, as peers answer, this is O(1).
    pub fn take(&mut self, raw: RawBlock, now: Now) -> Asked {
        if let Some(block) = take_from(&mut self.sent, raw) {
            self.end_timing(block, Some(now));
            return Asked::Outstanding(block);
        }
        match self.take_late(raw) {
            // It was about to be requested again.
            Asked::Late(block) if remove(&mut self.unsent, block) => Asked::Outstanding(block),
            asked => asked,
        }
    }

    /// A reject arrives. Of two requests for one block the earlier, withdrawn one is answered first.
    pub fn take_rejected(&mut self, raw: RawBlock) -> Asked {
        let late = self.take_late(raw);
        if late != Asked::No {
            return late;
        }
        take_from(&mut self.sent, raw).map_or(Asked::No, |block| {
            self.end_timing(block, None);
            Asked::Outstanding(block)
        })
    }

    /// Withdraws the request for one block, if it is outstanding.
    pub fn withdraw(&mut self, block: BlockRef) -> Withdrawn {
        let mut withdrawn = Withdrawn::default();
        if remove(&mut self.unsent, block) {
            withdrawn.unsent.push(block);
        } else if remove(&mut self.sent, block) {
            self.remember_late(block);
            withdrawn.sent.push(block);
        }
        withdrawn
    }

    /// Withdraws every request and returns them, oldest first.
    pub fn withdraw_all(&mut self) -> Withdrawn {
        self.probe = None;
        self.withdraw_where(|_| true)
    }

    /// Withdraws the requests that lie in these pieces, or all that do not.
    pub fn withdraw_pieces(&mut self, pieces: &[PieceIndex], is_in: bool) -> Withdrawn {
        self.withdraw_where(|block| pieces.contains(&block.piece()) == is_in)
    }

    /// Withdraws every request of a peer that is snubbed, but leaves it the oldest to answer; returns all, oldest first.
    pub fn withdraw_snubbed(&mut self, now: Now) -> Withdrawn {
        let withdrawn = self.withdraw_all();
        self.probe = withdrawn.sent.first().copied();
        self.probed_at = now;
        withdrawn
    }

    /// The one block that a snubbed peer may still send.
    pub const fn probe(&self) -> Option<BlockRef> {
        self.probe
    }

    /// A snubbed peer was asked for one block more, or could not be; returns the one asked for before, if it still owes it.
    pub fn set_probe(&mut self, block: Option<BlockRef>, now: Now) -> Option<BlockRef> {
        self.probed_at = now;
        if let Some(block) = block {
            self.remember_late(block);
            return self.probe.replace(block);
        }
        None
    }

    /// The probe of a peer that is snubbed no more and has not answered it: to be cancelled.
    pub fn take_stale_probe(&mut self) -> Option<BlockRef> {
        match self.is_snubbed {
            true => None,
            false => self.probe.take(),
        }
    }

    /// Payload came: the snub clock starts anew.
    pub fn on_bytes(&mut self, bytes: u32, now: Now) {
        self.rate.add(u64::from(bytes), now);
        self.progress_at = now;
    }

    /// A whole block came: adapts the depth and ends a snub.
    pub fn on_block(&mut self, now: Now) {
        self.is_snubbed = false;
        self.busy_bytes_per_s = self.bytes_per_s(now).max(1);
        if self.is_slow_start {
            self.depth = (self.depth + 1).min(self.depth_max);
        }
        if now.since(self.reviewed_at) >= REVIEW_INTERVAL {
            self.review(now);
        }
    }

    /// True when no payload came for as long as it takes to be snubbed, whatever is owed.
    pub fn is_silent(&self, now: Now) -> bool {
        now.since(self.progress_at) >= SNUB_AFTER
    }

    /// Looks whether the peer has been silent for too long.
    pub fn check_silence(&mut self, now: Now) -> Silence {
        if self.is_snubbed {
            let since = self.progress_at.max(self.probed_at);
            return match now.since(since) >= SNUB_AFTER {
                true => Silence::ProbeDue,
                false => Silence::None,
            };
        }
        if self.sent.is_empty() || !self.is_silent(now) {
            return Silence::None;
        }
        self.is_snubbed = true;
        self.is_slow_start = false;
        self.depth = self.pace.depth_min.min(self.depth_max);
        Silence::Snubbed
    }

    /// Payload received, in bytes a second.
    pub fn bytes_per_s(&self, now: Now) -> u64 {
        self.rate.clone().bytes_per_s(now)
    }

    /// What the peer sends when it is asked: 0 before its first block.
    pub fn busy_bytes_per_s(&self, now: Now) -> u64 {
        self.busy_bytes_per_s.max(self.bytes_per_s(now))
    }

    /// True once a whole block came from the peer.
    pub fn is_proven(&self) -> bool {
        self.busy_bytes_per_s > 0
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
            let covered = self.pace.reserve + self.latency.unwrap_or_default();
            let blocks = rate as f64 * covered.as_secs_f64() / f64::from(BLOCK_BYTES);
            self.depth = (blocks as u32).max(self.pace.depth_min).min(self.depth_max);
        }
    }

    fn withdraw_where(&mut self, mut is_meant: impl FnMut(&BlockRef) -> bool) -> Withdrawn {
        let mut withdrawn = Withdrawn::default();
        withdrawn
            .unsent
            .extend(take_where(&mut self.unsent, &mut is_meant));
        withdrawn
            .sent
            .extend(take_where(&mut self.sent, &mut is_meant));
        for block in &withdrawn.sent {
            self.remember_late(*block);
        }
        withdrawn
    }

    fn take_late(&mut self, raw: RawBlock) -> Asked {
        let Some(block) = take_from(&mut self.late, raw) else {
            return Asked::No;
        };
        self.probe = self.probe.filter(|probe| *probe != block);
        Asked::Late(block)
    }

    /// The timed request was answered by a block at `answered_at`, or will not be.
    fn end_timing(&mut self, block: BlockRef, answered_at: Option<Now>) {
        let Some((_, sent_at)) = self.timed.take_if(|(timed, _)| *timed == block) else {
            return;
        };
        if let Some(now) = answered_at {
            let latency = now.since(sent_at).min(LATENCY_MAX);
            self.latency = Some(self.latency.map_or(latency, |best| best.min(latency)));
            self.answered_in = Some(latency);
        }
    }

    fn remember_late(&mut self, block: BlockRef) {
        self.end_timing(block, None);
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

fn remove(queue: &mut VecDeque<BlockRef>, block: BlockRef) -> bool {
    let at = queue.iter().position(|other| *other == block);
    at.and_then(|at| queue.remove(at)).is_some()
}

/// Splits off what is meant; order is kept on both sides.
fn take_where(
    queue: &mut VecDeque<BlockRef>,
    is_meant: impl FnMut(&BlockRef) -> bool,
) -> Vec<BlockRef> {
    let (meant, rest): (Vec<_>, Vec<_>) = queue.drain(..).partition(is_meant);
    queue.extend(rest);
    meant
}

#[cfg(test)]
mod tests;
