//! `gyre doctor`: whether this machine can run Gyre well, and what to do where it cannot. Layer 7.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::cli::{DEFAULT_PORT, DoctorArgs};
use super::escape::{terminal, terminal_path};
use super::exit::{Exit, Failure, io_cause};
use super::{json, output, run, size};
use crate::base::in_sentence;
use crate::uring::limits::Limit;
use crate::uring::probe::{self, Facts};

/// Ring and buffers of the default sizes.
const MEMLOCK_BYTES_GOOD: u64 = 64 * 1024 * 1024;
/// A ring, and buffers for some peers.
const MEMLOCK_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// Default peers and some hundred files.
const NOFILE_GOOD: u64 = 4096;
const NOFILE_MIN: u64 = 256;
/// Less free space than this ends most downloads early.
const FREE_BYTES_GOOD: u64 = 1024 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Status {
    Ok,
    Warning,
    Problem,
}

impl Status {
    const fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Problem => "problem",
        }
    }
}

/// One line of the report.
struct Check {
    name: &'static str,
    status: Status,
    message: String,
    remedy: String,
}

impl Check {
    fn new(
        name: &'static str,
        status: Status,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Check {
        let remedy = match status {
            Status::Ok => String::new(),
            _ => remedy.into(),
        };
        Check {
            name,
            status,
            message: in_sentence(&message.into()),
            remedy,
        }
    }
}

/// Runs the verb; a problem is exit code 1.
///
/// # Errors
/// Never: what is wrong is in the report.
pub fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    let facts = probe::facts();
    let mut checks = vec![kernel(&facts), io_uring(&facts), operations(&facts)];
    checks.extend([memlock(facts.memlock), open_files(facts.nofile), hashing()]);
    match run::state_dir(args.state.as_deref()) {
        Ok(folder) => checks.push(folder_check("state", &folder, "--state")),
        Err(failure) => checks.push(Check::new(
            "state",
            Status::Problem,
            failure.message(),
            failure.hint(),
        )),
    }
    checks.push(folder_check("output", &args.output, "--output"));
    checks.push(port(args.port));
    checks.push(congestion(&facts));
    let worst = checks.iter().map(|check| check.status).max();
    let worst = worst.unwrap_or(Status::Ok);
    print(&checks, worst, args.json);
    Ok(match worst {
        Status::Problem => Exit::Failed,
        _ => Exit::Done,
    })
}

fn print(checks: &[Check], worst: Status, as_json: bool) {
    if as_json {
        let check = |check: &Check| {
            json!({
                "name": check.name, "status": check.status.word(), "message": check.message, "remedy": check.remedy,
            })
        };
        json::print(&json!({
            "status": worst.word(),
            "checks": checks.iter().map(check).collect::<Vec<_>>(),
        }));
        return;
    }
    for check in checks {
        let (status, name) = (check.status.word(), check.name);
        let message = terminal(&check.message);
        output::stdout_line(&format!("{status:<8} {name:<10} {message}"));
        if !check.remedy.is_empty() {
            output::stdout_line(&format!("{:19} → {}", "", terminal(&check.remedy)));
        }
    }
}

fn kernel(facts: &Facts) -> Check {
    let status = match facts.kernel_version {
        Some(version) if version >= (6, 1) => Status::Ok,
        Some(version) if version < (5, 15) => Status::Problem,
        _ => Status::Warning,
    };
    Check::new(
        "kernel",
        status,
        format!("Linux {}", facts.kernel_release),
        "use Linux 6.1 or newer",
    )
}

fn io_uring(facts: &Facts) -> Check {
    match &facts.ring {
        Ok(ring) => {
            let mut flags = Vec::new();
            flags.extend(ring.is_coop_taskrun.then_some("COOP_TASKRUN"));
            flags.extend(ring.is_single_issuer.then_some("SINGLE_ISSUER"));
            let status = match ring.is_nodrop && ring.is_fast_poll {
                true => Status::Ok,
                false => Status::Problem,
            };
            let mut message = "available".to_owned();
            if !flags.is_empty() {
                message += &format!(" with {}", flags.join(", "));
            }
            Check::new("io_uring", status, message, "use Linux 6.1 or newer")
        }
        Err(error) => Check::new("io_uring", Status::Problem, error.to_string(), error.hint()),
    }
}

