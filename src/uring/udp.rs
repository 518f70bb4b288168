//! UDP sockets over the ring (layer 4).

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::{opcode, types};

use super::op;
use super::socket::{self, Carrier, RawAddr, SocketOptions};

struct Inner {
    fd: OwnedFd,
    is_closed: Cell<bool>,
}

/// An unconnected UDP socket; clones share it.
#[derive(Clone)]
pub struct Udp {
    inner: Rc<Inner>,
}

/// What SENDMSG and RECVMSG point to; boxed, so that it stays where it is.
struct Message {
    header: libc::msghdr,
    iovec: libc::iovec,
    addr: RawAddr,
}

/// Stored data of one operation.
struct Datagram {
    inner: Rc<Inner>,
    message: Box<Message>,
    buf: Vec<u8>,
}

impl Datagram {
    fn new(inner: &Rc<Inner>, buf: Vec<u8>, addr: RawAddr) -> Datagram {
        let message = Message {
            // SAFETY: zero bytes are a valid msghdr.
            header: unsafe { std::mem::zeroed() },
            iovec: libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            },
            addr,
        };
        let mut datagram = Datagram {
            inner: Rc::clone(inner),
            message: Box::new(message),
            buf,
        };
        let message = &mut *datagram.message;
        message.iovec.iov_base = datagram.buf.as_mut_ptr().cast();
        message.iovec.iov_len = datagram.buf.len();
        message.header.msg_iov = &raw mut message.iovec;
        message.header.msg_iovlen = 1;
        message.header.msg_name = message.addr.as_mut_ptr().cast();
        message.header.msg_namelen = message.addr.length;
        datagram
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.inner.fd.as_raw_fd())
    }
}

impl Udp {
    /// Binds `addr`; IPv6 sockets take IPv6 only.
    ///
    /// # Errors
    ///
    /// As socket(2) and bind(2).
    pub fn bind(addr: SocketAddr, options: &SocketOptions) -> io::Result<Udp> {
        let fd = socket::open(&addr, Carrier::Udp, 0, options)?;
        socket::bind(&fd, &addr)?;
        let inner = Inner {
            fd,
            is_closed: Cell::new(false),
        };
        Ok(Udp {
            inner: Rc::new(inner),
        })
    }

    /// Sends one datagram.
    ///
    /// # Errors
    ///
    /// As sendmsg(2).
    pub async fn send_to(&self, buf: Vec<u8>, addr: SocketAddr) -> (io::Result<()>, Vec<u8>) {
        let datagram = Datagram::new(&self.inner, buf, RawAddr::from(&addr));
        // SAFETY: the stored data owns the socket, the boxed message and the bytes it points to.
        let op = unsafe {
            op::submit(datagram, |d| {
                opcode::SendMsg::new(d.fd(), &raw const d.message.header)
                    .flags(libc::MSG_NOSIGNAL as u32)
                    .build()
            })
        };
        let (result, datagram) = op.await;
        (result.map(drop), datagram.buf)
    }

    /// Receives one datagram into the bytes of `buf` (its length, not its capacity); what does not
    /// fit is cut off. A dropped future loses the datagram that comes next.
    ///
    /// # Errors
    ///
    /// As recvmsg(2); ConnectionAborted after [`Udp::close`].
    pub async fn recv_from(&self, buf: Vec<u8>) -> (io::Result<(usize, SocketAddr)>, Vec<u8>) {
        if self.inner.is_closed.get() {
            return (Err(io::ErrorKind::ConnectionAborted.into()), buf);
        }
        let datagram = Datagram::new(&self.inner, buf, RawAddr::empty());
        // SAFETY: the stored data owns the socket, the boxed message and the bytes it points to.
        let op = unsafe {
            op::submit(datagram, |d| {
                opcode::RecvMsg::new(d.fd(), &raw mut d.message.header).build()
            })
        };
        let (result, datagram) = op.await;
        if datagram.inner.is_closed.get() {
            let error = io::ErrorKind::ConnectionAborted.into();
            return (Err(error), datagram.buf);
        }
        let received = result.and_then(|n| {
            let n = usize::try_from(n).map_err(io::Error::other)?;
            Ok((n.min(datagram.buf.len()), datagram.message.addr.to_addr()?))
        });
        (received, datagram.buf)
    }

    /// The address it is bound to, with the port the kernel chose for port 0.
    ///
    /// # Errors
    ///
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        socket::local_addr(&self.inner.fd)
    }

    /// Ends it: a pending receive returns.
    pub fn close(&self) {
        self.inner.is_closed.set(true);
        // ENOTCONN on an unconnected socket, and Linux wakes its readers all the same.
        let _ = socket::shutdown(&self.inner.fd);
    }
}
