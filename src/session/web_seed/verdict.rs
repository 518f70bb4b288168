//! What an answer of a web seed is worth, and what follows from a failure. Layer 5. Pure.

use std::time::Duration;

use tracing::debug;

use crate::session::http::FetchError;
use crate::swarm::peer::PeerFault;
use crate::uring::tls;
use crate::wire::http::{ContentRange, Framing, HttpError, ResponseHead, Unframer};
use crate::wire::url::UrlError;

/// Without a byte for so long a request is given up; also the whole time from asking to the end of the answer's head.
pub const SILENT_AFTER: Duration = Duration::from_secs(30);

/// Why a request did not bring what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// We closed it: the torrent ends, or the core wants it ended.
    #[error("closed")]
    Closed,
    /// Others sent meanwhile what it asked for.
    #[error("not needed any more")]
    Unneeded,
    #[error("it redirects to https: {}", tls::ABSENT)]
    Https,
    #[error("{0}")]
    Fetch(FetchError),
    #[error("bad answer: {0}")]
    Http(#[from] HttpError),
    #[error("nothing came for {} s", SILENT_AFTER.as_secs())]
    Silent,
    /// It dripped: the core would rather have the blocks from others.
    #[error("it sends too slowly")]
    Slow,
    #[error("the connection broke: {0}")]
    Io(std::io::Error),
    #[error("the connection closed {left_bytes} bytes too early")]
    Short { left_bytes: u64 },
    #[error("it sends more than was asked for")]
    TooLong,
    /// It may be better later.
    #[error("it answered with status {status}")]
    Busy {
        status: u16,
        retry_after: Option<Duration>,
    },
    /// It will not be better.
    #[error("it answered with status {status}")]
    Refused { status: u16 },
    /// This file is not there.
    #[error("status {status} for {file}")]
    NoFile { status: u16, file: String },
    #[error("{file} has {got_bytes} bytes there, not {expected_bytes}")]
    WrongSize {
        file: String,
        got_bytes: u64,
        expected_bytes: u64,
    },
    #[error("no URL for a file: {0}")]
    NoUrl(UrlError),
    #[error("it does not send parts of files")]
    NoRanges,
    #[error("it sends another part than was asked for")]
    WrongRange,
    #[error("it packs what it sends although that was not asked for")]
    Packed,
    #[error("{0}")]
    Fault(#[from] PeerFault),
    #[error("an error in the program")]
    Panicked,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// Nothing: it may be asked again at once.
    None,
    /// The seed is left alone for a while, as long as it wishes if it said so.
    Pause(Option<Duration>),
    /// The file is not asked for again.
    NoFile,
    /// The seed is used no more.
    GiveUp,
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Failure {
        match error {
            FetchError::HttpsUnsupported => Failure::Https,
            FetchError::TimedOut => Failure::Silent,
            error => Failure::Fetch(error),
        }
    }
}

impl Failure {
    /// What follows.
    pub fn consequence(&self) -> Consequence {
        match self {
            Failure::Closed | Failure::Unneeded => Consequence::None,
            Failure::Busy { retry_after, .. } => Consequence::Pause(*retry_after),
            Failure::NoFile { .. } | Failure::WrongSize { .. } | Failure::NoUrl(_) => {
                Consequence::NoFile
            }
            Failure::Https
            | Failure::NoRanges
            | Failure::WrongRange
            | Failure::Packed
            | Failure::Refused { .. }
            | Failure::Panicked => Consequence::GiveUp,
            Failure::Fetch(
                FetchError::HttpsUnsupported
                | FetchError::NotHttp
                | FetchError::BadRedirect(_)
                | FetchError::NoLocation
                | FetchError::TooManyRedirects
                | FetchError::RedirectInward { .. },
            ) => Consequence::GiveUp,
            _ => Consequence::Pause(None),
        }
    }
}

/// The part of a file that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub first: u64,
    /// At least 1.
    pub bytes: u64,
    /// Of the whole file.
    pub file_bytes: u64,
}

