//! One connected peer: its flags, pieces, pipeline and upload queue, and the ways it can break the protocol. Layer 2.

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::{Bitfield, BlockRef, Now, PeerId, PieceIndex, RateMeter};
use crate::swarm::candidates::{Parting, Source};
use crate::swarm::effects::{Cx, Effect, PeerKey, WebSeedId};
use crate::swarm::holepunch::Holes;
use crate::swarm::metadata::serve::MetadataQueue;
use crate::swarm::pex::{PexIn, PexOut};
use crate::swarm::pipeline::{PEER_PACE, Pipeline, WEB_PACE};
use crate::swarm::poison::Party;
use crate::swarm::torrent::Connected;
use crate::swarm::torrent::hashes::HashAllowance;
use crate::swarm::torrent::leaves::LeafAllowance;
use crate::swarm::uploads::Uploads;
use crate::wire::extended::PeerExtensions;
use crate::wire::handshake::Reserved;
use crate::wire::message::{Message, RawBlock, encode};

/// Requests we cannot serve before the peer is dropped (libtorrent's figure); every block sent takes one back.
pub const REFUSED_MAX: u32 = 300;
/// Blocks never requested before the peer is dropped. Withdrawn requests are remembered and do not count, so an honest
/// peer sends none.
pub const UNREQUESTED_MAX: u32 = 64;
/// Rejects of nothing requested before the peer is dropped.
pub const STRAY_REJECTS_MAX: u32 = 300;
/// Messages without use in one second (choke and interest flapping, cancels of nothing, known haves): a full queue of
/// crossing cancels is honest, 100,000 a second are not.
pub const USELESS_PER_S_MAX: u32 = 2_000;
/// Pieces a peer may name `allowed_fast`; the usual set has ten.
pub const ALLOWED_FAST_MAX: usize = 64;
/// Pieces that a peer which does not choke us refused, and that it is not asked for until [`WITHHELD_FOR`] has passed.
/// More at a time mean that it refuses everything: then it rests as a whole.
pub const WITHHELD_MAX: usize = 16;
/// An honest peer refuses what it has because its disk or its queue is in trouble; that passes.
pub const WITHHELD_FOR: Duration = Duration::from_secs(60);
/// Without output for so long a keep-alive is sent: peers close after two minutes of silence (BEP 3).
pub const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(100);
/// Without input for so long a peer is closed: two minutes and what the coarse tick may add on its side.
pub const SILENT_AFTER: Duration = Duration::from_secs(140);
/// Control bytes that may wait for a peer that takes none. A bitfield, which is sent once, does not count.
pub const OUTBOX_BYTES_MAX: usize = 64 * 1024;

/// A breach of the protocol that ends the connection; no other peer is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// HOSTILE.md W3.
    #[error("bitfield of {got_bytes} bytes where {expected_bytes} were expected")]
    BitfieldLength { expected_bytes: u32, got_bytes: u32 },
    /// HOSTILE.md W3.
    #[error("spare bits of the bitfield are set")]
    BitfieldSpareBits,
    /// HOSTILE.md W3: a later one must hold all that was told before.
    #[error("bitfield, have_all or have_none without pieces that were told before")]
    BitfieldShrinks,
    /// HOSTILE.md W4; also `suggest_piece` and `allowed_fast`.
    #[error("piece {got} of a torrent of {pieces}")]
    PieceOutOfRange { got: u32, pieces: u32 },
    /// HOSTILE.md W5, W6: over 128 KiB, or impossible too often.
    #[error("request of {length_bytes} bytes at {begin} of piece {piece}")]
    BadRequest {
        piece: u32,
        begin: u32,
        length_bytes: u32,
    },
    /// HOSTILE.md W7, W8.
    #[error("{got} requests that could not be served, {max} are borne")]
    TooManyRefused { got: u32, max: u32 },
    /// HOSTILE.md W9.
    #[error("{got} blocks that were never requested, {max} are borne")]
    TooManyUnrequested { got: u32, max: u32 },
    /// HOSTILE.md W12.
    #[error("message {id} belongs to the fast extension, which was not agreed on")]
    FastNotAgreed { id: u8 },
    /// HOSTILE.md W12.
    #[error("{got} rejects of nothing requested, {max} are borne")]
    TooManyStrayRejects { got: u32, max: u32 },
    /// HOSTILE.md W10.
    #[error("{got} messages without use in one second, {max} are borne")]
    Flood { got: u32, max: u32 },
    /// Extended message although BEP 10 was not agreed on, or a handshake that is no dictionary.
    #[error("bad extension message {id}")]
    BadExtended { id: u8 },
    /// HOSTILE.md W20.
    #[error("hashes that do not lie below their root")]
    WrongHashes,
    /// HOSTILE.md W8.
    #[error("{got_bytes} bytes of answers wait, {max_bytes} are kept")]
    TakesNothing { got_bytes: u32, max_bytes: u32 },
}

