//! A DHT node (BEP 5, 32, 33, 42, 43, 51), as plain calls on plain values. Layer 2, pure: no sockets, no clock.
//!
//! The runtime calls [`Dht::on_datagram`], [`Dht::on_deadline`] and [`Dht::search`]; what is to be done lies in `fx` when
//! the call returns. There is one node an address family; each has its own id, table and store. Nothing is sent before
//! [`Dht::start`]. Every table has an end, and what strangers can cause is counted in [`limits`].

mod answers;
pub mod identity;
pub mod limits;
pub mod lookup;
pub mod node;
pub mod place;
mod saved;
mod searches;
pub mod store;
pub mod table;
pub mod tokens;

use std::net::{IpAddr, SocketAddr};

use self::node::{Heard, Node};
use crate::base::{InfoHash, Now, Rng};
use crate::wire::krpc::{DATAGRAM_BYTES_MAX, Packet};
use crate::wire::tracker::Family;

pub use self::saved::{SAVED_BYTES_MAX, Saved, SavedError};

/// Settings of a node, and what makes it differ from every other.
#[derive(Clone, Debug)]
pub struct DhtConfig {
    /// The families that there is a socket of.
    pub families: Vec<Family>,
    /// 32 bytes that nobody can guess: tokens and transactions hang on them.
    pub secret: [u8; 32],
    /// Seed of everything that need not be secret.
    pub seed: u64,
    /// Never answers and is in nobody's table (BEP 43), whatever reaches it.
    pub is_read_only: bool,
}

/// What to announce for a torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announce {
    /// The port peers connect to; `None` is the one that our datagrams come from (`implied_port`).
    pub port: Option<u16>,
    pub is_seed: bool,
}

/// What the runtime must do. None of them has an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DhtEffect {
    /// Send a datagram, or lose it.
    Send { to: SocketAddr, bytes: Vec<u8> },
    /// Peers of a torrent that is searched for, each told once a lookup.
    Peers {
        info_hash: InfoHash,
        addrs: Vec<SocketAddr>,
    },
    /// A lookup for peers ended.
    Searched {
        info_hash: InfoHash,
        family: Family,
        /// Nodes that answered.
        answered: usize,
        /// Different peers they told.
        peers: usize,
        /// Nodes that we announce ourselves at.
        announced: usize,
    },
}

/// Numbers for whoever shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DhtStats {
    /// Nodes in the tables.
    pub nodes_v4: usize,
    pub nodes_v6: usize,
    /// Torrents searched for.
    pub searches: usize,
    /// Lookups under way.
    pub lookups: usize,
    /// Lookups for peers that have ended.
    pub searched: u64,
    /// Peers told by lookups.
    pub peers_found: u64,
    pub queries_sent: u64,
    pub answers_heard: u64,
    pub queries_heard: u64,
    pub answers_sent: u64,
    /// Queries that were dropped because too much was asked.
    pub queries_dropped: u64,
    /// Datagrams that were none of the DHT's, or forged.
    pub bad_datagrams: u64,
    /// Torrents and peers that others announced here.
    pub stored_torrents: usize,
    pub stored_peers: usize,
    pub external_v4: Option<IpAddr>,
    pub external_v6: Option<IpAddr>,
    /// No query reaches us: we ask and do not answer (BEP 43).
    pub is_read_only: bool,
}

/// The nodes of both families.
#[derive(Clone, Debug)]
pub struct Dht {
    nodes: Vec<Node>,
    is_started: bool,
    bad_datagrams: u64,
}

impl Dht {
    /// A node that knows nobody, or what an earlier run saved.
    pub fn new(config: &DhtConfig, saved: Option<Saved>, now: Now) -> Self {
        let mut rng = Rng::new(config.seed);
        let saved = saved.unwrap_or_default();
        let nodes = config
            .families
            .iter()
            .map(|family| Node::new(config, *family, rng.next_u64(), &saved, now))
            .collect();
        Dht {
            nodes,
            is_started: false,
            bad_datagrams: 0,
        }
    }

    /// Begins to take part: from now on it asks and answers.
    pub fn start(&mut self, now: Now, fx: &mut Vec<DhtEffect>) {
        if !std::mem::replace(&mut self.is_started, true) {
            self.nodes.iter_mut().for_each(|node| node.start(now, fx));
        }
    }

    /// True after [`Dht::start`].
    pub const fn is_started(&self) -> bool {
        self.is_started
    }

