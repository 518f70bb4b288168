//! UDP trackers, and others who pretend to be them (HOSTILE.md K8), and names that never resolve (K9).

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::time::{Duration, Instant};

use gyre::base::{InfoHash, PeerId};
use gyre::session::deadline::Deadline;
use gyre::session::http::{GetOptions, HttpClient, HttpConfig};
use gyre::session::udp_tracker::{DatagramSink, UdpTrackers};
use gyre::uring::resolve::Resolver;
use gyre::uring::ring::{self, Ring, RingConfig, spawn};
use gyre::wire::socks::Target;
use gyre::wire::tracker::{AnnounceRequest, Counters, Family};
use gyre::wire::url::Url;

use crate::common::{QUIET, World};
use crate::support::Sample;
use crate::support::fake_tracker::*;
use crate::support::raw_peer::{accept, accept_peer, accept_within, listener};

fn leech(announce: &[&str], more: &[&str]) -> World {
    let more = [&["--no-ipv6"], more].concat();
    World::leech(Sample::file(100_000, 16_384, announce), &more)
}

fn addr_of(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().unwrap()
}

#[track_caller]
fn expect_dial(landing: &TcpListener, world: &World) {
    let mut stream = accept_peer(landing);
    let mut theirs = [0; 68];
    stream.read_exact(&mut theirs).unwrap();
    assert_eq!(theirs[28..48], world.sample.info_hash);
}

/// Everything that is not the answer, each carrying the address of the trap where it can.
fn lies(to_action: u32, transaction_id: u32, trap: SocketAddr) -> Vec<Vec<u8>> {
    let right = match to_action {
        0 => udp_connected(transaction_id, 5),
        _ => udp_announced(transaction_id, &[trap]),
    };
    let mut lies: Vec<Vec<u8>> = (0..right.len().min(16))
        .map(|length| right[..length].to_vec())
        .collect();
    for wrong in [transaction_id ^ 1, transaction_id.wrapping_add(1), 0] {
        lies.push(udp_connected(wrong, 6));
        lies.push(udp_announced(wrong, &[trap]));
        lies.push(udp_error(wrong, "not yours"));
    }
    let mut unknown = right;
    unknown[3] = 9;
    lies.push(unknown);
    lies.push(vec![0xff; 1_500]);
    lies
}

#[test]
fn answers_of_a_wrong_transaction_length_or_source_are_ignored() {
    let (landing, trap) = (listener(), listener());
    let (good, bad) = (addr_of(&landing), addr_of(&trap));
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let neighbour = UdpSocket::bind("127.0.0.2:0").unwrap();
    let tracker = UdpTracker::start(move |datagram, socket| {
        let (action, id) = (datagram.action(), datagram.transaction_id());
        for lie in lies(action, id, bad) {
            socket.send_to(&lie, datagram.from).unwrap();
        }
        for other in [&stranger, &neighbour] {
            other
                .send_to(&udp_connected(id, 13), datagram.from)
                .unwrap();
            other
                .send_to(&udp_announced(id, &[bad]), datagram.from)
                .unwrap();
            other
                .send_to(&udp_error(id, "forged"), datagram.from)
                .unwrap();
        }
        let right = match action {
            0 => udp_connected(id, 0x1122_3344_5566_7788),
            _ => {
                assert_eq!(datagram.connection_id(), 0x1122_3344_5566_7788);
                udp_announced(id, &[good])
            }
        };
        socket.send_to(&right, datagram.from).unwrap();
    });
    let mut world = leech(&[&tracker.url()], &[]);
    expect_dial(&landing, &world);
    assert!(
        accept_within(&trap, QUIET).is_none(),
        "a forged answer was believed"
    );
    assert!(world.gyre.is_running());
    let actions: Vec<u32> = std::iter::from_fn(|| tracker.next_within(Duration::ZERO))
        .map(|datagram| datagram.action())
        .collect();
    assert_eq!(actions, [0, 1], "nothing had to be repeated");
}

#[test]
fn an_error_is_shown_escaped_and_the_next_tracker_asked() {
    let refusing = || {
        UdpTracker::start(|datagram, socket| {
            let id = datagram.transaction_id();
            let text = format!("\u{1b}[31mno\u{7}{}", "x".repeat(1_000));
            let answer = match datagram.action() {
                0 => udp_connected(id, 1),
                _ => udp_error(id, &text),
            };
            socket.send_to(&answer, datagram.from).unwrap();
        })
    };
    let tracker = refusing();
    let mut world = leech(&[&tracker.url()], &[]);
    let said = world.complaint("the tracker refused: \\u{1b}[31mno\\u{7}xxx");
    assert!(said.chars().count() < 500 && !said.chars().any(char::is_control));
    drop(world);
    let landing = listener();
    let good = HttpTracker::saying(ok(&peers(&[addr_of(&landing)])));
    let tracker = refusing();
    let world = leech(&[&tracker.url(), &good.url()], &[]);
    expect_dial(&landing, &world);
}

#[test]
fn a_connection_id_is_used_again_and_renewed_when_it_is_refused() {
    let tracker = UdpTracker::start(|datagram, socket| {
        let id = datagram.transaction_id();
        let answer = match (datagram.action(), datagram.number) {
            (0, number) => udp_connected(id, 100 + number as u64),
            // The third announce comes on a connection that the tracker no longer knows.
            (_, 3) => udp_error(id, "connection id too old"),
            _ => {
                let mut answer = udp_announced(id, &[]);
                answer[8..12].copy_from_slice(&1_u32.to_be_bytes());
                answer
            }
        };
        socket.send_to(&answer, datagram.from).unwrap();
    });
    let more = ["--announce-interval-min", "500ms"];
    let _world = leech(&[&tracker.url()], &more);
    let datagrams: Vec<(u32, u64)> = (0..7)
        .map(|_| tracker.next())
        .map(|datagram| (datagram.action(), datagram.connection_id()))
        .collect();
    let magic = 0x0417_2710_1980;
    let expected = [
        (0, magic),
        (1, 100),
        (1, 100),
        (1, 100),
        (0, magic),
        (1, 104),
        (1, 104),
    ];
    assert_eq!(datagrams, expected);
}

