//! One direction of a session's bandwidth as a tree: who may move bytes next, under limits that overlap and with parts that
//! are guaranteed. Layer 2, pure.
//!
//! Clients (connections) ask within torrents, torrents within places. A place is named by the rules that count for it: each
//! rule may be a limit, kept in a `Bucket` that all its places draw from, and a share. From the top:
//!
//! ```text
//! top ─┬─ session (its limit) ─┬─ share of a rule ─ … ─┬─ group of one place ─ torrent ─ client
//!      │                       └─ rest ────────────────┘   (limits of its rules)  (its limit)
//!      └─ free: torrents above the session's limit, with rules of their own
//! ```
//!
//! A rule that has a limit and no share, with shares below it, is a *scope*: a node in the rest, with shares and a rest of its own,
//! so that its shares are parts of its limit. It stands for its torrents there, and weighs as much as they do together.
//!
//! Whose turn it is says virtual time (start-time fair queueing): each child bears a tag that grows by what it moved over its
//! weight, and the smallest tag among those that no limit holds back goes next. What one does not use others get at once,
//! in proportion. A group has no time of its own: its torrents compete with all of the share as if they stood in it. A node
//! that waits for a limit rests until the moment it can go on, so nobody else is looked at for it.
//!
//! Moves no bytes and keeps no clock.

mod bucket;
mod node;
mod places;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bucket::Bucket;
use node::{Kind, Node, State};

use crate::base::{BLOCK_BYTES, Key, Now, Slots};

/// Parts that a share is counted in.
pub const SHARE_WHOLE: u16 = 10_000;
/// What is left to all without a share when shares take everything.
const REST_MIN: u16 = 100;
/// The longest turn: more would make others wait, and costs are spread well enough.
const TURN_BYTES_MAX: u64 = 256 * 1024;
/// Turns a second of one limit when one client asks: often enough to be smooth, rare enough to be on time.
const TURNS_PER_S: u64 = 20;
/// Who comes back late keeps a claim to so much of a second: a client does not ask while it moves what it was granted.
const LAG_PER_S: u64 = 8;
/// But at least to this.
const LAG_BYTES_MIN: u64 = 64 * 1024;
/// Units of virtual time a byte at weight 1.
const UNIT: u128 = 1 << 16;
/// A moment that does not come by itself.
const NEVER: Now = Now::from_micros(u64::MAX);
/// A wake-up earlier than this costs more than the delay it saves.
const WAKE_MIN: Duration = Duration::from_millis(1);

/// How a torrent stands to those that wait beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Gets half of what a usual one gets.
    Low,
    #[default]
    Normal,
    /// Gets twice of what a usual one gets.
    High,
}

impl Priority {
    /// From what control protocols say: below, at or above 0.
    pub const fn from_number(number: i8) -> Priority {
        match number {
            ..0 => Priority::Low,
            0 => Priority::Normal,
            1.. => Priority::High,
        }
    }

    const fn weight(self) -> u16 {
        match self {
            Priority::Low => 1,
            Priority::Normal => 2,
            Priority::High => 4,
        }
    }
}

/// Names a rule, for as long as any place may name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

/// What one rule says of this direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// All its torrents together, in bytes a second.
    pub cap: Option<u64>,
    /// Its guaranteed part of what the rule with a share before it gets, or the session, in [`SHARE_WHOLE`]ths.
    pub share: Option<u16>,
}

/// Where a torrent stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The rules that count for it, outermost first; those that are not known are passed over.
    pub rules: Vec<RuleId>,
    /// The session's limit does not count for it.
    pub is_free: bool,
}

/// The answer to [`Bandwidth::request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Go ahead.
    Now,
    /// [`Bandwidth::poll`] will name this client.
    Wait,
}

#[derive(Clone, Debug)]
struct Torrent {
    node: Key,
    own: Key,
    place: Place,
    clients: BTreeSet<u64>,
}

