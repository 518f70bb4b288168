//! A set of pieces in the wire's bit order (BEP 3, "bitfield").

use super::PieceIndex;

/// One bit a piece, the high bit of the first byte being piece 0; spare bits are always zero.
#[derive(Clone, PartialEq, Eq)]
pub struct Bitfield {
    bytes: Vec<u8>,
    len: u32,
    ones: u32,
}

/// The bytes are no bitfield of that many pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitfieldError {
    /// Too short or too long.
    #[error("bitfield of {got_bytes} bytes where {expected_bytes} were expected")]
    BadLength {
        expected_bytes: usize,
        got_bytes: usize,
    },
    /// A bit past the last piece is set.
    #[error("a spare bit is set")]
    SpareBitSet,
}

impl Bitfield {
    /// `len` pieces, none of them set.
    pub fn new(len: u32) -> Self {
        Bitfield {
            bytes: vec![0; byte_count(len)],
            len,
            ones: 0,
        }
    }

    /// `len` pieces, all of them set.
    pub fn full(len: u32) -> Self {
        let mut bytes = vec![0xff; byte_count(len)];
        if let Some(last) = bytes.last_mut() {
            *last &= !spare_mask(len);
        }
        Bitfield {
            bytes,
            len,
            ones: len,
        }
    }

    /// Checks and copies the payload of a `bitfield` message.
    ///
    /// # Errors
    /// A wrong length or a set spare bit (HOSTILE.md W3).
    pub fn from_wire(bytes: &[u8], len: u32) -> Result<Self, BitfieldError> {
        let expected_bytes = byte_count(len);
        if bytes.len() != expected_bytes {
            return Err(BitfieldError::BadLength {
                expected_bytes,
                got_bytes: bytes.len(),
            });
        }
        if bytes.last().is_some_and(|last| last & spare_mask(len) != 0) {
            return Err(BitfieldError::SpareBitSet);
        }
        let ones = bytes.iter().map(|byte| byte.count_ones()).sum();
        Ok(Bitfield {
            bytes: bytes.to_vec(),
            len,
            ones,
        })
    }

    /// The payload of a `bitfield` message.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of pieces, set or not.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// True without any piece at all.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of pieces set.
    pub const fn count(&self) -> u32 {
        self.ones
    }

    /// True when every piece is set.
    pub const fn is_full(&self) -> bool {
        self.ones == self.len
    }

    /// True when the piece is set; false past the end.
    #[inline]
    pub fn has(&self, piece: PieceIndex) -> bool {
        piece.get() < self.len && self.bytes[piece.as_usize() / 8] & mask(piece) != 0
    }

    /// Sets a piece; true when it was not set before. Past the end nothing happens.
    pub fn set(&mut self, piece: PieceIndex) -> bool {
        if piece.get() >= self.len || self.has(piece) {
            return false;
        }
        self.bytes[piece.as_usize() / 8] |= mask(piece);
        self.ones += 1;
        true
    }

    /// Clears a piece; true when it was set before.
    pub fn clear(&mut self, piece: PieceIndex) -> bool {
        if !self.has(piece) {
            return false;
        }
        self.bytes[piece.as_usize() / 8] &= !mask(piece);
        self.ones -= 1;
        true
    }

    /// How many pieces are set here and in `other` and not in `without`, all of the same torrent.
    pub fn count_common(&self, other: &Bitfield, without: &Bitfield) -> u32 {
        let pairs = words(&self.bytes).zip(words(&other.bytes));
        let common = pairs.map(|(own, other)| own & other);
        let left = common.zip(words(&without.bytes));
        left.map(|(common, without)| (common & !without).count_ones())
            .sum()
    }

    /// The pieces set, in order.
    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        ones(self.bytes.iter().copied())
    }

    /// The pieces set here and not in `other`, which is of the same torrent, in order.
    pub fn iter_without<'a>(
        &'a self,
        other: &'a Bitfield,
    ) -> impl Iterator<Item = PieceIndex> + 'a {
        ones(
            self.bytes
                .iter()
                .zip(&other.bytes)
                .map(|(own, other)| own & !other),
        )
    }
}

impl std::fmt::Debug for Bitfield {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bitfield({} of {})", self.ones, self.len)
    }
}

/// Eight bytes at a time, zeros behind the last.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let (whole, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let whole = whole.iter().copied();
    whole.chain([last]).map(u64::from_ne_bytes)
}

/// The positions of the bits that are set.
fn ones(bytes: impl Iterator<Item = u8>) -> impl Iterator<Item = PieceIndex> {
    bytes
        .enumerate()
        .filter(|(_, byte)| *byte != 0)
        .flat_map(|(at, byte)| {
            (0..8u32)
                .filter(move |bit| byte & (0x80 >> bit) != 0)
                .map(move |bit| PieceIndex::new(at as u32 * 8 + bit))
        })
}

fn byte_count(len: u32) -> usize {
    len.div_ceil(8) as usize
}

#[inline]
fn mask(piece: PieceIndex) -> u8 {
    0x80 >> (piece.get() % 8)
}

/// The bits of the last byte that belong to no piece.
fn spare_mask(len: u32) -> u8 {
    match len % 8 {
        0 => 0,
        used => 0xff >> used,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_bytes_round_trip_and_count() {
        let field = Bitfield::from_wire(&[0b1010_0000, 0b1000_0000], 9).unwrap();
        let set: Vec<u32> = field.iter().map(PieceIndex::get).collect();
        assert_eq!(set, [0, 2, 8]);
        assert_eq!(field.count(), 3);
        assert_eq!(field.as_bytes(), [0b1010_0000, 0b1000_0000]);
        let other = Bitfield::from_wire(&[0b1100_0000, 0], 9).unwrap();
        let only_here: Vec<u32> = field.iter_without(&other).map(PieceIndex::get).collect();
        assert_eq!(only_here, [2, 8]);
    }

    #[test]
    fn what_two_have_and_a_third_has_not_is_counted() {
        let mut rng = crate::base::Rng::new(5);
        for len in [1, 7, 8, 63, 64, 65, 700] {
            let mut some = || {
                let mut field = Bitfield::new(len);
                (0..len).for_each(|piece| _ = rng.chance(50) && field.set(PieceIndex::new(piece)));
                field
            };
            let (own, other, without) = (some(), some(), some());
            let is_common = |piece: &PieceIndex| other.has(*piece) && !without.has(*piece);
            let one_by_one = own.iter().filter(is_common).count() as u32;
            assert_eq!(own.count_common(&other, &without), one_by_one, "of {len}");
        }
    }

    #[test]
    fn wrong_length_and_spare_bits_are_errors() {
        let length = BitfieldError::BadLength {
            expected_bytes: 2,
            got_bytes: 1,
        };
        assert_eq!(Bitfield::from_wire(&[0], 9), Err(length));
        assert_eq!(
            Bitfield::from_wire(&[0, 0b0100_0000], 9),
            Err(BitfieldError::SpareBitSet)
        );
    }

    #[test]
    fn set_and_clear_report_changes_and_stay_inside() {
        let mut field = Bitfield::new(9);
        assert!(field.set(PieceIndex::new(8)));
        assert!(!field.set(PieceIndex::new(8)));
        assert!(!field.set(PieceIndex::new(9)));
        assert!(field.clear(PieceIndex::new(8)));
        assert!(!field.clear(PieceIndex::new(8)));
        assert_eq!(Bitfield::full(9).as_bytes(), [0xff, 0x80]);
        assert!(Bitfield::full(9).is_full());
    }
}
