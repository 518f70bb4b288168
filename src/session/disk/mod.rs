//! One torrent's bytes on the ring thread: from arriving blocks to synced files, and from files to runs for sending.
//! Layer 5.
//!
//! Blocks are copied into segments ([`DiskTorrent::copy_in`]) or received there ([`DiskTorrent::land`]); what the core asks
//! for with its effects are futures that borrow the segments when they are made, not when they are first polled: an effect that follows sees the
//! state the one before left. All of them are `'static` and may run as tasks of their own; they give up their memory
//! only when the ring is done with it, so none is ever to be dropped half-way.
//! Opening, creating and looking at files by name happens on blocking threads.

mod error;
mod files;
mod finish;
mod hash;
mod lane;
mod leaves;
mod lengths;
mod outgoing;
mod own;
mod pads;
mod prepare;
mod prove;
mod read;
mod serve;
mod sync;
mod traffic;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use crate::base::{BlockRef, Geometry, InfoHash, PieceIndex};
use crate::session::contain::off_ring;
use crate::storage::assembly::{Assembly, runs};
use crate::storage::layout::{FileLayout, Span};
use crate::storage::parts::PartsMap;
use crate::storage::resume::FileStamp;
use crate::uring::buffers::{Landing, Pool, Segment};
use crate::uring::files::FsKind;
use crate::uring::hasher::{Hasher, PieceState};
use crate::wire::metainfo::PieceHashes;

pub use error::{Changed, DiskError, DiskOp, ReadError, SyncError, plain_message};
use lane::Lane;

pub use files::{FileBudget, is_parts_file};
pub use serve::{ReadRun, Via};

/// Memory of all runs read from disk and not yet sent: 32 runs of 256 KiB keep a fast drive busy, and a socket that
/// takes nothing holds none of it.
const READ_BYTES_MAX: usize = 8 << 20;
/// Memory of all runs copied out of the page cache and not yet sent. They come at once, so a few at a time are enough.
const COPY_BYTES_MAX: usize = 2 << 20;
/// Bytes of a `piece` message before its payload: length, id, index, begin (BEP 3).
const PIECE_HEADER_BYTES: usize = 13;

/// How space is reserved when a download starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocate {
    /// Files grow as they are written.
    None,
    /// Files have their length from the start, as holes.
    #[default]
    Sparse,
    /// Files have their blocks from the start.
    Full,
}

/// What all torrents of a session share.
pub struct DiskHub {
    pool: Pool,
    hasher: Hasher,
    budget: Rc<FileBudget>,
    /// By device number.
    lanes: RefCell<BTreeMap<u64, Rc<Lane>>>,
    digest_key: u64,
    engines: Engines,
    traffic: traffic::Traffic,
    recent: serve::Recent,
    resident: serve::Residency,
    /// Bytes that runs read for sending may hold.
    reads: Arc<Semaphore>,
    /// Bytes that runs copied for sending may hold.
    copies: Arc<Semaphore>,
    leaf_pace: leaves::LeafPace,
    next_id: Cell<u64>,
}

/// How bytes leave and reach the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Engines {
    pub send: SendEngine,
    pub write: WriteEngine,
}

/// How blocks are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendEngine {
    /// Mapped where all pages of a run are resident, else copied.
    #[default]
    Auto,
    /// From the page cache through a mapping, whatever is resident.
    Mapped,
    /// Through memory of ours.
    Copy,
}

/// How verified pieces are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteEngine {
    #[default]
    Auto,
    /// Past the page cache.
    Direct,
    /// Through the page cache.
    Buffered,
}

impl DiskHub {
    /// `digest_key` keys block digests: random, so that nobody can aim at equal ones.
    pub fn new(
        pool: Pool,
        hasher: Hasher,
        budget: Rc<FileBudget>,
        digest_key: u64,
        engines: Engines,
    ) -> Rc<DiskHub> {
        Rc::new(DiskHub {
            pool,
            hasher,
            budget,
            lanes: RefCell::default(),
            digest_key,
            engines,
            traffic: traffic::Traffic::new(),
            recent: serve::Recent::new(),
            resident: serve::Residency::new(),
            reads: Arc::new(Semaphore::new(READ_BYTES_MAX)),
            copies: Arc::new(Semaphore::new(COPY_BYTES_MAX)),
            leaf_pace: leaves::LeafPace::new(),
            next_id: Cell::new(0),
        })
    }

