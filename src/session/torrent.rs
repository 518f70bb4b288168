//! The life of one torrent in a session: load, check, run, and end it in order. Layer 5.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tracing::{Instrument, Span, info, info_span};

use super::announce::Announcers;
use super::checkpoint::Checkpointer;
use super::config::{Outcome, SessionEvent, TorrentConfig, TorrentProgress, TorrentState};
use super::contain::caught;
use super::dht::DhtSearch;
use super::door::Door;
use super::driver::Driver;
use super::error::SessionError;
use super::load::{self, Loaded};
use super::metadata::Search;
use super::root_lock::RootLock;
use super::shared::Shared;
use super::trouble::SILENT_AFTER;
use super::tune;
use crate::base::{Bitfield, InfoHash, Now};
use crate::swarm;
use crate::swarm::candidates::Source;
use crate::swarm::dht::Announce;
use crate::wire::metainfo::PieceTrees;

mod end;

/// Progress is told this often.
const TICK: Duration = Duration::from_secs(1);

/// Runs one torrent to its end; everything the user must know went out as events.
///
/// `search` is what found its metadata: its trackers and addresses are the torrent's.
pub async fn run(
    shared: Rc<Shared>,
    config: TorrentConfig,
    search: Option<Rc<Search>>,
) -> (InfoHash, Outcome) {
    let info_hash = config.metainfo.info_hash;
    let span = info_span!("torrent", %info_hash);
    let living = live(shared.clone(), &config, search.clone(), span.clone());
    let ended = living.instrument(span).await;
    if let Some(search) = search {
        // Nothing is left of them unless the torrent never began.
        search.announcers().stop(end::STOPPED_TIMEOUT).await;
    }
    let (outcome, have) = match ended {
        Ok(ended) => ended,
        Err(error) => {
            let (message, hint) = (error.to_string(), error.hint().to_owned());
            shared.emit(SessionEvent::Error {
                info_hash: Some(info_hash),
                message,
                hint,
                is_final: true,
            });
            let last = load::nothing_yet(&config, TorrentState::Error);
            shared.emit(SessionEvent::Progress(last));
            (
                error.outcome(),
                Bitfield::new(config.metainfo.info.geometry.piece_count()),
            )
        }
    };
    shared.emit(SessionEvent::Ended {
        info_hash,
        outcome,
        have,
    });
    (info_hash, outcome)
}

async fn live(
    shared: Rc<Shared>,
    config: &TorrentConfig,
    search: Option<Rc<Search>>,
    span: Span,
) -> Result<(Outcome, Bitfield), SessionError> {
    let info = &config.metainfo.info;
    shared.emit(SessionEvent::Metadata {
        info_hash: config.metainfo.info_hash,
        name: info.name.clone(),
        total_bytes: info.geometry.total_bytes(),
        pieces: info.geometry.piece_count(),
        files: info.files.len(),
    });
    let Some(loaded) = load::load(&shared, config).await? else {
        let last = load::nothing_yet(config, TorrentState::Checking);
        shared.emit(SessionEvent::Progress(last));
        return Ok((Outcome::Stopped, Bitfield::new(info.geometry.piece_count())));
    };
    if !config.fetches && loaded.have.count() == 0 {
        let message = format!(
            "none of the data of {} in {} is good",
            quoted(config),
            config.folder.display()
        );
        let hint = "give the folder that holds the data with --data, or run `gyre verify` to see what differs";
        return Err(SessionError::no_data(message, hint));
    }
    if !config.fetches && !loaded.have.is_full() {
        let message = format!(
            "{} of {} pieces of {} are good: only these are seeded",
            loaded.have.count(),
            loaded.have.len(),
            quoted(config)
        );
        let hint =
            "`gyre verify` lists what is missing or wrong, `gyre download` fetches it".to_owned();
        shared.emit(SessionEvent::Warning {
            info_hash: Some(config.metainfo.info_hash),
            message,
            hint,
        });
    }
    if let Some(search) = &search {
        search.drained().await;
    }
    let mut torrent = Running::start(shared, config, loaded, search.as_deref(), span);
    let outcome = torrent.run().await;
    let outcome = torrent.end(outcome).await;
    let have = torrent.driver.read(|core| core.have().clone());
    Ok((outcome, have))
}

/// The look at all files before a torrent is called complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Look {
    #[default]
    No,
    UnderWay,
    Good,
}

