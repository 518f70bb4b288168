//! SHA-1 of up to sixteen streams at once with AVX-512 (layer 4).
//!
//! One register holds the same word of all streams, so a round costs the same for all of them as for one. Rotations and
//! the three-way functions of SHA-1 are single instructions there. It pays once several pieces wait: [`pays_from`] tells
//! from how many on, by trying both ways once on the processor at hand.

/// Streams hashed at once at most.
pub const WIDTH: usize = 16;
/// Up to so many go in registers of half the length, which takes two thirds of the time or less.
const HALF_WIDTH: usize = 8;

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
    let wide_ns = |streams: usize| {
        fastest_ns(|| {
            let mut states = [[1; 5]; WIDTH];
            compress(&mut states[..streams], &[&bytes[..]; WIDTH][..streams]);
            states[0][0]
        })
    };
    let (half_ns, whole_ns) = (wide_ns(HALF_WIDTH), wide_ns(WIDTH));
    let narrow_ns = fastest_ns(|| {
        let mut states = [[1; 5]; NARROW];
        narrow(&mut states, [&bytes[..]; NARROW]);
        states[0][0]
    });
    // The other way takes its time for each of the streams, this one for all of them.
    let is_faster = |streams: usize| {
        let wide_ns = if streams <= HALF_WIDTH {
            half_ns
        } else {
            whole_ns
        };
        narrow_ns * streams as u64 > wide_ns * NARROW as u64
    };
    (1..=WIDTH).find(|&streams| is_faster(streams))
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

    use super::{BLOCK_BYTES, HALF_WIDTH, WIDTH};

    /// Whether the processor and the system have what [`compress`] needs.
    pub fn is_here() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
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
        unsafe {
            match streams.len() {
                ..=HALF_WIDTH => eight::rounds(states, streams),
                _ => sixteen::rounds(states, streams),
            }
        }
    }

    /// The way of one register width: `$load` makes the sixteen words of a block of each stream.
    macro_rules! way {
        (
            $name:ident, $vector:ident, $width:ident, $set:ident, $xor:ident, $ternary:ident, $rol:ident, $add:ident,
            $fetch:ident, $store:ident, $load:path
        ) => {
            mod $name {
                use super::*;

                #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
                pub fn rounds(states: &mut [[u32; 5]], streams: &[&[u8]]) {
                    assert!((1..=$width).contains(&streams.len()));
                    // Places without a stream hash the first one once more.
                    let mut all = [streams[0]; $width];
                    all[..streams.len()].copy_from_slice(streams);
                    let blocks = all.iter().map(|stream| stream.len() / BLOCK_BYTES).min();
                    let mut h = gather(states);
                    for block in 0..blocks.unwrap_or(0) {
                        h = block_of_each(h, $load(&all, block * BLOCK_BYTES));
                    }
                    scatter(h, states);
                }

                /// FIPS 180-4, 6.1.2, of one block of each stream; `w` are the words of the blocks.
                #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
                fn block_of_each(h: [$vector; 5], mut w: [$vector; 16]) -> [$vector; 5] {
                    let [mut a, mut b, mut c, mut d, mut e] = h;
                    // `$mix` is the truth table of the function of b, c and d.
                    // Written out: as a loop the words would lie in memory.
                    macro_rules! step {
                        ($t:expr, $mix:literal, $constant:ident) => {
                            if $t >= 16_usize {
                                let older = $xor(w[($t + 2) % 16], w[$t % 16]);
                                let mixed =
                                    $ternary::<0x96>(w[($t + 13) % 16], w[($t + 8) % 16], older);
                                w[$t % 16] = $rol::<1>(mixed);
                            }
                            let mix = $ternary::<$mix>(b, c, d);
                            let sum = $add($add($add(w[$t % 16], $constant), e), mix);
                            (e, d, c, b) = (d, c, $rol::<30>(b), a);
                            a = $add(sum, $rol::<5>(a));
                        };
                    }
                    macro_rules! four {
                        ($t:expr, $mix:literal, $constant:ident) => {
                            step!($t, $mix, $constant);
                            step!($t + 1, $mix, $constant);
                            step!($t + 2, $mix, $constant);
                            step!($t + 3, $mix, $constant);
                        };
                    }
                    macro_rules! twenty {
                        ($t:literal, $mix:literal, $constant:literal) => {
                            let constant = $set(u32::cast_signed($constant));
                            four!($t, $mix, constant);
                            four!($t + 4, $mix, constant);
                            four!($t + 8, $mix, constant);
                            four!($t + 12, $mix, constant);
                            four!($t + 16, $mix, constant);
                        };
                    }
                    twenty!(0, 0xca, 0x5a82_7999);
                    twenty!(20, 0x96, 0x6ed9_eba1);
                    twenty!(40, 0xe8, 0x8f1b_bcdc);
                    twenty!(60, 0x96, 0xca62_c1d6);
                    [
                        $add(h[0], a),
                        $add(h[1], b),
                        $add(h[2], c),
                        $add(h[3], d),
                        $add(h[4], e),
                    ]
                }

                #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
                fn gather(states: &[[u32; 5]]) -> [$vector; 5] {
                    let mut words = [[0_i32; $width]; 5];
                    for (at, state) in states.iter().enumerate() {
                        for (words, word) in words.iter_mut().zip(state) {
                            words[at] = word.cast_signed();
                        }
                    }
                    // SAFETY: each row is as long as the register, and the load needs no alignment.
                    words.map(|row| unsafe { $fetch(row.as_ptr().cast()) })
                }

                #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
                fn scatter(h: [$vector; 5], states: &mut [[u32; 5]]) {
                    for (word, row) in h.into_iter().enumerate() {
                        let mut words = [0_i32; $width];
                        // SAFETY: the row is as long as the register, and the store needs no alignment.
                        unsafe { $store(words.as_mut_ptr().cast(), row) };
                        for (state, value) in states.iter_mut().zip(words) {
                            state[word] = value.cast_unsigned();
                        }
                    }
                }
            }
        };
    }

    way!(
        sixteen,
        __m512i,
        WIDTH,
        _mm512_set1_epi32,
        _mm512_xor_si512,
        _mm512_ternarylogic_epi32,
        _mm512_rol_epi32,
        _mm512_add_epi32,
        _mm512_loadu_si512,
        _mm512_storeu_si512,
        super::words_of_sixteen
    );
    way!(
        eight,
        __m256i,
        HALF_WIDTH,
        _mm256_set1_epi32,
        _mm256_xor_si256,
        _mm256_ternarylogic_epi32,
        _mm256_rol_epi32,
        _mm256_add_epi32,
        _mm256_loadu_si256,
        _mm256_storeu_si256,
        super::words_of_eight
    );

    /// The words of the block at `start` of each stream: rows are streams in memory and words in the answer.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn words_of_sixteen(streams: &[&[u8]; WIDTH], start: usize) -> [__m512i; 16] {
        let order = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
        let zero = _mm512_setzero_si512();
        // A loop: in the closure of a `map` the instructions would be calls.
        let mut rows = [zero; 16];
        for (row, stream) in rows.iter_mut().zip(streams) {
            let block = &stream[start..start + BLOCK_BYTES];
            // SAFETY: the block is 64 bytes long, and the load needs no alignment.
            let raw = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
            *row = _mm512_shuffle_epi8(raw, order);
        }
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
            let (low, high) = (
                _mm512_shuffle_i32x4::<0x44>(p, q),
                _mm512_shuffle_i32x4::<0xee>(p, q),
            );
            let (low_too, high_too) = (
                _mm512_shuffle_i32x4::<0x44>(r, s),
                _mm512_shuffle_i32x4::<0xee>(r, s),
            );
            words[word] = _mm512_shuffle_i32x4::<0x88>(low, low_too);
            words[4 + word] = _mm512_shuffle_i32x4::<0xdd>(low, low_too);
            words[8 + word] = _mm512_shuffle_i32x4::<0x88>(high, high_too);
            words[12 + word] = _mm512_shuffle_i32x4::<0xdd>(high, high_too);
        }
        words
    }

    /// The same for eight streams.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn words_of_eight(streams: &[&[u8]; HALF_WIDTH], start: usize) -> [__m256i; 16] {
        let order = _mm256_set_epi64x(
            0x0c0d_0e0f_0809_0a0b,
            0x0405_0607_0001_0203,
            0x0c0d_0e0f_0809_0a0b,
            0x0405_0607_0001_0203,
        );
        let mut words = [_mm256_setzero_si256(); 16];
        for half in 0..2 {
            let mut rows = [_mm256_setzero_si256(); 8];
            for (row, stream) in rows.iter_mut().zip(streams) {
                let start = start + half * BLOCK_BYTES / 2;
                let block = &stream[start..start + BLOCK_BYTES / 2];
                // SAFETY: the half block is 32 bytes long, and the load needs no alignment.
                let raw = unsafe { _mm256_loadu_si256(block.as_ptr().cast()) };
                *row = _mm256_shuffle_epi8(raw, order);
            }
            let mut pairs = rows;
            for at in 0..4 {
                let (one, other) = (rows[2 * at], rows[2 * at + 1]);
                pairs[2 * at] = _mm256_unpacklo_epi32(one, other);
                pairs[2 * at + 1] = _mm256_unpackhi_epi32(one, other);
            }
            let mut fours = pairs;
            for at in 0..2 {
                let [p, q, r, s] = [0, 1, 2, 3].map(|row| pairs[4 * at + row]);
                fours[4 * at] = _mm256_unpacklo_epi64(p, r);
                fours[4 * at + 1] = _mm256_unpackhi_epi64(p, r);
                fours[4 * at + 2] = _mm256_unpacklo_epi64(q, s);
                fours[4 * at + 3] = _mm256_unpackhi_epi64(q, s);
            }
            for word in 0..4 {
                let (p, q) = (fours[word], fours[4 + word]);
                words[8 * half + word] = _mm256_permute2x128_si256::<0x20>(p, q);
                words[8 * half + 4 + word] = _mm256_permute2x128_si256::<0x31>(p, q);
            }
        }
        words
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
