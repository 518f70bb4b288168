//! The routing table: nodes that answered, more of those near us (BEP 5). Layer 2, pure.
//!
//! One bucket for each number of leading bits that a node's id has in common with ours. A node gets in only once it has
//! answered from its address. Of one address there is one node, of one network a few (HOSTILE.md D7).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::identity;
use super::place::{Network, Scope, may_tell, one_address};
use crate::base::{NodeId, Now};
use crate::wire::krpc::Contact;

/// Nodes of one bucket, and of one answer (BEP 5's K).
pub const K: usize = 8;
/// The four buckets farthest from us have more nodes, so that lookups begin nearer to their end (libtorrent's idea).
const LARGE: [usize; 4] = [64, 32, 16, 16];
/// Nodes that wait for a place in a bucket.
const SPARES_MAX: usize = 8;
/// Nodes of one network in the whole table.
pub const NODES_PER_NETWORK_MAX: u32 = 2;
/// A node that was silent for this long is asked whether it is there (BEP 5).
pub const QUESTIONABLE_AFTER: Duration = Duration::from_secs(900);
/// Queries in a row without an answer that end a node's place (BEP 5).
pub const FAILURES_MAX: u8 = 2;

/// A node that has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub contact: Contact,
    /// When it last answered, or asked after it had.
    pub heard_at: Now,
    /// When it was last asked.
    pub asked_at: Now,
    /// Queries since its last answer.
    pub failures: u8,
    /// Its id belongs to its address (BEP 42).
    pub fits: bool,
}

impl Node {
    /// Whether it was heard of lately.
    pub fn is_good(&self, now: Now) -> bool {
        self.failures == 0 && now.since(self.heard_at) < QUESTIONABLE_AFTER
    }
}

#[derive(Clone, Debug, Default)]
struct Bucket {
    nodes: Vec<Node>,
    spares: Vec<Node>,
    refreshed_at: Now,
}

/// The nodes of one address family.
#[derive(Clone, Debug)]
pub struct Table {
    id: NodeId,
    buckets: Vec<Bucket>,
    /// Nodes and spares by address; loopback addresses are not counted.
    addresses: BTreeMap<IpAddr, u32>,
    networks: BTreeMap<Network, u32>,
}

const fn room(index: usize) -> usize {
    match index < LARGE.len() {
        true => LARGE[index],
        false => K,
    }
}

impl Table {
    /// An empty table around our id.
    pub fn new(id: NodeId) -> Self {
        Table {
            id,
            buckets: Vec::new(),
            addresses: BTreeMap::new(),
            networks: BTreeMap::new(),
        }
    }

