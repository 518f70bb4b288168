//! Commands as JSON lines on stdin, answers on stdout: enough for tests to control a daemon by. Layer 7.

use std::io::BufRead;
use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::app::json;
use crate::base::InfoHash;
use crate::daemon::{AddSource, AddTorrent, Control, ControlError, Listed};

/// Lines that wait to be done.
const LINES_MAX: usize = 64;

/// Does what the lines say until stdin ends.
pub async fn serve(control: Control) {
    let (sender, mut lines) = mpsc::channel(LINES_MAX);
    // Reading stdin cannot be ended: nobody waits for this thread.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    control.known().await;
    while let Some(line) = lines.recv().await {
        let asked: Value = serde_json::from_str(&line).unwrap_or_default();
        let mut answer = match answer(&control, &asked).await {
            Ok(answer) => answer,
            Err(error) => json!({ "error": error.to_string() }),
        };
        answer["event"] = json!("answer");
        answer["id"] = asked["id"].clone();
        json::print(&answer);
    }
}

async fn answer(control: &Control, asked: &Value) -> Result<Value, ControlError> {
    let text = |key: &str| asked[key].as_str().unwrap_or_default().to_owned();
    let info_hash = || {
        let parsed = text("info_hash").parse::<InfoHash>();
        parsed.map_err(|_| ControlError::BadValue("no info_hash".to_owned()))
    };
    match asked["do"].as_str().unwrap_or_default() {
        "add" => {
            let source = match asked["torrent"].as_str() {
                Some(path) => AddSource::Torrent(std::fs::read(path).unwrap_or_default()),
                None => AddSource::Magnet(text("magnet")),
            };
            let info_hash = control.add(AddTorrent {
                source,
                folder: asked["folder"].as_str().map(PathBuf::from),
                starts: asked["starts"].as_bool().unwrap_or(true),
                fetches: asked["fetches"].as_bool().unwrap_or(true),
                labels: serde_json::from_value(asked["labels"].clone()).unwrap_or_default(),
                selected_files: None,
            });
            Ok(json!({ "info_hash": info_hash.await?.to_string() }))
        }
        "remove" => {
            let with_data = asked["with_data"].as_bool().unwrap_or(false);
            let removed = control.remove(info_hash()?, with_data).await?;
            Ok(json!({ "files": removed.files }))
        }
        "start" => control.start(info_hash()?).await.map(|()| json!({})),
        "stop" => control.stop(info_hash()?).await.map(|()| json!({})),
        "verify" => control.verify(info_hash()?).await.map(|()| json!({})),
        "relocate" => {
            let moves = asked["moves"].as_bool().unwrap_or(true);
            let to = PathBuf::from(text("to"));
            control.relocate(info_hash()?, to, moves).await?;
            Ok(json!({}))
        }
        "rename" => {
            control
                .rename(info_hash()?, &text("path"), &text("name"))
                .await?;
            Ok(json!({}))
        }
        "list" => {
            let torrents: Vec<Value> = control
                .torrents()
                .iter()
                .map(|one| listed(control, one))
                .collect();
            Ok(json!({ "torrents": torrents }))
        }
        "count" => {
            let session = control.session();
            let (scrubbed_bytes, rotten_pieces) = control.scrubbed().counts();
            Ok(json!({
                "torrents": session.torrents, "asleep": session.asleep,
                "scrubbed_bytes": scrubbed_bytes, "rotten_pieces": rotten_pieces,
            }))
        }
        "shut-down" => {
            control.shut_down();
            Ok(json!({}))
        }
        _ => Err(ControlError::BadValue("no such command".to_owned())),
    }
}

fn listed(control: &Control, listed: &Listed) -> Value {
    let (row, shown) = (&listed.row, &listed.shown);
    json!({
        "folder": row.folder.to_string_lossy(),
        "moved_share": control.moved_share(&row.info_hash),
        "move_trouble": control.move_trouble(&row.info_hash),
        "trouble": shown.as_ref().and_then(|shown| Some(&shown.trouble.as_ref()?.message)),
        "info_hash": row.info_hash.to_string(),
        "number": row.number,
        "name": row.name,
        "labels": row.labels,
        "is_wanted": row.is_wanted,
        "activity": shown.as_ref().map(|shown| format!("{:?}", shown.activity)),
        "state": shown.as_ref().map(|shown| shown.progress.state.as_str()),
        "pieces_have": shown.as_ref().map(|shown| shown.progress.pieces_have),
        "pieces_checked": shown.as_ref().map(|shown| shown.progress.pieces_checked),
        "pieces_unproven": shown.as_ref().map(|shown| shown.progress.pieces_unproven),
        "uploaded_bytes": row.uploaded_bytes,
        "is_unproven": row.is_unproven,
    })
}