/// The limits of one direction of a session.
#[derive(Clone, Debug)]
pub struct Bandwidth {
    nodes: Slots<Node>,
    buckets: Slots<Bucket>,
    top: Key,
    session: Key,
    free: Key,
    session_bucket: Key,
    rules: BTreeMap<RuleId, (Rule, Key)>,
    /// Nodes between, by parent: the share of a rule, or the rest.
    shares: BTreeMap<(Key, Option<RuleId>), Key>,
    /// By place, as far as its rules are known.
    groups: BTreeMap<Place, Key>,
    torrents: BTreeMap<u64, Torrent>,
    /// Rules that shares are parts of, though they have none themselves.
    scopes: BTreeSet<RuleId>,
    clients: BTreeMap<u64, Key>,
    granted: Vec<(u64, u64)>,
    next_at: Now,
    pumped_at: Now,
}

impl Bandwidth {
    /// Without torrents; `None` is no limit of the session, 0 lets nothing through.
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        let (mut nodes, mut buckets) = (Slots::new(), Slots::new());
        let session_bucket = buckets.insert(Bucket::new(bytes_per_s));
        let top = nodes.insert(Node::new(Kind::Inner, None, 1));
        let mut below = |bucket: Option<Key>| {
            let mut node = Node::new(Kind::Inner, Some(top), 1);
            node.buckets.extend(bucket);
            nodes.insert(node)
        };
        let (session, free) = (below(Some(session_bucket)), below(None));
        Bandwidth {
            nodes,
            buckets,
            top,
            session,
            free,
            session_bucket,
            rules: BTreeMap::new(),
            shares: BTreeMap::new(),
            groups: BTreeMap::new(),
            torrents: BTreeMap::new(),
            scopes: BTreeSet::new(),
            clients: BTreeMap::new(),
            granted: Vec::new(),
            next_at: NEVER,
            pumped_at: Now::ZERO,
        }
    }

    /// The session's limit now in force.
    pub fn session_rate(&self) -> Option<u64> {
        self.buckets.get(self.session_bucket).and_then(Bucket::rate)
    }

    /// Changes the session's limit, for those who wait too ([`Bandwidth::poll`] is then due).
    pub fn set_session_rate(&mut self, bytes_per_s: Option<u64>, now: Now) {
        self.set_rate(self.session_bucket, bytes_per_s, now);
    }

    fn set_rate(&mut self, bucket: Key, bytes_per_s: Option<u64>, now: Now) {
        if let Some(bucket) = self.buckets.get_mut(bucket)
            && bucket.set_rate(bytes_per_s, now)
        {
            self.next_at = now;
            self.wake_all();
        }
    }

    /// Puts other rules in force. Torrents keep their places; what of them is known now counts.
    pub fn set_rules(&mut self, rules: &BTreeMap<RuleId, Rule>, now: Now) {
        let gone = self.rules.keys().filter(|id| !rules.contains_key(id));
        for id in gone.copied().collect::<Vec<_>>() {
            if let Some((_, bucket)) = self.rules.remove(&id) {
                self.buckets.remove(bucket);
            }
        }
        for (id, rule) in rules {
            let bucket = match self.rules.get(id) {
                Some((_, bucket)) => *bucket,
                None => self.buckets.insert(Bucket::new(None)),
            };
            self.set_rate(bucket, rule.cap, now);
            self.rules.insert(*id, (*rule, bucket));
        }
        self.scopes.clear();
        self.enter_anew();
        self.next_at = now;
    }

    /// Takes a torrent in, or gives it another place, limit and priority.
    pub fn set_torrent(
        &mut self,
        number: u64,
        place: Place,
        bytes_per_s: Option<u64>,
        priority: Priority,
        now: Now,
    ) {
        if let Some(torrent) = self.torrents.get_mut(&number) {
            let (own, node) = (torrent.own, torrent.node);
            let is_other = torrent.place != place;
            if is_other {
                self.leave(number);
            }
            if let Some(torrent) = self.torrents.get_mut(&number) {
                torrent.place = place;
            }
            self.weigh_torrent(node, priority.weight());
            if is_other {
                self.enter_as_scopes_allow(number);
            }
            self.set_rate(own, bytes_per_s, now);
            self.next_at = now;
            return;
        }
        let own = self.buckets.insert(Bucket::new(bytes_per_s));
        let mut node = Node::new(Kind::Inner, None, priority.weight());
        node.buckets.push(own);
        let node = self.nodes.insert(node);
        let torrent = Torrent {
            node,
            own,
            place,
            clients: BTreeSet::new(),
        };
        self.torrents.insert(number, torrent);
        self.enter_as_scopes_allow(number);
    }

    /// The torrent and its clients are gone.
    pub fn remove_torrent(&mut self, number: u64) {
        let Some(torrent) = self.torrents.get(&number) else {
            return;
        };
        for client in torrent.clients.clone() {
            self.forget(client);
        }
        self.leave(number);
        if let Some(torrent) = self.torrents.remove(&number) {
            self.nodes.remove(torrent.node);
            self.buckets.remove(torrent.own);
        }
    }

    /// The lowest limit that counts for a torrent, in bytes a second.
    pub fn rate(&self, torrent: u64) -> Option<u64> {
        let node = self.torrents.get(&torrent)?.node;
        self.limits(node).filter_map(Bucket::rate).min()
    }

    /// What a client of that torrent had best ask for at a time: so that limits are kept smoothly and everybody gets its
    /// part though it asks only that often, by whole blocks. `None` when nothing limits it.
    pub fn turn_bytes(&self, torrent: u64) -> Option<u64> {
        let node = self.torrents.get(&torrent)?.node;
        let own = self.node(node).waiting;
        let (mut least, mut waiting) = (None::<u64>, own);
        // The parts of all shares around it, of the whole.
        let (mut part, mut whole) = (1_u128, 1_u128);
        let mut is_shared = false;
        let mut rates = Vec::new();
        for key in self.upwards(node) {
            let above = self.node(key);
            if !is_shared {
                waiting = above.waiting;
            }
            if above.is_share {
                part *= u128::from(above.weight);
                whole *= u128::from(SHARE_WHOLE);
                is_shared = true;
            }
            let buckets = above.buckets.iter();
            let limits = buckets.filter_map(|bucket| self.buckets.get(*bucket)?.rate());
            for rate in limits {
                match key == node {
                    true => least = Some(rate / u64::from(own).max(1)),
                    false => rates.push((rate, waiting)),
                }
            }
        }
        for (rate, waiting) in rates {
            let of_share = u128::from(rate) * part / whole / u128::from(waiting.max(1));
            let of_share = u64::try_from(of_share).unwrap_or(u64::MAX);
            least = Some(least.map_or(of_share, |least| least.min(of_share)));
        }
        let block = u64::from(BLOCK_BYTES);
        let turn = (least? / TURNS_PER_S).clamp(block, TURN_BYTES_MAX);
        Some(turn / block * block)
    }

    /// Asks to move `bytes`. After [`Grant::Wait`] the client waits for [`Bandwidth::poll`]; asking again adds to it.
    pub fn request(&mut self, torrent: u64, client: u64, bytes: u64, now: Now) -> Grant {
        let Some(node) = self.torrents.get(&torrent).map(|torrent| torrent.node) else {
            return Grant::Now;
        };
        let rate = self.rate(torrent);
        let is_waiting = |key: &Key| self.node(*key).wanted_bytes() > 0;
        let waits = self.clients.get(&client).is_some_and(is_waiting);
        if rate.is_none() && !waits {
            return Grant::Now;
        }
        let key = match self.clients.get(&client) {
            Some(key) => *key,
            None => self.add_client(torrent, client, node),
        };
        if !waits {
            self.count_waiting(node, 1);
        }
        if let Kind::Client { wanted_bytes, .. } = &mut self.node_mut(key).kind {
            *wanted_bytes = wanted_bytes.saturating_add(bytes);
        }
        let lag = (rate.unwrap_or(0) / LAG_PER_S).max(LAG_BYTES_MIN);
        self.wake(key, lag);
        self.pump(now);
        let is_it = |granted: &(u64, u64)| granted.0 == client;
        match self.granted.iter().position(is_it) {
            Some(at) => {
                self.granted.swap_remove(at);
                Grant::Now
            }
            None => Grant::Wait,
        }
    }

    /// The clients that may go ahead now, each with all the bytes it asked for.
    pub fn poll(&mut self, now: Now) -> Vec<(u64, u64)> {
        self.pump(now);
        std::mem::take(&mut self.granted)
    }

    /// True when [`Bandwidth::poll`] has somebody to name.
    pub const fn has_granted(&self) -> bool {
        !self.granted.is_empty()
    }

    /// When [`Bandwidth::poll`] is worth calling; `None` when nobody waits for time to pass.
    pub fn next_deadline(&self) -> Option<Now> {
        match self.granted.is_empty() {
            false => Some(Now::ZERO),
            true if self.next_at == NEVER => None,
            true if self.next_at <= self.pumped_at => Some(self.next_at),
            true => Some(self.next_at.max(self.pumped_at + WAKE_MIN)),
        }
    }

    /// The client is gone.
    pub fn forget(&mut self, client: u64) {
        self.granted.retain(|granted| granted.0 != client);
        let Some(key) = self.clients.remove(&client) else {
            return;
        };
        let node = self.node(key);
        let (Kind::Client { torrent, .. }, Some(parent)) = (node.kind, node.parent) else {
            return;
        };
        if node.wanted_bytes() > 0 {
            self.count_waiting(parent, -1);
        }
        if let Some(torrent) = self.torrents.get_mut(&torrent) {
            torrent.clients.remove(&client);
        }
        self.take_out(key);
        self.nodes.remove(key);
    }

    /// Number of clients that wait.
    pub fn waiting_count(&self) -> usize {
        self.node(self.top).waiting as usize
    }

    /// The invariants of the tree.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check(&self) {
        for (key, node) in self.nodes.iter() {
            for (tag, child) in &node.active {
                assert_eq!(self.node(*child).state, State::Active(*tag));
                assert_eq!(self.node(*child).parent, Some(key));
            }
            for (at, child) in &node.resting {
                assert_eq!(self.node(*child).state, State::Resting(*at));
                assert_eq!(self.node(*child).parent, Some(key));
            }
            if let Kind::Client { wanted_bytes, .. } = node.kind {
                assert_eq!(wanted_bytes == 0, node.state == State::Idle);
            } else if key != self.top {
                let is_idle = node.active.is_empty() && node.resting.is_empty();
                assert_eq!(is_idle, node.state == State::Idle, "{node:?}");
            }
        }
    }

    fn node(&self, key: Key) -> &Node {
        self.nodes
            .get(key)
            .expect("nodes are named by who holds them")
    }

    fn node_mut(&mut self, key: Key) -> &mut Node {
        let node = self.nodes.get_mut(key);
        node.expect("nodes are named by who holds them")
    }

    /// The node and those above it, from below.
    fn upwards(&self, from: Key) -> impl Iterator<Item = Key> {
        std::iter::successors(Some(from), |key| self.node(*key).parent)
    }

    fn limits(&self, node: Key) -> impl Iterator<Item = &Bucket> {
        let buckets = self.upwards(node).flat_map(|key| &self.node(key).buckets);
        buckets.filter_map(|bucket| self.buckets.get(*bucket))
    }

    /// Counts clients of a torrent, in its node and all above it.
    fn count_waiting(&mut self, torrent: Key, change: i32) {
        let before = self.node(torrent).waiting;
        let after = before.saturating_add_signed(change);
        let weight = i32::from(self.node(torrent).weight);
        let weight = (i32::from(after > 0) - i32::from(before > 0)) * weight;
        self.count(torrent, change, weight);
    }

    /// Adds clients that wait, and weights of torrents that have some, to a node and all above it.
    fn count(&mut self, from: Key, clients: i32, weight: i32) {
        for key in self.upwards(from).collect::<Vec<_>>() {
            let node = self.node_mut(key);
            node.waiting = node.waiting.saturating_add_signed(clients);
            node.waiting_weight = node.waiting_weight.saturating_add_signed(weight);
        }
    }

    fn weigh_torrent(&mut self, torrent: Key, weight: u16) {
        let before = self.node(torrent).weight;
        if self.node(torrent).waiting > 0 {
            self.count(torrent, 0, i32::from(weight) - i32::from(before));
        }
        self.node_mut(torrent).weight = weight;
    }

    fn add_client(&mut self, number: u64, client: u64, parent: Key) -> Key {
        let kind = Kind::Client {
            number: client,
            torrent: number,
            wanted_bytes: 0,
        };
        let mut node = Node::new(kind, Some(parent), 1);
        node.tag = self.node(parent).time;
        let key = self.nodes.insert(node);
        self.node_mut(parent).children += 1;
        self.clients.insert(client, key);
        if let Some(torrent) = self.torrents.get_mut(&number) {
            torrent.clients.insert(client);
        }
        key
    }

    /// Who keeps the virtual time of a node's children.
    fn keeper(&self, key: Key) -> Key {
        match self.node(key).kind {
            Kind::Group => self.node(key).parent.unwrap_or(self.top),
            _ => key,
        }
    }

    /// Somebody in that node wants something: it and all above it take part.
    fn wake(&mut self, key: Key, lag_bytes: u64) {
        for key in self.upwards(key).collect::<Vec<_>>() {
            self.settle(key, Some(lag_bytes));
        }
    }

    /// Limits have changed: all that rest look again.
    fn wake_all(&mut self) {
        let resting: Vec<Key> = self
            .nodes
            .iter()
            .filter(|(_, node)| matches!(node.state, State::Resting(_)))
            .map(|(key, _)| key)
            .collect();
        for key in resting {
            let state = self.node(key).state;
            if let (State::Resting(_), Some(parent)) = (state, self.node(key).parent) {
                self.node_mut(parent).unlist(key, state);
                let again = State::Resting(Now::ZERO);
                self.node_mut(key).state = again;
                self.node_mut(parent).resting.insert((Now::ZERO, key));
            }
        }
    }

    /// Puts a node where it belongs in its parent by what is in it. One that comes to take part may be behind by `lag_bytes`.
    fn settle(&mut self, key: Key, lag_bytes: Option<u64>) {
        let node = self.node(key);
        let Some(parent) = node.parent else { return };
        let before = node.state;
        let is_active = node.wanted_bytes() > 0 || !node.active.is_empty();
        let tag = match node.kind {
            Kind::Group => node.active.first().map_or(0, |first| first.0),
            _ => match before {
                State::Active(_) => node.tag,
                _ => {
                    let lag = u128::from(lag_bytes.unwrap_or(LAG_BYTES_MIN)) * UNIT;
                    let time = self.node(self.keeper(parent)).time;
                    let earliest = time.saturating_sub(lag / node.divisor());
                    node.tag.max(earliest)
                }
            },
        };
        let resting = node.resting.first().map(|first| first.0);
        let after = match (is_active, resting) {
            (true, _) => State::Active(tag),
            (false, Some(at)) => State::Resting(at),
            (false, None) => State::Idle,
        };
        if before == after {
            return;
        }
        let node = self.node_mut(key);
        node.state = after;
        if is_active {
            node.tag = tag;
        }
        let above = self.node_mut(parent);
        above.unlist(key, before);
        above.list(key, after);
    }

    /// Grants whatever limits allow now.
    fn pump(&mut self, now: Now) {
        loop {
            match self.find(self.top, now) {
                Ok(client) => self.grant(client, now),
                Err(at) => {
                    (self.next_at, self.pumped_at) = (at, now);
                    break;
                }
            }
        }
        #[cfg(debug_assertions)]
        self.check();
    }

    /// The client whose turn it is, or when there may be one.
    fn find(&mut self, key: Key, now: Now) -> Result<Key, Now> {
        for at in 0..self.node(key).buckets.len() {
            let bucket = self.node(key).buckets.get(at).copied();
            let bucket = bucket.and_then(|bucket| self.buckets.get_mut(bucket));
            if let Some(until) = bucket.and_then(|bucket| bucket.blocked_until(now)) {
                return Err(until);
            }
        }
        if self.node(key).wanted_bytes() > 0 {
            return Ok(key);
        }
        while let Some((at, child)) = self.node(key).resting.first().copied()
            && at <= now
        {
            self.node_mut(key).resting.pop_first();
            self.node_mut(child).state = State::Idle;
            self.rouse(child);
        }
        while let Some((tag, child)) = self.node(key).active.first().copied() {
            match self.find(child, now) {
                Ok(client) => return Ok(client),
                Err(at) => {
                    let rests = State::Resting(at);
                    self.node_mut(child).state = rests;
                    let node = self.node_mut(key);
                    node.active.remove(&(tag, child));
                    node.list(child, rests);
                }
            }
        }
        Err(self
            .node(key)
            .resting
            .first()
            .map_or(NEVER, |first| first.0))
    }

    /// The time of a node that rested has come: so it has for what rests in it.
    fn rouse(&mut self, key: Key) {
        let Some(parent) = self.node(key).parent else {
            return;
        };
        let node = self.node(key);
        let is_held = node.wanted_bytes() == 0 && node.active.is_empty();
        let tag = match node.kind {
            Kind::Group => node
                .active
                .first()
                .or(None)
                .map_or(node.tag, |first| first.0),
            _ => node.tag,
        };
        debug_assert!(!is_held || !node.resting.is_empty());
        let lag = u128::from(LAG_BYTES_MIN) * UNIT / node.divisor();
        let time = self.node(self.keeper(parent)).time;
        let tag = tag.max(time.saturating_sub(lag));
        let node = self.node_mut(key);
        node.tag = tag;
        node.state = State::Active(tag);
        self.node_mut(parent).list(key, State::Active(tag));
    }

    /// Charges a client's bytes to all it stands in, and names it.
    fn grant(&mut self, client: Key, now: Now) {
        let Kind::Client {
            number,
            wanted_bytes: bytes,
            ..
        } = self.node(client).kind
        else {
            return;
        };
        if let Kind::Client { wanted_bytes, .. } = &mut self.node_mut(client).kind {
            *wanted_bytes = 0;
        }
        self.granted.push((number, bytes));
        let torrent = self.node(client).parent;
        let path: Vec<Key> = self.upwards(client).collect();
        for key in path {
            let node = self.node(key);
            let (state, parent) = (node.state, node.parent);
            if let (State::Active(tag), Some(parent), false) =
                (state, parent, node.kind == Kind::Group)
            {
                let cost = u128::from(bytes) * UNIT / node.divisor();
                self.node_mut(key).tag = tag + cost;
                let keeper = self.keeper(parent);
                let keeper = self.node_mut(keeper);
                keeper.time = keeper.time.max(tag);
            }
            for at in 0..self.node(key).buckets.len() {
                let bucket = self.node(key).buckets.get(at).copied();
                if let Some(bucket) = bucket.and_then(|bucket| self.buckets.get_mut(bucket)) {
                    bucket.take(bytes, now);
                }
            }
            self.settle(key, None);
        }
        if let Some(torrent) = torrent {
            self.count_waiting(torrent, -1);
        }
    }
}
