//! rtorrent's session: `*.torrent.libtorrent_resume`, which its library keeps, and `*.torrent.rtorrent` of the program itself.
//! Layer 1.

use super::{
    Foreign, ForeignError, Have, Look, Place, count, document, is_set, is_url, path, time,
};
use crate::wire::bencode::{Dict, List, Value};

/// Reads both files of a torrent; either may be missing. A torrent of several files lies in the folder itself, so that the
/// name of its root does not count: `is_multi_file` says of which kind it is.
///
/// # Errors
/// One of them is no dictionary of bencode.
pub fn parse(
    library: Option<&[u8]>,
    program: Option<&[u8]>,
    is_multi_file: bool,
) -> Result<Foreign, ForeignError> {
    let mut foreign = Foreign::default();
    if let Some(bytes) = program {
        of_program(document(bytes)?, is_multi_file, &mut foreign);
    }
    if let Some(bytes) = library {
        of_library(document(bytes)?, &mut foreign);
    }
    Ok(foreign)
}

fn of_program(dict: Dict<'_>, is_multi_file: bool, foreign: &mut Foreign) {
    foreign.place = match (path(dict, b"directory"), is_multi_file) {
        (Some(folder), true) => Place::Root(folder),
        (Some(folder), false) => Place::Beside(folder),
        (None, _) => Place::Unknown,
    };
    foreign.is_paused = dict.int(b"state") == Some(0);
    foreign.uploaded_bytes = count(dict, b"total_uploaded");
    foreign.downloaded_bytes = count(dict, b"total_downloaded");
    foreign.done_unix_s = time(dict, b"timestamp.finished");
    // A web front end keeps its own note of when it was added.
    let custom = dict.dict(b"custom");
    let noted = custom.and_then(|custom| custom.str(b"addtime")?.trim().parse().ok());
    foreign.added_unix_s = noted.or_else(|| time(dict, b"timestamp.started"));
    let label = dict.str(b"custom1").unwrap_or_default();
    foreign.label(&unescaped(label));
    // 0 is off, 1 low, 2 the usual, 3 high.
    foreign.priority = match dict.int(b"priority") {
        Some(0 | 1) => -1,
        Some(3) => 1,
        _ => 0,
    };
    let throttle = dict.str(b"throttle_name").unwrap_or_default();
    foreign.leave_if(
        !throttle.is_empty() && throttle != "NULL",
        "its speed limits",
    );
    let is_super = dict.str(b"connection_seed").unwrap_or_default() == "initial_seed";
    foreign.leave_if(is_super, "super-seeding");
}

fn of_library(dict: Dict<'_>, foreign: &mut Foreign) {
    foreign.have = match dict.get(b"bitfield") {
        Some(Value::Bytes(bits)) => Have::Bits(bits.to_vec()),
        Some(Value::Int(count)) => Have::Count(count),
        _ => Have::Nothing,
    };
    let files = dict.list(b"files").into_iter().flat_map(List::iter);
    for (index, file) in files.filter_map(Value::as_dict).enumerate() {
        // Below zero are notes of files that were being written, or were not there.
        foreign.looks.push(match file.int(b"mtime") {
            Some(changed) if changed > 0 => Look::ChangedAt(changed),
            _ => Look::Uncertain,
        });
        match file.int(b"priority") {
            Some(0) => foreign.unwanted.push(index),
            Some(2) => foreign.file_priorities.push((index, 1)),
            _ => {}
        }
    }
    let pieces = dict.bytes(b"uncertain_pieces").unwrap_or_default();
    let pieces = pieces.as_chunks::<4>().0.iter();
    foreign.uncertain = pieces.map(|piece| u32::from_be_bytes(*piece)).collect();
    let trackers = dict.dict(b"trackers").into_iter().flat_map(Dict::iter);
    for (url, about) in trackers {
        let (Ok(url), Some(about)) = (std::str::from_utf8(url), about.as_dict()) else {
            continue;
        };
        let is_added = is_set(about, b"extra_tracker") && is_url(url);
        if is_added && !url.starts_with("dht:") && foreign.more_trackers.len() < super::URLS_MAX {
            foreign.more_trackers.push(url.to_owned());
        }
    }
}

/// Labels are kept with `%20` for a space, as in a URL.
fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let code = match (first, behind) {
            (b'%', [a, b, ..]) => hex(*a).zip(hex(*b)).map(|(a, b)| a * 16 + b),
            _ => None,
        };
        out.push(code.unwrap_or(*first));
        rest = behind
            .get(if code.is_some() { 2 } else { 0 }..)
            .unwrap_or_default();
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}
