//! `gyre daemon` as a child process that takes commands as JSON lines.

use std::io::Write;
use std::path::Path;
use std::process::ChildStdin;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::program::{PATIENCE, command};
use super::sample::text;
use super::{Gyre, Sample};

/// A running daemon, killed when dropped.
pub struct Daemon {
    pub gyre: Gyre,
    stdin: ChildStdin,
    next_id: u64,
}

impl Daemon {
    /// Starts one with its state there, alone on this machine, with these options besides.
    pub fn start_with(state: &Path, options: &[&str]) -> Daemon {
        Daemon::start_in(None, state, options)
    }

    /// The same in a time zone of its own.
    pub fn start_in(zone: Option<&str>, state: &Path, options: &[&str]) -> Daemon {
        let mut program = command();
        if let Some(zone) = zone {
            program.env("TZ", zone);
        }
        program.args(["daemon", "--lines", "--port", "0", "--bind", "127.0.0.1"]);
        program.args(["--port-map", "false", "--dht", "false", "--lsd", "false"]);
        program.args(["--buffers", "4MiB", "--announce-interval-min", "1s"]);
        if !options.contains(&"--api") {
            program.args(["--api", "off"]);
        }
        program.args(options).arg("--state").arg(state);
        let (gyre, stdin) = Gyre::spawn_with_stdin(program);
        Daemon {
            gyre,
            stdin,
            next_id: 0,
        }
    }

    pub fn start(state: &Path) -> Daemon {
        Daemon::start_with(state, &[])
    }

    /// Gives a command; the number that its answer will bear.
    pub fn give(&mut self, mut asked: Value) -> u64 {
        self.next_id += 1;
        asked["id"] = json!(self.next_id);
        let _ = writeln!(self.stdin, "{asked}");
        self.next_id
    }

    pub fn ask(&mut self, asked: Value) -> Value {
        let id = self.give(asked);
        self.gyre.wait_for("answer", |event| {
            event["event"] == "answer" && event["id"] == id
        })
    }

    /// Adds a torrent whose data lies in `folder`, or goes there; its info_hash.
    pub fn add(&mut self, sample: &Sample, folder: &Path) -> String {
        let answer = self.ask(json!({
            "do": "add", "torrent": text(&sample.torrent), "folder": text(folder),
        }));
        let info_hash = answer["info_hash"].as_str();
        info_hash.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// Asks for another folder; the error, if any.
    pub fn relocate(&mut self, info_hash: &str, to: &Path, moves: bool) -> Option<String> {
        let answer = self.ask(json!({
            "do": "relocate", "info_hash": info_hash, "to": text(to), "moves": moves,
        }));
        answer["error"].as_str().map(str::to_owned)
    }

    /// The only torrent.
    pub fn torrent(&mut self) -> Value {
        self.ask(json!({ "do": "list" }))["torrents"][0].take()
    }

    /// Looks at the only torrent until it is so.
    #[track_caller]
    pub fn torrent_until(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        // Samples may be large and hashed by a program that is not optimized.
        let end = Instant::now() + 3 * PATIENCE;
        loop {
            let torrent = self.torrent();
            if is_it(&torrent) {
                return torrent;
            }
            let told = self.gyre.stderr();
            assert!(Instant::now() < end, "{what}: {torrent}\n{told}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    pub fn seeding(&mut self) -> Value {
        self.torrent_until("seeding", |torrent| torrent["state"] == "seeding")
    }

    /// Waits for the end of a move.
    #[track_caller]
    pub fn moved(&mut self) -> Value {
        self.torrent_until("moved", |torrent| torrent["moved_share"].is_null())
    }

    pub fn terminate(mut self) {
        self.gyre.signal(Signal::SIGTERM);
        assert_eq!(self.gyre.wait_exit(PATIENCE), 0);
    }
}
