//! The program under test: Gyre itself, or any other as a shell command. Layer 7.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use super::place::{self, Confinement};

/// How long it may take to end when it is asked to.
const STOP_WAIT: Duration = Duration::from_secs(12);
/// Text of its log shown when something goes wrong.
const LOG_SHOWN_BYTES: usize = 2_000;
const POLL: Duration = Duration::from_millis(2);

/// What Gyre said in its `--json` lines.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub complete: Option<Instant>,
    pub is_listening: bool,
    /// The last internal report: the object of an event `lab`.
    pub lab: Option<Value>,
    pub errors: Vec<String>,
}

/// A running program under test, killed with all it started when dropped.
pub struct Subject {
    child: Child,
    log: PathBuf,
    said: Arc<Mutex<Said>>,
    is_gyre: bool,
    /// CPU time of this process's ended children before it was started.
    children_cpu_s: f64,
}

/// Where and how it runs.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    pub cores: &'a [usize],
    pub limits: Confinement,
    /// What it prints goes there.
    pub log: PathBuf,
}

/// The values of the placeholders in `--external`.
#[derive(Clone, Debug, Default)]
pub struct Placeholders {
    pub torrents: Vec<PathBuf>,
    pub data: PathBuf,
    pub dir: PathBuf,
    pub state: PathBuf,
    pub port: u16,
    pub peers: Vec<SocketAddr>,
}

impl Placeholders {
    fn fill(&self, command: &str) -> String {
        let quoted = |path: &Path| format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"));
        let torrents: Vec<String> = self.torrents.iter().map(|path| quoted(path)).collect();
        let peers: Vec<String> = self.peers.iter().map(ToString::to_string).collect();
        command
            .replace("{torrent}", &torrents.join(" "))
            .replace("{data}", &quoted(&self.data))
            .replace("{dir}", &quoted(&self.dir))
            .replace("{state}", &quoted(&self.state))
            .replace("{port}", &self.port.to_string())
            .replace("{peers}", &peers.join(","))
    }
}

impl Subject {
    /// Starts this very program with `arguments` and `--json`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn gyre(arguments: &[String], start: &Start<'_>) -> io::Result<Subject> {
        let mut command = place::command(std::env::current_exe()?)?;
        command
            .args(arguments)
            .args(["--json", "--lab"])
            .stdout(Stdio::piped());
        let mut subject = Subject::start(command, start, true)?;
        if let Some(stdout) = subject.child.stdout.take() {
            let said = subject.said.clone();
            std::thread::spawn(move || listen(BufReader::new(stdout), &said));
        }
        Ok(subject)
    }

    /// Starts another program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn external(
        command: &str,
        values: &Placeholders,
        start: &Start<'_>,
    ) -> io::Result<Subject> {
        let mut shell = place::command("sh")?;
        shell
            .arg("-c")
            .arg(format!("exec {}", values.fill(command)));
        shell.stdout(File::create(start.log.with_extension("out"))?);
        Subject::start(shell, start, false)
    }

    fn start(mut command: Command, start: &Start<'_>, is_gyre: bool) -> io::Result<Subject> {
        place::clean_environment(&mut command);
        command
            .stdin(Stdio::null())
            .stderr(File::create(&start.log)?)
            .process_group(0);
        let children_cpu_s = children_cpu_s();
        let child = place::spawn_confined(start.cores, start.limits, &mut command)?;
        Ok(Subject {
            child,
            log: start.log.clone(),
            said: Arc::default(),
            is_gyre,
            children_cpu_s,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said; empty for other programs.
    pub fn said(&self) -> Said {
        match self.said.lock() {
            Ok(said) => said.clone(),
            Err(poisoned) => poisoned.into_inner().clone(),
        }
    }

    /// Waits until it listens; other programs are found out by connecting.
    ///
    /// # Errors
    /// It ended, or does not listen in time.
    pub fn wait_until_listening(&mut self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        while self.is_gyre && !self.said().is_listening {
            if self.ended()?.is_some() || Instant::now() > deadline {
                return Err(self.trouble("does not listen"));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// CPU time of all it did, once it has ended: exact, and with threads that ended before.
    pub fn whole_cpu_s(&self) -> f64 {
        children_cpu_s() - self.children_cpu_s
    }

    /// An error that shows what it said last.
    pub fn trouble(&self, what: &str) -> io::Error {
        let mut text = self.said().errors.join("; ");
        for path in [self.log.clone(), self.log.with_extension("out")] {
            let log = fs::read(path).unwrap_or_default();
            let from = log.len().saturating_sub(LOG_SHOWN_BYTES);
            text += &String::from_utf8_lossy(log.get(from..).unwrap_or_default());
        }
        io::Error::other(format!(
            "the program under test {what}; it said: {}",
            text.trim()
        ))
    }

    /// Asks it to end, then makes it.
    pub fn stop(mut self) -> io::Result<()> {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + STOP_WAIT;
        while self.child.try_wait()?.is_none() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // The group holds what it started, even when it has ended itself.
        self.signal(Signal::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn children_cpu_s() -> f64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else {
        return 0.0;
    };
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn listen(lines: impl BufRead, said: &Mutex<Said>) {
    for line in lines.lines().map_while(Result::ok) {
        let Ok(event) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        let Ok(mut said) = said.lock() else {
            return;
        };
        match event.get("event").and_then(Value::as_str) {
            Some("listening") => said.is_listening = true,
            Some("complete") => said.complete = said.complete.or(Some(Instant::now())),
            Some("error") => said.errors.extend(
                event
                    .get("message")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            ),
            _ => {}
        }
        if let Some(lab) = event.get("lab").filter(|lab| lab.is_object()) {
            said.lab = Some(lab.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_quoted_for_the_shell() {
        let values = Placeholders {
            torrents: vec!["/a b/x.torrent".into(), "/it's".into()],
            data: "/d".into(),
            port: 7,
            peers: vec![
                "127.0.0.1:1".parse().unwrap(),
                "127.0.0.2:2".parse().unwrap(),
            ],
            ..Placeholders::default()
        };
        assert_eq!(
            values.fill("p {torrent} --data {data} --port {port} --peers {peers}"),
            r"p '/a b/x.torrent' '/it'\''s' --data '/d' --port 7 --peers 127.0.0.1:1,127.0.0.2:2"
        );
    }

    #[test]
    fn internal_reports_are_taken_where_they_come() {
        let said = Mutex::new(Said::default());
        let lines = "{\"event\":\"listening\"}\n{\"event\":\"lab\",\"lab\":{\"loop_lag_p99_us\":9}}\nnoise\n";
        listen(lines.as_bytes(), &said);
        let said = said.into_inner().unwrap();
        assert!(said.is_listening && said.complete.is_none());
        assert_eq!(said.lab.unwrap()["loop_lag_p99_us"], 9);
    }
}
