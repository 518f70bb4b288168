//! What all torrents of a session share: clock, buffers, credits, limits, and the way to tell the user. Layer 5.

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use super::announce_task::TrackerClients;
use super::clock::Clock;
use super::config::{SessionConfig, SessionEvent};
use super::dht::DhtService;
use super::disk::DiskHub;
use super::door::Door;
use super::driver::Driver;
use super::error::SessionError;
use super::ip_filter::Gate;
use super::lab::Lab;
use super::metadata::Search;
use super::pace::Pacer;
use super::seed_trackers::SeedTrackers;
use super::shake::{AddrMarks, Exchanges};
use super::sleepers::Sleepers;
use super::slots::Slots;
use super::socks::SocksProxy;
use super::tune::Tuned;
use super::utp::UtpService;
use super::way::Way;
use crate::base::{InfoHash, Now, PeerId, Rng};
use crate::swarm::bans::Bans;
use crate::swarm::{Credits, Cx, Effect};
use crate::uring::buffers::Pool;
use crate::uring::resolve::Resolver;
use crate::uring::socket::SocketOptions;
use crate::wire::mse::StreamHash;
use crate::wire::tracker::Family;

/// Dials that may be half open at once: beyond it a dead swarm would fill the connection limit (HOSTILE.md H4).
pub const HALF_OPEN_MAX: u32 = 100;
/// Dials a second: home routers lose track of more.
pub const DIALS_PER_S: u32 = 50;

/// One per session, on the ring thread.
pub struct Shared {
    pub config: SessionConfig,
    pub clock: Clock,
    pub pool: Pool,
    pub disks: Rc<DiskHub>,
    pub resolver: Resolver,
    pub trackers: TrackerClients,
    /// Whether anything that is sent has a chance (`--bind`).
    pub way: Rc<Way>,
    /// The way out, when everything goes through a proxy.
    pub socks: Option<Rc<SocksProxy>>,
    /// The families in use: those we listen on, or those that a proxy may know.
    pub families: Vec<Family>,
    pub our_id: PeerId,
    pub credits: RefCell<Credits>,
    pub torrents: RefCell<BTreeMap<InfoHash, Rc<Driver>>>,
    /// Info_hashes whose metadata is looked for.
    pub searches: RefCell<BTreeMap<InfoHash, Rc<Search>>>,
    /// Seeds that are woken when somebody asks for them.
    pub(super) sleepers: Sleepers,
    /// Announces of those, whether they run or sleep.
    pub(super) seed_trackers: Rc<SeedTrackers>,
    /// By what a hidden handshake asks for them.
    streams: RefCell<BTreeMap<StreamHash, InfoHash>>,
    /// Second names of running hybrids, and what they are known by.
    seconds: RefCell<BTreeMap<InfoHash, InfoHash>>,
    /// Key exchanges with strangers.
    pub exchanges: Exchanges,
    /// Where hidden handshakes led to nothing, and where uTP did.
    pub open_first: RefCell<AddrMarks>,
    pub tcp_first: RefCell<AddrMarks>,
    pub up: Pacer,
    pub down: Pacer,
    /// Upload slots that torrents have in common.
    pub slots: Slots,
    /// Addresses that sent corrupt data to any torrent.
    pub banned: RefCell<Bans>,
    /// Keeps addresses out that the user listed.
    pub gate: Gate,
    pub half_open: Cell<u32>,
    /// Connections to web seeds that may still be made.
    pub web_connections: Semaphore,
    /// Panics of tasks; the hash workers count theirs.
    pub panics: Cell<u64>,
    /// Woken when a torrent was added.
    pub torrents_changed: Notify,
    /// Woken when credits came back, so that starved torrents are asked again.
    pub credits_back: Notify,
    pub socket_options: SocketOptions,
    /// Inbound connections that may be in handshake at once.
    pub pending_max: u32,
    /// Torrents of a daemon that may run at once, and the places of those that do not.
    pub runs_max: usize,
    pub runs: Semaphore,
    pub port: Cell<u16>,
    /// What the session knows of its own delays.
    pub lab: Lab,
    /// Assembly memory of the whole session, in bytes.
    pub assembly_bytes: u64,
    dht: OnceCell<Rc<DhtService>>,
    utp: OnceCell<Rc<UtpService>>,
    is_stopping: Cell<bool>,
    stopping: Notify,
    admits: Cell<bool>,
    admitting: Notify,
    /// Torrents that can be ended alone, each while it runs.
    ends: RefCell<BTreeMap<InfoHash, Rc<End>>>,
    /// What those that are being loaded take over.
    tuned: RefCell<BTreeMap<InfoHash, Tuned>>,
    /// Why the session cannot go on.
    failure: RefCell<Option<SessionError>>,
    rng: RefCell<Rng>,
    events: RefCell<Box<dyn FnMut(SessionEvent)>>,
}

