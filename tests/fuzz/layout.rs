//! Any names, lengths and links as files of a torrent: paths that stay inside, bytes that lie in one place each, and
//! what a record of such a torrent is worth.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use gyre::base::{BLOCK_BYTES, Bitfield, InfoHash, PieceIndex};
use gyre::storage::layout::FileLayout;
use gyre::storage::parts::{HEADER_BYTES, PartsMap};
use gyre::storage::resume::{Counters, FileStamp, Observed, Reason, Record, judge};
use gyre::storage::safe_path::{ELEMENT_BYTES_MAX, PATH_BYTES_MAX};
use gyre::wire::metainfo::Metainfo;

/// Ends a file, and an element of its path: bytes that no UTF-8 has.
const FILE_END: u8 = 0xfe;
const ELEMENT_END: u8 = 0xfd;
const FILES_MAX: usize = 24;
const LENGTHS: [u64; 8] = [0, 1, 16_383, 16_384, 16_385, 40_000, 200_000, 65_536];

/// Paths and places. The first file's path is the torrent's name; of the others the first byte says the kind, the
/// second the length.
pub fn layout(data: &[u8]) {
    let Some(layout) = laid_out(data) else {
        return;
    };
    check_paths(&layout);
    check_links(&layout);
    check_spans(&layout);
    let parts = PartsMap::new(&layout, InfoHash::new([1; 20]));
    check_parts(&layout, &parts);
}

/// A record against whatever lies on the disk. The first bytes are the record's and the disk's, the rest the torrent.
pub fn verdict(data: &[u8]) {
    let Some((said, rest)) = data.split_at_checked(32) else {
        return;
    };
    let Some(layout) = laid_out(rest) else {
        return;
    };
    let bits = |number: usize| said[number % 16] >> (number / 16 % 8) & 1 == 1;
    let piece_count = layout.geometry().piece_count();
    let mut have = Bitfield::new(piece_count);
    for piece in layout.geometry().pieces().filter(|p| bits(p.as_usize())) {
        have.set(piece);
    }
    let stamp = |byte: u8, length: u64| {
        let size_bytes = if byte & 4 == 0 {
            length
        } else {
            u64::from(byte)
        };
        (byte & 3 != 0).then_some(FileStamp {
            inode: u64::from(byte >> 6),
            size_bytes,
            mtime_ns: i64::from(byte >> 3 & 3),
        })
    };
    let stamps = |from: usize| {
        let files = layout.files().iter().enumerate();
        let stamps = files.map(|(at, file)| stamp(said[16 + (at + from) % 16], file.length_bytes));
        stamps.collect::<Vec<_>>()
    };
    let record = Record {
        info_hash: InfoHash::new([1; 20]),
        root: None,
        root_path: b"/x".to_vec(),
        is_open: bits(3),
        have,
        files: stamps(0),
        parts: stamp(said[5], 9_000),
        counters: Counters::default(),
        unproven: None,
    };
    let observed = Observed {
        root: None,
        files: stamps(usize::from(said[0] & 1)),
        parts: stamp(said[5 + usize::from(said[1] & 1)], 9_000),
    };
    check_verdict(&record, &observed, &layout);
}

fn check_verdict(record: &Record, observed: &Observed, layout: &FileLayout) {
    assert_eq!(Record::decode(&record.encode()).as_ref(), Ok(record));
    let verdict = judge(Some(record), observed, layout);
    for piece in verdict.trusted.iter() {
        assert!(record.have.has(piece), "{piece:?} was never recorded");
        assert!(!verdict.to_hash.has(piece), "{piece:?} is trusted and not");
        for span in layout.piece_spans(piece) {
            let file = &layout.files()[span.file];
            let stamp = observed.files[span.file];
            let is_found = stamp.is_some_and(|stamp| stamp.size_bytes > 0);
            let is_somewhere = !file.is_regular() || is_found || observed.parts.is_some();
            assert!(is_somewhere, "{piece:?} is trusted without its bytes");
        }
    }
    let is_known = |file: &usize| record.files[*file].is_some();
    assert!(verdict.missing.iter().all(is_known));
    let same = Observed {
        root: None,
        files: record.files.clone(),
        parts: record.parts,
    };
    let verdict = judge(Some(record), &same, layout);
    let is_expected = matches!(verdict.reason, Reason::Clean | Reason::NotClosed);
    assert!(is_expected, "{:?} of an unchanged disk", verdict.reason);
    let verdict = judge(None, observed, layout);
    assert_eq!(verdict.trusted.count(), 0, "trusted without a record");
}

