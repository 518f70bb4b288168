//! Metadata exchange: requesting the info dictionary from peers, piece by piece (BEP 9). Layer 1.
//! Which piece to ask whom, and the check against the info_hash, are the swarm's.

use super::bencode::{Dict, Item};
use super::extended::{ExtensionError, scan_dict};
use super::metainfo::METADATA_BYTES_MAX;

/// Bytes in a metadata piece, save the last (BEP 9).
pub const METADATA_PIECE_BYTES: u32 = 16_384;

/// The longest message read: a piece, and a dictionary that needs no 64 bytes but may hold keys we do not know.
pub const METADATA_MESSAGE_BYTES_MAX: usize = 16_384 + 1_024;

/// Pieces of the longest metadata.
const PIECES_MAX: u64 = (METADATA_BYTES_MAX as u64).div_ceil(METADATA_PIECE_BYTES as u64);

/// One `ut_metadata` message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataMessage<'a> {
    /// "Send me this piece." Inside the longest metadata, but not checked against ours.
    Request { piece: u32 },
    /// A piece, exactly as long as `total_bytes` demands of it.
    Data {
        piece: u32,
        total_bytes: u32,
        bytes: &'a [u8],
    },
    /// "I do not have it."
    Reject { piece: u32 },
    /// A message type nobody defined, to be ignored (BEP 9).
    Unknown,
}

/// Number of pieces of metadata with so many bytes.
pub const fn metadata_piece_count(total_bytes: u32) -> u32 {
    total_bytes.div_ceil(METADATA_PIECE_BYTES)
}

/// Bytes of one piece; `None` when the metadata has no such piece.
pub fn metadata_piece_bytes(total_bytes: u32, piece: u32) -> Option<u32> {
    let start = piece.checked_mul(METADATA_PIECE_BYTES)?;
    let left = total_bytes.checked_sub(start).filter(|left| *left > 0)?;
    Some(left.min(METADATA_PIECE_BYTES))
}

impl<'a> MetadataMessage<'a> {
    /// Reads the payload of an extension message that came under our id for `ut_metadata`.
    ///
    /// # Errors
    /// When it is over [`METADATA_MESSAGE_BYTES_MAX`], has no dictionary or a number out of range, or when a
    /// piece is not as long as it must be.
    pub fn parse(payload: &'a [u8]) -> Result<Self, ExtensionError> {
        let (dict, bytes) = scan_dict(payload, METADATA_MESSAGE_BYTES_MAX)?;
        let piece = || number(dict, "piece", PIECES_MAX - 1);
        Ok(match dict.int(b"msg_type") {
            Some(REQUEST) => MetadataMessage::Request { piece: piece()? },
            Some(DATA) => parse_data(dict, piece()?, bytes)?,
            Some(REJECT) => MetadataMessage::Reject { piece: piece()? },
            Some(_) => MetadataMessage::Unknown,
            None => {
                return Err(ExtensionError::BadNumber {
                    key: "msg_type",
                    max: u64::from(u8::MAX),
                });
            }
        })
    }

    /// Appends the payload; an unknown message has none.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (msg_type, piece, total_bytes, bytes) = match *self {
            MetadataMessage::Request { piece } => (REQUEST, piece, None, &[][..]),
            MetadataMessage::Data {
                piece,
                total_bytes,
                bytes,
            } => (DATA, piece, Some(total_bytes), bytes),
            MetadataMessage::Reject { piece } => (REJECT, piece, None, &[][..]),
            MetadataMessage::Unknown => return,
        };
        let mut entries: Vec<(&[u8], Item<'_>)> = vec![
            (b"msg_type", Item::Int(msg_type)),
            (b"piece", Item::Int(piece.into())),
        ];
        entries.extend(total_bytes.map(|total| (&b"total_size"[..], Item::Int(total.into()))));
        out.extend(Item::dict(entries).encode());
        out.extend_from_slice(bytes);
    }
}

const REQUEST: i64 = 0;
const DATA: i64 = 1;
const REJECT: i64 = 2;

fn parse_data<'a>(
    dict: Dict<'_>,
    piece: u32,
    bytes: &'a [u8],
) -> Result<MetadataMessage<'a>, ExtensionError> {
    let total_bytes = number(dict, "total_size", METADATA_BYTES_MAX as u64)?;
    let last_piece = u64::from(metadata_piece_count(total_bytes).saturating_sub(1));
    let expected = metadata_piece_bytes(total_bytes, piece).ok_or(ExtensionError::BadNumber {
        key: "piece",
        max: last_piece,
    })?;
    if u32::try_from(bytes.len()) != Ok(expected) {
        return Err(ExtensionError::BadLength {
            expected_bytes: usize::try_from(expected).unwrap_or(usize::MAX),
            got_bytes: bytes.len(),
        });
    }
    Ok(MetadataMessage::Data {
        piece,
        total_bytes,
        bytes,
    })
}

