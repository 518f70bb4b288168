//! A torrent's figures as one line of text. Layer 6.

use super::escape::{cut, terminal};
use super::size;
use crate::session::{TorrentProgress, TorrentState};

/// Characters of a torrent's name that are shown.
pub const NAME_CHARS_MAX: usize = 60;

/// The name as it is shown: escaped and cut.
pub fn name(name: &str) -> String {
    cut(&terminal(name), NAME_CHARS_MAX).into_owned()
}

/// Whole percents done; 100 only when all is there.
pub fn percent(p: &TorrentProgress) -> u64 {
    let done = shown_bytes(p);
    let percent = u128::from(done) * 100 / u128::from(p.total_bytes.max(1));
    u64::try_from(percent).unwrap_or(100).min(100)
}

/// What the bar stands at: hashed bytes while checking, verified ones after.
pub const fn shown_bytes(p: &TorrentProgress) -> u64 {
    match p.state {
        TorrentState::Checking => p.checked_bytes,
        _ => p.have_bytes,
    }
}

/// Everything but name and percents: `1.2 GiB/4.0 GiB ↓ 10 MiB/s ↑ 1 MiB/s peers 5/40 ETA 3m00s downloading`.
pub fn figures(p: &TorrentProgress) -> String {
    let mut line = format!(
        "{}/{} ↓ {} ↑ {} peers {}/{}",
        size::bytes(shown_bytes(p)),
        size::bytes(p.total_bytes),
        size::rate(p.down_bytes_per_s),
        size::rate(p.up_bytes_per_s),
        p.peers,
        p.peers_known,
    );
    if p.state == TorrentState::Downloading {
        let left = p.total_bytes.saturating_sub(p.have_bytes);
        if let Some(eta) = size::eta(left, p.down_bytes_per_s) {
            line += &format!(" ETA {eta}");
        }
    }
    line + " " + p.state.as_str()
}

/// The line printed every few seconds where there is no terminal.
pub fn line(p: &TorrentProgress) -> String {
    format!("{}: {}% {}", name(&p.name), percent(p), figures(p))
}

/// The line a torrent ends with.
pub fn summary(p: &TorrentProgress, seconds: f64) -> String {
    let whole = p.have_bytes >= p.total_bytes;
    let rate = if seconds > 0.0 {
        p.downloaded_bytes as f64 / seconds
    } else {
        0.0
    };
    let have = match whole {
        true => format!("complete, {}", size::bytes(p.total_bytes)),
        false => format!("{}% of {}", percent(p), size::bytes(p.total_bytes)),
    };
    let mut line = format!("{}: {have}", name(&p.name));
    if p.downloaded_bytes > 0 {
        line += &format!(
            ", {} fetched at {}/s",
            size::bytes(p.downloaded_bytes),
            size::bytes(rate as u64)
        );
    }
    line += &format!(", {} uploaded", size::bytes(p.uploaded_bytes));
    if p.wasted_bytes > 0 {
        line += &format!(", {} wasted", size::bytes(p.wasted_bytes));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::InfoHash;

    fn figures_of(state: TorrentState, have_bytes: u64) -> TorrentProgress {
        TorrentProgress {
            info_hash: InfoHash::new([0; 20]),
            name: "x\u{1b}[31m".into(),
            state,
            have_bytes,
            total_bytes: 1000 << 20,
            checked_bytes: 500 << 20,
            downloaded_bytes: have_bytes,
            uploaded_bytes: 0,
            wasted_bytes: 0,
            total_downloaded_bytes: 0,
            total_uploaded_bytes: 0,
            down_bytes_per_s: 10 << 20,
            up_bytes_per_s: 0,
            peers: 3,
            peers_known: 7,
            pieces_have: 0,
            pieces: 1,
            pieces_checked: 0,
        }
    }

    #[test]
    fn a_line_has_all_figures_and_no_escapes() {
        let line = line(&figures_of(TorrentState::Downloading, 400 << 20));
        assert_eq!(
            line,
            "x\\u{1b}[31m: 40% 400.0 MiB/1000.0 MiB ↓ 10.0 MiB/s ↑ 0 B/s peers 3/7 ETA 1m00s downloading"
        );
    }

    #[test]
    fn percents_follow_the_check_and_reach_100_only_when_whole() {
        assert_eq!(percent(&figures_of(TorrentState::Checking, 0)), 50);
        assert_eq!(
            percent(&figures_of(TorrentState::Downloading, (1000 << 20) - 1)),
            99
        );
        assert_eq!(percent(&figures_of(TorrentState::Seeding, 1000 << 20)), 100);
    }
}
