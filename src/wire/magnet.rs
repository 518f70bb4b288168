//! Magnet links: BEP 9 and 52 (`xt`, `dn`, `tr`, `x.pe`), BEP 19 (`ws`), BEP 53 (`so`), and where the .torrent lies (`xs`,
//! `as`). Layer 1.

use crate::base::{InfoHash, InfoHashV2, InfoHashes};
use crate::wire::metainfo::Metainfo;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The longest link looked at; browsers and shells pass on far less.
pub const MAGNET_BYTES_MAX: usize = 64 * 1024;

/// Trackers, web seeds, .torrent URLs, peers and file ranges kept of each; more is no help in finding peers.
pub const ENTRIES_MAX: usize = 256;

/// What a multihash says before its digest: SHA-256, of 32 bytes.
const SHA256_MULTIHASH: &str = "1220";

/// What a magnet link says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Magnet {
    /// What the torrent is known by here: see [`InfoHashes::main`].
    pub info_hash: InfoHash,
    /// `xt`: `urn:btih` of v1, `urn:btmh` of v2, or both.
    pub info_hashes: InfoHashes,
    /// `dn`; not safe for a terminal or as a path.
    pub name: Option<String>,
    /// `tr`, in order.
    pub trackers: Vec<String>,
    /// `ws`
    pub web_seeds: Vec<String>,
    /// `xs`, then `as`: URLs of the .torrent, of `http` and `https` only.
    pub torrents: Vec<String>,
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
    #[error("the magnet link has no `xt=urn:btih:` and no `xt=urn:btmh:`")]
    NoInfoHash,
    #[error("the info_hash in the magnet link is neither 40 hexadecimal nor 32 base32 digits")]
    BadInfoHash,
    #[error("the v2 info_hash in the magnet link is not `1220` and 64 hexadecimal digits")]
    BadInfoHashV2,
}

impl Magnet {
    /// A link to nothing but this info_hash.
    pub fn new(info_hash: InfoHash) -> Self {
        Magnet::to(InfoHashes::V1(info_hash))
    }

    /// A link to nothing but what these name.
    pub fn to(info_hashes: InfoHashes) -> Self {
        Magnet {
            info_hash: info_hashes.main(),
            info_hashes,
            name: None,
            trackers: Vec::new(),
            web_seeds: Vec::new(),
            torrents: Vec::new(),
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
            ..Magnet::to(metainfo.info_hashes)
        }
    }
}

