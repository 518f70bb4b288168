//! A file system in memory as a value, and what of its operations a power cut leaves.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;

use gyre::base::Rng;

/// The folder at the top.
pub const ROOT: u64 = 1;
/// What a disk writes whole or not at all.
const PAGE: usize = 4096;

/// One operation as it reached the file system, in the order in which it answered them.
#[derive(Clone, Debug)]
pub enum Op {
    Make {
        folder: u64,
        name: OsString,
        node: u64,
        is_folder: bool,
    },
    Rename {
        folder: u64,
        from: OsString,
        to: OsString,
    },
    Remove {
        folder: u64,
        name: OsString,
    },
    Write {
        node: u64,
        offset: u64,
        bytes: Arc<[u8]>,
        at_ns: i64,
    },
    /// The file gets this length.
    Length {
        node: u64,
        length: u64,
        at_ns: i64,
    },
    /// A file, or a folder, was synced.
    Sync {
        node: u64,
    },
}

#[derive(Clone, Debug)]
pub enum Node {
    Folder(BTreeMap<OsString, u64>),
    File(Content),
}

/// A file's bytes. Pages never written are holes.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
    pub length: u64,
    pub mtime_ns: i64,
}

impl Content {
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let end = (offset + length as u64).min(self.length).max(offset);
        let mut out = vec![0; (end - offset) as usize];
        for (at, range, in_page) in pages(offset, out.len()) {
            if let Some(page) = self.pages.get(&at) {
                out[range].copy_from_slice(&page[in_page]);
            }
        }
        out
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, range, in_page) in pages(offset, bytes.len()) {
            let page = self.pages.entry(at).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[in_page].copy_from_slice(&bytes[range]);
        }
        self.length = self.length.max(offset + bytes.len() as u64);
    }

    fn set_length(&mut self, length: u64) {
        self.pages.retain(|at, _| *at * (PAGE as u64) < length);
        if length < self.length
            && let Some(page) = self.pages.get_mut(&(length / PAGE as u64))
        {
            Arc::make_mut(page)[length as usize % PAGE..].fill(0);
        }
        self.length = length;
    }

    pub fn allocated_bytes(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }
}

type Range = std::ops::Range<usize>;

/// The pages that so many bytes from an offset on touch: number, where in the bytes, where in the page.
fn pages(offset: u64, length: usize) -> impl Iterator<Item = (u64, Range, Range)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let start = at as usize % PAGE;
        let step = (PAGE - start).min(length - done);
        let range = done..done + step;
        done += step;
        (step > 0).then_some((at / PAGE as u64, range, start..start + step))
    })
}

/// Files and folders by number; a number is never used again.
#[derive(Clone, Debug)]
pub struct Tree {
    pub nodes: BTreeMap<u64, Node>,
}

fn missing() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

impl Tree {
    pub fn new() -> Tree {
        Tree {
            nodes: BTreeMap::from([(ROOT, Node::Folder(BTreeMap::new()))]),
        }
    }

    pub fn folder(&self, node: u64) -> io::Result<&BTreeMap<OsString, u64>> {
        match self.nodes.get(&node) {
            Some(Node::Folder(entries)) => Ok(entries),
            Some(Node::File(_)) => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            None => Err(missing()),
        }
    }

    pub fn file(&self, node: u64) -> io::Result<&Content> {
        match self.nodes.get(&node) {
            Some(Node::File(content)) => Ok(content),
            Some(Node::Folder(_)) => Err(io::Error::from_raw_os_error(libc::EISDIR)),
            None => Err(missing()),
        }
    }

    pub fn lookup(&self, folder: u64, name: &OsStr) -> io::Result<u64> {
        self.folder(folder)?.get(name).copied().ok_or_else(missing)
    }

    fn folder_mut(&mut self, node: u64) -> &mut BTreeMap<OsString, u64> {
        match self.nodes.get_mut(&node) {
            Some(Node::Folder(entries)) => entries,
            _ => panic!("node {node} is no folder"),
        }
    }

    fn file_mut(&mut self, node: u64) -> &mut Content {
        match self.nodes.get_mut(&node) {
            Some(Node::File(content)) => content,
            _ => panic!("node {node} is no file"),
        }
    }

