//! Torrents of which only a link is known: what is made of their metadata when it comes, and fetching nothing else.
//! Layer 7.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::escape::terminal_path;
use super::exit::{Exit, Failure};
use super::fetch::Route;
use super::{create, escape, run, select, signals, source};
use crate::session::ip_filter::IpFilterSettings;
use crate::session::{
    self, DhtSettings, Encryption, Job, MagnetConfig, OnMetadata, PortChoice, SendEngine,
    SessionConfig, SessionError, SessionEvent, Stopper, TorrentConfig, WriteEngine,
};
use crate::swarm::choker::{SeedChoker, UploadSlots};
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::Metainfo;

/// A session that fetches metadata alone needs no more.
const BUFFERS_BYTES: u64 = 2 << 20;
/// Connections of such a session.
const PEERS_MAX: u32 = 80;

/// Whom to ask, and how long.
#[derive(Clone, Debug)]
pub struct Asking {
    pub peers: Vec<std::net::SocketAddr>,
    pub trackers: bool,
    pub exchanges_peers: bool,
    pub searches_locally: bool,
    pub dht: Option<DhtSettings>,
    pub encryption: Encryption,
    pub give_up: Option<Duration>,
    pub announce_interval_min: Duration,
    pub route: Route,
    /// For fetching nothing else; a download has its own.
    pub ip_filter: Option<IpFilterSettings>,
}

impl Asking {
    /// True when anybody can be asked for the metadata of this link.
    pub fn knows_anybody(&self, link: &Magnet) -> bool {
        let has_tracker = self.trackers && !link.trackers.is_empty();
        let has_peer = !link.peers.is_empty() || !self.peers.is_empty();
        let has_url = link.torrents.iter().any(|url| is_http(url));
        // The local network is around the proxy.
        let has_network = self.searches_locally && self.route.proxy.is_none();
        has_tracker || self.dht.is_some() || has_peer || has_url || has_network
    }
}

/// What can be fetched of the URLs that a link has for its .torrent.
fn is_http(url: &str) -> bool {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("http"))
}

/// The refusal of a link that leads nowhere.
pub fn leads_nowhere(link: &Magnet) -> Failure {
    let name = link.name.as_deref().map(|name| escape::cut(name, 80));
    let name = name.map_or_else(String::new, |name| format!(" ({name})"));
    Failure::new(
        format!(
            "nobody to ask for the metadata of {}{name}: the link names no tracker, no peer and no http URL of its .torrent",
            link.info_hash
        ),
        "name a peer with --peer, or use the .torrent file",
    )
}

/// Fetches the metadata of every link, in the order given, and nothing else.
///
/// # Errors
/// One of them is not found in time.
pub fn fetch(links: &[Magnet], asking: &Asking) -> Result<Vec<Metainfo>, Failure> {
    let found: Arc<Mutex<Vec<Option<Metainfo>>>> = Arc::new(Mutex::new(vec![None; links.len()]));
    let jobs = links.iter().enumerate().map(|(index, link)| {
        let found = found.clone();
        let on_metadata: OnMetadata = Arc::new(move |metainfo| {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = found.get_mut(index) {
                *place = Some(metainfo);
            }
            Ok(None)
        });
        Job::Magnet(magnet_config(link.clone(), asking, on_metadata))
    });
    let jobs: Vec<Job> = jobs.collect();
    let ring = run::start_ring()?;
    let stopper = Stopper::default();
    let on_signal = stopper.clone();
    signals::on_first(move || on_signal.stop());
    let error: Rc<std::cell::RefCell<Option<Failure>>> = Rc::default();
    let first = error.clone();
    let result = ring.block_on(session::run(
        session_config(asking),
        jobs,
        stopper,
        move |event| {
            if let SessionEvent::Error {
                message,
                hint,
                is_final: true,
                ..
            } = event
            {
                first
                    .borrow_mut()
                    .get_or_insert_with(|| Failure::new(message, hint));
            }
        },
    ));
    std::mem::forget(ring);
    result.map_err(|error| Failure::new(&error, error.hint()))?;
    if let Some(exit) = signals::received() {
        return Err(Failure::new("stopped before the metadata was here", "").with_exit(exit));
    }
    if let Some(failure) = error.take() {
        return Err(failure);
    }
    let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    let all: Option<Vec<Metainfo>> = found.into_iter().collect();
    all.ok_or_else(|| {
        Failure::new("the metadata was not found", "try again").with_exit(Exit::Failed)
    })
}

