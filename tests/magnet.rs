//! Magnet links with the whole program over real sockets: metadata and peers from whoever has them.

mod support;

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::fake_holder::{FakeHolder, Holds, info_of, pex_of};
use support::fake_tracker::{HttpTracker, ok, peers};
use support::program::{self, PATIENCE};
use support::raw_peer::{Hello, RawPeer, listener};
use support::{Gyre, Sample, WebServer, sample::text};

fn sample() -> Sample {
    Sample::file(1_000_000, 65_536, &[])
}

fn hex(info_hash: &[u8; 20]) -> String {
    info_hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn link(sample: &Sample, peers: &[SocketAddr]) -> String {
    let peers = peers.iter().map(|addr| format!("&x.pe={addr}"));
    let peers: String = peers.collect();
    format!(
        "magnet:?xt=urn:btih:{}&dn=a+name{peers}",
        hex(&sample.info_hash)
    )
}

fn start(sample: &Sample, arguments: &[&str], more: &[&str]) -> Gyre {
    let state = text(&sample.dir("state"));
    let all = [arguments, &["--state", &state, "--port", "0"], more].concat();
    Gyre::start(&all)
}

/// A seeder and where it listens.
fn seeder(sample: &Sample, more: &[&str]) -> (Gyre, SocketAddr) {
    let (torrent, data) = (text(&sample.torrent), text(&sample.data));
    let mut gyre = start(sample, &["seed", &torrent, "--data", &data], more);
    let addr = gyre.listening();
    gyre.wait_for("a seed", |event| event["state"] == "seeding");
    (gyre, addr)
}

/// A download into the folder `name` of the sample.
fn download(sample: &Sample, name: &str, source: &str, more: &[&str]) -> Gyre {
    let out = text(&sample.dir(name));
    start(sample, &["download", source, "-o", &out], more)
}

#[track_caller]
fn expect_done(sample: &Sample, name: &str, mut gyre: Gyre) -> Vec<Value> {
    assert_eq!(gyre.wait_exit(PATIENCE), 0, "{}", gyre.stderr());
    assert!(sample.is_same_in(&sample.dir(name)), "other bytes");
    gyre.seen().to_vec()
}

fn events<'e>(seen: &'e [Value], name: &str) -> Vec<&'e Value> {
    seen.iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn a_link_that_names_a_peer_is_enough() {
    let sample = sample();
    let (_seed, addr) = seeder(&sample, &[]);
    let before = Instant::now();
    let gyre = download(&sample, "out", &link(&sample, &[addr]), &[]);
    let seen = expect_done(&sample, "out", gyre);
    assert!(before.elapsed() < Duration::from_secs(30), "soon after");
    let metadata = events(&seen, "metadata");
    assert_eq!(metadata.len(), 1);
    assert_eq!(metadata[0]["name"], "sample.bin");
    assert_eq!(metadata[0]["total_bytes"], 1_000_000);
    assert_eq!(events(&seen, "complete").len(), 1);
    let first = events(&seen, "progress")[0];
    assert_eq!(
        (&first["state"], &first["name"]),
        (&"metadata".into(), &"a name".into())
    );
}

#[test]
fn an_info_hash_alone_with_a_peer_is_enough_and_the_torrent_can_be_kept() {
    let sample = sample();
    let (_seed, addr) = seeder(&sample, &[]);
    let saved = sample.dir("saved").join("x.torrent");
    let more = ["--peer", &addr.to_string(), "--save-torrent", &text(&saved)];
    let gyre = download(&sample, "out", &hex(&sample.info_hash), &more);
    expect_done(&sample, "out", gyre);
    let bytes = std::fs::read(&saved).unwrap();
    let original = std::fs::read(&sample.torrent).unwrap();
    assert_eq!(info_of(&bytes), info_of(&original));
}

