//! Identifiers of the protocol: info_hash and peer id (BEP 3, BEP 20).

use std::fmt;
use std::str::FromStr;

/// SHA-1 over the raw bytes of a torrent's `info` dictionary (BEP 3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHash([u8; 20]);

/// SHA-256 over the raw bytes of the `info` dictionary of a torrent of BitTorrent v2 (BEP 52).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHashV2([u8; 32]);

/// What a torrent is known by: one or both of its info_hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfoHashes {
    V1(InfoHash),
    V2(InfoHashV2),
    /// A hybrid, which has a swarm under each.
    Both(InfoHash, InfoHashV2),
}

/// The 20 bytes a peer calls itself by (BEP 3; the `-XXVVVV-` prefix is BEP 20).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 20]);

/// The text was not 40 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an info_hash is 40 hexadecimal digits, or 64 of BitTorrent v2")]
pub struct InfoHashParseError;

impl InfoHash {
    /// Wraps 20 raw bytes.
    pub const fn new(bytes: [u8; 20]) -> Self {
        InfoHash(bytes)
    }

    /// The 20 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl InfoHashV2 {
    /// Wraps 32 raw bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        InfoHashV2(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its first 20 bytes, which stand for it towards trackers, DHT and peers.
    pub fn truncated(&self) -> InfoHash {
        let mut bytes = [0; 20];
        bytes.copy_from_slice(&self.0[..20]);
        InfoHash(bytes)
    }
}

impl InfoHashes {
    /// The one that names the torrent among others here: of v1 if there is one.
    pub fn main(&self) -> InfoHash {
        match self {
            InfoHashes::V1(v1) | InfoHashes::Both(v1, _) => *v1,
            InfoHashes::V2(v2) => v2.truncated(),
        }
    }

    /// That of BitTorrent v1.
    pub const fn v1(&self) -> Option<InfoHash> {
        match self {
            InfoHashes::V1(v1) | InfoHashes::Both(v1, _) => Some(*v1),
            InfoHashes::V2(_) => None,
        }
    }

    /// That of BitTorrent v2.
    pub const fn v2(&self) -> Option<InfoHashV2> {
        match self {
            InfoHashes::V2(v2) | InfoHashes::Both(_, v2) => Some(*v2),
            InfoHashes::V1(_) => None,
        }
    }

    /// Whether a torrent with `found` is the one that these name, as far as they do.
    pub fn are_met_by(&self, found: &InfoHashes) -> bool {
        let v1 = self.v1().is_none_or(|v1| found.v1() == Some(v1));
        v1 && self.v2().is_none_or(|v2| found.v2() == Some(v2))
    }
}

/// In full, that of v1 first.
impl fmt::Display for InfoHashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InfoHashes::V1(v1) => write!(f, "{v1}"),
            InfoHashes::V2(v2) => write!(f, "{v2}"),
            InfoHashes::Both(v1, v2) => write!(f, "{v1} and {v2}"),
        }
    }
}

impl PeerId {
    /// Wraps 20 raw bytes.
    pub const fn new(bytes: [u8; 20]) -> Self {
        PeerId(bytes)
    }

    /// The 20 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// `-GY<version>-` followed by 12 bytes of the given randomness (BEP 20).
    pub fn generate(random: &mut super::Rng) -> Self {
        const ALPHABET: &[u8; 62] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut bytes = *b"-GY0100-000000000000";
        for byte in &mut bytes[8..] {
            *byte = ALPHABET[random.below(62) as usize];
        }
        PeerId(bytes)
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Display for InfoHashV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for InfoHashV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl FromStr for InfoHash {
    type Err = InfoHashParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read_hex(text).map(InfoHash)
    }
}

impl FromStr for InfoHashV2 {
    type Err = InfoHashParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read_hex(text).map(InfoHashV2)
    }
}

fn read_hex<const N: usize>(text: &str) -> Result<[u8; N], InfoHashParseError> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(InfoHashParseError);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| (digit as char).to_digit(16).ok_or(InfoHashParseError);
        let value = nibble(pair[0])? * 16 + nibble(pair[1])?;
        *byte = u8::try_from(value).map_err(|_| InfoHashParseError)?;
    }
    Ok(bytes)
}

impl fmt::Display for PeerId {
    /// Printable ASCII as it is, every other byte as `%xx`: safe for a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| {
            if byte.is_ascii_graphic() && byte != b'%' {
                write!(f, "{}", byte as char)
            } else {
                write!(f, "%{byte:02x}")
            }
        })
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    #[test]
    fn info_hash_text_round_trips_and_rejects_other_lengths() {
        let text = "0123456789abcdef0123456789ABCDEF01234567";
        let hash: InfoHash = text.parse().unwrap();
        assert_eq!(hash.to_string(), text.to_lowercase());
        assert!(text[1..].parse::<InfoHash>().is_err());
        assert!(
            "zz23456789abcdef0123456789ABCDEF01234567"
                .parse::<InfoHash>()
                .is_err()
        );
    }

    #[test]
    fn a_v2_info_hash_is_its_first_twenty_bytes_on_the_wire() {
        let text = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let hash: InfoHashV2 = text.parse().unwrap();
        assert_eq!(hash.to_string(), text);
        assert_eq!(hash.truncated().to_string(), text[..40]);
        assert!(text[1..].parse::<InfoHashV2>().is_err());
    }

    #[test]
    fn peer_id_carries_our_prefix_and_prints_safely() {
        let id = PeerId::generate(&mut Rng::new(1));
        assert!(id.as_bytes().starts_with(b"-GY0100-"));
        assert_eq!(PeerId::new([0x1b; 20]).to_string(), "%1b".repeat(20));
    }
}
