//! Shows a session's events: bars on a terminal, lines elsewhere, JSON objects, or nothing. Layer 7.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::escape::terminal;
use super::exit::complain;
use super::{json, output, plain};
use crate::base::InfoHash;
use crate::base::in_sentence;
use crate::session::{SessionEvent, TorrentProgress};

/// Time between two lines of one torrent where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How events are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Json,
    /// Redrawn in place.
    Bars,
    /// A line every few seconds.
    Lines,
    /// Errors only.
    Quiet,
}

impl Mode {
    /// From the options and from what stdout is.
    pub fn choose(as_json: bool, is_quiet: bool) -> Mode {
        // Such a terminal cannot move its cursor.
        let is_dumb = || std::env::var("TERM").is_ok_and(|term| term == "dumb");
        match (as_json, is_quiet) {
            (true, _) => Mode::Json,
            (_, true) => Mode::Quiet,
            _ if std::io::stdout().is_terminal() && !is_dumb() => Mode::Bars,
            _ => Mode::Lines,
        }
    }
}

/// Everything shown about a running session.
pub struct Renderer {
    mode: Mode,
    /// Complete torrents are seeded on.
    is_seeding_on: bool,
    bars: MultiProgress,
    torrents: BTreeMap<InfoHash, Shown>,
}

/// What is known and shown of one torrent.
struct Shown {
    bar: Option<ProgressBar>,
    last: Option<TorrentProgress>,
    next_line: Instant,
    /// Only the last line was left to say.
    is_last: bool,
    since: Instant,
    /// Seconds until complete, as the session said.
    seconds: Option<f64>,
}

impl Renderer {
    /// Starts with nothing to show; `is_seeding_on` when complete torrents do not end.
    pub fn new(mode: Mode, is_seeding_on: bool) -> Renderer {
        let target = match mode {
            Mode::Bars => ProgressDrawTarget::stdout(),
            _ => ProgressDrawTarget::hidden(),
        };
        let bars = MultiProgress::with_draw_target(target);
        if mode == Mode::Bars {
            output::set_live_bars(Some(bars.clone()));
        }
        Renderer {
            mode,
            is_seeding_on,
            bars,
            torrents: BTreeMap::new(),
        }
    }

    /// Shows one event.
    pub fn on_event(&mut self, event: &SessionEvent) {
        if self.mode == Mode::Json {
            json::print(&json::event(event));
            return;
        }
        match event {
            SessionEvent::Listening { addr } => self.say(&format!("listening on {addr}")),
            SessionEvent::Metadata { info_hash, .. } => {
                self.shown(*info_hash);
            }
            SessionEvent::Progress(progress) => self.on_progress(progress),
            SessionEvent::Dht(_) | SessionEvent::Lab(_) | SessionEvent::Mapped { .. } => {}
            SessionEvent::Complete {
                info_hash, seconds, ..
            } => self.on_complete(*info_hash, *seconds),
            SessionEvent::Banned { ip, .. } => {
                tracing::info!(%ip, "peer sent corrupt data and is refused");
            }
            SessionEvent::WebSeedBanned { url, .. } => self.on_trouble(
                "warning",
                &format!("web seed {url} sent corrupt data and is used no more"),
                "the data on that server differs from the torrent's; what is missing is fetched from others",
            ),
            SessionEvent::Warning { message, hint, .. } => {
                self.on_trouble("warning", message, hint)
            }
            SessionEvent::Error { message, hint, .. } => self.on_trouble("error", message, hint),
            SessionEvent::Ended { info_hash, .. } => self.on_ended(*info_hash),
        }
    }

    /// Takes the bars off the terminal and prints what is left to say.
    pub fn finish(&mut self) {
        let all: Vec<InfoHash> = self.torrents.keys().copied().collect();
        for info_hash in all {
            self.on_ended(info_hash);
        }
        if self.mode == Mode::Bars {
            output::set_live_bars(None);
        }
    }

    fn shown(&mut self, info_hash: InfoHash) -> &mut Shown {
        let (mode, bars) = (self.mode, &self.bars);
        self.torrents.entry(info_hash).or_insert_with(|| Shown {
            bar: (mode == Mode::Bars).then(|| bars.add(bar())),
            last: None,
            next_line: Instant::now(),
            is_last: false,
            since: Instant::now(),
            seconds: None,
        })
    }

    fn on_progress(&mut self, progress: &TorrentProgress) {
        let (mode, is_seeding_on) = (self.mode, self.is_seeding_on);
        let now = Instant::now();
        let shown = self.shown(progress.info_hash);
        let state_of = |of: &TorrentProgress| (of.state, of.is_preparing());
        let is_new_state = shown.last.as_ref().map(state_of) != Some(state_of(progress));
        shown.last = Some(progress.clone());
        if let Some(bar) = &shown.bar {
            show(bar, progress);
        }
        if plain::is_failed_start(progress) {
            // Nothing is left to say.
            return;
        }
        // Without seeding on, what comes next is the last line, unless the disk takes long.
        let is_last = plain::is_saving(progress) && !is_seeding_on;
        if is_last && !shown.is_last {
            shown.next_line = now + LINE_EVERY;
        }
        shown.is_last = is_last;
        let is_news = is_new_state && !is_last;
        if mode == Mode::Lines && (is_news || now >= shown.next_line) {
            shown.next_line = now + LINE_EVERY;
            output::stdout_line(&plain::line(progress));
        }
    }

    fn on_complete(&mut self, info_hash: InfoHash, seconds: f64) {
        let Some(shown) = self.torrents.get_mut(&info_hash) else {
            return;
        };
        shown.seconds = Some(seconds);
        let line = shown.last.as_ref().map(|p| plain::complete(p, seconds));
        if let Some(line) = line.filter(|_| self.is_seeding_on) {
            self.say(&line);
        }
    }

    fn on_trouble(&self, kind: &str, message: &str, hint: &str) {
        if self.mode == Mode::Quiet && kind != "error" {
            return;
        }
        complain(kind, &terminal(&in_sentence(message)), &terminal(hint));
    }

    fn on_ended(&mut self, info_hash: InfoHash) {
        let Some(shown) = self.torrents.remove(&info_hash) else {
            return;
        };
        if let Some(bar) = &shown.bar {
            bar.finish_and_clear();
            self.bars.remove(bar);
        }
        if let Some(last) = shown.last.filter(|last| !plain::is_failed_start(last)) {
            let seconds = shown.seconds;
            let seconds = seconds.unwrap_or_else(|| shown.since.elapsed().as_secs_f64());
            self.say(&plain::summary(&last, seconds));
        }
    }

    fn say(&self, line: &str) {
        if matches!(self.mode, Mode::Bars | Mode::Lines) {
            output::stdout_line(line);
        }
    }
}

/// A line on the terminal that is redrawn in place; it shows once it is added to the others.
pub fn bar() -> ProgressBar {
    let bar = ProgressBar::hidden();
    if let Ok(style) = ProgressStyle::with_template("{msg}") {
        bar.set_style(style);
    }
    bar
}

/// Moves a bar to where the torrent is.
pub fn show(bar: &ProgressBar, progress: &TorrentProgress) {
    let (_, columns) = Term::stdout().size();
    bar.set_message(plain::bar_line(progress, columns.into()));
}
