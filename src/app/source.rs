//! What a SOURCE argument is, and loading a .torrent. Layer 6.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::escape;
use super::exit::{Failure, io_cause};
use crate::base::InfoHash;
use crate::wire::metainfo::Metainfo;

/// The largest .torrent read (HOSTILE.md T2: 2 M pieces fit).
pub const TORRENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What a SOURCE argument names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A .torrent on disk.
    File(PathBuf),
    /// An `http://` URL of a .torrent.
    Http(String),
    /// A magnet link, not parsed.
    Magnet(String),
    /// A bare info_hash.
    InfoHash(InfoHash),
}

/// Tells the kinds apart by their look; an existing file wins over a bare info_hash.
///
/// # Errors
/// A kind that Gyre cannot load.
pub fn classify(argument: &OsStr) -> Result<Source, Failure> {
    let file = || Source::File(PathBuf::from(argument));
    let Some(text) = argument.to_str() else {
        return Ok(file());
    };
    let starts = |prefix: &str| {
        text.get(..prefix.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(prefix))
    };
    if starts("magnet:") {
        return Ok(Source::Magnet(text.to_owned()));
    }
    if starts("http://") {
        return Ok(Source::Http(text.to_owned()));
    }
    if starts("https://") {
        return Err(Failure::new(
            format!("{text} needs TLS, which Gyre does not speak"),
            "fetch the file with another tool, such as `curl -LO`, and name it here",
        ));
    }
    match text.parse() {
        Ok(info_hash) if !Path::new(text).exists() => Ok(Source::InfoHash(info_hash)),
        _ => Ok(file()),
    }
}

/// Reads and parses a .torrent.
///
/// # Errors
/// The file is missing, unreadable, too large or no torrent.
pub fn load_file(path: &Path) -> Result<Metainfo, Failure> {
    parse(&read_file(path)?, &escape::terminal_path(path))
}

/// The bytes of a .torrent.
fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let shown = escape::terminal_path(path);
    let unreadable = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => {
                "check the permissions of the file and its folders"
            }
            _ => "name a .torrent file",
        };
        Failure::new(format!("cannot read {shown}: {}", io_cause(&error)), hint)
    };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(Failure::new(
            format!("{shown} is a folder, not a .torrent"),
            format!("name a .torrent file, or make one with `gyre create {shown}`"),
        ));
    }
    let mut bytes = Vec::new();
    file.take(TORRENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(bytes)
}

/// Parses a .torrent's bytes; `shown` says where they came from.
///
/// # Errors
/// Too large, or no torrent.
pub fn parse(bytes: &[u8], shown: &str) -> Result<Metainfo, Failure> {
    if bytes.len() as u64 > TORRENT_BYTES_MAX {
        return Err(Failure::new(
            format!("{shown} is larger than 64 MiB, too large for a .torrent"),
            "name the .torrent, not the data",
        ));
    }
    let metainfo = Metainfo::parse(bytes).map_err(|error| {
        Failure::new(
            format!("cannot use {shown}: {error}"),
            "check that it is a .torrent file and was fetched whole",
        )
    })?;
    Ok(metainfo)
}

/// Loads a .torrent from disk for the verbs that need one.
///
/// # Errors
/// Everything else is refused by name.
pub fn load_torrent(argument: &OsStr) -> Result<Metainfo, Failure> {
    match classify(argument)? {
        Source::File(path) => load_file(&path),
        Source::Http(url) => super::fetch::torrent(&url),
        Source::Magnet(_) | Source::InfoHash(_) => Err(needs_torrent(argument)),
    }
}

/// A magnet link or info_hash where the torrent's own data is needed.
pub fn needs_torrent(argument: &OsStr) -> Failure {
    Failure::new(
        format!(
            "{} names a torrent but holds no metadata",
            escape::cut(&argument.to_string_lossy(), 80)
        ),
        "give the .torrent file instead",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_sources_are_told_apart() {
        let kind = |text: &str| classify(OsStr::new(text)).unwrap();
        assert!(matches!(kind("magnet:?xt=urn:btih:00"), Source::Magnet(_)));
        assert!(matches!(kind("HTTP://x/y.torrent"), Source::Http(_)));
        assert!(matches!(kind("a.torrent"), Source::File(_)));
        assert!(matches!(kind(&"0a".repeat(20)), Source::InfoHash(_)));
        assert!(matches!(kind(&"0a".repeat(19)), Source::File(_)));
        assert!(classify(OsStr::new("https://x/y.torrent")).is_err());
    }
}