/// The pieces a peer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerHave {
    None,
    Some(Bitfield),
    All,
}

impl PeerHave {
    /// True without any piece.
    pub fn is_none(&self) -> bool {
        matches!(self, PeerHave::None)
    }

    /// True when the peer has everything.
    pub fn is_all(&self) -> bool {
        match self {
            PeerHave::None => false,
            PeerHave::Some(bits) => bits.is_full(),
            PeerHave::All => true,
        }
    }

    /// True when the peer has this piece, which lies inside the torrent.
    #[inline]
    pub fn has(&self, piece: PieceIndex) -> bool {
        match self {
            PeerHave::None => false,
            PeerHave::Some(bits) => bits.has(piece),
            PeerHave::All => true,
        }
    }

    /// Number of pieces, of a torrent of `pieces`.
    pub fn count(&self, pieces: u32) -> u32 {
        match self {
            PeerHave::None => 0,
            PeerHave::Some(bits) => bits.count(),
            PeerHave::All => pieces,
        }
    }

    /// True when every piece of the other is here too; both are of one torrent.
    pub fn includes(&self, other: &PeerHave) -> bool {
        match other {
            PeerHave::None => true,
            PeerHave::All => self.is_all(),
            PeerHave::Some(bits) => match self {
                PeerHave::None => bits.count() == 0,
                PeerHave::Some(own) => bits.iter_without(own).next().is_none(),
                PeerHave::All => true,
            },
        }
    }

    /// Adds a piece of a torrent of `pieces`; true when it is new.
    pub fn set(&mut self, piece: PieceIndex, pieces: u32) -> bool {
        if self.is_none() {
            *self = PeerHave::Some(Bitfield::new(pieces));
        }
        match self {
            PeerHave::Some(bits) => bits.set(piece),
            _ => false,
        }
    }

    /// Takes a piece of a torrent of `pieces` away.
    pub fn clear(&mut self, piece: PieceIndex, pieces: u32) {
        if matches!(self, PeerHave::All) {
            *self = PeerHave::Some(Bitfield::full(pieces));
        }
        if let PeerHave::Some(bits) = self {
            bits.clear(piece);
        }
    }
}

/// What the payload now coming in is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Block(BlockRef),
    Scratch,
}

