//! Torrents as tables for people. Layer 7.

use serde_json::Value;

use crate::app::escape::{cut, terminal};
use crate::app::size;

/// Names are cut here: two torrents still differ, and the line fits.
const NAME_CHARS_MAX: usize = 48;

fn number(torrent: &Value, key: &str) -> u64 {
    torrent[key].as_u64().unwrap_or(0)
}

fn text(torrent: &Value, key: &str) -> String {
    terminal(torrent[key].as_str().unwrap_or_default())
}

const fn word(status: u64) -> &'static str {
    match status {
        0 => "stopped",
        1 => "waits",
        2 => "checking",
        3 => "waits",
        4 => "downloading",
        5 => "waits",
        _ => "seeding",
    }
}

fn state(torrent: &Value) -> String {
    let moved = torrent["movedShare"].as_f64();
    match moved.filter(|share| *share >= 0.0) {
        Some(share) => format!("moving {:.0}%", share * 100.0),
        None => word(number(torrent, "status")).to_owned(),
    }
}

fn rate(bytes_per_s: u64) -> String {
    match bytes_per_s {
        0 => "-".to_owned(),
        rate => size::rate(rate),
    }
}

/// One line a torrent below a line of names.
pub fn list(torrents: &[Value]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:>5} {:>7} {:>10} {:>12} {:>12} {:>7} {:>5} {:<11} NAME",
        "ID", "DONE", "SIZE", "DOWN", "UP", "RATIO", "PEERS", "STATE"
    )];
    lines.extend(torrents.iter().map(line));
    lines
}

fn line(torrent: &Value) -> String {
    let share = torrent["percentDone"].as_f64().unwrap_or(0.0) * 100.0;
    let ratio = torrent["uploadRatio"].as_f64().unwrap_or(-1.0);
    let ratio = match ratio < 0.0 {
        true => "-".to_owned(),
        false => format!("{ratio:.2}"),
    };
    let state = match text(torrent, "errorString").is_empty() {
        true => state(torrent),
        false => "trouble".to_owned(),
    };
    let name = text(torrent, "name");
    format!(
        "{:>5} {share:>6.1}% {:>10} {:>12} {:>12} {ratio:>7} {:>5} {state:<11} {}",
        number(torrent, "id"),
        size::bytes(number(torrent, "sizeWhenDone")),
        rate(number(torrent, "rateDownload")),
        rate(number(torrent, "rateUpload")),
        number(torrent, "peersConnected"),
        cut(&name, NAME_CHARS_MAX),
    )
}

/// One line a policy below a line of names.
pub fn policies(policies: &[Value]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:>12} {:>12} {:>12} {:>12} {:>7} {:>8} {:>7} {:>7} POLICY",
        "UP", "OF", "DOWN", "OF", "SHARE", "TORRENTS", "WAITING", "REACHED"
    )];
    lines.extend(policies.iter().map(policy));
    lines
}

fn policy(policy: &Value) -> String {
    let share = match policy["share"].as_u64() {
        Some(share) => format!("{}%", share as f64 / 100.0),
        None => "-".to_owned(),
    };
    let of = ["device", "folder", "tracker", "label", "torrent", "when"]
        .into_iter()
        .filter(|key| policy[*key].is_string())
        .map(|key| format!("{key} {}", text(policy, key)));
    let of: Vec<String> = of.collect();
    let mut of = match of.is_empty() {
        true => "all".to_owned(),
        false => of.join(", "),
    };
    if policy["inForce"] == false {
        of.push_str(", not now");
    }
    format!(
        "{:>12} {:>12} {:>12} {:>12} {share:>7} {:>8} {:>7} {:>7} {} ({of})",
        rate(number(policy, "rateUpload")),
        rate(number(policy, "capUp")),
        rate(number(policy, "rateDownload")),
        rate(number(policy, "capDown")),
        number(policy, "torrents"),
        number(policy, "waiting"),
        number(policy, "reached"),
        cut(&text(policy, "name"), NAME_CHARS_MAX),
    )
}

/// How many there are, and by which transport.
fn peers(torrent: &Value) -> String {
    let all = number(torrent, "peersConnected");
    let listed = torrent["peers"].as_array().map_or(&[][..], Vec::as_slice);
    let utp = listed.iter().filter(|peer| peer["isUTP"] == true).count();
    match listed.len() {
        0 => all.to_string(),
        // The number is a moment older than the list.
        listed => format!(
            "{} ({} TCP, {utp} uTP)",
            all.max(listed as u64),
            listed - utp
        ),
    }
}

/// One that is connected.
fn peer(peer: &Value) -> String {
    let addr = match text(peer, "address") {
        ip if ip.contains(':') => format!("[{ip}]:{}", number(peer, "port")),
        ip => format!("{ip}:{}", number(peer, "port")),
    };
    let transport = match peer["isUTP"] == true {
        true => "uTP",
        false => "TCP",
    };
    let share = peer["progress"].as_f64().unwrap_or(0.0) * 100.0;
    format!(
        "peer        {addr} {transport} {share:.0}% down {} up {} {}",
        rate(number(peer, "rateToClient")),
        rate(number(peer, "rateToPeer")),
        cut(&text(peer, "clientName"), NAME_CHARS_MAX),
    )
}

