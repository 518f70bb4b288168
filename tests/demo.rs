//! `gyre demo` from start to end, and what is left of it when it is not let to the end: nothing.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::program::{PATIENCE, command};
use tempfile::TempDir;

/// The demo with a folder for temporary files of its own, in which nothing else is.
fn demo(arguments: &[&str]) -> (Command, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command();
    command
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", folder.path());
    command.stdin(Stdio::null());
    (command, folder)
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// Processes started by `parent` that still run, as numbers and command lines.
fn children(parent: u32) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // State and parent stand behind the name, which is in parentheses.
        let mut fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let is_zombie = fields.next() == Some("Z");
        if !is_zombie && fields.next() == Some(&parent.to_string()) {
            let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, line.replace('\0', " ")));
        }
    }
    found
}

/// Reads the demo's lines until it is sharing, with both leechers at work; the rest of its stdout.
fn read_until_sharing(child: &mut Child) -> BufReader<ChildStdout> {
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut all = String::new();
    loop {
        let mut line = String::new();
        assert!(
            lines.read_line(&mut line).unwrap() > 0,
            "it ended early: {all}"
        );
        all += &line;
        if line.contains("leecher 2") && !line.contains("leecher 2 0%") {
            return lines;
        }
    }
}

fn wait_gone(pids: &[(i32, String)]) {
    let deadline = Instant::now() + PATIENCE;
    for (pid, line) in pids {
        while kill(Pid::from_raw(*pid), None).is_ok() {
            assert!(Instant::now() < deadline, "still there: {line}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_demo_shares_verifies_and_leaves_nothing_behind() {
    let (mut command, folder) = demo(&["--size", "8MiB"]);
    // What the caller has set for himself does not reach the programs of the demo.
    command
        .env("GYRE_LIMIT_DOWN", "1")
        .env("http_proxy", "http://127.0.0.1:1");
    let output = command.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    assert_eq!(stderr, "");
    assert!(is_empty(folder.path()));
    for expected in [
        "a tracker, a seeder and two leechers in ",
        "made 8 MiB of sample data",
        "made the torrent",
        " | tracker 3 peers | seeder sent ",
        "verified both copies: all pieces are good",
        "leecher 1  fetched 8.00 MiB in ",
        "leecher 2  fetched 8.00 MiB in ",
        "seeder     sent ",
        "tracker    answered ",
        "everything is cleaned up",
    ] {
        assert!(stdout.contains(expected), "no {expected:?} in {stdout}");
    }
    let shares = stdout
        .lines()
        .find(|line| line.starts_with("The seeder sent"))
        .unwrap();
    let mut figures = shares
        .split_whitespace()
        .filter_map(|word| word.parse::<f64>().ok());
    let (sent, traded) = (figures.next().unwrap(), figures.next().unwrap());
    assert!((1.0..1.9).contains(&sent), "the leechers traded: {shares}");
    assert!(traded > 0.1, "the leechers traded: {shares}");
}

#[test]
fn a_quiet_demo_says_nothing() {
    let (mut command, folder) = demo(&["--size", "1MiB", "-q"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
    assert!(is_empty(folder.path()));
}

#[test]
fn a_signal_in_the_middle_leaves_nothing_behind() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let (mut command, folder) = demo(&["--size", "100MiB"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut rest = read_until_sharing(&mut child);
        let programs = children(child.id());
        assert_eq!(programs.len(), 4, "{programs:#?}");
        assert!(!is_empty(folder.path()));
        let sent_at = Instant::now();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let mut last = String::new();
        rest.read_to_string(&mut last).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(sent_at.elapsed() < Duration::from_secs(10));
        assert!(
            last.ends_with("stopped, and everything is cleaned up\n"),
            "{last}"
        );
        assert!(is_empty(folder.path()));
        wait_gone(&programs);
    }
}

#[test]
fn a_program_that_dies_ends_the_demo_and_leaves_nothing_behind() {
    let (mut command, folder) = demo(&["--size", "100MiB"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let rest = read_until_sharing(&mut child);
    let programs = children(child.id());
    let is_seeder = |program: &&(i32, String)| program.1.contains(" seed ");
    let (seeder, _) = programs.iter().find(is_seeder).unwrap();
    kill(Pid::from_raw(*seeder), Signal::SIGKILL).unwrap();
    std::thread::spawn(move || BufReader::new(rest).lines().for_each(drop));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.starts_with("error: the seeder was killed by signal 9\nhint: "),
        "{stderr}"
    );
    assert!(is_empty(folder.path()));
    wait_gone(&programs);
}

#[test]
fn a_demo_that_cannot_be_says_why() {
    let (mut late, folder) = demo(&["--size", "100MiB", "--deadline", "2s"]);
    let output = late.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("after 2 s\nhint: give it more time with --deadline"),
        "{stderr}"
    );
    assert!(is_empty(folder.path()));
    let (mut huge, _folder) = demo(&["--size", "16000000TiB"]);
    let output = huge.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("free, the demo needs "), "{stderr}");
    let (mut small, _folder) = demo(&["--size", "1KiB"]);
    assert_eq!(small.output().unwrap().status.code(), Some(2));
    let (mut lost, _folder) = demo(&[]);
    let output = lost.env("TMPDIR", "/nowhere/at/all").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.starts_with("error: cannot make a folder in /nowhere/at/all: "),
        "{stderr}"
    );
}
