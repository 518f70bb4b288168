//! A .torrent from an `http://` URL. Layer 6.

use super::escape::cut;
use super::exit::Failure;
use crate::wire::metainfo::Metainfo;

/// Fetches and parses it.
///
/// # Errors
/// It cannot be fetched or is no torrent.
pub fn torrent(url: &str) -> Result<Metainfo, Failure> {
    Err(Failure::new(
        format!("cannot fetch {}", cut(url, 200)),
        "fetch the file with another tool, such as `curl -LO`, and name it here",
    ))
}
