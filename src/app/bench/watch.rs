//! The program under test as `/proc` shows it: CPU time, memory, bytes read. Layer 7.
//!
//! All of a process and its children counts; the kernel's io_uring workers are threads of the process they work for.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};

use super::place;
use crate::base::Histogram;

/// Memory is looked at this often.
const SAMPLE: Duration = Duration::from_millis(20);
/// The idle thread sleeps this long at a time: often enough for quantiles, too seldom to disturb.
const NAP: Duration = Duration::from_millis(5);
/// A tree of processes deeper than this is a mistake.
const PROCESSES_MAX: usize = 256;

/// What one look shows.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// User and system time of all threads, ended children included.
    pub cpu_s: f64,
    /// The same of the first process's main thread alone.
    pub main_thread_cpu_s: f64,
    /// RssAnon and RssShmem now.
    pub anonymous_bytes: u64,
    /// Fetched from storage, the page cache does not count.
    pub read_bytes: u64,
    /// Sent to storage.
    pub write_bytes: u64,
    pub threads: u64,
}

/// Looks at a process and all below it.
pub fn look(pid: u32) -> Look {
    let mut all = Look::default();
    for pid in tree(pid) {
        let (cpu, threads) = cpu_and_threads(&format!("/proc/{pid}/stat"));
        all.cpu_s += cpu;
        all.threads += threads;
        all.anonymous_bytes += anonymous_bytes(pid);
        let io = fields(&format!("/proc/{pid}/io"), 1);
        all.read_bytes += io.get("read_bytes").copied().unwrap_or(0);
        all.write_bytes += io.get("write_bytes").copied().unwrap_or(0);
    }
    all.main_thread_cpu_s = cpu_and_threads(&format!("/proc/{pid}/task/{pid}/stat")).0;
    all
}

/// The process and its descendants.
fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied().filter(|_| all.len() < PROCESSES_MAX) {
        at += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    all
}

/// utime, stime and, of ended children that were waited for, cutime and cstime; and num_threads (proc_pid_stat(5)).
fn cpu_and_threads(path: &str) -> (f64, u64) {
    let stat = fs::read_to_string(path).unwrap_or_default();
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<u64> = behind_name
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or(0);
    let ticks: u64 = (11..=14).map(field).sum();
    let per_s = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    (ticks as f64 / per_s as f64, field(17))
}

fn anonymous_bytes(pid: u32) -> u64 {
    let status = fields(&format!("/proc/{pid}/status"), 1024);
    let field = |name: &str| status.get(name).copied().unwrap_or(0);
    field("RssAnon") + field("RssShmem")
}

/// `name: number` lines, times `unit`.
fn fields(path: &str, unit: u64) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let value: u64 = value.split_whitespace().next()?.parse().ok()?;
        Some((name.to_owned(), value * unit))
    };
    text.lines().filter_map(field).collect()
}

/// Share of a core's time that was not idle between two looks.
#[derive(Clone, Copy, Debug)]
pub struct CoreTime {
    busy: u64,
    all: u64,
}

impl CoreTime {
    /// Time so far on these cores.
    pub fn now(cores: &[usize]) -> CoreTime {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let mut time = CoreTime { busy: 0, all: 0 };
        for core in cores {
            let prefix = format!("cpu{core} ");
            let Some(line) = stat.lines().find(|line| line.starts_with(&prefix)) else {
                continue;
            };
            let ticks: Vec<u64> = line
                .split_whitespace()
                .skip(1)
                .take(8)
                .filter_map(|field| field.parse().ok())
                .collect();
            let all: u64 = ticks.iter().sum();
            // The fourth and fifth are idle and iowait (proc_stat(5)).
            let idle: u64 = ticks.iter().skip(3).take(2).sum();
            time.all += all;
            time.busy += all - idle;
        }
        time
    }

    /// Busy cores since `before`, 1.0 being one core.
    pub fn busy_since(self, before: CoreTime, cores: usize) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        self.busy.saturating_sub(before.busy) as f64 / all as f64 * cores as f64
    }
}

/// Threads that watch beside: peak memory, and how late an idle thread on the same core wakes.
pub struct Watch {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    sampler: Option<JoinHandle<()>>,
    napper: Option<JoinHandle<Histogram>>,
}

impl Watch {
    /// Starts watching.
    pub fn start(pid: u32, cores: &[usize], load_cores: &[usize]) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let peak = Arc::new(AtomicU64::new(0));
        let (flag, highest, load_cores) = (stop.clone(), peak.clone(), load_cores.to_vec());
        let sampler = std::thread::spawn(move || {
            let _ = place::stay_on(&load_cores);
            while !flag.load(Ordering::Relaxed) {
                let now = tree(pid).into_iter().map(anonymous_bytes).sum();
                highest.fetch_max(now, Ordering::Relaxed);
                std::thread::sleep(SAMPLE);
            }
        });
        let (flag, cores) = (stop.clone(), cores.to_vec());
        let napper = std::thread::spawn(move || {
            let _ = place::stay_on(&cores);
            let mut late = Histogram::default();
            while !flag.load(Ordering::Relaxed) {
                let start = Instant::now();
                std::thread::sleep(NAP);
                let over = start.elapsed().saturating_sub(NAP);
                late.add(u64::try_from(over.as_micros()).unwrap_or(u64::MAX));
            }
            late
        });
        Watch {
            stop,
            peak,
            sampler: Some(sampler),
            napper: Some(napper),
        }
    }

    /// Highest memory seen so far.
    pub fn peak_bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Ends both threads; how late the idle one woke, in µs.
    pub fn stop(mut self) -> Histogram {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            let _ = sampler.join();
        }
        let late = self.napper.take().and_then(|napper| napper.join().ok());
        late.unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_time_and_memory() {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let look = look(std::process::id());
        assert!(look.cpu_s > 0.0 && look.anonymous_bytes > 0 && look.threads > 0);
    }
}
