//! Trackers, web seeds and .torrent files over https, with the feature `tls`: servers with certificates of the test's own
//! authority, and what must not hurt.

#[path = "../support/mod.rs"]
mod support;

mod front;
mod hostile;
mod machine;

use std::net::SocketAddr;
use std::time::Duration;

use front::{Authority, End, Front, acceptor, self_signed};
use openssl::ssl::SslVersion;
use serde_json::Value;
use support::fake_peer::{Behaviour, Content, FakeSeeder};
use support::fake_tracker::{HttpTracker, ok, peers};
use support::program::command;
use support::sample::text;
use support::socks_server::{Manners, SOURCE};
use support::web_server::{Reply, finish, start};
use support::{Gyre, Sample, SocksServer, WebServer};

/// Arguments of a download of the sample.
pub fn download(sample: &Sample, more: &[&str]) -> Gyre {
    let mut arguments = vec!["download".to_owned(), text(&sample.torrent)];
    arguments.extend(["-o".to_owned(), text(&sample.dir("out"))]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--port", "0", "--no-lsd"].map(String::from));
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    Gyre::start(&arguments)
}

/// What `gyre info --scrape` is told by each of these trackers.
pub fn scrape(trackers: &[String], more: &[&str]) -> Vec<Value> {
    let mut link = format!("magnet:?xt=urn:btih:{}", "0a".repeat(20));
    for tracker in trackers {
        link.push_str("&tr=");
        gyre::wire::url::percent_encode(tracker.as_bytes(), &mut link);
    }
    let mut command = command();
    command
        .args(["info", &link, "--scrape", "--json"])
        .args(more);
    let output = command.output().unwrap();
    let line = output.stdout.split(|byte| *byte == b'\n').next().unwrap();
    let told: Value = serde_json::from_slice(line).unwrap_or_else(|_| panic!("{output:?}"));
    told["trackers"].as_array().unwrap().clone()
}

/// A tracker that answers scrapes.
pub fn counting() -> HttpTracker {
    let hash = [0x0a; 20];
    let mut body = b"d5:filesd20:".to_vec();
    body.extend(hash);
    body.extend(b"d8:completei9e10:downloadedi1e10:incompletei2eeee");
    HttpTracker::saying(ok(&body))
}

#[test]
fn an_announce_over_https_finds_peers_and_goes_on_with_the_session_it_had() {
    let authority = Authority::new("authority of the test");
    let content = Sample::file(300_000, 1 << 14, &[]);
    let seeder = FakeSeeder::start(&Content::of(&content), Behaviour::honest(3));
    let tracker = HttpTracker::saying(ok(&peers(&[seeder.addr])));
    let front = Front::start(&authority.identity(&["localhost"]), tracker.addr);
    let sample = Sample::file(300_000, 1 << 14, &[&front.url("localhost", "announce")]);
    let ca = authority.file(sample.folder.path());
    let mut gyre = download(&sample, &["--tracker-ca", &text(&ca)]);
    finish(&sample, &mut gyre);
    let events: Vec<_> = std::iter::from_fn(|| tracker.next_within(Duration::ZERO)).collect();
    assert!(events.iter().any(support::fake_tracker::Get::is_stopped));
    let seen = front.seen();
    assert!(seen.len() >= 2, "{seen:?}");
    assert!(
        seen.iter()
            .all(|seen| seen.name.as_deref() == Some("localhost"))
    );
    assert!(
        seen.iter().all(|seen| seen.version == "TLSv1.3"),
        "{seen:?}"
    );
    assert!(!seen[0].is_resumed && seen[1].is_resumed, "{seen:?}");
}

#[test]
fn a_daemon_takes_the_authority_from_its_settings() {
    let authority = Authority::new("authority of the test");
    let content = Sample::file(300_000, 1 << 14, &[]);
    let seeder = FakeSeeder::start(&Content::of(&content), Behaviour::honest(3));
    let tracker = HttpTracker::saying(ok(&peers(&[seeder.addr])));
    let front = Front::start(&authority.identity(&["127.0.0.1"]), tracker.addr);
    let sample = Sample::file(300_000, 1 << 14, &[&front.url("127.0.0.1", "announce")]);
    let ca = authority.file(sample.folder.path());
    let settings = sample.folder.path().join("gyre.toml");
    std::fs::write(&settings, format!("tracker-ca = {:?}\n", text(&ca))).unwrap();
    let state = sample.dir("state");
    let mut daemon = support::Daemon::start_with(&state, &["--config", &text(&settings)]);
    let out = sample.dir("out");
    daemon.add(&sample, &out);
    daemon.seeding();
    assert!(sample.is_same_in(&out));
    // An address is no name to ask for.
    assert!(front.seen().iter().all(|seen| seen.name.is_none()));
    daemon.terminate();
}

#[test]
fn certificates_that_do_not_show_who_it_is_are_refused_by_name() {
    let authority = Authority::new("authority of the test");
    let other = Authority::new("somebody");
    let tracker = counting();
    let good = authority.identity(&["localhost", "127.0.0.1"]);
    let front = |identity: &front::Identity| Front::start(identity, tracker.addr);
    let mut old = acceptor(&good);
    old.set_min_proto_version(Some(SslVersion::TLS1)).unwrap();
    old.set_max_proto_version(Some(SslVersion::TLS1_1)).unwrap();
    old.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
    let mut of_two = acceptor(&good);
    of_two
        .set_max_proto_version(Some(SslVersion::TLS1_2))
        .unwrap();
    let cases = [
        (front(&good), "localhost", None),
        (front(&good), "127.0.0.1", None),
        (
            Front::with(of_two, tracker.addr, End::Told),
            "localhost",
            None,
        ),
        (
            front(&authority.identity(&["other.example", "*.localhost"])),
            "localhost",
            Some("not made out to this name"),
        ),
        (
            front(&authority.identity(&["localhost"])),
            "127.0.0.1",
            Some("not made out to this name"),
        ),
        (
            front(&authority.of_days(&["localhost"], (-9, -2))),
            "localhost",
            Some("has expired"),
        ),
        (
            front(&authority.of_days(&["localhost"], (2, 9))),
            "localhost",
            Some("not valid yet"),
        ),
        (
            front(&self_signed(&["localhost"])),
            "localhost",
            Some("is self-signed"),
        ),
        (
            front(&other.identity(&["localhost"])),
            "localhost",
            Some("nobody that is trusted"),
        ),
        (
            Front::with(old, tracker.addr, End::Told),
            "localhost",
            Some("version 1.2"),
        ),
    ];
    let urls: Vec<String> = cases
        .iter()
        .map(|(front, host, _)| front.url(host, "announce"))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let ca = authority.file(folder.path());
    let told = scrape(&urls, &["--no-ipv6", "--tracker-ca", &text(&ca)]);
    for ((front, host, refusal), told) in cases.iter().zip(told) {
        let failed = front.failed();
        match refusal {
            None => assert_eq!(told["seeders"], 9, "{told} {failed:?}"),
            Some(words) => {
                let error = told["error"].as_str().unwrap();
                assert!(error.contains(words), "{error}, not: {words}; {failed:?}");
                assert!(error.contains(host), "{error}");
            }
        }
    }
    let without = scrape(&urls[..1], &["--no-ipv6"]);
    let error = without[0]["error"].as_str().unwrap();
    assert!(error.contains("--tracker-ca FILE"), "{error}");
}

#[test]
fn what_the_system_trusts_is_trusted() {
    let authority = Authority::new("authority of the test");
    let folder = tempfile::tempdir().unwrap();
    let system = authority.file(folder.path());
    let tracker = counting();
    let front = Front::start(&authority.identity(&["localhost"]), tracker.addr);
    let link = format!(
        "magnet:?xt=urn:btih:{}&tr={}",
        "0a".repeat(20),
        front.url("localhost", "announce")
    );
    let mut command = command();
    command.args(["info", &link, "--scrape", "--no-ipv6"]);
    // Where OpenSSL looks for the system's store.
    command.env("SSL_CERT_FILE", &system);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("9 seeders"), "{output:?}");
}

