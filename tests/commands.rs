//! A session that takes commands: what each does, what the board shows of it, and that it lives until it is told to end.

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gyre::base::InfoHash;
use gyre::session::command::{
    self, Activity, Announced, Limits, NewTorrent, Sleep, TorrentSnapshot,
};
use gyre::session::tune::{Tuned, Tuning};
use gyre::session::{
    self, CheckMode, Command, CommandError, Encryption, Job, Outcome, PortChoice, Preallocate,
    SeedAfter, SendEngine, SessionConfig, SessionError, SessionHandle, SessionSummary, Stopper,
    TorrentConfig, TorrentProgress, TorrentSource, TorrentState, WriteEngine,
};
use gyre::swarm::choker::{SeedChoker, UploadSlots};
use gyre::uring::ring::{self, RingConfig};
use gyre::wire::metainfo::Metainfo;
use support::fake_tracker::{HttpTracker, ok, peers};
use support::program::PATIENCE;
use support::raw_peer::{Hello, RawPeer};
use support::sample::text;
use support::{Gyre, Sample};

/// Settings held in memory.
#[derive(Default)]
struct Held(Mutex<BTreeMap<InfoHash, TorrentConfig>>);

impl TorrentSource for Held {
    fn job(&self, info_hash: InfoHash) -> Result<Job, SessionError> {
        let held = self.0.lock().unwrap();
        let config = held.get(&info_hash).cloned();
        let config = config.ok_or_else(|| SessionError::new("nothing is known of it", ""))?;
        Ok(Job::Torrent(config))
    }
}

struct Session {
    handle: SessionHandle,
    held: Arc<Held>,
    thread: Option<JoinHandle<Result<SessionSummary, SessionError>>>,
}

impl Session {
    /// An empty session on a thread of its own.
    fn start(state: &Path) -> Session {
        let (handle, source) = command::channel();
        let held = Arc::new(Held::default());
        let (config, of_session) = (settings(state), held.clone());
        let thread = std::thread::spawn(move || {
            let ring = ring::start(RingConfig::default()).unwrap();
            let serve = session::serve(config, of_session, source, Stopper::default(), |event| {
                drop(event)
            });
            ring.block_on(serve)
        });
        Session {
            handle,
            held,
            thread: Some(thread),
        }
    }

    fn add(&self, sample: &Sample, folder: &Path, fetches: bool, runs: bool) -> InfoHash {
        self.add_sleeping(sample, folder, fetches, runs, None)
    }

    fn add_sleeping(
        &self,
        sample: &Sample,
        folder: &Path,
        fetches: bool,
        runs: bool,
        sleeps: Option<Sleep>,
    ) -> InfoHash {
        let metainfo = Metainfo::parse(&std::fs::read(&sample.torrent).unwrap()).unwrap();
        let info_hash = metainfo.info_hash;
        let name = metainfo.info.name.clone();
        let config = torrent(metainfo, folder, fetches);
        self.held.0.lock().unwrap().insert(info_hash, config);
        let torrent = NewTorrent {
            figures: TorrentProgress::nothing(info_hash, name, TorrentState::Paused),
            runs,
            sleeps,
        };
        let torrent = Box::new(torrent);
        self.ask(|reply| Command::Add { torrent, reply });
        info_hash
    }

    fn ask<T>(&self, command: impl FnOnce(command::Reply<T>) -> Command) -> T {
        self.handle.ask_blocking(command).unwrap()
    }

    fn port(&self) -> u16 {
        let listening = self.wait(|handle| handle.session().listening.first().copied());
        listening.port()
    }

