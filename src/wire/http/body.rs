//! Bodies of HTTP/1.1: framing, gzip, and a cap. Layer 1.

use std::io::Write;

use flate2::write::MultiGzDecoder;

use super::{Framing, HttpError, ResponseHead};

/// Longest chunk-size line, extensions included; they are legal but nobody sends them.
const CHUNK_LINE_BYTES_MAX: usize = 256;

/// All trailer lines after a chunked body together; they are read only to be skipped.
const TRAILER_BYTES_MAX: usize = 8_192;

/// Finds the bytes of a body among those of its framing, holding none of them.
#[derive(Debug)]
pub struct Unframer {
    state: BodyState,
}

#[derive(Debug)]
enum BodyState {
    Length {
        left: u64,
    },
    UntilClose,
    ChunkLine {
        line: Vec<u8>,
    },
    ChunkData {
        left: u64,
    },
    ChunkEnd {
        seen: usize,
    },
    Trailer {
        line_bytes: usize,
        total_bytes: usize,
    },
    Done,
}

impl Unframer {
    /// Ready for the first byte after the head.
    pub fn new(framing: Framing) -> Self {
        Unframer {
            state: match framing {
                Framing::Length(0) => BodyState::Done,
                Framing::Length(left) => BodyState::Length { left },
                Framing::Chunked => BodyState::ChunkLine { line: Vec::new() },
                Framing::UntilClose => BodyState::UntilClose,
            },
        }
    }

    /// True once the whole body is in.
    pub const fn is_done(&self) -> bool {
        matches!(self.state, BodyState::Done)
    }

    /// True when the body may end here by the end of the connection.
    pub const fn may_end(&self) -> bool {
        matches!(self.state, BodyState::Done | BodyState::UntilClose)
    }

    /// Bytes that are known to come still, of the body or of its present chunk.
    pub const fn declared_bytes(&self) -> u64 {
        match self.state {
            BodyState::Length { left } | BodyState::ChunkData { left } => left,
            _ => 0,
        }
    }

    /// Takes bytes off the front of `input` and returns those that belong to the body, maybe none of them; `None` when
    /// the input is used up or the body is done.
    ///
    /// # Errors
    /// Bad chunks.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, HttpError> {
        if input.is_empty() || self.is_done() {
            return Ok(None);
        }
        let (used, is_data) = match self.state {
            BodyState::Length { left } => {
                let (used, left) = part_of(input, left);
                self.state = match left {
                    0 => BodyState::Done,
                    left => BodyState::Length { left },
                };
                (used, true)
            }
            BodyState::ChunkData { left } => {
                let (used, left) = part_of(input, left);
                self.state = match left {
                    0 => BodyState::ChunkEnd { seen: 0 },
                    left => BodyState::ChunkData { left },
                };
                (used, true)
            }
            BodyState::UntilClose => (input.len(), true),
            BodyState::ChunkLine { .. } => (self.take_chunk_line(input)?, false),
            BodyState::ChunkEnd { .. } => (self.take_chunk_end(input)?, false),
            BodyState::Trailer { .. } => (self.take_trailer(input)?, false),
            BodyState::Done => (0, false),
        };
        let (taken, rest) = input.split_at_checked(used).unwrap_or((input, &[]));
        *input = rest;
        Ok(Some(if is_data { taken } else { &[] }))
    }

    fn take_chunk_line(&mut self, bytes: &[u8]) -> Result<usize, HttpError> {
        let BodyState::ChunkLine { line } = &mut self.state else {
            return Ok(0);
        };
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let used = end.map_or(bytes.len(), |end| end + 1);
        line.extend_from_slice(bytes.get(..used).unwrap_or_default());
        if line.len() > CHUNK_LINE_BYTES_MAX {
            return Err(HttpError::BadChunk);
        }
        if end.is_some() {
            self.state = match parse_chunk_size(line)? {
                0 => BodyState::Trailer {
                    line_bytes: 0,
                    total_bytes: 0,
                },
                left => BodyState::ChunkData { left },
            };
        }
        Ok(used)
    }

    fn take_chunk_end(&mut self, bytes: &[u8]) -> Result<usize, HttpError> {
        let BodyState::ChunkEnd { seen } = self.state else {
            return Ok(0);
        };
        self.state = match (seen, bytes.first()) {
            (_, Some(b'\n')) => BodyState::ChunkLine { line: Vec::new() },
            (0, Some(b'\r')) => BodyState::ChunkEnd { seen: 1 },
            _ => return Err(HttpError::BadChunk),
        };
        Ok(1)
    }

    fn take_trailer(&mut self, bytes: &[u8]) -> Result<usize, HttpError> {
        let BodyState::Trailer {
            line_bytes,
            total_bytes,
        } = self.state
        else {
            return Ok(0);
        };
        if total_bytes >= TRAILER_BYTES_MAX {
            return Err(HttpError::BadChunk);
        }
        self.state = match bytes.first() {
            Some(b'\n') if line_bytes == 0 => BodyState::Done,
            Some(b'\n') => BodyState::Trailer {
                line_bytes: 0,
                total_bytes: total_bytes + 1,
            },
            Some(b'\r') => BodyState::Trailer {
                line_bytes,
                total_bytes: total_bytes + 1,
            },
            _ => BodyState::Trailer {
                line_bytes: line_bytes + 1,
                total_bytes: total_bytes + 1,
            },
        };
        Ok(1)
    }
}