/// Writes the bytes down as a torrent and reads that.
fn laid_out(data: &[u8]) -> Option<FileLayout> {
    let (&shift, data) = data.split_first()?;
    let piece_length = u64::from(BLOCK_BYTES) << (shift & 3);
    let mut records = data.split(|&byte| byte == FILE_END);
    let name = records.next().unwrap_or_default();
    let mut total = 0;
    let mut out = b"d4:infod5:filesl".to_vec();
    for record in records.take(FILES_MAX) {
        let (&kind, record) = record.split_first().unwrap_or((&0, record));
        let (&length, path) = record.split_first().unwrap_or((&1, record));
        total += write_file(kind, length, path, &mut out);
    }
    out.extend_from_slice(b"e4:name");
    write_string(name, &mut out);
    out.extend(format!("12:piece lengthi{piece_length}e6:pieces").bytes());
    let pieces = usize::try_from(total.div_ceil(piece_length)).ok()?;
    write_string(&vec![b'h'; 20 * pieces], &mut out);
    out.extend_from_slice(b"ee");
    let metainfo = Metainfo::parse(&out).ok()?;
    FileLayout::new(&metainfo.info).ok()
}

/// Returns the length.
fn write_file(kind: u8, length: u8, path: &[u8], out: &mut Vec<u8>) -> u64 {
    let mut elements = path.split(|&byte| byte == ELEMENT_END);
    let is_link = kind & 7 == 1;
    let length_bytes = if is_link {
        0
    } else {
        LENGTHS[usize::from(length % 8)]
    };
    let attributes: &[u8] = match kind & 7 {
        0 => b"p",
        1 => b"l",
        2 => b"x",
        _ => b"",
    };
    out.extend_from_slice(b"d4:attr");
    write_string(attributes, out);
    out.extend(format!("6:lengthi{length_bytes}e4:pathl").bytes());
    // A link's path has as many elements as the kind says; the rest is where it leads.
    let own = if is_link {
        usize::from(kind >> 3 & 3) + 1
    } else {
        usize::MAX
    };
    let path = elements.by_ref().take(own);
    path.for_each(|element| write_string(element, out));
    out.push(b'e');
    if is_link {
        out.extend_from_slice(b"12:symlink pathl");
        elements.for_each(|element| write_string(element, out));
        out.push(b'e');
    }
    out.push(b'e');
    length_bytes
}

fn write_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend(format!("{}:", bytes.len()).bytes());
    out.extend_from_slice(bytes);
}

/// Every path lies below the root; no two files share one, and none is a folder of another.
fn check_paths(layout: &FileLayout) {
    let mut files = BTreeSet::new();
    let mut folders = BTreeSet::new();
    for file in layout.files() {
        assert!(file.path.starts_with(layout.root_name()), "{file:?}");
        assert!(file.path.as_os_str().len() <= PATH_BYTES_MAX);
        for part in file.path.components() {
            let Component::Normal(part) = part else {
                panic!("{file:?} leads elsewhere");
            };
            assert!(part.len() <= ELEMENT_BYTES_MAX, "{file:?}");
            let text = part.to_str().expect("paths are text");
            assert!(!text.contains(char::is_control), "{file:?}");
            assert!(!text.contains(['/', '\\']), "{file:?}");
        }
        if !file.is_pad {
            assert!(files.insert(file.path.as_path()), "{file:?} twice");
            folders.extend(file.path.ancestors().skip(1));
        }
    }
    let both = files.intersection(&folders).next();
    assert_eq!(both, None, "a file and a folder with one name");
}

