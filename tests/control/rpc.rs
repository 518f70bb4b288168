//! The RPC against the fake: requests as programs send them.

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use base64::Engine;
use gyre::daemon::control::backend::{Limit, SeedLimit, Status};
use gyre::daemon::control::roots::Roots;
use gyre::daemon::control::rpc::{Answer, Rpc};
use gyre::wire::metainfo::MetainfoBuilder;
use serde_json::{Value, json};

use crate::fake::{Fake, torrent};

struct World {
    runtime: tokio::runtime::Runtime,
    fake: Rc<Fake>,
    rpc: Rpc<Fake>,
    downloads: tempfile::TempDir,
}

impl World {
    fn new(count: u64) -> World {
        let downloads = tempfile::tempdir().unwrap();
        let fake = Rc::new(Fake::with((1..=count).map(torrent), downloads.path()));
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        World {
            runtime,
            rpc: Rpc::new(fake.clone(), Roots::default(), "s".into()),
            fake,
            downloads,
        }
    }

    fn raw(&self, body: &[u8]) -> Answer {
        self.runtime.block_on(self.rpc.answer(body))
    }

    fn json(&self, asked: &Value) -> Value {
        match self.raw(asked.to_string().as_bytes()) {
            Answer::Json(bytes) => serde_json::from_slice(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// What a call that works answers.
    fn call(&self, method: &str, arguments: Value) -> Value {
        let mut answer = self.json(&json!({ "method": method, "arguments": arguments }));
        assert_eq!(answer["result"], "success", "{method}: {answer}");
        answer["arguments"].take()
    }

    fn refused(&self, method: &str, arguments: Value) -> String {
        let answer = self.json(&json!({ "method": method, "arguments": arguments }));
        assert_ne!(answer["result"], "success", "{method} {arguments}");
        answer["result"].as_str().unwrap().to_owned()
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.fake.log.borrow_mut())
    }
}

pub fn sample(name: &str) -> Vec<u8> {
    let builder = MetainfoBuilder::new(name, 16_384).single_file(10_000);
    let builder = builder.pieces(vec![7; 20]);
    let tiers = vec![vec!["http://new.example.org/announce".to_owned()]];
    builder.announce_tiers(tiers).build().unwrap().0
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn the_session_answers_before_the_torrents_are_known_and_nothing_else_does() {
    let world = World::new(2);
    world.runtime.block_on(async {
        let reading = world.fake.unknown.lock().await;
        let asks = |method: &str| json!({ "method": method }).to_string();
        let early = asks("session-get");
        assert_ne!(world.rpc.answer(early.as_bytes()).await, Answer::Nothing);
        for method in ["torrent-get", "session-stats", "torrent-start", "group-get"] {
            let asked = asks(method);
            let answer = world.rpc.answer(asked.as_bytes());
            tokio::select! {
                biased;
                _ = answer => panic!("{method} was answered"),
                () = std::future::ready(()) => {}
            }
        }
        // What waits was not read into values, which would be refused.
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        let deep = format!("{{\"method\":\"torrent-get\",\"tag\":{deep}}}");
        tokio::select! {
            biased;
            _ = world.rpc.answer(deep.as_bytes()) => panic!("it was read"),
            () = std::future::ready(()) => {}
        }
        let batch = json!([{ "jsonrpc": "2.0", "id": 1, "method": "session_get" }]).to_string();
        assert_ne!(world.rpc.answer(batch.as_bytes()).await, Answer::Nothing);
        let asked = json!({ "method": "torrent-get", "arguments": { "fields": ["id"] } });
        let asked = asked.to_string();
        let answer = world.rpc.answer(asked.as_bytes());
        let (answer, ()) = tokio::join!(biased; answer, async { drop(reading) });
        let Answer::Json(answer) = answer else {
            panic!("{answer:?}");
        };
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let torrents = answer["arguments"]["torrents"].as_array();
        assert_eq!(torrents.map(Vec::len), Some(2));
    });
}

const SONARR: [&str; 21] = [
    "id",
    "hashString",
    "name",
    "downloadDir",
    "totalSize",
    "leftUntilDone",
    "isFinished",
    "eta",
    "status",
    "secondsDownloading",
    "secondsSeeding",
    "errorString",
    "uploadedEver",
    "downloadedEver",
    "seedRatioLimit",
    "seedRatioMode",
    "seedIdleLimit",
    "seedIdleMode",
    "fileCount",
    "file-count",
    "labels",
];

#[test]
fn sonarr_and_radarr_list_add_limit_and_remove() {
    let world = World::new(3);
    let session = world.call("session-get", Value::Null);
    assert!(session["rpc-version"].as_u64() >= Some(15));
    assert_eq!(
        session["download-dir"],
        world.downloads.path().to_str().unwrap()
    );
    let listed = world.call("torrent-get", json!({ "fields": SONARR }));
    assert_eq!(listed["torrents"].as_array().unwrap().len(), 3);
    for field in SONARR {
        assert!(!listed["torrents"][0][field].is_null(), "{field}");
    }
    let folder = world.downloads.path().join("tv");
    let added = world.call(
        "torrent-add",
        json!({ "metainfo": base64(&sample("x")), "paused": false, "download-dir": folder.to_str().unwrap() }),
    );
    let hash = added["torrent-added"]["hashString"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(added["torrent-added"]["name"], "x");
    let upper = hash.to_uppercase();
    world.call(
        "torrent-set",
        json!({ "ids": [upper], "seedRatioLimit": 1.5, "seedRatioMode": 1, "seedIdleLimit": 90, "seedIdleMode": 1 }),
    );
    world.call("queue-move-top", json!({ "ids": [hash] }));
    {
        let torrents = world.fake.torrents.borrow();
        let added = torrents.last().unwrap();
        assert_eq!(added.seed_ratio, SeedLimit::Own(1.5));
        assert_eq!(added.seed_idle, SeedLimit::Own(90.0));
        assert_eq!(added.folder, folder.to_str().unwrap());
    }
    let answer = world.call(
        "torrent-remove",
        json!({ "ids": [hash], "delete-local-data": true }),
    );
    assert_eq!(answer, json!({}));
    assert!(world.log().contains(&"remove 4 with_data true".to_owned()));
}

#[test]
fn cross_seed_and_autobrr_add_and_hear_of_duplicates() {
    let world = World::new(1);
    let add =
        json!({ "metainfo": base64(&sample("dup")), "paused": true, "labels": ["cross-seed"] });
    let added = world.call("torrent-add", add.clone());
    let hash = added["torrent-added"]["hashString"].clone();
    let again = world.call("torrent-add", add);
    assert_eq!(again["torrent-duplicate"]["hashString"], hash);
    let fields = [
        "hashString",
        "downloadDir",
        "percentDone",
        "status",
        "labels",
        "leftUntilDone",
        "name",
    ];
    let got = world.call("torrent-get", json!({ "fields": fields, "ids": [hash] }));
    let got = &got["torrents"][0];
    assert_eq!(
        (&got["status"], &got["labels"]),
        (&json!(0), &json!(["cross-seed"]))
    );
    for method in [
        "torrent-verify",
        "torrent-start",
        "torrent-stop",
        "torrent-reannounce",
    ] {
        world.call(method, json!({ "ids": [hash] }));
    }
    let log = world.log();
    assert_eq!(log[1..], ["Verify 2", "Start 2", "Stop 2", "Reannounce 2"]);
    let magnet = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567&dn=m";
    let added = world.call(
        "torrent-add",
        json!({ "filename": magnet, "labels": ["a", "b"] }),
    );
    assert_eq!(added["torrent-added"]["name"], "m");
    let stats = world.call(
        "torrent-get",
        json!({ "ids": ["0123456789abcdef0123456789abcdef01234567"], "fields": ["status", "trackerStats"] }),
    );
    let tracker = &stats["torrents"][0]["trackerStats"][0];
    assert_eq!(tracker["lastAnnounceSucceeded"], true);
    assert_eq!(tracker["lastAnnounceResult"], "Success");
    assert_eq!(
        (&tracker["seederCount"], &tracker["leecherCount"]),
        (&json!(3), &json!(1))
    );
}

#[test]
fn flood_reads_details_and_sets_limits() {
    let world = World::new(2);
    let fields = [
        "comment",
        "haveValid",
        "addedDate",
        "dateCreated",
        "doneDate",
        "rateDownload",
        "rateUpload",
        "isPrivate",
        "error",
        "peersGettingFromUs",
        "peersSendingToUs",
        "sizeWhenDone",
        "trackers",
        "trackerStats",
        "files",
        "fileStats",
        "peers",
        "activityDate",
        "hashString",
        "priorities",
        "wanted",
        "pieces",
    ];
    let got = world.call("torrent-get", json!({ "ids": 1, "fields": fields }));
    let got = &got["torrents"][0];
    for field in fields {
        assert!(!got[field].is_null(), "{field}");
    }
    assert_eq!(got["files"][1]["name"], "t/b.bin");
    assert_eq!(got["fileStats"][0]["wanted"], true);
    assert_eq!(got["pieces"], "/8A=");
    assert_eq!(got["peers"][0]["flagStr"], "TUEHI");
    assert_eq!(got["trackers"][0]["sitename"], "example");
    let stats = world.call("session-stats", Value::Null);
    assert_eq!(stats["torrentCount"], 2);
    assert_eq!(stats["cumulative-stats"]["uploadedBytes"], 3_000);
    world.call(
        "session-set",
        json!({ "speed-limit-down": 100, "speed-limit-down-enabled": true, "dht-enabled": false }),
    );
    let limit = Limit {
        bytes_per_s: 100_000,
        is_on: true,
    };
    assert_eq!(world.fake.session.borrow().limit_down, limit);
    world.call(
        "torrent-set",
        json!({ "ids": [1], "files-unwanted": [1], "priority-high": [0] }),
    );
    let files = world.fake.files.borrow();
    assert!(!files[1].is_wanted && files[0].priority == 1);
}

#[test]
fn transports_are_told_as_they_are_and_stay_so() {
    let world = World::new(1);
    let fields = json!({ "fields": ["utp-enabled", "tcp-enabled", "preferred-transports"] });
    let told = world.call("session-get", fields.clone());
    let both =
        json!({ "utp-enabled": true, "tcp-enabled": true, "preferred-transports": ["utp", "tcp"] });
    assert_eq!(told, both);
    // Forms are sent back whole.
    world.call("session-set", json!({ "utp-enabled": true }));
    world.refused("session-set", json!({ "utp-enabled": false }));
    world.fake.session.borrow_mut().has_utp = false;
    let told = world.call("session-get", fields);
    let one = json!({ "utp-enabled": false, "tcp-enabled": true, "preferred-transports": ["tcp"] });
    assert_eq!(told, one);
    world.refused("session-set", json!({ "utp-enabled": true }));
}

#[test]
fn trackers_are_added_replaced_removed_and_listed() {
    let world = World::new(1);
    let list = |world: &World| {
        let got = world.call(
            "torrent-get",
            json!({ "ids": [1], "fields": ["trackerList"] }),
        );
        got["torrents"][0]["trackerList"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let set = |key: &str, value: Value| {
        world.call("torrent-set", json!({ "ids": [1], key: value }));
    };
    set("trackerAdd", json!(["udp://b.example:80/announce"]));
    let first = "http://tracker.example.org/announce";
    assert_eq!(
        list(&world),
        format!("{first}\n\nudp://b.example:80/announce\n")
    );
    set("trackerReplace", json!([1, "https://c.example/a"]));
    set("trackerRemove", json!([0]));
    assert_eq!(list(&world), "https://c.example/a\n");
    set("trackerList", json!("http://d/a\nhttp://e/a\n\nhttp://f/a"));
    assert_eq!(list(&world), "http://d/a\nhttp://e/a\n\nhttp://f/a\n");
    world.refused(
        "torrent-set",
        json!({ "ids": [1], "trackerAdd": ["file:///etc/passwd"] }),
    );
    world.refused("torrent-set", json!({ "ids": [1], "trackerRemove": [9] }));
}

#[test]
fn more_labels_than_a_torrent_has_are_refused_for_all() {
    let world = World::new(2);
    let labels = json!(vec!["a"; 65]);
    let why = world.refused("torrent-set", json!({ "labels": labels }));
    assert_eq!(why, "a torrent has at most 64 labels");
    assert!(
        world
            .fake
            .torrents
            .borrow()
            .iter()
            .all(|torrent| torrent.labels.is_empty())
    );
}

#[test]
fn more_trackers_than_a_torrent_has_are_refused_before_they_are_looked_at() {
    let world = World::new(1);
    let url = "http://a.example/a";
    let before = world.fake.torrents.borrow()[0].trackers.clone();
    for (key, value) in [
        ("trackerAdd", json!(vec![url; 201])),
        ("trackerRemove", json!(vec![0; 201])),
        (
            "trackerReplace",
            json!(vec![[json!(0), json!(url)]; 201].concat()),
        ),
        ("trackerList", json!(format!("{url}\n").repeat(201))),
    ] {
        let why = world.refused("torrent-set", json!({ "ids": [1], key: value }));
        assert_eq!(why, "a torrent has at most 200 trackers", "{key}");
    }
    assert_eq!(world.fake.torrents.borrow()[0].trackers, before);
    let again = json!(vec![url; 200]);
    world.call("torrent-set", json!({ "ids": [1], "trackerAdd": again }));
    assert_eq!(world.fake.torrents.borrow()[0].trackers.len(), 2);
}

#[test]
fn tables_hold_the_names_once_and_recent_ones_tell_who_went() {
    let world = World::new(3);
    let asked =
        json!({ "fields": ["id", "name", "nonsense"], "format": "table", "ids": [2, 3, 99] });
    let got = world.call("torrent-get", asked);
    let expected = json!([["id", "name"], [2, "torrent 2"], [3, "torrent 3"]]);
    assert_eq!(got["torrents"], expected);
    world.call("torrent-remove", json!({ "ids": 2 }));
    let got = world.call(
        "torrent-get",
        json!({ "fields": ["id"], "ids": "recently-active" }),
    );
    assert_eq!(got["removed"], json!([2]));
}

/// A5.
#[test]
fn a_field_is_answered_once_however_often_it_is_named() {
    let world = World::new(1);
    let spellings = ["files", "name", "files", "name", "files"];
    let asked = json!({ "method": "torrent-get", "arguments": { "fields": spellings } });
    let Answer::Json(answer) = world.raw(asked.to_string().as_bytes()) else {
        panic!("no answer");
    };
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(answer.matches("\"files\":[").count(), 1, "{answer}");
    let asked = json!({ "fields": ["id", "id"], "format": "table" });
    let got = world.call("torrent-get", asked);
    assert_eq!(got["torrents"], json!([["id", "id"], [1, 1]]));
}

#[test]
fn the_new_dialect_is_the_same_in_other_words() {
    let world = World::new(2);
    let asked = json!({
        "jsonrpc": "2.0", "id": "x", "method": "torrent_get",
        "params": { "fields": ["hash_string", "peers", "tracker_stats", "wanted"], "ids": [1] }
    });
    let got = world.json(&asked);
    let one = &got["result"]["torrents"][0];
    assert_eq!((&got["id"], &got["jsonrpc"]), (&json!("x"), &json!("2.0")));
    assert_eq!(one["peers"][0]["is_utp"], true);
    assert_eq!(one["peers"][0]["client_name"], "Other 1.0");
    assert_eq!(one["tracker_stats"][0]["last_announce_succeeded"], true);
    assert_eq!(one["wanted"], json!([true, true]));
    let session = world.json(&json!({ "jsonrpc": "2.0", "id": 1, "method": "session_get" }));
    assert_eq!(session["result"]["rpc_version_semver"], "6.0.0");
    let error = world.json(&json!({ "jsonrpc": "2.0", "id": 2, "method": "nonsense" }));
    assert_eq!(error["error"]["code"], -32601);
    let batch = json!([
        { "jsonrpc": "2.0", "method": "torrent_stop", "params": { "ids": [1] } },
        { "jsonrpc": "2.0", "id": 5, "method": "session_stats" },
        7
    ]);
    let got = world.json(&batch);
    assert_eq!(
        got.as_array().unwrap().len(),
        2,
        "a notification has no answer"
    );
    assert_eq!(world.fake.torrents.borrow()[0].status, Status::Stopped);
    let silent = json!({ "jsonrpc": "2.0", "method": "torrent_start" });
    assert_eq!(world.raw(silent.to_string().as_bytes()), Answer::Nothing);
}

#[test]
fn a_tag_comes_back_and_what_is_no_call_is_refused() {
    let world = World::new(1);
    let got = world.json(&json!({ "method": "session-close", "tag": 39 }));
    assert_eq!(
        (&got["tag"], &got["result"]),
        (&json!(39), &json!("success"))
    );
    assert_eq!(world.log(), ["shut down"]);
    assert_eq!(
        world.refused("nonsense", Value::Null),
        "method name not recognized"
    );
    world.refused("torrent-get", json!({}));
    world.refused("torrent-get", json!({ "fields": ["id"], "ids": [{}] }));
    world.refused("torrent-add", json!({ "metainfo": "@@@" }));
    world.refused("torrent-remove", json!({}));
    world.refused("torrent-set", json!({ "ids": [1], "seedRatioMode": 7 }));
    for body in ["", "{", "null", "7", &"[".repeat(1_000_000)] {
        let Answer::Json(bytes) = world.raw(body.as_bytes()) else {
            panic!("{body}");
        };
        assert!(String::from_utf8(bytes).unwrap().contains("error"));
    }
}

#[test]
fn large_bodies_are_for_torrents_alone() {
    let world = World::new(1);
    let padding = "x".repeat(2 << 20);
    let body = json!({ "method": "torrent-get", "arguments": { "x": padding } }).to_string();
    assert_eq!(world.raw(body.as_bytes()), Answer::TooLarge);
}

/// HOSTILE.md A7.
#[test]
fn folders_outside_addresses_and_programs_are_refused() {
    let world = World::new(1);
    let metainfo = base64(&sample("y"));
    for folder in ["/etc", "relative", "/", "/tmp/../etc"] {
        world.refused(
            "torrent-add",
            json!({ "metainfo": metainfo, "download-dir": folder }),
        );
        world.refused(
            "torrent-set-location",
            json!({ "ids": [1], "location": folder, "move": true }),
        );
        world.refused("torrent-set", json!({ "ids": [1], "location": folder }));
        world.refused("session-set", json!({ "download-dir": folder }));
        world.refused("free-space", json!({ "path": folder }));
    }
    for url in [
        "http://127.0.0.1:9091/x.torrent",
        "https://example.org/x.torrent",
        "FILE:///etc/passwd",
        "/etc/passwd",
    ] {
        world.refused("torrent-add", json!({ "filename": url }));
    }
    for (key, value) in [
        ("script-torrent-done-filename", json!("/bin/sh")),
        ("script-torrent-done-enabled", json!(true)),
        ("script_torrent_added_filename", json!("/bin/sh")),
    ] {
        world.refused("session-set", json!({ key: value }));
    }
    let name = |name: &str| json!({ "ids": [1], "path": "t", "name": name });
    for bad in ["../x", "a/b", "..", "", "a\0b"] {
        world.refused("torrent-rename-path", name(bad));
    }
    for bad in ["", "/", "//", ".", "./", ".."] {
        let nothing = json!({ "ids": [1], "path": bad, "name": "z" });
        let why = world.refused("torrent-rename-path", nothing);
        assert_eq!(why, "path names no file or folder", "{bad}");
    }
    assert_eq!(world.log(), Vec::<String>::new(), "nothing was done");
    let inside = world.downloads.path().join("a.torrent");
    std::fs::write(&inside, sample("z")).unwrap();
    world.call(
        "torrent-add",
        json!({ "filename": inside.to_str().unwrap() }),
    );
}

#[test]
fn with_another_folder_for_downloads_the_settings_files_one_may_still_be_named() {
    let world = World::new(1);
    let first = tempfile::tempdir().unwrap();
    let location = first.path().join("films");
    let moved = json!({ "ids": [1], "location": location.to_str().unwrap(), "move": true });
    world.refused("torrent-set-location", moved.clone());
    world.fake.session.borrow_mut().first_downloads = first.path().to_str().unwrap().into();
    world.call("torrent-set-location", moved);
    world.call(
        "session-set",
        json!({
            "download-queue-size": 3, "download-queue-enabled": true, "queue-stalled-minutes": 7,
            "alt-speed-up": 9, "alt-speed-enabled": true, "idle-seeding-limit-enabled": true,
        }),
    );
    let got = world.call("session-get", Value::Null);
    assert_eq!(got["download-queue-size"], 3);
    assert_eq!(got["download-queue-enabled"], true);
    assert_eq!(got["queue-stalled-minutes"], 7);
    assert_eq!(got["queue-stalled-enabled"], false);
    assert_eq!(got["alt-speed-up"], 9);
    assert_eq!(got["alt-speed-enabled"], true);
    assert_eq!(got["idle-seeding-limit"], 30);
    assert_eq!(got["seed-queue-enabled"], false);
}

/// HOSTILE.md A6.
#[test]
fn names_are_never_anything_but_text() {
    let world = World::new(1);
    let name = "<script>alert(1)</script>\u{1b}]0;x\u{7}\"\\\n\u{2028}";
    world.fake.torrents.borrow_mut()[0].name = name.into();
    let body = json!({ "method": "torrent-get", "arguments": { "fields": ["name"] } });
    let Answer::Json(bytes) = world.raw(body.to_string().as_bytes()) else {
        panic!("no answer");
    };
    assert!(bytes.iter().all(|byte| *byte >= 0x20 && *byte != 0x7f));
    let got: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(got["arguments"]["torrents"][0]["name"], name);
}

#[test]
fn groups_space_port_and_queue_answer_in_their_shapes() {
    let world = World::new(1);
    world.call(
        "group-set",
        json!({ "name": "g", "speed-limit-up": 5, "speed-limit-up-enabled": true }),
    );
    let got = world.call("group-get", json!({ "name": ["g"] }));
    assert_eq!(got["group"][0]["speed-limit-up"], 5);
    let path = world.downloads.path().to_str().unwrap();
    let got = world.call("free-space", json!({ "path": path }));
    assert_eq!(
        got,
        json!({ "path": path, "size-bytes": 5_000, "total_size": 9_000 })
    );
    assert_eq!(world.call("port-test", Value::Null)["port-is-open"], true);
    world.call("queue-move-up", json!({ "ids": [1] }));
    let got = world.call(
        "torrent-rename-path",
        json!({ "ids": [1], "path": "t", "name": "u" }),
    );
    assert_eq!(got, json!({ "id": 1, "name": "u", "path": "t" }));
    world.call(
        "torrent-set-location",
        json!({ "ids": [1], "location": path, "move": true }),
    );
    let expected = [
        "queue Up 1",
        "rename t to u",
        &format!("relocate to {path} moves true"),
    ];
    assert_eq!(world.log(), expected);
    let _ = Path::new(path);
}

/// What the list costs the control thread; the bound is far above what an idle machine takes, debug builds included.
#[test]
fn ten_thousand_torrents_are_listed_in_a_moment() {
    let world = World::new(10_000);
    let body = json!({ "method": "torrent-get", "arguments": { "fields": SONARR } }).to_string();
    let _ = world.raw(body.as_bytes());
    let begun = Instant::now();
    let Answer::Json(bytes) = world.raw(body.as_bytes()) else {
        panic!("no answer");
    };
    let all = begun.elapsed();
    let one = json!({ "method": "torrent-get", "arguments": { "fields": SONARR, "ids": [7] } })
        .to_string();
    let begun = Instant::now();
    let _ = world.raw(one.as_bytes());
    println!(
        "all {all:?} ({} bytes), one {:?}",
        bytes.len(),
        begun.elapsed()
    );
    assert!(all.as_millis() < 2_000, "{all:?}");
}
