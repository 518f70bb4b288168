//! What the swarm core costs for each event in a large swarm: 500 peers, 20,000 pieces of 1 MiB. Nothing here may grow
//! with peers × pieces. Prints nanoseconds an event; run with `cargo bench --bench swarm`.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use gyre::base::{Bitfield, Geometry, Now, PeerId, PieceIndex, Rng};
use gyre::swarm::{Connected, Credits, Cx, Effect, PeerKey, Placement, Torrent, TorrentConfig};
use gyre::wire::decoder::{Decoder, Event, Limits};
use gyre::wire::message::{Message, RawBlock};

const PEERS: usize = 500;
const PIECES: u32 = 20_000;
const PIECE_BYTES: u64 = 1 << 20;

struct World {
    torrent: Torrent,
    now: Now,
    credits: Credits,
    fx: Vec<Effect>,
    peers: Vec<PeerKey>,
    /// Requests that each peer has to answer.
    owed: Vec<VecDeque<RawBlock>>,
    woken: VecDeque<PeerKey>,
    rng: Rng,
    spent: Duration,
    have_count: u32,
}

fn geometry() -> Geometry {
    Geometry::new(PIECE_BYTES * u64::from(PIECES), PIECE_BYTES).expect("a torrent")
}

impl World {
    fn new(change: impl FnOnce(&mut TorrentConfig)) -> Self {
        let mut config = TorrentConfig::new(geometry(), PeerId::new([0xff; 20]), 1);
        config.peers_max = PEERS as u32;
        change(&mut config);
        let credits = Credits {
            assembly_bytes: config.assembly_budget_bytes,
            connections: PEERS as u32,
            dials: 0,
        };
        let now = Now::from_secs(1);
        World {
            torrent: Torrent::new(config, now),
            now,
            credits,
            fx: Vec::new(),
            peers: Vec::new(),
            owed: Vec::new(),
            woken: VecDeque::new(),
            rng: Rng::new(1),
            spent: Duration::ZERO,
            have_count: 0,
        }
    }

    /// Connects all peers; `have` gives each its pieces.
    fn with_peers(mut self, mut have: impl FnMut(&mut Rng) -> Bitfield) -> Self {
        for number in 0..PEERS {
            let mut id = [0; 20];
            id[..8].copy_from_slice(&(number as u64).to_be_bytes());
            let ip = Ipv4Addr::from(0x0100_0000 + number as u32);
            let conn = Connected {
                addr: SocketAddr::new(ip.into(), 6881),
                is_inbound: true,
                peer_id: PeerId::new(id),
                reserved: [0, 0, 0, 0, 0, 0x10, 0, 0x04],
                is_v2: false,
            };
            let key = self.call(|torrent, cx| torrent.on_connected(conn, cx).expect("room"));
            self.peers.push(key);
            self.owed.push(VecDeque::new());
            let bits = have(&mut self.rng);
            let bytes = bits.as_bytes();
            self.tell(number, &Message::Bitfield { bytes });
        }
        self
    }

