//! One progress bar for verbs that hash. Layer 7.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;

/// A bar on stderr when that is a terminal, else nothing.
pub struct Meter(Option<ProgressBar>);

impl Meter {
    /// Starts a bar of so many bytes, unless it is not wanted or would be seen by no one.
    pub fn new(label: &'static str, total_bytes: u64, is_wanted: bool) -> Meter {
        if !is_wanted || !std::io::stderr().is_terminal() {
            return Meter(None);
        }
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let bar = bars.add(ProgressBar::hidden());
        bar.set_length(total_bytes);
        let template = "{msg} [{wide_bar}] {percent:>3}% {binary_bytes_per_sec:>12} ETA {eta:<4}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(label);
        bar.enable_steady_tick(Duration::from_millis(250));
        output::set_live_bars(Some(bars));
        Meter(Some(bar))
    }

    /// So many bytes more are done.
    pub fn add(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    /// Takes the bar off the terminal.
    pub fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
            output::set_live_bars(None);
        }
    }
}
