//! The HTTP tracker protocol: announce URLs and bencoded answers (BEP 3, 7, 23, 24, 31). Layer 1.
//!
//! Scrapes as a client are in `scrape`.
//! The tracker's own half is in `serve`. HTTP itself is in `http`.

pub mod scrape;
pub mod serve;

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::bencode::{self, BencodeError, Dict, Value};
use super::tracker::{
    AnnounceRefusal, AnnounceRequest, AnnounceResponse, Event, PEERS_MAX, RetryIn,
    TRACKER_ID_BYTES_MAX, clean_text, push_peer, read_compact_v4, read_compact_v6,
};
use super::url::{Url, percent_encode};

/// Integers beyond 64 bits that are brought into range before an answer is given up.
const REPAIRS_MAX: usize = 4;

/// Why an answer gave no peers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// The tracker said no.
    #[error("the tracker refused: {}", .0.reason)]
    Refused(AnnounceRefusal),
    #[error("the tracker's answer is not bencode: {0}")]
    NotBencode(#[from] BencodeError),
    #[error("the tracker's answer is not a dictionary")]
    NotDictionary,
}

/// The URL of an announce: the tracker's own with the parameters of BEP 3 added. An existing query is kept. Asks for
/// compact peers (BEP 23) and never sends `ip`.
pub fn announce_url(tracker: &Url, request: &AnnounceRequest) -> Url {
    let mut query = String::from("info_hash=");
    percent_encode(request.info_hash.as_bytes(), &mut query);
    query.push_str("&peer_id=");
    percent_encode(request.peer_id.as_bytes(), &mut query);
    let counters = request.counters;
    query.push_str(&format!(
        "&port={}&uploaded={}&downloaded={}&left={}&compact=1&no_peer_id=1&numwant={}&key={:08X}",
        request.port,
        counters.uploaded_bytes,
        counters.downloaded_bytes,
        counters.left_bytes,
        request.numwant,
        request.key,
    ));
    if let Some(event) = request.event {
        query.push_str("&event=");
        query.push_str(event_name(event));
    }
    if let Some(tracker_id) = &request.tracker_id {
        query.push_str("&trackerid=");
        percent_encode(tracker_id, &mut query);
    }
    tracker.with_query(&query)
}

/// Reads an announce's answer; all lists and texts are capped as [`AnnounceResponse`] tells.
///
/// # Errors
/// The tracker refused, or the body is no bencoded dictionary.
pub fn parse_announce(body: &[u8]) -> Result<AnnounceResponse, AnnounceError> {
    let body = saturate_integers(body);
    // Bytes behind the dictionary, such as a line end, hurt nobody.
    let (scanned, _) = bencode::scan_prefix(&body)?;
    let dict = scanned.dict().ok_or(AnnounceError::NotDictionary)?;
    if let Some(reason) = dict.bytes(b"failure reason") {
        return Err(AnnounceError::Refused(AnnounceRefusal {
            reason: clean_text(reason),
            retry_in: dict.get(b"retry in").and_then(read_retry_in),
        }));
    }
    Ok(AnnounceResponse {
        interval_secs: read_secs(dict, b"interval"),
        min_interval_secs: read_secs(dict, b"min interval"),
        tracker_id: dict
            .bytes(b"tracker id")
            .filter(|id| id.len() <= TRACKER_ID_BYTES_MAX)
            .map(<[u8]>::to_vec),
        seeders: read_count(dict, b"complete"),
        leechers: read_count(dict, b"incomplete"),
        warning: dict.bytes(b"warning message").map(clean_text),
        peers: read_peers(dict),
        external_ip: dict.bytes(b"external ip").and_then(read_ip),
    })
}

/// The value of `event` for an event.
pub const fn event_name(event: Event) -> &'static str {
    match event {
        Event::Started => "started",
        Event::Completed => "completed",
        Event::Stopped => "stopped",
    }
}

fn read_secs(dict: Dict<'_>, key: &[u8]) -> Option<u64> {
    dict.int(key).map(|secs| u64::try_from(secs).unwrap_or(0))
}

fn read_count(dict: Dict<'_>, key: &[u8]) -> Option<u32> {
    let count = u64::try_from(dict.int(key)?).ok()?;
    Some(u32::try_from(count).unwrap_or(u32::MAX))
}

