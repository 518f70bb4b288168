//! SIGINT, SIGTERM and SIGHUP for every verb: the first asks for a clean end, the second leaves at once. Layer 7.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use super::exit::Exit;

/// Code of the first signal, 0 while there was none.
static RECEIVED: AtomicU8 = AtomicU8::new(0);

/// Tidying the terminal may hang where its flow is stopped: the end waits no longer than this.
const TIDY_TIMEOUT: Duration = Duration::from_millis(200);

/// What the first signal does; without it the process leaves at once.
type Stop = Box<dyn FnOnce() + Send>;
static ON_FIRST: Mutex<Option<Stop>> = Mutex::new(None);

/// What SIGHUP does when it does not mean the end.
type Act = Box<dyn Fn() + Send>;
static ON_HANGUP: Mutex<Option<Act>> = Mutex::new(None);
/// There was a terminal at the start: without it SIGHUP means the end after all.
static HAD_TERMINAL: AtomicBool = AtomicBool::new(false);

/// Blocks the signals in this thread and those it starts, and waits for them in a thread of its own.
///
/// A closed terminal (SIGHUP) counts as SIGTERM, unless [`on_hangup`] says otherwise or whoever started the command has it ignored, as nohup does.
/// Call it before any other thread exists. Child processes start with nothing blocked.
pub fn install() {
    HAD_TERMINAL.store(has_terminal(), Ordering::SeqCst);
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    if !is_ignored(Signal::SIGHUP) {
        signals.add(Signal::SIGHUP);
    }
    let mut blocked = signals;
    // A file that may not grow any more is an error of the write then, and told as one.
    blocked.add(Signal::SIGXFSZ);
    if blocked.thread_block().is_err() {
        return; // the default action then ends the process, which is clean enough
    }
    let _ = std::thread::Builder::new()
        .name("gyre-signals".into())
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                on_signal(signal);
            }
        });
}

/// Whether the process was started with this signal ignored.
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or_default() >> (signal as i32 - 1) & 1 == 1
}

/// Has SIGHUP do this instead, as often as it comes, as long as the terminal that the command was started in is there.
pub fn on_hangup(act: impl Fn() + Send + 'static) {
    *ON_HANGUP.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(act));
}

/// Whether SIGHUP was for `on_hangup`.
fn is_hangup_taken() -> bool {
    let act = ON_HANGUP.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(act) = act.as_ref() else {
        return false;
    };
    let is_closed = HAD_TERMINAL.load(Ordering::SeqCst) && !has_terminal();
    if !is_closed {
        act();
    }
    !is_closed
}

fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Sets what the first signal does instead of leaving at once.
pub fn on_first(stop: impl FnOnce() + Send + 'static) {
    let mut slot = lock();
    match received() {
        // It came before this call: stop right away.
        Some(_) => stop(),
        None => *slot = Some(Box::new(stop)),
    }
}

/// The exit that the first signal asked for, if one came.
pub fn received() -> Option<Exit> {
    match RECEIVED.load(Ordering::SeqCst) {
        130 => Some(Exit::Interrupted),
        143 => Some(Exit::Terminated),
        _ => None,
    }
}

fn on_signal(signal: Signal) {
    if signal == Signal::SIGHUP && is_hangup_taken() {
        return;
    }
    let exit = match signal {
        Signal::SIGINT => Exit::Interrupted,
        _ => Exit::Terminated,
    };
    let stop = {
        let mut slot = lock();
        let first = RECEIVED.compare_exchange(0, exit.code(), Ordering::SeqCst, Ordering::SeqCst);
        first.ok().and_then(|_| slot.take())
    };
    match stop {
        Some(stop) => stop(),
        None => leave(exit),
    }
}

fn leave(exit: Exit) -> ! {
    let (done, tidied) = mpsc::channel();
    let tidy = std::thread::Builder::new().spawn(move || {
        super::output::clear_bars();
        let _ = done.send(());
    });
    if tidy.is_ok() {
        let _ = tidied.recv_timeout(TIDY_TIMEOUT);
    }
    std::process::exit(i32::from(exit.code()))
}

fn lock() -> std::sync::MutexGuard<'static, Option<Stop>> {
    ON_FIRST.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_not_ignored_where_nobody_asked_for_it() {
        // The standard library has every Rust program ignore SIGPIPE, and nobody ignores SIGCHLD here.
        assert!(is_ignored(Signal::SIGPIPE));
        assert!(!is_ignored(Signal::SIGCHLD));
    }
}
