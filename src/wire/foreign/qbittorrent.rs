//! qBittorrent's `BT_backup/*.fastresume`: what libtorrent keeps of a torrent, with keys of qBittorrent's own among it.
//! Layer 1.

use super::{Foreign, ForeignError, Have, Place, count, document, is_set, path, paths, time, urls};
use crate::base::InfoHash;
use crate::wire::bencode::{Dict, Value};

/// What a label begins with that stands for a category, as in the daemon's Web API.
const CATEGORY: &str = "category:";

/// Reads one file.
///
/// # Errors
/// It is no dictionary of bencode.
pub fn parse(bytes: &[u8]) -> Result<Foreign, ForeignError> {
    let dict = document(bytes)?;
    // Where the data lies now; the program's own key is where it is to lie in the end.
    let folder = path(dict, b"save_path").or_else(|| path(dict, b"qBt-savePath"));
    let mut foreign = Foreign {
        info_hash: dict.bytes(b"info-hash").and_then(info_hash),
        name: name(dict),
        place: folder.map_or(Place::Unknown, Place::Beside),
        have: have(dict),
        renamed: dict.list(b"mapped_files").map(paths).unwrap_or_default(),
        is_paused: is_set(dict, b"paused") && !is_set(dict, b"auto_managed"),
        is_sequential: is_set(dict, b"sequential_download"),
        uploaded_bytes: count(dict, b"total_uploaded"),
        downloaded_bytes: count(dict, b"total_downloaded"),
        added_unix_s: time(dict, b"added_time"),
        done_unix_s: time(dict, b"completed_time"),
        web_seeds: dict.list(b"url-list").map(urls),
        trackers: dict.list(b"trackers").map(|tiers| {
            let tiers = tiers.iter().filter_map(Value::as_list).map(urls);
            tiers.filter(|tier| !tier.is_empty()).collect()
        }),
        ..Foreign::default()
    };
    let priorities = dict.list(b"file_priority").into_iter();
    let priorities = priorities.flat_map(|list| list.iter());
    for (index, priority) in priorities
        .map(|value| value.as_int().unwrap_or(4))
        .enumerate()
    {
        if priority == 0 {
            foreign.unwanted.push(index);
        }
        // 4 is libtorrent's usual one, 1 that of qBittorrent; those above are high.
        if priority > 4 {
            foreign.file_priorities.push((index, 1));
        }
    }
    let category = dict.str(b"qBt-category").unwrap_or_default().trim();
    if !category.is_empty() {
        foreign.label(&format!("{CATEGORY}{category}"));
    }
    let tags = dict.list(b"qBt-tags").into_iter();
    for tag in tags.flat_map(|tags| tags.iter()).filter_map(Value::as_str) {
        foreign.label(tag);
    }
    limits(dict, &mut foreign);
    Ok(foreign)
}

/// What ends seeding, and what stays behind.
fn limits(dict: Dict<'_>, foreign: &mut Foreign) {
    match dict.int(b"qBt-ratioLimit") {
        // In thousandths; -2 is the program's own limit, -1 is none.
        Some(ratio @ 1..=1_000_000_000) => foreign.seed_ratio = Some(thousandths(ratio)),
        Some(-1_000) => foreign.seeds_at_any_ratio = true,
        _ => {}
    }
    let minutes = |key: &[u8]| u32::try_from(dict.int(key)?).ok();
    foreign.idle_minutes = minutes(b"qBt-inactiveSeedingTimeLimit").filter(|minutes| *minutes > 0);
    let is_timed = minutes(b"qBt-seedingTimeLimit").is_some();
    foreign.leave_if(is_timed, "its limit of seeding time");
    let rate = |key: &[u8]| Some(count(dict, key)).filter(|rate| *rate > 0);
    foreign.up_limit = rate(b"upload_rate_limit");
    foreign.down_limit = rate(b"download_rate_limit");
    let is_first_last = is_set(dict, b"qBt-firstLastPiecePriority");
    foreign.leave_if(is_first_last, "first and last pieces first");
    foreign.leave_if(is_set(dict, b"super_seeding"), "super-seeding");
}

fn thousandths(value: i64) -> f64 {
    i32::try_from(value).map_or(f64::from(i32::MAX), f64::from) / 1_000.0
}

/// The name that the user gave it, else that of the torrent.
fn name(dict: Dict<'_>) -> Option<String> {
    let own = dict.str(b"qBt-name").filter(|name| !name.is_empty());
    own.or_else(|| dict.str(b"name")).map(str::to_owned)
}

fn have(dict: Dict<'_>) -> Have {
    match dict.bytes(b"pieces") {
        Some(pieces) if !pieces.is_empty() => Have::Bytes(pieces.to_vec()),
        _ if is_set(dict, b"seed_mode") => Have::All,
        _ => Have::Nothing,
    }
}

/// Of a torrent without a v1 part it is zeros, or left out.
fn info_hash(bytes: &[u8]) -> Option<InfoHash> {
    let bytes: [u8; 20] = bytes.try_into().ok()?;
    (bytes != [0; 20]).then(|| InfoHash::new(bytes))
}
