//! Servers that speak TLS badly, or never come to an end (HOSTILE.md K11 to K13, S13): each fails by its name, in its time,
//! and nothing else suffers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::front::{Authority, End, Front, acceptor};
use super::support::fake_peer::{Behaviour, Content, FakeSeeder};
use super::support::fake_tracker::HttpTracker;
use super::support::sample::text;
use super::support::web_server::{finish, start};
use super::support::{Sample, WebServer};
use super::{counting, download, scrape};

/// A server that does this with each connection, once the client's first message is there.
fn server(
    act: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let act = std::sync::Arc::new(act);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let act = act.clone();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4_096]);
                let _ = act(&mut stream);
            });
        }
    });
    addr
}

fn url(addr: SocketAddr) -> String {
    format!("https://{addr}/announce")
}

/// A record of a handshake without an end: it announces a message of 16 MiB.
fn endless_record(number: usize) -> Vec<u8> {
    let body = match number {
        // A server's hello that says it is very long.
        0 => [&[2, 0xff, 0xff, 0xff][..], &[0; 1_020]].concat(),
        _ => vec![0; 1_024],
    };
    [&[22, 3, 3, 4, 0][..], &body].concat()
}

/// More certificates than anybody has: behind the first, the authority over and over.
fn long_chain(authority: &Authority, count: usize) -> openssl::ssl::SslAcceptorBuilder {
    let mut acceptor = acceptor(&authority.identity(&["127.0.0.1"]));
    for _ in 0..count {
        let again = openssl::x509::X509::from_pem(&authority.pem()).unwrap();
        acceptor.add_extra_chain_cert(again).unwrap();
    }
    acceptor
}

#[test]
fn what_is_no_tls_or_breaks_off_fails_by_its_name() {
    let authority = Authority::new("authority of the test");
    let identity = authority.identity(&["127.0.0.1"]);
    let tracker = counting();
    let until_close = |bytes: &'static [u8]| HttpTracker::saying(bytes);
    let without_length = until_close(b"HTTP/1.1 200 OK\r\n\r\nd5:filesdee");
    let ended = Front::with(acceptor(&identity), without_length.addr, End::Told);
    let cut = Front::with(acceptor(&identity), without_length.addr, End::Silent);
    let in_the_head = Front::with(acceptor(&identity), tracker.addr, End::After(10));
    let long = Front::with(long_chain(&authority, 400), tracker.addr, End::Told);
    let some = Front::with(long_chain(&authority, 20), tracker.addr, End::Told);
    let cases = [
        (
            url(server(|to| to.write_all(b"HTTP/1.1 400 Bad\r\n\r\n"))),
            "does not speak TLS",
        ),
        (
            url(server(|to| to.write_all(&[0; 40]))),
            "does not speak TLS",
        ),
        (
            url(server(|to| to.write_all(&[22, 0xff, 0xff, 0, 9, 1]))),
            "does not speak TLS",
        ),
        (
            url(server(|to| to.write_all(&[22, 3, 3, 0xff, 0xff]))),
            "handshake failed",
        ),
        (
            url(server(|to| to.write_all(&[22, 3, 3, 0, 4, 2, 0, 0, 0]))),
            "handshake failed",
        ),
        // It refuses: the name is none that it knows.
        (
            url(server(|to| to.write_all(&[21, 3, 3, 0, 2, 2, 112]))),
            "handshake failed",
        ),
        (
            url(server(|to| to.write_all(&[22, 3, 3]))),
            "in the middle of TLS",
        ),
        (url(server(|_| Ok(()))), "in the middle of TLS"),
        (
            url(server(|to| {
                (0..).try_for_each(|number| to.write_all(&endless_record(number)))
            })),
            "",
        ),
        (url(cut.addr), "in the middle of TLS"),
        (url(ended.addr), "does not know the torrent"),
        (url(in_the_head.addr), "in the middle of TLS"),
        (url(long.addr), "more certificates than are taken"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let ca = text(&authority.file(folder.path()));
    let urls: Vec<String> = cases.iter().map(|(url, _)| url.clone()).collect();
    let begun = Instant::now();
    let told = scrape(&urls, &["--no-ipv6", "--tracker-ca", &ca]);
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "no deadline was needed"
    );
    for (number, ((_, words), told)) in cases.iter().zip(told).enumerate() {
        let error = told["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{number}: {told}"));
        assert!(error.contains(words), "{number}: {error}, not: {words}");
    }
    let told = scrape(&[url(some.addr)], &["--no-ipv6", "--tracker-ca", &ca]);
    assert_eq!(
        told[0]["seeders"], 9,
        "a chain of 20 is silly and harmless: {told:?}"
    );
}

