//! Bodies of `multipart/form-data` (RFC 7578), read in place. Layer 6.
//!
//! A body is whole in memory before it is looked at; its size was limited by whoever read it.

/// Parts of one body: a thousand .torrent files at once, and what goes with them.
pub const PARTS_MAX: usize = 1_100;
/// The head of one part: two lines in all clients.
pub const HEAD_BYTES_MAX: usize = 4_096;
/// RFC 2046, "Multipart".
const BOUNDARY_BYTES_MAX: usize = 70;

/// Why bytes are no parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    #[error("the body does not begin with its boundary")]
    NoBegin,
    #[error("the body ends before its last boundary")]
    NoEnd,
    #[error("the head of a part is longer than {HEAD_BYTES_MAX} bytes")]
    LongHead,
    #[error("a part has no name")]
    NoName,
    #[error("more than {PARTS_MAX} parts")]
    TooMany,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    pub name: String,
    /// It is a file; nothing is ever made of the name.
    pub file_name: Option<String>,
    pub data: &'a [u8],
}

/// The boundary that a `Content-Type` names, if it is that of a multipart form and can be one.
pub fn boundary(content_type: &str) -> Option<String> {
    let (kind, rest) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let found = parameters(rest).find(|(name, _)| name == "boundary")?.1;
    let is_sign = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    let is_good = (1..=BOUNDARY_BYTES_MAX).contains(&found.len()) && found.bytes().all(is_sign);
    is_good.then_some(found)
}

/// The parts of a body.
///
/// # Errors
/// See [`MultipartError`].
pub fn parse<'a>(body: &'a [u8], boundary: &str) -> Result<Vec<Part<'a>>, MultipartError> {
    let delimiter = format!("\r\n--{boundary}").into_bytes();
    let opening = delimiter.get(2..).unwrap_or_default();
    let mut parts = Vec::new();
    let first = match body.strip_prefix(opening).and_then(behind_delimiter) {
        Some(first) => first,
        None => {
            next_delimiter(body, &delimiter)
                .ok_or(MultipartError::NoBegin)?
                .1
        }
    };
    let mut follow = first;
    while let Follow::Part(rest) = follow {
        if parts.len() >= PARTS_MAX {
            return Err(MultipartError::TooMany);
        }
        let (head, rest) = split_head(rest)?;
        let (data, next) = next_delimiter(rest, &delimiter).ok_or(MultipartError::NoEnd)?;
        let (name, file_name) = names(head).ok_or(MultipartError::NoName)?;
        parts.push(Part {
            name,
            file_name,
            data,
        });
        follow = next;
    }
    Ok(parts)
}

/// What comes behind a delimiter.
enum Follow<'a> {
    Part(&'a [u8]),
    End,
}

/// The bytes up to the next delimiter, and what follows it. Linear in the bytes: a delimiter has no `\r` but its first.
fn next_delimiter<'a>(bytes: &'a [u8], delimiter: &[u8]) -> Option<(&'a [u8], Follow<'a>)> {
    let mut from = 0;
    loop {
        let rest = bytes.get(from..)?;
        let at = from + rest.iter().position(|byte| *byte == b'\r')?;
        let (before, found) = bytes.split_at(at);
        if let Some(follow) = found.strip_prefix(delimiter).and_then(behind_delimiter) {
            return Some((before, follow));
        }
        from = at + 1;
    }
}

/// `None` when the delimiter is only the beginning of other bytes.
fn behind_delimiter(bytes: &[u8]) -> Option<Follow<'_>> {
    if bytes.starts_with(b"--") {
        return Some(Follow::End);
    }
    let blanks = bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t'));
    // A few may pad it (RFC 2046); a part full of them is no delimiter.
    let blanks = blanks.take(BOUNDARY_BYTES_MAX).count();
    bytes.get(blanks..)?.strip_prefix(b"\r\n").map(Follow::Part)
}

fn split_head(bytes: &[u8]) -> Result<(&[u8], &[u8]), MultipartError> {
    // No lines at all: the head ends at once.
    if let Some(rest) = bytes.strip_prefix(b"\r\n") {
        return Ok((&[], rest));
    }
    let window = bytes.get(..HEAD_BYTES_MAX).unwrap_or(bytes);
    let end = window.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(end) = end else {
        return Err(match bytes.len() > HEAD_BYTES_MAX {
            true => MultipartError::LongHead,
            false => MultipartError::NoEnd,
        });
    };
    let (head, rest) = bytes.split_at(end);
    Ok((head, rest.get(4..).unwrap_or_default()))
}