fn operations(facts: &Facts) -> Check {
    const NAME: &str = "operations";
    let Ok(ring) = &facts.ring else {
        return Check::new(
            NAME,
            Status::Problem,
            "unknown without a ring",
            "see io_uring",
        );
    };
    let all = ring.opcodes.len();
    let missing = ring.opcodes.iter().filter(|opcode| !opcode.is_supported);
    let status = missing
        .clone()
        .map(|opcode| match opcode.is_required {
            true => Status::Problem,
            false => Status::Warning,
        })
        .max()
        .unwrap_or(Status::Ok);
    let names: Vec<&str> = missing.map(|opcode| opcode.name).collect();
    let message = match names.is_empty() {
        true => format!("all {all} that are used"),
        false => format!("missing: {}", names.join(", ")),
    };
    Check::new(
        NAME,
        status,
        message,
        "use Linux 6.1 or newer, outside of sandboxes that filter io_uring",
    )
}

fn memlock(limit: Limit) -> Check {
    let (status, message) = match limit {
        Limit::Unlimited => (Status::Ok, "unlimited".to_owned()),
        Limit::Bytes(bytes) if bytes >= MEMLOCK_BYTES_GOOD => (Status::Ok, size::bytes(bytes)),
        Limit::Bytes(bytes) if bytes >= MEMLOCK_BYTES_MIN => (
            Status::Warning,
            format!(
                "{}: ring and buffers are made smaller to fit",
                size::bytes(bytes)
            ),
        ),
        Limit::Bytes(bytes) => (
            Status::Warning,
            format!("{}: too little for registered buffers", size::bytes(bytes)),
        ),
    };
    Check::new(
        "memlock",
        status,
        message,
        "raise RLIMIT_MEMLOCK: `ulimit -l 65536`, or LimitMEMLOCK=64M in the service file",
    )
}

fn open_files((soft, hard): (u64, u64)) -> Check {
    let status = match hard {
        NOFILE_GOOD.. => Status::Ok,
        NOFILE_MIN.. => Status::Warning,
        _ => Status::Problem,
    };
    Check::new(
        "open files",
        status,
        match soft == hard {
            true => format!("{hard}"),
            false => format!("{soft}, raised to {hard} when running"),
        },
        "raise RLIMIT_NOFILE: `ulimit -n 65536`, or LimitNOFILE=65536 in the service file",
    )
}

fn hashing() -> Check {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_instructions = flags
        .lines()
        .filter(|line| line.starts_with("flags") || line.starts_with("Features"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "sha_ni" || flag == "sha1")
        });
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = size::plural(threads as u64, "core");
    match has_instructions {
        true => Check::new(
            "hashing",
            Status::Ok,
            format!("SHA-1 instructions, {cores}"),
            "",
        ),
        false => Check::new(
            "hashing",
            Status::Warning,
            format!("no SHA-1 instructions, {cores}"),
            "a CPU with SHA-NI hashes about three times as fast",
        ),
    }
}

/// Writable, with room, and on which kind of file system.
fn folder_check(name: &'static str, folder: &Path, option: &str) -> Check {
    let shown = terminal_path(folder);
    let existing = nearest_existing(folder);
    let trial = existing.join(format!(".gyre-doctor-{}", std::process::id()));
    let written = File::create_new(&trial).and_then(|file| {
        let written = io::Write::write_all(&mut &file, b"gyre");
        let removed = std::fs::remove_file(&trial);
        written.and(removed)
    });
    if let Err(error) = written {
        return Check::new(
            name,
            Status::Problem,
            format!("{shown}: not writable: {}", io_cause(&error)),
            format!("change its permissions, or name another folder with {option}"),
        );
    }
    let (free, kind) = match (
        nix::sys::statvfs::statvfs(&existing),
        nix::sys::statfs::statfs(&existing),
    ) {
        (Ok(space), Ok(fs)) => (
            space
                .blocks_available()
                .saturating_mul(space.fragment_size()),
            file_system(fs.filesystem_type().0),
        ),
        _ => {
            let message = format!("{shown}: writable, free space unknown");
            return Check::new(name, Status::Warning, message, "check the file system");
        }
    };
    let free_shown = size::bytes(free);
    if free < FREE_BYTES_GOOD && name == "output" {
        let message = format!("{shown}: writable, only {free_shown} free ({})", kind.name);
        return Check::new(
            name,
            Status::Warning,
            message,
            "make room on this file system",
        );
    }
    let message = format!("{shown}: writable, {free_shown} free ({})", kind.name);
    match kind.is_remote {
        true => Check::new(
            name,
            Status::Warning,
            message,
            "a file system on this machine is faster and never hangs",
        ),
        false => Check::new(name, Status::Ok, message, ""),
    }
}

