//! URLs of a .torrent in a link (`xs`) that lead to an attacker: whatever is answered there, the next URL or a peer gives
//! the metadata, and little is asked again.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::fake_holder::{FakeHolder, Holds, info_of};
use crate::support::fake_peer::{Behaviour, Content, FakeSeeder};
use crate::support::sample::text;
use crate::support::web_server::{Ask, Reply, finish};
use crate::support::{Gyre, Sample, WebServer};

/// HOSTILE.md S10: the longest .torrent fetched.
const TORRENT_BYTES_MAX: u64 = 64 << 20;

fn sample() -> Sample {
    Sample::file(100_000, 1 << 14, &[])
}

/// A download of what this link names beside its info_hash.
fn start(sample: &Sample, names: &str, more: &[&str]) -> Gyre {
    let info_hash = sample.info_hash.map(|byte| format!("{byte:02x}")).concat();
    let link = format!("magnet:?xt=urn:btih:{info_hash}{names}");
    let (out, state) = (text(&sample.dir("out")), text(&sample.dir("state")));
    let mut arguments = vec!["download", &link, "-o", &out, "--state", &state];
    arguments.extend(["--port", "0"]);
    arguments.extend(more);
    Gyre::start(&arguments)
}

/// A download whose first URL answers that; what the user heard of it.
fn failure_of(answer: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> String {
    let sample = sample();
    let bad = WebServer::start(&sample.data, answer);
    let good = WebServer::good(sample.folder.path());
    let (torrent, data) = (good.url("sample.torrent"), good.url("data/sample.bin"));
    let names = format!("&xs={}&xs={torrent}&ws={data}", bad.url("x"));
    let mut gyre = start(&sample, &names, &[]);
    let warning = gyre.event("warning");
    finish(&sample, &mut gyre);
    let message = warning["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&bad.url("x")), "{message}");
    let told = gyre.seen().iter().filter(|event| {
        let message = event["message"].as_str().unwrap_or_default();
        event["event"] == "warning" && message.contains(&bad.url("x"))
    });
    assert_eq!(told.count(), 1, "told once");
    message
}

fn body(bytes: &[u8]) -> Reply {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
    Reply::Raw([head.as_bytes(), bytes].concat())
}

#[test]
fn another_torrent_or_none_is_not_taken_for_that_of_the_link() {
    let other = Sample::file(50_000, 1 << 14, &[]);
    let torrent = std::fs::read(&other.torrent).unwrap();
    let message = failure_of(move |_| body(&torrent));
    assert!(message.contains("that of another torrent"), "{message}");
    for bytes in [&b"<html>no</html>"[..], b"", b"d4:infod", b"d4:infodee"] {
        failure_of(|_| body(bytes));
    }
    let deep = [&b"d4:info"[..], &vec![b'l'; 1 << 20]].concat();
    failure_of(move |_| body(&deep));
    let message = failure_of(|_| Reply::Status("404 Not Found", Vec::new()));
    assert!(message.contains("status 404"), "{message}");
}

#[test]
fn an_endless_torrent_ends_at_sixty_four_mebibytes() {
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    failure_of(move |_| {
        let sent = counted.clone();
        Reply::Write(Box::new(move |stream: &mut TcpStream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'd'; 65_536]).is_ok() {
                sent.fetch_add(65_536, Ordering::SeqCst);
            }
        }))
    });
    // What the sockets hold comes on top.
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent < TORRENT_BYTES_MAX + (32 << 20), "{sent} bytes");
    // One that says so itself is not read at all.
    failure_of(|_| {
        let bytes = TORRENT_BYTES_MAX + 1;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\nd");
        Reply::Raw(head.into_bytes())
    });
}

#[test]
fn redirects_of_a_torrent_inward_round_and_out_of_http_are_refused() {
    for (location, expected) in [
        ("http://169.254.169.254/latest", "an inner one"),
        ("file:///etc/passwd", "bad redirect"),
        ("https://a.invalid/x", "https is not supported"),
        ("/x", "more than 5 times"),
    ] {
        let message =
            failure_of(move |_| Reply::Status("302 Found", vec![format!("Location: {location}")]));
        assert!(message.contains(expected), "{location}: {message}");
    }
}

#[test]
fn a_silent_server_of_the_torrent_holds_nothing_up_while_there_are_peers() {
    let sample = sample();
    let server = WebServer::start(&sample.data, |_| Reply::Silence);
    let info = info_of(&std::fs::read(&sample.torrent).unwrap());
    let holder = FakeHolder::start(96, sample.info_hash, Holds::Metadata(info));
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(95));
    let names = format!("&xs={}&x.pe={}", server.url("x"), holder.addr);
    let started = Instant::now();
    let mut gyre = start(&sample, &names, &["--peer", &seeder.addr.to_string()]);
    finish(&sample, &mut gyre);
    assert!(started.elapsed() < Duration::from_secs(25));
    assert_eq!(server.connections(), 1);
}

#[test]
fn two_hundred_urls_are_eight_and_none_is_asked_in_a_tight_loop() {
    let sample = sample();
    for (status, asked) in [("404 No", 8), ("503 Busy", 8)] {
        let server = WebServer::start(&sample.data, move |_| Reply::Status(status, Vec::new()));
        let urls = (0..200).map(|at| format!("&xs={}", server.url(&at.to_string())));
        let mut gyre = start(&sample, &urls.collect::<String>(), &[]);
        for _ in 0..asked {
            gyre.event("warning");
        }
        for _ in 0..3 {
            gyre.event("progress");
        }
        gyre.signal(Signal::SIGTERM);
        assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
        assert_eq!(server.asks().len(), asked, "{status}");
    }
}