struct Running<'c> {
    shared: Rc<Shared>,
    config: &'c TorrentConfig,
    driver: Rc<Driver>,
    checkpointer: Rc<Checkpointer>,
    timer: tokio::task::JoinHandle<()>,
    wanted_bytes: u64,
    pieces_checked: u32,
    started_at: Now,
    seeding_since: Option<Now>,
    /// When more was uploaded than ever before in this run, and how much that was.
    last_upload: (Now, u64),
    /// The core was told where uploads end.
    had_upload_max: bool,
    was_complete: bool,
    look: Rc<Cell<Look>>,
    /// Complete before this run: nothing is announced as `completed` (BEP 3).
    is_old_news: bool,
    /// The most payload that ever counted as downloaded in this run.
    downloaded_bytes: u64,
    /// Peers from the DHT, never of a private torrent.
    /// One for each name of the torrent.
    dht: Vec<DhtSearch>,
    /// Held to the end.
    _lock: RootLock,
}

impl<'c> Running<'c> {
    fn start(
        shared: Rc<Shared>,
        config: &'c TorrentConfig,
        loaded: Loaded,
        search: Option<&Search>,
        span: Span,
    ) -> Self {
        let core = swarm::Torrent::new(core_config(&shared, config, &loaded), shared.now());
        let geometry = &config.metainfo.info.geometry;
        let wanted_bytes = loaded
            .wanted
            .iter()
            .map(|piece| u64::from(geometry.piece_bytes(piece)))
            .sum();
        let driver = Driver::new(
            shared.clone(),
            config,
            core,
            loaded.disk,
            loaded.check_job,
            search.map_or_else(Rc::default, |search| search.announcers().clone()),
            span,
        );
        driver.trouble.made_progress(shared.now());
        driver.apply(&config.tuning);
        shared.add_torrent(driver.clone());
        let timed = driver.clone();
        let timer = tokio_uring::spawn(async move {
            if caught(timed.clone().timer_loop()).await.is_err() {
                timed.on_panic();
            }
        });
        let door = Door::Torrent(driver.clone());
        let second = config.metainfo.second_info_hash();
        match search {
            Some(search) => {
                driver.announcers.go_on(door);
                for addrs in search.addresses().chunk_by(|one, other| one.0 == other.0) {
                    let source = addrs.first().map_or(Source::Pex, |(source, _)| *source);
                    let addrs: Vec<_> = addrs.iter().map(|(_, addr)| *addr).collect();
                    driver.add_candidates(source, &addrs);
                }
            }
            None if config.trackers => {
                let tiers = config.metainfo.announce_tiers.clone();
                Announcers::start(&driver.announcers, door, tiers);
            }
            None => {}
        }
        if let Some(second) = second.filter(|_| config.trackers) {
            let tiers = config.metainfo.announce_tiers.clone();
            Announcers::start_second(&driver.announcers, &shared, second, tiers);
        }
        if config.fetches {
            driver.web_seeds.start(&driver, config);
        }
        driver.add_candidates(Source::User, &config.peers);
        let dht = search_dht(&driver, config);
        if let Some(search) = search {
            search.end_dht();
        }
        if let Some(tuned) = shared.taken_later(&driver.info_hash()) {
            driver.take(&tuned);
        }
        let checkpointer = Rc::new(Checkpointer::new(&shared, loaded.store, loaded.record));
        let shared_now = shared.now();
        Running {
            started_at: shared_now,
            shared,
            config,
            checkpointer,
            timer,
            wanted_bytes,
            pieces_checked: loaded.pieces_checked,
            seeding_since: None,
            last_upload: (shared_now, 0),
            had_upload_max: false,
            was_complete: false,
            look: Rc::default(),
            is_old_news: driver.read(swarm::Torrent::is_complete),
            downloaded_bytes: 0,
            dht,
            driver,
            _lock: loaded.lock,
        }
    }

    async fn run(&mut self) -> Outcome {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.checkpointer.spawn_save(&self.driver);
        loop {
            let is_tick = tokio::select! {
                biased;
                () = self.shared.torrent_stopping(self.config.metainfo.info_hash) => return Outcome::Stopped,
                () = self.driver.changed.notified() => false,
                _ = tick.tick() => true,
            };
            if let Some(outcome) = self.step(is_tick) {
                return outcome;
            }
        }
    }

