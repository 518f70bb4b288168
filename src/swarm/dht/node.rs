//! The node of one address family: its table, its queries under way and its clockwork. Layer 2, pure.
//!
//! What it answers is in `answers`, what it looks for in `searches`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::identity::{self, Votes};
use super::limits::AnswerLimits;
use super::lookup::Next;
use super::place::{Scope, may_tell, one_address};
use super::saved::Saved;
use super::searches::Searches;
use super::store::Store;
use super::table::{K, Table};
use super::tokens::Secrets;
use super::{DhtConfig, DhtEffect, DhtStats};
use crate::base::{InfoHash, NodeId, Now, Rng};
use crate::wire::krpc::{Answer, Body, Contact, Method, Packet, Query, Want, encode_query};
use crate::wire::tracker::{Family, is_usable_peer};

/// Queries under way; a busy node has some dozens.
pub const PENDING_MAX: usize = 256;
/// An answer that takes longer does not come.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// After this long, or what answers took lately if that is less, somebody else is asked meanwhile.
const LATE_MAX: Duration = Duration::from_millis(1_500);
const LATE_MIN: Duration = Duration::from_millis(100);
/// Addresses kept to enter the DHT through.
pub const DOORS_MAX: usize = 64;
/// Nodes kept that others or an earlier run told of, for the time in which the table is empty.
pub const HINTS_MAX: usize = 256;
/// Addresses known to read our datagrams.
pub const PROVEN_MAX: usize = 1_024;
/// For so long.
const PROVEN_FOR: Duration = Duration::from_secs(600);
/// Addresses asked lately, so that who comes unasked is known.
const ASKED_MAX: usize = 2_048;
/// How often silent nodes, buckets and stored peers are looked at.
const TICK: Duration = Duration::from_secs(5);
/// Nobody came unasked for so long: nobody can (BEP 43).
pub const READ_ONLY_AFTER: Duration = Duration::from_secs(900);
/// And then it is tried again.
pub const READ_ONLY_FOR: Duration = Duration::from_secs(3_600);
/// Another id at most so often: a few liars must not keep us moving.
const NEW_ID_MIN: Duration = Duration::from_secs(600);

/// What an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Lookup(u64),
    /// Whether somebody is there.
    Check,
    Announce,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub asked: Next,
    pub cause: Cause,
    sent_at: Now,
    late_at: Now,
    is_late: bool,
}

/// What a datagram brought for others than its node.
#[derive(Debug, Default)]
pub struct Heard {
    /// Nodes of the other family.
    pub others: Vec<Contact>,
    /// It was forged, or answered nothing.
    pub is_bad: bool,
}

/// Whether queries reach us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Nobody out there was heard yet.
    Unknown,
    /// Since then nobody has come unasked.
    Waiting(Now),
    /// Somebody did.
    Reached,
    /// Nobody did for long enough; tried again then.
    ReadOnly(Now),
}

/// The node of one family.
#[derive(Clone, Debug)]
pub struct Node {
    pub(super) family: Family,
    pub(super) table: Table,
    pub(super) store: Store,
    pub(super) secrets: Secrets,
    pub(super) limits: AnswerLimits,
    pub(super) rng: Rng,
    pub(super) searches: Searches,
    pub(super) doors: Vec<SocketAddr>,
    pub(super) hints: BTreeMap<SocketAddr, NodeId>,
    pub(super) stats: DhtStats,
    pub(super) is_started: bool,
    votes: Votes,
    pending: BTreeMap<u32, Pending>,
    proven: BTreeMap<IpAddr, Now>,
    asked: BTreeMap<IpAddr, Now>,
    smoothed_rtt: Duration,
    reach: Reach,
    is_always_read_only: bool,
    wants_others: bool,
    tick_at: Now,
    id_since: Option<Now>,
}

