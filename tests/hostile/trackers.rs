//! HTTP trackers that lie, stall or drown their clients (HOSTILE.md K1–K7, K9); UDP is in `udp_trackers`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::signal::Signal;

use crate::common::{QUIET, World};
use crate::support::Sample;
use crate::support::fake_tracker::*;
use crate::support::program::command;
use crate::support::raw_peer::{Hello, RawPeer, accept_peer, accept_within, listener};
use crate::support::sample::text;

fn sample(announce: &[&str]) -> Sample {
    Sample::file(100_000, 16_384, announce)
}

/// A leecher whose only hope are these trackers, one a tier.
fn leech(announce: &[&str]) -> World {
    World::leech(sample(announce), &["--no-ipv6"])
}

/// Somebody comes to this listener and asks for our torrent.
#[track_caller]
fn expect_dial(landing: &TcpListener, world: &World) {
    let mut stream = accept_peer(landing);
    let mut theirs = [0; 68];
    stream.read_exact(&mut theirs).unwrap();
    assert_eq!(theirs[28..48], world.sample.info_hash);
}

fn addr_of(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().unwrap()
}

/// What the user is told when this tracker is the only one.
fn complaint(tracker: &HttpTracker, part: &str) -> String {
    let mut world = leech(&[&tracker.url()]);
    let said = world.complaint(part);
    assert!(world.gyre.is_running());
    said
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in body.chunks(size) {
        out.extend(format!("{:x};a=b\r\n", part.len()).bytes());
        out.extend(part);
        out.extend(b"\r\n");
    }
    out.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
    out
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [head.as_bytes(), b"\r\n\r\n", body].concat()
}

#[test]
fn peers_are_taken_from_every_legal_form_of_an_answer() {
    let landing = listener();
    let port = addr_of(&landing).port();
    let body = peers(&[addr_of(&landing)]);
    let dictionary = format!("d8:intervali60e5:peersld2:ip9:127.0.0.14:porti{port}eeee");
    let long = vec![b'x'; 9_000];
    let forms = [
        ("a length", ok(&body)),
        ("dictionaries", ok(dictionary.as_bytes())),
        ("until the end", answer("HTTP/1.1 200 OK", &body)),
        ("HTTP/1.0", answer("HTTP/1.0 200 OK", &body)),
        ("bare line ends", [b"HTTP/1.0 200\n\n", &body[..]].concat()),
        (
            "chunks",
            answer(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
                &chunked(&body, 5),
            ),
        ),
        (
            "gzip",
            answer("HTTP/1.1 200 OK\r\ncontent-encoding: GZIP", &gzip(&body)),
        ),
        (
            "gzip in chunks",
            answer(
                "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked",
                &chunked(&gzip(&body), 3),
            ),
        ),
        (
            "an interim answer first",
            answer("HTTP/1.1 103 Early Hints\r\nLink: x", &ok(&body)),
        ),
        (
            "a long header",
            answer(
                &format!("HTTP/1.1 200 OK\r\nX: {}", String::from_utf8(long).unwrap()),
                &body,
            ),
        ),
        ("bytes behind it", [ok(&body), b"junk".to_vec()].concat()),
    ];
    for (what, bytes) in forms {
        println!("{what}");
        // In small pieces, as a slow network would.
        let tracker = HttpTracker::start(move |_, stream| {
            for part in bytes.chunks(61) {
                let _ = stream.write_all(part);
            }
            Then::Close
        });
        let world = leech(&[&tracker.url()]);
        expect_dial(&landing, &world);
    }
}

#[test]
fn a_kept_connection_carries_the_next_announce_and_a_dead_one_is_replaced() {
    let tracker = HttpTracker::start(|get, stream| {
        stream.write_all(&ok(b"d8:intervali1e5:peers0:e")).unwrap();
        match get.number {
            0 | 1 => Then::KeepOpen,
            // Says it stays and does not.
            2 => Then::Close,
            _ => Then::KeepOpen,
        }
    });
    let _world = World::leech(
        sample(&[&tracker.url()]),
        &["--no-ipv6", "--announce-interval-min", "500ms"],
    );
    let on_connection: Vec<_> = (0..4).map(|_| tracker.next().on_connection).collect();
    assert_eq!(on_connection, [0, 1, 2, 0]);
}