/// All that is known of one.
pub fn show(torrent: &Value) -> Vec<String> {
    let words = |key: &str| {
        let words = torrent[key].as_array().map_or(&[][..], Vec::as_slice);
        let words = words.iter().filter_map(Value::as_str).map(terminal);
        words.collect::<Vec<String>>().join(", ")
    };
    let share = torrent["percentDone"].as_f64().unwrap_or(0.0) * 100.0;
    let bytes = |key: &str| size::bytes(number(torrent, key));
    let pieces = format!(
        "{} of {}",
        number(torrent, "pieceCount"),
        bytes("pieceSize")
    );
    let proof = match torrent["isUnproven"].as_bool() {
        Some(true) => "taken over from another program and not hashed here: gyre ctl verify",
        _ => "",
    };
    let mut lines: Vec<String> = [
        ("name", text(torrent, "name")),
        ("info_hash", text(torrent, "hashString")),
        ("state", state(torrent)),
        ("trouble", text(torrent, "errorString")),
        ("folder", text(torrent, "downloadDir")),
        ("done", format!("{share:.1}% of {}", bytes("sizeWhenDone"))),
        ("pieces", pieces),
        ("proof", proof.to_owned()),
        ("uploaded", bytes("uploadedEver")),
        ("downloaded", bytes("downloadedEver")),
        ("up", rate(number(torrent, "rateUpload"))),
        ("down", rate(number(torrent, "rateDownload"))),
        ("peers", peers(torrent)),
        ("labels", words("labels")),
        ("policies", words("policies")),
        ("comment", text(torrent, "comment")),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| format!("{name:<11} {value}"))
    .collect();
    for tracker in torrent["trackerStats"].as_array().into_iter().flatten() {
        let said = text(tracker, "lastAnnounceResult");
        lines.push(format!("tracker     {} {said}", text(tracker, "announce")));
    }
    let connected = torrent["peers"].as_array().into_iter().flatten();
    lines.extend(connected.map(peer));
    let stats = torrent["fileStats"].as_array().cloned().unwrap_or_default();
    let files = torrent["files"].as_array().into_iter().flatten();
    for (index, file) in files.enumerate() {
        let is_wanted = stats.get(index).is_none_or(|stat| stat["wanted"] != false);
        let (have, length) = (number(file, "bytesCompleted"), number(file, "length"));
        let mark = match (is_wanted, have >= length) {
            (false, _) => "-",
            (true, true) => "x",
            (true, false) => " ",
        };
        let size = size::bytes(length);
        lines.push(format!("[{mark}] {size:>10} {}", text(file, "name")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_a_line_with_its_rates_beside_its_caps() {
        let policy = serde_json::json!({
            "name": "tv\u{1b}", "tracker": null, "label": "b", "torrent": null, "share": 5_000, "capUp": 10_000_000,
            "capDown": null, "when": "mon 08:00-09:00", "inForce": false, "rateUpload": 5_000_000, "rateDownload": 0, "torrents": 3, "waiting": 2, "reached": 1,
        });
        let lines = policies(std::slice::from_ref(&policy));
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert!(!lines[1].contains('\u{1b}'));
        assert!(
            words.contains(&"50%")
                && lines[1].ends_with("(label b, when mon 08:00-09:00, not now)"),
            "{lines:?}"
        );
    }

    #[test]
    fn names_do_not_reach_the_terminal_as_they_are() {
        let torrent = serde_json::json!({
            "id": 3, "name": "a\u{1b}[31mb", "percentDone": 0.5, "status": 4, "uploadRatio": 1.25,
            "errorString": "", "peersConnected": 2, "peers": [
                { "address": "::1", "port": 7, "isUTP": true, "clientName": "c\u{1b}[2J", "progress": 1.0, "rateToPeer": 5_000 },
                { "address": "192.0.2.1", "port": 8, "isUTP": false, "clientName": "d" },
            ], "policies": ["tv\u{1b}", "all"], "files": [{ "name": "\u{1b}]0;x\u{7}", "length": 1, "bytesCompleted": 0 }]
        });
        let lines = [list(std::slice::from_ref(&torrent)), show(&torrent)].concat();
        assert!(
            lines.iter().all(|line| !line.contains(['\u{1b}', '\u{7}'])),
            "{lines:?}"
        );
        let has = |line: &str| lines.iter().any(|have| have.starts_with(line));
        assert!(has("policies    tv"), "{lines:?}");
        assert!(has("peers       2 (1 TCP, 1 uTP)"), "{lines:?}");
        assert!(
            has("peer        [::1]:7 uTP 100% down - up 4.88 KiB/s c"),
            "{lines:?}"
        );
        assert!(
            has("peer        192.0.2.1:8 TCP 0% down - up - d"),
            "{lines:?}"
        );
        assert!(
            lines[1].contains("50.0%") && lines[1].contains("downloading"),
            "{lines:?}"
        );
    }
}
