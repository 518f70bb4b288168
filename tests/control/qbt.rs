//! qBittorrent's Web API against the fake: requests as programs send them.

use std::rc::Rc;
use std::time::Instant;

use gyre::daemon::control::backend::{Limit, SeedLimit, Status};
use gyre::daemon::control::http::{Request, Response};
use gyre::daemon::control::qbt::{self, Qbt};
use gyre::daemon::control::roots::Roots;
use gyre::daemon::control::rpc::Rpc;
use serde_json::{Value, json};

use crate::fake::{Fake, torrent};
use crate::rpc::sample;

pub const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";

struct World {
    runtime: tokio::runtime::Runtime,
    fake: Rc<Fake>,
    rpc: Rpc<Fake>,
    qbt: Qbt,
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
            qbt: Qbt::open(downloads.path()),
            fake,
            downloads,
        }
    }

    fn ask(&self, first: &str, lines: &str, body: &[u8]) -> Response {
        let head = format!("{first} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
        let (request, _) = Request::parse(head.as_bytes()).unwrap().unwrap();
        let method = qbt::find(&request.path).flatten().expect(first);
        let answer = self.qbt.answer(&self.rpc, method, &request, body);
        self.runtime.block_on(answer)
    }

    fn get(&self, target: &str) -> Value {
        let answer = self.ask(&format!("GET /api/v2/{target}"), "", b"");
        assert_eq!(answer.status, 200, "{target}: {}", words(&answer));
        assert_eq!(answer.content_type, "application/json", "{target}");
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn post(&self, method: &str, form: &str) -> Response {
        self.ask(&format!("POST /api/v2/{method}"), FORM, form.as_bytes())
    }

    /// Changes something.
    fn set(&self, method: &str, form: &str) {
        let answer = self.post(method, form);
        assert_eq!(answer.status, 200, "{method} {form}: {}", words(&answer));
    }

    fn refused(&self, method: &str, form: &str) -> (u16, String) {
        let answer = self.post(method, form);
        assert_ne!(answer.status, 200, "{method} {form}");
        assert!(!answer.body.is_empty(), "{method} {form} says nothing");
        (answer.status, words(&answer))
    }

    fn add(&self, boundary: &str, parts: &[(&str, Option<&str>, &[u8])]) -> Response {
        let lines = format!("Content-Type: multipart/form-data; boundary={boundary}\r\n");
        self.ask(
            "POST /api/v2/torrents/add",
            &lines,
            &multipart(boundary, parts),
        )
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.fake.log.borrow_mut())
    }

    fn hash(&self, id: u64) -> String {
        let torrents = self.fake.torrents.borrow();
        let found = torrents.iter().find(|one| one.id == id);
        found.unwrap().info_hash.to_string()
    }

    fn labels(&self, id: u64) -> Vec<String> {
        let torrents = self.fake.torrents.borrow();
        let found = torrents.iter().find(|one| one.id == id);
        found.unwrap().labels.clone()
    }
}

fn words(answer: &Response) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

pub fn multipart(boundary: &str, parts: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file_name, data) in parts {
        let file_name = file_name.map(|name| format!("; filename=\"{name}\""));
        let file_name = file_name.unwrap_or_default();
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"{file_name}\r\n\r\n"
        );
        body.extend(head.into_bytes());
        body.extend_from_slice(data);
        body.extend_from_slice(b"\r\n");
    }
    body.extend(format!("--{boundary}--\r\n").into_bytes());
    body
}