    /// Panics of the hash workers.
    pub fn hash_panics(&self) -> u64 {
        self.hasher.panics()
    }

    /// Files open now.
    pub fn open_files(&self) -> usize {
        self.budget.open_count()
    }

    fn lane_of(&self, device: u64, kind: FsKind) -> Rc<Lane> {
        let mut lanes = self.lanes.borrow_mut();
        let operations_max = self.budget.operations_max();
        let new = || Lane::new(kind, operations_max, &self.reads, &self.copies);
        Rc::clone(lanes.entry(device).or_insert_with(new))
    }
}

/// One torrent to open.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Where bytes lie.
    pub layout: Arc<FileLayout>,
    /// Where bytes of unselected files lie.
    pub parts: Arc<PartsMap>,
    /// The torrent.
    pub info_hash: InfoHash,
    /// What pieces must hash to.
    pub piece_hashes: PieceHashes,
    /// The folder that holds the torrent's root.
    pub output: PathBuf,
    /// One a file of the layout: may be created. Missing entries count as selected.
    pub selected: Vec<bool>,
    /// How space is reserved.
    pub preallocate: Preallocate,
    /// False for `seed`: nothing is created or written.
    pub is_writer: bool,
    /// A record closed in order says that the names of all that is there were synced.
    pub are_names_synced: bool,
}

/// Where a file's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    /// In the file itself.
    File,
    /// In the parts file.
    Parts,
    /// Nowhere: zeros.
    Zeros,
}

/// One torrent's files and memory. Lives on the ring thread.
pub struct DiskTorrent {
    id: u64,
    hub: Rc<DiskHub>,
    config: DiskConfig,
    base: Arc<OwnedFd>,
    homes: Vec<Home>,
    kind: FsKind,
    /// O_DIRECT was tried and refused.
    refuses_direct: Cell<bool>,
    lane: Rc<Lane>,
    assembly: RefCell<Assembly<Segment, Box<PieceState>>>,
    /// Rung whenever the running hash moves on or a loan ends.
    moved: Notify,
    watches: RefCell<BTreeMap<usize, read::Watch>>,
    /// Files that others changed and whose pieces are being checked again: none is sent meanwhile.
    in_doubt: RefCell<BTreeSet<usize>>,
    /// Written and not synced since.
    unsynced: RefCell<Unsynced>,
    stamps: RefCell<Stamps>,
    odd_pads: RefCell<pads::OddPads>,
    owning: own::Owning,
    proofs: prove::Proofs,
    lengths: RefCell<lengths::Lengths>,
    cannot_reserve: bool,
}

/// What the next sync has to do.
#[derive(Debug, Default)]
struct Unsynced {
    files: BTreeSet<usize>,
    /// Folders with new entries, relative to the output folder; the empty path is that folder.
    folders: BTreeSet<PathBuf>,
    pieces: BTreeSet<PieceIndex>,
}

/// How the files looked when last opened, synced or created.
#[derive(Clone, Debug, Default)]
pub struct Stamps {
    /// One a file of the layout.
    pub files: Vec<Option<FileStamp>>,
    /// The parts file.
    pub parts: Option<FileStamp>,
}

impl DiskTorrent {
    /// Opens the torrent: as writer it checks the free space, makes folders, links, empty files and the preallocated
    /// ones, and moves bytes of newly selected files out of the parts file.
    ///
    /// Weigh the resume record against `resume_store::observe` before this: it changes what lies there.
    ///
    /// # Errors
    /// The first thing that could not be made; missing space is told in bytes.
    pub async fn open(hub: &Rc<DiskHub>, config: DiskConfig) -> Result<Rc<DiskTorrent>, DiskError> {
        DiskTorrent::open_counting(hub, config, Arc::default()).await
    }

