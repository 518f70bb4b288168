//! A torrent, its runtime and its peers, as strings: pieces as `x` (had), `.` (missing) and `-` (missing and not
//! wanted), messages as `request 2:0` (piece 2, block 0), effects as `hash 2`. Every call is followed by all checks.

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::{BLOCK_BYTES, Bitfield, BlockRef, Geometry, Now, PeerId, PieceIndex};
use crate::swarm::effects::{Credits, Cx, Effect, PeerKey, UploadRun};
use crate::swarm::peer::PeerFault;
use crate::swarm::torrent::{Connected, Placement, Refusal, Torrent, TorrentConfig};
use crate::wire::decoder::{Decoder, Event, Limits};
use crate::wire::extended::{Extension, OurExtensionHandshake, encode_donthave};
use crate::wire::message::{HashRange, Message, RawBlock};

/// Four blocks.
pub const PIECE_BYTES: u64 = 4 * BLOCK_BYTES as u64;
pub const CONNECTIONS: u32 = 50;

pub struct World {
    pub torrent: Torrent,
    pub now: Now,
    pub credits: Credits,
    pub budget_bytes: u64,
    pub is_disk_slow: bool,
    fx: Vec<Effect>,
    effects: Vec<String>,
    wakes: Vec<PeerKey>,
    connected_count: u8,
}

/// How a peer comes.
#[derive(Clone, Copy)]
pub struct Come<'a> {
    pub name: u8,
    pub is_fast: bool,
    pub is_extended: bool,
    pub is_inbound: bool,
    /// Its pieces; empty says nothing.
    pub have: &'a str,
}

/// Our pieces as drawn, the usual settings but for those changed.
pub fn world_with(ours: &str, change: impl FnOnce(&mut TorrentConfig)) -> World {
    let total = PIECE_BYTES * ours.len() as u64;
    let geometry = Geometry::new(total, PIECE_BYTES).unwrap();
    let mut config = TorrentConfig::new(geometry, PeerId::new([0xee; 20]), 7);
    config.have = bits(ours, "x");
    config.wanted = bits(ours, "x.");
    config.listen_port = 7000;
    change(&mut config);
    let now = Now::from_secs(1_000);
    let budget_bytes = config.assembly_budget_bytes;
    World {
        torrent: Torrent::new(config, now),
        now,
        credits: Credits {
            assembly_bytes: budget_bytes,
            connections: CONNECTIONS,
            dials: 10,
        },
        budget_bytes,
        is_disk_slow: false,
        fx: Vec::new(),
        effects: Vec::new(),
        wakes: Vec::new(),
        connected_count: 0,
    }
}

/// Our pieces as drawn.
pub fn world(ours: &str) -> World {
    world_with(ours, |_| {})
}

/// A fast, extended peer that dialed us.
pub const fn come(name: u8, have: &str) -> Come<'_> {
    Come {
        name,
        is_fast: true,
        is_extended: true,
        is_inbound: true,
        have,
    }
}

/// A peer that speaks BEP 3 and nothing else.
pub const fn plain(name: u8, have: &str) -> Come<'_> {
    Come {
        is_fast: false,
        is_extended: false,
        ..come(name, have)
    }
}

/// Pieces drawn with one of `marks`.
pub fn bits(drawing: &str, marks: &str) -> Bitfield {
    let mut bits = Bitfield::new(drawing.len() as u32);
    let marked = (0u32..).zip(drawing.chars());
    for (piece, _) in marked.filter(|(_, mark)| marks.contains(*mark)) {
        bits.set(PieceIndex::new(piece));
    }
    bits
}

pub fn addr(name: u8) -> SocketAddr {
    SocketAddr::from(([1, 0, 0, name], 6881))
}

pub fn piece(index: u32) -> PieceIndex {
    PieceIndex::new(index)
}

