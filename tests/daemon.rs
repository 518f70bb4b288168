//! `gyre daemon` as a program: what it remembers through stops and kills, and who it shares a state with.

#[path = "support/mod.rs"]
mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use support::program::{PATIENCE, command};
use support::sample::text;
use support::{Daemon, Gyre, Sample, machine};

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
fn a_torrent_file_that_is_never_read_holds_up_no_end() {
    let samples = samples(1);
    let state = samples[0].dir("state");
    let mut daemon = Daemon::start(&state);
    let info_hash = daemon.add(&samples[0], &samples[0].data);
    let stopped = daemon.ask(json!({ "do": "stop", "info_hash": info_hash }));
    assert_eq!(stopped["error"], Value::Null);
    daemon.terminate();

    let kept = state.join(format!("torrents/{info_hash}.torrent"));
    std::fs::remove_file(&kept).unwrap();
    nix::unistd::mkfifo(&kept, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let mut daemon = Daemon::start(&state);
    assert_eq!(list(&mut daemon).len(), 1);
    daemon.give(json!({ "do": "start", "info_hash": info_hash }));
    list_until(&mut daemon, |list| list[0]["activity"] == "Running");
    let told = std::time::Instant::now();
    daemon.terminate();
    assert!(told.elapsed() < Duration::from_secs(10), "{told:?}");
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

/// A paused magnet: its row is all that is written.
fn add_magnet(daemon: &mut Daemon, number: usize) -> Value {
    let labels: Vec<String> = (0..60)
        .map(|n| format!("{n} {}", "room ".repeat(40)))
        .collect();
    daemon.ask(json!({
        "do": "add", "magnet": format!("magnet:?xt=urn:btih:{number:040x}"), "starts": false, "labels": labels,
    }))
}

#[test]
fn a_label_that_is_given_twice_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let added = daemon.ask(json!({
        "do": "add", "magnet": format!("magnet:?xt=urn:btih:{:040x}", 1), "starts": false,
        "labels": ["b", "a", "b"],
    }));
    assert_eq!(added["error"], Value::Null);
    assert_eq!(list(&mut daemon)[0]["labels"], json!(["b", "a"]));
}

#[test]
fn a_state_file_without_room_is_written_again_once_there_is_some() {
    let Some(small) = machine::Mounted::small("a_state_file_without_room", 6 << 20) else {
        return;
    };
    let state = small.path().join("state");
    let mut daemon = Daemon::start(&state);
    assert_eq!(add_magnet(&mut daemon, 1)["error"], Value::Null);
    let filler = small.path().join("filler");
    while std::fs::write(&filler, vec![0; 8 << 20]).is_ok() {}
    let mut kept = vec![1];
    let refused = (2..).find_map(|number| {
        let answer = add_magnet(&mut daemon, number);
        match answer["error"].as_str() {
            Some(error) => Some(error.to_owned()),
            None => {
                kept.push(number);
                None
            }
        }
    });
    let refused = refused.unwrap();
    assert!(refused.contains("no space left"), "{refused}");
    assert!(
        refused.ends_with("; hint: make room in the state folder"),
        "{refused}"
    );
    // And again: the file takes nothing more until it is opened anew, which takes room.
    assert!(add_magnet(&mut daemon, 100_000)["error"].is_string());

    std::fs::remove_file(&filler).unwrap();
    let number = kept.len() + 1;
    assert_eq!(add_magnet(&mut daemon, number)["error"], Value::Null);
    kept.push(number);
    daemon.terminate();
    let mut daemon = Daemon::start(&state);
    assert_eq!(list(&mut daemon).len(), kept.len());
    daemon.terminate();
    assert!(!state.join("daemon.redb.bad-1").exists());
}

#[test]
fn a_state_file_of_somebody_else_is_left_alone_and_the_daemon_does_not_start() {
    if !machine::has_root("a_state_file_of_somebody_else") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let mut daemon = Daemon::start(&state);
    assert_eq!(add_magnet(&mut daemon, 1)["error"], Value::Null);
    daemon.terminate();
    machine::open_to_all(folder.path());
    let file = state.join("daemon.redb");
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let mut program = machine::as_ordinary_user(&[]);
    program.args(["daemon", "--dht", "false", "--lsd", "false"]);
    program.args(["--port-map", "false"]);
    program.args([
        "--api",
        "off",
        "--port",
        "0",
        "--bind",
        "127.0.0.1",
        "--dht",
        "false",
        "--lsd",
        "false",
    ]);
    program.arg("--state").arg(&state);
    let ended = program.output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(
        told.contains("daemon.redb") && told.contains("permission denied"),
        "{told}"
    );
    assert!(told.contains("hint: give the state folder"), "{told}");
    assert!(!state.join("daemon.redb.bad-1").exists());
}
