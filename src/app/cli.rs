//! The command line: verbs, options, help. Layer 7.
//!
//! Every long option can also be set by `GYRE_<OPTION>`; the names are derived in [`command`], so none is forgotten.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::parser::ValueSource;
use clap::{
    ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint,
};

use super::bench::args::BenchArgs;
use super::ctl::args::CtlArgs;
use super::daemon::args::DaemonArgs;
use super::import::{ExportArgs, ImportArgs};
pub use super::session_args::SessionArgs;
use super::size::{parse_duration, parse_size};
pub use super::values::{Check, Encryption, Preallocate, SendEngine, WriteEngine};
use super::values::{
    parse_addr, parse_bind, parse_host_port, parse_peer, parse_port, parse_proxy, parse_verbosity,
};
use crate::session;
use crate::swarm::choker::UploadSlots;

/// The port listened on when none is given; when it is taken, one of the next nine.
pub const DEFAULT_PORT: u16 = 6881;

const MORE: &str = "\
Examples:
  gyre download debian.torrent -o ~/isos
  gyre seed debian.torrent --data ~/isos
  gyre create ./album -a http://t.example/announce
  gyre info debian.torrent
  gyre verify debian.torrent --data ~/isos
  gyre magnet debian.torrent
  gyre tracker --listen 0.0.0.0:6969
  gyre daemon --config gyre.toml
  gyre ctl list
  gyre import transmission ~/.config/transmission-daemon
  gyre export state.jsonl
  gyre doctor --output /srv/torrents
  gyre bench seed
  gyre demo
  gyre completions bash
  gyre man | man -l -

Every option is also read from the environment as GYRE_<OPTION>, such as GYRE_LIMIT_UP=10MiB or GYRE_NO_DHT=1; \
options that can be repeated take commas there.

Sizes: 16KiB, 1MiB, 2GB. Rates: the same per second. Durations: 30s, 10m, 2h. Addresses: IP:PORT or [IPv6]:PORT.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 data incomplete or not verified, 130/143 stopped by SIGINT/SIGTERM.";

/// A BitTorrent peer for Linux, built on io_uring.
#[derive(Debug, Parser)]
#[command(
    name = "gyre",
    version,
    after_long_help = MORE,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs"
)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Logging, for every verb.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Log more to stderr: -v lifecycle, -vv decisions, -vvv messages
    #[arg(short, long, action = ArgAction::Count, global = true, value_parser = parse_verbosity, display_order = 990)]
    pub verbose: u8,
    /// Append the log to FILE instead of writing it to stderr
    #[arg(long, value_name = "FILE", global = true, display_order = 991)]
    pub log_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Fetch torrents, seeding while they download
    #[command(after_long_help = "\
Example:
  gyre download debian.torrent -o ~/isos --seed-ratio 2
  gyre download 'magnet:?xt=urn:btih:...' -o ~/isos --save-torrent debian.torrent
  gyre download album.torrent --list
  gyre download album.torrent --select '*.flac' --select 0")]
    Download(DownloadArgs),
    /// Check data and seed it until stopped
    #[command(after_long_help = "\
Example:
  gyre seed debian.torrent --data ~/isos --limit-up 10MiB")]
    Seed(SeedArgs),
    /// Make a .torrent from a file or folder
    #[command(after_long_help = "\
Files are put in the order of their raw path bytes. Symbolic links are followed, as mktorrent and libtorrent do; \
sockets and devices are left out with a warning. Files of zero length are kept, empty folders have no place in a torrent. \
SOURCE_DATE_EPOCH stands in for the clock, so that the same data gives the same .torrent.

Example:
  gyre create ./album -a http://t.example/announce
  gyre create ./album -a http://a.example/,http://b.example/ -a udp://c.example:6969")]
    Create(CreateArgs),
    /// Show what is in a .torrent or magnet link
    #[command(after_long_help = "\
The metadata of a magnet link or info_hash is fetched from peers that the link, its trackers or --peer name; \
with --offline, or when there is nobody to ask, the link itself is shown.