/// A link as a job, with what is made of its metadata.
pub fn magnet_config(link: Magnet, asking: &Asking, on_metadata: OnMetadata) -> MagnetConfig {
    MagnetConfig {
        link,
        peers: asking.peers.clone(),
        trackers: asking.trackers,
        on_metadata,
    }
}

fn session_config(asking: &Asking) -> SessionConfig {
    SessionConfig {
        // No torrent is run: no record is read or written.
        state_dir: PathBuf::new(),
        port: match asking.route.proxy {
            None => PortChoice::Exactly(0),
            Some(_) => PortChoice::Nowhere,
        },
        bind: asking.route.bind.clone(),
        ipv6: asking.route.ipv6,
        tcp: true,
        utp: true,
        holepunch: true,
        lsd: asking.searches_locally,
        dht: asking.dht.clone(),
        encryption: asking.encryption,
        limit_up_bytes_per_s: None,
        limit_down_bytes_per_s: None,
        peers_max: PEERS_MAX,
        upload_slots: UploadSlots::Auto,
        seed_choker: SeedChoker::RoundRobin,
        exchanges_peers: asking.exchanges_peers,
        buffers_bytes: Some(BUFFERS_BYTES),
        send_engine: SendEngine::Auto,
        write_engine: WriteEngine::Auto,
        give_up: asking.give_up,
        http_proxy: run::variable(&["http_proxy"]),
        no_proxy: run::no_proxy(),
        proxy: asking.route.proxy.clone(),
        tracker_ca: asking.route.tracker_ca.clone(),
        ip_filter: asking.ip_filter.clone(),
        announce_interval_min: asking.announce_interval_min,
        port_map: None,
        tells_delays: false,
    }
}

/// What a download makes of metadata: `shape` is the torrent but for its metainfo.
pub fn shaped(
    shape: impl Fn(Metainfo, Option<Vec<usize>>) -> Result<TorrentConfig, Failure>
    + Send
    + Sync
    + 'static,
    link: &Magnet,
    select: &[String],
    save: Option<&Path>,
) -> OnMetadata {
    let (link, select) = (link.clone(), select.to_vec());
    let save = save.map(Path::to_owned);
    Arc::new(move |metainfo| {
        let made = || {
            for warning in &metainfo.warnings {
                tracing::warn!("{}: {}", link.info_hash, escape::terminal(warning));
            }
            let selected = select::of_link(&metainfo, &link, &select)?;
            if let Some(path) = &save {
                save_torrent(path, &metainfo)?;
            }
            shape(metainfo.clone(), selected)
        };
        made()
            .map(Some)
            .map_err(|failure| SessionError::new(failure.message(), failure.hint()))
    })
}

/// Writes the .torrent, in the place of nothing but a .torrent of the same info_hash.
///
/// # Errors
/// It cannot be written, or something else is there.
pub fn save_torrent(path: &Path, metainfo: &Metainfo) -> Result<(), Failure> {
    check_place(path, metainfo.info_hash)?;
    create::write(path, &metainfo.to_torrent(), true)
}

/// Looks whether [`save_torrent`] may write there.
///
/// # Errors
/// Something else is there.
pub fn check_place(path: &Path, info_hash: crate::base::InfoHash) -> Result<(), Failure> {
    if std::fs::symlink_metadata(path).is_err() {
        return check_folder(path);
    }
    // A pipe without a writer would hold whoever opens it.
    let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
    let present = is_file.then(|| source::load_file(path).ok()).flatten();
    if present.is_some_and(|present| present.info_hash == info_hash) {
        return Ok(());
    }
    Err(Failure::new(
        format!(
            "{} exists and is no .torrent of {info_hash}",
            terminal_path(path)
        ),
        "name another file with --save-torrent",
    ))
}

/// Whether there is a folder for it, so that it is not missed only once the metadata has come.
fn check_folder(path: &Path) -> Result<(), Failure> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if folder.is_dir() {
        return Ok(());
    }
    Err(Failure::new(
        format!(
            "cannot write {}: there is no folder {}",
            terminal_path(path),
            terminal_path(folder)
        ),
        "make the folder, or name another file with --save-torrent",
    ))
}
