//! The 68 bytes that open a connection: BEP 3, with the reserved bits of BEP 5, BEP 6 and BEP 10. Layer 1.
//! Deadlines and the answer to an unknown info_hash are the session's.

use crate::base::{InfoHash, PeerId};
use std::fmt;

/// Bytes of a whole handshake (BEP 3).
pub const HANDSHAKE_BYTES: usize = 68;

/// After so many bytes the info_hash is known; the peer id may come only after our own handshake.
pub const INFO_HASH_END_BYTES: usize = 48;

/// Length byte and name that every handshake begins with (BEP 3).
pub const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";

/// The eight reserved bytes: which extensions a peer speaks.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Reserved([u8; 8]);

impl Reserved {
    /// Nothing but BEP 3.
    pub const NONE: Reserved = Reserved([0; 8]);

    /// What Gyre speaks: BEP 6 and BEP 10.
    pub const OURS: Reserved = Reserved([0, 0, 0, 0, 0, EXTENDED_BIT, 0, FAST_BIT]);

    /// Wraps the raw bytes.
    pub const fn new(bytes: [u8; 8]) -> Self {
        Reserved(bytes)
    }

    /// The same with the bit that says that we have a DHT node (BEP 5).
    pub const fn with_dht(mut self) -> Self {
        self.0[7] |= DHT_BIT;
        self
    }

    /// The same with the bit that says that the torrent is one of BitTorrent v2 (BEP 52).
    pub const fn with_v2(mut self) -> Self {
        self.0[7] |= V2_BIT;
        self
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }

    /// Fast extension (BEP 6).
    pub const fn has_fast(self) -> bool {
        self.0[7] & FAST_BIT != 0
    }

    /// Extension protocol (BEP 10).
    pub const fn has_extended(self) -> bool {
        self.0[5] & EXTENDED_BIT != 0
    }

    /// DHT node, so a `port` message makes sense (BEP 5).
    pub const fn has_dht(self) -> bool {
        self.0[7] & DHT_BIT != 0
    }
}

const EXTENDED_BIT: u8 = 0x10;
const FAST_BIT: u8 = 0x04;
const DHT_BIT: u8 = 0x01;
const V2_BIT: u8 = 0x10;

impl fmt::Debug for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// What both sides say first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    pub reserved: Reserved,
    pub info_hash: InfoHash,
    pub peer_id: PeerId,
}

/// How far the beginning of a connection tells who is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// May still become a handshake; nothing is known yet.
    NeedsMore,
    /// 48 bytes or more are there: enough to refuse an unknown torrent or to answer.
    InfoHashKnown {
        reserved: Reserved,
        info_hash: InfoHash,
    },
    /// All 68 bytes are there; what follows belongs to the decoder.
    Complete(Handshake),
}

/// The bytes cannot be the beginning of a handshake (HOSTILE.md H2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a BitTorrent handshake: byte {offset_bytes} is {got:#04x}, expected {expected:#04x}")]
pub struct NotAHandshake {
    /// Offset of the first wrong byte.
    pub offset_bytes: usize,
    pub expected: u8,
    pub got: u8,
}

impl Handshake {
    /// The 68 bytes as they go over the wire.
    pub fn encode(&self) -> [u8; HANDSHAKE_BYTES] {
        let mut bytes = [0; HANDSHAKE_BYTES];
        bytes[..20].copy_from_slice(PROTOCOL);
        bytes[20..28].copy_from_slice(self.reserved.as_bytes());
        bytes[28..48].copy_from_slice(self.info_hash.as_bytes());
        bytes[48..].copy_from_slice(self.peer_id.as_bytes());
        bytes
    }
}

