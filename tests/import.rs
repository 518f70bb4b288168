//! `gyre import` and `gyre export`: torrents of other programs, as their folders hold them, in a daemon that seeds them without
//! having read them; a state as one file.

#[path = "support/mod.rs"]
mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant, SystemTime};

use gyre::wire::bencode::Item;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::program::{PATIENCE, command};
use support::sample::text;
use support::{Gyre, Sample};

/// What the command printed, and its exit code.
fn run(arguments: &[&str]) -> (Vec<Value>, i32) {
    let output = command().args(arguments).arg("--json").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    (lines.collect(), output.status.code().unwrap())
}

fn import(program: &str, folder: &Path, state: &Path, more: &[&str]) -> (Vec<Value>, i32) {
    let (folder, state) = (text(folder), text(state));
    run(&[&["import", program, &folder, "--state", &state], more].concat())
}

/// Of an import of one torrent that must succeed.
fn taken(program: &str, folder: &Path, state: &Path) -> Value {
    let (lines, code) = import(program, folder, state, &[]);
    assert_eq!(code, 0, "{lines:?}");
    assert_eq!(lines[0]["outcome"], "taken", "{lines:?}");
    lines[0].clone()
}

/// Why an import of one torrent left it.
fn left(program: &str, folder: &Path, state: &Path) -> String {
    let (lines, code) = import(program, folder, state, &[]);
    assert_eq!(code, 1, "{lines:?}");
    assert_eq!(lines[0]["outcome"], "left", "{lines:?}");
    lines[0]["why"].as_str().unwrap().to_owned()
}

struct Daemon {
    gyre: Gyre,
    stdin: ChildStdin,
    next_id: u64,
}

impl Daemon {
    fn start(state: &Path) -> Daemon {
        let mut program = command();
        program.args(["daemon", "--lines", "--port", "0", "--bind", "127.0.0.1"]);
        program.args(["--api", "off", "--buffers", "4MiB", "--state"]);
        program.arg(state);
        for switch in ["GYRE_PORT_MAP", "GYRE_DHT", "GYRE_LSD"] {
            program.env(switch, "false");
        }
        program.stdin(Stdio::piped());
        let (gyre, stdin) = Gyre::spawn_with_stdin(program);
        Daemon {
            gyre,
            stdin,
            next_id: 0,
        }
    }

    fn list(&mut self) -> Vec<Value> {
        self.next_id += 1;
        let id = self.next_id;
        let _ = writeln!(self.stdin, "{}", json!({ "do": "list", "id": id }));
        let answer = self.gyre.wait_for("answer", |event| {
            event["event"] == "answer" && event["id"] == id
        });
        answer["torrents"].as_array().unwrap().clone()
    }

    /// The only torrent, once it is so.
    fn torrent(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let list = self.list();
            if let [torrent] = &list[..]
                && is_it(torrent)
            {
                return torrent.clone();
            }
            assert!(Instant::now() < end, "{list:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn terminate(mut self) {
        self.gyre.signal(Signal::SIGTERM);
        assert_eq!(self.gyre.wait_exit(PATIENCE), 0);
    }
}

/// A daemon on that state serves all of the sample to a peer, and has hashed that many pieces by then.
fn seeds(sample: &Sample, state: &Path, pieces_checked: u64) -> Value {
    let mut daemon = Daemon::start(state);
    let addr = daemon.gyre.listening();
    daemon.torrent(|torrent| torrent["activity"] == "Asleep" || torrent["state"] == "seeding");
    let output = sample.folder.path().join("fetched");
    let mut peer = Gyre::start(&[
        "download",
        &text(&sample.torrent),
        "--output",
        &text(&output),
        "--state",
        &text(&sample.folder.path().join("peer.state")),
        "--port",
        "0",
        "--no-trackers",
        "--peer",
        &addr.to_string(),
        "--buffers",
        "4MiB",
    ]);
    assert_eq!(peer.wait_exit(PATIENCE), 0, "{}", peer.stderr());
    assert!(sample.is_same_in(&output));
    let torrent = daemon.torrent(|torrent| torrent["state"] == "seeding");
    assert_eq!(torrent["pieces_checked"], pieces_checked, "{torrent}");
    daemon.terminate();
    torrent
}

fn tree() -> Sample {
    Sample::tree(
        &[("a/one.bin", 70_000), ("two.bin", 50_001), ("empty", 0)],
        16_384,
        &[],
    )
}

const PIECES: usize = (70_000 + 50_001_usize).div_ceil(16_384);

fn dict<'a>(entries: impl IntoIterator<Item = (&'a str, Item<'a>)>) -> Item<'a> {
    Item::dict(
        entries
            .into_iter()
            .map(|(key, item)| (key.as_bytes(), item)),
    )
}

fn texts<'a>(values: &[&'a str]) -> Item<'a> {
    Item::List(values.iter().map(|text| Item::text(text)).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn changed_s(path: &Path) -> i64 {
    let at = path.metadata().unwrap().modified().unwrap();
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    since.as_secs() as i64
}

/// `BT_backup` with the sample in it.
fn qbittorrent<'a>(
    sample: &'a Sample,
    folder: &'a str,
    more: impl IntoIterator<Item = (&'a str, Item<'a>)>,
) -> PathBuf {
    let backup = sample.dir("BT_backup");
    let stem = hex(&sample.info_hash);
    std::fs::copy(&sample.torrent, backup.join(format!("{stem}.torrent"))).unwrap();
    let usual = [
        ("file-format", Item::text("libtorrent resume file")),
        ("info-hash", Item::bytes(sample.info_hash.to_vec())),
        ("save_path", Item::text(folder)),
        ("pieces", Item::bytes(vec![1; PIECES])),
        ("paused", Item::Int(0)),
        ("total_uploaded", Item::Int(123_456)),
        ("qBt-category", Item::text("tv")),
    ];
    let resume = dict(usual.into_iter().chain(more));
    std::fs::write(backup.join(format!("{stem}.fastresume")), resume.encode()).unwrap();
    backup
}

