//! Bencode (BEP 3): a scanner that judges bytes before anybody believes them, a borrowed view, and a writer. Layer 1.
//!
//! [`scan`] walks the bytes once, without recursion, and checks everything: depth, token count, lengths, number
//! forms, key order, duplicate keys. What passed is then read in place through [`Value`], [`List`] and [`Dict`],
//! which allocate nothing. Writing goes through `bendy`, whose encoder guarantees the canonical form.
//!
//! Reading does not go through `bendy`: its decoder refuses unsorted keys (torrents with them exist, and their
//! info_hash is over the raw bytes), names no offset in its errors, and sees trailing bytes as part of the input,
//! where `ut_metadata` is a dictionary followed by payload. The tests hold the two against each other.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Lists and dictionaries inside each other; the same as libtorrent's (HOSTILE.md T1).
pub const DEPTH_MAX: usize = 100;

/// Values and keys in one document; libtorrent's figure, enough for some 400,000 files (HOSTILE.md T2).
pub const TOKENS_MAX: usize = 3_000_000;

/// The longest document looked at: the size limit of a `.torrent` (HOSTILE.md T2).
pub const DOCUMENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why bytes are no acceptable bencode, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BencodeError {
    /// Longer than [`DOCUMENT_BYTES_MAX`].
    #[error("{got_bytes} bytes of bencode, more than {max_bytes}")]
    TooLong { got_bytes: usize, max_bytes: usize },
    /// The bytes end inside a value.
    #[error("bencode ends in the middle of a value at byte {offset}")]
    Truncated { offset: usize },
    /// No value starts with this byte.
    #[error("unexpected byte 0x{got:02x} at byte {offset}")]
    UnexpectedByte { offset: usize, got: u8 },
    /// A number with leading zeros, `-0`, no digits, or outside 64 bits.
    #[error("bad number at byte {offset}")]
    BadNumber { offset: usize },
    /// A string that claims more bytes than there are.
    #[error("string at byte {offset} runs past the end ({left_bytes} bytes are left)")]
    StringPastEnd { offset: usize, left_bytes: usize },
    /// A dictionary key that is no string.
    #[error("dictionary key at byte {offset} is not a string")]
    KeyNotString { offset: usize },
    /// A key without a value.
    #[error("dictionary ends after a key without a value at byte {offset}")]
    MissingValue { offset: usize },
    /// The same key twice in one dictionary.
    #[error("dictionary that ends at byte {offset} has a key twice")]
    DuplicateKey { offset: usize },
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("nested deeper than {max} at byte {offset}")]
    TooDeep { offset: usize, max: usize },
    /// More than [`TOKENS_MAX`] values and keys.
    #[error("more than {max} values at byte {offset}")]
    TooManyTokens { offset: usize, max: usize },
    /// Bytes behind a value that should have been the whole input.
    #[error("{extra_bytes} trailing bytes at byte {offset}")]
    TrailingBytes { offset: usize, extra_bytes: usize },
}

/// One whole value that passed every check.
#[derive(Clone, Copy, Debug)]
pub struct Scanned<'a> {
    bytes: &'a [u8],
    token_count: usize,
    is_sorted: bool,
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

/// Checks bytes that must be exactly one value.
///
/// # Errors
/// See [`BencodeError`]; trailing bytes are an error here.
pub fn scan(bytes: &[u8]) -> Result<Scanned<'_>, BencodeError> {
    let (scanned, consumed) = scan_prefix(bytes)?;
    match bytes.len().saturating_sub(consumed) {
        0 => Ok(scanned),
        extra_bytes => Err(BencodeError::TrailingBytes {
            offset: consumed,
            extra_bytes,
        }),
    }
}

/// Checks the value at the start of the bytes and tells how many bytes it takes (`ut_metadata`: BEP 9).
///
/// # Errors
/// See [`BencodeError`].
pub fn scan_prefix(bytes: &[u8]) -> Result<(Scanned<'_>, usize), BencodeError> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(BencodeError::TooLong {
            got_bytes: bytes.len(),
            max_bytes: DOCUMENT_BYTES_MAX,
        });
    }
    let mut scanner = Scanner {
        bytes,
        offset: 0,
        token_count: 0,
        is_sorted: true,
        open: Vec::new(),
        keys: Vec::new(),
    };
    scanner.run()?;
    let raw = bytes.get(..scanner.offset).ok_or(BencodeError::Truncated {
        offset: bytes.len(),
    })?;
    let scanned = Scanned {
        bytes: raw,
        token_count: scanner.token_count,
        is_sorted: scanner.is_sorted,
    };
    Ok((scanned, raw.len()))
}

