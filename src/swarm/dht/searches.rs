//! What a node looks for: peers of our torrents, again and again, and nodes for its table. Layer 2, pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::lookup::{Lookup, Next, Purpose};
use super::node::{Cause, Node, Pending};
use super::place::may_tell;
use super::table::K;
use super::{Announce, DhtEffect};
use crate::base::{InfoHash, NodeId, Now};
use crate::wire::krpc::{Answer, Contact, Method};
use crate::wire::tracker::Family;

/// Torrents searched for; a session with more leaves the rest to trackers.
pub const SEARCHES_MAX: usize = 8_192;
/// Lookups under way at once; others wait for their turn.
pub const LOOKUPS_MAX: usize = 8;
/// Peers are looked for and we are announced again after this long, more or less (BEP 5).
pub const AGAIN_AFTER: Duration = Duration::from_secs(900);
/// A search that found nobody, or hardly a node to announce at, is repeated after this long; doubled each time.
const FRUITLESS_FIRST: Duration = Duration::from_secs(5);
/// Nearest that two searches for one torrent are when its peers have run out.
const WANTED_MIN: Duration = Duration::from_secs(60);
/// While few nodes are known the way in is tried again after this long; doubled each time, up to the last.
const BOOTSTRAP_FIRST: Duration = Duration::from_secs(3);
const BOOTSTRAP_MAX: Duration = Duration::from_secs(300);
/// Nodes that a lookup begins with.
const SEEDS: usize = 2 * K;

/// One torrent.
#[derive(Clone, Copy, Debug)]
struct Search {
    announce: Option<Announce>,
    /// When the next lookup begins; `None` while one is under way, or while nobody is known to ask.
    due_at: Option<Now>,
    lookup: Option<u64>,
    /// It would begin if anybody were known.
    is_waiting: bool,
    ended_at: Option<Now>,
    /// Lookups in a row that found nobody.
    fruitless: u32,
}

/// Everything a node looks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Searches {
    torrents: BTreeMap<InfoHash, Search>,
    due: BTreeSet<(Now, InfoHash)>,
    lookups: BTreeMap<u64, Lookup>,
    last_key: u64,
    bootstrap_at: Option<Now>,
    bootstraps: u32,
}

impl Searches {
    pub(super) fn has(&self, info_hash: &InfoHash) -> bool {
        self.torrents.contains_key(info_hash)
    }

    /// Torrents, and lookups under way.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.torrents.len(), self.lookups.len())
    }

    fn set_due(&mut self, info_hash: InfoHash, at: Option<Now>) {
        let Some(search) = self.torrents.get_mut(&info_hash) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut search.due_at, at) {
            self.due.remove(&(old, info_hash));
        }
        if let Some(at) = at {
            search.is_waiting = false;
            self.due.insert((at, info_hash));
        }
    }

    fn has_nodes_lookup(&self) -> bool {
        let is_nodes = |lookup: &Lookup| lookup.purpose() == Purpose::Nodes;
        self.lookups.values().any(is_nodes)
    }

    pub(super) fn check(&self) {
        assert!(self.torrents.len() <= SEARCHES_MAX);
        assert!(self.lookups.len() <= LOOKUPS_MAX + 1);
        self.lookups.values().for_each(Lookup::check);
        let due = self
            .torrents
            .iter()
            .filter_map(|(hash, search)| Some((search.due_at?, *hash)));
        assert!(due.eq_by_set(&self.due), "due searches");
        for search in self.torrents.values() {
            let ways = [
                search.due_at.is_some(),
                search.lookup.is_some(),
                search.is_waiting,
            ];
            assert_eq!(ways.into_iter().filter(|way| *way).count(), 1, "{search:?}");
            assert!(
                search
                    .lookup
                    .is_none_or(|key| self.lookups.contains_key(&key))
            );
        }
    }
}

trait EqBySet {
    fn eq_by_set(self, set: &BTreeSet<(Now, InfoHash)>) -> bool;
}

impl<I: Iterator<Item = (Now, InfoHash)>> EqBySet for I {
    fn eq_by_set(self, set: &BTreeSet<(Now, InfoHash)>) -> bool {
        self.collect::<BTreeSet<_>>() == *set
    }
}

