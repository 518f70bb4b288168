//! Where torrents stand in the tree: nodes between them and the top come and go with them. Layer 2, pure.

use super::node::{Kind, Node, State};
use super::{Bandwidth, Place, REST_MIN, RuleId, SHARE_WHOLE};
use crate::base::Key;

impl Bandwidth {
    /// Takes a torrent's node out of the tree, and what stood for it alone.
    pub(super) fn leave(&mut self, number: u64) {
        let Some(node) = self.torrents.get(&number).map(|torrent| torrent.node) else {
            return;
        };
        if let Some(parent) = self.node(node).parent {
            let waiting = i32::try_from(self.node(node).waiting).unwrap_or(i32::MAX);
            self.count_waiting(parent, -waiting);
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
        let waiting = i32::try_from(entering.waiting).unwrap_or(i32::MAX);
        self.node_mut(group).children += 1;
        self.count_waiting(group, waiting);
        for key in self.upwards(node).collect::<Vec<_>>() {
            self.settle(key, None);
        }
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
