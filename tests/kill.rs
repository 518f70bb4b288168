//! `kill -9` at random moments: nothing recorded is lost, hardly anything is fetched twice, nothing unverified is
//! offered (HOSTILE.md L7). `GYRE_LONG=1` runs the full size, `GYRE_KILL_SEED` repeats a failure.

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gyre::base::PieceIndex;
use gyre::storage::resume::Record;
use nix::unistd::{Whence, lseek};
use support::fake_peer::{Answer, BLOCK, Behaviour, Content, FakeLeecher, FakeSeeder};
use support::{Gyre, Sample, program::PATIENCE, sample::text};

const MIB: u64 = 1 << 20;
/// What one kill may cost: the memory that holds partial pieces.
const LOST_PER_KILL_BYTES: u64 = 32 * MIB;
/// What may be on disk without a record: the checkpoint's 64 MiB, and what arrives while it is being made.
const UNRECORDED_BYTES_MAX: u64 = 64 * MIB + 32 * MIB;
/// A run lives so long at most: some die before they have said anything, some in the check, most in the download.
const LIFE_MS_MAX: u64 = 1_100;
/// Runs that live longer are looked at while they go on.
const LOOK_MS: u64 = 600;
/// Blocks fetched from each run that is looked at.
const BLOCKS: u32 = 4;

struct Plan {
    bytes: u64,
    piece_length: u32,
    kills: usize,
    /// `--limit-down`, in bytes a second.
    rate: u64,
    base: u8,
}

/// One download that is killed again and again.
struct Victim {
    sample: Sample,
    content: Content,
    seeder: FakeSeeder,
    state: PathBuf,
    out: PathBuf,
}

impl Victim {
    fn new(plan: &Plan) -> Victim {
        let sample = Sample::file(plan.bytes as usize, plan.piece_length, &[]);
        let content = Content::of(&sample);
        let seeder = FakeSeeder::start(&content, Behaviour::honest(plan.base));
        let (state, out) = (sample.dir("state"), sample.dir("out"));
        Victim {
            sample,
            content,
            seeder,
            state,
            out,
        }
    }

    /// 0 is no limit.
    fn start(&self, rate: u64) -> Gyre {
        Gyre::start(&[
            "download",
            &text(&self.sample.torrent),
            "-o",
            &text(&self.out),
            "--state",
            &text(&self.state),
            "--port",
            "0",
            "--no-trackers",
            "--limit-down",
            &rate.to_string(),
            "--peer",
            &self.seeder.addr.to_string(),
        ])
    }

    fn start_seed(&self) -> Gyre {
        Gyre::start(&[
            "seed",
            &text(&self.sample.torrent),
            "--data",
            &text(&self.out),
            "--state",
            &text(&self.state),
            "--port",
            "0",
            "--no-trackers",
        ])
    }

    fn file(&self) -> PathBuf {
        self.out.join("sample.bin")
    }

