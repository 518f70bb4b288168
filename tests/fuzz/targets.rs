//! One function for each parser and for the swarm core: takes any bytes, panics when something that must hold does not.
//! They know nothing of where the bytes come from.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use gyre::base::{BLOCK_BYTES, Bitfield, Geometry, InfoHash, Now, PeerId, PieceIndex};
use gyre::daemon::control::guard::{is_host_allowed, is_origin_allowed};
use gyre::daemon::control::http::Request;
use gyre::daemon::control::json;
use gyre::storage::layout::FileLayout;
use gyre::storage::resume::Record;
use gyre::storage::safe_path::{root_name, safe_paths};
use gyre::swarm::torrent::{Connected, Placement, Torrent, TorrentConfig};
use gyre::swarm::{Credits, Cx, Effect, PeerKey};
use gyre::wire::bencode::{Value, scan, scan_prefix};
use gyre::wire::decoder::{Decoder, EXTENDED_BYTES_MAX, Event, Limits};
use gyre::wire::dns::{self, Wanted};
use gyre::wire::extended::{
    CLIENT_CHARS_MAX, ExtensionHandshake, REQQ_MAX, parse_donthave, parse_upload_only,
};
use gyre::wire::handshake::{Prefix, parse_prefix};
use gyre::wire::http::{BodyDecoder, RequestHead, ResponseHead};
use gyre::wire::lsd::{self, Search};
use gyre::wire::magnet::Magnet;
use gyre::wire::merkle::{self, Node};
use gyre::wire::message::{HashRange, Message, RawBlock};
use gyre::wire::metainfo::{LayerNeed, Metainfo, MetainfoBuilder, PieceLayers, PieceTrees};
use gyre::wire::mse::{
    Agreed, Initiator, MseError, Payloads, RANDOM_BYTES, Random, Responder, Step,
};
use gyre::wire::tracker::{Family, PEERS_MAX, TEXT_CHARS_MAX, clean_text};
use gyre::wire::tracker_http::{parse_announce, serve};
use gyre::wire::tracker_udp::{UdpRequest, parse_answer, parse_request, peek_transaction_id};
use gyre::wire::url::Url;
use gyre::wire::ut_holepunch::HolepunchMessage;
use gyre::wire::ut_metadata::MetadataMessage;
use gyre::wire::ut_pex::{PEX_ENTRIES_MAX, PexMessage};
use gyre::wire::web_seed::WebSeed;
use sha1::{Digest, Sha1};

/// The longest body that a target takes.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Escapes are `\u{10ffff}` at most.
const ESCAPED_BYTES_MAX: usize = 10;

/// Bencode: every value can be walked, and lies in the input.
pub fn bencode(data: &[u8]) {
    if let Ok(scanned) = scan(data) {
        let mut left = data.len() + 1;
        walk(scanned.root(), &mut left);
    }
    if let Ok((scanned, used)) = scan_prefix(data) {
        assert!(used <= data.len());
        black_box(scanned.root());
    }
}

/// A document has no more values than bytes.
fn walk(value: Value<'_>, left: &mut usize) {
    *left = left.checked_sub(1).expect("more values than bytes");
    if let Some(list) = value.as_list() {
        list.iter().for_each(|value| walk(value, left));
    } else if let Some(dict) = value.as_dict() {
        for (key, value) in dict.iter() {
            black_box(key.len());
            walk(value, left);
        }
    } else {
        black_box((value.as_int(), value.as_bytes().map(<[u8]>::len)));
    }
}

