//! The client's half of a scrape over HTTP: the URL, and what the answer says of one torrent (BEP 48). Layer 1.

use super::serve::SwarmCounts;
use super::{AnnounceError, read_count, saturate_integers};
use crate::base::InfoHash;
use crate::wire::bencode;
use crate::wire::tracker::{AnnounceRefusal, clean_text};
use crate::wire::url::{Url, percent_encode};

/// Where a tracker is asked about a torrent: `announce` at the start of the last part of its path becomes `scrape`, the
/// rest stays. `None` when that part begins otherwise: such a tracker cannot be asked (BEP 48).
pub fn scrape_url(tracker: &Url, info_hash: &InfoHash) -> Option<Url> {
    let target = tracker.target();
    let path_end = target.find('?').unwrap_or(target.len());
    let (path, query) = target.split_at(path_end);
    let (folder, last) = path.rsplit_once('/')?;
    let rest = last.strip_prefix("announce")?;
    let mut parameters = String::from("info_hash=");
    percent_encode(info_hash.as_bytes(), &mut parameters);
    let target = format!("{folder}/scrape{rest}{query}");
    Some(tracker.with_target(target).with_query(&parameters))
}

/// Reads an answer; `None` when the tracker says nothing of the torrent.
///
/// # Errors
/// The tracker refused, or the body is no bencoded dictionary.
pub fn parse_scrape(
    body: &[u8],
    info_hash: &InfoHash,
) -> Result<Option<SwarmCounts>, AnnounceError> {
    let body = saturate_integers(body);
    let (scanned, _) = bencode::scan_prefix(&body)?;
    let dict = scanned.dict().ok_or(AnnounceError::NotDictionary)?;
    if let Some(reason) = dict.bytes(b"failure reason") {
        return Err(AnnounceError::Refused(AnnounceRefusal {
            reason: clean_text(reason),
            retry_in: None,
        }));
    }
    let files = dict.dict(b"files");
    let Some(counts) = files.and_then(|files| files.dict(info_hash.as_bytes())) else {
        return Ok(None);
    };
    Ok(Some(SwarmCounts {
        seeders: read_count(counts, b"complete").unwrap_or(0),
        leechers: read_count(counts, b"incomplete").unwrap_or(0),
        completed: read_count(counts, b"downloaded").unwrap_or(0),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::serve::scrape_body;
    use super::*;

    const HASH: InfoHash = InfoHash::new([b'a'; 20]);

    #[test]
    fn announce_at_the_start_of_the_last_part_becomes_scrape() {
        let of = |text: &str| {
            let url = scrape_url(&Url::parse(text).unwrap(), &HASH)?;
            Some(url.to_string().replace(&"a".repeat(20), "A"))
        };
        for (announce, scrape) in [
            ("http://t/announce", Some("http://t/scrape?info_hash=A")),
            ("http://t/x/announce", Some("http://t/x/scrape?info_hash=A")),
            (
                "http://t/announce.php",
                Some("http://t/scrape.php?info_hash=A"),
            ),
            (
                "http://t/announce?k=1/2",
                Some("http://t/scrape?k=1/2&info_hash=A"),
            ),
            ("http://t/a", None),
            ("http://t/announce/x", None),
            ("http://t/xannounce", None),
            ("http://t/", None),
        ] {
            assert_eq!(of(announce).as_deref(), scrape, "{announce}");
        }
    }

    #[test]
    fn what_the_tracker_writes_is_read() {
        let counts = SwarmCounts {
            seeders: 5,
            leechers: 7,
            completed: 50,
        };
        let body = scrape_body(&[(InfoHash::new([b'b'; 20]), counts)]);
        assert_eq!(parse_scrape(&body, &HASH), Ok(None));
        assert_eq!(
            parse_scrape(&body, &InfoHash::new([b'b'; 20])),
            Ok(Some(counts))
        );
    }

    #[test]
    fn strange_answers_are_refused_or_brought_into_range() {
        let refused = parse_scrape(b"d14:failure reason2:noe", &HASH);
        assert!(
            matches!(refused, Err(AnnounceError::Refused(_))),
            "{refused:?}"
        );
        assert!(parse_scrape(b"le", &HASH).is_err());
        assert!(parse_scrape(b"<html>", &HASH).is_err());
        assert_eq!(parse_scrape(b"de", &HASH), Ok(None));
        let name = "a".repeat(20);
        let body =
            format!("d5:filesd20:{name}d8:completei99999999999999999999e10:incompletei-3eeee");
        let counts = parse_scrape(body.as_bytes(), &HASH).unwrap().unwrap();
        assert_eq!((counts.seeders, counts.leechers), (u32::MAX, 0));
    }
}
