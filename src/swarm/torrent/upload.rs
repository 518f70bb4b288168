//! Requests of peers: judged, queued, handed out in runs, answered; and the choker's decisions.

use std::time::Duration;

use crate::base::{BLOCK_BYTES, BlockRef, Now};
use crate::swarm::choker::ChokeInput;
use crate::swarm::effects::{Cx, PeerKey, UploadRun};
use crate::swarm::peer::{OUTBOX_BYTES_MAX, Peer, PeerFault, REFUSED_MAX, limit, raw};
use crate::swarm::torrent::{ACTIVE_TICK, CHOKE_GRACE, Torrent};
use crate::swarm::uploads::Enqueued;
use crate::wire::message::{Message, RawBlock};

/// Requests above this length come from no known client (HOSTILE.md W6).
const REQUEST_BYTES_MAX: u32 = 128 * 1024;
/// A send that takes longer than this is held up by its reader.
const SEND_TAKES_MAX: Duration = Duration::from_secs(2);
/// Peers that wait for what is on its way to others look again after this time.
const DEFER_PAUSE: Duration = Duration::from_millis(50);
/// More than is ever on its way at once: further from the end of all uploads nothing needs to be added up.
const IN_FLIGHT_BYTES_MAX: u64 = 1 << 30;

impl Torrent {
    pub(super) fn on_request(
        &mut self,
        key: PeerKey,
        header: RawBlock,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        let RawBlock {
            piece,
            begin,
            length,
        } = header;
        let Some(block) = self.cfg.geometry.check_range(piece, begin, length) else {
            if length > REQUEST_BYTES_MAX {
                return Err(PeerFault::BadRequest {
                    piece,
                    begin,
                    length_bytes: length,
                });
            }
            return self.refuse(key, header, true, cx);
        };
        let super_seed = self.super_seed.as_ref();
        let is_shown = super_seed.is_none_or(|of| of.is_shown(key, block.piece()));
        let is_gift = peer.am_choking
            && peer.allowed_out.contains(&block.piece())
            && peer.allowed_out_bytes >= u64::from(length);
        if peer.am_choking && !is_gift || !is_shown || !self.pieces.have().has(block.piece()) {
            // Requests that crossed our choke on the wire are no one's fault.
            let is_grace = |choked_at: Now| cx.now.since(choked_at) <= CHOKE_GRACE;
            let is_fault = !peer.am_choking || !peer.choked_at.is_some_and(is_grace);
            return self.refuse(key, header, is_fault, cx);
        }
        match peer.uploads.push(block, self.cfg.reqq) {
            Enqueued::Full => return self.refuse(key, header, true, cx),
            Enqueued::Already => return peer.count_useless(cx.now),
            Enqueued::Yes if is_gift => peer.allowed_out_bytes -= u64::from(length),
            Enqueued::Yes => {}
        }
        self.tick_at = self.tick_at.map(|at| at.min(cx.now + ACTIVE_TICK));
        if peer.uploads.len() == 1 && peer.uploads.in_flight_blocks() == 0 {
            peer.upload_progress_at = cx.now;
        }
        peer.wake(key, cx);
        Ok(())
    }

    pub(super) fn on_cancel(
        &mut self,
        key: PeerKey,
        header: RawBlock,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let RawBlock {
            piece,
            begin,
            length,
        } = header;
        let block = self.cfg.geometry.check_range(piece, begin, length);
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        if !block.is_some_and(|block| peer.uploads.cancel(block)) {
            // It may be under way: then its `piece` is the answer.
            return peer.count_useless(cx.now);
        }
        if peer.is_fast {
            // BEP 6: a cancelled request too is answered by exactly one of `piece` and `reject_request`.
            peer.send(key, &Message::RejectRequest(header), cx);
        }
        Ok(())
    }

    pub(super) fn next_run(
        &mut self,
        key: PeerKey,
        max_bytes: u32,
        cx: &mut Cx<'_>,
    ) -> Option<UploadRun> {
        let run = self.take_run(key, max_bytes, cx)?;
        let piece = run.blocks.first()?.piece();
        if self.pieces.picker().copies(piece) == 0 {
            self.claims.on_handed_out(piece, key, cx.now);
        }
        let peer = self.peers.get_mut(key.0)?;
        if peer.uploads.in_flight_blocks() as usize == run.blocks.len() {
            peer.upload_progress_at = cx.now;
        }
        Some(run)
    }