/// A link stays below the root, step by step.
fn check_links(layout: &FileLayout) {
    for file in layout.files() {
        let Some(link) = &file.symlink else {
            continue;
        };
        assert_eq!(file.length_bytes, 0);
        let folder = file.path.parent().expect("it lies in the root");
        let mut depth = folder.components().count();
        for part in link.components() {
            match part {
                Component::ParentDir => depth -= 1,
                Component::Normal(_) => depth += 1,
                other => panic!("{file:?} has {other:?}"),
            }
            assert!(depth > 0, "{file:?} leads out");
        }
        let target = lexical(folder, link);
        let leads_there = |path: &Path| path.starts_with(&target);
        let mut others = layout.files().iter().filter(|other| !other.is_pad);
        let is_known = others.any(|other| leads_there(&other.path));
        // What it leads to may be a link that was dropped.
        let mut dropped = layout.files().iter().filter(|other| other.is_pad);
        assert!(
            is_known || dropped.any(|other| leads_there(&other.path)),
            "{file:?}"
        );
    }
}

fn lexical(folder: &Path, link: &Path) -> std::path::PathBuf {
    let mut path = folder.to_path_buf();
    for part in link.components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            other => path.push(other),
        }
    }
    path
}

/// Every byte of a piece lies in one file, and file and piece know of each other.
fn check_spans(layout: &FileLayout) {
    let geometry = layout.geometry();
    for piece in geometry.pieces() {
        let mut next = geometry.piece_offset(piece);
        let end = next + u64::from(geometry.piece_bytes(piece));
        let files = layout.files_of_piece(piece);
        for span in layout.piece_spans(piece) {
            assert_eq!(span.stream_offset, next, "{piece:?}: a gap");
            next += span.length;
            let file = &layout.files()[span.file];
            assert_eq!(file.offset + span.file_offset, span.stream_offset);
            assert!(span.file_offset + span.length <= file.length_bytes);
            assert!(files.contains(&span.file), "{piece:?} {span:?}");
            assert!(layout.pieces_of_file(span.file).contains(&piece.get()));
        }
        assert_eq!(next, end, "{piece:?}");
    }
    assert_eq!(layout.spans(geometry.total_bytes(), 9).count(), 0);
    assert_eq!(layout.spans(u64::MAX - 3, u64::MAX).count(), 0);
}

/// Slots do not overlap, and what leaves them fits its file.
fn check_parts(layout: &FileLayout, parts: &PartsMap) {
    let geometry = layout.geometry();
    let mut next = HEADER_BYTES;
    for piece in geometry.pieces() {
        if let Some(offset) = parts.offset(piece, 0) {
            assert_eq!(offset, next, "{piece:?}");
            next += u64::from(geometry.piece_length_bytes());
        }
    }
    assert_eq!(parts.is_empty(), next == HEADER_BYTES);
    assert_eq!(parts.check_header(parts.header()), Ok(true));
    assert!(
        layout
            .files()
            .iter()
            .all(|file| file.is_pad || file.path != *parts.path())
    );
    for (at, file) in layout.files().iter().enumerate() {
        let mut last_end = 0;
        for export in parts.plan_exports(layout, at) {
            assert_eq!(export.file, at);
            assert!(export.file_offset >= last_end, "{export:?}");
            last_end = export.file_offset + export.length_bytes;
            assert!(last_end <= file.length_bytes, "{export:?}");
            let slot = export.parts_offset + export.length_bytes;
            assert!(slot <= next, "{export:?}");
            let offset = file.offset + export.file_offset;
            let piece = offset / u64::from(geometry.piece_length_bytes());
            let piece = PieceIndex::new(u32::try_from(piece).expect("small"));
            assert!(parts.offset(piece, 0).is_some());
        }
    }
}
