//! The DHT: datagrams, the file of nodes, and a node under any order of events.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use gyre::base::{InfoHash, NodeId, Now, Rng};
use gyre::swarm::dht::{Announce, Dht, DhtConfig, DhtEffect, Saved, identity};
use gyre::wire::krpc::{
    ANSWER_BYTES_MAX, Body, Contact, Method, NODES_MAX, Packet, Query, Reply, TOKEN_BYTES_MAX,
    TRANSACTION_BYTES_MAX, VALUES_MAX, Want, encode_query,
};
use gyre::wire::tracker::Family;

/// One datagram: what is read of it has its bounds, and queries are written the same again.
pub fn krpc(data: &[u8]) {
    let Ok(packet) = Packet::parse(data) else {
        return;
    };
    assert!((1..=TRANSACTION_BYTES_MAX).contains(&packet.transaction.len()));
    match packet.body {
        Body::Query(query) => {
            let bytes = encode_query(packet.transaction, &query);
            let is_known = !matches!(query.method, Method::Unknown | Method::Malformed);
            if is_known {
                assert_eq!(Packet::parse(&bytes), Ok(packet));
            }
        }
        Body::Answer(answer) => {
            for family in [Family::V4, Family::V6] {
                assert!(answer.nodes(family).count() <= NODES_MAX);
                assert!(answer.nodes(family).all(|node| node.addr.port() != 0));
            }
            assert!(answer.values().count() <= VALUES_MAX);
            assert!(
                answer
                    .token
                    .is_none_or(|token| token.len() <= TOKEN_BYTES_MAX)
            );
        }
        Body::Error(_) => {}
    }
}

/// The file of nodes: what is understood is written the same again.
pub fn saved_nodes(data: &[u8]) {
    if let Ok(saved) = Saved::decode(data) {
        assert_eq!(Saved::decode(&saved.encode()), Ok(saved));
    }
}

/// A node under any order of queries, answers, searches and silence keeps its limits.
pub fn dht_node(data: &[u8]) {
    let mut world = World::new();
    let mut script = data.iter().copied();
    while let Some(op) = script.next() {
        let (a, b) = (script.next().unwrap_or(0), script.next().unwrap_or(0));
        world.step(op, a, b, data);
        world.dht.check();
    }
    world.end();
}

struct World {
    dht: Dht,
    now: Now,
    fx: Vec<DhtEffect>,
    /// Queries of ours that nobody has answered yet.
    asked: Vec<(SocketAddr, Vec<u8>)>,
    /// The last token that it gave out, and to whom.
    token: (SocketAddr, Vec<u8>),
}

fn addr(a: u8) -> SocketAddr {
    let port = 1 + u16::from(a & 3);
    match a >> 6 {
        0 => SocketAddr::from((Ipv4Addr::LOCALHOST, 1 + u16::from(a))),
        1 => SocketAddr::from((Ipv4Addr::new(9, 9, a, 1), port)),
        2 => SocketAddr::from((Ipv6Addr::new(0x2600, a.into(), 0, 0, 0, 0, 0, 1), port)),
        _ => SocketAddr::from((Ipv4Addr::new(10, 0, 0, a), port)),
    }
}

fn id(b: u8) -> NodeId {
    identity::make(None, &mut Rng::new(u64::from(b)))
}

fn hash(b: u8) -> InfoHash {
    InfoHash::new([b & 7; 20])
}

impl World {
    fn new() -> Self {
        let config = DhtConfig {
            families: vec![Family::V4, Family::V6],
            secret: [1; 32],
            seed: 1,
            is_read_only: false,
        };
        let now = Now::from_secs(1_000);
        let mut world = World {
            dht: Dht::new(&config, None, now),
            now,
            fx: Vec::new(),
            asked: Vec::new(),
            token: (addr(0), Vec::new()),
        };
        world.dht.start(now, &mut world.fx);
        world
    }

