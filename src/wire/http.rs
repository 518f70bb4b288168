//! HTTP/1.1 messages as bytes: request and response heads. Layer 1.
//!
//! Heads go through `httparse`; bodies are in `http/body.rs`, ranges in `http/range.rs`. Holds no sockets and no
//! deadlines; those are `session::http`'s.

mod body;
mod range;

use std::time::Duration;

use super::tracker::clean_text;
pub use body::{BodyDecoder, Unframer};
pub use range::ContentRange;

/// Longest head accepted, in bytes; common servers send under 1 KiB and refuse to take more than 8 KiB themselves.
pub const HEAD_BYTES_MAX: usize = 16_384;

/// Most header lines accepted in one head, several times what any tracker or browser sends.
pub const HEADERS_MAX: usize = 100;

/// Why bytes are no acceptable HTTP message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    #[error("the head is longer than {HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    #[error("the head is not HTTP ({reason})")]
    BadHead { reason: String },
    #[error("the content-length `{got}` is not a number, or there are several")]
    BadContentLength { got: String },
    #[error("the content-range `{got}` is no range of bytes")]
    BadContentRange { got: String },
    #[error("the transfer coding `{got}` is not supported")]
    UnsupportedTransferCoding { got: String },
    #[error("the content coding `{got}` is not supported")]
    UnsupportedContentCoding { got: String },
    #[error("a chunk's size is not a hexadecimal number of at most 16 digits")]
    BadChunk,
    #[error("the body is longer than {max_bytes} bytes")]
    BodyTooLong { max_bytes: usize },
    #[error("the gzip data is corrupt")]
    BadGzip,
    #[error("the connection closed in mid-message")]
    Truncated,
}

/// How the end of a body is found (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// What a response's head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    pub status: u16,
    pub framing: Framing,
    pub is_gzip: bool,
    /// The connection may carry another request after this body.
    pub is_keep_alive: bool,
    /// The `Location` header, as UTF-8.
    pub location: Option<String>,
    /// The `Content-Range` header; `None` without one, and an error where there are several or it is none.
    pub content_range: Option<Result<ContentRange, HttpError>>,
    /// How long the server wishes to be left alone (`Retry-After` in seconds; a date is passed over: clocks differ).
    pub retry_after: Option<Duration>,
}

impl ResponseHead {
    /// Parses a response head at the start of `bytes` and tells its length; `None` when more bytes are needed.
    ///
    /// # Errors
    /// No HTTP, too long, contradictory lengths, or codings nobody asked for.
    pub fn parse(bytes: &[u8]) -> Result<Option<(ResponseHead, usize)>, HttpError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let window = bytes.get(..HEAD_BYTES_MAX).unwrap_or(bytes);
        let parsed = response.parse(window).map_err(bad_head)?;
        let httparse::Status::Complete(head_bytes) = parsed else {
            return incomplete(bytes);
        };
        let status = response.code.unwrap_or(0);
        let facts = Facts::read(response.headers)?;
        let is_bodyless = status / 100 == 1 || status == 204 || status == 304;
        let framing = match (is_bodyless, facts.is_chunked, facts.length) {
            (true, _, _) => Framing::Length(0),
            (_, true, _) => Framing::Chunked,
            (_, _, Some(length)) => Framing::Length(length),
            _ => Framing::UntilClose,
        };
        // Chunked together with a length smells of request smuggling: such a connection is not used again.
        let is_ambiguous = facts.is_chunked && facts.length.is_some();
        let head = ResponseHead {
            status,
            framing,
            is_gzip: facts.is_gzip,
            is_keep_alive: facts.is_keep_alive(response.version == Some(1))
                && framing != Framing::UntilClose
                && !is_ambiguous,
            location: facts.location,
            content_range: facts.content_range,
            retry_after: facts.retry_after,
        };
        Ok(Some((head, head_bytes)))
    }
}

/// What a request's head says, for our own tracker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    pub method: String,
    /// Path and query, as sent.
    pub target: Vec<u8>,
    pub is_keep_alive: bool,
    /// A body is announced.
    pub has_body: bool,
}

