//! `info`, `magnet`, `verify`, `doctor`, `completions`, `man`.

use std::io::{Read, Write};
use std::net::TcpListener;

use super::{gyre, run};
use crate::support::Sample;
use crate::support::program::command;
use crate::support::sample::text;

/// Serves a file once over HTTP; the address the request came from.
fn serve(bytes: Vec<u8>) -> (String, std::thread::JoinHandle<std::net::IpAddr>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x.torrent", listener.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&bytes).unwrap();
        from.ip()
    });
    (url, served)
}

#[test]
fn a_torrent_is_fetched_from_an_http_url_through_the_bound_address() {
    let sample = Sample::file(100, 16_384, &[]);
    let bytes = std::fs::read(&sample.torrent).unwrap();
    let (url, served) = serve(bytes.clone());
    let info = gyre(&["info", &url, "--json"]).json();
    assert_eq!(info["name"], "sample.bin");
    served.join().unwrap();
    let (url, served) = serve(bytes);
    let done = gyre(&["download", &url, "--list", "--bind", "127.0.0.9"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(served.join().unwrap().to_string(), "127.0.0.9");
}

#[test]
fn info_and_magnet_tell_everything_about_a_torrent() {
    let tracker = "http://t.example/announce";
    let sample = Sample::tree(&[("a", 20_000), ("b/c", 0), ("d", 5)], 16_384, &[tracker]);
    let torrent = text(&sample.torrent);
    let info = gyre(&["info", &torrent, "--json"]).json();
    let hash: String = sample
        .info_hash
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert_eq!(info["info_hash"], hash);
    assert_eq!(info["pieces"], 2);
    assert_eq!(info["total_bytes"], 20_005);
    assert_eq!(info["trackers"], serde_json::json!([[tracker]]));
    let last = &info["files"][2];
    assert_eq!(
        (&last["index"], &last["path"]),
        (&2.into(), &"sample/d".into())
    );
    assert_eq!(
        (&last["length_bytes"], &last["offset_bytes"]),
        (&5.into(), &20_000.into())
    );
    for field in [
        "web_seeds",
        "private",
        "source",
        "comment",
        "created_by",
        "creation_date",
    ] {
        assert!(info.get(field).is_some(), "{field}");
    }
    let link = gyre(&["magnet", &torrent]).stdout;
    let expected =
        format!("magnet:?xt=urn:btih:{hash}&dn=sample&tr=http%3A%2F%2Ft.example%2Fannounce\n");
    assert_eq!(link, expected);
    assert_eq!(info["magnet"], link.trim());
    let shown = gyre(&["info", link.trim(), "--offline"]).stdout;
    assert!(shown.contains(&hash) && shown.contains(tracker), "{shown}");
    let shown = gyre(&["info", &torrent]).stdout;
    for text in [hash.as_str(), tracker, "sample/b/c", "2 × 16 KiB"] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
}

#[test]
fn info_shows_the_path_on_disk_where_a_name_is_not_safe_there() {
    use gyre::wire::metainfo::MetainfoBuilder;
    let folder = tempfile::tempdir().unwrap();
    let torrent = folder.path().join("odd.torrent");
    let file = |path: &[&[u8]]| (path.iter().map(|part| part.to_vec()).collect(), 9);
    let files = vec![
        file(&[b"..", b"a\x1b"]),
        file(&[b"plain"]),
        file(&[b"PLAIN"]),
    ];
    let builder = MetainfoBuilder::new("odd", 16_384).files(files);
    std::fs::write(&torrent, builder.pieces(vec![7; 20]).build().unwrap().0).unwrap();
    let shown = gyre(&["info", &text(&torrent)]).stdout;
    for line in [
        "odd/../a\\u{1b} → odd/__/a_",
        "odd/plain",
        "odd/PLAIN → odd/PLAIN~2",
    ] {
        let is_there = shown
            .lines()
            .any(|shown| shown.ends_with(&format!("  {line}")));
        assert!(is_there, "{line}: {shown}");
    }
    let files = &gyre(&["info", &text(&torrent), "--json"]).json()["files"];
    let paths = |at: usize| (files[at]["path"].clone(), files[at]["disk_path"].clone());
    assert_eq!(paths(0), ("odd/../a\u{1b}".into(), "odd/__/a_".into()));
    assert_eq!(paths(1), ("odd/plain".into(), "odd/plain".into()));
    assert_eq!(paths(2), ("odd/PLAIN".into(), "odd/PLAIN~2".into()));
}

#[test]
fn verify_lists_what_is_missing_or_wrong_by_file_and_piece() {
    let files = [
        ("a", 40_000),
        ("b", 40_000),
        ("c", 40_000),
        ("d", 0),
        ("e", 1),
    ];
    let sample = Sample::tree(&files, 16_384, &[]);
    let (torrent, data) = (text(&sample.torrent), text(&sample.data));
    let verify = |more: &[&str]| gyre(&[&["verify", &torrent, "--data", &data], more].concat());
    let good = verify(&[]);
    assert_eq!((good.code, good.stderr.as_str()), (0, ""));
    assert!(good.stdout.ends_with(", complete\n"), "{}", good.stdout);
    assert_eq!(verify(&["-q"]).stdout, "");
    let inside = text(&sample.content);
    assert_eq!(gyre(&["verify", &torrent, "--data", &inside]).code, 0);

    let mut bytes = std::fs::read(sample.content.join("a")).unwrap();
    bytes[20_000] ^= 1;
    std::fs::write(sample.content.join("a"), bytes).unwrap();
    let b = std::fs::File::options()
        .write(true)
        .open(sample.content.join("b"));
    b.unwrap().set_len(39_999).unwrap();
    std::fs::remove_file(sample.content.join("d")).unwrap();
    let mut e = std::fs::read(sample.content.join("e")).unwrap();
    e.push(0);
    std::fs::write(sample.content.join("e"), e).unwrap();
    let bad = verify(&[]);
    assert_eq!(bad.code, 3);
    let lines: Vec<&str> = bad.stdout.lines().collect();
    assert!(lines[0].starts_with("wrong") && lines[0].ends_with("sample/a, piece 1"));
    assert!(lines[1].starts_with("short"), "{}", lines[1]);
    assert!(
        lines[1].ends_with("sample/b, 39999 of 40000 bytes, piece 4"),
        "{}",
        lines[1]
    );
    let last = lines.last().unwrap();
    assert!(
        last.contains("1 file missing") && last.contains("1 file wrong"),
        "{last}"
    );
    let json = verify(&["--json"]);
    assert_eq!(json.code, 3);
    let json = json.json();
    assert_eq!(json["complete"], false);
    assert_eq!(
        (&json["pieces"], &json["pieces_have"]),
        (&8.into(), &6.into())
    );
    assert_eq!(json["files"][0]["bad_pieces"], serde_json::json!([[1, 1]]));
    let states: Vec<&str> = (0..5)
        .map(|at| json["files"][at]["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["wrong", "short", "unverified", "missing", "long"]);
    gyre(&["verify", &torrent, "--data", "/nowhere/at/all"]).refusal(1);
}

#[test]
fn doctor_reports_each_check_with_a_remedy_and_fails_on_a_problem() {
    let folder = tempfile::tempdir().unwrap();
    let state = text(&folder.path().join("not/there/yet"));
    let out = text(folder.path());
    let common = ["--state", state.as_str(), "--port", "0"];
    let good = gyre(&[&["doctor", "-o", &out], &common[..]].concat());
    assert_eq!(good.code, 0, "{}", good.stdout);
    for line in good.stdout.lines().filter(|line| !line.starts_with(' ')) {
        let word = line.split(' ').next().unwrap();
        assert!(["ok", "warning"].contains(&word), "{line}");
    }
    let bad = gyre(&[&["doctor", "-o", "/proc", "--json"], &common[..]].concat());
    assert_eq!(bad.code, 1);
    let report = bad.json();
    assert_eq!(report["status"], "problem");
    let checks = report["checks"].as_array().unwrap();
    let check = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap();
    for name in [
        "kernel",
        "io_uring",
        "operations",
        "memlock",
        "open files",
        "state",
        "port",
    ] {
        check(name);
    }
    assert_eq!(check("output")["status"], "problem");
    assert_ne!(check("output")["remedy"], "");
    assert_eq!(check("io_uring")["status"], "ok");
}

#[test]
fn a_taken_port_is_a_warning_of_doctor() {
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let report = gyre(&[
        "doctor",
        "-o",
        &text(folder.path()),
        "--port",
        &port,
        "--json",
    ])
    .json();
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "port").unwrap();
    assert_eq!(check["status"], "warning");
    assert!(check["message"].as_str().unwrap().contains("TCP 0.0.0.0"));
}

#[test]
fn packages_find_completions_and_a_manual_page() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = gyre(&["completions", shell]);
        assert_eq!(done.code, 0);
        assert!(done.stdout.contains("limit-down"), "{shell}");
    }
    let page = gyre(&["man"]).stdout;
    assert!(page.contains(".TH gyre 1"));
    assert!(page.contains(".SH \"GYRE DOWNLOAD\"") && page.contains("SIGTERM"));
}

#[test]
fn a_full_disk_behind_stdout_is_an_error_and_a_reader_that_has_enough_is_none() {
    let sample = Sample::file(100, 16_384, &[]);
    let mut full = command();
    full.args(["info", &text(&sample.torrent)]);
    let full = {
        use std::process::Stdio;
        let device = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        full.stdout(device).stderr(Stdio::piped()).output().unwrap()
    };
    assert_eq!(full.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&full.stderr).contains("error: cannot write to stdout"));
    let mut shell = std::process::Command::new("sh");
    shell.args([
        "-c",
        "\"$0\" info \"$1\" | true",
        env!("CARGO_BIN_EXE_gyre"),
    ]);
    shell.arg(&sample.torrent);
    let done = run(shell);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
}