impl Node {
    /// Looks for a torrent's peers from now on. False when there are too many.
    pub(super) fn search(
        &mut self,
        info_hash: InfoHash,
        announce: Option<Announce>,
        now: Now,
        fx: &mut Vec<DhtEffect>,
    ) -> bool {
        if let Some(search) = self.searches.torrents.get_mut(&info_hash) {
            let is_first = search.announce.is_none() && announce.is_some();
            search.announce = announce;
            // What was looked for is announced too from now on.
            if is_first && search.due_at.is_some() {
                self.searches.set_due(info_hash, Some(now));
                self.run_searches(now, fx);
            }
            return true;
        }
        if self.searches.torrents.len() >= SEARCHES_MAX {
            return false;
        }
        let search = Search {
            announce,
            due_at: None,
            lookup: None,
            is_waiting: false,
            ended_at: None,
            fruitless: 0,
        };
        self.searches.torrents.insert(info_hash, search);
        self.searches.set_due(info_hash, Some(now));
        let machine = std::net::Ipv4Addr::LOCALHOST.into();
        let known = self
            .store
            .peers(&info_hash, machine, false, usize::MAX, &mut self.rng);
        self.tell_peers(info_hash, known, fx);
        if self.is_started {
            self.run_searches(now, fx);
        }
        true
    }

    pub(super) fn forget(&mut self, info_hash: &InfoHash) {
        self.searches.set_due(*info_hash, None);
        if let Some(search) = self.searches.torrents.remove(info_hash)
            && let Some(key) = search.lookup
        {
            self.searches.lookups.remove(&key);
        }
    }

    pub(super) fn want_peers(&mut self, info_hash: &InfoHash, now: Now) {
        let Some(search) = self.searches.torrents.get(info_hash) else {
            return;
        };
        let (Some(due_at), Some(ended_at)) = (search.due_at, search.ended_at) else {
            return;
        };
        let at = (ended_at + WANTED_MIN).max(now);
        if at < due_at {
            self.searches.set_due(*info_hash, Some(at));
        }
    }

    /// Somebody new is known: searches that found nobody to ask begin at once.
    pub(super) fn wake_searches(&mut self, now: Now, fx: &mut Vec<DhtEffect>) {
        let waiting = self
            .searches
            .torrents
            .iter()
            .filter(|(_, search)| search.is_waiting);
        let waiting: Vec<InfoHash> = waiting.map(|(hash, _)| *hash).collect();
        for info_hash in waiting {
            self.searches.set_due(info_hash, Some(now));
        }
        self.run_searches(now, fx);
    }

    /// Begins the lookups whose time has come, and the way in while few nodes are known.
    pub(super) fn run_searches(&mut self, now: Now, fx: &mut Vec<DhtEffect>) {
        self.end_lookups(now, fx);
        while self.searches.lookups.len() < LOOKUPS_MAX
            && let Some((at, info_hash)) = self.searches.due.first().copied()
            && at <= now
        {
            self.searches.set_due(info_hash, None);
            let lookup = self.seeded(NodeId::from(info_hash), Purpose::Peers(info_hash), now);
            let key = lookup.map(|lookup| self.begin(lookup));
            if let Some(search) = self.searches.torrents.get_mut(&info_hash) {
                search.lookup = key;
                search.is_waiting = key.is_none();
            }
            if let Some(key) = key {
                self.advance(key, now, fx);
            }
        }
        if self.searches.bootstrap_at.is_some_and(|at| at <= now) {
            self.bootstrap(now, fx);
        }
    }

    pub(super) fn next_search(&self) -> impl Iterator<Item = Now> {
        let has_turn = self.searches.lookups.len() < LOOKUPS_MAX;
        let due = self
            .searches
            .due
            .first()
            .map(|(at, _)| *at)
            .filter(|_| has_turn);
        let lookups = self.searches.lookups.values().map(Lookup::deadline).min();
        [due, lookups, self.searches.bootstrap_at]
            .into_iter()
            .flatten()
    }

    /// Lookups under way that know few nodes go through this door too.
    pub(super) fn open_door(&mut self, addr: SocketAddr, now: Now, fx: &mut Vec<DhtEffect>) {
        for lookup in self.searches.lookups.values_mut() {
            if lookup.answered() < K {
                lookup.add_door(addr);
            }
        }
        self.advance_all(now, fx);
    }

