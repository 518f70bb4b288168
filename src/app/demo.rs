//! `gyre demo`. Layer 6.

use super::cli::DemoArgs;
use super::exit::{Exit, Failure};

pub fn run(_args: &DemoArgs) -> Result<Exit, Failure> {
    Err(Failure::new("no demo in this build", ""))
}
