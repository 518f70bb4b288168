//! `--proxy`: everything goes through a SOCKS 5 proxy and nothing around it. The proxy goes out from 127.0.0.2, so the
//! other end of each connection tells which way it came.

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::fake_peer::{Behaviour, Content, FakeSeeder};
use support::fake_tracker::{
    HttpTracker, Then, UdpTracker, ok, peers, udp_announced, udp_connected,
};
use support::program::command;
use support::sample::text;
use support::socks_server::{Manners, SOURCE};
use support::{Gyre, Sample, SocksServer, WebServer};

/// A download of the sample through the proxy, with whatever else the arguments say.
fn start(sample: &Sample, torrent: &std::path::Path, proxy: &str, more: &[&str]) -> Gyre {
    let mut arguments = vec!["download".to_owned(), text(torrent)];
    arguments.extend(["-o".to_owned(), text(&sample.dir("out"))]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--proxy".to_owned(), proxy.to_owned()]);
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    Gyre::start(&arguments)
}

fn finish(sample: &Sample, gyre: &mut Gyre) {
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&sample.dir("out")), "the copy differs");
}

/// Passes connections on to another address and notes who made them.
fn watched(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<IpAddr>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<IpAddr>>> = Arc::default();
    let noted = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            noted.lock().unwrap().push(stream.peer_addr().unwrap().ip());
            let other = TcpStream::connect(to).unwrap();
            for (mut from, mut to) in [
                (stream.try_clone().unwrap(), other.try_clone().unwrap()),
                (other, stream),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    (addr, seen)
}

fn all_through_the_proxy(seen: &Mutex<Vec<IpAddr>>) {
    let seen = seen.lock().unwrap();
    assert!(!seen.is_empty(), "nobody came");
    assert!(seen.iter().all(|ip| *ip == SOURCE), "around it: {seen:?}");
}

#[test]
fn peers_trackers_and_web_seeds_go_through_the_proxy_and_it_looks_names_up() {
    let sample = Sample::file(12_000_000, 1 << 16, &["http://tracker.invalid:81/announce"]);
    let mut behaviour = Behaviour::honest(3);
    behaviour.bytes_per_s = Some(2_000_000);
    let seeder = FakeSeeder::start(&Content::of(&sample), behaviour);
    let (peer, peer_seen) = watched(seeder.addr);
    let announced = ok(&peers(&[peer]));
    let tracker = HttpTracker::saying(announced);
    let (tracker_addr, tracker_seen) = watched(tracker.addr);
    let server = WebServer::good(&sample.data);
    let (web, web_seen) = watched(server.addr);
    let proxy = SocksServer::start(Manners {
        names: [
            ("tracker.invalid".to_owned(), tracker_addr),
            ("mirror.invalid".to_owned(), web),
        ]
        .into(),
        ..Manners::default()
    });
    let torrent = sample.with_web_seeds(&["http://mirror.invalid/sample.bin".to_owned()]);
    let mut gyre = start(&sample, &torrent, &proxy.url(), &["--limit-down", "3MB"]);
    finish(&sample, &mut gyre);
    for (what, seen) in [
        (format!("connect {peer}"), &peer_seen),
        ("connect tracker.invalid:81".to_owned(), &tracker_seen),
        ("connect mirror.invalid:80".to_owned(), &web_seen),
    ] {
        assert!(proxy.was_asked(&what), "{what}: {:?}", proxy.asked());
        all_through_the_proxy(seen);
    }
    assert!(
        server
            .asks()
            .iter()
            .all(|ask| !ask.target.starts_with("http:"))
    );
    let get = tracker.next();
    assert_eq!(get.parameter("port"), Some("1"), "nobody can connect");
    let is_listening = |event: &Value| event["event"] == "listening";
    assert!(!gyre.seen().iter().any(is_listening), "it does not listen");
    assert!(!proxy.was_asked("associate"), "nobody wanted datagrams");
}

#[test]
fn a_torrent_is_fetched_and_a_link_asked_for_through_the_proxy() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(4));
    let (peer, peer_seen) = watched(seeder.addr);
    let server = WebServer::good(sample.folder.path());
    let (web, web_seen) = watched(server.addr);
    let proxy = SocksServer::start(Manners {
        names: [("files.invalid".to_owned(), web)].into(),
        ..Manners::default()
    });
    let url = std::path::Path::new("http://files.invalid/sample.torrent");
    let mut gyre = start(&sample, url, &proxy.url(), &["--peer", &peer.to_string()]);
    finish(&sample, &mut gyre);
    all_through_the_proxy(&web_seen);
    all_through_the_proxy(&peer_seen);

    // A real seeder for the metadata.
    let mut holder = Gyre::start(&[
        "seed",
        &text(&sample.torrent),
        "--data",
        &text(&sample.data),
        "--state",
        &text(&sample.dir("holder")),
        "--port",
        "0",
        "--bind",
        "127.0.0.1",
    ]);
    let (holder_addr, holder_seen) = watched(holder.listening());
    let hash: String = sample
        .info_hash
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let output = command()
        .args(["info", &hash, "--json", "--proxy", &proxy.url(), "--peer"])
        .arg(holder_addr.to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["name"], "sample.bin");
    all_through_the_proxy(&holder_seen);
}

