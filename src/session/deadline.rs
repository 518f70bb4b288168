//! A total deadline that can be moved nearer while it is waited for. Layer 5.
//!
//! An operation on the ring must not be walked away from: when the deadline passes, its socket is shut down and the
//! operation awaited. [`Deadline::send`] and [`Deadline::recv`] do that.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::uring::stream::Stream;

/// A moment by which a whole exchange must be over; clones share it.
#[derive(Clone, Debug)]
pub struct Deadline {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    at: Cell<Instant>,
    moved: Notify,
}

impl Deadline {
    /// That long from now.
    pub fn after(duration: Duration) -> Deadline {
        Deadline {
            inner: Rc::new(Inner {
                at: Cell::new(Instant::now() + duration),
                moved: Notify::new(),
            }),
        }
    }

    /// Moves the deadline to that long from now, if that is nearer.
    pub fn shorten_to(&self, duration: Duration) {
        let at = Instant::now() + duration;
        if at < self.inner.at.get() {
            self.inner.at.set(at);
            self.inner.moved.notify_waiters();
        }
    }

    /// What is left; zero once it has passed.
    pub fn remaining(&self) -> Duration {
        self.inner
            .at
            .get()
            .saturating_duration_since(Instant::now())
    }

    /// Returns once the deadline has passed.
    pub async fn passed(&self) {
        loop {
            let mut moved = pin!(self.inner.moved.notified());
            moved.as_mut().enable();
            let left = self.remaining();
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = moved => {}
            }
        }
    }

    /// Runs a future that may be dropped at any time (not an operation on the ring).
    ///
    /// # Errors
    /// TimedOut when the deadline passes first.
    pub async fn run<T>(&self, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            biased;
            result = future => result,
            () = self.passed() => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Receives behind the bytes of `buf`, at most `max_bytes`; shuts the stream down when the deadline passes first.
    ///
    /// # Errors
    /// As recv(2), and TimedOut.
    pub async fn recv(
        &self,
        stream: &Stream,
        buf: Vec<u8>,
        max_bytes: usize,
    ) -> (io::Result<usize>, Vec<u8>) {
        let mut receive = pin!(stream.recv_vec(buf, max_bytes));
        tokio::select! {
            biased;
            done = &mut receive => return done,
            () = self.passed() => stream.shutdown(),
        }
        let (_, buf) = receive.await;
        (Err(io::ErrorKind::TimedOut.into()), buf)
    }

    /// Waits for something to receive, holding no buffer; shuts the stream down when the deadline passes first.
    ///
    /// # Errors
    /// TimedOut, or the ring refuses.
    pub async fn readable(&self, stream: &Stream) -> io::Result<()> {
        let mut readable = pin!(stream.readable());
        tokio::select! {
            biased;
            done = &mut readable => return done,
            () = self.passed() => stream.shutdown(),
        }
        let _ = readable.await;
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Sends all bytes; shuts the stream down when the deadline passes first.
    ///
    /// # Errors
    /// As send(2), and TimedOut.
    pub async fn send(&self, stream: &Stream, bytes: Vec<u8>) -> io::Result<()> {
        let mut send = pin!(stream.send_all(bytes));
        tokio::select! {
            biased;
            (result, _) = &mut send => return result,
            () = self.passed() => stream.shutdown(),
        }
        let _ = send.await;
        Err(io::ErrorKind::TimedOut.into())
    }
}
