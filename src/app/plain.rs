//! A torrent's figures as one line of text. Layer 7.

use console::{Alignment, measure_text_width, pad_str};

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
    let (done, all) = done_of_all(p);
    let percent = u128::from(done) * 100 / u128::from(all.max(1));
    u64::try_from(percent).unwrap_or(100).min(100)
}

/// What the bar and the percents stand for: files that are ready while they are made, else bytes.
const fn done_of_all(p: &TorrentProgress) -> (u64, u64) {
    match p.state {
        TorrentState::Metadata => (p.metadata_bytes as u64, p.metadata_total_bytes as u64),
        _ if p.is_preparing() => (p.files_prepared, p.files_to_prepare),
        _ => (shown_bytes(p), p.total_bytes),
    }
}

/// The word for what it is doing.
fn state(p: &TorrentProgress) -> &'static str {
    match p.is_preparing() {
        true => "preparing",
        false if is_saving(p) => "saving",
        false => p.state.as_str(),
    }
}

/// True when all is here and not yet known to be on disk.
pub fn is_saving(p: &TorrentProgress) -> bool {
    p.state == TorrentState::Downloading && p.have_bytes >= p.total_bytes
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
    if p.is_preparing() {
        let all = size::plural(p.files_to_prepare, "file");
        return format!("{} of {all} {}", p.files_prepared, state(p));
    }
    if p.state == TorrentState::Metadata {
        let size = match p.metadata_total_bytes {
            0 => String::new(),
            all => {
                let (have, all) = (
                    size::bytes(p.metadata_bytes.into()),
                    size::bytes(all.into()),
                );
                format!("{have}/{all} ")
            }
        };
        return format!(
            "{size}peers {}/{} {}",
            p.peers,
            p.peers_known,
            p.state.as_str()
        );
    }
    let web = match p.web_seeds {
        0 => String::new(),
        count => format!(" web {count}"),
    };
    let mut line = format!(
        "{}/{} ↓ {} ↑ {} peers {}/{}{web}",
        size::bytes(shown_bytes(p)),
        size::bytes(p.total_bytes),
        size::rate(p.down_bytes_per_s),
        size::rate(p.up_bytes_per_s),
        p.peers,
        p.peers_known,
    );
    if let Some(eta) = eta(p) {
        line += &format!(" ETA {eta}");
    }
    line + " " + state(p)
}

/// The line printed every few seconds where there is no terminal.
pub fn line(p: &TorrentProgress) -> String {
    format!("{}: {}% {}", name(&p.name), percent(p), figures(p))
}

/// One line of at most `width` columns that keeps its columns' places: name, bar, percents, size, rates, peers, time
/// left, state. A narrow terminal loses the least needed of them.
pub fn bar_line(p: &TorrentProgress, width: usize) -> String {
    let rate = |bytes_per_s| size::short_bytes(bytes_per_s) + "/s";
    let columns = [
        format!("{:>3}%", percent(p)),
        format!("↓{:>9}", rate(p.down_bytes_per_s)),
        format!("↑{:>9}", rate(p.up_bytes_per_s)),
        format!("{:>7}", size::short_bytes(p.total_bytes)),
        format!("{:<11}", state(p)),
        format!("{:>6}", format!("{}/{}", p.peers, p.peers_known)),
        format!("{:>6}", eta(p).unwrap_or_default()),
    ];
    let by_need = match p.state {
        TorrentState::Seeding => [0, 2, 4, 1, 3, 5, 6],
        _ => [0, 1, 4, 2, 3, 5, 6],
    };
    let room = |count: usize| {
        let kept = by_need.iter().take(count);
        let taken = kept
            .filter_map(|at| columns.get(*at))
            .map(|text| measure_text_width(text) + 1);
        width.saturating_sub(taken.sum())
    };
    let all = columns.len();
    let count = (1..=all)
        .rev()
        .find(|count| room(*count) >= NAME_COLUMNS_MIN);
    let count = count.unwrap_or(0);
    let mut name_columns = room(count).min(NAME_COLUMNS_MAX);
    let mut line = String::new();
    if let Some(left) = room(count).checked_sub(NAME_COLUMNS_MIN + BAR_COLUMNS_MIN + 1) {
        let bar_columns = (BAR_COLUMNS_MIN + left / 2).min(BAR_COLUMNS_MAX);
        name_columns = (room(count) - bar_columns - 1).min(NAME_COLUMNS_MAX);
        line = " ".to_owned() + &bar(p, bar_columns);
    }
    let name = terminal(&p.name);
    let name = pad_str(&name, name_columns, Alignment::Left, Some("…")).into_owned();
    // In the order of reading, not of need.
    for at in [0, 3, 1, 2, 5, 6, 4] {
        let is_kept = by_need.iter().take(count).any(|kept| *kept == at);
        if let Some(column) = columns.get(at).filter(|_| is_kept) {
            line += " ";
            line += column;
        }
    }
    (name + &line).trim_end().to_owned()
}

