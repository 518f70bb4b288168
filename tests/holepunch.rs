//! Hole punching (BEP 55): two peers behind gateways that let nobody in are connected through a third.
//!
//! Five namespaces: the world, where the relay is, two gateways that hide what is behind them (NAT) and drop every packet
//! that nobody asked for, and a machine behind each.

mod support;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::net::Net;
use support::program::clean;
use support::raw_peer::{EXTENDED, HAVE_NONE, Hello, RawPeer, message};
use support::sample::text;
use support::{Gyre, Sample, machine};

const BYTES: usize = 32 << 20;
/// Fast enough for what peers say, too slow to have the data before the test is over: two seeds would part.
const RELAY_RATE: &str = "128KiB";
/// The relay as each side dials it: libtorrent hears its own interfaces only.
const RELAYS: [&str; 2] = ["11.0.1.1:7000", "11.0.2.1:7000"];
/// A dial over uTP, then over TCP, the rendezvous, the dials of both, and time for the machine.
const PUNCHED_WITHIN: Duration = Duration::from_secs(50);
/// libtorrent tells of others when it next looks.
const TOLD_WITHIN: Duration = Duration::from_secs(40);

/// Forwards for what is behind, under its own address, and drops what was not asked for.
const GATEWAY: &str = "
table ip gateway {
    chain behind {
        type nat hook postrouting priority srcnat;
        oifname \"world\" masquerade
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        iifname \"inside\" accept
        ct state established,related accept
    }
    chain input {
        type filter hook input priority filter;
        iifname \"world\" drop
    }
}
";

/// The world, and two machines behind gateways of their own.
struct World {
    world: Net,
    machines: Vec<Net>,
    _gateways: Vec<Net>,
}

impl World {
    /// `None`, and a line that says why, where namespaces or NAT cannot be had.
    fn new(test: &str) -> Option<World> {
        if !machine::has_root(test) {
            return None;
        }
        let Some(world) = Net::new() else {
            machine::skipped(test, "no network namespaces");
            return None;
        };
        let forwards = |net: &Net| {
            let on = "echo 1 > /proc/sys/net/ipv4/ip_forward";
            net.command("sh").args(["-c", on]).status().unwrap();
        };
        forwards(&world);
        let (mut machines, mut gateways) = (Vec::new(), Vec::new());
        for side in 1..=2 {
            let (gateway, behind) = (Net::new()?, Net::new()?);
            world.ip(&format!(
                "link add side{side} type veth peer name world netns {}",
                gateway.path()
            ));
            gateway.ip(&format!(
                "link add inside type veth peer name eth0 netns {}",
                behind.path()
            ));
            world.ip(&format!("address add 11.0.{side}.1/24 dev side{side}"));
            world.ip(&format!("link set side{side} up"));
            gateway.ip(&format!("address add 11.0.{side}.2/24 dev world"));
            gateway.ip(&format!("address add 10.{side}.0.1/24 dev inside"));
            gateway.ip("link set world up");
            gateway.ip("link set inside up");
            gateway.ip(&format!("route add default via 11.0.{side}.1"));
            behind.ip(&format!("address add 10.{side}.0.2/24 dev eth0"));
            behind.ip("link set eth0 up");
            behind.ip(&format!("route add default via 10.{side}.0.1"));
            forwards(&gateway);
            if !has_rules(&gateway) {
                machine::skipped(test, "no NAT: nft is missing or the kernel has none");
                return None;
            }
            machines.push(behind);
            gateways.push(gateway);
        }
        Some(World {
            world,
            machines,
            _gateways: gateways,
        })
    }
}

fn has_rules(gateway: &Net) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules");
    std::fs::write(&rules, GATEWAY).unwrap();
    let mut nft = gateway.command("nft");
    nft.arg("-f").arg(&rules).stderr(Stdio::null());
    nft.status().is_ok_and(|status| status.success())
}

/// Who helps.
enum Relay<'a> {
    Gyre(&'a [&'a str]),
    Libtorrent,
}

impl Relay<'_> {
    /// Starts it in the world; `None`, and a line that says why, where it cannot be.
    fn start(&self, test: &str, net: &Net, sample: &Sample) -> Option<Helper> {
        let (torrent, out) = (text(&sample.torrent), text(&sample.dir("relay")));
        let options = match self {
            Relay::Gyre(options) => options,
            Relay::Libtorrent => {
                let mut known = clean(Command::new("python3"));
                known.args(["-c", "import libtorrent"]);
                let has_it = known.output().is_ok_and(|it| it.status.success());
                if !has_it {
                    machine::skipped(test, "libtorrent for Python is missing");
                    return None;
                }
                let mut command = net.command("python3");
                command
                    .arg("tests/interop/lt_peer.py")
                    .args([&torrent, &out]);
                command.args(["--helper", "--port", "7000"]);
                command.stdout(Stdio::null()).stderr(Stdio::null());
                let child = command.spawn().unwrap();
                return Some(Helper::Libtorrent(child));
            }
        };
        let verb = ["download", &torrent, "-o", &out, "--port", "7000"];
        let only_helps = ["--limit-down", RELAY_RATE, "--upload-slots", "0"];
        let mut gyre = start(
            net,
            sample,
            "relay",
            &[&verb[..], &only_helps, options].concat(),
        );
        gyre.listening();
        Some(Helper::Gyre(gyre))
    }
}

