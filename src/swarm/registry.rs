//! What a tracker knows: which peers are in which torrent, and whom to tell about whom (BEP 3, 7, 48). Layer 2.
//!
//! Bounded in every direction by [`RegistryConfig`]; holds no sockets and speaks no protocol, that is
//! `session::tracker`. IPv4 and IPv6 peers of a torrent are two swarms that never mix: a client announces over each
//! family it has, so counting them together would count it twice.

mod peers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::base::{InfoHash, Now, PeerId, Rng, is_local};
use crate::wire::tracker::{Event, Family, is_usable_peer};
use crate::wire::tracker_http::serve::{Announced, Listed, SwarmCounts};
use peers::{Peer, Peers};

/// Limits of a [`Registry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    /// What peers are told; a peer that was silent for so long may be succeeded at its address.
    pub interval: Duration,
    /// A peer that was silent for so long is forgotten.
    pub expiry: Duration,
    /// Torrents, each family counted apart.
    pub swarms_max: usize,
    /// Peers of all torrents together; each takes about 400 bytes, and a small swarm a kilobyte more.
    pub peers_max: usize,
    pub peers_per_swarm_max: usize,
    /// Peers of all torrents together that one address (an IPv6 /64) may announce.
    pub peers_per_network_max: usize,
    /// Told to those who do not say how many they want.
    pub numwant_default: u32,
    pub numwant_max: u32,
}

impl RegistryConfig {
    /// Sensible limits for a small tracker: filled to all of them it takes 60 MB.
    pub fn new(interval: Duration) -> Self {
        RegistryConfig {
            interval,
            expiry: (interval * 2).max(EXPIRY_MIN),
            swarms_max: 20_000,
            peers_max: 100_000,
            peers_per_swarm_max: 10_000,
            // A seeding box announces each of its thousands of torrents from one address.
            peers_per_network_max: 20_000,
            numwant_default: 50,
            numwant_max: 200,
        }
    }
}

/// libtorrent announces every five minutes at most, whatever interval it is told: it must not be forgotten meanwhile.
const EXPIRY_MIN: Duration = Duration::from_secs(360);

/// Why an announce is refused; the text is the `failure reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("port 0 is no port to be reached at")]
    BadPort,
    #[error("this tracker has no room for another torrent")]
    TooManySwarms,
    #[error("this tracker has no room for another peer")]
    TooManyPeers,
    #[error("this torrent has no room for another peer")]
    SwarmFull,
    #[error("too many peers are announced from this address")]
    NetworkFull,
}

/// What a peer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub counts: SwarmCounts,
    /// All of the asker's family, in random order, without the asker.
    pub peers: Vec<Listed>,
}

/// Numbers over everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub torrents: usize,
    /// A client in both families counts in both.
    pub seeders: usize,
    pub leechers: usize,
}

impl Totals {
    pub const fn peers(&self) -> usize {
        self.seeders + self.leechers
    }

    fn of(&mut self, peer: &Peer) -> &mut usize {
        match peer.is_seeder {
            true => &mut self.seeders,
            false => &mut self.leechers,
        }
    }
}

/// One torrent in one family.
type SwarmKey = (InfoHash, Family);

/// The tracker's memory. Every method first forgets who was silent for too long.
#[derive(Debug)]
pub struct Registry {
    config: RegistryConfig,
    /// A swarm whose last peer leaves is forgotten with its count of completions.
    swarms: BTreeMap<SwarmKey, Peers>,
    /// Every peer once, the longest silent first.
    silent_since: BTreeSet<(Now, SwarmKey, SocketAddr)>,
    /// Peers by network; no zeros.
    networks: BTreeMap<IpAddr, usize>,
    totals: Totals,
    rng: Rng,
}

impl Registry {
    /// Knows nobody yet.
    pub fn new(config: RegistryConfig, seed: u64) -> Self {
        Registry {
            config,
            swarms: BTreeMap::new(),
            silent_since: BTreeSet::new(),
            networks: BTreeMap::new(),
            totals: Totals::default(),
            rng: Rng::new(seed),
        }
    }

