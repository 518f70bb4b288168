//! One torrent's swarm: what the runtime tells it and asks of it. Layer 2.
//!
//! Rules for the runtime: execute `cx.fx` in order after each call and answer with events, never from inside a call.
//! A writer that was woken calls `take_messages` first, then `next_upload`, until both have nothing. Each
//! `Effect::Hash`, `Write`, `DigestBlocks` and `FlushSegment` gets exactly one answer.

mod config;
mod connect;
mod disk;
mod download;
pub mod hashes;
mod holepunch;
pub mod leaves;
mod messages;
mod metadata;
mod pex;
mod room;
mod sift;
mod stats;
mod super_seed;
mod takeover;
mod timers;
mod tune;
mod upload;
mod web;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::base::{Bitfield, BlockRef, Now, PieceIndex, RateMeter, Rng, Slots};
use crate::swarm::candidates::{Candidates, Parting, Source};
use crate::swarm::choker::{Choker, ChokerConfig};
use crate::swarm::claims::Claims;
use crate::swarm::effects::{CloseReason, Cx, Effect, PeerKey, UploadRun, WebSeedId};
use crate::swarm::peer::{Peer, PeerFault, raw};
use crate::swarm::pieces::Pieces;
use crate::swarm::poison::{Party, Suspects};
use crate::swarm::priority::OwnAddress;
use crate::swarm::sift::Sift;
use crate::swarm::sources::SourceCounts;
use crate::swarm::super_seed::SuperSeed;
use crate::wire::ip_filter::IpFilter;
use crate::wire::message::{Message, RawBlock, encode};

pub use config::{Connected, Placement, REQQ_DEFAULT, Refusal, TorrentConfig, client_version};
pub use stats::{PeerStats, TorrentStats};

/// Pieces taken at random before rarity counts: something to trade comes first.
const FIRST_RANDOM_PIECES: u32 = 4;
/// How often peers are looked at while something is fetched.
const ACTIVE_TICK: Duration = Duration::from_secs(1);
/// How often idle peers look for a block to ask for twice.
const ENDGAME_TICK: Duration = Duration::from_millis(250);
/// How often peers are looked at while nothing is fetched.
const IDLE_TICK: Duration = Duration::from_secs(10);
/// Pause before dialing again when credits ran out.
const DIAL_RETRY: Duration = Duration::from_millis(250);
/// Pause between two pieces that lose their memory to faster peers.
const SPILL_PAUSE: Duration = Duration::from_millis(100);
/// With fewer connections than this more addresses are wanted.
const WANT_PEERS_BELOW: usize = 30;
/// Pause between two wishes for addresses.
const WANT_PEERS_PAUSE: Duration = Duration::from_secs(60);
/// All peers are looked at for work no more often than this.
const FILL_PAUSE: Duration = Duration::from_millis(20);
/// Pieces that come faster than this are told to peers together.
const NEWS_PAUSE: Duration = Duration::from_millis(100);
/// Requests sent before our choke arrived are no fault of the peer.
const CHOKE_GRACE: Duration = Duration::from_secs(5);
/// Banned peers of the loopback address that are remembered: as many as one machine plausibly runs.
const BANNED_LOCAL_MAX: usize = 1_024;
/// Pieces times peers that a debug build looks at for each event on average: it checks all invariants of small swarms
/// after every event, those of large ones now and then.
const CHECKED_PER_EVENT: u64 = 512;

