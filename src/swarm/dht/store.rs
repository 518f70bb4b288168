//! Peers that others announced here (BEP 5), with what BEP 33 and BEP 51 ask about them. Layer 2, pure.
//!
//! Strangers fill it, so every direction has an end: torrents, peers of one, and what one address or network may hold.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sha1::{Digest, Sha1};

use super::place::{Network, Scope, may_tell, one_address};
use crate::base::{InfoHash, Now, Rng};
use crate::wire::krpc::BLOOM_BYTES;

/// Torrents that peers are kept of; a node sees a few hundred.
pub const HASHES_MAX: usize = 4_000;
/// Peers kept of one torrent; an answer has room for some of them only.
pub const PEERS_PER_HASH_MAX: usize = 500;
/// Peers kept of all torrents.
pub const PEERS_MAX: usize = 40_000;
/// Torrents that one address may be a peer of; each goes to a few nodes of millions.
pub const HASHES_PER_ADDRESS_MAX: u32 = 100;
/// The same for all addresses of one network.
pub const HASHES_PER_NETWORK_MAX: u32 = 400;
/// A peer that has not announced again is forgotten: twice the time that clients wait.
pub const PEER_TIME_MAX: Duration = Duration::from_secs(1_800);
/// Info_hashes in one sample (BEP 51); more would not fit beside the nodes.
pub const SAMPLES_MAX: usize = 20;

#[derive(Clone, Copy, Debug)]
struct Peer {
    announced_at: Now,
    is_seed: bool,
}

/// Announced peers by torrent.
#[derive(Clone, Debug, Default)]
pub struct Store {
    torrents: BTreeMap<InfoHash, BTreeMap<SocketAddr, Peer>>,
    peers: usize,
    by_address: BTreeMap<IpAddr, u32>,
    by_network: BTreeMap<Network, u32>,
}

/// Why a peer is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFull {
    /// The table has no room.
    Table,
    /// The address or its network holds as much as one may.
    Address,
}

/// Seeds and peers of a torrent as Bloom filters.
pub type Blooms = Box<([u8; BLOOM_BYTES], [u8; BLOOM_BYTES])>;

impl Store {
    /// Keeps a peer; of one address the last port stays (BEP 33). True when its address is new to the torrent.
    ///
    /// # Errors
    /// A limit is reached.
    pub fn announce(
        &mut self,
        info_hash: InfoHash,
        addr: SocketAddr,
        is_seed: bool,
        now: Now,
    ) -> Result<bool, StoreFull> {
        let peer = Peer {
            announced_at: now,
            is_seed,
        };
        if let Some(torrent) = self.torrents.get_mut(&info_hash) {
            let same = match Scope::of(addr.ip()) {
                // Many clients may share these addresses.
                Scope::Loopback | Scope::Local => torrent.contains_key(&addr).then_some(addr),
                Scope::Public => of_ip(torrent, addr.ip()),
            };
            if let Some(old) = same {
                torrent.remove(&old);
                torrent.insert(addr, peer);
                return Ok(false);
            }
        }
        self.admit(&info_hash, addr.ip())?;
        self.torrents
            .entry(info_hash)
            .or_default()
            .insert(addr, peer);
        self.peers += 1;
        if is_counted(addr.ip()) {
            *self.by_address.entry(one_address(addr.ip())).or_default() += 1;
            *self.by_network.entry(Network::of(addr.ip())).or_default() += 1;
        }
        Ok(true)
    }

    /// Whether there are peers of the torrent.
    pub fn has(&self, info_hash: &InfoHash) -> bool {
        self.torrents.contains_key(info_hash)
    }

    /// Whether another peer of the torrent would be kept.
    pub fn has_room(&self, info_hash: &InfoHash) -> bool {
        match self.torrents.get(info_hash) {
            Some(torrent) => torrent.len() < PEERS_PER_HASH_MAX && self.peers < PEERS_MAX,
            None => self.torrents.len() < HASHES_MAX && self.peers < PEERS_MAX,
        }
    }

    /// Up to `max` peers of the torrent that may be told to `asker`, drawn by lot; seeds come last if `no_seed` (BEP 33).
    pub fn peers(
        &self,
        info_hash: &InfoHash,
        asker: IpAddr,
        no_seed: bool,
        max: usize,
        rng: &mut Rng,
    ) -> Vec<SocketAddr> {
        let Some(torrent) = self.torrents.get(info_hash) else {
            return Vec::new();
        };
        let told = torrent
            .iter()
            .filter(|(addr, _)| may_tell(asker, addr.ip()));
        let mut told: Vec<(bool, SocketAddr)> = told
            .map(|(addr, peer)| (no_seed && peer.is_seed, *addr))
            .collect();
        rng.shuffle(&mut told);
        told.sort_by_key(|(is_last, _)| *is_last);
        told.into_iter().take(max).map(|(_, addr)| addr).collect()
    }