/// Columns of a name, when there is room for that much and no more.
const NAME_COLUMNS_MIN: usize = 8;
const NAME_COLUMNS_MAX: usize = 48;
const BAR_COLUMNS_MIN: usize = 6;
const BAR_COLUMNS_MAX: usize = 24;

/// A bar in eighths of a column.
fn bar(p: &TorrentProgress, columns: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let (part, whole) = done_of_all(p);
    let all = columns as u128 * 8;
    let done = u128::from(part) * all / u128::from(whole.max(1));
    let done = usize::try_from(done.min(all)).unwrap_or(0);
    let mut bar = "█".repeat(done / 8);
    bar.extend(EIGHTHS.get(done % 8).filter(|_| done / 8 < columns));
    bar.extend((done / 8 + 1..columns).map(|_| ' '));
    bar
}

fn eta(p: &TorrentProgress) -> Option<String> {
    if p.state != TorrentState::Downloading || is_saving(p) {
        return None;
    }
    size::eta(
        p.total_bytes.saturating_sub(p.have_bytes),
        p.down_bytes_per_s,
    )
}

/// True for a torrent that ended by an error before anything was there: the error has said it all.
pub fn is_failed_start(p: &TorrentProgress) -> bool {
    let moved = [p.have_bytes, p.downloaded_bytes, p.uploaded_bytes];
    p.state == TorrentState::Error && moved == [0; 3]
}

/// The line printed at once when a torrent is complete and seeds on.
pub fn complete(p: &TorrentProgress, seconds: f64) -> String {
    /// Nothing can be fetched, hashed and written in less.
    const SECONDS_MIN: f64 = 0.01;
    let name = name(&p.name);
    match seconds < SECONDS_MIN {
        true => format!("{name}: complete already, seeding on"),
        false => format!("{name}: complete after {}, seeding on", took(seconds)),
    }
}

