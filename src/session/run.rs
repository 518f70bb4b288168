//! A session from its start to its end: sockets, buffers, torrents, shutdown. Layer 5.

use std::io;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::announce;
use super::announce_task::TrackerClients;
use super::command::{CommandSource, TorrentSource};
use super::config::{
    BindTo, Job, Outcome, SessionConfig, SessionEvent, Stopper, TorrentProgress, TorrentState,
};
use super::contain::{Serves, caught, count_panic, keep_up};
use super::dht::DhtService;
use super::disk::{DiskHub, Engines, FileBudget};
use super::error::SessionError;
use super::fleet::Fleet;
use super::handles::Handles;
use super::http::{HttpClient, HttpConfig};
use super::lab;
use super::metadata::{self, Searched};
use super::port_map::PortMap;
use super::reach::{Reach, Sockets};
use super::shared::{Opened, Shared};
use super::socks::{RelayOf, SocksProxy, UdpRelay};
use super::udp_port::UdpPort;
use super::udp_tracker::{OwnSockets, UdpTrackers};
use super::utp::UtpService;
use super::{ip_filter, slots, torrent};
use crate::base::{Bitfield, InfoHash};
use crate::swarm::metadata::MetadataStats;
use crate::uring::buffers::Pool;
use crate::uring::hasher::Hasher;
use crate::uring::resolve::Resolver;
use crate::uring::socket::SocketOptions;
use crate::uring::{limits, memory};
use crate::wire::tracker::Family;

/// Buffers unless `--buffers` says otherwise.
const BUFFERS_DEFAULT_BYTES: u64 = 32 << 20;
/// Fewer buffers than this cannot assemble pieces and serve at once.
const BUFFERS_MIN_BYTES: u64 = 2 << 20;
/// The first retransmission to a UDP tracker (BEP 15).
const UDP_RETRANSMIT: Duration = Duration::from_secs(15);
/// Peers with data unacknowledged for so long are gone.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
/// What the kernel holds for a peer beyond what is on the wire: a reader that takes nothing costs no more, and a seeder
/// is not slower for it (measured from 128 KiB to 1 MiB).
const NOTSENT_BYTES_MAX: u32 = 512 * 1024;
/// Between two looks for buffers that a burst needed and nothing since.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(30);

/// How each torrent ended, in the order they were given.
#[derive(Clone, Debug, Default)]
pub struct SessionSummary {
    pub outcomes: Vec<(InfoHash, Outcome)>,
    /// Panics: each ended one connection or one torrent, or began anew what serves all of them.
    pub panics: u64,
}

/// Runs all torrents until each has ended or `stopper` is used. Call it inside the ring's runtime.
///
/// # Errors
/// What keeps the session from starting at all: a taken port, an interface that is not there, no memory. And what keeps it
/// from going on, an error in the program or a proxy that will never work; the torrents ended in order then.
pub async fn run(
    config: SessionConfig,
    jobs: Vec<Job>,
    stopper: Stopper,
    events: impl FnMut(SessionEvent) + 'static,
) -> Result<SessionSummary, SessionError> {
    let session = Session::open(config, stopper, Box::new(events))?;
    session.shared.admit();
    let running: Vec<_> = jobs
        .into_iter()
        .map(|job| {
            let info_hash = job.info_hash();
            let task = tokio_uring::spawn(run_contained(session.shared.clone(), job));
            (info_hash, task)
        })
        .collect();
    let mut outcomes = Vec::new();
    for (info_hash, task) in running {
        // Whoever listens to events may panic too.
        let ended = task.await.unwrap_or((info_hash, Outcome::Failed));
        outcomes.push(ended);
    }
    session.close(outcomes).await
}

/// Runs the torrents that commands name, and hears peers once it was told of any, until [`Command::Shutdown`](super::Command::Shutdown), or until `stopper` is
/// used; with none at all too. Call it inside the ring's runtime.
///
/// # Errors
/// As [`run`].
pub async fn serve(
    config: SessionConfig,
    source: Arc<dyn TorrentSource>,
    commands: CommandSource,
    stopper: Stopper,
    mut events: impl FnMut(SessionEvent) + 'static,
) -> Result<SessionSummary, SessionError> {
    let fleet = Fleet::new(source, commands.board);
    let told = fleet.clone();
    let events = move |event: SessionEvent| {
        told.on_event(&event);
        events(event);
    };
    let session = Session::open(config, stopper, Box::new(events))?;
    let shutdowns = fleet.run(&session.shared, commands.receiver).await;
    let summary = session.close(fleet.outcomes()).await;
    for reply in shutdowns {
        let _ = reply.send(Ok(()));
    }
    summary
}