    /// Takes an announce from `source` (HTTP or UDP alike) and picks at most `peers_max` peers to tell about.
    ///
    /// A peer is removed by `stopped` with the peer id and key it came with, by coming back under another address
    /// with them, or by silence; never by anyone else's announce.
    ///
    /// # Errors
    /// It asks for more room than there is, or names port 0. Who is registered at that address already is never refused.
    pub fn announce(
        &mut self,
        source: IpAddr,
        announced: &Announced,
        peers_max: usize,
        now: Now,
    ) -> Result<Answer, Refused> {
        self.expire(now);
        let source = source.to_canonical();
        let ip = believed_ip(source, announced.ip);
        let addr = SocketAddr::new(ip, announced.port);
        if !is_usable_peer(addr) {
            return Err(Refused::BadPort);
        }
        let key = (announced.info_hash, family_of(ip));
        let peer = Peer {
            addr,
            owner: (announced.peer_id, announced.key),
            is_seeder: announced.is_seeder || announced.event == Some(Event::Completed),
            last_seen: now,
        };
        let wanted = if announced.event == Some(Event::Stopped) {
            self.leave(key, &peer);
            0
        } else {
            self.enter(key, peer, announced.event)?;
            let asked = announced.numwant.unwrap_or(self.config.numwant_default);
            usize::try_from(asked.min(self.config.numwant_max)).unwrap_or(0)
        };
        self.debug_check();
        Ok(self.answer(key, &peer, source, wanted.min(peers_max)))
    }

    /// The numbers of torrents as seen from `family`, in the order asked for; `None` is one nobody is in.
    pub fn scrape(
        &mut self,
        family: Family,
        info_hashes: &[InfoHash],
        now: Now,
    ) -> Vec<Option<SwarmCounts>> {
        self.expire(now);
        let counts = |hash: &InfoHash| self.swarms.get(&(*hash, family)).map(Peers::counts);
        info_hashes.iter().map(counts).collect()
    }

    /// The numbers over everything.
    pub fn totals(&mut self, now: Now) -> Totals {
        self.expire(now);
        self.totals
    }

    fn expire(&mut self, now: Now) {
        while let Some((since, key, addr)) = self.silent_since.first().copied() {
            if now.since(since) < self.config.expiry {
                return;
            }
            self.remove(key, addr);
        }
    }

    fn enter(&mut self, key: SwarmKey, peer: Peer, event: Option<Event>) -> Result<(), Refused> {
        let peers = self.swarms.get(&key);
        let completed = peers.map_or(0, Peers::completed);
        let occupant = peers.and_then(|peers| peers.at(peer.addr)).copied();
        let stranger = occupant.filter(|occupant| occupant.owner != peer.owner);
        if let Some(stranger) = stranger {
            // The client's predecessor, whose address is listed all the same, or somebody behind the same NAT, whose
            // place must not be taken while he is there.
            if peer.last_seen.since(stranger.last_seen) < self.config.interval {
                return Ok(());
            }
        }
        let moved = peers.and_then(|peers| peers.of_owner(&peer.owner)).copied();
        let earlier = moved.or(occupant.filter(|_| stranger.is_none()));
        self.check_room(key, peer.addr.ip(), earlier.or(stranger).as_ref())?;
        for gone in stranger.iter().chain(&earlier) {
            self.remove(key, gone.addr);
        }
        self.insert(key, peer);
        let has_completed =
            event == Some(Event::Completed) && earlier.is_some_and(|earlier| !earlier.is_seeder);
        if let Some(peers) = self.swarms.get_mut(&key) {
            peers.set_completed(completed.saturating_add(u32::from(has_completed)));
        }
        Ok(())
    }

    fn leave(&mut self, key: SwarmKey, peer: &Peer) {
        let earlier = self.swarms.get(&key).and_then(|peers| peers.at(peer.addr));
        if earlier.is_some_and(|earlier| earlier.owner == peer.owner) {
            self.remove(key, peer.addr);
        }
    }

    /// Whether a peer at `ip` fits in, `replaced` being taken out for it.
    fn check_room(
        &self,
        key: SwarmKey,
        ip: IpAddr,
        replaced: Option<&Peer>,
    ) -> Result<(), Refused> {
        let config = &self.config;
        let network = network_of(ip);
        let from_there = self.networks.get(&network).copied().unwrap_or(0);
        let is_counted = replaced.is_some_and(|peer| network_of(peer.addr.ip()) == network);
        if !is_counted && from_there >= config.peers_per_network_max {
            return Err(Refused::NetworkFull);
        }
        if replaced.is_some() {
            return Ok(());
        }
        if self.silent_since.len() >= config.peers_max {
            return Err(Refused::TooManyPeers);
        }
        match self.swarms.get(&key) {
            Some(peers) if peers.len() >= config.peers_per_swarm_max => Err(Refused::SwarmFull),
            None if self.swarms.len() >= config.swarms_max => Err(Refused::TooManySwarms),
            _ => Ok(()),
        }
    }

