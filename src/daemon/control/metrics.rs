//! `GET /metrics`: the session's figures as Prometheus reads them. Layer 6.
//!
//! Torrents are summed by label, tracker and policy, never listed: their number has no bound, a scrape has. What the process uses is
//! asked of `/proc`; what was read from storage, over what was sent, tells how much the page cache spares.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::backend::{Backend, PolicyFigures, Problem, Torrent};
use super::server::Shared;
use crate::base::Histogram;
use crate::session::lab::Health;

/// Different values of one label; those that move the fewest bytes now, or have moved the fewest, are summed as `other`.
const VALUES_MAX: usize = 100;

/// Bounds of histograms, in µs: from a loop that is idle to one that hangs.
const BUCKETS_US: [u64; 12] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 1_000_000,
];

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

    /// By what moves now, then by what ever did.
    const fn rank(&self) -> (u64, u64) {
        let now = self.up_bytes_per_s.saturating_add(self.down_bytes_per_s);
        (now, self.uploaded_bytes)
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
        one(&mut text, name, kind, help, value);
    }
    let (bytes, rotten) = shared.rpc.backend().scrubbed();
    let help = "Read again in the background since the daemon began";
    one(
        &mut text,
        "gyre_scrubbed_bytes_total",
        "counter",
        help,
        bytes,
    );
    let help = "Pieces found rotten on the disk since the daemon began";
    one(
        &mut text,
        "gyre_rotten_pieces_total",
        "counter",
        help,
        rotten,
    );
    inside(&mut text, &shared.rpc.backend().health());
    process(&mut text, Path::new("/proc/self"));
    let mut by_status: BTreeMap<&'static str, u64> = BTreeMap::new();
    let (mut by_label, mut by_tracker) = (BTreeMap::new(), BTreeMap::new());
    let (mut troubled, mut unproven) = (0_u64, 0_u64);
    let catalog = shared.rpc.catalog();
    for torrent in catalog.all() {
        *by_status.entry(torrent.status.as_str()).or_default() += 1;
        troubled += u64::from(torrent.problem != Problem::None);
        unproven += u64::from(torrent.is_unproven);
        let none = [String::new()];
        let labels = match torrent.labels.is_empty() {
            true => none.as_slice(),
            false => torrent.labels.as_slice(),
        };
        for (at, label) in labels.iter().enumerate() {
            // A row that was kept earlier may have one twice.
            if !labels.iter().take(at).any(|before| before == label) {
                sum(&mut by_label, label, torrent);
            }
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
    let help = "Torrents with an error";
    one(&mut text, "gyre_torrents_troubled", "gauge", help, troubled);
    let help = "Torrents taken over from another program and not hashed here since";
    one(&mut text, "gyre_torrents_unproven", "gauge", help, unproven);
    family(&mut text, "label", by_label);
    family(&mut text, "tracker", by_tracker);
    policies(&mut text, &shared.rpc.backend().policies());
    text
}

fn one(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    let _ = writeln!(
        text,
        "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
    );
}

/// What only the session knows of itself.
fn inside(text: &mut String, health: &Health) {
    for (name, help, value) in [
        (
            "gyre_buffer_bytes",
            "Memory of the buffer pool",
            health.buffer_bytes,
        ),
        (
            "gyre_buffer_free_bytes",
            "What of it is free",
            health.buffer_free_bytes,
        ),
        (
            "gyre_buffer_heap_bytes",
            "Memory beside the pool, because it had none left",
            health.buffer_heap_bytes,
        ),
        (
            "gyre_ring_operations",
            "Operations of the ring that the kernel works on",
            health.operations,
        ),
    ] {
        one(text, name, "gauge", help, value);
    }
    let name = "gyre_loop_lag_seconds";
    let help = "How late the timers of the ring thread are, a few a second";
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
    histogram(text, name, "", &health.loop_lag);
    let name = "gyre_request_stage_seconds";
    let help =
        "How long requests of peers take until they are taken up, read and sent, a few a second";
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
    for (stage, times) in ["queued", "read", "sent"].iter().zip(&health.stages) {
        histogram(text, name, &format!("stage=\"{stage}\""), times);
    }
}

/// `label` is `NAME="VALUE"` or nothing.
fn histogram(text: &mut String, name: &str, label: &str, times: &Histogram) {
    let comma = if label.is_empty() { "" } else { "," };
    for us in BUCKETS_US {
        let (bound, count) = (seconds(us), times.count_upto(us));
        let _ = writeln!(
            text,
            "{name}_bucket{{{label}{comma}le=\"{bound}\"}} {count}"
        );
    }
    let count = times.count();
    let of = match label.is_empty() {
        true => String::new(),
        false => format!("{{{label}}}"),
    };
    let _ = writeln!(
        text,
        "{name}_bucket{{{label}{comma}le=\"+Inf\"}} {count}\n{name}_sum{of} {}\n{name}_count{of} {count}",
        seconds(times.sum_us())
    );
}

fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What the kernel counts for this process. A file that cannot be read leaves its figures out.
fn process(text: &mut String, folder: &Path) {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let of = |file: &str, key: &str| {
        let line = file.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
    };
    let (io, status) = (read("io"), read("status"));
    for (name, kind, help, value) in [
        (
            "gyre_storage_read_bytes_total",
            "counter",
            "Bytes that were read from storage, not from the page cache",
            of(&io, "read_bytes:"),
        ),
        (
            "gyre_storage_written_bytes_total",
            "counter",
            "Bytes that were written to storage",
            of(&io, "write_bytes:"),
        ),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory",
            of(&status, "VmRSS:").map(|kib| kib.saturating_mul(1_024)),
        ),
        (
            "process_open_fds",
            "gauge",
            "Open file descriptors",
            std::fs::read_dir(folder.join("fd"))
                .ok()
                .map(|fds| fds.count() as u64),
        ),
    ] {
        if let Some(value) = value {
            one(text, name, kind, help, value);
        }
    }
}

