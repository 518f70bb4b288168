//! Making the ring and the runtime around it (layer 4).
//!
//! Holds: sizes and flags of the ring, the errors a user can act on, the drain at the end. The ring waits
//! through `epoll` on its file descriptor, so `DEFER_TASKRUN` is never set: it would not wake.

use std::fs;
use std::future::Future;
use std::io;
use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use io_uring::IoUring;
use tokio_uring::Runtime;
use tracing::{debug, info};

pub use tokio_uring::spawn;

use super::limits::{self, Limit};
use super::{op, registration};

/// Submission entries where the memory limit allows: a full turn of a few thousand sockets.
const SQ_ENTRIES_MAX: u32 = 4096;
/// Completion entries beside it; 131,072 is refused by the kernel.
const CQ_ENTRIES_MAX: u32 = 65_536;
/// Below this many submission entries a ring is of no use: give up.
const SQ_ENTRIES_MIN: u32 = 64;
/// Locked memory of a killed process comes back late: this long the wanted size is waited for.
const LATE: Duration = Duration::from_millis(500);
/// Commands that start together all try large rings first: this long in all is an ENOMEM retried.
const RETRY: Duration = Duration::from_secs(8);
/// Pause between two retries.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// How long the end waits for cancelled operations before it leaks the ring instead.
const DRAIN: Duration = Duration::from_secs(2);

/// Operations under way at once on a file system that may hang: each may hold a worker of the kernel for ever.
pub const HUNG_OPERATIONS_MAX: usize = 8;
/// File systems that may hang at once and leave the others the workers they had.
const HUNG_FILE_SYSTEMS_MAX: u32 = 8;

/// What the caller may decide about the ring.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingConfig {
    /// Submission entries; `None` chooses from RLIMIT_MEMLOCK.
    pub sq_entries: Option<u32>,
    /// Takes this limit instead of the process's own (tests).
    pub memlock: Option<Limit>,
}

/// What the ring turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingReport {
    /// Submission entries.
    pub sq_entries: u32,
    /// Completion entries.
    pub cq_entries: u32,
    /// COOP_TASKRUN is set (Linux 5.19).
    pub is_coop_taskrun: bool,
    /// SINGLE_ISSUER is set (Linux 6.0).
    pub is_single_issuer: bool,
}

impl RingReport {
    /// A ring that takes so much less memory, down to the smallest.
    fn divided(self, by: u32) -> RingReport {
        let sq_entries = (self.sq_entries / by).max(SQ_ENTRIES_MIN);
        RingReport {
            sq_entries,
            cq_entries: (self.cq_entries / by).max(sq_entries),
            ..self
        }
    }
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// `kernel.io_uring_disabled` forbids it.
    #[error("io_uring is switched off on this machine (kernel.io_uring_disabled = {setting})")]
    Disabled {
        /// 1: only a privileged group may use it; 2: nobody.
        setting: u8,
    },
    /// EPERM or EACCES although the sysctl allows it.
    #[error("the kernel refuses io_uring to this process ({source})")]
    Refused {
        /// The error of the system call.
        source: io::Error,
    },
    /// ENOSYS.
    #[error("this kernel has no io_uring, or a sandbox hides it")]
    Missing,
    /// ENOMEM down to the smallest ring.
    #[error(
        "no memory for the smallest io_uring (locked memory: {limit}, shared by all processes of this user)"
    )]
    Memory {
        /// RLIMIT_MEMLOCK as it applies to this process.
        limit: Limit,
    },
    /// Anything else.
    #[error("io_uring could not be set up ({source})")]
    Other {
        /// The error of the system call.
        source: io::Error,
    },
}

impl RingError {
    pub(crate) fn from_io(source: io::Error) -> RingError {
        match source.raw_os_error() {
            Some(libc::ENOSYS) => RingError::Missing,
            Some(libc::ENOMEM) => RingError::Memory {
                limit: limits::memlock(),
            },
            Some(libc::EPERM | libc::EACCES) => match disabled_setting() {
                Some(setting @ 1..) => RingError::Disabled { setting },
                _ => RingError::Refused { source },
            },
            _ => RingError::Other { source },
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            RingError::Disabled { setting: 1 } => {
                "run with CAP_SYS_ADMIN, join the group of kernel.io_uring_group, or: sysctl kernel.io_uring_disabled=0"
            }
            RingError::Disabled { .. } => "sysctl kernel.io_uring_disabled=0",
            RingError::Refused { .. } => {
                "a container's seccomp profile usually forbids it: allow io_uring_setup, io_uring_enter and io_uring_register"
            }
            RingError::Missing => {
                "use Linux 5.19 or newer (6.1 recommended), outside sandboxes such as gVisor"
            }
            RingError::Memory { .. } => {
                "raise RLIMIT_MEMLOCK (ulimit -l 65536, or LimitMEMLOCK=64M in the service file), or run fewer commands at once"
            }
            RingError::Other { .. } => "run `gyre doctor` for details",
        }
    }
}

