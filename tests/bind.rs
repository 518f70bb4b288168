//! `--bind IFACE` in networks of the test's own: nothing leaves through another interface, whatever becomes of the bound
//! one, and transfers go on when it is back.
//!
//! Two namespaces are joined by two pairs of interfaces. `gyre` runs in the inner one, bound to `vpn0`; the default route
//! leads over `eth0`, where the world has the same addresses, so that whatever strays would be answered. A packet socket
//! of the world listens there. What the kernel says by itself does not count: ARP, and ICMPv6 of neighbours, routers and
//! multicast listeners.

mod support;

use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::net::{Capture, Net};
use support::program::{PATIENCE, clean};
use support::sample::text;
use support::{Gyre, Sample, machine};

const TRACKER_PORT: u16 = 6969;
const SEEDER_PORT: u16 = 7001;
const OUR_PORT: u16 = 7100;

struct Lab {
    inner: Net,
    world: Net,
    strays: Strays,
}

impl Lab {
    fn new(test: &str) -> Option<Lab> {
        if !machine::has_root(test) {
            return None;
        }
        let (Some(inner), Some(world)) = (Net::new(), Net::new()) else {
            machine::skipped(test, "no network namespaces");
            return None;
        };
        // The world keeps its address whatever becomes of the link.
        world.ip("address add 10.99.1.1/32 dev lo");
        join(&world, &inner, "eth1", "eth0", "10.99.2");
        inner.ip("route add default via 10.99.2.1");
        let strays = world.inside(|| Strays::on("eth1"));
        world.inside(answer_names);
        let lab = Lab {
            inner,
            world,
            strays,
        };
        lab.make_vpn();
        Some(lab)
    }

    fn make_vpn(&self) {
        join(&self.world, &self.inner, "vpn1", "vpn0", "10.99.1");
    }

    /// `gyre` in the world, without DHT and local search.
    fn outside(&self, arguments: &[&str]) -> Gyre {
        let mut command = self.world.command(env!("CARGO_BIN_EXE_gyre"));
        command.args(arguments).arg("--json");
        Gyre::spawn(command)
    }

    /// `gyre` bound to `vpn0`, asking the world's name server.
    fn bound(&self, sample: &Sample, arguments: &[&str]) -> Gyre {
        let resolv_conf = sample.folder.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "nameserver 10.99.1.1\n").unwrap();
        let mut command = self.inner.command("unshare");
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        command.args(["--mount", "sh", "-c", script]);
        command.arg(resolv_conf).arg(env!("CARGO_BIN_EXE_gyre"));
        command.args(arguments).args(["--bind", "vpn0", "--json"]);
        command.env_remove("GYRE_NO_DHT").env_remove("GYRE_NO_LSD");
        Gyre::spawn(command)
    }
}

/// A pair of interfaces between the two.
fn join(world: &Net, inside: &Net, outer: &str, inner: &str, prefix: &str) {
    let (peer, path) = (format!("peer name {inner}"), inside.path());
    world.ip(&format!("link add {outer} type veth {peer} netns {path}"));
    world.ip(&format!("address add {prefix}.1/24 dev {outer}"));
    world.ip(&format!("link set {outer} up"));
    inside.ip(&format!("address add {prefix}.2/24 dev {inner}"));
    inside.ip(&format!("link set {inner} up"));
}

/// What came over the interface that is not ours to use.
struct Strays {
    seen: Arc<Mutex<Vec<String>>>,
    _capture: Capture,
}

impl Strays {
    fn on(interface: &str) -> Strays {
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let strays = seen.clone();
        let on_frame = move |frame: &[u8]| {
            if !is_kernels_own(frame) {
                let hex = frame[..frame.len().min(80)].iter();
                let hex = hex.map(|byte| format!("{byte:02x}"));
                strays.lock().unwrap().push(hex.collect());
            }
        };
        let _capture = Capture::on(interface, on_frame);
        Strays { seen, _capture }
    }

    fn assert_none(&self) {
        let seen = self.seen.lock().unwrap();
        assert!(seen.is_empty(), "{} strays: {:#?}", seen.len(), &*seen);
    }
}

/// ARP, and ICMPv6 about neighbours, routers and multicast listeners, which may stand behind a hop-by-hop header.
fn is_kernels_own(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x06]) => true,
        Some([0x86, 0xdd]) => {
            let kind = match frame.get(20) {
                Some(58) => frame.get(54),
                Some(0) if frame.get(54) == Some(&58) => frame.get(62),
                _ => None,
            };
            matches!(kind, Some(130..=136 | 143))
        }
        _ => false,
    }
}

/// Every name has the world's address.
fn answer_names() {
    let socket = UdpSocket::bind("0.0.0.0:53").unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buf) {
            let question = &buf[..length];
            let is_v4 = question[length - 4..length - 2] == [0, 1];
            let mut answer = question.to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..8].copy_from_slice(&[0, u8::from(is_v4)]);
            if is_v4 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 10, 99, 1, 1]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
}

fn warning(gyre: &mut Gyre, part: &str) -> Value {
    gyre.wait_for(part, |event| {
        let message = event["message"].as_str().unwrap_or_default();
        event["event"] == "warning" && message.contains(part)
    })
}

fn warnings(gyre: &Gyre, part: &str) -> usize {
    let is_it = |event: &&Value| {
        let message = event["message"].as_str().unwrap_or_default();
        event["event"] == "warning" && message.contains(part)
    };
    gyre.seen().iter().filter(is_it).count()
}