    /// Pieces that the record on disk claims.
    fn recorded(&self) -> BTreeSet<u32> {
        let Ok(folder) = std::fs::read_dir(self.state.join("resume")) else {
            return BTreeSet::new();
        };
        let mut recorded = BTreeSet::new();
        for path in folder.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|end| end == "resume") {
                let bytes = std::fs::read(path).unwrap();
                let record = Record::decode(&bytes).expect("a record is whole at any moment");
                recorded.extend(record.have.iter().map(PieceIndex::get));
            }
        }
        recorded
    }

    /// Pieces with bytes on disk, whole or not, once the writes that a killed process had under way have ended.
    fn touched(&self) -> BTreeSet<u32> {
        wait_until_closed(&self.file());
        let mut touched = self.touched_now();
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let before = std::mem::replace(&mut touched, self.touched_now());
            if touched == before {
                return touched;
            }
        }
    }

    fn touched_now(&self) -> BTreeSet<u32> {
        let Ok(file) = File::open(self.file()) else {
            return BTreeSet::new();
        };
        let length = file.metadata().unwrap().len();
        let has_data = |piece: &u32| {
            let range = self.content.piece_range(*piece);
            if range.start as u64 >= length {
                return false;
            }
            let data = lseek(&file, range.start as i64, Whence::SeekData);
            data.is_ok_and(|data| (data as usize) < range.end)
        };
        (0..self.content.piece_count()).filter(has_data).collect()
    }

    /// Whether the piece on disk is what it should be.
    fn is_good(&self, piece: u32) -> bool {
        let range = self.content.piece_range(piece);
        let mut bytes = vec![0; range.len()];
        let file = File::open(self.file()).unwrap();
        file.read_exact_at(&mut bytes, range.start as u64).is_ok()
            && bytes[..] == self.content.bytes[range]
    }

    /// Looks at what a running program offers: all of it must be good on disk at that very moment and come as it is,
    /// and everything in `kept` must be in it.
    fn check_offer(
        &self,
        addr: SocketAddr,
        kept: &BTreeSet<u32>,
        random: &mut Random,
    ) -> BTreeSet<u32> {
        let mut leecher = FakeLeecher::connect(addr, &self.content).expect("it listens");
        let until = Instant::now() + Duration::from_secs(20);
        leecher.listen(Duration::from_millis(200));
        while !kept.is_subset(leecher.offered()) && Instant::now() < until {
            assert!(leecher.listen(Duration::from_millis(20)), "it hung up");
        }
        let offered = leecher.offered().clone();
        let missed: Vec<&u32> = kept.difference(&offered).collect();
        assert!(
            missed.is_empty(),
            "whole on disk and not offered: {missed:?}"
        );
        for piece in &offered {
            assert!(
                self.is_good(*piece),
                "piece {piece} is offered and not good"
            );
        }
        let some: Vec<u32> = offered.iter().copied().collect();
        if !some.is_empty() && leecher.unchoked(Duration::from_secs(2)) {
            for _ in 0..BLOCKS {
                let piece = some[random.below(some.len() as u64) as usize];
                let begin =
                    BLOCK * random.below(u64::from(self.content.piece_length / BLOCK)) as u32;
                // The last piece may be shorter.
                let Some(wanted) = self.content.block(piece, begin, BLOCK) else {
                    continue;
                };
                if let Answer::Block(got) = leecher.fetch(piece, begin, BLOCK, PATIENCE) {
                    assert_eq!(got, wanted, "piece {piece} came wrong");
                }
            }
        }
        offered
    }
}

/// Numbers that a seed repeats.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let seed = std::env::var("GYRE_KILL_SEED").ok();
        let seed = seed.map_or_else(
            || {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                u64::from(now.unwrap().subsec_nanos()) << 16 | u64::from(std::process::id())
            },
            |seed| seed.parse().unwrap(),
        );
        println!("repeat with GYRE_KILL_SEED={seed}");
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end.max(1)
    }
}

fn checked(gyre: &mut Gyre) -> u64 {
    let running = gyre.wait_for("progress behind the check", |event| {
        event["event"] == "progress" && event["state"] != "checking"
    });
    running["pieces_checked"].as_u64().unwrap()
}

fn kill_again_and_again(plan: &Plan) {
    let mut random = Random::new();
    let victim = Victim::new(plan);
    let piece_bytes = u64::from(plan.piece_length);
    let mut looks = 0;
    for kill in 0..plan.kills {
        let life = Duration::from_millis(random.below(LIFE_MS_MAX));
        let (touched, recorded) = (victim.touched(), victim.recorded());
        for piece in &recorded {
            assert!(
                victim.is_good(*piece),
                "piece {piece} is recorded and not good"
            );
        }
        let unrecorded: Vec<u32> = touched.difference(&recorded).copied().collect();
        let kept = unrecorded.iter().filter(|piece| victim.is_good(**piece));
        let kept: BTreeSet<u32> = kept.copied().chain(recorded.iter().copied()).collect();
        let unrecorded_bytes = unrecorded.len() as u64 * piece_bytes;
        assert!(
            unrecorded_bytes <= UNRECORDED_BYTES_MAX,
            "{unrecorded_bytes} bytes are on disk and in no record"
        );
        let served = |piece: &u32| (*piece, victim.seeder.served_of(*piece));
        let served_before: Vec<(u32, u64)> = kept.iter().map(served).collect();
        let mut gyre = victim.start(plan.rate);
        let started = Instant::now();
        std::thread::sleep(life);
        if life > Duration::from_millis(LOOK_MS) {
            looks += 1;
            let addr = gyre.listening();
            let checked = checked(&mut gyre);
            assert!(
                checked <= unrecorded.len() as u64,
                "{checked} pieces were read, {} were on disk and unrecorded",
                unrecorded.len()
            );
            victim.check_offer(addr, &kept, &mut random);
        }
        println!(
            "run {kill}: {:?}, {} recorded, {} unrecorded on disk, {} MiB sent so far",
            started.elapsed(),
            recorded.len(),
            unrecorded.len(),
            victim.seeder.sent_bytes() / MIB
        );
        gyre.kill9();
        for (piece, before) in served_before {
            let again = victim.seeder.served_of(piece) - before;
            assert_eq!(again, 0, "piece {piece} was whole and is fetched again");
        }
        if kill % 4 == 1 {
            check_seed(&victim, &mut random);
        }
    }
    println!("{} kills, {looks} runs looked at", plan.kills);
    finish(&victim, plan);
}