Example:
  gyre info debian.torrent --json
  gyre info debian.torrent --scrape
  gyre info 'magnet:?xt=urn:btih:...' --save-torrent debian.torrent")]
    Info(InfoArgs),
    /// Compare data with its torrent
    #[command(after_long_help = "Example:\n  gyre verify debian.torrent --data ~/isos")]
    Verify(VerifyArgs),
    /// Print the magnet link of a .torrent
    #[command(after_long_help = "Example:\n  gyre magnet debian.torrent")]
    Magnet(MagnetArgs),
    /// Run a small HTTP and UDP tracker for a swarm of one's own
    #[command(after_long_help = "Example:\n  gyre tracker --listen 0.0.0.0:6969")]
    Tracker(TrackerArgs),
    /// Run many torrents, controlled from outside, until stopped
    #[command(after_long_help = "\
SIGTERM ends it in order, exit code 0; SIGHUP has the settings read anew.

Example:
  gyre daemon --print-config > gyre.toml
  gyre daemon --config gyre.toml --limit-up 10MiB")]
    Daemon(Box<DaemonArgs>),
    /// Take torrents of another program into the state of a daemon, without hashing them
    #[command(after_long_help = "\
The daemon must not run meanwhile, and the other program should have ended, so that its files are up to date. They are only \
read. What the program had counts as had where the files are there with their lengths; gyre ctl verify proves a torrent later. \
One line a torrent tells what was taken, what stays behind, and what is left and why: exit code 3 when some is left.

Example:
  gyre import qbittorrent ~/.local/share/qBittorrent/BT_backup --dry-run
  gyre import transmission ~/.config/transmission-daemon --map /downloads=/srv/torrents
  gyre import rtorrent ~/.session --state /var/lib/gyre
  gyre import gyre state.jsonl")]
    Import(ImportArgs),
    /// Write the state of a daemon, its .torrent files and resume records into one file
    #[command(after_long_help = "\
The daemon must not run meanwhile. The file is JSON lines, for its owner only; gyre import gyre FILE reads it, on another \
machine too: data that was copied with its times is not hashed again.

Example:
  gyre export state.jsonl")]
    Export(ExportArgs),
    /// Ask a running daemon: list, add, show, start, stop, remove, verify, limit, top
    #[command(after_long_help = "\
Example:
  gyre ctl add debian.torrent --label linux
  gyre ctl list
  gyre ctl limit --up 10MiB")]
    Ctl(CtlArgs),
    /// Check this machine: kernel, io_uring, limits, disk, port
    #[command(after_long_help = "Example:\n  gyre doctor --output /srv/torrents")]
    Doctor(DoctorArgs),
    /// Show a whole swarm at work on this machine alone
    #[command(after_long_help = "Example:\n  gyre demo --size 1GiB")]
    Demo(DemoArgs),
    /// Measure this machine: seeding, downloading, hashing, the disk
    #[command(after_long_help = "\
Example:
  gyre bench seed --preset cold --json
  gyre bench leech --fetchers 4 --congestion cubic")]
    Bench(BenchArgs),
    /// Print a completion script for a shell
    #[command(after_long_help = "\
Example:
  gyre completions bash > /usr/share/bash-completion/completions/gyre")]
    Completions(CompletionsArgs),
    /// Print the manual page
    #[command(after_long_help = "Example:\n  gyre man | man -l -")]
    Man,
}

