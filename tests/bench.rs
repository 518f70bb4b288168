//! `gyre bench`: every verb with tiny sizes, its JSON, and that nothing stays behind.

mod support;

use std::time::Duration;

use serde_json::Value;
use support::program::command;

/// Runs `gyre bench` and returns its JSON object.
fn bench(arguments: &str) -> Value {
    let mut command = command();
    command.arg("bench").args(arguments.split_whitespace());
    let output = command.args(["--json"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().count(), 1, "one object, nothing else");
    serde_json::from_str(&stdout).unwrap()
}

fn median(result: &Value, figure: &str) -> f64 {
    let value = &result["figures"][figure]["median"];
    value
        .as_f64()
        .unwrap_or_else(|| panic!("no {figure} in {result:#}"))
}

fn assert_machine(result: &Value) {
    for field in ["gyre", "kernel", "cpu", "congestion"] {
        let text = result["machine"][field].as_str().unwrap();
        assert!(!text.is_empty() || field == "cpu", "{field}");
    }
    assert!(result["machine"]["cores"].as_u64().unwrap() > 0);
}

#[test]
fn seeding_is_measured_and_its_blocks_are_the_right_ones() {
    let result = bench(
        "seed --quiet --size 4MiB --piece-length 64KiB --connections 3 --depth 8 --rounds 2 --seconds 300ms",
    );
    assert_machine(&result);
    assert_eq!(result["settings"]["depth"], 8);
    assert_eq!(
        result["figures"]["mb_per_s"]["rounds"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert!(median(&result, "mb_per_s") > 1.0);
    assert!(median(&result, "anonymous_mib") > 1.0);
    assert!(median(&result, "latency_p50_ms") <= median(&result, "latency_p999_ms"));
    assert_eq!(median(&result, "served"), 3.0);
    assert_eq!(median(&result, "lost"), 0.0);
    assert_eq!(median(&result, "checked_blocks"), 3.0);
    assert!(result["ceiling_mb_per_s"].as_f64().unwrap() > 1.0);
}

#[test]
fn many_torrents_of_many_files_are_seeded_in_every_order() {
    for order in ["sequential", "runs --run-blocks 4", "blocks"] {
        let result = bench(&format!(
            "seed --quiet --no-ceiling --torrents 3 --files 7 --size 1MiB --piece-length 32KiB --connections 6 \
             --depth 4 --rounds 1 --seconds 200ms --order {order}"
        ));
        assert_eq!(median(&result, "served"), 6.0, "{order}");
        assert_eq!(median(&result, "checked_blocks"), 6.0, "{order}");
        assert_eq!(median(&result, "lost"), 0.0, "{order}");
    }
}

#[test]
fn a_cold_round_asks_for_every_byte_once() {
    let result = bench(
        "seed --quiet --no-ceiling --cold --order runs --size 8MiB --connections 4 --depth 8 --rounds 1 --seconds 20s",
    );
    assert_eq!(median(&result, "blocks"), 512.0);
    assert!(result["figures"]["read_per_sent"].is_object());
}

#[test]
fn idle_connections_are_held_beside_the_active_ones() {
    let result = bench(
        "seed --quiet --no-ceiling --size 4MiB --connections 1 --idle 20 --idle-seconds 200ms --rounds 1 --seconds 200ms",
    );
    assert_eq!(median(&result, "idle_connected"), 20.0);
    assert_eq!(median(&result, "idle_lost"), 0.0);
    assert!(median(&result, "beside_idle") > 0.0);
    assert!(result["figures"]["idle_kib_each"].is_object());
}

#[test]
fn an_upload_limit_is_compared_with_what_came() {
    let result = bench(
        "seed --quiet --no-ceiling --size 4MiB --connections 2 --limit-up 4MB --rounds 1 --seconds 1s",
    );
    assert!(median(&result, "limit_off_percent").abs() < 50.0);
}

#[test]
fn a_torrent_of_v2_is_measured_as_one_of_v1_is() {
    let shape = "--quiet --no-ceiling --v2 --size 4MiB --piece-length 64KiB --connections 2";
    let result = bench(&format!(
        "seed {shape} --depth 8 --rounds 1 --seconds 300ms"
    ));
    assert_eq!(result["settings"]["v2"], true);
    assert_eq!(median(&result, "checked_blocks"), 2.0);
    assert_eq!(median(&result, "lost"), 0.0);
    let result = bench(&format!("leech {shape} --rounds 1"));
    assert_eq!(result["settings"]["v2"], true);
    assert!(median(&result, "mb_per_s") > 1.0);
}

#[test]
fn downloading_is_measured_with_and_without_fetchers() {
    let result = bench(
        "leech --quiet --size 4MiB --piece-length 64KiB --connections 2 --rounds 2 --files 3",
    );
    assert_machine(&result);
    assert!(median(&result, "mb_per_s") > 1.0);
    assert!(median(&result, "cpu_s_per_gib") > 0.0);
    assert!(median(&result, "complete_seconds") <= median(&result, "seconds"));
    assert!(result["figures"]["up_mb_per_s"].is_null());
    let result = bench(
        "leech --quiet --no-ceiling --size 16MiB --piece-length 64KiB --connections 2 --fetchers 2 --rounds 1 \
         --limit-down 16MB",
    );
    assert!(median(&result, "up_mb_per_s") > 0.0);
    assert!(median(&result, "sum_mb_per_s") > median(&result, "mb_per_s"));
}

#[test]
fn another_program_is_measured_by_the_same_load() {
    let gyre = env!("CARGO_BIN_EXE_gyre");
    let mut bench = command();
    let external = format!(
        "{gyre} seed {{torrent}} --data {{data}} --state {{state}} --port {{port}} --check none --no-trackers"
    );
    bench.args(["bench", "seed", "--quiet", "--no-ceiling", "--size", "4MiB"]);
    bench.args(["--rounds", "1", "--seconds", "200ms", "--connections", "2"]);
    let output = bench
        .args(["--external", &external, "--json"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(median(&result, "served"), 2.0);
    assert_eq!(result["program"], external);
}

#[test]
fn a_program_that_serves_nobody_is_shown_with_what_it_said() {
    let mut bench = command();
    bench.args([
        "bench",
        "leech",
        "--quiet",
        "--no-ceiling",
        "--size",
        "1MiB",
    ]);
    bench.args([
        "--rounds",
        "1",
        "--external",
        "echo out of order >&2; exit 7",
    ]);
    let output = bench.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("out of order"), "{stderr}");
}

#[test]
fn hash_rates_of_one_core_and_all_are_measured_and_verify_beside_them() {
    let result = bench("hash --seconds 50ms --rounds 1 --verify warm --size 4MiB");
    assert!(median(&result, "one_core_mb_per_s") > 1.0);
    assert!(median(&result, "all_cores_mb_per_s") > 1.0);
    assert!(median(&result, "verify_of_ideal") > 0.0);
}

#[test]
fn the_disk_is_read_and_written_through_the_ring() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = folder.path().to_str().unwrap();
    let result = bench(&format!(
        "disk --dir {dir} --size 8MiB --depth 4 --rounds 1"
    ));
    for figure in [
        "write_buffered_mb_per_s",
        "read_random_buffered_mb_per_s",
        "read_sequential_buffered_mb_per_s",
    ] {
        assert!(median(&result, figure) > 1.0, "{figure}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_lab_that_is_killed_takes_the_program_under_test_with_it() {
    use std::io::Read;
    let mut child = command()
        .args(["bench", "seed", "--quiet", "--no-ceiling", "--size", "1MiB"])
        .args(["--rounds", "1", "--external", "echo $$ >&2; exec sleep 600"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let temporary = std::env::temp_dir().join(format!("gyre-bench-{}", child.id()));
    let log = temporary.join("subject.log");
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let pid = loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if let Ok(pid) = text.trim().parse::<i32>() {
            break pid;
        }
        assert!(std::time::Instant::now() < deadline, "no program started");
        std::thread::sleep(Duration::from_millis(20));
    };
    let signal = nix::sys::signal::Signal::SIGTERM;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    while nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok() {
        assert!(std::time::Instant::now() < deadline, "it still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!temporary.exists());
}
