//! What a panic ends: the connection or the torrent whose task it was, and nothing else. It is counted and logged.
//! Layer 5.
//!
//! A panic is a mistake of ours. The task's own state is unknown afterwards and goes with it; what tasks share is only
//! touched in calls that end before anybody else runs, so it is whole as soon as the panic has passed through them.

use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use tracing::error;

use super::config::SessionEvent;
use super::shared::Shared;

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
        let count = count_panic(shared, "a connection");
        // Whoever found out how to cause one must not fill the log with them.
        if count.is_power_of_two() {
            shared.emit(SessionEvent::Warning {
                info_hash: None,
                message: format!(
                    "a connection ended by an error in the program, the {} so far",
                    ordinal(count)
                ),
                hint: "please report it with the log (-vv)".to_owned(),
            });
        }
    }
    result
}

/// Another panic; how many there were.
pub fn count_panic(shared: &Shared, what: &str) -> u64 {
    let count = shared.panics.get() + 1;
    shared.panics.set(count);
    error!(panics = count, "{what} ended by an error in the program");
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
    fn counts_read_as_words() {
        let words = [1, 2, 3, 4, 11, 12, 13, 21, 112].map(ordinal);
        let expected = [
            "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th",
        ];
        assert_eq!(words, expected);
    }
}