    /// What is made exists at once; where its name leads is [`Tree::name`].
    fn make(&mut self, op: &Op) {
        if let Op::Make {
            node, is_folder, ..
        } = op
        {
            let made = match is_folder {
                true => Node::Folder(BTreeMap::new()),
                false => Node::File(Content::default()),
            };
            self.nodes.insert(*node, made);
        }
    }

    fn name(&mut self, op: &Op) {
        match op {
            Op::Make {
                folder, name, node, ..
            } => {
                self.folder_mut(*folder).insert(name.clone(), *node);
            }
            Op::Rename { folder, from, to } => {
                let entries = self.folder_mut(*folder);
                if let Some(node) = entries.remove(from) {
                    entries.insert(to.clone(), node);
                }
            }
            Op::Remove { folder, name } => {
                self.folder_mut(*folder).remove(name);
            }
            _ => {}
        }
    }

    fn fill(&mut self, op: &Op) {
        match op {
            Op::Write {
                node,
                offset,
                bytes,
                at_ns,
            } => {
                let content = self.file_mut(*node);
                content.write(*offset, bytes);
                content.mtime_ns = *at_ns;
            }
            Op::Length {
                node,
                length,
                at_ns,
            } => {
                let content = self.file_mut(*node);
                content.set_length(*length);
                content.mtime_ns = *at_ns;
            }
            _ => {}
        }
    }

    pub fn apply(&mut self, op: &Op) {
        self.make(op);
        self.name(op);
        self.fill(op);
    }
}

/// What is on the disk for sure, and what has been asked for since.
pub struct Durable {
    tree: Tree,
    /// By the folder or file whose sync would settle it.
    pending: BTreeMap<u64, Vec<Op>>,
    /// A disk that says it has synced and has not.
    pub is_lying: bool,
}

impl Durable {
    /// All of the tree is on the disk.
    pub fn new(tree: Tree) -> Durable {
        Durable {
            tree,
            pending: BTreeMap::new(),
            is_lying: false,
        }
    }

    /// The next operation of the trace.
    pub fn push(&mut self, op: &Op) {
        self.tree.make(op);
        let of = match op {
            Op::Make { folder, .. } | Op::Rename { folder, .. } | Op::Remove { folder, .. } => {
                *folder
            }
            Op::Write { node, .. } | Op::Length { node, .. } => *node,
            Op::Sync { node } => {
                let is_file = self.tree.file(*node).is_ok();
                if !(self.is_lying && is_file) {
                    for op in self.pending.remove(node).unwrap_or_default() {
                        self.tree.name(&op);
                        self.tree.fill(&op);
                    }
                }
                return;
            }
        };
        self.pending.entry(of).or_default().push(op.clone());
    }

    /// Of a file nothing is left but what was synced.
    pub fn forget(&mut self, node: u64, tree: &mut Tree) {
        self.pending.remove(&node);
        if let Some(durable) = self.tree.nodes.get(&node) {
            tree.nodes.insert(node, durable.clone());
        }
    }

    /// What is found after the power was gone now. Of what was not synced anything may be there: nothing, all of it, some
    /// operations or some pages of them, a file's times and length without its bytes; of the names of a folder those
    /// up to some change.
    pub fn cut(&self, rng: &mut Rng) -> Tree {
        let mut tree = self.tree.clone();
        let kept_percent = [0, 0, 100, 50, rng.below(101)][rng.below(5) as usize];
        let is_by_page = rng.chance(60);
        for (node, ops) in &self.pending {
            if tree.file(*node).is_err() {
                let kept = match kept_percent {
                    0 => 0,
                    100 => ops.len(),
                    _ => rng.below(ops.len() as u64 + 1) as usize,
                };
                ops[..kept].iter().for_each(|op| tree.name(op));
                continue;
            }
            for op in ops {
                match op {
                    Op::Write { bytes, offset, .. } if is_by_page => {
                        for (_, range, _) in pages(*offset, bytes.len()) {
                            if rng.chance(kept_percent) {
                                let at = offset + range.start as u64;
                                tree.file_mut(*node).write(at, &bytes[range]);
                            }
                        }
                    }
                    op if rng.chance(kept_percent) => tree.fill(op),
                    _ => {}
                }
                if rng.chance(20)
                    && let Op::Write {
                        offset,
                        bytes,
                        at_ns,
                        ..
                    } = op
                {
                    let content = tree.file_mut(*node);
                    content.length = content.length.max(offset + bytes.len() as u64);
                    content.mtime_ns = *at_ns;
                }
            }
        }
        tree
    }
}
