//! One walk towards an id: ask the nearest nodes known for nearer ones until there are none (BEP 5). Layer 2, pure.
//!
//! Bounded in time, queries and candidates, whatever the others say (HOSTILE.md D5, D6). A node whose id does not belong
//! to its address is asked too, but the walk does not end with it (BEP 42).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::identity;
use super::place::{Network, Scope, one_address};
use super::table::K;
use crate::base::{Distance, InfoHash, NodeId, Now};
use crate::wire::krpc::Contact;

/// Queries of one lookup under way that are not late yet.
pub const ALPHA: usize = 4;
/// Queries of one lookup; some 30 do where nobody lies.
pub const QUERIES_MAX: u32 = 160;
/// The longest that one lookup lasts.
pub const LOOKUP_TIME_MAX: Duration = Duration::from_secs(40);
/// Nodes known to one lookup; the farthest go first.
pub const CANDIDATES_MAX: usize = 128;
/// Candidates of one network: whoever has many addresses there does not fill the list.
pub const CANDIDATES_PER_NETWORK_MAX: usize = 3;
/// Peers that one lookup reports; more than anybody connects to.
pub const PEERS_MAX: usize = 1_000;

/// What it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Nodes near the target, for the table.
    Nodes,
    /// Peers of a torrent.
    Peers(InfoHash),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    New,
    Asked,
    Late,
    Answered { token: Option<Vec<u8>> },
    Failed,
}

#[derive(Clone, Debug)]
struct Candidate {
    state: State,
    fits: bool,
}

/// Whom to ask next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    pub addr: SocketAddr,
    /// Unknown of a door.
    pub id: Option<NodeId>,
}

/// One lookup.
#[derive(Clone, Debug)]
pub struct Lookup {
    target: NodeId,
    purpose: Purpose,
    started_at: Now,
    candidates: BTreeMap<(Distance, SocketAddr), Candidate>,
    /// Addresses whose ids are unknown, the last first.
    doors: Vec<SocketAddr>,
    doors_asked: BTreeMap<SocketAddr, bool>,
    addresses: BTreeSet<IpAddr>,
    networks: BTreeMap<Network, usize>,
    queries: u32,
    peers: BTreeSet<SocketAddr>,
}

impl Lookup {
    /// A lookup that begins with these addresses of unknown ids; add nodes with [`Lookup::add`].
    pub fn new(target: NodeId, purpose: Purpose, doors: Vec<SocketAddr>, now: Now) -> Self {
        Lookup {
            target,
            purpose,
            started_at: now,
            candidates: BTreeMap::new(),
            doors,
            doors_asked: BTreeMap::new(),
            addresses: BTreeSet::new(),
            networks: BTreeMap::new(),
            queries: 0,
            peers: BTreeSet::new(),
        }
    }

    /// What is looked for.
    pub fn target(&self) -> NodeId {
        self.target
    }

    /// What for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Queries sent.
    pub fn queries(&self) -> u32 {
        self.queries
    }

    /// Different peers reported.
    pub fn peers_found(&self) -> usize {
        self.peers.len()
    }

    /// Nodes that answered.
    pub fn answered(&self) -> usize {
        let answered = |candidate: &&Candidate| matches!(candidate.state, State::Answered { .. });
        self.candidates.values().filter(answered).count()
    }

    /// Notes a node that may be asked; the caller has looked at whether its address is possible.
    pub fn add(&mut self, contact: Contact) {
        let key = (self.target.distance(&contact.id), contact.addr);
        if self.candidates.contains_key(&key) || self.doors_asked.contains_key(&contact.addr) {
            return;
        }
        let ip = contact.addr.ip();
        let scope = Scope::of(ip);
        let of_network = self.networks.get(&Network::of(ip)).copied().unwrap_or(0);
        let is_taken = scope != Scope::Loopback && self.addresses.contains(&one_address(ip));
        if is_taken || scope == Scope::Public && of_network >= CANDIDATES_PER_NETWORK_MAX {
            return;
        }
        if self.candidates.len() >= CANDIDATES_MAX && !self.make_room(&key) {
            return;
        }
        self.addresses.insert(one_address(ip));
        *self.networks.entry(Network::of(ip)).or_default() += 1;
        let candidate = Candidate {
            state: State::New,
            fits: identity::fits(&contact.id, ip),
        };
        self.candidates.insert(key, candidate);
    }

    /// Another address of unknown id to begin with.
    pub fn add_door(&mut self, addr: SocketAddr) {
        let is_known = self.doors.contains(&addr) || self.doors_asked.contains_key(&addr);
        if !is_known && !self.candidates.keys().any(|(_, known)| *known == addr) {
            self.doors.push(addr);
        }
    }

    /// Whom to ask now; it counts as asked.
    pub fn next(&mut self, now: Now) -> Option<Next> {
        if self.is_over(now) || self.in_flight() >= ALPHA {
            return None;
        }
        let key = self
            .open()
            .find(|(_, candidate)| candidate.state == State::New)
            .map(|(key, _)| *key);
        if let Some(key) = key {
            if let Some(candidate) = self.candidates.get_mut(&key) {
                candidate.state = State::Asked;
            }
            self.queries += 1;
            let id = self.target.at_distance(&key.0);
            return Some(Next {
                addr: key.1,
                id: Some(id),
            });
        }
        if self.answered() >= K {
            return None;
        }
        let addr = self.doors.pop()?;
        self.doors_asked.insert(addr, true);
        self.queries += 1;
        Some(Next { addr, id: None })
    }

