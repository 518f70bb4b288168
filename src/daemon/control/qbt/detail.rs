//! More of one torrent: properties, files, pieces, web seeds, peers, its .torrent file. Layer 6.

use super::fields::{self, ETA_NEVER_S, Value};
use super::{Answer, Call, Fault};
use crate::daemon::control::backend::{Backend, Details, File, Peer, Status, Torrent};
use crate::daemon::control::json::{Dialect, Json};
use crate::daemon::date::unix_now_s;
use crate::wire::metainfo::Metainfo;

impl<B: Backend> Call<'_, B> {
    pub(super) async fn properties(&self) -> Result<Answer, Fault> {
        let torrent = self.one()?;
        let details = self.backend().details(torrent.info_hash).await?;
        let mut json = Json::new(Dialect::Old);
        json.open(b'{');
        for (key, value) in properties(&torrent, &details) {
            json.key_as_is(key);
            value.write(&mut json);
        }
        json.close(b'}');
        Ok(Answer::Json(json.into_bytes()))
    }

    pub(super) async fn files(&self) -> Result<Answer, Fault> {
        let torrent = self.one()?;
        let files = self.backend().details(torrent.info_hash).await?.files;
        let asked: Vec<&str> = self.params.list("indexes", '|');
        let mut indices: Vec<usize> = Vec::with_capacity(asked.len());
        for text in asked {
            let index = text.parse::<usize>().ok().filter(|at| *at < files.len());
            let bad = || Fault::conflict(format!("\"{text}\" is not a valid file index"));
            indices.push(index.ok_or_else(bad)?);
        }
        if self.params.get("indexes").is_none_or(str::is_empty) {
            indices = (0..files.len()).collect();
        }
        let mut json = Json::new(Dialect::Old);
        json.array(indices.into_iter().enumerate(), |json, (at, index)| {
            if let Some(file) = files.get(index) {
                let is_seed = (at == 0).then(|| fields::state(&torrent).ends_with("UP"));
                write_file(index, file, is_seed, json);
            }
        });
        Ok(Answer::Json(json.into_bytes()))
    }

    pub(super) async fn web_seeds(&self) -> Result<Answer, Fault> {
        let torrent = self.one()?;
        let details = self.backend().details(torrent.info_hash).await?;
        let mut json = Json::new(Dialect::Old);
        json.array(&details.web_seeds, |json, url| {
            json.open(b'{');
            json.key("url");
            json.text(url);
            json.close(b'}');
        });
        Ok(Answer::Json(json.into_bytes()))
    }

    /// 2 for a piece that is here, else 0: which ones are on their way is not told.
    pub(super) async fn piece_states(&self) -> Result<Answer, Fault> {
        let torrent = self.one()?;
        let details = self.backend().details(torrent.info_hash).await?;
        let mut json = Json::new(Dialect::Old);
        json.array(0..torrent.pieces, |json, piece| {
            json.int(if has(&details.have, piece) { 2 } else { 0 });
        });
        Ok(Answer::Json(json.into_bytes()))
    }

    pub(super) async fn piece_hashes(&self) -> Result<Answer, Fault> {
        let torrent = self.one()?;
        let bytes = match fields::has_metadata(&torrent) {
            true => self.backend().torrent_file(torrent.info_hash).await?,
            false => Vec::new(),
        };
        let metainfo = Metainfo::parse(&bytes).ok();
        let hashes = metainfo.iter().flat_map(|one| one.info.piece_hashes.iter());
        let mut json = Json::new(Dialect::Old);
        json.array(hashes, |json, hash| {
            let bytes = hash.as_bytes();
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json.text(&hex);
        });
        Ok(Answer::Json(json.into_bytes()))
    }

    pub(super) async fn export(&self) -> Result<Answer, Fault> {
        let torrent = self.one()?;
        if !fields::has_metadata(&torrent) {
            return Err(Fault::conflict("the torrent's metadata is not here yet"));
        }
        let bytes = self.backend().torrent_file(torrent.info_hash).await?;
        // Named by its info_hash: what a stranger called it has no place in a header.
        Ok(Answer::Torrent(
            format!("{}.torrent", torrent.info_hash),
            bytes,
        ))
    }

    /// Always all of them: nothing is kept of what a client was told.
    pub(super) async fn torrent_peers(&self) -> Result<Answer, Fault> {
        let torrent = self.one()?;
        let details = self.backend().details(torrent.info_hash).await?;
        let rid = self.params.int("rid")?.unwrap_or(0);
        let mut json = Json::new(Dialect::Old);
        json.open(b'{');
        json.key("full_update");
        json.bool(true);
        json.key("rid");
        json.int(rid.clamp(0, 1_000_000) + 1);
        json.key("show_flags");
        json.bool(false);
        json.key("peers");
        json.open(b'{');
        for peer in &details.peers {
            json.key_as_is(&peer.addr.to_string());
            write_peer(&torrent, peer, &mut json);
        }
        json.close(b'}');
        json.close(b'}');
        Ok(Answer::Json(json.into_bytes()))
    }
}