    /// The next run of the peer. One that waits only for what is on its way to others gets nothing for now, unless the
    /// line would be idle.
    fn take_run(&mut self, key: PeerKey, max_bytes: u32, cx: &mut Cx<'_>) -> Option<UploadRun> {
        let (claims, picker) = (&self.claims, self.pieces.picker());
        let peer = self.peers.get_mut(key.0).filter(|peer| !peer.is_closing)?;
        peer.is_deferred = false;
        if self.is_upload_used_up() {
            self.is_upload_held = true;
            return None;
        }
        let peer = self.peers.get_mut(key.0)?;
        if !claims.is_on() {
            return peer.uploads.next_run(max_bytes, |_| true);
        }
        let is_due = |block: BlockRef| {
            let piece = block.piece();
            picker.copies(piece) > 0 || !claims.is_claimed(piece, key, cx.now)
        };
        let run = peer.uploads.next_run(max_bytes, is_due);
        if run.is_some() || peer.uploads.is_empty() {
            return run;
        }
        let is_line_busy = self.is_line_busy(cx.now);
        let peer = self.peers.get_mut(key.0)?;
        if !is_line_busy {
            return peer.uploads.next_run(max_bytes, |_| true);
        }
        peer.is_deferred = true;
        self.deferred_at.get_or_insert(cx.now + DEFER_PAUSE);
        None
    }

    /// True when all that may be uploaded is sent or on its way.
    fn is_upload_used_up(&self) -> bool {
        let Some(max_bytes) = self.upload_max_bytes else {
            return false;
        };
        let left_bytes = max_bytes.saturating_sub(self.up.total_bytes());
        if left_bytes > IN_FLIGHT_BYTES_MAX {
            return false;
        }
        let in_flight = self
            .peers
            .iter()
            .map(|(_, peer)| peer.uploads.in_flight_bytes());
        in_flight.sum::<u64>() >= left_bytes
    }

    /// Lets those who were held at the end of all uploads look again, if that has moved.
    pub(super) fn release_uploads(&mut self, cx: &mut Cx<'_>) {
        if !self.is_upload_held || self.is_upload_used_up() {
            return;
        }
        self.is_upload_held = false;
        for (key, peer) in self.peers.iter_mut() {
            if !peer.uploads.is_empty() {
                peer.wake(PeerKey(key), cx);
            }
        }
    }

    /// Lets those who wait for others look again.
    pub(super) fn wake_deferred(&mut self, cx: &mut Cx<'_>) {
        self.deferred_at = None;
        for (key, peer) in self.peers.iter_mut() {
            if std::mem::take(&mut peer.is_deferred) {
                peer.wake(PeerKey(key), cx);
            }
        }
    }

    /// Finds out whether the line is the bottleneck: then all who are sent something get some of it. Where most of them
    /// get nothing for a while, they themselves are.
    pub(super) fn review_line(&mut self, cx: &mut Cx<'_>) {
        let sending = self.peers.iter().filter(|(_, peer)| peer.is_sending());
        let (moving, stuck) = sending.fold((0, 0), |(moving, stuck), (_, peer)| {
            let is_stuck = cx.now.since(peer.upload_progress_at) >= SEND_TAKES_MAX;
            (moving + u32::from(!is_stuck), stuck + u32::from(is_stuck))
        });
        if stuck > moving {
            return self.claims.review(0, 0, cx.now);
        }
        let queued = self.peers.iter().map(|(_, peer)| peer.uploads.len());
        let queued_bytes = queued.map(|blocks| u64::from(blocks) * u64::from(BLOCK_BYTES));
        let rate = self.up.bytes_per_s(cx.now);
        self.claims.review(queued_bytes.sum(), rate, cx.now);
    }

    pub(super) fn sent(&mut self, key: PeerKey, run: &UploadRun, cx: &mut Cx<'_>) {
        let blocks = run.blocks.len() as u32;
        if let Some(first) = run.blocks.first() {
            self.claims.on_sent(first.piece(), key, cx.now);
        }
        let Some(peer) = self.peers.get_mut(key.0) else {
            let bytes = run
                .blocks
                .iter()
                .map(|block| u64::from(block.length()))
                .sum();
            self.up.add(bytes, cx.now);
            return;
        };
        let bytes = peer.uploads.finish_run(run);
        peer.up.add(bytes, cx.now);
        peer.sent_at = cx.now;
        peer.upload_progress_at = cx.now;
        if blocks > 1 || !peer.uploads.is_empty() {
            peer.used_slot_at = cx.now;
        }
        peer.refused_count = peer.refused_count.saturating_sub(blocks);
        self.up.add(bytes, cx.now);
        if let Some(super_seed) = &mut self.super_seed {
            super_seed.on_sent(cx.now);
        }
        if self.deferred_at.is_some() && !self.is_line_busy(cx.now) {
            self.wake_deferred(cx);
        }
    }

    /// Somebody is being sent something. Who takes it too slowly does not count: it is not the line that it waits for,
    /// and nobody waits for it (HOSTILE.md C6).
    fn is_line_busy(&self, now: Now) -> bool {
        let is_moving = |peer: &Peer| now.since(peer.upload_progress_at) < SEND_TAKES_MAX;
        let mut peers = self.peers.iter().map(|(_, peer)| peer);
        peers.any(|peer| peer.is_sending() && is_moving(peer))
    }

    pub(super) fn upload_failed(&mut self, key: PeerKey, run: &UploadRun, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        peer.uploads.finish_run(run);
        peer.upload_progress_at = cx.now;
        if !peer.is_fast {
            // Only a choke tells a peer without rejects that it waits in vain.
            self.choke(key, cx);
            return;
        }
        for block in &run.blocks {
            peer.send(key, &Message::RejectRequest(raw(*block)), cx);
        }
    }