/// `.torrent` files, and the paths that come of them.
pub fn metainfo(data: &[u8]) {
    let Ok(metainfo) = Metainfo::parse(data) else {
        return;
    };
    let info = &metainfo.info;
    black_box(Magnet::from_metainfo(&metainfo).to_string());
    let root = root_name(info);
    assert!(is_plain(&root), "{root:?}");
    if let Ok(paths) = safe_paths(info) {
        for path in &paths {
            let parts = path.components();
            for part in parts {
                let std::path::Component::Normal(part) = part else {
                    panic!("{path:?} leads elsewhere");
                };
                assert!(is_plain(&part.to_string_lossy()), "{path:?}");
            }
        }
    }
    black_box(FileLayout::new(info).is_ok());
    assert_eq!(
        info.piece_hashes.count(),
        info.geometry.piece_count() as usize
    );
    let again = Metainfo::parse(&metainfo.to_torrent()).expect("what is written is read");
    assert_eq!(again.info_hashes, metainfo.info_hashes);
    assert_eq!(again.info.piece_hashes, info.piece_hashes);
    assert_eq!(again.piece_layers, metainfo.piece_layers);
}

fn is_plain(name: &str) -> bool {
    let is_bad = |c: char| c == '/' || c.is_control();
    !name.is_empty() && name != "." && name != ".." && !name.contains(is_bad) && name.len() <= 255
}

/// The first bytes of a connection, as they grow.
pub fn handshake(data: &[u8]) {
    let whole = parse_prefix(data);
    for end in 0..data.len().min(80) {
        let part = parse_prefix(&data[..end]);
        match (part, whole) {
            (Err(early), late) => assert_eq!(late, Err(early), "an error goes away"),
            (Ok(Prefix::Complete(early)), late) => assert_eq!(late, Ok(Prefix::Complete(early))),
            _ => {}
        }
    }
    if let Ok(Prefix::Complete(handshake)) = whole {
        assert_eq!(handshake.encode()[..], data[..68]);
    }
}

/// Message Stream Encryption, both sides, with keys that are always the same: one outcome however the bytes are cut.
pub fn mse(data: &[u8]) {
    let [how, cut, data @ ..] = data else { return };
    let payloads = match how & 2 {
        0 => Payloads::Both,
        _ => Payloads::Rc4Only,
    };
    let side = match how & 1 {
        0 => hidden_inbound,
        _ => hidden_outbound,
    };
    let whole = side(data, payloads, data.len().max(1));
    // Keys are dear: one input in sixteen is cut.
    let step = usize::from(*cut) + 1;
    if step <= 16 {
        assert_eq!(side(data, payloads, step), whole, "in steps of {step}");
    }
}

/// The torrent, and the randomness of the one that dials and of the other, of [`mse`].
pub const HIDDEN: (InfoHash, [u8; RANDOM_BYTES], [u8; RANDOM_BYTES]) =
    (InfoHash::new([9; 20]), [3; RANDOM_BYTES], [4; RANDOM_BYTES]);

/// What it came to: nothing yet, an error, or the payload.
type Hidden = Result<Option<(bool, Vec<u8>)>, MseError>;

fn agreed(agreed: Option<Agreed>, more: &[u8]) -> Option<(bool, Vec<u8>)> {
    let Agreed { ciphers, mut early } = agreed.expect("done");
    let mut more = more.to_vec();
    let is_encrypted = ciphers.is_some();
    if let Some(mut ciphers) = ciphers {
        ciphers.inbound.apply(&mut more);
    }
    early.append(&mut more);
    Some((is_encrypted, early))
}

fn hidden_inbound(data: &[u8], accepts: Payloads, step: usize) -> Hidden {
    let (info_hash, _, random) = HIDDEN;
    let mut responder = Responder::new(accepts);
    let mut used = 0;
    for part in data.chunks(step) {
        used += part.len();
        responder.feed(part);
        loop {
            match responder.advance()? {
                Step::Bytes => break,
                Step::Exchange => responder.exchange(Random::new(random))?,
                Step::Torrent(_) => responder.set_torrent(Some(info_hash))?,
                Step::Done => return Ok(agreed(responder.finish(), &data[used..])),
            }
        }
        assert!(responder.take_out().len() <= 96 + 512);
    }
    Ok(None)
}

