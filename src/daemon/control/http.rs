//! Requests and answers of HTTP/1.1 as the control server has them. Layer 6.
//!
//! Heads go through `httparse`, bodies through `wire::http`; sockets and times are in `server.rs`.

use crate::wire::http::{Framing, HEAD_BYTES_MAX, HEADERS_MAX};

/// A request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// Without the query, percent escapes as they came.
    pub path: String,
    /// Behind the `?`, percent escapes as they came.
    pub query: String,
    pub host: Option<String>,
    pub origin: Option<String>,
    /// The page that it comes from, and how a browser says that that is to us.
    pub referer: Option<String>,
    pub fetch_site: Option<String>,
    /// All cookies, in one line.
    pub cookie: Option<String>,
    pub content_type: Option<String>,
    pub authorization: Option<String>,
    pub session_id: Option<String>,
    pub if_none_match: Option<String>,
    pub framing: Framing,
    pub is_keep_alive: bool,
    /// It waits for `100 Continue` before it sends its body.
    pub waits: bool,
}

/// Why bytes are no request, as the status to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    Malformed,
    HeadTooLong,
    /// A coding that is not `chunked`.
    UnknownCoding,
}

impl BadRequest {
    /// The status.
    pub const fn status(self) -> u16 {
        match self {
            BadRequest::Malformed => 400,
            BadRequest::HeadTooLong => 431,
            BadRequest::UnknownCoding => 501,
        }
    }
}

impl Request {
    /// Parses the head at the start of `bytes` and tells its length; `None` when more bytes are needed.
    ///
    /// # Errors
    /// No HTTP, too long, or a body whose end could be seen in two ways.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, BadRequest> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Request::new(&mut headers);
        let window = bytes.get(..HEAD_BYTES_MAX).unwrap_or(bytes);
        let length = match head.parse(window) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Err(BadRequest::HeadTooLong);
            }
            Err(_) => return Err(BadRequest::Malformed),
        };
        let is_11 = head.version == Some(1);
        let target = head.path.unwrap_or_default();
        let target = target.split('#').next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Request {
            method: head.method.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            host: None,
            origin: None,
            referer: None,
            fetch_site: None,
            cookie: None,
            content_type: None,
            authorization: None,
            session_id: None,
            if_none_match: None,
            framing: Framing::Length(0),
            is_keep_alive: is_11,
            waits: false,
        };
        let (mut length_bytes, mut is_chunked) = (None, false);
        for header in head.headers.iter() {
            let value = std::str::from_utf8(header.value).map(str::trim);
            let value = value.map_err(|_| BadRequest::Malformed);
            match header.name.to_ascii_lowercase().as_str() {
                "host" => once(&mut request.host, value?)?,
                "origin" => once(&mut request.origin, value?)?,
                "referer" => once(&mut request.referer, value?)?,
                "sec-fetch-site" => once(&mut request.fetch_site, value?)?,
                "content-type" => once(&mut request.content_type, value?)?,
                "cookie" => {
                    let all = request.cookie.get_or_insert_default();
                    all.push_str("; ");
                    all.push_str(value?);
                }
                "authorization" => once(&mut request.authorization, value?)?,
                "x-transmission-session-id" => once(&mut request.session_id, value?)?,
                "if-none-match" => request.if_none_match = Some(value?.to_owned()),
                "content-length" => {
                    let digits = value?;
                    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
                    let number = digits.parse::<u64>().ok().filter(|_| is_number);
                    let number = number.ok_or(BadRequest::Malformed)?;
                    if length_bytes.is_some_and(|earlier| earlier != number) {
                        return Err(BadRequest::Malformed);
                    }
                    length_bytes = Some(number);
                }
                "transfer-encoding" if value?.eq_ignore_ascii_case("chunked") => is_chunked = true,
                "transfer-encoding" => return Err(BadRequest::UnknownCoding),
                "content-encoding" if !value?.eq_ignore_ascii_case("identity") => {
                    return Err(BadRequest::UnknownCoding);
                }
                "expect" => request.waits = value?.eq_ignore_ascii_case("100-continue"),
                "connection" => {
                    for word in value?.split(',').map(str::trim) {
                        if word.eq_ignore_ascii_case("close") {
                            request.is_keep_alive = false;
                        } else if word.eq_ignore_ascii_case("keep-alive") {
                            request.is_keep_alive = true;
                        }
                    }
                }
                _ => {}
            }
        }
        request.framing = match (is_chunked, length_bytes) {
            // Both together smell of request smuggling.
            (true, Some(_)) => return Err(BadRequest::Malformed),
            (true, None) => Framing::Chunked,
            (false, length) => Framing::Length(length.unwrap_or(0)),
        };
        Ok(Some((request, length)))
    }

    /// A body follows.
    pub fn has_body(&self) -> bool {
        self.framing != Framing::Length(0)
    }
}

