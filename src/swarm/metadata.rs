//! Fetching the metadata of a torrent of which only the info_hash is known (BEP 9). Layer 2, pure.
//!
//! Peers that name one size are asked for different pieces of one copy. When a copy fails its hash, all of it is
//! forgotten: a lone sender lied and is banned; of several nobody knows who did, and from then on each peer that names
//! that size must send a whole copy alone. Sizes that disagree are fetched beside each other, so that a liar's takes
//! nothing from an honest peer's (HOSTILE.md W14).

mod attempt;
mod layers;
mod peers;
pub mod serve;
mod talk;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::base::{InfoHash, Key, Now, PeerId, Rng, Slots};
use crate::swarm::candidates::{Candidates, Parting, Source};
use crate::swarm::effects::{Credits, PeerKey};
use crate::swarm::poison::Party;
use crate::swarm::sources::SourceCounts;
use crate::wire::ip_filter::IpFilter;
use crate::wire::merkle::Node;
use crate::wire::metainfo::LayerNeed;
use attempt::Attempt;
use layers::LayerSearch;
use peers::Holder;

/// Copies on their way at once; one is enough as long as nobody lies.
pub const ATTEMPTS_MAX: usize = 8;
/// Bytes of all copies on their way together: three of the longest (HOSTILE.md W14).
pub const ATTEMPTS_BYTES_MAX: u64 = 96 << 20;
/// Pieces one peer is asked for at a time: 128 KiB are a round trip's worth on most lines, and no peer refuses so few.
pub const ASKED_MAX: usize = 8;
/// Sizes of copies that failed their hash with several senders; with more of them every size is doubted.
const DOUBTED_MAX: usize = 64;
/// Peers of the loopback address that lied; the same figure as for bad pieces.
const BANNED_LOCAL_MAX: usize = 1_024;
/// A peer that has not sent what it was asked for in this time rests.
const SLOW_AFTER: Duration = Duration::from_secs(20);
/// How long a peer rests that rejects or is slow, doubled each time (HOSTILE.md W14).
const REST_FIRST: Duration = Duration::from_secs(5);
const REST_MAX: Duration = Duration::from_secs(300);
/// Rejects and silences in a row after which a connection is of no use.
const FAILURES_MAX: u32 = 8;
/// A peer that has no metadata is kept as long, for the addresses it may tell.
const USELESS_AFTER: Duration = Duration::from_secs(120);
/// And as long when others wait to be dialed.
const REPLACEABLE_AFTER: Duration = Duration::from_secs(10);
/// How often peers are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Pause before dialing again when credits ran out.
const DIAL_RETRY: Duration = Duration::from_millis(250);
/// With fewer peers that have metadata than this more addresses are wanted.
const WANT_PEERS_BELOW: usize = 5;
/// Pause between two wishes for addresses.
const WANT_PEERS_PAUSE: Duration = Duration::from_secs(60);

/// Names one copy on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttemptKey(Key);

/// What the search is told once.
#[derive(Clone, Debug)]
pub struct MetadataConfig {
    pub info_hash: InfoHash,
    pub our_id: PeerId,
    /// Seed of all randomness.
    pub seed: u64,
    /// Connections at most, half-open ones included.
    pub peers_max: u32,
    /// Addresses of other peers are taken from peers (BEP 11).
    pub exchanges_peers: bool,
    /// Advertised as `p` in the extension handshake; 0 when nobody can dial us.
    pub listen_port: u16,
    /// Advertised as `v` in the extension handshake.
    pub client_version: String,
}

/// One thing the runtime must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataEffect {
    /// The peer has messages to take. No answer.
    WakeWriter(PeerKey),
    /// Shut the connection down. Answer: `on_disconnected`.
    Close(PeerKey),
    /// Dial. Answer: `on_connected` or `on_dial_failed`. One `dials` and one `connections` credit were taken.
    Dial { addr: SocketAddr },
    /// A whole copy is there: compare its hash with the info_hash. Answer: `on_verified`, or `on_layers_needed`.
    Verify {
        attempt: AttemptKey,
        bytes: Arc<[u8]>,
    },
    /// The piece layers that were needed are here, each part proven. No answer: it was the end.
    HasLayers(Vec<(LayerNeed, Vec<Node>)>),
    /// Refuse this address everywhere from now on. No answer.
    Ban { ip: IpAddr },
    /// Addresses have run low. No answer.
    WantPeers,
}