/// The line a torrent ends with; `seconds` is how long it took to fetch what was fetched.
pub fn summary(p: &TorrentProgress, seconds: f64) -> String {
    let mut line = name(&p.name);
    if p.state == TorrentState::Metadata {
        return line + ": stopped before its metadata was here";
    }
    line += &match p.have_bytes >= p.total_bytes {
        true => format!(": complete, {}", size::bytes(p.total_bytes)),
        false => format!(": {}% of {}", percent(p), size::bytes(p.total_bytes)),
    };
    if p.downloaded_bytes > 0 {
        let fetched = match p.downloaded_web_bytes {
            0 => "fetched".to_owned(),
            bytes if bytes >= p.downloaded_bytes => "fetched from web seeds".to_owned(),
            bytes => format!("fetched ({} from web seeds)", size::bytes(bytes)),
        };
        line += &format!(
            ", {} {fetched} in {}",
            size::bytes(p.downloaded_bytes),
            took(seconds)
        );
        if seconds >= RATE_SECONDS_MIN {
            let rate = p.downloaded_bytes as f64 / seconds;
            line += &format!(" at {}", size::rate(rate as u64));
        }
    }
    line += &format!(", {} uploaded", size::bytes(p.uploaded_bytes));
    if p.wasted_bytes > 0 {
        line += &format!(", {} wasted", size::bytes(p.wasted_bytes));
    }
    let sources = p.connections_by_source.iter();
    let sources: Vec<String> = sources
        .filter(|(_, count)| *count > 0)
        .map(|(word, count)| format!("{count} {word}"))
        .collect();
    if !sources.is_empty() {
        let utp = p.connections_utp;
        let tcp = p.connections_by_source.total().saturating_sub(utp);
        let transports = [(tcp, "TCP"), (utp, "uTP")];
        let transports = transports.iter().filter(|(count, _)| *count > 0);
        let transports: Vec<String> = transports
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        let (sources, transports) = (sources.join(", "), transports.join(", "));
        line += &format!(", peers: {sources} ({transports})");
    }
    if p.peers_filtered > 0 {
        let all = size::plural(p.peers_filtered.into(), "peer");
        line += &format!(", {all} filtered");
    }
    line
}

/// A rate over less time than this says nothing.
const RATE_SECONDS_MIN: f64 = 0.5;

