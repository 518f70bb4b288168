//! As a service manager runs it: an ordinary user without any capability and without a way to gain one, everything
//! read-only but the folders it was given.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::start;
use super::support::fake_peer::{Answer, BLOCK, Behaviour, Content, FakeLeecher, FakeSeeder};
use super::support::{Sample, machine, program, sample::text};

/// The folders stay writable, being mounts of their own; then the root does not.
const CONFINED: &str = "for folder in \"$1\" \"$2\"; do mount --bind \"$folder\" \"$folder\" || exit 9; done
mount -o remount,bind,ro / || exit 9
shift 2
exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \"$@\"";

/// The command with the arguments, confined to two folders.
fn confined(folders: [&Path; 2], arguments: &[&str]) -> Command {
    let ordinary = machine::as_ordinary_user(&[]);
    let copy = ordinary.get_args().last().unwrap();
    let mut command = program::clean(Command::new("unshare"));
    command.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        CONFINED,
        "sh",
    ]);
    command.args(folders).arg(copy).args(arguments);
    command
}

fn can_confine(test: &str) -> bool {
    if !machine::has_root(test) {
        return false;
    }
    let tried = Command::new("unshare").args(["--mount", "true"]).output();
    let is_allowed = tried.is_ok_and(|output| output.status.success());
    if !is_allowed {
        machine::skipped(test, "no mount namespace of one's own");
    }
    is_allowed
}

/// What the kernel says of the process.
#[track_caller]
fn assert_confined(pid: u32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapInh:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    let root = nix::sys::statvfs::statvfs(format!("/proc/{pid}/root").as_str()).unwrap();
    assert!(root.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
}

#[test]
fn a_download_without_privileges_writes_in_its_two_folders_alone() {
    let test = "a_download_without_privileges";
    if !can_confine(test) {
        return;
    }
    let sample = Sample::tree(&[("a/one", 300_000), ("two", 700_000)], 65_536, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(120));
    machine::open_to_all(sample.folder.path());
    let (out, state) = (sample.dir("out"), sample.dir("state"));
    machine::open_to_all(&out);
    machine::open_to_all(&state);
    let peer = seeder.addr.to_string();
    let mut gyre = start(confined(
        [&out, &state],
        &[
            "download",
            &text(&sample.torrent),
            "-o",
            &text(&out),
            "--state",
            &text(&state),
            "--port",
            "0",
            "--no-trackers",
            "--peer",
            &peer,
            "--limit-down",
            "2MiB",
        ],
    ));
    gyre.event("listening");
    assert_confined(gyre.pid());
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(program::PATIENCE), 0, "{}", gyre.stderr());
    assert!(sample.is_same_in(&out));
    assert!(std::fs::read_dir(&state).unwrap().count() > 0, "no record");
}

#[test]
fn a_seed_without_privileges_serves_and_records_what_it_did() {
    let test = "a_seed_without_privileges";
    if !can_confine(test) {
        return;
    }
    let sample = Sample::file(1 << 20, 65_536, &[]);
    let content = Content::of(&sample);
    machine::open_to_all(sample.folder.path());
    let (state, data) = (sample.dir("state"), sample.data.clone());
    machine::open_to_all(&state);
    // The data is nobody's to write.
    let empty = sample.dir("empty");
    let mut gyre = start(confined(
        [&empty, &state],
        &[
            "seed",
            &text(&sample.torrent),
            "--data",
            &text(&data),
            "--state",
            &text(&state),
            "--port",
            "0",
            "--no-trackers",
        ],
    ));
    let addr = gyre.listening();
    gyre.wait_for("seeding", |event| event["state"] == "seeding");
    assert_confined(gyre.pid());
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], addr.port()));
    let mut leecher = FakeLeecher::connect(addr, &content).unwrap();
    assert!(leecher.unchoked(program::PATIENCE));
    let answer = leecher.fetch(3, 0, BLOCK, Duration::from_secs(20));
    assert!(
        matches!(answer, Answer::Block(bytes) if content.block(3, 0, BLOCK) == Some(&bytes)),
        "not the block"
    );
    gyre.signal(Signal::SIGTERM);
    gyre.wait_exit(Duration::from_secs(10));
    assert!(std::fs::read_dir(&state).unwrap().count() > 0, "no record");
}
