//! Fields of `torrent-get` that the list itself answers. Layer 6.

use super::detail;
use crate::daemon::control::backend::{Details, Status, Torrent};
use crate::daemon::control::json::{Json, snake};

/// How one field is written.
#[derive(Clone, Copy)]
pub enum Field {
    /// From the list.
    Row(fn(&Torrent, &mut Json)),
    /// With details that the session is asked for.
    Detail(fn(&Torrent, &Details, &mut Json)),
}

/// The field of that name, in any spelling.
pub fn find(name: &str) -> Option<Field> {
    let name = snake(name);
    let row = ROWS.iter().find(|(row, _)| *row == name);
    row.map(|(_, write)| Field::Row(*write))
        .or_else(|| detail::find(&name).map(Field::Detail))
}

type Row = (&'static str, fn(&Torrent, &mut Json));

fn date(date: Option<i64>, json: &mut Json) {
    json.int(date.unwrap_or(0));
}

/// kB/s, as limits are counted in.
const fn kilobytes(bytes: u64) -> u64 {
    bytes / 1_000
}

const ROWS: [Row; 73] = [
    ("activity_date", |t, json| date(t.active_unix_s, json)),
    ("added_date", |t, json| json.int(t.added_unix_s)),
    ("bandwidth_priority", |t, json| json.int(t.limits.priority)),
    ("comment", |t, json| json.text(&t.comment)),
    ("corrupt_ever", |t, json| json.uint(t.wasted_bytes)),
    ("creator", |t, json| json.text(&t.creator)),
    ("date_created", |t, json| date(t.created_unix_s, json)),
    ("desired_available", |t, json| {
        json.uint(if t.peers > 0 { t.left_bytes() } else { 0 });
    }),
    ("done_date", |t, json| date(t.done_unix_s, json)),
    ("download_dir", |t, json| json.text(&t.folder)),
    ("download_limit", |t, json| {
        json.uint(kilobytes(t.limits.down.bytes_per_s));
    }),
    ("download_limited", |t, json| json.bool(t.limits.down.is_on)),
    ("downloaded_ever", |t, json| json.uint(t.downloaded_bytes)),
    ("edit_date", |_, json| json.uint(0_u64)),
    ("error", |t, json| json.uint(t.problem.parts().0)),
    ("error_string", |t, json| json.text(t.problem.parts().1)),
    ("eta", |t, json| json.int(t.eta_s())),
    ("eta_idle", |_, json| json.int(-1)),
    ("file_count", |t, json| json.uint(t.files)),
    ("group", |t, json| json.text(&t.group)),
    ("hash_string", |t, json| json.text(&t.info_hash.to_string())),
    ("have_unchecked", |_, json| json.uint(0_u64)),
    ("have_valid", |t, json| json.uint(t.have_bytes)),
    ("honors_session_limits", |t, json| {
        json.bool(t.limits.honors_session);
    }),
    ("id", |t, json| json.uint(t.id)),
    ("is_finished", |t, json| json.bool(t.is_finished)),
    ("is_private", |t, json| json.bool(t.is_private)),
    ("is_stalled", |t, json| json.bool(t.is_stalled)),
    // Of our own: what was taken over from another program.
    ("is_unproven", |t, json| json.bool(t.is_unproven)),
    ("labels", |t, json| json.texts(&t.labels)),
    ("left_until_done", |t, json| json.uint(t.left_bytes())),
    ("magnet_link", |t, json| json.text(&t.magnet())),
    ("manual_announce_time", |_, json| json.int(-1)),
    ("max_connected_peers", |t, json| {
        json.uint(t.limits.peers_max)
    }),
    ("metadata_percent_complete", |t, json| {
        json.float(t.metadata_share);
    }),
    // Ours alone: -1 when its files stay where they are.
    ("moved_share", |t, json| {
        json.float(t.moved_share.unwrap_or(-1.0))
    }),
    ("name", |t, json| json.text(&t.name)),
    ("peer_limit", |t, json| json.uint(t.limits.peers_max)),
    ("peers_connected", |t, json| json.uint(t.peers)),
    ("peers_from", peers_from),
    ("peers_getting_from_us", |t, json| json.uint(t.peers_taking)),
    ("peers_sending_to_us", |t, json| json.uint(t.peers_giving)),
    ("percent_complete", |t, json| {
        json.float(match t.total_bytes {
            0 => 0.0,
            total => (t.have_bytes as f64 / total as f64).min(1.0),
        });
    }),
    ("percent_done", |t, json| json.float(t.done_share())),
    ("piece_count", |t, json| json.uint(t.pieces)),
    ("piece_size", |t, json| json.uint(t.piece_length_bytes)),
    ("primary_mime_type", |_, json| {
        json.text("application/octet-stream");
    }),
    ("queue_position", |t, json| json.uint(t.queue_position)),
    ("rate_download", |t, json| json.uint(t.down_bytes_per_s)),
    ("rate_upload", |t, json| json.uint(t.up_bytes_per_s)),
    ("recheck_progress", |t, json| json.float(t.checked_share)),
    ("seconds_downloading", |t, json| {
        json.uint(t.downloading_s())
    }),
    ("seconds_seeding", |t, json| json.uint(t.seeding_s())),
    ("seed_idle_limit", |t, json| json.float(t.seed_idle.value())),
    ("seed_idle_mode", |t, json| json.uint(t.seed_idle.mode())),
    ("seed_ratio_limit", |t, json| {
        json.float(t.seed_ratio.value())
    }),
    ("seed_ratio_mode", |t, json| json.uint(t.seed_ratio.mode())),
    ("sequential_download", |t, json| json.bool(t.is_sequential)),
    ("sequential_download_from_piece", |_, json| json.uint(0_u64)),
    ("size_when_done", |t, json| json.uint(t.wanted_bytes)),
    ("source", |_, json| json.text("")),
    ("start_date", |t, json| {
        let runs = t.status != Status::Stopped;
        json.int(if runs { t.added_unix_s } else { 0 });
    }),
    ("status", |t, json| json.uint(t.status.code())),
    // Not of Transmission.
    ("super_seeding", |t, json| json.bool(t.is_super_seeding)),
    ("torrent_file", |_, json| json.text("")),
    ("total_size", |t, json| json.uint(t.total_bytes)),
    ("tracker_list", |t, json| json.text(&tracker_list(t))),
    ("trackers", trackers),
    ("upload_limit", |t, json| {
        json.uint(kilobytes(t.limits.up.bytes_per_s));
    }),
    ("upload_limited", |t, json| json.bool(t.limits.up.is_on)),
    ("upload_ratio", |t, json| json.float(t.ratio())),
    ("uploaded_ever", |t, json| json.uint(t.uploaded_bytes)),
    ("webseeds_sending_to_us", |t, json| json.uint(t.web_seeds)),
];

fn peers_from(torrent: &Torrent, json: &mut Json) {
    let of = |word: &str| {
        let mut counts = torrent.peers_by_source.iter();
        counts.find(|(one, _)| *one == word).map_or(0, |(_, n)| n)
    };
    json.open(b'{');
    for (key, count) in [
        ("fromCache", of("user")),
        ("fromDht", of("dht")),
        ("fromIncoming", of("incoming")),
        ("fromLpd", of("lsd")),
        ("fromLtep", 0),
        ("fromPex", of("pex")),
        ("fromTracker", of("tracker")),
    ] {
        json.key(key);
        json.uint(count);
    }
    json.close(b'}');
}

/// One URL a line, with an empty line between tiers.
fn tracker_list(torrent: &Torrent) -> String {
    let mut text = String::new();
    let mut last = None;
    for (tier, url) in torrent.trackers.iter() {
        if last.is_some_and(|last| last != tier) {
            text.push('\n');
        }
        last = Some(tier);
        text.push_str(url);
        text.push('\n');
    }
    text
}

fn trackers(torrent: &Torrent, json: &mut Json) {
    json.array(
        torrent.trackers.iter().enumerate(),
        |json, (id, (tier, url))| {
            json.open(b'{');
            json.key("announce");
            json.text(url);
            json.key("id");
            json.uint(id as u64);
            json.key("scrape");
            json.text("");
            json.key("sitename");
            json.text(site(url));
            json.key("tier");
            json.uint(*tier as u64);
            json.close(b'}');
        },
    );
}

/// The last name but one of the host: what a tracker is called.
pub fn site(url: &str) -> &str {
    let host = host(url);
    let is_ip = host.parse::<std::net::IpAddr>().is_ok();
    let mut labels = host.rsplit('.');
    match (labels.next(), labels.next()) {
        (_, Some(name)) if !is_ip => name,
        _ => host,
    }
}

/// The host of a tracker's URL, without port; empty when there is none.
pub fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = rest.get(..end).unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    match host.strip_prefix('[') {
        Some(inner) => inner.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_is_in_the_table_twice() {
        let mut names: Vec<&str> = ROWS.iter().map(|(name, _)| *name).collect();
        names.extend(detail::names());
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn hosts_of_trackers_are_found() {
        for (url, expected) in [
            (
                "https://tracker.example.org:443/announce?x",
                "tracker.example.org",
            ),
            ("udp://u:p@[2001:db8::1]:80/announce", "2001:db8::1"),
            ("http://198.51.100.1", "198.51.100.1"),
            ("nonsense", ""),
        ] {
            assert_eq!(host(url), expected);
        }
        assert_eq!(site("https://tracker.example.org/a"), "example");
        assert_eq!(site("http://198.51.100.1/a"), "198.51.100.1");
    }
}
