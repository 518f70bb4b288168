//! Layer 6: command line, progress, logs.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod create;
pub mod demo;
pub mod doctor;
pub mod escape;
pub mod exit;
pub mod fetch;
pub mod hashing;
pub mod info;
pub mod json;
pub mod logs;
pub mod magnet;
pub mod meter;
pub mod output;
pub mod packaging;
pub mod plain;
pub mod render;
pub mod run;
pub mod select;
pub mod signals;
pub mod size;
pub mod source;
pub mod tracker;
pub mod verify;
pub mod walk;

use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};

use cli::{Cli, Verb};
use exit::{Exit, Failure};

/// The whole command: arguments, logs, signals, the verb, the exit code.
pub fn main() -> ExitCode {
    install_panic_hook();
    signals::install();
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return usage(&error).into(),
    };
    if let Err(failure) = logs::start(cli.log.verbose, cli.log.log_file.as_deref()) {
        failure.report();
        return failure.exit().into();
    }
    let result = dispatch(&cli);
    output::set_live_bars(None);
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if wants_json(&cli.verb) {
                json::print(&json::failure(&failure));
            }
            failure.report();
            failure.exit().into()
        }
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
        Verb::Doctor(args) => doctor::run(args),
        Verb::Demo(args) => demo::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Completions(args) => Ok(packaging::completions(args)),
        Verb::Man => packaging::man(),
    }
}

const fn wants_json(verb: &Verb) -> bool {
    match verb {
        Verb::Download(args) => args.session.json,
        Verb::Seed(args) => args.session.json,
        Verb::Create(args) => args.json,
        Verb::Info(args) => args.json,
        Verb::Verify(args) => args.json,
        Verb::Magnet(args) => args.json,
        Verb::Tracker(args) => args.json,
        Verb::Doctor(args) => args.json,
        Verb::Bench(args) => args.what.is_json(),
        Verb::Demo(_) | Verb::Completions(_) | Verb::Man => false,
    }
}

/// Help and version go to stdout, everything else is an `error:` and a `hint:` line and exit code 2.
fn usage(error: &clap::Error) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print(); // a closed stdout is nobody's fault
            return Exit::Done;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return Exit::Usage;
        }
        _ => {}
    }
    let rendered = error.render().to_string();
    let mut paragraphs = rendered.split("\n\n");
    let first = paragraphs.next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let message = words.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let tip = rendered
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "));
    let hint = match (tip, error.get(ContextKind::ValidValue)) {
        (Some(tip), _) => tip.to_owned(),
        _ => "`gyre --help` and `gyre VERB --help` list what there is".to_owned(),
    };
    let failure = Failure::usage(message, hint);
    failure.report();
    failure.exit()
}

/// A panic is one line on stderr, whatever thread it is in.
fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
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
