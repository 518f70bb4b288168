//! Machines that give no ring, or no memory for one (HOSTILE.md L6). A test file of its own: a setting of the kernel is
//! changed for a moment, and no other program may need a ring then.

mod support;

use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use support::fake_peer::{Behaviour, Content, FakeSeeder};
use support::{Gyre, Sample, machine, program, sample::text};

const SETTING: &str = "/proc/sys/kernel/io_uring_disabled";
/// The tests of this file do not run beside each other.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The kernel's switch, put back whatever happens.
struct Switched {
    before: String,
}

impl Switched {
    fn to(test: &str, value: &str) -> Option<Switched> {
        if !machine::has_root(test) {
            return None;
        }
        let Ok(before) = std::fs::read_to_string(SETTING) else {
            machine::skipped(test, "this kernel has no switch for io_uring");
            return None;
        };
        if let Err(error) = std::fs::write(SETTING, value) {
            machine::skipped(test, &format!("the switch cannot be set: {error}"));
            return None;
        }
        Some(Switched { before })
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        std::fs::write(SETTING, self.before.trim()).unwrap();
    }
}

/// Fails with one `error:` and one `hint:` line and exit code 1.
#[track_caller]
fn assert_fails(mut command: Command, error: &str, hint: &str) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = stderr.lines().collect();
    let [first, second] = lines[..] else {
        panic!("not two lines: {stderr}");
    };
    assert!(
        first.starts_with("error: ") && first.contains(error),
        "{first}"
    );
    assert!(
        second.starts_with("hint: ") && second.contains(hint),
        "{second}"
    );
    assert_eq!(output.status.code(), Some(1), "{stderr}");
}

fn arguments(sample: &Sample) -> Vec<String> {
    let mut arguments = vec!["download".to_owned(), text(&sample.torrent)];
    arguments.extend(["-o".to_owned(), text(&sample.dir("out"))]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--port", "0", "--no-trackers"].map(String::from));
    arguments
}

#[test]
fn without_io_uring_the_cause_and_the_remedy_are_told() {
    let _alone = alone();
    let sample = Sample::file(200_000, 16_384, &[]);
    let Some(_switched) = Switched::to("without_io_uring", "2") else {
        return;
    };
    let run = |arguments: &[String]| {
        let mut command = program::command();
        command.args(arguments);
        command
    };
    let remedy = "sysctl kernel.io_uring_disabled=0";
    assert_fails(run(&arguments(&sample)), "io_uring is switched off", remedy);
    let seed = [
        "seed",
        &text(&sample.torrent),
        "--data",
        &text(&sample.data),
        "--port",
        "0",
    ];
    let mut seed = run(&seed.map(String::from));
    seed.args(["--state", &text(&sample.dir("state"))]);
    assert_fails(seed, "io_uring is switched off", remedy);
    assert_eq!(std::fs::read_dir(sample.dir("out")).unwrap().count(), 0);
    // What needs no ring works, and the doctor knows.
    let info = run(&["info".to_owned(), text(&sample.torrent)])
        .output()
        .unwrap();
    assert!(info.status.success());
    let doctor = run(&["doctor".to_owned(), "--port".to_owned(), "0".to_owned()])
        .output()
        .unwrap();
    assert_eq!(doctor.status.code(), Some(1));
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(told.contains("io_uring_disabled"), "{told}");
}

#[test]
fn a_setting_for_the_privileged_shuts_an_ordinary_user_out_alone() {
    let _alone = alone();
    let sample = Sample::file(200_000, 16_384, &[]);
    machine::open_to_all(sample.folder.path());
    let arguments = arguments(&sample);
    machine::open_to_all(sample.folder.path());
    let Some(_switched) = Switched::to("a_setting_for_the_privileged", "1") else {
        return;
    };
    let mut command = machine::as_ordinary_user(&[]);
    command.args(&arguments);
    assert_fails(command, "kernel.io_uring_disabled = 1", "io_uring_group");
    let mut root = program::command();
    root.args(&arguments).args(["--give-up", "1s"]);
    assert_fails(root, "gave up", "");
}

/// As an ordinary user whose processes may lock so much memory: a download works all the same.
fn with_memlock(bytes: u64) {
    let _alone = alone();
    let sample = Sample::file(8 << 20, 65_536, &[]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(160));
    let arguments = arguments(&sample);
    machine::open_to_all(sample.folder.path());
    let limit = format!("--memlock={bytes}");
    let mut command = machine::as_ordinary_user(&[&limit]);
    command
        .args(&arguments)
        .args(["--peer", &seeder.addr.to_string(), "--json"]);
    let mut gyre = Gyre::spawn(command);
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&sample.folder.path().join("out")));
    // Said once, in a line.
    let stderr = gyre.stderr();
    assert!(stderr.lines().count() <= 2, "{stderr}");
    assert!(
        !stderr.contains("panicked") && !stderr.contains("fault"),
        "{stderr}"
    );
}

#[test]
fn an_ordinary_user_without_any_locked_memory_is_told_what_to_raise() {
    let _alone = alone();
    let sample = Sample::file(200_000, 16_384, &[]);
    let arguments = arguments(&sample);
    machine::open_to_all(sample.folder.path());
    let mut command = machine::as_ordinary_user(&["--memlock=0"]);
    command.args(&arguments).args(["--give-up", "1s"]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        !stderr.contains("panicked") && !stderr.contains("fault"),
        "{stderr}"
    );
    // Kernels differ in what they count: either there is no ring, or the download gets as far as giving up.
    if !stderr.contains("gave up") {
        let lines: Vec<&str> = stderr.lines().collect();
        let [first, second] = lines[..] else {
            panic!("not two lines: {stderr}");
        };
        assert!(
            first.starts_with("error: no memory for the smallest io_uring"),
            "{first}"
        );
        assert!(second.starts_with("hint: raise RLIMIT_MEMLOCK"), "{second}");
    }
}

#[test]
fn an_ordinary_user_with_little_locked_memory_downloads_all_the_same() {
    with_memlock(256 << 10);
    with_memlock(8 << 20);
}
