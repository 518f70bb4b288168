//! Opening the tracker's sockets: the same port in TCP and UDP. Layer 5.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::PORT_DEFAULT;
use crate::session::error::SessionError;
use crate::uring::listener::Listener;
use crate::uring::socket::SocketOptions;
use crate::uring::udp::Udp;

/// Tries to find a port that is free in TCP and in UDP.
const ANY_PORT_TRIES: u32 = 50;

/// Every address listened on.
pub struct Sockets {
    pub pairs: Vec<(Listener, Udp)>,
}

impl Sockets {
    /// Ends all of them: whoever waits on one is told.
    pub fn close(&self) {
        for (listener, udp) in &self.pairs {
            listener.close();
            udp.close();
        }
    }
}

/// Listens on these addresses, or on the default port of both families.
///
/// # Errors
/// One of them is taken or not of this machine.
pub fn bind(listen: &[SocketAddr]) -> Result<Sockets, SessionError> {
    let families: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let default = families.map(|ip| SocketAddr::new(ip, PORT_DEFAULT));
    let addrs = if listen.is_empty() { &default } else { listen };
    let mut sockets = Sockets { pairs: Vec::new() };
    for addr in addrs {
        match bind_any(*addr) {
            Ok(pair) => sockets.pairs.push(pair),
            // A kernel without IPv6 still has IPv4.
            Err((error, _)) if listen.is_empty() && addr.is_ipv6() && is_no_family(&error) => {}
            Err((error, carrier)) => return Err(failure(*addr, &error, carrier)),
        }
    }
    Ok(sockets)
}

/// The error, and where it came up: TCP or UDP.
type Refusal = (io::Error, &'static str);

fn bind_any(addr: SocketAddr) -> Result<(Listener, Udp), Refusal> {
    let tries = if addr.port() == 0 { ANY_PORT_TRIES } else { 1 };
    let mut last = (io::ErrorKind::AddrInUse.into(), "TCP");
    for _ in 0..tries {
        match bind_pair(addr) {
            Err(refusal) if refusal.0.kind() == io::ErrorKind::AddrInUse => last = refusal,
            result => return result,
        }
    }
    Err(last)
}

fn bind_pair(addr: SocketAddr) -> Result<(Listener, Udp), Refusal> {
    let options = SocketOptions::default();
    let listener = Listener::bind(addr, &options).map_err(|error| (error, "TCP"))?;
    let bound = listener.local_addr().map_err(|error| (error, "TCP"))?;
    let udp = Udp::bind(bound, &options).map_err(|error| (error, "UDP"))?;
    Ok((listener, udp))
}

fn failure(addr: SocketAddr, error: &io::Error, carrier: &str) -> SessionError {
    let (cause, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            format!("the {carrier} port is taken"),
            "another tracker may be running; choose another port with --listen ADDR:PORT, or any free one with port 0",
        ),
        io::ErrorKind::AddrNotAvailable => (
            "this machine has no such address".to_owned(),
            "name one of this machine's addresses with --listen; `ip address` lists them",
        ),
        io::ErrorKind::PermissionDenied => (
            "not permitted".to_owned(),
            "ports below 1024 are for root: choose a higher one with --listen",
        ),
        _ => (error.to_string(), "choose another address with --listen"),
    };
    SessionError::new(format!("cannot listen on {addr}: {cause}"), hint)
}

fn is_no_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}
