//! The one way to stdout and stderr: no panic on a closed pipe, no garbled progress bars. Layer 7.

use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{MultiProgress, ProgressDrawTarget};

use super::exit::{Exit, Failure, io_cause};

/// The bars now on the terminal, if any: whatever else is written goes above them.
static LIVE_BARS: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// Why stdout cannot be written to any more, once that happened.
static STDOUT_FAULT: Mutex<Option<io::Error>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Declares the bars that are on the terminal from now on, or that there are none.
pub fn set_live_bars(bars: Option<MultiProgress>) {
    *lock(&LIVE_BARS) = bars;
}

/// Takes the bars off the terminal, so that the shell's prompt starts on a line of its own.
pub fn clear_bars() {
    let bars = lock(&LIVE_BARS).take();
    if let Some(bars) = bars {
        let _ = bars.clear(); // the terminal may be gone
    }
}

/// Leaves the bars on the terminal as they are and draws them no more.
///
/// For after a signal: the terminal's own `^C` has moved the cursor, and redrawing from there would tear the screen.
pub fn freeze_bars() {
    let bars = lock(&LIVE_BARS).take();
    if let Some(bars) = bars {
        bars.set_draw_target(ProgressDrawTarget::hidden());
        let _ = io::stdout().lock().write_all(b"\n"); // the terminal may be gone
    }
}

/// Runs `write` with the bars taken off the terminal.
fn above_bars(write: impl FnOnce()) {
    let bars = lock(&LIVE_BARS).clone();
    match bars {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}

/// Writes one line to stdout at once. False when that fails, now or before.
pub fn stdout_line(line: &str) -> bool {
    let mut is_written = true;
    above_bars(|| is_written = stdout_bytes(format!("{line}\n").as_bytes()));
    is_written
}

/// Writes raw text to stdout. False when that fails, now or before.
pub fn stdout_bytes(bytes: &[u8]) -> bool {
    if is_stdout_broken() {
        return false;
    }
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    match written {
        Ok(()) => true,
        Err(error) => {
            *lock(&STDOUT_FAULT) = Some(error);
            false
        }
    }
}

/// True once stdout was closed by its reader or failed: nothing written there arrives any more.
pub fn is_stdout_broken() -> bool {
    lock(&STDOUT_FAULT).is_some()
}

/// The exit code of a command whose output is its purpose: a reader that had enough is fine, a full disk is not.
pub fn checked(exit: Exit) -> Exit {
    let fault = lock(&STDOUT_FAULT);
    match fault.as_ref() {
        Some(error) if exit == Exit::Done && error.kind() != ErrorKind::BrokenPipe => {
            let failure = Failure::new(
                format!("cannot write to stdout: {}", io_cause(error)),
                "check where the output goes to",
            );
            failure.report();
            failure.exit()
        }
        _ => exit,
    }
}

/// Writes one line to stderr; a closed stderr is not an error.
pub fn stderr_line(line: &str) {
    stderr_bytes(format!("{line}\n").as_bytes());
}

/// Writes whole lines to stderr; a closed stderr is not an error.
pub fn stderr_bytes(bytes: &[u8]) {
    above_bars(|| {
        let _ = io::stderr().lock().write_all(bytes);
    });
}
