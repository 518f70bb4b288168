//! The resume record of one torrent at one root, as bytes, and what it is worth against the files found. Layer 3.
//!
//! The record says which pieces were hashed, written and synced, and how the files looked then. It is marked open
//! while files may change. Keyed by info_hash and the device and inode of the torrent's root (its folder, or its only
//! file). Pure: `session::resume_store` reads and writes the bytes.

use sha1::{Digest, Sha1};

use super::layout::FileLayout;
use crate::base::{Bitfield, InfoHash, PieceIndex};

/// First bytes of every record.
const MAGIC: &[u8; 8] = b"GYRE-RES";
/// Raised when the layout below changes.
const VERSION: u32 = 2;
/// Length of the SHA-1 over everything before it.
const CHECKSUM_BYTES: usize = 20;
/// The longest record read back: 2 million pieces and 2 million files fit.
pub const RECORD_BYTES_MAX: u64 = 128 << 20;

/// The device and inode that a torrent's root has on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootKey {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// How a file looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Inode number, on the root's device.
    pub inode: u64,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Time of the last change of its content, in nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// What adds up over a torrent's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Payload bytes received since the torrent was added.
    pub downloaded_bytes: u64,
    /// Payload bytes sent since the torrent was added.
    pub uploaded_bytes: u64,
    /// Payload bytes received and thrown away since the torrent was added.
    pub wasted_bytes: u64,
    /// When the torrent was added, in seconds since 1970.
    pub added_unix_s: i64,
}

/// All that is kept of one torrent at one root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The torrent.
    pub info_hash: InfoHash,
    /// The root's identity; none while nothing was created yet.
    pub root: Option<RootKey>,
    /// The root's path when the record was written, as raw bytes: finds the record of a root that is gone.
    pub root_path: Vec<u8>,
    /// True while files may change: written at start and at checkpoints; false only after a clean end.
    pub is_open: bool,
    /// Pieces hashed, written and synced.
    pub have: Bitfield,
    /// One a file of the layout, `None` where no file was.
    pub files: Vec<Option<FileStamp>>,
    /// The parts file, if there was one.
    pub parts: Option<FileStamp>,
    /// Totals.
    pub counters: Counters,
    /// Of the pieces, those that nobody hashed here: to be proven before they are sent. `None` for none.
    pub unproven: Option<Bitfield>,
}

/// The bytes are no record of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Another kind of file.
    #[error("not a resume record")]
    BadMagic,
    /// Written by a later or much earlier Gyre.
    #[error("resume record of version {got}, this program knows version {expected}")]
    OtherVersion { expected: u32, got: u32 },
    /// Cut off or longer than its content.
    #[error("resume record ends at the wrong place")]
    BadLength,
    /// Some byte differs from what was written.
    #[error("resume record is damaged (checksum)")]
    BadChecksum,
    /// The checksum is right and the content is not: written by a faulty program.
    #[error("resume record holds an impossible value")]
    BadValue,
}

impl Record {
    /// The record as bytes, ending in a checksum.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.have.as_bytes().len() + self.files.len() * 25);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(self.info_hash.as_bytes());
        out.push(u8::from(self.is_open));
        out.push(u8::from(self.root.is_some()));
        let root = self.root.unwrap_or(RootKey {
            device: 0,
            inode: 0,
        });
        put_u64(&mut out, root.device);
        put_u64(&mut out, root.inode);
        put_bytes(&mut out, &self.root_path);
        put_u64(&mut out, u64::from(self.have.len()));
        out.extend_from_slice(self.have.as_bytes());
        put_u64(&mut out, self.files.len() as u64);
        for stamp in self.files.iter().chain([&self.parts]) {
            put_stamp(&mut out, stamp.as_ref());
        }
        put_counters(&mut out, &self.counters);
        if let Some(unproven) = &self.unproven {
            out.extend_from_slice(unproven.as_bytes());
        }
        let checksum = Sha1::digest(&out);
        out.extend_from_slice(&checksum);
        out
    }

    /// Reads what [`Self::encode`] wrote. Never panics, whatever the bytes.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Record, RecordError> {
        let mut head = Reader { bytes };
        if head.take(MAGIC.len()) != Ok(MAGIC) {
            return Err(RecordError::BadMagic);
        }
        let got = u32::from_le_bytes(head.array()?);
        if got != VERSION {
            let expected = VERSION;
            return Err(RecordError::OtherVersion { expected, got });
        }
        let end = bytes.len().checked_sub(CHECKSUM_BYTES);
        let (content, checksum) = end
            .and_then(|end| bytes.split_at_checked(end))
            .ok_or(RecordError::BadLength)?;
        if Sha1::digest(content).as_slice() != checksum {
            return Err(RecordError::BadChecksum);
        }
        let body = content.get(MAGIC.len() + 4..);
        let mut reader = Reader {
            bytes: body.ok_or(RecordError::BadLength)?,
        };
        let record = read_record(&mut reader)?;
        if reader.bytes.is_empty() {
            Ok(record)
        } else {
            Err(RecordError::BadLength)
        }
    }
}