/// Value of the `kernel.io_uring_disabled` sysctl (Linux 6.6), if the kernel has it.
pub fn disabled_setting() -> Option<u8> {
    let text = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

/// The ring and the current-thread Tokio runtime that drives it.
///
/// Dropping it cancels what is in flight and waits; what does not end in two seconds keeps its memory for
/// ever instead of losing it under the kernel.
pub struct Ring {
    runtime: ManuallyDrop<Runtime>,
    report: RingReport,
}

/// Makes a ring as large as the limits allow.
///
/// # Errors
///
/// [`RingError`], after all smaller sizes and plainer flags were tried.
pub fn start(config: RingConfig) -> Result<Ring, RingError> {
    let wanted = wanted(config);
    // The first try costs nothing when it works. When it fails tokio-uring leaks its half-made
    // runtime, so the search for what works is done with bare rings.
    let first = spare().and_then(|_spare| make(wanted));
    if let Ok(runtime) = first {
        raise_workers();
        return Ok(Ring::new(runtime, wanted));
    }
    let deadline = Instant::now() + RETRY;
    let mut found = search(wanted, deadline).map_err(RingError::from_io)?;
    loop {
        match make(found) {
            Ok(runtime) => {
                raise_workers();
                return Ok(Ring::new(runtime, found));
            }
            Err(e) if !is_no_memory(&e) || Instant::now() >= deadline => {
                return Err(RingError::from_io(e));
            }
            // Somebody else took it, or the trial's memory is not back yet.
            Err(_) => std::thread::sleep(RETRY_PAUSE * 4),
        }
        found = found.divided(2);
    }
}

impl Ring {
    fn new(runtime: Runtime, report: RingReport) -> Ring {
        Ring {
            runtime: ManuallyDrop::new(runtime),
            report,
        }
    }

    /// Sizes and flags in force.
    pub fn report(&self) -> RingReport {
        self.report
    }

    /// Runs `future` and every task spawned meanwhile, until `future` is ready.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        registration::forget();
        if op::in_flight() > 0 {
            self.runtime.block_on(drain());
        }
        if op::in_flight() == 0 {
            // SAFETY: the runtime is not used after this: `self` is being dropped.
            unsafe { ManuallyDrop::drop(&mut self.runtime) };
        }
        // Otherwise the runtime stays for ever: its driver would free the stored data of operations
        // that the kernel still works on.
    }
}

/// Lets the ring submit and complete: for long loops, which otherwise never reach the kernel
/// (entries are submitted when the thread parks, and `yield_now` does not park).
pub async fn breathe() {
    let _ = tokio_uring::no_op().await;
}