fn hidden_outbound(data: &[u8], offers: Payloads, step: usize) -> Hidden {
    let (info_hash, random, _) = HIDDEN;
    let mut initiator = Initiator::new(info_hash, offers, &[7; 68], Random::new(random));
    let mut used = 0;
    for part in data.chunks(step) {
        used += part.len();
        if initiator.feed(part)? {
            return Ok(agreed(initiator.finish(), &data[used..]));
        }
        assert!(initiator.take_out().len() <= 2 * (96 + 512) + 40 + 16 + 68);
    }
    Ok(None)
}

/// The messages of the peer protocol: the same events however the bytes are cut.
pub fn decoder(data: &[u8]) {
    let [cut, data @ ..] = data else { return };
    let whole = decode(data, data.len().max(1));
    let step = usize::from(*cut % 64) + 1;
    assert_eq!(decode(data, step), whole, "in steps of {step}");
}

fn decode(data: &[u8], step: usize) -> Vec<String> {
    let mut decoder = Decoder::new(Limits::for_bitfield(3));
    let mut events: Vec<String> = Vec::new();
    let mut payload_bytes = 0;
    for mut chunk in data.chunks(step) {
        loop {
            match decoder.next(&mut chunk) {
                Ok(None) => break,
                Ok(Some(Event::Payload {
                    bytes,
                    remaining_bytes,
                })) => {
                    payload_bytes += bytes.len();
                    if remaining_bytes == 0 {
                        events.push(format!(
                            "{} payload bytes",
                            std::mem::take(&mut payload_bytes)
                        ));
                    }
                }
                Ok(Some(event)) => events.push(format!("{event:?}")),
                Err(error) => {
                    events.push(error.to_string());
                    return events;
                }
            }
        }
        assert!(decoder.memory_bytes() <= EXTENDED_BYTES_MAX as usize + 64);
    }
    events
}

/// BEP 10's handshake.
pub fn extended(data: &[u8]) {
    if let Ok(said) = ExtensionHandshake::parse(data) {
        let client = said.client.unwrap_or_default();
        assert!(client.len() <= CLIENT_CHARS_MAX * ESCAPED_BYTES_MAX);
        assert!(!client.contains(char::is_control));
        assert!(said.reqq.unwrap_or(1) <= REQQ_MAX);
    }
    black_box((
        parse_donthave(data).is_ok(),
        parse_upload_only(data).is_ok(),
    ));
}

/// Peer exchange (BEP 11).
pub fn pex(data: &[u8]) {
    let Ok(message) = PexMessage::parse(data) else {
        return;
    };
    assert!(message.added.len() <= 2 * PEX_ENTRIES_MAX);
    assert!(message.dropped.len() <= 2 * PEX_ENTRIES_MAX);
    assert_eq!(PexMessage::parse(&message.encode()), Ok(message));
}

/// Hole punching: what is read is written the same again.
pub fn holepunch(data: &[u8]) {
    if let Ok(message) = HolepunchMessage::parse(data) {
        let again = message.encode();
        // A mapped address became a shorter one, and the code of none may be missing.
        assert!(again.len() <= data.len() + 4);
        assert_eq!(HolepunchMessage::parse(&again), Ok(message));
    }
}

/// Metadata messages (BEP 9).
pub fn metadata(data: &[u8]) {
    if let Ok(message) = MetadataMessage::parse(data) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        if message != MetadataMessage::Unknown {
            assert_eq!(MetadataMessage::parse(&bytes), Ok(message));
        }
    }
}

