//! A session from its start to its end: sockets, buffers, torrents, shutdown. Layer 5.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::announce;
use super::announce_task::TrackerClients;
use super::command::{CommandSource, TorrentSource};
use super::config::{
    BindTo, Job, Outcome, PortChoice, SessionConfig, SessionEvent, Stopper, TorrentProgress,
    TorrentState,
};
use super::contain::{Serves, caught, count_panic, kept_up};
use super::dht::DhtService;
use super::disk::{DiskHub, Engines, FileBudget};
use super::error::SessionError;
use super::fleet::Fleet;
use super::handles::Handles;
use super::http::{HttpClient, HttpConfig};
use super::lab;
use super::lsd::Lsd;
use super::metadata::{self, Searched};
use super::shared::{Opened, Shared};
use super::udp_port::{self, UdpPort};
use super::udp_tracker::OwnSockets;
use super::{connect, torrent};
use crate::base::{Bitfield, InfoHash};
use crate::swarm::metadata::MetadataStats;
use crate::uring::buffers::Pool;
use crate::uring::hasher::Hasher;
use crate::uring::limits;
use crate::uring::listener::Listener;
use crate::uring::resolve::Resolver;
use crate::uring::socket::SocketOptions;
use crate::uring::udp::Udp;
use crate::wire::tracker::Family;

/// The port of `PortChoice::Default`.
pub const PORT_DEFAULT: u16 = 6881;
/// Ports tried from there on.
const PORTS_TRIED: u16 = 10;
/// Tries to find one free port for all sockets when any port will do.
const ANY_PORT_TRIES: u32 = 50;
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
/// What keeps the session from starting at all: a taken port, an interface that is not there, no memory. And an error
/// in the program that keeps it from going on; the torrents ended in order then.
pub async fn run(
    config: SessionConfig,
    jobs: Vec<Job>,
    stopper: Stopper,
    events: impl FnMut(SessionEvent) + 'static,
) -> Result<SessionSummary, SessionError> {
    let session = Session::open(config, stopper, Box::new(events))?;
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

/// Runs the torrents that commands name until [`Command::Shutdown`](super::Command::Shutdown), or until `stopper` is
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
    sockets: Sockets,
    udp_port: Rc<UdpPort>,
    lsd: Option<Rc<Lsd>>,
    background: Vec<JoinHandle<()>>,
}

impl Session {
    fn open(
        config: SessionConfig,
        stopper: Stopper,
        events: Box<dyn FnMut(SessionEvent)>,
    ) -> Result<Session, SessionError> {
        let socket_options = socket_options(&config);
        let mut sockets = bind_sockets(&config, &socket_options)?;
        let families = announce::families(&sockets.addrs()?);
        let (shared, udp_sockets) = open(config, socket_options, families, events)?;
        shared.port.set(sockets.port);
        for addr in sockets.addrs()? {
            info!(%addr, "listening");
            shared.emit(SessionEvent::Listening { addr });
        }
        let udp_port = UdpPort::new(std::mem::take(&mut sockets.udp));
        if let Some(settings) = shared.config.dht.clone() {
            shared.set_dht(DhtService::new(&shared, udp_port.clone(), settings));
        }
        let lsd = shared.config.lsd.then(|| Lsd::open(&shared)).flatten();
        let reached = Reached {
            listeners: &sockets.listeners,
            trackers: &udp_sockets,
            udp_port: &udp_port,
            lsd: lsd.clone(),
        };
        let background = start_background(&shared, &reached, stopper);
        Ok(Session {
            shared,
            sockets,
            udp_port,
            lsd,
            background,
        })
    }

