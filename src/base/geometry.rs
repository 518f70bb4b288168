//! All arithmetic between pieces, blocks and bytes, in one value.

use std::sync::Arc;

/// Bytes in a block: what one `request` asks for, save at the end of a piece (BEP 3).
pub const BLOCK_BYTES: u32 = 16_384;

/// Bytes in a segment, the unit of assembly memory: a piece is cut into segments from its start, the last one
/// shorter (a piece below 256 KiB is one segment).
pub const SEGMENT_BYTES: u32 = 262_144;

/// The longest piece accepted; longer ones exist only in hostile files (HOSTILE.md T5).
pub const PIECE_LENGTH_BYTES_MAX: u32 = 512 * 1024 * 1024;

/// Number of a piece, from 0. Whether it lies inside a torrent is [`Geometry::piece`]'s answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    /// Wraps a number that the caller knows to be a piece.
    #[inline]
    pub const fn new(index: u32) -> Self {
        PieceIndex(index)
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The number, for indexing.
    #[inline]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

/// Position of one block inside the torrent (the fields of BEP 3's `request`).
///
/// Built only by [`Geometry`], so `begin + length` lies inside the piece and `length` is in `1..=16_384`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRef {
    piece: PieceIndex,
    begin: u32,
    length: u32,
}

impl BlockRef {
    /// The piece it lies in.
    pub const fn piece(self) -> PieceIndex {
        self.piece
    }

    /// Offset inside the piece, in bytes.
    pub const fn begin(self) -> u32 {
        self.begin
    }

    /// Length in bytes.
    pub const fn length(self) -> u32 {
        self.length
    }

    /// Offset inside the piece just behind the block, in bytes.
    pub const fn end(self) -> u32 {
        self.begin + self.length
    }
}

/// Total size and piece length of one torrent.
///
/// In a torrent of BitTorrent v1 only the last piece may be short. In one of v2 alone each file starts a piece, so the last
/// piece of every file may be, and the bytes behind it are no part of the torrent (BEP 52, "piece length").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Of data: without what lies between the files of a v2 torrent.
    total_bytes: u64,
    piece_length_bytes: u32,
    piece_count: u32,
    /// Pieces that are shorter than the piece length, in order, with their bytes; `None` when only the last may be.
    short: Option<Arc<[(u32, u32)]>>,
}

/// The numbers make no torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Zero, or above [`PIECE_LENGTH_BYTES_MAX`].
    #[error("piece length {got_bytes} is outside 1..={max_bytes}")]
    BadPieceLength { got_bytes: u64, max_bytes: u32 },
    /// The torrent holds no byte.
    #[error("the torrent is empty")]
    Empty,
    /// More pieces than the wire can number.
    #[error("{pieces} pieces are more than the protocol can number")]
    TooManyPieces { pieces: u64 },
}

impl Geometry {
    /// Checks the two numbers once; all later arithmetic relies on it.
    ///
    /// # Errors
    /// See [`GeometryError`].
    pub fn new(total_bytes: u64, piece_length_bytes: u64) -> Result<Self, GeometryError> {
        let piece_length_bytes = checked_piece_length(piece_length_bytes)?;
        if total_bytes == 0 {
            return Err(GeometryError::Empty);
        }
        Ok(Geometry {
            total_bytes,
            piece_length_bytes,
            piece_count: checked_count(total_bytes.div_ceil(u64::from(piece_length_bytes)))?,
            short: None,
        })
    }

    /// The geometry of files that each start a piece (BEP 52): their lengths in order, empty ones among them.
    ///
    /// # Errors
    /// See [`GeometryError`].
    pub fn of_aligned_files(
        lengths: impl IntoIterator<Item = u64>,
        piece_length_bytes: u64,
    ) -> Result<Self, GeometryError> {
        let piece_length_bytes = checked_piece_length(piece_length_bytes)?;
        let (mut total_bytes, mut piece_count, mut short) = (0_u64, 0, Vec::new());
        for length in lengths {
            let pieces = length.div_ceil(u64::from(piece_length_bytes));
            piece_count = checked_count(u64::from(piece_count) + pieces)?;
            total_bytes += length;
            let rest = length % u64::from(piece_length_bytes);
            if rest > 0 {
                // Below the piece length, and the file has a piece.
                short.push((piece_count - 1, rest as u32));
            }
        }
        if total_bytes == 0 {
            return Err(GeometryError::Empty);
        }
        Ok(Geometry {
            total_bytes,
            piece_length_bytes,
            piece_count,
            short: Some(short.into()),
        })
    }

