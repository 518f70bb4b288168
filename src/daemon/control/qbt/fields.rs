//! Fields of a torrent in `torrents/info` and `sync/maindata`, and its state in qBittorrent's words. Layer 6.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::names;
use crate::daemon::control::backend::{Problem, SeedLimit, Session, Status, Torrent};
use crate::daemon::control::json::Json;

/// Seconds that stand for never.
pub const ETA_NEVER_S: i64 = 8_640_000;

/// The value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    Text(Cow<'a, str>),
    Int(i64),
    Float(f64),
    Bool(bool),
    Null,
}

impl<'a> Value<'a> {
    /// A count or size.
    pub fn uint(number: impl TryInto<i64>) -> Value<'a> {
        Value::Int(number.try_into().unwrap_or(i64::MAX))
    }

    /// Text that lives elsewhere.
    pub fn text(text: &'a str) -> Value<'a> {
        Value::Text(Cow::Borrowed(text))
    }

    /// Writes it.
    pub fn write(&self, json: &mut Json) {
        match self {
            Value::Text(text) => json.text(text),
            Value::Int(number) => json.int(*number),
            Value::Float(number) => json.float(*number),
            Value::Bool(value) => json.bool(*value),
            Value::Null => json.null(),
        }
    }

    /// In which order two values of one field are.
    pub fn order(&self, other: &Value<'_>) -> Ordering {
        match (self, other) {
            (Value::Text(one), Value::Text(other)) => one.cmp(other),
            (Value::Int(one), Value::Int(other)) => one.cmp(other),
            (Value::Float(one), Value::Float(other)) => one.total_cmp(other),
            (Value::Bool(one), Value::Bool(other)) => one.cmp(other),
            (Value::Null, Value::Null) => Ordering::Equal,
            (Value::Null, _) => Ordering::Less,
            (_, Value::Null) => Ordering::Greater,
            // A field has one type.
            _ => Ordering::Equal,
        }
    }
}

/// A torrent, and what of the session its fields need.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    pub torrent: &'a Torrent,
    pub session: &'a Session,
}

type Read = for<'a> fn(Row<'a>) -> Value<'a>;

