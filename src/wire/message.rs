//! The messages of the peer protocol after the handshake: BEP 3, BEP 6, BEP 10, BEP 52. Layer 1.
//! Payload of `piece` is not here: the decoder hands it out as it comes.

use super::merkle::Node;

/// Where the fields of `request`, `cancel`, `reject` and the header of `piece` point, unchecked as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RawBlock {
    pub piece: u32,
    pub begin: u32,
    pub length: u32,
}

/// Which hashes of a file's tree are asked for (the fields of BEP 52's `hash request`), unchecked as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashRange {
    /// Of the file's tree.
    pub root: Node,
    /// Layers between the hashes and the leaves.
    pub base_layer: u32,
    /// Of the first hash in its layer.
    pub index: u32,
    /// Hashes.
    pub length: u32,
    /// Layers above for which there is to be a proof.
    pub proof_layers: u32,
}

impl HashRange {
    /// How many hashes prove that these lie below the root: the layers that follow from the hashes alone need none.
    pub fn uncle_count(&self) -> u32 {
        let implied = self.length.checked_ilog2().unwrap_or(0).saturating_sub(1);
        self.proof_layers.saturating_sub(implied)
    }

    fn to_bytes(self) -> [u8; HASH_RANGE_BYTES] {
        let mut bytes = [0; HASH_RANGE_BYTES];
        bytes[..32].copy_from_slice(&self.root);
        let numbers = [self.base_layer, self.index, self.length, self.proof_layers];
        for (place, number) in bytes[32..].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }
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
    /// BEP 52.
    HashRequest(HashRange),
    /// BEP 52; the hashes one behind the other, then those that prove them.
    Hashes {
        range: HashRange,
        hashes: &'a [u8],
    },
    /// BEP 52.
    HashReject(HashRange),
    /// An id nobody defined (HOSTILE.md W11).
    Unknown {
        id: u8,
    },
}

/// In words, for the log: what may be long is named by its length.
impl std::fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Message::Bitfield { bytes } => write!(f, "bitfield of {} bytes", bytes.len()),
            Message::Extended { id, payload } => {
                write!(f, "extended {id} of {} bytes", payload.len())
            }
            Message::Hashes { hashes, .. } => write!(f, "hashes of {} bytes", hashes.len()),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Message ids as they stand on the wire.
pub mod id {
    /// BEP 3.
    pub const CHOKE: u8 = 0;
    /// BEP 3.
    pub const UNCHOKE: u8 = 1;
    /// BEP 3.
    pub const INTERESTED: u8 = 2;
    /// BEP 3.
    pub const NOT_INTERESTED: u8 = 3;
    /// BEP 3.
    pub const HAVE: u8 = 4;
    /// BEP 3.
    pub const BITFIELD: u8 = 5;
    /// BEP 3.
    pub const REQUEST: u8 = 6;
    /// BEP 3.
    pub const PIECE: u8 = 7;
    /// BEP 3.
    pub const CANCEL: u8 = 8;
    /// BEP 5.
    pub const PORT: u8 = 9;
    /// BEP 6.
    pub const SUGGEST_PIECE: u8 = 13;
    /// BEP 6.
    pub const HAVE_ALL: u8 = 14;
    /// BEP 6.
    pub const HAVE_NONE: u8 = 15;
    /// BEP 6.
    pub const REJECT_REQUEST: u8 = 16;
    /// BEP 6.
    pub const ALLOWED_FAST: u8 = 17;
    /// BEP 10.
    pub const EXTENDED: u8 = 20;
    /// BEP 52.
    pub const HASH_REQUEST: u8 = 21;
    /// BEP 52.
    pub const HASHES: u8 = 22;
    /// BEP 52.
    pub const HASH_REJECT: u8 = 23;
}

/// Bytes of the fields of a `hash request` (BEP 52).
pub const HASH_RANGE_BYTES: usize = 48;

