//! `GET /api/events`: the list of torrents as it is, then what changes in it, once a second. Layer 6.
//!
//! Server-sent events. First one or more `all`, each with up to 2,000 torrents and `more` but for the last; then `delta`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::backend::{Backend, Torrent};
use super::json::{Dialect, Json};
use super::rpc::Rpc;

/// Between two deltas.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Torrents in one event: some hundred kilobytes.
const ROWS_MAX: usize = 2_000;

/// The columns, in the order of each row.
pub const COLUMNS: [&str; 18] = [
    "id",
    "hash",
    "name",
    "status",
    "percent_done",
    "size_wanted",
    "rate_down",
    "rate_up",
    "uploaded_ever",
    "ratio",
    "eta",
    "peers",
    "labels",
    "tracker_host",
    "added",
    "error",
    "queue_position",
    "moved_share",
];

/// One client's place in what happens.
#[derive(Debug, Default)]
pub struct Live {
    /// What the first events still have to tell.
    rows: Option<VecDeque<Arc<Torrent>>>,
    sequence: u64,
    events: u64,
}

impl Live {
    /// The next of the first events; `None` behind the last.
    pub fn next_part<B: Backend>(&mut self, rpc: &Rpc<B>) -> Option<Vec<u8>> {
        if self.rows.is_none() {
            let catalog = rpc.catalog();
            self.sequence = catalog.sequence();
            self.rows = Some(catalog.all().cloned().collect());
        }
        let rows = self.rows.as_mut().filter(|_| self.sequence != u64::MAX)?;
        if self.events > 0 && rows.is_empty() {
            return None;
        }
        let part: Vec<_> = rows.drain(..rows.len().min(ROWS_MAX)).collect();
        let has_more = !rows.is_empty();
        let mut json = Json::new(Dialect::Old);
        json.open(b'{');
        session(rpc, &mut json);
        json.key("columns");
        json.array(COLUMNS, |json, name| json.text(name));
        json.key("torrents");
        json.array(&part, |json, torrent| row(torrent, json));
        json.key("more");
        json.bool(has_more);
        json.close(b'}');
        Some(self.event("all", json))
    }

    /// What changed since the last look, even if nothing did: the client hears that the daemon is there.
    pub fn delta<B: Backend>(&mut self, rpc: &Rpc<B>) -> Vec<u8> {
        let (changed, removed) = {
            let catalog = rpc.catalog();
            let since = catalog.since(self.sequence);
            self.sequence = catalog.sequence();
            since
        };
        let mut json = Json::new(Dialect::Old);
        json.open(b'{');
        session(rpc, &mut json);
        json.key("changed");
        json.array(&changed, |json, torrent| row(torrent, json));
        json.key("removed");
        json.array(removed, |json, id| json.uint(id));
        json.close(b'}');
        self.event("delta", json)
    }

    fn event(&mut self, name: &str, json: Json) -> Vec<u8> {
        self.events += 1;
        let head = format!("id: {}\nevent: {name}\ndata: ", self.events);
        let mut bytes = head.into_bytes();
        // JSON written here has no line break in it: that would end the event's data.
        bytes.extend(json.into_bytes());
        bytes.extend_from_slice(b"\n\n");
        bytes
    }
}

fn session<B: Backend>(rpc: &Rpc<B>, json: &mut Json) {
    let session = rpc.backend().session();
    json.key("session");
    json.open(b'{');
    for (name, value) in [
        ("rate_down", session.down_bytes_per_s),
        ("rate_up", session.up_bytes_per_s),
        ("peers", u64::from(session.peers)),
        ("uploaded", session.uploaded_bytes),
        ("downloaded", session.downloaded_bytes),
        ("uptime", session.uptime_s),
    ] {
        json.key(name);
        json.uint(value);
    }
    for (name, limit) in [
        ("limit_down", session.limit_down),
        ("limit_up", session.limit_up),
    ] {
        json.key(name);
        match limit.is_on {
            true => json.uint(limit.bytes_per_s),
            false => json.null(),
        }
    }
    json.close(b'}');
}

fn row(torrent: &Torrent, json: &mut Json) {
    json.open(b'[');
    json.uint(torrent.id);
    json.text(&torrent.info_hash.to_string());
    json.text(&torrent.name);
    json.uint(torrent.status.code());
    json.float(torrent.done_share());
    json.uint(torrent.wanted_bytes);
    json.uint(torrent.down_bytes_per_s);
    json.uint(torrent.up_bytes_per_s);
    json.uint(torrent.uploaded_bytes);
    json.float(torrent.ratio());
    json.int(torrent.eta_s());
    json.uint(torrent.peers);
    json.texts(&torrent.labels);
    json.text(&torrent.tracker_host);
    json.int(torrent.added_unix_s);
    json.text(torrent.problem.parts().1);
    json.uint(torrent.queue_position);
    // As in the RPC: -1 when its files stay where they are.
    json.float(torrent.moved_share.unwrap_or(-1.0));
    json.close(b']');
}