#[test]
fn a_web_seed_over_https_is_enough() {
    let authority = Authority::new("authority of the test");
    let sample = Sample::file(20_000_000, 1 << 18, &[]);
    let server = WebServer::good(&sample.data);
    let front = Front::start(&authority.identity(&["localhost"]), server.addr);
    let ca = authority.file(sample.folder.path());
    let urls = [front.url("localhost", "sample.bin")];
    let mut gyre = start(&sample, &urls, &["--tracker-ca", &text(&ca)]);
    let figures = finish(&sample, &mut gyre);
    assert_eq!(figures["downloaded_web_bytes"], 20_000_000);
    assert_eq!(figures["wasted_bytes"], 0);
    let seen = front.seen();
    assert!(seen.len() <= 2, "connections are kept: {seen:?}");
}

#[test]
fn a_rate_limit_holds_over_https() {
    let authority = Authority::new("authority of the test");
    let sample = Sample::file(6_000_000, 1 << 18, &[]);
    let server = WebServer::good(&sample.data);
    let front = Front::start(&authority.identity(&["localhost"]), server.addr);
    let ca = authority.file(sample.folder.path());
    let urls = [front.url("localhost", "sample.bin")];
    let begun = std::time::Instant::now();
    let limited = ["--tracker-ca", &text(&ca), "--limit-down", "2MB"];
    let mut gyre = start(&sample, &urls, &limited);
    finish(&sample, &mut gyre);
    assert!(begun.elapsed() >= Duration::from_secs(2));
}

