//! A torrent with known content in a temporary folder, for tests of the disk side.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use gyre::base::{Bitfield, BlockRef, Geometry, InfoHash, PieceIndex, Rng};
use gyre::session::check::{CheckJob, CheckResult, check};
use gyre::session::disk::{
    DiskConfig, DiskError, DiskHub, DiskTorrent, Engines, FileBudget, Preallocate, ReadError,
    SendEngine, Via, WriteEngine,
};
use gyre::storage::layout::FileLayout;
use gyre::storage::parts::PartsMap;
use gyre::storage::resume::{Counters, Record, RootKey};
use gyre::swarm::effects::UploadRun;
use gyre::uring::buffers::Pool;
use gyre::uring::hasher::Hasher;
use gyre::uring::ring::{self, Ring, RingConfig};
use gyre::uring::stream::SendData;
use gyre::wire::metainfo::{FileAttributes, FileEntry, Info, Kind, PieceHashes};
use sha1::{Digest, Sha1};

/// A file to be: `p` in front of its length makes it a pad.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub length: u64,
    pub is_pad: bool,
    pub is_selected: bool,
}

/// "100 p20 -5 0": lengths; `p` a pad file, `-` not selected.
pub fn specs(text: &str) -> Vec<Spec> {
    let spec = |word: &str| Spec {
        length: word.trim_start_matches(['p', '-']).parse().unwrap(),
        is_pad: word.starts_with('p'),
        is_selected: !word.starts_with('-'),
    };
    text.split_whitespace().map(spec).collect()
}

pub struct World {
    pub folder: tempfile::TempDir,
    pub layout: Arc<FileLayout>,
    pub parts: Arc<PartsMap>,
    pub hashes: PieceHashes,
    pub info_hash: InfoHash,
    /// The torrent's bytes.
    pub flat: Vec<u8>,
    pub selected: Vec<bool>,
    pub preallocate: Preallocate,
}

pub fn info(piece_length: u64, files: &[Spec], hashes: PieceHashes) -> Info {
    let total = files.iter().map(|file| file.length).sum();
    let entry = |(index, file): (usize, &Spec)| FileEntry {
        // Every third file lies in a folder of its own.
        path: match index % 3 {
            0 => vec![
                format!("d{index}").into_bytes(),
                format!("f{index}").into_bytes(),
            ],
            _ => vec![format!("f{index}").into_bytes()],
        },
        length_bytes: file.length,
        attributes: FileAttributes {
            is_pad: file.is_pad,
            ..FileAttributes::default()
        },
        symlink_target: Vec::new(),
        pieces_root: None,
    };
    Info {
        name: "root".to_owned(),
        geometry: Geometry::new(total, piece_length).unwrap(),
        piece_hashes: hashes,
        files: files.iter().enumerate().map(entry).collect(),
        is_multi_file: true,
        is_private: false,
        source: None,
        kind: Kind::V1,
    }
}

impl World {
    pub fn new(piece_length: u64, files: &[Spec], seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let mut flat = Vec::new();
        for file in files {
            let byte = |_| {
                if file.is_pad { 0 } else { rng.below(256) as u8 }
            };
            flat.extend((0..file.length).map(byte));
        }
        World::with_content(piece_length, files, flat)
    }

    pub fn with_content(piece_length: u64, files: &[Spec], flat: Vec<u8>) -> World {
        let piece = |bytes: &[u8]| Sha1::digest(bytes).to_vec();
        let hashes: Vec<u8> = flat
            .chunks(usize::try_from(piece_length).unwrap())
            .flat_map(piece)
            .collect();
        let hashes = PieceHashes::new(&hashes).unwrap();
        let layout = FileLayout::new(&info(piece_length, files, hashes.clone())).unwrap();
        let info_hash = InfoHash::new([7; 20]);
        World {
            folder: tempfile::tempdir().unwrap(),
            parts: Arc::new(PartsMap::new(&layout, info_hash)),
            layout: Arc::new(layout),
            hashes,
            info_hash,
            flat,
            selected: files.iter().map(|file| file.is_selected).collect(),
            preallocate: Preallocate::Sparse,
        }
    }

    pub fn output(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, file: usize) -> PathBuf {
        self.output().join(&self.layout.files()[file].path)
    }

    pub fn config(&self, is_writer: bool) -> DiskConfig {
        DiskConfig {
            layout: Arc::clone(&self.layout),
            parts: Arc::clone(&self.parts),
            info_hash: self.info_hash,
            piece_hashes: self.hashes.clone(),
            output: self.output().to_owned(),
            selected: self.selected.clone(),
            preallocate: self.preallocate,
            is_writer,
            are_names_synced: false,
        }
    }

    /// Pieces with bytes of a selected file.
    pub fn wanted(&self) -> Vec<PieceIndex> {
        let is_wanted = |piece: &PieceIndex| {
            let mut spans = self.layout.piece_spans(*piece);
            spans.any(|span| self.selected[span.file] && !self.layout.files()[span.file].is_pad)
        };
        let pieces = self.layout.geometry().pieces();
        pieces.filter(is_wanted).collect()
    }

