//! Where things run: cores, a network namespace of one's own, addresses, users. Layer 7.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use super::args::CommonBench;
use crate::app::exit::Failure;

const CONGESTION: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// The cores of a run.
#[derive(Clone, Debug)]
pub struct Cores {
    /// Of the program under test.
    pub subject: Vec<usize>,
    /// Of its threads named `hash`; empty: the same.
    pub hash: Vec<usize>,
    /// Of the synthetic peers.
    pub load: Vec<usize>,
}

impl Cores {
    /// As asked for; without a word the load gets all that the program under test does not have.
    ///
    /// # Errors
    /// This process may not run on one of them.
    pub fn choose(args: &CommonBench) -> Result<Cores, Failure> {
        let allowed = allowed_cores();
        let mut named = args
            .core
            .iter()
            .chain(&args.hash_core)
            .chain(&args.load_core);
        if let Some(core) = named.find(|core| !allowed.contains(core)) {
            return Err(Failure::usage(
                format!("core {core} is not among those this process may run on: {allowed:?}"),
                "name others with --core and --load-core",
            ));
        }
        let mut load = args.load_core.clone();
        if load.is_empty() {
            load = allowed.clone();
            load.retain(|core| !args.core.contains(core));
        }
        if load.is_empty() {
            // One core for all: figures then say little about the program alone.
            load = allowed;
        }
        Ok(Cores {
            subject: args.core.clone(),
            hash: args.hash_core.clone(),
            load,
        })
    }
}

/// Cores that this process may run on.
pub fn allowed_cores() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return vec![0];
    };
    (0..CpuSet::count())
        .filter(|core| set.is_set(*core).unwrap_or(false))
        .collect()
}

/// Keeps the calling thread, and what it starts, on these cores.
pub fn stay_on(cores: &[usize]) -> io::Result<()> {
    Ok(sched_setaffinity(Pid::from_raw(0), &set_of(cores)?)?)
}

fn set_of(cores: &[usize]) -> io::Result<CpuSet> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core)?;
    }
    Ok(set)
}

/// Moves the threads of a process whose name begins with `name` to these cores.
pub fn move_threads(pid: u32, name: &str, cores: &[usize]) -> io::Result<()> {
    let set = set_of(cores)?;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let comm = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let tid = task.file_name().to_string_lossy().parse();
        if let (true, Ok(tid)) = (comm.starts_with(name), tid) {
            sched_setaffinity(Pid::from_raw(tid), &set)?;
        }
    }
    Ok(())
}

/// Starts a process that stays on these cores. A child inherits them from the thread that starts it.
pub fn spawn_on(cores: &[usize], command: &mut Command) -> io::Result<Child> {
    let before = sched_getaffinity(Pid::from_raw(0))?;
    stay_on(cores)?;
    let child = command.spawn();
    sched_setaffinity(Pid::from_raw(0), &before)?;
    child
}

/// How the program under test is confined.
#[derive(Clone, Copy, Debug, Default)]
pub struct Confinement {
    pub user: Option<u32>,
    pub memlock_bytes: Option<u64>,
}

/// Starts a process on these cores, with these limits.
pub fn spawn_confined(
    cores: &[usize],
    limits: Confinement,
    command: &mut Command,
) -> io::Result<Child> {
    if let Some(user) = limits.user {
        command.uid(user).gid(user);
    }
    let Some(bytes) = limits.memlock_bytes else {
        return spawn_on(cores, command);
    };
    // A child inherits the limit; ours is put back.
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    setrlimit(Resource::RLIMIT_MEMLOCK, bytes, hard.max(bytes))?;
    let child = spawn_on(cores, command);
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
    child
}

/// A command that runs `program` by way of [`become_program`].
pub fn command(program: impl AsRef<OsStr>) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "exec", "--"]).arg(program);
    Ok(command)
}

/// Turns this process into another program, which the kernel ends when its starter ends, however that ends, and in
/// which no signal is blocked.
pub fn become_program(command: &[OsString]) -> Failure {
    let _ = nix::sys::prctl::set_pdeathsig(Some(Signal::SIGTERM));
    let _ = SigSet::empty().thread_set_mask();
    let Some((program, arguments)) = command.split_first() else {
        return Failure::usage("no program is named", "");
    };
    let error = Command::new(program).args(arguments).exec();
    Failure::new(
        format!("cannot start {}: {error}", program.to_string_lossy()),
        "install it, or put it on the PATH",
    )
}

/// Takes away what would change the options of a `gyre` that is started.
pub fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let is_proxy = text.eq_ignore_ascii_case("http_proxy");
        if text.starts_with("GYRE_") || is_proxy {
            command.env_remove(&name);
        }
    }
}

/// The addresses of a run.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// The first two bytes of all of them.
    prefix: [u8; 2],
}

impl Net {
    /// The loopback as it is, or a network namespace of its own under that congestion control.
    ///
    /// # Errors
    /// The namespace cannot be made.
    pub fn open(congestion: Option<&str>) -> Result<Net, Failure> {
        let Some(congestion) = congestion else {
            return Ok(Net { prefix: [127, 66] });
        };
        let hint = "run it as root, or leave --congestion out to measure under the machine's own";
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| {
            Failure::new(
                format!("cannot make a network namespace: {}", error.desc()),
                hint,
            )
        })?;
        // Ordinary addresses: some programs refuse 127.0.0.0/8 as peers.
        for arguments in [
            &["link", "set", "lo", "up"][..],
            &["addr", "add", "10.66.0.1/16", "dev", "lo"],
        ] {
            let done = Command::new("ip").args(arguments).status();
            if !done.is_ok_and(|status| status.success()) {
                return Err(Failure::new(
                    format!("`ip {}` failed", arguments.join(" ")),
                    "install iproute2",
                ));
            }
        }
        fs::write(CONGESTION, congestion).map_err(|error| {
            Failure::new(
                format!("cannot choose the congestion control {congestion}: {error}"),
                "`sysctl net.ipv4.tcp_available_congestion_control` lists what there is",
            )
        })?;
        Ok(Net { prefix: [10, 66] })
    }

    /// Where the program under test is reached.
    pub const fn subject(self) -> Ipv4Addr {
        let [a, b] = self.prefix;
        Ipv4Addr::new(a, b, 0, 1)
    }

    /// The address of the n-th synthetic peer; those of leechers and seeders do not overlap up to 8,000 each.
    pub const fn peer(self, number: u32, is_seeder: bool) -> Ipv4Addr {
        let [a, b] = self.prefix;
        let third = if is_seeder { 128 } else { 2 } + (number / 250) % 100;
        Ipv4Addr::new(a, b, third as u8, (1 + number % 250) as u8)
    }

    /// A port that nobody has now.
    pub fn free_port(self) -> io::Result<u16> {
        Ok(TcpListener::bind(SocketAddr::from((self.subject(), 0)))?
            .local_addr()?
            .port())
    }
}

/// The congestion control that new sockets of this thread's namespace get.
pub fn congestion() -> String {
    fs::read_to_string(CONGESTION)
        .unwrap_or_default()
        .trim()
        .to_owned()
}