    /// Looks for the nodes around us, from those that are known and through the doors.
    pub(super) fn bootstrap(&mut self, now: Now, fx: &mut Vec<DhtEffect>) {
        self.searches.bootstrap_at = None;
        self.refresh(self.table.id(), now, fx);
        if self.is_lonely() && (!self.doors.is_empty() || !self.hints.is_empty()) {
            let factor = 1 << self.searches.bootstraps.min(10);
            self.searches.bootstraps += 1;
            self.searches.bootstrap_at = Some(now + (BOOTSTRAP_FIRST * factor).min(BOOTSTRAP_MAX));
        } else {
            self.searches.bootstraps = 0;
        }
    }

    /// Looks for nodes near the target, one such lookup at a time.
    pub(super) fn refresh(&mut self, target: NodeId, now: Now, fx: &mut Vec<DhtEffect>) {
        if self.searches.has_nodes_lookup() {
            return;
        }
        if let Some(lookup) = self.seeded(target, Purpose::Nodes, now) {
            let key = self.begin(lookup);
            self.advance(key, now, fx);
        }
    }

    /// A lookup with those to begin with; `None` when nobody is known.
    fn seeded(&self, target: NodeId, purpose: Purpose, now: Now) -> Option<Lookup> {
        let mut seeds = self.table.closest(&target, None, SEEDS);
        let mut doors = Vec::new();
        if seeds.len() < K {
            let hints = self.hints.iter().map(|(addr, id)| Contact {
                id: *id,
                addr: *addr,
            });
            let mut hints: Vec<Contact> = hints.collect();
            hints.sort_by_key(|hint| target.distance(&hint.id));
            seeds.extend(hints.into_iter().take(SEEDS));
            let is_seed = |addr: &SocketAddr| seeds.iter().any(|seed| seed.addr == *addr);
            doors = self
                .doors
                .iter()
                .copied()
                .filter(|addr| !is_seed(addr))
                .collect();
        }
        if seeds.is_empty() && doors.is_empty() {
            return None;
        }
        let mut lookup = Lookup::new(target, purpose, doors, now);
        seeds.into_iter().for_each(|seed| lookup.add(seed));
        Some(lookup)
    }

    fn begin(&mut self, lookup: Lookup) -> u64 {
        self.searches.last_key += 1;
        self.searches.lookups.insert(self.searches.last_key, lookup);
        self.searches.last_key
    }

    /// Asks whom the lookup wants to ask.
    fn advance(&mut self, key: u64, now: Now, fx: &mut Vec<DhtEffect>) {
        loop {
            let Some(lookup) = self.searches.lookups.get_mut(&key) else {
                return;
            };
            let Some(next) = lookup.next(now) else {
                return;
            };
            let method = match lookup.purpose() {
                Purpose::Nodes => Method::FindNode {
                    target: lookup.target(),
                },
                Purpose::Peers(info_hash) => Method::GetPeers {
                    info_hash,
                    no_seed: false,
                    scrape: false,
                },
            };
            if !self.ask(next, Cause::Lookup(key), method, now, fx)
                && let Some(lookup) = self.searches.lookups.get_mut(&key)
            {
                lookup.on_failed(next);
            }
        }
    }

    /// Something answered: its lookup goes on, and others that know few nodes hear of it.
    pub(super) fn feed_lookups(
        &mut self,
        pending: Pending,
        contact: Contact,
        answer: &Answer<'_>,
        now: Now,
        fx: &mut Vec<DhtEffect>,
    ) {
        let teller = contact.addr.ip();
        let told = answer.nodes(self.family);
        let told: Vec<Contact> = told.filter(|told| self.is_possible(teller, told)).collect();
        for (key, lookup) in &mut self.searches.lookups {
            if pending.cause == Cause::Lookup(*key) {
                lookup.on_answer(pending.asked, contact, answer.token);
                told.iter().for_each(|told| lookup.add(*told));
            } else if lookup.answered() < K {
                lookup.add(contact);
            }
        }
        if let Cause::Lookup(key) = pending.cause
            && let Some(lookup) = self.searches.lookups.get_mut(&key)
            && let Purpose::Peers(info_hash) = lookup.purpose()
        {
            let is_v4 = self.family == Family::V4;
            let told = answer
                .values()
                .filter(|addr| addr.is_ipv4() == is_v4 && may_tell(teller, addr.ip()));
            let new = lookup.new_peers(told);
            self.tell_peers(info_hash, new, fx);
        }
        self.advance_all(now, fx);
    }

