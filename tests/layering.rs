//! The rules of the tree, read from the sources: lower layers know nothing of higher ones, the pure layers stay pure,
//! and `unsafe` lives in one place.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the lowest to the highest; a layer may use itself and those before it.
const LAYERS: [&str; 8] = [
    "base", "wire", "swarm", "storage", "uring", "session", "daemon", "app",
];
/// The first so many are pure: the same code runs in the simulation, under virtual time.
const PURE_COUNT: usize = 4;
/// Words that have no place in a pure layer: waiting, threads, clocks, sockets, the file system, and collections whose
/// order differs from run to run. (`SocketAddr` is a value.)
const IMPURE: [&str; 19] = [
    "async",
    "await",
    "thread",
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "RandomState",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixStream",
    "fs",
    "process",
    "tokio",
    "tokio_uring",
    "io_uring",
    "libc",
    "nix",
];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file below the folder, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let of = |path: PathBuf| match path.is_dir() {
        true => files(&path),
        false if path.extension().is_some_and(|ext| ext == "rs") => vec![path],
        false => Vec::new(),
    };
    paths.into_iter().flat_map(of).collect()
}

/// The words and signs of a source file, without comments, strings and characters.
fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens: Vec<String> = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        match (at(i), at(i + 1)) {
            ('/', '/') => i = line_end(&chars, i),
            ('/', '*') => i = comment_end(&chars, i),
            ('"', _) => i = string_end(&chars, i, 0),
            ('\'', '\\') => i = find(&chars, i + 3, '\'') + 1,
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            (c, _) if is_word(c) => {
                let start = i;
                while is_word(at(i)) {
                    i += 1;
                }
                let word: String = chars[start..i].iter().collect();
                let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
                let is_raw = matches!(word.as_str(), "r" | "br" | "cr");
                if is_raw && at(i + hashes) == '"' {
                    i = string_end(&chars, i + hashes, hashes + 1);
                } else {
                    tokens.push(word);
                }
            }
            (c, _) if c.is_whitespace() => i += 1,
            (c, _) => {
                tokens.push(c.to_string());
                i += 1;
            }
        }
    }
    tokens
}

fn find(chars: &[char], from: usize, wanted: char) -> usize {
    let rest = chars.get(from..).unwrap_or_default();
    from + rest.iter().position(|c| *c == wanted).unwrap_or(rest.len())
}

fn line_end(chars: &[char], from: usize) -> usize {
    find(chars, from, '\n')
}

