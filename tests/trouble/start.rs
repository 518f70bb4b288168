//! What keeps a command from starting.

use std::net::{Ipv4Addr, TcpListener};

use super::support::{Gyre, Sample, machine, program, sample::text};
use super::{assert_fails, download, seed, start};

const SIZE: usize = 300_000;

fn sample() -> Sample {
    Sample::file(SIZE, 16_384, &[])
}

#[test]
fn a_torrent_that_is_missing_or_malformed_is_said_in_a_line() {
    let sample = sample();
    let good = std::fs::read(&sample.torrent).unwrap();
    let with = |name: &str, bytes: &[u8]| {
        let path = sample.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let lying =
        String::from_utf8_lossy(&good).replace("12:piece lengthi16384e", "12:piece lengthi16385e");
    let cases = [
        (sample.folder.path().join("nowhere.torrent"), "no such file"),
        (sample.data.clone(), "folder"),
        (with("empty.torrent", b""), "cannot use"),
        (with("cut.torrent", &good[..good.len() / 2]), "cannot use"),
        (with("text.torrent", b"hello there"), "cannot use"),
        (with("list.torrent", b"li1ei2ee"), "cannot use"),
        (with("deep.torrent", &vec![b'l'; 2_000_000]), "cannot use"),
        (with("lying.torrent", lying.as_bytes()), "cannot use"),
        (with("data.torrent", &vec![b'7'; 1 << 20]), "cannot use"),
    ];
    let out = sample.dir("out");
    for (path, error) in cases {
        for verb in ["download", "seed"] {
            let mut command = program::command();
            command.args([verb, &text(&path)]);
            command.args(["--port", "0", "--state", &text(&sample.dir("state"))]);
            command.current_dir(&out);
            assert_fails(command, 1, error, "");
        }
    }
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
}

#[test]
fn a_folder_that_cannot_be_written_is_named_and_left_alone() {
    let sample = sample();
    let folder = sample.dir("plain");
    let Some(mounted) = machine::Mounted::read_only("a_folder_that_cannot_be_written", &folder)
    else {
        return;
    };
    let path = text(mounted.path());
    assert_fails(download(&sample, mounted.path(), &[]), 1, &path, "");
    let inner = mounted.path().join("deeper");
    assert_fails(download(&sample, &inner, &[]), 1, &path, "");
    // Nothing that a seed does needs writing there.
    std::fs::copy(&sample.content, folder.join("sample.bin")).unwrap();
    let mut running = start(seed(&sample, mounted.path(), &[]));
    running.wait_for("seeding", |event| event["state"] == "seeding");
}

#[test]
fn a_folder_of_others_is_named_to_an_ordinary_user() {
    let sample = sample();
    machine::open_to_all(sample.folder.path());
    let closed = sample.dir("closed");
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    let run = |output: &str, state: &str| {
        let mut command = machine::as_ordinary_user(&[]);
        command.args(["download", &text(&sample.torrent), "--port", "0"]);
        command.args(["-o", output, "--state", state]);
        command
    };
    let (closed, open) = (text(&closed), text(&sample.dir("open")));
    machine::open_to_all(open.as_ref());
    assert_fails(run(&closed, &open), 1, &closed, "permissions");
    let inner = format!("{closed}/state");
    assert_fails(run(&open, &inner), 1, &inner, "--state");
    assert_eq!(std::fs::read_dir(&open).unwrap().count(), 0);
}

#[test]
fn something_else_in_the_way_of_a_folder_or_file_is_named() {
    let sample = sample();
    let file = sample.folder.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    assert_fails(download(&sample, &file, &[]), 1, &text(&file), "");
    let out = sample.dir("out");
    std::fs::create_dir(out.join("sample.bin")).unwrap();
    let there = text(&out.join("sample.bin"));
    assert_fails(download(&sample, &out, &[]), 1, &there, "");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let state = file.join("state");
    let elsewhere = sample.dir("elsewhere");
    let mut command = program::command();
    command.args(["download", &text(&sample.torrent), "-o", &text(&elsewhere)]);
    command.args(["--port", "0", "--state", &text(&state)]);
    assert_fails(command, 1, &text(&state), "--state");
}

#[test]
fn a_taken_port_is_an_error_when_it_was_asked_for() {
    let sample = sample();
    let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = program::command();
    command.args(["download", &text(&sample.torrent)]);
    command.args(["-o", &text(&sample.dir("out")), "--port", &port]);
    command.args(["--state", &text(&sample.dir("state"))]);
    assert_fails(command, 1, &format!("port {port} is taken"), "--port");
    // A socket of the other kind takes it just as well.
    drop(taken);
    let udp = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port.parse().unwrap())).unwrap();
    let mut command = seed(&sample, &sample.data, &[]);
    command.args(["--port", &port]);
    assert_fails(command, 1, &format!("port {port} is taken"), "--port");
    drop(udp);
}

