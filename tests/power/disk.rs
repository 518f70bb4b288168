//! A disk of our own under a real mount: a file system in memory that notes every operation, fails or shortens those it
//! is told to, and can be put back to what a power cut would have left. File numbers stay what they were.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::support::fuse::{self, Answer, Request, done, file_system, hello};
use crate::tree::{Durable, Node, Op, ROOT, Tree};

/// What becomes of a write or sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It fails with this error.
    Error(i32),
    /// Half of it is written, as the answer says.
    Short,
    /// It takes this long.
    Slow(Duration),
    /// A sync fails, and what it was to keep is gone: the kernel calls those pages clean.
    Loses,
}

/// An operation that may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// So many bytes.
    Write(u32),
    /// A file, not a folder, that is so many bytes long.
    SyncFile(u64),
    SyncFolder,
}

type Plan = Box<dyn FnMut(Doing) -> Fault + Send>;

struct State {
    tree: Tree,
    ops: Vec<Op>,
    durable: Durable,
    next_node: u64,
    plan: Option<Plan>,
}

/// The mounted disk; unmounted when dropped.
pub struct PowerDisk {
    folder: TempDir,
    state: Arc<Mutex<State>>,
}

impl PowerDisk {
    /// `None`, and a line, when it cannot be mounted.
    pub fn new(test: &str) -> Option<PowerDisk> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::create_dir(&path).unwrap();
        let device = fuse::mount(test, &path)?;
        let state = Arc::new(Mutex::new(State {
            tree: Tree::new(),
            ops: Vec::new(),
            durable: Durable::new(Tree::new()),
            next_node: ROOT + 1,
            plan: None,
        }));
        let shared = state.clone();
        std::thread::spawn(move || serve(&device, &shared));
        Some(PowerDisk { folder, state })
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The tree as it is, and notes operations from here on.
    pub fn begin(&self) -> Tree {
        let mut state = self.lock();
        state.ops.clear();
        state.tree.clone()
    }

    /// Operations since [`PowerDisk::begin`].
    pub fn ops(&self) -> Vec<Op> {
        self.lock().ops.clone()
    }

    /// From now on this is what the disk holds. Nobody may have a file open.
    pub fn show(&self, tree: Tree) {
        let mut state = self.lock();
        state.ops.clear();
        state.durable = Durable::new(tree.clone());
        state.tree = tree;
    }

    /// Asks before every write and sync what is to become of it.
    pub fn plan(&self, plan: impl FnMut(Doing) -> Fault + Send + 'static) {
        self.lock().plan = Some(Box::new(plan));
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        fuse::abort(&self.path());
    }
}

fn serve(device: &File, state: &Mutex<State>) {
    let mut buffer = vec![0; fuse::REQUEST_MAX];
    loop {
        let mut from = device;
        let length = match from.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
            Err(_) => continue,
        };
        let request = Request::new(&buffer[..length]);
        let fault = fault(state, &request);
        if let Fault::Slow(time) = fault {
            std::thread::sleep(time);
        }
        let answer = match fault {
            Fault::Error(error) => Err(io::Error::from_raw_os_error(error)),
            fault => answer(&mut state.lock().unwrap(), &request, fault),
        };
        fuse::reply(device, request.unique, answer);
    }
}

fn fault(state: &Mutex<State>, request: &Request<'_>) -> Fault {
    let state = &mut *state.lock().unwrap();
    let doing = match request.opcode {
        16 => Doing::Write(request.u32(16)),
        20 => Doing::SyncFile(state.tree.file(request.node).map_or(0, |file| file.length)),
        30 => Doing::SyncFolder,
        _ => return Fault::None,
    };
    let plan = state.plan.as_mut();
    plan.map_or(Fault::None, |plan| plan(doing))
}

fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_nanos() as i64
}

