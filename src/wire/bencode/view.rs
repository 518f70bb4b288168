//! Scanned values read in place. Layer 1.
//!
//! Every look goes through checked arithmetic again, so even a value that was never scanned could do no harm.

use super::scan::{Prefix, integer, length_prefix};

/// One whole value that passed every check.
#[derive(Clone, Copy, Debug)]
pub struct Scanned<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) token_count: usize,
    pub(super) is_sorted: bool,
}

impl<'a> Scanned<'a> {
    /// The value itself.
    pub fn root(&self) -> Value<'a> {
        match step(self.bytes) {
            Some((value, _)) => value,
            // Cannot happen after a scan; an empty string harms nobody.
            None => Value::Bytes(&[]),
        }
    }

    /// The value as a dictionary, if it is one.
    pub fn dict(&self) -> Option<Dict<'a>> {
        self.root().as_dict()
    }

    /// The bytes of the value, without what followed it.
    pub const fn raw(&self) -> &'a [u8] {
        self.bytes
    }

    /// Number of values and keys in it.
    pub const fn token_count(&self) -> usize {
        self.token_count
    }

    /// Whether the keys of every dictionary in it are in order, as BEP 3 demands.
    pub const fn is_sorted(&self) -> bool {
        self.is_sorted
    }
}

/// One scanned value, borrowed from the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    List(List<'a>),
    Dict(Dict<'a>),
}

impl<'a> Value<'a> {
    /// The number, if it is one.
    pub fn as_int(self) -> Option<i64> {
        match self {
            Value::Int(value) => Some(value),
            _ => None,
        }
    }

    /// The string, if it is one.
    pub fn as_bytes(self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The string, if it is one and is UTF-8.
    pub fn as_str(self) -> Option<&'a str> {
        self.as_bytes()
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The list, if it is one.
    pub fn as_list(self) -> Option<List<'a>> {
        match self {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// The dictionary, if it is one.
    pub fn as_dict(self) -> Option<Dict<'a>> {
        match self {
            Value::Dict(dict) => Some(dict),
            _ => None,
        }
    }
}

/// A scanned list. Walking it skips over each entry, so walk once instead of asking for positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List<'a>(&'a [u8]);

impl<'a> List<'a> {
    /// The entries in order.
    pub fn iter(self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        Steps::inside(self.0)
    }

    /// Whether there is no entry.
    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }

    /// The bytes from `l` to `e`.
    pub const fn raw(self) -> &'a [u8] {
        self.0
    }
}

/// A scanned dictionary. A look-up walks the entries, so its cost is the size of the dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dict<'a>(&'a [u8]);

impl<'a> Dict<'a> {
    /// The entries in the order of the input.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], Value<'a>)> + use<'a> {
        let mut steps = Steps::inside(self.0);
        std::iter::from_fn(move || {
            let key = steps.next()?.as_bytes()?;
            Some((key, steps.next()?))
        })
    }

    /// The value of this key.
    pub fn get(self, key: &[u8]) -> Option<Value<'a>> {
        self.iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// The number of this key, if it is one.
    pub fn int(self, key: &[u8]) -> Option<i64> {
        self.get(key).and_then(Value::as_int)
    }

    /// The string of this key, if it is one.
    pub fn bytes(self, key: &[u8]) -> Option<&'a [u8]> {
        self.get(key).and_then(Value::as_bytes)
    }

    /// The string of this key, if it is one and is UTF-8.
    pub fn str(self, key: &[u8]) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// The list of this key, if it is one.
    pub fn list(self, key: &[u8]) -> Option<List<'a>> {
        self.get(key).and_then(Value::as_list)
    }

    /// The dictionary of this key, if it is one.
    pub fn dict(self, key: &[u8]) -> Option<Dict<'a>> {
        self.get(key).and_then(Value::as_dict)
    }

    /// The entries and those of the dictionaries in it, in one pass however deep they lie.
    pub fn walk(self) -> Walk<'a> {
        Walk {
            rest: self.0.get(1..).unwrap_or_default(),
        }
    }

    /// Whether there is no entry.
    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }

    /// The bytes from `d` to `e`: what an info_hash is taken over.
    pub const fn raw(self) -> &'a [u8] {
        self.0
    }
}

/// Walks a dictionary and what it holds, going into dictionaries as told.
pub struct Walk<'a> {
    rest: &'a [u8],
}

impl<'a> Walk<'a> {
    /// The next key of the dictionary at hand; `None` at its end.
    pub fn key(&mut self) -> Option<&'a [u8]> {
        let (key, rest) = step_string(self.rest)?;
        self.rest = rest;
        Some(key)
    }

    /// The value of the key just read, passed over.
    pub fn value(&mut self) -> Option<Value<'a>> {
        let (value, rest) = step(self.rest)?;
        self.rest = rest;
        Some(value)
    }

    /// Goes into the value of the key just read. False when it is no dictionary.
    pub fn enter(&mut self) -> bool {
        let inside = self.rest.strip_prefix(b"d");
        self.rest = inside.unwrap_or(self.rest);
        inside.is_some()
    }

    /// Goes back to the dictionary around the one at hand, which is at its end.
    pub fn leave(&mut self) {
        self.rest = self.rest.strip_prefix(b"e").unwrap_or_default();
    }
}

/// Walks values that lie one behind the other in scanned bytes.
struct Steps<'a> {
    rest: &'a [u8],
}

impl<'a> Steps<'a> {
    /// The values between the first and the last byte of a list or dictionary.
    fn inside(container: &'a [u8]) -> Self {
        Steps {
            rest: container
                .get(1..container.len().saturating_sub(1))
                .unwrap_or_default(),
        }
    }
}

impl<'a> Iterator for Steps<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let (value, rest) = step(self.rest)?;
        self.rest = rest;
        Some(value)
    }
}

/// The value at the start of scanned bytes, and what lies behind it.
fn step(bytes: &[u8]) -> Option<(Value<'_>, &[u8])> {
    match bytes.first()? {
        b'i' => {
            let (value, consumed) = integer(bytes)?;
            Some((Value::Int(value), bytes.get(consumed..)?))
        }
        first @ (b'l' | b'd') => {
            let (raw, rest) = bytes.split_at_checked(container_bytes(bytes)?)?;
            let value = if *first == b'l' {
                Value::List(List(raw))
            } else {
                Value::Dict(Dict(raw))
            };
            Some((value, rest))
        }
        _ => {
            let (text, rest) = step_string(bytes)?;
            Some((Value::Bytes(text), rest))
        }
    }
}

fn step_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let Prefix::Length(length, header_bytes) = length_prefix(bytes) else {
        return None;
    };
    bytes
        .get(header_bytes..)?
        .split_at_checked(usize::try_from(length).ok()?)
}

/// Bytes from the start of a scanned list or dictionary to behind its `e`.
fn container_bytes(bytes: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut rest = bytes;
    loop {
        rest = match rest.first()? {
            b'l' | b'd' => {
                depth += 1;
                rest.get(1..)?
            }
            b'e' => {
                depth = depth.checked_sub(1)?;
                rest.get(1..)?
            }
            b'i' => rest.get(integer(rest)?.1..)?,
            _ => step_string(rest)?.1,
        };
        if depth == 0 {
            return Some(bytes.len() - rest.len());
        }
    }
}
