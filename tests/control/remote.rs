//! Debian's `transmission-remote` against the server. Without the program, these tests say so and pass.

use std::process::Command;

use serde_json::json;

use crate::server::{PASSWORD, Server};

struct Remote<'a>(&'a Server);

impl Remote<'_> {
    /// What it prints; it has to end well.
    fn run(&self, args: &[&str]) -> Option<String> {
        let mut command = Command::new("transmission-remote");
        command.arg(self.0.addr.to_string());
        command
            .args(["-n", &format!("anybody:{PASSWORD}")])
            .args(args);
        command.env_remove("http_proxy").env("LC_ALL", "C.UTF-8");
        let Ok(output) = command.output() else {
            eprintln!("skipped: there is no transmission-remote");
            return None;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {text}{errors}");
        Some(text)
    }
}

#[test]
fn transmission_remote_lists_and_shows_everything() {
    let server = Server::start(2);
    let remote = Remote(&server);
    let Some(list) = remote.run(&["-l"]) else {
        return;
    };
    assert!(
        list.contains("torrent 1") && list.contains("100%"),
        "{list}"
    );
    let details = remote.run(&["-t", "1", "-i"]).unwrap();
    for words in [
        "Name: torrent 1",
        "Percent Done: 100",
        "Location: /srv",
        "Piece Count: 10",
    ] {
        assert!(details.contains(words), "{words}: {details}");
    }
    let files = remote.run(&["-t", "1", "-if"]).unwrap();
    assert!(
        files.contains("t/b.bin") && files.contains("2 files"),
        "{files}"
    );
    let peers = remote.run(&["-t", "1", "-ip"]).unwrap();
    assert!(
        peers.contains("198.51.100.7") && peers.contains("Other 1.0"),
        "{peers}"
    );
    let trackers = remote.run(&["-t", "1", "-it"]).unwrap();
    assert!(trackers.contains("tracker.example.org"), "{trackers}");
    let pieces = remote.run(&["-t", "1", "-ic"]).unwrap();
    assert!(pieces.contains("1111"), "{pieces}");
    let session = remote.run(&["-si"]).unwrap();
    assert!(session.contains("gyre"), "{session}");
    let stats = remote.run(&["-st"]).unwrap();
    assert!(stats.contains("Uploaded"), "{stats}");
}

#[test]
fn transmission_remote_controls_everything() {
    let server = Server::start(2);
    let remote = Remote(&server);
    let folder = server.downloads.path();
    let torrent = folder.join("n.torrent");
    std::fs::write(&torrent, crate::rpc::sample("new one")).unwrap();
    let Some(added) = remote.run(&["-a", torrent.to_str().unwrap(), "--start-paused"]) else {
        return;
    };
    assert!(added.contains("success"), "{added}");
    let moved = folder.join("moved");
    for args in [
        &["-t", "1", "--stop"][..],
        &["-t", "2", "--verify"],
        &["-t", "3", "--start"],
        &["-t", "3", "--reannounce"],
        &["-t", "3", "--labels", "tv,hd"],
        &["-t", "3", "--no-get", "1"],
        &["-t", "3", "--priority-high", "0"],
        &["-t", "3", "--downlimit", "50"],
        &["-t", "3", "--uplimit", "60"],
        &["-t", "3", "--bandwidth-high"],
        &["-t", "3", "--peers", "7"],
        &["-t", "3", "-sr", "2.5"],
        &["-t", "3", "--tracker-add", "http://other.example/announce"],
        &["-t", "3", "--move", moved.to_str().unwrap()],
        &["--downlimit", "500"],
        &["--uplimit", "600"],
        &["-pt"],
    ] {
        let said = remote.run(args).unwrap();
        assert!(
            said.contains("success") || said.contains("Port is open"),
            "{args:?}: {said}"
        );
    }
    let fields = [
        "status",
        "labels",
        "downloadLimit",
        "downloadLimited",
        "uploadLimit",
        "bandwidthPriority",
        "peer-limit",
        "seedRatioLimit",
        "seedRatioMode",
        "downloadDir",
        "trackerList",
        "wanted",
        "priorities",
    ];
    let got = server.call(
        "torrent-get",
        &json!({ "fields": fields, "ids": [1, 2, 3] }),
    );
    let torrents = &got["arguments"]["torrents"];
    assert_eq!(
        (&torrents[0]["status"], &torrents[1]["status"]),
        (&json!(0), &json!(2))
    );
    let third = &torrents[2];
    assert_eq!(third["labels"], json!(["tv", "hd"]));
    assert_eq!(
        (&third["downloadLimit"], &third["downloadLimited"]),
        (&json!(50), &json!(true))
    );
    assert_eq!(
        (&third["uploadLimit"], &third["bandwidthPriority"]),
        (&json!(60), &json!(1))
    );
    assert_eq!(
        (&third["peer-limit"], &third["seedRatioMode"]),
        (&json!(7), &json!(1))
    );
    assert_eq!(third["seedRatioLimit"], 2.5);
    assert_eq!(third["downloadDir"], moved.to_str().unwrap());
    assert_eq!(
        (&third["wanted"], &third["priorities"]),
        (&json!([1, 0]), &json!([1, 0]))
    );
    assert!(
        third["trackerList"]
            .as_str()
            .unwrap()
            .contains("other.example")
    );
    let session = server.call("session-get", &json!({}));
    assert_eq!(session["arguments"]["speed-limit-down"], 500);
    remote.run(&["-t", "3", "--remove"]).unwrap();
    let got = server.call("session-stats", &json!({}));
    assert_eq!(got["arguments"]["torrentCount"], 2);
}
