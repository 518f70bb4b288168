//! `--ip-filter`: reading the list, keeping its addresses out, reading it anew when asked. Layer 5.
//!
//! Lines are read by `wire::ip_filter`. Whoever is listed is neither dialed nor heard: the address books refuse it, an
//! inbound connection is closed before a byte of it is read.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Cursor, Read};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use tokio::sync::Notify;
use tracing::info;

use super::config::SessionEvent;
use super::driver::Driver;
use super::metadata::Search;
use super::shared::Shared;
use crate::base::in_sentence;
use crate::wire::ip_filter::{IpFilter, IpListError, Reader};

/// Longest file: lists that go round have 20 to 40 MiB unpacked.
pub const FILE_BYTES_MAX: u64 = 64 << 20;
/// Longest text, for files that are packed.
const TEXT_BYTES_MAX: u64 = 256 << 20;
const READ_BYTES: usize = 64 * 1024;
/// Addresses counted as turned away by the session; more than that is a number nobody reads.
const TURNED_AWAY_MAX: usize = 16_384;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Has the list of a running session read anew, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Reloader(Arc<Notify>);

impl Reloader {
    /// Asks for it; asking twice while it is read counts once.
    pub fn reload(&self) {
        self.0.notify_one();
    }
}

/// A list and where it came from.
#[derive(Clone, Debug)]
pub struct IpFilterSettings {
    pub path: PathBuf,
    pub list: LoadedList,
    pub reloader: Reloader,
}

/// A list that was read.
#[derive(Clone, Debug)]
pub struct LoadedList {
    pub filter: Arc<IpFilter>,
    /// What the user should know of it.
    pub warning: Option<String>,
}

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}", in_sentence(&.0.to_string()))]
    Io(#[from] io::Error),
    #[error("it is a folder")]
    Folder,
    #[error("it is a pipe or a device")]
    NoFile,
    #[error("it is too large: more than 64 MiB, or 256 MiB unpacked")]
    TooLarge,
    #[error("none of its lines is a range of addresses")]
    NoRanges,
    #[error("{0}")]
    List(#[from] IpListError),
}

impl LoadError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            LoadError::Io(error) if error.kind() == io::ErrorKind::NotFound => "check the path",
            LoadError::Io(_) => "check that it can be read and was fetched whole",
            LoadError::Folder => "name the file",
            LoadError::NoFile => {
                "write the list into a file and name that: it is read anew on SIGHUP"
            }
            LoadError::TooLarge | LoadError::List(_) => "use a smaller list",
            LoadError::NoRanges => {
                "give lines such as NAME:FIRST-LAST, FIRST - LAST , LEVEL , NAME or ADDRESS/BITS"
            }
        }
    }
}

/// Reads no more than that many bytes; more are an error.
struct Capped<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        let left = self.left.checked_sub(read as u64);
        self.left = left.ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(read)
    }
}

/// Reads a list, packed with gzip or not. Blocks: never call it on the ring thread.
///
/// # Errors
/// See [`LoadError`].
pub fn load(path: &Path) -> Result<LoadedList, LoadError> {
    // A pipe without a writer would hold whoever opens it for good.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(LoadError::Folder);
    }
    if !kind.is_file() {
        return Err(LoadError::NoFile);
    }
    let mut file = Capped {
        inner: file,
        left: FILE_BYTES_MAX,
    };
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(2).read_to_end(&mut head)?;
    let is_packed = head == GZIP_MAGIC;
    let whole = Cursor::new(head).chain(file);
    let text: Box<dyn Read> = match is_packed {
        true => Box::new(MultiGzDecoder::new(whole)),
        false => Box::new(whole),
    };
    let mut text = Capped {
        inner: text,
        left: TEXT_BYTES_MAX,
    };
    let mut reader = Reader::default();
    let mut buf = vec![0; READ_BYTES];
    loop {
        let read = match text.read(&mut buf) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err(LoadError::TooLarge);
            }
            Err(error) => return Err(error.into()),
        };
        reader.feed(buf.get(..read).unwrap_or_default())?;
    }
    let list = reader.finish()?;
    if list.good_lines == 0 && list.bad_lines > 0 {
        return Err(LoadError::NoRanges);
    }
    let warning = list.first_bad_line.map(|first| {
        let (lines, are) = match list.bad_lines {
            1 => ("1 line".to_owned(), "is no range of addresses and was"),
            count => (
                format!("{count} lines"),
                "are no ranges of addresses and were",
            ),
        };
        let path = path.display();
        format!("{lines} of {path} {are} passed over, the first is line {first}")
    });
    Ok(LoadedList {
        filter: Arc::new(list.filter),
        warning,
    })
}

/// The list of a session, and whom it turned away.
#[derive(Default)]
pub struct Gate {
    filter: RefCell<Arc<IpFilter>>,
    /// At most [`TURNED_AWAY_MAX`].
    turned_away: RefCell<BTreeSet<IpAddr>>,
}

impl Gate {
    /// One with that list.
    pub fn new(settings: Option<&IpFilterSettings>) -> Gate {
        let filter = settings.map(|settings| settings.list.filter.clone());
        Gate {
            filter: RefCell::new(filter.unwrap_or_default()),
            turned_away: RefCell::default(),
        }
    }