/// An HTTP answer: head, framing, gzip. The body is the same however the bytes are cut.
pub fn http_response(data: &[u8]) {
    let [cut, data @ ..] = data else { return };
    let Ok(Some((head, used))) = ResponseHead::parse(data) else {
        return;
    };
    assert!(used <= data.len());
    if let Some(Ok(range)) = &head.content_range
        && let (Some((first, last)), total) = (range.bytes, range.total_bytes)
    {
        assert!(first <= last && total.is_none_or(|total| last < total));
    }
    let body = |step: usize| {
        let mut decoder = BodyDecoder::new(&head, BODY_BYTES_MAX);
        for chunk in data[used..].chunks(step) {
            if decoder.is_done() {
                break;
            }
            decoder.push(chunk).ok()?;
        }
        decoder.finish().ok()
    };
    let whole = body(data.len());
    assert!(
        whole
            .as_ref()
            .is_none_or(|body| body.len() <= BODY_BYTES_MAX)
    );
    assert_eq!(body(usize::from(*cut) + 1), whole);
}

/// What a tracker answers to an announce over HTTP.
pub fn announce_answer(data: &[u8]) {
    if let Ok(answer) = parse_announce(data) {
        assert!(answer.peers.len() <= PEERS_MAX);
        assert!(answer.peers.iter().all(|peer| peer.port() != 0));
        let warning = answer.warning.unwrap_or_default();
        assert!(!warning.contains(char::is_control));
    }
    let text = clean_text(data);
    assert!(text.len() <= (TEXT_CHARS_MAX + 1) * ESCAPED_BYTES_MAX);
    assert!(!text.contains(char::is_control));
}

/// What a tracker answers over UDP.
pub fn udp_answer(data: &[u8]) {
    black_box(peek_transaction_id(data));
    for family in [Family::V4, Family::V6] {
        black_box(parse_answer(data, family).is_ok());
    }
}

/// What clients send to our own tracker over HTTP.
pub fn tracker_request(data: &[u8]) {
    if let Ok(Some((head, used))) = RequestHead::parse(data) {
        assert!(used <= data.len());
        black_box(serve::parse_query(&head.target).is_ok());
    }
    if let Ok(serve::Query::Scrape(hashes)) = serve::parse_query(data) {
        assert!(hashes.len() <= serve::SCRAPE_HASHES_MAX);
    }
}

/// What clients send to our own tracker over UDP.
pub fn udp_request(data: &[u8]) {
    if let Ok((_, UdpRequest::Scrape { info_hashes, .. })) = parse_request(data) {
        assert!(info_hashes.len() <= serve::SCRAPE_HASHES_MAX);
    }
}

/// Magnet links: what is understood is written the same again.
pub fn magnet(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(magnet) = text.parse::<Magnet>() {
        let again: Magnet = magnet.to_string().parse().expect("our own link");
        assert_eq!(again.info_hash, magnet.info_hash);
        assert_eq!(again.name, magnet.name);
    }
}

/// Announces on the local network: what is understood is written the same again.
pub fn lsd(data: &[u8]) {
    if let Ok(search) = Search::parse(data) {
        assert!(search.info_hashes.len() <= lsd::HASHES_MAX);
        let again = Search::parse(&search.to_datagram(lsd::GROUP_V4));
        assert_eq!(again, Ok(search));
    }
}

/// Addresses of trackers, and redirects from them.
pub fn url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let base = Url::parse("http://tracker.example:81/a/b?c").expect("a good one");
    if let Ok(joined) = base.join(text) {
        assert!(!joined.target().contains(['\r', '\n', ' ']));
    }
    if let Ok(url) = Url::parse(text) {
        assert!(!url.target().contains(['\r', '\n', ' ']));
        assert!(!url.authority().contains(['\r', '\n', ' ', '/']));
    }
    if let Ok(seed) = WebSeed::parse(text) {
        let name = text.get(..20).unwrap_or("x");
        let builder = MetainfoBuilder::new(name, 16_384).files(vec![(vec![data.to_vec()], 1)]);
        let Ok((_, metainfo)) = builder.pieces(vec![0; 20]).build() else {
            return;
        };
        if let Ok(of_file) = seed.url_of(&metainfo.info, 0) {
            let alone = Url::parse(text).expect("parsed before");
            assert_eq!(
                of_file.authority(),
                alone.authority(),
                "no name leads elsewhere"
            );
            assert!(!of_file.target().contains(['\r', '\n', ' ', '#']));
        }
    }
}

