//! The programs that are measured: started pinned to a core, watched through `/proc`, killed at the end.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gyre,
    Rqbit,
    Aria2,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Gyre => "gyre",
            Kind::Rqbit => "rqbit",
            Kind::Aria2 => "aria2",
        }
    }
}

pub struct Program {
    child: Child,
    pub addr: SocketAddr,
    log: PathBuf,
    ready_word: &'static str,
}

fn free_port() -> io::Result<u16> {
    let (_listener, addr) = load::listen()?;
    Ok(addr.port())
}

fn pinned(program: &Path, core: usize) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

impl Program {
    /// A seeder of the data in `folder`.
    pub fn seed(
        kind: Kind,
        gyre: &Path,
        work: &Path,
        torrent: &Path,
        folder: &Path,
        core: usize,
    ) -> io::Result<Program> {
        let port = free_port()?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (mut command, ready_word) = match kind {
            Kind::Gyre => {
                let mut command = pinned(gyre, core);
                command.arg("seed").arg(torrent).arg("--data").arg(folder);
                command.args([
                    "--port",
                    &port.to_string(),
                    "--no-trackers",
                    "--check",
                    "none",
                    "--json",
                    "--state",
                ]);
                command.arg(work.join("state"));
                (command, "\"seeding\"")
            }
            Kind::Rqbit => {
                let mut command = pinned(Path::new("rqbit"), core);
                command.args([
                    "--disable-dht",
                    "--disable-upnp-port-forward",
                    "--disable-trackers",
                ]);
                command.args(["--listen-port", &port.to_string(), "--http-api-listen-addr"]);
                command.arg(format!("127.0.0.1:{}", free_port()?));
                command
                    .args(["download", "--overwrite", "-o"])
                    .arg(folder)
                    .arg(torrent);
                (command, "")
            }
            Kind::Aria2 => return Err(io::Error::other("aria2 is measured downloading")),
        };
        start(&mut command, work, kind, addr, ready_word)
    }

    /// A leecher into `target` that is told of `seeds`.
    pub fn leech(
        kind: Kind,
        gyre: &Path,
        work: &Path,
        torrent: &Path,
        target: &Path,
        seeds: &[SocketAddr],
        core: usize,
    ) -> io::Result<Program> {
        fs::create_dir_all(target)?;
        let port = free_port()?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = match kind {
            Kind::Gyre => {
                let mut command = pinned(gyre, core);
                command.arg("download").arg(torrent).arg("-o").arg(target);
                command.args([
                    "--port",
                    &port.to_string(),
                    "--no-trackers",
                    "--json",
                    "--state",
                ]);
                command.arg(target.join("state"));
                for seed in seeds {
                    command.args(["--peer", &seed.to_string()]);
                }
                command
            }
            Kind::Aria2 => {
                let (listener, tracker) = load::listen()?;
                let seeds = seeds.to_vec();
                std::thread::spawn(move || load::track(listener, &seeds));
                let mut command = pinned(Path::new("aria2c"), core);
                command.args([
                    "--seed-time=0",
                    "--enable-dht=false",
                    "--enable-dht6=false",
                    "--bt-enable-lpd=false",
                ]);
                command.args([
                    "--enable-peer-exchange=false",
                    "--file-allocation=none",
                    "--bt-exclude-tracker=*",
                ]);
                command.args([
                    "--summary-interval=0",
                    "--bt-max-peers=0",
                    "--disable-ipv6=true",
                ]);
                command
                    .arg(format!("--bt-tracker=http://{tracker}/announce"))
                    .arg(format!("--listen-port={port}"));
                command.arg("-d").arg(target).arg(torrent);
                command
            }
            Kind::Rqbit => return Err(io::Error::other("rqbit is measured seeding")),
        };
        start(&mut command, work, kind, addr, "")
    }

    /// Waits until the program says that it serves.
    pub fn wait_until_ready(&self) -> io::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.log().contains(self.ready_word) {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "not ready in time\n{}",
                    self.log()
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    pub fn is_running(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// User and system time of all its threads, in seconds. Kernel threads that work for it run on its core and in its
    /// name.
    pub fn cpu_s(&self) -> io::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = behind_name.split_whitespace().collect();
        let ticks: f64 = [11, 12]
            .iter()
            .filter_map(|at| fields.get(*at)?.parse::<f64>().ok())
            .sum();
        Ok(ticks / 100.0)
    }

    /// Anonymous and shared memory resident now, in MiB.
    pub fn anonymous_mib(&self) -> io::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib: f64 = status
            .lines()
            .filter(|line| line.starts_with("RssAnon:") || line.starts_with("RssShmem:"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
            .sum();
        Ok(kib / 1024.0)
    }

    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let from = text.len().saturating_sub(3_000);
        text.get(from..).unwrap_or(&text).to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(
    command: &mut Command,
    work: &Path,
    kind: Kind,
    addr: SocketAddr,
    ready_word: &'static str,
) -> io::Result<Program> {
    let log = work.join(format!("{}.log", kind.name()));
    let out = File::create(&log)?;
    let child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    Ok(Program {
        child,
        addr,
        log,
        ready_word,
    })
}