    fn wait<T>(&self, mut look: impl FnMut(&SessionHandle) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(&self.handle) {
                return found;
            }
            assert!(Instant::now() < end, "{:?}", self.handle.torrents());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_for(
        &self,
        info_hash: InfoHash,
        is_it: impl Fn(&TorrentSnapshot) -> bool,
    ) -> Arc<TorrentSnapshot> {
        self.wait(|handle| handle.torrent(&info_hash).filter(|torrent| is_it(torrent)))
    }

    fn end(mut self) -> SessionSummary {
        self.ask(|reply| Command::Shutdown { reply });
        self.thread.take().unwrap().join().unwrap().unwrap()
    }
}

fn settings(state: &Path) -> SessionConfig {
    SessionConfig {
        state_dir: state.to_owned(),
        port: PortChoice::Exactly(0),
        bind: Some(session::BindTo::Addr([127, 0, 0, 1].into())),
        ipv6: false,
        tcp: true,
        utp: true,
        holepunch: true,
        lsd: false,
        limit_up_bytes_per_s: None,
        limit_down_bytes_per_s: None,
        encryption: Encryption::Prefer,
        peers_max: 100,
        upload_slots: UploadSlots::Auto,
        seed_choker: SeedChoker::RoundRobin,
        exchanges_peers: true,
        buffers_bytes: Some(4 << 20),
        send_engine: SendEngine::Auto,
        write_engine: WriteEngine::Auto,
        give_up: None,
        http_proxy: None,
        no_proxy: Vec::new(),
        proxy: None,
        tracker_ca: None,
        ip_filter: None,
        port_map: None,
        announce_interval_min: Duration::from_secs(1),
        dht: None,
        tells_delays: false,
    }
}

fn torrent(metainfo: Metainfo, folder: &Path, fetches: bool) -> TorrentConfig {
    TorrentConfig {
        metainfo: Arc::new(metainfo),
        folder: folder.to_owned(),
        place: gyre::session::DataPlace::default(),
        fetches,
        check: CheckMode::Auto,
        preallocate: Preallocate::Sparse,
        is_sequential: false,
        selected_files: None,
        peers: Vec::new(),
        trackers: false,
        web_seeds: Vec::new(),
        seed_after: SeedAfter {
            seeds: true,
            ..SeedAfter::default()
        },
        tuning: Tuning::default(),
    }
}

fn is_seeding(torrent: &TorrentSnapshot) -> bool {
    torrent.activity == Activity::Running && torrent.progress.state == TorrentState::Seeding
}

/// Fetches the torrent from that port, with a command and a state of its own.
fn fetch(sample: &Sample, into: &str, port: u16) {
    fetch_with(sample, into, port, "prefer");
}

fn fetch_with(sample: &Sample, into: &str, port: u16, encryption: &str) {
    fetch_from(&text(&sample.torrent), sample, into, port, encryption);
}

/// Fetches what a .torrent or a link names.
fn fetch_from(source: &str, sample: &Sample, into: &str, port: u16, encryption: &str) {
    let (state, out) = (
        text(&sample.dir(&format!("{into}-state"))),
        sample.dir(into),
    );
    let mut leech = Gyre::start(&[
        "download",
        source,
        "-o",
        &text(&out),
        "--state",
        &state,
        "--port",
        "0",
        "--peer",
        &SocketAddr::from(([127, 0, 0, 1], port)).to_string(),
        "--no-dht",
        "--no-lsd",
        "--no-trackers",
        "--encryption",
        encryption,
    ]);
    assert_eq!(leech.wait_exit(PATIENCE), 0);
    assert!(sample.is_same_in(&out));
}

#[test]
fn what_is_set_while_a_torrent_is_loaded_is_in_force_then() {
    let sample = Sample::file(300_000, 65_536, &[]);
    let state = tempfile::tempdir().unwrap();
    let session = Session::start(state.path());
    let info_hash = session.add(&sample, &sample.data, false, false);
    {
        // Its settings cannot be read before this is let go.
        let _held = session.held.0.lock().unwrap();
        session.ask(|reply| Command::Start { info_hash, reply });
        let tuned = Box::new(Tuned {
            seed_after: SeedAfter::default(),
            ..Tuned::default()
        });
        session.ask(|reply| Command::Tune {
            info_hash,
            tuned,
            reply,
        });
    }
    let over = session.wait_for(info_hash, |torrent| torrent.activity == Activity::Stopped);
    assert_eq!(over.outcome, Some(Outcome::Done), "it seeds no more");
    session.end();
}

#[test]
fn a_torrent_is_added_seeds_stops_starts_and_is_removed() {
    let sample = Sample::tree(&[("a", 1 << 20), ("b/c", 70_001)], 65_536, &[]);
    let session = Session::start(&sample.dir("state"));
    let port = session.port();
    assert!(session.handle.torrents().is_empty());
    let info_hash = session.add(&sample, &sample.data, false, true);
    session.wait_for(info_hash, is_seeding);
    fetch(&sample, "first", port);
    // The figures are from about a second ago.
    let is_all = |uploaded_bytes| uploaded_bytes >= (1 << 20) + 70_001;
    let sent =
        session.wait(|handle| Some(handle.session()).filter(|now| is_all(now.uploaded_bytes)));
    assert_eq!((sent.torrents, sent.running), (1, 1));

    session.ask(|reply| Command::Stop { info_hash, reply });
    let stopped = session.wait_for(info_hash, |torrent| torrent.activity == Activity::Stopped);
    assert_eq!(stopped.outcome, Some(Outcome::Stopped));
    assert_eq!(stopped.progress.state, TorrentState::Paused);
    assert!(stopped.progress.total_uploaded_bytes >= (1 << 20) + 70_001);
    assert_eq!(session.handle.session().running, 0);

    session.ask(|reply| Command::Start { info_hash, reply });
    let again = session.wait_for(info_hash, is_seeding);
    assert_eq!(again.progress.pieces_checked, 0, "the record was trusted");
    assert!(again.revision > stopped.revision);
    fetch(&sample, "second", port);

    let removed = session.ask(|reply| Command::Remove {
        info_hash,
        with_data: false,
        reply,
    });
    assert_eq!(removed, command::Removed::default());
    assert!(session.handle.torrent(&info_hash).is_none());
    let again = session
        .handle
        .ask_blocking(|reply| Command::Start { info_hash, reply });
    assert_eq!(again, Err(CommandError::Unknown(info_hash)));
    assert!(sample.is_same_in(&sample.data), "the data stays");
    let resume = std::fs::read_dir(sample.dir("state").join("resume")).unwrap();
    assert_eq!(resume.count(), 0);
    assert_eq!(session.end().outcomes, []);
}

#[test]
fn a_torrent_that_is_stopped_and_started_at_once_runs() {
    let sample = Sample::file(300_000, 65_536, &[]);
    let session = Session::start(&sample.dir("state"));
    let info_hash = session.add(&sample, &sample.data, false, true);
    session.wait_for(info_hash, is_seeding);
    for _ in 0..5 {
        session.ask(|reply| Command::Stop { info_hash, reply });
        session.ask(|reply| Command::Start { info_hash, reply });
    }
    session.wait_for(info_hash, is_seeding);
    assert_eq!(session.end().outcomes, [(info_hash, Outcome::Stopped)]);
}

#[test]
fn a_check_on_demand_reads_everything_and_leaves_a_stopped_torrent_stopped() {
    let sample = Sample::file(300_000, 65_536, &[]);
    let session = Session::start(&sample.dir("state"));
    let info_hash = session.add(&sample, &sample.data, false, true);
    session.wait_for(info_hash, is_seeding);
    session.ask(|reply| Command::Verify { info_hash, reply });
    let checked = session.wait_for(info_hash, |torrent| {
        is_seeding(torrent) && torrent.progress.pieces_checked == 5
    });
    session.ask(|reply| Command::Stop { info_hash, reply });
    session.wait_for(info_hash, |torrent| torrent.activity == Activity::Stopped);
    session.ask(|reply| Command::Verify { info_hash, reply });
    let again = session.wait_for(info_hash, |torrent| {
        torrent.activity == Activity::Stopped && torrent.revision > checked.revision + 2
    });
    assert_eq!(again.progress.pieces_checked, 5);
    session.end();
}

#[test]
fn removing_with_data_takes_the_torrents_files_and_no_others() {
    let sample = Sample::tree(&[("a", 100_000), ("b/c", 70_001)], 65_536, &[]);
    let session = Session::start(&sample.dir("state"));
    let info_hash = session.add(&sample, &sample.data, false, true);
    session.wait_for(info_hash, is_seeding);
    let root = std::fs::read_dir(&sample.data).unwrap().next().unwrap();
    let root = root.unwrap().path();
    std::fs::write(root.join("mine"), "mine").unwrap();
    let removed = session.ask(|reply| Command::Remove {
        info_hash,
        with_data: true,
        reply,
    });
    assert_eq!(removed.files, 2);
    assert_eq!(removed.kept, Vec::<String>::new());
    let left: Vec<_> = std::fs::read_dir(&root).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(root.join("mine").exists());
    session.end();
}

#[test]
fn a_torrent_that_cannot_run_says_why_and_can_be_tried_again() {
    let sample = Sample::file(300_000, 65_536, &[]);
    let session = Session::start(&sample.dir("state"));
    let elsewhere = sample.dir("elsewhere");
    let info_hash = session.add(&sample, &elsewhere, false, true);
    let failed = session.wait_for(info_hash, |torrent| torrent.activity == Activity::Failed);
    let trouble = failed.trouble.clone().unwrap();
    assert!(
        trouble.is_final && !trouble.message.is_empty(),
        "{trouble:?}"
    );
    let metainfo = Metainfo::parse(&std::fs::read(&sample.torrent).unwrap()).unwrap();
    let right = torrent(metainfo, &sample.data, false);
    session.held.0.lock().unwrap().insert(info_hash, right);
    session.ask(|reply| Command::Start { info_hash, reply });
    let good = session.wait_for(info_hash, is_seeding);
    assert_eq!(good.trouble, None);
    let twice = NewTorrent {
        figures: good.progress.clone(),
        runs: true,
        sleeps: None,
    };
    let twice = session.handle.ask_blocking(|reply| Command::Add {
        torrent: Box::new(twice),
        reply,
    });
    assert_eq!(twice, Err(CommandError::Present(info_hash)));
    session.end();
}

#[test]
fn limits_hold_from_the_moment_they_are_set_and_go_with_it_too() {
    let sample = Sample::file(4 << 20, 65_536, &[]);
    let session = Session::start(&sample.dir("state"));
    let port = session.port();
    let info_hash = session.add(&sample, &sample.data, false, true);
    session.wait_for(info_hash, is_seeding);
    let limits = Limits {
        up_bytes_per_s: Some(64 << 10),
        down_bytes_per_s: None,
    };
    session.ask(|reply| Command::SetLimits { limits, reply });
    let shown = session.wait(|handle| Some(handle.session()).filter(|now| now.limits == limits));
    assert_eq!(shown.uploaded_bytes, 0);
    let fetching = std::thread::scope(|scope| {
        let begun = Instant::now();
        let fetching = scope.spawn(|| fetch(&sample, "out", port));
        let sent = session.wait(|handle| {
            let sent = handle.session().uploaded_bytes;
            (sent >= 128 << 10).then_some(sent)
        });
        assert!(sent < 1 << 20, "{sent}");
        assert!(begun.elapsed() >= Duration::from_secs(1));
        let limits = Limits::default();
        session.ask(|reply| Command::SetLimits { limits, reply });
        let freed = Instant::now();
        fetching.join().unwrap();
        freed.elapsed()
    });
    assert!(fetching < Duration::from_secs(30), "{fetching:?}");
    session.end();
}

#[test]
fn a_seed_sleeps_until_a_peer_asks_for_it_hidden_or_in_the_open_and_again_behind_it() {
    let sample = Sample::tree(&[("a", 300_000), ("b/c", 70_001)], 65_536, &[]);
    let session = Session::start(&sample.dir("state"));
    let port = session.port();
    let sleeps = Some(Sleep {
        is_whole: true,
        tiers: Arc::default(),
        after: Duration::from_millis(1_500),
        announced: None,
        second: None,
    });
    let info_hash = session.add_sleeping(&sample, &sample.data, false, true, sleeps);
    let asleep = session.handle.torrent(&info_hash).unwrap();
    assert_eq!(asleep.activity, Activity::Asleep);
    assert_eq!(asleep.progress.state, TorrentState::Seeding);
    assert_eq!(session.handle.session().running, 0);
    for encryption in ["require", "off"] {
        fetch_with(&sample, encryption, port, encryption);
        session.wait_for(info_hash, |torrent| torrent.activity == Activity::Asleep);
    }
    session.ask(|reply| Command::Stop { info_hash, reply });
    let stopped = session.handle.torrent(&info_hash).unwrap();
    assert_eq!(stopped.activity, Activity::Stopped);
    assert_eq!(stopped.progress.state, TorrentState::Paused);
    session.end();
}

#[test]
fn a_peer_that_connects_before_the_torrents_are_known_is_heard_then() {
    let sample = Sample::file(300_000, 65_536, &[]);
    let session = Session::start(&sample.dir("state"));
    let addr = SocketAddr::from(([127, 0, 0, 1], session.port()));
    let metainfo = Metainfo::parse(&std::fs::read(&sample.torrent).unwrap()).unwrap();
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    let hello = Hello::new(*metainfo.info_hash.as_bytes());
    stream.write_all(&hello.encode()).unwrap();
    // Each is answered behind what the ring had to do before it.
    for _ in 0..50 {
        let limits = Limits::default();
        session.ask(|reply| Command::SetLimits { limits, reply });
    }
    let sleeps = Some(Sleep {
        is_whole: true,
        tiers: Arc::default(),
        after: Duration::from_secs(60),
        announced: None,
        second: None,
    });
    session.add_sleeping(&sample, &sample.data, false, true, sleeps);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 68];
    stream.read_exact(&mut answer).expect("it was sent away");
    assert_eq!(&answer[28..48], metainfo.info_hash.as_bytes());
    session.end();
}

