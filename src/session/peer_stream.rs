//! The byte stream to a peer, whatever carries it: TCP or uTP. Layer 5.
//!
//! The rules are those of [`Stream`]: one reader and one writer, and to give up is [`PeerStream::shutdown`].

use std::io;
use std::ops::Range;

use super::utp::UtpStream;
use crate::uring::buffers::Segment;
use crate::uring::stream::{Outgoing, Stream};

/// A connected stream; clones share it.
#[derive(Clone)]
pub enum PeerStream {
    Tcp(Stream),
    Utp(UtpStream),
}

impl PeerStream {
    /// Whether bytes are copied by the program, so that they must lie in memory of ours.
    pub const fn is_utp(&self) -> bool {
        matches!(self, PeerStream::Utp(_))
    }

    /// The stream that receives into several places at once; uTP's bytes are copied by the program anyway.
    pub const fn tcp(&self) -> Option<&Stream> {
        match self {
            PeerStream::Tcp(stream) => Some(stream),
            PeerStream::Utp(_) => None,
        }
    }

    /// As [`Stream::recv_now`].
    ///
    /// # Errors
    /// WouldBlock when there is nothing; whatever ended the connection.
    pub async fn recv_now(
        &self,
        segment: Segment,
        range: Range<usize>,
    ) -> (io::Result<usize>, Segment) {
        match self {
            PeerStream::Tcp(stream) => stream.recv_now(segment, range).await,
            PeerStream::Utp(stream) => stream.recv_now(segment, range),
        }
    }

    /// As [`Stream::readable`].
    ///
    /// # Errors
    /// When the ring refuses.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            PeerStream::Tcp(stream) => stream.readable().await,
            PeerStream::Utp(stream) => {
                stream.readable().await;
                Ok(())
            }
        }
    }

    /// As [`Stream::writable`].
    ///
    /// # Errors
    /// When the ring refuses.
    pub async fn writable(&self) -> io::Result<()> {
        match self {
            PeerStream::Tcp(stream) => stream.writable().await,
            PeerStream::Utp(stream) => {
                stream.writable().await;
                Ok(())
            }
        }
    }

    /// As [`Stream::send_all`].
    ///
    /// # Errors
    /// Whatever ended the connection.
    pub async fn send_all(&self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        match self {
            PeerStream::Tcp(stream) => stream.send_all(buf).await,
            PeerStream::Utp(stream) => (stream.send_all(&buf).await, buf),
        }
    }

    /// As [`Stream::send_run`]; over uTP none of it may lie in a file.
    ///
    /// # Errors
    /// As there.
    pub async fn send_run(&self, out: Outgoing) -> (io::Result<()>, Outgoing) {
        match self {
            PeerStream::Tcp(stream) => stream.send_run(out).await,
            PeerStream::Utp(stream) => (stream.send_run(&out).await, out),
        }
    }

    /// As [`Stream::send_run_now`]; over uTP none of it may lie in a file.
    ///
    /// # Errors
    /// As there.
    pub async fn send_run_now(&self, out: Outgoing, first: usize) -> (io::Result<usize>, Outgoing) {
        match self {
            PeerStream::Tcp(stream) => stream.send_run_now(out, first).await,
            PeerStream::Utp(stream) => (stream.send_run_now(&out, first), out),
        }
    }

    /// Ends both directions at once; what was taken to be sent is still sent.
    pub fn shutdown(&self) {
        match self {
            PeerStream::Tcp(stream) => stream.shutdown(),
            PeerStream::Utp(stream) => stream.shutdown(),
        }
    }

    /// Ends our own direction; receiving goes on.
    pub fn shutdown_write(&self) {
        match self {
            PeerStream::Tcp(stream) => stream.shutdown_write(),
            PeerStream::Utp(stream) => stream.shutdown_write(),
        }
    }
}
