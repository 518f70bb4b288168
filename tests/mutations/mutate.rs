//! Damages inputs: what networks, disks and attackers do to bytes, drawn from a seed.

use gyre::base::Rng;

use super::tree;

/// No input grows beyond this.
pub const INPUT_BYTES_MAX: usize = 8 * 1024;
/// Changes to one input at most.
const CHANGES_MAX: u64 = 6;
/// Numbers at the edges of what fields hold, as text and as bytes.
pub const NUMBERS: [u64; 14] = [
    0,
    1,
    19,
    20,
    127,
    255,
    256,
    16_384,
    65_535,
    65_536,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    u64::MAX,
];

/// The next input: one of the corpus, changed in a few places.
pub fn mutate(corpus: &[Vec<u8>], words: &[&[u8]], rng: &mut Rng) -> Vec<u8> {
    let mut input = pick(corpus, rng).clone();
    if rng.chance(60) {
        let changes = 1 + rng.below(CHANGES_MAX);
        let mut is_tree = false;
        for _ in 0..changes {
            let Some(changed) = tree::mutate(&input, words, rng) else {
                break;
            };
            // What is cut at the end is no tree any more.
            if changed.len() <= INPUT_BYTES_MAX {
                (input, is_tree) = (changed, true);
            }
        }
        if is_tree && rng.chance(80) {
            input.truncate(INPUT_BYTES_MAX);
            return input;
        }
    }
    for _ in 0..=rng.below(CHANGES_MAX) {
        change(&mut input, corpus, words, rng);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&[u8]], rng: &mut Rng) {
    let len = input.len();
    let at = place(len, rng);
    match rng.below(11) {
        0 if len > 0 => input[at % len] ^= 1 << rng.below(8),
        1 if len > 0 => input[at % len] = rng.below(256) as u8,
        2 => input.truncate(at),
        3 => {
            let byte = rng.below(256) as u8;
            let count = 1 + place(64, rng);
            insert(input, at, &vec![byte; count]);
        }
        4 => {
            let end = at + place(len - at, rng);
            input.drain(at..end);
        }
        5 => {
            let end = at + place((len - at).min(256), rng);
            let part = input[at..end].to_vec();
            insert(input, place(len, rng), &part);
        }
        6 => {
            let other = pick(corpus, rng);
            let from = place(other.len(), rng);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        7 if !words.is_empty() => {
            let word = words[rng.below(words.len() as u64) as usize];
            insert(input, at, word);
        }
        8 => {
            let text = NUMBERS[rng.below(14) as usize].to_string();
            insert(input, at, text.as_bytes());
        }
        9 => {
            let number = NUMBERS[rng.below(14) as usize].to_be_bytes();
            let width = 1 << rng.below(4);
            overwrite(input, at, &number[8 - width..]);
        }
        _ => {
            let digit = input[at.min(len)..].iter().position(u8::is_ascii_digit);
            if let Some(digit) = digit {
                input[at + digit] = b'0' + rng.below(10) as u8;
            }
        }
    }
}

fn pick<'c>(corpus: &'c [Vec<u8>], rng: &mut Rng) -> &'c Vec<u8> {
    &corpus[rng.below(corpus.len() as u64) as usize]
}

/// A place in `0..=len`.
fn place(len: usize, rng: &mut Rng) -> usize {
    rng.below(len as u64 + 1) as usize
}

fn insert(input: &mut Vec<u8>, at: usize, part: &[u8]) {
    input.splice(at..at, part.iter().copied());
}

fn overwrite(input: &mut [u8], at: usize, part: &[u8]) {
    for (byte, new) in input.iter_mut().skip(at).zip(part) {
        *byte = *new;
    }
}
