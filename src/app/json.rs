//! `--json`: a session's events as one object a line on stdout. Layer 7.

use serde_json::{Map, Value, json};

use crate::base::in_sentence;
use crate::session::{Outcome, SessionEvent, TorrentProgress};
use crate::swarm::SourceCounts;
use crate::swarm::dht::DhtStats;

/// The object of one event. Field names are an interface: they only grow.
pub fn event(event: &SessionEvent) -> Value {
    match event {
        SessionEvent::Listening { addr } => json!({"event": "listening", "addr": addr.to_string()}),
        SessionEvent::Metadata {
            info_hash,
            name,
            total_bytes,
            pieces,
            files,
        } => json!({
            "event": "metadata", "info_hash": info_hash.to_string(), "name": name, "total_bytes": total_bytes,
            "pieces": pieces, "files": files,
        }),
        SessionEvent::Progress(figures) => progress(figures),
        SessionEvent::Dht(figures) => dht(figures),
        SessionEvent::Lab(figures) => {
            let lab: Map<String, Value> = figures
                .iter()
                .map(|(name, us)| (name.clone(), (*us).into()))
                .collect();
            json!({"event": "lab", "lab": lab})
        }
        SessionEvent::Complete {
            info_hash, seconds, ..
        } => {
            json!({"event": "complete", "info_hash": info_hash.to_string(), "seconds": round_ms(*seconds)})
        }
        SessionEvent::Mapped {
            protocol,
            external,
            lease_secs,
        } => json!({
            "event": "mapped", "protocol": protocol.as_str(), "external": external.to_string(), "lease_secs": lease_secs,
        }),
        SessionEvent::Banned { info_hash, ip } => {
            json!({"event": "banned", "info_hash": info_hash.to_string(), "ip": ip.to_string()})
        }
        SessionEvent::WebSeedBanned { info_hash, url } => {
            json!({"event": "banned", "info_hash": info_hash.to_string(), "web_seed": url})
        }
        SessionEvent::Warning {
            info_hash,
            message,
            hint,
        } => json!({
            "event": "warning", "info_hash": info_hash.map(|hash| hash.to_string()), "message": in_sentence(message),
            "hint": hint,
        }),
        SessionEvent::Error {
            info_hash,
            message,
            hint,
            is_final,
        } => json!({
            "event": "error", "info_hash": info_hash.map(|hash| hash.to_string()),
            "message": in_sentence(message), "hint": hint, "final": is_final,
        }),
        SessionEvent::Ended {
            info_hash,
            outcome,
            have,
        } => json!({
            "event": "ended", "info_hash": info_hash.to_string(), "outcome": outcome_word(*outcome),
            "pieces_have": have.count(), "pieces": have.len(),
        }),
    }
}

/// The `error` event of a failure that ends the command.
pub fn failure(failure: &super::exit::Failure) -> Value {
    json!({"event": "error", "info_hash": null, "message": failure.message(), "hint": failure.hint(), "final": true})
}

/// Prints one object on a line of its own at once. False when nobody reads any more.
pub fn print(value: &Value) -> bool {
    super::output::stdout_line(&super::escape::json(&value.to_string()))
}

fn progress(p: &TorrentProgress) -> Value {
    json!({
        "event": "progress",
        "info_hash": p.info_hash.to_string(),
        "name": p.name,
        "state": p.state.as_str(),
        "have_bytes": p.have_bytes,
        "total_bytes": p.total_bytes,
        "checked_bytes": p.checked_bytes,
        "downloaded_bytes": p.downloaded_bytes,
        "downloaded_web_bytes": p.downloaded_web_bytes,
        "uploaded_bytes": p.uploaded_bytes,
        "wasted_bytes": p.wasted_bytes,
        "total_downloaded_bytes": p.total_downloaded_bytes,
        "total_uploaded_bytes": p.total_uploaded_bytes,
        "down_bytes_per_s": p.down_bytes_per_s,
        "up_bytes_per_s": p.up_bytes_per_s,
        "peers": p.peers,
        "peers_encrypted": p.peers_encrypted,
        "peers_obfuscated": p.peers_obfuscated,
        "peers_utp": p.peers_utp,
        "peers_known": p.peers_known,
        "peers_filtered": p.peers_filtered,
        "peers_by_source": by_source(&p.peers_by_source),
        "connections_by_source": by_source(&p.connections_by_source),
        "peers_by_transport": by_transport(p.peers, p.peers_utp),
        "connections_by_transport": by_transport(p.connections_by_source.total(), p.connections_utp),
        "web_seeds": p.web_seeds,
        "super_seeding": p.super_seeding,
        "pieces_have": p.pieces_have,
        "pieces": p.pieces,
        "pieces_checked": p.pieces_checked,
        "files_prepared": p.files_prepared,
        "files_to_prepare": p.files_to_prepare,
        "metadata_bytes": p.metadata_bytes,
        "metadata_total_bytes": p.metadata_total_bytes,
    })
}

