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
    command.args(["--bind", "127.0.0.1", "--port", "0", "--no-lsd", "--no-pex", "--json"]);
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
