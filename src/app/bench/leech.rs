//! `gyre bench leech`. Layer 7.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::json;

use super::args::{LeechBench, Order, Veiled};
use super::figures::{Costs, Figures, Surroundings};
use super::load::handle::Load;
use super::load::{Job, Role, SeedJob};
use super::place::{self, Confinement, Cores, Net};
use super::plan;
use super::sample::{Folder, Sample, SampleTorrent, Shape};
use super::seed::alone;
use super::subject::{Placeholders, Start, Subject};
use super::swarm::{Leechers, Orders};
use super::watch::{self, CoreTime, Watch};
use super::{GIB, failed, note, print};
use crate::app::exit::{Exit, Failure};
use crate::app::size;

/// Reading the sample into memory.
const SEEDERS_WAIT: Duration = Duration::from_secs(60);
/// Rates are looked at this often.
const POLL: Duration = Duration::from_millis(2);
/// A share of the machine's memory that the seeders' data may take.
const MEMORY_DIVISOR: u64 = 2;
/// How long fetchers go on trying to connect to a leecher that has just been started.
const FETCHERS_PATIENCE: Duration = Duration::from_secs(30);
/// Peers beyond this number are more than any tracker names.
const SEEDERS_MAX: u32 = 1_000;

struct Lab<'a> {
    args: &'a LeechBench,
    shape: Shape,
    connections: u32,
    cores: Cores,
    net: Net,
    folder: Folder,
    sample: Sample,
}

struct Round {
    seconds: f64,
    complete_s: Option<f64>,
    costs: Costs,
    down_bytes: u64,
    up_bytes: u64,
    write_bytes: u64,
    fetcher_latency_us: crate::base::Histogram,
    surroundings: Surroundings,
    lab: Option<serde_json::Value>,
}

/// Runs the verb.
///
/// # Errors
/// Something cannot be set up, or the program under test fails.
pub fn run(args: &LeechBench) -> Result<Exit, Failure> {
    let common = &args.common;
    let gib = 1 << 30;
    let mib = 1 << 20;
    let shape = plan::shape(
        1,
        common.files.unwrap_or(1),
        common.size.unwrap_or(gib),
        common.piece_length.unwrap_or(mib),
        common.v2,
    )?;
    let connections = plan::connections(common.connections.unwrap_or(8))?;
    if connections > SEEDERS_MAX || args.fetchers > SEEDERS_MAX {
        return Err(Failure::usage(
            "so many peers cannot be had here",
            format!("give --connections and --fetchers up to {SEEDERS_MAX}"),
        ));
    }
    if shape.total_bytes > super::machine::memory_bytes() / MEMORY_DIVISOR {
        return Err(Failure::usage(
            format!(
                "{} do not fit in half of this machine's memory",
                size::bytes(shape.total_bytes)
            ),
            "the seeders serve from memory: choose a smaller --size",
        ));
    }
    let cores = Cores::choose(common)?;
    let folder = Folder::open(common.dir.as_deref())?;
    note(common.quiet, "making sample data");
    let sample = Sample::make(&folder, shape)?;
    let net = Net::open(common.congestion.as_deref())?;
    place::stay_on(&cores.load).map_err(failed)?;
    let lab = Lab {
        args,
        shape,
        connections,
        cores,
        net,
        folder,
        sample,
    };
    lab.run().map_err(failed)
}

