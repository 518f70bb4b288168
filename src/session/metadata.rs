//! Metadata before the torrent (BEP 9): dials and listens for one info_hash until the info dictionary is here. Layer 5.
//!
//! What is decided is in `swarm::metadata`; the connections are in `metadata/link.rs`, the .torrent that the link names
//! by URL is fetched in `metadata/torrent_url.rs`. When the search ends, its trackers
//! go on for the torrent and the addresses it knows are handed over; its connections close and are dialed anew.

mod link;
mod torrent_url;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{Instrument, Span, debug, info, info_span, warn};

use super::announce::Announcers;
use super::config::{MagnetConfig, SessionEvent, TorrentConfig, TorrentProgress, TorrentState};
use super::connect::{self, Errand};
use super::contain::{caught, count_panic};
use super::dht::DhtSearch;
use super::door::Door;
use super::error::SessionError;
use super::shared::Shared;
use super::trouble::SILENT_AFTER;
use crate::base::{InfoHash, InfoHashes, Now};
use crate::swarm::candidates::Source;
use crate::swarm::metadata::{
    AttemptKey, MetadataConfig, MetadataCx, MetadataEffect, MetadataStats, MetadataSwarm,
};
use crate::swarm::{Credits, PeerKey};
use crate::wire::metainfo::{
    LayerNeed, Metainfo, MetainfoError, PieceLayers, is_info_of, layers_needed,
};
use link::Link;

/// Connections of one search: the metadata is small, and a few peers that have it are enough.
const PEERS_MAX: u32 = 40;
/// Progress is told this often.
const TICK: Duration = Duration::from_secs(1);
/// Peers hear that a search is over, and have so long to close their side before they are dialed anew.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// Looking up the host of one peer that the link names.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);
/// And this long for trackers to hear `stopped`.
const STOPPED_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection in its slot.
type Seat = (PeerKey, Rc<Link>);

/// One info_hash whose metadata is looked for.
pub struct Search {
    shared: Rc<Shared>,
    info_hash: InfoHash,
    info_hashes: InfoHashes,
    core: RefCell<MetadataSwarm>,
    /// By slot number of the key, with the key itself to know a stale one.
    links: RefCell<Vec<Option<Seat>>>,
    effects: RefCell<Vec<MetadataEffect>>,
    timer_at: Cell<Option<Now>>,
    timer_wake: Notify,
    changed: Notify,
    found: RefCell<Option<Found>>,
    /// The info dictionary, while layers are asked for.
    info_bytes: RefCell<Option<Arc<[u8]>>>,
    is_ending: Cell<bool>,
    ending: Notify,
    /// Connections whose tasks run.
    link_count: Cell<usize>,
    idle: Notify,
    /// What the user was last told, so that it is told once.
    told: RefCell<Option<String>>,
    has_panicked: Cell<bool>,
    announcers: Rc<Announcers>,
    dht: RefCell<Option<DhtSearch>>,
    span: Span,
}

/// The info dictionary, and piece layers as far as they came with it.
type Found = (Arc<[u8]>, PieceLayers);

/// What is known of an info dictionary whose hash was compared.
enum Verdict {
    Bad,
    /// It is right, and needs these layers of hashes beside it.
    Good(Vec<LayerNeed>),
}

impl Verdict {
    fn on(bytes: &[u8], hashes: &InfoHashes) -> Verdict {
        match is_info_of(bytes, hashes) {
            // What cannot be read is told when the torrent is made of it.
            true => Verdict::Good(layers_needed(bytes).unwrap_or_default()),
            false => Verdict::Bad,
        }
    }
}

/// How a search ended.
pub enum Searched {
    /// The torrent to run, and the search that knows its peers.
    Torrent(Box<TorrentConfig>, Rc<Search>),
    /// Only the metadata was wanted.
    Done,
    /// The user stopped it.
    Stopped,
}

/// Looks for the metadata until it is here or the session is told to stop.
///
/// # Errors
/// What ends the torrent, in words for the user.
pub async fn search(shared: Rc<Shared>, config: MagnetConfig) -> Result<Searched, SessionError> {
    let span = info_span!("metadata", info_hash = %config.link.info_hash);
    let search = Search::start(shared, &config, span.clone());
    let result = search.clone().run(&config).instrument(span).await;
    search.end();
    if !matches!(result, Ok(Searched::Torrent(..))) {
        search.end_dht();
        search.announcers.stop(STOPPED_TIMEOUT).await;
    }
    result
}

