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
mod tests;
