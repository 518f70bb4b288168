//! A panic in a connection's task ends that connection alone, one in a torrent's task that torrent alone; what serves
//! the whole session starts anew. All are counted and told.
//!
//! Nothing in the program panics on demand. The tests are what it calls: its log and its listener for events.

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gyre::base::InfoHash;
use gyre::session::tune::Tuning;
use gyre::session::{
    self, CheckMode, Encryption, Job, Outcome, PortChoice, Preallocate, SeedAfter, SendEngine,
    SessionConfig, SessionError, SessionEvent, SessionSummary, Stopper, TorrentConfig, WriteEngine,
};
use gyre::swarm::choker::{SeedChoker, UploadSlots};
use gyre::uring::ring::{self, RingConfig};
use gyre::wire::metainfo::Metainfo;
use support::fake_tracker::{HttpTracker, Then, ok, peers};
use support::program::PATIENCE;
use support::raw_peer::*;
use support::sample::text;
use support::{Gyre, Sample};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const BLOCK: u32 = 16_384;

/// Where the log panics.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trap {
    /// Once, when a task of the connection with this address goes on.
    Goes(String),
    /// Once, when this is logged.
    Says(&'static str),
    /// Whenever this is logged.
    Always(&'static str),
}

static TRAP: Mutex<Option<Trap>> = Mutex::new(None);

fn trap() -> MutexGuard<'static, Option<Trap>> {
    TRAP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A log that keeps the addresses of connections and panics where it is told to.
#[derive(Default)]
struct Log {
    spans: Mutex<Vec<String>>,
}

/// All fields of a span or an event in one line.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!("{value:?} ");
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("gyre")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut line = Line::default();
        if span.metadata().name() == "peer" {
            span.record(&mut line);
        }
        let mut spans = self.spans.lock().unwrap();
        spans.push(line.0.trim().to_owned());
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let said = |part: &str| line.0.contains(part);
        let is_it = {
            let mut trap = trap();
            match *trap {
                Some(Trap::Says(part)) if said(part) => trap.take().is_some(),
                Some(Trap::Always(part)) => said(part),
                _ => false,
            }
        };
        assert!(!is_it, "told to: {}", line.0);
    }

    fn enter(&self, span: &Id) {
        let index = usize::try_from(span.into_u64()).unwrap() - 1;
        let name = self.spans.lock().unwrap()[index].clone();
        let is_it = matches!(&*trap(), Some(Trap::Goes(addr)) if *addr == name);
        if is_it {
            *trap() = None;
            panic!("told to: {name}");
        }
    }

    fn exit(&self, _: &Id) {}
}

/// Two torrents seeded by one session, which runs on a thread of its own.
struct World {
    samples: [Sample; 2],
    addr: SocketAddr,
    events: Receiver<SessionEvent>,
    stopper: Stopper,
    thread: JoinHandle<Result<SessionSummary, SessionError>>,
    /// The listener for events panics at the next figures of this torrent.
    trap: Arc<Mutex<Option<InfoHash>>>,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    fn start(peers_max: u32) -> World {
        let samples = [600_000, 500_000].map(|bytes| Sample::file(bytes, 65_536, &[]));
        let torrents = samples.iter().map(torrent_config).collect();
        let config = session_config(&samples[0], peers_max);
        let world = World::start_with(samples, torrents, config, None);
        world.wait_seeding(0);
        world.wait_seeding(1);
        world
    }

    /// Until the torrent is served.
    #[track_caller]
    fn wait_seeding(&self, torrent: usize) {
        let hash = InfoHash::new(self.samples[torrent].info_hash);
        self.event("a torrent that is seeded", |event| {
            matches!(event, SessionEvent::Progress(p) if p.info_hash == hash && p.pieces_have == p.pieces)
        });
    }

    fn start_with(
        samples: [Sample; 2],
        torrents: Vec<TorrentConfig>,
        config: SessionConfig,
        first_trap: Option<Trap>,
    ) -> World {
        static ALONE: Mutex<()> = Mutex::new(());
        static LOG: Once = Once::new();
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        LOG.call_once(|| tracing::subscriber::set_global_default(Log::default()).unwrap());
        *trap() = first_trap;
        let jobs: Vec<Job> = torrents.into_iter().map(Job::Torrent).collect();
        let (sender, events) = channel();
        let (stopper, trap) = (Stopper::default(), Arc::new(Mutex::new(None)));
        let (on_stop, on_event) = (stopper.clone(), trap.clone());
        let thread = std::thread::spawn(move || {
            let ring = ring::start(RingConfig::default()).unwrap();
            let run = session::run(config, jobs, on_stop, move |event| {
                if let SessionEvent::Progress(figures) = &event
                    && *on_event.lock().unwrap() == Some(figures.info_hash)
                {
                    *on_event.lock().unwrap() = None;
                    panic!("told to");
                }
                let _ = sender.send(event);
            });
            ring.block_on(run)
        });
        let mut world = World {
            samples,
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            events,
            stopper,
            thread,
            trap,
            _alone: alone,
        };
        let listening = world.event("Listening", |event| {
            matches!(event, SessionEvent::Listening { .. })
        });
        if let SessionEvent::Listening { addr } = listening {
            world.addr.set_port(addr.port());
        }
        world
    }

