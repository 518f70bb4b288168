//! The DHT over real sockets: peers that no tracker names find each other, on this machine alone.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::program::{PATIENCE, command};
use support::{Gyre, Sample};

/// A `gyre` with a node in a DHT of its own.
fn start(arguments: &[&str], state: &Path, doors: &[u16]) -> Gyre {
    let mut command = command();
    command.env_remove("GYRE_NO_DHT").args(arguments);
    command.args([
        "--bind",
        "127.0.0.1",
        "--port",
        "0",
        "--no-lsd",
        "--no-pex",
        "--json",
    ]);
    command.arg("--state").arg(state);
    for door in doors {
        command.args(["--dht-bootstrap", &format!("127.0.0.1:{door}")]);
    }
    Gyre::spawn(command)
}

/// The port it listens on, TCP and UDP alike.
fn port_of(gyre: &mut Gyre) -> u16 {
    let listening = gyre.wait_for("listening", |event| event["event"] == "listening");
    let addr: SocketAddr = listening["addr"].as_str().unwrap().parse().unwrap();
    addr.port()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn seed(sample: &Sample, state: &str, doors: &[u16]) -> Gyre {
    let data = text(&sample.data);
    let arguments = ["seed", &text(&sample.torrent), "--data", &data];
    start(&arguments, &sample.dir(state), doors)
}

fn download(sample: &Sample, out: &Path, state: &str, doors: &[u16]) -> Gyre {
    let arguments = ["download", &text(&sample.torrent), "-o", &text(out)];
    start(&arguments, &sample.dir(state), doors)
}

/// Waits for a peer; the download may be complete before it reports one.
fn first_peer(leech: &mut Gyre) {
    leech.wait_for("a peer", |event| {
        event["peers"].as_u64() > Some(0) || event["event"] == "complete"
    });
}

fn expect_done(leech: &mut Gyre) {
    assert_eq!(leech.wait_exit(PATIENCE), 0, "{}", leech.stderr());
    let mut seen = leech.seen().iter();
    assert!(seen.any(|event| event["event"] == "complete"));
}

fn knows_nodes(event: &Value) -> bool {
    event["event"] == "dht" && event["nodes"].as_u64() > Some(0)
}

#[test]
fn a_download_finds_its_seeder_through_the_dht_alone() {
    let sample = Sample::file(300_000, 16_384, &[]);
    let other = Sample::file(50_000, 16_384, &[]);
    let out = sample.dir("out");
    // A node that has nothing to do with the torrent.
    let mut door = seed(&other, "door", &[1]);
    let port = port_of(&mut door);
    let mut seeder = seed(&sample, "seeder", &[port]);
    seeder.wait_for("an announce", |event| {
        knows_nodes(event) && event["searched"].as_u64() > Some(0)
    });
    let begun = Instant::now();
    let mut leech = download(&sample, &out, "leech", &[port]);
    first_peer(&mut leech);
    println!("first peer after {:?}", begun.elapsed());
    expect_done(&mut leech);
    let figures = leech.seen().iter().rev();
    let mut figures = figures.filter(|event| event["event"] == "progress");
    let met = &figures.next().unwrap()["connections_by_source"];
    // The seeder may have found us first.
    let met: Vec<_> = ["dht", "incoming"]
        .map(|source| met[source].as_u64())
        .into();
    assert!(met.iter().flatten().sum::<u64>() > 0, "{met:?}");
    assert!(sample.is_same_in(&out));
}

#[test]
fn a_private_torrent_sends_nothing_into_the_dht() {
    // A public sample made private: the flag lies in the info dictionary.
    let sample = Sample::file(50_000, 16_384, &[]);
    let private = sample.folder.path().join("private.torrent");
    let made = command()
        .args(["create", "--private", "--quiet", "-o", &text(&private)])
        .arg(&sample.content)
        .output()
        .unwrap();
    assert!(made.status.success());
    let door = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = door.local_addr().unwrap().port();
    let data = text(&sample.data);
    let mut gyre = start(
        &["seed", &text(&private), "--data", &data],
        &sample.dir("state"),
        &[port],
    );
    gyre.wait_for("seeding", |event| event["state"] == "seeding");
    let ours = SocketAddr::from(([127, 0, 0, 1], port_of_seen(&gyre)));
    // Nor is a query answered: whoever asks cannot tell it from a command without a DHT.
    let ping = b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe";
    let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
    asker.send_to(ping, ours).unwrap();
    let mut buf = [0; 1_500];
    for socket in [&asker, &door] {
        socket
            .set_read_timeout(Some(Duration::from_millis(1_500)))
            .unwrap();
        let heard = socket.recv(&mut buf);
        assert!(heard.is_err(), "{:?}", String::from_utf8_lossy(&buf));
    }
    // A peer is greeted without the bit, and with no `port`.
    let mut hello = vec![0; 68];
    use std::io::{Read, Write};
    let mut peer = std::net::TcpStream::connect(ours).unwrap();
    hello[..20].copy_from_slice(b"\x13BitTorrent protocol");
    hello[27] = 0x05;
    let made: Value = serde_json::from_slice(
        &command()
            .args(["info", "--json", &text(&private)])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    let hash = made["info_hash"].as_str().unwrap();
    for at in 0..20 {
        hello[28 + at] = u8::from_str_radix(&hash[2 * at..2 * at + 2], 16).unwrap();
    }
    hello[48..].copy_from_slice(b"-XX0000-000000000001");
    peer.write_all(&hello).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 68];
    peer.read_exact(&mut answer).unwrap();
    assert_eq!(answer[27] & 1, 0);
    let mut greeting = [0; 5];
    peer.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, [0, 0, 0, 1, 14], "have_all");
    peer.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    assert!(peer.read(&mut [0; 64]).is_err(), "no more than that");
}

