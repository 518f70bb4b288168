//! What is seen of a session: events, lines, bars, logs, and how it ends.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{download, gyre, run, run_all, seed};
use crate::support::program::{PATIENCE, command};
use crate::support::sample::text;
use crate::support::{Gyre, Sample};

fn seeder(sample: &Sample, more: &[&str]) -> (Gyre, String) {
    let mut seeder = Gyre::start(&seed(sample, more));
    let addr = seeder.listening().to_string();
    (seeder, addr)
}

#[test]
fn events_come_in_order_with_every_promised_field() {
    let sample = Sample::file(2_500_000, 65_536, &[]);
    let (_seeder, peer) = seeder(&sample, &["--limit-up", "1MB"]);
    let done = run_all(&download(
        &sample,
        &sample.dir("out"),
        &["--peer", &peer, "--json"],
    ));
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    let events: Vec<Value> = done
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let names: Vec<&str> = events
        .iter()
        .map(|e| e["event"].as_str().unwrap())
        .collect();
    assert_eq!(names[..3], ["listening", "listening", "metadata"]);
    assert_eq!(names[names.len() - 3..], ["complete", "progress", "ended"]);
    let is_progress = |event: &&serde_json::Value| event["event"] == "progress";
    let progress: Vec<_> = events.iter().filter(is_progress).collect();
    // One at the start, two while it takes two and a half seconds, one at the end.
    assert!((4..=6).contains(&progress.len()), "{names:?}");
    let last = progress.last().unwrap();
    let numbers = [
        ("have_bytes", 2_500_000),
        ("total_bytes", 2_500_000),
        ("downloaded_bytes", 2_500_000),
        ("uploaded_bytes", 0),
        ("total_downloaded_bytes", 2_500_000),
        ("total_uploaded_bytes", 0),
        ("pieces_have", 39),
        ("pieces", 39),
        ("peers", 0),
    ];
    for (field, expected) in numbers {
        assert_eq!(last[field], expected, "{field}");
    }
    for field in ["wasted_bytes", "down_bytes_per_s", "up_bytes_per_s"] {
        assert!(last[field].is_u64(), "{field}");
    }
    // It leaves.
    let is_seeding = |figures: &&&Value| figures["state"] == "seeding";
    assert_eq!(progress.iter().filter(is_seeding).count(), 0);
    assert_eq!(last["state"], "downloading");
    let complete = &events[events.len() - 3];
    assert_eq!(complete["info_hash"], last["info_hash"]);
    assert!(complete["seconds"].as_f64().unwrap() > 1.0);
}

#[test]
fn complete_is_told_at_once_and_before_seeding_on() {
    let sample = Sample::file(100_000, 16_384, &[]);
    let (_seeder, peer) = seeder(&sample, &[]);
    let options = ["--peer", &peer, "--seed"];
    let mut leech = Gyre::start(&download(&sample, &sample.dir("out"), &options));
    leech.event("complete");
    let next = leech.event("progress");
    assert_eq!(
        (&next["state"], &next["pieces_have"]),
        (&"seeding".into(), &7.into())
    );
    leech.signal(Signal::SIGINT);
    assert_eq!(leech.wait_exit(PATIENCE), 130);
}

#[test]
fn without_a_terminal_plain_lines_are_printed_and_nothing_with_quiet() {
    let sample = Sample::file(3_000_000, 65_536, &[]);
    let torrent = sample.folder.path().join("odd.torrent");
    let name = "odd\u{1b}[2J\nname";
    let create = [
        "create",
        "--name",
        name,
        "-o",
        &text(&torrent),
        &text(&sample.content),
    ];
    assert_eq!(gyre(&create).code, 0);
    let sample = Sample { torrent, ..sample };
    let arguments = super::seed_from(&sample, &sample.content, &[]);
    let mut seeder = Gyre::start(&arguments);
    let peer = seeder.listening().to_string();
    let options = ["--peer", &peer, "--limit-down", "2MB"];
    let done = run_all(&download(&sample, &sample.dir("out"), &options));
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    assert!(!done.stdout.contains(['\u{1b}', '\r']), "{:?}", done.stdout);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert!(lines[0].starts_with("listening on "), "{lines:?}");
    let name = "odd\\u{1b}[2J\\nname: ";
    assert!(
        lines[2..].iter().all(|line| line.starts_with(name)),
        "{lines:?}"
    );
    let last = lines.last().unwrap();
    assert!(
        last.contains("complete, 2.86 MiB") && last.contains("fetched in"),
        "{last}"
    );
    assert!(
        lines.iter().any(|line| line.ends_with(" downloading")),
        "{lines:?}"
    );
    let done = run_all(&download(
        &sample,
        &sample.dir("quiet"),
        &["--peer", &peer, "-q"],
    ));
    assert_eq!(
        (done.code, done.stdout.as_str(), done.stderr.as_str()),
        (0, "", "")
    );
}

