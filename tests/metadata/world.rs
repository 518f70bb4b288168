//! One search, its peers, and a queue of what happens when.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use gyre::base::{InfoHash, Now, PeerId, Rng};
use gyre::swarm::metadata::{
    AttemptKey, MetadataConfig, MetadataCx, MetadataEffect, MetadataSwarm,
};
use gyre::swarm::torrent::Connected;
use gyre::swarm::{Credits, PeerKey, Source};
use gyre::wire::decoder::{Decoder, Event as WireEvent, Limits};
use gyre::wire::extended::{EXTENSION_HANDSHAKE_ID, Extension, OurExtensionHandshake};
use gyre::wire::handshake::Reserved;
use gyre::wire::message::{Message, encode};
use gyre::wire::ut_metadata::{
    METADATA_PIECE_BYTES, MetadataMessage, metadata_piece_bytes, metadata_piece_count,
};
use gyre::wire::ut_pex::{PexFlags, PexMessage, PexPeer};
use sha1::{Digest, Sha1};

/// What a peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Honest,
    /// Sends other bytes of the right size.
    Liar,
    /// Claims another size, and sends bytes of it.
    SizeLiar(u32),
    /// Rejects every request.
    Rejecter,
    /// Takes requests and never answers.
    Staller,
    /// Has no metadata and knows everybody.
    Teller,
    /// Cannot be reached.
    Dead,
}

/// Connections and dials that the search is lent.
const CONNECTIONS: u32 = 50;
const DIALS: u32 = 10;

enum What {
    Connected(usize),
    DialFailed(usize),
    /// Bytes for the search.
    Arrives(PeerKey, Vec<u8>),
    Gone(PeerKey),
    Verified(AttemptKey, bool),
    Dials,
}

struct Peer {
    kind: Kind,
    addr: SocketAddr,
    key: Option<PeerKey>,
    decoder: Decoder,
    /// Requests it got.
    asked: u32,
}

pub struct World {
    pub search: MetadataSwarm,
    pub metadata: Vec<u8>,
    pub now: Now,
    pub found: Option<Vec<u8>>,
    pub banned: Vec<std::net::IpAddr>,
    pub credits: Credits,
    rng: Rng,
    peers: Vec<Peer>,
    queue: BTreeMap<(Now, u64), What>,
    next: u64,
    fx: Vec<MetadataEffect>,
}

pub fn addr(index: usize) -> SocketAddr {
    SocketAddr::from(([1, 2, (index >> 8) as u8, index as u8], 6881))
}

impl World {
    /// A search for metadata of so many bytes that knows the peers in `known`; the others only peers may name.
    pub fn new(bytes: usize, kinds: &[Kind], known: usize, seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let metadata: Vec<u8> = (0..bytes).map(|_| rng.below(256) as u8).collect();
        let info_hash = InfoHash::new(Sha1::digest(&metadata).into());
        let config = MetadataConfig {
            info_hash,
            our_id: PeerId::new([0xee; 20]),
            seed: rng.next_u64(),
            peers_max: 40,
            exchanges_peers: true,
            listen_port: 7000,
            client_version: "Gyre".to_owned(),
        };
        let now = Now::from_secs(1_000);
        let peers = kinds.iter().enumerate().map(|(index, kind)| Peer {
            kind: *kind,
            addr: addr(index),
            key: None,
            decoder: Decoder::new(Limits::before_metadata()),
            asked: 0,
        });
        let mut world = World {
            search: MetadataSwarm::new(config, now),
            metadata,
            now,
            found: None,
            banned: Vec::new(),
            credits: Credits {
                assembly_bytes: 0,
                connections: CONNECTIONS,
                dials: DIALS,
            },
            rng,
            peers: peers.collect(),
            queue: BTreeMap::new(),
            next: 0,
            fx: Vec::new(),
        };
        world.later(Duration::from_millis(100), What::Dials);
        let known: Vec<SocketAddr> = (0..known).map(addr).collect();
        world.call(|core, cx| core.on_candidates(Source::Tracker, &known, cx));
        world
    }

    /// Requests that peers of that kind got.
    pub fn asked(&self, kind: Kind) -> u32 {
        let of_kind = self.peers.iter().filter(|peer| peer.kind == kind);
        of_kind.map(|peer| peer.asked).sum()
    }

