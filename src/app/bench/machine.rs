//! What a figure was taken on. Layer 7.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::place;

/// Machine, kernel and program, as every result records them.
pub fn facts() -> Value {
    json!({
        "gyre": env!("CARGO_PKG_VERSION"),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "congestion": place::congestion(),
        "unix_time": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "optimised": !cfg!(debug_assertions),
    })
}

/// The same as one line.
pub fn line() -> String {
    let debug = match cfg!(debug_assertions) {
        true => " (DEBUG BUILD: figures mean nothing)",
        false => "",
    };
    format!(
        "gyre {}{debug} · Linux {} · {}, {} cores · {}",
        env!("CARGO_PKG_VERSION"),
        read("/proc/sys/kernel/osrelease"),
        cpu_model(),
        cores(),
        place::congestion(),
    )
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn cpu_model() -> String {
    let text = read("/proc/cpuinfo");
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "model name").then(|| value.trim().to_owned())
    };
    text.lines().find_map(field).unwrap_or_default()
}

/// Cores of the machine, whichever of them this thread stays on.
fn cores() -> i64 {
    use nix::unistd::{SysconfVar, sysconf};
    sysconf(SysconfVar::_NPROCESSORS_ONLN)
        .ok()
        .flatten()
        .unwrap_or(1)
}

/// Memory of the machine.
pub fn memory_bytes() -> u64 {
    let text = read("/proc/meminfo");
    let field = |line: &str| {
        line.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()
    };
    text.lines().find_map(field).unwrap_or(0_u64) * 1024
}
