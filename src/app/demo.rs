//! `gyre demo`: a whole swarm at work on this machine alone. Layer 7.
//!
//! Tracker, seeder and two leechers are child processes of this very program, on the loopback and in a folder of
//! their own. However the demo ends, none of them and nothing of the folder is left.

mod figures;
mod folder;
mod program;
mod sample;
mod view;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cli::DemoArgs;
use super::escape::terminal_path;
use super::exit::{Exit, Failure, io_cause};
use super::{meter, signals, size};
use figures::{PeerFigures, TrackerFigures};
use folder::Folder;
use program::{News, Program, Role, What};
use view::View;

/// With the seeder held to a rate that takes so long for one copy there is something to see, and the leechers get
/// most of what they lack from each other.
const ONE_COPY_SECS: u64 = 12;
/// A small sample need not take as long.
const SEEDER_RATE_MIN: u64 = 4 << 20;
/// The peers hear of each other at their second announce at the latest.
const ANNOUNCE_INTERVAL: &str = "2s";
/// The screen is brought up to date so often.
const TICK: Duration = Duration::from_millis(250);
/// How long a signal that has reached a child first may take to reach this process.
const SIGNAL_GRACE: Duration = Duration::from_millis(300);
/// Beside the data of three programs: torrent, records, folders.
const EXTRA_BYTES: u64 = 4 << 20;

/// Runs the verb.
///
/// # Errors
/// Something fails, of the demo itself or of one of its programs, or takes too long.
pub fn run(args: &DemoArgs) -> Result<Exit, Failure> {
    if args.size < sample::SIZE_MIN {
        return Err(Failure::usage(
            format!("a --size of {} is too small", size::bytes(args.size)),
            format!("give at least {}", size::bytes(sample::SIZE_MIN)),
        ));
    }
    // Without this the first signal would end the process on the spot and leave everything behind.
    signals::on_first(|| {});
    let result = Demo::make(args).and_then(Demo::run);
    // Children on a terminal hear of Ctrl-C too: their end is then no failure.
    match (result, signals::received()) {
        (_, Some(exit)) => {
            View::choose(args.quiet).say("stopped, and everything is cleaned up");
            Ok(exit)
        }
        (Ok(()), None) => Ok(Exit::Done),
        (Err(failure), None) => Err(failure),
    }
}

/// How far the demo is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Preparing,
    Sharing,
    Leaving,
    Verifying,
}

/// The figures of all programs.
struct Swarm {
    phase: Phase,
    total_bytes: u64,
    since: Instant,
    tracker: TrackerFigures,
    seeder: PeerFigures,
    leechers: [PeerFigures; 2],
}

impl Swarm {
    fn new(total_bytes: u64) -> Swarm {
        Swarm {
            phase: Phase::Preparing,
            total_bytes,
            since: Instant::now(),
            tracker: TrackerFigures::default(),
            seeder: PeerFigures::default(),
            leechers: Default::default(),
        }
    }

    fn on_event(&mut self, from: Role, event: &Value) {
        match from {
            Role::Tracker => self.tracker.on_event(event),
            Role::Seeder => self.seeder.on_event(event),
            Role::Leecher1 => self.leechers[0].on_event(event),
            Role::Leecher2 => self.leechers[1].on_event(event),
            Role::Helper(_) => {}
        }
    }

    fn is_complete(&self) -> bool {
        self.leechers
            .iter()
            .all(|leecher| leecher.complete_after.is_some())
    }
}

/// Everything of one run. Programs stand before the folder: they are killed before it is removed.
struct Demo<'a> {
    args: &'a DemoArgs,
    view: View,
    programs: Vec<Program>,
    folder: Folder,
    news: Receiver<News>,
    sender: Sender<News>,
    swarm: Swarm,
    tracker: Option<SocketAddr>,
    next_look: Instant,
    deadline: Instant,
}