/// An open session.
struct Session {
    shared: Rc<Shared>,
    reach: Rc<Reach>,
    port_map: Option<Rc<PortMap>>,
    background: Vec<JoinHandle<()>>,
}

impl Session {
    fn open(
        mut config: SessionConfig,
        stopper: Stopper,
        events: Box<dyn FnMut(SessionEvent)>,
    ) -> Result<Session, SessionError> {
        let socket_options = socket_options(&config);
        let mut sockets = Sockets::open(&config, &socket_options)?;
        // The local network and the gateway are around the proxy.
        if config.proxy.is_some() {
            config.lsd = false;
            config.port_map = None;
        }
        let families = match (&config.proxy, config.ipv6) {
            (None, _) => announce::families(&sockets.addrs()?),
            (Some(_), true) => vec![Family::V4, Family::V6],
            (Some(_), false) => vec![Family::V4],
        };
        let (shared, datagrams) = open(config, socket_options, families, events)?;
        if let Some(socks) = &shared.socks {
            socks.set_session(&shared);
        }
        shared.port.set(sockets.port);
        for addr in sockets.addrs()? {
            info!(%addr, "listening");
            shared.emit(SessionEvent::Listening { addr });
        }
        let udp = sockets.take_udp();
        let (udp_port, udp_sockets, relay) = match datagrams {
            Datagrams::Own(own) => (UdpPort::new(udp), Some(own), None),
            Datagrams::Relayed(relay) => (UdpPort::through(relay.clone()), None, Some(relay)),
        };
        if shared.config.utp && relay.is_none() && !udp_port.sockets().is_empty() {
            let utp = UtpService::new(&shared, udp_port.clone());
            shared.set_utp(utp.map_err(|error| {
                SessionError::new(
                    format!("the system gives no random numbers: {error}"),
                    "go on without uTP: --no-utp",
                )
            })?);
        }
        if let Some(settings) = shared.config.dht.clone() {
            shared.set_dht(DhtService::new(&shared, udp_port.clone(), settings));
        }
        let reach = Reach::new(&shared, sockets, udp_port, udp_sockets);
        reach.begin();
        let settings = shared.config.port_map.clone();
        let port_map = settings.map(|settings| PortMap::new(&shared, settings));
        let mut background = start_background(&shared, &reach, stopper);
        if let Some(port_map) = port_map.clone() {
            let work = move |_| port_map.clone().run();
            background.push(keep_up(
                &shared,
                "mapping the port",
                Serves::Strangers,
                work,
            ));
        }
        if let Some(relay) = relay {
            let work = move |shared| relay.clone().run(RelayOf::Session(shared));
            background.push(keep_up(
                &shared,
                "datagrams through the proxy",
                Serves::Strangers,
                work,
            ));
        }
        Ok(Session {
            shared,
            reach,
            port_map,
            background,
        })
    }

    async fn close(
        self,
        outcomes: Vec<(InfoHash, Outcome)>,
    ) -> Result<SessionSummary, SessionError> {
        let shared = &self.shared;
        let panics = shared.panics.get() + shared.disks.hash_panics();
        if let Some(dht) = shared.dht() {
            dht.save().await;
        }
        if let Some(port_map) = self.port_map {
            port_map.end().await;
        }
        self.reach.close();
        self.reach.abort();
        for task in self.background {
            task.abort();
        }
        match shared.failure() {
            None => Ok(SessionSummary { outcomes, panics }),
            Some(error) => Err(error),
        }
    }
}

/// How datagrams to trackers and the DHT go out.
enum Datagrams {
    /// Over sockets of the trackers' own, and the UDP port.
    Own(OwnSockets),
    Relayed(Rc<UdpRelay>),
}