    /// As [`DiskTorrent::open`]; `files_done` counts the files that are ready as it goes.
    ///
    /// # Errors
    /// As there.
    pub async fn open_counting(
        hub: &Rc<DiskHub>,
        config: DiskConfig,
        files_done: Arc<AtomicU64>,
    ) -> Result<Rc<DiskTorrent>, DiskError> {
        let given = config.clone();
        let prepared = off_ring(move || prepare::prepare(&given, &files_done)).await?;
        let id = hub.next_id.get();
        hub.next_id.set(id + 1);
        let unsynced = Unsynced {
            folders: prepared.new_entries_in,
            ..Unsynced::default()
        };
        Ok(Rc::new(DiskTorrent {
            id,
            lane: hub.lane_of(prepared.device, prepared.kind),
            hub: Rc::clone(hub),
            assembly: RefCell::new(Assembly::new(config.layout.geometry().clone())),
            base: Arc::new(prepared.base),
            homes: prepared.homes,
            kind: prepared.kind,
            refuses_direct: Cell::new(false),
            moved: Notify::new(),
            watches: RefCell::default(),
            in_doubt: RefCell::default(),
            unsynced: RefCell::new(unsynced),
            lengths: RefCell::new(lengths::Lengths::new(&config.layout, &prepared.stamps)),
            stamps: RefCell::new(prepared.stamps),
            cannot_reserve: prepared.cannot_reserve,
            owning: own::Owning::default(),
            proofs: prove::Proofs::default(),
            odd_pads: RefCell::new(pads::OddPads::new(&config.layout)),
            config,
        }))
    }

    /// True when space was to be reserved and the file system knows no way to: files have their lengths as holes.
    pub fn cannot_reserve(&self) -> bool {
        self.cannot_reserve
    }

    /// True when the data lies on a file system that may hang.
    pub fn may_hang(&self) -> bool {
        self.kind == FsKind::Remote
    }

    /// Which bytes lie in which file.
    pub fn layout(&self) -> &FileLayout {
        &self.config.layout
    }

    /// How long the file system has left an operation unanswered.
    pub fn stuck_for(&self) -> Duration {
        self.lane.stuck_for()
    }

    /// Copies payload into its place, unless it lies there already: `bytes` are those of `block` from `offset_in_block` on.
    /// Bytes past the block's end are not copied.
    ///
    /// Only for a block that the core placed (`Placement::Store`), by its one owner.
    pub fn copy_in(&self, block: BlockRef, offset_in_block: u32, bytes: &[u8]) {
        let mut assembly = self.assembly.borrow_mut();
        let place = assembly.place(block);
        let (piece, segment) = (block.piece(), place.segment);
        if let Some(bytes) = place.needs_buffer {
            let buffer = self.hub.pool.alloc_or_heap(bytes as usize);
            assembly.insert_buffer(piece, segment, buffer);
        }
        let room = block.length().saturating_sub(offset_in_block) as usize;
        let bytes = bytes.get(..room).unwrap_or(bytes);
        self.look_at_pads(block, offset_in_block, bytes);
        let start = (place.offset_in_segment + offset_in_block) as usize;
        let put = |buffer: &mut Segment| buffer.put(start, bytes);
        if assembly.buffer_mut(piece, segment).is_some_and(put) {
            return;
        }
        self.move_away(&mut assembly, piece, segment);
        let is_put = assembly.buffer_mut(piece, segment).is_some_and(put);
        debug_assert!(is_put, "block {block:?} outside its segment");
    }

    /// Gives the segment other memory: a receive of another peer is about to write to the present one, where a block
    /// goes that both were asked for. What that receive brings is copied, if it is still of use then.
    fn move_away(
        &self,
        assembly: &mut Assembly<Segment, Box<PieceState>>,
        piece: PieceIndex,
        segment: u32,
    ) {
        let begun = assembly.blocks_begun(piece, segment);
        let bytes = assembly.segment_bytes(piece, segment);
        let Some(buffer) = assembly.buffer_mut(piece, segment) else {
            return;
        };
        let mut fresh = self.hub.pool.alloc_or_heap(bytes as usize);
        for run in runs(begun, bytes) {
            fresh.put_from(buffer, run);
        }
        *buffer = fresh;
    }

