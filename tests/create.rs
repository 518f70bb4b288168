//! `gyre create`: what comes out is what other programs make of the same data, byte for byte where it matters.

mod support;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use support::program;
use support::sample::{noise, text};
use tempfile::TempDir;

/// Runs `gyre create` in a folder.
fn create(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = program::command();
    command.current_dir(folder).arg("create").args(arguments);
    command.env("SOURCE_DATE_EPOCH", "1700000000");
    command.output().unwrap()
}

/// The object that a creation printed.
fn made(folder: &Path, arguments: &[&str]) -> Value {
    let output = create(folder, &[arguments, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Message and hint of a creation that must fail.
fn refused(folder: &Path, arguments: &[&str]) -> (String, String) {
    let output = create(folder, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = stderr.lines().collect();
    let [error, hint] = lines[..] else {
        panic!("not two lines: {stderr}");
    };
    let part = |line: &str, label| line.strip_prefix(label).unwrap().to_owned();
    (part(error, "error: "), part(hint, "hint: "))
}

/// A folder with these files of noise.
fn folder(files: &[(&str, usize)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (at, (path, bytes)) in files.iter().enumerate() {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, noise(*bytes, at as u64 + 1)).unwrap();
    }
    folder
}

/// A bencoded value; dictionaries must be sorted and free of duplicates, numbers and lengths without extra zeros.
#[derive(Debug, PartialEq)]
enum Item {
    Bytes(Vec<u8>),
    Number(i64),
    List(Vec<Item>),
    Dictionary(BTreeMap<Vec<u8>, Item>),
}

fn number(bytes: &[u8], at: &mut usize, end: u8) -> i64 {
    let length = bytes[*at..].iter().position(|byte| *byte == end).unwrap();
    let text = std::str::from_utf8(&bytes[*at..*at + length]).unwrap();
    let value: i64 = text.parse().unwrap();
    assert_eq!(value.to_string(), text, "canonical");
    *at += length + 1;
    value
}

fn string(bytes: &[u8], at: &mut usize) -> Vec<u8> {
    let length = number(bytes, at, b':') as usize;
    *at += length;
    bytes[*at - length..*at].to_vec()
}

fn item(bytes: &[u8], at: &mut usize) -> Item {
    let kind = bytes[*at];
    if kind.is_ascii_digit() {
        return Item::Bytes(string(bytes, at));
    }
    *at += 1;
    match kind {
        b'i' => Item::Number(number(bytes, at, b'e')),
        b'l' => {
            let mut list = Vec::new();
            while bytes[*at] != b'e' {
                list.push(item(bytes, at));
            }
            *at += 1;
            Item::List(list)
        }
        b'd' => {
            let mut entries = BTreeMap::new();
            while bytes[*at] != b'e' {
                let key = string(bytes, at);
                let last = entries.last_key_value().map(|(last, _)| last);
                assert!(last.is_none_or(|last| *last < key), "sorted");
                let value = item(bytes, at);
                entries.insert(key, value);
            }
            *at += 1;
            Item::Dictionary(entries)
        }
        _ => panic!("no bencode at {at}"),
    }
}

/// A .torrent as a dictionary.
fn decoded(path: &Path) -> BTreeMap<Vec<u8>, Item> {
    let bytes = std::fs::read(path).unwrap();
    let mut at = 0;
    let Item::Dictionary(entries) = item(&bytes, &mut at) else {
        panic!("no dictionary");
    };
    assert_eq!(at, bytes.len(), "nothing behind it");
    entries
}

fn bytes(text: &str) -> Item {
    Item::Bytes(text.as_bytes().to_vec())
}

fn keys(entries: &BTreeMap<Vec<u8>, Item>) -> Vec<String> {
    let keys = entries.keys();
    keys.map(|key| String::from_utf8_lossy(key).into_owned())
        .collect()
}

#[test]
fn everything_asked_for_is_in_the_torrent_as_canonical_bencode() {
    let folder = folder(&[("d/a", 40_000), ("d/b/c", 0), ("d/z", 1)]);
    let options = [
        "d",
        "-a",
        "http://a.example/announce",
        "-a",
        "udp://b.example:1/,http://c.example/x",
        "-w",
        "http://w.example/",
        "-w",
        "http://v.example/",
        "--private",
        "--comment",
        "two words",
        "--source",
        "S",
        "--name",
        "other",
        "--piece-length",
        "16KiB",
        "-o",
        "x.torrent",
    ];
    let made = made(folder.path(), &options);
    assert_eq!((&made["pieces"], &made["files"]), (&3.into(), &3.into()));
    let torrent = decoded(&folder.path().join("x.torrent"));
    let expected = [
        "announce",
        "announce-list",
        "comment",
        "created by",
        "creation date",
        "info",
        "url-list",
    ];
    assert_eq!(keys(&torrent), expected);
    assert_eq!(
        torrent[&b"announce"[..]],
        bytes("http://a.example/announce")
    );
    let tiers = vec![
        Item::List(vec![bytes("http://a.example/announce")]),
        Item::List(vec![
            bytes("udp://b.example:1/"),
            bytes("http://c.example/x"),
        ]),
    ];
    assert_eq!(torrent[&b"announce-list"[..]], Item::List(tiers));
    let seeds = vec![bytes("http://w.example/"), bytes("http://v.example/")];
    assert_eq!(torrent[&b"url-list"[..]], Item::List(seeds));
    assert_eq!(torrent[&b"comment"[..]], bytes("two words"));
    assert_eq!(torrent[&b"creation date"[..]], Item::Number(1_700_000_000));
    let Item::Dictionary(info) = &torrent[&b"info"[..]] else {
        panic!("no info");
    };
    assert_eq!(
        keys(info),
        [
            "files",
            "name",
            "piece length",
            "pieces",
            "private",
            "source"
        ]
    );
    assert_eq!(
        (&info[&b"name"[..]], &info[&b"private"[..]]),
        (&bytes("other"), &Item::Number(1))
    );
    let Item::List(files) = &info[&b"files"[..]] else {
        panic!("no files");
    };
    let paths: Vec<Vec<u8>> = files.iter().map(path_of).collect();
    assert_eq!(paths, [&b"a"[..], b"b/c", b"z"]);
}

fn path_of(file: &Item) -> Vec<u8> {
    let Item::Dictionary(file) = file else {
        panic!("no file");
    };
    let Item::List(path) = &file[&b"path"[..]] else {
        panic!("no path");
    };
    let element = |item: &Item| match item {
        Item::Bytes(bytes) => bytes.clone(),
        _ => panic!("no path element"),
    };
    path.iter().map(element).collect::<Vec<_>>().join(&b'/')
}

#[test]
fn the_same_data_gives_the_same_file_whatever_the_order_on_disk() {
    let names: Vec<String> = (0..200).map(|i| format!("d/{}/f{i:03}", i % 7)).collect();
    let files: Vec<(&str, usize)> = names
        .iter()
        .map(|name| (name.as_str(), name.len() * 99))
        .collect();
    let first = folder(&files);
    let second = tempfile::tempdir().unwrap();
    for name in names.iter().rev() {
        let copy = second.path().join(name);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(first.path().join(name), copy).unwrap();
    }
    for folder in [&first, &second] {
        assert_eq!(made(folder.path(), &["d"])["files"], 200);
    }
    let read = |folder: &TempDir| std::fs::read(folder.path().join("d.torrent")).unwrap();
    assert_eq!(read(&first), read(&second));
}

#[test]
fn piece_lengths_are_chosen_for_one_to_two_thousand_pieces_within_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let chosen = |mib: u64| {
        let path = folder.path().join("f");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(mib << 20).unwrap();
        let made = made(folder.path(), &["f", "-f"]);
        (
            made["piece_length_bytes"].as_u64().unwrap(),
            made["pieces"].as_u64().unwrap(),
        )
    };
    assert_eq!(chosen(1), (16 << 10, 64));
    for mib in [17, 100] {
        let (_, pieces) = chosen(mib);
        assert!((1_000..=2_048).contains(&pieces), "{mib} MiB: {pieces}");
    }
}

#[test]
fn what_makes_no_torrent_is_refused() {
    let folder = folder(&[("zero/a", 0), ("full/a", 10)]);
    let at = folder.path();
    std::fs::create_dir(at.join("empty")).unwrap();
    std::os::unix::fs::symlink("nowhere", at.join("broken")).unwrap();
    nix::unistd::mkfifo(&at.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let cases: [(&[&str], &str, &str); 7] = [
        (&["empty"], "holds no data", "byte"),
        (&["zero"], "holds no data", "byte"),
        (&["none"], "cannot read none", "path"),
        (&["broken"], "cannot read broken", "symbolic link"),
        (&["pipe"], "neither a file nor a folder", "folder"),
        (
            &["full", "-o", "no/x.torrent"],
            "cannot write no/x.torrent",
            "--output",
        ),
        (&["full", "-o", "full/a"], "there already", "--force"),
    ];
    for (arguments, message_part, hint_part) in cases {
        let (message, hint) = refused(at, arguments);
        assert!(message.contains(message_part), "{arguments:?}: {message}");
        assert!(hint.contains(hint_part), "{arguments:?}: {hint}");
    }
    assert_eq!(std::fs::read(at.join("full/a")).unwrap(), noise(10, 2));
}

#[test]
fn an_existing_torrent_is_replaced_only_when_forced_and_never_put_into_itself() {
    let folder = folder(&[("d/a", 100)]);
    let at = folder.path();
    let before = made(at, &["d", "-o", "d/d.torrent"]);
    assert!(
        refused(at, &["d", "-o", "d/d.torrent"])
            .0
            .contains("there already")
    );
    let output = create(at, &["d", "-o", "d/d.torrent", "--force", "-q"]);
    assert!(output.status.success());
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.starts_with("warning: d/d.torrent"), "{warning}");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        shown.contains(before["info_hash"].as_str().unwrap()),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 2, "info_hash and magnet link alone");
    assert_eq!(
        std::fs::read_dir(at.join("d")).unwrap().count(),
        2,
        "no leftovers"
    );
}

#[test]
fn links_are_followed_special_files_left_out_and_odd_names_kept() {
    let folder = folder(&[("d/a", 10), ("e/b", 20)]);
    let at = folder.path();
    std::os::unix::fs::symlink("../e", at.join("d/link")).unwrap();
    nix::unistd::mkfifo(&at.join("d/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"d/\xff\x1b[2J");
    std::fs::write(at.join(odd), "x").unwrap();
    let output = create(at, &["d"]);
    assert!(output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("d/pipe is no regular file"), "{stderr}");
    assert!(stderr.contains("d/\\xff\\u{1b}[2J"), "{stderr}");
    let torrent = decoded(&at.join("d.torrent"));
    let Item::Dictionary(info) = &torrent[&b"info"[..]] else {
        panic!("no info");
    };
    let Item::List(files) = &info[&b"files"[..]] else {
        panic!("no files");
    };
    let paths: Vec<Vec<u8>> = files.iter().map(path_of).collect();
    assert_eq!(paths, [&b"a"[..], b"link/b", b"\xff\x1b[2J"]);
}

#[test]
fn data_that_changes_while_it_is_hashed_makes_no_torrent() {
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};
    let folder = folder(&[("f", 64 << 20)]);
    let path = folder.path().join("f");
    let done = AtomicBool::new(false);
    let failed = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = std::fs::File::options().append(true).open(&path).unwrap();
            while !done.load(Ordering::Relaxed) {
                file.write_all(b"more").unwrap();
                std::thread::yield_now();
            }
        });
        let failed = refused(folder.path(), &["f"]);
        done.store(true, Ordering::Relaxed);
        failed
    });
    assert!(
        failed.0.contains("f changed while it was hashed"),
        "{}",
        failed.0
    );
    assert!(!folder.path().join("f.torrent").exists());
}

