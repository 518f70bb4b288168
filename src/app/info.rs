//! `gyre info` and `gyre download --list`: what is in a .torrent or magnet link. Layer 7.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::cli::InfoArgs;
use super::escape::{PATH_CHARS_MAX, cut, elide, terminal, terminal_path};
use super::exit::{Exit, Failure};
use super::fetch::{self, Route};
use super::metadata::{self, Asking};
use super::source::{self, Given};
use super::{json, magnet, output, run, scrape, size};
use crate::session::Encryption;
use crate::storage::safe_path::safe_paths;
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::{FileEntry, Kind, Metainfo};

/// Characters of a comment or name that are shown; the rest is an ellipsis. `--json` has all.
const SHOWN_CHARS_MAX: usize = 400;

/// No tracker is asked twice in less.
const ANNOUNCE_INTERVAL_MIN: Duration = Duration::from_secs(60);

/// Cut before the escapes, which would cost as much as there is, and behind them, which are longer.
fn text(text: &str) -> String {
    let safe = terminal(&cut(text, SHOWN_CHARS_MAX));
    cut(&safe, SHOWN_CHARS_MAX).into_owned()
}

/// Runs the verb.
///
/// # Errors
/// The source cannot be loaded.
pub fn run(args: &InfoArgs) -> Result<Exit, Failure> {
    let route = Route {
        bind: args.bind.clone(),
        ipv6: !args.no_ipv6,
        proxy: args.proxy.clone(),
        tracker_ca: fetch::tracker_ca(args.tracker_ca.as_deref())?,
    };
    match source::load(&args.source, &route)? {
        Given::Torrent(metainfo) if args.scrape => {
            let trackers = metainfo.announce_tiers.concat();
            return scrape::show(metainfo.info_hash, &trackers, &route, args.json);
        }
        Given::Link(link) if args.scrape => {
            return scrape::show(link.info_hash, &link.trackers, &route, args.json);
        }
        Given::Torrent(_) if args.save_torrent.is_some() => {
            return Err(Failure::usage(
                "--save-torrent is for a magnet link or info_hash",
                "leave it out",
            ));
        }
        Given::Torrent(metainfo) => show(&metainfo, args.json),
        Given::Link(link) => return show_link(args, &link, route),
    }
    Ok(Exit::Done)
}

/// Shows the torrent behind a link, or the link where nobody can be asked.
fn show_link(args: &InfoArgs, link: &Magnet, route: Route) -> Result<Exit, Failure> {
    let asking = Asking {
        peers: args.peer.clone(),
        trackers: !args.no_trackers,
        exchanges_peers: !args.no_pex,
        searches_locally: !args.no_lsd,
        dht: run::dht(args.no_dht, &args.dht_bootstrap),
        encryption: Encryption::Prefer,
        give_up: Some(args.give_up),
        announce_interval_min: ANNOUNCE_INTERVAL_MIN,
        route,
        ip_filter: None,
    };
    if let Some(path) = &args.save_torrent {
        metadata::check_place(path, link.info_hash)?;
    }
    if args.offline || !asking.knows_anybody(link) {
        if args.save_torrent.is_some() {
            return Err(metadata::leads_nowhere(link));
        }
        show_magnet(link, args.json);
        return Ok(Exit::Done);
    }
    let fetched = metadata::fetch(std::slice::from_ref(link), &asking);
    match fetched {
        Ok(metainfos) => {
            for metainfo in &metainfos {
                if let Some(path) = &args.save_torrent {
                    metadata::save_torrent(path, metainfo)?;
                }
                show(metainfo, args.json);
            }
            Ok(Exit::Done)
        }
        Err(failure) => {
            // What is known is shown all the same.
            if failure.exit() == Exit::Failed && !args.json {
                show_magnet(link, false);
            }
            Err(failure)
        }
    }
}

/// Prints everything about a torrent.
fn show(metainfo: &Metainfo, as_json: bool) {
    if as_json {
        json::print(&torrent_json(metainfo));
        return;
    }
    for line in torrent_lines(metainfo) {
        output::stdout_line(&line);
    }
    list(metainfo, |_| true);
    for warning in &metainfo.warnings {
        output::stderr_line(&format!("warning: {}", terminal(warning)));
    }
}