/// Lent to the core for one call.
pub struct MetadataCx<'a> {
    pub now: Now,
    pub credits: &'a mut Credits,
    /// Executed in order by the runtime after the call returns.
    pub fx: &'a mut Vec<MetadataEffect>,
}

/// Numbers for whoever shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetadataStats {
    pub peers_connected: u32,
    pub peers_by_source: SourceCounts,
    pub peers_known: u32,
    /// Addresses refused because the user's list has them.
    pub peers_filtered: u32,
    /// Connected peers that say they have the metadata.
    pub holders: u32,
    /// Bytes of the copy that is the nearest to its end, and its size; 0 while nobody has told one.
    pub have_bytes: u32,
    pub total_bytes: u32,
    /// Copies that failed their hash.
    pub bad_copies: u32,
    /// Connections that were taken in so far.
    pub peers_met: u32,
}

/// All decisions while the metadata of one torrent is looked for.
#[derive(Clone, Debug)]
pub struct MetadataSwarm {
    cfg: MetadataConfig,
    candidates: Candidates,
    peers: Slots<Holder>,
    dialing: BTreeSet<SocketAddr>,
    attempts: Slots<Attempt>,
    /// `None` before the metadata is here, and where it says all.
    layers: Option<LayerSearch>,
    doubted: BTreeSet<u32>,
    banned_local: Vec<Party>,
    bad_copies: u32,
    peers_met: u32,
    is_found: bool,
    is_stopping: bool,
    tick_at: Option<Now>,
    dial_at: Option<Now>,
    want_peers_at: Now,
}

impl MetadataSwarm {
    /// A search that knows nobody.
    pub fn new(cfg: MetadataConfig, now: Now) -> Self {
        let mut rng = Rng::new(cfg.seed);
        MetadataSwarm {
            // Whether the torrent is private only its metadata tells.
            candidates: Candidates::new(false, Rng::new(rng.next_u64())),
            cfg,
            peers: Slots::new(),
            dialing: BTreeSet::new(),
            attempts: Slots::new(),
            layers: None,
            doubted: BTreeSet::new(),
            banned_local: Vec::new(),
            bad_copies: 0,
            peers_met: 0,
            is_found: false,
            is_stopping: false,
            tick_at: None,
            dial_at: Some(now),
            want_peers_at: now,
        }
    }

    /// Addresses to leave alone from now on. Connections to them are the caller's to close.
    pub fn set_ip_filter(&mut self, filter: Arc<IpFilter>) {
        self.candidates.set_filter(filter);
        self.after_event();
    }

    /// Addresses to dial.
    pub fn on_candidates(&mut self, source: Source, addrs: &[SocketAddr], cx: &mut MetadataCx<'_>) {
        self.candidates.add(source, addrs, cx.now);
        self.dial(cx);
        self.after_event();
    }

    /// Answers [`MetadataEffect::Verify`]. A good copy ends the search: every connection is closed.
    pub fn on_verified(&mut self, attempt: AttemptKey, is_good: bool, cx: &mut MetadataCx<'_>) {
        if is_good {
            self.is_found = true;
            self.stop(cx);
            return;
        }
        let Some(bad) = self.attempts.remove(attempt.0) else {
            return;
        };
        self.bad_copies = self.bad_copies.saturating_add(1);
        let parties = bad.parties();
        let lone_liar = parties.first().filter(|_| parties.len() == 1).copied();
        for (_, peer) in self.peers.iter_mut() {
            if peer.attempt == Some(attempt) {
                peer.attempt = None;
                peer.asked.clear();
            }
            peer.is_suspect |= parties.contains(&peer.party);
        }
        match lone_liar {
            Some(liar) => self.ban(liar, cx),
            None => {
                if self.doubted.len() < DOUBTED_MAX {
                    self.doubted.insert(bad.size_bytes());
                }
                // Others may be at a copy of that size together: nothing good comes of it.
                self.break_up(bad.size_bytes());
            }
        }
        self.assign_all(cx);
        self.after_event();
    }

    /// When [`MetadataSwarm::on_timer`] has something to do.
    pub fn next_deadline(&self) -> Option<Now> {
        if self.is_stopping {
            return None;
        }
        [self.tick_at, self.dial_at].into_iter().flatten().min()
    }

    /// There is a way out again after there was none: whoever is known is dialed, without regard to failures.
    pub fn on_way_back(&mut self, cx: &mut MetadataCx<'_>) {
        self.candidates.on_way_back(cx.now);
        self.dial(cx);
        self.after_event();
    }