/// One connection after its handshake.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Nowhere for a web seed: nothing may be concluded from it.
    pub conn: Connected,
    /// Who named its address.
    pub source: Source,
    pub party: Party,
    pub connected_at: Now,
    pub is_fast: bool,
    pub is_extended: bool,
    /// It has a DHT node, and has not said where yet (BEP 5).
    pub owes_dht_port: bool,
    /// A message other than keep-alives and extension messages came: a bitfield that follows only adds.
    pub has_spoken: bool,
    pub is_closing: bool,
    pub parting: Parting,
    /// Its end gives a connection credit back; false once its place went to another.
    pub holds_credit: bool,

    pub am_choking: bool,
    pub am_interested: bool,
    pub peer_choking: bool,
    pub peer_interested: bool,
    pub is_upload_only: bool,

    pub have: PeerHave,
    /// Pieces it has that are wanted and not had.
    pub needed_count: u32,
    /// Pieces it has but refused lately, and until when they are not asked for again.
    pub withheld: Vec<(PieceIndex, Now)>,
    /// `have` without the withheld pieces; only while there are some.
    pub offers: Option<PeerHave>,
    pub allowed_in: Vec<PieceIndex>,
    pub allowed_out: Vec<PieceIndex>,
    /// What may still be sent of `allowed_out` while it is choked.
    pub allowed_out_bytes: u64,
    pub has_been_offered_fast: bool,

    pub pipeline: Pipeline,
    pub incoming: Option<Incoming>,
    /// When the header of `incoming` came.
    pub incoming_at: Now,
    pub current: Option<PieceIndex>,
    /// There was nothing to ask it for at this epoch of `Pieces`.
    pub nothing_at_epoch: u64,
    pub is_starved: bool,
    pub is_suspect: bool,
    /// It is asked for nothing before this moment.
    pub rests_until: Now,
    /// When it last unchoked us.
    pub unchoked_us_at: Option<Now>,

    pub uploads: Uploads,
    /// It waits for blocks that are on their way to others.
    pub is_deferred: bool,
    pub up: RateMeter,
    pub unchoked_at: Now,
    /// When we last choked it after serving it; `None` before that.
    pub choked_at: Option<Now>,
    pub sent_before_unchoke_bytes: u64,
    pub upload_progress_at: Now,
    /// When a run last went out to it whole while it had asked for more than one block; [`Now::ZERO`] before that. Who
    /// asks for a block now and then needs no slot for it.
    pub used_slot_at: Now,

    pub outbox: Vec<u8>,
    /// All our pieces from this one on are still to be told, since they were kept from it (BEP 16).
    pub unveil_from: Option<u32>,
    pub have_cursor: usize,
    pub is_woken: bool,
    pub woken_at: Now,
    pub heard_at: Now,
    pub sent_at: Now,

    pub refused_count: u32,
    pub unrequested_count: u32,
    pub stray_reject_count: u32,
    pub useless_count: u32,
    pub useless_since: Now,
    pub idle_since: Option<Now>,

    pub client: String,
    pub prefers_encryption: bool,
    /// We reached it by a hidden handshake.
    pub took_hidden: bool,
    pub extensions: PeerExtensions,
    /// Where an inbound peer says that it listens (BEP 10, `p`).
    pub listen_addr: Option<SocketAddr>,
    /// What it asked for of the metadata.
    pub metadata: MetadataQueue,
    /// What is left of the hashes it may ask for.
    pub hashes: HashAllowance,
    /// What is left of our pieces that it may have read for their leaves.
    pub leaves: LeafAllowance,
    /// It is not asked for leaves before this moment.
    pub knows_leaves_from: Now,
    pub pex_out: PexOut,
    pub pex_in: PexIn,
    /// uTP carries it.
    pub is_utp: bool,
    /// We reached it by hole punching: nobody can just dial it.
    pub was_punched: bool,
    pub holes: Holes,
}

impl Peer {
    pub fn new(conn: Connected, source: Source, have_cursor: usize, now: Now) -> Self {
        let reserved = Reserved::new(conn.reserved);
        Peer {
            conn,
            source,
            party: Party::new(conn.addr, conn.peer_id),
            connected_at: now,
            is_fast: reserved.has_fast(),
            is_extended: reserved.has_extended(),
            owes_dht_port: reserved.has_dht(),
            has_spoken: false,
            is_closing: false,
            parting: Parting::Broken,
            holds_credit: true,
            am_choking: true,
            am_interested: false,
            peer_choking: true,
            peer_interested: false,
            is_upload_only: false,
            have: PeerHave::None,
            needed_count: 0,
            withheld: Vec::new(),
            offers: None,
            allowed_in: Vec::new(),
            allowed_out: Vec::new(),
            allowed_out_bytes: 0,
            has_been_offered_fast: false,
            pipeline: Pipeline::new(&PEER_PACE, now),
            incoming: None,
            incoming_at: now,
            current: None,
            nothing_at_epoch: 0,
            is_starved: false,
            is_suspect: false,
            rests_until: Now::ZERO,
            unchoked_us_at: None,
            uploads: Uploads::new(),
            is_deferred: false,
            up: RateMeter::new(now),
            unchoked_at: Now::ZERO,
            choked_at: None,
            sent_before_unchoke_bytes: 0,
            upload_progress_at: now,
            used_slot_at: Now::ZERO,
            outbox: Vec::new(),
            unveil_from: None,
            have_cursor,
            is_woken: false,
            woken_at: now,
            heard_at: now,
            sent_at: now,
            refused_count: 0,
            unrequested_count: 0,
            stray_reject_count: 0,
            useless_count: 0,
            useless_since: now,
            idle_since: None,
            client: String::new(),
            prefers_encryption: false,
            took_hidden: false,
            extensions: PeerExtensions::default(),
            listen_addr: None,
            metadata: MetadataQueue::default(),
            hashes: HashAllowance::default(),
            leaves: LeafAllowance::default(),
            knows_leaves_from: Now::ZERO,
            pex_out: PexOut::default(),
            pex_in: PexIn::new(now),
            is_utp: false,
            was_punched: false,
            holes: Holes::new(now),
        }
    }

