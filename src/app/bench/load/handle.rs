//! The starter's end of a load process. Layer 7.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::{Command, Job, Report, Said};
use crate::app::bench::place;

/// A report is a matter of moments.
const REPORT_WAIT: Duration = Duration::from_secs(10);

/// A running load process; dropping it ends it.
pub struct Load {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<(Instant, Said)>,
    /// When the first payload since the last `measure` came.
    pub first: Option<Instant>,
    /// When everything was asked for and had come.
    pub exhausted: Option<Instant>,
}

/// What was ready.
#[derive(Clone, Debug)]
pub struct Ready {
    pub served: u32,
    pub connected: u32,
    pub listening: Vec<SocketAddr>,
    pub checked_blocks: u32,
}

impl Load {
    /// Starts a process on these cores.
    pub fn start(job: &Job, cores: &[usize]) -> io::Result<Load> {
        let mut command = Process::new(std::env::current_exe()?);
        command
            .args(["bench", "load"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        place::clean_environment(&mut command);
        let mut child = place::spawn_on(cores, &mut command)?;
        let mut stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (sender, said) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str(&line) else {
                    continue;
                };
                if sender.send((Instant::now(), event)).is_err() {
                    return;
                }
            }
        });
        let line = serde_json::to_string(job)? + "\n";
        if let Some(stdin) = &mut stdin {
            stdin.write_all(line.as_bytes())?;
        }
        Ok(Load {
            child,
            stdin,
            said,
            first: None,
            exhausted: None,
        })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It says what is wrong, ends, or takes too long.
    pub fn ready(&mut self, limit: Duration) -> io::Result<Ready> {
        let said = self.wait_for(limit, |said| matches!(said, Said::Ready { .. }))?;
        match said {
            Said::Ready {
                served,
                connected,
                listening,
                checked_blocks,
            } => Ok(Ready {
                served,
                connected,
                listening,
                checked_blocks,
            }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Has it count from now on.
    pub fn measure(&mut self) -> io::Result<()> {
        (self.first, self.exhausted) = (None, None);
        self.tell(Command::Measure)
    }

    /// What it counted since [`Load::measure`].
    pub fn report(&mut self) -> io::Result<Report> {
        self.tell(Command::Report)?;
        match self.wait_for(REPORT_WAIT, |said| matches!(said, Said::Report(_)))? {
            Said::Report(report) => Ok(report),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Takes note of what it said without waiting.
    pub fn look(&mut self) -> io::Result<()> {
        while let Ok((when, said)) = self.said.try_recv() {
            self.note(when, &said)?;
        }
        Ok(())
    }

    fn tell(&mut self, command: Command) -> io::Result<()> {
        let stdin = self.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(format!("{}\n", command.word()).as_bytes())
    }

    fn note(&mut self, when: Instant, said: &Said) -> io::Result<()> {
        match said {
            Said::First => self.first = self.first.or(Some(when)),
            Said::Exhausted => self.exhausted = self.exhausted.or(Some(when)),
            Said::Failed { message } => return Err(io::Error::other(message.clone())),
            Said::Ready { .. } | Said::Report(_) => {}
        }
        Ok(())
    }

    fn wait_for(&mut self, limit: Duration, is_it: impl Fn(&Said) -> bool) -> io::Result<Said> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok((_, said)) if is_it(&said) => return Ok(said),
                Ok((when, said)) => self.note(when, &said)?,
                Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("a load process ended"));
                }
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
