//! `torrents/info`: which torrents, in which order, and how many of them. Layer 6.

use std::sync::Arc;

use super::fields::{self, Row, Value, state};
use super::{Answer, Call, Fault, names};
use crate::base::InfoHash;
use crate::daemon::control::backend::{Backend, Torrent};
use crate::daemon::control::json::{Dialect, Json};

/// Torrents between two breaths of the thread's other work.
const ROWS_A_BREATH: usize = 2_000;
/// The longest answer: everything of 100,000 torrents takes less.
const ANSWER_BYTES_MAX: usize = 256 << 20;

impl<B: Backend> Call<'_, B> {
    pub(super) async fn info(&self) -> Result<Answer, Fault> {
        let session = self.backend().session();
        let mut torrents = self.filtered()?;
        if let Some(name) = self.params.get("sort").filter(|name| !name.is_empty()) {
            let read = fields::find(name);
            let read = read.ok_or_else(|| Fault::bad("'sort' parameter is invalid"))?;
            let keyed = torrents.iter().map(|torrent| {
                let row = Row {
                    torrent,
                    session: &session,
                };
                (read(row), torrent)
            });
            let mut keyed: Vec<(Value<'_>, &Arc<Torrent>)> = keyed.collect();
            keyed.sort_by(|one, other| one.0.order(&other.0));
            torrents = keyed
                .into_iter()
                .map(|(_, torrent)| torrent.clone())
                .collect();
        }
        if self.params.flag("reverse") == Some(true) {
            torrents.reverse();
        }
        let window = window(
            torrents.len(),
            self.params.int("offset")?.unwrap_or(0),
            self.params.int("limit")?.unwrap_or(0),
        );
        let mut json = Json::new(Dialect::Old);
        json.open(b'[');
        for (at, torrent) in torrents[window].iter().enumerate() {
            json.open(b'{');
            let row = Row {
                torrent,
                session: &session,
            };
            fields::write(row, &mut json);
            json.close(b'}');
            breathe(at, &json).await?;
        }
        json.close(b']');
        Ok(Answer::Json(json.into_bytes()))
    }

    fn filtered(&self) -> Result<Vec<Arc<Torrent>>, Fault> {
        let status = self.params.get("filter").unwrap_or("all");
        let category = self.params.get("category");
        let tag = self.params.get("tag");
        let is_private = self.params.flag("private");
        let hashes: Option<std::collections::BTreeSet<InfoHash>> =
            match self.params.get("hashes").is_none_or(str::is_empty) {
                true => None,
                false if self.params.get("hashes") == Some("all") => None,
                false => {
                    let texts = self.params.list("hashes", '|');
                    Some(texts.iter().filter_map(|text| text.parse().ok()).collect())
                }
            };
        let has_tag = |torrent: &Torrent| match tag {
            None => true,
            Some("") => names::tags(&torrent.labels).next().is_none(),
            Some(tag) => names::tags(&torrent.labels).any(|one| one == tag),
        };
        let is_wanted = |torrent: &&Arc<Torrent>| {
            hashes
                .as_ref()
                .is_none_or(|hashes| hashes.contains(&torrent.info_hash))
                && category.is_none_or(|name| names::category(&torrent.labels) == name)
                && has_tag(torrent)
                && is_private.is_none_or(|is| torrent.is_private == is)
                && passes(torrent, status)
        };
        Ok(self
            .rpc
            .catalog()
            .all()
            .filter(is_wanted)
            .cloned()
            .collect())
    }
}

/// Behind each torrent of a long answer: now and then the thread's other work has its turn.
pub(super) async fn breathe(at: usize, json: &Json) -> Result<(), Fault> {
    if json.len() > ANSWER_BYTES_MAX {
        return Err(Fault::bad("the answer is too long: ask for fewer torrents"));
    }
    if at % ROWS_A_BREATH == ROWS_A_BREATH - 1 {
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Whether it is one of those that the word of `filter` means; a word that nobody knows means all.
fn passes(torrent: &Torrent, filter: &str) -> bool {
    let state = state(torrent);
    let is_active = torrent.up_bytes_per_s > 0 || torrent.down_bytes_per_s > 0;
    let is_stopped = matches!(state, "stoppedUP" | "stoppedDL" | "error");
    let is_complete = torrent.left_bytes() == 0 && torrent.wanted_bytes > 0;
    match filter {
        "downloading" => !is_complete && state != "error",
        "seeding" => is_complete && !is_stopped,
        "completed" => is_complete && state != "error",
        "stopped" | "paused" => is_stopped,
        "running" | "resumed" => !is_stopped,
        "active" => is_active,
        "inactive" => !is_active,
        "stalled" => matches!(state, "stalledUP" | "stalledDL"),
        "stalled_uploading" => state == "stalledUP",
        "stalled_downloading" => state == "stalledDL",
        "checking" => matches!(state, "checkingUP" | "checkingDL"),
        "moving" => state == "moving",
        "errored" => state == "error",
        _ => true,
    }
}

/// Which of `count` are asked for: an offset below 0 counts from the end, a limit of 0 or less is none.
fn window(count: usize, offset: i64, limit: i64) -> std::ops::Range<usize> {
    let distance = usize::try_from(offset.unsigned_abs()).unwrap_or(usize::MAX);
    let begin = match offset < 0 {
        true => count.saturating_sub(distance),
        false => distance.min(count),
    };
    let left = count - begin;
    let taken = match limit {
        1.. => usize::try_from(limit).unwrap_or(usize::MAX).min(left),
        _ => left,
    };
    begin..begin + taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_window_is_outside_the_list() {
        assert_eq!(window(10, 0, 0), 0..10);
        assert_eq!(window(10, 3, 4), 3..7);
        assert_eq!(window(10, 8, 4), 8..10);
        assert_eq!(window(10, -3, 0), 7..10);
        assert_eq!(window(10, 11, 1), 10..10);
        for offset in [i64::MIN, -11, 0, 11, i64::MAX] {
            for limit in [i64::MIN, -1, 0, 1, i64::MAX] {
                let window = window(10, offset, limit);
                assert!(window.start <= window.end && window.end <= 10);
            }
        }
    }
}