    async fn close(
        self,
        outcomes: Vec<(InfoHash, Outcome)>,
    ) -> Result<SessionSummary, SessionError> {
        let shared = &self.shared;
        let panics = shared.panics.get() + shared.disks.hash_panics();
        for listener in &self.sockets.listeners {
            listener.close();
        }
        if let Some(dht) = shared.dht() {
            dht.save().await;
        }
        if let Some(lsd) = &self.lsd {
            lsd.close();
        }
        self.udp_port.close();
        for task in self.background {
            task.abort();
        }
        match shared.failure() {
            None => Ok(SessionSummary { outcomes, panics }),
            Some(why) => Err(SessionError::new(
                format!("the session ended by an error in the program: {why}"),
                "please report it with the log (-vv); what was verified is kept: run it again to go on",
            )),
        }
    }
}

/// What the world reaches a session by.
struct Reached<'s> {
    listeners: &'s [Rc<Listener>],
    trackers: &'s OwnSockets,
    udp_port: &'s Rc<UdpPort>,
    lsd: Option<Rc<Lsd>>,
}

/// Starts what serves all torrents, each as a task of its own that starts anew after a panic.
fn start_background(
    shared: &Rc<Shared>,
    reached: &Reached<'_>,
    stopper: Stopper,
) -> Vec<JoinHandle<()>> {
    use Serves::{Strangers, Transfers};
    let mut tasks = Vec::new();
    for listener in reached.listeners {
        let (listener, pending) = (listener.clone(), Rc::default());
        tasks.push(start(
            shared,
            "taking connections",
            Strangers,
            move |shared| connect::accept_loop(shared, listener.clone(), Rc::clone(&pending)),
        ));
    }
    for udp in reached.udp_port.sockets() {
        let (port, udp) = (reached.udp_port.clone(), udp.clone());
        tasks.push(start(
            shared,
            "hearing the UDP port",
            Strangers,
            move |shared| udp_port::receive(shared, port.clone(), udp.clone()),
        ));
    }
    if let Some(dht) = shared.dht().cloned() {
        tasks.push(start(shared, "the DHT", Strangers, move |_| {
            dht.clone().run()
        }));
    }
    if let Some(lsd) = reached.lsd.clone() {
        let what = "looking for peers on the local network";
        tasks.push(start(shared, what, Strangers, move |_| lsd.clone().run()));
    }
    for receiver in reached.trackers.receivers() {
        tasks.push(start(
            shared,
            "hearing UDP trackers",
            Strangers,
            move |_| receiver.clone().run(),
        ));
    }
    tasks.push(start(shared, "sharing memory out", Transfers, |shared| {
        shared.credit_loop()
    }));
    for is_up in [true, false] {
        tasks.push(start(
            shared,
            "keeping to a rate limit",
            Transfers,
            move |shared| pace(shared, is_up),
        ));
    }
    tasks.push(start(shared, "watching delays", Strangers, lab::watch));
    tasks.push(start(
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

fn start<W: Future<Output = ()> + 'static>(
    shared: &Rc<Shared>,
    what: &'static str,
    serves: Serves,
    mut work: impl FnMut(Rc<Shared>) -> W + 'static,
) -> JoinHandle<()> {
    let shared = shared.clone();
    tokio_uring::spawn(async move {
        kept_up(shared.clone(), what, serves, || work(shared.clone())).await;
    })
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

async fn pace(shared: Rc<Shared>, is_up: bool) {
    let pacer = if is_up { &shared.up } else { &shared.down };
    pacer.run(shared.clock).await;
}

fn open(
    mut config: SessionConfig,
    socket_options: SocketOptions,
    families: Vec<Family>,
    events: Box<dyn FnMut(SessionEvent)>,
) -> Result<(Rc<Shared>, OwnSockets), SessionError> {
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
    let http_config = HttpConfig {
        socket: socket_options.clone(),
        ..HttpConfig::from_env()
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
    let (udp, udp_sockets) =
        OwnSockets::bind(resolver.clone(), &udp_options, UDP_RETRANSMIT).map_err(no_socket)?;
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
        trackers: TrackerClients { http, udp },
        families,
        socket_options,
        pending_max: handles.pending,
        web_connections_max: handles.web,
        seed: seed(),
    };
    Ok((
        Shared::new(config, opened, assembly_bytes, events),
        udp_sockets,
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

struct Sockets {
    listeners: Vec<Rc<Listener>>,
    udp: Vec<(Family, Udp)>,
    port: u16,
}

impl Sockets {
    fn addrs(&self) -> Result<Vec<SocketAddr>, SessionError> {
        let addrs: io::Result<Vec<SocketAddr>> = self
            .listeners
            .iter()
            .map(|listener| listener.local_addr())
            .collect();
        addrs.map_err(|error| SessionError::new(format!("cannot listen: {error}"), "try again"))
    }
}

fn bind_sockets(config: &SessionConfig, options: &SocketOptions) -> Result<Sockets, SessionError> {
    let ips = listen_addrs(config);
    let ports: Vec<u16> = match config.port {
        PortChoice::Default => (PORT_DEFAULT..PORT_DEFAULT + PORTS_TRIED).collect(),
        PortChoice::Exactly(0) => vec![0; ANY_PORT_TRIES as usize],
        PortChoice::Exactly(port) => vec![port],
    };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in &ports {
        match bind_port(&ips, *port, options) {
            Ok(sockets) => return Ok(sockets),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(cannot_listen(&config.bind, *port, &error)),
        }
    }
    let what = match ports.as_slice() {
        [0, ..] | [] => format!("no free port was found: {last}"),
        [port] => format!("port {port} is taken"),
        [first, .., end] => format!("ports {first} to {end} are taken"),
    };
    Err(SessionError::new(
        what,
        "choose another with --port, or any free one with --port 0",
    ))
}

fn cannot_listen(bind: &Option<BindTo>, port: u16, error: &io::Error) -> SessionError {
    let is = |errno| error.raw_os_error() == Some(errno);
    match bind {
        Some(BindTo::Interface(name)) if is(libc::ENODEV) => SessionError::new(
            format!("there is no network interface {name}"),
            "`ip link` lists those there are: name one with --bind",
        ),
        Some(BindTo::Addr(ip)) if is(libc::EADDRNOTAVAIL) => SessionError::new(
            format!("{ip} is no address of this machine"),
            "`ip addr` lists those there are: name one with --bind",
        ),
        _ if error.kind() == io::ErrorKind::PermissionDenied && (1..1024).contains(&port) => {
            SessionError::new(
                format!("port {port} is not open to this user: {error}"),
                "choose one from 1024 up with --port",
            )
        }
        Some(BindTo::Interface(name)) => SessionError::new(
            format!("cannot listen on interface {name}: {error}"),
            "check --bind and --port",
        ),
        Some(BindTo::Addr(ip)) => SessionError::new(
            format!("cannot listen on {ip}: {error}"),
            "check --bind and --port",
        ),
        None => SessionError::new(
            format!("cannot listen on port {port}: {error}"),
            "choose another with --port, or any free one with --port 0",
        ),
    }
}

fn listen_addrs(config: &SessionConfig) -> Vec<IpAddr> {
    match &config.bind {
        Some(BindTo::Addr(ip)) => vec![*ip],
        _ if config.ipv6 => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        _ => vec![Ipv4Addr::UNSPECIFIED.into()],
    }
}

fn bind_port(ips: &[IpAddr], port: u16, options: &SocketOptions) -> io::Result<Sockets> {
    let mut sockets = Sockets {
        listeners: Vec::new(),
        udp: Vec::new(),
        port,
    };
    for ip in ips {
        let listener = match Listener::bind(SocketAddr::new(*ip, sockets.port), options) {
            Ok(listener) => listener,
            // A kernel without IPv6 still has IPv4.
            Err(error) if ip.is_ipv6() && !sockets.listeners.is_empty() && is_no_family(&error) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        sockets.port = listener.local_addr()?.port();
        let family = match ip.is_ipv4() {
            true => Family::V4,
            false => Family::V6,
        };
        let udp = Udp::bind(SocketAddr::new(*ip, sockets.port), options)?;
        sockets.udp.push((family, udp));
        sockets.listeners.push(Rc::new(listener));
    }
    Ok(sockets)
}

fn is_no_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}
