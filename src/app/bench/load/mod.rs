//! The synthetic swarm: peers in processes of their own, so that the program under test is measured alone and the
//! limit of open files is theirs. Layer 7.
//!
//! A process is started as `gyre bench load`, reads its [`Job`] as the first line of stdin, says when it is ready, and
//! answers [`Command`]s until stdin closes. One thread, one epoll, plain system calls: it must outrun a ring.

pub mod handle;
mod leecher;
mod peer;
mod seeder;
mod veil;
mod work;

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::args::{Order, Veiled};
use crate::app::exit::{Exit, Failure};
use crate::base::Geometry;
use crate::base::Histogram;
use crate::uring::limits;

/// What a load process does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Connect and fetch.
    Leech(LeechJob),
    /// Listen and serve.
    Seed(SeedJob),
}

/// Peers that connect to the program under test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeechJob {
    pub addr: SocketAddr,
    pub torrents: Vec<Content>,
    pub connections: Vec<Connection>,
    pub role: Role,
    pub depth: u32,
    pub order: Order,
    pub run_blocks: u32,
    /// Ask for each block once, and for none before [`Command::Measure`].
    pub once: bool,
    pub encryption: Veiled,
    pub seed: u64,
    /// This process asks for every `share.1`-th run, from the `share.0`-th on.
    pub share: (u32, u32),
    /// How long to try until every connection is served, in seconds.
    pub patience_s: u64,
}

/// What a connecting peer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, in the job's order, for ever.
    Fetch,
    /// Each piece once, as it is announced.
    FetchKnown,
    /// Nothing.
    Idle,
}

/// One connection to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connection {
    /// Address of this end: some programs take one peer an address.
    pub from: SocketAddr,
    /// Index into the job's torrents.
    pub torrent: usize,
    /// Which of the `of` connections of this torrent it is: their sequential orders start evenly spread.
    pub number: u32,
    pub of: u32,
    /// Unlike any other's, so that peer ids differ.
    pub id: u32,
}

/// Peers that the program under test connects to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SeedJob {
    pub torrents: Vec<Content>,
    /// Where to listen, one seeder each; port 0 is any.
    pub listen: Vec<SocketAddr>,
}

/// A torrent's bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Content {
    pub info_hash: [u8; 20],
    pub total_bytes: u64,
    pub piece_length_bytes: u32,
    pub files: Vec<ContentFile>,
}

/// A file of a torrent, in the order of its bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContentFile {
    pub path: PathBuf,
    pub offset: u64,
    pub length_bytes: u64,
    /// Zeros that are on no disk.
    pub is_pad: bool,
}

impl Content {
    fn geometry(&self) -> io::Result<Geometry> {
        Geometry::new(self.total_bytes, self.piece_length_bytes.into()).map_err(io::Error::other)
    }

    /// Reads bytes of the torrent from its files.
    pub fn read_at(&self, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let end = |file: &ContentFile| file.offset + file.length_bytes;
        let mut at = self.files.partition_point(|file| end(file) <= offset);
        while !into.is_empty() {
            let file = self.files.get(at).ok_or(io::ErrorKind::UnexpectedEof)?;
            let here = usize::try_from(end(file) - offset).unwrap_or(usize::MAX);
            let (now, later) = into.split_at_mut(here.min(into.len()));
            if file.is_pad {
                now.fill(0);
            } else if !now.is_empty() {
                std::fs::File::open(&file.path)?.read_exact_at(now, offset - file.offset)?;
            }
            offset += now.len() as u64;
            into = later;
            at += 1;
        }
        Ok(())
    }
}

/// What a running load process is told, one word a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Forget what was counted so far.
    Measure,
    /// Say what was counted since.
    Report,
}

impl Command {
    pub const fn word(self) -> &'static str {
        match self {
            Command::Measure => "measure",
            Command::Report => "report",
        }
    }

    fn parse(word: &str) -> Option<Command> {
        [Command::Measure, Command::Report]
            .into_iter()
            .find(|command| command.word() == word)
    }
}