#[derive(Debug, Args)]
pub struct DownloadArgs {
    /// A .torrent file, an http:// or https:// URL of one, a magnet link, or an info_hash
    #[arg(required = true, value_name = "SOURCE", value_hint = ValueHint::FilePath)]
    pub sources: Vec<OsString>,
    /// Folder to fetch into
    #[arg(short, long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
    pub output: PathBuf,
    /// Fetch only files matching a glob or with this index (repeat)
    ///
    /// Globs are matched against the path inside the torrent and against the file name; `*` also matches `/`.
    /// Indices start at 0 and are shown by --list; ranges such as 3-7 work.
    #[arg(long, value_name = "GLOB|INDEX")]
    pub select: Vec<String>,
    /// List the files, those selected when there is a --select, and leave
    #[arg(long)]
    pub list: bool,
    /// Write the .torrent of a magnet link or info_hash to FILE
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub save_torrent: Option<PathBuf>,
    /// Fetch pieces in order
    #[arg(long)]
    pub sequential: bool,
    /// How files get their size
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Preallocate::Sparse)]
    pub preallocate: Preallocate,
    #[command(flatten)]
    pub session: SessionArgs,
}

#[derive(Debug, Args)]
pub struct SeedArgs {
    /// .torrent files, or http:// or https:// URLs of them
    #[arg(required = true, value_name = "TORRENT", value_hint = ValueHint::FilePath)]
    pub torrents: Vec<OsString>,
    /// Folder the data lies in (--output of the download), or the content folder or file itself
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub data: PathBuf,
    /// Show each peer one piece at a time, until there are other seeds
    ///
    /// For the first seeder of a torrent: a peer is shown the next piece when it has passed the last one on, so that little more
    /// than one copy leaves this machine (BEP 16). It slows down a swarm that has seeds already.
    #[arg(long)]
    pub super_seed: bool,
    #[command(flatten)]
    pub session: SessionArgs,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// File or folder to share
    pub path: PathBuf,
    /// The .torrent to write, or the folder to put it in [default: NAME.torrent here]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace an existing .torrent
    #[arg(short, long)]
    pub force: bool,
    /// Tracker (repeat: one tier each; commas put several into one tier)
    #[arg(short, long, value_name = "URL")]
    pub announce: Vec<String>,
    /// Web server that has the same data (repeat)
    #[arg(short, long, value_name = "URL")]
    pub web_seed: Vec<String>,
    /// Bytes in a piece, a power of two [default: for 1,000 to 2,000 pieces, 16KiB to 16MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub piece_length: Option<u64>,
    /// Make it a torrent of BitTorrent v2, which older programs cannot use
    #[arg(long, conflicts_with = "hybrid")]
    pub v2: bool,
    /// Make it one of v1 and v2 at once
    #[arg(long)]
    pub hybrid: bool,
    /// Peers come from the trackers only
    #[arg(long)]
    pub private: bool,
    /// Free text
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
    /// Text that gives the same data another info_hash
    #[arg(long, value_name = "TEXT")]
    pub source: Option<String>,
    /// Name in the torrent [default: the name of PATH]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Print nothing but info_hash and magnet link
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct InfoArgs {
    /// A .torrent file, an http:// or https:// URL of one, a magnet link, or an info_hash
    #[arg(value_hint = ValueHint::FilePath)]
    pub source: OsString,
    /// Show what the link itself holds and ask nobody for more
    #[arg(long)]
    pub offline: bool,
    /// Ask the trackers how many peers they count, and show nothing else
    #[arg(long, conflicts_with = "save_torrent")]
    pub scrape: bool,
    /// Write the .torrent of a magnet link or info_hash to FILE
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub save_torrent: Option<PathBuf>,
    /// Ask this peer for the metadata (repeat)
    #[arg(long, value_name = "ADDR", value_delimiter = ',', value_parser = parse_peer)]
    pub peer: Vec<SocketAddr>,
    /// Stop asking for the metadata after nothing came for this long
    #[arg(long, value_name = "T", default_value = "60s", value_parser = parse_duration)]
    pub give_up: Duration,
    /// Leave the trackers alone
    #[arg(long)]
    pub no_trackers: bool,
    /// Leave the DHT alone
    #[arg(long)]
    pub no_dht: bool,
    /// Enter the DHT through this node instead of the well-known ones (repeat)
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = parse_host_port)]
    pub dht_bootstrap: Vec<(String, u16)>,
    /// Take no peer addresses from peers
    #[arg(long)]
    pub no_pex: bool,
    /// Look for no peers on the local network
    #[arg(long)]
    pub no_lsd: bool,
    /// Use IPv4 only
    #[arg(long)]
    pub no_ipv6: bool,
    /// Send and receive only through this local address or network interface
    #[arg(long, value_name = "ADDR|IFACE", value_parser = parse_bind)]
    pub bind: Option<BindTo>,
    /// Let everything go through this SOCKS 5 proxy: peers, trackers, the DHT, names
    #[arg(long, value_name = "URL", value_parser = parse_proxy)]
    pub proxy: Option<ProxySettings>,
    /// Trust the authorities in this file too where https is spoken: PEM, besides those of the system
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tracker_ca: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A .torrent file, or an http:// or https:// URL of one
    #[arg(value_hint = ValueHint::FilePath)]
    pub torrent: OsString,
    /// Folder the data lies in, or the content folder or file itself
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub data: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// List what is missing or wrong and nothing else
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub route: RouteArgs,
}

