//! File systems that hang (HOSTILE.md L13): a mount under one of three torrents stops answering, the other two do not
//! notice, and the end is in time.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::fake_peer::{Answer, BLOCK, Behaviour, Content, FakeLeecher, FakeSeeder};
use super::support::fake_tracker::{HttpTracker, Then, ok, peers};
use super::support::hanging::{Hang, HangingMount};
use super::support::{Gyre, Sample, machine, program, sample::text};
use super::{eventually, start};

/// How long rates are measured.
const WINDOW: Duration = Duration::from_secs(3);
/// A busy machine may spoil a window: so many are tried.
const WINDOWS_MAX: u32 = 6;

/// Three torrents with one folder for their data: two files, and a folder that is a mount.
struct Three {
    /// Dropped first, so that nothing waits for it for ever.
    mount: HangingMount,
    healthy: [Sample; 2],
    hung: Sample,
    data: PathBuf,
    tracker: HttpTracker,
}

impl Three {
    /// `None`, and a line, where nothing can be mounted. With `has_data` all of it is there, else none.
    fn new(test: &str, bytes: usize, has_data: bool, how: Hang) -> Option<Three> {
        let answer = ok(&peers(&[]));
        let tracker = HttpTracker::start(move |_, stream| {
            let _ = stream.write_all(&answer);
            Then::Close
        });
        let url = tracker.url();
        let healthy =
            ["a.bin", "b.bin"].map(|name| Sample::tree(&[(name, bytes)], 65_536, &[&url]));
        let hung = Sample::tree(&[("one", bytes), ("two", bytes)], 65_536, &[&url]);
        let data = hung.dir("three");
        let behind = match has_data {
            true => hung.content.clone(),
            false => hung.dir("behind"),
        };
        let root = data.join(hung.content.file_name().unwrap());
        std::fs::create_dir(&root).unwrap();
        let mount = HangingMount::new(test, &behind, &root, how)?;
        if has_data {
            for sample in &healthy {
                machine::copy(&sample.data, &data);
            }
        }
        Some(Three {
            mount,
            healthy,
            hung,
            data,
            tracker,
        })
    }

    /// The hung one first: whatever goes in order meets it first.
    fn samples(&self) -> [&Sample; 3] {
        [&self.hung, &self.healthy[0], &self.healthy[1]]
    }

    fn start(&self, verb: &str, folder: &str, more: &[String]) -> Gyre {
        let mut command = program::command();
        command.arg(verb);
        for sample in self.samples() {
            command.arg(&sample.torrent);
        }
        command.args([folder, &text(&self.data), "--port", "0", "--no-ipv6"]);
        command.args(["--state", &text(&self.hung.dir("state"))]);
        command.args(more);
        start(command)
    }

    /// Ends it with SIGTERM: within ten seconds `stopped` was sent for all three and the records of the healthy two are
    /// those of torrents that were closed: nothing is hashed again.
    fn assert_ends(mut self, mut gyre: Gyre, how: Hang) {
        let at = Instant::now();
        gyre.signal(Signal::SIGTERM);
        let mut stopped = 0;
        while stopped < 3 {
            let left = Duration::from_secs(10).saturating_sub(at.elapsed());
            let get = self.tracker.next_within(left);
            let get = get.unwrap_or_else(|| panic!("{stopped} of 3 `stopped`: {}", gyre.stderr()));
            stopped += u32::from(get.is_stopped());
        }
        println!("all `stopped` after {:?}", at.elapsed());
        if how == Hang::Taken {
            // No signal ends a thread whose request was taken: only what came before the end can be asked for.
            let left = Duration::from_secs(10).saturating_sub(at.elapsed());
            gyre.wait_for_within("last figures", left, |event| {
                event["event"] == "progress" && event["peers"] == 0
            });
            std::thread::sleep(Duration::from_secs(10).saturating_sub(at.elapsed()));
            self.mount.abort();
        }
        assert_eq!(gyre.wait_exit(Duration::from_secs(12)), 143);
        println!("left after {:?}", at.elapsed());
        if how == Hang::Untaken {
            assert!(at.elapsed() < Duration::from_secs(10), "{:?}", at.elapsed());
        }
        self.mount.abort();
        for sample in &mut self.healthy {
            let mut command = program::command();
            command.args(["seed", &text(&sample.torrent), "--data", &text(&self.data)]);
            command.args(["--state", &text(&self.hung.dir("state")), "--port", "0"]);
            command.arg("--no-trackers");
            let mut again = start(command);
            let figures = again.wait_for("seeding", |event| event["state"] == "seeding");
            assert_eq!(figures["pieces_checked"], 0);
        }
    }
}