fn number(dict: Dict<'_>, key: &'static str, max: u64) -> Result<u32, ExtensionError> {
    let value = dict.int(key.as_bytes());
    let value = value.and_then(|value| u32::try_from(value).ok());
    value
        .filter(|value| u64::from(*value) <= max)
        .ok_or(ExtensionError::BadNumber { key, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn golden(message: MetadataMessage<'_>, wire: &[u8]) {
        let mut out = Vec::new();
        message.encode(&mut out);
        assert_eq!(out, wire);
        assert_eq!(MetadataMessage::parse(wire), Ok(message));
        for end in 0..wire.len() {
            assert!(MetadataMessage::parse(&wire[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn messages_match_the_golden_bytes_of_bep_9_and_no_truncation_is_taken() {
        golden(
            MetadataMessage::Request { piece: 0 },
            b"d8:msg_typei0e5:piecei0ee",
        );
        golden(
            MetadataMessage::Reject { piece: 3 },
            b"d8:msg_typei2e5:piecei3ee",
        );
        golden(
            MetadataMessage::Data {
                piece: 1,
                total_bytes: 16_388,
                bytes: b"tail",
            },
            b"d8:msg_typei1e5:piecei1e10:total_sizei16388eetail",
        );
    }

    #[test]
    fn full_piece_fits_and_a_longer_message_does_not() {
        let bytes = [7; METADATA_PIECE_BYTES as usize];
        let data = MetadataMessage::Data {
            piece: 0,
            total_bytes: 20_000,
            bytes: &bytes,
        };
        let mut out = Vec::new();
        data.encode(&mut out);
        assert_eq!(MetadataMessage::parse(&out), Ok(data));
        out.resize(METADATA_MESSAGE_BYTES_MAX + 1, 0);
        assert!(matches!(
            MetadataMessage::parse(&out),
            Err(ExtensionError::TooLong { .. })
        ));
    }

    #[test]
    fn data_of_a_wrong_length_or_place_is_an_error() {
        let parse = |text: &'static str| MetadataMessage::parse(text.as_bytes()).unwrap_err();
        assert_eq!(
            parse("d8:msg_typei1e5:piecei0e10:total_sizei4eefive!"),
            ExtensionError::BadLength {
                expected_bytes: 4,
                got_bytes: 5
            }
        );
        assert_eq!(
            parse("d8:msg_typei1e5:piecei1e10:total_sizei4eetail"),
            ExtensionError::BadNumber {
                key: "piece",
                max: 0
            }
        );
        for total in ["0", "-1", "31457281", "1152921504606846976"] {
            let text = format!("d8:msg_typei1e5:piecei0e10:total_sizei{total}ee");
            assert!(MetadataMessage::parse(text.as_bytes()).is_err(), "{total}");
        }
    }

    #[test]
    fn piece_numbers_outside_the_longest_metadata_are_errors() {
        for piece in ["-1", "1920", "4294967296"] {
            let text = format!("d8:msg_typei0e5:piecei{piece}ee");
            let error = ExtensionError::BadNumber {
                key: "piece",
                max: 1919,
            };
            assert_eq!(MetadataMessage::parse(text.as_bytes()), Err(error));
        }
    }

    #[test]
    fn unknown_message_types_are_told_apart_from_damage() {
        assert_eq!(
            MetadataMessage::parse(b"d8:msg_typei9ee"),
            Ok(MetadataMessage::Unknown)
        );
        assert!(MetadataMessage::parse(b"d5:piecei0ee").is_err());
    }

    #[test]
    fn piece_arithmetic_covers_the_whole_metadata() {
        for total in [1, 16_383, 16_384, 16_385, 100_000] {
            let pieces = 0..metadata_piece_count(total);
            let sum: u32 = pieces
                .map(|p| metadata_piece_bytes(total, p).unwrap())
                .sum();
            assert_eq!(sum, total);
            assert_eq!(
                metadata_piece_bytes(total, metadata_piece_count(total)),
                None
            );
        }
        assert_eq!(metadata_piece_bytes(u32::MAX, u32::MAX), None);
    }
}
