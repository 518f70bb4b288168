//! Where torrents stand in the tree: nodes between them and the top come and go with them. Layer 2, pure.

use std::collections::BTreeSet;

use super::node::{Kind, Node, State};
use super::{Bandwidth, Place, REST_MIN, Rule, RuleId, SHARE_WHOLE};
use crate::base::Key;

impl Bandwidth {
    /// Takes a torrent's node out of the tree, and what stood for it alone.
    pub(super) fn leave(&mut self, number: u64) {
        let Some(node) = self.torrents.get(&number).map(|torrent| torrent.node) else {
            return;
        };
        if let Some(parent) = self.node(node).parent {
            let (waiting, weight) = self.weighed(node);
            self.count(parent, -waiting, -weight);
        }
        self.take_out(node);
    }

    /// Puts a torrent's node where its place says.
    pub(super) fn enter(&mut self, number: u64) {
        let Some(torrent) = self.torrents.get(&number) else {
            return;
        };
        let (node, place) = (torrent.node, torrent.place.clone());
        let group = self.group(place);
        let time = self.node(self.keeper(group)).time;
        let entering = self.node_mut(node);
        (entering.parent, entering.tag) = (Some(group), time);
        let (waiting, weight) = self.weighed(node);
        self.node_mut(group).children += 1;
        self.count(group, waiting, weight);
        for key in self.upwards(node).collect::<Vec<_>>() {
            self.settle(key, None);
        }
    }

    /// Clients of a torrent that wait, and its weight if there are any.
    fn weighed(&self, torrent: Key) -> (i32, i32) {
        let node = self.node(torrent);
        let waiting = i32::try_from(node.waiting).unwrap_or(i32::MAX);
        (
            waiting,
            if waiting > 0 {
                i32::from(node.weight)
            } else {
                0
            },
        )
    }

    /// Puts a torrent where its place says. Where that makes a rule a scope, all others are put anew.
    pub(super) fn enter_as_scopes_allow(&mut self, number: u64) {
        let torrent = self.torrents.get(&number);
        let scopes = torrent.map(|torrent| self.scopes_of(&torrent.place));
        match scopes.is_some_and(|scopes| !scopes.is_subset(&self.scopes)) {
            true => self.enter_anew(),
            false => self.enter(number),
        }
    }

    /// All nodes between are made anew: first everybody leaves, so that the old ones go.
    pub(super) fn enter_anew(&mut self) {
        let numbers: Vec<u64> = self.torrents.keys().copied().collect();
        for number in &numbers {
            self.leave(*number);
        }
        let places = self.torrents.values().map(|torrent| &torrent.place);
        let scopes: BTreeSet<RuleId> = places.flat_map(|place| self.scopes_of(place)).collect();
        self.scopes.extend(scopes);
        for number in numbers {
            self.enter(number);
        }
    }

    /// Rules of a place that have a limit and no share, with one that has a share behind them.
    fn scopes_of(&self, place: &Place) -> BTreeSet<RuleId> {
        let of = |id: &RuleId| self.rules.get(id).map(|(rule, _)| *rule);
        let shared = place
            .rules
            .iter()
            .rposition(|id| of(id).is_some_and(|rule| rule.share.is_some()));
        let above = place.rules.iter().take(shared.unwrap_or(0));
        let is_limit = |rule: Rule| rule.cap.is_some() && rule.share.is_none();
        above
            .filter(|id| of(id).is_some_and(is_limit))
            .copied()
            .collect()
    }

    /// The node of a place, made if need be.
    fn group(&mut self, mut place: Place) -> Key {
        place.rules.retain(|id| self.rules.contains_key(id));
        if let Some(group) = self.groups.get(&place) {
            return *group;
        }
        let mut parent = if place.is_free {
            self.free
        } else {
            self.session
        };
        let mut buckets = Vec::new();
        for id in &place.rules {
            if let Some((rule, bucket)) = self.rules.get(id) {
                let (share, bucket) = (rule.share, *bucket);
                if self.scopes.contains(id) {
                    parent = self.scope(parent, *id, bucket);
                    continue;
                }
                buckets.push(bucket);
                if let Some(share) = share {
                    parent = self.between(parent, Some(*id), share);
                }
            }
        }
        // Its weight is found when it competes: the shares beside it may change.
        let rest = self.between(parent, None, SHARE_WHOLE);
        let mut node = Node::new(Kind::Group, Some(rest), 1);
        node.buckets = buckets;
        let group = self.nodes.insert(node);
        self.node_mut(rest).children += 1;
        self.groups.insert(place, group);
        group
    }

    fn between(&mut self, parent: Key, rule: Option<RuleId>, weight: u16) -> Key {
        if let Some(key) = self.shares.get(&(parent, rule)) {
            return *key;
        }
        let mut node = Node::new(Kind::Inner, Some(parent), weight.max(1));
        node.tag = self.node(parent).time;
        node.is_share = true;
        let key = self.nodes.insert(node);
        self.node_mut(parent).children += 1;
        self.shares.insert((parent, rule), key);
        self.weigh_rest(parent);
        key
    }

    /// The node of a scope, among those that have no share of that parent.
    fn scope(&mut self, parent: Key, rule: RuleId, bucket: Key) -> Key {
        let rest = self.between(parent, None, SHARE_WHOLE);
        let key = self.between(rest, Some(rule), 1);
        let node = self.node_mut(key);
        if !node.is_scope {
            (node.is_scope, node.is_share) = (true, false);
            node.buckets.push(bucket);
        }
        key
    }

    /// What shares leave is the weight of all without one.
    fn weigh_rest(&mut self, parent: Key) {
        let Some(rest) = self.shares.get(&(parent, None)).copied() else {
            return;
        };
        let range = (parent, Some(RuleId(0)))..=(parent, Some(RuleId(u32::MAX)));
        let shares = self.shares.range(range);
        let taken: u32 = shares
            .map(|(_, key)| u32::from(self.node(*key).weight))
            .sum();
        let left = u32::from(SHARE_WHOLE).saturating_sub(taken);
        self.node_mut(rest).weight = u16::try_from(left).unwrap_or(0).max(REST_MIN);
    }

    /// Takes a node out of its parent, and the parent too where nothing is left in it.
    pub(super) fn take_out(&mut self, key: Key) {
        let state = std::mem::replace(&mut self.node_mut(key).state, State::Idle);
        let Some(parent) = self.node_mut(key).parent.take() else {
            return;
        };
        let above = self.node_mut(parent);
        above.unlist(key, state);
        above.children = above.children.saturating_sub(1);
        let is_between = above.children == 0 && above.kind != Kind::Inner;
        let is_share = self.shares.iter().find(|(_, node)| **node == parent);
        let share = is_share.map(|(name, _)| *name);
        let is_empty = self.node(parent).children == 0;
        if is_between || (is_empty && share.is_some()) {
            if let Some(name) = share {
                self.shares.remove(&name);
                self.weigh_rest(name.0);
            }
            self.groups.retain(|_, group| *group != parent);
            self.take_out(parent);
            self.nodes.remove(parent);
            return;
        }
        for key in self.upwards(parent).collect::<Vec<_>>() {
            self.settle(key, None);
        }
    }
}
