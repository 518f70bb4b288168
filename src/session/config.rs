//! What the layer above asks of a session and what it is told back. Layer 5. Plain values, no I/O.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::error::SessionError;
use super::ip_filter::IpFilterSettings;
use super::port_map::PortMapSettings;
use super::tune::Tuning;
use crate::base::{Bitfield, InfoHash, PieceIndex};
pub use crate::session::disk::{Preallocate, SendEngine, WriteEngine};
use crate::swarm::SourceCounts;
use crate::swarm::choker::{SeedChoker, UploadSlots};
use crate::swarm::dht::DhtStats;
use crate::uring::tls::Authorities;
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::Metainfo;
use crate::wire::mse::Payloads;
use crate::wire::natpmp::Protocol;
use crate::wire::socks::Login;
use crate::wire::url::Host;

/// Which port to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortChoice {
    /// The default port, or one of the next nine when it is taken.
    Default,
    /// Exactly this one; 0 is any free port.
    Exactly(u16),
    /// None: nobody can connect.
    Nowhere,
}

/// What everything goes out through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindTo {
    /// A local address; only its family is used.
    Addr(IpAddr),
    /// A network interface by name (SO_BINDTODEVICE).
    Interface(String),
}

/// Whether connections are hidden from those who look on (`--encryption`, Message Stream Encryption).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// Dialed with a hidden handshake, and in the open where that is refused; taken either way. The payload is encrypted
    /// where the other side insists.
    #[default]
    Prefer,
    /// Encrypted from the first byte to the last, or not at all.
    Require,
    /// In the open.
    Off,
}

impl Encryption {
    /// What may follow a hidden handshake; `None` when there is to be no such handshake.
    pub const fn payloads(self) -> Option<Payloads> {
        match self {
            Encryption::Prefer => Some(Payloads::Both),
            Encryption::Require => Some(Payloads::Rc4Only),
            Encryption::Off => None,
        }
    }
}

/// What happens to existing data at the start (`--check`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckMode {
    /// Trust a matching resume record, hash what it does not cover.
    #[default]
    Auto,
    /// Hash everything.
    Full,
    /// Trust the files as they are.
    None,
}

/// A SOCKS 5 proxy that everything goes through (`--proxy`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    pub host: Host,
    pub port: u16,
    pub login: Option<Login>,
}

/// Without user and password.
impl fmt::Display for ProxySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Settings of the DHT node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DhtSettings {
    /// Nodes to enter through, host and port; none are the well-known ones.
    pub bootstrap: Vec<(String, u16)>,
}

/// Settings of a whole session.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Folder of the resume records.
    pub state_dir: PathBuf,
    pub port: PortChoice,
    pub bind: Option<BindTo>,
    /// False leaves out every IPv6 socket, peer and tracker (`--no-ipv6`).
    pub ipv6: bool,
    /// Connections over TCP; false is `--no-tcp`.
    pub tcp: bool,
    /// Connections over uTP (BEP 29); false is `--no-utp`. Never through a proxy.
    pub utp: bool,
    /// Holes are punched, and others helped with it (BEP 55); false is `--no-holepunch`.
    pub holepunch: bool,
    /// Look for peers on the local network (BEP 14).
    pub lsd: bool,
    pub limit_up_bytes_per_s: Option<u64>,
    pub limit_down_bytes_per_s: Option<u64>,
    pub encryption: Encryption,
    /// Connections of the whole session, half-open ones included.
    pub peers_max: u32,
    pub upload_slots: UploadSlots,
    pub seed_choker: SeedChoker,
    /// Peers are told of each other, and believed (BEP 11); false is `--no-pex`.
    pub exchanges_peers: bool,
    /// Registered buffer memory; `None` is 32 MiB or what RLIMIT_MEMLOCK leaves.
    pub buffers_bytes: Option<u64>,
    pub send_engine: SendEngine,
    pub write_engine: WriteEngine,
    /// Ends with an error when trouble that may pass lasts this long.
    pub give_up: Option<Duration>,
    /// `http_proxy` of the environment, used for HTTP trackers.
    pub http_proxy: Option<String>,
    /// Hosts that `http_proxy` is not used for (`no_proxy`).
    pub no_proxy: Vec<String>,
    /// With it nothing goes out around it, and the environment's proxy has no say.
    pub proxy: Option<ProxySettings>,
    /// Authorities that are trusted besides the system's where TLS is spoken (`--tracker-ca`).
    pub tracker_ca: Option<Authorities>,
    /// Addresses to have nothing to do with (`--ip-filter`).
    pub ip_filter: Option<IpFilterSettings>,
    /// Shortest announce interval accepted from a tracker; 60 s outside of tests and private swarms.
    pub announce_interval_min: Duration,
    /// `None` leaves the DHT alone (`--no-dht`).
    pub dht: Option<DhtSettings>,
    /// `None` asks no gateway for a port (`--no-port-map`).
    pub port_map: Option<PortMapSettings>,
    /// The session tells its own delays, once a second ([`SessionEvent::Lab`]).
    pub tells_delays: bool,
}

