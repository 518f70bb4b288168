//! A private torrent keeps to its trackers (BEP 27): nothing about it goes to the DHT, to peers as peer exchange, or to the
//! local network, whatever the options say.
//!
//! Two namespaces are joined by one pair of interfaces and all that passes is read. A public torrent of the same bytes in
//! the same place shows that the capture would see each of it.

mod support;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use support::net::{Capture, Net};
use support::program::{PATIENCE, clean};
use support::sample::text;
use support::{Gyre, Sample, machine};

const TRACKER_PORT: u16 = 6969;
const SEEDER_PORT: u16 = 7001;
const LEECH_PORT: u16 = 7002;
const LSD_PORT: u16 = 6771;
const LSD_V4: [u8; 4] = [239, 192, 152, 143];
const LSD_V6: [u8; 16] = [
    0xff, 0x15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xef, 0xc0, 0x98, 0x8f,
];

/// What passed that a private torrent has no part in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Datagrams to the groups of BEP 14.
    lsd_v4: usize,
    lsd_v6: usize,
    /// Datagrams on any port that are bencoded dictionaries, as all of the DHT are.
    krpc: usize,
    /// Connections in which `ut_pex` was offered.
    pex: usize,
    /// `port` messages (BEP 5).
    port: usize,
    /// Handshakes of BEP 3, and extension handshakes behind them.
    handshakes: usize,
    extended: usize,
}

/// One direction of one TCP connection.
type Flow = ([u8; 16], u16, [u8; 16], u16);

#[derive(Default)]
struct Eye {
    seen: Seen,
    /// The payload from the first byte on, as far as it has come without a gap, and the next sequence number.
    flows: BTreeMap<Flow, (u32, Vec<u8>)>,
}

/// As much of a direction as is kept: its handshakes and first messages.
const KEPT_BYTES: usize = 64 * 1024;

impl Eye {
    fn on_frame(&mut self, frame: &[u8]) {
        let (source, destination, protocol, packet) = match frame.get(12..14) {
            Some([0x08, 0x00]) => {
                let ip = &frame[14..];
                let head = usize::from(ip[0] & 0x0f) * 4;
                let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
                let end = if total == 0 {
                    ip.len()
                } else {
                    total.min(ip.len())
                };
                let (from, to) = (mapped(&ip[12..16]), mapped(&ip[16..20]));
                (from, to, ip[9], &ip[head..end])
            }
            Some([0x86, 0xdd]) => {
                let ip = &frame[14..];
                let from = ip[8..24].try_into().unwrap();
                let to = ip[24..40].try_into().unwrap();
                (from, to, ip[6], &ip[40..])
            }
            _ => return,
        };
        match protocol {
            17 => self.on_datagram(destination, packet),
            6 => self.on_segment(source, destination, packet),
            _ => {}
        }
    }

    fn on_datagram(&mut self, destination: [u8; 16], packet: &[u8]) {
        let port = u16::from_be_bytes([packet[2], packet[3]]);
        let payload = &packet[8..];
        let is_krpc = payload.first() == Some(&b'd')
            && payload.last() == Some(&b'e')
            && payload.windows(4).any(|part| part == b"1:y1");
        self.seen.krpc += usize::from(is_krpc);
        let is_lsd = port == LSD_PORT || payload.starts_with(b"BT-SEARCH");
        self.seen.lsd_v4 += usize::from(is_lsd && destination == mapped(&LSD_V4));
        self.seen.lsd_v6 += usize::from(is_lsd && destination == LSD_V6);
    }

    fn on_segment(&mut self, source: [u8; 16], destination: [u8; 16], packet: &[u8]) {
        let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let sequence = u32::from_be_bytes(packet[4..8].try_into().unwrap());
        let (head, is_first) = (usize::from(packet[12] >> 4) * 4, packet[13] & 2 != 0);
        let flow = (source, port(0), destination, port(2));
        if is_first {
            self.flows
                .insert(flow, (sequence.wrapping_add(1), Vec::new()));
            return;
        }
        let Some((next, bytes)) = self.flows.get_mut(&flow) else {
            return;
        };
        let payload = &packet[head..];
        // Sent again, or a gap: the interface loses nothing, so a gap is the end of what is kept.
        if sequence == *next && bytes.len() < KEPT_BYTES {
            *next = next.wrapping_add(payload.len() as u32);
            bytes.extend_from_slice(payload);
        }
    }

    /// What was seen, the streams read.
    fn judge(&self) -> Seen {
        let mut seen = self.seen;
        for (_, bytes) in self.flows.values() {
            if !bytes.starts_with(b"\x13BitTorrent protocol") || bytes.len() < 68 {
                continue;
            }
            seen.handshakes += 1;
            let mut rest = &bytes[68..];
            while let Some(length) = rest.first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                let Some(message) = rest.get(4..4 + length) else {
                    break;
                };
                seen.port += usize::from(message.first() == Some(&9));
                if message.starts_with(&[20, 0]) {
                    seen.extended += 1;
                    let is_pex = message.windows(6).any(|part| part == b"ut_pex");
                    seen.pex += usize::from(is_pex);
                }
                rest = &rest[4 + length..];
            }
        }
        seen
    }
}

