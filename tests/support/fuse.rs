//! The FUSE protocol over `/dev/fuse`, spoken by a thread of the test. Needs root.
//!
//! When the test process ends, however it does, its end of `/dev/fuse` is closed and the kernel fails whatever waits.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::machine;

/// Bytes of one read or write at most.
pub const TRANSFER_MAX: u32 = 128 * 1024;
/// Room for every request.
pub const REQUEST_MAX: usize = TRANSFER_MAX as usize + 4096;
/// Length of the header of every request.
const HEADER: usize = 40;

/// Mounts at `path`, an empty folder; requests are read from what is returned. `None`, and a line, when it cannot be.
pub fn mount(test: &str, path: &Path) -> Option<File> {
    if !machine::has_root(test) {
        return None;
    }
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let device = match device {
        Ok(device) => device,
        Err(error) => {
            machine::skipped(test, &format!("/dev/fuse: {error}"));
            return None;
        }
    };
    let fd = device.as_raw_fd();
    let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other");
    let (target, options) = (c_path(path), CString::new(options).unwrap());
    // SAFETY: all are C strings that live during the call.
    let result = unsafe {
        libc::mount(
            c"gyre-test".as_ptr(),
            target.as_ptr(),
            c"fuse.gyre-test".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV,
            options.as_ptr().cast(),
        )
    };
    if result != 0 {
        machine::skipped(test, &format!("mount: {}", io::Error::last_os_error()));
        return None;
    }
    Some(device)
}

/// Fails all requests, now and for ever, and takes the mount away.
pub fn abort(path: &Path) {
    let target = c_path(path);
    // SAFETY: a C string that lives during the call.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

pub struct Request<'a> {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    pub fn new(bytes: &'a [u8]) -> Request<'a> {
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        Request {
            opcode: word(4),
            unique: long(8),
            node: long(16),
            body: &bytes[HEADER..],
        }
    }

    pub fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.body[at..at + 4].try_into().unwrap())
    }

    pub fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.body[at..at + 8].try_into().unwrap())
    }

    /// Names that end in NUL, from that byte on.
    pub fn names(&self, at: usize) -> Vec<&'a OsStr> {
        let names = self.body[at..].split(|byte| *byte == 0);
        names.map(OsStr::from_bytes).collect()
    }

    /// The bytes of a write request.
    pub fn written(&self) -> &'a [u8] {
        &self.body[40..40 + self.u32(16) as usize]
    }
}

/// What is answered: bytes, an error, or nothing because nothing is expected.
pub type Answer = io::Result<Option<Vec<u8>>>;

/// Nothing to say but that it went well.
pub fn done() -> Answer {
    Ok(Some(Vec::new()))
}

/// Sends the answer; whoever asked may be gone.
pub fn reply(device: &File, unique: u64, answer: Answer) {
    let (error, payload) = match answer {
        Ok(None) => return,
        Ok(Some(payload)) => (0, payload),
        Err(error) => (-error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
    };
    let mut reply = Vec::with_capacity(16 + payload.len());
    reply.extend((16 + payload.len() as u32).to_ne_bytes());
    reply.extend(error.to_ne_bytes());
    reply.extend(unique.to_ne_bytes());
    reply.extend(payload);
    let mut device = device;
    let _ = device.write(&reply);
}

/// Protocol 7.31, with writes larger than a page.
pub fn hello(request: &Request<'_>) -> Answer {
    const BIG_WRITES: u32 = 1 << 5;
    const MAX_PAGES: u32 = 1 << 22;
    let mut out = Vec::new();
    let readahead = request.u32(8).min(TRANSFER_MAX);
    for field in [7, 31, readahead, BIG_WRITES | MAX_PAGES] {
        out.extend(field.to_ne_bytes());
    }
    for field in [12_u16, 9] {
        out.extend(field.to_ne_bytes());
    }
    for field in [TRANSFER_MAX, 1] {
        out.extend(field.to_ne_bytes());
    }
    out.extend(((TRANSFER_MAX / 4096) as u16).to_ne_bytes());
    out.resize(64, 0);
    Ok(Some(out))
}

/// A large and empty file system.
pub fn file_system() -> Answer {
    let mut out = Vec::new();
    let blocks = 1_u64 << 24;
    for field in [blocks, blocks, blocks, 1 << 20, 1 << 20] {
        out.extend(field.to_ne_bytes());
    }
    for field in [4096_u32, 255, 4096, 0] {
        out.extend(field.to_ne_bytes());
    }
    out.resize(80, 0);
    Ok(Some(out))
}
