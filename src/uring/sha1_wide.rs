//! SHA-1 of sixteen streams at once with AVX-512 (layer 4).
//!
//! One register holds the same word of sixteen streams, so a round costs the same for all of them as for one. Rotations and
//! the three-way functions of SHA-1 are single instructions there. It pays once several pieces wait: [`pays_from`] tells
//! from how many on, by trying both ways once on the processor at hand.

/// Streams hashed at once at most.
pub const WIDTH: usize = 16;

const BLOCK_BYTES: usize = 64;

pub use kernel::{compress, is_here};

/// Hashes whole blocks of up to four streams some other way; what [`pays_from`] compares with.
pub type Narrow = fn(&mut [[u32; 5]; NARROW], [&[u8]; NARROW]);

/// Streams of the other way.
pub const NARROW: usize = 4;

/// The number of streams from which on [`compress`] is faster than the other way; `None` when it never is.
pub fn pays_from(narrow: Option<Narrow>) -> Option<usize> {
    if !is_here() {
        return None;
    }
    let Some(narrow) = narrow else {
        return Some(1);
    };
    // Fits the first-level cache with both; long enough for the clock, short enough for nobody to notice (0.2 ms).
    let bytes = [0x5a; 16 * BLOCK_BYTES];
    let wide_ns = fastest_ns(|| {
        let mut states = [[1; 5]; WIDTH];
        compress(&mut states, &[&bytes[..]; WIDTH]);
        states[0][0]
    });
    let narrow_ns = fastest_ns(|| {
        let mut states = [[1; 5]; NARROW];
        narrow(&mut states, [&bytes[..]; NARROW]);
        states[0][0]
    });
    // `narrow_ns` for each four streams, begun ones included, against `wide_ns` for up to sixteen.
    (1..=WIDTH).find(|streams| narrow_ns * streams.div_ceil(NARROW) as u64 > wide_ns)
}

/// The least time of several tries: what disturbs only adds.
fn fastest_ns(mut try_once: impl FnMut() -> u32) -> u64 {
    let mut least = u64::MAX;
    for _ in 0..16 {
        let start = std::time::Instant::now();
        std::hint::black_box(try_once());
        let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        least = least.min(took.max(1));
    }
    least
}

#[cfg(target_arch = "x86_64")]
mod kernel {
    use std::arch::x86_64::*;

    use super::{BLOCK_BYTES, WIDTH};