/// The way to a .torrent that is fetched from an `http://` or `https://` URL.
#[derive(Debug, Args)]
pub struct RouteArgs {
    /// Use IPv4 only
    #[arg(long)]
    pub no_ipv6: bool,
    /// Fetch the .torrent only through this local address or network interface
    #[arg(long, value_name = "ADDR|IFACE", value_parser = parse_bind)]
    pub bind: Option<BindTo>,
    /// Fetch the .torrent through this SOCKS 5 proxy
    #[arg(long, value_name = "URL", value_parser = parse_proxy)]
    pub proxy: Option<ProxySettings>,
    /// Trust the authorities in this file too where https is spoken: PEM, besides those of the system
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tracker_ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct MagnetArgs {
    /// A .torrent file, or an http:// or https:// URL of one
    #[arg(value_hint = ValueHint::FilePath)]
    pub torrent: OsString,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub route: RouteArgs,
}

#[derive(Debug, Args)]
pub struct TrackerArgs {
    /// Address to listen on, HTTP and UDP alike (repeat) [default: port 6969 of both families]
    #[arg(long, value_name = "ADDR", value_delimiter = ',', value_parser = parse_addr)]
    pub listen: Vec<SocketAddr>,
    /// Announce interval that peers are told
    #[arg(long, value_name = "T", default_value = "2m", value_parser = parse_duration)]
    pub interval: Duration,
    /// Report events as one JSON object a line on stdout
    #[arg(long)]
    pub json: bool,
    /// Show errors only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Folder that downloads would go to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub output: PathBuf,
    /// Folder of the resume records [default: $XDG_STATE_HOME/gyre]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Port to look at
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT, value_parser = parse_port)]
    pub port: u16,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Bytes of sample data
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    pub size: u64,
    /// Fail when it takes longer than this
    #[arg(long, value_name = "T", default_value = "55s", value_parser = parse_duration)]
    pub deadline: Duration,
    /// Show errors only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `--bind`.
pub type BindTo = session::BindTo;

/// `--upload-slots`.
pub type Slots = UploadSlots;

/// `--proxy`.
pub type ProxySettings = session::ProxySettings;

/// The whole command with its environment variables.
pub fn command() -> clap::Command {
    fn from_environment(arg: clap::Arg) -> clap::Arg {
        let Some(long) = arg.get_long() else {
            return arg;
        };
        let name = variable(long);
        let arg = arg.env(name).hide_env(true);
        match arg.get_action() {
            ArgAction::SetTrue => arg.value_parser(FalseyValueParser::new()),
            // A negative number is a wrong value, not an unknown option.
            ArgAction::Set | ArgAction::Append => arg.allow_negative_numbers(true),
            _ => arg,
        }
    }
    // The last one counts, so that an option in a shell's alias can be given anew.
    let mut command = Cli::command()
        .args_override_self(true)
        .mut_args(from_environment);
    let verbs: Vec<String> = command
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect();
    for verb in verbs {
        command = command.mut_subcommand(verb, |mut verb| {
            let below: Vec<String> = verb
                .get_subcommands()
                .map(|sub| sub.get_name().to_owned())
                .collect();
            for name in below {
                verb = verb.mut_subcommand(name, |sub| {
                    sub.args_override_self(true).mut_args(from_environment)
                });
            }
            verb.args_override_self(true).mut_args(from_environment)
        });
    }
    command
}

