//! Options of `gyre bench`. Layer 7.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::app::cli::{SendEngine, WriteEngine};
use crate::app::size::{parse_duration, parse_rate, parse_size};

/// `gyre bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: BenchVerb,
}

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum BenchVerb {
    /// A seeder under synthetic leechers
    #[command(after_long_help = "\
Example:
  gyre bench seed --connections 8 --depth 64 --congestion cubic
  gyre bench seed --preset cold
  gyre bench seed --external 'other-client --port {port} --save {data} {torrent}' --port 6999")]
    Seed(SeedBench),
    /// A leecher fed by synthetic seeders
    #[command(after_long_help = "\
Example:
  gyre bench leech --connections 8 --congestion cubic
  gyre bench leech --fetchers 4 --write-engine buffered
  gyre bench leech --external 'aria2c -d {dir} --seed-time=0 {torrent}'")]
    Leech(LeechBench),
    /// The rate of SHA-1 on one core and on all
    #[command(after_long_help = "Example:\n  gyre bench hash --verify cold")]
    Hash(HashBench),
    /// Reads and writes of this disk through the ring
    #[command(after_long_help = "Example:\n  gyre bench disk --dir /srv/torrents")]
    Disk(DiskBench),
    /// One process of the synthetic swarm: reads its job from stdin
    #[command(hide = true)]
    Load,
    /// Becomes another program, which ends with the lab and hears signals
    #[command(hide = true)]
    Exec {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<std::ffi::OsString>,
    },
}

impl BenchVerb {
    /// Whether the result is one JSON object.
    pub const fn is_json(&self) -> bool {
        match self {
            BenchVerb::Seed(args) => args.common.json,
            BenchVerb::Leech(args) => args.common.json,
            BenchVerb::Hash(args) => args.json,
            BenchVerb::Disk(args) => args.json,
            BenchVerb::Load => true,
            BenchVerb::Exec { .. } => false,
        }
    }
}

/// What `seed` and `leech` share.
#[derive(Debug, Args)]
pub struct CommonBench {
    /// Synthetic peers [default: 8]
    #[arg(short, long, value_name = "N")]
    pub connections: Option<u32>,
    /// Bytes of one torrent [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: Option<u64>,
    /// Bytes in a piece [default: 1MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub piece_length: Option<u64>,
    /// Files in a torrent [default: 1]
    #[arg(long, value_name = "N")]
    pub files: Option<u32>,
    /// The sample is a torrent of BitTorrent v2, of one file
    #[arg(long)]
    pub v2: bool,
    /// How often it is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Core of the program under test (several: 0,2)
    #[arg(long, value_name = "CORES", value_delimiter = ',', default_value = "0")]
    pub core: Vec<usize>,
    /// Cores of its hash workers, where they are not to share the others
    #[arg(long, value_name = "CORES", value_delimiter = ',')]
    pub hash_core: Vec<usize>,
    /// Cores of the synthetic peers [default: the others]
    #[arg(long, value_name = "CORES", value_delimiter = ',')]
    pub load_core: Vec<usize>,
    /// Measure in a network namespace of its own under this congestion control (needs root)
    #[arg(long, value_name = "NAME")]
    pub congestion: Option<String>,
    /// Folder for sample data and downloads; the sample is kept there [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Measure another program: a shell command in which {torrent} {data} {dir} {port} {peers} {state} are replaced
    #[arg(long, value_name = "COMMAND")]
    pub external: Option<String>,
    /// Port on which the program under test listens [default: a free one]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Registered memory of the program under test
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub buffers: Option<u64>,
    /// Run the program under test as this user id
    #[arg(long, value_name = "UID")]
    pub user: Option<u32>,
    /// Limit of locked memory of the program under test
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memlock: Option<u64>,
    /// Count system calls in one round more
    #[arg(long, value_name = "HOW", value_enum)]
    pub syscalls: Option<Syscalls>,
    /// Do not measure what the synthetic peers reach against each other
    #[arg(long)]
    pub no_ceiling: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Show the result only
    #[arg(short, long)]
    pub quiet: bool,
}

