//! The options that `download` and `seed` share. Layer 7.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};

use super::cli::{BindTo, ProxySettings, Slots};
use super::size::{parse_duration, parse_rate, parse_size};
use super::values::{
    Check, Encryption, SendEngine, WriteEngine, parse_addr, parse_bind, parse_host_port,
    parse_peer, parse_peers_max, parse_port, parse_proxy, parse_ratio, parse_slots,
};

/// What `download` and `seed` share.
#[derive(Clone, Debug, Args)]
pub struct SessionArgs {
    /// How existing data is checked at the start
    ///
    /// auto trusts a matching resume record and hashes the rest, full hashes everything, none trusts the files.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Check::Auto)]
    pub check: Check,
    /// Port to listen on, 0 for any [default: 6881 or one of the next nine; none with --proxy]
    #[arg(long, value_name = "PORT", value_parser = parse_port)]
    pub port: Option<u16>,
    /// Send and receive only through this local address or network interface
    #[arg(long, value_name = "ADDR|IFACE", value_parser = parse_bind)]
    pub bind: Option<BindTo>,
    /// Let everything go through this SOCKS 5 proxy: peers, trackers, web seeds, the DHT, names
    ///
    /// socks5://HOST:PORT, or socks5://USER:PASSWORD@HOST:PORT. Nothing goes out around it: names are looked up by the proxy,
    /// the local network is left alone, http_proxy is not used, and nobody can connect unless --port is given. UDP trackers
    /// and the DHT need a proxy with UDP ASSOCIATE. GYRE_PROXY hides a password from other users of the machine.
    #[arg(long, value_name = "URL", value_parser = parse_proxy)]
    pub proxy: Option<ProxySettings>,
    /// Trust the authorities in this file too where https is spoken
    ///
    /// Certificates in PEM, such as a tracker's own authority, besides those of the system. https trackers and web seeds need a
    /// gyre that was built with the feature tls.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tracker_ca: Option<PathBuf>,
    /// Have nothing to do with the addresses in this list
    ///
    /// A file of lines, packed with gzip or not: NAME:FIRST-LAST (PeerGuardian), FIRST - LAST , LEVEL , NAME (eMule; levels
    /// below 128 are blocked), FIRST-LAST, ADDRESS/BITS or ADDRESS, of IPv4 and IPv6. SIGHUP has it read anew. Trackers and web
    /// seeds are used wherever they are.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ip_filter: Option<PathBuf>,
    /// Dial this peer (repeat)
    #[arg(long, value_name = "ADDR", value_delimiter = ',', value_parser = parse_peer)]
    pub peer: Vec<SocketAddr>,
    /// Upload at most this fast, 0 for no limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub limit_up: Option<u64>,
    /// Download at most this fast, 0 for no limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub limit_down: Option<u64>,
    /// Most connections of the whole session
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = parse_peers_max)]
    pub max_peers: u32,
    /// Peers uploaded to at a time, or auto
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = parse_slots)]
    pub upload_slots: Slots,
    /// Seed on when complete
    #[arg(long)]
    pub seed: bool,
    /// Seed until uploaded ÷ downloaded, over the torrent's life, reaches R
    #[arg(long, value_name = "R", value_parser = parse_ratio)]
    pub seed_ratio: Option<f64>,
    /// Seed for this long after it is complete
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    pub seed_time: Option<Duration>,
    /// Leave the trackers alone
    #[arg(long)]
    pub no_trackers: bool,
    /// Fetch nothing from web seeds, the web servers that a .torrent names beside peers
    #[arg(long)]
    pub no_web_seeds: bool,
    /// Leave the DHT alone
    #[arg(long)]
    pub no_dht: bool,
    /// Enter the DHT through this node instead of the well-known ones (repeat)
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = parse_host_port)]
    pub dht_bootstrap: Vec<(String, u16)>,
    /// Exchange no peer addresses with peers
    #[arg(long)]
    pub no_pex: bool,
    /// Look for no peers on the local network
    #[arg(long)]
    pub no_lsd: bool,
    /// Ask the gateway for no port of its own
    ///
    /// Mappings are taken back at the end and run out by themselves after a kill, except at gateways that grant them only for
    /// good.
    #[arg(long)]
    pub no_port_map: bool,
    /// Ask this gateway, not that of the default route
    #[arg(long, value_name = "ADDR", value_parser = parse_addr, hide = true)]
    pub port_map_gateway: Option<SocketAddr>,
    /// Use IPv4 only
    #[arg(long)]
    pub no_ipv6: bool,
    /// Connect to peers over TCP only
    #[arg(long)]
    pub no_utp: bool,
    /// Neither punch holes for peers that cannot be dialed nor help others with it
    ///
    /// Two peers behind gateways that let nobody in are connected through a third that both are connected to. It needs uTP
    /// and peer exchange.
    #[arg(long)]
    pub no_holepunch: bool,
    /// Connect to peers over uTP only, on the UDP port
    ///
    /// uTP yields to other traffic on the line. Trackers and web seeds are asked over TCP all the same.
    #[arg(long, conflicts_with_all = ["no_utp", "proxy"])]
    pub no_tcp: bool,
    /// Whether connections are hidden from those who look on
    ///
    /// prefer dials with an encrypted handshake, in the open where that is refused, takes both, and encrypts the rest for
    /// peers that insist; require encrypts everything and leaves other peers alone; off is in the open only.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Encryption::Prefer)]
    pub encryption: Encryption,
    /// Folder of the resume records [default: $XDG_STATE_HOME/gyre]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Registered buffer memory, 2MiB to half of all memory [default: 32MiB, or what RLIMIT_MEMLOCK leaves]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub buffers: Option<u64>,
    /// Fail when trouble that may pass lasts this long
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    pub give_up: Option<Duration>,
    /// Shortest announce interval taken from a tracker, for swarms of one's own
    #[arg(long, value_name = "T", default_value = "60s", value_parser = parse_duration, hide = true)]
    pub announce_interval_min: Duration,
    /// Tell delays inside the program as events `lab`, for `gyre bench`
    #[arg(long, hide = true)]
    pub lab: bool,
    /// How blocks are sent
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t = SendEngine::Auto)]
    pub send_engine: SendEngine,
    /// How pieces are written
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t = WriteEngine::Auto)]
    pub write_engine: WriteEngine,
    /// Report events as one JSON object a line on stdout
    #[arg(long)]
    pub json: bool,
    /// Show errors only
    #[arg(short, long)]
    pub quiet: bool,
}