/// How many of these bytes are among the next `left`, and how many of those are left then.
fn part_of(bytes: &[u8], left: u64) -> (usize, u64) {
    let used = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (used, left.saturating_sub(used as u64))
}

fn parse_chunk_size(line: &[u8]) -> Result<u64, HttpError> {
    let digits = line
        .split(|&byte| byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    // 16 digits fill a u64; an empty size or a sign is no size.
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(HttpError::BadChunk);
    }
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(HttpError::BadChunk)
}

/// Turns the bytes after a head into the body, never holding more than its cap.
#[derive(Debug)]
pub struct BodyDecoder {
    framing: Unframer,
    sink: Sink,
    /// Bytes still accepted before unpacking, so that empty gzip blocks do not flow for ever.
    packed_left: usize,
    body_bytes_max: usize,
}

#[derive(Debug)]
enum Sink {
    Plain(Capped),
    Gzip(Box<MultiGzDecoder<Capped>>),
}

/// A `Vec` that refuses to grow past its cap.
#[derive(Debug)]
struct Capped {
    bytes: Vec<u8>,
    max: usize,
    is_over: bool,
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.max - self.bytes.len() {
            self.is_over = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl BodyDecoder {
    /// Ready for the first byte after `head`; the body may have up to `body_bytes_max` bytes, packed and unpacked.
    pub fn new(head: &ResponseHead, body_bytes_max: usize) -> Self {
        let capped = Capped {
            bytes: Vec::new(),
            max: body_bytes_max,
            is_over: false,
        };
        BodyDecoder {
            framing: Unframer::new(head.framing),
            sink: if head.is_gzip {
                Sink::Gzip(Box::new(MultiGzDecoder::new(capped)))
            } else {
                Sink::Plain(capped)
            },
            packed_left: body_bytes_max,
            body_bytes_max,
        }
    }

    /// True once the whole body is in.
    pub fn is_done(&self) -> bool {
        self.framing.is_done()
    }

    /// Takes bytes as they came and tells how many belong to this body.
    ///
    /// # Errors
    /// Over the cap (a declared length over it fails at once), bad chunks, corrupt gzip.
    pub fn push(&mut self, bytes: &[u8]) -> Result<usize, HttpError> {
        let mut rest = bytes;
        loop {
            let declared = usize::try_from(self.framing.declared_bytes());
            if !rest.is_empty() && declared.map_or(true, |declared| declared > self.packed_left) {
                return Err(self.too_long());
            }
            match self.framing.next(&mut rest)? {
                Some(data) => self.keep(data)?,
                None => return Ok(bytes.len() - rest.len()),
            }
        }
    }

    /// The connection closed: the body, if that is a proper end of it or it was complete before.
    ///
    /// # Errors
    /// The body or its gzip data is cut off.
    pub fn finish(self) -> Result<Vec<u8>, HttpError> {
        if !self.framing.may_end() {
            return Err(HttpError::Truncated);
        }
        match self.sink {
            Sink::Plain(capped) => Ok(capped.bytes),
            // No byte at all is an empty body whatever its coding.
            Sink::Gzip(_) if self.packed_left == self.body_bytes_max => Ok(Vec::new()),
            Sink::Gzip(decoder) => decoder
                .finish()
                .map(|capped| capped.bytes)
                .map_err(|_| HttpError::BadGzip),
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), HttpError> {
        self.packed_left = self
            .packed_left
            .checked_sub(bytes.len())
            .ok_or_else(|| self.too_long())?;
        match &mut self.sink {
            Sink::Plain(capped) => capped.write_all(bytes).map_err(|_| self.too_long()),
            Sink::Gzip(decoder) => match decoder.write_all(bytes) {
                Ok(()) => Ok(()),
                Err(_) if decoder.get_ref().is_over => Err(self.too_long()),
                Err(_) => Err(HttpError::BadGzip),
            },
        }
    }

    fn too_long(&self) -> HttpError {
        HttpError::BodyTooLong {
            max_bytes: self.body_bytes_max,
        }
    }
}
