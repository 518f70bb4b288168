//! Torrents made to break whoever opens them (HOSTILE.md T1–T13), given to the whole command. What a parser alone has
//! to do with them is in `tests/metainfo.rs` and beside the parsers.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::common::World;
use crate::support::fake_peer::{Behaviour, Content, FakeSeeder};
use crate::support::program::command;
use crate::support::raw_peer::RawPeer;
use crate::support::sample::{noise, text};
use crate::support::{Gyre, Sample};
use crate::torrent_file::*;

const PIECE_LENGTH: u32 = 16_384;

fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

/// A refusal as the user must see it: two lines, exit code 1, no panic, nothing for a terminal to obey.
#[track_caller]
fn assert_refused(what: &str, output: &Output, part: &str) {
    let shown = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{what}: {shown}");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 2, "{what}: {shown}");
    assert!(lines[0].starts_with("error: "), "{what}: {shown}");
    assert!(lines[1].starts_with("hint: "), "{what}: {shown}");
    assert!(lines[0].contains(part), "{what}: no {part:?} in {shown}");
    assert!(!shown.contains('\u{1b}') && !shown.contains('\u{202e}'));
}

/// `info` of a single file, each value replaceable.
fn single(change: &[(&'static str, Option<Vec<u8>>)]) -> Vec<u8> {
    let mut info = vec![
        ("length", i(20_000)),
        ("name", s("n")),
        ("piece length", i(16_384)),
        ("pieces", s([7; 40])),
    ];
    for (key, value) in change {
        let at = info.iter().position(|(present, _)| present == key).unwrap();
        match value {
            Some(value) => info[at].1.clone_from(value),
            None => drop(info.remove(at)),
        }
    }
    around(&info)
}

fn malformed() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = single(&[]);
    let twice = around(&[("name", s("a")), ("length", i(1)), ("name", s("b"))]);
    let minus = Entry::file(&[b"a"], []);
    let mut negative = info_of(b"n", &[minus], 16_384);
    negative[0].1 = l(&[d(&[("length", i(-5)), ("path", l(&[s("a")]))])]);
    let mut overflow = negative.clone();
    let huge = |name| d(&[("length", i(i64::MAX)), ("path", l(&[s(name)]))]);
    overflow[0].1 = l(&[huge("a"), huge("b"), huge("c")]);
    let v2 = [
        ("file tree", d(&[])),
        ("meta version", i(2)),
        ("name", s("n")),
        ("piece length", i(16_384)),
    ];
    let changed = |key, value: Vec<u8>| single(&[(key, Some(value))]);
    let name_end = good.windows(4).position(|four| four == b"name").unwrap();
    vec![
        ("T1 lists", b"l".repeat(1_000_000), "deep"),
        ("T1 dictionaries", b"d1:a".repeat(1_000_000), "deep"),
        ("T3 string", b"d99999999999:".to_vec(), "byte 1"),
        ("T3 minus zero", b"d1:ai-0ee".to_vec(), "byte 4"),
        ("T3 leading zero", b"d1:ai00ee".to_vec(), "byte 4"),
        (
            "T3 too big",
            b"d1:ai9223372036854775808ee".to_vec(),
            "byte 4",
        ),
        ("T3 cut off", good[..name_end].to_vec(), "byte"),
        ("T3 empty", Vec::new(), "byte 0"),
        ("T4 duplicate", twice, "twice"),
        (
            "T5 missing",
            single(&[("piece length", None)]),
            "piece length",
        ),
        ("T5 zero", changed("piece length", i(0)), "piece length"),
        (
            "T5 negative",
            changed("piece length", i(-1)),
            "piece length",
        ),
        (
            "T5 too long",
            changed("piece length", i((512 << 20) + 1)),
            "piece length",
        ),
        ("T6 no multiple of 20", changed("pieces", s([7; 39])), "39"),
        (
            "T6 too few",
            changed("pieces", s([7; 20])),
            "need 2 hashes, but there are 1",
        ),
        (
            "T6 too many",
            changed("pieces", s([7; 80])),
            "need 2 hashes, but there are 4",
        ),
        ("T7 negative", around(&negative), "-5"),
        ("T7 overflow", around(&overflow), "length"),
        ("T7 nothing", changed("length", i(0)), "no byte"),
        ("T13 v2 of nothing", around(&v2), "no byte"),
        ("no torrent", b"<html>\x1b[2J".to_vec(), "byte 0"),
    ]
}

#[test]
fn malformed_torrents_are_one_line_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.torrent");
    let (torrent, out) = (text(&path), text(&folder.path().join("out")));
    for (what, bytes, part) in malformed() {
        std::fs::write(&path, bytes).unwrap();
        assert_refused(what, &run(&["info", &torrent]), part);
        let download = run(&[
            "download", &torrent, "-o", &out, "--state", &out, "--port", "0",
        ]);
        assert_refused(what, &download, part);
        assert_refused(what, &run(&["verify", &torrent, "--data", "."]), part);
        assert_refused(what, &run(&["magnet", &torrent]), part);
    }
}

