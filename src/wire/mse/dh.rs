//! The key exchange of Message Stream Encryption: Diffie-Hellman over a prime of 768 bits with generator 2. Layer 1.
//!
//! Numbers are twelve words, least significant first; nothing is allocated. Time depends on the secret, which is used once:
//! the exchange hides a stream from those who only look on and proves nothing about who is at the other end.

/// Bytes of a public key and of the shared secret, most significant first.
pub const KEY_BYTES: usize = 96;
/// Bytes of a private number: 160 bits, as much as a SHA-1 can tell apart.
pub const SECRET_BYTES: usize = 20;

const WORDS: usize = 12;
type Number = [u64; WORDS];

/// The prime: Oakley group 1 (RFC 2409, 6.1) with another end.
const P: Number = [
    0x0000_0000_0009_0563,
    0xf44c_42e9_a63a_3621,
    0xe485_b576_625e_7ec6,
    0x4fe1_356d_6d51_c245,
    0x302b_0a6d_f25f_1437,
    0xef95_19b3_cd3a_431b,
    0x514a_0879_8e34_04dd,
    0x020b_bea6_3b13_9b22,
    0x2902_4e08_8a67_cc74,
    0xc4c6_628b_80dc_1cd1,
    0xc90f_daa2_2168_c234,
    0xffff_ffff_ffff_ffff,
];

/// −P⁻¹ modulo 2⁶⁴, for Montgomery's product.
const P_INVERSE: u64 = inverse();
/// 2⁷⁶⁸ modulo P: the one of Montgomery's numbers.
const ONE: Number = doubled(1, 768);
/// 2¹⁵³⁶ modulo P: what a number is multiplied by to become one of Montgomery's.
const SQUARE: Number = doubled(1, 1536);

/// A private number and the public key that goes with it.
pub struct KeyPair {
    secret: [u8; SECRET_BYTES],
    public: [u8; KEY_BYTES],
}

impl KeyPair {
    /// The pair of a private number, which must be random and never used twice.
    pub fn new(secret: [u8; SECRET_BYTES]) -> KeyPair {
        KeyPair {
            secret,
            public: to_bytes(&power_of_two(&secret)),
        }
    }

    /// What the other side is sent.
    pub const fn public(&self) -> &[u8; KEY_BYTES] {
        &self.public
    }

    /// What both sides know once they have each other's public key. `None` when the other's is outside of 2..=P-2: with
    /// such a key anybody could tell the secret.
    pub fn agree(&self, theirs: &[u8; KEY_BYTES]) -> Option<[u8; KEY_BYTES]> {
        let theirs = from_bytes(theirs);
        let mut last = P;
        last[0] -= 2;
        let is_small = theirs[1..].iter().all(|word| *word == 0) && theirs[0] < 2;
        if is_small || is_less(&last, &theirs) {
            return None;
        }
        Some(to_bytes(&power(&theirs, &self.secret)))
    }
}

/// `base` to the power of `exponent`, four bits of it at a time.
fn power(base: &Number, exponent: &[u8; SECRET_BYTES]) -> Number {
    let base = product(base, &SQUARE);
    let mut powers = [ONE; 16];
    for at in 1..16 {
        powers[at] = product(&powers[at - 1], &base);
    }
    let mut result = ONE;
    for byte in exponent {
        for four in [byte >> 4, byte & 15] {
            for _ in 0..4 {
                result = product(&result, &result);
            }
            result = product(&result, &powers[usize::from(four)]);
        }
    }
    plain(&result)
}

/// 2 to the power of `exponent`: doubling is cheaper than any product.
fn power_of_two(exponent: &[u8; SECRET_BYTES]) -> Number {
    let mut result = ONE;
    for byte in exponent {
        for bit in (0..8).rev() {
            result = product(&result, &result);
            if byte >> bit & 1 == 1 {
                result = double(&result);
            }
        }
    }
    plain(&result)
}

/// Out of Montgomery's form.
fn plain(number: &Number) -> Number {
    let mut one = [0; WORDS];
    one[0] = 1;
    product(number, &one)
}

/// Montgomery's product: `a * b / 2^768` modulo P, of numbers below P.
fn product(a: &Number, b: &Number) -> Number {
    let mut sum = [0_u64; WORDS];
    let mut top = 0_u64;
    for a in a {
        // a * b added to the sum, then as many P as make its last word zero, then that word dropped.
        let (first, mut carry) = multiply_add(*a, b[0], sum[0], 0);
        let times = first.wrapping_mul(P_INVERSE);
        let (_, mut carry_p) = multiply_add(times, P[0], first, 0);
        for at in 1..WORDS {
            let word;
            (word, carry) = multiply_add(*a, b[at], sum[at], carry);
            (sum[at - 1], carry_p) = multiply_add(times, P[at], word, carry_p);
        }
        let (word, over) = top.overflowing_add(carry);
        let (word, over_p) = word.overflowing_add(carry_p);
        sum[WORDS - 1] = word;
        top = u64::from(over) + u64::from(over_p);
    }
    reduced(sum, top)
}

/// `a * b + c + d` as low and high word; it cannot overflow.
const fn multiply_add(a: u64, b: u64, c: u64, d: u64) -> (u64, u64) {
    let wide = (a as u128 * b as u128)
        .wrapping_add(c as u128)
        .wrapping_add(d as u128);
    (wide as u64, (wide >> 64) as u64)
}

/// Twice a number below P, modulo P.
const fn double(number: &Number) -> Number {
    let mut twice = [0; WORDS];
    let mut top = 0;
    let mut at = 0;
    while at < WORDS {
        twice[at] = number[at] << 1 | top;
        top = number[at] >> 63;
        at += 1;
    }
    reduced(twice, top)
}

/// A number below 2P, its 769th bit in `top`, modulo P.
const fn reduced(number: Number, top: u64) -> Number {
    let mut less = [0; WORDS];
    let mut borrow = false;
    let mut at = 0;
    while at < WORDS {
        let (word, under) = number[at].overflowing_sub(P[at]);
        let (word, under_more) = word.overflowing_sub(borrow as u64);
        less[at] = word;
        borrow = under || under_more;
        at += 1;
    }
    if top == 0 && borrow { number } else { less }
}

fn is_less(a: &Number, b: &Number) -> bool {
    a.iter().rev().lt(b.iter().rev())
}

const fn doubled(start: u64, times: u32) -> Number {
    let mut number = [0; WORDS];
    number[0] = start;
    let mut done = 0;
    while done < times {
        number = double(&number);
        done += 1;
    }
    number
}

const fn inverse() -> u64 {
    // Each step of Newton's doubles the number of right bits; an odd number is its own inverse in three.
    let mut found = P[0];
    let mut step = 0;
    while step < 5 {
        found = found.wrapping_mul(2_u64.wrapping_sub(P[0].wrapping_mul(found)));
        step += 1;
    }
    found.wrapping_neg()
}

fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Number {
    let mut number = [0; WORDS];
    let (words, _) = bytes.as_chunks::<8>();
    for (word, eight) in number.iter_mut().rev().zip(words) {
        *word = u64::from_be_bytes(*eight);
    }
    number
}

fn to_bytes(number: &Number) -> [u8; KEY_BYTES] {
    let mut bytes = [0; KEY_BYTES];
    let (words, _) = bytes.as_chunks_mut::<8>();
    for (word, eight) in number.iter().rev().zip(words) {
        *eight = word.to_be_bytes();
    }
    bytes
}
