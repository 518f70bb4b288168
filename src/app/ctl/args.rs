//! The options of `gyre ctl`. Layer 7.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use crate::app::size::parse_rate;

#[derive(Clone, Debug, Args)]
pub struct CtlArgs {
    #[command(subcommand)]
    pub ask: Ask,
    /// The daemon's socket [default: control.sock in the state folder]
    #[arg(long, value_name = "PATH", global = true, value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// The daemon's state folder [default: $XDG_STATE_HOME/gyre]
    #[arg(long, value_name = "DIR", global = true, value_hint = ValueHint::DirPath)]
    pub state: Option<PathBuf>,
    /// One JSON object a line
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Ask {
    /// List all torrents
    List,
    /// Add .torrent files or magnet links
    Add(AddArgs),
    /// Show everything about torrents
    Show(Which),
    /// Let torrents run
    Start(Which),
    /// Stop torrents
    Stop(Which),
    /// Remove torrents
    Remove(RemoveArgs),
    /// Hash all data of torrents
    Verify(Which),
    /// Move the files of torrents to another folder, while they are seeded
    Move(MoveArgs),
    /// Show or set limits, of the whole daemon or of torrents
    Limit(LimitArgs),
    /// List the policies of the daemon's settings, and what their torrents do
    Policies,
    /// Watch the torrents that are busy, redrawn once a second
    Top,
}

#[derive(Clone, Debug, Args)]
pub struct Which {
    /// Numbers, info_hashes (six digits are enough) or names
    #[arg(required = true, value_name = "TORRENT")]
    pub torrents: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    pub which: Which,
    /// Delete their files too
    #[arg(long)]
    pub with_data: bool,
}

#[derive(Clone, Debug, Args)]
pub struct MoveArgs {
    #[command(flatten)]
    pub which: Which,
    /// Folder that they go to: the daemon's own or below one of its api-roots
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub to: PathBuf,
    /// Move nothing: the files are there already, and are looked at anew
    #[arg(long)]
    pub no_data: bool,
}

#[derive(Clone, Debug, Args)]
pub struct AddArgs {
    /// .torrent files or magnet links
    #[arg(required = true, value_name = "SOURCE", value_hint = ValueHint::FilePath)]
    pub sources: Vec<String>,
    /// Folder for the data [default: the daemon's own]
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub output: Option<PathBuf>,
    /// Wait to be started
    #[arg(long)]
    pub paused: bool,
    /// Put this label on it (repeat)
    #[arg(long = "label", value_name = "LABEL")]
    pub labels: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub struct LimitArgs {
    /// Numbers, info_hashes or names of torrents; none is the whole daemon
    #[arg(value_name = "TORRENT")]
    pub torrents: Vec<String>,
    /// Download at most this fast, 0 for no limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub down: Option<u64>,
    /// Upload at most this fast, 0 for no limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub up: Option<u64>,
}