/// Settings of one torrent.
#[derive(Clone, Debug)]
pub struct TorrentConfig {
    pub metainfo: Arc<Metainfo>,
    /// Folder the torrent's root goes into or lies in. For seeding it may be the content folder or file itself.
    pub folder: PathBuf,
    pub place: DataPlace,
    /// False for `gyre seed`: what is good is served, nothing is fetched.
    pub fetches: bool,
    pub check: CheckMode,
    pub preallocate: Preallocate,
    pub is_sequential: bool,
    /// Indices into `metainfo.info.files`; `None` is all.
    pub selected_files: Option<Vec<usize>>,
    /// Addresses to dial whatever the trackers say (`--peer`).
    pub peers: Vec<SocketAddr>,
    /// False leaves the trackers alone (`--no-trackers`).
    pub trackers: bool,
    /// URLs of web seeds (BEP 19), whether the .torrent or a magnet link named them; empty with `--no-web-seeds`.
    pub web_seeds: Vec<String>,
    pub seed_after: SeedAfter,
    /// How it stands beside the others.
    pub tuning: Tuning,
}

/// What is known of a torrent's data before it is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataPlace {
    /// There was some: where its folder or root is not, the disk is not there, and nothing is made in its place.
    pub is_expected: bool,
    /// Names in the place of the torrent's own, in the order they were given.
    pub renames: Vec<Rename>,
    /// Pieces to hash, whatever the record says.
    pub suspects: Vec<PieceIndex>,
}

/// Another name for a file or folder of a torrent.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rename {
    /// With the torrent's root as its first part, as it was called by then.
    pub path: String,
    /// Its last part from then on.
    pub name: String,
}

/// What is made of metadata that peers sent: the torrent to run, or nothing when only the metadata was wanted. Called
/// on a thread that may block.
pub type OnMetadata =
    Arc<dyn Fn(Metainfo) -> Result<Option<TorrentConfig>, SessionError> + Send + Sync>;

/// A torrent of which only a link is known.
#[derive(Clone)]
pub struct MagnetConfig {
    pub link: Magnet,
    /// Addresses to dial whatever link and trackers say (`--peer`).
    pub peers: Vec<SocketAddr>,
    /// False leaves the trackers alone (`--no-trackers`).
    pub trackers: bool,
    pub on_metadata: OnMetadata,
}

/// One thing for a session to do.
#[derive(Clone)]
pub enum Job {
    Torrent(TorrentConfig),
    Magnet(MagnetConfig),
}

impl Job {
    /// Whose metadata or data it is.
    pub fn info_hash(&self) -> InfoHash {
        match self {
            Job::Torrent(config) => config.metainfo.info_hash,
            Job::Magnet(config) => config.link.info_hash,
        }
    }
}

/// When a torrent that has everything ends.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SeedAfter {
    /// Seed on at all; without limits until stopped. True for `gyre seed`.
    pub seeds: bool,
    /// Uploaded ÷ max(downloaded, selected size) over the torrent's life.
    pub ratio: Option<f64>,
    /// Time spent seeding in this run.
    pub time: Option<Duration>,
    /// Time of this run without an upload.
    pub idle: Option<Duration>,
}

/// What a torrent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TorrentState {
    Checking,
    Metadata,
    Downloading,
    /// Wants data, and no peer gives any.
    Stalled,
    Seeding,
    Paused,
    Error,
}

impl TorrentState {
    /// The word used in `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            TorrentState::Checking => "checking",
            TorrentState::Metadata => "metadata",
            TorrentState::Downloading => "downloading",
            TorrentState::Stalled => "stalled",
            TorrentState::Seeding => "seeding",
            TorrentState::Paused => "paused",
            TorrentState::Error => "error",
        }
    }
}

/// One torrent's figures, sent about once a second and once more at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorrentProgress {
    pub info_hash: InfoHash,
    /// As in the torrent: escape it before it reaches a terminal.
    pub name: String,
    pub state: TorrentState,
    /// Bytes of verified pieces among those wanted (while checking: bytes found good so far).
    pub have_bytes: u64,
    /// Bytes wanted.
    pub total_bytes: u64,
    /// While checking: bytes hashed so far.
    pub checked_bytes: u64,
    pub downloaded_bytes: u64,
    /// The part of `downloaded_bytes` that came from web seeds.
    pub downloaded_web_bytes: u64,
    pub uploaded_bytes: u64,
    pub wasted_bytes: u64,
    pub total_downloaded_bytes: u64,
    pub total_uploaded_bytes: u64,
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    pub peers: u32,
    /// Those by who named their address, and all connections of this run so far.
    pub peers_by_source: SourceCounts,
    pub connections_by_source: SourceCounts,
    /// Of all connections of this run, those over uTP.
    pub connections_utp: u32,
    /// Of those, the ones of whose connection nothing can be read on the way.
    pub peers_encrypted: u32,
    /// Of those, the ones whose connection began hidden and goes on in the open.
    pub peers_obfuscated: u32,
    /// Of those, the ones over uTP.
    pub peers_utp: u32,
    pub peers_known: u32,
    /// Addresses that `--ip-filter` kept out: those named to this torrent, and those of connections to the session.
    pub peers_filtered: u32,
    /// Web seeds in use.
    pub web_seeds: u32,
    /// Peers are shown one piece at a time (BEP 16).
    pub super_seeding: bool,
    pub pieces_have: u32,
    pub pieces: u32,
    /// Pieces hashed from disk by this run's check.
    pub pieces_checked: u32,
    /// Pieces taken to be good that nobody hashed: each is before it is first sent.
    pub pieces_unproven: u32,
    /// While files are looked at and made (a part of `Checking`): those that are ready, and all; else both 0.
    pub files_prepared: u64,
    pub files_to_prepare: u64,
    /// While the metadata is fetched: bytes of it that are there, and all; both 0 as long as no peer has told its size.
    pub metadata_bytes: u32,
    pub metadata_total_bytes: u32,
}

