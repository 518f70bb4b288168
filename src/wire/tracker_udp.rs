//! The UDP tracker protocol as datagrams (BEP 15, with BEP 41's URL data and 18-byte peers over IPv6). Layer 1.
//!
//! Holds both halves: what a client sends and reads, and what a tracker reads and sends.

use std::net::{Ipv4Addr, SocketAddr};

use super::tracker::{
    AnnounceRefusal, AnnounceRequest, AnnounceResponse, Event, Family, PEERS_MAX, clean_text,
    read_compact_v4, read_compact_v6, write_compact,
};
use super::tracker_http::serve::{Announced, SCRAPE_HASHES_MAX, SwarmCounts};
use crate::base::{InfoHash, PeerId};

/// Marks a connect request (BEP 15).
const PROTOCOL_ID: u64 = 0x0417_2710_1980;

const ACTION_CONNECT: u32 = 0;
const ACTION_ANNOUNCE: u32 = 1;
const ACTION_SCRAPE: u32 = 2;
const ACTION_ERROR: u32 = 3;

/// BEP 41: an option that is nothing but its type, and URL data in pieces of at most 255 bytes.
const OPTION_END: u8 = 0;
const OPTION_URL_DATA: u8 = 2;

/// URL data sent with an announce; more does not fit a datagram that must not be fragmented.
const URL_DATA_BYTES_MAX: usize = 1_024;

/// The longest datagram worth reading: 1,000 IPv6 peers and a header.
pub const DATAGRAM_BYTES_MAX: usize = 20 + 18 * PEERS_MAX;

/// Why a datagram is no message of the protocol; such datagrams are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UdpError {
    #[error("{got_bytes} bytes are too short for this action, {expected_bytes} are needed")]
    TooShort {
        expected_bytes: usize,
        got_bytes: usize,
    },
    #[error("action {got} is unknown or not expected here")]
    BadAction { got: u32 },
    #[error("not a connect request: wrong protocol id")]
    BadProtocolId,
}

/// An answer's body. Announce bodies are parsed only with the family they came over known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UdpAnswer {
    Connected { connection_id: u64 },
    Announced(AnnounceResponse),
    Scraped(Vec<SwarmCounts>),
    Refused(AnnounceRefusal),
}

/// A connect request: 16 bytes.
pub fn connect_request(transaction_id: u32) -> Vec<u8> {
    let mut out = PROTOCOL_ID.to_be_bytes().to_vec();
    out.extend(ACTION_CONNECT.to_be_bytes());
    out.extend(transaction_id.to_be_bytes());
    out
}

/// An announce request: 98 bytes, then the tracker URL's path and query as options when there is anything in them
/// (BEP 41).
pub fn announce_request(
    connection_id: u64,
    transaction_id: u32,
    request: &AnnounceRequest,
    url_target: &str,
) -> Vec<u8> {
    let mut out = connection_id.to_be_bytes().to_vec();
    out.extend(ACTION_ANNOUNCE.to_be_bytes());
    out.extend(transaction_id.to_be_bytes());
    out.extend(request.info_hash.as_bytes());
    out.extend(request.peer_id.as_bytes());
    out.extend(request.counters.downloaded_bytes.to_be_bytes());
    out.extend(request.counters.left_bytes.to_be_bytes());
    out.extend(request.counters.uploaded_bytes.to_be_bytes());
    let event: u32 = match request.event {
        None => 0,
        Some(Event::Completed) => 1,
        Some(Event::Started) => 2,
        Some(Event::Stopped) => 3,
    };
    out.extend(event.to_be_bytes());
    // No address of our own choosing: the tracker takes the datagram's.
    out.extend([0; 4]);
    out.extend(request.key.to_be_bytes());
    let numwant = i32::try_from(request.numwant).unwrap_or(i32::MAX);
    out.extend(numwant.to_be_bytes());
    out.extend(request.port.to_be_bytes());
    push_url_data(url_target, &mut out);
    out
}

/// A scrape request for up to [`SCRAPE_HASHES_MAX`] torrents; further ones are left out.
pub fn scrape_request(
    connection_id: u64,
    transaction_id: u32,
    info_hashes: &[InfoHash],
) -> Vec<u8> {
    let mut out = connection_id.to_be_bytes().to_vec();
    out.extend(ACTION_SCRAPE.to_be_bytes());
    out.extend(transaction_id.to_be_bytes());
    for info_hash in info_hashes.iter().take(SCRAPE_HASHES_MAX) {
        out.extend(info_hash.as_bytes());
    }
    out
}