/// Judges all bytes received so far on a connection; call it again with more when it [needs
/// more](Prefix::NeedsMore). Bytes after the 68th are not looked at.
///
/// # Errors
/// At the first byte that no handshake has there, so the earliest is the very first byte.
pub fn parse_prefix(bytes: &[u8]) -> Result<Prefix, NotAHandshake> {
    let pairs = bytes.iter().zip(PROTOCOL).enumerate();
    for (offset_bytes, (&got, &expected)) in pairs {
        if got != expected {
            return Err(NotAHandshake {
                offset_bytes,
                expected,
                got,
            });
        }
    }
    Ok(parse_fields(bytes).unwrap_or(Prefix::NeedsMore))
}

fn parse_fields(bytes: &[u8]) -> Option<Prefix> {
    let rest = bytes.get(PROTOCOL.len()..)?;
    let (reserved, rest) = rest.split_first_chunk::<8>()?;
    let (info_hash, rest) = rest.split_first_chunk::<20>()?;
    let reserved = Reserved::new(*reserved);
    let info_hash = InfoHash::new(*info_hash);
    Some(match rest.first_chunk::<20>() {
        None => Prefix::InfoHashKnown {
            reserved,
            info_hash,
        },
        Some(peer_id) => Prefix::Complete(Handshake {
            reserved,
            info_hash,
            peer_id: PeerId::new(*peer_id),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDSHAKE: Handshake = Handshake {
        reserved: Reserved::OURS,
        info_hash: InfoHash::new([0xab; 20]),
        peer_id: PeerId::new(*b"-GY0100-abcdefghijkl"),
    };

    #[test]
    fn handshake_matches_its_golden_bytes() {
        let mut golden = b"\x13BitTorrent protocol\0\0\0\0\0\x10\0\x04".to_vec();
        golden.extend([0xab; 20]);
        golden.extend(b"-GY0100-abcdefghijkl");
        assert_eq!(HANDSHAKE.encode()[..], golden);
    }

    #[test]
    fn every_truncation_tells_just_what_is_known() {
        let mut bytes = HANDSHAKE.encode().to_vec();
        bytes.extend(b"next message");
        let known = Prefix::InfoHashKnown {
            reserved: HANDSHAKE.reserved,
            info_hash: HANDSHAKE.info_hash,
        };
        for end in 0..=bytes.len() {
            let expected = match end {
                0..INFO_HASH_END_BYTES => Prefix::NeedsMore,
                INFO_HASH_END_BYTES..HANDSHAKE_BYTES => known,
                _ => Prefix::Complete(HANDSHAKE),
            };
            assert_eq!(parse_prefix(&bytes[..end]), Ok(expected), "{end} bytes");
        }
    }

    #[test]
    fn wrong_protocol_is_told_at_its_first_wrong_byte() {
        for offset_bytes in 0..PROTOCOL.len() {
            let mut bytes = HANDSHAKE.encode();
            bytes[offset_bytes] ^= 0x20;
            let error = NotAHandshake {
                offset_bytes,
                expected: PROTOCOL[offset_bytes],
                got: bytes[offset_bytes],
            };
            assert_eq!(parse_prefix(&bytes[..=offset_bytes]), Err(error));
            assert_eq!(parse_prefix(&bytes), Err(error));
            assert_eq!(parse_prefix(&bytes[..offset_bytes]), Ok(Prefix::NeedsMore));
        }
    }

    #[test]
    fn reserved_bits_are_where_their_beps_put_them() {
        assert!(Reserved::OURS.has_fast() && Reserved::OURS.has_extended());
        assert!(!Reserved::OURS.has_dht());
        assert!(Reserved::OURS.with_dht().has_dht() && Reserved::OURS.with_dht().has_fast());
        assert_eq!(Reserved::NONE.with_v2().as_bytes()[7], 0x10);
        assert!(!Reserved::NONE.has_fast() && !Reserved::NONE.has_extended());
        assert!(Reserved::new([0, 0, 0, 0, 0, 0, 0, 1]).has_dht());
        let inverse = Reserved::new([0xff, 0xff, 0xff, 0xff, 0xff, 0xef, 0xff, 0xfb]);
        assert!(!inverse.has_fast() && !inverse.has_extended());
    }
}
