//! `gyre bench`: reproducible load on this machine, with synthetic peers in processes of their own. Layer 7.
//!
//! The program under test runs on a core of its own and is measured from outside, through `/proc` and through its
//! sockets; it may be another program than Gyre. Every result records machine, kernel and congestion control.

pub mod args;
mod calls;
mod disk;
mod figures;
mod hash;
mod leech;
mod load;
mod machine;
mod place;
mod plan;
mod sample;
mod seed;
mod subject;
mod swarm;
mod watch;

use std::io;

use serde_json::{Value, json};

use super::exit::{Exit, Failure};
use super::{json, output};
use args::{BenchArgs, BenchVerb};
use figures::Figures;

const GIB: f64 = (1_u64 << 30) as f64;
const MIB: f64 = (1_u64 << 20) as f64;

/// Runs the verb.
///
/// # Errors
/// Something cannot be set up, or the program under test fails.
pub fn run(args: &BenchArgs) -> Result<Exit, Failure> {
    match &args.what {
        BenchVerb::Seed(args) => seed::run(args),
        BenchVerb::Leech(args) => leech::run(args),
        BenchVerb::Hash(args) => hash::run(args),
        BenchVerb::Disk(args) => disk::run(args),
        BenchVerb::Load => load::run(),
        BenchVerb::Exec { command } => Err(place::become_program(command)),
    }
}

/// An I/O error of the lab itself.
fn failed(error: io::Error) -> Failure {
    Failure::new(
        format!("the measurement failed: {error}"),
        "try again with -v; `gyre doctor` shows what this machine lacks",
    )
}

/// Says on stderr what is going on, unless the result alone is wanted.
fn note(is_quiet: bool, text: &str) {
    if !is_quiet {
        output::stderr_line(text);
    }
}

/// Prints a result: one JSON object, or the machine, the settings and the table.
fn print(what: &str, is_json: bool, settings: &Value, figures: &Figures, more: &Value) {
    if is_json {
        let mut result = json!({
            "event": "bench",
            "bench": what,
            "machine": machine::facts(),
            "settings": settings,
            "figures": figures.json(),
        });
        if let (Some(result), Some(more)) = (result.as_object_mut(), more.as_object()) {
            result.extend(more.clone());
        }
        json::print(&result);
        return;
    }
    output::stdout_line(&machine::line());
    if let Some(line) = more.get("line").and_then(Value::as_str) {
        output::stdout_line(line);
    }
    figures.print();
}
