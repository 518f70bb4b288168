//! Fifty DHT nodes in virtual time over a seeded network that loses, delays and reorders, with nodes that come and go and
//! a third of liars: every lookup ends, and what was announced is found. No sleeps, sockets or threads; a failure names
//! the seed that repeats it. `GYRE_SIM_SEEDS=n` takes n seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use gyre::base::{InfoHash, NodeId, Now, Rng};
use gyre::swarm::dht::lookup::LOOKUP_TIME_MAX;
use gyre::swarm::dht::{Announce, Dht, DhtConfig, DhtEffect, identity};
use gyre::wire::krpc::{Body, Contact, Method, Packet, Reply};
use gyre::wire::tracker::Family;

const NODES: usize = 50;
const LIARS: usize = 15;
const TORRENTS: usize = 8;
const LOSS_PERCENT: u64 = 5;
const SEEDS: u64 = 20;

/// Who lives at an address.
enum Resident {
    Honest(Box<Dht>),
    Liar(NodeId),
    Gone,
}

struct World {
    seed: u64,
    rng: Rng,
    now: Now,
    residents: BTreeMap<SocketAddr, Resident>,
    addrs: Vec<SocketAddr>,
    liars: Vec<Contact>,
    /// By time and number: to, from, bytes.
    wire: BTreeMap<(Now, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sent: u64,
    /// Searches begun and not ended, by node and torrent.
    open: BTreeMap<(SocketAddr, InfoHash), Now>,
    found: BTreeMap<(SocketAddr, InfoHash), BTreeSet<SocketAddr>>,
}

fn addr(n: usize) -> SocketAddr {
    let n = u32::try_from(n).unwrap();
    SocketAddr::new(Ipv4Addr::from(0x0800_0001 + (n << 8)).into(), 6881)
}

fn torrent(n: usize) -> InfoHash {
    let mut rng = Rng::new(0x7072 + n as u64);
    InfoHash::new(*identity::make(None, &mut rng).as_bytes())
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = World {
            seed,
            rng: Rng::new(seed),
            now: Now::from_secs(1),
            residents: BTreeMap::new(),
            addrs: (0..NODES).map(addr).collect(),
            liars: Vec::new(),
            wire: BTreeMap::new(),
            sent: 0,
            open: BTreeMap::new(),
            found: BTreeMap::new(),
        };
        for n in 0..NODES {
            // The first is the way in for all others.
            let is_liar = n != 0 && n % NODES < LIARS + 1;
            match is_liar {
                true => world.add_liar(addr(n)),
                false => world.join(addr(n)),
            }
        }
        world
    }

    fn add_liar(&mut self, at: SocketAddr) {
        let id = identity::make(Some(at.ip()), &mut self.rng);
        self.liars.push(Contact { id, addr: at });
        self.residents.insert(at, Resident::Liar(id));
    }

    fn join(&mut self, at: SocketAddr) {
        let config = DhtConfig {
            families: vec![Family::V4],
            secret: [u8::try_from(self.rng.below(256)).unwrap(); 32],
            seed: self.rng.next_u64(),
            is_read_only: false,
        };
        let dht = Dht::new(&config, None, self.now);
        self.residents.insert(at, Resident::Honest(Box::new(dht)));
        self.call(at, |dht, now, fx| {
            dht.start(now, fx);
            if at != addr(0) {
                dht.add_doors(&[addr(0)], now, fx);
            }
        });
    }

    fn call(&mut self, at: SocketAddr, call: impl FnOnce(&mut Dht, Now, &mut Vec<DhtEffect>)) {
        let Some(Resident::Honest(dht)) = self.residents.get_mut(&at) else {
            return;
        };
        let mut fx = Vec::new();
        call(dht, self.now, &mut fx);
        dht.check();
        for effect in fx {
            match effect {
                DhtEffect::Send { to, bytes } => self.send(to, at, bytes),
                DhtEffect::Peers { info_hash, addrs } => {
                    self.found.entry((at, info_hash)).or_default().extend(addrs);
                }
                DhtEffect::Searched { info_hash, .. } => {
                    self.open.remove(&(at, info_hash));
                }
            }
        }
    }

    fn send(&mut self, to: SocketAddr, from: SocketAddr, bytes: Vec<u8>) {
        self.sent += 1;
        if !self.rng.chance(LOSS_PERCENT) {
            let delay = Duration::from_millis(5 + self.rng.below(150));
            self.wire
                .insert((self.now + delay, self.sent), (to, from, bytes));
        }
    }