#[test]
fn a_torrent_of_qbittorrent_is_seeded_without_being_hashed() {
    let sample = tree();
    let (state, data) = (sample.dir("state"), text(&sample.data));
    let backup = qbittorrent(&sample, &data, [("super_seeding", Item::Int(1))]);
    let (dry, code) = import("qbittorrent", &backup, &state, &["--dry-run"]);
    assert_eq!((code, &dry[0]["outcome"]), (0, &json!("taken")));
    assert!(
        !state.join("daemon.redb").exists(),
        "a dry run writes nothing"
    );
    let line = taken("qbittorrent", &backup, &state);
    assert_eq!(line["pieces_have"], PIECES);
    assert_eq!(line["pieces_to_hash"], 0);
    assert_eq!(line["notes"], json!(["left behind: super-seeding"]));
    let torrent = seeds(&sample, &state, 0);
    assert!(
        torrent["uploaded_bytes"].as_u64() >= Some(123_456),
        "{torrent}"
    );
    let (again, code) = import("qbittorrent", &backup, &state, &[]);
    assert_eq!((code, &again[0]["outcome"]), (0, &json!("there")));
}

#[test]
fn names_that_a_torrent_of_qbittorrent_was_given_are_kept() {
    for (root, file) in [("another root", "two.bin"), ("sample", "2.bin")] {
        let sample = tree();
        let data = sample.dir("renamed");
        copy(&sample.content, &data.join(root));
        std::fs::rename(data.join(root).join("two.bin"), data.join(root).join(file)).unwrap();
        let names = [
            format!("{root}/a/one.bin"),
            format!("{root}/empty"),
            format!("{root}/{file}"),
        ];
        let names = Item::List(names.iter().map(|name| Item::text(name)).collect());
        let (state, data) = (sample.dir("state"), text(&data));
        let backup = qbittorrent(&sample, &data, [("mapped_files", names)]);
        taken("qbittorrent", &backup, &state);
        seeds(&sample, &state, 0);
    }
}

#[test]
fn a_torrent_of_transmission_is_seeded_and_a_file_that_changed_is_hashed_alone() {
    for is_changed in [false, true] {
        let sample = tree();
        let state = sample.dir("state");
        let (torrents, resume) = (sample.dir("t/torrents"), sample.dir("t/resume"));
        let stem = hex(&sample.info_hash);
        std::fs::copy(&sample.torrent, torrents.join(format!("{stem}.torrent"))).unwrap();
        let mut times: Vec<i64> = Vec::new();
        for file in ["a/one.bin", "empty", "two.bin"] {
            times.push(changed_s(&sample.content.join(file)));
        }
        times[2] -= i64::from(is_changed);
        let (data, times) = (
            text(&sample.data),
            times.into_iter().map(Item::Int).collect(),
        );
        let progress = dict([
            ("blocks", Item::text("all")),
            ("pieces", Item::text("all")),
            ("mtimes", Item::List(times)),
        ]);
        let file = dict([
            ("destination", Item::text(&data)),
            ("labels", texts(&["x"])),
            ("progress", progress),
        ]);
        std::fs::write(resume.join(format!("{stem}.resume")), file.encode()).unwrap();
        let line = taken("transmission", &sample.folder.path().join("t"), &state);
        // The second file lies in the fifth piece, which it shares, and in those behind it.
        let to_hash = if is_changed { PIECES as u64 - 4 } else { 0 };
        assert_eq!(line["pieces_to_hash"], to_hash, "{line}");
        seeds(&sample, &state, to_hash);
    }
}

