//! Questions to a name server and its answers (RFC 1035, RFC 3596). Layer 1.
//!
//! Just what a stub resolver needs that asks for the addresses of one name over UDP: no zones, no caches, no EDNS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest answer over UDP without extensions (RFC 1035, "Size limits").
pub const MESSAGE_BYTES_MAX: usize = 512;
/// RFC 1035: a name with its length bytes.
const NAME_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: usize = 63;
const HEADER_BYTES: usize = 12;
const CLASS_INTERNET: u16 = 1;
/// QR: it is an answer.
const FLAG_ANSWER: u16 = 0x8000;
/// RD: ask others on our behalf.
const FLAG_RECURSE: u16 = 0x0100;
const MASK_RESPONSE_CODE: u16 = 0x000f;
const NAME_ERROR: u16 = 3;

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Wanted {
    const fn record_type(self) -> u16 {
        match self {
            Wanted::V4 => 1,
            Wanted::V6 => 28,
        }
    }
}

/// Why a name cannot be asked for, or an answer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    #[error("this is no host name")]
    BadName,
    #[error("the answer of {got_bytes} bytes is malformed")]
    Malformed { got_bytes: usize },
    /// To another question, such as one asked before.
    #[error("an answer to another question")]
    NotOurs,
    #[error("there is no such name")]
    NoSuchName,
    #[error("the name server refuses (code {code})")]
    Refused { code: u16 },
}

/// The datagram that asks for a name's addresses.
///
/// # Errors
/// Empty or too long labels, or too long a name.
pub fn question(id: u16, name: &str, wanted: Wanted) -> Result<Vec<u8>, DnsError> {
    let mut message = Vec::with_capacity(HEADER_BYTES + name.len() + 6);
    for word in [id, FLAG_RECURSE, 1, 0, 0, 0] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        let length = u8::try_from(label.len()).map_err(|_| DnsError::BadName)?;
        if label.is_empty() || label.len() > LABEL_BYTES_MAX {
            return Err(DnsError::BadName);
        }
        message.push(length);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    if message.len() - HEADER_BYTES > NAME_BYTES_MAX {
        return Err(DnsError::BadName);
    }
    for word in [wanted.record_type(), CLASS_INTERNET] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    Ok(message)
}

/// The addresses in the answer to a [`question`], in the answer's order; none when the name has none of that family.
///
/// # Errors
/// See [`DnsError`].
pub fn answer(question: &[u8], message: &[u8]) -> Result<Vec<IpAddr>, DnsError> {
    let malformed = DnsError::Malformed {
        got_bytes: message.len(),
    };
    let mut reader = Reader {
        bytes: message,
        malformed,
    };
    let id = reader.word()?;
    let flags = reader.word()?;
    let counts = [reader.word()?, reader.word()?];
    reader.take(4)?;
    let asked = question.get(HEADER_BYTES..).unwrap_or_default();
    let is_ours = question.get(..2) == Some(&id.to_be_bytes())
        && flags & FLAG_ANSWER != 0
        && counts[0] == 1
        && reader.take(asked.len())?.eq_ignore_ascii_case(asked);
    if !is_ours {
        return Err(DnsError::NotOurs);
    }
    match flags & MASK_RESPONSE_CODE {
        0 => {}
        NAME_ERROR => return Err(DnsError::NoSuchName),
        code => return Err(DnsError::Refused { code }),
    }
    let mut addrs = Vec::new();
    for _ in 0..counts[1] {
        // A truncated answer ends in the middle of a record: what is whole is used.
        match reader.record() {
            Ok(addr) => addrs.extend(addr),
            Err(_) if !addrs.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(addrs)
}

/// Takes values off the front of a message.
struct Reader<'a> {
    bytes: &'a [u8],
    malformed: DnsError,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DnsError> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(self.malformed)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn word(&mut self) -> Result<u16, DnsError> {
        let bytes = self.take(2)?.try_into().map_err(|_| self.malformed)?;
        Ok(u16::from_be_bytes(bytes))
    }

    /// A name is never read, only passed: whose address it is follows from the question.
    fn skip_name(&mut self) -> Result<(), DnsError> {
        loop {
            let length = self.take(1)?.first().copied().unwrap_or_default();
            match length {
                0 => return Ok(()),
                // A pointer to an earlier name ends this one.
                0xc0.. => return self.take(1).map(drop),
                1..=0x3f => self.take(length.into()).map(drop)?,
                _ => return Err(self.malformed),
            }
        }
    }

    fn record(&mut self) -> Result<Option<IpAddr>, DnsError> {
        self.skip_name()?;
        let (kind, class) = (self.word()?, self.word()?);
        self.take(4)?;
        let length = self.word()?;
        let data = self.take(length.into())?;
        if class != CLASS_INTERNET {
            return Ok(None);
        }
        Ok(match (kind, data.len()) {
            (1, 4) => <[u8; 4]>::try_from(data)
                .ok()
                .map(|octets| Ipv4Addr::from(octets).into()),
            (28, 16) => <[u8; 16]>::try_from(data)
                .ok()
                .map(|octets| Ipv6Addr::from(octets).into()),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUESTION: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\
        \x01t\x07example\x00\x00\x01\x00\x01";

    fn reply(flags: [u8; 2], records: u8, body: &[u8]) -> Vec<u8> {
        let mut message = QUESTION.to_vec();
        message[2..4].copy_from_slice(&flags);
        message[7] = records;
        message.extend_from_slice(body);
        message
    }

    #[test]
    fn questions_are_golden_bytes() {
        assert_eq!(question(0x1234, "t.example", Wanted::V4).unwrap(), QUESTION);
        assert_eq!(
            question(0x1234, "t.example.", Wanted::V4).unwrap(),
            QUESTION
        );
        let six = question(0x1234, "t.example", Wanted::V6).unwrap();
        assert_eq!(six[six.len() - 4..], [0, 28, 0, 1]);
        for name in ["", "a..b", &"x".repeat(64), &"abc.".repeat(64)] {
            assert_eq!(question(1, name, Wanted::V4), Err(DnsError::BadName));
        }
    }

    #[test]
    fn addresses_are_found_behind_aliases() {
        let body = b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x04\x01u\xc0\x0e\
            \xc0\x27\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x07";
        let message = reply([0x81, 0x80], 2, body);
        let expected: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(answer(QUESTION, &message), Ok(vec![expected]));
        // Cut off in the second record: nothing whole is left of addresses.
        let cut = &message[..message.len() - 1];
        assert!(matches!(
            answer(QUESTION, cut),
            Err(DnsError::Malformed { .. })
        ));
    }

    #[test]
    fn what_is_no_answer_to_the_question_is_told_apart() {
        assert_eq!(answer(QUESTION, QUESTION), Err(DnsError::NotOurs));
        let mut other = reply([0x81, 0x80], 0, b"");
        other[0] ^= 1;
        assert_eq!(answer(QUESTION, &other), Err(DnsError::NotOurs));
        let none = reply([0x81, 0x83], 0, b"");
        assert_eq!(answer(QUESTION, &none), Err(DnsError::NoSuchName));
        let refused = reply([0x81, 0x85], 0, b"");
        assert_eq!(
            answer(QUESTION, &refused),
            Err(DnsError::Refused { code: 5 })
        );
        assert_eq!(
            answer(QUESTION, &reply([0x81, 0x80], 0, b"")),
            Ok(Vec::new())
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = answer(QUESTION, &bytes);
            let _ = answer(QUESTION, &reply([0x81, 0x80], 9, &bytes));
        }
    }
}
