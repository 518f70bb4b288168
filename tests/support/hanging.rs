//! A file system that can be made to hang: it passes through to a folder until it is told to answer nothing any more.
//! Needs root.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::fuse::{self, Answer, Request, done, file_system, hello};

/// A hang lasts no longer than this, then all that waits fails: a test that went wrong must end.
const HANG_MAX: Duration = Duration::from_secs(45);
/// How it hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hang {
    /// Requests stay in the kernel's queue, as when the server is stopped: who waits can be killed. It knows no flush:
    /// the kernel lets nobody who closes a file off waiting for that.
    Untaken,
    /// Requests are taken and never answered: who waits cannot be killed until the mount is gone.
    Taken,
}

#[derive(Default)]
struct Switch {
    is_hung: AtomicBool,
}

/// A mounted view of a folder; gone, with all that waits for it let go, when dropped.
pub struct HangingMount {
    path: PathBuf,
    switch: Arc<Switch>,
}

impl HangingMount {
    /// Shows `folder` at `path`, an empty folder. `None`, and a line, when it cannot be mounted.
    pub fn new(test: &str, folder: &Path, path: &Path, how: Hang) -> Option<HangingMount> {
        let device = fuse::mount(test, path)?;
        let switch = Arc::new(Switch::default());
        let server = Server {
            device,
            how,
            switch: switch.clone(),
            paths: BTreeMap::from([(1, folder.to_owned())]),
            nodes: BTreeMap::from([(folder.to_owned(), 1)]),
        };
        std::thread::spawn(move || server.run());
        let path = path.to_owned();
        Some(HangingMount { path, switch })
    }

    /// From now on nothing is answered.
    pub fn hang(&self) {
        self.switch.is_hung.store(true, Ordering::SeqCst);
    }

    /// Answers again; requests that were taken meanwhile stay unanswered.
    pub fn resume(&self) {
        self.switch.is_hung.store(false, Ordering::SeqCst);
    }

    /// Fails all requests, now and for ever, and takes the mount away.
    pub fn abort(&self) {
        fuse::abort(&self.path);
    }
}

impl Drop for HangingMount {
    fn drop(&mut self) {
        self.abort();
    }
}

struct Server {
    device: File,
    how: Hang,
    switch: Arc<Switch>,
    paths: BTreeMap<u64, PathBuf>,
    nodes: BTreeMap<PathBuf, u64>,
}

impl Server {
    fn run(mut self) {
        let mut buffer = vec![0; fuse::REQUEST_MAX];
        let mut answered = Instant::now();
        loop {
            let mut wanted = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut wanted, PollTimeout::from(20_u8));
            let events = wanted[0].revents().unwrap_or(PollFlags::empty());
            if events.contains(PollFlags::POLLERR) {
                return;
            }
            let is_hung = self.switch.is_hung.load(Ordering::SeqCst);
            match is_hung {
                // The kernel fails all requests once nobody has the device open.
                true if answered.elapsed() > HANG_MAX => return,
                true => {}
                false => answered = Instant::now(),
            }
            if is_hung && self.how == Hang::Untaken {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            if !events.contains(PollFlags::POLLIN) {
                continue;
            }
            let length = match self.device.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
                Err(_) => continue,
            };
            if is_hung {
                continue;
            }
            let bytes = buffer[..length].to_vec();
            self.serve(&bytes);
        }
    }

    fn serve(&mut self, bytes: &[u8]) {
        let request = Request::new(bytes);
        let answer = self.answer(&request);
        fuse::reply(&self.device, request.unique, answer);
    }

    fn answer(&mut self, request: &Request<'_>) -> Answer {
        let path = self.paths.get(&request.node).cloned();
        let path = || path.clone().ok_or(io::Error::from(io::ErrorKind::NotFound));
        match request.opcode {
            1 => self.entry(&path()?.join(request.names(0)[0])),
            2 | 36 | 42 => Ok(None),
            3 => attributes(&path()?),
            4 => set_attributes(&path()?, request),
            9 => {
                let made = path()?.join(request.names(8)[0]);
                fs::create_dir(&made)?;
                self.entry(&made)
            }
            10 => {
                fs::remove_file(path()?.join(request.names(0)[0]))?;
                done()
            }
            11 => {
                fs::remove_dir(path()?.join(request.names(0)[0]))?;
                done()
            }
            12 => self.rename(&path()?, request, 8),
            45 => self.rename(&path()?, request, 16),
            14 | 27 => Ok(Some(vec![0; 16])),
            15 => read(&path()?, request),
            16 => write(&path()?, request),
            17 => file_system(),
            18 | 20 | 29 | 30 => done(),
            25 if self.how == Hang::Taken => done(),
            26 => hello(request),
            28 => read_folder(&path()?, request),
            35 => {
                let made = path()?.join(request.names(16)[0]);
                OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&made)?;
                let mut entry = self.entry(&made)?.unwrap_or_default();
                entry.extend([0; 16]);
                Ok(Some(entry))
            }
            43 => allocate(&path()?, request),
            _ => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
        }
    }

    fn entry(&mut self, path: &Path) -> Answer {
        let metadata = fs::symlink_metadata(path)?;
        let next = self.paths.len() as u64 + 1;
        let node = *self.nodes.entry(path.to_owned()).or_insert(next);
        self.paths.insert(node, path.to_owned());
        let mut out = Vec::new();
        // Node and generation; names and attributes are asked for each time.
        for field in [node, 0, 0, 0, 0] {
            out.extend(field.to_ne_bytes());
        }
        attribute_bytes(&metadata, &mut out);
        Ok(Some(out))
    }

    fn rename(&mut self, from: &Path, request: &Request<'_>, names_at: usize) -> Answer {
        let names = request.names(names_at);
        let into = self.paths.get(&request.u64(0)).cloned();
        let into = into.ok_or(io::ErrorKind::NotFound)?;
        let (from, to) = (from.join(names[0]), into.join(names[1]));
        fs::rename(&from, &to)?;
        if let Some(node) = self.nodes.remove(&from) {
            self.paths.insert(node, to.clone());
            self.nodes.insert(to, node);
        }
        done()
    }
}

