//! TCP listening sockets (layer 4): one per address family, without SO_REUSEPORT.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::socket::{self, Carrier, SocketOptions};
use super::stream::{Stream, poll};

/// Connections the kernel keeps ready (it cuts this to net.core.somaxconn).
const BACKLOG: i32 = 1024;
/// Connections taken without a turn of the ring: a burst of accepts must not hold up the peers.
const ACCEPTS_MAX: u32 = 16;

struct Inner {
    fd: OwnedFd,
    is_closed: Cell<bool>,
    accepts: Cell<u32>,
}

/// A listening socket; clones share it.
#[derive(Clone)]
pub struct Listener {
    inner: Rc<Inner>,
}

impl Listener {
    /// Listens on `addr`; IPv6 sockets take IPv6 only. Options are inherited by what is accepted.
    ///
    /// # Errors
    ///
    /// As socket(2), bind(2), listen(2): AddrInUse when another process listens there.
    pub fn bind(addr: SocketAddr, options: &SocketOptions) -> io::Result<Listener> {
        let fd = socket::open(&addr, Carrier::Tcp, libc::SOCK_NONBLOCK, options)?;
        socket::set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        socket::bind(&fd, &addr)?;
        socket::listen(&fd, BACKLOG)?;
        let inner = Inner {
            fd,
            is_closed: Cell::new(false),
            accepts: Cell::new(0),
        };
        Ok(Listener {
            inner: Rc::new(inner),
        })
    }

    /// The next connection. The future may be dropped: no connection is lost with it.
    ///
    /// # Errors
    ///
    /// As accept(2): on EMFILE or ENFILE wait before the next call. ConnectionAborted after
    /// [`Listener::close`].
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        loop {
            if self.inner.is_closed.get() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            if self.inner.accepts.get() < ACCEPTS_MAX {
                match socket::accept(&self.inner.fd) {
                    Ok((fd, addr)) => {
                        self.inner.accepts.set(self.inner.accepts.get() + 1);
                        return Ok((Stream::from_fd(fd), addr));
                    }
                    // Gone before it was accepted: the next one.
                    Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
                    Err(_) => {}
                }
            }
            self.inner.accepts.set(0);
            poll(Rc::clone(&self.inner), libc::POLLIN, |inner| &inner.fd).await?;
        }
    }

    /// The address it listens on, with the port the kernel chose for port 0.
    ///
    /// # Errors
    ///
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        socket::local_addr(&self.inner.fd)
    }

    /// Refuses further connections; a pending accept returns. The port is free once all clones are gone.
    pub fn close(&self) {
        self.inner.is_closed.set(true);
        // Wakes the pending poll with POLLHUP.
        let _ = socket::shutdown(&self.inner.fd);
    }
}
