//! Transmission's `resume/*.resume`, of versions 2 to 4. Layer 1.
//!
//! Keys have been written with hyphens, with underscores and in camel case; each is looked for in all its forms.

use super::{Foreign, ForeignError, Have, Look, Place, document, paths};
use crate::wire::bencode::{Dict, List, Value};

/// Reads one file.
///
/// # Errors
/// It is no dictionary of bencode.
pub fn parse(bytes: &[u8]) -> Result<Foreign, ForeignError> {
    let keys = Keys(document(bytes)?);
    let time = |key| keys.int(key).filter(|time| *time > 0);
    let count = |key| u64::try_from(keys.int(key).unwrap_or(0)).unwrap_or(0);
    let mut foreign = Foreign {
        name: keys.text("name"),
        place: keys
            .path("destination")
            .map_or(Place::Unknown, Place::Beside),
        renamed: keys.list("files").map(paths).unwrap_or_default(),
        is_paused: keys.is_set("paused"),
        is_sequential: keys.is_set("sequential-download") || keys.is_set("sequentialDownload"),
        uploaded_bytes: count("uploaded"),
        downloaded_bytes: count("downloaded"),
        added_unix_s: time("added-date"),
        done_unix_s: time("done-date"),
        active_unix_s: time("activity-date"),
        ..Foreign::default()
    };
    if let Some(progress) = keys.dict("progress") {
        foreign.have = have(progress);
        foreign.looks = looks(progress);
    }
    let unwanted = keys
        .list("dnd")
        .into_iter()
        .flat_map(List::iter)
        .enumerate();
    let unwanted = unwanted.filter(|(_, value)| value.as_int().is_some_and(|value| value != 0));
    foreign.unwanted = unwanted.map(|(index, _)| index).collect();
    let priorities = keys
        .list("priority")
        .into_iter()
        .flat_map(List::iter)
        .enumerate();
    let priorities = priorities.filter_map(|(index, value)| Some((index, sign(value.as_int()?))));
    foreign.file_priorities = priorities.filter(|(_, priority)| *priority != 0).collect();
    let labels = keys.list("labels").into_iter().flat_map(List::iter);
    labels
        .filter_map(Value::as_str)
        .for_each(|label| foreign.label(label));
    limits(&keys, &mut foreign);
    Ok(foreign)
}

/// What ends seeding, and what stays behind.
fn limits(keys: &Keys<'_>, foreign: &mut Foreign) {
    if let Some(ratio) = keys.dict("ratio-limit") {
        let limit = ratio
            .text("ratio-limit")
            .and_then(|text| text.trim().parse().ok());
        let limit = limit.filter(|limit: &f64| limit.is_finite() && *limit > 0.0);
        match ratio.int("ratio-mode") {
            Some(1) => foreign.seed_ratio = limit,
            Some(2) => foreign.seeds_at_any_ratio = true,
            _ => {}
        }
    }
    if let Some(idle) = keys
        .dict("idle-limit")
        .filter(|idle| idle.int("idle-mode") == Some(1))
    {
        let minutes = idle
            .int("idle-limit")
            .and_then(|minutes| u32::try_from(minutes).ok());
        foreign.idle_minutes = minutes.filter(|minutes| *minutes > 0);
    }
    foreign.up_limit = keys.dict("speed-limit-up").and_then(rate);
    foreign.down_limit = keys.dict("speed-limit-down").and_then(rate);
    let global = keys.dict("speed-limit-up");
    let global = global.and_then(|limit| limit.int("use-global-speed-limit"));
    foreign.ignores_session = global == Some(0);
    foreign.priority = sign(keys.int("bandwidth-priority").unwrap_or(0));
    let has_group = keys.text("group").is_some_and(|group| !group.is_empty());
    foreign.leave_if(has_group, "its bandwidth group");
}

/// -1, 0 or 1.
fn sign(value: i64) -> i8 {
    match value {
        0 => 0,
        1.. => 1,
        _ => -1,
    }
}