    /// The next event that is so.
    #[track_caller]
    fn event(&self, what: &str, is_it: impl Fn(&SessionEvent) -> bool) -> SessionEvent {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) if is_it(&event) => return event,
                Ok(_) => {}
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }

    fn dial(&self, torrent: usize, from: u8) -> RawPeer {
        let hello = Hello::new(self.samples[torrent].info_hash);
        RawPeer::dial_at([127, 0, 0, from], self.addr, &hello).unwrap()
    }

    /// A peer that is served.
    fn served(&self, torrent: usize, from: u8) -> RawPeer {
        let mut peer = self.dial(torrent, from);
        peer.get_unchoked();
        self.assert_served(torrent, &mut peer);
        peer
    }

    #[track_caller]
    fn assert_served(&self, torrent: usize, peer: &mut RawPeer) {
        let content = std::fs::read(&self.samples[torrent].content).unwrap();
        let got = peer.fetch(0, 0, BLOCK);
        assert!(
            got == content[..BLOCK as usize],
            "other bytes than asked for"
        );
    }

    /// This torrent ends by an error of the program, and only this one.
    #[track_caller]
    fn expect_end_of(self, ending: usize, mut others: RawPeer) {
        let (hash, other) = (self.samples[ending].info_hash, 1 - ending);
        self.event("the end of a torrent", |event| {
            matches!(event, SessionEvent::Ended { info_hash, outcome: Outcome::Failed, .. } if *info_hash == InfoHash::new(hash))
        });
        self.assert_served(other, &mut others);
        drop(others);
        drop(self.served(other, 71));
        let gone = RawPeer::dial_at([127, 0, 0, 72], self.addr, &Hello::new(hash));
        assert!(gone.is_err(), "the torrent still answers");
        let summary = self.stop();
        assert!(summary.panics >= 1);
        let outcomes: Vec<Outcome> = summary
            .outcomes
            .iter()
            .map(|(_, outcome)| *outcome)
            .collect();
        let mut expected = [Outcome::Stopped; 2];
        expected[ending] = Outcome::Failed;
        assert_eq!(outcomes, expected);
    }

    fn stop(self) -> SessionSummary {
        self.stopper.stop();
        self.thread.join().unwrap().expect("the session goes on")
    }
}