impl Search {
    fn start(shared: Rc<Shared>, config: &MagnetConfig, span: Span) -> Rc<Self> {
        let core = MetadataConfig {
            info_hash: config.link.info_hash,
            our_id: shared.our_id,
            seed: shared.random(),
            peers_max: PEERS_MAX.min(shared.config.peers_max),
            exchanges_peers: shared.config.exchanges_peers,
            listen_port: shared.port.get(),
            client_version: crate::swarm::torrent::client_version(),
        };
        let search = Rc::new(Search {
            core: RefCell::new(MetadataSwarm::new(core, shared.now())),
            info_hash: config.link.info_hash,
            info_hashes: config.link.info_hashes,
            links: RefCell::default(),
            effects: RefCell::default(),
            timer_at: Cell::new(None),
            timer_wake: Notify::new(),
            changed: Notify::new(),
            found: RefCell::default(),
            info_bytes: RefCell::default(),
            is_ending: Cell::new(false),
            ending: Notify::new(),
            link_count: Cell::new(0),
            idle: Notify::new(),
            told: RefCell::default(),
            has_panicked: Cell::new(false),
            announcers: Rc::default(),
            dht: RefCell::default(),
            shared,
            span,
        });
        search.shared.add_search(search.clone());
        if config.trackers {
            let tiers = config.link.trackers.iter();
            let tiers = tiers.map(|url| vec![url.clone()]).collect();
            let door = Door::Metadata(search.clone());
            Announcers::start(&search.announcers, door, tiers);
        }
        search.search_dht();
        search.add_candidates(Source::User, &config.peers);
        for peer in &config.link.peers {
            search.add_named(peer.clone());
        }
        torrent_url::start(&search, &config.link.torrents);
        search
    }

    /// Peers of the DHT are asked for, and none is told of us before it is known that the torrent is public.
    fn search_dht(self: &Rc<Self>) {
        let Some(dht) = self.shared.dht() else { return };
        let of_peers = Rc::downgrade(self);
        let search = dht.search(self.info_hash, None, move |source, addrs| {
            if let Some(search) = of_peers.upgrade() {
                search.add_candidates(source, addrs);
            }
        });
        *self.dht.borrow_mut() = Some(search);
    }

    /// The DHT is searched for it no longer: the torrent does so itself, if it is public.
    pub fn end_dht(&self) {
        self.dht.take();
    }

    async fn run(self: Rc<Self>, config: &MagnetConfig) -> Result<Searched, SessionError> {
        let timed = self.clone();
        let timer = tokio_uring::spawn(async move {
            if caught(timed.clone().timer_loop()).await.is_err() {
                timed.on_panic();
            }
        });
        let found = self.wait(config).await;
        timer.abort();
        let Some((bytes, layers)) = found? else {
            return Ok(Searched::Stopped);
        };
        let (link, on_metadata) = (config.link.clone(), config.on_metadata.clone());
        let name = shown_name(config);
        let made = tokio::task::spawn_blocking(move || {
            let metainfo = Metainfo::from_magnet(&link, bytes, &layers)
                .map_err(|error| unusable(&name, &error))?;
            on_metadata(metainfo)
        });
        let made = made.await.map_err(|error| {
            SessionError::new(format!("the metadata cannot be read: {error}"), "")
        })??;
        info!("metadata found");
        Ok(match made {
            Some(torrent) => Searched::Torrent(Box::new(torrent), self),
            None => Searched::Done,
        })
    }

