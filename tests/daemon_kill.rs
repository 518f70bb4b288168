//! `kill -9` of a daemon that seeds while torrents are added, removed, stopped and started: what was acknowledged holds
//! after the next start. `GYRE_LONG=1` kills 50 times, `GYRE_KILL_SEED` repeats a failure.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gyre::base::Rng;
use serde_json::{Value, json};
use support::Sample;
use support::daemon::Daemon;
use support::fake_peer::{Answer, BLOCK, Content, FakeLeecher};
use support::program::PATIENCE;
use support::sample::text;

const PIECE_BYTES: u32 = 64 * 1024;
/// What is fetched all the time.
const SEED_BYTES: usize = 4 << 20;
const LEECHERS: u32 = 2;
/// Torrents that come and go.
const TORRENTS: usize = 30;
/// Commands that wait for their answers at a time, so that a kill finds some half done.
const UNANSWERED_MAX: usize = 4;
/// How long commands are given before a kill.
const LIFE_MS_MAX: u64 = 500;
/// A start that is killed on its way, once in so many.
const SHORT_LIVES: u64 = 4;

/// What is known of a torrent: gone, or there and wanted to run or not.
type Known = Option<bool>;

/// A command without an answer yet.
struct Given {
    torrent: usize,
    after: Known,
}

