//! The address book of one torrent: whom to dial, when, and whom never again. Layer 2, pure.
//!
//! Bounded in every direction. Does not know connections beyond "dialing" and "connected", nor any credit: the caller
//! asks for the next address when it may dial.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::base::{Now, Rng, is_local};
use crate::swarm::bans::Bans;
use crate::swarm::priority::priority;
use crate::wire::ip_filter::IpFilter;

/// Addresses kept: a tracker names 200 at a time, and nobody is connected to more than a few hundred.
pub const CANDIDATES_MAX: usize = 4_000;
/// Addresses given by the user; more than this are a mistake.
pub const USER_CANDIDATES_MAX: usize = 1_000;
/// Filtered addresses that are counted; whoever names more of them wastes its breath.
const FILTERED_MAX: usize = 16_384;
/// Addresses of our own that are kept.
const OWN_MAX: usize = 64;
/// Failed dials in a row after which an address is dropped, until a source names it again.
const FAILURES_MAX: u32 = 6;
/// First back-off after a failed dial; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(15);
/// The longest back-off.
const RETRY_MAX: Duration = Duration::from_secs(3_600);
/// The same for peers that the user named: somebody waits for them.
const USER_RETRY_FIRST: Duration = Duration::from_secs(1);
const USER_RETRY_MAX: Duration = Duration::from_secs(30);
/// A peer that worked is dialed again after this much, plus as much again by lot.
const RECONNECT_MIN: Duration = Duration::from_secs(5);
/// A peer with nothing for us may have something later.
const RECONNECT_USELESS: Duration = Duration::from_secs(600);
/// The other connection to the same peer may end.
const RECONNECT_DUPLICATE: Duration = Duration::from_secs(120);
/// A peer that broke the protocol will most likely do so again.
const RECONNECT_FAULTY: Duration = Duration::from_secs(900);

/// Where an address comes from, the most trusted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// `--peer`, or the control API.
    User,
    /// BEP 3, 15.
    Tracker,
    /// BEP 14.
    Lsd,
    /// A peer that dialed us, under the port it told us (BEP 10, `p`).
    Inbound,
    /// BEP 11, told by a peer on this machine or network.
    LocalPex,
    /// BEP 5, told by a node on this machine or network.
    LocalDht,
    /// BEP 5.
    Dht,
    /// BEP 11.
    Pex,
}

impl Source {
    /// The word used in `--json`: who named the address, wherever that one was.
    pub const fn as_str(self) -> &'static str {
        match self {
            Source::User => "user",
            Source::Tracker => "tracker",
            Source::Lsd => "lsd",
            Source::Inbound => "incoming",
            Source::LocalPex | Source::Pex => "pex",
            Source::LocalDht | Source::Dht => "dht",
        }
    }
}

/// How a connection went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// Payload moved in either direction.
    Useful,
    /// It broke or fell silent before anything moved.
    Broken,
    /// Neither side had anything for the other, or its place went to a better one.
    Useless,
    /// It is connected under another address.
    Duplicate,
    /// It broke the protocol.
    Faulty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be dialed, not before that moment.
    Idle {
        not_before: Now,
    },
    Dialing,
    Connected,
}

#[derive(Clone, Debug)]
struct Entry {
    source: Source,
    state: State,
    failures: u32,
    /// Decides between equals, so that a swarm does not dial everybody in the same order: by lot, or by BEP 40.
    lot: u64,
    is_seed: bool,
    is_useless: bool,
}

/// Lower is dialed first.
type DialRank = (bool, bool, u32, u64);
/// Lower is kept longer.
type EvictRank = (bool, u32, Source, u64);

impl Entry {
    fn dial_rank(&self) -> DialRank {
        let is_named = self.source == Source::User;
        (!is_named, self.is_useless, self.failures, self.lot)
    }

    fn evict_rank(&self) -> EvictRank {
        (self.is_useless, self.failures, self.source, self.lot)
    }
}