fn sum(sums: &mut BTreeMap<String, Sum>, value: &str, torrent: &Torrent) {
    match sums.get_mut(value) {
        Some(sum) => sum.add(torrent),
        None => sums.entry(value.to_owned()).or_default().add(torrent),
    }
}

fn family(text: &mut String, label: &str, mut sums: BTreeMap<String, Sum>) {
    let has_others = sums.len() > VALUES_MAX;
    // One that is called so is among them: a series is there once.
    let mut other = match has_others {
        true => sums.remove("other").unwrap_or_default(),
        false => Sum::default(),
    };
    let mut sums: Vec<(String, Sum)> = sums.into_iter().collect();
    if has_others {
        sums.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.rank()));
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

/// Reads one figure of a policy, where it has one.
type OfPolicy = fn(&PolicyFigures) -> Option<u64>;

/// There are never more of them than a daemon takes.
fn policies(text: &mut String, policies: &[PolicyFigures]) {
    let figures: [(&str, &str, OfPolicy); 11] = [
        (
            "in_force",
            "Whether it is one of the times in which its limits count",
            |one| Some(u64::from(one.is_on)),
        ),
        ("torrents", "Torrents that it is for", |one| {
            Some(one.torrents)
        }),
        ("torrents_waiting", "Those that wait in the queue", |one| {
            Some(one.waiting)
        }),
        (
            "torrents_at_goal",
            "Those that have reached its goal",
            |one| Some(one.reached),
        ),
        ("upload_bytes_per_second", "Payload sent", |one| {
            Some(one.up_bytes_per_s)
        }),
        ("download_bytes_per_second", "Payload received", |one| {
            Some(one.down_bytes_per_s)
        }),
        (
            "uploaded_bytes",
            "Payload sent by those that are there, over their lives",
            |one| Some(one.uploaded_bytes),
        ),
        (
            "downloaded_bytes",
            "Payload received by those that are there, over their lives",
            |one| Some(one.downloaded_bytes),
        ),
        ("upload_limit_bytes_per_second", "Its cap", |one| {
            one.policy.cap_up_bytes_per_s
        }),
        ("download_limit_bytes_per_second", "Its cap", |one| {
            one.policy.cap_down_bytes_per_s
        }),
        (
            "upload_slots",
            "Peers that its torrents upload to at a time, at most",
            |one| one.policy.slots.map(u64::from),
        ),
    ];
    for (name, help, figure) in figures {
        let _ = writeln!(
            text,
            "# HELP gyre_policy_{name} {help}\n# TYPE gyre_policy_{name} gauge"
        );
        for one in policies {
            if let Some(figure) = figure(one) {
                let policy = escape(&one.policy.name);
                let _ = writeln!(text, "gyre_policy_{name}{{policy=\"{policy}\"}} {figure}");
            }
        }
    }
}

/// As the text format demands, with other control characters made harmless: their numbers tell what differs in them alone.
fn escape(value: &str) -> String {
    let mut text = String::new();
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c if c.is_control() || c == '\u{fffd}' => {
                let _ = write!(text, "\u{fffd}{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests;
