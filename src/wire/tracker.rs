//! What HTTP and UDP trackers have in common: the announce and its answer as values (BEP 3, 7, 15, 31). Layer 1.
//!
//! Holds no bytes on the wire: those are in `tracker_http` and `tracker_udp`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::base::{InfoHash, PeerId};

/// Peers kept of one answer. We ask for 200 at most, so a longer list is a tracker that ignores `numwant` or an attack.
pub const PEERS_MAX: usize = 1_000;

/// Characters kept of a tracker's failure or warning text, enough for a sentence or two.
pub const TEXT_CHARS_MAX: usize = 256;

/// Bytes kept of a `tracker id`; it goes back into every announce, so a long one would grow our own requests.
pub const TRACKER_ID_BYTES_MAX: usize = 256;

/// What happened to the torrent since the last announce (BEP 3, `event`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The first announce to this tracker.
    Started,
    /// The download has just been finished.
    Completed,
    /// The last announce to this tracker.
    Stopped,
}

/// The address family an announce is made over; the tracker learns our address of that family (BEP 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// True when the address is of this family (an IPv4-mapped IPv6 address counts as IPv4).
    pub fn has(self, ip: IpAddr) -> bool {
        ip.to_canonical().is_ipv4() == (self == Family::V4)
    }
}

/// Payload counters of one torrent as trackers want them, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sent since `started`.
    pub uploaded_bytes: u64,
    /// Received since `started`.
    pub downloaded_bytes: u64,
    /// Still to fetch; 0 makes us a seeder.
    pub left_bytes: u64,
}

/// One announce (BEP 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceRequest {
    pub info_hash: InfoHash,
    pub peer_id: PeerId,
    /// Where we listen for peers.
    pub port: u16,
    pub counters: Counters,
    pub event: Option<Event>,
    /// Peers wanted.
    pub numwant: u32,
    /// Proves to the tracker that we are the same client after a change of address.
    pub key: u32,
    /// The `tracker id` of an earlier answer.
    pub tracker_id: Option<Vec<u8>>,
}

/// A tracker's good answer. Every field is as sent, but capped: clamping times is `swarm::announce`'s business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnnounceResponse {
    /// Seconds until the next regular announce; `None` when missing or nonsense.
    pub interval_secs: Option<u64>,
    /// Seconds that must pass between announces.
    pub min_interval_secs: Option<u64>,
    pub tracker_id: Option<Vec<u8>>,
    /// Peers with the whole torrent (`complete`).
    pub seeders: Option<u32>,
    /// Peers without it (`incomplete`).
    pub leechers: Option<u32>,
    /// Escaped and cut.
    pub warning: Option<String>,
    /// At most [`PEERS_MAX`], without port 0 and unusable addresses.
    pub peers: Vec<SocketAddr>,
    /// Our own address as the tracker sees it (BEP 24).
    pub external_ip: Option<IpAddr>,
}

/// A tracker's refusal (`failure reason`, or action 3 of BEP 15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceRefusal {
    /// Escaped and cut.
    pub reason: String,
    pub retry_in: Option<RetryIn>,
}

/// When a refused announce may be repeated (BEP 31).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryIn {
    /// The tracker will never serve this torrent.
    Never,
    After(Duration),
}

/// Makes a tracker's text safe for a terminal or a page: control, bidi and invisible characters become `\u{..}`,
/// broken UTF-8 becomes U+FFFD, and at most [`TEXT_CHARS_MAX`] characters of the text are kept.
pub fn clean_text(bytes: &[u8]) -> String {
    // Four bytes a character is the most UTF-8 takes: nothing beyond is looked at.
    let head = bytes.get(..TEXT_CHARS_MAX * 4).unwrap_or(bytes);
    let text = String::from_utf8_lossy(head);
    let mut clean = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == TEXT_CHARS_MAX {
            clean.push('…');
            return clean;
        }
        if is_unsafe_to_print(c) {
            clean.extend(c.escape_unicode());
        } else {
            clean.push(c);
        }
    }
    if head.len() < bytes.len() {
        clean.push('…');
    }
    clean
}