    /// Waits for a copy that is right. `None` when the session stops.
    async fn wait(&self, config: &MagnetConfig) -> Result<Option<Found>, SessionError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut moved_at = self.shared.now();
        let mut most_bytes = 0;
        loop {
            let is_tick = tokio::select! {
                biased;
                () = self.shared.torrent_stopping(self.info_hash) => {
                    self.shared.emit(SessionEvent::Progress(self.progress(config, self.stats())));
                    return Ok(None);
                }
                () = self.changed.notified() => false,
                _ = tick.tick() => true,
            };
            if let Some(found) = self.found.take() {
                return Ok(Some(found));
            }
            if self.has_panicked.get() {
                let hint = "please report it with the log (-vv)";
                let message = "the search for metadata ended by an error in the program";
                return Err(SessionError::new(message, hint));
            }
            let (stats, now) = (self.stats(), self.shared.now());
            if stats.have_bytes > most_bytes {
                most_bytes = stats.have_bytes;
                moved_at = now;
                self.told.take();
            }
            if is_tick {
                self.shared
                    .emit(SessionEvent::Progress(self.progress(config, stats)));
                self.look_for_trouble(config, &stats, now.since(moved_at))?;
            }
        }
    }

    /// Silence that lasts: told once, and after `--give-up` the end.
    fn look_for_trouble(
        &self,
        config: &MagnetConfig,
        stats: &MetadataStats,
        silent: Duration,
    ) -> Result<(), SessionError> {
        let name = shown_name(config);
        let why = match stats {
            MetadataStats {
                bad_copies: 1.., ..
            } => "what peers sent as its metadata is not it",
            MetadataStats { holders: 1.., .. } => "no peer sends its metadata",
            MetadataStats { peers_met: 1.., .. } => "no peer that was met sends its metadata",
            _ => "no peer was found",
        };
        let limit = self.shared.config.give_up;
        if limit.is_some_and(|limit| silent >= limit) {
            let told = self.told.borrow().clone();
            let cause = told
                .filter(|_| stats.peers_met == 0)
                .unwrap_or_else(|| why.to_owned());
            let message = format!("gave up on {name}: {cause}");
            let hint = match self.shared.config.proxy {
                Some(_) if stats.peers_met == 0 => {
                    "check that the proxy of --proxy lets peers through"
                }
                _ => "name a peer with --peer, or use the .torrent file",
            };
            return Err(SessionError::new(message, hint));
        }
        let is_heard = self.shared.way.is_open() && self.told.borrow().is_none();
        if silent >= SILENT_AFTER && is_heard {
            let message = format!("no metadata for {name} yet: {why}");
            let hint = "it goes on looking; check the trackers, or name a peer with --peer";
            self.tell_trouble(message, hint);
        }
        Ok(())
    }

    /// The session it belongs to.
    pub fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    /// What is looked for.
    pub const fn info_hash(&self) -> InfoHash {
        self.info_hash
    }

    /// All that the link names.
    pub const fn info_hashes(&self) -> &InfoHashes {
        &self.info_hashes
    }

    /// The trackers, which go on for the torrent.
    pub const fn announcers(&self) -> &Rc<Announcers> {
        &self.announcers
    }

    /// Every address that is known, the most useful first.
    pub fn addresses(&self) -> Vec<(Source, SocketAddr)> {
        self.core.borrow().addresses()
    }

    /// Completes once the connections are closed on both sides, as far as peers do so soon.
    pub async fn drained(&self) {
        let all = async {
            while self.link_count.get() > 0 {
                let idle = self.idle.notified();
                if self.link_count.get() > 0 {
                    idle.await;
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, all).await;
        for (_, link) in self.links.borrow().iter().flatten() {
            link.close();
        }
    }

    fn progress(&self, config: &MagnetConfig, stats: MetadataStats) -> TorrentProgress {
        let mut figures = progress(config, stats);
        figures.peers_filtered += self.shared.gate.turned_away_count();
        figures
    }

    fn stats(&self) -> MetadataStats {
        self.core.borrow().stats()
    }

    /// Calls the core, then executes what it asks for.
    pub fn call<R>(
        self: &Rc<Self>,
        call: impl FnOnce(&mut MetadataSwarm, &mut MetadataCx<'_>) -> R,
    ) -> R {
        let _guard = EndOnPanic(self);
        let mut fx = self.effects.take();
        let (result, deadline) = {
            let mut core = self.core.borrow_mut();
            let mut credits = self.shared.credits.borrow_mut();
            let credits: &mut Credits = &mut credits;
            let before = credits.connections;
            let result = call(
                &mut core,
                &mut MetadataCx {
                    now: self.shared.now(),
                    credits,
                    fx: &mut fx,
                },
            );
            if before == 0 && credits.connections > 0 {
                self.shared.credits_back.notify_one();
            }
            (result, core.next_deadline())
        };
        for effect in fx.drain(..) {
            self.execute(effect);
        }
        *self.effects.borrow_mut() = fx;
        if deadline.is_some_and(|at| self.timer_at.get().is_none_or(|set| at < set)) {
            self.timer_at.set(deadline);
            self.timer_wake.notify_one();
        }
        result
    }

    fn execute(self: &Rc<Self>, effect: MetadataEffect) {
        match effect {
            MetadataEffect::WakeWriter(peer) => self.with_link(peer, |link| link.wake.notify_one()),
            MetadataEffect::Close(peer) => self.with_link(peer, |link| self.close(link)),
            MetadataEffect::Dial { addr } => {
                let dial = connect::dial(Door::Metadata(self.clone()), addr, Errand::Book);
                tokio_uring::spawn(dial.instrument(self.span.clone()));
            }
            MetadataEffect::Verify { attempt, bytes } => self.verify(attempt, bytes),
            MetadataEffect::HasLayers(layers) => {
                if let Some(bytes) = self.info_bytes.take() {
                    self.take(bytes, PieceLayers::new(layers));
                }
            }
            MetadataEffect::Ban { ip } => {
                info!(%ip, "banned: it sent wrong metadata");
                self.shared.banned.borrow_mut().insert(ip);
                let info_hash = self.info_hash;
                self.shared.emit(SessionEvent::Banned { info_hash, ip });
            }
            MetadataEffect::WantPeers => {
                self.announcers.want_peers();
                if let Some(dht) = self.shared.dht() {
                    dht.want_peers(&self.info_hash);
                }
            }
        }
    }

    /// A peer that we will dial again at once must have seen the end before it sees the beginning.
    fn close(&self, link: &Rc<Link>) {
        if self.found.borrow().is_none() {
            return link.close();
        }
        link.close_gently();
    }

    fn with_link(&self, key: PeerKey, act: impl FnOnce(&Rc<Link>)) {
        if let Some(Some((present, link))) = self.links.borrow().get(key.0.index())
            && *present == key
        {
            act(link);
        }
    }

    /// The hash of the longest metadata takes tens of milliseconds: not on the ring thread.
    fn verify(self: &Rc<Self>, attempt: AttemptKey, bytes: Arc<[u8]>) {
        let search = self.clone();
        let work = async move {
            let copy = bytes.clone();
            let hashes = search.info_hashes;
            let judged = tokio::task::spawn_blocking(move || Verdict::on(&copy, &hashes)).await;
            let verdict = judged.unwrap_or(Verdict::Bad);
            let is_good = matches!(verdict, Verdict::Good(_));
            debug!(is_good, bytes = bytes.len(), "a copy of the metadata");
            match verdict {
                Verdict::Good(needs) if !needs.is_empty() => {
                    debug!(layers = needs.len(), "hashes of pieces are asked for");
                    *search.info_bytes.borrow_mut() = Some(bytes);
                    return search.call(|core, cx| core.on_layers_needed(needs, cx));
                }
                Verdict::Good(_) => search.take(bytes, PieceLayers::default()),
                Verdict::Bad => {}
            }
            search.call(|core, cx| core.on_verified(attempt, is_good, cx));
        };
        let of_panic = self.clone();
        tokio_uring::spawn(async move {
            if caught(work).await.is_err() {
                of_panic.on_panic();
            }
        });
    }

    /// A copy that is right.
    fn take(&self, bytes: Arc<[u8]>, layers: PieceLayers) {
        *self.found.borrow_mut() = Some((bytes, layers));
        self.changed.notify_one();
    }

    /// Drives the core's deadlines.
    async fn timer_loop(self: Rc<Self>) {
        loop {
            let deadline = self.core.borrow().next_deadline();
            self.timer_at.set(deadline);
            match deadline {
                Some(at) if at > self.shared.now() => {
                    tokio::select! {
                        () = tokio::time::sleep_until(self.shared.clock.instant(at)) => {}
                        () = self.timer_wake.notified() => continue,
                    }
                }
                Some(_) => tokio::task::yield_now().await,
                None => {
                    self.timer_wake.notified().await;
                    continue;
                }
            }
            self.call(MetadataSwarm::on_timer);
        }
    }

    /// Tells the core of addresses to dial, those of families that are in use.
    pub fn add_candidates(self: &Rc<Self>, source: Source, addrs: &[SocketAddr]) {
        let is_in_use = |addr: &SocketAddr| self.shared.has_family(addr.ip());
        let addrs: Vec<SocketAddr> = addrs.iter().copied().filter(is_in_use).collect();
        self.call(|core, cx| core.on_candidates(source, &addrs, cx));
    }

    /// The list of addresses of the session is another one.
    pub fn take_ip_filter(self: &Rc<Self>) {
        let filter = self.shared.gate.filter();
        self.call(|core, _| core.set_ip_filter(filter));
        for (_, link) in self.links.borrow().iter().flatten() {
            if self.shared.gate.turns_away(link.addr.ip()) {
                link.close();
            }
        }
    }

    /// A peer that the link names (`x.pe`): by address, or by a name that is looked up.
    fn add_named(self: &Rc<Self>, peer: String) {
        if let Ok(addr) = peer.parse() {
            return self.add_candidates(Source::User, &[addr]);
        }
        let search = self.clone();
        tokio_uring::spawn(async move {
            let Some((host, port)) = peer.rsplit_once(':') else {
                return;
            };
            let Ok(port) = port.parse() else { return };
            if search.shared.socks.is_some() {
                // A proxy connects to names, and does not tell their addresses.
                return search.tell_named(host);
            }
            let resolver = &search.shared.resolver;
            match resolver.resolve(host, port, RESOLVE_TIMEOUT).await {
                Ok(addrs) => Door::Metadata(search.clone()).add_candidates(Source::User, &addrs),
                Err(error) => debug!(%error, "a peer of the link has no address"),
            }
        });
    }

    /// The way out is gone: so are the connections.
    pub fn on_way_shut(&self) {
        for (_, link) in self.links.borrow().iter().flatten() {
            link.close();
        }
    }

    /// There is a way out again.
    pub fn on_way_back(self: &Rc<Self>) {
        self.call(MetadataSwarm::on_way_back);
    }

    fn tell_named(&self, host: &str) {
        self.shared.emit(SessionEvent::Warning {
            info_hash: Some(self.info_hash),
            message: format!(
                "the peer {} of the link is left alone: with --proxy no name is looked up",
                super::torrent::quoted_name(host)
            ),
            hint: "name its address with --peer".to_owned(),
        });
    }

    /// Completes once dials are to be given up.
    pub async fn ending(&self) {
        let ending = self.ending.notified();
        if !self.is_ending.get() {
            ending.await;
        }
    }

    /// No more connections: those of strangers are refused until the torrent runs.
    fn end(self: &Rc<Self>) {
        self.shared.remove_search(&self.info_hash);
        self.is_ending.set(true);
        self.ending.notify_waiters();
        if !self.has_panicked.get() {
            self.call(MetadataSwarm::stop);
        }
    }

    /// Tells the user of trouble that is waited out, once until progress is made.
    pub fn tell_trouble(&self, message: String, hint: &str) {
        if self.told.borrow().as_ref() == Some(&message) {
            return;
        }
        warn!(%message, "trouble");
        *self.told.borrow_mut() = Some(message.clone());
        self.shared.emit(SessionEvent::Error {
            info_hash: Some(self.info_hash),
            message,
            hint: hint.to_owned(),
            is_final: false,
        });
    }

    /// A task of the search panicked: it ends.
    pub fn on_panic(&self) {
        count_panic(&self.shared, "a search for metadata");
        self.has_panicked.set(true);
        self.changed.notify_one();
    }
}

/// Ends the search when a call of its core panics.
struct EndOnPanic<'a>(&'a Search);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.has_panicked.set(true);
            self.0.changed.notify_one();
        }
    }
}

