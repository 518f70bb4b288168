//! One running torrent: its core, its files and its connections, and the execution of what the core asks. Layer 5.
//!
//! Traffic has one rule: the runtime calls the core plainly through [`Driver::call`], and what the core wants done lies
//! in the effects when that call returns. No effect calls the core before it returns to the caller.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use tokio::sync::Notify;
use tracing::{Instrument, Span, debug, info};

use super::announce::Announcers;
use super::check::CheckJob;
use super::config::{SeedAfter, SessionEvent, TorrentConfig, TorrentState};
use super::connect::{self, Errand};
use super::contain::{Panicked, caught, count_panic};
use super::disk::{Changed, DiskError, DiskTorrent, ReadError, SyncError};
use super::door::Door;
use super::lost::LostPieces;
use super::peer::PeerHandle;
use super::shake::Cover;
use super::shared::Shared;
use super::trouble::Trouble;
use super::tune::Pace;
use super::web_seed::{WebHandle, WebSeeds};
use crate::base::{InfoHash, Now, PieceIndex};
use crate::swarm::candidates::Source;
use crate::swarm::{self, CloseReason, Cx, Effect, PeerKey, UploadRun};
use crate::wire::decoder::Limits;
use crate::wire::metainfo::Metainfo;

/// A connection in its slot.
type Seat = (PeerKey, Line);

/// What a connection is reached by.
#[derive(Clone)]
enum Line {
    Peer(Rc<PeerHandle>),
    Web(Rc<WebHandle>),
}

impl Line {
    fn wake(&self) {
        match self {
            Line::Peer(handle) => handle.wake.notify_one(),
            Line::Web(handle) => handle.wake.notify_one(),
        }
    }

    fn close(&self, reason: CloseReason) {
        match self {
            Line::Peer(handle) => handle.close(reason),
            Line::Web(handle) => handle.close(reason),
        }
    }

    /// The peer's address; none of a web seed, which is judged by itself.
    fn ip(&self) -> Option<std::net::IpAddr> {
        match self {
            Line::Peer(handle) => Some(handle.addr.ip()),
            Line::Web(_) => None,
        }
    }
}

/// Connections by what carries them, and what can be read of them on the way.
pub struct Covers {
    pub utp: u32,
    pub encrypted: u32,
    /// Those that began hidden and go on in the open.
    pub obfuscated: u32,
}

/// A torrent on the ring thread.
pub struct Driver {
    shared: Rc<Shared>,
    metainfo: std::sync::Arc<Metainfo>,
    core: RefCell<swarm::Torrent>,
    disk: Rc<DiskTorrent>,
    /// By slot number of the key, with the key itself to know a stale one.
    peers: RefCell<Vec<Option<Seat>>>,
    timer_at: Cell<Option<Now>>,
    timer_wake: Notify,
    effects: RefCell<Vec<Effect>>,
    /// Disk work and dials under way.
    tasks: Cell<usize>,
    idle: Notify,
    /// No dial is to be waited for any more.
    is_ending: Cell<bool>,
    ending: Notify,
    /// Pieces verified and written that no record claims yet.
    unrecorded_bytes: Cell<u64>,
    pub(super) changed: Notify,
    pub(super) announcers: Rc<Announcers>,
    pub(super) web_seeds: WebSeeds,
    pub(super) trouble: Trouble,
    pub(super) lost: LostPieces,
    pub(super) state: Cell<TorrentState>,
    /// Rate limits of its connections.
    pub(super) pace: Rc<Pace>,
    pub(super) seed_after: Cell<SeedAfter>,
    /// It announces itself: no schedule does it for many.
    has_trackers: bool,
    /// How pieces are looked at again.
    pub(super) check_job: CheckJob,
    span: Span,
}

impl Driver {
    /// Ties a core to its files.
    pub fn new(
        shared: Rc<Shared>,
        config: &TorrentConfig,
        core: swarm::Torrent,
        disk: Rc<DiskTorrent>,
        check_job: CheckJob,
        announcers: Rc<Announcers>,
        span: Span,
    ) -> Rc<Self> {
        let pace = Pace::new(&shared, &config.tuning);
        Rc::new(Driver {
            shared,
            metainfo: config.metainfo.clone(),
            core: RefCell::new(core),
            disk,
            peers: RefCell::default(),
            timer_at: Cell::new(None),
            timer_wake: Notify::new(),
            effects: RefCell::default(),
            tasks: Cell::new(0),
            idle: Notify::new(),
            is_ending: Cell::new(false),
            ending: Notify::new(),
            unrecorded_bytes: Cell::new(0),
            changed: Notify::new(),
            announcers,
            web_seeds: WebSeeds::default(),
            trouble: Trouble::default(),
            lost: LostPieces::default(),
            state: Cell::new(TorrentState::Stalled),
            pace,
            seed_after: Cell::new(config.seed_after),
            has_trackers: config.trackers,
            check_job,
            span,
        })
    }

