//! The tracker's page at `/`: plain text for people and scripts, one `name: value` a line. Layer 5.

use super::TrackerTotals;

/// The page's text.
pub fn page(totals: &TrackerTotals) -> String {
    let registered = &totals.registered;
    let lines: [(&str, u64); 9] = [
        ("uptime seconds", totals.uptime.as_secs()),
        ("torrents", registered.torrents as u64),
        ("peers", registered.peers() as u64),
        ("seeders", registered.seeders as u64),
        ("leechers", registered.leechers as u64),
        ("http announces", totals.http_announces),
        ("udp announces", totals.udp_announces),
        ("scrapes", totals.scrapes),
        ("refused", totals.refused),
    ];
    let mut text = concat!("gyre/", env!("CARGO_PKG_VERSION"), " tracker\n").to_owned();
    for (name, value) in lines {
        text += &format!("{name}: {value}\n");
    }
    text
}