fn took(seconds: f64) -> String {
    match seconds {
        0.0..10.0 => format!("{seconds:.1}s"),
        _ => size::duration(seconds as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::InfoHash;
    use crate::swarm::{Source, SourceCounts};

    fn figures_of(state: TorrentState, have_bytes: u64) -> TorrentProgress {
        TorrentProgress {
            info_hash: InfoHash::new([0; 20]),
            name: "x\u{1b}[31m".into(),
            state,
            have_bytes,
            total_bytes: 1000 << 20,
            checked_bytes: 500 << 20,
            downloaded_bytes: have_bytes,
            downloaded_web_bytes: 0,
            uploaded_bytes: 0,
            wasted_bytes: 0,
            total_downloaded_bytes: 0,
            total_uploaded_bytes: 0,
            down_bytes_per_s: 10 << 20,
            up_bytes_per_s: 0,
            peers: 3,
            peers_by_source: SourceCounts::new(),
            connections_by_source: SourceCounts::new(),
            connections_utp: 0,
            peers_encrypted: 0,
            peers_obfuscated: 0,
            peers_utp: 0,
            peers_known: 7,
            peers_filtered: 0,
            web_seeds: 0,
            super_seeding: false,
            pieces_have: 0,
            pieces: 1,
            pieces_checked: 0,
            pieces_unproven: 0,
            files_prepared: 0,
            files_to_prepare: 0,
            metadata_bytes: 0,
            metadata_total_bytes: 0,
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
    fn web_seeds_in_use_stand_beside_the_peers() {
        let mut p = figures_of(TorrentState::Downloading, 400 << 20);
        p.web_seeds = 2;
        assert!(line(&p).contains(" peers 3/7 web 2 ETA "), "{}", line(&p));
    }

    #[test]
    fn files_that_are_made_are_counted_and_bytes_are_not() {
        let mut made = figures_of(TorrentState::Checking, 0);
        (made.files_prepared, made.files_to_prepare) = (50_000, 200_000);
        let line = line(&made);
        assert_eq!(line, "x\\u{1b}[31m: 25% 50000 of 200000 files preparing");
        assert!(bar_line(&made, 77).ends_with(" preparing"));
    }

    #[test]
    fn what_is_all_here_is_saved_until_it_counts() {
        let whole = figures_of(TorrentState::Downloading, 1000 << 20);
        assert!(line(&whole).ends_with(" saving"), "{}", line(&whole));
        assert!(bar_line(&whole, 77).ends_with(" saving"));
        let almost = figures_of(TorrentState::Downloading, (1000 << 20) - 1);
        assert!(line(&almost).ends_with(" downloading"));
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

    #[test]
    fn a_bar_line_fits_every_width_and_keeps_its_places() {
        let mut small = figures_of(TorrentState::Downloading, 400 << 20);
        let mut large = figures_of(TorrentState::Downloading, 0);
        large.name = "日本語の名前".repeat(9);
        large.total_bytes = 1023 << 30;
        large.down_bytes_per_s = 1023 << 10;
        large.up_bytes_per_s = 1023 << 20;
        (large.peers, large.peers_known) = (100, 12);
        for width in 1..200 {
            for progress in [&small, &large] {
                let line = bar_line(progress, width);
                assert!(measure_text_width(&line) <= width, "{width}: {line}");
            }
        }
        assert_eq!(
            bar_line(&small, 77),
            "x\\u{1b}[… ██▍     40% 1000MiB ↓10.0MiB/s ↑     0B/s    3/7  1m00s downloading"
        );
        assert_eq!(bar_line(&small, 24), "x\\u{1b}…  40% ↓10.0MiB/s");
        let narrow = bar_line(&small, 40);
        assert_eq!(narrow, "x\\u{1b}[31m   40% ↓10.0MiB/s downloading");
        small.state = TorrentState::Seeding;
        let narrow = bar_line(&small, 40);
        assert_eq!(narrow, "x\\u{1b}[31m   40% ↑     0B/s seeding");
        let place = |line: &str| measure_text_width(line.split('↓').next().unwrap());
        large.state = TorrentState::Seeding;
        assert_eq!(place(&bar_line(&small, 77)), place(&bar_line(&large, 77)));
    }

    #[test]
    fn a_bar_is_full_only_when_all_is_there() {
        let bar_of = |bytes| bar(&figures_of(TorrentState::Downloading, bytes), 4);
        assert_eq!(bar_of(0), "    ");
        assert_eq!(bar_of((1000 << 20) - 1), "███▉");
        assert_eq!(bar_of(1000 << 20), "████");
    }

    #[test]
    fn a_summary_says_what_was_done_and_how_fast() {
        let mut done = figures_of(TorrentState::Seeding, 1000 << 20);
        assert_eq!(
            summary(&done, 20.0),
            "x\\u{1b}[31m: complete, 1000.0 MiB, 1000.0 MiB fetched in 20s at 50.0 MiB/s, 0 B uploaded"
        );
        done.downloaded_web_bytes = 250 << 20;
        let mixed = summary(&done, 20.0);
        assert!(
            mixed.contains("1000.0 MiB fetched (250.0 MiB from web seeds) in 20s"),
            "{mixed}"
        );
        done.downloaded_web_bytes = done.downloaded_bytes;
        let all = summary(&done, 20.0);
        assert!(
            all.contains("1000.0 MiB fetched from web seeds in 20s"),
            "{all}"
        );
        (done.downloaded_bytes, done.downloaded_web_bytes) = (0, 0);
        done.wasted_bytes = 1024;
        assert_eq!(
            summary(&done, 20.0),
            "x\\u{1b}[31m: complete, 1000.0 MiB, 0 B uploaded, 1.00 KiB wasted"
        );
        let met = [Source::Tracker, Source::Pex, Source::Tracker];
        done.connections_by_source = met.into_iter().collect();
        assert!(summary(&done, 20.0).ends_with("wasted, peers: 2 tracker, 1 pex (3 TCP)"));
        done.connections_utp = 2;
        assert!(summary(&done, 20.0).ends_with("2 tracker, 1 pex (1 TCP, 2 uTP)"));
        assert!(complete(&done, 0.001).ends_with(": complete already, seeding on"));
        assert!(complete(&done, 1.0).ends_with(": complete after 1.0s, seeding on"));
    }
}