    /// Whether each file starts a piece, as in a torrent of BitTorrent v2 alone.
    pub const fn is_aligned(&self) -> bool {
        self.short.is_some()
    }

    /// Where a file begins that comes behind `offset` in the torrent's byte stream.
    pub fn file_start(&self, offset: u64) -> u64 {
        match self.is_aligned() {
            true => offset.next_multiple_of(u64::from(self.piece_length_bytes)),
            false => offset,
        }
    }

    /// Bytes of data in the whole torrent.
    pub const fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Bytes in every piece that is not short.
    pub const fn piece_length_bytes(&self) -> u32 {
        self.piece_length_bytes
    }

    /// Number of pieces, at least 1.
    pub const fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// Checks a number from outside.
    pub fn piece(&self, index: u32) -> Option<PieceIndex> {
        (index < self.piece_count).then_some(PieceIndex(index))
    }

    /// All pieces in order.
    pub fn pieces(&self) -> impl DoubleEndedIterator<Item = PieceIndex> + use<> {
        (0..self.piece_count).map(PieceIndex)
    }

    /// Where the piece starts in the torrent's byte stream.
    pub fn piece_offset(&self, piece: PieceIndex) -> u64 {
        u64::from(piece.0) * u64::from(self.piece_length_bytes)
    }

    /// Bytes in this piece: the last, or the last of each file, may be shorter.
    pub fn piece_bytes(&self, piece: PieceIndex) -> u32 {
        if let Some(short) = &self.short {
            let found = short.binary_search_by_key(&piece.0, |(index, _)| *index);
            let found = found.ok().and_then(|at| short.get(at));
            return found.map_or(self.piece_length_bytes, |(_, bytes)| *bytes);
        }
        let left = self.total_bytes.saturating_sub(self.piece_offset(piece));
        u32::try_from(left).map_or(self.piece_length_bytes, |left| {
            left.min(self.piece_length_bytes)
        })
    }

    /// The pieces that may have fewer bytes than the others.
    pub fn short_pieces(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        let aligned = self.short.as_deref();
        let last = aligned.is_none().then(|| self.piece_count - 1);
        let short = aligned.unwrap_or_default().iter().map(|(piece, _)| *piece);
        short.chain(last).map(PieceIndex)
    }

    /// Number of blocks in this piece: the last block may be shorter.
    pub fn block_count(&self, piece: PieceIndex) -> u32 {
        self.piece_bytes(piece).div_ceil(BLOCK_BYTES)
    }

    /// Number of segments in this piece: the last segment may be shorter.
    pub fn segment_count(&self, piece: PieceIndex) -> u32 {
        self.piece_bytes(piece).div_ceil(SEGMENT_BYTES)
    }

    /// Bytes in the `segment`th segment of the piece; 0 past its end.
    pub fn segment_bytes(&self, piece: PieceIndex, segment: u32) -> u32 {
        let begin = u64::from(segment) * u64::from(SEGMENT_BYTES);
        let left = u64::from(self.piece_bytes(piece)).saturating_sub(begin);
        u32::try_from(left).map_or(SEGMENT_BYTES, |left| left.min(SEGMENT_BYTES))
    }

    /// The `block`th block of the piece, if there is one.
    pub fn block(&self, piece: PieceIndex, block: u32) -> Option<BlockRef> {
        let begin = block.checked_mul(BLOCK_BYTES)?;
        let left = self
            .piece_bytes(piece)
            .checked_sub(begin)
            .filter(|left| *left > 0)?;
        Some(BlockRef {
            piece,
            begin,
            length: left.min(BLOCK_BYTES),
        })
    }

    /// Number of the block that starts at `begin`, if one starts there.
    pub fn block_index(&self, piece: PieceIndex, begin: u32) -> Option<u32> {
        (begin.is_multiple_of(BLOCK_BYTES) && begin < self.piece_bytes(piece))
            .then_some(begin / BLOCK_BYTES)
    }

