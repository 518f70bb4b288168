//! The few kinds of URL Gyre meets: `http`, `https` and `udp` with a host, for trackers and .torrent files. Layer 1.
//!
//! A parsed URL has no control characters and no spaces, so it can be written into a request head as it is.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Longest URL accepted, in bytes; longer ones do not fit the request heads that servers take (commonly 8 KiB).
pub const URL_BYTES_MAX: usize = 4_096;

/// What is spoken at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    /// Parsed so that the refusal can say why.
    Https,
    /// A tracker of BEP 15.
    Udp,
}

/// Where the URL leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name for the resolver, in lower case.
    Name(String),
    Ip(IpAddr),
}

/// One absolute URL, without its fragment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Url {
    scheme: Scheme,
    userinfo: Option<String>,
    host: Host,
    port: u16,
    target: String,
}

/// Why a text is no usable URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("the URL is {got_bytes} bytes long, at most {URL_BYTES_MAX} are accepted")]
    TooLong { got_bytes: usize },
    #[error("the URL does not begin with http://, https:// or udp://")]
    UnsupportedScheme,
    #[error("the URL names no valid host")]
    BadHost,
    #[error("the URL's port is not a number in 1..=65535")]
    BadPort,
    #[error("the URL contains control characters")]
    ControlCharacter,
}