    /// Calls the core, then does what it wants.
    fn call<R>(&mut self, f: impl FnOnce(&mut Torrent, &mut Cx<'_>) -> R) -> R {
        let result = self.call_alone(f);
        self.execute();
        result
    }

    fn call_alone<R>(&mut self, f: impl FnOnce(&mut Torrent, &mut Cx<'_>) -> R) -> R {
        let mut cx = Cx {
            now: self.now,
            credits: &mut self.credits,
            fx: &mut self.fx,
        };
        let started = Instant::now();
        let result = f(&mut self.torrent, &mut cx);
        self.spent += started.elapsed();
        result
    }

    fn tell(&mut self, peer: usize, message: &Message<'_>) {
        let key = self.peers[peer];
        self.call(|torrent, cx| torrent.on_message(key, message, cx))
            .expect("no fault");
    }

    fn execute(&mut self) {
        let mut asked_for_credits = false;
        while !self.fx.is_empty() {
            for effect in std::mem::take(&mut self.fx) {
                self.execute_one(effect);
            }
            if self.fx.is_empty() && self.torrent.is_starved() && !asked_for_credits {
                asked_for_credits = true;
                self.call_alone(Torrent::on_credits);
            }
        }
    }

    fn execute_one(&mut self, effect: Effect) {
        match effect {
            Effect::WakeWriter(key) => self.woken.push_back(key),
            Effect::Hash { piece } => {
                self.call_alone(|torrent, cx| torrent.on_piece_hashed(piece, true, cx));
            }
            Effect::Write { piece } => {
                self.call_alone(|torrent, cx| torrent.on_piece_written(piece, cx));
            }
            Effect::FlushSegment { piece, segment } => {
                self.call_alone(|torrent, cx| torrent.on_segment_flushed(piece, segment, cx));
            }
            Effect::Have { .. } => self.have_count += 1,
            _ => {}
        }
    }

    /// Every woken writer takes what there is.
    fn write(&mut self) {
        while let Some(key) = self.woken.pop_front() {
            let number = self.peers.iter().position(|peer| *peer == key);
            let number = number.expect("known");
            let mut bytes = Vec::new();
            self.call(|torrent, cx| torrent.take_messages(key, &mut bytes, 65_536, cx));
            let mut decoder = Decoder::new(Limits::for_bitfield(PIECES / 8));
            let mut input = bytes.as_slice();
            while let Some(event) = decoder.next(&mut input).expect("well formed") {
                match event {
                    Event::Message(Message::Request(block)) => self.owed[number].push_back(block),
                    Event::Message(Message::Cancel(block)) => {
                        self.owed[number].retain(|owed| *owed != block);
                    }
                    _ => {}
                }
            }
        }
    }

    /// The peer answers one request; false when it owes nothing.
    fn answer(&mut self, peer: usize) -> bool {
        let Some(header) = self.owed[peer].pop_front() else {
            return false;
        };
        let key = self.peers[peer];
        self.call(|torrent, cx| {
            let placement = torrent.on_piece_header(key, header, cx).expect("no fault");
            torrent.on_block_bytes(key, header.length, cx);
            match placement {
                Placement::Store(block) => torrent.on_block_stored(key, block, cx),
                Placement::Scratch => torrent.on_block_discarded(key, header, cx),
            }
        });
        true
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        if self.torrent.next_deadline().is_some_and(|at| at <= self.now) {
            self.call(Torrent::on_timer);
        }
    }

    /// Blocks from peers by lot, until `count` have come or nothing more does.
    fn blocks(&mut self, count: u64) -> u64 {
        let mut done = 0;
        let mut dry = 0;
        while done < count && dry < 20 * PEERS {
            let peer = self.rng.below(PEERS as u64) as usize;
            let came = self.answer(peer);
            dry = if came { 0 } else { dry + 1 };
            done += u64::from(came);
            self.write();
            // A gigabyte a second.
            self.pass(Duration::from_micros(16));
        }
        done
    }
}

fn report(name: &str, spent: Duration, count: u64) {
    let each = spent.as_nanos() as u64 / count.max(1);
    println!("{name:<56} {each:>8} ns  ({count} times)");
}

fn seeds(_: &mut Rng) -> Bitfield {
    Bitfield::full(PIECES)
}

fn halves(rng: &mut Rng) -> Bitfield {
    let bytes: Vec<u8> = (0..PIECES / 8).map(|_| rng.next_u64() as u8).collect();
    Bitfield::from_wire(&bytes, PIECES).expect("whole bytes")
}

fn download(name: &str, budget_bytes: u64, unchoking: usize, have: fn(&mut Rng) -> Bitfield) {
    let mut w = World::new(|config| config.assembly_budget_bytes = budget_bytes).with_peers(have);
    for peer in 0..unchoking {
        w.tell(peer, &Message::Unchoke);
    }
    w.write();
    w.blocks(20_000);
    w.spent = Duration::ZERO;
    let done = w.blocks(100_000);
    report(&format!("block, {name}"), w.spent, done);
    w.spent = Duration::ZERO;
    for _ in 0..10 {
        w.pass(Duration::from_secs(1));
        w.write();
    }
    report(&format!("tick, {name}"), w.spent, 10);
}

fn main() {
    download("50 of 500 seeds unchoke", 64 << 20, 50, seeds);
    download("500 seeds unchoke", 1 << 30, 500, seeds);
    download("500 seeds unchoke, 32 MiB of memory", 32 << 20, 500, seeds);
    download("500 halves unchoke, 32 MiB of memory", 32 << 20, 500, halves);
    haves();
    chokes();
    ends();
    uploads();
}

fn haves() {
    let mut w = World::new(|_| {}).with_peers(|_| Bitfield::new(PIECES));
    w.write();
    w.spent = Duration::ZERO;
    let mut count = 0;
    for round in 0..200 {
        for peer in 0..PEERS {
            let piece = (round * 97 + peer as u32 * 31) % PIECES;
            w.tell(peer, &Message::Have { piece });
            count += 1;
            w.pass(Duration::from_micros(500));
        }
        w.write();
    }
    report("have", w.spent, count);
}

fn chokes() {
    let mut w = World::new(|_| {}).with_peers(halves);
    for peer in 0..PEERS {
        w.tell(peer, &Message::Unchoke);
    }
    w.write();
    w.blocks(20_000);
    w.spent = Duration::ZERO;
    let mut count = 0;
    for round in 0..4 {
        for peer in (round % 2..PEERS).step_by(2) {
            w.tell(peer, &Message::Choke);
            w.owed[peer].clear();
            w.pass(Duration::from_millis(10));
            w.write();
            count += 1;
        }
        for peer in (round % 2..PEERS).step_by(2) {
            w.tell(peer, &Message::Unchoke);
            w.pass(Duration::from_millis(10));
            w.write();
            count += 1;
        }
    }
    report("choke or unchoke", w.spent, count);
    let mut w = World::new(|_| {}).with_peers(halves);
    w.spent = Duration::ZERO;
    for peer in 0..PEERS {
        w.tell(peer, &Message::Interested);
        w.write();
    }
    report("interested", w.spent, PEERS as u64);
    w.spent = Duration::ZERO;
    for _ in 0..10 {
        w.pass(Duration::from_secs(10));
        w.write();
    }
    report("round of the choker and tick", w.spent, 10);
}

/// The last pieces: everything is requested, most peers idle.
fn ends() {
    let mut w = World::new(|config| {
        config.have = Bitfield::full(PIECES);
        for piece in 0..60 {
            config.have.clear(PieceIndex::new(piece * 300));
        }
    });
    w.credits.assembly_bytes = 1 << 30;
    let mut w = w.with_peers(seeds);
    for peer in 0..PEERS {
        w.tell(peer, &Message::Unchoke);
    }
    w.write();
    w.spent = Duration::ZERO;
    let done = w.blocks(1_000_000);
    assert!(w.torrent.is_complete());
    report("block of the last 60 pieces", w.spent, done);
}

/// We are a seed: requests come, runs go.
fn uploads() {
    let mut w = World::new(|config| config.have = Bitfield::full(PIECES)).with_peers(halves);
    for peer in 0..PEERS {
        w.tell(peer, &Message::Interested);
    }
    w.write();
    w.spent = Duration::ZERO;
    let (mut requests, mut blocks) = (0, 0);
    for round in 0..20_000u32 {
        let peer = round as usize % PEERS;
        let key = w.peers[peer];
        for block in 0..16 {
            let piece = (round * 7) % PIECES;
            let (begin, length) = (block * 16_384, 16_384);
            let request = RawBlock {
                piece,
                begin,
                length,
            };
            let result =
                w.call(|torrent, cx| torrent.on_message(key, &Message::Request(request), cx));
            requests += u64::from(result.is_ok());
        }
        while let Some(run) = w.call(|torrent, cx| torrent.next_upload(key, 262_144, cx)) {
            blocks += run.blocks.len() as u64;
            w.call(|torrent, cx| torrent.on_sent(key, &run, cx));
        }
        w.pass(Duration::from_micros(100));
        w.write();
    }
    report("request, with its part of a run", w.spent, requests);
    println!("{blocks} blocks were sent");
}