impl fmt::Display for Magnet {
    /// The link; everything but letters, digits and `-._~` in values is percent-encoded (RFC 3986).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("magnet:?")?;
        if let Some(v1) = self.info_hashes.v1() {
            write!(f, "xt=urn:btih:{v1}")?;
        }
        if let Some(v2) = self.info_hashes.v2() {
            let and = if self.info_hashes.v1().is_some() {
                "&"
            } else {
                ""
            };
            write!(f, "{and}xt=urn:btmh:{SHA256_MULTIHASH}{v2}")?;
        }
        if let Some(name) = &self.name {
            write!(f, "&dn={}", Encoded(name))?;
        }
        for tracker in &self.trackers {
            write!(f, "&tr={}", Encoded(tracker))?;
        }
        for seed in &self.web_seeds {
            write!(f, "&ws={}", Encoded(seed))?;
        }
        for torrent in &self.torrents {
            write!(f, "&xs={}", Encoded(torrent))?;
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
        let mut magnet = Magnet::to(topics(query)?);
        // What stands for the source itself comes before what is said to be as good.
        for wanted in ["xs", "as"] {
            for (_, value) in parameters(query).filter(|(key, _)| *key == wanted) {
                keep(&mut magnet.torrents, web_url(value));
            }
        }
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

/// The first usable `xt` of each version.
fn topics(query: &str) -> Result<InfoHashes, MagnetError> {
    let (mut v1, mut v2, mut error) = (None, None, MagnetError::NoInfoHash);
    for (_, value) in parameters(query).filter(|(key, _)| *key == "xt") {
        let topic = decode(value);
        let (urn, digits) = topic.split_at_checked(9).unwrap_or_default();
        if urn.eq_ignore_ascii_case("urn:btih:") {
            v1 = v1.or_else(|| digits.parse().ok().or_else(|| base32(digits)));
            error = MagnetError::BadInfoHash;
        } else if urn.eq_ignore_ascii_case("urn:btmh:") {
            let of_sha256 = digits.strip_prefix(SHA256_MULTIHASH);
            v2 = v2.or_else(|| of_sha256?.parse::<InfoHashV2>().ok());
            if error == MagnetError::NoInfoHash {
                error = MagnetError::BadInfoHashV2;
            }
        }
    }
    match (v1, v2) {
        (Some(v1), Some(v2)) => Ok(InfoHashes::Both(v1, v2)),
        (Some(v1), None) => Ok(InfoHashes::V1(v1)),
        (None, Some(v2)) => Ok(InfoHashes::V2(v2)),
        (None, None) => Err(error),
    }
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

/// Sources are also names of other networks (`urn:…`, `dchub://…`), of which nothing can be fetched.
fn web_url(value: &str) -> Option<String> {
    let url = url(value)?;
    let (scheme, _) = url.split_once("://")?;
    let is_web = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    is_web.then_some(url)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef01234567";

    fn magnet(query: &str) -> Magnet {
        format!("magnet:?xt=urn:btih:{HEX}{query}").parse().unwrap()
    }

    #[test]
    fn a_full_link_is_read() {
        let m = magnet(
            "&dn=A%20b+c%26d&tr=udp%3A%2F%2Ft.example%3A80&tr.1=http://u.example/a%2Bb+c&\
             ws=http%3A%2F%2Fw.example%2F&x.pe=%5B2001:db8::1%5D:6881&x.pe=host.example:1&so=0,2,4-6&x=y",
        );
        assert_eq!(m.info_hash.to_string(), HEX);
        assert_eq!(m.name.as_deref(), Some("A b c&d"));
        let trackers = ["udp://t.example:80", "http://u.example/a+b+c"];
        assert_eq!(m.trackers, trackers);
        assert_eq!(m.web_seeds, ["http://w.example/"]);
        assert_eq!(m.peers, ["[2001:db8::1]:6881", "host.example:1"]);
        assert_eq!(m.selected_files, [0..=0, 2..=2, 4..=6]);
    }

    #[test]
    fn what_is_written_is_percent_encoded() {
        let mut m = Magnet::new(HEX.parse().unwrap());
        m.name = Some("Ä b&c=d.txt".to_owned());
        m.trackers = vec!["http://t.example/announce?k=1".to_owned()];
        m.selected_files = vec![1..=1, 3..=5];
        let expected = format!(
            "magnet:?xt=urn:btih:{HEX}&dn=%C3%84%20b%26c%3Dd.txt\
             &tr=http%3A%2F%2Ft.example%2Fannounce%3Fk%3D1&so=1,3-5"
        );
        assert_eq!(m.to_string(), expected);
        assert_eq!(expected.parse(), Ok(m));
    }

    #[test]
    fn base32_and_upper_case_info_hashes_are_read() {
        let m: Magnet = "MAGNET:?xt=URN:BTIH:AERUKZ4JVPG66AJDIVTYTK6N54ASGRLH"
            .parse()
            .unwrap();
        assert_eq!(m.info_hash.to_string(), HEX);
        let lower: Magnet = "magnet:?xt.1=urn:btih:aerukz4jvpg66ajdivtytk6n54asgrlh"
            .parse()
            .unwrap();
        assert_eq!(lower, m);
    }

    #[test]
    fn links_name_torrents_by_either_info_hash_or_both() {
        let error = |text: &str| text.parse::<Magnet>().unwrap_err();
        assert_eq!(error("http://x/"), MagnetError::NotMagnet);
        assert_eq!(error("magnet:"), MagnetError::NotMagnet);
        assert_eq!(error("magnet:?dn=x"), MagnetError::NoInfoHash);
        assert_eq!(error("magnet:?xt=urn:btih:12"), MagnetError::BadInfoHash);
        let v2 = format!("magnet:?xt=urn:btmh:1220{}", "ab".repeat(32));
        let alone: Magnet = v2.parse().unwrap();
        assert_eq!(alone.info_hash.to_string(), "ab".repeat(20));
        assert_eq!(alone.to_string(), v2);
        let hybrid: Magnet = format!("{v2}&xt=urn:btih:{HEX}").parse().unwrap();
        assert_eq!(hybrid.info_hash.to_string(), HEX);
        assert_eq!(hybrid.info_hashes.v2(), alone.info_hashes.v2());
        assert_eq!(hybrid.to_string().parse(), Ok(hybrid));
        for bad in ["1220ab".to_owned(), format!("1114{}", "ab".repeat(32))] {
            let link = format!("magnet:?xt=urn:btmh:{bad}");
            assert_eq!(error(&link), MagnetError::BadInfoHashV2);
        }
        let long = "x".repeat(MAGNET_BYTES_MAX + 1);
        assert!(matches!(error(&long), MagnetError::TooLong { .. }));
    }

    #[test]
    fn urls_of_the_torrent_are_read_exact_sources_first() {
        let m = magnet(
            "&as=http%3A%2F%2Fb.example%2Fx.torrent&xs=urn:btih:1&xs=dchub://h/&xs=HTTP://a.example/x%20y\
             &xs.1=http://a.example/x?k=1%26l&xs=https://c.example/&as=/x.torrent&xs=http://a.example/x?k=1%26l",
        );
        let expected = [
            "http://a.example/x?k=1&l",
            "https://c.example/",
            "http://b.example/x.torrent",
        ];
        assert_eq!(m.torrents, expected);
        assert_eq!(m.to_string().parse(), Ok(m));
        let many: String = (0..2_000).map(|n| format!("&xs=http://a/{n}")).collect();
        assert_eq!(magnet(&many).torrents.len(), ENTRIES_MAX);
    }

    #[test]
    fn malformed_parameters_are_skipped() {
        let m =
            magnet("&tr=&tr=a%20b&tr=%0a&x.pe=nohost&x.pe=h:0&x.pe=h:99999&so=5-3,x,-&dn=&ws&&=");
        assert_eq!(m, Magnet::new(HEX.parse().unwrap()));
    }

    #[test]
    fn entries_are_capped() {
        let many: String = (0..2_000).map(|n| format!("&tr=a{n}&so={n}")).collect();
        let m = magnet(&many);
        assert_eq!(m.trackers.len(), ENTRIES_MAX);
        assert_eq!(m.selected_files.len(), ENTRIES_MAX);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(
            text in "(magnet:\\?)?((xt|tr|dn|so|x\\.pe|ws|xs|as|tr\\.1)=|urn:btih:|[%&+a-fA-F0-9=,é-]|.){0,60}",
        ) {
            let _ = text.parse::<Magnet>();
            let _ = format!("magnet:?xt=urn:btih:{HEX}&{text}").parse::<Magnet>();
        }

        #[test]
        fn links_round_trip(name in "[^\0]{1,40}", tracker in "[a-zA-Z0-9:/?=&%+.é-]{1,40}") {
            let mut m = Magnet::new(HEX.parse().unwrap());
            m.name = Some(name);
            m.trackers = vec![tracker];
            prop_assert_eq!(m.to_string().parse(), Ok(m));
        }
    }
}
