//! Web seeds of an attacker: whatever they answer, the download comes from others, little is asked of them again, and
//! the user hears once what is wrong.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::fake_peer::{Behaviour, Content, FakeSeeder};
use crate::support::web_server::{Ask, Reply, finish, start};
use crate::support::{Gyre, Sample, WebServer};

const BYTES: usize = 400_000;

fn sample() -> Sample {
    Sample::file(BYTES, 1 << 14, &[])
}

/// A good server that answers only once the test lets it.
fn held_back(sample: &Sample) -> (WebServer, Sender<()>) {
    let (sender, receiver) = channel::<()>();
    let receiver = Mutex::new(receiver);
    let server = WebServer::start(&sample.data, move |_| {
        // Ends, too, once the test has dropped its end.
        let _ = receiver.lock().unwrap().recv();
        Reply::File
    });
    (server, sender)
}

/// A download from a hostile web seed and a good one, which answers when the hostile one has failed; what was said of
/// the failure.
fn failure_of(answer: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> String {
    let sample = sample();
    let bad = WebServer::start(&sample.data, answer);
    let (good, release) = held_back(&sample);
    let urls = [bad.url("sample.bin"), good.url("sample.bin")];
    let mut gyre = start(&sample, &urls, &[]);
    let warning = gyre.event("warning");
    drop(release);
    finish(&sample, &mut gyre);
    assert!(bad.connections() <= 8, "it is left alone");
    let message = warning["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&urls[0]), "{message}");
    let told = |event: &&serde_json::Value| {
        event["event"] == "warning"
            && event["message"]
                .as_str()
                .is_some_and(|m| m.contains(&urls[0]))
    };
    assert_eq!(gyre.seen().iter().filter(told).count(), 1, "told once");
    message
}

/// The body that was asked for, under another head: `{first}`, `{last}` and `{total}` are replaced.
fn with_head(head: &'static str) -> impl Fn(&Ask) -> Reply + Send + Sync + 'static {
    move |ask| {
        let (first, last) = ask.range.unwrap();
        let head = head
            .replace("{first}", &first.to_string())
            .replace("{last}", &last.to_string())
            .replace("{next}", &(last + 1).to_string())
            .replace("{total}", &BYTES.to_string());
        let mut bytes = format!("HTTP/1.1 {head}\r\n\r\n").into_bytes();
        bytes.extend(vec![0; (last - first + 1) as usize]);
        Reply::Raw(bytes)
    }
}

#[test]
fn another_range_than_was_asked_for_is_no_answer() {
    for (head, expected) in [
        ("206 P", "another part"),
        (
            "206 P\r\nContent-Type: multipart/byteranges; boundary=x",
            "another part",
        ),
        (
            "206 P\r\nContent-Range: bytes {first}-{next}/999999",
            "not 400000",
        ),
        (
            "206 P\r\nContent-Range: bytes 1-{last}/{total}",
            "another part",
        ),
        (
            "206 P\r\nContent-Range: bytes {last}-{first}/{total}",
            "no range of bytes",
        ),
        (
            "206 P\r\nContent-Range: bytes {first}-99999999999999999999/{total}",
            "no range of bytes",
        ),
        (
            "206 P\r\nContent-Range: bytes {first}-{last}/{total}\r\nContent-Range: bytes 0-1/2",
            "no range of bytes",
        ),
        (
            "206 P\r\nContent-Range: bytes {first}-{last}/399999",
            "no range of bytes",
        ),
        (
            "416 No\r\nContent-Range: bytes */5",
            "has 5 bytes there, not 400000",
        ),
        (
            "200 OK\r\nContent-Length: 5",
            "has 5 bytes there, not 400000",
        ),
        ("204 Nothing", "status 204"),
    ] {
        let message = failure_of(with_head(head));
        assert!(message.contains(expected), "{head}: {message}");
    }
}

#[test]
fn endless_heads_and_heads_that_are_none_are_left_alone() {
    let endless = failure_of(|_| {
        Reply::Write(Box::new(|stream: &mut TcpStream| {
            let _ = stream.write_all(b"HTTP/1.1 206 P\r\n");
            // A gigabyte, if it were taken.
            for _ in 0..16_384 {
                if stream.write_all(&[b'a'; 65_536]).is_err() {
                    return;
                }
            }
        }))
    });
    assert!(endless.contains("head"), "{endless}");
    let none = failure_of(|_| Reply::Raw(b"220 mail.example ESMTP\r\n\r\n".to_vec()));
    assert!(none.contains("not HTTP"), "{none}");
    let two = failure_of(|_| {
        Reply::Raw(b"HTTP/1.1 206 P\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n".to_vec())
    });
    assert!(two.contains("content-length"), "{two}");
}

#[test]
fn bodies_longer_than_asked_packed_or_badly_framed_are_left_alone() {
    let longer = failure_of(with_head(
        "206 P\r\nContent-Range: bytes {first}-{last}/{total}\r\nContent-Length: 999999999",
    ));
    assert!(longer.contains("another part"), "{longer}");
    let packed = failure_of(with_head(
        "206 P\r\nContent-Range: bytes {first}-{last}/{total}\r\nContent-Encoding: gzip",
    ));
    assert!(packed.contains("packs"), "{packed}");
    // Zeros are no chunk's size.
    let chunks = failure_of(with_head(
        "206 P\r\nContent-Range: bytes {first}-{last}/{total}\r\nTransfer-Encoding: chunked",
    ));
    assert!(chunks.contains("chunk"), "{chunks}");
    let short = failure_of(|ask| {
        let (first, last) = ask.range.unwrap();
        let head =
            format!("HTTP/1.1 206 P\r\nContent-Range: bytes {first}-{last}/{BYTES}\r\n\r\nfew");
        Reply::Raw(head.into_bytes())
    });
    assert!(short.contains("too early"), "{short}");
}

#[test]
fn an_endless_chunked_body_ends_where_the_part_does() {
    let sample = sample();
    let data = std::fs::read(&sample.content).unwrap();
    let server = WebServer::start(&sample.data, move |ask| {
        let (first, last) = ask.range.unwrap();
        let head = format!(
            "HTTP/1.1 206 P\r\nContent-Range: bytes {first}-{last}/{BYTES}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let part = data[first as usize..=last as usize].to_vec();
        Reply::Write(Box::new(move |stream: &mut TcpStream| {
            let _ = stream.write_all(head.as_bytes());
            for chunk in part.chunks(1_000) {
                let _ = write!(stream, "{:x}\r\n", chunk.len());
                let _ = stream.write_all(chunk);
                let _ = stream.write_all(b"\r\n");
            }
            while stream.write_all(b"4\r\nmore\r\n").is_ok() {}
        }))
    });
    let mut gyre = start(&sample, &[server.url("sample.bin")], &["--seed"]);
    let figures = gyre.wait_for("seeding", |event| event["state"] == "seeding");
    assert_eq!(figures["downloaded_web_bytes"], BYTES);
    assert!(gyre.anonymous_bytes() < 200 << 20);
    assert!(sample.is_same_in(&sample.dir("out")), "the copy differs");
}

#[test]
fn redirects_inward_round_and_out_of_http_are_refused() {
    for (location, expected) in [
        ("http://169.254.169.254/latest", "an inner one"),
        ("file:///etc/passwd", "bad redirect"),
        ("https://a.invalid/x", "redirects to https"),
        ("/sample.bin", "more than 5 times"),
    ] {
        let message =
            failure_of(move |_| Reply::Status("302 Found", vec![format!("Location: {location}")]));
        assert!(message.contains(expected), "{location}: {message}");
    }
    let nowhere = failure_of(|_| Reply::Status("301 Moved", Vec::new()));
    assert!(nowhere.contains("without a location"), "{nowhere}");
}

#[test]
fn a_web_seed_with_wrong_data_is_banned_once_by_its_url_and_nobody_else() {
    let sample = Sample::file(3_000_000, 1 << 15, &[]);
    let bad = WebServer::start(&sample.data, |_| {
        Reply::Changed(Box::new(|bytes: &mut [u8]| {
            bytes.iter_mut().for_each(|byte| *byte ^= 1)
        }))
    });
    let (good, release) = held_back(&sample);
    let mut behaviour = Behaviour::honest(91);
    behaviour.bytes_per_s = Some(500_000);
    let seeder = FakeSeeder::start(&Content::of(&sample), behaviour);
    let urls = [bad.url("sample.bin"), good.url("sample.bin")];
    let mut gyre = start(&sample, &urls, &["--peer", &seeder.addr.to_string()]);
    let banned = gyre.event("banned");
    assert_eq!(banned["web_seed"], urls[0]);
    drop(release);
    finish(&sample, &mut gyre);
    let bans = gyre
        .seen()
        .iter()
        .filter(|event| event["event"] == "banned");
    assert_eq!(bans.count(), 1);
}

#[test]
fn a_dripping_web_seed_holds_a_download_up_no_longer_than_a_peer_could() {
    let sample = Sample::file(1 << 16, 1 << 16, &[]);
    let server = WebServer::start(&sample.data, |ask| {
        let (first, last) = ask.range.unwrap();
        let total = 1 << 16;
        let head = format!("HTTP/1.1 206 P\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n");
        Reply::Write(Box::new(move |stream: &mut TcpStream| {
            let _ = stream.write_all(head.as_bytes());
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }))
    });
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(92));
    let urls = [server.url("sample.bin")];
    let started = Instant::now();
    let mut gyre = start(&sample, &urls, &["--peer", &seeder.addr.to_string()]);
    finish(&sample, &mut gyre);
    assert!(started.elapsed() < Duration::from_secs(40));
    assert!(server.connections() <= 2);
}

#[test]
fn a_silent_web_seed_holds_nothing_up_while_there_are_peers() {
    let sample = sample();
    let server = WebServer::start(&sample.data, |_| Reply::Silence);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(93));
    let urls = [server.url("sample.bin")];
    let started = Instant::now();
    let mut gyre = start(&sample, &urls, &["--peer", &seeder.addr.to_string()]);
    finish(&sample, &mut gyre);
    assert!(
        started.elapsed() < Duration::from_secs(25),
        "before its time is up"
    );
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_silent_web_seed_is_left_after_thirty_seconds_and_a_stop_does_not_wait_for_it() {
    let sample = sample();
    let server = WebServer::start(&sample.data, |_| Reply::Silence);
    let mut gyre = start(&sample, &[server.url("sample.bin")], &[]);
    let warning = gyre.event("warning");
    assert!(
        warning["message"]
            .as_str()
            .unwrap()
            .contains("nothing came for 30 s")
    );
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(10)), 143);
    let other = start(&sample, &[server.url("sample.bin")], &[]);
    stop_while_it_waits(other, &server);
}

fn stop_while_it_waits(mut gyre: Gyre, server: &WebServer) {
    let before = server.connections();
    gyre.wait_for("a request", |_| server.connections() >= before);
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(8)), 143);
}