enum Helper {
    Gyre(#[expect(dead_code, reason = "runs until it is dropped")] Gyre),
    Libtorrent(Child),
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Helper::Libtorrent(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start(net: &Net, sample: &Sample, name: &str, arguments: &[&str]) -> Gyre {
    let state = text(&sample.dir(&format!("{name}-state")));
    let mut command = net.command(env!("CARGO_BIN_EXE_gyre"));
    command.args(arguments);
    command.args(["--state", &state, "--no-ipv6", "--no-port-map"]);
    command.args(["--json", "-vv"]);
    Gyre::spawn(command)
}

/// A relay in the world that has nothing, a seed behind one gateway and a leecher behind the other.
struct Swarm {
    sample: Sample,
    _net: World,
    _relay: Helper,
    seed: Gyre,
    leech: Gyre,
}

fn swarm(test: &str, relay: &Relay<'_>, of_leech: &[&str]) -> Option<Swarm> {
    let net = World::new(test)?;
    let sample = Sample::file(BYTES, 65_536, &[]);
    let torrent = text(&sample.torrent);
    let relay = relay.start(test, &net.world, &sample)?;
    let data = text(&sample.data);
    let verb = ["seed", &torrent, "--data", &data, "--port", "7001"];
    let of_seed = [&verb[..], &["--peer", RELAYS[0]]].concat();
    let mut seed = start(&net.machines[0], &sample, "seed", &of_seed);
    seed.wait_for("the relay", |event| event["peers"] == 1);
    // Somebody else comes and goes, of whom the relay tells the seed. For a minute it hears of nobody then: that both
    // dial each other at the same time, which makes a hole as well, is not what is looked at here.
    let hello = Hello::new(sample.info_hash);
    let passing = net.machines[1].inside(move || {
        let relay = RELAYS[1].parse().unwrap();
        let mut peer = RawPeer::dial_at([10, 2, 0, 2], relay, &hello).unwrap();
        peer.send(&message(HAVE_NONE, &[]));
        peer.send(&message(EXTENDED, b"\0d1:md6:ut_pexi1ee1:pi9ee"));
        peer
    });
    seed.wait_for_within("another peer", TOLD_WITHIN, |event| {
        event["peers_known"].as_u64() >= Some(2)
    });
    drop(passing);
    let out = text(&sample.dir("out"));
    let verb = ["download", &torrent, "-o", &out, "--port", "7002"];
    let of_leech = [&verb[..], &["--peer", RELAYS[1]], of_leech].concat();
    let leech = start(&net.machines[1], &sample, "leech", &of_leech);
    Some(Swarm {
        sample,
        _net: net,
        _relay: relay,
        seed,
        leech,
    })
}

fn they_meet(test: &str, relay: &Relay<'_>) {
    let Some(mut swarm) = swarm(test, relay, &[]) else {
        return;
    };
    let start = Instant::now();
    let complete = |event: &serde_json::Value| event["event"] == "complete";
    swarm
        .leech
        .wait_for_within("the data", PUNCHED_WITHIN, complete);
    println!("complete after {:?}", start.elapsed());
    assert!(swarm.sample.is_same_in(&swarm.sample.dir("out")));
    let punched = |gyre: &Gyre| gyre.stderr().contains("hole punched");
    assert!(punched(&swarm.leech) || punched(&swarm.seed));
}

#[test]
fn peers_behind_gateways_that_let_nobody_in_meet_through_a_third() {
    let test = "peers_behind_gateways_that_let_nobody_in_meet_through_a_third";
    they_meet(test, &Relay::Gyre(&[]));
}

#[test]
fn they_meet_through_libtorrent_too() {
    they_meet("they_meet_through_libtorrent_too", &Relay::Libtorrent);
}

fn they_do_not_meet(test: &str, of_relay: &[&str], of_leech: &[&str]) {
    let Some(mut swarm) = swarm(test, &Relay::Gyre(of_relay), of_leech) else {
        return;
    };
    let told = |event: &serde_json::Value| event["peers_known"].as_u64() >= Some(2);
    swarm.leech.wait_for("the seed's address", told);
    // Longer than a dial and a rendezvous take, shorter than the minute after which the seed is told of the leecher.
    let end = Instant::now() + Duration::from_secs(25);
    while Instant::now() < end {
        let progress = swarm.leech.event("progress");
        assert!(progress["peers"].as_u64() <= Some(1), "{progress}");
    }
    let stderr = swarm.leech.stderr();
    assert!(
        stderr.contains("dial failed addr=11.0.1.2:7001"),
        "{stderr}"
    );
}

#[test]
fn they_do_not_meet_when_one_wants_no_help() {
    let test = "they_do_not_meet_when_one_wants_no_help";
    they_do_not_meet(test, &[], &["--no-holepunch"]);
}

#[test]
fn they_do_not_meet_when_the_third_gives_no_help() {
    let test = "they_do_not_meet_when_the_third_gives_no_help";
    they_do_not_meet(test, &["--no-holepunch"], &[]);
}