impl Node {
    pub(super) fn new(
        config: &DhtConfig,
        family: Family,
        seed: u64,
        saved: &Saved,
        now: Now,
    ) -> Self {
        let mut rng = Rng::new(seed);
        let is_v4 = family == Family::V4;
        let external = saved.external.iter().find(|ip| ip.is_ipv4() == is_v4);
        let id = identity::make(external.copied(), &mut rng);
        let ours = saved
            .contacts
            .iter()
            .filter(|contact| contact.addr.is_ipv4() == is_v4);
        let hints = ours
            .take(HINTS_MAX)
            .map(|contact| (contact.addr, contact.id));
        // The two nodes must not give out each other's tokens.
        let mut secret = config.secret;
        secret[0] ^= u8::from(is_v4);
        Node {
            family,
            table: Table::new(id),
            store: Store::default(),
            secrets: Secrets::new(secret),
            limits: AnswerLimits::default(),
            rng,
            searches: Searches::default(),
            doors: Vec::new(),
            hints: hints.collect(),
            stats: DhtStats::default(),
            is_started: false,
            votes: Votes::new(external.copied()),
            pending: BTreeMap::new(),
            proven: BTreeMap::new(),
            asked: BTreeMap::new(),
            smoothed_rtt: LATE_MAX / 2,
            reach: Reach::Unknown,
            is_always_read_only: config.is_read_only,
            wants_others: false,
            tick_at: now,
            id_since: None,
        }
    }

    pub(super) fn is_v4(&self) -> bool {
        self.family == Family::V4
    }

    /// Few nodes are known: the other family's may know some.
    pub(super) fn is_lonely(&self) -> bool {
        self.table.len() < K
    }

    pub(super) fn start(&mut self, now: Now, fx: &mut Vec<DhtEffect>) {
        self.is_started = true;
        self.tick_at = now + TICK;
        self.bootstrap(now, fx);
    }

    /// An address to enter through; it is used at once while few nodes are known.
    pub(super) fn add_door(&mut self, addr: SocketAddr, now: Now, fx: &mut Vec<DhtEffect>) {
        if !is_usable_peer(addr) || self.doors.contains(&addr) || self.doors.len() >= DOORS_MAX {
            return;
        }
        self.doors.push(addr);
        if self.is_started && self.is_lonely() {
            self.open_door(addr, now, fx);
            self.bootstrap(now, fx);
            self.wake_searches(now, fx);
        }
    }

    /// Somebody may be there.
    pub(super) fn try_node(&mut self, addr: SocketAddr, now: Now, fx: &mut Vec<DhtEffect>) {
        if self.is_started && is_usable_peer(addr) && self.limits.admit_ping(now) {
            self.ping(Next { addr, id: None }, now, fx);
        }
    }