    /// Whether the processor and the system have what [`compress`] needs.
    pub fn is_here() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
    }

    /// Hashes the whole blocks that all streams have.
    ///
    /// # Panics
    ///
    /// If there are more streams than [`WIDTH`], none, or not a state for each, or [`is_here`] is false.
    pub fn compress(states: &mut [[u32; 5]], streams: &[&[u8]]) {
        assert!(is_here(), "the processor has no AVX-512");
        assert_eq!(states.len(), streams.len());
        // SAFETY: the processor has the instructions.
        unsafe { rounds(states, streams) }
    }

    /// The state of sixteen streams, word by word.
    type Words = [__m512i; 5];

    #[target_feature(enable = "avx512f,avx512bw")]
    fn rounds(states: &mut [[u32; 5]], streams: &[&[u8]]) {
        assert!((1..=WIDTH).contains(&streams.len()));
        // Places without a stream hash the first one once more.
        let mut all = [streams[0]; WIDTH];
        all[..streams.len()].copy_from_slice(streams);
        let blocks = all.iter().map(|stream| stream.len() / BLOCK_BYTES).min();
        let mut h = gather(states);
        for block in 0..blocks.unwrap_or(0) {
            let start = block * BLOCK_BYTES;
            let mut words = [_mm512_setzero_si512(); WIDTH];
            for (words, stream) in words.iter_mut().zip(&all) {
                *words = load(&stream[start..start + BLOCK_BYTES]);
            }
            h = block_of_each(h, transpose(words));
        }
        scatter(h, states);
    }

    /// FIPS 180-4, 6.1.2, of one block of each stream; `w` are the words of the blocks.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn block_of_each(h: Words, mut w: [__m512i; 16]) -> Words {
        let [mut a, mut b, mut c, mut d, mut e] = h;
        // `$mix` is the truth table of the function of b, c and d.
        macro_rules! twenty {
            ($first:literal, $mix:literal, $constant:literal) => {
                let constant = _mm512_set1_epi32(u32::cast_signed($constant));
                for t in $first..$first + 20_usize {
                    if t >= 16 {
                        let older = _mm512_xor_si512(w[(t - 14) % 16], w[t % 16]);
                        let mixed = _mm512_ternarylogic_epi32::<0x96>(
                            w[(t - 3) % 16],
                            w[(t - 8) % 16],
                            older,
                        );
                        w[t % 16] = _mm512_rol_epi32::<1>(mixed);
                    }
                    let mix = _mm512_ternarylogic_epi32::<$mix>(b, c, d);
                    let known = _mm512_add_epi32(_mm512_add_epi32(w[t % 16], constant), e);
                    let sum = _mm512_add_epi32(known, mix);
                    (e, d, c, b) = (d, c, _mm512_rol_epi32::<30>(b), a);
                    a = _mm512_add_epi32(sum, _mm512_rol_epi32::<5>(a));
                }
            };
        }
        twenty!(0, 0xca, 0x5a82_7999);
        twenty!(20, 0x96, 0x6ed9_eba1);
        twenty!(40, 0xe8, 0x8f1b_bcdc);
        twenty!(60, 0x96, 0xca62_c1d6);
        [
            _mm512_add_epi32(h[0], a),
            _mm512_add_epi32(h[1], b),
            _mm512_add_epi32(h[2], c),
            _mm512_add_epi32(h[3], d),
            _mm512_add_epi32(h[4], e),
        ]
    }

    /// The sixteen words of a block.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load(block: &[u8]) -> __m512i {
        assert_eq!(block.len(), BLOCK_BYTES);
        let order = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
        // SAFETY: the block is 64 bytes long, and the load needs no alignment.
        let raw = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        _mm512_shuffle_epi8(raw, order)
    }

    /// Rows are streams before and words after.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
        let zero = _mm512_setzero_si512();
        // Within each quarter of a register: pairs of rows, then fours.
        let mut pairs = [zero; 16];
        for at in 0..8 {
            let (one, other) = (rows[2 * at], rows[2 * at + 1]);
            pairs[2 * at] = _mm512_unpacklo_epi32(one, other);
            pairs[2 * at + 1] = _mm512_unpackhi_epi32(one, other);
        }
        let mut fours = [zero; 16];
        for at in 0..4 {
            let [p, q, r, s] = [0, 1, 2, 3].map(|row| pairs[4 * at + row]);
            fours[4 * at] = _mm512_unpacklo_epi64(p, r);
            fours[4 * at + 1] = _mm512_unpackhi_epi64(p, r);
            fours[4 * at + 2] = _mm512_unpacklo_epi64(q, s);
            fours[4 * at + 3] = _mm512_unpackhi_epi64(q, s);
        }
        // Quarter `k` of `fours[4 * at + word]` holds word `4 * k + word` of the rows from `4 * at` on.
        let mut words = [zero; 16];
        for word in 0..4 {
            let [p, q, r, s] = [0, 1, 2, 3].map(|at| fours[4 * at + word]);
            let [low, high] = [
                _mm512_shuffle_i32x4::<0x44>(p, q),
                _mm512_shuffle_i32x4::<0xee>(p, q),
            ];
            let [low_too, high_too] = [
                _mm512_shuffle_i32x4::<0x44>(r, s),
                _mm512_shuffle_i32x4::<0xee>(r, s),
            ];
            words[word] = _mm512_shuffle_i32x4::<0x88>(low, low_too);
            words[4 + word] = _mm512_shuffle_i32x4::<0xdd>(low, low_too);
            words[8 + word] = _mm512_shuffle_i32x4::<0x88>(high, high_too);
            words[12 + word] = _mm512_shuffle_i32x4::<0xdd>(high, high_too);
        }
        words
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn gather(states: &[[u32; 5]]) -> Words {
        let mut words = [[0_i32; WIDTH]; 5];
        for (at, state) in states.iter().enumerate() {
            for (words, word) in words.iter_mut().zip(state) {
                words[at] = word.cast_signed();
            }
        }
        // SAFETY: each row is 64 bytes long, and the load needs no alignment.
        words.map(|row| unsafe { _mm512_loadu_si512(row.as_ptr().cast()) })
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn scatter(h: Words, states: &mut [[u32; 5]]) {
        for (word, row) in h.into_iter().enumerate() {
            let mut words = [0_i32; WIDTH];
            // SAFETY: the row is 64 bytes long, and the store needs no alignment.
            unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), row) };
            for (state, value) in states.iter_mut().zip(words) {
                state[word] = value.cast_unsigned();
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod kernel {
    pub fn is_here() -> bool {
        false
    }

    pub fn compress(_: &mut [[u32; 5]], _: &[&[u8]]) {
        unreachable!("there is no AVX-512 here");
    }
}