    /// The session it belongs to.
    pub fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    /// Its files.
    pub fn disk(&self) -> &Rc<DiskTorrent> {
        &self.disk
    }

    /// True when its trackers are its own matter.
    pub fn has_trackers(&self) -> bool {
        self.has_trackers
    }

    /// Its description.
    pub fn metainfo(&self) -> &Metainfo {
        &self.metainfo
    }

    /// Its info_hash.
    pub fn info_hash(&self) -> InfoHash {
        self.metainfo.info_hash
    }

    /// The sizes that messages of this torrent may have.
    pub fn decoder_limits(&self) -> Limits {
        Limits::for_bitfield(self.metainfo.info.geometry.piece_count().div_ceil(8))
    }

    /// Reads the core.
    pub fn read<R>(&self, read: impl FnOnce(&swarm::Torrent) -> R) -> R {
        read(&self.core.borrow())
    }

    /// True while the core waits for assembly memory.
    pub fn is_starved(&self) -> bool {
        self.core.borrow().is_starved()
    }

    /// Memory that the core may still take. A file system that hangs gives none back: beside other torrents, one that
    /// might takes half at most (HOSTILE.md L13).
    fn assembly_max(&self, core: &swarm::Torrent) -> u64 {
        if !self.disk.may_hang() || self.shared.torrents.borrow().len() < 2 {
            return u64::MAX;
        }
        (self.shared.assembly_bytes / 2).saturating_sub(core.assembly_bytes())
    }

