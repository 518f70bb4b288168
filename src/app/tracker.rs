//! `gyre tracker`: a small tracker for a swarm of one's own. Layer 6.

use super::cli::TrackerArgs;
use super::exit::{Exit, Failure};

/// Runs the verb until stopped.
///
/// # Errors
/// The address cannot be listened on.
pub fn run(args: &TrackerArgs) -> Result<Exit, Failure> {
    Err(Failure::new(
        format!("cannot listen on {:?}", args.listen),
        "no tracker in this build",
    ))
}