/// Prints the wanted files with their indices, pad files never. A file whose name is not safe on a disk has the path
/// that it gets there behind an arrow.
pub fn list(metainfo: &Metainfo, is_wanted: impl Fn(usize) -> bool) {
    let disk_paths = disk_paths(metainfo);
    let files = metainfo.info.files.iter().enumerate();
    let files = files.filter(|(index, file)| is_wanted(*index) && !file.attributes.is_pad);
    for (index, file) in files {
        let raw = shown_path(metainfo, file);
        let path = terminal(&raw);
        let mut path = elide(&path, PATH_CHARS_MAX).into_owned();
        if let Some(disk_path) = disk_paths.get(index)
            && *disk_path != Path::new(&raw)
        {
            path += " → ";
            path += &terminal_path(disk_path);
        }
        let length = size::bytes(file.length_bytes);
        if !output::stdout_line(&format!("{index:>6}  {length:>11}  {path}")) {
            return; // nobody reads any more
        }
    }
}

/// Where the files lie below the folder that they are fetched into; empty when no file system takes them.
fn disk_paths(metainfo: &Metainfo) -> Vec<PathBuf> {
    safe_paths(&metainfo.info).unwrap_or_default()
}

/// The file's path inside the torrent for people, not escaped: the torrent's name first.
pub fn shown_path(metainfo: &Metainfo, file: &FileEntry) -> String {
    let mut path = metainfo.info.name.clone();
    for element in &file.path {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(element));
    }
    path
}

fn torrent_lines(metainfo: &Metainfo) -> Vec<String> {
    let info = &metainfo.info;
    let geometry = &info.geometry;
    let mut lines = vec![
        format!("name         {}", text(&info.name)),
        format!(
            "size         {} ({} bytes)",
            size::bytes(geometry.total_bytes()),
            geometry.total_bytes()
        ),
        format!(
            "pieces       {} × {}",
            geometry.piece_count(),
            size::round_bytes(geometry.piece_length_bytes().into())
        ),
    ];
    let hashes = &metainfo.info_hashes;
    let v1 = hashes.v1().map(|v1| format!("info_hash    {v1}"));
    let v2 = hashes.v2().map(|v2| format!("info_hash v2 {v2}"));
    lines.splice(1..1, v1.into_iter().chain(v2));
    if info.is_private {
        lines.push("private      yes".into());
    }
    match info.kind {
        Kind::V1 => {}
        Kind::V2 => lines.push("kind         v2".into()),
        Kind::Hybrid => lines.push("kind         hybrid of v1 and v2".into()),
    }
    let optional = [
        ("source", &info.source),
        ("comment", &metainfo.comment),
        ("created by", &metainfo.created_by),
    ];
    for (label, value) in optional {
        if let Some(value) = value {
            lines.push(format!("{label:<12} {}", text(value)));
        }
    }
    if let Some(seconds) = metainfo.creation_date {
        lines.push(format!("created on   {}", utc(seconds)));
    }
    for (tier, urls) in metainfo.announce_tiers.iter().enumerate() {
        for url in urls {
            lines.push(format!("tracker      {} (tier {tier})", text(url)));
        }
    }
    for url in &metainfo.web_seeds {
        lines.push(format!("web seed     {}", text(url)));
    }
    for (host, port) in &metainfo.nodes {
        lines.push(format!("DHT node     {}:{port}", text(host)));
    }
    let files = info.files.iter().filter(|file| !file.attributes.is_pad);
    lines.push(format!("files        {}", files.count()));
    lines
}

