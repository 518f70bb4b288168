//! Everything of a `.torrent` outside its info dictionary: BEP 3, 5, 12, 19. Layer 1.

use super::{
    FileEntry, Metainfo, MetainfoError, NODES_MAX, PieceLayers, TORRENT_BYTES_MAX, TRACKERS_MAX,
    URL_BYTES_MAX, WEB_SEEDS_MAX, Warnings, info,
};
use crate::base::Geometry;
use crate::wire::bencode::{self, Dict, Value};

pub(super) fn parse(bytes: &[u8]) -> Result<Metainfo, MetainfoError> {
    if bytes.len() > TORRENT_BYTES_MAX {
        return Err(MetainfoError::TooLarge {
            got_bytes: bytes.len(),
            max_bytes: TORRENT_BYTES_MAX,
        });
    }
    let (scanned, consumed) = bencode::scan_prefix(bytes)?;
    let mut warnings = Warnings::default();
    if consumed < bytes.len() {
        let extra = bytes.len() - consumed;
        warnings.add(format!("{extra} bytes behind the torrent are ignored"));
    }
    if !scanned.is_sorted() {
        warnings.add("dictionary keys are not in order");
    }
    let root = scanned.dict().ok_or(MetainfoError::NotADictionary)?;
    let info_dict = root
        .get(b"info")
        .ok_or(MetainfoError::Missing { key: "info" })?
        .as_dict()
        .ok_or(MetainfoError::WrongType {
            key: "info",
            expected: "a dictionary",
        })?;
    let draft = info::Draft::read(info_dict, &mut warnings)?;
    let info_hashes = draft.hashes;
    let layers = root.dict(b"piece layers");
    let read =
        |files: &[FileEntry], geometry: &Geometry| PieceLayers::read(layers, files, geometry);
    let (info, piece_layers) = draft.finish(read, &mut warnings)?;
    Ok(Metainfo {
        info,
        info_hash: info_hashes.main(),
        info_hashes,
        piece_layers,
        announce_tiers: announce_tiers(root, &mut warnings),
        web_seeds: web_seeds(root, &mut warnings),
        comment: info::text(root, b"comment.utf-8", b"comment"),
        created_by: info::text(root, b"created by.utf-8", b"created by"),
        creation_date: root.int(b"creation date"),
        nodes: nodes(root),
        warnings: warnings.0,
        info_bytes: info_dict.raw().into(),
    })
}

/// A URL worth keeping: text without spaces and control characters, not endless.
fn url(value: Value<'_>, warnings: &mut Warnings) -> Option<String> {
    let text = value.as_str().map(str::trim).unwrap_or_default();
    if text.is_empty() && value.as_bytes().is_some_and(<[u8]>::is_empty) {
        return None;
    }
    let is_good = !text.is_empty()
        && text.len() <= URL_BYTES_MAX
        && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    if !is_good {
        warnings.add("a tracker or web seed URL is malformed and ignored");
        return None;
    }
    Some(text.to_owned())
}

/// BEP 12: `announce-list` if it holds anything, else `announce`.
fn announce_tiers(root: Dict<'_>, warnings: &mut Warnings) -> Vec<Vec<String>> {
    let mut tiers: Vec<Vec<String>> = Vec::new();
    let mut left = TRACKERS_MAX;
    let mut seen = std::collections::BTreeSet::new();
    for entry in root
        .list(b"announce-list")
        .into_iter()
        .flat_map(|l| l.iter())
    {
        let mut tier = Vec::new();
        let mut add = |value: Value<'_>, warnings: &mut Warnings| {
            if left == 0 {
                return warnings.add(format!("only {TRACKERS_MAX} trackers are used"));
            }
            if let Some(url) = url(value, warnings).filter(|url| seen.insert(url.clone())) {
                left -= 1;
                tier.push(url);
            }
        };
        match entry {
            Value::List(urls) => urls.iter().for_each(|value| add(value, warnings)),
            // Some programs write a flat list: each URL is a tier.
            value => add(value, warnings),
        }
        if !tier.is_empty() {
            tiers.push(tier);
        }
        if left == 0 {
            break;
        }
    }
    if tiers.is_empty() {
        let announce = root.get(b"announce").and_then(|value| url(value, warnings));
        tiers.extend(announce.map(|url| vec![url]));
    }
    tiers
}

/// BEP 19: a URL or a list of URLs.
fn web_seeds(root: Dict<'_>, warnings: &mut Warnings) -> Vec<String> {
    let mut seeds: Vec<String> = Vec::new();
    let mut add = |value: Value<'_>| {
        if let Some(url) = url(value, warnings).filter(|url| !seeds.contains(url)) {
            seeds.push(url);
        }
    };
    match root.get(b"url-list") {
        Some(Value::List(urls)) => urls.iter().take(WEB_SEEDS_MAX).for_each(add),
        Some(value) => add(value),
        None => {}
    }
    seeds
}

/// BEP 5: pairs of host and port.
fn nodes(root: Dict<'_>) -> Vec<(String, u16)> {
    let pairs = root.list(b"nodes").into_iter().flat_map(|list| list.iter());
    let node = |pair: Value<'_>| {
        let mut fields = pair.as_list()?.iter();
        let host = fields.next()?.as_str()?;
        let port = u16::try_from(fields.next()?.as_int()?).ok()?;
        let is_good = (1..=255).contains(&host.len())
            && port != 0
            && !host.chars().any(|c| c.is_control() || c.is_whitespace());
        is_good.then(|| (host.to_owned(), port))
    };
    pairs.filter_map(node).take(NODES_MAX).collect()
}
