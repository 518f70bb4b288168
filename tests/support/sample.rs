//! Sample data with its torrent, made by `gyre create`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::program;

/// Content in a folder of its own, and a .torrent of it.
pub struct Sample {
    pub folder: TempDir,
    /// Folder that holds the content: what `--data` takes.
    pub data: PathBuf,
    /// The content file or folder itself.
    pub content: PathBuf,
    pub torrent: PathBuf,
    pub info_hash: [u8; 20],
    pub piece_length: u32,
    pub announce: Vec<String>,
}

impl Sample {
    /// One file of that many bytes; `announce` may be empty.
    pub fn file(bytes: usize, piece_length: u32, announce: &[&str]) -> Sample {
        Sample::tree(&[("sample.bin", bytes)], piece_length, announce)
    }

    /// The same as a torrent of BitTorrent v2 alone.
    pub fn v2_file(bytes: usize, piece_length: u32) -> Sample {
        Sample::made(&[("sample.bin", bytes)], piece_length, &[], &["--v2"])
    }

    /// The same as a hybrid of both versions.
    pub fn hybrid_file(bytes: usize, piece_length: u32) -> Sample {
        Sample::made(&[("sample.bin", bytes)], piece_length, &[], &["--hybrid"])
    }

    /// Files by path and length: one path without a folder is a single-file torrent, several lie under one root.
    pub fn tree(files: &[(&str, usize)], piece_length: u32, announce: &[&str]) -> Sample {
        Sample::made(files, piece_length, announce, &[])
    }

    fn made(
        files: &[(&str, usize)],
        piece_length: u32,
        announce: &[&str],
        options: &[&str],
    ) -> Sample {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let root = match files {
            [(name, _)] => data.join(name),
            _ => data.join("sample"),
        };
        for (at, (path, bytes)) in files.iter().enumerate() {
            let path = if files.len() == 1 {
                root.clone()
            } else {
                root.join(path)
            };
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, noise(*bytes, at as u64 + 1)).unwrap();
        }
        let torrent = folder.path().join("sample.torrent");
        let mut arguments: Vec<String> =
            vec!["create".into(), "--json".into(), "--piece-length".into()];
        arguments.push(piece_length.to_string());
        for url in announce {
            arguments.extend(["-a".into(), (*url).into()]);
        }
        arguments.extend(options.iter().map(|option| (*option).into()));
        arguments.extend(["-o".into(), text(&torrent), text(&root)]);
        let output = program::command().args(&arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        let info_hash = from_hex(made["info_hash"].as_str().unwrap());
        Sample {
            folder,
            data,
            content: root,
            torrent,
            info_hash,
            piece_length,
            announce: announce.iter().map(|url| (*url).to_owned()).collect(),
        }
    }

    /// Another .torrent of the same content and trackers, with these web seeds.
    pub fn with_web_seeds(&self, urls: &[String]) -> PathBuf {
        let torrent = self.folder.path().join("web.torrent");
        let mut command = program::command();
        command.args([
            "create",
            "--force",
            "--piece-length",
            &self.piece_length.to_string(),
        ]);
        self.announce.iter().for_each(|url| {
            command.args(["-a", url]);
        });
        urls.iter().for_each(|url| {
            command.args(["-w", url]);
        });
        let output = command.arg("-o").arg(&torrent).arg(&self.content).output();
        let output = output.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        torrent
    }

    /// A fresh folder beside the data.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.folder.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Whether `folder` holds the same files with the same bytes (other files in it do not count).
    pub fn is_same_in(&self, folder: &Path) -> bool {
        let copy = folder.join(self.content.file_name().unwrap());
        same(&self.content, &copy)
    }
}

fn same(left: &Path, right: &Path) -> bool {
    if left.is_dir() {
        let entries = std::fs::read_dir(left).unwrap();
        return entries
            .flatten()
            .all(|entry| same(&entry.path(), &right.join(entry.file_name())));
    }
    matches!((std::fs::read(left), std::fs::read(right)), (Ok(left), Ok(right)) if left == right)
}

/// Bytes that do not compress and differ by seed.
pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn from_hex(hex: &str) -> [u8; 20] {
    let mut out = [0; 20];
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    }
    out
}