#[test]
fn unknown_versions_and_trailing_bytes_are_warnings_and_hybrids_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.torrent");
    let file = d(&[("length", i(20_000)), ("pieces root", s([7; 32]))]);
    let hybrid = around(&[
        ("file tree", d(&[("n", d(&[("", file)]))])),
        ("length", i(20_000)),
        ("meta version", i(2)),
        ("name", s("n")),
        ("piece length", i(16_384)),
        ("pieces", s([7; 40])),
    ]);
    for bytes in [hybrid, [single(&[]), b"\r\njunk".to_vec()].concat()] {
        std::fs::write(&path, bytes).unwrap();
        let output = run(&["info", &text(&path), "--json"]);
        assert!(output.status.success());
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(shown["pieces"], 2);
    }
}

/// Runs with an address space of so many KiB.
fn run_within(kib: u32, arguments: &[&str]) -> Output {
    let program = command().get_program().to_owned();
    Command::new("sh")
        .args(["-c", &format!("ulimit -v {kib}; exec \"$0\" \"$@\"")])
        .arg(program)
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_huge_torrent_is_refused_without_the_memory_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.torrent");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    let output = run_within(400_000, &["info", &text(&path)]);
    assert_refused("T2 1 TiB", &output, "larger than 64 MiB");
    // As many tokens as fit.
    let mut tokens = b"l".to_vec();
    tokens.extend(b"le".repeat(31 << 20));
    std::fs::write(&path, &tokens).unwrap();
    let output = run_within(400_000, &["info", &text(&path)]);
    assert_refused("T2 tokens", &output, "more than 3000000 values");
    let mut deep = vec![b'l'; 63 << 20];
    deep.push(b'e');
    std::fs::write(&path, &deep).unwrap();
    let output = run_within(400_000, &["info", &text(&path)]);
    assert_refused("T1 64 MiB of lists", &output, "deep");
}

/// All paths below a folder, links not followed.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if !path.is_symlink() && path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Downloads from an honest seeder; the folder it went to.
fn download(sample: &Sample, content: &Content) -> PathBuf {
    let seeder = FakeSeeder::start(content, Behaviour::honest(21));
    let out = sample.dir("out");
    let (state, peer) = (text(&sample.dir("state")), seeder.addr.to_string());
    let (torrent, folder) = (text(&sample.torrent), text(&out));
    let mut gyre = Gyre::start(&[
        "download", &torrent, "-o", &folder, "--state", &state, "--peer", &peer, "--port", "0",
    ]);
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    out
}