impl Url {
    /// Parses an absolute URL. Spaces and non-ASCII characters of path and query are percent-encoded.
    ///
    /// # Errors
    /// Another scheme, no host, a bad port, control characters, or more than [`URL_BYTES_MAX`] bytes.
    pub fn parse(text: &str) -> Result<Url, UrlError> {
        let text = text.trim_matches(' ');
        if text.len() > URL_BYTES_MAX {
            return Err(UrlError::TooLong {
                got_bytes: text.len(),
            });
        }
        if text.chars().any(char::is_control) {
            return Err(UrlError::ControlCharacter);
        }
        let (scheme, rest) = split_scheme(text)?;
        let rest = rest.split('#').next().unwrap_or(rest);
        let split = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(split);
        let (userinfo, host_port) = match authority.rsplit_once('@') {
            Some((userinfo, host_port)) => (Some(encode(userinfo)), host_port),
            None => (None, authority),
        };
        let (host, port) = split_host_port(host_port)?;
        let default_port = if scheme == Scheme::Https { 443 } else { 80 };
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Url {
            scheme,
            userinfo,
            host,
            port: port.unwrap_or(default_port),
            target: format!("{slash}{}", encode(target)),
        })
    }

    /// Resolves a `Location` header against this URL (RFC 3986 §5, without dot segments in the middle).
    ///
    /// # Errors
    /// As [`Url::parse`]; in particular every scheme but the three known ones.
    pub fn join(&self, location: &str) -> Result<Url, UrlError> {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Udp => "udp",
        };
        if let Some(rest) = location.strip_prefix("//") {
            return Url::parse(&format!("{scheme}://{rest}"));
        }
        if has_scheme(location) {
            return Url::parse(location);
        }
        let path = self.target.split('?').next().unwrap_or("/");
        let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
        let target = match location.chars().next() {
            Some('/') => location.to_owned(),
            Some('?') => format!("{path}{location}"),
            _ => format!("{folder}{location}"),
        };
        Url::parse(&format!("{scheme}://{}{target}", self.authority()))
    }

    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `user:password` as written (percent-encoded), if any.
    pub fn userinfo(&self) -> Option<&str> {
        self.userinfo.as_deref()
    }

    /// Path and query, beginning with `/`: what stands in a request line.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The same URL with more query parameters (`a=1&b=2`); an existing query is kept.
    pub fn with_query(&self, parameters: &str) -> Url {
        let mark = if self.target.contains('?') { '&' } else { '?' };
        Url {
            target: format!("{}{mark}{parameters}", self.target),
            ..self.clone()
        }
    }

    /// The same URL with another path and query, which begin with `/`.
    pub(super) fn with_target(&self, target: String) -> Url {
        Url {
            target,
            ..self.clone()
        }
    }

    /// Host and, unless it is the scheme's own, port: what stands in a `Host` header.
    pub fn authority(&self) -> String {
        match (self.scheme, self.port) {
            (Scheme::Http, 80) | (Scheme::Https, 443) => self.host.to_string(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }
}

impl fmt::Display for Url {
    /// The URL without its userinfo, which may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Udp => "udp",
        };
        write!(f, "{scheme}://{}{}", self.authority(), self.target)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// Appends bytes percent-encoded, all but RFC 3986's unreserved characters.
pub fn percent_encode(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

/// Undoes percent-encoding; a `%` without two hexadecimal digits stands for itself.
pub fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        let decoded = match (first, tail) {
            (b'%', [high, low, ..]) => hex_digit(*high).zip(hex_digit(*low)),
            _ => None,
        };
        if let Some((high, low)) = decoded {
            bytes.push(high << 4 | low);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(first);
        }
    }
    bytes
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

fn split_scheme(text: &str) -> Result<(Scheme, &str), UrlError> {
    let (scheme, rest) = text.split_once("://").ok_or(UrlError::UnsupportedScheme)?;
    match scheme.to_ascii_lowercase().as_str() {
        "http" => Ok((Scheme::Http, rest)),
        "https" => Ok((Scheme::Https, rest)),
        "udp" => Ok((Scheme::Udp, rest)),
        _ => Err(UrlError::UnsupportedScheme),
    }
}

/// True for `file:/x` as for `http://x`: a relative path has no colon before its first slash.
fn has_scheme(location: &str) -> bool {
    location.find(':').is_some_and(|colon| {
        location[..colon]
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

fn split_host_port(text: &str) -> Result<(Host, Option<u16>), UrlError> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (ip, tail) = rest.split_once(']').ok_or(UrlError::BadHost)?;
        let ip: Ipv6Addr = ip.parse().map_err(|_| UrlError::BadHost)?;
        let port = match tail {
            "" => None,
            _ => Some(tail.strip_prefix(':').ok_or(UrlError::BadHost)?),
        };
        (Host::Ip(IpAddr::V6(ip)), port)
    } else {
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        };
        (parse_host(name)?, port)
    };
    let port = match port {
        None | Some("") => None,
        Some(digits) => Some(parse_port(digits)?),
    };
    Ok((host, port))
}

fn parse_host(name: &str) -> Result<Host, UrlError> {
    if let Ok(ip) = name.parse() {
        return Ok(Host::Ip(IpAddr::V4(ip)));
    }
    let is_plain = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    // 253 is the longest name DNS can carry.
    if name.is_empty() || name.len() > 253 || !is_plain {
        return Err(UrlError::BadHost);
    }
    Ok(Host::Name(name.to_ascii_lowercase()))
}

fn parse_port(digits: &str) -> Result<u16, UrlError> {
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse() {
        Ok(port) if is_number && port != 0 => Ok(port),
        _ => Err(UrlError::BadPort),
    }
}

/// Percent-encodes what may not stand in a request line and leaves everything else, escapes included, as written.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_graphic() {
            out.push(c);
        } else {
            percent_encode(c.encode_utf8(&mut [0; 4]).as_bytes(), &mut out);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_url_are_found() {
        let url = Url::parse("http://u:p@Tracker.example:8080/a b/announce?k=ä#x").unwrap();
        assert_eq!(url.scheme(), Scheme::Http);
        assert_eq!(url.host(), &Host::Name("tracker.example".into()));
        assert_eq!(url.port(), 8080);
        assert_eq!(url.userinfo(), Some("u:p"));
        assert_eq!(url.target(), "/a%20b/announce?k=%C3%A4");
        assert_eq!(url.authority(), "tracker.example:8080");
        assert!(!url.to_string().contains("u:p"), "no password in logs");

        let url = Url::parse("HTTP://[2001:db8::1]").unwrap();
        assert_eq!(
            (url.authority().as_str(), url.target()),
            ("[2001:db8::1]", "/")
        );
        let url = Url::parse("udp://1.2.3.4:6969?x").unwrap();
        assert_eq!(
            (url.authority().as_str(), url.target()),
            ("1.2.3.4:6969", "/?x")
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for (text, error) in [
            ("file:///etc/passwd", UrlError::UnsupportedScheme),
            ("wss://host/", UrlError::UnsupportedScheme),
            ("host/announce", UrlError::UnsupportedScheme),
            ("http:///announce", UrlError::BadHost),
            ("http://a b/", UrlError::BadHost),
            ("http://[::1/", UrlError::BadHost),
            ("http://[::1]x/", UrlError::BadHost),
            ("http://h:0/", UrlError::BadPort),
            ("http://h:65536/", UrlError::BadPort),
            ("http://h:+5/", UrlError::BadPort),
            ("http://h/\r\nX: y", UrlError::ControlCharacter),
        ] {
            assert_eq!(Url::parse(text), Err(error), "{text}");
        }
        let long = format!("http://h/{}", "x".repeat(URL_BYTES_MAX));
        assert!(matches!(Url::parse(&long), Err(UrlError::TooLong { .. })));
    }

    #[test]
    fn locations_resolve_against_the_url() {
        let base = Url::parse("http://h:81/a/b?q").unwrap();
        for (location, expected) in [
            ("http://other/x", "http://other/x"),
            ("//other/x", "http://other/x"),
            ("/x?y:z", "http://h:81/x?y:z"),
            ("c", "http://h:81/a/c"),
            ("?n", "http://h:81/a/b?n"),
        ] {
            assert_eq!(base.join(location).unwrap().to_string(), expected);
        }
        assert_eq!(
            base.join("file:/etc/passwd"),
            Err(UrlError::UnsupportedScheme)
        );
    }

    #[test]
    fn percent_encoding_round_trips_every_byte() {
        let all: Vec<u8> = (0..=255).collect();
        let mut text = String::new();
        percent_encode(&all, &mut text);
        assert_eq!(percent_decode(text.as_bytes()), all);
        assert_eq!(percent_decode(b"%zz%4"), b"%zz%4");
    }

    proptest::proptest! {
        #[test]
        fn any_text_parses_or_fails_cleanly(text in "\\PC{0,60}") {
            let _ = Url::parse(&text);
            let _ = Url::parse(&format!("http://{text}"));
            let _ = Url::parse("http://h/a").unwrap().join(&text);
        }
    }
}
