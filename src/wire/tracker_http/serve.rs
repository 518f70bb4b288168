//! The tracker's half of the HTTP protocol: queries in, bencoded answers out (BEP 3, 7, 23, 24, 48). Layer 1.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::base::{InfoHash, PeerId};
use crate::wire::bencode::Item;
use crate::wire::tracker::{Event, write_compact};
use crate::wire::url::percent_decode;

/// Info-hashes answered in one scrape: as many as a UDP scrape can carry (BEP 15).
pub const SCRAPE_HASHES_MAX: usize = 74;

/// An announce as the tracker sees it, over HTTP or UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    pub info_hash: InfoHash,
    pub peer_id: PeerId,
    pub port: u16,
    /// Nothing left to fetch.
    pub is_seeder: bool,
    pub event: Option<Event>,
    /// As asked for; `None` leaves it to the tracker.
    pub numwant: Option<u32>,
    /// What the client proves itself with after a change of address, the same number over HTTP and UDP.
    pub key: Option<u64>,
    /// The address it wants to be known by; whether to believe it is the registry's decision.
    pub ip: Option<IpAddr>,
}

/// The form in which an HTTP client wants its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerForm {
    /// 6 and 18 bytes a peer (BEP 23, BEP 7).
    Compact,
    /// A list of dictionaries; the peer id may be left out.
    Dictionary { has_peer_id: bool },
}

/// A request to the tracker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    Announce(Announced, PeerForm),
    /// No hash at all asks for everything, which is not answered.
    Scrape(Vec<InfoHash>),
}

/// Why a request is refused; the text is the `failure reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("not found")]
    NotFound,
    #[error("info_hash is missing or not 20 bytes")]
    BadInfoHash,
    #[error("peer_id is missing or not 20 bytes")]
    BadPeerId,
    #[error("port is missing or not in 1..=65535")]
    BadPort,
}

/// A peer to be told to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub addr: SocketAddr,
    pub peer_id: PeerId,
}

/// How many peers a torrent has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwarmCounts {
    pub seeders: u32,
    pub leechers: u32,
    /// `completed` announces seen.
    pub completed: u32,
}

/// Reads the target of a GET request. Every path that ends in `announce` or `scrape` will do, so that URLs with a
/// passkey in them work.
///
/// # Errors
/// Another path, or a parameter without which nothing can be answered.
pub fn parse_query(target: &[u8]) -> Result<Query, QueryError> {
    let mut parts = target.splitn(2, |&byte| byte == b'?');
    let path = parts.next().unwrap_or_default();
    let query = parts.next().unwrap_or_default();
    match path.rsplit(|&byte| byte == b'/').next() {
        Some(b"announce") => parse_announce(query),
        Some(b"scrape") => Ok(Query::Scrape(
            values(query, b"info_hash")
                .filter_map(|value| <[u8; 20]>::try_from(value).ok())
                .map(InfoHash::new)
                .take(SCRAPE_HASHES_MAX)
                .collect(),
        )),
        _ => Err(QueryError::NotFound),
    }
}

fn parse_announce(query: &[u8]) -> Result<Query, QueryError> {
    let value = |name: &[u8]| values(query, name).next();
    let number = |name: &[u8]| {
        let digits = value(name)?;
        std::str::from_utf8(&digits).ok()?.parse::<i64>().ok()
    };
    let info_hash = value(b"info_hash").and_then(|bytes| bytes.try_into().ok());
    let peer_id = value(b"peer_id").and_then(|bytes| bytes.try_into().ok());
    let port = number(b"port")
        .and_then(|port| u16::try_from(port).ok())
        .filter(|&port| port != 0);
    let event = match value(b"event").as_deref() {
        Some(b"started") => Some(Event::Started),
        Some(b"completed") => Some(Event::Completed),
        Some(b"stopped") => Some(Event::Stopped),
        _ => None,
    };
    let form = if number(b"compact") == Some(0) {
        PeerForm::Dictionary {
            has_peer_id: number(b"no_peer_id") != Some(1),
        }
    } else {
        PeerForm::Compact
    };
    let announced = Announced {
        info_hash: InfoHash::new(info_hash.ok_or(QueryError::BadInfoHash)?),
        peer_id: PeerId::new(peer_id.ok_or(QueryError::BadPeerId)?),
        port: port.ok_or(QueryError::BadPort)?,
        is_seeder: number(b"left") == Some(0),
        event,
        numwant: number(b"numwant").and_then(|count| u32::try_from(count).ok()),
        key: value(b"key").and_then(|text| read_key(&text)),
        ip: value(b"ip").and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()),
    };
    Ok(Query::Announce(announced, form))
}

