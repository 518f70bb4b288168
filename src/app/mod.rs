//! Layer 7: command line, progress, logs.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod create;
pub mod ctl;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod escape;
pub mod exit;
pub mod fetch;
pub mod hashing;
mod ignored;
pub mod import;
pub mod info;
pub mod json;
pub mod logs;
pub mod magnet;
pub mod metadata;
pub mod meter;
pub mod output;
pub mod packaging;
pub mod patience;
pub mod plain;
pub mod render;
pub mod run;
pub mod scrape;
pub mod select;
pub mod session_args;
mod signals;
pub mod size;
pub mod source;
pub mod tracker;
pub mod usage;
pub mod values;
pub mod verify;
pub mod walk;

use std::process::ExitCode;

use cli::{Cli, Verb};
use exit::{Exit, Failure};
use logs::LogConfig;

/// The whole command: arguments, logs, signals, the verb, the exit code.
pub fn main() -> ExitCode {
    install_panic_hook();
    crate::uring::memory::settle();
    signals::install();
    let arguments = usage::spelled_out(std::env::args_os().collect());
    let cli = match cli::parse(arguments.iter().cloned()) {
        Ok(cli) => cli,
        Err(error) => return output::checked(usage::answer(&error, &arguments)).into(),
    };
    let (wants_json, is_quiet) = wants(&cli.verb);
    let logging = LogConfig {
        verbosity: cli.log.verbose,
        is_quiet,
        file: cli.log.log_file.as_deref(),
    };
    let result = logs::start(logging).and_then(|()| dispatch(&cli));
    output::set_live_bars(None);
    match result {
        Ok(exit) => output::checked(exit).into(),
        Err(failure) => {
            report(&failure, wants_json);
            failure.exit().into()
        }
    }
}

/// Says once what failed: as an event to a program that reads stdout, to a person else.
fn report(failure: &Failure, as_json: bool) {
    let is_said = as_json && json::print(&json::failure(failure));
    if !is_said {
        failure.report();
    }
}

fn dispatch(cli: &Cli) -> Result<Exit, Failure> {
    match &cli.verb {
        Verb::Download(args) => run::download(args),
        Verb::Seed(args) => run::seed(args),
        Verb::Create(args) => create::run(args),
        Verb::Info(args) => info::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Magnet(args) => magnet::run(args),
        Verb::Tracker(args) => tracker::run(args),
        Verb::Daemon(args) => daemon::run(args),
        Verb::Import(args) => import::import(args),
        Verb::Export(args) => import::export(args),
        Verb::Ctl(args) => ctl::run(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Demo(args) => demo::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Completions(args) => Ok(packaging::completions(args)),
        Verb::Man => packaging::man(),
    }
}

/// Whether the verb was asked for JSON, and for quiet.
const fn wants(verb: &Verb) -> (bool, bool) {
    match verb {
        Verb::Download(args) => (args.session.json, args.session.quiet),
        Verb::Seed(args) => (args.session.json, args.session.quiet),
        Verb::Create(args) => (args.json, args.quiet),
        Verb::Info(args) => (args.json, false),
        Verb::Verify(args) => (args.json, args.quiet),
        Verb::Magnet(args) => (args.json, false),
        Verb::Tracker(args) => (args.json, args.quiet),
        Verb::Doctor(args) => (args.json, false),
        Verb::Bench(args) => (args.what.is_json(), false),
        Verb::Demo(args) => (false, args.quiet),
        Verb::Import(args) => (args.json, false),
        Verb::Export(args) => (args.json, false),
        Verb::Ctl(args) => (args.json, false),
        Verb::Daemon(_) | Verb::Completions(_) | Verb::Man => (false, false),
    }
}

/// A panic is one line on stderr, whatever thread it is in. Where a damaged file is its cause, that is what is told.
fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        if crate::daemon::is_guarded() {
            return;
        }
        let payload = panic.payload();
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("unknown cause");
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let line = format!(
            "error: internal fault at {place}: {}; hint: please report this line",
            escape::terminal(text)
        );
        // Not through `output`: its lock may be held by the thread that panics.
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "{line}");
    }));
}