    /// The torrent's seeds and other peers as Bloom filters (BEP 33).
    pub fn blooms(&self, info_hash: &InfoHash) -> Option<Blooms> {
        let torrent = self.torrents.get(info_hash)?;
        let mut blooms: Blooms = Box::new(([0; BLOOM_BYTES], [0; BLOOM_BYTES]));
        for (addr, peer) in torrent {
            match peer.is_seed {
                true => insert_ip(&mut blooms.0, addr.ip()),
                false => insert_ip(&mut blooms.1, addr.ip()),
            }
        }
        Some(blooms)
    }

    /// A few info_hashes by lot, and how many there are (BEP 51).
    pub fn sample(&self, rng: &mut Rng) -> (Vec<InfoHash>, u32) {
        let mut start = [0; 20];
        let drawn = rng.next_u64().to_be_bytes();
        start[..8].copy_from_slice(&drawn);
        let start = InfoHash::new(start);
        let keys = || self.torrents.keys();
        let after = keys().skip_while(|hash| **hash < start);
        let before = keys().take_while(|hash| **hash < start);
        let sample = after.chain(before).take(SAMPLES_MAX).copied().collect();
        (
            sample,
            u32::try_from(self.torrents.len()).unwrap_or(u32::MAX),
        )
    }

    /// Forgets peers that have not announced for too long.
    pub fn expire(&mut self, now: Now) {
        let mut gone = Vec::new();
        for torrent in self.torrents.values_mut() {
            torrent.retain(|addr, peer| {
                let stays = now.since(peer.announced_at) < PEER_TIME_MAX;
                if !stays {
                    gone.push(addr.ip());
                }
                stays
            });
        }
        self.torrents.retain(|_, torrent| !torrent.is_empty());
        for ip in gone {
            self.peers -= 1;
            if is_counted(ip) {
                count_down(&mut self.by_address, one_address(ip));
                count_down(&mut self.by_network, Network::of(ip));
            }
        }
    }

    /// Torrents and peers kept.
    pub fn counts(&self) -> (usize, usize) {
        (self.torrents.len(), self.peers)
    }

    fn admit(&self, info_hash: &InfoHash, ip: IpAddr) -> Result<(), StoreFull> {
        if !self.has_room(info_hash) {
            return Err(StoreFull::Table);
        }
        if !is_counted(ip) {
            return Ok(());
        }
        let address = self.by_address.get(&one_address(ip)).copied();
        let network = self.by_network.get(&Network::of(ip)).copied();
        match address.unwrap_or(0) < HASHES_PER_ADDRESS_MAX
            && network.unwrap_or(0) < HASHES_PER_NETWORK_MAX
        {
            true => Ok(()),
            false => Err(StoreFull::Address),
        }
    }

    /// Verifies that counts agree with the peers.
    ///
    /// # Panics
    /// When they do not.
    pub fn check(&self) {
        assert!(self.torrents.len() <= HASHES_MAX);
        let peers: usize = self.torrents.values().map(BTreeMap::len).sum();
        assert_eq!(peers, self.peers);
        assert!(peers <= PEERS_MAX);
        let largest = self.torrents.values().map(BTreeMap::len).max();
        assert!(largest.unwrap_or(0) <= PEERS_PER_HASH_MAX);
        let addrs = self.torrents.values().flat_map(BTreeMap::keys);
        let counted = addrs.filter(|addr| is_counted(addr.ip())).count();
        let total = |counts: u32| counts as usize;
        assert_eq!(total(self.by_address.values().sum()), counted);
        assert_eq!(total(self.by_network.values().sum()), counted);
        assert!(
            self.by_address
                .values()
                .all(|count| *count <= HASHES_PER_ADDRESS_MAX)
        );
        assert!(
            self.by_network
                .values()
                .all(|count| *count <= HASHES_PER_NETWORK_MAX)
        );
    }
}

/// Nodes of this machine and its network share few addresses and are no strangers.
fn is_counted(ip: IpAddr) -> bool {
    Scope::of(ip) == Scope::Public
}

fn of_ip(torrent: &BTreeMap<SocketAddr, Peer>, ip: IpAddr) -> Option<SocketAddr> {
    let mut from = torrent.range(SocketAddr::new(ip, 0)..);
    let first = from.next().map(|(addr, _)| *addr);
    first.filter(|addr| addr.ip() == ip)
}