impl<'a> Demo<'a> {
    fn make(args: &'a DemoArgs) -> Result<Demo<'a>, Failure> {
        let now = Instant::now();
        let needed = args.size.saturating_mul(3).saturating_add(EXTRA_BYTES);
        let (sender, news) = channel();
        Ok(Demo {
            args,
            view: View::choose(args.quiet),
            programs: Vec::new(),
            folder: Folder::make(needed)?,
            news,
            sender,
            swarm: Swarm::new(args.size),
            tracker: None,
            next_look: now,
            deadline: now + args.deadline,
        })
    }

    fn run(mut self) -> Result<(), Failure> {
        let since = Instant::now();
        self.view.say(&format!(
            "a tracker, a seeder and two leechers in {}",
            terminal_path(self.folder.path()),
        ));
        let tracker = self.start_tracker()?;
        self.make_sample()?;
        self.make_torrent(tracker)?;
        let rate = (self.args.size / ONE_COPY_SECS).max(SEEDER_RATE_MIN);
        self.start_peers(rate)?;
        self.wait_until(|swarm| swarm.is_complete())?;
        self.swarm.phase = Phase::Leaving;
        self.stop(&[Role::Seeder, Role::Leecher1, Role::Leecher2])?;
        self.swarm.phase = Phase::Verifying;
        self.verify()?;
        self.stop(&[Role::Tracker])?;
        self.view.clear();
        self.summarize(rate);
        self.folder.remove()?;
        let seconds = since.elapsed().as_secs_f64();
        self.view
            .say(&format!("everything is cleaned up, {seconds:.1} s in all"));
        Ok(())
    }

    fn start_tracker(&mut self) -> Result<SocketAddr, Failure> {
        let arguments = [
            "tracker",
            "--listen",
            "127.0.0.1:0",
            "--interval",
            ANNOUNCE_INTERVAL,
        ];
        self.start(Role::Tracker, arguments.map(OsString::from).to_vec())?;
        let event = self.wait_for(Role::Tracker, |event| event["event"] == "listening")?;
        let addr = event["addr"].as_str().and_then(|addr| addr.parse().ok());
        self.tracker = addr;
        addr.ok_or_else(|| Failure::new("the tracker does not say where it listens", ""))
    }

    fn make_sample(&self) -> Result<(), Failure> {
        let since = Instant::now();
        let files = sample::plan(self.args.size);
        let root = self.content();
        let meter = meter::Meter::new("making data", self.args.size, !self.view.is_quiet());
        let made = sample::write(&root, &files, |bytes| {
            meter.add(bytes);
            match signals::received() {
                Some(_) => Err(io::ErrorKind::Interrupted.into()),
                None if Instant::now() >= self.deadline => Err(io::ErrorKind::TimedOut.into()),
                None => Ok(()),
            }
        });
        meter.clear();
        made.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => self.too_late("making data"),
            _ => {
                let path = terminal_path(&root);
                let message = format!("cannot write sample data to {path}: {}", io_cause(&error));
                Failure::new(
                    message,
                    "name a folder with room in TMPDIR, or use a smaller --size",
                )
            }
        })?;
        self.view.say(&format!(
            "made {} of sample data in {} files, {:.1} s",
            size::round_bytes(self.args.size),
            files.len(),
            since.elapsed().as_secs_f64(),
        ));
        Ok(())
    }

    fn make_torrent(&mut self, tracker: SocketAddr) -> Result<(), Failure> {
        let since = Instant::now();
        let arguments = vec![
            "create".into(),
            self.content().into(),
            "--output".into(),
            self.torrent().into(),
            "--announce".into(),
            format!("http://{tracker}/announce").into(),
            "--announce".into(),
            format!("udp://{tracker}").into(),
        ];
        let made = self.run_helper("create", arguments)?;
        let pieces = made["pieces"].as_u64().unwrap_or(0);
        let piece_length = made["piece_length_bytes"].as_u64().unwrap_or(0);
        self.view.say(&format!(
            "made the torrent: {} of {}, {:.1} s",
            size::plural(pieces, "piece"),
            size::round_bytes(piece_length),
            since.elapsed().as_secs_f64(),
        ));
        Ok(())
    }

    fn start_peers(&mut self, rate: u64) -> Result<(), Failure> {
        self.swarm.since = Instant::now();
        self.swarm.phase = Phase::Sharing;
        let mut seed = vec!["seed".into(), self.torrent().into()];
        seed.extend(["--data".into(), self.path("seeder").into()]);
        seed.extend(["--limit-up".into(), rate.to_string().into()]);
        seed.extend(self.session_options());
        self.start(Role::Seeder, seed)?;
        self.wait_for(Role::Seeder, |event| event["state"] == "seeding")?;
        for role in [Role::Leecher1, Role::Leecher2] {
            let mut download = vec!["download".into(), self.torrent().into()];
            download.extend(["--output".into(), self.path(role.label()).into()]);
            // Who is done first goes on giving.
            download.push("--seed".into());
            download.extend(self.session_options());
            self.start(role, download)?;
        }
        Ok(())
    }

    /// Nothing of the session leaves this machine or the demo's folder.
    fn session_options(&self) -> Vec<OsString> {
        let mut options: Vec<OsString> = ["--bind", "127.0.0.1", "--port", "0"]
            .map(OsString::from)
            .to_vec();
        options.extend(["--no-dht", "--no-lsd", "--no-port-map"].map(OsString::from));
        options.extend(["--announce-interval-min", "1s", "--state"].map(OsString::from));
        options.push(self.path("state").into());
        options
    }

    fn verify(&mut self) -> Result<(), Failure> {
        let since = Instant::now();
        for role in [Role::Leecher1, Role::Leecher2] {
            let mut arguments = vec!["verify".into(), self.torrent().into()];
            arguments.extend(["--data".into(), self.path(role.label()).into()]);
            let verdict = self.run_helper("verify", arguments)?;
            if verdict["complete"] != true {
                return Err(Failure::new(
                    format!("the copy of {} is not equal to the original", role.label()),
                    "this is a fault of the program or of the machine: please report it",
                ));
            }
        }
        self.view.say(&format!(
            "verified both copies: all pieces are good, {:.1} s",
            since.elapsed().as_secs_f64(),
        ));
        Ok(())
    }

    fn summarize(&self, rate: u64) {
        let swarm = &self.swarm;
        let total = swarm.total_bytes.max(1) as f64;
        self.view.say("");
        for (role, leecher) in [Role::Leecher1, Role::Leecher2].iter().zip(&swarm.leechers) {
            let seconds = leecher.complete_after.unwrap_or(0.0).max(0.001);
            self.view.say(&format!(
                "{}  fetched {} in {seconds:.1} s at {}, sent {}",
                role.label(),
                size::bytes(leecher.fetched_bytes),
                size::rate((leecher.fetched_bytes as f64 / seconds) as u64),
                size::bytes(leecher.sent_bytes),
            ));
        }
        self.view.say(&format!(
            "seeder     sent {}, held to {}",
            size::bytes(swarm.seeder.sent_bytes),
            size::rate(rate),
        ));
        self.view.say(&format!(
            "tracker    answered {}",
            size::plural(swarm.tracker.announces, "announce"),
        ));
        let copies = swarm.seeder.sent_bytes as f64 / total;
        let traded: u64 = swarm
            .leechers
            .iter()
            .map(|leecher| leecher.sent_bytes)
            .sum();
        self.view.say(&format!(
            "The seeder sent {copies:.2} × the size for two copies: the leechers traded {:.2} ×.",
            traded as f64 / total,
        ));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn content(&self) -> PathBuf {
        self.path("seeder").join("sample")
    }

    fn torrent(&self) -> PathBuf {
        self.path("sample.torrent")
    }
}