/// Asks one torrent to end.
#[derive(Default)]
struct End {
    is_asked: Cell<bool>,
    asked: Notify,
}

/// The parts of [`Shared`] that are opened before it.
pub struct Opened {
    pub pool: Pool,
    pub disks: Rc<DiskHub>,
    pub resolver: Resolver,
    pub trackers: TrackerClients,
    pub socks: Option<Rc<SocksProxy>>,
    pub families: Vec<Family>,
    pub socket_options: SocketOptions,
    pub pending_max: u32,
    pub runs_max: usize,
    /// Connections to web seeds at once.
    pub web_connections_max: usize,
    pub seed: u64,
}

impl Shared {
    /// Ties the opened parts together; `assembly_bytes` is the part of the pool that piece assembly may take.
    pub fn new(
        config: SessionConfig,
        opened: Opened,
        assembly_bytes: u64,
        events: Box<dyn FnMut(SessionEvent)>,
    ) -> Rc<Self> {
        let mut rng = Rng::new(opened.seed);
        let connections = config.peers_max;
        Rc::new(Shared {
            our_id: PeerId::generate(&mut rng),
            up: Pacer::new(config.limit_up_bytes_per_s),
            down: Pacer::new(config.limit_down_bytes_per_s),
            slots: Slots::default(),
            lab: Lab::new(config.tells_delays),
            gate: Gate::new(config.ip_filter.as_ref()),
            config,
            clock: Clock::start(),
            pool: opened.pool,
            disks: opened.disks,
            resolver: opened.resolver,
            way: opened.trackers.way.clone(),
            trackers: opened.trackers,
            socks: opened.socks,
            families: opened.families,
            socket_options: opened.socket_options,
            pending_max: opened.pending_max,
            runs_max: opened.runs_max,
            runs: Semaphore::new(opened.runs_max),
            credits: RefCell::new(Credits {
                assembly_bytes,
                connections,
                dials: DIALS_PER_S / 10,
            }),
            torrents: RefCell::default(),
            searches: RefCell::default(),
            sleepers: Sleepers::default(),
            seed_trackers: Rc::default(),
            streams: RefCell::default(),
            seconds: RefCell::default(),
            exchanges: Exchanges::new(),
            open_first: RefCell::default(),
            tcp_first: RefCell::default(),
            banned: RefCell::default(),
            half_open: Cell::new(0),
            web_connections: Semaphore::new(opened.web_connections_max),
            panics: Cell::new(0),
            torrents_changed: Notify::new(),
            credits_back: Notify::new(),
            port: Cell::new(0),
            assembly_bytes,
            dht: OnceCell::new(),
            utp: OnceCell::new(),
            is_stopping: Cell::new(false),
            stopping: Notify::new(),
            admits: Cell::new(false),
            admitting: Notify::new(),
            ends: RefCell::default(),
            tuned: RefCell::default(),
            failure: RefCell::default(),
            rng: RefCell::new(rng),
            events: RefCell::new(events),
        })
    }

    /// The present moment.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// 64 random bits of the session's generator.
    pub fn random(&self) -> u64 {
        self.rng.borrow_mut().next_u64()
    }

    /// Tells the layer above.
    pub fn emit(&self, event: SessionEvent) {
        (self.events.borrow_mut())(event);
    }

    /// Asks every torrent to end.
    pub fn stop(&self) {
        self.is_stopping.set(true);
        self.stopping.notify_waiters();
    }