    /// A connection to a web seed: nothing is said to it, it takes no place, and it sends whatever it is asked for.
    pub fn web(seed: WebSeedId, have: PeerHave, have_cursor: usize, now: Now) -> Self {
        let nowhere = Connected {
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            is_inbound: false,
            peer_id: PeerId::new([0; 20]),
            reserved: [0; 8],
            is_v2: false,
        };
        Peer {
            party: Party::Web(seed),
            holds_credit: false,
            peer_choking: false,
            have,
            pipeline: Pipeline::new(&WEB_PACE, now),
            ..Peer::new(nowhere, Source::User, have_cursor, now)
        }
    }

    /// The web seed it is a connection to, if it is one.
    pub const fn web_seed(&self) -> Option<WebSeedId> {
        match self.party {
            Party::Web(seed) => Some(seed),
            _ => None,
        }
    }

    /// True for a connection to a web seed.
    pub const fn is_web(&self) -> bool {
        self.web_seed().is_some()
    }

    /// True when it belongs to this party.
    pub fn is_of(&self, party: &Party) -> bool {
        match self.is_web() {
            true => self.party == *party,
            false => party.is_behind(self.conn.addr, self.conn.peer_id),
        }
    }

    /// What it may be asked for, as far as is known.
    pub fn offers(&self) -> &PeerHave {
        self.offers.as_ref().unwrap_or(&self.have)
    }

    /// It refused a piece without choking us: it is not asked for that one until `WITHHELD_FOR` has passed, and for
    /// nothing at all when it refused as many as are remembered.
    pub fn withhold(&mut self, piece: PieceIndex, pieces: u32, now: Now) {
        if self.withheld.len() >= WITHHELD_MAX {
            self.rests_until = now + WITHHELD_FOR;
            return;
        }
        if !self.offers().has(piece) {
            return;
        }
        self.withheld.push((piece, now + WITHHELD_FOR));
        let have = &self.have;
        let offers = self.offers.get_or_insert_with(|| have.clone());
        offers.clear(piece, pieces);
    }

    /// Offers again what was withheld for long enough.
    pub fn review_withheld(&mut self, pieces: u32, now: Now) {
        let before = self.withheld.len();
        self.withheld.retain(|(_, until)| *until > now);
        if self.withheld.len() == before {
            return;
        }
        self.nothing_at_epoch = 0;
        self.offers = None;
        if !self.withheld.is_empty() {
            let mut offers = self.have.clone();
            for (piece, _) in &self.withheld {
                offers.clear(*piece, pieces);
            }
            self.offers = Some(offers);
        }
    }

    /// Adds a piece that it says it has; true when it is new.
    pub fn set_have(&mut self, piece: PieceIndex, pieces: u32) -> bool {
        if let Some(offers) = &mut self.offers {
            offers.set(piece, pieces);
            self.withheld.retain(|(withheld, _)| *withheld != piece);
        }
        self.have.set(piece, pieces)
    }

