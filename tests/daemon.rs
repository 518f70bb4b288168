//! `gyre daemon` as a program: what it remembers through stops and kills, and who it shares a state with.

#[path = "support/mod.rs"]
mod support;

use std::io::Write;
use std::path::PathBuf;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::program::{PATIENCE, command};
use support::sample::text;
use support::{Gyre, Sample};

struct Daemon {
    gyre: Gyre,
    stdin: ChildStdin,
    next_id: u64,
}

impl Daemon {
    fn start(state: &std::path::Path) -> Daemon {
        let mut program = command();
        program.args(["daemon", "--lines", "--port", "0", "--bind", "127.0.0.1"]);
        program.args([
            "--port-map",
            "false",
            "--dht",
            "false",
            "--api",
            "off",
            "--lsd",
            "false",
            "--buffers",
            "4MiB",
        ]);
        program
            .args(["--announce-interval-min", "1s", "--state"])
            .arg(state);
        program.stdin(Stdio::piped());
        let (gyre, stdin) = Gyre::spawn_with_stdin(program);
        Daemon {
            gyre,
            stdin,
            next_id: 0,
        }
    }

    /// Gives a command; its number.
    fn give(&mut self, mut asked: Value) -> u64 {
        self.next_id += 1;
        asked["id"] = json!(self.next_id);
        let _ = writeln!(self.stdin, "{asked}");
        self.next_id
    }

    fn ask(&mut self, asked: Value) -> Value {
        let id = self.give(asked);
        self.gyre.wait_for("answer", |event| {
            event["event"] == "answer" && event["id"] == id
        })
    }

    fn add(&mut self, sample: &Sample) -> String {
        let answer = self.ask(json!({
            "do": "add", "torrent": text(&sample.torrent), "folder": text(&sample.data), "fetches": false,
        }));
        answer["info_hash"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    fn list(&mut self) -> Vec<Value> {
        let answer = self.ask(json!({ "do": "list" }));
        answer["torrents"].as_array().unwrap().clone()
    }

    /// Looks at the list until it is so.
    fn list_until(&mut self, is_it: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let list = self.list();
            if is_it(&list) {
                return list;
            }
            assert!(std::time::Instant::now() < end, "{list:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn terminate(mut self) {
        self.gyre.signal(Signal::SIGTERM);
        assert_eq!(self.gyre.wait_exit(PATIENCE), 0);
    }
}

fn samples(count: usize) -> Vec<Sample> {
    (0..count)
        .map(|n| Sample::file(100_000 + n * 1_000, 16_384, &[]))
        .collect()
}

#[test]
fn torrents_are_there_again_after_a_stop_and_are_not_hashed_anew() {
    let samples = samples(3);
    let state = samples[0].dir("state");
    let mut daemon = Daemon::start(&state);
    let added: Vec<String> = samples.iter().map(|sample| daemon.add(sample)).collect();
    let is_seeding = |torrent: &Value| torrent["state"] == "seeding";
    daemon.list_until(|list| list.iter().filter(|torrent| is_seeding(torrent)).count() == 3);
    let stopped = daemon.ask(json!({ "do": "stop", "info_hash": added[1] }));
    assert_eq!(stopped["error"], Value::Null);
    let removed = daemon.ask(json!({ "do": "remove", "info_hash": added[2] }));
    assert_eq!(removed["error"], Value::Null);
    daemon.terminate();

    let mut daemon = Daemon::start(&state);
    let list = daemon.list_until(|list| list.iter().any(is_seeding));
    let of = |info_hash: &String| {
        list.iter()
            .find(|torrent| torrent["info_hash"] == **info_hash)
    };
    assert_eq!(list.len(), 2, "{list:?}");
    assert_eq!(
        of(&added[0]).unwrap()["pieces_checked"],
        0,
        "the record was trusted"
    );
    assert_eq!(of(&added[1]).unwrap()["activity"], "Stopped");
    assert_eq!(of(&added[1]).unwrap()["number"], 2);
    assert!(of(&added[2]).is_none());
    let again = daemon.ask(json!({
        "do": "add", "torrent": text(&samples[0].torrent), "folder": text(&samples[0].data),
    }));
    assert!(
        again["error"].as_str().unwrap().contains("there already"),
        "{again}"
    );
    daemon.terminate();
}

#[test]
fn a_second_daemon_on_one_state_hears_who_has_it() {
    let state = samples(1)[0].dir("state");
    let mut first = Daemon::start(&state);
    first.gyre.listening();
    let mut second = Daemon::start(&state);
    assert_eq!(second.gyre.wait_exit(PATIENCE), 1);
    let told = second.gyre.stderr();
    let pid = format!("another daemon (process {})", first.gyre.pid());
    assert!(told.contains(&pid), "{told}");
    first.terminate();
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_removed_returns_whenever_it_is_killed() {
    let samples = samples(24);
    let state = samples[0].dir("state");
    let (mut there, mut gone): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for round in 0..4_usize {
        let mut daemon = Daemon::start(&state);
        let list = daemon.list_until(|list| {
            list.len() >= there.len() && list.iter().all(|torrent| !torrent["activity"].is_null())
        });
        let is_listed = |info_hash: &String| {
            list.iter()
                .any(|torrent| torrent["info_hash"] == **info_hash)
        };
        assert!(
            there.iter().all(is_listed),
            "round {round}: lost one of {there:?}: {list:?}"
        );
        assert!(
            !gone.iter().any(is_listed),
            "round {round}: one of {gone:?} returned: {list:?}"
        );
        let mine = &samples[round * 6..(round + 1) * 6];
        let added: Vec<String> = mine[..4].iter().map(|sample| daemon.add(sample)).collect();
        let removed = daemon.ask(json!({ "do": "remove", "info_hash": added[round % 4] }));
        assert_eq!(removed["error"], Value::Null);
        gone.push(added[round % 4].clone());
        there.extend(
            added
                .into_iter()
                .filter(|info_hash| !gone.contains(info_hash)),
        );
        // Killed with these under way, done or not.
        for sample in &mine[4..] {
            daemon.give(json!({
                "do": "add", "torrent": text(&sample.torrent), "folder": text(&sample.data),
            }));
        }
        std::thread::sleep(Duration::from_millis(3 * round as u64));
        daemon.gyre.kill9();
    }
}

#[test]
fn a_damaged_state_file_is_set_aside_and_named() {
    let samples = samples(1);
    let state = samples[0].dir("state");
    let mut daemon = Daemon::start(&state);
    daemon.add(&samples[0]);
    daemon.terminate();
    std::fs::write(state.join("daemon.redb"), "no state").unwrap();
    let mut daemon = Daemon::start(&state);
    assert_eq!(daemon.list().len(), 0);
    let aside: PathBuf = state.join("daemon.redb.bad-1");
    assert_eq!(std::fs::read(&aside).unwrap(), b"no state");
    let told = daemon.gyre.stderr();
    assert!(told.contains(&text(&aside)), "{told}");
    daemon.add(&samples[0]);
    daemon.terminate();
}

#[test]
fn settings_that_are_none_are_named_with_their_line() {
    let state = samples(1)[0].dir("state");
    let config = state.join("gyre.toml");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(&config, "limit-up = \"1MiB\"\nprot = 3\n").unwrap();
    let mut program = command();
    program.args(["daemon", "--config"]).arg(&config);
    let mut bad = Gyre::spawn(program);
    assert_eq!(bad.wait_exit(PATIENCE), 2);
    assert!(bad.stderr().contains("line 2 of "), "{}", bad.stderr());
    assert!(
        bad.stderr().contains("there is no key prot"),
        "{}",
        bad.stderr()
    );
}
