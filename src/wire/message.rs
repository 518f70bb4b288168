//! The messages of the peer protocol after the handshake: BEP 3, BEP 6, BEP 10. Layer 1.
//! Payload of `piece` is not here: the decoder hands it out as it comes.

/// Where the fields of `request`, `cancel`, `reject` and the header of `piece` point, unchecked as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RawBlock {
    pub piece: u32,
    pub begin: u32,
    pub length: u32,
}

/// One message, borrowed from the bytes it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    KeepAlive,
    Choke,
    Unchoke,
    Interested,
    NotInterested,
    Have {
        piece: u32,
    },
    Bitfield {
        bytes: &'a [u8],
    },
    Request(RawBlock),
    Cancel(RawBlock),
    /// BEP 5 `port`.
    Port {
        port: u16,
    },
    /// BEP 6.
    SuggestPiece {
        piece: u32,
    },
    HaveAll,
    HaveNone,
    RejectRequest(RawBlock),
    AllowedFast {
        piece: u32,
    },
    /// BEP 10; `id` 0 is the extension handshake.
    Extended {
        id: u8,
        payload: &'a [u8],
    },
    /// An id nobody defined (HOSTILE.md W11).
    Unknown {
        id: u8,
    },
}