/// Bytes a second, if the limit is in force; old versions counted in KiB.
fn rate(limit: Keys<'_>) -> Option<u64> {
    let number = |key| limit.int(key).and_then(|value| u64::try_from(value).ok());
    let old = || number("speed").map(|kib| kib.saturating_mul(1_024));
    let rate = number("speed-Bps").or_else(old);
    rate.filter(|_| limit.is_set("use-speed-limit"))
}

fn have(progress: Keys<'_>) -> Have {
    let bits = |key| match progress.get(key).and_then(Value::as_bytes) {
        Some(b"all") => Bits::All,
        Some(b"none") => Bits::None,
        Some(bits) => Bits::Some(bits.to_vec()),
        None => Bits::Unknown,
    };
    // What of it was verified; older versions have times by file instead.
    let checked = match bits("pieces") {
        Bits::All | Bits::Unknown => None,
        Bits::None => Some(Vec::new()),
        Bits::Some(bits) => Some(bits),
    };
    let is_whole = progress.text("have").is_some_and(|have| have == "all");
    match bits("blocks") {
        Bits::All => Have::Blocks {
            blocks: None,
            checked,
        },
        Bits::Some(bits) => Have::Blocks {
            blocks: Some(bits),
            checked,
        },
        Bits::Unknown if is_whole => Have::Blocks {
            blocks: None,
            checked,
        },
        Bits::None | Bits::Unknown => Have::Nothing,
    }
}

enum Bits {
    All,
    None,
    Some(Vec<u8>),
    Unknown,
}

/// `mtimes` holds the times of files as they were; `time-checked`, before it, when a file's pieces were last verified, each at
/// its own time where they differ: the earliest, then for each piece the seconds since, and 0 for never.
fn looks(progress: Keys<'_>) -> Vec<Look> {
    if let Some(times) = progress.list("mtimes") {
        let look = |value: Value<'_>| match value.as_int() {
            Some(time) if time > 0 => Look::ChangedAt(time),
            _ => Look::Uncertain,
        };
        return times.iter().map(look).collect();
    }
    let checked = |value: Value<'_>| {
        let list = value.as_list().into_iter().flat_map(List::iter);
        let mut list = list.filter_map(Value::as_int);
        let (first, is_sure) = match value.as_int() {
            Some(time) => (time, true),
            None => (list.next().unwrap_or(0), list.all(|since| since != 0)),
        };
        match first > 0 && is_sure {
            true => Look::NotAfter(first),
            false => Look::Uncertain,
        }
    };
    let times = progress.list("time-checked");
    times
        .map(|times| times.iter().map(checked).collect())
        .unwrap_or_default()
}

/// A dictionary whose keys are looked for with hyphens and with underscores.
#[derive(Clone, Copy)]
struct Keys<'a>(Dict<'a>);

impl<'a> Keys<'a> {
    fn get(self, key: &str) -> Option<Value<'a>> {
        let found = self.0.get(key.as_bytes());
        found.or_else(|| self.0.get(key.replace('-', "_").as_bytes()))
    }

    fn int(self, key: &str) -> Option<i64> {
        self.get(key)?.as_int()
    }

    fn is_set(self, key: &str) -> bool {
        self.int(key).is_some_and(|value| value != 0)
    }

    fn text(self, key: &str) -> Option<String> {
        self.get(key)?.as_str().map(str::to_owned)
    }

    fn list(self, key: &str) -> Option<List<'a>> {
        self.get(key)?.as_list()
    }

    fn dict(self, key: &str) -> Option<Keys<'a>> {
        self.get(key)?.as_dict().map(Keys)
    }

    fn path(self, key: &str) -> Option<Vec<u8>> {
        let bytes = self.get(key)?.as_bytes()?;
        let is_usable = !bytes.is_empty() && bytes.len() <= super::PATH_BYTES_MAX;
        is_usable.then(|| bytes.to_vec())
    }
}
