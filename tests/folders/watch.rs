//! Torrents that are added by putting them into a folder, and the program behind a download.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::fake_peer::{Behaviour, Content, FakeSeeder};
use crate::support::fake_tracker::{HttpTracker, ok, peers};
use crate::support::program::PATIENCE;
use crate::support::{Daemon, Sample};

#[track_caller]
fn wait_until(what: &str, daemon: &Daemon, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: {}", daemon.gyre.stderr());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn all(daemon: &mut Daemon) -> Vec<Value> {
    let list = daemon.ask(json!({ "do": "list" }));
    list["torrents"].as_array().unwrap().clone()
}

#[test]
fn torrents_put_into_a_watched_folder_are_added_once_and_what_is_none_is_set_apart() {
    let samples: Vec<Sample> = (0..3)
        .map(|n| Sample::file(100_000 + n, 16_384, &[]))
        .collect();
    let base = &samples[0];
    let (watched, to) = (base.dir("watched"), base.dir("to"));
    // There before the daemon, and still being written by its age: the sweep comes back to it.
    std::fs::copy(&samples[0].torrent, watched.join("early.torrent")).unwrap();
    let watch = format!(
        "{}; to={}; label=tv; paused",
        watched.display(),
        to.display()
    );
    let mut daemon = Daemon::start_with(&base.dir("state"), &["--watch", &watch]);
    daemon.gyre.listening();
    wait_until("the early one", &daemon, || {
        names(&watched) == ["early.torrent.added"]
    });

    // One that is written slowly is no torrent before it is closed.
    let bytes = std::fs::read(&samples[1].torrent).unwrap();
    let mut slow = std::fs::File::create(watched.join("slow.torrent")).unwrap();
    slow.write_all(&bytes[..bytes.len() / 2]).unwrap();
    slow.sync_all().unwrap();
    std::fs::write(watched.join("bad.torrent"), "no torrent").unwrap();
    std::fs::write(watched.join("notes.txt"), "left alone").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", watched.join("link.magnet")).unwrap();
    let link = format!("magnet:?xt=urn:btih:{}\n", "ab".repeat(20));
    std::fs::write(watched.join("one.magnet"), link).unwrap();
    // The same torrent under another name.
    let again = base.folder.path().join("again");
    std::fs::copy(&samples[0].torrent, &again).unwrap();
    std::fs::rename(&again, watched.join("early.torrent")).unwrap();
    wait_until("all but the slow one", &daemon, || {
        let names = names(&watched);
        [
            "bad.torrent.invalid",
            "one.magnet.added",
            "early.torrent.added-2",
        ]
        .iter()
        .all(|name| names.iter().any(|is| is == name))
    });
    assert!(
        watched.join("slow.torrent").exists(),
        "half a torrent was taken"
    );
    slow.write_all(&bytes[bytes.len() / 2..]).unwrap();
    drop(slow);
    wait_until("the slow one", &daemon, || {
        watched.join("slow.torrent.added").exists()
    });
    wait_until("the link", &daemon, || {
        names(&watched).contains(&"link.magnet.invalid".to_owned())
    });
    assert!(watched.join("notes.txt").exists());
    let list = all(&mut daemon);
    assert_eq!(list.len(), 3, "{list:?}");
    for torrent in &list {
        assert_eq!(torrent["folder"], to.to_str().unwrap());
        assert_eq!(torrent["labels"], json!(["tv"]));
        assert_eq!(torrent["is_wanted"], false);
    }
    let told = daemon.gyre.stderr();
    assert!(told.contains("bad.torrent"), "{told}");
    daemon.terminate();
}

#[test]
fn a_program_is_run_once_for_a_download_and_never_for_what_was_there() {
    let tracker = |addr| HttpTracker::saying(ok(&peers(&[addr])));
    let there = Sample::file(100_000, 16_384, &[]);
    let sample = Sample::file(300_000, 16_384, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(120));
    let tracker = tracker(seeder.addr);
    let torrent = sample.folder.path().join("with tracker.torrent");
    let mut create = crate::support::program::command();
    create.args([
        "create",
        "--piece-length",
        "16384",
        "-a",
        &tracker.url(),
        "-o",
    ]);
    assert!(
        create
            .arg(&torrent)
            .arg(&sample.content)
            .status()
            .unwrap()
            .success()
    );

    let told = sample.folder.path().join("told");
    let program = sample.folder.path().join("hook");
    let script = "#!/bin/sh\nprintf '%s|' \"$1\" \"$GYRE_NAME\" \"$GYRE_INFO_HASH\" \"$GYRE_FOLDER\" >>\"$2\"\necho heard\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config: PathBuf = sample.folder.path().join("gyre.toml");
    let argv = json!([program, "$(date), `x`", told]);
    std::fs::write(&config, format!("on-complete = {argv}\n")).unwrap();
    let mut daemon = Daemon::start_with(
        &sample.dir("state"),
        &["-v", "--config", config.to_str().unwrap()],
    );
    daemon.add(&there, &there.data);
    daemon.seeding();
    let out = sample.dir("out");
    let added = daemon.ask(json!({ "do": "add", "torrent": torrent, "folder": out }));
    assert_eq!(added["error"], Value::Null, "{added}");
    wait_until("the program", &daemon, || {
        daemon.gyre.stderr().contains("on-complete has run")
    });
    let hash = added["info_hash"].as_str().unwrap();
    let expected = format!("$(date), `x`|sample.bin|{hash}|{}|", out.display());
    assert_eq!(std::fs::read_to_string(&told).unwrap(), expected);
    assert!(daemon.gyre.stderr().contains("heard"));
    daemon.terminate();
}
