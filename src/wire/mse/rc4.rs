//! RC4, the stream cipher of Message Stream Encryption. Layer 1.
//!
//! Broken as a cipher and used for no secret: it makes a stream look random to whoever passes it on.

/// Bytes of every stream that are thrown away first.
const DISCARDED_BYTES: usize = 1024;
/// Keystream made before it is used: small enough to stay in the fastest cache beside the tables.
const PART_BYTES: usize = 1024;

/// One direction of one connection.
///
/// The table holds words although its values are bytes, which is the quicker kind of load. One stream makes 0.9 GB/s on a
/// Sapphire Rapids core, and several side by side hardly more.
#[derive(Clone)]
pub struct Rc4 {
    table: [u32; 256],
    i: u8,
    j: u8,
}

impl Rc4 {
    /// The stream of a key, its first 1,024 bytes thrown away.
    pub fn new(key: &[u8; 20]) -> Rc4 {
        let mut table: [u32; 256] = std::array::from_fn(|value| value as u32);
        let mut j = 0_u8;
        for (at, key) in (0..256).zip(key.iter().cycle()) {
            j = j.wrapping_add(low(table[at])).wrapping_add(*key);
            table.swap(at, usize::from(j));
        }
        let mut stream = Rc4 { table, i: 0, j: 0 };
        stream.skip(DISCARDED_BYTES);
        stream
    }

    /// Encrypts or decrypts the next bytes of the stream in place.
    pub fn apply(&mut self, bytes: &mut [u8]) {
        let mut keystream = [0; PART_BYTES];
        for part in bytes.chunks_mut(PART_BYTES) {
            let keystream = &mut keystream[..part.len()];
            self.keystream(keystream);
            for (byte, key) in part.iter_mut().zip(keystream) {
                *byte ^= *key;
            }
        }
    }

    /// Goes on as if so many bytes had come.
    pub fn skip(&mut self, bytes: usize) {
        let mut left = bytes;
        let mut ignored = [0; PART_BYTES];
        while left > 0 {
            let part = left.min(PART_BYTES);
            self.keystream(&mut ignored[..part]);
            left -= part;
        }
    }

    /// The next bytes of the keystream.
    fn keystream(&mut self, out: &mut [u8]) {
        let i = self.i.wrapping_add(1);
        let mut walk = Walk {
            i,
            j: self.j,
            a: self.table[usize::from(i)],
        };
        let (eights, rest) = out.as_chunks_mut::<8>();
        for eight in eights {
            for out in eight {
                *out = walk.step(&mut self.table);
            }
        }
        for out in rest {
            *out = walk.step(&mut self.table);
        }
        (self.i, self.j) = (walk.i.wrapping_sub(1), walk.j);
    }
}

/// Where the cipher stands, one load ahead of the byte it makes.
struct Walk {
    i: u8,
    j: u8,
    /// The table's word at `i`.
    a: u32,
}

impl Walk {
    /// One byte, the step to the next included. The word of the next step is loaded before this step's stores, so that
    /// the chain from byte to byte is an addition and not a store with a load behind it; in the one case where a store
    /// changes that word, its value is at hand.
    #[inline(always)]
    fn step(&mut self, table: &mut [u32; 256]) -> u8 {
        let a = self.a;
        self.j = self.j.wrapping_add(low(a));
        let b = table[usize::from(self.j)];
        let next = self.i.wrapping_add(1);
        let ahead = table[usize::from(next)];
        table[usize::from(self.i)] = b;
        table[usize::from(self.j)] = a;
        self.a = if self.j == next { a } else { ahead };
        self.i = next;
        low(table[usize::from(low(a).wrapping_add(low(b)))])
    }
}

/// Values of the table are bytes.
const fn low(word: u32) -> u8 {
    word as u8
}

/// Without the table: whoever has it can read the stream.
impl std::fmt::Debug for Rc4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rc4")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checked against another program's RC4, with the key 01 02 … 14.
    #[test]
    fn the_stream_begins_behind_its_first_1024_bytes() {
        let key = std::array::from_fn(|at| at as u8 + 1);
        let mut bytes = [0; 16];
        Rc4::new(&key).apply(&mut bytes);
        assert_eq!(bytes, GOLDEN);
    }

    #[test]
    fn any_split_and_skip_is_the_same_stream() {
        let key = [7; 20];
        let mut whole = vec![0x5a; 5000];
        Rc4::new(&key).apply(&mut whole);
        for step in [1, 7, 1023, 1024, 1025, 4999] {
            let mut parts = vec![0x5a; 5000];
            let mut stream = Rc4::new(&key);
            parts.chunks_mut(step).for_each(|part| stream.apply(part));
            assert!(parts == whole, "in steps of {step}");
            let mut rest = vec![0x5a; 5000 - step];
            let mut stream = Rc4::new(&key);
            stream.skip(step);
            stream.apply(&mut rest);
            assert!(rest == whole[step..], "behind {step}");
        }
    }

    const GOLDEN: [u8; 16] = [
        0xd0, 0xef, 0x0c, 0x6b, 0x23, 0xf1, 0x28, 0x21, 0x9c, 0x35, 0x2c, 0x15, 0x88, 0x1d, 0x52,
        0xc1,
    ];
}