fn nearest_existing(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let existing = folder.ancestors().find(|path| path.exists());
    existing.unwrap_or(Path::new("/")).to_owned()
}

struct FileSystem {
    name: String,
    is_remote: bool,
}

/// Magic numbers of statfs(2).
fn file_system(magic: i64) -> FileSystem {
    let (name, is_remote) = match magic {
        0xEF53 => ("ext4", false),
        0x5846_5342 => ("xfs", false),
        0x9123_683E => ("btrfs", false),
        0x2FC1_2FC1 => ("zfs", false),
        0xF2F5_2010 => ("f2fs", false),
        0xCA45_1A4E => ("bcachefs", false),
        0x0102_1994 => ("tmpfs", false),
        0x794C_7630 => ("overlayfs", false),
        0x4D44 => ("vfat", false),
        0x2011_BAB0 => ("exfat", false),
        0x6969 => ("NFS", true),
        0xFF53_4D42 | 0xFE53_4D42 => ("SMB", true),
        0x6573_5546 => ("FUSE", true),
        0x0102_1997 => ("9p", true),
        0x00C3_6400 => ("Ceph", true),
        _ => {
            return FileSystem {
                name: format!("file system {magic:#x}"),
                is_remote: false,
            };
        }
    };
    FileSystem {
        name: name.to_owned(),
        is_remote,
    }
}

fn port(port: u16) -> Check {
    if port == 0 {
        return Check::new("port", Status::Ok, "any free one", "");
    }
    let families = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    let mut taken = Vec::new();
    for ip in families {
        let addr = SocketAddr::new(ip, port);
        let is_taken = |result: io::Result<()>| {
            // A machine without IPv6 has no such address to be taken.
            result.is_err_and(|error| {
                error.kind() != io::ErrorKind::AddrNotAvailable && error.raw_os_error() != Some(97)
            })
        };
        if is_taken(TcpListener::bind(addr).map(drop)) {
            taken.push(format!("TCP {addr}"));
        }
        if is_taken(UdpSocket::bind(addr).map(drop)) {
            taken.push(format!("UDP {addr}"));
        }
    }
    match taken.is_empty() {
        true => Check::new(
            "port",
            Status::Ok,
            format!("{port} is free (TCP and UDP)"),
            "",
        ),
        false => Check::new(
            "port",
            Status::Warning,
            format!("{port} is not free: {}", taken.join(", ")),
            match port {
                DEFAULT_PORT => {
                    "one of the next nine is taken then, unless --port names one that is free"
                }
                _ => "another program listens there: stop it, or choose another --port",
            },
        ),
    }
}

fn congestion(facts: &Facts) -> Check {
    let name = facts.congestion.as_deref().unwrap_or("unknown");
    Check::new(
        "network",
        Status::Ok,
        format!("congestion control {name}"),
        "",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_locked_memory_is_a_warning_with_a_remedy() {
        let check = memlock(Limit::Bytes(8 << 20));
        assert_eq!(check.status, Status::Warning);
        assert!(check.remedy.contains("ulimit -l"));
        assert!(memlock(Limit::Unlimited).remedy.is_empty());
    }

    #[test]
    fn a_taken_port_is_a_warning() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let number = listener.local_addr().unwrap().port();
        let check = port(number);
        assert_eq!(check.status, Status::Warning);
        assert!(check.message.contains("TCP 0.0.0.0"));
    }

    #[test]
    fn a_folder_that_is_still_to_be_made_is_checked_above() {
        let folder = tempfile::tempdir().unwrap();
        let check = folder_check("state", &folder.path().join("a/b"), "--state");
        assert!(check.status < Status::Problem);
        let check = folder_check("state", Path::new("/proc/nowhere/x"), "--state");
        assert_eq!(check.status, Status::Problem);
    }
}