#[test]
fn a_body_past_the_cap_stops_there_whatever_its_framing() {
    let bomb = Arc::new(gzip(&vec![0; 64 << 20]));
    let heads = [
        ("without an end", "HTTP/1.1 200 OK"),
        (
            "1 GB by its length",
            "HTTP/1.1 200 OK\r\nContent-Length: 1000000000",
        ),
        (
            "one endless chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff",
        ),
        ("a gzip bomb", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip"),
    ];
    for (what, head) in heads {
        let sent = Arc::new(AtomicU64::new(0));
        let (count, bomb) = (sent.clone(), bomb.clone());
        let tracker = HttpTracker::start(move |_, stream| {
            let gap = if head.contains("chunked") {
                "\r\n"
            } else {
                "\r\n\r\n"
            };
            stream.write_all(format!("{head}{gap}").as_bytes()).unwrap();
            let part = if head.contains("gzip") {
                &bomb[..]
            } else {
                &[b'd'; 65_536]
            };
            while stream.write_all(part).is_ok() {
                count.fetch_add(part.len() as u64, Ordering::Relaxed);
            }
            Then::Close
        });
        let mut world = leech(&[&tracker.url()]);
        let before = world.gyre.anonymous_bytes();
        world.complaint("longer than 1048576 bytes");
        let growth = world.gyre.anonymous_bytes().saturating_sub(before);
        assert!(growth <= 6 << 20, "{what}: {growth} bytes");
        // What lies in the sockets' buffers counts as sent.
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent <= 40 << 20, "{what}: {sent} bytes were taken");
    }
}

#[test]
fn redirects_are_followed_five_times_and_never_out_of_http() {
    let landing = listener();
    let body = peers(&[addr_of(&landing)]);
    let hops = |last: usize| {
        let body = body.clone();
        HttpTracker::start(move |get, stream| {
            let bytes = match get.target.strip_prefix("/hop") {
                Some(number) if number.parse::<usize>().unwrap() == last => ok(&body),
                Some(number) => {
                    let next = number.parse::<usize>().unwrap() + 1;
                    answer(&format!("HTTP/1.1 307 X\r\nLocation: hop{next}"), b"")
                }
                None => answer("HTTP/1.1 302 X\r\nLocation: /hop1", b""),
            };
            let _ = stream.write_all(&bytes);
            Then::Close
        })
    };
    let five = hops(5);
    let world = leech(&[&five.url()]);
    expect_dial(&landing, &world);
    drop(world);
    let endless = hops(usize::MAX);
    complaint(&endless, "redirected more than 5 times");
    let asked = std::iter::from_fn(|| endless.next_within(Duration::ZERO)).count();
    assert_eq!(asked, 6, "one announce and five hops");
    for (location, part) in [
        ("file:///etc/passwd", "bad redirect"),
        ("gopher://127.0.0.1/", "bad redirect"),
        ("udp://127.0.0.1:1/", "only http"),
        ("https://127.0.0.1/", "https is not supported"),
        ("http://169.254.169.254/latest/", "169.254.169.254"),
        ("http://[fe80::1]/", "fe80::1"),
        ("http://a\u{7f}/", "not HTTP"),
        ("http://a b/", "bad redirect"),
        ("http:///", "bad redirect"),
    ] {
        let head = format!("HTTP/1.1 301 X\r\nLocation: {location}");
        complaint(&HttpTracker::saying(answer(&head, b"")), part);
    }
    let nowhere = HttpTracker::saying(answer("HTTP/1.1 302 X", b""));
    complaint(&nowhere, "without a location");
}