    fn step(&mut self, op: u8, a: u8, b: u8, raw: &[u8]) {
        let now = self.now;
        match op % 12 {
            0 => self.dht.add_doors(&[addr(a), addr(b)], now, &mut self.fx),
            1 => self.dht.add_node(addr(a), now, &mut self.fx),
            2 => {
                let announce = Announce {
                    port: (b & 8 != 0).then_some(u16::from(b) + 1),
                    is_seed: b & 16 != 0,
                };
                let announce = (a & 1 == 1).then_some(announce);
                self.dht.search(hash(b), announce, now, &mut self.fx);
            }
            3 => self.dht.forget(&hash(b)),
            4 => self.dht.want_peers(&hash(b), now),
            5 | 6 => self.query(op, a, b),
            7 | 8 => self.answer(a, b),
            9 => {
                let cut = raw.get(usize::from(a)..).unwrap_or_default();
                self.dht.on_datagram(addr(b), cut, now, &mut self.fx);
            }
            _ => {
                self.now = now + Duration::from_millis(u64::from(a) * u64::from(b) * 16);
                if self.dht.next_deadline().is_some_and(|at| at <= self.now) {
                    self.dht.on_deadline(self.now, &mut self.fx);
                }
            }
        }
        self.take();
    }

    /// A stranger asks.
    fn query(&mut self, op: u8, a: u8, b: u8) {
        let token = self.token.1.clone();
        let method = match b % 6 {
            0 => Method::Ping,
            1 => Method::FindNode { target: id(b) },
            2 | 3 => Method::GetPeers {
                info_hash: hash(b),
                no_seed: b & 64 != 0,
                scrape: b & 32 != 0,
            },
            4 => Method::SampleInfohashes { target: id(b) },
            _ => Method::AnnouncePeer {
                info_hash: hash(b),
                port: (b & 64 != 0).then_some(u16::from(b)),
                token: &token,
                is_seed: b & 32 != 0,
            },
        };
        let query = Query {
            id: id(a),
            method,
            want: (op & 16 != 0).then_some(Want::BOTH),
            is_read_only: op & 32 != 0,
        };
        let from = if op & 64 == 0 { addr(a) } else { self.token.0 };
        let bytes = encode_query(&[a, b], &query);
        self.dht.on_datagram(from, &bytes, self.now, &mut self.fx);
    }

    /// Somebody who was asked answers, well or badly.
    fn answer(&mut self, a: u8, b: u8) {
        if self.asked.is_empty() {
            return;
        }
        let at = usize::from(a) % self.asked.len();
        let (to, query) = self.asked.swap_remove(at);
        let Ok(packet) = Packet::parse(&query) else {
            return;
        };
        let contact = |n: u8| Contact {
            id: id(b.wrapping_add(n)),
            addr: addr(b.wrapping_mul(n)),
        };
        let reply = Reply {
            token: vec![b; usize::from(b & 15)],
            nodes_v4: (b & 16 != 0).then(|| (0..20).map(contact).collect()),
            nodes_v6: (b & 32 != 0).then(|| (0..20).map(contact).collect()),
            values: (0..b & 31).map(|n| addr(n.wrapping_mul(b))).collect(),
            ..Reply::default()
        };
        let from = if b & 64 == 0 { to } else { addr(b) };
        let seen_at = SocketAddr::from(([8, 8, 8, b & 3], 1));
        let bytes = reply.encode(packet.transaction, &id(to.port() as u8), seen_at);
        self.dht.on_datagram(from, &bytes, self.now, &mut self.fx);
    }

    fn take(&mut self) {
        for effect in std::mem::take(&mut self.fx) {
            match effect {
                DhtEffect::Send { to, bytes } => {
                    assert!(bytes.len() <= ANSWER_BYTES_MAX, "{} bytes", bytes.len());
                    assert_ne!(to.port(), 0);
                    match Packet::parse(&bytes).expect("our own datagram").body {
                        Body::Query(_) => self.asked.push((to, bytes)),
                        Body::Answer(answer) => {
                            let token = answer.token.unwrap_or_default();
                            self.token = (to, token.to_vec());
                        }
                        Body::Error(_) => {}
                    }
                }
                DhtEffect::Peers { addrs, .. } => assert!(!addrs.is_empty()),
                DhtEffect::Searched { .. } => {}
            }
        }
        let over = self.asked.len().saturating_sub(1_000);
        self.asked.drain(..over);
    }

    /// Without answers, every lookup ends.
    fn end(&mut self) {
        for n in 0..8 {
            self.dht.forget(&hash(n));
        }
        for _ in 0..100 {
            self.now = self.now + Duration::from_secs(1);
            self.dht.on_deadline(self.now, &mut self.fx);
            self.dht.check();
        }
        self.fx.clear();
        let stats = self.dht.stats();
        assert_eq!(stats.searches, 0);
        assert!(stats.lookups <= 2, "{} lookups under way", stats.lookups);
    }
}