/// What a kill left, seeded: only what is good.
fn check_seed(victim: &Victim, random: &mut Random) {
    let is_good = |piece: &u32| victim.is_good(*piece);
    let good: BTreeSet<u32> = victim.touched().into_iter().filter(is_good).collect();
    if good.is_empty() {
        return;
    }
    let mut seed = victim.start_seed();
    let addr = seed.listening();
    let _ = checked(&mut seed);
    victim.check_offer(addr, &good, random);
    seed.kill9();
}

fn finish(victim: &Victim, plan: &Plan) {
    let mut gyre = victim.start(0);
    gyre.wait_for_within("complete", Duration::from_secs(120), |event| {
        event["event"] == "complete"
    });
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(victim.sample.is_same_in(&victim.out), "the copy differs");
    let sent = victim.seeder.sent_bytes();
    let allowed = plan.bytes + plan.kills as u64 * LOST_PER_KILL_BYTES;
    println!(
        "{} MiB sent for {} MiB and {} kills",
        sent / MIB,
        plan.bytes / MIB,
        plan.kills
    );
    assert!(sent <= allowed, "{sent} bytes were sent, {allowed} allowed");
}

#[test]
fn killed_downloads_go_on_where_they_were() {
    let is_long = std::env::var("GYRE_LONG").is_ok_and(|value| value == "1");
    kill_again_and_again(&match is_long {
        true => Plan {
            bytes: 400 * MIB,
            piece_length: 1 << 18,
            kills: 200,
            rate: 3_000_000,
            base: 80,
        },
        false => Plan {
            bytes: 96 * MIB,
            piece_length: 1 << 18,
            kills: 20,
            // Not done before the last of them, however long the runs happen to live.
            rate: 4_000_000,
            base: 81,
        },
    });
}

#[test]
fn what_a_kill_left_half_written_is_fetched_again_and_never_offered() {
    let plan = Plan {
        bytes: 64 * MIB,
        piece_length: 1 << 18,
        kills: 1,
        rate: 40_000_000,
        base: 82,
    };
    let mut random = Random::new();
    let victim = Victim::new(&plan);
    let mut gyre = victim.start(plan.rate);
    gyre.wait_for("some pieces", |event| {
        event["pieces_have"].as_u64() > Some(20)
    });
    gyre.kill9();
    let recorded = victim.recorded();
    let unrecorded: Vec<u32> = victim.touched().difference(&recorded).copied().collect();
    assert!(unrecorded.len() > 4, "{unrecorded:?}");
    // As if the power had gone in the middle of them.
    spoil(&victim.file(), &victim.content, &unrecorded[..4]);
    let mut seed = victim.start_seed();
    let addr = seed.listening();
    let _ = checked(&mut seed);
    let offered = victim.check_offer(addr, &recorded, &mut random);
    assert!(unrecorded[..4].iter().all(|piece| !offered.contains(piece)));
    seed.kill9();
    finish(&victim, &plan);
}

/// Waits until nobody has the file open. The ring of a killed process ends behind it, and so do its writes; only a file
/// that is open nowhere else takes a lease. Where there are no leases it waits for nothing.
fn wait_until_closed(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    // SAFETY: the descriptor is open, and both commands take a number.
    let lease = |kind: i32| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    let until = Instant::now() + PATIENCE;
    while lease(libc::F_WRLCK) != 0 {
        if std::io::Error::last_os_error().raw_os_error() != Some(libc::EAGAIN) {
            return;
        }
        assert!(Instant::now() < until, "it is still open");
        std::thread::sleep(Duration::from_millis(5));
    }
    lease(libc::F_UNLCK);
}

fn spoil(path: &Path, content: &Content, pieces: &[u32]) {
    let file = File::options().write(true).open(path).unwrap();
    for piece in pieces {
        let start = content.piece_range(*piece).start as u64;
        file.write_all_at(b"half written", start + 5_000).unwrap();
    }
}