/// What is asked who one is, or where one goes, is said once.
fn once(place: &mut Option<String>, value: &str) -> Result<(), BadRequest> {
    match place.replace(value.to_owned()) {
        None => Ok(()),
        Some(_) => Err(BadRequest::Malformed),
    }
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub content_type: &'static str,
    /// Besides those that every answer has.
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// An answer in a few words.
    pub fn plain(status: u16, words: &str) -> Response {
        Response {
            status,
            content_type: "text/plain; charset=utf-8",
            headers: Vec::new(),
            body: format!("{words}\n").into_bytes(),
        }
    }

    /// JSON.
    pub fn json(body: Vec<u8>) -> Response {
        Response {
            status: 200,
            content_type: "application/json; charset=utf-8",
            headers: Vec::new(),
            body,
        }
    }

    /// The same with one more header.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Response {
        self.headers.push((name, value.into()));
        self
    }

    /// The head, as far as the body is not a stream.
    pub fn head(&self, keeps: bool) -> Vec<u8> {
        let length = match self.status {
            204 | 304 => String::new(),
            _ => format!("Content-Length: {}\r\n", self.body.len()),
        };
        self.head_with(&length, keeps)
    }

    /// The head of a stream that ends with the connection.
    pub fn stream_head(&self) -> Vec<u8> {
        self.head_with("", false)
    }

    fn head_with(&self, framing: &str, keeps: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        if !self.content_type.is_empty() {
            head.push_str(&format!("Content-Type: {}\r\n", self.content_type));
        }
        head.push_str(framing);
        let is_own = |name: &str| self.headers.iter().all(|(own, _)| *own != name);
        for (name, value) in SECURITY.into_iter().filter(|(name, _)| is_own(name)) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut is_cached = false;
        for (name, value) in &self.headers {
            is_cached |= *name == "Cache-Control";
            // A line break would begin a header of somebody else's.
            let value: String = value.chars().filter(|c| !c.is_control()).collect();
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !is_cached {
            head.push_str("Cache-Control: no-store\r\n");
        }
        let connection = if keeps { "keep-alive" } else { "close" };
        head.push_str(&format!("Connection: {connection}\r\n\r\n"));
        head.into_bytes()
    }
}

/// On every answer: nothing from elsewhere is loaded, framed, guessed or told.
const SECURITY: [(&str, &str); 5] = [
    (
        "Content-Security-Policy",
        "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
];

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<(Request, usize)>, BadRequest> {
        Request::parse(text.as_bytes())
    }

    #[test]
    fn a_request_is_read_whatever_the_cut() {
        let text = "POST /transmission/rpc?x HTTP/1.1\r\nHost: a:1\r\nAUTHORIZATION: Basic eDp5\r\n\
                    X-Transmission-Session-Id: s\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
        for at in 0..text.len() {
            assert_eq!(parse(&text[..at]), Ok(None), "{at}");
        }
        let (request, length) = parse(&format!("{text}abc")).unwrap().unwrap();
        assert_eq!(length, text.len());
        assert_eq!(request.path, "/transmission/rpc");
        assert_eq!(request.query, "x");
        assert_eq!(request.host.as_deref(), Some("a:1"));
        assert_eq!(request.authorization.as_deref(), Some("Basic eDp5"));
        assert_eq!(request.session_id.as_deref(), Some("s"));
        assert_eq!(request.framing, Framing::Length(3));
        assert!(request.waits && request.is_keep_alive);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for lines in [
            "Host: a\r\nHost: b",
            "Content-Length: 3\r\nContent-Length: 4",
            "Content-Length: +3",
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Origin: a\r\nOrigin: a",
        ] {
            let text = format!("GET / HTTP/1.1\r\n{lines}\r\n\r\n");
            assert_eq!(parse(&text), Err(BadRequest::Malformed), "{lines}");
        }
        let gzip = "POST / HTTP/1.1\r\nContent-Encoding: gzip\r\n\r\n";
        assert_eq!(parse(gzip), Err(BadRequest::UnknownCoding));
    }

    #[test]
    fn endless_heads_end() {
        let mut head = b"GET / HTTP/1.1\r\nX: ".to_vec();
        head.resize(HEAD_BYTES_MAX, b'x');
        assert_eq!(Request::parse(&head), Err(BadRequest::HeadTooLong));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101));
        assert_eq!(parse(&many), Err(BadRequest::HeadTooLong));
    }

    #[test]
    fn a_value_of_a_header_begins_no_other_header() {
        let answer = Response::plain(200, "x").with("ETag", "a\r\nSet-Cookie: x");
        let head = String::from_utf8(answer.head(true)).unwrap();
        assert!(!head.contains("\nSet-Cookie"), "{head}");
        assert!(head.contains("default-src 'self'"), "{head}");
    }
}
