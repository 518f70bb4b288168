//! `gyre bench seed`. Layer 7.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::{SeedBench, Syscalls, Veiled};
use super::calls::Counter;
use super::figures::{Costs, Figures, Surroundings};
use super::load::handle::Load;
use super::load::{Job, Report, Role, SeedJob};
use super::place::{self, Cores, Net};
use super::plan::Plan;
use super::sample::{Folder, Sample};
use super::subject::{Placeholders, Start, Subject};
use super::swarm::{Leechers, Orders};
use super::watch::{self, CoreTime, Watch};
use super::{GIB, failed, note, print};
use crate::app::exit::{Exit, Failure};

/// How long a program may take until it serves: some hash all data first.
const PATIENCE: Duration = Duration::from_secs(120);
const LISTEN_WAIT: Duration = Duration::from_secs(60);
/// The load against itself.
const CEILING: Duration = Duration::from_secs(2);
/// Samples larger than this are not held in memory for the ceiling.
const CEILING_BYTES_MAX: u64 = 4 << 30;
/// Between the last idle connection and the first look at them.
const SETTLE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);
/// Idle peers' numbers start above all others'.
const IDLE_FROM: u32 = 1_000_000;

struct Lab<'a> {
    args: &'a SeedBench,
    plan: Plan,
    cores: Cores,
    net: Net,
    folder: Folder,
    sample: Sample,
}

/// What a round showed.
struct Round {
    report: Report,
    mb_per_s: f64,
    costs: Costs,
    read_bytes: u64,
    surroundings: Surroundings,
    served: u32,
    checked_blocks: u32,
    lab: Option<Value>,
    idle: Option<IdleFigures>,
}

/// What idle peers cost.
struct IdleFigures {
    connected: u32,
    bytes_each: f64,
    cpu_share: f64,
    lost: u32,
}

