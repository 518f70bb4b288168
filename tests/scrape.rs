//! `gyre info --scrape` against our own tracker and against trackers that lie, stall and never end.

mod support;

use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::fake_tracker::{HttpTracker, Then, UdpTracker, ok, udp_connected};
use support::program::command;
use support::sample::text;
use support::socks_server::{Manners, SOURCE, SocksServer};
use support::{Gyre, Sample, WebServer};

fn scrape(what: &str, more: &[&str]) -> Output {
    let mut command = command();
    command.args(["info", "--scrape", what, "--bind", "127.0.0.1"]);
    command.args(more).output().unwrap()
}

/// The objects of the trackers, in order.
fn trackers(output: &Output) -> Vec<Value> {
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
    whole["trackers"].as_array().unwrap().clone()
}

/// A link with these trackers.
fn link(trackers: &[String]) -> String {
    let trackers = trackers.iter().map(|url| format!("&tr={url}"));
    let link = format!("magnet:?xt=urn:btih:{}", "61".repeat(20));
    link + &trackers.collect::<String>()
}

#[test]
fn our_own_tracker_tells_how_many_there_are_over_http_and_udp() {
    let mut tracker = Gyre::start(&["tracker", "--listen", "127.0.0.1:0"]);
    let listening = tracker.event("listening");
    let addr = listening["addr"].as_str().unwrap();
    let (http, udp) = (format!("http://{addr}/announce"), format!("udp://{addr}"));
    let sample = Sample::file(50_000, 16_384, &[&http, &udp]);
    let (data, state) = (text(&sample.data), text(&sample.dir("state")));
    let torrent = text(&sample.torrent);
    let none = scrape(&torrent, &["--json"]);
    assert_eq!(trackers(&none)[1]["seeders"], 0);
    let arguments = [
        "seed", &torrent, "--data", &data, "--state", &state, "--port", "0",
    ];
    let mut seeder = Gyre::start(&[&arguments[..], &["--bind", "127.0.0.1"]].concat());
    seeder.wait_for("seeding", |event| event["state"] == "seeding");
    let started = Instant::now();
    let told = loop {
        let output = scrape(&torrent, &["--json"]);
        let told = trackers(&output);
        if told[0]["seeders"] == 1 {
            assert!(output.status.success());
            break told;
        }
        assert!(started.elapsed() < support::program::PATIENCE, "{told:?}");
    };
    assert_eq!(
        (&told[0]["url"], &told[1]["url"]),
        (&http.into(), &udp.into())
    );
    for of_one in &told {
        assert_eq!(of_one["seeders"], 1, "{told:?}");
        assert_eq!(of_one["leechers"], 0, "{told:?}");
        assert_eq!(of_one["downloaded"], 0, "{told:?}");
    }
    let words = scrape(&torrent, &[]);
    let words = String::from_utf8(words.stdout).unwrap();
    assert_eq!(
        words.matches("1 seeder, 0 leechers, 0 downloads").count(),
        2,
        "{words}"
    );
}

#[test]
fn answers_to_a_scrape_that_are_endless_or_wrong_are_refused_and_the_others_count() {
    let endless = HttpTracker::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nd5:files");
        while stream.write_all(&[b'1'; 65_536]).is_ok() {}
        Then::Close
    });
    let wrong = HttpTracker::saying(ok(b"d5:filesi7ee"));
    let refused = HttpTracker::saying(ok(b"d14:failure reason8:no\x1b[2Jxxe"));
    let body = [b"d5:filesd20:", &[0x61; 20][..], b"d8:completei9eeee"].concat();
    let good = HttpTracker::saying(ok(&body));
    let short = UdpTracker::start(|datagram, socket| {
        let from = datagram.from;
        let id = datagram.transaction_id();
        let answer = match datagram.action() {
            0 => udp_connected(id, 7),
            _ => [&2_u32.to_be_bytes()[..], &id.to_be_bytes(), &[0; 5]].concat(),
        };
        let _ = socket.send_to(&answer, from);
    });
    let urls = [
        endless.url(),
        wrong.url(),
        refused.url(),
        good.url(),
        short.url(),
        "http://127.0.0.1:9/other".to_owned(),
        "https://127.0.0.1/announce".to_owned(),
    ];
    let output = scrape(&link(&urls), &["--json"]);
    assert!(output.status.success(), "{output:?}");
    let told = trackers(&output);
    assert_eq!(told.len(), urls.len());
    assert_eq!(told[3]["seeders"], 9);
    for (at, of_one) in told.iter().enumerate().filter(|(at, _)| *at != 3) {
        let error = of_one["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{at}: {of_one}"));
        assert!(!error.contains(char::is_control), "{error:?}");
    }
}