impl RequestHead {
    /// Parses a request head at the start of `bytes` and tells its length; `None` when more bytes are needed.
    ///
    /// # Errors
    /// No HTTP, or too long.
    pub fn parse(bytes: &[u8]) -> Result<Option<(RequestHead, usize)>, HttpError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let window = bytes.get(..HEAD_BYTES_MAX).unwrap_or(bytes);
        let parsed = request.parse(window).map_err(bad_head)?;
        let httparse::Status::Complete(head_bytes) = parsed else {
            return incomplete(bytes);
        };
        let facts = Facts::read(request.headers)?;
        let head = RequestHead {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().as_bytes().to_vec(),
            is_keep_alive: facts.is_keep_alive(request.version == Some(1)),
            has_body: facts.is_chunked || facts.length.is_some_and(|length| length > 0),
        };
        Ok(Some((head, head_bytes)))
    }
}

/// The header lines that matter.
#[derive(Default)]
struct Facts {
    length: Option<u64>,
    is_chunked: bool,
    is_gzip: bool,
    says_close: bool,
    says_keep_alive: bool,
    location: Option<String>,
    content_range: Option<Result<ContentRange, HttpError>>,
    retry_after: Option<Duration>,
}

impl Facts {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Facts, HttpError> {
        let mut facts = Facts::default();
        for header in headers {
            let value = header.value.trim_ascii();
            match header.name.to_ascii_lowercase().as_str() {
                "content-length" => facts.set_length(value)?,
                "transfer-encoding" => facts.set_transfer_coding(value)?,
                "content-encoding" => facts.set_content_coding(value)?,
                "connection" | "proxy-connection" => facts.set_connection(value),
                "location" => facts.location = Some(String::from_utf8_lossy(value).into_owned()),
                "content-range" => facts.set_content_range(value),
                "retry-after" => facts.retry_after = parse_seconds(value),
                _ => {}
            }
        }
        Ok(facts)
    }

    /// Kept as an error: it matters only to whoever asked for a range.
    fn set_content_range(&mut self, value: &[u8]) {
        let range = ContentRange::parse(value);
        self.content_range = Some(match self.content_range.take() {
            None => range,
            Some(_) => Err(HttpError::BadContentRange {
                got: "several".to_owned(),
            }),
        });
    }

    fn set_length(&mut self, value: &[u8]) -> Result<(), HttpError> {
        let bad = || HttpError::BadContentLength {
            got: clean_text(value),
        };
        // `parse` alone would take a sign.
        if !value.iter().all(u8::is_ascii_digit) {
            return Err(bad());
        }
        let length = std::str::from_utf8(value)
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(bad)?;
        if self.length.is_some_and(|earlier| earlier != length) {
            return Err(bad());
        }
        self.length = Some(length);
        Ok(())
    }

    fn set_transfer_coding(&mut self, value: &[u8]) -> Result<(), HttpError> {
        match value.to_ascii_lowercase().as_slice() {
            b"chunked" => self.is_chunked = true,
            b"identity" | b"" => {}
            _ => {
                let got = clean_text(value);
                return Err(HttpError::UnsupportedTransferCoding { got });
            }
        }
        Ok(())
    }

    fn set_content_coding(&mut self, value: &[u8]) -> Result<(), HttpError> {
        match value.to_ascii_lowercase().as_slice() {
            b"gzip" | b"x-gzip" => self.is_gzip = true,
            b"identity" | b"" => {}
            _ => {
                let got = clean_text(value);
                return Err(HttpError::UnsupportedContentCoding { got });
            }
        }
        Ok(())
    }

    fn set_connection(&mut self, value: &[u8]) {
        for token in value.to_ascii_lowercase().split(|&byte| byte == b',') {
            self.says_close |= token.trim_ascii() == b"close";
            self.says_keep_alive |= token.trim_ascii() == b"keep-alive";
        }
    }

    fn is_keep_alive(&self, is_http_11: bool) -> bool {
        !self.says_close && (is_http_11 || self.says_keep_alive)
    }
}

fn parse_seconds(value: &[u8]) -> Option<Duration> {
    let is_number = value.iter().all(u8::is_ascii_digit);
    let seconds = std::str::from_utf8(value).ok()?.parse().ok()?;
    is_number.then_some(Duration::from_secs(seconds))
}

fn bad_head(error: httparse::Error) -> HttpError {
    HttpError::BadHead {
        reason: error.to_string(),
    }
}