/// A list or dictionary whose end has not been seen.
enum Open {
    List,
    Dict {
        /// Where this dictionary's keys start in [`Scanner::keys`].
        first_key: usize,
        is_sorted: bool,
        /// A key has been read and its value is next.
        awaits_value: bool,
    },
}

struct Scanner<'a> {
    bytes: &'a [u8],
    offset: usize,
    token_count: usize,
    is_sorted: bool,
    /// At most [`DEPTH_MAX`] entries.
    open: Vec<Open>,
    /// Keys of all open dictionaries, innermost last; at most [`TOKENS_MAX`] entries.
    keys: Vec<&'a [u8]>,
}

impl<'a> Scanner<'a> {
    fn run(&mut self) -> Result<(), BencodeError> {
        loop {
            self.token()?;
            if self.open.is_empty() {
                return Ok(());
            }
        }
    }

    fn token(&mut self) -> Result<(), BencodeError> {
        let offset = self.offset;
        let first = *self
            .bytes
            .get(offset)
            .ok_or(BencodeError::Truncated { offset })?;
        if first == b'e' {
            return self.close();
        }
        self.token_count += 1;
        if self.token_count > TOKENS_MAX {
            let max = TOKENS_MAX;
            return Err(BencodeError::TooManyTokens { offset, max });
        }
        if let Some(Open::Dict { awaits_value, .. }) = self.open.last_mut() {
            *awaits_value = !*awaits_value;
            if *awaits_value {
                return self.key(first);
            }
        }
        match first {
            b'i' => self.integer(),
            b'l' => self.enter(Open::List),
            b'd' => self.enter(Open::Dict {
                first_key: self.keys.len(),
                is_sorted: true,
                awaits_value: false,
            }),
            b'0'..=b'9' => self.string().map(|_| ()),
            got => Err(BencodeError::UnexpectedByte { offset, got }),
        }
    }

    fn enter(&mut self, container: Open) -> Result<(), BencodeError> {
        if self.open.len() >= DEPTH_MAX {
            return Err(BencodeError::TooDeep {
                offset: self.offset,
                max: DEPTH_MAX,
            });
        }
        self.open.push(container);
        self.offset += 1;
        Ok(())
    }

    fn close(&mut self) -> Result<(), BencodeError> {
        let offset = self.offset;
        match self.open.pop() {
            None => return Err(BencodeError::UnexpectedByte { offset, got: b'e' }),
            Some(Open::List) => {}
            Some(Open::Dict {
                awaits_value: true, ..
            }) => return Err(BencodeError::MissingValue { offset }),
            Some(Open::Dict {
                first_key,
                is_sorted,
                ..
            }) => {
                if !is_sorted {
                    self.is_sorted = false;
                    let keys = self.keys.get_mut(first_key..).unwrap_or_default();
                    keys.sort_unstable();
                    if keys.windows(2).any(|pair| pair.first() == pair.last()) {
                        return Err(BencodeError::DuplicateKey { offset });
                    }
                }
                self.keys.truncate(first_key);
            }
        }
        self.offset += 1;
        Ok(())
    }

    fn key(&mut self, first: u8) -> Result<(), BencodeError> {
        let offset = self.offset;
        if !first.is_ascii_digit() {
            return Err(BencodeError::KeyNotString { offset });
        }
        let key = self.string()?;
        if let Some(Open::Dict {
            first_key,
            is_sorted,
            ..
        }) = self.open.last_mut()
        {
            let siblings = self.keys.get(*first_key..).unwrap_or_default();
            match siblings.last().map(|last| (*last).cmp(key)) {
                Some(std::cmp::Ordering::Equal) => {
                    return Err(BencodeError::DuplicateKey { offset });
                }
                Some(std::cmp::Ordering::Greater) => *is_sorted = false,
                Some(std::cmp::Ordering::Less) | None => {}
            }
        }
        self.keys.push(key);
        Ok(())
    }

