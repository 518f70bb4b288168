//! What a panic ends: the connection or the torrent whose task it was, and nothing else. Tasks that serve the whole
//! session start anew. It is counted and logged. Layer 5.
//!
//! A panic is a mistake of ours. The task's own state is unknown afterwards and goes with it; what tasks share is only
//! touched in calls that end before anybody else runs, so it is whole as soon as the panic has passed through them.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::error;

use super::config::SessionEvent;
use super::error::SessionError;
use super::shared::Shared;

/// From a panic of a task of the session to its new start: one that panics again at once must not keep the thread busy.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// New starts of a task that all transfers hang on. It works on figures of our own, so what broke it will break it
/// again.
const RESTARTS_MAX: u64 = 5;

/// The work did not end, it panicked. What it said then is on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an error in the program")]
pub struct Panicked;

impl From<Panicked> for io::Error {
    fn from(panicked: Panicked) -> io::Error {
        io::Error::other(panicked)
    }
}

/// Runs `work` to its end or its panic, whichever comes first.
///
/// # Errors
/// It panicked.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        },
    )
    .await
}

/// Runs the work of one connection: a panic is counted, and the user hears of it.
///
/// # Errors
/// It panicked.
pub async fn connection<T>(shared: &Shared, work: impl Future<Output = T>) -> Result<T, Panicked> {
    let result = caught(work).await;
    if result.is_err() {
        on_connection_panic(shared);
    }
    result
}

/// Does what touches nothing but one connection's own, in the middle of a call of the core too: a panic is a panic of
/// the connection.
///
/// # Errors
/// It panicked.
pub fn of_connection<T>(shared: &Shared, work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        on_connection_panic(shared);
        Panicked
    })
}

fn on_connection_panic(shared: &Shared) {
    let count = count_panic(shared, "a connection");
    warn(shared, count, "a connection ended");
}

/// Who hangs on a task of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Strangers, who must not be able to end the session: it starts anew however often it panics.
    Strangers,
    /// All transfers: where it cannot go on, the session ends in order.
    Transfers,
}

/// Starts a task that serves the session, and keeps it at work.
pub fn keep_up<W: Future<Output = ()> + 'static>(
    shared: &Rc<Shared>,
    what: &'static str,
    serves: Serves,
    mut work: impl FnMut(Rc<Shared>) -> W + 'static,
) -> JoinHandle<()> {
    let shared = shared.clone();
    tokio_uring::spawn(async move {
        kept_up(shared.clone(), what, serves, || work(shared.clone())).await;
    })
}

/// Keeps a task of the session at work until it ends by itself: after a panic it starts anew.
async fn kept_up<W: Future<Output = ()>>(
    shared: Rc<Shared>,
    what: &str,
    serves: Serves,
    start: impl FnMut() -> W,
) {
    let panics = Cell::new(0);
    let on_panic = || {
        panics.set(panics.get() + 1);
        count_panic(&shared, what);
        let goes_on = serves == Serves::Strangers || panics.get() <= RESTARTS_MAX;
        match goes_on {
            true => warn(&shared, panics.get(), &format!("{what} was broken off")),
            false => shared.fail(SessionError::new(
                format!("the session ended by an error in the program: {what} is broken off again and again"),
                "please report it with the log (-vv); what was verified is kept: run it again to go on",
            )),
        }
        goes_on
    };
    again_after_panic(on_panic, start).await;
}

/// The same where there is no session. `on_panic` is told of each panic, and false ends it.
pub async fn again_after_panic<W: Future<Output = ()>>(
    on_panic: impl Fn() -> bool,
    mut start: impl FnMut() -> W,
) {
    while caught(async { start().await }).await.is_err() {
        // Whoever is told may panic too.
        if !catch_unwind(AssertUnwindSafe(&on_panic)).unwrap_or(true) {
            return;
        }
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

/// Tells the user of a panic. Whoever found out how to cause one must not fill the log with them.
fn warn(shared: &Shared, count: u64, what: &str) {
    if count.is_power_of_two() {
        shared.emit(SessionEvent::Warning {
            info_hash: None,
            message: format!(
                "{what} by an error in the program, the {} so far",
                ordinal(count)
            ),
            hint: "please report it with the log (-vv)".to_owned(),
        });
    }
}

/// Runs a blocking call on a thread of its own. A panic of it is one of whoever waits.
pub async fn off_ring<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => resume_unwind(error.into_panic()),
    }
}

/// Another panic; how many there were.
pub fn count_panic(shared: &Shared, what: &str) -> u64 {
    let count = shared.panics.get() + 1;
    shared.panics.set(count);
    error!(panics = count, "an error in the program: {what}");
    count
}

fn ordinal(count: u64) -> String {
    let ending = match (count % 10, count % 100) {
        (1, rest) if rest != 11 => "st",
        (2, rest) if rest != 12 => "nd",
        (3, rest) if rest != 13 => "rd",
        _ => "th",
    };
    format!("{count}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(work)
    }

    #[test]
    fn a_panic_is_an_answer_before_and_after_a_wait() {
        assert_eq!(block_on(caught(async { 5 })), Ok(5));
        let at_once = caught(async { panic!("at once") });
        assert_eq!(block_on(at_once), Err::<(), _>(Panicked));
        let later = caught(async {
            tokio::task::yield_now().await;
            panic!("later");
        });
        assert_eq!(block_on(later), Err::<(), _>(Panicked));
    }

    #[test]
    fn what_the_work_held_is_dropped_with_it() {
        let held = std::rc::Rc::new(());
        let holder = held.clone();
        let work = caught(async move {
            let _holder = holder;
            tokio::task::yield_now().await;
            panic!("with something in hand");
        });
        assert_eq!(block_on(work), Err::<(), _>(Panicked));
        assert_eq!(std::rc::Rc::strong_count(&held), 1);
    }

    #[test]
    fn work_that_panics_starts_anew_until_it_ends_or_is_given_up() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (starts, told) = (Cell::new(0), Cell::new(0));
        let start = || {
            starts.set(starts.get() + 1);
            assert!(starts.get() > 1, "before the first wait");
            async {
                tokio::task::yield_now().await;
                assert!(starts.get() > 3, "later");
            }
        };
        let on_panic = || {
            told.set(told.get() + 1);
            assert!(told.get() > 1, "who is told panics");
            true
        };
        runtime.block_on(again_after_panic(on_panic, start));
        assert_eq!((starts.get(), told.get()), (4, 3));
        starts.set(0);
        runtime.block_on(again_after_panic(|| false, start));
        assert_eq!(starts.get(), 1);
    }

    #[test]
    fn counts_read_as_words() {
        let words = [1, 2, 3, 4, 11, 12, 13, 21, 112].map(ordinal);
        let expected = [
            "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th",
        ];
        assert_eq!(words, expected);
    }
}