#[test]
fn the_environments_proxy_is_not_used_beside_it() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let server = WebServer::good(&sample.data);
    let other = WebServer::good(&sample.data);
    let proxy = SocksServer::start(Manners {
        names: [("mirror.invalid".to_owned(), server.addr)].into(),
        ..Manners::default()
    });
    let torrent = sample.with_web_seeds(&["http://mirror.invalid/sample.bin".to_owned()]);
    let mut command = command();
    command.args([
        "download",
        &text(&torrent),
        "-o",
        &text(&sample.dir("out")),
        "--json",
    ]);
    command.args([
        "--state",
        &text(&sample.dir("state")),
        "--proxy",
        &proxy.url(),
    ]);
    command.env("http_proxy", format!("http://{}", other.addr));
    let mut gyre = Gyre::spawn(command);
    finish(&sample, &mut gyre);
    assert_eq!(other.connections(), 0);
}

#[test]
fn a_user_and_password_open_the_proxy() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(5));
    let login = Some(("us@er".to_owned(), "p:w d".to_owned()));
    let proxy = SocksServer::start(Manners {
        login,
        ..Manners::default()
    });
    let url = format!("socks5://us%40er:p%3Aw%20d@{}", proxy.addr);
    let peer = seeder.addr.to_string();
    let mut gyre = start(&sample, &sample.torrent, &url, &["--peer", &peer]);
    finish(&sample, &mut gyre);
    assert!(proxy.was_asked("login us@er:p:w d"));
}

/// Runs a download that must fail at once; gives its final error and hint.
fn fails(sample: &Sample, url: &str, peer: &str) -> (String, String) {
    let begun = Instant::now();
    let mut gyre = start(sample, &sample.torrent, url, &["--peer", peer]);
    let error = gyre.wait_for("the final error", |event| {
        event["event"] == "error" && event["final"] == true
    });
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 1);
    assert!(begun.elapsed() < Duration::from_secs(30));
    let word = |name: &str| error[name].as_str().unwrap().to_owned();
    (word("message"), word("hint"))
}

#[test]
fn a_proxy_that_can_never_work_ends_the_command_with_its_reason() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(6));
    let peer = seeder.addr.to_string();
    let strict = SocksServer::start(Manners {
        login: Some(("user".to_owned(), "right".to_owned())),
        ..Manners::default()
    });
    let wrong = format!("socks5://user:wrong@{}", strict.addr);
    let (message, hint) = fails(&sample, &wrong, &peer);
    assert_eq!(
        message,
        "the proxy does not accept the user name and password"
    );
    assert!(hint.contains("%40"), "{hint}");
    let (message, hint) = fails(&sample, &strict.url(), &peer);
    assert_eq!(message, "the proxy wants a user name and a password");
    assert!(hint.contains("USER:PASSWORD"), "{hint}");
    let web = SocksServer::start(Manners {
        says: Some(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ..Manners::default()
    });
    let (message, hint) = fails(&sample, &web.url(), &peer);
    assert!(message.contains("does not speak SOCKS 5"), "{message}");
    assert!(hint.contains("http_proxy"), "{hint}");
    assert_eq!(seeder.sent_bytes(), 0, "nothing went around it");
}

