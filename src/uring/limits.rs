//! Limits of the process: open files, memory and locked memory (layer 4).

use std::fmt;
use std::fs;
use std::path::Path;

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

/// How much memory this process can have at all: the machine's, or what its control groups leave of it.
///
/// `u64::MAX` when the system does not tell.
pub fn memory_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").map_or(u64::MAX, |text| total_bytes(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    machine.min(cgroup_bytes(&groups, Path::new("/sys/fs/cgroup")))
}

/// `MemTotal` of proc_meminfo(5).
fn total_bytes(meminfo: &str) -> u64 {
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    total.map_or(u64::MAX, |kib| kib.saturating_mul(1024))
}

/// The lowest memory limit on the way from the process's control groups, as in cgroups(7)'s `/proc/PID/cgroup`, up to
/// the mount's root. In a container the path may be one of the outside: what is not there is passed over.
fn cgroup_bytes(groups: &str, mount: &Path) -> u64 {
    let mut lowest = u64::MAX;
    for group in groups.lines() {
        let mut fields = group.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (mount.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for folder in Path::new(path.trim_start_matches('/')).ancestors() {
            let limit = fs::read_to_string(root.join(folder).join(file)).ok();
            // "max" is no number and no limit.
            let limit = limit.and_then(|text| text.trim().parse().ok());
            lowest = lowest.min(limit.unwrap_or(u64::MAX));
        }
    }
    lowest
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

    #[test]
    fn memory_is_the_machines_or_the_lowest_limit_above_the_process() {
        let meminfo = "MemTotal:       24689764 kB\nMemFree:          123456 kB\n";
        assert_eq!(total_bytes(meminfo), 24_689_764 * 1024);
        assert_eq!(total_bytes(""), u64::MAX);
        let mount = tempfile::tempdir().unwrap();
        let limit = |file: &str, text: &str| {
            let path = mount.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        limit("a/b/memory.max", "max\n");
        limit("a/memory.max", "1000\n");
        limit("other/memory.max", "1\n");
        limit("memory/x/memory.limit_in_bytes", "900\n");
        let bytes = |groups| cgroup_bytes(groups, mount.path());
        assert_eq!(bytes("0::/a/b\n"), 1_000);
        assert_eq!(bytes("0::/a/b/gone\n"), 1_000);
        assert_eq!(bytes("0::/\n"), u64::MAX);
        assert_eq!(bytes("5:cpu:/a\n4:memory:/x/y\n0::/a\n"), 900);
        assert!((1 << 20..u64::MAX).contains(&memory_bytes()));
    }
}