/// Fetches block after block until the daemon is gone.
fn leech(addr: SocketAddr, content: &Content, from: u32, fetched: &AtomicU64) {
    let end = Instant::now() + PATIENCE;
    // It listens before it knows all of its torrents.
    let mut leecher = loop {
        if let Some(leecher) = FakeLeecher::connect(addr, content) {
            break leecher;
        }
        if Instant::now() > end {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if !leecher.unchoked(PATIENCE) {
        return;
    }
    let blocks = PIECE_BYTES / BLOCK;
    for number in from.. {
        let piece = (number / blocks) % content.piece_count();
        let begin = number % blocks * BLOCK;
        match leecher.fetch(piece, begin, BLOCK, PATIENCE) {
            Answer::Block(bytes) => {
                assert_eq!(content.block(piece, begin, BLOCK), Some(&bytes[..]));
                fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            Answer::Rejected => {}
            Answer::Nothing | Answer::Closed => return,
        }
    }
}

fn hex(sample: &Sample) -> String {
    let digits = sample.info_hash.iter().map(|byte| format!("{byte:02x}"));
    digits.collect()
}

/// A daemon's state, and what of it was acknowledged.
struct SeedBox {
    seed: Sample,
    content: Content,
    samples: Vec<Sample>,
    hashes: Vec<String>,
    state: PathBuf,
    known: Vec<Known>,
    given: BTreeMap<u64, Given>,
    random: Rng,
    fetched: Arc<AtomicU64>,
    acknowledged: usize,
}

impl SeedBox {
    fn new() -> SeedBox {
        let drawn = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("GYRE_KILL_SEED").map_or(drawn, |seed| seed.parse().unwrap());
        println!("repeat with GYRE_KILL_SEED={seed}");
        let samples: Vec<Sample> = (0..TORRENTS)
            .map(|n| Sample::file(20_000 + n * 1_000, 16_384, &[]))
            .collect();
        let seeded = Sample::file(SEED_BYTES, PIECE_BYTES, &[]);
        SeedBox {
            content: Content::of(&seeded),
            hashes: samples.iter().map(hex).collect(),
            state: seeded.dir("state"),
            known: vec![None; TORRENTS],
            given: BTreeMap::new(),
            random: Rng::new(seed),
            fetched: Arc::default(),
            acknowledged: 0,
            seed: seeded,
            samples,
        }
    }

    /// Peers that fetch; they do so already.
    fn leechers(&self, addr: SocketAddr) -> Vec<JoinHandle<()>> {
        let before = self.fetched.load(Ordering::Relaxed);
        let one = |number: u32| {
            let (content, fetched) = (self.content.clone(), Arc::clone(&self.fetched));
            std::thread::spawn(move || leech(addr, &content, number * 7, &fetched))
        };
        let leechers = (0..LEECHERS).map(one).collect();
        let end = Instant::now() + PATIENCE;
        while self.fetched.load(Ordering::Relaxed) == before {
            assert!(Instant::now() < end, "nothing is served");
            std::thread::sleep(Duration::from_millis(2));
        }
        leechers
    }

    /// What is there now must be what was acknowledged; of what was not answered either will do.
    fn look(&mut self, daemon: &mut Daemon, kill: usize) {
        let answer = daemon.ask(json!({ "do": "list" }));
        let torrents = answer["torrents"].as_array().unwrap();
        let mut is_open = [None; TORRENTS];
        for given in std::mem::take(&mut self.given).into_values() {
            is_open[given.torrent] = Some(given.after);
        }
        let seed = hex(&self.seed);
        let is_seed_there = torrents.iter().any(|one| one["info_hash"] == *seed);
        assert!(is_seed_there, "kill {kill}: the seed is gone");
        for (torrent, hash) in self.hashes.iter().enumerate() {
            let found = torrents.iter().find(|one| one["info_hash"] == **hash);
            let now = found.map(|one| one["is_wanted"].as_bool().unwrap());
            let is_right = now == self.known[torrent] || is_open[torrent] == Some(now);
            assert!(
                is_right,
                "kill {kill}, torrent {torrent}: {:?} was acknowledged, {:?} was asked for, {now:?} is there",
                self.known[torrent], is_open[torrent]
            );
            self.known[torrent] = now;
        }
    }

    /// Gives a command to some torrent that waits for no answer.
    fn give(&mut self, daemon: &mut Daemon) {
        let torrent = self.random.below(TORRENTS as u64) as usize;
        if self.given.values().any(|given| given.torrent == torrent) {
            return;
        }
        let hash = &self.hashes[torrent];
        let (asked, after) = match (self.known[torrent], self.random.below(3)) {
            (None, _) => {
                let sample = &self.samples[torrent];
                let asked = json!({
                    "do": "add", "torrent": text(&sample.torrent), "folder": text(&sample.data), "fetches": false,
                });
                (asked, Some(true))
            }
            (Some(_), 0) => (json!({ "do": "remove", "info_hash": hash }), None),
            (Some(true), _) => (json!({ "do": "stop", "info_hash": hash }), Some(false)),
            (Some(false), _) => (json!({ "do": "start", "info_hash": hash }), Some(true)),
        };
        let id = daemon.give(asked);
        self.given.insert(id, Given { torrent, after });
    }

    fn hear(&mut self, event: &Value) {
        let id = event["id"].as_u64().filter(|_| event["event"] == "answer");
        if let Some(given) = id.and_then(|id| self.given.remove(&id)) {
            assert_eq!(event["error"], Value::Null, "{event}");
            self.known[given.torrent] = given.after;
            self.acknowledged += 1;
        }
    }

    /// One life: commands until it is over, and whatever was still answered.
    fn live(&mut self, daemon: &mut Daemon) {
        let life = Duration::from_millis(self.random.below(LIFE_MS_MAX));
        let end = Instant::now() + life;
        while Instant::now() < end {
            if self.given.len() < UNANSWERED_MAX {
                self.give(daemon);
            }
            let limit = if self.given.len() < UNANSWERED_MAX {
                Duration::ZERO
            } else {
                end.saturating_duration_since(Instant::now())
            };
            if let Some(event) = daemon.gyre.next_within(limit) {
                self.hear(&event);
            }
        }
        daemon.gyre.kill9();
        while let Some(event) = daemon.gyre.next_within(PATIENCE) {
            self.hear(&event);
        }
    }
}

#[test]
fn what_a_busy_daemon_acknowledged_holds_whenever_it_is_killed() {
    let kills = if std::env::var_os("GYRE_LONG").is_some() {
        50
    } else {
        8
    };
    let mut seed_box = SeedBox::new();
    let mut daemon = Daemon::start(&seed_box.state);
    daemon.add(&seed_box.seed, &seed_box.seed.data);
    daemon.seeding();
    daemon.gyre.kill9();
    drop(daemon);
    for kill in 0..kills {
        let mut daemon = Daemon::start(&seed_box.state);
        if seed_box.random.below(SHORT_LIVES) == 0 {
            std::thread::sleep(Duration::from_millis(
                seed_box.random.below(LIFE_MS_MAX / 3),
            ));
            daemon.gyre.kill9();
            continue;
        }
        let addr = daemon.gyre.listening();
        seed_box.look(&mut daemon, kill);
        let leechers = seed_box.leechers(addr);
        seed_box.live(&mut daemon);
        for leecher in leechers {
            leecher.join().unwrap();
        }
    }
    let mut daemon = Daemon::start(&seed_box.state);
    daemon.gyre.listening();
    seed_box.look(&mut daemon, kills);
    daemon.terminate();
    let fetched = seed_box.fetched.load(Ordering::Relaxed);
    println!(
        "{kills} kills, {} commands acknowledged, {fetched} bytes served meanwhile",
        seed_box.acknowledged
    );
    assert!(seed_box.acknowledged > kills, "commands were under way");
    assert!(fetched > u64::from(BLOCK), "it was under load");
}
