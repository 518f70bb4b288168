//! SIGINT and SIGTERM for every verb: the first asks for a clean end, the second leaves at once. Layer 6.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::signal::{SigSet, Signal};

use super::exit::Exit;

/// Code of the first signal, 0 while there was none.
static RECEIVED: AtomicU8 = AtomicU8::new(0);

/// What the first signal does; without it the process leaves at once.
type Stop = Box<dyn FnOnce() + Send>;
static ON_FIRST: Mutex<Option<Stop>> = Mutex::new(None);

/// Blocks both signals in this thread and those it starts, and waits for them in a thread of its own.
///
/// Call it before any other thread exists. Child processes start with nothing blocked.
pub fn install() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    if signals.thread_block().is_err() {
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
    let exit = match signal {
        Signal::SIGTERM => Exit::Terminated,
        _ => Exit::Interrupted,
    };
    let stop = {
        let mut slot = lock();
        let first = RECEIVED.compare_exchange(0, exit.code(), Ordering::SeqCst, Ordering::SeqCst);
        first.ok().and_then(|_| slot.take())
    };
    match stop {
        Some(stop) => stop(),
        None => std::process::exit(i32::from(exit.code())),
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Stop>> {
    ON_FIRST
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