#[test]
fn names_of_any_length_are_cut_wherever_people_read_them() {
    use gyre::wire::metainfo::MetainfoBuilder;
    let sample = Sample::file(100, 16_384, &[]);
    let name = |letter: &str| format!("{letter}\u{1b}[2J").repeat(2_500).into_bytes();
    let file = |letter| (vec![name(letter), name("deep"), b"z.flac".to_vec()], 9);
    let builder = MetainfoBuilder::new(name("n"), 16_384).files(vec![file("f"), file("g")]);
    let torrent = sample.folder.path().join("long.torrent");
    let (bytes, _) = builder.pieces(vec![7; 20]).build().unwrap();
    std::fs::write(&torrent, bytes).unwrap();
    let long = Sample { torrent, ..sample };
    let torrent = text(&long.torrent);
    let runs = [
        run_all(&download(&long, &long.dir("a"), &["--give-up", "0s"])),
        run_all(&download(&long, &long.dir("b"), &["--list"])),
        run_all(&download(&long, &long.dir("c"), &["--select", "no"])),
        run_all(&seed(&long, &[])),
        gyre(&["info", &torrent]),
        gyre(&["verify", &torrent, "--data", &text(&long.dir("d"))]),
    ];
    for done in runs {
        for line in done.stdout.lines().chain(done.stderr.lines()) {
            let start: String = line.chars().take(80).collect();
            assert!(line.chars().count() <= 520, "{start}");
            assert!(!line.contains('\u{1b}'));
        }
        assert!((done.stdout + &done.stderr).contains('…'));
    }
    let whole = gyre(&["info", &torrent, "--json"]).json();
    assert_eq!(whole["name"].as_str().unwrap().len(), 12_500);
}

#[test]
fn on_a_terminal_a_bar_is_redrawn_and_a_summary_stays() {
    let sample = Sample::file(3_000_000, 65_536, &[]);
    let (_seeder, peer) = seeder(&sample, &["--limit-up", "2MB"]);
    let arguments = download(&sample, &sample.dir("out"), &["--peer", &peer]);
    let quoted: Vec<String> = arguments.iter().map(|word| format!("'{word}'")).collect();
    let line = format!(
        "stty cols 70; exec '{}' {}",
        env!("CARGO_BIN_EXE_gyre"),
        quoted.join(" ")
    );
    let mut script = Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm");
    if Command::new("script").arg("--version").output().is_err() {
        println!("skipped: no script(1) here");
        return;
    }
    let done = run(script);
    assert_eq!(done.code, 0, "{}", done.stdout);
    assert!(
        done.stdout.contains('\u{1b}'),
        "not redrawn: {:?}",
        done.stdout
    );
    let bars: Vec<&str> = done
        .stdout
        .split(['\r', '\n'])
        .filter(|line| line.contains('↓'))
        .collect();
    assert!(bars.len() >= 2, "{bars:?}");
    assert!(
        bars.iter()
            .any(|bar| bar.contains("sample") && bar.contains('█')),
        "{bars:?}"
    );
    let last = done.stdout.lines().last().unwrap();
    assert!(last.contains("sample.bin: complete, 2.86 MiB"), "{last:?}");
}

#[test]
fn the_log_goes_where_it_is_sent() {
    let sample = Sample::file(100, 16_384, &[]);
    let log = sample.folder.path().join("log");
    let options = ["--seed-time", "0s", "-v", "--log-file", &text(&log)];
    let done = run_all(&seed(&sample, &options));
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    let before = std::fs::read_to_string(&log).unwrap();
    assert!(
        before.contains("INFO") && before.contains("listening"),
        "{before}"
    );
    run_all(&seed(&sample, &options));
    let after = std::fs::read_to_string(&log).unwrap();
    assert!(
        after.len() > before.len() && after.starts_with(&before),
        "appended"
    );
    let done = run_all(&seed(&sample, &["--seed-time", "0s", "-v", "--json"]));
    assert!(done.stderr.contains("listening"));
    assert!(done.stdout.lines().all(|line| line.starts_with('{')));
    let folder = text(sample.folder.path());
    let done = run_all(&seed(&sample, &["--log-file", &folder]));
    assert!(done.refusal(1).0.contains("log file"));
}

#[test]
fn signals_end_a_session_cleanly_with_their_exit_code() {
    let sample = Sample::file(100, 16_384, &[]);
    let cases = [
        (Signal::SIGINT, 130),
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 143),
    ];
    for (signal, code) in cases {
        let (mut seeder, _) = seeder(&sample, &[]);
        seeder.event("progress");
        seeder.signal(signal);
        assert_eq!(seeder.wait_exit(Duration::from_secs(10)), code, "{signal}");
        let last = seeder.seen().last().unwrap();
        assert_eq!(last["outcome"], "stopped");
    }
}

#[test]
fn a_closed_terminal_is_ignored_where_it_was_asked_to_be() {
    let sample = Sample::file(100, 16_384, &[]);
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        "trap '' HUP; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_gyre"),
    ]);
    shell.args(seed(&sample, &["--json"]));
    let mut seeder = Gyre::spawn(shell);
    seeder.event("progress");
    seeder.signal(Signal::SIGHUP);
    seeder.event("progress");
    seeder.event("progress");
    seeder.signal(Signal::SIGTERM);
    assert_eq!(seeder.wait_exit(Duration::from_secs(10)), 143);
}

#[test]
fn a_session_whose_reader_has_gone_ends_cleanly() {
    let sample = Sample::file(100, 16_384, &[]);
    let mut command = command();
    command.args(seed(&sample, &["--json"]));
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    // The pipe is closed now. Should nothing notice, this ends the test.
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(20));
        let _ = kill(pid, Signal::SIGKILL);
    });
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.starts_with("error: stopped: stdout is closed"),
        "{stderr}"
    );
    assert!(
        stderr.contains("hint: ") && !stderr.contains("panic"),
        "{stderr}"
    );
}