#[test]
fn redirects_lead_from_http_to_https_and_back() {
    let authority = Authority::new("authority of the test");
    let sample = Sample::file(3_000_000, 1 << 16, &[]);
    let good = WebServer::good(&sample.data);
    let to = |there: String| {
        WebServer::start(&sample.data, move |_| {
            Reply::Status("302 Found", vec![format!("Location: {there}")])
        })
    };
    let ca = authority.file(sample.folder.path());
    let last = to(good.url("sample.bin"));
    let front = Front::start(&authority.identity(&["localhost"]), last.addr);
    let first = to(front.url("localhost", "sample.bin"));
    let urls = [first.url("sample.bin")];
    let mut gyre = start(&sample, &urls, &["--tracker-ca", &text(&ca)]);
    let figures = finish(&sample, &mut gyre);
    assert_eq!(figures["downloaded_web_bytes"], 3_000_000);
    assert!(!front.seen().is_empty() && !last.asks().is_empty());
    // Up to five: one that goes round is left.
    let tracker = HttpTracker::start(|_, stream| {
        let _ = std::io::Write::write_all(
            stream,
            b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n",
        );
        support::fake_tracker::Then::KeepOpen
    });
    let front = Front::start(&authority.identity(&["localhost"]), tracker.addr);
    let url = front.url("localhost", "announce");
    let told = scrape(&[url], &["--no-ipv6", "--tracker-ca", &text(&ca)]);
    let error = told[0]["error"].as_str().unwrap();
    assert!(error.contains("redirected more than 5 times"), "{error}");
}

#[test]
fn https_goes_through_the_proxy_and_from_the_bound_address() {
    let authority = Authority::new("authority of the test");
    let sample = Sample::file(3_000_000, 1 << 16, &[]);
    let server = WebServer::good(&sample.data);
    let names = ["mirror.invalid", "127.0.0.1"];
    let front = Front::start(&authority.identity(&names), server.addr);
    let ca = text(&authority.file(sample.folder.path()));
    let proxy = SocksServer::start(Manners {
        names: [("mirror.invalid".to_owned(), front.addr)].into(),
        ..Manners::default()
    });
    let urls = ["https://mirror.invalid/sample.bin".to_owned()];
    let mut gyre = start(
        &sample,
        &urls,
        &["--tracker-ca", &ca, "--proxy", &proxy.url(), "--port", "0"],
    );
    finish(&sample, &mut gyre);
    assert!(proxy.was_asked("connect mirror.invalid:443"));
    let seen = front.seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.from == SOURCE));
    assert!(
        seen.iter()
            .all(|seen| seen.name.as_deref() == Some("mirror.invalid"))
    );

    let bound: SocketAddr = "127.0.0.3:0".parse().unwrap();
    let url = front.url("127.0.0.1", "sample.bin");
    let other = Sample::file(3_000_000, 1 << 16, &[]);
    let more = ["--tracker-ca", &ca, "--bind", &bound.ip().to_string()];
    let mut gyre = start(&other, &[url], &more);
    finish(&other, &mut gyre);
    let seen = front.seen();
    assert!(seen.iter().any(|seen| seen.from == bound.ip()), "{seen:?}");
}

#[test]
fn a_torrent_is_fetched_over_https() {
    let authority = Authority::new("authority of the test");
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let server = WebServer::good(sample.folder.path());
    let front = Front::start(&authority.identity(&["localhost"]), server.addr);
    let ca = text(&authority.file(sample.folder.path()));
    let url = front.url("localhost", "sample.torrent");
    let magnet = |more: &[&str]| {
        let mut command = command();
        command.args(["magnet", &url, "--no-ipv6"]).args(more);
        command.output().unwrap()
    };
    let output = magnet(&["--tracker-ca", &ca]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("magnet:?xt=urn:btih:"), "{output:?}");
    let output = magnet(&[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("nobody that is trusted"), "{output:?}");
}

#[test]
fn a_file_that_holds_no_authority_is_refused_before_anything_begins() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&folder.path().join(name));
    std::fs::write(path("empty.pem"), "").unwrap();
    std::fs::write(
        path("broken.pem"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    for (name, words) in [
        ("none.pem", "no such file"),
        ("", "directory"),
        ("empty.pem", "there is no certificate in it"),
        ("broken.pem", "a certificate in it is broken"),
    ] {
        let mut command = command();
        let link = format!("magnet:?xt=urn:btih:{}", "0a".repeat(20));
        command.args(["download", &link, "--peer", "127.0.0.1:9"]);
        let output = command
            .args(["--tracker-ca", &path(name)])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(said.contains(words), "{name}: {said}");
        assert!(
            said.contains("--tracker-ca") && said.contains("pem"),
            "{said}"
        );
    }
}
