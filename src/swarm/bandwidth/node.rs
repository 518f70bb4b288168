//! One node of the tree. Layer 2, pure.

use std::collections::BTreeSet;

use crate::base::{Key, Now};

/// What a node is to its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Keeps virtual time for its children.
    Inner,
    /// Stands for its children in its parent.
    Group,
    Client {
        number: u64,
        torrent: u64,
        wanted_bytes: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody in it waits.
    Idle,
    /// It stands among the parent's active ones, under this tag.
    Active(u128),
    /// A limit holds it, or all in it, back until then.
    Resting(Now),
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) parent: Option<Key>,
    pub(super) weight: u16,
    /// Limits that all in it keep to.
    pub(super) buckets: Vec<Key>,
    pub(super) state: State,
    /// Virtual time of what it was served, in its parent.
    pub(super) tag: u128,
    /// Virtual time of its children.
    pub(super) time: u128,
    pub(super) active: BTreeSet<(u128, Key)>,
    pub(super) resting: BTreeSet<(Now, Key)>,
    pub(super) children: u32,
    /// Clients in it that wait.
    pub(super) waiting: u32,
    /// Its weight is a part of the parent's whole.
    pub(super) is_share: bool,
    /// It weighs as much as its torrents that wait, together.
    pub(super) is_scope: bool,
    /// Weights of torrents in it that have clients that wait.
    pub(super) waiting_weight: u32,
}

impl Node {
    pub(super) fn new(kind: Kind, parent: Option<Key>, weight: u16) -> Node {
        Node {
            kind,
            parent,
            weight,
            buckets: Vec::new(),
            state: State::Idle,
            tag: 0,
            time: 0,
            active: BTreeSet::new(),
            resting: BTreeSet::new(),
            children: 0,
            waiting: 0,
            is_share: false,
            is_scope: false,
            waiting_weight: 0,
        }
    }

    pub(super) const fn wanted_bytes(&self) -> u64 {
        match self.kind {
            Kind::Client { wanted_bytes, .. } => wanted_bytes,
            _ => 0,
        }
    }

    /// What its bytes are divided by in virtual time.
    pub(super) fn divisor(&self) -> u128 {
        match self.is_scope {
            true => u128::from(self.waiting_weight.max(1)),
            false => u128::from(self.weight.max(1)),
        }
    }

    pub(super) fn list(&mut self, child: Key, state: State) {
        match state {
            State::Idle => {}
            State::Active(tag) => drop(self.active.insert((tag, child))),
            State::Resting(at) => drop(self.resting.insert((at, child))),
        }
    }

    pub(super) fn unlist(&mut self, child: Key, state: State) {
        match state {
            State::Idle => {}
            State::Active(tag) => drop(self.active.remove(&(tag, child))),
            State::Resting(at) => drop(self.resting.remove(&(at, child))),
        }
    }
}
