//! Trackers of a torrent: the list of them, and its changes. Layer 6.

use std::collections::HashSet;

use super::{Answer, Call, Fault, form, gone_is_fine};
use crate::daemon::control::backend::{Backend, Change, Details, Torrent, Tracker};
use crate::daemon::control::json::{Dialect, Json};
use crate::swarm::announce::TRACKERS_MAX;

const URL_BYTES_MAX: usize = 2_048;

impl<B: Backend> Call<'_, B> {
    pub(super) async fn trackers(&self) -> Result<Answer, Fault> {
        let torrent = self.one()?;
        let details = self.backend().details(torrent.info_hash).await?;
        let session = self.backend().session();
        let mut json = Json::new(Dialect::Old);
        json.open(b'[');
        for (name, source, is_on) in [
            ("** [DHT] **", "dht", session.has_dht),
            ("** [PeX] **", "pex", session.has_pex),
            ("** [LSD] **", "lsd", session.has_lsd),
        ] {
            source_of_peers(name, source, is_on, &torrent, &details, &mut json);
        }
        for tracker in &details.trackers {
            write(&torrent, tracker, &mut json);
        }
        json.close(b']');
        Ok(Answer::Json(json.into_bytes()))
    }

    /// One URL a line; an empty line says nothing, each new tracker has a tier of its own.
    pub(super) async fn add_trackers(&self) -> Result<(), Fault> {
        let urls = self.params.need("urls")?.lines().map(str::trim);
        let urls: Vec<&str> = urls.filter(|url| !url.is_empty()).collect();
        // Before anything is done with them: a form has room for a hundred thousand.
        check_count(urls.len())?;
        urls.iter().try_for_each(|url| check(url))?;
        for torrent in self.chosen("hash")? {
            let mut all = tiers(&torrent);
            let known = torrent.trackers.iter().map(|(_, url)| url.as_str());
            let mut known: HashSet<&str> = known.collect();
            let new = urls.iter().filter(|url| known.insert(url));
            all.extend(new.map(|url| vec![(*url).to_owned()]));
            self.put_trackers(&torrent, all).await?;
        }
        Ok(())
    }

    pub(super) async fn edit_tracker(&self) -> Result<(), Fault> {
        let torrent = self.one()?;
        let old = match self.params.get("origUrl") {
            Some(old) => old,
            None => self.params.need("url")?,
        };
        let new = self.params.need("newUrl")?.trim();
        if check(new).is_err() {
            return Err(Fault::bad("New tracker URL is invalid"));
        }
        let mut tiers = tiers(&torrent);
        let mut urls = tiers.iter().flatten();
        if old != new && urls.any(|url| url == new) {
            return Err(Fault::conflict("New tracker URL already exists"));
        }
        let place = tiers.iter_mut().flatten().find(|url| *url == old);
        let place = place.ok_or_else(|| Fault::conflict("Tracker not found"))?;
        new.clone_into(place);
        self.put_trackers(&torrent, tiers).await
    }

    pub(super) async fn remove_trackers(&self) -> Result<(), Fault> {
        self.params.need("urls")?;
        let urls = self.params.list("urls", '|');
        // Some clients escape each of them once more.
        let plain = urls
            .iter()
            .filter_map(|url| form::unescape(url.as_bytes(), false));
        let urls: HashSet<String> = urls
            .iter()
            .map(|url| (*url).to_owned())
            .chain(plain)
            .collect();
        let chosen = self.chosen("hash")?;
        if chosen.is_empty() {
            return Err(Fault::not_found("there is no such torrent"));
        }
        for torrent in chosen {
            let mut tiers = tiers(&torrent);
            for tier in &mut tiers {
                tier.retain(|url| !urls.contains(url));
            }
            tiers.retain(|tier| !tier.is_empty());
            self.put_trackers(&torrent, tiers).await?;
        }
        Ok(())
    }

    async fn put_trackers(&self, torrent: &Torrent, new: Vec<Vec<String>>) -> Result<(), Fault> {
        if new == tiers(torrent) {
            return Ok(());
        }
        check_count(new.iter().flatten().count())?;
        let change = Change {
            trackers: Some(new),
            ..Change::default()
        };
        gone_is_fine(self.backend().change(torrent.info_hash, change).await)
    }
}

fn check_count(trackers: usize) -> Result<(), Fault> {
    match trackers <= TRACKERS_MAX {
        true => Ok(()),
        false => Err(Fault::conflict(format!(
            "a torrent has at most {TRACKERS_MAX} trackers"
        ))),
    }
}

fn check(url: &str) -> Result<(), Fault> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    match scheme {
        Some("http" | "https" | "udp") if url.len() <= URL_BYTES_MAX => Ok(()),
        _ => Err(Fault::bad("a tracker's URL begins with http, https or udp")),
    }
}

fn tiers(torrent: &Torrent) -> Vec<Vec<String>> {
    let mut tiers: Vec<Vec<String>> = Vec::new();
    let mut last = None;
    for (tier, url) in torrent.trackers.iter() {
        match tiers.last_mut() {
            Some(urls) if last == Some(*tier) => urls.push(url.clone()),
            _ => tiers.push(vec![url.clone()]),
        }
        last = Some(*tier);
    }
    tiers
}

/// A way of finding peers that is no tracker, as qBittorrent lists it among them.
fn source_of_peers(
    name: &str,
    source: &str,
    is_on: bool,
    torrent: &Torrent,
    details: &Details,
    json: &mut Json,
) {
    let peers = details.peers.iter().filter(|peer| peer.source == source);
    let (seeds, others): (Vec<_>, Vec<_>) = peers.partition(|peer| peer.is_seed);
    let count = |peers: usize| u64::try_from(peers).unwrap_or(u64::MAX);
    json.open(b'{');
    json.key("url");
    json.text(name);
    json.key("tier");
    json.int(-1);
    json.key("status");
    json.int(if is_on && !torrent.is_private { 2 } else { 0 });
    json.key("msg");
    json.text(if torrent.is_private {
        "This torrent is private"
    } else {
        ""
    });
    for (key, number) in [
        ("num_peers", 0),
        ("num_seeds", count(seeds.len())),
        ("num_leeches", count(others.len())),
        ("num_downloaded", 0),
    ] {
        json.key(key);
        json.uint(number);
    }
    json.close(b'}');
}

fn write(torrent: &Torrent, tracker: &Tracker, json: &mut Json) {
    let runs = torrent.status != crate::daemon::control::backend::Status::Stopped;
    // 1 not asked yet, 2 working, 3 being asked, 4 not working.
    let status = match tracker.is_working {
        _ if tracker.is_announcing && runs => 3,
        None => 1,
        Some(true) => 2,
        Some(false) => 4,
    };
    let count = |known: Option<u32>| known.map_or(-1, i64::from);
    let both = tracker.seeders.zip(tracker.leechers);
    json.open(b'{');
    json.key("url");
    json.text(&tracker.url);
    json.key("tier");
    json.uint(u64::try_from(tracker.tier).unwrap_or(u64::MAX));
    json.key("status");
    json.int(status);
    json.key("msg");
    json.text(&tracker.message);
    for (key, number) in [
        (
            "num_peers",
            count(both.map(|(seeds, others)| seeds.saturating_add(others))),
        ),
        ("num_seeds", count(tracker.seeders)),
        ("num_leeches", count(tracker.leechers)),
        ("num_downloaded", -1),
    ] {
        json.key(key);
        json.int(number);
    }
    json.close(b'}');
}