/// Bytes of a `piece` message before its payload: length prefix, id, piece, begin (BEP 3).
pub const PIECE_HEADER_BYTES: usize = 13;

/// What a `piece` message's length prefix counts beside the payload: id, piece, begin (BEP 3).
pub const PIECE_OVERHEAD_BYTES: u32 = 9;

impl Message<'_> {
    /// The id on the wire; a keep-alive has none.
    pub const fn id(&self) -> Option<u8> {
        Some(match self {
            Message::KeepAlive => return None,
            Message::Choke => id::CHOKE,
            Message::Unchoke => id::UNCHOKE,
            Message::Interested => id::INTERESTED,
            Message::NotInterested => id::NOT_INTERESTED,
            Message::Have { .. } => id::HAVE,
            Message::Bitfield { .. } => id::BITFIELD,
            Message::Request(_) => id::REQUEST,
            Message::Cancel(_) => id::CANCEL,
            Message::Port { .. } => id::PORT,
            Message::SuggestPiece { .. } => id::SUGGEST_PIECE,
            Message::HaveAll => id::HAVE_ALL,
            Message::HaveNone => id::HAVE_NONE,
            Message::RejectRequest(_) => id::REJECT_REQUEST,
            Message::AllowedFast { .. } => id::ALLOWED_FAST,
            Message::Extended { .. } => id::EXTENDED,
            Message::HashRequest(_) => id::HASH_REQUEST,
            Message::Hashes { .. } => id::HASHES,
            Message::HashReject(_) => id::HASH_REJECT,
            Message::Unknown { id } => *id,
        })
    }
}

/// Appends the message as it goes over the wire, length prefix included.
///
/// An [`Message::Unknown`] is written with an empty body.
///
/// # Panics
/// When a bitfield or an extension payload of ours is longer than a length prefix can say (4 GiB).
pub fn encode(message: &Message<'_>, out: &mut Vec<u8>) {
    match *message {
        Message::KeepAlive => out.extend_from_slice(&[0; 4]),
        Message::Choke
        | Message::Unchoke
        | Message::Interested
        | Message::NotInterested
        | Message::HaveAll
        | Message::HaveNone
        | Message::Unknown { .. } => put(message, [&[], &[]], out),
        Message::Have { piece }
        | Message::SuggestPiece { piece }
        | Message::AllowedFast { piece } => put(message, [&piece.to_be_bytes(), &[]], out),
        Message::Port { port } => put(message, [&port.to_be_bytes(), &[]], out),
        Message::Request(block) | Message::Cancel(block) | Message::RejectRequest(block) => {
            put(message, [&block_bytes(block), &[]], out);
        }
        Message::Bitfield { bytes } => put(message, [bytes, &[]], out),
        Message::Extended { id, payload } => put(message, [&[id], payload], out),
        Message::HashRequest(range) | Message::HashReject(range) => {
            put(message, [&range.to_bytes(), &[]], out);
        }
        Message::Hashes { range, hashes } => put(message, [&range.to_bytes(), hashes], out),
    }
}

/// The 13 bytes before a block's payload of `length` bytes (BEP 3 `piece`).
///
/// # Panics
/// When `length` is so near to 2³² that the length prefix cannot count it: no block of ours is.
pub fn piece_header(piece: u32, begin: u32, length: u32) -> [u8; PIECE_HEADER_BYTES] {
    let mut header = [0; PIECE_HEADER_BYTES];
    header[..4].copy_from_slice(&(length + PIECE_OVERHEAD_BYTES).to_be_bytes());
    header[4] = id::PIECE;
    header[5..9].copy_from_slice(&piece.to_be_bytes());
    header[9..].copy_from_slice(&begin.to_be_bytes());
    header
}