/// `gyre bench seed`.
#[derive(Debug, Args)]
pub struct SeedBench {
    /// A row of the table of figures; options given beside it change it
    #[arg(long, value_name = "NAME", value_enum)]
    pub preset: Option<Preset>,
    /// Requests in flight on each connection [default: 64]
    #[arg(long, value_name = "N")]
    pub depth: Option<u32>,
    /// Torrents, all seeded at once; connections are dealt out to them [default: 1]
    #[arg(long, value_name = "N")]
    pub torrents: Option<u32>,
    /// Order in which blocks are asked for [default: sequential]
    #[arg(long, value_name = "ORDER", value_enum)]
    pub order: Option<Order>,
    /// Contiguous blocks of a run, with --order runs [default: a piece, at most 16]
    #[arg(long, value_name = "N")]
    pub run_blocks: Option<u32>,
    /// Drop the data from the page cache after the start, and ask for each block once
    #[arg(long)]
    pub cold: bool,
    /// Seconds of a round [default: 4s]
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    pub seconds: Option<Duration>,
    /// Connections held open beside, that ask for nothing [default: 0]
    #[arg(long, value_name = "N")]
    pub idle: Option<u32>,
    /// How long the idle ones alone are watched [default: 10s]
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    pub idle_seconds: Option<Duration>,
    /// How the program under test sends blocks
    #[arg(long, value_name = "ENGINE", value_enum)]
    pub send_engine: Option<SendEngine>,
    /// How the synthetic leechers hide their connections [default: off]
    #[arg(long, value_name = "HOW", value_enum)]
    pub encryption: Option<Veiled>,
    /// Its upload limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub limit_up: Option<u64>,
    /// Its upload slots [default: one a connection]
    #[arg(long, value_name = "N|auto")]
    pub upload_slots: Option<String>,
    /// Seed this torrent instead of a sample (with --data)
    #[arg(long, value_name = "FILE", requires = "data")]
    pub torrent: Vec<PathBuf>,
    /// Where the data of --torrent lies
    #[arg(long, value_name = "DIR", requires = "torrent")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub common: CommonBench,
}

/// `gyre bench leech`.
#[derive(Debug, Args)]
pub struct LeechBench {
    /// Peers that fetch from the leecher what it has, meanwhile
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub fetchers: u32,
    /// Requests in flight on each of the fetchers' connections
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub depth: u32,
    /// How the program under test writes pieces
    #[arg(long, value_name = "ENGINE", value_enum)]
    pub write_engine: Option<WriteEngine>,
    /// How it sends blocks
    #[arg(long, value_name = "ENGINE", value_enum)]
    pub send_engine: Option<SendEngine>,
    /// Its download limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub limit_down: Option<u64>,
    /// Longest time a round may take
    #[arg(long, value_name = "T", default_value = "5m", value_parser = parse_duration)]
    pub deadline: Duration,
    #[command(flatten)]
    pub common: CommonBench,
}

/// `gyre bench hash`.
#[derive(Debug, Args)]
pub struct HashBench {
    /// Bytes in a piece
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = parse_size)]
    pub piece_length: u64,
    /// Seconds of a round
    #[arg(long, value_name = "T", default_value = "2s", value_parser = parse_duration)]
    pub seconds: Duration,
    /// How often it is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Also run `gyre verify` over sample data, in the page cache or not
    #[arg(long, value_name = "HOW", value_enum)]
    pub verify: Option<Temperature>,
    /// Bytes of the sample data of --verify
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    pub size: u64,
    /// Folder for the sample data, which is kept there [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `gyre bench disk`.
#[derive(Debug, Args)]
pub struct DiskBench {
    /// Folder on the disk to measure [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Bytes of the file
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = parse_size)]
    pub size: u64,
    /// Bytes of one random read or one write
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = parse_size)]
    pub block: u64,
    /// Operations in flight
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub depth: u32,
    /// How often it is measured
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `--order`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Each connection from a place of its own to the end and round.
    Sequential,
    /// Runs of contiguous blocks in random order, none twice in a turn.
    Runs,
    /// Single blocks in random order, none twice in a turn.
    Blocks,
}

/// `--encryption` of the synthetic leechers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Veiled {
    /// In the open.
    #[default]
    Off,
    /// A hidden handshake, and a plain payload where the program chooses it.
    Plaintext,
    /// All through RC4.
    Rc4,
}

/// `--verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Temperature {
    /// In the page cache.
    Warm,
    /// Only on the disk.
    Cold,
}

/// `--syscalls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Syscalls {
    /// perf where it works, else strace.
    Auto,
    /// The kernel's raw_syscalls:sys_enter, which costs little.
    Perf,
    /// `strace -c`, which slows the program down.
    Strace,
}

/// `--preset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// 8 connections, 64 deep.
    Warm,
    /// 50 connections, 16 deep.
    Warm50,
    /// 500 connections, 4 deep, over 20 torrents of 100 files.
    Warm500,
    /// Cache dropped after the start: 8 connections, 32 deep, runs in random order over 8 GiB.
    Cold,
    /// Cache dropped after the start: single random blocks, 8 connections, 32 deep.
    ColdBlocks,
    /// An upload limit of 100 MB/s.
    Limit,
    /// 10,000 idle connections for ten minutes, and one active peer among them.
    Idle10k,
    /// 8 MiB of locked memory, as an ordinary user.
    Memlock,
}
