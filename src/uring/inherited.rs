//! Sockets that were open before the program began (socket activation, sd_listen_fds(3)) (layer 4).

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

/// The first descriptor that is handed over.
const FIRST: RawFd = 3;
/// Sockets taken at most: one for each way to control a daemon, with some to spare.
const INHERITED_MAX: usize = 16;

/// They can be taken once.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// One socket, with the name that the service manager gave it (`FileDescriptorName=`), else an empty one.
#[derive(Debug)]
pub struct Inherited {
    pub name: String,
    pub fd: OwnedFd,
}

impl Inherited {
    /// Whether it is a socket that takes connections: one of another kind would only fail later, again and again.
    pub fn takes_connections(&self) -> bool {
        let kind = getsockopt(&self.fd, sockopt::SockType);
        let accepts = getsockopt(&self.fd, sockopt::AcceptConn);
        kind == Ok(SockType::Stream) && accepts == Ok(true)
    }

    /// Whether it is meant for `purpose`: by its name, or because nobody gave it one. Without a name the service manager calls it
    /// by its unit (`gyre.socket`), or `unknown`.
    pub fn is_for(&self, purpose: &str) -> bool {
        let name = self.name.as_str();
        name == purpose || name.is_empty() || name == "unknown" || name.ends_with(".socket")
    }
}

/// Takes what the environment says was handed over: `LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`. A second call gets
/// nothing.
pub fn take() -> Vec<Inherited> {
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    if of("LISTEN_PID").parse() != Ok(std::process::id()) || IS_TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let names = of("LISTEN_FDNAMES");
    let names = names
        .split(':')
        .map(str::to_owned)
        .chain(std::iter::repeat(String::new()));
    let count = of("LISTEN_FDS")
        .parse()
        .unwrap_or(0_usize)
        .min(INHERITED_MAX);
    let fds = (FIRST..).zip(names).take(count);
    fds.filter_map(|(fd, name)| own(fd).map(|fd| Inherited { name, fd }))
        .collect()
}

/// Takes an open descriptor; it does not go on to child processes.
fn own(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: the service manager opened it for this process, which was checked by number, and the guard above has it
    // owned once. `F_SETFD` fails on a number that is not open, and then it is let go without being closed.
    let owned = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd) });
    fcntl(&*owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(std::mem::ManuallyDrop::into_inner(owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, fd: impl Into<OwnedFd>) -> Inherited {
        Inherited {
            name: name.to_owned(),
            fd: fd.into(),
        }
    }

    #[test]
    fn only_sockets_that_listen_take_connections() {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let unix = std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap();
        let connected = std::net::TcpStream::connect(addr).unwrap();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(of("", listener).takes_connections());
        assert!(of("", unix).takes_connections());
        assert!(!of("", connected).takes_connections());
        assert!(!of("", datagrams).takes_connections());
        assert!(!of("", tempfile::tempfile().unwrap()).takes_connections());
    }

    #[test]
    fn a_socket_with_the_name_of_another_purpose_is_left_alone() {
        for (name, is_ours) in [
            ("control", true),
            ("", true),
            ("unknown", true),
            ("gyre.socket", true),
            ("peers", false),
            ("controls", false),
        ] {
            let socket = of(name, std::net::TcpListener::bind("127.0.0.1:0").unwrap());
            assert_eq!(socket.is_for("control"), is_ours, "{name}");
        }
    }
}