    fn insert(&mut self, key: SwarmKey, peer: Peer) {
        self.silent_since.insert((peer.last_seen, key, peer.addr));
        *self.networks.entry(network_of(peer.addr.ip())).or_default() += 1;
        *self.totals.of(&peer) += 1;
        if !self.swarms.contains_key(&key) && !self.swarms.contains_key(&other_family(key)) {
            self.totals.torrents += 1;
        }
        self.swarms.entry(key).or_default().insert(peer);
    }

    fn remove(&mut self, key: SwarmKey, addr: SocketAddr) {
        let Some(peers) = self.swarms.get_mut(&key) else {
            return;
        };
        let Some(peer) = peers.remove(addr) else {
            return;
        };
        if peers.len() == 0 {
            self.swarms.remove(&key);
            if !self.swarms.contains_key(&other_family(key)) {
                self.totals.torrents -= 1;
            }
        }
        *self.totals.of(&peer) -= 1;
        self.silent_since.remove(&(peer.last_seen, key, addr));
        let network = network_of(addr.ip());
        if let Some(count) = self.networks.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.networks.remove(&network);
            }
        }
    }

    fn answer(&mut self, key: SwarmKey, asker: &Peer, source: IpAddr, wanted: usize) -> Answer {
        let Some(peers) = self.swarms.get(&key) else {
            return Answer {
                counts: SwarmCounts::default(),
                peers: Vec::new(),
            };
        };
        let chosen = peers.choose(asker, wanted, &mut self.rng);
        // Nobody but this machine reaches its loopback: everywhere else the address means somebody else.
        let is_told = |peer: &Peer| source.is_loopback() || !peer.addr.ip().is_loopback();
        let listed = |peer: Peer| Listed {
            addr: peer.addr,
            peer_id: peer.owner.0,
        };
        Answer {
            counts: peers.counts(),
            peers: chosen.into_iter().filter(is_told).map(listed).collect(),
        }
    }

    /// Panics when the tables disagree.
    pub fn check(&self) {
        let mut queue = BTreeSet::new();
        let mut networks: BTreeMap<IpAddr, usize> = BTreeMap::new();
        let mut torrents = BTreeSet::new();
        let mut totals = Totals::default();
        for (key, peers) in &self.swarms {
            peers.check();
            assert!(peers.len() > 0, "an empty swarm was kept");
            torrents.insert(key.0);
            totals.torrents = torrents.len();
            for peer in peers.iter() {
                assert!(key.1.has(peer.addr.ip()), "a peer of the other family");
                queue.insert((peer.last_seen, *key, peer.addr));
                *totals.of(peer) += 1;
                *networks.entry(network_of(peer.addr.ip())).or_default() += 1;
            }
        }
        assert_eq!(queue, self.silent_since);
        assert_eq!(networks, self.networks);
        assert_eq!(totals, self.totals);
        assert!(self.swarms.len() <= self.config.swarms_max);
        assert!(queue.len() <= self.config.peers_max);
    }

    /// The whole check takes as long as the registry is large: debug builds make it while that is small.
    fn debug_check(&self) {
        const PEERS_CHECKED_MAX: usize = 64;
        if cfg!(debug_assertions) && self.silent_since.len() <= PEERS_CHECKED_MAX {
            self.check();
        }
    }
}

/// The peer id and the `key`: with both equal it is the same client.
type Owner = (PeerId, Option<u64>);

/// What one subscriber holds: an IPv4 address, or a /64 of IPv6.
pub fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

/// The `ip` of an announce is believed only from this machine or its own network, where it tells how the outside
/// reaches the client, and only in the family of the source. Nobody but this machine speaks for its loopback.
fn believed_ip(source: IpAddr, claimed: Option<IpAddr>) -> IpAddr {
    let Some(claimed) = claimed.map(|ip| ip.to_canonical()) else {
        return source;
    };
    let is_inside = is_local(source);
    let is_sensible = claimed.is_ipv4() == source.is_ipv4()
        && (source.is_loopback() || !claimed.is_loopback())
        && is_usable_peer(SocketAddr::new(claimed, 1));
    if is_inside && is_sensible {
        claimed
    } else {
        source
    }
}

fn other_family((info_hash, family): SwarmKey) -> SwarmKey {
    match family {
        Family::V4 => (info_hash, Family::V6),
        Family::V6 => (info_hash, Family::V4),
    }
}

fn family_of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}
