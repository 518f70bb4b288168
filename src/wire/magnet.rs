//! Magnet links: BEP 9 (`xt`, `dn`, `tr`, `x.pe`), BEP 19 (`ws`), BEP 53 (`so`). Layer 1.

use crate::base::InfoHash;
use crate::wire::metainfo::Metainfo;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The longest link looked at; browsers and shells pass on far less.
pub const MAGNET_BYTES_MAX: usize = 64 * 1024;

/// Trackers, web seeds, peers and file ranges kept of each; more is no help in finding peers.
pub const ENTRIES_MAX: usize = 256;

/// What a magnet link says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Magnet {
    pub info_hash: InfoHash,
    /// `dn`; not safe for a terminal or as a path.
    pub name: Option<String>,
    /// `tr`, in order.
    pub trackers: Vec<String>,
    /// `ws`
    pub web_seeds: Vec<String>,
    /// `x.pe`: addresses of peers, `host:port` with `[…]` around IPv6; checked to be of that form only.
    pub peers: Vec<String>,
    /// `so`: indices of the files to fetch (BEP 53); empty means all.
    pub selected_files: Vec<RangeInclusive<u32>>,
}

/// Why a text is no magnet link we can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MagnetError {
    #[error("a magnet link of {got_bytes} bytes, more than {max_bytes}")]
    TooLong { got_bytes: usize, max_bytes: usize },
    #[error("not a magnet link: it does not start with `magnet:?`")]
    NotMagnet,
    #[error("the magnet link has no `xt=urn:btih:`")]
    NoInfoHash,
    #[error("the info_hash in the magnet link is neither 40 hexadecimal nor 32 base32 digits")]
    BadInfoHash,
    #[error("unsupported: the magnet link names a BitTorrent v2 torrent only (`urn:btmh`)")]
    V2Only,
}

impl Magnet {
    /// A link to nothing but this info_hash.
    pub const fn new(info_hash: InfoHash) -> Self {
        Magnet {
            info_hash,
            name: None,
            trackers: Vec::new(),
            web_seeds: Vec::new(),
            peers: Vec::new(),
            selected_files: Vec::new(),
        }
    }

    /// The link to a torrent: its name, trackers and web seeds.
    pub fn from_metainfo(metainfo: &Metainfo) -> Self {
        Magnet {
            name: Some(metainfo.info.name.clone()),
            trackers: metainfo.announce_tiers.iter().flatten().cloned().collect(),
            web_seeds: metainfo.web_seeds.clone(),
            ..Magnet::new(metainfo.info_hash)
        }
    }
}

impl fmt::Display for Magnet {
    /// The link; everything but letters, digits and `-._~` in values is percent-encoded (RFC 3986).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "magnet:?xt=urn:btih:{}", self.info_hash)?;
        if let Some(name) = &self.name {
            write!(f, "&dn={}", Encoded(name))?;
        }
        for tracker in &self.trackers {
            write!(f, "&tr={}", Encoded(tracker))?;
        }
        for seed in &self.web_seeds {
            write!(f, "&ws={}", Encoded(seed))?;
        }
        for peer in &self.peers {
            write!(f, "&x.pe={}", Encoded(peer))?;
        }
        for (index, range) in self.selected_files.iter().enumerate() {
            f.write_str(if index == 0 { "&so=" } else { "," })?;
            write!(f, "{}", range.start())?;
            if range.start() != range.end() {
                write!(f, "-{}", range.end())?;
            }
        }
        Ok(())
    }
}

impl FromStr for Magnet {
    type Err = MagnetError;

