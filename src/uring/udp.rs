//! UDP sockets over the ring (layer 4).

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
    control: Control,
}

/// Room for two control messages, an address and a length, aligned as the kernel wants them.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// `linux/in6.h`; libc leaves it out.
const IPV6_MULTICAST_ALL: i32 = 29;
/// A header of 16 bytes and an `in6_pktinfo` of 20, padded; another header and an `int`, padded.
const CONTROL_BYTES: usize = 64;

/// One of this machine's addresses: the one that a datagram came to, and that the answer must come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    ip: IpAddr,
    /// Set for addresses that mean nothing without it (IPv6 link-local), else 0.
    interface: u32,
}

impl Local {
    /// An address of the network interface with that number.
    pub fn new(ip: IpAddr, interface: u32) -> Local {
        Local { ip, interface }
    }
}

/// A datagram that has come, or several of one sender that the kernel put together ([`Udp::gather`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes of it in the buffer.
    pub length: usize,
    /// The length of each datagram; the last one may be shorter. At least 1.
    pub segment_bytes: usize,
    pub from: SocketAddr,
    /// Known to a socket that is bound to all addresses.
    pub local: Option<Local>,
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
            control: Control([0; CONTROL_BYTES]),
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

    /// Asks for the control messages of what is received.
    fn with_control(mut self) -> Datagram {
        let message = &mut *self.message;
        message.header.msg_control = message.control.0.as_mut_ptr().cast();
        message.header.msg_controllen = CONTROL_BYTES;
        self
    }

    /// Has the kernel cut it into datagrams of that length.
    fn with_segments(self, segment_bytes: u16) -> Datagram {
        self.with_info(libc::SOL_UDP, libc::UDP_SEGMENT, segment_bytes)
    }

    /// Sends it from that address.
    fn with_local(self, local: Local) -> Datagram {
        match local.ip {
            IpAddr::V4(ip) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from(ip).to_be(),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.with_info(libc::IPPROTO_IP, libc::IP_PKTINFO, info)
            }
            IpAddr::V6(ip) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: ip.octets(),
                    },
                    ipi6_ifindex: local.interface,
                };
                self.with_info(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
            }
        }
    }

    /// Puts one more control message with this plain structure into the datagram.
    fn with_info<T: Copy>(mut self, level: i32, kind: i32, info: T) -> Datagram {
        let message = &mut *self.message;
        let bytes = std::mem::size_of::<T>() as u32;
        // SAFETY: plain arithmetic.
        let (length, space) = unsafe { (libc::CMSG_LEN(bytes), libc::CMSG_SPACE(bytes)) };
        let used = message.header.msg_controllen;
        assert!(used + space as usize <= CONTROL_BYTES);
        message.header.msg_control = message.control.0.as_mut_ptr().cast();
        message.header.msg_controllen = used + space as usize;
        // SAFETY: the control buffer is aligned, zeroed, owned by the message and, as was just looked at, has room for
        // one header and the structure behind what it holds; what it holds is a multiple of the alignment.
        unsafe {
            let next = message
                .control
                .0
                .as_mut_ptr()
                .add(used)
                .cast::<libc::cmsghdr>();
            (*next).cmsg_level = level;
            (*next).cmsg_type = kind;
            (*next).cmsg_len = length as usize;
            libc::CMSG_DATA(next).cast::<T>().write_unaligned(info);
        }
        self
    }

    /// The plain structure of a control message of what was received, if the kernel wrote one.
    fn info<T: Copy>(&self, level: i32, kind: i32) -> Option<T> {
        let header = &self.message.header;
        // SAFETY: plain arithmetic.
        let length = unsafe { libc::CMSG_LEN(std::mem::size_of::<T>() as u32) };
        // SAFETY: the kernel has set the length of what it wrote into the control buffer, and the macros stay within.
        let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
        // SAFETY: null, or a header within the buffer.
        while let Some(message) = unsafe { next.as_ref() } {
            if message.cmsg_level == level
                && message.cmsg_type == kind
                && message.cmsg_len >= length as usize
            {
                // SAFETY: level, type and length are those of this structure; any bytes are a valid one.
                return Some(unsafe { libc::CMSG_DATA(next).cast::<T>().read_unaligned() });
            }
            // SAFETY: as for the first.
            next = unsafe { libc::CMSG_NXTHDR(header, next) };
        }
        None
    }

    /// The address that what was received came to, if the kernel told.
    fn local(&self) -> Option<Local> {
        let v4 = self.info::<libc::in_pktinfo>(libc::IPPROTO_IP, libc::IP_PKTINFO);
        let v6 = || self.info::<libc::in6_pktinfo>(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
        let local = if let Some(info) = v4 {
            // Of a broadcast it is the address that would answer it.
            let ip = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr));
            Local {
                ip: ip.into(),
                interface: 0,
            }
        } else {
            let info = v6()?;
            let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            let interface = match ip.is_unicast_link_local() {
                true => info.ipi6_ifindex,
                false => 0,
            };
            Local {
                ip: ip.into(),
                interface,
            }
        };
        let is_usable = !local.ip.is_multicast() && !local.ip.is_unspecified();
        is_usable.then_some(local)
    }

    /// What an operation brought.
    fn received(self, result: io::Result<u32>) -> (io::Result<Received>, Vec<u8>) {
        if self.inner.is_closed.get() {
            let error = io::ErrorKind::ConnectionAborted.into();
            return (Err(error), self.buf);
        }
        let received = result.and_then(|n| {
            let n = usize::try_from(n).map_err(io::Error::other)?;
            let length = n.min(self.buf.len());
            Ok(Received {
                length,
                segment_bytes: self.segment_bytes(length),
                from: self.message.addr.to_addr()?,
                local: self.local(),
            })
        });
        (received, self.buf)
    }

    /// The length of each datagram of `length` bytes that were received together.
    fn segment_bytes(&self, length: usize) -> usize {
        let told = self.info::<i32>(libc::SOL_UDP, libc::UDP_GRO);
        let told = told.and_then(|bytes| usize::try_from(bytes).ok());
        told.filter(|bytes| (1..=length).contains(bytes))
            .unwrap_or(length.max(1))
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
        if addr.ip().is_unspecified() {
            // Else an answer may come from another address than the one that was asked, and be dropped.
            let (level, name) = match addr {
                SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
                SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
            };
            socket::set_int(&fd, level, name, 1)?;
        }
        socket::bind(&fd, &addr)?;
        let inner = Inner {
            fd,
            is_closed: Cell::new(false),
        };
        Ok(Udp {
            inner: Rc::new(inner),
        })
    }

    /// Binds the group's address and joins it on these network interfaces, by number; others may do so beside. What is sent
    /// to the group through other interfaces does not come.
    ///
    /// # Errors
    ///
    /// As socket(2), bind(2) and setsockopt(2): the group could be joined on none of the interfaces.
    pub fn bind_group(
        group: SocketAddr,
        interfaces: &[u32],
        options: &SocketOptions,
    ) -> io::Result<Udp> {
        let fd = socket::open(&group, Carrier::Udp, 0, options)?;
        socket::set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        if group.is_ipv4() {
            socket::set_int(&fd, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0)?;
        } else {
            socket::set_int(&fd, libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)?;
        }
        socket::bind(&fd, &group)?;
        let mut joined = Err(io::ErrorKind::AddrNotAvailable.into());
        for interface in interfaces {
            let result = socket::join(&fd, group.ip(), *interface);
            if joined.is_err() {
                joined = result;
            }
        }
        joined?;
        let is_closed = Cell::new(false);
        Ok(Udp {
            inner: Rc::new(Inner { fd, is_closed }),
        })
    }

    /// The address that datagrams to `to` leave from. Nothing is sent.
    ///
    /// # Errors
    ///
    /// As socket(2), bind(2) and connect(2): nothing leads there.
    pub fn source_towards(to: SocketAddr, options: &SocketOptions) -> io::Result<IpAddr> {
        let fd = socket::open(&to, Carrier::Udp, 0, options)?;
        if let Some(ip) = options.bind {
            socket::bind(&fd, &SocketAddr::new(ip, 0))?;
        }
        socket::connect(&fd, &to)?;
        Ok(socket::local_addr(&fd)?.ip())
    }

    /// From now on datagrams of one sender may come together (UDP_GRO), and those that are too long for the path are lost
    /// rather than cut apart by the kernel (IP_PMTUDISC_PROBE): for a protocol that finds out what the path takes.
    ///
    /// # Errors
    ///
    /// As setsockopt(2).
    pub fn gather(&self, family: IpAddr, buffer_bytes: i32) -> io::Result<()> {
        let fd = &self.inner.fd;
        socket::set_int(fd, libc::SOL_UDP, libc::UDP_GRO, 1)?;
        socket::set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, buffer_bytes)?;
        socket::set_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, buffer_bytes)?;
        match family {
            IpAddr::V4(_) => {
                let how = libc::IP_PMTUDISC_PROBE;
                socket::set_int(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, how)
            }
            IpAddr::V6(_) => {
                let how = libc::IPV6_PMTUDISC_PROBE;
                socket::set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, how)
            }
        }
    }

    /// Sends datagrams of that length, one behind the other in `buf`, the last one may be shorter; from where an earlier
    /// one came to, if that is known.
    ///
    /// # Errors
    ///
    /// As sendmsg(2).
    pub async fn send_segments(
        &self,
        buf: Vec<u8>,
        segment_bytes: usize,
        from: Option<Local>,
        to: SocketAddr,
    ) -> (io::Result<()>, Vec<u8>) {
        let is_one = buf.len() <= segment_bytes;
        let mut datagram = Datagram::new(&self.inner, buf, RawAddr::from(&to));
        if let Some(from) = from {
            datagram = datagram.with_local(from);
        }
        if !is_one {
            let segment_bytes = u16::try_from(segment_bytes).unwrap_or(u16::MAX);
            datagram = datagram.with_segments(segment_bytes);
        }
        self.send(datagram).await
    }

    /// Sends one datagram from one of this machine's addresses, through its network interface.
    ///
    /// # Errors
    ///
    /// As sendmsg(2).
    pub async fn send_from(&self, buf: Vec<u8>, from: Local, to: SocketAddr) -> io::Result<()> {
        let datagram = Datagram::new(&self.inner, buf, RawAddr::from(&to));
        self.send(datagram.with_local(from)).await.0
    }

    /// Sends one datagram.
    ///
    /// # Errors
    ///
    /// As sendmsg(2).
    pub async fn send_to(&self, buf: Vec<u8>, addr: SocketAddr) -> (io::Result<()>, Vec<u8>) {
        self.send(Datagram::new(&self.inner, buf, RawAddr::from(&addr)))
            .await
    }

    /// Answers a datagram: to where it came from, from where it came to.
    ///
    /// # Errors
    ///
    /// As sendmsg(2).
    pub async fn answer(&self, buf: Vec<u8>, asked: &Received) -> (io::Result<()>, Vec<u8>) {
        let datagram = Datagram::new(&self.inner, buf, RawAddr::from(&asked.from));
        let datagram = match asked.local {
            Some(local) => datagram.with_local(local),
            None => datagram,
        };
        self.send(datagram).await
    }

    async fn send(&self, datagram: Datagram) -> (io::Result<()>, Vec<u8>) {
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
    pub async fn recv_from(&self, buf: Vec<u8>) -> (io::Result<Received>, Vec<u8>) {
        if self.inner.is_closed.get() {
            return (Err(io::ErrorKind::ConnectionAborted.into()), buf);
        }
        let datagram = Datagram::new(&self.inner, buf, RawAddr::empty()).with_control();
        // SAFETY: the stored data owns the socket, the boxed message and the bytes it points to.
        let op = unsafe {
            op::submit(datagram, |d| {
                opcode::RecvMsg::new(d.fd(), &raw mut d.message.header).build()
            })
        };
        let (result, datagram) = op.await;
        datagram.received(result)
    }

    /// Receives as [`Udp::recv_from`] does, without a turn of the ring: what has come already.
    ///
    /// # Errors
    ///
    /// As recvmsg(2): WouldBlock when nothing has come.
    pub fn recv_now(&self, buf: Vec<u8>) -> (io::Result<Received>, Vec<u8>) {
        let mut datagram = Datagram::new(&self.inner, buf, RawAddr::empty()).with_control();
        let fd = self.inner.fd.as_raw_fd();
        // SAFETY: the message, and all that it points to, belong to the datagram, which outlives the call.
        let got = unsafe {
            libc::recvmsg(
                fd,
                &raw mut datagram.message.header,
                libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
            )
        };
        let result = u32::try_from(got).map_err(|_| io::Error::last_os_error());
        datagram.received(result)
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
