//! One connected peer: its flags, pieces, pipeline and upload queue, and the ways it can break the protocol. Layer 2.

/// A breach of the protocol that ends the connection; no other peer is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// HOSTILE.md W3.
    #[error("bitfield of {got_bytes} bytes where {expected_bytes} were expected")]
    BitfieldLength { expected_bytes: u32, got_bytes: u32 },
    /// HOSTILE.md W3.
    #[error("spare bits of the bitfield are set")]
    BitfieldSpareBits,
    /// HOSTILE.md W3: allowed only as the first message, once.
    #[error("bitfield, have_all or have_none after another message")]
    BitfieldLate,
    /// HOSTILE.md W4; also `suggest_piece` and `allowed_fast`.
    #[error("piece {got} of a torrent of {pieces}")]
    PieceOutOfRange { got: u32, pieces: u32 },
    /// HOSTILE.md W5, W6: over 128 KiB, or impossible too often.
    #[error("request of {length_bytes} bytes at {begin} of piece {piece}")]
    BadRequest {
        piece: u32,
        begin: u32,
        length_bytes: u32,
    },
    /// HOSTILE.md W7, W8.
    #[error("{got} requests that could not be served, {max} are borne")]
    TooManyRefused { got: u32, max: u32 },
    /// HOSTILE.md W9.
    #[error("{got} blocks that were never requested, {max} are borne")]
    TooManyUnrequested { got: u32, max: u32 },
    /// HOSTILE.md W12.
    #[error("message {id} belongs to the fast extension, which was not agreed on")]
    FastNotAgreed { id: u8 },
    /// HOSTILE.md W12.
    #[error("{got} rejects of nothing requested, {max} are borne")]
    TooManyStrayRejects { got: u32, max: u32 },
    /// HOSTILE.md W10.
    #[error("{got} messages without use in one second, {max} are borne")]
    Flood { got: u32, max: u32 },
    /// Extended message although BEP 10 was not agreed on, or a handshake that is no dictionary.
    #[error("bad extension message {id}")]
    BadExtended { id: u8 },
}
