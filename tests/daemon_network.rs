//! What of `gyre daemon` goes out, and who is let in: its proxy, its list of addresses, variables of other verbs, and what SIGHUP
//! changes of it.

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::fake_peer::Content;
use support::fake_tracker::{HttpTracker, ok, peers};
use support::program::{PATIENCE, command};
use support::raw_peer::{Hello, RawPeer};
use support::rpc::{RpcDaemon as Daemon, SEEDS};
use support::sample::text;
use support::socks_server::Manners;
use support::{Sample, SocksServer};

#[track_caller]
fn until(what: &str, mut is_it: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_it() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn behind_a_proxy_that_refuses_a_daemon_speaks_to_nobody() {
    let tracker = HttpTracker::saying(ok(&peers(&[])));
    let sample = Sample::file(100_000, 1 << 14, &[&tracker.url()]);
    let proxy = SocksServer::start(Manners {
        refuses: Some(2),
        ..Manners::default()
    });
    let daemon = Daemon::start(&sample.dir("state"), &["--proxy", &proxy.url()]);
    daemon.add(&sample.torrent, &sample.dir("out"), false);
    let asked = format!("connect {}", tracker.addr);
    until("the proxy is asked for the tracker", || {
        proxy.was_asked(&asked)
    });
    // Whoever went around it would have by now.
    daemon.terminate();
    assert!(
        tracker.next_within(Duration::ZERO).is_none(),
        "around the proxy"
    );
}

#[test]
fn the_list_of_addresses_of_a_daemon_is_read_anew_on_sighup() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let info_hash = Content::of(&sample).info_hash;
    let list = text(&sample.folder.path().join("list.txt"));
    std::fs::write(&list, "127.0.0.2\n").unwrap();
    let daemon = Daemon::start(&sample.dir("state"), &["--ip-filter", &list]);
    let id = daemon.add(&sample.torrent, &sample.data, false);
    daemon.wait_status(id, SEEDS);
    let dial = |from| RawPeer::dial_at(from, daemon.addr, &Hello::plain(info_hash)).is_ok();
    assert!(dial([127, 0, 0, 3]));
    assert!(!dial([127, 0, 0, 2]));
    std::fs::write(&list, "127.0.0.4\n").unwrap();
    daemon.gyre.signal(Signal::SIGHUP);
    until("the list is another", || dial([127, 0, 0, 2]));
    daemon.terminate();
}

#[test]
fn variables_of_another_verb_that_keep_something_quiet_are_not_ignored() {
    let sample = Sample::file(1_000, 1 << 14, &[]);
    let state = text(&sample.dir("state"));
    let (torrent, data) = (text(&sample.torrent), text(&sample.data));
    let daemon = ["daemon", "--api", "off", "--port", "0", "--state", &state];
    let seed = [
        "seed", &torrent, "--data", &data, "--port", "0", "--state", &state,
    ];
    for (verb, variable, value, instead) in [
        (&daemon[..], "GYRE_NO_DHT", "1", "dht = false"),
        (&daemon, "GYRE_NO_UTP", "yes", "GYRE_UTP=false"),
        (&daemon, "GYRE_NO_PORT_MAP", "true", "port-map = false"),
        (&daemon, "GYRE_NO_TRACKERS", "1", "no such setting"),
        (&seed, "GYRE_LSD", "false", "--no-lsd"),
        (&seed, "GYRE_UTP", "false", "GYRE_NO_UTP=1"),
    ] {
        let mut program = command();
        for quiet in ["GYRE_NO_LSD", "GYRE_NO_DHT", "GYRE_NO_PORT_MAP"] {
            program.env_remove(quiet);
        }
        let output = program.args(verb).env(variable, value).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{variable}: {told}");
        assert!(told.contains(&format!("{variable} is set")), "{told}");
        assert!(told.contains(instead), "{variable}: {told}");
    }
}

#[test]
fn what_a_restart_alone_puts_in_force_is_named_on_sighup() {
    let sample = Sample::file(1_000, 1 << 14, &[]);
    let config = text(&sample.folder.path().join("gyre.toml"));
    std::fs::write(&config, "limit-up = \"1MiB\"\nmax-peers = 9\n").unwrap();
    let daemon = Daemon::start(&sample.dir("state"), &["--config", &config]);
    let more = "limit-up = \"2MiB\"\nmax-peers = 8\nutp = false\npex = true\nwatch = [\"/w\"]\non-complete = [\"/x\"]\n";
    std::fs::write(&config, more).unwrap();
    daemon.gyre.signal(Signal::SIGHUP);
    let named = "after a restart: utp, max-peers, watch, on-complete\n";
    until("they are named", || daemon.gyre.stderr().contains(named));
    assert_eq!(daemon.session("speed-limit-up"), 2_097);
    daemon.terminate();
}
