//! A daemon with many seeds: how soon it is there, what it holds in memory, and that any of them is served.
//!
//! `GYRE_SCALE` is the number of torrents, each of 20 files; data is on disk for those that are fetched.

#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::time::Instant;

use gyre::base::Rng;
use gyre::daemon::{Store, TorrentRow, Write};
use gyre::wire::metainfo::Metainfo;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::program::{PATIENCE, command};
use support::sample::text;
use support::{Gyre, Sample, rpc};

const FILES: usize = 20;
/// Torrents with data, which are fetched.
const FETCHED: usize = 4;

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(format!("{}:", bytes.len()).bytes());
    out.extend(bytes);
}

/// A torrent of twenty files of 64 MiB in pieces of 4 MiB, of which nothing is on disk.
fn torrent(number: usize, tracker: &str) -> Vec<u8> {
    const FILE_BYTES: usize = 64 << 20;
    const PIECE_BYTES: usize = 4 << 20;
    let mut rng = Rng::new(number as u64 + 1);
    let mut out = b"d8:announce".to_vec();
    string(&mut out, tracker.as_bytes());
    out.extend(b"4:infod5:filesl");
    for file in 0..FILES {
        out.extend(format!("d6:lengthi{FILE_BYTES}e4:pathl").bytes());
        string(
            &mut out,
            format!("part number {file} of many.bin").as_bytes(),
        );
        out.extend(b"ee");
    }
    out.extend(b"e4:name");
    string(
        &mut out,
        format!("a torrent that is seeded, number {number}").as_bytes(),
    );
    out.extend(format!("12:piece lengthi{PIECE_BYTES}e6:pieces").bytes());
    let count = FILES * FILE_BYTES / PIECE_BYTES * 20;
    let hashes: Vec<u8> = (0..count).map(|_| rng.next_u64() as u8).collect();
    string(&mut out, &hashes);
    out.extend(b"ee");
    out
}

/// A row of a seed that has everything, and its .torrent file.
fn keep(state: &Path, number: usize, bytes: &[u8], folder: &Path) -> Write {
    let metainfo = Metainfo::parse(bytes).unwrap();
    let mut row = TorrentRow {
        info_hash: metainfo.info_hash,
        number: number as u64 + 1,
        folder: folder.to_owned(),
        fetches: false,
        added_unix_s: 1_700_000_000,
        ..TorrentRow::default()
    };
    row.describe(&metainfo);
    row.pieces_have = row.pieces;
    row.have_bytes = row.wanted_bytes;
    let path = state
        .join("torrents")
        .join(format!("{}.torrent", row.info_hash));
    std::fs::write(path, bytes).unwrap();
    Write::Put(Box::new(row))
}

#[test]
fn any_of_many_seeds_is_served_and_those_asleep_cost_little() {
    let count = std::env::var("GYRE_SCALE").map_or(500, |count| count.parse().unwrap());
    let samples: Vec<Sample> = (0..FETCHED)
        .map(|n| {
            let names: Vec<String> = (0..FILES).map(|file| format!("{n}/{file}")).collect();
            let files = names.iter().map(|name| (name.as_str(), 5_000 + n));
            Sample::tree(&files.collect::<Vec<_>>(), 16_384, &[])
        })
        .collect();
    let state = samples[0].dir("daemon");
    std::fs::create_dir_all(state.join("torrents")).unwrap();
    // A tracker that is not there: each announce fails at once.
    let tracker = "http://127.0.0.1:9/announce";
    let none = samples[0].dir("none");
    {
        let mut store = Store::open(&state.join("daemon.redb")).unwrap().0;
        let fillers: Vec<Write> = (FETCHED..count)
            .map(|number| keep(&state, number, &torrent(number, tracker), &none))
            .collect();
        store.commit(&fillers).unwrap();
        let fetched = samples.iter().enumerate().map(|(number, sample)| {
            keep(
                &state,
                number,
                &std::fs::read(&sample.torrent).unwrap(),
                &sample.data,
            )
        });
        store.commit(&fetched.collect::<Vec<_>>()).unwrap();
    }
    let mut program = command();
    program.args(["daemon", "--lines", "--port", "0", "--bind", "127.0.0.1"]);
    program
        .args([
            "--port-map",
            "false",
            "--dht",
            "false",
            "--api",
            "off",
            "--lsd",
            "false",
            "--state",
        ])
        .arg(&state);
    let begun = Instant::now();
    let (mut daemon, mut stdin) = Gyre::spawn_with_stdin(program);
    let addr = daemon.listening().to_string();
    let listening = begun.elapsed();
    let ask = |ids: Option<&str>| {
        let mut arguments = json!({ "fields": ["id", "status", "pieceSize", "comment"] });
        if let Some(ids) = ids {
            arguments["ids"] = json!(ids);
        }
        let answer = rpc::ask(&state.join("control.sock"), "torrent-get", arguments).unwrap();
        answer["torrents"].as_array().unwrap().clone()
    };
    // Nobody who asks in the first moment is told that seeds are stopped.
    let first = ask(None);
    assert_eq!(first.len(), count);
    assert!(first.iter().all(|one| one["status"] == 6), "{first:?}");
    assert!(first.iter().all(|one| one["pieceSize"] != 0), "{first:?}");
    // Any torrent is served from the moment that it is known to the session.
    let all = loop {
        std::io::Write::write_all(&mut stdin, b"{\"do\":\"count\"}\n").unwrap();
        let answer = daemon.event("answer");
        if answer["asleep"] == count {
            break begun.elapsed();
        }
        assert!(begun.elapsed() < PATIENCE, "{answer}");
    };
    // That they came to be known is no news of them.
    assert_eq!(ask(Some("recently-active")), Vec::<Value>::new());
    let asleep_bytes = daemon.anonymous_bytes();
    for sample in &samples {
        let out = sample.dir("out");
        let mut leech = Gyre::start(&[
            "download",
            &text(&sample.torrent),
            "-o",
            &text(&out),
            "--state",
            &text(&sample.dir("out-state")),
            "--port",
            "0",
            "--peer",
            &addr,
            "--no-dht",
            "--no-lsd",
        ]);
        assert_eq!(leech.wait_exit(PATIENCE), 0);
        assert!(sample.is_same_in(&out));
    }
    println!(
        "{count} torrents: listening after {listening:?}, all known after {all:?}, {} KiB resident then, {} KiB at the end",
        asleep_bytes >> 10,
        daemon.anonymous_bytes() >> 10
    );
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
}
