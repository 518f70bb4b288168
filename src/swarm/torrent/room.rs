//! Places: who gives one up when there are none left.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::base::Now;
use crate::swarm::effects::{CloseReason, Cx, PeerKey};
use crate::swarm::peer::Peer;
use crate::swarm::torrent::Torrent;

/// A peer without use may be replaced after this time.
const REPLACEABLE_AFTER: Duration = Duration::from_secs(10);
/// One that may take blocks and takes none is without use after this time.
const UNUSED_AFTER: Duration = Duration::from_secs(60);
/// So many connections from one place are a crowd: a household has fewer.
const CROWD_MIN: usize = 8;
/// After a search in vain the next is made no sooner: a flood of strangers must not cost one each.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);

impl Torrent {
    /// Closes the connection that is missed least, so that one from `ip` can be taken in; its credit is free at once.
    /// False when everybody is of use.
    ///
    /// The place with the most connections gives one up, if it has at least twice as many as the newcomer's; else a
    /// peer from which neither side has anything.
    pub fn make_room(&mut self, ip: IpAddr, cx: &mut Cx<'_>) -> bool {
        let mut victim = self.of_crowd(ip, cx.now);
        if victim.is_none() && cx.now >= self.room_search_at {
            victim = self.unused(cx.now);
            if victim.is_none() {
                self.room_search_at = cx.now + SEARCH_PAUSE;
            }
        }
        let Some(key) = victim else { return false };
        self.close(key, CloseReason::Replaced, cx);
        self.release_credit(key, cx);
        true
    }

    /// The least useful connection of the place that has the most of them.
    fn of_crowd(&self, ip: IpAddr, now: Now) -> Option<PeerKey> {
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for peer in self.staying().map(|(_, peer)| peer) {
            *counts.entry(place(peer.conn.addr.ip())).or_default() += 1;
        }
        let newcomers = counts.get(&place(ip)).copied().unwrap_or(0) + 1;
        let (crowd, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        if count < CROWD_MIN.max(2 * newcomers) {
            return None;
        }
        let worth = |peer: &Peer| {
            let rate = peer.pipeline.bytes_per_s(now) + peer.up.clone().bytes_per_s(now);
            let is_used = peer.am_interested || peer.peer_interested;
            (rate, is_used, peer.connected_at)
        };
        let members = self
            .staying()
            .filter(|(_, peer)| place(peer.conn.addr.ip()) == crowd);
        let least = members.min_by_key(|(_, peer)| worth(peer));
        least.map(|(key, _)| key)
    }

    /// A connection from which nobody has anything.
    fn unused(&self, now: Now) -> Option<PeerKey> {
        let is_idle = |peer: &Peer| {
            let since = peer.unchoked_at.max(peer.used_slot_at);
            !peer.am_choking && peer.uploads.is_empty() && now.since(since) >= UNUSED_AFTER
        };
        let is_unused = |peer: &Peer| {
            !peer.am_interested
                && now.since(peer.connected_at) >= REPLACEABLE_AFTER
                && (!peer.peer_interested || is_idle(peer))
        };
        let unused = self.staying().filter(|(_, peer)| is_unused(peer));
        let worth = |peer: &Peer| {
            let addr = peer.reachable_at().unwrap_or(peer.conn.addr);
            (peer.peer_interested, self.candidates.priority(addr))
        };
        let least = unused.min_by_key(|(_, peer)| worth(peer));
        least.map(|(key, _)| key)
    }

    /// The peers that take up places: no web seeds, and none that is being closed.
    pub(super) fn staying(&self) -> impl Iterator<Item = (PeerKey, &Peer)> {
        let staying = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.is_closing && !peer.is_web());
        staying.map(|(key, peer)| (PeerKey(key), peer))
    }
}

/// Addresses that one party has at its will: one of IPv4, 2⁶⁴ of IPv6.
fn place(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64 | 1 << 63,
    }
}
