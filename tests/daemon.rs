//! `gyre daemon` as a program: what it remembers through stops and kills, and who it shares a state with.

#[path = "support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use support::program::{PATIENCE, command};
use support::sample::text;
use support::{Daemon, Gyre, Sample};

fn list(daemon: &mut Daemon) -> Vec<Value> {
    let answer = daemon.ask(json!({ "do": "list" }));
    answer["torrents"].as_array().unwrap().clone()
}

/// Looks at the list until it is so.
fn list_until(daemon: &mut Daemon, is_it: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let list = list(daemon);
        if is_it(&list) {
            return list;
        }
        assert!(std::time::Instant::now() < end, "{list:?}");
        std::thread::sleep(Duration::from_millis(20));
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
    let added: Vec<String> = samples
        .iter()
        .map(|sample| daemon.add(sample, &sample.data))
        .collect();
    let is_seeding = |torrent: &Value| torrent["state"] == "seeding";
    list_until(&mut daemon, |list| {
        list.iter().filter(|torrent| is_seeding(torrent)).count() == 3
    });
    let stopped = daemon.ask(json!({ "do": "stop", "info_hash": added[1] }));
    assert_eq!(stopped["error"], Value::Null);
    let removed = daemon.ask(json!({ "do": "remove", "info_hash": added[2] }));
    assert_eq!(removed["error"], Value::Null);
    daemon.terminate();

    let mut daemon = Daemon::start(&state);
    let list = list_until(&mut daemon, |list| list.iter().any(is_seeding));
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
fn a_damaged_state_file_is_set_aside_and_named() {
    let samples = samples(1);
    let state = samples[0].dir("state");
    let mut daemon = Daemon::start(&state);
    daemon.add(&samples[0], &samples[0].data);
    daemon.terminate();
    std::fs::write(state.join("daemon.redb"), "no state").unwrap();
    let mut daemon = Daemon::start(&state);
    assert_eq!(list(&mut daemon).len(), 0);
    let aside: PathBuf = state.join("daemon.redb.bad-1");
    assert_eq!(std::fs::read(&aside).unwrap(), b"no state");
    let told = daemon.gyre.stderr();
    assert!(told.contains(&text(&aside)), "{told}");
    daemon.add(&samples[0], &samples[0].data);
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