#[test]
fn a_tracker_is_enough_and_hears_started_once() {
    let sample = sample();
    let (_seed, addr) = seeder(&sample, &[]);
    let tracker = HttpTracker::saying(ok(&peers(&[addr])));
    let url = tracker.url().replace(':', "%3A").replace('/', "%2F");
    let link = format!("{}&tr={url}", link(&sample, &[]));
    let more = ["--no-ipv6", "--seed"];
    let mut gyre = download(&sample, "out", &link, &more);
    let started = tracker.next();
    assert_eq!(started.parameter("event"), Some("started"));
    let left: u64 = started.parameter("left").unwrap().parse().unwrap();
    assert!(left > 0, "nobody takes it for a seed");
    gyre.event("complete");
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(PATIENCE), 143);
    let mut told = Vec::new();
    while let Some(get) = tracker.next_within(Duration::from_millis(200)) {
        told.extend(get.parameter("event").map(str::to_owned));
    }
    assert!(!told.contains(&"started".to_owned()), "{told:?}");
    assert!(told.contains(&"stopped".to_owned()), "{told:?}");
}

#[test]
fn a_peer_that_has_nothing_leads_to_one_that_has_everything() {
    let sample = sample();
    let (_seed, addr) = seeder(&sample, &[]);
    let told = vec![pex_of(&[addr])];
    let teller = FakeHolder::start_telling(31, sample.info_hash, Holds::Nothing, told);
    let gyre = download(&sample, "out", &link(&sample, &[teller.addr]), &[]);
    expect_done(&sample, "out", gyre);
}

#[test]
fn a_download_that_gets_nowhere_tells_a_newcomer_of_the_seeder() {
    let sample = Sample::file(4_000_000, 65_536, &[]);
    let (_seed, addr) = seeder(&sample, &["--no-pex"]);
    let slow = ["--peer", &addr.to_string(), "--limit-down", "20KiB"];
    let mut slow = download(&sample, "slow", &text(&sample.torrent), &slow);
    let knows = slow.listening();
    slow.wait_for("a peer", |event| event["peers"] == 1);
    let gyre = download(&sample, "out", &link(&sample, &[knows]), &[]);
    expect_done(&sample, "out", gyre);
    assert!(slow.is_running(), "it had all of it before");
    // Without peer exchange there is only the slow one.
    let mut alone = download(&sample, "alone", &link(&sample, &[knows]), &["--no-pex"]);
    alone.wait_for("data", |event| event["downloaded_bytes"].as_u64() > Some(0));
    for _ in 0..4 {
        let progress = alone.event("progress");
        assert_eq!(progress["peers"], 1, "it was told of others");
    }
}

#[test]
fn three_liars_of_five_do_not_keep_the_metadata_back() {
    let sample = Sample::tree(&[("a", 400_000), ("b", 3_000_000)], 16_384, &[]);
    let (_seed, addr) = seeder(&sample, &[]);
    let info = info_of(&std::fs::read(&sample.torrent).unwrap());
    let honest = FakeHolder::start(41, sample.info_hash, Holds::Metadata(info.clone()));
    let liars = [42, 43, 44].map(|at| {
        let mut wrong = info.clone();
        wrong[usize::from(at)] ^= 1;
        FakeHolder::start(at, sample.info_hash, Holds::Metadata(wrong))
    });
    let mut all = vec![addr, honest.addr];
    all.extend(liars.iter().map(|liar| liar.addr));
    let gyre = download(&sample, "out", &link(&sample, &all), &[]);
    expect_done(&sample, "out", gyre);
}

#[test]
fn twenty_mebibytes_of_metadata_are_fetched_and_shown() {
    // A million pieces of zeros: nobody reads them.
    let sample = sample();
    let folder = sample.dir("large");
    let (pieces, piece_length) = (1 << 20, 16_384_u64);
    let length = pieces * piece_length;
    let file = std::fs::File::create(folder.join("zeros")).unwrap();
    file.set_len(length).unwrap();
    let mut info = format!("d6:lengthi{length}e4:name5:zeros12:piece lengthi{piece_length}e");
    info += &format!("6:pieces{}:", pieces * 20);
    let mut torrent = [b"d4:info", info.as_bytes()].concat();
    torrent.extend([7; 20].repeat(pieces as usize));
    torrent.extend(b"ee");
    let path = folder.join("zeros.torrent");
    std::fs::write(&path, &torrent).unwrap();
    let shown = run(&["info", &text(&path), "--json"]);
    let info_hash = shown["info_hash"].as_str().unwrap();
    let data = text(&folder);
    let arguments = ["seed", &text(&path), "--data", &data, "--check", "none"];
    let mut seed = start(&sample, &arguments, &[]);
    let addr = seed.listening().to_string();
    seed.wait_for("a seed", |event| event["state"] == "seeding");
    let saved = folder.join("saved.torrent");
    let arguments = [
        "info",
        info_hash,
        "--peer",
        &addr,
        "--json",
        "--save-torrent",
        &text(&saved),
    ];
    let fetched = run(&arguments);
    assert_eq!(fetched["pieces"], pieces);
    assert_eq!(fetched["info_hash"], info_hash);
    assert!(
        std::fs::read(&saved).unwrap() == torrent,
        "another .torrent"
    );
}