    /// Checks a range from outside: inside its piece and `1..=16_384` bytes long (HOSTILE.md W5, W6).
    /// It need not start at a block's border.
    pub fn check_range(&self, index: u32, begin: u32, length: u32) -> Option<BlockRef> {
        let piece = self.piece(index)?;
        let end = begin.checked_add(length)?;
        let fits = (1..=BLOCK_BYTES).contains(&length) && end <= self.piece_bytes(piece);
        fits.then_some(BlockRef {
            piece,
            begin,
            length,
        })
    }
}

fn checked_piece_length(got_bytes: u64) -> Result<u32, GeometryError> {
    u32::try_from(got_bytes)
        .ok()
        .filter(|length| (1..=PIECE_LENGTH_BYTES_MAX).contains(length))
        .ok_or(GeometryError::BadPieceLength {
            got_bytes,
            max_bytes: PIECE_LENGTH_BYTES_MAX,
        })
}

fn checked_count(pieces: u64) -> Result<u32, GeometryError> {
    // i32::MAX keeps every index and count clear of sign trouble in other clients.
    u32::try_from(pieces)
        .ok()
        .filter(|count| *count <= i32::MAX as u32)
        .ok_or(GeometryError::TooManyPieces { pieces })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_aligned_file_starts_a_piece_and_may_end_in_a_short_one() {
        let g = Geometry::of_aligned_files([40_000, 0, 16_384, 1], 16_384).unwrap();
        let bytes: Vec<u32> = g.pieces().map(|piece| g.piece_bytes(piece)).collect();
        assert_eq!(bytes, [16_384, 16_384, 7_232, 16_384, 1]);
        assert_eq!(g.total_bytes(), 40_000 + 16_384 + 1);
        assert_eq!(g.file_start(40_000), 3 * 16_384);
        assert!(g.check_range(2, 7_000, 232).is_some() && g.check_range(2, 7_000, 233).is_none());
        let empty = Geometry::of_aligned_files([0, 0], 16_384);
        assert_eq!(empty, Err(GeometryError::Empty));
        let many = Geometry::of_aligned_files([u64::from(u32::MAX) * 16_384, 1], 16_384);
        assert!(matches!(many, Err(GeometryError::TooManyPieces { .. })));
    }

    #[test]
    fn last_piece_and_last_block_are_short() {
        let g = Geometry::new(100_001, 50_000).unwrap();
        assert_eq!(g.piece_count(), 3);
        let last = g.piece(2).unwrap();
        assert_eq!(g.piece_bytes(last), 1);
        assert_eq!(g.block(last, 0).unwrap().length(), 1);
        assert_eq!(g.block(last, 1), None);
        let first = g.piece(0).unwrap();
        assert_eq!(g.block_count(first), 4);
        assert_eq!(
            g.block(first, 3).unwrap().length(),
            50_000 - 3 * BLOCK_BYTES
        );
        assert_eq!(g.piece(3), None);
    }

    #[test]
    fn ranges_from_outside_are_checked_without_overflow() {
        let g = Geometry::new(100_000, 50_000).unwrap();
        assert!(g.check_range(1, 49_999, 1).is_some());
        assert!(g.check_range(1, 49_999, 2).is_none());
        assert!(g.check_range(2, 0, 1).is_none());
        assert!(g.check_range(0, 0, 0).is_none());
        assert!(g.check_range(0, u32::MAX, 2).is_none());
        assert!(g.check_range(0, 0, BLOCK_BYTES + 1).is_none());
    }

    #[test]
    fn impossible_numbers_are_errors() {
        assert_eq!(Geometry::new(0, 1), Err(GeometryError::Empty));
        assert!(Geometry::new(1, 0).is_err());
        assert!(Geometry::new(1, u64::from(PIECE_LENGTH_BYTES_MAX) + 1).is_err());
        assert!(Geometry::new(u64::MAX, 1).is_err());
    }

    #[test]
    fn sizes_past_4_gib_work() {
        let g = Geometry::new(5 << 30, 1 << 20).unwrap();
        let last = g.piece(5 * 1024 - 1).unwrap();
        assert_eq!(g.piece_offset(last), (5 << 30) - (1 << 20));
        assert_eq!(g.piece_bytes(last), 1 << 20);
    }
}
