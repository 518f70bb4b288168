//! `--ip-filter`: listed addresses are neither dialed nor heard, and SIGHUP has the list read anew.

mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use gyre::base::InfoHash;
use gyre::wire::lsd::{GROUP_V4, Search};
use nix::sys::signal::Signal;
use support::fake_holder::pex_of;
use support::fake_peer::{Behaviour, Content, FakeSeeder};
use support::fake_tracker::{HttpTracker, ok, peers};
use support::program::command;
use support::raw_peer::{Hello, RawPeer, accept, accept_within, message};
use support::sample::text;
use support::{Gyre, Sample};

fn list(sample: &Sample, content: &str) -> PathBuf {
    let path = sample.folder.path().join("list.txt");
    std::fs::write(&path, content).unwrap();
    path
}

fn download(sample: &Sample, list: &Path, more: &[&str]) -> Gyre {
    let mut arguments = vec!["download".to_owned(), text(&sample.torrent)];
    arguments.extend(["-o".to_owned(), text(&sample.dir("out"))]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--ip-filter".to_owned(), text(list)]);
    arguments.extend(["--port", "0"].map(String::from));
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    Gyre::start(&arguments)
}

fn seed(sample: &Sample, list: &Path) -> Gyre {
    Gyre::start(&[
        "seed",
        &text(&sample.torrent),
        "--data",
        &text(&sample.data),
        "--state",
        &text(&sample.dir("state")),
        "--ip-filter",
        &text(list),
        "--port",
        "0",
        "--bind",
        "127.0.0.1",
    ])
}

fn connections(seeder: &FakeSeeder) -> u64 {
    seeder.counts().connections.load(Ordering::SeqCst)
}

#[test]
fn listed_peers_are_not_dialed_whoever_names_them() {
    let sample = Sample::file(200_000, 1 << 14, &[]);
    let content = Content::of(&sample);
    let blocked = [
        FakeSeeder::start(&content, Behaviour::honest(21)),
        FakeSeeder::start(&content, Behaviour::honest(22)),
    ];
    let free = FakeSeeder::start(&content, Behaviour::honest(30));
    let tracker = HttpTracker::saying(ok(&peers(&[blocked[0].addr, free.addr])));
    let torrent = sample.folder.path().join("t.torrent");
    let made = support::program::command()
        .args([
            "create",
            "--quiet",
            "--piece-length",
            "16KiB",
            "-a",
            &tracker.url(),
            "-o",
            &text(&torrent),
        ])
        .arg(&sample.content)
        .output()
        .unwrap();
    assert!(made.status.success());
    let list = list(
        &sample,
        "some name:127.0.0.20-127.0.0.21\n127.000.000.022 - 127.0.0.29 , 10 , x\n",
    );
    let mut arguments = vec!["download".to_owned(), text(&torrent)];
    arguments.extend([
        "-o".to_owned(),
        text(&sample.dir("out")),
        "--ip-filter".to_owned(),
        text(&list),
    ]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--port".to_owned(), "0".to_owned()]);
    arguments.extend(["--peer".to_owned(), blocked[1].addr.to_string()]);
    let mut gyre = Gyre::start(&arguments);
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&sample.dir("out")));
    assert_eq!(blocked.iter().map(connections).sum::<u64>(), 0);
    let last = gyre
        .seen()
        .iter()
        .rev()
        .find(|event| event["event"] == "progress")
        .unwrap();
    assert_eq!(last["peers_filtered"], 2, "{last}");
}

#[test]
fn listed_peers_that_connect_are_closed_before_any_byte() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let list = list(&sample, "127.0.0.40/30\n");
    let mut gyre = seed(&sample, &list);
    let to = gyre.listening();
    gyre.wait_for("seeding", |event| event["state"] == "seeding");
    let hello = Hello::new(sample.info_hash);
    assert!(
        RawPeer::dial_at([127, 0, 0, 41], to, &hello).is_err(),
        "no handshake"
    );
    assert!(RawPeer::dial_at([127, 0, 0, 44], to, &hello).is_ok());
    let seen = gyre.wait_for("the count", |event| {
        event["peers_filtered"].as_u64() > Some(0)
    });
    assert_eq!(seen["peers_filtered"], 1);
}

