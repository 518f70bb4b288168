//! Ports, addresses, families and rates.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::process::Command;

use super::{download, run, run_all, seed};
use crate::support::program::PATIENCE;
use crate::support::sample::text;
use crate::support::{Gyre, Sample};

/// Listening addresses of a command that was seen to start.
fn addrs(gyre: &Gyre) -> Vec<String> {
    let addrs = gyre
        .seen()
        .iter()
        .filter(|event| event["event"] == "listening");
    addrs
        .map(|event| event["addr"].as_str().unwrap().to_owned())
        .collect()
}

fn started(sample: &Sample, more: &[&str]) -> Vec<String> {
    let mut seeder = Gyre::start(&seed(sample, more));
    seeder.event("metadata");
    addrs(&seeder)
}

#[test]
fn each_listening_socket_is_told_and_all_have_one_port() {
    let sample = Sample::file(1, 16_384, &[]);
    let both = started(&sample, &[]);
    let [four, six] = &both[..] else {
        panic!("{both:?}");
    };
    assert_eq!(four.strip_prefix("0.0.0.0"), six.strip_prefix("[::]"));
    let only_four = started(&sample, &["--no-ipv6"]);
    assert!(
        only_four.len() == 1 && only_four[0].starts_with("0.0.0.0:"),
        "{only_four:?}"
    );
    let bound = started(&sample, &["--bind", "127.0.0.7"]);
    assert!(
        bound.len() == 1 && bound[0].starts_with("127.0.0.7:"),
        "{bound:?}"
    );
    assert_eq!(started(&sample, &["--bind", "lo"]).len(), 2);
}

#[test]
fn a_port_given_is_refused_when_any_of_its_sockets_is_taken() {
    let sample = Sample::file(1, 16_384, &[]);
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut taken = vec![tcp.local_addr().unwrap(), udp.local_addr().unwrap()];
    let six = TcpListener::bind((Ipv6Addr::LOCALHOST, 0));
    taken.extend(six.iter().map(|six| six.local_addr().unwrap()));
    for addr in &taken {
        let port = addr.port().to_string();
        let done = run_all(&seed(&sample, &["-q", "--port", &port]));
        let (message, hint) = done.refusal(1);
        assert_eq!(message, format!("port {port} is taken"));
        assert!(hint.contains("--port 0"), "{hint}");
    }
    // Others may have the port of an IPv6 socket in IPv4: one of a few is free there.
    let sixes: Vec<TcpListener> = (0..10)
        .filter_map(|_| TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok())
        .collect();
    let is_free = sixes.iter().any(|six| {
        let port = six.local_addr().unwrap().port().to_string();
        let more = ["--no-ipv6", "--port", &port, "--seed-time", "0s"];
        run_all(&seed(&sample, &more)).code == 0
    });
    assert!(is_free || sixes.is_empty());
}

#[test]
fn the_default_port_or_one_of_the_next_nine_is_taken() {
    let (one, two) = (Sample::file(1, 16_384, &[]), Sample::file(1, 16_384, &[]));
    let state = text(&one.dir("state"));
    // A network of its own, in which the default port is free at first.
    let mut shell = Command::new("unshare");
    let script = "\"$0\" seed \"$1\" --data \"$2\" --state \"$5\" --json --seed-time 3s & first=$!
        until grep -q :1AE1 /proc/net/tcp; do sleep 0.02; done
        \"$0\" seed \"$3\" --data \"$4\" --state \"$5\" --json --seed-time 0s; wait $first";
    shell.args(["-n", "sh", "-c", script, env!("CARGO_BIN_EXE_gyre")]);
    shell.args([&one.torrent, &one.data, &two.torrent, &two.data]);
    shell.arg(&state);
    let done = run(shell);
    if done.stderr.starts_with("unshare") {
        println!("skipped: no network namespace may be made here");
        return;
    }
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(
        done.stdout.contains("\"addr\":\"0.0.0.0:6881\""),
        "{}",
        done.stdout
    );
    assert!(
        done.stdout.contains("\"addr\":\"0.0.0.0:6882\""),
        "{}",
        done.stdout
    );
}

#[test]
fn what_cannot_be_bound_to_is_an_error_that_says_so() {
    let sample = Sample::file(1, 16_384, &[]);
    let cases = [
        ("nosuch0", "no network interface nosuch0", "ip link"),
        ("192.0.2.77", "no address of this machine", "ip addr"),
    ];
    for (bind, message_part, hint_part) in cases {
        let (message, hint) = run_all(&seed(&sample, &["-q", "--bind", bind])).refusal(1);
        assert!(message.contains(message_part), "{message}");
        assert!(
            hint.contains(hint_part) && hint.contains("--bind"),
            "{hint}"
        );
    }
}

#[test]
fn connections_go_out_from_the_bound_address() {
    let sample = Sample::file(100_000, 16_384, &[]);
    let peer = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = peer.local_addr().unwrap().to_string();
    let options = ["--bind", "127.0.0.5", "--peer", &addr];
    let _leech = Gyre::start(&download(&sample, &sample.dir("out"), &options));
    let (_stream, from) = peer.accept().unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.5");
}

/// Seconds that a download of 6 MB takes under these options of the two sides.
fn seconds(seed_options: &[&str], options: &[&str]) -> f64 {
    let sample = Sample::file(6_000_000, 65_536, &[]);
    let mut seeder = Gyre::start(&seed(&sample, seed_options));
    let peer = seeder.listening().to_string();
    let options = [&["--peer", &peer], options].concat();
    let mut leech = Gyre::start(&download(&sample, &sample.dir("out"), &options));
    let seconds = leech.event("complete")["seconds"].as_f64().unwrap();
    assert_eq!(leech.wait_exit(PATIENCE), 0);
    seconds
}

#[test]
fn rates_are_kept_in_both_directions() {
    let up = std::thread::spawn(|| seconds(&["--limit-up", "2MB"], &[]));
    let down = std::thread::spawn(|| seconds(&[], &["--limit-down", "2MB"]));
    for (direction, took) in [("up", up.join().unwrap()), ("down", down.join().unwrap())] {
        // The first moments are a burst of up to a tenth of a second; a busy machine may be slower, never faster.
        assert!((2.85..4.5).contains(&took), "{direction}: {took} s for 3 s");
    }
}

#[test]
fn no_more_peers_connect_than_allowed() {
    let sample = Sample::file(2_000_000, 65_536, &[]);
    let mut seeder = Gyre::start(&seed(&sample, &["--max-peers", "1", "--limit-up", "1MB"]));
    let peer = seeder.listening().to_string();
    let options = ["--peer", &peer];
    let mut first = Gyre::start(&download(&sample, &sample.dir("first"), &options));
    let mut second = Gyre::start(&download(&sample, &sample.dir("second"), &options));
    let both = |event: &serde_json::Value| event["peers"].as_u64() > Some(1);
    for _ in 0..3 {
        let event = seeder.event("progress");
        assert!(!both(&event), "{event}");
    }
    first.kill9();
    second.kill9();
}
