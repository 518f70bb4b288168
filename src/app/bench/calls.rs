//! How many system calls the program under test makes. Layer 7.
//!
//! `perf stat` counts the kernel's `raw_syscalls:sys_enter` and hardly slows the program down; `strace -c` stops it at
//! each call, which changes how much it does at once.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::args::Syscalls;
use super::place;

/// Attaching to all threads of a program.
const ATTACH_WAIT: Duration = Duration::from_secs(10);

/// A running counter.
pub struct Counter {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    /// What counts.
    pub tool: &'static str,
}

impl Counter {
    /// Starts counting the calls of a process and its threads.
    ///
    /// # Errors
    /// The tool is not there or may not.
    pub fn start(how: Syscalls, pid: u32, cores: &[usize]) -> io::Result<Counter> {
        match how {
            Syscalls::Perf => Counter::perf(pid, cores),
            Syscalls::Strace => Counter::strace(pid, cores),
            Syscalls::Auto if has_perf() => Counter::perf(pid, cores),
            Syscalls::Auto => Counter::strace(pid, cores),
        }
    }

    fn perf(pid: u32, cores: &[usize]) -> io::Result<Counter> {
        let mut command = place::command("perf")?;
        command.args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p"]);
        command.arg(pid.to_string());
        let counter = Counter::spawn(command, cores, "perf")?;
        // It says nothing when it has begun.
        std::thread::sleep(Duration::from_millis(300));
        Ok(counter)
    }

    fn strace(pid: u32, cores: &[usize]) -> io::Result<Counter> {
        let mut command = place::command("strace")?;
        command.args(["-f", "-c", "-p"]).arg(pid.to_string());
        let mut counter = Counter::spawn(command, cores, "strace")?;
        let deadline = Instant::now() + ATTACH_WAIT;
        let mut line = String::new();
        while !line.contains("attached") {
            line.clear();
            if counter.stderr.read_line(&mut line)? == 0 || Instant::now() > deadline {
                return Err(io::Error::other("strace does not attach"));
            }
        }
        Ok(counter)
    }

    fn spawn(mut command: Command, cores: &[usize], tool: &'static str) -> io::Result<Counter> {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = place::spawn_on(cores, &mut command)
            .map_err(|error| io::Error::other(format!("{tool} cannot be started: {error}")))?;
        let stderr = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Counter {
            child,
            stderr: BufReader::new(stderr),
            tool,
        })
    }

    /// Ends counting; how many calls there were.
    ///
    /// # Errors
    /// The tool's summary is not understood.
    pub fn finish(mut self) -> io::Result<u64> {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let lines: Vec<String> = self.stderr.by_ref().lines().map_while(Result::ok).collect();
        self.child.wait()?;
        let found = match self.tool {
            "perf" => lines.iter().find_map(|line| perf_count(line)),
            _ => lines.iter().rev().find_map(|line| strace_total(line)),
        };
        found.ok_or_else(|| {
            let text = lines.join("; ");
            io::Error::other(format!("{} gave no count: {text}", self.tool))
        })
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has_perf() -> bool {
    let mut command = Command::new("perf");
    command.args(["stat", "-e", "raw_syscalls:sys_enter", "--", "true"]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// `339,,raw_syscalls:sys_enter,…`
fn perf_count(line: &str) -> Option<u64> {
    let (count, rest) = line.split_once(',')?;
    rest.contains("raw_syscalls:sys_enter").then_some(())?;
    count.parse().ok()
}

/// `100.00    0.012345          12      1023        4 total`
fn strace_total(line: &str) -> Option<u64> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    (fields.last() == Some(&"total")).then_some(())?;
    fields.get(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_both_tools_are_understood() {
        assert_eq!(
            perf_count("339,,raw_syscalls:sys_enter,415694080,100.00,,"),
            Some(339)
        );
        assert_eq!(perf_count("<not counted>,,raw_syscalls:sys_enter,0"), None);
        let total = "100.00    0.012345          12      1023        4 total";
        assert_eq!(strace_total(total), Some(1023));
        assert_eq!(
            strace_total("100.00    0.000011          11         1           total"),
            Some(1)
        );
    }
}