fn rtorrent(sample: &Sample, root: &Path) -> PathBuf {
    let session = sample.dir("session");
    let name = format!("{}.torrent", hex(&sample.info_hash).to_uppercase());
    std::fs::copy(&sample.torrent, session.join(&name)).unwrap();
    let file = |path: &str| {
        let changed = changed_s(&root.join(path));
        dict([
            ("mtime", Item::Int(changed)),
            ("priority", Item::Int(1)),
            ("completed", Item::Int(1)),
        ])
    };
    let files = ["a/one.bin", "empty", "two.bin"].map(file).to_vec();
    let library = dict([
        ("bitfield", Item::Int(PIECES as i64)),
        ("files", Item::List(files)),
    ]);
    std::fs::write(
        session.join(format!("{name}.libtorrent_resume")),
        library.encode(),
    )
    .unwrap();
    let root = text(root);
    let program = dict([
        ("directory", Item::text(&root)),
        ("complete", Item::Int(1)),
        ("state", Item::Int(1)),
        ("custom1", Item::text("tv%20shows")),
    ]);
    std::fs::write(session.join(format!("{name}.rtorrent")), program.encode()).unwrap();
    session
}

#[test]
fn a_torrent_of_rtorrent_is_seeded_under_the_name_that_its_root_has() {
    for name in ["sample", "another name"] {
        let sample = tree();
        let root = sample.data.join(name);
        if root != sample.content {
            copy(&sample.content, &root);
        }
        let (session, state) = (rtorrent(&sample, &root), sample.dir("state"));
        taken("rtorrent", &session, &state);
        seeds(&sample, &state, 0);
    }
}

/// A copy with its times, as `cp -p` makes it.
fn copy(from: &Path, to: &Path) {
    let mut program = std::process::Command::new("cp");
    let status = program.arg("-rp").arg(from).arg(to).status();
    assert!(status.unwrap().success());
}

#[test]
fn what_cannot_be_trusted_is_left_with_the_reason_or_made_less() {
    let sample = tree();
    let state = sample.dir("state");
    let data = text(&sample.data);
    let backup = qbittorrent(&sample, "/nowhere/at/all", []);
    let why = left("qbittorrent", &backup, &state);
    assert!(
        why.contains("/nowhere/at/all/sample/a/one.bin is not there"),
        "{why}"
    );
    let backup = qbittorrent(&sample, "relative", []);
    assert!(left("qbittorrent", &backup, &state).contains("not absolute"));
    let backup = qbittorrent(
        &sample,
        &data,
        [("pieces", Item::bytes(vec![1; PIECES + 1]))],
    );
    assert!(left("qbittorrent", &backup, &state).contains("list of pieces"));
    let backup = qbittorrent(&sample, &data, [("info-hash", Item::bytes(vec![3; 20]))]);
    assert!(left("qbittorrent", &backup, &state).contains("its resume file that of"));
    let renamed = [("mapped_files", texts(&["sample/one.bin", "", ""]))];
    let backup = qbittorrent(&sample, &data, renamed);
    assert!(left("qbittorrent", &backup, &state).contains("moved between its folders"));

    // The last file lost its end: its last pieces are not there any more.
    let last = sample.content.join("two.bin");
    let last = std::fs::File::options().write(true).open(last);
    last.unwrap().set_len(30_000).unwrap();
    let backup = qbittorrent(&sample, "/elsewhere", []);
    let map = format!("/elsewhere={data}");
    let (lines, code) = import("qbittorrent", &backup, &state, &["--map", &map]);
    assert_eq!(
        (code, &lines[0]["outcome"]),
        (0, &json!("taken")),
        "{lines:?}"
    );
    let there = (70_000 + 30_000) / 16_384;
    assert_eq!(lines[0]["pieces_have"], there, "{lines:?}");
}

#[test]
fn a_link_out_of_the_folder_a_pipe_and_noise_are_no_torrents() {
    let sample = tree();
    let state = sample.dir("state");
    let backup = sample.dir("BT_backup");
    let outside = sample.torrent.clone();
    std::os::unix::fs::symlink(&outside, backup.join("link.fastresume")).unwrap();
    nix::unistd::mkfifo(
        &backup.join("pipe.fastresume"),
        nix::sys::stat::Mode::S_IRWXU,
    )
    .unwrap();
    std::fs::write(backup.join("noise.fastresume"), vec![b'l'; 100_000]).unwrap();
    let (lines, code) = import("qbittorrent", &backup, &state, &[]);
    assert_eq!(code, 1);
    let outcomes: Vec<&str> = lines[..3]
        .iter()
        .filter_map(|line| line["outcome"].as_str())
        .collect();
    assert_eq!(outcomes, ["left"; 3], "{lines:?}");
}