impl World {
    /// Calls the core and does what it asks for: hashes are good, writes succeed, digests fail, unless the disk is slow.
    pub fn call<R>(&mut self, f: impl FnOnce(&mut Torrent, &mut Cx<'_>) -> R) -> R {
        let result = self.call_alone(f);
        while !self.fx.is_empty() {
            for effect in std::mem::take(&mut self.fx) {
                self.execute(effect);
            }
        }
        self.torrent.check();
        let stats = self.torrent.stats(self.now);
        let held_bytes = self.credits.assembly_bytes + stats.assembly_bytes;
        assert_eq!(held_bytes, self.budget_bytes, "assembly credits");
        let held = self.credits.connections + stats.peers_connected + stats.peers_half_open;
        assert_eq!(held, CONNECTIONS, "connection credits");
        result
    }

    /// Calls the core and leaves its effects for later, as within one large receive.
    pub fn call_alone<R>(&mut self, f: impl FnOnce(&mut Torrent, &mut Cx<'_>) -> R) -> R {
        let mut cx = Cx {
            now: self.now,
            credits: &mut self.credits,
            fx: &mut self.fx,
        };
        f(&mut self.torrent, &mut cx)
    }

    fn execute(&mut self, effect: Effect) {
        let text = match &effect {
            Effect::WakeWriter(key) => return self.wakes.push(*key),
            Effect::Close { peer, reason } => {
                let name = self.name(*peer);
                format!("close {name} {reason:?}")
            }
            Effect::Dial { addr } => format!("dial {addr}"),
            Effect::Punch { addr } => format!("punch {addr}"),
            Effect::Hash { piece } => format!("hash {}", piece.get()),
            Effect::Write { piece } => format!("write {}", piece.get()),
            Effect::FlushSegment { piece, segment } => format!("flush {}:{segment}", piece.get()),
            Effect::Discard { piece } => format!("discard {}", piece.get()),
            Effect::DigestBlocks { piece } => format!("digest {}", piece.get()),
            Effect::DropBlocks { piece, blocks } => format!("drop {} {blocks:?}", piece.get()),
            Effect::HashLeaves { piece } => format!("hash leaves {}", piece.get()),
            Effect::ReadLeaves { piece, bytes } => format!("read leaves {} {bytes}", piece.get()),
            Effect::Ban { ip } => format!("ban {ip}"),
            Effect::BanWebSeed { seed } => format!("ban web seed {}", seed.0),
            Effect::Have { piece } => format!("have {}", piece.get()),
            Effect::Complete => "complete".to_owned(),
            Effect::WantPeers => "want_peers".to_owned(),
            Effect::DhtNode { addr } => format!("dht_node {addr}"),
        };
        self.effects.push(text);
        match effect {
            Effect::Close { peer, .. } => {
                self.call_alone(|torrent, cx| torrent.on_disconnected(peer, cx));
            }
            _ if self.is_disk_slow => {}
            Effect::Hash { piece } => {
                self.call_alone(|torrent, cx| torrent.on_piece_hashed(piece, true, cx));
            }
            Effect::Write { piece } => {
                self.call_alone(|torrent, cx| torrent.on_piece_written(piece, cx));
            }
            Effect::FlushSegment { piece, segment } => {
                self.call_alone(|torrent, cx| torrent.on_segment_flushed(piece, segment, cx));
            }
            Effect::DigestBlocks { piece } => {
                self.call_alone(|torrent, cx| torrent.on_block_digests(piece, None, cx));
            }
            _ => {}
        }
    }

    fn name(&self, key: PeerKey) -> u8 {
        match self.torrent.peer_addr(key).map(|addr| addr.ip()) {
            Some(std::net::IpAddr::V4(ip)) => ip.octets()[3],
            _ => 0,
        }
    }

    /// What was asked of the runtime since the last look, wake-ups left out.
    pub fn effects(&mut self) -> Vec<String> {
        std::mem::take(&mut self.effects)
    }

    /// Who was closed since the last look, and why.
    pub fn closed(&mut self) -> Vec<String> {
        let mut effects = self.effects();
        effects.retain(|effect| effect.starts_with("close"));
        effects
    }

    /// Who was woken since the last look.
    pub fn wakes(&mut self) -> Vec<PeerKey> {
        std::mem::take(&mut self.wakes)
    }

    /// Connects a peer, which may be refused.
    pub fn try_peer(&mut self, come: Come<'_>) -> Result<PeerKey, Refusal> {
        self.connected_count += 1;
        let mut reserved = [0; 8];
        reserved[5] = if come.is_extended { 0x10 } else { 0 };
        reserved[7] = if come.is_fast { 0x04 } else { 0 };
        let mut addr = addr(come.name);
        if come.is_inbound {
            addr.set_port(40_000 + u16::from(self.connected_count));
        }
        let conn = Connected {
            addr,
            is_inbound: come.is_inbound,
            peer_id: PeerId::new([come.name; 20]),
            reserved,
            is_v2: true,
        };
        let key = self.call(|torrent, cx| torrent.on_connected(conn, cx))?;
        if !come.have.is_empty() {
            self.say(key, &format!("bitfield {}", come.have));
        }
        Ok(key)
    }

    /// Connects a peer that has a DHT node; what it was told stays to be heard.
    pub fn dht_peer(&mut self, name: u8) -> PeerKey {
        let conn = Connected {
            addr: addr(name),
            is_inbound: true,
            peer_id: PeerId::new([name; 20]),
            reserved: [0, 0, 0, 0, 0, 0, 0, 0x05],
            is_v2: true,
        };
        self.call(|torrent, cx| torrent.on_connected(conn, cx))
            .expect("the peer is taken in")
    }

    /// Connects a peer and forgets what it was greeted with.
    pub fn peer(&mut self, come: Come<'_>) -> PeerKey {
        let key = self.try_peer(come).expect("the peer is taken in");
        self.hear(key);
        key
    }

    /// Connects a peer that unchokes us; its first requests were made.
    pub fn unchoking(&mut self, come: Come<'_>) -> PeerKey {
        let key = self.peer(come);
        self.say(key, "unchoke");
        key
    }

    pub fn gone(&mut self, key: PeerKey) {
        self.call(|torrent, cx| torrent.on_disconnected(key, cx));
    }

    /// The peer says something that is no fault.
    pub fn say(&mut self, key: PeerKey, text: &str) {
        self.try_say(key, text).expect("no fault");
    }

    pub fn try_say(&mut self, key: PeerKey, text: &str) -> Result<(), PeerFault> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let number = || rest.parse::<u32>().expect("a number");
        let field = bits(rest, "x");
        let payload: Vec<u8>;
        let message = match word {
            "keep_alive" => Message::KeepAlive,
            "choke" => Message::Choke,
            "unchoke" => Message::Unchoke,
            "interested" => Message::Interested,
            "not_interested" => Message::NotInterested,
            "have" => Message::Have { piece: number() },
            "bitfield" => Message::Bitfield {
                bytes: field.as_bytes(),
            },
            "have_all" => Message::HaveAll,
            "have_none" => Message::HaveNone,
            "suggest" => Message::SuggestPiece { piece: number() },
            "allowed_fast" => Message::AllowedFast { piece: number() },
            "request" => Message::Request(self.raw(rest)),
            "cancel" => Message::Cancel(self.raw(rest)),
            "reject" => Message::RejectRequest(self.raw(rest)),
            "unknown" => Message::Unknown { id: 99 },
            "port" => Message::Port {
                port: number() as u16,
            },
            "extended" => {
                payload = rest.as_bytes().to_vec();
                Message::Extended {
                    id: 0,
                    payload: &payload,
                }
            }
            "donthave" => {
                payload = encode_donthave(number()).to_vec();
                let id = Extension::LtDonthave.our_id();
                Message::Extended {
                    id,
                    payload: &payload,
                }
            }
            "upload_only" => {
                payload = vec![number() as u8];
                let id = Extension::UploadOnly.our_id();
                Message::Extended {
                    id,
                    payload: &payload,
                }
            }
            "piece" => {
                self.block(key, rest)?;
                return Ok(());
            }
            _ => panic!("no message {text:?}"),
        };
        self.call(|torrent, cx| torrent.on_message(key, &message, cx))
    }

    /// The peer's extension handshake: takes every message that we know, bears `reqq` requests.
    pub fn shake(&mut self, key: PeerKey, reqq: u32, listen_port: u16, upload_only: bool) {
        let handshake = OurExtensionHandshake {
            extensions: &Extension::ALL,
            client: "Test 1",
            listen_port: Some(listen_port).filter(|port| *port != 0),
            // The last two places of a peer's queue are left free.
            reqq: reqq + 2,
            your_ip: None,
            metadata_size_bytes: None,
            upload_only,
        };
        let payload = handshake.encode();
        let message = Message::Extended {
            id: 0,
            payload: &payload,
        };
        self.call(|torrent, cx| torrent.on_message(key, &message, cx))
            .expect("no fault");
    }

    /// A whole block comes; says where it went.
    pub fn block(&mut self, key: PeerKey, text: &str) -> Result<Placement, PeerFault> {
        let header = self.raw(text);
        let placement = self.header(key, text)?;
        self.call(|torrent, cx| torrent.on_block_bytes(key, header.length, cx));
        self.end_block(key, text, placement);
        Ok(placement)
    }

    /// A block begins to come.
    pub fn header(&mut self, key: PeerKey, text: &str) -> Result<Placement, PeerFault> {
        let header = self.raw(text);
        self.call(|torrent, cx| torrent.on_piece_header(key, header, cx))
    }

    /// Its last byte is there.
    pub fn end_block(&mut self, key: PeerKey, text: &str, placement: Placement) {
        let header = self.raw(text);
        self.call(|torrent, cx| match placement {
            Placement::Store(block) => torrent.on_block_stored(key, block, cx),
            Placement::Scratch => torrent.on_block_discarded(key, header, cx),
        });
    }

    /// What the peer is sent, haves and requests included.
    pub fn hear(&mut self, key: PeerKey) -> Vec<String> {
        let mut bytes = Vec::new();
        let max_bytes = 64 * 1024;
        while self.call(|torrent, cx| torrent.take_messages(key, &mut bytes, max_bytes, cx)) > 0 {}
        let pieces = self.torrent.cfg.geometry.piece_count();
        let mut decoder = Decoder::new(Limits::for_bitfield(pieces.div_ceil(8)));
        let mut input = bytes.as_slice();
        let mut heard = Vec::new();
        while let Some(event) = decoder.next(&mut input).expect("well formed") {
            match event {
                Event::Message(message) => heard.push(self.text(&message)),
                _ => panic!("no block among the messages"),
            }
        }
        heard
    }

    /// What the peer is sent that begins with the word; the rest is forgotten.
    pub fn hear_only(&mut self, key: PeerKey, word: &str) -> Vec<String> {
        let mut heard = self.hear(key);
        heard.retain(|text| text.split(' ').next() == Some(word));
        heard
    }

    fn text(&self, message: &Message<'_>) -> String {
        let pieces = self.torrent.cfg.geometry.piece_count();
        match *message {
            Message::KeepAlive => "keep_alive".to_owned(),
            Message::Choke => "choke".to_owned(),
            Message::Unchoke => "unchoke".to_owned(),
            Message::Interested => "interested".to_owned(),
            Message::NotInterested => "not_interested".to_owned(),
            Message::Have { piece } => format!("have {piece}"),
            Message::Bitfield { bytes } => {
                let bits = Bitfield::from_wire(bytes, pieces).expect("our own bitfield");
                let mark = |index| match bits.has(piece(index)) {
                    true => 'x',
                    false => '.',
                };
                let drawing: String = (0..pieces).map(mark).collect();
                format!("bitfield {drawing}")
            }
            Message::HaveAll => "have_all".to_owned(),
            Message::HaveNone => "have_none".to_owned(),
            Message::AllowedFast { piece } => format!("allowed_fast {piece}"),
            Message::Request(raw) => format!("request {}", short(raw)),
            Message::Cancel(raw) => format!("cancel {}", short(raw)),
            Message::RejectRequest(raw) => format!("reject {}", short(raw)),
            Message::Port { port } => format!("port {port}"),
            Message::Extended { id: 0, .. } => "extended".to_owned(),
            Message::Extended { id, payload } => match Extension::from_our_id(id) {
                Some(Extension::LtDonthave) => format!("donthave {}", payload[3]),
                Some(Extension::UploadOnly) => format!("upload_only {}", payload[0]),
                other => panic!("unexpected {other:?}"),
            },
            Message::HashRequest(range) => format!("hash_request {}", hash_range(&range)),
            Message::HashReject(range) => format!("hash_reject {}", hash_range(&range)),
            Message::Hashes { range, hashes } => {
                format!("hashes {} {}", hash_range(&range), hashes.len() / 32)
            }
            ref other => panic!("unexpected {other:?}"),
        }
    }

    /// `2:1` is block 1 of piece 2; what lies outside of the torrent is 16 KiB long all the same.
    pub fn raw(&self, text: &str) -> RawBlock {
        let (piece, block) = text.split_once(':').expect("piece:block");
        let (piece, block) = (piece.parse().unwrap(), block.parse::<u32>().unwrap());
        let known = self.torrent.cfg.geometry.piece(piece);
        let known = known.and_then(|piece| self.torrent.cfg.geometry.block(piece, block));
        RawBlock {
            piece,
            begin: block * BLOCK_BYTES,
            length: known.map_or(BLOCK_BYTES, BlockRef::length),
        }
    }

    /// The next upload run, as blocks.
    pub fn upload(&mut self, key: PeerKey) -> Option<UploadRun> {
        self.call(|torrent, cx| torrent.next_upload(key, 256 * 1024, cx))
    }

    /// Takes and sends everything that the peer waits for; returns the blocks.
    pub fn upload_all(&mut self, key: PeerKey) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some(run) = self.upload(key) {
            self.call(|torrent, cx| torrent.on_sent(key, &run, cx));
            sent.extend(run.blocks.iter().map(|block| shown(*block)));
        }
        sent
    }