/// Up to eight hexadecimal digits are the number that goes over UDP; of anything else a digest is kept (FNV-1a, with
/// the top bit set, so that it is no such number).
fn read_key(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    if text.len() <= 8 && text.iter().all(u8::is_ascii_hexdigit) {
        let number = u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()?;
        return (number != 0).then_some(number);
    }
    let digest = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Some(digest | 1 << 63)
}

fn values<'a>(query: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = Vec<u8>> + 'a {
    query
        .split(|&byte| byte == b'&')
        .filter_map(move |pair| pair.strip_prefix(name)?.strip_prefix(b"="))
        .map(|value| {
            // A form's encoding writes a space as `+`.
            let value: Vec<u8> = value
                .iter()
                .map(|&byte| if byte == b'+' { b' ' } else { byte })
                .collect();
            percent_decode(&value)
        })
}

/// The body of a good answer. `peers` may be of both families; `client` is told back as BEP 24's `external ip`.
pub fn announce_body(
    interval_secs: u32,
    min_interval_secs: u32,
    counts: SwarmCounts,
    peers: &[Listed],
    form: PeerForm,
    client: IpAddr,
) -> Vec<u8> {
    let mut entries: BTreeMap<&[u8], Item<'_>> = BTreeMap::new();
    entries.insert(b"complete", Item::Int(counts.seeders.into()));
    entries.insert(b"incomplete", Item::Int(counts.leechers.into()));
    entries.insert(b"interval", Item::Int(interval_secs.into()));
    entries.insert(b"min interval", Item::Int(min_interval_secs.into()));
    let external_ip = match client.to_canonical() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    entries.insert(b"external ip", Item::bytes(external_ip));
    match form {
        PeerForm::Compact => {
            let mut v4 = Vec::new();
            let mut v6 = Vec::new();
            for peer in peers {
                let out = if peer.addr.is_ipv4() {
                    &mut v4
                } else {
                    &mut v6
                };
                write_compact(peer.addr, out);
            }
            entries.insert(b"peers", Item::bytes(v4));
            if !v6.is_empty() {
                entries.insert(b"peers6", Item::bytes(v6));
            }
        }
        PeerForm::Dictionary { has_peer_id } => {
            let list = peers.iter().map(|peer| dictionary_peer(peer, has_peer_id));
            entries.insert(b"peers", Item::List(list.collect()));
        }
    }
    Item::Dict(entries).encode()
}

fn dictionary_peer(peer: &Listed, has_peer_id: bool) -> Item<'static> {
    let mut entries: BTreeMap<&[u8], Item<'_>> = BTreeMap::new();
    entries.insert(b"ip", Item::bytes(peer.addr.ip().to_string().into_bytes()));
    entries.insert(b"port", Item::Int(peer.addr.port().into()));
    if has_peer_id {
        entries.insert(b"peer id", Item::bytes(peer.peer_id.as_bytes().to_vec()));
    }
    Item::Dict(entries)
}