#[test]
fn a_list_read_anew_closes_whom_it_has_and_lets_in_whom_it_has_no_more() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let path = list(&sample, "127.0.0.51\n");
    let mut gyre = seed(&sample, &path);
    let to = gyre.listening();
    gyre.wait_for("seeding", |event| event["state"] == "seeding");
    let hello = Hello::new(sample.info_hash);
    let mut connected = RawPeer::dial_at([127, 0, 0, 52], to, &hello).unwrap();
    gyre.wait_for("a peer", |event| event["peers"] == 1);
    list(&sample, "127.0.0.52\n");
    gyre.signal(Signal::SIGHUP);
    connected.expect_close("it is listed now");
    assert!(RawPeer::dial_at([127, 0, 0, 52], to, &hello).is_err());
    let other = RawPeer::dial_at([127, 0, 0, 51], to, &hello);
    assert!(other.is_ok(), "it is listed no more");
    // One that cannot be read changes nothing.
    std::fs::remove_file(&path).unwrap();
    gyre.signal(Signal::SIGHUP);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("stays in force"), "{message}");
    assert!(RawPeer::dial_at([127, 0, 0, 52], to, &hello).is_err());
    assert!(RawPeer::dial_at([127, 0, 0, 51], to, &hello).is_ok());
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
}

#[test]
fn a_download_leaves_a_peer_that_is_listed_while_it_runs() {
    let sample = Sample::file(4_000_000, 1 << 16, &[]);
    let mut behaviour = Behaviour::honest(61);
    behaviour.bytes_per_s = Some(100_000);
    let slow = FakeSeeder::start(&Content::of(&sample), behaviour);
    let path = list(&sample, "# nobody yet\n");
    let peer = slow.addr.to_string();
    let mut gyre = download(&sample, &path, &["--peer", &peer]);
    gyre.wait_for("payload", |event| {
        event["downloaded_bytes"].as_u64() > Some(0)
    });
    list(&sample, "127.0.0.61");
    gyre.signal(Signal::SIGHUP);
    let after = gyre.wait_for("the end of it", |event| {
        event["event"] == "progress" && event["peers"] == 0 && event["peers_known"] == 0
    });
    assert!(after["peers_filtered"].as_u64() > Some(0), "{after}");
    let before = connections(&slow);
    for _ in 0..3 {
        assert_eq!(gyre.event("progress")["peers"], 0);
    }
    assert_eq!(connections(&slow), before, "it is not dialed again");
}

#[test]
fn lines_that_are_none_are_told_once_and_a_list_that_is_none_is_an_error() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let path = list(&sample, "# x\n127.0.0.70\nnonsense\n\nmore nonsense\n");
    let mut gyre = seed(&sample, &path);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(
        message.starts_with("2 lines of ") && message.ends_with("line 3"),
        "{message}"
    );
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
    for (content, cause) in [
        (Some("<html>\n"), "none of its lines"),
        (None, "no such file"),
    ] {
        match content {
            Some(content) => drop(list(&sample, content)),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let mut gyre = seed(&sample, &path);
        let error = gyre.event("error");
        let message = error["message"].as_str().unwrap().to_lowercase();
        assert!(message.contains(cause), "{message}");
        assert!(!error["hint"].as_str().unwrap().is_empty());
        assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 1);
    }
}

/// A download that is free to look for peers in one more way, with the list; nobody is named to it.
fn searching(sample: &Sample, list: &Path, variable: &str, more: &[&str]) -> Gyre {
    let mut command = command();
    command.env_remove(variable);
    command.args(["download", &text(&sample.torrent), "--json", "--port", "0"]);
    command.args(["-o", &text(&sample.dir("out")), "--bind", "127.0.0.1"]);
    command.args(["--state", &text(&sample.dir("state"))]);
    command.args(["--ip-filter", &text(list)]).args(more);
    Gyre::spawn(command)
}

/// Its torrent takes peers.
fn is_on_its_way(gyre: &mut Gyre) {
    gyre.wait_for("a start", |event| {
        event["state"] == "downloading" || event["state"] == "stalled"
    });
}

