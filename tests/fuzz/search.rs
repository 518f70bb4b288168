//! The search for metadata under any order of events: messages of peers, verdicts, time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gyre::base::{InfoHash, Now, PeerId};
use gyre::swarm::metadata::{
    AttemptKey, MetadataConfig, MetadataCx, MetadataEffect, MetadataSwarm,
};
use gyre::swarm::torrent::Connected;
use gyre::swarm::{Credits, PeerKey, Source};
use gyre::wire::message::Message;
use gyre::wire::ut_metadata::{
    METADATA_PIECE_BYTES, MetadataMessage, metadata_piece_bytes, metadata_piece_count,
};

const CONNECTIONS: u32 = 9;
/// Sizes that peers claim.
const SIZES: [u32; 4] = [1, 20_000, 16_384, 30 << 20];

struct World {
    search: MetadataSwarm,
    now: Now,
    credits: Credits,
    fx: Vec<MetadataEffect>,
    dialed: Vec<SocketAddr>,
    peers: Vec<PeerKey>,
    owed: Vec<(AttemptKey, Arc<[u8]>)>,
    is_found: bool,
}

/// Any script: limits hold after each step, and every credit is back at the end.
pub fn search(data: &[u8]) {
    let now = Now::from_secs(1_000);
    let config = MetadataConfig {
        info_hash: InfoHash::new([1; 20]),
        our_id: PeerId::new([0xee; 20]),
        seed: 7,
        peers_max: 6,
        exchanges_peers: true,
        listen_port: 1,
        client_version: "x".to_owned(),
    };
    let mut world = World {
        search: MetadataSwarm::new(config, now),
        now,
        credits: Credits {
            assembly_bytes: 0,
            connections: CONNECTIONS,
            dials: 4,
        },
        fx: Vec::new(),
        dialed: Vec::new(),
        peers: Vec::new(),
        owed: Vec::new(),
        is_found: false,
    };
    for step in data.chunks_exact(3) {
        let &[op, a, b] = step else { return };
        world.step(op, a, b);
    }
    world.end();
}

impl World {
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
        for effect in std::mem::take(&mut self.fx) {
            match effect {
                MetadataEffect::Dial { addr } => self.dialed.push(addr),
                MetadataEffect::Verify { attempt, bytes } => self.owed.push((attempt, bytes)),
                _ => {}
            }
        }
        let stats = self.search.stats();
        assert!(stats.have_bytes <= stats.total_bytes);
        result
    }

    fn peer(&self, number: u8) -> Option<PeerKey> {
        let at = usize::from(number) % self.peers.len().max(1);
        self.peers.get(at).copied()
    }

    fn step(&mut self, op: u8, a: u8, b: u8) {
        match op % 9 {
            0 => {
                let source = [Source::Tracker, Source::User, Source::Pex];
                let source = source[usize::from(b) % source.len()];
                let addrs = [SocketAddr::from(([1, 2, 3, a], 80))];
                self.call(|core, cx| core.on_candidates(source, &addrs, cx));
            }
            1 => self.connect(a, b),
            2 => {
                if let Some(key) = self.peer(a) {
                    self.peers.retain(|one| *one != key);
                    self.call(|core, cx| core.on_disconnected(key, cx));
                }
            }
            3 => self.hello(a, b),
            4 | 5 => self.metadata(a, b),
            6 => {
                self.now = self.now + Duration::from_millis(u64::from(a) * u64::from(b));
                self.credits.dials = 4;
                self.call(MetadataSwarm::on_timer);
            }
            7 => {
                if let Some((attempt, bytes)) = self.owed.pop() {
                    assert!(SIZES.contains(&(bytes.len() as u32)));
                    let is_good = a == 0;
                    self.is_found |= is_good;
                    self.call(|core, cx| core.on_verified(attempt, is_good, cx));
                }
            }
            _ => {
                let Some(key) = self.peer(a) else { return };
                let mut out = Vec::new();
                let taken = self.call(|core, cx| core.take_messages(key, &mut out, cx));
                assert_eq!(taken, out.len());
            }
        }
    }

    fn connect(&mut self, a: u8, b: u8) {
        let dialed = (b & 1 == 0).then(|| self.dialed.pop()).flatten();
        if b & 2 == 0
            && let Some(addr) = dialed
        {
            self.call(|core, cx| core.on_dial_failed(addr, cx));
            return;
        }
        let conn = Connected {
            addr: dialed.unwrap_or(SocketAddr::from(([1, 2, 4, a % 12], 1_000))),
            is_inbound: dialed.is_none(),
            peer_id: PeerId::new([a; 20]),
            reserved: [0, 0, 0, 0, 0, if b & 4 == 0 { 0x10 } else { 0 }, 0, 4],
            is_v2: false,
        };
        if let Ok(key) = self.call(|core, cx| core.on_connected(conn, cx)) {
            self.peers.push(key);
        }
    }

    fn send(&mut self, key: PeerKey, id: u8, payload: &[u8]) {
        let message = Message::Extended { id, payload };
        let result = self.call(|core, cx| core.on_message(key, &message, cx));
        if result.is_err() {
            self.peers.retain(|one| *one != key);
            self.call(|core, cx| core.on_disconnected(key, cx));
        }
    }

    fn hello(&mut self, a: u8, b: u8) {
        let Some(key) = self.peer(a) else { return };
        let size = SIZES[usize::from(b) % SIZES.len()];
        let size = match b & 8 {
            0 => format!("13:metadata_sizei{size}e"),
            _ => String::new(),
        };
        let text = format!("d1:md11:ut_metadatai{}e6:ut_pexi1ee{size}1:pi{a}ee", b & 3);
        self.send(key, 0, text.as_bytes());
    }

    fn metadata(&mut self, a: u8, b: u8) {
        let Some(key) = self.peer(a) else { return };
        let total_bytes = SIZES[usize::from(b) % SIZES.len()];
        let piece = u32::from(b >> 4) % metadata_piece_count(total_bytes);
        let length = metadata_piece_bytes(total_bytes, piece).expect("a piece of it");
        let bytes = [a; METADATA_PIECE_BYTES as usize];
        let message = match b & 0x0c {
            0 => MetadataMessage::Reject { piece },
            4 if b & 0x30 == 0 => MetadataMessage::Request { piece },
            _ => MetadataMessage::Data {
                piece,
                total_bytes,
                bytes: &bytes[..length as usize],
            },
        };
        let mut payload = Vec::new();
        message.encode(&mut payload);
        self.send(key, 2, &payload);
    }

    fn end(&mut self) {
        self.call(MetadataSwarm::stop);
        for addr in std::mem::take(&mut self.dialed) {
            self.call(|core, cx| core.on_dial_failed(addr, cx));
        }
        for key in std::mem::take(&mut self.peers) {
            self.call(|core, cx| core.on_disconnected(key, cx));
        }
        assert_eq!(self.credits.connections, CONNECTIONS, "connection credits");
        assert_eq!(self.search.next_deadline(), None);
        assert_eq!(self.search.stats().peers_connected, 0);
    }
}