#[test]
fn a_state_with_a_daemon_is_left_alone() {
    let sample = tree();
    let state = sample.dir("state");
    let data = text(&sample.data);
    let backup = qbittorrent(&sample, &data, []);
    let mut daemon = Daemon::start(&state);
    daemon.gyre.listening();
    for arguments in [
        vec!["import".to_owned(), "qbittorrent".to_owned(), text(&backup)],
        vec!["export".to_owned(), text(&sample.folder.path().join("x"))],
    ] {
        let output = command()
            .args(arguments)
            .arg("--state")
            .arg(&state)
            .output();
        let output = output.unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("another daemon (process"), "{told}");
    }
    daemon.terminate();
}

#[test]
fn who_only_reads_a_damaged_state_leaves_it_and_fails_each_time() {
    let sample = tree();
    let state = sample.dir("state");
    let backup = qbittorrent(&sample, &text(&sample.data), []);
    taken("qbittorrent", &backup, &state);
    let archive = text(&sample.folder.path().join("state.jsonl"));
    let at = text(&state);
    let export = ["export", "-f", &archive, "--state", &at];
    assert_eq!(run(&export).1, 0);
    let good = std::fs::read(&archive).unwrap();

    let file = state.join("daemon.redb");
    let whole = std::fs::read(&file).unwrap();
    // Among them such that break the library that reads the file.
    for begin in (0..whole.len()).step_by(4_096).take(24) {
        let mut damaged = whole.clone();
        damaged[begin..begin + 64].fill(0xa5);
        std::fs::write(&file, &damaged).unwrap();
        for verb in [
            &export[..],
            &[
                "import",
                "qbittorrent",
                &text(&backup),
                "--dry-run",
                "--state",
                &at,
            ],
        ] {
            let output = command().args(verb).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!told.contains("internal fault"), "{begin}: {told}");
            assert_eq!(std::fs::read(&file).unwrap(), damaged, "{begin}");
            match output.status.code() {
                Some(0) => assert!(begin > 0, "the header is damaged"),
                code => assert_eq!(code, Some(1), "{begin}: {told}"),
            }
        }
    }
    std::fs::write(&file, "no state").unwrap();
    for _ in 0..2 {
        std::fs::write(&archive, &good).unwrap();
        let (lines, code) = run(&export);
        let told = lines[0]["message"].as_str().unwrap();
        assert!(code == 1 && told.contains("cannot use the state file"));
        assert_eq!(std::fs::read(&archive).unwrap(), good);
    }
    assert!(!state.join("daemon.redb.bad-1").exists());

    // Who writes has it set aside and begins with an empty one: that is no state to put over a good archive.
    let (_, code) = import("qbittorrent", &backup, &state, &[]);
    assert_eq!(code, 1);
    assert!(state.join("daemon.redb.bad-1").exists());
    let (lines, code) = run(&export);
    let told = lines[0]["message"].as_str().unwrap();
    assert!(code == 1 && told.contains("daemon.redb.bad-1"), "{told}");
    assert_eq!(std::fs::read(&archive).unwrap(), good);
}

#[test]
fn an_exported_state_is_seeded_elsewhere_without_being_hashed() {
    let sample = tree();
    let (first, second) = (sample.dir("first"), sample.dir("second"));
    let data = text(&sample.data);
    let backup = qbittorrent(&sample, &data, []);
    taken("qbittorrent", &backup, &first);
    let file = sample.folder.path().join("state.jsonl");
    let (lines, code) = run(&["export", &text(&file), "--state", &text(&first)]);
    assert_eq!((code, &lines[0]["torrents"]), (0, &json!(1)), "{lines:?}");
    let (_, code) = run(&["export", &text(&file), "--state", &text(&first)]);
    assert_eq!(code, 1, "it is there already");

    // Other inodes, in another folder.
    let moved = sample.folder.path().join("moved");
    copy(&sample.data, &moved);
    let map = format!("{data}={}", text(&moved));
    let (lines, code) = import("gyre", &file, &second, &["--map", &map]);
    assert_eq!(
        (code, &lines[0]["as_it_was"]),
        (0, &json!(true)),
        "{lines:?}"
    );
    seeds(&sample, &second, 0);
}
