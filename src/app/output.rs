//! The one way to stdout and stderr: no panic on a closed pipe, no garbled progress bars. Layer 6.

use std::io::Write;
use std::sync::Mutex;

use indicatif::MultiProgress;

/// The bars now on the terminal, if any: whatever else is written goes above them.
static LIVE_BARS: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// Declares the bars that are on the terminal from now on, or that there are none.
pub fn set_live_bars(bars: Option<MultiProgress>) {
    *LIVE_BARS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner) = bars;
}

/// Runs `write` with the bars taken off the terminal.
fn above_bars(write: impl FnOnce()) {
    let bars = LIVE_BARS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .clone();
    match bars {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}

/// Writes one line to stdout at once. False when nobody reads any more.
pub fn stdout_line(line: &str) -> bool {
    let mut written = true;
    above_bars(|| {
        let mut stdout = std::io::stdout().lock();
        written = writeln!(stdout, "{line}")
            .and_then(|()| stdout.flush())
            .is_ok();
    });
    written
}

/// Writes raw text to stdout. False when nobody reads any more.
pub fn stdout_bytes(bytes: &[u8]) -> bool {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .is_ok()
}

/// Writes one line to stderr; a closed stderr is not an error.
pub fn stderr_line(line: &str) {
    stderr_bytes(format!("{line}\n").as_bytes());
}

/// Writes whole lines to stderr; a closed stderr is not an error.
pub fn stderr_bytes(bytes: &[u8]) {
    above_bars(|| {
        let _ = std::io::stderr().lock().write_all(bytes);
    });
}
