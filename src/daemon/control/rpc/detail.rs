//! Fields of `torrent-get` that the session is asked for: files, peers, trackers, pieces. Layer 6.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::fields::{host, site};
use crate::daemon::control::backend::{Details, Peer, Status, Torrent, Tracker};
use crate::daemon::control::json::Json;

type Write = fn(&Torrent, &Details, &mut Json);

const FIELDS: [(&str, Write); 11] = [
    ("availability", availability),
    ("bytes_completed", |_, details, json| {
        json.array(&details.files, |json, file| json.uint(file.have_bytes));
    }),
    ("file_stats", file_stats),
    ("files", files),
    ("peers", |torrent, details, json| {
        json.array(&details.peers, |json, one| peer(torrent, one, json));
    }),
    ("pieces", |_, details, json| {
        json.text(&STANDARD.encode(&details.have))
    }),
    // Not of Transmission.
    ("policies", |_, details, json| json.texts(&details.policies)),
    ("priorities", |_, details, json| {
        json.array(&details.files, |json, file| json.int(file.priority));
    }),
    ("tracker_stats", |torrent, details, json| {
        let trackers = details.trackers.iter().enumerate();
        json.array(trackers, |json, (id, one)| tracker(torrent, id, one, json));
    }),
    ("wanted", |_, details, json| {
        json.array(&details.files, |json, file| match json.dialect() {
            // Numbers, ever since the first version.
            crate::daemon::control::json::Dialect::Old => json.uint(u64::from(file.is_wanted)),
            crate::daemon::control::json::Dialect::Snake => json.bool(file.is_wanted),
        });
    }),
    ("webseeds", |_, details, json| {
        json.texts(&details.web_seeds)
    }),
];

/// The field of that name in snake_case.
pub fn find(name: &str) -> Option<Write> {
    let found = FIELDS.iter().find(|(field, _)| *field == name);
    found.map(|(_, write)| *write)
}

/// All names.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(|(name, _)| *name)
}

/// -1 for pieces that are here; of others it is only known whether some peer is there at all.
fn availability(torrent: &Torrent, details: &Details, json: &mut Json) {
    let seeds = details.peers.iter().filter(|peer| peer.is_seed).count();
    let seeds = i64::try_from(seeds).unwrap_or(i64::MAX);
    json.array(0..torrent.pieces, |json, piece| {
        let byte = usize::try_from(piece / 8).ok();
        let byte = byte.and_then(|at| details.have.get(at)).copied();
        let has = byte.unwrap_or(0) & (0x80 >> (piece % 8)) != 0;
        json.int(if has { -1 } else { seeds });
    });
}

fn files(_: &Torrent, details: &Details, json: &mut Json) {
    json.array(&details.files, |json, file| {
        json.open(b'{');
        json.key("bytesCompleted");
        json.uint(file.have_bytes);
        json.key("length");
        json.uint(file.length_bytes);
        json.key("name");
        json.text(&file.name);
        json.key("beginPiece");
        json.uint(file.pieces.0);
        json.key("endPiece");
        json.uint(file.pieces.1);
        json.close(b'}');
    });
}

fn file_stats(_: &Torrent, details: &Details, json: &mut Json) {
    json.array(&details.files, |json, file| {
        json.open(b'{');
        json.key("bytesCompleted");
        json.uint(file.have_bytes);
        json.key("wanted");
        json.bool(file.is_wanted);
        json.key("priority");
        json.int(file.priority);
        json.close(b'}');
    });
}