/// Cancels everything in flight until nothing is left or the time is over.
async fn drain() {
    let deadline = Instant::now() + DRAIN;
    while op::in_flight() > 0 && Instant::now() < deadline {
        let _ = op::cancel_all().await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Sizes by the locked memory allowed, which all commands of a user share: at 8 MiB, 2,048/8,192 entries take a thirtieth.
fn wanted(config: RingConfig) -> RingReport {
    const MIB: u64 = 1 << 20;
    let (sq, cq) = match config.memlock.unwrap_or_else(limits::memlock) {
        Limit::Unlimited => (SQ_ENTRIES_MAX, CQ_ENTRIES_MAX),
        Limit::Bytes(n) if n >= 64 * MIB => (SQ_ENTRIES_MAX, CQ_ENTRIES_MAX),
        Limit::Bytes(n) if n >= 8 * MIB => (SQ_ENTRIES_MAX / 2, CQ_ENTRIES_MAX / 8),
        Limit::Bytes(n) if n >= MIB => (SQ_ENTRIES_MAX / 4, CQ_ENTRIES_MAX / 8),
        Limit::Bytes(_) => (SQ_ENTRIES_MAX / 16, CQ_ENTRIES_MAX / 64),
    };
    let sq_entries = config
        .sq_entries
        .unwrap_or(sq)
        .clamp(SQ_ENTRIES_MIN, SQ_ENTRIES_MAX)
        .next_power_of_two();
    RingReport {
        sq_entries,
        cq_entries: cq.max(sq_entries),
        is_coop_taskrun: true,
        is_single_issuer: true,
    }
}

fn uring_builder(report: RingReport) -> io_uring::Builder {
    let mut builder = tokio_uring::uring_builder();
    builder.setup_cqsize(report.cq_entries);
    if report.is_coop_taskrun {
        builder.setup_coop_taskrun();
    }
    if report.is_single_issuer {
        builder.setup_single_issuer();
    }
    builder
}

/// Lets the kernel start more workers for files than it would by itself (four a processor), so that those which a dead
/// file system holds are not missed. They belong to the thread, so any ring of its own can ask for them.
fn raise_workers() {
    // Where locked memory is short, even the smallest ring takes what another command needs for its own.
    if matches!(limits::memlock(), Limit::Bytes(bytes) if bytes < 64 << 20) {
        return;
    }
    let raised = IoUring::new(2).and_then(|ring| {
        // Zero changes nothing and tells what is in force: workers for files, and for the rest.
        let mut workers = [0, 0];
        ring.submitter().register_iowq_max_workers(&mut workers)?;
        let more = HUNG_OPERATIONS_MAX as u32 * HUNG_FILE_SYSTEMS_MAX;
        let mut wanted = [workers[0] + more, 0];
        ring.submitter().register_iowq_max_workers(&mut wanted)
    });
    if let Err(error) = raised {
        debug!(%error, "the kernel keeps its number of workers");
    }
}

fn make(report: RingReport) -> io::Result<Runtime> {
    let mut builder = tokio_uring::builder();
    builder
        .entries(report.sq_entries)
        .uring_builder(&uring_builder(report));
    let before = registration::Before::now();
    let runtime = Runtime::new(&builder)?;
    before.note_new();
    Ok(runtime)
}

/// Held while more than the least is asked for, where a limit holds for all commands of a user: what it takes, about
/// 200 KiB, stays free for the smallest rings of those that start later. Nobody gives back what it has before its end.
///
/// # Errors
///
/// ENOMEM when not even that is left.
pub(super) fn spare() -> io::Result<Option<IoUring>> {
    match limits::memlock() {
        Limit::Bytes(8_388_608..) => {
            let ring = IoUring::builder().setup_cqsize(4096).build(2048)?;
            Ok(Some(ring))
        }
        _ => Ok(None),
    }
}

/// The largest ring with the most flags that the kernel grants now; where memory is short, a quarter of it: whoever
/// starts next needs some too.
fn search(wanted: RingReport, deadline: Instant) -> io::Result<RingReport> {
    let (mut report, mut spare) = match spare() {
        Ok(spare) => (wanted, spare),
        Err(_) => (wanted.divided(wanted.sq_entries), None),
    };
    let mut is_told = false;
    // Only the first size is waited for: what comes back late has come back by then.
    let late = Instant::now() + LATE;
    loop {
        let is_smallest = report.sq_entries <= SQ_ENTRIES_MIN;
        if is_smallest {
            // It was kept free for this.
            drop(spare.take());
        }
        let error = match uring_builder(report).build(report.sq_entries) {
            Ok(_) if report.sq_entries < wanted.sq_entries => return Ok(report.divided(4)),
            Ok(_) => return Ok(report),
            Err(e) => e,
        };
        if error.raw_os_error() == Some(libc::EINVAL) && report.is_single_issuer {
            report.is_single_issuer = false;
        } else if error.raw_os_error() == Some(libc::EINVAL) && report.is_coop_taskrun {
            report.is_coop_taskrun = false;
        } else if !is_no_memory(&error) || Instant::now() >= deadline {
            return Err(error);
        } else if Instant::now() < late {
            std::thread::sleep(RETRY_PAUSE);
        } else if !is_smallest {
            report = report.divided(2);
        } else {
            if !is_told {
                info!("waiting for locked memory: other commands of this user have it all");
            }
            is_told = true;
            std::thread::sleep(RETRY_PAUSE);
        }
    }
}

fn is_no_memory(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(memlock: Limit) -> RingReport {
        wanted(RingConfig {
            memlock: Some(memlock),
            ..RingConfig::default()
        })
    }

    #[test]
    fn ring_sizes_follow_the_locked_memory_limit() {
        let sizes = |limit| {
            let r = with(limit);
            (r.sq_entries, r.cq_entries)
        };
        assert_eq!(sizes(Limit::Unlimited), (4096, 65_536));
        assert_eq!(sizes(Limit::Bytes(8 << 20)), (2048, 8192));
        assert_eq!(sizes(Limit::Bytes(1 << 20)), (1024, 8192));
        assert_eq!(sizes(Limit::Bytes(64 << 10)), (256, 1024));
        assert_eq!(sizes(Limit::Bytes(0)), (256, 1024));
    }

    #[test]
    fn errors_carry_a_remedy_for_their_cause() {
        let missing = RingError::from_io(io::Error::from_raw_os_error(libc::ENOSYS));
        assert!(matches!(missing, RingError::Missing));
        let memory = RingError::from_io(io::Error::from_raw_os_error(libc::ENOMEM));
        assert!(memory.hint().contains("MEMLOCK"));
    }

    #[test]
    fn the_ring_runs_futures_and_blocking_work() {
        let ring = start(RingConfig::default()).unwrap();
        let sum = ring.block_on(async {
            breathe().await;
            let spawned = spawn(async { 1 });
            let blocking = tokio::task::spawn_blocking(|| 2);
            spawned.await.unwrap() + blocking.await.unwrap()
        });
        assert_eq!(sum, 3);
    }
}