    /// One look at the torrent; an outcome ends it.
    fn step(&mut self, is_tick: bool) -> Option<Outcome> {
        if let Some((message, hint)) = self.driver.trouble.fatal() {
            self.fail(message, hint);
            return Some(Outcome::Failed);
        }
        let now = self.shared.now();
        let is_complete = self.driver.read(swarm::Torrent::is_complete);
        // Without fetching, what is there is seeded as if it were all.
        let is_seeding = is_complete || !self.config.fetches;
        if is_seeding {
            self.seeding_since.get_or_insert(now);
        }
        let has_ratio = self.driver.seed_after.get().ratio.is_some();
        if has_ratio || self.had_upload_max {
            self.had_upload_max = has_ratio;
            let max_bytes = self.upload_max_bytes().filter(|_| is_seeding);
            self.driver
                .call(|core, cx| core.set_upload_max(max_bytes, cx));
        }
        if is_complete && !self.was_complete && self.is_all_there() {
            self.was_complete = true;
            if self.config.fetches {
                let seconds = now.since(self.started_at).as_secs_f64();
                self.shared.emit(SessionEvent::Complete {
                    info_hash: self.driver.info_hash(),
                    seconds,
                    is_news: !self.is_old_news,
                });
                if !self.is_old_news {
                    self.driver.announcers.completed();
                }
                info!(seconds, "complete");
            }
            for search in &self.dht {
                if let Some(announce) = dht_announce(&self.driver) {
                    search.set_announce(announce);
                }
            }
            self.checkpointer.spawn_save(&self.driver);
        }
        let is_known = self.was_complete || !self.config.fetches;
        if is_seeding && is_known && self.is_seeding_done(now) {
            self.tell_old_ratio();
            return Some(Outcome::Done);
        }
        if self.checkpointer.is_due(&self.driver) {
            self.checkpointer.spawn_save(&self.driver);
        }
        if is_tick {
            self.driver.look_for_hang();
            self.driver.state.set(self.state(is_complete));
            let progress = self.progress();
            if progress.uploaded_bytes > self.last_upload.1 {
                self.last_upload = (now, progress.uploaded_bytes);
            }
            if progress.downloaded_bytes > self.downloaded_bytes {
                self.downloaded_bytes = progress.downloaded_bytes;
                self.driver.trouble.payload_arrived(now);
            }
            self.shared.emit(SessionEvent::Progress(progress));
            self.driver.look_for_returned();
            return self.look_for_trouble(now, is_complete);
        }
        None
    }

    /// True once a last look found every file, and finished it: nobody removed any behind our back. Starts that look.
    fn is_all_there(&self) -> bool {
        if !self.config.fetches || self.look.get() == Look::Good {
            return true;
        }
        if self.look.get() == Look::UnderWay || self.driver.trouble.is_in_doubt() {
            return false;
        }
        self.look.set(Look::UnderWay);
        let (driver, look) = (self.driver.clone(), self.look.clone());
        self.driver.spawn(async move {
            let gone = driver.disk().look_for_gone(None).await;
            if gone.is_empty() {
                driver.finish_files().await;
            }
            look.set(match gone.is_empty() {
                true => Look::Good,
                false => Look::No,
            });
            driver.on_files_gone(gone);
            driver.changed.notify_one();
        });
        false
    }

    fn is_seeding_done(&self, now: Now) -> bool {
        let after = self.driver.seed_after.get();
        if !after.seeds {
            return true;
        }
        let seeded = self
            .seeding_since
            .map_or(Duration::ZERO, |since| now.since(since));
        let uploaded_bytes = self.uploaded_bytes();
        self.upload_max_bytes()
            .is_some_and(|max_bytes| uploaded_bytes >= max_bytes)
            || after.time.is_some_and(|wanted| seeded >= wanted)
            || after
                .idle
                .is_some_and(|wanted| seeded >= wanted && now.since(self.last_upload.0) >= wanted)
    }

    /// A run that ends by its ratio without having sent a byte says why.
    fn tell_old_ratio(&self) {
        let (_, before) = self.checkpointer.totals(&self.driver);
        let Some(ratio) = self.driver.seed_after.get().ratio else {
            return;
        };
        if self.uploaded_bytes() == 0 && before > 0 && self.upload_max_bytes() == Some(0) {
            self.shared.emit(SessionEvent::Warning {
                info_hash: Some(self.driver.info_hash()),
                message: format!(
                    "the ratio {ratio} of {} was reached in earlier runs: nothing more is sent",
                    quoted(self.config)
                ),
                hint: "give a higher --seed-ratio, or leave it out".to_owned(),
            });
        }
    }

    fn uploaded_bytes(&self) -> u64 {
        let now = self.shared.now();
        self.driver.read(|core| core.stats(now)).uploaded_bytes
    }

