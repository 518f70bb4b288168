//! Limits of the process: open files and locked memory (layer 4).

use std::fmt;
use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Bit of CAP_IPC_LOCK in the capability masks of `/proc/self/status` (capabilities(7)).
const CAP_IPC_LOCK_BIT: u32 = 14;

/// A limit in bytes, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// No limit applies.
    Unlimited,
    /// At most this many bytes, counted per user.
    Bytes(u64),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Unlimited => f.write_str("no limit"),
            Limit::Bytes(bytes) => write!(f, "at most {} KiB", bytes / 1024),
        }
    }
}

/// How much memory this process may lock for its ring and its registered buffers.
///
/// RLIMIT_MEMLOCK, which does not bind a process with CAP_IPC_LOCK in the first user namespace.
pub fn memlock() -> Limit {
    if has_ipc_lock() {
        return Limit::Unlimited;
    }
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((soft, _)) if soft != RLIM_INFINITY => Limit::Bytes(soft),
        _ => Limit::Unlimited,
    }
}

/// Raises the soft limit of open files to the hard one; returns the limit then in force.
pub fn raise_nofile() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        return hard;
    }
    soft
}

/// Soft and hard limit of open files.
pub fn nofile() -> (u64, u64) {
    getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024))
}

/// Whether the kernel lets this process lock memory without limit.
///
/// The kernel asks for the capability in the first user namespace: root of a container with its own
/// user namespace carries the bit and is limited nevertheless.
fn has_ipc_lock() -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return false;
    };
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    if effective & (1 << CAP_IPC_LOCK_BIT) == 0 {
        return false;
    }
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else {
        return false;
    };
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_limit_is_raised_to_the_hard_one() {
        let limit = raise_nofile();
        let (soft, hard) = nofile();
        assert_eq!(limit, soft);
        assert_eq!(soft, hard);
    }
}