    /// Time has passed.
    pub fn on_timer(&mut self, cx: &mut MetadataCx<'_>) {
        if self.is_stopping {
            return;
        }
        if self.tick_at.is_some_and(|at| at <= cx.now) {
            self.tick(cx);
        }
        if self.dial_at.is_some_and(|at| at <= cx.now) {
            self.dial(cx);
        }
        self.after_event();
    }

    /// Closes every peer and dials no more.
    pub fn stop(&mut self, cx: &mut MetadataCx<'_>) {
        self.is_stopping = true;
        for key in self.peers.keys() {
            self.close(PeerKey(key), Parting::Useful, cx);
        }
        self.after_event();
    }

    /// Addresses for the torrent's own book, those of present peers first.
    pub fn addresses(&self) -> Vec<(Source, SocketAddr)> {
        let mut present: Vec<SocketAddr> = Vec::new();
        for (_, peer) in self.peers.iter() {
            let addr = match peer.conn.is_inbound {
                true => peer.listen_addr,
                false => Some(peer.conn.addr),
            };
            present.extend(addr);
        }
        let is_present = |addr: &SocketAddr| present.contains(addr);
        let mut all = self.candidates.addresses();
        all.sort_by_key(|(_, addr)| !is_present(addr));
        all
    }

    /// The present numbers.
    pub fn stats(&self) -> MetadataStats {
        let best = self.attempts.iter().map(|(_, attempt)| attempt);
        let best = best.max_by_key(|attempt| attempt.have_bytes());
        let staying = || self.peers.iter().filter(|(_, peer)| !peer.is_closing);
        MetadataStats {
            peers_connected: staying().count() as u32,
            peers_by_source: staying().map(|(_, peer)| peer.source).collect(),
            peers_known: self.candidates.known_count() as u32,
            peers_filtered: self.candidates.filtered_count() as u32,
            holders: staying().filter(|(_, peer)| peer.has_metadata()).count() as u32,
            have_bytes: best.map_or(0, Attempt::have_bytes),
            total_bytes: best.map_or(0, Attempt::size_bytes),
            bad_copies: self.bad_copies,
            peers_met: self.peers_met,
        }
    }

    /// Verifies the limits and that peers and copies agree.
    ///
    /// # Panics
    /// When they do not.
    pub fn check(&self) {
        self.candidates.check();
        assert!(self.attempts.len() <= ATTEMPTS_MAX, "copies");
        let all = self.attempts.iter();
        let bytes: u64 = all
            .map(|(_, attempt)| u64::from(attempt.size_bytes()))
            .sum();
        assert!(bytes <= ATTEMPTS_BYTES_MAX, "bytes of copies");
        for (_, attempt) in self.attempts.iter() {
            attempt.check();
        }
        for (_, peer) in self.peers.iter() {
            assert!(peer.asked.len() <= ASKED_MAX, "pieces asked for");
            if let Some(AttemptKey(key)) = peer.attempt {
                let attempt = self.attempts.get(key).expect("the copy of a peer");
                assert_eq!(peer.size_bytes, Some(attempt.size_bytes()), "one size");
            }
        }
        let staying = self.peers.iter().filter(|(_, peer)| !peer.is_closing);
        assert!(staying.count() <= self.cfg.peers_max as usize, "peers");
    }

    /// Nobody is believed alone or together any more about copies of that size.
    fn break_up(&mut self, size_bytes: u32) {
        let shared: Vec<Key> = self
            .attempts
            .iter()
            .filter(|(_, attempt)| {
                attempt.solo.is_none() && !attempt.is_whole() && attempt.size_bytes() == size_bytes
            })
            .map(|(key, _)| key)
            .collect();
        shared
            .into_iter()
            .for_each(|key| self.abandon(AttemptKey(key)));
    }

    /// Forgets a copy; who worked at it is free.
    fn abandon(&mut self, attempt: AttemptKey) {
        self.attempts.remove(attempt.0);
        for (_, peer) in self.peers.iter_mut() {
            if peer.attempt == Some(attempt) {
                peer.attempt = None;
                peer.asked.clear();
            }
        }
    }

    fn is_doubted(&self, size_bytes: u32) -> bool {
        self.doubted.len() >= DOUBTED_MAX || self.doubted.contains(&size_bytes)
    }