    pub fn is_banned(&self, kind: Kind) -> bool {
        let of_kind = self.peers.iter().filter(|peer| peer.kind == kind);
        let mut ips = of_kind.map(|peer| peer.addr.ip());
        ips.any(|ip| self.banned.contains(&ip))
    }

    /// Runs until the metadata is found; the seconds that took.
    pub fn run(&mut self, limit: Duration) -> u64 {
        let start = self.now;
        while self.found.is_none() {
            let event_at = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timer_at = self.search.next_deadline();
            let at = [event_at, timer_at].into_iter().flatten().min();
            self.now = at.expect("something happens").max(self.now);
            assert!(
                self.now.since(start) <= limit,
                "not found in time: {:?}",
                self.search.stats()
            );
            if timer_at.is_some_and(|at| at <= self.now) {
                self.call(MetadataSwarm::on_timer);
                let again = self.search.next_deadline();
                assert!(again.is_none_or(|at| at > self.now), "a timer that spins");
            }
            while let Some(entry) = self.queue.first_entry()
                && entry.key().0 <= self.now
            {
                let what = entry.remove();
                self.happen(what);
            }
        }
        let seconds = self.now.since(start).as_secs();
        self.finish();
        seconds
    }

    /// All connections end and every credit is back.
    fn finish(&mut self) {
        while let Some((_, what)) = self.queue.pop_first() {
            if !matches!(what, What::Dials) {
                self.happen(what);
            }
        }
        assert_eq!(self.credits.connections, CONNECTIONS, "connection credits");
        assert_eq!(self.search.stats().peers_connected, 0);
    }

    fn later(&mut self, after: Duration, what: What) {
        self.next += 1;
        self.queue.insert((self.now + after, self.next), what);
    }

    fn delay(&mut self) -> Duration {
        Duration::from_millis(20 + self.rng.below(80))
    }

    fn call<R>(&mut self, call: impl FnOnce(&mut MetadataSwarm, &mut MetadataCx<'_>) -> R) -> R {
        let result = call(
            &mut self.search,
            &mut MetadataCx {
                now: self.now,
                credits: &mut self.credits,
                fx: &mut self.fx,
            },
        );
        self.search.check();
        while !self.fx.is_empty() {
            for effect in std::mem::take(&mut self.fx) {
                self.execute(effect);
            }
        }
        result
    }

    fn execute(&mut self, effect: MetadataEffect) {
        match effect {
            MetadataEffect::WakeWriter(key) => {
                let mut out = Vec::new();
                self.call(|core, cx| core.take_messages(key, &mut out, cx));
                self.deliver(key, &out);
            }
            MetadataEffect::HasLayers(_) => unreachable!("the torrent has none"),
            MetadataEffect::Close(key) => {
                if let Some(peer) = self.peers.iter_mut().find(|peer| peer.key == Some(key)) {
                    peer.key = None;
                }
                self.later(Duration::from_millis(1), What::Gone(key));
            }
            MetadataEffect::Dial { addr: to } => {
                let index = self.peers.iter().position(|peer| peer.addr == to);
                let index = index.expect("somebody of this world");
                let what = match self.peers[index].kind {
                    Kind::Dead => What::DialFailed(index),
                    _ => What::Connected(index),
                };
                let delay = self.delay();
                self.later(delay, what);
            }
            MetadataEffect::Verify { attempt, bytes } => {
                let is_good = bytes[..] == self.metadata[..];
                if is_good {
                    self.found = Some(bytes.to_vec());
                }
                self.later(Duration::from_millis(5), What::Verified(attempt, is_good));
            }
            MetadataEffect::Ban { ip } => self.banned.push(ip),
            MetadataEffect::WantPeers => {}
        }
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Dials => {
                self.credits.dials = DIALS;
                self.later(Duration::from_millis(100), What::Dials);
            }
            What::DialFailed(index) => {
                let addr = self.peers[index].addr;
                self.call(|core, cx| core.on_dial_failed(addr, cx));
            }
            What::Connected(index) => self.connect(index),
            What::Arrives(key, bytes) => self.receive(key, &bytes),
            What::Gone(key) => self.call(|core, cx| core.on_disconnected(key, cx)),
            What::Verified(attempt, is_good) => {
                self.call(|core, cx| core.on_verified(attempt, is_good, cx));
            }
        }
    }

