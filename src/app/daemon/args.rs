//! The options of `gyre daemon`. Layer 7.
//!
//! Each key of the settings file is an option too; their values are read by one parser, whichever way they come.

use std::path::PathBuf;

use clap::Args;

#[derive(Clone, Debug, Default, Args)]
pub struct DaemonArgs {
    /// Read settings from FILE (TOML); options override them
    ///
    /// Every option below is a key there, with the same name and meaning; --print-config shows them all. SIGHUP has the file
    /// read anew: what can change without a restart does, and what cannot is named in the log.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print a settings file with every key, what it is for and its default, and leave
    #[arg(long)]
    pub print_config: bool,
    /// Folder of everything that is remembered [default: $XDG_STATE_HOME/gyre]
    ///
    /// Torrents with their labels, folders and counters survive a kill and a power cut there. One daemon uses it at a time.
    #[arg(long, value_name = "DIR")]
    pub state: Option<String>,
    /// Folder for torrents that are added without one [default: the current folder]
    #[arg(long, value_name = "DIR")]
    pub downloads: Option<String>,
    /// Port to listen on, 0 for any [default: 6881 or one of the next nine; none with --proxy]
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
    /// Send and receive only through this local address or network interface
    #[arg(long, value_name = "ADDR|IFACE")]
    pub bind: Option<String>,
    /// Let everything go through this SOCKS 5 proxy: peers, trackers, web seeds, the DHT, names
    ///
    /// socks5://HOST:PORT, or socks5://USER:PASSWORD@HOST:PORT. Nothing goes out around it, and nobody can connect unless a port
    /// is given. GYRE_PROXY or the settings file hide a password from other users of the machine.
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
    /// Have nothing to do with the addresses in this list
    ///
    /// A file as for gyre download. SIGHUP has it read anew.
    #[arg(long, value_name = "FILE")]
    pub ip_filter: Option<String>,
    /// Trust the authorities in this file (PEM) too where https is spoken
    #[arg(long, value_name = "FILE")]
    pub tracker_ca: Option<String>,
    /// Whether the gateway is asked for a port that peers can dial
    #[arg(long, value_name = "BOOL")]
    pub port_map: Option<String>,
    /// Whether IPv6 is used
    #[arg(long, value_name = "BOOL")]
    pub ipv6: Option<String>,
    /// Whether peers are connected to over TCP
    #[arg(long, value_name = "BOOL")]
    pub tcp: Option<String>,
    /// Whether peers are connected to over uTP
    #[arg(long, value_name = "BOOL")]
    pub utp: Option<String>,
    /// Whether peers that nobody can dial are connected with each other through others
    #[arg(long, value_name = "BOOL")]
    pub holepunch: Option<String>,
    /// Upload at most this fast, 0 for no limit
    #[arg(long, value_name = "RATE")]
    pub limit_up: Option<String>,
    /// Download at most this fast, 0 for no limit
    #[arg(long, value_name = "RATE")]
    pub limit_down: Option<String>,
    /// Most connections of all torrents together
    #[arg(long, value_name = "N")]
    pub max_peers: Option<String>,
    /// Peers uploaded to at a time, or auto
    #[arg(long, value_name = "N|auto")]
    pub upload_slots: Option<String>,
    /// Seed until uploaded ÷ downloaded, over a torrent's life, reaches R
    #[arg(long, value_name = "R")]
    pub seed_ratio: Option<String>,
    /// Seed for this long after a torrent is complete
    #[arg(long, value_name = "T")]
    pub seed_time: Option<String>,
    /// Seed until nothing was uploaded for this long
    #[arg(long, value_name = "T")]
    pub seed_idle: Option<String>,
    /// Torrents that download at a time, 0 for no limit; the others wait in the queue
    #[arg(long, value_name = "N")]
    pub download_queue_size: Option<String>,
    /// Torrents that seed at a time, 0 for no limit; the others wait in the queue
    #[arg(long, value_name = "N")]
    pub seed_queue_size: Option<String>,
    /// A torrent that moved nothing for this long takes no place in the queue [default: 30m]
    #[arg(long, value_name = "T")]
    pub queue_stalled: Option<String>,
    /// Whether peers of public torrents are looked for in the DHT
    #[arg(long, value_name = "BOOL")]
    pub dht: Option<String>,
    /// Enter the DHT through these nodes, with commas between them, instead of the well-known ones
    #[arg(long, value_name = "HOST:PORT")]
    pub dht_bootstrap: Option<String>,
    /// Whether peer addresses are exchanged with peers
    #[arg(long, value_name = "BOOL")]
    pub pex: Option<String>,
    /// Whether peers are looked for on the local network
    #[arg(long, value_name = "BOOL")]
    pub lsd: Option<String>,
    /// Whether connections are hidden from those who look on: prefer, require or off
    #[arg(long, value_name = "HOW")]
    pub encryption: Option<String>,
    /// Registered buffer memory
    #[arg(long, value_name = "SIZE")]
    pub buffers: Option<String>,
    /// How blocks are sent: auto, mapped or copy
    #[arg(long, value_name = "ENGINE")]
    pub send_engine: Option<String>,
    /// How pieces are written: auto, direct or buffered
    #[arg(long, value_name = "ENGINE")]
    pub write_engine: Option<String>,
    /// Serve the control API and the page there, or nowhere with "off" [default: 127.0.0.1:9091]
    ///
    /// The page is at /, Transmission's RPC at /transmission/rpc, figures for Prometheus at /metrics. All of it asks for the token
    /// in control.token of the state folder, or for a password. Beyond this machine only with a password.
    #[arg(long, value_name = "ADDR|off")]
    pub api: Option<String>,
    /// The socket that gyre ctl asks [default: control.sock in the state folder]
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<String>,
    /// Name that goes with the password [default: any]
    #[arg(long, value_name = "NAME")]
    pub api_user: Option<String>,
    /// File whose first line is the API's password, for its owner only [default: a token is made in the state folder]
    #[arg(long, value_name = "FILE")]
    pub api_password_file: Option<String>,
    /// Host names besides addresses and localhost that the API answers to, with commas between them
    #[arg(long, value_name = "NAMES")]
    pub api_hosts: Option<String>,
    /// Folders besides the one for downloads that the API may put data in, with commas between them
    ///
    /// Whoever may ask the API may add torrents and so write files: only below these folders.
    #[arg(long, value_name = "DIRS")]
    pub api_roots: Option<String>,
    /// Serve this folder as the page, in place of the one that is compiled in
    ///
    /// For VueTorrent, Transmission's page and others: a folder with an index.html. It is served to anybody who reaches the
    /// address, as the page is; what it asks for needs the token or the password.
    #[arg(long, value_name = "DIR")]
    pub web_ui: Option<String>,
    /// Whether files of torrents that are added are looked for among those of the others
    ///
    /// By their lengths and a sample of hashes; those found get second names, or copies that share their place on the disk, so
    /// that nothing is fetched twice. A file with two names is never written: whoever has to write it gets a copy first.
    #[arg(long, value_name = "BOOL")]
    pub cross_seed: Option<String>,
    /// Read torrents again in the background, at most this fast, 0 for not at all
    ///
    /// To find what rots on the disk before a peer does: a piece that is not what it was is dropped, told of, and fetched again.
    /// The reading comes behind all others at the disk, and rests while the torrents move much.
    #[arg(long, value_name = "RATE")]
    pub scrub_rate: Option<String>,
    /// Each torrent is read again once in that time [default: 30d]
    #[arg(long, value_name = "T")]
    pub scrub_period: Option<String>,
    /// Folders whose .torrent and .magnet files are added, with commas between them
    ///
    /// Each as "DIR" or "DIR; to=DIR; label=WORD; paused". What was added is called NAME.added then, what cannot be used
    /// NAME.invalid.
    #[arg(long, value_name = "DIRS")]
    pub watch: Option<String>,
    /// Shortest announce interval taken from a tracker, for swarms of one's own
    #[arg(long, value_name = "T", hide = true)]
    pub announce_interval_min: Option<String>,
    /// Take commands as JSON lines on stdin, for tests
    #[arg(long, hide = true)]
    pub lines: bool,
}

