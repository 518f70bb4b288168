//! Hole punching (BEP 55): two peers behind gateways that let nobody in are connected through a third.
//!
//! Five namespaces: the world, where the relay is, two gateways that hide what is behind them (NAT) and drop every packet
//! that nobody asked for, and a machine behind each.

mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use support::net::Net;
use support::raw_peer::{Hello, RawPeer, message};
use support::sample::text;
use support::{Gyre, Sample, machine};

const BYTES: usize = 32 << 20;
/// Fast enough for what peers say, too slow to have the data before the test is over: two seeds would part.
const RELAY_RATE: &str = "128KiB";
const RELAY: &str = "11.0.0.1:7000";
/// A dial over uTP, then over TCP, the rendezvous, the dials of both, and time for the machine.
const PUNCHED_WITHIN: Duration = Duration::from_secs(50);
const EXTENDED: u8 = 20;

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
        world.ip("address add 11.0.0.1/32 dev lo");
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

/// A relay in the world that has nothing, a seed behind one gateway and a leecher behind the other.
struct Swarm {
    sample: Sample,
    _net: World,
    _relay: Gyre,
    seed: Gyre,
    leech: Gyre,
}

fn swarm(test: &str, of_relay: &[&str], of_leech: &[&str]) -> Option<Swarm> {
    let net = World::new(test)?;
    let sample = Sample::file(BYTES, 65_536, &[]);
    let torrent = text(&sample.torrent);
    let start = |net: &Net, name: &str, arguments: &[&str]| {
        let state = text(&sample.dir(&format!("{name}-state")));
        let mut command = net.command(env!("CARGO_BIN_EXE_gyre"));
        command.args(arguments);
        command.args(["--state", &state, "--no-ipv6", "--json", "-vv"]);
        Gyre::spawn(command)
    };
    let out = text(&sample.dir("relay"));
    let verb = ["download", &torrent, "-o", &out, "--port", "7000"];
    let only_helps = ["--limit-down", RELAY_RATE, "--upload-slots", "0"];
    let of_relay = [&verb[..], &only_helps, of_relay].concat();
    let mut relay = start(&net.world, "relay", &of_relay);
    relay.listening();
    let data = text(&sample.data);
    let verb = ["seed", &torrent, "--data", &data, "--port", "7001"];
    let of_seed = [&verb[..], &["--peer", RELAY]].concat();
    let mut seed = start(&net.machines[0], "seed", &of_seed);
    seed.wait_for("the relay", |event| event["peers"] == 1);
    // Somebody else comes and goes, of whom the relay tells the seed. For a minute it hears of nobody then: that both
    // dial each other at the same time, which makes a hole as well, is not what is looked at here.
    let hello = Hello::new(sample.info_hash);
    let passing = net.world.inside(move || {
        let relay = RELAY.parse().unwrap();
        let mut peer = RawPeer::dial_at([11, 0, 0, 1], relay, &hello).unwrap();
        peer.send(&message(EXTENDED, b"\0d1:md6:ut_pexi1ee1:pi9ee"));
        peer
    });
    seed.wait_for("another peer", |event| event["peers_known"] == 2);
    drop(passing);
    let out = text(&sample.dir("out"));
    let verb = ["download", &torrent, "-o", &out, "--port", "7002"];
    let of_leech = [&verb[..], &["--peer", RELAY], of_leech].concat();
    let leech = start(&net.machines[1], "leech", &of_leech);
    Some(Swarm {
        sample,
        _net: net,
        _relay: relay,
        seed,
        leech,
    })
}

#[test]
fn peers_behind_gateways_that_let_nobody_in_meet_through_a_third() {
    let test = "peers_behind_gateways_that_let_nobody_in_meet_through_a_third";
    let Some(mut swarm) = swarm(test, &[], &[]) else {
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
fn without_hole_punching_they_do_not_meet() {
    let test = "without_hole_punching_they_do_not_meet";
    for (of_relay, of_leech) in [
        (&[][..], &["--no-holepunch"][..]),
        (&["--no-holepunch"], &[]),
    ] {
        let Some(mut swarm) = swarm(test, of_relay, of_leech) else {
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
}