    fn connect(&mut self, index: usize) {
        let conn = Connected {
            addr: self.peers[index].addr,
            is_inbound: false,
            peer_id: PeerId::new([index as u8; 20]),
            reserved: *Reserved::OURS.as_bytes(),
            is_v2: false,
        };
        let Ok(key) = self.call(|core, cx| core.on_connected(conn, cx)) else {
            return;
        };
        let peer = &mut self.peers[index];
        peer.key = Some(key);
        peer.decoder = Decoder::new(Limits::before_metadata());
        let size = self.metadata.len() as u32;
        let size = match peer.kind {
            Kind::Teller => None,
            Kind::SizeLiar(size) => Some(size),
            _ => Some(size),
        };
        let handshake = OurExtensionHandshake {
            extensions: &[Extension::UtMetadata, Extension::UtPex],
            client: "peer",
            listen_port: None,
            reqq: 250,
            your_ip: None,
            metadata_size_bytes: size,
            upload_only: true,
        };
        let mut bytes = Vec::new();
        // A bitfield of a torrent whose size the search does not know.
        encode(&Message::Bitfield { bytes: &[0xff; 99] }, &mut bytes);
        let payload = handshake.encode();
        extended(EXTENSION_HANDSHAKE_ID, &payload, &mut bytes);
        if peer.kind == Kind::Teller {
            let all = self.peers.iter().take(50).map(|peer| PexPeer {
                addr: peer.addr,
                flags: PexFlags::REACHABLE,
            });
            let message = PexMessage {
                added: all.collect(),
                dropped: Vec::new(),
            };
            extended(Extension::UtPex.our_id(), &message.encode(), &mut bytes);
        }
        let delay = self.delay();
        self.later(delay, What::Arrives(key, bytes));
    }

    /// Bytes of the search reach the peer, which answers.
    fn deliver(&mut self, key: PeerKey, bytes: &[u8]) {
        let Some(index) = self.peers.iter().position(|peer| peer.key == Some(key)) else {
            return;
        };
        let mut answer = Vec::new();
        let mut input = bytes;
        let mut requests = Vec::new();
        while let Some(event) = self.peers[index].decoder.next(&mut input).unwrap() {
            if let WireEvent::Message(Message::Extended { id, payload }) = event
                && id == Extension::UtMetadata.our_id()
            {
                requests.push(
                    MetadataMessage::parse(payload).map(|message| match message {
                        MetadataMessage::Request { piece } => piece,
                        other => panic!("{other:?}"),
                    }),
                );
            }
        }
        for piece in requests {
            self.peers[index].asked += 1;
            self.answer(self.peers[index].kind, piece.unwrap(), &mut answer);
        }
        if !answer.is_empty() {
            let delay = self.delay();
            self.later(delay, What::Arrives(key, answer));
        }
    }

    fn answer(&self, kind: Kind, piece: u32, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        let total_bytes = match kind {
            Kind::SizeLiar(size) => size,
            _ => self.metadata.len() as u32,
        };
        let length = metadata_piece_bytes(total_bytes, piece).expect("a piece of it") as usize;
        let start = piece as usize * METADATA_PIECE_BYTES as usize;
        match kind {
            Kind::Staller | Kind::Teller | Kind::Dead => return,
            Kind::Rejecter => MetadataMessage::Reject { piece }.encode(&mut payload),
            Kind::Honest => MetadataMessage::Data {
                piece,
                total_bytes,
                bytes: &self.metadata[start..start + length],
            }
            .encode(&mut payload),
            Kind::Liar | Kind::SizeLiar(_) => MetadataMessage::Data {
                piece,
                total_bytes,
                bytes: &vec![0x55; length],
            }
            .encode(&mut payload),
        }
        extended(Extension::UtMetadata.our_id(), &payload, out);
    }

    /// Bytes of a peer reach the search, whole messages at a time.
    fn receive(&mut self, key: PeerKey, bytes: &[u8]) {
        let mut decoder = Decoder::new(Limits::before_metadata());
        let mut input = bytes;
        let result = self.call(|core, cx| {
            while let Some(event) = decoder.next(&mut input).unwrap() {
                if let WireEvent::Message(message) = event {
                    core.on_message(key, &message, cx)?;
                }
            }
            Ok::<(), gyre::swarm::PeerFault>(())
        });
        if result.is_err() {
            self.execute(MetadataEffect::Close(key));
        }
    }

    pub fn piece_count(&self) -> u32 {
        metadata_piece_count(self.metadata.len() as u32)
    }
}

fn extended(id: u8, payload: &[u8], out: &mut Vec<u8>) {
    encode(&Message::Extended { id, payload }, out);
}