fn torrent_config(sample: &Sample) -> TorrentConfig {
    let bytes = std::fs::read(&sample.torrent).unwrap();
    TorrentConfig {
        metainfo: Arc::new(Metainfo::parse(&bytes).unwrap()),
        folder: sample.data.clone(),
        place: gyre::session::DataPlace::default(),
        fetches: false,
        check: CheckMode::Auto,
        preallocate: Preallocate::default(),
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

fn session_config(sample: &Sample, peers_max: u32) -> SessionConfig {
    SessionConfig {
        state_dir: sample.dir("state"),
        port: PortChoice::Exactly(0),
        bind: None,
        ipv6: false,
        tcp: true,
        utp: true,
        holepunch: true,
        lsd: false,
        limit_up_bytes_per_s: None,
        limit_down_bytes_per_s: None,
        encryption: Encryption::Prefer,
        peers_max,
        upload_slots: UploadSlots::Auto,
        exchanges_peers: true,
        seed_choker: SeedChoker::RoundRobin,
        buffers_bytes: Some(4 << 20),
        send_engine: SendEngine::Auto,
        write_engine: WriteEngine::Auto,
        give_up: None,
        http_proxy: None,
        no_proxy: Vec::new(),
        proxy: None,
        tracker_ca: None,
        ip_filter: None,
        announce_interval_min: Duration::from_secs(60),
        dht: None,
        port_map: None,
        tells_delays: false,
    }
}

/// One connection ends by a panic that `cause` provokes with it; two others and its place are there as before.
fn a_panic_ends_one_connection(cause: impl FnOnce(RawPeer)) {
    // Three places, all taken: that of the connection that panics must come back.
    let world = World::start(3);
    let mut honest = world.served(0, 61);
    let mut other = world.served(1, 62);
    let narrow = Narrow {
        receive_bytes: 4_096,
        segment_bytes: 536,
    };
    let stream = dial_from([127, 0, 0, 63].into(), world.addr, Some(narrow)).unwrap();
    let mut ending = RawPeer::greet(stream, &Hello::new(world.samples[0].info_hash)).unwrap();
    ending.get_unchoked();
    cause(ending);
    let told = world.event("a warning", |event| {
        matches!(event, SessionEvent::Warning { .. })
    });
    assert!(format!("{told:?}").contains("a connection ended by an error in the program, the 1st"));
    assert_eq!(*trap(), None);
    world.assert_served(0, &mut honest);
    world.assert_served(1, &mut other);
    // Its place is free again, and nobody has to go.
    drop(world.served(0, 64));
    world.assert_served(0, &mut honest);
    world.assert_served(1, &mut other);
    let summary = world.stop();
    assert_eq!(summary.panics, 1);
    let is_stopped = |(_, outcome): &(InfoHash, Outcome)| *outcome == Outcome::Stopped;
    assert!(summary.outcomes.iter().all(is_stopped));
}

#[test]
fn a_panic_in_the_reader_of_a_connection_ends_that_connection_alone() {
    a_panic_ends_one_connection(|mut ending| {
        // Whatever comes, the reader goes on first.
        let addr = ending.stream.local_addr().unwrap().to_string();
        *trap() = Some(Trap::Goes(addr));
        ending.send(&request(1, 0, BLOCK));
        ending.expect_close("its task panicked");
    });
}

#[test]
fn a_panic_in_the_writer_of_a_connection_ends_that_connection_alone() {
    a_panic_ends_one_connection(|mut ending| {
        *trap() = Some(Trap::Says("send failed"));
        let asks =
            (0..9).flat_map(|piece| (0..4).flat_map(move |at| request(piece, at * BLOCK, BLOCK)));
        ending.send(&asks.collect::<Vec<u8>>());
        ending.wait_for(PIECE);
        // What it has not read makes this a reset in the middle of a send.
        drop(ending);
    });
}

#[test]
fn a_panic_in_the_decoder_of_a_connection_ends_that_connection_alone() {
    a_panic_ends_one_connection(|mut ending| {
        *trap() = Some(Trap::Says("from peer: Unknown"));
        ending.send(&[request(0, 0, BLOCK), message(99, &[])].concat());
        ending.expect_close("its decoder panicked");
    });
}

#[test]
fn a_panic_in_a_call_of_a_torrents_core_ends_that_torrent_alone() {
    let world = World::start(10);
    let mut ending = world.served(0, 61);
    let other = world.served(1, 62);
    *trap() = Some(Trap::Says("to peer: RejectRequest"));
    ending.send(&request(99, 0, BLOCK));
    ending.expect_close("its torrent ended");
    world.expect_end_of(0, other);
}

#[test]
fn a_panic_in_the_task_of_a_torrent_ends_that_torrent_alone() {
    for at in [0, 1] {
        let world = World::start(10);
        let mut ending = world.served(at, 61);
        let other = world.served(1 - at, 62);
        *world.trap.lock().unwrap() = Some(InfoHash::new(world.samples[at].info_hash));
        ending.expect_close("its torrent ended");
        world.expect_end_of(at, other);
    }
}

#[test]
fn a_panic_in_the_loop_that_takes_connections_costs_one_connection_and_it_goes_on() {
    let world = World::start(10);
    let mut honest = world.served(0, 61);
    *trap() = Some(Trap::Says("connection taken"));
    let hello = Hello::new(world.samples[0].info_hash);
    let lost = RawPeer::dial_at([127, 0, 0, 62], world.addr, &hello);
    assert!(lost.is_err(), "it was taken by the loop that panicked");
    let told = world.event("a warning", |event| {
        matches!(event, SessionEvent::Warning { .. })
    });
    assert!(format!("{told:?}").contains("taking connections was broken off"));
    drop(world.served(1, 63));
    world.assert_served(0, &mut honest);
    assert_eq!(world.stop().panics, 1);
}

/// A session that seeds one torrent at so many bytes a second.
fn limited(bytes_per_s: u64) -> World {
    let samples = [600_000, 500_000].map(|bytes| Sample::file(bytes, 65_536, &[]));
    let torrents = vec![torrent_config(&samples[0])];
    let mut config = session_config(&samples[0], 10);
    config.limit_up_bytes_per_s = Some(bytes_per_s);
    let world = World::start_with(samples, torrents, config, None);
    world.wait_seeding(0);
    world
}

fn ask_for_all(peer: &mut RawPeer) {
    let blocks =
        (0..9).flat_map(|piece| (0..4).flat_map(move |at| request(piece, at * BLOCK, BLOCK)));
    peer.send(&blocks.collect::<Vec<u8>>());
}

#[test]
fn a_panic_of_what_keeps_to_a_rate_limit_leaves_nobody_waiting() {
    let world = limited(200_000);
    let mut peer = world.served(0, 61);
    *trap() = Some(Trap::Says("bandwidth granted"));
    ask_for_all(&mut peer);
    for _ in 0..36 {
        peer.wait_for(PIECE);
    }
    assert_eq!(*trap(), None);
    assert_eq!(world.stop().panics, 1);
}

#[test]
fn what_all_transfers_hang_on_ends_the_session_in_order_when_it_cannot_go_on() {
    let world = limited(100_000);
    let mut peer = world.served(0, 61);
    *trap() = Some(Trap::Always("bandwidth granted"));
    // Each new start lets through whoever waited, and fails at the next grant.
    ask_for_all(&mut peer);
    let ended = world.event("the end of the torrent", |event| {
        matches!(event, SessionEvent::Ended { .. })
    });
    assert!(matches!(
        ended,
        SessionEvent::Ended {
            outcome: Outcome::Stopped,
            ..
        }
    ));
    let error = world
        .thread
        .join()
        .unwrap()
        .expect_err("the session cannot go on");
    assert!(
        error
            .to_string()
            .contains("keeping to a rate limit is broken off again and again"),
        "{error}"
    );
}

#[test]
fn a_panic_while_announcing_ends_no_torrent_and_the_tracker_is_asked_again() {
    let tracker = HttpTracker::start(|get, stream| {
        use std::io::Write;
        let _ = stream.write_all(&ok(&peers(&[])));
        match get.is_stopped() {
            true => Then::Close,
            false => Then::KeepOpen,
        }
    });
    let sizes = [600_000, 500_000];
    let samples = sizes.map(|bytes| Sample::file(bytes, 65_536, &[&tracker.url()]));
    let mut torrents: Vec<TorrentConfig> = samples.iter().map(torrent_config).collect();
    torrents[0].trackers = true;
    let mut config = session_config(&samples[0], 10);
    config.announce_interval_min = Duration::from_millis(300);
    let first_trap = Some(Trap::Says("announced"));
    let world = World::start_with(samples, torrents, config, first_trap);
    let told = world.event("an error that is not the end", |event| {
        matches!(
            event,
            SessionEvent::Error {
                is_final: false,
                ..
            }
        )
    });
    assert!(format!("{told:?}").contains("broken off by an error in the program"));
    for _ in 0..2 {
        assert_eq!(tracker.next().parameter("event"), Some("started"));
    }
    drop(world.served(0, 61));
    let summary = world.stop();
    assert_eq!(summary.panics, 1);
    assert_eq!(summary.outcomes[0].1, Outcome::Stopped);
}

/// A session that fetches the first torrent from another process and seeds the second.
fn fetching(first_trap: Trap) -> (World, Gyre) {
    let samples = [600_000, 500_000].map(|bytes| Sample::file(bytes, 65_536, &[]));
    let [torrent, data, state] = [
        samples[0].torrent.clone(),
        samples[0].data.clone(),
        samples[0].dir("state-of-source"),
    ]
    .map(|path| text(&path));
    let arguments = [
        "seed", &torrent, "--data", &data, "--state", &state, "--port", "0",
    ];
    let mut source = Gyre::start(&arguments);
    let mut torrents: Vec<TorrentConfig> = samples.iter().map(torrent_config).collect();
    torrents[0].folder = samples[0].dir("out");
    torrents[0].fetches = true;
    torrents[0].peers = vec![source.listening()];
    let config = session_config(&samples[0], 10);
    let world = World::start_with(samples, torrents, config, Some(first_trap));
    (world, source)
}

#[test]
fn a_panic_while_hashing_a_piece_is_made_good_by_hashing_it_again() {
    let (world, _source) = fetching(Trap::Says("hashing side by side"));
    world.event("the whole download", |event| {
        matches!(event, SessionEvent::Complete { .. })
    });
    assert_eq!(*trap(), None);
    assert!(world.samples[0].is_same_in(&world.samples[0].dir("out")));
    assert_eq!(world.stop().panics, 1);
}

#[test]
fn a_piece_that_cannot_be_hashed_ends_its_torrent_alone() {
    let (world, _source) = fetching(Trap::Always("hashing"));
    // Either may be first: this torrent being there, and the end of the other.
    let until = Instant::now() + PATIENCE;
    let hello = Hello::new(world.samples[1].info_hash);
    let mut other = loop {
        match RawPeer::dial_at([127, 0, 0, 61], world.addr, &hello) {
            Ok(peer) => break peer,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    other.get_unchoked();
    world.expect_end_of(0, other);
}