fn port_of_seen(gyre: &Gyre) -> u16 {
    let listening = gyre
        .seen()
        .iter()
        .find(|event| event["event"] == "listening")
        .unwrap();
    let addr: SocketAddr = listening["addr"].as_str().unwrap().parse().unwrap();
    addr.port()
}

#[test]
fn the_nodes_of_one_run_are_the_way_in_of_the_next() {
    let sample = Sample::file(50_000, 16_384, &[]);
    let other = Sample::file(60_000, 16_384, &[]);
    let mut door = seed(&other, "door", &[1]);
    let port = port_of(&mut door);
    let mut first = seed(&sample, "state", &[port]);
    first.wait_for("a node", knows_nodes);
    first.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(first.wait_exit(Duration::from_secs(20)), 143);
    let file = sample.dir("state").join("dht.nodes");
    assert!(std::fs::metadata(&file).unwrap().len() > 50);
    // The door that it is told of now leads nowhere.
    let mut second = seed(&sample, "state", &[1]);
    second.wait_for("a node", knows_nodes);
    second.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(second.wait_exit(Duration::from_secs(20)), 143);
    // A damaged file is as good as none.
    std::fs::write(&file, b"garbage").unwrap();
    let mut third = seed(&sample, "state", &[port]);
    third.wait_for("a node", knows_nodes);
}

#[test]
fn a_magnet_link_without_trackers_finds_its_metadata_and_its_data() {
    let sample = Sample::file(300_000, 16_384, &[]);
    let out = sample.dir("out");
    let mut seeder = seed(&sample, "seeder", &[1]);
    let port = port_of(&mut seeder);
    let link = bare_link(&sample);
    let arguments = ["download", &link, "-o", &text(&out)];
    let mut leech = start(&arguments, &sample.dir("leech"), &[port]);
    // The seeder knew nobody: it hears of the searcher when that announces itself, and is found then.
    leech.event("complete");
    assert!(sample.is_same_in(&out));
}

/// libtorrent's nodes, ended when dropped.
struct Foreign(
    std::process::Child,
    std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
);

impl Foreign {
    fn start(arguments: &[&str]) -> Foreign {
        use std::io::BufRead;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/lt_dht.py");
        let mut child = std::process::Command::new("python3")
            .arg(script)
            .args(arguments)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        Foreign(child, lines)
    }

    fn is_there() -> bool {
        let asked = std::process::Command::new("python3")
            .args(["-c", "import libtorrent"])
            .output();
        asked.is_ok_and(|output| output.status.success())
    }

