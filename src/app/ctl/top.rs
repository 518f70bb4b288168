//! `gyre ctl top`: the busy torrents, redrawn once a second. Layer 7.

use std::time::{Duration, Instant};

use console::Term;
use serde_json::{Value, json};

use super::{Ctl, LIST_FIELDS, table};
use crate::app::exit::{Exit, Failure};
use crate::app::{json as lines, output, signals, size};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How soon a signal is noticed.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);
/// Lines above the torrents.
const HEAD_LINES: usize = 3;
/// The other screen, without a cursor; and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

/// Puts the terminal back, however it ends.
struct Screen;

impl Drop for Screen {
    fn drop(&mut self) {
        output::stdout_bytes(LEAVE);
    }
}

/// Redraws until a signal, or until the daemon is gone. Without a terminal: one look.
pub fn run(ctl: &Ctl) -> Result<Exit, Failure> {
    let term = Term::stdout();
    if ctl.as_json || !term.is_term() {
        let (stats, torrents) = look(ctl)?;
        if ctl.as_json {
            lines::print(&json!({ "session": stats, "torrents": torrents }));
        } else {
            let screen = draw(&stats, &torrents, usize::MAX, usize::MAX);
            screen.iter().for_each(|line| {
                output::stdout_line(line);
            });
        }
        return Ok(Exit::Done);
    }
    // Asked once before the screen changes: a failure is to be read.
    let mut seen = look(ctl)?;
    // The loop below looks for it: the terminal is put back first.
    signals::on_first(|| {});
    output::stdout_bytes(ENTER);
    let _screen = Screen;
    loop {
        let (rows, columns) = term.size();
        let screen = draw(&seen.0, &seen.1, rows.into(), columns.into());
        let text = format!("\x1b[H{}\x1b[K\x1b[J", screen.join("\x1b[K\r\n"));
        if !output::stdout_bytes(text.as_bytes()) {
            return Ok(Exit::Done);
        }
        let next = Instant::now() + INTERVAL;
        while Instant::now() < next {
            if let Some(exit) = signals::received() {
                return Ok(exit);
            }
            std::thread::sleep(SIGNAL_INTERVAL);
        }
        seen = look(ctl)?;
    }
}

fn look(ctl: &Ctl) -> Result<(Value, Vec<Value>), Failure> {
    let stats = ctl.call("session-stats", &json!({}))?;
    let mut torrents = ctl.torrents(&LIST_FIELDS, None)?;
    let speed = |torrent: &Value| {
        let of = |key: &str| torrent[key].as_u64().unwrap_or(0);
        of("rateUpload").saturating_add(of("rateDownload"))
    };
    torrents.sort_by_key(|torrent| std::cmp::Reverse(speed(torrent)));
    Ok((stats, torrents))
}

fn draw(stats: &Value, torrents: &[Value], rows: usize, columns: usize) -> Vec<String> {
    let of = |key: &str| stats[key].as_u64().unwrap_or(0);
    let mut lines = vec![
        format!(
            "down {}  up {}  torrents {} ({} active, {} stopped)",
            size::rate(of("downloadSpeed")),
            size::rate(of("uploadSpeed")),
            of("torrentCount"),
            of("activeTorrentCount"),
            of("pausedTorrentCount"),
        ),
        String::new(),
    ];
    let room = rows.saturating_sub(HEAD_LINES).min(torrents.len());
    lines.extend(table::list(torrents.get(..room).unwrap_or_default()));
    let cut = |line: String| match line.chars().count() > columns {
        true => line.chars().take(columns).collect(),
        false => line,
    };
    lines.into_iter().map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_is_never_larger_than_the_terminal() {
        let torrents: Vec<Value> = (0..100)
            .map(|id| json!({ "id": id, "name": "x".repeat(500), "percentDone": 1 }))
            .collect();
        let screen = draw(&json!({ "torrentCount": 100 }), &torrents, 24, 80);
        assert!(screen.len() <= 24);
        assert!(screen.iter().all(|line| line.chars().count() <= 80));
    }
}