/// One seeder whose address is listed, and one whose is not.
fn two_seeders(sample: &Sample, last_byte: u8) -> (FakeSeeder, FakeSeeder) {
    let content = Content::of(sample);
    let [listed, free] = [last_byte, last_byte + 1].map(|last_byte| {
        let behaviour = Behaviour::honest(last_byte);
        FakeSeeder::start(&content, behaviour)
    });
    (listed, free)
}

/// The download comes from the free one, and the listed one is left alone and counted.
fn only_the_free_one_is_dialed(sample: &Sample, mut gyre: Gyre, listed: &FakeSeeder) {
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&sample.dir("out")));
    assert_eq!(connections(listed), 0);
    let mut events = gyre.seen().iter().rev();
    let last = events.find(|event| event["event"] == "progress").unwrap();
    assert_eq!(last["peers_filtered"], 1, "{last}");
}

#[test]
fn listed_peers_that_peers_tell_of_are_not_dialed() {
    let sample = Sample::file(200_000, 1 << 14, &[]);
    let (listed, free) = two_seeders(&sample, 81);
    let list = list(&sample, "127.0.0.81\n");
    let mut gyre = searching(&sample, &list, "GYRE_NO_PEX", &[]);
    let to = gyre.listening();
    is_on_its_way(&mut gyre);
    let mut teller = RawPeer::dial(to, sample.info_hash);
    let told = pex_of(&[listed.addr, free.addr]);
    // The ids that Gyre gives its extensions stand in its handshake.
    let theirs = teller.wait_for(20);
    let theirs = String::from_utf8_lossy(&theirs.body).into_owned();
    let id = theirs.split("6:ut_pexi").nth(1).unwrap();
    let id: u8 = id.split('e').next().unwrap().parse().unwrap();
    teller.send(&message(20, b"\0d1:md6:ut_pexi1eee"));
    teller.send(&message(20, &[&[id][..], &told].concat()));
    only_the_free_one_is_dialed(&sample, gyre, &listed);
}

#[test]
fn listed_peers_of_the_local_network_are_not_dialed() {
    // Nobody else is to have this torrent: the group is everybody's.
    let bytes = 200_000 + usize::try_from(std::process::id() % 50_000).unwrap();
    let sample = Sample::file(bytes, 1 << 14, &[]);
    let (listed, free) = two_seeders(&sample, 83);
    let list = list(&sample, "127.0.0.83\n");
    let mut gyre = searching(&sample, &list, "GYRE_NO_LSD", &[]);
    is_on_its_way(&mut gyre);
    let group = Ipv4Addr::new(239, 192, 152, 143);
    for seeder in [&listed, &free] {
        let search = Search {
            port: seeder.addr.port().try_into().unwrap(),
            info_hashes: vec![InfoHash::new(sample.info_hash)],
            cookie: None,
        };
        let speaker = UdpSocket::bind((seeder.addr.ip(), 0)).unwrap();
        let datagram = search.to_datagram(GROUP_V4);
        speaker.send_to(&datagram, (group, 6771)).unwrap();
    }
    only_the_free_one_is_dialed(&sample, gyre, &listed);
}

/// A node of the DHT that knows these peers of every torrent.
fn node(peers: [SocketAddr; 2]) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    let mut values = b"6:valuesl".to_vec();
    for peer in peers {
        let SocketAddr::V4(peer) = peer else { panic!() };
        values.extend(b"6:");
        values.extend(peer.ip().octets());
        values.extend(peer.port().to_be_bytes());
    }
    values.push(b'e');
    std::thread::spawn(move || {
        let mut buf = [0; 2_000];
        while let Ok((length, from)) = socket.recv_from(&mut buf) {
            let query = &buf[..length];
            let find = |what: &[u8]| query.windows(what.len()).position(|at| at == what);
            let (Some(id), Some(_)) = (find(b"1:t4:"), find(b"1:y1:q")) else {
                continue;
            };
            let id = &query[id + 5..id + 9];
            let values = match find(b"9:get_peers") {
                Some(_) => &values[..],
                None => b"",
            };
            let head = b"d1:rd2:id20:abcdefghij0123456789".as_slice();
            let answer = [head, values, b"e1:t4:", id, b"1:y1:re"].concat();
            let _ = socket.send_to(&answer, from);
        }
    });
    addr
}

