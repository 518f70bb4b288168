//! The ranges of HTTP: `Content-Range` (RFC 9110 §14.4). Layer 1.

use super::HttpError;
use crate::wire::tracker::clean_text;

/// What a partial answer says that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// First and last byte; `None` in a refusal (`bytes */1000`).
    pub bytes: Option<(u64, u64)>,
    /// Of the whole file; `None` when the server does not know (`*`).
    pub total_bytes: Option<u64>,
}

impl ContentRange {
    /// Parses the value of a `Content-Range` header.
    ///
    /// # Errors
    /// Another unit, numbers that are none, an end before the start or past the file's end.
    pub fn parse(value: &[u8]) -> Result<ContentRange, HttpError> {
        parse(value).ok_or_else(|| HttpError::BadContentRange {
            got: clean_text(value),
        })
    }
}

fn parse(value: &[u8]) -> Option<ContentRange> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let (unit, rest) = text.split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.trim().split_once('/')?;
    let total_bytes = match total.trim() {
        "*" => None,
        digits => Some(number(digits)?),
    };
    let bytes = match range.trim() {
        "*" => None,
        range => {
            let (first, last) = range.split_once('-')?;
            Some((number(first.trim())?, number(last.trim())?))
        }
    };
    let is_possible = match bytes {
        Some((first, last)) => first <= last && total_bytes.is_none_or(|total| last < total),
        // An unsatisfied range names the size, or says nothing at all.
        None => total_bytes.is_some(),
    };
    is_possible.then_some(ContentRange { bytes, total_bytes })
}

/// `parse` alone would take a sign.
fn number(digits: &str) -> Option<u64> {
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(bytes: Option<(u64, u64)>, total_bytes: Option<u64>) -> ContentRange {
        ContentRange { bytes, total_bytes }
    }

    #[test]
    fn ranges_are_read_with_and_without_a_size() {
        for (text, expected) in [
            ("bytes 0-0/1", range(Some((0, 0)), Some(1))),
            ("bytes 5-9/*", range(Some((5, 9)), None)),
            ("Bytes  5 - 9 / 10 ", range(Some((5, 9)), Some(10))),
            ("bytes */1000", range(None, Some(1000))),
            (
                "bytes 18446744073709551613-18446744073709551614/18446744073709551615",
                range(Some((u64::MAX - 2, u64::MAX - 1)), Some(u64::MAX)),
            ),
        ] {
            assert_eq!(ContentRange::parse(text.as_bytes()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn impossible_ranges_are_refused() {
        for text in [
            "",
            "bytes",
            "bytes 0-0",
            "bytes 1-0/5",
            "bytes 0-5/5",
            "bytes */*",
            "bytes -5/10",
            "bytes 5-/10",
            "bytes +1-2/3",
            "bytes 0-18446744073709551616/*",
            "pieces 0-1/2",
            "bytes 0-1/2/3",
            "bytes 0-1,3-4/9",
        ] {
            assert!(ContentRange::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(ContentRange::parse(b"bytes \xff-1/2").is_err());
    }

    proptest::proptest! {
        #[test]
        fn what_is_read_is_possible(text in "(bytes|\\PC{0,5})[ 0-9*/-]{0,30}") {
            if let Ok(ContentRange { bytes: Some((first, last)), total_bytes }) = ContentRange::parse(text.as_bytes()) {
                assert!(first <= last && total_bytes.is_none_or(|total| last < total));
            }
        }
    }
}