#[test]
fn hostile_paths_are_written_inside_the_folder_each_to_a_file_of_its_own() {
    let long = vec![b'x'; 300];
    let longer = [&long[..], b"y"].concat();
    let paths: Vec<Vec<&[u8]>> = vec![
        vec![b"..", b"..", b"up"],
        vec![b"/etc/passwd"],
        vec![b"a/../../up"],
        vec![b"c:\\windows\\x"],
        vec![b"nul\0byte"],
        vec![b"line\nfeed\x1b[2J"],
        vec!["gpj\u{202e}exe".as_bytes()],
        vec![],
        vec![b""],
        vec![b"."],
        vec![b".."],
        vec![&long],
        vec![&longer],
        vec![b"bad\xff\xfeutf8"],
        vec![b"same"],
        vec![b"same"],
        vec![b"SAME"],
        vec![b"both"],
        vec![b"both", b"below"],
        vec![b".gyre-parts"],
    ];
    let entries: Vec<Entry> = paths
        .iter()
        .zip(1..)
        .map(|(path, seed)| Entry::file(path, noise(3_000, seed)))
        .collect();
    let (sample, content) = multi(b"..", &entries, PIECE_LENGTH);
    let before = walk(sample.folder.path());
    let out = download(&sample, &content);
    let state = sample.dir("state");
    let is_elsewhere = |path: &&PathBuf| {
        !path.starts_with(&out) && !path.starts_with(&state) && !before.contains(path)
    };
    let all = walk(sample.folder.path());
    assert_eq!(all.iter().find(is_elsewhere), None, "written outside");
    // Every file once, with its own bytes, under one folder with a harmless name.
    let mut found: Vec<Vec<u8>> = Vec::new();
    for path in walk(&out.join("__")) {
        let name = path.to_str().expect("UTF-8");
        assert!(!name.chars().any(char::is_control) && !name.contains('\u{202e}'));
        found.push(std::fs::read(&path).unwrap());
    }
    let mut expected: Vec<Vec<u8>> = entries.into_iter().map(|entry| entry.bytes).collect();
    found.sort();
    expected.sort();
    assert!(found == expected, "{} files", found.len());
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
    let verify = run(&["verify", &text(&sample.torrent), "--data", &text(&out)]);
    assert_eq!(
        verify.status.code(),
        Some(0),
        "the same names are found again"
    );
}

#[test]
fn a_path_too_long_for_the_system_is_a_clear_error() {
    let deep: Vec<&[u8]> = vec![b"abc"; 2_000];
    let (sample, _) = multi(b"n", &[Entry::file(&deep, [1; 10])], PIECE_LENGTH);
    let (torrent, out) = (text(&sample.torrent), text(&sample.dir("out")));
    let output = run(&[
        "download", &torrent, "-o", &out, "--state", &out, "--port", "0",
    ]);
    assert_refused("T9", &output, "longer than 4095 bytes");
    assert_eq!(std::fs::read_dir(sample.dir("out")).unwrap().count(), 0);
}

/// Whether a download into a folder with such a link ends with an error, and what then lies at the link's end.
fn download_over_link(link: &str, to: &Path, is_dir: bool) -> (Sample, Content) {
    let entries = [
        Entry::file(&[b"one"], noise(20_000, 1)),
        Entry::file(&[b"folder", b"two"], noise(20_000, 2)),
    ];
    let (sample, content) = multi(b"root", &entries, PIECE_LENGTH);
    let out = sample.dir("out");
    let link = out.join(link);
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    if is_dir {
        std::fs::create_dir_all(to).unwrap();
    } else {
        std::fs::write(to, b"precious").unwrap();
    }
    symlink(to, &link).unwrap();
    (sample, content)
}

#[test]
fn a_link_that_leads_out_of_the_folder_is_never_written_through() {
    for (link, is_dir) in [("root", true), ("root/one", false), ("root/folder", true)] {
        let elsewhere = tempfile::tempdir().unwrap();
        let victim = elsewhere.path().join("victim");
        let (sample, content) = download_over_link(link, &victim, is_dir);
        let seeder = FakeSeeder::start(&content, Behaviour::honest(22));
        let output = run(&[
            "download",
            &text(&sample.torrent),
            "-o",
            &text(&sample.dir("out")),
            "--state",
            &text(&sample.dir("state")),
            "--peer",
            &seeder.addr.to_string(),
            "--port",
            "0",
            "--give-up",
            "20s",
        ]);
        let shown = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{link}: {shown}");
        assert!(shown.contains("error: "), "{link}: {shown}");
        match is_dir {
            true => assert_eq!(walk(&victim), Vec::<PathBuf>::new(), "{link}"),
            false => assert_eq!(std::fs::read(&victim).unwrap(), b"precious", "{link}"),
        }
    }
}