/// `{"tracker": 3, "dht": 0, …}`
fn by_source(counts: &SourceCounts) -> Value {
    let counts = counts.iter();
    let counts: Map<String, Value> = counts
        .map(|(word, count)| (word.to_owned(), count.into()))
        .collect();
    counts.into()
}

/// `{"tcp": 3, "utp": 1}`
fn by_transport(all: u32, utp: u32) -> Value {
    json!({ "tcp": all.saturating_sub(utp), "utp": utp })
}

fn dht(figures: &DhtStats) -> Value {
    json!({
        "event": "dht",
        "nodes": figures.nodes_v4,
        "nodes6": figures.nodes_v6,
        "searches": figures.searches,
        "searched": figures.searched,
        "peers_found": figures.peers_found,
        "queries_sent": figures.queries_sent,
        "answers_heard": figures.answers_heard,
        "queries_heard": figures.queries_heard,
        "answers_sent": figures.answers_sent,
        "queries_dropped": figures.queries_dropped,
        "stored_torrents": figures.stored_torrents,
        "stored_peers": figures.stored_peers,
        "read_only": figures.is_read_only,
    })
}

const fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Stopped => "stopped",
        Outcome::Incomplete => "incomplete",
        Outcome::Failed => "failed",
    }
}

fn round_ms(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::InfoHash;
    use crate::session::TorrentState;

    fn figures() -> TorrentProgress {
        TorrentProgress {
            info_hash: InfoHash::new([7; 20]),
            name: "a\u{1b}\nb".into(),
            state: TorrentState::Downloading,
            have_bytes: 1,
            total_bytes: 2,
            checked_bytes: 0,
            downloaded_bytes: 3,
            downloaded_web_bytes: 0,
            uploaded_bytes: 4,
            wasted_bytes: 5,
            total_downloaded_bytes: 6,
            total_uploaded_bytes: 7,
            down_bytes_per_s: 8,
            up_bytes_per_s: 9,
            peers: 10,
            peers_by_source: [crate::swarm::Source::Pex; 3].into_iter().collect(),
            connections_by_source: [crate::swarm::Source::Pex; 5].into_iter().collect(),
            connections_utp: 2,
            peers_encrypted: 3,
            peers_obfuscated: 2,
            peers_utp: 1,
            peers_known: 11,
            peers_filtered: 0,
            web_seeds: 0,
            super_seeding: false,
            pieces_have: 12,
            pieces: 13,
            pieces_checked: 0,
            pieces_unproven: 0,
            files_prepared: 0,
            files_to_prepare: 0,
            metadata_bytes: 0,
            metadata_total_bytes: 0,
        }
    }

    #[test]
    fn progress_has_every_promised_field() {
        let value = event(&SessionEvent::Progress(figures()));
        for field in [
            "event",
            "info_hash",
            "state",
            "have_bytes",
            "total_bytes",
            "downloaded_bytes",
            "uploaded_bytes",
            "wasted_bytes",
            "down_bytes_per_s",
            "up_bytes_per_s",
            "peers",
            "web_seeds",
            "super_seeding",
            "downloaded_web_bytes",
            "pieces_have",
            "pieces",
            "total_downloaded_bytes",
            "total_uploaded_bytes",
        ] {
            assert!(value.get(field).is_some(), "{field}");
        }
        assert_eq!(value["state"], "downloading");
        assert_eq!(value["peers_by_source"]["pex"], 3);
        assert_eq!(value["peers_by_source"]["tracker"], 0);
        assert_eq!(value["peers_by_transport"], json!({"tcp": 9, "utp": 1}));
        let met = json!({"tcp": 3, "utp": 2});
        assert_eq!(value["connections_by_transport"], met);
    }

    #[test]
    fn an_event_is_one_line_whatever_the_name_holds() {
        let line = event(&SessionEvent::Progress(figures())).to_string();
        assert!(!line.contains(['\n', '\u{1b}']));
    }

    #[test]
    fn listening_complete_and_error_have_their_fields() {
        let listening = event(&SessionEvent::Listening {
            addr: "0.0.0.0:6881".parse().unwrap(),
        });
        assert_eq!(
            listening,
            json!({"event": "listening", "addr": "0.0.0.0:6881"})
        );
        let complete = event(&SessionEvent::Complete {
            info_hash: InfoHash::new([0; 20]),
            seconds: 1.23456,
            is_news: true,
        });
        assert_eq!(complete["seconds"], 1.235);
        let error = event(&SessionEvent::Error {
            info_hash: None,
            message: "m".into(),
            hint: "h".into(),
            is_final: false,
        });
        assert_eq!(
            (&error["message"], &error["hint"]),
            (&json!("m"), &json!("h"))
        );
    }
}
