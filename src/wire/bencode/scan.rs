//! The scanner: one pass over the bytes, no recursion, no allocation by a declared length. Layer 1.

use super::{BencodeError, DEPTH_MAX, DOCUMENT_BYTES_MAX, Scanned, TOKENS_MAX};

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

pub(super) enum Prefix {
    /// Declared bytes, and bytes taken by the digits and the colon.
    Length(u64, usize),
    Truncated,
    Bad,
}

/// Reads `123:`; no leading zeros.
pub(super) fn length_prefix(bytes: &[u8]) -> Prefix {
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
pub(super) fn integer(bytes: &[u8]) -> Option<(i64, usize)> {
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