/// The environment variable of a long option.
pub fn variable(long: &str) -> String {
    format!("GYRE_{}", long.replace('-', "_").to_uppercase())
}

/// Parses the arguments and the environment.
///
/// # Errors
/// What clap says, help and version included.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let Some((_, verb_matches)) = matches.subcommand() else {
        return Ok(cli);
    };
    match &mut cli.verb {
        Verb::Download(args) => split_environment(verb_matches, "select", &mut args.select),
        Verb::Create(args) => {
            split_environment(verb_matches, "announce", &mut args.announce);
            split_environment(verb_matches, "web_seed", &mut args.web_seed);
        }
        _ => {}
    }
    Ok(cli)
}

/// A repeatable option whose values may hold commas takes them as separators only in the environment.
fn split_environment(matches: &ArgMatches, id: &str, values: &mut Vec<String>) {
    if matches.value_source(id) != Some(ValueSource::EnvVariable) {
        return;
    }
    let split = values
        .iter()
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .map(str::to_owned)
        .collect();
    *values = split;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_long_option_is_read_from_the_environment() {
        let command = command();
        for verb in command.get_subcommands().chain([&command]) {
            for arg in verb.get_arguments() {
                let Some(long) = arg.get_long() else { continue };
                if matches!(long, "help" | "version") {
                    continue;
                }
                let name = format!("GYRE_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(&*name));
            }
        }
    }

    #[test]
    fn every_verb_has_an_example() {
        for verb in command().get_subcommands() {
            let after = verb.get_after_long_help().map(ToString::to_string);
            let has_example = after.is_some_and(|text| text.contains("Example:"));
            assert!(
                has_example || verb.get_name() == "man",
                "{}",
                verb.get_name()
            );
        }
    }

    #[test]
    fn shared_options_are_accepted_by_download_and_seed() {
        for verb in ["download", "seed"] {
            let line = format!(
                "gyre {verb} x.torrent --port 0 --bind 127.0.0.1 --peer 127.0.0.1:1 --peer [::1]:2 --limit-up 1MiB \
                 --limit-down 2MB --proxy socks5://u:p@[::1]:1080 --tracker-ca c --ip-filter f --max-peers 9 --upload-slots auto --seed --seed-ratio 1.5 --seed-time 2h --no-trackers \
                 --no-dht --dht-bootstrap n.example:6881 --no-pex --no-lsd --no-port-map --no-ipv6 --no-utp --no-holepunch --encryption require --state /s --buffers 6MiB --give-up 10m --send-engine mapped \
                 --write-engine direct --json --check full -vv --log-file l"
            );
            let cli = parsed(&line).unwrap();
            assert_eq!(cli.log.verbose, 2);
            let (Verb::Download(DownloadArgs { session, .. })
            | Verb::Seed(SeedArgs { session, .. })) = cli.verb
            else {
                panic!("another verb");
            };
            assert_eq!(session.peer.len(), 2);
            assert_eq!(session.limit_down, Some(2_000_000));
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for options in [
            "--limit-up 5parsecs",
            "--upload-slots few",
            "--max-peers 0",
            "--seed-ratio -1",
            "--peer 1.2.3.4",
            "--port 65536",
            "--bind ../x",
            "--encryption yes",
            "--dht-bootstrap node.example",
            "--proxy 127.0.0.1:1080",
            "--proxy socks5://h",
            "--no-tcp --no-utp",
            "--no-tcp --proxy socks5://h:1",
        ] {
            assert!(
                parsed(&format!("gyre download x {options}")).is_err(),
                "{options}"
            );
        }
    }
}