#[test]
fn a_link_that_stays_inside_the_folder_is_followed() {
    let (sample, content) = download_over_link("root/folder", Path::new("/nowhere"), true);
    let link = sample.dir("out").join("root/folder");
    std::fs::remove_file(&link).unwrap();
    let inside = sample.dir("out").join("other");
    std::fs::create_dir_all(&inside).unwrap();
    symlink("../other", &link).unwrap();
    download(&sample, &content);
    assert_eq!(std::fs::read(inside.join("two")).unwrap(), noise(20_000, 2));
}

#[test]
fn links_of_a_torrent_lead_to_its_own_files_or_are_left_out() {
    let entries = [
        Entry::file(&[b"one"], noise(20_000, 1)),
        Entry::link(&[b"good"], &[b"one"]),
        Entry::link(&[b"up"], &[b"..", b"..", b"..", b"etc", b"passwd"]),
        Entry::link(&[b"absolute"], &[b"/etc/passwd"]),
        Entry::link(&[b"nothing"], &[b"missing"]),
        Entry::link(&[b"itself"], &[b"itself"]),
    ];
    let (sample, content) = multi(b"root", &entries, PIECE_LENGTH);
    let root = download(&sample, &content).join("root");
    let inside = std::fs::canonicalize(&root).unwrap();
    for path in walk(&root) {
        let end = std::fs::canonicalize(&path).expect("no link leads nowhere");
        assert!(end.starts_with(&inside), "{} leads out", path.display());
    }
    assert_eq!(std::fs::read(root.join("good")).unwrap(), noise(20_000, 1));
}

#[test]
fn pad_files_are_zeros_never_written_and_still_served() {
    let entries = [
        Entry::file(&[b"a"], noise(5_000, 1)),
        Entry::pad(16_384 - 5_000),
        Entry::file(&[b"b"], noise(30_000, 2)),
        Entry::pad(2 * 16_384 - 30_000),
    ];
    let (sample, content) = multi(b"root", &entries, PIECE_LENGTH);
    let out = download(&sample, &content);
    let written = walk(&out.join("root"));
    assert_eq!(written, [out.join("root/a"), out.join("root/b")]);
    let seeding = Sample {
        data: out,
        ..sample
    };
    let world = World::seed(seeding, &[]);
    let mut peer = RawPeer::dial(world.addr, content.info_hash);
    peer.get_unchoked();
    for piece in 0..3 {
        let got = peer.fetch(piece, 0, PIECE_LENGTH);
        assert!(
            got == content.block(piece, 0, PIECE_LENGTH).unwrap(),
            "{piece}"
        );
    }
    // A range of pad bytes alone.
    assert_eq!(peer.fetch(0, 6_000, 9_000), vec![0; 9_000]);
}