/// All decisions about one torrent.
#[derive(Clone, Debug)]
pub struct Torrent {
    cfg: TorrentConfig,
    rng: Rng,
    peers: Slots<Peer>,
    pieces: Pieces,
    choker: Choker,
    claims: Claims,
    /// While we are the first seeder (BEP 16).
    super_seed: Option<SuperSeed>,
    candidates: Candidates,
    suspects: Suspects,
    /// Bad pieces whose blocks are judged one by one (BEP 52).
    sifts: BTreeMap<PieceIndex, Sift>,
    /// When somebody is late with leaves, or others must be asked for them.
    sift_at: Option<Now>,
    banned_local: Vec<Party>,
    banned_web: BTreeSet<WebSeedId>,
    dialing: BTreeSet<SocketAddr>,
    /// Dials over uTP that a third peer has arranged (BEP 55).
    punching: BTreeSet<SocketAddr>,
    /// Where peers see us.
    own_address: OwnAddress,
    /// Connections taken in so far.
    met: SourceCounts,
    /// Of those, the ones over uTP.
    met_utp: u32,
    /// Pieces got since the start, in order; each peer has a cursor into it.
    have_log: Vec<PieceIndex>,
    /// Peers that could be asked for more but for assembly memory, longest wait first.
    starved: VecDeque<PeerKey>,
    down: RateMeter,
    up: RateMeter,
    downloaded_bytes: u64,
    /// The part of it that came from web seeds.
    downloaded_web_bytes: u64,
    wasted_bytes: u64,
    bad_pieces: u32,
    is_paused: bool,
    is_stopping: bool,
    /// Uploads end where `stats().uploaded_bytes` is this.
    upload_max_bytes: Option<u64>,
    /// Somebody was not served for that.
    is_upload_held: bool,
    tick_at: Option<Now>,
    dial_at: Option<Now>,
    spill_at: Now,
    want_peers_at: Now,
    /// No place is looked for before this moment.
    room_search_at: Now,
    /// When all peers must be looked at for work.
    fill_at: Option<Now>,
    /// Not looked at again before this moment.
    fill_from: Now,
    /// When peers whose uploads wait for others look again.
    deferred_at: Option<Now>,
    /// When peers must be told of pieces in the log.
    news_at: Option<Now>,
    /// Not told again before this moment.
    news_from: Now,
    /// Pieces whose leaves peers asked for (BEP 52).
    leaf_reads: leaves::LeafReads,
    /// When peers must be told of each other (BEP 11).
    pex_at: Option<Now>,
    /// Counts who came and went.
    pex_epoch: u64,
    /// Events since the invariants were last checked.
    unchecked_count: u64,
}

impl Torrent {
    /// A torrent without peers.
    pub fn new(cfg: TorrentConfig, now: Now) -> Self {
        let mut rng = Rng::new(cfg.seed);
        let (have, wanted) = (cfg.have.clone(), cfg.wanted.clone());
        let budget_bytes = cfg.assembly_budget_bytes;
        let pieces = Pieces::new(
            cfg.geometry.clone(),
            have,
            wanted,
            budget_bytes,
            rng.next_u64(),
        );
        let mut choker = Choker::new(ChokerConfig {
            slots: cfg.upload_slots,
            seed_choker: cfg.seed_choker,
        });
        choker.set_slots_max(cfg.slots_max);
        let has_all = !cfg.fetches || pieces.is_complete();
        let super_seed = (cfg.super_seeds && has_all).then(|| {
            let pieces = cfg.geometry.piece_count();
            let cursor = rng.below(u64::from(pieces)) as u32;
            SuperSeed::new(pieces, cursor, now)
        });
        let mut candidates = Candidates::new(cfg.is_private, Rng::new(rng.next_u64()));
        candidates.set_complete(has_all);
        Torrent {
            cfg,
            rng,
            peers: Slots::new(),
            pieces,
            choker,
            claims: Claims::new(),
            super_seed,
            candidates,
            suspects: Suspects::new(),
            sifts: BTreeMap::new(),
            sift_at: None,
            banned_local: Vec::new(),
            banned_web: BTreeSet::new(),
            dialing: BTreeSet::new(),
            punching: BTreeSet::new(),
            own_address: OwnAddress::default(),
            met: SourceCounts::new(),
            met_utp: 0,
            have_log: Vec::new(),
            starved: VecDeque::new(),
            down: RateMeter::new(now),
            up: RateMeter::new(now),
            downloaded_bytes: 0,
            downloaded_web_bytes: 0,
            wasted_bytes: 0,
            bad_pieces: 0,
            is_paused: false,
            is_stopping: false,
            upload_max_bytes: None,
            is_upload_held: false,
            tick_at: None,
            dial_at: Some(now),
            spill_at: now,
            want_peers_at: now,
            room_search_at: now,
            fill_at: None,
            fill_from: now,
            deferred_at: None,
            news_at: None,
            news_from: now,
            leaf_reads: leaves::LeafReads::default(),
            pex_at: None,
            pex_epoch: 0,
            unchecked_count: 0,
        }
    }

    /// One whole message other than `piece`.
    ///
    /// # Errors
    /// The peer broke the protocol: the runtime closes the connection, then calls `on_disconnected`.
    pub fn on_message(
        &mut self,
        key: PeerKey,
        message: &Message<'_>,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let result = self.dispatch(key, message, cx);
        self.judged(key, result, cx)
    }

    /// A `piece` message begins: says where its payload goes.
    ///
    /// # Errors
    /// As [`Torrent::on_message`].
    pub fn on_piece_header(
        &mut self,
        key: PeerKey,
        header: RawBlock,
        cx: &mut Cx<'_>,
    ) -> Result<Placement, PeerFault> {
        let result = self.place(key, header, cx);
        self.judged(key, result, cx)
    }

