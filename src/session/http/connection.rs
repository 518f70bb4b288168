//! One connection of the client, with TLS in it or not. Layer 5.
//!
//! A handshake's steps read the system's store and judge signatures, so they are made on threads that may block. What
//! follows is deciphered here: that costs no more than the copy of what came.

use std::io;
use std::net::IpAddr;

use tracing::debug;

use super::{FetchError, RECV_BYTES, io_error};
use crate::session::deadline::Deadline;
use crate::uring::stream::Stream;
use crate::uring::tls::{Client, Step, Tls, TlsError};
use crate::wire::url::Host;

/// A connection. Shut down when dropped, so that an abandoned exchange leaves no socket behind.
pub(super) struct Connection {
    stream: Stream,
    tls: Option<Box<Client>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stream.shutdown();
    }
}

impl Connection {
    /// What is said goes out as it is.
    pub const fn plain(stream: Stream) -> Connection {
        Connection { stream, tls: None }
    }

    /// The same connection with TLS in it, once the other end has shown that it is this host. The future may be dropped.
    ///
    /// # Errors
    /// It has not, or not in time.
    pub async fn secured(
        mut self,
        tls: &Tls,
        host: &Host,
        port: u16,
        deadline: &Deadline,
    ) -> Result<Connection, FetchError> {
        let failed = |source| FetchError::Tls {
            host: host.to_string(),
            source,
        };
        let name = match host {
            Host::Name(name) => name.clone(),
            Host::Ip(ip) => ip.to_string(),
        };
        let of = tls.clone();
        let made = off_thread(deadline, move || of.client(&name, port)).await?;
        let mut client = made.map_err(failed)?;
        loop {
            let stepped = off_thread(deadline, move || {
                let step = client.handshake();
                (client, step)
            });
            let step;
            (client, step) = stepped.await?;
            let out = client.take_out();
            let sent = match out.is_empty() {
                true => Ok(()),
                // After an error it tells the server why, if it listens.
                false => deadline.send(&self.stream, out).await,
            };
            if step.map_err(failed)? == Step::Done {
                break;
            }
            sent.map_err(io_error)?;
            // What was there has been used up, whatever it looked like.
            loop {
                let (result, bytes) = deadline.recv(&self.stream, Vec::new(), RECV_BYTES).await;
                match result.map_err(io_error)? {
                    0 => client.end(),
                    _ => client.feed(&bytes).map_err(failed)?,
                }
                if client.has_record() {
                    break;
                }
            }
        }
        self.tls = Some(Box::new(client));
        Ok(self)
    }

    /// Sends all bytes.
    ///
    /// # Errors
    /// The connection broke, or not in time.
    pub async fn send(&mut self, bytes: Vec<u8>, deadline: &Deadline) -> Result<(), FetchError> {
        let bytes = match &mut self.tls {
            None => bytes,
            Some(tls) => {
                tls.write(&bytes).map_err(broken)?;
                tls.take_out()
            }
        };
        deadline.send(&self.stream, bytes).await.map_err(io_error)
    }

    /// Receives behind the bytes of `buf`, about [`RECV_BYTES`] at most; 0 is the end.
    ///
    /// # Errors
    /// The connection broke, or not in time.
    pub async fn recv(
        &mut self,
        mut buf: Vec<u8>,
        deadline: &Deadline,
    ) -> Result<(usize, Vec<u8>), FetchError> {
        let Some(tls) = &mut self.tls else {
            let (result, buf) = deadline.recv(&self.stream, buf, RECV_BYTES).await;
            return Ok((result.map_err(io_error)?, buf));
        };
        let before = buf.len();
        loop {
            let is_open = tls.read(&mut buf).map_err(broken)?;
            if buf.len() > before || !is_open {
                return Ok((buf.len() - before, buf));
            }
            let (result, bytes) = deadline.recv(&self.stream, Vec::new(), RECV_BYTES).await;
            match result.map_err(io_error)? {
                0 => tls.end(),
                _ => tls.feed(&bytes).map_err(broken)?,
            }
        }
    }

    /// What received bytes say: themselves, or what was in them, put into `plain`. False when no more will come.
    ///
    /// # Errors
    /// The other end broke the rules.
    pub fn open<'a>(
        &mut self,
        bytes: &'a [u8],
        plain: &'a mut Vec<u8>,
    ) -> Result<(&'a [u8], bool), FetchError> {
        let Some(tls) = &mut self.tls else {
            return Ok((bytes, !bytes.is_empty()));
        };
        match bytes.is_empty() {
            true => tls.end(),
            false => tls.feed(bytes).map_err(broken)?,
        }
        plain.clear();
        let is_open = tls.read(plain).map_err(broken)?;
        Ok((plain.as_slice(), is_open))
    }

    /// What the bytes come on.
    pub const fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The other end.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        self.stream.peer_addr().ok().map(|addr| addr.ip())
    }

    /// Our own end.
    pub fn local_ip(&self) -> Option<IpAddr> {
        self.stream.local_addr().ok().map(|addr| addr.ip())
    }
}

/// Runs work on a thread that may block, for as long as there is time; what it makes after that is dropped.
async fn off_thread<T: Send + 'static>(
    deadline: &Deadline,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FetchError> {
    let working = tokio::task::spawn_blocking(work);
    let done = async { working.await.map_err(io::Error::other) };
    deadline.run(done).await.map_err(io_error)
}

fn broken(source: TlsError) -> FetchError {
    debug!(%source, "TLS");
    FetchError::BrokenTls(source)
}
