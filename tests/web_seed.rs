//! Web seeds (BEP 19) against the whole program: a web server in the test is a source of blocks, well behaved and not.

mod support;

use std::time::Duration;

use serde_json::Value;
use support::web_server::Reply;
use support::{Gyre, Sample, WebServer, sample::text};

/// A download of the sample, from these web seeds and whatever else the arguments name.
fn start(sample: &Sample, urls: &[String], more: &[&str]) -> Gyre {
    let torrent = sample.with_web_seeds(urls);
    let mut arguments = vec!["download".to_owned(), text(&torrent)];
    arguments.extend(["-o".to_owned(), text(&sample.dir("out"))]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--port", "0", "--no-trackers"].map(String::from));
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    Gyre::start(&arguments)
}

/// Waits for a good end and returns the last figures.
fn finish(sample: &Sample, gyre: &mut Gyre) -> Value {
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&sample.dir("out")), "the copy differs");
    last_figures(gyre)
}

fn last_figures(gyre: &Gyre) -> Value {
    let mut events = gyre.seen().iter().rev();
    let last = events.find(|event| event["event"] == "progress");
    last.unwrap().clone()
}

#[test]
fn a_single_file_comes_from_a_web_seed_alone() {
    let sample = Sample::file(20_000_000, 1 << 18, &[]);
    let server = WebServer::good(&sample.data);
    let mut gyre = start(&sample, &[server.url("sample.bin")], &[]);
    let figures = finish(&sample, &mut gyre);
    assert_eq!(figures["downloaded_web_bytes"], 20_000_000);
    assert_eq!(figures["wasted_bytes"], 0);
    let asks = server.asks();
    assert!(asks.len() < 40, "{} requests for 20 MB", asks.len());
    assert!(server.connections() <= 2);
    let _ = Reply::File;
}
