//! Where logs go: stderr above the progress bars, or a file. Layer 7.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::exit::{Failure, io_cause};
use super::{escape, output};
use crate::base::in_sentence;

/// What is logged, and where to.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogConfig<'a> {
    /// 0 warnings and errors, 1 lifecycle, 2 decisions, 3 messages.
    pub verbosity: u8,
    /// Without verbosity, errors only.
    pub is_quiet: bool,
    /// Appended to; `None` is stderr.
    pub file: Option<&'a Path>,
}

/// Starts logging.
///
/// # Errors
/// The log file cannot be opened.
pub fn start(config: LogConfig<'_>) -> Result<(), Failure> {
    let level = match config.verbosity {
        0 if config.is_quiet && config.file.is_none() => LevelFilter::ERROR,
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(config.verbosity > 1)
        .with_ansi(false);
    // A second subscriber is refused, which only tests can meet: the first one stays.
    let _ = match config.file {
        None if config.verbosity == 0 => builder
            .event_format(PlainLines)
            .with_writer(|| Event::new(Target::Stderr))
            .try_init(),
        None => builder
            .with_writer(|| Event::new(Target::Stderr))
            .try_init(),
        Some(path) => {
            let file = Arc::new(open(path)?);
            builder
                .with_writer(move || Event::new(Target::File(file.clone())))
                .try_init()
        }
    };
    Ok(())
}

fn open(path: &Path) -> Result<File, Failure> {
    let opened = File::options().create(true).append(true).open(path);
    opened.map_err(|error| {
        Failure::new(
            format!(
                "cannot open the log file {}: {}",
                escape::terminal_path(path),
                io_cause(&error)
            ),
            "name a file in a folder you may write to with --log-file",
        )
    })
}

/// `warning: …` for a person who asked for no log: neither time nor place.
struct PlainLines;

/// What this module warns of is also told as an event.
const TOLD_AS_EVENTS: &str = "gyre::session::trouble";

impl<S, N> FormatEvent<S, N> for PlainLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        if metadata.target() == TOLD_AS_EVENTS {
            return Ok(());
        }
        let kind = match *metadata.level() {
            Level::ERROR => "error",
            _ => "warning",
        };
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        writeln!(writer, "{kind}: {}", in_sentence(&text))
    }
}

/// Where the text of an event goes.
enum Target {
    Stderr,
    File(Arc<File>),
}

/// Text of one event, written as a whole when dropped.
///
/// Names and messages of torrents, peers and trackers are in it: what could steer a terminal is escaped
/// (HOSTILE.md K6, A6).
struct Event {
    text: Vec<u8>,
    target: Target,
}

impl Event {
    fn new(target: Target) -> Event {
        Event {
            text: Vec::new(),
            target,
        }
    }
}

impl Write for Event {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.text.is_empty() {
            return;
        }
        let text = self.text.strip_suffix(b"\n").unwrap_or(&self.text);
        let line = escape::terminal_bytes(text) + "\n";
        match &self.target {
            Target::Stderr => output::stderr_bytes(line.as_bytes()),
            // A full disk costs log lines, nothing else.
            Target::File(file) => drop((&**file).write_all(line.as_bytes())),
        }
    }
}