    pub(super) fn fail_lookup(&mut self, pending: Pending, now: Now, fx: &mut Vec<DhtEffect>) {
        if let Cause::Lookup(key) = pending.cause
            && let Some(lookup) = self.searches.lookups.get_mut(&key)
        {
            lookup.on_failed(pending.asked);
            self.advance(key, now, fx);
            self.end_lookups(now, fx);
        }
    }

    pub(super) fn delay_lookup(&mut self, pending: Pending, now: Now, fx: &mut Vec<DhtEffect>) {
        if let Cause::Lookup(key) = pending.cause
            && let Some(lookup) = self.searches.lookups.get_mut(&key)
        {
            lookup.on_late(pending.asked);
            self.advance(key, now, fx);
        }
    }

    fn advance_all(&mut self, now: Now, fx: &mut Vec<DhtEffect>) {
        let keys: Vec<u64> = self.searches.lookups.keys().copied().collect();
        for key in keys {
            self.advance(key, now, fx);
        }
        self.end_lookups(now, fx);
    }

    fn end_lookups(&mut self, now: Now, fx: &mut Vec<DhtEffect>) {
        let is_done = |(key, lookup): (&u64, &Lookup)| lookup.is_done(now).then_some(*key);
        let done: Vec<u64> = self.searches.lookups.iter().filter_map(is_done).collect();
        for key in done {
            if let Some(lookup) = self.searches.lookups.remove(&key)
                && let Purpose::Peers(info_hash) = lookup.purpose()
            {
                self.on_searched(info_hash, &lookup, now, fx);
            }
        }
    }

    /// A lookup for peers ended: announce, and plan the next.
    fn on_searched(
        &mut self,
        info_hash: InfoHash,
        lookup: &Lookup,
        now: Now,
        fx: &mut Vec<DhtEffect>,
    ) {
        let Some(search) = self.searches.torrents.get(&info_hash).copied() else {
            return;
        };
        let announce = search.announce;
        let announced = announce.map_or(0, |what| self.announce(info_hash, lookup, what, now, fx));
        let (answered, peers) = (lookup.answered(), lookup.peers_found());
        let is_fruitless = peers == 0 || announce.is_some() && announced < K;
        let fruitless = if is_fruitless {
            search.fruitless + 1
        } else {
            0
        };
        let wait = match is_fruitless {
            true => (FRUITLESS_FIRST * (1 << (fruitless - 1).min(10))).min(AGAIN_AFTER),
            false => AGAIN_AFTER,
        };
        let wait = self.spread(wait);
        let is_blind = answered == 0;
        if let Some(search) = self.searches.torrents.get_mut(&info_hash) {
            search.lookup = None;
            search.ended_at = Some(now);
            search.fruitless = fruitless;
            search.is_waiting = is_blind && self.table.is_empty();
        }
        let is_waiting = is_blind && self.table.is_empty();
        self.searches
            .set_due(info_hash, (!is_waiting).then_some(now + wait));
        self.stats.searched += 1;
        fx.push(DhtEffect::Searched {
            info_hash,
            family: self.family,
            answered,
            peers,
            announced,
        });
    }

    fn announce(
        &mut self,
        info_hash: InfoHash,
        lookup: &Lookup,
        what: Announce,
        now: Now,
        fx: &mut Vec<DhtEffect>,
    ) -> usize {
        let mut announced = 0;
        for (contact, token) in lookup.announce_at() {
            let asked = Next {
                addr: contact.addr,
                id: Some(contact.id),
            };
            let method = Method::AnnouncePeer {
                info_hash,
                port: what.port,
                token: &token,
                is_seed: what.is_seed,
            };
            announced += usize::from(self.ask(asked, Cause::Announce, method, now, fx));
        }
        announced
    }

    /// A tenth more or less, so that torrents that began together do not stay together.
    fn spread(&mut self, wait: Duration) -> Duration {
        let tenth = u64::try_from(wait.as_micros() / 10).unwrap_or(0);
        wait - Duration::from_micros(tenth) + Duration::from_micros(self.rng.below(2 * tenth))
    }
}