    /// Addresses to enter the DHT through: bootstrap nodes, and nodes that a .torrent names.
    pub fn add_doors(&mut self, addrs: &[SocketAddr], now: Now, fx: &mut Vec<DhtEffect>) {
        for addr in addrs {
            if let Some(node) = self.node_of(place::normal(*addr)) {
                node.add_door(place::normal(*addr), now, fx);
            }
        }
    }

    /// A peer says that it has a node there (BEP 5, `port`): it is asked whether that is so.
    pub fn add_node(&mut self, addr: SocketAddr, now: Now, fx: &mut Vec<DhtEffect>) {
        if let Some(node) = self.node_of(place::normal(addr)) {
            node.try_node(place::normal(addr), now, fx);
        }
    }

    /// Looks for peers of a torrent from now on, and announces us if that is wanted. Calling it again changes what is
    /// announced. False when there are too many searches.
    pub fn search(
        &mut self,
        info_hash: InfoHash,
        announce: Option<Announce>,
        now: Now,
        fx: &mut Vec<DhtEffect>,
    ) -> bool {
        let mut is_taken = true;
        for node in &mut self.nodes {
            is_taken &= node.search(info_hash, announce, now, fx);
        }
        is_taken
    }

    /// Peers of this torrent have run out: it is looked for again soon, though not more often than once a minute.
    pub fn want_peers(&mut self, info_hash: &InfoHash, now: Now) {
        self.nodes
            .iter_mut()
            .for_each(|node| node.want_peers(info_hash, now));
    }

    /// Looks for it no longer.
    pub fn forget(&mut self, info_hash: &InfoHash) {
        self.nodes
            .iter_mut()
            .for_each(|node| node.forget(info_hash));
    }

    /// A datagram has come.
    pub fn on_datagram(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        now: Now,
        fx: &mut Vec<DhtEffect>,
    ) {
        if !self.is_started || bytes.len() > DATAGRAM_BYTES_MAX {
            return;
        }
        let from = place::normal(from);
        let Ok(packet) = Packet::parse(bytes) else {
            self.bad_datagrams += 1;
            return;
        };
        let is_v4 = from.is_ipv4();
        let Some(at) = self.nodes.iter().position(|node| node.is_v4() == is_v4) else {
            return;
        };
        // The other family's nodes are told to whoever wants them (BEP 32).
        let (node, other) = match self.nodes.as_mut_slice() {
            [node] => (node, None),
            [first, second] if at == 0 => (first, Some(second)),
            [first, second] => (second, Some(first)),
            _ => return,
        };
        let mut heard = Heard::default();
        node.on_packet(
            from,
            &packet,
            bytes.len(),
            other.as_deref(),
            now,
            &mut heard,
            fx,
        );
        self.bad_datagrams += u64::from(heard.is_bad);
        if let Some(other) = other {
            for contact in heard.others {
                other.add_hint(contact, now, fx);
            }
        }
    }

    /// The moment that [`Dht::next_deadline`] named has come.
    pub fn on_deadline(&mut self, now: Now, fx: &mut Vec<DhtEffect>) {
        if self.is_started {
            let wants_others = self.nodes.iter().any(Node::is_lonely) && self.nodes.len() > 1;
            for node in &mut self.nodes {
                node.on_deadline(wants_others, now, fx);
            }
        }
    }

    /// When [`Dht::on_deadline`] has something to do.
    pub fn next_deadline(&self) -> Option<Now> {
        let deadlines = self.nodes.iter().filter_map(Node::next_deadline);
        deadlines.min().filter(|_| self.is_started)
    }

    /// What a later run should know.
    pub fn save(&self) -> Saved {
        let mut saved = Saved::default();
        self.nodes.iter().for_each(|node| node.save(&mut saved));
        saved
    }

    /// A snapshot of the numbers.
    pub fn stats(&self) -> DhtStats {
        let mut stats = DhtStats {
            bad_datagrams: self.bad_datagrams,
            ..DhtStats::default()
        };
        self.nodes.iter().for_each(|node| node.count(&mut stats));
        stats
    }

    /// Verifies every limit.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        self.nodes.iter().for_each(Node::check);
    }

    fn node_of(&mut self, addr: SocketAddr) -> Option<&mut Node> {
        let is_v4 = addr.is_ipv4();
        self.nodes.iter_mut().find(|node| node.is_v4() == is_v4)
    }
}

#[cfg(test)]
mod tests;
