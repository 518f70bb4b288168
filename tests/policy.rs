//! Policies of `gyre daemon` by what they do to transfers: caps, shares and goals, in force at the start and on SIGHUP.
//! `GYRE_LONG=1` has the rates of a fast line and holds them within 5 %.

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::Sample;
use support::daemon::Daemon;
use support::program::{PATIENCE, command};
use support::raw_peer::{self, Hello, RawPeer};
use support::rpc::{RpcDaemon, SEEDS};
use support::sample::text;

/// Requests that a leecher has under way.
const DEPTH: u32 = 64;
const BLOCK: u32 = 16_384;
const PIECE_LENGTH: u32 = 65_536;

/// Leechers of one torrent that want more than they get, whatever they had already.
struct Crowd {
    got: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn start(sample: &Sample, from: SocketAddr, leechers: usize) -> Crowd {
        let crowd = Crowd {
            got: Arc::default(),
            is_over: Arc::default(),
            threads: Vec::new(),
        };
        let pieces = std::fs::metadata(&sample.content).unwrap().len() as u32 / PIECE_LENGTH;
        let start = |_| {
            let (got, is_over) = (crowd.got.clone(), crowd.is_over.clone());
            let mut peer = RawPeer::dial(from, sample.info_hash);
            std::thread::spawn(move || {
                peer.get_unchoked();
                let mut block = 0;
                let mut next = || {
                    block += 1;
                    let begin = block % (PIECE_LENGTH / BLOCK) * BLOCK;
                    raw_peer::request(block / (PIECE_LENGTH / BLOCK) % pieces, begin, BLOCK)
                };
                let first: Vec<u8> = (0..DEPTH).flat_map(|_| next()).collect();
                peer.send(&first);
                while !is_over.load(Ordering::Relaxed) {
                    let frame = peer.next().expect("the connection lasts");
                    if frame.id == raw_peer::PIECE {
                        got.fetch_add(u64::from(BLOCK), Ordering::Relaxed);
                        peer.send(&next());
                    }
                }
            })
        };
        let threads = (0..leechers).map(start).collect();
        Crowd { threads, ..crowd }
    }