/// Runs the verb.
///
/// # Errors
/// Something cannot be set up, or the program under test fails.
pub fn run(args: &SeedBench) -> Result<Exit, Failure> {
    let plan = Plan::new(args)?;
    let common = &args.common;
    let cores = Cores::choose(common)?;
    let folder = Folder::open(common.dir.as_deref())?;
    let sample = match &args.data {
        Some(data) => Sample::given(&args.torrent, data)?,
        None => {
            note(common.quiet, "making sample data");
            Sample::make(&folder, plan.shape)?
        }
    };
    if let Some(user) = plan.limits.user.filter(|_| args.data.is_none()) {
        sample.give_to(user).map_err(failed)?;
    }
    let net = Net::open(common.congestion.as_deref())?;
    place::stay_on(&cores.load).map_err(failed)?;
    let lab = Lab {
        args,
        plan,
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
        let ceiling = match common.no_ceiling || self.sample.total_bytes() > CEILING_BYTES_MAX {
            true => None,
            false => Some(self.ceiling()?),
        };
        let mut figures = Figures::default();
        for number in 1..=common.rounds {
            let alone = match self.plan.idle {
                0 => None,
                _ => Some(self.round(false)?.mb_per_s),
            };
            let round = self.round(self.plan.idle > 0)?;
            note(
                common.quiet,
                &format!("round {number}: {:.0} MB/s", round.mb_per_s),
            );
            self.add(&mut figures, &round, alone);
        }
        let calls = common
            .syscalls
            .map(|how| self.count_calls(how))
            .transpose()?;
        if let Some((per_block, _)) = calls {
            figures.add(
                "syscalls_per_block",
                "system calls a block",
                3,
                Some(per_block),
            );
        }
        let more = json!({
            "line": self.line(ceiling),
            "ceiling_mb_per_s": ceiling,
            "syscalls_counted_by": calls.map(|(_, tool)| tool),
            "program": common.external.as_deref().unwrap_or("gyre"),
            "cores": {"subject": self.cores.subject, "load": self.cores.load},
        });
        print("seed", common.json, &self.plan.json(), &figures, &more);
        Ok(Exit::Done)
    }

    fn line(&self, ceiling: Option<f64>) -> String {
        let ceiling = match ceiling {
            Some(rate) => format!("; the load alone reaches {rate:.0} MB/s"),
            None => String::new(),
        };
        format!(
            "{}\nprogram under test on core {:?}, load on {:?}{ceiling}",
            self.plan.line(),
            self.cores.subject,
            self.cores.load,
        )
    }

    fn add(&self, figures: &mut Figures, round: &Round, alone: Option<f64>) {
        let report = &round.report;
        let rate = round.mb_per_s;
        figures.add("mb_per_s", "MB/s", 0, Some(rate));
        if let Some(limit) = self.plan.limit_up {
            let off = (rate * 1e6 / limit as f64 - 1.0) * 100.0;
            figures.add("limit_off_percent", "off the limit, %", 2, Some(off));
        }
        figures.add_costs(&round.costs);
        let read = round.read_bytes as f64 / report.payload_bytes.max(1) as f64;
        figures.add("read_per_sent", "bytes read ÷ sent", 3, Some(read));
        figures.add_quantiles(&report.latency_us, "request → first byte");
        figures.add_surroundings(&round.surroundings, round.lab.as_ref(), &round.costs);
        figures.add("served", "connections served", 0, Some(round.served.into()));
        figures.add("lost", "connections lost", 0, Some(report.lost.into()));
        figures.add(
            "checked_blocks",
            "blocks compared before",
            0,
            Some(round.checked_blocks.into()),
        );
        figures.add("blocks", "blocks", 0, Some(report.blocks as f64));
        if let (Some(idle), Some(alone)) = (&round.idle, alone) {
            figures.add(
                "idle_connected",
                "idle peers",
                0,
                Some(idle.connected.into()),
            );
            figures.add("idle_lost", "idle peers lost", 0, Some(idle.lost.into()));
            figures.add(
                "idle_kib_each",
                "anonymous KiB an idle peer",
                2,
                Some(idle.bytes_each / 1024.0),
            );
            figures.add(
                "idle_cpu_percent",
                "CPU for them, % of a core",
                2,
                Some(idle.cpu_share * 100.0),
            );
            figures.add("alone_mb_per_s", "MB/s without them", 0, Some(alone));
            figures.add(
                "beside_idle",
                "rate beside them ÷ without",
                3,
                Some(rate / alone),
            );
        }
    }

    /// The load's leechers against its own seeder, which runs in the place of the program under test.
    fn ceiling(&self) -> io::Result<f64> {
        let contents = self.sample.contents();
        let job = SeedJob {
            torrents: contents.clone(),
            listen: vec![SocketAddr::from((self.net.subject(), 0))],
        };
        let mut seeder = Load::start(&Job::Seed(job), &self.cores.subject)?;
        let ready = seeder.ready(LISTEN_WAIT)?;
        let addr = ready
            .listening
            .first()
            .copied()
            .ok_or(io::ErrorKind::NotFound)?;
        let orders = Orders {
            once: false,
            encryption: Veiled::Off,
            ..self.orders(addr)
        };
        let mut leechers = Leechers::start(&orders, &contents, self.net, &self.cores.load)?;
        leechers.ready()?;
        leechers.measure()?;
        std::thread::sleep(CEILING);
        Ok(mb_per_s(&leechers.report()?, false))
    }

    fn orders(&self, addr: SocketAddr) -> Orders {
        Orders {
            addr,
            connections: self.plan.connections,
            first_number: 0,
            role: Role::Fetch,
            depth: self.plan.depth,
            order: self.plan.order,
            run_blocks: self.plan.run_blocks,
            once: self.plan.cold,
            encryption: self.plan.encryption,
            patience: PATIENCE,
        }
    }

    fn start(&self) -> io::Result<(Subject, SocketAddr)> {
        let common = &self.args.common;
        let port = match common.port {
            Some(port) => port,
            None => self.net.free_port()?,
        };
        let start = Start {
            cores: &self.cores.subject,
            limits: self.plan.limits,
            log: self.folder.path.join("subject.log"),
        };
        let state = self.folder.fresh("state")?;
        if let Some(user) = self.plan.limits.user {
            let (uid, gid) = (
                nix::unistd::Uid::from_raw(user),
                nix::unistd::Gid::from_raw(user),
            );
            nix::unistd::chown(&state, Some(uid), Some(gid))?;
        }
        let torrents: Vec<_> = self
            .sample
            .torrents
            .iter()
            .map(|t| t.file.clone())
            .collect();
        let mut subject = match &common.external {
            Some(command) => {
                let values = Placeholders {
                    torrents,
                    data: self.sample.data.clone(),
                    dir: self.sample.data.clone(),
                    state,
                    port,
                    peers: Vec::new(),
                };
                Subject::external(command, &values, &start)?
            }
            None => {
                let mut arguments = vec!["seed".to_owned()];
                arguments.extend(
                    torrents
                        .iter()
                        .map(|file| file.to_string_lossy().into_owned()),
                );
                let mut option =
                    |name: &str, value: String| arguments.extend([name.to_owned(), value]);
                option("--data", self.sample.data.to_string_lossy().into_owned());
                option("--state", state.to_string_lossy().into_owned());
                option("--port", port.to_string());
                option("--check", "none".into());
                option("--send-engine", self.plan.engine_word());
                option("--upload-slots", self.plan.upload_slots.clone());
                let peers = self.plan.connections + self.plan.idle + 16;
                option("--max-peers", peers.max(500).to_string());
                if let Some(limit) = self.plan.limit_up {
                    option("--limit-up", limit.to_string());
                }
                if let Some(bytes) = common.buffers {
                    option("--buffers", bytes.to_string());
                }
                arguments.extend(alone());
                Subject::gyre(&arguments, &start)?
            }
        };
        subject.wait_until_listening(LISTEN_WAIT)?;
        Ok((subject, SocketAddr::from((self.net.subject(), port))))
    }

    fn round(&self, with_idle: bool) -> io::Result<Round> {
        if !self.plan.cold {
            self.sample.warm()?;
        }
        let (mut subject, addr) = self.start()?;
        let watch = Watch::start(subject.pid(), &self.cores.subject, &self.cores.load);
        let idle = match with_idle {
            true => Some(self.idle(&mut subject, addr)?),
            false => None,
        };
        if idle.is_some() && !self.plan.cold {
            // In the meantime the system may have taken the cache for something else.
            self.sample.warm()?;
        }
        let contents = self.sample.contents();
        let mut leechers =
            Leechers::start(&self.orders(addr), &contents, self.net, &self.cores.load)?;
        let ready = leechers.ready()?;
        if ready.served == 0 {
            return Err(subject.trouble("serves nobody"));
        }
        if self.plan.cold {
            self.sample.chill()?;
        }
        let (before, core_before) = (
            watch::look(subject.pid()),
            CoreTime::now(&self.cores.subject),
        );
        leechers.measure()?;
        self.wait(&mut leechers, &mut subject)?;
        let (after, core_after) = (
            watch::look(subject.pid()),
            CoreTime::now(&self.cores.subject),
        );
        let is_exhausted = leechers.are_exhausted()?;
        let report = leechers.report()?;
        let said = subject.said();
        if report.payload_bytes == 0 {
            return Err(subject.trouble("sent nothing"));
        }
        let idle = match idle {
            Some((mut peers, mut figures)) => {
                figures.lost = peers.report()?.lost;
                Some(figures)
            }
            None => None,
        };
        let peak_bytes = watch.peak_bytes();
        let idle_thread_late = watch.stop();
        drop(leechers);
        subject.stop()?;
        Ok(Round {
            mb_per_s: mb_per_s(&report, is_exhausted),
            costs: Costs {
                seconds: report.seconds,
                moved_gib: report.payload_bytes as f64 / GIB,
                cpu_s: after.cpu_s - before.cpu_s,
                main_thread_cpu_s: after.main_thread_cpu_s - before.main_thread_cpu_s,
                busy: core_after.busy_since(core_before, self.cores.subject.len()),
                peak_bytes,
            },
            read_bytes: after.read_bytes - before.read_bytes,
            surroundings: Surroundings {
                idle_thread_late,
                load_cpu_s: report.cpu_s,
            },
            served: ready.served,
            checked_blocks: ready.checked_blocks,
            lab: said.lab,
            idle,
            report,
        })
    }

    fn wait(&self, leechers: &mut Leechers, subject: &mut Subject) -> io::Result<()> {
        let deadline = Instant::now() + self.plan.seconds;
        while Instant::now() < deadline && !leechers.are_exhausted()? {
            if subject.ended()?.is_some() {
                return Err(subject.trouble("ended"));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Connects idle peers and watches what they cost.
    fn idle(&self, subject: &mut Subject, addr: SocketAddr) -> io::Result<(Leechers, IdleFigures)> {
        std::thread::sleep(SETTLE);
        let base = watch::look(subject.pid());
        let orders = Orders {
            connections: self.plan.idle,
            first_number: IDLE_FROM,
            role: Role::Idle,
            once: false,
            ..self.orders(addr)
        };
        let contents = self.sample.contents();
        let mut peers = Leechers::start(&orders, &contents, self.net, &self.cores.load)?;
        peers.ready()?;
        peers.measure()?;
        std::thread::sleep(SETTLE);
        let start = (Instant::now(), watch::look(subject.pid()));
        std::thread::sleep(self.plan.idle_seconds);
        let end = watch::look(subject.pid());
        let report = peers.report()?;
        if report.connected == 0 {
            return Err(subject.trouble("keeps no idle peer"));
        }
        let bytes = end.anonymous_bytes.saturating_sub(base.anonymous_bytes) as f64;
        let figures = IdleFigures {
            connected: report.connected,
            bytes_each: bytes / f64::from(report.connected),
            cpu_share: (end.cpu_s - start.1.cpu_s) / start.0.elapsed().as_secs_f64(),
            lost: report.lost,
        };
        Ok((peers, figures))
    }

    /// A round more, with calls counted: calls a block, and by which tool.
    fn count_calls(&self, how: Syscalls) -> io::Result<(f64, &'static str)> {
        if !self.plan.cold {
            self.sample.warm()?;
        }
        let (mut subject, addr) = self.start()?;
        let contents = self.sample.contents();
        let mut leechers =
            Leechers::start(&self.orders(addr), &contents, self.net, &self.cores.load)?;
        if leechers.ready()?.served == 0 {
            return Err(subject.trouble("serves nobody"));
        }
        if self.plan.cold {
            self.sample.chill()?;
        }
        let counter = Counter::start(how, subject.pid(), &self.cores.load)?;
        let tool = counter.tool;
        leechers.measure()?;
        self.wait(&mut leechers, &mut subject)?;
        let report = leechers.report()?;
        let calls = counter.finish()?;
        drop(leechers);
        subject.stop()?;
        Ok((calls as f64 / report.blocks.max(1) as f64, tool))
    }
}

/// A round that ended because all had come is as long as data came.
fn mb_per_s(report: &Report, is_exhausted: bool) -> f64 {
    let seconds = match is_exhausted {
        true => report.active_s,
        false => report.seconds,
    };
    report.payload_bytes as f64 / seconds.max(1e-9) / 1e6
}

/// Options that keep a `gyre` under test from looking for other peers.
pub fn alone() -> impl Iterator<Item = String> {
    [
        "--no-trackers",
        "--no-dht",
        "--no-pex",
        "--no-lsd",
        "--no-port-map",
        "--no-ipv6",
    ]
    .into_iter()
    .map(str::to_owned)
}