    /// Calls the core, then executes what it asks for.
    pub fn call<R>(self: &Rc<Self>, call: impl FnOnce(&mut swarm::Torrent, &mut Cx<'_>) -> R) -> R {
        let _guard = EndOnPanic(self);
        let mut effects = self.effects.take();
        let (result, deadline) = {
            let mut core = self.core.borrow_mut();
            let assembly_max = self.assembly_max(&core);
            let result = self
                .shared
                .lend(&mut effects, assembly_max, |cx| call(&mut core, cx));
            (result, core.next_deadline())
        };
        for effect in effects.drain(..) {
            self.execute(effect);
        }
        *self.effects.borrow_mut() = effects;
        if deadline.is_some_and(|at| self.timer_at.get().is_none_or(|set| at < set)) {
            self.timer_at.set(deadline);
            self.timer_wake.notify_one();
        }
        result
    }

    /// Calls the core like [`Driver::call`] where the caller must go on whatever happens: a panic ends this torrent.
    ///
    /// # Errors
    /// The core panicked.
    pub fn try_call<R>(
        self: &Rc<Self>,
        call: impl FnOnce(&mut swarm::Torrent, &mut Cx<'_>) -> R,
    ) -> Result<R, Panicked> {
        catch_unwind(AssertUnwindSafe(|| self.call(call))).map_err(|_| {
            self.on_panic();
            Panicked
        })
    }

    /// Counts a panic of one of this torrent's tasks, and ends the torrent: what the task owed it will not come.
    pub fn on_panic(&self) {
        count_panic(&self.shared, "a torrent's task");
        self.end_by_panic();
    }

    fn end_by_panic(&self) {
        let message = "the torrent ended by an error in the program".to_owned();
        let hint = "please report it with the log (-vv); what was verified is kept".to_owned();
        self.trouble.set_fatal(message, hint);
        self.changed.notify_one();
    }

    /// Tells the core of addresses to dial, those of families that are in use.
    pub fn add_candidates(self: &Rc<Self>, source: Source, addrs: &[SocketAddr]) {
        let is_in_use = |addr: &SocketAddr| self.shared.has_family(addr.ip());
        let addrs: Vec<SocketAddr> = addrs.iter().copied().filter(is_in_use).collect();
        self.call(|core, cx| core.on_candidates(source, &addrs, cx));
    }

    /// Drives the core's deadlines. Runs until the torrent ends.
    pub async fn timer_loop(self: Rc<Self>) {
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
            self.call(|core, cx| core.on_timer(cx));
        }
    }

    /// Makes a connection reachable for effects.
    pub fn add_peer(&self, key: PeerKey, handle: Rc<PeerHandle>) {
        self.seat(key, Line::Peer(handle));
    }

    /// The same for a connection to a web seed.
    pub fn add_web_seed(&self, key: PeerKey, handle: Rc<WebHandle>) {
        self.seat(key, Line::Web(handle));
    }

    fn seat(&self, key: PeerKey, line: Line) {
        let mut peers = self.peers.borrow_mut();
        let slot = key.0.index();
        if peers.len() <= slot {
            peers.resize_with(slot + 1, || None);
        }
        peers[slot] = Some((key, line));
    }

    /// Forgets a connection.
    pub fn remove_peer(&self, key: PeerKey) {
        if let Some(slot) = self.peers.borrow_mut().get_mut(key.0.index())
            && slot.as_ref().is_some_and(|(present, _)| *present == key)
        {
            *slot = None;
        }
        self.idle.notify_waiters();
    }

    /// Number of connections whose tasks still run.
    pub fn peer_count(&self) -> usize {
        self.peers.borrow().iter().flatten().count()
    }

    /// A snapshot of every peer.
    pub fn peer_stats(&self) -> Vec<swarm::PeerStats> {
        let now = self.shared.now();
        let mut all = self.read(|core| core.peers(now));
        let peers = self.peers.borrow();
        for stats in &mut all {
            stats.is_encrypted = match peers.get(stats.key.0.index()) {
                Some(Some((key, Line::Peer(peer)))) if *key == stats.key => {
                    peer.cover == Cover::Encrypted
                }
                _ => false,
            };
        }
        all
    }

    /// How many connections are hidden, and how many are uTP's.
    pub fn covers(&self) -> Covers {
        let peers = self.peers.borrow();
        let count = |is_it: &dyn Fn(&PeerHandle) -> bool| {
            let is_one = |line: &Line| matches!(line, Line::Peer(peer) if is_it(peer));
            let lines = peers.iter().flatten();
            lines.filter(|(_, line)| is_one(line)).count() as u32
        };
        Covers {
            utp: count(&|peer| peer.stream.is_utp()),
            encrypted: count(&|peer| peer.cover == Cover::Encrypted),
            obfuscated: count(&|peer| peer.cover == Cover::Obfuscated),
        }
    }

    /// Ends every connection from that address.
    pub fn close_ip(&self, ip: std::net::IpAddr) {
        self.close_those(CloseReason::Banned, |of_peer| of_peer == ip);
    }

    /// The list of addresses of the session is another one.
    pub fn take_ip_filter(self: &Rc<Self>) {
        let filter = self.shared.gate.filter();
        let taken = self.try_call(|core, _| core.set_ip_filter(filter));
        if taken.is_ok() {
            self.close_those(CloseReason::Blocked, |ip| self.shared.gate.turns_away(ip));
        }
    }

    fn close_those(&self, reason: CloseReason, is_meant: impl Fn(std::net::IpAddr) -> bool) {
        let handles: Vec<_> = self
            .peers
            .borrow()
            .iter()
            .flatten()
            .map(|(_, line)| line.clone())
            .collect();
        for handle in handles {
            if handle.ip().is_some_and(&is_meant) {
                handle.close(reason);
            }
        }
    }

    /// Ends every connection.
    pub fn close_all(&self) {
        let seats = self.peers.take();
        for (_, handle) in seats.iter().flatten() {
            handle.close(CloseReason::Silent);
        }
        *self.peers.borrow_mut() = seats;
    }

    /// There is a way out again.
    pub fn on_way_back(self: &Rc<Self>) {
        self.trouble.payload_arrived(self.shared.now());
        self.web_seeds.on_way_back();
        // A panic ends that torrent; the others go on.
        let _ = self.try_call(|core, cx| core.on_way_back(cx));
    }

    /// Gives up the dials under way: the torrent ends.
    pub fn end_dials(&self) {
        self.is_ending.set(true);
        self.ending.notify_waiters();
    }

    /// Completes once dials are to be given up.
    pub async fn ending(&self) {
        let ending = self.ending.notified();
        if !self.is_ending.get() {
            ending.await;
        }
    }

    /// Completes when no connection and no disk work is left.
    pub async fn drained(&self) {
        while self.tasks.get() > 0 || self.peer_count() > 0 {
            let idle = self.idle.notified();
            if self.tasks.get() > 0 || self.peer_count() > 0 {
                idle.await;
            }
        }
    }

    /// Bytes verified and written since the last record.
    pub fn unrecorded_bytes(&self) -> u64 {
        self.unrecorded_bytes.get()
    }

    /// The present bits are about to be recorded.
    pub fn reset_unrecorded(&self) {
        self.unrecorded_bytes.set(0);
    }

    /// An upload could not be read: the pieces may be gone.
    pub fn on_read_failed(self: &Rc<Self>, run: &UploadRun, error: &ReadError) {
        debug!(%error, "read failed");
        match error {
            ReadError::Changed(changed) => self.on_file_changed(changed.clone()),
            ReadError::InDoubt => {}
            ReadError::Disproved(piece) => self.on_disproved(*piece),
            // Says nothing about the data, and a check could not open the files either.
            ReadError::Disk(error) if error.is_out_of_handles() => {}
            ReadError::Disk(error) => {
                let pieces = run.blocks.first().map(|block| block.piece());
                self.on_data_suspect(pieces.into_iter().collect(), &error.to_string());
            }
        }
    }

    /// A sync failed: the kernel may have dropped what was written since the last good one.
    pub fn on_sync_failed(self: &Rc<Self>, failed: SyncError) {
        self.on_data_in_doubt(failed.pieces, &failed.error.to_string());
        self.on_disk_trouble(failed.error);
    }

    /// Files that were written are gone, and what they held with them.
    pub fn on_files_gone(self: &Rc<Self>, gone: Vec<Changed>) {
        for changed in gone {
            self.on_file_changed(changed);
        }
    }

    /// All that was asked for is there: lengths and permissions become those of the torrent.
    pub async fn finish_files(&self) {
        for error in self.disk.finish().await {
            self.shared.emit(SessionEvent::Warning {
                info_hash: Some(self.info_hash()),
                message: error.to_string(),
                hint: error.hint().to_owned(),
            });
        }
    }

    /// Runs `work` as a task that keeps the torrent from counting as drained.
    pub fn spawn(self: &Rc<Self>, work: impl Future<Output = ()> + 'static) {
        self.tasks.set(self.tasks.get() + 1);
        let driver = self.clone();
        let guarded = async move {
            let guard = TaskGuard(driver);
            if caught(work).await.is_err() {
                guard.0.on_panic();
            }
        };
        tokio_uring::spawn(guarded.instrument(self.span.clone()));
    }

    fn execute(self: &Rc<Self>, effect: Effect) {
        match effect {
            Effect::WakeWriter(peer) => self.with_peer(peer, Line::wake),
            Effect::Close { peer, reason } => self.with_peer(peer, |line| line.close(reason)),
            Effect::Dial { addr } => self.dial(addr, Errand::Book),
            Effect::Punch { addr } => self.dial(addr, Errand::Relay),
            Effect::Hash { piece } => self.hash(piece),
            Effect::Write { piece } => self.write(piece),
            Effect::FlushSegment { piece, segment } => self.flush_segment(piece, segment),
            Effect::Discard { piece } => self.disk.discard(piece),
            Effect::DropBlocks { piece, blocks } => self.disk.drop_blocks(piece, &blocks),
            Effect::HashLeaves { piece } => self.hash_leaves(piece),
            Effect::DigestBlocks { piece } => self.digest(piece),
            Effect::ReadLeaves { piece, bytes } => self.read_leaves(piece, bytes),
            Effect::Ban { ip } => self.ban(ip),
            Effect::BanWebSeed { seed } => self.web_seeds.ban(self, seed),
            Effect::Have { piece } => self.on_have(piece),
            Effect::Complete => self.changed.notify_one(),
            Effect::WantPeers => self.want_peers(),
            Effect::DhtNode { addr } => {
                if let Some(dht) = self.shared.dht() {
                    dht.add_node(addr);
                }
            }
        }
    }

    fn with_peer(&self, key: PeerKey, act: impl FnOnce(&Line)) {
        if let Some(Some((present, line))) = self.peers.borrow().get(key.0.index())
            && *present == key
        {
            act(line);
        }
    }

    fn want_peers(&self) {
        self.announcers.want_peers();
        self.shared.seed_trackers.want_peers(self.info_hash());
        if let Some(dht) = self.shared.dht() {
            dht.want_peers(&self.info_hash());
        }
    }

    fn dial(self: &Rc<Self>, addr: SocketAddr, errand: Errand) {
        self.spawn(connect::dial(Door::Torrent(self.clone()), addr, errand));
    }

    fn hash(self: &Rc<Self>, piece: PieceIndex) {
        let driver = self.clone();
        let work = self.disk.hash_piece(piece);
        self.spawn(async move {
            match work.await {
                Ok(is_good) => driver.call(|core, cx| core.on_piece_hashed(piece, is_good, cx)),
                Err(error) => driver.on_write_failed(piece, error),
            }
        });
    }

    fn write(self: &Rc<Self>, piece: PieceIndex) {
        let driver = self.clone();
        let work = self.disk.write_piece(piece);
        self.spawn(async move {
            match work.await {
                Ok(()) => driver.call(|core, cx| core.on_piece_written(piece, cx)),
                Err(error) => driver.on_write_failed(piece, error),
            }
        });
    }

    fn flush_segment(self: &Rc<Self>, piece: PieceIndex, segment: u32) {
        let driver = self.clone();
        let work = self.disk.flush_segment(piece, segment);
        self.spawn(async move {
            match work.await {
                Ok(()) => driver.call(|core, cx| core.on_segment_flushed(piece, segment, cx)),
                Err(error) => driver.on_write_failed(piece, error),
            }
        });
    }

    fn digest(self: &Rc<Self>, piece: PieceIndex) {
        let driver = self.clone();
        let work = self.disk.digest_blocks(piece);
        self.spawn(async move {
            let digests = work.await;
            driver.call(|core, cx| core.on_block_digests(piece, digests, cx));
        });
    }

    fn hash_leaves(self: &Rc<Self>, piece: PieceIndex) {
        let driver = self.clone();
        let work = self.disk.hash_leaves(piece);
        self.spawn(async move {
            let leaves = work.await;
            driver.call(|core, cx| core.on_leaves_hashed(piece, leaves, cx));
        });
    }

    fn read_leaves(self: &Rc<Self>, piece: PieceIndex, bytes: u32) {
        let driver = self.clone();
        self.spawn(async move {
            let is_awaited = || driver.read(|core| core.awaits_leaves(piece));
            let reading = driver
                .disk
                .read_leaves(piece, bytes, is_awaited, driver.ending());
            let leaves = reading.await;
            driver.call(|core, cx| core.on_leaves_read(piece, leaves.as_deref(), cx));
        });
    }

    fn on_write_failed(self: &Rc<Self>, piece: PieceIndex, error: DiskError) {
        self.disk.discard(piece);
        if error.is_torrents_fault() {
            let hint = error.hint().to_owned();
            self.trouble.set_fatal(error.to_string(), hint);
            self.changed.notify_one();
            return;
        }
        // In this order: a core that is not paused yet would ask for the piece again at once.
        self.on_disk_trouble(error);
        self.call(|core, cx| core.on_piece_write_failed(piece, cx));
    }

    fn ban(self: &Rc<Self>, ip: std::net::IpAddr) {
        info!(%ip, "banned: it sent corrupt data");
        self.shared.banned.borrow_mut().insert(ip);
        self.shared.emit(SessionEvent::Banned {
            info_hash: self.info_hash(),
            ip,
        });
        let drivers: Vec<Rc<Driver>> = self.shared.torrents.borrow().values().cloned().collect();
        for driver in drivers {
            driver.close_ip(ip);
        }
    }

    fn on_have(&self, piece: PieceIndex) {
        let bytes = u64::from(self.metainfo.info.geometry.piece_bytes(piece));
        self.unrecorded_bytes
            .set(self.unrecorded_bytes.get() + bytes);
        self.trouble.made_progress(self.shared.now());
        self.disk.proven(piece);
        if self.unrecorded_bytes.get() >= super::checkpoint::BYTES_MAX {
            self.changed.notify_one();
        }
    }
}

/// Ends the torrent when a call of its core panics: what the call left undone is unknown, and no other torrent is
/// touched.
struct EndOnPanic<'a>(&'a Driver);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end_by_panic();
        }
    }
}

struct TaskGuard(Rc<Driver>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        let driver = &self.0;
        driver.tasks.set(driver.tasks.get().saturating_sub(1));
        driver.idle.notify_waiters();
    }
}