    fn wait_for(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.1.next().expect("libtorrent runs").unwrap();
            let value: Value = serde_json::from_str(&line).unwrap();
            if is_it(&value) {
                return value;
            }
        }
    }

    fn ports(&mut self) -> Vec<u16> {
        let ports = self.wait_for(|event| event["event"] == "ports");
        serde_json::from_value(ports["ports"].clone()).unwrap()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long after its start a program may take to meet its first peer.
const FIRST_PEER_MAX: Duration = Duration::from_secs(5);

/// A link that names no tracker and no peer.
fn bare_link(sample: &Sample) -> String {
    let hash = sample.info_hash.iter().map(|byte| format!("{byte:02x}"));
    format!("magnet:?xt=urn:btih:{}", hash.collect::<String>())
}

#[test]
fn libtorrent_and_gyre_find_each_other_in_a_dht_of_twenty_nodes() {
    if !Foreign::is_there() {
        support::machine::skipped(
            "libtorrent_and_gyre_find_each_other",
            "needs libtorrent for python3",
        );
        return;
    }
    let sample = Sample::file(400_000, 16_384, &[]);
    // With four of ours, a seeder and a downloader: twenty.
    let mut nodes = Foreign::start(&["--nodes", "14"]);
    let door = nodes.ports()[0];
    let others: Vec<Sample> = (0..4)
        .map(|n| Sample::file(20_000 + n, 16_384, &[]))
        .collect();
    let mut ours: Vec<Gyre> = others
        .iter()
        .map(|other| seed(other, "state", &[door]))
        .collect();
    for gyre in &mut ours {
        gyre.wait_for("nodes", |event| {
            event["event"] == "dht" && event["nodes"].as_u64() > Some(3)
        });
    }
    gyre_downloads_from_libtorrent(&sample, &mut nodes, door);
    libtorrent_downloads_from_gyre(&others[0], &mut ours[0], door);
}

fn gyre_downloads_from_libtorrent(sample: &Sample, nodes: &mut Foreign, door: u16) {
    let (torrent, data) = (text(&sample.torrent), text(&sample.data));
    let enter = door.to_string();
    let mut seeder = Foreign::start(&["--door", &enter, "--torrent", &torrent, &data]);
    seeder.wait_for(|event| event["complete"] == true);
    let link = bare_link(sample);
    let hash = link.rsplit(':').next().unwrap().to_owned();
    nodes.wait_for(|event| event["event"] == "announced" && event["info_hash"] == *hash);
    let (out, begun) = (sample.dir("out"), Instant::now());
    let arguments = ["download", &link, "-o", &text(&out)];
    let mut leech = start(&arguments, &sample.dir("leech"), &[door]);
    first_peer(&mut leech);
    let took = begun.elapsed();
    println!("Gyre: first peer after {took:?}");
    assert!(took <= FIRST_PEER_MAX, "Gyre's first peer took {took:?}");
    expect_done(&mut leech);
    assert!(sample.is_same_in(&out));
}

fn libtorrent_downloads_from_gyre(sample: &Sample, seeder: &mut Gyre, door: u16) {
    seeder.wait_for("an announce", |event| {
        event["event"] == "dht" && event["searched"].as_u64() > Some(0)
    });
    let (enter, folder) = (door.to_string(), text(&sample.dir("theirs")));
    let link = bare_link(sample);
    let mut leech = Foreign::start(&["--door", &enter, "--torrent", &link, &folder]);
    leech.ports();
    let begun = Instant::now();
    leech.wait_for(|event| event["peers"].as_u64() > Some(0) || event["complete"] == true);
    let took = begun.elapsed();
    println!("libtorrent: first peer after {took:?}");
    assert!(
        took <= FIRST_PEER_MAX,
        "libtorrent's first peer took {took:?}"
    );
    leech.wait_for(|event| event["complete"] == true);
    assert!(sample.is_same_in(Path::new(&folder)));
}

#[test]
fn figures_are_told_when_any_of_them_changes() {
    let sample = Sample::file(50_000, 16_384, &[]);
    let mut gyre = seed(&sample, "state", &[1]);
    let port = port_of(&mut gyre);
    let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
    let before = gyre.wait_for("figures", |event| event["event"] == "dht");
    let heard = before["queries_heard"].as_u64().unwrap();
    let ping = b"d1:ad2:id20:aaaaaaaaaaaaaaaaaaaae1:q4:ping1:t2:xx1:y1:qe";
    asker.send_to(ping, ("127.0.0.1", port)).unwrap();
    gyre.wait_for("the question in the figures", |event| {
        event["event"] == "dht" && event["queries_heard"].as_u64() > Some(heard)
    });
}

#[test]
fn names_that_lead_nowhere_are_told_once() {
    let sample = Sample::file(50_000, 16_384, &[]);
    let (torrent, data) = (text(&sample.torrent), text(&sample.data));
    let mut command = command();
    command.env_remove("GYRE_NO_DHT");
    command.args(["seed", &torrent, "--data", &data, "--json", "--port", "0"]);
    command.args(["--dht-bootstrap", "one.invalid:1,two.invalid:2"]);
    command.arg("--state").arg(sample.dir("state"));
    let mut gyre = Gyre::spawn(command);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("no way into the DHT"), "{message}");
    assert!(told["hint"].as_str().unwrap().contains("--dht-bootstrap"));
}
