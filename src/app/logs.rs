//! Where logs go: stderr above the progress bars, or a file. Layer 6.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::exit::{Failure, io_cause};

/// Starts logging: `-v` info, `-vv` debug, `-vvv` trace; warnings and errors always.
///
/// # Errors
/// The log file cannot be opened.
pub fn start(verbosity: u8, log_file: Option<&Path>) -> Result<(), Failure> {
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(verbosity > 1)
        .with_ansi(false);
    // A second subscriber is refused, which only tests can meet: the first one stays.
    match log_file {
        None => {
            let _ = builder.with_writer(StderrLines).try_init();
        }
        Some(path) => {
            let file = File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|error| {
                    Failure::new(
                        format!(
                            "cannot open the log file {}: {}",
                            path.display(),
                            io_cause(&error)
                        ),
                        "name a file in a folder you may write to",
                    )
                })?;
            let _ = builder.with_writer(std::sync::Mutex::new(file)).try_init();
        }
    }
    Ok(())
}

/// Hands each event's text to [`super::output`] as a whole.
struct StderrLines;

/// Text of one event, written when dropped.
#[derive(Default)]
struct StderrEvent(Vec<u8>);

impl MakeWriter<'_> for StderrLines {
    type Writer = StderrEvent;

    fn make_writer(&self) -> StderrEvent {
        StderrEvent::default()
    }
}

impl Write for StderrEvent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for StderrEvent {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            super::output::stderr_bytes(&self.0);
        }
    }
}