fn unusable(name: &str, error: &MetainfoError) -> SessionError {
    let hint = match error {
        MetainfoError::UnknownVersion { .. } => "use a v1 or hybrid torrent of the same data",
        MetainfoError::LayerMissing { .. } => {
            "use the .torrent, which has the hashes of all pieces"
        }
        _ => "the torrent is malformed",
    };
    SessionError::new(
        format!("the metadata of {name} cannot be used: {error}"),
        hint,
    )
}

/// The name that the link gives, or its info_hash, in quotation marks.
fn shown_name(config: &MagnetConfig) -> String {
    super::torrent::quoted_name(&name_of(config))
}

fn name_of(config: &MagnetConfig) -> String {
    let name = config.link.name.clone();
    name.unwrap_or_else(|| config.link.info_hash.to_string())
}

/// The figures of a torrent whose metadata is looked for.
pub fn progress(config: &MagnetConfig, stats: MetadataStats) -> TorrentProgress {
    TorrentProgress {
        peers: stats.peers_connected,
        peers_by_source: stats.peers_by_source,
        peers_known: stats.peers_known,
        peers_filtered: stats.peers_filtered,
        metadata_bytes: stats.have_bytes,
        metadata_total_bytes: stats.total_bytes,
        ..TorrentProgress::nothing(
            config.link.info_hash,
            name_of(config),
            TorrentState::Metadata,
        )
    }
}