/// By name, in the order in which they are written.
pub const FIELDS: [(&str, Read); 67] = [
    ("added_on", |r| Value::Int(r.torrent.added_unix_s)),
    ("amount_left", |r| Value::uint(r.torrent.left_bytes())),
    ("auto_tmm", |_| Value::Bool(false)),
    ("availability", |_| Value::Float(-1.0)),
    ("category", |r| {
        Value::text(names::category(&r.torrent.labels))
    }),
    ("comment", |r| Value::text(&r.torrent.comment)),
    ("completed", |r| Value::uint(r.torrent.have_bytes)),
    ("completion_on", |r| {
        Value::Int(r.torrent.done_unix_s.unwrap_or(-1))
    }),
    ("connections_count", |r| Value::uint(r.torrent.peers)),
    ("connections_limit", |r| {
        Value::uint(r.torrent.limits.peers_max)
    }),
    ("content_path", |r| {
        Value::Text(content_path(r.torrent).into())
    }),
    ("created_by", |r| Value::text(&r.torrent.creator)),
    ("creation_date", |r| {
        Value::Int(r.torrent.created_unix_s.unwrap_or(-1))
    }),
    ("dl_limit", |r| Value::Int(rate(r.torrent.limits.down))),
    ("dlspeed", |r| Value::uint(r.torrent.down_bytes_per_s)),
    ("download_path", |_| Value::text("")),
    ("downloaded", |r| Value::uint(r.torrent.downloaded_bytes)),
    ("downloaded_session", |r| {
        Value::uint(r.torrent.downloaded_bytes)
    }),
    ("eta", |r| Value::Int(eta_s(r.torrent))),
    ("f_l_piece_prio", |_| Value::Bool(false)),
    ("force_start", |_| Value::Bool(false)),
    ("has_metadata", |r| Value::Bool(has_metadata(r.torrent))),
    ("has_other_announce_error", |_| Value::Bool(false)),
    ("has_tracker_error", |r| {
        Value::Bool(matches!(r.torrent.problem, Problem::Tracker(_)))
    }),
    ("has_tracker_warning", |_| Value::Bool(false)),
    ("hash", |r| {
        Value::Text(r.torrent.info_hash.to_string().into())
    }),
    ("inactive_seeding_time_limit", |r| {
        Value::Int(minutes(r.torrent.seed_idle))
    }),
    ("infohash_v1", |r| {
        let v1 = r.torrent.info_hashes().v1();
        Value::Text(v1.map(|v1| v1.to_string()).unwrap_or_default().into())
    }),
    ("infohash_v2", |r| {
        Value::text(r.torrent.v2.as_deref().unwrap_or_default())
    }),
    ("last_activity", |r| {
        Value::Int(r.torrent.active_unix_s.unwrap_or(r.torrent.added_unix_s))
    }),
    ("magnet_uri", |r| Value::Text(r.torrent.magnet().into())),
    ("max_inactive_seeding_time", |r| {
        Value::Int(match r.torrent.seed_idle {
            SeedLimit::Session => r
                .session
                .seed_idle_minutes
                .map_or(-1, |m| i64::try_from(m).unwrap_or(-1)),
            own => minutes(own),
        })
    }),
    ("max_ratio", |r| {
        Value::Float(match r.torrent.seed_ratio {
            SeedLimit::Session => r.session.seed_ratio.unwrap_or(-1.0),
            own => ratio_limit(own),
        })
    }),
    ("max_seeding_time", |_| Value::Int(-1)),
    ("name", |r| Value::text(&r.torrent.name)),
    ("num_complete", |r| Value::uint(seeds(r.torrent))),
    ("num_incomplete", |r| {
        Value::uint(r.torrent.peers.saturating_sub(seeds(r.torrent)))
    }),
    ("num_leechs", |r| {
        Value::uint(r.torrent.peers.saturating_sub(seeds(r.torrent)))
    }),
    ("num_seeds", |r| Value::uint(seeds(r.torrent))),
    ("piece_size", |r| Value::uint(r.torrent.piece_length_bytes)),
    ("pieces_num", |r| Value::uint(r.torrent.pieces)),
    ("popularity", |_| Value::Float(0.0)),
    ("priority", |r| {
        match super::program::is_queueing(r.session) {
            true => Value::uint(r.torrent.queue_position.saturating_add(1)),
            false => Value::Int(0),
        }
    }),
    ("private", |r| match has_metadata(r.torrent) {
        true => Value::Bool(r.torrent.is_private),
        false => Value::Null,
    }),
    ("progress", |r| Value::Float(r.torrent.done_share())),
    ("ratio", |r| Value::Float(r.torrent.ratio().max(0.0))),
    ("ratio_limit", |r| {
        Value::Float(ratio_limit(r.torrent.seed_ratio))
    }),
    ("reannounce", |_| Value::Int(0)),
    ("root_path", |r| {
        Value::Text(match r.torrent.files {
            0 | 1 => Cow::Borrowed(""),
            _ => content_path(r.torrent).into(),
        })
    }),
    ("save_path", |r| Value::text(&r.torrent.folder)),
    ("seeding_time", |r| Value::uint(r.torrent.seeding_s())),
    ("seeding_time_limit", |_| Value::Int(-2)),
    ("seen_complete", |r| {
        Value::Int(r.torrent.done_unix_s.unwrap_or(-1))
    }),
    ("seq_dl", |r| Value::Bool(r.torrent.is_sequential)),
    ("size", |r| Value::uint(r.torrent.wanted_bytes)),
    ("state", |r| Value::text(state(r.torrent))),
    ("super_seeding", |r| Value::Bool(r.torrent.is_super_seeding)),
    ("tags", |r| {
        Value::Text(
            names::tags(&r.torrent.labels)
                .collect::<Vec<_>>()
                .join(", ")
                .into(),
        )
    }),
    ("time_active", |r| {
        Value::uint(
            r.torrent
                .downloading_s()
                .saturating_add(r.torrent.seeding_s()),
        )
    }),
    ("total_size", |r| Value::uint(r.torrent.total_bytes)),
    ("total_wasted", |r| Value::uint(r.torrent.wasted_bytes)),
    ("tracker", |r| {
        Value::text(r.torrent.trackers.first().map_or("", |(_, url)| url))
    }),
    ("trackers_count", |r| Value::uint(r.torrent.trackers.len())),
    ("up_limit", |r| Value::Int(rate(r.torrent.limits.up))),
    ("uploaded", |r| Value::uint(r.torrent.uploaded_bytes)),
    ("uploaded_session", |r| {
        Value::uint(r.torrent.uploaded_bytes)
    }),
    ("upspeed", |r| Value::uint(r.torrent.up_bytes_per_s)),
];

/// Writes all fields as the members of an object that is open.
pub fn write(row: Row<'_>, json: &mut Json) {
    for (name, read) in &FIELDS {
        json.key_as_is(name);
        read(row).write(json);
    }
}

/// How a field is read.
pub fn find(name: &str) -> Option<Read> {
    let found = FIELDS.iter().find(|(known, _)| *known == name);
    found.map(|(_, read)| *read)
}

/// The state in the words that clients compare.
pub fn state(torrent: &Torrent) -> &'static str {
    let is_complete = torrent.left_bytes() == 0 && torrent.wanted_bytes > 0;
    let is_broken = matches!(torrent.problem, Problem::Local(_));
    let either = |up, down| if is_complete { up } else { down };
    match torrent.status {
        _ if torrent.moved_share.is_some() => "moving",
        Status::Stopped if is_broken => "error",
        Status::Stopped => either("stoppedUP", "stoppedDL"),
        Status::Checking => either("checkingUP", "checkingDL"),
        Status::CheckWaiting => either("queuedUP", "queuedDL"),
        Status::DownloadWaiting => "queuedDL",
        Status::SeedWaiting => "queuedUP",
        Status::Downloading if !has_metadata(torrent) => "metaDL",
        Status::Downloading if torrent.down_bytes_per_s == 0 => "stalledDL",
        Status::Downloading => "downloading",
        Status::Seeding if torrent.up_bytes_per_s == 0 => "stalledUP",
        Status::Seeding => "uploading",
    }
}