    /// Our own id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Number of nodes, those that wait for a place not counted.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.nodes.len()).sum()
    }

    /// True without any node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.buckets.iter().flat_map(|bucket| bucket.nodes.iter())
    }

    /// A node has answered from its address. True when it is new in the table.
    pub fn on_answer(&mut self, contact: Contact, now: Now) -> bool {
        let index = self.id.common_bits(&contact.id);
        if index >= NodeId::BITS || self.is_claimed(contact) {
            return false;
        }
        if self.buckets.len() <= index {
            self.buckets.resize_with(index + 1, Bucket::default);
        }
        let bucket = &mut self.buckets[index];
        let known = bucket.nodes.iter_mut().chain(&mut bucket.spares);
        for node in known {
            if node.contact == contact {
                node.heard_at = now;
                node.failures = 0;
                return false;
            }
        }
        let has_other = |node: &Node| node.contact.id == contact.id;
        if bucket.nodes.iter().chain(&bucket.spares).any(has_other) {
            // The same id at another address: the first one stays until it is silent.
            return false;
        }
        let node = Node {
            contact,
            heard_at: now,
            asked_at: now,
            failures: 0,
            fits: identity::fits(&contact.id, contact.addr.ip()),
        };
        self.insert(index, node, now)
    }

    /// A node that is in the table has asked something.
    pub fn on_query(&mut self, contact: Contact, now: Now) {
        if let Some(node) = self.find(contact) {
            node.heard_at = now;
        }
    }

    /// A node is being asked something.
    pub fn on_asked(&mut self, contact: Contact, now: Now) {
        if let Some(node) = self.find(contact) {
            node.asked_at = now;
        }
    }

    /// A query of ours was not answered.
    pub fn on_silence(&mut self, contact: Contact) {
        let index = self.id.common_bits(&contact.id);
        let Some(node) = self.find(contact) else {
            return;
        };
        node.failures = node.failures.saturating_add(1);
        let failures = node.failures;
        let bucket = &mut self.buckets[index];
        let is_over = failures >= FAILURES_MAX || !bucket.spares.is_empty();
        if !is_over {
            return;
        }
        bucket.nodes.retain(|node| node.contact != contact);
        let promoted = best_spare(&bucket.spares).map(|best| bucket.spares.swap_remove(best));
        bucket.nodes.extend(promoted);
        self.uncount(contact.addr.ip());
    }

    /// Whether a node at this address with this id could get a place: worth asking whether it is there.
    pub fn wants(&self, contact: Contact, now: Now) -> bool {
        let index = self.id.common_bits(&contact.id);
        if index >= NodeId::BITS
            || self.is_claimed(contact)
            || !self.has_room_for(contact.addr.ip())
        {
            return false;
        }
        let Some(bucket) = self.buckets.get(index) else {
            return true;
        };
        let is_known = |node: &Node| node.contact.id == contact.id;
        if bucket.nodes.iter().chain(&bucket.spares).any(is_known) {
            return false;
        }
        bucket.nodes.len() < room(index)
            || bucket.spares.len() < SPARES_MAX
                && !bucket.nodes.iter().all(|node| node.is_good(now))
    }

    /// The `max` nodes nearest to the target that may be told to `asker` (`None`: us), good ones and those whose ids
    /// belong to their addresses first.
    pub fn closest(&self, target: &NodeId, asker: Option<IpAddr>, max: usize) -> Vec<Contact> {
        let told = |node: &&Node| {
            node.failures == 0 && asker.is_none_or(|asker| may_tell(asker, node.contact.addr.ip()))
        };
        let mut ranked: Vec<(bool, _, Contact)> = self
            .nodes()
            .filter(told)
            .map(|node| (!node.fits, target.distance(&node.contact.id), node.contact))
            .collect();
        ranked.sort_unstable();
        ranked
            .into_iter()
            .take(max)
            .map(|(.., contact)| contact)
            .collect()
    }

    /// A node that was silent for too long, the longest silent first; it counts as asked.
    pub fn next_questionable(&mut self, now: Now) -> Option<Contact> {
        let nodes = self
            .buckets
            .iter_mut()
            .flat_map(|bucket| bucket.nodes.iter_mut());
        let silent = nodes.filter(|node| {
            !node.is_good(now) && now.since(node.asked_at) >= Duration::from_secs(30)
        });
        let node = silent.min_by_key(|node| node.heard_at)?;
        node.asked_at = now;
        Some(node.contact)
    }

    /// The number of a bucket that was not refreshed for a quarter of an hour and is not full; it counts as refreshed.
    pub fn next_stale_bucket(&mut self, now: Now) -> Option<usize> {
        let stale = self.buckets.iter_mut().enumerate().find(|(index, bucket)| {
            bucket.nodes.len() < room(*index)
                && now.since(bucket.refreshed_at) >= QUESTIONABLE_AFTER
        });
        let (index, bucket) = stale?;
        bucket.refreshed_at = now;
        Some(index)
    }

    /// Another id of ours: the same nodes in other buckets.
    pub fn rebuild(&mut self, id: NodeId, now: Now) {
        let old = std::mem::replace(self, Table::new(id));
        let nodes = old
            .buckets
            .into_iter()
            .flat_map(|bucket| bucket.nodes.into_iter().chain(bucket.spares));
        for node in nodes {
            let index = self.id.common_bits(&node.contact.id);
            if index < NodeId::BITS && !self.is_claimed(node.contact) {
                if self.buckets.len() <= index {
                    self.buckets.resize_with(index + 1, Bucket::default);
                }
                self.insert(index, node, now);
            }
        }
    }

    fn insert(&mut self, index: usize, node: Node, now: Now) -> bool {
        let ip = node.contact.addr.ip();
        if !self.has_room_for(ip) {
            return false;
        }
        let bucket = &mut self.buckets[index];
        let is_new = if bucket.nodes.len() < room(index) {
            bucket.nodes.push(node);
            true
        } else if let Some(worst) = worst(&bucket.nodes, &node, now) {
            let gone = std::mem::replace(&mut bucket.nodes[worst], node);
            self.uncount(gone.contact.addr.ip());
            true
        } else if bucket.spares.len() < SPARES_MAX {
            bucket.spares.push(node);
            false
        } else {
            return false;
        };
        self.count(ip);
        is_new
    }

    fn find(&mut self, contact: Contact) -> Option<&mut Node> {
        let index = self.id.common_bits(&contact.id);
        let bucket = self.buckets.get_mut(index)?;
        bucket.nodes.iter_mut().find(|node| node.contact == contact)
    }

    /// Whether another id is known at this very address and port: one node does not get in under many ids.
    fn is_claimed(&self, contact: Contact) -> bool {
        let all = self
            .buckets
            .iter()
            .flat_map(|bucket| bucket.nodes.iter().chain(&bucket.spares));
        let mut same = all.filter(|node| node.contact.addr == contact.addr);
        same.any(|node| node.contact.id != contact.id)
    }

    fn has_room_for(&self, ip: IpAddr) -> bool {
        let count = |scope| match scope {
            Scope::Loopback => true,
            Scope::Local => !self.addresses.contains_key(&one_address(ip)),
            Scope::Public => {
                let of_network = self.networks.get(&Network::of(ip)).copied();
                !self.addresses.contains_key(&one_address(ip))
                    && of_network.unwrap_or(0) < NODES_PER_NETWORK_MAX
            }
        };
        count(Scope::of(ip))
    }

    fn count(&mut self, ip: IpAddr) {
        if Scope::of(ip) != Scope::Loopback {
            *self.addresses.entry(one_address(ip)).or_default() += 1;
            *self.networks.entry(Network::of(ip)).or_default() += 1;
        }
    }

    fn uncount(&mut self, ip: IpAddr) {
        if Scope::of(ip) != Scope::Loopback {
            count_down(&mut self.addresses, one_address(ip));
            count_down(&mut self.networks, Network::of(ip));
        }
    }

    /// Verifies limits and counts.
    ///
    /// # Panics
    /// When something is wrong.
    pub fn check(&self) {
        let mut counted = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            assert!(bucket.nodes.len() <= room(index) && bucket.spares.len() <= SPARES_MAX);
            for node in bucket.nodes.iter().chain(&bucket.spares) {
                assert_eq!(self.id.common_bits(&node.contact.id), index, "bucket");
                counted += u32::from(Scope::of(node.contact.addr.ip()) != Scope::Loopback);
            }
        }
        assert_eq!(self.addresses.values().sum::<u32>(), counted);
        assert_eq!(self.networks.values().sum::<u32>(), counted);
        assert!(
            self.addresses.values().all(|count| *count == 1),
            "one node an address"
        );
    }
}

fn count_down<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// Whose place the new node takes: one that failed, or one whose id does not belong to its address when the new one's does.
fn worst(nodes: &[Node], new: &Node, now: Now) -> Option<usize> {
    let failed = nodes
        .iter()
        .position(|node| node.failures > 0 && !node.is_good(now));
    let misfit = || nodes.iter().position(|node| new.fits && !node.fits);
    failed.or_else(misfit)
}

fn best_spare(spares: &[Node]) -> Option<usize> {
    let ranked = spares.iter().enumerate();
    let best = ranked.max_by_key(|(_, node)| (node.fits, node.heard_at));
    best.map(|(index, _)| index)
}

/// The address that a node of the family cannot be at: another family's.
pub fn is_family(addr: SocketAddr, is_v4: bool) -> bool {
    addr.ip().to_canonical().is_ipv4() == is_v4
}

#[cfg(test)]
mod tests;