/// The names in a part's `Content-Disposition`.
fn names(head: &[u8]) -> Option<(String, Option<String>)> {
    let head = std::str::from_utf8(head).ok()?;
    let value = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.trim().eq_ignore_ascii_case("content-disposition");
        is_it.then_some(value)
    })?;
    let (kind, rest) = value.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return None;
    }
    let (mut name, mut file_name) = (None, None);
    for (key, value) in parameters(rest) {
        match key.as_str() {
            "name" => name = name.or(Some(value)),
            "filename" | "filename*" => file_name = file_name.or(Some(value)),
            _ => {}
        }
    }
    Some((name?, file_name))
}

/// `name=value` or `name="value"`, separated by `;`; names in lower case.
fn parameters(text: &str) -> impl Iterator<Item = (String, String)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start_matches([';', ' ', '\t']);
            if rest.is_empty() {
                return None;
            }
            let equals = rest.find(['=', ';']).unwrap_or(rest.len());
            let (name, behind) = rest.split_at(equals);
            let Some(behind) = behind.strip_prefix('=') else {
                rest = behind;
                continue;
            };
            let (value, behind) = value_of(behind);
            rest = behind;
            return Some((name.trim().to_ascii_lowercase(), value));
        }
    })
}

fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find(';').unwrap_or(text.len()));
        return (value.trim().to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            // Only these two are escaped: some clients send names with a plain `\` in them.
            '\\' if quoted
                .get(at + 1..)
                .is_some_and(|rest| rest.starts_with(['"', '\\'])) =>
            {
                value.extend(chars.next().map(|(_, c)| c));
            }
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part<'a>(name: &str, file_name: Option<&str>, data: &'a [u8]) -> Part<'a> {
        Part {
            name: name.into(),
            file_name: file_name.map(str::to_owned),
            data,
        }
    }

    #[test]
    fn parts_are_found_as_programs_write_them() {
        let body = b"--B\r\nContent-Disposition: form-data; name=\"urls\"\r\n\r\nx\r\n\r\n--B \t\r\n\
            content-type: application/x-bittorrent\r\nCONTENT-DISPOSITION: form-data; filename=\"a;\\\"b\\c\"; name=torrents\
            \r\n\r\nd8:\r\n--BB\r\n--B-\r\n--B--\r\nepilogue";
        let expected = [
            part("urls", None, b"x\r\n"),
            part("torrents", Some("a;\"b\\c"), b"d8:\r\n--BB\r\n--B-"),
        ];
        assert_eq!(parse(body, "B").unwrap(), expected);
        let preamble = [b"preamble\r\n".as_slice(), body].concat();
        assert_eq!(parse(&preamble, "B").unwrap(), expected);
        assert_eq!(parse(b"--B--", "B").unwrap(), []);
    }

    #[test]
    fn every_cut_body_is_refused() {
        let body = b"--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--B--";
        assert!(parse(body, "B").is_ok());
        for end in 0..body.len() {
            assert!(parse(&body[..end], "B").is_err(), "{end}");
        }
    }

    #[test]
    fn endless_parts_and_heads_are_refused() {
        let one = "--B\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n";
        let body = format!("{}--B--", one.repeat(PARTS_MAX));
        assert_eq!(parse(body.as_bytes(), "B").unwrap().len(), PARTS_MAX);
        let body = format!("{}--B--", one.repeat(PARTS_MAX + 1));
        assert_eq!(parse(body.as_bytes(), "B"), Err(MultipartError::TooMany));
        let body = format!("--B\r\nX: {}\r\n\r\n\r\n--B--", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(parse(body.as_bytes(), "B"), Err(MultipartError::LongHead));
        let nameless = b"--B\r\nContent-Disposition: form-data\r\n\r\n\r\n--B--";
        assert_eq!(parse(nameless, "B"), Err(MultipartError::NoName));
        assert_eq!(
            parse(b"--B\r\n\r\n\r\n--B--", "B"),
            Err(MultipartError::NoName)
        );
    }

    #[test]
    fn boundaries_are_read_and_judged() {
        let of = |text: &str| boundary(text);
        assert_eq!(
            of("multipart/form-data; boundary=a-b").as_deref(),
            Some("a-b")
        );
        assert_eq!(
            of("Multipart/Form-Data;charset=x; Boundary=\"a b:c\"").as_deref(),
            Some("a b:c")
        );
        for bad in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"a\rb\"",
            "multipart/mixed; boundary=a",
            "application/x-www-form-urlencoded",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
        assert_eq!(
            of(&format!("multipart/form-data; boundary={}", "a".repeat(71))),
            None
        );
    }
}