/// A bit a piece, the first one highest.
fn has(have: &[u8], piece: u32) -> bool {
    let byte = usize::try_from(piece / 8).ok().and_then(|at| have.get(at));
    byte.is_some_and(|byte| byte & (0x80 >> (piece % 8)) != 0)
}

/// Seconds until a tracker is asked next.
fn next_announce_s(torrent: &Torrent, details: &Details) -> i64 {
    let next = details.trackers.iter().filter_map(|one| one.next_unix_s);
    match next.min().filter(|_| torrent.status != Status::Stopped) {
        Some(next) => next.saturating_sub(unix_now_s()).max(0),
        None => 0,
    }
}

fn properties<'a>(torrent: &'a Torrent, details: &Details) -> Vec<(&'static str, Value<'a>)> {
    let seeds = details.peers.iter().filter(|peer| peer.is_seed).count();
    let peers = details.peers.len().saturating_sub(seeds);
    let told = |of: fn(&crate::daemon::control::backend::Tracker) -> Option<u32>, least: usize| {
        let most = details.trackers.iter().filter_map(of).max();
        let most = most.and_then(|count| usize::try_from(count).ok());
        Value::uint(most.unwrap_or(0).max(least))
    };
    let active_s = torrent.downloading_s().saturating_add(torrent.seeding_s());
    let average = |bytes: u64, seconds: u64| match bytes.checked_div(seconds) {
        Some(rate) => Value::uint(rate),
        None => Value::Int(-1),
    };
    let have = (0..torrent.pieces).filter(|piece| has(&details.have, *piece));
    let date = |date: Option<i64>| Value::Int(date.unwrap_or(-1));
    let hash = || Value::Text(torrent.info_hash.to_string().into());
    let v1 = torrent.info_hashes().v1();
    let is_private = match fields::has_metadata(torrent) {
        true => Value::Bool(torrent.is_private),
        false => Value::Null,
    };
    vec![
        ("addition_date", Value::Int(torrent.added_unix_s)),
        ("comment", Value::text(&torrent.comment)),
        ("completion_date", date(torrent.done_unix_s)),
        ("created_by", Value::text(&torrent.creator)),
        ("creation_date", date(torrent.created_unix_s)),
        ("dl_limit", Value::Int(fields::rate(torrent.limits.down))),
        ("dl_speed", Value::uint(torrent.down_bytes_per_s)),
        (
            "dl_speed_avg",
            average(torrent.downloaded_bytes, torrent.downloading_s()),
        ),
        ("download_path", Value::text("")),
        ("eta", Value::Int(fields::eta_s(torrent).min(ETA_NEVER_S))),
        ("has_metadata", Value::Bool(fields::has_metadata(torrent))),
        ("hash", hash()),
        (
            "infohash_v1",
            Value::Text(v1.map(|v1| v1.to_string()).unwrap_or_default().into()),
        ),
        (
            "infohash_v2",
            Value::text(torrent.v2.as_deref().unwrap_or_default()),
        ),
        ("is_private", Value::Bool(torrent.is_private)),
        ("last_seen", date(torrent.done_unix_s)),
        ("name", Value::text(&torrent.name)),
        ("nb_connections", Value::uint(torrent.peers)),
        (
            "nb_connections_limit",
            Value::uint(torrent.limits.peers_max),
        ),
        ("peers", Value::uint(peers)),
        ("peers_total", told(|tracker| tracker.leechers, peers)),
        ("piece_size", Value::uint(torrent.piece_length_bytes)),
        ("pieces_have", Value::uint(have.count())),
        ("pieces_num", Value::uint(torrent.pieces)),
        ("popularity", Value::Float(0.0)),
        ("private", is_private),
        ("progress", Value::Float(torrent.done_share())),
        ("reannounce", Value::Int(next_announce_s(torrent, details))),
        ("save_path", Value::text(&torrent.folder)),
        ("seeding_time", Value::uint(torrent.seeding_s())),
        ("seeds", Value::uint(seeds)),
        ("seeds_total", told(|tracker| tracker.seeders, seeds)),
        ("share_ratio", Value::Float(torrent.ratio().max(0.0))),
        ("time_elapsed", Value::uint(active_s)),
        ("total_downloaded", Value::uint(torrent.downloaded_bytes)),
        (
            "total_downloaded_session",
            Value::uint(torrent.downloaded_bytes),
        ),
        ("total_size", Value::uint(torrent.total_bytes)),
        ("total_uploaded", Value::uint(torrent.uploaded_bytes)),
        (
            "total_uploaded_session",
            Value::uint(torrent.uploaded_bytes),
        ),
        ("total_wasted", Value::uint(torrent.wasted_bytes)),
        ("up_limit", Value::Int(fields::rate(torrent.limits.up))),
        ("up_speed", Value::uint(torrent.up_bytes_per_s)),
        ("up_speed_avg", average(torrent.uploaded_bytes, active_s)),
    ]
}