#[test]
fn a_piece_that_wants_other_bytes_than_zeros_of_a_pad_is_never_had() {
    // Hashed as a whole, and hashed as it comes.
    for (piece_length, buffers) in [(PIECE_LENGTH, "16MiB"), (4 << 20, "4MiB")] {
        let length = piece_length as usize;
        let odd = Entry {
            bytes: vec![7; 5_000],
            ..Entry::pad(5_000)
        };
        let entries = [
            Entry::file(&[b"a"], noise(length - 5_000, 1)),
            odd,
            Entry::file(&[b"b"], noise(length, 2)),
        ];
        let (sample, content) = multi(b"root", &entries, piece_length);
        let seeder = FakeSeeder::start(&content, Behaviour::honest(22));
        let out = sample.dir("out");
        let (state, peer) = (text(&sample.dir("state")), seeder.addr.to_string());
        let (torrent, folder) = (text(&sample.torrent), text(&out));
        let mut gyre = Gyre::start(&[
            "download",
            &torrent,
            "-o",
            &folder,
            "--state",
            &state,
            "--peer",
            &peer,
            "--port",
            "0",
            "--buffers",
            buffers,
        ]);
        let error = gyre.event("error");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("piece 0") && message.contains("pad"),
            "{message}"
        );
        assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 1);
        let named = |name: &str| gyre.seen().iter().filter(|e| e["event"] == name).count();
        assert_eq!((named("complete"), named("banned")), (0, 0));
        assert_eq!(
            walk(&out.join("root")),
            [out.join("root/a"), out.join("root/b")]
        );
        // All of it, pads as the torrent has them: what would be served for them is zeros.
        let full = sample.dir("full");
        for entry in &entries {
            let path = entry
                .path
                .iter()
                .map(|element| std::str::from_utf8(element).unwrap());
            let path = full.join("root").join(path.collect::<PathBuf>());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &entry.bytes).unwrap();
        }
        let full = text(&full);
        let verify = run(&["verify", &torrent, "--data", &full, "--json"]);
        assert_eq!(verify.status.code(), Some(3));
        let mut seed = Gyre::start(&[
            "seed", &torrent, "--data", &full, "--state", &state, "--port", "0",
        ]);
        let figures = seed.wait_for("seeding", |event| event["state"] == "seeding");
        assert_eq!(figures["pieces_have"], content.piece_count() - 1);
    }
}

#[test]
fn a_wrong_byte_sent_for_a_pad_is_a_bad_piece_like_any_other() {
    // What a peer sends for a pad counts in the hash: a wrong byte there makes a bad piece, and a good copy is taken.
    let entries = [
        Entry::file(&[b"a"], noise(5_000, 1)),
        Entry::pad(16_384 - 5_000),
        Entry::file(&[b"b"], noise(30_000, 2)),
    ];
    let (sample, content) = multi(b"root", &entries, PIECE_LENGTH);
    let mut bad = content.clone();
    let mut bytes = content.bytes.to_vec();
    bytes[6_000] = 1;
    bad.bytes = bytes.into();
    let liar = FakeSeeder::start(&bad, Behaviour::honest(23));
    let honest = FakeSeeder::start(&content, Behaviour::honest(24));
    let out = sample.dir("out");
    let (state, folder) = (text(&sample.dir("state")), text(&out));
    let (liar, honest) = (liar.addr.to_string(), honest.addr.to_string());
    let torrent = text(&sample.torrent);
    let mut gyre = Gyre::start(&[
        "download", &torrent, "-o", &folder, "--state", &state, "--port", "0", "--peer", &liar,
        "--peer", &honest,
    ]);
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    let verify = run(&["verify", &torrent, "--data", &folder, "-q"]);
    assert_eq!(verify.status.code(), Some(0));
}

#[test]
fn a_link_to_nothing_makes_no_two_names_of_one_file() {
    for preallocate in ["none", "sparse", "full"] {
        for (link, target) in [("a", "b"), ("b", "a")] {
            let entries = [
                Entry::file(&[b"a"], noise(40_000, 1)),
                Entry::file(&[b"b"], noise(40_000, 2)),
            ];
            let (sample, content) = multi(b"root", &entries, PIECE_LENGTH);
            let seeder = FakeSeeder::start(&content, Behaviour::honest(25));
            let out = sample.dir("out");
            std::fs::create_dir(out.join("root")).unwrap();
            symlink(target, out.join("root").join(link)).unwrap();
            let output = run(&[
                "download",
                &text(&sample.torrent),
                "-o",
                &text(&out),
                "--state",
                &text(&sample.dir("state")),
                "--port",
                "0",
                "--no-trackers",
                "--peer",
                &seeder.addr.to_string(),
                "--preallocate",
                preallocate,
                "--give-up",
                "10s",
            ]);
            assert_refused(preallocate, &output, "one file");
        }
    }
}

