//! `gyre bench disk`: what the ring reads and writes here, as the engines do it. Layer 7.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;

use super::args::DiskBench;
use super::figures::Figures;
use super::sample::Folder;
use super::{GIB, failed, print};
use crate::app::exit::{Exit, Failure};
use crate::app::{run as sessions, size};
use crate::base::Rng;
use crate::uring::buffers::{Pool, SEGMENT_BYTES_MAX};
use crate::uring::files::{File, OpenMode, open_beneath, open_root, set_len};
use crate::uring::ring;

const FILE_NAME: &str = "gyre-bench-disk.bin";
/// Alignment of O_DIRECT.
const PAGE_BYTES: u64 = 4096;
/// Bytes of a sequential operation.
const SEQUENTIAL_BYTES: u64 = 1 << 20;

/// One kind of work.
#[derive(Clone, Copy)]
struct Work {
    name: &'static str,
    cpu_name: &'static str,
    label: &'static str,
    mode: OpenMode,
    is_write: bool,
    is_random: bool,
}

/// Writes first: they make the file.
const WORKS: [Work; 6] = [
    Work {
        name: "write_direct_mb_per_s",
        cpu_name: "write_direct_cpu_s_per_gib",
        label: "write, direct, fdatasync MB/s",
        mode: OpenMode::WriteDirect,
        is_write: true,
        is_random: false,
    },
    Work {
        name: "write_buffered_mb_per_s",
        cpu_name: "write_buffered_cpu_s_per_gib",
        label: "write, buffered, fdatasync MB/s",
        mode: OpenMode::Write,
        is_write: true,
        is_random: false,
    },
    Work {
        name: "read_random_direct_mb_per_s",
        cpu_name: "read_random_direct_cpu_s_per_gib",
        label: "random read, direct MB/s",
        mode: OpenMode::ReadDirect,
        is_write: false,
        is_random: true,
    },
    Work {
        name: "read_random_buffered_mb_per_s",
        cpu_name: "read_random_buffered_cpu_s_per_gib",
        label: "random read, buffered, cold MB/s",
        mode: OpenMode::Read,
        is_write: false,
        is_random: true,
    },
    Work {
        name: "read_sequential_direct_mb_per_s",
        cpu_name: "read_sequential_direct_cpu_s_per_gib",
        label: "sequential read, direct MB/s",
        mode: OpenMode::ReadDirect,
        is_write: false,
        is_random: false,
    },
    Work {
        name: "read_sequential_buffered_mb_per_s",
        cpu_name: "read_sequential_buffered_cpu_s_per_gib",
        label: "sequential read, buffered, cold MB/s",
        mode: OpenMode::Read,
        is_write: false,
        is_random: false,
    },
];

/// Runs the verb.
///
/// # Errors
/// The file cannot be made, or there is no ring.
pub fn run(args: &DiskBench) -> Result<Exit, Failure> {
    let is_good = args.block >= PAGE_BYTES
        && args.block <= SEGMENT_BYTES_MAX as u64
        && args.block.is_multiple_of(PAGE_BYTES)
        && args.size >= SEQUENTIAL_BYTES.max(args.block);
    if !is_good {
        return Err(Failure::usage(
            "--block is a multiple of 4KiB up to 1MiB, and --size at least 1MiB",
            "leave both out for 256KiB in a file of 2GiB",
        ));
    }
    let folder = Folder::open(args.dir.as_deref())?;
    let result = measure(args, &folder.path);
    let _ = std::fs::remove_file(folder.path.join(FILE_NAME));
    let figures = result?;
    let line = format!(
        "a file of {}, random reads of {}, {} in flight",
        size::bytes(args.size),
        size::bytes(args.block),
        args.depth,
    );
    let settings = json!({"file_bytes": args.size, "block_bytes": args.block, "depth": args.depth});
    print(
        "disk",
        args.json,
        &settings,
        &figures,
        &json!({"line": line}),
    );
    Ok(Exit::Done)
}

fn measure(args: &DiskBench, folder: &Path) -> Result<Figures, Failure> {
    let ring = sessions::start_ring()?;
    let mut figures = Figures::default();
    let done = ring.block_on(async {
        let largest = args.block.max(SEQUENTIAL_BYTES) as usize;
        let (pool, _) = Pool::new(largest * args.depth as usize)?;
        std::fs::File::create(folder.join(FILE_NAME))?;
        for round in 0..args.rounds {
            for work in WORKS {
                let (mb_per_s, cpu) = one(args, folder, &pool, work, round).await?;
                figures.add(work.name, work.label, 0, Some(mb_per_s));
                figures.add(work.cpu_name, "  CPU s/GiB", 3, Some(cpu));
            }
        }
        Ok::<(), io::Error>(())
    });
    done.map_err(failed)?;
    Ok(figures)
}

/// Does one kind of work over the whole file; MB/s and CPU s/GiB of this process, kernel workers included.
async fn one(
    args: &DiskBench,
    folder: &Path,
    pool: &Pool,
    work: Work,
    round: u32,
) -> io::Result<(f64, f64)> {
    let root = open_root(folder)?;
    let fd = match open_beneath(&root, Path::new(FILE_NAME), work.mode) {
        // A file system without O_DIRECT, such as tmpfs on older kernels: there is nothing to go round.
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32) => {
            return Ok((f64::NAN, f64::NAN));
        }
        result => result?,
    };
    let bytes = match work.is_random {
        true => args.block,
        false => SEQUENTIAL_BYTES,
    };
    let count = args.size / bytes;
    if work.is_write {
        // Fresh blocks each time, as a download finds them.
        set_len(&fd, 0)?;
        set_len(&fd, count * bytes)?;
    }
    posix_fadvise(&fd, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let file = File::from_fd(fd);
    let mut order: Vec<u64> = (0..count).collect();
    if work.is_random {
        Rng::new(round.into()).shuffle(&mut order);
    }
    let (order, next) = (Rc::new(order), Rc::new(Cell::new(0)));
    let (start, cpu) = (Instant::now(), cpu_s());
    let workers: Vec<_> = (0..args.depth)
        .map(|_| {
            let (file, pool, order, next) =
                (file.clone(), pool.clone(), order.clone(), next.clone());
            ring::spawn(
                async move { work_off(&file, &pool, &order, &next, bytes, work.is_write).await },
            )
        })
        .collect();
    for worker in workers {
        worker.await.map_err(io::Error::other)??;
    }
    if work.is_write {
        file.fdatasync().await?;
    }
    let done = (count * bytes) as f64;
    let seconds = start.elapsed().as_secs_f64();
    Ok((done / seconds / 1e6, (cpu_s() - cpu) / (done / GIB)))
}

async fn work_off(
    file: &File,
    pool: &Pool,
    order: &[u64],
    next: &Cell<usize>,
    bytes: u64,
    is_write: bool,
) -> io::Result<()> {
    let mut segment = pool.alloc_or_heap(bytes as usize);
    if is_write {
        segment.as_mut_slice().fill(0x5a);
    }
    while let Some(block) = order.get(next.get()) {
        next.set(next.get() + 1);
        let range = 0..bytes as usize;
        if is_write {
            let result;
            (result, segment) = file.write_at(segment, range, block * bytes).await;
            result?;
        } else {
            let result;
            (result, segment) = file.read_at(segment, range, block * bytes).await;
            if result? as u64 != bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(())
}

fn cpu_s() -> f64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return 0.0;
    };
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
