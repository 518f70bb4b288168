//! `gyre magnet`: the link to a torrent. Layer 7.

use serde_json::json;

use super::cli::MagnetArgs;
use super::exit::{Exit, Failure};
use super::fetch::Route;
use super::{json, output, source};
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::Metainfo;

/// Runs the verb.
///
/// # Errors
/// The .torrent cannot be loaded.
pub fn run(args: &MagnetArgs) -> Result<Exit, Failure> {
    let metainfo = source::load_torrent(&args.torrent, &Route::try_from(&args.route)?)?;
    let link = link(&metainfo);
    if args.json {
        json::print(&json!({"info_hash": metainfo.info_hash.to_string(), "magnet": link}));
    } else {
        output::stdout_line(&link);
    }
    Ok(Exit::Done)
}

/// The link; percent-encoded, so safe for a terminal.
pub fn link(metainfo: &Metainfo) -> String {
    Magnet::from_metainfo(metainfo).to_string()
}