impl Lab<'_> {
    fn run(&self) -> io::Result<Exit> {
        let common = &self.args.common;
        let ceiling = match common.no_ceiling {
            true => None,
            false => Some(self.ceiling()?),
        };
        let mut figures = Figures::default();
        for number in 1..=common.rounds {
            let round = self.round()?;
            let rate = round.down_bytes as f64 / round.seconds / 1e6;
            note(common.quiet, &format!("round {number}: {rate:.0} MB/s"));
            self.add(&mut figures, &round);
        }
        let word = |value: Option<clap::builder::PossibleValue>| {
            value.map_or("auto".to_owned(), |value| value.get_name().to_owned())
        };
        let write_engine = word(
            self.args
                .write_engine
                .and_then(|engine| engine.to_possible_value()),
        );
        let send_engine = word(
            self.args
                .send_engine
                .and_then(|engine| engine.to_possible_value()),
        );
        let reaches = match ceiling {
            Some(rate) => format!("; the load alone reaches {rate:.0} MB/s"),
            None => String::new(),
        };
        let line = format!(
            "downloading {} in {}, pieces of {}, from {}, {} meanwhile, write engine {write_engine}\n\
             program under test on core {:?}, load on {:?}{reaches}",
            size::bytes(self.shape.total_bytes),
            size::plural(self.shape.files.into(), "file"),
            size::bytes(self.shape.piece_length_bytes.into()),
            size::plural(self.connections.into(), "seeder"),
            size::plural(self.args.fetchers.into(), "fetcher"),
            self.cores.subject,
            self.cores.load,
        );
        let settings = json!({
            "connections": self.connections,
            "fetchers": self.args.fetchers,
            "depth": self.args.depth,
            "files": self.shape.files,
            "torrent_bytes": self.shape.total_bytes,
            "piece_length_bytes": self.shape.piece_length_bytes,
            "v2": self.shape.is_v2,
            "write_engine": write_engine,
            "send_engine": send_engine,
            "limit_down_bytes_per_s": self.args.limit_down,
        });
        let more = json!({
            "line": line,
            "ceiling_mb_per_s": ceiling,
            "program": common.external.as_deref().unwrap_or("gyre"),
            "cores": {"subject": self.cores.subject, "hash": self.cores.hash, "load": self.cores.load},
        });
        print("leech", common.json, &settings, &figures, &more);
        Ok(Exit::Done)
    }

    fn add(&self, figures: &mut Figures, round: &Round) {
        let rate = |bytes: u64| bytes as f64 / round.seconds / 1e6;
        figures.add("mb_per_s", "MB/s", 0, Some(rate(round.down_bytes)));
        if self.args.fetchers > 0 {
            figures.add(
                "up_mb_per_s",
                "MB/s to the fetchers",
                0,
                Some(rate(round.up_bytes)),
            );
            let sum = rate(round.down_bytes + round.up_bytes);
            figures.add("sum_mb_per_s", "MB/s both ways", 0, Some(sum));
        }
        if let Some(limit) = self.args.limit_down {
            let off = (rate(round.down_bytes) * 1e6 / limit as f64 - 1.0) * 100.0;
            figures.add("limit_off_percent", "off the limit, %", 2, Some(off));
        }
        figures.add_costs(&round.costs);
        let written = round.write_bytes as f64 / round.down_bytes.max(1) as f64;
        figures.add(
            "written_per_received",
            "bytes written ÷ received",
            3,
            Some(written),
        );
        figures.add("seconds", "seconds until it ended", 2, Some(round.seconds));
        figures.add(
            "complete_seconds",
            "seconds until complete",
            2,
            round.complete_s,
        );
        figures.add_quantiles(&round.fetcher_latency_us, "fetchers' request → first byte");
        figures.add_surroundings(&round.surroundings, round.lab.as_ref(), &round.costs);
    }

    /// The load's seeders under its own leechers, which run in the place of the program under test.
    fn ceiling(&self) -> io::Result<f64> {
        let (_seeders, addrs) = self.seeders()?;
        let addr = addrs.first().copied().ok_or(io::ErrorKind::NotFound)?;
        let orders = Orders {
            addr,
            connections: self.connections,
            first_number: 0,
            role: Role::Fetch,
            depth: 64,
            order: Order::Sequential,
            run_blocks: 16,
            once: false,
            encryption: Veiled::Off,
            patience: SEEDERS_WAIT,
        };
        let contents = self.sample.contents();
        let mut leechers = Leechers::start(&orders, &contents, self.net, &self.cores.subject)?;
        leechers.ready()?;
        leechers.measure()?;
        std::thread::sleep(Duration::from_secs(2));
        let report = leechers.report()?;
        Ok(report.payload_bytes as f64 / report.seconds.max(1e-9) / 1e6)
    }

    fn seeders(&self) -> io::Result<(Load, Vec<SocketAddr>)> {
        let listen = (0..self.connections).map(|n| SocketAddr::from((self.net.peer(n, true), 0)));
        let job = SeedJob {
            torrents: self.sample.contents(),
            listen: listen.collect(),
        };
        let mut load = Load::start(&Job::Seed(job), &self.cores.load)?;
        let ready = load.ready(SEEDERS_WAIT)?;
        Ok((load, ready.listening))
    }

    fn round(&self) -> io::Result<Round> {
        let common = &self.args.common;
        let torrent = self.torrent()?;
        // What earlier rounds left to be written must not burden this one.
        nix::unistd::sync();
        let (mut seeders, peers) = self.seeders()?;
        let tracker = Tracker::start(self.net, &peers)?;
        let file = self.folder.path.join("with-tracker.torrent");
        torrent.with_tracker(&file, &tracker.url)?;
        let port = match common.port {
            Some(port) => port,
            None => self.net.free_port()?,
        };
        let mut fetchers = match self.args.fetchers {
            0 => None,
            _ => Some(self.fetchers(port)?),
        };
        let target = self.folder.fresh("out")?;
        if let Some(user) = common.user {
            let (uid, gid) = (
                nix::unistd::Uid::from_raw(user),
                nix::unistd::Gid::from_raw(user),
            );
            nix::unistd::chown(&target, Some(uid), Some(gid))?;
        }
        let mut subject = self.start(&file, &target, port, &peers)?;
        if !self.cores.hash.is_empty() {
            subject.wait_until_listening(SEEDERS_WAIT)?;
            place::move_threads(subject.pid(), "hash", &self.cores.hash)?;
        }
        let watch = Watch::start(subject.pid(), &self.cores.subject, &self.cores.load);
        let ended = self.follow(&mut seeders, &mut subject)?;
        let cpu_s = subject.whole_cpu_s() - ended.before.cpu_s;
        let report = seeders.report()?;
        let up = fetchers
            .as_mut()
            .map(Leechers::report)
            .transpose()?
            .unwrap_or_default();
        let peak_bytes = watch.peak_bytes();
        let idle_thread_late = watch.stop();
        let said = subject.said();
        let is_whole = torrent.is_whole_in(&target);
        if !is_whole {
            return Err(subject.trouble("left an incomplete download"));
        }
        drop(subject);
        fs::remove_dir_all(&target)?;
        let seconds = (ended.end - ended.first).as_secs_f64();
        Ok(Round {
            seconds,
            complete_s: said.complete.map(|when| (when - ended.first).as_secs_f64()),
            costs: Costs {
                seconds,
                moved_gib: (self.shape.total_bytes + up.payload_bytes) as f64 / GIB,
                cpu_s,
                main_thread_cpu_s: ended.last.main_thread_cpu_s - ended.before.main_thread_cpu_s,
                busy: ended.busy,
                peak_bytes,
            },
            // Duplicates do not count: what was wanted arrived once.
            down_bytes: self.shape.total_bytes,
            up_bytes: up.payload_bytes,
            write_bytes: ended.last.write_bytes,
            fetcher_latency_us: up.latency_us,
            surroundings: Surroundings {
                idle_thread_late,
                load_cpu_s: report.cpu_s + up.cpu_s,
            },
            lab: said.lab,
        })
    }

    fn torrent(&self) -> io::Result<&SampleTorrent> {
        let torrent = self.sample.torrents.first();
        torrent.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn fetchers(&self, port: u16) -> io::Result<Leechers> {
        let orders = Orders {
            addr: SocketAddr::from((self.net.subject(), port)),
            connections: self.args.fetchers,
            first_number: 0,
            role: Role::FetchKnown,
            depth: self.args.depth,
            order: Order::Sequential,
            run_blocks: 1,
            once: false,
            encryption: Veiled::Off,
            patience: FETCHERS_PATIENCE,
        };
        Leechers::start(&orders, &self.sample.contents(), self.net, &self.cores.load)
    }

    fn start(
        &self,
        file: &Path,
        target: &Path,
        port: u16,
        peers: &[SocketAddr],
    ) -> io::Result<Subject> {
        let common = &self.args.common;
        let start = Start {
            cores: &self.cores.subject,
            limits: Confinement {
                user: common.user,
                memlock_bytes: common.memlock,
            },
            log: self.folder.path.join("subject.log"),
        };
        let state = self.folder.fresh("state")?;
        if let Some(user) = common.user {
            let (uid, gid) = (
                nix::unistd::Uid::from_raw(user),
                nix::unistd::Gid::from_raw(user),
            );
            nix::unistd::chown(&state, Some(uid), Some(gid))?;
        }
        if let Some(command) = &common.external {
            let values = Placeholders {
                torrents: vec![file.to_owned()],
                data: target.to_owned(),
                dir: target.to_owned(),
                state,
                port,
                peers: peers.to_vec(),
            };
            return Subject::external(command, &values, &start);
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut arguments = vec!["download".to_owned(), text(file)];
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("--output", text(target));
        option("--state", text(&state));
        option("--port", port.to_string());
        // The synthetic seeders know no encryption.
        option("--encryption", "off".to_owned());
        // Fetchers give nothing back: slots for all of them, and the optimistic one.
        option("--upload-slots", (self.args.fetchers + 4).to_string());
        let engine = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned())
        };
        let write_engine = self
            .args
            .write_engine
            .and_then(|engine| engine.to_possible_value());
        if let Some(word) = engine(write_engine) {
            option("--write-engine", word);
        }
        let send_engine = self
            .args
            .send_engine
            .and_then(|engine| engine.to_possible_value());
        if let Some(word) = engine(send_engine) {
            option("--send-engine", word);
        }
        if let Some(limit) = self.args.limit_down {
            option("--limit-down", limit.to_string());
        }
        if let Some(bytes) = common.buffers {
            option("--buffers", bytes.to_string());
        }
        for peer in peers {
            option("--peer", peer.to_string());
        }
        option(
            "--max-peers",
            (self.connections + self.args.fetchers + 16)
                .max(500)
                .to_string(),
        );
        arguments.extend(alone());
        Subject::gyre(&arguments, &start)
    }

    /// Looks on until the program has ended.
    fn follow(&self, seeders: &mut Load, subject: &mut Subject) -> io::Result<Ended> {
        let deadline = Instant::now() + self.args.deadline;
        let mut before = watch::look(subject.pid());
        let mut core_before = CoreTime::now(&self.cores.subject);
        let mut last = before.clone();
        loop {
            seeders.look()?;
            let is_started = seeders.first.is_some();
            match subject.ended()? {
                Some(status) if !status.success() => {
                    return Err(subject.trouble(&format!("ended with {status}")));
                }
                Some(_) => break,
                None => {}
            }
            if Instant::now() > deadline {
                return Err(subject.trouble("does not finish in time"));
            }
            let now = watch::look(subject.pid());
            // Of an ended process there is nothing to see any more.
            if now.threads > 0 {
                if !is_started {
                    before = now.clone();
                    core_before = CoreTime::now(&self.cores.subject);
                }
                last = now;
            }
            std::thread::sleep(POLL);
        }
        let end = Instant::now();
        let core = CoreTime::now(&self.cores.subject);
        Ok(Ended {
            end,
            first: seeders.first.unwrap_or(end),
            before,
            last,
            busy: core.busy_since(core_before, self.cores.subject.len()),
        })
    }
}