#[test]
fn the_program_answers_before_the_torrents_are_known_and_nothing_else_does() {
    let world = World::new(2);
    let asks = |target: &str| {
        let head = format!("GET /api/v2/{target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Request::parse(head.as_bytes()).unwrap().unwrap().0
    };
    world.runtime.block_on(async {
        let _reading = world.fake.unknown.lock().await;
        for (target, is_answered) in [
            ("app/version", true),
            ("app/webapiVersion", true),
            ("torrents/info", false),
            ("sync/maindata", false),
            ("torrents/count", false),
        ] {
            let request = asks(target);
            let method = qbt::find(&request.path).flatten().unwrap();
            let answer = world.qbt.answer(&world.rpc, method, &request, b"");
            tokio::select! {
                biased;
                _ = answer => assert!(is_answered, "{target} was answered"),
                () = std::future::ready(()) => assert!(!is_answered, "{target} waits"),
            }
        }
    });
}

#[test]
fn sonarr_and_radarr_test_the_connection_add_watch_and_remove() {
    let world = World::new(2);
    let version = world.ask("GET /api/v2/app/webapiVersion", "", b"");
    assert_eq!(words(&version), "2.11.4");
    assert_eq!(
        words(&world.ask("GET /api/v2/app/version", "", b"")),
        "v5.1.4"
    );
    let config = world.get("app/preferences");
    assert_eq!(
        config["save_path"],
        world.downloads.path().to_str().unwrap()
    );
    for key in [
        "max_ratio_enabled",
        "max_ratio",
        "max_seeding_time_enabled",
        "max_seeding_time",
        "max_inactive_seeding_time_enabled",
        "max_inactive_seeding_time",
        "max_ratio_act",
        "queueing_enabled",
        "dht",
    ] {
        assert!(!config[key].is_null(), "{key}");
    }
    assert_eq!(config["max_ratio_act"], 0, "it removes nothing by itself");
    assert_eq!(world.get("torrents/categories"), json!({}));
    world.set("torrents/createCategory", "category=tv-sonarr");
    world.set("torrents/createCategory", "category=tv-imported");
    let categories = world.get("torrents/categories");
    assert_eq!(
        categories["tv-sonarr"],
        json!({ "name": "tv-sonarr", "savePath": "" })
    );
    let file = sample("an episode");
    let added = world.add(
        "----b0",
        &[
            ("torrents", Some("an episode.torrent"), &file),
            ("category", None, b"tv-sonarr"),
            ("stopped", None, b"False"),
            ("ratioLimit", None, b"1.5"),
            ("contentLayout", None, b"Original"),
        ],
    );
    assert_eq!((added.status, words(&added).as_str()), (200, "Ok."));
    assert_eq!(
        world.fake.torrents.borrow()[2].seed_ratio,
        SeedLimit::Own(1.5)
    );
    let listed = world.get("torrents/info?category=tv-sonarr");
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    let one = &listed[0];
    assert_eq!(
        (&one["name"], &one["category"]),
        (&json!("an episode"), &json!("tv-sonarr"))
    );
    assert_eq!(
        (&one["ratio_limit"], &one["eta"]),
        (&json!(1.5), &json!(8_640_000))
    );
    let hash = one["hash"].as_str().unwrap().to_owned();
    assert_eq!(
        world.get(&format!("torrents/properties?hash={hash}"))["hash"],
        hash
    );
    let missing = world.ask(
        &format!("GET /api/v2/torrents/properties?hash={}", "0".repeat(40)),
        "",
        b"",
    );
    assert_eq!(missing.status, 404);
    world.set("torrents/topPrio", &format!("hashes={hash}"));
    world.set(
        "torrents/setForceStart",
        &format!("hashes={hash}&value=true"),
    );
    world.set(
        "torrents/addTags",
        &format!("hashes={hash}&tags=a%20show,hd"),
    );
    world.set(
        "torrents/setCategory",
        &format!("hashes={hash}&category=tv-imported"),
    );
    assert_eq!(world.labels(3), ["category:tv-imported", "a show", "hd"]);
    let all = world.get("torrents/info");
    for one in all.as_array().unwrap().iter().take(2) {
        assert_eq!(one["state"], "stalledUP");
        assert_ne!(one["content_path"], one["save_path"]);
    }
    world.set(
        "torrents/delete",
        &format!("hashes={hash}&deleteFiles=true"),
    );
    let log = world.log();
    assert!(log.contains(&"queue Top 1".to_owned()), "{log:?}");
    assert!(log.contains(&"StartNow 3".to_owned()), "{log:?}");
    assert_eq!(log.last().unwrap(), "remove 3 with_data true");
}

#[test]
fn cross_seed_injects_beside_what_is_there() {
    let world = World::new(2);
    // It posts all that it asks, and what it asks for has no body.
    let plain = "Content-Type: text/plain;charset=UTF-8\r\n";
    assert_eq!(
        words(&world.ask("POST /api/v2/app/version", FORM, b"")),
        "v5.1.4"
    );
    let preferences = world.ask("POST /api/v2/app/preferences", FORM, b"");
    assert!(words(&preferences).contains("\"resume_data_storage_type\":\"SQLite\""));
    assert_eq!(
        world
            .ask("POST /api/v2/torrents/categories", plain, b"")
            .status,
        200
    );
    world.set("torrents/createTags", "tags=cross-seed");
    assert_eq!(world.get("torrents/tags"), json!(["cross-seed"]));
    let all = world.post("torrents/info", "includeFiles=true&includeTrackers=true");
    let all: Value = serde_json::from_slice(&all.body).unwrap();
    for field in [
        "save_path",
        "content_path",
        "category",
        "auto_tmm",
        "amount_left",
        "progress",
    ] {
        assert!(!all[0][field].is_null(), "{field}");
    }
    let hash = world.hash(1);
    let files = world.post("torrents/files", &format!("hash={hash}"));
    let files: Value = serde_json::from_slice(&files.body).unwrap();
    assert_eq!(
        (&files[0]["name"], &files[0]["size"]),
        (&json!("t/a.bin"), &json!(500_000))
    );
    assert_eq!(
        files[0]["piece_range"],
        json!([0, 4]),
        "the last one is within"
    );
    let folder = world.downloads.path().join("links");
    let folder = folder.to_str().unwrap();
    let file = sample("the same elsewhere");
    let parts: [(&str, Option<&str>, &[u8]); 9] = [
        ("torrents", Some("x.cross-seed.torrent"), &file),
        ("downloadPath", None, folder.as_bytes()),
        ("savepath", None, folder.as_bytes()),
        ("autoTMM", None, b"false"),
        ("category", None, b"cross-seed-link"),
        ("tags", None, b"cross-seed"),
        ("contentLayout", None, b"Original"),
        ("skip_checking", None, b"true"),
        ("stopped", None, b"true"),
    ];
    assert_eq!(words(&world.add("----formdata-undici-01", &parts)), "Ok.");
    let added = world.fake.torrents.borrow()[2].clone();
    assert_eq!(
        (added.folder.as_str(), added.status),
        (folder, Status::Stopped)
    );
    assert_eq!(added.labels, ["category:cross-seed-link", "cross-seed"]);
    let again = world.add("----formdata-undici-02", &parts);
    assert_eq!(
        (again.status, words(&again).as_str()),
        (200, "Fails."),
        "it is there"
    );
    let hash = added.info_hash;
    world.set("torrents/stop", &format!("hashes={hash}"));
    world.set("torrents/recheck", &format!("hashes={hash}"));
    world.set("torrents/start", &format!("hashes={hash}"));
    let log = world.log();
    assert_eq!(log[log.len() - 3..], ["Stop 3", "Verify 3", "Start 3"]);
}

#[test]
fn autobrr_adds_counts_and_asks_trackers_again() {
    let world = World::new(3);
    world.fake.torrents.borrow_mut()[0].status = Status::Downloading;
    world.fake.torrents.borrow_mut()[0].have_bytes = 10;
    let list = world.get("torrents/info?filter=downloading");
    assert_eq!(list.as_array().unwrap().len(), 1);
    let link = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567&dn=by+link";
    let form = format!(
        "urls={}&paused=true&stopped=true&skip_checking=true&autoTMM=false&tags=a%2Cb&category=race&dlLimit=1024&upLimit=2048&savepath=",
        link.replace('&', "%26")
            .replace('=', "%3D")
            .replace('?', "%3F")
    );
    assert_eq!(words(&world.post("torrents/add", &form)), "Ok.");
    let added = world.fake.torrents.borrow()[3].clone();
    assert_eq!(added.status, Status::Stopped);
    let limit = |bytes_per_s| Limit {
        bytes_per_s,
        is_on: true,
    };
    assert_eq!(
        (added.limits.down, added.limits.up),
        (limit(1_024), limit(2_048))
    );
    let hash = world.hash(2);
    let trackers = world.get(&format!("torrents/trackers?hash={hash}"));
    assert_eq!(trackers.as_array().unwrap().len(), 4);
    assert_eq!(
        (&trackers[0]["url"], &trackers[0]["tier"]),
        (&json!("** [DHT] **"), &json!(-1))
    );
    assert_eq!(
        (&trackers[3]["status"], &trackers[3]["num_seeds"]),
        (&json!(2), &json!(3))
    );
    world.set(
        "torrents/reannounce",
        &format!("hashes={hash}|{}", world.hash(1)),
    );
    assert_eq!(world.log()[1..], ["Reannounce 1", "Reannounce 2"]);
    let info = world.get("transfer/info");
    assert_eq!(
        (&info["connection_status"], &info["dl_rate_limit"]),
        (&json!("connected"), &json!(0))
    );
    world.set("transfer/setDownloadLimit", "limit=5000");
    assert_eq!(
        words(&world.ask("GET /api/v2/transfer/downloadLimit", "", b"")),
        "5000"
    );
    world.set("transfer/setDownloadLimit", "limit=0");
    assert!(!world.fake.session.borrow().limit_down.is_on);
    let (status, why) = world.refused("torrents/add", "urls=http%3A%2F%2F127.0.0.1%2Fx.torrent");
    assert_eq!(status, 409);
    assert!(why.contains("fetches no addresses"), "{why}");
}

#[test]
fn qbit_manage_tags_limits_and_exports() {
    let world = World::new(3);
    world.fake.torrents.borrow_mut()[1].added_unix_s = -5;
    let sorted = world.get("torrents/info?sort=added_on&reverse=false");
    assert_eq!(sorted[0]["name"], "torrent 2");
    let (one, two) = (world.hash(1), world.hash(2));
    world.set(
        "torrents/addTags",
        &format!("hashes={one}|{two}&tags=noHL,x"),
    );
    world.set("torrents/removeTags", &format!("hashes={one}&tags=x"));
    assert_eq!(
        (world.labels(1), world.labels(2)),
        (vec!["noHL".into()], vec!["noHL".into(), "x".into()])
    );
    let tagged = world.get("torrents/info?tag=noHL&limit=1&offset=-1");
    assert_eq!(
        (&tagged[0]["name"], &tagged[0]["tags"]),
        (&json!("torrent 2"), &json!("noHL, x"))
    );
    assert_eq!(world.get("torrents/info?tag=")[0]["name"], "torrent 3");
    world.set("torrents/deleteTags", "tags=noHL");
    assert_eq!(world.labels(1), [""; 0]);
    world.set(
        "torrents/setShareLimits",
        &format!("hashes={one}&ratioLimit=2.5&seedingTimeLimit=-2&inactiveSeedingTimeLimit=-1"),
    );
    let torrent = world.fake.torrents.borrow()[0].clone();
    assert_eq!(
        (torrent.seed_ratio, torrent.seed_idle),
        (SeedLimit::Own(2.5), SeedLimit::Never)
    );
    let (status, why) = world.refused(
        "torrents/setShareLimits",
        &format!("hashes={one}&ratioLimit=1&seedingTimeLimit=60"),
    );
    assert_eq!(
        (status, why.as_str()),
        (409, "an end of seeding by time is not supported")
    );
    world.set("torrents/setUploadLimit", "hashes=all&limit=7000");
    let limits = world.post("torrents/uploadLimit", &format!("hashes={one}|{two}"));
    let limits: Value = serde_json::from_slice(&limits.body).unwrap();
    assert_eq!(limits, json!({ one.clone(): 7_000, two: 7_000 }));
    world.set("torrents/setUploadLimit", &format!("hashes={one}&limit=-1"));
    assert_eq!(
        world.get(&format!("torrents/info?hashes={one}"))[0]["up_limit"],
        -1
    );
    let file = world.ask(&format!("GET /api/v2/torrents/export?hash={one}"), "", b"");
    assert_eq!(
        (file.status, file.content_type),
        (200, "application/x-bittorrent")
    );
    assert_eq!(file.body, sample("torrent 1"));
    let hashes = world.get(&format!("torrents/pieceHashes?hash={one}"));
    assert_eq!(hashes, json!(["07".repeat(20)]));
    // What it sends back before it begins is what it was told.
    let same = json!({ "max_ratio_act": 0, "max_seeding_time_enabled": false, "max_ratio_enabled": false, "max_inactive_seeding_time_enabled": false });
    world.set("app/setPreferences", &format!("json={same}"));
    world.set(
        "torrents/setAutoManagement",
        &format!("hashes={one}&enable=false"),
    );
    assert_eq!(
        world
            .refused(
                "torrents/setAutoManagement",
                &format!("hashes={one}&enable=true")
            )
            .0,
        409
    );
}

#[test]
fn vuetorrent_is_told_everything_once_and_then_what_changed() {
    let world = World::new(3);
    world.fake.torrents.borrow_mut()[0].labels = vec!["category:tv".into(), "hd".into()];
    let first = world.get("sync/maindata");
    assert_eq!(first["full_update"], true);
    assert_eq!(first["torrents"].as_object().unwrap().len(), 3);
    assert_eq!(
        (&first["tags"], &first["categories"]["tv"]["name"]),
        (&json!(["hd"]), &json!("tv"))
    );
    let tracker = &first["trackers"]["http://tracker.example.org/announce"];
    assert_eq!(tracker.as_array().unwrap().len(), 3);
    assert_eq!(first["server_state"]["free_space_on_disk"], 5_000);
    let rid = first["rid"].as_u64().unwrap();
    let (two, three) = (world.hash(2), world.hash(3));
    world.set(
        "torrents/setCategory",
        &format!("hashes={two}&category=films"),
    );
    world.set("torrents/delete", &format!("hashes={three}"));
    let second = world.get(&format!("sync/maindata?rid={rid}"));
    assert_eq!(second["full_update"], Value::Null);
    let changed: Vec<&String> = second["torrents"].as_object().unwrap().keys().collect();
    assert_eq!(changed, [&two]);
    assert_eq!(second["torrents_removed"], json!([three]));
    assert_eq!(
        second["categories"],
        json!({ "films": { "name": "films", "savePath": "" } })
    );
    assert_eq!(second["tags"], json!([]));
    let rid = second["rid"].as_u64().unwrap();
    world.set("torrents/removeCategories", "categories=films%0Atv");
    let third = world.get(&format!("sync/maindata?rid={rid}"));
    assert_eq!(third["categories_removed"], json!(["films", "tv"]));
    assert_eq!(world.labels(1), ["hd"]);
    let last = third["rid"].as_u64().unwrap();
    let nothing = world.get(&format!("sync/maindata?rid={last}"));
    assert_eq!(
        (&nothing["rid"], &nothing["torrents"]),
        (&json!(last), &json!({}))
    );
    for strange in ["0", "-1", "1", "99999999999999", "x", ""] {
        let all = world.get(&format!("sync/maindata?rid={strange}"));
        assert_eq!(all["full_update"], true, "{strange}");
    }
    let peers = world.get(&format!("sync/torrentPeers?hash={two}&rid=0"));
    let peer = &peers["peers"]["198.51.100.7:6881"];
    assert_eq!(
        (&peer["client"], &peer["flags"]),
        (&json!("Other 1.0"), &json!("U I H E P"))
    );
    let states = world.get(&format!("torrents/pieceStates?hash={two}"));
    assert_eq!(states, json!([2, 2, 2, 2, 2, 2, 2, 2, 2, 2]));
    assert_eq!(world.get("rss/items"), json!({}));
    assert_eq!(world.get("log/main?last_known_id=-1"), json!([]));
}

#[test]
fn vuetorrent_edits_files_trackers_and_names() {
    let world = World::new(2);
    let hash = world.hash(1);
    world.set("torrents/filePrio", &format!("hash={hash}&id=1&priority=0"));
    world.set("torrents/filePrio", &format!("hash={hash}&id=0&priority=7"));
    let files = world.get(&format!("torrents/files?hash={hash}"));
    assert_eq!(
        (&files[0]["priority"], &files[1]["priority"]),
        (&json!(6), &json!(0))
    );
    assert_eq!(
        (&files[0]["is_seed"], &files[1]["is_seed"]),
        (&json!(true), &Value::Null)
    );
    for (form, status) in [
        ("id=2&priority=1", 409),
        ("id=x&priority=1", 400),
        ("id=0&priority=3", 400),
        ("priority=1", 400),
    ] {
        assert_eq!(
            world
                .refused("torrents/filePrio", &format!("hash={hash}&{form}"))
                .0,
            status,
            "{form}"
        );
    }
    let (old, new) = (
        "http://tracker.example.org/announce",
        "udp://other.example:1/announce",
    );
    world.set(
        "torrents/addTrackers",
        &format!("hash={hash}&urls={new}%0A%0A{old}"),
    );
    let urls = || -> Vec<String> {
        let torrents = world.fake.torrents.borrow();
        torrents[0]
            .trackers
            .iter()
            .map(|(_, url)| url.clone())
            .collect()
    };
    assert_eq!(urls(), [old, new]);
    let many = format!("hash={hash}&urls={}", format!("{new}%0A").repeat(201));
    assert_eq!(
        world.refused("torrents/addTrackers", &many),
        (409, "a torrent has at most 200 trackers".into())
    );
    assert_eq!(
        world
            .refused(
                "torrents/editTracker",
                &format!("hash={hash}&origUrl={old}&newUrl={new}")
            )
            .0,
        409
    );
    assert_eq!(
        world
            .refused(
                "torrents/editTracker",
                &format!("hash={hash}&origUrl={old}&newUrl=file:///x")
            )
            .0,
        400
    );
    world.set(
        "torrents/editTracker",
        &format!("hash={hash}&origUrl={old}&newUrl={old}2"),
    );
    world.set(
        "torrents/removeTrackers",
        &format!("hash={hash}&urls={old}2"),
    );
    assert_eq!(urls(), [new]);
    world.set(
        "torrents/renameFile",
        &format!("hash={hash}&oldPath=t/a.bin&newPath=t/b.bin"),
    );
    assert_eq!(
        world
            .refused(
                "torrents/renameFile",
                &format!("hash={hash}&oldPath=t/a.bin&newPath=u/a.bin")
            )
            .0,
        409
    );
    assert_eq!(
        world
            .refused(
                "torrents/renameFile",
                &format!("hash={hash}&oldPath=t/a.bin&newPath=t/..")
            )
            .0,
        409
    );
    let folder = world.downloads.path().join("moved");
    world.set(
        "torrents/setLocation",
        &format!("hashes={hash}&location={}", folder.display()),
    );
    assert_eq!(
        world
            .refused(
                "torrents/setLocation",
                &format!("hashes={hash}&location=/etc")
            )
            .0,
        409
    );
    world.set(
        "torrents/toggleSequentialDownload",
        &format!("hashes={hash}"),
    );
    assert!(world.fake.torrents.borrow()[0].is_sequential);
    world.set("torrents/setTags", &format!("hashes={hash}&tags=a,b"));
    world.set("torrents/setTags", &format!("hashes={hash}&tags=b,c"));
    let many = format!("hashes={hash}&tags={}", "d,".repeat(64));
    for method in ["torrents/setTags", "torrents/addTags"] {
        assert_eq!(world.refused(method, &many).0, 400, "{method}");
    }
    assert_eq!(world.labels(1), ["b", "c"]);
    let log = world.log();
    assert_eq!(
        log,
        [
            "rename t/a.bin to b.bin".to_owned(),
            format!("relocate to {} moves true", folder.display())
        ]
    );
}

#[test]
fn flood_sets_preferences_without_escapes() {
    let world = World::new(1);
    world.set(
        "app/setPreferences",
        r#"json={"dl_limit":102400,"up_limit":0,"max_ratio_enabled":true,"max_ratio":2,"start_paused_enabled":true,"dht":false}"#,
    );
    {
        let session = world.fake.session.borrow();
        assert_eq!(
            (session.limit_down.bytes_per_s, session.limit_down.is_on),
            (102_400, true)
        );
        assert_eq!(
            (session.seed_ratio, session.starts_added),
            (Some(2.0), false)
        );
    }
    let (status, why) = world.refused(
        "app/setPreferences",
        r#"json={"dl_limit":1,"listen_port":1}"#,
    );
    assert_eq!(
        (status, why.as_str()),
        (409, "listen_port cannot be changed while the daemon runs")
    );
    assert_eq!(
        world.get("app/preferences")["dl_limit"],
        102_400,
        "all or nothing"
    );
    assert_eq!(world.refused("app/setPreferences", "json=[1]").0, 400);
    assert_eq!(
        world
            .refused("app/setPreferences", r#"json={"dl_limit":"x"}"#)
            .0,
        400
    );
    let all = world.get("app/preferences");
    world.set("app/setPreferences", &format!("json={all}"));
    // A program of somebody's choice is never taken from here.
    let program = r#"json={"autorun_enabled":true,"autorun_program":"touch /tmp/x"}"#;
    assert_eq!(world.refused("app/setPreferences", program).0, 409);
}

#[test]
fn what_cannot_be_had_is_refused_before_anything_is_added() {
    let world = World::new(1);
    let file = sample("one file");
    let add = |name: &str, value: &str| {
        let answer = world.add(
            "B",
            &[
                ("torrents", Some("x"), &file),
                (name, None, value.as_bytes()),
            ],
        );
        (answer.status, words(&answer))
    };
    for (name, value, status) in [
        ("seedingTimeLimit", "60", 409),
        ("contentLayout", "Subfolder", 409),
        ("contentLayout", "Elsewhere", 400),
        ("firstLastPiecePrio", "true", 409),
        ("rename", "other", 409),
        ("stopCondition", "MetadataReceived", 409),
        ("useDownloadPath", "true", 409),
        ("savepath", "/etc", 409),
        ("savepath", "../x", 409),
        ("category", "a//b", 409),
        ("tags", "category:x", 409),
        ("ratioLimit", "-3", 400),
        ("ratioLimit", "NaN", 400),
        ("upLimit", "fast", 400),
    ] {
        assert_eq!(add(name, value).0, status, "{name}={value}");
        assert_eq!(world.fake.torrents.borrow().len(), 1, "{name}={value}");
    }
    assert_eq!(
        add("contentLayout", "NoSubfolder"),
        (200, "Ok.".into()),
        "a file has none anyway"
    );
    let garbage = world.add("B", &[("torrents", Some("x"), b"d8:announce")]);
    assert_eq!(garbage.status, 415);
    assert_eq!(words(&world.post("torrents/add", "urls=")), "Fails.");
    let both = world.add(
        "B",
        &[
            ("a", Some("x"), b"no torrent"),
            ("b", Some("y"), &sample("good")),
        ],
    );
    assert_eq!(
        (both.status, words(&both).as_str()),
        (200, "Ok."),
        "one of them is there now"
    );
}

#[test]
fn a_category_has_a_folder_and_outlives_the_daemon() {
    let world = World::new(0);
    world.set("torrents/createCategory", "category=tv&savePath=shows");
    assert_eq!(
        world.refused("torrents/createCategory", "category=tv").0,
        409
    );
    assert_eq!(
        world
            .refused("torrents/createCategory", "category=x&savePath=/etc")
            .0,
        409
    );
    assert_eq!(world.refused("torrents/createCategory", "category=").0, 400);
    assert_eq!(
        world
            .refused("torrents/editCategory", "category=none&savePath=")
            .0,
        409
    );
    let file = sample("an episode");
    let added = world.add(
        "B",
        &[
            ("torrents", Some("x"), &file),
            ("category", None, b"tv"),
            ("autoTMM", None, b"true"),
        ],
    );
    assert_eq!(words(&added), "Ok.");
    let expected = world.downloads.path().join("shows");
    assert_eq!(
        world.fake.torrents.borrow()[0].folder,
        expected.to_str().unwrap()
    );
    world.set("torrents/editCategory", "category=tv&savePath=films");
    let again = Qbt::open(world.downloads.path());
    let world = World {
        qbt: again,
        ..world
    };
    assert_eq!(world.get("torrents/categories")["tv"]["savePath"], "films");
}

/// HOSTILE.md A8.
#[test]
fn strange_requests_are_answered_with_words() {
    let world = World::new(3);
    for (target, status) in [
        ("torrents/info?sort=__proto__", 400),
        ("torrents/info?sort=a%00b", 400),
        ("torrents/info?limit=99999999999999999999", 400),
        (
            "torrents/info?limit=9223372036854775807&offset=-9223372036854775808",
            200,
        ),
        ("torrents/info?offset=9223372036854775807", 200),
        ("torrents/info?hashes=x|y||", 200),
        ("torrents/info?category=%ff", 400),
        ("torrents/info?a=%", 200),
        ("torrents/properties", 400),
        ("torrents/properties?hash=../../etc/passwd", 404),
        ("torrents/files?hash=all", 404),
        ("torrents/export?hash=%00", 404),
    ] {
        let answer = world.ask(&format!("GET /api/v2/{target}"), "", b"");
        assert_eq!(answer.status, status, "{target}: {}", words(&answer));
    }
    let many = "a=b&".repeat(300);
    assert_eq!(
        world
            .ask(&format!("GET /api/v2/torrents/info?{many}"), "", b"")
            .status,
        400
    );
    let post =
        |lines: &str, body: &[u8]| world.ask("POST /api/v2/torrents/add", lines, body).status;
    assert_eq!(post("Content-Type: application/json\r\n", b"{}"), 415);
    assert_eq!(post(FORM, b"urls=\xff"), 400);
    let form = "Content-Type: multipart/form-data; boundary=B\r\n";
    assert_eq!(post(form, b"--B\r\n"), 400);
    assert_eq!(post(form, &multipart("C", &[])), 400);
    assert_eq!(post(form, &multipart("B", &[("urls", None, b"\xff")])), 400);
    assert_eq!(
        post("Content-Type: multipart/form-data; boundary=\r\n", b"x"),
        415
    );
    let part: (&str, Option<&str>, &[u8]) = ("torrents", Some("x"), b"");
    assert_eq!(
        post(form, &multipart("B", &vec![part; 1_200])),
        400,
        "a bomb of parts"
    );
    assert_eq!(
        post(form, &multipart("B", &vec![part; 1_050])),
        400,
        "more torrents than one call adds"
    );
    let field: (&str, Option<&str>, &[u8]) = ("a", None, b"");
    assert_eq!(
        post(form, &multipart("B", &vec![field; 300])),
        400,
        "a bomb of fields"
    );
    assert_eq!(world.fake.torrents.borrow().len(), 3);
    assert_eq!(
        world.refused("torrents/delete", "deleteFiles=true").0,
        400,
        "nothing named is not everything"
    );
    assert_eq!(world.refused("torrents/stop", "").0, 400);
    world.set("torrents/delete", "hashes=");
    assert_eq!(world.fake.torrents.borrow().len(), 3);
}

/// HOSTILE.md A6.
#[test]
fn names_in_answers_are_never_anything_but_text() {
    let world = World::new(1);
    let evil = "</script>\r\nSet-Cookie: x\u{1b}[2J\"";
    world.fake.torrents.borrow_mut()[0].name = evil.into();
    let listed = world.ask("GET /api/v2/torrents/info", "", b"");
    assert!(
        listed
            .body
            .iter()
            .all(|byte| *byte >= 0x20 && *byte != 0x7f)
    );
    let value: Value = serde_json::from_slice(&listed.body).unwrap();
    assert_eq!(value[0]["name"], evil);
    let file = world.ask(
        &format!("GET /api/v2/torrents/export?hash={}", world.hash(1)),
        "",
        b"",
    );
    let head = String::from_utf8(file.head(true)).unwrap();
    assert!(
        !head.contains("script") && !head.contains("\nSet-Cookie"),
        "{head}"
    );
}

#[test]
fn queues_and_the_other_limits_are_preferences_too() {
    let world = World::new(2);
    let mode = || words(&world.ask("GET /api/v2/transfer/speedLimitsMode", "", b""));
    assert_eq!(world.get("app/preferences")["queueing_enabled"], false);
    assert_eq!(world.get("torrents/info")[0]["priority"], 0);
    world.set(
        "app/setPreferences",
        r#"json={"queueing_enabled":true,"max_active_downloads":5,"max_active_uploads":-1,"alt_dl_limit":1000,"alt_up_limit":2000,"dont_count_slow_torrents":true,"slow_torrent_inactive_timer":90,"max_inactive_seeding_time_enabled":true,"max_inactive_seeding_time":30}"#,
    );
    {
        let session = world.fake.session.borrow();
        assert_eq!(
            (session.download_queue.get(), session.seed_queue.get()),
            (Some(5), None)
        );
        assert_eq!(
            (session.queue_stalled.get(), session.seed_idle_minutes),
            (Some(2), Some(30))
        );
        assert_eq!(
            (session.alt.down_bytes_per_s, session.alt.up_bytes_per_s),
            (1_000, 2_000)
        );
    }
    assert_eq!(world.get("torrents/info")[0]["priority"], 1);
    assert_eq!(world.get("sync/maindata")["server_state"]["queueing"], true);
    assert_eq!(mode(), "0");
    world.set("transfer/toggleSpeedLimitsMode", "");
    assert_eq!(mode(), "1");
    world.set("transfer/setSpeedLimitsMode", "mode=0");
    assert_eq!(mode(), "0");
    let all = world.get("app/preferences");
    assert_eq!(
        (&all["max_active_downloads"], &all["max_active_uploads"]),
        (&json!(5), &json!(-1))
    );
    let before = world.fake.session.borrow().clone();
    world.set("app/setPreferences", &format!("json={all}"));
    assert_eq!(
        *world.fake.session.borrow(),
        before,
        "the whole form again changes nothing"
    );
    world.set("app/setPreferences", r#"json={"queueing_enabled":false}"#);
    assert!(!world.fake.session.borrow().download_queue.is_on);
}

#[test]
fn ten_thousand_torrents_are_followed_by_what_changed_alone() {
    let world = World::new(10_000);
    let begun = Instant::now();
    let all = world.ask("GET /api/v2/sync/maindata", "", b"").body;
    let first = begun.elapsed();
    let value: Value = serde_json::from_slice(&all).unwrap();
    let hash = world.hash(7);
    world.set("torrents/addTags", &format!("hashes={hash}&tags=x"));
    let begun = Instant::now();
    let delta = world.get(&format!("sync/maindata?rid={}", value["rid"]));
    println!(
        "all {first:?} ({} bytes), what changed {:?}",
        all.len(),
        begun.elapsed()
    );
    let changed: Vec<&String> = delta["torrents"].as_object().unwrap().keys().collect();
    assert_eq!((changed, &delta["tags"]), (vec![&hash], &json!(["x"])));
    let begun = Instant::now();
    let sorted = world.get("torrents/info?sort=name&reverse=true&limit=3");
    println!("sorted {:?}", begun.elapsed());
    assert_eq!(sorted[0]["name"], "torrent 9999");
}