/// Starts a download whose proxy is in trouble; the trouble is told as a warning with a hint, and it goes on.
fn is_waited_out(manners: Manners, expected: &str) {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(7));
    let proxy = SocksServer::start(manners);
    let peer = seeder.addr.to_string();
    let mut gyre = start(&sample, &sample.torrent, &proxy.url(), &["--peer", &peer]);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains(expected), "{message}");
    assert!(!told["hint"].as_str().unwrap().is_empty());
    let tries = proxy.asked().len();
    let deadline = Instant::now() + Duration::from_secs(60);
    while proxy.asked().len() == tries {
        assert!(Instant::now() < deadline, "it does not try again");
        gyre.event("progress");
    }
    let warnings = gyre
        .seen()
        .iter()
        .filter(|event| event["event"] == "warning");
    assert_eq!(warnings.count(), 1, "told once");
    let counts = seeder.counts();
    let direct = counts.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(direct, 0, "nothing went around it");
    gyre.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
}

#[test]
fn a_proxy_that_refuses_is_told_of_and_tried_again() {
    let manners = Manners {
        refuses: Some(2),
        ..Manners::default()
    };
    is_waited_out(manners, "the proxy refused: its rules do not allow");
}

#[test]
fn a_proxy_that_stalls_is_left_after_a_while_and_tried_again() {
    let manners = Manners {
        says: Some(vec![5]),
        ..Manners::default()
    };
    is_waited_out(manners, "does not answer");
}

#[test]
fn a_proxy_that_is_not_there_stops_nothing_and_nothing_goes_around_it() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(8));
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let peer = seeder.addr.to_string();
    let url = format!("socks5://{closed}");
    let mut gyre = start(&sample, &sample.torrent, &url, &["--peer", &peer]);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(
        message.contains(&format!("no connection to the proxy {closed}")),
        "{message}"
    );
    for _ in 0..3 {
        assert_eq!(gyre.event("progress")["peers"], 0);
    }
    let counts = seeder.counts();
    assert_eq!(
        counts.connections.load(std::sync::atomic::Ordering::SeqCst),
        0
    );
}

#[test]
fn a_peer_that_the_proxy_cannot_reach_is_a_peers_trouble() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(9));
    let proxy = SocksServer::start(Manners::default());
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let peers = format!("{closed},{}", seeder.addr);
    let mut gyre = start(&sample, &sample.torrent, &proxy.url(), &["--peer", &peers]);
    finish(&sample, &mut gyre);
    assert!(proxy.was_asked(&format!("connect {closed}")));
    assert!(!gyre.seen().iter().any(|event| event["event"] == "warning"));
}

#[test]
fn udp_trackers_are_asked_through_the_relay_by_name() {
    let sample = Sample::file(100_000, 1 << 14, &["udp://tracker.invalid:6969/announce"]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(10));
    let peer = seeder.addr;
    let tracker = UdpTracker::start(move |datagram, socket| {
        let id = datagram.transaction_id();
        let answer = match datagram.action() {
            0 => udp_connected(id, 77),
            _ => udp_announced(id, &[peer]),
        };
        let _ = socket.send_to(&answer, datagram.from);
    });
    // The name's port is the tracker's own only behind the proxy; answers come from there.
    let port = tracker.addr.port();
    let torrent = sample.folder.path().join("udp.torrent");
    let url = format!("udp://tracker.invalid:{port}/announce");
    let made = command()
        .args([
            "create",
            "--quiet",
            "--piece-length",
            "16KiB",
            "-a",
            &url,
            "-o",
            &text(&torrent),
        ])
        .arg(&sample.content)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let proxy = SocksServer::start(Manners {
        names: [("tracker.invalid".to_owned(), tracker.addr)].into(),
        relays: true,
        ..Manners::default()
    });
    let mut gyre = start(&sample, &torrent, &proxy.url(), &[]);
    finish(&sample, &mut gyre);
    assert!(proxy.was_asked(&format!("datagram tracker.invalid:{port}")));
    let first = tracker.next();
    assert_eq!(first.from.ip(), SOURCE, "it came around the proxy");
}

#[test]
fn without_a_relay_udp_trackers_and_the_dht_are_left_alone_with_one_warning() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    silent.set_nonblocking(true).unwrap();
    let addr = silent.local_addr().unwrap();
    let url = format!("udp://{addr}/announce");
    let sample = Sample::file(100_000, 1 << 14, &[&url]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(11));
    let proxy = SocksServer::start(Manners::default());
    let mut command = command();
    command.env_remove("GYRE_NO_DHT");
    command.args([
        "download",
        &text(&sample.torrent),
        "-o",
        &text(&sample.dir("out")),
        "--json",
    ]);
    command.args([
        "--state",
        &text(&sample.dir("state")),
        "--proxy",
        &proxy.url(),
    ]);
    command.args(["--dht-bootstrap", &addr.to_string()]);
    let mut gyre = Gyre::spawn(command);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(
        message.contains("the DHT and UDP trackers are left alone"),
        "{message}"
    );
    gyre.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
    let warnings = gyre
        .seen()
        .iter()
        .filter(|event| event["event"] == "warning");
    assert_eq!(warnings.count(), 1);
    assert!(
        silent.recv(&mut [0; 64]).is_err(),
        "a datagram went around the proxy"
    );
    drop(seeder);
}