#[test]
fn trackers_that_say_nothing_end_a_scrape_in_its_time() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("udp://{}", silent.local_addr().unwrap());
    let begun = Instant::now();
    let output = scrape(&link(&[url]), &[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("no tracker gave numbers"), "{stderr}");
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_scrape_goes_through_the_proxy_with_names_and_datagrams() {
    let body = [b"d5:filesd20:", &[0x61; 20][..], b"d8:completei9eeee"].concat();
    let came: Arc<Mutex<Vec<IpAddr>>> = Arc::default();
    let (of_http, of_udp) = (came.clone(), came.clone());
    let http = HttpTracker::start(move |_, stream| {
        of_http
            .lock()
            .unwrap()
            .push(stream.peer_addr().unwrap().ip());
        let _ = stream.write_all(&ok(&body));
        Then::Close
    });
    let udp = UdpTracker::start(move |datagram, socket| {
        of_udp.lock().unwrap().push(datagram.from.ip());
        let id = datagram.transaction_id();
        let numbers = [5_u32, 0, 1].map(u32::to_be_bytes).concat();
        let answer = match datagram.action() {
            0 => udp_connected(id, 7),
            _ => [&2_u32.to_be_bytes()[..], &id.to_be_bytes(), &numbers].concat(),
        };
        let _ = socket.send_to(&answer, datagram.from);
    });
    let urls = [
        "http://web.invalid:81/announce".to_owned(),
        format!("udp://datagrams.invalid:{}", udp.addr.port()),
    ];
    let names = [
        ("web.invalid".to_owned(), http.addr),
        ("datagrams.invalid".to_owned(), udp.addr),
    ];
    let proxy = SocksServer::start(Manners {
        names: names.clone().into(),
        relays: true,
        ..Manners::default()
    });
    let output = scrape(&link(&urls), &["--json", "--proxy", &proxy.url()]);
    assert!(output.status.success(), "{output:?}");
    let told = trackers(&output);
    assert_eq!(
        (&told[0]["seeders"], &told[1]["seeders"]),
        (&9.into(), &5.into())
    );
    assert!(
        proxy.was_asked("connect web.invalid:81"),
        "{:?}",
        proxy.asked()
    );
    let came = came.lock().unwrap().clone();
    assert!(
        came.len() >= 3 && came.iter().all(|ip| *ip == SOURCE),
        "{came:?}"
    );

    // One that relays no datagrams.
    let proxy = SocksServer::start(Manners {
        names: names.into(),
        ..Manners::default()
    });
    let output = scrape(&link(&urls), &["--json", "--proxy", &proxy.url()]);
    let told = trackers(&output);
    assert_eq!(told[0]["seeders"], 9);
    let error = told[1]["error"].as_str().unwrap();
    assert!(
        error.contains("no datagrams go through the proxy"),
        "{error}"
    );
}

#[test]
fn a_torrent_that_other_verbs_fetch_comes_through_the_proxy() {
    let sample = Sample::file(50_000, 16_384, &[]);
    let server = WebServer::good(sample.folder.path());
    let proxy = SocksServer::start(Manners {
        names: [("files.invalid".to_owned(), server.addr)].into(),
        ..Manners::default()
    });
    let (url, data) = ("http://files.invalid/sample.torrent", text(&sample.data));
    for arguments in [
        &["magnet", url, "--proxy", &proxy.url()][..],
        &["verify", url, "--data", &data, "--proxy", &proxy.url()],
    ] {
        let output = command().args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    // Where nothing but the variable names it.
    let mut command = command();
    command.env("GYRE_PROXY", proxy.url());
    let output = command.args(["magnet", url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let asked = proxy.asked();
    let times = asked
        .iter()
        .filter(|what| *what == "connect files.invalid:80");
    assert_eq!(times.count(), 3, "{asked:?}");
}