/// Starts what serves all torrents, each as a task of its own that starts anew after a panic.
fn start_background(
    shared: &Rc<Shared>,
    reach: &Rc<Reach>,
    stopper: Stopper,
) -> Vec<JoinHandle<()>> {
    use Serves::{Strangers, Transfers};
    let mut tasks = Vec::new();
    if let Some(dht) = shared.dht().cloned() {
        let work = move |_| dht.clone().run();
        tasks.push(keep_up(shared, "the DHT", Strangers, work));
    }
    if let Some(utp) = shared.utp().cloned() {
        let work = move |_| utp.clone().run();
        tasks.push(keep_up(shared, "uTP", Transfers, work));
    }
    let of_watch = reach.clone();
    let what = "watching what everything goes through";
    let work = move |_| of_watch.clone().watch();
    tasks.push(keep_up(shared, what, Transfers, work));
    tasks.push(keep_up(shared, "sharing memory out", Transfers, |shared| {
        shared.credit_loop()
    }));
    let what = "giving memory back";
    tasks.push(keep_up(shared, what, Transfers, give_back));
    for is_up in [true, false] {
        tasks.push(keep_up(
            shared,
            "keeping to a rate limit",
            Transfers,
            move |shared| pace(shared, is_up),
        ));
    }
    let what = "sharing upload slots out";
    tasks.push(keep_up(shared, what, Transfers, slots::keep));
    let what = "reading the list of addresses anew";
    tasks.push(keep_up(shared, what, Strangers, ip_filter::watch));
    tasks.push(keep_up(shared, "watching delays", Strangers, lab::watch));
    tasks.push(keep_up(
        shared,
        "waiting for the end",
        Transfers,
        move |shared| {
            let stopper = stopper.clone();
            async move {
                stopper.stopped().await;
                info!("stopping");
                shared.stop();
            }
        },
    ));
    tasks
}

/// Runs one torrent; a panic of its task ends it alone.
pub(super) async fn run_contained(shared: Rc<Shared>, job: Job) -> (InfoHash, Outcome) {
    let info_hash = job.info_hash();
    shared.expect_end(info_hash);
    let ended = run_caught(&shared, job).await;
    shared.forget_end(&info_hash);
    ended
}

async fn run_caught(shared: &Rc<Shared>, job: Job) -> (InfoHash, Outcome) {
    let info_hash = job.info_hash();
    let pieces = match &job {
        Job::Torrent(config) => config.metainfo.info.geometry.piece_count(),
        Job::Magnet(_) => 0,
    };
    if let Ok(ended) = caught(run_job(shared.clone(), job)).await {
        return ended;
    }
    count_panic(shared, "a torrent");
    shared.emit(SessionEvent::Error {
        info_hash: Some(info_hash),
        message: "a torrent ended by an error in the program".to_owned(),
        hint: "please report it with the log (-vv)".to_owned(),
        is_final: true,
    });
    shared.emit(SessionEvent::Ended {
        info_hash,
        outcome: Outcome::Failed,
        have: Bitfield::new(pieces),
    });
    (info_hash, Outcome::Failed)
}

async fn run_job(shared: Rc<Shared>, job: Job) -> (InfoHash, Outcome) {
    let config = match job {
        Job::Torrent(config) => return torrent::run(shared, config, None).await,
        Job::Magnet(config) => config,
    };
    let nothing = metadata::progress(&config, MetadataStats::default());
    let outcome = match metadata::search(shared.clone(), config).await {
        Ok(Searched::Torrent(config, search)) => {
            return torrent::run(shared, *config, Some(search)).await;
        }
        Ok(Searched::Done) => Outcome::Done,
        Ok(Searched::Stopped) => Outcome::Stopped,
        Err(error) => {
            shared.emit(SessionEvent::Error {
                info_hash: Some(nothing.info_hash),
                message: error.to_string(),
                hint: error.hint().to_owned(),
                is_final: true,
            });
            shared.emit(SessionEvent::Progress(TorrentProgress {
                state: TorrentState::Error,
                ..nothing.clone()
            }));
            error.outcome()
        }
    };
    let info_hash = nothing.info_hash;
    shared.emit(SessionEvent::Ended {
        info_hash,
        outcome,
        have: Bitfield::new(0),
    });
    (info_hash, outcome)
}

/// Buffers that a burst needed go back to the system when they were not needed for as long, and so does what many
/// connections have left of the heap: in its holes the next ones find less room than these had.
async fn give_back(shared: Rc<Shared>) {
    loop {
        tokio::time::sleep(GIVE_BACK_EVERY).await;
        shared.pool.trim();
        let begun = Instant::now();
        memory::give_back();
        debug!(took = ?begun.elapsed(), "memory given back");
    }
}

async fn pace(shared: Rc<Shared>, is_up: bool) {
    let pacer = if is_up { &shared.up } else { &shared.down };
    pacer.run(shared.clock).await;
}