#[test]
fn trackers_that_never_end_their_handshake_hold_nothing_up() {
    let endless = server(|to| (0..).try_for_each(|number| to.write_all(&endless_record(number))));
    let dripping = server(|to| {
        to.write_all(&[22, 3, 3, 0x40, 0])?;
        loop {
            std::thread::sleep(Duration::from_millis(20));
            to.write_all(&[0])?;
        }
    });
    let silent = server(|to| to.read(&mut [0]).map(drop));
    let garbage = server(|to| {
        loop {
            to.write_all(&[0xa5; 65_536])?;
        }
    });
    let urls = [endless, dripping, silent, garbage].map(url);
    let announce: Vec<&str> = urls.iter().map(String::as_str).collect();
    let sample = Sample::file(20_000_000, 1 << 16, &announce);
    let mut behaviour = Behaviour::honest(5);
    behaviour.bytes_per_s = Some(5_000_000);
    let seeder = FakeSeeder::start(&Content::of(&sample), behaviour);
    let peer = seeder.addr.to_string();
    let mut gyre = download(&sample, &["--peer", &peer, "--buffers", "4MiB", "--seed"]);
    let begun = Instant::now();
    gyre.event("complete");
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    let bytes = gyre.anonymous_bytes();
    assert!(bytes < 64 << 20, "{bytes} bytes of memory");
    // `stopped` has five seconds.
    gyre.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(gyre.wait_exit(Duration::from_secs(10)), 130);
    assert!(!gyre.stderr().contains("panicked"), "{}", gyre.stderr());
}

#[test]
fn web_seeds_that_break_off_in_the_middle_of_tls_cost_little() {
    let authority = Authority::new("authority of the test");
    let sample = Sample::file(8_000_000, 1 << 16, &[]);
    let server = WebServer::good(&sample.data);
    let identity = authority.identity(&["localhost"]);
    let cut = Front::with(acceptor(&identity), server.addr, End::After(3_000_000));
    let stranger = Authority::new("somebody").identity(&["localhost"]);
    let stranger = Front::start(&stranger, server.addr);
    let mut behaviour = Behaviour::honest(6);
    behaviour.bytes_per_s = Some(3_000_000);
    let seeder = FakeSeeder::start(&Content::of(&sample), behaviour);
    let peer = seeder.addr.to_string();
    let ca = text(&authority.file(sample.folder.path()));
    let urls = [
        cut.url("localhost", "sample.bin"),
        stranger.url("localhost", "sample.bin"),
    ];
    let mut gyre = start(&sample, &urls, &["--peer", &peer, "--tracker-ca", &ca]);
    let figures = finish(&sample, &mut gyre);
    let web = figures["downloaded_web_bytes"].as_u64().unwrap();
    assert!((1..=6_100_000).contains(&web), "{web}");
    let wasted = figures["wasted_bytes"].as_u64().unwrap();
    assert!(wasted < 1_000_000, "{wasted}");
    let told = |words: &str| {
        gyre.seen().iter().any(|event| {
            let message = event["message"].as_str().unwrap_or_default();
            event["event"] == "warning" && message.contains(words)
        })
    };
    assert!(
        told("issued by nobody that is trusted"),
        "{:#?}",
        gyre.seen()
    );
}