#[test]
fn a_torrent_with_unsorted_keys_is_the_swarm_of_its_raw_bytes() {
    let bytes = noise(50_000, 3);
    let info = [
        ("pieces", s(hashes(&bytes, PIECE_LENGTH))),
        ("name", s("n")),
        ("piece length", i(PIECE_LENGTH.into())),
        ("length", i(50_000)),
    ];
    let (sample, content) = write(&info, bytes.clone(), PIECE_LENGTH);
    let out = download(&sample, &content);
    assert!(std::fs::read(out.join("n")).unwrap() == bytes);
}

#[test]
fn no_text_of_a_torrent_reaches_a_terminal_as_it_is() {
    let nasty = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\n\u{202e}txt\u{85}\u{2066}";
    let entries = [
        Entry::file(&[nasty.as_bytes(), nasty.as_bytes()], [1; 10]),
        Entry::file(&[nasty.as_bytes()], [2; 10]),
    ];
    let (sample, _) = multi(nasty.as_bytes(), &entries, PIECE_LENGTH);
    let info = info_of(nasty.as_bytes(), &entries, PIECE_LENGTH);
    let url = format!("http://127.0.0.1:1/{nasty}");
    let tiers = l(&[l(&[s(&url)]), l(&[s(nasty)]), l(&[s("udp://127.0.0.1:1/")])]);
    let whole = d(&[
        ("announce-list", tiers),
        ("comment", s(nasty)),
        ("created by", s(nasty)),
        ("info", d(&info)),
        ("url-list", l(&[s(&url)])),
    ]);
    std::fs::write(&sample.torrent, whole).unwrap();
    let (torrent, out) = (text(&sample.torrent), text(&sample.dir("out")));
    let session = ["--state", &out, "--port", "0", "--give-up", "2s", "-vvv"];
    let download = ["download", &torrent, "-o", &out];
    for arguments in [
        vec!["info", &torrent],
        vec!["magnet", &torrent],
        vec!["verify", &torrent, "--data", &out],
        vec!["download", &torrent, "-o", &out, "--list"],
        [&download[..], &session].concat(),
        [&download[..], &session, &["--json"]].concat(),
        [&download[..], &session, &["--select", "nothing*"]].concat(),
        [&["seed", &torrent, "--data", &out][..], &session].concat(),
    ] {
        let output = run(&arguments);
        for bytes in [&output.stdout, &output.stderr] {
            let shown = String::from_utf8(bytes.clone()).unwrap();
            let is_bad = |c: char| {
                (c.is_control() && c != '\n' && c != '\t')
                    || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            };
            assert!(!shown.contains(is_bad), "{arguments:?}: {shown:?}");
            assert!(!shown.contains("panicked"), "{shown}");
        }
    }
}

#[test]
fn two_files_of_a_torrent_are_never_one_file_on_disk() {
    let entries = [
        Entry::file(&[b"a"], noise(20_000, 1)),
        Entry::file(&[b"b"], noise(20_000, 2)),
    ];
    let hard = |a: &Path, b: &Path| std::fs::hard_link(a, b).unwrap();
    let soft = |_: &Path, b: &Path| symlink("a", b).unwrap();
    type Link<'a> = &'a dyn Fn(&Path, &Path);
    let ways: [Link<'_>; 2] = [&hard, &soft];
    for link in ways {
        let (sample, content) = multi(b"root", &entries, PIECE_LENGTH);
        let root = sample.dir("out").join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("a"), noise(20_000, 3)).unwrap();
        link(&root.join("a"), &root.join("b"));
        let seeder = FakeSeeder::start(&content, Behaviour::honest(23));
        let (torrent, out) = (text(&sample.torrent), text(&sample.dir("out")));
        let (state, peer) = (text(&sample.dir("state")), seeder.addr.to_string());
        let output = run(&[
            "download",
            &torrent,
            "-o",
            &out,
            "--state",
            &state,
            "--peer",
            &peer,
            "--port",
            "0",
            "--give-up",
            "20s",
        ]);
        assert_refused("T10", &output, "one file");
        assert!(std::fs::read(root.join("a")).unwrap() == noise(20_000, 3));
    }
}
