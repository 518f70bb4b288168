//! Torrents that are loaded although something about them is bad, and must be made safe (HOSTILE.md T3, T4, T8–T13).

use std::sync::Arc;

use sha1::{Digest, Sha1};

use crate::support::fake_peer::Content;
use crate::support::sample::noise;
use crate::torrent_file::{Entry, d, hashes, i, info_of, l, s};

pub const PIECE_LENGTH: u32 = 16_384;

/// A torrent that loads, the bytes that belong to it, and the contents of the files that it may write.
pub struct Safe {
    pub name: String,
    pub torrent: Vec<u8>,
    pub content: Content,
    pub files: Vec<Vec<u8>>,
}

type Keys = Vec<(&'static str, Vec<u8>)>;

impl Safe {
    /// `root` holds keys of the top level besides `info`; `behind` follows the torrent.
    fn new(name: &str, info: &Keys, root: &Keys, behind: &[u8], files: Vec<Vec<u8>>) -> Safe {
        let bytes: Vec<u8> = files.concat();
        let info = d(info);
        let mut keys = root.clone();
        keys.push(("info", info.clone()));
        Safe {
            name: name.to_owned(),
            torrent: [&d(&keys)[..], behind].concat(),
            content: Content {
                info_hash: Sha1::digest(&info).into(),
                piece_length: PIECE_LENGTH,
                bytes: Arc::new(bytes),
                tree: Arc::default(),
            },
            files,
        }
    }

    /// A torrent of these entries. Pads are not written, links hold no bytes.
    fn of(name: &str, root: &[u8], entries: &[Entry]) -> Safe {
        let info = info_of(root, entries, PIECE_LENGTH);
        let mut safe = Safe::new(name, &info, &vec![], b"", vec![]);
        let all = entries.iter().flat_map(|entry| entry.bytes.clone());
        safe.content.bytes = Arc::new(all.collect());
        let written = entries.iter().filter(|entry| entry.attr.is_empty());
        safe.files = written.map(|entry| entry.bytes.clone()).collect();
        safe
    }
}

/// `info` of a single file with these keys more, or instead.
fn single(file: &[u8], more: &[(&'static str, Vec<u8>)]) -> Keys {
    let mut info = vec![
        ("length", i(file.len() as i64)),
        ("name", s("n")),
        ("piece length", i(PIECE_LENGTH.into())),
        ("pieces", s(hashes(file, PIECE_LENGTH))),
    ];
    for (key, value) in more {
        info.retain(|(present, _)| present != key);
        info.push((key, value.clone()));
    }
    info.sort_by_key(|(key, _)| *key);
    info
}

/// Names that lead somewhere, or are something, on some system. `outside` is a path that must stay untouched.
fn names(outside: &str) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "..",
        ".",
        "/",
        "//",
        "/etc/passwd",
        "../up",
        "../../../up",
        "a/../../../up",
        "a/b",
        "/..",
        "../",
        "..\\up",
        "\\",
        "c:\\windows\\x",
        "\\\\host\\share",
        "nul\0byte",
        "..\0",
        "line\nfeed\r",
        "\u{1b}[2J\u{7}",
        "gpj\u{202e}exe",
        "\u{2066}x\u{2069}",
        "\u{85}\u{2028}",
        "\u{feff}..",
        "．．",
        "%2e%2e%2f",
        "~",
        "-rf",
        "$(touch up)",
        "*",
        "CON",
        "end. ",
        " ",
        ".gyre-parts",
        ".GYRE-lock",
        "...",
        "",
    ]
    .map(|name| name.as_bytes().to_vec())
    .into();
    names.push(outside.as_bytes().to_vec());
    names.push(vec![b'x'; 300]);
    names.push("é".repeat(200).into_bytes());
    names.push(b"bad\xff\xfeutf8".to_vec());
    names.push(b"\xc0\xae\xc0\xae".to_vec());
    names
}

pub fn all(outside: &str) -> Vec<Safe> {
    let mut all = Vec::new();
    for name in names(outside) {
        let shown = name.escape_ascii().to_string();
        let file = noise(3_000, 1);
        let info = single(&file, &[("name", s(&name))]);
        all.push(Safe::new(
            &format!("T8 file {shown:.40}"),
            &info,
            &vec![],
            b"",
            vec![file],
        ));
        // As the folder, as a folder in it, and as a file where a folder of that name is.
        let entries = [
            Entry::file(&[&name, &name, b"f"], noise(3_000, 2)),
            Entry::file(&[&name], noise(3_000, 3)),
        ];
        all.push(Safe::of(&format!("T8 folder {shown:.40}"), &name, &entries));
    }
    all.extend(paths());
    all.extend(links(outside));
    all.extend(pads());
    all.extend(odd_info());
    all.extend(odd_roots());
    all
}

fn paths() -> Vec<Safe> {
    let file = |path: &[&[u8]], seed| Entry::file(path, noise(3_000, seed));
    let deep: Vec<&[u8]> = vec![b"d"; 200];
    let ups: Vec<&[u8]> = vec![b".."; 100];
    let of = |name, entries: &[Entry]| Safe::of(name, b"root", entries);
    vec![
        of("T9 no elements", &[file(&[], 1), file(&[], 2)]),
        of(
            "T9 empty elements",
            &[file(&[b"", b"", b""], 1), file(&[b""], 2)],
        ),
        of("T9 two hundred folders", &[file(&deep, 1)]),
        of("T8 a hundred times up", &[file(&ups, 1)]),
        of("T10 one path twice", &[file(&[b"a"], 1), file(&[b"a"], 2)]),
        of("T10 other case", &[file(&[b"a"], 1), file(&[b"A"], 2)]),
        of(
            "T10 other case of a folder",
            &[file(&[b"D", b"a"], 1), file(&[b"d", b"A"], 2)],
        ),
        of(
            "T10 file and folder",
            &[file(&[b"a"], 1), file(&[b"a", b"b"], 2)],
        ),
        of(
            "T10 folder and file",
            &[file(&[b"a", b"b"], 1), file(&[b"a"], 2)],
        ),
        of(
            "T10 a name that is a substitute",
            &[file(&[b"a"], 1), file(&[b"a~2"], 2), file(&[b"a"], 3)],
        ),
        of(
            "T10 equal once made safe",
            &[file(&[b"a/b"], 1), file(&[b"a_b"], 2), file(&[b"a\0b"], 3)],
        ),
        of(
            "T10 equal once cut",
            &[
                file(&[&[b'x'; 300]], 1),
                file(&[&[[b'x'; 300], [b'y'; 300]].concat()], 2),
            ],
        ),
    ]
}

fn links(outside: &str) -> Vec<Safe> {
    let file = |path: &[&[u8]], seed| Entry::file(path, noise(3_000, seed));
    let link = |path: &[&[u8]], target: &[&[u8]]| [file(&[b"one"], 1), Entry::link(path, target)];
    let of = |name: &str, entries: &[Entry]| Safe::of(name, b"root", entries);
    let up: &[&[u8]] = &[b"..", b".."];
    let mut long = link(&[b"k"], &[]);
    long[1].bytes = vec![];
    vec![
        of("T11 up", &link(&[b"k"], &[b"..", b"..", b"..", b"x"])),
        of(
            "T11 up inside",
            &link(&[b"k"], &[b"one", b"..", b"..", b"x"]),
        ),
        of("T11 absolute", &link(&[b"k"], &[outside.as_bytes()])),
        of("T11 root", &link(&[b"k"], &[b"/"])),
        of("T11 empty", &link(&[b"k"], &[b""])),
        of("T11 no target", &long),
        of("T11 itself", &link(&[b"k"], &[b"k"])),
        of("T11 its folder", &link(&[b"d", b"k"], &[b"d"])),
        of(
            "T11 a ring",
            &[
                file(&[b"one"], 1),
                Entry::link(&[b"a"], &[b"b"]),
                Entry::link(&[b"b"], &[b"a"]),
            ],
        ),
        of(
            "T11 a file below a link up",
            &[Entry::link(&[b"d"], up), file(&[b"d", b"f"], 1)],
        ),
        of(
            "T11 a link up over a folder",
            &[file(&[b"d", b"f"], 1), Entry::link(&[b"d"], up)],
        ),
        of(
            "T11 a file in a link's place",
            &[
                Entry::link(&[b"a"], &[outside.as_bytes()]),
                file(&[b"a"], 1),
            ],
        ),
        of(
            "T11 a good link under a bad name",
            &link(&[b"..", b"k"], &[b"one"]),
        ),
    ]
}

fn pads() -> Vec<Safe> {
    let file = |path: &[&[u8]], length, seed| Entry::file(path, noise(length, seed));
    let pad_at = |path: &[&[u8]], length: usize| Entry {
        attr: "p",
        ..Entry::file(path, vec![0; length])
    };
    let of = |name, pad| {
        let entries = [file(&[b"a"], 5_000, 1), pad, file(&[b"b"], 3_000, 2)];
        Safe::of(name, b"root", &entries)
    };
    vec![
        of("T12 a pad", Entry::pad(11_384)),
        of("T12 a pad of nothing", Entry::pad(0)),
        of("T12 a pad in a file's place", pad_at(&[b"a"], 11_384)),
        of("T12 a pad above", pad_at(&[b"..", b"..", b"up"], 11_384)),
        of(
            "T12 a pad that is a link",
            Entry {
                attr: "pl",
                symlink: vec![b"..".to_vec()],
                ..Entry::file(&[b"k"], [])
            },
        ),
    ]
}

/// Keys of `info` that are not what they should be.
fn odd_info() -> Vec<Safe> {
    let file = noise(20_000, 5);
    let with = |name, more: &[(&'static str, Vec<u8>)]| {
        Safe::new(name, &single(&file, more), &vec![], b"", vec![file.clone()])
    };
    let mut unsorted = single(&file, &[]);
    unsorted.reverse();
    let of_tree = d(&[("length", i(20_000)), ("pieces root", s([7; 32]))]);
    let tree = d(&[("n", d(&[("", of_tree)]))]);
    let mut nameless = single(&file, &[]);
    nameless.retain(|(key, _)| *key != "name");
    vec![
        with("T8 name.utf-8 up", &[("name.utf-8", s("../../up"))]),
        with("T9 name a number", &[("name", i(5))]),
        with("T9 name.utf-8 not UTF-8", &[("name.utf-8", s(b"\xff\xff"))]),
        Safe::new("T9 no name", &nameless, &vec![], b"", vec![file.clone()]),
        Safe::new("T4 unsorted", &unsorted, &vec![], b"", vec![file.clone()]),
        with("T13 hybrid", &[("file tree", tree), ("meta version", i(2))]),
        with("T13 version 7 with a v1 part", &[("meta version", i(7))]),
        with(
            "T13 version in words with a v1 part",
            &[("meta version", s("x"))],
        ),
        with("private a string", &[("private", s("yes"))]),
        with("attributes a number", &[("attr", i(7))]),
        with("attributes of everything", &[("attr", s("plhx\0\x1b"))]),
        with("source with commands", &[("source", s("\x1b[2J\r\n"))]),
        with(
            "a hundred unknown keys",
            &[("x", d(&[("y", l(&vec![i(1); 100]))]))],
        ),
    ]
}

/// Keys of the top level that are not what they should be.
fn odd_roots() -> Vec<Safe> {
    let file = noise(20_000, 6);
    let with = |name, root: &[(&'static str, Vec<u8>)]| {
        let info = single(&file, &[]);
        Safe::new(name, &info, &root.to_vec(), b"", vec![file.clone()])
    };
    let urls = |count: usize| {
        let urls: Vec<Vec<u8>> = (0..count)
            .map(|n| s(format!("udp://127.0.0.1:{n}/")))
            .collect();
        l(&[l(&urls)])
    };
    let nested = l(&[l(&[l(&[s("http://127.0.0.1:1/")])])]);
    let mut all = vec![
        with(
            "trackers a number",
            &[("announce", i(1)), ("announce-list", i(2))],
        ),
        with("trackers nested", &[("announce-list", nested)]),
        with("ten thousand trackers", &[("announce-list", urls(10_000))]),
        with(
            "a tracker of 100 kB",
            &[("announce", s(format!("http://{}/", "a".repeat(100_000))))],
        ),
        with(
            "a tracker with commands",
            &[("announce", s("http://a/\x1b[2J\r\nHost: b"))],
        ),
        with(
            "a tracker that is a file",
            &[("announce", s("file:///etc/passwd"))],
        ),
        with(
            "a web seed that is a file",
            &[("url-list", s("file:///etc/passwd"))],
        ),
        with(
            "web seeds of everything",
            &[("url-list", l(&[i(1), d(&[]), s("")]))],
        ),
        with(
            "nodes out of range",
            &[("nodes", l(&[l(&[s("h"), i(70_000)]), l(&[i(1)]), s("x")]))],
        ),
        with(
            "a comment of 1 MB",
            &[("comment", s("x".repeat(1_000_000)))],
        ),
        with("a comment with commands", &[("comment", s("\x1b]0;x\x07"))]),
        with(
            "created before everything",
            &[("creation date", i(i64::MIN))],
        ),
        with(
            "created after everything",
            &[("creation date", i(i64::MAX))],
        ),
        with("ten thousand values", &[("a", l(&vec![d(&[]); 10_000]))]),
    ];
    let info = single(&file, &[]);
    all.push(Safe::new(
        "T3 junk behind",
        &info,
        &vec![],
        b"\r\n<html>",
        vec![file.clone()],
    ));
    all.push(Safe::new(
        "T3 zeros behind",
        &info,
        &vec![],
        &[0; 100_000],
        vec![file],
    ));
    all
}
