//! `gyre info --scrape`: what trackers count, shown. Layer 7.

use serde_json::{Value, json};

use super::escape::{cut, terminal};
use super::exit::{Exit, Failure};
use super::fetch::Route;
use super::{json, output, run, size};
use crate::base::InfoHash;
use crate::session::scrape::{self, Scraped};

/// Characters of a URL or refusal that are shown.
const SHOWN_CHARS_MAX: usize = 200;

/// Asks the trackers and prints one line each, or one object. Fails when none gives numbers.
///
/// # Errors
/// There is no tracker, no socket, or no answer.
pub fn show(
    info_hash: InfoHash,
    trackers: &[String],
    route: &Route,
    as_json: bool,
) -> Result<Exit, Failure> {
    let trackers = trackers.get(..scrape::TRACKERS_MAX).unwrap_or(trackers);
    if trackers.is_empty() {
        return Err(Failure::new(
            "there is no tracker to ask",
            "name a .torrent or a magnet link with trackers",
        ));
    }
    let ring = run::start_ring()?;
    let socket = route.socket_options();
    let answers = ring
        .block_on(scrape::scrape(
            info_hash,
            trackers,
            socket,
            route.ipv6,
            route.proxy.clone(),
            route.tracker_ca.clone(),
        ))
        .map_err(|error| {
            let message = format!("the trackers cannot be asked: {error}");
            Failure::new(message, "check --bind and the network")
        })?;
    let lines = trackers.iter().zip(&answers);
    if as_json {
        let lines: Vec<Value> = lines.map(|(url, answer)| object(url, answer)).collect();
        json::print(&json!({ "info_hash": info_hash.to_string(), "trackers": lines }));
    } else {
        for (url, answer) in lines {
            output::stdout_line(&line(url, answer));
        }
    }
    if answers.iter().all(Result::is_err) {
        let hint = "check the network; what each said stands above";
        return Err(Failure::new("no tracker gave numbers", hint));
    }
    Ok(Exit::Done)
}

fn object(url: &str, answer: &Scraped) -> Value {
    match answer {
        Ok(counts) => json!({
            "url": url,
            "seeders": counts.seeders,
            "leechers": counts.leechers,
            "downloaded": counts.completed,
        }),
        Err(error) => json!({ "url": url, "error": error }),
    }
}

fn line(url: &str, answer: &Scraped) -> String {
    let safe =
        |text: &str| cut(&terminal(&cut(text, SHOWN_CHARS_MAX)), SHOWN_CHARS_MAX).into_owned();
    let url = safe(url);
    match answer {
        Ok(counts) => format!(
            "{url}: {}, {}, {}",
            size::plural(counts.seeders.into(), "seeder"),
            size::plural(counts.leechers.into(), "leecher"),
            size::plural(counts.completed.into(), "download"),
        ),
        Err(error) => format!("{url}: {}", safe(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tracker_http::serve::SwarmCounts;

    #[test]
    fn what_a_tracker_says_is_one_safe_line() {
        let counts = SwarmCounts {
            seeders: 1,
            leechers: 2,
            completed: 0,
        };
        assert_eq!(
            line("udp://t:1", &Ok(counts)),
            "udp://t:1: 1 seeder, 2 leechers, 0 downloads"
        );
        let refused = line("http://t/\x1b[2J", &Err("no\nway".to_owned()));
        assert!(!refused.contains(char::is_control), "{refused:?}");
    }
}
