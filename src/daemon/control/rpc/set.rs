//! `torrent-set`. Layer 6.

use super::add::{file_changes, peers_max};
use super::args::Args;
use super::{Fault, Rpc};
use crate::daemon::LABELS_MAX;
use crate::daemon::control::backend::{Backend, Change, Refusal, SeedLimit, Torrent};
use crate::swarm::announce::TRACKERS_MAX;
use serde_json::Value;
use std::collections::HashSet;

impl<B: Backend> Rpc<B> {
    pub(super) async fn torrent_set(&self, args: &Args) -> Result<(), Fault> {
        let location = match args.text("location")? {
            Some(location) => Some(self.allowed(location).await?),
            None => None,
        };
        let torrents = self.select(args)?.torrents;
        // All values are looked at before the first torrent is changed; kept for all, long lists would be there often.
        for torrent in &torrents {
            change(args, torrent)?;
        }
        for torrent in &torrents {
            let change = change(args, torrent)?;
            if change != Change::default() {
                let done = self.backend().change(torrent.info_hash, change).await;
                gone_is_fine(done)?;
            }
            if let Some(folder) = &location {
                let done = self
                    .backend()
                    .relocate(torrent.info_hash, folder, false)
                    .await;
                gone_is_fine(done)?;
            }
        }
        self.outdate();
        Ok(())
    }
}

fn gone_is_fine(done: Result<(), Refusal>) -> Result<(), Refusal> {
    match done {
        Err(Refusal::Unknown(_)) => Ok(()),
        done => done,
    }
}

fn change(args: &Args, torrent: &Torrent) -> Result<Change, Fault> {
    let limits = torrent.limits;
    let labels = args.texts("labels")?;
    if let Some(labels) = &labels
        && labels.iter().any(|label| label.contains(','))
    {
        return Err(Fault::bad_argument("a label has no comma in it"));
    }
    if labels
        .as_ref()
        .is_some_and(|labels| labels.len() > LABELS_MAX)
    {
        let text = format!("a torrent has at most {LABELS_MAX} labels");
        return Err(Fault::bad_argument(text));
    }
    Ok(Change {
        labels,
        files: file_changes(args)?,
        seed_ratio: seed_limit(args, "seed_ratio", torrent.seed_ratio)?,
        seed_idle: seed_limit(args, "seed_idle", torrent.seed_idle)?,
        down: args.limit("download_limit", "download_limited", limits.down)?,
        up: args.limit("upload_limit", "upload_limited", limits.up)?,
        honors_session: args.bool("honors_session_limits")?,
        peers_max: peers_max(args)?,
        priority: args.priority("bandwidth_priority")?,
        is_sequential: args.bool("sequential_download")?,
        // Not of Transmission.
        super_seeds: args.bool("super_seeding")?,
        group: args.text("group")?.map(str::to_owned),
        queue_position: args.uint("queue_position")?,
        trackers: trackers(args, torrent)?,
    })
}

/// A limit without a mode, or the other way round, keeps what the other one was.
fn seed_limit(args: &Args, name: &str, before: SeedLimit) -> Result<Option<SeedLimit>, Fault> {
    let limit = args.float(&format!("{name}_limit"))?;
    let mode = args.uint(&format!("{name}_mode"))?;
    if limit.is_some_and(|limit| limit < 0.0) {
        return Err(Fault::bad_argument(format!("{name}_limit is negative")));
    }
    let own = SeedLimit::Own(limit.unwrap_or(before.value()));
    match (mode, limit, before) {
        (None, None, _) => Ok(None),
        (Some(0), ..) => Ok(Some(SeedLimit::Session)),
        (Some(1), ..) => Ok(Some(own)),
        (Some(2), ..) => Ok(Some(SeedLimit::Never)),
        (Some(_), ..) => Err(Fault::bad_argument(format!("{name}_mode is 0, 1 or 2"))),
        (None, Some(_), SeedLimit::Own(_)) => Ok(Some(own)),
        // The number of a limit that does not count.
        (None, Some(_), _) => Ok(None),
    }
}

/// The trackers as they are to be, when anything is said about them.
fn trackers(args: &Args, torrent: &Torrent) -> Result<Option<Vec<Vec<String>>>, Fault> {
    if let Some(list) = args.text("tracker_list")? {
        return tiers_of(list).map(Some);
    }
    let mut entries: Vec<(usize, String)> = torrent.trackers.to_vec();
    let mut is_changed = false;
    if let Some(replace) = args.get("tracker_replace") {
        // Pairs of an id and its new URL, in one flat list.
        let pairs = replace.as_array().map(Vec::as_slice).unwrap_or_default();
        check_count(pairs.len() / 2)?;
        for pair in pairs.chunks(2) {
            let place = pair.first().and_then(Value::as_u64);
            let place = place.and_then(|id| usize::try_from(id).ok());
            let entry = place.and_then(|place| entries.get_mut(place));
            let url = pair.get(1).and_then(Value::as_str);
            let (Some(entry), Some(url)) = (entry, url) else {
                return Err(Fault::bad_argument("tracker-replace names no tracker"));
            };
            entry.1 = url.to_owned();
            is_changed = true;
        }
    }
    if let Some(ids) = args.indices("tracker_remove")? {
        check_count(ids.len())?;
        let before = entries.len();
        let mut place = 0;
        entries.retain(|_| {
            place += 1;
            !ids.contains(&(place - 1))
        });
        if entries.len() == before {
            return Err(Fault::bad_argument("tracker-remove names no tracker"));
        }
        is_changed = true;
    }
    if let Some(urls) = args.texts("tracker_add")? {
        check_count(urls.len())?;
        let mut known: HashSet<String> = entries.iter().map(|(_, url)| url.clone()).collect();
        for url in urls {
            if known.insert(url.clone()) {
                let tier = entries.last().map_or(0, |(tier, _)| tier + 1);
                entries.push((tier, url));
            }
        }
        is_changed = true;
    }
    if !is_changed {
        return Ok(None);
    }
    let mut text = String::new();
    let mut last = None;
    for (tier, url) in &entries {
        if last.is_some_and(|last| last != tier) {
            text.push('\n');
        }
        last = Some(tier);
        text.push_str(url);
        text.push('\n');
    }
    tiers_of(&text).map(Some)
}

/// Before anything is done with them, which is done for each torrent: a call has room for a hundred thousand.
fn check_count(trackers: usize) -> Result<(), Fault> {
    match trackers <= TRACKERS_MAX {
        true => Ok(()),
        false => Err(Fault::bad_argument(format!(
            "a torrent has at most {TRACKERS_MAX} trackers"
        ))),
    }
}

/// One URL a line, an empty line between tiers.
fn tiers_of(list: &str) -> Result<Vec<Vec<String>>, Fault> {
    check_count(list.lines().filter(|line| !line.trim().is_empty()).count())?;
    let mut tiers: Vec<Vec<String>> = vec![Vec::new()];
    for line in list.lines().map(str::trim) {
        match tiers.last_mut() {
            _ if line.is_empty() => tiers.push(Vec::new()),
            Some(tier) => tier.push(line.to_owned()),
            None => {}
        }
    }
    tiers.retain(|tier| !tier.is_empty());
    let is_tracker = |url: &String| {
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        matches!(scheme, Some("http" | "https" | "udp")) && url.len() <= 2_048
    };
    match tiers.iter().flatten().all(is_tracker) {
        true => Ok(tiers),
        false => Err(Fault::new(
            2,
            "a tracker's URL begins with http, https or udp",
        )),
    }
}
