//! Local service discovery (BEP 14): the datagram that asks a local network for peers of some torrents. Layer 1.
//!
//! It looks like an HTTP request. Whoever has one of the torrents adds the sender, at the port it names, to its peers.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::num::NonZeroU16;

use crate::base::InfoHash;

/// Where it is sent to over IPv4.
pub const GROUP_V4: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(239, 192, 152, 143), PORT));
/// Where it is sent to over IPv6: site-local, as BEP 14 has it.
pub const GROUP_V6: SocketAddr = SocketAddr::V6(SocketAddrV6::new(
    Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xefc0, 0x988f),
    PORT,
    0,
    0,
));
/// The port of both.
pub const PORT: u16 = 6771;
/// Longest datagram made or read: it passes through any network whole.
pub const DATAGRAM_BYTES_MAX: usize = 1_400;
/// Torrents asked for in one datagram: as many as fit, 53 bytes each, beside the other lines.
pub const HASHES_MAX: usize = 24;

const HEADERS_MAX: usize = HASHES_MAX + 8;
/// Longest cookie made or compared.
const COOKIE_BYTES_MAX: usize = 32;

/// What one datagram asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// The sender's port for peers.
    pub port: NonZeroU16,
    /// At most [`HASHES_MAX`].
    pub info_hashes: Vec<InfoHash>,
    /// By which a sender knows its own datagrams.
    pub cookie: Option<String>,
}

/// Why a datagram is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LsdError {
    #[error("not a BT-SEARCH request")]
    NotASearch,
    #[error("the port is missing, zero or no number")]
    BadPort,
    #[error("no info-hash, or one that is not 40 hexadecimal digits")]
    BadInfoHash,
}

impl Search {
    /// Reads a datagram.
    ///
    /// # Errors
    /// It is none of these requests, or asks for nothing.
    pub fn parse(datagram: &[u8]) -> Result<Search, LsdError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(datagram) {
            Ok(httparse::Status::Complete(_)) if request.method == Some("BT-SEARCH") => {}
            _ => return Err(LsdError::NotASearch),
        }
        let (mut port, mut info_hashes, mut cookie) = (None, Vec::new(), None);
        for header in request.headers.iter() {
            let Ok(value) = std::str::from_utf8(header.value) else {
                continue;
            };
            let value = value.trim();
            if header.name.eq_ignore_ascii_case("port") {
                port = Some(value.parse().map_err(|_| LsdError::BadPort)?);
            } else if header.name.eq_ignore_ascii_case("infohash") {
                info_hashes.push(value.parse().map_err(|_| LsdError::BadInfoHash)?);
            } else if header.name.eq_ignore_ascii_case("cookie") && value.len() <= COOKIE_BYTES_MAX
            {
                cookie = Some(value.to_owned());
            }
        }
        if info_hashes.is_empty() || info_hashes.len() > HASHES_MAX {
            return Err(LsdError::BadInfoHash);
        }
        Ok(Search {
            port: port.ok_or(LsdError::BadPort)?,
            info_hashes,
            cookie,
        })
    }

    /// The datagram for that group.
    ///
    /// # Panics
    /// If it would be too long: more than [`HASHES_MAX`] torrents, or a cookie of more than 32 bytes.
    pub fn to_datagram(&self, group: SocketAddr) -> Vec<u8> {
        assert!(self.info_hashes.len() <= HASHES_MAX);
        let mut text = format!(
            "BT-SEARCH * HTTP/1.1\r\nHost: {group}\r\nPort: {}\r\n",
            self.port
        );
        for info_hash in &self.info_hashes {
            text += &format!("Infohash: {info_hash}\r\n");
        }
        if let Some(cookie) = &self.cookie {
            assert!(cookie.len() <= COOKIE_BYTES_MAX);
            text += &format!("cookie: {cookie}\r\n");
        }
        // Two empty lines, as in BEP 14.
        text += "\r\n\r\n";
        assert!(text.len() <= DATAGRAM_BYTES_MAX);
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(hashes: u8) -> Search {
        Search {
            port: NonZeroU16::new(6_881).unwrap(),
            info_hashes: (0..hashes).map(|at| InfoHash::new([at; 20])).collect(),
            cookie: Some("0123456789abcdef".to_owned()),
        }
    }

    #[test]
    fn a_datagram_is_the_one_of_bep_14() {
        let text = String::from_utf8(search(1).to_datagram(GROUP_V4)).unwrap();
        assert_eq!(
            text,
            "BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 6881\r\n\
             Infohash: 0000000000000000000000000000000000000000\r\ncookie: 0123456789abcdef\r\n\r\n\r\n"
        );
    }

    #[test]
    fn what_is_written_reads_back_with_as_many_torrents_as_fit() {
        for group in [GROUP_V4, GROUP_V6] {
            let whole = search(u8::try_from(HASHES_MAX).unwrap());
            let datagram = whole.to_datagram(group);
            assert!(datagram.len() <= DATAGRAM_BYTES_MAX);
            assert_eq!(Search::parse(&datagram), Ok(whole));
        }
    }

    #[test]
    fn names_of_lines_are_read_in_any_case_and_unknown_ones_skipped() {
        let text = "BT-SEARCH * HTTP/1.1\r\nhost: x\r\nPORT: 1\r\nX-Y: ?\r\n\
                    INFOHASH: ABCDEF0000000000000000000000000000000000\r\n\r\n";
        let read = Search::parse(text.as_bytes()).unwrap();
        assert_eq!(
            (read.port.get(), read.info_hashes.len(), read.cookie),
            (1, 1, None)
        );
    }

    #[test]
    fn what_asks_for_nothing_or_cannot_be_dialed_is_refused() {
        let hash = "Infohash: 0000000000000000000000000000000000000000\r\n";
        for (lines, error) in [
            (format!("Port: 0\r\n{hash}"), LsdError::BadPort),
            (format!("Port: 70000\r\n{hash}"), LsdError::BadPort),
            (hash.to_owned(), LsdError::BadPort),
            ("Port: 1\r\n".to_owned(), LsdError::BadInfoHash),
            (
                "Port: 1\r\nInfohash: 00\r\n".to_owned(),
                LsdError::BadInfoHash,
            ),
            (
                format!("Port: 1\r\n{}", hash.repeat(HASHES_MAX + 1)),
                LsdError::BadInfoHash,
            ),
            (
                format!("Port: 1\r\n{}", hash.repeat(HEADERS_MAX + 1)),
                LsdError::NotASearch,
            ),
        ] {
            let text = format!("BT-SEARCH * HTTP/1.1\r\n{lines}\r\n\r\n");
            assert_eq!(Search::parse(text.as_bytes()), Err(error), "{lines}");
        }
        let whole = search(2).to_datagram(GROUP_V4);
        for end in 0..whole.len() - 4 {
            assert!(Search::parse(&whole[..end]).is_err(), "{end} bytes");
        }
        assert_eq!(
            Search::parse(b"GET / HTTP/1.1\r\nPort: 1\r\n\r\n"),
            Err(LsdError::NotASearch)
        );
    }
}
