//! `GET /metrics`: the session's figures as Prometheus reads them. Layer 6.
//!
//! Torrents are summed by label and by tracker, never listed: their number has no bound, a scrape has.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::backend::{Backend, Problem, Torrent};
use super::server::Shared;

/// Different values of one label; those with the fewest bytes behind that are summed as `other`.
const VALUES_MAX: usize = 100;

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    torrents: u64,
    up_bytes_per_s: u64,
    down_bytes_per_s: u64,
    uploaded_bytes: u64,
    downloaded_bytes: u64,
}

impl Sum {
    fn add(&mut self, torrent: &Torrent) {
        self.join(&Sum {
            torrents: 1,
            up_bytes_per_s: torrent.up_bytes_per_s,
            down_bytes_per_s: torrent.down_bytes_per_s,
            uploaded_bytes: torrent.uploaded_bytes,
            downloaded_bytes: torrent.downloaded_bytes,
        });
    }

    fn join(&mut self, other: &Sum) {
        self.torrents += other.torrents;
        self.up_bytes_per_s = self.up_bytes_per_s.saturating_add(other.up_bytes_per_s);
        self.down_bytes_per_s = self.down_bytes_per_s.saturating_add(other.down_bytes_per_s);
        self.uploaded_bytes = self.uploaded_bytes.saturating_add(other.uploaded_bytes);
        self.downloaded_bytes = self.downloaded_bytes.saturating_add(other.downloaded_bytes);
    }

    const fn figures(&self) -> [(&'static str, &'static str, u64); 5] {
        [
            ("torrents", "gauge", self.torrents),
            ("upload_bytes_per_second", "gauge", self.up_bytes_per_s),
            ("download_bytes_per_second", "gauge", self.down_bytes_per_s),
            ("uploaded_bytes", "gauge", self.uploaded_bytes),
            ("downloaded_bytes", "gauge", self.downloaded_bytes),
        ]
    }
}

/// All of it.
pub fn text<B: Backend>(shared: &Shared<B>) -> String {
    let session = shared.rpc.backend().session();
    let mut text = String::new();
    for (name, kind, help, value) in [
        (
            "gyre_session_uploaded_bytes_total",
            "counter",
            "Payload sent to peers since the daemon began",
            session.uploaded_bytes,
        ),
        (
            "gyre_session_downloaded_bytes_total",
            "counter",
            "Payload received from peers since the daemon began",
            session.downloaded_bytes,
        ),
        (
            "gyre_session_upload_bytes_per_second",
            "gauge",
            "Payload sent to peers",
            session.up_bytes_per_s,
        ),
        (
            "gyre_session_download_bytes_per_second",
            "gauge",
            "Payload received from peers",
            session.down_bytes_per_s,
        ),
        (
            "gyre_peers",
            "gauge",
            "Connected peers",
            u64::from(session.peers),
        ),
        (
            "gyre_uptime_seconds",
            "counter",
            "Since the daemon began",
            session.uptime_s,
        ),
        (
            "gyre_panics_total",
            "counter",
            "Errors in the program that ended a connection or a torrent",
            session.panics,
        ),
        (
            "gyre_control_connections",
            "gauge",
            "Connections to the control server",
            shared.connections() as u64,
        ),
    ] {
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
        );
    }
    let mut by_status: BTreeMap<&'static str, u64> = BTreeMap::new();
    let (mut by_label, mut by_tracker) = (BTreeMap::new(), BTreeMap::new());
    let mut troubled = 0_u64;
    let catalog = shared.rpc.catalog();
    for torrent in catalog.all() {
        *by_status.entry(torrent.status.as_str()).or_default() += 1;
        troubled += u64::from(torrent.problem != Problem::None);
        let none = [String::new()];
        let labels = match torrent.labels.is_empty() {
            true => none.as_slice(),
            false => torrent.labels.as_slice(),
        };
        for label in labels {
            sum(&mut by_label, label, torrent);
        }
        sum(&mut by_tracker, &torrent.tracker_host, torrent);
    }
    let _ = writeln!(
        text,
        "# HELP gyre_torrents Torrents by what they do\n# TYPE gyre_torrents gauge"
    );
    for (status, count) in by_status {
        let _ = writeln!(text, "gyre_torrents{{status=\"{status}\"}} {count}");
    }
    let _ = writeln!(
        text,
        "# HELP gyre_torrents_troubled Torrents with an error\n# TYPE gyre_torrents_troubled gauge\n\
         gyre_torrents_troubled {troubled}"
    );
    family(&mut text, "label", by_label);
    family(&mut text, "tracker", by_tracker);
    text
}

fn sum(sums: &mut BTreeMap<String, Sum>, value: &str, torrent: &Torrent) {
    match sums.get_mut(value) {
        Some(sum) => sum.add(torrent),
        None => sums.entry(value.to_owned()).or_default().add(torrent),
    }
}

fn family(text: &mut String, label: &str, sums: BTreeMap<String, Sum>) {
    let mut sums: Vec<(String, Sum)> = sums.into_iter().collect();
    if sums.len() > VALUES_MAX {
        sums.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.uploaded_bytes));
        let mut other = Sum::default();
        for (_, sum) in sums.drain(VALUES_MAX..) {
            other.join(&sum);
        }
        sums.push(("other".to_owned(), other));
    }
    for (at, (name, kind, _)) in Sum::default().figures().into_iter().enumerate() {
        let _ = writeln!(text, "# TYPE gyre_{label}_{name} {kind}");
        for (value, sum) in &sums {
            let figure = sum.figures().get(at).map_or(0, |(_, _, figure)| *figure);
            let value = escape(value);
            let _ = writeln!(text, "gyre_{label}_{name}{{{label}=\"{value}\"}} {figure}");
        }
    }
}

/// As the text format demands, with other control characters made harmless.
fn escape(value: &str) -> String {
    let mut text = String::new();
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c if c.is_control() => text.push('\u{fffd}'),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_their_number_has_a_limit() {
        let mut sums = BTreeMap::new();
        for n in 0..500_u64 {
            let sum = Sum {
                torrents: 1,
                uploaded_bytes: n,
                ..Sum::default()
            };
            sums.insert(format!("a\"\n\u{1b}{n}"), sum);
        }
        let mut text = String::new();
        family(&mut text, "label", sums);
        let lines = text
            .lines()
            .filter(|line| line.starts_with("gyre_label_torrents"));
        assert_eq!(lines.count(), VALUES_MAX + 1);
        assert!(text.contains("gyre_label_torrents{label=\"other\"} 400"));
        assert!(text.contains("gyre_label_torrents{label=\"a\\\"\\n\u{fffd}499\"} 1"));
        assert!(!text.contains('\u{1b}'));
    }
}