/// The address book of one torrent.
#[derive(Clone, Debug)]
pub struct Candidates {
    is_private: bool,
    is_complete: bool,
    rng: Rng,
    entries: BTreeMap<SocketAddr, Entry>,
    user_count: usize,
    /// Idle entries whose time has come.
    ready: BTreeSet<(DialRank, SocketAddr)>,
    /// Idle entries whose time has not come.
    waiting: BTreeSet<(Now, SocketAddr)>,
    /// Idle entries that may be thrown out.
    evictable: BTreeSet<(EvictRank, SocketAddr)>,
    own: BTreeSet<SocketAddr>,
    /// Where others see us, by family; until it is known the lot decides between equals.
    seen_at: [Option<SocketAddr>; 2],
    /// The user's list of whom to leave alone.
    filter: Option<Arc<IpFilter>>,
    /// Different addresses that it refused, at most [`FILTERED_MAX`].
    filtered: BTreeSet<IpAddr>,
    banned: Bans,
}

impl Candidates {
    /// An empty book. A private torrent takes addresses from trackers and the user only (BEP 27).
    pub const fn new(is_private: bool, rng: Rng) -> Self {
        Candidates {
            is_private,
            is_complete: false,
            rng,
            entries: BTreeMap::new(),
            user_count: 0,
            ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
            evictable: BTreeSet::new(),
            own: BTreeSet::new(),
            seen_at: [None; 2],
            filter: None,
            filtered: BTreeSet::new(),
            banned: Bans::new(),
        }
    }

    /// Notes addresses; returns how many are new. Impossible, own, banned and forbidden ones are skipped.
    pub fn add(&mut self, source: Source, addrs: &[SocketAddr], now: Now) -> usize {
        if self.is_private && !matches!(source, Source::User | Source::Tracker) {
            return 0;
        }
        addrs
            .iter()
            .filter(|addr| self.add_one(source, normal(**addr), now))
            .count()
    }

    /// The best address to dial now; it counts as being dialed until [`Candidates::on_connected`] or
    /// [`Candidates::on_dial_failed`].
    pub fn next_dial(&mut self, now: Now) -> Option<SocketAddr> {
        self.ripen(now);
        let (_, addr) = self.ready.first().copied()?;
        self.change(addr, |entry| entry.state = State::Dialing);
        Some(addr)
    }

    /// The address that [`Candidates::next_dial`] would give.
    pub fn peek_dial(&mut self, now: Now) -> Option<SocketAddr> {
        self.ripen(now);
        self.ready.first().map(|(_, addr)| *addr)
    }

    /// When [`Candidates::next_dial`] has something: `now` or earlier when it has already, `None` when it never will.
    pub fn next_deadline(&self, now: Now) -> Option<Now> {
        if self.ready.is_empty() {
            self.waiting.first().map(|(at, _)| *at)
        } else {
            Some(now)
        }
    }

    /// A connection stands, dialed or accepted; unknown addresses (an inbound peer's own port) are ignored.
    pub fn on_connected(&mut self, addr: SocketAddr) {
        self.change(normal(addr), |entry| entry.state = State::Connected);
    }

    /// The dial came to nothing, the handshake included.
    pub fn on_dial_failed(&mut self, addr: SocketAddr, now: Now) {
        self.retry_later(normal(addr), now);
    }

    /// A connection ended.
    pub fn on_disconnected(&mut self, addr: SocketAddr, parting: Parting, now: Now) {
        let addr = normal(addr);
        let base = match parting {
            Parting::Broken => return self.retry_later(addr, now),
            Parting::Useful => RECONNECT_MIN,
            Parting::Useless => RECONNECT_USELESS,
            Parting::Duplicate => RECONNECT_DUPLICATE,
            Parting::Faulty => RECONNECT_FAULTY,
        };
        let jitter = self.jitter(base);
        self.change(addr, |entry| {
            let is_user = entry.source == Source::User;
            let wait = match is_user {
                true => base.min(USER_RETRY_MAX),
                false => base + jitter,
            };
            entry.is_useless = matches!(parting, Parting::Useless | Parting::Faulty);
            if parting == Parting::Useful {
                entry.failures = 0;
            }
            entry.state = State::Idle {
                not_before: now + wait,
            };
        });
    }

    /// There was no way to anybody for a while: dials that failed meanwhile say nothing about the peers, and those who
    /// were connected are dialed again at once. Those that wait for what they did or lack wait on.
    pub fn on_way_back(&mut self, now: Now) {
        let is_waiting = |(addr, entry): (&SocketAddr, &Entry)| {
            let waits = matches!(entry.state, State::Idle { not_before } if not_before > now);
            (waits && !entry.is_useless).then_some(*addr)
        };
        let waiting: Vec<SocketAddr> = self.entries.iter().filter_map(is_waiting).collect();
        for addr in waiting {
            self.change(addr, |entry| {
                entry.failures = 0;
                entry.state = State::Idle { not_before: now };
            });
        }
    }

