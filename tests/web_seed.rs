//! Web seeds (BEP 19) against the whole program: a web server in the test is a source of blocks beside peers. What
//! hostile ones do is in `tests/hostile/web_seeds.rs`.

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::fake_peer::{Behaviour, Content, FakeSeeder};
use support::web_server::{Reply, finish, start};
use support::{Gyre, Sample, WebServer, sample::text};

#[test]
fn a_single_file_comes_from_a_web_seed_alone() {
    let sample = Sample::file(20_000_000, 1 << 18, &[]);
    let server = WebServer::good(&sample.data);
    let mut gyre = start(&sample, &[server.url("sample.bin")], &[]);
    let figures = finish(&sample, &mut gyre);
    assert_eq!(figures["downloaded_web_bytes"], 20_000_000);
    assert_eq!(figures["wasted_bytes"], 0);
    let asks = server.asks();
    assert!(asks.len() < 40, "{} requests for 20 MB", asks.len());
    assert!(server.connections() <= 2, "connections are kept");
    let says_identity = |line: &String| line == "Accept-Encoding: identity";
    assert!(asks.iter().all(|ask| ask.headers.iter().any(says_identity)));
}

#[test]
fn a_tree_with_odd_names_comes_from_a_folder_on_a_web_server() {
    let files = [
        ("plain.bin", 3_000_000),
        ("a b/50% of #1?.bin", 700_001),
        ("größe/日本語 🌀.bin", 1_234_567),
        ("empty", 0),
        ("one", 1),
        ("a b/c&d;e'f+g.bin", 65_536),
    ];
    let sample = Sample::tree(&files, 1 << 16, &[]);
    let server = WebServer::good(&sample.data);
    let mut gyre = start(&sample, &[server.url("")], &[]);
    let figures = finish(&sample, &mut gyre);
    assert_eq!(figures["downloaded_web_bytes"], figures["total_bytes"]);
    let asked = |part: &str| server.asks().iter().any(|ask| ask.target.contains(part));
    assert!(asked("/sample/a%20b/50%25%20of%20%231%3F.bin"));
    assert!(!asked("empty"), "nothing is asked of a file without bytes");
}

#[test]
fn a_url_that_ends_in_a_slash_is_the_folder_of_a_single_file() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let server = WebServer::good(&sample.data);
    let mut gyre = start(&sample, &[server.url("")], &["--sequential"]);
    finish(&sample, &mut gyre);
    assert!(server.asks().iter().all(|ask| ask.target == "/sample.bin"));
    let mut last = 0;
    for (first, _) in server.asks().iter().filter_map(|ask| ask.range) {
        assert!(first >= last, "in order");
        last = first;
    }
}

#[test]
fn while_it_is_the_only_source_the_torrent_is_downloading_and_has_no_peers() {
    let sample = Sample::file(6_000_000, 1 << 18, &[]);
    let server = WebServer::good(&sample.data);
    let urls = [server.url("sample.bin")];
    let started = Instant::now();
    let mut gyre = start(&sample, &urls, &["--limit-down", "2MB"]);
    let seen = gyre.wait_for("figures of a download", |event| {
        event["event"] == "progress" && event["down_bytes_per_s"].as_u64() > Some(0)
    });
    assert_eq!(seen["web_seeds"], 1);
    assert_eq!(seen["peers"], 0);
    let next = gyre.event("progress");
    assert_eq!(next["state"], "downloading");
    finish(&sample, &mut gyre);
    assert!(
        started.elapsed() >= Duration::from_secs(2),
        "the limit holds"
    );
}

#[test]
fn peers_and_a_web_seed_are_used_beside_each_other() {
    let sample = Sample::file(12_000_000, 1 << 17, &[]);
    let server = WebServer::good(&sample.data);
    let mut behaviour = Behaviour::honest(77);
    behaviour.bytes_per_s = Some(2_000_000);
    let seeder = FakeSeeder::start(&Content::of(&sample), behaviour);
    let peer = seeder.addr.to_string();
    let urls = [server.url("sample.bin")];
    let mut gyre = start(&sample, &urls, &["--peer", &peer, "--limit-down", "4MB"]);
    let figures = finish(&sample, &mut gyre);
    let web = figures["downloaded_web_bytes"].as_u64().unwrap();
    assert!(
        (1_000_000..11_500_000).contains(&web),
        "{web} of 12 MB from the web"
    );
    let wasted = figures["wasted_bytes"].as_u64().unwrap();
    assert!(wasted < 1_500_000, "{wasted} wasted");
}

#[test]
fn no_web_seeds_leaves_them_alone() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let server = WebServer::good(&sample.data);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(78));
    let peer = seeder.addr.to_string();
    let urls = [server.url("sample.bin")];
    let mut gyre = start(&sample, &urls, &["--no-web-seeds", "--peer", &peer]);
    let figures = finish(&sample, &mut gyre);
    assert_eq!(figures["downloaded_web_bytes"], 0);
    assert_eq!(server.connections(), 0);
}

