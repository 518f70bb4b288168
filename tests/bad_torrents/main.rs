//! A table of bad torrents, all given to the real command: each is refused by name or made safe, quickly and in little
//! memory (HOSTILE.md T1–T13). Stories with more to them are in `tests/hostile/torrents.rs`.
//!
//! This is a program of its own because the kernel tells the memory of ended children as the most that any of them had.

#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code, reason = "shared with tests/hostile")]
#[path = "../hostile/torrent_file.rs"]
mod torrent_file;

mod refused;
mod safe;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use safe::Safe;
use support::Gyre;
use support::fake_peer::{Behaviour, FakeSeeder};
use support::program::command;
use support::sample::text;

const CASES_MIN: usize = 120;
/// What one torrent may cost, the start of the program included.
const CPU_MAX: Duration = Duration::from_millis(50);
const MEMORY_BYTES_MAX: i64 = 64 << 20;
/// Downloads at a time.
const LANES: usize = 4;

/// Processor time of ended children, and the most memory that one of them had.
fn children() -> (Duration, i64) {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let micros = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
    };
    let cpu = micros(usage.user_time()) + micros(usage.system_time());
    (cpu, usage.max_rss() * 1024)
}

/// The costliest runs of the command so far.
#[derive(Default)]
struct Worst {
    cpu: Duration,
    cpu_of: String,
    wall: Duration,
    memory_bytes: i64,
}

impl Worst {
    /// Runs the command over one torrent and holds it to the limits.
    #[track_caller]
    fn run(&mut self, what: &str, arguments: &[&str]) -> Output {
        let mut cpu = Duration::MAX;
        let mut output = None;
        // A time above the limit is taken again: a neighbour's work evicts caches.
        for _ in 0..3 {
            let (before, at) = (children().0, Instant::now());
            output = Some(command().args(arguments).output().unwrap());
            self.wall = self.wall.max(at.elapsed());
            cpu = cpu.min(children().0 - before);
            if cpu <= CPU_MAX {
                break;
            }
        }
        self.memory_bytes = children().1;
        let bytes = self.memory_bytes;
        assert!(cpu <= CPU_MAX, "{what}: {cpu:?} with {arguments:?}");
        assert!(
            bytes <= MEMORY_BYTES_MAX,
            "{what}: {bytes} bytes with {arguments:?}"
        );
        if cpu > self.cpu {
            (self.cpu, self.cpu_of) = (cpu, what.to_owned());
        }
        output.unwrap()
    }
}

/// Nothing that a terminal obeys, and no panic.
#[track_caller]
fn assert_harmless(what: &str, output: &Output) {
    for bytes in [&output.stdout, &output.stderr] {
        let shown = String::from_utf8(bytes.clone()).unwrap();
        let is_bad = |c: char| {
            (c.is_control() && c != '\n' && c != '\t')
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        assert!(!shown.contains(is_bad), "{what}: {shown:?}");
        assert!(!shown.contains("panicked"), "{what}: {shown}");
    }
}

/// All paths below a folder, folders and links too, links not followed.
fn walk(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if !path.is_symlink() && path.is_dir() {
            found.extend(walk(&path));
        }
        found.insert(path);
    }
    found
}

/// A tree in which the output folder lies deep, so that what climbs a few folders is still seen.
struct Place {
    folder: tempfile::TempDir,
    torrent: PathBuf,
    out: PathBuf,
    state: PathBuf,
}

impl Place {
    fn new(torrent_bytes: &[u8]) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("1/2/3/4/5/out");
        let state = folder.path().join("state");
        std::fs::create_dir_all(&out).unwrap();
        std::fs::create_dir_all(&state).unwrap();
        let torrent = folder.path().join("x.torrent");
        std::fs::write(&torrent, torrent_bytes).unwrap();
        Place {
            folder,
            torrent,
            out,
            state,
        }
    }

    fn download(&self) -> Vec<String> {
        let mut arguments = vec!["download".to_owned(), text(&self.torrent)];
        arguments.extend([
            "-o".into(),
            text(&self.out),
            "--state".into(),
            text(&self.state),
        ]);
        arguments.extend(["--port", "0", "--no-trackers"].map(str::to_owned));
        arguments
    }

    /// What lies in the tree besides the output and what the program keeps for itself.
    fn elsewhere(&self) -> BTreeSet<PathBuf> {
        let mut all = walk(self.folder.path());
        all.retain(|path| !path.starts_with(&self.out) || *path == self.out);
        all.retain(|path| !path.starts_with(&self.state));
        all
    }
}

#[test]
fn the_table_is_long_and_no_case_is_there_twice() {
    let refused = refused::all();
    let safe = safe::all("/nonexistent/gyre");
    let names: BTreeSet<String> = refused
        .iter()
        .map(|(what, _, _)| (*what).to_owned())
        .chain(safe.iter().map(|safe| safe.name.clone()))
        .collect();
    let torrents: BTreeSet<&[u8]> = refused
        .iter()
        .map(|(_, bytes, _)| &bytes[..])
        .chain(safe.iter().map(|safe| &safe.torrent[..]))
        .collect();
    let count = refused.len() + safe.len();
    println!("{} refused, {} made safe", refused.len(), safe.len());
    assert!(count >= CASES_MIN);
    assert_eq!((names.len(), torrents.len()), (count, count));
}