/// Shapes that every program must read alike.
fn shapes() -> Vec<(TempDir, PathBuf, Value)> {
    let many: Vec<String> = (0..200).map(|i| format!("many/{}/f{i}", i % 5)).collect();
    let mut many: Vec<(&str, usize)> = many
        .iter()
        .map(|name| (name.as_str(), name.len() * 31))
        .collect();
    many.extend([("many/zero", 0), ("many/one", 1), ("many/ünï/日本", 5_000)]);
    /// Root, files with lengths, piece length.
    type Tree<'a> = (&'a str, &'a [(&'a str, usize)], &'a str);
    let trees: [Tree<'_>; 4] = [
        ("file", &[("file", 300_000)], "16KiB"),
        ("last", &[("last", 32_769)], "32KiB"),
        (
            "tree",
            &[("tree/a", 70_000), ("tree/b/c", 1), ("tree/b/d", 0)],
            "64KiB",
        ),
        ("many", &many, "16KiB"),
    ];
    let shape = |(name, files, piece_length): &(&str, &[(&str, usize)], &str)| {
        let folder = folder(files);
        let options = [
            name,
            "-a",
            "http://t.example/announce",
            "--piece-length",
            piece_length,
        ];
        let made = made(folder.path(), &options);
        let torrent = folder.path().join(format!("{name}.torrent"));
        (folder, torrent, made)
    };
    trees.iter().map(shape).collect()
}