    /// Time passes, deadline by deadline; peers stay as they are.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut in_a_row = 0;
        while let Some(at) = self.torrent.next_deadline().filter(|at| *at <= end) {
            in_a_row = if at > self.now { 0 } else { in_a_row + 1 };
            assert!(in_a_row < 20, "the deadline {at} is not served");
            self.now = self.now.max(at);
            self.call(Torrent::on_timer);
        }
        self.now = end;
    }

    pub fn pass_secs(&mut self, secs: u64) {
        self.pass(Duration::from_secs(secs));
    }

    /// Time passes while these peers stay in touch.
    pub fn pass_with(&mut self, peers: &[PeerKey], secs: u64) {
        for _ in 0..secs {
            self.pass_secs(1);
            for peer in peers {
                self.say(*peer, "keep_alive");
                self.hear(*peer);
            }
        }
    }

    /// The peer answers every request it has got, oldest first, until there are no more.
    pub fn serve_all(&mut self, key: PeerKey) -> Vec<String> {
        let mut served = Vec::new();
        loop {
            let requests = self.hear_only(key, "request");
            if requests.is_empty() {
                return served;
            }
            for request in requests {
                let block = request["request ".len()..].to_owned();
                self.now = self.now + Duration::from_millis(1);
                self.block(key, &block).expect("no fault");
                served.push(block);
            }
        }
    }

    /// Our pieces as drawn at the start.
    pub fn drawing(&self) -> String {
        let torrent = &self.torrent;
        let mark = |piece| match (
            torrent.have().has(piece),
            torrent.pieces.wanted().has(piece),
        ) {
            (true, _) => 'x',
            (false, true) => '.',
            (false, false) => '-',
        };
        torrent.cfg.geometry.pieces().map(mark).collect()
    }
}

pub fn shown(block: BlockRef) -> String {
    format!("{}:{}", block.piece().get(), block.begin() / BLOCK_BYTES)
}

/// First hash and number of hashes.
fn hash_range(range: &HashRange) -> String {
    format!("{}+{}", range.index, range.length)
}

fn short(raw: RawBlock) -> String {
    format!("{}:{}", raw.piece, raw.begin / BLOCK_BYTES)
}