fn attributes(path: &Path) -> Answer {
    let mut out = vec![0; 16];
    attribute_bytes(&fs::symlink_metadata(path)?, &mut out);
    Ok(Some(out))
}

fn attribute_bytes(metadata: &Metadata, out: &mut Vec<u8>) {
    let times = [metadata.atime(), metadata.mtime(), metadata.ctime()];
    let parts = [
        metadata.atime_nsec(),
        metadata.mtime_nsec(),
        metadata.ctime_nsec(),
    ];
    for field in [metadata.ino(), metadata.len(), metadata.blocks()] {
        out.extend(field.to_ne_bytes());
    }
    for field in times {
        out.extend(field.to_ne_bytes());
    }
    for field in parts {
        out.extend((field as u32).to_ne_bytes());
    }
    let links = metadata.nlink() as u32;
    for field in [metadata.mode(), links, 0, 0, 0, 4096, 0] {
        out.extend(field.to_ne_bytes());
    }
}

fn set_attributes(path: &Path, request: &Request<'_>) -> Answer {
    let valid = request.u32(0);
    if valid & 1 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(request.u32(68) & 0o7777))?;
    }
    if valid & 1 << 3 != 0 {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(request.u64(16))?;
    }
    if valid & 1 << 5 != 0 {
        let mtime = Duration::new(request.u64(40), request.u32(60));
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_modified(std::time::UNIX_EPOCH + mtime)?;
    }
    attributes(path)
}

fn read(path: &Path, request: &Request<'_>) -> Answer {
    let mut out = vec![0; request.u32(16) as usize];
    let file = File::open(path)?;
    let mut got = 0;
    while got < out.len() {
        match file.read_at(&mut out[got..], request.u64(8) + got as u64)? {
            0 => break,
            n => got += n,
        }
    }
    out.truncate(got);
    Ok(Some(out))
}

fn write(path: &Path, request: &Request<'_>) -> Answer {
    let bytes = request.written();
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(bytes, request.u64(8))?;
    Ok(Some((bytes.len() as u64).to_le_bytes().to_vec()))
}

fn allocate(path: &Path, request: &Request<'_>) -> Answer {
    let file = OpenOptions::new().write(true).open(path)?;
    let mode = nix::fcntl::FallocateFlags::from_bits_truncate(request.u32(24) as i32);
    let (offset, length) = (request.u64(8) as i64, request.u64(16) as i64);
    nix::fcntl::fallocate(&file, mode, offset, length)?;
    done()
}

fn read_folder(path: &Path, request: &Request<'_>) -> Answer {
    let mut entries: Vec<fs::DirEntry> = fs::read_dir(path)?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    let (skip, room) = (request.u64(8) as usize, request.u32(16) as usize);
    let mut out = Vec::new();
    for (at, entry) in entries.iter().enumerate().skip(skip) {
        let name = entry.file_name();
        let length = (24 + name.len()).next_multiple_of(8);
        if out.len() + length > room {
            break;
        }
        let start = out.len();
        let kind = if entry.file_type()?.is_dir() { 4 } else { 8 };
        for field in [entry.metadata()?.ino(), at as u64 + 1] {
            out.extend(field.to_ne_bytes());
        }
        for field in [name.len() as u32, kind] {
            out.extend(field.to_ne_bytes());
        }
        out.extend(name.as_bytes());
        out.resize(start + length, 0);
    }
    Ok(Some(out))
}
