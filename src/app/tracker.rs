//! `gyre tracker`: a small tracker for a swarm of one's own. Layer 7.

use std::io::IsTerminal;
use std::time::Duration;

use serde_json::{Value, json};

use super::cli::TrackerArgs;
use super::exit::{Exit, Failure};
use super::render::Mode;
use super::{output, run, signals, size};
use crate::session::Stopper;
use crate::session::tracker::{self, Listening, Protocol, TrackerConfig, TrackerTotals};
use crate::uring::limits;

/// Peers must be given time between two announces, and found again the same day.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Runs the verb until stopped.
///
/// # Errors
/// The address cannot be listened on, or there is no ring.
pub fn run(args: &TrackerArgs) -> Result<Exit, Failure> {
    if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&args.interval) {
        return Err(Failure::usage(
            format!("an --interval of {:?} makes no sense", args.interval),
            "choose one from 1s to 24h, such as 2m",
        ));
    }
    limits::raise_nofile();
    let ring = run::start_ring()?;
    let stopper = Stopper::default();
    let config = TrackerConfig {
        listen: args.listen.clone(),
        interval: args.interval,
    };
    let mode = match (args.json, args.quiet) {
        (true, _) => Mode::Json,
        (_, true) => Mode::Quiet,
        _ => Mode::Lines,
    };
    let on_signal = stopper.clone();
    signals::on_first(move || {
        if mode == Mode::Lines && std::io::stdout().is_terminal() {
            // The terminal has written `^C` where the last line goes.
            output::stdout_line("");
        }
        on_signal.stop();
    });
    let totals = ring
        .block_on(tracker::run(config, stopper, |socket| {
            show(mode, &listening_json(&socket), &listening_line(&socket));
        }))
        .map_err(|error| Failure::new(&error, error.hint()))?;
    show(mode, &totals_json(&totals), &totals_line(&totals));
    Ok(signals::received().unwrap_or(Exit::Done))
}

fn show(mode: Mode, event: &Value, line: &str) {
    match mode {
        Mode::Json => output::stdout_line(&event.to_string()),
        Mode::Quiet => true,
        Mode::Bars | Mode::Lines => output::stdout_line(line),
    };
}

fn listening_json(socket: &Listening) -> Value {
    json!({
        "event": "listening",
        "addr": socket.addr.to_string(),
        "protocol": socket.protocol.as_str(),
    })
}

fn listening_line(socket: &Listening) -> String {
    match socket.protocol {
        Protocol::Http => format!("listening on http://{}/announce", socket.addr),
        Protocol::Udp => format!("listening on udp://{}", socket.addr),
    }
}

fn totals_json(totals: &TrackerTotals) -> Value {
    json!({
        "event": "totals",
        "seconds": totals.uptime.as_secs_f64(),
        "torrents": totals.registered.torrents,
        "seeders": totals.registered.seeders,
        "leechers": totals.registered.leechers,
        "http_announces": totals.http_announces,
        "udp_announces": totals.udp_announces,
        "scrapes": totals.scrapes,
        "refused": totals.refused,
    })
}

fn totals_line(totals: &TrackerTotals) -> String {
    let announces = totals.http_announces + totals.udp_announces;
    format!(
        "stopped after {}: {} ({} by HTTP, {} by UDP), {}, {} refused; {} in {} at the end",
        size::duration(totals.uptime.as_secs()),
        size::plural(announces, "announce"),
        totals.http_announces,
        totals.udp_announces,
        size::plural(totals.scrapes, "scrape"),
        totals.refused,
        size::plural(totals.registered.peers() as u64, "peer"),
        size::plural(totals.registered.torrents as u64, "torrent"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_has_all_totals() {
        let totals = TrackerTotals {
            uptime: Duration::from_secs(61),
            http_announces: 1,
            udp_announces: 2,
            scrapes: 1,
            ..TrackerTotals::default()
        };
        assert_eq!(
            totals_line(&totals),
            "stopped after 1m01s: 3 announces (1 by HTTP, 2 by UDP), 1 scrape, 0 refused; 0 peers in 0 torrents at the end"
        );
    }
}