    /// What may be uploaded in this run until the wanted ratio is reached.
    fn upload_max_bytes(&self) -> Option<u64> {
        let ratio = self.driver.seed_after.get().ratio?;
        let (down, up) = self.checkpointer.totals(&self.driver);
        let all_bytes = (ratio * down.max(self.wanted_bytes).max(1) as f64).ceil();
        let before = up.saturating_sub(self.uploaded_bytes());
        Some((all_bytes as u64).saturating_sub(before))
    }

    /// Trouble that lasts: told once, and after `--give-up` the end.
    fn look_for_trouble(&self, now: Now, is_complete: bool) -> Option<Outcome> {
        if is_complete || !self.config.fetches {
            return None;
        }
        let silent = self.driver.trouble.silent_for(now);
        let stats = self.driver.read(|core| core.stats(now));
        if silent >= SILENT_AFTER
            && stats.peers_connected + stats.web_seeds == 0
            && self.shared.way.is_open()
            && !self.driver.trouble.is_disk_waiting()
        {
            let message = format!("no peers found for {}", quoted(self.config));
            self.driver.tell_trouble(
                message,
                "it goes on looking; check the trackers, or name a peer with --peer",
            );
        }
        let is_over = self
            .shared
            .config
            .give_up
            .is_some_and(|limit| silent >= limit);
        if !is_over {
            return None;
        }
        let told = self.driver.trouble.last_told();
        let cause = told.unwrap_or_else(|| self.why_silent(now));
        let message = format!("gave up on {}: {cause}", quoted(self.config));
        self.fail(
            message,
            "what was fetched is kept: run the same command again to go on".to_owned(),
        );
        Some(Outcome::Failed)
    }

    /// Why nothing arrives, as far as the peers tell.
    fn why_silent(&self, now: Now) -> String {
        let stats = self.driver.read(|core| core.stats(now));
        let peers = self.driver.read(|core| core.peers(now));
        let missing = match stats.pieces_wanted - stats.pieces_wanted_have {
            1 => "the piece that is missing".to_owned(),
            count => format!("the {count} pieces that are missing"),
        };
        match peers.len() {
            0 if !self.config.web_seeds.is_empty() => {
                "no peer was found, and no web seed sends anything".to_owned()
            }
            0 => "no peer was found".to_owned(),
            _ if peers.iter().any(|peer| peer.am_interested) => "no data arrived".to_owned(),
            1 => format!("the one connected peer has none of {missing}"),
            count => format!("none of the {count} connected peers has any of {missing}"),
        }
    }

    fn fail(&self, message: String, hint: String) {
        let info_hash = Some(self.driver.info_hash());
        self.shared.emit(SessionEvent::Error {
            info_hash,
            message,
            hint,
            is_final: true,
        });
        self.driver.state.set(TorrentState::Error);
    }

    fn state(&self, is_complete: bool) -> TorrentState {
        if self.driver.trouble.is_disk_waiting() {
            return TorrentState::Error;
        }
        if !self.config.fetches || (is_complete && self.driver.seed_after.get().seeds) {
            return TorrentState::Seeding;
        }
        if is_complete {
            // It leaves as soon as all is on disk.
            return TorrentState::Downloading;
        }
        let stats = self.driver.read(|core| core.stats(self.shared.now()));
        // What remains of the rate after the last peer is of the past.
        let sources = stats.peers_connected + stats.web_seeds;
        if sources == 0 || stats.down_bytes_per_s == 0 {
            TorrentState::Stalled
        } else {
            TorrentState::Downloading
        }
    }