fn put(message: &Message<'_>, body: [&[u8]; 2], out: &mut Vec<u8>) {
    let length = 1 + body[0].len() + body[1].len();
    let length = u32::try_from(length).expect("our own messages are far below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend(message.id());
    out.extend_from_slice(body[0]);
    out.extend_from_slice(body[1]);
}

fn block_bytes(block: RawBlock) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&block.piece.to_be_bytes());
    bytes[4..8].copy_from_slice(&block.begin.to_be_bytes());
    bytes[8..].copy_from_slice(&block.length.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: RawBlock = RawBlock {
        piece: 1,
        begin: 0x4000,
        length: 0x4000,
    };

    #[track_caller]
    fn golden(message: Message<'_>, wire: &[u8]) {
        let mut out = vec![0xee];
        encode(&message, &mut out);
        assert_eq!(out[0], 0xee, "encode appends");
        assert_eq!(&out[1..], wire, "{message:?}");
    }

    #[test]
    fn messages_without_a_body_match_their_golden_bytes() {
        golden(Message::KeepAlive, &[0, 0, 0, 0]);
        golden(Message::Choke, &[0, 0, 0, 1, 0]);
        golden(Message::Unchoke, &[0, 0, 0, 1, 1]);
        golden(Message::Interested, &[0, 0, 0, 1, 2]);
        golden(Message::NotInterested, &[0, 0, 0, 1, 3]);
        golden(Message::HaveAll, &[0, 0, 0, 1, 14]);
        golden(Message::HaveNone, &[0, 0, 0, 1, 15]);
        golden(Message::Unknown { id: 99 }, &[0, 0, 0, 1, 99]);
    }

    #[test]
    fn messages_with_numbers_match_their_golden_bytes() {
        let piece = 0x0102_0304;
        golden(Message::Have { piece }, &[0, 0, 0, 5, 4, 1, 2, 3, 4]);
        golden(
            Message::SuggestPiece { piece },
            &[0, 0, 0, 5, 13, 1, 2, 3, 4],
        );
        golden(
            Message::AllowedFast { piece },
            &[0, 0, 0, 5, 17, 1, 2, 3, 4],
        );
        golden(Message::Port { port: 6881 }, &[0, 0, 0, 3, 9, 0x1a, 0xe1]);
        let with_id = |id| [0, 0, 0, 13, id, 0, 0, 0, 1, 0, 0, 0x40, 0, 0, 0, 0x40, 0];
        golden(Message::Request(BLOCK), &with_id(6));
        golden(Message::Cancel(BLOCK), &with_id(8));
        golden(Message::RejectRequest(BLOCK), &with_id(16));
    }

    #[test]
    fn messages_with_bytes_match_their_golden_bytes() {
        golden(
            Message::Bitfield {
                bytes: &[0xff, 0x80],
            },
            &[0, 0, 0, 3, 5, 0xff, 0x80],
        );
        golden(
            Message::Extended {
                id: 3,
                payload: b"de",
            },
            &[0, 0, 0, 4, 20, 3, b'd', b'e'],
        );
    }

    #[test]
    fn hash_messages_match_their_golden_bytes() {
        let range = HashRange {
            root: [0xab; 32],
            base_layer: 2,
            index: 512,
            length: 512,
            proof_layers: 11,
        };
        assert_eq!(range.uncle_count(), 3);
        let mut wire = vec![0, 0, 0, 49, 21];
        wire.extend([0xab; 32]);
        wire.extend([0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 11]);
        golden(Message::HashRequest(range), &wire);
        wire[4] = 23;
        golden(Message::HashReject(range), &wire);
        (wire[3], wire[4]) = (51, 22);
        wire.extend([7, 8]);
        let hashes = &[7, 8];
        golden(Message::Hashes { range, hashes }, &wire);
    }

    #[test]
    fn piece_header_matches_its_golden_bytes() {
        assert_eq!(
            piece_header(1, 0x4000, 0x4000),
            [0, 0, 0x40, 9, 7, 0, 0, 0, 1, 0, 0, 0x40, 0]
        );
    }
}