fn write_file(index: usize, file: &File, is_seed: Option<bool>, json: &mut Json) {
    let share = match file.length_bytes {
        0 => 1.0,
        length if file.have_bytes >= length => 1.0,
        // Four places are shown: the last byte must not round up to all.
        length => (file.have_bytes as f64 / length as f64).min(0.9999),
    };
    let priority = match (file.is_wanted, file.priority) {
        (false, _) => 0,
        (true, 1..) => 6,
        (true, _) => 1,
    };
    json.open(b'{');
    json.key("index");
    json.uint(u64::try_from(index).unwrap_or(u64::MAX));
    json.key("name");
    json.text(&file.name);
    json.key("size");
    json.uint(file.length_bytes);
    json.key("progress");
    json.float(share);
    json.key("priority");
    json.int(priority);
    json.key("availability");
    json.float(share);
    json.key("piece_range");
    let last = file.pieces.1.saturating_sub(1).max(file.pieces.0);
    json.array([file.pieces.0, last], |json, piece| json.uint(piece));
    if let Some(is_seed) = is_seed {
        json.key_as_is("is_seed");
        json.bool(is_seed);
    }
    json.close(b'}');
}

fn write_peer(torrent: &Torrent, peer: &Peer, json: &mut Json) {
    let share = match torrent.pieces {
        _ if peer.is_seed => 1.0,
        0 => 0.0,
        pieces => f64::from(peer.pieces_have) / f64::from(pieces),
    };
    let letters = flags(peer);
    let flags: Vec<String> = letters.iter().map(|(flag, _)| flag.to_string()).collect();
    let words: Vec<String> = letters
        .iter()
        .map(|(flag, words)| format!("{flag} = {words}"))
        .collect();
    let words = words.join("\n");
    json.open(b'{');
    for (key, text) in [
        ("client", peer.client.as_str()),
        ("connection", if peer.is_utp { "μTP" } else { "BT" }),
        ("country", ""),
        ("country_code", ""),
        ("files", ""),
        ("flags", &flags.join(" ")),
        ("flags_desc", &words),
        ("ip", &peer.addr.ip().to_string()),
        ("peer_id_client", ""),
    ] {
        json.key_as_is(key);
        json.text(text);
    }
    for (key, number) in [
        ("dl_speed", peer.down_bytes_per_s),
        ("downloaded", peer.downloaded_bytes),
        ("port", u64::from(peer.addr.port())),
        ("up_speed", peer.up_bytes_per_s),
        ("uploaded", peer.uploaded_bytes),
    ] {
        json.key_as_is(key);
        json.uint(number);
    }
    for key in ["progress", "relevance"] {
        json.key(key);
        json.float(share);
    }
    json.close(b'}');
}

/// qBittorrent's letters with what they mean.
fn flags(peer: &Peer) -> Vec<(char, &'static str)> {
    let letters = [
        (
            'D',
            "takes from it",
            peer.am_interested && !peer.peer_choking,
        ),
        (
            'd',
            "would take, is choked",
            peer.am_interested && peer.peer_choking,
        ),
        ('U', "gives to it", peer.peer_interested && !peer.am_choking),
        (
            'u',
            "it would take, is choked",
            peer.peer_interested && peer.am_choking,
        ),
        (
            'K',
            "unchoked, takes nothing",
            !peer.am_interested && !peer.peer_choking,
        ),
        (
            '?',
            "may take, does not",
            !peer.am_choking && !peer.peer_interested,
        ),
        ('I', "it called", peer.is_incoming),
        ('H', "from the DHT", peer.source == "dht"),
        ('X', "from peer exchange", peer.source == "pex"),
        ('L', "from the local network", peer.source == "lsd"),
        ('E', "encrypted", peer.is_encrypted),
        ('P', "over uTP", peer.is_utp),
    ];
    let set = letters.into_iter().filter(|(_, _, is_set)| *is_set);
    set.map(|(flag, words, _)| (flag, words)).collect()
}