    /// Something answered that was asked under this id, `None` for a door. A door becomes a candidate.
    pub fn on_answer(&mut self, asked: Next, contact: Contact, token: Option<&[u8]>) {
        if asked.id.is_none() {
            self.doors_asked.remove(&asked.addr);
            self.add(contact);
        }
        let key = (self.target.distance(&contact.id), contact.addr);
        if let Some(candidate) = self.candidates.get_mut(&key) {
            let token = token.map(<[u8]>::to_vec);
            candidate.state = State::Answered { token };
        }
    }

    /// No answer yet: somebody else is asked meanwhile.
    pub fn on_late(&mut self, asked: Next) {
        match asked.id {
            None => {
                if let Some(is_waited_for) = self.doors_asked.get_mut(&asked.addr) {
                    *is_waited_for = false;
                }
            }
            Some(id) => {
                let key = (self.target.distance(&id), asked.addr);
                if let Some(candidate) = self.candidates.get_mut(&key)
                    && candidate.state == State::Asked
                {
                    candidate.state = State::Late;
                }
            }
        }
    }

    /// No answer will come, or a wrong one did.
    pub fn on_failed(&mut self, asked: Next) {
        let Some(id) = asked.id else {
            self.doors_asked.remove(&asked.addr);
            return;
        };
        let key = (self.target.distance(&id), asked.addr);
        if let Some(candidate) = self.candidates.get_mut(&key) {
            candidate.state = State::Failed;
            // Another may really be there.
            self.forget_place(asked.addr.ip());
        }
    }

    /// Keeps those of the peers that were not reported yet.
    pub fn new_peers(&mut self, told: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
        let mut new = Vec::new();
        for addr in told {
            if self.peers.len() >= PEERS_MAX {
                break;
            }
            if self.peers.insert(addr) {
                new.push(addr);
            }
        }
        new
    }

    /// True when nothing is left to ask or to wait for.
    pub fn is_done(&self, now: Now) -> bool {
        if self.is_over(now) {
            return now.since(self.started_at) >= LOOKUP_TIME_MAX || self.waits_for() == 0;
        }
        let is_open = self.open().any(|(_, candidate)| {
            matches!(candidate.state, State::New | State::Asked | State::Late)
        });
        let is_enough = self.answered() >= K;
        !is_open && (is_enough || self.doors.is_empty() && self.doors_asked.is_empty())
    }

    /// When it ends at the latest.
    pub fn deadline(&self) -> Now {
        self.started_at + LOOKUP_TIME_MAX
    }

    /// The nodes to announce at, with the tokens they gave: the nearest, those whose ids belong to their addresses
    /// first.
    pub fn announce_at(&self) -> Vec<(Contact, Vec<u8>)> {
        let mut found: Vec<(bool, Distance, SocketAddr, &Vec<u8>)> = Vec::new();
        for ((distance, addr), candidate) in &self.candidates {
            if let State::Answered { token: Some(token) } = &candidate.state {
                found.push((!candidate.fits, *distance, *addr, token));
            }
        }
        found.sort_unstable();
        found.truncate(K);
        let contact = |distance: &Distance, addr: SocketAddr| Contact {
            id: self.target.at_distance(distance),
            addr,
        };
        found
            .into_iter()
            .map(|(_, distance, addr, token)| (contact(&distance, addr), token.clone()))
            .collect()
    }

    /// The candidates up to the eighth that answered and whose id belongs to its address.
    fn open(&self) -> impl Iterator<Item = (&(Distance, SocketAddr), &Candidate)> {
        let mut answered = 0;
        self.candidates.iter().take_while(move |(_, candidate)| {
            let is_before = answered < K;
            let counts = matches!(candidate.state, State::Answered { .. }) && candidate.fits;
            answered += usize::from(counts);
            is_before
        })
    }

    fn in_flight(&self) -> usize {
        let asked = |candidate: &&Candidate| candidate.state == State::Asked;
        let doors = self
            .doors_asked
            .values()
            .filter(|is_waited_for| **is_waited_for);
        self.candidates.values().filter(asked).count() + doors.count()
    }

    fn waits_for(&self) -> usize {
        let waits = |candidate: &&Candidate| matches!(candidate.state, State::Asked | State::Late);
        self.candidates.values().filter(waits).count() + self.doors_asked.len()
    }

    fn is_over(&self, now: Now) -> bool {
        self.queries >= QUERIES_MAX || now.since(self.started_at) >= LOOKUP_TIME_MAX
    }

    /// Drops the farthest candidate that was not asked, if it is farther than the new one, or one that failed.
    fn make_room(&mut self, new: &(Distance, SocketAddr)) -> bool {
        let failed = self
            .candidates
            .iter()
            .find(|(_, candidate)| candidate.state == State::Failed);
        if let Some(key) = failed.map(|(key, _)| *key) {
            self.candidates.remove(&key);
            return true;
        }
        let mut farthest = self.candidates.iter().rev();
        let unasked = farthest.find(|(_, candidate)| candidate.state == State::New);
        let Some(key) = unasked.map(|(key, _)| *key).filter(|key| key > new) else {
            return false;
        };
        self.candidates.remove(&key);
        self.forget_place(key.1.ip());
        true
    }

    fn forget_place(&mut self, ip: IpAddr) {
        self.addresses.remove(&one_address(ip));
        if let Some(count) = self.networks.get_mut(&Network::of(ip)) {
            *count = count.saturating_sub(1);
        }
    }

    pub(super) fn check(&self) {
        assert!(self.candidates.len() <= CANDIDATES_MAX);
        assert!(self.queries <= QUERIES_MAX);
        assert!(self.in_flight() <= ALPHA);
        assert!(self.peers.len() <= PEERS_MAX);
    }
}

#[cfg(test)]
mod tests;