#[test]
fn broken_framing_is_a_clear_error() {
    let chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked";
    let mut huge = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
    huge.resize(1 << 20, b'x');
    let mut many = b"HTTP/1.1 200 OK\r\n".to_vec();
    many.extend(b"A: b\r\n".repeat(10_000));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (answer(chunk, b"xyz\r\nabc"), "chunk's size"),
        (answer(chunk, b"-5\r\nabc"), "chunk's size"),
        (answer(chunk, b"11111111111111111\r\nabc"), "chunk's size"),
        (answer(chunk, &[b'1'; 5_000]), "chunk's size"),
        (answer(chunk, b"3\r\nabcdef\r\n"), "chunk's size"),
        (answer(chunk, b"5\r\nab"), "closed in mid-message"),
        (
            answer("HTTP/1.1 200 OK\r\nContent-Length: 50", b"short"),
            "closed in mid-message",
        ),
        (
            answer("HTTP/1.1 200 OK\r\nContent-Length: -1", b""),
            "content-length",
        ),
        (
            answer(
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
                b"ab",
            ),
            "content-length",
        ),
        (
            answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: br", b""),
            "transfer coding",
        ),
        (
            answer("HTTP/1.1 200 OK\r\nContent-Encoding: br", b""),
            "content coding",
        ),
        (
            answer("HTTP/1.1 200 OK\r\nContent-Encoding: gzip", b"no gzip"),
            "gzip data is corrupt",
        ),
        (huge, "head is longer"),
        (many, "not HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), "not HTTP"),
        (answer("HTTP/1.1 103 X", b"").repeat(50), "status 103"),
        (answer("HTTP/1.1 404 Not Found", b"<html>"), "status 404"),
        (ok(b"<html>"), "not bencode"),
        (ok(b"i5e"), "not a dictionary"),
        (ok(&b"l".repeat(500_000)), "not bencode"),
        (ok(b"d5:peers99999999999:"), "not bencode"),
        (Vec::new(), "broke"),
    ];
    for (bytes, part) in cases {
        complaint(&HttpTracker::saying(bytes), part);
    }
}

#[test]
fn a_tracker_at_a_byte_a_second_is_left_after_thirty_seconds() {
    let drip = |bytes: &'static [u8], silent: bool| {
        let tracker = HttpTracker::start(move |_, stream| {
            let mut bytes = bytes.iter().cycle();
            while silent || stream.write_all(&[*bytes.next().unwrap()]).is_ok() {
                std::thread::sleep(Duration::from_secs(1));
            }
            Then::Close
        });
        std::thread::spawn(move || {
            let mut world = leech(&[&tracker.url()]);
            tracker.next();
            let start = Instant::now();
            world.complaint("no answer within the time limit");
            start.elapsed()
        })
    };
    let waiting = [
        drip(b"H", true),
        drip(
            b"HTTP/1.1 200 OK\r\nX-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            false,
        ),
        drip(b"HTTP/1.0 200\n\nd8:intervali60e5:peers0:", false),
    ];
    for waiting in waiting {
        let took = waiting.join().unwrap().as_secs_f64();
        assert!((27.0..=34.0).contains(&took), "{took} s");
    }
}

#[test]
fn a_tracker_that_stalls_at_stopped_does_not_hold_the_end_up() {
    let tracker = HttpTracker::start(|get, stream| {
        if !get.is_stopped() {
            stream.write_all(&ok(b"d8:intervali60e5:peers0:e")).unwrap();
            return Then::Close;
        }
        let mut drip = b"HTTP/1.1 200 OK\r\nX: xxxxxxxxxxxxxx".iter();
        while stream.write_all(&[*drip.next().unwrap_or(&b'x')]).is_ok() {
            std::thread::sleep(Duration::from_secs(1));
        }
        Then::Close
    });
    let mut world = leech(&[&tracker.url()]);
    assert_eq!(tracker.next().parameter("event"), Some("started"));
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    world.gyre.signal(Signal::SIGTERM);
    assert_eq!(world.gyre.wait_exit(Duration::from_secs(10)), 143);
    assert!(tracker.next().is_stopped());
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(4), "it was given {took:?}");
}