fn read_record(reader: &mut Reader<'_>) -> Result<Record, RecordError> {
    let info_hash = InfoHash::new(reader.array()?);
    let is_open = reader.flag()?;
    let has_root = reader.flag()?;
    let root = RootKey {
        device: reader.u64()?,
        inode: reader.u64()?,
    };
    let path_bytes = reader.length()?;
    let root_path = reader.take(path_bytes)?.to_vec();
    let pieces = u32::try_from(reader.u64()?).map_err(|_| RecordError::BadValue)?;
    let bits = reader.take(pieces.div_ceil(8) as usize)?;
    let have = Bitfield::from_wire(bits, pieces).map_err(|_| RecordError::BadValue)?;
    // Each stamp takes at least one byte, so a count above the bytes left is false: nothing is reserved for it.
    let file_count = reader.length()?;
    let files = (0..file_count)
        .map(|_| reader.stamp())
        .collect::<Result<_, _>>()?;
    let parts = reader.stamp()?;
    let counters = read_counters(reader)?;
    // Most records end here.
    let unproven = match reader.bytes.is_empty() {
        true => None,
        false => {
            let bits = reader.take(pieces.div_ceil(8) as usize)?;
            Some(Bitfield::from_wire(bits, pieces).map_err(|_| RecordError::BadValue)?)
        }
    };
    Ok(Record {
        info_hash,
        root: has_root.then_some(root),
        root_path,
        is_open,
        have,
        files,
        parts,
        counters,
        unproven,
    })
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_stamp(out: &mut Vec<u8>, stamp: Option<&FileStamp>) {
    out.push(u8::from(stamp.is_some()));
    if let Some(stamp) = stamp {
        put_u64(out, stamp.inode);
        put_u64(out, stamp.size_bytes);
        out.extend_from_slice(&stamp.mtime_ns.to_le_bytes());
    }
}

fn put_counters(out: &mut Vec<u8>, counters: &Counters) {
    let sums = [
        counters.downloaded_bytes,
        counters.uploaded_bytes,
        counters.wasted_bytes,
    ];
    sums.iter().for_each(|sum| put_u64(out, *sum));
    out.extend_from_slice(&counters.added_unix_s.to_le_bytes());
}

fn read_counters(reader: &mut Reader<'_>) -> Result<Counters, RecordError> {
    Ok(Counters {
        downloaded_bytes: reader.u64()?,
        uploaded_bytes: reader.u64()?,
        wasted_bytes: reader.u64()?,
        added_unix_s: i64::from_le_bytes(reader.array()?),
    })
}

/// Takes values off the front of a byte slice.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or(RecordError::BadLength)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| RecordError::BadLength)
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that each take at least one of the bytes left.
    fn length(&mut self) -> Result<usize, RecordError> {
        let value = usize::try_from(self.u64()?).map_err(|_| RecordError::BadValue)?;
        if value > self.bytes.len() {
            return Err(RecordError::BadLength);
        }
        Ok(value)
    }

    fn flag(&mut self) -> Result<bool, RecordError> {
        match self.array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(RecordError::BadValue),
        }
    }

    fn stamp(&mut self) -> Result<Option<FileStamp>, RecordError> {
        if !self.flag()? {
            return Ok(None);
        }
        Ok(Some(FileStamp {
            inode: self.u64()?,
            size_bytes: self.u64()?,
            mtime_ns: i64::from_le_bytes(self.array()?),
        }))
    }
}

/// What was found on disk at start, before anything was created or written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The root's identity; none when it does not exist.
    pub root: Option<RootKey>,
    /// One a file of the layout, `None` where no file is.
    pub files: Vec<Option<FileStamp>>,
    /// The parts file, if there is one.
    pub parts: Option<FileStamp>,
}

/// What a record is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Pieces taken as good without reading them.
    pub trusted: Bitfield,
    /// Pieces whose data may be there: hash these (holes in files are told apart while hashing).
    pub to_hash: Bitfield,
    /// Why pieces are hashed.
    pub reason: Reason,
    /// Files with recorded data that are gone (HOSTILE.md L4): never start over silently when this is not empty.
    pub missing: Vec<usize>,
}

/// Why a start hashes what it hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The record closed cleanly and all files are as it says.
    Clean,
    /// There is no record: whatever lies there is hashed.
    NoRecord,
    /// The program ended without closing the record: what it had not recorded yet is hashed.
    NotClosed,
    /// Some files are not those recorded.
    FilesChanged,
    /// The record is of another torrent or another layout.
    OtherTorrent,
}