/// Whether the body that follows the head is the part that was asked for; `file` names it for messages.
///
/// # Errors
/// It is not, and why.
pub fn judge(head: &ResponseHead, part: Part, file: &str) -> Result<(), Failure> {
    let status = head.status;
    match status {
        200 | 206 => {}
        408 | 425 | 429 | 500..=599 => {
            return Err(Failure::Busy {
                status,
                retry_after: head.retry_after,
            });
        }
        416 => return Err(Failure::no_file(head, part, file)),
        400..=499 => {
            let file = file.to_owned();
            return Err(Failure::NoFile { status, file });
        }
        _ => return Err(Failure::Refused { status }),
    }
    if head.is_gzip {
        return Err(Failure::Packed);
    }
    let declared_bytes = match head.framing {
        Framing::Length(bytes) => Some(bytes),
        Framing::Chunked | Framing::UntilClose => None,
    };
    if status == 200 {
        if let Some(got_bytes) = declared_bytes.filter(|bytes| *bytes != part.file_bytes) {
            return Err(Failure::wrong_size(file, got_bytes, part));
        }
        // The whole file comes, whatever was asked for.
        let is_whole = part.first == 0 && part.bytes == part.file_bytes;
        return is_whole.then_some(()).ok_or(Failure::NoRanges);
    }
    let range = match head.content_range.clone() {
        Some(range) => range?,
        // Several parts at once, or none that is known.
        None => return Err(Failure::WrongRange),
    };
    if let Some(got_bytes) = range.total_bytes.filter(|total| *total != part.file_bytes) {
        return Err(Failure::wrong_size(file, got_bytes, part));
    }
    let is_length_wrong = declared_bytes.is_some_and(|bytes| bytes != part.bytes);
    if range.bytes != Some((part.first, part.first + part.bytes - 1)) || is_length_wrong {
        return Err(Failure::WrongRange);
    }
    Ok(())
}

/// An answer's body on its way: the part that was asked for and not a byte more.
pub struct Body {
    framing: Unframer,
    /// Of the part that was asked for.
    left_bytes: u64,
}

impl Body {
    /// Nothing of the part is here.
    pub fn new(framing: Framing, part_bytes: u64) -> Body {
        Body {
            framing: Unframer::new(framing),
            left_bytes: part_bytes,
        }
    }

    /// All that was asked for is here, and the end of the body was seen, where it has one of its own.
    pub fn is_over(&self) -> bool {
        self.left_bytes == 0 && self.framing.may_end()
    }

    /// The end of the body was seen: the connection may be used again.
    pub fn is_done(&self) -> bool {
        self.framing.is_done()
    }

    /// Takes bytes of the connection and hands those of the part on.
    ///
    /// # Errors
    /// The body is malformed or longer than what was asked for, or `feed` takes no more.
    pub fn take(
        &mut self,
        bytes: &[u8],
        mut feed: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut input = bytes;
        while let Some(data) = self.framing.next(&mut input)? {
            let length = data.len() as u64;
            if length > self.left_bytes {
                let left = usize::try_from(self.left_bytes).unwrap_or(usize::MAX);
                self.left_bytes = 0;
                feed(data.get(..left).unwrap_or_default())?;
                return Err(Failure::TooLong);
            }
            self.left_bytes -= length;
            feed(data)?;
        }
        match input.is_empty() {
            true => Ok(()),
            // Bytes behind the body: nobody asked for another answer.
            false => Err(Failure::TooLong),
        }
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// Something of the part is missing.
    pub fn on_end(&mut self) -> Result<(), Failure> {
        let left_bytes = self.left_bytes;
        debug!(left_bytes, "the web seed closed the connection");
        match left_bytes {
            0 => {
                // The end of the last chunk may be missing; its bytes are all here.
                self.framing = Unframer::new(Framing::UntilClose);
                Ok(())
            }
            _ => Err(Failure::Short { left_bytes }),
        }
    }
}

impl Failure {
    fn wrong_size(file: &str, got_bytes: u64, part: Part) -> Failure {
        Failure::WrongSize {
            file: file.to_owned(),
            got_bytes,
            expected_bytes: part.file_bytes,
        }
    }