    fn progress(&self) -> TorrentProgress {
        let stats = self.driver.read(|core| core.stats(self.shared.now()));
        let (total_down, total_up) = self.checkpointer.totals(&self.driver);
        let covers = self.driver.covers();
        // Without peers nothing moves: what the meters remember is over.
        let rate_of = |bytes_per_s| match stats.peers_connected + stats.web_seeds {
            0 => 0,
            _ => bytes_per_s,
        };
        TorrentProgress {
            info_hash: self.driver.info_hash(),
            name: self.config.metainfo.info.name.clone(),
            state: self.driver.state.get(),
            have_bytes: self.wanted_bytes.saturating_sub(stats.left_bytes),
            total_bytes: self.wanted_bytes,
            checked_bytes: 0,
            downloaded_bytes: stats.downloaded_bytes,
            downloaded_web_bytes: stats.downloaded_web_bytes,
            uploaded_bytes: stats.uploaded_bytes,
            wasted_bytes: stats.wasted_bytes,
            total_downloaded_bytes: total_down,
            total_uploaded_bytes: total_up,
            down_bytes_per_s: rate_of(stats.down_bytes_per_s),
            up_bytes_per_s: rate_of(stats.up_bytes_per_s),
            peers: stats.peers_connected,
            peers_by_source: stats.peers_by_source,
            connections_by_source: stats.connections_by_source,
            connections_utp: stats.connections_utp,
            peers_encrypted: covers.encrypted,
            peers_obfuscated: covers.obfuscated,
            peers_utp: covers.utp,
            peers_known: stats.peers_known,
            peers_filtered: stats.peers_filtered + self.shared.gate.turned_away_count(),
            web_seeds: stats.web_seeds,
            super_seeding: stats.is_super_seeding,
            pieces_have: stats.pieces_have,
            pieces: self.config.metainfo.info.geometry.piece_count(),
            pieces_checked: self.pieces_checked,
            pieces_unproven: self.driver.disk().unproven_count(),
            files_prepared: 0,
            files_to_prepare: 0,
            metadata_bytes: 0,
            metadata_total_bytes: 0,
        }
    }
}

/// Looks for the torrent's peers in the DHT, if it is public (BEP 27) and there is a DHT.
fn search_dht(driver: &Rc<Driver>, config: &TorrentConfig) -> Vec<DhtSearch> {
    let shared = driver.shared();
    let Some(dht) = shared.dht().filter(|_| !config.metainfo.info.is_private) else {
        return Vec::new();
    };
    dht.add_hosts(&config.metainfo.nodes);
    let names = [Some(driver.info_hash()), config.metainfo.second_info_hash()];
    let search = |info_hash| {
        let of_peers = Rc::downgrade(driver);
        dht.search(info_hash, dht_announce(driver), move |source, addrs| {
            if let Some(driver) = of_peers.upgrade() {
                driver.add_candidates(source, addrs);
            }
        })
    };
    names.into_iter().flatten().map(search).collect()
}

/// What others are told of us: nothing as long as nobody can connect.
fn dht_announce(driver: &Driver) -> Option<Announce> {
    let port = Some(driver.shared().port.get()).filter(|port| *port != 0)?;
    Some(Announce {
        port: Some(port),
        is_seed: driver.read(swarm::Torrent::is_complete),
    })
}

fn core_config(shared: &Shared, config: &TorrentConfig, loaded: &Loaded) -> swarm::TorrentConfig {
    let info = &config.metainfo.info;
    swarm::TorrentConfig {
        have: loaded.have.clone(),
        wanted: loaded.wanted.clone(),
        info_hash: config.metainfo.info_hash,
        is_sequential: config.is_sequential,
        super_seeds: config.tuning.super_seeds,
        fetches: config.fetches,
        is_private: info.is_private,
        peers_max: tune::peers_max(shared, &config.tuning),
        upload_slots: shared.config.upload_slots,
        slots_max: shared.slots.first(&config.tuning.rules),
        seed_choker: shared.config.seed_choker,
        assembly_budget_bytes: shared.assembly_bytes,
        listen_port: shared.port.get(),
        metadata: Some(config.metainfo.info_bytes.clone()),
        trees: PieceTrees::of(info, &config.metainfo.piece_layers),
        exchanges_peers: shared.config.exchanges_peers,
        punches_holes: shared.config.holepunch && shared.utp().is_some(),
        dht_port: shared
            .dht()
            .filter(|_| !info.is_private && shared.socks.is_none())
            .map(|_| shared.port.get()),
        limit_up_bytes_per_s: shared.up.session_rate(),
        ..swarm::TorrentConfig::new(info.geometry.clone(), shared.our_id, shared.random())
    }
}

/// The torrent's name in quotation marks, for messages; whatever its author wrote, it stays on a line.
pub(super) fn quoted(config: &TorrentConfig) -> String {
    quoted_name(&config.metainfo.info.name)
}

/// The same of any name.
pub(super) fn quoted_name(name: &str) -> String {
    /// Enough to know it by.
    const CHARS_MAX: usize = 60;
    let escaped: String = name.escape_debug().collect();
    match escaped.chars().nth(CHARS_MAX) {
        None => format!("\"{escaped}\""),
        Some(_) => {
            let head: String = escaped.chars().take(CHARS_MAX - 1).collect();
            format!("\"{head}…\"")
        }
    }
}

/// The folder that records and files are looked for in.
pub fn folder(config: &TorrentConfig) -> PathBuf {
    if config.folder.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        config.folder.clone()
    }
}
