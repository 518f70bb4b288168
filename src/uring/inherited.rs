//! Sockets that were open before the program began (socket activation, sd_listen_fds(3)) (layer 4).

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

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