/// Whether a datagram may be a tracker's answer, and to which transaction: an action in 0..=3 at the start.
pub fn peek_transaction_id(datagram: &[u8]) -> Option<u32> {
    let mut reader = Reader(datagram);
    let action = reader.u32()?;
    let transaction_id = reader.u32()?;
    (action <= ACTION_ERROR).then_some(transaction_id)
}

/// Reads an answer that came over `family`. The transaction id and the source are the caller's to check.
///
/// # Errors
/// Too short for its action, or an unknown action.
pub fn parse_answer(datagram: &[u8], family: Family) -> Result<UdpAnswer, UdpError> {
    let mut reader = Reader(datagram);
    let action = reader.u32().ok_or_else(|| too_short(8, datagram))?;
    reader.u32().ok_or_else(|| too_short(8, datagram))?;
    match action {
        ACTION_CONNECT => {
            let connection_id = reader.u64().ok_or_else(|| too_short(16, datagram))?;
            Ok(UdpAnswer::Connected { connection_id })
        }
        ACTION_ANNOUNCE => parse_announced(reader, family)
            .map(UdpAnswer::Announced)
            .ok_or_else(|| too_short(20, datagram)),
        ACTION_SCRAPE => {
            let mut counts = Vec::new();
            while let (Some(seeders), Some(completed), Some(leechers)) =
                (reader.u32(), reader.u32(), reader.u32())
            {
                counts.push(SwarmCounts {
                    seeders,
                    leechers,
                    completed,
                });
            }
            counts.truncate(SCRAPE_HASHES_MAX);
            Ok(UdpAnswer::Scraped(counts))
        }
        ACTION_ERROR => Ok(UdpAnswer::Refused(AnnounceRefusal {
            reason: clean_text(reader.0),
            retry_in: None,
        })),
        got => Err(UdpError::BadAction { got }),
    }
}

fn parse_announced(mut reader: Reader<'_>, family: Family) -> Option<AnnounceResponse> {
    let interval = reader.u32()?;
    let leechers = reader.u32()?;
    let seeders = reader.u32()?;
    let mut peers = Vec::new();
    match family {
        Family::V4 => read_compact_v4(reader.0, &mut peers, PEERS_MAX),
        Family::V6 => read_compact_v6(reader.0, &mut peers, PEERS_MAX),
    }
    Some(AnnounceResponse {
        // The field is signed (BEP 15); below zero it is nonsense and counts as zero.
        interval_secs: Some(if interval > i32::MAX as u32 {
            0
        } else {
            interval.into()
        }),
        seeders: Some(seeders),
        leechers: Some(leechers),
        peers,
        ..AnnounceResponse::default()
    })
}

fn push_url_data(target: &str, out: &mut Vec<u8>) {
    let data = target.as_bytes();
    // A bare `/` says nothing; a cut URL would say something wrong.
    if data.len() <= 1 || data.len() > URL_DATA_BYTES_MAX {
        return;
    }
    for piece in data.chunks(255) {
        out.push(OPTION_URL_DATA);
        out.push(u8::try_from(piece.len()).unwrap_or(u8::MAX));
        out.extend(piece);
    }
    out.push(OPTION_END);
}

/// A datagram as the tracker reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UdpRequest {
    Connect,
    Announce {
        connection_id: u64,
        announced: Announced,
    },
    Scrape {
        connection_id: u64,
        info_hashes: Vec<InfoHash>,
    },
}

/// Reads a client's datagram and its transaction id. BEP 41's options are skipped.
///
/// # Errors
/// Too short, an unknown action, or a connect without the protocol's magic number.
pub fn parse_request(datagram: &[u8]) -> Result<(u32, UdpRequest), UdpError> {
    let mut reader = Reader(datagram);
    let (Some(connection_id), Some(action), Some(transaction_id)) =
        (reader.u64(), reader.u32(), reader.u32())
    else {
        return Err(too_short(16, datagram));
    };
    let request = match action {
        ACTION_CONNECT if connection_id == PROTOCOL_ID => UdpRequest::Connect,
        ACTION_CONNECT => return Err(UdpError::BadProtocolId),
        ACTION_ANNOUNCE => UdpRequest::Announce {
            connection_id,
            announced: read_announce(reader).ok_or_else(|| too_short(98, datagram))?,
        },
        ACTION_SCRAPE => {
            let mut info_hashes = Vec::new();
            while let Some(bytes) = reader.array() {
                info_hashes.push(InfoHash::new(bytes));
            }
            info_hashes.truncate(SCRAPE_HASHES_MAX);
            UdpRequest::Scrape {
                connection_id,
                info_hashes,
            }
        }
        got => return Err(UdpError::BadAction { got }),
    };
    Ok((transaction_id, request))
}