/// Runs a verb that prints one object.
fn run(arguments: &[&str]) -> Value {
    let output = program::command().args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn files_that_the_link_or_select_names_are_fetched_alone() {
    let files = [("a", 100_000), ("b", 200_000), ("c", 50_000)];
    let sample = Sample::tree(&files, 16_384, &[]);
    let (_seed, addr) = seeder(&sample, &[]);
    let present = |name: &str| {
        let folder = sample.dir(name).join("sample");
        ["a", "b", "c"].map(|file| folder.join(file).exists())
    };
    let named = link(&sample, &[addr]) + "&so=0,2";
    let mut gyre = download(&sample, "named", &named, &[]);
    assert_eq!(gyre.wait_exit(PATIENCE), 0, "{}", gyre.stderr());
    assert_eq!(present("named"), [true, false, true]);
    let mut gyre = download(&sample, "selected", &named, &["--select", "b"]);
    assert_eq!(gyre.wait_exit(PATIENCE), 0, "{}", gyre.stderr());
    assert_eq!(present("selected"), [false, true, false]);
    let mut gyre = download(&sample, "none", &named, &["--select", "*.ogg"]);
    assert_eq!(gyre.wait_exit(PATIENCE), 1);
    let errors = events(gyre.seen(), "error");
    let message = errors[0]["message"].as_str().unwrap();
    assert!(message.contains("--select"), "{message}");
}

#[test]
fn info_and_list_fetch_the_metadata_and_offline_shows_the_link() {
    let sample = sample();
    let (_seed, addr) = seeder(&sample, &[]);
    let link = link(&sample, &[addr]);
    let shown = run(&["info", &link, "--json"]);
    assert_eq!(
        (&shown["kind"], &shown["name"]),
        (&"v1".into(), &"sample.bin".into())
    );
    let shown = run(&["info", &link, "--json", "--offline"]);
    assert_eq!(
        (&shown["kind"], &shown["name"]),
        (&"magnet".into(), &"a name".into())
    );
    let listed = run(&["download", &link, "--list", "--json", "--port", "0"]);
    assert_eq!(listed["files"][0]["length_bytes"], 1_000_000);
    // There is nobody to ask.
    let shown = run(&["info", &hex(&sample.info_hash), "--json"]);
    assert_eq!(shown["kind"], "magnet");
}

#[test]
fn a_search_ends_after_the_time_it_is_given() {
    let sample = sample();
    let silent = FakeHolder::start(51, sample.info_hash, Holds::Silence(70_000));
    let link = link(&sample, &[silent.addr]);
    let output = program::command()
        .args(["info", &link, "--give-up", "2s"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (stdout, stderr) = (output.stdout, output.stderr);
    assert!(String::from_utf8_lossy(&stdout).contains("a name"));
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(stderr.contains("no peer sends its metadata"), "{stderr}");
    let mut gyre = download(&sample, "out", &link, &["--give-up", "2s"]);
    assert_eq!(gyre.wait_exit(PATIENCE), 1);
    assert_eq!(events(gyre.seen(), "error").last().unwrap()["final"], true);
    assert!(silent.requests() > 0);
}

#[test]
fn a_peer_that_comes_by_itself_may_bring_the_metadata() {
    let sample = sample();
    let info = info_of(&std::fs::read(&sample.torrent).unwrap());
    let (_seed, seed_addr) = seeder(&sample, &[]);
    let nobody = listener();
    let link = link(&sample, &[nobody.local_addr().unwrap()]);
    let mut gyre = download(&sample, "out", &link, &[]);
    let addr = gyre.listening();
    gyre.wait_for("a search", |event| event["state"] == "metadata");
    let mut peer = RawPeer::dial_as(addr, &Hello::new(sample.info_hash));
    let size = info.len();
    let hello = format!("\0d1:md11:ut_metadatai2e6:ut_pexi1ee13:metadata_sizei{size}ee");
    peer.send(&support::raw_peer::message(20, hello.as_bytes()));
    let frame = loop {
        let frame = peer.wait_for(20);
        if frame.body[0] == 2 {
            break frame;
        }
    };
    assert_eq!(support::fake_holder::number(&frame.body[1..], "piece"), 0);
    let told = [&[1][..], &pex_of(&[seed_addr])].concat();
    peer.send(&support::raw_peer::message(20, &told));
    let head = format!("\x02d8:msg_typei1e5:piecei0e10:total_sizei{size}ee");
    peer.send(&support::raw_peer::message(
        20,
        &[head.as_bytes(), &info].concat(),
    ));
    expect_done(&sample, "out", gyre);
}

#[test]
fn a_private_torrent_found_by_a_link_exchanges_no_peers() {
    let sample = sample();
    let torrent = sample.dir("private").join("x.torrent");
    let (content, path) = (text(&sample.content), text(&torrent));
    let made = run(&["create", &content, "--private", "-o", &path, "--json"]);
    let info_hash = made["info_hash"].as_str().unwrap().to_owned();
    let bytes: Vec<u8> = (0..20)
        .map(|at| u8::from_str_radix(&info_hash[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let private = Sample {
        torrent,
        info_hash: bytes.try_into().unwrap(),
        ..sample
    };
    let (_seed, addr) = seeder(&private, &[]);
    // Its own handshake says that it takes none, and what is told all the same is not believed.
    let decoy = listener();
    let mut peer = RawPeer::dial(addr, private.info_hash);
    let hello = peer.wait_for(20);
    assert_eq!(hello.body[0], 0);
    assert_eq!(
        support::fake_holder::id_of(&hello.body[1..], "ut_pex"),
        None
    );
    assert!(support::fake_holder::id_of(&hello.body[1..], "ut_metadata").is_some());
    let told = vec![pex_of(&[addr])];
    let holder = {
        let info = info_of(&std::fs::read(&private.torrent).unwrap());
        FakeHolder::start_telling(61, private.info_hash, Holds::Metadata(info), told)
    };
    // The one that the link names has the metadata and no data; the seeder is known by PEX alone, which a private
    // torrent does not use.
    let more = ["--give-up", "4s"];
    let mut gyre = download(&private, "out", &link(&private, &[holder.addr]), &more);
    gyre.event("metadata");
    assert_eq!(gyre.wait_exit(PATIENCE), 1);
    let gyre = download(&private, "out2", &link(&private, &[holder.addr, addr]), &[]);
    expect_done(&private, "out2", gyre);
    drop(decoy);
}

#[test]
fn bytes_behind_the_handshake_are_not_lost_before_the_metadata_is_here() {
    let sample = sample();
    let info = info_of(&std::fs::read(&sample.torrent).unwrap());
    let (_seed, seed_addr) = seeder(&sample, &[]);
    let door = listener();
    let link = link(&sample, &[door.local_addr().unwrap(), seed_addr]);
    let gyre = download(&sample, "out", &link, &[]);
    let mut stream = support::raw_peer::accept_peer(&door);
    let mut theirs = [0; 68];
    stream.read_exact(&mut theirs).unwrap();
    let hello = format!("\0d1:md11:ut_metadatai2ee13:metadata_sizei{}ee", info.len());
    let all = [
        Hello::new(sample.info_hash).encode(),
        support::raw_peer::message(20, hello.as_bytes()),
    ];
    std::io::Write::write_all(&mut stream, &all.concat()).unwrap();
    expect_done(&sample, "out", gyre);
}

/// A link with the .torrent and the data of the sample on a server of its whole folder.
fn web_link(sample: &Sample, server: &WebServer) -> String {
    let (torrent, data) = (server.url("sample.torrent"), server.url("data/sample.bin"));
    format!("{}&xs={torrent}&ws={data}", link(sample, &[]))
}

fn web_bytes(seen: &[Value]) -> &Value {
    &events(seen, "progress").last().unwrap()["downloaded_web_bytes"]
}

#[test]
fn a_link_with_nothing_but_urls_is_enough() {
    let sample = sample();
    let server = WebServer::good(sample.folder.path());
    let gyre = download(&sample, "out", &web_link(&sample, &server), &[]);
    let seen = expect_done(&sample, "out", gyre);
    assert_eq!(events(&seen, "metadata")[0]["name"], "sample.bin");
    assert_eq!(web_bytes(&seen), 1_000_000);
    let targets = server.asks().into_iter().map(|ask| ask.target);
    let torrents = targets.filter(|target| target == "/sample.torrent");
    assert_eq!(torrents.count(), 1, "fetched once");
    // `info` needs nobody else either, and takes the other spelling.
    let link = web_link(&sample, &server).replace("&xs=", "&as=");
    let shown = run(&["info", &link, "--json"]);
    assert_eq!(shown["total_bytes"], 1_000_000);
}

#[test]
fn data_comes_from_the_web_seed_of_a_link_whose_one_peer_has_metadata_only() {
    let sample = sample();
    let server = WebServer::good(&sample.data);
    let info = info_of(&std::fs::read(&sample.torrent).unwrap());
    let holder = FakeHolder::start(71, sample.info_hash, Holds::Metadata(info));
    let seed = server.url("sample.bin");
    let link = format!("{}&ws={seed}", link(&sample, &[holder.addr]));
    let gyre = download(&sample, "out", &link, &[]);
    let seen = expect_done(&sample, "out", gyre);
    assert_eq!(web_bytes(&seen), 1_000_000);
}

#[test]
fn no_web_seeds_leaves_those_of_a_link_alone() {
    let sample = sample();
    let (_seed, addr) = seeder(&sample, &[]);
    let server = WebServer::good(sample.folder.path());
    let more = ["--no-web-seeds", "--peer", &addr.to_string()];
    let gyre = download(&sample, "out", &web_link(&sample, &server), &more);
    let seen = expect_done(&sample, "out", gyre);
    assert_eq!(web_bytes(&seen), 0);
    let asks = server.asks();
    assert!(asks.iter().all(|ask| ask.target == "/sample.torrent"));
}

#[test]
fn an_https_url_of_the_torrent_is_told_and_the_next_is_used() {
    let sample = sample();
    let server = WebServer::good(sample.folder.path());
    let link = web_link(&sample, &server);
    let link = link.replace("&xs=", "&xs=https://a.invalid/x.torrent&xs=");
    let gyre = download(&sample, "out", &link, &[]);
    let seen = expect_done(&sample, "out", gyre);
    let warnings = events(&seen, "warning");
    let message = warnings[0]["message"].as_str().unwrap();
    assert!(message.contains("https is not supported"), "{message}");
}

#[test]
fn a_place_for_the_torrent_is_looked_at_before_anybody_is_asked() {
    let sample = sample();
    let holder = FakeHolder::start(52, sample.info_hash, Holds::Silence(70_000));
    let link = link(&sample, &[holder.addr]);
    let folder = sample.dir("saved");
    let pipe = folder.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, cause) in [
        (folder.join("missing/x.torrent"), "there is no folder"),
        (folder.join("pipe/x.torrent"), "there is no folder"),
        (pipe, "exists and is no .torrent"),
    ] {
        let output = program::command()
            .args(["info", &link, "--save-torrent", &text(&path)])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(cause), "{stderr}");
        assert!(stderr.contains("--save-torrent"), "{stderr}");
    }
    assert_eq!(holder.requests(), 0);
}

#[test]
fn peers_that_refuse_the_metadata_are_no_lack_of_peers() {
    let sample = sample();
    // Eight pieces, all asked for at once: after eight refusals in a row it is closed.
    let holder = FakeHolder::start(53, sample.info_hash, Holds::Rejects(8 * 16_384));
    let link = link(&sample, &[holder.addr]);
    let output = program::command()
        .args(["info", &link, "--give-up", "3s"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("sends its metadata"), "{stderr}");
    assert!(holder.requests() >= 8);
}