    /// The peer has everything; while we have too, it is not dialed.
    pub fn mark_seed(&mut self, addr: SocketAddr, is_seed: bool) {
        self.change(normal(addr), |entry| entry.is_seed = is_seed);
    }

    /// Whether we need nothing more; known seeds are not dialed then.
    pub fn set_complete(&mut self, is_complete: bool) {
        if self.is_complete == is_complete {
            return;
        }
        let seeds: Vec<SocketAddr> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.is_seed)
            .map(|(addr, _)| *addr)
            .collect();
        for addr in &seeds {
            self.unlist(*addr);
        }
        self.is_complete = is_complete;
        for addr in &seeds {
            self.list(*addr);
        }
    }

    /// An address that leads back to ourselves: forgotten and never taken again.
    pub fn add_own(&mut self, addr: SocketAddr) {
        let addr = normal(addr);
        self.remove(addr);
        if self.own.len() < OWN_MAX {
            self.own.insert(addr);
        }
    }

    /// Where others see us: never dialed, and from now on what orders equals (BEP 40).
    pub fn set_seen_at(&mut self, addr: SocketAddr) {
        let addr = normal(addr);
        self.add_own(addr);
        self.seen_at[usize::from(addr.is_ipv6())] = Some(addr);
        let known: Vec<SocketAddr> = self.entries.keys().copied().collect();
        for addr in known {
            if let Some(priority) = self.priority(addr) {
                self.change(addr, |entry| entry.lot = lot_of(priority));
            }
        }
    }

    /// The peer's priority, once our own address is known (BEP 40).
    pub fn priority(&self, addr: SocketAddr) -> Option<u32> {
        let addr = normal(addr);
        let seen_at = self.seen_at[usize::from(addr.is_ipv6())]?;
        Some(priority(seen_at, addr))
    }

    /// Refuses this IP address from now on and forgets its ports; true when it was not banned before.
    pub fn ban(&mut self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        if !self.banned.insert(ip) {
            return false;
        }
        let ports: Vec<SocketAddr> = self
            .entries
            .range(SocketAddr::new(ip, 0)..)
            .map(|(addr, _)| *addr)
            .take_while(|addr| addr.ip() == ip)
            .collect();
        for addr in ports {
            self.remove(addr);
        }
        true
    }

    /// Refuses what that list has from now on, in place of an earlier one, and forgets what of it is known.
    pub fn set_filter(&mut self, filter: Arc<IpFilter>) {
        let known = self.entries.keys().copied();
        let blocked: Vec<SocketAddr> = known.filter(|addr| filter.is_blocked(addr.ip())).collect();
        for addr in blocked {
            self.count_filtered(addr.ip());
            self.remove(addr);
        }
        self.filter = Some(filter);
    }

    /// How many different addresses the list refused.
    pub fn filtered_count(&self) -> usize {
        self.filtered.len()
    }

    fn count_filtered(&mut self, ip: IpAddr) {
        if self.filtered.len() < FILTERED_MAX {
            self.filtered.insert(ip);
        }
    }

    fn is_filtered(&self, ip: IpAddr) -> bool {
        let filter = self.filter.as_ref();
        filter.is_some_and(|filter| filter.is_blocked(ip))
    }

    /// True after [`Candidates::ban`].
    pub fn is_banned(&self, ip: IpAddr) -> bool {
        self.banned.contains(ip)
    }

    /// Who is banned.
    pub const fn banned(&self) -> &Bans {
        &self.banned
    }

    /// Addresses in the book, those dialed and connected included.
    pub fn known_count(&self) -> usize {
        self.entries.len()
    }

    /// Addresses that may be dialed now or later.
    pub fn dialable_count(&self) -> usize {
        self.ready.len() + self.waiting.len()
    }

    /// True when the book holds the address.
    pub fn is_known(&self, addr: SocketAddr) -> bool {
        self.entries.contains_key(&normal(addr))
    }

    /// Whether somebody of that kind may send us there: possible, not our own, neither banned nor listed.
    pub fn may_dial(&self, source: Source, addr: SocketAddr) -> bool {
        let addr = normal(addr);
        let is_refused =
            self.own.contains(&addr) || self.is_banned(addr.ip()) || self.is_filtered(addr.ip());
        is_possible(addr, source) && !is_refused
    }

    /// Whether it is known as an address of our own.
    pub fn is_own(&self, addr: SocketAddr) -> bool {
        self.own.contains(&normal(addr))
    }

    /// Whether it is known to have everything.
    pub fn is_seed(&self, addr: SocketAddr) -> bool {
        let entry = self.entries.get(&normal(addr));
        entry.is_some_and(|entry| entry.is_seed)
    }

    /// Where an address came from, if the book holds it.
    pub fn source_of(&self, addr: SocketAddr) -> Option<Source> {
        self.entries.get(&normal(addr)).map(|entry| entry.source)
    }

    /// All addresses and where they came from.
    pub fn addresses(&self) -> Vec<(Source, SocketAddr)> {
        let entries = self.entries.iter();
        entries.map(|(addr, entry)| (entry.source, *addr)).collect()
    }

    /// Verifies that the lists agree with the entries.
    ///
    /// # Panics
    /// When they do not.
    pub fn check(&self) {
        assert!(self.entries.len() <= CANDIDATES_MAX + USER_CANDIDATES_MAX);
        let users = self.entries.values().filter(|e| e.source == Source::User);
        assert_eq!(users.count(), self.user_count, "user addresses");
        let mut listed_count = 0;
        for (addr, entry) in &self.entries {
            let is_idle = matches!(entry.state, State::Idle { .. });
            let is_ready = self.ready.contains(&(entry.dial_rank(), *addr));
            let is_waiting = match entry.state {
                State::Idle { not_before } => self.waiting.contains(&(not_before, *addr)),
                _ => false,
            };
            let is_listed = is_ready || is_waiting;
            let is_parked = self.is_complete && entry.is_seed;
            assert_eq!(is_listed, is_idle && !is_parked, "{addr} {entry:?}");
            assert!(!(is_ready && is_waiting), "{addr} is listed twice");
            assert!(!self.is_banned(addr.ip()), "{addr} is banned");
            assert!(!self.is_filtered(addr.ip()), "{addr} is filtered");
            listed_count += usize::from(is_listed);
        }
        assert_eq!(listed_count, self.dialable_count(), "stale list entries");
    }

    fn add_one(&mut self, source: Source, addr: SocketAddr, now: Now) -> bool {
        if !is_possible(addr, source) || self.own.contains(&addr) || self.is_banned(addr.ip()) {
            return false;
        }
        if self.is_filtered(addr.ip()) {
            self.count_filtered(addr.ip());
            return false;
        }
        if self.entries.contains_key(&addr) {
            self.upgrade(addr, source);
            return false;
        }
        let lot = match self.priority(addr) {
            Some(priority) => lot_of(priority),
            None => self.rng.next_u64(),
        };
        let entry = Entry {
            source,
            state: State::Idle { not_before: now },
            failures: 0,
            lot,
            is_seed: false,
            is_useless: false,
        };
        if !self.make_room(&entry) {
            return false;
        }
        self.user_count += usize::from(source == Source::User);
        self.entries.insert(addr, entry);
        self.list(addr);
        true
    }

    /// A better source names an address that we know.
    fn upgrade(&mut self, addr: SocketAddr, source: Source) {
        let Some(entry) = self.entries.get(&addr).filter(|e| source < e.source) else {
            return;
        };
        let becomes_user = source == Source::User && entry.source != Source::User;
        if becomes_user && self.user_count >= USER_CANDIDATES_MAX {
            return;
        }
        self.user_count += usize::from(becomes_user);
        self.change(addr, |entry| {
            entry.source = source;
            entry.failures = 0;
            if becomes_user && let State::Idle { not_before } = &mut entry.state {
                *not_before = Now::ZERO;
            }
        });
    }

    /// Throws out the worst entry if the new one is better; false when there is no room.
    fn make_room(&mut self, entry: &Entry) -> bool {
        if entry.source == Source::User {
            return self.user_count < USER_CANDIDATES_MAX;
        }
        if self.entries.len() - self.user_count < CANDIDATES_MAX {
            return true;
        }
        let Some((worst, addr)) = self.evictable.last().copied() else {
            return false;
        };
        // Equals are not exchanged: a flood of made-up addresses must not wash out what we have.
        if (worst.0, worst.1, worst.2) <= (entry.is_useless, entry.failures, entry.source) {
            return false;
        }
        self.remove(addr);
        true
    }

    fn retry_later(&mut self, addr: SocketAddr, now: Now) {
        let Some(entry) = self.entries.get(&addr) else {
            return;
        };
        let failures = entry.failures.saturating_add(1);
        let is_user = entry.source == Source::User;
        if failures >= FAILURES_MAX && !is_user {
            self.remove(addr);
            return;
        }
        let wait = match is_user {
            true => doubled(USER_RETRY_FIRST, failures, USER_RETRY_MAX),
            false => {
                let wait = doubled(RETRY_FIRST, failures, RETRY_MAX);
                (wait + self.jitter(wait / 4)).min(RETRY_MAX)
            }
        };
        self.change(addr, |entry| {
            entry.failures = failures;
            entry.state = State::Idle {
                not_before: now + wait,
            };
        });
    }

    fn jitter(&mut self, max: Duration) -> Duration {
        let micros = u64::try_from(max.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.below(micros))
    }

    /// Moves entries whose time has come.
    fn ripen(&mut self, now: Now) {
        while let Some((at, addr)) = self.waiting.first().copied()
            && at <= now
        {
            self.waiting.pop_first();
            if let Some(entry) = self.entries.get(&addr) {
                self.ready.insert((entry.dial_rank(), addr));
            }
        }
    }

    /// Changes one entry and keeps the lists in step.
    fn change(&mut self, addr: SocketAddr, change: impl FnOnce(&mut Entry)) {
        self.unlist(addr);
        if let Some(entry) = self.entries.get_mut(&addr) {
            change(entry);
        }
        self.list(addr);
    }

    fn remove(&mut self, addr: SocketAddr) {
        self.unlist(addr);
        if let Some(entry) = self.entries.remove(&addr) {
            self.user_count -= usize::from(entry.source == Source::User);
        }
    }

    fn unlist(&mut self, addr: SocketAddr) {
        let Some(entry) = self.entries.get(&addr) else {
            return;
        };
        self.ready.remove(&(entry.dial_rank(), addr));
        self.evictable.remove(&(entry.evict_rank(), addr));
        if let State::Idle { not_before } = entry.state {
            self.waiting.remove(&(not_before, addr));
        }
    }

    fn list(&mut self, addr: SocketAddr) {
        let Some(entry) = self.entries.get(&addr) else {
            return;
        };
        let State::Idle { not_before } = entry.state else {
            return;
        };
        if entry.source != Source::User {
            self.evictable.insert((entry.evict_rank(), addr));
        }
        if !(self.is_complete && entry.is_seed) {
            self.waiting.insert((not_before, addr));
        }
    }
}