/// Downloads a torrent and a magnet link, and takes the way out away in the middle.
fn comes_back(test: &str, take_away: fn(&Lab), give_back: fn(&Lab), why: &str) {
    let Some(lab) = Lab::new(test) else { return };
    let trackers = ["http://web.test:6969/announce", "udp://udp.test:6969"];
    let sample = Sample::file(6_000_000, 65_536, &trackers);
    // Of another name: both go into one folder.
    let other = Sample::tree(&[("other.bin", 200_000)], 16_384, &trackers);
    let tracker = ["tracker", "--listen", "0.0.0.0:6969", "--interval", "2s"];
    let _tracker = lab.outside(&tracker);
    let (data, state) = (text(&sample.data), text(&sample.dir("seeder")));
    let port = SEEDER_PORT.to_string();
    // The world asks no name server: there the tracker is known by its address.
    let at = format!("http://10.99.1.1:{TRACKER_PORT}/announce");
    let known = made(&sample, "known", &["-a", &at]);
    let mut seeder = lab.outside(&[
        "seed",
        &text(&known),
        "--data",
        &data,
        "--state",
        &state,
        "--port",
        &port,
        "--limit-up",
        "700KiB",
        "--bind",
        "10.99.1.1",
    ]);
    seeder.wait_for("seeding", |event| event["state"] == "seeding");
    let link = format!(
        "magnet:?xt=urn:btih:{}&tr=http://web.test:6969/announce&tr=udp://udp.test:6969",
        other
            .info_hash
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    );
    let [http, udp] = trackers;
    let web = "http://web.test:81/sample.bin";
    let torrent = made(&sample, "named", &["-a", http, "-a", udp, "-w", web]);
    let (out, state) = (text(&sample.dir("out")), text(&sample.dir("state")));
    let port = OUR_PORT.to_string();
    let mut leech = lab.bound(
        &sample,
        &[
            "download",
            &text(&torrent),
            &link,
            "-o",
            &out,
            "--state",
            &state,
            "--port",
            &port,
            "--dht-bootstrap",
            "node.test:7002",
            "--announce-interval-min",
            "1s",
        ],
    );
    leech.wait_for("a fifth of it", |event| {
        event["have_bytes"].as_u64() > Some(1_200_000)
    });
    // A line that has just been made may be seen before it carries anything.
    let begun = warnings(&leech, "everything waits");
    take_away(&lab);
    let told = warning(&mut leech, "everything waits");
    assert!(told["message"].as_str().unwrap().contains(why), "{told}");
    let (since, cpu) = (Instant::now(), leech.cpu());
    // Who has the other torrent comes while nobody can be reached.
    let (data, state) = (text(&other.data), text(&other.dir("seeder")));
    let torrent = text(&made(&other, "known", &["-a", &at]));
    let mut late = lab.outside(&[
        "seed",
        &torrent,
        "--data",
        &data,
        "--state",
        &state,
        "--port",
        "7003",
        "--bind",
        "10.99.1.1",
    ]);
    late.wait_for("seeding", |event| event["state"] == "seeding");
    // As many events as come in some seconds without the way.
    while since.elapsed() < Duration::from_secs(6) {
        leech.event("progress");
    }
    let used = leech.cpu() - cpu;
    assert!(used < since.elapsed() / 4, "it spins: {used:?}");
    assert!(leech.is_running());
    lab.strays.assert_none();
    give_back(&lab);
    let back = Instant::now();
    warning(&mut leech, "works again");
    let hash = sample.info_hash.iter().map(|b| format!("{b:02x}"));
    let hash: String = hash.collect();
    leech.wait_for("data", |event| {
        event["info_hash"] == *hash && event["peers"].as_u64() > Some(0)
    });
    println!("{test}: a peer again after {:?}", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(30));
    let listens = lab
        .world
        .inside(|| TcpStream::connect(("10.99.1.2", OUR_PORT)).is_ok());
    assert!(listens, "it listens on the same port");
    let code = leech.wait_exit(PATIENCE * 2);
    let errors = leech.seen().iter();
    let errors: Vec<_> = errors.filter(|event| event["event"] == "error").collect();
    assert_eq!(code, 0, "{errors:#?}, stderr: {}", leech.stderr());
    assert!(sample.is_same_in(&sample.dir("out")));
    assert!(other.is_same_in(&sample.dir("out")));
    lab.strays.assert_none();
    assert_eq!(warnings(&leech, "everything waits"), begun + 1);
    assert_eq!(warnings(&leech, "works again"), begun + 1);
}

/// Another .torrent of the same content.
fn made(sample: &Sample, name: &str, arguments: &[&str]) -> PathBuf {
    let torrent = sample.folder.path().join(format!("{name}.torrent"));
    let piece_length = sample.piece_length.to_string();
    let mut create = clean(Command::new(env!("CARGO_BIN_EXE_gyre")));
    create.args(["create", "-q", "--piece-length", &piece_length]);
    create.args(arguments).arg("-o").arg(&torrent);
    create.arg(&sample.content).stdout(Stdio::null());
    assert!(create.status().unwrap().success());
    torrent
}

#[test]
fn a_download_waits_while_its_interface_is_down_and_goes_on_when_it_is_up() {
    comes_back(
        "a_download_waits_while_its_interface_is_down_and_goes_on_when_it_is_up",
        |lab| lab.inner.ip("link set vpn0 down"),
        |lab| lab.inner.ip("link set vpn0 up"),
        "vpn0 is down",
    );
}

#[test]
fn a_download_goes_on_over_an_interface_that_was_removed_and_made_again() {
    comes_back(
        "a_download_goes_on_over_an_interface_that_was_removed_and_made_again",
        |lab| lab.inner.ip("link delete vpn0"),
        Lab::make_vpn,
        "vpn0 is gone",
    );
}
