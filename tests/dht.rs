//! The DHT over real sockets: peers that no tracker names find each other, on this machine alone.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use support::program::command;
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
    leech.event("complete");
    println!("complete after {:?}", begun.elapsed());
    let last = leech.wait_for("figures", |event| {
        event["connections_by_source"]["dht"].as_u64() > Some(0)
    });
    assert_eq!(last["have_bytes"], 300_000, "{last}");
    assert!(sample.is_same_in(&out));
}