fn count_down<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// Two bits of the SHA-1 of the address (BEP 33).
fn insert_ip(bloom: &mut [u8; BLOOM_BYTES], ip: IpAddr) {
    let hash: [u8; 20] = match ip.to_canonical() {
        IpAddr::V4(ip) => Sha1::digest(ip.octets()).into(),
        IpAddr::V6(ip) => Sha1::digest(ip.octets()).into(),
    };
    for pair in [[hash[0], hash[1]], [hash[2], hash[3]]] {
        let bit = usize::from(u16::from_le_bytes(pair)) % (BLOOM_BYTES * 8);
        bloom[bit / 8] |= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u32) -> InfoHash {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        InfoHash::new(bytes)
    }

    fn addr(n: u32, port: u16) -> SocketAddr {
        SocketAddr::new(std::net::Ipv4Addr::from(0x0100_0000 + n).into(), port)
    }

    #[test]
    fn one_address_is_one_peer_of_a_torrent_and_is_forgotten_after_a_while() {
        let (mut store, mut rng) = (Store::default(), Rng::new(1));
        let now = Now::from_secs(10);
        assert_eq!(store.announce(hash(1), addr(1, 10), false, now), Ok(true));
        assert_eq!(store.announce(hash(1), addr(1, 20), true, now), Ok(false));
        assert_eq!(store.announce(hash(1), addr(2, 10), false, now), Ok(true));
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        for port in [1, 2] {
            assert_eq!(store.announce(hash(1), local(port), false, now), Ok(true));
        }
        store.check();
        let world = IpAddr::from([9, 9, 9, 9]);
        let mut told = store.peers(&hash(1), world, false, 100, &mut rng);
        told.sort();
        assert_eq!(
            told,
            [addr(1, 20), addr(2, 10)],
            "local peers are not told outside"
        );
        let told = store.peers(&hash(1), world, true, 1, &mut rng);
        assert_eq!(told, [addr(2, 10)], "who still fetches comes first");
        assert_eq!(
            store
                .peers(&hash(1), local(0).ip(), false, 100, &mut rng)
                .len(),
            4
        );
        store.expire(now + PEER_TIME_MAX);
        store.check();
        assert_eq!(store.counts(), (0, 0));
    }

    #[test]
    fn torrents_peers_addresses_and_networks_have_their_limits() {
        let mut store = Store::default();
        let now = Now::ZERO;
        let kept = (0..10_000).filter(|n| store.announce(hash(*n), addr(1, 1), false, now).is_ok());
        assert_eq!(kept.count(), HASHES_PER_ADDRESS_MAX as usize);
        let network = (0..10_000).filter(|n| {
            let addr = addr(2 + n % 200, 1);
            store.announce(hash(*n), addr, false, now).is_ok()
        });
        let left = HASHES_PER_NETWORK_MAX - HASHES_PER_ADDRESS_MAX;
        assert_eq!(network.count(), left as usize);
        let many =
            (0..10_000).filter(|n| store.announce(hash(1), addr(n << 8, 1), false, now).is_ok());
        assert!((PEERS_PER_HASH_MAX - 300..=PEERS_PER_HASH_MAX).contains(&many.count()));
        store.check();
        for n in 0..100_000 {
            let _ = store.announce(hash(n), addr(n << 8, 1), false, now);
        }
        store.check();
        assert_eq!(store.counts().0, HASHES_MAX);
        assert!(!store.has_room(&hash(u32::MAX)));
        assert_eq!(
            store.announce(hash(u32::MAX), addr(9 << 8, 1), false, now),
            Err(StoreFull::Table)
        );
    }

    #[test]
    fn bloom_filters_are_those_of_bep_33() {
        let mut bloom = [0; BLOOM_BYTES];
        (0..=255).for_each(|last| insert_ip(&mut bloom, [192, 0, 2, last].into()));
        for last in 0..=0x3e7 {
            insert_ip(&mut bloom, [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into());
        }
        let hex: String = bloom.iter().map(|byte| format!("{byte:02X}")).collect();
        assert!(hex.starts_with("F6C3F5EAA07FFD91BDE89F777F26FB2BFF37BDB8FB2BBAA2"));
        assert!(hex.ends_with("FD9F6AEFFEEE76B6FD8F72EF"), "{hex}");
    }

    #[test]
    fn samples_are_bounded_and_name_the_whole() {
        let (mut store, mut rng) = (Store::default(), Rng::new(1));
        for n in 0..100 {
            let _ = store.announce(hash(n << 24), addr(n << 8, 1), false, Now::ZERO);
        }
        let (sample, count) = store.sample(&mut rng);
        assert_eq!((sample.len(), count), (SAMPLES_MAX, 100));
    }
}