    /// Takes a piece away that it no longer has.
    pub fn clear_have(&mut self, piece: PieceIndex, pieces: u32) {
        if let Some(offers) = &mut self.offers {
            offers.clear(piece, pieces);
            self.withheld.retain(|(withheld, _)| *withheld != piece);
        }
        self.have.clear(piece, pieces);
    }

    /// Queues a message and wakes the writer. A web seed understands none.
    pub fn send(&mut self, key: PeerKey, message: &Message<'_>, cx: &mut Cx<'_>) {
        if self.is_closing || self.is_web() {
            return;
        }
        tracing::trace!(addr = %self.conn.addr, "to peer: {message}");
        encode(message, &mut self.outbox);
        self.wake(key, cx);
    }

    /// Wakes the writer unless it was woken and has not looked yet.
    pub fn wake(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        if self.is_woken || self.is_closing {
            return;
        }
        self.is_woken = true;
        self.woken_at = cx.now;
        cx.fx.push(Effect::WakeWriter(key));
    }

    /// A whole block came. What a snubbed peer was asked for on trial is cancelled once it sends again.
    pub fn on_block(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        self.pipeline.on_block(cx.now);
        if let Some(probe) = self.pipeline.take_stale_probe() {
            self.send(key, &Message::Cancel(raw(probe)), cx);
        }
    }

    /// How many pieces of the log, from the cursor on, need not be told: it has them, or we lost them again. `None` when
    /// nothing is left to tell.
    pub fn old_news(&self, log: &[PieceIndex], ours: &Bitfield) -> Option<usize> {
        let mut left = log.get(self.have_cursor..)?.iter();
        left.position(|piece| !self.have.has(*piece) && ours.has(*piece))
    }

    /// Moves the cursor past what need not be told; true when something is left to tell.
    pub fn skip_old_news(&mut self, log: &[PieceIndex], ours: &Bitfield) -> bool {
        let old = self.old_news(log, ours);
        self.have_cursor = old.map_or(log.len(), |old| self.have_cursor + old);
        old.is_some()
    }

    /// Blocks are on their way to it.
    pub fn is_sending(&self) -> bool {
        self.uploads.in_flight_blocks() > 0
    }

    /// Counts a message that changed nothing.
    ///
    /// # Errors
    /// Too many in one second.
    pub fn count_useless(&mut self, now: Now) -> Result<(), PeerFault> {
        if now.since(self.useless_since) >= Duration::from_secs(1) {
            self.useless_since = now;
            self.useless_count = 0;
        }
        self.useless_count += 1;
        limit(self.useless_count, USELESS_PER_S_MAX, |got, max| {
            PeerFault::Flood { got, max }
        })
    }

    /// Where others can reach it: where it was dialed, or where it says that it listens.
    pub fn reachable_at(&self) -> Option<SocketAddr> {
        match self.conn.is_inbound {
            true => self.listen_addr,
            false if self.is_web() => None,
            false => Some(self.conn.addr),
        }
    }

    /// Whether that address leads to it.
    pub fn is_at(&self, addr: SocketAddr) -> bool {
        !self.is_web() && (self.conn.addr == addr || self.listen_addr == Some(addr))
    }

    /// Where it takes packets of uTP from somebody else, as far as is known. Behind a gateway that is where its own come
    /// from, which may not be the port it told.
    pub fn punchable_at(&self) -> Option<SocketAddr> {
        match self.is_utp {
            true => Some(self.conn.addr),
            false => self.reachable_at(),
        }
    }

    /// Neither side will ever want anything of the other, as far as is known.
    pub fn is_seed(&self) -> bool {
        self.have.is_all() || self.is_upload_only
    }
}

/// The block as it goes over the wire.
pub(super) fn raw(block: BlockRef) -> RawBlock {
    RawBlock {
        piece: block.piece().get(),
        begin: block.begin(),
        length: block.length(),
    }
}

/// Fails when a count went past what is borne.
pub(super) fn limit(
    got: u32,
    max: u32,
    fault: impl FnOnce(u32, u32) -> PeerFault,
) -> Result<(), PeerFault> {
    match got > max {
        true => Err(fault(got, max)),
        false => Ok(()),
    }
}
