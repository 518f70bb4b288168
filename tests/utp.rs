//! uTP (BEP 29) between commands: who talks it, what goes over it, and what strangers cannot do to it.

mod support;

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Daemon, Gyre, Sample, sample::text};

/// A seeder and a downloader that knows its address.
struct Pair {
    sample: Sample,
    seed: Gyre,
    leech: Gyre,
    of_seed: SocketAddr,
}

const BYTES: usize = 4 << 20;

/// Datagrams of strangers.
const FLOOD: u16 = 40_000;

fn pair(seeding: &[&str], leeching: &[&str]) -> Pair {
    let sample = Sample::file(BYTES, 65_536, &[]);
    let (state, out) = (text(&sample.dir("state")), text(&sample.dir("out")));
    let (torrent, data) = (text(&sample.torrent), text(&sample.data));
    let common = ["--state", &state, "--port", "0", "--no-ipv6", "-vv"];
    let seed = ["seed", &torrent, "--data", &data];
    let mut seed = Gyre::start(&[&seed[..], &common, seeding].concat());
    let of_seed = SocketAddr::from(([127, 0, 0, 1], seed.listening().port()));
    // Before that it knows no torrent, and refuses every handshake.
    seed.wait_for("seeding", |event| event["state"] == "seeding");
    let peer = of_seed.to_string();
    let leech = ["download", &torrent, "-o", &out, "--peer", &peer];
    let leech = Gyre::start(&[&leech[..], &common, leeching].concat());
    Pair {
        sample,
        seed,
        leech,
        of_seed,
    }
}

/// How many peers of either are connected over uTP.
fn utp_peers(gyre: &mut Gyre) -> u64 {
    let progress = gyre.wait_for("a peer", |event| {
        event["event"] == "progress" && event["peers"] == 1
    });
    progress["peers_utp"].as_u64().unwrap()
}

fn comes_whole(mut pair: Pair) {
    if !has_ended(&mut pair.leech) {
        pair.leech.event("complete");
    }
    assert_eq!(pair.leech.wait_exit(Duration::from_secs(20)), 0);
    assert!(pair.sample.is_same_in(&pair.sample.dir("out")));
}

#[test]
fn a_file_comes_over_utp_alone() {
    let slowly = ["--no-tcp", "--limit-up", "2MiB"];
    let mut pair = pair(&slowly, &["--no-tcp"]);
    assert_eq!(utp_peers(&mut pair.seed), 1);
    assert_eq!(utp_peers(&mut pair.leech), 1);
    let progress = pair.leech.seen().last().unwrap();
    let one = json!({ "tcp": 0, "utp": 1 });
    assert_eq!(progress["peers_by_transport"], one);
    assert_eq!(progress["connections_by_transport"], one);
    // Nobody hears TCP there.
    assert!(std::net::TcpStream::connect(pair.of_seed).is_err());
    comes_whole(pair);
}