    /// A node of this family that one of the other family told of.
    pub(super) fn add_hint(&mut self, contact: Contact, now: Now, fx: &mut Vec<DhtEffect>) {
        if self.is_lonely() && self.hints.len() < HINTS_MAX {
            let is_first = self.hints.is_empty();
            self.hints.insert(contact.addr, contact.id);
            if is_first && self.is_started {
                self.bootstrap(now, fx);
                self.wake_searches(now, fx);
            }
        }
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.is_always_read_only || matches!(self.reach, Reach::ReadOnly(_))
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn on_packet(
        &mut self,
        from: SocketAddr,
        packet: &Packet<'_>,
        bytes: usize,
        other: Option<&Node>,
        now: Now,
        heard: &mut Heard,
        fx: &mut Vec<DhtEffect>,
    ) {
        match &packet.body {
            Body::Query(query) => {
                self.stats.queries_heard += 1;
                self.on_unasked(from.ip());
                if self.is_read_only() {
                    return;
                }
                if !self.limits.admit(from.ip(), now) {
                    self.stats.queries_dropped += 1;
                    return;
                }
                self.on_query(from, packet.transaction, query, bytes, other, now, fx);
            }
            Body::Answer(answer) => match self.take_pending(from, packet.transaction) {
                Some(pending) => self.on_answer(from, pending, answer, now, heard, fx),
                None => heard.is_bad = true,
            },
            Body::Error(_) => match self.take_pending(from, packet.transaction) {
                // Whoever refuses is there, but gives nothing.
                Some(pending) => self.on_no_answer(pending, false, now, fx),
                None => heard.is_bad = true,
            },
        }
    }

    fn take_pending(&mut self, from: SocketAddr, transaction: &[u8]) -> Option<Pending> {
        let transaction = u32::from_be_bytes(transaction.try_into().ok()?);
        let pending = self.pending.get(&transaction)?;
        if !is_same(pending.asked.addr, from) {
            return None;
        }
        self.pending.remove(&transaction)
    }

    fn on_answer(
        &mut self,
        from: SocketAddr,
        pending: Pending,
        answer: &Answer<'_>,
        now: Now,
        heard: &mut Heard,
        fx: &mut Vec<DhtEffect>,
    ) {
        let contact = Contact {
            id: answer.id,
            addr: pending.asked.addr,
        };
        let is_other = pending.asked.id.is_some_and(|id| id != answer.id);
        if is_other || answer.id == self.table.id() {
            heard.is_bad = true;
            self.on_no_answer(pending, true, now, fx);
            return;
        }
        self.stats.answers_heard += 1;
        self.learn_rtt(now.since(pending.sent_at));
        self.prove(from.ip(), now);
        self.note_external(from.ip(), answer.external, now, fx);
        if Scope::of(from.ip()) == Scope::Public && self.reach == Reach::Unknown {
            self.reach = Reach::Waiting(now);
        }
        self.hints.remove(&contact.addr);
        let is_new = self.table.on_answer(contact, now);
        if self.wants_others {
            let family = match self.family {
                Family::V4 => Family::V6,
                Family::V6 => Family::V4,
            };
            heard.others = answer
                .nodes(family)
                .filter(|told| may_tell(from.ip(), told.addr.ip()))
                .collect();
        }
        self.feed_lookups(pending, contact, answer, now, fx);
        if is_new {
            self.wake_searches(now, fx);
        }
    }

    /// A query came to nothing: nobody answered, or (`is_wrong`) somebody else.
    fn on_no_answer(
        &mut self,
        pending: Pending,
        is_wrong: bool,
        now: Now,
        fx: &mut Vec<DhtEffect>,
    ) {
        self.hints.remove(&pending.asked.addr);
        if let Some(id) = pending.asked.id {
            let contact = Contact {
                id,
                addr: pending.asked.addr,
            };
            self.table.on_silence(contact);
            if is_wrong {
                self.table.on_silence(contact);
            }
        }
        self.fail_lookup(pending, now, fx);
    }

    /// Sends a query unless too many are under way; false then.
    pub(super) fn ask(
        &mut self,
        asked: Next,
        cause: Cause,
        method: Method<'_>,
        now: Now,
        fx: &mut Vec<DhtEffect>,
    ) -> bool {
        if self.pending.len() >= PENDING_MAX {
            return false;
        }
        let transaction = self.secrets.next_transaction();
        if self.pending.contains_key(&transaction) {
            return false;
        }
        let query = Query {
            id: self.table.id(),
            method,
            want: self.wants_others.then_some(Want::BOTH),
            is_read_only: self.is_read_only(),
        };
        let bytes = encode_query(&transaction.to_be_bytes(), &query);
        if let Some(id) = asked.id {
            let contact = Contact {
                id,
                addr: asked.addr,
            };
            self.table.on_asked(contact, now);
        }
        self.note_asked(asked.addr.ip(), now);
        let pending = Pending {
            asked,
            cause,
            sent_at: now,
            late_at: now + (self.smoothed_rtt * 3).clamp(LATE_MIN, LATE_MAX),
            is_late: false,
        };
        self.pending.insert(transaction, pending);
        self.stats.queries_sent += 1;
        let to = asked.addr;
        fx.push(DhtEffect::Send { to, bytes });
        true
    }

    pub(super) fn ping(&mut self, asked: Next, now: Now, fx: &mut Vec<DhtEffect>) {
        let is_asked = |pending: &Pending| pending.asked.addr == asked.addr;
        if !self.pending.values().any(is_asked) {
            self.ask(asked, Cause::Check, Method::Ping, now, fx);
        }
    }

    pub(super) fn on_deadline(&mut self, wants_others: bool, now: Now, fx: &mut Vec<DhtEffect>) {
        self.wants_others = wants_others;
        let due = |pending: &Pending| now.since(pending.sent_at) >= ANSWER_TIMEOUT;
        let over: Vec<u32> = self
            .pending
            .iter()
            .filter(|(_, p)| due(p))
            .map(|(id, _)| *id)
            .collect();
        for transaction in over {
            if let Some(pending) = self.pending.remove(&transaction) {
                self.on_no_answer(pending, false, now, fx);
            }
        }
        let mut late = Vec::new();
        for pending in self.pending.values_mut() {
            if !pending.is_late && pending.late_at <= now {
                pending.is_late = true;
                late.push(*pending);
            }
        }
        for pending in late {
            self.delay_lookup(pending, now, fx);
        }
        if self.tick_at <= now {
            self.tick_at = now + TICK;
            self.tick(now, fx);
        }
        self.run_searches(now, fx);
    }

    fn tick(&mut self, now: Now, fx: &mut Vec<DhtEffect>) {
        self.store.expire(now);
        self.judge_reach(now);
        if let Some(contact) = self.table.next_questionable(now) {
            let asked = Next {
                addr: contact.addr,
                id: Some(contact.id),
            };
            self.ping(asked, now, fx);
        }
        if let Some(index) = self.table.next_stale_bucket(now) {
            let target = self.id_in_bucket(index);
            self.refresh(target, now, fx);
        }
    }

    /// An id that has exactly so many leading bits in common with ours.
    fn id_in_bucket(&mut self, index: usize) -> NodeId {
        let mut bytes = *identity::make(None, &mut self.rng).as_bytes();
        let ours = *self.table.id().as_bytes();
        for bit in 0..=index.min(NodeId::BITS - 1) {
            let mask = 0x80 >> (bit % 8);
            let same = ours[bit / 8] & mask;
            let wanted = if bit == index { same ^ mask } else { same };
            bytes[bit / 8] = bytes[bit / 8] & !mask | wanted;
        }
        NodeId::new(bytes)
    }

    pub(super) fn next_deadline(&self) -> Option<Now> {
        if !self.is_started {
            return None;
        }
        let pending = self.pending.values().map(|pending| match pending.is_late {
            true => pending.sent_at + ANSWER_TIMEOUT,
            false => pending.late_at,
        });
        pending
            .chain([self.tick_at])
            .chain(self.next_search())
            .min()
    }

    fn learn_rtt(&mut self, rtt: Duration) {
        self.smoothed_rtt = (self.smoothed_rtt * 7 + rtt.min(ANSWER_TIMEOUT)) / 8;
    }

    /// The address reads what we send it.
    pub(super) fn prove(&mut self, ip: IpAddr, now: Now) {
        if self.proven.len() >= PROVEN_MAX {
            self.proven.retain(|_, at| now.since(*at) < PROVEN_FOR);
        }
        if self.proven.len() < PROVEN_MAX {
            self.proven.insert(one_address(ip), now);
        }
    }

    /// Whether an answer to it may be as long as it likes.
    pub(super) fn is_proven(&self, ip: IpAddr, now: Now) -> bool {
        let proven = self.proven.get(&one_address(ip));
        proven.is_some_and(|at| now.since(*at) < PROVEN_FOR)
    }

    fn note_asked(&mut self, ip: IpAddr, now: Now) {
        if self.asked.len() >= ASKED_MAX {
            self.asked.retain(|_, at| now.since(*at) < READ_ONLY_AFTER);
        }
        if self.asked.len() >= ASKED_MAX {
            self.asked.clear();
        }
        self.asked.insert(one_address(ip), now);
    }

    /// Somebody asked us something: are we reachable for those whom we did not ask before?
    fn on_unasked(&mut self, ip: IpAddr) {
        if Scope::of(ip) == Scope::Public && !self.asked.contains_key(&one_address(ip)) {
            self.reach = Reach::Reached;
        }
    }

    fn judge_reach(&mut self, now: Now) {
        self.reach = match self.reach {
            Reach::Waiting(since) if now.since(since) >= READ_ONLY_AFTER => Reach::ReadOnly(now),
            Reach::ReadOnly(since) if now.since(since) >= READ_ONLY_FOR => Reach::Waiting(now),
            other => other,
        };
    }

    /// A node says where it sees us. Another address means another id (BEP 42).
    fn note_external(
        &mut self,
        voter: IpAddr,
        external: Option<SocketAddr>,
        now: Now,
        fx: &mut Vec<DhtEffect>,
    ) {
        let Some(external) = external.filter(|addr| addr.is_ipv4() == self.is_v4()) else {
            return;
        };
        self.votes.on_vote(voter, external.ip());
        let Some(ip) = self.votes.external() else {
            return;
        };
        let is_too_soon = self
            .id_since
            .is_some_and(|since| now.since(since) < NEW_ID_MIN);
        if identity::fits(&self.table.id(), ip) || is_too_soon {
            return;
        }
        self.id_since = Some(now);
        let id = identity::make(Some(ip), &mut self.rng);
        self.table.rebuild(id, now);
        self.refresh(id, now, fx);
    }

    pub(super) fn save(&self, saved: &mut Saved) {
        saved.external.extend(self.votes.external());
        let mut nodes: Vec<_> = self
            .table
            .nodes()
            .filter(|node| node.failures == 0)
            .collect();
        nodes.sort_by_key(|node| std::cmp::Reverse(node.heard_at));
        let known = nodes.into_iter().map(|node| node.contact);
        let hints = self.hints.iter().map(|(addr, id)| Contact {
            id: *id,
            addr: *addr,
        });
        let seen: BTreeSet<SocketAddr> = self.table.nodes().map(|node| node.contact.addr).collect();
        let hints = hints.filter(|hint| !seen.contains(&hint.addr));
        saved.contacts.extend(known.chain(hints).take(HINTS_MAX));
    }

    pub(super) fn count(&self, stats: &mut DhtStats) {
        let ours = &self.stats;
        let (torrents, peers) = self.store.counts();
        let (searches, lookups) = self.searches.counts();
        match self.family {
            Family::V4 => {
                stats.nodes_v4 = self.table.len();
                stats.external_v4 = self.votes.external();
            }
            Family::V6 => {
                stats.nodes_v6 = self.table.len();
                stats.external_v6 = self.votes.external();
            }
        }
        stats.searches = stats.searches.max(searches);
        stats.lookups += lookups;
        stats.searched += ours.searched;
        stats.peers_found += ours.peers_found;
        stats.queries_sent += ours.queries_sent;
        stats.answers_heard += ours.answers_heard;
        stats.queries_heard += ours.queries_heard;
        stats.answers_sent += ours.answers_sent;
        stats.queries_dropped += ours.queries_dropped;
        stats.stored_torrents += torrents;
        stats.stored_peers += peers;
        stats.is_read_only |= self.is_read_only();
    }

    pub(super) fn check(&self) {
        self.table.check();
        self.store.check();
        self.limits.check();
        self.searches.check();
        self.votes.check();
        assert!(self.pending.len() <= PENDING_MAX);
        assert!(self.doors.len() <= DOORS_MAX && self.hints.len() <= HINTS_MAX);
        assert!(self.proven.len() <= PROVEN_MAX && self.asked.len() <= ASKED_MAX);
    }

    /// Whether a told node may be asked: possible, of this family, not us, and named by somebody who may.
    pub(super) fn is_possible(&self, teller: IpAddr, told: &Contact) -> bool {
        told.addr.is_ipv4() == self.is_v4()
            && told.id != self.table.id()
            && may_tell(teller, told.addr.ip())
            && self.votes.external() != Some(told.addr.ip())
    }

    /// Emits peers that may be dialed.
    pub(super) fn tell_peers(
        &mut self,
        info_hash: InfoHash,
        addrs: Vec<SocketAddr>,
        fx: &mut Vec<DhtEffect>,
    ) {
        if !addrs.is_empty() {
            self.stats.peers_found += addrs.len() as u64;
            fx.push(DhtEffect::Peers { info_hash, addrs });
        }
    }
}

/// Sources come back with a scope or flow label that was not asked for.
fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.ip() == b.ip()
}