#[test]
fn a_hybrid_that_sleeps_is_woken_by_either_of_its_names() {
    let sample = Sample::hybrid_file(300_000, 65_536);
    let metainfo = Metainfo::parse(&std::fs::read(&sample.torrent).unwrap()).unwrap();
    let v2 = metainfo.info_hashes.v2().unwrap();
    let session = Session::start(&sample.dir("state"));
    let port = session.port();
    let sleeps = Some(Sleep {
        is_whole: true,
        tiers: Arc::default(),
        after: Duration::from_millis(1_500),
        announced: None,
        second: metainfo.second_info_hash(),
    });
    let info_hash = session.add_sleeping(&sample, &sample.data, false, true, sleeps);
    let links = [
        format!("magnet:?xt=urn:btmh:1220{v2}"),
        format!("magnet:?xt=urn:btih:{info_hash}"),
    ];
    for (number, link) in links.iter().enumerate() {
        for encryption in ["require", "off"] {
            let asleep = |torrent: &TorrentSnapshot| torrent.activity == Activity::Asleep;
            session.wait_for(info_hash, asleep);
            let into = format!("{encryption}{number}");
            fetch_from(link, &sample, &into, port, encryption);
        }
    }
    session.ask(|reply| Command::Stop { info_hash, reply });
    session.wait_for(info_hash, |torrent| torrent.activity == Activity::Stopped);
    for name in [info_hash, v2.truncated()] {
        let hello = Hello::new(*name.as_bytes());
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let answered = RawPeer::dial_at([127, 0, 0, 1], at, &hello);
        assert!(answered.is_err(), "{name} is stopped");
    }
    session.end();
}

