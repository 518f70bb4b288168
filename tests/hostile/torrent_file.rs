//! Torrents written by hand, byte by byte: what no honest program makes.

use std::sync::Arc;

use sha1::{Digest, Sha1};

use crate::support::Sample;
use crate::support::fake_peer::Content;

/// A bencoded string.
pub fn s(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [format!("{}:", bytes.len()).as_bytes(), bytes].concat()
}

/// A bencoded integer.
pub fn i(number: i64) -> Vec<u8> {
    format!("i{number}e").into_bytes()
}

/// A bencoded list.
pub fn l(values: &[Vec<u8>]) -> Vec<u8> {
    [b"l", &values.concat()[..], b"e"].concat()
}

/// A bencoded dictionary, its keys in the order given.
pub fn d(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<u8> = entries
        .iter()
        .flat_map(|(key, value)| [s(key), value.clone()].concat())
        .collect();
    [b"d", &entries[..], b"e"].concat()
}

/// A whole .torrent around an `info` dictionary.
pub fn around(info: &[(&str, Vec<u8>)]) -> Vec<u8> {
    d(&[("info", d(info))])
}

/// One entry of `files`.
#[derive(Clone, Default)]
pub struct Entry {
    pub path: Vec<Vec<u8>>,
    pub bytes: Vec<u8>,
    pub attr: &'static str,
    pub symlink: Vec<Vec<u8>>,
}

impl Entry {
    /// A regular file.
    pub fn file(path: &[&[u8]], bytes: impl Into<Vec<u8>>) -> Entry {
        Entry {
            path: path.iter().map(|element| element.to_vec()).collect(),
            bytes: bytes.into(),
            ..Entry::default()
        }
    }

    /// A BEP 47 pad file.
    pub fn pad(length: usize) -> Entry {
        let name = length.to_string();
        Entry {
            attr: "p",
            ..Entry::file(&[b".pad", name.as_bytes()], vec![0; length])
        }
    }

    /// A BEP 47 symbolic link.
    pub fn link(path: &[&[u8]], target: &[&[u8]]) -> Entry {
        Entry {
            attr: "l",
            symlink: target.iter().map(|element| element.to_vec()).collect(),
            ..Entry::file(path, [])
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut entries = Vec::new();
        if !self.attr.is_empty() {
            entries.push(("attr", s(self.attr)));
        }
        let list = |elements: &[Vec<u8>]| l(&elements.iter().map(s).collect::<Vec<_>>());
        entries.push(("length", i(self.bytes.len() as i64)));
        entries.push(("path", list(&self.path)));
        if !self.symlink.is_empty() {
            entries.push(("symlink path", list(&self.symlink)));
        }
        d(&entries)
    }
}

/// The `info` dictionary of these files.
pub fn info_of(name: &[u8], entries: &[Entry], piece_length: u32) -> Vec<(&'static str, Vec<u8>)> {
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.bytes.clone())
        .collect();
    let files: Vec<Vec<u8>> = entries.iter().map(Entry::encode).collect();
    vec![
        ("files", l(&files)),
        ("name", s(name)),
        ("piece length", i(piece_length.into())),
        ("pieces", s(hashes(&bytes, piece_length))),
    ]
}

/// The hashes of all pieces.
pub fn hashes(bytes: &[u8], piece_length: u32) -> Vec<u8> {
    let pieces = bytes.chunks(piece_length as usize);
    pieces
        .flat_map(|piece| <[u8; 20]>::from(Sha1::digest(piece)))
        .collect()
}

/// A torrent on disk and its bytes for whoever seeds it; nothing of it lies in [`Sample::data`].
pub fn write(
    info: &[(&str, Vec<u8>)],
    bytes: impl Into<Vec<u8>>,
    piece_length: u32,
) -> (Sample, Content) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let torrent = folder.path().join("hostile.torrent");
    std::fs::write(&torrent, around(info)).unwrap();
    let info_hash: [u8; 20] = Sha1::digest(d(info)).into();
    let sample = Sample {
        content: data.join("none"),
        data,
        folder,
        torrent,
        info_hash,
        piece_length,
        announce: Vec::new(),
    };
    let content = Content {
        info_hash,
        piece_length,
        bytes: Arc::new(bytes.into()),
        tree: Arc::default(),
    };
    (sample, content)
}

/// A torrent of these files.
pub fn multi(name: &[u8], entries: &[Entry], piece_length: u32) -> (Sample, Content) {
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.bytes.clone())
        .collect();
    write(&info_of(name, entries, piece_length), bytes, piece_length)
}