#[test]
fn without_a_port_asked_for_the_next_free_one_is_taken() {
    let sample = sample();
    let start = || {
        let mut command = program::command();
        command.args([
            "seed",
            &text(&sample.torrent),
            "--data",
            &text(&sample.data),
        ]);
        command.args([
            "--state",
            &text(&sample.dir("state")),
            "--no-trackers",
            "--json",
        ]);
        Gyre::spawn(command)
    };
    // Another program may well have the first: then it is the second that is taken.
    let mut first = start();
    let first_port = first.listening().port();
    let mut second = start();
    let second_port = second.listening().port();
    assert!((6_881..6_891).contains(&first_port), "{first_port}");
    assert!((6_881..6_891).contains(&second_port), "{second_port}");
    assert_ne!(first_port, second_port);
}

#[test]
fn a_wrong_data_folder_is_exit_code_3() {
    let sample = sample();
    let (empty, other) = (sample.dir("empty"), sample.dir("other"));
    std::fs::write(other.join("sample.bin"), vec![7; SIZE]).unwrap();
    let nowhere = sample.folder.path().join("nowhere");
    let tree = Sample::tree(&[("a", 40_000), ("b/c", 50_000)], 16_384, &[]);
    let elsewhere = tree.dir("elsewhere");
    std::fs::create_dir(elsewhere.join("sample")).unwrap();
    assert_fails(seed(&sample, &empty, &[]), 3, "sample.bin", "--data");
    assert_fails(seed(&sample, &other, &[]), 3, "good", "verify");
    assert_fails(seed(&sample, &nowhere, &[]), 3, "nowhere", "--data");
    assert_fails(seed(&tree, &empty, &[]), 3, "", "--data");
    assert_fails(seed(&tree, &elsewhere, &[]), 3, "good", "verify");
}

#[test]
fn incomplete_data_is_seeded_as_far_as_it_is_good() {
    let sample = sample();
    let out = sample.dir("out");
    let mut bytes = std::fs::read(&sample.content).unwrap();
    bytes.truncate(200_000);
    bytes[20_000] ^= 1;
    std::fs::write(out.join("sample.bin"), &bytes).unwrap();
    let mut running = start(seed(&sample, &out, &["--no-trackers"]));
    let warning = running.event("warning");
    let message = warning["message"].as_str().unwrap();
    assert!(message.contains("11 of 19 pieces"), "{message}");
    assert!(warning["hint"].as_str().unwrap().contains("verify"));
    let figures = running.wait_for("seeding", |event| event["state"] == "seeding");
    assert_eq!(figures["pieces_have"], 11);
    assert_eq!(std::fs::read(out.join("sample.bin")).unwrap(), bytes);
}

#[test]
fn commands_started_at_once_share_the_locked_memory_of_their_user() {
    let sample = sample();
    let state = text(&sample.dir("state"));
    machine::open_to_all(sample.folder.path());
    let run = |_| {
        let mut command = machine::as_lone_user(&["--memlock=8388608:8388608"]);
        command.args(["seed", &text(&sample.torrent)]);
        command.args(["--data", &text(&sample.data), "--state", &state]);
        command.args(["--port", "0", "--no-trackers"]);
        start(command)
    };
    for count in [6, 10] {
        let mut seeds: Vec<Gyre> = (0..count).map(run).collect();
        for seed in &mut seeds {
            seed.wait_for("seeding", |event| event["state"] == "seeding");
        }
    }
}