    fn search(&mut self, at: SocketAddr, info_hash: InfoHash, announce: Option<Announce>) {
        self.open.insert((at, info_hash), self.now);
        self.call(at, |dht, now, fx| {
            assert!(dht.search(info_hash, announce, now, fx));
        });
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let deadlines = self
                .residents
                .iter()
                .filter_map(|(at, resident)| match resident {
                    Resident::Honest(dht) => Some((dht.next_deadline()?, *at)),
                    _ => None,
                });
            let timer = deadlines.min();
            let arrival = self.wire.keys().next().copied();
            let next = [timer.map(|(at, _)| at), arrival.map(|(at, _)| at)];
            let Some(at) = next.into_iter().flatten().min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            if let Some(key) = arrival.filter(|(arrives, _)| *arrives <= at) {
                let (to, from, bytes) = self.wire.remove(&key).unwrap();
                self.arrive(to, from, &bytes);
            } else if let Some((_, at)) = timer {
                self.call(at, |dht, now, fx| dht.on_deadline(now, fx));
            }
            self.look_at_open();
        }
        self.now = end;
    }

    fn look_at_open(&self) {
        // A lookup may wait for its turn, and for somebody to ask.
        let limit = LOOKUP_TIME_MAX * 2;
        for ((at, info_hash), since) in &self.open {
            let lasts = self.now.since(*since);
            assert!(
                lasts <= limit,
                "{at} searches for {info_hash} since {lasts:?}"
            );
        }
    }

    fn arrive(&mut self, to: SocketAddr, from: SocketAddr, bytes: &[u8]) {
        match self.residents.get(&to) {
            Some(Resident::Honest(_)) => {
                self.call(to, |dht, now, fx| dht.on_datagram(from, bytes, now, fx));
            }
            Some(Resident::Liar(id)) => {
                let id = *id;
                if let Some(answer) = self.lie(id, from, bytes) {
                    self.send(from, to, answer);
                }
            }
            _ => {}
        }
    }

    /// Nodes that do not exist right beside the target, its accomplices under other ids, peers that are none; or silence.
    fn lie(&mut self, id: NodeId, from: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        let packet = Packet::parse(bytes).ok()?;
        let Body::Query(query) = packet.body else {
            return None;
        };
        let target = match query.method {
            Method::GetPeers { info_hash, .. } => NodeId::from(info_hash),
            Method::FindNode { target } => target,
            _ => id,
        };
        let mut nodes = Vec::new();
        for n in 0..16 {
            let mut near = *target.as_bytes();
            near[19] ^= n;
            near[18] = near[18].wrapping_add(u8::try_from(self.rng.below(4)).unwrap());
            let addr = match self.rng.below(3) {
                0 => self.liars[self.rng.below(LIARS as u64) as usize].addr,
                1 => addr(1_000 + self.rng.below(10_000) as usize),
                _ => SocketAddr::from(([192, 168, 1, n], 53)),
            };
            let id = NodeId::new(near);
            nodes.push(Contact { id, addr });
        }
        let reply = Reply {
            token: b"lies".to_vec(),
            nodes_v4: Some(nodes),
            values: vec![SocketAddr::from(([203, 0, 113, 1], 1))],
            ..Reply::default()
        };
        match self.rng.below(4) {
            0 => None,
            _ => Some(reply.encode(packet.transaction, &id, from)),
        }
    }

    fn honest(&mut self) -> SocketAddr {
        let honest: Vec<SocketAddr> = self
            .residents
            .iter()
            .filter(|(_, resident)| matches!(resident, Resident::Honest(_)))
            .map(|(at, _)| *at)
            .collect();
        *self.rng.pick(&honest).unwrap()
    }

    /// One node leaves and another comes.
    fn churn(&mut self) {
        let leaving = self.honest();
        // Announcers and the way in stay.
        if leaving == addr(0) || self.found.keys().any(|(at, _)| *at == leaving) {
            return;
        }
        self.residents.insert(leaving, Resident::Gone);
        self.open.retain(|(at, _), _| *at != leaving);
        let coming = addr(self.addrs.len());
        self.addrs.push(coming);
        self.join(coming);
    }
}

/// Announces, searches with nodes that come and go, and looks at what was found.
fn live(seed: u64) {
    let mut world = World::new(seed);
    world.run(Duration::from_secs(60));
    let mut peers = Vec::new();
    for n in 0..TORRENTS {
        let at = world.honest();
        let port = 10_000 + u16::try_from(n).unwrap();
        let announce = Announce {
            port: Some(port),
            is_seed: true,
        };
        world.found.entry((at, torrent(n))).or_default();
        world.search(at, torrent(n), Some(announce));
        peers.push(SocketAddr::new(at.ip(), port));
    }
    world.run(Duration::from_secs(60));
    for _ in 0..6 {
        world.churn();
        world.run(Duration::from_secs(10));
    }
    let mut searchers = Vec::new();
    for (n, peer) in peers.iter().enumerate() {
        let mut at = world.honest();
        while at.ip() == peer.ip() {
            at = world.honest();
        }
        world.search(at, torrent(n), None);
        searchers.push(at);
    }
    world.run(Duration::from_secs(90));
    for (n, (peer, at)) in peers.iter().zip(&searchers).enumerate() {
        let found = world
            .found
            .get(&(*at, torrent(n)))
            .cloned()
            .unwrap_or_default();
        assert!(
            found.contains(peer),
            "seed {}: {at} did not find {peer}: {found:?}",
            world.seed
        );
    }
    assert!(
        world.open.is_empty(),
        "searches that did not end: {:?}",
        world.open
    );
}

#[test]
fn every_lookup_ends_and_what_was_announced_is_found() {
    let seeds = std::env::var("GYRE_SIM_SEEDS").ok();
    let seeds = seeds.map_or(SEEDS, |text| {
        text.parse().expect("GYRE_SIM_SEEDS is a number")
    });
    for seed in 0..seeds {
        let lived = catch_unwind(AssertUnwindSafe(|| live(seed)));
        assert!(lived.is_ok(), "seed {seed} fails");
    }
}
