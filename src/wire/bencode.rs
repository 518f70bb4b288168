//! Bencode (BEP 3): a scanner that judges bytes before anybody believes them, a borrowed view, and a writer. Layer 1.
//!
//! [`scan`] walks the bytes once, without recursion, and checks everything: depth, token count, lengths, number
//! forms, key order, duplicate keys. What passed is then read in place through [`Value`], [`List`] and [`Dict`],
//! which allocate nothing. Writing goes through `bendy`, whose encoder guarantees the canonical form.
//!
//! Reading does not go through `bendy`: its decoder refuses unsorted keys (torrents with them exist, and their
//! info_hash is over the raw bytes), tells the offset in some of its errors only, and takes trailing bytes for
//! part of the input, where `ut_metadata` is a dictionary followed by payload. The tests hold the two against
//! each other.

mod scan;
#[cfg(test)]
mod tests;
mod view;
mod write;

pub use scan::{scan, scan_prefix};
pub use view::{Dict, List, Scanned, Value, Walk};
pub use write::Item;

/// Lists and dictionaries inside each other; the same as libtorrent's (HOSTILE.md T1).
pub const DEPTH_MAX: usize = 100;

/// Values and keys in one document; libtorrent's figure, enough for some 400,000 files (HOSTILE.md T2).
pub const TOKENS_MAX: usize = 3_000_000;

/// The longest document looked at: the size limit of a `.torrent` (HOSTILE.md T2).
pub const DOCUMENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why bytes are no acceptable bencode, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BencodeError {
    /// Longer than [`DOCUMENT_BYTES_MAX`].
    #[error("{got_bytes} bytes of bencode, more than {max_bytes}")]
    TooLong { got_bytes: usize, max_bytes: usize },
    /// The bytes end inside a value.
    #[error("bencode ends in the middle of a value at byte {offset}")]
    Truncated { offset: usize },
    /// No value starts with this byte.
    #[error("unexpected byte 0x{got:02x} at byte {offset}")]
    UnexpectedByte { offset: usize, got: u8 },
    /// A number with leading zeros, `-0`, no digits, or outside 64 bits.
    #[error("bad number at byte {offset}")]
    BadNumber { offset: usize },
    /// A string that claims more bytes than there are.
    #[error("string at byte {offset} runs past the end ({left_bytes} bytes are left)")]
    StringPastEnd { offset: usize, left_bytes: usize },
    /// A dictionary key that is no string.
    #[error("dictionary key at byte {offset} is not a string")]
    KeyNotString { offset: usize },
    /// A key without a value.
    #[error("dictionary ends after a key without a value at byte {offset}")]
    MissingValue { offset: usize },
    /// The same key twice in one dictionary.
    #[error("dictionary that ends at byte {offset} has a key twice")]
    DuplicateKey { offset: usize },
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("nested deeper than {max} at byte {offset}")]
    TooDeep { offset: usize, max: usize },
    /// More than [`TOKENS_MAX`] values and keys.
    #[error("more than {max} values at byte {offset}")]
    TooManyTokens { offset: usize, max: usize },
    /// Bytes behind a value that should have been the whole input.
    #[error("{extra_bytes} trailing bytes at byte {offset}")]
    TrailingBytes { offset: usize, extra_bytes: usize },
}