/// Its metadata is here.
pub const fn has_metadata(torrent: &Torrent) -> bool {
    torrent.pieces > 0
}

/// Seconds until all is here.
pub fn eta_s(torrent: &Torrent) -> i64 {
    match torrent.eta_s() {
        eta if eta < 0 => ETA_NEVER_S,
        eta => eta.min(ETA_NEVER_S),
    }
}

/// Bytes a second; -1 without a limit.
pub fn rate(limit: crate::daemon::control::backend::Limit) -> i64 {
    match limit.is_on {
        true => i64::try_from(limit.bytes_per_s).unwrap_or(i64::MAX),
        false => -1,
    }
}

/// -2 as the session has it, -1 never.
pub const fn ratio_limit(limit: SeedLimit) -> f64 {
    match limit {
        SeedLimit::Session => -2.0,
        SeedLimit::Never => -1.0,
        SeedLimit::Own(ratio) => ratio,
    }
}

fn minutes(limit: SeedLimit) -> i64 {
    match limit {
        SeedLimit::Session => -2,
        SeedLimit::Never => -1,
        // Whole minutes: below 2^53 the text is exact.
        SeedLimit::Own(minutes) => format!("{minutes:.0}").parse().unwrap_or(i64::MAX),
    }
}

/// Connected seeds as far as the list tells: who gives while everybody else takes is not told.
const fn seeds(torrent: &Torrent) -> u32 {
    match torrent.status {
        Status::Downloading => torrent.peers_giving,
        _ => 0,
    }
}

/// Its folder, or its only file; empty while neither is known.
fn content_path(torrent: &Torrent) -> String {
    if !has_metadata(torrent) {
        return String::new();
    }
    let name: String = torrent.name.chars().map(plain).collect();
    let name = match name.as_str() {
        "" | "." => "_",
        ".." => "__",
        name => name,
    };
    format!("{}/{name}", torrent.folder.trim_end_matches('/'))
}

/// As `storage::safe_path` has it.
fn plain(c: char) -> char {
    match c {
        '/' | '\\' => '_',
        c if c.is_control() => '_',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::InfoHash;

    fn torrent(status: Status, have_bytes: u64) -> Torrent {
        let mut torrent = Torrent::nothing(1, InfoHash::new([1; 20]), "n");
        torrent.status = status;
        torrent.wanted_bytes = 10;
        torrent.have_bytes = have_bytes;
        torrent.pieces = 1;
        torrent
    }

    #[test]
    fn states_are_the_words_that_clients_know() {
        let mut rates = torrent(Status::Downloading, 5);
        assert_eq!(state(&rates), "stalledDL");
        rates.down_bytes_per_s = 1;
        assert_eq!(state(&rates), "downloading");
        rates.pieces = 0;
        assert_eq!(state(&rates), "metaDL");
        let mut seeding = torrent(Status::Seeding, 10);
        assert_eq!(state(&seeding), "stalledUP");
        seeding.up_bytes_per_s = 1;
        assert_eq!(state(&seeding), "uploading");
        for (status, have, word) in [
            (Status::Stopped, 10, "stoppedUP"),
            (Status::Stopped, 9, "stoppedDL"),
            (Status::Checking, 10, "checkingUP"),
            (Status::CheckWaiting, 9, "queuedDL"),
            (Status::DownloadWaiting, 0, "queuedDL"),
            (Status::SeedWaiting, 10, "queuedUP"),
        ] {
            assert_eq!(state(&torrent(status, have)), word);
        }
        let mut moving = torrent(Status::Seeding, 10);
        moving.moved_share = Some(0.5);
        assert_eq!(state(&moving), "moving");
        let mut broken = torrent(Status::Stopped, 10);
        broken.problem = Problem::Local("no disk".into());
        assert_eq!(state(&broken), "error");
    }

    #[test]
    fn fields_are_in_order_and_there_once() {
        let names: Vec<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted);
    }

    #[test]
    fn a_name_is_never_a_path() {
        let mut one = torrent(Status::Stopped, 0);
        one.folder = "/srv/".into();
        for (name, path) in [
            ("a", "/srv/a"),
            ("../x", "/srv/.._x"),
            ("..", "/srv/__"),
            ("", "/srv/_"),
        ] {
            one.name = name.into();
            assert_eq!(content_path(&one), path);
        }
        one.pieces = 0;
        assert_eq!(content_path(&one), "");
    }
}