/// Addresses the torrent knows once the tracker has answered.
fn known_after(tracker: &HttpTracker) -> u64 {
    let mut world = leech(&[&tracker.url()]);
    tracker.next();
    for _ in 0..3 {
        world.gyre.event("progress");
    }
    let progress = world.gyre.event("progress");
    progress["peers_known"].as_u64().unwrap()
}

#[test]
fn odd_peer_lists_give_only_what_is_good_and_never_too_much() {
    let landing = listener();
    let good = addr_of(&landing);
    let port = good.port();
    let mut odd = compact(&[
        "1.2.3.4:0".parse().unwrap(),
        "0.0.0.0:80".parse().unwrap(),
        "255.255.255.255:80".parse().unwrap(),
        "224.0.0.1:80".parse().unwrap(),
        good,
    ]);
    odd.extend([1, 2, 3, 4, 5]);
    let dictionaries = format!(
        "d5:peersl\
         i5e le de \
         d2:ip9:localhost4:porti{port}ee\
         d2:ip8:10.0.0.14:porti0ee\
         d2:ip8:10.0.0.14:porti65536ee\
         d2:ip8:10.0.0.14:porti-1ee\
         d2:ip8:10.0.0.1e\
         d4:porti5ee\
         d2:ip3:\0\n\x1b4:porti5ee\
         d2:ip9:127.0.0.14:porti{port}e7:peer id3:abce\
         ee"
    )
    .replace(' ', "")
    .replace("peerid", "peer id");
    let six = [&[0; 17][..], &[1]].concat();
    let mut with_six = b"d5:peers".to_vec();
    with_six.extend(*b"6:");
    with_six.extend(compact(&[good]));
    with_six.extend(b"6:peers618:");
    with_six.extend(&six);
    with_six.push(b'e');
    let bodies = [
        ("compact", with_peers("8:intervali60e", &odd)),
        ("dictionaries", dictionaries.into_bytes()),
        ("six", with_six),
        ("no list at all", b"d5:peersi5ee".to_vec()),
    ];
    for (what, body) in bodies {
        let tracker = HttpTracker::saying(ok(&body));
        let expected = u64::from(what != "no list at all");
        assert_eq!(known_after(&tracker), expected, "{what}");
    }
    // As many as fit the body; a thousand are kept.
    let crowd: Vec<u8> = (0..170_000_u32)
        .flat_map(|n| [&(0x0b00_0000 + n).to_be_bytes()[..], &[0, 9]].concat())
        .collect();
    let tracker = HttpTracker::saying(ok(&with_peers("8:intervali60e", &crowd)));
    let known = known_after(&tracker);
    assert!(known > 0 && known <= 1_000, "{known} peers");
    let million = ok(&with_peers("8:intervali60e", &crowd.repeat(6)));
    complaint(&HttpTracker::saying(million), "longer than 1048576 bytes");
}

#[test]
fn our_own_address_is_not_dialed() {
    let landing = listener();
    let good = addr_of(&landing);
    let tracker = HttpTracker::start(move |get, stream| {
        let port: u16 = get.parameter("port").unwrap().parse().unwrap();
        let own = SocketAddr::new([127, 0, 0, 1].into(), port);
        stream.write_all(&ok(&peers(&[own, good]))).unwrap();
        Then::Close
    });
    let mut world = leech(&[&tracker.url()]);
    let _peer = RawPeer::accept(&landing, &Hello::new(world.sample.info_hash));
    world.gyre.wait_for("one peer", |event| {
        event["event"] == "progress" && event["peers"] == 1
    });
    let progress = world.gyre.event("progress");
    assert_eq!(progress["peers_known"], 1, "itself is no peer");
}