fn read_retry_in(value: Value<'_>) -> Option<RetryIn> {
    if value.as_bytes() == Some(b"never") {
        return Some(RetryIn::Never);
    }
    let minutes = match value.as_int() {
        Some(minutes) => u64::try_from(minutes).ok()?,
        None => value.as_str()?.parse().ok()?,
    };
    Some(RetryIn::After(Duration::from_secs(
        minutes.saturating_mul(60),
    )))
}

fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(bytes).ok()?;
    Some(IpAddr::from(Ipv6Addr::from(octets)).to_canonical())
}

fn read_peers(dict: Dict<'_>) -> Vec<SocketAddr> {
    let mut peers = Vec::new();
    match dict.get(b"peers") {
        Some(Value::Bytes(bytes)) => read_compact_v4(bytes, &mut peers, PEERS_MAX),
        Some(Value::List(list)) => {
            for peer in list.iter().take(PEERS_MAX).filter_map(Value::as_dict) {
                push_dictionary_peer(peer, &mut peers);
            }
        }
        _ => {}
    }
    if let Some(bytes) = dict.bytes(b"peers6") {
        read_compact_v6(bytes, &mut peers, PEERS_MAX);
    }
    peers
}

/// One peer of the original, not compact, form. Names instead of addresses are left out: nobody sends them but to
/// make clients look them up.
fn push_dictionary_peer(peer: Dict<'_>, peers: &mut Vec<SocketAddr>) {
    let ip = peer.str(b"ip").and_then(|text| text.parse().ok());
    let port = peer.int(b"port").and_then(|port| u16::try_from(port).ok());
    if let Some((ip, port)) = ip.zip(port) {
        push_peer(peers, SocketAddr::new(ip, port), PEERS_MAX);
    }
}

/// Brings integers beyond 64 bits into range, so that one absurd interval does not cost us the peers.
fn saturate_integers(body: &[u8]) -> Cow<'_, [u8]> {
    let mut body = Cow::Borrowed(body);
    for _ in 0..REPAIRS_MAX {
        let Err(BencodeError::BadNumber { offset }) = bencode::scan_prefix(&body) else {
            break;
        };
        let Some(number) = long_integer(body.get(offset..).unwrap_or_default()) else {
            break;
        };
        let value: &[u8] = if number.starts_with(b"i-") {
            b"i0e"
        } else {
            b"i9223372036854775807e"
        };
        let end = offset + number.len();
        body.to_mut().splice(offset..end, value.iter().copied());
    }
    body
}