#[test]
fn an_https_url_is_told_once_and_the_others_are_used() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let server = WebServer::good(&sample.data);
    let urls = [
        "https://a.invalid/x".to_owned(),
        "https://b.invalid/x".to_owned(),
        server.url("sample.bin"),
    ];
    let mut gyre = start(&sample, &urls, &[]);
    finish(&sample, &mut gyre);
    let told = gyre.seen().iter().filter(|event| {
        let message = event["message"].as_str().unwrap_or_default();
        event["event"] == "warning" && message.contains("https is not supported")
    });
    assert_eq!(told.count(), 1);
}

#[test]
fn a_redirect_is_followed_once_a_file_and_its_place_is_kept() {
    let sample = Sample::file(9_000_000, 1 << 18, &[]);
    let mirror = WebServer::good(&sample.data);
    let there = mirror.url("sample.bin");
    let server = WebServer::start(&sample.data, move |_| {
        Reply::Status("302 Found", vec![format!("Location: {there}")])
    });
    let mut gyre = start(&sample, &[server.url("x")], &[]);
    finish(&sample, &mut gyre);
    assert!(server.asks().len() <= 2, "once a connection");
    assert!(mirror.asks().len() > 2);
}

#[test]
fn a_server_that_asks_for_patience_gets_it() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let times = Arc::new(Mutex::new(Vec::new()));
    let noted = times.clone();
    let server = WebServer::start(&sample.data, move |ask| {
        noted.lock().unwrap().push(Instant::now());
        match ask.number {
            0 => Reply::Status("503 Busy", vec!["Retry-After: 2".to_owned()]),
            _ => Reply::File,
        }
    });
    let mut gyre = start(&sample, &[server.url("sample.bin")], &[]);
    let warning = gyre.event("warning");
    assert!(warning["message"].as_str().unwrap().contains("status 503"));
    finish(&sample, &mut gyre);
    let times = times.lock().unwrap();
    let waited = times[1] - times[0];
    assert!((1_900..10_000).contains(&waited.as_millis()), "{waited:?}");
}

#[test]
fn a_file_that_a_web_seed_lacks_comes_from_another() {
    // Whole pieces: one with bytes of two files is lacked by whoever lacks one of them.
    let bytes = 25 << 14;
    let files = [("a.bin", bytes), ("b.bin", bytes), ("c.bin", bytes)];
    let sample = Sample::tree(&files, 1 << 14, &[]);
    let lacking = WebServer::start(&sample.data, |ask| match ask.target.ends_with("b.bin") {
        true => Reply::Status("404 Not Found", Vec::new()),
        false => Reply::File,
    });
    let whole = WebServer::start(&sample.data, |ask| match ask.target.ends_with("b.bin") {
        true => Reply::File,
        false => Reply::Status("410 Gone", Vec::new()),
    });
    let mut gyre = start(&sample, &[lacking.url(""), whole.url("")], &[]);
    finish(&sample, &mut gyre);
    let of_b = |server: &WebServer| {
        let asks = server.asks();
        asks.iter()
            .filter(|ask| ask.target.ends_with("b.bin"))
            .count()
    };
    assert!(of_b(&lacking) <= 2, "asked for once a connection");
    assert!(of_b(&whole) >= 1);
}

#[test]
fn a_server_without_ranges_gives_files_that_fit_into_one_request() {
    let sample = Sample::tree(&[("a.bin", 300_000), ("b.bin", 200_000)], 1 << 14, &[]);
    let server = WebServer::start(&sample.data, |_| Reply::Whole);
    let mut gyre = start(&sample, &[server.url("")], &[]);
    let figures = finish(&sample, &mut gyre);
    assert_eq!(figures["downloaded_web_bytes"], 500_000);
}

#[test]
fn a_large_file_of_a_server_without_ranges_is_given_up() {
    let sample = Sample::file(9_000_000, 1 << 18, &[]);
    let server = WebServer::start(&sample.data, |_| Reply::Whole);
    let mut gyre = start(&sample, &[server.url("sample.bin")], &[]);
    let warning = gyre.event("warning");
    let message = warning["message"].as_str().unwrap();
    assert!(
        message.contains("does not send parts of files"),
        "{message}"
    );
    assert!(message.contains(&server.url("sample.bin")));
    gyre.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
    assert!(server.asks().len() <= 2);
}

#[test]
fn the_environments_proxy_is_used_for_web_seeds() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let data = sample.data.clone();
    let proxy = WebServer::start(&data, |ask| {
        assert_eq!(ask.target, "http://mirror.invalid/sample.bin");
        Reply::FileAt("/sample.bin".to_owned())
    });
    let torrent = sample.with_web_seeds(&["http://mirror.invalid/sample.bin".to_owned()]);
    let mut command = support::program::command();
    command.args(["download", &text(&torrent), "-o", &text(&sample.dir("out"))]);
    command.args([
        "--state",
        &text(&sample.dir("state")),
        "--port",
        "0",
        "--json",
    ]);
    command.env("http_proxy", format!("http://{}", proxy.addr));
    let mut gyre = Gyre::spawn(command);
    finish(&sample, &mut gyre);
}