fn torrent_json(metainfo: &Metainfo) -> Value {
    let info = &metainfo.info;
    json!({
        "kind": match info.kind { Kind::V1 => "v1", Kind::V2 => "v2", Kind::Hybrid => "hybrid" },
        "name": info.name,
        "info_hash": metainfo.info_hash.to_string(),
        "info_hash_v2": metainfo.info_hashes.v2().map(|v2| v2.to_string()),
        "magnet": magnet::link(metainfo),
        "total_bytes": info.geometry.total_bytes(),
        "piece_length_bytes": info.geometry.piece_length_bytes(),
        "pieces": info.geometry.piece_count(),
        "multi_file": info.is_multi_file,
        "files": files_json(metainfo, |_| true),
        "trackers": metainfo.announce_tiers,
        "web_seeds": metainfo.web_seeds,
        "nodes": metainfo.nodes.iter().map(|(host, port)| json!({"host": host, "port": port})).collect::<Vec<_>>(),
        "private": info.is_private,
        "source": info.source,
        "comment": metainfo.comment,
        "created_by": metainfo.created_by,
        "creation_date": metainfo.creation_date,
        "warnings": metainfo.warnings,
    })
}

/// One object a wanted file, pad files included so that offsets add up.
pub fn files_json(metainfo: &Metainfo, is_wanted: impl Fn(usize) -> bool) -> Value {
    let mut offset: u64 = 0;
    let mut files = Vec::with_capacity(metainfo.info.files.len());
    let disk_paths = disk_paths(metainfo);
    for (index, file) in metainfo.info.files.iter().enumerate() {
        offset = metainfo.info.geometry.file_start(offset);
        let mut object = json!({
            "index": index,
            "path": shown_path(metainfo, file),
            "disk_path": disk_paths.get(index),
            "length_bytes": file.length_bytes,
            "offset_bytes": offset,
        });
        offset = offset.saturating_add(file.length_bytes);
        if !is_wanted(index) {
            continue;
        }
        let attributes = &file.attributes;
        let flags = [
            ("pad", attributes.is_pad),
            ("executable", attributes.is_executable),
            ("hidden", attributes.is_hidden),
            ("symlink", attributes.is_symlink),
        ];
        for (flag, _) in flags.into_iter().filter(|(_, is_set)| *is_set) {
            object[flag] = Value::Bool(true);
        }
        if attributes.is_symlink {
            let target = file.symlink_target.iter();
            let target: Vec<_> = target.map(|part| String::from_utf8_lossy(part)).collect();
            object["symlink_target"] = Value::String(target.join("/"));
        }
        files.push(object);
    }
    Value::Array(files)
}

fn show_magnet(link: &Magnet, as_json: bool) {
    if as_json {
        json::print(&magnet_json(link));
        return;
    }
    let mut lines = vec![format!("info_hash    {}", link.info_hash)];
    lines.extend(
        link.name
            .iter()
            .map(|name| format!("name         {}", text(name))),
    );
    let lists = [
        ("tracker", &link.trackers),
        ("web seed", &link.web_seeds),
        (".torrent", &link.torrents),
        ("peer", &link.peers),
    ];
    for (label, values) in lists {
        lines.extend(
            values
                .iter()
                .map(|value| format!("{label:<12} {}", text(value))),
        );
    }
    for range in &link.selected_files {
        lines.push(format!("selected     {}-{}", range.start(), range.end()));
    }
    for line in lines {
        output::stdout_line(&line);
    }
}

fn magnet_json(link: &Magnet) -> Value {
    let selected = link.selected_files.iter();
    json!({
        "kind": "magnet",
        "info_hash": link.info_hash.to_string(),
        "magnet": link.to_string(),
        "name": link.name,
        "trackers": link.trackers,
        "web_seeds": link.web_seeds,
        "torrent_urls": link.torrents,
        "peers": link.peers,
        "selected_files": selected.map(|range| json!([range.start(), range.end()])).collect::<Vec<_>>(),
    })
}

/// `2024-02-29 12:00:00 UTC` from seconds since 1970 (Gregorian calendar, Howard Hinnant's day count).
fn utc(seconds: i64) -> String {
    const RANGE: std::ops::Range<i64> = -62_135_596_800..253_402_300_800; // years 1 to 9999
    if !RANGE.contains(&seconds) {
        return format!("{seconds} s since 1970");
    }
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_827_696), "2000-02-29 12:34:56 UTC");
        assert_eq!(utc(-1), "1969-12-31 23:59:59 UTC");
        assert_eq!(utc(4_102_444_800), "2100-01-01 00:00:00 UTC");
        assert_eq!(utc(i64::MAX), format!("{} s since 1970", i64::MAX));
    }
}