/// What a program says, or `None` when it is not installed.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(_) => {
            println!("skipped: {program} is not installed");
            None
        }
    }
}

#[test]
fn other_programs_read_the_torrents_and_agree_on_the_info_hash() {
    for (_folder, torrent, made) in shapes() {
        let hash = made["info_hash"].as_str().unwrap();
        for (program, option) in [("transmission-show", None), ("aria2c", Some("-S"))] {
            let torrent = text(&torrent);
            let arguments: Vec<&str> = option.into_iter().chain([torrent.as_str()]).collect();
            let said = said(program, &arguments);
            assert!(
                said.is_none_or(|said| said.to_lowercase().contains(hash)),
                "{program} {torrent}"
            );
        }
    }
}

/// The info_hash of a .torrent that libtorrent reads, and of one that it makes of the same data in the same order.
const LIBTORRENT: &str = "
import sys, libtorrent as lt
torrent, folder, length = sys.argv[1:]
read = lt.torrent_info(torrent)
files = lt.file_storage()
for index in range(read.files().num_files()):
    files.add_file(read.files().file_path(index), read.files().file_size(index))
made = lt.create_torrent(files, int(length), lt.create_torrent.v1_only)
lt.set_piece_hashes(made, folder)
made = lt.torrent_info(made.generate())
print(read.info_hashes().v1, made.info_hashes().v1)
";

#[test]
fn a_torrent_file_that_may_not_grow_is_an_error_and_not_the_end_of_the_process() {
    let folder = folder(&[("x", 100_000)]);
    let mut program = program::clean(Command::new("prlimit"));
    program.args([
        "--fsize=64",
        program::command().get_program().to_str().unwrap(),
    ]);
    program.args(["create", "x"]).current_dir(folder.path());
    let output = program.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("error: cannot write"), "{told}");
    assert!(told.contains("file too large"), "{told}");
}

#[test]
fn libtorrent_makes_the_same_info_of_the_same_data() {
    for (folder, torrent, made) in shapes() {
        let length = made["piece_length_bytes"].to_string();
        let at = text(folder.path());
        let arguments = [
            "-W",
            "ignore",
            "-c",
            LIBTORRENT,
            &text(&torrent),
            &at,
            &length,
        ];
        let Some(said) = said("python3", &arguments) else {
            return;
        };
        if said.is_empty() {
            println!("skipped: python3 has no libtorrent");
            return;
        }
        let hash = made["info_hash"].as_str().unwrap();
        assert_eq!(
            said.trim(),
            format!("{hash} {hash}"),
            "{}",
            torrent.display()
        );
    }
}
