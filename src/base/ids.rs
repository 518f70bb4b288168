//! Identifiers of the protocol: info_hash and peer id (BEP 3, BEP 20).

use std::fmt;
use std::str::FromStr;

/// SHA-1 over the raw bytes of a torrent's `info` dictionary (BEP 3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHash([u8; 20]);

/// The 20 bytes a peer calls itself by (BEP 3; the `-XXVVVV-` prefix is BEP 20).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 20]);

/// The text was not 40 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an info_hash is 40 hexadecimal digits")]
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

impl FromStr for InfoHash {
    type Err = InfoHashParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        if digits.len() != 40 {
            return Err(InfoHashParseError);
        }
        let mut bytes = [0; 20];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |digit: u8| (digit as char).to_digit(16).ok_or(InfoHashParseError);
            let value = nibble(pair[0])? * 16 + nibble(pair[1])?;
            *byte = u8::try_from(value).map_err(|_| InfoHashParseError)?;
        }
        Ok(InfoHash(bytes))
    }
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
    fn peer_id_carries_our_prefix_and_prints_safely() {
        let id = PeerId::generate(&mut Rng::new(1));
        assert!(id.as_bytes().starts_with(b"-GY0100-"));
        assert_eq!(PeerId::new([0x1b; 20]).to_string(), "%1b".repeat(20));
    }
}