/// How much `count` grows in a window.
fn grown(count: &impl Fn() -> u64) -> u64 {
    let before = count();
    std::thread::sleep(WINDOW);
    count() - before
}

/// Each count grows by at least 90 % of what it did, in one window of a few.
fn assert_keep(before: &[u64; 2], counts: &[impl Fn() -> u64; 2]) {
    let mut seen = Vec::new();
    for _ in 0..WINDOWS_MAX {
        let at = counts.each_ref().map(|count| count());
        std::thread::sleep(WINDOW);
        let now = [0, 1].map(|which| counts[which]() - at[which]);
        println!("a window: {before:?} before, {now:?} now");
        if now
            .iter()
            .zip(before)
            .all(|(now, before)| now * 10 >= before * 9)
        {
            return;
        }
        seen.push(now);
    }
    panic!("{before:?} before, then {seen:?}");
}

/// Takes a block every few milliseconds until it is over.
fn take(addr: SocketAddr, content: &Content, taken: &AtomicU64, is_over: &AtomicBool) {
    const EVERY: Duration = Duration::from_millis(8);
    while !is_over.load(Ordering::SeqCst) {
        let Some(mut leecher) = FakeLeecher::connect(addr, content) else {
            std::thread::sleep(EVERY);
            continue;
        };
        if !leecher.unchoked(Duration::from_secs(3)) {
            continue;
        }
        for at in 0.. {
            let piece = at % content.piece_count();
            match leecher.fetch(piece, 0, BLOCK, Duration::from_secs(2)) {
                Answer::Block(_) => taken.fetch_add(1, Ordering::SeqCst),
                _ => break,
            };
            if is_over.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(EVERY);
        }
    }
}

