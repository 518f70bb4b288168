//! Disks that fail, fall short and dawdle under the real command (HOSTILE.md L1, L2).

use std::path::Path;
use std::time::{Duration, Instant};

use crate::disk::{Doing, Fault};
use crate::support::fake_peer::{Behaviour, Content, FakeSeeder};
use crate::support::{Gyre, Sample, machine, sample::text};
use crate::trace::Bench;

const FILES: [(&str, usize); 3] = [("a", 2_000_000), ("b/c", 2_000_000), ("d", 1_500_000)];
const NAMES: [&str; 3] = ["a", "b/c", "d"];
/// How soon after the cause is gone a download goes on.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// Writes of records are shorter.
const DATA: u32 = 4_096;
/// And no record is as long as the shortest file of data that is being written.
const DATA_FILE: u64 = 65_536;

fn completes(bench: &Bench, gyre: &mut Gyre) {
    gyre.wait_for_within("complete", RECOVERY_MAX * 2, |event| {
        event["event"] == "complete"
    });
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(bench.has_files(&NAMES));
}

#[test]
fn writes_that_fall_short_and_operations_that_dawdle_change_nothing() {
    let name = "writes_that_fall_short_and_operations_that_dawdle";
    let Some(bench) = Bench::new(name, 204, &FILES, "out") else {
        return;
    };
    let mut count = 0;
    bench.disk.plan(move |doing| {
        count += 1;
        match doing {
            Doing::Write(_) if count % 3 == 0 => Fault::Short,
            _ if count % 10 == 1 => Fault::Slow(Duration::from_millis(10)),
            _ => Fault::None,
        }
    });
    completes(&bench, &mut bench.quick(&[]));
}

/// All writes of data fail from that one on, for a second.
fn fails_from(write: u32, error: i32, last_byte: u8) {
    let name = "a_disk_that_fails_for_a_moment_is_gone_on_with";
    let Some(bench) = Bench::new(name, last_byte, &FILES, "out") else {
        return;
    };
    let mut count = 0;
    let mut since: Option<Instant> = None;
    bench.disk.plan(move |doing| {
        let is_data = matches!(doing, Doing::Write(DATA..));
        count += u32::from(is_data);
        if is_data && count > write {
            let since = *since.get_or_insert_with(Instant::now);
            if since.elapsed() < Duration::from_secs(1) {
                return Fault::Error(error);
            }
        }
        Fault::None
    });
    let mut gyre = bench.quick(&[]);
    let told = gyre.wait_for(&format!("error at write {write}"), |event| {
        event["event"] == "error"
    });
    assert_eq!(told["final"], false, "{told}");
    completes(&bench, &mut gyre);
}

#[test]
fn a_disk_that_fails_for_a_moment_is_gone_on_with() {
    let all = [
        (0, libc::EIO),
        (7, libc::ENOSPC),
        (60, libc::EIO),
        (120, libc::ENOSPC),
        (200, libc::EDQUOT),
    ];
    std::thread::scope(|scope| {
        for (at, (write, error)) in all.into_iter().enumerate() {
            scope.spawn(move || fails_from(write, error, 205 + at as u8));
        }
    });
}

#[test]
fn data_that_a_failed_sync_lost_is_found_out_and_fetched_again() {
    let name = "data_that_a_failed_sync_lost_is_found_out";
    let files = [("a", 3_000_000), ("b/c", 3_000_000), ("d", 3_000_000)];
    let Some(bench) = Bench::new(name, 211, &files, "out") else {
        return;
    };
    // The first syncs of data, which come with the record of every ten seconds, and not those of the records.
    let mut lost = 0;
    bench.disk.plan(move |doing| {
        if matches!(doing, Doing::SyncFile(DATA_FILE..)) && lost < 2 {
            lost += 1;
            return Fault::Loses;
        }
        Fault::None
    });
    let mut gyre = bench.slow(&[]);
    let told = gyre.event("error");
    assert_eq!(told["final"], false, "{told}");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("sync"), "{message}");
    completes(&bench, &mut gyre);
}

#[test]
fn a_sync_that_fails_at_the_end_is_no_success_and_the_next_run_makes_good() {
    let name = "a_sync_that_fails_at_the_end_is_no_success";
    let Some(bench) = Bench::new(name, 210, &FILES, "out") else {
        return;
    };
    // The first record may be synced while data is written already: only what follows the last of it counts.
    let mut data_left: usize = FILES.iter().map(|(_, bytes)| bytes).sum();
    let mut lost = false;
    bench.disk.plan(move |doing| {
        if let Doing::Write(bytes) = doing {
            data_left = data_left.saturating_sub(bytes as usize);
        }
        if matches!(doing, Doing::SyncFile(_)) && data_left == 0 && !lost {
            lost = true;
            return Fault::Loses;
        }
        Fault::None
    });
    let mut gyre = bench.quick(&[]);
    assert_eq!(gyre.wait_exit(RECOVERY_MAX), 1);
    completes(&bench, &mut bench.quick(&[]));
}

fn fill(folder: &Path) {
    use std::io::Write;
    let mut ballast = std::fs::File::create(folder.join("ballast")).unwrap();
    while ballast.write_all(&[1; 65_536]).is_ok() {}
}

/// A download onto a file system that is full for a while once there are so many pieces; how long it took to go on.
fn full_at(pieces: u64, last_byte: u8) -> Option<Duration> {
    let small = machine::Mounted::small("a_small_file_system_that_fills_up", 24 << 20)?;
    let sample = Sample::file(12 << 20, 65_536, &[]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(last_byte));
    let (peer, out) = (seeder.addr.to_string(), small.path().join("out"));
    let (torrent, out_text, state) = (
        text(&sample.torrent),
        text(&out),
        text(&sample.dir("state")),
    );
    let mut arguments = vec!["download", &torrent, "-o", &out_text, "--state", &state];
    arguments.extend(["--port", "0", "--no-trackers", "--peer", &peer]);
    arguments.extend(["--limit-down", "2MiB"]);
    let mut gyre = Gyre::start(&arguments);
    gyre.wait_for("a part", |event| {
        event["pieces_have"].as_u64() >= Some(pieces)
    });
    fill(small.path());
    let error = gyre.event("error");
    assert!(
        error["message"].as_str().unwrap().contains("no space left"),
        "{error}"
    );
    assert_eq!(error["final"], false);
    let stuck = gyre.wait_for("the state", |event| event["state"] == "error");
    let had = stuck["pieces_have"].as_u64();
    std::fs::remove_file(small.path().join("ballast")).unwrap();
    let begun = Instant::now();
    // The end of the download may be told before its figures.
    let gone_on = gyre.wait_for_within("progress", RECOVERY_MAX, |event| {
        event["pieces_have"].as_u64() > had || event["event"] == "complete"
    });
    let took = begun.elapsed();
    if gone_on["event"] != "complete" {
        gyre.event("complete");
    }
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out));
    Some(took)
}

#[test]
fn a_small_file_system_that_fills_up_anywhere_in_a_download_is_gone_on_with() {
    std::thread::scope(|scope| {
        let run = |(at, pieces): (u8, u64)| scope.spawn(move || full_at(pieces, 212 + at));
        let runs: Vec<_> = (0..).zip([1, 20, 60, 100, 140]).map(run).collect();
        for run in runs {
            if let Some(took) = run.join().unwrap() {
                println!("went on after {took:?}");
                assert!(took <= RECOVERY_MAX);
            }
        }
    });
}