fn open(
    mut config: SessionConfig,
    socket_options: SocketOptions,
    families: Vec<Family>,
    events: Box<dyn FnMut(SessionEvent)>,
) -> Result<(Rc<Shared>, Datagrams), SessionError> {
    let wanted = config
        .buffers_bytes
        .unwrap_or_else(buffers_default)
        .max(BUFFERS_MIN_BYTES);
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let (pool, report) = Pool::new(wanted).map_err(|error| {
        SessionError::new(
            format!("cannot set up {} MiB of buffers: {error}", wanted >> 20),
            "use a smaller --buffers, or raise the limit on locked memory (ulimit -l)",
        )
    })?;
    info!(
        bytes = report.bytes,
        registered_bytes = report.registered_bytes,
        grows = report.grows,
        "buffers"
    );
    if let Some(note) = &report.note {
        warn!("{note}");
    }
    let handles = Handles::divide(limits::raise_nofile());
    debug!(?handles, "open files");
    config.peers_max = config.peers_max.min(handles.connections);
    // The rest of the pool receives and serves.
    let assembly_bytes = report.bytes as u64 / 4 * 3;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let no_threads = |error: io::Error| {
        SessionError::new(
            format!("cannot start a thread: {error}"),
            "raise the limit of processes (ulimit -u)",
        )
    };
    let hasher = Hasher::new(threads).map_err(no_threads)?;
    let resolver = Resolver::bound(&socket_options).map_err(no_threads)?;
    let socks = config
        .proxy
        .clone()
        .map(|proxy| SocksProxy::new(proxy, socket_options.clone(), resolver.clone()));
    let http_config = HttpConfig {
        socket: socket_options.clone(),
        socks: socks.clone(),
        ..HttpConfig::from_env(config.tracker_ca.clone())
    };
    let http = HttpClient::new(http_config, resolver.clone());
    let no_socket = |error: io::Error| {
        SessionError::new(
            format!("cannot open a UDP socket for trackers: {error}"),
            "check --bind and the network",
        )
    };
    let mut udp_options = socket_options.clone();
    if !config.ipv6 {
        udp_options.bind.get_or_insert(Ipv4Addr::UNSPECIFIED.into());
    }
    let (udp, datagrams) = match socks.clone().map(UdpRelay::new) {
        None => {
            let bound = OwnSockets::bind(resolver.clone(), &udp_options, UDP_RETRANSMIT);
            let (udp, sockets) = bound.map_err(no_socket)?;
            (udp, Datagrams::Own(sockets))
        }
        Some(relay) => {
            let udp = UdpTrackers::through(resolver.clone(), relay.clone(), UDP_RETRANSMIT);
            (udp, Datagrams::Relayed(relay))
        }
    };
    let engines = Engines {
        send: config.send_engine,
        write: config.write_engine,
    };
    let opened = Opened {
        disks: DiskHub::new(
            pool.clone(),
            hasher,
            FileBudget::with_operations(handles.files, handles.operations),
            seed(),
            engines,
        ),
        pool,
        resolver,
        socks,
        trackers: TrackerClients {
            http,
            udp,
            way: Rc::default(),
        },
        families,
        socket_options,
        pending_max: handles.pending,
        runs_max: handles.runs,
        web_connections_max: handles.web,
        seed: seed(),
    };
    Ok((
        Shared::new(config, opened, assembly_bytes, events),
        datagrams,
    ))
}

/// 32 MiB, or what a small limit on locked memory leaves beside the ring, or half of very little memory.
fn buffers_default() -> u64 {
    let lockable = match limits::memlock() {
        limits::Limit::Bytes(bytes) if bytes < 2 * BUFFERS_DEFAULT_BYTES => {
            (bytes / 4 * 3).clamp(BUFFERS_MIN_BYTES, BUFFERS_DEFAULT_BYTES)
        }
        _ => BUFFERS_DEFAULT_BYTES,
    };
    lockable.min((limits::memory_bytes() / 2).max(BUFFERS_MIN_BYTES))
}

/// 64 of the system's random bits.
pub(super) fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher as _};
    // The standard library's hash keys are the system's random bytes.
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

fn socket_options(config: &SessionConfig) -> SocketOptions {
    let (bind, bind_device) = match &config.bind {
        None => (None, None),
        Some(BindTo::Addr(ip)) => (Some(*ip), None),
        Some(BindTo::Interface(name)) => (None, Some(name.clone())),
    };
    SocketOptions {
        bind,
        bind_device,
        user_timeout: Some(USER_TIMEOUT),
        notsent_lowat_bytes: Some(NOTSENT_BYTES_MAX),
        ..SocketOptions::default()
    }
}