#[test]
fn a_daemon_names_the_transport_of_each_peer() {
    let sample = Sample::file(BYTES, 65_536, &[]);
    let state = sample.dir("daemon");
    let slowly = ["--limit-up", "1MiB", "--tcp", "false", "--ipv6", "false"];
    let mut daemon = Daemon::start_with(&state, &slowly);
    let port = daemon.gyre.listening().port();
    daemon.add(&sample, &sample.data);
    daemon.seeding();
    let of_seed = format!("127.0.0.1:{port}");
    let (torrent, out) = (text(&sample.torrent), text(&sample.dir("out")));
    let leech_state = text(&sample.dir("state"));
    let mut leech = Gyre::start(&[
        "download",
        &torrent,
        "-o",
        &out,
        "--state",
        &leech_state,
        "--peer",
        &of_seed,
        "--port",
        "0",
        "--encryption",
        "require",
    ]);
    assert_eq!(utp_peers(&mut leech), 1);
    let ctl = |words: &[&str]| {
        let mut ctl = support::program::command();
        ctl.args(["ctl", "--state"]).arg(&state).args(words);
        let output = ctl.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown: Value = serde_json::from_str(&ctl(&["show", "1", "--json"])).unwrap();
    let peer = &shown["peers"][0];
    assert_eq!(
        (&peer["isUTP"], &peer["isEncrypted"]),
        (&json!(true), &json!(true))
    );
    assert!(peer["flagStr"].as_str().unwrap().starts_with('T'), "{peer}");
    let shown = ctl(&["show", "1"]);
    assert!(shown.contains("peers       1 (0 TCP, 1 uTP)"), "{shown}");
    assert!(shown.contains(" uTP "), "{shown}");
    let session: Value = serde_json::from_str(&ctl(&["limit", "--json"])).unwrap();
    assert_eq!(session["utp-enabled"], true);
    assert_eq!(session["tcp-enabled"], false);
    assert_eq!(session["preferred-transports"], json!(["utp"]));
    leech.event("complete");
    daemon.terminate();
}

#[test]
fn it_is_hidden_like_any_other_connection() {
    let all = ["--no-tcp", "--encryption", "require"];
    let mut pair = pair(&[&all[..], &["--limit-up", "2MiB"]].concat(), &all);
    let progress = pair.leech.wait_for("a hidden peer", |event| {
        event["event"] == "progress" && event["peers_encrypted"] == 1
    });
    assert_eq!(progress["peers_utp"], 1);
    comes_whole(pair);
}

#[test]
fn each_finds_what_the_other_has() {
    // In its own network TCP is tried first, and uTP where nobody hears that.
    let slowly = ["--no-tcp", "--limit-up", "2MiB"];
    let mut with_utp = pair(&slowly, &[]);
    assert_eq!(utp_peers(&mut with_utp.leech), 1);
    comes_whole(with_utp);
    let mut with_tcp = pair(&["--no-utp", "--limit-up", "2MiB"], &[]);
    assert_eq!(utp_peers(&mut with_tcp.leech), 0);
    comes_whole(with_tcp);
    let mut apart = pair(&["--no-utp"], &["--no-tcp"]);
    apart.leech.wait_for("a dial that failed", |event| {
        event["event"] == "progress" && event["peers_known"] == 1
    });
    for _ in 0..3 {
        let progress = apart.leech.event("progress");
        assert_eq!(progress["peers"], 0);
    }
    assert!(
        apart
            .leech
            .stderr()
            .contains("the other side refuses the connection"),
        "{}",
        apart.leech.stderr()
    );
}

#[test]
fn listed_addresses_are_not_answered_over_utp() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list");
    std::fs::write(&list, "127.0.0.1-127.0.0.1\n").unwrap();
    let mut pair = pair(&["--ip-filter", &text(&list)], &["--no-tcp"]);
    pair.leech.wait_for("a dial that failed", |event| {
        event["event"] == "progress" && event["peers_known"] == 1
    });
    let syn = syn(7);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let timeout = Some(Duration::from_millis(500));
    socket.set_read_timeout(timeout).unwrap();
    socket.send_to(&syn, pair.of_seed).unwrap();
    assert!(socket.recv(&mut [0; 100]).is_err(), "an answer");
    let progress = pair.seed.event("progress");
    assert_eq!(progress["peers"], 0);
}

/// The first packet of a connection.
fn syn(id: u16) -> Vec<u8> {
    let mut syn = vec![0x41, 0];
    syn.extend(id.to_be_bytes());
    syn.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0]);
    syn
}