fn peer(torrent: &Torrent, peer: &Peer, json: &mut Json) {
    let is_giving = peer.am_interested && !peer.peer_choking;
    let is_taking = peer.peer_interested && !peer.am_choking;
    let share = match torrent.pieces {
        0 => 0.0,
        pieces => f64::from(peer.pieces_have) / f64::from(pieces),
    };
    json.open(b'{');
    json.key("address");
    json.text(&peer.addr.ip().to_string());
    json.key("clientName");
    json.text(&peer.client);
    for (key, value) in [
        ("clientIsChoked", peer.peer_choking),
        ("clientIsInterested", peer.am_interested),
        ("isDownloadingFrom", is_giving),
        ("isEncrypted", peer.is_encrypted),
        ("isIncoming", peer.is_incoming),
        ("isUploadingTo", is_taking),
        ("isUTP", peer.is_utp),
        ("peerIsChoked", peer.am_choking),
        ("peerIsInterested", peer.peer_interested),
    ] {
        json.key(key);
        json.bool(value);
    }
    json.key("flagStr");
    json.text(&flags(peer, is_giving, is_taking));
    json.key("port");
    json.uint(peer.addr.port());
    json.key("progress");
    json.float(if peer.is_seed { 1.0 } else { share });
    for (key, value) in [
        ("rateToClient", peer.down_bytes_per_s),
        ("rateToPeer", peer.up_bytes_per_s),
        ("bytesToClient", peer.downloaded_bytes),
        ("bytesToPeer", peer.uploaded_bytes),
    ] {
        json.key(key);
        json.uint(value);
    }
    json.close(b'}');
}

/// Transmission's letters.
fn flags(peer: &Peer, is_giving: bool, is_taking: bool) -> String {
    let source = match peer.source {
        "dht" => 'H',
        "pex" => 'X',
        "lsd" => 'L',
        _ => ' ',
    };
    let letters = [
        ('T', peer.is_utp),
        ('D', is_giving),
        ('d', peer.am_interested && peer.peer_choking),
        ('U', is_taking),
        ('u', peer.peer_interested && peer.am_choking),
        ('K', !peer.peer_choking && !peer.am_interested),
        ('?', !peer.am_choking && !peer.peer_interested),
        ('E', peer.is_encrypted),
        (source, source != ' '),
        ('I', peer.is_incoming),
    ];
    let set = letters.into_iter().filter(|(_, is_set)| *is_set);
    set.map(|(letter, _)| letter).collect()
}

fn tracker(torrent: &Torrent, id: usize, tracker: &Tracker, json: &mut Json) {
    let runs = torrent.status != Status::Stopped;
    let has_announced = tracker.is_working.is_some();
    let succeeded = tracker.is_working == Some(true);
    let count = |known: Option<u32>| known.map_or(-1, i64::from);
    let result = match (&tracker.message, succeeded) {
        (message, _) if !message.is_empty() => message.as_str(),
        (_, true) => "Success",
        _ => "",
    };
    json.open(b'{');
    json.key("announce");
    json.text(&tracker.url);
    json.key("announceState");
    json.uint(match (runs, tracker.is_announcing) {
        (false, _) => 0_u64,
        (_, true) => 3,
        _ => 1,
    });
    for (key, value) in [
        ("downloadCount", -1),
        ("seederCount", count(tracker.seeders)),
        ("leecherCount", count(tracker.leechers)),
        ("lastAnnouncePeerCount", i64::from(tracker.peers)),
        ("lastAnnounceStartTime", tracker.asked_unix_s.unwrap_or(0)),
        ("lastAnnounceTime", tracker.asked_unix_s.unwrap_or(0)),
        ("lastScrapeStartTime", 0),
        ("lastScrapeTime", 0),
        (
            "nextAnnounceTime",
            tracker.next_unix_s.filter(|_| runs).unwrap_or(0),
        ),
        ("nextScrapeTime", 0),
        ("scrapeState", 0),
        ("id", i64::try_from(id).unwrap_or(i64::MAX)),
        ("tier", i64::try_from(tracker.tier).unwrap_or(i64::MAX)),
    ] {
        json.key(key);
        json.int(value);
    }
    for (key, value) in [
        ("hasAnnounced", has_announced),
        ("hasScraped", false),
        ("isBackup", false),
        ("lastAnnounceSucceeded", succeeded),
        ("lastAnnounceTimedOut", false),
        ("lastScrapeSucceeded", false),
        ("lastScrapeTimedOut", false),
    ] {
        json.key(key);
        json.bool(value);
    }
    for (key, value) in [
        ("host", host(&tracker.url)),
        ("sitename", site(&tracker.url)),
        ("lastAnnounceResult", result),
        ("lastScrapeResult", ""),
        ("scrape", ""),
    ] {
        json.key(key);
        json.text(value);
    }
    json.close(b'}');
}