fn answer(state: &mut State, request: &Request<'_>, fault: Fault) -> Answer {
    let node = request.node;
    match request.opcode {
        1 => {
            let found = state.tree.lookup(node, request.names(0)[0])?;
            Ok(Some(state.entry(found)))
        }
        2 | 36 | 42 => Ok(None),
        3 => state.attributes(node),
        4 => {
            let valid = request.u32(0);
            if valid & 1 << 3 != 0 {
                let (length, at_ns) = (request.u64(16), now_ns());
                state.tree.file(node)?;
                state.record(Op::Length {
                    node,
                    length,
                    at_ns,
                });
            }
            state.attributes(node)
        }
        9 => state.make(node, request.names(8)[0], true),
        10 | 11 => state.remove(node, request.names(0)[0]),
        12 => state.rename(request, 8),
        45 => state.rename(request, 16),
        14 | 27 => Ok(Some(vec![0; 16])),
        15 => {
            let content = state.tree.file(node)?;
            Ok(Some(content.read(request.u64(8), request.u32(16) as usize)))
        }
        16 => state.write(node, request.u64(8), request.written(), fault),
        17 => file_system(),
        20 | 30 => {
            if fault == Fault::Loses {
                state.durable.forget(node, &mut state.tree);
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            state.note(Op::Sync { node });
            done()
        }
        18 | 25 | 29 => done(),
        26 => hello(request),
        28 => read_folder(&state.tree, request),
        35 => {
            let name = request.names(16)[0];
            if state.tree.lookup(node, name).is_err() {
                state.make(node, name, false)?;
            }
            let found = state.tree.lookup(node, name)?;
            let mut entry = state.entry(found);
            entry.extend([0; 16]);
            Ok(Some(entry))
        }
        43 => {
            let end = request.u64(8) + request.u64(16);
            if end > state.tree.file(node)?.length {
                state.record(Op::Length {
                    node,
                    length: end,
                    at_ns: now_ns(),
                });
            }
            done()
        }
        _ => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
    }
}

impl State {
    fn record(&mut self, op: Op) {
        self.tree.apply(&op);
        self.note(op);
    }

    fn note(&mut self, op: Op) {
        self.durable.push(&op);
        self.ops.push(op);
    }

    fn make(&mut self, folder: u64, name: &std::ffi::OsStr, is_folder: bool) -> Answer {
        if self.tree.lookup(folder, name).is_ok() {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let node = self.next_node;
        self.next_node += 1;
        let name = name.to_owned();
        self.record(Op::Make {
            folder,
            name,
            node,
            is_folder,
        });
        Ok(Some(self.entry(node)))
    }

    fn remove(&mut self, folder: u64, name: &std::ffi::OsStr) -> Answer {
        let node = self.tree.lookup(folder, name)?;
        if self
            .tree
            .folder(node)
            .is_ok_and(|entries| !entries.is_empty())
        {
            return Err(io::Error::from_raw_os_error(libc::ENOTEMPTY));
        }
        let name = name.to_owned();
        self.record(Op::Remove { folder, name });
        done()
    }

    fn rename(&mut self, request: &Request<'_>, names_at: usize) -> Answer {
        let names = request.names(names_at);
        let folder = request.node;
        if request.u64(0) != folder {
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        self.tree.lookup(folder, names[0])?;
        let (from, to) = (names[0].to_owned(), names[1].to_owned());
        self.record(Op::Rename { folder, from, to });
        done()
    }

    fn write(&mut self, node: u64, offset: u64, bytes: &[u8], fault: Fault) -> Answer {
        self.tree.file(node)?;
        let taken = match fault {
            Fault::Short => bytes.len().div_ceil(2),
            _ => bytes.len(),
        };
        self.record(Op::Write {
            node,
            offset,
            bytes: bytes[..taken].into(),
            at_ns: now_ns(),
        });
        Ok(Some((taken as u64).to_le_bytes().to_vec()))
    }

    fn entry(&self, node: u64) -> Vec<u8> {
        let mut out = Vec::new();
        // Node and generation; names and attributes are asked for each time.
        for field in [node, 0, 0, 0, 0] {
            out.extend(field.to_ne_bytes());
        }
        out.extend(attribute_bytes(&self.tree, node));
        out
    }

    fn attributes(&self, node: u64) -> Answer {
        if !self.tree.nodes.contains_key(&node) {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        let mut out = vec![0; 16];
        out.extend(attribute_bytes(&self.tree, node));
        Ok(Some(out))
    }
}

fn attribute_bytes(tree: &Tree, node: u64) -> Vec<u8> {
    let (mode, length, allocated, mtime_ns) = match &tree.nodes[&node] {
        Node::Folder(_) => (libc::S_IFDIR | 0o755, 4096, 4096, 0),
        Node::File(content) => (
            libc::S_IFREG | 0o644,
            content.length,
            content.allocated_bytes(),
            content.mtime_ns,
        ),
    };
    let mut out = Vec::new();
    for field in [node, length, allocated / 512] {
        out.extend(field.to_ne_bytes());
    }
    let (seconds, rest) = (mtime_ns / 1_000_000_000, mtime_ns % 1_000_000_000);
    out.extend([seconds; 3].map(i64::to_ne_bytes).concat());
    out.extend([rest as u32; 3].map(u32::to_ne_bytes).concat());
    for field in [mode, 1, 0, 0, 0, 4096, 0] {
        out.extend(field.to_ne_bytes());
    }
    out
}

fn read_folder(tree: &Tree, request: &Request<'_>) -> Answer {
    use std::os::unix::ffi::OsStrExt;
    let entries = tree.folder(request.node)?;
    let (skip, room) = (request.u64(8) as usize, request.u32(16) as usize);
    let mut out = Vec::new();
    for (at, (name, node)) in entries.iter().enumerate().skip(skip) {
        let length = (24 + name.len()).next_multiple_of(8);
        if out.len() + length > room {
            break;
        }
        let start = out.len();
        let kind = if tree.folder(*node).is_ok() { 4 } else { 8 };
        for field in [*node, at as u64 + 1] {
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