    /// The range lies outside of the file that is there.
    fn no_file(head: &ResponseHead, part: Part, file: &str) -> Failure {
        match head.content_range {
            Some(Ok(ContentRange {
                total_bytes: Some(got_bytes),
                ..
            })) if got_bytes != part.file_bytes => Failure::wrong_size(file, got_bytes, part),
            _ => Failure::NoFile {
                status: head.status,
                file: file.to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Part = Part {
        first: 10,
        bytes: 5,
        file_bytes: 100,
    };

    fn judged(head: &str, part: Part) -> Result<(), Failure> {
        let text = format!("HTTP/1.1 {}\r\n\r\n", head.replace('|', "\r\n"));
        let (head, _) = ResponseHead::parse(text.as_bytes()).unwrap().unwrap();
        judge(&head, part, "file")
    }

    fn consequence(head: &str) -> Consequence {
        judged(head, PART).unwrap_err().consequence()
    }

    #[test]
    fn exactly_the_part_asked_for_is_taken() {
        for good in [
            "206 Partial|Content-Range: bytes 10-14/100|Content-Length: 5",
            "206 Partial|Content-Range: bytes 10-14/*",
            "206 Partial|Content-Range: bytes 10-14/100|Transfer-Encoding: chunked",
        ] {
            assert!(judged(good, PART).is_ok(), "{good}");
        }
        for (bad, follows) in [
            ("206 Partial|Content-Length: 5", Consequence::GiveUp),
            ("206 P|Content-Range: bytes 9-13/100", Consequence::GiveUp),
            ("206 P|Content-Range: bytes 10-13/100", Consequence::GiveUp),
            ("206 P|Content-Range: bytes 10-15/100", Consequence::GiveUp),
            ("206 P|Content-Range: bytes 10-14/99", Consequence::NoFile),
            (
                "206 P|Content-Range: bytes 10-14/100|Content-Length: 6",
                Consequence::GiveUp,
            ),
            (
                "206 P|Content-Range: bytes x-14/100",
                Consequence::Pause(None),
            ),
            (
                "206 P|Content-Range: bytes 10-14/100|Content-Encoding: gzip",
                Consequence::GiveUp,
            ),
        ] {
            assert_eq!(consequence(bad), follows, "{bad}");
        }
    }

    #[test]
    fn a_whole_file_is_taken_only_where_it_was_asked_for() {
        let whole = Part {
            first: 0,
            bytes: 100,
            file_bytes: 100,
        };
        assert!(judged("200 OK|Content-Length: 100", whole).is_ok());
        assert!(judged("200 OK", whole).is_ok());
        let longer = judged("200 OK|Content-Length: 101", whole).unwrap_err();
        assert_eq!(longer.consequence(), Consequence::NoFile);
        assert_eq!(
            consequence("200 OK|Content-Length: 100"),
            Consequence::GiveUp
        );
        let start = Part { first: 0, ..PART };
        let part = judged("200 OK", start).unwrap_err();
        assert!(matches!(part, Failure::NoRanges));
    }

    #[test]
    fn what_is_not_there_and_what_may_come_back_are_told_apart() {
        for (head, follows) in [
            ("404 No", Consequence::NoFile),
            ("410 Gone", Consequence::NoFile),
            ("403 No", Consequence::NoFile),
            ("416 No|Content-Range: bytes */7", Consequence::NoFile),
            ("503 No", Consequence::Pause(None)),
            ("429 No|Retry-After: x", Consequence::Pause(None)),
            (
                "503 No|Retry-After: 120",
                Consequence::Pause(Some(Duration::from_secs(120))),
            ),
            ("204 No Content", Consequence::GiveUp),
            ("304 Same", Consequence::GiveUp),
        ] {
            assert_eq!(consequence(head), follows, "{head}");
        }
    }
}