    pub fn bytes_of(&self, block: BlockRef) -> &[u8] {
        let start = self.layout.geometry().piece_offset(block.piece()) + u64::from(block.begin());
        let start = usize::try_from(start).unwrap();
        &self.flat[start..start + block.length() as usize]
    }

    pub fn begins_with_padding(&self, block: BlockRef) -> bool {
        let start = self.layout.geometry().piece_offset(block.piece()) + u64::from(block.begin());
        let mut spans = self.layout.spans(start, 1);
        spans.any(|span| self.layout.files()[span.file].is_pad)
    }

    pub fn blocks(&self, piece: PieceIndex) -> Vec<BlockRef> {
        let geometry = self.layout.geometry();
        let count = geometry.block_count(piece);
        (0..count)
            .map(|block| geometry.block(piece, block).unwrap())
            .collect()
    }

    pub fn record(
        &self,
        torrent: &DiskTorrent,
        root: Option<RootKey>,
        have: &Bitfield,
        is_open: bool,
    ) -> Record {
        let stamps = torrent.stamps();
        Record {
            info_hash: self.info_hash,
            root,
            root_path: self
                .output()
                .join("root")
                .into_os_string()
                .into_encoded_bytes(),
            is_open,
            have: have.clone(),
            files: stamps.files,
            parts: stamps.parts,
            counters: Counters::default(),
            unproven: None,
        }
    }

    pub fn check(&self, pieces: Bitfield) -> CheckResult {
        let job = CheckJob {
            layout: Arc::clone(&self.layout),
            parts: Arc::clone(&self.parts),
            root: self.output().to_owned(),
            piece_hashes: self.hashes.clone(),
            pieces,
            threads: 2,
        };
        check(&job, &AtomicU64::new(0), &AtomicBool::new(false))
    }

    pub fn all(&self) -> Bitfield {
        Bitfield::full(self.layout.geometry().piece_count())
    }
}

/// Runs a test on a small ring with a small pool, through the page cache.
pub fn on_ring<T>(test: impl AsyncFnOnce(Rc<DiskHub>) -> T) -> T {
    let engines = Engines {
        send: SendEngine::Copy,
        write: WriteEngine::Buffered,
    };
    on_ring_with(engines, test)
}

/// As [`on_ring`], with engines.
pub fn on_ring_with<T>(engines: Engines, test: impl AsyncFnOnce(Rc<DiskHub>) -> T) -> T {
    let ring: Ring = ring::start(RingConfig {
        sq_entries: Some(64),
        ..RingConfig::default()
    })
    .unwrap();
    ring.block_on(async {
        let pool = Pool::plain(4 << 20).unwrap();
        let hasher = Hasher::new(1).unwrap();
        let hub = DiskHub::new(pool.clone(), hasher, FileBudget::new(3), 99, engines);
        let result = test(hub).await;
        pool.check();
        result
    })
}

/// Copies a whole block in.
pub fn receive(torrent: &DiskTorrent, block: BlockRef, bytes: &[u8]) {
    let middle = bytes.len() / 2;
    torrent.copy_in(block, 0, &bytes[..middle]);
    torrent.copy_in(block, middle as u32, &bytes[middle..]);
    torrent.block_done(block);
}

/// Downloads one piece whole: copy, hash, write.
pub async fn fetch(
    world: &World,
    torrent: &Rc<DiskTorrent>,
    piece: PieceIndex,
) -> Result<bool, DiskError> {
    for block in world.blocks(piece) {
        receive(torrent, block, world.bytes_of(block));
    }
    let is_good = torrent.hash_piece(piece).await?;
    if is_good {
        torrent.write_piece(piece).await?;
    }
    Ok(is_good)
}

/// Reads the blocks as one run and gives back the payload.
pub async fn read(torrent: &DiskTorrent, blocks: &[BlockRef]) -> Result<Vec<u8>, ReadError> {
    let run = UploadRun {
        blocks: blocks.to_vec(),
    };
    let read = torrent.read_run(&run, Via::Engine).await?.out;
    let mut payload = Vec::new();
    let mut headers = Vec::new();
    for part in &read.parts {
        headers.extend_from_slice(&read.headers[part.header.clone()]);
        match part.data.clone() {
            SendData::Segment { index, range } => {
                payload.extend_from_slice(&read.segments[index].as_slice()[range]);
            }
            SendData::Zeros(length) => payload.resize(payload.len() + length, 0),
            SendData::Mapped { .. } => panic!("a mapping is the kernel's alone"),
        }
    }
    let expected: Vec<u8> = blocks
        .iter()
        .flat_map(|block| piece_header(*block))
        .collect();
    assert_eq!(headers, expected);
    Ok(payload)
}

/// Length, id, index, begin (BEP 3).
fn piece_header(block: BlockRef) -> Vec<u8> {
    let (piece, begin) = (
        block.piece().get().to_be_bytes(),
        block.begin().to_be_bytes(),
    );
    [
        &(block.length() + 9).to_be_bytes()[..],
        &[7],
        &piece,
        &begin,
    ]
    .concat()
}