fn mapped(v4: &[u8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[10..12].fill(0xff);
    bytes[12..].copy_from_slice(v4);
    bytes
}

/// Downloads a torrent from one namespace into the other, with everything on that finds peers; what passed.
fn transfer(test: &str, is_private: bool) -> Option<Seen> {
    if !machine::has_root(test) {
        return None;
    }
    let (Some(here), Some(there)) = (Net::new(), Net::new()) else {
        machine::skipped(test, "no network namespaces");
        return None;
    };
    let path = there.path();
    here.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {path}"
    ));
    for (net, last) in [(&here, 1), (&there, 2)] {
        net.ip(&format!("address add 10.99.3.{last}/24 dev eth0"));
        net.ip(&format!("address add fd00:99::{last}/64 dev eth0 nodad"));
        net.ip("link set eth0 up");
        net.ip("route add 224.0.0.0/4 dev eth0");
    }
    let eye = Arc::new(Mutex::new(Eye::default()));
    let (capture, of_frame) = (here, eye.clone());
    let on_frame = move |frame: &[u8]| of_frame.lock().unwrap().on_frame(frame);
    let _capture = capture.inside(move || Capture::on("eth0", on_frame));
    let here = capture;

    let sample = Sample::file(3_000_000, 65_536, &[]);
    let torrent = sample.folder.path().join("named.torrent");
    let mut create = clean(Command::new(env!("CARGO_BIN_EXE_gyre")));
    create.args(["create", "-q", "--piece-length", "65536"]);
    create.args(["-a", &format!("http://10.99.3.1:{TRACKER_PORT}/announce")]);
    if is_private {
        create.arg("--private");
    }
    create.arg("-o").arg(&torrent).arg(&sample.content);
    assert!(create.stdout(Stdio::null()).status().unwrap().success());

    let start = |net: &Net, arguments: &[&str]| {
        let mut command = net.command(env!("CARGO_BIN_EXE_gyre"));
        command.args(arguments).arg("--json");
        command.env_remove("GYRE_NO_DHT").env_remove("GYRE_NO_LSD");
        Gyre::spawn(command)
    };
    let listen = format!("10.99.3.1:{TRACKER_PORT}");
    let mut tracker = start(&here, &["tracker", "--listen", &listen, "--interval", "2s"]);
    tracker.event("listening");
    let torrent = text(&torrent);
    let peer = |net: &Net, verb: &[&str], port: u16, door: &str, state: &str| {
        let (port, state) = (port.to_string(), text(&sample.dir(state)));
        let shared = [
            "--port",
            &port,
            "--state",
            &state,
            "--dht-bootstrap",
            door,
            "--encryption",
            "off",
            "--announce-interval-min",
            "1s",
        ];
        start(net, &[verb, &shared].concat())
    };
    let doors = [SEEDER_PORT, LEECH_PORT];
    let doors = [
        format!("10.99.3.1:{}", doors[0]),
        format!("10.99.3.2:{}", doors[1]),
    ];
    let data = text(&sample.data);
    let seed = ["seed", &torrent, "--data", &data];
    let mut seeder = peer(&here, &seed, SEEDER_PORT, &doors[1], "seeder");
    seeder.wait_for("seeding", |event| event["state"] == "seeding");
    let out = text(&sample.dir("out"));
    let download = ["download", &torrent, "-o", &out, "--seed"];
    let mut leech = peer(&there, &download, LEECH_PORT, &doors[0], "leech");
    leech.event("complete");
    assert!(sample.is_same_in(&sample.dir("out")));
    if is_private {
        // Announces to the DHT and the local network come within the first seconds; some more pass.
        for _ in 0..8 {
            leech.event("progress");
            seeder.event("progress");
        }
    } else {
        leech.wait_for("nodes", |event| event["nodes"].as_u64() > Some(0));
        let end = std::time::Instant::now() + PATIENCE;
        while !is_all_seen(&eye.lock().unwrap().judge()) && std::time::Instant::now() < end {
            leech.event("progress");
        }
    }
    let seen = eye.lock().unwrap().judge();
    println!("{test}: {seen:?}");
    Some(seen)
}

fn is_all_seen(seen: &Seen) -> bool {
    let all = [seen.lsd_v4, seen.lsd_v6, seen.krpc, seen.pex, seen.port];
    all.iter().all(|count| *count > 0)
}

#[test]
fn nothing_of_a_private_torrent_goes_to_dht_peer_exchange_or_local_network() {
    let test = "nothing_of_a_private_torrent_goes_to_dht_peer_exchange_or_local_network";
    let Some(seen) = transfer(test, true) else {
        return;
    };
    assert!(seen.handshakes >= 2 && seen.extended >= 2, "{seen:?}");
    let talk = Seen {
        handshakes: seen.handshakes,
        extended: seen.extended,
        ..Seen::default()
    };
    assert_eq!(seen, talk);
}

#[test]
fn of_a_public_torrent_all_of_it_is_seen() {
    let test = "of_a_public_torrent_all_of_it_is_seen";
    let Some(seen) = transfer(test, false) else {
        return;
    };
    assert!(is_all_seen(&seen), "{seen:?}");
    assert!(seen.handshakes >= 2 && seen.extended >= 2, "{seen:?}");
}