fn incomplete<T>(bytes: &[u8]) -> Result<Option<T>, HttpError> {
    if bytes.len() < HEAD_BYTES_MAX {
        Ok(None)
    } else {
        Err(HttpError::HeadTooLong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    /// Decodes a whole response given in pieces of `step` bytes.
    fn decode(bytes: &[u8], step: usize, max: usize) -> Result<Vec<u8>, HttpError> {
        let mut have = Vec::new();
        let mut pieces = bytes.chunks(step);
        let (head, head_bytes) = loop {
            if let Some(found) = ResponseHead::parse(&have)? {
                break found;
            }
            have.extend_from_slice(pieces.next().ok_or(HttpError::Truncated)?);
        };
        let mut body = BodyDecoder::new(&head, max);
        body.push(&have[head_bytes..])?;
        for piece in pieces {
            body.push(piece)?;
        }
        body.finish()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn bodies_are_found_whatever_the_framing_and_the_cut() {
        let cases: [(&[u8], &[u8]); 6] = [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
            (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc"),
            (b"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", b""),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n001\r\nc\r\n0\r\nT: v\r\n\r\n",
                b"abc",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n3\nabc\n0\n\n",
                b"abc",
            ),
            (b"HTTP/1.1 200\nContent-Length: 0\n\n", b""),
        ];
        for (bytes, expected) in cases {
            for step in 1..=bytes.len() {
                let text = String::from_utf8_lossy(bytes);
                assert_eq!(decode(bytes, step, 100).unwrap(), expected, "{text}");
            }
        }
    }

    #[test]
    fn gzip_bodies_are_unpacked_and_bombs_stop_at_the_cap() {
        let packed = gzip(b"d8:completei1ee");
        let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n".to_vec();
        bytes.extend(&packed);
        assert_eq!(decode(&bytes, 1, 100).unwrap(), b"d8:completei1ee");
        bytes.truncate(bytes.len() - 9);
        assert_eq!(decode(&bytes, 7, 100), Err(HttpError::BadGzip));

        let mut bomb = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n".to_vec();
        bomb.extend(gzip(&vec![0; 50_000_000]));
        let error = HttpError::BodyTooLong {
            max_bytes: 1_048_576,
        };
        assert_eq!(decode(&bomb, 4_096, 1_048_576), Err(error));
    }

    #[test]
    fn long_bodies_and_bad_chunks_are_errors() {
        let too_long = Err(HttpError::BodyTooLong { max_bytes: 10 });
        type Body = Result<Vec<u8>, HttpError>;
        let cases: [(&[u8], Body); 9] = [
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\na",
                too_long.clone(),
            ),
            (b"HTTP/1.0 200 OK\r\n\r\n01234567890", too_long.clone()),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\na",
                too_long,
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\na",
                Err(HttpError::BadChunk),
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
                Err(HttpError::BadChunk),
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab",
                Err(HttpError::BadChunk),
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
                Err(HttpError::Truncated),
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na",
                Err(HttpError::Truncated),
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\na",
                Err(HttpError::BadContentLength { got: "3".into() }),
            ),
        ];
        for (bytes, expected) in cases {
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(decode(bytes, 5, 10), expected, "{text}");
        }
    }

    #[test]
    fn huge_heads_are_refused() {
        let mut endless = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        endless.resize(HEAD_BYTES_MAX - 1, b'x');
        assert_eq!(ResponseHead::parse(&endless), Ok(None));
        endless.push(b'x');
        assert_eq!(ResponseHead::parse(&endless), Err(HttpError::HeadTooLong));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
        assert!(matches!(
            ResponseHead::parse(many.as_bytes()),
            Err(HttpError::BadHead { .. })
        ));
    }

    #[test]
    fn keep_alive_follows_version_and_header() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: foo, Close\r\n\r\n",
                false,
            ),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", false),
        ] {
            let (head, _) = ResponseHead::parse(text.as_bytes()).unwrap().unwrap();
            assert_eq!(head.is_keep_alive, expected, "{text}");
        }
    }

    #[test]
    fn a_request_head_is_read() {
        let bytes = b"GET /announce?x=%01 HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nrest";
        let (head, used) = RequestHead::parse(bytes).unwrap().unwrap();
        assert_eq!(used, bytes.len() - 4);
        assert_eq!(
            (head.method.as_str(), head.target.as_slice()),
            ("GET", &b"/announce?x=%01"[..])
        );
        assert!(head.is_keep_alive && head.has_body);
    }

    proptest::proptest! {
        #[test]
        fn mutated_responses_never_panic(at in 0usize..120, byte: u8, cut in 0usize..120, step in 1usize..9) {
            let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n2;x=y\r\nab\r\n001\r\nc\r\n0\r\nT: v\r\n\r\n".to_vec();
            if let Some(slot) = bytes.get_mut(at) { *slot = byte; }
            bytes.truncate(cut);
            let _ = decode(&bytes, step, 8);
            let _ = RequestHead::parse(&bytes);
        }
    }
}