    /// Gives every peer that has the metadata a copy to work at. First those that sent nothing that proved bad, then
    /// those that had the fewest turns.
    fn assign_all(&mut self, cx: &mut MetadataCx<'_>) {
        if self.is_stopping {
            return;
        }
        if self.layers.is_some() {
            return self.ask_all_for_hashes(cx);
        }
        let mut free: Vec<(bool, u32, PeerKey)> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_free(cx.now))
            .map(|(key, peer)| (peer.is_suspect, peer.turn_count, PeerKey(key)))
            .collect();
        free.sort_unstable();
        for (_, _, key) in free {
            self.assign(key, cx);
        }
    }

    fn assign(&mut self, key: PeerKey, cx: &mut MetadataCx<'_>) {
        if self.layers.is_some() {
            return self.ask_for_hashes(key, cx);
        }
        let Some(peer) = self.peers.get(key.0).filter(|peer| peer.is_free(cx.now)) else {
            return;
        };
        let Some(size_bytes) = peer.size_bytes else {
            return;
        };
        let is_solo = self.is_doubted(size_bytes);
        let fits = |attempt: &Attempt| {
            attempt.solo.is_none() && attempt.size_bytes() == size_bytes && !attempt.is_whole()
        };
        let shared = self.attempts.iter().find(|(_, attempt)| fits(attempt));
        let attempt = match shared.filter(|_| !is_solo) {
            Some((shared, _)) => shared,
            None => {
                if !self.has_room(size_bytes) && !self.make_room(size_bytes, cx.now) {
                    return;
                }
                let attempt = Attempt::new(size_bytes, is_solo.then_some(key), cx.now);
                self.attempts.insert(attempt)
            }
        };
        if let Some(peer) = self.peers.get_mut(key.0) {
            peer.attempt = Some(AttemptKey(attempt));
            peer.turn_count = peer.turn_count.saturating_add(1);
        }
        self.ask(key, cx);
    }

    fn has_room(&self, size_bytes: u32) -> bool {
        let taken = self.attempts.iter();
        let taken: u64 = taken
            .map(|(_, attempt)| u64::from(attempt.size_bytes()))
            .sum();
        self.attempts.len() < ATTEMPTS_MAX && taken + u64::from(size_bytes) <= ATTEMPTS_BYTES_MAX
    }

    /// Gives up copies that had their time, the longest without a piece first. False when that is not enough.
    fn make_room(&mut self, size_bytes: u32, now: Now) -> bool {
        while !self.has_room(size_bytes) {
            let overdue = self.attempts.iter().filter(|(_, one)| one.is_overdue(now));
            let Some((key, _)) = overdue.min_by_key(|(_, one)| one.moved_at()) else {
                return false;
            };
            let attempt = AttemptKey(key);
            for (_, peer) in self.peers.iter_mut() {
                if peer.attempt == Some(attempt) {
                    peer.rest(now);
                }
            }
            self.abandon(attempt);
        }
        true
    }

    fn ban(&mut self, liar: Party, cx: &mut MetadataCx<'_>) {
        match liar {
            Party::Ip(ip) => {
                self.candidates.ban(ip);
                cx.fx.push(MetadataEffect::Ban { ip });
            }
            Party::Local(..) if self.banned_local.len() < BANNED_LOCAL_MAX => {
                self.banned_local.push(liar);
            }
            // No web seed sends metadata.
            Party::Local(..) | Party::Web(_) => {}
        }
        for key in self.peers.keys() {
            let is_behind = |peer: &Holder| liar.is_behind(peer.conn.addr, peer.conn.peer_id);
            if self.peers.get(key).is_some_and(is_behind) {
                self.close(PeerKey(key), Parting::Faulty, cx);
            }
        }
    }

    fn tick(&mut self, cx: &mut MetadataCx<'_>) {
        self.tick_at = None;
        for key in self.peers.keys() {
            let key = PeerKey(key);
            let Some(peer) = self.peers.get_mut(key.0).filter(|peer| !peer.is_closing) else {
                continue;
            };
            if let Some(parting) = peer.why_close(cx.now) {
                self.close(key, parting, cx);
                continue;
            }
            peer.keep_alive(key, cx);
            if peer.is_slow(cx.now) {
                self.release(key);
                if let Some(peer) = self.peers.get_mut(key.0) {
                    peer.rest(cx.now);
                }
            }
        }
        self.assign_all(cx);
        for key in self.peers.keys() {
            self.ask(PeerKey(key), cx);
        }
        self.make_room_to_dial(cx);
        if !self.peers.is_empty() {
            self.tick_at = Some(cx.now + TICK);
        }
        if self.dial_at.is_none() {
            self.dial(cx);
        }
    }

    fn after_event(&self) {
        if cfg!(debug_assertions) {
            self.check();
        }
    }
}
