//! Socket options and addresses, shared by streams, listeners and UDP (layer 4).

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What a socket is given before it is bound or connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Source address of outgoing connections.
    pub bind: Option<IpAddr>,
    /// Network interface, by name (SO_BINDTODEVICE): nothing goes out elsewhere.
    pub bind_device: Option<String>,
    /// SO_SNDBUF; `None` leaves the kernel's own tuning on.
    pub send_buffer_bytes: Option<u32>,
    /// SO_RCVBUF; `None` leaves the kernel's own tuning on.
    pub receive_buffer_bytes: Option<u32>,
    /// TCP_USER_TIMEOUT: how long sent bytes may stay unacknowledged.
    pub user_timeout: Option<Duration>,
    /// TCP_NOTSENT_LOWAT: bytes queued and not yet sent at which the socket counts as full.
    pub notsent_lowat_bytes: Option<u32>,
    /// TCP_CONGESTION, for example `cubic` or `bbr`.
    pub congestion: Option<String>,
    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
    /// TCP_NODELAY.
    pub is_nodelay: bool,
}

impl Default for SocketOptions {
    fn default() -> SocketOptions {
        SocketOptions {
            bind: None,
            bind_device: None,
            send_buffer_bytes: None,
            receive_buffer_bytes: None,
            user_timeout: None,
            notsent_lowat_bytes: None,
            congestion: None,
            connect_timeout: Duration::from_secs(10),
            is_nodelay: true,
        }
    }
}

/// Whether a socket carries a byte stream or datagrams.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    Tcp,
    Udp,
}

/// Makes a socket of the address's family with CLOEXEC and `flags`, and sets its options.
pub(crate) fn open(
    addr: &SocketAddr,
    carrier: Carrier,
    flags: i32,
    options: &SocketOptions,
) -> io::Result<OwnedFd> {
    let domain = match addr {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let kind = match carrier {
        Carrier::Tcp => libc::SOCK_STREAM,
        Carrier::Udp => libc::SOCK_DGRAM,
    };
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC | flags, 0) })?;
    // SAFETY: the kernel has just made this descriptor and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if addr.is_ipv6() {
        set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    if let Some(device) = &options.bind_device {
        set_bytes(
            &fd,
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            device.as_bytes(),
        )?;
    }
    if let Some(bytes) = options.send_buffer_bytes {
        set_int(&fd, libc::SOL_SOCKET, libc::SO_SNDBUF, clamped(bytes))?;
    }
    if let Some(bytes) = options.receive_buffer_bytes {
        set_int(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, clamped(bytes))?;
    }
    if carrier == Carrier::Tcp {
        set_tcp(&fd, options)?;
    }
    Ok(fd)
}

/// Sets the TCP options; accepted sockets inherit all of them from their listener.
fn set_tcp(fd: &OwnedFd, options: &SocketOptions) -> io::Result<()> {
    if options.is_nodelay {
        set_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    }
    if let Some(timeout) = options.user_timeout {
        set_user_timeout(fd, timeout)?;
    }
    if let Some(bytes) = options.notsent_lowat_bytes {
        set_int(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            clamped(bytes),
        )?;
    }
    if let Some(name) = &options.congestion {
        set_bytes(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, name.as_bytes())?;
    }
    Ok(())
}

pub(crate) fn set_user_timeout(fd: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, clamped(ms))
}

fn clamped(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

pub(crate) fn set_int(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_bytes(fd, level, name, &value.to_ne_bytes())
}

fn set_bytes(fd: &OwnedFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes at the slice and keeps nothing.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), length) })?;
    Ok(())
}

/// Takes part in a multicast group on the network interface with that number.
pub(crate) fn join(fd: &OwnedFd, group: IpAddr, interface: u32) -> io::Result<()> {
    match group {
        IpAddr::V4(group) => {
            // `struct ip_mreqn`: group, own address (any), interface.
            let mut request = [0; 12];
            request[..4].copy_from_slice(&group.octets());
            request[8..].copy_from_slice(&interface.to_ne_bytes());
            set_bytes(fd, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &request)
        }
        IpAddr::V6(group) => {
            // `struct ipv6_mreq`: group, interface.
            let mut request = [0; 20];
            request[..16].copy_from_slice(&group.octets());
            request[16..].copy_from_slice(&interface.to_ne_bytes());
            set_bytes(fd, libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, &request)
        }
    }
}

/// Reads an option into a plain C structure; a shorter answer leaves zeros.
///
/// # Safety
///
/// All-zero bytes and any bytes the kernel writes must be a valid `T`.
pub(crate) unsafe fn get<T>(fd: &OwnedFd, level: i32, name: i32) -> io::Result<T> {
    // SAFETY: zero bytes are a valid T by this function's contract.
    let mut value: T = unsafe { mem::zeroed() };
    let mut length = libc::socklen_t::try_from(mem::size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, the size of the value.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &mut length,
        )
    })?;
    Ok(value)
}