#[test]
fn a_web_seed_may_close_at_every_byte_of_its_answer() {
    // The head and the first of the body.
    let cuts: Vec<usize> = (0..150).collect();
    std::thread::scope(|scope| {
        for cuts in cuts.chunks(15) {
            scope.spawn(|| assert_bears_cuts(cuts));
        }
    });
}

/// A download from web seeds that each close after so many bytes of every answer, and then from a good one.
fn assert_bears_cuts(cuts: &[usize]) {
    // More than all connections at once ask for: each finds something to ask for, beside the one that is held back.
    let sample = Sample::file(8 << 20, 1 << 18, &[]);
    let data = std::fs::read(&sample.content).unwrap();
    let bad = WebServer::start(&sample.data, move |ask| {
        let cut: usize = ask.target.split('=').nth(1).unwrap().parse().unwrap();
        let (first, last) = ask.range.unwrap();
        let part = &data[first as usize..=last as usize];
        let mut bytes = format!(
            "HTTP/1.1 206 P\r\nContent-Range: bytes {first}-{last}/{}\r\nContent-Length: {}\r\n\r\n",
            data.len(),
            part.len()
        )
        .into_bytes();
        bytes.extend(part);
        bytes.truncate(cut);
        Reply::Raw(bytes)
    });
    let (good, release) = held_back(&sample);
    let mut urls: Vec<String> = cuts
        .iter()
        .map(|cut| bad.url(&format!("x?cut={cut}")))
        .collect();
    urls.push(good.url("sample.bin"));
    let mut gyre = start(&sample, &urls, &[]);
    let mut left = cuts.len();
    gyre.wait_for("a failure of each", |event| {
        left -= usize::from(event["event"] == "warning");
        left == 0
    });
    drop(release);
    finish(&sample, &mut gyre);
}