#[test]
fn failure_texts_are_shown_escaped_and_cut() {
    let nasty = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\nfake line\u{202e}\u{85}";
    let long = nasty.repeat(40_000);
    let body = format!("d14:failure reason{}:{long}e", long.len());
    let body = body.as_bytes();
    assert!(body.len() > 1_000_000);
    // Past the cap of the body it is an error of its own; below it the text itself is cut.
    let short = nasty.repeat(20_000);
    let short = format!("d14:failure reason{}:{short}e", short.len());
    for body in [body, short.as_bytes()] {
        let said = complaint(&HttpTracker::saying(ok(body)), "no tracker answers");
        let is_clean = |c: char| !c.is_control() && c != '\u{202e}';
        assert!(said.chars().all(is_clean), "{said:?}");
        assert!(
            said.chars().count() <= 4_000,
            "{} characters",
            said.chars().count()
        );
    }
    complaint(&HttpTracker::saying(ok(short.as_bytes())), "\\u{1b}[2J");
    // Whatever the output: a terminal is shown no control character either.
    let warning = format!(
        "d8:intervali60e5:peers0:15:warning message{}:{nasty}e",
        nasty.len()
    );
    for body in [short, warning] {
        let tracker = HttpTracker::saying(ok(body.as_bytes()));
        let sample = sample(&[&tracker.url()]);
        let output = command()
            .args(["download", &text(&sample.torrent), "-vvv", "--port", "0"])
            .args(["-o", &text(&sample.dir("out")), "--no-ipv6"])
            .args(["--state", &text(&sample.dir("state")), "--give-up", "2s"])
            .output()
            .unwrap();
        let is_bad = |byte: &u8| byte.is_ascii_control() && !b"\n\t".contains(byte);
        for bytes in [&output.stdout, &output.stderr] {
            let shown = String::from_utf8_lossy(bytes);
            assert!(!bytes.iter().any(is_bad), "{shown:?}");
            assert!(!shown.contains('\u{202e}') && !shown.contains('\u{85}'));
        }
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn absurd_intervals_never_make_a_tight_loop() {
    let waiting: Vec<_> = [
        "i0e",
        "i-1e",
        "i9223372036854775807e",
        "i9223372036854775808e",
        "i-9999999999999999999999e",
        "3:abc",
    ]
    .into_iter()
    .map(|interval| {
        std::thread::spawn(move || {
            let body = format!("d8:interval{interval}12:min interval{interval}5:peers0:e");
            let tracker = HttpTracker::saying(ok(body.as_bytes()));
            let mut world = leech(&[&tracker.url()]);
            tracker.next();
            let again = tracker.next_within(QUIET * 3);
            assert!(again.is_none(), "{interval}: asked again at once");
            assert!(world.gyre.is_running());
            assert!(
                world.gyre.cpu() < Duration::from_secs(2),
                "{interval}: it spins"
            );
        })
    })
    .collect();
    waiting
        .into_iter()
        .for_each(|waiting| waiting.join().unwrap());
}

#[test]
fn when_trackers_fail_the_next_tier_is_asked_at_once() {
    let landing = listener();
    let good = HttpTracker::saying(ok(&peers(&[addr_of(&landing)])));
    let closed = format!("http://{}/announce", addr_of(&listener()));
    let refusing = HttpTracker::saying(ok(b"d14:failure reason4:gonee"));
    let broken = HttpTracker::saying(b"nonsense".to_vec());
    let world = leech(&[
        "wss://tracker.invalid/",
        &closed,
        "http://no-such-host.invalid/announce",
        &refusing.url(),
        &broken.url(),
        &good.url(),
    ]);
    expect_dial(&landing, &world);
}

#[test]
fn when_all_trackers_fail_it_is_told_once_and_tried_later() {
    let tracker = HttpTracker::saying(b"nonsense".to_vec());
    let closed = format!("http://{}/announce", addr_of(&listener()));
    let mut world = leech(&[&closed, &tracker.url()]);
    world.complaint("no tracker answers");
    tracker.next();
    assert!(tracker.next_within(QUIET * 2).is_none(), "no pause");
    assert!(accept_within(&listener(), Duration::ZERO).is_none());
    let errors = world.gyre.seen().iter();
    assert_eq!(errors.filter(|event| event["event"] == "error").count(), 1);
    assert!(world.gyre.cpu() < Duration::from_secs(2), "it spins");
}
