//! What is known of the demo's programs, from their events and the tracker's page. Layer 7.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// The tracker is asked only on this machine's loopback: it answers at once or something is wrong.
const PAGE_TIMEOUT: Duration = Duration::from_millis(500);
/// The page is a few lines.
const PAGE_BYTES_MAX: u64 = 4_096;

/// The seeder's or a leecher's figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerFigures {
    pub state: String,
    pub have_bytes: u64,
    pub checked_bytes: u64,
    pub sent_bytes: u64,
    pub fetched_bytes: u64,
    pub wasted_bytes: u64,
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    pub peers: u64,
    /// Seconds until it was complete.
    pub complete_after: Option<f64>,
}

impl PeerFigures {
    /// Takes what an event says.
    pub fn on_event(&mut self, event: &Value) {
        let number = |field: &str| event[field].as_u64().unwrap_or(0);
        match event["event"].as_str() {
            Some("progress") => {
                *self = PeerFigures {
                    state: event["state"].as_str().unwrap_or_default().to_owned(),
                    have_bytes: number("have_bytes"),
                    checked_bytes: number("checked_bytes"),
                    sent_bytes: number("uploaded_bytes"),
                    fetched_bytes: number("downloaded_bytes"),
                    wasted_bytes: number("wasted_bytes"),
                    down_bytes_per_s: number("down_bytes_per_s"),
                    up_bytes_per_s: number("up_bytes_per_s"),
                    peers: number("peers"),
                    complete_after: self.complete_after,
                };
            }
            Some("complete") => self.complete_after = event["seconds"].as_f64(),
            _ => {}
        }
    }
}

/// The tracker's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackerFigures {
    pub seeders: u64,
    pub leechers: u64,
    pub announces: u64,
}

impl TrackerFigures {
    /// Asks the tracker for its page. `None` when it does not answer.
    pub fn fetch(tracker: SocketAddr) -> Option<TrackerFigures> {
        let mut stream = TcpStream::connect_timeout(&tracker, PAGE_TIMEOUT).ok()?;
        stream.set_read_timeout(Some(PAGE_TIMEOUT)).ok()?;
        stream.set_write_timeout(Some(PAGE_TIMEOUT)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.take(PAGE_BYTES_MAX).read_to_string(&mut page).ok()?;
        TrackerFigures::read(&page)
    }

    /// Takes the event the tracker ends with.
    pub fn on_event(&mut self, event: &Value) {
        if event["event"] == "totals" {
            let number = |field: &str| event[field].as_u64().unwrap_or(0);
            self.announces = number("http_announces") + number("udp_announces");
        }
    }

    fn read(page: &str) -> Option<TrackerFigures> {
        let number = |name: &str| -> Option<u64> {
            let value = |line: &str| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok();
            page.lines().find_map(value)
        };
        Some(TrackerFigures {
            seeders: number("seeders")?,
            leechers: number("leechers")?,
            announces: number("http announces")? + number("udp announces")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_read_from_the_page_and_from_events() {
        let page = "HTTP/1.1 200 OK\r\n\r\nx\nseeders: 1\nleechers: 2\nhttp announces: 3\nudp announces: 4\n";
        let mut tracker = TrackerFigures::read(page).unwrap();
        assert_eq!(
            (tracker.seeders, tracker.leechers, tracker.announces),
            (1, 2, 7)
        );
        tracker.on_event(&json!({"event": "totals", "http_announces": 8, "udp_announces": 1}));
        assert_eq!(tracker.announces, 9);
        let mut peer = PeerFigures::default();
        peer.on_event(&json!({"event": "complete", "seconds": 1.5}));
        peer.on_event(&json!({"event": "progress", "state": "seeding", "have_bytes": 7}));
        assert_eq!((peer.have_bytes, peer.complete_after), (7, Some(1.5)));
    }
}