impl TorrentProgress {
    /// The figures of a torrent of which nothing is known but its name.
    pub const fn nothing(info_hash: InfoHash, name: String, state: TorrentState) -> Self {
        TorrentProgress {
            info_hash,
            name,
            state,
            have_bytes: 0,
            total_bytes: 0,
            checked_bytes: 0,
            downloaded_bytes: 0,
            uploaded_bytes: 0,
            wasted_bytes: 0,
            total_downloaded_bytes: 0,
            total_uploaded_bytes: 0,
            down_bytes_per_s: 0,
            up_bytes_per_s: 0,
            peers: 0,
            peers_encrypted: 0,
            peers_obfuscated: 0,
            peers_utp: 0,
            downloaded_web_bytes: 0,
            web_seeds: 0,
            super_seeding: false,
            peers_by_source: SourceCounts::new(),
            connections_by_source: SourceCounts::new(),
            connections_utp: 0,
            peers_known: 0,
            peers_filtered: 0,
            pieces_have: 0,
            pieces: 0,
            pieces_checked: 0,
            pieces_unproven: 0,
            files_prepared: 0,
            files_to_prepare: 0,
            metadata_bytes: 0,
            metadata_total_bytes: 0,
        }
    }

    /// True when its files are open.
    pub const fn is_loaded(&self) -> bool {
        use TorrentState::{Downloading, Seeding, Stalled};
        matches!(self.state, Downloading | Seeding | Stalled)
    }

    /// True while files are looked at and made.
    pub const fn is_preparing(&self) -> bool {
        self.files_to_prepare > 0
    }
}

/// What a session tells the layer above, in order.
#[derive(Clone, Debug)]
pub enum SessionEvent {
    /// One listening socket is open (one event a socket).
    Listening {
        addr: SocketAddr,
    },
    /// The gateway passes what comes to this port of its own on to ours.
    Mapped {
        protocol: Protocol,
        /// 0.0.0.0 where the gateway does not tell its address.
        external: SocketAddr,
        lease_secs: u32,
    },
    /// A torrent was loaded.
    Metadata {
        info_hash: InfoHash,
        name: String,
        total_bytes: u64,
        pieces: u32,
        files: usize,
    },
    Progress(TorrentProgress),
    /// The DHT node's figures, when they changed.
    Dht(DhtStats),
    /// Delays since the start, in µs, by name.
    Lab(Vec<(String, u64)>),
    /// All wanted pieces are verified and written.
    Complete {
        info_hash: InfoHash,
        seconds: f64,
        /// This run fetched some of it.
        is_news: bool,
    },
    /// An address sent corrupt data and is refused from now on.
    Banned {
        info_hash: InfoHash,
        ip: IpAddr,
    },
    /// A web seed sent corrupt data and is used no more.
    WebSeedBanned {
        info_hash: InfoHash,
        /// Without a password.
        url: String,
    },
    /// Something the user should know that does not stop the torrent.
    Warning {
        info_hash: Option<InfoHash>,
        message: String,
        hint: String,
    },
    /// Trouble; with `is_final` the torrent stops, else it is tried again.
    Error {
        info_hash: Option<InfoHash>,
        message: String,
        hint: String,
        is_final: bool,
    },
    /// The torrent has ended: done as asked, stopped, or failed (an `Error` came before).
    Ended {
        info_hash: InfoHash,
        outcome: Outcome,
        have: Bitfield,
    },
}

/// How a torrent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for was done.
    Done,
    /// Stopped by the user.
    Stopped,
    /// Nothing is good, or not all is verified (exit code 3).
    Incomplete,
    /// Failed (exit code 1).
    Failed,
}

/// Tells a running session to stop, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Stopper(Arc<tokio::sync::Notify>);

impl Stopper {
    /// Asks for a clean stop: state saved, `stopped` announced, connections closed.
    pub fn stop(&self) {
        self.0.notify_one();
    }

    /// Completes when a stop was asked for.
    pub async fn stopped(&self) {
        self.0.notified().await;
    }
}