/// An integer token of 19 digits or more at the start of the bytes.
fn long_integer(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(b"i")?;
    let digits = rest.strip_prefix(b"-").unwrap_or(rest);
    let count = digits
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let is_token = count >= 19 && digits.first() != Some(&b'0') && digits.get(count) == Some(&b'e');
    let length = bytes.len() - digits.len() + count + 1;
    is_token.then(|| bytes.get(..length))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{InfoHash, PeerId};
    use crate::wire::tracker::Counters;

    fn request() -> AnnounceRequest {
        AnnounceRequest {
            info_hash: InfoHash::new(*b"\x124Vx\x9a\xbc\xde\xf1#Eg\x89\xab\xcd\xef\x124Vx\x9a"),
            peer_id: PeerId::new(*b"-GY0100-abcdefghijkl"),
            port: 6881,
            counters: Counters {
                uploaded_bytes: 1,
                downloaded_bytes: 2,
                left_bytes: 3,
            },
            event: Some(Event::Started),
            numwant: 200,
            key: 0xab,
            tracker_id: Some(b"t/1".to_vec()),
        }
    }

    #[test]
    fn the_announce_url_carries_all_and_keeps_the_query() {
        let base = Url::parse("http://h/announce?passkey=k").unwrap();
        assert_eq!(
            announce_url(&base, &request()).target(),
            "/announce?passkey=k&info_hash=%124Vx%9A%BC%DE%F1%23Eg%89%AB%CD%EF%124Vx%9A\
             &peer_id=-GY0100-abcdefghijkl&port=6881&uploaded=1&downloaded=2&left=3&compact=1\
             &no_peer_id=1&numwant=200&key=000000AB&event=started&trackerid=t%2F1"
        );
    }

    #[test]
    fn a_compact_answer_is_read() {
        let body = b"d8:completei5e11:external ip4:\x01\x02\x03\x0410:incompletei7e8:intervali1800e12:min intervali900e\
            5:peers13:\x0a\x00\x00\x01\x1a\xe1\x0a\x00\x00\x02\x00\x00x\
            6:peers618:\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x1a\xe110:tracker id2:id15:warning message4:slowe\n";
        let answer = parse_announce(body).unwrap();
        assert_eq!(
            answer,
            AnnounceResponse {
                interval_secs: Some(1_800),
                min_interval_secs: Some(900),
                tracker_id: Some(b"id".to_vec()),
                seeders: Some(5),
                leechers: Some(7),
                warning: Some("slow".into()),
                peers: vec![
                    "10.0.0.1:6881".parse().unwrap(),
                    "[2001:db8::1]:6881".parse().unwrap()
                ],
                external_ip: Some("1.2.3.4".parse().unwrap()),
            }
        );
    }

    #[test]
    fn a_dictionary_answer_is_read_without_names_and_bad_ports() {
        let body = b"d5:peersld2:ip8:10.0.0.14:porti6881eed2:ip3:::14:porti1eed2:ip4:host4:porti1eed2:ip8:10.0.0.24:porti0ee\
            d2:ip8:10.0.0.24:porti65536eei5eee";
        let answer = parse_announce(body).unwrap();
        let expected: [SocketAddr; 2] =
            ["10.0.0.1:6881".parse().unwrap(), "[::1]:1".parse().unwrap()];
        assert_eq!(answer.peers, expected);
    }

    #[test]
    fn refusals_carry_a_clean_reason_and_when_to_retry() {
        let cases: [(&[u8], &str, Option<RetryIn>); 4] = [
            (b"d14:failure reason4:gonee", "gone", None),
            (
                b"d14:failure reason4:\x1b[0m8:retry in5:nevere",
                "\\u{1b}[0m",
                Some(RetryIn::Never),
            ),
            (
                b"d14:failure reason0:8:retry ini5ee",
                "",
                Some(RetryIn::After(Duration::from_secs(300))),
            ),
            (
                b"d14:failure reason0:8:retry in1:2e",
                "",
                Some(RetryIn::After(Duration::from_secs(120))),
            ),
        ];
        for (body, reason, retry_in) in cases {
            let reason = reason.to_owned();
            let refusal = AnnounceRefusal { reason, retry_in };
            assert_eq!(parse_announce(body), Err(AnnounceError::Refused(refusal)));
        }
    }

    #[test]
    fn absurd_numbers_do_not_cost_the_peers() {
        for (number, expected) in [
            ("0", 0),
            ("-1", 0),
            ("9223372036854775808", u64::MAX / 2),
            ("-99999999999999999999999999", 0),
        ] {
            let body = format!("d8:intervali{number}e5:peers6:abcdefe");
            let answer = parse_announce(body.as_bytes()).unwrap();
            assert_eq!(answer.interval_secs, Some(expected), "{number}");
            assert_eq!(answer.peers.len(), 1);
        }
        assert!(parse_announce(b"d8:intervali00000000000000000000000ee").is_err());
        assert!(parse_announce(b"<html>").is_err());
        assert_eq!(parse_announce(b"le"), Err(AnnounceError::NotDictionary));
    }

    #[test]
    fn long_lists_are_capped() {
        let mut body = b"d5:peersl".to_vec();
        for _ in 0..5_000 {
            body.extend(b"d2:ip8:10.0.0.14:porti6881ee");
        }
        body.extend(b"e6:peers636000:");
        body.extend([1; 36_000]);
        body.push(b'e');
        assert_eq!(parse_announce(&body).unwrap().peers.len(), PEERS_MAX);
    }

    proptest::proptest! {
        #[test]
        fn mutated_answers_never_panic(at in 0usize..160, byte: u8, cut in 0usize..160) {
            let mut body = b"d8:completei5e14:failure reaso3:abc8:intervali99999999999999999999e5:peersld2:ip8:10.0.0.14:porti6881eee6:peers618:abcdefghijklmnopqr8:retry ini5e10:tracker id2:ide".to_vec();
            if let Some(slot) = body.get_mut(at) { *slot = byte; }
            let _ = parse_announce(&body);
            body.truncate(cut);
            let _ = parse_announce(&body);
        }
    }
}