/// Longer than a test of every day may take: it is run with `--ignored`.
#[test]
#[ignore = "takes more than a minute: a connection id lives that long"]
fn a_connection_id_is_not_used_after_a_minute() {
    let tracker = UdpTracker::start(|datagram, socket| {
        let id = datagram.transaction_id();
        let answer = match datagram.action() {
            0 => udp_connected(id, datagram.number as u64),
            _ => {
                let mut answer = udp_announced(id, &[]);
                answer[8..12].copy_from_slice(&62_u32.to_be_bytes());
                answer
            }
        };
        socket.send_to(&answer, datagram.from).unwrap();
    });
    let _world = leech(&[&tracker.url()], &["--announce-interval-min", "500ms"]);
    let first: Vec<u32> = (0..2).map(|_| tracker.next().action()).collect();
    assert_eq!(first, [0, 1]);
    let next = tracker.next_within(Duration::from_secs(100)).unwrap();
    assert_eq!(next.action(), 0, "a new connection first");
}

fn ring() -> Ring {
    ring::start(RingConfig {
        sq_entries: Some(64),
        ..RingConfig::default()
    })
    .unwrap()
}

/// Notes when datagrams would have gone out.
struct Silence {
    start: Instant,
    sent: Rc<RefCell<Vec<Duration>>>,
}

impl DatagramSink for Silence {
    fn send(&self, _: Vec<u8>, _: &Target) {
        self.sent.borrow_mut().push(self.start.elapsed());
    }
}

#[test]
fn silence_is_asked_again_after_twice_the_time_each() {
    let sent = Rc::new(RefCell::new(Vec::new()));
    let sink = Silence {
        start: Instant::now(),
        sent: sent.clone(),
    };
    let unit = Duration::from_millis(150);
    ring().block_on(async move {
        let trackers = UdpTrackers::new(Resolver::new().unwrap(), Box::new(sink), unit);
        let request = AnnounceRequest {
            info_hash: InfoHash::new([1; 20]),
            peer_id: PeerId::new([2; 20]),
            port: 1,
            counters: Counters::default(),
            event: None,
            numwant: 1,
            key: 1,
            tracker_id: None,
        };
        let url = Url::parse("udp://127.0.0.1:9/").unwrap();
        let deadline = Deadline::after(unit * 12);
        let silences = Cell::new(0);
        let on_silence = || silences.set(silences.get() + 1);
        let answer = trackers
            .announce(&url, &request, Family::V4, &deadline, on_silence)
            .await;
        assert!(answer.is_err());
        assert_eq!(silences.get(), 3, "told with each datagram that follows");
    });
    // 0, 1, 3 and 7 units: 15·2ⁿ seconds with BEP 15's unit.
    let units: Vec<f64> = sent
        .borrow()
        .iter()
        .map(|at| at.as_secs_f64() / unit.as_secs_f64())
        .collect();
    assert_eq!(units.len(), 4, "{units:?}");
    for (at, expected) in units.iter().zip([0.0, 1.0, 3.0, 7.0]) {
        assert!((expected..expected + 2.0).contains(at), "{units:?}");
    }
}

#[test]
fn names_that_hang_hold_nobody_up() {
    let hang = |_: &str, _: u16| loop {
        std::thread::park();
    };
    ring().block_on(async move {
        let resolver = Resolver::with_lookup(hang).unwrap();
        let client = HttpClient::new(HttpConfig::from_env(None), resolver.clone());
        let ticks = Rc::new(Cell::new(0));
        let counted = ticks.clone();
        let clock = spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                counted.set(counted.get() + 1);
            }
        });
        // More names than there are threads to hang, and more than may wait.
        let asked: Vec<_> = (0..400)
            .map(|number| {
                let client = client.clone();
                spawn(async move {
                    let url = Url::parse(&format!("http://host{number}.example/")).unwrap();
                    let options = GetOptions {
                        family: None,
                        deadline: Deadline::after(Duration::from_millis(500)),
                        body_bytes_max: 100,
                        is_last: false,
                    };
                    client.get(&url, &options).await.unwrap_err().to_string()
                })
            })
            .collect();
        let start = Instant::now();
        for asked in asked {
            let said = asked.await.unwrap();
            assert!(said.contains("cannot be looked up"), "{said}");
        }
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(ticks.get() >= 20, "the ring thread stood still");
        clock.abort();
        // An address needs no resolver and goes on working.
        let landing = listener();
        let url = Url::parse(&format!("http://{}/", addr_of(&landing))).unwrap();
        let options = GetOptions {
            family: None,
            deadline: Deadline::after(Duration::from_secs(10)),
            body_bytes_max: 100,
            is_last: true,
        };
        let server = std::thread::spawn(move || {
            let mut stream = accept(&landing);
            let mut request = [0; 1_000];
            let _ = stream.read(&mut request).unwrap();
            std::io::Write::write_all(&mut stream, &ok(b"hello")).unwrap();
        });
        let answer = client.get(&url, &options).await.unwrap();
        assert_eq!(answer.body, b"hello");
        server.join().unwrap();
    });
}