    /// The list as it is now.
    pub fn filter(&self) -> Arc<IpFilter> {
        self.filter.borrow().clone()
    }

    /// True for a listed address.
    pub fn is_blocked(&self, ip: IpAddr) -> bool {
        self.filter.borrow().is_blocked(ip)
    }

    /// The same of a connection that stands, which is counted.
    pub fn turns_away(&self, ip: IpAddr) -> bool {
        let is_blocked = self.is_blocked(ip);
        let mut turned_away = self.turned_away.borrow_mut();
        if is_blocked && turned_away.len() < TURNED_AWAY_MAX {
            turned_away.insert(ip);
        }
        is_blocked
    }

    /// How many different addresses had a connection closed.
    pub fn turned_away_count(&self) -> u32 {
        u32::try_from(self.turned_away.borrow().len()).unwrap_or(u32::MAX)
    }
}

/// Reads the list anew whenever that is asked for, as long as the session runs.
pub async fn watch(shared: Rc<Shared>) {
    let Some(settings) = shared.config.ip_filter.clone() else {
        return;
    };
    tell(&shared, settings.list.warning.clone());
    loop {
        settings.reloader.0.notified().await;
        let path = settings.path.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&path)).await;
        match loaded {
            Ok(Ok(list)) => {
                let ranges = list.filter.range_count();
                info!(ranges, "the list of addresses was read anew");
                tell(&shared, list.warning);
                if ranges == 0 && shared.gate.filter().range_count() > 0 {
                    tell_empty(&shared, &settings.path);
                }
                take_effect(&shared, list.filter);
            }
            Ok(Err(error)) => {
                let path = settings.path.display();
                shared.emit(SessionEvent::Warning {
                    info_hash: None,
                    message: format!("cannot use {path} as --ip-filter: {error}; the list read before stays in force"),
                    hint: error.hint().to_owned(),
                });
            }
            Err(panicked) => tracing::error!(%panicked, "reading the list of addresses"),
        }
    }
}

fn tell(shared: &Shared, warning: Option<String>) {
    if let Some(message) = warning {
        shared.emit(SessionEvent::Warning {
            info_hash: None,
            message,
            hint: "the other lines are in force; check the form of these".to_owned(),
        });
    }
}

/// A list that was cut to nothing, by a fetch that failed perhaps, lets everybody in.
fn tell_empty(shared: &Shared, path: &Path) {
    shared.emit(SessionEvent::Warning {
        info_hash: None,
        message: format!(
            "no addresses are left in {}: nobody is kept out any more",
            path.display()
        ),
        hint: "put the list back and send SIGHUP again, if that was not meant".to_owned(),
    });
}

/// Address books forget who is listed, and connections end.
fn take_effect(shared: &Rc<Shared>, filter: Arc<IpFilter>) {
    *shared.gate.filter.borrow_mut() = filter;
    let drivers: Vec<Rc<Driver>> = shared.torrents.borrow().values().cloned().collect();
    for driver in drivers {
        driver.take_ip_filter();
    }
    let searches: Vec<Rc<Search>> = shared.searches.borrow().values().cloned().collect();
    for search in searches {
        search.take_ip_filter();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_list_is_read_packed_or_not_and_its_bad_lines_are_told_once() {
        let text = b"a:1.0.0.0-1.0.0.9\nno\nno\n";
        let twice = [packed(text), packed(b"2.0.0.0/8\n")].concat();
        for (bytes, ranges) in [(text.to_vec(), 1), (twice, 2)] {
            let file = file(&bytes);
            let list = load(file.path()).unwrap();
            assert_eq!(list.filter.range_count(), ranges);
            let warning = list.warning.unwrap();
            assert!(
                warning.starts_with("2 lines of ") && warning.ends_with("line 2"),
                "{warning}"
            );
        }
        let empty = load(file(b"# nothing yet\n").path()).unwrap();
        assert_eq!((empty.filter.range_count(), empty.warning), (0, None));
    }

    #[test]
    fn what_is_no_list_is_refused_with_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(load(folder.path()), Err(LoadError::Folder)));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(load(&pipe), Err(LoadError::NoFile)));
        assert!(matches!(
            load(Path::new("/dev/zero")),
            Err(LoadError::NoFile)
        ));
        let missing = load(&folder.path().join("x")).unwrap_err();
        assert_eq!(missing.hint(), "check the path");
        assert!(matches!(
            load(file(b"<html>\n").path()),
            Err(LoadError::NoRanges)
        ));
        let cut = packed(b"1.0.0.0/8\n");
        assert!(matches!(
            load(file(&cut[..cut.len() - 6]).path()),
            Err(LoadError::Io(_))
        ));
        let huge = file(b"1.2.3.4\n");
        huge.as_file().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(load(huge.path()), Err(LoadError::TooLarge)));
    }

    #[test]
    fn a_bomb_is_refused_at_the_lid() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let zeros = vec![b'#'; 1 << 20];
        for _ in 0..=TEXT_BYTES_MAX >> 20 {
            encoder.write_all(&zeros).unwrap();
        }
        let bomb = file(&encoder.finish().unwrap());
        assert!(matches!(load(bomb.path()), Err(LoadError::TooLarge)));
    }
}