#[test]
fn a_seed_is_announced_while_it_sleeps_and_waking_is_nothing_to_its_tracker() {
    hears_of_no_sleep(true);
}

#[test]
fn a_seed_that_goes_to_sleep_for_the_first_time_is_announced_on_as_if_nothing_had_happened() {
    hears_of_no_sleep(false);
}

/// A tracker hears `started`, `stopped` at the end, and nothing of what is between them: sleep, a peer, sleep.
fn hears_of_no_sleep(is_whole: bool) {
    let tracker = HttpTracker::saying(ok(&peers(&[])));
    let sample = Sample::file(300_000, 65_536, &[&tracker.url()]);
    let session = Session::start(&sample.dir("state"));
    let port = session.port();
    let sleeps = Some(Sleep {
        is_whole,
        tiers: [vec![tracker.url()]].into(),
        after: Duration::from_millis(1_500),
        announced: None,
        second: None,
    });
    let info_hash = session.add_sleeping(&sample, &sample.data, false, true, sleeps);
    let first = tracker.next();
    assert_eq!(first.parameter("event"), Some("started"));
    assert_eq!(first.parameter("left"), Some("0"));
    session.wait_for(info_hash, |torrent| torrent.activity == Activity::Asleep);
    fetch(&sample, "out", port);
    session.wait_for(info_hash, |torrent| torrent.activity == Activity::Asleep);
    session.ask(|reply| Command::Stop { info_hash, reply });
    let mut events = Vec::new();
    while events.last() != Some(&Some("stopped".to_owned())) {
        let get = tracker.next();
        let uploaded = get.parameter("uploaded").unwrap().parse::<u64>().unwrap();
        assert!(!get.is_stopped() || uploaded >= 300_000, "{get:?}");
        events.push(get.parameter("event").map(str::to_owned));
    }
    events.pop();
    assert!(events.iter().all(Option::is_none), "{events:?}");
    session.end();
}

