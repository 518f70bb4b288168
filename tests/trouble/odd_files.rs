//! What lies in a file's place and is none: named pipes, folders, links that lead out (HOSTILE.md T11).

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::support::{Gyre, Sample, machine, sample::text};
use super::{assert_fails, download, seed, start};

const LIMIT: Duration = Duration::from_secs(20);
const PIECE: u32 = 16_384;

/// Files of five pieces each, so that most pieces touch one file alone.
fn tree() -> Sample {
    let files = [
        ("good", 81_920),
        ("pipe", 81_920),
        ("folder", 81_920),
        ("link", 81_920),
        ("empty", 0),
        ("inside", 81_920),
        ("last", 81_920),
    ];
    Sample::tree(&files, PIECE, &[])
}

/// A copy in which `pipe`, `folder`, `link` and `empty` are no files, and `inside` is a link that stays inside.
fn spoilt(sample: &Sample) -> PathBuf {
    let data = sample.dir("copy");
    let root = data.join("sample");
    std::fs::create_dir(&root).unwrap();
    for name in ["good", "inside", "last"] {
        std::fs::copy(sample.content.join(name), root.join(name)).unwrap();
    }
    pipe(&root.join("pipe"));
    pipe(&root.join("empty"));
    std::fs::create_dir(root.join("folder")).unwrap();
    symlink(sample.content.join("link"), root.join("link")).unwrap();
    std::fs::rename(root.join("inside"), root.join("real")).unwrap();
    symlink("real", root.join("inside")).unwrap();
    data
}

fn pipe(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
}

fn verify(sample: &Sample, data: &Path) -> (i32, Value) {
    let arguments = ["verify", &text(&sample.torrent), "--data", &text(data)];
    let mut command = Gyre::start(&arguments);
    let verdict = command.wait_for_within("verdict", LIMIT, |_| true);
    (command.wait_exit(LIMIT), verdict)
}

/// A name and what makes a file of that kind at a path.
type Case = (&'static str, fn(&Path));

#[test]
fn verify_names_what_is_no_file_or_lies_elsewhere_and_opens_none_of_it() {
    let sample = tree();
    let data = spoilt(&sample);
    for given in [data.clone(), data.join("sample")] {
        let (code, verdict) = verify(&sample, &given);
        assert_eq!(code, 3);
        let files = verdict["files"].as_array().unwrap();
        let of = |name: &str| {
            let path = format!("sample/{name}");
            let file = files.iter().find(|file| file["path"] == path.as_str());
            let file = file.unwrap();
            (file["state"].as_str().unwrap(), file["why"].to_string())
        };
        assert!(of("pipe").1.contains("pipe"), "{verdict}");
        assert!(of("empty").1.contains("pipe"), "{verdict}");
        assert!(of("folder").1.contains("folder"), "{verdict}");
        assert!(of("link").1.contains("leads out"), "{verdict}");
        for name in ["pipe", "empty", "folder", "link"] {
            assert_eq!(of(name).0, "unreadable", "{name}");
        }
        for name in ["good", "inside", "last"] {
            assert_eq!(of(name), ("good", "null".to_owned()), "{name}");
        }
        assert_eq!(verdict["pieces_have"], 15);
    }
}

#[test]
fn a_seed_does_without_what_is_no_file_and_serves_the_rest() {
    let sample = tree();
    let data = spoilt(&sample);
    for check in ["auto", "full", "none"] {
        let mut seeder = start(seed(&sample, &data, &["--no-trackers", "--check", check]));
        let figures = seeder.wait_for("seeding", |event| event["state"] == "seeding");
        assert_eq!(figures["pieces_have"], 15, "{check}");
        let warnings = seeder.seen().iter();
        let warnings = warnings.filter(|event| event["event"] == "warning");
        let warnings: Vec<&str> = warnings.map(|w| w["message"].as_str().unwrap()).collect();
        for (name, why) in [
            ("sample/pipe", "named pipe"),
            ("sample/empty", "named pipe"),
            ("sample/folder", "folder"),
            ("sample/link", "leads out"),
        ] {
            let named = warnings.iter().filter(|message| message.contains(name));
            let named: Vec<_> = named.collect();
            assert_eq!(named.len(), 1, "{name}: {warnings:?}");
            assert!(named[0].contains(why), "{named:?}");
        }
        assert_eq!(seeder.stderr(), "");
        seeder.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(seeder.wait_exit(LIMIT), 143);
    }
}

#[test]
fn a_download_names_what_is_no_file_once_and_leaves_it_alone() {
    let sample = Sample::tree(&[("a", PIECE as usize), ("b", 4 << 20)], PIECE, &[]);
    let cases: [Case; 3] = [
        ("pipe", pipe),
        ("folder", |path| std::fs::create_dir(path).unwrap()),
        ("leads out", |path| symlink("/etc/hostname", path).unwrap()),
    ];
    for (why, put) in cases {
        let out = sample.dir(why);
        std::fs::create_dir(out.join("sample")).unwrap();
        machine::copy(&sample.content.join("a"), &out.join("sample/a"));
        let path = out.join("sample/b");
        put(&path);
        let command = || download(&sample, &out, &["--no-trackers"]);
        assert_fails(command(), 1, why, "");
        assert_fails(command(), 1, &text(&path), "");
        assert!(!std::fs::symlink_metadata(&path).unwrap().is_file());
        // Whoever does not ask for it is not troubled.
        let mut other = command();
        other.args(["--select", "0"]);
        let mut other = start(other);
        other.event("complete");
        assert_eq!(other.wait_exit(LIMIT), 0, "{}", other.stderr());
    }
}

#[test]
fn a_single_file_that_is_none_is_named() {
    let sample = Sample::file(300_000, PIECE, &[]);
    let cases: [Case; 3] = [
        ("pipe", pipe),
        ("folder", |path| std::fs::create_dir(path).unwrap()),
        ("leads out", |path| symlink("/etc/hostname", path).unwrap()),
    ];
    for (why, put) in cases {
        let data = sample.dir(why);
        put(&data.join("sample.bin"));
        assert_fails(seed(&sample, &data, &[]), 3, why, "folder");
        assert_fails(download(&sample, &data, &[]), 1, "sample.bin", "");
        let (code, verdict) = verify(&sample, &data);
        assert_eq!(code, 3);
        assert_eq!(verdict["files"][0]["state"], "unreadable", "{why}");
    }
}
