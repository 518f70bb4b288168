//! Web seeds (BEP 19): the files of a torrent on web servers, as further sources of its blocks. Layer 5.
//!
//! To the core a connection here is a peer that has everything and never chokes (`swarm::torrent`'s `on_web_seed`). Which
//! seeds are used, how many connections each has and when one that failed is tried again is decided here; one
//! connection is in `web_seed/connection.rs`, what an answer is worth in `web_seed/verdict.rs`.

mod connection;
mod feed;
pub mod verdict;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tracing::{debug, info};

pub use self::connection::WebHandle;
use self::verdict::{Consequence, Failure};
use super::config::{SessionEvent, TorrentConfig};
use super::driver::Driver;
use crate::base::PieceIndex;
use crate::swarm::{self, WebSeedId};
use crate::uring::tls;
use crate::wire::web_seed::WebSeed;

/// Web seeds of one torrent that are used; torrents name a few mirrors, and a list may have been made to have many
/// visitors sent to somebody.
const SEEDS_MAX: usize = 16;
/// Connections to one web seed: while one waits for its next answer to begin, the other receives. Servers take more of
/// one visitor amiss.
const CONNECTIONS_MAX: usize = 2;
/// Connections to all web seeds of a torrent at a time; each takes up to 4 MiB of assembly memory.
const CONNECTIONS_PER_TORRENT_MAX: usize = 4;
/// The pause after a first failure; it doubles with each that follows.
const PAUSE_MIN: Duration = Duration::from_secs(15);
/// The same where the server names a time: one that says "at once" each time is asked less and less often.
const WISHED_PAUSE_MIN: Duration = Duration::from_secs(1);
/// However often it failed, and however long it wishes to be left alone.
const PAUSE_MAX: Duration = Duration::from_secs(3_600);
/// Files that a seed may lack: one that lacks more has another torrent's files.
const FILES_GONE_MAX: usize = 64;
/// How often a torrent that has everything looks whether something was lost.
const IDLE_LOOK: Duration = Duration::from_secs(10);

/// The web seeds of one torrent.
#[derive(Default)]
pub struct WebSeeds {
    seeds: RefCell<Vec<Rc<Seed>>>,
}

/// One web seed.
struct Seed {
    id: WebSeedId,
    url: WebSeed,
    /// It was given up or banned.
    is_over: Cell<bool>,
    /// A request succeeded: more connections are worth it.
    is_proven: Cell<bool>,
    changed: Notify,
    failures: Cell<u32>,
    retry_at: Cell<Option<Instant>>,
    gone_files: RefCell<BTreeSet<usize>>,
    /// The user heard of a failure.
    is_told: Cell<bool>,
}

impl WebSeeds {
    /// Begins to use them. What cannot be used is told.
    pub fn start(&self, driver: &Rc<Driver>, config: &TorrentConfig) {
        let mut seeds = Vec::new();
        let mut is_https_told = false;
        for text in &config.web_seeds {
            match WebSeed::parse(text) {
                Ok(url) if url.is_https() && !tls::IS_BUILT_IN => {
                    if !std::mem::replace(&mut is_https_told, true) {
                        tell_https(driver, text);
                    }
                }
                Ok(url) if seeds.len() < SEEDS_MAX => {
                    let id = u16::try_from(seeds.len()).unwrap_or(u16::MAX);
                    seeds.push(Rc::new(Seed::new(WebSeedId(id), url)));
                }
                Ok(url) => debug!(%url, "one web seed too many"),
                Err(error) => debug!(?text, %error, "no web seed"),
            }
        }
        let places = Rc::new(Semaphore::new(CONNECTIONS_PER_TORRENT_MAX));
        for number in 0..CONNECTIONS_MAX {
            for seed in &seeds {
                let (of, seed, places) = (driver.clone(), seed.clone(), places.clone());
                driver.spawn(async move { keep_up(&of, &seed, number, &places).await });
            }
        }
        *self.seeds.borrow_mut() = seeds;
    }

    /// There is a way out again after there was none: failures say nothing about the seeds.
    pub fn on_way_back(&self) {
        for seed in self.seeds.borrow().iter() {
            seed.failures.set(0);
            seed.retry_at.set(None);
            seed.changed.notify_waiters();
        }
    }

    /// The core found out that it sends corrupt data.
    pub fn ban(&self, driver: &Driver, id: WebSeedId) {
        let seeds = self.seeds.borrow();
        let Some(seed) = seeds.iter().find(|seed| seed.id == id) else {
            return;
        };
        info!(url = %seed.url, "web seed banned: it sent corrupt data");
        seed.give_up();
        driver.shared().emit(SessionEvent::WebSeedBanned {
            info_hash: driver.info_hash(),
            url: seed.url.to_string(),
        });
    }
}

/// Keeps one connection up as long as the torrent runs and the seed is worth it.
async fn keep_up(driver: &Rc<Driver>, seed: &Rc<Seed>, number: usize, places: &Semaphore) {
    if number > 0 {
        tokio::select! {
            () = driver.ending() => return,
            () = seed.proven() => {}
        }
    }
    while !seed.is_over.get() {
        let way = &driver.shared().way;
        let ready = async {
            seed.ready().await;
            way.opened().await;
            let place = places.acquire().await;
            let session_place = driver.shared().web_connections.acquire().await;
            (place, session_place)
        };
        let held = tokio::select! {
            () = driver.ending() => return,
            held = ready => held,
        };
        // Others may have failed while this one waited for its place.
        if seed.is_over.get() || seed.pause_left().is_some() {
            continue;
        }
        match connection::run(driver, seed).await {
            Ok(()) => {
                drop(held);
                tokio::select! {
                    () = driver.ending() => return,
                    () = seed.wait_for_work(driver) => {}
                }
            }
            Err(_) if !way.is_open() => {}
            Err(failure) => seed.on_failure(driver, &failure),
        }
    }
}