#[test]
fn ten_thousand_urls_are_sixteen_web_seeds_at_most() {
    let sample = sample();
    let server = WebServer::start(&sample.data, |_| Reply::Status("404 No", Vec::new()));
    let urls: Vec<String> = (0..10_000).map(|at| server.url(&format!("{at}"))).collect();
    let mut behaviour = Behaviour::honest(94);
    behaviour.bytes_per_s = Some(200_000);
    let seeder = FakeSeeder::start(&Content::of(&sample), behaviour);
    let mut gyre = start(&sample, &urls, &["--peer", &seeder.addr.to_string()]);
    finish(&sample, &mut gyre);
    let mut asked: Vec<String> = server.asks().into_iter().map(|ask| ask.target).collect();
    asked.sort();
    asked.dedup();
    assert!((1..=16).contains(&asked.len()), "{}", asked.len());
    assert!(server.asks().len() <= 32);
}

#[test]
fn refusals_never_make_a_tight_loop() {
    let sample = sample();
    for status in ["503 Busy", "500 Oops", "404 No", "403 No", "429 Slow down"] {
        let server = WebServer::start(&sample.data, move |_| Reply::Status(status, Vec::new()));
        let mut gyre = start(&sample, &[server.url("sample.bin")], &[]);
        gyre.event("warning");
        gyre.event("progress");
        gyre.event("progress");
        gyre.event("progress");
        gyre.signal(Signal::SIGTERM);
        assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
        assert_eq!(server.asks().len(), 1, "{status}");
    }
}

#[test]
fn a_wish_to_be_asked_again_at_once_never_makes_a_tight_loop() {
    let sample = sample();
    let server = WebServer::start(&sample.data, |_| {
        Reply::Status("503 Busy", vec!["Retry-After: 0".to_owned()])
    });
    let mut gyre = start(&sample, &[server.url("sample.bin")], &[]);
    let begun = Instant::now();
    gyre.event("warning");
    for _ in 0..4 {
        gyre.event("progress");
    }
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
    // After 1, 2, 4, 8 … seconds, over two connections.
    let most = 2 * (2 + (begun.elapsed().as_secs() + 1).ilog2() as usize);
    let asked = server.asks().len();
    assert!(asked <= most, "{asked} in {:?}", begun.elapsed());
}