/// How a download went.
struct Ended {
    first: Instant,
    end: Instant,
    /// When the first payload came.
    before: watch::Look,
    last: watch::Look,
    busy: f64,
}

/// A tracker that names the same peers to everybody: programs find the seeders through it.
struct Tracker {
    url: String,
}

impl Tracker {
    fn start(net: Net, peers: &[SocketAddr]) -> io::Result<Tracker> {
        let listener = TcpListener::bind(SocketAddr::from((net.subject(), 0)))?;
        let url = format!("http://{}/announce", listener.local_addr()?);
        let mut compact = Vec::new();
        for peer in peers {
            if let SocketAddr::V4(peer) = peer {
                compact.extend_from_slice(&peer.ip().octets());
                compact.extend_from_slice(&peer.port().to_be_bytes());
            }
        }
        let mut body = format!("d8:intervali600e5:peers{}:", compact.len()).into_bytes();
        body.extend_from_slice(&compact);
        body.push(b'e');
        // The thread waits for the end of the process: one a round, each asleep.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, &body);
            }
        });
        Ok(Tracker { url })
    }
}

fn answer(mut stream: std::net::TcpStream, body: &[u8]) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = [0; 4096];
    if stream.read(&mut request)? == 0 {
        return Ok(());
    }
    let length = body.len();
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(body)
}