/// Comments nest.
fn comment_end(chars: &[char], from: usize) -> usize {
    let (mut depth, mut i) = (0, from);
    while i < chars.len() {
        match chars.get(i..i + 2) {
            Some(['/', '*']) => (depth, i) = (depth + 1, i + 2),
            Some(['*', '/']) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    i
}

/// Behind the string that begins at `from`; `raw` is 0 for one with escapes, else its number of `#` and one.
fn string_end(chars: &[char], from: usize, raw: usize) -> usize {
    let mut i = from + 1;
    while i < chars.len() {
        if raw == 0 && chars[i] == '\\' {
            i += 2;
            continue;
        }
        let hashes = raw.saturating_sub(1);
        let is_end =
            chars[i] == '"' && chars[i + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
        if is_end {
            return i + 1 + hashes;
        }
        i += 1;
    }
    i
}

/// The layers that a file names by a path from the root of the crate: `crate::x`, `crate::{x, y::z}`, or up to it.
fn named_layers(tokens: &[String]) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for (at, word) in tokens.iter().enumerate() {
        let behind = tokens.get(at + 1..).unwrap_or_default();
        let is_root = matches!(word.as_str(), "crate" | "super");
        let [a, b, next, ..] = behind else { continue };
        if !is_root || a != ":" || b != ":" {
            continue;
        }
        if next == "{" {
            found.extend(group_heads(&behind[3..]));
        } else {
            found.insert(next.as_str());
        }
    }
    found.retain(|name| LAYERS.contains(name));
    found
}

/// The first words of the entries of a group whose opening brace came before.
fn group_heads(tokens: &[String]) -> Vec<&str> {
    let (mut depth, mut is_head, mut heads) = (1, true, Vec::new());
    for token in tokens {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => {
                is_head = true;
                continue;
            }
            word if is_head => heads.push(word),
            _ => {}
        }
        is_head = false;
        if depth == 0 {
            break;
        }
    }
    heads
}

/// What is wrong with one file of the layer of that number.
fn faults(layer: usize, source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let mut faults = Vec::new();
    for name in named_layers(&tokens) {
        if LAYERS.iter().position(|layer| *layer == name) > Some(layer) {
            faults.push(format!("uses the higher layer {name}"));
        }
    }
    for word in tokens.iter().collect::<BTreeSet<_>>() {
        if layer < PURE_COUNT && IMPURE.contains(&word.as_str()) {
            faults.push(format!("is in a pure layer and has the word {word}"));
        }
        if LAYERS[layer] != "uring" && word == "unsafe" {
            faults.push("has unsafe code outside uring".to_owned());
        }
    }
    faults
}

#[test]
fn no_layer_reaches_up_and_the_pure_ones_stay_pure() {
    let mut found = Vec::new();
    let mut count = 0;
    for (number, layer) in LAYERS.iter().enumerate() {
        for path in files(&src().join(layer)) {
            count += 1;
            let source = fs::read_to_string(&path).unwrap();
            let of_file = faults(number, &source);
            found.extend(
                of_file
                    .iter()
                    .map(|fault| format!("{}: {fault}", path.display())),
            );
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(count > 100, "the sources were found");
}

/// Where the wall clock may be read: dates in what is written or shown, and the age of leftover files. Everything that
/// waits takes the monotonic clock (HOSTILE.md L10).
const WALL_CLOCK: [&str; 4] = [
    "app/bench/machine.rs",
    "app/create.rs",
    "session/load.rs",
    "session/resume_store.rs",
];

#[test]
fn the_wall_clock_is_read_in_few_places_and_times_nothing() {
    const WORDS: [&str; 5] = [
        "SystemTime",
        "UNIX_EPOCH",
        "CLOCK_REALTIME",
        "gettimeofday",
        "modified",
    ];
    let reads = |path: &Path| {
        let tokens = tokens(&fs::read_to_string(path).unwrap());
        tokens.iter().any(|word| WORDS.contains(&word.as_str()))
    };
    let found: Vec<PathBuf> = files(&src())
        .into_iter()
        .filter(|path| reads(path))
        .collect();
    let found: Vec<&str> = found
        .iter()
        .map(|path| path.strip_prefix(src()).unwrap().to_str().unwrap())
        .collect();
    assert_eq!(found, WALL_CLOCK);
}

#[test]
fn connections_go_out_in_three_places() {
    // Each asks for the proxy first: a fourth would go around it.
    let is_connect = |words: &[String]| words == ["Stream", ":", ":", "connect"];
    let mut found = Vec::new();
    for path in files(&src().join("session"))
        .into_iter()
        .chain(files(&src().join("app")))
    {
        let shown = path.strip_prefix(src()).unwrap().display().to_string();
        if shown.starts_with("app/bench/") {
            continue;
        }
        let words = tokens(&fs::read_to_string(&path).unwrap());
        if words.windows(4).any(is_connect) {
            found.push(shown);
        }
    }
    assert_eq!(
        found,
        ["session/connect.rs", "session/http.rs", "session/socks.rs"]
    );
}

#[test]
fn every_layer_but_the_ring_forbids_unsafe_code() {
    let forbids =
        |path: PathBuf| tokens(&fs::read_to_string(path).unwrap()).contains(&"unsafe_code".into());
    assert!(forbids(src().join("main.rs")));
    for layer in LAYERS {
        let forbids = forbids(src().join(layer).join("mod.rs"));
        assert_eq!(forbids, layer != "uring", "{layer}");
    }
}

#[test]
fn every_module_says_what_it_holds() {
    for path in files(&src()) {
        // Tests beside a module speak for themselves.
        if path.ends_with("lib.rs") || path.ends_with("tests.rs") {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let mut lines = source.lines().filter(|line| !line.starts_with("#!["));
        let first = lines.next().unwrap_or_default();
        assert!(first.starts_with("//! "), "{}: {first}", path.display());
    }
}

#[test]
fn the_layers_are_all_there_is() {
    let folders = fs::read_dir(src()).unwrap().map(|entry| entry.unwrap());
    let folders = folders.filter(|entry| entry.path().is_dir());
    let names: BTreeSet<String> = folders
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, LAYERS.map(str::to_owned).into());
}

#[test]
fn the_architecture_page_names_every_file_and_no_other() {
    let page = fs::read_to_string(src().join("ARCHITECTURE.md")).unwrap();
    let quoted: BTreeSet<&str> = page.split('`').skip(1).step_by(2).collect();
    let root = src().parent().unwrap().to_owned();
    let path_of = |path: &PathBuf| {
        let path = path.strip_prefix(&root).unwrap().to_str().unwrap();
        path.to_owned()
    };
    let all: Vec<String> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|folder| files(&root.join(folder)))
        .map(|path| path_of(&path))
        .collect();
    // A file is named by the end of its path, or by a folder that holds it.
    let is_named = |path: &str, name: &str| match name.ends_with('/') {
        true => path.contains(&format!("/{name}")) || path.starts_with(name),
        false => path.ends_with(&format!("/{name}")) || path == name,
    };
    for path in &all {
        let is_part =
            !path.starts_with("src/") || path.ends_with("tests.rs") || path.contains("/tests/");
        let is_root = path == "src/lib.rs" || path == "src/main.rs";
        let is_found = quoted.iter().any(|name| is_named(path, name));
        assert!(is_part || is_root || is_found, "the page lacks {path}");
    }
    for name in quoted.iter().filter(|name| name.ends_with(".rs")) {
        let is_found = all.iter().any(|path| is_named(path, name));
        assert!(is_found, "the page names {name}, which is not there");
    }
}

#[test]
fn what_breaks_a_rule_is_seen_and_what_only_speaks_of_it_is_not() {
    let wire = 1;
    for source in [
        "use crate::swarm::Torrent;",
        "use crate::{base::Now, session::run};",
        "fn f() { let x = crate::uring::op::in_flight(); }",
        "use super::super::app;",
        "use std::collections::HashMap;",
        "async fn f() {}",
        "fn f() { std::thread::sleep(D) }",
        "fn f() { unsafe { g() } }",
    ] {
        assert_eq!(faults(wire, source).len(), 1, "{source}");
    }
    for source in [
        "// use crate::swarm::Torrent; unsafe",
        "/* crate::app /* HashMap */ async */ use crate::base::Now;",
        "const TEXT: &str = \"crate::session \\\" unsafe async\";",
        "const TEXT: &str = r#\"crate::session \" unsafe\"#;",
        "fn f<'a>(x: &'a str) -> char { '\\'' }",
        "use crate::{base::{Now, swarm_like}, wire::url};",
        "#![forbid(unsafe_code)]",
        "use std::net::SocketAddr;",
    ] {
        assert_eq!(faults(wire, source), Vec::<String>::new(), "{source}");
    }
    let uring = 4;
    assert!(faults(uring, "async fn f() { unsafe { g() } }").is_empty());
}