fn is_unsafe_to_print(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// False for addresses no peer can have: port 0, unspecified, multicast, IPv4 broadcast.
pub fn is_usable_peer(addr: SocketAddr) -> bool {
    let ip = addr.ip().to_canonical();
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    addr.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast
}

/// Reads compact IPv4 peers, 6 bytes each (BEP 23); a remainder is ignored, the list capped at `peers_max`.
pub fn read_compact_v4(bytes: &[u8], peers: &mut Vec<SocketAddr>, peers_max: usize) {
    for entry in bytes.chunks_exact(6) {
        let Ok([a, b, c, d, high, low]) = <[u8; 6]>::try_from(entry) else {
            return;
        };
        push_peer(
            peers,
            ([a, b, c, d], u16::from_be_bytes([high, low])).into(),
            peers_max,
        );
    }
}

/// Reads compact IPv6 peers, 18 bytes each (BEP 7); a remainder is ignored, the list capped at `peers_max`.
pub fn read_compact_v6(bytes: &[u8], peers: &mut Vec<SocketAddr>, peers_max: usize) {
    for entry in bytes.chunks_exact(18) {
        let Some((ip, port)) = entry.split_first_chunk::<16>() else {
            return;
        };
        let Ok(port) = <[u8; 2]>::try_from(port) else {
            return;
        };
        push_peer(peers, (*ip, u16::from_be_bytes(port)).into(), peers_max);
    }
}

/// Adds a usable peer while there is room; IPv4-mapped addresses become plain IPv4.
pub fn push_peer(peers: &mut Vec<SocketAddr>, addr: SocketAddr, peers_max: usize) {
    if peers.len() < peers_max && is_usable_peer(addr) {
        peers.push(SocketAddr::new(addr.ip().to_canonical(), addr.port()));
    }
}

/// Appends the compact form of an address: 6 bytes for IPv4 (BEP 23), 18 for IPv6 (BEP 7).
pub fn write_compact(addr: SocketAddr, out: &mut Vec<u8>) {
    match addr.ip() {
        IpAddr::V4(ip) => out.extend(ip.octets()),
        IpAddr::V6(ip) => out.extend(ip.octets()),
    }
    out.extend(addr.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_cut() {
        assert_eq!(
            clean_text(b"bad\x1b[2Jtorrent\r\n"),
            "bad\\u{1b}[2Jtorrent\\u{d}\\u{a}"
        );
        assert_eq!(clean_text("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(clean_text(b"\xff"), "\u{fffd}");
        let long = clean_text(&vec![b'x'; 1_000_000]);
        assert_eq!(long.chars().count(), TEXT_CHARS_MAX + 1);
    }

    #[test]
    fn compact_peers_round_trip_and_bad_ones_are_skipped() {
        let good: SocketAddr = "10.1.2.3:6881".parse().unwrap();
        let mut bytes = Vec::new();
        write_compact(good, &mut bytes);
        write_compact("10.1.2.3:0".parse().unwrap(), &mut bytes);
        write_compact("0.0.0.0:5".parse().unwrap(), &mut bytes);
        write_compact("255.255.255.255:5".parse().unwrap(), &mut bytes);
        bytes.push(9);
        let mut peers = Vec::new();
        read_compact_v4(&bytes, &mut peers, PEERS_MAX);
        assert_eq!(peers, [good]);

        let six: SocketAddr = "[2001:db8::1]:6881".parse().unwrap();
        let mut bytes = Vec::new();
        write_compact(six, &mut bytes);
        bytes.extend([0; 17]);
        let mut peers = Vec::new();
        read_compact_v6(&bytes, &mut peers, PEERS_MAX);
        assert_eq!(peers, [six]);
    }

    #[test]
    fn a_list_of_a_million_peers_is_capped() {
        let mut peers = Vec::new();
        read_compact_v4(&[1, 2, 3, 4, 5, 6].repeat(1_000_000), &mut peers, PEERS_MAX);
        assert_eq!(peers.len(), PEERS_MAX);
    }
}