    /// The place of a block from `offset_in_block` on, for a receive that may bring just these bytes. [`Self::copy_in`]
    /// copies nothing of what lies there already.
    ///
    /// For a block that the core placed and that has begun to arrive from this peer, or, with an offset of 0, one that
    /// it foresees (`Torrent::foreseen`). `None` when it would be in the way of somebody else.
    pub fn land(&self, block: BlockRef, offset_in_block: u32) -> Option<Landing> {
        let mut assembly = self.assembly.borrow_mut();
        let place = assembly.foresee(block, offset_in_block > 0)?;
        let (piece, segment) = (block.piece(), place.segment);
        if let Some(bytes) = place.needs_buffer {
            let buffer = self.hub.pool.alloc_or_heap(bytes as usize);
            assembly.insert_buffer(piece, segment, buffer);
        }
        let start = place.offset_in_segment as usize;
        let range = start + offset_in_block as usize..start + block.length() as usize;
        assembly.buffer_mut(piece, segment)?.land(range)
    }

    /// The block's last byte was copied. Call it before the core's `on_block_stored`.
    pub fn block_done(&self, block: BlockRef) {
        let mut assembly = self.assembly.borrow_mut();
        assembly.block_done(block);
        #[cfg(debug_assertions)]
        assembly.check();
    }

    /// The block's connection ended before its last byte.
    pub fn block_abandoned(&self, block: BlockRef) {
        let freed = self.assembly.borrow_mut().block_abandoned(block);
        drop(freed);
    }

    /// Forgets what memory holds of the piece (`Effect::Discard`).
    pub fn discard(&self, piece: PieceIndex) {
        self.assembly.borrow_mut().discard(piece);
        self.odd_pads.borrow_mut().forget(piece);
        self.moved.notify_waiters();
    }

    /// Forgets these blocks of a piece that came whole (`Effect::DropBlocks`).
    pub fn drop_blocks(&self, piece: PieceIndex, blocks: &[u32]) {
        let mut assembly = self.assembly.borrow_mut();
        for block in blocks {
            if let Some(block) = self.geometry().block(piece, *block) {
                drop(assembly.block_dropped(block));
            }
        }
        #[cfg(debug_assertions)]
        assembly.check();
    }

    /// Bytes of segments that hold blocks now.
    pub fn memory_bytes(&self) -> u64 {
        self.assembly.borrow().memory_bytes()
    }

    /// How the files looked when last synced or opened: for the resume record. Files not touched since then may have
    /// changed without our knowing; the record says what *we* saw.
    pub fn stamps(&self) -> Stamps {
        self.stamps.borrow().clone()
    }

    fn geometry(&self) -> &Geometry {
        self.config.layout.geometry()
    }

    fn is_selected(&self, file: usize) -> bool {
        self.config.selected.get(file).copied().unwrap_or(true)
    }

    fn home(&self, file: usize) -> Home {
        self.homes.get(file).copied().unwrap_or(Home::Zeros)
    }

    /// Where a span of the piece lies: the file to open and the offset there; `None` for zeros.
    fn target(&self, piece: PieceIndex, span: &Span) -> Result<Option<(usize, u64)>, DiskError> {
        match self.home(span.file) {
            Home::Zeros => Ok(None),
            Home::File => Ok(Some((span.file, span.file_offset))),
            Home::Parts => {
                let begin = span.stream_offset - self.geometry().piece_offset(piece);
                let begin = u32::try_from(begin).ok();
                let offset = begin.and_then(|begin| self.config.parts.offset(piece, begin));
                match offset {
                    Some(offset) => Ok(Some((files::PARTS, offset))),
                    None => Err(DiskError::other(
                        DiskOp::Open,
                        self.path_of(span.file),
                        std::io::ErrorKind::NotFound,
                        "the file is not selected",
                    )),
                }
            }
        }
    }

    /// The pieces' segments start here in the torrent.
    fn segment_offset(&self, piece: PieceIndex, segment: u32) -> u64 {
        let begin = u64::from(segment) * u64::from(crate::base::SEGMENT_BYTES);
        self.geometry().piece_offset(piece) + begin
    }
}

impl Drop for DiskTorrent {
    fn drop(&mut self) {
        self.hub.budget.forget(self.id);
    }
}