    fn got(&self) -> u64 {
        self.got.load(Ordering::Relaxed)
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// What each crowd gets a second.
fn rates(crowds: &[&Crowd], time: Duration) -> Vec<u64> {
    let (before, begun) = (crowds.iter().map(|crowd| crowd.got()), Instant::now());
    let before: Vec<u64> = before.collect();
    std::thread::sleep(time);
    let passed = begun.elapsed().as_secs_f64();
    let after = crowds.iter().zip(before);
    after
        .map(|(crowd, before)| ((crowd.got() - before) as f64 / passed) as u64)
        .collect()
}

/// Sizes of a run.
struct Scale {
    /// What is 1 MB/s in the long one.
    unit: u64,
    time: Duration,
    percent: u64,
}

impl Scale {
    fn of_run() -> Scale {
        match std::env::var_os("GYRE_LONG").is_some() {
            true => Scale {
                unit: 1_000_000,
                time: Duration::from_secs(10),
                percent: 5,
            },
            false => Scale {
                unit: 100_000,
                time: Duration::from_secs(4),
                percent: 20,
            },
        }
    }

    #[track_caller]
    fn check(&self, got: &[u64], units: &[u64]) {
        eprintln!(
            "measured {got:?} B/s, to be {units:?} times {} B/s",
            self.unit
        );
        for (got, units) in got.iter().zip(units) {
            let wanted = units * self.unit;
            let slack = wanted * self.percent / 100;
            let is_near = (wanted - slack..=wanted + slack).contains(got);
            assert!(is_near, "{got} B/s where it is to be {wanted}");
        }
    }
}

fn config(sample: &Sample, text: &str) -> std::path::PathBuf {
    let path = sample.dir("config").with_extension("toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn seed(daemon: &mut Daemon, sample: &Sample, labels: &[&str]) {
    let answer = daemon.ask(json!({
        "do": "add", "torrent": text(&sample.torrent), "folder": text(&sample.data), "labels": labels,
    }));
    assert!(answer["info_hash"].is_string(), "{answer}");
}

fn wait_for_log(daemon: &Daemon, words: &str) {
    let end = Instant::now() + 3 * PATIENCE;
    while !daemon.gyre.stderr().contains(words) {
        let told = daemon.gyre.stderr();
        assert!(Instant::now() < end, "no \"{words}\" in {told}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_seeding(daemon: &mut Daemon, count: usize) {
    let end = Instant::now() + 3 * PATIENCE;
    loop {
        let list = daemon.ask(json!({ "do": "list" }));
        let torrents = list["torrents"].as_array().unwrap();
        let seeding = torrents.iter().filter(|one| one["state"] == "seeding");
        if seeding.count() == count {
            return;
        }
        assert!(Instant::now() < end, "{list}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What `gyre ctl policies` says.
fn policies_told(state: &Path) -> Vec<Value> {
    let mut ctl = command();
    ctl.args(["ctl", "policies", "--json", "--state"])
        .arg(state);
    let said = ctl.output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let lines = String::from_utf8(said.stdout).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Tracker A at most ten units, label B a guaranteed half of that, after ratio 2.0 throttled to one unit.
#[test]
fn a_tracker_is_capped_a_label_has_its_half_and_is_throttled_after_its_ratio() {
    let scale = Scale::of_run();
    // At half of ten units the ratio is reached once the first rates were measured.
    let bytes = scale.unit * 5 * (scale.time.as_secs() + 6) / 2 / u64::from(PIECE_LENGTH);
    let bytes = bytes as usize * PIECE_LENGTH as usize;
    let tracker = ["http://127.0.0.9:1/announce"];
    let labelled = Sample::file(bytes, PIECE_LENGTH, &tracker);
    let other = Sample::file(bytes + 1, PIECE_LENGTH, &tracker);
    let file = config(
        &labelled,
        &format!(
            "[[policy]]\nname = \"tracker A\"\ntracker = \"127.0.0.9\"\ncap-up = {}\n\
             [[policy]]\nname = \"label B\"\nlabel = \"B\"\nshare = \"50%\"\nratio = 2.0\nthen = \"throttle\"\n\
             throttle-up = {}\n",
            10 * scale.unit,
            scale.unit
        ),
    );
    let mut daemon = Daemon::start_with(&labelled.dir("state"), &["-v", "--config", &text(&file)]);
    let addr = daemon.gyre.listening();
    seed(&mut daemon, &labelled, &["B"]);
    seed(&mut daemon, &other, &[]);
    wait_seeding(&mut daemon, 2);
    // One leecher beside five: without the share it would have its torrent's half too, but not with more torrents.
    let (few, many) = (
        Crowd::start(&labelled, addr, 1),
        Crowd::start(&other, addr, 5),
    );
    std::thread::sleep(Duration::from_secs(2));
    scale.check(&rates(&[&few, &many], scale.time), &[5, 5]);
    let told = policies_told(&labelled.dir("state"));
    assert_eq!(told[0]["name"], "tracker A", "{told:?}");
    assert_eq!(
        (&told[0]["torrents"], &told[1]["torrents"]),
        (&json!(2), &json!(1))
    );
    let sum = told[0]["rateUpload"].as_u64().unwrap();
    assert!(
        sum > told[1]["rateUpload"].as_u64().unwrap() && sum < 15 * scale.unit,
        "{told:?}"
    );
    wait_for_log(&daemon, "goal reached: throttled");
    std::thread::sleep(Duration::from_secs(1));
    scale.check(&rates(&[&few, &many], scale.time), &[1, 9]);
    few.end();
    many.end();
    daemon.terminate();
}

#[test]
fn a_share_holds_against_many_and_policies_change_on_sighup() {
    let scale = Scale::of_run();
    let samples: Vec<Sample> = (0..4)
        .map(|n| Sample::file((4 << 20) + n, PIECE_LENGTH, &[]))
        .collect();
    let rate = format!("limit-up = {}\n", 10 * scale.unit);
    let share = "[[policy]]\nname = \"B\"\nlabel = \"B\"\nshare = \"50%\"\n";
    let file = config(&samples[0], &format!("{rate}{share}"));
    let mut daemon =
        Daemon::start_with(&samples[0].dir("state"), &["-v", "--config", &text(&file)]);
    let addr = daemon.gyre.listening();
    for (at, sample) in samples.iter().enumerate() {
        let labels: &[&str] = if at == 0 { &["B"] } else { &[] };
        seed(&mut daemon, sample, labels);
    }
    wait_seeding(&mut daemon, 4);
    let few = Crowd::start(&samples[0], addr, 1);
    let many: Vec<Crowd> = samples[1..]
        .iter()
        .map(|sample| Crowd::start(sample, addr, 2))
        .collect();
    let crowds: Vec<&Crowd> = std::iter::once(&few).chain(&many).collect();
    std::thread::sleep(Duration::from_secs(2));
    let got = rates(&crowds, scale.time);
    scale.check(&[got[0], got[1..].iter().sum()], &[5, 5]);

    let capped = format!("{rate}{share}cap-up = {}\n", scale.unit);
    std::fs::write(&file, capped).unwrap();
    daemon.gyre.signal(Signal::SIGHUP);
    wait_for_log(&daemon, "settings read anew");
    std::thread::sleep(Duration::from_secs(1));
    let got = rates(&crowds, scale.time);
    scale.check(&[got[0], got[1..].iter().sum()], &[1, 9]);

    std::fs::write(
        &file,
        format!("{rate}[[policy]]\nname = \"B\"\nshare = \"half\"\n"),
    )
    .unwrap();
    daemon.gyre.signal(Signal::SIGHUP);
    wait_for_log(&daemon, "\"half\" is no value of share");
    few.end();
    many.into_iter().for_each(Crowd::end);
    daemon.terminate();
}

/// A torrent with a limit gets it though another one takes all the time that the machine has.
#[test]
fn a_limited_torrent_gets_its_rate_beside_one_without_a_limit() {
    let scale = Scale::of_run();
    let samples = [0, 1].map(|n| Sample::file((4 << 20) + n, PIECE_LENGTH, &[]));
    let file = config(
        &samples[0],
        &format!(
            "[[policy]]\nname = \"slow\"\nlabel = \"slow\"\ncap-up = {}\n",
            scale.unit
        ),
    );
    let mut daemon =
        Daemon::start_with(&samples[0].dir("state"), &["-v", "--config", &text(&file)]);
    let addr = daemon.gyre.listening();
    seed(&mut daemon, &samples[0], &["slow"]);
    seed(&mut daemon, &samples[1], &[]);
    wait_seeding(&mut daemon, 2);
    let (slow, quick) = (
        Crowd::start(&samples[0], addr, 1),
        Crowd::start(&samples[1], addr, 2),
    );
    std::thread::sleep(Duration::from_secs(2));
    let got = rates(&[&slow, &quick], scale.time);
    scale.check(&got[..1], &[1]);
    assert!(got[1] > 2 * got[0], "{got:?}");
    slow.end();
    quick.end();
    daemon.terminate();
}

/// A time zone in which it is noon after that time.
fn zone_with_noon_in(time: Duration) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let ahead = 12 * 3_600 - ((now + time).as_secs() % 86_400) as i64;
    let (sign, off) = (if ahead < 0 { "" } else { "-" }, ahead.unsigned_abs());
    format!(
        "TST{sign}{:02}:{:02}:{:02}",
        off / 3_600,
        off / 60 % 60,
        off % 60
    )
}

/// A cap that counts from noon on, by the time of a zone in which noon is near.
#[test]
fn a_cap_counts_in_its_hours_alone() {
    let scale = Scale::of_run();
    let sample = Sample::file(4 << 20, PIECE_LENGTH, &[]);
    let text_of = format!(
        "[[policy]]\nname = \"day\"\nwhen = \"12:00-18:00\"\ncap-up = {}\n",
        scale.unit
    );
    let file = config(&sample, &text_of);
    let zone = zone_with_noon_in(Duration::from_secs(15));
    let options = ["-v", "--config", &text(&file)];
    let mut daemon = Daemon::start_in(Some(&zone), &sample.dir("state"), &options);
    let addr = daemon.gyre.listening();
    seed(&mut daemon, &sample, &[]);
    wait_seeding(&mut daemon, 1);
    let crowd = Crowd::start(&sample, addr, 1);
    let got = rates(&[&crowd], Duration::from_secs(2));
    let told = policies_told(&sample.dir("state"));
    assert_eq!(
        (&told[0]["inForce"], &told[0]["when"]),
        (&json!(false), &json!("12:00-18:00"))
    );
    assert!(got[0] > 3 * scale.unit, "{got:?} before noon");
    wait_for_log(&daemon, "its hours begin or end");
    std::thread::sleep(Duration::from_secs(1));
    scale.check(&rates(&[&crowd], scale.time), &[1]);
    assert_eq!(policies_told(&sample.dir("state"))[0]["inForce"], true);
    crowd.end();
    daemon.terminate();
}

/// A torrent that has seeded enough leaves the list, and the others go on.
#[test]
fn a_torrent_is_removed_at_its_goal_and_its_data_stays() {
    let samples = [0, 1].map(|n| Sample::file((1 << 20) + n, PIECE_LENGTH, &[]));
    let text_of =
        "[[policy]]\nname = \"done\"\nlabel = \"brief\"\nratio = 1.5\nthen = \"remove\"\n";
    let file = config(&samples[0], text_of);
    let mut daemon =
        Daemon::start_with(&samples[0].dir("state"), &["-v", "--config", &text(&file)]);
    let addr = daemon.gyre.listening();
    seed(&mut daemon, &samples[0], &["brief"]);
    seed(&mut daemon, &samples[1], &[]);
    wait_seeding(&mut daemon, 2);
    let mut peer = RawPeer::dial(addr, samples[0].info_hash);
    peer.get_unchoked();
    peer.send(&raw_peer::request(0, 0, BLOCK));
    // It takes the same block until it is sent away.
    while let Some(frame) = peer.next() {
        if frame.id == raw_peer::PIECE {
            peer.send(&raw_peer::request(0, 0, BLOCK));
        }
    }
    wait_for_log(&daemon, "goal reached: removed");
    let end = Instant::now() + 3 * PATIENCE;
    loop {
        let list = daemon.ask(json!({ "do": "list" }));
        let torrents = list["torrents"].as_array().unwrap();
        if torrents.len() == 1 {
            assert_eq!(torrents[0]["state"], "seeding", "the other one goes on");
            break;
        }
        assert!(Instant::now() < end, "{list}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(samples[0].is_same_in(&samples[0].data));
    daemon.terminate();
}

/// A program is run for a torrent that has reached its goal: once, whatever is started anew, by its arguments as they are.
#[test]
fn a_program_is_run_once_for_a_torrent_that_has_reached_its_goal() {
    let samples = [0, 1].map(|n| Sample::file((1 << 20) + n, PIECE_LENGTH, &[]));
    let own = samples[0].folder.path();
    let told = own.join("told");
    let program = own.join("hook");
    let script = "#!/bin/sh\nprintf '%s|' \"$1\" \"$GYRE_INFO_HASH\" \"$GYRE_POLICY\" >>\"$2\"\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let argv = json!([program, "$(date), `x`", told]);
    let text_of = format!(
        "[[policy]]\nname = \"a \\\"b\"\nlabel = \"brief\"\nratio = 1.5\nthen = \"hook\"\nhook = {argv}\n"
    );
    let file = config(&samples[0], &text_of);
    let (state, options) = (samples[0].dir("state"), ["-v", "--config", &text(&file)]);
    let mut daemon = Daemon::start_with(&state, &options);
    let addr = daemon.gyre.listening();
    seed(&mut daemon, &samples[0], &["brief"]);
    seed(&mut daemon, &samples[1], &[]);
    wait_seeding(&mut daemon, 2);
    let crowds = samples
        .each_ref()
        .map(|sample| Crowd::start(sample, addr, 1));
    wait_for_log(&daemon, "the hook of policy \"a \\\"b\" has run");
    let hash: String = samples[0]
        .info_hash
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let expected = format!("$(date), `x`|{hash}|a \"b|");
    assert_eq!(std::fs::read_to_string(&told).unwrap(), expected);
    let got = crowds[0].got();
    let end = Instant::now() + PATIENCE;
    while crowds[0].got() < got + 10 * u64::from(BLOCK) {
        assert!(Instant::now() < end, "it goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    crowds.into_iter().for_each(Crowd::end);
    assert_eq!(policies_told(&state)[0]["then"], "hook");
    daemon.terminate();

    // Its figures are above the goal from the first look on.
    let mut daemon = Daemon::start_with(&state, &options);
    wait_seeding(&mut daemon, 2);
    let end = Instant::now() + PATIENCE;
    while policies_told(&state)[0]["reached"] != 1 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(2));
    assert!(!daemon.gyre.stderr().contains("a program is run"));
    assert_eq!(std::fs::read_to_string(&told).unwrap(), expected);
    daemon.terminate();
}

/// Pieces that a peer without extensions is told of, until nothing more comes for a while: by `have` alone, or all at once.
fn told_of(peer: &mut RawPeer) -> usize {
    let mut count = 0;
    while let Ok(Some(frame)) = peer.next_within(Duration::from_secs(1)) {
        count += match frame.id {
            raw_peer::HAVE => 1,
            raw_peer::BITFIELD => frame
                .body
                .iter()
                .map(|byte| byte.count_ones() as usize)
                .sum(),
            _ => 0,
        };
    }
    count
}

/// By a policy, then by the torrent's own setting.
#[test]
fn torrents_super_seed_where_that_is_asked_for() {
    let sample = Sample::file(16 * PIECE_LENGTH as usize, PIECE_LENGTH, &[]);
    let policy = "[[policy]]\nname = \"first\"\nlabel = \"first\"\nsuper-seed = true\n";
    let file = config(&sample, policy);
    let daemon = RpcDaemon::start(&sample.dir("state"), &["--config", &text(&file)]);
    let id = daemon.add(&sample.torrent, &sample.data, false);
    daemon.wait_status(id, SEEDS);
    let come = || RawPeer::dial_as(daemon.addr, &Hello::plain(sample.info_hash));
    assert_eq!(told_of(&mut come()), 16);
    daemon.set(id, json!({ "labels": ["first"] }));
    daemon.wait(id, "superSeeding", |value| *value == true);
    let mut peer = come();
    assert_eq!(told_of(&mut peer), 1);
    // The policy goes, and with it what it asked for.
    std::fs::write(&file, "").unwrap();
    daemon.gyre.signal(Signal::SIGHUP);
    assert!(told_of(&mut peer) >= 15, "the rest");
    daemon.set(id, json!({ "superSeeding": true }));
    assert_eq!(daemon.get(id, "superSeeding"), true);
    assert_eq!(told_of(&mut come()), 1);
    daemon.set(id, json!({ "superSeeding": false }));
    assert_eq!(told_of(&mut come()), 16);
    daemon.terminate();
}