impl Seed {
    fn new(id: WebSeedId, url: WebSeed) -> Seed {
        Seed {
            id,
            url,
            is_over: Cell::new(false),
            is_proven: Cell::new(false),
            changed: Notify::new(),
            failures: Cell::new(0),
            retry_at: Cell::new(None),
            gone_files: RefCell::default(),
            is_told: Cell::new(false),
        }
    }

    fn give_up(&self) {
        self.is_over.set(true);
        self.changed.notify_waiters();
    }

    /// Completes once a request succeeded, or none will.
    async fn proven(&self) {
        while !self.is_proven.get() && !self.is_over.get() {
            self.changed.notified().await;
        }
    }

    fn pause_left(&self) -> Option<Duration> {
        let left = self.retry_at.get()?.checked_duration_since(Instant::now());
        left.filter(|left| !left.is_zero())
    }

    /// Completes when it may be asked, or never will be.
    async fn ready(&self) {
        while !self.is_over.get()
            && let Some(left) = self.pause_left()
        {
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Completes when the torrent lacks something that the seed may have.
    async fn wait_for_work(&self, driver: &Driver) {
        while !self.is_over.get() {
            if !driver.read(swarm::Torrent::is_complete) && !self.has_nothing_for(driver) {
                return;
            }
            tokio::time::sleep(IDLE_LOOK).await;
        }
    }

    fn has_nothing_for(&self, driver: &Driver) -> bool {
        let gone: BTreeSet<PieceIndex> = self.gone_pieces(driver).into_iter().collect();
        !gone.is_empty() && driver.read(|core| core.is_missing_only(&gone))
    }

    fn on_success(&self) {
        self.failures.set(0);
        self.retry_at.set(None);
        if !self.is_proven.replace(true) {
            self.changed.notify_waiters();
        }
    }

    /// A request for this file failed.
    fn on_file_failure(&self, file: usize, failure: &Failure) {
        if failure.consequence() == Consequence::NoFile {
            self.gone_files.borrow_mut().insert(file);
        }
    }

    fn on_failure(&self, driver: &Driver, failure: &Failure) {
        debug!(url = %self.url, %failure, "web seed failed");
        let is_empty_handed = self.gone_files.borrow().len() > FILES_GONE_MAX;
        match failure.consequence() {
            Consequence::None => {}
            Consequence::NoFile => {
                let is_all = is_empty_handed || self.has_nothing_for(driver);
                if is_all {
                    self.give_up();
                }
                self.tell(
                    driver,
                    failure,
                    match is_all {
                        true => "it is used no more",
                        false => "that file is fetched from others",
                    },
                );
            }
            Consequence::GiveUp => {
                self.give_up();
                self.tell(driver, failure, "it is used no more");
            }
            Consequence::Pause(wish) => {
                self.pause(wish);
                self.tell(driver, failure, "it is tried again later");
            }
        }
    }

    /// Leaves the seed alone for a while. Failures of connections beside each other count as one.
    fn pause(&self, wish: Option<Duration>) {
        if self.pause_left().is_some() {
            return;
        }
        let doublings = self.failures.get().min(16);
        self.failures.set(self.failures.get().saturating_add(1));
        let pause = match wish {
            Some(wish) => wish.max(WISHED_PAUSE_MIN * (1 << doublings)),
            None => PAUSE_MIN * (1 << doublings),
        };
        let pause = pause.min(PAUSE_MAX);
        self.retry_at.set(Some(Instant::now() + pause));
    }

    /// Tells the user of the first failure; the others are in the log.
    fn tell(&self, driver: &Driver, failure: &Failure, follows: &str) {
        if self.is_told.replace(true) {
            return;
        }
        driver.shared().emit(SessionEvent::Warning {
            info_hash: Some(driver.info_hash()),
            message: format!("web seed {}: {failure}", self.url),
            hint: format!("{follows}; --no-web-seeds leaves web seeds alone"),
        });
    }

    /// The pieces with bytes of files that the seed lacks.
    fn gone_pieces(&self, driver: &Driver) -> Vec<PieceIndex> {
        let layout = driver.disk().layout();
        let files = self.gone_files.borrow();
        let pieces = files.iter().flat_map(|file| layout.pieces_of_file(*file));
        let mut pieces: Vec<PieceIndex> = pieces.map(PieceIndex::new).collect();
        pieces.dedup();
        pieces
    }
}

fn tell_https(driver: &Driver, text: &str) {
    let shown: String = text.escape_debug().take(200).collect();
    driver.shared().emit(SessionEvent::Warning {
        info_hash: Some(driver.info_hash()),
        message: format!("web seed {shown} is left out: {}", tls::ABSENT),
        hint: "peers and other web seeds are used; if the server speaks http too, add that URL to the .torrent"
            .to_owned(),
    });
}