#[test]
fn a_seed_that_its_tracker_lists_from_before_is_announced_when_that_is_due_and_no_sooner() {
    let trackers = [0, 1].map(|_| HttpTracker::saying(ok(&peers(&[]))));
    let samples = [1, 2].map(|n| Sample::file(100_000 + n, 65_536, &[]));
    let session = Session::start(&samples[0].dir("state"));
    let port = session.port();
    let due = Duration::from_secs(3);
    let begun = Instant::now();
    // The other one was told another port.
    let added = [(0, port), (1, port ^ 1)].map(|(at, port)| {
        let url = trackers[at].url();
        let sleeps = Some(Sleep {
            tiers: [vec![url.clone()]].into(),
            is_whole: true,
            after: Duration::from_secs(60),
            announced: Some(Announced {
                tracker: url,
                port,
                next: due,
            }),
            second: None,
        });
        session.add_sleeping(&samples[at], &samples[at].data, false, true, sleeps)
    });
    assert_eq!(trackers[1].next().parameter("event"), Some("started"));
    let listed = session.wait_for(added[0], |torrent| torrent.announced.is_some());
    assert_eq!(
        listed.announced.as_ref().unwrap().tracker,
        trackers[0].url()
    );
    assert_eq!(trackers[0].next().parameter("event"), None);
    assert!(begun.elapsed() >= due, "{:?}", begun.elapsed());
    let info_hash = added[0];
    session.ask(|reply| Command::Stop { info_hash, reply });
    assert!(trackers[0].next().is_stopped());
    session.wait_for(info_hash, |torrent| torrent.announced.is_none());
    session.end();
}

#[test]
fn a_seed_whose_data_is_gone_fails_when_it_is_woken_and_is_not_woken_again() {
    let sample = Sample::file(300_000, 65_536, &[]);
    let session = Session::start(&sample.dir("state"));
    let port = session.port();
    let sleeps = Some(Sleep {
        is_whole: true,
        tiers: Arc::default(),
        after: Duration::from_secs(60),
        announced: None,
        second: None,
    });
    let elsewhere = sample.dir("elsewhere");
    let info_hash = session.add_sleeping(&sample, &elsewhere, false, true, sleeps);
    session.wait_for(info_hash, |torrent| torrent.activity == Activity::Asleep);
    let mut leech = Gyre::start(&[
        "download",
        &text(&sample.torrent),
        "-o",
        &text(&sample.dir("out")),
        "--state",
        &text(&sample.dir("out-state")),
        "--port",
        "0",
        "--peer",
        &SocketAddr::from(([127, 0, 0, 1], port)).to_string(),
        "--no-dht",
        "--no-lsd",
    ]);
    let failed = session.wait_for(info_hash, |torrent| torrent.activity == Activity::Failed);
    assert!(failed.trouble.as_ref().unwrap().is_final);
    leech.kill9();
    session.end();
}