/// The body of a scrape's answer (BEP 48).
pub fn scrape_body(files: &[(InfoHash, SwarmCounts)]) -> Vec<u8> {
    let files = files.iter().map(|(info_hash, counts)| {
        let entries: [(&[u8], Item<'_>); 3] = [
            (b"complete", Item::Int(counts.seeders.into())),
            (b"downloaded", Item::Int(counts.completed.into())),
            (b"incomplete", Item::Int(counts.leechers.into())),
        ];
        (info_hash.as_bytes().as_slice(), Item::dict(entries))
    });
    Item::dict([(b"files".as_slice(), Item::dict(files))]).encode()
}

/// The body of a refusal.
pub fn failure_body(reason: &str) -> Vec<u8> {
    Item::dict([(b"failure reason".as_slice(), Item::text(reason))]).encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tracker::{AnnounceRequest, Counters};
    use crate::wire::tracker_http::{announce_url, parse_announce};
    use crate::wire::url::Url;

    #[test]
    fn our_own_announce_is_understood() {
        let request = AnnounceRequest {
            info_hash: InfoHash::new(std::array::from_fn(|index| index as u8 * 13)),
            peer_id: PeerId::new(*b"-GY0100-abcdefghijk+"),
            port: 6881,
            counters: Counters::default(),
            event: Some(Event::Completed),
            numwant: 7,
            key: 1,
            tracker_id: None,
        };
        let url = announce_url(&Url::parse("http://h/k/announce").unwrap(), &request);
        let expected = Announced {
            info_hash: request.info_hash,
            peer_id: request.peer_id,
            port: 6881,
            is_seeder: true,
            event: Some(Event::Completed),
            numwant: Some(7),
            key: Some(1),
            ip: None,
        };
        let query = parse_query(url.target().as_bytes()).unwrap();
        assert_eq!(query, Query::Announce(expected, PeerForm::Compact));
    }

    #[test]
    fn incomplete_announces_are_refused_by_name() {
        let hash = "info_hash=aaaaaaaaaaaaaaaaaaaa";
        let id = "peer_id=bbbbbbbbbbbbbbbbbbbb";
        for (target, error) in [
            ("/".to_owned(), QueryError::NotFound),
            ("/announce".to_owned(), QueryError::BadInfoHash),
            (format!("/announce?{hash}a"), QueryError::BadInfoHash),
            (format!("/announce?{hash}"), QueryError::BadPeerId),
            (format!("/announce?{hash}&{id}&port=0"), QueryError::BadPort),
            (
                format!("/announce?{hash}&{id}&port=65536"),
                QueryError::BadPort,
            ),
        ] {
            assert_eq!(parse_query(target.as_bytes()), Err(error), "{target}");
        }
    }

    #[test]
    fn answers_are_read_back_in_both_forms() {
        let peers: Vec<Listed> = ["10.0.0.1:1", "[2001:db8::1]:2"]
            .iter()
            .map(|text| Listed {
                addr: text.parse().unwrap(),
                peer_id: PeerId::new([9; 20]),
            })
            .collect();
        let counts = SwarmCounts {
            seeders: 3,
            leechers: 4,
            completed: 5,
        };
        let client = "::ffff:1.2.3.4".parse().unwrap();
        for form in [
            PeerForm::Compact,
            PeerForm::Dictionary { has_peer_id: true },
        ] {
            let body = announce_body(120, 60, counts, &peers, form, client);
            let answer = parse_announce(&body).unwrap();
            assert_eq!(answer.interval_secs, Some(120));
            assert_eq!((answer.seeders, answer.leechers), (Some(3), Some(4)));
            let addrs: Vec<_> = peers.iter().map(|peer| peer.addr).collect();
            assert_eq!(answer.peers, addrs);
            assert_eq!(answer.external_ip, Some("1.2.3.4".parse().unwrap()));
        }
        assert_eq!(failure_body("no"), b"d14:failure reason2:noe");
        let scrape = scrape_body(&[(InfoHash::new([b'a'; 20]), counts)]);
        assert_eq!(
            scrape,
            b"d5:filesd20:aaaaaaaaaaaaaaaaaaaad8:completei3e10:downloadedi5e10:incompletei4eeee"
        );
    }

    #[test]
    fn keys_and_addresses_are_read_when_they_make_sense() {
        let parsed = |rest: &str| {
            let start = "/announce?info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=bbbbbbbbbbbbbbbbbbbb";
            match parse_query(format!("{start}&port=1&{rest}").as_bytes()) {
                Ok(Query::Announce(announced, _)) => announced,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(parsed("key=00C0ffee").key, Some(0x00c0_ffee));
        assert_eq!(parsed("key=0").key, None);
        assert_eq!(parsed("key=").key, None);
        let long = parsed("key=not-a-number").key.unwrap();
        assert!(long > u64::from(u32::MAX));
        assert_ne!(parsed("key=not-a-numbes").key, Some(long));
        assert_eq!(parsed("ip=10.1.2.3").ip, Some([10, 1, 2, 3].into()));
        assert_eq!(parsed("ip=%3A%3A1").ip, Some("::1".parse().unwrap()));
        assert_eq!(parsed("ip=host.example").ip, None);
    }

    proptest::proptest! {
        #[test]
        fn any_target_parses_or_is_refused(target in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let mut announce = b"/announce?info_hash=".to_vec();
            announce.extend(&target);
            let _ = parse_query(&announce);
            let _ = parse_query(&target);
        }
    }
}
