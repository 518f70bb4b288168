//! The files in which other programs keep their torrents. Layer 6. Blocks.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Program;
use crate::session::SessionError;
use crate::uring::files::{self, OpenMode};
use crate::wire::bencode::scan;
use crate::wire::foreign::{self, Foreign};
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::{Metainfo, TORRENT_BYTES_MAX};

/// The longest resume file that is read: a byte a piece, and the most pieces that a .torrent has room for.
const RESUME_BYTES_MAX: u64 = 64 << 20;
/// The longest file with a link.
const LINK_BYTES_MAX: u64 = crate::wire::magnet::MAGNET_BYTES_MAX as u64;
/// Names read of one folder; the largest installations have a tenth of it, at three files a torrent.
const NAMES_MAX: usize = 1_000_000;

/// A program's folder, and the torrents in it.
pub struct Files {
    program: Program,
    /// Where the .torrent files are, and where the resume files.
    torrents: OwnedFd,
    resume: OwnedFd,
    stems: BTreeSet<String>,
}

/// The files of one torrent.
#[derive(Default)]
pub struct Found {
    stem: String,
    torrent: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    resume: Option<Vec<u8>>,
    /// rtorrent's own file, beside that of its library.
    program: Option<Vec<u8>>,
}

/// The same, parsed.
pub struct Whole {
    pub metainfo: Option<Metainfo>,
    pub torrent: Vec<u8>,
    /// Without metadata: the link that leads to it.
    pub link: String,
    pub foreign: Foreign,
}

impl Files {
    /// Finds the program's torrents.
    ///
    /// # Errors
    /// The folder cannot be read, or there is none of that program in it.
    pub fn open(program: Program, folder: &Path) -> Result<Files, SessionError> {
        let cannot = |path: &Path, error: io::Error| {
            let message = format!("cannot read {}: {error}", path.display());
            SessionError::new(message, format!("name {}", program.folder()))
        };
        let (torrents, resume) = folders(program, folder);
        let open = |path: &Path| files::open_root(path).map_err(|error| cannot(path, error));
        let mut names = names(&torrents).map_err(|error| cannot(&torrents, error))?;
        names.retain(|name| is_of(program, name));
        let stems: BTreeSet<String> = names.iter().filter_map(|name| stem(name)).collect();
        if stems.is_empty() {
            let message = format!(
                "no torrents of {} in {}",
                program.name(),
                torrents.display()
            );
            return Err(SessionError::new(message, hint(program, folder)));
        }
        Ok(Files {
            program,
            torrents: open(&torrents)?,
            resume: open(&resume)?,
            stems,
        })
    }

    /// The torrents, by the name of their file, in order.
    pub const fn stems(&self) -> &BTreeSet<String> {
        &self.stems
    }

    /// Reads the files of one.
    ///
    /// # Errors
    /// One of them is there and cannot be read, in words for the user.
    pub fn read(&self, stem: &str) -> Result<Found, String> {
        let torrent = |end: &str| read(&self.torrents, &format!("{stem}{end}"), TORRENT_MAX);
        let resume = |end: &str| read(&self.resume, &format!("{stem}{end}"), RESUME_BYTES_MAX);
        let mut found = Found {
            stem: stem.to_owned(),
            torrent: torrent(".torrent")?,
            ..Found::default()
        };
        match self.program {
            Program::Qbittorrent => found.resume = resume(".fastresume")?,
            Program::Transmission => {
                found.resume = resume(".resume")?;
                found.link = read(&self.torrents, &format!("{stem}.magnet"), LINK_BYTES_MAX)?;
            }
            Program::Rtorrent => {
                found.resume = resume(".torrent.libtorrent_resume")?;
                found.program = resume(".torrent.rtorrent")?;
            }
        }
        Ok(found)
    }
}

const TORRENT_MAX: u64 = TORRENT_BYTES_MAX as u64;

/// The folders with the .torrent files and with the resume files.
fn folders(program: Program, folder: &Path) -> (PathBuf, PathBuf) {
    match program {
        Program::Qbittorrent => {
            let below = folder.join("BT_backup");
            let own = if below.is_dir() {
                below
            } else {
                folder.to_owned()
            };
            (own.clone(), own)
        }
        Program::Transmission => (folder.join("torrents"), folder.join("resume")),
        Program::Rtorrent => (folder.to_owned(), folder.to_owned()),
    }
}

fn hint(program: Program, folder: &Path) -> String {
    let database = |folder: &Path| folder.join("torrents.db").exists();
    let is_database = database(folder) || folder.parent().is_some_and(database);
    match program {
        Program::Qbittorrent if is_database => {
            "qBittorrent keeps them in a database there: set its resume data storage to fastresume files and start it once"
                .to_owned()
        }
        program => format!("name {}", program.folder()),
    }
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        // A name that is no text is none that these programs give.
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
        if names.len() > NAMES_MAX {
            return Err(io::Error::other(format!(
                "it has more than {NAMES_MAX} files"
            )));
        }
    }
    Ok(names)
}