fn read_announce(mut reader: Reader<'_>) -> Option<Announced> {
    let info_hash = InfoHash::new(reader.array()?);
    let peer_id = PeerId::new(reader.array()?);
    let _downloaded = reader.u64()?;
    let left = reader.u64()?;
    let _uploaded = reader.u64()?;
    let event = match reader.u32()? {
        1 => Some(Event::Completed),
        2 => Some(Event::Started),
        3 => Some(Event::Stopped),
        _ => None,
    };
    let ip = reader.u32()?;
    let key = reader.u32()?;
    let numwant = i32::from_be_bytes(reader.array()?);
    let port = u16::from_be_bytes(reader.array()?);
    Some(Announced {
        info_hash,
        peer_id,
        port,
        is_seeder: left == 0,
        event,
        // −1 leaves it to the tracker.
        numwant: u32::try_from(numwant).ok(),
        // Zero is what clients send that have neither.
        key: (key != 0).then_some(key.into()),
        ip: (ip != 0).then_some(Ipv4Addr::from(ip).into()),
    })
}

/// The answer to a connect.
pub fn connect_answer(transaction_id: u32, connection_id: u64) -> Vec<u8> {
    let mut out = header(ACTION_CONNECT, transaction_id);
    out.extend(connection_id.to_be_bytes());
    out
}

/// The answer to an announce; all peers must be of the family the datagram goes over.
pub fn announce_answer(
    transaction_id: u32,
    interval_secs: u32,
    counts: SwarmCounts,
    peers: impl IntoIterator<Item = SocketAddr>,
) -> Vec<u8> {
    let mut out = header(ACTION_ANNOUNCE, transaction_id);
    out.extend(interval_secs.to_be_bytes());
    out.extend(counts.leechers.to_be_bytes());
    out.extend(counts.seeders.to_be_bytes());
    for peer in peers {
        write_compact(peer, &mut out);
    }
    out
}

/// The answer to a scrape, in the order of the request.
pub fn scrape_answer(
    transaction_id: u32,
    counts: impl IntoIterator<Item = SwarmCounts>,
) -> Vec<u8> {
    let mut out = header(ACTION_SCRAPE, transaction_id);
    for counts in counts {
        out.extend(counts.seeders.to_be_bytes());
        out.extend(counts.completed.to_be_bytes());
        out.extend(counts.leechers.to_be_bytes());
    }
    out
}

/// A refusal.
pub fn error_answer(transaction_id: u32, reason: &str) -> Vec<u8> {
    let mut out = header(ACTION_ERROR, transaction_id);
    out.extend(reason.as_bytes());
    out
}

fn header(action: u32, transaction_id: u32) -> Vec<u8> {
    let mut out = action.to_be_bytes().to_vec();
    out.extend(transaction_id.to_be_bytes());
    out
}

fn too_short(expected_bytes: usize, datagram: &[u8]) -> UdpError {
    UdpError::TooShort {
        expected_bytes,
        got_bytes: datagram.len(),
    }
}