/// Weighs the record against the files found.
///
/// A piece is trusted when it is recorded and all its files fit: the same inode and, for an open record, at least the
/// recorded size; for a closed one the same size and modification time. An open record's other pieces are hashed, a
/// closed one's only where files do not fit.
pub fn judge(record: Option<&Record>, observed: &Observed, layout: &FileLayout) -> Verdict {
    let piece_count = layout.geometry().piece_count();
    let file_count = layout.files().len();
    let mut verdict = Verdict {
        trusted: Bitfield::new(piece_count),
        to_hash: Bitfield::new(piece_count),
        reason: Reason::NoRecord,
        missing: Vec::new(),
    };
    let fits_torrent =
        |record: &&Record| record.have.len() == piece_count && record.files.len() == file_count;
    let usable = record.filter(fits_torrent);
    let has_data = |file: usize| file_has_data(observed, layout, file);
    let Some(record) = usable else {
        if record.is_some() {
            verdict.reason = Reason::OtherTorrent;
        }
        for piece in layout.geometry().pieces() {
            if layout.files_of_piece(piece).any(has_data) {
                verdict.to_hash.set(piece);
            }
        }
        return verdict;
    };
    let fits = (0..file_count)
        .map(|file| file_fits(record, observed, layout, file))
        .collect::<Vec<_>>();
    let file_fits = |file: usize| fits.get(file).copied().unwrap_or(false);
    let is_there = |file: usize| !is_stored(layout, file) || has_data(file);
    for piece in layout.geometry().pieces() {
        let all_fit = layout.files_of_piece(piece).all(file_fits);
        let is_there = layout.files_of_piece(piece).all(is_there);
        if record.have.has(piece) && all_fit && is_there {
            verdict.trusted.set(piece);
        } else if (record.is_open || !all_fit) && layout.files_of_piece(piece).any(has_data) {
            verdict.to_hash.set(piece);
        }
    }
    verdict.missing = missing_files(record, observed, layout);
    verdict.reason = match (fits.iter().all(|fits| *fits), record.is_open) {
        (false, _) => Reason::FilesChanged,
        (true, true) => Reason::NotClosed,
        (true, false) => Reason::Clean,
    };
    verdict
}

/// Bytes of this file may be on disk, in it or in the parts file.
fn file_has_data(observed: &Observed, layout: &FileLayout, file: usize) -> bool {
    let stamp = observed.files.get(file).copied().flatten();
    is_stored(layout, file)
        && (stamp.is_some_and(|stamp| stamp.size_bytes > 0) || observed.parts.is_some())
}

/// The file has bytes, and they belong on the disk.
fn is_stored(layout: &FileLayout, file: usize) -> bool {
    let file = layout.files().get(file);
    file.is_some_and(|file| file.is_regular() && file.length_bytes > 0)
}

fn file_fits(record: &Record, observed: &Observed, layout: &FileLayout, file: usize) -> bool {
    if !is_stored(layout, file) {
        return true;
    }
    let was = record.files.get(file).copied().flatten();
    let is = observed.files.get(file).copied().flatten();
    match (was, is) {
        (Some(was), Some(is)) => stamp_fits(was, is, record.is_open),
        // The bytes lie in the parts file, or nowhere: then no piece of the file is taken on trust.
        (None, None) => match (record.parts, observed.parts) {
            (Some(was), Some(is)) => stamp_fits(was, is, record.is_open),
            (None, _) => true,
            (Some(_), None) => false,
        },
        _ => false,
    }
}

fn stamp_fits(was: FileStamp, is: FileStamp, is_open: bool) -> bool {
    let size_fits = if is_open {
        is.size_bytes >= was.size_bytes
    } else {
        is.size_bytes == was.size_bytes && is.mtime_ns == was.mtime_ns
    };
    was.inode == is.inode && size_fits
}

/// Files that are gone, or have nothing in them any more, and held at least one recorded piece.
fn missing_files(record: &Record, observed: &Observed, layout: &FileLayout) -> Vec<usize> {
    let is_gone = |file: &usize| {
        let was = record.files.get(*file).copied().flatten();
        let is = observed.files.get(*file).copied().flatten();
        was.is_some_and(|was| was.size_bytes > 0) && is.is_none_or(|is| is.size_bytes == 0)
    };
    let held_data = |file: &usize| {
        layout
            .pieces_of_file(*file)
            .any(|piece| record.have.has(PieceIndex::new(piece)))
    };
    (0..layout.files().len())
        .filter(is_gone)
        .filter(held_data)
        .collect()
}
