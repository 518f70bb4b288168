//! Starting the command as a seeder or a leecher that is ready for its peers.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::support::raw_peer::{Hello, RawPeer};
use crate::support::sample::text;
use crate::support::{Gyre, Sample};

/// Long enough to see that something does not happen.
pub const QUIET: Duration = Duration::from_millis(1_500);

/// A running command, its address, and the sample it works on.
pub struct World {
    pub sample: Sample,
    pub gyre: Gyre,
    pub addr: SocketAddr,
}

impl World {
    /// A seeder of the sample.
    pub fn seed(sample: Sample, more: &[&str]) -> World {
        let mut arguments = vec![
            "seed".to_owned(),
            text(&sample.torrent),
            "--data".to_owned(),
            text(&sample.data),
        ];
        arguments.extend(more.iter().map(|more| (*more).to_owned()));
        World::start(sample, arguments)
    }

    /// A leecher of the sample with nothing yet; its folder is [`World::out`].
    pub fn leech(sample: Sample, more: &[&str]) -> World {
        let mut arguments = vec![
            "download".to_owned(),
            text(&sample.torrent),
            "-o".to_owned(),
            text(&sample.dir("out")),
        ];
        arguments.extend(more.iter().map(|more| (*more).to_owned()));
        World::start(sample, arguments)
    }

    fn start(sample: Sample, mut arguments: Vec<String>) -> World {
        arguments.extend(["--port".to_owned(), "0".to_owned()]);
        arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
        let mut gyre = Gyre::start(&arguments);
        let addr = gyre.listening();
        gyre.wait_for("running torrent", |event| {
            event["event"] == "progress" && event["state"] != "checking"
        });
        World { sample, gyre, addr }
    }

    pub fn out(&self) -> std::path::PathBuf {
        self.sample.dir("out")
    }

    /// A peer with all extensions.
    pub fn peer(&self) -> RawPeer {
        RawPeer::dial(self.addr, self.sample.info_hash)
    }

    /// A peer with BEP 3 alone.
    pub fn plain_peer(&self) -> RawPeer {
        RawPeer::dial_as(self.addr, &Hello::plain(self.sample.info_hash))
    }

    /// The sample's bytes (of a torrent with one file).
    pub fn content(&self) -> Vec<u8> {
        std::fs::read(&self.sample.content).unwrap()
    }

    /// The message of the first error event that has `part` in it, an earlier one too.
    pub fn complaint(&mut self, part: &str) -> String {
        let is_it = |event: &Value| {
            event["event"] == "error" && event["message"].as_str().unwrap().contains(part)
        };
        let earlier = self.gyre.seen().iter().find(|event| is_it(event)).cloned();
        let error = earlier.unwrap_or_else(|| self.gyre.wait_for(part, is_it));
        assert_eq!(error["final"], false, "it goes on trying");
        assert!(!error["hint"].as_str().unwrap().is_empty());
        error["message"].as_str().unwrap().to_owned()
    }

    /// The program runs and serves a newcomer.
    #[track_caller]
    pub fn assert_serves(&mut self) {
        assert!(self.gyre.is_running(), "{}", self.gyre.stderr());
        let mut peer = self.peer();
        peer.get_unchoked();
        let content = self.content();
        let length = content.len().min(16_384);
        let got = peer.fetch(0, 0, u32::try_from(length).unwrap());
        assert!(got == content[..length], "other bytes than asked for");
    }
}