#[test]
fn listed_peers_that_the_dht_tells_of_are_not_dialed() {
    let sample = Sample::file(200_000, 1 << 14, &[]);
    let (listed, free) = two_seeders(&sample, 85);
    let list = list(&sample, "127.0.0.85\n");
    let door = node([listed.addr, free.addr]).to_string();
    let more = ["--dht-bootstrap", &door];
    let gyre = searching(&sample, &list, "GYRE_NO_DHT", &more);
    only_the_free_one_is_dialed(&sample, gyre, &listed);
}

#[test]
fn a_pipe_in_the_lists_place_neither_holds_the_start_nor_the_next_list() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let path = list(&sample, "127.0.0.87\n");
    let pipe = || {
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    };
    let mut gyre = seed(&sample, &path);
    let to = gyre.listening();
    pipe();
    gyre.signal(Signal::SIGHUP);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("it is a pipe or a device"), "{message}");
    std::fs::remove_file(&path).unwrap();
    list(&sample, "nonsense\n127.0.0.88\n");
    gyre.signal(Signal::SIGHUP);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(message.starts_with("1 line of "), "{message}");
    let hello = Hello::new(sample.info_hash);
    assert!(RawPeer::dial_at([127, 0, 0, 88], to, &hello).is_err());
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
    pipe();
    let mut gyre = seed(&sample, &path);
    let error = gyre.event("error");
    assert!(error["hint"].as_str().unwrap().contains("into a file"));
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 1);
}

#[test]
fn a_list_that_became_empty_is_told_of() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let path = list(&sample, "127.0.0.89\n");
    let mut gyre = seed(&sample, &path);
    gyre.listening();
    list(&sample, "");
    gyre.signal(Signal::SIGHUP);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("nobody is kept out any more"), "{message}");
}

#[test]
fn a_listed_node_of_the_dht_is_neither_asked_nor_answered() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let list = list(&sample, "127.0.0.91\n");
    let socket = |last_byte: u8| {
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last_byte), 0)).unwrap();
        let limit = Some(Duration::from_secs(20));
        socket.set_read_timeout(limit).unwrap();
        socket
    };
    let (listed, free) = (socket(91), socket(92));
    let doors = [&listed, &free].map(|node| node.local_addr().unwrap());
    let doors = doors.map(|addr| addr.to_string()).join(",");
    let mut gyre = searching(&sample, &list, "GYRE_NO_DHT", &["--dht-bootstrap", &doors]);
    let to = gyre.listening();
    let mut buf = [0; 2_000];
    free.recv_from(&mut buf).expect("the free one is asked");
    let ping = b"d1:ad2:id20:aaaaaaaaaaaaaaaaaaaae1:q4:ping1:t2:xx1:y1:qe";
    listed.send_to(ping, to).unwrap();
    free.send_to(ping, to).unwrap();
    let is_answer = |bytes: &[u8]| bytes.windows(7).any(|at| at == b"1:t2:xx");
    loop {
        let (length, _) = free.recv_from(&mut buf).expect("it is answered");
        if is_answer(&buf[..length]) {
            break;
        }
    }
    listed.set_nonblocking(true).unwrap();
    assert!(
        listed.recv_from(&mut buf).is_err(),
        "it was asked or answered"
    );
}

#[test]
fn a_peer_that_is_listed_during_its_handshake_is_not_dialed_the_other_way() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let path = list(&sample, "127.0.0.94\n");
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 93), 0)).unwrap();
    let peer = listener.local_addr().unwrap().to_string();
    let mut gyre = download(&sample, &path, &["--peer", &peer]);
    let hidden = accept(&listener);
    list(&sample, "nonsense\n127.0.0.93\n");
    gyre.signal(Signal::SIGHUP);
    let told = gyre.event("warning");
    assert!(told["message"].as_str().unwrap().starts_with("1 line of "));
    // A hidden handshake that is refused is followed by one in the open at once.
    drop(hidden);
    assert!(accept_within(&listener, Duration::from_secs(3)).is_none());
}
