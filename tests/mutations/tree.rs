//! Damages bencode as values, not as bytes: lengths stay right, so that what is wrong lies deeper in the reader.

use gyre::base::Rng;
use gyre::wire::bencode::{Value, scan_prefix};

use super::mutate::NUMBERS;

/// Repeats of one element at most.
const REPEATS_MAX: u64 = 60;

#[derive(Clone)]
enum Node {
    /// As text: it may be beyond every integer.
    Int(String),
    Bytes(Vec<u8>),
    List(Vec<Node>),
    Dict(Vec<(Vec<u8>, Node)>),
}

/// The input with one value changed; `None` when it does not begin with a list or dictionary.
pub fn mutate(input: &[u8], words: &[&[u8]], rng: &mut Rng) -> Option<Vec<u8>> {
    if !matches!(input.first(), Some(b'd' | b'l')) {
        return None;
    }
    let (scanned, used) = scan_prefix(input).ok()?;
    let mut root = node(scanned.root());
    let mut left = rng.below(count(&root));
    change_nth(&mut root, &mut left, words, rng);
    let mut out = Vec::new();
    write(&root, &mut out);
    out.extend_from_slice(&input[used..]);
    Some(out)
}

fn node(value: Value<'_>) -> Node {
    if let Some(list) = value.as_list() {
        Node::List(list.iter().map(node).collect())
    } else if let Some(dict) = value.as_dict() {
        let entries = dict.iter();
        Node::Dict(
            entries
                .map(|(key, value)| (key.to_vec(), node(value)))
                .collect(),
        )
    } else if let Some(bytes) = value.as_bytes() {
        Node::Bytes(bytes.to_vec())
    } else {
        Node::Int(value.as_int().unwrap_or(0).to_string())
    }
}

fn count(node: &Node) -> u64 {
    1 + match node {
        Node::Int(_) | Node::Bytes(_) => 0,
        Node::List(list) => list.iter().map(count).sum(),
        Node::Dict(dict) => dict.iter().map(|(_, value)| count(value)).sum(),
    }
}

fn change_nth(node: &mut Node, left: &mut u64, words: &[&[u8]], rng: &mut Rng) -> bool {
    if *left == 0 {
        change(node, words, rng);
        return true;
    }
    *left -= 1;
    match node {
        Node::Int(_) | Node::Bytes(_) => false,
        Node::List(list) => {
            let mut values = list.iter_mut();
            values.any(|value| change_nth(value, left, words, rng))
        }
        Node::Dict(dict) => {
            let mut values = dict.iter_mut();
            values.any(|(_, value)| change_nth(value, left, words, rng))
        }
    }
}

fn change(node: &mut Node, words: &[&[u8]], rng: &mut Rng) {
    if rng.chance(15) {
        *node = fresh(words, rng);
        return;
    }
    match node {
        Node::Int(text) => *text = number(rng),
        Node::Bytes(bytes) => change_bytes(bytes, words, rng),
        Node::List(list) => {
            let at = rng.below(list.len() as u64) as usize;
            match rng.below(4) {
                0 if !list.is_empty() => drop(list.remove(at)),
                1 if !list.is_empty() => {
                    let repeats = 1 + rng.below(REPEATS_MAX) as usize;
                    list.extend(vec![list[at].clone(); repeats]);
                }
                2 => list.reverse(),
                _ => list.insert(at, fresh(words, rng)),
            }
        }
        Node::Dict(dict) => {
            let at = rng.below(dict.len() as u64) as usize;
            match rng.below(5) {
                0 if !dict.is_empty() => drop(dict.remove(at)),
                1 if !dict.is_empty() => dict.push(dict[at].clone()),
                2 if !dict.is_empty() => dict[at].0 = text(words, rng),
                3 => dict.reverse(),
                _ => {
                    dict.push((text(words, rng), fresh(words, rng)));
                    dict.sort_by(|a, b| a.0.cmp(&b.0));
                }
            }
        }
    }
}

fn change_bytes(bytes: &mut Vec<u8>, words: &[&[u8]], rng: &mut Rng) {
    let at = rng.below(bytes.len() as u64 + 1) as usize;
    match rng.below(5) {
        0 => bytes.truncate(at),
        1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
        2 => bytes.extend_from_within(at..),
        3 => *bytes = text(words, rng),
        _ => bytes.insert(at, rng.below(256) as u8),
    }
}

fn fresh(words: &[&[u8]], rng: &mut Rng) -> Node {
    match rng.below(5) {
        0 => Node::Int(number(rng)),
        1 => Node::List(vec![fresh(words, rng)]),
        2 => Node::Dict(vec![(text(words, rng), fresh(words, rng))]),
        _ => Node::Bytes(text(words, rng)),
    }
}

fn number(rng: &mut Rng) -> String {
    let sign = if rng.chance(25) { "-" } else { "" };
    let number = rng.pick(&NUMBERS).copied().unwrap_or(0);
    if sign.is_empty() || number != 0 {
        return format!("{sign}{number}");
    }
    i64::MIN.to_string()
}

/// A word, without the length that some have in front; or a few bytes.
fn text(words: &[&[u8]], rng: &mut Rng) -> Vec<u8> {
    if words.is_empty() || rng.chance(20) {
        let length = rng.below(24);
        return (0..length).map(|_| rng.below(256) as u8).collect();
    }
    let word = words[rng.below(words.len() as u64) as usize];
    let digits = word.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match word.get(digits) {
        Some(b':') if digits > 0 => word[digits + 1..].to_vec(),
        _ => word.to_vec(),
    }
}

fn write(node: &Node, out: &mut Vec<u8>) {
    match node {
        Node::Int(text) => out.extend(format!("i{text}e").bytes()),
        Node::Bytes(bytes) => write_bytes(bytes, out),
        Node::List(list) => {
            out.push(b'l');
            list.iter().for_each(|value| write(value, out));
            out.push(b'e');
        }
        Node::Dict(dict) => {
            out.push(b'd');
            for (key, value) in dict {
                write_bytes(key, out);
                write(value, out);
            }
            out.push(b'e');
        }
    }
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend(format!("{}:", bytes.len()).bytes());
    out.extend_from_slice(bytes);
}