/// The lot of a priority: what is higher comes first.
fn lot_of(priority: u32) -> u64 {
    u64::from(!priority)
}

/// `first · 2^(failures − 1)`, at most `max`.
fn doubled(first: Duration, failures: u32, max: Duration) -> Duration {
    let factor = 1u32 << failures.saturating_sub(1).min(16);
    first.saturating_mul(factor).min(max)
}

/// One spelling for one address: IPv4 is IPv4 also when mapped into IPv6, and flow labels say nothing.
fn normal(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V4(ip), addr.port()),
        IpAddr::V6(_) => match addr {
            SocketAddr::V6(mut v6) => {
                v6.set_flowinfo(0);
                SocketAddr::V6(v6)
            }
            v4 => v4,
        },
    }
}

/// Whether anything can be reached there; strangers must not send us to machines of our own network.
fn is_possible(addr: SocketAddr, source: Source) -> bool {
    let ip = addr.ip();
    if addr.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
        return false;
    }
    let is_stranger = matches!(source, Source::Pex | Source::Dht);
    match addr {
        SocketAddr::V4(v4) => {
            let ip = v4.ip();
            // 0.0.0.0/8 and 240.0.0.0/4 with the broadcast address are no one's (RFC 1122, RFC 1112).
            let is_nobody = ip.octets()[0] == 0 || *ip >= Ipv4Addr::new(240, 0, 0, 0);
            !(is_nobody || is_stranger && is_local(addr.ip()))
        }
        SocketAddr::V6(v6) => {
            let ip = v6.ip();
            let is_unscoped = ip.is_unicast_link_local() && v6.scope_id() == 0;
            !(is_unscoped || is_stranger && is_local(addr.ip()))
        }
    }
}

#[cfg(test)]
mod tests;