fn seeds(test: &str, how: Hang) {
    /// Peers of the hung torrent: more than any queue or pool of threads has places.
    const PEERS: usize = 80;
    let Some(three) = Three::new(test, 8 << 20, true, how) else {
        return;
    };
    let more = ["--send-engine", "copy", "--upload-slots", "200"].map(String::from);
    let mut gyre = three.start("seed", "--data", &more);
    let addr = gyre.listening();
    for _ in 0..3 {
        gyre.wait_for("seeding", |event| event["state"] == "seeding");
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let taken: [Arc<AtomicU64>; 3] = Default::default();
    let mut leechers = Vec::new();
    for (at, sample) in three.samples().into_iter().enumerate() {
        let content = Content::of(sample);
        let count = if at == 0 { PEERS } else { 2 };
        for _ in 0..count {
            let (content, is_over, taken) = (content.clone(), is_over.clone(), taken[at].clone());
            leechers.push(std::thread::spawn(move || {
                take(addr, &content, &taken, &is_over);
            }));
        }
    }
    let count = |which: usize| {
        let taken = taken[which].clone();
        move || taken.load(Ordering::SeqCst)
    };
    eventually("blocks of all", program::PATIENCE, || {
        (0..3).all(|which| count(which)() > 50)
    });
    let counts = [count(1), count(2)];
    let before = [grown(&counts[0]), grown(&counts[1])];
    three.mount.hang();
    std::thread::sleep(Duration::from_secs(1));
    assert_keep(&before, &counts);
    gyre.wait_for("the trouble told", |event| {
        event["message"]
            .as_str()
            .is_some_and(|m| m.contains("does not answer"))
    });
    three.assert_ends(gyre, how);
    is_over.store(true, Ordering::SeqCst);
    for leecher in leechers {
        leecher.join().unwrap();
    }
}

#[test]
fn a_mount_that_hangs_under_a_seeder_takes_nothing_from_other_torrents() {
    seeds("a_mount_that_hangs_under_a_seeder", Hang::Untaken);
}

#[test]
fn requests_that_are_taken_and_never_answered_take_nothing_from_other_torrents() {
    seeds("requests_that_are_taken_and_never_answered", Hang::Taken);
}

#[test]
fn a_mount_that_hangs_under_a_download_takes_nothing_from_other_torrents() {
    let test = "a_mount_that_hangs_under_a_download";
    let Some(three) = Three::new(test, 72 << 20, false, Hang::Untaken) else {
        return;
    };
    let rates = [8 << 20, 2 << 20, 2 << 20];
    let seeders: Vec<FakeSeeder> = three
        .samples()
        .into_iter()
        .zip(rates)
        .zip(170..)
        .map(|((sample, rate), last_byte)| {
            let behaviour = Behaviour {
                bytes_per_s: Some(rate),
                ..Behaviour::honest(last_byte)
            };
            FakeSeeder::start(&Content::of(sample), behaviour)
        })
        .collect();
    let peers = seeders
        .iter()
        .flat_map(|seeder| ["--peer".to_owned(), seeder.addr.to_string()]);
    let mut gyre = three.start("download", "--output", &peers.collect::<Vec<_>>());
    eventually("bytes of all", program::PATIENCE, || {
        seeders.iter().all(|seeder| seeder.sent_bytes() > 2 << 20)
    });
    let counts = [1, 2].map(|at: usize| {
        let seeder = &seeders[at];
        move || seeder.sent_bytes()
    });
    let before = [grown(&counts[0]), grown(&counts[1])];
    three.mount.hang();
    // Until it has all the memory it can get.
    std::thread::sleep(Duration::from_secs(4));
    assert_keep(&before, &counts);
    gyre.wait_for("the trouble told", |event| {
        event["message"]
            .as_str()
            .is_some_and(|m| m.contains("does not answer"))
    });
    three.assert_ends(gyre, Hang::Untaken);
}

#[test]
fn a_mount_that_answers_again_is_served_from_again() {
    let Some(three) = Three::new("a_mount_that_answers_again", 4 << 20, true, Hang::Untaken) else {
        return;
    };
    let mut gyre = three.start("seed", "--data", &[]);
    let addr = gyre.listening();
    for _ in 0..3 {
        gyre.wait_for("seeding", |event| event["state"] == "seeding");
    }
    let content = Content::of(&three.hung);
    let mut leecher = FakeLeecher::connect(addr, &content).unwrap();
    assert!(leecher.unchoked(Duration::from_secs(20)));
    three.mount.hang();
    let answer = leecher.fetch(3, 0, BLOCK, Duration::from_secs(2));
    assert_eq!(answer, Answer::Nothing);
    gyre.wait_for("the trouble told", |event| {
        event["message"]
            .as_str()
            .is_some_and(|m| m.contains("does not answer"))
    });
    three.mount.resume();
    eventually("a block again", program::PATIENCE, || {
        matches!(
            leecher.fetch(4, 0, BLOCK, Duration::from_secs(5)),
            Answer::Block(_)
        )
    });
    gyre.wait_for("seeding again", |event| event["state"] == "seeding");
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(12)), 143);
}

#[test]
fn commands_on_a_mount_that_hangs_say_so_and_end_by_ctrl_c() {
    let Some(three) = Three::new(
        "commands_on_a_mount_that_hangs",
        1 << 20,
        true,
        Hang::Untaken,
    ) else {
        return;
    };
    three.mount.hang();
    let mut verify = program::command();
    verify.args([
        "verify",
        &text(&three.hung.torrent),
        "--data",
        &text(&three.data),
    ]);
    let mut verify = start(verify);
    let mut seed = three.start("seed", "--data", &["--no-trackers".to_owned()]);
    // The others are seeded meanwhile.
    seed.wait_for("seeding", |event| event["state"] == "seeding");
    seed.wait_for("the trouble told", |event| {
        event["message"]
            .as_str()
            .is_some_and(|m| m.contains("does not answer"))
    });
    eventually("verify telling", program::PATIENCE, || {
        verify.stderr().contains("does not answer")
    });
    for command in [&mut verify, &mut seed] {
        let at = Instant::now();
        command.signal(Signal::SIGINT);
        assert_eq!(command.wait_exit(Duration::from_secs(12)), 130);
        println!("left after {:?}", at.elapsed());
        assert!(at.elapsed() < Duration::from_secs(10), "{:?}", at.elapsed());
    }
}