#[test]
fn every_bad_torrent_is_refused_by_name_or_made_safe_in_little_time_and_memory() {
    // One after the other: what the downloads cost must not be measured with the rest.
    open_all();
    fetch_all();
}

fn open_all() {
    let mut worst = Worst::default();
    for (what, bytes, part) in refused::all() {
        let place = Place::new(&bytes);
        let before = walk(place.folder.path());
        let torrent = text(&place.torrent);
        // Whether a path fits a disk matters only to those who use the disk.
        if !what.starts_with("T9") {
            assert_refused(what, &worst.run(what, &["info", &torrent]), part);
        }
        let download = place.download();
        let arguments: Vec<&str> = download.iter().map(String::as_str).collect();
        assert_refused(what, &worst.run(what, &arguments), part);
        let new: Vec<_> = walk(place.folder.path())
            .difference(&before)
            .cloned()
            .collect();
        assert!(
            new.iter().all(|path| path.starts_with(&place.state)),
            "{what}: {new:?}"
        );
    }
    let place = Place::new(b"");
    let file = std::fs::File::create(&place.torrent).unwrap();
    file.set_len(1 << 40).unwrap();
    let output = worst.run("T2 a TiB", &["info", &text(&place.torrent)]);
    assert_refused("T2 a TiB", &output, "larger than 64 MiB");
    for safe in safe::all("/nonexistent/gyre") {
        let place = Place::new(&safe.torrent);
        let before = walk(place.folder.path());
        let (torrent, out) = (text(&place.torrent), text(&place.out));
        for arguments in [
            &["info", &torrent][..],
            &["info", "--json", &torrent],
            &["download", "--list", &torrent, "-o", &out],
        ] {
            let output = worst.run(&safe.name, arguments);
            let shown = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {shown}", safe.name);
            assert_harmless(&safe.name, &output);
        }
        assert_eq!(walk(place.folder.path()), before, "{}", safe.name);
    }
    let Worst {
        cpu,
        cpu_of,
        wall,
        memory_bytes,
    } = worst;
    let mib = memory_bytes as f64 / f64::from(1 << 20);
    println!("at most {cpu:?} of CPU ({cpu_of}), {wall:?} on the clock, {mib:.1} MiB");
}

/// A refusal as the user must see it: two lines, exit code 1, no panic, nothing for a terminal to obey.
#[track_caller]
fn assert_refused(what: &str, output: &Output, part: &str) {
    assert_harmless(what, output);
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what}: {shown}");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 2, "{what}: {shown}");
    assert!(lines[0].starts_with("error: "), "{what}: {shown}");
    assert!(lines[1].starts_with("hint: "), "{what}: {shown}");
    assert!(lines[0].contains(part), "{what}: no {part:?} in {shown}");
}

/// What is loaded is fetched into the output folder and nowhere else.
fn fetch_all() {
    let outside = tempfile::tempdir().unwrap();
    let victim = text(&outside.path().join("victim"));
    let all = safe::all(&victim);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while let Some(safe) =
                    all.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    fetch(safe);
                }
            });
        }
    });
    assert_eq!(walk(outside.path()), BTreeSet::new(), "written outside");
}

fn fetch(safe: &Safe) {
    let what = &safe.name;
    let place = Place::new(&safe.torrent);
    let before = place.elsewhere();
    let seeder = FakeSeeder::start(&safe.content, Behaviour::honest(26));
    let mut arguments = place.download();
    arguments.extend(["--peer".to_owned(), seeder.addr.to_string()]);
    let mut gyre = Gyre::start(&arguments);
    gyre.event("complete");
    let code = gyre.wait_exit(Duration::from_secs(20));
    assert_eq!(code, 0, "{what}: {}", gyre.stderr());
    assert_eq!(place.elsewhere(), before, "{what}: written outside");
    let root = std::fs::canonicalize(&place.out).unwrap();
    let mut files = Vec::new();
    for path in walk(&place.out) {
        let name = path.to_str().unwrap_or_else(|| panic!("{what}: not UTF-8"));
        assert!(!name.contains(char::is_control), "{what}: {name:?}");
        if path.is_symlink() {
            // A ring of links has no end that could be outside.
            match std::fs::canonicalize(&path) {
                Ok(end) => assert!(end.starts_with(&root), "{what}: {name} leads out"),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ELOOP), "{what}: {name}"),
            }
        } else if path.is_file() {
            files.push(std::fs::read(&path).unwrap());
        }
    }
    let mut expected = safe.files.clone();
    files.sort();
    expected.sort();
    assert!(files == expected, "{what}: {} files", files.len());
}