    /// The blocks that come next if the peer answers in order and nothing else happens: those at the front of its requests
    /// whose places wait for them.
    pub fn foreseen(&self, key: PeerKey) -> impl Iterator<Item = BlockRef> + '_ {
        let peer = self.peers.get(key.0);
        let sent = peer.into_iter().flat_map(|peer| peer.pipeline.iter_sent());
        sent.take_while(|block| self.pieces.is_foreseen(*block))
    }

    /// Bytes of a payload arrived: progress for rates and the snub clock. The counts of one block add up to its length.
    pub fn on_block_bytes(&mut self, key: PeerKey, n_bytes: u32, cx: &mut Cx<'_>) {
        self.on_bytes(key, n_bytes, cx);
    }

    /// The whole payload is in its place.
    pub fn on_block_stored(&mut self, key: PeerKey, block: BlockRef, cx: &mut Cx<'_>) {
        self.stored(key, block, cx);
        self.after_event();
    }

    /// The whole payload went to scratch.
    pub fn on_block_discarded(&mut self, key: PeerKey, header: RawBlock, cx: &mut Cx<'_>) {
        self.discarded(key, header, cx);
        self.after_event();
    }

    /// Answers `Effect::Hash`.
    pub fn on_piece_hashed(&mut self, piece: PieceIndex, is_good: bool, cx: &mut Cx<'_>) {
        self.hashed(piece, is_good, cx);
        self.after_event();
    }

    /// Answers `Effect::Write`.
    pub fn on_piece_written(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        self.written(piece, cx);
        self.after_event();
    }

    /// Answers `Effect::Write`, `Effect::FlushSegment` or `Effect::Hash` after a disk error: nobody is blamed, the
    /// piece is missing again as soon as its other flushes are answered.
    pub fn on_piece_write_failed(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        self.write_failed(piece, cx);
        self.after_event();
    }

    /// Answers `Effect::FlushSegment`.
    pub fn on_segment_flushed(&mut self, piece: PieceIndex, segment: u32, cx: &mut Cx<'_>) {
        self.flushed(piece, segment, cx);
        self.after_event();
    }

    /// Answers `Effect::DigestBlocks` with one digest a block; `None` after a disk error.
    pub fn on_block_digests(
        &mut self,
        piece: PieceIndex,
        digests: Option<Vec<u64>>,
        cx: &mut Cx<'_>,
    ) {
        self.digested(piece, digests, cx);
        self.after_event();
    }

    /// Stops or resumes fetching (disk full); uploads go on, and so does what is on its way.
    pub fn set_paused(&mut self, is_paused: bool, cx: &mut Cx<'_>) {
        self.is_paused = is_paused;
        if !is_paused {
            self.pieces.bump();
            self.fill_all(cx);
            self.feed_starved(cx);
        }
        self.after_event();
    }

    /// Bytes of assembly memory that are reserved now.
    pub const fn assembly_bytes(&self) -> u64 {
        self.pieces.reserved_bytes()
    }

    /// Hands out no more blocks once those of this run, sent and on their way, are so many bytes; `None` is no limit.
    /// To be told again now and then: what was on its way to a peer that left may go to others.
    pub fn set_upload_max(&mut self, max_bytes: Option<u64>, cx: &mut Cx<'_>) {
        self.upload_max_bytes = max_bytes;
        self.release_uploads(cx);
    }

    /// Pieces that were had are gone from disk, or changed there.
    pub fn on_pieces_lost(&mut self, pieces: &[PieceIndex], cx: &mut Cx<'_>) {
        let was_complete = self.pieces.is_complete();
        for &piece in pieces {
            if self.pieces.on_lost(piece) {
                self.announce_lost(piece, cx);
                if let Some(super_seed) = &mut self.super_seed {
                    super_seed.on_lost(piece, cx.now);
                }
            }
        }
        self.drop_lost_uploads(cx);
        self.after_wanted_changed(was_complete, cx);
    }

    /// Pieces that were lost were read again and are good: somebody put them back.
    pub fn on_pieces_found(&mut self, pieces: &[PieceIndex], cx: &mut Cx<'_>) {
        let was_complete = self.pieces.is_complete();
        for &piece in pieces {
            if self.pieces.on_found(piece) {
                self.have_log.push(piece);
                cx.fx.push(Effect::Have { piece });
            }
        }
        self.tell_news(cx);
        self.after_wanted_changed(was_complete, cx);
    }

    /// Replaces the set of wanted pieces. What is on its way and not wanted any more is given up, save for whole pieces.
    pub fn select(&mut self, wanted: Bitfield, cx: &mut Cx<'_>) {
        assert_eq!(
            wanted.len(),
            self.cfg.geometry.piece_count(),
            "a bitfield of this torrent"
        );
        let was_complete = self.pieces.is_complete();
        self.pieces.select(wanted);
        for piece in self.pieces.fetching() {
            if !self.pieces.wanted().has(piece) {
                self.waste(piece);
                self.give_up(piece, false, cx);
            }
        }
        self.after_wanted_changed(was_complete, cx);
    }

    /// True while a peer could be given requests but for assembly credits.
    pub fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// There is a way out again after there was none: whoever is known is dialed, without regard to failures.
    pub fn on_way_back(&mut self, cx: &mut Cx<'_>) {
        self.candidates.on_way_back(cx.now);
        self.dial(cx);
        self.after_event();
    }

    /// Credits came back elsewhere in the session.
    pub fn on_credits(&mut self, cx: &mut Cx<'_>) {
        if !self.starved.is_empty() {
            self.pieces.bump();
            self.feed_starved(cx);
        }
        self.dial(cx);
        self.after_event();
    }

    /// The next run of blocks to send to the peer, at most `max_bytes` (one block is always allowed). Each run handed
    /// out is answered by `on_sent`, `on_upload_failed` or the disconnect.
    pub fn next_upload(
        &mut self,
        key: PeerKey,
        max_bytes: u32,
        cx: &mut Cx<'_>,
    ) -> Option<UploadRun> {
        self.next_run(key, max_bytes, cx)
    }

    /// Blocks asked for and not handed out yet. The peer is woken again for what comes after.
    pub fn waiting_uploads(&mut self, key: PeerKey) -> u32 {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return 0;
        };
        peer.is_woken = false;
        peer.uploads.len()
    }

    /// The run was handed to the kernel whole.
    pub fn on_sent(&mut self, key: PeerKey, run: &UploadRun, cx: &mut Cx<'_>) {
        self.sent(key, run, cx);
    }

    /// The run could not be read and nothing of it was sent: rejects its blocks (BEP 6) or forgets them.
    pub fn on_upload_failed(&mut self, key: PeerKey, run: &UploadRun, cx: &mut Cx<'_>) {
        self.upload_failed(key, run, cx);
    }

    /// Appends encoded control messages, about `max_bytes` at most (a single longer message is not split); returns the
    /// bytes appended.
    pub fn take_messages(
        &mut self,
        key: PeerKey,
        out: &mut Vec<u8>,
        max_bytes: usize,
        cx: &mut Cx<'_>,
    ) -> usize {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return 0;
        };
        peer.is_woken = false;
        if peer.is_closing {
            return 0;
        }
        let before = out.len();
        let whole_bytes = whole_messages(&peer.outbox, max_bytes);
        out.extend(peer.outbox.drain(..whole_bytes));
        while out.len() - before < max_bytes
            && peer.outbox.is_empty()
            && let Some(block) = peer.pipeline.next_to_send(cx.now)
        {
            encode(&Message::Request(raw(block)), out);
        }
        while out.len() - before < max_bytes
            && peer.outbox.is_empty()
            && peer.skip_old_news(&self.have_log, self.pieces.have())
        {
            let piece = self.have_log[peer.have_cursor].get();
            encode(&Message::Have { piece }, out);
            peer.have_cursor += 1;
        }
        if peer.outbox.is_empty() {
            super_seed::unveil(peer, self.pieces.have(), out, before + max_bytes);
        }
        if peer.outbox.is_empty()
            && let Some(metadata) = &self.cfg.metadata
        {
            metadata::take(peer, metadata, out, before + max_bytes);
        }
        if out.len() > before {
            peer.sent_at = cx.now;
        }
        out.len() - before
    }

    /// True when `take_messages` or `next_upload` has something that the peer was woken for.
    pub fn has_output(&self, key: PeerKey) -> bool {
        self.peers.get(key.0).is_some_and(|peer| {
            let has_news = self.news_at.is_none()
                && peer.old_news(&self.have_log, self.pieces.have()).is_some();
            let has_messages = !peer.outbox.is_empty()
                || peer.pipeline.has_unsent()
                || !peer.metadata.is_empty()
                || peer.unveil_from.is_some();
            let is_held = peer.is_deferred || self.is_upload_held;
            let has_uploads = !peer.uploads.is_empty() && !is_held;
            !peer.is_closing && (has_news || has_messages || has_uploads)
        })
    }

    /// Addresses to leave alone from now on. Connections to them are the caller's to close.
    pub fn set_ip_filter(&mut self, filter: Arc<IpFilter>) {
        self.candidates.set_filter(filter);
        self.after_event();
    }

    /// Addresses to dial.
    pub fn on_candidates(&mut self, source: Source, addrs: &[SocketAddr], cx: &mut Cx<'_>) {
        self.candidates.add(source, addrs, cx.now);
        self.dial(cx);
        self.after_event();
    }

    /// Our own address: never dialed.
    pub fn add_own_addr(&mut self, addr: SocketAddr) {
        self.candidates.add_own(addr);
    }

    /// When `on_timer` must be called next; changes with every call.
    pub fn next_deadline(&self) -> Option<Now> {
        self.deadline()
    }

    /// Time has passed.
    pub fn on_timer(&mut self, cx: &mut Cx<'_>) {
        self.timer(cx);
        self.after_event();
    }

    /// Closes every peer and dials no more. Hashes and writes under way still end in `Have`; all credits are back when
    /// they and the disconnects are answered.
    pub fn stop(&mut self, cx: &mut Cx<'_>) {
        self.is_stopping = true;
        for key in self.peers.keys() {
            self.close(PeerKey(key), CloseReason::Stopping, cx);
        }
        for piece in self.pieces.fetching() {
            self.give_up(piece, false, cx);
        }
        self.end_sifts(cx);
        self.after_event();
    }

    /// The pieces verified and written.
    pub fn have(&self) -> &Bitfield {
        self.pieces.have()
    }

    /// True when every wanted piece is had.
    pub fn is_complete(&self) -> bool {
        self.pieces.is_complete()
    }

    /// The connected peer's address; web seeds have none here.
    pub fn peer_addr(&self, key: PeerKey) -> Option<SocketAddr> {
        let peer = self.peers.get(key.0).filter(|peer| !peer.is_web());
        peer.map(|peer| peer.conn.addr)
    }

    /// The IP addresses that are banned.
    pub fn banned(&self) -> Vec<IpAddr> {
        self.candidates.banned().iter().collect()
    }

    /// Closes a connection; its requests are anybody's at once.
    pub(super) fn close(&mut self, key: PeerKey, reason: CloseReason, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0).filter(|peer| !peer.is_closing) else {
            return;
        };
        peer.is_closing = true;
        peer.parting = match reason {
            CloseReason::Fault(_) | CloseReason::Banned => Parting::Faulty,
            CloseReason::Useless | CloseReason::Replaced => Parting::Useless,
            CloseReason::Duplicate => Parting::Duplicate,
            CloseReason::Silent | CloseReason::Stopping | CloseReason::Blocked => Parting::Broken,
        };
        cx.fx.push(Effect::Close { peer: key, reason });
        self.release_all(key, cx);
    }

    /// Marks a peer that broke the protocol; the runtime closes it because of the error.
    fn judged<T>(
        &mut self,
        key: PeerKey,
        result: Result<T, PeerFault>,
        cx: &mut Cx<'_>,
    ) -> Result<T, PeerFault> {
        if result.is_err()
            && let Some(peer) = self.peers.get_mut(key.0)
        {
            peer.is_closing = true;
            peer.parting = Parting::Faulty;
            self.release_all(key, cx);
        }
        self.after_event();
        result
    }

    fn after_wanted_changed(&mut self, was_complete: bool, cx: &mut Cx<'_>) {
        for key in self.peers.keys() {
            self.recount_needed(PeerKey(key));
            self.update_interest(PeerKey(key), cx);
        }
        let is_complete = self.pieces.is_complete();
        if is_complete != was_complete {
            self.candidates
                .set_complete(is_complete || !self.cfg.fetches);
            self.announce_upload_only(is_complete || !self.cfg.fetches, cx);
            if is_complete {
                cx.fx.push(Effect::Complete);
            }
        }
        self.fill_all(cx);
        self.after_event();
    }

    pub(super) fn after_event(&mut self) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.unchecked_count += 1;
        let pieces = u64::from(self.cfg.geometry.piece_count());
        let cost = pieces * (self.peers.len() as u64 + 1);
        if self.unchecked_count * CHECKED_PER_EVENT >= cost {
            self.unchecked_count = 0;
            self.check();
        }
    }
}

/// Bytes of whole messages at the front, at most `max_bytes` unless the first alone is longer.
fn whole_messages(outbox: &[u8], max_bytes: usize) -> usize {
    if outbox.len() <= max_bytes {
        return outbox.len();
    }
    let mut taken = 0;
    while let Some(prefix) = outbox.get(taken..).and_then(|rest| rest.first_chunk::<4>()) {
        let next = taken + 4 + u32::from_be_bytes(*prefix) as usize;
        if next > max_bytes && taken > 0 {
            break;
        }
        taken = next;
    }
    taken
}