fn is_of(program: Program, name: &str) -> bool {
    let ends: &[&str] = match program {
        Program::Qbittorrent => &[".torrent", ".fastresume"],
        Program::Transmission => &[".torrent", ".magnet"],
        Program::Rtorrent => &[".torrent"],
    };
    ends.iter().any(|end| name.ends_with(end))
}

fn stem(name: &str) -> Option<String> {
    let (stem, _) = name.rsplit_once('.')?;
    (!stem.is_empty()).then(|| stem.to_owned())
}

/// A regular file below the folder, links that lead out of it and pipes refused; `None` when it is not there.
fn read(folder: &OwnedFd, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{name} cannot be read: {error}");
    let path = Path::new(OsStr::from_bytes(name.as_bytes()));
    let file = match files::open_beneath(folder, path, OpenMode::Read) {
        Ok(fd) => File::from(fd),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let mut bytes = Vec::new();
    let read = file.take(bytes_max + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed(&error))?;
    match bytes.len() as u64 > bytes_max {
        true => Err(failed(&"it is longer than such a file can be")),
        false => Ok(Some(bytes)),
    }
}

/// Makes values of the files of one torrent.
///
/// # Errors
/// In words for the user.
pub fn parse(program: Program, found: &Found) -> Result<Whole, String> {
    let metainfo = match &found.torrent {
        Some(bytes) => match Metainfo::parse(bytes) {
            Ok(metainfo) => Some(metainfo),
            Err(_) if magnet_in(bytes).is_some() => None,
            Err(error) => return Err(format!("its .torrent file cannot be used: {error}")),
        },
        None => None,
    };
    let foreign = resume(program, found, metainfo.as_ref())?;
    check_same(&foreign, found, metainfo.as_ref())?;
    let link = match &metainfo {
        Some(_) => String::new(),
        None => link(&foreign, found)?,
    };
    Ok(Whole {
        torrent: found.torrent.clone().unwrap_or_default(),
        metainfo,
        link,
        foreign,
    })
}

fn resume(program: Program, found: &Found, metainfo: Option<&Metainfo>) -> Result<Foreign, String> {
    let missing = || "its resume file is missing: nobody knows where its data is".to_owned();
    let bytes = found.resume.as_deref();
    let parsed = match program {
        Program::Qbittorrent => foreign::parse_qbittorrent(bytes.ok_or_else(missing)?),
        Program::Transmission => foreign::parse_transmission(bytes.ok_or_else(missing)?),
        Program::Rtorrent => {
            found.program.as_ref().ok_or_else(missing)?;
            let is_multi_file = metainfo.is_some_and(|metainfo| metainfo.info.is_multi_file);
            foreign::parse_rtorrent(bytes, found.program.as_deref(), is_multi_file)
        }
    };
    parsed.map_err(|error| error.to_string())
}

fn check_same(foreign: &Foreign, found: &Found, metainfo: Option<&Metainfo>) -> Result<(), String> {
    let Some(metainfo) = metainfo else {
        return Ok(());
    };
    let other = foreign.info_hash.filter(|own| *own != metainfo.info_hash);
    match other {
        Some(other) => Err(format!(
            "{}.torrent is that of {}, its resume file that of {other}",
            found.stem, metainfo.info_hash
        )),
        None => Ok(()),
    }
}

/// What leads to the metadata of a torrent that has none yet.
fn link(foreign: &Foreign, found: &Found) -> Result<String, String> {
    let kept = found
        .link
        .as_deref()
        .or_else(|| magnet_in(found.torrent.as_deref()?));
    if let Some(link) = kept {
        let link = String::from_utf8_lossy(link).trim().to_owned();
        let parsed = link.parse::<Magnet>();
        parsed.map_err(|error| format!("its link cannot be used: {error}"))?;
        return Ok(link);
    }
    let of_name = || found.stem.parse().ok();
    let Some(info_hash) = foreign.info_hash.or_else(of_name) else {
        return Err("its .torrent file is missing".to_owned());
    };
    let trackers = foreign.trackers.iter().flatten().flatten().cloned();
    let link = Magnet {
        name: foreign.name.clone(),
        trackers: trackers.take(crate::wire::magnet::ENTRIES_MAX).collect(),
        ..Magnet::new(info_hash)
    };
    Ok(link.to_string())
}

/// rtorrent keeps a link in a .torrent of its own making.
fn magnet_in(bytes: &[u8]) -> Option<&[u8]> {
    scan(bytes).ok()?.dict()?.bytes(b"magnet-uri")
}