    /// Whether every torrent was asked to end.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.get()
    }

    /// Ends every torrent in order: the session cannot go on.
    pub fn fail(&self, why: SessionError) {
        self.failure.borrow_mut().get_or_insert(why);
        self.stop();
    }

    /// Why the session could not go on, if it could not.
    pub fn failure(&self) -> Option<SessionError> {
        self.failure.borrow().clone()
    }

    /// Completes once the session was asked to stop.
    pub async fn stopping(&self) {
        let notified = self.stopping.notified();
        if !self.is_stopping.get() {
            notified.await;
        }
    }

    /// Its torrents are known: from now on peers that connect are heard.
    pub fn admit(&self) {
        self.admits.set(true);
        self.admitting.notify_waiters();
    }

    /// Completes once peers that connect are heard. Before, they wait in the sockets: one who was told that nobody knows
    /// the torrent would not come again soon.
    pub async fn admitting(&self) {
        let notified = self.admitting.notified();
        if !self.admits.get() {
            notified.await;
        }
    }

    /// From now on until [`Shared::forget_end`] this torrent can be ended alone.
    pub fn expect_end(&self, info_hash: InfoHash) {
        self.ends.borrow_mut().insert(info_hash, Rc::default());
    }

    /// Its run is over.
    pub fn forget_end(&self, info_hash: &InfoHash) {
        self.ends.borrow_mut().remove(info_hash);
        self.tuned.borrow_mut().remove(info_hash);
    }

    /// Has a run that is about to load its torrent take over settings once it has.
    pub fn take_later(&self, info_hash: InfoHash, tuned: Tuned) {
        self.tuned.borrow_mut().insert(info_hash, tuned);
    }

    /// Settings that came while it was loaded.
    pub fn taken_later(&self, info_hash: &InfoHash) -> Option<Tuned> {
        self.tuned.borrow_mut().remove(info_hash)
    }

    /// Asks one torrent to end.
    pub fn stop_torrent(&self, info_hash: &InfoHash) {
        if let Some(end) = self.ends.borrow().get(info_hash) {
            end.is_asked.set(true);
            end.asked.notify_waiters();
        }
    }

    /// Completes once the torrent, or the whole session, was asked to stop.
    pub async fn torrent_stopping(&self, info_hash: InfoHash) {
        let end = self.ends.borrow().get(&info_hash).cloned();
        let Some(end) = end else {
            return self.stopping().await;
        };
        let asked = end.asked.notified();
        if end.is_asked.get() {
            return;
        }
        tokio::select! {
            () = asked => {}
            () = self.stopping() => {}
        }
    }

    /// Who takes connections for that info_hash, if anybody does. A hybrid goes by two.
    pub fn door(&self, info_hash: &InfoHash) -> Option<Door> {
        let running = |info_hash: &InfoHash| self.torrents.borrow().get(info_hash).cloned();
        let search = || self.searches.borrow().get(info_hash).cloned();
        let second = || running(self.seconds.borrow().get(info_hash)?);
        running(info_hash)
            .map(Door::Torrent)
            .or_else(|| search().map(Door::Metadata))
            .or_else(|| second().map(Door::Torrent))
    }

    /// What a hidden handshake asks for, if it is here.
    pub fn info_hash_of(&self, wanted: &StreamHash) -> Option<InfoHash> {
        self.streams.borrow().get(wanted).copied()
    }

    /// From now on it is woken when somebody asks for it, by its second name too if it has one.
    pub(super) fn let_sleep(&self, info_hash: InfoHash, second: Option<InfoHash>) {
        self.sleepers.insert(info_hash, second);
        for name in [Some(info_hash), second].into_iter().flatten() {
            let of_stream = StreamHash::of(&name);
            self.streams.borrow_mut().insert(of_stream, name);
        }
    }

    /// It is not woken any more.
    pub(super) fn forget_sleeper(&self, info_hash: &InfoHash) {
        if let Some(second) = self.sleepers.remove(info_hash) {
            self.on_removed(&second);
        }
        self.on_removed(info_hash);
    }

    /// It runs from now on.
    pub fn add_torrent(&self, driver: Rc<Driver>) {
        let info_hash = driver.info_hash();
        driver.take_ip_filter();
        let second = driver.metainfo().second_info_hash();
        self.torrents.borrow_mut().insert(info_hash, driver);
        self.on_added(info_hash);
        if let Some(second) = second {
            self.seconds.borrow_mut().insert(second, info_hash);
            self.on_added(second);
        }
    }

    /// It runs no more.
    pub fn remove_torrent(&self, info_hash: &InfoHash) {
        let removed = self.torrents.borrow_mut().remove(info_hash);
        self.on_removed(info_hash);
        if let Some(second) = removed.and_then(|driver| driver.metainfo().second_info_hash()) {
            self.seconds.borrow_mut().remove(&second);
            self.on_removed(&second);
        }
    }

    /// Its metadata is looked for from now on.
    pub fn add_search(&self, search: Rc<Search>) {
        let info_hash = search.info_hash();
        search.take_ip_filter();
        self.searches.borrow_mut().insert(info_hash, search);
        self.on_added(info_hash);
    }

    /// It is looked for no more.
    pub fn remove_search(&self, info_hash: &InfoHash) {
        self.searches.borrow_mut().remove(info_hash);
        self.on_removed(info_hash);
    }

    fn on_added(&self, info_hash: InfoHash) {
        let of_stream = StreamHash::of(&info_hash);
        self.streams.borrow_mut().insert(of_stream, info_hash);
        self.torrents_changed.notify_one();
        self.sleepers.on_running();
    }

    fn on_removed(&self, info_hash: &InfoHash) {
        if self.door(info_hash).is_none() && !self.sleepers.has(info_hash) {
            let of_stream = StreamHash::of(info_hash);
            self.streams.borrow_mut().remove(&of_stream);
        }
    }

    /// The session's DHT node, unless it is turned off.
    pub fn dht(&self) -> Option<&Rc<DhtService>> {
        self.dht.get()
    }

    /// Takes the DHT node; done once, before any torrent starts.
    pub fn set_dht(&self, dht: Rc<DhtService>) {
        let _ = self.dht.set(dht);
    }

    /// The session's uTP, unless it is turned off or there is no port for it.
    pub(super) fn utp(&self) -> Option<&Rc<UtpService>> {
        self.utp.get()
    }

    /// Takes uTP; done once, before anything is heard.
    pub(super) fn set_utp(&self, utp: Rc<UtpService>) {
        let _ = self.utp.set(utp);
    }

    /// True when the address sent corrupt data before.
    pub fn is_banned(&self, ip: IpAddr) -> bool {
        self.banned.borrow().contains(ip)
    }

    /// The families to announce over. A proxy leads to trackers over whichever it likes: once is enough.
    pub fn announce_families(&self) -> &[Family] {
        let all = self.families.as_slice();
        match self.socks {
            None => all,
            Some(_) => all.get(..1).unwrap_or_default(),
        }
    }

    /// What trackers are told of our port: where we listen, or one where nobody does, since many refuse 0.
    pub fn announced_port(&self) -> u16 {
        match self.port.get() {
            0 => 1,
            port => port,
        }
    }

    /// True for addresses of a family that we listen on: others are left out (`--no-ipv6`, `--bind`).
    pub fn has_family(&self, ip: IpAddr) -> bool {
        self.families.iter().any(|family| family.has(ip))
    }

    /// Lends the clock and the credits to one call of a core, at most `assembly_max` bytes of memory among them; what it
    /// wants done is left in `fx`.
    pub fn lend<R>(
        &self,
        fx: &mut Vec<Effect>,
        assembly_max: u64,
        call: impl FnOnce(&mut Cx<'_>) -> R,
    ) -> R {
        let mut lent = HeldBack::take(self.credits.borrow_mut(), assembly_max);
        let assembly_before = lent.credits.assembly_bytes;
        let connections_before = lent.credits.connections;
        let result = call(&mut Cx {
            now: self.clock.now(),
            credits: &mut lent.credits,
            fx,
        });
        let came_back = lent.credits.assembly_bytes > assembly_before
            || (connections_before == 0 && lent.credits.connections > 0);
        drop(lent);
        if came_back {
            self.credits_back.notify_one();
        }
        result
    }

    /// Hands credits that came back to the torrents that wait for them, and dial credits as time passes. Runs as long
    /// as the session.
    pub async fn credit_loop(self: Rc<Self>) {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let is_tick = tokio::select! {
                _ = tick.tick() => true,
                () = self.credits_back.notified() => false,
            };
            let had_no_dials = self.credits.borrow().dials == 0;
            if is_tick {
                let free = HALF_OPEN_MAX.saturating_sub(self.half_open.get());
                self.credits.borrow_mut().dials = match self.way.is_open() {
                    true => free.min(DIALS_PER_S / 10),
                    false => 0,
                };
            }
            let drivers: Vec<Rc<Driver>> = self.torrents.borrow().values().cloned().collect();
            for driver in drivers {
                if driver.is_starved() || (is_tick && had_no_dials) {
                    // A panic ends that torrent; the others wait for theirs.
                    let _ = driver.try_call(|core, cx| core.on_credits(cx));
                }
            }
        }
    }
}

/// The credits without the memory that one torrent may not take; it is back at the end of the call, a panic included.
struct HeldBack<'a> {
    credits: RefMut<'a, Credits>,
    bytes: u64,
}

impl<'a> HeldBack<'a> {
    fn take(mut credits: RefMut<'a, Credits>, assembly_max: u64) -> Self {
        let bytes = credits.assembly_bytes.saturating_sub(assembly_max);
        credits.assembly_bytes -= bytes;
        HeldBack { credits, bytes }
    }
}

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        self.credits.assembly_bytes += self.bytes;
    }
}