/// What a name server answers.
pub fn dns_answer(data: &[u8]) {
    let question = dns::question(0x6779, "tracker.example", Wanted::V4).expect("a good name");
    if let Ok(addrs) = dns::answer(&question, data) {
        assert!(addrs.len() <= data.len());
    }
}

/// Records of earlier runs: what is understood is written the same again.
pub fn record(data: &[u8]) {
    // As it is, and as if a faulty program had written it: with a checksum that is right.
    let mut signed = data.to_vec();
    signed.extend_from_slice(&Sha1::digest(data));
    for bytes in [data, &signed] {
        if let Ok(record) = Record::decode(bytes) {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
    }
}

/// The decisions about one torrent under any order of events: no panic, and every credit comes back at the end.
pub fn swarm(data: &[u8]) {
    let mut world = Swarm::new(data.first().copied().unwrap_or(0));
    let mut script = data.iter().copied().skip(1);
    while let Some(op) = script.next() {
        let (a, b) = (script.next().unwrap_or(0), script.next().unwrap_or(0));
        world.step(op, a, b);
    }
    world.end();
}

const PIECES: u32 = 6;
const PIECE_BYTES: u64 = 4 * BLOCK_BYTES as u64;
const CONNECTIONS: u32 = 12;

/// A runtime that answers what the script says.
struct Swarm {
    torrent: Torrent,
    geometry: Geometry,
    credits: Credits,
    budget_bytes: u64,
    now: Now,
    fx: Vec<Effect>,
    owed: Vec<Effect>,
    peers: Vec<PeerKey>,
    /// By peer: a payload under way.
    incoming: Vec<(PeerKey, RawBlock, Placement)>,
    trees: Option<PieceTrees>,
}

/// The leaves of any piece, as many as it has blocks.
fn leaves(blocks: u32) -> Vec<Node> {
    let leaf = |block: u32| merkle::leaf(&block.to_be_bytes());
    (0..blocks).map(leaf).collect()
}

/// One file, all pieces of which are alike.
fn trees(geometry: &Geometry) -> PieceTrees {
    let length_bytes = geometry.total_bytes();
    let pieces = geometry.pieces();
    let layer = pieces.map(|piece| merkle::root(&leaves(geometry.block_count(piece)), 0, 2));
    let layer: Vec<Node> = layer.collect();
    let need = LayerNeed {
        root: merkle::root(&layer, 2, merkle::file_height(length_bytes) - 2),
        length_bytes,
        piece_length_bytes: geometry.piece_length_bytes(),
    };
    let files = [(Some(need.root), length_bytes)];
    let layers = PieceLayers::new([(need, layer)]);
    PieceTrees::new(files, geometry, &layers).expect("a file with a tree")
}

impl Swarm {
    fn new(kind: u8) -> Swarm {
        let total = PIECE_BYTES * u64::from(PIECES) - u64::from(kind & 7);
        let geometry = match kind & 4 {
            0 => Geometry::new(total, PIECE_BYTES),
            _ => Geometry::of_aligned_files([total], PIECE_BYTES),
        };
        let geometry = geometry.expect("a good shape");
        let mut config =
            TorrentConfig::new(geometry.clone(), PeerId::new([1; 20]), u64::from(kind));
        config.is_sequential = kind & 8 != 0;
        config.peers_max = u32::from(kind >> 4) + 1;
        config.wanted = Bitfield::full(PIECES);
        if kind & 3 == 3 {
            config.have = Bitfield::full(PIECES);
        }
        if kind & 4 == 4 {
            config.trees = Some(trees(&geometry));
        }
        let trees = config.trees.clone();
        let budget_bytes = config.assembly_budget_bytes;
        let now = Now::from_secs(100);
        Swarm {
            torrent: Torrent::new(config, now),
            geometry,
            credits: Credits {
                assembly_bytes: budget_bytes,
                connections: CONNECTIONS,
                dials: 4,
            },
            budget_bytes,
            now,
            fx: Vec::new(),
            owed: Vec::new(),
            peers: Vec::new(),
            incoming: Vec::new(),
            trees,
        }
    }

    fn call<R>(&mut self, call: impl FnOnce(&mut Torrent, &mut Cx<'_>) -> R) -> R {
        let mut cx = Cx {
            now: self.now,
            credits: &mut self.credits,
            fx: &mut self.fx,
        };
        let result = call(&mut self.torrent, &mut cx);
        for effect in std::mem::take(&mut self.fx) {
            match effect {
                Effect::Close { peer, .. } => self.gone(peer),
                Effect::Discard { .. }
                | Effect::DropBlocks { .. }
                | Effect::WakeWriter(_)
                | Effect::Ban { .. }
                | Effect::BanWebSeed { .. } => {}
                Effect::Have { .. } | Effect::Complete | Effect::WantPeers => {}
                Effect::DhtNode { .. } => {}
                other => self.owed.push(other),
            }
        }
        result
    }

    fn gone(&mut self, peer: PeerKey) {
        if let Some(at) = self.peers.iter().position(|key| *key == peer) {
            self.peers.swap_remove(at);
            self.incoming.retain(|(key, ..)| *key != peer);
            self.call(|torrent, cx| torrent.on_disconnected(peer, cx));
        }
    }

    fn addr(number: u8) -> SocketAddr {
        SocketAddr::from(([8, 8, number / 4, number], 1_000 + u16::from(number)))
    }

    fn step(&mut self, op: u8, a: u8, b: u8) {
        let peer = self
            .peers
            .get(usize::from(a) % self.peers.len().max(1))
            .copied();
        match (op % 12, peer) {
            (0, _) => self.connect(a, b),
            (1, _) => {
                self.now = self.now + Duration::from_millis(u64::from(a) * u64::from(b) + 1);
                if self
                    .torrent
                    .next_deadline()
                    .is_some_and(|at| at <= self.now)
                {
                    self.call(Torrent::on_timer);
                }
            }
            (2, _) => self.answer(a, b),
            (3, _) => self.call(|torrent, cx| torrent.set_paused(a & 1 == 1, cx)),
            (4, _) => {
                let piece = PieceIndex::new(u32::from(b) % PIECES);
                match a & 1 {
                    0 => self.call(|torrent, cx| torrent.on_pieces_lost(&[piece], cx)),
                    _ => self.call(|torrent, cx| torrent.on_pieces_found(&[piece], cx)),
                }
            }
            (5, _) => {
                let mut wanted = Bitfield::new(PIECES);
                let chosen = (0..PIECES).filter(|piece| b >> piece & 1 == 1);
                chosen.for_each(|piece| {
                    wanted.set(PieceIndex::new(piece));
                });
                self.call(|torrent, cx| torrent.select(wanted, cx));
            }
            (6, Some(peer)) => self.gone(peer),
            (7 | 8, Some(peer)) => self.say(peer, a / 16, b),
            (9, Some(peer)) => self.block(peer, a, b),
            (10, Some(peer)) => {
                let mut out = Vec::new();
                self.call(|torrent, cx| torrent.take_messages(peer, &mut out, 4_096, cx));
                let run = self.call(|torrent, cx| torrent.next_upload(peer, 1 << 16, cx));
                match run {
                    Some(run) if b & 7 == 0 => {
                        self.call(|torrent, cx| torrent.on_upload_failed(peer, &run, cx));
                    }
                    Some(run) => self.call(|torrent, cx| torrent.on_sent(peer, &run, cx)),
                    None => {}
                }
            }
            (11, _) => self.call(Torrent::on_credits),
            _ => {}
        }
    }

    fn connect(&mut self, a: u8, b: u8) {
        let connected = Connected {
            addr: Self::addr(a),
            is_inbound: true,
            peer_id: PeerId::new([a | 2; 20]),
            reserved: [0, 0, 0, 0, 0, b & 0x10, 0, b & 4],
            is_v2: b & 8 == 0,
        };
        self.connected(connected);
    }

    fn connected(&mut self, connected: Connected) {
        if let Ok(key) = self.call(|torrent, cx| torrent.on_connected(connected, cx)) {
            self.peers.push(key);
        }
    }

    fn say(&mut self, peer: PeerKey, what: u8, b: u8) {
        let number = u32::from(b) % (PIECES + 1);
        let begin = u32::from(b >> 4) * BLOCK_BYTES;
        let piece = number % PIECES;
        let raw = self.shape(piece, begin);
        let bits = [b];
        let (range, hashes) = self.hashes(piece, b);
        let hashes = hashes.as_flattened();
        let message = match what {
            0 => Message::Unchoke,
            1 => Message::Choke,
            2 => Message::Interested,
            3 => Message::NotInterested,
            4 => Message::Have { piece: number },
            5 => Message::HaveAll,
            6 => Message::HaveNone,
            7 => Message::Bitfield { bytes: &bits },
            8 | 9 => Message::Request(raw),
            10 => Message::Cancel(raw),
            11 => Message::RejectRequest(raw),
            12 => Message::AllowedFast { piece: number },
            13 => Message::SuggestPiece { piece: number },
            14 => Message::Port { port: u16::from(b) },
            _ if b & 0xc0 == 0 => Message::KeepAlive,
            _ if b & 0xc0 == 0x40 => Message::HashRequest(range),
            _ if b & 0x30 == 0 => Message::HashReject(range),
            _ => Message::Hashes { range, hashes },
        };
        if self
            .call(|torrent, cx| torrent.on_message(peer, &message, cx))
            .is_err()
        {
            self.gone(peer);
        }
    }

    /// A request for the leaves of a piece, and an answer to it that may be a lie.
    fn hashes(&self, piece: u32, b: u8) -> (HashRange, Vec<Node>) {
        let tree = self
            .trees
            .as_ref()
            .and_then(|trees| trees.piece(PieceIndex::new(piece)));
        let range = tree.and_then(|tree| tree.ranges().next());
        let range = range.unwrap_or(HashRange {
            root: [b; 32],
            base_layer: u32::from(b & 1),
            index: piece,
            length: u32::from(b),
            proof_layers: 1,
        });
        let blocks = self.geometry.block_count(PieceIndex::new(piece));
        let mut hashes = leaves(blocks);
        hashes.resize(4, [b >> 3 & 1; 32]);
        (range, hashes)
    }

    fn shape(&self, piece: u32, begin: u32) -> RawBlock {
        let piece_bytes = self.geometry.piece_bytes(PieceIndex::new(piece));
        RawBlock {
            piece,
            begin,
            length: piece_bytes.saturating_sub(begin).clamp(1, BLOCK_BYTES),
        }
    }

    /// A payload begins, or one under way ends.
    fn block(&mut self, peer: PeerKey, a: u8, b: u8) {
        let open = self.incoming.iter().position(|(key, ..)| *key == peer);
        if let Some(at) = open {
            let (_, header, placement) = self.incoming.swap_remove(at);
            self.call(|torrent, cx| torrent.on_block_bytes(peer, header.length, cx));
            match placement {
                Placement::Store(block) => {
                    self.call(|torrent, cx| torrent.on_block_stored(peer, block, cx));
                }
                Placement::Scratch => {
                    self.call(|torrent, cx| torrent.on_block_discarded(peer, header, cx));
                }
            }
            return;
        }
        let header = self.shape(u32::from(b) % PIECES, u32::from(a % 4) * BLOCK_BYTES);
        match self.call(|torrent, cx| torrent.on_piece_header(peer, header, cx)) {
            Ok(placement) => self.incoming.push((peer, header, placement)),
            Err(_) => self.gone(peer),
        }
    }

    /// What the runtime owes is done, well or badly.
    fn answer(&mut self, a: u8, b: u8) {
        if self.owed.is_empty() {
            return;
        }
        let effect = self.owed.swap_remove(usize::from(a) % self.owed.len());
        let is_good = b & 3 != 0;
        match effect {
            Effect::Dial { addr } | Effect::Punch { addr } if is_good => {
                let connected = Connected {
                    addr,
                    is_inbound: false,
                    peer_id: PeerId::new([b | 2; 20]),
                    reserved: [0, 0, 0, 0, 0, 0x10, 0, 4],
                    is_v2: b & 8 == 0,
                };
                self.connected(connected);
                self.credits.dials += 1;
            }
            Effect::Dial { addr } => {
                self.call(|torrent, cx| torrent.on_dial_failed(addr, cx));
                self.credits.dials += 1;
            }
            Effect::Punch { addr } => {
                self.call(|torrent, cx| torrent.on_punch_failed(addr, cx));
                self.credits.dials += 1;
            }
            Effect::Hash { piece } => {
                self.call(|torrent, cx| torrent.on_piece_hashed(piece, is_good, cx));
            }
            Effect::Write { piece } if is_good => {
                self.call(|torrent, cx| torrent.on_piece_written(piece, cx));
            }
            Effect::FlushSegment { piece, segment } if is_good => {
                self.call(|torrent, cx| torrent.on_segment_flushed(piece, segment, cx));
            }
            Effect::Write { piece } | Effect::FlushSegment { piece, .. } => {
                self.call(|torrent, cx| torrent.on_piece_write_failed(piece, cx));
            }
            Effect::DigestBlocks { piece } => {
                let digests = is_good.then(|| vec![u64::from(b & 4); 4]);
                self.call(|torrent, cx| torrent.on_block_digests(piece, digests, cx));
            }
            Effect::HashLeaves { piece } => {
                let mut ours = leaves(self.geometry.block_count(piece));
                for (block, leaf) in ours.iter_mut().enumerate() {
                    leaf[0] ^= b >> (4 + block) & 1;
                }
                let ours = is_good.then_some(ours);
                self.call(|torrent, cx| torrent.on_leaves_hashed(piece, ours, cx));
            }
            Effect::ReadLeaves { piece, bytes } => {
                let ours = is_good.then(|| leaves(bytes.div_ceil(BLOCK_BYTES)));
                self.call(|torrent, cx| torrent.on_leaves_read(piece, ours.as_deref(), cx));
            }
            _ => {}
        }
    }

    fn end(&mut self) {
        self.call(Torrent::stop);
        while let Some(peer) = self.peers.last().copied() {
            self.gone(peer);
        }
        while !self.owed.is_empty() {
            self.answer(0, 0xff);
            while let Some(peer) = self.peers.last().copied() {
                self.gone(peer);
            }
        }
        assert_eq!(self.credits.assembly_bytes, self.budget_bytes, "memory");
        assert_eq!(self.credits.connections, CONNECTIONS, "connections");
    }
}

/// Requests to the control server, and the JSON in them.
pub fn control_request(data: &[u8]) {
    if let Ok(Some((request, used))) = Request::parse(data) {
        assert!(used <= data.len(), "more than there is");
        assert!(!request.path.contains(['?', '#', ' ', '\r', '\n']));
        let is_allowed = is_host_allowed(request.host.as_deref(), &[]);
        assert!(!is_allowed || request.host.is_some());
        black_box(is_origin_allowed(&request));
        let _ = json::read(data.get(used..).unwrap_or_default());
    }
    if let Ok(value) = json::read(data) {
        let mut written = json::Json::new(json::Dialect::Old);
        written.value(&value);
        assert!(json::read(&written.into_bytes()).is_ok());
    }
}