/// Takes fixed-size fields off the front of a datagram.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tracker::Counters;

    fn request() -> AnnounceRequest {
        AnnounceRequest {
            info_hash: InfoHash::new([0xaa; 20]),
            peer_id: PeerId::new([0xbb; 20]),
            port: 0x1ae1,
            counters: Counters {
                uploaded_bytes: 3,
                downloaded_bytes: 1,
                left_bytes: 2,
            },
            event: Some(Event::Started),
            numwant: 200,
            key: 0x0102_0304,
            tracker_id: None,
        }
    }

    #[test]
    fn requests_are_the_bytes_of_bep_15() {
        assert_eq!(
            connect_request(0x0a0b_0c0d),
            [
                0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80, 0, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0x0d
            ]
        );
        let bytes = announce_request(7, 9, &request(), "/");
        assert_eq!(bytes.len(), 98);
        assert_eq!(
            bytes[..16],
            [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 9]
        );
        assert_eq!(bytes[16..36], [0xaa; 20]);
        assert_eq!(bytes[36..56], [0xbb; 20]);
        assert_eq!(
            bytes[56..80],
            [
                0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3
            ]
        );
        assert_eq!(
            bytes[80..],
            [0, 0, 0, 2, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 200, 0x1a, 0xe1]
        );
        let bytes = scrape_request(7, 9, &[InfoHash::new([1; 20]); 80]);
        assert_eq!(bytes.len(), 16 + 74 * 20);
    }

    #[test]
    fn url_data_is_cut_into_options() {
        let bytes = announce_request(7, 9, &request(), "/announce?k");
        assert_eq!(bytes[98..], *b"\x02\x0b/announce?k\x00");
        let long = format!("/{}", "x".repeat(299));
        let bytes = announce_request(7, 9, &request(), &long);
        assert_eq!(bytes.len(), 98 + 2 + 255 + 2 + 45 + 1);
        assert_eq!((bytes[98], bytes[99]), (2, 255));
        assert_eq!((bytes[98 + 257], bytes[98 + 258]), (2, 45));
    }

    #[test]
    fn answers_are_read_with_the_stride_of_the_family() {
        let counts = SwarmCounts {
            seeders: 1,
            leechers: 2,
            completed: 3,
        };
        for (family, addr) in [
            (Family::V4, "10.0.0.1:6881"),
            (Family::V6, "[2001:db8::1]:6881"),
        ] {
            let addr: SocketAddr = addr.parse().unwrap();
            let mut bytes = announce_answer(5, 1_800, counts, [addr, addr]);
            bytes.push(1);
            let Ok(UdpAnswer::Announced(answer)) = parse_answer(&bytes, family) else {
                panic!("no answer");
            };
            assert_eq!(answer.peers, [addr, addr]);
            assert_eq!(answer.interval_secs, Some(1_800));
            assert_eq!((answer.seeders, answer.leechers), (Some(1), Some(2)));
        }
        assert_eq!(peek_transaction_id(&connect_answer(5, 6)), Some(5));
        assert_eq!(
            parse_answer(&connect_answer(5, 6), Family::V4),
            Ok(UdpAnswer::Connected { connection_id: 6 })
        );
        assert_eq!(
            parse_answer(&scrape_answer(5, [counts]), Family::V4),
            Ok(UdpAnswer::Scraped(vec![counts]))
        );
        let Ok(UdpAnswer::Refused(refusal)) = parse_answer(&error_answer(5, "no\x1b"), Family::V4)
        else {
            panic!("no refusal");
        };
        assert_eq!(refusal.reason, "no\\u{1b}");
    }

    #[test]
    fn short_datagrams_are_errors_at_every_length() {
        for (whole, least) in [
            (connect_answer(5, 6), 16),
            (announce_answer(5, 1, SwarmCounts::default(), []), 20),
            (error_answer(5, ""), 8),
        ] {
            for length in 0..least {
                let got = parse_answer(&whole[..length], Family::V4);
                assert!(matches!(got, Err(UdpError::TooShort { .. })), "{length}");
            }
            assert!(parse_answer(&whole, Family::V4).is_ok());
        }
        let whole = announce_request(7, 9, &request(), "/");
        for length in 0..98 {
            assert!(parse_request(&whole[..length]).is_err());
        }
    }

    #[test]
    fn a_negative_interval_counts_as_zero() {
        let bytes = announce_answer(5, u32::MAX, SwarmCounts::default(), []);
        let Ok(UdpAnswer::Announced(answer)) = parse_answer(&bytes, Family::V4) else {
            panic!("no answer");
        };
        assert_eq!(answer.interval_secs, Some(0));
    }

    #[test]
    fn the_tracker_reads_what_the_client_writes() {
        assert_eq!(
            parse_request(&connect_request(4)),
            Ok((4, UdpRequest::Connect))
        );
        let mut wrong = connect_request(4);
        wrong[0] = 1;
        assert_eq!(parse_request(&wrong), Err(UdpError::BadProtocolId));
        let announced = Announced {
            info_hash: request().info_hash,
            peer_id: request().peer_id,
            port: request().port,
            is_seeder: false,
            event: Some(Event::Started),
            numwant: Some(200),
            key: Some(0x0102_0304),
            ip: None,
        };
        let request = announce_request(7, 9, &request(), "/announce");
        assert_eq!(
            parse_request(&request),
            Ok((
                9,
                UdpRequest::Announce {
                    connection_id: 7,
                    announced
                }
            ))
        );
        let hashes = vec![InfoHash::new([1; 20]); 3];
        assert_eq!(
            parse_request(&scrape_request(7, 9, &hashes)),
            Ok((
                9,
                UdpRequest::Scrape {
                    connection_id: 7,
                    info_hashes: hashes
                }
            ))
        );
    }

    proptest::proptest! {
        #[test]
        fn any_datagram_is_read_or_ignored(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), action in 0u32..5) {
            let mut answer = action.to_be_bytes().to_vec();
            answer.extend(&bytes);
            let mut request = bytes.clone();
            if let Some(slot) = request.get_mut(8..12) { slot.copy_from_slice(&action.to_be_bytes()); }
            let _ = parse_answer(&answer, Family::V4);
            let _ = parse_answer(&answer, Family::V6);
            let _ = peek_transaction_id(&bytes);
            let _ = parse_request(&request);
        }
    }
}