    /// Rejects every waiting request for a piece that we no longer have.
    pub(super) fn drop_lost_uploads(&mut self, cx: &mut Cx<'_>) {
        for (key, peer) in self.peers.iter_mut() {
            let is_fast = peer.is_fast;
            let mut dropped = Vec::new();
            let have = self.pieces.have();
            peer.uploads
                .retain(|block| have.has(block.piece()), |block| dropped.push(block));
            for block in dropped.into_iter().filter(|_| is_fast) {
                peer.send(PeerKey(key), &Message::RejectRequest(raw(block)), cx);
            }
        }
    }

    /// Somebody wants something and is choked: a free slot is given at once.
    pub(super) fn on_newly_interested(&mut self, cx: &mut Cx<'_>) {
        let interested =
            |peer: &&crate::swarm::peer::Peer| !peer.am_choking && peer.peer_interested;
        let unchoked = self
            .peers
            .iter()
            .map(|(_, peer)| peer)
            .filter(interested)
            .count();
        let is_unscheduled = self.choker.next_deadline().is_none();
        if is_unscheduled || self.choker.has_free_slot(unchoked as u32) {
            self.rechoke(cx);
        } else {
            self.choker.on_waiting(cx.now);
        }
    }

    pub(super) fn rechoke(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        let inputs: Vec<ChokeInput> = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.is_closing)
            .map(|(key, peer)| ChokeInput {
                peer: PeerKey(key),
                is_interested: peer.peer_interested,
                is_unchoked: !peer.am_choking,
                down_bytes_per_s: peer.pipeline.bytes_per_s(now),
                up_bytes_per_s: peer.up.clone().bytes_per_s(now),
                unchoked_at: peer.unchoked_at,
                sent_since_unchoke_bytes: peer.up.total_bytes() - peer.sent_before_unchoke_bytes,
                used_at: peer.used_slot_at,
                is_snubbed: peer.pipeline.is_snubbed(),
                connected_at: peer.connected_at,
            })
            .collect();
        let is_seeding = !self.cfg.fetches || self.pieces.is_complete();
        let total_up = self.up.bytes_per_s(now);
        let limit_up = self.cfg.limit_up_bytes_per_s;
        let rng = &mut self.rng;
        let changes = self
            .choker
            .rechoke(now, is_seeding, &inputs, total_up, limit_up, rng);
        for change in changes {
            match change.unchoke {
                true => self.unchoke(change.peer, cx),
                false => self.choke(change.peer, cx),
            }
        }
    }

    pub(super) fn unchoke(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0).filter(|peer| peer.am_choking) else {
            return;
        };
        peer.am_choking = false;
        peer.unchoked_at = cx.now;
        peer.sent_before_unchoke_bytes = peer.up.total_bytes();
        peer.send(key, &Message::Unchoke, cx);
    }

    /// BEP 6: after the choke every waiting request is rejected, save for the allowed fast set.
    pub(super) fn choke(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0).filter(|peer| !peer.am_choking) else {
            return;
        };
        peer.am_choking = true;
        peer.choked_at = Some(cx.now);
        peer.send(key, &Message::Choke, cx);
        let is_fast = peer.is_fast;
        let mut dropped: Vec<BlockRef> = Vec::new();
        let allowed = &peer.allowed_out;
        peer.uploads.retain(
            |block| allowed.contains(&block.piece()),
            |block| dropped.push(block),
        );
        for block in dropped.into_iter().filter(|_| is_fast) {
            peer.send(key, &Message::RejectRequest(raw(block)), cx);
        }
    }

    /// Answers a request that is not served: a reject where the peer knows them, nothing otherwise.
    fn refuse(
        &mut self,
        key: PeerKey,
        header: RawBlock,
        is_fault: bool,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        if peer.is_fast {
            peer.send(key, &Message::RejectRequest(header), cx);
        }
        peer.refused_count += u32::from(is_fault);
        limit(peer.refused_count, REFUSED_MAX, |got, max| {
            PeerFault::TooManyRefused { got, max }
        })
    }

    /// A peer that asks and never reads must not pile up answers.
    pub(super) fn check_outbox(&self, key: PeerKey) -> Result<(), PeerFault> {
        let bitfield_bytes = self.pieces.have().as_bytes().len();
        let max_bytes = OUTBOX_BYTES_MAX + bitfield_bytes;
        let got_bytes = self.peers.get(key.0).map_or(0, |peer| peer.outbox.len());
        if got_bytes <= max_bytes {
            return Ok(());
        }
        Err(PeerFault::TakesNothing {
            got_bytes: u32::try_from(got_bytes).unwrap_or(u32::MAX),
            max_bytes: u32::try_from(max_bytes).unwrap_or(u32::MAX),
        })
    }
}

const _: () = assert!(REQUEST_BYTES_MAX >= BLOCK_BYTES);