#[test]
fn the_dht_is_entered_by_name_through_the_relay_and_answers_nobody() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let node = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    node.set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let addr = node.local_addr().unwrap();
    let proxy = SocksServer::start(Manners {
        names: [("node.invalid".to_owned(), addr)].into(),
        relays: true,
        ..Manners::default()
    });
    let mut command = command();
    command.env_remove("GYRE_NO_DHT");
    command.args([
        "download",
        &text(&sample.torrent),
        "-o",
        &text(&sample.dir("out")),
        "--json",
    ]);
    command.args([
        "--state",
        &text(&sample.dir("state")),
        "--proxy",
        &proxy.url(),
    ]);
    command.args(["--dht-bootstrap", &format!("node.invalid:{}", addr.port())]);
    let _gyre = Gyre::spawn(command);
    let mut buf = [0; 1_500];
    let mut kinds = Vec::new();
    while !kinds.contains(&"lookup") {
        let (length, from) = node.recv_from(&mut buf).expect("no datagram came");
        assert_eq!(from.ip(), SOURCE, "it came around the proxy");
        let query = &buf[..length];
        let has = |word: &[u8]| query.windows(word.len()).any(|part| part == word);
        assert!(
            has(b"2:roi1e"),
            "read-only: {:?}",
            String::from_utf8_lossy(query)
        );
        let at = query.windows(3).position(|part| part == b"1:t").unwrap();
        let digits: String = query[at + 3..]
            .iter()
            .map(|b| *b as char)
            .take_while(char::is_ascii_digit)
            .collect();
        let start = at + 3 + digits.len() + 1;
        let id = &query[start..start + digits.parse::<usize>().unwrap()];
        kinds.push(if has(b"4:ping") { "ping" } else { "lookup" });
        let mut answer = b"d1:rd2:id20:abcdefghij01234567895:nodes0:e1:t".to_vec();
        answer.extend(format!("{}:", id.len()).bytes());
        answer.extend(id);
        answer.extend(b"1:y1:re");
        node.send_to(&answer, from).unwrap();
    }
    assert_eq!(kinds.first(), Some(&"ping"), "first by name");
    assert!(proxy.was_asked(&format!("datagram node.invalid:{}", addr.port())));
}

#[test]
fn it_listens_only_where_the_user_says() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let tracker = HttpTracker::start(|_, stream| {
        use std::io::Write;
        let _ = stream.write_all(&ok(&peers(&[])));
        Then::Close
    });
    let torrent = sample.folder.path().join("t.torrent");
    let made = command()
        .args([
            "create",
            "--quiet",
            "-a",
            &tracker.url(),
            "-o",
            &text(&torrent),
        ])
        .arg(&sample.content)
        .output()
        .unwrap();
    assert!(made.status.success());
    let proxy = SocksServer::start(Manners::default());
    let more = ["--port", "0", "--bind", "127.0.0.1"];
    let mut gyre = start(&sample, &torrent, &proxy.url(), &more);
    let port = gyre.listening().port();
    let get = tracker.next();
    assert_eq!(get.parameter("port"), Some(port.to_string().as_str()));
}

#[test]
fn what_a_link_names_by_url_comes_through_the_proxy() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let server = WebServer::good(sample.folder.path());
    let (web, web_seen) = watched(server.addr);
    let proxy = SocksServer::start(Manners {
        names: [("files.invalid".to_owned(), web)].into(),
        ..Manners::default()
    });
    let info_hash: String = sample.info_hash.map(|byte| format!("{byte:02x}")).concat();
    let link = format!(
        "magnet:?xt=urn:btih:{info_hash}&xs=http://files.invalid/sample.torrent\
         &ws=http://files.invalid/data/sample.bin"
    );
    let mut gyre = start(&sample, std::path::Path::new(&link), &proxy.url(), &[]);
    finish(&sample, &mut gyre);
    assert!(proxy.was_asked("connect files.invalid:80"));
    all_through_the_proxy(&web_seen);
}