    /// Reads a link; parameters that are unknown or malformed are skipped, save `xt`.
    fn from_str(text: &str) -> Result<Self, MagnetError> {
        if text.len() > MAGNET_BYTES_MAX {
            return Err(MagnetError::TooLong {
                got_bytes: text.len(),
                max_bytes: MAGNET_BYTES_MAX,
            });
        }
        let text = text.trim();
        let query = match text.split_at_checked(8) {
            Some((scheme, query)) if scheme.eq_ignore_ascii_case("magnet:?") => query,
            _ => return Err(MagnetError::NotMagnet),
        };
        let mut magnet = Magnet::new(topic(query)?);
        for (key, value) in parameters(query) {
            match key {
                "dn" if magnet.name.is_none() => {
                    magnet.name =
                        Some(decode(&value.replace('+', " "))).filter(|name| !name.is_empty());
                }
                "tr" => keep(&mut magnet.trackers, url(value)),
                "ws" => keep(&mut magnet.web_seeds, url(value)),
                "x.pe" => keep(&mut magnet.peers, peer(value)),
                "so" => decode(value)
                    .split(',')
                    .for_each(|range| keep(&mut magnet.selected_files, file_range(range))),
                _ => {}
            }
        }
        Ok(magnet)
    }
}

/// Keys without their `.1`, `.2` … and values still percent-encoded.
fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        let key = match key.rsplit_once('.') {
            Some((key, number))
                if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                key
            }
            _ => key,
        };
        Some((key, value))
    })
}

/// The first usable `xt`.
fn topic(query: &str) -> Result<InfoHash, MagnetError> {
    let mut error = MagnetError::NoInfoHash;
    for (_, value) in parameters(query).filter(|(key, _)| *key == "xt") {
        let topic = decode(value);
        let (urn, digits) = topic.split_at_checked(9).unwrap_or_default();
        if urn.eq_ignore_ascii_case("urn:btih:") {
            match digits.parse().ok().or_else(|| base32(digits)) {
                Some(info_hash) => return Ok(info_hash),
                None => error = MagnetError::BadInfoHash,
            }
        } else if urn.eq_ignore_ascii_case("urn:btmh:") && error == MagnetError::NoInfoHash {
            error = MagnetError::V2Only;
        }
    }
    Err(error)
}

/// The older spelling of an info_hash: 32 digits of RFC 4648 base32, 5 bits each.
fn base32(digits: &str) -> Option<InfoHash> {
    if digits.len() != 32 {
        return None;
    }
    let mut hash = [0_u8; 20];
    let (groups, _) = digits.as_bytes().as_chunks::<8>();
    let (parts, _) = hash.as_chunks_mut::<5>();
    for (part, group) in parts.iter_mut().zip(groups) {
        let mut bits = 0_u64;
        for digit in group {
            let value = match digit.to_ascii_uppercase() {
                letter @ b'A'..=b'Z' => letter - b'A',
                number @ b'2'..=b'7' => number - b'2' + 26,
                _ => return None,
            };
            bits = bits << 5 | u64::from(value);
        }
        let [_, _, _, bytes @ ..] = bits.to_be_bytes();
        *part = bytes;
    }
    Some(InfoHash::new(hash))
}

fn keep<T: PartialEq>(entries: &mut Vec<T>, entry: Option<T>) {
    if let Some(entry) = entry.filter(|entry| !entries.contains(entry))
        && entries.len() < ENTRIES_MAX
    {
        entries.push(entry);
    }
}

/// A `+` stays one: in a URL it is no space.
fn url(value: &str) -> Option<String> {
    let url = decode(value);
    let is_good = !url.is_empty() && !url.chars().any(|c| c.is_control() || c.is_whitespace());
    is_good.then_some(url)
}

fn peer(value: &str) -> Option<String> {
    let peer = url(value)?;
    let (host, port) = peer.rsplit_once(':')?;
    let is_good = !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0);
    is_good.then_some(peer)
}

/// `4` or `6-8` (BEP 53).
fn file_range(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

/// Undoes percent-encoding; a `%` that starts no code stays, bytes that are no UTF-8 are replaced.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = match (first, tail) {
            (b'%', [high, low, behind @ ..]) => {
                hex(*high).zip(hex(*low)).map(|code| (code, behind))
            }
            _ => None,
        };
        (rest, _) = match code {
            Some(((high, low), behind)) => (behind, bytes.push(high << 4 | low)),
            None => (tail, bytes.push(*first)),
        };
    }
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Text with everything but RFC 3986's unreserved characters percent-encoded.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                write!(f, "{}", char::from(byte))
            }
            _ => write!(f, "%{byte:02X}"),
        })
    }
}
