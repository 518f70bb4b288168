//! The peers of one torrent in one family: found by address and by owner, picked at random. Layer 2.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::Owner;
use crate::base::{Now, Rng};
use crate::wire::tracker_http::serve::SwarmCounts;

/// One registered peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub addr: SocketAddr,
    pub owner: Owner,
    pub is_seeder: bool,
    pub last_seen: Now,
}

/// Leechers stand before seeders, so that a random pick among leechers alone costs no search.
#[derive(Debug, Default)]
pub struct Peers {
    peers: Vec<Peer>,
    leecher_count: usize,
    by_addr: BTreeMap<SocketAddr, usize>,
    /// Those with a key, which alone may move.
    by_owner: BTreeMap<Owner, SocketAddr>,
    completed: u32,
}

impl Peers {
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    pub fn seeder_count(&self) -> usize {
        self.peers.len() - self.leecher_count
    }

    /// `completed` announces seen.
    pub fn completed(&self) -> u32 {
        self.completed
    }

    pub fn set_completed(&mut self, completed: u32) {
        self.completed = completed;
    }

    pub fn counts(&self) -> SwarmCounts {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        SwarmCounts {
            seeders: count(self.seeder_count()),
            leechers: count(self.leecher_count),
            completed: self.completed,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }

    pub fn at(&self, addr: SocketAddr) -> Option<&Peer> {
        self.peers.get(*self.by_addr.get(&addr)?)
    }

    /// The peer of a client that has a key.
    pub fn of_owner(&self, owner: &Owner) -> Option<&Peer> {
        self.at(*self.by_owner.get(owner)?)
    }

    /// Adds a peer; neither its address nor its keyed owner may be there already.
    pub fn insert(&mut self, peer: Peer) {
        let last = self.peers.len();
        self.peers.push(peer);
        self.by_addr.insert(peer.addr, last);
        if peer.owner.1.is_some() {
            self.by_owner.insert(peer.owner, peer.addr);
        }
        if !peer.is_seeder {
            self.swap(last, self.leecher_count);
            self.leecher_count += 1;
        }
    }

    pub fn remove(&mut self, addr: SocketAddr) -> Option<Peer> {
        let mut index = self.by_addr.remove(&addr)?;
        if index < self.leecher_count {
            // The hole moves behind the leechers, then to the end.
            self.leecher_count -= 1;
            self.swap(index, self.leecher_count);
            index = self.leecher_count;
        }
        self.swap(index, self.peers.len() - 1);
        let peer = self.peers.pop()?;
        self.by_addr.remove(&addr);
        self.by_owner.remove(&peer.owner);
        Some(peer)
    }

    /// Up to `wanted` peers for this asker, in random order: leechers only for a seeder, never itself.
    pub fn choose(&self, asker: &Peer, wanted: usize, rng: &mut Rng) -> Vec<Peer> {
        let limit = match asker.is_seeder {
            true => self.leecher_count,
            false => self.peers.len(),
        };
        let own = self.by_addr.get(&asker.addr).copied();
        let own = own.filter(|own| *own < limit);
        let count = limit - usize::from(own.is_some());
        let mut chosen: Vec<Peer> = sample(count, wanted, rng)
            .into_iter()
            // The asker's own place is skipped over.
            .map(|index| index + usize::from(own.is_some_and(|own| index >= own)))
            .filter_map(|index| self.peers.get(index).copied())
            .collect();
        rng.shuffle(&mut chosen);
        chosen
    }

    /// Panics when the tables disagree.
    pub fn check(&self) {
        assert_eq!(self.by_addr.len(), self.peers.len());
        for (index, peer) in self.peers.iter().enumerate() {
            assert_eq!(peer.is_seeder, index >= self.leecher_count);
            assert_eq!(self.by_addr.get(&peer.addr), Some(&index));
            if peer.owner.1.is_some() {
                assert_eq!(self.by_owner.get(&peer.owner), Some(&peer.addr));
            }
        }
        let keyed = self.peers.iter().filter(|peer| peer.owner.1.is_some());
        assert_eq!(self.by_owner.len(), keyed.count());
    }

    fn swap(&mut self, left: usize, right: usize) {
        self.peers.swap(left, right);
        for index in [left, right] {
            if let Some(peer) = self.peers.get(index) {
                self.by_addr.insert(peer.addr, index);
            }
        }
    }
}

/// `wanted` different numbers below `count`, or all of them (R. Floyd's way: no more draws than numbers).
fn sample(count: usize, wanted: usize, rng: &mut Rng) -> BTreeSet<usize> {
    if wanted >= count {
        return (0..count).collect();
    }
    let mut chosen = BTreeSet::new();
    for top in count - wanted..count {
        let drawn = usize::try_from(rng.below(top as u64 + 1)).unwrap_or(top);
        if !chosen.insert(drawn) {
            chosen.insert(top);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_of_the_wanted_size_and_reaches_every_number() {
        let mut rng = Rng::new(5);
        assert_eq!(sample(3, 9, &mut rng).len(), 3);
        assert!(sample(5, 0, &mut rng).is_empty());
        let mut hits = [0; 10];
        for _ in 0..1_000 {
            let chosen = sample(10, 3, &mut rng);
            assert_eq!(chosen.len(), 3);
            chosen.into_iter().for_each(|index| hits[index] += 1);
        }
        // 300 expected of each, 14.5 the standard deviation.
        assert!(
            hits.iter().all(|hits| (220..380).contains(hits)),
            "{hits:?}"
        );
    }
}