/// Programs and their news.
impl Demo<'_> {
    fn start(&mut self, role: Role, arguments: Vec<OsString>) -> Result<(), Failure> {
        self.look_up()?;
        let program = Program::start(role, &arguments, self.sender.clone())?;
        self.programs.push(program);
        Ok(())
    }

    /// Runs a program that does its work and leaves; the last thing it said.
    fn run_helper(
        &mut self,
        verb: &'static str,
        arguments: Vec<OsString>,
    ) -> Result<Value, Failure> {
        let role = Role::Helper(verb);
        self.start(role, arguments)?;
        let mut last = Value::Null;
        loop {
            match self.next_news()? {
                Some(news) if news.from == role => match news.what {
                    What::Said(value) => last = value,
                    What::Ended => break,
                },
                Some(news) => self.take(news)?,
                None => {}
            }
        }
        let Some(mut helper) = self.programs.pop() else {
            return Ok(last);
        };
        // A copy that is not equal is a verdict, not a failure of `verify`.
        let has_failed = helper.wait() != 0 && (last.is_null() || last["event"] == "error");
        if has_failed {
            return Err(helper.failure());
        }
        Ok(last)
    }

    /// The first event of this program for which `is_it` holds.
    fn wait_for(&mut self, role: Role, is_it: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
        loop {
            let Some(news) = self.next_news()? else {
                continue;
            };
            let found = match &news.what {
                What::Said(value) if news.from == role && is_it(value) => Some(value.clone()),
                _ => None,
            };
            self.take(news)?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    fn wait_until(&mut self, is_it: impl Fn(&Swarm) -> bool) -> Result<(), Failure> {
        while !is_it(&self.swarm) {
            if let Some(news) = self.next_news()? {
                self.take(news)?;
            }
        }
        Ok(())
    }

    /// Ends these programs in order and waits for their last words.
    fn stop(&mut self, roles: &[Role]) -> Result<(), Failure> {
        let (mut leaving, staying): (Vec<_>, Vec<_>) = std::mem::take(&mut self.programs)
            .into_iter()
            .partition(|program| roles.contains(&program.role()));
        self.programs = staying;
        leaving.iter().for_each(Program::stop);
        let mut left = leaving.len();
        while left > 0 {
            match self.next_news()? {
                Some(News {
                    from,
                    what: What::Ended,
                }) if roles.contains(&from) => left -= 1,
                Some(news) => self.take(news)?,
                None => {}
            }
        }
        for program in &mut leaving {
            if !program.has_stopped_cleanly() {
                return Err(program.failure());
            }
        }
        Ok(())
    }

    fn take(&mut self, news: News) -> Result<(), Failure> {
        match news.what {
            What::Said(value) => {
                self.swarm.on_event(news.from, &value);
                Ok(())
            }
            What::Ended => {
                let program = self.programs.iter_mut();
                let mut of_role = program.filter(|program| program.role() == news.from);
                let failure = of_role.next().map(Program::failure);
                // Ctrl-C may have reached the child a moment earlier than this process.
                let until = Instant::now() + SIGNAL_GRACE;
                while signals::received().is_none() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(10));
                }
                failure.map_or(Ok(()), Err)
            }
        }
    }

    /// What comes next, or nothing within a moment; the screen is kept up to date meanwhile.
    fn next_news(&mut self) -> Result<Option<News>, Failure> {
        self.look_up()?;
        match self.news.recv_timeout(TICK) {
            Ok(news) => Ok(Some(news)),
            // Not disconnected: one sender is our own.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(None),
        }
    }

    /// Looks at the clock, at signals and at the tracker.
    fn look_up(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        if signals::received().is_some() {
            return Err(Failure::new("stopped", ""));
        }
        if now >= self.deadline {
            let doing = match self.swarm.phase {
                Phase::Preparing => "preparing",
                Phase::Sharing => "sharing",
                Phase::Leaving => "ending its programs",
                Phase::Verifying => "verifying",
            };
            return Err(self.too_late(doing));
        }
        if now >= self.next_look && self.swarm.phase != Phase::Preparing {
            self.next_look = now + TICK;
            if let Some(figures) = self.tracker.and_then(TrackerFigures::fetch) {
                self.swarm.tracker = figures;
            }
            self.view.show(&self.swarm);
        }
        Ok(())
    }

    fn too_late(&self, doing: &str) -> Failure {
        let seconds = self.args.deadline.as_secs();
        Failure::new(
            format!("the demo was still {doing} after {seconds} s"),
            "give it more time with --deadline, or less to do with --size",
        )
    }
}
