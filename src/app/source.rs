//! What a SOURCE argument is, and loading a .torrent. Layer 7.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::escape;
use super::exit::{Failure, io_cause};
use super::fetch::Route;
use crate::base::InfoHash;
use crate::uring::tls;
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::{Metainfo, MetainfoError};

/// The largest .torrent read (HOSTILE.md T2: 2 M pieces fit).
pub const TORRENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What a SOURCE argument names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A .torrent on disk.
    File(PathBuf),
    /// An `http://` or `https://` URL of a .torrent.
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
    if starts("http://") || (tls::IS_BUILT_IN && starts("https://")) {
        return Ok(Source::Http(text.to_owned()));
    }
    if starts("https://") {
        return Err(Failure::new(
            format!("cannot fetch {text}: {}", tls::ABSENT),
            "fetch the file with another tool, such as `curl -LO`, and name it here",
        ));
    }
    if text.is_empty() {
        return Err(Failure::usage(
            "an empty argument names no torrent",
            "name a .torrent file",
        ));
    }
    let is_there = Path::new(text).exists();
    if let Some((scheme, _)) = text.split_once("://")
        && !is_there
    {
        return Err(Failure::new(
            format!("cannot fetch {text}: Gyre does not speak {scheme}"),
            "give an http:// URL, or fetch the file with another tool and name it here",
        ));
    }
    match text.parse() {
        Ok(info_hash) if !is_there => Ok(Source::InfoHash(info_hash)),
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
    // Not read first: it may be the data that was named.
    if metadata.len() > TORRENT_BYTES_MAX {
        return Err(too_large(&shown));
    }
    let mut bytes = Vec::new();
    file.take(TORRENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(bytes)
}

fn too_large(shown: &str) -> Failure {
    Failure::new(
        format!("{shown} is larger than 64 MiB, too large for a .torrent"),
        "name the .torrent, not the data",
    )
}

/// Parses a .torrent's bytes; `shown` says where they came from.
///
/// # Errors
/// Too large, or no torrent.
pub fn parse(bytes: &[u8], shown: &str) -> Result<Metainfo, Failure> {
    if bytes.len() as u64 > TORRENT_BYTES_MAX {
        return Err(too_large(shown));
    }
    let metainfo = Metainfo::parse(bytes).map_err(|error| {
        let hint = match error {
            MetainfoError::UnknownVersion { .. } => "use a v1 or hybrid torrent of the same data",
            MetainfoError::TooManyValues { .. } => {
                "use a torrent of fewer files, or several torrents"
            }
            _ => "check that it is a .torrent file and was fetched whole",
        };
        Failure::new(format!("cannot use {shown}: {error}"), hint)
    })?;
    Ok(metainfo)
}

/// What a source gives at once.
#[derive(Clone, Debug)]
pub enum Given {
    Torrent(Box<Metainfo>),
    /// The metadata is with the peers.
    Link(Box<Magnet>),
}

/// Loads a .torrent, or reads a link.
///
/// # Errors
/// The source cannot be used.
pub fn load(argument: &OsStr, route: &Route) -> Result<Given, Failure> {
    Ok(match classify(argument)? {
        Source::File(path) => Given::Torrent(load_file(&path)?.into()),
        Source::Http(url) => Given::Torrent(super::fetch::torrent(&url, route)?.into()),
        Source::Magnet(link) => Given::Link(parse_magnet(&link)?.into()),
        Source::InfoHash(info_hash) => Given::Link(Magnet::new(info_hash).into()),
    })
}

/// Loads a .torrent for the verbs that need one.
///
/// # Errors
/// Everything else is refused by name.
pub fn load_torrent(argument: &OsStr, route: &Route) -> Result<Metainfo, Failure> {
    match load(argument, route)? {
        Given::Torrent(metainfo) => Ok(*metainfo),
        Given::Link(link) => Err(needs_torrent(&link)),
    }
}

/// Reads a magnet link.
///
/// # Errors
/// It is none.
pub fn parse_magnet(link: &str) -> Result<Magnet, Failure> {
    link.parse().map_err(|error| {
        Failure::new(
            format!("cannot use {}: {error}", escape::cut(link, 80)),
            "a magnet link starts with magnet:?xt=urn:btih: and the info_hash",
        )
    })
}

/// A magnet link or info_hash where the metadata itself is needed.
fn needs_torrent(magnet: &Magnet) -> Failure {
    let name = magnet.name.as_deref().map(|name| escape::cut(name, 80));
    let name = name.map_or_else(String::new, |name| format!(" ({name})"));
    Failure::new(
        format!(
            "{}{name} names a torrent but does not hold it",
            magnet.info_hash
        ),
        "give its .torrent: a file, or an http:// URL; `gyre info LINK --save-torrent FILE` fetches it from peers",
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
        let https = classify(OsStr::new("https://x/y.torrent"));
        assert_eq!(https.is_ok(), tls::IS_BUILT_IN);
        for text in ["ftp://x/y.torrent", ""] {
            assert!(classify(OsStr::new(text)).is_err(), "{text}");
        }
    }
}