impl DaemonArgs {
    /// The options that were given, by the names of their keys.
    pub fn given(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("state", &self.state),
            ("downloads", &self.downloads),
            ("port", &self.port),
            ("bind", &self.bind),
            ("proxy", &self.proxy),
            ("ip-filter", &self.ip_filter),
            ("tracker-ca", &self.tracker_ca),
            ("port-map", &self.port_map),
            ("ipv6", &self.ipv6),
            ("tcp", &self.tcp),
            ("utp", &self.utp),
            ("holepunch", &self.holepunch),
            ("limit-up", &self.limit_up),
            ("limit-down", &self.limit_down),
            ("max-peers", &self.max_peers),
            ("upload-slots", &self.upload_slots),
            ("seed-ratio", &self.seed_ratio),
            ("seed-time", &self.seed_time),
            ("seed-idle", &self.seed_idle),
            ("download-queue-size", &self.download_queue_size),
            ("seed-queue-size", &self.seed_queue_size),
            ("queue-stalled", &self.queue_stalled),
            ("dht", &self.dht),
            ("dht-bootstrap", &self.dht_bootstrap),
            ("pex", &self.pex),
            ("lsd", &self.lsd),
            ("encryption", &self.encryption),
            ("buffers", &self.buffers),
            ("send-engine", &self.send_engine),
            ("write-engine", &self.write_engine),
            ("api", &self.api),
            ("api-socket", &self.api_socket),
            ("api-user", &self.api_user),
            ("api-password-file", &self.api_password_file),
            ("api-hosts", &self.api_hosts),
            ("api-roots", &self.api_roots),
            ("web-ui", &self.web_ui),
            ("cross-seed", &self.cross_seed),
            ("scrub-rate", &self.scrub_rate),
            ("scrub-period", &self.scrub_period),
            ("watch", &self.watch),
            ("announce-interval-min", &self.announce_interval_min),
        ];
        let given = all.into_iter();
        given
            .filter_map(|(key, value)| Some((key, value.as_deref()?)))
            .collect()
    }
}