#[test]
fn a_flood_of_syns_and_strange_packets_takes_no_memory_from_a_transfer_that_goes_on() {
    let slowly = ["--no-tcp", "--limit-up", "1MiB"];
    let mut pair = pair(&slowly, &["--no-tcp"]);
    assert_eq!(utp_peers(&mut pair.leech), 1);
    let before = pair.seed.anonymous_bytes();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sent = 0;
    for id in 0..FLOOD {
        let mut datagram = syn(id);
        datagram[0] = [0x41, 0x01, 0x11, 0x21, 0x31][usize::from(id % 5)];
        sent += u16::from(socket.send_to(&datagram, pair.of_seed).is_ok());
        if id % 40 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    assert!(sent > FLOOD / 2, "{sent}: no flood");
    let grown = pair.seed.anonymous_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    comes_whole(pair);
}

fn has_ended(gyre: &mut Gyre) -> bool {
    while let Some(event) = gyre.next_within(Duration::from_millis(1)) {
        if event["event"] == "complete" {
            return true;
        }
    }
    gyre.seen().iter().any(|event| event["event"] == "complete")
}

/// How long a relay keeps what comes, to hand it on at once.
const HEAP_EVERY: Duration = Duration::from_millis(30);

/// Hands datagrams of one peer on to another in heaps, and counts packets with data, and those among them that came again.
struct Heaps {
    addr: SocketAddr,
    sent: Arc<AtomicUsize>,
    repeated: Arc<AtomicUsize>,
}

impl Heaps {
    fn before(seed: SocketAddr) -> Heaps {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        let room = nix::sys::socket::sockopt::RcvBuf;
        nix::sys::socket::setsockopt(&back, room, &(4 << 20)).unwrap();
        back.set_read_timeout(Some(HEAP_EVERY)).unwrap();
        let heaps = Heaps {
            addr: front.local_addr().unwrap(),
            sent: Arc::default(),
            repeated: Arc::default(),
        };
        let leech = Arc::new(Mutex::new(None));
        let (from_front, to_front) = (front.try_clone().unwrap(), front);
        let (to_back, dialed) = (back.try_clone().unwrap(), leech.clone());
        std::thread::spawn(move || {
            let mut buf = vec![0; 70_000];
            while let Ok((length, from)) = from_front.recv_from(&mut buf) {
                *dialed.lock().unwrap() = Some(from);
                let _ = to_back.send_to(&buf[..length], seed);
            }
        });
        let (sent, repeated) = (heaps.sent.clone(), heaps.repeated.clone());
        std::thread::spawn(move || {
            let (mut heap, mut seen) = (Vec::<Vec<u8>>::new(), HashSet::new());
            let (mut buf, mut since) = (vec![0; 70_000], Instant::now());
            loop {
                if let Ok(length) = back.recv(&mut buf) {
                    let datagram = buf[..length].to_vec();
                    if datagram[0] == 0x01 {
                        sent.fetch_add(1, Ordering::Relaxed);
                        let is_new = seen.insert([datagram[16], datagram[17]]);
                        repeated.fetch_add(usize::from(!is_new), Ordering::Relaxed);
                    }
                    heap.push(datagram);
                }
                if since.elapsed() >= HEAP_EVERY {
                    since = Instant::now();
                    let to = *leech.lock().unwrap();
                    for datagram in heap.drain(..) {
                        let _ = to_front.send_to(&datagram, to.unwrap());
                    }
                }
            }
        });
        heaps
    }
}

#[test]
fn of_packets_that_come_in_heaps_none_is_passed_over() {
    let sample = Sample::file(16 << 20, 65_536, &[]);
    let (torrent, data) = (text(&sample.torrent), text(&sample.data));
    let (state, out) = (text(&sample.dir("state")), text(&sample.dir("out")));
    let common = ["--state", &state, "--port", "0", "--no-ipv6", "--no-tcp"];
    let verb = ["seed", &torrent, "--data", &data];
    let mut seed = Gyre::start(&[&verb[..], &common].concat());
    let of_seed = SocketAddr::from(([127, 0, 0, 1], seed.listening().port()));
    seed.wait_for("seeding", |event| event["state"] == "seeding");
    let heaps = Heaps::before(of_seed);
    let peer = heaps.addr.to_string();
    let verb = ["download", &torrent, "-o", &out, "--peer", &peer];
    let mut leech = Gyre::start(&[&verb[..], &common].concat());
    leech.wait_for("the end", |event| event["event"] == "complete");
    let sent = heaps.sent.load(Ordering::Relaxed);
    let repeated = heaps.repeated.load(Ordering::Relaxed);
    println!("{repeated} of {sent} packets again");
    // Nothing is lost on the way. A machine that stands still for half a second has a few sent again.
    assert!(sent > 10_000 && repeated <= 2, "{repeated} of {sent}");
}