/// What a load process says, one object a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Said {
    /// Leechers: all connections are served (or as many as were by the end of patience). Seeders: all listen.
    Ready {
        served: u32,
        connected: u32,
        listening: Vec<SocketAddr>,
        /// Blocks compared with the data on disk before.
        checked_blocks: u32,
    },
    /// The first payload since the last `measure`.
    First,
    /// Everything was asked for once and has come.
    Exhausted,
    Report(Report),
    Failed {
        message: String,
    },
}

/// What was counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub payload_bytes: u64,
    pub blocks: u64,
    /// From `measure` to the last payload.
    pub active_s: f64,
    /// From `measure` to `report`.
    pub seconds: f64,
    /// From a request until the first byte of its block, in µs.
    pub latency_us: Histogram,
    /// Connections there are now.
    pub connected: u32,
    /// Connections that were closed by the other side since they were ready.
    pub lost: u32,
    /// User and system time of this process.
    pub cpu_s: f64,
}

impl Report {
    /// Adds what another process counted over the same time.
    pub fn merge(&mut self, other: &Report) {
        self.payload_bytes += other.payload_bytes;
        self.blocks += other.blocks;
        self.active_s = self.active_s.max(other.active_s);
        self.seconds = self.seconds.max(other.seconds);
        self.latency_us.merge(&other.latency_us);
        self.connected += other.connected;
        self.lost += other.lost;
        self.cpu_s += other.cpu_s;
    }
}

/// Counts between two commands.
pub struct Counters {
    report: Report,
    since: Instant,
    last: Instant,
}

impl Counters {
    fn new() -> Counters {
        let now = Instant::now();
        Counters {
            report: Report::default(),
            since: now,
            last: now,
        }
    }

    fn payload(&mut self, bytes: u64, now: Instant) {
        if self.report.payload_bytes == 0 {
            say(&Said::First);
        }
        self.report.payload_bytes += bytes;
        self.report.blocks += 1;
        self.last = now;
    }

    /// The answer to what was asked for then has begun to come.
    fn waited(&mut self, since: Instant) {
        let waited = since.elapsed().as_micros();
        let waited = u64::try_from(waited).unwrap_or(u64::MAX);
        self.report.latency_us.add(waited);
    }

    fn restart(&mut self) {
        *self = Counters::new();
        self.report.cpu_s = cpu_s();
    }

    fn finish(&self, connected: u32, lost: u32) -> Report {
        Report {
            active_s: (self.last - self.since).as_secs_f64(),
            seconds: self.since.elapsed().as_secs_f64(),
            connected,
            lost,
            cpu_s: cpu_s() - self.report.cpu_s,
            ..self.report.clone()
        }
    }
}

fn cpu_s() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return 0.0;
    };
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn say(said: &Said) {
    if let Ok(line) = serde_json::to_string(said) {
        let mut stdout = io::stdout().lock();
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}

/// Commands that have come on stdin, which is read without waiting.
#[derive(Default)]
struct Commands {
    partial: Vec<u8>,
}

impl Commands {
    /// Those that are complete; an error when stdin was closed.
    fn take(&mut self) -> io::Result<Vec<Command>> {
        let mut buffer = [0; 256];
        let got = nix::unistd::read(io::stdin(), &mut buffer)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.partial
            .extend_from_slice(buffer.get(..got).unwrap_or_default());
        let mut commands = Vec::new();
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            commands.extend(Command::parse(String::from_utf8_lossy(&line).trim()));
        }
        Ok(commands)
    }
}

/// `gyre bench load`.
pub fn run() -> Result<Exit, Failure> {
    limits::raise_nofile();
    let mut line = String::new();
    // The rest of stdin is read past this buffer: the starter waits for `ready` before it writes more.
    let read = io::stdin().lock().read_line(&mut line);
    let job = read.and_then(|_| serde_json::from_str(&line).map_err(io::Error::other));
    let result = match job {
        Ok(Job::Leech(job)) => leecher::run(job),
        Ok(Job::Seed(job)) => seeder::run(&job),
        Err(error) => Err(error),
    };
    match result {
        // The end of stdin is the end of the job.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            say(&Said::Failed {
                message: error.to_string(),
            });
            Ok(Exit::Failed)
        }
        _ => Ok(Exit::Done),
    }
}