    fn string(&mut self) -> Result<&'a [u8], BencodeError> {
        let offset = self.offset;
        let rest = self.bytes.get(offset..).unwrap_or_default();
        let (length, header_bytes) = match length_prefix(rest) {
            Prefix::Length(length, header_bytes) => (length, header_bytes),
            Prefix::Truncated => {
                return Err(BencodeError::Truncated {
                    offset: self.bytes.len(),
                });
            }
            Prefix::Bad => return Err(BencodeError::BadNumber { offset }),
        };
        let left = rest.get(header_bytes..).unwrap_or_default();
        let text = usize::try_from(length)
            .ok()
            .and_then(|length| left.get(..length))
            .ok_or(BencodeError::StringPastEnd {
                offset,
                left_bytes: left.len(),
            })?;
        self.offset += header_bytes + text.len();
        Ok(text)
    }

    fn integer(&mut self) -> Result<(), BencodeError> {
        let offset = self.offset;
        let rest = self.bytes.get(offset..).unwrap_or_default();
        match integer(rest) {
            Some((_, consumed)) => {
                self.offset += consumed;
                Ok(())
            }
            None if rest.iter().skip(1).all(|byte| is_number_byte(*byte)) && rest.len() < 22 => {
                Err(BencodeError::Truncated {
                    offset: self.bytes.len(),
                })
            }
            None => Err(BencodeError::BadNumber { offset }),
        }
    }
}

fn is_number_byte(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'-'
}

enum Prefix {
    /// Declared bytes, and bytes taken by the digits and the colon.
    Length(u64, usize),
    Truncated,
    Bad,
}

/// Reads `123:`; no leading zeros.
fn length_prefix(bytes: &[u8]) -> Prefix {
    let mut length: u64 = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            b':' if index > 0 => return Prefix::Length(length, index + 1),
            b'0'..=b'9' if index == 0 || length > 0 => {
                let digit = u64::from(byte - b'0');
                match length.checked_mul(10).and_then(|n| n.checked_add(digit)) {
                    Some(longer) => length = longer,
                    None => return Prefix::Bad,
                }
            }
            _ => return Prefix::Bad,
        }
    }
    Prefix::Truncated
}

/// Reads `i-12e`: the number and the bytes it takes. No leading zeros, no `-0`, inside 64 bits.
fn integer(bytes: &[u8]) -> Option<(i64, usize)> {
    let body = bytes.strip_prefix(b"i")?;
    let (is_negative, digits) = match body.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, body),
    };
    let mut value: i64 = 0;
    for (index, &byte) in digits.iter().enumerate() {
        match byte {
            b'e' if index > 0 && (value != 0 || !is_negative) => {
                return Some((value, index + 2 + usize::from(is_negative)));
            }
            b'0'..=b'9' if index == 0 || value != 0 => {
                let digit = i64::from(byte - b'0');
                let tens = value.checked_mul(10)?;
                value = if is_negative {
                    tens.checked_sub(digit)?
                } else {
                    tens.checked_add(digit)?
                };
            }
            _ => return None,
        }
    }
    None
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

    /// Whether there is no entry.
    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }

    /// The bytes from `d` to `e`: what an info_hash is taken over.
    pub const fn raw(self) -> &'a [u8] {
        self.0
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

/// A value to be written. Dictionaries keep their keys sorted, so what is written is canonical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    Int(i64),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Item<'a>>),
    Dict(BTreeMap<&'a [u8], Item<'a>>),
}

impl<'a> Item<'a> {
    /// A string, borrowed or owned.
    pub fn bytes(bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        Item::Bytes(bytes.into())
    }

    /// A string from text.
    pub fn text(text: &'a str) -> Self {
        Item::Bytes(Cow::Borrowed(text.as_bytes()))
    }

    /// A dictionary; of two entries with one key the later stays.
    pub fn dict(entries: impl IntoIterator<Item = (&'a [u8], Item<'a>)>) -> Self {
        Item::Dict(entries.into_iter().collect())
    }

    /// The canonical encoding.
    ///
    /// # Panics
    /// If our own code nests values deeper than [`DEPTH_MAX`].
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = bendy::encoding::Encoder::new().with_max_depth(DEPTH_MAX);
        let written = encoder.emit_with(|slot| self.emit(slot));
        match written.and_then(|()| encoder.get_output()) {
            Ok(bytes) => bytes,
            Err(error) => panic!("our own values cannot be written: {error}"),
        }
    }

    fn emit(
        &self,
        slot: bendy::encoding::SingleItemEncoder<'_>,
    ) -> Result<(), bendy::encoding::Error> {
        match self {
            Item::Int(value) => slot.emit_int(*value),
            Item::Bytes(bytes) => slot.emit_bytes(bytes),
            Item::List(items) => slot.emit_list(|list| {
                items
                    .iter()
                    .try_for_each(|item| list.emit_with(|slot| item.emit(slot)))
            }),
            Item::Dict(entries) => slot.emit_dict(|mut dict| {
                entries
                    .iter()
                    .try_for_each(|(key, item)| dict.emit_pair_with(key, |slot| item.emit(slot)))
            }),
        }
    }
}