/// Takes the pending error of a socket (SO_ERROR).
pub(crate) fn take_error(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: any integer is a valid i32.
    match unsafe { get::<i32>(fd, libc::SOL_SOCKET, libc::SO_ERROR)? } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

pub(crate) fn bind(fd: &OwnedFd, addr: &SocketAddr) -> io::Result<()> {
    let raw = RawAddr::from(addr);
    // SAFETY: the address structure is whole and the kernel only reads it.
    check(unsafe { libc::bind(fd.as_raw_fd(), raw.as_ptr(), raw.length) })?;
    Ok(())
}

pub(crate) fn connect(fd: &OwnedFd, addr: &SocketAddr) -> io::Result<()> {
    let raw = RawAddr::from(addr);
    // SAFETY: the address structure is whole and the kernel only reads it.
    check(unsafe { libc::connect(fd.as_raw_fd(), raw.as_ptr(), raw.length) })?;
    Ok(())
}

pub(crate) fn listen(fd: &OwnedFd, backlog: i32) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    Ok(())
}

/// Accepts one connection as a blocking CLOEXEC socket; WouldBlock when there is none.
pub(crate) fn accept(fd: &OwnedFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let mut raw = RawAddr::empty();
    // SAFETY: the kernel writes at most `length` bytes, the size of the address storage.
    let accepted = check(unsafe {
        libc::accept4(
            fd.as_raw_fd(),
            raw.as_mut_ptr(),
            &mut raw.length,
            libc::SOCK_CLOEXEC,
        )
    })?;
    // SAFETY: the kernel has just made this descriptor and nobody else owns it.
    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
    Ok((accepted, raw.to_addr()?))
}

/// Ends both directions; pending operations on the socket complete.
pub(crate) fn shutdown(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) })?;
    Ok(())
}

pub(crate) fn local_addr(fd: &OwnedFd) -> io::Result<SocketAddr> {
    let mut raw = RawAddr::empty();
    // SAFETY: the kernel writes at most `length` bytes, the size of the address storage.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), raw.as_mut_ptr(), &mut raw.length) })?;
    raw.to_addr()
}

pub(crate) fn peer_addr(fd: &OwnedFd) -> io::Result<SocketAddr> {
    let mut raw = RawAddr::empty();
    // SAFETY: the kernel writes at most `length` bytes, the size of the address storage.
    check(unsafe { libc::getpeername(fd.as_raw_fd(), raw.as_mut_ptr(), &mut raw.length) })?;
    raw.to_addr()
}

/// Clears O_NONBLOCK: the ring waits by itself.
pub(crate) fn set_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes an integer.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) })?;
    Ok(())
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A socket address as the kernel wants it.
pub(crate) struct RawAddr {
    storage: libc::sockaddr_storage,
    pub(crate) length: libc::socklen_t,
}

impl RawAddr {
    /// Room for any address.
    pub(crate) fn empty() -> RawAddr {
        RawAddr {
            // SAFETY: zero bytes are a valid sockaddr_storage (AF_UNSPEC).
            storage: unsafe { mem::zeroed() },
            length: mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t,
        }
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    /// # Errors
    ///
    /// When the family is neither AF_INET nor AF_INET6.
    pub(crate) fn to_addr(&self) -> io::Result<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the storage is larger than, and aligned for, any address; the family says which.
                let v4 = unsafe { &*self.as_ptr().cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Ok(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let v6 = unsafe { &*self.as_ptr().cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Ok(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "address of an unknown family",
            )),
        }
    }
}

impl From<&SocketAddr> for RawAddr {
    fn from(addr: &SocketAddr) -> RawAddr {
        let mut raw = RawAddr::empty();
        match addr {
            SocketAddr::V4(addr) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: addr.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from(*addr.ip()).to_be(),
                    },
                    sin_zero: [0; 8],
                };
                raw.length = mem::size_of_val(&v4) as libc::socklen_t;
                // SAFETY: the storage is larger than, and aligned for, any address.
                unsafe { raw.as_mut_ptr().cast::<libc::sockaddr_in>().write(v4) };
            }
            SocketAddr::V6(addr) => {
                let v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: addr.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: addr.ip().octets(),
                    },
                    sin6_scope_id: addr.scope_id(),
                };
                raw.length = mem::size_of_val(&v6) as libc::socklen_t;
                // SAFETY: as above.
                unsafe { raw.as_mut_ptr().cast::<libc::sockaddr_in6>().write(v6) };
            }
        }
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernel_form() {
        for text in ["1.2.3.4:5", "[::1]:65535", "[fe80::1%7]:6881"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddr::from(&addr).to_addr().unwrap(), addr);
        }
        assert!(RawAddr::empty().to_addr().is_err());
    }
}
